//! What a snapshot occupies, and the probe.

use crate::support::*;
use plywood::backend::Backend;
use plywood::backend::btrfs::probe;
use plywood::error::ErrorKind;
use plywood::layout::Layout;
use plywood::types::{SnapshotId, Usage};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Blocks of one entry in bytes, as the disk tells.
fn blocks(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).expect("stat").blocks() * 512
}

#[test]
fn usage_is_the_whole_tree_without_a_parent_and_the_difference_with_one() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        assert_eq!(store.usage(1, None), Usage { size_bytes: 0, inodes: 1 });
        let kib = |count: usize| vec![7u8; count * 1024];
        for (name, size) in [("same", 64), ("grown", 8), ("touched", 16), ("gone", 4), ("moved", 32)] {
            write(base.join(name), kib(size));
        }
        fs::create_dir(base.join("dir")).expect("mkdir");
        write(base.join("dir/deep"), kib(128));
        fs::hard_link(base.join("same"), base.join("dir/again")).expect("link");
        symlink("same", base.join("symlink")).expect("symlink");
        store.commit(1);
        // Hard links once, directories and the root too.
        let size_bytes = (64 + 8 + 16 + 4 + 32 + 128) * 1024 + blocks(base.join("symlink"));
        assert_eq!(store.usage(1, None), Usage { size_bytes, inodes: 9 });

        let child = store.create(2, ACTIVE, Some(1));
        assert_eq!(store.usage(2, Some(1)), Usage::default(), "a new snapshot occupies nothing");
        store.create(3, VIEW, Some(1));
        assert_eq!(store.usage(3, Some(1)), Usage::default(), "nor does a view");
        write(child.join("grown"), kib(24));
        write(child.join("touched"), kib(16));
        fs::remove_file(child.join("gone")).expect("remove");
        fs::rename(child.join("moved"), child.join("dir/moved")).expect("rename");
        write(child.join("dir/new"), kib(4));
        fs::create_dir(child.join("dir/tree")).expect("mkdir");
        write(child.join("dir/tree/new"), kib(12));
        fs::hard_link(child.join("dir/tree/new"), child.join("dir/tree/link")).expect("link");
        store.backend.seal(SnapshotId(2)).expect("seal");
        let changed = ["grown", "touched", "dir/moved", "dir/new", "dir/tree", "dir/tree/new"];
        let expected: u64 = changed.iter().map(|name| blocks(child.join(name))).sum();
        assert_eq!(expected, (24 + 16 + 32 + 4 + 12) * 1024);
        assert_eq!(store.usage(2, Some(1)), Usage { size_bytes: expected, inodes: 6 });
        // A directory counts if it changed itself, and so does what took another's place.
        fs::set_permissions(child.join("dir"), fs::Permissions::from_mode(0o700)).expect("chmod");
        fs::remove_file(child.join("symlink")).expect("remove");
        fs::create_dir(child.join("symlink")).expect("mkdir");
        assert_eq!(store.usage(2, Some(1)), Usage { size_bytes: expected, inodes: 8 });
        // Attributes, too, are changes.
        run("setfattr", &["-n", "user.x", "-v", "y", text(&child.join("dir/deep"))]);
        assert_eq!(store.usage(2, Some(1)), Usage { size_bytes: expected + 128 * 1024, inodes: 9 });
    });
}

#[test]
fn usage_counts_subvolumes_within_and_no_other_disk() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        subvolume(&base.join("inner"));
        write(base.join("inner/file"), vec![1; 65_536]);
        fs::create_dir(base.join("mounted")).expect("mkdir");
        store.commit(1);
        assert_eq!(store.usage(1, None), Usage { size_bytes: 65_536, inodes: 4 });
        let child = store.create(2, ACTIVE, Some(1));
        assert_eq!(store.usage(2, Some(1)), Usage::default());
        run("mount", &["-t", "tmpfs", "none", text(&child.join("mounted"))]);
        for name in 0..5 {
            write(child.join("mounted").join(name.to_string()), "x");
        }
        write(child.join("inner/new"), vec![1; 8192]);
        store.backend.seal(SnapshotId(2)).expect("seal");
        let usage = store.usage(2, Some(1));
        run("umount", &[text(&child.join("mounted"))]);
        assert_eq!(usage, Usage { size_bytes: 8192, inodes: 1 });
    });
}

#[test]
fn usage_can_be_cancelled_and_tells_what_is_gone() {
    on_btrfs(|disk| {
        let store = disk.store();
        store.create(1, ACTIVE, None);
        let cancelled =
            store.backend.usage(SnapshotId(1), &[], &AtomicBool::new(true)).expect_err("cancelled");
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        let gone = store.backend.usage(SnapshotId(9), &[], &()).expect_err("there is none");
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
    });
}

#[test]
fn the_probe_makes_and_deletes_a_subvolume_and_says_what_is_missing() {
    on_btrfs(|disk| {
        let store = disk.store();
        probe(&store.layout).expect("probe");
        assert_eq!(store.entries(), [""; 0]);
        assert_eq!(run("btrfs", &["subvolume", "list", text(&disk.mount)]), "");
        // S65 in spirit: a clear "not supported".
        let elsewhere = disk.target("elsewhere");
        run("mount", &["-t", "tmpfs", "none", text(&elsewhere)]);
        let refused = probe(&Layout::create(&elsewhere).expect("layout")).expect_err("it is no btrfs");
        run("umount", &[text(&elsewhere)]);
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("not on btrfs"), "{refused}");
        assert!(refused.to_string().contains("--root"), "{refused}");
        // A disk that cannot be written.
        run("mount", &["-o", "remount,ro", text(&disk.mount)]);
        let refused = probe(&store.layout).expect_err("it is read-only");
        run("mount", &["-o", "remount,rw", text(&disk.mount)]);
        assert!(refused.to_string().contains("can be written"), "{refused}");
    });
}

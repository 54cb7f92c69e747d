//! How snapshots end: retire and delete, also for those who are not root.

use crate::support::*;
use plywood::backend::Backend;
use plywood::backend::btrfs::probe;
use plywood::error::ErrorKind;
use plywood::sys::btrfs::{self, Access};
use plywood::types::{Mount, SnapshotId};
use plywood_fuse::sys::node;
use plywood_fuse::sys::open::{DirMode, open_dir_at};
use plywood_fuse::sys::process::effective_uid;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[test]
fn retiring_moves_a_snapshot_away_and_refuses_one_that_is_mounted() {
    on_btrfs(|disk| {
        let store = disk.store();
        assert_eq!(store.backend.retire(SnapshotId(1)).expect("retire"), None);
        let path = store.create(1, ACTIVE, None);
        store.create(2, ACTIVE, None);
        let mount = store.mount_of(1, ACTIVE);
        let target = disk.target("target");
        let busy = || {
            let refused = store.backend.retire(SnapshotId(1)).expect_err("it is mounted");
            assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
            refused.to_string()
        };
        run("mount", &["-t", "btrfs", "-o", &mount.options.join(","), &mount.source, text(&target)]);
        assert!(busy().contains(text(&target)));
        run("umount", &[text(&target)]);
        run("mount", &["--bind", text(&path), text(&target)]);
        assert!(busy().contains(text(&target)));
        run("umount", &[text(&target)]);
        fs::create_dir(path.join("inner")).expect("mkdir");
        run("mount", &["-t", "tmpfs", "none", text(&path.join("inner"))]);
        assert!(busy().contains("inner"));
        // The others are not in the way.
        store.remove(2);
        run("umount", &[text(&path.join("inner"))]);
        let retired = store.backend.retire(SnapshotId(1)).expect("retire").expect("it was there");
        assert!(is_subvolume(&retired) && !path.exists());
        assert_eq!(store.backend.retire(SnapshotId(1)).expect("retire"), None);
        store.backend.delete(&retired).expect("delete");
        // The remains of a crash, whatever they are.
        fs::create_dir(store.layout.snapshot(SnapshotId(3))).expect("mkdir");
        write(store.layout.snapshot(SnapshotId(4)), "a file");
        store.remove(3);
        store.remove(4);
        assert_eq!(store.entries(), [""; 0]);
    });
}

/// A snapshot with all that makes deletion hard.
fn hard_to_delete(store: &Store, id: u64) -> PathBuf {
    let path = store.create(id, ACTIVE, None);
    fs::create_dir_all(path.join("a/b")).expect("mkdir");
    write(path.join("a/b/file"), "x");
    symlink("/", path.join("a/root")).expect("symlink");
    subvolume(&path.join("a/b/inner"));
    write(path.join("a/b/inner/file"), "x");
    subvolume(&path.join("a/b/inner/most"));
    fs::create_dir(path.join("a/b/inner/most/dir")).expect("mkdir");
    write(path.join("a/b/inner/most/dir/file"), "x");
    fs::set_permissions(path.join("a/b/inner/most/dir"), fs::Permissions::from_mode(0o0)).expect("chmod");
    fs::set_permissions(path.join("a/b"), fs::Permissions::from_mode(0o500)).expect("chmod");
    set_access(&path.join("a/b/inner/most"), Access::ReadOnly);
    set_access(&path.join("a/b/inner"), Access::ReadOnly);
    set_access(&path, Access::ReadOnly);
    path
}

#[test]
fn deleting_frees_read_only_and_nested_subvolumes() {
    on_btrfs(|disk| {
        let store = disk.store();
        // S48.
        hard_to_delete(&store, 1);
        store.remove(1);
        assert_eq!(store.entries(), [""; 0]);
        assert_eq!(run("btrfs", &["subvolume", "list", text(&disk.mount)]), "");
        // S19: twice is fine.
        store.backend.delete(&store.layout.staged(SnapshotId(1))).expect("it is gone already");
        // Parents and children go in any order.
        let base = store.create(1, ACTIVE, None);
        write(base.join("file"), "x");
        store.commit(1);
        let child = store.create(2, ACTIVE, Some(1));
        store.remove(1);
        assert_eq!(read(child.join("file")), "x");
        store.remove(2);
        // Somebody put a plain directory there.
        let plain = store.layout.removed(SnapshotId(3));
        fs::create_dir_all(plain.join("dir/dir")).expect("mkdir");
        subvolume(&plain.join("dir/inner"));
        write(plain.join("dir/inner/file"), "x");
        set_access(&plain.join("dir/inner"), Access::ReadOnly);
        store.backend.delete(&plain).expect("delete");
        write(&plain, "a file");
        store.backend.delete(&plain).expect("delete");
        assert_eq!(store.entries(), [""; 0]);
        assert_eq!(run("btrfs", &["subvolume", "list", text(&disk.mount)]), "");
    });
}

#[test]
fn more_subvolumes_than_one_answer_of_the_kernel_holds_are_carried_and_deleted() {
    on_btrfs(|disk| {
        let store = disk.store();
        let path = store.create(1, ACTIVE, None);
        for name in 0..300 {
            subvolume(&path.join(name.to_string()));
        }
        let nested = btrfs::nested(directory(&path).as_fd()).expect("ask");
        assert_eq!(nested.len(), 300);
        assert!(nested.iter().all(|nested| nested.dir.is_empty()
            && path.join(text(Path::new(std::str::from_utf8(&nested.name).expect("utf-8")))).exists()));
        store.commit(1);
        let child = store.create(2, VIEW, Some(1));
        assert!((0..300).all(|name| is_subvolume(&child.join(name.to_string()))));
        store.remove(1);
        store.remove(2);
        assert_eq!(run("btrfs", &["subvolume", "list", text(&disk.mount)]), "");
    });
}

#[test]
fn a_subvolume_deeper_than_the_kernel_tells_is_deleted_all_the_same() {
    on_btrfs(|disk| {
        let store = disk.store();
        let path = store.create(1, ACTIVE, None);
        let long = "x".repeat(250);
        let mut dir = directory(&path);
        for _ in 0..20 {
            node::mkdir(dir.as_fd(), long.as_bytes(), 0o755).expect("mkdir");
            dir = open_dir_at(dir.as_fd(), long.as_bytes(), DirMode::List).expect("open");
        }
        assert_eq!(store.usage(1, None).inodes, 21);
        btrfs::create(dir.as_fd(), b"inner").expect("subvolume");
        drop(dir);
        store.create(2, ACTIVE, None);
        assert_eq!(store.usage(1, Some(2)).inodes, 21);
        // A commit would lose it for the snapshots on top, so there is none, and nothing has changed.
        let refused = store.backend.freeze(SnapshotId(1)).expect_err("it cannot be found");
        assert!(refused.to_string().contains("too long"), "{refused}");
        assert!(!store.backend.is_frozen(SnapshotId(1)).expect("ask"));
        store.remove(1);
        store.remove(2);
        assert_eq!(run("btrfs", &["subvolume", "list", text(&disk.mount)]), "");
    });
}

#[test]
fn deleting_stops_at_what_is_mounted() {
    on_btrfs(|disk| {
        let store = disk.store();
        let path = store.create(1, ACTIVE, None);
        fs::create_dir(path.join("dir")).expect("mkdir");
        let retired = store.backend.retire(SnapshotId(1)).expect("retire").expect("it was there");
        let inner = retired.join("dir");
        run("mount", &["-t", "tmpfs", "none", text(&inner)]);
        write(inner.join("precious"), "x");
        let refused = store.backend.delete(&retired).expect_err("something is mounted");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        assert_eq!(read(inner.join("precious")), "x");
        run("umount", &[text(&inner)]);
        store.backend.delete(&retired).expect("delete");
        // What lies behind a mount is another subvolume, even under the same name.
        let path = store.create(2, ACTIVE, None);
        fs::create_dir(path.join("dir")).expect("mkdir");
        subvolume(&path.join("dir/inner"));
        let other = disk.mount.join("other");
        fs::create_dir(&other).expect("mkdir");
        subvolume(&other.join("inner"));
        write(other.join("inner/precious"), "x");
        run("mount", &["--bind", text(&other), text(&path.join("dir"))]);
        let snapshots = directory(&store.layout.snapshots());
        let refused = btrfs::delete_subvolume(snapshots.as_fd(), b"2").expect_err("something is mounted");
        assert_eq!(refused.errno(), libc::EBUSY);
        assert_eq!(read(other.join("inner/precious")), "x");
        run("umount", &[text(&path.join("dir"))]);
        store.remove(2);
    });
}

/// What works for somebody without root, on a disk that is mounted without `user_subvol_rm_allowed`.
fn all_that_anyone_can_do(store: &Store) {
    probe(&store.layout).expect("probe");
    let base = store.create(1, ACTIVE, None);
    write(base.join("file"), "content");
    subvolume(&base.join("inner"));
    write(base.join("inner/file"), "inner");
    store.commit(1);
    assert_read_only(&base);
    assert_read_only(&base.join("inner"));
    let (active, view) = (store.create(2, ACTIVE, Some(1)), store.create(3, VIEW, Some(1)));
    write(active.join("file"), "changed");
    assert_eq!(read(active.join("inner/file")), "inner");
    assert_eq!(read(view.join("inner/file")), "inner");
    assert_read_only(&view.join("inner"));
    assert_eq!(store.usage(2, Some(1)).inodes, 1);
    // Directories that their owner locked himself out of do not keep him from a commit.
    for (name, mode) in [("closed", 0o0), ("listed", 0o400)] {
        fs::create_dir(active.join(name)).expect("mkdir");
        write(active.join(name).join("file"), "x");
        fs::set_permissions(active.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    let seen = if effective_uid() == 0 { 5 } else { 3 };
    assert_eq!(store.usage(2, Some(1)).inodes, seen);
    // [D 8]: a bind of the subvolume.
    for (id, kind, path, option) in [(2, ACTIVE, &active, "rw"), (3, VIEW, &view, "ro")] {
        let mount = store.mount_of(id, kind);
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("bind", text(path)));
        assert_eq!(mount.options, ["rbind", option]);
    }
    if effective_uid() == 0 {
        let target = store.layout.root().join("target");
        fs::create_dir(&target).expect("mkdir");
        let Mount { source, options, .. } = store.mount_of(3, VIEW);
        run("mount", &["-o", &options.join(","), &source, text(&target)]);
        assert_eq!(read(target.join("file")), "content");
        assert_read_only(&target);
        let refused = store.backend.retire(SnapshotId(3)).expect_err("it is mounted");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        run("umount", &[text(&target)]);
    }
    // S48: the right to destroy is not needed.
    let trial = store.layout.removed(SnapshotId(9));
    subvolume(&trial);
    write(trial.join("file"), "x");
    let snapshots = directory(&store.layout.snapshots());
    let name = trial.file_name().expect("a name").as_bytes();
    let refused = btrfs::destroy(snapshots.as_fd(), name).expect_err("this user may destroy subvolumes");
    assert_eq!(refused.errno(), libc::EPERM);
    store.backend.delete(&trial).expect("delete");
    for id in 1..=3 {
        store.remove(id);
    }
    hard_to_delete(store, 4);
    store.remove(4);
    assert_eq!(store.entries(), [""; 0]);
}

#[test]
fn a_plain_user_can_do_everything_but_mount() {
    as_somebody(Who::PlainUser, all_that_anyone_can_do);
}

#[test]
fn root_of_a_user_namespace_can_do_everything() {
    as_somebody(Who::NamespaceRoot, all_that_anyone_can_do);
}

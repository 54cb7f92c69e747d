//! What callers are told to mount.

use crate::support::*;
use plywood::backend::{Backend, MountRequest};
use plywood::error::ErrorKind;
use plywood::types::{SnapshotId, SnapshotKind};
use std::fs;

#[test]
fn root_gets_mounts_by_subvolume_number_that_show_the_content() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        write(base.join("file"), "content");
        store.commit(1);
        store.create(2, ACTIVE, Some(1));
        store.create(3, VIEW, Some(1));
        let number = |id: u64| {
            let shown = run("btrfs", &["subvolume", "show", text(&store.layout.snapshot(SnapshotId(id)))]);
            let line =
                shown.lines().find(|line| line.contains("Subvolume ID:")).expect("a number").to_owned();
            line.split_whitespace().last().expect("a number").to_owned()
        };
        // S9: device and number, and `ro` for views only.
        let (active, view) = (store.mount_of(2, ACTIVE), store.mount_of(3, VIEW));
        assert_eq!((active.kind.as_str(), active.source.as_str()), ("btrfs", disk.device().as_str()));
        assert_eq!(active.options, [format!("subvolid={}", number(2))]);
        assert_eq!(view.options, [format!("subvolid={}", number(3)), "ro".to_owned()]);
        // S11: the same after a restart.
        assert_eq!(Store::new(store.layout.root()).mount_of(3, VIEW), view);
        // A real mount.
        let (upper, lower) = (disk.target("active"), disk.target("view"));
        for (mount, target) in [(&active, &upper), (&view, &lower)] {
            let options = mount.options.join(",");
            run("mount", &["-t", &mount.kind, "-o", &options, &mount.source, text(target)]);
            assert_eq!(read(target.join("file")), "content");
        }
        write(upper.join("file"), "changed");
        assert_eq!(read(store.layout.snapshot(SnapshotId(2)).join("file")), "changed");
        assert_eq!(read(lower.join("file")), "content");
        assert_read_only(&lower);
        run("umount", &[text(&upper), text(&lower)]);
        // S10: what is mounted is what is there now, not what was there once.
        store.remove(2);
        store.create(2, ACTIVE, Some(1));
        assert_eq!(store.mount_of(2, ACTIVE).options, [format!("subvolid={}", number(2))]);
        assert_ne!(store.mount_of(2, ACTIVE), active);
        // S1: the device can be given.
        let given = open(&store.layout).with_device("/dev/disk/by-label/x");
        assert_eq!(given.mounts(request(2, ACTIVE)).expect("mounts")[0].source, "/dev/disk/by-label/x");
    });
}

#[test]
fn what_cannot_be_mounted_is_refused_with_the_reason() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        write(base.join("file"), "content");
        store.commit(1);
        let refused = |request| store.backend.mounts(request).expect_err("refused");
        let committed = refused(request(1, SnapshotKind::Committed));
        assert_eq!(committed.kind(), ErrorKind::FailedPrecondition, "{committed}");
        let nothing = refused(request(7, ACTIVE));
        assert_eq!(nothing.kind(), ErrorKind::Corrupt, "{nothing}");
        fs::create_dir(store.layout.snapshot(SnapshotId(8))).expect("mkdir");
        let foreign = refused(request(8, ACTIVE));
        assert_eq!(foreign.kind(), ErrorKind::Corrupt, "{foreign}");
        // A view without a directory of its own is its parent, read-only.
        let chain = [SnapshotId(1)];
        let bare = MountRequest { chain: &chain, has_directory: false, ..request(9, VIEW) };
        assert_eq!(store.backend.mounts(bare).expect("mounts"), [store.mount_of(1, VIEW)]);
        assert_eq!(store.backend.layers(SnapshotId(9), &chain, false), [base]);
        let bare = MountRequest { kind: ACTIVE, ..bare };
        assert_eq!(refused(bare).kind(), ErrorKind::FailedPrecondition);
    });
}

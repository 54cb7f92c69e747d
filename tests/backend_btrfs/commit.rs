//! Seal, freeze, thaw.

use crate::support::*;
use plywood::backend::Backend;
use plywood::error::ErrorKind;
use plywood::sys::btrfs::Access;
use plywood::types::SnapshotId;
use std::fs;

#[test]
fn a_committed_snapshot_cannot_be_written_by_anybody() {
    on_btrfs(|disk| {
        let store = disk.store();
        let path = store.create(1, ACTIVE, None);
        subvolume(&path.join("inner"));
        subvolume(&path.join("inner/most"));
        write(path.join("inner/most/file"), "x");
        store.backend.seal(SnapshotId(1)).expect("seal");
        assert!(!store.backend.is_frozen(SnapshotId(1)).expect("ask"));
        // S15: read-only at its place, with all in it.
        store.backend.freeze(SnapshotId(1)).expect("freeze");
        store.backend.freeze(SnapshotId(1)).expect("twice is fine");
        assert!(store.backend.is_frozen(SnapshotId(1)).expect("ask"));
        for dir in [path.clone(), path.join("inner"), path.join("inner/most")] {
            assert_read_only(&dir);
        }
        let refused = fs::remove_file(path.join("inner/most/file")).expect_err("it is read-only");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        // A commit that fails after all.
        store.backend.thaw(SnapshotId(1)).expect("thaw");
        assert!(!store.backend.is_frozen(SnapshotId(1)).expect("ask"));
        for dir in [path.clone(), path.join("inner"), path.join("inner/most")] {
            write(dir.join("new"), "x");
        }
        store.commit(1);
        store.backend.thaw(SnapshotId(1)).expect("thaw");
        write(path.join("new"), "y");
        let missing = store.backend.seal(SnapshotId(9)).expect_err("there is none");
        assert_eq!(missing.kind(), ErrorKind::Corrupt, "{missing}");
    });
}

#[test]
fn a_snapshot_that_is_frozen_in_part_is_found_and_thawed_whole() {
    on_btrfs(|disk| {
        let store = disk.store();
        let path = store.create(1, ACTIVE, None);
        subvolume(&path.join("inner"));
        // What a crash leaves in the middle of freezing, or of thawing.
        set_access(&path, Access::ReadOnly);
        assert!(store.backend.is_frozen(SnapshotId(1)).expect("ask"));
        store.backend.thaw(SnapshotId(1)).expect("thaw");
        write(path.join("inner/file"), "x");
        write(path.join("file"), "x");
        set_access(&path, Access::ReadOnly);
        store.commit(1);
        assert_read_only(&path.join("inner"));
    });
}

#[test]
fn what_is_sealed_survives_a_power_cut() {
    on_btrfs(|disk| {
        let store = disk.store();
        let big = "content".repeat(100_000);
        let path = store.create(1, ACTIVE, None);
        write(path.join("sealed"), &big);
        store.backend.seal(SnapshotId(1)).expect("seal");
        store.create(2, ACTIVE, None);
        write(path.join("dirty"), &big);
        // What the disk has at this moment.
        let cut = disk.temp.path().join("cut");
        run("cp", &["--sparse=always", text(&disk.image), text(&cut)]);
        run("umount", &[text(&disk.mount)]);
        run("mount", &["-o", "loop", text(&cut), text(&disk.mount)]);
        assert_eq!(read(path.join("sealed")), big);
        assert!(is_subvolume(&store.layout.snapshot(SnapshotId(2))), "a published name is durable");
        let dirty = fs::read(path.join("dirty")).unwrap_or_default();
        assert_ne!(dirty, big.as_bytes(), "the cut was no cut: it proves nothing");
    });
}

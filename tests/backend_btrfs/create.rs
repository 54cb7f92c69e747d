//! How snapshots begin: stage, publish, and subvolumes within.

use crate::support::*;
use plywood::backend::{Backend, BackendName, Stage};
use plywood::error::ErrorKind;
use plywood::sys::btrfs::Access;
use plywood::types::{SnapshotId, Usage};
use plywood_fuse::sys::process::set_umask;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

#[test]
fn without_a_parent_a_snapshot_is_an_empty_subvolume_with_exact_mode() {
    on_btrfs(|disk| {
        // S1, S2: the directories come on demand, and existing ones are fine.
        let store = disk.store();
        let store = Store::new(store.layout.root());
        set_umask(0o777);
        // S3, S4.
        let (active, view) = (store.create(1, ACTIVE, None), store.create(2, VIEW, None));
        set_umask(0o022);
        for path in [&active, &view] {
            assert!(is_subvolume(path));
            assert_eq!(fs::read_dir(path).expect("list").count(), 0);
            assert_eq!(fs::metadata(path).expect("stat").permissions().mode() & 0o7777, 0o755);
        }
        write(active.join("file"), "x");
        assert_read_only(&view);
        assert_eq!(store.backend.name(), BackendName::Btrfs);
        assert!(store.backend.abilities().view_has_directory && !store.backend.abilities().rebase);
        assert_eq!(store.backend.layers(SnapshotId(1), &[], true), [active]);
        assert_eq!(store.backend.upper(SnapshotId(1)), None);
    });
}

#[test]
fn with_a_parent_a_snapshot_begins_as_the_parents_content_and_changes_nothing_of_it() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        write(base.join("file"), "old");
        fs::hard_link(base.join("file"), base.join("link")).expect("link");
        symlink("file", base.join("symlink")).expect("symlink");
        fs::set_permissions(&base, fs::Permissions::from_mode(0o1711)).expect("chmod");
        lchown(&base, Some(7), Some(8)).expect("chown");
        store.commit(1);
        // S3, S5.
        let (active, view) = (store.create(2, ACTIVE, Some(1)), store.create(3, VIEW, Some(1)));
        for path in [&active, &view] {
            assert!(is_subvolume(path));
            assert_eq!(read(path.join("symlink")), "old");
            let root = fs::metadata(path).expect("stat");
            assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o1711, 7, 8));
            let (file, parent) = (path.join("file"), base.join("file"));
            let (file, parent) = (fs::metadata(file).expect("stat"), fs::metadata(parent).expect("stat"));
            let shape = |m: &fs::Metadata| (m.ino(), m.nlink(), m.mtime(), m.mtime_nsec(), m.ctime_nsec());
            assert_eq!(shape(&file), shape(&parent));
        }
        assert_read_only(&view);
        write(active.join("file"), "new");
        fs::remove_file(active.join("symlink")).expect("remove");
        assert_eq!((read(base.join("link")).as_str(), read(view.join("symlink")).as_str()), ("old", "old"));
        // Only the nearest parent counts, and it need not be the first one made.
        store.commit(2);
        assert_eq!(read(store.create(4, ACTIVE, Some(2)).join("link")), "new");
    });
}

#[test]
fn the_owner_that_labels_ask_for_gets_the_root_directory_of_actives_and_views() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        // A bit that a change of owner drops on files.
        fs::set_permissions(&base, fs::Permissions::from_mode(0o2775)).expect("chmod");
        write(base.join("file"), "x");
        store.commit(1);
        for (id, kind, chain, mode) in [
            (2, ACTIVE, &[][..], 0o755),
            (3, VIEW, &[], 0o755),
            (4, ACTIVE, &[SnapshotId(1)], 0o2775),
            (5, VIEW, &[SnapshotId(1)], 0o2775),
        ] {
            let stage = Stage { id: SnapshotId(id), kind, chain, owner: Some((1000, 1001)) };
            let path = store.backend.stage(stage, &()).expect("stage").path;
            let root = fs::metadata(&path).expect("stat");
            assert_eq!((root.uid(), root.gid(), root.mode() & 0o7777), (1000, 1001, mode), "{kind:?}");
            let expected = if kind == VIEW { Access::ReadOnly } else { Access::Writable };
            assert_eq!(access(&path), expected);
            if !chain.is_empty() {
                assert_eq!(fs::metadata(path.join("file")).expect("stat").uid(), 0);
            }
        }
    });
}

#[test]
fn publishing_moves_the_remains_of_a_crash_out_of_the_way() {
    on_btrfs(|disk| {
        let store = disk.store();
        let place = |id| store.layout.snapshot(SnapshotId(id));
        subvolume(&place(1));
        write(place(1).join("remains"), "x");
        set_access(&place(1), Access::ReadOnly);
        fs::create_dir(place(2)).expect("mkdir");
        write(place(3), "a file");
        for id in 1..=3 {
            assert_eq!(fs::read_dir(store.create(id, ACTIVE, None)).expect("list").count(), 0);
        }
        let removed: Vec<_> = store.entries().into_iter().filter(|name| name.starts_with("rm-")).collect();
        assert_eq!(removed.len(), 3);
        for name in removed {
            store.backend.delete(&store.layout.snapshots().join(name)).expect("delete");
        }
        assert_eq!(store.entries(), ["1", "2", "3"]);
        // Another id, when the transaction has to be tried again.
        let mut staged = store.try_stage(4, ACTIVE, None).expect("stage");
        store.backend.publish(&mut staged, SnapshotId(4)).expect("publish");
        store.backend.publish(&mut staged, SnapshotId(5)).expect("publish");
        assert_eq!(staged.path, place(5));
        assert_eq!(store.entries(), ["1", "2", "3", "5"]);
    });
}

#[test]
fn a_stage_that_fails_leaves_nothing() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        subvolume(&base.join("inner"));
        store.commit(1);
        // S29.
        for point in ["c.after_mkdir", "c.after_fill"] {
            for (kind, parent) in [(ACTIVE, None), (VIEW, None), (ACTIVE, Some(1)), (VIEW, Some(1))] {
                plywood::fail::arm(&format!("{point}=error:28"));
                let failed = store.try_stage(2, kind, parent).expect_err("it was armed");
                assert_eq!(failed.kind(), ErrorKind::NoSpace);
                assert_eq!(store.entries(), ["1"], "{point} {kind:?} {parent:?}");
            }
        }
        let stage = Stage { id: SnapshotId(2), kind: ACTIVE, chain: &[], owner: None };
        let cancelled = store.backend.stage(stage, &AtomicBool::new(true)).expect_err("cancelled");
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        let missing = store.try_stage(2, ACTIVE, Some(9)).expect_err("there is no parent");
        assert_eq!(missing.kind(), ErrorKind::Corrupt, "{missing}");
        // What is no subvolume must not give a snapshot of the whole disk.
        fs::create_dir(store.layout.snapshot(SnapshotId(8))).expect("mkdir");
        let foreign = store.try_stage(2, ACTIVE, Some(8)).expect_err("the parent is no subvolume");
        assert_eq!(foreign.kind(), ErrorKind::Corrupt, "{foreign}");
        assert_eq!(store.entries(), ["1", "8"]);
    });
}

#[test]
fn a_process_that_is_killed_while_staging_leaves_what_delete_takes() {
    const KILLED: &str = "PLYWOOD_BTRFS_KILLED";
    if let Some(root) = std::env::var_os(KILLED) {
        let store = Store::new(Path::new(&root));
        let _ = store.try_stage(2, VIEW, Some(1));
        panic!("it was to be killed");
    }
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        subvolume(&base.join("inner"));
        write(base.join("inner/file"), "x");
        store.commit(1);
        for point in ["c.after_mkdir", "c.after_fill"] {
            let status = Command::new(std::env::current_exe().expect("our own path"))
                .args(["--exact", &this_test()])
                .env(KILLED, store.layout.root())
                .env("PLYWOOD_FAIL", format!("{point}=exit"))
                .output()
                .expect("run")
                .status;
            assert_eq!(status.code(), Some(137));
            let left: Vec<_> = store.entries().into_iter().filter(|name| name != "1").collect();
            assert_eq!(left.len(), 1, "{point}: {left:?}");
            store.backend.delete(&store.layout.snapshots().join(&left[0])).expect("delete");
            assert_eq!(store.entries(), ["1"]);
        }
    });
}

#[test]
fn subvolumes_within_a_snapshot_are_carried_into_those_on_top_of_it() {
    on_btrfs(|disk| {
        let store = disk.store();
        let base = store.create(1, ACTIVE, None);
        fs::create_dir_all(base.join("var/lib")).expect("mkdir");
        subvolume(&base.join("var/lib/machines"));
        subvolume(&base.join("var/lib/machines/one"));
        write(base.join("var/lib/machines/one/file"), "deep");
        write(base.join("var/lib/machines/file"), "inner");
        lchown(base.join("var/lib/machines"), Some(5), Some(6)).expect("chown");
        subvolume(&base.join("top"));
        store.commit(1);
        let (active, view) = (store.create(2, ACTIVE, Some(1)), store.create(3, VIEW, Some(1)));
        let time = |path: &Path| fs::metadata(path).map(|m| (m.mtime(), m.mtime_nsec())).expect("stat");
        for path in [&active, &view] {
            for inner in ["var/lib/machines", "var/lib/machines/one", "top"] {
                assert!(is_subvolume(&path.join(inner)), "{inner}");
            }
            assert_eq!(read(path.join("var/lib/machines/one/file")), "deep");
            assert_eq!(fs::metadata(path.join("var/lib/machines")).expect("stat").uid(), 5);
            for dir in ["var/lib", "var/lib/machines", ""] {
                assert_eq!(time(&path.join(dir)), time(&base.join(dir)), "{dir:?}");
            }
        }
        assert_read_only(&view.join("var/lib/machines/one"));
        write(active.join("var/lib/machines/one/file"), "changed");
        assert_eq!(read(base.join("var/lib/machines/one/file")), "deep");
        store.commit(2);
        let third = store.create(4, ACTIVE, Some(2));
        assert_eq!(read(third.join("var/lib/machines/one/file")), "changed");
        assert_eq!(store.usage(3, Some(1)), Usage::default());
    });
}

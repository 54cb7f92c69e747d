//! The life of a directory: stage, publish, seal, usage, retire, delete.

use crate::support::*;
use plywood::backend::{BackendName, Progress, Stage};
use plywood::error::ErrorKind;
use plywood::fail;
use plywood::types::SnapshotKind::{Active, View};
use plywood::types::{SnapshotId, Usage};
use plywood_fuse::sys::process::set_umask;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

// S27, S51, S52: every mode is exact, whatever the umask; layers can be passed through by others.
#[test]
fn modes_do_not_depend_on_the_umask() {
    const NAME: &str = "life::modes_do_not_depend_on_the_umask";
    let Some(how) = again() else {
        for (who, how) in [(Who::Same, "777"), (Who::Same, "000"), (Who::Nobody, "777")] {
            let status = Elsewhere::new(who).run(NAME, how, &[], &[]);
            assert!(status.success(), "umask {how}: {status}");
        }
        return;
    };
    for name in PLAIN {
        let store = Store::new(name);
        let former = set_umask(u32::from_str_radix(&how, 8).expect("a umask"));
        let empty = store.make(1, Active, &[]);
        std::fs::create_dir(empty.join("d")).expect("the root can be written");
        std::fs::set_permissions(empty.join("d"), std::fs::Permissions::from_mode(0o751)).expect("ours");
        std::fs::write(empty.join("d/f"), "x").expect("a file");
        std::fs::set_permissions(empty.join("d/f"), std::fs::Permissions::from_mode(0o604)).expect("ours");
        let child = store.make(2, Active, &[1]);
        let view = store.make(3, View, &[]);
        set_umask(former);
        for content in [&empty, &child, &view] {
            assert_eq!(mode(content), 0o755, "{name}: {}", content.display());
        }
        if name == BackendName::Native {
            assert_same(&empty, &child);
            continue;
        }
        for id in [1, 2] {
            assert_eq!(mode(&store.layout.snapshot(SnapshotId(id))), 0o700, "{name}");
            assert_eq!(mode(&store.layout.work(SnapshotId(id))), 0o711, "{name}");
        }
        // S36: what is never written needs no work directory.
        assert!(!store.layout.work(SnapshotId(3)).exists());
    }
}

// S4: without a parent, an empty directory. S56: with one, its content, of the nearest parent only.
#[test]
fn a_snapshot_lives_from_stage_to_delete() {
    as_both("life::a_snapshot_lives_from_stage_to_delete", || {
        for name in PLAIN {
            let store = Store::with(name, &Default::default());
            let base = store.make(1, Active, &[]);
            assert_eq!(std::fs::read_dir(&base).expect("a directory").count(), 0);
            std::fs::write(base.join("f"), "one").expect("a file");
            store.backend.seal(SnapshotId(1)).expect("seal");
            store.backend.committed(SnapshotId(1));
            assert!(!store.layout.work(SnapshotId(1)).exists(), "{name}: the work directory stays");
            assert_eq!(std::fs::read(base.join("f")).expect("content"), b"one");

            let second = store.make(2, Active, &[1]);
            std::fs::write(second.join("f"), "two").expect("a file");
            let third = store.make(3, Active, &[2, 1]);
            let inherited = std::fs::read(third.join("f")).ok();
            let copies = name == BackendName::Native;
            assert_eq!(inherited.as_deref(), copies.then_some(&b"two"[..]), "{name}");
            assert_eq!(std::fs::read(base.join("f")).expect("content"), b"one", "{name}: the parent changed");
            assert_eq!(store.backend.abilities().slow_stage, copies, "S63");

            let chain = ids(&[2, 1]);
            let layers = store.backend.layers(SnapshotId(3), &chain, true);
            let whole = vec![third.clone(), second.clone(), base.clone()];
            assert_eq!(layers, if copies { vec![third.clone()] } else { whole });
            let of_view = store.backend.layers(SnapshotId(9), &chain, false);
            assert_eq!(of_view, if copies { vec![second.clone()] } else { vec![second, base] });
            assert_eq!(store.backend.upper(SnapshotId(3)), (!copies).then_some(third));

            let retired = store.backend.retire(SnapshotId(3)).expect("retire").expect("it was there");
            assert_eq!(store.backend.retire(SnapshotId(3)).expect("retire"), None);
            assert!(
                retired.file_name().expect("a name").to_string_lossy().starts_with("rm-3-"),
                "{retired:?}"
            );
            store.backend.delete(&retired).expect("delete");
            store.backend.delete(&retired).expect("it may be gone already");
            assert_eq!(store.names(), ["1", "2"], "{name}");
        }
    });
}

// S53
#[test]
fn a_view_of_a_parent_has_no_directory() {
    for name in PLAIN {
        let store = Store::new(name);
        store.make(1, Active, &[]);
        assert!(!store.backend.abilities().view_has_directory);
        let chain = ids(&[1]);
        let stage = Stage { id: SnapshotId(2), kind: View, chain: &chain, owner: None };
        let refused = store.backend.stage(stage, &()).expect_err("nobody would look into it");
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert_eq!(store.names(), ["1"]);
        let shown = store.backend.mounts(request(2, View, &chain)).expect("its mounts");
        assert_eq!(shown[0].source, store.content(1).display().to_string());
        assert!(shown[0].options.contains(&"ro".to_owned()) && shown.len() == 1, "{shown:?}");
    }
}

#[test]
fn a_committed_snapshot_is_not_mounted() {
    for name in PLAIN {
        let store = Store::new(name);
        let refused = store.backend.mounts(request(1, plywood::types::SnapshotKind::Committed, &[]));
        assert_eq!(refused.expect_err("committed").kind(), ErrorKind::FailedPrecondition);
    }
}

// S57: one directory for each id, by one rename; what a crash left there moves away.
#[test]
fn publishing_moves_leftovers_away_and_may_be_repeated() {
    for name in PLAIN {
        let store = Store::with(name, &Default::default());
        std::fs::create_dir_all(store.layout.snapshot(SnapshotId(5)).join("left/over")).expect("leftovers");
        std::fs::create_dir(store.layout.snapshot(SnapshotId(6))).expect("leftovers, empty");
        let stage = Stage { id: SnapshotId(5), kind: Active, chain: &[], owner: None };
        let mut staged = store.backend.stage(stage, &()).expect("stage");
        assert!(staged.path.file_name().expect("a name").to_string_lossy().starts_with("new-5-"));
        for id in [5, 6] {
            store.backend.publish(&mut staged, SnapshotId(id)).expect("publish");
            assert_eq!(staged.path, store.layout.snapshot(SnapshotId(id)));
            assert_eq!(mode(&store.content(id)), 0o755);
            assert!(!staged.path.join("left").exists());
        }
        let names = store.names();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[0], "6");
        for rest in &names[1..] {
            assert!(rest.starts_with("rm-"), "{rest}");
            store.backend.delete(&store.layout.snapshots().join(rest)).expect("delete");
        }
    }
}

// S29, S54, S58: a failure leaves nothing.
#[test]
fn a_failure_while_staging_leaves_nothing() {
    for name in PLAIN {
        let store = Store::new(name);
        let base = store.make(1, Active, &[]);
        zoo_for(name, &base);
        let copies = name == BackendName::Native;
        let points = ["c.after_mkdir", "c.after_fill", "c.mid_copy"];
        for point in points.into_iter().take(if copies { 3 } else { 2 }) {
            fail::arm(&format!("{point}=error:28"));
            let failed = store.stage(2, &[1], &()).expect_err(point);
            fail::arm("");
            assert_eq!(failed.kind(), ErrorKind::NoSpace, "{name} {point}: {failed}");
            assert_eq!(store.names(), ["1"], "{name} {point}");
        }
    }
}

struct CancelAfter(AtomicU64);

impl Progress for CancelAfter {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 1
    }
}

#[test]
fn who_gives_up_gets_no_copy_and_no_usage() {
    let store = Store::new(BackendName::Native);
    zoo(&store.make(1, Active, &[]));
    for after in [1, 5, 20] {
        let failed = store.stage(2, &[1], &CancelAfter(AtomicU64::new(after))).expect_err("cancelled");
        assert_eq!(failed.kind(), ErrorKind::Cancelled, "{failed}");
        assert_eq!(store.names(), ["1"]);
    }
    for name in PLAIN {
        let store = Store::new(name);
        std::fs::write(store.make(1, Active, &[]).join("f"), "x").expect("a file");
        let usage = store.backend.usage(SnapshotId(1), &[], &AtomicBool::new(true));
        assert_eq!(usage.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    }
}

// S61: what a snapshot occupies; hard links once, directories and the root included, no holes.
#[test]
fn usage_counts_each_inode_once() {
    as_both("life::usage_counts_each_inode_once", || {
        for name in PLAIN {
            let store = Store::new(name);
            let root = store.make(1, Active, &[]);
            let usage = |id| store.backend.usage(SnapshotId(id), &[], &()).expect("usage");
            let blocks =
                |path: &std::path::Path| std::fs::symlink_metadata(path).expect("a file").blocks() * 512;
            assert_eq!(usage(1), Usage { size_bytes: blocks(&root), inodes: 1 });
            std::fs::create_dir(root.join("d")).expect("a directory");
            std::fs::write(root.join("f"), vec![1; 100_000]).expect("a file");
            std::fs::hard_link(root.join("f"), root.join("d/g")).expect("a link");
            sparse(&root.join("sparse"), &[(1 << 20, 4096)], 1 << 30);
            std::os::unix::fs::symlink("/usr", root.join("l")).expect("a symlink");
            let files = ["", "d", "f", "sparse", "l"].map(|n| blocks(&root.join(n)));
            assert_eq!(usage(1), Usage { size_bytes: files.iter().sum(), inodes: 5 }, "{name}");
            assert!(usage(1).size_bytes < 1 << 29, "holes count");
            let gone = store.backend.usage(SnapshotId(7), &[], &()).expect_err("no such snapshot");
            assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
        }
    });
}

#[test]
fn usage_of_a_tree_that_changes_is_no_error() {
    let store = Store::new(BackendName::Fuse);
    let root = store.make(1, Active, &[]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                std::fs::create_dir_all(root.join("a/b/c")).expect("directories");
                std::fs::write(root.join("a/b/f"), "x").expect("a file");
                std::fs::remove_dir_all(root.join("a")).expect("ours");
            }
        });
        let measured: Vec<_> = (0..300).map(|_| store.backend.usage(SnapshotId(1), &[], &())).collect();
        over.store(true, Ordering::Relaxed);
        let failed = measured.iter().find(|m| m.is_err());
        assert!(failed.is_none(), "{failed:?}");
    });
}

#[test]
fn the_owner_is_the_one_asked_for_or_that_of_the_parent() {
    if !may_be_root() {
        return;
    }
    for name in PLAIN {
        let store = Store::new(name);
        let base = store.make(1, Active, &[]);
        chown(&base, Some(1000), Some(2000)).expect("root can give it away");
        let owner = |id| {
            let found = std::fs::metadata(store.content(id)).expect("a directory");
            (found.uid(), found.gid())
        };
        store.make(2, Active, &[1]);
        assert_eq!(owner(2), (1000, 2000), "{name}");
        for (id, kind, parents) in [(3, Active, &[1][..]), (4, Active, &[]), (5, View, &[])] {
            let chain = ids(parents);
            let owned = Some((100_000, 100_001));
            let stage = Stage { id: SnapshotId(id), kind, chain: &chain, owner: owned };
            let mut staged = store.backend.stage(stage, &()).expect("stage");
            store.backend.publish(&mut staged, SnapshotId(id)).expect("publish");
            // What a mount maps is on the disk as it is for those inside.
            let mapped = name == BackendName::Fuse && !parents.is_empty();
            assert_eq!(owner(id), if mapped { (1000, 2000) } else { (100_000, 100_001) }, "{name}");
        }
    }
}

#[test]
fn a_plain_user_inherits_what_he_may_and_is_told_what_he_may_not() {
    const NAME: &str = "life::a_plain_user_inherits_what_he_may_and_is_told_what_he_may_not";
    if is_root() && again().is_none() {
        let status = Elsewhere::new(Who::Nobody).run(NAME, "nobody", &[], &[]);
        assert!(status.success(), "as nobody: {status}");
        return;
    }
    for name in PLAIN {
        let store = Store::new(name);
        store.make(1, Active, &[]);
        let stage = Stage { id: SnapshotId(2), kind: Active, chain: &[], owner: Some((100_000, 100_000)) };
        let refused = store.backend.stage(stage, &()).expect_err("not his to give");
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        assert!(refused.to_string().contains("user namespace"), "{refused}");
        assert_eq!(store.names(), ["1"]);
        store.make(2, Active, &[1]);
    }
}

#[test]
fn nothing_outside_of_the_store_is_deleted() {
    let store = Store::new(BackendName::Fuse);
    let victim = store.layout.root().join("victim");
    std::fs::create_dir(&victim).expect("a directory");
    for path in [victim.clone(), store.layout.snapshots(), store.layout.snapshots().join("..")] {
        let refused = store.backend.delete(&path).expect_err("outside");
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
    }
    assert!(victim.exists() && store.layout.snapshots().exists());
}

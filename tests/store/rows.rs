//! Labels, pending rows, mounts, and what a store knows of itself.

use crate::*;
use plywood::store::{Liveness, MountHow, NewMount, Pending, ProcessMark, Shutdown};
use std::path::Path;

#[test]
fn labels_are_replaced_and_only_the_change_is_dated() {
    let world = World::new();
    let made = create(&world, ACTIVE, "a", "").expect("it can be made");
    let new = labels(&[("x", "1"), ("empty", ""), ("containerd.io/snapshot/plywood.blob", "computed")]);
    let changed = world.write("update", |rows| rows.set_labels(made.id, &new, at(9))).expect("it can be");
    assert_eq!(changed.labels, labels(&[("x", "1")]));
    assert_eq!((changed.created, changed.updated), (at(1), at(9)));
    assert_eq!(changed, find(&world, "a").expect("it is there"));
    let large = labels(&[("k", &"v".repeat(4096))]);
    let refused = world.write("update", |rows| rows.set_labels(made.id, &large, at(10)));
    assert_eq!(kind_of(refused), Some(ErrorKind::InvalidArgument));
    let missing = world.write("update", |rows| rows.set_labels(SnapshotId(99), &new, at(10)));
    assert_eq!(kind_of(missing), Some(ErrorKind::NotFound));
    assert_eq!(changed, find(&world, "a").expect("it is there"));
    let flagged = world.write("flags", |rows| rows.set_flags(made.id, 6)).expect("it can be");
    assert_eq!((flagged.flags, flagged.updated), (6, at(9)));
}

#[test]
fn many_large_labels_are_kept() {
    let world = World::new();
    let made = create(&world, ACTIVE, "a", "").expect("it can be made");
    let many: Labels = (0..50).map(|n| (format!("{n:04}"), "v".repeat(4000))).collect();
    world.write("update", |rows| rows.set_labels(made.id, &many, at(9))).expect("it can be");
    assert_eq!(find(&world, "a").expect("it is there").labels, many);
}

/// Begins something, as this process.
fn begin(world: &World, name: &str, parent: &str, owner: &ProcessMark) -> Result<SnapshotId> {
    let (realm, labels) = (realm(), labels(&[("l", "v")]));
    let new = NewSnapshot {
        realm: &realm,
        name,
        kind: ACTIVE,
        parent: Some(parent),
        labels: &labels,
        has_directory: true,
        flags: 2,
    };
    world.write("prepare", |rows| rows.add_pending(&new, owner))
}

fn ourselves() -> ProcessMark {
    ProcessMark::current().expect("/proc is there")
}

#[test]
fn what_is_being_made_takes_its_key_and_holds_its_parent() {
    let world = World::new();
    layer(&world, "base", "");
    let id = begin(&world, "slow", "base", &ourselves()).expect("it can be begun");
    assert_eq!(id, SnapshotId(2));
    // Nobody sees it, but its key is in use, as a key and as a name, and its parent stays.
    assert_eq!(kind_of(find(&world, "slow")), Some(ErrorKind::NotFound));
    assert_eq!(all_names(&world), ["base"]);
    assert_eq!(kind_of(create(&world, ACTIVE, "slow", "")), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind_of(begin(&world, "slow", "", &ourselves())), Some(ErrorKind::AlreadyExists));
    create(&world, ACTIVE, "other", "").expect("it can be made");
    assert_eq!(kind_of(commit_as(&world, "other", "slow")), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind_of(remove(&world, "base")), Some(ErrorKind::FailedPrecondition));
    assert_eq!(kind_of(remove(&world, "slow")), Some(ErrorKind::NotFound));
    let known = world.read("cleanup", |rows| Ok((rows.is_known(id)?, rows.known_ids()?))).expect("rows");
    assert_eq!((known.0, known.1.into_iter().collect::<Vec<_>>()), (true, ids(&[1, 2, 3])));
    let pending: Vec<Pending> = world.read("cleanup", |rows| rows.pending()).expect("rows");
    assert_eq!((pending.len(), pending[0].name.as_str(), pending[0].owner), (1, "slow", ourselves()));
    // When it is done it is like any other.
    let record = world.write("prepare", |rows| rows.finish_pending(id, at(50))).expect("it was begun");
    assert_eq!(record, find(&world, "slow").expect("it is there"));
    assert_eq!((record.created, record.updated, record.flags), (at(50), at(50), 2));
    assert_eq!((record.parent, record.labels), (Some(SnapshotId(1)), labels(&[("l", "v")])));
    assert_eq!(world.read("cleanup", |rows| rows.pending()).expect("rows"), []);
    let again = world.write("prepare", |rows| rows.finish_pending(id, at(51)));
    assert_eq!(kind_of(again), Some(ErrorKind::Aborted));
}

#[test]
fn what_was_given_up_leaves_key_and_parent() {
    let world = World::new();
    layer(&world, "base", "");
    let id = begin(&world, "slow", "base", &ourselves()).expect("it can be begun");
    assert!(world.write("undo", |rows| rows.drop_pending(id)).expect("it can be dropped"));
    assert!(!world.write("undo", |rows| rows.drop_pending(id)).expect("it is gone"));
    let finished = world.write("prepare", |rows| rows.finish_pending(id, at(1)));
    assert_eq!(kind_of(finished), Some(ErrorKind::Aborted));
    assert_eq!(begin(&world, "slow", "", &ourselves()).expect("the key is free"), SnapshotId(3));
    remove(&world, "base").expect("it has no children");
    world.write("undo", |rows| rows.drop_pending(SnapshotId(3))).expect("it can be dropped");
}

#[test]
fn what_a_dead_process_began_is_dropped_and_nothing_else() {
    let world = World::new();
    layer(&world, "base", "");
    let dead = ProcessMark { start_time: ourselves().start_time + 1, ..ourselves() };
    let unseen = ProcessMark { pid_namespace: 1, ..ourselves() };
    assert_eq!(unseen.liveness(), Liveness::CannotTell);
    for (name, owner) in [("dead", dead), ("alive", ourselves()), ("unseen", unseen), ("dead too", dead)] {
        begin(&world, name, "base", &owner).expect("it can be begun");
    }
    let dropped = world.write("cleanup", |rows| rows.drop_dead_pending(ProcessMark::is_dead));
    assert_eq!(dropped.expect("it can be dropped"), ids(&[2, 5]));
    let rest = world.read("cleanup", |rows| rows.pending()).expect("rows");
    assert_eq!(rest.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["alive", "unseen"]);
    create(&world, ACTIVE, "dead", "").expect("the key is free");
}

fn mount<'a>(id: SnapshotId, target: &'a str, server: Option<ProcessMark>) -> NewMount<'a> {
    let how = MountHow::Fuse;
    NewMount {
        id,
        target: Path::new(target),
        server,
        mount_id: 7,
        namespace: 8,
        boot_id: [9; 16],
        uid: 1000,
        how,
    }
}

// S101: what belongs to a record goes with it.
#[test]
fn mounts_are_noted_per_snapshot_and_go_with_it() {
    let world = World::new();
    let (a, b) = (layer(&world, "a", "").id, layer(&world, "b", "").id);
    let add = |id, target| world.write("mount", |rows| rows.add_mount(&mount(id, target, Some(ourselves()))));
    let first = add(a, "/one").expect("it can be noted");
    let second = add(a, "/two").expect("it can be noted");
    let third = add(b, "/three").expect("it can be noted");
    assert_eq!(kind_of(add(SnapshotId(99), "/x")), Some(ErrorKind::NotFound));
    let of = |id| world.read("mounts", |rows| rows.mounts_of(id)).expect("rows");
    assert_eq!(of(a), [first.clone(), second.clone()]);
    assert_eq!(
        world.read("mounts", |rows| rows.all_mounts()).expect("rows"),
        [first.clone(), second.clone(), third]
    );
    assert!(world.write("umount", |rows| rows.remove_mount(&second)).expect("it can be"));
    assert!(!world.write("umount", |rows| rows.remove_mount(&second)).expect("it is gone"));
    // The number is given to another: whoever still holds the old row does not remove that.
    let again = add(a, "/four").expect("it can be noted");
    assert_eq!(again.row, second.row);
    assert!(!world.write("umount", |rows| rows.remove_mount(&second)).expect("it is another"));
    remove(&world, "a").expect("rows do not refuse it");
    assert_eq!(of(a), []);
    assert_eq!(of(b).len(), 1);
}

#[test]
fn a_store_remembers_its_backend_its_name_and_its_end() {
    let world = World::new();
    assert_eq!(world.read("open", |rows| rows.backend()).expect("rows"), None);
    world.write("open", |rows| rows.record_backend("fuse")).expect("it is the first");
    world.write("open", |rows| rows.record_backend("fuse")).expect("it is the same");
    assert_eq!(
        kind_of(world.write("open", |rows| rows.record_backend("btrfs"))),
        Some(ErrorKind::FailedPrecondition)
    );
    world.write("open", |rows| rows.replace_backend("overlay")).expect("it can be replaced");
    assert_eq!(world.read("open", |rows| rows.shutdown()).expect("rows"), Shutdown::Clean);
    world.write("open", |rows| rows.set_shutdown(Shutdown::Running)).expect("it can be");
    let id = world.store_id().to_owned();
    assert_eq!(id.len(), 32);
    world.close().expect("it closes");
    let store = Store::open(&world.db(), &StoreSettings::default()).expect("it opens again");
    assert_eq!(store.store_id(), id);
    let kept = store.read("open", |rows| Ok((rows.backend()?, rows.shutdown()?))).expect("rows");
    assert_eq!(kept, (Some("overlay".to_owned()), Shutdown::Running));
    assert_ne!(World::new().store_id(), id);
}

// S17, S57: nothing of a transaction that fails stays; a number is taken only by one that succeeds.
#[test]
fn a_transaction_that_fails_changes_nothing() {
    let world = World::new();
    layer(&world, "base", "");
    create(&world, ACTIVE, "a", "base").expect("it can be made");
    let before = world.read("walk", |rows| rows.records(None, None, 100)).expect("rows");
    let failed: Result<()> = world.write("all at once", |rows| {
        rows.commit(&commit(&realm(), "a", "b", &Labels::new()))?;
        rows.remove(&realm(), "b")?;
        rows.new_id()?;
        rows.record_backend("fuse")?;
        Err(Error::new(ErrorKind::Cancelled, "test", "", ""))
    });
    assert_eq!(kind_of(failed), Some(ErrorKind::Cancelled));
    assert_eq!(world.read("walk", |rows| rows.records(None, None, 100)).expect("rows"), before);
    assert_eq!(world.read("open", |rows| rows.backend()).expect("rows"), None);
    assert_eq!(create(&world, ACTIVE, "c", "").expect("it can be made").id, SnapshotId(3));
    // A number of a snapshot that is gone is not given out again.
    remove(&world, "c").expect("it can be removed");
    assert_eq!(create(&world, ACTIVE, "c", "").expect("it can be made").id, SnapshotId(4));
}

// S62: every way out ends the transaction, so that the next one begins.
#[test]
fn a_transaction_ends_whatever_its_closure_does() {
    let world = World::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.write("panic", |rows| {
            rows.new_id()?;
            panic!("as a bug would")
        })
    }));
    assert!(panicked.is_err().then_some(()).is_some(), "{:?}", panicked.map(|r: Result<()>| kind_of(r)));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        world.read::<()>("panic", |_| panic!("as a bug would"))
    }));
    assert!(panicked.is_err());
    for _ in 0..3 {
        let failed: Result<()> = world.write("fail", |rows| rows.find(&realm(), "missing").map(drop));
        assert_eq!(kind_of(failed), Some(ErrorKind::NotFound));
    }
    assert_eq!(create(&world, ACTIVE, "a", "").expect("it can be made").id, SnapshotId(1));
}

#[test]
fn a_transaction_inside_a_transaction_is_refused_and_not_waited_for() {
    let world = World::new();
    let expected = Some(ErrorKind::FailedPrecondition);
    let inner = world.write("outer", |_| {
        let write = kind_of(world.write("inner", |rows| rows.new_id()));
        let read = kind_of(world.read("inner", |rows| rows.next_id()));
        Ok((write, read, kind_of(world.close())))
    });
    assert_eq!(inner.expect("the outer one goes on"), (expected, expected, expected));
    let inner = world.read("outer", |_| Ok(kind_of(world.write("inner", |rows| rows.new_id()))));
    assert_eq!(inner.expect("the outer one goes on"), expected);
    // Of another store it is fine.
    let other = World::new();
    let inner = world.write("outer", |_| other.write("inner", |rows| rows.new_id()));
    assert_eq!(inner.expect("another store"), SnapshotId(1));
}

#[test]
fn a_writer_sees_what_it_has_done_and_a_reader_does_not_until_it_is_done() {
    let world = World::new();
    let realm = realm();
    let none = Labels::new();
    let new = NewSnapshot {
        realm: &realm,
        name: "a",
        kind: ACTIVE,
        parent: None,
        labels: &none,
        has_directory: false,
        flags: 0,
    };
    world
        .write("create", |rows| {
            let id = rows.new_id()?;
            rows.create(id, &new, at(1))?;
            assert_eq!(rows.find(&realm, "a")?.id, id);
            std::thread::scope(|threads| {
                let seen = threads.spawn(|| find(&world, "a")).join().expect("it does not panic");
                assert_eq!(kind_of(seen), Some(ErrorKind::NotFound));
            });
            Ok(())
        })
        .expect("it can be made");
    assert!(find(&world, "a").is_ok());
}

#[test]
fn a_committed_snapshot_is_not_made_from_nothing() {
    // S42
    let world = World::new();
    assert_eq!(kind_of(create(&world, COMMITTED, "a", "")), Some(ErrorKind::InvalidArgument));
}

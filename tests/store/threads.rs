//! Many at once, in threads and in processes. What must hold:
//!
//! * of many who want one key exactly one gets it;
//! * a parent is removed, or its child is made, never both;
//! * a commit or a removal of one snapshot wins, and the other one finds nothing;
//! * no number is given out twice;
//! * a walk shows nothing twice, and everything that is there all the time.

use crate::*;
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

type Task<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// Runs each of these in a thread, all from one moment on, and returns their answers in order.
fn together<T: Send>(tasks: Vec<Task<'_, T>>) -> Vec<T> {
    let start = Barrier::new(tasks.len());
    std::thread::scope(|threads| {
        let start = &start;
        let mut running = Vec::new();
        for task in tasks {
            running.push(threads.spawn(move || {
                start.wait();
                task()
            }));
        }
        running.into_iter().map(|t| t.join().expect("no panic")).collect()
    })
}

#[test]
fn of_many_who_want_one_key_exactly_one_gets_it() {
    let world = World::new();
    let store = &world.store;
    for round in 0..5 {
        let name = &format!("wanted-{round}");
        let tasks = (0..32).map(|n| {
            let kind = if n % 2 == 0 { ACTIVE } else { VIEW };
            Box::new(move || kind_of(create(store, kind, name, ""))) as Task<'_, _>
        });
        let mut answers: Vec<Option<ErrorKind>> = together(tasks.collect());
        answers.sort_by_key(|a| a.is_some());
        assert_eq!(answers[0], None);
        assert!(answers[1..].iter().all(|a| *a == Some(ErrorKind::AlreadyExists)), "{answers:?}");
    }
}

#[test]
fn a_parent_is_removed_or_its_child_is_made() {
    let world = World::new();
    let store = &world.store;
    for round in 0..50 {
        let (parent, child) = (&format!("parent-{round}"), &format!("child-{round}"));
        layer(store, parent, "");
        let answers = together(vec![
            Box::new(move || kind_of(remove(store, parent))) as Task<'_, _>,
            Box::new(move || kind_of(create(store, ACTIVE, child, parent))),
        ]);
        let removed = [None, Some(ErrorKind::NotFound)];
        let made = [Some(ErrorKind::FailedPrecondition), None];
        assert!(answers == removed || answers == made, "{answers:?}");
    }
}

#[test]
fn a_snapshot_is_committed_or_removed_and_the_other_finds_nothing() {
    let world = World::new();
    let store = &world.store;
    for round in 0..50 {
        let (key, name) = (&format!("key-{round}"), &format!("name-{round}"));
        create(store, ACTIVE, key, "").expect("it can be made");
        let answers = together(vec![
            Box::new(move || kind_of(commit_as(store, key, name))) as Task<'_, _>,
            Box::new(move || kind_of(remove(store, key))),
        ]);
        let missing = Some(ErrorKind::NotFound);
        assert!(answers == [None, missing] || answers == [missing, None], "{answers:?}");
        assert_eq!(find(store, name).is_ok(), answers[0].is_none());
    }
}

// S57
#[test]
fn no_number_is_given_out_twice() {
    let world = World::new();
    let store = &world.store;
    let tasks = (0..8).map(|thread| {
        let work = move || -> Vec<SnapshotId> {
            let one = |n| {
                let name = format!("{thread}-{n}");
                let id = create(store, ACTIVE, &name, "").expect("it can be made").id;
                if n % 3 == 0 {
                    remove(store, &name).expect("no children");
                }
                id
            };
            (0..30).map(one).collect()
        };
        Box::new(work) as Task<'_, _>
    });
    let all: Vec<SnapshotId> = together(tasks.collect()).concat();
    let different: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(different.len(), all.len());
    assert_eq!(different.last(), Some(&SnapshotId(8 * 30)));
}

#[test]
fn a_walk_during_changes_shows_what_stays_exactly_once() {
    let world = World::new();
    let staying: BTreeSet<String> = (0..50).map(|n| format!("stays-{n}")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        for name in &staying {
            create(&world, ACTIVE, name, "").expect("it can be made");
            create(&world, ACTIVE, &format!("goes-{name}"), "").expect("it can be made");
        }
        let writer = threads.spawn(|| {
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    return round;
                }
                for name in &staying {
                    remove(&world, &format!("goes-{name}")).expect("no children");
                    create(&world, VIEW, &format!("goes-{name}"), "").expect("the key is free");
                }
            }
            0
        });
        for _ in 0..20 {
            let seen = all_names(&world);
            let stay: Vec<&String> = seen.iter().filter(|n| n.starts_with("stays-")).collect();
            assert_eq!(stay.len(), 50);
            assert_eq!(stay.into_iter().cloned().collect::<BTreeSet<_>>(), staying);
        }
        done.store(true, Ordering::Relaxed);
        writer.join().expect("no panic");
    });
}

#[test]
fn processes_share_a_store_as_threads_do() {
    const ROUNDS: u64 = 40;
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings::default()).expect("it is there");
        for n in 0..ROUNDS {
            let name = format!("{}-{n}", std::process::id());
            create(&store, ACTIVE, &name, "").expect("it can be made");
            commit_as(&store, &name, &format!("done {name}")).expect("it can be committed");
        }
        return;
    }
    let world = World::new();
    let name = "threads::processes_share_a_store_as_threads_do";
    let others: Vec<_> = (0..4).map(|_| other_process(name, &world.db())).collect();
    for n in 0..ROUNDS {
        create(&world, VIEW, &format!("{n}"), "").expect("it can be made");
    }
    for other in others {
        assert!(other.wait_with_output().expect("it ends").status.success());
    }
    assert_eq!(all_names(&world).len() as u64, 5 * ROUNDS);
    assert_eq!(world.read("check", |rows| rows.next_id()).expect("rows"), SnapshotId(5 * ROUNDS + 1));
}

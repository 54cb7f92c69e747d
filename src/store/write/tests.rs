//! Closures that share a transaction. A first one holds it until all others wait in the queue, so what they share is certain.

use super::*;
use crate::store::{NewSnapshot, Record, StoreSettings};
use crate::types::{Labels, Realm, SnapshotId, SnapshotKind, Timestamp};
use parking_lot::Mutex;
use plywood_fuse::testing::TempDir;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

type Write<'a> = Box<dyn FnMut(&mut Writer<'_>) -> Result<()> + Send + 'a>;

fn open(dir: &TempDir, settings: &StoreSettings) -> Arc<Store> {
    Store::open(&dir.path().join("db"), settings).expect("a store")
}

/// The number of the last transaction that changed something.
fn transaction(store: &Store) -> usize {
    let gate = store.gate.read();
    let opened = gate.as_ref().expect("it is open");
    opened.env.info().expect("its figures").last_txnid()
}

/// Runs all of them, in this order, when all of them wait; the first one's thread leads. `prepare` runs in each thread.
fn run_together(store: &Store, prepare: impl Fn(usize) + Sync, jobs: Vec<Write<'_>>) -> Vec<Result<()>> {
    let (begun, wait_for_begin) = mpsc::channel();
    let (release, gate) = mpsc::channel();
    let prepare = &prepare;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let hold = move |_: &mut Writer<'_>| {
                begun.send(()).expect("it waits");
                gate.recv().expect("it is told");
                Ok(())
            };
            store.write("hold", hold).expect("nothing goes wrong");
        });
        // Dropped by a panic, too: then nobody waits for ever.
        let release = release;
        wait_for_begin.recv().expect("it begins");
        let mut threads = Vec::new();
        for (number, job) in jobs.into_iter().enumerate() {
            threads.push(scope.spawn(move || {
                prepare(number);
                write(store, job)
            }));
            wait_for(store, number + 1);
        }
        release.send(()).expect("it waits");
        let answers = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        answers.map(|answer| answer.unwrap_or_else(|_| panic_answer())).collect()
    })
}

/// Waits until so many wait.
fn wait_for(store: &Store, waiting: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.waiting_writers() != waiting {
        assert!(Instant::now() < deadline, "it does not come to the queue");
        std::thread::yield_now();
    }
}

/// What stands for a thread that panicked.
fn panic_answer() -> Result<()> {
    Err(Error::new(ErrorKind::Io, "panic", "", "the thread has panicked"))
}

fn write(store: &Store, job: Write<'_>) -> Result<()> {
    store.write_with_others("job", job)
}

fn create(rows: &mut Writer<'_>, name: &str, labels: &Labels) -> Result<Record> {
    let realm = Realm::cli();
    let kind = SnapshotKind::Active;
    let new = NewSnapshot { realm: &realm, name, kind, parent: None, labels, has_directory: true, flags: 0 };
    rows.check_new(&new)?;
    let id = rows.new_id()?;
    rows.create(id, &new, Timestamp::now())
}

fn creates(name: &str) -> Write<'static> {
    let name = name.to_owned();
    Box::new(move |rows| create(rows, &name, &Labels::new()).map(drop))
}

fn fails_after(name: &str) -> Write<'static> {
    let name = name.to_owned();
    Box::new(move |rows| {
        create(rows, &name, &Labels::new())?;
        Err(rows.error(ErrorKind::Cancelled, "", "on purpose"))
    })
}

/// The names of all snapshots, in the order of their ids; and nothing contradicts itself.
fn names(store: &Store) -> Vec<String> {
    let read = store.read("list", |rows| {
        assert_eq!(crate::store::check(rows, None, &mut |_| false)?, Vec::new());
        rows.records(None, None, 10_000)
    });
    read.expect("rows").records.into_iter().map(|record| record.name).collect()
}

fn kinds(answers: &[Result<()>]) -> Vec<Option<ErrorKind>> {
    answers.iter().map(|answer| answer.as_ref().err().map(Error::kind)).collect()
}

#[test]
fn those_who_wait_share_a_transaction_and_a_thread() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let before = transaction(&store);
    let threads = Mutex::new(BTreeSet::new());
    let job = |number: usize| -> Write<'_> {
        let threads = &threads;
        Box::new(move |rows| {
            threads.lock().insert(format!("{:?}", std::thread::current().id()));
            create(rows, &format!("name {number}"), &Labels::new()).map(drop)
        })
    };
    let answers = run_together(&store, |_| {}, (0..20).map(job).collect());
    assert_eq!(kinds(&answers), [None; 20]);
    assert_eq!(
        (transaction(&store) - before, threads.into_inner().len()),
        (1, 1),
        "(the first changed nothing)"
    );
    assert_eq!(names(&store), (0..20).map(|n| format!("name {n}")).collect::<Vec<_>>());
}

#[test]
fn each_sees_what_those_before_it_did_and_is_refused_alone() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let before = transaction(&store);
    let jobs = vec![creates("a"), creates("a"), creates("b"), creates(""), creates("c")];
    let answers = run_together(&store, |_| {}, jobs);
    let expected = [None, Some(ErrorKind::AlreadyExists), None, Some(ErrorKind::InvalidArgument), None];
    assert_eq!(kinds(&answers), expected);
    let refused = answers[1].as_ref().expect_err("the name is taken").to_string();
    assert!(refused.starts_with("job: \"a\": "), "{refused}");
    assert_eq!((names(&store), transaction(&store) - before), (vec!["a".into(), "b".into(), "c".into()], 1));
}

#[test]
fn who_fails_after_a_change_takes_nobody_with_him() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let jobs = vec![creates("a"), fails_after("b"), creates("b"), fails_after("c"), creates("d")];
    let answers = run_together(&store, |_| {}, jobs);
    let cancelled = Some(ErrorKind::Cancelled);
    assert_eq!(kinds(&answers), [None, cancelled, None, cancelled, None]);
    assert_eq!(names(&store), ["a", "b", "d"]);
    assert_eq!(store.read("x", |rows| rows.next_id()).ok(), Some(SnapshotId(4)));
}

#[test]
fn what_has_no_room_together_gets_it_alone() {
    let dir = TempDir::new();
    let settings = StoreSettings { map_bytes: 512 << 10, ..StoreSettings::default() };
    let store = open(&dir, &settings);
    let large: Labels = (0..60).map(|n| (format!("label {n}"), "x".repeat(4_000))).collect();
    let job = |number: usize| -> Write<'_> {
        let large = &large;
        Box::new(move |rows| create(rows, &format!("{number:02}"), large).map(drop))
    };
    let answers = run_together(&store, |_| {}, (0..20).map(job).collect());
    assert_eq!(kinds(&answers), [None; 20]);
    assert_eq!(names(&store).len(), 20);
}

#[test]
fn a_commit_that_fails_is_everybodys_error_and_nothing_is_changed() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let arm = |number: usize| {
        if number == 0 {
            crate::fail::arm("db.commit_together=error:5");
        }
    };
    let answers = run_together(&store, arm, vec![creates("a"), creates("a"), creates("b")]);
    assert_eq!(kinds(&answers), [Some(ErrorKind::Io); 3]);
    assert_eq!(names(&store), Vec::<String>::new());
    assert_eq!(kinds(&run_together(&store, |_| {}, vec![creates("a"), creates("b")])), [None; 2]);
    assert_eq!(names(&store), ["a", "b"]);
    // A full disk has perhaps room for one.
    let arm = |number: usize| {
        if number == 0 {
            crate::fail::arm("db.commit_together=error:28");
        }
    };
    let answers = run_together(&store, arm, vec![creates("c"), creates("c"), creates("d")]);
    assert_eq!(kinds(&answers), [None, Some(ErrorKind::AlreadyExists), None]);
    assert_eq!(names(&store), ["a", "b", "c", "d"]);
}

#[test]
fn a_directory_that_cannot_be_synced_is_the_error_of_who_made_it() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let (good, missing) = (dir.path().to_owned(), dir.path().join("missing"));
    let job = |name: &'static str, first: &std::path::Path| -> Write<'_> {
        let first = first.to_owned();
        Box::new(move |rows| {
            rows.sync_first(&first);
            create(rows, name, &Labels::new()).map(drop)
        })
    };
    let jobs = vec![job("a", &good), job("b", &missing), job("c", &good)];
    let answers = run_together(&store, |_| {}, jobs);
    assert_eq!(kinds(&answers), [None, Some(ErrorKind::Io), None]);
    assert_eq!(names(&store), ["a", "c"]);
}

#[test]
fn a_panic_is_that_of_its_owner_and_changes_nothing() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let panics: Write<'_> = Box::new(|rows| {
        create(rows, "b", &Labels::new())?;
        panic!("on purpose");
    });
    let answers = run_together(&store, |_| {}, vec![creates("a"), panics, creates("c")]);
    assert_eq!(kinds(&answers), [None, Some(ErrorKind::Io), None]);
    write(&store, creates("b")).expect("it can write");
    assert_eq!(names(&store), ["a", "c", "b"]);
}

#[test]
fn many_threads_get_what_they_were_answered() {
    let dir = TempDir::new();
    let store = open(
        &dir,
        &StoreSettings { durability: crate::store::Durability::Relaxed, ..StoreSettings::default() },
    );
    let made = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, made) = (&store, &made);
            scope.spawn(move || {
                for number in 0..300 {
                    let name = format!("{thread}/{number}");
                    match number % 7 {
                        3 => drop(write(store, fails_after(&name)).expect_err("it fails")),
                        5 => {
                            // Others want the same name.
                            if write(store, creates(&format!("{number}"))).is_ok() {
                                assert!(made.lock().insert(format!("{number}")), "made twice");
                            }
                        }
                        _ => {
                            write(store, creates(&name)).expect("it is made");
                            made.lock().insert(name);
                        }
                    }
                }
            });
        }
    });
    assert_eq!(names(&store).into_iter().collect::<BTreeSet<_>>(), made.into_inner());
}

#[test]
fn who_wants_a_transaction_of_his_own_sees_only_what_is_on_the_disk() {
    let dir = TempDir::new();
    let store = open(&dir, &StoreSettings::default());
    let before = transaction(&store);
    let seen = Mutex::new(Vec::new());
    let (begun, wait_for_begin) = mpsc::channel();
    let (release, gate) = mpsc::channel();
    std::thread::scope(|scope| {
        let store = &store;
        let hold = move |_: &mut Writer<'_>| {
            begun.send(()).expect("it waits");
            gate.recv().expect("it is told");
            Ok(())
        };
        scope.spawn(move || store.write("hold", hold).expect("nothing goes wrong"));
        // Dropped by a panic, too: then nobody waits for ever.
        let release = release;
        wait_for_begin.recv().expect("it begins");
        let look = |_: &mut Writer<'_>| {
            seen.lock().push(transaction(store) - before);
            Ok(())
        };
        for number in 0..7 {
            scope.spawn(move || match number {
                2 | 5 => store.write("look", look).expect("nothing goes wrong"),
                _ => write(store, creates(&format!("{number}"))).expect("nothing goes wrong"),
            });
            wait_for(store, number + 1);
        }
        release.send(()).expect("it waits");
    });
    assert_eq!((transaction(&store) - before, seen.into_inner()), (3, vec![1, 2]));
    assert_eq!(names(&store), ["0", "1", "3", "4", "6"]);
}

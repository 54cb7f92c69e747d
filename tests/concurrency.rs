//! Many at once. What holds, whoever is quicker:
//!
//! * of many callers who want one key exactly one gets it, and the others are told `AlreadyExists`;
//! * a parent is never removed below a child: of removal and preparation exactly one succeeds, or both in the order that
//!   makes sense;
//! * a commit and a removal of one snapshot: exactly one succeeds;
//! * a walk sees every snapshot that is there all the time, exactly once, whatever is made and removed meanwhile;
//! * a walk shows no name twice, and nothing that was made after its begin;
//! * cleanup deletes nothing that is being made, and nothing whose removal is not done;
//! * of many who write none waits while others have several turns;
//! * the command line and a long-lived process share one store.
//!
//! Each test ends with a check of the store. No mounts, no privilege.

use plywood::backend::{BackendName, Progress};
use plywood::error::ErrorKind;
use plywood::filter::Filters;
use plywood::snapshotter::{BackendChoice, Removal, Repair, Snapshotter, SnapshotterSettings};
use plywood::types::{Info, Labels};
use plywood_fuse::testing::TempDir;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

fn open(temp: &TempDir, backend: BackendName, removal: Removal) -> Snapshotter {
    let mut settings = SnapshotterSettings::new(temp.path().join("store"));
    settings.backend = BackendChoice::Named(backend);
    settings.removal = removal;
    Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"))
}

fn layer(snapshotter: &Snapshotter, name: &str, parent: Option<&str>) {
    let key = format!("{name}-key");
    snapshotter.prepare(&key, parent, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
    snapshotter.commit(name, &key, Labels::new(), None, &()).unwrap_or_else(|e| panic!("{e}"));
}

fn whole(snapshotter: &Snapshotter) {
    snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    let again = Snapshotter::open(snapshotter.settings().clone()).unwrap_or_else(|e| panic!("{e}"));
    let report = again.check(Repair::No).unwrap_or_else(|e| panic!("{e}"));
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let cleaned = again.cleanup().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((cleaned.deleted, cleaned.failed), (0, Vec::new()), "garbage");
}

const BACKENDS: [BackendName; 2] = [BackendName::Fuse, BackendName::Native];

#[test]
fn of_32_threads_that_want_one_key_exactly_one_gets_it() {
    for backend in BACKENDS {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Sync);
        layer(&snapshotter, "base", None);
        for round in 0..8 {
            let (start, won) = (Barrier::new(32), AtomicUsize::new(0));
            let key = format!("key-{round}");
            std::thread::scope(|scope| {
                for n in 0..32 {
                    let (snapshotter, start, won, key) = (&snapshotter, &start, &won, &key);
                    scope.spawn(move || {
                        start.wait();
                        let made = match n % 2 {
                            0 => snapshotter.prepare(key, Some("base"), Labels::new(), &()),
                            _ => snapshotter.view(key, Some("base"), Labels::new(), &()),
                        };
                        match made {
                            Ok(_) => drop(won.fetch_add(1, Ordering::Relaxed)),
                            Err(e) => assert_eq!(e.kind(), ErrorKind::AlreadyExists, "{e}"),
                        }
                    });
                }
            });
            assert_eq!(won.into_inner(), 1, "{backend}");
        }
        whole(&snapshotter);
    }
}

#[test]
fn a_parent_is_not_removed_below_a_child() {
    for backend in BACKENDS {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Async);
        for round in 0..40 {
            let parent = format!("parent-{round}");
            layer(&snapshotter, &parent, None);
            let start = Barrier::new(2);
            let (removed, prepared) = std::thread::scope(|scope| {
                let removing = scope.spawn(|| {
                    start.wait();
                    snapshotter.remove(&parent)
                });
                start.wait();
                let prepared = snapshotter.prepare("child", Some(&parent), Labels::new(), &());
                (removing.join().expect("no panic"), prepared)
            });
            match (removed, prepared) {
                (Ok(()), Err(e)) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
                (Err(e), Ok(_)) => {
                    assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}");
                    snapshotter.remove("child").unwrap_or_else(|e| panic!("{e}"));
                }
                other => panic!("{backend}: {other:?}"),
            }
        }
        whole(&snapshotter);
    }
}

#[test]
fn of_a_commit_and_a_removal_exactly_one_succeeds() {
    for backend in BACKENDS {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Sync);
        for round in 0..40 {
            let (key, name) = (format!("key-{round}"), format!("name-{round}"));
            snapshotter.prepare(&key, None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
            let start = Barrier::new(2);
            let (removed, committed) = std::thread::scope(|scope| {
                let removing = scope.spawn(|| {
                    start.wait();
                    snapshotter.remove(&key)
                });
                start.wait();
                let committed = snapshotter.commit(&name, &key, Labels::new(), None, &());
                (removing.join().expect("no panic"), committed)
            });
            match (removed, committed) {
                (Ok(()), Err(e)) | (Err(e), Ok(())) => assert_eq!(e.kind(), ErrorKind::NotFound, "{e}"),
                other => panic!("{backend}: {other:?}"),
            }
        }
        whole(&snapshotter);
    }
}

#[test]
fn a_walk_during_ten_thousand_changes_sees_all_that_stays() {
    let temp = TempDir::new();
    let mut settings = SnapshotterSettings::new(temp.path().join("store"));
    settings.backend = BackendChoice::Named(BackendName::Fuse);
    settings.removal = Removal::Async;
    settings.store.durability = plywood::store::Durability::Relaxed;
    settings.backends.sync_on_create = false;
    let snapshotter = Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"));
    for n in 0..300 {
        snapshotter
            .prepare(&format!("stays-{n}"), None, Labels::new(), &())
            .unwrap_or_else(|e| panic!("{e}"));
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let walking = scope.spawn(|| {
            let mut walks = 0;
            while !done.load(Ordering::Relaxed) {
                let mut seen = BTreeMap::new();
                let each = |info: plywood::types::Info| {
                    *seen.entry(info.name).or_insert(0) += 1;
                    Ok(())
                };
                snapshotter.walk(&Filters::everything(), each).unwrap_or_else(|e| panic!("{e}"));
                for n in 0..300 {
                    assert_eq!(seen.get(&format!("stays-{n}")), Some(&1), "seen exactly once");
                }
                assert!(seen.values().all(|times| *times == 1));
                walks += 1;
            }
            walks
        });
        let clean = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let report = snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(report.failed, Vec::new());
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        let changing: Vec<_> = (0..4)
            .map(|thread| {
                let snapshotter = &snapshotter;
                scope.spawn(move || {
                    for n in 0..1250 {
                        let key = format!("goes-{thread}-{n}");
                        snapshotter.prepare(&key, None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
                        snapshotter.remove(&key).unwrap_or_else(|e| panic!("{e}"));
                    }
                })
            })
            .collect();
        let changed: Vec<_> = changing.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(changed.into_iter().all(|c| c.is_ok()));
        clean.join().expect("no panic");
        assert!(walking.join().expect("no panic") > 0);
    });
    whole(&snapshotter);
}

#[test]
fn cleanup_leaves_alone_what_is_being_made() {
    for backend in BACKENDS {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Sync);
        layer(&snapshotter, "base", None);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let cleaning = scope.spawn(|| {
                let mut deleted = 0;
                while !done.load(Ordering::Relaxed) {
                    deleted += snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}")).deleted;
                }
                deleted
            });
            let making: Vec<_> = (0..4)
                .map(|thread| {
                    let snapshotter = &snapshotter;
                    scope.spawn(move || {
                        for n in 0..30 {
                            let key = format!("{thread}-{n}");
                            let made = snapshotter.prepare(&key, Some("base"), Labels::new(), &());
                            made.unwrap_or_else(|e| panic!("{e}"));
                        }
                    })
                })
                .collect();
            let made: Vec<_> = making.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            done.store(true, Ordering::Relaxed);
            assert!(made.into_iter().all(|m| m.is_ok()));
            assert_eq!(cleaning.join().expect("no panic"), 0, "{backend}: nothing was garbage");
        });
        whole(&snapshotter);
    }
}

/// While a snapshot is measured, another one takes its key, so many times.
struct Swaps<'a> {
    snapshotter: &'a Snapshotter,
    left: AtomicUsize,
}

impl Progress for Swaps<'_> {
    fn is_cancelled(&self) -> bool {
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.snapshotter.remove("key").unwrap_or_else(|e| panic!("{e}"));
            prepare_key(self.snapshotter);
        }
        false
    }
}

/// An active snapshot with a file, so that there is something to measure.
fn prepare_key(snapshotter: &Snapshotter) {
    snapshotter.prepare("key", None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
    let layers = snapshotter.layers("key").unwrap_or_else(|e| panic!("{e}"));
    let dir = layers.upper.map_or_else(|| layers.lowers[0].clone(), |(upper, _)| upper);
    std::fs::write(dir.join("file"), "x").unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_commit_means_whatever_its_key_is_by_then() {
    for backend in [BackendName::Native, BackendName::Overlay] {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Async);
        for (round, times) in [1, 3].into_iter().enumerate() {
            prepare_key(&snapshotter);
            let swaps = Swaps { snapshotter: &snapshotter, left: AtomicUsize::new(times) };
            let name = format!("layer-{round}");
            let committed = snapshotter.commit(&name, "key", Labels::new(), None, &swaps);
            committed.unwrap_or_else(|e| panic!("{backend}: {e}"));
            assert_eq!(swaps.left.into_inner(), 0, "{backend}: it was measured");
            assert!(snapshotter.stat(&name).is_ok() && snapshotter.stat("key").is_err());
        }
        // Somebody who does so for ever is told.
        prepare_key(&snapshotter);
        let swaps = Swaps { snapshotter: &snapshotter, left: AtomicUsize::new(usize::MAX) };
        let refused = snapshotter.commit("never", "key", Labels::new(), None, &swaps).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Aborted, "{backend}: {refused}");
        whole(&snapshotter);
    }
}

#[test]
fn who_writes_gets_a_turn_before_others_get_many() {
    let temp = TempDir::new();
    let snapshotter = open(&temp, BackendName::Fuse, Removal::Sync);
    snapshotter.prepare("key", None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
    let (start, total) = (Barrier::new(16), AtomicUsize::new(0));
    let turns: Vec<usize> = std::thread::scope(|scope| {
        let write = || {
            start.wait();
            let mut turns = 0;
            while total.fetch_add(1, Ordering::Relaxed) < 1600 {
                snapshotter.update("key", &Labels::new(), &[]).unwrap_or_else(|e| panic!("{e}"));
                turns += 1;
            }
            turns
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(write)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panic!("a writer died"))).collect()
    });
    assert!(turns.iter().all(|turns| (10..=400).contains(turns)), "{turns:?}");
    whole(&snapshotter);
}

#[test]
fn the_command_line_and_a_long_lived_process_share_a_store() {
    let temp = TempDir::new();
    let snapshotter = open(&temp, BackendName::Native, Removal::Async);
    let root = temp.path().join("store");
    let plywood = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
        command.arg("--root").arg(&root).args(words);
        let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned(), said)
    };
    std::thread::scope(|scope| {
        let here = scope.spawn(|| {
            for n in 0..200 {
                let key = format!("here-{n}");
                snapshotter.prepare(&key, None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
                snapshotter
                    .commit(&format!("{key}-name"), &key, Labels::new(), None, &())
                    .unwrap_or_else(|e| panic!("{e}"));
            }
        });
        for n in 0..20 {
            let key = format!("there-{n}");
            let (code, _, said) = plywood(&["prepare", &key]);
            assert_eq!(code, Some(0), "{said}");
            assert!(snapshotter.stat(&key).is_ok(), "what the command line made is seen at once");
            let (code, _, said) = plywood(&["commit", &format!("{key}-name"), &key]);
            assert_eq!(code, Some(0), "{said}");
        }
        here.join().expect("no panic");
    });
    let (code, listed, said) = plywood(&["ls"]);
    assert_eq!(code, Some(0), "{said}");
    for name in ["here-0-name", "here-199-name", "there-19-name"] {
        assert!(listed.contains(name), "{name}: {listed}");
    }
    let (code, checked, said) = plywood(&["check"]);
    assert_eq!(code, Some(0), "{checked}{said}");
    whole(&snapshotter);
}

#[test]
fn a_walk_shows_no_name_twice_though_it_is_somebody_elses_by_now() {
    let temp = TempDir::new();
    let snapshotter = open(&temp, BackendName::Fuse, Removal::Sync);
    let done = |what: plywood::error::Result<()>| what.unwrap_or_else(|e| panic!("{e}"));
    layer(&snapshotter, "layer", None);
    for n in 0..600 {
        let made = snapshotter.prepare(&format!("{n:03}"), Some("layer"), Labels::new(), &());
        done(made.map(drop));
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let each = |info: Info| {
        if seen.is_empty() {
            // One that is told already is made again; one that comes later gets the name of one that is told already; and
            // one is made that was never there.
            done(snapshotter.remove("001"));
            done(snapshotter.prepare("001", Some("layer"), Labels::new(), &()).map(drop));
            done(snapshotter.remove("002"));
            done(snapshotter.commit("002", "590", Labels::new(), None, &()));
            done(snapshotter.prepare("new", None, Labels::new(), &()).map(drop));
            done(snapshotter.remove("595"));
        }
        *seen.entry(info.name).or_insert(0) += 1;
        Ok(())
    };
    done(snapshotter.walk(&Filters::everything(), each));
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
    assert!(!seen.contains_key("new") && !seen.contains_key("590") && !seen.contains_key("595"));
    // The layer and 600, without those that went; that name which another one has now was told.
    assert_eq!(seen.len(), 601 - 2, "{seen:?}");
    whole(&snapshotter);
}

#[test]
fn what_others_remove_and_clean_up_is_gone_and_never_damaged() {
    for backend in BACKENDS {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend, Removal::Async);
        layer(&snapshotter, "base", None);
        let expect = |what: plywood::error::Result<()>, allowed: &[ErrorKind]| {
            if let Err(error) = what {
                assert!(allowed.contains(&error.kind()), "{backend}: {error}");
            }
        };
        use ErrorKind::{Aborted, AlreadyExists, FailedPrecondition, NotFound};
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (snapshotter, expect) = (&snapshotter, &expect);
                scope.spawn(move || {
                    for n in 0..150 {
                        let (key, name) = (format!("key-{}", (n + thread) % 3), format!("name-{}", n % 2));
                        match (n * 7 + thread * 3) % 6 {
                            0 | 1 => {
                                let made = snapshotter.prepare(&key, Some("base"), Labels::new(), &());
                                expect(made.map(drop), &[AlreadyExists]);
                            }
                            2 => {
                                let done = snapshotter.commit(&name, &key, Labels::new(), None, &());
                                expect(done, &[NotFound, AlreadyExists, FailedPrecondition, Aborted]);
                            }
                            3 => {
                                expect(snapshotter.remove(&key), &[NotFound]);
                                expect(snapshotter.remove(&name), &[NotFound]);
                            }
                            4 => expect(snapshotter.mounts(&key).map(drop), &[NotFound]),
                            _ => expect(snapshotter.cleanup().map(drop), &[]),
                        }
                    }
                });
            }
        });
        whole(&snapshotter);
    }
}

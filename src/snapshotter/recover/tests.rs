//! Garbage and what others are about to remove.

use super::*;
use crate::backend::BackendName;
use crate::error::ErrorKind;
use crate::snapshotter::{BackendChoice, SnapshotterSettings};
use crate::types::Labels;
use plywood_fuse::testing::TempDir;
use std::sync::mpsc;

#[test]
fn what_is_removed_and_may_yet_stay_is_no_garbage() {
    let temp = TempDir::new();
    let mut settings = SnapshotterSettings::new(temp.path().join("store"));
    settings.backend = BackendChoice::Named(BackendName::Native);
    let snapshotter = Snapshotter::open(settings).expect("a store");
    for key in ["a", "b"] {
        snapshotter.prepare(key, None, Labels::new(), &()).expect("it is made");
    }
    let (begun, wait_for_begin) = mpsc::channel();
    let (release, gate) = mpsc::channel();
    let (removed, report) = std::thread::scope(|scope| {
        let snapshotter = &snapshotter;
        let wait_for = |waiting| {
            while snapshotter.store.waiting_writers() != waiting {
                std::thread::yield_now();
            }
        };
        let hold = move |_: &mut Writer<'_>| {
            begun.send(()).expect("it waits");
            gate.recv().expect("it is told");
            Ok(())
        };
        scope.spawn(move || snapshotter.store.write("hold", hold).expect("nothing goes wrong"));
        wait_for_begin.recv().expect("it begins");
        // Both removals share a transaction, and the disk refuses it.
        let first = scope.spawn(|| {
            crate::fail::arm("db.commit_together=error:5");
            snapshotter.remove("a")
        });
        wait_for(1);
        let second = scope.spawn(|| snapshotter.remove("b"));
        wait_for(2);
        let cleaning = scope.spawn(|| snapshotter.cleanup());
        wait_for(3);
        release.send(()).expect("it waits");
        let removed = [first.join().expect("no panic"), second.join().expect("no panic")];
        (removed, cleaning.join().expect("no panic").expect("it cleans"))
    });
    assert!(removed.iter().all(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::Io)), "{removed:?}");
    assert_eq!((report.deleted, report.failed), (0, Vec::new()));
    let found = snapshotter.check(Repair::No).expect("a check").findings;
    assert!(found.is_empty(), "{found:?}");
}

//! What happens where several calls share a transaction. Somebody holds it until all of them wait, so what they share is
//! certain.

use super::*;
use crate::filter::Filters;
use plywood_fuse::testing::TempDir;
use std::sync::mpsc;
use std::time::Instant;

fn open(temp: &TempDir, backend: BackendName) -> Snapshotter {
    let mut settings = SnapshotterSettings::new(temp.path().join("store"));
    settings.backend = BackendChoice::Named(backend);
    Snapshotter::open(settings).expect("a store")
}

type Call<'a, T> = Box<dyn FnOnce() -> T + Send + 'a>;

/// Makes calls that wait for one transaction, in this order; each is to write once, at first.
fn in_a_queue<T: Send>(snapshotter: &Snapshotter, calls: Vec<Call<'_, T>>) -> Vec<T> {
    let (begun, wait_for_begin) = mpsc::channel();
    let (release, gate) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let hold = move |_: &mut crate::store::Writer<'_>| {
                begun.send(()).expect("it waits");
                gate.recv().expect("it is told");
                Ok(())
            };
            snapshotter.store.write("hold", hold).expect("nothing goes wrong");
        });
        // Dropped by a panic, too: then nobody waits for ever.
        let release = release;
        wait_for_begin.recv().expect("it begins");
        let mut threads = Vec::new();
        for (number, call) in calls.into_iter().enumerate() {
            threads.push(scope.spawn(call));
            let deadline = Instant::now() + Duration::from_secs(60);
            while snapshotter.store.waiting_writers() != number + 1 {
                assert!(Instant::now() < deadline, "it does not come to the queue");
                std::thread::yield_now();
            }
        }
        release.send(()).expect("it waits");
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

fn whole(snapshotter: &Snapshotter) {
    let report = snapshotter.cleanup().expect("it cleans");
    assert_eq!((report.deleted, report.failed), (0, Vec::new()));
    let found = snapshotter.check(Repair::No).expect("a check").findings;
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn what_is_removed_and_may_yet_stay_is_no_garbage() {
    let temp = TempDir::new();
    let snapshotter = open(&temp, BackendName::Native);
    for key in ["a", "b"] {
        snapshotter.prepare(key, None, Labels::new(), &()).expect("it is made");
    }
    // Both removals share a transaction, and the disk refuses it.
    let refused = |removed: Result<()>| {
        assert!(removed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Io), "{removed:?}");
    };
    let calls: Vec<Call<'_, ()>> = vec![
        Box::new(|| {
            crate::fail::arm("db.commit_together=error:5");
            refused(snapshotter.remove("a"));
        }),
        Box::new(|| refused(snapshotter.remove("b"))),
        Box::new(|| assert_eq!(snapshotter.cleanup().expect("it cleans").deleted, 0)),
    ];
    in_a_queue(&snapshotter, calls);
    whole(&snapshotter);
}

#[test]
fn what_was_made_in_vain_is_taken_back() {
    for backend in [BackendName::Fuse, BackendName::Native] {
        let temp = TempDir::new();
        let snapshotter = open(&temp, backend);
        let prepare = |key: &'static str, arm: &'static str| -> Call<'_, Option<ErrorKind>> {
            let snapshotter = &snapshotter;
            Box::new(move || {
                crate::fail::arm(arm);
                snapshotter.prepare(key, None, Labels::new(), &()).err().map(|e| e.kind())
            })
        };
        // There is no room for all together, and then there is for each. The first one's thread runs them.
        let arm = "db.commit_together=error:28";
        let calls = vec![prepare("a", arm), prepare("b", ""), prepare("a", ""), prepare("c", "")];
        let taken = Some(ErrorKind::AlreadyExists);
        assert_eq!(in_a_queue(&snapshotter, calls), [None, None, taken, None]);
        whole(&snapshotter);
        // The second is refused by the disk, and the others are not.
        let arm = "c.after_fill=error:5@2";
        let calls = vec![prepare("d", arm), prepare("e", ""), prepare("f", "")];
        assert_eq!(in_a_queue(&snapshotter, calls), [None, Some(ErrorKind::Io), None]);
        whole(&snapshotter);
        // All are refused.
        let calls = vec![prepare("g", "db.commit_together=error:5"), prepare("h", "")];
        assert_eq!(in_a_queue(&snapshotter, calls), [Some(ErrorKind::Io); 2]);
        whole(&snapshotter);
        let names: Vec<_> = snapshotter.list(&Filters::everything()).expect("a list");
        assert_eq!(names.into_iter().map(|info| info.name).collect::<Vec<_>>(), ["a", "b", "c", "d", "f"]);
    }
}

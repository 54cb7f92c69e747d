//! Every fail point of every backend it touches, met by a process that dies there.

use super::*;
use plywood::content::{self, Expected};
use plywood::store::Blob;

/// What the dying process does; the store has the committed snapshot `base` and the active snapshot `active` on it.
const PREPARE: &str = "prepare";
const VIEW: &str = "view";
const COMMIT: &str = "commit";
const REMOVE: &str = "remove";
const UPDATE: &str = "update";
const SET_BLOB: &str = "set-blob";
const CLEANUP: &str = "cleanup";

/// Fail points, what meets them, and whether a process that meets none of them is a fault of this list.
const POINTS: &[(&str, &[&str], &[BackendName])] = &[
    ("c.after_mkdir", &[PREPARE], &BackendName::ALL),
    ("c.after_fill", &[PREPARE], &BackendName::ALL),
    ("c.after_rename", &[PREPARE], &BackendName::ALL),
    ("c.before_commit", &[PREPARE, VIEW], &BackendName::ALL),
    ("c.after_commit", &[PREPARE, VIEW], &BackendName::ALL),
    ("c.after_pending", &[PREPARE], &[BackendName::Native]),
    ("c.mid_copy", &[PREPARE], &[BackendName::Native]),
    ("c.after_copy", &[PREPARE], &[BackendName::Native]),
    ("m.after_usage", &[COMMIT], &BackendName::ALL),
    ("m.after_sync", &[COMMIT], &BackendName::ALL),
    ("m.after_ro", &[COMMIT], &BackendName::ALL),
    ("m.before_commit", &[COMMIT], &BackendName::ALL),
    ("m.after_commit", &[COMMIT], &BackendName::ALL),
    ("r.before_commit", &[REMOVE], &BackendName::ALL),
    ("r.after_commit", &[REMOVE], &BackendName::ALL),
    ("r.after_rename", &[REMOVE], &BackendName::ALL),
    ("r.mid_delete", &[REMOVE], &[BackendName::Fuse, BackendName::Overlay, BackendName::Native]),
    ("r.before_blob_delete", &[REMOVE], &BackendName::ALL),
    ("r.after_blob_delete", &[REMOVE], &BackendName::ALL),
    ("b.before_commit", &[SET_BLOB], &BackendName::ALL),
    ("u.before_commit", &[UPDATE], &BackendName::ALL),
    ("g.after_list", &[CLEANUP], &BackendName::ALL),
    ("g.mid_delete", &[CLEANUP], &BackendName::ALL),
];

const STORE: &str = "PLYWOOD_TEST_STORE";
const BACKEND: &str = "PLYWOOD_TEST_BACKEND";
const OPERATION: &str = "PLYWOOD_TEST_OPERATION";

fn act(snapshotter: &Snapshotter, operation: &str) -> plywood::error::Result<()> {
    match operation {
        PREPARE => snapshotter.prepare("new", Some("base"), Labels::new(), &()).map(drop),
        VIEW => snapshotter.view("new", Some("base"), Labels::new(), &()).map(drop),
        COMMIT => snapshotter.commit("committed", "active", Labels::new(), None, &()),
        REMOVE => snapshotter.remove("active"),
        UPDATE => {
            let labels = Labels::from([("label".to_owned(), "new".to_owned())]);
            snapshotter.update("base", &labels, &[]).map(drop)
        }
        SET_BLOB => snapshotter.set_blob("base", &blob_of(&snapshotter.get_blob("active")?)).map(drop),
        CLEANUP => snapshotter.cleanup().map(drop),
        other => panic!("{other}"),
    }
}

/// What the store shows once the operation has taken effect.
fn took_effect(snapshotter: &Snapshotter, operation: &str) -> bool {
    let kind = |key: &str| snapshotter.stat(key).map(|info| info.kind).ok();
    match operation {
        PREPARE => kind("new") == Some(SnapshotKind::Active),
        VIEW => kind("new") == Some(SnapshotKind::View),
        COMMIT => kind("committed") == Some(SnapshotKind::Committed) && kind("active").is_none(),
        REMOVE => kind("active").is_none(),
        UPDATE => snapshotter.stat("base").is_ok_and(|info| info.labels.contains_key("label")),
        SET_BLOB => snapshotter.get_blob("base").is_ok_and(|blob| blob.is_some()),
        CLEANUP => true,
        other => panic!("{other}"),
    }
}

/// The process that dies: only started by the tests below, and by itself no test.
#[test]
fn the_process_that_dies() {
    let (Some(store), Ok(operation)) = (std::env::var_os(STORE), std::env::var(OPERATION)) else { return };
    let backend = std::env::var(BACKEND).ok().and_then(|name| BackendName::named(&name)).expect("a backend");
    let snapshotter = open(backend, Path::new(&store));
    act(&snapshotter, &operation).unwrap_or_else(|e| panic!("{e}"));
    panic!("no fail point was met");
}

fn die(backend: BackendName, store: &Path, operation: &str, point: &str) {
    let mut child = Command::new(std::env::current_exe().expect("a running program has a path"));
    child.args(["--exact", "points::the_process_that_dies", "--nocapture", "--test-threads=1"]);
    child.env(STORE, store).env(BACKEND, backend.as_str()).env(OPERATION, operation);
    let done =
        child.env("PLYWOOD_FAIL", format!("{point}=exit")).output().expect("the program starts itself");
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(137), "{backend} {operation} {point}: {told}");
}

fn blob_of(blob: &Option<Blob>) -> Blob {
    blob.clone().expect("the snapshot has a blob")
}

/// Every blob of the store, and whether somebody refers to it: after a crash none is due, none is missing.
fn check_blobs(snapshotter: &Snapshotter, what: &str) {
    let mut unused = Vec::new();
    let listed = snapshotter.content().list(&mut |info| {
        if snapshotter.snapshots_of(&info.digest)?.is_empty() {
            unused.push(info.digest);
        }
        Ok(())
    });
    done(what, listed);
    assert_eq!(unused, [], "{what}: content goes with its last snapshot");
    for key in ["base", "active", "committed", "new"] {
        if let Ok(Some(blob)) = snapshotter.get_blob(key) {
            done(what, snapshotter.content().info(&blob.digest));
        }
    }
}

fn fill(dir: &Path, seed: u8) {
    std::fs::create_dir_all(dir.join("a/b")).expect("mkdir");
    for n in 0..20u8 {
        std::fs::write(dir.join(format!("a/file{n}")), vec![seed ^ n; 5000]).expect("write");
    }
}

fn every_point(backend: BackendName) {
    for (point, operations, backends) in POINTS {
        for operation in operations.iter().filter(|_| backends.contains(&backend)) {
            let Some(disk) = Disk::new(backend) else { return };
            one_point(backend, &disk.store(), operation, point);
        }
    }
}

fn done<T>(what: &str, result: plywood::error::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{what}: {e}"))
}

fn one_point(backend: BackendName, store: &Path, operation: &str, point: &str) {
    let what = format!("{backend}: {operation} killed at {point}");
    let before = {
        let snapshotter = open(backend, store);
        done(&what, snapshotter.prepare("first", None, Labels::new(), &()));
        fill(&done(&what, own_directory(&snapshotter, "first")), 1);
        done(&what, snapshotter.commit("base", "first", Labels::new(), None, &()));
        done(&what, snapshotter.prepare("active", Some("base"), Labels::new(), &()));
        fill(&done(&what, own_directory(&snapshotter, "active")), 2);
        let put = content::put(snapshotter.content(), "blob", &Expected::default(), &mut &b"layer"[..]);
        let (digest_of, media_type) = (done(&what, put).digest, String::new());
        let blob = Blob { digest: digest_of, media_type, size_bytes: 0 };
        done(&what, snapshotter.set_blob("active", &blob));
        if operation == CLEANUP {
            fill(&snapshotter.layout().snapshots().join("new-900-1-1-1"), 3);
        }
        let before = (digest(&snapshotter, "base"), digest(&snapshotter, "active"));
        done(&what, snapshotter.close());
        before
    };
    die(backend, store, operation, point);
    let snapshotter = reopen(backend, store, &what);
    assert_eq!(digest(&snapshotter, "base"), before.0, "{what}");
    check_blobs(&snapshotter, &what);
    if !took_effect(&snapshotter, operation) {
        assert_eq!(digest(&snapshotter, "active"), before.1, "{what}");
        // A frozen snapshot thaws when it is asked for.
        done(&what, snapshotter.mounts("active"));
        std::fs::write(done(&what, own_directory(&snapshotter, "active")).join("more"), "x")
            .unwrap_or_else(|e| panic!("{what}: an active snapshot can be written: {e}"));
        done(&what, act(&snapshotter, operation));
        assert!(took_effect(&snapshotter, operation), "{what}: made again");
    } else if operation == COMMIT {
        assert_eq!(digest(&snapshotter, "committed"), before.1, "{what}");
    }
    for key in ["new", "active", "committed", "base"] {
        match snapshotter.remove(key) {
            Err(e) if e.kind() != ErrorKind::NotFound => panic!("{what}: {e}"),
            _ => {}
        }
    }
    check_blobs(&snapshotter, &what);
    done(&what, snapshotter.close());
    done(&what, reopen(backend, store, &what).close());
}

#[test]
fn fuse_survives_every_point() {
    every_point(BackendName::Fuse);
}

#[test]
fn overlay_survives_every_point() {
    every_point(BackendName::Overlay);
}

#[test]
fn native_survives_every_point() {
    every_point(BackendName::Native);
}

#[test]
fn btrfs_survives_every_point() {
    every_point(BackendName::Btrfs);
}

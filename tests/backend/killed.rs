//! What a killed process leaves: always garbage under a name that says so, and always deletable.

use crate::support::*;
use plywood::backend::{Backend, BackendName, Stage};
use plywood::layout::Layout;
use plywood::types::SnapshotId;
use plywood::types::SnapshotKind::Active;
use std::ffi::OsStr;
use std::path::PathBuf;

const NAME: &str = "killed::a_process_killed_at_any_point_leaves_garbage_that_goes";

/// The body of the process that gets killed.
fn victim(root: &OsStr) {
    let layout = Layout::create(&PathBuf::from(root)).expect("the store");
    let name = BackendName::named(&again().expect("a backend")).expect("a backend");
    let backend = plywood::backend::open::open(name, &layout, &quick()).expect("the backend");
    let chain = ids(&[1]);
    let stage = Stage { id: SnapshotId(2), kind: Active, chain: &chain, owner: None };
    let mut staged = backend.stage(stage, &()).expect("stage");
    backend.publish(&mut staged, SnapshotId(2)).expect("publish");
    let retired = backend.retire(SnapshotId(2)).expect("retire").expect("it is there");
    backend.delete(&retired).expect("delete");
}

// S18, S57
#[test]
fn a_process_killed_at_any_point_leaves_garbage_that_goes() {
    if let Some(root) = std::env::var_os("PLACE") {
        return victim(&root);
    }
    // What is left besides the parent: the beginning of its name.
    let points = [
        ("c.after_mkdir", "new-2-"),
        ("c.after_fill", "new-2-"),
        ("c.mid_copy", "new-2-"),
        ("c.mid_copy@7", "new-2-"),
        ("r.mid_delete", "rm-2-"),
        ("g.mid_delete@2", "rm-2-"),
    ];
    for name in PLAIN {
        for (point, left) in points {
            if name != BackendName::Native && point.contains("copy") {
                continue;
            }
            let store = Store::new(name);
            let base = store.make(1, Active, &[]);
            zoo_for(name, &base);
            let before = tree(&base);
            let (point, times) = point.split_once('@').unwrap_or((point, "1"));
            let armed = format!("{point}=exit@{times}");
            let env = [("PLACE", store.layout.root().as_os_str()), ("PLYWOOD_FAIL", OsStr::new(&armed))];
            let status = Elsewhere::new(Who::Same).run(NAME, name.as_str(), &[], &env);
            assert_eq!(status.code(), Some(137), "{name} {armed}: it was not killed: {status}");
            let names = store.names();
            assert_eq!(names.len(), 2, "{name} {armed}: {names:?}");
            assert!(names.iter().any(|n| n == "1"), "{name} {armed}: {names:?}");
            let rest = names.iter().find(|n| *n != "1").expect("one more");
            assert!(rest.starts_with(left), "{name} {armed}: {rest}");
            assert_eq!(tree(&base), before, "{name} {armed}: the parent changed");
            clear(&*store.backend, &store, rest);
            assert_eq!(store.names(), ["1"], "{name} {armed}");
            // Now it works.
            store.make(2, Active, &[1]);
        }
    }
}

fn clear(backend: &dyn Backend, store: &Store, name: &str) {
    let path = match name.parse() {
        Ok(id) => backend.retire(SnapshotId(id)).expect("retire").expect("it is there"),
        Err(_) => store.layout.snapshots().join(name),
    };
    backend.delete(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
}

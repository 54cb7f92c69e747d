//! The same changes to a snapshot of any backend are the same layer.

use crate::support::{Changing, changes, layer, members};
use plywood::backend::BackendName;
use plywood::diff::{DiffOptions, Form, Tree};
use plywood::snapshotter::{BackendChoice, Removal, Snapshotter, SnapshotterSettings};
use plywood::types::Labels;
use plywood_fuse::overlay::rename::Target;
use plywood_fuse::overlay::{Overlay, Settings};
use plywood_fuse::testing::TempDir;
use plywood_fuse::types::Identity;
use plywood_fuse::view::View;
use std::path::Path;
use std::sync::Arc;

fn store(temp: &TempDir, backend: BackendName) -> Option<Snapshotter> {
    let mut settings = SnapshotterSettings::new(temp.path().join("store"));
    settings.backend = BackendChoice::Named(backend);
    settings.removal = Removal::Sync;
    match Snapshotter::open(settings) {
        Ok(store) => Some(store),
        Err(error) => {
            plywood_fuse::testing::say_skipped(&format!("{backend}: {error}"));
            None
        }
    }
}

/// A committed snapshot with some files, and an active one on top of it.
fn prepare(store: &Snapshotter) {
    let none = Labels::new;
    store.prepare("one", None, none(), &()).expect("a snapshot");
    let root = store.layers("one").expect("its directory").lowers[0].clone();
    root.dir("d", 0o755).file("d/a", "a", 0o644).file("d/b", "b", 0o644).link("d/a", "d/link");
    root.dir("e", 0o755).file("e/f", "f", 0o644).dir("gone", 0o755).file("gone/g", "g", 0o644);
    store.commit("base", "one", none(), None, &()).expect("a commit");
    store.prepare("two", Some("base"), none(), &()).expect("a snapshot");
}

fn change_plain(root: &Path) {
    std::fs::rename(root.join("d"), root.join("moved")).expect("another name");
    root.file("moved/b", "more", 0o644).remove("gone").chmod("e", 0o700).file("new", "new", 0o4755);
}

fn change_stack(view: &View) {
    view.rename("d", "moved", Target::Replace).expect("another name");
    view.write("moved/b", "more").expect("a file");
    view.remove_dir_all("gone").expect("it goes");
    view.set_permissions("e", 0o700).expect("a mode");
    view.write("new", "new").expect("a file");
    view.set_permissions("new", 0o4755).expect("a mode");
}

#[test]
fn a_snapshot_of_every_backend_gives_the_same_layer() {
    let mut layers = Vec::new();
    for backend in [BackendName::Native, BackendName::Overlay, BackendName::Fuse, BackendName::Btrfs] {
        let temp = TempDir::new();
        let Some(store) = store(&temp, backend) else { continue };
        prepare(&store);
        let active = store.layers("two").expect("its directories");
        match &active.upper {
            None => change_plain(&active.lowers[0]),
            Some((upper, work)) => {
                let overlay = Overlay::open(&active.lowers, Some((upper, work)), Settings::default());
                change_stack(&View::new(Arc::new(overlay.expect("a stack")), Identity::root()));
            }
        }
        let base = store.layers("base").expect("its directories");
        let (was, is) = Tree::pair(Some(&base), &active, Form::Whole).expect("trees");
        let options = DiffOptions { source_date_epoch: Some(0), ..DiffOptions::default() };
        let expected = [
            "remove d",
            "modify e",
            "remove gone",
            "add moved",
            "add moved/a",
            "add moved/b",
            "add moved/link",
            "add new",
        ];
        assert_eq!(changes(&was, &is, &options).expect("changes"), expected, "{backend}");
        let bytes = layer(&was, &is, &options).expect("a layer");
        layers.push((backend, members(&bytes), bytes));
        store.commit("next", "two", Labels::new(), None, &()).expect("a commit");
        let next = store.layers("next").expect("its directories");
        let (was, is) = Tree::pair(Some(&base), &next, Form::Whole).expect("trees");
        let (backend, _, bytes) = layers.last().expect("one was added just now");
        assert!(layer(&was, &is, &options).expect("a layer") == *bytes, "{backend}: another once committed");
        // A subvolume that is read-only is not removed like a directory.
        for name in ["next", "base"] {
            store.remove(name).expect("it goes");
        }
        store.close().expect("it closes");
    }
    let (first, rest) = layers.split_first().expect("native works everywhere");
    for other in rest {
        assert_eq!(first.1, other.1, "{} and {}", first.0, other.0);
        assert!(first.2 == other.2, "{} and {}", first.0, other.0);
    }
}

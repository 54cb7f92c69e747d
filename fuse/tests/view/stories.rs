//! One long story of changes, told to every kind of upper layer: the tree that comes out is always the same.

use super::common::{Layers, errno, tree};
use super::{assert_all_given_back, give};
use plywood_fuse::idmap::OverrideName;
use plywood_fuse::layer::probe::Wishes;
use plywood_fuse::layer::upper::{Durability, OverridePolicy, UpperOptions};
use plywood_fuse::overlay::rename::Target;
use plywood_fuse::overlay::{Metacopy, Renames, Settings, TopLayer};
use plywood_fuse::types::{Device, Identity, Kind};
use plywood_fuse::view::{Open, View};
use std::collections::BTreeMap;
use std::ffi::OsString;

fn dialects() -> Vec<(&'static str, Settings)> {
    let upper = UpperOptions::default();
    let with = |upper| Settings { upper, ..Settings::default() };
    let wishes = |user_xattr, whiteout_files| Wishes { user_xattr, whiteout_files };
    vec![
        ("default", Settings::default()),
        ("user attributes", with(UpperOptions { wishes: wishes(Some(true), false), ..upper })),
        ("whiteout files", with(UpperOptions { wishes: wishes(Some(true), true), ..upper })),
        ("volatile", with(UpperOptions { durability: Durability::Volatile, ..upper })),
        (
            "all owners in attributes",
            with(UpperOptions { overrides: OverridePolicy::Always(OverrideName::UserContainers), ..upper }),
        ),
        ("renames copy", Settings { renames: Renames::Copy, ..Settings::default() }),
        ("no metacopy", Settings { metacopy: Metacopy::Off, ..Settings::default() }),
        ("few descriptors", Settings { descriptors: 16, ..Settings::default() }),
        ("shared top layer", Settings { top_layer: TopLayer::MayChange, ..Settings::default() }),
    ]
}

fn layers() -> Layers {
    let layers = Layers::new(3);
    layers
        .file(2, "etc/passwd", "root:0\n")
        .file(2, "etc/conf/a", "a")
        .file(1, "etc/conf/b", "b")
        .file(0, "etc/conf/c", "c")
        .file(2, "usr/bin/tool", "#!tool")
        .file(2, "usr/lib/big", vec![9; 400_000])
        .file(1, "usr/lib/gone/x", "x")
        .dir(0, "var/empty")
        .file(1, "var/log", "one\n");
    std::fs::hard_link(layers.lower(2, "usr/bin/tool"), layers.lower(2, "usr/bin/same")).unwrap();
    std::os::unix::fs::symlink("../bin/tool", layers.lower(1, "usr/lib/link")).unwrap();
    layers
}

/// What it is called, and what it does.
type Step = (&'static str, fn(&View));

/// The steps. Between any two of them the overlay may be closed and opened again.
const STEPS: &[Step] = &[
    ("own", |v| {
        for entry in v.walk("/").unwrap().collect::<Vec<_>>() {
            v.lchown(entry.unwrap().path, Some(0), Some(0)).unwrap();
        }
    }),
    ("append", |v| v.open("var/log", Open::append()).unwrap().write_all_at(b"two\n", 0).unwrap()),
    ("add a user", |v| v.write("etc/passwd", "root:0\nme:1000\n").unwrap()),
    ("remove a tree", |v| v.remove_dir_all("usr/lib/gone").unwrap()),
    ("make it again", |v| v.create_dir_all("usr/lib/gone/new").unwrap()),
    ("chmod big", |v| v.set_permissions("usr/lib/big", 0o4711).unwrap()),
    ("chown big", |v| give(v, "usr/lib/big", (12, 13), 0o6711)),
    ("write one name", |v| v.open("usr/bin/tool", Open::write()).unwrap().write_all_at(b"!!", 0).unwrap()),
    ("move a merged directory", |v| v.rename("etc/conf", "conf", Target::Replace).unwrap()),
    ("change in it", |v| v.write("conf/b", "changed").unwrap()),
    ("remove in it", |v| v.remove_file("conf/a").unwrap()),
    ("and back under another name", |v| v.rename("conf", "etc/settings", Target::MustNotExist).unwrap()),
    ("exchange", |v| v.rename("etc/settings", "var/log", Target::Exchange).unwrap()),
    ("empty directory away and back", |v| {
        v.remove_dir("var/empty").unwrap();
        v.create_dir_with("var/empty", 0o1777).unwrap();
    }),
    ("devices", |v| {
        v.mknod("null", Kind::Char, 0o666, Device { major: 1, minor: 3 }).unwrap();
        v.mknod("white", Kind::Char, 0o600, Device::default()).unwrap();
        v.mknod("pipe", Kind::Fifo, 0o600, Device::default()).unwrap();
    }),
    ("marks as files", |v| {
        v.write("etc/.wh.passwd", "").unwrap();
        v.write("usr/.wh..wh..opq", "").unwrap();
    }),
    ("links", |v| {
        v.symlink("/etc/passwd", "pw").unwrap();
        v.lchown("pw", Some(3), Some(4)).unwrap();
        v.link("usr/bin/same", "same").unwrap();
        v.link("null", "null2").unwrap();
    }),
    ("as a user", |v| {
        v.create_dir("home").unwrap();
        v.chown("home", Some(1000), Some(1000)).unwrap();
        let user = v.as_user(Identity::user(1000, 1000));
        user.write("home/file", "mine").unwrap();
        user.create_dir_with("home/closed", 0o700).unwrap();
        user.write("home/closed/file", "mine too").unwrap();
        user.rename("home/closed", "home/shut", Target::Replace).unwrap();
        user.remove_file("home/file").unwrap();
    }),
    ("attributes", |v| v.set_xattr("home", "user.overlay.opaque", "y").unwrap()),
    ("replace a lower file", |v| v.rename("home/shut/file", "etc/passwd", Target::Replace).unwrap()),
    ("cut", |v| v.truncate("usr/lib/big", 200_000).unwrap()),
];

/// The tree without numbers, which may be others in other layers.
fn without_numbers(tree: BTreeMap<OsString, String>) -> BTreeMap<OsString, String> {
    let strip = |line: String| {
        let (before, after) = line.split_once(", number ").unwrap();
        let (_, content) = after.split_once(": ").unwrap();
        format!("{before} {content}")
    };
    tree.into_iter().map(|(path, line)| (path, strip(line))).collect()
}

#[test]
fn a_story_ends_the_same_on_every_kind_of_upper_layer() {
    let mut expected = None;
    for (dialect, settings) in dialects() {
        let layers = layers();
        let before = layers.lower_state();
        let root = layers.open_with(settings.clone()).as_user(Identity::root());
        for (step, run) in STEPS {
            run(&root);
            assert_eq!(root.overlay().known_inodes(), 1, "{dialect}: {step} keeps an inode");
        }
        let seen = tree(&root);
        assert_all_given_back(root.overlay());
        drop(root);
        let root = layers.open_with(settings).as_user(Identity::root());
        assert_eq!(tree(&root), seen, "{dialect}: after reopening");
        assert_eq!(root.xattr("home", "user.overlay.opaque").unwrap().as_deref(), Some(&b"y"[..]));
        drop(root);
        assert_eq!(layers.lower_state(), before, "{dialect}: lower layers");
        let seen = without_numbers(seen);
        match &expected {
            None => expected = Some(seen),
            Some(expected) => assert_eq!(&seen, expected, "{dialect}"),
        }
    }
}

#[test]
fn a_story_survives_being_reopened_after_every_step() {
    for (dialect, settings) in dialects() {
        let (layers, others) = (layers(), layers());
        let straight = others.open_with(settings.clone()).as_user(Identity::root());
        for (step, run) in STEPS {
            let root = layers.open_with(settings.clone()).as_user(Identity::root());
            run(&root);
            run(&straight);
            let seen = tree(&root);
            drop(root);
            let root = layers.open_with(settings.clone()).as_user(Identity::root());
            assert_eq!(tree(&root), seen, "{dialect}: reopened after {step}");
            assert_eq!(without_numbers(seen), without_numbers(tree(&straight)), "{dialect}: {step}");
        }
    }
}

#[test]
fn an_upper_layer_can_become_a_lower_one() {
    for (dialect, settings) in dialects() {
        let layers = layers();
        let root = layers.open_with(settings.clone()).as_user(Identity::root());
        for (_, run) in STEPS {
            run(&root);
        }
        let seen = without_numbers(tree(&root));
        drop(root);
        let above = Layers::new(0);
        let lowers = [layers.upper.clone(), layers.lower(0, ""), layers.lower(1, ""), layers.lower(2, "")];
        let work = above.upper.with_file_name("work");
        let overlay = plywood_fuse::overlay::Overlay::open(&lowers, Some((&above.upper, &work)), settings);
        let root = std::sync::Arc::new(overlay.unwrap()).as_user(Identity::root());
        assert_eq!(without_numbers(tree(&root)), seen, "{dialect}");
        // And everything can be copied up again.
        for entry in root.walk("/").unwrap().collect::<Vec<_>>() {
            let entry = entry.unwrap();
            let now = root.symlink_metadata(&entry.path).unwrap();
            root.lchown(&entry.path, Some(now.uid), None).unwrap();
            if now.kind != Kind::Symlink {
                root.set_permissions(&entry.path, now.perm).unwrap();
            }
            if now.kind == Kind::File {
                root.open(&entry.path, Open::append()).unwrap().write_all_at(b"+", 0).unwrap();
                root.truncate(&entry.path, now.size_bytes).unwrap();
            }
        }
        assert_eq!(without_numbers(tree(&root)), seen, "{dialect}: copied up");
        assert_eq!(errno(root.metadata("usr/lib/gone/x")), libc::ENOENT);
        assert_all_given_back(root.overlay());
    }
}

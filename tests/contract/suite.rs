//! The 21 behaviours of containerd's snapshot suite. S39: each for every backend.

use crate::tree;
use crate::world::World;
use plywood::backend::BackendName;
use plywood::error::ErrorKind;
use plywood::filter::Filters;
use plywood::types::{Info, Labels, SnapshotKind, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown as change_owner};
use std::path::Path;

pub fn write(path: &Path, content: &str) {
    fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

pub fn mkdir(path: &Path, mode: u32) {
    fs::DirBuilder::new()
        .recursive(true)
        .create(path)
        .unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
    chmod(path, mode);
}

pub fn chmod(path: &Path, mode: u32) {
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).unwrap_or_else(|e| panic!("chmod {}: {e}", path.display()));
}

fn labels(of: &[(&str, &str)]) -> Labels {
    of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn kind<T>(result: plywood::error::Result<T>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

fn stat(world: &World, key: &str) -> Info {
    world.snapshotter.stat(key).unwrap_or_else(|e| panic!("{e}"))
}

/// S3 S5 S14 S15 S45
pub fn basic(world: &World) {
    let first = |root: &Path| {
        write(&root.join("foo"), "foo\n");
        mkdir(&root.join("a/b/c"), 0o755);
    };
    let mounts = world.prepare("active", "");
    assert!(!mounts.is_empty(), "an active snapshot has mounts");
    let shown = world.show(&mounts);
    first(shown.path());
    let content = tree::read(shown.path());
    shown.end();
    world.commit("first", "active");
    let info = stat(world, "first");
    assert_eq!((info.parent.as_str(), info.kind), ("", SnapshotKind::Committed));
    assert_eq!(kind(world.snapshotter.stat("active")), Some(ErrorKind::NotFound));

    let mounts = world.prepare("next", "first");
    let shown = world.show(&mounts);
    tree::assert_equal(&content, &tree::read(shown.path()), "the next layer starts with its parent");
    write(&shown.path().join("bar"), "bar\n");
    fs::remove_dir_all(shown.path().join("a/b")).expect("a directory of the parent can be removed");
    write(&shown.path().join("foo"), "foo again\n");
    let changed = tree::read(shown.path());
    shown.end();
    let info = stat(world, "next");
    assert_eq!(
        (info.name.as_str(), info.parent.as_str(), info.kind),
        ("next", "first", SnapshotKind::Active)
    );
    world.commit("second", "next");
    assert_eq!(stat(world, "second").parent, "first");

    let expected: BTreeMap<String, Info> =
        ["first", "second"].map(|name| (name.to_owned(), stat(world, name))).into();
    let mut walked = BTreeMap::new();
    let each = |info: Info| {
        walked.insert(info.name.clone(), info);
        Ok(())
    };
    world.snapshotter.walk(&Filters::everything(), each).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(walked, expected);

    let seen = world.look("second", tree::read);
    tree::assert_equal(&changed, &seen, "a view shows what was committed");
    let seen = world.look("first", tree::read);
    tree::assert_equal(&content, &seen, "the parent is as it was");

    let refused = world.snapshotter.remove("first").expect_err("it has a child");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.to_string().contains("remove"), "{refused}");
    world.remove("second");
    world.remove("first");
    assert_eq!(world.snapshotter.list(&Filters::everything()).unwrap_or_else(|e| panic!("{e}")), []);
}

/// S34
pub fn stat_of_an_active_snapshot(world: &World) {
    world.prepare("active", "");
    let info = stat(world, "active");
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), ("active", "", SnapshotKind::Active));
}

/// S35
pub fn stat_of_a_committed_snapshot(world: &World) {
    world.prepare("active", "");
    world.commit("committed", "active");
    let info = stat(world, "committed");
    assert_eq!(
        (info.name.as_str(), info.parent.as_str(), info.kind),
        ("committed", "", SnapshotKind::Committed)
    );
}

/// S23
pub fn parents_are_told_of_each_snapshot(world: &World) {
    world.layer("a", "", |root| write(&root.join("foo"), "a"));
    world.layer("b", "a", |root| write(&root.join("bar"), "b"));
    assert_eq!((stat(world, "b").parent.as_str(), stat(world, "a").parent.as_str()), ("a", ""));
    assert_eq!(kind(world.snapshotter.stat("nobody")), Some(ErrorKind::NotFound));
}

/// S8 S16 S40 S41
pub fn a_key_in_use_is_refused(world: &World) {
    let snapshotter = &world.snapshotter;
    world.layer("base", "", |root| write(&root.join("foo"), "foo"));
    world.prepare("active", "base");
    world.view("view", "base");
    let none = Labels::new;
    for key in ["active", "view", "base"] {
        for parent in [None, Some("base")] {
            let prepared = snapshotter.prepare(key, parent, none(), &());
            assert_eq!(kind(prepared), Some(ErrorKind::AlreadyExists), "prepare {key} {parent:?}");
            let viewed = snapshotter.view(key, parent, none(), &());
            assert_eq!(kind(viewed), Some(ErrorKind::AlreadyExists), "view {key} {parent:?}");
        }
    }
    for name in ["base", "view", "active"] {
        let committed = snapshotter.commit(name, "active", none(), None, &());
        assert_eq!(kind(committed), Some(ErrorKind::AlreadyExists), "commit {name}");
    }
    assert_eq!(stat(world, "active").kind, SnapshotKind::Active);
}

pub fn update_changes_labels_only(world: &World) {
    let snapshotter = &world.snapshotter;
    let before = Timestamp::now();
    world.layer("committed", "", |root| write(&root.join("foo"), "foo"));
    world.layer("child", "committed", |root| write(&root.join("foo"), "foo again"));
    world.prepare("active", "");
    world.prepare("active-on", "child");
    world.view("view", "");
    world.view("view-on", "child");
    let cases = [
        ("committed", "", SnapshotKind::Committed),
        ("child", "committed", SnapshotKind::Committed),
        ("active", "", SnapshotKind::Active),
        ("active-on", "child", SnapshotKind::Active),
        ("view", "", SnapshotKind::View),
        ("view-on", "child", SnapshotKind::View),
    ];
    let update = |key: &str, of: &[(&str, &str)], paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        snapshotter.update(key, &labels(of), &paths)
    };
    for (key, parent, expected) in cases {
        let made = stat(world, key);
        assert_eq!((made.parent.as_str(), made.kind), (parent, expected), "{key}");
        assert!(made.created >= before && made.created <= Timestamp::now(), "{key}: {made:?}");
        assert_eq!(made.created, made.updated, "{key}");

        let asked = Timestamp::now();
        let all =
            update(key, &[("l1", "v1"), ("l2", "v2"), ("l3", "v3")], &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(all.labels, labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]), "{key}");
        assert_eq!((all.parent.as_str(), all.kind, all.created), (parent, expected, made.created), "{key}");
        assert!(all.updated >= asked && all.updated <= Timestamp::now(), "{key}");
        assert_eq!(all, stat(world, key));

        let some = update(key, &[("l1", "updated"), ("l4", "ignored")], &["labels.l1", "labels.l2"]);
        let some = some.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(some.labels, labels(&[("l1", "updated"), ("l3", "v3")]), "{key}");
        let other = update(key, &[("l4", "v4")], &["labels"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(other.labels, labels(&[("l4", "v4")]), "{key}");
        let dotted = update(key, &[("a.b/c", "v")], &["labels.a.b/c"]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(dotted.labels, labels(&[("a.b/c", "v"), ("l4", "v4")]), "{key}");
        for path in ["parent", "kind", "name", "created", "labels.", "label"] {
            let refused = update(key, &[("x", "y")], &["labels.x", path]);
            assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument), "{key} {path}");
        }
        assert_eq!(stat(world, key), dotted);
    }
    assert_eq!(kind(update("nobody", &[], &[])), Some(ErrorKind::NotFound));
}

/// S19 S44
pub fn a_removed_key_can_be_used_again(world: &World) {
    world.layer("base", "", |root| write(&root.join("foo"), "foo"));
    for _ in 0..2 {
        world.prepare("key", "base");
        world.remove("key");
        world.view("key", "base");
        world.remove("key");
        world.prepare("key", "");
        world.commit("name", "key");
        world.remove("name");
    }
    assert_eq!(kind(world.snapshotter.remove("key")), Some(ErrorKind::NotFound));
}

/// S21 S22 S50
pub fn walk_shows_what_the_filters_match(world: &World) {
    let none = labels(&[]);
    let root = labels(&[("containerd.io/gc.root", "check")]);
    let both = labels(&[("l", "1"), ("containerd.io/gc.root", "check")]);
    let make = |key: &str, parent: &str, of: &Labels| {
        world.prepare_with(key, parent, of.clone());
    };
    make("p1", "", &none);
    world.snapshotter.commit("a1", "p1", root.clone(), None, &()).unwrap_or_else(|e| panic!("{e}"));
    make("p2", "a1", &none);
    world.snapshotter.commit("a2", "p2", both.clone(), None, &()).unwrap_or_else(|e| panic!("{e}"));
    make("active", "a1", &root);
    make("active-label", "a2", &both);
    world.snapshotter.view("view", Some("a2"), none.clone(), &()).unwrap_or_else(|e| panic!("{e}"));
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["a1", "a2", "active", "active-label", "view"]),
        (&[""], &["a1", "a2", "active", "active-label", "view"]),
        (&["name==a1"], &["a1"]),
        (&["name==a1", "name==view"], &["a1", "view"]),
        (&["labels.l"], &["a2", "active-label"]),
        (&["name==a2,labels.l"], &["a2"]),
        (&["name==a1,labels.l"], &[]),
        (&["parent!=\"\",labels.\"containerd.io/gc.root\"==check"], &["a2", "active", "active-label"]),
        (&["kind==view", "kind==active,parent==a1"], &["view", "active"]),
        (&["name~=/^active/"], &["active", "active-label"]),
        (&["name~=/(/"], &[]),
    ];
    for (filters, expected) in cases {
        let parsed = Filters::parse_all(filters).unwrap_or_else(|e| panic!("{e}"));
        let mut names: Vec<_> = world
            .snapshotter
            .list(&parsed)
            .unwrap_or_else(|e| panic!("{e}"))
            .into_iter()
            .map(|i| i.name)
            .collect();
        names.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(names, expected, "{filters:?}");
    }
}

pub fn a_changed_file_is_seen_whatever_its_size_and_time(world: &World) {
    let mut parent = world.layer("0", "", |root| {
        for n in 0..5 {
            write(&root.join(format!("file{n}")), "0");
        }
    });
    for n in 0..5 {
        let name = format!("{}", n + 1);
        parent = world.layer(&name, &parent, |root| write(&root.join(format!("file{n}")), "1"));
        world.look(&name, |root| {
            for other in 0..5 {
                let expected = if other <= n { "1" } else { "0" };
                assert_eq!(read(&root.join(format!("file{other}"))), expected, "file{other} of layer {name}");
            }
        });
    }
}

pub fn a_directory_made_again_hides_what_is_below(world: &World) {
    world.layer("1", "", |root| {
        mkdir(&root.join("dir1"), 0o700);
        write(&root.join("dir1/f1"), "1");
    });
    world.layer("2", "1", |root| {
        fs::remove_dir_all(root.join("dir1")).expect("rm -r");
        mkdir(&root.join("dir1"), 0o700);
        write(&root.join("dir1/f2"), "2");
    });
    world.layer("3", "2", |root| write(&root.join("dir1/f3"), "3"));
    for (name, files) in [("2", vec!["f2"]), ("3", vec!["f2", "f3"])] {
        let mut seen = world.look(name, |root| {
            let names = fs::read_dir(root.join("dir1")).expect("list");
            names.map(|n| n.expect("name").file_name().into_string().expect("text")).collect::<Vec<_>>()
        });
        seen.sort();
        assert_eq!(seen, files, "layer {name}");
    }
}

pub fn chown_is_seen_through_views(world: &World) {
    world.layer("1", "", |root| {
        mkdir(&root.join("opt/a"), 0o700);
        write(&root.join("opt/a/file"), "x");
    });
    world.layer("2", "1", |root| {
        for path in ["opt", "opt/a", "opt/a/file"] {
            change_owner(root.join(path), Some(1), Some(1)).expect("chown");
        }
    });
    world.look("2", |root| {
        for path in ["opt", "opt/a", "opt/a/file"] {
            let meta = fs::symlink_metadata(root.join(path)).expect("stat");
            assert_eq!((meta.uid(), meta.gid()), (1, 1), "{path}");
        }
    });
}

pub fn owners_of_directories_stay_over_layers(world: &World) {
    world.layer("1", "", |root| {
        for n in 1..=3 {
            mkdir(&root.join(format!("dir{n}")), 0o700);
            change_owner(root.join(format!("dir{n}")), Some(1), Some(1)).expect("chown");
        }
    });
    world.layer("2", "1", |root| {
        write(&root.join("dir1/f"), "1");
        fs::remove_dir_all(root.join("dir2")).expect("rm -r");
        mkdir(&root.join("dir2"), 0o755);
        change_owner(root.join("dir2"), Some(2), Some(2)).expect("chown");
    });
    world.layer("3", "2", |root| {
        write(&root.join("dir2/f"), "1");
        write(&root.join("dir3/f"), "1");
    });
    world.look("3", |root| {
        for (dir, mode, owner) in [("dir1", 0o700, 1), ("dir2", 0o755, 2), ("dir3", 0o700, 1)] {
            let meta = fs::metadata(root.join(dir)).expect("stat");
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, owner, owner), "{dir}");
        }
    });
}

/// S20
pub fn a_snapshot_with_children_is_not_removed(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    world.layer("middle", "base", |root| write(&root.join("b"), "b"));
    world.prepare("top", "middle");
    for key in ["middle", "base"] {
        let refused = world.snapshotter.remove(key).expect_err("it has a child");
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    }
    for key in ["top", "middle", "base"] {
        world.remove(key);
    }
}

pub fn a_deleted_file_stays_deleted_for_grandchildren(world: &World) {
    world.layer("1", "", |root| {
        write(&root.join("foo"), "1");
        write(&root.join("bar"), "1");
    });
    world.layer("2", "1", |root| fs::remove_file(root.join("foo")).expect("rm"));
    world.layer("3", "2", |root| {
        assert!(!root.join("foo").exists());
        write(&root.join("new"), "1");
    });
    world.look("3", |root| {
        assert!(!root.join("foo").exists());
        assert_eq!(read(&root.join("bar")), "1");
    });
}

pub fn a_file_of_a_lower_layer_can_move(world: &World) {
    world.layer("1", "", |root| {
        mkdir(&root.join("dir1/dir2"), 0o700);
        write(&root.join("dir1/f1"), "1");
        write(&root.join("dir1/dir2/f2"), "2");
    });
    world.layer("2", "1", |root| {
        fs::remove_dir_all(root.join("dir1/dir2")).expect("rm -r");
        fs::hard_link(root.join("dir1/f1"), root.join("moved")).expect("ln");
        fs::remove_file(root.join("dir1/f1")).expect("rm");
    });
    world.look("2", |root| {
        assert_eq!(read(&root.join("moved")), "1");
        assert_eq!(fs::read_dir(root.join("dir1")).expect("list").count(), 0);
    });
}

/// S36
pub fn a_view_cannot_be_written(world: &World) {
    world.layer("1", "", |root| write(&root.join("foo"), "1"));
    world.layer("2", "1", |root| write(&root.join("bar"), "1"));
    for (key, parent) in [("view-1", "1"), ("view-2", "2")] {
        let mounts = world.view(key, parent);
        let shown = world.show(&mounts);
        for refused in [
            fs::write(shown.path().join("foo"), "2"),
            fs::write(shown.path().join("new"), "2"),
            fs::remove_file(shown.path().join("foo")),
            fs::create_dir(shown.path().join("dir")),
        ] {
            let errno = refused.expect_err("a view is only read").raw_os_error();
            assert_eq!(errno, Some(libc::EROFS), "{parent}");
        }
        assert_eq!(read(&shown.path().join("foo")), "1");
        shown.end();
    }
}

pub fn stat_inside_of_walk(world: &World) {
    world.prepare("a", "");
    world.layer("b", "", |_| ());
    let mut count = 0;
    let each = |info: Info| {
        assert_eq!(world.snapshotter.stat(&info.name)?, info);
        count += 1;
        Ok(())
    };
    world.snapshotter.walk(&Filters::everything(), each).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(count, 2);
}

pub fn closing_twice_is_fine(world: &World) {
    let mut settings = world.settings().clone();
    settings.root = world.dir("other");
    if world.backend() == BackendName::Btrfs {
        settings.root = world.settings().root.join("../other");
    }
    let snapshotter = plywood::snapshotter::Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"));
    snapshotter.prepare("a", None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
    for _ in 0..2 {
        snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(kind(snapshotter.stat("a")), Some(ErrorKind::Unavailable));
}

/// S27
pub fn a_new_root_has_mode_755(world: &World) {
    let mounts = world.prepare("active", "");
    let shown = world.show(&mounts);
    let mode = fs::metadata(shown.path()).expect("stat").mode();
    assert_eq!(mode & 0o7777, 0o755, "{mode:o}");
    shown.end();
}

pub fn rename(world: &World) {
    world.layer("1", "", |root| {
        for dir in ["dir1", "dir2", "dir3/sub"] {
            mkdir(&root.join(dir), 0o700);
        }
        write(&root.join("dir1/f1"), "1");
        write(&root.join("dir3/sub/f3"), "3");
        write(&root.join("file"), "file");
        write(&root.join("other"), "other");
    });
    world.layer("2", "1", |root| {
        fs::rename(root.join("file"), root.join("dir2/file")).expect("a file of a lower layer can move");
        write(&root.join("new"), "new");
        fs::rename(root.join("new"), root.join("other")).expect("over a file of a lower layer");
        match fs::rename(root.join("dir3"), root.join("dir2/moved")) {
            Ok(()) => {}
            // The kernel's overlayfs leaves it to its configuration; programs then copy.
            Err(e) if world.backend() == BackendName::Overlay && e.raw_os_error() == Some(libc::EXDEV) => {
                mkdir(&root.join("dir2/moved/sub"), 0o700);
                chmod(&root.join("dir2/moved"), 0o700);
                write(&root.join("dir2/moved/sub/f3"), "3");
                fs::remove_dir_all(root.join("dir3")).expect("rm -r");
            }
            Err(e) => panic!("a directory of a lower layer can be renamed: {e}"),
        }
    });
    world.look("2", |root| {
        assert!(!root.join("file").exists() && !root.join("dir3").exists());
        assert_eq!(read(&root.join("dir2/file")), "file");
        assert_eq!(read(&root.join("other")), "new");
        assert_eq!(read(&root.join("dir2/moved/sub/f3")), "3");
    });
    world.look("1", |root| assert_eq!(read(&root.join("dir3/sub/f3")), "3"));
}

/// S78: 128 layers, each of which also removes and makes again a directory.
pub fn many_layers(world: &World) {
    let flat = world.dir("flat");
    let change = |n: usize, root: &Path| {
        let bottom = root.join("bottom");
        if n == 1 {
            write(&bottom, "way at the bottom\n");
            mkdir(&root.join("back"), 0o755);
        } else {
            fs::remove_dir_all(root.join("back")).expect("rm -r");
            mkdir(&root.join("back"), 0o755);
        }
        write(&root.join(format!("back/{n}")), "in");
        write(&root.join("hits"), &n.to_string());
        mkdir(&root.join(format!("dir{n}")), 0o755);
        write(&root.join(format!("dir{n}/in")), &format!("{n}"));
    };
    let names = |tree: BTreeMap<std::path::PathBuf, tree::Entry>| -> BTreeMap<_, _> {
        tree.into_iter().map(|(p, e)| (p, (e.mode, e.uid, e.gid, e.content))).collect()
    };
    let mut parent = String::new();
    for n in 1..=128 {
        change(n, &flat);
        parent = world.layer(&format!("layer-{n}"), &parent, |root| {
            change(n, root);
            if n % 16 == 0 || n < 4 {
                let (mut left, mut right) = (names(tree::read(&flat)), names(tree::read(root)));
                left.remove(Path::new(""));
                right.remove(Path::new(""));
                assert_eq!(left, right, "layer {n}");
            }
        });
    }
    let (mut left, mut right) = (names(tree::read(&flat)), names(world.look(&parent, tree::read)));
    left.remove(Path::new(""));
    right.remove(Path::new(""));
    assert_eq!(left, right, "the view of all layers");
}

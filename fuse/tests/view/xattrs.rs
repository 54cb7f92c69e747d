//! Extended attributes.

use super::common::{Layers, errno, tree};
use super::{GROUP, USER, assert_all_given_back, give, rooted, stranger, user};
use libc::{EACCES, EEXIST, ENODATA, EPERM, ERANGE};
use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::types::Identity;
use plywood_fuse::view::View;

fn names(view: &View, path: &str) -> Vec<String> {
    view.xattrs(path).unwrap().into_iter().map(|name| String::from_utf8(name).unwrap()).collect()
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x").dir(0, "dir");
    let root = rooted(&layers);
    root.write("upper", "x").unwrap();
    for name in ["lower", "upper", "dir"] {
        assert_eq!(root.xattr(name, "user.a").unwrap(), None);
        root.set_xattr(name, "user.b", "two").unwrap();
        root.set_xattr(name, "user.a", "").unwrap();
        assert_eq!(root.xattr(name, "user.a").unwrap(), Some(vec![]), "{name}");
        assert_eq!(root.xattr(name, "user.b").unwrap().as_deref(), Some(&b"two"[..]), "{name}");
        assert_eq!(names(&root, name), ["user.a", "user.b"], "{name}");
        assert_eq!(errno(root.set_xattr_if(name, "user.a", "x", SetMode::Create)), EEXIST);
        assert_eq!(errno(root.set_xattr_if(name, "user.c", "x", SetMode::Replace)), ENODATA);
        root.remove_xattr(name, "user.a").unwrap();
        assert_eq!(errno(root.remove_xattr(name, "user.a")), ENODATA);
        assert_eq!(names(&root, name), ["user.b"], "{name}");
        let long = format!("user.{}", "x".repeat(251));
        assert!(matches!(errno(root.set_xattr(name, &long, "x")), ERANGE | libc::EOPNOTSUPP), "{name}");
    }
    let large = vec![7; 3000];
    root.set_xattr("upper", "user.large", &large).unwrap();
    assert_eq!(root.xattr("upper", "user.large").unwrap(), Some(large));
    assert_all_given_back(root.overlay());
}

#[test]
fn attributes_of_users_follow_the_mode() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x");
    let root = rooted(&layers);
    give(&root, "file", (USER, GROUP), 0o640);
    root.set_xattr("file", "user.a", "x").unwrap();
    let (me, other) = (root.as_user(user()), root.as_user(stranger()));
    let group = root.as_user(Identity { groups: vec![GROUP], ..stranger() });
    assert_eq!(errno(me.set_xattr("file", "user.a", "y")), 0);
    assert_eq!(group.xattr("file", "user.a").unwrap().as_deref(), Some(&b"y"[..]));
    assert_eq!(errno(group.set_xattr("file", "user.a", "z")), EACCES);
    assert_eq!(errno(other.xattr("file", "user.a")), EACCES);
    assert_eq!(errno(me.set_xattr("file", "security.a", "x")), EPERM);
    assert_eq!(errno(me.set_xattr("file", "trusted.a", "x")), EPERM);
    assert_eq!(me.xattr("file", "trusted.a").unwrap(), None);
    root.symlink("file", "link").unwrap();
    assert_eq!(names(&root, "link"), ["user.a"], "symlinks are followed");
}

/// Attributes that are marks of a layer, in all dialects.
const MARKS: [&str; 8] = [
    "user.overlay.opaque",
    "user.overlay.redirect",
    "user.overlay.metacopy",
    "user.overlay.whiteout",
    "user.overlay.overlay.opaque",
    "user.fuseoverlayfs.opaque",
    "user.containers.override_stat",
    "user.overlay.plywood.device",
];

#[test]
fn attributes_that_look_like_marks_come_back_and_mean_nothing() {
    let layers = Layers::new(2);
    layers.file(1, "dir/low", "low").file(0, "dir/high", "high").file(1, "file", "content");
    let root = rooted(&layers);
    let value = |name: &str| match name {
        "user.overlay.opaque" | "user.fuseoverlayfs.opaque" => "y",
        "user.containers.override_stat" => "1:2:0777:char-1-3",
        "user.overlay.plywood.device" => "c:1:3",
        "user.overlay.redirect" => "/elsewhere",
        _ => "",
    };
    for path in ["dir", "file", "dir/low"] {
        for name in MARKS {
            root.set_xattr(path, name, value(name)).unwrap();
        }
    }
    root.create_dir("new").unwrap();
    root.set_xattr("new", "user.overlay.opaque", "x").unwrap();
    let mut sorted = MARKS.to_vec();
    sorted.sort_unstable();
    let check = |root: &View| {
        assert_eq!(root.names("dir").unwrap(), ["high", "low"]);
        assert_eq!(root.read("file").unwrap(), b"content");
        assert_eq!(root.metadata("file").unwrap().kind, plywood_fuse::types::Kind::File);
        for path in ["dir", "file", "dir/low"] {
            assert_eq!(names(root, path), sorted, "{path}");
            for name in MARKS {
                let found = root.xattr(path, name).unwrap().unwrap();
                assert_eq!(found, value(name).as_bytes(), "{name} of {path}");
            }
        }
        assert_eq!(names(root, "new"), ["user.overlay.opaque"]);
    };
    check(&root);
    let seen = tree(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    assert_eq!(tree(&root), seen);
    for path in ["dir", "file", "dir/low"] {
        for name in MARKS {
            root.remove_xattr(path, name).unwrap();
        }
        assert!(names(&root, path).is_empty(), "{path}");
    }
    assert_eq!(root.names("dir").unwrap(), ["high", "low"]);
    assert_all_given_back(root.overlay());
}

#[test]
fn marks_that_the_overlay_sets_are_hidden() {
    let layers = Layers::new(2);
    layers.file(1, "dir/low", "x").file(0, "dir/high", "y").file(1, "big", vec![1; 300_000]);
    let root = rooted(&layers);
    root.write("dir/low", "changed").unwrap();
    root.rename("dir", "moved", plywood_fuse::overlay::rename::Target::Replace).unwrap();
    root.set_permissions("big", 0o600).unwrap();
    root.create_dir("dir").unwrap();
    root.lchown("big", Some(5), Some(6)).unwrap();
    for path in ["/", "moved", "moved/low", "big", "dir"] {
        assert!(names(&root, path).is_empty(), "{path}: {:?}", names(&root, path));
    }
    for name in MARKS {
        for path in ["moved", "big", "dir"] {
            assert_eq!(root.xattr(path, name).unwrap(), None, "{name} of {path}");
            assert_eq!(errno(root.remove_xattr(path, name)), ENODATA, "{name} of {path}");
        }
    }
}

#[test]
fn attributes_of_lower_files_survive_copying_up() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x").file(0, "big", vec![1; 300_000]).dir(0, "dir");
    {
        // The layer is made by another overlay, as its upper one.
        let root = rooted(&layers);
        for path in ["file", "big", "dir"] {
            root.set_xattr(path, "user.kept", path).unwrap();
            root.set_xattr(path, "user.overlay.opaque", "y").unwrap();
        }
    }
    let above = Layers::new(0);
    let upper = layers.upper.clone();
    let open = || {
        let work = above.upper.with_file_name("work");
        let lowers = [upper.clone(), layers.lower(0, "")];
        let overlay =
            plywood_fuse::overlay::Overlay::open(&lowers, Some((&above.upper, &work)), Default::default());
        std::sync::Arc::new(overlay.unwrap()).as_user(Identity::root())
    };
    let root = open();
    root.write("file", "y").unwrap();
    root.set_permissions("big", 0o600).unwrap();
    root.write("dir/new", "").unwrap();
    for root in [root, open()] {
        for path in ["file", "big", "dir"] {
            assert_eq!(root.xattr(path, "user.kept").unwrap().unwrap(), path.as_bytes());
            assert_eq!(root.xattr(path, "user.overlay.opaque").unwrap().unwrap(), b"y", "{path}");
            assert_eq!(names(&root, path), ["user.kept", "user.overlay.opaque"]);
        }
    }
}

/// `cap_net_raw+ep`, version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NAME: &str = "security.capability";
const KEPT: &str = "user.containers.override_security.capability";

/// Settings with which the upper layer keeps what only root may write where everybody may.
fn kept() -> plywood_fuse::overlay::Settings {
    use plywood_fuse::idmap::OverrideName;
    use plywood_fuse::layer::upper::OverridePolicy;
    let mut settings = plywood_fuse::overlay::Settings::default();
    settings.upper.overrides = OverridePolicy::Always(OverrideName::UserContainers);
    settings
}

fn on_disk(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    use std::os::fd::AsFd;
    let file = std::fs::File::open(path).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    plywood_fuse::sys::xattr::get_value(plywood_fuse::sys::Place::Fd(file.as_fd()), &name).unwrap()
}

#[test]
fn attributes_for_root_only_are_kept_where_owners_are() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x").dir(0, "dir");
    let open = || layers.open_with(kept()).as_user(Identity::root());
    let root = open();
    root.write("upper", "x").unwrap();
    for name in ["lower", "upper", "dir"] {
        for attribute in [NAME, "security.other", "trusted.other"] {
            assert_eq!(errno(root.set_xattr_if(name, attribute, CAPABILITY, SetMode::Replace)), ENODATA);
            root.set_xattr_if(name, attribute, CAPABILITY, SetMode::Create).unwrap();
            assert_eq!(errno(root.set_xattr_if(name, attribute, CAPABILITY, SetMode::Create)), EEXIST);
            assert_eq!(root.xattr(name, attribute).unwrap().as_deref(), Some(&CAPABILITY[..]), "{name}");
        }
        root.set_xattr(name, "user.plain", "value").unwrap();
        let all = ["security.capability", "security.other", "trusted.other", "user.plain"];
        assert_eq!(names(&root, name), all, "{name}");
        assert_eq!(on_disk(&layers.upper.join(name), NAME), None);
        assert_eq!(on_disk(&layers.upper.join(name), KEPT).as_deref(), Some(&CAPABILITY[..]));
        root.remove_xattr(name, "security.other").unwrap();
        assert_eq!(errno(root.remove_xattr(name, "security.other")), ENODATA);
        root.remove_xattr(name, "trusted.other").unwrap();
        // A user who sets an attribute of that name has set a file attribute, and gives himself nothing.
        root.set_xattr(name, KEPT, "mine").unwrap();
        assert_eq!(root.xattr(name, NAME).unwrap().as_deref(), Some(&CAPABILITY[..]), "{name}");
        assert_eq!(root.xattr(name, KEPT).unwrap().as_deref(), Some(&b"mine"[..]), "{name}");
    }
    let before = tree(&root);
    drop(root);
    let root = open();
    assert_eq!(tree(&root), before, "opened again");
    for name in ["lower", "upper", "dir"] {
        assert_eq!(root.xattr(name, NAME).unwrap().as_deref(), Some(&CAPABILITY[..]), "{name}, opened again");
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn attributes_that_a_lower_layer_keeps_are_shown_and_copied() {
    let layers = Layers::new(1);
    let root = layers.open_with(kept()).as_user(Identity::root());
    for name in ["a", "b"] {
        root.write(name, "x").unwrap();
        root.set_xattr(name, NAME, CAPABILITY).unwrap();
    }
    drop(root);
    let next = Layers::new(0);
    for settings in [kept(), plywood_fuse::overlay::Settings::default()] {
        let lowers = [layers.upper.clone()];
        let (upper, work) = (next.base().join("upper"), next.base().join("work"));
        std::fs::remove_dir_all(&upper).unwrap();
        std::fs::create_dir(&upper).unwrap();
        let overlay = plywood_fuse::overlay::Overlay::open(&lowers, Some((&upper, &work)), settings).unwrap();
        let root = std::sync::Arc::new(overlay).as_user(Identity::root());
        assert_eq!(names(&root, "a"), [NAME]);
        root.set_permissions("a", 0o700).unwrap();
        assert!(upper.join("a").exists(), "it was copied up");
        assert_eq!(names(&root, "a"), [NAME], "of the copy");
        assert_eq!(root.xattr("a", NAME).unwrap().as_deref(), Some(&CAPABILITY[..]));
        root.open("b", plywood_fuse::view::Open::write()).unwrap().write_all_at(b"y", 0).unwrap();
        assert_eq!(root.xattr("b", NAME).unwrap(), None, "after a write");
    }
}

#[test]
fn a_capability_that_was_taken_away_does_not_come_back_with_the_data() {
    use plywood_fuse::sys::{self, Place};
    use std::os::fd::AsFd;
    let layers = Layers::new(1);
    layers.file(0, "big", vec![7; 300_000]);
    let file = std::fs::File::open(layers.lower(0, "big")).unwrap();
    let set = sys::xattr::set(Place::Fd(file.as_fd()), c"security.capability", &CAPABILITY, SetMode::Any);
    if set.is_err_and(|e| e.is_denied()) {
        return plywood_fuse::testing::say_skipped("only root can give the lower file a capability");
    }
    let root = rooted(&layers);
    // Its attributes are copied up now, and its data when it gets another name.
    root.set_permissions("big", 0o700).unwrap();
    assert!(root.xattr("big", NAME).unwrap().is_some());
    root.remove_xattr("big", NAME).unwrap();
    root.link("big", "other").unwrap();
    assert_eq!(root.xattr("big", NAME).unwrap(), None);
    root.set_xattr("big", NAME, CAPABILITY).unwrap();
    assert!(root.xattr("other", NAME).unwrap().is_some());
}

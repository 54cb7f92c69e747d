//! Whose files they are, for whoever applies: root, a plain user, root of a user namespace.

use super::privileges::{Who, again, inside};
use super::support::{How, Tar, World, may_be_root, nothing};

#[test]
fn files_belong_to_whom_the_archive_says() {
    if !may_be_root() {
        return;
    }
    let tree = super::support::everywhere(nothing, &strangers());
    for path in ["d", "d/f", "d/l", "d/p", "d/null"] {
        assert_eq!(tree[path].owner, (1234, 4_000_000_000), "{path}");
    }
    assert_eq!(tree["d/f"].perm, 0o6755);
}

/// An archive of somebody else's files.
fn strangers() -> Tar {
    use plywood::archive::EntryKind;
    let mut tar = Tar::new()
        .dir("d", 0o555)
        .file("d/f", "content")
        .but(|e| e.mode = 0o6755)
        .symlink("f", "d/l")
        .member("d/p", EntryKind::Fifo, 0o640)
        .member("d/null", EntryKind::Char { major: 1, minor: 3 }, 0o666)
        .link("d/f", "d/g")
        .but(|e| e.mode = 0o6755)
        .file("d/closed", "secret")
        .but(|e| e.mode = 0)
        .dir("d/shut", 0)
        .file("d/shut/f", "inside");
    for (entry, _) in &mut tar.0 {
        (entry.uid, entry.gid) = (1234, 4_000_000_000);
    }
    tar
}

#[test]
fn a_plain_user() {
    again(Who::PlainUser, 5);
}

#[test]
fn root_of_a_namespace_with_one_id() {
    again(Who::NamespaceRoot, 5);
}

mod anyone {
    use super::*;
    use crate::support::{ALL, on_disk, text};
    use plywood::apply::{DirTarget, Outcome, SameOwner, apply};
    use plywood::error::ErrorKind;
    use plywood_fuse::testing::TempDir;
    use plywood_fuse::types::{Device, Kind};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_layer_keeps_owners_in_attributes() {
        if inside().is_none() {
            return;
        }
        for how in [How::Layer, How::Overlay] {
            let mut world = World::new(how, nothing);
            let applied = world.apply(|| Box::new(strangers().source())).expect("apply");
            assert_eq!(applied.left_out(), 0, "{how:?}: {applied:?}");
            let tree = world.tree();
            for (path, perm) in
                [("d", 0o555), ("d/f", 0o6755), ("d/p", 0o640), ("d/closed", 0), ("d/shut", 0)]
            {
                assert_eq!(
                    (tree[path].owner, tree[path].perm),
                    ((1234, 4_000_000_000), perm),
                    "{how:?}: {path}"
                );
            }
            assert_eq!((tree["d/l"].kind, tree["d/l"].owner.0), (Kind::Symlink, 1234), "{how:?}");
            assert_eq!(
                (tree["d/null"].kind, tree["d/null"].device),
                (Kind::Char, Device { major: 1, minor: 3 })
            );
            assert_eq!(
                (text(&tree, "d/closed"), text(&tree, "d/shut/f"), text(&tree, "d/l")),
                ("secret", "inside", "f")
            );
            assert_eq!(tree["d/g"].first_name, "d/f");
            assert_eq!(tree["d/shut"].mtime.map(|t| t.secs), Some(crate::support::THEN));
            let root = crate::marks::xattr_names(&world.path("upper"));
            assert!(root.contains(&"user.containers.override_stat".to_owned()), "{how:?}: {root:?}");
        }
    }

    #[test]
    fn a_capability_is_kept_in_an_attribute() {
        if inside().is_none() {
            return;
        }
        for how in [How::Layer, How::Overlay] {
            let mut world = World::new(how, nothing);
            let value = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let tar = Tar::new().file("f", "x").but(|e| {
                e.xattrs = vec![
                    (b"security.capability".to_vec(), value.to_vec()),
                    (b"user.a".to_vec(), b"1".to_vec()),
                ];
                e.mode = 0o444;
            });
            world.apply(|| Box::new(tar.source())).unwrap_or_else(|e| panic!("{how:?}: {e}"));
            let tree = world.tree();
            assert_eq!((tree["f"].xattrs.len(), tree["f"].perm), (2, 0o444), "{how:?}: {:?}", tree["f"]);
        }
    }

    #[test]
    fn a_whole_tree_needs_owners_unless_told_otherwise() {
        if inside().is_none() {
            return;
        }
        let temp = TempDir::new();
        let with = |same_owner| {
            let mut target = DirTarget::plain(temp.path(), same_owner).expect("open");
            apply(&mut strangers().source(), &mut target, &())
        };
        let error = with(SameOwner::Keep).expect_err("not ours to give");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(
            error.to_string().contains("subordinate") || error.to_string().contains("as root"),
            "{error}"
        );
        for same_owner in [SameOwner::IfPossible, SameOwner::Ignore] {
            let Outcome::Applied(applied) = with(same_owner).expect("apply") else { panic!("needs nothing") };
            let lost = if same_owner == SameOwner::IfPossible { 8 } else { 0 };
            assert_eq!((applied.owners_left_out, applied.devices_left_out), (lost, 1), "{applied:?}");
            let mode = |path: &str| {
                fs::symlink_metadata(temp.path().join(path)).expect("stat").permissions().mode() & 0o7777
            };
            assert_eq!((mode("d"), mode("d/f"), mode("d/closed"), mode("d/shut")), (0o555, 0o755, 0, 0));
            for dir in ["d", "d/shut"] {
                fs::set_permissions(temp.path().join(dir), fs::Permissions::from_mode(0o755)).expect("chmod");
            }
            fs::set_permissions(temp.path().join("d/closed"), fs::Permissions::from_mode(0o600))
                .expect("chmod");
            let tree = on_disk(temp.path());
            assert_eq!(text(&tree, "d/shut/f"), "inside");
            assert!(!tree.contains_key("d/null"));
        }
    }

    #[test]
    fn whiteouts_and_opaque_directories_work() {
        if inside().is_none() {
            return;
        }
        let fill = |root: &std::path::Path| {
            for path in ["f", "d/old", "e/old", "o/old", "r/old"] {
                crate::support::put(root, path, "old");
            }
        };
        let tar = Tar::new()
            .mark(".wh.f")
            .mark(".wh.d")
            .dir("d", 0o755)
            .file("d/new", "")
            .dir("e", 0o755)
            .mark("e/.wh.old")
            .file("e/old", "new")
            .dir("o", 0o755)
            .mark("o/.wh..wh..opq")
            .file("r", "a file now")
            .dir("r", 0o700);
        let mut tree = None;
        for how in ALL {
            let mut world = World::new(how, fill);
            world.apply(|| Box::new(tar.source())).unwrap_or_else(|e| panic!("{how:?}: {e}"));
            assert_eq!(world.needed, None);
            let keys: Vec<String> = world.tree().keys().cloned().collect();
            assert_eq!(keys, ["d", "d/new", "e", "e/old", "o", "r"], "{how:?}");
            let first = tree.get_or_insert_with(|| world.tree());
            crate::support::assert_same(&world.tree(), first, &format!("{how:?}"));
        }
    }

    #[test]
    fn a_directory_that_is_not_open_to_its_owner_is_entered_again() {
        if inside().is_none() {
            return;
        }
        let tar = Tar::new().dir("a", 0o500).file("b", "").file("a/f", "x").file("c", "").file("a/g", "y");
        for how in ALL {
            let mut world = World::new(how, nothing);
            world.apply(|| Box::new(tar.source())).unwrap_or_else(|e| panic!("{how:?}: {e}"));
            let tree = world.tree();
            assert_eq!(
                (tree["a"].perm, tree["a"].mtime.map(|t| t.secs)),
                (0o500, Some(crate::support::THEN))
            );
            assert_eq!((text(&tree, "a/f"), text(&tree, "a/g")), ("x", "y"), "{how:?}");
            let _ = fs::set_permissions(world.path("base/a"), fs::Permissions::from_mode(0o700));
        }
    }
}

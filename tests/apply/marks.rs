//! Whiteouts and opaque markers: containerd's archive tests of them in our words, and what the disk holds of them in a
//! layer.

use super::support::{ALL, How, Tar, World, everywhere, nothing, put, refused_everywhere, text};
use plywood_fuse::types::Kind;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

fn etc(root: &Path) {
    put(root, "etc/passwd", "all users");
}

// WhiteoutRootParent, WhiteoutParent, WhiteoutRoot, WhiteoutCurrentDirectory
#[test]
fn a_whiteout_of_its_own_directory_is_refused() {
    for name in [".wh...", "etc/.wh...", ".wh..", "etc/.wh..", ".wh.", "etc/.wh."] {
        refused_everywhere(etc, &Tar::new().dir("etc", 0o755).mark(name), "invalid archive");
    }
}

// WhiteoutSymlink
#[test]
fn a_whiteout_of_a_symlink_leaves_what_it_leads_to() {
    let fill = |root: &Path| {
        etc(root);
        symlink("/etc", root.join("localetc")).expect("symlink");
    };
    let tree = everywhere(fill, &Tar::new().mark(".wh.localetc"));
    assert_eq!(text(&tree, "etc/passwd"), "all users");
    assert!(!tree.contains_key("localetc"));
}

// WhiteoutSymlinkPath
#[test]
fn a_whiteout_behind_a_symlink_is_of_what_it_leads_to() {
    let fill = |root: &Path| {
        etc(root);
        put(root, "etc/whitedout", "ahhhh whiteout");
        symlink("/etc", root.join("localetc")).expect("symlink");
    };
    let tree = everywhere(fill, &Tar::new().mark("localetc/.wh.whitedout"));
    assert_eq!(text(&tree, "etc/passwd"), "all users");
    assert!(!tree.contains_key("etc/whitedout"));
}

// WhiteoutDirectoryName
#[test]
fn a_directory_that_is_called_like_a_whiteout_is_a_directory() {
    let tree = everywhere(etc, &Tar::new().file(".wh.etc/somefile", "non-empty"));
    assert_eq!((text(&tree, "etc/passwd"), text(&tree, ".wh.etc/somefile")), ("all users", "non-empty"));
}

// WhiteoutDeadSymlinkParent
#[test]
fn a_whiteout_behind_a_symlink_to_nothing_removes_nothing() {
    let fill = |root: &Path| {
        etc(root);
        symlink("/dne", root.join("localetc")).expect("symlink");
    };
    let tree = everywhere(fill, &Tar::new().mark("localetc/.wh.etc"));
    assert_eq!(text(&tree, "etc/passwd"), "all users");
}

// WhiteoutRelativePath
#[test]
fn dots_in_the_name_of_a_whiteout_are_text() {
    let tree = everywhere(etc, &Tar::new().mark("dne/../.wh.etc"));
    assert!(tree.is_empty(), "{tree:?}");
}

#[test]
fn a_whiteout_removes_a_tree_and_one_of_nothing_is_fine() {
    let fill = |root: &Path| {
        etc(root);
        put(root, "d/e/f", "deep");
        put(root, "d/g", "shallow");
    };
    let tree = everywhere(fill, &Tar::new().mark(".wh.d").dir("etc", 0o755).mark("etc/.wh.missing"));
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["etc", "etc/passwd"]);
}

#[test]
fn the_kind_of_a_whiteout_does_not_count() {
    let tar = Tar::new().dir(".wh.etc", 0o755).symlink("x", "d/.wh.x").dir("d/.wh.y/", 0o755);
    let fill = |root: &Path| {
        etc(root);
        put(root, "d/x", "");
        put(root, "d/y/z", "");
    };
    let tree = everywhere(fill, &tar);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d"]);
}

#[test]
fn names_that_aufs_keeps_for_itself_are_passed_over() {
    let fill = |root: &Path| {
        etc(root);
        put(root, ".wh.plnk/x", "");
    };
    let tar = Tar::new().dir(".wh..wh.plnk", 0o700).file(".wh..wh.aufs", "").file(".wh..wh.orph/..", "");
    let tree = everywhere(fill, &tar.file("d/.wh..wh.etc", "content"));
    assert_eq!(tree.keys().collect::<Vec<_>>(), [".wh.plnk", ".wh.plnk/x", "etc", "etc/passwd"]);
}

#[test]
fn what_a_whiteout_removed_can_be_made_again() {
    let fill = |root: &Path| {
        put(root, "d/old", "old");
        put(root, "f", "old");
        put(root, "g/old", "old");
    };
    let tar = Tar::new()
        .mark(".wh.d")
        .dir("d", 0o711)
        .file("d/new", "new")
        .mark(".wh.f")
        .file("f", "new")
        .mark(".wh.g")
        .file("g/new", "its directory is in no member");
    let tree = everywhere(fill, &tar);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d", "d/new", "f", "g", "g/new"]);
    assert_eq!((tree["d"].perm, tree["g"].perm), (0o711, 0o755));
}

#[test]
fn a_whiteout_that_comes_late_removes_what_the_archive_made() {
    let tar = Tar::new().dir("d", 0o755).file("d/f", "x").mark(".wh.d").file("g", "y").mark(".wh.g");
    let tree = everywhere(|root| put(root, "d/old", "old"), &tar);
    assert!(tree.is_empty(), "{tree:?}");
}

fn old(root: &Path) {
    for path in ["d/old", "d/both", "d/sub/old", "d/sub/both", "d/sub/deep/old", "d/gone/old", "keep"] {
        put(root, path, "old");
    }
}

#[test]
fn an_opaque_marker_hides_what_was_there_before_whenever_it_comes() {
    let members = || {
        Tar::new()
            .dir("d", 0o755)
            .file("d/both", "new")
            .file("d/new", "new")
            .dir("d/sub", 0o700)
            .file("d/sub/both", "new")
            .file("d/fresh/deep/new", "new")
    };
    let expected = [
        "d",
        "d/both",
        "d/fresh",
        "d/fresh/deep",
        "d/fresh/deep/new",
        "d/new",
        "d/sub",
        "d/sub/both",
        "keep",
    ];
    let late = members().mark("d/.wh..wh..opq");
    let mut early = Tar::new().dir("d", 0o755).mark("d/.wh..wh..opq");
    early.0.extend(members().0.into_iter().skip(1));
    let mut amid = members();
    let marker = Tar::new().mark("d/.wh..wh..opq").0.remove(0);
    amid.0.insert(4, marker);
    for tar in [late, early, amid] {
        let tree = everywhere(old, &tar);
        assert_eq!(tree.keys().collect::<Vec<_>>(), expected);
        assert_eq!((text(&tree, "d/both"), text(&tree, "d/sub/both")), ("new", "new"));
        assert_eq!(tree["d/sub"].mtime.map(|t| t.secs), Some(super::support::THEN));
        assert_eq!(tree["d"].mtime.map(|t| t.secs), Some(super::support::THEN));
    }
}

#[test]
fn an_opaque_marker_spares_a_directory_that_was_there_if_something_of_the_archive_is_in_it() {
    let tar = Tar::new().file("d/sub/deep/new", "new").mark("d/.wh..wh..opq");
    let tree = everywhere(old, &tar);
    let expected = ["d", "d/sub", "d/sub/deep", "d/sub/deep/new", "keep"];
    assert_eq!(tree.keys().collect::<Vec<_>>(), expected);
}

#[test]
fn an_opaque_root_hides_everything() {
    let tree = everywhere(old, &Tar::new().file("new", "new").mark(".wh..wh..opq"));
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["new"]);
    let tree = everywhere(nothing, &Tar::new().file("new", "new").mark(".wh..wh..opq"));
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["new"]);
}

#[test]
fn a_directory_that_takes_the_place_of_a_file_shows_nothing_from_below() {
    // The file of the archive had replaced the directory below already.
    let tar = Tar::new().file("d", "file").dir("d", 0o755).file("d/new", "new");
    let tree = everywhere(|root| put(root, "d/old", "old"), &tar);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d", "d/new"]);
    let tar = Tar::new().symlink("x", "d").dir("d", 0o755);
    let tree = everywhere(|root| put(root, "d/old", "old"), &tar);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d"]);
}

#[test]
fn a_layer_says_so_when_it_needs_those_below() {
    let needs = |fill: &dyn Fn(&Path), tar: Tar| {
        let mut world = World::new(How::Layer, fill);
        world.apply(|| Box::new(tar.source())).expect("apply");
        world.needed
    };
    let base = |root: &Path| {
        put(root, "d/f", "below");
        symlink("d", root.join("l")).expect("symlink");
    };
    for tar in [
        Tar::new().file("d/new", ""),
        Tar::new().mark("d/.wh.f"),
        Tar::new().file("l/new", ""),
        Tar::new().link("d/f", "g"),
        Tar::new().dir("d", 0o755).link("d/f", "d/g"),
        Tar::new().mark(".wh..wh..opq"),
        Tar::new().symlink("d/sub", "m").file("m/f", ""),
    ] {
        assert!(needs(&base, tar.clone()).is_some(), "{:?}", tar.0);
    }
    for tar in [
        Tar::new().dir("d", 0o755).file("d/new", ""),
        Tar::new().dir("d", 0o755).mark("d/.wh.f"),
        Tar::new().dir("d", 0o755).mark("d/.wh..wh..opq").file("d/new/deep", ""),
        Tar::new().mark(".wh.d").file("d/new/deep", ""),
        Tar::new().file("g", "").link("g", "h"),
    ] {
        assert_eq!(needs(&base, tar.clone()), None, "{:?}", tar.0);
    }
}

#[test]
fn whiteouts_on_the_disk_are_devices_where_they_can_be_made() {
    if !super::support::may_be_root() {
        return;
    }
    for how in [How::Layer, How::Overlay] {
        let fill = |root: &Path| ["f", "d/f", "o/f"].into_iter().for_each(|path| put(root, path, ""));
        let mut world = World::new(how, fill);
        let tar = Tar::new().mark(".wh.f").dir("o", 0o755).mark(".wh.d").dir("d", 0o755);
        world.apply(|| Box::new(tar.source())).expect("apply");
        assert_eq!(world.needed, None);
        let whiteout = fs::symlink_metadata(world.path("upper/f")).expect("a whiteout");
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "{how:?}");
        let names = xattr_names(&world.path("upper/d"));
        assert!(names.contains(&"trusted.overlay.opaque".to_owned()), "{how:?}: {names:?}");
        let names = xattr_names(&world.path("upper/o"));
        assert!(!names.contains(&"trusted.overlay.opaque".to_owned()), "{how:?}: {names:?}");
    }
}

/// The names of the attributes of a file.
pub fn xattr_names(path: &Path) -> Vec<String> {
    use plywood_fuse::sys::{Place, open, xattr};
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    let dir = open::open_root(path.parent().expect("a parent")).expect("open");
    let place = Place::At(dir.as_fd(), path.file_name().expect("a name").as_bytes());
    let names = xattr::list(place).expect("list");
    names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

#[test]
fn what_would_be_a_mark_by_chance_is_none() {
    let tar = Tar::new()
        .dir("d", 0o755)
        .but(|e| {
            e.xattrs = vec![
                (b"user.fuseoverlayfs.opaque".to_vec(), b"y".to_vec()),
                (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
                (b"user.overlay.redirect".to_vec(), b"/etc".to_vec()),
            ]
        })
        .file("d/f", "content")
        .but(|e| e.xattrs = vec![(b"user.containers.override_stat".to_vec(), b"5:5:0777".to_vec())])
        .file("d/w", "")
        .but(|e| e.xattrs = vec![(b"user.overlay.whiteout".to_vec(), b"".to_vec())]);
    let tree = everywhere(|root| put(root, "d/old", "old"), &tar);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d", "d/f", "d/old", "d/w"]);
    assert_eq!(tree["d"].xattrs.len(), 3);
    assert_eq!(tree["d/f"].xattrs["user.containers.override_stat"], b"5:5:0777");
    assert_eq!(tree["d/f"].perm, 0o644);
}

#[test]
fn a_deep_tree_is_replaced() {
    let mut path = String::new();
    let mut deep = Tar::new();
    for _ in 0..700 {
        path.push_str("d/");
        deep = deep.dir(&path, 0o755);
    }
    let bottom = format!("{path}f");
    let tree = everywhere(nothing, &deep.clone().file(&bottom, "bottom"));
    assert_eq!((text(&tree, &bottom), tree.len()), ("bottom", 701));
    let tree = everywhere(nothing, &deep.clone().file("d", "file"));
    assert_eq!(tree["d"].kind, Kind::File);
    // The work directory can be used again, too.
    for how in ALL {
        let mut world = World::new(how, nothing);
        for _ in 0..2 {
            world.apply(|| Box::new(deep.clone().mark(".wh.d").source())).expect("apply");
        }
        assert!(world.tree().is_empty());
    }
}

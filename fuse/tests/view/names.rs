//! Names: making, listing, renaming and removing them.

use super::common::{Layers, errno, path, tree};
use super::{assert_all_given_back, rooted};
use libc::{EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EPERM};
use plywood_fuse::overlay::changes::ChangeKind;
use plywood_fuse::overlay::rename::Target::{Exchange, MustNotExist, Replace};
use plywood_fuse::types::{Device, Kind};
use plywood_fuse::view::{Open, View};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

#[test]
fn a_listing_is_sorted_and_has_what_stat_says() {
    let layers = Layers::new(2);
    layers.file(0, "b", "top").file(1, "b", "hidden").file(1, "a", "").dir(0, "m/x").dir(1, "m/y");
    let root = rooted(&layers);
    root.write("c", "new").unwrap();
    root.symlink("nowhere", "d").unwrap();
    root.remove_file("a").unwrap();
    let entries = root.read_dir("/").unwrap();
    let names: Vec<_> = entries.iter().map(|e| e.name.to_str().unwrap()).collect();
    assert_eq!(names, ["b", "c", "d", "m"]);
    for entry in &entries {
        assert_eq!(entry.attr, root.symlink_metadata(&entry.name).unwrap(), "{:?}", entry.name);
    }
    assert_eq!(root.names("m").unwrap(), ["x", "y"]);
    assert_eq!(errno(root.read_dir("b")), ENOTDIR);
    assert_eq!(errno(root.names("gone")), ENOENT);
    assert_all_given_back(root.overlay());
}

#[test]
fn a_walk_goes_depth_first_in_the_order_of_bytes() {
    let layers = Layers::new(2);
    layers
        .file(0, "a/2/x", "")
        .file(1, "a/1", "")
        .file(1, "a-b", "")
        .file(0, "a/2/y", "")
        .dir(1, "z/deep/er");
    let root = rooted(&layers);
    root.symlink("a", "link").unwrap();
    root.remove_file("a/2/y").unwrap();
    let walk = |at: &str| -> Vec<String> {
        let entries = root.walk(at).unwrap().map(|e| e.unwrap().path.to_str().unwrap().to_owned());
        entries.collect()
    };
    assert_eq!(walk("/"), ["a", "a/1", "a/2", "a/2/x", "a-b", "link", "z", "z/deep", "z/deep/er"]);
    assert_eq!(walk("link"), ["1", "2", "2/x"]);
    assert_eq!(walk("z/deep/er"), [""; 0]);
    assert_eq!(errno(root.walk("a-b")), ENOTDIR);
    // What may not be read is told of, and the rest is given.
    root.set_permissions("a/2", 0o700).unwrap();
    let user = root.as_user(super::user());
    let found: Vec<_> = user.walk("/").unwrap().map(|e| e.map_err(|e| e.errno())).collect();
    assert_eq!(found.iter().filter(|e| **e == Err(libc::EACCES)).count(), 1);
    assert_eq!(found.len(), 9);
    // A walk that is given up halfway gives back what it had.
    let mut half = root.walk("/").unwrap();
    assert!(half.nth(3).is_some());
    drop(half);
    drop(user);
    assert_all_given_back(root.overlay());
}

#[test]
fn directories_are_made_and_removed_with_all_above_and_below() {
    let layers = Layers::new(2);
    layers.file(0, "a/b/top", "").file(1, "a/b/c/bottom", "").file(1, "file", "");
    let root = rooted(&layers);
    root.create_dir_all("a/b/c/d/e").unwrap();
    root.create_dir_all("a/b/c/d/e").unwrap();
    root.create_dir_all("/x/../x/y/z/").unwrap();
    root.create_dir_all("x/y/../w").unwrap();
    assert_eq!(errno(root.create_dir_all("file")), EEXIST);
    assert_eq!(errno(root.create_dir_all("file/x")), ENOTDIR);
    root.symlink("/a", "a/b/c/loop").unwrap();
    root.write("a/b/c/d/e/new", "x").unwrap();
    root.remove_dir_all("a").unwrap();
    assert_eq!(errno(root.metadata("a")), ENOENT);
    root.create_dir("a").unwrap();
    assert_eq!(root.names("a").unwrap().len(), 0, "what was below does not come back");
    root.remove_dir_all("file").unwrap();
    root.symlink("x", "link").unwrap();
    assert_eq!(errno(root.remove_dir_all("link/")), ENOTDIR);
    root.remove_dir_all("link").unwrap();
    assert_eq!(root.names("x").unwrap(), ["w", "y"]);
    assert_eq!(errno(root.remove_dir_all("gone")), ENOENT);
    assert_eq!(errno(root.remove_dir_all("/")), EBUSY);
    assert_all_given_back(root.overlay());
}

#[test]
fn a_deep_tree_can_be_made_walked_and_removed() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    let deepest = ["d"; 500].join("/");
    root.create_dir_all(&deepest).unwrap();
    assert_eq!(root.walk("/").unwrap().count(), 500);
    root.remove_dir_all("d").unwrap();
    assert_eq!(root.names("/").unwrap().len(), 0);
    assert_all_given_back(root.overlay());
}

#[test]
fn removing_says_what_the_kernel_says() {
    let layers = Layers::new(2);
    layers.file(0, "dir/file", "").dir(1, "dir/empty").file(1, "file", "");
    let root = rooted(&layers);
    root.symlink("dir", "link").unwrap();
    for (name, unlink, rmdir) in [
        ("gone", ENOENT, ENOENT),
        ("gone/", ENOENT, ENOENT),
        ("dir", EISDIR, ENOTEMPTY),
        ("dir/", EISDIR, ENOTEMPTY),
        ("dir/.", EISDIR, EINVAL),
        ("dir/..", EISDIR, ENOTEMPTY),
        ("/", EISDIR, EBUSY),
        ("link/", ENOTDIR, ENOTDIR),
        ("file/", ENOTDIR, ENOTDIR),
        ("file/x", ENOTDIR, ENOTDIR),
        ("file", 0, ENOENT),
        ("dir/empty/", EISDIR, 0),
        ("link", 0, ENOENT),
        ("dir/file", 0, ENOENT),
        ("dir", EISDIR, 0),
    ] {
        assert_eq!(errno(root.remove_file(name)), unlink, "unlink {name}");
        assert_eq!(errno(root.remove_dir(name)), rmdir, "rmdir {name}");
    }
    assert_eq!(root.names("/").unwrap().len(), 0);
    assert_eq!(layers.lower_state().len(), 7, "the layers still have all");
    assert_all_given_back(root.overlay());
}

/// Names that say what they are: a file and directories, in the upper layer, in a lower one, or in both.
fn zoo() -> (Layers, View) {
    let layers = Layers::new(2);
    layers.file(1, "lower-file", "lower").file(1, "lower-dir/in", "lower in").dir(1, "lower-empty");
    layers.file(1, "merged-dir/low", "low").file(0, "merged-dir/high", "high").file(1, "both-file", "below");
    let root = rooted(&layers);
    root.write("upper-file", "upper").unwrap();
    root.write("both-file", "both").unwrap();
    root.create_dir("upper-dir").unwrap();
    root.write("upper-dir/in", "upper in").unwrap();
    root.create_dir("upper-empty").unwrap();
    root.write("merged-dir/new", "new").unwrap();
    (layers, root)
}

const ZOO: [&str; 8] = [
    "lower-file",
    "upper-file",
    "both-file",
    "lower-dir",
    "upper-dir",
    "merged-dir",
    "lower-empty",
    "upper-empty",
];

/// All below a name: paths, kinds and contents, without what differs from place to place.
fn below(root: &View, name: &str) -> Vec<(OsString, Kind, Vec<u8>)> {
    let attr = root.symlink_metadata(name).unwrap();
    if attr.kind != Kind::Dir {
        return vec![(OsString::new(), attr.kind, root.read(name).unwrap())];
    }
    let entries = root.walk(name).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let full = std::path::Path::new(name).join(&entry.path);
        let content = if entry.attr.kind == Kind::File { root.read(full).unwrap() } else { Vec::new() };
        (entry.path.into_os_string(), entry.attr.kind, content)
    });
    entries.collect()
}

#[test]
fn every_pair_of_names_can_be_renamed_as_the_kernel_allows() {
    for from in ZOO {
        for to in ZOO.into_iter().chain(["nothing", "upper-dir/nothing", "lower-dir/nothing"]) {
            for target in [Replace, MustNotExist, Exchange] {
                let (layers, root) = zoo();
                let before = layers.lower_state();
                let case = format!("{from} to {to}, {target:?}");
                let is_dir = |name: &str| root.metadata(name).is_ok_and(|a| a.kind == Kind::Dir);
                let (content, ino) = (below(&root, from), root.metadata(from).unwrap().ino);
                let other = root.exists(to).unwrap().then(|| below(&root, to));
                let into_itself = to.starts_with(&format!("{from}/"));
                let expected = match (&other, target) {
                    (Some(_), MustNotExist) => EEXIST,
                    (None, Exchange) => ENOENT,
                    _ if into_itself => EINVAL,
                    (None, _) | (_, Exchange) => 0,
                    _ if from == to => 0,
                    _ if is_dir(from) && !is_dir(to) => ENOTDIR,
                    _ if !is_dir(from) && is_dir(to) => EISDIR,
                    (Some(inside), _) if is_dir(to) && !inside.is_empty() => ENOTEMPTY,
                    _ => 0,
                };
                assert_eq!(errno(root.rename(from, to, target)), expected, "{case}");
                let check = |root: &View| {
                    if expected == 0 {
                        assert_eq!(below(root, to), content, "{case}");
                        assert_eq!(root.metadata(to).unwrap().ino, ino, "{case}: number");
                    }
                    if expected != 0 || from == to {
                        assert_eq!(below(root, from), content, "{case}");
                    } else if target == Exchange {
                        assert_eq!(Some(below(root, from)), other, "{case}");
                    } else {
                        assert_eq!(errno(root.metadata(from)), ENOENT, "{case}");
                        // The old name hides nothing that comes later.
                        root.create_dir(from).unwrap();
                        assert_eq!(root.names(from).unwrap().len(), 0, "{case}");
                        root.remove_dir(from).unwrap();
                    }
                };
                check(&root);
                assert_all_given_back(root.overlay());
                let seen = tree(&root);
                drop(root);
                let root = layers.root();
                assert_eq!(tree(&root), seen, "{case}: after reopening");
                check(&root);
                assert_eq!(layers.lower_state(), before, "{case}: lower layers");
            }
        }
    }
}

#[test]
fn a_rename_refuses_what_has_no_name_or_no_place() {
    let (_layers, root) = zoo();
    for (from, to, target, expected) in [
        ("gone", "x", Replace, ENOENT),
        ("lower-file", "gone/x", Replace, ENOENT),
        ("lower-file", "upper-file/x", Replace, ENOTDIR),
        ("lower-file/", "x", Replace, ENOTDIR),
        ("lower-file", "x/", Replace, ENOTDIR),
        (".", "x", Replace, EBUSY),
        ("lower-dir/..", "x", Replace, EBUSY),
        ("lower-file", "/", Replace, EBUSY),
        ("lower-file", ".", MustNotExist, EEXIST),
        ("lower-dir/in", "lower-dir", Replace, ENOTEMPTY),
        ("lower-dir/in", "lower-dir", Exchange, EINVAL),
        ("lower-dir", "lower-dir/in/x", Replace, ENOTDIR),
        ("lower-dir", "lower-dir/in", Exchange, EINVAL),
        ("lower-dir", "x/", Replace, 0),
        ("x/", "lower-dir", Replace, 0),
    ] {
        assert_eq!(errno(root.rename(from, to, target)), expected, "{from} to {to}");
    }
    // Two names of one file stay two names.
    root.link("lower-file", "second").unwrap();
    root.rename("lower-file", "second", Replace).unwrap();
    assert_eq!(root.metadata("lower-file").unwrap().nlink, 2);
    assert_all_given_back(root.overlay());
}

#[test]
fn a_renamed_directory_keeps_its_lower_content_through_more_renames() {
    let layers = Layers::new(2);
    layers.file(1, "a/b/c/file", "deep").file(0, "a/b/top", "top").file(1, "other/x", "x");
    let root = rooted(&layers);
    let ino = root.metadata("a/b/c/file").unwrap().ino;
    root.rename("a/b", "moved", Replace).unwrap();
    root.rename("moved/c", "other/c", Replace).unwrap();
    root.rename("a", "moved/a", Replace).unwrap();
    root.rename("other", "moved/a/o", Replace).unwrap();
    root.write("moved/a/o/c/new", "new").unwrap();
    let check = |root: &View| {
        assert_eq!(root.read("moved/a/o/c/file").unwrap(), b"deep");
        assert_eq!(root.metadata("moved/a/o/c/file").unwrap().ino, ino);
        assert_eq!(root.read("moved/top").unwrap(), b"top");
        assert_eq!(root.names("moved").unwrap(), ["a", "top"]);
        assert_eq!(root.names("moved/a").unwrap(), ["o"]);
        assert_eq!(root.names("moved/a/o").unwrap(), ["c", "x"]);
        assert_eq!(root.names("/").unwrap(), ["moved"]);
    };
    check(&root);
    let seen = tree(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    assert_eq!(tree(&root), seen);
    // Names that come back are new directories.
    root.create_dir_all("a/b").unwrap();
    root.create_dir("other").unwrap();
    assert_eq!(root.names("a/b").unwrap().len() + root.names("other").unwrap().len(), 0);
}

#[test]
fn hard_links_are_one_file_wherever_they_come_from() {
    let layers = Layers::new(1);
    layers.file(0, "one", "first").dir(0, "dir");
    std::fs::hard_link(layers.lower(0, "one"), layers.lower(0, "dir/two")).unwrap();
    let before = layers.lower_state();
    let root = rooted(&layers);
    assert_eq!(root.metadata("one").unwrap().ino, root.metadata("dir/two").unwrap().ino);
    assert_eq!(root.metadata("one").unwrap().nlink, 2);
    root.write("one", "changed").unwrap();
    assert_eq!(root.read("dir/two").unwrap(), b"changed");
    root.link("dir/two", "three").unwrap();
    root.write("new", "x").unwrap();
    root.link("new", "dir/newer").unwrap();
    let check = |root: &View| {
        let numbers: BTreeSet<_> =
            ["one", "dir/two", "three"].iter().map(|n| root.metadata(n).unwrap().ino).collect();
        assert_eq!(numbers.len(), 1);
        assert_eq!(root.metadata("three").unwrap().nlink, 3);
        assert_eq!(root.metadata("new").unwrap().ino, root.metadata("dir/newer").unwrap().ino);
    };
    check(&root);
    let seen = tree(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    assert_eq!(tree(&root), seen);
    root.remove_file("one").unwrap();
    root.remove_file("three").unwrap();
    assert_eq!(root.metadata("dir/two").unwrap().nlink, 1);
    assert_eq!(root.read("dir/two").unwrap(), b"changed");
    assert_eq!(errno(root.link("dir", "d")), EPERM);
    assert_eq!(errno(root.link("new", "dir/two")), EEXIST);
    assert_eq!(errno(root.link("new", "x/")), ENOENT);
    assert_eq!(errno(root.link("gone", "x")), ENOENT);
    root.symlink("nowhere", "link").unwrap();
    root.link("link", "link2").unwrap();
    assert_eq!(root.read_link("link2").unwrap(), "nowhere");
    assert_all_given_back(root.overlay());
    drop(root);
    assert_eq!(layers.lower_state(), before);
}

#[test]
fn names_are_bytes_up_to_255_of_them() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    let longest: Vec<u8> = (1..=255).map(|b| if b == b'/' { b'x' } else { b }).collect();
    let names: [&[u8]; 8] =
        [&longest, b"\xff\xfe\x80", b"new\nline", b" ", b"-", b"..x", "n\u{e4}me".as_bytes(), &[b'w'; 255]];
    for name in names {
        std::fs::write(layers.lower(0, "").join(path(name)), name).unwrap();
        root.write(path(&[b"up", &name[..name.len().min(250)]].concat()), name).unwrap();
    }
    drop(root);
    let root = layers.root();
    for name in names {
        assert_eq!(root.read(path(name)).unwrap(), name);
        let listed = root.names("/").unwrap();
        assert!(listed.iter().any(|n| n.as_bytes() == name));
        root.write(path(name), "changed").unwrap();
        assert_eq!(root.read(path(name)).unwrap(), b"changed");
        let removed = root.remove_file(path(name));
        // Where a whiteout is a file, its name needs room.
        if errno(removed) == 0 {
            assert_eq!(errno(root.metadata(path(name))), ENOENT);
            root.write(path(name), "again").unwrap();
            assert_eq!(root.read(path(name)).unwrap(), b"again");
        } else {
            assert_eq!(root.read(path(name)).unwrap(), b"changed", "a refused call changes nothing");
        }
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn names_that_look_like_marks_are_plain_files_inside() {
    let layers = Layers::new(2);
    layers.file(1, "a", "lower a").file(1, "dir/b", "lower b").file(0, "dir/c", "lower c");
    let root = rooted(&layers);
    for name in [".wh.a", ".wh..wh..opq", "dir/.wh.b", "dir/.wh..wh..opq", ".wh.", ".wh..", ".wh..wh.plnk"] {
        root.write(name, "").unwrap();
        root.set_permissions(name, 0o444).unwrap();
    }
    root.write("plain", "").unwrap();
    root.rename("plain", ".wh.renamed", Replace).unwrap();
    root.write("renamed", "").unwrap();
    root.link("renamed", ".wh.linked").unwrap();
    root.create_dir(".wh.dir").unwrap();
    root.write(".wh.full", "content").unwrap();
    let check = |root: &View| {
        assert_eq!(root.read("a").unwrap(), b"lower a");
        assert_eq!(root.names("dir").unwrap(), [".wh..wh..opq", ".wh.b", "b", "c"]);
        let names = root.names("/").unwrap();
        let expected = [
            ".wh.",
            ".wh..",
            ".wh..wh..opq",
            ".wh..wh.plnk",
            ".wh.a",
            ".wh.dir",
            ".wh.full",
            ".wh.linked",
            ".wh.renamed",
            "a",
            "dir",
            "renamed",
        ];
        assert_eq!(names, expected);
        assert_eq!(root.metadata(".wh.a").unwrap().perm, 0o444);
        assert_eq!(root.read(".wh.full").unwrap(), b"content");
        assert!(root.xattrs(".wh.a").unwrap().is_empty(), "the mark that says so is hidden");
    };
    check(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    // Real whiteouts beside them work.
    root.remove_file("a").unwrap();
    root.remove_file(".wh.a").unwrap();
    assert_eq!(errno(root.metadata("a")), ENOENT);
    assert_eq!(errno(root.metadata(".wh.a")), ENOENT);
    root.write(".wh.a", "").unwrap();
    root.truncate(".wh.full", 0).unwrap();
    let seen = tree(&root);
    drop(root);
    let root = layers.root();
    assert_eq!(tree(&root), seen);
    assert_eq!(errno(root.metadata("a")), ENOENT);
    assert_all_given_back(root.overlay());
}

#[test]
fn a_device_0_0_made_inside_is_a_device_and_hides_nothing() {
    let layers = Layers::new(2);
    layers.file(1, "dir/low", "x").file(0, "dir/high", "y");
    let root = rooted(&layers);
    let zero = Device::default();
    root.remove_file("dir/high").unwrap();
    root.mknod("dir/high", Kind::Char, 0o600, zero).unwrap();
    root.mknod("white", Kind::Char, 0o644, zero).unwrap();
    // Everybody may make a whiteout.
    root.set_permissions("dir", 0o777).unwrap();
    root.as_user(super::user()).mknod("dir/low2", Kind::Char, 0, zero).unwrap();
    root.create_dir("new").unwrap();
    root.rename("white", "new/white", Replace).unwrap();
    root.link("new/white", "second").unwrap();
    let check = |root: &View| {
        for name in ["dir/high", "dir/low2", "new/white", "second"] {
            let attr = root.metadata(name).unwrap();
            assert_eq!((attr.kind, attr.device), (Kind::Char, zero), "{name}");
        }
        assert_eq!(root.names("dir").unwrap(), ["high", "low", "low2"]);
        assert_eq!(root.metadata("dir/high").unwrap().perm, 0o600);
        assert_eq!(root.metadata("dir/low2").unwrap().uid, super::USER);
        assert_eq!(root.metadata("second").unwrap().nlink, 2);
    };
    check(&root);
    let seen = tree(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    assert_eq!(tree(&root), seen);
    root.remove_file("dir/high").unwrap();
    assert_eq!(root.names("dir").unwrap(), ["low", "low2"]);
    assert_all_given_back(root.overlay());
}

#[test]
fn a_directory_of_thirty_thousand_names_is_listed_whole() {
    const COUNT: usize = 30_000;
    let layers = Layers::new(2);
    layers.dir(0, "big").dir(1, "big");
    for at in 0..COUNT {
        std::fs::write(layers.lower(at % 2, &format!("big/f{at:05}")), "").unwrap();
    }
    let root = rooted(&layers);
    for at in (0..COUNT).step_by(1000) {
        root.remove_file(format!("big/f{at:05}")).unwrap();
        root.write(format!("big/new{at:05}"), "x").unwrap();
    }
    let names = root.names("big").unwrap();
    assert_eq!(names.len(), COUNT);
    assert_eq!(names.iter().filter(|n| n.as_bytes().starts_with(b"new")).count(), COUNT / 1000);
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "each name once");
    assert_eq!(root.read_dir("big").unwrap().len(), COUNT);
    root.remove_dir_all("big").unwrap();
    assert_eq!(root.names("/").unwrap().len(), 0);
    assert_all_given_back(root.overlay());
}

#[test]
fn changes_are_what_differs_from_below() {
    let layers = Layers::new(2);
    layers.file(0, "same/file", "x").file(1, "edited", "x").file(1, "gone/in", "x").file(0, "moved/in", "y");
    layers.file(0, "touched", "").file(0, "renamed", "r").file(1, "remade/old", "x");
    let root = layers.root();
    assert!(root.changes().unwrap().is_empty());
    drop(root.open("same/file", Open::write()).unwrap());
    assert!(root.changes().unwrap().is_empty(), "opening changes nothing");
    root.write("edited", "longer").unwrap();
    root.remove_dir_all("gone").unwrap();
    root.rename("moved", "elsewhere", Replace).unwrap();
    root.rename("renamed", "name", Replace).unwrap();
    root.set_permissions("touched", 0o600).unwrap();
    root.remove_dir_all("remade").unwrap();
    root.create_dir("remade").unwrap();
    root.write("remade/new", "").unwrap();
    root.write("here-and-gone", "").unwrap();
    root.remove_file("here-and-gone").unwrap();
    use ChangeKind::{Added, Modified, Removed};
    let changes: Vec<_> = root
        .changes()
        .unwrap()
        .into_iter()
        .map(|c| (String::from_utf8(c.path).unwrap(), c.kind))
        .filter(|(path, kind)| !(path == "remade" && *kind == Modified))
        .collect();
    let expected = [
        ("edited", Modified),
        ("elsewhere", Added),
        ("elsewhere/in", Added),
        ("gone", Removed),
        ("moved", Removed),
        ("name", Added),
        ("remade/new", Added),
        ("remade/old", Removed),
        ("renamed", Removed),
        ("touched", Modified),
    ];
    assert_eq!(changes, expected.map(|(path, kind)| (path.to_owned(), kind)));
    assert_all_given_back(root.overlay());
}

#[test]
fn a_name_that_leads_nowhere_is_listed_and_only_itself_an_error() {
    use plywood_fuse::sys::{self, Place, xattr::SetMode};
    use std::os::fd::AsFd;
    let layers = Layers::new(1);
    layers.file(0, "d/alone", "").file(0, "d/fine", "fine").file(0, "e", "");
    let alone = std::fs::File::options().write(true).open(layers.lower(0, "d/alone")).unwrap();
    alone.set_len(8).unwrap();
    sys::xattr::set(Place::Fd(alone.as_fd()), c"user.overlay.metacopy", b"", SetMode::Any).unwrap();
    let root = rooted(&layers);
    assert_eq!(root.names("d").unwrap(), ["alone", "fine"]);
    assert_eq!(errno(root.metadata("d/alone")), libc::EIO);
    assert_eq!(errno(root.remove_file("d/alone")), libc::EIO);
    // These promise attributes of all names: a caller who copies the tree must not lose a file.
    assert_eq!(errno(root.read_dir("d")), libc::EIO);
    let walked: Vec<_> = root.walk("/").unwrap().map(|e| e.map_err(|e| e.errno())).collect();
    assert_eq!(walked.iter().filter(|e| **e == Err(libc::EIO)).count(), 1);
    assert_eq!(walked.len(), 4);
    root.write("d/fine", "new").unwrap();
    assert_eq!(errno(root.overlay().changes()), libc::EIO);
    assert_eq!(errno(root.remove_dir("d")), ENOTEMPTY);
    root.remove_file("d/fine").unwrap();
    assert_eq!(root.names("d").unwrap(), ["alone"]);
    assert_all_given_back(root.overlay());
}

#[test]
fn listings_that_nobody_reads_to_the_end_are_dropped_and_read_on_all_the_same() {
    use plywood_fuse::overlay::readdir::Taken;
    const DIRS: usize = 300;
    const NAMES: usize = 5;
    let layers = Layers::new(2);
    for dir in 0..DIRS {
        for name in 0..NAMES {
            layers.file(name % 2, &format!("{dir}/{name}"), "");
        }
    }
    let overlay = layers.open();
    let root = overlay.root();
    let dirs: Vec<_> =
        (0..DIRS).map(|dir| overlay.lookup(root, dir.to_string().as_bytes()).unwrap().0).collect();
    // A reader with room for so many names, as a kernel with a small buffer.
    let read = |dir: &_, after: &mut u64, room: usize| {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let read = overlay.read_dir(dir, *after, &mut |entry| {
            if names.len() == room {
                return Taken::Full;
            }
            *after = entry.position;
            names.push(entry.name.to_vec());
            Taken::Seen
        });
        read.unwrap();
        names
    };
    let mut begun: Vec<_> = dirs.iter().map(|dir| (dir, 0, Vec::new())).collect();
    for (dir, after, names) in &mut begun {
        names.extend(read(dir, after, 2));
    }
    assert!(overlay.listings_kept() < DIRS / 2, "{} listings are kept", overlay.listings_kept());
    for (dir, after, names) in &mut begun {
        overlay.remove(dir, &names[0], plywood_fuse::overlay::remove::Victim::NotDir).unwrap();
        loop {
            let more = read(dir, after, 2);
            if more.is_empty() {
                break;
            }
            names.extend(more);
        }
        names.sort();
        assert_eq!(*names, (0..NAMES).map(|name| name.to_string().into_bytes()).collect::<Vec<_>>());
    }
    assert_eq!(overlay.listings_kept(), 0, "all have been read to the end");
    drop(begun);
    for dir in dirs {
        let ino = dir.ino;
        drop(dir);
        overlay.forget(ino, 1);
    }
    assert_all_given_back(&overlay);
}

//! From a path to a file.

use super::common::{Layers, errno, path};
use super::{assert_all_given_back, give, rooted, stranger, user};
use libc::{EACCES, EEXIST, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
use plywood_fuse::access::Access;
use plywood_fuse::types::Kind;
use plywood_fuse::view::{Open, View};

fn tree() -> (Layers, View) {
    let layers = Layers::new(2);
    layers.file(0, "dir/file", "top").file(1, "dir/other", "bottom").dir(1, "dir/sub/deep");
    let root = rooted(&layers);
    for (target, name) in [
        ("dir", "to-dir"),
        ("dir/", "to-dir-slash"),
        ("/dir/file", "to-file"),
        ("dir/file/", "to-file-slash"),
        ("gone", "to-gone"),
        ("loop-b", "loop-a"),
        ("loop-a", "loop-b"),
        ("../../../dir", "to-above"),
        ("/", "to-root"),
        (".", "to-here"),
    ] {
        root.symlink(target, name).unwrap();
    }
    root.symlink("../../to-dir/file", "dir/sub/to-file").unwrap();
    (layers, root)
}

#[test]
fn a_path_leads_where_the_kernel_would_go() {
    let (_layers, root) = tree();
    // Path, errno of stat, errno of lstat, and what stat finds.
    let table: &[(&[u8], i32, i32, Kind)] = &[
        (b"", ENOENT, ENOENT, Kind::File),
        (b"/", 0, 0, Kind::Dir),
        (b"//", 0, 0, Kind::Dir),
        (b".", 0, 0, Kind::Dir),
        (b"..", 0, 0, Kind::Dir),
        (b"/../..", 0, 0, Kind::Dir),
        (b"dir", 0, 0, Kind::Dir),
        (b"dir/", 0, 0, Kind::Dir),
        (b"dir//.///", 0, 0, Kind::Dir),
        (b"dir/..", 0, 0, Kind::Dir),
        (b"dir/file", 0, 0, Kind::File),
        (b"//dir//file", 0, 0, Kind::File),
        (b"../../dir/file", 0, 0, Kind::File),
        (b"dir/sub/deep/../../file", 0, 0, Kind::File),
        (b"dir/file/", ENOTDIR, ENOTDIR, Kind::File),
        (b"dir/file/.", ENOTDIR, ENOTDIR, Kind::File),
        (b"dir/file/..", ENOTDIR, ENOTDIR, Kind::File),
        (b"dir/file/x", ENOTDIR, ENOTDIR, Kind::File),
        (b"gone", ENOENT, ENOENT, Kind::File),
        (b"gone/", ENOENT, ENOENT, Kind::File),
        (b"gone/x", ENOENT, ENOENT, Kind::File),
        (b"gone/..", ENOENT, ENOENT, Kind::File),
        (b"to-dir", 0, 0, Kind::Dir),
        (b"to-dir/", 0, 0, Kind::Dir),
        (b"to-dir/file", 0, 0, Kind::File),
        (b"to-dir/..", 0, 0, Kind::Dir),
        (b"to-dir-slash/other", 0, 0, Kind::File),
        (b"to-file", 0, 0, Kind::File),
        (b"to-file/", ENOTDIR, ENOTDIR, Kind::File),
        (b"to-file/x", ENOTDIR, ENOTDIR, Kind::File),
        (b"to-file-slash", ENOTDIR, 0, Kind::File),
        (b"to-gone", ENOENT, 0, Kind::File),
        (b"to-gone/", ENOENT, ENOENT, Kind::File),
        (b"to-gone/x", ENOENT, ENOENT, Kind::File),
        (b"loop-a", ELOOP, 0, Kind::File),
        (b"loop-a/", ELOOP, ELOOP, Kind::File),
        (b"loop-a/x", ELOOP, ELOOP, Kind::File),
        (b"to-above/file", 0, 0, Kind::File),
        (b"to-root", 0, 0, Kind::Dir),
        (b"to-root/to-root/dir/file", 0, 0, Kind::File),
        (b"to-here/to-here/./dir", 0, 0, Kind::Dir),
        (b"dir/sub/to-file", 0, 0, Kind::File),
        (b"dir\0file", EINVAL, EINVAL, Kind::File),
    ];
    for (bytes, stat, lstat, kind) in table {
        let name = path(bytes);
        let found = root.metadata(name);
        assert_eq!(errno(root.symlink_metadata(name)), *lstat, "lstat {name:?}");
        match found {
            Ok(attr) => assert_eq!((0, attr.kind), (*stat, *kind), "stat {name:?}"),
            Err(e) => assert_eq!(e.errno(), *stat, "stat {name:?}"),
        }
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn a_path_through_symlinks_ends_at_the_same_inode() {
    let (_layers, root) = tree();
    let straight = root.metadata("dir/file").unwrap().ino;
    for name in ["to-dir/file", "to-file", "dir/sub/to-file", "to-above/sub/../file", "/to-root/dir/file"] {
        assert_eq!(root.metadata(name).unwrap().ino, straight, "{name}");
    }
    assert_eq!(root.metadata("to-root").unwrap().ino, root.metadata("/").unwrap().ino);
    assert_ne!(root.symlink_metadata("to-file").unwrap().ino, straight);
}

#[test]
fn forty_symlinks_are_followed_and_one_more_is_not() {
    let layers = Layers::new(1);
    layers.file(0, "link0", "the end");
    let root = rooted(&layers);
    for at in 1..=41 {
        root.symlink(format!("link{}", at - 1), format!("link{at}")).unwrap();
    }
    assert_eq!(root.read("link40").unwrap(), b"the end");
    assert_eq!(errno(root.read("link41")), ELOOP);
    // They count over the whole path, wherever they stand in it.
    root.symlink(".", "here").unwrap();
    assert_eq!(root.read(format!("{}link0", "here/".repeat(40))).unwrap(), b"the end");
    assert_eq!(errno(root.read(format!("{}link1", "here/".repeat(40)))), ELOOP);
}

#[test]
fn names_above_255_and_paths_above_4095_bytes_are_too_long() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    let longest = "n".repeat(255);
    root.write(&longest, "x").unwrap();
    assert_eq!(root.read(&longest).unwrap(), b"x");
    let longer = "n".repeat(256);
    for errno in [
        errno(root.metadata(&longer)),
        errno(root.write(&longer, "x")),
        errno(root.create_dir(&longer)),
        errno(root.symlink("x", &longer)),
        errno(root.remove_file(&longer)),
        errno(root.metadata(format!("{longer}/x"))),
    ] {
        assert_eq!(errno, ENAMETOOLONG);
    }
    let dots = |bytes: usize| format!("{}.", "./".repeat((bytes - 1) / 2));
    assert_eq!((dots(4095).len(), errno(root.metadata(dots(4095)))), (4095, 0));
    assert_eq!((dots(4097).len(), errno(root.metadata(dots(4097)))), (4097, ENAMETOOLONG));
    assert_eq!(errno(root.metadata(format!("{}/", dots(4095)))), ENAMETOOLONG);
    assert_eq!(errno(root.symlink("t".repeat(4096), "link")), ENAMETOOLONG);
    assert_eq!(errno(root.symlink("t".repeat(4095), "link")), 0);
    assert_eq!(root.read_link("link").unwrap().len(), 4095);
    assert_eq!(errno(root.metadata("link")), ENAMETOOLONG, "its one component is too long");
    assert_eq!(errno(root.symlink("", "empty")), ENOENT);
}

#[test]
fn every_directory_on_the_way_must_be_searchable() {
    let layers = Layers::new(1);
    layers.file(0, "closed/in/file", "x").file(0, "open/file", "y");
    let root = rooted(&layers);
    give(&root, "closed", (0, 0), 0o700);
    root.symlink("../closed/in/file", "open/to-closed").unwrap();
    root.symlink("/open/file", "closed/to-open").unwrap();
    let user = root.as_user(user());
    for name in [
        "closed/in/file",
        "closed/in",
        "closed/.",
        "closed/..",
        "closed/gone",
        "open/to-closed",
        "closed/to-open",
    ] {
        assert_eq!(errno(user.metadata(name)), EACCES, "{name}");
        assert!(errno(root.metadata(name)) == 0 || name == "closed/gone", "{name}");
    }
    assert_eq!(errno(user.metadata("closed")), 0, "the directory itself is seen");
    assert_eq!(errno(user.metadata("closed/")), 0);
    assert_eq!(errno(user.read_dir("closed")), EACCES);
    assert_eq!(errno(user.access("closed", Access::EXECUTE)), EACCES);
    // To search is enough to pass, to read is enough for the names.
    give(&root, "closed", (0, 0), 0o711);
    assert_eq!(user.read("closed/in/file").unwrap(), b"x");
    assert_eq!(errno(user.names("closed")), EACCES);
    give(&root, "closed", (0, 0), 0o744);
    assert_eq!(user.names("closed").unwrap(), ["in", "to-open"]);
    assert_eq!(errno(user.read_dir("closed")), EACCES);
    drop((root, user));
}

#[test]
fn a_path_to_be_made_ends_as_the_kernel_says() {
    let (_layers, root) = tree();
    let table = [
        // path, open to create, create new, mkdir, symlink
        ("/", EISDIR, EEXIST, EEXIST, EEXIST),
        (".", EISDIR, EEXIST, EEXIST, EEXIST),
        ("dir/..", EISDIR, EEXIST, EEXIST, EEXIST),
        ("dir", EISDIR, EEXIST, EEXIST, EEXIST),
        ("dir/", EISDIR, EISDIR, EEXIST, EEXIST),
        ("dir/file", 0, EEXIST, EEXIST, EEXIST),
        ("new/", EISDIR, EISDIR, 0, EEXIST),
        ("dir/fresh/", EISDIR, EISDIR, 0, EEXIST),
        ("gone/new", ENOENT, ENOENT, ENOENT, ENOENT),
        ("dir/file/new", ENOTDIR, ENOTDIR, ENOTDIR, ENOTDIR),
        ("to-gone", 0, EEXIST, EEXIST, EEXIST),
        ("loop-a", ELOOP, EEXIST, EEXIST, EEXIST),
        ("to-dir/", EISDIR, EISDIR, EEXIST, EEXIST),
    ];
    for (name, create, new, dir, link) in table {
        assert_eq!(errno(root.open(name, Open::write().create_new())), new, "open new {name}");
        assert_eq!(errno(root.open(name, Open::write().or_create())), create, "open {name}");
        assert_eq!(errno(root.create_dir(name)), dir, "mkdir {name}");
        assert_eq!(errno(root.symlink("x", name)), link, "symlink {name}");
    }
    assert_eq!(errno(root.symlink("x", "newer/")), ENOENT);
    assert_eq!(root.metadata("gone").unwrap().kind, Kind::File, "made through a symlink that led nowhere");
    assert_all_given_back(root.overlay());
}

#[test]
fn a_failure_names_the_operation_and_the_path() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    let message = |e: plywood_fuse::error::Error| e.to_string();
    assert_eq!(message(root.metadata("a/b").unwrap_err()), "stat: a/b: no such file or directory");
    assert_eq!(message(root.read("a").unwrap_err()), "open: a: no such file or directory");
    let stranger = root.as_user(stranger());
    assert_eq!(message(stranger.create_dir("d").unwrap_err()), "mkdir: d: permission denied");
}

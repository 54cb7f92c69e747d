//! Copying between trees: what arrives, and what is refused.

use super::copy::{Copied, Copier, How, Keep, NewOwner};
use super::files::{Change, Files, Links, Node};
use super::plain::Plain;
use super::stack::Stack;
use plywood_fuse::testing::TempDir;
use plywood_fuse::types::Kind;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const HOW: How = How { keep: Keep::Content, owner: NewOwner::Nobody, links: Links::Keep, same_tree: false };

/// Directories of one test: a source, a plain target, and the layers of a stack.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new();
        for name in ["source", "plain", "lower", "upper", "work"] {
            fs::create_dir(dir.path().join(name)).expect("a directory for the test");
        }
        Place { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// A source tree with a file of every sort that needs no privilege.
    fn fill(&self) -> &Self {
        let source = |path: &str| self.path("source").join(path);
        fs::create_dir_all(source("tree/deep/er")).expect("directories");
        fs::write(source("tree/file"), "content").expect("a file");
        fs::set_permissions(source("tree/file"), fs::Permissions::from_mode(0o4751)).expect("its mode");
        fs::hard_link(source("tree/file"), source("tree/deep/again")).expect("its other name");
        fs::write(source("tree/deep/er/empty"), "").expect("a file");
        symlink("../file", source("tree/deep/link")).expect("a symlink");
        symlink("/nowhere", source("tree/dangling")).expect("a symlink");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            source("tree/fifo"),
            rustix::fs::FileType::Fifo,
            0o640.into(),
            0,
        )
        .expect("a fifo");
        fs::set_permissions(source("tree/deep"), fs::Permissions::from_mode(0o705)).expect("its mode");
        self
    }

    fn machine_copy(&self, how: How, source: &str, target: &str) -> Result<(Copied, Vec<String>), i32> {
        let mut copier = Copier::new(&Plain::Machine, &Plain::Machine, how);
        copier.copy(&self.text_path(source), &self.text_path(target)).map_err(|e| e.errno())?;
        Ok((copier.copied, copier.left_out))
    }

    /// Keeps a slash or dot at the end, which joining would keep too but [`Path`] hides.
    fn text_path(&self, path: &str) -> PathBuf {
        let mut text = OsString::from(self.dir.path());
        text.push("/");
        text.push(path);
        text.into()
    }
}

/// What a test compares: each path below `top` with what it is.
fn listed(files: &dyn Files, top: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for name in files.names(&top.join(&dir)).expect("a directory") {
            let path = dir.join(name);
            let attr = files.stat(&top.join(&path), Links::Keep).expect("it is there").attr;
            let shown = path.display();
            match attr.kind {
                Kind::Dir => {
                    all.push(format!("{shown}/ {:o}", attr.perm));
                    todo.push(path);
                }
                Kind::Symlink => {
                    let target = files.read_link(&top.join(&path)).expect("a symlink");
                    all.push(format!("{shown} -> {}", target.display()));
                }
                Kind::File => {
                    let mut content = [0; 64];
                    let came = files
                        .open(&top.join(&path))
                        .and_then(|f| f.read_at(&mut content, 0))
                        .expect("content");
                    let content = String::from_utf8_lossy(&content[..came]).into_owned();
                    all.push(format!("{shown} {:o} x{} {content:?}", attr.perm, attr.nlink));
                }
                kind => all.push(format!("{shown} {kind:?} {:o}", attr.perm)),
            }
        }
    }
    all.sort();
    all
}

const TREE: [&str; 8] = [
    "dangling -> /nowhere",
    "deep/ 705",
    "deep/again 751 x2 \"content\"",
    "deep/er/ 755",
    "deep/er/empty 644 x1 \"\"",
    "deep/link -> ../file",
    "fifo Fifo 640",
    "file 751 x2 \"content\"",
];

#[test]
fn a_tree_arrives_whole_in_a_stack_in_a_plain_directory_and_back_out() {
    let place = Place::new();
    place.fill();
    let modes =
        [("source/tree/deep/er", 0o755), ("source/tree/deep/er/empty", 0o644), ("source/tree", 0o755)];
    for (path, mode) in modes {
        fs::set_permissions(place.path(path), fs::Permissions::from_mode(mode)).expect("its mode");
    }
    let plain = Plain::below(&place.path("plain")).expect("a plain directory");
    let stack =
        Stack::writable(&[place.path("lower")], &place.path("upper"), &place.path("work")).expect("a stack");
    let out = place.path("out");
    let trees: [(&dyn Files, &str, NewOwner); 2] =
        [(&plain, "plain", NewOwner::Root), (&stack, "stack", NewOwner::Root)];
    for (files, name, owner) in trees {
        let owner = if rustix::process::geteuid().is_root() { owner } else { NewOwner::Nobody };
        let how = How { owner, ..HOW };
        let mut copier = Copier::new(&Plain::Machine, files, how);
        copier.copy(&place.path("source/tree"), Path::new("/copy")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(copier.copied, Copied { files: 6, directories: 3, bytes: 7 }, "{name}");
        assert_eq!(copier.left_out, Vec::<String>::new(), "{name}");
        assert_eq!(listed(files, Path::new("/copy")), TREE, "{name}");

        let mut back = Copier::new(files, &Plain::Machine, HOW);
        back.copy(Path::new("copy"), &out).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(listed(&Plain::Machine, &out), TREE, "{name}");
        let [before, after] = ["source/tree/deep/link", "out/deep/link"]
            .map(|path| fs::symlink_metadata(place.path(path)).and_then(|m| m.modified()).expect("a time"));
        assert_eq!(before, after, "{name}: times are kept");
        files.remove_tree(Path::new("/copy")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(files.names(Path::new("/")).expect("the root"), Vec::<OsString>::new(), "{name}");
        fs::remove_dir_all(&out).expect("the copy");
    }
}

#[test]
fn setuid_is_kept_only_with_everything_else() {
    let place = Place::new();
    place.fill();
    place.machine_copy(HOW, "source/tree/file", "a").expect("a copy");
    place.machine_copy(How { keep: Keep::All, ..HOW }, "source/tree/file", "b").expect("a copy");
    let mode = |path: &str| fs::metadata(place.path(path)).expect("it is there").mode() & 0o7777;
    assert_eq!((mode("a"), mode("b")), (0o751, 0o4751));
}

#[test]
fn where_a_copy_goes_follows_cp() {
    let place = Place::new();
    place.fill();
    fs::create_dir(place.path("dir")).expect("a directory");
    fs::write(place.path("old"), "old and longer").expect("a file");
    // Source, target, where something is afterwards or which errno.
    let cases: &[(&str, &str, Result<&str, i32>)] = &[
        ("source/tree/file", "new", Ok("new")),
        ("source/tree/file", "dir", Ok("dir/file")),
        ("source/tree/file", "old", Ok("old")),
        ("source/tree/file", "new/", Err(libc::ENOTDIR)),
        ("source/tree/file", "missing/", Err(libc::ENOTDIR)),
        ("source/tree/file", "missing/new", Err(libc::ENOENT)),
        ("source/tree/missing", "new", Err(libc::ENOENT)),
        ("source/tree", "dir", Ok("dir/tree/file")),
        ("source/tree", "made", Ok("made/file")),
        ("source/tree/", "made2/", Ok("made2/file")),
        ("source/tree/.", "dir", Ok("dir/deep/er/empty")),
        ("source/tree/.", "made3", Ok("made3/deep/again")),
        ("source/tree", "old", Err(libc::ENOTDIR)),
        ("source/tree/.", "old", Err(libc::ENOTDIR)),
        // A second time: what is there is replaced, and nothing nests.
        ("source/tree", "dir", Ok("dir/tree/deep/again")),
        ("source/tree/deep/link", "dir", Ok("dir/link")),
    ];
    for (source, target, expected) in cases {
        let copied = place.machine_copy(HOW, source, target).map(|_| ());
        match expected {
            Ok(path) => {
                assert_eq!(copied, Ok(()), "{source} {target}");
                assert!(fs::symlink_metadata(place.path(path)).is_ok(), "{source} {target}: {path}");
            }
            Err(errno) => assert_eq!(copied, Err(*errno), "{source} {target}"),
        }
    }
    assert_eq!(fs::read(place.path("old")).expect("a file"), b"content");
    assert!(!place.path("dir/tree/tree").exists());
    assert!(fs::symlink_metadata(place.path("dir/link")).expect("it is there").is_symlink());
    place
        .machine_copy(How { links: Links::Follow, ..HOW }, "source/tree/deep/link", "followed")
        .expect("a copy");
    assert_eq!(fs::read(place.path("followed")).expect("a file"), b"content");
}

#[test]
fn directories_and_files_do_not_replace_each_other() {
    let place = Place::new();
    fs::create_dir_all(place.path("source/a/x")).expect("directories");
    fs::create_dir_all(place.path("plain/a")).expect("directories");
    fs::write(place.path("plain/a/x"), "file").expect("a file");
    assert_eq!(place.machine_copy(HOW, "source/a", "plain"), Err(libc::ENOTDIR));
    assert_eq!(place.machine_copy(HOW, "plain/a", "source"), Err(libc::EISDIR));
    assert_eq!(fs::read(place.path("plain/a/x")).expect("a file"), b"file");
}

#[test]
fn nothing_is_written_through_symlinks_of_the_target_tree() {
    let place = Place::new();
    fs::create_dir(place.path("source/d")).expect("a directory");
    fs::write(place.path("source/d/f"), "new").expect("a file");
    fs::create_dir(place.path("plain/d")).expect("a directory");
    fs::write(place.path("victim"), "old").expect("a file");
    symlink(place.path("victim"), place.path("plain/d/f")).expect("a symlink");
    place.machine_copy(HOW, "source/d", "plain").expect("a copy");
    assert_eq!(fs::read(place.path("victim")).expect("a file"), b"old");
    assert_eq!(fs::read(place.path("plain/d/f")).expect("a file"), b"new");
}

#[test]
fn no_path_of_a_snapshot_leads_out_of_it() {
    let place = Place::new();
    fs::write(place.path("secret"), "secret").expect("a file");
    fs::create_dir(place.path("plain/etc")).expect("a directory");
    fs::write(place.path("plain/etc/f"), "inside").expect("a file");
    symlink("/etc", place.path("plain/abs")).expect("a symlink");
    symlink("../../../../../..", place.path("plain/up")).expect("a symlink");
    symlink(place.path("secret"), place.path("plain/direct")).expect("a symlink");
    symlink("loop", place.path("plain/loop")).expect("a symlink");
    let stack = Stack::read_only(&[place.path("plain"), place.path("lower")]).expect("a stack");
    let plain = Plain::below(&place.path("plain")).expect("a directory");
    let trees: [&dyn Files; 2] = [&plain, &stack];
    for files in trees {
        let read = |path: &str| {
            let mut content = [0; 16];
            let came = files.open(Path::new(path)).and_then(|f| f.read_at(&mut content, 0));
            came.map(|came| String::from_utf8_lossy(&content[..came]).into_owned()).map_err(|e| e.errno())
        };
        for path in ["/abs/f", "abs/f", "/up/etc/f", "../../etc/f", "/etc/../../etc/f"] {
            assert_eq!(read(path), Ok("inside".to_owned()), "{path}");
        }
        assert_eq!(read("/direct"), Err(libc::ENOENT));
        assert_eq!(read("/up/secret"), Err(libc::ENOENT));
        assert_eq!(read("/loop"), Err(libc::ELOOP));
        assert_eq!(read("/etc"), Err(libc::EISDIR));
        assert_eq!(read("/"), Err(libc::EISDIR));
    }
    let secret = Plain::below(&place.path("plain")).and_then(|p| p.overwrite(Path::new("/direct")).map(drop));
    assert!(secret.is_err());
    assert_eq!(fs::read(place.path("secret")).expect("a file"), b"secret");
}

#[test]
fn pipes_sockets_and_devices_are_never_opened() {
    let place = Place::new();
    place.fill();
    let _socket = std::os::unix::net::UnixListener::bind(place.path("source/tree/socket")).expect("a socket");
    let plain = Plain::below(&place.path("source/tree")).expect("a directory");
    let stack = Stack::read_only(&[place.path("source/tree"), place.path("lower")]).expect("a stack");
    let trees: [&dyn Files; 2] = [&plain, &stack];
    for files in trees {
        for path in ["/fifo", "/socket"] {
            assert_eq!(
                files.open(Path::new(path)).map(drop).map_err(|e| e.errno()),
                Err(libc::ENXIO),
                "{path}"
            );
        }
    }
    assert_eq!(plain.overwrite(Path::new("/fifo")).map(drop).map_err(|e| e.errno()), Err(libc::ENXIO));
    // A socket is told of and left out; a fifo is made again.
    let (copied, left_out) = place.machine_copy(HOW, "source/tree", "copy").expect("a copy");
    assert_eq!((copied.files, left_out.len()), (6, 1), "{left_out:?}");
    assert!(fs::symlink_metadata(place.path("copy/fifo")).expect("it is there").file_type().is_fifo());
    assert!(!place.path("copy/socket").exists());
}

#[test]
fn a_device_comes_out_of_a_snapshot_only_if_all_is_to_be_kept() {
    let place = Place::new();
    let null = (Path::new("/dev/null"), place.path("null"));
    let mut copier = Copier::new(&Plain::Machine, &Plain::Machine, HOW);
    copier.copy(null.0, &null.1).expect("it is left out");
    assert_eq!((copier.copied.files, copier.left_out.len()), (0, 1), "{:?}", copier.left_out);
    assert!(!null.1.exists());
    let mut copier = Copier::new(&Plain::Machine, &Plain::Machine, How { keep: Keep::All, ..HOW });
    match copier.copy(null.0, &null.1) {
        Ok(()) => assert!(fs::metadata(&null.1).expect("it is there").file_type().is_char_device()),
        // Only root makes devices.
        Err(e) => assert!(e.is_denied(), "{e}"),
    }
}

#[test]
fn a_directory_is_not_copied_into_itself_nor_a_file_onto_itself() {
    let place = Place::new();
    place.fill();
    let plain = Plain::below(&place.path("source")).expect("a directory");
    let how = How { same_tree: true, ..HOW };
    let copy = |source: &str, target: &str| {
        Copier::new(&plain, &plain, how).copy(Path::new(source), Path::new(target)).map_err(|e| e.errno())
    };
    assert_eq!(copy("/tree", "/tree/deep"), Err(libc::EINVAL));
    assert_eq!(copy("/tree/.", "/tree/deep/new"), Err(libc::EINVAL));
    assert_eq!(copy("/tree/.", "/tree"), Err(libc::EINVAL));
    assert_eq!(copy("/tree/file", "/tree/file"), Err(libc::EINVAL));
    assert_eq!(copy("/tree/file", "/tree/deep/again"), Err(libc::EINVAL), "its other name");
    assert_eq!(fs::read(place.path("source/tree/file")).expect("a file"), b"content");
    assert_eq!(copy("/tree", "/other"), Ok(()));
    assert_eq!(copy("/tree/file", "/tree/copy"), Ok(()));
}

#[test]
fn holes_stay_holes_and_every_byte_arrives() {
    let place = Place::new();
    let size = 3 << 20;
    let file = fs::File::create(place.path("source/sparse")).expect("a file");
    file.set_len(size).expect("its size");
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", (1 << 20) + 4090).expect("its content");
    place.machine_copy(HOW, "source/sparse", "copy").expect("a copy");
    let (copy, source) =
        (fs::read(place.path("copy")).expect("a file"), fs::read(place.path("source/sparse")));
    assert_eq!(copy, source.expect("a file"));
    let blocks = fs::metadata(place.path("copy")).expect("it is there").blocks();
    assert!(blocks * 512 < size / 4, "{blocks} blocks");
}

#[test]
fn attributes_of_users_are_kept_and_marks_of_layers_are_not() {
    let place = Place::new();
    let plain = Plain::below(&place.path("source")).expect("a directory");
    plain.make(Path::new("d"), &Node::Dir).expect("a directory");
    for (name, value) in
        [("user.mine", "1"), ("user.overlay.opaque", "y"), ("user.fuseoverlayfs.origin", "x")]
    {
        plain.set_xattr(Path::new("d"), name.as_bytes(), value.as_bytes()).expect("a disk with attributes");
    }
    for keep in [Keep::Content, Keep::All] {
        let target = if keep == Keep::All { "all" } else { "content" };
        place.machine_copy(How { keep, ..HOW }, "source/d", target).expect("a copy");
        let all = Plain::Machine.xattrs(&place.path(target)).expect("attributes");
        assert_eq!(all, [(b"user.mine".to_vec(), b"1".to_vec())], "{keep:?}");
    }
}

#[test]
fn removing_a_tree_takes_neither_the_root_nor_what_symlinks_lead_to() {
    let place = Place::new();
    fs::create_dir_all(place.path("plain/d/e")).expect("directories");
    fs::create_dir(place.path("plain/keep")).expect("a directory");
    fs::write(place.path("plain/keep/f"), "").expect("a file");
    symlink("../keep", place.path("plain/d/link")).expect("a symlink");
    symlink("keep", place.path("plain/top")).expect("a symlink");
    let plain = Plain::below(&place.path("plain")).expect("a directory");
    let remove = |path: &str| plain.remove_tree(Path::new(path)).map_err(|e| e.errno());
    assert_eq!(remove("/"), Err(libc::EBUSY));
    assert_eq!(remove("/d/.."), Err(libc::EBUSY));
    assert!(remove("/top").is_err(), "a symlink is no directory");
    assert_eq!(remove("/keep/f"), Err(libc::ENOTDIR));
    assert_eq!(remove("/missing"), Err(libc::ENOENT));
    assert_eq!(remove("/d"), Ok(()));
    assert_eq!(plain.names(Path::new("/")).expect("the root"), ["keep", "top"]);
    assert!(place.path("plain/keep/f").exists());
}

#[test]
fn a_stack_that_somebody_has_mounted_is_busy() {
    let place = Place::new();
    let (lowers, upper, work) = ([place.path("lower")], place.path("upper"), place.path("work"));
    let first = Stack::writable(&lowers, &upper, &work).expect("a stack");
    let second = Stack::writable(&lowers, &upper, &work).map(drop).map_err(|e| e.errno());
    assert_eq!(second, Err(libc::EBUSY));
    drop(first);
    assert!(Stack::writable(&lowers, &upper, &work).is_ok());
}

#[test]
fn attributes_are_set_on_a_symlink_itself() {
    let place = Place::new();
    fs::write(place.path("plain/f"), "").expect("a file");
    symlink("f", place.path("plain/link")).expect("a symlink");
    let plain = Plain::below(&place.path("plain")).expect("a directory");
    let then = plywood_fuse::types::Time { secs: 1_000_000, nanos: 5 };
    let change = Change { owner: None, perm: Some(0o600), times: Some((then, then)) };
    plain.change(Path::new("link"), change).expect("it is ours");
    let mtime = |path: &str| fs::symlink_metadata(place.path(path)).expect("it is there").mtime();
    assert_eq!(mtime("plain/link"), 1_000_000);
    assert_ne!(mtime("plain/f"), 1_000_000);
}

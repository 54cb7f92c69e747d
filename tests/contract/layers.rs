//! Layers and images in and out: the same whatever keeps the snapshot.

use crate::tree::{self, Entry};
use crate::world::World;
use plywood::apply::Below;
use plywood::archive::{Entry as TarEntry, EntryKind, Writer};
use plywood::backend::BackendName;
use plywood::compress::Compression;
use plywood::diff::{ChangeKind, DiffOptions, Xattrs};
use plywood::error::ErrorKind;
use plywood::image::export::{ExportOptions, export};
use plywood::image::import::{ImportOptions, Input, import};
use plywood::image::unpack::Made;
use plywood::snapshotter::{Layered, PackedLayer};
use plywood::types::{Labels, Timestamp};
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

type Tree = BTreeMap<PathBuf, Entry>;

fn options() -> DiffOptions {
    DiffOptions { xattrs: Xattrs::User, ..DiffOptions::default() }
}

/// The layer that a snapshot is on top of its parent.
fn pack(world: &World, name: &str) -> (PackedLayer, Vec<u8>) {
    let packed = world.snapshotter.pack(name, None, Vec::new(), Compression::None, &options(), &());
    packed.unwrap_or_else(|e| panic!("{e}"))
}

fn apply(world: &World, name: &str, parent: &str, layer: &[u8]) -> String {
    let key = format!("{name}-key");
    world.prepare(&key, parent);
    let applied = world.snapshotter.apply(&key, Cursor::new(layer.to_vec()), Below::Nothing, &());
    let Layered::Applied(applied, _) = applied.unwrap_or_else(|e| panic!("{e}")) else {
        panic!("{name} needs what is below");
    };
    world.commit(name, &key);
    applied.diff_id.to_string()
}

/// A tree as a layer can say it: times in whole seconds.
fn sayable(mut tree: Tree) -> Tree {
    tree.retain(|_, entry| entry.mode & libc::S_IFMT != libc::S_IFSOCK);
    tree.values_mut().for_each(|entry| entry.mtime.1 = 0);
    tree
}

fn write(path: &Path, content: impl AsRef<[u8]>, mode: u32) {
    fs::write(path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn set_xattr(path: &Path, name: &std::ffi::CStr, value: &[u8]) {
    use plywood_fuse::sys::{Place, xattr};
    use std::os::fd::AsFd;
    let file = fs::File::open(path).expect("open");
    xattr::set(Place::Fd(file.as_fd()), name, value, xattr::SetMode::Any).expect("setxattr");
}

/// Something of everything that a layer can hold.
fn fill(root: &Path) {
    for dir in ["etc/sub", "gone/deep", "opaque/in", "moved/in", "replaced", "links", "a/b/c/d"] {
        fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    write(&root.join("etc/passwd"), "root", 0o644);
    write(&root.join("etc/sub/suid"), "x", 0o4755);
    write(&root.join("gone/deep/file"), "gone", 0o600);
    write(&root.join("opaque/old"), "old", 0o644);
    write(&root.join("opaque/in/old"), "old", 0o644);
    write(&root.join("moved/in/file"), vec![7; 100_000], 0o640);
    write(&root.join("replaced/by a file"), "", 0o644);
    write(&root.join("file.txt"), "beside a/b in order", 0o644);
    write(&root.join("links/1"), "linked", 0o644);
    fs::hard_link(root.join("links/1"), root.join("links/2")).expect("ln");
    fs::hard_link(root.join("links/1"), root.join("etc/sub/3")).expect("ln");
    symlink("etc/passwd", root.join("symlink")).expect("ln -s");
    symlink("/etc", root.join("directory")).expect("ln -s");
    let sparse = fs::File::create(root.join("sparse")).expect("create");
    sparse.write_at(b"end", 3_000_000).expect("write");
    let long = "n".repeat(255);
    write(&root.join("a/b/c/d").join(&long), "long", 0o644);
    write(&root.join("a/ü\u{1}\\ \"'"), "odd", 0o444);
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, 0o620.into(), 0)
        .expect("mkfifo");
    chown(root.join("links/1"), Some(7), Some(8)).expect("chown");
    std::os::unix::fs::lchown(root.join("symlink"), Some(3), Some(4)).expect("chown");
    set_xattr(&root.join("etc/passwd"), c"user.color", b"blue\0and red");
    fs::set_permissions(root.join("etc/sub"), fs::Permissions::from_mode(0o1750)).expect("chmod");
}

/// Something of everything that a layer can change.
fn change(root: &Path) {
    fs::remove_dir_all(root.join("gone")).expect("rm");
    fs::remove_dir_all(root.join("opaque")).expect("rm");
    fs::create_dir_all(root.join("opaque/in")).expect("mkdir");
    write(&root.join("opaque/in/new"), "new", 0o600);
    // By mv(1), since the kernel's overlayfs does not rename directories of lower layers.
    let moved = std::process::Command::new("mv").arg(root.join("moved")).arg(root.join("renamed")).status();
    assert!(moved.expect("mv").success());
    fs::remove_dir_all(root.join("replaced")).expect("rm");
    write(&root.join("replaced"), "now a file", 0o644);
    fs::remove_file(root.join("symlink")).expect("rm");
    fs::create_dir(root.join("symlink")).expect("mkdir");
    write(&root.join("symlink/inside"), "now a directory", 0o644);
    fs::remove_file(root.join("links/2")).expect("rm");
    write(&root.join("links/1"), "changed", 0o600);
    fs::hard_link(root.join("links/1"), root.join("a/4")).expect("ln");
    chown(root.join("etc/passwd"), Some(5), Some(6)).expect("chown");
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o700)).expect("chmod");
    fs::remove_file(root.join("directory")).expect("rm");
    symlink("usr", root.join("directory")).expect("ln -s");
    fs::File::options().write(true).open(root.join("sparse")).expect("open").set_len(10).expect("truncate");
}

fn all_but(backend: BackendName) -> Vec<BackendName> {
    let may_btrfs = std::env::var_os(crate::AGAIN).is_none();
    BackendName::ALL
        .into_iter()
        .filter(|b| *b != backend && (may_btrfs || *b != BackendName::Btrfs))
        .collect()
}

/// S49, S79 to S81: what one backend packs, every other one unpacks to the same tree, and packs to the same bytes.
pub fn a_layer_is_the_same_whatever_backend_packs_and_unpacks_it(world: &World) {
    world.layer("base", "", fill);
    world.layer("top", "base", change);
    let (base_tree, top_tree) = (world.look("base", tree::read), world.look("top", tree::read));
    let (base, base_bytes) = pack(world, "base");
    let (top, top_bytes) = pack(world, "top");
    assert_eq!(pack(world, "top").1, top_bytes, "packed twice");
    assert_eq!(top.digest, top.diff_id);
    assert_eq!(top.size_bytes, top_bytes.len() as u64);
    let mut changes = Vec::new();
    let told = world.snapshotter.changes("top", None, &(), &mut |change| {
        changes.push((String::from_utf8(change.path).expect("text"), change.kind));
        Ok(())
    });
    told.unwrap_or_else(|e| panic!("{e}"));
    for (path, kind) in [
        ("gone", ChangeKind::Removed),
        ("opaque/old", ChangeKind::Removed),
        ("opaque/in/new", ChangeKind::Added),
        ("renamed/in/file", ChangeKind::Added),
        ("moved", ChangeKind::Removed),
        ("replaced", ChangeKind::Modified),
        ("links/1", ChangeKind::Modified),
    ] {
        assert!(changes.contains(&(path.to_owned(), kind)), "{path}: {changes:?}");
    }
    for backend in all_but(world.backend()) {
        let Some(other) = World::new(backend) else { return };
        assert_eq!(apply(&other, "base", "", &base_bytes), base.diff_id.to_string());
        assert_eq!(apply(&other, "top", "base", &top_bytes), top.diff_id.to_string());
        let what = format!("{} to {backend}", world.backend());
        tree::assert_equal(
            &sayable(base_tree.clone()),
            &other.look("base", tree::read),
            &format!("{what}, base"),
        );
        tree::assert_equal(
            &sayable(top_tree.clone()),
            &other.look("top", tree::read),
            &format!("{what}, top"),
        );
        assert_eq!(pack(&other, "base").0.diff_id, base.diff_id, "{what}");
        assert_eq!(pack(&other, "top").0.diff_id, top.diff_id, "{what}");
        other.finish();
    }
}

/// An image goes to another backend and back: the same names, the same blobs, the same manifest.
pub fn an_image_goes_to_another_backend_and_back(world: &World) {
    world.layer("base", "", fill);
    world.layer("top", "base", change);
    let export_of = |world: &World, name: &str| {
        let mut archive = Vec::new();
        let options = ExportOptions {
            tag: Some("localhost/it:1".to_owned()),
            xattrs: Xattrs::User,
            ..ExportOptions::default()
        };
        let exported = export(&world.snapshotter, name, &mut archive, &options, &());
        (exported.unwrap_or_else(|e| panic!("{e}")), archive)
    };
    let import_into = |world: &World, archive: &[u8]| {
        let input = Input::Stream(Box::new(Cursor::new(archive.to_vec())), "memory".to_owned());
        import(&world.snapshotter, input, &ImportOptions::default(), &()).unwrap_or_else(|e| panic!("{e}"))
    };
    let (first, archive) = export_of(world, "top");
    assert_eq!(export_of(world, "top").1, archive, "exported twice");
    for backend in all_but(world.backend()) {
        let Some(other) = World::new(backend) else { return };
        let imported = import_into(&other, &archive);
        assert_eq!(imported.image.as_deref(), Some("localhost/it:1"));
        assert!(imported.layers.iter().all(|l| l.made == Made::Now));
        let seen = other.look(&imported.name, tree::read);
        tree::assert_equal(
            &sayable(world.look("top", tree::read)),
            &seen,
            &format!("{} to {backend}", world.backend()),
        );
        let (second, back) = export_of(&other, &imported.name);
        assert_eq!((&second.manifest, &second.config), (&first.manifest, &first.config));
        assert_eq!(back, archive, "{} to {backend} and back", world.backend());
        assert!(import_into(&other, &archive).layers.iter().all(|l| l.made == Made::Before));
        for layer in imported.layers.iter().rev() {
            other.remove(&layer.name);
        }
        other.finish();
    }
}

/// Half a layer is never committed, and does not stay.
pub fn a_layer_that_fails_leaves_nothing_that_could_be_committed(world: &World) {
    world.layer("base", "", fill);
    world.layer("top", "base", change);
    let (_, bytes) = pack(world, "top");
    let snapshotter = &world.snapshotter;
    for cut in [bytes.len() / 2, bytes.len() / 3] {
        world.prepare("half", "base");
        let failed = snapshotter.apply("half", Cursor::new(bytes[..cut].to_vec()), Below::Nothing, &());
        assert_eq!(failed.map(drop).expect_err("half a layer").kind(), ErrorKind::InvalidArgument);
        let refused = snapshotter.commit("x", "half", Labels::new(), None, &()).expect_err("half a layer");
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert!(refused.to_string().contains("remove it"), "{refused}");
        let again = snapshotter.apply("half", Cursor::new(bytes.clone()), Below::Nothing, &());
        assert_eq!(again.map(drop).expect_err("half a layer").kind(), ErrorKind::FailedPrecondition);
        world.remove("half");
    }
    // To what is no active snapshot nothing is applied.
    world.view("view", "base");
    for key in ["view", "base"] {
        let failed = snapshotter.apply(key, Cursor::new(bytes.clone()), Below::Nothing, &());
        assert_eq!(failed.map(drop).expect_err("not active").kind(), ErrorKind::FailedPrecondition);
    }
    let missing = snapshotter.apply("none", Cursor::new(bytes.clone()), Below::Nothing, &());
    assert_eq!(missing.map(drop).expect_err("not there").kind(), ErrorKind::NotFound);
    // Nor to what is mounted: its users would not see it.
    world.prepare("mounted", "base");
    let target = world.dir("target");
    snapshotter.mount("mounted", &target).unwrap_or_else(|e| panic!("{e}"));
    let busy = snapshotter.apply("mounted", Cursor::new(bytes), Below::Nothing, &());
    assert_eq!(busy.map(drop).expect_err("mounted").kind(), ErrorKind::Busy);
    snapshotter.unmount(&target).unwrap_or_else(|e| panic!("{e}"));
}

/// What would be a mark by chance is none, also in a snapshot that has nothing below it yet.
pub fn what_looks_like_a_mark_in_a_layer_is_none(world: &World) {
    // A user namespace has no devices, and a whole tree in one leaves them out.
    if std::env::var_os(crate::AGAIN).is_some() {
        return;
    }
    let entry = |path: &str, kind: EntryKind, xattrs: &[(&str, &str)]| TarEntry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o600,
        uid: 0,
        gid: 0,
        size_bytes: 0,
        mtime: Timestamp { secs: 1_000_000_000, nanos: 0 },
        atime: None,
        xattrs: xattrs.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect(),
    };
    let mut writer = Writer::new(Vec::new());
    for entry in [
        entry("dir/", EntryKind::Dir, &[("user.overlay.opaque", "y"), ("user.overlay.redirect", "/etc")]),
        entry("dir/device", EntryKind::Char { major: 0, minor: 0 }, &[]),
        entry("dir/empty", EntryKind::File, &[("user.overlay.metacopy", ""), ("user.overlay.whiteout", "y")]),
    ] {
        writer.entry(&entry).unwrap_or_else(|e| panic!("{e}"));
    }
    let layer = writer.finish().unwrap_or_else(|e| panic!("{e}"));
    apply(world, "base", "", &layer);
    let whole = |name: &str| {
        let mut paths = Vec::new();
        let told = world.snapshotter.changes(name, None, &(), &mut |change| {
            paths.push(String::from_utf8(change.path).expect("text"));
            Ok(())
        });
        told.unwrap_or_else(|e| panic!("{e}"));
        paths
    };
    assert_eq!(whole("base"), ["dir", "dir/device", "dir/empty"]);
    // The kernel's overlayfs has no device 0:0, and so the backend refuses to stack something on this.
    if world.backend() == BackendName::Overlay {
        return;
    }
    world.layer("top", "base", |root| write(&root.join("beside"), "x", 0o644));
    assert_eq!(whole("top"), ["beside"]);
    let seen = world.look("top", tree::read);
    assert!(
        seen.contains_key(Path::new("dir/device")) && seen.contains_key(Path::new("dir/empty")),
        "{seen:?}"
    );
}

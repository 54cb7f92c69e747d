//! What containerd's suite lists as untested wishes, and what equality of layers means beyond it.

use crate::suite::{chmod, mkdir, read, write};
use crate::tree;
use crate::world::World;
use plywood::filter::Filters;
use plywood_fuse::sys::{self, Place};
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

/// The same content is seen in the layer itself, in a view, and in the next active snapshot.
fn survives(world: &World, make: impl Fn(&Path)) {
    world.layer("base", "", |root| write(&root.join("other"), "other"));
    let mut made = None;
    world.layer("1", "base", |root| {
        make(root);
        made = Some(tree::read(root));
    });
    let made = made.expect("the layer was read");
    tree::assert_equal(&made, &world.look("1", tree::read), "a view");
    let mounts = world.prepare("next", "1");
    let shown = world.show(&mounts);
    tree::assert_equal(&made, &tree::read(shown.path()), "the next layer");
    shown.end();
}

pub fn sockets_and_fifos_survive_layers(world: &World) {
    survives(world, |root| {
        let dir = sys::open::open_root(root).expect("root");
        // In a user namespace nobody makes devices.
        let kinds = [("fifo", libc::S_IFIFO), ("device", libc::S_IFCHR)];
        for (name, kind) in
            kinds.into_iter().take(if plywood::sys::userns::in_initial_userns() { 2 } else { 1 })
        {
            let device = plywood_fuse::types::Device { major: 1, minor: 3 };
            sys::node::mknod(dir.as_fd(), name.as_bytes(), kind | 0o640, device)
                .unwrap_or_else(|e| panic!("{e}"));
        }
        drop(std::os::unix::net::UnixListener::bind(root.join("socket")).expect("bind"));
        assert!(fs::symlink_metadata(root.join("socket")).expect("stat").file_type().is_socket());
    });
}

pub fn extended_attributes_survive_layers(world: &World) {
    survives(world, |root| {
        write(&root.join("file"), "x");
        mkdir(&root.join("dir"), 0o755);
        let dir = sys::open::open_root(root).expect("root");
        // `setcap cap_net_raw+ep`: revision 2, effective, bit 13.
        let capability: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (name, attribute, value) in [
            ("file", c"user.words", b"some words".as_slice()),
            ("file", c"security.capability", &capability),
            ("dir", c"user.empty", b""),
        ] {
            let place = Place::At(dir.as_fd(), name.as_bytes());
            let set = sys::xattr::set(place, attribute, value, sys::xattr::SetMode::Any);
            set.unwrap_or_else(|e| panic!("{name} {attribute:?}: {e}"));
        }
    });
}

pub fn times_and_links_survive_layers(world: &World) {
    survives(world, |root| {
        write(&root.join("a"), "one inode");
        mkdir(&root.join("dir"), 0o700);
        fs::hard_link(root.join("a"), root.join("dir/b")).expect("ln");
        symlink("../a", root.join("dir/link")).expect("ln -s");
        symlink("/nowhere/at all", root.join("dangling")).expect("ln -s");
        let file = fs::File::options().write(true).open(root.join("a")).expect("open");
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
        file.set_modified(time).expect("utimens");
    });
}

pub fn a_sparse_file_stays_sparse_or_at_least_equal(world: &World) {
    survives(world, |root| {
        let mut file = fs::File::create(root.join("sparse")).expect("create");
        file.set_len(64 << 20).expect("truncate");
        file.seek(SeekFrom::Start(32 << 20)).expect("seek");
        file.write_all(b"in the middle").expect("write");
    });
    world.look("1", |root| {
        let meta = fs::metadata(root.join("sparse")).expect("stat");
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks of 512 bytes", meta.blocks());
    });
}

pub fn a_directory_keeps_its_inode(world: &World) {
    world.layer("1", "", |root| {
        mkdir(&root.join("dir/sub"), 0o755);
        write(&root.join("dir/file"), "x");
    });
    let mounts = world.prepare("2", "1");
    let shown = world.show(&mounts);
    let ino = || fs::metadata(shown.path().join("dir")).expect("stat").ino();
    let before = ino();
    write(&shown.path().join("dir/new"), "y");
    chmod(&shown.path().join("dir"), 0o700);
    assert_eq!(ino(), before);
    shown.end();
}

pub fn an_open_file_keeps_its_inode(world: &World) {
    world.layer("1", "", |root| write(&root.join("file"), "before"));
    let mounts = world.prepare("2", "1");
    let shown = world.show(&mounts);
    let path = shown.path().join("file");
    let mut reader = fs::File::open(&path).expect("open");
    let before = reader.metadata().expect("fstat").ino();
    fs::File::options().append(true).open(&path).expect("open").write_all(b", after").expect("append");
    assert_eq!(fs::metadata(&path).expect("stat").ino(), before);
    // The kernel's overlayfs shows an open reader the file as it was.
    if world.backend() != plywood::backend::BackendName::Overlay {
        let mut content = String::new();
        reader.read_to_string(&mut content).expect("read");
        assert_eq!(content, "before, after");
        assert_eq!(reader.metadata().expect("fstat").ino(), before);
    }
    drop(reader);
    shown.end();
}

pub fn a_working_directory_is_found_again(world: &World) {
    world.layer("1", "", |root| mkdir(&root.join("deep/er"), 0o755));
    let mounts = world.prepare("2", "1");
    let shown = world.show(&mounts);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "touch new && mkdir sub && cd sub && rmdir ../sub; cd ..; pwd -P"]);
    let done = shell.current_dir(shown.path().join("deep/er")).output().expect("sh");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(told.trim_end().ends_with("deep/er"), "{told}");
    shown.end();
}

pub fn chmod_is_kept(world: &World) {
    world.layer("1", "", |root| {
        write(&root.join("file"), "x");
        mkdir(&root.join("dir"), 0o755);
    });
    world.layer("2", "1", |root| {
        chmod(&root.join("file"), 0o4711);
        chmod(&root.join("dir"), 0o1777);
    });
    world.look("2", |root| {
        let mode = |name: &str| fs::metadata(root.join(name)).expect("stat").mode() & 0o7777;
        assert_eq!((mode("file"), mode("dir")), (0o4711, 0o1777));
    });
    world.look("1", |root| assert_eq!(fs::metadata(root.join("file")).expect("stat").mode() & 0o7777, 0o644));
}

pub fn remove_inside_of_walk(world: &World) {
    for n in 0..600 {
        world.prepare(&format!("active-{n}"), "");
    }
    let mut seen = 0;
    let each = |info: plywood::types::Info| {
        seen += 1;
        world.snapshotter.remove(&info.name)
    };
    world.snapshotter.walk(&Filters::everything(), each).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(seen, 600);
    assert_eq!(world.snapshotter.list(&Filters::everything()).unwrap_or_else(|e| panic!("{e}")), []);
}

pub fn remove_after_commit(world: &World) {
    world.layer("1", "", |root| write(&root.join("a"), "a"));
    world.layer("2", "1", |root| write(&root.join("b"), "b"));
    world.remove("2");
    world.look("1", |root| assert_eq!(read(&root.join("a")), "a"));
    world.remove("1");
}

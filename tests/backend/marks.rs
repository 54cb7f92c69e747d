//! Which layers of `plywood-fuse` the kernel's overlayfs can follow.

use crate::support::*;
use plywood::backend::followed::{Reader, kernel_cannot_follow};
use plywood::backend::open::BackendSettings;
use plywood::backend::{BackendName, Stage};
use plywood::error::ErrorKind;
use plywood::types::SnapshotId;
use plywood::types::SnapshotKind::{Active, View};
use plywood_fuse::layer::marks::Namespace::{self, Trusted, User};
use plywood_fuse::sys::node::mknod;
use plywood_fuse::sys::xattr::{SetMode, set};
use plywood_fuse::sys::{self, Place};
use plywood_fuse::testing::TempDir;
use plywood_fuse::types::Device;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

fn mark(root: &Path, name: &str, attribute: &CStr, value: &[u8]) {
    let dir = sys::open::open_root(root).expect("the layer");
    set(Place::At(dir.as_fd(), name.as_bytes()), attribute, value, SetMode::Any)
        .unwrap_or_else(|e| panic!("{name} {attribute:?}: {e}"));
}

/// A layer with what every reader follows.
fn layer() -> (TempDir, PathBuf) {
    let temp = TempDir::new();
    let layer = temp.path().join("layer");
    std::fs::create_dir_all(layer.join("d/e")).expect("directories");
    std::fs::write(layer.join("d/f"), "x").expect("a file");
    let dir = sys::open::open_root(&layer).expect("the layer");
    mknod(dir.as_fd(), b"hidden", libc::S_IFCHR, Device::default()).expect("a whiteout");
    // A file that only looks like one, as plywood-fuse keeps it.
    std::fs::write(layer.join("d/.wh.literal"), "x").expect("a file");
    mark(&layer, "d/.wh.literal", c"user.overlay.plywood.literal", b"y");
    mark(&layer, "d", c"user.overlay.origin", b"");
    mark(&layer, "d/f", c"user.mine", b"y");
    (temp, layer)
}

fn reader(namespace: Namespace) -> Reader {
    Reader { namespace, redirects: namespace == Trusted, metacopy: false }
}

#[test]
fn everything_that_the_kernel_does_not_follow_is_found() {
    type Case<'a> = (&'a str, &'a str, &'a CStr, &'a [u8], [bool; 2]);
    let cases: [Case<'_>; 13] = [
        // What, on what, and whether it is in the way of a mount with user.* and with trusted.* marks.
        ("a redirect", "d/e", c"user.overlay.redirect", b"/x", [true, true]),
        ("data below", "d/f", c"user.overlay.metacopy", b"", [true, true]),
        ("an opaque directory", "d/e", c"user.overlay.opaque", b"y", [false, true]),
        ("one that is not", "d/e", c"user.overlay.opaque", b"n", [false, false]),
        ("whiteouts as attributes", "d/e", c"user.overlay.opaque", b"x", [true, true]),
        ("one of them", "d/f", c"user.overlay.whiteout", b"y", [true, true]),
        ("a device that is none", "d/f", c"user.overlay.plywood.device", b"c:1:3", [true, true]),
        ("a root that is opaque", ".", c"user.fuseoverlayfs.opaque", b"y", [true, true]),
        ("an owner", "d/f", c"user.containers.override_stat", b"0:0:0644", [true, true]),
        ("an owner of the root", ".", c"user.fuseoverlayfs.override_stat", b"0:0:0755", [true, true]),
        ("a mark of another one", "d/f", c"user.overlay.impure", b"y", [false, false]),
        ("a mark one level down", "d/e", c"user.overlay.overlay.redirect", b"/x", [false, false]),
        ("nothing", "d/f", c"user.other", b"", [false, false]),
    ];
    for (what, name, attribute, value, expected) in cases {
        let (_temp, layer) = layer();
        for namespace in [User, Trusted] {
            let clean = kernel_cannot_follow(&layer, reader(namespace)).expect("a look");
            assert_eq!(clean, None, "the layer was not clean");
        }
        mark(&layer, name, attribute, value);
        for (namespace, expected) in [User, Trusted].into_iter().zip(expected) {
            let found = kernel_cannot_follow(&layer, reader(namespace)).expect("a look");
            assert_eq!(found, expected.then(|| PathBuf::from(name)), "{what}, {namespace:?}");
        }
    }
    for name in ["d/.wh.f", "d/e/.wh..wh..opq"] {
        let (_temp, layer) = layer();
        std::fs::write(layer.join(name), "").expect("a file");
        for namespace in [User, Trusted] {
            let found = kernel_cannot_follow(&layer, reader(namespace)).expect("a look");
            assert_eq!(found, Some(PathBuf::from(name)));
        }
    }
}

#[test]
fn redirects_of_root_are_followed_if_the_mount_says_so() {
    if !may_be_root() {
        return;
    }
    let (_temp, layer) = layer();
    mark(&layer, "d/e", c"trusted.overlay.redirect", b"/x");
    let follows = |redirects| {
        let reader = Reader { namespace: Trusted, redirects, metacopy: false };
        kernel_cannot_follow(&layer, reader).expect("a look").is_none()
    };
    assert!(follows(true) && !follows(false));
    mark(&layer, "d/f", c"trusted.overlay.metacopy", b"");
    assert!(!follows(true), "the data is somewhere else");
}

#[test]
fn overlay_refuses_a_chain_and_names_what_is_in_the_way() {
    as_both("marks::overlay_refuses_a_chain_and_names_what_is_in_the_way", || {
        let settings = BackendSettings { overlay_options: vec!["userxattr".into()], ..quick() };
        let store = Store::with(BackendName::Overlay, &settings);
        for (id, parents) in [(1, &[][..]), (2, &[1]), (3, &[2, 1])] {
            std::fs::create_dir(store.make(id, Active, parents).join("d")).expect("a directory");
        }
        let chain = ids(&[2, 1]);
        store.backend.mounts(request(3, Active, &chain)).expect("nothing is in the way");
        // In the upper directory, which anybody may have changed meanwhile.
        mark(&store.content(3), "d", c"user.overlay.redirect", b"/x");
        let refused = store.backend.mounts(request(3, Active, &chain)).expect_err("a redirect");
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        let path = store.content(3).join("d").display().to_string();
        assert!(refused.to_string().contains(&path) && refused.to_string().contains("fuse"), "{refused}");
        // In a layer.
        let chain = ids(&[3, 2, 1]);
        let stage = Stage { id: SnapshotId(4), kind: Active, chain: &chain, owner: None };
        let refused = store.backend.stage(stage, &()).expect_err("a redirect");
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("layer 3"), "{refused}");
        assert_eq!(store.names(), ["1", "2", "3"]);
        assert!(store.backend.mounts(request(5, View, &chain)).is_err());
        // The backend that reads everything takes the same directories.
        let fuse = plywood::backend::open::open(BackendName::Fuse, &store.layout, &quick()).expect("fuse");
        fuse.mounts(request(5, View, &chain)).expect("fuse reads everything");
    });
}

#[test]
fn a_committed_layer_is_looked_through_once() {
    let settings = BackendSettings { overlay_options: vec!["userxattr".into()], ..quick() };
    let store = Store::with(BackendName::Overlay, &settings);
    let base = store.make(1, Active, &[]);
    std::fs::create_dir(base.join("d")).expect("a directory");
    let chain = ids(&[1]);
    store.make(2, Active, &[1]);
    store.backend.mounts(request(2, Active, &chain)).expect("nothing is in the way");
    // Committed layers do not change; this one does, to see whether anybody looks.
    mark(&base, "d", c"user.overlay.redirect", b"/x");
    store.backend.mounts(request(2, Active, &chain)).expect("nobody looks again");
    let another = plywood::backend::open::open(BackendName::Overlay, &store.layout, &settings).expect("open");
    assert!(another.mounts(request(2, Active, &chain)).is_err(), "the next process looks");
}

//! The overlay by paths: what a program sees that uses [`View`] instead of a mount.
//!
//! Runs without privilege and without a FUSE device, and says the same as root. Owners are set by a view of root
//! first, so it does not matter who runs the tests.

mod common;

#[path = "view/data.rs"]
mod data;
#[path = "view/names.rs"]
mod names;
#[path = "view/paths.rs"]
mod paths;
#[path = "view/permissions.rs"]
mod permissions;
#[path = "view/stories.rs"]
mod stories;
#[path = "view/xattrs.rs"]
mod xattrs;

use plywood_fuse::overlay::Overlay;
use plywood_fuse::types::Identity;
use plywood_fuse::view::View;

/// Some user; most files in these tests belong to root.
const USER: u32 = 4000;
/// Its group.
const GROUP: u32 = 4100;

fn user() -> Identity {
    Identity::user(USER, GROUP)
}

/// Another user, in another group.
fn stranger() -> Identity {
    Identity::user(USER + 1, GROUP + 1)
}

/// A file or directory that belongs to somebody.
fn give(root: &View, path: &str, owner: (u32, u32), perm: u32) {
    root.chown(path, Some(owner.0), Some(owner.1)).expect("root gives files away");
    root.set_permissions(path, perm).expect("root sets modes");
}

/// A tree whose root directory belongs to root, mode 0755.
fn rooted(layers: &common::Layers) -> View {
    let root = layers.root();
    give(&root, "/", (0, 0), 0o755);
    root
}

#[track_caller]
fn assert_all_given_back(overlay: &Overlay) {
    assert_eq!(overlay.known_inodes(), 1, "an inode was not given back");
}

//! Random operations on an overlay in this process, beside a reference tree.
//!
//! 100,000 operations in all, with those of `model_mounted.rs`: `PLYWOOD_MODEL_OPS` asks for another number and
//! `PLYWOOD_MODEL_SEED` for other sequences. What once failed stands in `model/stories.rs`. The kernel's
//! overlayfs can be asked by root only; without root that test fails, unless `PLYWOOD_SKIP_MOUNTED=1` says to
//! leave it out.

#[path = "model/stories.rs"]
mod stories;

use plywood_fuse::overlay::{Metacopy, Renames};
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::testing::inside::Inside;
use plywood_fuse::testing::model::{Subject, Variant};
use plywood_fuse::testing::suite;
use plywood_fuse::testing::tree::Dialect;

fn inside(variant: &Variant) -> Box<dyn Subject> {
    Box::new(Inside::new(variant.settings()))
}

/// The variant for who runs the test.
fn for_me(variant: Variant) -> Variant {
    if effective_uid() == 0 { variant } else { Variant { privileged: false, user_xattr: true, ..variant } }
}

fn random(variant: Variant, operations: u64) {
    suite::random(&for_me(variant), operations, &inside);
}

fn kernel_layers() -> Variant {
    Variant { judge: true, dialects: vec![Dialect::Kernel, Dialect::Xattr], ..Variant::usual() }
}

#[test]
fn redirects_show_the_tree_of_the_reference() {
    random(Variant::usual(), 14_000);
}

#[test]
fn renaming_by_copies_shows_the_tree_of_the_reference() {
    let variant = Variant { renames: Renames::Copy, metacopy: Metacopy::Off, ..Variant::usual() };
    random(variant, 12_000);
}

#[test]
fn refusing_to_rename_directories_shows_the_tree_of_the_reference() {
    random(Variant { renames: Renames::Refuse, ..Variant::usual() }, 6_000);
}

#[test]
fn whiteout_files_show_the_tree_of_the_reference() {
    random(Variant { whiteout_files: true, ..Variant::usual() }, 12_000);
}

#[test]
fn marks_below_user_show_the_tree_of_the_reference() {
    random(Variant { user_xattr: true, ..Variant::usual() }, 8_000);
}

#[test]
fn owners_in_attributes_show_the_tree_of_the_reference() {
    random(Variant { overrides: true, ..Variant::usual() }, 10_000);
}

#[test]
fn the_kernel_shows_the_same_tree_of_our_layers() {
    if suite::may_mount() {
        random(kernel_layers(), 10_000);
    }
}

#[test]
fn the_kernel_shows_the_same_tree_of_layers_with_marks_below_user() {
    if suite::may_mount() {
        let plain = Variant { renames: Renames::Copy, metacopy: Metacopy::Off, ..kernel_layers() };
        random(Variant { user_xattr: true, ..plain }, 6_000);
    }
}

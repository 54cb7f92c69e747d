//! Random operations on an overlay in this process, beside a reference tree.
//!
//! 100,000 operations in all, with those of `model_mounted.rs`: `PLYWOOD_MODEL_OPS` asks for another number and
//! `PLYWOOD_MODEL_SEED` for other sequences. What once failed stands in `model/stories.rs`. The kernel's
//! overlayfs can be asked by root only, of the machine or of a user namespace; without that those tests fail,
//! unless `PLYWOOD_SKIP_MOUNTED=1` says to leave them out.

#[path = "model/stories.rs"]
mod stories;

use plywood_fuse::overlay::{Metacopy, Renames};
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::testing::TempDir;
use plywood_fuse::testing::inside::Inside;
use plywood_fuse::testing::model::{Subject, Variant};
use plywood_fuse::testing::suite;
use plywood_fuse::testing::tree::Dialect;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

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

/// Set for a test that was started again as somebody else.
const AGAIN: &str = "PLYWOOD_MODEL_AGAIN";

/// The usual "nobody".
const NOBODY: u32 = 65_534;

/// Starts one test again without privilege, below `before` if that is a program.
fn again_as_nobody(test: &str, before: &[&str]) {
    let temp = TempDir::new();
    let program = temp.path().join("test");
    plywood_fuse::testing::copy_program(&std::env::current_exe().expect("our own path"), &program);
    let readable = std::fs::Permissions::from_mode(0o755);
    let opened = [temp.path(), &program].map(|p| std::fs::set_permissions(p, readable.clone()));
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    let mut words: Vec<&Path> = before.iter().map(Path::new).collect();
    words.push(&program);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(AGAIN, "1").env("TMPDIR", temp.path()).current_dir(temp.path());
    if effective_uid() == 0 {
        chown(temp.path(), Some(NOBODY), Some(NOBODY)).expect("root can give a directory away");
        command.uid(NOBODY).gid(NOBODY);
    }
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn is_again() -> bool {
    std::env::var_os(AGAIN).is_some()
}

#[test]
fn without_privilege_the_tree_of_the_reference_is_shown() {
    if effective_uid() == 0 && !is_again() {
        return again_as_nobody("without_privilege_the_tree_of_the_reference_is_shown", &[]);
    }
    random(Variant::usual(), 6_000);
}

#[test]
fn the_kernel_shows_the_same_tree_in_a_user_namespace() {
    if !is_again() {
        if suite::may_unshare() {
            let before = ["unshare", "--user", "--map-root-user", "--mount", "--"];
            again_as_nobody("the_kernel_shows_the_same_tree_in_a_user_namespace", &before);
        }
        return;
    }
    let plain = Variant { renames: Renames::Copy, metacopy: Metacopy::Off, ..kernel_layers() };
    suite::random(&Variant { privileged: false, user_xattr: true, ..plain }, 4_000, &inside);
}

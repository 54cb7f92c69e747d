//! Deleting trees that were made to be hard to delete.

use crate::support::*;
use plywood::backend::delete::delete_tree;
use plywood::backend::measure::measure;
use plywood::error::ErrorKind;
use plywood_fuse::testing::TempDir;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

fn victim() -> (TempDir, PathBuf) {
    let temp = TempDir::new();
    let victim = temp.path().join("victim");
    std::fs::create_dir(&victim).expect("a directory");
    (temp, victim)
}

#[test]
fn ten_thousand_levels_are_measured_and_deleted_with_few_descriptors() {
    const NAME: &str = "deleting::ten_thousand_levels_are_measured_and_deleted_with_few_descriptors";
    if again().is_none() {
        let before = ["sh", "-c", "ulimit -n 64; ulimit -s 512; exec \"$0\" \"$@\""];
        let status = Elsewhere::new(Who::Same).run(NAME, "few", &before, &[]);
        assert!(status.success(), "{status}");
        return;
    }
    let (_temp, victim) = victim();
    deep(&victim, 10_000);
    // A second way down, so that the way up leads to more.
    deep(&victim.join("d/d/d/d"), 0);
    assert_eq!(measure(&victim, &()).expect("usage").inodes, 10_003);
    delete_tree(&victim).expect("delete");
    assert!(!victim.exists());
}

#[test]
fn a_symlink_is_deleted_and_not_followed() {
    let (temp, victim) = victim();
    let outside = temp.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("f"), "x").expect("a file");
    std::os::unix::fs::symlink(&outside, victim.join("dir")).expect("a symlink");
    std::os::unix::fs::symlink(outside.join("f"), victim.join("file")).expect("a symlink");
    delete_tree(&victim).expect("delete");
    assert!(!victim.exists() && outside.join("f").exists());
    let link = temp.path().join("link");
    std::os::unix::fs::symlink(&outside, &link).expect("a symlink");
    delete_tree(&link).expect("delete");
    assert!(link.symlink_metadata().is_err() && outside.join("f").exists());
    std::fs::write(temp.path().join("plain"), "x").expect("a file");
    delete_tree(&temp.path().join("plain")).expect("delete");
    assert!(!temp.path().join("plain").exists());
}

#[test]
fn directories_that_lock_their_owner_out_are_deleted() {
    as_both("deleting::directories_that_lock_their_owner_out_are_deleted", || {
        let (_temp, victim) = victim();
        for mode in [0o000, 0o100, 0o400, 0o200, 0o500, 0o300] {
            let dir = victim.join(format!("{mode:o}"));
            std::fs::create_dir_all(dir.join("inner/inner")).expect("directories");
            std::fs::write(dir.join("inner/f"), "x").expect("a file");
            for path in [dir.join("inner"), dir] {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
            }
        }
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o000)).expect("ours");
        delete_tree(&victim).expect("delete");
        assert!(!victim.exists());
    });
}

#[test]
fn a_mount_in_a_tree_is_busy_and_everything_else_goes() {
    if !may_be_root() {
        return;
    }
    let (temp, victim) = victim();
    let outside = temp.path().join("outside");
    std::fs::create_dir_all(victim.join("a/mounted")).expect("directories");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("f"), "x").expect("a file");
    std::fs::write(victim.join("a/file"), "x").expect("a file");
    for name in ["b", "a/z", "file"] {
        std::fs::write(victim.join(name), "x").expect("a file");
    }
    // On the same file system, so that no device number tells.
    let refused = plywood::sys::mount::in_private_namespace(|| {
        rustix::mount::mount_bind(&outside, victim.join("a/mounted")).expect("a bind mount");
        rustix::mount::mount_bind(outside.join("f"), victim.join("a/file")).expect("a bind mount");
        let refused = delete_tree(&victim);
        assert!(victim.join("a/mounted/f").exists() && victim.join("a/file").exists());
        refused
    });
    let refused = refused.expect("a namespace").expect_err("something is mounted");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert!(refused.to_string().contains("unmount"), "{refused}");
    assert!(outside.join("f").exists());
    let left: Vec<_> = std::fs::read_dir(victim.join("a")).expect("a directory").flatten().collect();
    assert_eq!((left.len(), std::fs::read_dir(&victim).expect("a directory").count()), (2, 1));
    delete_tree(&victim).expect("nothing is mounted any more");
    assert!(!victim.exists());
}

#[test]
fn files_of_a_user_namespace_are_named_with_what_to_do() {
    const NAME: &str = "deleting::files_of_a_user_namespace_are_named_with_what_to_do";
    if again().is_none() {
        if !may_be_root() {
            return;
        }
        let elsewhere = Elsewhere::new(Who::Nobody);
        let victim = elsewhere.temp.path().join("victim");
        std::fs::create_dir_all(victim.join("foreign")).expect("directories");
        for name in ["foreign/f", "own"] {
            std::fs::write(victim.join(name), "x").expect("a file");
        }
        std::fs::create_dir(victim.join("foreign-empty")).expect("a directory");
        chown(&victim, Some(NOBODY), Some(NOBODY)).expect("root can give it away");
        for name in ["foreign", "foreign-empty"] {
            chown(victim.join(name), Some(100_033), Some(100_033)).expect("root can give it away");
            std::fs::set_permissions(victim.join(name), std::fs::Permissions::from_mode(0o700))
                .expect("root");
        }
        let status = elsewhere.run(NAME, "nobody", &[], &[("PLACE", victim.as_os_str())]);
        assert!(status.success(), "{status}");
        let left: Vec<_> =
            std::fs::read_dir(&victim).expect("it stays").flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["foreign"], "what could go did not");
        return;
    }
    let victim = PathBuf::from(std::env::var_os("PLACE").expect("where it is"));
    let refused = delete_tree(Path::new(&victim)).expect_err("not his");
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    let words = refused.to_string();
    assert!(words.contains("100033") && words.contains("user namespace"), "{words}");
}

#[test]
fn what_is_gone_already_is_deleted() {
    let (temp, _) = victim();
    delete_tree(&temp.path().join("nothing")).expect("nothing to do");
    delete_tree(&temp.path().join("no/such/directory")).expect("nothing to do");
    let nameless = delete_tree(Path::new("/")).expect_err("no entry of a directory");
    assert_eq!(nameless.kind(), ErrorKind::InvalidArgument);
}

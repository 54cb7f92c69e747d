//! Full copies of trees that were made to be hard to copy.

use crate::support::*;
use parking_lot::Mutex;
use plywood::backend::copy_tree::copy_tree;
use plywood::backend::directory::Owner;
use plywood::backend::{BackendName, Progress};
use plywood::error::ErrorKind;
use plywood::types::SnapshotKind::Active;
use plywood_fuse::testing::TempDir;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

/// A directory with an empty one beside it.
fn two() -> (TempDir, PathBuf, PathBuf) {
    let temp = TempDir::new();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    for dir in [&from, &to] {
        std::fs::create_dir(dir).expect("a directory");
    }
    (temp, from, to)
}

#[test]
fn a_copy_cannot_be_told_from_the_original() {
    as_both("copying::a_copy_cannot_be_told_from_the_original", || {
        for workers in [0, 1, 8] {
            let (temp, from, to) = two();
            zoo(&from);
            let before = tree(&from);
            copy_tree(&from, &to, Owner::Maker, workers, &()).unwrap_or_else(|e| panic!("{workers}: {e}"));
            assert_same(&from, &to);
            assert_eq!(tree(&from), before, "the original changed");
            assert!(!before.names_of.is_empty() && before.entries.len() > 25, "the zoo is empty");
            let sizes = |dir: &PathBuf| std::fs::metadata(dir.join("sparse")).expect("a file").blocks() * 512;
            assert!(sizes(&to) <= sizes(&from).max(1 << 20), "holes were filled: {}", sizes(&to));
            plywood::backend::delete::delete_tree(&from).expect("the zoo can be deleted");
            plywood::backend::delete::delete_tree(&to).expect("its copy, too");
            drop(temp);
        }
    });
}

#[test]
fn a_deep_tree_is_copied_with_few_descriptors() {
    const NAME: &str = "copying::a_deep_tree_is_copied_with_few_descriptors";
    const DEPTH: usize = 3000;
    if again().is_none() {
        let before = ["sh", "-c", "ulimit -n 400; exec \"$0\" \"$@\""];
        let status = Elsewhere::new(Who::Same).run(NAME, "few", &before, &[]);
        assert!(status.success(), "{status}");
        return;
    }
    let (_temp, from, to) = two();
    deep(&from, DEPTH);
    let copied = copy_tree(&from, &to, Owner::Maker, 4, &()).expect("a copy");
    assert_eq!(copied.entries, DEPTH as u64 + 1);
    assert_same(&from, &to);
    for dir in [&from, &to] {
        plywood::backend::delete::delete_tree(dir).expect("it can be deleted");
    }
}

#[test]
fn many_files_in_many_directories_are_copied_with_few_descriptors() {
    const NAME: &str = "copying::many_files_in_many_directories_are_copied_with_few_descriptors";
    if again().is_none() {
        let before = ["sh", "-c", "ulimit -n 400; exec \"$0\" \"$@\""];
        let status = Elsewhere::new(Who::Same).run(NAME, "few", &before, &[]);
        assert!(status.success(), "{status}");
        return;
    }
    let (_temp, from, to) = two();
    std::fs::write(from.join("one"), "the same inode everywhere").expect("a file");
    for count in 0..600 {
        let dir = from.join(format!("{}/{count}", count % 7));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join("f"), count.to_string()).expect("a file");
        std::fs::hard_link(from.join("one"), dir.join("one")).expect("a link");
    }
    copy_tree(&from, &to, Owner::Maker, 8, &()).expect("a copy");
    assert_same(&from, &to);
}

#[derive(Default)]
struct Told(Mutex<Vec<(u64, u64)>>);

impl Progress for Told {
    fn copied(&self, bytes: u64, entries: u64) {
        self.0.lock().push((bytes, entries));
    }
}

#[test]
fn progress_only_grows_and_ends_with_everything() {
    let (_temp, from, to) = two();
    for count in 0..500 {
        std::fs::write(from.join(count.to_string()), vec![1; 100]).expect("a file");
    }
    sparse(&from.join("large"), &[(0, 1 << 20), (40 << 20, 1 << 20)], 64 << 20);
    let told = Told::default();
    let copied = copy_tree(&from, &to, Owner::Maker, 4, &told).expect("a copy");
    let told = told.0.into_inner();
    assert!(told.len() > 3, "{told:?}");
    assert!(told.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1), "{told:?}");
    assert_eq!(told.last(), Some(&(500 * 100 + (64 << 20), 501)));
    assert_eq!((copied.bytes, copied.entries), (500 * 100 + (64 << 20), 501));
}

#[test]
fn a_plain_user_is_told_of_devices_and_of_files_of_others() {
    const NAME: &str = "copying::a_plain_user_is_told_of_devices_and_of_files_of_others";
    if again().is_none() {
        if !may_be_root() {
            return;
        }
        let elsewhere = Elsewhere::new(Who::Nobody);
        let prepared = |name: &str, fill: &dyn Fn(&PathBuf)| {
            let dir = elsewhere.temp.path().join(name);
            std::fs::create_dir(&dir).expect("a directory");
            fill(&dir);
        };
        prepared("device", &|dir| {
            let made =
                std::process::Command::new("mknod").arg(dir.join("null")).args(["c", "1", "3"]).status();
            assert!(made.expect("mknod").success());
        });
        prepared("foreign", &|dir| {
            std::fs::write(dir.join("f"), "x").expect("a file");
            chown(dir.join("f"), Some(100_005), Some(100_005)).expect("root can give it away");
        });
        let status = elsewhere.run(NAME, "nobody", &[], &[("PLACE", elsewhere.temp.path().as_os_str())]);
        assert!(status.success(), "{status}");
        return;
    }
    let place = PathBuf::from(std::env::var_os("PLACE").expect("where it is"));
    for (name, word) in [("device", "1:3"), ("foreign", "100005")] {
        let (_temp, _, to) = two();
        let owner = Owner::Inherited(0, 0);
        let refused = copy_tree(&place.join(name), &to, owner, 0, &()).expect_err(name);
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
    }
}

#[test]
fn what_is_mounted_in_a_tree_is_not_copied() {
    if !may_be_root() {
        return;
    }
    for (name, source) in [("dir", "/etc"), ("file", "/etc/passwd")] {
        let (_temp, from, to) = two();
        std::fs::create_dir(from.join("dir")).expect("a directory");
        std::fs::write(from.join("file"), "x").expect("a file");
        let refused = plywood::sys::mount::in_private_namespace(|| {
            rustix::mount::mount_bind(source, from.join(name)).expect("a bind mount");
            copy_tree(&from, &to, Owner::Maker, 2, &())
        });
        let refused = refused.expect("a namespace").expect_err("something is mounted");
        assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
        assert!(refused.to_string().contains(name), "{refused}");
    }
}

#[test]
fn a_native_snapshot_is_its_parent_whatever_that_holds() {
    as_both("copying::a_native_snapshot_is_its_parent_whatever_that_holds", || {
        let store = Store::new(BackendName::Native);
        let base = store.make(1, Active, &[]);
        zoo(&base);
        let copy = store.make(2, Active, &[1]);
        assert_same(&base, &copy);
        for id in [1, 2] {
            let retired =
                store.backend.retire(plywood::types::SnapshotId(id)).expect("retire").expect("there");
            store.backend.delete(&retired).expect("delete");
        }
        assert_eq!(store.names(), Vec::<String>::new());
    });
}

//! Somebody changes the tree while an archive is applied to it.

use super::support::{Tar, put};
use plywood::apply::{DirTarget, SameOwner, apply};
use plywood_fuse::testing::TempDir;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Everything below a directory, with content.
fn inventory(root: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("list").flatten() {
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            let content =
                if meta.is_file() { fs::read_to_string(&path).expect("read") } else { String::new() };
            found.push((path.display().to_string(), format!("{:?} {content}", meta.permissions())));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_lands_outside_while_directories_turn_into_symlinks() {
    let temp = TempDir::new();
    let (root, outside) = (temp.path().join("root"), temp.path().join("outside"));
    for dir in ["a/b", "x"] {
        put(&outside, &format!("{dir}/f"), "safe");
        put(&outside, &format!("{dir}/old"), "safe");
    }
    let before = inventory(&outside);
    put(&root, "a/b/old", "old");
    let (a, b, spare) = (root.join("a"), root.join("a/b"), root.join("spare"));
    let done = AtomicBool::new(false);
    let (mut rounds, mut finished) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                turn += 1;
                let (dir, to) =
                    if turn % 2 == 0 { (&a, outside.join("a")) } else { (&b, outside.join("a/b")) };
                // What fails was changed by the other thread just then.
                let _ = fs::rename(dir, &spare);
                let _ = symlink(to, dir);
                std::thread::yield_now();
                let _ = fs::remove_file(dir);
                let _ = fs::rename(&spare, dir);
            }
        });
        let tar = Tar::new()
            .dir("a", 0o777)
            .dir("a/b", 0o777)
            .file("a/b/f", "escaped")
            .link("a/b/f", "a/b/g")
            .mark("a/b/.wh.old")
            .file("x", "")
            .dir("a/b/c", 0o777)
            .file("a/b/c/f", "escaped")
            .symlink("x", "a/l")
            .file("a/old", "escaped")
            .file("a/b/old", "escaped")
            .mark("a/b/.wh..wh..opq")
            .mark("a/.wh.b");
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            let mut target = DirTarget::plain(&root, SameOwner::Keep).expect("open");
            rounds += 1;
            finished += u32::from(apply(&mut tar.source(), &mut target, &()).is_ok());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(inventory(&outside), before, "{rounds} rounds, {finished} of them to the end");
    assert!(rounds > 20, "{rounds} rounds");
}

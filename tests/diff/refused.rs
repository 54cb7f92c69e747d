//! What a layer cannot say, and what goes wrong on the way.

use crate::support::{Changing, Two, changes, layer, plain};
use plywood::archive::Writer;
use plywood::backend::Progress;
use plywood::diff::{self, DiffOptions, Tree};
use plywood::error::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is done to a tree.
type Change = fn(&std::path::Path);

#[test]
fn a_changed_file_with_the_name_of_a_whiteout_cannot_be_written() {
    let cases: [(&str, Change); 4] = [
        (".wh.new", |b| {
            b.file(".wh.new", "x", 0o644);
        }),
        ("d/.wh.new", |b| {
            b.file("d/.wh.new", "x", 0o644);
        }),
        (".wh.old", |b| {
            b.remove(".wh.old");
        }),
        (".wh.dir", |b| {
            b.file(".wh.dir/f", "x", 0o644);
        }),
    ];
    for (path, change) in cases {
        let two = Two::new(
            |a| {
                a.dir("d", 0o755).file(".wh.old", "x", 0o644).dir(".wh.dir", 0o755);
            },
            change,
        );
        let error = two.try_layer(&DiffOptions::default()).expect_err(path);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().starts_with(&format!("diff: {path}: its name begins with")), "{error}");
    }
    let two = Two::new(
        |a| {
            a.file(".wh.old", "x", 0o644);
        },
        |b| {
            b.file("new", "x", 0o644);
        },
    );
    assert_eq!(two.members(), ["new 644 \"x\""], "what did not change does not matter");
}

/// Does something to a tree as soon as one member was written.
struct Watch(std::path::PathBuf, Change, AtomicBool);

impl Progress for Watch {
    fn copied(&self, _: u64, entries: u64) {
        if entries == 1 && !self.2.swap(true, Ordering::Relaxed) {
            (self.1)(&self.0);
        }
    }
}

#[test]
fn a_file_that_changes_its_size_meanwhile_is_an_error() {
    let cases: [(&str, Change); 3] = [
        ("it grew", |b| {
            b.file("b", &"x".repeat(300_001), 0o644);
        }),
        ("it shrank", |b| {
            b.file("b", "x", 0o644);
        }),
        ("it was replaced or removed", |b| {
            b.remove("b");
        }),
    ];
    for (words, change) in cases {
        let two = Two::new(
            |_| (),
            |b| {
                b.file("a", "x", 0o644).file("b", &"x".repeat(300_000), 0o644);
            },
        );
        let watch = Watch(two.new.clone(), change, AtomicBool::new(false));
        let mut writer = Writer::new(Vec::new());
        let options = DiffOptions::default();
        let written = diff::write_layer(&Tree::Empty, &plain(&two.new), &mut writer, &options, &watch);
        let error = written.expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

/// Gives up after so many entries.
struct Patience(u64, AtomicU64);

impl Progress for Patience {
    fn copied(&self, _: u64, entries: u64) {
        self.1.store(entries, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.1.load(Ordering::Relaxed) >= self.0
    }
}

#[test]
fn a_caller_who_gives_up_is_heard() {
    let two = Two::new(
        |_| (),
        |b| {
            for n in 0..50 {
                b.file(&format!("f{n}"), "x", 0o644);
            }
        },
    );
    let patience = Patience(10, AtomicU64::new(0));
    let mut writer = Writer::new(Vec::new());
    let options = DiffOptions::default();
    let error = diff::write_layer(&Tree::Empty, &plain(&two.new), &mut writer, &options, &patience);
    assert_eq!(error.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(patience.1.load(Ordering::Relaxed), 10);
}

#[test]
fn what_the_caller_refuses_ends_the_walk() {
    let two = Two::new(
        |_| (),
        |b| {
            b.file("a", "x", 0o644).file("b", "x", 0o644);
        },
    );
    let mut count = 0;
    let refused = diff::changes(&Tree::Empty, &plain(&two.new), &DiffOptions::default(), &(), &mut |_| {
        count += 1;
        Err(plywood::error::Error::new(ErrorKind::NoSpace, "test", "", "full"))
    });
    assert_eq!(refused.expect_err("refused").kind(), ErrorKind::NoSpace);
    assert_eq!(count, 1);
}

#[test]
fn deep_trees_need_few_descriptors_and_too_deep_ones_are_refused() {
    use plywood_fuse::sys;
    use std::os::fd::AsFd;
    // Names of one byte: the deepest path that fits has half as many of them as bytes.
    for (depth, fits) in [(2000, true), (2100, false)] {
        let two = Two::new(|_| (), |_| ());
        for root in [&two.base, &two.new] {
            let mut dir = sys::open::open_root(root).expect("a directory");
            for _ in 0..depth {
                sys::node::mkdir(dir.as_fd(), b"d", 0o755).expect("a directory");
                dir =
                    sys::open::open_dir_at(dir.as_fd(), b"d", sys::open::DirMode::Base).expect("a directory");
            }
            if root == &two.new {
                sys::node::mkdir(dir.as_fd(), b"e", 0o700).expect("a directory");
            }
        }
        let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
        let before = descriptors();
        let found = changes(&plain(&two.base), &plain(&two.new), &DiffOptions::default());
        match found {
            Ok(found) => {
                assert!(fits);
                assert_eq!(found, [format!("add {}e", "d/".repeat(depth))]);
                let bytes =
                    layer(&plain(&two.base), &plain(&two.new), &DiffOptions::default()).expect("a layer");
                assert!(bytes.len() > depth * 512);
            }
            Err(error) => {
                assert!(!fits);
                assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
            }
        }
        assert!(descriptors() <= before + 40, "other tests open some too");
        // Deeper than the standard library removes.
        let done = std::process::Command::new("rm").arg("-rf").arg("--").args([&two.base, &two.new]).status();
        assert!(done.expect("rm").success());
    }
}

#[test]
fn reading_a_tree_does_not_change_it() {
    let two = Two::new(
        |a| {
            a.file("f", "x", 0o644).times("f", 1000, 0);
        },
        |b| {
            b.file("g", "x", 0o644);
        },
    );
    let times = || {
        let meta = std::fs::metadata(two.new.join("f")).expect("a file");
        (meta.mtime(), meta.ctime(), meta.ctime_nsec())
    };
    let before = times();
    two.layer();
    assert_eq!(times(), before);
}

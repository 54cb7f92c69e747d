//! A server that is killed in the middle of a change: the next one shows what was before or what was to be.
//!
//! Each story is one operation. This program runs itself as a child that ends before the n-th system call that
//! changes a file (see `sys::changing`), for every n until the operation completes. After each, the layers are
//! opened again, and
//!
//! * the merged tree is the one before the operation or the one after it, or a mixture that the story allows
//!   and gives the reason for;
//! * the lower layers are as they were, byte for byte and time for time;
//! * the work directory is empty;
//! * if the operation had not happened it can be done again, with the same result.
//!
//! Compared are kind, mode, owner, size, content, target, device, attributes, which names share an inode, and for
//! all but directories whether the time of modification is the old one. A directory may show a new time where no
//! name changed: its time is put back after a copy was renamed into it, and a crash can come in between.

mod common;
#[path = "crash/stories.rs"]
mod stories;

use common::{Layers, fnv};
use plywood_fuse::idmap::OverrideName;
use plywood_fuse::layer::probe::Wishes;
use plywood_fuse::layer::upper::{Durability, OverridePolicy};
use plywood_fuse::overlay::{Metacopy, Renames, Settings};
use plywood_fuse::sys::changing::{CRASHED, end_before};
use plywood_fuse::types::{Identity, Kind, SetTime, Time};
use plywood_fuse::view::View;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use stories::{DIRECTORIES, FILES, MAKING, NAMES, OLD, OPENING, Story};

/// Lines of a tree by path.
type Tree = BTreeMap<PathBuf, String>;

/// How many lower layers a story has.
const LOWERS: usize = 2;

/// No operation here changes that often.
const MANY: u64 = 500;

/// Set for the child: the story, the variant, the change before which it ends, and where the layers are.
const CHILD: &str = "PLYWOOD_CRASH_CHILD";

/// Ways in which the same operation is done on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As root of the machine would have it.
    Usual,
    /// Directories are renamed by copying them, and no file has its data below.
    Copies,
    /// Whiteouts are files.
    WhiteoutFiles,
    /// Owners and modes are kept in attributes.
    Overrides,
}

impl Way {
    fn named(name: &str) -> Way {
        let all = [Way::Usual, Way::Copies, Way::WhiteoutFiles, Way::Overrides];
        all.into_iter().find(|way| format!("{way:?}") == name).expect("a way")
    }

    fn settings(self) -> Settings {
        let mut settings = Settings::default();
        // A process ends here, not a machine.
        settings.upper.durability = Durability::Volatile;
        // Without privilege marks are below `user.` anyway.
        let user_xattr = if self == Way::Usual { None } else { Some(true) };
        settings.upper.wishes = Wishes { user_xattr, whiteout_files: self == Way::WhiteoutFiles };
        if self == Way::Copies {
            settings.renames = Renames::Copy;
            settings.metacopy = Metacopy::Off;
        }
        if self == Way::Overrides {
            settings.upper.overrides = OverridePolicy::Always(OverrideName::UserContainers);
        }
        settings
    }

    fn open(self, layers: &Layers) -> View {
        layers.open_with(self.settings()).as_user(Identity::root())
    }
}

/// The layers of a story, as they are before its operation.
fn staged(story: &Story, way: Way) -> Layers {
    let layers = Layers::new(LOWERS);
    (story.layers)(&layers);
    let view = way.open(&layers);
    (story.first)(&view);
    // So that what an operation did not touch can be told.
    let old = Some(SetTime::At(Time { secs: OLD, nanos: 0 }));
    for entry in view.walk("/").expect("a walk") {
        let path = entry.expect("an entry").path;
        if std::fs::symlink_metadata(layers.upper.join(&path)).is_ok() {
            view.set_symlink_times(&path, old, old).expect("times are set");
        }
    }
    layers
}

fn tree(view: &View) -> Tree {
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut tree = Tree::new();
    let entries = view.walk("/").expect("a walk").map(|e| e.expect("an entry"));
    for entry in entries {
        let (path, attr) = (&entry.path, &entry.attr);
        let mut line = format!("{:?} {:o} {}:{}", attr.kind, attr.perm, attr.uid, attr.gid);
        let told = match attr.kind {
            Kind::File => {
                let content = view.read(path).expect("content");
                write!(line, " {} bytes {:x}", content.len(), fnv(&content))
            }
            Kind::Symlink => write!(line, " -> {:?}", view.read_link(path).expect("target")),
            _ => write!(line, " {:?}", attr.device),
        };
        told.expect("a string takes all");
        if attr.kind != Kind::Dir {
            let first = first_names.entry(attr.ino.0).or_insert_with(|| path.clone());
            let time = if attr.mtime.secs == OLD { "old" } else { "new" };
            write!(line, " {time}, with {}, {} links", first.display(), attr.nlink)
                .expect("a string takes all");
        }
        if attr.kind != Kind::Symlink {
            for name in view.xattrs(path).expect("attributes") {
                let value = view.xattr(path, &name).expect("an attribute").unwrap_or_default();
                write!(line, " {}={}", name.escape_ascii(), value.escape_ascii())
                    .expect("a string takes all");
            }
        }
        tree.insert(entry.path, line);
    }
    tree
}

fn differences(a: &Tree, b: &Tree) -> String {
    let mut text = String::new();
    let paths: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    for path in paths {
        if a.get(path) != b.get(path) {
            let _ = writeln!(text, "  {}\n    {:?}\n    {:?}", path.display(), a.get(path), b.get(path));
        }
    }
    text
}

/// Runs a story with a crash before each of its changes.
fn crash_everywhere(story: &Story, way: Way) {
    let layers = staged(story, way);
    let before = tree(&way.open(&layers));
    let view = way.open(&layers);
    (story.operation)(&view).unwrap_or_else(|e| panic!("{}, {way:?}: {e}", story.name));
    drop(view);
    let after = tree(&way.open(&layers));
    assert!(story.same || before != after, "{}, {way:?}: nothing happened", story.name);
    for change in 1..MANY {
        let layers = staged(story, way);
        let lowers = layers.lower_state();
        let words = format!("{}|{way:?}|{change}|{}", story.name, layers.base().display());
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child
            .args(["--exact", "a_child_that_ends_halfway", "--nocapture", "--test-threads=1"])
            .env(CHILD, words);
        let output = child.output().expect("this program runs");
        let completed = output.status.success();
        let context = || format!("{}, {way:?}, ended before change {change}", story.name);
        assert!(
            completed || output.status.code() == Some(CRASHED),
            "{}: {}{}",
            context(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let view = way.open(&layers);
        assert_eq!(layers.left_in_work(), Vec::<std::ffi::OsString>::new(), "{}", context());
        let now = tree(&view);
        assert_eq!(lowers, layers.lower_state(), "{}: the lower layers", context());
        if completed {
            assert_eq!(now, after, "{}: it is complete", context());
            assert!(change > 1 || story.same, "{}: no change is counted", context());
            return;
        }
        let is_between = || story.between.is_some_and(|allows| allows(&before, &after, &now));
        assert!(
            now == before || now == after || is_between(),
            "{}: neither what was before\n{}nor what was to be\n{}",
            context(),
            differences(&before, &now),
            differences(&after, &now)
        );
        if now == before {
            let again = (story.operation)(&view);
            assert!(again.is_ok(), "{}: cannot be done again: {again:?}", context());
            drop(view);
            let now = tree(&way.open(&layers));
            assert_eq!(now, after, "{}: done again\n{}", context(), differences(&after, &now));
        }
    }
    panic!("{}, {way:?}: it does not complete", story.name);
}

/// Not a test of its own: what the others run as a child.
#[test]
fn a_child_that_ends_halfway() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let words: Vec<&str> = words.splitn(4, '|').collect();
    let &[name, way, change, base] = &words[..] else { panic!("{words:?}") };
    let all = [FILES, MAKING, NAMES, DIRECTORIES, OPENING].concat();
    let story = all.iter().find(|story| story.name == name).expect("a story");
    let layers = Layers::of(base.into(), LOWERS);
    let way = Way::named(way);
    let change = change.parse().expect("a number");
    if story.opening {
        end_before(change);
    }
    let view = way.open(&layers);
    end_before(change);
    (story.operation)(&view).expect("the operation works");
    end_before(0);
}

fn all(way: Way, stories: &[&[Story]]) {
    // Every story is told, whatever the one before it came to.
    let failed: Vec<_> = stories
        .concat()
        .iter()
        .filter(|story| std::panic::catch_unwind(|| crash_everywhere(story, way)).is_err())
        .map(|story| story.name)
        .collect();
    assert!(failed.is_empty(), "{way:?}: {failed:?}");
}

#[test]
fn a_crash_leaves_the_old_tree_or_the_new_one() {
    all(Way::Usual, &[FILES, MAKING, NAMES, DIRECTORIES, OPENING]);
}

#[test]
fn a_crash_leaves_the_old_tree_or_the_new_one_where_directories_are_copied() {
    all(Way::Copies, &[DIRECTORIES]);
}

#[test]
fn a_crash_leaves_the_old_tree_or_the_new_one_where_whiteouts_are_files() {
    all(Way::WhiteoutFiles, &[NAMES, DIRECTORIES]);
}

#[test]
fn a_crash_leaves_the_old_tree_or_the_new_one_where_owners_are_attributes() {
    all(Way::Overrides, &[FILES, MAKING]);
}

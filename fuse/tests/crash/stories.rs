//! The operations that are cut off, each with the layers it starts from.

use super::Tree;
use super::common::Layers;
use plywood_fuse::error::Result;
use plywood_fuse::overlay::rename::Target;
use plywood_fuse::types::{Device, Identity, Kind, SetTime, Time};
use plywood_fuse::view::{Open, View};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// The time of what no operation has touched, in seconds since 1970.
pub const OLD: i64 = 1_000_000_000;

/// Above this size a changed mode copies no data.
const BIG: usize = 300_000;

/// One operation.
#[derive(Clone, Copy)]
pub struct Story {
    /// What it is called.
    pub name: &'static str,
    /// Makes the lower layers.
    pub layers: fn(&Layers),
    /// What was done before, by a mount that ended well.
    pub first: fn(&View),
    /// The operation.
    pub operation: fn(&View) -> Result<()>,
    /// True if it may be cut off while the layers are opened.
    pub opening: bool,
    /// True if the tree does not show it.
    pub same: bool,
    /// A tree that is neither the one before nor the one after, and why it may be: beside the story.
    pub between: Option<fn(&Tree, &Tree, &Tree) -> bool>,
}

/// What every story starts from.
fn usual(layers: &Layers) {
    layers.file(1, "d/f", "from below").file(1, "d/g", "another").file(1, "d/sub/deep/x", "x");
    layers
        .file(0, "m/top", "top")
        .file(1, "m/bottom", "bottom")
        .file(0, "m/both", "upper")
        .file(1, "m/both", "lower");
    layers.file(1, "big", vec![7; BIG]).file(1, "d/.wh.odd", "a name like a mark").dir(1, "void");
    layers.dir(1, "public");
    fs::set_permissions(layers.lower(1, "public"), fs::Permissions::from_mode(0o777)).expect("a mode");
    layers.file(1, "h/one", "linked").dir(1, "i");
    fs::hard_link(layers.lower(1, "h/one"), layers.lower(1, "h/two")).expect("a link");
    fs::hard_link(layers.lower(1, "h/one"), layers.lower(1, "i/three")).expect("a link");
    symlink("f", layers.lower(1, "d/link")).expect("a symlink");
    fs::set_permissions(layers.lower(1, "d/g"), fs::Permissions::from_mode(0o4750)).expect("a mode");
    age(layers, "");
}

/// Gives everything the old time.
fn age(layers: &Layers, below: &str) {
    for layer in 0..2 {
        let mut todo = vec![layers.lower(layer, below)];
        while let Some(path) = todo.pop() {
            let meta = fs::symlink_metadata(&path).expect("attributes");
            if meta.is_dir() {
                todo.extend(fs::read_dir(&path).expect("a listing").map(|e| e.expect("an entry").path()));
            }
            if meta.is_file() || meta.is_dir() {
                let old = UNIX_EPOCH + Duration::from_secs(OLD.unsigned_abs());
                let file = fs::File::open(&path).expect("a file");
                file.set_times(fs::FileTimes::new().set_modified(old).set_accessed(old)).expect("times");
            }
        }
    }
}

fn nothing(_: &View) {}

const PLAIN: Story = Story {
    name: "",
    layers: usual,
    first: nothing,
    operation: |_| Ok(()),
    opening: false,
    same: false,
    between: None,
};

const fn story(name: &'static str, operation: fn(&View) -> Result<()>) -> Story {
    Story { name, operation, ..PLAIN }
}

const fn after(name: &'static str, first: fn(&View), operation: fn(&View) -> Result<()>) -> Story {
    Story { name, first, operation, ..PLAIN }
}

const fn between(allows: fn(&Tree, &Tree, &Tree) -> bool, story: Story) -> Story {
    Story { between: Some(allows), ..story }
}

/// As before, but for the time of one file.
fn timeless(before: &Tree, _: &Tree, now: &Tree) -> bool {
    let mut before = before.clone();
    if let Some(line) = before.get_mut(Path::new("big")) {
        *line = line.replace(" old,", " new,");
    }
    before == *now
}

/// As after, but for the owner of one empty file.
fn unowned(_: &Tree, after: &Tree, now: &Tree) -> bool {
    let mut now = now.clone();
    let line = now.get_mut(Path::new("public/new"));
    line.is_some_and(|line| {
        let is_empty = line.contains(" 0 bytes");
        *line = line.replace(" 0:0 ", " 4000:4100 ");
        is_empty
    }) && now == *after
}

/// As before, but for which names share an inode.
fn apart(before: &Tree, _: &Tree, now: &Tree) -> bool {
    let content = |tree: &Tree| -> Tree {
        let told = |line: &String| line.split(", with ").next().unwrap_or_default().to_owned();
        tree.iter().map(|(path, line)| (path.clone(), told(line))).collect()
    };
    content(before) == content(now)
}

/// A change that has to work, done before.
#[track_caller]
fn done<T>(result: Result<T>) {
    result.map(drop).expect("what is done before works");
}

fn write(view: &View, path: &str) -> Result<()> {
    view.open(path, Open::read().and_write())?.write_all_at(b"NEW!", 2)
}

const CREATE: Open = Open::write().create_new();

const OTHER: Identity = Identity { uid: 4000, gid: 4100, groups: Vec::new(), umask: 0o022 };

/// Content and attributes.
pub const FILES: &[Story] = &[
    story("write", |v| write(v, "d/f")),
    story("write in a new place", |v| write(v, "d/sub/deep/x")),
    story("write a merged file", |v| write(v, "m/both")),
    story("write a big file", |v| write(v, "big")),
    story("cut", |v| v.truncate("d/f", 0)),
    story("cut in half", |v| v.truncate("d/f", 3)),
    story("chmod", |v| v.set_permissions("d/f", 0o600)),
    story("chmod of setuid", |v| v.set_permissions("d/g", 0o4711)),
    story("chmod of a big file", |v| v.set_permissions("big", 0o600)),
    story("chmod of a directory", |v| v.set_permissions("d/sub", 0o700)),
    // The data is fetched into the file as it stands, and its mark taken away last; so until then it shows the data
    // below, but its time of modification moves. The kernel's overlayfs does the same.
    between(timeless, after("write to a big file without data", big_without_data, |v| write(v, "big"))),
    between(timeless, after("cut a big file without data", big_without_data, |v| v.truncate("big", 0))),
    story("chown", |v| v.chown("d/f", Some(4000), Some(4100))),
    story("chown of a symlink", |v| v.lchown("d/link", Some(4000), Some(4100))),
    story("set times", |v| v.set_times("d/f", None, Some(SetTime::At(Time { secs: 5, nanos: 0 })))),
    story("set an attribute", |v| v.set_xattr("d/f", "user.key", b"value")),
    after("remove an attribute", with_attribute, |v| v.remove_xattr("d/f", "user.key")),
];

/// New names.
pub const MAKING: &[Story] = &[
    story("create", |v| v.open("d/new", CREATE).map(drop)),
    story("create in a new place", |v| v.open("d/sub/deep/new", CREATE).map(drop)),
    // What is made by a user who is not the server's gets its owner once it is there. A file that is new, empty and
    // the server's gives nobody anything, and nobody was told that it is there.
    between(
        unowned,
        story("create as somebody else", |v| v.as_user(OTHER).open("public/new", CREATE).map(drop)),
    ),
    story("mkdir", |v| v.create_dir("d/new")),
    story("symlink", |v| v.symlink("f", "d/new")),
    story("mknod", |v| v.mknod("d/new", Kind::Fifo, 0o640, Device::default())),
    story("create a name like a mark", |v| v.open("d/.wh.g", CREATE).map(drop)),
    story("link", |v| v.link("d/f", "m/new")),
    after("create over a whiteout", without_f, |v| v.open("d/f", CREATE).map(drop)),
    after("mkdir over a whiteout", without_m, |v| v.create_dir("m")),
    after("symlink over a whiteout", without_f, |v| v.symlink("g", "d/f")),
    after("link over a whiteout", without_f, |v| v.link("m/top", "d/f")),
];

/// Names that go or change.
pub const NAMES: &[Story] = &[
    story("unlink", |v| v.remove_file("d/f")),
    story("unlink a merged file", |v| v.remove_file("m/both")),
    story("unlink a name like a mark", |v| v.remove_file("d/.wh.odd")),
    after("unlink a copy", |v| done(write(v, "d/f")), |v| v.remove_file("d/f")),
    after("unlink a new file", |v| done(v.write("d/new", "new")), |v| v.remove_file("d/new")),
    story("rmdir", |v| v.remove_dir("void")),
    after("rmdir with whiteouts in it", |v| done(v.remove_file("i/three")), |v| v.remove_dir("i")),
    story("rename", |v| v.rename("d/f", "d/new", Target::Replace)),
    story("rename to another directory", |v| v.rename("d/f", "m/new", Target::Replace)),
    story("rename to a name like a mark", |v| v.rename("d/f", "m/.wh.top", Target::Replace)),
    story("rename over a lower file", |v| v.rename("d/f", "m/both", Target::Replace)),
    after(
        "rename over a new file",
        |v| done(v.write("d/new", "new")),
        |v| v.rename("d/f", "d/new", Target::Replace),
    ),
    after(
        "rename over a whiteout",
        |v| done(v.remove_file("m/both")),
        |v| v.rename("d/f", "m/both", Target::Replace),
    ),
    after(
        "rename a new file over a lower one",
        |v| done(v.write("d/new", "new")),
        |v| v.rename("d/new", "d/f", Target::Replace),
    ),
    after("rename a big file without data", big_without_data, |v| v.rename("big", "d/huge", Target::Replace)),
    story("swap files", |v| v.rename("d/f", "m/both", Target::Exchange)),
    // All names of a file are made to point to its copy, one by one, before the copy is changed. Names that are left
    // stay what they were: the old file, which is the same.
    between(apart, story("write one of several names", |v| write(v, "h/two"))),
    between(apart, story("rename one of several names", |v| v.rename("h/two", "h/new", Target::Replace))),
    between(apart, story("link one of several names", |v| v.link("h/two", "d/new"))),
    story("unlink one of several names", |v| v.remove_file("h/two")),
];

/// Directories that are renamed.
pub const DIRECTORIES: &[Story] = &[
    story("rename a directory", |v| v.rename("d/sub", "sub", Target::Replace)),
    story("rename a merged directory", |v| v.rename("m", "d/m", Target::Replace)),
    story("rename a directory over an empty one", |v| v.rename("d/sub", "void", Target::Replace)),
    after("rename a directory over a whiteout", without_m, |v| v.rename("d/sub", "m", Target::Replace)),
    after(
        "rename over a directory with whiteouts in it",
        |v| done(v.remove_file("i/three")),
        |v| v.rename("d/sub", "i", Target::Replace),
    ),
    after(
        "rename a directory back",
        |v| done(v.rename("d/sub", "sub", Target::Replace)),
        |v| v.rename("sub", "d/sub", Target::Replace),
    ),
    after("rename a new directory over a whiteout", removed_and_made, |v| {
        v.rename("new", "m", Target::Replace)
    }),
    after("rmdir of a moved directory with whiteouts in it", moved_and_emptied, |v| v.remove_dir("new")),
    story("swap a file and a directory", |v| v.rename("d/f", "void", Target::Exchange)),
];

/// What is done to the layers before anything is asked of them.
pub const OPENING: &[Story] = &[
    Story { opening: true, same: true, ..story("open", |_| Ok(())) },
    Story { opening: true, same: true, ..after("open again", without_f, |_| Ok(())) },
];

fn big_without_data(view: &View) {
    done(view.set_permissions("big", 0o600));
}

fn with_attribute(view: &View) {
    done(view.set_xattr("d/f", "user.key", b"value"));
}

fn without_f(view: &View) {
    done(view.remove_file("d/f"));
}

fn without_m(view: &View) {
    done(view.remove_dir_all("m"));
}

fn moved_and_emptied(view: &View) {
    done(view.rename("d/sub", "new", Target::Replace));
    done(view.remove_dir_all("new/deep"));
}

fn removed_and_made(view: &View) {
    done(view.remove_dir_all("m"));
    done(view.create_dir("new"));
    done(view.write("new/file", "content"));
}

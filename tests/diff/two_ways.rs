//! From the upper layers alone or by walking all of both trees: the same bytes.
//!
//! Random operations on an overlay make the trees. They are compared as stacks both ways, and as plain copies of what
//! the stacks show.

use crate::support::{Changing, changes, copy, layer, members, plain, stack};
use plywood::diff::{DiffOptions, Extent, Form, Tree, Xattrs};
use plywood_fuse::overlay::{Metacopy, Overlay, Renames, Settings};
use plywood_fuse::sys::{self, Place};
use plywood_fuse::testing::TempDir;
use plywood_fuse::testing::inside::Inside;
use plywood_fuse::testing::model::{Stack, Subject, Variant, View as Known};
use plywood_fuse::testing::operation::Verb;
use plywood_fuse::testing::random::{self, Random};
use plywood_fuse::testing::tree::{self, Item, Layer, What, looks_like_mark};
use plywood_fuse::types::{Identity, Ino, Kind, SetTime};
use plywood_fuse::view::View;
use std::collections::HashMap;
use std::fmt::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Writes what a stack shows into a new directory.
fn show(layers: &[PathBuf], to: &Path) {
    std::fs::create_dir(to).expect("a directory");
    let overlay = Overlay::open(layers, None, Settings::default()).expect("a stack");
    let view = View::new(Arc::new(overlay), Identity::root());
    let root = sys::open::open_root(to).expect("a directory");
    let mut known: HashMap<Ino, PathBuf> = HashMap::new();
    let mut dirs = Vec::new();
    for entry in view.walk("/").expect("a walk") {
        let entry = entry.expect("an entry");
        let (attr, path) = (entry.attr, entry.path.as_os_str().as_bytes());
        let place = Place::At(root.as_fd(), path);
        let made = match attr.kind {
            Kind::Dir => sys::node::mkdir(root.as_fd(), path, 0o700),
            _ if known.contains_key(&attr.ino) => {
                let old = known[&attr.ino].as_os_str().as_bytes();
                sys::node::link(Place::At(root.as_fd(), old), root.as_fd(), path).expect("a link");
                continue;
            }
            Kind::File => {
                std::fs::write(to.join(&entry.path), view.read(&entry.path).expect("content"))
                    .expect("a file");
                Ok(())
            }
            Kind::Symlink => {
                let target = view.read_link(&entry.path).expect("a target");
                sys::node::symlink(target.as_bytes(), root.as_fd(), path)
            }
            kind => sys::node::mknod(root.as_fd(), path, kind.mode_bits() | 0o600, attr.device),
        };
        made.expect("something");
        known.insert(attr.ino, entry.path.clone());
        sys::stat::chown(place, Some(attr.uid), Some(attr.gid)).expect("an owner");
        // A symlink has none that belong to it, and asking for them would follow it.
        let names = match attr.kind {
            Kind::Symlink => Vec::new(),
            _ => view.xattrs(&entry.path).expect("attributes"),
        };
        for name in names {
            let value = view.xattr(&entry.path, &name).expect("an attribute").expect("its value");
            let name = std::ffi::CString::new(name).expect("a name");
            sys::xattr::set(place, &name, &value, sys::xattr::SetMode::Any).expect("an attribute");
        }
        if attr.kind != Kind::Symlink {
            sys::stat::chmod(place, attr.perm).expect("a mode");
        }
        let times = (SetTime::At(attr.atime), SetTime::At(attr.mtime));
        if attr.kind == Kind::Dir {
            dirs.push((path.to_vec(), times));
        } else {
            sys::stat::set_times(place, Some(times.0), Some(times.1)).expect("times");
        }
    }
    for (path, (atime, mtime)) in dirs.iter().rev() {
        sys::stat::set_times(Place::At(root.as_fd(), path), Some(*atime), Some(*mtime)).expect("times");
    }
}

/// What comes out: a layer and the changes, or the kind of failure.
fn outcome(base: &Tree, new: &Tree, options: &DiffOptions) -> (Result<Vec<u8>, String>, Vec<String>) {
    let bytes = layer(base, new, options).map_err(|e| format!("{:?}", e.kind()));
    (bytes, changes(base, new, options).expect("changes"))
}

/// Compares two stacks in all ways.
fn compare(base: &[PathBuf], new: &[PathBuf], temp: &Path, words: &str) {
    let copies = [temp.join("base-copy"), temp.join("new-copy")];
    let tree = |layers: &[PathBuf], copy: &Path| match layers {
        [] => Tree::Empty,
        layers => {
            show(layers, copy);
            plain(copy)
        }
    };
    let (plain_base, plain_new) = (tree(base, &copies[0]), tree(new, &copies[1]));
    let as_stack = |layers: &[PathBuf]| if layers.is_empty() { Tree::Empty } else { stack(layers) };
    for xattrs in [Xattrs::Caps, Xattrs::User] {
        let options = |extent| DiffOptions { xattrs, extent, ..DiffOptions::default() };
        let needed = options(Extent::Needed);
        let short = outcome(&as_stack(base), &as_stack(new), &needed);
        let whole = outcome(&as_stack(base), &as_stack(new), &options(Extent::Everything));
        let walked = outcome(&plain_base, &plain_new, &options(Extent::Everything));
        let mixed = outcome(&as_stack(base), &plain_new, &needed);
        let again = outcome(&as_stack(base), &as_stack(new), &needed);
        for (name, other) in [("whole", &whole), ("plain", &walked), ("mixed", &mixed), ("again", &again)] {
            if short == *other {
                continue;
            }
            let shown = |o: &(Result<Vec<u8>, String>, Vec<String>)| {
                let list = o.0.as_ref().map_or_else(|e| vec![e.clone()], |bytes| members(bytes));
                format!("{:#?}\n{:#?}", list, o.1)
            };
            panic!(
                "{words}: short and {name} differ ({xattrs:?})\nshort: {}\n{name}: {}",
                shown(&short),
                shown(other)
            );
        }
    }
    drop((plain_base, plain_new));
    for copy in copies.iter().filter(|copy| copy.exists()) {
        std::fs::remove_dir_all(copy).expect("it goes");
    }
}

struct World {
    temp: TempDir,
    variant: Variant,
    made: usize,
    marks: bool,
    links: bool,
    words: String,
}

/// What makes names of one file end up in directories that changed and in others that did not.
const LINKING: [Verb; 6] = [Verb::Rename, Verb::Rename, Verb::Link, Verb::Unlink, Verb::Chmod, Verb::Mkdir];

/// Names in several directories for the files of a layer.
fn link(random: &mut Random, layer: &mut Layer) {
    let is_file = |item: &&Item| matches!(item.what, What::File(_) | What::Sparse(_));
    let files: Vec<String> = layer.items.iter().filter(is_file).map(|item| item.path.clone()).collect();
    if files.is_empty() {
        return;
    }
    for _ in 0..12 {
        let path = format!("{}/{}", random.pick(&["a", "b", "c", "d", "a/b", "c/d"]), random.below(9));
        layer.items.push(Item::new(path, What::Link(random.pick(&files).clone())));
    }
    *layer = layer.sound();
}

impl World {
    /// A new upper layer with some changes on `lowers`; the layers of the result.
    fn change(&mut self, random: &mut Random, lowers: &[PathBuf]) -> Vec<PathBuf> {
        self.made += 1;
        let dir = |name: &str| {
            let path = self.temp.path().join(format!("{name}-{}", self.made));
            std::fs::create_dir(&path).expect("a directory");
            path
        };
        let stack = Stack { lowers: lowers.to_vec(), upper: dir("upper"), work: dir("work") };
        let mut subject = Inside::new(self.variant.settings());
        subject.open(&stack).expect("it opens");
        let _ = writeln!(self.words, "upper {} on {} layers:", self.made, lowers.len());
        for _ in 0..4 + random.below(16) {
            let all = tree::whole(&mut |dir| subject.entries(dir)).expect("a tree");
            let known = Known { all: all.into_iter().map(|(path, entry)| (path, entry.kind)).collect() };
            let mut operation = random::operation(random, &self.variant, &known);
            while self.links && !LINKING.contains(&operation.verb) {
                operation = random::operation(random, &self.variant, &known);
            }
            if !self.marks && [&operation.path, &operation.other].iter().any(|p| p.contains(".wh.")) {
                continue;
            }
            let done = subject.apply(&operation);
            let _ = writeln!(self.words, "  {operation}{}", if done.is_ok() { "" } else { " (failed)" });
        }
        subject.close().expect("it closes");
        std::iter::once(&stack.upper).chain(lowers).cloned().collect()
    }
}

fn variant(random: &mut Random) -> Variant {
    Variant {
        renames: *random.pick(&[Renames::Redirect, Renames::Redirect, Renames::Copy]),
        metacopy: *random.pick(&[Metacopy::On, Metacopy::Off]),
        whiteout_files: random.once_in(3),
        user_xattr: random.once_in(2),
        overrides: random.once_in(4),
        ..Variant::usual()
    }
}

fn random_stacks(seed: u64) {
    let mut random = Random::new(seed);
    let variant = variant(&mut random);
    // Names that look like whiteouts mostly end as an error, the same one each way.
    let marks = random.once_in(6);
    let links = random.once_in(2);
    let mut world = World {
        temp: TempDir::new(),
        words: format!("seed {seed} {variant:?}\n"),
        variant,
        made: 0,
        marks,
        links,
    };
    let mut lowers = Vec::new();
    for (at, mut one) in random::layers(&mut random, &world.variant).into_iter().enumerate() {
        if !marks {
            one.items.retain(|item| !looks_like_mark(&item.path) && !item.path.contains("/.wh."));
        }
        if links {
            link(&mut random, &mut one);
        }
        let dir = world.temp.path().join(format!("lower-{at}"));
        std::fs::create_dir(&dir).expect("a directory");
        one.build(&dir, world.variant.namespace()).expect("a layer");
        let _ = writeln!(world.words, "{one}");
        lowers.push(dir);
    }
    let one = world.change(&mut random, &lowers);
    let two = world.change(&mut random, &one);
    let other = world.change(&mut random, &lowers);
    let temp = world.temp.path().to_owned();
    let pairs: [(&str, &[PathBuf], &[PathBuf]); 6] = [
        ("one layer above", &lowers, &one),
        ("the next layer", &one, &two),
        ("two layers above", &lowers, &two),
        ("back again", &two, &lowers),
        ("side by side", &two, &other),
        ("without base", &[], &two),
    ];
    for (name, base, new) in pairs {
        compare(base, new, &temp, &format!("{}{name}", world.words));
    }
}

#[test]
fn random_changes_give_the_same_bytes_each_way() {
    if !crate::support::is_root("owners and devices need root") {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first: u64 = number("PLYWOOD_DIFF_SEED").unwrap_or(1);
    for seed in first..first + number("PLYWOOD_DIFF_STACKS").unwrap_or(150) {
        random_stacks(seed);
    }
}

/// Layers by their descriptions, topmost first.
fn layers(temp: &TempDir, texts: &[&str]) -> Vec<PathBuf> {
    let namespace = plywood_fuse::layer::marks::Namespace::User;
    let mut dirs = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let dir = temp.path().join(format!("layer-{at}"));
        std::fs::create_dir(&dir).expect("a directory");
        Layer::parse(text).build(&dir, namespace).expect("a layer");
        dirs.push(dir);
    }
    dirs
}

fn names(base: &[PathBuf], new: &[PathBuf]) -> Vec<String> {
    let options = DiffOptions::default();
    let bytes = layer(&stack(base), &stack(new), &options).expect("a layer");
    members(&bytes).iter().map(|line| line.split(" \"").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_renamed_directory_links_to_names_that_nobody_changed() {
    let temp = TempDir::new();
    let all = layers(
        &temp,
        &[
            "kernel; whiteout d; dir c; dir e user.overlay.redirect=/d; file b/x size=1; file z size=2",
            "kernel; file a/one size=9; dir d; link d/two a/one; link f/three a/one; file b/y size=3",
        ],
    );
    assert_eq!(
        names(&all[1..], &all),
        [
            "b/ 755",
            "b/x 644",
            "c/ 755",
            ".wh.d 0",
            "e/ 755",
            "e/two 644",
            "a/ 755",
            "a/one 644 link e/two",
            "f/ 755",
            "f/three 644 link e/two",
            "z 644"
        ]
    );
    compare(&all[1..], &all, temp.path(), "renamed");
}

#[test]
fn equal_files_of_several_layers_may_be_one_inode() {
    let temp = TempDir::new();
    let all =
        layers(&temp, &["kernel; file b size=5; file d size=5", "kernel; file a size=5; file c size=5"]);
    for (old, new) in [("layer-1/a", "layer-0/b"), ("layer-1/a", "layer-0/d"), ("layer-1/a", "layer-1/c")] {
        std::fs::remove_file(temp.path().join(new)).expect("it goes");
        temp.path().link(old, new);
    }
    assert_eq!(names(&all[1..], &all), ["b 644", "a 644 link b", "c 644 link b", "d 644 link b"]);
    compare(&all[1..], &all, temp.path(), "one store");
}

#[test]
fn marks_of_every_dialect_become_plain_whiteouts() {
    for dialect in ["kernel", "file", "xattr", "fuse-overlayfs"] {
        let temp = TempDir::new();
        let all = layers(
            &temp,
            &[
                &format!("{dialect}; whiteout d/gone; dir o; opaque o/p; file o/p/new size=1"),
                "kernel; file d/gone size=1; file d/stays size=1; file o/p/old size=1; file o/p/new size=1; dir o/p/q",
            ],
        );
        let expected = ["d/ 755", "d/.wh.gone 0", "o/ 755", "o/p/ 755", "o/p/.wh.old 0", "o/p/.wh.q 0"];
        assert_eq!(names(&all[1..], &all), expected, "{dialect}");
        compare(&all[1..], &all, temp.path(), dialect);
    }
}

#[test]
fn a_hidden_opaque_root_hides_all() {
    let temp = TempDir::new();
    let all = layers(&temp, &["kernel; file new size=1", "kernel; file d/old size=1; file new size=2"]);
    let root = sys::open::open_root(&all[0]).expect("a directory");
    sys::xattr::set(Place::dir(&root), c"user.overlay.opaque", b"y", sys::xattr::SetMode::Any)
        .expect("a mark");
    assert_eq!(names(&all[1..], &all), [".wh.d 0", "new 644"]);
    compare(&all[1..], &all, temp.path(), "opaque root");
}

#[test]
fn a_snapshot_that_is_one_directory_is_read_like_the_other_one() {
    use plywood::snapshotter::LayerPaths;
    let temp = TempDir::new();
    let all = layers(&temp, &["kernel; file new size=1", "kernel; file old size=1"]);
    let base = LayerPaths { lowers: vec![all[1].clone()], upper: None, writable: false };
    let upper = Some((all[0].clone(), temp.path().join("work")));
    let active = LayerPaths { lowers: vec![all[1].clone()], upper, writable: false };
    let (was, is) = Tree::pair(Some(&base), &active, Form::Whole).expect("trees");
    assert!(matches!((&was, &is), (Tree::Stack(_), Tree::Stack(_))));
    assert_eq!(changes(&was, &is, &DiffOptions::default()).expect("changes"), ["add new"]);
    let (was, is) = Tree::pair(None, &base, Form::Whole).expect("trees");
    assert!(matches!((&was, &is), (Tree::Empty, Tree::Plain(_))));
    assert_eq!(changes(&was, &is, &DiffOptions::default()).expect("changes"), ["add old"]);
    let copied = temp.path().join("copied");
    copy(&all[1], &copied);
    copied.file("more", "", 0o644);
    let (was, is) = Tree::pair(
        Some(&base),
        &LayerPaths { lowers: vec![copied], upper: None, writable: true },
        Form::Whole,
    )
    .expect("trees");
    assert!(matches!((&was, &is), (Tree::Plain(_), Tree::Plain(_))));
    assert_eq!(changes(&was, &is, &DiffOptions::default()).expect("changes"), ["add more"]);
}

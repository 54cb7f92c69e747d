//! Archives in memory, the three ways to apply them, and what is there afterwards.

use plywood::apply::{Applied, Below, DirTarget, Outcome, OverlayTarget, SameOwner, Source, apply};
use plywood::archive::{Entry, EntryKind, Limits, Reader, Segment};
use plywood::error::Result;
use plywood::types::Timestamp;
use plywood_fuse::layer::probe::Wishes;
use plywood_fuse::layer::upper::UpperOptions;
use plywood_fuse::overlay::{Overlay, Settings, TopLayer};
use plywood_fuse::testing::TempDir;
use plywood_fuse::testing::tree::{join, snapshot};
use plywood_fuse::types::{Device, Kind, Time};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// When members were changed, unless they say something else.
pub const THEN: i64 = 1_600_000_000;

/// An archive.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<(Entry, Vec<u8>)>);

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// A member of this kind, that belongs to whoever runs this.
    pub fn member(mut self, path: impl AsRef<[u8]>, kind: EntryKind, mode: u32) -> Tar {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let entry = Entry {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid,
            gid,
            size_bytes: 0,
            mtime: Timestamp { secs: THEN, nanos: 0 },
            atime: None,
            xattrs: Vec::new(),
        };
        self.0.push((entry, Vec::new()));
        self
    }

    pub fn dir(self, path: impl AsRef<[u8]>, mode: u32) -> Tar {
        self.member(path, EntryKind::Dir, mode)
    }

    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Tar {
        let mut tar = self.member(path, EntryKind::File, 0o644);
        let (entry, data) = tar.0.last_mut().expect("one was added");
        entry.size_bytes = content.as_ref().len() as u64;
        *data = content.as_ref().to_vec();
        tar
    }

    pub fn symlink(self, text: &str, path: &str) -> Tar {
        self.member(path, EntryKind::Symlink(text.as_bytes().to_vec()), 0o777)
    }

    pub fn link(self, target: &str, path: &str) -> Tar {
        self.member(path, EntryKind::HardLink(target.as_bytes().to_vec()), 0o644)
    }

    /// An empty file of this name, as whiteouts are written.
    pub fn mark(self, path: &str) -> Tar {
        self.file(path, "")
    }

    /// Changes the last member.
    pub fn but(mut self, change: impl FnOnce(&mut Entry)) -> Tar {
        change(&mut self.0.last_mut().expect("there is one").0);
        self
    }

    pub fn source(&self) -> Listed {
        Listed { members: self.0.clone(), at: 0, offset: None }
    }
}

/// The members of a [`Tar`], as a reader gives them.
pub struct Listed {
    members: Vec<(Entry, Vec<u8>)>,
    at: usize,
    offset: Option<usize>,
}

impl Source for Listed {
    fn next(&mut self) -> Result<Option<Entry>> {
        self.offset = None;
        self.at += 1;
        Ok(self.members.get(self.at - 1).map(|(entry, _)| entry.clone()))
    }

    fn next_segment(&mut self) -> Result<Option<Segment>> {
        let length = self.members[self.at - 1].1.len();
        if self.offset.is_some() || length == 0 {
            return Ok(None);
        }
        self.offset = Some(0);
        Ok(Some(Segment { offset_bytes: 0, length_bytes: length as u64 }))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let Some(offset) = &mut self.offset else { return Ok(0) };
        let rest = &self.members[self.at - 1].1[*offset..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        *offset += length;
        Ok(length)
    }
}

/// A file as users of the tree see it.
#[derive(Clone, PartialEq, Eq)]
pub struct Shown {
    pub kind: Kind,
    pub perm: u32,
    pub owner: (u32, u32),
    /// `None` for what was changed just now.
    pub mtime: Option<Time>,
    pub device: Device,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first name of the same file.
    pub first_name: String,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown { kind, perm, owner, mtime, device, content, xattrs, first_name } = self;
        let begin = content[..content.len().min(40)].escape_ascii();
        let length = content.len();
        write!(
            f,
            "{kind:?} {perm:o} {owner:?} {mtime:?} {device:?} {length} \"{begin}\" {xattrs:?} ={first_name}"
        )
    }
}

/// A tree by its paths.
pub type Tree = BTreeMap<String, Shown>;

fn known_time(time: Time) -> Option<Time> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    (!(now.as_secs() as i64 - 3600..=now.as_secs() as i64 + 3600).contains(&time.secs)).then_some(time)
}

fn names_of_one(tree: &mut Tree, inodes: BTreeMap<String, u64>) {
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    for (path, ino) in inodes {
        let name = first.entry(ino).or_insert_with(|| path.clone()).clone();
        tree.get_mut(&path).expect("it is there").first_name = name;
    }
}

/// What is in a directory of the disk.
pub fn on_disk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    for (path, entry) in snapshot(root).unwrap_or_else(|e| panic!("look at {}: {e}", root.display())) {
        let content = match entry.kind {
            Kind::File => std::fs::read(root.join(&path)).expect("read"),
            _ => entry.target,
        };
        let xattrs = entry.attributes.into_iter();
        let xattrs =
            xattrs.map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value)).collect();
        let shown = Shown {
            kind: entry.kind,
            perm: entry.perm,
            owner: (entry.uid, entry.gid),
            mtime: known_time(entry.mtime),
            device: entry.device,
            content,
            xattrs,
            first_name: String::new(),
        };
        inodes.insert(path.clone(), entry.ino);
        tree.insert(path, shown);
    }
    names_of_one(&mut tree, inodes);
    tree
}

/// What a stack of layers, top first, shows to its root.
pub fn in_stack(layers: &[PathBuf]) -> Tree {
    let settings = Settings { top_layer: TopLayer::MayChange, ..Settings::default() };
    let overlay = Overlay::open(layers, None, settings).expect("open the layers");
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut dirs = vec![(String::new(), Arc::clone(overlay.root()))];
    while let Some((dir, node)) = dirs.pop() {
        for (name, _) in overlay.names(&node).expect("list") {
            let path = join(&dir, std::str::from_utf8(&name).expect("UTF-8"));
            let (node, attr) = overlay.lookup(&node, &name).expect("look up");
            let content = match attr.kind {
                Kind::File => {
                    let mut data = vec![0; attr.size_bytes as usize];
                    overlay.read(&node, 0, &mut data).expect("read");
                    data
                }
                Kind::Symlink => overlay.read_link(&node).expect("read link"),
                _ => Vec::new(),
            };
            let names = overlay.xattr_names(&node).expect("attributes").into_iter();
            let xattrs = names.map(|name| {
                let value = overlay.xattr(&node, &name).expect("it is listed");
                (String::from_utf8_lossy(&name).into_owned(), value)
            });
            let shown = Shown {
                kind: attr.kind,
                perm: attr.perm,
                owner: (attr.uid, attr.gid),
                mtime: known_time(attr.mtime),
                device: attr.device,
                content,
                xattrs: xattrs.collect(),
                first_name: String::new(),
            };
            if attr.kind == Kind::Dir {
                dirs.push((path.clone(), node));
            }
            inodes.insert(path.clone(), attr.ino.0);
            tree.insert(path, shown);
        }
    }
    names_of_one(&mut tree, inodes);
    tree
}

/// How an archive is applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// To a directory that is the tree.
    Plain,
    /// As a layer whose lower layers are not known; with them, if it says that it needs them.
    Layer,
    /// The same, with whiteouts as files.
    FileLayer,
    /// Through the layer stack.
    Overlay,
}

pub const ALL: [How; 4] = [How::Plain, How::Layer, How::FileLayer, How::Overlay];

/// A tree before and after an archive.
pub struct World {
    pub how: How,
    temp: TempDir,
    lowers: Vec<PathBuf>,
    /// Why the layer could not be made without lower layers.
    pub needed: Option<String>,
}

impl World {
    /// A tree that begins as what `fill` makes of an empty directory.
    pub fn new(how: How, fill: impl Fn(&Path)) -> World {
        let temp = TempDir::new();
        let base = temp.path().join("base");
        for dir in ["base", "upper"] {
            std::fs::create_dir(temp.path().join(dir)).expect("make a directory");
        }
        fill(&base);
        World { how, lowers: vec![base], temp, needed: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Applies an archive.
    pub fn apply(&mut self, source: impl Fn() -> Box<dyn Source>) -> Result<Applied> {
        let (upper, work) = (self.path("upper"), self.path("work"));
        let outcome = match self.how {
            How::Plain => {
                let mut target = DirTarget::plain(&self.lowers[0], SameOwner::Keep)?;
                apply(&mut *source(), &mut target, &())?
            }
            How::Layer | How::FileLayer => {
                let wishes = Wishes { whiteout_files: self.how == How::FileLayer, ..Wishes::default() };
                let options = UpperOptions { wishes, ..UpperOptions::default() };
                let mut target = DirTarget::layer_with(&upper, &work, Below::Unknown, options)?;
                apply(&mut *source(), &mut target, &())?
            }
            How::Overlay => {
                let mut target = OverlayTarget::open(&self.lowers, &upper, &work)?;
                let outcome = apply(&mut *source(), &mut target, &())?;
                assert_eq!(target.known_inodes(), 1, "all but the root were given back");
                outcome
            }
        };
        match outcome {
            Outcome::Applied(applied) => Ok(applied),
            Outcome::NeedsLower(why) => {
                assert!(matches!(self.how, How::Layer | How::FileLayer), "{why}");
                std::fs::remove_dir_all(&upper).expect("throw the layer away");
                std::fs::create_dir(&upper).expect("make it again");
                self.needed = Some(why);
                let mut target = OverlayTarget::open(&self.lowers, &upper, &work)?;
                match apply(&mut *source(), &mut target, &())? {
                    Outcome::Applied(applied) => Ok(applied),
                    Outcome::NeedsLower(why) => panic!("{why}"),
                }
            }
        }
    }

    /// The tree afterwards.
    pub fn tree(&self) -> Tree {
        match self.how {
            How::Plain => on_disk(&self.lowers[0]),
            How::Layer | How::FileLayer | How::Overlay => {
                let mut layers = self.lowers.clone();
                layers.insert(0, self.path("upper"));
                in_stack(&layers)
            }
        }
    }
}

/// Applies an archive in all ways to what `fill` makes; the trees have to be the same.
#[track_caller]
pub fn everywhere(fill: impl Fn(&Path), tar: &Tar) -> Tree {
    everywhere_from(fill, || Box::new(tar.source()))
}

/// The same for an archive that comes from anywhere.
#[track_caller]
pub fn everywhere_from(fill: impl Fn(&Path), source: impl Fn() -> Box<dyn Source>) -> Tree {
    let tree = |how| {
        let mut world = World::new(how, &fill);
        world.apply(&source).unwrap_or_else(|e| panic!("{how:?}: {e}"));
        world.tree()
    };
    let plain = tree(How::Plain);
    for how in [How::Layer, How::FileLayer, How::Overlay] {
        assert_same(&tree(how), &plain, &format!("{how:?}"));
    }
    plain
}

/// Fails with the first differences of two trees.
#[track_caller]
pub fn assert_same(one: &Tree, other: &Tree, what: &str) {
    let paths: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differences: Vec<String> = paths
        .into_iter()
        .filter(|path| one.get(*path) != other.get(*path))
        .map(|path| format!("{path}:\n  {:?}\n  {:?}", one.get(path), other.get(path)))
        .take(10)
        .collect();
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

/// Applies an archive in all ways; all have to refuse it with this in the message.
#[track_caller]
pub fn refused_everywhere(fill: impl Fn(&Path), tar: &Tar, words: &str) {
    for how in ALL {
        let mut world = World::new(how, &fill);
        match world.apply(|| Box::new(tar.source())) {
            Ok(_) => panic!("{how:?} took it: {:#?}", world.tree()),
            Err(e) => assert!(e.to_string().contains(words), "{how:?}: {e}"),
        }
    }
}

/// A reader of the archive in a file.
pub fn file_source(path: &Path) -> Box<dyn Source> {
    let file = std::fs::File::open(path).expect("open the archive");
    Box::new(Reader::new(std::io::BufReader::new(file), Limits::default()))
}

/// False, said aloud, if the test needs root of the machine and the user wants such tests left out.
pub fn may_be_root() -> bool {
    plywood_fuse::testing::suite::may_mount()
}

/// Nothing.
pub fn nothing(_: &Path) {}

/// Writes a file with all directories above it.
pub fn put(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("below the root")).expect("make directories");
    std::fs::write(path, content).expect("write");
}

/// The content of a file of a tree.
#[track_caller]
pub fn text<'a>(tree: &'a Tree, path: &str) -> &'a str {
    let shown = tree.get(path).unwrap_or_else(|| panic!("{path} is missing: {:#?}", tree.keys()));
    std::str::from_utf8(&shown.content).expect("text")
}

/// True if two names are one file.
#[track_caller]
pub fn same_file(tree: &Tree, one: &str, other: &str) -> bool {
    tree.get(one).expect(one).first_name == tree.get(other).expect(other).first_name
}

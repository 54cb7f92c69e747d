//! A tree to be compared or archived, however it is kept: what it holds, in which order, and how to read it.
//!
//! Three forms. A [`plain`](super::plain) tree is a directory as it is. A [`stack`](super::stack) is many layers read
//! as one tree through the layer library, so that nobody here knows what a whiteout looks like. An empty tree is what
//! a snapshot without parent is compared with. Nothing in a tree is ever changed.

use super::change::{Meta, Xattrs};
use super::plain::{PlainDir, PlainTree};
use super::stack::{StackDir, StackNode, StackTree};
use crate::error::{Error, Result};
use crate::snapshotter::LayerPaths;
use plywood_fuse::error::Error as SysError;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The directories that show a snapshot, top first.
fn directories(paths: &LayerPaths) -> Vec<PathBuf> {
    let upper = paths.upper.iter().map(|(upper, _)| upper);
    upper.chain(&paths.lowers).cloned().collect()
}

/// What the directories of snapshots are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Layers of a stack, with marks, also where there is only one.
    Layers,
    /// A single one is a whole tree as it is.
    Whole,
}

/// A tree to be looked at.
pub enum Tree {
    /// There is nothing in it.
    Empty,
    /// A directory as it is.
    Plain(PlainTree),
    /// A stack of layers.
    Stack(StackTree),
}

impl Tree {
    /// The trees of two snapshots that are to be compared, the base first; without a base it is empty.
    ///
    /// A snapshot that is a single directory is seen as that directory, unless `form` or the other one says that it is a
    /// layer of a stack: then marks in it are marks.
    ///
    /// # Errors
    /// Those of the disk, with the directory named.
    pub fn pair(base: Option<&LayerPaths>, new: &LayerPaths, form: Form) -> Result<(Tree, Tree)> {
        let (base, new) = (base.map(directories), directories(new));
        let stacked =
            form == Form::Layers || new.len() > 1 || base.as_ref().is_some_and(|base| base.len() > 1);
        let open = |dirs: &[PathBuf]| match dirs {
            [only] if !stacked => Ok(Tree::Plain(PlainTree::open(only)?)),
            dirs => Ok(Tree::Stack(StackTree::open(dirs)?)),
        };
        Ok((base.map_or(Ok(Tree::Empty), |base| open(&base))?, open(&new)?))
    }

    /// How many entries were looked at so far: what a comparison costs.
    pub fn looked_at(&self) -> u64 {
        match self {
            Tree::Empty => 0,
            Tree::Plain(tree) => tree.looked.get(),
            Tree::Stack(tree) => tree.looked.get(),
        }
    }

    /// The root directory.
    pub(super) fn root(&self) -> Result<Dir> {
        match self {
            Tree::Empty => Ok(Dir::Empty),
            Tree::Plain(tree) => Ok(Dir::Plain(tree.root()?)),
            Tree::Stack(tree) => Ok(Dir::Stack(tree.root())),
        }
    }
}

/// Counts entries that were looked at.
#[derive(Default)]
pub(super) struct Looked(AtomicU64);

impl Looked {
    pub(super) fn add(&self, entries: usize) {
        self.0.fetch_add(entries as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A directory of a tree.
#[derive(Clone)]
pub(super) enum Dir {
    /// What is not there holds nothing.
    Empty,
    Plain(Arc<PlainDir>),
    Stack(StackDir),
}

/// A name in a directory, and what it is.
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    pub(super) meta: Meta,
    /// What a stack knows of it.
    pub(super) node: Option<StackNode>,
}

impl Dir {
    /// Everything in it, in order of the names' bytes. What vanishes meanwhile is left out.
    pub(super) fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = match self {
            Dir::Empty => Ok(Vec::new()),
            Dir::Plain(dir) => dir.list(),
            Dir::Stack(dir) => dir.list(),
        }?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// The subdirectory that an entry of it is.
    pub(super) fn enter(&self, entry: &Entry) -> Result<Dir> {
        match (self, &entry.node) {
            (Dir::Plain(dir), _) => Ok(Dir::Plain(dir.enter(entry)?)),
            (Dir::Stack(dir), Some(node)) => Ok(Dir::Stack(dir.enter(node))),
            (Dir::Stack(_) | Dir::Empty, _) => Err(foreign()),
        }
    }

    /// What a symlink says.
    pub(super) fn read_link(&self, entry: &Entry) -> Result<Vec<u8>> {
        match (self, &entry.node) {
            (Dir::Plain(dir), _) => dir.read_link(entry),
            (Dir::Stack(dir), Some(node)) => dir.read_link(&entry.name, node),
            (Dir::Stack(_) | Dir::Empty, _) => Err(foreign()),
        }
    }

    /// The attributes that belong to an entry, name and value, in order of the names; those without a value are left
    /// out, as containerd does.
    pub(super) fn xattrs(&self, entry: &Entry, which: Xattrs) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = match (self, &entry.node) {
            (Dir::Plain(dir), _) => dir.xattrs(entry, which),
            (Dir::Stack(dir), Some(node)) => dir.xattrs(&entry.name, node, which),
            (Dir::Stack(_) | Dir::Empty, _) => Err(foreign()),
        }?;
        found.retain(|(name, value)| !(value.is_empty() && *name == super::change::CAPABILITY));
        found.sort_unstable();
        Ok(found)
    }

    /// The content of a regular file.
    pub(super) fn open(&self, entry: &Entry) -> Result<Content> {
        match (self, &entry.node) {
            (Dir::Plain(dir), _) => Ok(Content::Plain(dir.open(entry)?)),
            (Dir::Stack(_), Some(node)) => Ok(Content::Stack(node.clone())),
            (Dir::Stack(_) | Dir::Empty, _) => Err(foreign()),
        }
    }
}

/// An entry of another tree: a mistake in here.
fn foreign() -> Error {
    Error::fuse("compare", "", SysError::from_errno(libc::ESTALE))
}

/// The content of a regular file, to be read.
pub(super) enum Content {
    Plain(OwnedFd),
    Stack(StackNode),
}

impl Content {
    /// Reads at an offset until `buffer` is full or the file ends; holes are zeros.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> std::result::Result<usize, SysError> {
        match self {
            Content::Plain(fd) => plywood_fuse::sys::copy::read_at(std::os::fd::AsFd::as_fd(fd), buffer, at),
            Content::Stack(node) => node.read_at(buffer, at),
        }
    }
}

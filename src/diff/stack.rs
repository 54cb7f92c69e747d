//! A tree that is a stack of layers, and what two stacks that share layers need not be compared in.
//!
//! The layer library answers everything: whiteouts of every dialect, opaque directories, redirects, files that have
//! their data in another layer, owners in attributes. What is here is only who a file really is, and [`Shared`]: of
//! two stacks with the same layers at the bottom, only what the layers above those list can differ.
//!
//! Every node is given back to the library when nobody needs it any more.

use super::change::{FileId, Meta, Xattrs};
use super::tree::{Entry, Looked};
use crate::error::{Error, Result};
use crate::types::Timestamp;
use parking_lot::Mutex;
use plywood_fuse::error::Error as SysError;
use plywood_fuse::inode::node::{LowerDir, Node};
use plywood_fuse::overlay::readdir::Taken;
use plywood_fuse::overlay::{Overlay, Settings, TopLayer};
use plywood_fuse::types::Attr;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// A tree that is a stack of layers.
pub struct StackTree {
    layers: Arc<Layers>,
    pub(super) looked: Arc<Looked>,
}

/// The open stack.
struct Layers {
    overlay: Overlay,
    /// Device and inode number of the root of each layer, the topmost first.
    roots: Vec<(u64, u64)>,
    looked: Arc<Looked>,
}

impl StackTree {
    /// The stack of these directories, topmost first. The first one may be changed by somebody else meanwhile.
    ///
    /// # Errors
    /// Those of the disk, with the directory named.
    pub fn open(layers: &[PathBuf]) -> Result<StackTree> {
        let settings = Settings { top_layer: TopLayer::MayChange, ..Settings::default() };
        let opened = Overlay::open(layers, None, settings).and_then(|overlay| {
            let roots = overlay.lower_roots()?;
            Ok((overlay, roots))
        });
        let (overlay, roots) = opened.map_err(|e| Error::fuse("open layers", "", e))?;
        let looked: Arc<Looked> = Arc::default();
        Ok(StackTree { layers: Arc::new(Layers { overlay, roots, looked: Arc::clone(&looked) }), looked })
    }

    pub(super) fn root(&self) -> StackDir {
        let node = Arc::clone(self.layers.overlay.root());
        StackDir(StackNode(Arc::new(Held { node: Some(node), layers: Arc::clone(&self.layers) })))
    }

    /// How many layers are at the bottom of both stacks.
    fn shared_layers(&self, other: &StackTree) -> usize {
        let (ours, theirs) = (self.layers.roots.iter().rev(), other.layers.roots.iter().rev());
        ours.zip(theirs).take_while(|(a, b)| a == b).count()
    }
}

/// An inode of a stack, known to the library as long as this value lives.
#[derive(Clone)]
pub(super) struct StackNode(Arc<Held>);

struct Held {
    /// `None` only while it is given back.
    node: Option<Arc<Node>>,
    layers: Arc<Layers>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let ino = node.ino;
            // The library frees it only if nobody else has it.
            drop(node);
            self.layers.overlay.forget(ino, 1);
        }
    }
}

impl StackNode {
    fn overlay(&self) -> &Overlay {
        &self.0.layers.overlay
    }

    fn node(&self) -> std::result::Result<&Arc<Node>, SysError> {
        self.0.node.as_ref().ok_or(SysError::from_errno(libc::ESTALE))
    }

    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> std::result::Result<usize, SysError> {
        self.overlay().read(self.node()?, at, buffer)
    }

    /// The layer that has the file itself.
    fn layer(&self) -> std::result::Result<u16, SysError> {
        self.overlay().real_inode(self.node()?)?.layer.ok_or(SysError::from_errno(libc::ESTALE))
    }

    /// The directories of layers that it is made of, if it is a directory.
    fn parts(&self) -> &[LowerDir] {
        self.0.node.as_ref().map_or(&[], |node| self.overlay().lower_dirs(node))
    }

    /// Those of them in the layers from `first` on, counted from the top.
    fn parts_from(&self, first: u16) -> &[LowerDir] {
        let parts = self.parts();
        &parts[parts.partition_point(|part| part.layer < first)..]
    }
}

/// A directory of a stack.
#[derive(Clone)]
pub(super) struct StackDir(StackNode);

fn failed(operation: &'static str, name: &[u8], e: SysError) -> Error {
    Error::fuse(operation, name.escape_ascii().to_string(), e)
}

impl StackDir {
    /// The entry of a node, which is handed over: it is given back if this fails.
    fn entry(&self, name: &[u8], node: Arc<Node>, attr: &Attr) -> std::result::Result<Entry, SysError> {
        let layers = &self.0.0.layers;
        let node = StackNode(Arc::new(Held { node: Some(node), layers: Arc::clone(layers) }));
        let real = layers.overlay.real_inode(node.node()?)?;
        let dev = real.layer.and_then(|layer| layers.roots.get(usize::from(layer))).map(|(dev, _)| *dev);
        let id = FileId { dev: dev.ok_or(SysError::from_errno(libc::ESTALE))?, ino: real.ino };
        let meta = Meta {
            kind: attr.kind,
            mode: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            device: attr.device,
            size_bytes: attr.size_bytes,
            mtime: Timestamp { secs: attr.mtime.secs, nanos: attr.mtime.nanos },
            links: attr.nlink,
            id,
        };
        Ok(Entry { name: name.into(), meta, node: Some(node) })
    }

    pub(super) fn list(&self) -> Result<Vec<Entry>> {
        let overlay = self.0.overlay();
        let dir = self.0.node().map_err(|e| failed("list", b"", e))?;
        let mut entries: Vec<Entry> = Vec::new();
        let mut broken = None;
        let mut after = 0;
        loop {
            let before = entries.len();
            let read = overlay.read_dir(dir, after, &mut |found| {
                after = found.position;
                let entry = found.found.map_err(|broken| broken.error);
                match entry.and_then(|(node, attr)| self.entry(found.name, node, &attr)) {
                    Ok(entry) => entries.push(entry),
                    // Nobody can tell what it is.
                    Err(e) => broken = broken.take().or(Some(failed("look at", found.name, e))),
                }
                Taken::Kept
            });
            read.map_err(|e| failed("list", b"", e))?;
            if let Some(broken) = broken.take() {
                return Err(broken);
            }
            if entries.len() == before {
                break;
            }
        }
        self.0.0.layers.looked.add(entries.len());
        Ok(entries)
    }

    /// The entry with a name, if there is one.
    pub(super) fn look(&self, name: &[u8]) -> Result<Option<Entry>> {
        self.0.0.layers.looked.add(1);
        let found = self.0.node().and_then(|dir| self.0.overlay().lookup(dir, name));
        match found.and_then(|(node, attr)| self.entry(name, node, &attr)) {
            Ok(entry) => Ok(Some(entry)),
            Err(e) if e.is_absent() => Ok(None),
            Err(e) => Err(failed("look at", name, e)),
        }
    }

    pub(super) fn enter(&self, node: &StackNode) -> StackDir {
        StackDir(node.clone())
    }

    pub(super) fn read_link(&self, name: &[u8], node: &StackNode) -> Result<Vec<u8>> {
        let target = node.node().and_then(|link| self.0.overlay().read_link(link));
        target.map_err(|e| failed("read link", name, e))
    }

    pub(super) fn xattrs(
        &self,
        name: &[u8],
        node: &StackNode,
        which: Xattrs,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let failed = |e| failed("read attributes", name, e);
        let (overlay, inode) = (self.0.overlay(), node.node().map_err(failed)?);
        let names = match which {
            // Asked for by its name: one call, and most files have no attribute.
            Xattrs::Caps => vec![super::change::CAPABILITY.to_vec()],
            Xattrs::User => overlay.xattr_names(inode).map_err(failed)?,
        };
        let mut found = Vec::new();
        for name in names {
            if !which.keeps(&name) {
                continue;
            }
            match overlay.xattr(inode, &name) {
                Ok(value) => found.push((name, value)),
                Err(e) if e.is_no_attribute() => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(found)
    }
}

/// Two stacks with the same layers at the bottom.
pub(super) struct Shared<'a> {
    base: Side<'a>,
    new: Side<'a>,
    /// How often the names of the upper layers of the new stack have an inode that has several; once it was needed.
    census: Mutex<Option<HashMap<FileId, u32>>>,
}

struct Side<'a> {
    layers: &'a Layers,
    /// How many layers are above those that both have: this is the first of those.
    first: u16,
}

impl Side<'_> {
    fn own(&self) -> Range<u16> {
        0..self.first
    }

    /// Whether the layers of this side alone have a part in a directory.
    fn has_own(&self, dir: &StackNode) -> bool {
        dir.parts().first().is_some_and(|part| part.layer < self.first)
    }
}

/// What two directories with the same path need to be compared in.
pub(super) enum Scope {
    /// Nothing in them can differ, however deep.
    Nothing,
    /// Only these names.
    Names(BTreeSet<Vec<u8>>),
    /// All names.
    Everything,
}

/// The counters of a census, one per hash of an inode number: 1 MiB, which tells a million of inodes with one name
/// from those with several. More names cost memory for some that have one.
const CENSUS_SLOTS: usize = 1 << 20;

fn slot(id: FileId) -> usize {
    let mixed = (id.ino ^ id.dev.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 44) as usize % CENSUS_SLOTS
}

impl<'a> Shared<'a> {
    /// What two stacks have in common, if it is worth to know.
    pub(super) fn of(base: &'a StackTree, new: &'a StackTree) -> Option<Shared<'a>> {
        let shared = new.shared_layers(base);
        let side = |tree: &'a StackTree| {
            let first = u16::try_from(tree.layers.roots.len() - shared).ok()?;
            Some(Side { layers: &tree.layers, first })
        };
        (shared > 0).then_some(())?;
        Some(Shared { base: side(base)?, new: side(new)?, census: Mutex::new(None) })
    }

    /// True if the layers that both have at the bottom show the same of two directories.
    fn has_same_below(&self, base: &StackNode, new: &StackNode) -> bool {
        let (was, is) = (base.parts_from(self.base.first), new.parts_from(self.new.first));
        let is_one = |(a, b): (&LowerDir, &LowerDir)| {
            a.layer - self.base.first == b.layer - self.new.first && a.path == b.path
        };
        was.len() == is.len() && was.iter().zip(is).all(is_one)
    }

    /// True if nothing in two directories can differ, however deep.
    pub(super) fn is_untouched(&self, base: &Entry, new: &Entry) -> bool {
        let (Some(base), Some(new)) = (&base.node, &new.node) else { return false };
        !base.parts().is_empty()
            && !self.base.has_own(base)
            && !self.new.has_own(new)
            && self.has_same_below(base, new)
    }

    /// What two directories with the same path have to be compared in.
    ///
    /// If the same directories of shared layers are below in both, a name that no other layer lists is answered by
    /// these in both trees, and so is everything below it.
    pub(super) fn scope(&self, base: &StackDir, new: &StackDir) -> Result<Scope> {
        let (base, new) = (&base.0, &new.0);
        if !self.has_same_below(base, new) {
            return Ok(Scope::Everything);
        }
        if !self.base.has_own(base) && !self.new.has_own(new) {
            return Ok(Scope::Nothing);
        }
        let mut names = BTreeSet::new();
        for (side, dir) in [(&self.base, base), (&self.new, new)] {
            let listed = dir.node().and_then(|dir| {
                side.layers.overlay.names_in_layers(dir, side.own(), &mut |name| {
                    if !names.contains(name) {
                        names.insert(name.to_vec());
                    }
                })
            });
            listed.map_err(|e| failed("list", b"", e))?;
        }
        Ok(Scope::Names(names))
    }

    /// True if a changed file of the new stack may have a name that is never looked at, since it is as it was: one of
    /// a shared layer, which a renamed directory shows, or one that shares an inode with a file of another layer, as
    /// in a store that keeps equal files once.
    pub(super) fn may_have_unseen_names(&self, entry: &Entry) -> Result<bool> {
        let failed = |e| failed("count names", &entry.name, e);
        let Some(node) = &entry.node else { return Ok(true) };
        if node.layer().map_err(failed)? >= self.new.first {
            return Ok(true);
        }
        let mut census = self.census.lock();
        let census = match &mut *census {
            Some(census) => census,
            none => none.insert(self.count_names().map_err(failed)?),
        };
        let known = census.get(&entry.meta.id).copied().unwrap_or(1);
        Ok(known < entry.meta.links)
    }

    fn count_names(&self) -> std::result::Result<HashMap<FileId, u32>, SysError> {
        let layers = self.new.layers;
        let each = |each: &mut dyn FnMut(FileId)| {
            layers.overlay.inodes_in_layers(self.new.own(), &mut |layer, ino| {
                let dev = layers.roots.get(usize::from(layer)).map_or(0, |(dev, _)| *dev);
                each(FileId { dev, ino });
            })
        };
        let mut slots = vec![0_u8; CENSUS_SLOTS];
        each(&mut |id| slots[slot(id)] = slots[slot(id)].saturating_add(1))?;
        let mut census = HashMap::new();
        each(&mut |id| {
            if slots[slot(id)] > 1 {
                *census.entry(id).or_insert(0) += 1;
            }
        })?;
        Ok(census)
    }
}

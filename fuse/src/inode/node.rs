//! Who an inode is.
//!
//! A [`Node`] exists for every inode that somebody outside knows (and for the directories above it). It holds
//! what cannot be had from the disk by a system call: where the file is, and whether it still has a name.
//! There may be half a million of them, so every byte counts: a plain file is one allocation and its name.
//!
//! # Locks
//!
//! In this order: `copying`, of a file before that of a directory, of a directory before that of its parent;
//! then `dir.state` (the names of a directory), of a parent before that of a child, and of two directories
//! that are not above each other only under the rename lock of the overlay; then `place`. `place` locks nest
//! from child to parent, only to read.

use crate::layer::entry::DirContext;
use crate::layer::source::LayerPath;
use crate::overlay::index::LowerNames;
use crate::overlay::listing::Listing;
use crate::types::{Ino, Kind};
use parking_lot::{Mutex, RwLock};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

/// An inode of the merged tree.
pub struct Node {
    /// The number that users see. Immutable.
    pub ino: Ino,
    /// How often the outside was told of this inode and has not yet forgotten it.
    pub(crate) nlookup: AtomicU64,
    /// Where the file is.
    pub(crate) place: RwLock<Whereabouts>,
    /// What a directory needs in addition. Immutable: `Some` for directories.
    pub(crate) dir: Option<Box<DirPart>>,
    /// What the file is. Immutable.
    pub kind: Kind,
    /// Held by whoever copies this inode up.
    pub(crate) copying: Mutex<()>,
}

/// In which layer a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// In the upper layer.
    Upper,
    /// In the lower directory of the parent that has this position in [`DirPart::lowers`];
    /// for a directory, in the first of its own.
    Lower(u16),
}

/// Where a file is.
pub struct Whereabouts {
    /// The directory it is in; `None` for the root.
    pub parent: Option<Arc<Node>>,
    /// Its name there.
    pub name: Box<[u8]>,
    /// The layer it is in.
    pub at: At,
    /// The inode number on the disk.
    pub real_ino: u64,
    /// What only few inodes have.
    pub extra: Option<Box<Extra>>,
}

/// What only few inodes have.
#[derive(Default)]
pub struct Extra {
    /// It lost its last name; this keeps an upper file alive.
    pub pinned: Option<Arc<OwnedFd>>,
    /// It lost its last name.
    pub unlinked: bool,
    /// Other names in the upper layer that are known.
    pub aliases: Vec<(Arc<Node>, Box<[u8]>)>,
    /// The data of a file that has only its attributes where it is.
    pub data: Option<LowerFile>,
    /// It was copied up by this mount from the lower inode of this real number, which has other names.
    pub copied_from: Option<u64>,
}

/// A regular file of a lower layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerFile {
    /// The layer: 0 is the topmost lower one.
    pub layer: u16,
    /// The directory in that layer.
    pub dir: LayerPath,
    /// The name there.
    pub name: Box<[u8]>,
}

/// A directory of a lower layer that is part of a merged one.
#[derive(Clone, Debug)]
pub struct LowerDir {
    /// Its path in that layer.
    pub path: LayerPath,
    /// The layer: 0 is the topmost lower one.
    pub layer: u16,
    /// What matters for its entries.
    pub context: DirContext,
}

/// What a directory has in addition.
pub struct DirPart {
    /// The lower directories it is made of, topmost first. Immutable; kept even when hidden, since files that
    /// are still open are found through it.
    pub lowers: Box<[LowerDir]>,
    /// Its names. Held to read while names are looked up, to write while they change.
    pub state: RwLock<DirState>,
}

/// The changing part of a directory.
#[derive(Default)]
pub struct DirState {
    /// What matters of the upper directory for its entries; `None` if there is no upper one.
    pub upper: Option<UpperDir>,
    /// The lower directories show through.
    pub merged: bool,
    /// It was removed.
    pub removed: bool,
    /// The merged names, while somebody reads them.
    pub listing: Option<Listing>,
    /// Which names the lower directories have, once somebody looked for one.
    pub names: Option<Arc<LowerNames>>,
}

/// What is known of an upper directory.
#[derive(Debug, Default)]
pub struct UpperDir {
    /// What matters for its entries.
    pub context: DirContext,
    /// Whether it holds whiteouts of the form `.wh.NAME`; found out by the first who needs to know.
    pub mark_files: OnceLock<MarkFiles>,
}

impl UpperDir {
    /// An upper directory about which this is known.
    pub fn known(context: DirContext, mark_files: MarkFiles) -> UpperDir {
        UpperDir { context, mark_files: OnceLock::from(mark_files) }
    }
}

/// Whether a directory may hold `.wh.` files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkFiles {
    /// It holds none, and none will be made.
    None,
    /// It may hold some.
    Some,
}

impl Node {
    /// A new inode that nobody outside knows yet.
    pub fn new(ino: Ino, kind: Kind, place: Whereabouts, dir: Option<DirPart>) -> Node {
        Node {
            ino,
            nlookup: AtomicU64::new(0),
            place: RwLock::new(place),
            dir: dir.map(Box::new),
            kind,
            copying: Mutex::new(()),
        }
    }

    /// True if this is a directory.
    pub fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    /// True if the file is in the upper layer.
    pub(crate) fn is_upper(&self) -> bool {
        self.place.read().at == At::Upper
    }

    /// True if the last name is gone.
    pub(crate) fn is_unlinked(&self) -> bool {
        self.place.read().is_unlinked()
    }
}

impl Whereabouts {
    /// The rare part, made if it is not there.
    pub(crate) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// True if the last name is gone.
    pub(crate) fn is_unlinked(&self) -> bool {
        self.extra.as_ref().is_some_and(|e| e.unlinked)
    }

    /// The descriptor that keeps a file without a name.
    pub(crate) fn pinned(&self) -> Option<&Arc<OwnedFd>> {
        self.extra.as_ref().and_then(|e| e.pinned.as_ref())
    }

    /// The lower file that has the data, if it is not where the attributes are.
    pub(crate) fn data(&self) -> Option<&LowerFile> {
        self.extra.as_ref().and_then(|e| e.data.as_ref())
    }
}

//! The file system as a Rust API.
//!
//! [`Overlay`] is what a kernel would ask: inodes, names, data. It knows nothing of FUSE, needs no privilege
//! and keeps no global state. Many threads may call it at once. It does not check permissions: the kernel
//! does that for a mount, and [`crate::view`] does it for programs that use the tree by paths.
//!
//! # Invariants
//!
//! * Lower layers are never written and never opened for writing.
//! * What is in the upper layer under its own name is complete.
//! * A node outlives every number that was handed out for it and not forgotten.

pub mod attr;
pub mod changes;
pub mod compare;
pub mod create;
pub mod hidden_links;
pub mod index;
pub mod io;
pub mod kept_listings;
pub mod links;
pub mod listing;
pub mod lookup;
pub mod nameless;
pub mod place;
pub mod readdir;
pub mod remove;
pub mod rename;
pub mod xattr;

use crate::error::{Error, Result};
use crate::idmap::Ownership;
use crate::inode::node::{At, DirPart, DirState, LowerDir, Node, UpperDir, Whereabouts};
use crate::inode::number::Numbers;
use crate::inode::table::Table;
use crate::layer::ancestry::Ancestry;
use crate::layer::entry::Found;
use crate::layer::marks::Opaque;
use crate::layer::read::{DirLayer, FdCache, read_entry};
use crate::layer::source::LayerSource;
use crate::layer::upper::{Upper, UpperOptions};
use crate::types::{Ino, Kind};
use parking_lot::{Mutex, RwLock};
use std::hash::RandomState;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What happens when a directory that comes from a lower layer is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Renames {
    /// A redirect mark is written; redirects of lower layers are followed.
    #[default]
    Redirect,
    /// The whole directory is copied up first, so that the upper layer holds plain files.
    Copy,
    /// It fails with EXDEV; redirects are followed.
    Refuse,
    /// It fails with EXDEV; redirects are ignored.
    RefuseAndIgnore,
}

/// When a changed owner, mode or time copies the data of a file too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Metacopy {
    /// Only for small files.
    #[default]
    On,
    /// Always.
    Off,
}

/// Whether the topmost of the lower layers may change while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TopLayer {
    /// No lower layer changes.
    #[default]
    Still,
    /// It is the upper layer of another mount.
    MayChange,
}

/// How an overlay behaves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// See [`Renames`].
    pub renames: Renames,
    /// See [`Metacopy`].
    pub metacopy: Metacopy,
    /// Whose files they are.
    pub ownership: Ownership,
    /// How the upper layer is written.
    pub upper: UpperOptions,
    /// How many descriptors may be kept open; 0 chooses by the limit of the process.
    pub descriptors: usize,
    /// Directories show one link, and nobody counts their subdirectories.
    pub static_nlink: bool,
    /// See [`TopLayer`].
    pub top_layer: TopLayer,
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files and directories that were copied up.
    pub copy_ups: AtomicU64,
    /// Bytes of data that were copied up, holes and clones not counted.
    pub copied_bytes: AtomicU64,
    /// Whiteouts that were made.
    pub whiteouts: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

/// A stack of layers, merged, with copy-on-write into the upper one.
pub struct Overlay {
    pub(crate) lowers: Vec<Arc<dyn LayerSource>>,
    pub(crate) upper: Option<Upper>,
    pub(crate) settings: Settings,
    pub(crate) numbers: Numbers,
    pub(crate) table: Table,
    pub(crate) root: Arc<Node>,
    /// Descriptors of data, by inode: to read, and to read and write.
    pub(crate) readers: FdCache<Ino>,
    pub(crate) writers: FdCache<Ino>,
    /// Held while a name moves from one directory to another.
    pub(crate) rename_lock: Mutex<()>,
    pub(crate) censuses: Vec<links::CensusCell>,
    pub(crate) kept_listings: kept_listings::KeptListings,
    pub(crate) hidden_links: hidden_links::HiddenLinks,
    /// Where renamed directories lead, until one is renamed.
    pub(crate) moved: Mutex<Option<Arc<links::Redirects>>>,
    /// Keys of the hashes that order listings and find names.
    pub(crate) hash: RandomState,
    /// What was done so far.
    pub counters: Counters,
}

/// The descriptors of one overlay if the caller does not say: a share of a typical limit of 1024.
const DEFAULT_DESCRIPTORS: usize = 512;

impl Overlay {
    /// Opens a stack of directories: `lowers` from the top, and the upper and work directories, if changes are
    /// wanted.
    ///
    /// # Errors
    /// With the directory named: it is missing, unreadable, no directory, or not on the right file system.
    pub fn open(lowers: &[PathBuf], upper: Option<(&Path, &Path)>, settings: Settings) -> Result<Overlay> {
        Self::open_around(lowers, upper, settings, None)
    }

    /// As [`Overlay::open`], for an overlay that will be mounted at `mount_point`, which may be inside of a lower
    /// layer. To be called before the mount.
    ///
    /// # Errors
    /// As [`Overlay::open`]; EINVAL if the mount point is inside of the upper or the work directory.
    pub fn open_around(
        lowers: &[PathBuf],
        upper: Option<(&Path, &Path)>,
        settings: Settings,
        mount_point: Option<&Path>,
    ) -> Result<Overlay> {
        let share = Self::descriptors(&settings) / 4 / lowers.len().max(1);
        let mut opened = Vec::with_capacity(lowers.len());
        let around = mount_point.and_then(Ancestry::of);
        for path in lowers {
            let mut layer = DirLayer::open(path, share.max(64))?;
            if let Some(mount_point) = &around {
                layer = layer.around(mount_point);
            }
            opened.push(Arc::new(layer) as Arc<dyn LayerSource>);
        }
        if let (Some((upper, work)), Some(around), Some(mount_point)) = (upper, &around, mount_point) {
            for (option, dir) in [("upperdir", upper), ("workdir", work)] {
                // What is missing is told by those who need it.
                let Ok(root) = crate::sys::open::open_root(dir) else { continue };
                if around.below(root.as_fd()).is_some() {
                    let cause = format!("inside of {option} {}; choose one outside", dir.display());
                    let subject = mount_point.display().to_string();
                    return Err(Error::new(libc::EINVAL, "mount point", subject, cause));
                }
            }
        }
        Self::with_layers(opened, upper, settings)
    }

    fn descriptors(settings: &Settings) -> usize {
        if settings.descriptors == 0 { DEFAULT_DESCRIPTORS } else { settings.descriptors }
    }

    /// Opens a stack of layers that come from anywhere.
    ///
    /// # Errors
    /// As [`Overlay::open`]; EINVAL if there is no layer at all or too many.
    pub fn with_layers(
        lowers: Vec<Arc<dyn LayerSource>>,
        upper: Option<(&Path, &Path)>,
        mut settings: Settings,
    ) -> Result<Overlay> {
        let descriptors = Self::descriptors(&settings);
        settings.upper.cached_dirs = descriptors / 4;
        if lowers.len() > usize::from(u16::MAX) {
            return Err(Error::new(libc::EINVAL, "open overlay", "lowerdir", "more than 65535 layers"));
        }
        let upper = upper.map(|(dir, work)| Upper::open(dir, work, settings.upper)).transpose()?;
        if lowers.is_empty() && upper.is_none() {
            return Err(Error::new(libc::EINVAL, "open overlay", "lowerdir", "no layer given"));
        }
        let (root, devices) = open_root(&lowers, upper.as_ref())?;
        let table = Table::default();
        table.insert_root(Arc::clone(&root));
        Ok(Overlay {
            censuses: lowers.iter().map(|_| links::CensusCell::default()).collect(),
            kept_listings: kept_listings::KeptListings::default(),
            hidden_links: hidden_links::HiddenLinks::default(),
            numbers: Numbers::new(devices),
            lowers,
            upper,
            settings,
            table,
            root,
            readers: FdCache::new(descriptors / 4),
            writers: FdCache::new(descriptors / 4),
            rename_lock: Mutex::new(()),
            moved: Mutex::new(None),
            hash: RandomState::new(),
            counters: Counters::default(),
        })
    }

    /// The root of the merged tree.
    pub fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// True if nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// The layer that changes, or EROFS.
    pub(crate) fn writable(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or(Error::from_errno(libc::EROFS))
    }

    /// The node with this number.
    ///
    /// # Errors
    /// ESTALE if nobody knows it.
    pub fn node(&self, ino: Ino) -> Result<Arc<Node>> {
        if ino == Ino::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        self.table.get(ino).ok_or(Error::from_errno(libc::ESTALE))
    }

    /// Takes back `count` of the times that an inode was handed out.
    pub fn forget(&self, ino: Ino, count: u64) {
        self.table.forget(ino, count, &mut |gone| self.close_all(gone));
    }

    /// Closes what is kept open under the number of a node that goes.
    pub(crate) fn close_all(&self, gone: Ino) {
        // The descriptors of a file that lost its name are all that keeps its data on the disk.
        self.readers.remove(&gone);
        self.writers.remove(&gone);
        // Another directory may get the number: two with one origin, as a copied layer has them.
        if let Some(upper) = &self.upper {
            upper.dirs.remove(&gone);
        }
    }

    /// How many inodes are known.
    pub fn known_inodes(&self) -> usize {
        self.table.len()
    }

    /// Something the user should know although the stack could be opened.
    pub fn warning(&self) -> Option<&str> {
        self.upper.as_ref().and_then(Upper::warning)
    }

    /// True if a layer shows signs of access control lists: on its root, or on an entry of the root.
    ///
    /// The kernel asks for the list of every file that somebody other than its owner uses, so it is told to
    /// only where there are some.
    pub fn uses_acls(&self) -> bool {
        use crate::layer::marks::Mark;
        let empty = || -> crate::layer::source::LayerPath { Arc::from(&b""[..]) };
        let has_acl =
            |names: &crate::sys::xattr::Names| names.iter().any(|n| n.starts_with(b"system.posix_acl_"));
        if let Some(upper) = &self.upper {
            let place = crate::sys::Place::At(upper.root(), b".");
            if let Ok(names) = crate::sys::xattr::list(place) {
                let mark = upper.namespace().attribute(Mark::Acl).to_bytes();
                if has_acl(&names) || names.contains(mark) {
                    return true;
                }
            }
        }
        let on_root = |layer: &Arc<dyn LayerSource>| {
            layer.root().is_ok_and(|root| root.marks.acl || root.marks.default_acl)
        };
        if self.lowers.iter().any(on_root) {
            return true;
        }
        let mut samples = ACL_SAMPLES;
        self.lowers.iter().rev().any(|layer| {
            if samples == 0 {
                return false;
            }
            let mut names: Vec<Vec<u8>> = Vec::new();
            let listed = layer.list(&empty(), 1, &mut |raw| {
                if names.len() < samples && raw.kind != libc::DT_LNK {
                    names.push(raw.name.to_vec());
                }
            });
            samples -= names.len();
            listed.is_ok()
                && names
                    .iter()
                    .any(|name| layer.xattr_names(&empty(), name).is_ok_and(|found| has_acl(&found)))
        })
    }
}

/// How many entries of the roots of all layers, the base first, are looked at for access control lists: few
/// enough not to be felt at a mount.
const ACL_SAMPLES: usize = 64;

type Devices = Vec<(u64, Option<[u8; 16]>)>;

/// The root of the merged tree, and the devices of all layers, the upper's first.
fn open_root(lowers: &[Arc<dyn LayerSource>], upper: Option<&Upper>) -> Result<(Arc<Node>, Devices)> {
    use crate::layer::entry::{DirContext, LayerEntry};
    let mut devices: Devices = Vec::new();
    let mut hides_lowers = false;
    // The UUID is asked for once per device.
    let mut note = |found: &Found, uuid: &dyn Fn() -> Option<[u8; 16]>| {
        if !devices.iter().any(|(dev, _)| *dev == found.stat.dev) {
            devices.push((found.stat.dev, uuid()));
        }
    };
    let mut upper_dir = None;
    let mut real_ino = 0;
    if let Some(upper) = upper {
        let entry = read_entry(upper.root(), DirContext::default(), upper.overrides(), b".")?;
        let LayerEntry::Found(found) = entry else { return Err(Error::from_errno(libc::ENOENT)) };
        note(&found, &|| upper.uuid());
        real_ino = found.stat.ino;
        hides_lowers = found.marks.opaque == Opaque::Yes
            || crate::layer::read::is_mark_file(upper.root(), crate::layer::marks::OPAQUE_FILE)?;
        upper_dir = Some(UpperDir { context: found.marks.context(), ..UpperDir::default() });
    }
    let mut dirs = Vec::new();
    for (index, layer) in lowers.iter().enumerate() {
        let found = layer.root().map_err(|e| e.during("read lower layer", layer.describe()))?;
        note(&found, &|| layer.uuid());
        if found.kind() != Kind::Dir {
            return Err(Error::new(libc::ENOTDIR, "open lower layer", layer.describe(), "not a directory"));
        }
        if hides_lowers {
            continue;
        }
        let path = Arc::from(&b""[..]);
        let last = index + 1 == lowers.len();
        hides_lowers = found.marks.opaque == Opaque::Yes
            || (!last && layer.has_mark_file(&path, crate::layer::marks::OPAQUE_FILE)?);
        let layer = u16::try_from(index).unwrap_or(u16::MAX);
        dirs.push(LowerDir { path, layer, context: found.marks.context() });
    }
    let at = if upper_dir.is_some() { At::Upper } else { At::Lower(0) };
    let place = Whereabouts { parent: None, name: Box::default(), at, real_ino, extra: None };
    let merged = !dirs.is_empty();
    let state = DirState { upper: upper_dir, merged, ..DirState::default() };
    let dir = DirPart { lowers: dirs.into(), state: RwLock::new(state) };
    Ok((Arc::new(Node::new(Ino::ROOT, Kind::Dir, place, Some(dir))), devices))
}

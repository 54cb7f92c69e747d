//! Reading a layer that is a directory.
//!
//! All access goes through descriptors below the root of the layer, opened so that no symlink is followed and
//! the root is never left. Directories that are in use keep an O_PATH descriptor in a bounded cache; a file
//! is then a name in one of them.

use crate::error::{Error, Result};
use crate::idmap::OverrideName;
use crate::layer::ancestry::Ancestry;
use crate::layer::entry::{DirContext, Found, LayerEntry, Marks, judge, must_read_marks};
use crate::layer::marks::Origin;
use crate::layer::source::{LayerPath, LayerSource, split_path};
use crate::sys::dir::{Listed, RawName};
use crate::sys::open::DirMode;
use crate::sys::stat::{FsStat, Stat};
use crate::sys::xattr::Names;
use crate::sys::{self, Place};
use crate::types::Kind;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::CStr;
use std::hash::Hash;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A layer in a directory.
pub struct DirLayer {
    path: PathBuf,
    root: OwnedFd,
    overrides: Option<OverrideName>,
    /// What the root was when the layer was opened.
    found: Found,
    uuid: OnceLock<Option<[u8; 16]>>,
    dirs: FdCache<LayerPath>,
    covered: Option<Covered>,
}

/// The directory of a layer that the mount will cover. Its name would lead into the mount, where this server
/// would wait for itself; a descriptor from before the mount leads to what is below.
struct Covered {
    path: LayerPath,
    fd: OwnedFd,
}

impl DirLayer {
    /// Opens the layer in the directory `path`, which may be relative and may be a symlink.
    ///
    /// # Errors
    /// With the path named: ENOENT, ENOTDIR, EACCES as `open(2)`.
    pub fn open(path: &Path, cached_dirs: usize) -> Result<DirLayer> {
        let opened = sys::open::open_root(path).and_then(|root| {
            let place = Place::dir(&root);
            let stat = sys::stat::stat(place)?;
            let names = list_marks(place)?;
            let overrides = override_among(&names);
            let marks = Marks::read(&names, overrides, |attribute| sys::xattr::get_value(place, attribute))?;
            match judge(stat, marks, DirContext::default()) {
                LayerEntry::Found(found) => Ok((root, overrides, *found)),
                LayerEntry::Absent | LayerEntry::Whiteout => Err(Error::from_errno(libc::ENOTDIR)),
            }
        });
        let (root, overrides, found) =
            opened.map_err(|e| e.during("open lower layer", path.display().to_string()))?;
        let dirs = FdCache::new(cached_dirs);
        let path = path.to_owned();
        Ok(DirLayer { path, root, overrides, found, uuid: OnceLock::new(), dirs, covered: None })
    }

    /// Prepares for a mount at `mount_point`, which may be inside of this layer.
    #[must_use]
    pub fn around(mut self, mount_point: &Ancestry) -> DirLayer {
        let root = (self.found.stat.dev, self.found.stat.ino);
        let below = mount_point.below_this(self.root.as_fd(), root);
        self.covered = below.map(|(path, fd)| Covered { path, fd });
        self
    }

    /// The root directory.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn dir(&self, dir: &LayerPath) -> Result<Arc<OwnedFd>> {
        self.dirs.get_or_open(dir, || {
            let (base, rest) = self.base(dir);
            sys::open::open_dir_beneath(base, rest, DirMode::Base)
        })
    }

    /// The directory from which a path is to be walked, and the path from there.
    fn base<'a>(&'a self, path: &'a [u8]) -> (BorrowedFd<'a>, &'a [u8]) {
        if let Some(covered) = &self.covered
            && let Some(rest) = path.strip_prefix(&*covered.path)
            && (rest.is_empty() || rest.starts_with(b"/"))
        {
            return (covered.fd.as_fd(), rest.strip_prefix(b"/").unwrap_or(rest));
        }
        (self.root.as_fd(), path)
    }

    fn at<T>(
        &self,
        dir: &LayerPath,
        name: &[u8],
        f: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<T>,
    ) -> Result<T> {
        let name = if name.is_empty() { b"." } else { name };
        if let Some(covered) = &self.covered
            && split_path(&covered.path) == (dir, name)
        {
            return f(covered.fd.as_fd(), b".");
        }
        if dir.is_empty() {
            return f(self.root.as_fd(), name);
        }
        f(self.dir(dir)?.as_fd(), name)
    }
}

/// The attribute on the root of a layer that turns stat overrides on for it.
///
/// # Errors
/// Those of the disk.
pub fn find_override(root: Place<'_>) -> Result<Option<OverrideName>> {
    Ok(override_among(&list_marks(root)?))
}

fn override_among(names: &Names) -> Option<OverrideName> {
    OverrideName::ALL.into_iter().find(|o| names.contains(o.xattr().to_bytes()))
}

/// The attributes of a file; none if they may not be read.
fn list_marks(place: Place<'_>) -> Result<Names> {
    match sys::xattr::list(place) {
        Err(e) if e.is_denied() || e.errno() == libc::ENOSYS => Ok(Names::default()),
        other => other,
    }
}

/// Reads what the directory at `dir` says about `name`: attributes first, marks where there is a reason.
///
/// # Errors
/// Those of the disk.
pub fn read_entry(
    dir: BorrowedFd<'_>,
    context: DirContext,
    overrides: Option<OverrideName>,
    name: &[u8],
) -> Result<LayerEntry> {
    let place = Place::At(dir, name);
    match sys::stat::stat(place) {
        Ok(stat) => judge_at(place, stat, context, overrides),
        Err(e) if e.is_absent() => Ok(LayerEntry::Absent),
        Err(e) => Err(e),
    }
}

/// As [`read_entry`], for attributes that are known already.
///
/// # Errors
/// Those of the disk.
pub fn judge_at(
    place: Place<'_>,
    stat: Stat,
    context: DirContext,
    overrides: Option<OverrideName>,
) -> Result<LayerEntry> {
    let marks = if must_read_marks(&stat, context, overrides.is_some()) {
        read_marks(place, overrides)?
    } else {
        Marks::default()
    };
    if marks.redirect_is_broken {
        return Err(Error::new(
            libc::EIO,
            "read redirect",
            "overlay attribute",
            "the value is not a path; remove it or the directory",
        ));
    }
    Ok(judge(stat, marks, context))
}

/// Reads the marks of the file at `place`.
///
/// # Errors
/// Those of the disk; a directory that may not be read has none.
pub fn read_marks(place: Place<'_>, overrides: Option<OverrideName>) -> Result<Marks> {
    let names = list_marks(place)?;
    if names.is_empty() {
        return Ok(Marks::default());
    }
    Marks::read(&names, overrides, |attribute| sys::xattr::get_value(place, attribute))
}

/// True if `name` is a regular, empty file that is not marked as literal.
///
/// # Errors
/// Those of the disk.
pub fn is_mark_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    let place = Place::At(dir, name);
    match sys::stat::stat(place) {
        Ok(stat) if stat.kind() == Kind::File && stat.size == 0 => Ok(!read_marks(place, None)?.literal),
        Ok(_) => Ok(false),
        Err(e) if e.is_absent() || e.errno() == libc::ENAMETOOLONG => Ok(false),
        Err(e) => Err(e),
    }
}

/// The origin of a file for its copy: its handle and the UUID of its file system.
pub fn origin_at(dir: BorrowedFd<'_>, name: &[u8], uuid: Option<[u8; 16]>) -> Option<Origin> {
    let (kind, handle) = sys::node::file_handle(dir, name).ok()?;
    Some(Origin { uuid: uuid.unwrap_or_default(), kind: u8::try_from(kind).ok()?, handle })
}

impl LayerSource for DirLayer {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn root(&self) -> Result<Found> {
        Ok(self.found.clone())
    }

    fn overrides(&self) -> Option<OverrideName> {
        self.overrides
    }

    fn entry(&self, dir: &LayerPath, context: DirContext, name: &[u8]) -> Result<LayerEntry> {
        self.at(dir, name, |dir, name| read_entry(dir, context, self.overrides, name))
    }

    fn has_mark_file(&self, dir: &LayerPath, name: &[u8]) -> Result<bool> {
        self.at(dir, name, is_mark_file)
    }

    fn list(&self, dir: &LayerPath, reads: usize, each: &mut dyn FnMut(RawName<'_>)) -> Result<Listed> {
        let fd = self.at(dir, b"", |dir, name| sys::open::open_dir_at(dir, name, DirMode::List))?;
        sys::dir::list(fd.as_fd(), reads, each)
    }

    fn open(&self, dir: &LayerPath, name: &[u8]) -> Result<OwnedFd> {
        self.at(dir, name, |dir, name| {
            let flags = libc::O_RDONLY | libc::O_NONBLOCK;
            // Without O_NOATIME reading a layer would write to it; only its owner may ask for that.
            match sys::open::open_at(dir, name, flags | libc::O_NOATIME, 0) {
                Err(e) if e.errno() == libc::EPERM => sys::open::open_at(dir, name, flags, 0),
                other => other,
            }
        })
    }

    fn read_link(&self, dir: &LayerPath, name: &[u8]) -> Result<Vec<u8>> {
        self.at(dir, name, sys::node::read_link)
    }

    fn xattr(&self, dir: &LayerPath, name: &[u8], attribute: &CStr) -> Result<Option<Vec<u8>>> {
        self.at(dir, name, |dir, name| sys::xattr::get_value(Place::At(dir, name), attribute))
    }

    fn xattr_names(&self, dir: &LayerPath, name: &[u8]) -> Result<Names> {
        self.at(dir, name, |dir, name| sys::xattr::list(Place::At(dir, name)))
    }

    fn origin(&self, dir: &LayerPath, name: &[u8]) -> Option<Origin> {
        self.at(dir, name, |dir, name| Ok(origin_at(dir, name, self.uuid()))).ok().flatten()
    }

    fn uuid(&self) -> Option<[u8; 16]> {
        *self.uuid.get_or_init(|| {
            let dir = sys::open::open_dir_at(self.root.as_fd(), b".", DirMode::List).ok()?;
            sys::node::fs_uuid(dir.as_fd()).ok()
        })
    }

    fn stat_fs(&self) -> Result<FsStat> {
        sys::stat::stat_fs(self.root.as_fd())
    }
}

/// Open descriptors that can be had again: a bounded cache.
///
/// A descriptor that is in use outlives its eviction. When full, the entries that were not used since the
/// last sweep go, half of the rest if all were used.
pub struct FdCache<K> {
    shards: Box<[Mutex<Shard<K>>]>,
    per_shard: usize,
}

struct Shard<K> {
    open: HashMap<K, Slot, BuildFastHasher>,
}

struct Slot {
    fd: Arc<OwnedFd>,
    used: bool,
}

type BuildFastHasher = std::hash::BuildHasherDefault<FastHasher>;

/// Hashes keys of descriptor caches: eight bytes a step. Whoever finds keys that collide slows down a cache
/// of a few dozen entries per shard, and nothing else.
#[derive(Default)]
pub struct FastHasher(u64);

impl std::hash::Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// A power of two, so that picking a shard is a mask; 16 threads seldom meet.
const SHARDS: usize = 16;

impl<K: Hash + Eq + Clone> FdCache<K> {
    /// A cache of about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(Shard { open: HashMap::default() })).collect();
        FdCache { shards, per_shard: (capacity / SHARDS).max(2) }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K>> {
        use std::hash::BuildHasher;
        let hash = BuildFastHasher::default().hash_one(key);
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// The descriptor for `key`, opened if it is not there. No lock is held while it is opened.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn get_or_open(&self, key: &K, open: impl Fn() -> Result<OwnedFd>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.get(key) {
            return Ok(fd);
        }
        let fd = match open() {
            Err(e) if e.errno() == libc::EMFILE || e.errno() == libc::ENFILE => {
                self.clear();
                Arc::new(open()?)
            }
            other => Arc::new(other?),
        };
        self.put(key.clone(), Arc::clone(&fd));
        Ok(fd)
    }

    /// The descriptor for `key`, if it is there.
    pub fn get(&self, key: &K) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard(key).lock();
        let slot = shard.open.get_mut(key)?;
        slot.used = true;
        Some(Arc::clone(&slot.fd))
    }

    /// Keeps a descriptor, in place of one that may be there.
    pub fn put(&self, key: K, fd: Arc<OwnedFd>) {
        let mut dropped = Vec::new();
        let mut shard = self.shard(&key).lock();
        if shard.open.len() >= self.per_shard {
            let mut keep = self.per_shard / 2;
            shard.open.retain(|_, slot| {
                let stays = std::mem::take(&mut slot.used) && keep > 0;
                keep -= usize::from(stays);
                if !stays {
                    dropped.push(Arc::clone(&slot.fd));
                }
                stays
            });
        }
        let old = shard.open.insert(key, Slot { fd, used: false });
        drop(shard);
        drop((old, dropped));
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &K) -> Option<Arc<OwnedFd>> {
        let removed = self.shard(key).lock().open.remove(key);
        removed.map(|slot| slot.fd)
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            let open = std::mem::take(&mut shard.lock().open);
            drop(open);
        }
    }
}

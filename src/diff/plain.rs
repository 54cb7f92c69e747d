//! A tree that is one directory, as a mount of it shows it: a full copy, a subvolume, an only layer.
//!
//! By descriptors only, as [`crate::backend::walk`]: no symlink is followed, no other mount is entered, and few
//! directories are open at a time. One that had to be closed is opened again from those above it, and is
//! known by device and inode number. Where the root says that owners and modes are kept in attributes, they count.

use super::change::{FileId, Meta, Xattrs};
use super::tree::{Entry, Looked};
use crate::backend::walk;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Timestamp;
use parking_lot::Mutex;
use plywood_fuse::error::Error as SysError;
use plywood_fuse::idmap::{OverrideName, StatOverride};
use plywood_fuse::layer::entry::apply_override;
use plywood_fuse::layer::{read, refused};
use plywood_fuse::sys::open::DirMode;
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::{self, Place};
use plywood_fuse::types::Kind;
use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// How many directories of one tree are open at a time: more saves opening again in deep trees, and two trees and
/// whoever else works in this process share its limit of descriptors.
const OPEN_DIRS: usize = 64;

/// The longest target of a symlink, in bytes.
const TARGET_MAX: usize = libc::PATH_MAX as usize;

/// A tree that is one directory.
pub struct PlainTree {
    shared: Arc<Shared>,
    pub(super) looked: Arc<Looked>,
}

struct Shared {
    path: PathBuf,
    root: OwnedFd,
    overrides: Option<OverrideName>,
    /// The directories that are open, the one that was opened first in front.
    open: Mutex<VecDeque<Weak<PlainDir>>>,
}

impl PlainTree {
    /// The tree below the directory `root`.
    ///
    /// # Errors
    /// Those of the disk, with the directory named.
    pub fn open(root: &Path) -> Result<PlainTree> {
        let opened = sys::open::open_root(root).and_then(|fd| {
            let overrides = read::find_override(Place::dir(&fd))?;
            Ok((fd, overrides))
        });
        let (fd, overrides) = opened.map_err(|e| Error::fuse("open tree", root.display().to_string(), e))?;
        let open = Mutex::new(VecDeque::new());
        let shared = Shared { path: root.to_owned(), root: fd, overrides, open };
        Ok(PlainTree { shared: Arc::new(shared), looked: Arc::default() })
    }

    /// The root directory.
    pub(super) fn root(&self) -> Result<Arc<PlainDir>> {
        let place = Place::dir(&self.shared.root);
        let stat = sys::stat::stat(place);
        let stat = stat.map_err(|e| Error::fuse("look at", self.shared.path.display().to_string(), e))?;
        Ok(Arc::new(PlainDir {
            shared: Arc::clone(&self.shared),
            looked: Arc::clone(&self.looked),
            parent: None,
            name: Box::default(),
            id: id(&stat),
            fd: Mutex::new(None),
        }))
    }
}

fn id(stat: &Stat) -> FileId {
    FileId { dev: stat.dev, ino: stat.ino }
}

/// A directory of a plain tree.
pub(super) struct PlainDir {
    shared: Arc<Shared>,
    looked: Arc<Looked>,
    parent: Option<Arc<PlainDir>>,
    name: Box<[u8]>,
    id: FileId,
    /// `None` until it is needed, and while others are.
    fd: Mutex<Option<Arc<OwnedFd>>>,
}

impl PlainDir {
    /// Where something in it is, for messages.
    fn shown(&self, name: &[u8]) -> String {
        let mut names = vec![name];
        let mut dir = Some(self);
        while let Some(here) = dir {
            names.push(&here.name);
            dir = here.parent.as_deref();
        }
        let mut path = self.shared.path.clone();
        path.extend(names.iter().rev().filter(|name| !name.is_empty()).map(|name| OsStr::from_bytes(name)));
        path.display().to_string()
    }

    fn failed(&self, operation: &'static str, name: &[u8], e: SysError) -> Error {
        if e.is_cross_device() {
            let cause = "something is mounted there: unmount it first";
            return Error::new(ErrorKind::Busy, operation, self.shown(name), cause).with_source(e);
        }
        if walk::is_gone(&e) {
            return self.changed(operation, name).with_source(e);
        }
        Error::fuse(operation, self.shown(name), e)
    }

    fn changed(&self, operation: &'static str, name: &[u8]) -> Error {
        let cause = "it was replaced or removed meanwhile: try again once nobody changes it";
        Error::new(ErrorKind::Aborted, operation, self.shown(name), cause)
    }

    /// Its descriptor, opened again if it has to be, with those above it.
    fn fd(self: &Arc<Self>) -> Result<Arc<OwnedFd>> {
        let mut closed = Vec::new();
        let mut dir = self;
        let mut above: Option<Arc<OwnedFd>> = None;
        loop {
            if let Some(fd) = &*dir.fd.lock() {
                above = Some(Arc::clone(fd));
                break;
            }
            closed.push(dir);
            match &dir.parent {
                Some(parent) => dir = parent,
                None => break,
            }
        }
        // Not by recursion: a tree may be deeper than this thread's stack.
        for dir in closed.into_iter().rev() {
            let opened = match &above {
                Some(above) => walk::open_dir(above.as_fd(), &dir.name),
                None => sys::open::open_dir_at(dir.shared.root.as_fd(), b".", DirMode::List),
            };
            let fd = opened.map_err(|e| dir.failed("open", b"", e))?;
            let who = walk::identity(fd.as_fd()).map_err(|e| dir.failed("open", b"", e))?;
            if who != (dir.id.dev, dir.id.ino) {
                return Err(dir.changed("open", b""));
            }
            above = Some(dir.keep(Arc::new(fd)));
        }
        above.ok_or_else(|| self.changed("open", b""))
    }

    /// Keeps a descriptor, and closes that of the directory that was opened first if there are many.
    fn keep(self: &Arc<Self>, fd: Arc<OwnedFd>) -> Arc<OwnedFd> {
        *self.fd.lock() = Some(Arc::clone(&fd));
        let oldest = {
            let mut open = self.shared.open.lock();
            open.push_back(Arc::downgrade(self));
            if open.len() > OPEN_DIRS { open.pop_front() } else { None }
        };
        if let Some(oldest) = oldest.and_then(|dir| dir.upgrade())
            && !Arc::ptr_eq(&oldest, self)
        {
            let closed = oldest.fd.lock().take();
            drop(closed);
        }
        fd
    }

    pub(super) fn list(self: &Arc<Self>) -> Result<Vec<Entry>> {
        let fd = self.fd()?;
        let failed = |e| self.failed("list", b"", e);
        // The descriptor may have been listed before.
        rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))
            .map_err(|e| failed(SysError::from_errno(e.raw_os_error())))?;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        match sys::dir::list(fd.as_fd(), usize::MAX, &mut |raw| names.push(raw.name.into())) {
            // Removed while it was open: there is nothing in it.
            Err(e) if e.is_absent() => return Ok(Vec::new()),
            listed => listed.map_err(failed)?,
        };
        self.looked.add(names.len());
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            match self.meta(fd.as_fd(), &name) {
                Ok(meta) => entries.push(Entry { name, meta, node: None }),
                Err(e) if e.is_absent() => {}
                Err(e) => return Err(self.failed("look at", &name, e)),
            }
        }
        Ok(entries)
    }

    fn meta(&self, dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Meta, SysError> {
        let place = Place::At(dir, name);
        let mut stat = sys::stat::stat(place)?;
        if let (Some(overrides), Kind::File | Kind::Dir) = (self.shared.overrides, stat.kind())
            && let Some(value) = sys::xattr::get_value(place, overrides.xattr())?
            && let Some(over) = StatOverride::parse(&value)
        {
            apply_override(&mut stat, &over);
        }
        Ok(Meta {
            kind: stat.kind(),
            mode: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            device: stat.rdev,
            size_bytes: stat.size,
            mtime: Timestamp { secs: stat.mtime.secs, nanos: stat.mtime.nanos },
            links: stat.nlink,
            id: id(&stat),
        })
    }

    pub(super) fn enter(self: &Arc<Self>, entry: &Entry) -> Result<Arc<PlainDir>> {
        Ok(Arc::new(PlainDir {
            shared: Arc::clone(&self.shared),
            looked: Arc::clone(&self.looked),
            parent: Some(Arc::clone(self)),
            name: entry.name.clone(),
            id: entry.meta.id,
            fd: Mutex::new(None),
        }))
    }

    pub(super) fn read_link(self: &Arc<Self>, entry: &Entry) -> Result<Vec<u8>> {
        match sys::node::read_link(self.fd()?.as_fd(), &entry.name) {
            // A regular file stands for it.
            Err(e) if e.errno() == libc::EINVAL && self.shared.overrides.is_some() => {
                let fd = self.open(entry)?;
                let mut target = vec![0; TARGET_MAX];
                let length = sys::copy::read_at(fd.as_fd(), &mut target, 0);
                target.truncate(length.map_err(|e| self.failed("read link", &entry.name, e))?);
                Ok(target)
            }
            target => target.map_err(|e| self.failed("read link", &entry.name, e)),
        }
    }

    pub(super) fn xattrs(self: &Arc<Self>, entry: &Entry, which: Xattrs) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let fd = self.fd()?;
        let place = Place::At(fd.as_fd(), &entry.name);
        let failed = |e| self.failed("read attributes", &entry.name, e);
        let overrides = self.shared.overrides;
        let get = |name: &std::ffi::CStr| {
            let kept = refused::kept_name(overrides, name);
            refused::get_kept(kept.as_deref(), name, |name| sys::xattr::get_value(place, name))
        };
        let mut found = Vec::new();
        if which == Xattrs::Caps {
            // Asked for by its name: one call, and most files have no attribute.
            let value = get(c"security.capability").map_err(failed)?;
            found.extend(value.map(|value| (super::change::CAPABILITY.to_vec(), value)));
            return Ok(found);
        }
        for on_disk in sys::xattr::list(place).map_err(failed)?.iter() {
            let name = refused::shown_name(overrides, on_disk).unwrap_or(on_disk);
            let (true, Ok(c_name)) = (which.keeps(name), CString::new(name)) else { continue };
            if found.iter().any(|(known, _)| known == name) {
                continue;
            }
            if let Some(value) = get(&c_name).map_err(failed)? {
                found.push((name.to_vec(), value));
            }
        }
        Ok(found)
    }

    pub(super) fn open(self: &Arc<Self>, entry: &Entry) -> Result<OwnedFd> {
        let failed = |e| self.failed("open", &entry.name, e);
        let fd = walk::open_file(self.fd()?.as_fd(), &entry.name).map_err(failed)?;
        let who = walk::identity(fd.as_fd()).map_err(failed)?;
        if who != (entry.meta.id.dev, entry.meta.id.ino) {
            return Err(self.changed("open", &entry.name));
        }
        Ok(fd)
    }
}

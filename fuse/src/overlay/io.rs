//! Data: reading, writing, holes, space, syncing, flags.
//!
//! A file has at most two descriptors, one to read and one to write, shared by all who have it open and found
//! again by its number. So there is nothing to open and nothing to close: an open file *is* its inode.

use super::Overlay;
use super::attr::{Privileges, has_upper_data};
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::inode::node::{At, Node, Whereabouts};
use crate::sys::copy::Sync;
use crate::sys::{self, Place};
use crate::types::Kind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

impl Overlay {
    /// A descriptor to read the data of a file.
    pub(crate) fn reader(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.readers.get(&node.ino) {
            return Ok(fd);
        }
        // Held until the descriptor is kept, so that a copy-up cannot come between.
        let place = node.place.read();
        if let Some(fd) = self.pinned_for_data(&place) {
            return Ok(fd);
        }
        self.readers.get_or_open(&node.ino, || self.open_data(node, &place, libc::O_RDONLY))
    }

    /// A descriptor to write the data of a file that is in the upper layer; if possible it reads too.
    pub(crate) fn writer(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.writers.get(&node.ino) {
            return Ok(fd);
        }
        let place = node.place.read();
        if place.at != At::Upper {
            return Err(Error::from_errno(libc::EIO));
        }
        if let Some(fd) = self.pinned_for_data(&place) {
            return Ok(fd);
        }
        self.writers.get_or_open(&node.ino, || self.open_data(node, &place, libc::O_RDWR))
    }

    fn pinned_for_data(&self, place: &Whereabouts) -> Option<Arc<OwnedFd>> {
        if place.data().is_some() {
            return None;
        }
        place.pinned().map(Arc::clone)
    }

    fn open_data(&self, node: &Node, place: &Whereabouts, flags: i32) -> Result<OwnedFd> {
        if node.kind != Kind::File {
            return Err(Error::from_errno(if node.is_dir() { libc::EISDIR } else { libc::EINVAL }));
        }
        if let (Some(data), libc::O_RDONLY) = (place.data(), flags) {
            return self.lower(data.layer)?.open(&data.dir, &data.name);
        }
        match place.at {
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, place)?;
                layer.open(dir, name)
            }
            At::Upper => self.with_upper_place(place, |at| open_upper(at, flags | libc::O_NONBLOCK)),
        }
    }

    /// Opens a file: answers the errors that a later read or write would have, and truncates.
    ///
    /// With `write` a lower file is copied up now, as the classic protocol expects.
    ///
    /// # Errors
    /// EROFS, EISDIR, and those of the disk.
    pub fn open_file(&self, node: &Arc<Node>, flags: i32) -> Result<()> {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if writes || flags & libc::O_TRUNC != 0 {
            self.writable()?;
            if node.is_dir() {
                return Err(Error::from_errno(libc::EISDIR));
            }
        }
        if node.kind != Kind::File {
            return Ok(());
        }
        if flags & libc::O_TRUNC != 0 {
            return self.truncate(node, 0, Privileges::Keep);
        }
        if writes {
            self.copy_up(node, Want::Data)?;
            return self.writer(node).map(drop);
        }
        self.reader(node).map(drop)
    }

    /// Reads at an offset; returns how many bytes there were.
    ///
    /// # Errors
    /// EISDIR, EINVAL, and those of the disk.
    pub fn read(&self, node: &Arc<Node>, at: u64, buffer: &mut [u8]) -> Result<usize> {
        // A file that is being written has its descriptor already.
        if let Some(fd) = self.writers.get(&node.ino) {
            match sys::copy::read_at(fd.as_fd(), buffer, at) {
                Err(e) if e.errno() == libc::EBADF => {}
                other => return other,
            }
        }
        let fd = self.reader(node)?;
        sys::copy::read_at(fd.as_fd(), buffer, at)
    }

    /// Writes at an offset; a lower file is copied up first.
    ///
    /// # Errors
    /// EROFS, ENOSPC, and those of the disk.
    pub fn write(&self, node: &Arc<Node>, at: u64, data: &[u8], privileges: Privileges) -> Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        let fd = self.prepare_write(node)?;
        // Before the data: nobody shall run what is written with the rights of the owner.
        self.kill_privileges(node, privileges)?;
        sys::copy::write_at(fd.as_fd(), data, at)
    }

    fn prepare_write(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.writers.get(&node.ino) {
            return Ok(fd);
        }
        self.writable()?;
        self.copy_up(node, Want::Data)?;
        self.with_upper(node, |at| self.drop_kept_capability(at))?;
        self.writer(node)
    }

    /// How many bytes a write would have to copy first; 0 if none.
    ///
    /// For those who decide which thread does the work.
    pub fn pending_copy_bytes(&self, node: &Arc<Node>) -> u64 {
        if node.kind != Kind::File || self.upper.is_none() || has_upper_data(&node.place.read()) {
            return 0;
        }
        self.stat(node).map_or(0, |s| s.size)
    }

    /// `fallocate(2)`.
    ///
    /// # Errors
    /// EOPNOTSUPP for a mode that the disk does not have.
    pub fn allocate(
        &self,
        node: &Arc<Node>,
        mode: i32,
        at: u64,
        length: u64,
        privileges: Privileges,
    ) -> Result<()> {
        let fd = self.prepare_write(node)?;
        self.kill_privileges(node, privileges)?;
        sys::copy::allocate(fd.as_fd(), mode, at, length)
    }

    /// `lseek(2)` with SEEK_DATA or SEEK_HOLE: returns the offset.
    ///
    /// # Errors
    /// ENXIO beyond the end.
    pub fn seek(&self, node: &Arc<Node>, at: i64, whence: i32) -> Result<u64> {
        // Through a descriptor of its own: the position of a shared one is nobody's.
        let place = node.place.read();
        let fd = match self.open_data(node, &place, libc::O_RDONLY) {
            Err(e) if e.is_denied() && place.at == At::Upper => {
                drop(place);
                return sys::copy::seek(self.writer(node)?.as_fd(), at, whence);
            }
            other => other?,
        };
        drop(place);
        sys::copy::seek(fd.as_fd(), at, whence)
    }

    /// `copy_file_range(2)` between two files of the tree; returns how many bytes were copied.
    ///
    /// # Errors
    /// As the system call.
    pub fn copy_range(
        &self,
        from: &Arc<Node>,
        from_at: u64,
        to: &Arc<Node>,
        to_at: u64,
        length: usize,
        privileges: Privileges,
    ) -> Result<usize> {
        let target = self.prepare_write(to)?;
        // As everywhere on Linux: where there is nothing to copy, nothing changes.
        if length > 0 && from_at < self.stat(from)?.size {
            self.kill_privileges(to, privileges)?;
        }
        let copy = |source: Arc<OwnedFd>| {
            sys::copy::copy_range(source.as_fd(), from_at, target.as_fd(), to_at, length)
        };
        if let Some(fd) = self.writers.get(&from.ino) {
            match copy(fd) {
                // It only writes.
                Err(e) if e.errno() == libc::EBADF => {}
                other => return other,
            }
        }
        copy(self.reader(from)?)
    }

    /// Brings a file or a directory to the disk; a lower one is there already.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self, node: &Arc<Node>, what: Sync) -> Result<()> {
        use crate::layer::upper::Durability;
        let Some(upper) = &self.upper else { return Ok(()) };
        if upper.durability() == Durability::Volatile || !node.is_upper() {
            return Ok(());
        }
        if node.kind == Kind::File && has_upper_data(&node.place.read()) {
            let fd = match self.writers.get(&node.ino) {
                Some(fd) => fd,
                None => self.reader(node)?,
            };
            return sys::copy::sync(fd.as_fd(), what);
        }
        let fd = self.with_upper(node, |at| match at {
            Place::At(dir, name) => sys::open::open_at(dir, name, libc::O_RDONLY | libc::O_NONBLOCK, 0),
            Place::Fd(fd) => Ok(fd.try_clone_to_owned()?),
        })?;
        match sys::copy::sync(fd.as_fd(), what) {
            // A pinned descriptor that only names the file: nothing is left to be synced under a name.
            Err(e) if e.errno() == libc::EBADF => Ok(()),
            other => other,
        }
    }

    /// The inode flags (`chattr`).
    ///
    /// # Errors
    /// ENOTTY where the disk has none.
    pub fn flags(&self, node: &Arc<Node>) -> Result<u32> {
        sys::node::get_flags(self.open_for_flags(node)?.as_fd())
    }

    /// Sets the inode flags.
    ///
    /// # Errors
    /// EPERM, EOPNOTSUPP as `ioctl_iflags(2)`.
    pub fn set_flags(&self, node: &Arc<Node>, flags: u32) -> Result<()> {
        self.writable()?;
        self.copy_up(node, Want::Data)?;
        sys::node::set_flags(self.open_for_flags(node)?.as_fd(), flags)
    }

    fn open_for_flags(&self, node: &Arc<Node>) -> Result<OwnedFd> {
        let place = node.place.read();
        let flags = libc::O_RDONLY | libc::O_NONBLOCK;
        match (node.kind, place.at) {
            (Kind::File | Kind::Dir, At::Upper) => self.with_upper_place(&place, |at| open_upper(at, flags)),
            (Kind::File, At::Lower(_)) => self.open_data(node, &place, libc::O_RDONLY),
            (Kind::Dir, At::Lower(_)) => {
                let (layer, dir, _) = self.lower_place(node, &place)?;
                layer.open(dir, b".")
            }
            _ => Err(Error::from_errno(libc::ENOTTY)),
        }
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub fn read_link(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        if node.kind != Kind::Symlink {
            return Err(Error::from_errno(libc::EINVAL));
        }
        let place = node.place.read();
        match place.at {
            At::Upper => self.with_upper_place(&place, |at| match at {
                Place::At(dir, name) => match sys::node::read_link(dir, name) {
                    Err(e) if e.errno() == libc::EINVAL => read_stand_in(open_upper(at, libc::O_RDONLY)?),
                    other => other,
                },
                Place::Fd(fd) => sys::node::read_link_fd(fd),
            }),
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                match layer.read_link(dir, name) {
                    Err(e) if e.errno() == libc::EINVAL => read_stand_in(layer.open(dir, name)?),
                    other => other,
                }
            }
        }
    }

    /// Keeps the descriptor of a file that was just made, for the writes that follow.
    pub(crate) fn keep_writer(&self, node: &Node, fd: OwnedFd) {
        self.writers.put(node.ino, Arc::new(fd));
    }

    /// Forgets the descriptors of a file whose data is elsewhere now.
    pub(crate) fn drop_descriptors(&self, node: &Node) {
        self.readers.remove(&node.ino);
        self.writers.remove(&node.ino);
    }
}

/// Reads the target of a symlink that a regular file stands for.
fn read_stand_in(file: OwnedFd) -> Result<Vec<u8>> {
    let mut target = vec![0u8; libc::PATH_MAX as usize];
    let length = sys::copy::read_at(file.as_fd(), &mut target, 0)?;
    target.truncate(length);
    Ok(target)
}

/// Opens a file of the upper layer; one that its mode closes to this process is opened to it for a moment.
///
/// A server without privilege owns the files it serves, but a mode like 0200 or 0000 binds it all the same,
/// while the caller may have been let in by other means (the file was just made, or the caller is root).
pub(crate) fn open_upper(at: Place<'_>, flags: i32) -> Result<OwnedFd> {
    let Place::At(dir, name) = at else { return sys::open::open_place(at, flags) };
    match sys::open::open_at(dir, name, flags, 0) {
        Err(e) if e.errno() == libc::EACCES => {}
        other => return other,
    }
    if flags & libc::O_ACCMODE == libc::O_RDWR {
        let write_only = (flags & !libc::O_ACCMODE) | libc::O_WRONLY;
        if let Ok(fd) = sys::open::open_at(dir, name, write_only, 0) {
            return Ok(fd);
        }
    }
    let stat = sys::stat::stat(at)?;
    if !matches!(stat.kind(), Kind::File | Kind::Dir) {
        return Err(Error::from_errno(libc::EACCES));
    }
    let perm = stat.mode & 0o7777;
    sys::stat::chmod(at, perm | 0o600)?;
    let opened = sys::open::open_at(dir, name, flags, 0);
    sys::stat::chmod(at, perm)?;
    let fd = opened?;
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(fd)
}

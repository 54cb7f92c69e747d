//! Files that are open, and the shortcuts that open, read or write, and close.

use super::path::{Follow, Here, Spot};
use super::{Known, View, during};
use crate::access::{Access, Through};
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::overlay::attr::Privileges;
use crate::overlay::create::New;
use crate::sys::copy::Sync;
use crate::types::{Attr, Kind, SetAttr, SetTime};
use std::io::{self, SeekFrom};
use std::path::Path;

/// How a file is opened: begin with [`Open::read`], [`Open::write`] or [`Open::append`] and say more.
///
/// ```
/// use plywood_fuse::view::Open;
/// let log = Open::append().or_create().mode(0o600);
/// let copy = Open::write().and_read().or_create().truncate();
/// # let _ = (log, copy);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    readable: bool,
    writable: bool,
    append: bool,
    truncate: bool,
    create: Create,
    follow: bool,
    perm: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Create {
    Never,
    IfMissing,
    Always,
}

impl Open {
    const NOTHING: Open = Open {
        readable: false,
        writable: false,
        append: false,
        truncate: false,
        create: Create::Never,
        follow: true,
        perm: 0o666,
    };

    /// To read: a regular file or a directory.
    pub const fn read() -> Open {
        Open { readable: true, ..Open::NOTHING }
    }

    /// To write.
    pub const fn write() -> Open {
        Open { writable: true, ..Open::NOTHING }
    }

    /// To write at the end, wherever that is by then.
    pub const fn append() -> Open {
        Open { writable: true, append: true, ..Open::NOTHING }
    }

    /// To read as well.
    #[must_use]
    pub const fn and_read(self) -> Open {
        Open { readable: true, ..self }
    }

    /// To write as well.
    #[must_use]
    pub const fn and_write(self) -> Open {
        Open { writable: true, ..self }
    }

    /// Cut to nothing; asks for the right to write even if the file is only read.
    #[must_use]
    pub const fn truncate(self) -> Open {
        Open { truncate: true, ..self }
    }

    /// Made if it is missing (O_CREAT).
    #[must_use]
    pub const fn or_create(self) -> Open {
        Open { create: Create::IfMissing, ..self }
    }

    /// Made by this call, or it fails (O_CREAT and O_EXCL).
    #[must_use]
    pub const fn create_new(self) -> Open {
        Open { create: Create::Always, ..self }
    }

    /// Not through a symlink at the end of the path.
    #[must_use]
    pub const fn nofollow(self) -> Open {
        Open { follow: false, ..self }
    }

    /// The mode of a file that is made, before the umask; 0666 if nothing is said.
    #[must_use]
    pub const fn mode(self, perm: u32) -> Open {
        Open { perm, ..self }
    }

    fn wants(self) -> Access {
        let mut want = Access::default();
        if self.readable {
            want = want.union(Access::READ);
        }
        if self.writable || self.truncate {
            want = want.union(Access::WRITE);
        }
        want
    }
}

impl View {
    /// Opens a file.
    ///
    /// A file of a lower layer is copied up when it is first written, so ENOSPC comes with the write.
    ///
    /// # Errors
    /// EACCES for who may not use the file in this way, or not make it; EISDIR to write a directory; ENXIO for a
    /// pipe, socket or device; EEXIST for [`Open::create_new`]; ELOOP for [`Open::nofollow`]; EROFS; those of
    /// [`View::metadata`].
    ///
    /// # Source
    /// `do_open` and `may_open` of Linux.
    pub fn open(&self, path: impl AsRef<Path>, how: Open) -> Result<File> {
        during("open", path.as_ref(), |path| {
            if how.create == Create::Never {
                let follow = if how.follow { Follow::Yes } else { Follow::No };
                let here = self.find(path, follow)?;
                return self.open_found(here, how);
            }
            let follow = match (how.create, how.follow) {
                (Create::IfMissing, true) => Follow::ToCreate,
                _ => Follow::Never,
            };
            let mut spot = self.resolve(path, follow)?;
            if spot.slash && spot.name(0).is_ok() {
                return Err(Error::from_errno(libc::EISDIR));
            }
            let leaf = match spot.leaf.take() {
                Some(leaf) => Some(leaf),
                None if spot.name(0).is_ok() => None,
                // `.`, `..` or the root: a directory, and there.
                None if how.create == Create::Always => return Err(Error::from_errno(libc::EEXIST)),
                None => return Err(Error::from_errno(libc::EISDIR)),
            };
            match leaf {
                None => self.open_new(&spot, how),
                Some(_) if how.create == Create::Always => Err(Error::from_errno(libc::EEXIST)),
                Some(here) if here.is_dir() => Err(Error::from_errno(libc::EISDIR)),
                Some(here) => self.open_found(here, how),
            }
        })
    }

    /// A file that was just made is open in every way that was asked for, whatever its mode says.
    fn open_new(&self, spot: &Spot, how: Open) -> Result<File> {
        self.may(spot.dir(), Access::WRITE.union(Access::EXECUTE))?;
        let here = self.make_at(spot, New::File, how.perm & 0o7777)?;
        Ok(self.file(here.known, how))
    }

    fn open_found(&self, here: Here, how: Open) -> Result<File> {
        let want = how.wants();
        match here.attr.kind {
            Kind::Symlink => return Err(Error::from_errno(libc::ELOOP)),
            Kind::Dir if want.contains(Access::WRITE) => return Err(Error::from_errno(libc::EISDIR)),
            _ => {}
        }
        self.may(&here, want)?;
        match here.attr.kind {
            Kind::Dir => {}
            Kind::File if how.truncate => {
                let change = SetAttr { size_bytes: Some(0), ..SetAttr::default() };
                self.change(here.node(), &here.attr, change, Through::WriteHandle)?;
            }
            // Answers now what the first read would.
            Kind::File if how.readable => self.overlay.open_file(here.node(), libc::O_RDONLY)?,
            Kind::File => {}
            _ => return Err(Error::from_errno(libc::ENXIO)),
        }
        Ok(self.file(here.known, how))
    }

    fn file(&self, known: Known, how: Open) -> File {
        File { view: self.clone(), known, how, position: 0 }
    }

    /// Makes a file without a name in a directory (O_TMPFILE), open to read and write; [`File::link`] can name
    /// it.
    ///
    /// # Errors
    /// EOPNOTSUPP where the disk below has none; those of [`View::create_dir`].
    pub fn open_nameless(&self, dir: impl AsRef<Path>, perm: u32) -> Result<File> {
        during("open nameless", dir.as_ref(), |dir| {
            let here = self.find(dir, Follow::Yes)?;
            self.expect_dir(&here, Access::WRITE.union(Access::EXECUTE))?;
            let (creator, perm) = self.creator(&here.attr, Kind::File, perm & 0o7777);
            let (node, _) = self.overlay.create_nameless(here.node(), perm, creator)?;
            Ok(self.file(Known::new(&self.overlay, node), Open::read().and_write()))
        })
    }

    /// The content of a regular file.
    ///
    /// # Errors
    /// Those of [`View::open`]; EISDIR.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let file = self.open(path, Open::read())?;
        during("read", path, |_| file.read_all())
    }

    /// Makes `content` all that a regular file holds; one that is missing is made with the mode 0666, less the
    /// umask.
    ///
    /// # Errors
    /// Those of [`View::open`]; ENOSPC.
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let file = self.open(path, Open::write().or_create().truncate())?;
        during("write", path, |_| file.write_all_at(content.as_ref(), 0))
    }
}

/// An open file or directory.
///
/// It stays usable whatever happens to its names, and with the rights it was opened with. It has a position of
/// its own for [`io::Read`], [`io::Write`] and [`io::Seek`]; the functions that end in `_at` neither use nor move
/// it.
pub struct File {
    view: View,
    known: Known,
    how: Open,
    /// Where the next read or write begins, in bytes.
    position: u64,
}

impl File {
    fn expect_readable(&self) -> Result<()> {
        if !self.how.readable {
            return Err(Error::from_errno(libc::EBADF));
        }
        self.expect_regular()
    }

    fn expect_writable(&self) -> Result<()> {
        if self.how.writable { Ok(()) } else { Err(Error::from_errno(libc::EBADF)) }
    }

    fn expect_regular(&self) -> Result<()> {
        match self.known.node().kind {
            Kind::Dir => Err(Error::from_errno(libc::EISDIR)),
            _ => Ok(()),
        }
    }

    /// Reads from an offset until `buffer` is full or the file ends; returns how many bytes came.
    ///
    /// # Errors
    /// EBADF if it is not open to read; EISDIR; those of the disk.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        self.expect_readable()?;
        self.view.overlay.read(self.known.node(), at, buffer)
    }

    /// All that the file holds, from its begin.
    ///
    /// # Errors
    /// Those of [`File::read_at`].
    pub fn read_all(&self) -> Result<Vec<u8>> {
        /// Enough that a large file takes few steps, and little enough to allocate in vain.
        const STEP_BYTES: usize = 1 << 20;
        self.expect_readable()?;
        let size = usize::try_from(self.metadata()?.size_bytes).unwrap_or(usize::MAX);
        let mut content = Vec::new();
        loop {
            let start = content.len();
            // One byte more than is expected, so that the end is seen by the same step.
            let step = size.saturating_sub(start).saturating_add(1).min(STEP_BYTES);
            content.resize(start + step, 0);
            let came = self.read_at(&mut content[start..], start as u64)?;
            content.truncate(start + came);
            if came < step {
                return Ok(content);
            }
        }
    }

    /// Writes at an offset; a file opened to append is written at its end instead, as Linux does.
    ///
    /// Returns how many bytes were written: fewer than asked only if the disk is full after some.
    ///
    /// # Errors
    /// EBADF if it is not open to write; ENOSPC; EFBIG; those of the disk.
    pub fn write_at(&self, data: &[u8], at: u64) -> Result<usize> {
        self.write_from(data, at).map(|(_, written)| written)
    }

    /// Writes all of `data` at an offset.
    ///
    /// # Errors
    /// Those of [`File::write_at`].
    pub fn write_all_at(&self, data: &[u8], at: u64) -> Result<()> {
        if self.write_at(data, at)? < data.len() {
            return Err(Error::from_errno(libc::ENOSPC));
        }
        Ok(())
    }

    /// Where the write began, and how many bytes it had.
    fn write_from(&self, data: &[u8], at: u64) -> Result<(u64, usize)> {
        self.expect_writable()?;
        if data.is_empty() {
            return Ok((at, 0));
        }
        let (overlay, node) = (&self.view.overlay, self.known.node());
        overlay.copy_up(node, Want::Data)?;
        // In the upper layer nothing copies it any more: from here on the lock makes the end and the write one.
        let appending = self.how.append.then(|| node.copying.lock());
        let before = overlay.attributes(node)?;
        let at = if appending.is_some() { before.size_bytes } else { at };
        let written = overlay.write(node, at, data, Privileges::Keep)?;
        drop(appending);
        self.view.settle_privileges(node, &before)?;
        Ok((at, written))
    }

    /// Calls `change` on the content, and leaves the setuid and setgid bits as a write does.
    fn changing<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        self.expect_writable()?;
        let before = self.view.overlay.attributes(self.known.node())?;
        let changed = change()?;
        self.view.settle_privileges(self.known.node(), &before)?;
        Ok(changed)
    }

    /// Sets the size in bytes; what is added is a hole.
    ///
    /// # Errors
    /// EINVAL if it is not open to write, or above 2^63 - 1; ENOSPC; EFBIG; those of the disk.
    pub fn set_len(&self, size_bytes: u64) -> Result<()> {
        self.expect_writable().map_err(|_| Error::from_errno(libc::EINVAL))?;
        let change = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
        self.view.change(self.known.node(), &self.metadata()?, change, Through::WriteHandle).map(drop)
    }

    /// Takes room on the disk for a range, which reads as zeros where there was nothing; the file grows if need
    /// be.
    ///
    /// # Errors
    /// EBADF if it is not open to write; EINVAL for an empty range; ENOSPC; EOPNOTSUPP; those of the disk.
    pub fn allocate(&self, at: u64, length: u64) -> Result<()> {
        self.fallocate(0, at, length)
    }

    /// Makes a range a hole, which reads as zeros; the size stays.
    ///
    /// # Errors
    /// Those of [`File::allocate`].
    pub fn punch(&self, at: u64, length: u64) -> Result<()> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, length)
    }

    /// `fallocate(2)` with any mode.
    ///
    /// # Errors
    /// Those of [`File::allocate`]; EOPNOTSUPP for a mode that the disk does not have.
    pub fn fallocate(&self, mode: i32, at: u64, length: u64) -> Result<()> {
        let (overlay, node) = (&self.view.overlay, self.known.node());
        self.changing(|| overlay.allocate(node, mode, at, length, Privileges::Keep))
    }

    /// Copies a range from one file to another without bringing it here; returns how many bytes were copied:
    /// fewer than asked at the end of `self`, and anywhere else.
    ///
    /// # Errors
    /// EBADF if this is not open to read or `to` not to write, or to append; EINVAL if the ranges overlap in one
    /// file; ENOSPC; those of the disk.
    pub fn copy_range(&self, from_at: u64, to: &File, to_at: u64, length: usize) -> Result<usize> {
        self.expect_readable()?;
        to.expect_writable()?;
        if to.how.append {
            return Err(Error::from_errno(libc::EBADF));
        }
        let (overlay, from) = (&self.view.overlay, self.known.node());
        to.changing(|| overlay.copy_range(from, from_at, to.known.node(), to_at, length, Privileges::Keep))
    }

    /// The first byte of data at or after an offset; `None` if only a hole or the end follows.
    ///
    /// # Errors
    /// EISDIR; those of the disk.
    pub fn seek_data(&self, at: u64) -> Result<Option<u64>> {
        self.seek_to(at, libc::SEEK_DATA)
    }

    /// The first byte of a hole at or after an offset, the end of the file being one; `None` beyond the end.
    ///
    /// # Errors
    /// EISDIR; those of the disk.
    pub fn seek_hole(&self, at: u64) -> Result<Option<u64>> {
        self.seek_to(at, libc::SEEK_HOLE)
    }

    fn seek_to(&self, at: u64, whence: i32) -> Result<Option<u64>> {
        self.expect_regular()?;
        let at = i64::try_from(at).map_err(|_| Error::from_errno(libc::EINVAL))?;
        match self.view.overlay.seek(self.known.node(), at, whence) {
            Err(e) if e.errno() == libc::ENXIO => Ok(None),
            other => other.map(Some),
        }
    }

    /// Brings data and attributes to the disk, unless the overlay is volatile.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self) -> Result<()> {
        self.view.overlay.sync(self.known.node(), Sync::All)
    }

    /// Brings the data to the disk, and of the attributes what is needed to read it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync_data(&self) -> Result<()> {
        self.view.overlay.sync(self.known.node(), Sync::Data)
    }

    /// The attributes as they are now.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn metadata(&self) -> Result<Attr> {
        self.view.overlay.attributes(self.known.node())
    }

    /// Sets access and modification time; `None` leaves one as it is.
    ///
    /// # Errors
    /// Those of [`View::set_times`].
    pub fn set_times(&self, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
        self.set(SetAttr { atime, mtime, ..SetAttr::default() })
    }

    /// Sets the permission bits, as [`View::set_permissions`].
    ///
    /// # Errors
    /// EPERM unless owner or root; EROFS.
    pub fn set_permissions(&self, perm: u32) -> Result<()> {
        self.set(SetAttr { perm: Some(perm & 0o7777), ..SetAttr::default() })
    }

    /// Sets owner and group, as [`View::chown`].
    ///
    /// # Errors
    /// EPERM as there; EROFS.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.set(SetAttr { uid, gid, ..SetAttr::default() })
    }

    fn set(&self, change: SetAttr) -> Result<()> {
        self.view.change(self.known.node(), &self.metadata()?, change, Through::Path).map(drop)
    }

    /// Gives the file another name; the first one, if it was opened by [`View::open_nameless`].
    ///
    /// # Errors
    /// ENOENT if it had names and lost them all; those of [`View::link`].
    pub fn link(&self, path: impl AsRef<Path>) -> Result<()> {
        during("link", path.as_ref(), |path| self.view.link_at(&self.known, path))
    }
}

impl io::Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let came = self.read_at(buffer, self.position).map_err(plain)?;
        self.position += came as u64;
        Ok(came)
    }
}

impl io::Write for File {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let (at, written) = self.write_from(data, self.position).map_err(plain)?;
        self.position = at + written as u64;
        Ok(written)
    }

    /// Nothing is kept back, so nothing is to be done; [`File::sync`] is another matter.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for File {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.metadata().map_err(plain)?.size_bytes.checked_add_signed(by),
        };
        self.position = position
            .filter(|&at| i64::try_from(at).is_ok())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        Ok(self.position)
    }
}

/// An error whose errno [`io::Error::raw_os_error`] tells; words would hide it.
fn plain(error: Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

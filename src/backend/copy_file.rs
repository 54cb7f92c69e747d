//! How the content and the attributes of one open file become those of another.
//!
//! Data is shared where the disk can (FICLONE), else copied by the kernel (`copy_file_range(2)`), else read and
//! written. Holes stay holes. What one file system refuses once it is not asked again.

use crate::error::Error;
use plywood_fuse::error::{Error as SysError, Result};
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::sys::{self, Place, copy};
use plywood_fuse::types::SetTime;
use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much is copied before somebody is told, in bytes: what a disk does in a moment.
const CHUNK: u64 = 16 << 20;

/// The buffer for reading and writing, in bytes.
const BUFFER: usize = 256 * 1024;

/// Who is told of each piece that was moved, and may stop it.
pub trait Watch {
    /// This much more is there.
    ///
    /// # Errors
    /// Whatever shall end the copy.
    fn moved(&self, bytes: u64) -> crate::error::Result<()>;
}

/// Why a file was not copied.
#[derive(Debug)]
pub enum Failure {
    /// The disk.
    Disk(SysError),
    /// Whoever watches wanted it.
    Caller(Error),
}

impl From<SysError> for Failure {
    fn from(e: SysError) -> Self {
        Failure::Disk(e)
    }
}

/// What the file systems at both ends can do: found out by doing, once for a tree.
#[derive(Default)]
pub struct Ways {
    no_clone: AtomicBool,
    no_range: AtomicBool,
}

impl Ways {
    /// Copies `size` bytes of `from` to the empty file `to`.
    ///
    /// # Errors
    /// Those of the disk, and of `watch`.
    pub fn copy(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        size: u64,
        watch: &dyn Watch,
    ) -> std::result::Result<(), Failure> {
        if size == 0 {
            return Ok(());
        }
        if !self.no_clone.load(Ordering::Relaxed) {
            match copy::clone_file(from, to) {
                Ok(()) => return watch.moved(size).map_err(Failure::Caller),
                // A single file can be refused (no copy-on-write, swap); a file system that cannot says so.
                Err(e) if e.errno() == libc::EINVAL => {}
                Err(_) => self.no_clone.store(true, Ordering::Relaxed),
            }
        }
        sys::stat::truncate(to, size)?;
        let mut at = 0;
        while at < size {
            let (data, hole) = match next_data(from, at, size)? {
                Some(range) => range,
                None => (size, size),
            };
            watch.moved(data - at).map_err(Failure::Caller)?;
            self.copy_data(from, to, data, hole, watch)?;
            at = hole;
        }
        Ok(())
    }

    fn copy_data(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        mut at: u64,
        end: u64,
        watch: &dyn Watch,
    ) -> std::result::Result<(), Failure> {
        let mut buffer = Vec::new();
        while at < end {
            let length = (end - at).min(CHUNK) as usize;
            let moved = match self.copy_range(from, to, at, length)? {
                Some(moved) => moved,
                None => {
                    buffer.resize(BUFFER.min(length), 0);
                    let read = copy::read_at(from, &mut buffer, at)?;
                    if copy::write_at(to, &buffer[..read], at)? < read {
                        return Err(SysError::from_errno(libc::ENOSPC).into());
                    }
                    read
                }
            };
            if moved == 0 {
                // The file is shorter than it was: its source changes while it is copied.
                return Err(SysError::new(libc::EIO, "read", "source", "it changed meanwhile").into());
            }
            at += moved as u64;
            watch.moved(moved as u64).map_err(Failure::Caller)?;
        }
        Ok(())
    }

    /// `None` where the kernel cannot copy between these files by itself.
    fn copy_range(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        at: u64,
        length: usize,
    ) -> Result<Option<usize>> {
        if self.no_range.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match copy::copy_range(from, at, to, at, length) {
            // Some file systems say "nothing to copy" of files that they make up.
            Ok(0) => Ok(None),
            Ok(moved) => Ok(Some(moved)),
            Err(e) if e.is_unsupported() || e.is_cross_device() || e.is_denied() => {
                self.no_range.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// The next range from `at` on that holds data, within `size`; `None` if the rest is a hole.
fn next_data(fd: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| SysError::from_errno(libc::EFBIG));
    let data = match copy::seek(fd, offset(at)?, libc::SEEK_DATA) {
        Ok(data) => data,
        Err(e) if e.errno() == libc::ENXIO => return Ok(None),
        // It cannot tell: everything counts as data.
        Err(e) if e.is_unsupported() => return Ok(Some((at, size))),
        Err(e) => return Err(e),
    };
    if data >= size {
        return Ok(None);
    }
    let hole = copy::seek(fd, offset(data)?, libc::SEEK_HOLE)?;
    Ok(Some((data, hole.min(size))))
}

/// Copies all extended attributes; on failure, with the name of the one.
///
/// # Errors
/// Those of the disk. That a security module has labels of its own for new files is no error.
pub fn copy_xattrs(from: Place<'_>, to: Place<'_>) -> std::result::Result<(), (Vec<u8>, SysError)> {
    let names = sys::xattr::list(from).map_err(|e| (Vec::new(), e))?;
    for name in names.iter() {
        let copied = || {
            let attribute = CString::new(name).map_err(|_| SysError::from_errno(libc::EINVAL))?;
            match sys::xattr::get_value(from, &attribute)? {
                Some(value) => sys::xattr::set(to, &attribute, &value, SetMode::Any),
                None => Ok(()),
            }
        };
        match copied() {
            Err(e) if is_label(name) && (e.is_denied() || e.is_unsupported()) => {}
            other => other.map_err(|e| (name.to_vec(), e))?,
        }
    }
    Ok(())
}

/// True for what belongs to the machine and not to the file.
fn is_label(name: &[u8]) -> bool {
    name.starts_with(b"security.") && name != b"security.capability"
}

/// Gives a file the times of another.
///
/// # Errors
/// Those of the disk.
pub fn copy_times(to: Place<'_>, stat: &Stat) -> Result<()> {
    sys::stat::set_times(to, Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
}

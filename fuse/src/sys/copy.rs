//! Moving file data: reads, writes, clones, holes, and syncing.

use super::{changing, check, check_size};
use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

fn offset(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| Error::from_errno(libc::EINVAL))
}

/// Reads at an offset until `buffer` is full or the file ends; returns how many bytes came.
///
/// # Errors
/// As `pread(2)`.
pub fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let position = offset(at + done as u64)?;
        // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`.
        let value = unsafe { libc::pread(fd.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), position) };
        match check_size(value) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes all of `data` at an offset.
///
/// Returns how many bytes were written; fewer than asked only if the disk is full after some.
///
/// # Errors
/// As `pwrite(2)`, if nothing was written.
pub fn write_at(fd: BorrowedFd<'_>, data: &[u8], at: u64) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let position = offset(at + done as u64)?;
        changing();
        // SAFETY: the kernel reads at most `rest.len()` bytes of `rest`.
        let value = unsafe { libc::pwrite(fd.as_raw_fd(), rest.as_ptr().cast(), rest.len(), position) };
        match check_size(value) {
            Ok(n) => done += n,
            Err(e) if e.errno() == libc::EINTR => {}
            Err(_) if done > 0 => return Ok(done),
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Makes `to` share the data of `from` (FICLONE).
///
/// # Errors
/// EOPNOTSUPP, EXDEV, EINVAL where the file system cannot.
pub fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    changing();
    // SAFETY: FICLONE takes a descriptor by value; no memory is passed.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE as _, from.as_raw_fd()) }).map(drop)
}

/// Copies up to `length` bytes within the kernel; returns how many were copied, 0 at the end.
///
/// # Errors
/// As `copy_file_range(2)`.
pub fn copy_range(
    from: BorrowedFd<'_>,
    from_at: u64,
    to: BorrowedFd<'_>,
    to_at: u64,
    length: usize,
) -> Result<usize> {
    let (mut source, mut target) = (offset(from_at)?, offset(to_at)?);
    changing();
    // SAFETY: both offsets live for the length of the call.
    check_size(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut source, to.as_raw_fd(), &raw mut target, length, 0)
    })
}

/// `lseek(2)` with SEEK_DATA or SEEK_HOLE (or any other whence); returns the new offset.
///
/// # Errors
/// ENXIO if there is no more data; EINVAL where the file system cannot tell.
pub fn seek(fd: BorrowedFd<'_>, at: i64, whence: i32) -> Result<u64> {
    // SAFETY: the descriptor is open; no memory is passed.
    let value = unsafe { libc::lseek(fd.as_raw_fd(), at, whence) };
    u64::try_from(value).map_err(|_| Error::last_os_error())
}

/// `fallocate(2)`.
///
/// # Errors
/// EOPNOTSUPP where the file system does not have the mode.
pub fn allocate(fd: BorrowedFd<'_>, mode: i32, at: u64, length: u64) -> Result<()> {
    changing();
    // SAFETY: the descriptor is open; no memory is passed.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset(at)?, offset(length)?) }).map(drop)
}

/// Brings the data of an open file to the disk; with `Sync::Data` without needless attributes.
///
/// # Errors
/// As `fsync(2)`.
pub fn sync(fd: BorrowedFd<'_>, what: Sync) -> Result<()> {
    // SAFETY: the descriptor is open; no memory is passed.
    check(unsafe {
        match what {
            Sync::Data => libc::fdatasync(fd.as_raw_fd()),
            Sync::All => libc::fsync(fd.as_raw_fd()),
        }
    })
    .map(drop)
}

/// Starts to write a range of an open file to the disk, without waiting for it; length 0 means to the end.
///
/// On ext4 this gives the data its place on the disk, and a journal in ordered mode (the default) then writes
/// the data before it commits what is done to the file next, a rename for instance.
///
/// # Errors
/// As `sync_file_range(2)`.
pub fn start_writeback(fd: BorrowedFd<'_>, at: u64, length: u64) -> Result<()> {
    let (at, length) = (offset(at)?, offset(length)?);
    // SAFETY: the descriptor is open; no memory is passed.
    check(unsafe { libc::sync_file_range(fd.as_raw_fd(), at, length, libc::SYNC_FILE_RANGE_WRITE) }).map(drop)
}

/// What [`sync`] brings to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// The data, and what is needed to read it back.
    Data,
    /// The data and all attributes.
    All,
}

//! How the bytes of one file get into another: holes stay holes, and the disk has them before the name.
//!
//! Where a journal orders data before names once the data has its place on the disk, giving it that place costs
//! as much as a third of the copy; of a big file it is done by a second thread, right behind the copy.

use crate::error::{Error, Result};
use crate::layer::probe::Ordering;
use crate::layer::upper::{Durability, Upper};
use crate::sys;
use std::os::fd::BorrowedFd;

/// Below this size reads and writes are as fast as any other way.
const PLAIN_COPY_MAX_BYTES: u64 = 64 * 1024;

/// The size of one step of a copy: large enough to be fast, small enough for a buffer.
const STEP_BYTES: usize = 1 << 20;

/// Makes sure that data reaches the disk before what is done to the file next: the rename that publishes it,
/// or the mark that says it is complete. After a crash of the machine a name must not show a file without its
/// data, since what it hides below was whole.
///
/// `moved` bytes were written; a clone shares data that is on the disk already.
pub(super) fn order_before_rename(upper: &Upper, file: BorrowedFd<'_>, moved: u64) -> Result<()> {
    if moved == 0 || upper.durability() == Durability::Volatile {
        return Ok(());
    }
    match upper.abilities().ordering {
        Ordering::NotNeeded => Ok(()),
        Ordering::Journal => sys::copy::start_writeback(file, 0, 0),
        Ordering::Nothing => sys::copy::sync(file, sys::copy::Sync::Data),
    }
}

/// Files from this size on are brought to the disk while they are still copied: below, a thread costs more.
const OVERLAP_MIN_BYTES: u64 = 4 << 20;

/// So much is handed to the thread that brings it to the disk.
const OVERLAP_STEP_BYTES: u64 = 4 << 20;

/// Copies the data of a file; returns how many bytes were moved. Holes stay holes.
pub(super) fn copy_data(upper: &Upper, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> Result<u64> {
    if size == 0 {
        return Ok(0);
    }
    if size <= PLAIN_COPY_MAX_BYTES {
        let mut buffer = vec![0u8; usize::try_from(size).unwrap_or(STEP_BYTES)];
        let length = sys::copy::read_at(from, &mut buffer, 0)?;
        write_all(to, buffer.get(..length).unwrap_or_default(), 0)?;
        return Ok(length as u64);
    }
    if sys::copy::clone_file(from, to).is_ok() {
        return Ok(0);
    }
    sys::stat::truncate(to, size)?;
    let journal = upper.abilities().ordering == Ordering::Journal;
    if size < OVERLAP_MIN_BYTES || !journal || upper.durability() == Durability::Volatile {
        return copy_extents(from, to, size, &mut |_, _| ());
    }
    std::thread::scope(|scope| {
        let (copied, to_place) = crossbeam::channel::unbounded::<(u64, u64)>();
        let place = move || {
            for (at, length) in to_place {
                // Only sooner: `order_before_rename` does what is left, and tells of errors.
                let _ = sys::copy::start_writeback(to, at, length);
            }
        };
        // Without a thread it is all done at the end.
        let _ = std::thread::Builder::new().name("writeback".to_owned()).spawn_scoped(scope, place);
        let (mut done, mut handed) = (0, 0);
        let moved = copy_extents(from, to, size, &mut |_, end| {
            done = end;
            if done - handed >= OVERLAP_STEP_BYTES {
                let _ = copied.send((handed, done - handed));
                handed = done;
            }
        });
        drop(copied);
        moved
    })
}

/// Copies all runs of data; `told` hears of each range that is done, in order.
fn copy_extents(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    size: u64,
    told: &mut dyn FnMut(u64, u64),
) -> Result<u64> {
    let (mut copied, mut at) = (0, 0);
    while let Some((start, end)) = next_extent(from, at, size)? {
        let mut here = start;
        while here < end {
            let next = end.min(here.saturating_add(OVERLAP_STEP_BYTES));
            copy_range(from, to, here, next)?;
            told(here, next);
            here = next;
        }
        copied += end - start;
        at = end;
    }
    Ok(copied)
}

/// The next run of data at or after `at`; the whole rest where the disk cannot tell.
fn next_extent(fd: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let offset = i64::try_from(at).map_err(|_| Error::from_errno(libc::EFBIG))?;
    let start = match sys::copy::seek(fd, offset, libc::SEEK_DATA) {
        Ok(start) => start,
        Err(e) if e.errno() == libc::ENXIO => return Ok(None),
        Err(_) => return Ok(Some((at, size))),
    };
    let offset = i64::try_from(start).map_err(|_| Error::from_errno(libc::EFBIG))?;
    let end = sys::copy::seek(fd, offset, libc::SEEK_HOLE).unwrap_or(size);
    Ok((start < size).then(|| (start, end.min(size))))
}

fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(STEP_BYTES * 64);
        match sys::copy::copy_range(from, at, to, at, step) {
            // The end of the file, or a file system that answers so where it cannot: reading tells.
            Ok(0) => break,
            Ok(n) => at += n as u64,
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e)
                if e.is_unsupported() || e.is_cross_device() || e.is_denied() || e.errno() == libc::EBADF =>
            {
                break;
            }
            Err(e) => return Err(e),
        }
    }
    let mut buffer = vec![0u8; STEP_BYTES];
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(STEP_BYTES);
        let length = sys::copy::read_at(from, &mut buffer[..step], at)?;
        if length == 0 {
            return Ok(());
        }
        write_all(to, &buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

fn write_all(to: BorrowedFd<'_>, data: &[u8], at: u64) -> Result<()> {
    if sys::copy::write_at(to, data, at)? == data.len() {
        return Ok(());
    }
    Err(Error::from_errno(libc::ENOSPC))
}

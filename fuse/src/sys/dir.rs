//! Listing directories with `getdents64(2)`.

use super::check_long;
use crate::error::Result;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The size of one read of a directory, in bytes: about a thousand names.
pub const BUFFER_BYTES: usize = 32 * 1024;

/// One name of a directory, as the disk lists it.
pub struct RawName<'a> {
    /// The inode number; of a mount point, that of the directory underneath.
    pub ino: u64,
    /// `DT_REG` and so on, or `DT_UNKNOWN`.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

/// How far a listing got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listed {
    /// Every name was given.
    All,
    /// There are more names than one read returns.
    Partly,
}

/// Calls `each` for the names of an open directory, without `.` and `..`, from where it stands.
///
/// With `reads` = 1 it stops after one buffer of names and says whether that was all.
///
/// # Errors
/// As `getdents64(2)`.
pub fn list(dir: BorrowedFd<'_>, reads: usize, each: &mut dyn FnMut(RawName<'_>)) -> Result<Listed> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    for _ in 0..reads {
        // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
        let value = unsafe {
            libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
        };
        let filled = check_long(value)?;
        if filled == 0 {
            return Ok(Listed::All);
        }
        parse(buffer.get(..filled).unwrap_or_default(), each);
    }
    // SAFETY: as above; one more read tells whether the end was reached.
    let value =
        unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    Ok(if check_long(value)? == 0 { Listed::All } else { Listed::Partly })
}

/// The bytes of a `linux_dirent64` before its name: ino, off, reclen, type.
const HEADER: usize = 19;

fn parse(mut records: &[u8], each: &mut dyn FnMut(RawName<'_>)) {
    while records.len() > HEADER {
        let ino = u64::from_ne_bytes(records[..8].try_into().unwrap_or_default());
        let length = usize::from(u16::from_ne_bytes(records[16..18].try_into().unwrap_or_default()));
        let Some(record) = records.get(..length).filter(|r| r.len() > HEADER) else { return };
        let name = record[HEADER..].split(|&b| b == 0).next().unwrap_or_default();
        if name != b"." && name != b".." {
            each(RawName { ino, kind: record[18], name });
        }
        records = &records[length..];
    }
}

//! How to ask the kernel.
//!
//! The only module of this crate with `unsafe`. Descriptors come in as [`BorrowedFd`] and leave as
//! [`std::os::fd::OwnedFd`]; names come in as bytes and are checked for NUL here. Nothing in here knows
//! what a layer is. Whatever changes a file says so to [`changing`] first.
//!
//! Nothing needs `/proc`: attributes of files that cannot be opened are reached through `getxattrat(2)`
//! where the kernel has it, and only then through the descriptor links of `/proc`, if they are there.

pub mod changing;
pub mod copy;
pub mod dir;
pub mod mount;
pub mod node;
pub mod open;
pub mod process;
pub mod stat;
pub mod xattr;

use self::changing::changing;
use crate::error::{Error, Result};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

/// Where a file is: a name in an open directory, or an open file itself.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// The entry `name` of the directory; the last component is never followed if it is a symlink.
    At(BorrowedFd<'a>, &'a [u8]),
    /// The open file, even if it has no name any more.
    Fd(BorrowedFd<'a>),
}

impl<'a> Place<'a> {
    /// The directory that `dir` has open, whatever flags it was opened with.
    pub fn dir(dir: &'a impl AsFd) -> Place<'a> {
        Place::At(dir.as_fd(), b".")
    }
}

/// The longest name that is turned into a C string on the stack; a component is at most 255 bytes.
const STACK_NAME: usize = 384;

/// Calls `f` with `bytes` as a C string.
///
/// # Errors
/// EINVAL if `bytes` holds a NUL.
pub(crate) fn with_c_str<T>(bytes: &[u8], f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
    let invalid = |_| Error::from_errno(libc::EINVAL);
    if bytes.len() < STACK_NAME {
        let mut buffer = [MaybeUninit::<u8>::uninit(); STACK_NAME];
        for (slot, byte) in buffer.iter_mut().zip(bytes.iter().chain(&[0])) {
            slot.write(*byte);
        }
        // SAFETY: the first `len + 1` bytes of `buffer` were written just above.
        let written = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), bytes.len() + 1) };
        return f(CStr::from_bytes_with_nul(written).map_err(|_| ()).map_err(invalid)?);
    }
    let mut owned = Vec::with_capacity(bytes.len() + 1);
    owned.extend_from_slice(bytes);
    owned.push(0);
    f(CStr::from_bytes_with_nul(&owned).map_err(|_| ()).map_err(invalid)?)
}

/// Turns the return value of a system call into a result.
pub(crate) fn check(value: i32) -> Result<i32> {
    if value < 0 { Err(Error::last_os_error()) } else { Ok(value) }
}

/// As [`check`], for calls that return a size.
pub(crate) fn check_size(value: isize) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::last_os_error())
}

/// As [`check`], for raw `syscall(2)`.
pub(crate) fn check_long(value: libc::c_long) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::last_os_error())
}

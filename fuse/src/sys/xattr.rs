//! Extended attributes of a file at a place.
//!
//! The calls of kernel 6.13 that take a directory and a name (`getxattrat(2)` and its family) serve every
//! kind of file without `/proc`. Without them a regular file or directory is opened, and only what cannot
//! be opened goes through the descriptor links of `/proc`.

use super::{Place, changing, check_long, check_size, open, with_c_str};
use crate::error::{Error, Result};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// The largest value and the largest list of names that Linux has, in bytes.
pub const MAX_BYTES: usize = 65_536;

/// True until this kernel says that it does not have the calls. A fact about the kernel, not about a disk.
static KERNEL_HAS_AT: AtomicBool = AtomicBool::new(true);

#[repr(C)]
struct Args {
    value: u64,
    size: u32,
    flags: u32,
}

/// What to do about an attribute that is or is not there yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetMode {
    /// Set it in either case.
    Any,
    /// EEXIST if it is there.
    Create,
    /// ENODATA if it is not there.
    Replace,
}

impl SetMode {
    fn flags(self) -> i32 {
        match self {
            SetMode::Any => 0,
            SetMode::Create => libc::XATTR_CREATE,
            SetMode::Replace => libc::XATTR_REPLACE,
        }
    }
}

/// Runs `at` with the calls of kernel 6.13, or else `by_fd` on an open descriptor, or else `by_path`.
fn dispatch<T>(
    place: Place<'_>,
    mut at: impl FnMut(BorrowedFd<'_>, &CStr) -> Result<T>,
    mut by_fd: impl FnMut(BorrowedFd<'_>) -> Result<T>,
    mut by_path: impl FnMut(&CStr) -> Result<T>,
) -> Result<T> {
    let (dir, name) = match place {
        Place::At(dir, name) => (dir, name),
        Place::Fd(fd) => {
            return match by_fd(fd) {
                Err(e) if e.errno() == libc::EBADF => through_proc(fd, &mut by_path),
                other => other,
            };
        }
    };
    if KERNEL_HAS_AT.load(Ordering::Relaxed) {
        match with_c_str(name, |name| at(dir, name)) {
            Err(e) if e.errno() == libc::ENOSYS => KERNEL_HAS_AT.store(false, Ordering::Relaxed),
            other => return other,
        }
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK;
    match open_inode(dir, name, flags) {
        Ok(fd) => by_fd(fd.as_fd()),
        Err(e) if e.is_absent() => Err(e),
        Err(_) => {
            let fd = open::open_at(dir, name, libc::O_PATH, 0)?;
            through_proc(fd.as_fd(), &mut by_path)
        }
    }
}

/// Opens a regular file or a directory, and nothing that opening could disturb.
fn open_inode(dir: BorrowedFd<'_>, name: &[u8], flags: i32) -> Result<OwnedFd> {
    use crate::types::Kind;
    match super::stat::stat(Place::At(dir, name))?.kind() {
        Kind::File | Kind::Dir => open::open_at(dir, name, flags, 0),
        _ => Err(Error::from_errno(libc::EOPNOTSUPP)),
    }
}

fn through_proc<T>(fd: BorrowedFd<'_>, by_path: &mut impl FnMut(&CStr) -> Result<T>) -> Result<T> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    with_c_str(link.as_bytes(), |link| match by_path(link) {
        Err(e) if e.is_absent() => Err(Error::from_errno(libc::EOPNOTSUPP)),
        other => other,
    })
}

/// Reads an attribute into `buffer`; returns the length of the value. An empty buffer asks for the length.
///
/// # Errors
/// ENODATA if it is not set; ERANGE if `buffer` is too small; EOPNOTSUPP where there are none.
pub fn get(place: Place<'_>, attribute: &CStr, buffer: &mut [u8]) -> Result<usize> {
    let (data, size) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY (of the three calls): names are C strings, and the kernel writes at most `size` bytes at `data`.
    dispatch(
        place,
        |dir, name| {
            let mut args =
                Args { value: data as u64, size: u32::try_from(size).unwrap_or(u32::MAX), flags: 0 };
            check_long(unsafe {
                libc::syscall(
                    SYS_GETXATTRAT,
                    dir.as_raw_fd(),
                    name.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    attribute.as_ptr(),
                    &raw mut args,
                    size_of::<Args>(),
                )
            })
        },
        |fd| check_size(unsafe { libc::fgetxattr(fd.as_raw_fd(), attribute.as_ptr(), data.cast(), size) }),
        |path| check_size(unsafe { libc::getxattr(path.as_ptr(), attribute.as_ptr(), data.cast(), size) }),
    )
}

/// The value of an attribute, or `None` if it is not set or cannot be.
///
/// # Errors
/// As [`get`], other than "not there".
pub fn get_value(place: Place<'_>, attribute: &CStr) -> Result<Option<Vec<u8>>> {
    let mut small = [0u8; 256];
    match get(place, attribute, &mut small) {
        Ok(length) => return Ok(Some(small.get(..length).unwrap_or_default().to_vec())),
        Err(e) if e.is_no_attribute() => return Ok(None),
        Err(e) if e.errno() == libc::ERANGE => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; MAX_BYTES];
    match get(place, attribute, &mut large) {
        Ok(length) => {
            large.truncate(length);
            Ok(Some(large))
        }
        Err(e) if e.is_no_attribute() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets an attribute.
///
/// # Errors
/// As `setxattr(2)`.
pub fn set(place: Place<'_>, attribute: &CStr, value: &[u8], mode: SetMode) -> Result<()> {
    changing();
    let (data, size) = (value.as_ptr(), value.len());
    // SAFETY (of the three calls): names are C strings, and the kernel reads at most `size` bytes at `data`.
    dispatch(
        place,
        |dir, name| {
            let args = Args {
                value: data as u64,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                flags: mode.flags() as u32,
            };
            check_long(unsafe {
                libc::syscall(
                    SYS_SETXATTRAT,
                    dir.as_raw_fd(),
                    name.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    attribute.as_ptr(),
                    &raw const args,
                    size_of::<Args>(),
                )
            })
            .map(drop)
        },
        |fd| {
            super::check(unsafe {
                libc::fsetxattr(fd.as_raw_fd(), attribute.as_ptr(), data.cast(), size, mode.flags())
            })
            .map(drop)
        },
        |path| {
            super::check(unsafe {
                libc::setxattr(path.as_ptr(), attribute.as_ptr(), data.cast(), size, mode.flags())
            })
            .map(drop)
        },
    )
}

/// Removes an attribute.
///
/// # Errors
/// ENODATA if it is not set.
pub fn remove(place: Place<'_>, attribute: &CStr) -> Result<()> {
    changing();
    // SAFETY (of the three calls): all names are C strings for the length of the call.
    dispatch(
        place,
        |dir, name| {
            check_long(unsafe {
                libc::syscall(
                    SYS_REMOVEXATTRAT,
                    dir.as_raw_fd(),
                    name.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    attribute.as_ptr(),
                )
            })
            .map(drop)
        },
        |fd| super::check(unsafe { libc::fremovexattr(fd.as_raw_fd(), attribute.as_ptr()) }).map(drop),
        |path| super::check(unsafe { libc::removexattr(path.as_ptr(), attribute.as_ptr()) }).map(drop),
    )
}

fn list_into(place: Place<'_>, buffer: &mut [u8]) -> Result<usize> {
    let (data, size) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY (of the three calls): names are C strings, and the kernel writes at most `size` bytes at `data`.
    dispatch(
        place,
        |dir, name| {
            check_long(unsafe {
                libc::syscall(
                    SYS_LISTXATTRAT,
                    dir.as_raw_fd(),
                    name.as_ptr(),
                    libc::AT_SYMLINK_NOFOLLOW,
                    data,
                    size,
                )
            })
        },
        |fd| check_size(unsafe { libc::flistxattr(fd.as_raw_fd(), data.cast(), size) }),
        |path| check_size(unsafe { libc::listxattr(path.as_ptr(), data.cast(), size) }),
    )
}

/// The names of all attributes of a file; empty where there are none or cannot be.
///
/// # Errors
/// As `listxattr(2)`.
pub fn list(place: Place<'_>) -> Result<Names> {
    let mut small = [0u8; 512];
    match list_into(place, &mut small) {
        Ok(length) => return Ok(Names(small.get(..length).unwrap_or_default().into())),
        Err(e) if e.errno() == libc::EOPNOTSUPP => return Ok(Names(Box::default())),
        Err(e) if e.errno() == libc::ERANGE => {}
        Err(e) => return Err(e),
    }
    let mut large = vec![0u8; MAX_BYTES];
    let length = list_into(place, &mut large)?;
    large.truncate(length);
    Ok(Names(large.into()))
}

/// Attribute names as the kernel lists them.
#[derive(Default)]
pub struct Names(Box<[u8]>);

impl Names {
    /// The names, one after the other, without their NUL.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == 0).filter(|name| !name.is_empty())
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if `name` is among them.
    pub fn contains(&self, name: &[u8]) -> bool {
        self.iter().any(|n| n == name)
    }
}

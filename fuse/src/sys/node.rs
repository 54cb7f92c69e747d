//! Making, linking, renaming and removing names.

use super::{Place, changing, check, check_long, check_size, with_c_str};
use crate::error::{Error, Result};
use crate::types::Device;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes a directory.
///
/// # Errors
/// As `mkdirat(2)`.
pub fn mkdir(dir: BorrowedFd<'_>, name: &[u8], perm: u32) -> Result<()> {
    changing();
    with_c_str(name, |name| {
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), perm) }).map(drop)
    })
}

/// Makes a file, device, fifo or socket; `mode` has the type bits.
///
/// # Errors
/// As `mknodat(2)`.
pub fn mknod(dir: BorrowedFd<'_>, name: &[u8], mode: u32, device: Device) -> Result<()> {
    changing();
    let device = libc::makedev(device.major, device.minor);
    with_c_str(name, |name| {
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
    })
}

/// Makes a symlink.
///
/// # Errors
/// As `symlinkat(2)`.
pub fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    changing();
    with_c_str(target, |target| {
        with_c_str(name, |name| {
            // SAFETY: both are C strings for the length of the call.
            check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
        })
    })
}

/// Reads a symlink.
///
/// # Errors
/// EINVAL if it is none.
pub fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = vec![0u8; libc::PATH_MAX as usize];
    let length = with_c_str(name, |name| {
        // SAFETY: `name` is a C string; the kernel writes at most `buffer.len()` bytes.
        check_size(unsafe {
            libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        })
    })?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Reads a symlink that is open with O_PATH.
///
/// # Errors
/// ENOENT or EINVAL if it is none.
pub fn read_link_fd(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    read_link(fd, b"")
}

/// Gives the file at `place` another name.
///
/// # Errors
/// As `linkat(2)`. For an open file without a name: ENOENT where the kernel does not allow it.
pub fn link(place: Place<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let link_at = |from: i32, old: &CStr, new: &CStr, flags: i32| {
        changing();
        // SAFETY: both names are C strings for the length of the call.
        check(unsafe { libc::linkat(from, old.as_ptr(), dir.as_raw_fd(), new.as_ptr(), flags) }).map(drop)
    };
    with_c_str(name, |name| match place {
        Place::At(from, old) => with_c_str(old, |old| link_at(from.as_raw_fd(), old, name, 0)),
        Place::Fd(fd) => match link_at(fd.as_raw_fd(), c"", name, libc::AT_EMPTY_PATH) {
            Err(e) if e.errno() == libc::ENOENT || e.is_denied() => {
                let proc_link = format!("/proc/self/fd/{}", fd.as_raw_fd());
                with_c_str(proc_link.as_bytes(), |old| {
                    link_at(libc::AT_FDCWD, old, name, libc::AT_SYMLINK_FOLLOW)
                })
            }
            other => other,
        },
    })
}

/// Removes a name that is not a directory.
///
/// # Errors
/// As `unlinkat(2)`.
pub fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    changing();
    with_c_str(name, |name| {
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
    })
}

/// Removes an empty directory.
///
/// # Errors
/// As `unlinkat(2)`.
pub fn rmdir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    changing();
    with_c_str(name, |name| {
        // SAFETY: `name` is a C string for the length of the call.
        check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
    })
}

/// What a rename does about the names at its two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// Fail with EEXIST if something is there.
    NoReplace,
    /// Swap both.
    Exchange,
    /// Replace what is there and leave a whiteout behind.
    Whiteout,
}

/// Renames.
///
/// # Errors
/// As `renameat2(2)`; EINVAL where the file system does not have the mode.
pub fn rename(
    from: BorrowedFd<'_>,
    old: &[u8],
    to: BorrowedFd<'_>,
    new: &[u8],
    mode: RenameMode,
) -> Result<()> {
    let flags: libc::c_uint = match mode {
        RenameMode::Replace => 0,
        RenameMode::NoReplace => libc::RENAME_NOREPLACE,
        RenameMode::Exchange => libc::RENAME_EXCHANGE,
        RenameMode::Whiteout => libc::RENAME_WHITEOUT,
    };
    changing();
    with_c_str(old, |old| {
        with_c_str(new, |new| {
            // SAFETY: both names are C strings for the length of the call.
            let value = unsafe {
                libc::syscall(
                    libc::SYS_renameat2,
                    from.as_raw_fd(),
                    old.as_ptr(),
                    to.as_raw_fd(),
                    new.as_ptr(),
                    flags,
                )
            };
            check_long(value).map(drop)
        })
    })
}

/// A file handle as `name_to_handle_at(2)` gives it: type and bytes.
///
/// # Errors
/// EOPNOTSUPP where the file system has none.
pub fn file_handle(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(i32, Vec<u8>)> {
    const MAX: usize = 128;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        data: [u8; MAX],
    }
    let mut handle = Handle { bytes: MAX as u32, kind: 0, data: [0; MAX] };
    let mut mount_id: i32 = 0;
    with_c_str(name, |name| {
        // SAFETY: `handle` has room for `bytes` bytes after its header; all pointers live for the call.
        let value = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw mut handle,
                &raw mut mount_id,
                0,
            )
        };
        check_long(value)
    })?;
    let length = usize::try_from(handle.bytes).unwrap_or(0);
    let data = handle.data.get(..length).ok_or_else(|| Error::from_errno(libc::EOVERFLOW))?;
    Ok((handle.kind, data.to_vec()))
}

/// The UUID of the file system that holds an open file.
///
/// # Errors
/// ENOTTY where the kernel or the file system does not tell.
///
/// # Source
/// `FS_IOC_GETFSUUID` of `linux/fs.h`, kernel 6.9.
pub fn fs_uuid(fd: BorrowedFd<'_>) -> Result<[u8; 16]> {
    #[repr(C)]
    struct Uuid {
        length: u8,
        bytes: [u8; 16],
    }
    const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
    let mut uuid = Uuid { length: 0, bytes: [0; 16] };
    // SAFETY: the request writes at most the 17 bytes of `uuid`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID as _, &raw mut uuid) })?;
    if uuid.length != 16 {
        return Err(Error::from_errno(libc::ENOTTY));
    }
    Ok(uuid.bytes)
}

/// The inode flags of an open file (`FS_IOC_GETFLAGS`).
///
/// # Errors
/// ENOTTY where the file system has none.
pub fn get_flags(fd: BorrowedFd<'_>) -> Result<u32> {
    let mut flags: libc::c_long = 0;
    // SAFETY: the request writes one int, for which a long has room.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) })?;
    Ok(flags as u32)
}

/// Sets the inode flags of an open file (`FS_IOC_SETFLAGS`).
///
/// # Errors
/// EPERM, EOPNOTSUPP, ENOTTY as `ioctl_iflags(2)` says.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<()> {
    changing();
    let flags = libc::c_long::from(flags);
    // SAFETY: the request reads one int, which a long holds.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) }).map(drop)
}

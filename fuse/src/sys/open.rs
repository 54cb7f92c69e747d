//! Opening files and directories, never through a symlink and never outside of a given root.

use super::{Place, changing, check, check_long, with_c_str};
use crate::error::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// How a directory is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirMode {
    /// Only as a base for names (O_PATH): needs no read permission.
    Base,
    /// To list it.
    List,
}

impl DirMode {
    fn flags(self) -> i32 {
        let common = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        match self {
            DirMode::Base => common | libc::O_PATH,
            DirMode::List => common | libc::O_RDONLY,
        }
    }
}

fn owned(value: i32) -> Result<OwnedFd> {
    let fd = check(value)?;
    // SAFETY: the kernel just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a file below `dir` with flags and mode as in `openat(2)`; O_NOFOLLOW and O_CLOEXEC are added.
///
/// # Errors
/// As `openat(2)`; ELOOP if the last component is a symlink.
pub fn open_at(dir: BorrowedFd<'_>, name: &[u8], flags: i32, mode: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY;
    if flags & (libc::O_CREAT | libc::O_TRUNC) != 0 {
        changing();
    }
    // SAFETY: `name` is a C string for the length of the call; the descriptor is open.
    with_c_str(name, |name| {
        owned(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, libc::c_uint::from(mode as u16)) })
    })
}

/// Opens the subdirectory `name` of `dir`.
///
/// # Errors
/// ENOTDIR if it is something else, a symlink to a directory included.
pub fn open_dir_at(dir: BorrowedFd<'_>, name: &[u8], mode: DirMode) -> Result<OwnedFd> {
    open_at(dir, name, mode.flags(), 0)
}

/// Opens a directory by the path a user typed; symlinks are followed.
///
/// # Errors
/// As `open(2)`, with the path named.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_PATH;
    with_c_str(path.as_os_str().as_bytes(), |path| {
        // SAFETY: `path` is a C string for the length of the call.
        owned(unsafe { libc::open(path.as_ptr(), flags) })
    })
}

/// Opens the directory `path` (relative, without `..`) below `root`.
///
/// No component may be a symlink, and the walk cannot leave `root`.
///
/// # Errors
/// ELOOP if a component is a symlink; ENOTDIR and ENOENT as usual.
///
/// # Source
/// `openat2(2)`, RESOLVE_BENEATH. Kernels without it get a walk by components.
pub fn open_dir_beneath(root: BorrowedFd<'_>, path: &[u8], mode: DirMode) -> Result<OwnedFd> {
    if path.is_empty() {
        return open_at(root, b".", mode.flags(), 0);
    }
    if path.len() < libc::PATH_MAX as usize {
        match open_beneath(root, path, mode.flags()) {
            Err(e) if e.errno() == libc::ENOSYS || e.errno() == libc::EPERM => {}
            other => return other,
        }
    }
    let mut current = open_at(root, b".", DirMode::Base.flags(), 0)?;
    let mut parts = path.split(|&b| b == b'/').filter(|p| !p.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let mode = if parts.peek().is_some() { DirMode::Base } else { mode };
        current = open_dir_at(std::os::fd::AsFd::as_fd(&current), part, mode)?;
    }
    Ok(current)
}

fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: i32) -> Result<OwnedFd> {
    // SAFETY: open_how is plain data for which all zeroes are valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    with_c_str(path, |path| {
        // SAFETY: `path` and `how` live for the length of the call and `how` has the size that is named.
        let value = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                root.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                size_of::<libc::open_how>(),
            )
        };
        let fd = check_long(value)?;
        let fd = i32::try_from(fd).map_err(|_| Error::from_errno(libc::EIO))?;
        // SAFETY: the kernel just returned this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// Opens the file at a place that has a name; for an open file, duplicates the descriptor.
///
/// # Errors
/// As `openat(2)` and `fcntl(2)`.
pub fn open_place(place: Place<'_>, flags: i32) -> Result<OwnedFd> {
    match place {
        Place::At(dir, name) => open_at(dir, name, flags, 0),
        Place::Fd(fd) => Ok(fd.try_clone_to_owned()?),
    }
}

/// Opens a nameless regular file in the directory `dir` (O_TMPFILE), for reading and writing.
///
/// # Errors
/// EOPNOTSUPP where the file system has no O_TMPFILE.
pub fn open_nameless(dir: BorrowedFd<'_>, mode: u32) -> Result<OwnedFd> {
    let flags = libc::O_TMPFILE | libc::O_RDWR | libc::O_CLOEXEC;
    changing();
    // SAFETY: the path is a constant C string; the descriptor is open.
    owned(unsafe { libc::openat(dir.as_raw_fd(), c".".as_ptr(), flags, libc::c_uint::from(mode as u16)) })
}

/// Takes an exclusive lock on an open file without waiting; false if somebody else holds it.
///
/// # Errors
/// ENOLCK, EOPNOTSUPP where the file system has no locks.
pub fn try_lock(fd: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: the descriptor is open; no memory is passed.
    match check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(e) if e.errno() == libc::EWOULDBLOCK => Ok(false),
        Err(e) => Err(e),
    }
}

//! Attributes of files and of file systems: `statx(2)`, `statvfs(3)`, chmod, chown, times, truncate.

use super::{Place, changing, check, check_long, with_c_str};
use crate::error::{Error, Result};
use crate::types::{Device, Kind, SetTime, Time};
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What `statx(2)` says about a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The device that holds the file, as major and minor in one number.
    pub dev: u64,
    /// The inode number on that device.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, if a device.
    pub rdev: Device,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Birth, where the disk keeps it.
    pub btime: Option<Time>,
}

impl Stat {
    /// What the file is.
    pub fn kind(&self) -> Kind {
        Kind::from_mode(self.mode)
    }

    /// True for a character device 0:0: a whiteout as the kernel's overlayfs writes it.
    pub fn is_whiteout_device(&self) -> bool {
        self.kind() == Kind::Char && self.rdev == Device::default()
    }
}

fn time(t: libc::statx_timestamp) -> Time {
    Time { secs: t.tv_sec, nanos: t.tv_nsec }
}

fn statx(dir: i32, name: &CStr, flags: i32, mask: u32) -> Result<libc::statx> {
    // SAFETY: statx is plain data for which all zeroes are valid.
    let mut buffer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a C string and `buffer` a statx, both for the length of the call.
    check(unsafe { libc::statx(dir, name.as_ptr(), flags, mask, &raw mut buffer) })?;
    Ok(buffer)
}

fn from_statx(s: &libc::statx) -> Stat {
    Stat {
        dev: (u64::from(s.stx_dev_major) << 32) | u64::from(s.stx_dev_minor),
        ino: s.stx_ino,
        mode: u32::from(s.stx_mode),
        nlink: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        rdev: Device { major: s.stx_rdev_major, minor: s.stx_rdev_minor },
        size: s.stx_size,
        blocks: s.stx_blocks,
        block_size: s.stx_blksize,
        atime: time(s.stx_atime),
        mtime: time(s.stx_mtime),
        ctime: time(s.stx_ctime),
        btime: (s.stx_mask & libc::STATX_BTIME != 0).then(|| time(s.stx_btime)),
    }
}

/// The attributes of the file at `place`.
///
/// # Errors
/// As `statx(2)`.
pub fn stat(place: Place<'_>) -> Result<Stat> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let found = match place {
        Place::At(dir, name) => with_c_str(name, |name| {
            statx(dir.as_raw_fd(), name, libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT, mask)
        }),
        Place::Fd(fd) => statx(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH, mask),
    }?;
    Ok(from_statx(&found))
}

/// Sets the permission bits of a file that is not a symlink.
///
/// # Errors
/// As `fchmodat(2)`.
///
/// # Source
/// `fchmodat2(2)` does not follow a symlink that somebody put there meanwhile; older kernels get the
/// same by an O_PATH descriptor.
pub fn chmod(place: Place<'_>, perm: u32) -> Result<()> {
    changing();
    let answer = match place {
        Place::At(dir, name) => {
            with_c_str(name, |name| fchmodat2(dir.as_raw_fd(), name, perm, libc::AT_SYMLINK_NOFOLLOW))
        }
        Place::Fd(fd) => {
            // SAFETY: the descriptor is open; no memory is passed.
            match check(unsafe { libc::fchmod(fd.as_raw_fd(), perm) }) {
                Err(e) if e.errno() == libc::EBADF => {
                    fchmodat2(fd.as_raw_fd(), c"", perm, libc::AT_EMPTY_PATH)
                }
                other => other.map(drop),
            }
        }
    };
    match (answer, place) {
        (Err(e), Place::At(dir, name)) if matches!(e.errno(), libc::ENOSYS | libc::EPERM) => {
            chmod_by_descriptor(dir, name, perm)
        }
        (answer, _) => answer,
    }
}

fn fchmodat2(dir: i32, name: &CStr, perm: u32, flags: i32) -> Result<()> {
    const SYS_FCHMODAT2: libc::c_long = 452;
    // SAFETY: `name` is a C string for the length of the call.
    check_long(unsafe { libc::syscall(SYS_FCHMODAT2, dir, name.as_ptr(), perm, flags) }).map(drop)
}

fn chmod_by_descriptor(dir: BorrowedFd<'_>, name: &[u8], perm: u32) -> Result<()> {
    let fd = super::open::open_at(dir, name, libc::O_PATH, 0)?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    with_c_str(link.as_bytes(), |link| {
        // SAFETY: `link` is a C string for the length of the call.
        check(unsafe { libc::chmod(link.as_ptr(), perm) }).map(drop)
    })
}

/// Sets owner and group; `None` leaves one as it is. Symlinks are not followed.
///
/// # Errors
/// As `fchownat(2)`.
pub fn chown(place: Place<'_>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    changing();
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    match place {
        Place::At(dir, name) => with_c_str(name, |name| {
            // SAFETY: `name` is a C string for the length of the call.
            check(unsafe {
                libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW)
            })
        }),
        Place::Fd(fd) => {
            // SAFETY: the path is a constant C string.
            check(unsafe { libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
        }
    }
    .map(drop)
}

fn timespec(t: Option<SetTime>) -> libc::timespec {
    match t {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At(t)) => libc::timespec { tv_sec: t.secs, tv_nsec: i64::from(t.nanos) },
    }
}

/// Sets access and modification time; `None` leaves one as it is.
///
/// # Errors
/// As `utimensat(2)`.
pub fn set_times(place: Place<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    changing();
    let times = [timespec(atime), timespec(mtime)];
    match place {
        Place::At(dir, name) => with_c_str(name, |name| {
            // SAFETY: `name` is a C string and `times` two timespecs, for the length of the call.
            check(unsafe {
                libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
            })
        }),
        Place::Fd(fd) => {
            // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; `times` as above.
            match check(unsafe {
                libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH)
            }) {
                // SAFETY: `times` are two timespecs for the length of the call.
                Err(e) if e.is_unsupported() => {
                    check(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) })
                }
                other => other,
            }
        }
    }
    .map(drop)
}

/// Sets the size of an open file, in bytes.
///
/// # Errors
/// As `ftruncate(2)`.
pub fn truncate(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    changing();
    let size = i64::try_from(size).map_err(|_| Error::from_errno(libc::EFBIG))?;
    // SAFETY: the descriptor is open; no memory is passed.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// Room and limits of a file system, as `statvfs(3)` tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStat {
    /// Total blocks of `fragment_size` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for users without privilege.
    pub blocks_available: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Preferred I/O size in bytes.
    pub block_size: u32,
    /// Unit of the block counts in bytes.
    pub fragment_size: u32,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// The kind of the file system that holds an open file, as in `linux/magic.h`.
///
/// # Errors
/// As `fstatfs(2)`.
pub fn fs_magic(fd: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: statfs is plain data for which all zeroes are valid.
    let mut buffer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `buffer` is a statfs for the length of the call.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut buffer) })?;
    Ok(buffer.f_type as u64)
}

/// The file system that holds an open file.
///
/// # Errors
/// As `fstatvfs(3)`.
pub fn stat_fs(fd: BorrowedFd<'_>) -> Result<FsStat> {
    // SAFETY: statvfs is plain data for which all zeroes are valid.
    let mut buffer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `buffer` is a statvfs for the length of the call.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), &raw mut buffer) })?;
    Ok(FsStat {
        blocks: buffer.f_blocks,
        blocks_free: buffer.f_bfree,
        blocks_available: buffer.f_bavail,
        files: buffer.f_files,
        files_free: buffer.f_ffree,
        block_size: u32::try_from(buffer.f_bsize).unwrap_or(4096),
        fragment_size: u32::try_from(buffer.f_frsize).unwrap_or(4096),
        name_max: u32::try_from(buffer.f_namemax).unwrap_or(255),
    })
}

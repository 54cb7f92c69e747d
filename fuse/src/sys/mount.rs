//! How to ask the kernel for a mount: make it, end it, tell whose it is, and receive a device from a helper.
//!
//! Nothing here decides: which way to mount and which options to use is the question of `front::mount`.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{check, with_c_str};
use crate::error::{Error, Result};

/// The FUSE device.
pub const FUSE_DEVICE: &str = "/dev/fuse";

/// The device number of [`FUSE_DEVICE`], `MISC_MAJOR` and `FUSE_MINOR` of the kernel: tells an inherited
/// device descriptor from an inherited directory.
const FUSE_DEVICE_NUMBER: (u32, u32) = (10, 229);

/// Flags of a mount, as in mount(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountFlags(libc::c_ulong);

impl MountFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// `ro`
    pub const READ_ONLY: Self = Self(libc::MS_RDONLY);
    /// `nosuid`
    pub const NO_SUID: Self = Self(libc::MS_NOSUID);
    /// `nodev`
    pub const NO_DEV: Self = Self(libc::MS_NODEV);
    /// `noexec`
    pub const NO_EXEC: Self = Self(libc::MS_NOEXEC);
    /// `noatime`
    pub const NO_ATIME: Self = Self(libc::MS_NOATIME);
    /// `nodiratime`
    pub const NO_DIR_ATIME: Self = Self(libc::MS_NODIRATIME);
    /// `strictatime`
    pub const STRICT_ATIME: Self = Self(libc::MS_STRICTATIME);
    /// `sync`
    pub const SYNC: Self = Self(libc::MS_SYNCHRONOUS);
    /// `dirsync`
    pub const DIR_SYNC: Self = Self(libc::MS_DIRSYNC);
    /// `remount`: the flags of a mount that is there are set, and nothing is mounted.
    pub const REMOUNT: Self = Self(libc::MS_REMOUNT);

    /// These flags and those of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which mount is at a place, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountId {
    number: u64,
    unique: bool,
}

impl MountId {
    /// True if the kernel never gives this number again (Linux 6.8). Otherwise the next mount can get the
    /// number of one that is gone, so equality proves the identity of a mount that is known to live only.
    pub fn is_unique(self) -> bool {
        self.unique
    }
}

/// What an inherited descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// The FUSE device.
    FuseDevice,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

/// How to end a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Only if nobody uses it.
    Now,
    /// Out of the tree at once; gone when nobody uses it any more (`MNT_DETACH`).
    Lazily,
}

fn c_string(bytes: &OsStr) -> Result<CString> {
    CString::new(bytes.as_bytes()).map_err(|_| Error::from_errno(libc::EINVAL))
}

/// Opens the FUSE device.
///
/// # Errors
/// ENOENT or ENODEV without FUSE in the kernel; EACCES if the node's mode forbids it.
pub fn open_fuse_device() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(FUSE_DEVICE)?;
    Ok(file.into())
}

/// Mounts a FUSE file system of type `fuse.SUBTYPE` on `target`, following symbolic links.
///
/// `data` is the comma separated option text of the FUSE file system type.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the user namespace that owns the mount namespace; else as mount(2).
///
/// # Source
/// mount(2); `fs/fuse/inode.c` for the data.
pub fn mount_fuse(
    source: &OsStr,
    target: &Path,
    subtype: &OsStr,
    flags: MountFlags,
    data: &str,
) -> Result<()> {
    let source = c_string(source)?;
    let target = c_string(target.as_os_str())?;
    let mut kind = OsString::from("fuse.");
    kind.push(subtype);
    let kind = c_string(&kind)?;
    let data = c_string(OsStr::new(data))?;
    // SAFETY: mount(2) reads four NUL-terminated strings, which live until after the call; it keeps none.
    let result = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags.0, data.as_ptr().cast())
    };
    check(result).map(drop)
}

/// Ends the mount at `target`; a symbolic link in the last place is not followed.
///
/// # Errors
/// EBUSY if it is in use and `how` is [`Detach::Now`]; EINVAL if nothing is mounted there; EPERM.
///
/// # Source
/// umount2(2).
pub fn unmount(target: &Path, how: Detach) -> Result<()> {
    let flags = match how {
        Detach::Now => libc::UMOUNT_NOFOLLOW,
        Detach::Lazily => libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH,
    };
    with_c_str(target.as_os_str().as_bytes(), |target| {
        // SAFETY: umount2(2) reads one NUL-terminated string, which lives until after the call.
        check(unsafe { libc::umount2(target.as_ptr(), flags) }).map(drop)
    })
}

fn statx(path: &Path, flags: libc::c_int, mask: libc::c_uint) -> Result<libc::statx> {
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    with_c_str(path.as_os_str().as_bytes(), |path| {
        // SAFETY: statx(2) reads a NUL-terminated string and writes one `struct statx` into `out`, which has
        // that type; both live until after the call.
        check(unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, out.as_mut_ptr()) })
    })?;
    // SAFETY: all fields are integers, for which zeroes are valid, and the kernel filled them on success.
    Ok(unsafe { out.assume_init() })
}

/// Which mount is at `path`, asked without a request to the server of that mount.
///
/// # Errors
/// As statx(2).
///
/// # Source
/// statx(2): `STATX_MNT_ID_UNIQUE` since Linux 6.8, `STATX_MNT_ID` since 5.8, else `mnt_id` of proc(5) fdinfo.
pub fn mount_id(path: &Path) -> Result<MountId> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC;
    // No basic attribute is asked for: FUSE refuses those to users other than the owner.
    let answer = statx(path, flags, libc::STATX_MNT_ID_UNIQUE)?;
    if answer.stx_mask & libc::STATX_MNT_ID_UNIQUE != 0 {
        return Ok(MountId { number: answer.stx_mnt_id, unique: true });
    }
    if answer.stx_mask & libc::STATX_MNT_ID != 0 {
        return Ok(MountId { number: answer.stx_mnt_id, unique: false });
    }
    let place = open_place(path)?;
    let mut text = String::new();
    File::open(format!("/proc/self/fdinfo/{}", place.as_raw_fd()))?.read_to_string(&mut text)?;
    let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let number = number.ok_or_else(|| Error::from_errno(libc::ENOSYS))?;
    Ok(MountId { number, unique: false })
}

/// Type and flags of the topmost mount at `target`, an absolute path without symbolic links; `None` if it is no
/// mount point. Asks no server.
///
/// # Errors
/// As reading `/proc/self/mountinfo`.
///
/// # Source
/// proc(5), `/proc/pid/mountinfo`: field 5 is the mount point, 6 are the flags, and the type follows a `-`.
pub fn mounted_at(target: &Path) -> Result<Option<(OsString, MountFlags)>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut lines = table.split(|byte| *byte == b'\n').rev();
    Ok(lines.find_map(|line| read_mount_line(line, target)))
}

fn read_mount_line(line: &[u8], target: &Path) -> Option<(OsString, MountFlags)> {
    let mut words = line.split(|byte| *byte == b' ');
    let point = unescape(words.nth(4)?);
    if point != target.as_os_str().as_bytes() {
        return None;
    }
    let known: [(&[u8], MountFlags); 6] = [
        (b"ro", MountFlags::READ_ONLY),
        (b"nosuid", MountFlags::NO_SUID),
        (b"nodev", MountFlags::NO_DEV),
        (b"noexec", MountFlags::NO_EXEC),
        (b"noatime", MountFlags::NO_ATIME),
        (b"nodiratime", MountFlags::NO_DIR_ATIME),
    ];
    let flags = words.next()?.split(|byte| *byte == b',').fold(MountFlags::NONE, |all, word| {
        let flag = known.iter().find(|(name, _)| *name == word);
        flag.map_or(all, |(_, flag)| all.with(*flag))
    });
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    Some((OsStr::from_bytes(kind).to_os_string(), flags))
}

/// Resolves the octal escapes of proc(5).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

fn open_place(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    Ok(File::options().read(true).custom_flags(flags).open(path)?.into())
}

/// Asks the file system at `path` for attributes, not satisfied with what the kernel remembers; returns its
/// device number, major and minor.
///
/// # Errors
/// ENOTCONN if a FUSE server is gone; else what the server answers.
///
/// # Source
/// statx(2), `AT_STATX_FORCE_SYNC`.
pub fn ask_attributes(path: &Path) -> Result<(u32, u32)> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_FORCE_SYNC;
    let answer = statx(path, flags, libc::STATX_BASIC_STATS)?;
    Ok((answer.stx_dev_major, answer.stx_dev_minor))
}

/// What the inherited descriptor number `fd` is.
///
/// # Errors
/// EBADF if it is not open.
pub fn inherited_kind(fd: RawFd) -> Result<Inherited> {
    let mut out = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: fstat(2) takes any number, answering EBADF for one that is not open, and writes one
    // `struct stat` into `out`, which has that type.
    check(unsafe { libc::fstat(fd, out.as_mut_ptr()) })?;
    // SAFETY: all fields are integers, for which zeroes are valid, and the kernel filled them on success.
    let out = unsafe { out.assume_init() };
    let device = (libc::major(out.st_rdev), libc::minor(out.st_rdev));
    Ok(match out.st_mode & libc::S_IFMT {
        libc::S_IFDIR => Inherited::Directory,
        libc::S_IFCHR if device == FUSE_DEVICE_NUMBER => Inherited::FuseDevice,
        _ => Inherited::Other,
    })
}

/// Takes over the inherited descriptor number `fd`: a new number with close-on-exec, and `fd` is closed.
///
/// `fd` must come from our caller and be owned by nothing in this program.
///
/// # Errors
/// EBADF if it is not open, EMFILE.
pub fn take_inherited(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl(2) F_DUPFD_CLOEXEC takes any number, answering EBADF for one that is not open.
    let new = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: `fd` is open, as the call above shows, and by the contract of this function nothing here
    // owns it.
    unsafe { libc::close(fd) };
    // SAFETY: the kernel just made `new` for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

/// Receives one descriptor over a unix socket. `None` if the other end closed without sending one.
///
/// # Errors
/// As recvmsg(2); EINTR is retried.
///
/// # Source
/// unix(7), `SCM_RIGHTS`; the sender is `send_fd` of libfuse's `fusermount`: one byte and one descriptor.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    // SAFETY: CMSG_LEN only computes.
    let needed = unsafe { libc::CMSG_LEN(size_of::<RawFd>() as u32) };
    let mut byte = 0u8;
    // In words, so that the message header in it is aligned; longer than `needed` on every machine.
    let mut control = [0u64; 4];
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: `struct msghdr` holds integers and pointers, for which zeroes are valid.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // Exactly one descriptor: the kernel drops what does not fit, so none can arrive unseen.
    header.msg_controllen = needed as _;
    loop {
        // SAFETY: recvmsg(2) writes at most one byte to `byte` and `msg_controllen` bytes to `control`, as
        // the header says; all three live until after the call.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if got >= 0 {
            break;
        }
        let error = Error::last_os_error();
        if error.errno() != libc::EINTR {
            return Err(error);
        }
    }
    // SAFETY: CMSG_FIRSTHDR reads the header that recvmsg(2) filled, and answers null or the aligned start
    // of `control`.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    if first.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, hence within `control`, aligned, and written by the kernel.
    let message = unsafe { first.read() };
    if message.cmsg_level != libc::SOL_SOCKET
        || message.cmsg_type != libc::SCM_RIGHTS
        || (message.cmsg_len as usize) < needed as usize
    {
        return Ok(None);
    }
    // SAFETY: the message is long enough for one descriptor, as checked above; its alignment is not known.
    let fd = unsafe { libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned() };
    // SAFETY: the kernel just installed this number for us; nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_mount_is_told_from_another_one() {
        let root = mount_id(Path::new("/")).unwrap();
        assert_eq!(mount_id(Path::new("/.")).unwrap(), root);
        assert_ne!(mount_id(Path::new("/proc")).unwrap(), root);
        assert_eq!(mount_id(Path::new("/no such place")).unwrap_err().errno(), libc::ENOENT);
    }

    #[test]
    fn lines_of_mountinfo_are_read() {
        let line = b"36 35 0:98 / /mnt/a\\040b\\134c rw,nosuid,noatime shared:1 master:2 - fuse.plywood-fuse src rw,user_id=0";
        let flags = MountFlags::NO_SUID.with(MountFlags::NO_ATIME);
        let found = read_mount_line(line, Path::new("/mnt/a b\\c"));
        assert_eq!(found, Some((OsString::from("fuse.plywood-fuse"), flags)));
        assert_eq!(read_mount_line(line, Path::new("/mnt/a")), None);
        assert_eq!(read_mount_line(b"", Path::new("/")), None);
        assert_eq!(mounted_at(Path::new("/proc")).unwrap().map(|(kind, _)| kind), Some("proc".into()));
        assert_eq!(mounted_at(Path::new("/proc/self")).unwrap(), None);
    }

    #[test]
    fn inherited_descriptors_are_told_apart_and_taken_over() {
        let directory = File::open("/").unwrap().into_raw_fd();
        let file = File::open("/proc/self/stat").unwrap();
        assert_eq!(inherited_kind(directory).unwrap(), Inherited::Directory);
        assert_eq!(inherited_kind(file.as_raw_fd()).unwrap(), Inherited::Other);
        assert_eq!(inherited_kind(99_999).unwrap_err().errno(), libc::EBADF);
        assert_eq!(take_inherited(99_999).unwrap_err().errno(), libc::EBADF);
        let ours = take_inherited(directory).unwrap();
        assert_ne!(ours.as_raw_fd(), directory);
        assert!(File::from(ours).metadata().unwrap().is_dir());
    }

    #[test]
    fn a_socket_that_closes_without_a_descriptor_gives_none() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive_descriptor(ours.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_descriptor_comes_over_a_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = File::open("/").unwrap();
        send(theirs.as_fd(), sent.as_fd());
        let received = receive_descriptor(ours.as_fd()).unwrap().unwrap();
        assert!(File::from(received).metadata().unwrap().is_dir());
        // A byte alone is no descriptor.
        std::io::Write::write_all(&mut &theirs, b"x").unwrap();
        assert!(receive_descriptor(ours.as_fd()).unwrap().is_none());
    }

    /// What fusermount does.
    fn send(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) {
        let mut byte = 0u8;
        let mut control = [0u64; 4];
        let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        // SAFETY: `struct msghdr` holds integers and pointers, for which zeroes are valid; the header then
        // points to one byte and to a control buffer that is long enough and aligned for one descriptor.
        unsafe {
            let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
            assert_eq!(libc::sendmsg(socket.as_raw_fd(), &raw const header, 0), 1);
        }
    }
}

//! How to ask the kernel to mount, to look at mounts, and to change the root.
//!
//! Nothing here decides: what is mounted where is the question of `mounting` and `exec`.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::thread::UnshareFlags;
use std::ffi::{CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use rustix::mount::MountFlags;

/// `STATX_MNT_ID_UNIQUE` of `linux/stat.h`.
const MOUNT_ID_UNIQUE: u32 = 0x4000;

/// Whether mounts below a directory come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only the file system at the directory itself (`bind`).
    One,
    /// All below as well (`rbind`).
    All,
}

/// Shows the directory or file `source` at `target`, too.
///
/// # Errors
/// As mount(2); EINVAL in a user namespace if `source` has mounts below that may not be uncovered: [`Depth::All`].
pub fn bind(source: &Path, target: &Path, depth: Depth) -> io::Result<()> {
    match depth {
        Depth::One => rustix::mount::mount_bind(source, target)?,
        Depth::All => rustix::mount::mount_bind_recursive(source, target)?,
    }
    Ok(())
}

/// Sets flags of a bind mount, and keeps those that whoever owns the file system has set: in a user namespace they
/// cannot be taken away. How access times are kept does not change.
///
/// # Errors
/// As mount(2).
///
/// # Source
/// mount(2), `MS_REMOUNT | MS_BIND`; mount_namespaces(7), "locked" flags; `path_mount` of `fs/namespace.c` for
/// access times.
pub fn set_flags(target: &Path, flags: MountFlags) -> io::Result<()> {
    let all = flags | MountFlags::BIND | kept_flags(target)?;
    Ok(rustix::mount::mount_remount(target, all, c"")?)
}

/// Makes the file system at `target` read-only, in all of its mounts.
///
/// # Errors
/// As mount(2): EBUSY while a file is open for writing.
///
/// # Source
/// mount(2), `MS_REMOUNT` without `MS_BIND`.
pub fn freeze(target: &Path) -> io::Result<()> {
    let flags = kept_flags(target)? | MountFlags::RDONLY;
    Ok(rustix::mount::mount_remount(target, flags, c"")?)
}

fn kept_flags(target: &Path) -> io::Result<MountFlags> {
    let now = rustix::fs::statvfs(target)?.f_flag;
    let known = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    ];
    let kept = known.iter().filter(|(is, _)| now.contains(*is));
    Ok(kept.fold(MountFlags::empty(), |all, (_, flag)| all | *flag))
}

/// Makes the mount at `target` and all below it read-only.
///
/// # Errors
/// As mount_setattr(2); ENOSYS before Linux 5.12.
pub fn set_read_only_below(target: &Path) -> io::Result<()> {
    let target = super::child::c_string(target.as_os_str())?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: mount_setattr(2) reads a NUL-terminated path and one `struct mount_attr` of the given size; both live
    // until after the call. By number, since older C libraries lack the function.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Mounts a file system.
///
/// # Errors
/// As mount(2).
pub fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    Ok(rustix::mount::mount(source, target, kind, flags, data.as_c_str())?)
}

/// Moves the mount at `from` to `to`.
///
/// # Errors
/// As mount(2), `MS_MOVE`.
pub fn move_mount(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_move(from, to)?)
}

/// Mounts a file system that is told its options one by one, so that there may be any number of them.
///
/// A value of `None` is a bare flag. Each value has at most 255 bytes.
///
/// # Errors
/// ENOSYS before Linux 5.2, EINVAL for an option that the file system does not know; what the kernel says about it
/// stands in the message.
///
/// # Source
/// `fs/fsopen.c`; `Documentation/filesystems/overlayfs.rst` for `lowerdir+`, since Linux 6.7.
pub fn mount_by_parts(
    kind: &str,
    parts: &[(&str, Option<&str>)],
    target: &Path,
    flags: MountFlags,
) -> io::Result<()> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let told = |error: rustix::io::Errno| with_words(error.into(), &context);
    for (key, value) in parts {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, *key, *value),
            None => rustix::mount::fsconfig_set_flag(&context, *key),
        }
        .map_err(told)?;
    }
    if flags.contains(MountFlags::RDONLY) {
        rustix::mount::fsconfig_set_flag(&context, "ro").map_err(told)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(told)?;
    let known = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ];
    let wanted = known.iter().filter(|(flag, _)| flags.contains(*flag));
    let attributes = wanted.fold(MountAttrFlags::empty(), |all, (_, attribute)| all | *attribute);
    let made = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(told)?;
    let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&made, c"", CWD, target, whole)?)
}

/// The error, with what the kernel wrote into the file system context.
fn with_words(error: io::Error, context: &OwnedFd) -> io::Error {
    let mut words = Vec::new();
    let Ok(copy) = context.try_clone() else { return error };
    let mut file = std::fs::File::from(copy);
    let mut line = [0; 1024];
    // One line for each read; the first byte is its class. Without more lines the read fails.
    while let Ok(length @ 1..) = file.read(&mut line) {
        words.push(String::from_utf8_lossy(&line[..length]).trim().trim_start_matches("e ").to_owned());
        if words.len() > 8 {
            break;
        }
    }
    // The kind is decided by the errno, which the text would hide.
    match error.raw_os_error() {
        Some(_) if words.is_empty() => error,
        _ => io::Error::new(error.kind(), format!("{error}: {}", words.join("; "))),
    }
}

/// Does something with another current directory, in a thread that has one of its own.
///
/// # Errors
/// That of entering the directory, or of starting the thread; else what `work` says.
pub fn in_directory<T: Send>(dir: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let body = || {
        // SAFETY: unshare(2) with CLONE_FS changes nothing but whose current directory, root and umask these are.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
        rustix::process::chdir(dir)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, body)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Leaves the mount namespace that is shared with others; what is mounted from now on is seen by nobody else. What others
/// mount or unmount outside is seen here where that is passed on (mount_namespaces(7)), so that no mount is kept alive.
///
/// Only while this process has one thread.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn leave_mount_namespace() -> io::Result<()> {
    leave(UnshareFlags::NEWNS)?;
    keep_mounts_to_ourselves()
}

/// Lets mounts of this namespace be seen in no other; those of the one it was copied from still come.
///
/// # Errors
/// As mount(2).
pub fn keep_mounts_to_ourselves() -> io::Result<()> {
    let receive = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", receive)?)
}

/// Gets new namespaces.
///
/// # Errors
/// As unshare(2).
pub fn leave(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: unshare(2) with a flag that makes namespaces, never CLONE_FILES.
    Ok(unsafe { rustix::thread::unshare_unsafe(what.difference(UnshareFlags::FILES)) }?)
}

/// Makes the mount at `root` the root of this mount namespace, and detaches all others.
///
/// # Errors
/// As pivot_root(2); EINVAL if our root is no mount (an initial RAM disk): then by chroot(2).
///
/// # Source
/// pivot_root(2), "pivot_root(\".\", \".\")".
pub fn enter_root(root: &Path) -> io::Result<()> {
    rustix::process::chdir(root)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(rustix::process::chdir("/")?)
}

/// Opens a file or directory below `root` as a program inside would find it: no symbolic link leads out.
///
/// # Errors
/// As openat2(2). Before Linux 5.6, ELOOP for a path with symbolic links.
pub fn open_inside(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // Filters of containers answer EPERM for calls that they do not know.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
        other => return Ok(other?),
    }
    let mut at = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        let next = rustix::fs::openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&next)?.st_mode).is_symlink() {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        at = next;
    }
    Ok(at)
}

/// Bytes in a page of memory, which is what mount(2) takes of options at most.
pub fn page_size() -> usize {
    // SAFETY: sysconf(3) takes one integer.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A path that names an open file, for calls that take none.
pub fn path_of(fd: &impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// The kernel's number of the mount at `path`; asks no server.
///
/// # Errors
/// As statx(2); ENOSYS before Linux 5.8.
///
/// # Source
/// statx(2): `STATX_MNT_ID_UNIQUE` since Linux 6.8, a number that is never given again; else `STATX_MNT_ID`.
pub fn mount_number(path: &Path) -> io::Result<u64> {
    // No basic attribute is asked for: FUSE refuses those to users other than the owner.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let unique = StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE);
    let answer = rustix::fs::statx(CWD, path, flags, unique)?;
    if answer.stx_mask & (MOUNT_ID_UNIQUE | StatxFlags::MNT_ID.bits()) == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(answer.stx_mnt_id)
}

/// True if a mount of this number is still there, wherever its path leads now; `None` where the kernel cannot tell.
///
/// # Source
/// statmount(2), since Linux 6.8, for numbers of [`mount_number`]: ENOENT without the mount, EPERM if it cannot be reached
/// from our root.
pub fn mount_exists(number: u64) -> Option<bool> {
    #[repr(C)]
    struct Wanted {
        size: u32,
        spare: u32,
        number: u64,
        parts: u64,
    }
    const STATMOUNT: libc::c_long = 457;
    const BASIC: u64 = 2;
    let wanted = Wanted { size: 24, spare: 0, number, parts: BASIC };
    const { assert!(size_of::<Wanted>() == 24) };
    let mut answer = [0u64; 128];
    // SAFETY: the kernel reads `size` bytes of the request and writes at most as many bytes as it is told into the answer;
    // both live until the call returns.
    let done = unsafe {
        libc::syscall(STATMOUNT, &raw const wanted, answer.as_mut_ptr(), size_of_val(&answer), 0usize)
    };
    if done == 0 {
        return Some(true);
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::ENOENT) => Some(false),
        Some(libc::EPERM) => Some(true),
        _ => None,
    }
}

/// The mount points at `target` and below it, the last one mounted first.
///
/// # Errors
/// As reading `/proc/self/mountinfo`.
///
/// # Source
/// proc(5), `/proc/pid/mountinfo`: field 5, with octal escapes.
pub fn mount_points(target: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let points = table.split(|byte| *byte == b'\n').rev().filter_map(|line| {
        let word = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(OsStr::from_bytes(&unescape(word))))
    });
    Ok(points.filter(|point| point.starts_with(target)).collect())
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let code = if byte == b'\\' { after.get(..3) } else { None };
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok());
        plain.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

/// The number of the mount namespace of this process, or of process `pid`.
///
/// # Errors
/// As looking at `/proc/PID/ns/mnt`; EACCES for the processes of others.
pub fn mount_namespace(pid: Option<u32>) -> io::Result<u64> {
    let who = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    Ok(std::fs::metadata(format!("/proc/{who}/ns/mnt"))?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_listed_the_last_one_first() {
        let all = mount_points(Path::new("/")).unwrap();
        assert!(all.contains(&PathBuf::from("/proc")) && all.contains(&PathBuf::from("/")));
        assert_eq!(mount_points(Path::new("/no such place")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(unescape(b"/a\\040b\\134c\\"), b"/a b\\c\\");
    }

    #[test]
    fn mounts_and_namespaces_have_numbers() {
        assert_ne!(mount_number(Path::new("/")).unwrap(), mount_number(Path::new("/proc")).unwrap());
        assert_eq!(mount_namespace(None).unwrap(), mount_namespace(Some(std::process::id())).unwrap());
    }

    #[test]
    fn a_mount_is_found_by_its_number() {
        let root = mount_exists(mount_number(Path::new("/")).unwrap());
        assert_ne!(root, Some(false));
        assert_eq!(mount_exists(u64::MAX - 1), root.map(|_| false));
    }

    #[test]
    fn a_thread_has_a_directory_of_its_own() {
        let here = std::env::current_dir().unwrap();
        let there =
            in_directory(Path::new("/proc"), || rustix::process::getcwd(Vec::new()).map_err(Into::into));
        assert_eq!(there.unwrap().as_bytes(), b"/proc");
        assert_eq!(std::env::current_dir().unwrap(), here);
    }

    #[test]
    fn no_link_leads_out_of_a_root() {
        let dir = plywood_fuse::testing::TempDir::new();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/name"), "inside").unwrap();
        std::os::unix::fs::symlink("/etc/name", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/../../../../proc/version", dir.path().join("out")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let found = open_inside(root.as_fd(), Path::new("link")).unwrap();
        assert_eq!(std::fs::read_to_string(path_of(&found)).unwrap(), "inside");
        assert!(open_inside(root.as_fd(), Path::new("out")).is_err());
    }
}

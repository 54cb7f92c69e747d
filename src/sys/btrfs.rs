//! How to ask btrfs: subvolumes and snapshots by `ioctl(2)`, nothing by a program.
//!
//! Everything here works without privilege on a kernel of 4.18 or later, except that [`destroy`] needs root of the
//! machine or the mount option `user_subvol_rm_allowed`. Where it is refused, an empty subvolume still goes by
//! `rmdir(2)`. Descriptors of directories have to be open for reading: these requests refuse `O_PATH`.
//!
//! # Source
//! `linux/btrfs.h` (structures and numbers), `ioctl(2)`, `btrfs-ioctl(2)`.

use plywood_fuse::error::{Error, Result};
use plywood_fuse::sys::open::{DirMode, open_dir_beneath};
use plywood_fuse::sys::stat::{fs_magic, stat};
use plywood_fuse::sys::{Place, node};
use plywood_fuse::types::Kind;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// What `statfs(2)` says of btrfs.
pub const MAGIC: u64 = 0x9123_683e;

/// The inode number of the root directory of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
pub const ROOT_INO: u64 = 256;

/// The magic number of all requests.
const IOCTL: u32 = 0x94;

/// The flag of a subvolume that cannot be written (`BTRFS_SUBVOL_RDONLY`).
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`, without the unions that these requests do not use.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InoLookup {
    treeid: u64,
    objectid: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct RootRefs {
    min_treeid: u64,
    found: [RootRef; 255],
    count: u8,
    align: [u8; 7],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RootRef {
    treeid: u64,
    dirid: u64,
}

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct InoLookupUser {
    dirid: u64,
    treeid: u64,
    name: [u8; 256],
    path: [u8; 3824],
}

const _: () = {
    assert!(size_of::<VolArgs>() == 4096);
    assert!(size_of::<VolArgsV2>() == 4096 && offset_of!(VolArgsV2, name) == 56);
    assert!(size_of::<InoLookup>() == 4096);
    assert!(size_of::<RootRefs>() == 4096 && offset_of!(RootRefs, count) == 4088);
    assert!(size_of::<InoLookupUser>() == 4096 && offset_of!(InoLookupUser, path) == 272);
};

const SNAP_DESTROY: libc::Ioctl = libc::_IOW::<VolArgs>(IOCTL, 15);
const INO_LOOKUP: libc::Ioctl = libc::_IOWR::<InoLookup>(IOCTL, 18);
const SNAP_CREATE_V2: libc::Ioctl = libc::_IOW::<VolArgsV2>(IOCTL, 23);
const SUBVOL_CREATE_V2: libc::Ioctl = libc::_IOW::<VolArgsV2>(IOCTL, 24);
const SUBVOL_GETFLAGS: libc::Ioctl = libc::_IOR::<u64>(IOCTL, 25);
const SUBVOL_SETFLAGS: libc::Ioctl = libc::_IOW::<u64>(IOCTL, 26);
const GET_SUBVOL_ROOTREF: libc::Ioctl = libc::_IOWR::<RootRefs>(IOCTL, 61);
const INO_LOOKUP_USER: libc::Ioctl = libc::_IOWR::<InoLookupUser>(IOCTL, 62);

/// Whether a subvolume can be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It can.
    Writable,
    /// It cannot, by nobody.
    ReadOnly,
}

impl Access {
    fn flags(self) -> u64 {
        match self {
            Access::Writable => 0,
            Access::ReadOnly => READ_ONLY,
        }
    }
}

/// A subvolume below the root of another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nested {
    /// Its number.
    pub id: u64,
    /// The directory that holds it, relative to the root of the outer one; empty for that root itself.
    pub dir: Vec<u8>,
    /// Its name there.
    pub name: Vec<u8>,
}

impl Nested {
    /// Its path, relative to the root of the outer one.
    pub fn path(&self) -> Vec<u8> {
        joined(&self.dir, &self.name)
    }
}

fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    [dir, separator, name].concat()
}

/// Asks with a structure of its own, which the kernel reads and, if the request says so, writes.
fn ask<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: the size of `T` is part of every request above, and the assertions hold it to that of the header; all
    // its fields are integers, so whatever the kernel writes is valid; the descriptor is open.
    let value = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if value < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// A name as a field with a NUL at its end.
fn field<const N: usize>(name: &[u8]) -> Result<[u8; N]> {
    let component = !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/');
    if !component || name.contains(&0) {
        return Err(Error::from_errno(libc::EINVAL));
    }
    let mut field = [0; N];
    let room = field.get_mut(..name.len()).filter(|_| name.len() < N);
    room.ok_or_else(|| Error::from_errno(libc::ENAMETOOLONG))?.copy_from_slice(name);
    Ok(field)
}

/// The text of a field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

/// True if the open file is on btrfs; any descriptor will do.
///
/// # Errors
/// As `fstatfs(2)`.
pub fn is_btrfs(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(fs_magic(fd)? == MAGIC)
}

/// True if the open file is the root directory of a subvolume; any descriptor will do.
///
/// # Errors
/// As `statx(2)` and `fstatfs(2)`.
pub fn is_subvolume(fd: BorrowedFd<'_>) -> Result<bool> {
    let stat = stat(Place::Fd(fd))?;
    Ok(stat.kind() == Kind::Dir && stat.ino == ROOT_INO && is_btrfs(fd)?)
}

/// Makes an empty subvolume in a directory; its mode is 0777 without the bits of the umask.
///
/// # Errors
/// EEXIST; ENOTTY where this is no btrfs; EACCES, ENOSPC, EDQUOT, EROFS.
pub fn create(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut args = VolArgsV2 { fd: 0, transid: 0, flags: 0, unused: [0; 4], name: field(name)? };
    ask(dir, SUBVOL_CREATE_V2, &mut args)
}

/// Makes a snapshot of the subvolume `source` in a directory of the same file system. Subvolumes in the source
/// become empty directories in the snapshot.
///
/// # Errors
/// EINVAL if `source` is no root of a subvolume; EPERM if it belongs to somebody else; EXDEV; as [`create`].
pub fn snapshot(source: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8], access: Access) -> Result<()> {
    // Older kernels would take the subvolume that any file is in.
    if !is_subvolume(source)? {
        return Err(Error::from_errno(libc::EINVAL));
    }
    let fd = i64::from(source.as_raw_fd());
    let mut args = VolArgsV2 { fd, transid: 0, flags: access.flags(), unused: [0; 4], name: field(name)? };
    ask(dir, SNAP_CREATE_V2, &mut args)
}

/// Destroys a subvolume with all that it holds, other subvolumes excepted; what is mounted in it is detached without
/// a word.
///
/// # Errors
/// EPERM for who is not root of the machine, unless the mount has `user_subvol_rm_allowed`; ENOTEMPTY if there are
/// subvolumes in it; ENOTDIR, EINVAL if it is none.
pub fn destroy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut args = VolArgs { fd: 0, name: field(name)? };
    ask(dir, SNAP_DESTROY, &mut args)
}

/// The number of the subvolume that an open file is in: what the mount option `subvolid` takes.
///
/// # Errors
/// ENOTTY where this is no btrfs.
pub fn id(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut args = InoLookup { treeid: 0, objectid: ROOT_INO, name: [0; 4080] };
    ask(fd, INO_LOOKUP, &mut args)?;
    Ok(args.treeid)
}

fn flags(fd: BorrowedFd<'_>) -> Result<u64> {
    let mut flags: u64 = 0;
    ask(fd, SUBVOL_GETFLAGS, &mut flags)?;
    Ok(flags)
}

/// Whether the subvolume can be changed.
///
/// # Errors
/// EINVAL if `fd` is no root of a subvolume.
pub fn access(fd: BorrowedFd<'_>) -> Result<Access> {
    Ok(if flags(fd)? & READ_ONLY == 0 { Access::Writable } else { Access::ReadOnly })
}

/// Says whether the subvolume can be changed, durably; files that are open for writing stay so.
///
/// # Errors
/// EINVAL if `fd` is no root of a subvolume; EPERM if it belongs to somebody else.
pub fn set_access(fd: BorrowedFd<'_>, access: Access) -> Result<()> {
    let now = flags(fd)?;
    let mut wanted = (now & !READ_ONLY) | access.flags();
    // Each change waits for a transaction of the disk.
    if now == wanted { Ok(()) } else { ask(fd, SUBVOL_SETFLAGS, &mut wanted) }
}

/// The subvolumes right below the subvolume `root`, in the order of their numbers; not those within them.
///
/// # Errors
/// EACCES if one is in a directory that the caller cannot read; ENAMETOOLONG if its path has more than 3,800 bytes;
/// ENOTTY before kernel 4.18.
pub fn nested(root: BorrowedFd<'_>) -> Result<Vec<Nested>> {
    let mut all = Vec::new();
    let mut refs =
        RootRefs { min_treeid: 0, found: [RootRef { treeid: 0, dirid: 0 }; 255], count: 0, align: [0; 7] };
    loop {
        // With more than it has room for, the kernel says EOVERFLOW and where to go on.
        let more = match ask(root, GET_SUBVOL_ROOTREF, &mut refs) {
            Ok(()) => false,
            Err(e) if e.errno() == libc::EOVERFLOW => true,
            Err(e) => return Err(e),
        };
        let found = refs.found.get(..usize::from(refs.count)).unwrap_or_default();
        for found in found {
            match locate(root, *found) {
                Ok(nested) => all.push(nested),
                // Destroyed or moved since it was listed.
                Err(e) if e.is_absent() => {}
                Err(e) => return Err(e),
            }
        }
        if !more || found.is_empty() {
            return Ok(all);
        }
    }
}

fn locate(root: BorrowedFd<'_>, found: RootRef) -> Result<Nested> {
    let mut args =
        InoLookupUser { dirid: found.dirid, treeid: found.treeid, name: [0; 256], path: [0; 3824] };
    ask(root, INO_LOOKUP_USER, &mut args)?;
    let dir = text(&args.path);
    let dir = dir.strip_suffix(b"/").unwrap_or(dir);
    Ok(Nested { id: found.treeid, dir: dir.to_vec(), name: text(&args.name).to_vec() })
}

/// All subvolumes below the subvolume `root`, at any depth, each before those within it.
///
/// # Errors
/// As [`nested`]; EBUSY if something is mounted on the way to one.
pub fn nested_at_any_depth(root: BorrowedFd<'_>) -> Result<Vec<Nested>> {
    let mut all = nested(root)?;
    let mut at = 0;
    while let Some(outer) = all.get(at) {
        at += 1;
        let path = outer.path();
        if let Some(opened) = open_nested(root, outer)? {
            let within = nested(opened.as_fd())?;
            all.extend(within.into_iter().map(|n| Nested { dir: joined(&path, &n.dir), ..n }));
        }
    }
    Ok(all)
}

/// Opens the directory `path` below `root` for reading; an empty path is `root` itself.
///
/// # Errors
/// EBUSY if something is mounted on the way; ELOOP if a component is a symlink; ENOTDIR and ENOENT as usual.
///
/// # Source
/// `openat2(2)`: what RESOLVE_NO_XDEV refuses are mounts, not subvolumes. Kernels without it cross them.
pub fn open_within(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    let one = |dir: BorrowedFd<'_>, path: &[u8]| {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let answer = rustix::io::retry_on_intr(|| {
            openat2(dir, path, flags, Mode::empty(), beneath | ResolveFlags::NO_XDEV)
        });
        match answer {
            Err(rustix::io::Errno::XDEV) => Err(Error::from_errno(libc::EBUSY)),
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                open_dir_beneath(dir, path, DirMode::List)
            }
            other => other.map_err(|e| Error::from_errno(e.raw_os_error())),
        }
    };
    if path.len() < libc::PATH_MAX as usize {
        return one(root, path);
    }
    let mut parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty());
    parts.try_fold(one(root, b"")?, |dir, part| one(dir.as_fd(), part))
}

/// Opens a subvolume that was found below `root`; `None` if it is not there any more.
///
/// # Errors
/// As [`open_within`]; EBUSY if another subvolume is in its place.
pub fn open_nested(root: BorrowedFd<'_>, nested: &Nested) -> Result<Option<OwnedFd>> {
    match open_within(root, &nested.path()) {
        Ok(opened) if id(opened.as_fd())? == nested.id => Ok(Some(opened)),
        Ok(_) => Err(Error::from_errno(libc::EBUSY)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Says of a subvolume and of all those in it whether they can be changed. At any moment the outer one is read-only
/// as long as one within it is.
///
/// # Errors
/// As [`nested_at_any_depth`], then nothing is changed; as [`set_access`], then those before stay changed.
pub fn set_access_of_all(root: BorrowedFd<'_>, access: Access) -> Result<()> {
    let mut within = nested_at_any_depth(root)?;
    if access == Access::ReadOnly {
        set_access(root, access)?;
        // Now no more can come.
        within = nested_at_any_depth(root)?;
    }
    for inner in &within {
        if let Some(inner) = open_nested(root, inner)? {
            set_access(inner.as_fd(), access)?;
        }
    }
    set_access(root, access)
}

/// Deletes a subvolume, those in it first, whether they can be changed or not. Any descriptor of `parent` will do.
///
/// Whatever is mounted in the last one of them is detached: look before.
///
/// # Errors
/// EPERM if the caller may not [`destroy`] it, or cannot be told where those in it are; then it is writable, and so
/// are those in it as far as they could be found: the tree can be emptied name by name, and each subvolume removed as
/// an empty directory. EINVAL if it is no subvolume; EBUSY if something is mounted on it or on the way to one within.
pub fn delete_subvolume(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let (parent, root) = (open_within(parent, b"")?, open_within(parent, name)?);
    let (parent, root) = (parent.as_fd(), root.as_fd());
    if !is_subvolume(root)? {
        return Err(Error::from_errno(libc::EINVAL));
    }
    // Nothing can be taken out of a subvolume that cannot be changed. It comes before those in it, which its owner
    // may have locked himself out of.
    set_access(root, Access::Writable)?;
    let within = match nested_at_any_depth(root) {
        Err(e) if e.errno() == libc::ENAMETOOLONG => return Err(Error::from_errno(libc::EPERM)),
        within => within?,
    };
    set_access_of_all(root, Access::Writable)?;
    for inner in within.iter().rev() {
        match open_within(root, &inner.dir).and_then(|dir| destroy_or_remove(dir.as_fd(), &inner.name)) {
            Err(e) if !e.is_absent() => return Err(e),
            _ => {}
        }
    }
    destroy_or_remove(parent, name)
}

/// Destroys a subvolume; an empty one goes without the right to do that.
fn destroy_or_remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match destroy(dir, name) {
        Err(e) if e.is_denied() => node::rmdir(dir, name).map_err(|_| e),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::sys::open::open_root;
    use std::path::Path;

    #[test]
    fn a_name_is_one_component_that_fits() {
        let errno = |name: &[u8]| field::<8>(name).err().map(|e| e.errno());
        assert_eq!(field::<8>(b"seven77").ok(), Some(*b"seven77\0"));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(errno(bad), Some(libc::EINVAL), "{bad:?}");
        }
        assert_eq!(errno(b"eight888"), Some(libc::ENAMETOOLONG));
    }

    #[test]
    fn requests_have_the_numbers_of_the_header() {
        // As a C compiler prints them on x86-64 and arm64.
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!(
            [SNAP_DESTROY, INO_LOOKUP, SNAP_CREATE_V2, SUBVOL_CREATE_V2, SUBVOL_GETFLAGS, SUBVOL_SETFLAGS],
            [0x5000_940f, 0xd000_9412, 0x5000_9417, 0x5000_9418, 0x8008_9419, 0x4008_941a]
        );
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!([GET_SUBVOL_ROOTREF, INO_LOOKUP_USER], [0xd000_943d, 0xd000_943e]);
    }

    #[test]
    fn what_is_on_another_disk_is_no_subvolume() {
        let proc = open_root(Path::new("/proc")).expect("open");
        assert!(!is_btrfs(proc.as_fd()).expect("ask"));
        assert!(!is_subvolume(proc.as_fd()).expect("ask"));
        let list = open_within(proc.as_fd(), b"").expect("open");
        assert_eq!(id(list.as_fd()).map_err(|e| e.errno()), Err(libc::ENOTTY));
        assert_eq!(create(list.as_fd(), b"x").map_err(|e| e.errno()), Err(libc::ENOTTY));
    }
}

//! How to walk a directory tree that somebody else filled: which entries come, in which order, and how nobody is
//! led astray.
//!
//! By descriptors only: a symlink is never followed, another mount is never entered. A tree may be as deep as it
//! likes: [`OPEN_DIRS`] directories of the way down are open at a time, and the way up is checked by device and
//! inode number. All entries of a directory come first, then what is below them, directory by directory; a directory
//! is left after all below it. Nothing is remembered but the names of directories that are still to be entered.

use crate::error::{Error, ErrorKind, Result};
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys;
use plywood_fuse::sys::open::DirMode;
use plywood_fuse::types::Kind;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How many directories are open at a time in one walk. More saves the way up through `..` in deep trees, which
/// are rare; all workers of a process share its limit of descriptors.
pub const OPEN_DIRS: usize = 32;

/// One entry of a directory.
pub struct Found<'a> {
    /// The directory, open to be listed.
    pub dir: BorrowedFd<'a>,
    /// The name in it.
    pub name: &'a [u8],
    /// What the directory says it is, if it does.
    pub kind: Option<Kind>,
    /// The path of the directory below the root of the walk; empty for the root itself.
    pub above: &'a [u8],
}

impl Found<'_> {
    /// Where the entry is, for system calls.
    pub fn place(&self) -> sys::Place<'_> {
        sys::Place::At(self.dir, self.name)
    }

    /// Its path below the root of the walk.
    pub fn path(&self) -> PathBuf {
        Path::new(OsStr::from_bytes(self.above)).join(OsStr::from_bytes(self.name))
    }
}

/// What a walk does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next entry.
    Next,
    /// Into this entry, which is a directory, or was one just now, once all entries beside it were seen.
    Enter,
    /// The walk is over.
    Stop,
}

/// Who sees the entries of a walk.
pub trait Visitor {
    /// An entry, before anything below it.
    ///
    /// # Errors
    /// Those of the visitor; they end the walk.
    fn entry(&mut self, found: &Found<'_>) -> Result<Step>;

    /// All entries of the directory that was opened last have been seen; nothing below them yet.
    ///
    /// # Errors
    /// Those of the visitor; they end the walk.
    fn listed(&mut self) -> Result<()> {
        Ok(())
    }

    /// Opens the directory that is to be entered; `None` leaves it out.
    ///
    /// # Errors
    /// Those of the disk. What vanished, is no directory any more or belongs to another mount is no error.
    fn open(&mut self, found: &Found<'_>) -> Result<Option<OwnedFd>> {
        match open_dir(found.dir, found.name) {
            Ok(fd) => Ok(Some(fd)),
            Err(e) if is_gone(&e) || e.is_cross_device() => Ok(None),
            Err(e) => Err(Error::fuse("open", found.path().display().to_string(), e)),
        }
    }

    /// A directory that was entered, after all below it.
    ///
    /// # Errors
    /// Those of the visitor; they end the walk.
    fn leave(&mut self, found: &Found<'_>) -> Result<()> {
        let _ = found;
        Ok(())
    }
}

/// True if a directory that was listed just now is gone, or is something else now.
pub fn is_gone(e: &SysError) -> bool {
    e.is_absent() || e.errno() == libc::ELOOP
}

/// Opens the subdirectory `name` of `dir` to be listed, if that is on the same mount.
///
/// # Errors
/// EXDEV if something is mounted there; ENOTDIR or ELOOP if it is no directory.
pub fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, SysError> {
    open_same_mount(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens the file `name` of `dir` to be read, if that is on the same mount; never waits for a fifo.
///
/// # Errors
/// EXDEV if something is mounted there; ELOOP if it is a symlink.
pub fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, SysError> {
    open_same_mount(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
}

/// # Source
/// `openat2(2)`, RESOLVE_NO_XDEV, which knows bind mounts too; without it the device numbers have to do.
fn open_same_mount(
    dir: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, SysError> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV
        | ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(fd),
            // Somebody renames or mounts at this moment.
            Err(rustix::io::Errno::AGAIN) => {}
            // No such call, or a filter that does not know it.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => break,
            Err(e) => return Err(SysError::from_errno(e.raw_os_error())),
        }
    }
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty())
        .map_err(|e| SysError::from_errno(e.raw_os_error()))?;
    if identity(dir)?.0 == identity(fd.as_fd())?.0 { Ok(fd) } else { Err(SysError::from_errno(libc::EXDEV)) }
}

/// Names of one directory, packed: kind, length, bytes.
#[derive(Default)]
struct Names {
    packed: Vec<u8>,
    at: usize,
}

/// The bytes before a name.
const HEADER: usize = 3;

impl Names {
    fn of(dir: BorrowedFd<'_>) -> std::result::Result<Names, SysError> {
        let mut names = Names::default();
        sys::dir::list(dir, usize::MAX, &mut |raw| names.push(raw.kind, raw.name))?;
        Ok(names)
    }

    fn push(&mut self, kind: u8, name: &[u8]) {
        // No file system has names that need more than 16 bits.
        let length = u16::try_from(name.len()).unwrap_or(u16::MAX);
        self.packed.push(kind);
        self.packed.extend_from_slice(&length.to_ne_bytes());
        self.packed.extend_from_slice(&name[..usize::from(length)]);
    }

    fn next(&mut self) -> Option<(u8, &[u8])> {
        let header = self.packed.get(self.at..self.at + HEADER)?;
        let kind = header[0];
        let length = usize::from(u16::from_ne_bytes([header[1], header[2]]));
        let start = self.at + HEADER;
        self.at = start + length;
        Some((kind, self.packed.get(start..self.at)?))
    }
}

/// The kind that a directory tells: `DT_UNKNOWN` is 0, all others are the type bits of a mode, shifted.
fn kind_of(raw: u8) -> Option<Kind> {
    (raw != libc::DT_UNKNOWN).then(|| Kind::from_mode(u32::from(raw) << 12))
}

/// A directory on the way down.
struct Frame {
    /// `None` while enough others below are open.
    fd: Option<OwnedFd>,
    /// Device and inode number, once it had to be closed.
    who: (u64, u64),
    /// The directories in it that are still to be entered.
    dirs: Names,
    /// The length of its own path.
    path_bytes: usize,
}

/// The directory and the last name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Walks everything below the directory `root`, which is open to be listed.
///
/// # Errors
/// Those of the visitor and of listing; `Aborted` if a directory moved away while the walk was far below it.
pub fn walk(root: OwnedFd, visitor: &mut dyn Visitor) -> Result<()> {
    let mut path: Vec<u8> = Vec::new();
    let mut frames: Vec<Frame> = Vec::new();
    if enter(&mut frames, root, &path, visitor)? == Step::Stop {
        return Ok(());
    }
    while let Some(top) = frames.last_mut() {
        let Some(dir) = top.fd.as_ref().map(AsFd::as_fd) else { return Err(lost(&path)) };
        if let Some((kind, name)) = top.dirs.next() {
            let Some(fd) = visitor.open(&Found { dir, name, kind: kind_of(kind), above: &path })? else {
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            if enter(&mut frames, fd, &path, visitor)? == Step::Stop {
                return Ok(());
            }
            continue;
        }
        let Some(done) = frames.pop() else { break };
        let Some(parent) = frames.last_mut() else { break };
        if parent.fd.is_none() {
            parent.fd = done.fd.as_ref().and_then(|child| climb(child.as_fd(), parent.who));
        }
        drop(done);
        let Some(dir) = parent.fd.as_ref().map(AsFd::as_fd) else { return Err(lost(&path)) };
        let (above, name) = split(&path);
        visitor.leave(&Found { dir, name, kind: Some(Kind::Dir), above })?;
        path.truncate(parent.path_bytes);
    }
    Ok(())
}

/// Shows the entries of a directory to the visitor, and puts it on the way down.
fn enter(frames: &mut Vec<Frame>, fd: OwnedFd, path: &[u8], visitor: &mut dyn Visitor) -> Result<Step> {
    let failed = |e| Error::fuse("list", shown(path), e);
    let mut names = match Names::of(fd.as_fd()) {
        // Removed while it was open: there is nothing in it.
        Err(e) if e.is_absent() => Names::default(),
        other => other.map_err(failed)?,
    };
    let mut dirs = Names::default();
    while let Some((kind, name)) = names.next() {
        match visitor.entry(&Found { dir: fd.as_fd(), name, kind: kind_of(kind), above: path })? {
            Step::Next => {}
            Step::Enter => dirs.push(kind, name),
            Step::Stop => return Ok(Step::Stop),
        }
    }
    visitor.listed()?;
    frames.push(Frame { fd: Some(fd), who: (0, 0), dirs, path_bytes: path.len() });
    if let Some(far) = frames.len().checked_sub(OPEN_DIRS + 1).and_then(|at| frames.get_mut(at))
        && let Some(fd) = far.fd.take()
    {
        far.who = identity(fd.as_fd()).map_err(failed)?;
    }
    Ok(Step::Enter)
}

/// Device and inode number of an open directory.
///
/// # Errors
/// As `statx(2)`.
pub fn identity(fd: BorrowedFd<'_>) -> std::result::Result<(u64, u64), SysError> {
    sys::stat::stat(sys::Place::Fd(fd)).map(|stat| (stat.dev, stat.ino))
}

/// The directory above `child`, if it is still the one that we came from.
pub fn climb(child: BorrowedFd<'_>, who: (u64, u64)) -> Option<OwnedFd> {
    let parent = sys::open::open_dir_at(child, b"..", DirMode::List).ok()?;
    (identity(parent.as_fd()).ok()? == who).then_some(parent)
}

fn shown(path: &[u8]) -> String {
    OsStr::from_bytes(path).display().to_string()
}

fn lost(path: &[u8]) -> Error {
    Error::new(ErrorKind::Aborted, "walk", shown(path), "a directory above it was moved or closed meanwhile")
}

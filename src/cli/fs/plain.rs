//! A plain directory as a tree of files: a snapshot that is one directory, or this machine.
//!
//! In a snapshot the kernel resolves every path within its root directory, whatever symlinks somebody put there
//! (`RESOLVE_IN_ROOT`), and neither devices nor pipes are ever opened: what a snapshot calls a disk is a disk of this
//! machine.

use super::files::{Change, Content, Files, Links, Meta, Node, at, expect_regular};
use plywood_fuse::error::{Error, Result};
use plywood_fuse::sys::node;
use plywood_fuse::sys::open::{open_at, open_root};
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::{self, Place};
use plywood_fuse::types::{Attr, Ino, Kind, SetTime};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The directory.
pub enum Plain {
    /// This machine, with paths as its programs use them.
    Machine,
    /// All below one directory, which paths cannot leave.
    Below(OwnedFd),
}

/// How often a path is resolved again because something on it moved meanwhile.
const TRIES: usize = 100;

impl Plain {
    /// The tree below `root`.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn below(root: &Path) -> Result<Plain> {
        Ok(Plain::Below(open_root(root).map_err(at("open", root))?))
    }

    /// Opens what a path leads to: a directory, or anything with O_PATH.
    fn find(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Plain::Machine => Ok(rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(of_rustix)?),
            Plain::Below(root) => {
                let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
                let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let mut tries = 0;
                loop {
                    match rustix::fs::openat2(root, path, flags, Mode::empty(), within) {
                        Err(rustix::io::Errno::AGAIN) if tries < TRIES => tries += 1,
                        other => return other.map_err(of_rustix),
                    }
                }
            }
        }
    }

    /// The directory that holds the last name of a path, and that name.
    ///
    /// # Errors
    /// `otherwise` for a path without one: the root, or one that ends in `..`.
    fn holder<'a>(&self, path: &'a Path, otherwise: i32) -> Result<(OwnedFd, &'a OsStr)> {
        let name = path.file_name().ok_or(Error::from_errno(otherwise))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((self.find(parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Calls `f` with the place of a path; a symlink at its end is kept.
    fn with<T>(&self, path: &Path, f: impl FnOnce(Place<'_>) -> Result<T>) -> Result<T> {
        if path.file_name().is_none() {
            return f(Place::Fd(self.find(path, OFlags::PATH)?.as_fd()));
        }
        let (dir, name) = self.holder(path, libc::EINVAL)?;
        f(Place::At(dir.as_fd(), name.as_bytes()))
    }

    /// Opens a regular file, and nothing else.
    fn regular(&self, path: &Path, flags: OFlags) -> Result<Box<dyn Content>> {
        let found = self.find(path, OFlags::PATH)?;
        expect_regular(sys::stat::stat(Place::Fd(found.as_fd()))?.kind())?;
        // What was looked at is what is opened, whoever changes the path meanwhile.
        let link = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = rustix::fs::openat(CWD, link, flags, Mode::empty()).map_err(of_rustix)?;
        Ok(Box::new(Open(fd)))
    }
}

fn of_rustix(errno: rustix::io::Errno) -> Error {
    Error::from_errno(errno.raw_os_error())
}

/// An open regular file.
struct Open(OwnedFd);

impl Content for Open {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        sys::copy::read_at(self.0.as_fd(), buffer, at)
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> Result<()> {
        if sys::copy::write_at(self.0.as_fd(), data, at)? < data.len() {
            return Err(Error::from_errno(libc::ENOSPC));
        }
        Ok(())
    }

    fn set_len(&self, size_bytes: u64) -> Result<()> {
        sys::stat::truncate(self.0.as_fd(), size_bytes)
    }
}

impl Files for Plain {
    fn stat(&self, path: &Path, links: Links) -> Result<Meta> {
        let stat = match links {
            Links::Follow => {
                self.find(path, OFlags::PATH).and_then(|found| sys::stat::stat(Place::Fd(found.as_fd())))
            }
            Links::Keep => self.with(path, sys::stat::stat),
        };
        stat.map(|stat| meta(&stat)).map_err(at("stat", path))
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>> {
        let listed = self.find(dir, OFlags::RDONLY | OFlags::DIRECTORY).and_then(|fd| names(fd.as_fd()));
        listed.map_err(at("read directory", dir))
    }

    fn read_link(&self, path: &Path) -> Result<OsString> {
        let read = self
            .holder(path, libc::EINVAL)
            .and_then(|(dir, name)| node::read_link(dir.as_fd(), name.as_bytes()));
        read.map(OsString::from_vec).map_err(at("read link", path))
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Content>> {
        self.regular(path, OFlags::RDONLY).map_err(at("open", path))
    }

    fn overwrite(&self, path: &Path) -> Result<Box<dyn Content>> {
        self.regular(path, OFlags::WRONLY | OFlags::TRUNC).map_err(at("open", path))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn Content>> {
        let made = self.holder(path, libc::EISDIR).and_then(|(dir, name)| {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            open_at(dir.as_fd(), name.as_bytes(), flags, 0o600)
        });
        Ok(Box::new(Open(made.map_err(at("create", path))?)))
    }

    fn make(&self, path: &Path, what: &Node) -> Result<()> {
        let made = self.holder(path, libc::EEXIST).and_then(|(dir, name)| {
            let (dir, name) = (dir.as_fd(), name.as_bytes());
            match what {
                Node::Dir => node::mkdir(dir, name, 0o700),
                Node::Symlink(target) => node::symlink(target.as_bytes(), dir, name),
                Node::Special(kind, device) => node::mknod(dir, name, kind.mode_bits() | 0o600, *device),
            }
        });
        made.map_err(at("make", path))
    }

    fn link(&self, existing: &Path, path: &Path) -> Result<()> {
        let linked = self.holder(path, libc::EEXIST).and_then(|(dir, name)| {
            self.with(existing, |place| node::link(place, dir.as_fd(), name.as_bytes()))
        });
        linked.map_err(at("link", path))
    }

    fn change(&self, path: &Path, change: Change) -> Result<()> {
        let changed = self.with(path, |place| {
            if let Some((uid, gid)) = change.owner {
                sys::stat::chown(place, Some(uid), Some(gid))?;
            }
            if let Some(perm) = change.perm
                && sys::stat::stat(place)?.kind() != Kind::Symlink
            {
                sys::stat::chmod(place, perm)?;
            }
            if let Some((atime, mtime)) = change.times {
                sys::stat::set_times(place, Some(SetTime::At(atime)), Some(SetTime::At(mtime)))?;
            }
            Ok(())
        });
        changed.map_err(at("change attributes", path))
    }

    fn xattrs(&self, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = self.with(path, |place| {
            let mut all = Vec::new();
            for name in sys::xattr::list(place)?.iter() {
                let c_name = CString::new(name).map_err(|_| Error::from_errno(libc::EINVAL))?;
                if let Some(value) = sys::xattr::get_value(place, &c_name)? {
                    all.push((name.to_vec(), value));
                }
            }
            all.sort();
            Ok(all)
        });
        read.map_err(at("read attributes", path))
    }

    fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> Result<()> {
        let name = CString::new(name).map_err(|_| Error::from_errno(libc::EINVAL))?;
        let any = sys::xattr::SetMode::Any;
        self.with(path, |place| sys::xattr::set(place, &name, value, any)).map_err(at("set attribute", path))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        let removed = self
            .holder(path, libc::EISDIR)
            .and_then(|(dir, name)| node::unlink(dir.as_fd(), name.as_bytes()));
        removed.map_err(at("remove", path))
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        let removed =
            self.holder(path, libc::EBUSY).and_then(|(dir, name)| remove_tree(dir.as_fd(), name.as_bytes()));
        removed.map_err(at("remove", path))
    }
}

fn meta(stat: &Stat) -> Meta {
    let attr = Attr {
        ino: Ino(stat.ino),
        kind: stat.kind(),
        perm: stat.mode & 0o7777,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        device: stat.rdev,
        size_bytes: stat.size,
        blocks: stat.blocks,
        block_size: stat.block_size,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        btime: stat.btime,
    };
    Meta { attr, device: stat.dev }
}

fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    sys::dir::list(dir, usize::MAX, &mut |raw| names.push(OsString::from_vec(raw.name.to_vec())))?;
    names.sort();
    Ok(names)
}

/// A directory that is being emptied.
struct Emptied {
    dir: OwnedFd,
    name: Vec<u8>,
    left: Vec<OsString>,
}

impl Emptied {
    /// Opens the directory `name`: no symlink, and on the same mount.
    fn enter(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Emptied> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let dir = rustix::fs::openat2(parent, name, flags, Mode::empty(), within).map_err(of_rustix)?;
        let left = names(dir.as_fd())?;
        Ok(Emptied { dir, name: name.to_vec(), left })
    }
}

/// Removes a directory and all below it, as deep as descriptors can be open.
fn remove_tree(holder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut way = vec![Emptied::enter(holder, name)?];
    while let Some(last) = way.last_mut() {
        match last.left.pop() {
            Some(name) => match node::unlink(last.dir.as_fd(), name.as_bytes()) {
                Ok(()) => {}
                Err(e) if e.is_absent() => {}
                Err(e) if e.errno() == libc::EISDIR => {
                    let below = Emptied::enter(last.dir.as_fd(), name.as_bytes())?;
                    way.push(below);
                }
                Err(e) => return Err(e),
            },
            None => {
                let Some(done) = way.pop() else { break };
                let parent = way.last().map_or(holder, |above| above.dir.as_fd());
                node::rmdir(parent, &done.name)?;
            }
        }
    }
    Ok(())
}

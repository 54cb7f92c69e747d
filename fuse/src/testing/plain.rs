//! Operations on a directory, by system calls: the reference, and the same through a mount.
//!
//! No symlink is followed on the way to a name, so that a path means the same to everybody.

use super::operation::{Answer, Operation, Verb};
use super::tree::{self, Entries, c_string, digest, pattern, split};
use crate::error::{Error, Result};
use crate::overlay::attr::Privileges;
use crate::sys::node::RenameMode;
use crate::sys::open::DirMode;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Device, Kind, SetTime, Time};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// The times that `times` means.
pub fn time_of(secs: u64) -> SetTime {
    match secs {
        0 => SetTime::Now,
        secs => SetTime::At(Time { secs: secs.cast_signed(), nanos: 5 }),
    }
}

/// The privileges of who runs the test.
pub fn privileges() -> Privileges {
    if sys::process::effective_uid() == 0 { Privileges::Keep } else { Privileges::Kill }
}

/// An error without words.
pub(crate) fn errno(errno: i32) -> Error {
    Error::from_errno(errno)
}

/// A symlink on the way is not a directory, as far as these operations are concerned.
fn no_link(e: Error) -> Error {
    if e.errno() == libc::ELOOP { errno(libc::ENOTDIR) } else { e }
}

/// A directory of the disk, or a mount.
pub struct Plain {
    root: OwnedFd,
    handles: HashMap<u64, OwnedFd>,
}

impl Plain {
    /// The tree in a directory.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open(root: &Path) -> Result<Plain> {
        Ok(Plain { root: sys::open::open_root(root)?, handles: HashMap::new() })
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn entries(&self, dir: &str) -> Result<Entries> {
        tree::entries_at(self.root.as_fd(), dir).map_err(no_link)
    }

    /// Every path with its kind.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn kinds(&self) -> Result<BTreeMap<String, Kind>> {
        tree::kinds_at(self.root.as_fd())
    }

    /// The kind of what is under a path, and what tells it from all others.
    ///
    /// # Errors
    /// As `stat(2)`.
    pub fn identity(&self, path: &str) -> Result<(Kind, u32, Identity)> {
        let (dir, name) = self.place(path)?;
        let stat = sys::stat::stat(Place::At(dir.as_fd(), name))?;
        Ok((stat.kind(), stat.nlink, identity(stat.ino, stat.btime)))
    }

    fn place<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a [u8])> {
        let (dir, name) = split(path);
        let fd = sys::open::open_dir_beneath(self.root.as_fd(), dir.as_bytes(), DirMode::Base);
        let fd = fd.map_err(no_link)?;
        Ok((fd, if name.is_empty() { b"." } else { name.as_bytes() }))
    }

    fn handle(&self, operation: &Operation) -> Result<&OwnedFd> {
        self.handles.get(&operation.number(0)).ok_or(errno(libc::EBADF))
    }

    /// Opens a regular file, and nothing else.
    fn file(&self, path: &str, flags: i32) -> Result<OwnedFd> {
        let (dir, name) = self.place(path)?;
        match sys::stat::stat(Place::At(dir.as_fd(), name))?.kind() {
            Kind::File => sys::open::open_at(dir.as_fd(), name, flags | libc::O_NONBLOCK, 0),
            Kind::Dir => Err(errno(libc::EISDIR)),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    fn make(&self, operation: &Operation) -> Result<Answer> {
        let (dir, name) = self.place(&operation.path)?;
        let dir = dir.as_fd();
        let perm = operation.number(0) as u32;
        match operation.verb {
            Verb::Create => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                drop(sys::open::open_at(dir, name, flags, perm)?);
            }
            Verb::Mkdir => sys::node::mkdir(dir, name, perm)?,
            Verb::Mkfifo => sys::node::mknod(dir, name, libc::S_IFIFO | perm, Device::default())?,
            Verb::Mknod => {
                let device = Device { major: perm, minor: operation.number(1) as u32 };
                sys::node::mknod(dir, name, libc::S_IFCHR | 0o644, device)?;
            }
            Verb::Symlink => sys::node::symlink(operation.other.as_bytes(), dir, name)?,
            Verb::Unlink => sys::node::unlink(dir, name)?,
            _ => sys::node::rmdir(dir, name)?,
        }
        Ok(Answer::Done)
    }

    fn move_or_link(&self, operation: &Operation) -> Result<Answer> {
        let (from, old) = self.place(&operation.path)?;
        let (to, new) = self.place(&operation.other)?;
        let mode = match operation.verb {
            Verb::Link => {
                sys::node::link(Place::At(from.as_fd(), old), to.as_fd(), new)?;
                return Ok(Answer::Done);
            }
            Verb::Rename => RenameMode::Replace,
            Verb::RenameNoReplace => RenameMode::NoReplace,
            _ => RenameMode::Exchange,
        };
        sys::node::rename(from.as_fd(), old, to.as_fd(), new, mode)?;
        Ok(Answer::Done)
    }

    fn change_data(&self, operation: &Operation) -> Result<Answer> {
        let n = |at| operation.number(at);
        if operation.verb == Verb::CopyRange {
            let to = self.file(&operation.other, libc::O_RDWR)?;
            let from = self.file(&operation.path, libc::O_RDONLY)?;
            let copied = sys::copy::copy_range(from.as_fd(), n(1), to.as_fd(), n(0), n(2) as usize)?;
            return Ok(Answer::Written(copied));
        }
        let file = self.file(&operation.path, libc::O_WRONLY)?;
        let file = file.as_fd();
        match operation.verb {
            Verb::Write => {
                let data = pattern(n(2), n(0), n(1) as usize);
                return sys::copy::write_at(file, &data, n(0)).map(Answer::Written);
            }
            Verb::Append => {
                let file = self.file(&operation.path, libc::O_WRONLY | libc::O_APPEND)?;
                let data = pattern(n(1), 0, n(0) as usize);
                return sys::copy::write_at(file.as_fd(), &data, 0).map(Answer::Written);
            }
            Verb::Truncate => sys::stat::truncate(file, n(0))?,
            Verb::Punch => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                sys::copy::allocate(file, mode, n(0), n(1))?;
            }
            _ => sys::copy::allocate(file, 0, n(0), n(1))?,
        }
        Ok(Answer::Done)
    }

    fn change_attributes(&self, operation: &Operation) -> Result<Answer> {
        let (dir, name) = self.place(&operation.path)?;
        let place = Place::At(dir.as_fd(), name);
        let n = |at| operation.number(at) as u32;
        let is_symlink = sys::stat::stat(place)?.kind() == Kind::Symlink;
        match operation.verb {
            Verb::Chmod if is_symlink => return Err(errno(libc::EOPNOTSUPP)),
            Verb::Chmod => sys::stat::chmod(place, n(0))?,
            Verb::Chown => sys::stat::chown(place, Some(n(0)), Some(n(1)))?,
            Verb::Times => {
                let time = Some(time_of(operation.number(0)));
                sys::stat::set_times(place, time, time)?;
            }
            Verb::SetXattr => {
                let value = pattern(operation.number(1), 0, operation.number(0) as usize);
                sys::xattr::set(place, &c_string(operation.other.as_bytes()), &value, SetMode::Any)?;
            }
            _ => sys::xattr::remove(place, &c_string(operation.other.as_bytes()))?,
        }
        Ok(Answer::Done)
    }

    fn by_handle(&mut self, operation: &Operation) -> Result<Answer> {
        let n = |at| operation.number(at);
        match operation.verb {
            Verb::Open => {
                if self.handles.contains_key(&n(0)) {
                    return Err(errno(libc::EBUSY));
                }
                let file = self.file(&operation.path, libc::O_RDWR)?;
                self.handles.insert(n(0), file);
            }
            Verb::WriteOpen => {
                let data = pattern(n(3), n(1), n(2) as usize);
                return sys::copy::write_at(self.handle(operation)?.as_fd(), &data, n(1))
                    .map(Answer::Written);
            }
            Verb::ReadOpen => {
                let mut data = vec![0; n(2) as usize];
                let length = sys::copy::read_at(self.handle(operation)?.as_fd(), &mut data, n(1))?;
                return Ok(Answer::Bytes(length, digest(&data[..length])));
            }
            Verb::TruncateOpen => sys::stat::truncate(self.handle(operation)?.as_fd(), n(1))?,
            Verb::ChmodOpen => sys::stat::chmod(Place::Fd(self.handle(operation)?.as_fd()), n(1) as u32)?,
            Verb::StatOpen => {
                let stat = sys::stat::stat(Place::Fd(self.handle(operation)?.as_fd()))?;
                return Ok(Answer::Stat(stat.size, stat.nlink, stat.mode & 0o7777));
            }
            _ => drop(self.handles.remove(&n(0)).ok_or(errno(libc::EBADF))?),
        }
        Ok(Answer::Done)
    }

    /// Does one operation; those that concern the file system as a whole do nothing.
    ///
    /// # Errors
    /// Those of the system call.
    pub fn apply(&mut self, operation: &Operation) -> Result<Answer> {
        use Verb::*;
        match operation.verb {
            Create | Mkdir | Mkfifo | Mknod | Symlink | Unlink | Rmdir => self.make(operation),
            Link | Rename | RenameNoReplace | Exchange => self.move_or_link(operation),
            Write | Append | Truncate | Punch | Allocate | CopyRange => self.change_data(operation),
            Chmod | Chown | Times | SetXattr | RemoveXattr => self.change_attributes(operation),
            Open | WriteOpen | ReadOpen | TruncateOpen | ChmodOpen | StatOpen | Close => {
                self.by_handle(operation)
            }
            Read => {
                let file = self.file(&operation.path, libc::O_RDONLY)?;
                let mut data = vec![0; operation.number(1) as usize];
                let length = sys::copy::read_at(file.as_fd(), &mut data, operation.number(0))?;
                Ok(Answer::Bytes(length, digest(&data[..length])))
            }
            List => Ok(Answer::Names(self.entries(&operation.path)?.into_keys().collect())),
            Forget | Remount | Rotate | Changes => Ok(Answer::Done),
        }
    }

    /// Closes all handles.
    pub fn close_handles(&mut self) {
        self.handles.clear();
    }
}

/// What tells an inode from all others: its number, and its birth, as numbers are used again.
pub type Identity = (u64, Option<(i64, u32)>);

/// The identity of an inode.
pub fn identity(ino: u64, btime: Option<Time>) -> Identity {
    (ino, btime.map(|t| (t.secs, t.nanos)))
}

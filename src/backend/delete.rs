//! How a directory tree that somebody else filled is deleted.
//!
//! By descriptors, never through a symlink, never onto another mount, however deep ([`super::walk`]). Subvolumes of
//! btrfs on the way go as such. Directories that their owner locked himself out of are opened again. What cannot be
//! deleted stays, everything else goes, and the first failure is told: the next cleanup tries again. A crash leaves
//! a part of the tree under the same name.

use super::walk::{self, Found, Step, Visitor};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::sys::btrfs;
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::node;
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::{self, Place};
use plywood_fuse::types::Kind;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const OPERATION: &str = "delete";

/// What the owner of a directory needs to empty it.
const OWNER_ALL: u32 = 0o700;

/// Deletes `path` with all below it; that it is gone already is fine.
///
/// # Errors
/// `Busy` where something is mounted; `PermissionDenied`, with what to do, where files belong to ids of a user
/// namespace that the caller is not in; those of the disk. The rest is deleted all the same.
pub fn delete_tree(path: &Path) -> Result<()> {
    let failed = |e| Error::fuse(OPERATION, path.display().to_string(), e);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let cause = "it is no entry of a directory";
        return Err(Error::new(ErrorKind::InvalidArgument, OPERATION, path.display().to_string(), cause));
    };
    let parent = match sys::open::open_root(parent) {
        Err(e) if e.is_absent() => return Ok(()),
        other => other.map_err(failed)?,
    };
    delete_at(parent.as_fd(), name.as_bytes()).map_err(|e| e.during(OPERATION, path.display().to_string()))
}

/// As [`delete_tree`], for the name `name` in an open directory.
///
/// # Errors
/// As [`delete_tree`].
pub fn delete_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut deleter = Deleter { is_root: effective_uid() == 0, first: None };
    deleter.delete(&Found { dir, name, kind: None, above: &[] })?;
    deleter.first.take().map_or(Ok(()), Err)
}

struct Deleter {
    /// Root, perhaps of a user namespace, needs no permission.
    is_root: bool,
    /// What went wrong first; the rest is deleted all the same.
    first: Option<Error>,
}

impl Deleter {
    /// The top of the tree.
    fn delete(&mut self, found: &Found<'_>) -> Result<()> {
        if self.entry(found)? == Step::Enter
            && let Some(fd) = self.open(found)?
        {
            walk::walk(fd, self)?;
            self.leave(found)?;
        }
        Ok(())
    }

    fn note(&mut self, error: Error) {
        match &self.first {
            None => self.first = Some(error),
            Some(_) => tracing::debug!(%error, "delete: something else stays, too"),
        }
    }

    /// What a refusal means, in words that help.
    fn explain(&self, found: &Found<'_>, e: SysError) -> Error {
        let subject = found.path().display().to_string();
        if e.errno() == libc::EBUSY || e.is_cross_device() {
            let cause = "something is mounted there: unmount it first";
            return Error::new(ErrorKind::Busy, "remove", subject, cause).with_source(e);
        }
        if e.is_denied() {
            let me = effective_uid();
            // Who may remove a name is decided by its directory; what is in a directory, by itself.
            let owners = [found.place(), Place::dir(&found.dir)].map(|p| sys::stat::stat(p).map(|s| s.uid));
            if let Some(owner) = owners.into_iter().flatten().find(|&owner| owner != me) {
                let cause = format!(
                    "it belongs to user {owner}, and this is user {me}: run it inside the user namespace that made it"
                );
                return Error::new(ErrorKind::PermissionDenied, "remove", subject, cause).with_source(e);
            }
        }
        Error::fuse("remove", subject, e)
    }

    /// Opens a directory, and lets its owner in again if need be.
    fn open_dir(&self, dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, SysError> {
        let fd = match walk::open_dir(dir, name) {
            Err(e) if e.is_denied() && !self.is_root => {
                unlock(dir, name)?;
                walk::open_dir(dir, name)?
            }
            other => return other.and_then(|fd| self.unlocked(fd)),
        };
        Ok(fd)
    }

    fn unlocked(&self, fd: OwnedFd) -> std::result::Result<OwnedFd, SysError> {
        if !self.is_root {
            let stat = sys::stat::stat(Place::Fd(fd.as_fd()))?;
            if stat.mode & OWNER_ALL != OWNER_ALL && stat.uid == effective_uid() {
                sys::stat::chmod(Place::Fd(fd.as_fd()), OWNER_ALL)?;
            }
        }
        Ok(fd)
    }
}

/// Gives the owner of a directory that cannot be opened all permissions.
fn unlock(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), SysError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(std::io::Error::from)?;
    match sys::stat::chmod(Place::Fd(fd.as_fd()), OWNER_ALL) {
        // Before Linux 6.6 a descriptor of this kind has to be named.
        Err(e) if e.errno() == libc::ENOSYS => {
            let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
            Ok(std::fs::set_permissions(link, std::fs::Permissions::from_mode(OWNER_ALL))?)
        }
        other => other,
    }
}

/// Called after each name that went.
fn one_is_gone() -> Result<()> {
    fail::point("r.mid_delete")?;
    fail::point("g.mid_delete")
}

impl Visitor for Deleter {
    fn entry(&mut self, found: &Found<'_>) -> Result<Step> {
        if found.kind == Some(Kind::Dir) {
            return Ok(Step::Enter);
        }
        match node::unlink(found.dir, found.name) {
            Ok(()) => one_is_gone()?,
            Err(e) if e.errno() == libc::ENOENT => {}
            Err(e) if e.errno() == libc::EISDIR => return Ok(Step::Enter),
            // POSIX lets a file system say this of a directory.
            Err(e) if e.errno() == libc::EPERM && is_dir(found) => return Ok(Step::Enter),
            Err(e) => {
                let error = self.explain(found, e);
                self.note(error);
            }
        }
        Ok(Step::Next)
    }

    fn open(&mut self, found: &Found<'_>) -> Result<Option<OwnedFd>> {
        let fd = match self.open_dir(found.dir, found.name) {
            Ok(fd) => fd,
            Err(e) if e.errno() == libc::ENOENT => return Ok(None),
            // Somebody else's directory can still be removed if it is empty.
            Err(e) => {
                match node::rmdir(found.dir, found.name) {
                    Ok(()) => one_is_gone()?,
                    Err(_) => {
                        let error = self.explain(found, e);
                        self.note(error);
                    }
                }
                return Ok(None);
            }
        };
        if btrfs::is_subvolume(fd.as_fd()).unwrap_or(false) {
            match btrfs::delete_subvolume(found.dir, found.name) {
                Ok(()) => {
                    one_is_gone()?;
                    return Ok(None);
                }
                // Name by name, then: an empty subvolume can be removed as a directory.
                Err(e) if e.is_denied() => {}
                Err(e) => {
                    let error = self.explain(found, e);
                    self.note(error);
                    return Ok(None);
                }
            }
        }
        Ok(Some(fd))
    }

    fn leave(&mut self, found: &Found<'_>) -> Result<()> {
        match node::rmdir(found.dir, found.name) {
            Ok(()) => one_is_gone()?,
            Err(e) if e.errno() == libc::ENOENT => {}
            // What is left in it was told already.
            Err(e) if e.is_not_empty() && self.first.is_some() => {}
            Err(e) => {
                let error = self.explain(found, e);
                self.note(error);
            }
        }
        Ok(())
    }
}

fn is_dir(found: &Found<'_>) -> bool {
    sys::stat::stat(found.place()).is_ok_and(|s| s.kind() == Kind::Dir)
}

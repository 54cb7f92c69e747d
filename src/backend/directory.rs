//! What the backends do alike with the directory of a snapshot: make it with exact modes and the right owner, give
//! it its id, bring it to the disk, move it away.
//!
//! A crash leaves a `new-*`, an id without a row, or an `rm-*`: all of it garbage.

use super::open::BackendSettings;
use super::shared_sync::SharedSync;
use super::{Stage, Staged, delete};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::layout::Layout;
use crate::types::SnapshotId;
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::open::DirMode;
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::{self, Place, node};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The mode of the root directory of a new snapshot, whatever the umask.
pub const CONTENT_MODE: u32 = 0o755;

/// Where the directories of one store are, and how careful they are handled.
#[derive(Debug, Clone)]
pub struct Directories {
    layout: Layout,
    sync_on_commit: bool,
    sync_on_create: bool,
    syncing: Arc<SharedSync<i32>>,
}

/// A failure of the disk. That something is or is not there is no answer to who asked for a snapshot by its name.
pub fn disk_error(operation: &'static str, path: &Path, e: SysError) -> Error {
    let error = Error::fuse(operation, path.display().to_string(), e);
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Unsupported | ErrorKind::Cancelled => {
            error.as_kind(ErrorKind::Io)
        }
        _ => error,
    }
}

impl Directories {
    /// The directories of a store.
    pub fn new(layout: &Layout, settings: &BackendSettings) -> Directories {
        let BackendSettings { sync_on_commit, sync_on_create, .. } = *settings;
        Directories { layout: layout.clone(), sync_on_commit, sync_on_create, syncing: Arc::default() }
    }

    /// Where they are.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes the directory of a new snapshot under a temporary name, with this mode, and lets `fill` make the rest;
    /// what `fill` makes goes with it if it fails.
    ///
    /// # Errors
    /// Those of the disk and of `fill`.
    pub fn stage(
        &self,
        stage: &Stage<'_>,
        mode: u32,
        fill: impl FnOnce(&Path, BorrowedFd<'_>) -> Result<()>,
    ) -> Result<Staged> {
        let path = self.layout.staged(stage.id);
        let filled = make(&path, mode).and_then(|fd| {
            fail::point("c.after_mkdir")?;
            fill(&path, fd.as_fd())?;
            fail::point("c.after_fill")
        });
        if let Err(error) = filled {
            let Err(undo) = delete::delete_tree(&path) else { return Err(error) };
            let cause = format!("{error}; and what was begun cannot be removed: {undo}");
            let subject = path.display().to_string();
            return Err(Error::new(error.kind(), "stage", subject, cause).with_source(error));
        }
        Ok(Staged { path })
    }

    /// As [`super::Backend::names_first`].
    pub fn names_first(&self) -> Option<PathBuf> {
        self.sync_on_create.then(|| self.layout.snapshots())
    }

    /// As [`super::Backend::publish`].
    ///
    /// # Errors
    /// Those of the disk.
    pub fn publish(&self, staged: &mut Staged, id: SnapshotId) -> Result<()> {
        let target = self.layout.snapshot(id);
        let failed = |e| disk_error("publish", &staged.path, e);
        if self.retire(id)?.is_some() {
            tracing::warn!(path = %target.display(), "publish: remains of a crash were in the way");
        }
        rename(&self.layout.snapshots(), &staged.path, &target).map_err(failed)?;
        staged.path = target;
        Ok(())
    }

    /// Brings what was copied to the disk, if a created snapshot shall survive a power cut.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync_copy(&self) -> Result<()> {
        if self.sync_on_create { self.sync() } else { Ok(()) }
    }

    /// Brings the content of a snapshot to the disk, if that is wanted at commit.
    ///
    /// # Errors
    /// Those of the disk; also those of a write that nobody waited for.
    pub fn seal(&self) -> Result<()> {
        if self.sync_on_commit {
            self.sync()?;
        }
        Ok(())
    }

    /// Everything of the file system: a tree has no call of its own.
    fn sync(&self) -> Result<()> {
        let snapshots = self.layout.snapshots();
        let failed = |e| disk_error("sync", &snapshots, e);
        let base = sys::open::open_root(&snapshots).map_err(failed)?;
        let fd = sys::open::open_dir_at(base.as_fd(), b".", DirMode::List).map_err(failed)?;
        let synced = self.syncing.run(|| rustix::fs::syncfs(fd).map_err(|e| e.raw_os_error()));
        synced.map_err(|errno| failed(SysError::from_errno(errno)))
    }

    /// As [`super::Backend::retire`].
    ///
    /// # Errors
    /// `Busy` if something is mounted on it; those of the disk.
    pub fn retire(&self, id: SnapshotId) -> Result<Option<PathBuf>> {
        let (path, away) = (self.layout.snapshot(id), self.layout.removed(id));
        match rename(&self.layout.snapshots(), &path, &away) {
            Ok(()) => Ok(Some(away)),
            Err(e) if e.errno() == libc::ENOENT => Ok(None),
            Err(e) => Err(disk_error("move away", &path, e)),
        }
    }

    /// As [`super::Backend::delete`].
    ///
    /// # Errors
    /// `InvalidArgument` if the path is not below this store; those of [`delete::delete_tree`].
    pub fn delete(&self, path: &Path) -> Result<()> {
        if path.parent() != Some(&self.layout.snapshots()) {
            let cause = format!("it is not in {}", self.layout.snapshots().display());
            return Err(Error::new(ErrorKind::InvalidArgument, "delete", path.display().to_string(), cause));
        }
        delete::delete_tree(path)
    }
}

/// Makes a directory of exactly this mode, and opens it.
///
/// # Errors
/// Those of the disk.
pub fn make(path: &Path, mode: u32) -> Result<OwnedFd> {
    let failed = |e| disk_error("make directory", path, e);
    let (parent, name) = split(path).map_err(failed)?;
    make_at(parent.as_fd(), name, mode).map_err(failed)
}

/// Makes a directory of exactly this mode in another one, and opens it.
///
/// # Errors
/// Those of the disk.
pub fn make_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> std::result::Result<OwnedFd, SysError> {
    node::mkdir(dir, name, mode)?;
    let fd = sys::open::open_dir_at(dir, name, DirMode::Base)?;
    // Neither the umask nor a set-group-id bit of the parent counts.
    sys::stat::chmod(Place::At(dir, name), mode)?;
    Ok(fd)
}

/// Who owns the root directory of a new snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Labels say so: it has to be so.
    Asked(u32, u32),
    /// That of the root directory of its parent, as far as the caller may give it away.
    Inherited(u32, u32),
    /// Whoever makes it.
    Maker,
}

impl Owner {
    /// The owner for `stage`, whose parent's root directory is `parent`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn of(stage: &Stage<'_>, parent: Option<&Path>) -> Result<Owner> {
        match (stage.owner, parent) {
            (Some((uid, gid)), _) => Ok(Owner::Asked(uid, gid)),
            (None, None) => Ok(Owner::Maker),
            (None, Some(parent)) => {
                let failed = |e| disk_error("look at parent", parent, e);
                let fd = sys::open::open_root(parent).map_err(failed)?;
                let stat = sys::stat::stat(Place::Fd(fd.as_fd())).map_err(failed)?;
                Ok(Owner::Inherited(stat.uid, stat.gid))
            }
        }
    }

    /// Gives it a directory; `path` is for messages.
    ///
    /// # Errors
    /// `PermissionDenied` if it was asked for and this user may not.
    pub fn apply(self, place: Place<'_>, path: &Path) -> Result<()> {
        let (uid, gid) = match self {
            Owner::Maker => return Ok(()),
            Owner::Asked(uid, gid) | Owner::Inherited(uid, gid) => (uid, gid),
        };
        let stat = sys::stat::stat(place).map_err(|e| disk_error("look at", path, e))?;
        if (stat.uid, stat.gid) == (uid, gid) {
            return Ok(());
        }
        match (sys::stat::chown(place, Some(uid), Some(gid)), self) {
            (Ok(()), _) => Ok(()),
            (Err(e), Owner::Inherited(..)) if e.is_owner_refused() => Ok(()),
            (Err(e), _) if e.is_owner_refused() => {
                let cause = format!(
                    "user {} may not give it to {uid}:{gid}: run it as root, or inside a user namespace that has \
                     these ids",
                    effective_uid()
                );
                let subject = path.display().to_string();
                Err(Error::new(ErrorKind::PermissionDenied, "set owner", subject, cause).with_source(e))
            }
            (Err(e), _) => Err(disk_error("set owner", path, e)),
        }
    }
}

fn split(path: &Path) -> std::result::Result<(OwnedFd, &[u8]), SysError> {
    let invalid = || SysError::from_errno(libc::EINVAL);
    let parent = sys::open::open_root(path.parent().ok_or_else(invalid)?)?;
    Ok((parent, path.file_name().ok_or_else(invalid)?.as_bytes()))
}

/// Renames within one directory.
fn rename(dir: &Path, from: &Path, to: &Path) -> std::result::Result<(), SysError> {
    let invalid = || SysError::from_errno(libc::EINVAL);
    let dir = sys::open::open_root(dir)?;
    let [from, to] = [from, to].map(|p| p.file_name().ok_or_else(invalid).map(OsStrExt::as_bytes));
    node::rename(dir.as_fd(), from?, dir.as_fd(), to?, node::RenameMode::Replace)
}

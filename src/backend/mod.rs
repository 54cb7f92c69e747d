//! Directories and mounts of snapshots: one trait, four ways. No metadata: rows belong to the store, and the
//! order of row and directory to the snapshotter.
//!
//! Life of a directory: [`Backend::stage`] makes it under a temporary name: inside the write transaction if that
//! is quick, else ([`Abilities::slow_stage`]) outside, under the protection of a pending row;
//! [`Backend::publish`] gives it its id by one rename, before the row says that it is there;
//! [`Backend::seal`] makes it durable and [`Backend::freeze`] read-only, where the disk can, before the row says "committed";
//! [`Backend::retire`] renames it away once its row is gone, and [`Backend::delete`] frees it. What a crash leaves
//! under `new-*` and `rm-*`, or under an id without a row, is garbage for [`Backend::delete`].

pub mod btrfs;
pub mod copy_file;
pub mod copy_tree;
pub mod delete;
pub mod directory;
pub mod followed;
pub mod fuse;
pub mod measure;
pub mod native;
pub mod open;
pub mod overlay;
mod shared_sync;
pub mod stacked;
pub mod trial;
pub mod walk;

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Mount, SnapshotId, SnapshotKind, Usage};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The four ways to keep and mount snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendName {
    /// Plywood's own layer stack.
    Fuse,
    /// Subvolumes and snapshots of btrfs.
    Btrfs,
    /// The kernel's overlayfs, on the directories of `fuse`.
    Overlay,
    /// Full copies.
    Native,
}

impl BackendName {
    /// All of them, the best first: the order in which `auto` tries.
    pub const ALL: [BackendName; 4] = [Self::Fuse, Self::Btrfs, Self::Overlay, Self::Native];

    /// Its name, on the command line and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Btrfs => "btrfs",
            Self::Overlay => "overlay",
            Self::Native => "native",
        }
    }

    /// The backend of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|b| b.as_str() == name)
    }

    /// True if directories made by `self` can be used by `other` as they are.
    pub fn shares_directories_with(self, other: BackendName) -> bool {
        let stacked = |b| matches!(b, Self::Fuse | Self::Overlay);
        self == other || (stacked(self) && stacked(other))
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the new snapshot is to be.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// The id that it will have: part of the temporary name, so that whoever clears up knows whose it is.
    pub id: SnapshotId,
    /// Active or View.
    pub kind: SnapshotKind,
    /// Its parents, nearest first.
    pub chain: &'a [SnapshotId],
    /// The owner of the root directory as seen from here, if id-mapping labels say so; else that of the parent's
    /// root directory, else whoever makes it.
    pub owner: Option<(u32, u32)>,
}

/// A directory that has been made and has no id yet.
#[derive(Debug)]
pub struct Staged {
    /// Where it is now. `publish` moves it, and may be called again with another id.
    pub path: PathBuf,
}

/// What a mount is asked for.
#[derive(Debug, Clone, Copy)]
pub struct MountRequest<'a> {
    /// Which snapshot.
    pub id: SnapshotId,
    /// Active or View.
    pub kind: SnapshotKind,
    /// Its parents, nearest first.
    pub chain: &'a [SnapshotId],
    /// Whether it has a directory of its own (a view need not).
    pub has_directory: bool,
    /// Value of the label `containerd.io/snapshot/uidmapping`, checked: `container:host:size[,..]`.
    pub uid_mapping: Option<&'a str>,
    /// The same of gids.
    pub gid_mapping: Option<&'a str>,
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// An active snapshot without parent can get one at commit.
    pub rebase: bool,
    /// `stage` copies the parent: it takes long, and the parent must be held meanwhile by a pending row.
    pub slow_stage: bool,
    /// A view with parents gets a directory of its own.
    pub view_has_directory: bool,
}

/// Told now and then how far a slow operation is, and asked whether it shall go on.
pub trait Progress: Send + Sync {
    /// This much has been copied in all; both only grow.
    fn copied(&self, bytes: u64, entries: u64) {
        let _ = (bytes, entries);
    }

    /// True once the caller has given up.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Nobody watches.
impl Progress for () {}

/// A flag that somebody else sets.
impl Progress for AtomicBool {
    fn is_cancelled(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}

/// Fails if the caller has given up.
///
/// # Errors
/// `Cancelled`.
pub fn go_on(progress: &dyn Progress, operation: &'static str) -> Result<()> {
    if progress.is_cancelled() {
        return Err(Error::new(ErrorKind::Cancelled, operation, "", "the caller gave up"));
    }
    Ok(())
}

/// One way to keep and mount snapshots. `Send + Sync`; no method is ever called inside another's lock.
pub trait Backend: Send + Sync {
    /// Which one.
    fn name(&self) -> BackendName;

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Looks whether a chain, nearest first, can be mounted. The first time this may take as long as reading all
    /// names of a layer, so it is asked outside of transactions; the answer is remembered, and `stage` and `mounts`
    /// ask again.
    ///
    /// # Errors
    /// `FailedPrecondition` with what is in the way, and what to do.
    fn check_chain(&self, chain: &[SnapshotId]) -> Result<()> {
        let _ = chain;
        Ok(())
    }

    /// Makes the directory of a new snapshot under a temporary name. On failure nothing stays.
    ///
    /// # Errors
    /// `NoSpace`, `Cancelled`, and those of the disk.
    fn stage(&self, stage: Stage<'_>, progress: &dyn Progress) -> Result<Staged>;

    /// The directory whose names are to be on the disk before a row tells of a published snapshot; `None` if a snapshot
    /// that was only created need not survive a power cut.
    fn names_first(&self) -> Option<PathBuf>;

    /// Renames a staged directory to that of `id`; durable the name becomes by [`Backend::names_first`]. What is in the
    /// way there is the remains of a crash, and moves away.
    ///
    /// # Errors
    /// Those of the disk.
    fn publish(&self, staged: &mut Staged, id: SnapshotId) -> Result<()>;

    /// Makes the content durable: outside of any transaction, since it may take long. The snapshot stays as it is and
    /// may still be used if the commit fails afterwards; read-only it becomes by [`Backend::freeze`].
    ///
    /// # Errors
    /// Those of the disk: then it is not sealed.
    fn seal(&self, id: SnapshotId) -> Result<()>;

    /// Makes the content read-only where the disk can: inside the write transaction that commits the snapshot.
    ///
    /// # Errors
    /// Those of the disk: then it is not frozen.
    fn freeze(&self, id: SnapshotId) -> Result<()> {
        let _ = id;
        Ok(())
    }

    /// Undoes [`Backend::freeze`]: inside a write transaction in which the snapshot is still active.
    ///
    /// # Errors
    /// Those of the disk.
    fn thaw(&self, id: SnapshotId) -> Result<()> {
        let _ = id;
        Ok(())
    }

    /// True if the content is read-only by [`Backend::freeze`]: an active snapshot is after a crash in its commit.
    ///
    /// # Errors
    /// Those of the disk.
    fn is_frozen(&self, id: SnapshotId) -> Result<bool> {
        let _ = id;
        Ok(false)
    }

    /// What only a snapshot that can still change needs goes: called after the row says "committed".
    fn committed(&self, id: SnapshotId);

    /// What the snapshot occupies by itself: `chain` are its parents, nearest first.
    ///
    /// # Errors
    /// `NotFound` if the directory is gone; `Cancelled`.
    fn usage(&self, id: SnapshotId, chain: &[SnapshotId], progress: &dyn Progress) -> Result<Usage>;

    /// The mounts that show it; the same each time.
    ///
    /// # Errors
    /// `FailedPrecondition` with what is in the way, and what to do.
    fn mounts(&self, request: MountRequest<'_>) -> Result<Vec<Mount>>;

    /// Moves the directory of `id` out of the way, if there is one, and returns where it is now.
    ///
    /// # Errors
    /// `Busy` while it is mounted; those of the disk.
    fn retire(&self, id: SnapshotId) -> Result<Option<PathBuf>>;

    /// Deletes a staged or retired directory with all it holds; it may be gone already.
    ///
    /// # Errors
    /// `Busy` where something is mounted in it; those of the disk.
    fn delete(&self, path: &Path) -> Result<()>;

    /// The directory in which changes of an active snapshot can be found and made without a mount, with whiteouts
    /// as marks, if it has parents; `None` if this backend has no such thing.
    fn upper(&self, id: SnapshotId) -> Option<PathBuf>;

    /// The directories that make up the content of a snapshot, top first; a full copy is one.
    fn layers(&self, id: SnapshotId, chain: &[SnapshotId], has_directory: bool) -> Vec<PathBuf>;
}

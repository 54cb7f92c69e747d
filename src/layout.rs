//! Where each thing lives below the root directory of a store; nobody else joins path names.
//!
//! ```text
//! ROOT/                 0700, no ',' ':' '\' or white space in its path: options are joined with them
//!   db/                 LMDB: data.mdb, lock.mdb, 0700
//!   lock                flock: held by who serves the store
//!   snapshots/          0700
//!     7/                one snapshot by its id: a directory, or a btrfs subvolume
//!       fs/             content, for backends that stack layers
//!       work/           scratch space of overlays, until the snapshot is committed
//!     new-7-4d2-1f-0/   being made: garbage when its maker is gone
//!     rm-7-4d2-20-1/    being removed: garbage
//!   mnt/7               mount points that plywood keeps itself
//! ```
//!
//! Keys and names never become path components: only ids do.

use crate::error::{Error, ErrorKind, Result};
use crate::types::SnapshotId;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The directories of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

/// What a name below `snapshots` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A snapshot of this id.
    Snapshot(SnapshotId),
    /// Something that is being made, to be the snapshot of this id.
    Staged(SnapshotId),
    /// Something that is being removed.
    Removed,
    /// Not ours.
    Foreign,
}

impl Layout {
    /// Makes what is missing of the directories below `root`, and resolves its symlinks; what is there is fine.
    ///
    /// # Errors
    /// `InvalidArgument` if the path has a character that mount options cannot carry; those of the disk.
    pub fn create(root: &Path) -> Result<Layout> {
        let failed = |path: &Path| {
            let subject = path.display().to_string();
            move |e| Error::io("create store", subject, e)
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(root).map_err(failed(root))?;
        let root = root.canonicalize().map_err(failed(root))?;
        let layout = Layout { root };
        layout.check()?;
        for dir in [layout.db(), layout.snapshots(), layout.mounts()] {
            builder.create(&dir).map_err(failed(&dir))?;
            // The umask of whoever made it first does not count.
            let _ = std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700));
        }
        Ok(layout)
    }

    fn check(&self) -> Result<()> {
        let bad = |c: char| matches!(c, ',' | ':' | '\\' | '"') || c.is_whitespace();
        match self.root.to_str() {
            Some(path) if !path.contains(bad) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                "open store",
                format!("{:?}", self.root),
                "mount options cannot carry a path with ',', ':', '\\', quotes, white space or bytes that are no UTF-8: \
                 choose another directory with --root",
            )),
        }
    }

    /// The root directory: absolute, without symlinks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the database.
    pub fn db(&self) -> PathBuf {
        self.root.join("db")
    }

    /// The file that who serves the store locks.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The directory of all snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The directory of mount points that plywood keeps itself.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// The mount point of a snapshot that plywood keeps mounted itself.
    pub fn mount_point(&self, id: SnapshotId) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    /// The directory of a snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// The content of a snapshot of a backend that stacks layers.
    pub fn content(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join(CONTENT)
    }

    /// The scratch space of an active snapshot of a backend that stacks layers.
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join(WORK)
    }

    /// A name that nothing has, for something that is being made and will be the snapshot `id`.
    pub fn staged(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(unique("new", id))
    }

    /// A name that nothing has, for the remains of a snapshot.
    pub fn removed(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(unique("rm", id))
    }

    /// What a name below [`Layout::snapshots`] means.
    pub fn entry(name: &str) -> Entry {
        let id = |text: &str| text.parse::<u64>().ok().filter(|id| id.to_string() == text).map(SnapshotId);
        let first = |rest: &str| id(rest.split('-').next().unwrap_or_default());
        if let Some(staged) = name.strip_prefix("new-").and_then(first) {
            return Entry::Staged(staged);
        }
        if name.strip_prefix("rm-").and_then(first).is_some() {
            return Entry::Removed;
        }
        id(name).map_or(Entry::Foreign, Entry::Snapshot)
    }
}

/// The name of the content below a snapshot of a backend that stacks layers.
pub const CONTENT: &str = "fs";

/// The name of the scratch space below such a snapshot.
pub const WORK: &str = "work";

/// A name that no process of this machine has used: process, time and a counter tell them apart.
fn unique(what: &str, id: SnapshotId) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{what}-{id}-{:x}-{:x}-{count:x}", std::process::id(), since.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_below_snapshots_tells_what_it_is() {
        let cases = [
            ("7", Entry::Snapshot(SnapshotId(7))),
            ("18446744073709551615", Entry::Snapshot(SnapshotId(u64::MAX))),
            ("07", Entry::Foreign),
            ("+7", Entry::Foreign),
            ("", Entry::Foreign),
            ("lost+found", Entry::Foreign),
            ("new-1-2-3-4", Entry::Staged(SnapshotId(1))),
            ("rm-7-2-3-4", Entry::Removed),
            ("new-x", Entry::Foreign),
            ("rm-", Entry::Foreign),
        ];
        for (name, entry) in cases {
            assert_eq!(Layout::entry(name), entry, "{name:?}");
        }
    }
}

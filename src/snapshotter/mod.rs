//! The life of a snapshot: the order of row and directory.
//!
//! Invariants, whatever is killed when (`store::check` verifies them):
//!
//! * A row never exists without its whole directory: directories are published before the transaction that writes
//!   their row commits, and removed after the one that deletes it.
//! * What is committed is on the disk before its row says so, and no call hands out a writable mount of it.
//! * What a crash leaves is garbage that [`Snapshotter::cleanup`] finds by its name alone.
//! * Blobs go after the rows that refer to them, and word of it is left in the transaction that deletes the last one.
//!
//! Slow work (copies, measuring, syncing of content, deleting) is never done inside a write transaction, since there is one at
//! a time; what is done there, but for rows, is to make an empty directory and to sync names. Every check is made again
//! inside the transaction that relies on it.

mod blobs;
mod commit;
mod create;
mod figures;
mod handed;
mod kept;
mod layers;
mod mounted;
mod recover;
mod remove;
mod settings;
mod walk;

pub use blobs::{IMAGE_LABELS, UNUSED_GRACE};
pub use figures::Figures;
pub use handed::Durability;
pub use layers::{AppliedLayer, Layered, PackedLayer};
pub use mounted::MountedAt;
pub use recover::{CheckReport, CleanupReport, Repair};
pub use settings::{BackendChoice, Removal, SnapshotterSettings};
pub use walk::Walk;

use crate::backend::{Backend, BackendName, MountRequest, Progress};
use crate::content::{ContentStore, OciLayout};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::store::{Reader, Record, Store};
use crate::types::{
    Info, Labels, Mount, Realm, SnapshotId, SnapshotKind, Timestamp, Usage, check_name, quoted,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Prepares, commits, views, mounts and removes the snapshots of one realm of a store.
///
/// `Send + Sync`: share it between threads. Several processes may have one store open.
pub struct Snapshotter {
    layout: Layout,
    store: Arc<Store>,
    backend: Arc<dyn Backend>,
    settings: SnapshotterSettings,
    remover: remove::Remover,
    content: Arc<dyn ContentStore>,
    turns: kept::Turns,
}

/// The directories that show the content of a snapshot without a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPaths {
    /// Directories that are only read, top first.
    pub lowers: Vec<PathBuf>,
    /// The directory that takes changes, and the scratch space for it, where the backend keeps changes apart.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// True if the first of the lowers may be written in place: a full copy or an only layer.
    pub writable: bool,
}

impl Snapshotter {
    /// Opens the store below `settings.root`, and makes it if there is none.
    ///
    /// # Errors
    /// `FailedPrecondition` if the store was made by a backend whose directories the wanted one cannot read;
    /// `Unsupported` if the wanted backend does not work here; those of the disk and of the database.
    pub fn open(mut settings: SnapshotterSettings) -> Result<Snapshotter> {
        let layout = Layout::create(&settings.root)?;
        settings.mounting.scratch = layout.mounts();
        let store = Store::open(&layout.db(), &settings.store)?;
        let backend = settings::choose_backend(&store, &layout, &settings)?;
        let remover = remove::Remover::new(&backend, settings.removal);
        let own = || Arc::new(OciLayout::new(layout.content_store())) as Arc<dyn ContentStore>;
        let content = settings.content.clone().unwrap_or_else(own);
        let turns = kept::Turns::default();
        let snapshotter = Snapshotter { layout, store, backend, settings, remover, content, turns };
        snapshotter.recover();
        Ok(snapshotter)
    }

    /// Where things lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The backend in use.
    pub fn backend(&self) -> BackendName {
        self.backend.name()
    }

    /// True if an active snapshot without a parent can get one when it is committed.
    pub fn can_rebase(&self) -> bool {
        self.backend.abilities().rebase
    }

    /// The settings that it was opened with.
    pub fn settings(&self) -> &SnapshotterSettings {
        &self.settings
    }

    fn realm(&self) -> &Realm {
        &self.settings.realm
    }

    /// What is known of a snapshot of any kind.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn stat(&self, key: &str) -> Result<Info> {
        check_name("stat", key)?;
        self.store.read("stat", |rows| rows.info(&rows.find(self.realm(), key)?))
    }

    /// Changes labels: all of them if `paths` is empty or names `labels`, else those named `labels.KEY`. A label
    /// without a value is removed. Returns what is known afterwards.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for any other path, and then nothing has changed.
    pub fn update(&self, key: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
        check_name("update", key)?;
        // Labels that no path names do not count, not even by their size.
        self.store.write_with_others("update", |rows| {
            let record = rows.find(self.realm(), key)?;
            let labels = crate::store::apply_mask(&record.labels, labels, paths)?;
            let labels = crate::types::check_labels("update", labels)?;
            let record = rows.set_labels(record.id, &labels, Timestamp::now())?;
            crate::fail::point("u.before_commit")?;
            rows.info(&record)
        })
    }

    /// What a snapshot occupies by itself, without its parents: measured now if it is active, as it was at commit
    /// if it is committed, nothing if it is a view.
    ///
    /// # Errors
    /// `NotFound`; `Cancelled`; those of the disk.
    pub fn usage(&self, key: &str, progress: &dyn Progress) -> Result<Usage> {
        check_name("usage", key)?;
        let (record, chain) = self.find_with_chain("usage", key)?;
        match record.kind {
            SnapshotKind::Committed => Ok(record.usage),
            SnapshotKind::View => Ok(Usage::default()),
            SnapshotKind::Active => self.measure("usage", &record, &chain, progress),
        }
    }

    /// Measures outside of any transaction; a snapshot that was removed meanwhile is not found.
    fn measure(
        &self,
        operation: &'static str,
        record: &Record,
        chain: &[SnapshotId],
        progress: &dyn Progress,
    ) -> Result<Usage> {
        self.backend.usage(record.id, chain, progress).map_err(|failed| {
            let gone = self.store.read(operation, |rows| Ok(rows.record(record.id)?.is_none()));
            match gone {
                Ok(true) => not_found(operation, &record.name),
                // The row is there, and what it stands for is not.
                _ if failed.kind() == ErrorKind::NotFound => {
                    failed.as_kind(ErrorKind::Corrupt).during(operation, quoted(&record.name))
                }
                _ => failed.during(operation, quoted(&record.name)),
            }
        })
    }

    /// The mounts that show an active snapshot or a view: the same as when it was made.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed snapshot.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        check_name("mounts", key)?;
        let (record, chain) = self.find_with_chain("mounts", key)?;
        self.thaw_after_crash("mounts", &record)?;
        self.mounts_of("mounts", &record, &chain)
    }

    fn thaw_after_crash(&self, operation: &'static str, record: &Record) -> Result<()> {
        if record.kind == SnapshotKind::Active && record.has_directory && self.backend.is_frozen(record.id)? {
            self.thaw_if_active(operation, record);
        }
        Ok(())
    }

    fn mounts_of(
        &self,
        operation: &'static str,
        record: &Record,
        chain: &[SnapshotId],
    ) -> Result<Vec<Mount>> {
        if record.kind == SnapshotKind::Committed {
            let cause = "it is committed, and only active snapshots and views are mounted: make a view of it";
            let kind = ErrorKind::FailedPrecondition;
            return Err(Error::new(kind, operation, quoted(&record.name), cause));
        }
        check_whole(operation, record)?;
        let label = |name| record.labels.get(name).map(String::as_str);
        let request = MountRequest {
            id: record.id,
            kind: record.kind,
            chain,
            has_directory: record.has_directory,
            uid_mapping: label(crate::idmapping::UID_LABEL),
            gid_mapping: label(crate::idmapping::GID_LABEL),
        };
        self.backend.mounts(request).map_err(|e| e.during(operation, quoted(&record.name)))
    }

    /// The directories that show a snapshot of any kind without a mount.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn layers(&self, key: &str) -> Result<LayerPaths> {
        check_name("layers", key)?;
        let (record, chain) = self.find_with_chain("layers", key)?;
        let mut lowers = self.backend.layers(record.id, &chain, record.has_directory);
        let active = record.kind == SnapshotKind::Active;
        let upper = self.backend.upper(record.id).filter(|_| active && lowers.len() > 1);
        let upper = upper.map(|upper| {
            lowers.retain(|layer| *layer != upper);
            (upper, self.layout.work(record.id))
        });
        let writable = active && upper.is_none();
        Ok(LayerPaths { lowers, upper, writable })
    }

    fn find_with_chain(&self, operation: &'static str, key: &str) -> Result<(Record, Vec<SnapshotId>)> {
        self.store.read(operation, |rows| {
            let record = rows.find(self.realm(), key)?;
            let chain = rows.chain(&record)?;
            Ok((record, chain))
        })
    }

    /// Leaves what is not deleted within `grace` from now to the next [`Snapshotter::cleanup`]: closing waits no longer
    /// than that. Told again, the first time counts.
    pub fn leave_deletions_after(&self, grace: Duration) {
        self.remover.leave_after(grace);
    }

    /// Waits for removals in the background, and closes the store for everyone in this process who shares it.
    /// Calling it again is fine.
    ///
    /// # Errors
    /// Those of the database.
    pub fn close(&self) -> Result<()> {
        self.remover.finish();
        self.store.close()
    }
}

/// Refuses a snapshot to which a layer is being applied, or was not applied whole: it can be looked at and removed.
///
/// # Errors
/// `FailedPrecondition`.
fn check_whole(operation: &'static str, record: &Record) -> Result<()> {
    if record.flags & Record::INCOMPLETE == 0 {
        return Ok(());
    }
    let cause = "a layer is being applied to it, or was not applied whole: wait for that, or remove it";
    Err(Error::new(ErrorKind::FailedPrecondition, operation, quoted(&record.name), cause))
}

fn not_found(operation: &'static str, name: &str) -> Error {
    Error::new(ErrorKind::NotFound, operation, quoted(name), "there is no such snapshot")
}

/// The parents of a new snapshot: `parent` and its chain, nearest first.
fn chain_below(
    rows: &Reader<'_>,
    operation: &'static str,
    realm: &Realm,
    parent: Option<&str>,
) -> Result<Vec<SnapshotId>> {
    let Some(parent) = parent else { return Ok(Vec::new()) };
    let record = rows.find(realm, parent)?;
    if record.kind != SnapshotKind::Committed {
        let cause = format!("parent {} is not committed: commit it first", quoted(parent));
        return Err(Error::new(ErrorKind::InvalidArgument, operation, quoted(parent), cause));
    }
    let mut chain = vec![record.id];
    chain.extend(rows.chain(&record)?);
    Ok(chain)
}

#[cfg(test)]
mod tests;

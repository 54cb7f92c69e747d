//! What a crash left: found by its name alone, and cleared up.
//!
//! | left | by a crash | cleared up by |
//! |---|---|---|
//! | `new-ID-*` | in prepare or view, before the rename | cleanup, unless a living process has a pending row for ID |
//! | `new-0-*`, perhaps with a mount | in a trial of a backend | cleanup, unless its maker lives |
//! | directory of an id without row | in prepare or view after the rename; in remove after the row | cleanup |
//! | `rm-*` | while deleting | cleanup |
//! | `mnt/work-ID` | never: it stays from a mount by a plain user | cleanup, once ID is not known |
//! | `mnt/ID` | while mounting for clients | the start of the daemon; cleanup, once ID is not known |
//! | `mnt/exec-*` | in exec | cleanup, unless its maker lives |
//! | `mnt/look-*`, perhaps with a mount | while a client's mounts are looked at | cleanup, unless its maker lives |
//! | active snapshot that a process made for itself | in import | cleanup, unless that process lives |
//! | pending row | in prepare or view that copies | open, cleanup |
//! | frozen active snapshot | in commit, before the row | the next call for its mounts |
//! | mount row | of a mount whose server died, or of an earlier boot | open, cleanup |
//! | row of a blob that is due | in remove, before its content was deleted | open, cleanup |
//! | blob that nobody refers to | before a snapshot was to refer to it | cleanup, after a day |

use super::Snapshotter;
use super::walk::BATCH;
use crate::backend::delete::delete_tree;
use crate::error::{Error, Result};
use crate::layout::{Entry, Layout, MountEntry};
use crate::mounting::{self, Detach};
use crate::store::{Finding, ProcessMark, Record, Writer};
use crate::types::{SnapshotId, SnapshotKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a cleanup did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupReport {
    /// Directories that no row names and that are gone now.
    pub deleted: usize,
    /// Those that could not be deleted: path and reason. The next cleanup tries again.
    pub failed: Vec<(PathBuf, String)>,
    /// Rows of processes that are no more, dropped.
    pub dropped_rows: usize,
    /// Blobs that no snapshot refers to, deleted from the content store.
    pub deleted_blobs: usize,
    /// Blobs that somebody began to write and never finished, thrown away.
    pub deleted_ingests: usize,
    /// Bytes that both had.
    pub freed_content_bytes: u64,
}

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// Everything that contradicts an invariant, before any repair.
    pub findings: Vec<Finding>,
    /// How many of them have been repaired.
    pub repaired: usize,
}

pub(super) fn is_dead(process: &ProcessMark) -> bool {
    process.is_dead()
}

impl Snapshotter {
    /// Drops rows of processes that are no more. Trouble is told in the log: opening goes on without.
    pub(super) fn recover(&self) {
        let dead =
            self.store.read("open store", |rows| Ok(rows.pending()?.iter().any(|p| is_dead(&p.owner))));
        let recovered = dead.and_then(|dead| match dead {
            true => self.store.write("open store", |rows| rows.drop_dead_pending(is_dead)).map(drop),
            false => Ok(()),
        });
        if let Err(failed) = recovered.and_then(|()| self.forget_dead_mounts().map(drop)) {
            tracing::warn!(error = %failed, "what an earlier process left could not be looked at");
        }
        self.recover_blobs("open store");
    }

    /// Deletes every directory of the store that no row names, rows of processes that are no more, and what nobody has
    /// referred to for [`UNUSED_GRACE`](super::UNUSED_GRACE) in the content store, if that is the store's own. Trouble with
    /// one of them is part of the report, and the next cleanup tries again.
    ///
    /// # Errors
    /// Those of the database, and of listing the store.
    pub fn cleanup(&self) -> Result<CleanupReport> {
        let mut report =
            CleanupReport { dropped_rows: self.forget_dead_mounts()?, ..CleanupReport::default() };
        report.dropped_rows += self.drop_orphans()?;
        self.store.sweep_readers()?;
        self.end_dead_trials()?;
        // Nobody publishes a directory while the write transaction lasts; renames are quick, deletes come after.
        let garbage = self.store.write("cleanup", |rows| {
            // A row that came back after a power cut would miss its directory.
            self.store.settle("cleanup")?;
            report.failed.clear();
            let dropped = rows.drop_dead_pending(is_dead)?.len();
            let mut garbage = Vec::new();
            for (name, entry) in self.entries()? {
                garbage.extend(self.move_away(rows, name, entry, &mut report.failed)?);
            }
            Ok((dropped, garbage, self.unused_mount_entries(rows)?))
        })?;
        crate::fail::point("g.after_list")?;
        let (dropped, garbage, unused) = garbage;
        report.dropped_rows += dropped;
        let garbage = garbage.into_iter().map(|path| (self.backend.delete(&path), path));
        for (deleted, path) in
            garbage.chain(unused.into_iter().map(|(path, entry)| (drop_unused(&path, entry), path)))
        {
            match deleted {
                Ok(()) => report.deleted += 1,
                Err(e) => {
                    tracing::warn!(path = %path.display(), error = %e, "garbage stays until the next cleanup");
                    report.failed.push((path, e.to_string()));
                }
            }
        }
        self.recover_blobs("cleanup");
        if let Err(e) = self.sweep_content(&mut report) {
            tracing::warn!(error = %e, "unused blobs stay until the next cleanup");
            report.failed.push((self.layout.content_store(), e.to_string()));
        }
        Ok(report)
    }

    /// Drops the rows of active snapshots that processes made for themselves and left when they died; how many. To be called
    /// when the rows of dead processes are gone.
    fn drop_orphans(&self) -> Result<usize> {
        let is_orphan =
            |record: &Record| record.flags & Record::TRANSIENT != 0 && record.kind == SnapshotKind::Active;
        let (mut orphans, mut after) = (Vec::new(), None);
        loop {
            let batch = self.store.read("cleanup", |rows| rows.records(None, after, BATCH))?;
            orphans.extend(batch.records.into_iter().filter(is_orphan));
            match batch.next {
                Some(id) => after = Some(id),
                None => break,
            }
        }
        if orphans.is_empty() {
            return Ok(0);
        }
        self.store.write("cleanup", |rows| {
            let mut dropped = 0;
            for orphan in &orphans {
                let is_still = rows.record(orphan.id)?.as_ref() == Some(orphan);
                if is_still && rows.mounts_of(orphan.id)?.is_empty() && rows.first_child(orphan.id)?.is_none()
                {
                    rows.remove(&orphan.realm, &orphan.name)?;
                    dropped += 1;
                }
            }
            Ok(dropped)
        })
    }

    /// Where an entry of the store is to be deleted, if it is garbage.
    fn move_away(
        &self,
        rows: &Writer<'_>,
        path: PathBuf,
        entry: Entry,
        failed: &mut Vec<(PathBuf, String)>,
    ) -> Result<Option<PathBuf>> {
        Ok(match entry {
            Entry::Removed => Some(path),
            Entry::Trial(maker) if is_gone(maker) => Some(path),
            Entry::Staged(id) if rows.pending_of(id)?.is_none() => Some(path),
            Entry::Snapshot(id) if !rows.is_known(id)? => match self.backend.retire(id) {
                Ok(moved) => moved,
                Err(e) => {
                    tracing::warn!(%id, error = %e, "a directory without a row stays until the next cleanup");
                    failed.push((path, e.to_string()));
                    None
                }
            },
            Entry::Staged(_) | Entry::Trial(_) | Entry::Snapshot(_) | Entry::Foreign => None,
        })
    }

    /// Ends what trials of processes that are no more left mounted; [`Snapshotter::cleanup`] deletes the rest. To be
    /// called by whoever mounted, too: root of a user namespace cannot end the mounts outside of it.
    ///
    /// # Errors
    /// That of listing the store. Trouble with one mount is told in the log: its directory cannot be deleted then.
    pub fn end_dead_trials(&self) -> Result<()> {
        for (path, entry) in self.entries()? {
            if let Entry::Trial(maker) = entry
                && is_gone(maker)
                && let Err(e) = mounting::detach(&Layout::trial_mount(&path), None, Detach::Lazy)
            {
                tracing::warn!(path = %path.display(), error = %e, "a mount of a trial stays until the next cleanup");
            }
        }
        Ok(())
    }

    /// What nobody uses any more among the mount points.
    fn unused_mount_entries(&self, rows: &Writer<'_>) -> Result<Vec<(PathBuf, MountEntry)>> {
        let mut unused = Vec::new();
        for (path, name) in list(&self.layout.mounts())? {
            let entry = name.as_deref().map_or(MountEntry::Other, Layout::mount_entry);
            let is_unused = match entry {
                // No id is used twice.
                MountEntry::Work(id) => !rows.is_known(id)?,
                // Rows of mounts go with the snapshot.
                MountEntry::Kept(id) => !rows.is_known(id)?,
                MountEntry::Exec(maker) | MountEntry::Look(maker) => is_dead(&maker),
                MountEntry::Other => false,
            };
            if is_unused {
                unused.push((path, entry));
            }
        }
        Ok(unused)
    }

    fn entries(&self) -> Result<Vec<(PathBuf, Entry)>> {
        let all = list(&self.layout.snapshots())?.into_iter();
        Ok(all.map(|(path, name)| (path, name.as_deref().map_or(Entry::Foreign, Layout::entry))).collect())
    }

    /// Verifies every invariant of the store; with `repair`, mends what can be mended.
    ///
    /// # Errors
    /// Those of the database, and of listing the store.
    pub fn check(&self, repair: Repair) -> Result<CheckReport> {
        // Nobody makes or renames directories of snapshots while the write transaction lasts.
        self.store.write("check", |rows| {
            let directories = self.entries()?.into_iter().filter_map(|(_, entry)| match entry {
                Entry::Snapshot(id) => Some(id),
                _ => None,
            });
            let on_disk: BTreeSet<SnapshotId> = directories.collect();
            let findings = crate::store::check(rows, Some(&on_disk), &mut is_dead)?;
            let repaired = if repair == Repair::Yes { crate::store::repair(rows, &findings)? } else { 0 };
            Ok(CheckReport { findings, repaired })
        })
    }
}

/// What is in a directory, with the names that are text.
pub(super) fn list(dir: &Path) -> Result<Vec<(PathBuf, Option<String>)>> {
    let failed = |e| Error::io("list store", dir.display().to_string(), e);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        all.push((entry.path(), entry.file_name().into_string().ok()));
    }
    Ok(all)
}

/// Deletes what nobody uses among the mount points.
fn drop_unused(path: &Path, entry: MountEntry) -> Result<()> {
    match entry {
        MountEntry::Work(_) => delete_tree(path),
        MountEntry::Look(_) => {
            mounting::detach(path, None, Detach::Lazy)?;
            remove_empty(path)
        }
        // What could be mounted on it is not ours to end.
        MountEntry::Kept(_) | MountEntry::Exec(_) => remove_empty(path),
        MountEntry::Other => Ok(()),
    }
}

fn remove_empty(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

/// Whether a trial is nobody's. One that tells no maker is of a version that wrote none.
fn is_gone(maker: Option<ProcessMark>) -> bool {
    maker.is_none_or(|maker| is_dead(&maker))
}

/// Whether a check mends what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Look only.
    No,
    /// Mend rows; garbage on the disk is for [`Snapshotter::cleanup`].
    Yes,
}

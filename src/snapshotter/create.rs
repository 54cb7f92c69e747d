//! Prepare and view: how a snapshot comes to be.
//!
//! Where making the directory is quick, all is one write transaction: check, new id, directory under a temporary
//! name, rename to the id, rows. Where it is a copy of the parent, a pending row takes the key and holds the
//! parent first, and becomes the real row when the copy is there.
//!
//! What a crash leaves: `new-ID-*`, or a directory of an id without a row; and a pending row of a process that is
//! no more. [`super::recover`] drops all of them.

use super::mounted::hold_row;
use super::{Snapshotter, chain_below};
use crate::backend::{Progress, Stage, Staged, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::idmapping::Mappings;
use crate::store::{NewSnapshot, ProcessMark, Record, Writer};
use crate::types::{Labels, Mount, SnapshotId, SnapshotKind, Timestamp, check_labels, check_name, quoted};
use std::collections::BTreeSet;

/// What a caller wants to have made.
struct Wanted<'a> {
    operation: &'static str,
    kind: SnapshotKind,
    key: &'a str,
    parent: Option<&'a str>,
    labels: Labels,
    owner: Option<(u32, u32)>,
    whose: Whose,
}

/// Who looks after a new snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Whoever asked for it.
    Callers,
    /// This process, which works in it from the start: it goes when the process is gone and has not committed it.
    Ours(ProcessMark),
}

/// A new snapshot.
struct Made {
    record: Record,
    mounts: Vec<Mount>,
}

impl Snapshotter {
    /// Makes a writable snapshot on top of the committed snapshot `parent`, or an empty one; returns its mounts.
    ///
    /// # Errors
    /// `NotFound` or `InvalidArgument` if the parent is not there or not committed; `AlreadyExists` if the key is
    /// in use; `InvalidArgument` for labels or id mappings that cannot be; `NoSpace`; `Cancelled`. Then nothing
    /// has changed.
    pub fn prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        self.create_active(key, parent, labels, Whose::Callers, progress).map(|made| made.mounts)
    }

    /// As [`Snapshotter::prepare`], with mounts as [`Snapshotter::mounts_kept`] gives them: what cannot be mounted is not
    /// made.
    ///
    /// # Errors
    /// As both.
    pub fn prepare_kept(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        self.keep_new(self.create_active(key, parent, labels, Whose::Callers, progress)?, progress)
    }

    /// As [`Snapshotter::prepare`], for a snapshot that this process works in, and commits or removes: if it dies before,
    /// the next cleanup removes it.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    pub fn prepare_held(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        let ours = Whose::Ours(ProcessMark::current()?);
        self.create_active(key, parent, labels, ours, progress).map(|made| made.mounts)
    }

    fn create_active(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        whose: Whose,
        progress: &dyn Progress,
    ) -> Result<Made> {
        self.create("prepare", SnapshotKind::Active, key, parent, labels, whose, progress)
    }

    /// Makes a read-only snapshot that shows the committed snapshot `parent`, or nothing; returns its mounts.
    ///
    /// # Errors
    /// As [`Snapshotter::prepare`].
    pub fn view(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        self.create_view(key, parent, labels, progress).map(|made| made.mounts)
    }

    /// As [`Snapshotter::view`], with mounts as [`Snapshotter::mounts_kept`] gives them: what cannot be mounted is not
    /// made.
    ///
    /// # Errors
    /// As both.
    pub fn view_kept(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        self.keep_new(self.create_view(key, parent, labels, progress)?, progress)
    }

    fn create_view(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        progress: &dyn Progress,
    ) -> Result<Made> {
        if parent.is_none() && self.settings.views_require_parent {
            let cause = "a view needs a parent, as views_require_parent is set";
            return Err(Error::new(ErrorKind::InvalidArgument, "view", quoted(key), cause));
        }
        self.create("view", SnapshotKind::View, key, parent, labels, Whose::Callers, progress)
    }

    #[allow(clippy::too_many_arguments)]
    fn create(
        &self,
        operation: &'static str,
        kind: SnapshotKind,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
        whose: Whose,
        progress: &dyn Progress,
    ) -> Result<Made> {
        check_name(operation, key)?;
        if let Some(parent) = parent {
            check_name(operation, parent)?;
        }
        let labels = check_labels(operation, labels)?;
        let owner = Mappings::of_labels(&labels).map_err(|e| e.during(operation, quoted(key)))?.root();
        let wanted = Wanted { operation, kind, key, parent, labels, owner, whose };
        let abilities = self.backend.abilities();
        let has_directory = kind == SnapshotKind::Active || parent.is_none() || abilities.view_has_directory;
        let made = if abilities.slow_stage && has_directory && parent.is_some() {
            self.create_slowly(&wanted, progress)?
        } else {
            self.create_quickly(&wanted, has_directory, progress)?
        };
        crate::fail::point("c.after_commit")?;
        self.unless_given_up(made, progress)
    }

    /// Mounts a new snapshot for its caller.
    fn keep_new(&self, made: Made, progress: &dyn Progress) -> Result<Vec<Mount>> {
        match self.keep_for(&made.record, made.mounts.clone(), progress) {
            Ok(mounts) => self.unless_given_up(Made { mounts, ..made }, progress).map(|made| made.mounts),
            Err(error) => {
                self.unmake(&made.record);
                Err(error)
            }
        }
    }

    /// Takes a new snapshot back if nobody waits for it any more: whoever asked does not know that it is there.
    fn unless_given_up(&self, made: Made, progress: &dyn Progress) -> Result<Made> {
        match go_on(progress, "create") {
            Ok(()) => Ok(made),
            Err(given_up) => {
                self.unmake(&made.record);
                Err(given_up.during("create", quoted(&made.record.name)))
            }
        }
    }

    /// Removes a snapshot that was only just made, and none that has its key by now.
    fn unmake(&self, record: &Record) {
        match self.remove_exactly(&record.name, record.id) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(key = quoted(&record.name), %error, "a snapshot that nobody waits for stays");
            }
            _ => {}
        }
    }

    fn create_quickly(
        &self,
        wanted: &Wanted<'_>,
        has_directory: bool,
        progress: &dyn Progress,
    ) -> Result<Made> {
        let operation = wanted.operation;
        // What takes long to find out is found out before the write transaction, which then asks from memory.
        let chain =
            self.store.read(operation, |rows| chain_below(rows, operation, self.realm(), wanted.parent))?;
        self.backend.check_chain(&chain).map_err(|e| e.during(operation, quoted(wanted.key)))?;
        // Where a directory was published, perhaps by a run of the closure that was in vain.
        let mut published = BTreeSet::new();
        let made = self.store.write_with_others(operation, |rows| {
            for id in std::mem::take(&mut published) {
                if !rows.is_known(id)? {
                    self.take_back(id);
                }
            }
            go_on(progress, operation)?;
            let chain = chain_below(rows, operation, self.realm(), wanted.parent)?;
            let row = self.row(wanted, has_directory);
            rows.check_new(&row)?;
            // Rows come last: what fails before does no harm to those who share the transaction.
            if has_directory {
                let id = rows.next_id()?;
                self.stage_and_publish(wanted, id, &chain, progress)?;
                published.insert(id);
                self.sync_names_first(rows);
            }
            let id = rows.new_id()?;
            let record = rows.create(id, &row, Timestamp::now())?;
            hold_if_ours(rows, wanted, id)?;
            // What cannot be mounted is not made: outside of the closure its directory is taken back. Afterwards
            // somebody may have removed it already.
            let mounts = self.mounts_of(operation, &record, &chain)?;
            crate::fail::point("c.before_commit").inspect_err(|_| self.take_back(id))?;
            Ok(Made { record, mounts })
        });
        if let Ok(made) = &made {
            published.remove(&made.record.id);
        }
        for id in published {
            self.take_back_unless_known(id);
        }
        made.map_err(|e| e.during(operation, quoted(wanted.key)))
    }

    /// Inside of a write transaction: nobody else gives directories their ids meanwhile.
    fn stage_and_publish(
        &self,
        wanted: &Wanted<'_>,
        id: SnapshotId,
        chain: &[SnapshotId],
        progress: &dyn Progress,
    ) -> Result<()> {
        let stage = Stage { id, kind: wanted.kind, chain, owner: wanted.owner };
        let mut staged = self.backend.stage(stage, progress)?;
        let published = self.publish(&mut staged, id);
        if published.is_err() {
            self.delete_staged(&staged);
        }
        published
    }

    fn publish(&self, staged: &mut Staged, id: SnapshotId) -> Result<()> {
        self.backend.publish(staged, id)?;
        crate::fail::point("c.after_rename")
    }

    fn sync_names_first(&self, rows: &mut Writer<'_>) {
        if let Some(dir) = self.backend.names_first() {
            rows.sync_first(&dir);
        }
    }

    fn delete_staged(&self, staged: &Staged) {
        if let Err(failed) = self.backend.delete(&staged.path) {
            let path = staged.path.display();
            tracing::warn!(%path, error = %failed, "a directory of a snapshot that failed stays until the next cleanup");
        }
    }

    /// Renames away a directory whose row will not be; the caller holds the write transaction.
    fn take_back(&self, id: SnapshotId) {
        match self.backend.retire(id) {
            Ok(Some(path)) => self.remover.delete_now(&path),
            Ok(None) => {}
            Err(failed) => {
                tracing::warn!(%id, error = %failed, "a directory without a row stays until the next cleanup")
            }
        }
    }

    /// The same after the transaction: the id may be somebody else's by now, who then has a row.
    fn take_back_unless_known(&self, id: SnapshotId) {
        let done = self.store.write("undo", |rows| {
            if !rows.is_known(id)? {
                self.take_back(id);
            }
            Ok(())
        });
        if let Err(failed) = done {
            tracing::warn!(%id, error = %failed, "a directory without a row stays until the next cleanup");
        }
    }

    fn create_slowly(&self, wanted: &Wanted<'_>, progress: &dyn Progress) -> Result<Made> {
        let operation = wanted.operation;
        let failed = |e: Error| e.during(operation, quoted(wanted.key));
        let maker = ProcessMark::current()?;
        let (id, chain) = self
            .store
            .write_with_others(operation, |rows| {
                let chain = chain_below(rows, operation, self.realm(), wanted.parent)?;
                Ok((rows.add_pending(&self.row(wanted, true), &maker)?, chain))
            })
            .map_err(failed)?;
        let made = crate::fail::point("c.after_pending")
            .and_then(|()| self.copy_and_publish(wanted, id, &chain, progress))
            .and_then(|()| {
                self.store.write_with_others(operation, |rows| {
                    let record = rows.finish_pending(id, Timestamp::now())?;
                    hold_if_ours(rows, wanted, id)?;
                    self.sync_names_first(rows);
                    let mounts = self.mounts_of(operation, &record, &chain)?;
                    crate::fail::point("c.before_commit")?;
                    Ok(Made { record, mounts })
                })
            });
        match made {
            Ok(made) => Ok(made),
            Err(e) => {
                // The commit may have happened nevertheless: then the directory is a snapshot's.
                let dropped = self.store.write("undo", |rows| {
                    let is_made = rows.record(id)?.is_some();
                    rows.drop_pending(id).map(|_| !is_made)
                });
                match dropped {
                    Ok(true) => self.take_back(id),
                    Ok(false) => {}
                    Err(failed) => {
                        tracing::warn!(%id, error = %failed, "a pending row stays until the next cleanup");
                    }
                }
                Err(failed(e))
            }
        }
    }

    fn copy_and_publish(
        &self,
        wanted: &Wanted<'_>,
        id: SnapshotId,
        chain: &[SnapshotId],
        progress: &dyn Progress,
    ) -> Result<()> {
        let stage = Stage { id, kind: wanted.kind, chain, owner: wanted.owner };
        let mut staged = self.backend.stage(stage, progress)?;
        let published = crate::fail::point("c.after_copy").and_then(|()| self.publish(&mut staged, id));
        if published.is_err() {
            self.delete_staged(&staged);
        }
        published
    }

    fn row<'a>(&'a self, wanted: &'a Wanted<'a>, has_directory: bool) -> NewSnapshot<'a> {
        NewSnapshot {
            realm: self.realm(),
            name: wanted.key,
            kind: wanted.kind,
            parent: wanted.parent,
            labels: &wanted.labels,
            has_directory,
            flags: if wanted.whose == Whose::Callers { 0 } else { Record::TRANSIENT },
        }
    }
}

fn hold_if_ours(rows: &mut Writer<'_>, wanted: &Wanted<'_>, id: SnapshotId) -> Result<()> {
    match wanted.whose {
        Whose::Callers => Ok(()),
        Whose::Ours(process) => rows.add_mount(&hold_row(id, process)).map(drop),
    }
}

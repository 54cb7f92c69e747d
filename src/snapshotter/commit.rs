//! Commit: how an active snapshot becomes an immutable one.
//!
//! Measured and made durable first, then the row: a crash before the row leaves an ordinary active snapshot (whose
//! directory may be frozen, which the next call for its mounts undoes); a crash after it leaves a scratch directory
//! that goes with the snapshot. Freezing and thawing is done in write transactions only, so that a commit and a
//! call for the mounts of its snapshot cannot undo each other.

use super::Snapshotter;
use super::mounted::is_held_by;
use crate::backend::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Commit, ProcessMark, Rebase, Record};
use crate::types::{Labels, SnapshotKind, Timestamp, check_labels, check_name, quoted};

/// How often a commit begins anew because its key is another snapshot by then. Nobody should make use of that.
const TRIES: u32 = 8;

impl Snapshotter {
    /// Turns the active snapshot `key` into the committed snapshot `name`, with these labels and no others.
    /// `parent` gives a snapshot without a parent one, where the backend can.
    ///
    /// # Errors
    /// `NotFound` for the key or the parent; `AlreadyExists` for the name; `FailedPrecondition` if the key is not
    /// active or the parent not committed; `InvalidArgument` for another parent than the one it has. Then the
    /// active snapshot is as it was.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        parent: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<()> {
        check_name("commit", name)?;
        check_name("commit", key)?;
        if let Some(parent) = parent {
            check_name("commit", parent)?;
        }
        let labels = check_labels("commit", labels)?;
        // Somebody may remove it while it is measured, and make another one under its key: then that one is meant.
        for _ in 1..TRIES {
            match self.commit_what_is_there(name, key, &labels, parent, progress) {
                Err(failed) if failed.kind() == ErrorKind::Aborted => {}
                done => return done,
            }
        }
        self.commit_what_is_there(name, key, &labels, parent, progress)
    }

    fn commit_what_is_there(
        &self,
        name: &str,
        key: &str,
        labels: &Labels,
        parent: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<()> {
        // A look first: what cannot be committed is not measured either.
        let (record, chain) = self.store.read("commit", |rows| {
            let record = rows.find(self.realm(), key)?;
            if rows.id(self.realm(), name)?.is_some() {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    "commit",
                    quoted(name),
                    "the name is in use",
                ));
            }
            check_active(&record, key)?;
            let chain = rows.chain(&record)?;
            Ok((record, chain))
        })?;
        self.end_kept_before_commit(record.id, progress)?;
        let usage = self.measure("commit", &record, &chain, progress)?;
        crate::fail::point("m.after_usage")?;
        self.backend.seal(record.id)?;
        crate::fail::point("m.after_sync")?;
        let process = ProcessMark::current()?;
        let committed = {
            self.store.write_with_others("commit", |rows| {
                rows.commit(&Commit {
                    realm: self.realm(),
                    key,
                    name,
                    labels,
                    usage,
                    flags: 0,
                    parent,
                    rebase: if self.backend.abilities().rebase { Rebase::Allowed } else { Rebase::Refused },
                    expected: Some(record.id),
                    now: Timestamp::now(),
                })?;
                if record.flags & Record::TRANSIENT != 0 {
                    let rows_of = rows.mounts_of(record.id)?;
                    for row in rows_of.iter().filter(|row| is_held_by(row, &process)) {
                        rows.remove_mount(row)?;
                    }
                }
                self.backend.freeze(record.id)?;
                crate::fail::point("m.after_ro")?;
                crate::fail::point("m.before_commit")
            })
        };
        if let Err(failed) = committed {
            if self.backend.is_frozen(record.id).unwrap_or(true) {
                self.thaw_if_active("undo", &record);
            }
            return Err(failed);
        }
        crate::fail::point("m.after_commit")?;
        // Somebody may have asked for its mounts meanwhile.
        if let Err(failed) = self.end_kept_before_commit(record.id, progress) {
            tracing::warn!(name, error = %failed, "a mount of a committed snapshot stays");
        }
        // An active snapshot that came back after a power cut would miss its scratch space.
        match self.store.settle("commit") {
            Ok(()) => self.backend.committed(record.id),
            Err(failed) => {
                tracing::warn!(name, error = %failed, "scratch space of a committed snapshot stays")
            }
        }
        Ok(())
    }

    /// Makes an active snapshot writable again that a commit has frozen and not committed.
    pub(super) fn thaw_if_active(&self, operation: &'static str, record: &Record) {
        let thawed = self.store.write(operation, |rows| match rows.record(record.id)? {
            Some(now) if now.kind == SnapshotKind::Active => self.backend.thaw(record.id),
            _ => Ok(()),
        });
        if let Err(failed) = thawed {
            tracing::warn!(key = record.name, error = %failed, "an active snapshot may stay read-only");
        }
    }
}

fn check_active(record: &Record, key: &str) -> Result<()> {
    if record.kind == SnapshotKind::Active {
        return Ok(());
    }
    let cause = format!("it is a {} snapshot, and only active ones are committed", record.kind.as_str());
    Err(Error::new(ErrorKind::FailedPrecondition, "commit", quoted(key), cause))
}

//! Which blob a snapshot was made from or became, and when the content of a blob goes.
//!
//! The rows change in the transaction of the snapshot. Content is deleted after them: a removal leaves word that it is
//! due, and each deletion asks, in a write transaction that lasts until the content is gone, whether that still holds.
//! [`Snapshotter::set_blob`] looks for the content in such a transaction, too, so that no row ever names a content that
//! is just being deleted.
//!
//! | killed | leaves | cleared up by |
//! |---|---|---|
//! | before the content is deleted | the word that it is due | open, cleanup |
//! | between content and word | the word alone | open, cleanup |
//! | between putting a blob there and `set_blob` | a blob that nobody refers to | cleanup, after [`UNUSED_GRACE`] |

use super::walk::BATCH;
use super::{CleanupReport, Snapshotter};
use crate::backend::Progress;
use crate::content::{ContentInfo, ContentStore, Freed};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Blob, BlobSet, Digest, Reader, Reconciled};
use crate::types::{Timestamp, Usage, check_name, quoted};
use std::collections::BTreeSet;
use std::time::Duration;

/// Labels of snapshots that name the configuration and the manifest of their image, as digests: blobs that are kept
/// as long as a snapshot has such a label, though they are the blob of none.
pub const IMAGE_LABELS: [&str; 2] =
    ["containerd.io/snapshot/plywood.image.config", "containerd.io/snapshot/plywood.image.manifest"];

/// How long a blob that nobody refers to is left alone. Who imports an image puts its blobs there first and makes the
/// snapshots afterwards: the slowest import has to fit in, and a day is also what containerd gives.
pub const UNUSED_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Blobs that are deleted in one transaction: each costs a look at its rows and an unlink.
const DELETE_BATCH: usize = 64;

impl Snapshotter {
    /// Where the blobs are.
    pub fn content(&self) -> &dyn ContentStore {
        &*self.content
    }

    /// Says which blob a snapshot of any kind is; its size is what the content store says.
    ///
    /// # Errors
    /// `NotFound` without the snapshot, or without the blob in the content store: it may just have been deleted with the
    /// last snapshot that referred to it, and has to be put there again. `FailedPrecondition` if the snapshot has another
    /// blob.
    pub fn set_blob(&self, key: &str, blob: &Blob) -> Result<BlobSet> {
        const OPERATION: &str = "set blob";
        check_name(OPERATION, key)?;
        self.store.write_with_others(OPERATION, |rows| {
            let record = rows.find(self.realm(), key)?;
            let info = self.content.info(&blob.digest).map_err(|e| e.during(OPERATION, quoted(key)))?;
            let blob = Blob { size_bytes: info.size_bytes, ..blob.clone() };
            let set = rows.set_blob(record.id, &blob)?;
            crate::fail::point("b.before_commit")?;
            Ok(set)
        })
    }

    /// The blob of a snapshot, if one was set.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get_blob(&self, key: &str) -> Result<Option<Blob>> {
        const OPERATION: &str = "get blob";
        check_name(OPERATION, key)?;
        self.store.read(OPERATION, |rows| rows.blob_of(rows.find(self.realm(), key)?.id))
    }

    /// The names of the snapshots that a blob was set for, oldest first.
    ///
    /// # Errors
    /// Those of the database.
    pub fn snapshots_of(&self, digest: &Digest) -> Result<Vec<String>> {
        self.store.read("snapshots of blob", |rows| {
            let mut names = Vec::new();
            for id in rows.snapshots_of(digest)? {
                let record = rows.record(id)?.filter(|record| record.realm == *self.realm());
                names.extend(record.map(|record| record.name));
            }
            Ok(names)
        })
    }

    /// What a snapshot occupies together with its blob, which counts as one more inode. If only the blob cannot be
    /// looked at, the usage is that of the snapshot, and what went wrong stands beside it.
    ///
    /// # Errors
    /// As of [`Snapshotter::usage`].
    pub fn usage_with_blob(&self, key: &str, progress: &dyn Progress) -> Result<(Usage, Option<Error>)> {
        let mut usage = self.usage(key, progress)?;
        let Some(blob) = self.get_blob(key)? else { return Ok((usage, None)) };
        match self.content.info(&blob.digest) {
            Ok(info) => {
                usage.size_bytes = usage.size_bytes.saturating_add(info.size_bytes);
                usage.inodes = usage.inodes.saturating_add(1);
                Ok((usage, None))
            }
            Err(failed) => Ok((usage, Some(failed.during("usage", quoted(key))))),
        }
    }

    /// Takes back a blob: deletes it if no snapshot refers to it and no label names it, and it is as it was `put` there. False
    /// if not, or if it is gone: somebody else has asked for it since, or had put it there before, and may rely on it.
    ///
    /// # Errors
    /// Those of the database and of the content store.
    pub fn drop_unreferenced(&self, put: &ContentInfo) -> Result<bool> {
        let digest = &put.digest;
        let mut freed = Vec::new();
        self.store.write("drop blob", |rows| {
            if used_of(rows, std::slice::from_ref(digest))?.contains(digest) {
                return Ok(false);
            }
            freed.extend(self.content.take_back(put)?);
            if !freed.is_empty() {
                rows.blob_deleted(digest)?;
            }
            Ok(!freed.is_empty())
        })
    }

    /// Deletes content that is due. Trouble is told in the log: the next open or cleanup tries again.
    pub(super) fn delete_blobs_due(&self, operation: &'static str, due: &[Digest]) -> usize {
        let mut deleted = 0;
        for digest in due {
            match self.delete_blob_due(operation, digest) {
                Ok(was_due) => deleted += usize::from(was_due),
                Err(failed) => {
                    tracing::warn!(%digest, error = %failed, "a blob that nobody refers to stays until the next cleanup");
                }
            }
        }
        deleted
    }

    /// False if it is not due any more.
    fn delete_blob_due(&self, operation: &'static str, digest: &Digest) -> Result<bool> {
        crate::fail::point("r.before_blob_delete")?;
        // Outlives the transaction, and a second run of it: freeing the space of a large file takes its time.
        let mut freed = Vec::new();
        self.store.write(operation, |rows| {
            if !rows.is_blob_due(digest)? {
                return Ok(false);
            }
            let is_unused = !rows.is_blob_referenced(digest)?;
            if is_unused {
                freed.extend(self.delete_content(digest)?);
                crate::fail::point("r.after_blob_delete")?;
            }
            rows.blob_deleted(digest)?;
            Ok(is_unused)
        })
    }

    /// What is not there needs no deletion, nor does what never was.
    fn delete_content(&self, digest: &Digest) -> Result<Option<Freed>> {
        match self.content.delete(digest) {
            Ok(freed) => Ok(Some(freed)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the rows of blobs agree with those of snapshots, and deletes what is due: nothing but a look if all is well.
    /// Trouble is told in the log.
    pub(super) fn recover_blobs(&self, operation: &'static str) {
        let recovered = self.reconcile_blobs(operation).and_then(|_| {
            let due = self.store.read(operation, |rows| rows.blobs_due())?;
            if !due.is_empty() {
                self.store.settle(operation)?;
                self.delete_blobs_due(operation, &due);
            }
            Ok(())
        });
        if let Err(failed) = recovered {
            tracing::warn!(error = %failed, "rows of blobs could not be looked at");
        }
    }

    fn reconcile_blobs(&self, operation: &'static str) -> Result<Reconciled> {
        if self.store.read(operation, |rows| rows.are_blobs_reconciled())? {
            return Ok(Reconciled::default());
        }
        let mended = self.store.write(operation, |rows| rows.reconcile_blobs())?;
        let Reconciled { dropped, completed, .. } = &mended;
        tracing::warn!(dropped, completed, "rows of blobs contradicted those of snapshots, and were mended");
        Ok(mended)
    }

    /// Deletes what nobody has referred to for a while from the content store, if it is one of ours.
    pub(super) fn sweep_content(&self, report: &mut CleanupReport) -> Result<()> {
        const OPERATION: &str = "cleanup";
        let grace = i64::try_from(UNUSED_GRACE.as_secs()).unwrap_or(i64::MAX);
        let now = Timestamp::now();
        let before = Timestamp { secs: now.secs.saturating_sub(grace), ..now };
        let swept = self.content.sweep_ingests(before)?;
        report.deleted_ingests += swept.count;
        report.freed_content_bytes += swept.bytes;
        let mut candidates = self.content.unused_since(before)?;
        if candidates.is_empty() {
            return Ok(());
        }
        // Most of them are the blob of a snapshot: found without keeping writers waiting.
        let in_use = self.store.read(OPERATION, |rows| used_of(rows, &candidates))?;
        candidates.retain(|digest| !in_use.contains(digest));
        for batch in candidates.chunks(DELETE_BATCH) {
            let mut freed = Vec::new();
            self.store.write(OPERATION, |rows| {
                let in_use = used_of(rows, batch)?;
                for digest in batch.iter().filter(|digest| !in_use.contains(digest)) {
                    freed.extend(self.content.delete_unused(digest, before)?);
                    rows.blob_deleted(digest)?;
                }
                Ok(())
            })?;
            report.deleted_blobs += freed.len();
            report.freed_content_bytes += freed.iter().map(|(info, _)| info.size_bytes).sum::<u64>();
        }
        Ok(())
    }
}

/// Those that a snapshot of anybody refers to, or that a label of one names.
fn used_of(rows: &Reader<'_>, candidates: &[Digest]) -> Result<BTreeSet<Digest>> {
    let mut in_use = BTreeSet::new();
    for digest in candidates {
        if rows.is_blob_referenced(digest)? {
            in_use.insert(digest.clone());
        }
    }
    let mut after = None;
    loop {
        let batch = rows.records(None, after, BATCH)?;
        for record in &batch.records {
            let named = IMAGE_LABELS.iter().filter_map(|label| record.labels.get(*label));
            in_use.extend(named.filter_map(|text| Digest::parse(text).ok()));
        }
        match batch.next {
            Some(id) => after = Some(id),
            None => return Ok(in_use),
        }
    }
}

//! Remove: row first, directory after.
//!
//! The key is free the moment the row is gone. What a crash leaves is a directory without a row, `rm-*`, or a blob that
//! is due.

use super::{Snapshotter, not_found};
use crate::backend::Backend;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::mounted::{in_use, is_held_by};
use crate::snapshotter::settings::Removal;
use crate::store::{MountRow, ProcessMark, Record};
use crate::types::{SnapshotId, check_name, quoted};
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads that delete directories in the background.
const WORKERS: usize = 2;

/// Deletes directories, now or in the background; what fails is told in the log and left to the next cleanup.
pub(super) struct Remover {
    backend: Arc<dyn Backend>,
    removal: Removal,
    workers: Mutex<Option<Workers>>,
    /// What is not deleted by then is left to the next cleanup.
    deadline: Arc<OnceLock<Instant>>,
}

struct Workers {
    jobs: Sender<SnapshotId>,
    /// Nothing is sent here: it is disconnected once every thread has ended.
    ended: Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Remover {
    pub(super) fn new(backend: &Arc<dyn Backend>, removal: Removal) -> Remover {
        Remover { backend: Arc::clone(backend), removal, workers: Mutex::new(None), deadline: Arc::default() }
    }

    /// The row of `id` is gone: its directory is to go.
    fn remove(&self, id: SnapshotId) {
        if self.removal == Removal::Sync || !self.hand_over(id) {
            remove_directory(&*self.backend, id);
        }
    }

    /// False if there are no threads for it.
    fn hand_over(&self, id: SnapshotId) -> bool {
        let mut workers = self.workers.lock();
        if workers.is_none() {
            *workers = self.start();
        }
        workers.as_ref().is_some_and(|w| w.jobs.send(id).is_ok())
    }

    fn start(&self) -> Option<Workers> {
        let (jobs, queue) = unbounded();
        let (alive, ended) = bounded(0);
        let start = |number: usize| {
            let (queue, backend, alive) = (queue.clone(), Arc::clone(&self.backend), Sender::clone(&alive));
            let deadline = Arc::clone(&self.deadline);
            let work = move || {
                for id in queue {
                    if deadline.get().is_none_or(|deadline| Instant::now() < *deadline) {
                        remove_directory(&*backend, id);
                    }
                }
                drop(alive);
            };
            std::thread::Builder::new().name(format!("remover-{number}")).spawn(work).ok()
        };
        let threads: Vec<_> = (0..WORKERS).filter_map(start).collect();
        (!threads.is_empty()).then_some(Workers { jobs, ended, threads })
    }

    /// Deletes what has been renamed away already.
    pub(super) fn delete_now(&self, path: &Path) {
        delete(&*self.backend, path);
    }

    /// Leaves what is not deleted within `grace`; told again, the first time counts.
    pub(super) fn leave_after(&self, grace: Duration) {
        self.deadline.get_or_init(|| Instant::now() + grace);
    }

    /// Waits for what is to be deleted, but not for what is left by [`Remover::leave_after`]: a thread that is in
    /// the middle of a tree ends with the process or with the tree.
    pub(super) fn finish(&self) {
        let Some(Workers { jobs, ended, threads }) = self.workers.lock().take() else { return };
        drop(jobs);
        if let Some(deadline) = self.deadline.get()
            && ended.recv_deadline(*deadline) == Err(RecvTimeoutError::Timeout)
        {
            tracing::info!("removed directories are left to the next cleanup");
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(
                    "a thread that removes directories panicked; the next cleanup does what it left"
                );
            }
        }
    }
}

impl Drop for Remover {
    fn drop(&mut self) {
        self.finish();
    }
}

fn remove_directory(backend: &dyn Backend, id: SnapshotId) {
    match backend.retire(id) {
        Ok(Some(path)) => {
            if let Err(failed) = crate::fail::point("r.after_rename") {
                tracing::warn!(%id, error = %failed, "a removed directory stays until the next cleanup");
                return;
            }
            delete(backend, &path);
        }
        Ok(None) => {}
        Err(failed) => {
            tracing::warn!(%id, error = %failed, "the directory of a removed snapshot stays until the next cleanup")
        }
    }
}

fn delete(backend: &dyn Backend, path: &Path) {
    if let Err(failed) = backend.delete(path) {
        tracing::warn!(path = %path.display(), error = %failed, "a removed directory stays until the next cleanup");
    }
}

impl Snapshotter {
    /// Removes a snapshot of any kind: its key can be used again at once. Its directory goes in the background,
    /// or before this returns with [`Removal::Sync`]; trouble with it is told in the log only. So it is with its blob, which
    /// is deleted from the content store if no other snapshot refers to it.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it has children; `Busy` with the mount point while it is mounted by
    /// [`Snapshotter::mount`].
    pub fn remove(&self, key: &str) -> Result<()> {
        check_name("remove", key)?;
        self.remove_if(key, None)
    }

    /// The same for the snapshot of this id; `NotFound` if the key is another one's by now.
    pub(super) fn remove_exactly(&self, key: &str, id: SnapshotId) -> Result<()> {
        self.remove_if(key, Some(id))
    }

    fn remove_if(&self, key: &str, expected: Option<SnapshotId>) -> Result<()> {
        match expected {
            Some(id) => self.end_kept_for_removal(id)?,
            None => self.end_kept_of(key)?,
        }
        self.forget_dead_mounts_of(key)?;
        let process = ProcessMark::current()?;
        let removed = self.store.write_with_others("remove", |rows| {
            let record = rows.find(self.realm(), key)?;
            if expected.is_some_and(|id| id != record.id) {
                return Err(not_found("remove", key));
            }
            // What this process made for itself it may remove while it works in it.
            let ours = |row: &MountRow| record.flags & Record::TRANSIENT != 0 && is_held_by(row, &process);
            if let Some(row) = rows.mounts_of(record.id)?.iter().find(|row| !ours(row)) {
                return Err(Error::new(ErrorKind::Busy, "remove", quoted(key), in_use(row)));
            }
            let removed = rows.remove(self.realm(), key)?;
            crate::fail::point("r.before_commit")?;
            Ok(removed)
        })?;
        crate::fail::point("r.after_commit")?;
        let (id, has_directory, blob) = (removed.record.id, removed.record.has_directory, removed.blob_due);
        if has_directory || blob.is_some() {
            match self.store.settle("remove") {
                Ok(()) => {
                    if has_directory {
                        self.remover.remove(id);
                    }
                    if let Some(blob) = blob {
                        self.delete_blobs_due("remove", &[blob]);
                    }
                }
                Err(failed) => {
                    tracing::warn!(%id, error = %failed, "what a removed snapshot had stays until the next cleanup");
                }
            }
        }
        Ok(())
    }
}

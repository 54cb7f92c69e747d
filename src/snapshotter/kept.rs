//! FUSE mounts that plywood keeps itself, for clients that are given a bind mount of them.
//!
//! The mount of snapshot ID is at `mnt/ID`, served by a process that outlives this one, and recorded like any other.
//! It is made when somebody asks for the mounts of the snapshot, again if it is gone by then, and ended when the
//! snapshot is committed or removed. Clients that still have a bind mount of it keep their file system until they
//! unmount it: only the name goes.
//!
//! The directory is there only while something is mounted: whoever comes with an old answer meets an error, and does not
//! write beside the snapshot. A crash leaves a mount without a row, which the next one ends before it mounts; or an empty
//! directory, or a mount of what was just committed: [`Snapshotter::drop_unused_points`] removes them when the next daemon
//! starts, or `cleanup` once the snapshot is gone.

use super::mounted::{attached_of, is_held, is_seen_from, state_of};
use super::{Snapshotter, not_found};
use crate::backend::{Progress, go_on, stacked};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{Layout, MountEntry};
use crate::mounting::{self, Detach, State};
use crate::store::{MountRow, ProcessMark, Record};
use crate::types::{Mount, SnapshotId, SnapshotKind, check_name, quoted};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a commit waits for the server to end, so that everything is written. It takes that long only if a client
/// still has it mounted; then it was synced before.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// How long a removal waits for whoever makes or ends the mount, before it ends the server, which may hang.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);

/// How long a server that nobody can reach may take to end by itself.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// How often somebody who waits for a turn looks whether the caller still does.
const LOOK_AROUND: Duration = Duration::from_millis(200);

/// Whose mounts are being made or ended: one at a time for each snapshot. No transaction is open while one waits.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: Mutex<HashSet<SnapshotId>>,
    freed: Condvar,
}

struct Turn<'a>(&'a Turns, SnapshotId);

impl Turns {
    /// Waits for a turn, unless the caller gives up.
    fn take(&self, id: SnapshotId, progress: &dyn Progress) -> Result<Turn<'_>> {
        let mut taken = self.taken.lock();
        while !taken.insert(id) {
            go_on(progress, "mounts")?;
            self.freed.wait_for(&mut taken, LOOK_AROUND);
        }
        Ok(Turn(self, id))
    }

    /// Waits so long at most.
    fn take_within(&self, id: SnapshotId, patience: Duration) -> Option<Turn<'_>> {
        let deadline = Instant::now() + patience;
        let mut taken = self.taken.lock();
        while !taken.insert(id) {
            if self.freed.wait_until(&mut taken, deadline).timed_out() {
                return taken.insert(id).then(|| Turn(self, id));
            }
        }
        Some(Turn(self, id))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.lock().remove(&self.1);
        self.0.freed.notify_all();
    }
}

impl Snapshotter {
    /// The mounts that show an active snapshot or a view to somebody in this mount namespace, with nothing left to do but
    /// to bind: FUSE is mounted here, and stays until the snapshot is committed or removed.
    ///
    /// # Errors
    /// Those of [`Snapshotter::mounts`] and of [`mounting::attach`]; `Busy` if it is mounted where this process cannot
    /// see it.
    pub fn mounts_kept(&self, key: &str, progress: &dyn Progress) -> Result<Vec<Mount>> {
        check_name("mounts", key)?;
        let (record, chain) = self.find_with_chain("mounts", key)?;
        self.thaw_after_crash("mounts", &record)?;
        let mounts = self.mounts_of("mounts", &record, &chain)?;
        self.keep_for(&record, mounts, progress)
    }

    /// The same for a snapshot that is known, and its mounts as others would carry them out.
    pub(super) fn keep_for(
        &self,
        record: &Record,
        mounts: Vec<Mount>,
        progress: &dyn Progress,
    ) -> Result<Vec<Mount>> {
        if !mounts.iter().all(|mount| mount.kind.starts_with("fuse3.")) {
            return Ok(mounts);
        }
        let point = self.layout.mount_point(record.id);
        let kept = self.turns.take(record.id, progress).and_then(|_turn| self.keep(record, &mounts, &point));
        kept.map_err(|e| self.why_not_kept(record, e))?;
        Ok(stacked::bind(&point, record.kind, Vec::new()))
    }

    /// What a client is told that cannot get a mount. "Not found" is said of snapshots only.
    fn why_not_kept(&self, record: &Record, error: Error) -> Error {
        let refuse =
            |cause: String| Error::new(ErrorKind::FailedPrecondition, "mounts", quoted(&record.name), cause);
        match self.store.read("mounts", |rows| rows.record(record.id)) {
            Ok(None) => return not_found("mounts", &record.name),
            Ok(Some(now)) if now.kind != record.kind => {
                return refuse("it was committed meanwhile".to_owned());
            }
            _ => {}
        }
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => refuse(error.to_string()).with_source(error),
            _ => error.during("mounts", quoted(&record.name)),
        }
    }

    fn keep(&self, record: &Record, mounts: &[Mount], point: &Path) -> Result<()> {
        for row in self.rows_at("mounts", record.id, point)? {
            match state_of(&row)? {
                State::Mounted => return Ok(()),
                State::Elsewhere if self.is_left_behind(&row)? => {}
                State::Covered | State::Elsewhere => {
                    let cause = "it is mounted in another mount namespace, or something is mounted over it: end that first";
                    return Err(Error::new(ErrorKind::Busy, "mounts", point.display().to_string(), cause));
                }
                State::Dead => {
                    tracing::warn!(target = %point.display(), "the server of a mount is gone: it is mounted again");
                    mounting::detach(point, None, Detach::Lazy)?;
                }
                State::Unmounted => {}
            }
            self.store.write_with_others("mounts", |rows| rows.remove_mount(&row).map(drop))?;
        }
        // One that a crash has left unrecorded: nobody was ever told of it.
        mounting::detach(point, None, Detach::Lazy)?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(point);
        made.map_err(|e| Error::io("mounts", point.display().to_string(), e))?;
        self.attach(record, mounts, point).map(drop).inspect_err(|_| remove_point(point))
    }

    /// True if nobody uses a mount in another namespace; its server has ended then. One that lives where nobody else does is
    /// what keeps that namespace: the daemon, or all that it was for, was started anew in another one.
    fn is_left_behind(&self, row: &MountRow) -> Result<bool> {
        let here = ProcessMark::current()?;
        let Some(server) = attached_of(row).server.filter(|_| is_seen_from(row, &here)) else {
            // Its number says nothing here; its lock does.
            return self.is_unlocked(row.id);
        };
        let all = self.store.read("mounts", |rows| rows.all_mounts())?;
        let seen = all.iter().filter(|row| is_seen_from(row, &here));
        let running = seen.filter_map(|row| attached_of(row).server).filter(|server| server.is_running());
        let servers: HashSet<u32> = running.map(|server| server.pid).collect();
        if mounting::is_seen_by_others(&attached_of(row), &servers)? {
            return Ok(false);
        }
        tracing::info!(target = %row.target.display(), pid = server.pid, "a server whose mount nobody can reach is ended");
        server.end(LEAVE_PATIENCE);
        Ok(!server.is_running())
    }

    /// True if no server changes the directory of a snapshot: while one does, it holds a lock on its work directory.
    fn is_unlocked(&self, id: SnapshotId) -> Result<bool> {
        let path = self.layout.work(id).join("work");
        let failed = |e| Error::fuse("mounts", path.display().to_string(), e);
        match plywood_fuse::sys::open::open_root(&path) {
            Ok(dir) => plywood_fuse::sys::open::try_lock(dir.as_fd()).map_err(failed),
            // A view has none, and nothing to lose.
            Err(error) if error.errno() == libc::ENOENT => Ok(true),
            Err(error) => Err(failed(error)),
        }
    }

    /// Ends the mount that is kept of a snapshot, if there is one, after everything is written.
    fn end_kept(&self, operation: &'static str, id: SnapshotId, progress: &dyn Progress) -> Result<()> {
        if self.rows_at(operation, id, &self.layout.mount_point(id))?.is_empty() {
            return Ok(());
        }
        let _turn = self.turns.take(id, progress)?;
        self.end_kept_locked(operation, id, END_PATIENCE).map(drop)
    }

    /// The same for a snapshot that is to be removed: nothing of it has to be written, and a server that hangs does not
    /// matter.
    pub(super) fn end_kept_for_removal(&self, id: SnapshotId) -> Result<()> {
        let rows = self.rows_at("remove", id, &self.layout.mount_point(id))?;
        if rows.is_empty() {
            return Ok(());
        }
        let turn = match self.turns.take_within(id, REMOVAL_PATIENCE) {
            Some(turn) => turn,
            None => {
                let here = ProcessMark::current()?;
                for row in rows.iter().filter(|row| is_seen_from(row, &here)) {
                    tracing::warn!(target = %row.target.display(), "its server keeps others waiting: it is ended");
                    attached_of(row).server.iter().for_each(|server| server.end(Duration::ZERO));
                }
                self.turns.take_within(id, REMOVAL_PATIENCE).ok_or_else(|| {
                    let cause = "its mount is being made or ended: try again";
                    Error::new(ErrorKind::Busy, "remove", format!("snapshot {id}"), cause)
                })?
            }
        };
        let ended = self.end_kept_locked("remove", id, Duration::ZERO);
        drop(turn);
        ended.map(drop)
    }

    /// Does something to a snapshot while nothing of ours shows it. A mount that is kept of it is there again afterwards,
    /// as whoever was told of it may count on it.
    pub(super) fn without_kept<T>(
        &self,
        key: &str,
        id: SnapshotId,
        progress: &dyn Progress,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _turn = self.turns.take(id, progress)?;
        let was_kept = self.end_kept_locked("apply", id, END_PATIENCE)?;
        let done = work();
        if was_kept {
            let again = self.find_with_chain("mounts", key).and_then(|(record, chain)| {
                if record.id != id {
                    return Err(not_found("mounts", key));
                }
                let mounts = self.mounts_of("mounts", &record, &chain)?;
                self.keep(&record, &mounts, &self.layout.mount_point(id))
            });
            if let Err(error) = again {
                tracing::warn!(key, %error, "a mount is made again only when somebody asks for it");
            }
        }
        done
    }

    /// Writes what is still on its way to a mount that is kept of a snapshot.
    pub(super) fn sync_kept(&self, id: SnapshotId) -> Result<()> {
        let point = self.layout.mount_point(id);
        for row in self.rows_at("sync", id, &point)? {
            if state_of(&row)? == State::Mounted {
                sync(&point).map_err(|e| Error::io("sync", point.display().to_string(), e))?;
            }
        }
        Ok(())
    }

    /// True if there was one.
    fn end_kept_locked(&self, operation: &'static str, id: SnapshotId, patience: Duration) -> Result<bool> {
        let point = self.layout.mount_point(id);
        let mut ended = false;
        for row in self.rows_at(operation, id, &point)? {
            match state_of(&row)? {
                State::Mounted if patience.is_zero() => mounting::detach(&point, None, Detach::Lazy)?,
                State::Mounted => {
                    sync(&point).map_err(|e| Error::io(operation, point.display().to_string(), e))?;
                    // Who has bound it elsewhere keeps it, and may look only.
                    if let Err(error) = mounting::freeze(&point) {
                        tracing::warn!(target = %point.display(), %error, "somebody may still write there");
                    }
                    mounting::detach(&point, None, Detach::Lazy)?;
                    // Copies of it in other namespaces go with its directory.
                    remove_point(&point);
                    if let Some(server) = attached_of(&row).server {
                        server.wait_for_end(patience);
                    }
                }
                State::Dead => mounting::detach(&point, None, Detach::Lazy)?,
                State::Unmounted => {}
                State::Elsewhere if self.is_left_behind(&row)? => {}
                State::Elsewhere if !patience.is_zero() => {
                    let cause = "it is mounted in another mount namespace, where somebody may change it: end that first";
                    return Err(Error::new(ErrorKind::Busy, operation, point.display().to_string(), cause));
                }
                // Not to be ended from here: whoever asked for the snapshot is told where it is mounted.
                State::Covered | State::Elsewhere => continue,
            }
            remove_point(&point);
            self.store.write_with_others(operation, |rows| rows.remove_mount(&row).map(drop))?;
            ended = true;
        }
        Ok(ended)
    }

    /// [`Snapshotter::end_kept_for_removal`] of the snapshot that has this key.
    pub(super) fn end_kept_of(&self, key: &str) -> Result<()> {
        match self.store.read("remove", |rows| rows.id(self.realm(), key))? {
            Some(id) => self.end_kept_for_removal(id),
            None => Ok(()),
        }
    }

    /// Ends the mount of a snapshot that is to be committed, after everything is written.
    pub(super) fn end_kept_before_commit(&self, id: SnapshotId, progress: &dyn Progress) -> Result<()> {
        self.end_kept("commit", id, progress)
    }

    /// Removes the mount points at which nothing is mounted, and ends mounts of what is committed: after a crash, or a new
    /// start of the machine. To be called before anybody can ask for mounts, by who keeps them.
    ///
    /// # Errors
    /// Those of the database, and of listing the store.
    pub fn drop_unused_points(&self) -> Result<()> {
        for id in self.kept_of_committed()? {
            if let Err(error) = self.end_kept_locked("open store", id, END_PATIENCE) {
                tracing::warn!(%id, %error, "a mount of a committed snapshot stays");
            }
        }
        let rows = self.store.read("open store", |rows| rows.all_mounts())?;
        let used: HashSet<&Path> = rows.iter().map(|row| row.target.as_path()).collect();
        for (path, name) in super::recover::list(&self.layout.mounts())? {
            let entry = name.as_deref().map(Layout::mount_entry);
            if matches!(entry, Some(MountEntry::Kept(_))) && !used.contains(path.as_path()) {
                if let Err(error) = mounting::detach(&path, None, Detach::Lazy) {
                    tracing::warn!(target = %path.display(), %error, "a mount that nobody knows stays");
                }
                remove_point(&path);
            }
        }
        Ok(())
    }

    /// Committed snapshots of which a mount is kept: who committed them died before he came to end it.
    fn kept_of_committed(&self) -> Result<BTreeSet<SnapshotId>> {
        self.store.read("open store", |rows| {
            let mut ids = BTreeSet::new();
            for row in rows.all_mounts()? {
                let is_kept = !is_held(&row) && row.target == self.layout.mount_point(row.id);
                if is_kept && rows.record(row.id)?.is_some_and(|r| r.kind == SnapshotKind::Committed) {
                    ids.insert(row.id);
                }
            }
            Ok(ids)
        })
    }

    fn rows_at(&self, operation: &'static str, id: SnapshotId, point: &Path) -> Result<Vec<MountRow>> {
        let rows = self.store.read(operation, |rows| rows.mounts_of(id))?;
        Ok(rows.into_iter().filter(|row| !is_held(row) && row.target == point).collect())
    }
}

pub(super) fn sync(point: &Path) -> io::Result<()> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let root = rustix::fs::open(point, flags, rustix::fs::Mode::empty())?;
    Ok(rustix::fs::syncfs(&root)?)
}

/// Only an empty directory goes.
fn remove_point(point: &Path) {
    match fs::remove_dir(point) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(target = %point.display(), %error, "a mount point stays");
        }
        _ => {}
    }
}

//! Snapshots mounted for people: which, where, and whether they still are.
//!
//! The row is written after the mount and dropped after the unmount: a crash in between leaves a mount without a row,
//! which `/proc/mounts` shows and [`Snapshotter::unmount`] ends by its path, or a row without a mount, which is seen to
//! be dead. A row is believed only as far as the kernel confirms it.

use super::Snapshotter;
use crate::error::{Error, ErrorKind, Result};
use crate::mounting::{self, Attached, Detach, How, Server, State};
use crate::store::{MountHow, MountRow, NewMount, ProcessMark, Record};
use crate::types::{Mount, SnapshotId, check_name};
use std::path::{Path, PathBuf};

/// Where a snapshot is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountedAt {
    /// The mount point: absolute, without symlinks.
    pub target: PathBuf,
    /// The process that serves it.
    pub server_pid: Option<u32>,
}

impl Snapshotter {
    /// Mounts an active snapshot or a view at the directory `target`, as whoever runs this.
    ///
    /// # Errors
    /// Those of [`Snapshotter::mounts`] and of [`mounting::attach`]; then nothing is mounted.
    pub fn mount(&self, key: &str, target: &Path) -> Result<MountedAt> {
        check_name("mount", key)?;
        let (record, chain) = self.find_with_chain("mount", key)?;
        self.thaw_after_crash("mount", &record)?;
        let mounts = self.mounts_of("mount", &record, &chain)?;
        self.attach(&record, &mounts, target)
    }

    /// Carries out the mounts of a snapshot, and records that.
    ///
    /// # Errors
    /// Those of [`mounting::attach`]; `NotFound` if it was removed or committed meanwhile. Then nothing is mounted.
    pub(super) fn attach(&self, record: &Record, mounts: &[Mount], target: &Path) -> Result<MountedAt> {
        let id = record.id;
        let attached = mounting::attach(mounts, target, &self.settings.mounting)?;
        let recorded = row_of(id, &attached).and_then(|row| {
            self.store.write_with_others("mount", |rows| {
                // It may have been removed or committed meanwhile.
                match rows.record(id)? {
                    Some(now) if now.kind == record.kind => super::check_whole("mount", &now)?,
                    _ => return Err(super::not_found("mount", &record.name)),
                }
                rows.add_mount(&row.borrowed()).map(drop)
            })
        });
        if let Err(failed) = recorded {
            if let Err(undo) = mounting::detach(&attached.target, attached.server, Detach::Lazy) {
                tracing::warn!(target = %attached.target.display(), error = %undo, "a mount without a row stays");
            }
            return Err(failed);
        }
        Ok(MountedAt { target: attached.target, server_pid: attached.server.map(|s| s.pid) })
    }

    /// Ends the mounts of a snapshot, or the one at a mount point; returns where they were. That nothing is mounted is
    /// fine.
    ///
    /// # Errors
    /// `Busy` if somebody works in it; `NotFound` if it is neither a key nor a directory.
    pub fn unmount(&self, key_or_target: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let given = key_or_target.as_ref();
        let rows = match self.rows_to_unmount(given)? {
            Recorded::Rows(rows) => rows,
            Recorded::Nothing => return end_unrecorded(given),
        };
        let mut ended = Vec::new();
        for row in rows {
            let target = row.target.display().to_string();
            match state_of(&row)? {
                State::Elsewhere => {
                    let cause = "it is mounted in another namespace: unmount it there, or end its programs";
                    return Err(Error::new(ErrorKind::Busy, "unmount", target, cause));
                }
                State::Covered => {
                    let cause = "something else is mounted over it, or a directory above it was renamed: \
                                 undo that first";
                    return Err(Error::new(ErrorKind::Busy, "unmount", target, cause));
                }
                State::Mounted => {
                    let server = attached_of(&row).server;
                    mounting::detach(&row.target, server, Detach::Clean)?;
                    ended.push(row.target.clone());
                }
                State::Dead => {
                    mounting::detach(&row.target, None, Detach::Lazy)?;
                    ended.push(row.target.clone());
                }
                State::Unmounted => {}
            }
            self.store.write_with_others("unmount", |rows| rows.remove_mount(&row).map(drop))?;
        }
        Ok(ended)
    }

    fn rows_to_unmount(&self, given: &Path) -> Result<Recorded> {
        let key = given.to_str().filter(|key| check_name("unmount", key).is_ok());
        let target = canonical(given);
        self.store.read("unmount", |rows| {
            let at: Vec<MountRow> =
                rows.all_mounts()?.into_iter().filter(|row| row.target == target).collect();
            if !at.is_empty() {
                return Ok(Recorded::Rows(at));
            }
            match key.map(|key| rows.id(self.realm(), key)).transpose()?.flatten() {
                Some(id) => {
                    Ok(Recorded::Rows(rows.mounts_of(id)?.into_iter().filter(|row| !is_held(row)).collect()))
                }
                None if given.symlink_metadata().is_ok() => Ok(Recorded::Nothing),
                None => {
                    let cause = "it is neither a key of this store nor a mount point";
                    Err(Error::new(ErrorKind::NotFound, "unmount", given.display().to_string(), cause))
                }
            }
        })
    }

    /// Where a snapshot is mounted now.
    ///
    /// # Errors
    /// `NotFound`; those of `/proc`.
    pub fn mounted_at(&self, key: &str) -> Result<Vec<MountedAt>> {
        check_name("mounted", key)?;
        let rows = self.store.read("mounted", |rows| rows.mounts_of(rows.find(self.realm(), key)?.id))?;
        let mut found = Vec::new();
        for row in rows.into_iter().filter(|row| !is_held(row)) {
            if is_live(&row)? {
                found.push(MountedAt { server_pid: row.server.map(|s| s.pid), target: row.target });
            }
        }
        Ok(found)
    }

    /// Says that this process works in a snapshot in a way of its own, mounted where nobody else sees it: until it ends the
    /// snapshot is not removed.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if a layer is not there whole.
    pub fn hold(&self, key: &str) -> Result<()> {
        check_name("hold", key)?;
        let process = ProcessMark::current()?;
        self.store.write_with_others("hold", |rows| {
            let record = rows.find(self.realm(), key)?;
            super::check_whole("hold", &record)?;
            rows.add_mount(&hold_row(record.id, process)).map(drop)
        })
    }

    /// Drops the rows of mounts that are gone, and detaches those whose server is gone; returns how many.
    pub(super) fn forget_dead_mounts(&self) -> Result<usize> {
        self.forget_dead(self.store.read("open store", |rows| rows.all_mounts())?)
    }

    /// The same for one snapshot; one that is not there has none.
    pub(super) fn forget_dead_mounts_of(&self, key: &str) -> Result<usize> {
        let rows = self.store.read("remove", |rows| match rows.id(self.realm(), key)? {
            Some(id) => rows.mounts_of(id),
            None => Ok(Vec::new()),
        })?;
        self.forget_dead(rows)
    }

    fn forget_dead(&self, rows: Vec<MountRow>) -> Result<usize> {
        let (held, mounted): (Vec<MountRow>, Vec<MountRow>) = rows.into_iter().partition(is_held);
        let gone = mounted.iter().filter(|row| is_over(row));
        let left = held.iter().filter(|row| row.server.is_none_or(|process| process.is_dead()));
        let dead: Vec<&MountRow> = gone.chain(left).collect();
        if dead.is_empty() {
            return Ok(0);
        }
        self.store.write_with_others("drop mounts", |rows| {
            for row in &dead {
                rows.remove_mount(row)?;
            }
            Ok(dead.len())
        })
    }
}

/// What is recorded of something to be unmounted.
enum Recorded {
    /// These mounts; none, if it is a key whose snapshot is not mounted.
    Rows(Vec<MountRow>),
    /// It is a path of which nothing is known.
    Nothing,
}

/// Ends the mount of a server of ours whose row was never written, because somebody died in between; anything else is not
/// ours to end.
fn end_unrecorded(target: &Path) -> Result<Vec<PathBuf>> {
    let target = canonical(target);
    let failed = |e| Error::fuse("unmount", target.display().to_string(), e);
    match plywood_fuse::sys::mount::mounted_at(&target).map_err(failed)? {
        None => Ok(Vec::new()),
        Some((kind, _)) if kind == "fuse.plywood-fuse" => {
            mounting::detach(&target, None, Detach::Clean)?;
            Ok(vec![target])
        }
        Some((kind, _)) => {
            let cause = format!("plywood has not mounted the {} there: umount(8) ends it", kind.display());
            Err(Error::new(ErrorKind::FailedPrecondition, "unmount", target.display().to_string(), cause))
        }
    }
}

/// What became of a recorded mount. A server that is numbered in a namespace which cannot be seen from here is believed to
/// run, and so is a mount in another namespace if this process does not see all processes of the machine.
pub(super) fn state_of(row: &MountRow) -> Result<State> {
    let here = ProcessMark::current()?;
    if row.boot_id != here.boot_id {
        return Ok(State::Unmounted);
    }
    if row.server.is_some() && !is_seen_from(row, &here) {
        let own = crate::sys::attach::mount_namespace(None).is_ok_and(|own| own == row.namespace);
        if !own || crate::sys::attach::mount_exists(row.mount_id).is_none() {
            return Ok(State::Elsewhere);
        }
        // The mount itself says enough.
        return mounting::state(&Attached { server: None, ..attached_of(row) });
    }
    let state = mounting::state(&attached_of(row))?;
    let unseen = row.server.is_none() && here.pid_namespace != FIRST_PID_NAMESPACE;
    let elsewhere = crate::sys::attach::mount_namespace(None).is_ok_and(|own| own != row.namespace);
    Ok(if state == State::Unmounted && unseen && elsewhere { State::Elsewhere } else { state })
}

/// True if the number of its server means that process here.
pub(super) fn is_seen_from(row: &MountRow, here: &ProcessMark) -> bool {
    row.boot_id == here.boot_id && row.server.is_some_and(|server| server.pid_namespace == here.pid_namespace)
}

/// The number of the namespace that has every process of the machine: `PROC_PID_INIT_INO` of Linux.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;

fn is_live(row: &MountRow) -> Result<bool> {
    Ok(matches!(state_of(row)?, State::Mounted | State::Covered | State::Elsewhere))
}

/// True if a row can go; a mount whose server is dead is detached. What cannot be looked at is kept, and told in the log.
fn is_over(row: &MountRow) -> bool {
    let over = match state_of(row) {
        Ok(State::Mounted | State::Covered | State::Elsewhere) => Ok(false),
        Ok(State::Unmounted) => Ok(true),
        Ok(State::Dead) => mounting::detach(&row.target, None, Detach::Lazy).map(|()| true),
        Err(error) => Err(error),
    };
    over.unwrap_or_else(|error| {
        tracing::warn!(target = %row.target.display(), %error, "a mount that was recorded cannot be looked at");
        false
    })
}

/// The row that says that a process works in a snapshot: see [`Snapshotter::hold`].
pub(super) fn hold_row(id: SnapshotId, process: ProcessMark) -> NewMount<'static> {
    NewMount {
        id,
        target: Path::new(""),
        server: Some(process),
        mount_id: 0,
        namespace: 0,
        boot_id: process.boot_id,
        uid: plywood_fuse::sys::process::effective_uid(),
        how: MountHow::Bind,
    }
}

/// True if this is a row by [`hold_row`] of that process.
pub(super) fn is_held_by(row: &MountRow, process: &ProcessMark) -> bool {
    is_held(row) && row.server.as_ref() == Some(process)
}

/// True if the row says that a process works in the snapshot, and not where it is mounted: see [`Snapshotter::hold`].
pub(super) fn is_held(row: &MountRow) -> bool {
    row.target.as_os_str().is_empty()
}

/// Why a snapshot cannot be removed while this row stands.
pub(super) fn in_use(row: &MountRow) -> String {
    match row.server {
        Some(process) if is_held(row) => format!("process {} works in it: wait for its end", process.pid),
        _ => format!("it is mounted at {}: unmount it first", row.target.display()),
    }
}

/// A row that owns its words, to be lent to a transaction that may run twice.
struct OwnedRow {
    id: SnapshotId,
    target: PathBuf,
    server: Option<ProcessMark>,
    mount_id: u64,
    namespace: u64,
    boot_id: [u8; 16],
    how: MountHow,
}

impl OwnedRow {
    fn borrowed(&self) -> NewMount<'_> {
        NewMount {
            id: self.id,
            target: &self.target,
            server: self.server,
            mount_id: self.mount_id,
            namespace: self.namespace,
            boot_id: self.boot_id,
            uid: plywood_fuse::sys::process::effective_uid(),
            how: self.how,
        }
    }
}

fn row_of(id: SnapshotId, attached: &Attached) -> Result<OwnedRow> {
    let server = match attached.server {
        Some(server) => ProcessMark::of_pid(server.pid)?,
        None => None,
    };
    Ok(OwnedRow {
        id,
        target: attached.target.clone(),
        server,
        mount_id: attached.mount_id,
        namespace: attached.namespace,
        boot_id: ProcessMark::current()?.boot_id,
        how: if attached.how == How::Server { MountHow::Fuse } else { MountHow::Kernel },
    })
}

pub(super) fn attached_of(row: &MountRow) -> Attached {
    Attached {
        target: row.target.clone(),
        mount_id: row.mount_id,
        namespace: row.namespace,
        server: row.server.map(|mark| Server { pid: mark.pid, start_time: mark.start_time }),
        boot_id: boot_text(row.boot_id),
        how: if row.how == MountHow::Fuse { How::Server } else { How::Kernel },
    }
}

/// The number of a boot as the kernel writes it.
fn boot_text(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The path without symlinks, also where a dead mount stands at its end.
fn canonical(path: &Path) -> PathBuf {
    let by_parent = || {
        let absolute = std::path::absolute(path).ok()?;
        Some(absolute.parent()?.canonicalize().ok()?.join(absolute.file_name()?))
    };
    path.canonicalize().ok().or_else(by_parent).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_written_as_the_kernel_does() {
        let mut id = [0; 16];
        id[0] = 0x01;
        id[15] = 0xfe;
        assert_eq!(boot_text(id), "01000000-0000-0000-0000-0000000000fe");
        let own = ProcessMark::current().expect("this process is listed");
        assert_eq!(boot_text(own.boot_id), mounting::boot_id());
    }
}

//! Snapshots mounted for people: which, where, and whether they still are.
//!
//! The row is written after the mount and dropped after the unmount: a crash in between leaves a mount without a row,
//! which `/proc/mounts` shows and [`Snapshotter::unmount`] ends by its path, or a row without a mount, which is seen to
//! be dead. A row is believed only as far as the kernel confirms it.

use super::Snapshotter;
use crate::error::{Error, ErrorKind, Result};
use crate::mounting::{self, Attached, Detach, How, Server, State};
use crate::store::{MountHow, MountRow, NewMount, ProcessMark};
use crate::types::{SnapshotId, check_name, quoted};
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
        let mounts = self.mounts(key).map_err(|e| e.during("mount", quoted(key)))?;
        let id = self.store.read("mount", |rows| Ok(rows.find(self.realm(), key)?.id))?;
        let attached = mounting::attach(&mounts, target, &self.settings.mounting)?;
        let recorded = row_of(id, &attached).and_then(|row| {
            self.store.write("mount", |rows| {
                // It may have been removed meanwhile.
                if rows.record(id)?.is_none() {
                    return Err(super::not_found("mount", key));
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
        let rows = self.rows_to_unmount(given)?;
        if rows.is_empty() {
            // A mount without a row: of somebody who died in between.
            if given.is_absolute() || given.is_dir() {
                mounting::detach(given, None, Detach::Clean)?;
            }
            return Ok(Vec::new());
        }
        let mut ended = Vec::new();
        for row in rows {
            match mounting::state(&attached_of(&row))? {
                State::Elsewhere => {
                    let cause =
                        "it is mounted in another mount namespace: unmount it there, or end its programs";
                    return Err(Error::new(
                        ErrorKind::Busy,
                        "unmount",
                        row.target.display().to_string(),
                        cause,
                    ));
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
            self.store.write("unmount", |rows| rows.remove_mount(&row).map(drop))?;
        }
        Ok(ended)
    }

    fn rows_to_unmount(&self, given: &Path) -> Result<Vec<MountRow>> {
        let key = given.to_str().filter(|key| check_name("unmount", key).is_ok());
        let target = canonical(given);
        self.store.read("unmount", |rows| {
            let at: Vec<MountRow> =
                rows.all_mounts()?.into_iter().filter(|row| row.target == target).collect();
            if !at.is_empty() {
                return Ok(at);
            }
            match key.map(|key| rows.id(self.realm(), key)).transpose()?.flatten() {
                Some(id) => Ok(rows.mounts_of(id)?.into_iter().filter(|row| !is_held(row)).collect()),
                None if given.exists() => Ok(Vec::new()),
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
            if mounting::is_live(&attached_of(&row))? {
                found.push(MountedAt { server_pid: row.server.map(|s| s.pid), target: row.target });
            }
        }
        Ok(found)
    }

    /// Says that this process works in a snapshot in a way of its own, mounted where nobody else sees it: until it ends the
    /// snapshot is not removed.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn hold(&self, key: &str) -> Result<()> {
        check_name("hold", key)?;
        let process = ProcessMark::current()?;
        self.store.write("hold", |rows| {
            let row = NewMount {
                id: rows.find(self.realm(), key)?.id,
                target: Path::new(""),
                server: Some(process),
                mount_id: 0,
                namespace: 0,
                boot_id: process.boot_id,
                uid: plywood_fuse::sys::process::effective_uid(),
                how: MountHow::Bind,
            };
            rows.add_mount(&row).map(drop)
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
        let attached: Vec<Attached> = mounted.iter().map(attached_of).collect();
        let dead = mounting::find_dead(&attached);
        let gone = mounted.iter().zip(&attached).filter(|(_, a)| dead.contains(a)).map(|(row, _)| row);
        let left = held.iter().filter(|row| row.server.is_none_or(|process| process.is_dead()));
        let dead: Vec<&MountRow> = gone.chain(left).collect();
        if dead.is_empty() {
            return Ok(0);
        }
        self.store.write("drop mounts", |rows| {
            for row in &dead {
                rows.remove_mount(row)?;
            }
            Ok(dead.len())
        })
    }
}

/// True if the row says that a process works in the snapshot, and not where it is mounted: see [`Snapshotter::hold`].
fn is_held(row: &MountRow) -> bool {
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

fn attached_of(row: &MountRow) -> Attached {
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

//! Which snapshots plywood itself has mounted, where and by whom.
//!
//! A row says what was done, not what is: the mount may be gone with its process, its namespace or its machine.
//! Whoever needs to know compares it with the kernel.

use super::codec::{Bytes, Input, Reason};
use super::process::ProcessMark;
use super::reader::Reader;
use super::schema::{self, Table};
use super::writer::Writer;
use crate::error::Result;
use crate::types::SnapshotId;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How a snapshot was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountHow {
    /// By the kernel alone.
    Kernel,
    /// By a FUSE server.
    Fuse,
    /// By binding a directory.
    Bind,
}

/// A mount that has been made.
#[derive(Debug, Clone, Copy)]
pub struct NewMount<'a> {
    /// What is mounted.
    pub id: SnapshotId,
    /// Where.
    pub target: &'a Path,
    /// The process that serves it.
    pub server: Option<ProcessMark>,
    /// The kernel's number of the mount.
    pub mount_id: u64,
    /// The inode of the mount namespace in which it can be seen.
    pub namespace: u64,
    /// The boot of the machine in which it was mounted: no mount outlives one.
    pub boot_id: [u8; 16],
    /// The user who mounted it.
    pub uid: u32,
    /// How.
    pub how: MountHow,
}

/// A mount as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRow {
    /// What is mounted.
    pub id: SnapshotId,
    /// Which of its mounts.
    pub row: u64,
    /// Where.
    pub target: PathBuf,
    /// The process that serves it.
    pub server: Option<ProcessMark>,
    /// The kernel's number of the mount.
    pub mount_id: u64,
    /// The inode of the mount namespace in which it can be seen.
    pub namespace: u64,
    /// The boot of the machine in which it was mounted: no mount outlives one.
    pub boot_id: [u8; 16],
    /// The user who mounted it.
    pub uid: u32,
    /// How.
    pub how: MountHow,
}

impl MountRow {
    const VERSION: u8 = 1;

    pub(super) fn key(id: SnapshotId, row: u64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&schema::id_key(id));
        key[8..].copy_from_slice(&row.to_be_bytes());
        key
    }

    fn encode(&self) -> Vec<u8> {
        let mut row = Bytes::version(Self::VERSION);
        row.u8(match self.how {
            MountHow::Kernel => 1,
            MountHow::Fuse => 2,
            MountHow::Bind => 3,
        });
        row.u64(self.mount_id)
            .u64(self.namespace)
            .raw(&self.boot_id)
            .u32(self.uid)
            .bytes(self.target.as_os_str().as_bytes());
        row.u8(u8::from(self.server.is_some()));
        if let Some(server) = &self.server {
            server.encode(&mut row);
        }
        row.finish()
    }

    pub(super) fn decode(key: &[u8], value: &[u8]) -> std::result::Result<Self, Reason> {
        let mut at = Input::new(key);
        let (id, row) = (SnapshotId(at.u64()?), at.u64()?);
        at.end()?;
        let mut input = Input::new(value);
        if input.u8()? != Self::VERSION {
            return Err("its version is unknown");
        }
        let how = match input.u8()? {
            1 => MountHow::Kernel,
            2 => MountHow::Fuse,
            3 => MountHow::Bind,
            _ => return Err("it says no way of mounting"),
        };
        let (mount_id, namespace) = (input.u64()?, input.u64()?);
        let (boot_id, uid) = (input.array()?, input.u32()?);
        let target = PathBuf::from(OsStr::from_bytes(input.bytes()?));
        let server = if input.flag()? { Some(ProcessMark::decode(&mut input)?) } else { None };
        input.end()?;
        Ok(Self { id, row, target, server, mount_id, namespace, boot_id, uid, how })
    }
}

impl Reader<'_> {
    /// The mounts of a snapshot.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn mounts_of(&self, id: SnapshotId) -> Result<Vec<MountRow>> {
        self.mount_rows(&schema::id_key(id))
    }

    /// All mounts, in the order of snapshots.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn all_mounts(&self) -> Result<Vec<MountRow>> {
        self.mount_rows(&[])
    }

    fn mount_rows(&self, prefix: &[u8]) -> Result<Vec<MountRow>> {
        let mut rows = Vec::new();
        self.scan_prefix(Table::Mount, prefix, &mut |key, value| {
            rows.push(MountRow::decode(key, value).map_err(|r| self.corrupt("mounts", r))?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }
}

impl Writer<'_> {
    /// Notes a mount.
    ///
    /// # Errors
    /// `NotFound` without the snapshot.
    pub fn add_mount(&mut self, new: &NewMount<'_>) -> Result<MountRow> {
        self.record_that_exists(new.id)?;
        let NewMount { id, target, server, mount_id, namespace, boot_id, uid, how } = *new;
        let row = self.mounts_of(id)?.last().map_or(0, |last| last.row.saturating_add(1));
        let row =
            MountRow { id, row, target: target.to_owned(), server, mount_id, namespace, boot_id, uid, how };
        self.put(Table::Mount, &MountRow::key(id, row.row), &row.encode())?;
        Ok(row)
    }

    /// Forgets a mount; false if it is not noted as it was read, be it that its number now means another.
    ///
    /// # Errors
    /// Those of the database.
    pub fn remove_mount(&mut self, mount: &MountRow) -> Result<bool> {
        let key = MountRow::key(mount.id, mount.row);
        if self.get(Table::Mount, &key)? != Some(&mount.encode()) {
            return Ok(false);
        }
        self.frees();
        self.delete(Table::Mount, &key)
    }

    /// Forgets all mounts of a snapshot that is being removed.
    pub(super) fn remove_mounts(&mut self, id: SnapshotId) -> Result<()> {
        for mount in self.mounts_of(id)? {
            self.remove_mount(&mount)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_back_and_never_half() {
        let server = ProcessMark { pid: 1, start_time: 2, boot_id: [3; 16], pid_namespace: 4 };
        for (server, how) in
            [(Some(server), MountHow::Fuse), (None, MountHow::Kernel), (None, MountHow::Bind)]
        {
            let row = MountRow {
                id: SnapshotId(1),
                row: 2,
                target: PathBuf::from(OsStr::from_bytes(b"/m\xff")),
                server,
                mount_id: u64::MAX,
                namespace: 3,
                boot_id: [5; 16],
                uid: 1000,
                how,
            };
            let (key, value) = (MountRow::key(row.id, row.row), row.encode());
            for end in 0..value.len() {
                assert!(MountRow::decode(&key, &value[..end]).is_err(), "cut at {end}");
            }
            assert!(MountRow::decode(&key[..15], &value).is_err());
            assert_eq!(MountRow::decode(&key, &value), Ok(row));
        }
    }
}

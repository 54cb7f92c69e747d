//! How much does the store hold? Figures that cost the same however much it is.

use super::Snapshotter;
use crate::error::{Error, Result};
use std::fs::File;
use std::os::fd::AsFd;

const OPERATION: &str = "figures";

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Snapshots of all realms.
    pub snapshots: u64,
    /// Bytes that the rows may take before the file of the store grows.
    pub map_bytes: u64,
    /// Bytes of that which were ever used.
    pub used_bytes: u64,
    /// Bytes that this user may still write on the file system of the store.
    pub available_bytes: u64,
}

impl Snapshotter {
    /// How much the store holds now.
    ///
    /// # Errors
    /// `Unavailable` once it is closed; those of the disk.
    pub fn figures(&self) -> Result<Figures> {
        let snapshots = self.store.read(OPERATION, |reader| reader.snapshot_count())?;
        let size = self.store.size()?;
        let root = self.layout.root();
        let disk = File::open(root).map_err(|e| Error::io(OPERATION, root.display().to_string(), e))?;
        let disk = plywood_fuse::sys::stat::stat_fs(disk.as_fd())
            .map_err(|e| Error::fuse(OPERATION, root.display().to_string(), e))?;
        Ok(Figures {
            snapshots,
            map_bytes: size.map_bytes,
            used_bytes: size.used_bytes,
            available_bytes: disk.blocks_available.saturating_mul(u64::from(disk.fragment_size)),
        })
    }
}

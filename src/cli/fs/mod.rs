//! Files of a snapshot without a mount.
//!
//! [`open`] chooses how a snapshot is seen: one that is a single directory as that directory, as a mount of it would
//! show it; any other as the stack of its layers. Both are [`files::Files`], as is this machine, and [`copy`] copies
//! from any to any.

pub mod copy;
pub mod files;
pub mod place;
pub mod plain;
pub mod stack;
#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{LayerPaths, Snapshotter};
use crate::store::INCOMPLETE_LABEL;
use crate::types::{SnapshotKind, quoted};
use files::Files;
use plain::Plain;
use stack::Stack;

/// What is to be done to the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To look at them.
    Read,
    /// To change them.
    Write,
}

/// The files of a snapshot.
///
/// # Errors
/// `NotFound`; to write, `FailedPrecondition` unless it is active, and `Busy` while it is mounted; those of the disk.
pub fn open(
    snapshotter: &Snapshotter,
    operation: &'static str,
    key: &str,
    purpose: Purpose,
) -> Result<Box<dyn Files>> {
    let info = snapshotter.stat(key).map_err(|e| e.during(operation, quoted(key)))?;
    let kind = info.kind;
    if purpose == Purpose::Write && info.labels.contains_key(INCOMPLETE_LABEL) {
        let cause = "a layer is being applied to it, or was not applied whole: wait for that, or remove it";
        return Err(Error::new(ErrorKind::FailedPrecondition, operation, quoted(key), cause));
    }
    if purpose == Purpose::Write && kind != SnapshotKind::Active {
        let cause = format!(
            "it is {}, and only active snapshots can be changed: prepare one on top of it",
            match kind {
                SnapshotKind::View => "a view",
                SnapshotKind::Active | SnapshotKind::Committed => "committed",
            }
        );
        return Err(Error::new(ErrorKind::FailedPrecondition, operation, quoted(key), cause));
    }
    let layers = snapshotter.layers(key)?;
    of_layers(&layers, purpose).map_err(|e| {
        let busy = e.errno() == libc::EBUSY;
        let error = Error::fuse(operation, quoted(key), e);
        if busy {
            let cause = "it is mounted: change it there, or unmount it first";
            return Error::new(ErrorKind::Busy, operation, quoted(key), cause);
        }
        error
    })
}

fn of_layers(layers: &LayerPaths, purpose: Purpose) -> plywood_fuse::error::Result<Box<dyn Files>> {
    match (layers.lowers.as_slice(), &layers.upper, purpose) {
        ([only], None, _) => Ok(Box::new(Plain::below(only)?)),
        (lowers, Some((upper, work)), Purpose::Write) => Ok(Box::new(Stack::writable(lowers, upper, work)?)),
        (lowers, Some((upper, _)), Purpose::Read) => {
            let all: Vec<_> = std::iter::once(upper).chain(lowers).cloned().collect();
            Ok(Box::new(Stack::read_only(&all)?))
        }
        (lowers, None, _) => Ok(Box::new(Stack::read_only(lowers)?)),
    }
}

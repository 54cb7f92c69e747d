//! What a directory tree occupies: the usage of a snapshot.
//!
//! Every inode counts once, directories and the root included, with the blocks that the disk gave it. Symlinks are
//! not followed and mounts are not entered. The tree may change meanwhile: what vanishes is not counted.

use super::walk::{self, Found, Step, Visitor};
use super::{Progress, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Usage;
use plywood_fuse::sys;
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::types::Kind;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const OPERATION: &str = "measure";

/// A unit of `st_blocks`, in bytes, whatever the disk has.
const BLOCK_BYTES: u64 = 512;

/// How often a tree is measured whose directories move while that is done.
const TRIES: u32 = 4;

/// Measures the tree below the directory `root`.
///
/// # Errors
/// `NotFound` if it is not there; `Cancelled`; `Aborted` if its directories do not stop moving; those of the disk.
pub fn measure(root: &Path, progress: &dyn Progress) -> Result<Usage> {
    let mut tries = 1;
    loop {
        match measure_once(root, progress) {
            Err(e) if e.kind() == ErrorKind::Aborted && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

fn measure_once(root: &Path, progress: &dyn Progress) -> Result<Usage> {
    let failed = |e| Error::fuse(OPERATION, root.display().to_string(), e);
    let base = sys::open::open_root(root).map_err(failed)?;
    let stat = sys::stat::stat(sys::Place::Fd(base.as_fd())).map_err(failed)?;
    let (usage, seen) = (Usage::default(), HashSet::new());
    let mut counter = Counter { usage, seen, devices: vec![stat.dev], progress };
    counter.count(&stat);
    match walk::open_dir(base.as_fd(), b".") {
        Ok(fd) => {
            walk::walk(fd, &mut counter).map_err(|e| e.during(OPERATION, root.display().to_string()))?
        }
        Err(e) if e.is_denied() => tracing::warn!(path = %root.display(), "measure: it cannot be listed"),
        Err(e) => return Err(failed(e)),
    }
    Ok(counter.usage)
}

struct Counter<'a> {
    usage: Usage,
    /// Inodes with more than one name, by device and number.
    seen: HashSet<(u64, u64)>,
    /// The devices of the directories on the way down: those of subvolumes differ.
    devices: Vec<u64>,
    progress: &'a dyn Progress,
}

impl Counter<'_> {
    fn count(&mut self, stat: &Stat) {
        let has_more_names = stat.nlink > 1 && stat.kind() != Kind::Dir;
        if has_more_names && !self.seen.insert((stat.dev, stat.ino)) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.size_bytes += stat.blocks * BLOCK_BYTES;
    }
}

impl Visitor for Counter<'_> {
    fn entry(&mut self, found: &Found<'_>) -> Result<Step> {
        go_on(self.progress, OPERATION)?;
        if found.kind == Some(Kind::Dir) {
            // Counted when it is open: at a mount point its name means something else.
            return Ok(Step::Enter);
        }
        let stat = match sys::stat::stat(found.place()) {
            Ok(stat) => stat,
            Err(e) if e.is_absent() => return Ok(Step::Next),
            Err(e) => return Err(Error::fuse(OPERATION, found.path().display().to_string(), e)),
        };
        if stat.kind() == Kind::Dir {
            return Ok(Step::Enter);
        }
        if self.devices.last() == Some(&stat.dev) {
            self.count(&stat);
        }
        Ok(Step::Next)
    }

    fn open(&mut self, found: &Found<'_>) -> Result<Option<OwnedFd>> {
        let failed = |e| Error::fuse(OPERATION, found.path().display().to_string(), e);
        match walk::open_dir(found.dir, found.name) {
            Ok(fd) => {
                let stat = sys::stat::stat(sys::Place::Fd(fd.as_fd())).map_err(failed)?;
                self.count(&stat);
                self.devices.push(stat.dev);
                Ok(Some(fd))
            }
            Err(e) if walk::is_gone(&e) || e.is_cross_device() => Ok(None),
            // A user without privilege can make a directory that he cannot list. It counts, and what is in it is
            // known to nobody but root: no reason to refuse a commit.
            Err(e) if e.is_denied() => {
                if let Ok(stat) = sys::stat::stat(found.place()) {
                    self.count(&stat);
                }
                tracing::warn!(path = %found.path().display(), "measure: it cannot be listed");
                Ok(None)
            }
            Err(e) => Err(failed(e)),
        }
    }

    fn leave(&mut self, _: &Found<'_>) -> Result<()> {
        self.devices.pop();
        Ok(())
    }
}

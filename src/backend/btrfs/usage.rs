//! What a snapshot occupies beyond its parent, told without quotas: both trees are walked side by side.
//!
//! An entry counts if its name is not in the parent, or if it is another file there or has changed since. A file
//! that has its inode, its times, size, owner and mode from the parent is not looked at; a directory has changed if
//! its owner or mode has, since its times follow from its entries. Each inode counts once, with all its blocks, even
//! where it shares extents with the parent: which of them only one snapshot uses, the disk does not tell.
//!
//! Subvolumes within count, since they lie on the same disk; other file systems do not. Nothing is held open but the
//! two directories that are being compared.

use crate::backend::{Progress, go_on};
use crate::error::{Error, Result};
use crate::sys::btrfs::open_within;
use crate::types::Usage;
use plywood_fuse::sys::stat::{Stat, stat};
use plywood_fuse::sys::{Place, dir};
use plywood_fuse::types::Kind;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A directory that is still to be read, relative to the root.
struct Pending {
    path: Vec<u8>,
    parent: InParent,
}

/// Whether the parent has a directory of that name too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InParent {
    Present,
    Absent,
}

/// What is counted so far.
#[derive(Default)]
struct Count {
    usage: Usage,
    /// Device and inode of what may come again under another name.
    seen: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let once = stat.nlink < 2 || stat.kind() == Kind::Dir;
        if once || self.seen.insert((stat.dev, stat.ino)) {
            self.usage.inodes += 1;
            self.usage.size_bytes += stat.blocks * 512;
        }
    }
}

/// Measures what of the tree below `root` differs from the tree below `parent`, whose snapshot it is.
///
/// # Errors
/// `Cancelled`; those of the disk. What vanishes while it is being read is no error.
pub fn measure_against(
    root: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    progress: &dyn Progress,
) -> Result<Usage> {
    let failed = |path: &[u8]| {
        let subject = format!("{:?}", String::from_utf8_lossy(path));
        move |e| Error::fuse("measure", subject, e)
    };
    let mut count = Count::default();
    let own = stat(Place::Fd(root)).map_err(failed(b"."))?;
    if changed(&own, &stat(Place::Fd(parent)).map_err(failed(b"."))?) {
        count.add(&own);
    }
    let mut pending = vec![Pending { path: Vec::new(), parent: InParent::Present }];
    while let Some(Pending { path, parent: in_parent }) = pending.pop() {
        go_on(progress, "measure")?;
        let Some(here) = open(root, &path).map_err(failed(&path))? else { continue };
        let there = match in_parent {
            InParent::Present => open(parent, &path).map_err(failed(&path))?,
            InParent::Absent => None,
        };
        let device = stat(Place::Fd(here.as_fd())).map_err(failed(&path))?.dev;
        for name in names(here.as_fd()).map_err(failed(&path))? {
            go_on(progress, "measure")?;
            let own = match stat(Place::At(here.as_fd(), &name)) {
                // A directory can be listed and yet keep from its owner what is behind the names.
                Err(e) if e.is_absent() || e.is_denied() => continue,
                other => other.map_err(failed(&name))?,
            };
            // Subvolumes have devices of their own, as other file systems have.
            if own.dev != device && !is_same_mount(here.as_fd(), &name) {
                continue;
            }
            let beside = match there.as_ref().map(|there| stat(Place::At(there.as_fd(), &name))) {
                Some(Err(e)) if !e.is_absent() && !e.is_denied() => return Err(failed(&name)(e)),
                beside => beside.and_then(std::result::Result::ok),
            };
            if beside.is_none_or(|beside| changed(&own, &beside)) {
                count.add(&own);
            }
            if own.kind() == Kind::Dir {
                let also = beside.is_some_and(|beside| beside.kind() == Kind::Dir);
                let parent = if also { InParent::Present } else { InParent::Absent };
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(Pending { path: [&path, separator, &name].concat(), parent });
            }
        }
    }
    Ok(count.usage)
}

/// True if nothing is mounted on the directory `name`; false for anything else.
fn is_same_mount(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    match open_within(dir, name) {
        Ok(_) => true,
        Err(e) => e.is_denied(),
    }
}

/// Opens a directory to list it; `None` if it is gone, is none any more, belongs to another file system, or if its
/// owner locked himself out: it counts, and what is in it only root can know, which is no reason to fail.
fn open(root: BorrowedFd<'_>, path: &[u8]) -> plywood_fuse::error::Result<Option<OwnedFd>> {
    match open_within(root, path) {
        Ok(opened) => Ok(Some(opened)),
        Err(e) if e.is_absent() || matches!(e.errno(), libc::EBUSY | libc::ELOOP) => Ok(None),
        Err(e) if e.is_denied() => {
            tracing::warn!(path = %String::from_utf8_lossy(path), "measure: it cannot be listed");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn names(fd: BorrowedFd<'_>) -> plywood_fuse::error::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    dir::list(fd, usize::MAX, &mut |entry| names.push(entry.name.to_vec()))?;
    Ok(names)
}

/// True unless both are the same file in the same state. A snapshot keeps inode numbers and all times.
fn changed(own: &Stat, parent: &Stat) -> bool {
    let owner = |s: &Stat| (s.mode, s.uid, s.gid);
    let state = |s: &Stat| (s.ino, s.size, s.mtime, s.ctime, s.rdev);
    owner(own) != owner(parent) || (own.kind() != Kind::Dir && state(own) != state(parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::types::Time;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_file_has_changed_if_any_of_its_attributes_has_and_a_directory_by_owner_and_mode() {
        let file = Stat { mode: libc::S_IFREG | 0o644, ino: 300, size: 5, ..Stat::default() };
        let later = Time { secs: 1, nanos: 1 };
        assert!(!changed(&file, &file));
        for other in [
            Stat { mode: libc::S_IFREG | 0o600, ..file },
            Stat { mode: libc::S_IFLNK | 0o644, ..file },
            Stat { uid: 1, ..file },
            Stat { gid: 1, ..file },
            Stat { size: 6, ..file },
            Stat { ino: 301, ..file },
            Stat { mtime: later, ..file },
            Stat { ctime: later, ..file },
        ] {
            assert!(changed(&other, &file), "{other:?}");
        }
        let dir = Stat { mode: libc::S_IFDIR | 0o755, ino: 300, ..Stat::default() };
        assert!(!changed(&Stat { ino: 301, mtime: later, ctime: later, size: 9, ..dir }, &dir));
        assert!(changed(&Stat { uid: 1, ..dir }, &dir));
        assert!(changed(&Stat { mode: libc::S_IFDIR | 0o700, ..dir }, &dir));
    }

    #[test]
    fn a_caller_that_gives_up_stops_the_walk() {
        let here =
            plywood_fuse::sys::open::open_root(std::path::Path::new("/proc/self")).expect("a directory");
        let cancelled = AtomicBool::new(true);
        let error = measure_against(here.as_fd(), here.as_fd(), &cancelled).expect_err("cancelled");
        assert_eq!(error.kind(), crate::error::ErrorKind::Cancelled);
    }
}

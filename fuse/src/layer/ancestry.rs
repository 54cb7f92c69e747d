//! Where a directory stands: who each directory above it is.
//!
//! Asked once and compared with many others, since a stack can have hundreds of layers. Two paths can lead to one
//! directory, so directories are compared by device and inode, not by name.

use super::source::LayerPath;
use crate::sys::open::DirMode;
use crate::sys::{self, Place};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Device and inode.
type Who = (u64, u64);

/// A directory with all those above it.
pub struct Ancestry {
    absolute: PathBuf,
    who: Who,
    /// The directories above, from the nearest, each with the length of its path in bytes.
    above: Vec<(usize, Who)>,
}

fn who(fd: BorrowedFd<'_>) -> Option<Who> {
    let stat = sys::stat::stat(Place::dir(&fd)).ok()?;
    Some((stat.dev, stat.ino))
}

impl Ancestry {
    /// Looks at a directory and those above it; `None` if it cannot be looked at: that is told by those who need it.
    pub fn of(dir: &Path) -> Option<Ancestry> {
        let absolute = std::fs::canonicalize(dir).ok()?;
        let top = sys::open::open_root(Path::new("/")).ok()?;
        // Without symlinks, each is one request from the top.
        let who = |path: &Path| {
            let rest = path.as_os_str().as_bytes().strip_prefix(b"/")?;
            let place = if rest.is_empty() { Place::dir(&top) } else { Place::At(top.as_fd(), rest) };
            sys::stat::stat(place).ok().map(|stat| (stat.dev, stat.ino))
        };
        let is = who(&absolute)?;
        let lengths = absolute.ancestors().skip(1);
        let above = lengths.filter_map(|dir| Some((dir.as_os_str().len(), who(dir)?))).collect();
        Some(Ancestry { absolute, who: is, above })
    }

    /// Where this directory is below `root`: a path of at least one component without symlinks; `None` if it is
    /// not below it.
    pub fn below(&self, root: BorrowedFd<'_>) -> Option<(LayerPath, OwnedFd)> {
        self.below_this(root, who(root)?)
    }

    /// As [`Ancestry::below`], for a `root` whose device and inode are known.
    pub fn below_this(&self, root: BorrowedFd<'_>, root_is: Who) -> Option<(LayerPath, OwnedFd)> {
        let path = self.absolute.as_os_str().as_bytes();
        let same = self.above.iter().filter(|(_, who)| *who == root_is);
        same.into_iter().find_map(|(length, _)| {
            let rest = &path[*length..];
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            // Another mount can be on the way by name, and none on the way from the root of the layer.
            let fd = sys::open::open_dir_beneath(root, rest, DirMode::Base).ok()?;
            (who(fd.as_fd()) == Some(self.who)).then(|| (rest.into(), fd))
        })
    }
}

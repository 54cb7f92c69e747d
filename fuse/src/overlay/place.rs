//! How a node is reached on disk: the descriptor of an upper directory, the place of a file.

use super::Overlay;
use crate::error::{Error, Result};
use crate::inode::node::{At, DirPart, LowerFile, Node, Whereabouts};
use crate::layer::source::{LayerPath, LayerSource};
use crate::sys::open::DirMode;
use crate::sys::{self, Place};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Answers where it would be a bug that there is none: a file asked for what only directories have.
pub(crate) fn dir_part(node: &Node) -> Result<&DirPart> {
    node.dir.as_deref().ok_or(Error::from_errno(libc::ENOTDIR))
}

impl Overlay {
    /// The descriptor of a directory of the upper layer.
    ///
    /// # Errors
    /// ENOENT if it is not in the upper layer.
    pub(crate) fn upper_dir(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        let upper = self.writable()?;
        if let Some(fd) = upper.dirs.get(&node.ino) {
            return Ok(fd);
        }
        let place = node.place.read();
        if let Some(fd) = place.pinned() {
            return Ok(Arc::clone(fd));
        }
        if place.at != At::Upper {
            return Err(Error::from_errno(libc::ENOENT));
        }
        let open = || match &place.parent {
            None => sys::open::open_dir_at(upper.root(), b".", DirMode::Base),
            Some(parent) => {
                let parent = self.upper_dir(parent)?;
                sys::open::open_dir_at(parent.as_fd(), &place.name, DirMode::Base)
            }
        };
        upper.dirs.get_or_open(&node.ino, open)
    }

    /// Calls `f` with the place of a file of the upper layer, which cannot move meanwhile.
    pub(crate) fn with_upper<T>(&self, node: &Node, f: impl FnOnce(Place<'_>) -> Result<T>) -> Result<T> {
        let place = node.place.read();
        self.with_upper_place(&place, f)
    }

    /// As [`Self::with_upper`], for a caller that holds the place.
    pub(crate) fn with_upper_place<T>(
        &self,
        place: &Whereabouts,
        f: impl FnOnce(Place<'_>) -> Result<T>,
    ) -> Result<T> {
        if let Some(fd) = place.pinned() {
            return f(Place::Fd(fd.as_fd()));
        }
        match &place.parent {
            None => f(Place::At(self.writable()?.root(), b".")),
            Some(parent) => {
                let dir = self.upper_dir(parent)?;
                f(Place::At(dir.as_fd(), &place.name))
            }
        }
    }

    /// The layer, the directory and the name of a file of a lower layer; a directory names itself by an
    /// empty name.
    pub(crate) fn lower_place<'a>(
        &'a self,
        node: &'a Node,
        place: &'a Whereabouts,
    ) -> Result<(&'a dyn LayerSource, &'a LayerPath, &'a [u8])> {
        let stale = || Error::from_errno(libc::ESTALE);
        if let Some(dir) = &node.dir {
            let own = dir.lowers.first().ok_or_else(stale)?;
            return Ok((self.lower(own.layer)?, &own.path, b""));
        }
        let At::Lower(position) = place.at else { return Err(stale()) };
        let parent = place.parent.as_ref().and_then(|p| p.dir.as_deref()).ok_or_else(stale)?;
        let dir = parent.lowers.get(usize::from(position)).ok_or_else(stale)?;
        Ok((self.lower(dir.layer)?, &dir.path, &place.name))
    }

    /// A lower layer by its number.
    pub(crate) fn lower(&self, layer: u16) -> Result<&dyn LayerSource> {
        self.lowers.get(usize::from(layer)).map(AsRef::as_ref).ok_or(Error::from_errno(libc::ESTALE))
    }

    /// Where the file of a lower layer is, as a value that outlives the node.
    pub(crate) fn lower_file(&self, node: &Node, place: &Whereabouts) -> Result<LowerFile> {
        let At::Lower(position) = place.at else { return Err(Error::from_errno(libc::ESTALE)) };
        let parent = place.parent.as_ref().and_then(|p| p.dir.as_deref());
        let dir = parent.and_then(|p| p.lowers.get(usize::from(position)));
        match dir {
            Some(dir) if !node.is_dir() => {
                Ok(LowerFile { layer: dir.layer, dir: Arc::clone(&dir.path), name: place.name.clone() })
            }
            _ => Err(Error::from_errno(libc::ESTALE)),
        }
    }
}

//! Listing a directory, with or without attributes.
//!
//! A name that cannot be looked up, since its data or what it was renamed from is missing, is listed all the
//! same: it is there, and only who asks for more is told why there is none.

use super::Overlay;
use super::listing::{Listed, Only};
use super::lookup::Resolved;
use super::place::dir_part;
use crate::error::{Error, Result};
use crate::inode::node::{At, DirState, LowerDir, Node};
use crate::layer::entry::{Found, LayerEntry};
use crate::layer::read;
use crate::layer::source::child_path;
use crate::types::{Attr, Ino, Kind};
use std::os::fd::AsFd;
use std::sync::Arc;

/// One entry of a directory, as a reader gets it.
pub struct Entry<'a> {
    /// Where to continue after this entry.
    pub position: u64,
    /// The name.
    pub name: &'a [u8],
    /// The inode, which the outside knows once more if the reader keeps it, and its attributes.
    pub found: std::result::Result<(Arc<Node>, Attr), Broken>,
}

/// A name that cannot be looked up.
pub struct Broken {
    /// A number that no inode has.
    pub ino: Ino,
    /// A directory or a file, as its layer lists it.
    pub kind: Kind,
    /// Why.
    pub error: Error,
}

/// What a reader does with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was taken; the outside knows the inode now, if there is one.
    Kept,
    /// It was looked at only; the outside does not know the inode by it.
    Seen,
    /// There is no room for it; nothing follows.
    Full,
}

impl Overlay {
    /// Gives the entries of a directory after a position (0: all) to `each`, with nodes and attributes.
    ///
    /// `.` and `..` are not among them. An entry that vanishes meanwhile is left out.
    ///
    /// # Errors
    /// ENOTDIR and those of the disk, for the directory itself.
    ///
    /// # Source
    /// `ovl_iterate` of the kernel does not look a name up, or goes on if that fails.
    pub fn read_dir(
        &self,
        dir: &Arc<Node>,
        after: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Taken,
    ) -> Result<()> {
        let part = dir_part(dir)?;
        let mut new = None;
        loop {
            {
                let state = part.state.read();
                if state.removed {
                    return Ok(());
                }
                if state.listing.is_some() {
                    let ended = self.give_entries(dir, &state, after, each);
                    drop(state);
                    if ended {
                        // The end was reached without an entry: nobody needs the names any more.
                        part.state.write().listing = None;
                        self.forget_listing(dir);
                    } else {
                        self.note_listing(dir, new);
                    }
                    return Ok(());
                }
            }
            let mut state = part.state.write();
            if state.listing.is_none() && !state.removed {
                let listing = self.read_listing(dir, &state)?;
                new = Some(listing.len());
                state.listing = Some(listing);
            }
        }
    }

    /// Gives entries until the reader is full; true if there was none left to give.
    fn give_entries(
        &self,
        dir: &Arc<Node>,
        state: &DirState,
        after: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Taken,
    ) -> bool {
        let Some(listing) = &state.listing else { return true };
        let mut given = false;
        for (position, listed) in listing.after(after) {
            given = true;
            let found = match self.node_of_listed(dir, state, listed) {
                Err(e) if e.is_absent() => continue,
                Err(error) => Err(self.broken(dir, listed, error)),
                Ok(found) => Ok(found),
            };
            let ino = found.as_ref().ok().map(|(node, _)| node.ino);
            let taken = each(Entry { position, name: &listed.name, found });
            if let (Taken::Seen | Taken::Full, Some(ino)) = (taken, ino) {
                self.forget(ino, 1);
            }
            if taken == Taken::Full {
                return false;
            }
        }
        !given
    }

    fn node_of_listed(
        &self,
        dir: &Arc<Node>,
        state: &DirState,
        listed: &Listed,
    ) -> Result<(Arc<Node>, Attr)> {
        let resolved = self.resolve_listed(dir, state, &listed.name, listed.only)?;
        let node = self.node_of(dir, &listed.name, &resolved);
        match self.attr_of(&node, &resolved) {
            Ok(attr) => Ok((node, attr)),
            Err(e) => {
                self.put(node);
                Err(e)
            }
        }
    }

    fn broken(&self, dir: &Node, listed: &Listed, error: Error) -> Broken {
        let ino = self.numbers.of_nothing(dir.ino, self.name_hash(&listed.name));
        Broken { ino, kind: if listed.is_dir { Kind::Dir } else { Kind::File }, error }
    }

    /// Resolves a name of which the listing knows where it is; then one layer is asked instead of all.
    fn resolve_listed(
        &self,
        dir: &Node,
        state: &DirState,
        name: &[u8],
        only: Option<Only>,
    ) -> Result<Box<Resolved>> {
        let Some(only) = only else { return self.resolve_present(dir, state, name) };
        let absent = || Error::from_errno(libc::ENOENT);
        let (entry, at) = match only {
            Only::Upper => {
                let upper = state.upper.as_ref().ok_or_else(absent)?;
                let fd = self.upper_dir(dir)?;
                let overrides = self.writable()?.overrides();
                (read::read_entry(fd.as_fd(), upper.context, overrides, name)?, At::Upper)
            }
            Only::Lower(position) => {
                let lower = dir_part(dir)?.lowers.get(usize::from(position)).ok_or_else(absent)?;
                let layer = self.lower(lower.layer)?;
                (layer.entry(&lower.path, lower.context, name)?, At::Lower(position))
            }
        };
        let LayerEntry::Found(found) = entry else { return self.resolve_present(dir, state, name) };
        if self.needs_more_layers(&found) {
            return self.resolve_present(dir, state, name);
        }
        let mut lowers = Vec::new();
        if let (Only::Lower(position), Kind::Dir) = (only, found.kind()) {
            let lower = dir_part(dir)?.lowers.get(usize::from(position)).ok_or_else(absent)?;
            let path = child_path(&lower.path, name);
            lowers.push(LowerDir { path, layer: lower.layer, context: found.marks.context() });
        }
        Ok(Box::new(Resolved { found: *found, at, lowers, data: None }))
    }

    /// True for what one layer alone does not decide.
    fn needs_more_layers(&self, found: &Found) -> bool {
        match found.kind() {
            Kind::Dir => found.marks.redirect.is_some(),
            Kind::File => found.marks.metacopy,
            _ => false,
        }
    }

    /// All names of a directory with their attributes, for programs; no inode is remembered.
    ///
    /// # Errors
    /// As [`Overlay::read_dir`]; of a name alone if that one cannot be looked up.
    pub fn names(&self, dir: &Arc<Node>) -> Result<Vec<(Vec<u8>, Result<Attr>)>> {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let before = names.len();
            self.read_dir(dir, after, &mut |entry| {
                after = entry.position;
                let attr = entry.found.map(|(_, attr)| attr).map_err(|broken| broken.error);
                names.push((entry.name.to_vec(), attr));
                Taken::Seen
            })?;
            if names.len() == before {
                return Ok(names);
            }
        }
    }
}

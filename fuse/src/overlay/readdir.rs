//! Listing a directory, with or without attributes.

use super::Overlay;
use super::listing::Only;
use super::lookup::Resolved;
use super::place::dir_part;
use crate::error::{Error, Result};
use crate::inode::node::{At, DirState, LowerDir, Node};
use crate::layer::entry::{Found, LayerEntry};
use crate::layer::read;
use crate::layer::source::child_path;
use crate::types::{Attr, Kind};
use std::os::fd::AsFd;
use std::sync::Arc;

/// One entry of a directory, as a reader gets it.
pub struct Entry<'a> {
    /// Where to continue after this entry.
    pub position: u64,
    /// The name.
    pub name: &'a [u8],
    /// The inode; the outside knows it once more if the reader keeps it.
    pub node: Arc<Node>,
    /// Its attributes.
    pub attr: Attr,
}

/// What a reader does with an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// It was taken; the outside knows the inode now.
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
    /// ENOTDIR and those of the disk.
    pub fn read_dir(
        &self,
        dir: &Arc<Node>,
        after: u64,
        each: &mut dyn FnMut(Entry<'_>) -> Taken,
    ) -> Result<()> {
        let part = dir_part(dir)?;
        loop {
            {
                let state = part.state.read();
                if state.removed {
                    return Ok(());
                }
                if state.listing.is_some() {
                    let ended = self.give_entries(dir, &state, after, each)?;
                    drop(state);
                    if ended {
                        // The end was reached without an entry: nobody needs the names any more.
                        part.state.write().listing = None;
                    }
                    return Ok(());
                }
            }
            let mut state = part.state.write();
            if state.listing.is_none() && !state.removed {
                state.listing = Some(self.read_listing(dir, &state)?);
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
    ) -> Result<bool> {
        let Some(listing) = &state.listing else { return Ok(true) };
        let mut given = false;
        let mut kept = false;
        for (position, listed) in listing.after(after) {
            given = true;
            let resolved = match self.resolve_listed(dir, state, &listed.name, listed.only) {
                Ok(resolved) => resolved,
                Err(e) if e.is_absent() => continue,
                // What was kept must be answered, or nobody would ever forget it; the next call says why.
                Err(_) if kept => return Ok(false),
                Err(e) => return Err(e),
            };
            let node = self.node_of(dir, &listed.name, &resolved);
            let ino = node.ino;
            let taken = match self.attr_of(&node, &resolved) {
                Ok(attr) => each(Entry { position, name: &listed.name, node, attr }),
                Err(e) => {
                    self.forget_again(node);
                    return if kept { Ok(false) } else { Err(e) };
                }
            };
            match taken {
                Taken::Kept => kept = true,
                Taken::Seen => self.forget(ino, 1),
                Taken::Full => {
                    self.forget(ino, 1);
                    return Ok(false);
                }
            }
        }
        Ok(!given)
    }

    fn forget_again(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        self.forget(ino, 1);
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

    /// All names of a directory with their kinds, for programs; no inode is remembered.
    ///
    /// # Errors
    /// As [`Overlay::read_dir`].
    pub fn names(&self, dir: &Arc<Node>) -> Result<Vec<(Vec<u8>, Attr)>> {
        let mut names = Vec::new();
        let mut after = 0;
        loop {
            let before = names.len();
            self.read_dir(dir, after, &mut |entry| {
                after = entry.position;
                names.push((entry.name.to_vec(), entry.attr));
                drop(entry.node);
                Taken::Seen
            })?;
            if names.len() == before {
                return Ok(names);
            }
        }
    }
}

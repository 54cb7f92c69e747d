//! Removing names.
//!
//! What comes from a lower layer is hidden by a whiteout and never copied. What is in the upper layer goes,
//! and leaves a whiteout only if a layer below shows something under that name. An inode that loses its last
//! name while the outside still knows it is kept by a descriptor.

use super::lookup::{Layers, Resolution, Resolved};
use super::place::dir_part;
use super::{Counters, Overlay};
use crate::copy_up::open_pin;
use crate::error::{Error, Result};
use crate::inode::node::{At, DirState, Node};
use crate::layer::entry::LayerEntry;
use crate::sys;
use crate::types::{Kind, check_name};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What is expected under the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// Anything but a directory, as for `unlink(2)`.
    NotDir,
    /// An empty directory, as for `rmdir(2)`.
    Dir,
}

impl Overlay {
    /// Removes a name.
    ///
    /// # Errors
    /// ENOENT, EISDIR or ENOTDIR if it is not what is expected, ENOTEMPTY, EROFS, and those of the disk.
    pub fn remove(&self, dir: &Arc<Node>, name: &[u8], victim: Victim) -> Result<()> {
        self.remove_as(dir, name, |found| {
            expect(found, victim)?;
            Ok(if victim == Victim::Dir { Extent::EmptyDir } else { Extent::File })
        })
    }

    /// Removes a name with all below it. A directory goes by one rename, or by one whiteout if it is in lower layers,
    /// however much there is in it; what it had in the upper layer is deleted then.
    ///
    /// For those who have the tree to themselves: no inode below the name may be known to the outside. Links that a lower
    /// file loses so are still counted.
    ///
    /// # Errors
    /// ENOENT; EBUSY if an inode below it is known; EROFS, and those of the disk.
    pub fn remove_tree(&self, dir: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.remove_as(dir, name, |found| Ok(if found == Kind::Dir { Extent::Tree } else { Extent::File }))
    }

    fn remove_as(&self, dir: &Arc<Node>, name: &[u8], extent: impl Fn(Kind) -> Result<Extent>) -> Result<()> {
        check_name(name)?;
        self.writable()?;
        let part = dir_part(dir)?;
        self.learn_names(part)?;
        if !dir.is_upper() {
            let state = part.state.read();
            let found = self.resolve_present(dir, &state, name)?;
            extent(found.found.kind())?;
            drop(state);
            self.copy_up_dir(dir)?;
        }
        let mut state = part.state.write();
        let resolved = self.resolve_present(dir, &state, name)?;
        let extent = extent(resolved.found.kind())?;
        let node = self.node_of(dir, name, &resolved);
        let removed = match extent {
            Extent::EmptyDir | Extent::Tree => self.remove_dir(dir, &state, name, &resolved, &node, extent),
            Extent::File => self.remove_file(dir, &state, name, &resolved, &node),
        };
        if removed.is_ok() {
            self.list_gone(&mut state, name);
        }
        drop(state);
        let ino = node.ino;
        drop(node);
        self.forget(ino, 1);
        removed
    }

    /// True if a layer below the upper one shows the name. The caller holds the lock of the directory.
    pub(crate) fn shows_below(&self, dir: &Node, state: &DirState, name: &[u8]) -> Result<bool> {
        if !state.merged {
            return Ok(false);
        }
        match self.resolve(dir, state, name, Layers::OnlyLower) {
            Ok(Resolution::Present(_)) => Ok(true),
            Ok(Resolution::Absent { .. }) => Ok(false),
            // A file whose data is missing is a name all the same.
            Err(e) if e.errno() == libc::EIO => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn remove_file(
        &self,
        dir: &Arc<Node>,
        state: &DirState,
        name: &[u8],
        resolved: &Resolved,
        node: &Arc<Node>,
    ) -> Result<()> {
        let upper = self.writable()?;
        let parent = self.upper_dir(dir)?;
        if resolved.at != At::Upper {
            self.whiteout(parent.as_fd(), name)?;
            self.lose_lower_name(node, dir, name, resolved.found.stat.nlink);
            return Ok(());
        }
        let held = self.pin_before_loss(node, dir, name, parent.as_fd(), resolved.found.stat.nlink)?;
        if self.shows_below(dir, state, name)? {
            upper.replace_by_whiteout(parent.as_fd(), name, node.kind)?;
            Counters::add(&self.counters.whiteouts, 1);
        } else {
            sys::node::unlink(parent.as_fd(), name)?;
        }
        self.lose_upper_name(node, dir, name, resolved.found.stat.nlink, held);
        Ok(())
    }

    fn whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        self.writable()?.make_whiteout(dir, name)?;
        Counters::add(&self.counters.whiteouts, 1);
        Ok(())
    }

    /// A name in a lower layer was hidden. The node goes on under another name that is known; if there is none
    /// it is as one without a name, so that a copy of it does not bring back the one that was removed.
    pub(crate) fn lose_lower_name(&self, node: &Node, dir: &Arc<Node>, name: &[u8], nlink: u32) {
        let mut place = node.place.write();
        let real_ino = place.real_ino;
        let is_main = place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, dir)) && *place.name == *name;
        let hidden = self.hidden_links.add((node.ino, real_ino), nlink);
        let extra = place.extra_mut();
        extra.unlinked |= hidden >= nlink;
        let mut old = Vec::new();
        let gone = extra.aliases.iter().position(|(d, n)| Arc::ptr_eq(d, dir) && **n == *name);
        old.extend(gone.map(|at| extra.aliases.swap_remove(at).0));
        if is_main && !extra.unlinked {
            let mut others = std::mem::take(&mut extra.aliases);
            while let Some((parent, name)) = others.pop() {
                let Some(at) = self.lower_position(&parent, &name, real_ino) else {
                    old.push(parent);
                    continue;
                };
                place.at = At::Lower(at);
                old.extend(place.parent.replace(parent));
                place.name = name;
                place.extra_mut().aliases = others;
                drop(place);
                return;
            }
            place.extra_mut().unlinked = true;
        }
        drop(place);
    }

    /// The lower directory of `dir` in which `name` is the inode with this real number.
    fn lower_position(&self, dir: &Node, name: &[u8], real_ino: u64) -> Option<u16> {
        let lowers = &dir.dir.as_deref()?.lowers;
        let at = lowers.iter().position(|lower| {
            let entry =
                self.lower(lower.layer).and_then(|layer| layer.entry(&lower.path, lower.context, name));
            matches!(entry, Ok(LayerEntry::Found(found)) if found.stat.ino == real_ino)
        });
        u16::try_from(at?).ok()
    }

    /// Keeps an upper inode alive that is about to lose its last name, or the only one that is known.
    ///
    /// One that seems to have other names is only held: they may go at the same time, each under the lock of its
    /// own directory, and [`Self::lose_upper_name`] finds out who took the last.
    pub(crate) fn pin_before_loss(
        &self,
        node: &Arc<Node>,
        dir: &Arc<Node>,
        name: &[u8],
        parent: BorrowedFd<'_>,
        nlink: u32,
    ) -> Result<Option<Arc<OwnedFd>>> {
        // The caller's own knowledge is one; nobody else knows the node if that is all.
        let known = node.nlookup.load(std::sync::atomic::Ordering::Relaxed) > 1;
        let keeps_name = {
            let place = node.place.read();
            let has_other = place
                .extra
                .as_ref()
                .is_some_and(|e| e.aliases.iter().any(|(d, n)| !(Arc::ptr_eq(d, dir) && **n == *name)));
            let is_main = place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, dir)) && *place.name == *name;
            if !known || place.pinned().is_some() {
                return Ok(None);
            }
            nlink > 1 && (has_other || !is_main)
        };
        // A descriptor that can write serves all; one that only reads would not do for a file opened to write.
        let fd = match self.writers.get(&node.ino) {
            Some(fd) => fd,
            None => Arc::new(open_pin(parent, name)?),
        };
        if keeps_name {
            return Ok(Some(fd));
        }
        node.place.write().extra_mut().pinned = Some(fd);
        Ok(None)
    }

    /// A name in the upper layer is gone; `held` is what [`Self::pin_before_loss`] returned.
    pub(crate) fn lose_upper_name(
        &self,
        node: &Node,
        dir: &Arc<Node>,
        name: &[u8],
        nlink: u32,
        held: Option<Arc<OwnedFd>>,
    ) {
        let mut place = node.place.write();
        let is_main = place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, dir)) && *place.name == *name;
        let next = {
            let extra = place.extra_mut();
            extra.aliases.retain(|(d, n)| !(Arc::ptr_eq(d, dir) && **n == *name));
            if nlink <= 1 {
                extra.unlinked = true;
                extra.aliases.clear();
            }
            if is_main { extra.aliases.pop() } else { None }
        };
        let mut old = None;
        if let Some((parent, name)) = next {
            old = place.parent.replace(parent);
            place.name = name;
            if nlink > 1 {
                place.extra_mut().pinned = None;
            }
        }
        if let Some(held) = held
            && sys::stat::stat(sys::Place::Fd(held.as_fd())).is_ok_and(|stat| stat.nlink == 0)
        {
            let extra = place.extra_mut();
            extra.pinned = Some(held);
            extra.unlinked = true;
        }
        drop(place);
        drop(old);
    }

    fn remove_dir(
        &self,
        dir: &Arc<Node>,
        state: &DirState,
        name: &[u8],
        resolved: &Resolved,
        node: &Arc<Node>,
        extent: Extent,
    ) -> Result<()> {
        let upper = self.writable()?;
        let own = dir_part(node)?;
        let mut own_state = own.state.write();
        match extent {
            Extent::Tree if self.knows_below(node) => return Err(Error::from_errno(libc::EBUSY)),
            Extent::EmptyDir if !self.is_empty_dir(node, &own_state)? => {
                return Err(Error::from_errno(libc::ENOTEMPTY));
            }
            _ => {}
        }
        let parent = self.upper_dir(dir)?;
        if resolved.at == At::Upper {
            let fd = self.upper_dir(node)?;
            let below = self.shows_below(dir, state, name)?;
            if below {
                upper.replace_by_whiteout(parent.as_fd(), name, Kind::Dir)?;
                Counters::add(&self.counters.whiteouts, 1);
            } else {
                match sys::node::rmdir(parent.as_fd(), name) {
                    // It still holds whiteouts, or all it held.
                    Err(e) if e.is_not_empty() => upper.remove_tree(parent.as_fd(), name)?,
                    other => other?,
                }
            }
            node.place.write().extra_mut().pinned = Some(fd);
        } else {
            self.whiteout(parent.as_fd(), name)?;
        }
        node.place.write().extra_mut().unlinked = true;
        own_state.removed = true;
        own_state.listing = None;
        upper.dirs.remove(&node.ino);
        Ok(())
    }

    /// True if an inode below a directory is known. The caller holds the lock of the directory.
    fn knows_below(&self, dir: &Arc<Node>) -> bool {
        let is_below = |node: &Node| {
            let mut above = node.place.read().parent.clone();
            while let Some(parent) = above {
                if Arc::ptr_eq(&parent, dir) {
                    return true;
                }
                above = parent.place.read().parent.clone();
            }
            false
        };
        self.table.any(&mut |gone| self.close_all(gone), is_below)
    }
}

/// How much is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extent {
    /// Something that is no directory.
    File,
    /// A directory without entries.
    EmptyDir,
    /// A directory with all below it.
    Tree,
}

fn expect(kind: Kind, victim: Victim) -> Result<()> {
    match (kind, victim) {
        (Kind::Dir, Victim::NotDir) => Err(Error::from_errno(libc::EISDIR)),
        (Kind::Dir, Victim::Dir) => Ok(()),
        (_, Victim::Dir) => Err(Error::from_errno(libc::ENOTDIR)),
        (_, Victim::NotDir) => Ok(()),
    }
}

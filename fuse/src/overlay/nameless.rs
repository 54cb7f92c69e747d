//! Files without a name (O_TMPFILE): made in the work directory, gone when nobody knows them any more.
//!
//! Such a node is as one that lost its last name: a descriptor keeps it. [`Overlay::link`] can give it its first
//! name. A crash leaves nothing, since the disk never had a name for it.

use super::Overlay;
use super::create::Creator;
use super::place::dir_part;
use crate::access::Acl;
use crate::error::Result;
use crate::idmap::Owner;
use crate::inode::node::{At, Extra, Node, Whereabouts};
use crate::inode::table::Same;
use crate::layer::refused::Lossy;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Attr, Kind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

impl Overlay {
    /// Makes a regular file without a name, as if in `dir`: the outside knows it once.
    ///
    /// `perm` are the permission bits the caller asked for, before the umask.
    ///
    /// # Errors
    /// EOPNOTSUPP where the disk has no O_TMPFILE; ENOTDIR, EROFS, and those of the disk.
    pub fn create_nameless(&self, dir: &Arc<Node>, perm: u32, creator: Creator) -> Result<(Arc<Node>, Attr)> {
        dir_part(dir)?;
        let upper = self.writable()?;
        let shown = Owner { uid: creator.uid, gid: creator.gid };
        let mut owner = self.settings.ownership.stored_for_new(shown);
        let above = self.stat(dir)?;
        if above.mode & libc::S_ISGID != 0 {
            owner.gid = above.gid;
        }
        let default = self.inherited_acl(dir)?;
        let (acl, perm) = match &default {
            Some(default) => default.create_masq(perm & 0o7777),
            None => (None, perm & 0o7777 & !creator.umask),
        };
        let fd = sys::open::open_nameless(upper.work(), 0o600)?;
        let place = Place::Fd(fd.as_fd());
        if let Some(value) = acl.as_ref().map(Acl::format) {
            sys::xattr::set(place, c"system.posix_acl_access", &value, SetMode::Any)?;
        }
        let stat = sys::stat::stat(place)?;
        let lossy = if self.settings.ownership.may_lose_owner() { Lossy::Yes } else { Lossy::No };
        upper.settle(place, &stat, owner, perm, lossy)?;
        let node = self.adopt_nameless(dir, fd, stat.dev, stat.ino);
        match self.attributes(&node) {
            Ok(attr) => Ok((node, attr)),
            Err(e) => {
                self.put(node);
                Err(e)
            }
        }
    }

    fn adopt_nameless(&self, dir: &Arc<Node>, fd: OwnedFd, dev: u64, real_ino: u64) -> Arc<Node> {
        let fd = Arc::new(fd);
        let mut number = self.numbers.number(dev, real_ino);
        loop {
            let make = || {
                let extra = Extra { pinned: Some(Arc::clone(&fd)), unlinked: true, ..Extra::default() };
                let place = Whereabouts {
                    parent: Some(Arc::clone(dir)),
                    name: Box::default(),
                    at: At::Upper,
                    real_ino,
                    extra: Some(Box::new(extra)),
                };
                Node::new(number, Kind::File, place, None)
            };
            // Nobody can know it yet: whoever has its number is another inode.
            if let Some(node) = self.table.remember(number, |_| Same::No, make) {
                return node;
            }
            number = self.numbers.alternative(dev, real_ino);
        }
    }
}

//! Attributes: reading them, and changing owner, mode, times and size.

use super::Overlay;
use crate::access::Acl;
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::idmap::{IdMap, Owner};
use crate::inode::node::{At, Node, Whereabouts};
use crate::layer::entry::{DirContext, LayerEntry};
use crate::layer::{marks, read};
use crate::sys::stat::{FsStat, Stat};
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Attr, Kind, SetAttr};
use std::sync::Arc;

/// Whether setuid and setgid bits are taken away on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privileges {
    /// The caller may keep them.
    Keep,
    /// They go: the caller is not privileged, or the owner changes.
    Kill,
}

/// The permission bits that are left when privileges are taken from a file.
///
/// # Source
/// `setattr_should_drop_sgid` of the kernel: setgid without group execution is a mark for locks, and stays.
pub fn without_privileges(perm: u32) -> u32 {
    let keeps_setgid = perm & 0o010 == 0;
    perm & if keeps_setgid { !0o4000 } else { !0o6000 }
}

impl Overlay {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn attributes(&self, node: &Arc<Node>) -> Result<Attr> {
        let stat = self.stat(node)?;
        Ok(self.attr_from(node, &stat))
    }

    /// What the disk says of an inode, overrides applied.
    pub(crate) fn stat(&self, node: &Node) -> Result<Stat> {
        let place = node.place.read();
        let mut stat = match place.at {
            At::Upper => self.with_upper_place(&place, |at| self.stat_upper(node, at))?,
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                let context = match (&node.dir, place.at, &place.parent) {
                    (None, At::Lower(position), Some(parent)) => parent
                        .dir
                        .as_deref()
                        .and_then(|d| d.lowers.get(usize::from(position)))
                        .map_or(DirContext::default(), |d| d.context),
                    _ => DirContext::default(),
                };
                match layer.entry(dir, context, name)? {
                    LayerEntry::Found(found) => found.stat,
                    LayerEntry::Absent | LayerEntry::Whiteout => {
                        return Err(Error::from_errno(libc::ENOENT));
                    }
                }
            }
        };
        if let Some(data) = place.data() {
            let data = data.clone();
            drop(place);
            let context = DirContext::default();
            if let LayerEntry::Found(found) = self.lower(data.layer)?.entry(&data.dir, context, &data.name)? {
                stat.blocks = found.stat.blocks;
            }
        }
        Ok(stat)
    }

    fn stat_upper(&self, node: &Node, at: Place<'_>) -> Result<Stat> {
        let stat = sys::stat::stat(at)?;
        let overrides = self.writable()?.overrides();
        let is_stand_in = stat.kind() != node.kind;
        if overrides.is_none() && !is_stand_in {
            return Ok(stat);
        }
        let context = DirContext { escapes: is_stand_in, ..DirContext::default() };
        match read::judge_at(at, stat, context, overrides)? {
            LayerEntry::Found(found) => Ok(found.stat),
            LayerEntry::Absent | LayerEntry::Whiteout => Ok(stat),
        }
    }

    /// Shows what the disk says as users see it.
    pub(crate) fn attr_from(&self, node: &Node, stat: &Stat) -> Attr {
        let owner = self.settings.ownership.shown(Owner { uid: stat.uid, gid: stat.gid });
        Attr {
            ino: node.ino,
            kind: node.kind,
            perm: stat.mode & 0o7777,
            nlink: self.links_of(node, stat),
            uid: owner.uid,
            gid: owner.gid,
            device: stat.rdev,
            size_bytes: stat.size,
            blocks: stat.blocks,
            block_size: stat.block_size,
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
        }
    }

    /// The number of links: of a merged directory 1, as in the kernel's overlayfs, since nobody counts its
    /// subdirectories; of a lower file without the names that were removed.
    fn links_of(&self, node: &Node, stat: &Stat) -> u32 {
        let place = node.place.read();
        if let Some(dir) = &node.dir {
            let sources = dir.lowers.len() + usize::from(place.at == At::Upper);
            return match sources {
                _ if place.is_unlinked() => 0,
                _ if self.settings.static_nlink => 1,
                1 => stat.nlink,
                _ => 1,
            };
        }
        if place.at == At::Upper || (stat.nlink == 1 && !place.is_unlinked()) {
            return stat.nlink;
        }
        match self.hidden_links.of((node.ino, place.real_ino)) {
            // Not even this one is counted: there is none left.
            0 if place.is_unlinked() => 0,
            hidden => stat.nlink.saturating_sub(hidden).max(1),
        }
    }

    /// Changes attributes and returns the new ones.
    ///
    /// Setuid and setgid bits go when the owner changes, and with [`Privileges::Kill`] when the size does.
    ///
    /// # Errors
    /// EROFS; EINVAL for an id that no mapping has; those of the disk.
    pub fn set_attributes(&self, node: &Arc<Node>, change: &SetAttr, privileges: Privileges) -> Result<Attr> {
        self.writable()?;
        if let Some(size) = change.size_bytes {
            self.truncate(node, size, privileges)?;
        }
        if change.uid.is_some() || change.gid.is_some() || change.perm.is_some() {
            self.copy_up(node, Want::Attributes)?;
            self.set_owner_and_mode(node, change)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.copy_up(node, Want::Attributes)?;
            self.with_upper(node, |at| sys::stat::set_times(at, change.atime, change.mtime))?;
        }
        self.attributes(node)
    }

    /// The ids on disk for those that a caller names; the others stay, even if no mapping has them.
    fn stored_ids(&self, change: &SetAttr) -> Result<(Option<u32>, Option<u32>)> {
        let ownership = &self.settings.ownership;
        let to_disk = |map: &IdMap, shown: Option<u32>| match shown {
            Some(id) => map.to_disk(id).map(Some).ok_or(Error::from_errno(libc::EINVAL)),
            None => Ok(None),
        };
        Ok((to_disk(&ownership.uid_map, change.uid)?, to_disk(&ownership.gid_map, change.gid)?))
    }

    fn set_owner_and_mode(&self, node: &Arc<Node>, change: &SetAttr) -> Result<()> {
        let upper = self.writable()?;
        let chowns = change.uid.is_some() || change.gid.is_some();
        let is_stand_in = node.kind != Kind::File && node.kind != Kind::Dir;
        if chowns {
            self.with_upper(node, |at| self.drop_kept_capability(at))?;
        }
        if upper.overrides().is_some() && self.set_override(node, change)? {
            return self.follow_override(node, change);
        }
        if change.perm.is_some_and(|perm| upper.locks_out(node.kind, perm)) {
            let refused = Error::from_errno(libc::EACCES);
            if self.start_override(node, change, false, refused).is_ok() {
                return self.follow_override(node, change);
            }
        }
        if chowns {
            let (uid, gid) = self.stored_ids(change)?;
            match self.with_upper(node, |at| sys::stat::chown(at, uid, gid)) {
                Ok(()) => {}
                Err(e) if e.is_owner_refused() && self.settings.ownership.may_lose_owner() => {}
                Err(e) if e.is_owner_refused() => {
                    self.start_override(node, change, is_stand_in, e)?;
                    return self.follow_override(node, change);
                }
                Err(e) => return Err(e),
            }
        }
        if let Some(perm) = change.perm {
            self.with_upper(node, |at| sys::stat::chmod(at, perm & 0o7777))?;
        }
        Ok(())
    }

    /// Changes the attribute that overrides owner and mode; false if this file has none.
    fn set_override(&self, node: &Arc<Node>, change: &SetAttr) -> Result<bool> {
        let upper = self.writable()?;
        let Some(name) = upper.overrides() else { return Ok(false) };
        self.with_upper(node, |at| {
            let Some(old) = sys::xattr::get_value(at, name.xattr())? else { return Ok(false) };
            let mut stat = sys::stat::stat(at)?;
            if let Some(over) = crate::idmap::StatOverride::parse(&old) {
                crate::layer::entry::apply_override(&mut stat, &over);
            }
            let (owner, perm) = self.changed(&stat, change)?;
            upper.override_stat(at, &stat, owner, perm)?;
            Ok(true)
        })
    }

    /// Does what the disk does along with a chown or chmod, where it did not see one: capabilities go with the
    /// owner, and the access control list follows the mode.
    fn follow_override(&self, node: &Node, change: &SetAttr) -> Result<()> {
        if !matches!(node.kind, Kind::File | Kind::Dir) {
            return Ok(());
        }
        self.with_upper(node, |at| {
            if change.uid.is_some() || change.gid.is_some() {
                match sys::xattr::remove(at, c"security.capability") {
                    Err(e) if !e.is_no_attribute() && !e.is_denied() => return Err(e),
                    _ => {}
                }
            }
            let name = c"system.posix_acl_access";
            let Some(perm) = change.perm else { return Ok(()) };
            let Some(value) = sys::xattr::get_value(at, name)? else { return Ok(()) };
            let Some(mut list) = Acl::parse(&value)? else { return Ok(()) };
            list.chmod_masq(perm);
            sys::xattr::set(at, name, &list.format(), SetMode::Any)
        })
    }

    /// Owner and mode of a file after a change.
    fn changed(&self, stat: &Stat, change: &SetAttr) -> Result<(Owner, u32)> {
        let (uid, gid) = self.stored_ids(change)?;
        let owner = Owner { uid: uid.unwrap_or(stat.uid), gid: gid.unwrap_or(stat.gid) };
        let chowns = change.uid.is_some() || change.gid.is_some();
        let mut perm = stat.mode & 0o7777;
        if chowns && stat.kind() != Kind::Dir {
            perm = without_privileges(perm);
        }
        Ok((owner, change.perm.unwrap_or(perm) & 0o7777))
    }

    /// The disk refused an owner: from now on it is kept in an attribute.
    fn start_override(
        &self,
        node: &Arc<Node>,
        change: &SetAttr,
        is_stand_in: bool,
        refused: Error,
    ) -> Result<()> {
        let upper = self.writable()?;
        let mut place = node.place.write();
        let new_ino = self.with_upper_place(&place, |at| {
            let mut stat = sys::stat::stat(at)?;
            let has_inode = matches!(stat.kind(), Kind::File | Kind::Dir);
            stat.mode = (stat.mode & 0o7777)
                | if has_inode { stat.mode & libc::S_IFMT } else { node.kind.mode_bits() };
            let (owner, perm) = self.changed(&stat, change)?;
            let answer = match at {
                Place::At(dir, name) if is_stand_in && !has_inode => {
                    upper.replace_by_stand_in(dir, name, &stat, owner, perm)
                }
                _ => upper.override_stat(at, &stat, owner, perm),
            };
            // What cannot be kept elsewhere fails as the disk said.
            answer.map_err(|e| if e.is_denied() || e.is_unsupported() { refused } else { e })?;
            Ok(sys::stat::stat(at)?.ino)
        })?;
        place.real_ino = new_ino;
        Ok(())
    }

    /// Sets the size of a regular file; the data of a lower one that is cut to nothing is not copied.
    pub(crate) fn truncate(&self, node: &Arc<Node>, size: u64, privileges: Privileges) -> Result<()> {
        if node.kind != Kind::File {
            let errno = if node.is_dir() { libc::EISDIR } else { libc::EINVAL };
            return Err(Error::from_errno(errno));
        }
        self.copy_up(node, if size == 0 { Want::Nothing } else { Want::Data })?;
        let fd = self.writer(node)?;
        if size == 0 && node.place.read().name.starts_with(marks::WHITEOUT_PREFIX) {
            // A file that somebody else put into the upper layer would become a whiteout.
            self.mark_literal(self.writable()?, Place::Fd(std::os::fd::AsFd::as_fd(&*fd)))?;
        }
        self.kill_privileges(node, privileges)?;
        self.with_upper(node, |at| self.drop_kept_capability(at))?;
        sys::stat::truncate(std::os::fd::AsFd::as_fd(&*fd), size)
    }

    /// Takes setuid and setgid bits from a file that is about to be written; true if there were any. A setgid bit that
    /// nobody can run with stays where the writer `is_member` of the group.
    ///
    /// # Errors
    /// As those of a write.
    ///
    /// # Source
    /// `setattr_should_drop_sgid` of Linux.
    pub fn take_privileges(&self, node: &Arc<Node>, is_member: impl FnOnce(u32) -> bool) -> Result<bool> {
        let perm = self.stat(node)?.mode & 0o7777;
        if node.kind != Kind::File {
            return Ok(false);
        }
        let mut left = without_privileges(perm);
        if left & libc::S_ISGID != 0 && !is_member(self.attributes(node)?.gid) {
            left &= !libc::S_ISGID;
        }
        if left == perm {
            return Ok(false);
        }
        self.copy_up(node, Want::Data)?;
        self.set_owner_and_mode(node, &SetAttr { perm: Some(left), ..SetAttr::default() })?;
        Ok(true)
    }

    /// Takes setuid and setgid bits from a file that an unprivileged caller changes.
    ///
    /// The kernel below does that by itself only if this process is not privileged.
    pub(crate) fn kill_privileges(&self, node: &Arc<Node>, privileges: Privileges) -> Result<()> {
        if privileges == Privileges::Keep {
            return Ok(());
        }
        let perm = self.stat(node)?.mode & 0o7777;
        let left = without_privileges(perm);
        if left == perm {
            return Ok(());
        }
        self.set_owner_and_mode(node, &SetAttr { perm: Some(left), ..SetAttr::default() })
    }

    /// The room on the file system that takes the changes, or on that of the top layer.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn stat_fs(&self) -> Result<FsStat> {
        match (&self.upper, self.lowers.first()) {
            (Some(upper), _) => sys::stat::stat_fs(upper.root()),
            (None, Some(layer)) => layer.stat_fs(),
            (None, None) => Err(Error::from_errno(libc::ENOSYS)),
        }
    }
}

/// True if the place is in the upper layer and the data is there too.
pub(crate) fn has_upper_data(place: &Whereabouts) -> bool {
    place.at == At::Upper && place.data().is_none()
}

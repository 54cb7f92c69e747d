//! Making files, directories, links and devices.
//!
//! Where the upper layer has nothing under a name, a file is made there at once. Over a whiteout it is built
//! in the work directory and takes the place of the whiteout by one rename; a directory is opaque then, since
//! what is below it was removed.

use super::Overlay;
use super::lookup::{Layers, Resolution};
use super::place::dir_part;
use crate::access::Acl;
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::idmap::Owner;
use crate::inode::node::{At, DirState, Node};
use crate::layer::entry::{DirContext, Found};
use crate::layer::marks::{self, Mark};
use crate::layer::probe::WhiteoutForm;
use crate::layer::refused::Lossy;
use crate::layer::upper::Upper;
use crate::sys::node::RenameMode;
use crate::sys::stat::Stat;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Attr, Device, Kind, check_name};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// For whom a file is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creator {
    /// The owner of the new file, as shown.
    pub uid: u32,
    /// Its group, unless the directory gives it another.
    pub gid: u32,
    /// Permission bits that it does not get, unless the directory has a default access control list.
    pub umask: u32,
}

/// What is made.
#[derive(Clone, Copy, Debug)]
pub enum New<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A fifo, a socket or a device.
    Node(Kind, Device),
}

impl New<'_> {
    fn kind(self) -> Kind {
        match self {
            New::File => Kind::File,
            New::Dir => Kind::Dir,
            New::Symlink(_) => Kind::Symlink,
            New::Node(kind, _) => kind,
        }
    }

    /// A device that would be a whiteout if it were made as it is.
    fn looks_like_whiteout(self) -> bool {
        matches!(self, New::Node(Kind::Char, device) if device == Device::default())
    }
}

/// What stands in the way of a new name in the upper layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Obstacle {
    None,
    /// A whiteout that is an entry of its own.
    Whiteout,
    /// A whiteout beside it, as a file.
    WhiteoutFile,
}

impl Overlay {
    /// Makes a file, directory, symlink or device; the outside knows it once.
    ///
    /// `perm` are the permission bits the caller asked for, before the umask.
    ///
    /// # Errors
    /// EEXIST, ENOENT, ENAMETOOLONG, EROFS, EINVAL for an id without a mapping, and those of the disk.
    pub fn create(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        new: New<'_>,
        perm: u32,
        creator: Creator,
    ) -> Result<(Arc<Node>, Attr)> {
        check_name(name)?;
        self.writable()?;
        self.expect_absent(dir, name)?;
        self.copy_up_dir(dir)?;
        let part = dir_part(dir)?;
        self.learn_names(part)?;
        let mut state = part.state.write();
        let obstacle = self.obstacle(dir, &state, name)?;
        self.create_locked(dir, &mut state, name, new, perm, creator, obstacle)
    }

    /// As [`Overlay::create`], but not for a directory, and in place of what lower layers may have under the name if that
    /// is no directory either: the new file hides it, so no whiteout is needed. Until it has its content it is there
    /// without.
    ///
    /// # Errors
    /// As [`Overlay::create`]: EEXIST only for what is in the upper layer, and for a directory. EISDIR to make one.
    pub fn create_over(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        new: New<'_>,
        perm: u32,
        creator: Creator,
    ) -> Result<(Arc<Node>, Attr)> {
        check_name(name)?;
        self.writable()?;
        if new.kind() == Kind::Dir {
            return Err(Error::from_errno(libc::EISDIR));
        }
        self.copy_up_dir(dir)?;
        let part = dir_part(dir)?;
        self.learn_names(part)?;
        let mut state = part.state.write();
        let below = match self.resolve(dir, &state, name, Layers::All)? {
            Resolution::Present(found) if found.at == At::Upper || found.found.kind() == Kind::Dir => {
                return Err(Error::from_errno(libc::EEXIST));
            }
            Resolution::Present(found) => found,
            Resolution::Absent { whiteout } => {
                let obstacle = self.obstacle_of_absent(dir, &state, name, whiteout)?;
                return self.create_locked(dir, &mut state, name, new, perm, creator, obstacle);
            }
        };
        let hidden = self.node_of(dir, name, &below);
        let made = self.create_locked(dir, &mut state, name, new, perm, creator, Obstacle::None);
        if made.is_ok() {
            self.lose_lower_name(&hidden, dir, name, below.found.stat.nlink);
        }
        drop(state);
        self.put(hidden);
        made
    }

    #[allow(clippy::too_many_arguments)]
    fn create_locked(
        &self,
        dir: &Arc<Node>,
        state: &mut DirState,
        name: &[u8],
        new: New<'_>,
        perm: u32,
        creator: Creator,
        obstacle: Obstacle,
    ) -> Result<(Arc<Node>, Attr)> {
        let made = self.make(dir, state, name, new, perm, creator, obstacle)?;
        let (node, attr) = self.adopt(dir, name, made.found);
        self.list_made(state, name);
        if let Some(file) = made.file {
            self.keep_writer(&node, file);
        }
        Ok((node, attr))
    }

    /// Fails early if the name is in use, before anything is copied up for it.
    fn expect_absent(&self, dir: &Arc<Node>, name: &[u8]) -> Result<()> {
        let part = dir_part(dir)?;
        if dir.is_upper() {
            return Ok(());
        }
        self.learn_names(part)?;
        let state = part.state.read();
        match self.resolve(dir, &state, name, Layers::All)? {
            Resolution::Present(_) => Err(Error::from_errno(libc::EEXIST)),
            Resolution::Absent { .. } => Ok(()),
        }
    }

    /// What is in the way of a name that must not exist. The caller holds the lock of the directory.
    pub(crate) fn obstacle(&self, dir: &Node, state: &DirState, name: &[u8]) -> Result<Obstacle> {
        match self.resolve(dir, state, name, Layers::All)? {
            Resolution::Present(_) => Err(Error::from_errno(libc::EEXIST)),
            Resolution::Absent { whiteout } => self.obstacle_of_absent(dir, state, name, whiteout),
        }
    }

    /// The same for a name that is known not to exist.
    fn obstacle_of_absent(
        &self,
        dir: &Node,
        state: &DirState,
        name: &[u8],
        whiteout: bool,
    ) -> Result<Obstacle> {
        match whiteout {
            true => Ok(Obstacle::Whiteout),
            false => {
                let files = self.writable()?.abilities().whiteout == WhiteoutForm::File;
                let has_files = state.upper.as_ref().and_then(|u| u.mark_files.get())
                    == Some(&crate::inode::node::MarkFiles::Some);
                if !(files || has_files) || !state.merged {
                    return Ok(Obstacle::None);
                }
                let fd = self.upper_dir(dir)?;
                let is_hidden = match marks::aufs_whiteout(name) {
                    Some(marker) => crate::layer::read::is_mark_file(fd.as_fd(), &marker)?,
                    None => false,
                };
                Ok(if is_hidden { Obstacle::WhiteoutFile } else { Obstacle::None })
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn make(
        &self,
        dir: &Arc<Node>,
        state: &mut DirState,
        name: &[u8],
        new: New<'_>,
        perm: u32,
        creator: Creator,
        obstacle: Obstacle,
    ) -> Result<Made> {
        let upper = self.writable()?;
        let parent = self.upper_dir(dir)?;
        let shown = Owner { uid: creator.uid, gid: creator.gid };
        let owner = self.settings.ownership.stored_for_new(shown);
        let context = state.upper.as_ref().map_or(DirContext::default(), |u| u.context);
        let perm = if context.default_acl { perm } else { perm & !creator.umask };
        let plan = Plan { new, perm: perm & 0o7777, owner, default_acl: context.default_acl };
        if new.looks_like_whiteout() {
            self.mark_escapes(&mut state.upper, parent.as_fd())?;
        }
        let context = state.upper.as_ref().map_or(DirContext::default(), |u| u.context);
        // A name like a whiteout is one until the file is marked as meant literally.
        let looks_like_mark = name.starts_with(marks::WHITEOUT_PREFIX) && new.kind() != Kind::Dir;
        if obstacle == Obstacle::None && !looks_like_mark {
            let inherited = Inherited::ByDisk;
            return self.make_at(upper, parent.as_fd(), name, name, plan, context, inherited, dir);
        }
        let temp = upper.temp_name();
        let made = self.make_at(upper, upper.work(), &temp, name, plan, context, Inherited::ByUs, dir);
        let made = made.and_then(|made| {
            if new.kind() == Kind::Dir {
                // Only over a whiteout: what that hid stays hidden.
                let fd = sys::open::open_dir_at(upper.work(), &temp, sys::open::DirMode::Base)?;
                upper.make_opaque(fd.as_fd())?;
            }
            self.publish_over(upper, &temp, new.kind(), parent.as_fd(), name, obstacle)?;
            // The marks and the rename came after what was read of it, and the marks may need room.
            let mut made = made;
            let now = sys::stat::stat(Place::At(parent.as_fd(), name))?;
            (made.found.stat.ctime, made.found.stat.blocks) = (now.ctime, now.blocks);
            Ok(made)
        });
        if made.is_err() {
            upper.delete_temp(&temp, new.kind());
        }
        made
    }

    /// Moves what was built in the work directory to its name, in place of a whiteout.
    pub(crate) fn publish_over(
        &self,
        upper: &Upper,
        temp: &[u8],
        kind: Kind,
        dir: BorrowedFd<'_>,
        name: &[u8],
        obstacle: Obstacle,
    ) -> Result<()> {
        match (obstacle, kind) {
            (Obstacle::Whiteout, Kind::Dir) if upper.abilities().exchange => {
                sys::node::rename(upper.work(), temp, dir, name, RenameMode::Exchange)?;
                upper.delete_temp(temp, Kind::Char);
                Ok(())
            }
            (Obstacle::Whiteout, Kind::Dir) => {
                sys::node::unlink(dir, name)?;
                sys::node::rename(upper.work(), temp, dir, name, RenameMode::Replace)
            }
            (Obstacle::WhiteoutFile, _) => {
                sys::node::rename(upper.work(), temp, dir, name, RenameMode::Replace)?;
                upper.remove_whiteout_file(dir, name)
            }
            _ => sys::node::rename(upper.work(), temp, dir, name, RenameMode::Replace),
        }
    }

    /// Makes a file in an upper directory or in the work directory; nothing is left if that fails.
    #[allow(clippy::too_many_arguments)]
    fn make_at(
        &self,
        upper: &Upper,
        at: BorrowedFd<'_>,
        name: &[u8],
        final_name: &[u8],
        plan: Plan<'_>,
        context: DirContext,
        inherited: Inherited,
        dir: &Arc<Node>,
    ) -> Result<Made> {
        let file = self.make_bare(upper, at, name, plan)?;
        let finished = self.finish(upper, at, name, final_name, plan, context, inherited, dir, file.as_ref());
        match finished {
            Ok(found) => Ok(Made { found, file }),
            Err(e) => {
                let undone = match plan.new {
                    New::Dir => sys::node::rmdir(at, name),
                    _ => sys::node::unlink(at, name),
                };
                match undone {
                    Ok(()) => Err(e),
                    Err(undo) => Err(e.during("undo create", format!("({undo})"))),
                }
            }
        }
    }

    /// Makes the file with the owner that it gets by itself.
    fn make_bare(
        &self,
        upper: &Upper,
        at: BorrowedFd<'_>,
        name: &[u8],
        plan: Plan<'_>,
    ) -> Result<Option<OwnedFd>> {
        let create = libc::O_CREAT | libc::O_EXCL;
        match plan.new {
            New::File => return sys::open::open_at(at, name, create | libc::O_RDWR, plan.perm).map(Some),
            New::Dir => sys::node::mkdir(at, name, plan.perm)?,
            New::Symlink(target) => {
                sys::node::symlink(target, at, name)?;
            }
            New::Node(kind, device) if plan.new.looks_like_whiteout() => {
                let file = sys::open::open_at(at, name, create | libc::O_WRONLY, plan.perm)?;
                let value = marks::format_device(kind == Kind::Block, device);
                let marked = upper.set_mark(Place::Fd(file.as_fd()), Mark::Device, &value);
                if let Err(e) = marked {
                    let _ = sys::node::unlink(at, name);
                    return Err(e);
                }
            }
            New::Node(kind, device) => match sys::node::mknod(at, name, kind.mode_bits() | plan.perm, device)
            {
                Err(e) if e.is_denied() && matches!(kind, Kind::Char | Kind::Block) => {
                    let stat = Stat { mode: kind.mode_bits() | plan.perm, rdev: device, ..Stat::default() };
                    upper.make_stand_in(at, name, &stat, b"", plan.owner, plan.perm)?;
                }
                other => other?,
            },
        }
        Ok(None)
    }

    /// Gives a new file its owner, its mode and its marks, and reads what it is.
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &self,
        upper: &Upper,
        at: BorrowedFd<'_>,
        name: &[u8],
        final_name: &[u8],
        plan: Plan<'_>,
        context: DirContext,
        inherited: Inherited,
        dir: &Arc<Node>,
        file: Option<&OwnedFd>,
    ) -> Result<Found> {
        let place = match file {
            Some(file) => Place::Fd(file.as_fd()),
            None => Place::At(at, name),
        };
        let mut stat = sys::stat::stat(place)?;
        let kind = plan.new.kind();
        let mut owner = plan.owner;
        let mut perm = if kind == Kind::Symlink { 0o777 } else { plan.perm };
        // A setgid directory hands its group down. The disk does that for what is made in place; its sign is
        // the group, or for a directory the bit.
        let by_disk = inherited == Inherited::ByDisk && upper.overrides().is_none();
        let group_differs = stat.gid != owner.gid;
        let bit_came = kind == Kind::Dir && stat.mode & 0o2000 != 0 && plan.perm & 0o2000 == 0;
        let mut default_acl = None;
        if group_differs || bit_came || !by_disk || plan.default_acl {
            let above = self.stat(dir)?;
            if above.mode & 0o2000 != 0 {
                owner.gid = above.gid;
                if kind == Kind::Dir {
                    perm |= 0o2000;
                }
            }
            if plan.default_acl && kind != Kind::Symlink {
                default_acl = self.inherited_acl(dir)?;
            }
        }
        if let Some(acl) = &default_acl {
            perm = self.inherit_acl(place, acl, kind, perm, inherited)?;
            stat = sys::stat::stat(place)?;
        }
        let lossy = if self.settings.ownership.may_lose_owner() { Lossy::Yes } else { Lossy::No };
        let stands_in = stat.kind() == Kind::File && kind != Kind::File && !plan.new.looks_like_whiteout();
        let needs_stand_in = !matches!(stat.kind(), Kind::File | Kind::Dir);
        let is_settled = (stat.uid, stat.gid) == (owner.uid, owner.gid)
            && stat.mode & 0o7777 == perm
            && !upper.locks_out(stat.kind(), perm);
        let forced = upper.forces_overrides();
        if let (true, New::Node(kind, device)) = (stands_in, plan.new) {
            // It was made as a stand-in: the attribute says what it is, so nothing else may be written there.
            let shown = Stat { mode: kind.mode_bits() | perm, rdev: device, ..stat };
            upper.override_stat(place, &shown, owner, perm)?;
        } else if needs_stand_in
            && (forced || (!is_settled && self.owner_is_refused(place, owner)?))
            && lossy == Lossy::No
        {
            upper.replace_by_stand_in(at, name, &stat, owner, perm)?;
        } else if (!is_settled || forced) && !(needs_stand_in && forced) {
            upper.settle(place, &stat, owner, perm, lossy)?;
        }
        if final_name.starts_with(marks::WHITEOUT_PREFIX) {
            self.mark_if_literal(upper, place, final_name)?;
            stat = sys::stat::stat(place)?;
        }
        let as_is = is_settled && !forced && !plan.new.looks_like_whiteout() && upper.overrides().is_none();
        if as_is && stat.kind() == kind {
            // A directory hands the list down to what is made in it next.
            let hands_down = default_acl.is_some() && kind == Kind::Dir;
            let marks = crate::layer::entry::Marks { default_acl: hands_down, ..Default::default() };
            return Ok(Found { stat, marks });
        }
        self.read_upper(Place::At(at, name), DirContext { impure: false, ..context })
    }

    /// Marks what would be a whiteout under this name as meant literally: a regular file, or one that stands for
    /// something else.
    pub(crate) fn mark_if_literal(&self, upper: &Upper, place: Place<'_>, name: &[u8]) -> Result<()> {
        if name.starts_with(marks::WHITEOUT_PREFIX) && sys::stat::stat(place)?.kind() == Kind::File {
            self.mark_literal(upper, place)?;
        }
        Ok(())
    }

    /// Marks a file whose name looks like a whiteout as meant literally.
    pub(crate) fn mark_literal(&self, upper: &Upper, place: Place<'_>) -> Result<()> {
        upper.set_mark(place, Mark::Literal, b"y").map_err(|e| {
            if e.is_unsupported() {
                Error::new(
                    libc::EINVAL,
                    "create file",
                    ".wh.*",
                    "this disk takes no extended attributes, so the name would be a whiteout",
                )
            } else {
                e
            }
        })
    }

    fn owner_is_refused(&self, place: Place<'_>, owner: Owner) -> Result<bool> {
        match sys::stat::chown(place, Some(owner.uid), Some(owner.gid)) {
            Ok(()) => Ok(false),
            Err(e) if e.is_owner_refused() => Ok(true),
            Err(e) => Err(e),
        }
    }

    pub(super) fn inherited_acl(&self, dir: &Arc<Node>) -> Result<Option<Acl>> {
        match self.xattr(dir, b"system.posix_acl_default") {
            Ok(value) => Acl::parse(&value),
            Err(e) if e.is_no_attribute() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Applies a default access control list; returns the permission bits that come out.
    fn inherit_acl(
        &self,
        place: Place<'_>,
        default: &Acl,
        kind: Kind,
        perm: u32,
        inherited: Inherited,
    ) -> Result<u32> {
        let (access, masked) = default.create_masq(perm);
        if inherited == Inherited::ByUs {
            if let Some(access) = &access {
                let name = c"system.posix_acl_access";
                sys::xattr::set(place, name, &access.format(), SetMode::Any)?;
            }
            if kind == Kind::Dir {
                sys::xattr::set(place, c"system.posix_acl_default", &default.format(), SetMode::Any)?;
            }
        }
        Ok((perm & 0o7000) | (masked & 0o777))
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// EPERM for a directory, EEXIST, EMLINK, ENOENT if it has no name any more, and those of the disk.
    pub fn link(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let upper = self.writable()?;
        if node.is_dir() {
            let part = dir_part(dir)?;
            self.learn_names(part)?;
            // A name in use comes first, as in the kernel.
            let errno = match self.resolve(dir, &part.state.read(), name, Layers::All)? {
                Resolution::Present(_) => libc::EEXIST,
                Resolution::Absent { .. } => libc::EPERM,
            };
            return Err(Error::from_errno(errno));
        }
        self.expect_absent(dir, name)?;
        self.copy_up(node, Want::Data)?;
        self.copy_up_dir(dir)?;
        let part = dir_part(dir)?;
        self.learn_names(part)?;
        {
            let mut state = part.state.write();
            let obstacle = self.obstacle(dir, &state, name)?;
            let parent = self.upper_dir(dir)?;
            if matches!(node.kind, Kind::Char) {
                self.carry_escape(node, &mut state, parent.as_fd())?;
            }
            // Before the name: without it nobody would ask the file where it comes from, so which inode it is.
            self.mark_impure(upper, &mut state.upper, parent.as_fd())?;
            let mut place = node.place.write();
            // One that never had a name may get its first; the disk refuses one that lost its last.
            let is_unlinked = place.is_unlinked();
            if place.at != At::Upper || (is_unlinked && place.pinned().is_none()) {
                return Err(Error::from_errno(libc::ENOENT));
            }
            self.with_upper_place(&place, |at| {
                self.mark_if_literal(upper, at, name)?;
                if obstacle == Obstacle::None {
                    return sys::node::link(at, parent.as_fd(), name);
                }
                let temp = upper.temp_name();
                sys::node::link(at, upper.work(), &temp)?;
                let done = self.publish_over(upper, &temp, node.kind, parent.as_fd(), name, obstacle);
                if done.is_err() {
                    upper.delete_temp(&temp, node.kind);
                }
                done
            })?;
            let has_it = |(d, n): &(Arc<Node>, Box<[u8]>)| Arc::ptr_eq(d, dir) && **n == *name;
            let mut old = None;
            if is_unlinked {
                old = place.parent.replace(Arc::clone(dir));
                place.name = name.into();
                let extra = place.extra_mut();
                extra.unlinked = false;
                extra.pinned = None;
            } else if !place.extra_mut().aliases.iter().any(has_it) {
                place.extra_mut().aliases.push((Arc::clone(dir), name.into()));
            }
            drop(place);
            drop(old);
            self.list_made(&mut state, name);
        }
        let attr = self.attributes(node)?;
        node.nlookup.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(attr)
    }

    /// Marks the directory that a device 0:0 moves to.
    pub(crate) fn carry_escape(&self, node: &Node, state: &mut DirState, dir: BorrowedFd<'_>) -> Result<()> {
        let stands_in = node.kind == Kind::Char
            && self.with_upper(node, |at| Ok(sys::stat::stat(at)?.kind() == Kind::File))?;
        if stands_in { self.mark_escapes(&mut state.upper, dir) } else { Ok(()) }
    }
}

/// What is to be made.
#[derive(Clone, Copy)]
struct Plan<'a> {
    new: New<'a>,
    perm: u32,
    owner: Owner,
    default_acl: bool,
}

/// Who hands down group and access control list of a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inherited {
    /// The disk: the file is made in its directory.
    ByDisk,
    /// We: it is made in the work directory.
    ByUs,
}

/// What was made.
struct Made {
    found: Found,
    file: Option<OwnedFd>,
}

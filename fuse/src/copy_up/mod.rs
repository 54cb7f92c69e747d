//! How a lower file becomes an upper one, step by step.
//!
//! Topmost missing directory first. A copy is built in the work directory and published by one rename, so that
//! its name shows the old file or the whole new one, whatever is killed when. The order of steps:
//!
//! 1. data: clone, else a copy in the kernel, else reads and writes; holes stay holes;
//! 2. owner: a chown takes capabilities and setuid bits away, so it comes before them;
//! 3. attributes, marks, mode, and last the times, which all of the above change;
//! 4. the data is ordered before the rename, unless the mount is volatile;
//! 5. under the lock of the directory: mark the directory impure, rename into place, give it its times back;
//! 6. the node points to the upper file; descriptors of the lower one are forgotten.
//!
//! Until 5 a crash leaves a file in the work directory, which the next mount removes. While data is copied
//! only the lock of this inode is held.

mod data;

use self::data::{copy_data, order_before_rename};
use crate::error::{Error, Result};
use crate::idmap::Owner;
use crate::inode::node::{At, LowerFile, MarkFiles, Node, UpperDir};
use crate::layer::entry::{DirContext, Found, LayerEntry};
use crate::layer::marks::{self, Mark, Origin};
use crate::layer::refused::{self, Lossy};
use crate::layer::source::{LayerPath, LayerSource};
use crate::layer::upper::Upper;
use crate::overlay::place::dir_part;
use crate::overlay::{Counters, Metacopy, Overlay};
use crate::sys::open::DirMode;
use crate::sys::stat::Stat;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Ino, Kind, SetTime};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// What the caller needs of the upper file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Its attributes; the data may stay below.
    Attributes,
    /// Its data.
    Data,
    /// Its name: the data is about to be cut to nothing.
    Nothing,
}

/// Below this size a whole copy costs no more than the attributes of a metacopy file.
const METACOPY_MIN_BYTES: u64 = 128 * 1024;

impl Overlay {
    /// Makes sure that a file is in the upper layer.
    ///
    /// # Errors
    /// EROFS without an upper layer; those of the disk, and then nothing has changed.
    pub fn copy_up(&self, node: &Arc<Node>, want: Want) -> Result<()> {
        self.writable()?;
        if node.is_dir() {
            return self.copy_up_dir(node);
        }
        if self.is_satisfied(node, want) {
            return Ok(());
        }
        let _copying = node.copying.lock();
        if self.is_satisfied(node, want) {
            return Ok(());
        }
        if node.is_upper() {
            return self.complete(node, want);
        }
        self.copy_up_file(node, want)
    }

    fn is_satisfied(&self, node: &Node, want: Want) -> bool {
        let place = node.place.read();
        place.at == At::Upper && (want == Want::Attributes || place.data().is_none())
    }

    /// Makes sure that a directory is in the upper layer, and all above it.
    pub(crate) fn copy_up_dir(&self, dir: &Arc<Node>) -> Result<()> {
        // From the topmost missing one down, without recursion: a tree may be deep.
        let mut missing = Vec::new();
        let mut current = Arc::clone(dir);
        while !current.is_upper() {
            let parent = current.place.read().parent.clone();
            missing.push(current);
            match parent {
                Some(parent) => current = parent,
                None => return Err(Error::from_errno(libc::EROFS)),
            }
        }
        while let Some(next) = missing.pop() {
            self.copy_up_one_dir(&next)?;
        }
        Ok(())
    }

    fn copy_up_one_dir(&self, dir: &Arc<Node>) -> Result<()> {
        let upper = self.writable()?;
        let _copying = dir.copying.lock();
        if dir.is_upper() {
            return Ok(());
        }
        let (layer, path, found) = self.lower_found(dir)?;
        let temp = upper.temp_name();
        sys::node::mkdir(upper.work(), &temp, 0o700)?;
        let made = self.furnish(dir, upper, &temp, &found, (layer, &path, b""));
        let made = made.and_then(|()| self.mark_origin(upper, &temp, &found, || layer.origin(&path, b"")));
        // The times of a directory survive its renaming.
        let made = made.and_then(|()| self.settle_times(Place::At(upper.work(), &temp), &found.stat));
        let made = made.and_then(|()| self.publish_dir(dir, upper, &temp));
        if made.is_err() {
            upper.delete_temp(&temp, Kind::Dir);
        }
        made
    }

    fn publish_dir(&self, dir: &Arc<Node>, upper: &Upper, temp: &[u8]) -> Result<()> {
        let (parent, name) = self.named(dir)?;
        let part = dir_part(&parent)?;
        let mut state = part.state.write();
        self.still_named(dir, &parent, &name)?;
        let parent_fd = self.upper_dir(&parent)?;
        let times = sys::stat::stat(Place::dir(&parent_fd))?;
        let stat = sys::stat::stat(Place::At(upper.work(), temp))?;
        let own = dir_part(dir)?;
        let default_acl = own.lowers.first().is_some_and(|l| l.context.default_acl);
        let fresh = fresh_upper(self.new_mark_files()?, default_acl);
        // First what can fail: once the copy has its name it is the directory.
        self.mark_impure(upper, &mut state.upper, parent_fd.as_fd())?;
        upper.publish(temp, parent_fd.as_fd(), &name)?;
        let _ = self.settle_times(Place::dir(&parent_fd), &times);
        let mut own_state = own.state.write();
        own_state.upper = Some(fresh);
        let mut place = dir.place.write();
        place.at = At::Upper;
        place.real_ino = stat.ino;
        Counters::add(&self.counters.copy_ups, 1);
        Ok(())
    }

    fn copy_up_file(&self, node: &Arc<Node>, want: Want) -> Result<()> {
        let upper = self.writable()?;
        self.find_other_name(node);
        let (mut parent, mut name) = self.named(node)?;
        self.copy_up_dir(&parent)?;
        let (layer, path, found) = self.lower_found(node)?;
        let source = self.lower_file(node, &node.place.read())?;
        let data = node.place.read().data().cloned();
        let is_metacopy = want == Want::Attributes
            && node.kind == Kind::File
            && self.settings.metacopy == Metacopy::On
            && upper.can_mark()
            && found.stat.size >= METACOPY_MIN_BYTES
            && found.stat.nlink == 1;
        let temp = upper.temp_name();
        let made = self.build(node, upper, &temp, layer, &path, &name, &found, &data, want, is_metacopy);
        let made = made.and_then(|fd| {
            let keep = is_metacopy.then(|| data.clone().unwrap_or_else(|| source.clone()));
            while !self.publish_file(node, upper, &temp, &parent, &name, &found, &keep)? {
                (parent, name) = self.named(node)?;
                self.copy_up_dir(&parent)?;
            }
            Ok(fd)
        });
        match made {
            Ok(fd) => {
                Counters::add(&self.counters.copy_ups, 1);
                if let (Some(fd), false, false) = (fd, is_metacopy, node.is_unlinked())
                    && !self.has_kept_capability(Place::Fd(fd.as_fd()))
                {
                    self.keep_writer(node, fd);
                }
            }
            Err(e) => {
                upper.delete_temp(&temp, Kind::File);
                return Err(e);
            }
        }
        if found.stat.nlink > 1 {
            self.link_other_names(node, &source, &found.stat);
        }
        Ok(())
    }

    /// Builds the copy of a file in the work directory; returns its descriptor if it is a regular file.
    #[allow(clippy::too_many_arguments)]
    fn build(
        &self,
        node: &Node,
        upper: &Upper,
        temp: &[u8],
        layer: &dyn LayerSource,
        path: &LayerPath,
        name: &[u8],
        found: &Found,
        data: &Option<LowerFile>,
        want: Want,
        is_metacopy: bool,
    ) -> Result<Option<OwnedFd>> {
        let _ = name;
        let own_name = node.place.read().name.clone();
        let mut fd = None;
        let mut moved = 0;
        let work = upper.work();
        let is_device_mark = found.marks.device.is_some();
        match node.kind {
            Kind::File => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let perm = (found.stat.mode & 0o777) | 0o600;
                let file = sys::open::open_at(work, temp, flags, perm)?;
                if is_metacopy {
                    sys::stat::truncate(file.as_fd(), found.stat.size)?;
                    upper.set_mark(Place::Fd(file.as_fd()), Mark::Metacopy, b"")?;
                } else if want != Want::Nothing {
                    let source = match data {
                        Some(data) => self.lower(data.layer)?.open(&data.dir, &data.name)?,
                        None => layer.open(path, &own_name)?,
                    };
                    moved = copy_data(upper, source.as_fd(), file.as_fd(), found.stat.size)?;
                    Counters::add(&self.counters.copied_bytes, moved);
                }
                fd = Some(file);
            }
            Kind::Symlink => {
                let target = self.lower_link(layer, path, &own_name)?;
                sys::node::symlink(&target, work, temp)?;
            }
            _ if is_device_mark => {
                drop(sys::open::open_at(work, temp, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o600)?);
            }
            Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block => {
                let mode = node.kind.mode_bits() | 0o600;
                match sys::node::mknod(work, temp, mode, found.stat.rdev) {
                    Err(e) if e.is_denied() => {
                        let owner = Owner { uid: found.stat.uid, gid: found.stat.gid };
                        let perm = found.stat.mode & 0o7777;
                        upper.make_stand_in(work, temp, &found.stat, b"", owner, perm)?;
                        self.mark_origin(upper, temp, found, || layer.origin(path, &own_name))?;
                        self.settle_times(Place::At(work, temp), &found.stat)?;
                        return Ok(None);
                    }
                    other => other?,
                }
            }
            Kind::Dir => return Err(Error::from_errno(libc::EISDIR)),
        }
        self.furnish(node, upper, temp, found, (layer, path, &own_name))?;
        self.mark_origin(upper, temp, found, || layer.origin(path, &own_name))?;
        // Its content may be cut to nothing, now or later.
        self.mark_if_literal(upper, Place::At(work, temp), &own_name)?;
        if let Some(file) = &fd {
            self.settle_times(Place::Fd(file.as_fd()), &found.stat)?;
            if want == Want::Nothing {
                // It is changed by being empty, and who goes by times has to see that.
                sys::stat::set_times(Place::Fd(file.as_fd()), None, Some(SetTime::Now))?;
            }
            order_before_rename(upper, file.as_fd(), moved)?;
        } else {
            self.settle_times(Place::At(work, temp), &found.stat)?;
        }
        Ok(fd)
    }

    fn lower_link(&self, layer: &dyn LayerSource, path: &LayerPath, name: &[u8]) -> Result<Vec<u8>> {
        match layer.read_link(path, name) {
            Err(e) if e.errno() == libc::EINVAL => {
                let file = layer.open(path, name)?;
                let mut target = vec![0u8; libc::PATH_MAX as usize];
                let length = sys::copy::read_at(file.as_fd(), &mut target, 0)?;
                target.truncate(length);
                Ok(target)
            }
            other => other,
        }
    }

    /// Moves a copy to its name; false if the file has another name by now.
    #[allow(clippy::too_many_arguments)]
    fn publish_file(
        &self,
        node: &Arc<Node>,
        upper: &Upper,
        temp: &[u8],
        parent: &Arc<Node>,
        name: &[u8],
        found: &Found,
        data: &Option<LowerFile>,
    ) -> Result<bool> {
        let part = dir_part(parent)?;
        let mut state = part.state.write();
        let stat = sys::stat::stat(Place::At(upper.work(), temp))?;
        let mut place = node.place.write();
        if place.is_unlinked() {
            // Its name is gone while it was copied: it lives on without one.
            let fd = open_pin(upper.work(), temp)?;
            sys::node::unlink(upper.work(), temp)?;
            place.extra_mut().pinned = Some(Arc::new(fd));
        } else if *place.name != *name || place.parent.as_ref().is_none_or(|p| !Arc::ptr_eq(p, parent)) {
            return Ok(false);
        } else {
            let parent_fd = self.upper_dir(parent)?;
            let times = sys::stat::stat(Place::dir(&parent_fd))?;
            if found.marks.device.is_some() {
                self.mark_escapes(&mut state.upper, parent_fd.as_fd())?;
            }
            // First what can fail: once the copy has its name it is the file.
            self.mark_impure(upper, &mut state.upper, parent_fd.as_fd())?;
            upper.publish(temp, parent_fd.as_fd(), name)?;
            let _ = self.settle_times(Place::dir(&parent_fd), &times);
        }
        self.hidden_links.forget((node.ino, place.real_ino));
        place.at = At::Upper;
        place.real_ino = stat.ino;
        if found.stat.nlink > 1 {
            place.extra_mut().copied_from = Some(found.stat.ino);
        }
        // They are names of the lower inode still; those that get linked are noted again.
        let old_names = place.extra.as_mut().map(|extra| std::mem::take(&mut extra.aliases));
        if data.is_some() || place.data().is_some() {
            place.extra_mut().data = data.clone();
        }
        // Under the lock of the place, so that nobody keeps a descriptor of the lower file after this.
        self.drop_descriptors(node);
        drop(place);
        drop(old_names);
        Ok(true)
    }

    /// Fetches the data of a file that has only its attributes in the upper layer.
    fn complete(&self, node: &Arc<Node>, want: Want) -> Result<()> {
        let upper = self.writable()?;
        let (data, size) = {
            let place = node.place.read();
            let Some(data) = place.data().cloned() else { return Ok(()) };
            let stat = self.with_upper_place(&place, sys::stat::stat)?;
            (data, stat)
        };
        let stat = size;
        let target = self.with_upper(node, |at| crate::overlay::io::open_upper(at, libc::O_RDWR))?;
        if want == Want::Nothing {
            sys::stat::truncate(target.as_fd(), 0)?;
        } else {
            let source = self.lower(data.layer)?.open(&data.dir, &data.name)?;
            let capability = sys::xattr::get_value(Place::Fd(target.as_fd()), c"security.capability")?;
            let copied = copy_data(upper, source.as_fd(), target.as_fd(), stat.size)?;
            Counters::add(&self.counters.copied_bytes, copied);
            // Writing took the capabilities away, if there were any.
            if let Some(value) = capability {
                let _ =
                    sys::xattr::set(Place::Fd(target.as_fd()), c"security.capability", &value, SetMode::Any);
            }
            self.settle_times(Place::Fd(target.as_fd()), &stat)?;
            order_before_rename(upper, target.as_fd(), copied)?;
        }
        let mut place = node.place.write();
        // From here on the file counts as complete; the mark is all that says otherwise.
        upper.remove_mark(Place::Fd(target.as_fd()), Mark::Metacopy)?;
        upper.remove_mark(Place::Fd(target.as_fd()), Mark::Redirect)?;
        if let Some(extra) = &mut place.extra {
            extra.data = None;
        }
        self.drop_descriptors(node);
        drop(place);
        if !self.has_kept_capability(Place::Fd(target.as_fd())) {
            self.keep_writer(node, target);
        }
        Ok(())
    }

    // Steps ------------------------------------------------------------------------------------------------

    /// The layer, the path and the state of a lower file.
    pub(crate) fn lower_found(&self, node: &Arc<Node>) -> Result<(&dyn LayerSource, LayerPath, Found)> {
        let place = node.place.read();
        let (layer, path, name) = self.lower_place(node, &place)?;
        let number = self.layer_number(node, &place)?;
        let layer_again = self.lower(number)?;
        let context = match (&node.dir, place.at, &place.parent) {
            (None, At::Lower(position), Some(parent)) => dir_part(parent)?
                .lowers
                .get(usize::from(position))
                .map_or(DirContext::default(), |lower| lower.context),
            _ => DirContext::default(),
        };
        match layer.entry(path, context, name)? {
            LayerEntry::Found(found) => Ok((layer_again, Arc::clone(path), *found)),
            LayerEntry::Absent | LayerEntry::Whiteout => Err(Error::from_errno(libc::ESTALE)),
        }
    }

    fn layer_number(&self, node: &Node, place: &crate::inode::node::Whereabouts) -> Result<u16> {
        let stale = || Error::from_errno(libc::ESTALE);
        match (&node.dir, place.at, &place.parent) {
            (Some(dir), _, _) => Ok(dir.lowers.first().ok_or_else(stale)?.layer),
            (None, At::Lower(position), Some(parent)) => {
                let lowers = &parent.dir.as_deref().ok_or_else(stale)?.lowers;
                Ok(lowers.get(usize::from(position)).ok_or_else(stale)?.layer)
            }
            _ => Err(stale()),
        }
    }

    /// Directory and name of a node.
    pub(crate) fn named(&self, node: &Node) -> Result<(Arc<Node>, Box<[u8]>)> {
        let place = node.place.read();
        let parent = place.parent.clone().ok_or(Error::from_errno(libc::EBUSY))?;
        Ok((parent, place.name.clone()))
    }

    fn still_named(&self, node: &Node, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        let place = node.place.read();
        let same = place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, parent)) && *place.name == *name;
        if same && !place.is_unlinked() { Ok(()) } else { Err(Error::from_errno(libc::ENOENT)) }
    }

    /// Gives a copy its owner, its attributes and its mode.
    fn furnish(
        &self,
        node: &Node,
        upper: &Upper,
        temp: &[u8],
        found: &Found,
        (layer, path, name): (&dyn LayerSource, &LayerPath, &[u8]),
    ) -> Result<()> {
        let place = Place::At(upper.work(), temp);
        let mut now = sys::stat::stat(place)?;
        let lossy = if self.settings.ownership.may_lose_owner() { Lossy::Yes } else { Lossy::No };
        let owner = Owner { uid: found.stat.uid, gid: found.stat.gid };
        let is_special =
            matches!(node.kind, Kind::Symlink | Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block)
                && now.kind() == node.kind;
        if is_special && upper.forces_overrides() && lossy == Lossy::No {
            let perm = found.stat.mode & 0o7777;
            return upper.replace_by_stand_in(upper.work(), temp, &found.stat, owner, perm);
        }
        if is_special && (now.uid, now.gid) != (owner.uid, owner.gid) {
            // These cannot carry an override; if the disk refuses the owner a stand-in takes their place.
            match sys::stat::chown(place, Some(owner.uid), Some(owner.gid)) {
                Err(e) if e.is_owner_refused() && lossy == Lossy::No => {
                    let perm = found.stat.mode & 0o7777;
                    return upper.replace_by_stand_in(upper.work(), temp, &found.stat, owner, perm);
                }
                Err(e) if e.is_owner_refused() => {}
                other => other?,
            }
            now = sys::stat::stat(place)?;
        }
        let names = layer.xattr_names(path, name)?;
        let copy = |attribute: &[u8]| {
            let attribute = CString::new(attribute).unwrap_or_default();
            let kept = refused::kept_name(layer.overrides(), &attribute);
            let value =
                refused::get_kept(kept.as_deref(), &attribute, |on_disk| layer.xattr(path, name, on_disk))?;
            let Some(value) = value else { return Ok(()) };
            match upper.set_attribute(place, &attribute, &value, SetMode::Any) {
                // What this disk or this user cannot keep is left behind, as the kernel's overlayfs does.
                Err(e) if e.is_denied() || e.is_unsupported() => Ok(()),
                other => other,
            }
        };
        let mut has_capability = false;
        for on_disk in names.iter() {
            let kept = refused::shown_name(layer.overrides(), on_disk);
            if kept.is_some() || is_copied(on_disk) {
                let attribute = kept.unwrap_or(on_disk);
                has_capability |= attribute == b"security.capability";
                copy(attribute)?;
            }
        }
        if now.kind() == Kind::Symlink {
            return Ok(());
        }
        upper.settle(place, &now, owner, found.stat.mode & 0o7777, lossy)?;
        // A chown takes capabilities away, and it may have come after them.
        if has_capability {
            copy(b"security.capability")?;
        }
        Ok(())
    }

    fn settle_times(&self, place: Place<'_>, stat: &Stat) -> Result<()> {
        sys::stat::set_times(place, Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
    }

    /// Notes in a copy which lower inode it comes from; a copy of a copy names the first. Without file handles
    /// it goes without.
    fn mark_origin(
        &self,
        upper: &Upper,
        temp: &[u8],
        found: &Found,
        handle: impl FnOnce() -> Option<Origin>,
    ) -> Result<()> {
        let origin = found.marks.origin.clone().or_else(handle);
        let Some(value) = origin.and_then(|o| o.format()) else { return Ok(()) };
        match upper.set_mark(Place::At(upper.work(), temp), Mark::Origin, &value) {
            Err(e) if e.is_denied() || e.is_unsupported() => Ok(()),
            other => other,
        }
    }

    /// Marks a directory as holding copies.
    pub(crate) fn mark_impure(
        &self,
        upper: &Upper,
        state: &mut Option<UpperDir>,
        dir: BorrowedFd<'_>,
    ) -> Result<()> {
        let Some(state) = state else { return Ok(()) };
        if !state.context.impure && upper.can_mark() {
            upper.set_mark(Place::At(dir, b"."), Mark::Impure, b"y")?;
            state.context.impure = true;
        }
        Ok(())
    }

    /// Marks a directory as holding entries that are not what they seem.
    pub(crate) fn mark_escapes(&self, state: &mut Option<UpperDir>, dir: BorrowedFd<'_>) -> Result<()> {
        let Some(state) = state else { return Ok(()) };
        if !state.context.escapes {
            self.writable()?.set_mark(Place::At(dir, b"."), Mark::Escapes, b"y")?;
            state.context.escapes = true;
        }
        Ok(())
    }

    /// The number of a directory of a lower layer, for those who look for its node.
    pub(crate) fn lower_dir_number(&self, layer: u16, path: &LayerPath) -> Result<Ino> {
        match self.lower(layer)?.entry(path, DirContext::default(), b"")? {
            LayerEntry::Found(found) => Ok(self.number_of(&found)),
            LayerEntry::Absent | LayerEntry::Whiteout => Err(Error::from_errno(libc::ENOENT)),
        }
    }
}

/// True for attributes that a copy gets: not the marks of a layer, which belong to its place in the stack.
fn is_copied(attribute: &[u8]) -> bool {
    match marks::mark_of(attribute) {
        Some((_, Mark::Literal | Mark::Device)) => true,
        Some(_) => false,
        None => {
            !attribute.starts_with(b"user.fuseoverlayfs.")
                && !attribute.starts_with(b"security.fuseoverlayfs.")
                && !attribute.starts_with(crate::idmap::ENCODED_PREFIX)
                && attribute != b"security.selinux"
        }
    }
}

/// Opens a file so that it outlives its name: to write if that can be had, else to read, else just to be.
pub(crate) fn open_pin(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let place = Place::At(dir, name);
    match sys::stat::stat(place)?.kind() {
        Kind::File => match sys::open::open_at(dir, name, libc::O_RDWR | libc::O_NONBLOCK, 0) {
            Err(e) if e.is_denied() => {
                let readable = crate::overlay::io::open_upper(place, libc::O_RDWR);
                readable.or_else(|_| sys::open::open_at(dir, name, libc::O_PATH, 0))
            }
            other => other,
        },
        Kind::Dir => sys::open::open_dir_at(dir, name, DirMode::Base),
        _ => sys::open::open_at(dir, name, libc::O_PATH, 0),
    }
}

/// The marks that a directory made by this mount starts with.
pub(crate) fn fresh_upper(mark_files: MarkFiles, default_acl: bool) -> UpperDir {
    UpperDir::known(DirContext { default_acl, ..DirContext::default() }, mark_files)
}

//! Marks in a layer: whiteouts, opaque directories, escapes, and what the disk refuses, as the layer's only writer
//! ([`Upper`]) makes them.

use super::Below;
use crate::apply::attributes::{Attributes, is_access_list, is_capability};
use crate::apply::target::{Look, Marked};
use crate::error::{Error, Result};
use plywood_fuse::error::{Error as SysError, Result as SysResult};
use plywood_fuse::idmap::Owner;
use plywood_fuse::layer::entry::{DirContext, LayerEntry};
use plywood_fuse::layer::marks::{self, Mark};
use plywood_fuse::layer::probe::WhiteoutForm;
use plywood_fuse::layer::read;
use plywood_fuse::layer::refused::Lossy;
use plywood_fuse::layer::upper::{Upper, UpperOptions};
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::sys::{self, Place, node};
use plywood_fuse::types::{Device, Kind};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// A layer.
pub(super) struct Layer {
    upper: Upper,
    below: Below,
}

impl Layer {
    pub fn open(path: &Path, work: &Path, below: Below, options: UpperOptions) -> Result<Layer> {
        let failed = |e| Error::fuse("open layer", path.display().to_string(), e);
        let upper = Upper::open(path, work, options).map_err(failed)?;
        match upper.warning() {
            Some(_) => Err(failed(SysError::from_errno(libc::EBUSY))),
            None => Ok(Layer { upper, below }),
        }
    }

    pub fn below(&self) -> Below {
        self.below
    }

    /// What something is that is neither directory nor symlink.
    pub fn look<D>(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<Look<D>> {
        let place = Place::At(dir, name);
        let stat = match sys::stat::stat(place) {
            Err(e) if e.is_absent() => return Ok(Look::Absent),
            other => other?,
        };
        if stat.is_whiteout_device() {
            return Ok(Look::Removed);
        }
        // A symlink that the disk does not keep as one.
        if stat.kind() == Kind::File && self.shown(place, stat)?.kind() == Kind::Symlink {
            let file = sys::open::open_at(dir, name, libc::O_RDONLY, 0)?;
            let mut text = vec![0; libc::PATH_MAX as usize];
            let length = sys::copy::read_at(file.as_fd(), &mut text, 0)?;
            text.truncate(length);
            return Ok(Look::Symlink(text));
        }
        Ok(Look::Other)
    }

    /// True if a name is in use by anything but a whiteout.
    pub fn is_there(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
        match sys::stat::stat(Place::At(dir, name)) {
            Err(e) if e.is_absent() => Ok(false),
            other => Ok(!other?.is_whiteout_device()),
        }
    }

    /// What users of the layer see of a file.
    pub fn shown(&self, place: Place<'_>, stat: Stat) -> SysResult<Stat> {
        let escapes = stat.kind() == Kind::File && stat.size == 0;
        if self.upper.overrides().is_none() && !escapes {
            return Ok(stat);
        }
        let context = DirContext { escapes, ..DirContext::default() };
        match read::judge_at(place, stat, context, self.upper.overrides())? {
            LayerEntry::Found(found) => Ok(found.stat),
            LayerEntry::Absent | LayerEntry::Whiteout => Ok(stat),
        }
    }

    /// Gives a file its owner and its mode; what the disk refuses is kept in an attribute. Returns the permission bits
    /// that it has on the disk then and those that it is to have there, if an attribute may have changed them.
    pub fn settle(
        &self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        place: Place<'_>,
        stat: &Stat,
        attributes: &Attributes<'_>,
    ) -> SysResult<Option<(u32, u32)>> {
        let owner = attributes.owner.unwrap_or_default();
        let perm = attributes.perm;
        let same_owner = (stat.uid, stat.gid) == (owner.uid, owner.gid);
        match stat.kind() {
            Kind::File | Kind::Dir => {
                self.upper.settle(place, stat, owner, perm, Lossy::No)?;
                // The mode on the disk is its own only while no attribute says another.
                let on_disk = self.upper.overrides().is_none();
                Ok(on_disk.then_some((perm, perm)))
            }
            _ if same_owner && (stat.kind() == Kind::Symlink || stat.mode & 0o7777 == perm) => Ok(None),
            _ if sys::stat::stat(place)?.kind() != stat.kind() => {
                self.upper.override_stat(place, stat, owner, perm)?;
                Ok(None)
            }
            kind => {
                match sys::stat::chown(place, Some(owner.uid), Some(owner.gid)) {
                    Ok(()) => {}
                    Err(e) if e.is_owner_refused() => {
                        self.upper.replace_by_stand_in(dir, name, stat, owner, perm)?;
                        return Ok(None);
                    }
                    Err(e) => return Err(e),
                }
                if kind != Kind::Symlink {
                    sys::stat::chmod(place, perm)?;
                }
                Ok(None)
            }
        }
    }

    /// Sets an attribute; what would be a mark is stored under another name, and so is what the disk refuses, if owners
    /// are kept in attributes.
    pub fn set_attribute(&self, place: Place<'_>, name: &CStr, value: &[u8]) -> SysResult<()> {
        let on_disk = marks::escape(name.to_bytes(), self.upper.namespace());
        let on_disk = on_disk.ok_or(SysError::from_errno(libc::ERANGE))?;
        let set = || self.upper.set_attribute(place, &on_disk, value, SetMode::Any);
        match set() {
            Err(e) if e.is_attribute_refused() && is_capability(name.to_bytes()) => {
                if !self.upper.keep_attributes()? {
                    return Err(e);
                }
                set()?;
            }
            other => other?,
        }
        if is_access_list(name.to_bytes()) {
            // A mount tells the kernel that there are lists; without the mark it still sees this one.
            let _ = self.upper.set_mark(Place::At(self.upper.root(), b"."), Mark::Acl, b"y");
        }
        Ok(())
    }

    /// Makes a device, or what stands for one that the disk or the format cannot hold.
    pub fn make_device(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        kind: Kind,
        device: Device,
        attributes: &Attributes<'_>,
    ) -> SysResult<()> {
        let mode = kind.mode_bits() | (attributes.perm & 0o777);
        if kind == Kind::Char && device == Device::default() {
            self.upper.set_mark(Place::At(dir, b"."), Mark::Escapes, b"y")?;
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
            let file = sys::open::open_at(dir, name, flags, 0o600)?;
            let value = marks::format_device(false, device);
            let marked = self.upper.set_mark(Place::Fd(file.as_fd()), Mark::Device, &value);
            if marked.is_err() {
                let _ = node::unlink(dir, name);
            }
            return marked;
        }
        match node::mknod(dir, name, mode, device) {
            Err(e) if e.is_denied() => {
                let stat = Stat { mode, rdev: device, ..Stat::default() };
                let Owner { uid, gid } = attributes.owner.unwrap_or_default();
                self.upper.make_stand_in(dir, name, &stat, b"", Owner { uid, gid }, attributes.perm)
            }
            other => other,
        }
    }

    // Whiteouts --------------------------------------------------------------------------------------------

    /// Removes the whiteout that is an entry of this name; false if it is something else.
    pub fn take_mark(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
        if !sys::stat::stat(Place::At(dir, name))?.is_whiteout_device() {
            return Ok(false);
        }
        node::unlink(dir, name).map(|()| true)
    }

    /// True if a whiteout of this name is a file beside it.
    pub fn has_mark_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<bool> {
        if self.upper.abilities().whiteout == WhiteoutForm::Device {
            return Ok(false);
        }
        marks::aufs_whiteout(name).map_or(Ok(false), |marker| read::is_mark_file(dir, &marker))
    }

    /// Removes the whiteout that is a file beside a name.
    pub fn forget_mark_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        match self.upper.abilities().whiteout {
            WhiteoutForm::Device => Ok(()),
            WhiteoutForm::File => self.upper.remove_whiteout_file(dir, name),
        }
    }

    pub fn mark_removed(&self, dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<Marked> {
        if self.below == Below::Unknown {
            self.upper.make_whiteout(dir, name)?;
        }
        Ok(Marked::Yes)
    }

    pub fn make_opaque(&self, dir: BorrowedFd<'_>) -> SysResult<()> {
        match self.below {
            Below::Nothing => Ok(()),
            Below::Unknown => self.upper.make_opaque(dir),
        }
    }
}

//! What the disk refuses: owners, modes and kinds of files, and attributes, kept in attributes instead.
//!
//! A process without privilege cannot give files away, make devices, or write attributes below `security.`. If
//! options allow it, the upper layer keeps such things in attributes that every owner of a file may write: a
//! [`StatOverride`], and `user.containers.override_NAME` for the attribute NAME. They come back as they were set, in
//! this mount, at the next one, and from fuse-overlayfs. Nothing on the disk enforces them.

use super::marks;
use super::upper::{NO_OVERRIDE, OverridePolicy, Upper, as_owner};
use crate::error::{Error, Result};
use crate::idmap::{OverrideKind, OverrideName, Owner, StatOverride, decode_xattr_name, encode_xattr_name};
use crate::sys::node::RenameMode;
use crate::sys::stat::Stat;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::Kind;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;

impl Upper {
    /// The attribute that overrides owners and modes, if one is in use.
    pub fn overrides(&self) -> Option<OverrideName> {
        OverrideName::ALL.get(usize::from(self.overrides.load(Ordering::Relaxed))).copied()
    }

    /// True if owners are kept in an attribute even where the disk would take them.
    pub fn forces_overrides(&self) -> bool {
        matches!(self.policy, OverridePolicy::Always(_))
    }

    /// True if this process could no longer serve a file with this mode: not read its data and marks, or not work
    /// in the directory. Such a mode is better kept in an attribute. Root of a namespace is not bound by modes.
    pub fn locks_out(&self, kind: Kind, perm: u32) -> bool {
        let needed = match kind {
            Kind::Dir => 0o700,
            Kind::File => 0o400,
            _ => 0,
        };
        self.policy == OverridePolicy::WhenRefused
            && perm & needed != needed
            && sys::process::effective_uid() != 0
    }

    pub(super) fn turn_overrides_on(&self, name: OverrideName) -> Result<()> {
        let place = Place::dir(&self.root);
        if sys::xattr::get_value(place, name.xattr())?.is_none() {
            let stat = sys::stat::stat(place)?;
            let over = override_of(&stat);
            sys::xattr::set(place, name.xattr(), &over.format(), SetMode::Any)
                .map_err(|e| e.during("keep owners in an attribute", name.xattr().to_string_lossy()))?;
        }
        let index = OverrideName::ALL.iter().position(|n| *n == name).unwrap_or(0);
        self.overrides.store(u8::try_from(index).unwrap_or(NO_OVERRIDE), Ordering::Relaxed);
        Ok(())
    }

    /// Gives a new file its owner, its mode, and what else the disk may refuse.
    ///
    /// `stat` is what the file has now. With `lossy` an owner that the disk refuses is given up silently.
    ///
    /// # Errors
    /// Those of the disk, if they cannot be kept in an attribute either.
    pub fn settle(&self, place: Place<'_>, stat: &Stat, owner: Owner, perm: u32, lossy: Lossy) -> Result<()> {
        if self.forces_overrides() {
            return self.override_stat(place, stat, owner, perm);
        }
        if self.locks_out(stat.kind(), perm) && self.override_stat(place, stat, owner, perm).is_ok() {
            return keep_accessible(place, stat, perm);
        }
        let same_owner = (stat.uid, stat.gid) == (owner.uid, owner.gid);
        if !same_owner {
            match sys::stat::chown(place, Some(owner.uid), Some(owner.gid)) {
                Ok(()) => {}
                Err(e) if e.is_owner_refused() => {
                    if lossy == Lossy::No {
                        self.override_stat(place, stat, owner, perm)?;
                        return keep_accessible(place, stat, perm);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        // A chown takes the setuid and setgid bits away.
        let is_special = perm & 0o6000 != 0 && !same_owner;
        if stat.kind() != Kind::Symlink && (stat.mode & 0o7777 != perm || is_special) {
            sys::stat::chmod(place, perm)?;
        }
        Ok(())
    }

    /// Keeps owner and mode in an attribute, and turns that on for the layer if it was not.
    ///
    /// # Errors
    /// EPERM if options forbid it; else those of the disk.
    pub fn override_stat(&self, place: Place<'_>, stat: &Stat, owner: Owner, perm: u32) -> Result<()> {
        if self.policy == OverridePolicy::Never {
            return Err(Error::from_errno(libc::EPERM));
        }
        let name = match self.overrides() {
            Some(name) => name,
            None => {
                self.turn_overrides_on(OverrideName::UserContainers)?;
                OverrideName::UserContainers
            }
        };
        let over = StatOverride { uid: owner.uid, gid: owner.gid, mode: perm & 0o7777, kind: kind_of(stat) };
        match sys::xattr::set(place, name.xattr(), &over.format(), SetMode::Any) {
            // The mode on disk binds this process too. From now on the attribute says what users see, so it
            // may give its owner all.
            Err(e) if e.errno() == libc::EACCES => {
                let mode = sys::stat::stat(place)?.mode;
                let own = if Kind::from_mode(mode) == Kind::Dir { 0o700 } else { 0o600 };
                sys::stat::chmod(place, mode & 0o7777 | own)?;
                sys::xattr::set(place, name.xattr(), &over.format(), SetMode::Any)
            }
            other => other,
        }
    }

    /// Puts a regular file in the place of one that cannot carry attributes, to stand for it.
    ///
    /// # Errors
    /// Those of the disk; then the old one is still there.
    pub fn replace_by_stand_in(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        owner: Owner,
        perm: u32,
    ) -> Result<()> {
        let target = match stat.kind() {
            Kind::Symlink => sys::node::read_link(dir, name)?,
            _ => Vec::new(),
        };
        let temp = self.temp_name();
        self.make_stand_in(self.work(), &temp, stat, &target, owner, perm)?;
        sys::node::rename(self.work(), &temp, dir, name, RenameMode::Replace)
    }

    /// Makes a regular file that stands for a symlink, device, fifo or socket.
    ///
    /// # Errors
    /// Those of the disk; then nothing is left.
    pub fn make_stand_in(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        content: &[u8],
        owner: Owner,
        perm: u32,
    ) -> Result<()> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        let file = sys::open::open_at(dir, name, flags, 0o600)?;
        let made = sys::copy::write_at(file.as_fd(), content, 0)
            .and_then(|_| self.override_stat(Place::Fd(file.as_fd()), stat, owner, perm));
        if made.is_err() {
            let _ = sys::node::unlink(dir, name);
        }
        made
    }

    // Attributes -------------------------------------------------------------------------------------------

    /// Where an attribute is kept that the disk refuses, if this layer keeps such attributes.
    pub fn kept_name(&self, attribute: &CStr) -> Option<CString> {
        kept_name(self.overrides(), attribute)
    }

    /// From now on keeps attributes that the disk refuses, if options allow it; false if they do not.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn keep_attributes(&self) -> Result<bool> {
        if self.policy == OverridePolicy::WhenRefused && self.overrides().is_none() {
            self.turn_overrides_on(OverrideName::UserContainers)?;
        }
        Ok(self.overrides().is_some_and(OverrideName::keeps_attributes))
    }

    /// Sets an attribute, called as on disk; one that the disk refuses is kept, if this layer does that.
    ///
    /// # Errors
    /// As `setxattr(2)`.
    pub fn set_attribute(&self, place: Place<'_>, name: &CStr, value: &[u8], mode: SetMode) -> Result<()> {
        let Some(kept) = self.kept_name(name) else { return sys::xattr::set(place, name, value, mode) };
        let get = |name: &CStr| sys::xattr::get_value(place, name);
        match (mode, get_kept(Some(&kept), name, get)?) {
            (SetMode::Create, Some(_)) => return Err(Error::from_errno(libc::EEXIST)),
            (SetMode::Replace, None) => return Err(Error::from_errno(libc::ENODATA)),
            _ => {}
        }
        let as_it_is = match self.forces_overrides() {
            true => Err(Error::from_errno(libc::EPERM)),
            false => sys::xattr::set(place, name, value, SetMode::Any),
        };
        match as_it_is {
            Err(e) if e.is_attribute_refused() => {
                as_owner(place, || sys::xattr::set(place, &kept, value, SetMode::Any))
                    .map_err(|other| if other.is_attribute_refused() { e } else { other })
            }
            Ok(()) => match as_owner(place, || sys::xattr::remove(place, &kept)) {
                Err(e) if !e.is_no_attribute() => Err(e),
                _ => Ok(()),
            },
            other => other,
        }
    }

    /// Removes an attribute, called as on disk, wherever it is.
    ///
    /// # Errors
    /// As `removexattr(2)`.
    pub fn remove_attribute(&self, place: Place<'_>, name: &CStr) -> Result<()> {
        let Some(kept) = self.kept_name(name) else { return sys::xattr::remove(place, name) };
        match as_owner(place, || sys::xattr::remove(place, &kept)) {
            Err(e) if e.is_no_attribute() => sys::xattr::remove(place, name),
            Err(e) => Err(e),
            Ok(()) => match sys::xattr::remove(place, name) {
                Err(e) if e.is_no_attribute() => Ok(()),
                // Whoever may not remove it is told so even if it is not there.
                Err(e) if e.is_denied() && sys::xattr::get_value(place, name)?.is_none() => Ok(()),
                other => other,
            },
        }
    }
}

/// Where a layer with these overrides keeps an attribute that only root may write; `None` for others, and for the
/// marks of a layer.
pub fn kept_name(overrides: Option<OverrideName>, attribute: &CStr) -> Option<CString> {
    let keeps = overrides.is_some_and(OverrideName::keeps_attributes);
    if keeps && is_for_root(attribute.to_bytes()) { encode_xattr_name(attribute) } else { None }
}

/// The attribute that a layer with these overrides keeps under this name.
pub fn shown_name(overrides: Option<OverrideName>, on_disk: &[u8]) -> Option<&[u8]> {
    let keeps = overrides.is_some_and(OverrideName::keeps_attributes);
    decode_xattr_name(on_disk).filter(|name| keeps && is_for_root(name))
}

/// Reads an attribute: what is kept counts more than what the disk has under its own name.
///
/// # Errors
/// Those of `get`.
pub fn get_kept(
    kept: Option<&CStr>,
    name: &CStr,
    get: impl Fn(&CStr) -> Result<Option<Vec<u8>>>,
) -> Result<Option<Vec<u8>>> {
    match kept.map(&get).transpose()?.flatten() {
        None => get(name),
        value => Ok(value),
    }
}

fn is_for_root(attribute: &[u8]) -> bool {
    let is_below = |prefix: &[u8]| attribute.starts_with(prefix);
    (is_below(b"security.") || is_below(b"trusted."))
        && marks::unescape(attribute).as_deref() == Some(attribute)
}

/// Whether an owner may be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lossy {
    /// It is kept, or the call fails.
    No,
    /// It is not shown anyway.
    Yes,
}

/// Sets the mode on disk of a file whose mode is in an attribute: one that lets its owner, this process, in; and
/// without setuid and setgid, which would make others run it as that owner.
fn keep_accessible(place: Place<'_>, stat: &Stat, perm: u32) -> Result<()> {
    let own = match stat.kind() {
        Kind::Symlink => return Ok(()),
        Kind::Dir => 0o700,
        _ => 0o600,
    };
    sys::stat::chmod(place, perm & 0o777 | own)
}

fn kind_of(stat: &Stat) -> Option<OverrideKind> {
    OverrideKind::from_stat(stat.mode, libc::makedev(stat.rdev.major, stat.rdev.minor))
}

/// The override that says what the inode says.
pub fn override_of(stat: &Stat) -> StatOverride {
    StatOverride { uid: stat.uid, gid: stat.gid, mode: stat.mode & 0o7777, kind: kind_of(stat) }
}

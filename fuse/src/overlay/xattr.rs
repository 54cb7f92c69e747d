//! Extended attributes, as users of the merged tree see them.
//!
//! Marks of the layers are not shown and cannot be set; an attribute of that name that a user sets, for an
//! overlay of his own inside, is stored one level down and comes back as it was (see
//! [`crate::layer::marks::escape`]). What only root may write is kept under another name where the disk refuses it and
//! the layer keeps owners in attributes ([`crate::layer::refused`]): a file capability reads back then, and goes with a
//! write or a chown, as ever; but no kernel has checked it, and a mount without `suid` gives nobody what it says.

use super::Overlay;
use super::place::dir_part;
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::idmap::OverrideName;
use crate::inode::node::{At, Node};
use crate::layer::marks::{self, Mark, Namespace};
use crate::layer::refused;
use crate::sys::xattr::{Names, SetMode};
use crate::sys::{self, Place};
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// What an access control list is called.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// What a file lets its caller do.
const CAPABILITY: &CStr = c"security.capability";

impl Overlay {
    fn on_disk(&self, name: &[u8]) -> Result<CString> {
        let own = self.upper.as_ref().map_or(Namespace::User, crate::layer::upper::Upper::namespace);
        marks::escape(name, own).ok_or(Error::from_errno(libc::ERANGE))
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA if it is not set; EOPNOTSUPP where there are none.
    pub fn xattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<Vec<u8>> {
        let value = match self.raw_xattr(node, &self.on_disk(name)?)? {
            None if marks::is_escaped(name) => {
                // A layer that was made with the other namespace keeps escaped names there.
                self.raw_xattr_any_namespace(node, name)?
            }
            value => value,
        };
        value.ok_or(Error::from_errno(libc::ENODATA))
    }

    fn raw_xattr_any_namespace(&self, node: &Arc<Node>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        for own in [Namespace::User, Namespace::Trusted] {
            let Some(on_disk) = marks::escape(name, own) else { continue };
            let value = self.raw_xattr(node, &on_disk)?;
            if value.is_some() {
                return Ok(value);
            }
        }
        Ok(None)
    }

    fn raw_xattr(&self, node: &Arc<Node>, on_disk: &CStr) -> Result<Option<Vec<u8>>> {
        let place = node.place.read();
        match place.at {
            At::Upper => {
                let kept = self.writable()?.kept_name(on_disk);
                self.with_upper_place(&place, |at| {
                    refused::get_kept(kept.as_deref(), on_disk, |name| sys::xattr::get_value(at, name))
                })
            }
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                let kept = refused::kept_name(layer.overrides(), on_disk);
                refused::get_kept(kept.as_deref(), on_disk, |on_disk| layer.xattr(dir, name, on_disk))
            }
        }
    }

    /// The names on disk, and what the layer keeps owners in.
    fn raw_names(&self, node: &Arc<Node>) -> Result<(Names, Option<OverrideName>)> {
        let place = node.place.read();
        match place.at {
            At::Upper => {
                let names = self.with_upper_place(&place, sys::xattr::list)?;
                Ok((names, self.writable()?.overrides()))
            }
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                Ok((layer.xattr_names(dir, name)?, layer.overrides()))
            }
        }
    }

    /// The names of all attributes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn xattr_names(&self, node: &Arc<Node>) -> Result<Vec<Vec<u8>>> {
        let (names, overrides) = self.raw_names(node)?;
        let mut shown: Vec<Vec<u8>> = Vec::new();
        for on_disk in names.iter() {
            let kept = refused::shown_name(overrides, on_disk);
            if let Some(name) = kept.map(<[u8]>::to_vec).or_else(|| marks::unescape(on_disk))
                && !shown.contains(&name)
            {
                shown.push(name);
            }
        }
        Ok(shown)
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// EROFS, EEXIST, ENODATA, ENOSPC, EPERM, EOPNOTSUPP as `setxattr(2)`; ERANGE if the name is too long to
    /// be stored.
    pub fn set_xattr(&self, node: &Arc<Node>, name: &[u8], value: &[u8], mode: SetMode) -> Result<()> {
        let upper = self.writable()?;
        let on_disk = self.on_disk(name)?;
        self.copy_up(node, Want::Attributes)?;
        let set = || self.with_upper(node, |at| upper.set_attribute(at, &on_disk, value, mode));
        match set() {
            Err(e) if e.is_attribute_refused() && *on_disk == *CAPABILITY && upper.overrides().is_none() => {
                if !upper.keep_attributes()? {
                    return Err(e);
                }
                set()?;
            }
            other => other?,
        }
        if *on_disk == *CAPABILITY {
            // Who writes next has to open the file, and takes it away.
            self.writers.remove(&node.ino);
        }
        if name.starts_with(ACL_PREFIX) {
            let root = Place::At(upper.root(), b".");
            // Next time the kernel is told that there are lists; without the mark it still sees the list.
            let _ = upper.set_mark(root, Mark::Acl, b"y");
            self.note_default_acl(node, name)?;
        }
        Ok(())
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// EROFS; ENODATA if it is not set.
    pub fn remove_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.writable()?;
        let on_disk = self.on_disk(name)?;
        if self.raw_xattr(node, &on_disk)?.is_none() {
            return Err(Error::from_errno(libc::ENODATA));
        }
        self.copy_up(node, Want::Attributes)?;
        let upper = self.writable()?;
        self.with_upper(node, |at| upper.remove_attribute(at, &on_disk))?;
        self.note_default_acl(node, name)
    }

    /// A file is about to be written or given away: its capability goes, where the disk does not know that it has one.
    ///
    /// Not asked for by each write: a descriptor is kept to write by only while the file has none.
    pub(crate) fn drop_kept_capability(&self, at: Place<'_>) -> Result<()> {
        let Some(kept) = self.writable()?.kept_name(CAPABILITY) else { return Ok(()) };
        match sys::xattr::remove(at, &kept) {
            Err(e) if !e.is_no_attribute() && !e.is_denied() => Err(e),
            _ => Ok(()),
        }
    }

    /// True if a file has a capability that the disk does not know of.
    pub(crate) fn has_kept_capability(&self, at: Place<'_>) -> bool {
        let kept = self.upper.as_ref().and_then(|upper| upper.kept_name(CAPABILITY));
        kept.is_some_and(|kept| !matches!(sys::xattr::get_value(at, &kept), Ok(None)))
    }

    fn note_default_acl(&self, node: &Arc<Node>, name: &[u8]) -> Result<()> {
        if name != b"system.posix_acl_default" || !node.is_dir() {
            return Ok(());
        }
        let has_one = self.raw_xattr(node, c"system.posix_acl_default")?.is_some();
        if let Some(upper) = &mut dir_part(node)?.state.write().upper {
            upper.context.default_acl = has_one;
        }
        Ok(())
    }
}

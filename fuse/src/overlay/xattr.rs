//! Extended attributes, as users of the merged tree see them.
//!
//! Marks of the layers are not shown and cannot be set; an attribute of that name that a user sets, for an
//! overlay of his own inside, is stored one level down and comes back as it was (see
//! [`crate::layer::marks::escape`]).

use super::Overlay;
use super::place::dir_part;
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::inode::node::{At, Node};
use crate::layer::marks::{self, Mark, Namespace};
use crate::sys::xattr::{Names, SetMode};
use crate::sys::{self, Place};
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// What an access control list is called.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

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
            None if marks::mark_of(name).is_some() || name.starts_with(b"user.overlay.") => {
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
            At::Upper => self.with_upper_place(&place, |at| sys::xattr::get_value(at, on_disk)),
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                layer.xattr(dir, name, on_disk)
            }
        }
    }

    fn raw_names(&self, node: &Arc<Node>) -> Result<Names> {
        let place = node.place.read();
        match place.at {
            At::Upper => self.with_upper_place(&place, sys::xattr::list),
            At::Lower(_) => {
                let (layer, dir, name) = self.lower_place(node, &place)?;
                layer.xattr_names(dir, name)
            }
        }
    }

    /// The names of all attributes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn xattr_names(&self, node: &Arc<Node>) -> Result<Vec<Vec<u8>>> {
        let names = self.raw_names(node)?;
        Ok(names.iter().filter_map(marks::unescape).collect())
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
        self.with_upper(node, |at| sys::xattr::set(at, &on_disk, value, mode))?;
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
        self.with_upper(node, |at| sys::xattr::remove(at, &on_disk))?;
        self.note_default_acl(node, name)
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

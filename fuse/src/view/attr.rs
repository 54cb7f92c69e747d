//! Attributes by path: reading and changing them, and extended attributes.

use super::path::{Follow, Here};
use super::{ACL_ACCESS, View, during};
use crate::access::{
    Acl, Through, kill_privileges_on_write, lists_xattr, may_get_xattr, may_remove_xattr, may_set_attr,
    may_set_xattr, perm_after_acl,
};
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::overlay::attr::Privileges;
use crate::sys::xattr::SetMode;
use crate::types::{Attr, Kind, SetAttr, SetTime};
use std::path::Path;
use std::sync::Arc;

const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
const S_ISUGID: u32 = libc::S_ISUID | libc::S_ISGID;

impl View {
    /// The attributes of what `path` names; symlinks are followed.
    ///
    /// # Errors
    /// As for every path: ENOENT if it is empty or a name on it does not exist; ENOTDIR if what stands before
    /// a slash is no directory; EACCES for a directory on the way that the caller may not search; ELOOP after
    /// 40 symlinks; ENAMETOOLONG for a name above 255 or a path above 4095 bytes; EINVAL for a NUL. And those
    /// of the disk.
    pub fn metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        during("stat", path.as_ref(), |path| Ok(self.find(path, Follow::Yes)?.attr))
    }

    /// The attributes of what `path` names, even if it is a symlink.
    ///
    /// # Errors
    /// Those of [`View::metadata`].
    pub fn symlink_metadata(&self, path: impl AsRef<Path>) -> Result<Attr> {
        during("lstat", path.as_ref(), |path| Ok(self.find(path, Follow::No)?.attr))
    }

    /// Whether `path` names something; a symlink is followed.
    ///
    /// # Errors
    /// Those of [`View::metadata`] that say neither yes nor no, such as EACCES and ELOOP.
    pub fn exists(&self, path: impl AsRef<Path>) -> Result<bool> {
        match self.metadata(path) {
            Ok(_) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sets the permission bits, with setuid, setgid and sticky: `perm & 0o7777`. Symlinks are followed.
    ///
    /// # Errors
    /// EPERM unless owner or root; EROFS; those of [`View::metadata`].
    pub fn set_permissions(&self, path: impl AsRef<Path>, perm: u32) -> Result<()> {
        let change = SetAttr { perm: Some(perm & 0o7777), ..SetAttr::default() };
        self.change_path("chmod", path.as_ref(), Follow::Yes, change)
    }

    /// Sets owner and group; `None` leaves one as it is. Symlinks are followed.
    ///
    /// # Errors
    /// EPERM unless root, or the owner who chooses among its own groups; EROFS; those of [`View::metadata`].
    pub fn chown(&self, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.change_path("chown", path.as_ref(), Follow::Yes, SetAttr { uid, gid, ..SetAttr::default() })
    }

    /// Sets owner and group, even of a symlink.
    ///
    /// # Errors
    /// Those of [`View::chown`].
    pub fn lchown(&self, path: impl AsRef<Path>, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        self.change_path("lchown", path.as_ref(), Follow::No, SetAttr { uid, gid, ..SetAttr::default() })
    }

    /// Sets access and modification time; `None` leaves one as it is. Symlinks are followed.
    ///
    /// # Errors
    /// EPERM unless owner or root; EACCES if both are to be set to now by somebody who may not write either;
    /// EROFS; those of [`View::metadata`].
    pub fn set_times(
        &self,
        path: impl AsRef<Path>,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<()> {
        self.change_path(
            "set times",
            path.as_ref(),
            Follow::Yes,
            SetAttr { atime, mtime, ..SetAttr::default() },
        )
    }

    /// Sets the times, even of a symlink.
    ///
    /// # Errors
    /// Those of [`View::set_times`].
    pub fn set_symlink_times(
        &self,
        path: impl AsRef<Path>,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<()> {
        self.change_path(
            "set times",
            path.as_ref(),
            Follow::No,
            SetAttr { atime, mtime, ..SetAttr::default() },
        )
    }

    /// Sets the size of a regular file, in bytes.
    ///
    /// # Errors
    /// EACCES for who may not write; EISDIR; EINVAL for what is no regular file; EROFS; those of
    /// [`View::metadata`].
    pub fn truncate(&self, path: impl AsRef<Path>, size_bytes: u64) -> Result<()> {
        let change = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
        self.change_path("truncate", path.as_ref(), Follow::Yes, change)
    }

    /// The value of an extended attribute; `None` if it is not set, or hidden from the caller.
    ///
    /// Here as in the other functions about them symlinks are followed.
    ///
    /// # Errors
    /// EACCES for `user.*` without the right to read; EOPNOTSUPP where there are none; those of
    /// [`View::metadata`].
    pub fn xattr(&self, path: impl AsRef<Path>, name: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>> {
        during("get attribute", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            let acl = self.acl_of(here.node(), &here.attr)?;
            let value = may_get_xattr(name.as_ref(), &here.attr, acl.as_ref(), &self.who)
                .and_then(|()| self.overlay.xattr(here.node(), name.as_ref()));
            match value {
                Err(e) if e.errno() == libc::ENODATA => Ok(None),
                other => other.map(Some),
            }
        })
    }

    /// The names of all extended attributes that the caller may know of, sorted.
    ///
    /// # Errors
    /// Those of [`View::metadata`].
    pub fn xattrs(&self, path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
        during("list attributes", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            let mut names = self.overlay.xattr_names(here.node())?;
            names.retain(|name| lists_xattr(name, &self.who));
            names.sort();
            Ok(names)
        })
    }

    /// Sets an extended attribute. An access control list sets the mode too, and vanishes if the mode says it
    /// all.
    ///
    /// # Errors
    /// EPERM for `trusted.*` and `security.*` unless root, for `user.*` on what is neither file nor directory,
    /// and for a list unless owner or root; EACCES for `user.*` without the right to write, and for a default
    /// list on what is no directory; EINVAL for a list that is none; EROFS; ENOSPC; EOPNOTSUPP; those of
    /// [`View::metadata`].
    pub fn set_xattr(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.set_xattr_if(path, name, value, SetMode::Any)
    }

    /// Sets an extended attribute that must be new, or must be there, as `mode` says; lists ignore it.
    ///
    /// # Errors
    /// EEXIST, ENODATA; those of [`View::set_xattr`].
    pub fn set_xattr_if(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        mode: SetMode,
    ) -> Result<()> {
        let (name, value) = (name.as_ref(), value.as_ref());
        during("set attribute", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            self.writable()?;
            if name == ACL_ACCESS || name == ACL_DEFAULT {
                return self.set_acl(&here, name, value);
            }
            let acl = self.acl_of(here.node(), &here.attr)?;
            may_set_xattr(name, &here.attr, acl.as_ref(), &self.who)?;
            self.overlay.set_xattr(here.node(), name, value, mode)
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// ENODATA if it is not set; those of [`View::set_xattr`].
    pub fn remove_xattr(&self, path: impl AsRef<Path>, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref();
        during("remove attribute", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            self.writable()?;
            let acl = self.acl_of(here.node(), &here.attr)?;
            may_remove_xattr(name, &here.attr, acl.as_ref(), &self.who)?;
            match self.overlay.remove_xattr(here.node(), name) {
                // To be without a list is what was asked for.
                Err(e) if e.is_no_attribute() && (name == ACL_ACCESS || name == ACL_DEFAULT) => Ok(()),
                other => other,
            }
        })
    }

    fn set_acl(&self, here: &Here, name: &[u8], value: &[u8]) -> Result<()> {
        let node = here.node();
        let remove = || match self.overlay.remove_xattr(node, name) {
            Err(e) if e.is_no_attribute() => Ok(()),
            other => other,
        };
        let Some(list) = Acl::parse(value)? else {
            may_remove_xattr(name, &here.attr, None, &self.who)?;
            return remove();
        };
        may_set_xattr(name, &here.attr, None, &self.who)?;
        if name == ACL_DEFAULT {
            return self.overlay.set_xattr(node, name, &list.format(), SetMode::Any);
        }
        let (stored, perm) = perm_after_acl(&here.attr, &self.who, list);
        match stored {
            Some(list) => self.overlay.set_xattr(node, name, &list.format(), SetMode::Any)?,
            None => remove()?,
        }
        // The disk did the same to the mode, unless the mode is kept elsewhere.
        if self.overlay.attributes(node)?.perm != perm {
            let change = SetAttr { perm: Some(perm), ..SetAttr::default() };
            self.overlay.set_attributes(node, &change, Privileges::Keep)?;
        }
        Ok(())
    }

    fn change_path(
        &self,
        operation: &'static str,
        path: &Path,
        follow: Follow,
        change: SetAttr,
    ) -> Result<()> {
        during(operation, path, |path| {
            let here = self.find(path, follow)?;
            self.change(here.node(), &here.attr, change, Through::Path).map(drop)
        })
    }

    /// Asks for a change of attributes and makes it; returns the new ones.
    pub(super) fn change(
        &self,
        node: &Arc<Node>,
        attr: &Attr,
        change: SetAttr,
        through: Through,
    ) -> Result<Attr> {
        // Asked before the permission, as the kernel does, but after what no truncation can be made of.
        let is_truncatable = attr.kind == Kind::File || change.size_bytes.is_none();
        if is_truncatable {
            self.writable()?;
        }
        let acl = match change.size_bytes.is_some() || change.atime.is_some() || change.mtime.is_some() {
            true => self.acl_of(node, attr)?,
            false => None,
        };
        let mut todo = may_set_attr(attr, acl.as_ref(), &self.who, &change, through)?;
        if todo.size_bytes.is_some() && attr.perm & S_ISUGID != 0 {
            // The disk takes them away if this process is not privileged, whatever the caller is.
            todo.perm = todo.perm.or(Some(attr.perm));
        }
        self.overlay.set_attributes(node, &todo, Privileges::Keep)
    }

    /// Leaves the setuid and setgid bits that a write by the caller has to leave; `before` is from before it.
    ///
    /// The disk below decides by the privileges of this process, which may be more or less than the caller's.
    pub(super) fn settle_privileges(&self, node: &Arc<Node>, before: &Attr) -> Result<()> {
        if before.perm & S_ISUGID == 0 {
            return Ok(());
        }
        let wanted = kill_privileges_on_write(before, &self.who).unwrap_or(before.perm) & S_ISUGID;
        let now = self.overlay.attributes(node)?.perm;
        if now & S_ISUGID == wanted {
            return Ok(());
        }
        let change = SetAttr { perm: Some(now & !S_ISUGID | wanted), ..SetAttr::default() };
        self.overlay.set_attributes(node, &change, Privileges::Keep).map(drop)
    }

    /// EISDIR for a directory, this errno for what else is no regular file.
    pub(super) fn expect_file(attr: &Attr, otherwise: i32) -> Result<()> {
        match attr.kind {
            Kind::File => Ok(()),
            Kind::Dir => Err(Error::from_errno(libc::EISDIR)),
            _ => Err(Error::from_errno(otherwise)),
        }
    }
}

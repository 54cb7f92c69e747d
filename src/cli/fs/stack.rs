//! A snapshot that is a stack of layers, seen as root of its tree sees it.

use super::files::{Change, Content, Files, Links, Meta, Node};
use plywood_fuse::error::{Error, Result};
use plywood_fuse::overlay::{Metacopy, Overlay, Renames, Settings, TopLayer};
use plywood_fuse::types::{Identity, Kind, SetTime};
use plywood_fuse::view::{File, Open, View};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The stack. What is written to it can be read by the kernel's overlayfs too, whatever mounts it next: no directory
/// is redirected, and no file has its data elsewhere.
pub struct Stack(View);

impl Stack {
    /// The stack of `lowers`, top first, to look at.
    ///
    /// # Errors
    /// With the directory named.
    pub fn read_only(lowers: &[PathBuf]) -> Result<Stack> {
        // The top one may be the upper layer of a mount.
        let settings = Settings { top_layer: TopLayer::MayChange, ..Settings::default() };
        Ok(Stack::of(Overlay::open(lowers, None, settings)?))
    }

    /// The stack with an upper layer and its work directory, to change.
    ///
    /// # Errors
    /// EBUSY while somebody has mounted it; with the directory named.
    pub fn writable(lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<Stack> {
        let settings = Settings { renames: Renames::Copy, metacopy: Metacopy::Off, ..Settings::default() };
        let overlay = Overlay::open(lowers, Some((upper, work)), settings)?;
        match overlay.warning() {
            Some(_) => Err(Error::from_errno(libc::EBUSY)),
            None => Ok(Stack::of(overlay)),
        }
    }

    fn of(overlay: Overlay) -> Stack {
        Stack(View::new(Arc::new(overlay), Identity::root()))
    }
}

impl Content for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize> {
        File::read_at(self, buffer, at)
    }

    fn write_all_at(&self, data: &[u8], at: u64) -> Result<()> {
        File::write_all_at(self, data, at)
    }

    fn set_len(&self, size_bytes: u64) -> Result<()> {
        File::set_len(self, size_bytes)
    }
}

/// Permissions of what is being made.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

impl Files for Stack {
    fn stat(&self, path: &Path, links: Links) -> Result<Meta> {
        let attr = match links {
            Links::Follow => self.0.metadata(path),
            Links::Keep => self.0.symlink_metadata(path),
        }?;
        Ok(Meta { attr, device: 0 })
    }

    fn names(&self, dir: &Path) -> Result<Vec<OsString>> {
        self.0.names(dir)
    }

    fn read_link(&self, path: &Path) -> Result<OsString> {
        self.0.read_link(path)
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Content>> {
        if self.0.metadata(path)?.kind == Kind::Dir {
            return Err(Error::from_errno(libc::EISDIR).during("open", path.display().to_string()));
        }
        Ok(Box::new(self.0.open(path, Open::read())?))
    }

    fn overwrite(&self, path: &Path) -> Result<Box<dyn Content>> {
        Ok(Box::new(self.0.open(path, Open::write().truncate())?))
    }

    fn create(&self, path: &Path) -> Result<Box<dyn Content>> {
        Ok(Box::new(self.0.open(path, Open::write().create_new().mode(PRIVATE_FILE))?))
    }

    fn make(&self, path: &Path, node: &Node) -> Result<()> {
        match node {
            Node::Dir => self.0.create_dir_with(path, PRIVATE_DIR),
            Node::Symlink(target) => self.0.symlink(target, path),
            Node::Special(kind, device) => self.0.mknod(path, *kind, PRIVATE_FILE, *device),
        }
    }

    fn link(&self, existing: &Path, path: &Path) -> Result<()> {
        self.0.link(existing, path)
    }

    fn change(&self, path: &Path, change: Change) -> Result<()> {
        if let Some((uid, gid)) = change.owner {
            self.0.lchown(path, Some(uid), Some(gid))?;
        }
        if let Some(perm) = change.perm
            && self.0.symlink_metadata(path)?.kind != Kind::Symlink
        {
            self.0.set_permissions(path, perm)?;
        }
        if let Some((atime, mtime)) = change.times {
            self.0.set_symlink_times(path, Some(SetTime::At(atime)), Some(SetTime::At(mtime)))?;
        }
        Ok(())
    }

    fn xattrs(&self, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = self.0.xattrs(path)?;
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            if let Some(value) = self.0.xattr(path, &name)? {
                all.push((name, value));
            }
        }
        Ok(all)
    }

    fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> Result<()> {
        self.0.set_xattr(path, name, value)
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.0.remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        if self.0.symlink_metadata(path)?.kind != Kind::Dir {
            return Err(Error::from_errno(libc::ENOTDIR).during("remove tree", path.display().to_string()));
        }
        self.0.remove_dir_all(path)
    }
}

//! The seam behind which a layer stands.
//!
//! The merge asks a [`LayerSource`] about names and never about files on a disk, so that a layer can also be
//! an index of a committed snapshot that answers without system calls. Data always comes as an open
//! descriptor.

use crate::error::Result;
use crate::idmap::OverrideName;
use crate::layer::entry::{DirContext, Found, LayerEntry};
use crate::layer::marks::Origin;
use crate::sys::dir::{Listed, RawName};
use crate::sys::stat::FsStat;
use crate::sys::xattr::Names;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A directory of a layer: its path from the root of the layer, without slashes at its ends; empty for the
/// root. Not the path in the merged tree: a redirect makes them differ.
pub type LayerPath = Arc<[u8]>;

/// Reads one immutable layer.
pub trait LayerSource: Send + Sync {
    /// A name for messages.
    fn describe(&self) -> String;

    /// The root directory itself.
    ///
    /// # Errors
    /// Those of the disk.
    fn root(&self) -> Result<Found>;

    /// The attribute that overrides owners and modes in this layer, if it has any.
    fn overrides(&self) -> Option<OverrideName>;

    /// What this layer says about `name` in `dir`.
    ///
    /// # Errors
    /// Those of the disk; "not there" is an answer, not an error.
    fn entry(&self, dir: &LayerPath, context: DirContext, name: &[u8]) -> Result<LayerEntry>;

    /// True if `dir` has a regular, empty file `name` that no one marked as meant literally.
    ///
    /// # Errors
    /// Those of the disk.
    fn has_mark_file(&self, dir: &LayerPath, name: &[u8]) -> Result<bool>;

    /// Lists `dir` with at most `reads` reads of the disk.
    ///
    /// # Errors
    /// Those of the disk.
    fn list(&self, dir: &LayerPath, reads: usize, each: &mut dyn FnMut(RawName<'_>)) -> Result<Listed>;

    /// Opens a regular file to read its data.
    ///
    /// # Errors
    /// Those of the disk.
    fn open(&self, dir: &LayerPath, name: &[u8]) -> Result<OwnedFd>;

    /// Reads a symlink.
    ///
    /// # Errors
    /// Those of the disk.
    fn read_link(&self, dir: &LayerPath, name: &[u8]) -> Result<Vec<u8>>;

    /// The value of an attribute as it is called on disk; an empty `name` means `dir` itself.
    ///
    /// # Errors
    /// Those of the disk; "not set" is an answer.
    fn xattr(&self, dir: &LayerPath, name: &[u8], attribute: &CStr) -> Result<Option<Vec<u8>>>;

    /// The names of all attributes as they are called on disk; an empty `name` means `dir` itself.
    ///
    /// # Errors
    /// Those of the disk.
    fn xattr_names(&self, dir: &LayerPath, name: &[u8]) -> Result<Names>;

    /// The origin that a copy of this file gets, if the disk has file handles.
    fn origin(&self, dir: &LayerPath, name: &[u8]) -> Option<Origin>;

    /// The UUID of the file system, if it tells.
    fn uuid(&self) -> Option<[u8; 16]>;

    /// The room on the file system.
    ///
    /// # Errors
    /// Those of the disk.
    fn stat_fs(&self) -> Result<FsStat>;
}

/// The path of the entry `name` of `dir`.
pub fn child_path(dir: &LayerPath, name: &[u8]) -> LayerPath {
    if dir.is_empty() {
        return name.into();
    }
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path.into()
}

/// The directory and the last component of a path that is not empty.
pub fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

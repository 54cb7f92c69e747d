//! What the commands on files need of a tree of files, whatever keeps it.
//!
//! Two things do: a stack of layers ([`super::stack`]), and a plain directory ([`super::plain`]), which is a snapshot
//! in one piece or this machine. Failures name the operation and the path.

use plywood_fuse::error::{Error, Result};
use plywood_fuse::types::{Attr, Device, Kind, Time};
use std::ffi::OsString;
use std::path::Path;

/// Whether a symlink at the end of a path is what is meant, or what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What it leads to.
    Follow,
    /// The symlink.
    Keep,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    /// Its attributes.
    pub attr: Attr,
    /// Tells apart inodes of the same number: the device, where a tree has several.
    pub device: u64,
}

impl Meta {
    /// What tells a file from all others of its tree.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.attr.ino.0)
    }

    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.attr.kind == Kind::Dir
    }
}

/// What is made without content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Dir,
    /// A symlink to this target.
    Symlink(OsString),
    /// A pipe or a device.
    Special(Kind, Device),
}

/// Attributes to set; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// User and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits, with setuid, setgid and sticky; not of symlinks.
    pub perm: Option<u32>,
    /// Last access and last change of the content.
    pub times: Option<(Time, Time)>,
}

/// The content of a regular file.
pub trait Content {
    /// Reads until `buffer` is full or the file ends; returns how many bytes came.
    ///
    /// # Errors
    /// Those of the disk.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize>;

    /// Writes all of `data`.
    ///
    /// # Errors
    /// ENOSPC; those of the disk.
    fn write_all_at(&self, data: &[u8], at: u64) -> Result<()>;

    /// Sets the size in bytes.
    ///
    /// # Errors
    /// Those of the disk.
    fn set_len(&self, size_bytes: u64) -> Result<()>;
}

/// A tree of files. Symlinks within a path are followed, and none leads out of a snapshot. The functions without
/// [`Links`] that take a path to an existing file follow a symlink at its end if they are about content, and keep it
/// if they are about the name.
pub trait Files {
    /// What is known of a file.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; those of the disk.
    fn stat(&self, path: &Path, links: Links) -> Result<Meta>;

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR; those of the disk.
    fn names(&self, dir: &Path) -> Result<Vec<OsString>>;

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL if it is none.
    fn read_link(&self, path: &Path) -> Result<OsString>;

    /// Opens a regular file to read it.
    ///
    /// # Errors
    /// EISDIR; ENXIO for a pipe, socket or device, which are never opened.
    fn open(&self, path: &Path) -> Result<Box<dyn Content>>;

    /// Opens a regular file to write it, cut to nothing.
    ///
    /// # Errors
    /// As [`Files::open`]; EROFS.
    fn overwrite(&self, path: &Path) -> Result<Box<dyn Content>>;

    /// Makes a regular file that nobody else may read yet, and opens it to write it.
    ///
    /// # Errors
    /// EEXIST; ENOENT and ENOTDIR for what is to hold it; EROFS, ENOSPC.
    fn create(&self, path: &Path) -> Result<Box<dyn Content>>;

    /// Makes what has no content, with permissions for its owner only.
    ///
    /// # Errors
    /// As [`Files::create`]; EPERM for a device.
    fn make(&self, path: &Path, node: &Node) -> Result<()>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// EEXIST, EMLINK, EPERM, EXDEV.
    fn link(&self, existing: &Path, path: &Path) -> Result<()>;

    /// Sets attributes, even of a symlink.
    ///
    /// # Errors
    /// EPERM; EROFS; those of the disk.
    fn change(&self, path: &Path, change: Change) -> Result<()>;

    /// The extended attributes of a file or directory, sorted by name.
    ///
    /// # Errors
    /// Those of the disk.
    fn xattrs(&self, path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;

    /// Sets an extended attribute of a file or directory.
    ///
    /// # Errors
    /// EPERM, EOPNOTSUPP, ENOSPC.
    fn set_xattr(&self, path: &Path, name: &[u8], value: &[u8]) -> Result<()>;

    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// EISDIR; ENOENT; EROFS.
    fn remove_file(&self, path: &Path) -> Result<()>;

    /// Removes a directory with all it holds; not the root, and nothing that is mounted below it.
    ///
    /// # Errors
    /// ENOTDIR; ENOENT; EBUSY for the root and a mount point; EXDEV for what is mounted.
    fn remove_tree(&self, path: &Path) -> Result<()>;
}

/// What a failure was about.
pub(super) fn at(operation: &'static str, path: &Path) -> impl FnOnce(Error) -> Error {
    let subject = path.display().to_string();
    move |e| e.during(operation, subject)
}

/// Refuses to open what is no regular file: a device opened for a snapshot would be one of this machine.
pub(super) fn expect_regular(kind: Kind) -> Result<()> {
    match kind {
        Kind::File => Ok(()),
        Kind::Dir => Err(Error::from_errno(libc::EISDIR)),
        Kind::Symlink => Err(Error::from_errno(libc::ELOOP)),
        Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block => Err(Error::from_errno(libc::ENXIO)),
    }
}

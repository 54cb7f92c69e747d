//! What one member of a tar archive is, apart from its content and from how it is written.

use crate::types::Timestamp;

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as written: not cleaned, perhaps absolute, perhaps with `..`, of a directory perhaps with a slash at its end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-user-id, set-group-id and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size of the content in bytes, holes included; 0 for everything but files.
    pub size_bytes: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last access, where the archive says so.
    pub atime: Option<Timestamp>,
    /// Extended attributes, name and value, in the order of their names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of the member with this path.
    HardLink(Vec<u8>),
    /// A symbolic link, and what it says.
    Symlink(Vec<u8>),
    /// A character device.
    Char {
        /// The number of the driver.
        major: u32,
        /// The number that the driver gives its device.
        minor: u32,
    },
    /// A block device.
    Block {
        /// The number of the driver.
        major: u32,
        /// The number that the driver gives its device.
        minor: u32,
    },
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

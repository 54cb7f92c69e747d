//! plywood-fuse: an overlay file system as a library, and its mount program.
//!
//! Layers are merged into one tree; changes go to the top one. [`overlay::Overlay`] is the file system as a
//! kernel would ask for it, [`view::View`] the same by paths, with permissions checked, and [`front`] puts it
//! behind FUSE. Nothing but `front` needs a kernel module, and nothing needs root.
//!
//! From the ground up: [`error`] and [`types`] are the words; [`sys`] asks the kernel and has all `unsafe`;
//! [`options`], [`idmap`] and [`access`] decide by values alone; [`layer`] knows what a layer looks like on
//! disk; [`merge`] decides which entries win; [`inode`] knows who an inode is; [`copy_up`] and [`overlay`] are
//! the file system. Dependencies point down.
//!
//! # Locks
//!
//! See [`inode::node`]. No lock but that of the inode itself is held while data is copied.
//!
//! # Where this differs from the kernel's overlayfs
//!
//! * A lower directory can be renamed without privilege, by a redirect or by copying it
//!   ([`overlay::Renames`]).
//! * Names of one lower inode stay one inode after a change, without an index directory
//!   ([`overlay::links`]).
//! * A file opened to write is copied up when it is first written, not when it is opened: the kernel does not
//!   tell a server that answers opens once and for all. So ENOSPC and EROFS come with the write.
//! * The links of a lower file are counted without the names that this mount removed; the kernel's overlayfs without
//!   an index counts all that the disk has. A later mount does as the kernel: which names are hidden is not known
//!   without listing the layer (`tests/regressions.rs`, "the links of a lower file are those that are left").
//! * An attribute that the disk refuses, a file capability for instance, is not lost where owners are kept in
//!   attributes: it is stored under another name and reads back ([`layer::refused`]). Nothing enforces it: a mount
//!   without `suid`, as fusermount3 makes them, gives nobody what it says (`tests/view/xattrs.rs`, "attributes for
//!   root only are kept").
//! * A redirect that is no path makes its name EIO, where the kernel says EINVAL; such a name is listed by both
//!   (`tests/mounted/bad_input.rs`, "a name that leads nowhere").
//! * Whiteouts and files called `.wh.x` can be made inside, for overlays within; they come back as they were
//!   made ([`layer::marks`]).
//!
//! # What is left when the process is killed
//!
//! The old tree or the new one; `tests/crash.rs` ends it before every change of the disk. Exceptions, each of them
//! told there beside the operation: names of one lower file that were not linked to its copy yet stay apart, with
//! equal content; a new file of another user than the server's may be there, empty, and belong to the server; a file
//! whose data was being fetched, and a directory in which something was copied up, may have a new time.

pub mod access;
pub mod copy_up;
pub mod error;
pub mod front;
pub mod idmap;
pub mod inode;
pub mod layer;
pub mod merge;
pub mod options;
pub mod overlay;
pub mod sys;
#[cfg(feature = "testing")]
pub mod testing;
pub mod types;
pub mod view;

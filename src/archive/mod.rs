//! tar: members out of a stream and into one. No file system and no compression.

pub mod entry;

pub use entry::{Entry, EntryKind};

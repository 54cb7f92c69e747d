//! tar: members out of a stream and into one. No file system and no compression.
//!
//! From the ground up: [`entry`] says what a member is; `header`, `pax` and `sparse` are the format, as functions of
//! values; `source` counts what is read; [`Reader`] puts the members together, within its [`Limits`]; [`Writer`] takes
//! them apart. Whiteouts are files here like others: what they mean is known to whoever applies a layer.

pub mod entry;
mod fault;
mod header;
mod limits;
mod pax;
mod read;
mod source;
mod sparse;
mod write;

pub use entry::{Entry, EntryKind};
pub use limits::Limits;
pub use read::Reader;
pub use sparse::Segment;
pub use write::Writer;

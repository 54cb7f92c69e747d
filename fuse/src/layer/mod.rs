//! What a layer is, on disk.
//!
//! A layer is a tree of files with marks in it: whiteouts, opaque directories, redirects. [`marks`] knows
//! what the marks look like, [`entry`] turns one name of a layer into what it means, [`source`] is the seam
//! behind which a layer stands, [`read`] reads one from a directory, [`upper`] is the only writer, [`refused`]
//! keeps what its disk does not take, [`ancestry`] tells which directories are inside of others, and [`probe`] finds
//! out what a disk can do.

pub mod ancestry;
pub mod entry;
pub mod marks;
pub mod probe;
pub mod read;
pub mod refused;
pub mod source;
pub mod upper;

//! Images: what others pack, ship and run, into chains of snapshots and out of them.
//!
//! [`document`] knows what index, manifest and configuration say, [`chain`] how a chain of layers is called; both are
//! pure. [`import`] takes an image or a root file system from wherever it is, [`unpack`] makes its layers into committed
//! snapshots, each called by its chain ID, and [`export`] packs a chain of snapshots into an OCI archive. [`watch`] is
//! who is told how far they are.
//!
//! Blobs go into the content store first, checked by their digests, and are kept beside the snapshots made from them, so
//! that what was imported is exported as it came. A failure or a crash leaves committed snapshots that are whole, and
//! what `cleanup` finds.

pub mod chain;
pub mod document;
pub mod export;
pub mod import;
pub mod members;
pub mod unpack;
pub mod watch;

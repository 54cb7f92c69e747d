//! plywood: a snapshotter for people without root.
//!
//! A snapshot is a directory tree: *prepare* a writable one from a parent, change it, *commit* it as an immutable
//! layer, *view* it read-only, stack the next on top. [`snapshotter::Snapshotter`] is that life as a Rust API.
//!
//! From the ground up: [`error`] and [`types`] are the words; [`layout`] knows where things lie; [`sys`] asks the
//! kernel; [`store`] keeps the rows, in LMDB; [`backend`] keeps and mounts the directories; [`filter`] decides what
//! a caller wants to see. Layers go in and out by [`archive`] (tar) and [`compress`], which know no file system, by
//! [`apply`] (a layer becomes a tree) and [`diff`] (two trees become a layer); [`content`] keeps blobs.
//! [`snapshotter`] is the order of row and directory; [`image`] makes chains of snapshots of images, and images of them.
//! [`mounting`] carries out mounts as whoever runs it, and [`exec`] runs a command in a snapshot that is mounted for just
//! that long. Dependencies point down.

pub mod apply;
pub mod archive;
pub mod backend;
pub mod cli;
pub mod compress;
pub mod config;
pub mod content;
pub mod diff;
pub mod error;
pub mod exec;
pub mod fail;
pub mod filter;
pub mod grpc;
pub mod idmapping;
pub mod image;
pub mod layout;
pub mod mounting;
pub mod snapshotter;
pub mod store;
pub mod sys;
pub mod types;

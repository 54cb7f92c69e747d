//! System calls that are not about files in a layer: mounts, btrfs, user namespaces, service managers. The only `unsafe` of this crate
//! is below here.

pub mod activation;
pub mod attach;
pub mod btrfs;
pub mod child;
pub mod heap;
pub(crate) mod lend;
pub(crate) mod lmdb;
pub mod mount;
pub mod pretend;
pub mod userns;

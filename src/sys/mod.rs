//! System calls that are not about files in a layer: mounts, btrfs, user namespaces. The only `unsafe` of this crate
//! is below here.

pub mod btrfs;
pub mod mount;
pub mod userns;

//! The btrfs backend on a real btrfs: a sparse image on a loop device (S38).
//!
//! Each test runs itself again in a mount namespace of its own, so that nothing it mounts outlives it, and those for
//! people without root once more as another user, plain or as root of a user namespace. Without root, loop devices
//! or btrfs-progs they fail, unless `PLYWOOD_SKIP_MOUNTED=1` leaves them out.

mod commit;
mod create;
mod mounts;
mod removal;
mod support;
mod usage;

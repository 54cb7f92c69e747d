//! What differs between two trees, and the layer that says so.

mod changes;
mod containerd;
mod cost;
mod refused;
mod snapshots;
mod support;
mod two_ways;
mod writing;

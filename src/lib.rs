//! plywood: a snapshotter for people without root.

//! TODO-btrfs

//! TODO-mount

//! Who an inode is, how long it lives, and which number it shows.

pub mod node;
pub mod number;
pub mod table;

//! Which names this archive put there: an opaque marker, which may come after them, spares those.
//!
//! Names are remembered by keyed hashes of 64 bits, chained from the root, and only where there can be any other: all
//! that is in a directory made by this archive came from it. So an archive that fills an empty directory costs no
//! memory for its files, however many there are.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// A path without symlinks, as a hash that nobody outside can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathId(u64);

/// Passes a hash on.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Ids = HashSet<PathId, BuildHasherDefault<AsItIs>>;

/// What this archive put there.
#[derive(Debug, Default)]
pub struct Ours {
    keys: RandomState,
    /// Directories that it made in directories that were there.
    made: Ids,
    /// Names that it put into directories that were there, and those directories.
    put: Ids,
    /// Directories that one of its members describes.
    described: Ids,
}

impl Ours {
    /// The root.
    pub fn root(&self) -> PathId {
        PathId(0)
    }

    /// The name `name` in the directory `dir`.
    pub fn child(&self, dir: PathId, name: &[u8]) -> PathId {
        PathId(self.keys.hash_one((dir.0, name)))
    }

    /// The archive made this directory in one that was there.
    pub fn note_made(&mut self, id: PathId) {
        self.made.insert(id);
    }

    /// The archive put something under this name, or below it.
    pub fn note_put(&mut self, id: PathId) {
        self.put.insert(id);
    }

    /// A member describes this directory.
    pub fn note_described(&mut self, id: PathId) {
        self.described.insert(id);
    }

    /// The archive made this directory in one that was there, so all in it is from the archive.
    pub fn is_made(&self, id: PathId) -> bool {
        self.made.contains(&id)
    }

    /// The archive put something under this name, or below it.
    pub fn is_put(&self, id: PathId) -> bool {
        self.put.contains(&id)
    }

    /// A member describes this directory.
    pub fn is_described(&self, id: PathId) -> bool {
        self.described.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart_by_every_component() {
        let ours = Ours::default();
        let path = |parts: &[&[u8]]| parts.iter().fold(ours.root(), |dir, name| ours.child(dir, name));
        assert_eq!(path(&[b"a", b"b"]), path(&[b"a", b"b"]));
        assert_ne!(path(&[b"a", b"b"]), path(&[b"ab"]));
        assert_ne!(path(&[b"a", b"b"]), path(&[b"b", b"a"]));
        assert_ne!(path(&[b"a"]), path(&[b"a", b""]));
    }
}

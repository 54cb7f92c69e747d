//! How many names of a lower inode were removed, so that its count of links leaves them out.
//!
//! The disk counts all names, and to find out which of them are hidden is to list the layer. So it is counted
//! while names are removed, apart from the node, which comes and goes as the kernel knows and forgets the inode. A
//! later mount starts at zero: then the count is that of the disk, as the kernel's overlayfs shows it always if it
//! has no index.

use crate::types::Ino;
use parking_lot::Mutex;
use std::collections::HashMap;

/// So many inodes are counted, some 3 MB of them; of more, the disk's count is shown.
const INODES_MAX: usize = 65_536;

/// Which inode: the number that users see, and the real one. Two layers may have one number, by an origin mark.
type Key = (Ino, u64);

/// Names of lower inodes that were removed, of those that have some left.
#[derive(Default)]
pub struct HiddenLinks(Mutex<HashMap<Key, u32>>);

impl HiddenLinks {
    /// Counts one more removed name of an inode with `links` names in all; returns how many are gone by now.
    pub fn add(&self, key: Key, links: u32) -> u32 {
        let mut counts = self.0.lock();
        let gone = counts.get(&key).map_or(0, |gone| *gone) + 1;
        if gone >= links {
            // Nobody can look it up any more.
            counts.remove(&key);
        } else if counts.len() < INODES_MAX || counts.contains_key(&key) {
            counts.insert(key, gone);
        }
        gone
    }

    /// How many names of an inode are gone.
    pub fn of(&self, key: Key) -> u32 {
        self.0.lock().get(&key).map_or(0, |gone| *gone)
    }

    /// The inode was copied up: its names count by themselves.
    pub fn forget(&self, key: Key) {
        self.0.lock().remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_without_names_is_not_counted_any_more() {
        let hidden = HiddenLinks::default();
        let key = (Ino(7), 7);
        assert_eq!([3, 3].map(|links| hidden.add(key, links)), [1, 2]);
        assert_eq!((hidden.of(key), hidden.of((Ino(7), 8))), (2, 0));
        assert_eq!(hidden.add(key, 3), 3);
        assert_eq!(hidden.of(key), 0);
    }

    #[test]
    fn only_so_many_inodes_are_counted() {
        let hidden = HiddenLinks::default();
        for ino in 0..INODES_MAX as u64 + 9 {
            hidden.add((Ino(ino), ino), 3);
        }
        assert_eq!(hidden.of((Ino(0), 0)), 1);
        assert_eq!(hidden.of((Ino(INODES_MAX as u64 + 1), INODES_MAX as u64 + 1)), 0);
        assert_eq!(hidden.add((Ino(0), 0), 3), 2);
    }
}

//! Which directories have their names kept, for readers that have not come to the end.
//!
//! Nobody tells when a reader gives up, so only so many listings are kept. The one that was read longest ago goes
//! first; a reader that goes on after all has it read again, and its position is good in the new one, since positions
//! are hashes of names.

use super::Overlay;
use crate::inode::node::Node;
use crate::types::Ino;
use parking_lot::Mutex;
use std::sync::Arc;

/// How many directories are read at the same time without reading one of them twice: more than a tree is deep.
const LISTINGS_MAX: usize = 128;

/// How many names all listings together have at most, if there are several: some 20 MB.
const NAMES_MAX: usize = 250_000;

/// The directories with a listing, the one that was read last at the end, and how many names each had.
#[derive(Default)]
pub struct KeptListings(Mutex<Vec<(Ino, usize)>>);

impl KeptListings {
    /// A directory is being read, from a listing that is `new` with so many names, or from the one it had. Returns the
    /// directories whose listings are to be dropped.
    fn used(&self, dir: Ino, new: Option<usize>) -> Vec<Ino> {
        let mut kept = self.0.lock();
        if new.is_none() && kept.last().is_some_and(|(last, _)| *last == dir) {
            return Vec::new();
        }
        let at = kept.iter().position(|(ino, _)| *ino == dir);
        let known = at.map(|at| kept.remove(at).1);
        kept.push((dir, new.or(known).unwrap_or(0)));
        let mut names: usize = kept.iter().map(|(_, names)| names).sum();
        let mut dropped = Vec::new();
        while kept.len() > LISTINGS_MAX || (names > NAMES_MAX && kept.len() > 1) {
            let (ino, count) = kept.remove(0);
            names -= count;
            dropped.push(ino);
        }
        dropped
    }

    fn dropped(&self, dir: Ino) {
        self.0.lock().retain(|(ino, _)| *ino != dir);
    }
}

impl Overlay {
    /// A directory was read; see [`KeptListings::used`]. The caller holds no lock of a directory.
    pub(super) fn note_listing(&self, dir: &Arc<Node>, new: Option<usize>) {
        for ino in self.kept_listings.used(dir.ino, new) {
            let Some(node) =
                self.table.get(ino).or_else(|| (ino == Ino::ROOT).then(|| Arc::clone(&self.root)))
            else {
                continue;
            };
            let Some(part) = &node.dir else { continue };
            // Nobody waits here for a directory that somebody reads or changes: that one is in use again.
            match part.state.try_write() {
                Some(mut state) => state.listing = None,
                None => self.kept_listings.0.lock().push((ino, 0)),
            }
        }
    }

    /// The listing of a directory is not kept any more.
    pub(super) fn forget_listing(&self, dir: &Node) {
        self.kept_listings.dropped(dir.ino);
    }

    /// How many directories have their names kept for a reader that has not come to the end.
    pub fn listings_kept(&self) -> usize {
        self.kept_listings.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_longest_ago_goes_first() {
        let kept = KeptListings::default();
        for number in 0..LISTINGS_MAX as u64 {
            assert!(kept.used(Ino(number), Some(10)).is_empty());
        }
        assert!(kept.used(Ino(0), None).is_empty());
        assert_eq!(kept.used(Ino(1000), Some(10)), [Ino(1)]);
        kept.dropped(Ino(2));
        assert!(kept.used(Ino(1001), Some(10)).is_empty());
        assert_eq!(kept.used(Ino(1002), Some(10)), [Ino(3)]);
    }

    #[test]
    fn many_names_leave_room_for_few_listings_but_for_one() {
        let kept = KeptListings::default();
        assert!(kept.used(Ino(1), Some(NAMES_MAX * 2)).is_empty());
        assert_eq!(kept.used(Ino(2), Some(NAMES_MAX / 2)), [Ino(1)]);
        assert!(kept.used(Ino(3), Some(NAMES_MAX / 2)).is_empty());
        assert_eq!(kept.used(Ino(4), Some(1)), [Ino(2)]);
    }
}

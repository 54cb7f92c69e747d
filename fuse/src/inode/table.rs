//! How long an inode lives.
//!
//! The table maps numbers to nodes. A node stays while the outside knows it (`nlookup`) or while a node below
//! it does; then it goes, and its memory with it. Shards keep threads out of each other's way; the lock of a
//! shard is held over no system call but the close of a descriptor that goes with its inode.

use crate::inode::node::Node;
use crate::types::Ino;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A power of two; 64 shards of small maps also keep each growth step short.
const SHARDS: usize = 64;

/// After this many forgotten inodes freed memory is given back to the system.
const TRIM_AFTER: usize = 50_000;

/// Inode numbers need no strong hash: they are few, and not chosen by strangers.
#[derive(Default)]
pub struct InoHasher(u64);

impl Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

type Map = HashMap<u64, Arc<Node>, BuildHasherDefault<InoHasher>>;

/// All inodes that are known.
pub struct Table {
    shards: Box<[Mutex<Map>]>,
    /// Numbers of nodes that were in use when they should have gone.
    deferred: Mutex<Vec<Ino>>,
    /// Nodes that went since memory was last given back.
    freed: AtomicUsize,
}

impl Default for Table {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(Map::default())).collect();
        Table { shards, deferred: Mutex::new(Vec::new()), freed: AtomicUsize::new(0) }
    }
}

/// What to do with a node that has the number of the one that was found.
pub enum Same {
    /// It is the same inode.
    Yes,
    /// Another inode has this number.
    No,
}

impl Table {
    fn shard(&self, ino: Ino) -> &Mutex<Map> {
        &self.shards[(ino.0 as usize ^ (ino.0 >> 7) as usize) % SHARDS]
    }

    /// The node with this number, if it is known.
    pub fn get(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino).lock().get(&ino.0).cloned()
    }

    /// The node with this number, made by `make` if nobody knows it; the outside knows it once more.
    ///
    /// `None` if the number belongs to another inode, as `same` decides.
    pub fn remember(
        &self,
        ino: Ino,
        same: impl FnOnce(&Node) -> Same,
        make: impl FnOnce() -> Node,
    ) -> Option<Arc<Node>> {
        let mut shard = self.shard(ino).lock();
        let node = match shard.get(&ino.0) {
            Some(node) => match same(node) {
                Same::Yes => Arc::clone(node),
                Same::No => return None,
            },
            None => {
                let node = Arc::new(make());
                shard.insert(ino.0, Arc::clone(&node));
                node
            }
        };
        node.nlookup.fetch_add(1, Ordering::Relaxed);
        Some(node)
    }

    /// Makes a node known that lives as long as the table: the root.
    pub fn insert_root(&self, node: Arc<Node>) {
        node.nlookup.fetch_add(1, Ordering::Relaxed);
        self.shard(node.ino).lock().insert(node.ino.0, node);
    }

    /// The outside forgets `ino` `count` times. A number that is not known is ignored.
    ///
    /// `gone` is told of each node that goes, while its number cannot come back: what is kept under the number
    /// elsewhere has to go first.
    pub fn forget(&self, ino: Ino, count: u64, gone: &mut dyn FnMut(Ino)) {
        if ino == Ino::ROOT {
            return;
        }
        {
            let shard = self.shard(ino).lock();
            let Some(node) = shard.get(&ino.0) else { return };
            let less = |known: u64| Some(known.saturating_sub(count));
            let before = node.nlookup.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            if before.is_ok_and(|b| b > count) {
                return;
            }
        }
        self.evict(ino, gone);
        self.retry_deferred(gone);
    }

    fn retry_deferred(&self, gone: &mut dyn FnMut(Ino)) {
        let again = match self.deferred.try_lock() {
            Some(mut deferred) if !deferred.is_empty() => std::mem::take(&mut *deferred),
            _ => return,
        };
        for ino in again {
            self.evict(ino, gone);
        }
    }

    /// Drops a node that nobody knows, and then its parents as far as nobody knows them.
    fn evict(&self, first: Ino, gone: &mut dyn FnMut(Ino)) {
        let mut next = Some(first);
        while let Some(ino) = next.take() {
            let mut shard = self.shard(ino).lock();
            let Some(node) = shard.get(&ino.0) else { return };
            if ino == Ino::ROOT || node.nlookup.load(Ordering::Relaxed) > 0 {
                return;
            }
            // Only the table holds it, and whoever wants it must come through the lock that we hold.
            if Arc::strong_count(node) > 1 {
                drop(shard);
                self.deferred.lock().push(ino);
                return;
            }
            gone(ino);
            let node = shard.remove(&ino.0);
            if shard.capacity() > 1024 && shard.len() < shard.capacity() / 8 {
                shard.shrink_to_fit();
            }
            drop(shard);
            let Some(node) = node.and_then(Arc::into_inner) else { return };
            let place = node.place.into_inner();
            next = place.parent.as_ref().map(|p| p.ino);
            let others = place.extra.iter().flat_map(|e| &e.aliases).map(|(dir, _)| dir.ino);
            self.deferred.lock().extend(others);
            drop(place);
            self.count_freed();
        }
    }

    fn count_freed(&self) {
        if self.freed.fetch_add(1, Ordering::Relaxed) + 1 >= TRIM_AFTER {
            self.freed.store(0, Ordering::Relaxed);
            crate::sys::process::trim_heap();
        }
    }

    /// True if one of the nodes that are known is as `wanted`; those that should have gone go first.
    pub fn any(&self, gone: &mut dyn FnMut(Ino), mut wanted: impl FnMut(&Node) -> bool) -> bool {
        self.retry_deferred(gone);
        self.shards.iter().any(|shard| shard.lock().values().any(|node| wanted(node)))
    }

    /// How many inodes are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }

    /// True if no inode is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

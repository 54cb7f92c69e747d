//! Which stores this process has open: one environment per directory, since LMDB's locks belong to the
//! process, and closing a second one would drop those of the first.
//!
//! A slot is busy while a store is being opened or closed; whoever wants the same one waits. So an environment
//! is never opened before the former one of the same directory is closed.

use super::environment::Store;
use crate::error::Result;
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Device and inode of the directory.
pub(super) type Identity = (u64, u64);

enum Slot {
    Busy,
    Open(Weak<Store>),
}

static SLOTS: Mutex<Option<HashMap<Identity, Slot>>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

/// The store of `identity` if this process has it open, else what `open` makes.
pub(super) fn get_or_open(
    identity: Identity,
    open: impl FnOnce() -> Result<Arc<Store>>,
) -> Result<Arc<Store>> {
    let mut slots = SLOTS.lock();
    loop {
        match slots.get_or_insert_default().get(&identity) {
            None => break,
            Some(Slot::Open(store)) => {
                if let Some(store) = store.upgrade() {
                    return Ok(store);
                }
            }
            Some(Slot::Busy) => {}
        }
        // It is being opened by another thread, or its last owner is about to close it.
        CHANGED.wait(&mut slots);
    }
    slots.get_or_insert_default().insert(identity, Slot::Busy);
    drop(slots);
    // However `open` ends, also by a panic, the slot is settled.
    let mut settle = Settle { identity, slot: None };
    let store = open()?;
    settle.slot = Some(Slot::Open(Arc::downgrade(&store)));
    Ok(store)
}

struct Settle {
    identity: Identity,
    slot: Option<Slot>,
}

impl Drop for Settle {
    fn drop(&mut self) {
        let mut slots = SLOTS.lock();
        match self.slot.take() {
            Some(slot) => slots.get_or_insert_default().insert(self.identity, slot),
            None => slots.get_or_insert_default().remove(&self.identity),
        };
        drop(slots);
        CHANGED.notify_all();
    }
}

/// Keeps others from opening the directory until `close` is through. Once per store.
pub(super) fn close(identity: Identity, close: impl FnOnce()) {
    SLOTS.lock().get_or_insert_default().insert(identity, Slot::Busy);
    let settle = Settle { identity, slot: None };
    close();
    drop(settle);
}

//! Each system call of this crate that changes a file, counted, so that a test can end the process before any
//! of them. Without the feature `testing` nothing of it is there.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering};

/// The call before which this process ends; 0 is none.
#[cfg(feature = "testing")]
static LAST: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "testing")]
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The exit code of a process that ended before a change.
#[cfg(feature = "testing")]
pub const CRASHED: i32 = 86;

/// To be called right before a system call that changes a file.
#[inline]
pub(super) fn changing() {
    #[cfg(feature = "testing")]
    if LAST.load(Ordering::Relaxed) != 0
        && COUNT.fetch_add(1, Ordering::Relaxed) + 1 == LAST.load(Ordering::Relaxed)
    {
        super::process::exit_now(CRASHED);
    }
}

/// Ends this process, with [`CRASHED`] and without a word, right before the change with this number, counted from
/// here on; the first is 1.
#[cfg(feature = "testing")]
pub fn end_before(change: u64) {
    COUNT.store(0, Ordering::Relaxed);
    LAST.store(change, Ordering::Relaxed);
}

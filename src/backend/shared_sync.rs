//! One sync for all who wait for one.
//!
//! A sync that runs already may have passed what somebody wrote just now. So who comes meanwhile waits for the next, and
//! shares it with all others who came meanwhile. It may as well have met what he wrote, and failed: then he is told so.

use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, OnceLock};

/// What several threads want to be synced.
#[derive(Debug)]
pub(super) struct SharedSync<E> {
    state: Mutex<State<E>>,
    ended: Condvar,
}

/// What became of one sync.
type Outcome<E> = Arc<OnceLock<Result<(), E>>>;

#[derive(Debug)]
struct State<E> {
    running: bool,
    /// The sync that begins next.
    next: Outcome<E>,
}

impl<E> Default for SharedSync<E> {
    fn default() -> Self {
        let state = State { running: false, next: Outcome::default() };
        SharedSync { state: Mutex::new(state), ended: Condvar::new() }
    }
}

impl<E: Copy> SharedSync<E> {
    /// Returns once a sync has ended that began after this was called: with `sync`, or as somebody else ran it.
    ///
    /// # Errors
    /// That of the sync, which all are told who waited for it, and those who came before it failed.
    pub(super) fn run(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut state = self.state.lock();
        let ours = Arc::clone(&state.next);
        while state.running {
            self.ended.wait(&mut state);
            if let Some(outcome) = ours.get() {
                return *outcome;
            }
        }
        state.running = true;
        state.next = Outcome::default();
        drop(state);
        let running = Running(self);
        let outcome = sync();
        // It is empty: nobody else runs this one.
        let _ = ours.set(outcome);
        if outcome.is_err() {
            // It may have been about what they wrote who came meanwhile, and the kernel tells of an error once.
            let next = std::mem::take(&mut self.state.lock().next);
            let _ = next.set(outcome);
        }
        drop(running);
        outcome
    }
}

/// A sync runs until this is dropped, also by a panic: then those who waited for it run their own.
struct Running<'a, E>(&'a SharedSync<E>);

impl<E> Drop for Running<'_, E> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    /// Waits until so many hold the outcome of the next sync: those who wait for it, and the state.
    fn wait_for_waiters(shared: &SharedSync<i32>, how_many: usize) {
        while Arc::strong_count(&shared.state.lock().next) != how_many + 1 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_comes_while_one_runs_shares_the_next_and_its_error() {
        let shared = SharedSync::default();
        let (begun, wait_for_begin) = mpsc::channel();
        let (end, wait_for_end) = mpsc::channel();
        let later = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                shared.run(move || {
                    begun.send(()).expect("it waits");
                    wait_for_end.recv().expect("it is told");
                    Ok(())
                })
            });
            wait_for_begin.recv().expect("it begins");
            let others: Vec<_> = (0..5)
                .map(|_| {
                    scope.spawn(|| {
                        shared.run(|| {
                            later.fetch_add(1, Ordering::Relaxed);
                            Err(5)
                        })
                    })
                })
                .collect();
            wait_for_waiters(&shared, 5);
            assert_eq!(later.load(Ordering::Relaxed), 0);
            end.send(()).expect("it waits");
            assert_eq!(first.join().expect("no panic"), Ok(()));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Err(5));
            }
        });
        assert_eq!(later.into_inner(), 1);
        assert_eq!(shared.run(|| Ok(())), Ok(()), "an error is not told twice");
    }

    #[test]
    fn an_error_is_told_to_all_who_came_before_it() {
        let shared = SharedSync::default();
        let (begun, wait_for_begin) = mpsc::channel();
        let (end, wait_for_end) = mpsc::channel();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                shared.run(move || {
                    begun.send(()).expect("it waits");
                    wait_for_end.recv().expect("it is told");
                    Err(5)
                })
            });
            wait_for_begin.recv().expect("it begins");
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| shared.run(|| Ok(())))).collect();
            wait_for_waiters(&shared, 3);
            end.send(()).expect("it waits");
            assert_eq!(first.join().expect("no panic"), Err(5));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Err(5));
            }
        });
        assert_eq!(shared.run(|| Ok(())), Ok(()));
    }

    #[test]
    fn a_sync_that_panics_is_run_by_another() {
        let shared = SharedSync::<i32>::default();
        let (begun, wait_for_begin) = mpsc::channel();
        let (end, wait_for_end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                shared.run(move || {
                    begun.send(()).expect("it waits");
                    wait_for_end.recv().expect("it is told");
                    panic!("on purpose");
                })
            });
            wait_for_begin.recv().expect("it begins");
            let other = scope.spawn(|| shared.run(|| Err(7)));
            wait_for_waiters(&shared, 1);
            end.send(()).expect("it waits");
            assert!(first.join().is_err());
            assert_eq!(other.join().expect("no panic"), Err(7));
        });
    }
}

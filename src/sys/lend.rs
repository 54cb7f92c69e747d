//! A value on one thread's stack that another thread uses, while its owner waits.

use parking_lot::{Condvar, Mutex};
use std::ptr::NonNull;
use std::sync::Arc;

/// Types that differ in a lifetime only, such as `dyn Trait + 'a`.
pub(crate) trait Lendable {
    /// One of them.
    type Of<'a>: ?Sized + Send;
}

/// What [`lend`] has handed out. Dropping it gives it back.
pub(crate) struct Lent<L: Lendable> {
    value: NonNull<L::Of<'static>>,
    back: Arc<Back>,
}

// SAFETY: while this exists nobody else has the value, which may be used by any thread.
unsafe impl<L: Lendable> Send for Lent<L> {}

impl<L: Lendable> Lent<L> {
    /// Uses the value.
    pub(crate) fn with<R>(&mut self, f: impl for<'a> FnOnce(&mut L::Of<'a>) -> R) -> R {
        // SAFETY: whoever owns the value waits in `lend` until this is dropped, so it lives, and only this has it. Its
        // lifetime is not really 'static; but `f` takes every lifetime, so it cannot make use of that.
        f(unsafe { self.value.as_mut() })
    }
}

impl<L: Lendable> Drop for Lent<L> {
    fn drop(&mut self) {
        *self.back.given.lock() = true;
        self.back.news.notify_one();
    }
}

/// Whether the value was given back.
#[derive(Default)]
struct Back {
    given: Mutex<bool>,
    news: Condvar,
}

struct Wait<'a>(&'a Back);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut given = self.0.given.lock();
        while !*given {
            self.0.news.wait(&mut given);
        }
    }
}

/// Lends `value` to whomever `hand_over` hands it, and returns what that returns; but not before it was given back, by
/// panics neither.
pub(crate) fn lend<L: Lendable, R>(value: &mut L::Of<'_>, hand_over: impl FnOnce(Lent<L>) -> R) -> R {
    let back = Arc::new(Back::default());
    let value = NonNull::from(value);
    // SAFETY: both are pointers to the same type but for a lifetime, which has no influence on what a pointer is.
    let value = unsafe { std::mem::transmute_copy::<NonNull<L::Of<'_>>, NonNull<L::Of<'static>>>(&value) };
    let _wait = Wait(&back);
    hand_over(Lent { value, back: Arc::clone(&back) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Texts;

    impl Lendable for Texts {
        type Of<'a> = dyn FnMut(&str) + Send + 'a;
    }

    #[test]
    fn another_thread_works_with_what_is_lent_and_its_owner_waits() {
        let (lend_it, lent) = mpsc::channel::<Lent<Texts>>();
        let other = std::thread::spawn(move || {
            for mut text in lent {
                text.with(|add| add("seen"));
                std::thread::sleep(Duration::from_millis(2));
                text.with(|add| add("twice"));
            }
        });
        for _ in 0..20 {
            let mut words: Vec<String> = Vec::new();
            let mut add = |word: &str| words.push(word.to_owned());
            lend::<Texts, _>(&mut add, |text| lend_it.send(text).expect("it is there"));
            assert_eq!(words, ["seen", "twice"]);
        }
        drop(lend_it);
        other.join().expect("no panic");
    }

    #[test]
    fn whoever_panics_waits_too_and_a_panic_elsewhere_gives_it_back() {
        let mut count = 0;
        let (done, wait) = mpsc::channel();
        let mut add = |_: &str| count += 1;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lend::<Texts, ()>(&mut add, |mut text| {
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    text.with(|add| add(""));
                    done.send(()).expect("it waits");
                    panic!("on purpose");
                });
                panic!("on purpose, too");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!((wait.try_recv(), count), (Ok(()), 1), "it had ended before");
    }
}

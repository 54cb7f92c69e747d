//! Reading ahead: directories that will be compared soon are listed by other threads meanwhile.
//!
//! A [`Task`] is done once, by whoever comes first: a helper, or the walk itself when it needs the answer. So nothing
//! waits for a helper that has not begun, and with no helper at all everything is still done.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;

/// Something to be found out.
pub(super) struct Task<I, O> {
    state: Mutex<State<I, O>>,
    done: Condvar,
}

enum State<I, O> {
    /// Nobody has begun.
    Waiting(I),
    /// Somebody is at it, or has taken the answer.
    Taken,
    /// The answer.
    Done(O),
    /// Whoever was at it did not come to an end.
    Lost,
}

/// Tells those who wait if a task is left without an answer.
struct Begun<'a, I, O>(&'a Task<I, O>);

impl<I, O> Drop for Begun<'_, I, O> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if matches!(*state, State::Taken) {
            *state = State::Lost;
        }
        self.0.done.notify_all();
    }
}

impl<I, O> Task<I, O> {
    pub(super) fn new(input: I) -> Arc<Self> {
        Arc::new(Task { state: Mutex::new(State::Waiting(input)), done: Condvar::new() })
    }

    fn begin(&self) -> Option<I> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Waiting(input) => Some(input),
            other => {
                *state = other;
                None
            }
        }
    }

    /// The answer: waits for the helper who is at it, or finds it out here and now. `None` if a helper was lost.
    pub(super) fn answer(&self, work: impl FnOnce(I) -> O) -> Option<O> {
        if let Some(input) = self.begin() {
            return Some(work(input));
        }
        let mut state = self.state.lock();
        loop {
            match std::mem::replace(&mut *state, State::Taken) {
                State::Done(answer) => return Some(answer),
                State::Lost => return None,
                other => *state = other,
            }
            self.done.wait(&mut state);
        }
    }
}

/// Tasks for the helpers, the last one first: it is the next that is needed.
pub(super) struct Tasks<I, O> {
    waiting: Mutex<Waiting<I, O>>,
    more: Condvar,
}

struct Waiting<I, O> {
    tasks: Vec<Arc<Task<I, O>>>,
    /// No more will come.
    closed: bool,
}

impl<I, O> Tasks<I, O> {
    pub(super) fn new() -> Self {
        Tasks { waiting: Mutex::new(Waiting { tasks: Vec::new(), closed: false }), more: Condvar::new() }
    }

    /// Offers a task to the helpers.
    pub(super) fn offer(&self, task: &Arc<Task<I, O>>) {
        self.waiting.lock().tasks.push(Arc::clone(task));
        self.more.notify_one();
    }

    /// What a helper does until [`Tasks::close`].
    pub(super) fn help(&self, work: &dyn Fn(I) -> O) {
        loop {
            let task = {
                let mut waiting = self.waiting.lock();
                loop {
                    if waiting.closed {
                        return;
                    }
                    if let Some(task) = waiting.tasks.pop() {
                        break task;
                    }
                    self.more.wait(&mut waiting);
                }
            };
            if let Some(input) = task.begin() {
                let begun = Begun(&task);
                let answer = work(input);
                *task.state.lock() = State::Done(answer);
                drop(begun);
            }
        }
    }

    /// Sends the helpers home; tasks that nobody has begun are dropped.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        let left = std::mem::take(&mut waiting.tasks);
        drop(waiting);
        self.more.notify_all();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_with_and_without_helpers() {
        for helpers in [0, 1, 3] {
            let tasks = Tasks::new();
            let done = Mutex::new(0);
            let work = |n: u32| {
                *done.lock() += 1;
                n * 2
            };
            std::thread::scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(|| tasks.help(&work));
                }
                let all: Vec<_> = (0..500).map(Task::new).collect();
                all.iter().rev().for_each(|task| tasks.offer(task));
                for (n, task) in all.iter().enumerate() {
                    assert_eq!(task.answer(work), Some(n as u32 * 2));
                }
                tasks.close();
            });
            assert_eq!(*done.lock(), 500);
        }
    }

    #[test]
    fn a_lost_helper_is_no_deadlock() {
        let tasks: Tasks<(), ()> = Tasks::new();
        let task = Task::new(());
        tasks.offer(&task);
        let lost = std::thread::scope(|scope| {
            let helper = scope.spawn(|| tasks.help(&|()| panic!("on purpose")));
            helper.join().is_err()
        });
        assert!(lost);
        assert_eq!(task.answer(|()| ()), None);
    }
}

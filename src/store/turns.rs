//! Who writes next, and together with whom.
//!
//! One thread leads: it has the write transaction. Who comes meanwhile waits in a queue, and the first of them leads
//! next: it runs what all of them want in one transaction, which the disk has to confirm once for all, up to the first who
//! wants a transaction of his own. So nobody waits longer than for the one who leads and for those who came before.
//!
//! A closure may thus run in the thread of somebody else, while its owner waits.

use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::lend::{Lendable, Lent, lend};
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

/// What a thread wants to be done in a transaction.
pub(super) trait Job: Send {
    /// Whether others may be in the same transaction.
    fn shares(&self) -> bool;
    /// The operation that it is part of.
    fn operation(&self) -> &'static str;
    /// Does it, and keeps the answer.
    fn run(&mut self, rows: &mut Writer<'_>) -> Ran;
    /// What became of the transaction: with an error, the answer is that.
    fn end(&mut self, committed: Result<()>);
}

/// How a job went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ran {
    Well,
    /// It answered with an error.
    Refused,
    /// It panicked. Only its owner is to die of it.
    Panicked,
}

/// A closure and its answer.
pub(super) struct Call<T, F> {
    operation: &'static str,
    shares: bool,
    f: F,
    answer: Answer<T>,
    ended: bool,
}

enum Answer<T> {
    None,
    Given(Result<T>),
    Panic(Box<dyn Any + Send>),
}

impl<T, F> Call<T, F> {
    pub(super) fn alone(operation: &'static str, f: F) -> Self {
        Call { operation, shares: false, f, answer: Answer::None, ended: false }
    }

    pub(super) fn with_others(operation: &'static str, f: F) -> Self {
        Call { shares: true, ..Call::alone(operation, f) }
    }

    pub(super) fn into_answer(self) -> Result<T> {
        match self.answer {
            Answer::Given(answer) if self.ended => answer,
            Answer::Panic(payload) => resume_unwind(payload),
            _ => {
                let cause = "the thread that wrote for several has ended, and nothing was changed: try again";
                Err(Error::new(ErrorKind::Unavailable, self.operation, "", cause))
            }
        }
    }
}

impl<T: Send, F: FnMut(&mut Writer<'_>) -> Result<T> + Send> Job for Call<T, F> {
    fn shares(&self) -> bool {
        self.shares
    }

    fn operation(&self) -> &'static str {
        self.operation
    }

    fn run(&mut self, rows: &mut Writer<'_>) -> Ran {
        let f = &mut self.f;
        // Whatever it left behind in the rows goes with the transaction.
        let (answer, ran) = match catch_unwind(AssertUnwindSafe(|| f(rows))) {
            Ok(Ok(answer)) => (Answer::Given(Ok(answer)), Ran::Well),
            Ok(Err(error)) => (Answer::Given(Err(error)), Ran::Refused),
            Err(payload) => (Answer::Panic(payload), Ran::Panicked),
        };
        self.answer = answer;
        ran
    }

    fn end(&mut self, committed: Result<()>) {
        self.ended = true;
        if let (Err(error), Answer::Given(answer)) = (committed, &mut self.answer) {
            *answer = Err(error);
        }
    }
}

pub(super) struct Jobs;

impl Lendable for Jobs {
    type Of<'a> = dyn Job + 'a;
}

/// A thread that waits until its job is done, or until it is to lead.
pub(super) struct Waiting {
    pub(super) job: Lent<Jobs>,
    shares: bool,
    // Behind the job: that is given back first, so its owner wakes once.
    seat: Occupied,
}

struct Occupied(Arc<Seat>);

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.tell(News::Done);
    }
}

#[derive(Default)]
struct Seat {
    news: Mutex<Option<News>>,
    told: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    Lead,
    Done,
}

impl Seat {
    fn tell(&self, news: News) {
        *self.news.lock() = Some(news);
        self.told.notify_one();
    }

    fn wait(&self) -> News {
        let mut news = self.news.lock();
        loop {
            match *news {
                Some(told) => return told,
                None => self.told.wait(&mut news),
            }
        }
    }
}

/// Those who want to write.
#[derive(Default)]
pub(super) struct Turns(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// Somebody leads, or is told to.
    led: bool,
    waiting: VecDeque<Waiting>,
}

/// Jobs of one transaction: those behind them wait no longer for it.
const MAX_TOGETHER: usize = 64;

impl Turns {
    /// Has `job` done: by `alone` if nobody is before it, else with others by `together`, in this thread or another's.
    /// Both end each job that they are given.
    pub(super) fn take(
        &self,
        job: &mut dyn Job,
        alone: impl FnOnce(&mut dyn Job),
        together: impl FnOnce(&mut [Waiting]),
    ) {
        let mut queue = self.0.lock();
        if !queue.led {
            queue.led = true;
            drop(queue);
            let _lead = Lead(self);
            return alone(job);
        }
        let shares = job.shares();
        lend::<Jobs, ()>(job, move |job| {
            let seat = Arc::new(Seat::default());
            queue.waiting.push_back(Waiting { job, shares, seat: Occupied(Arc::clone(&seat)) });
            drop(queue);
            if seat.wait() == News::Done {
                return;
            }
            let lead = Lead(self);
            let mut batch = self.first();
            together(&mut batch);
            // The next one begins before those who have their answer are woken.
            drop(lead);
        });
    }

    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting.len()
    }

    /// Those who have waited longest and share a transaction, or the one who shares none.
    fn first(&self) -> Vec<Waiting> {
        let waiting = &mut self.0.lock().waiting;
        let count = waiting.iter().take(MAX_TOGETHER).take_while(|one| one.shares).count();
        waiting.drain(..count.max(1).min(waiting.len())).collect()
    }
}

/// Leading; at its end, also by a panic, the next one leads.
struct Lead<'a>(&'a Turns);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.0.lock();
        match queue.waiting.front() {
            Some(next) => next.seat.0.tell(News::Lead),
            None => queue.led = false,
        }
    }
}

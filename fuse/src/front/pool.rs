//! Threads for work that takes long, so that those who read requests stay free.

use crate::error::Result;
use crossbeam::channel::{Sender, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that do what they are given. Dropping it waits for what was given.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads.
    ///
    /// # Errors
    /// EAGAIN if the system has no more threads.
    pub fn start(threads: usize) -> Result<Pool> {
        let (jobs, queue) = unbounded::<Job>();
        let mut pool = Pool { jobs: Some(jobs), threads: Vec::new() };
        for number in 0..threads {
            let queue = queue.clone();
            let work = move || {
                for job in queue {
                    // A job that panics has dropped its reply, and that answered the request.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            };
            let thread = std::thread::Builder::new().name(format!("long-{number}")).spawn(work)?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Gives the threads something to do; without threads it is done at once.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.jobs {
            Some(jobs) if !self.threads.is_empty() => {
                if let Err(back) = jobs.send(Box::new(job)) {
                    (back.into_inner())();
                }
            }
            _ => job(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

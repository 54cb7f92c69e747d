//! Threads for work that takes long, so that those who read requests stay free.

use crossbeam::channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that do what they are given, started when there is something to do.
///
/// Dropping it waits for what was given.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    queue: Receiver<Job>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    max_threads: usize,
}

impl Pool {
    /// A pool of at most `max_threads` threads.
    pub fn new(max_threads: usize) -> Pool {
        let (jobs, queue) = unbounded::<Job>();
        Pool { jobs: Some(jobs), queue, threads: Mutex::new(Vec::new()), max_threads }
    }

    /// Gives the threads something to do; if there can be none it is done here.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let Some(jobs) = &self.jobs else { return job() };
        if !self.has_threads() {
            return job();
        }
        if let Err(back) = jobs.send(Box::new(job)) {
            (back.into_inner())();
        }
    }

    /// Starts one more thread as long as all may be busy; false if there is none at all.
    fn has_threads(&self) -> bool {
        let mut threads = self.threads.lock();
        if threads.len() < self.max_threads {
            let queue = self.queue.clone();
            let work = move || {
                for job in queue {
                    // A job that panics has dropped its reply, and that answered the request.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            };
            let name = format!("long-{}", threads.len());
            if let Ok(thread) = std::thread::Builder::new().name(name).spawn(work) {
                threads.push(thread);
            }
        }
        !threads.is_empty()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.get_mut().drain(..) {
            let _ = thread.join();
        }
    }
}

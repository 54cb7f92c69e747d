//! Who is told how far long work has come, and asked whether it shall go on.

use crate::backend::Progress;
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, Read};
use std::sync::Arc;

/// Watches several pieces of work, which may go on at once.
pub trait Watcher: Send + Sync {
    /// A piece of work begins: what it is, and how many bytes it will have, if that is known.
    fn begin(&self, what: &str, total_bytes: Option<u64>) -> Arc<dyn Task>;

    /// True once the caller has given up.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// One piece of work. It is over when nobody holds it any more.
pub trait Task: Send + Sync {
    /// So many more bytes are done.
    fn advance(&self, bytes: u64);

    /// It came to an end, and what is to be said of it.
    fn finish(&self, words: &str);
}

/// Nobody watches.
impl Watcher for () {
    fn begin(&self, _: &str, _: Option<u64>) -> Arc<dyn Task> {
        Arc::new(())
    }
}

impl Task for () {
    fn advance(&self, _: u64) {}

    fn finish(&self, _: &str) {}
}

/// A watcher as those see it who only ask whether to go on.
pub struct Asked<'a>(pub &'a dyn Watcher);

impl Progress for Asked<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Fails once the caller has given up.
///
/// # Errors
/// `Cancelled`.
pub fn go_on(watcher: &dyn Watcher, operation: &'static str) -> Result<()> {
    if watcher.is_cancelled() {
        return Err(Error::new(ErrorKind::Cancelled, operation, "", "the caller gave up"));
    }
    Ok(())
}

/// A reader that tells its task what was read.
pub struct Watched<R> {
    inner: R,
    task: Arc<dyn Task>,
}

impl<R: Read> Watched<R> {
    /// Tells `task` what is read of `inner`.
    pub fn new(inner: R, task: Arc<dyn Task>) -> Self {
        Self { inner, task }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let came = self.inner.read(buffer)?;
        self.task.advance(came as u64);
        Ok(came)
    }
}

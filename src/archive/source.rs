//! The stream that an archive is read from: counted, and no more of it than the limit says.

use super::fault::{invalid, unreadable};
use crate::error::Result;
use std::io::{ErrorKind, Read};

/// A stream and how much of it was read.
#[derive(Debug)]
pub(super) struct Source<R> {
    inner: R,
    taken: u64,
    limit: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self { inner, taken: 0, limit }
    }

    /// Bytes that were read.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// What one read gives; 0 at the end of the stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let allowed = usize::try_from(self.limit - self.taken).unwrap_or(usize::MAX);
        if allowed == 0 && !buffer.is_empty() {
            // Only whether there is more.
            return match self.once(&mut [0])? {
                0 => Ok(0),
                _ => Err(invalid("stream".to_owned(), format!("it has more than {} bytes", self.limit))),
            };
        }
        let length = buffer.len().min(allowed);
        let read = self.once(&mut buffer[..length])?;
        self.taken += read as u64;
        Ok(read)
    }

    fn once(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // A reader that says more than it was asked for is broken, and must not break us.
                other => return other.map(|read| read.min(buffer.len())).map_err(unreadable),
            }
        }
    }

    /// Fills the buffer as far as the stream goes, and says how far.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }
}

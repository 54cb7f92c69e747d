//! The compressed side of a stream: buffered, counted, and knowing whether a failure was its own.

use std::io::{self, BufRead, ErrorKind, Read};

/// Bytes that are read at a time: large enough that a read costs nothing beside decoding what it brought.
const BUFFER_BYTES: usize = 64 * 1024;

/// A buffered reader that can look at the bytes to come.
pub(super) struct Source<R> {
    inner: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes that were taken out of it.
    taken: u64,
    /// True once the reader below has failed: then the failure is none of the content.
    failed: bool,
}

impl<R: Read> Source<R> {
    pub(super) fn new(inner: R) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { inner, buffer, start: 0, end: 0, taken: 0, failed: false }
    }

    /// The bytes to come: at least `wanted` of them, fewer at the end of the stream only.
    pub(super) fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        debug_assert!(wanted <= BUFFER_BYTES, "nobody looks further than the buffer");
        while self.end - self.start < wanted {
            if self.start > 0 {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            match self.inner.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failed = true;
                    return Err(e);
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Whether the reader below has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Bytes that were taken out of it.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// The reader below; what is in the buffer is lost.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.end - self.start);
        self.start += amount;
        self.taken += amount as u64;
    }
}

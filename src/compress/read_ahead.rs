//! Reading ahead: a reader is read by a thread of its own, into a few buffers that are used again and again.
//!
//! The thread waits when all buffers are full, so memory is bounded by [`BUFFERS`] x [`BUFFER_BYTES`]. Bytes and the
//! failure behind them arrive in their order.

use crate::error::{Error, ErrorKind, Result};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::io::{self, BufRead, Read};
use std::thread::JoinHandle;

/// Buffers in flight: enough that neither side waits for the other's hiccups.
const BUFFERS: usize = 8;

/// Bytes of one buffer: handing one over costs some microseconds, filling one takes some hundred.
const BUFFER_BYTES: usize = 128 * 1024;

/// A reader that is read by a thread of its own. Dropped early, it does not wait: the thread ends with the read that is
/// going on, which may be one of a pipe that nobody fills.
pub struct ReadAhead<R> {
    full: Receiver<Piece>,
    empty: Sender<Vec<u8>>,
    thread: Option<JoinHandle<R>>,
    present: Vec<u8>,
    at: usize,
    state: State,
}

enum Piece {
    Bytes(Vec<u8>),
    Failed(io::Error),
    End,
}

#[derive(PartialEq)]
enum State {
    Reading,
    Ended,
    Failed,
}

impl<R: Read + Send + 'static> ReadAhead<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// That no thread can be started.
    pub fn new(reader: R) -> Result<Self> {
        // All buffers and the end fit, so the thread never waits to hand over, only for an empty buffer.
        let (to_use, full) = bounded(BUFFERS + 1);
        let (empty, to_fill) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            // Each grows to its size when it is first needed: a small stream needs one.
            let _ = empty.send(Vec::new());
        }
        let thread = std::thread::Builder::new()
            .name("read-ahead".to_owned())
            .spawn(move || read_to_end(reader, &to_fill, &to_use))
            .map_err(|e| Error::io("read ahead", "start thread", e))?;
        let present = Vec::new();
        Ok(Self { full, empty, thread: Some(thread), present, at: 0, state: State::Reading })
    }
}

/// Reads until the end, a failure, or until nobody wants more.
fn read_to_end<R: Read>(mut reader: R, to_fill: &Receiver<Vec<u8>>, to_use: &Sender<Piece>) -> R {
    for mut buffer in to_fill {
        buffer.resize(BUFFER_BYTES, 0);
        let (filled, last) = fill(&mut reader, &mut buffer);
        buffer.truncate(filled);
        let sent = filled == 0 || to_use.send(Piece::Bytes(buffer)).is_ok();
        if let Some(last) = last {
            let _ = to_use.send(last);
            break;
        }
        if !sent {
            break;
        }
    }
    reader
}

/// Fills the buffer, and says what comes behind it if that is the last.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<Piece>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => return (filled, Some(Piece::End)),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (filled, Some(Piece::Failed(e))),
        }
    }
    (filled, None)
}

impl<R> ReadAhead<R> {
    /// The reader, once the thread has ended. Without having read to the end it waits for the read that is going on,
    /// and the reader is somewhere ahead.
    ///
    /// # Errors
    /// That the thread panicked.
    pub fn into_inner(self) -> Result<R> {
        let Self { full, empty, thread, .. } = self;
        drop((full, empty));
        thread.ok_or(()).and_then(|thread| thread.join().map_err(|_| ())).map_err(|()| panicked())
    }

    fn next_piece(&mut self) -> io::Result<()> {
        let used = std::mem::take(&mut self.present);
        self.at = 0;
        if used.capacity() > 0 {
            // The thread may have ended: then nobody needs it.
            let _ = self.empty.try_send(used);
        }
        match self.full.recv() {
            Ok(Piece::Bytes(bytes)) => {
                self.present = bytes;
                Ok(())
            }
            Ok(Piece::End) => {
                self.state = State::Ended;
                Ok(())
            }
            Ok(Piece::Failed(failed)) => {
                self.state = State::Failed;
                Err(failed)
            }
            Err(_) => {
                self.state = State::Failed;
                Err(panicked().into())
            }
        }
    }
}

impl<R> BufRead for ReadAhead<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.present.len() && self.state == State::Reading {
            self.next_piece()?;
        }
        if self.at == self.present.len() && self.state == State::Failed {
            let cause = "reading it failed before";
            return Err(Error::new(ErrorKind::Io, "read ahead", "", cause).into());
        }
        Ok(&self.present[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.present.len());
    }
}

impl<R> Read for ReadAhead<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

fn panicked() -> Error {
    Error::new(ErrorKind::Io, "read ahead", "", "the thread that reads panicked: this is a bug")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// Gives out pieces of odd sizes, and then what the closure says.
    struct Odd<F> {
        left: u64,
        at: u64,
        then: F,
        dropped: Arc<AtomicU64>,
    }

    impl<F> Drop for Odd<F> {
        fn drop(&mut self) {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl<F: FnMut() -> io::Result<usize>> Read for Odd<F> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 {
                return (self.then)();
            }
            let n = out.len().min(997).min(usize::try_from(self.left).unwrap());
            for byte in &mut out[..n] {
                *byte = (self.at % 251) as u8;
                self.at += 1;
            }
            self.left -= n as u64;
            Ok(n)
        }
    }

    fn odd<F: FnMut() -> io::Result<usize> + Send + 'static>(
        left: u64,
        then: F,
    ) -> (ReadAhead<Odd<F>>, Arc<AtomicU64>) {
        let dropped = Arc::new(AtomicU64::new(0));
        let reader = Odd { left, at: 0, then, dropped: Arc::clone(&dropped) };
        (ReadAhead::new(reader).unwrap(), dropped)
    }

    fn expected(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn bytes_arrive_in_order_and_the_reader_is_given_back() {
        for n in [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 3_000_000] {
            let (mut ahead, _) = odd(n as u64, || Ok(0));
            let mut bytes = Vec::new();
            ahead.read_to_end(&mut bytes).unwrap();
            assert!(bytes == expected(n), "{n} bytes");
            assert_eq!(ahead.read(&mut [0; 4]).unwrap(), 0, "the end stays the end");
            let reader = ahead.into_inner().unwrap();
            assert_eq!((reader.left, reader.at), (0, n as u64));
        }
    }

    #[test]
    fn a_failure_arrives_behind_the_bytes_before_it_and_stays() {
        let (mut ahead, _) = odd(200_000, || Err(io::Error::from_raw_os_error(libc::EIO)));
        let mut bytes = Vec::new();
        let failed = ahead.read_to_end(&mut bytes).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(libc::EIO));
        assert!(bytes == expected(200_000));
        assert!(ahead.read(&mut [0; 4]).is_err(), "nobody takes it for the end");
    }

    #[test]
    fn a_panic_in_the_reader_is_a_failure() {
        let (mut ahead, _) = odd(10, || panic!("as a test wants"));
        let failed = ahead.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(failed.to_string().contains("panicked"), "{failed}");
        assert!(ahead.into_inner().is_err());
    }

    #[test]
    fn it_reads_no_further_ahead_than_its_buffers_and_ends_when_nobody_reads() {
        let (mut ahead, dropped) = odd(u64::MAX, || Ok(0));
        ahead.read_exact(&mut [0; 10]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop(ahead);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while dropped.load(Ordering::SeqCst) == 0 {
            assert!(std::time::Instant::now() < deadline, "the thread ends");
            std::thread::sleep(Duration::from_millis(1));
        }
        let (ahead, _) = odd(u64::MAX, || Ok(0));
        std::thread::sleep(Duration::from_millis(50));
        let reader = ahead.into_inner().unwrap();
        assert!(reader.at <= ((BUFFERS + 1) * BUFFER_BYTES) as u64, "{}", reader.at);
    }

    #[test]
    fn dropping_it_does_not_wait_for_a_reader_that_hangs() {
        let (reader, writer) = std::io::pipe().unwrap();
        let ahead = ReadAhead::new(reader).unwrap();
        drop(ahead);
        drop(writer);
    }
}

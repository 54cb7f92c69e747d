//! What passed by: the digest and the number of bytes, computed here or by a thread of its own.

use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crossbeam::channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};
use std::thread::JoinHandle;

/// Buffers in flight to the thread that hashes.
const BUFFERS: usize = 8;

/// Bytes of one buffer.
const BUFFER_BYTES: usize = 128 * 1024;

/// Computes the SHA-256 of a stream, and counts it.
pub struct Hasher {
    place: Place,
    bytes: u64,
}

enum Place {
    Here(Sha256),
    Thread(Thread),
}

struct Thread {
    full: Sender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    present: Vec<u8>,
    thread: JoinHandle<Sha256>,
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

impl Hasher {
    /// Hashes where it is called.
    pub fn new() -> Self {
        Self { place: Place::Here(Sha256::new()), bytes: 0 }
    }

    /// Hashes in a thread of its own, for a large stream; where it is called if there can be no thread.
    pub fn in_thread() -> Self {
        let (full, to_hash) = bounded::<Vec<u8>>(BUFFERS);
        let (used, empty) = bounded(BUFFERS);
        for _ in 0..BUFFERS {
            let _ = used.send(Vec::new());
        }
        let hash = move || {
            let mut sha256 = Sha256::new();
            for bytes in to_hash {
                sha256.update(&bytes);
                // Nobody waits for it at the end.
                let _ = used.try_send(bytes);
            }
            sha256
        };
        match std::thread::Builder::new().name("hasher".to_owned()).spawn(hash) {
            Ok(thread) => {
                let thread = Thread { full, empty, present: Vec::new(), thread };
                Self { place: Place::Thread(thread), bytes: 0 }
            }
            Err(_) => Self::new(),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        match &mut self.place {
            Place::Here(sha256) => sha256.update(bytes),
            Place::Thread(thread) => thread.update(bytes),
        }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest and the number of all bytes.
    ///
    /// # Errors
    /// That the thread panicked.
    pub fn finish(self) -> Result<(Digest, u64)> {
        let sha256 = match self.place {
            Place::Here(sha256) => sha256,
            Place::Thread(thread) => thread.finish()?,
        };
        Ok((Digest::of_sha256(sha256.finalize().into()), self.bytes))
    }
}

impl Thread {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.present.len() == BUFFER_BYTES {
                self.hand_over();
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.present.len()));
            self.present.extend_from_slice(now);
            bytes = later;
        }
    }

    /// A thread that is no more is found out by `finish`.
    fn hand_over(&mut self) {
        let mut next = self.empty.recv().unwrap_or_default();
        next.clear();
        next.reserve_exact(BUFFER_BYTES);
        let _ = self.full.send(std::mem::replace(&mut self.present, next));
    }

    fn finish(self) -> Result<Sha256> {
        let Self { full, empty, present, thread } = self;
        let _ = full.send(present);
        drop((full, empty));
        let cause = "the thread that hashes panicked: this is a bug";
        thread.join().map_err(|_| Error::new(ErrorKind::Io, "hash", "", cause))
    }
}

/// A reader that hashes what is read through it.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R> HashingReader<R> {
    /// Hashes with `hasher` what is read.
    pub fn new(inner: R, hasher: Hasher) -> Self {
        Self { inner, hasher }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// The reader, and the digest and number of the bytes that were read.
    ///
    /// # Errors
    /// Those of [`Hasher::finish`].
    pub fn finish(self) -> Result<(R, Digest, u64)> {
        let (digest, bytes) = self.hasher.finish()?;
        Ok((self.inner, digest, bytes))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.hasher.update(&out[..n]);
        Ok(n)
    }
}

/// A writer that hashes what is written through it.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W> HashingWriter<W> {
    /// Hashes with `hasher` what is written.
    pub fn new(inner: W, hasher: Hasher) -> Self {
        Self { inner, hasher }
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// The writer, and the digest and number of the bytes that were written.
    ///
    /// # Errors
    /// Those of [`Hasher::finish`].
    pub fn finish(self) -> Result<(W, Digest, u64)> {
        let (digest, bytes) = self.hasher.finish()?;
        Ok((self.inner, digest, bytes))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_same_here_and_in_a_thread_and_however_it_is_cut() {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|i| (i % 253) as u8).collect();
        let mut whole = Hasher::new();
        whole.update(&bytes);
        let expected = whole.finish().unwrap();
        assert_eq!(expected.1, 3_000_001);
        for size in [1000, 128 * 1024, 128 * 1024 + 1, 3_000_001] {
            for mut hasher in [Hasher::new(), Hasher::in_thread()] {
                bytes.chunks(size).for_each(|piece| hasher.update(piece));
                assert_eq!(hasher.finish().unwrap(), expected, "pieces of {size}");
            }
        }
    }

    #[test]
    fn nothing_has_the_digest_of_nothing() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for hasher in [Hasher::new(), Hasher::in_thread()] {
            assert_eq!(hasher.finish().unwrap(), (Digest::parse(empty).unwrap(), 0));
        }
        drop(Hasher::in_thread());
    }

    #[test]
    fn readers_and_writers_hash_what_passes() {
        let mut reader = HashingReader::new(&b"hello"[..], Hasher::new());
        let mut writer = HashingWriter::new(Vec::new(), Hasher::in_thread());
        io::copy(&mut reader, &mut writer).unwrap();
        let (rest, read, n) = reader.finish().unwrap();
        assert!(rest.is_empty());
        assert_eq!((read, n, b"hello".to_vec()), {
            let (bytes, written, n) = writer.finish().unwrap();
            (written, n, bytes)
        });
    }
}

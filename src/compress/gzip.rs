//! gzip in blocks, by several threads, as one member that any decoder reads.
//!
//! The input is cut every [`BLOCK_BYTES`]. Each block is deflated by itself, with the end of the block before as
//! its dictionary, up to a byte border (a sync flush); put together they are one deflate stream. The checksums of
//! the blocks are combined. Where it is cut depends on the input alone, so the output does, too.

use crate::error::{Error, ErrorKind, Result};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use flate2::{Compress, Compression as Level, FlushCompress, Status};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::thread::JoinHandle;

/// Bytes of one block: as in pigz. Smaller ones compress worse, larger ones take memory per thread.
const BLOCK_BYTES: usize = 128 * 1024;

/// Bytes of the block before that the next one may refer to: the window of deflate.
const DICTIONARY_BYTES: usize = 32 * 1024;

/// Bytes of room for what becomes of a block: more than deflate ever makes of it, and always the same, since how
/// deflate cuts what it stores uncompressed depends on the room.
const ROOM_BYTES: usize = BLOCK_BYTES + BLOCK_BYTES / 8 + 1024;

/// Levels that there are.
pub(super) const LEVELS: std::ops::RangeInclusive<i32> = 0..=9;

/// The level where none is wanted: the same as that of gzip, pigz and containerd.
pub(super) const DEFAULT_LEVEL: i32 = 6;

/// Writes one gzip member.
pub(super) struct Gzip<W> {
    out: W,
    threads: Threads,
    /// Dictionary and block that is being filled: the dictionary comes first.
    present: Vec<u8>,
    dictionary_bytes: usize,
    /// Blocks whose outcome is still to be written, oldest first.
    waiting: VecDeque<Receiver<Done>>,
    /// Buffers to be used again.
    spare: Vec<(Vec<u8>, Vec<u8>)>,
    checksum: crc32fast::Hasher,
    has_header: bool,
    level: u32,
}

struct Job {
    input: Vec<u8>,
    dictionary_bytes: usize,
    is_last: bool,
    output: Vec<u8>,
    done: Sender<Done>,
}

struct Done {
    input: Vec<u8>,
    output: Vec<u8>,
    checksum: crc32fast::Hasher,
    is_whole: bool,
}

struct Threads {
    jobs: Option<Sender<Job>>,
    all: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(count: usize, level: u32) -> Result<Self> {
        let (jobs, queue) = unbounded::<Job>();
        let mut threads = Self { jobs: Some(jobs), all: Vec::new() };
        for number in 0..count {
            let queue = queue.clone();
            let work = move || queue.into_iter().for_each(|job| deflate(level, job));
            match std::thread::Builder::new().name(format!("gzip-{number}")).spawn(work) {
                Ok(thread) => threads.all.push(thread),
                // Fewer do as well, only slower.
                Err(_) if !threads.all.is_empty() => break,
                Err(e) => return Err(Error::io("compress", "start thread", e)),
            }
        }
        Ok(threads)
    }
}

impl Drop for Threads {
    /// Each has no more than some blocks left to do.
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.all.drain(..) {
            let _ = thread.join();
        }
    }
}

fn deflate(level: u32, job: Job) {
    let Job { input, dictionary_bytes, is_last, mut output, done } = job;
    let (dictionary, block) = input.split_at(dictionary_bytes);
    // A new state, though a reset one would save some microseconds: a reset leaves the window as it is, zlib looks at a
    // byte or two behind what it was given, and so what a block becomes would depend on who deflated which one before.
    let mut state = Compress::new(Level::new(level), false);
    output.clear();
    output.reserve_exact(ROOM_BYTES);
    let mut is_whole = dictionary.is_empty() || state.set_dictionary(dictionary).is_ok();
    let flush = if is_last { FlushCompress::Finish } else { FlushCompress::Sync };
    if is_whole {
        let status = state.compress_vec(block, &mut output, flush);
        let expected = if is_last { Status::StreamEnd } else { Status::Ok };
        is_whole = status.is_ok_and(|s| s == expected)
            && state.total_in() == block.len() as u64
            && output.len() < output.capacity();
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(block);
    // Nobody waits for it if the encoder was dropped.
    let _ = done.send(Done { input, output, checksum, is_whole });
}

impl<W: Write> Gzip<W> {
    pub(super) fn new(out: W, level: i32, threads: usize) -> Result<Self> {
        let level = u32::try_from(level).unwrap_or_default();
        Ok(Self {
            out,
            threads: Threads::start(threads, level)?,
            present: Vec::new(),
            dictionary_bytes: 0,
            waiting: VecDeque::new(),
            spare: Vec::new(),
            checksum: crc32fast::Hasher::new(),
            has_header: false,
            level,
        })
    }

    /// Takes all of the bytes.
    pub(super) fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.dictionary_bytes + BLOCK_BYTES - self.present.len();
            if room == 0 {
                self.hand_over(false)?;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.present.reserve_exact(self.dictionary_bytes + BLOCK_BYTES - self.present.len());
            self.present.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn hand_over(&mut self, is_last: bool) -> io::Result<()> {
        // As many again as work, so that none of them waits while a block is being filled or written.
        while self.waiting.len() >= 2 * self.threads.all.len() {
            self.write_oldest()?;
        }
        let (mut next, output) = self.spare.pop().unwrap_or_default();
        next.clear();
        let dictionary = &self.present[self.present.len().saturating_sub(DICTIONARY_BYTES)..];
        if !is_last {
            next.reserve_exact(DICTIONARY_BYTES + BLOCK_BYTES);
            next.extend_from_slice(dictionary);
        }
        let dictionary_bytes = std::mem::replace(&mut self.dictionary_bytes, next.len());
        let input = std::mem::replace(&mut self.present, next);
        let (done, outcome) = bounded(1);
        let job = Job { input, dictionary_bytes, is_last, output, done };
        let sent = self.threads.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(panicked());
        }
        self.waiting.push_back(outcome);
        Ok(())
    }

    fn write_oldest(&mut self) -> io::Result<()> {
        let Some(outcome) = self.waiting.pop_front() else { return Ok(()) };
        let Done { input, output, checksum, is_whole } = outcome.recv().map_err(|_| panicked())?;
        if !is_whole {
            let cause = "a block was not deflated whole: this is a bug";
            return Err(Error::new(ErrorKind::Io, "compress", "gzip", cause).into());
        }
        if !std::mem::replace(&mut self.has_header, true) {
            self.out.write_all(&header(self.level))?;
        }
        self.checksum.combine(&checksum);
        self.out.write_all(&output)?;
        self.spare.push((input, output));
        Ok(())
    }

    /// Writes the rest.
    pub(super) fn finish(mut self, input_bytes: u64) -> io::Result<W> {
        self.hand_over(true)?;
        while !self.waiting.is_empty() {
            self.write_oldest()?;
        }
        self.out.write_all(&self.checksum.finalize().to_le_bytes())?;
        // The size modulo 2^32.
        self.out.write_all(&(input_bytes as u32).to_le_bytes())?;
        Ok(self.out)
    }

    /// Writes what is done already, without waiting.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.waiting.front().is_some_and(|outcome| !outcome.is_empty()) {
            self.write_oldest()?;
        }
        self.out.flush()
    }
}

/// The header that Go's compress/gzip writes: no name, no time, an unknown system.
fn header(level: u32) -> [u8; 10] {
    let extra = match level {
        1 => 4,
        9 => 2,
        _ => 0,
    };
    [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, 255]
}

fn panicked() -> io::Error {
    Error::new(ErrorKind::Io, "compress", "gzip", "a thread that compresses panicked: this is a bug").into()
}

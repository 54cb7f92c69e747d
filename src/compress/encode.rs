//! Into a compression, with several threads and always the same bytes.

use super::Compression;
use super::gzip::{self, Gzip};
use crate::error::{Error, ErrorKind, Result};
use std::io::{self, Write};
use zstd::stream::raw::CParameter;

/// Threads that compress one stream at most. More would take memory and starve what makes the input.
pub const MAX_THREADS: usize = 8;

/// Threads of zstd at most, by level. Each takes 5 MB at level 3 and 25 MB at 19, and what compresses is to
/// stay below 64 MB; four of them make more than a gigabyte a second of what is usual.
fn max_zstd_threads(level: i32) -> usize {
    match level {
        ..7 => 4,
        7..12 => 2,
        _ => 1,
    }
}

/// The largest window and tables of zstd, as powers of two. High levels would take hundreds of megabytes for tables that
/// reach further back than a piece of [`ZSTD_JOB_BYTES`] and what comes before it.
const MAX_ZSTD_LOG: u32 = 21;

/// Above this level zstd wants more than [`MAX_ZSTD_LOG`].
const LARGE_ZSTD_LEVEL: i32 = 8;

/// Bytes that one thread of zstd compresses at a time. Fixed, so that the number of threads does not matter, and small,
/// since zstd keeps one such piece for each thread and some more.
const ZSTD_JOB_BYTES: u32 = 2 * 1024 * 1024;

/// Levels of zstd that there are: those above 19 need hundreds of megabytes, and as much to decode.
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// The level where none is wanted: that of zstd itself.
const ZSTD_DEFAULT_LEVEL: i32 = 3;

/// A writer that compresses. Nothing is whole before [`Encoder::finish`]; dropped before, it leaves a stream that
/// decoders find cut off.
pub struct Encoder<W: Write> {
    inner: Inner<W>,
    input_bytes: u64,
    has_failed: bool,
}

enum Inner<W: Write> {
    Plain(W),
    Gzip(Box<Gzip<W>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// Compresses into `out`: at `level` (gzip 0 to 9, usually 6; zstd 1 to 19, usually 3) and with `threads`, 0 for
    /// as many as there are processors, at most [`MAX_THREADS`]. The number changes no byte.
    ///
    /// # Errors
    /// `InvalidArgument` for a level that the compression does not have; that no thread can be started.
    pub fn new(out: W, compression: Compression, level: Option<i32>, threads: usize) -> Result<Self> {
        let inner = match compression {
            Compression::None => {
                if let Some(level) = level {
                    let cause = "what is not compressed has no level";
                    return Err(bad_level(compression, level, cause.to_owned()));
                }
                Inner::Plain(out)
            }
            Compression::Gzip => {
                let level = checked(compression, level.unwrap_or(gzip::DEFAULT_LEVEL), gzip::LEVELS)?;
                Inner::Gzip(Box::new(Gzip::new(out, level, wanted(threads))?))
            }
            Compression::Zstd => {
                let level = checked(compression, level.unwrap_or(ZSTD_DEFAULT_LEVEL), ZSTD_LEVELS)?;
                let threads = wanted(threads).min(max_zstd_threads(level));
                let encoder = zstd_encoder(out, level, threads);
                Inner::Zstd(Box::new(encoder.map_err(|e| Error::io("compress", "zstd", e))?))
            }
        };
        Ok(Self { inner, input_bytes: 0, has_failed: false })
    }

    /// Bytes that were written so far, before compression.
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Writes the rest, and gives the writer back. It is not flushed.
    ///
    /// # Errors
    /// Those of the writer; that an earlier write failed.
    pub fn finish(self) -> Result<W> {
        let failed = |e| Error::io("compress", "", e);
        if self.has_failed {
            return Err(Error::new(ErrorKind::Io, "compress", "", "writing failed before"));
        }
        match self.inner {
            Inner::Plain(out) => Ok(out),
            Inner::Gzip(gzip) => gzip.finish(self.input_bytes).map_err(failed),
            Inner::Zstd(zstd) => zstd.finish().map_err(failed),
        }
    }

    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        self.has_failed |= result.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::Interrupted);
        result
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(Error::new(ErrorKind::Io, "compress", "", "writing failed before").into());
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let written = match &mut self.inner {
            Inner::Plain(out) => out.write(bytes),
            Inner::Gzip(gzip) => gzip.write_all(bytes).map(|()| bytes.len()),
            Inner::Zstd(zstd) => zstd.write(bytes),
        };
        let written = self.note(written)?;
        self.input_bytes += written as u64;
        Ok(written)
    }

    /// Passes on what is done. It does not cut the stream: where it is cut would change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        let flushed = match &mut self.inner {
            Inner::Plain(out) => out.flush(),
            Inner::Gzip(gzip) => gzip.flush(),
            Inner::Zstd(zstd) => zstd.get_mut().flush(),
        };
        self.note(flushed)
    }
}

/// Always with threads, be it one: what zstd makes without is another stream.
fn zstd_encoder<W: Write>(
    out: W,
    level: i32,
    threads: usize,
) -> io::Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
    encoder.multithread(u32::try_from(threads).unwrap_or(1))?;
    encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_BYTES))?;
    if level > LARGE_ZSTD_LEVEL {
        encoder.set_parameter(CParameter::WindowLog(MAX_ZSTD_LOG))?;
        encoder.set_parameter(CParameter::HashLog(MAX_ZSTD_LOG))?;
        encoder.set_parameter(CParameter::ChainLog(MAX_ZSTD_LOG))?;
    }
    encoder.include_checksum(true)?;
    Ok(encoder)
}

fn wanted(threads: usize) -> usize {
    let available = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { available() } else { threads };
    threads.min(MAX_THREADS)
}

fn checked(compression: Compression, level: i32, levels: std::ops::RangeInclusive<i32>) -> Result<i32> {
    if levels.contains(&level) {
        return Ok(level);
    }
    let cause = format!("its levels are {} to {}", levels.start(), levels.end());
    Err(bad_level(compression, level, cause))
}

fn bad_level(compression: Compression, level: i32, cause: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, "compress", format!("{compression}, level {level}"), cause)
}

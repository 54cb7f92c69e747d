//! Out of a compression: whichever one the first bytes say.
//!
//! What cannot be decoded is an error of the kind `Corrupt`, inside of the [`std::io::Error`] that a reader returns
//! ([`Error::io`] finds it there); an error of the reader below is passed on as it is. Both end the stream: reading
//! on fails again, and never goes on behind the fault.

use super::Compression;
use super::read_ahead::ReadAhead;
use super::source::Source;
use super::zstd_frames::{Fault, Frames};
use crate::error::{Error, ErrorKind, Result};
use flate2::bufread::MultiGzDecoder;
use std::io::{self, Read};

/// The longest of the first bytes that tell a compression which is not supported.
const LOOKED_AT_BYTES: usize = 10;

/// A stream without its compression.
pub struct Decoder<R> {
    inner: Inner<R>,
    compression: Compression,
    has_failed: bool,
}

enum Inner<R> {
    Plain(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Frames<R>),
}

/// A stream without its compression, decoded by a thread of its own.
///
/// # Errors
/// Those of [`Decoder::new`], and that no thread can be started.
pub fn decoder<R: Read + Send + 'static>(reader: R) -> Result<ReadAhead<Decoder<R>>> {
    ReadAhead::new(Decoder::new(reader)?)
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes, and decodes what they say.
    ///
    /// # Errors
    /// `Unsupported` for a compression that is known but not supported; those of the reader.
    pub fn new(reader: R) -> Result<Self> {
        let mut source = Source::new(reader);
        let failed = |e| Error::io("decompress", "first bytes", e);
        let first = source.peek(LOOKED_AT_BYTES).map_err(failed)?;
        if let Some(name) = unsupported(first) {
            let cause = format!("it is compressed with {name}: decompress it first, or use gzip or zstd");
            return Err(Error::new(ErrorKind::Unsupported, "decompress", "", cause));
        }
        if is_begin_of_magic(first) {
            return Err(cut_off("stream", 0));
        }
        let compression = Compression::sniff(first);
        let inner = match compression {
            Compression::None => Inner::Plain(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => Inner::Zstd(Frames::new(source).map_err(failed)?),
        };
        Ok(Self { inner, compression, has_failed: false })
    }

    /// What the first bytes said.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Bytes of the compressed stream that were decoded so far: for showing progress.
    pub fn taken_bytes(&self) -> u64 {
        match &self.inner {
            Inner::Plain(source) => source.taken(),
            Inner::Gzip(gzip) => gzip.get_ref().taken(),
            Inner::Zstd(frames) => frames.source().taken(),
        }
    }

    /// The reader below. It has been read to its end if this one has; else it is somewhere ahead.
    pub fn into_inner(self) -> R {
        let source = match self.inner {
            Inner::Plain(source) => source,
            Inner::Gzip(gzip) => gzip.into_inner(),
            Inner::Zstd(frames) => frames.into_source(),
        };
        source.into_inner()
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(broken(self.compression.as_str(), self.taken_bytes(), "it failed before").into());
        }
        let result = match &mut self.inner {
            Inner::Plain(source) => source.read(out),
            Inner::Gzip(gzip) => gzip.read(out).map_err(|e| {
                let source = gzip.get_ref();
                match e.kind() {
                    _ if source.has_failed() => e,
                    io::ErrorKind::UnexpectedEof => cut_off("gzip", source.taken()).into(),
                    _ => broken("gzip", source.taken(), &e.to_string()).into(),
                }
            }),
            Inner::Zstd(frames) => frames.read(out).map_err(|fault| match fault {
                Fault::Below(e) => e,
                Fault::CutOff => cut_off("zstd", frames.source().taken()).into(),
                Fault::Broken(why) => broken("zstd", frames.source().taken(), why).into(),
            }),
        };
        // `Interrupted` of the reader below never gets here: the source tries again.
        self.has_failed = result.is_err();
        result
    }
}

fn cut_off(what: &str, at_byte: u64) -> Error {
    broken(what, at_byte, "the stream is cut off: fetch it again")
}

fn broken(what: &str, at_byte: u64, why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, "decompress", format!("{what}, near byte {at_byte}"), why)
}

/// True for a stream that ends within the bytes that would tell its compression. No archive is that short.
fn is_begin_of_magic(all: &[u8]) -> bool {
    let magics: [&[u8]; 3] = [&[0x1f, 0x8b, 0x08], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]];
    let is_begin = |magic: &[u8]| all.len() < magic.len() && magic.starts_with(all);
    !all.is_empty() && magics.into_iter().any(is_begin)
}

/// The name of a compression that is none of ours. Its first bytes are no name of a file in an archive, or hardly one.
fn unsupported(first: &[u8]) -> Option<&'static str> {
    let is_bzip2 = |f: &[u8]| f.len() >= 10 && f.starts_with(b"BZh") && f[4..10] == *b"1AY&SY";
    match first {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some("lz4"),
        f if is_bzip2(f) => Some("bzip2"),
        _ => None,
    }
}

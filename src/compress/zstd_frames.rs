//! Frames of zstd as one stream: data frames and skippable ones, in any order, until the input ends.

use super::Compression;
use super::source::Source;
use std::io::{self, BufRead, Read};
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

/// The largest window that a frame may ask for, as a power of two: 128 MiB, as in containerd. A larger one would let a
/// few bytes from outside decide how much memory is taken.
const MAX_WINDOW_LOG: u32 = 27;

/// Why a frame cannot be decoded.
pub(super) enum Fault {
    /// It ends too early.
    CutOff,
    /// It is no frame, or a broken one: in the words of zstd.
    Broken(&'static str),
    /// The reader below failed.
    Below(io::Error),
}

/// Decodes frames.
pub(super) struct Frames<R> {
    source: Source<R>,
    context: DCtx<'static>,
    in_frame: bool,
}

impl<R: Read> Frames<R> {
    /// # Errors
    /// `OutOfMemory`.
    pub(super) fn new(source: Source<R>) -> io::Result<Self> {
        let mut context = DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?;
        let set = context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG));
        set.map_err(|code| io::Error::other(get_error_name(code)))?;
        Ok(Self { source, context, in_frame: false })
    }

    /// The next bytes; 0 at the end, and for no room.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            let input = self.source.fill_buf().map_err(Fault::Below)?;
            let at_end = input.is_empty();
            let mut input = InBuffer::around(input);
            let mut output = OutBuffer::around(&mut *out);
            let wanted = self.context.decompress_stream(&mut output, &mut input);
            let (taken, written) = (input.pos(), output.pos());
            let wanted = wanted.map_err(|code| Fault::Broken(get_error_name(code)))?;
            self.source.consume(taken);
            self.in_frame = wanted != 0;
            if written > 0 {
                return Ok(written);
            }
            if at_end && self.in_frame {
                return Err(Fault::CutOff);
            }
        }
    }

    /// False at the end of the stream. The bytes are looked at here, since zstd itself would take frames of formats
    /// from before its first release, which nobody writes and nobody looks after.
    fn begin_frame(&mut self) -> Result<bool, Fault> {
        let first = self.source.peek(Compression::SNIFFED_BYTES).map_err(Fault::Below)?;
        match (first.len(), Compression::sniff(first)) {
            (0, _) => Ok(false),
            (_, Compression::Zstd) => {
                self.in_frame = true;
                Ok(true)
            }
            (..Compression::SNIFFED_BYTES, _) => Err(Fault::CutOff),
            _ => Err(Fault::Broken("what follows its last frame is no frame")),
        }
    }

    pub(super) fn source(&self) -> &Source<R> {
        &self.source
    }

    pub(super) fn into_source(self) -> Source<R> {
        self.source
    }
}

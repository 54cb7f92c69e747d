//! Where a sparse file has data: the maps that GNU tar has written through the years.
//!
//! Four forms: of old, in the header and in blocks behind it ([`header_pieces`], [`block_pieces`]); in records of an
//! extended header, each number by itself (0.0, which [`super::pax`] makes a list of) or as a list (0.1,
//! [`list_pieces`]); at the begin of the content (1.0, [`Beginning`]). All of them end in a [`Map`], which takes only pieces
//! that ascend, do not overlap and lie within the file. So no map asks for more memory than the stream has bytes.
//!
//! # Source
//! GNU tar manual, "Storing Sparse Files"; what GNU tar and bsdtar write, in `tests/archive`.

use super::fault::Reason;
use super::header::{self, Block};
use super::pax;
use std::ops::Range;

/// A part of a file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// The pieces of a file, while they are read.
#[derive(Debug)]
pub(super) struct Map {
    size: u64,
    limit: usize,
    taken: usize,
    end: u64,
    data: u64,
    pieces: Vec<Segment>,
}

impl Map {
    /// An empty map of a file of so many bytes that takes so many pieces.
    pub(super) fn of(size: i64, limit: usize) -> Result<Self, Reason> {
        let size = u64::try_from(size).map_err(|_| "the size of its sparse file is negative")?;
        Ok(Self { size, limit, taken: 0, end: 0, data: 0, pieces: Vec::new() })
    }

    /// Takes the next piece.
    pub(super) fn add(&mut self, offset: i64, length: i64) -> Result<(), Reason> {
        const BOUNDS: Reason = "its sparse map has a piece outside of the file";
        let offset = u64::try_from(offset).map_err(|_| BOUNDS)?;
        let length = u64::try_from(length).map_err(|_| BOUNDS)?;
        let end = offset.checked_add(length).filter(|end| *end <= self.size).ok_or(BOUNDS)?;
        if offset < self.end {
            return Err("its sparse map has pieces that overlap, or do not ascend");
        }
        self.taken += 1;
        if self.taken > self.limit {
            return Err("its sparse map has more pieces than the limit");
        }
        if length > 0 {
            match self.pieces.last_mut() {
                Some(last) if last.offset_bytes + last.length_bytes == offset => last.length_bytes += length,
                _ => self.pieces.push(Segment { offset_bytes: offset, length_bytes: length }),
            }
        }
        self.end = end;
        self.data += length;
        Ok(())
    }

    /// Its pieces, which have as many bytes as the stream has for the file; and the size of the file.
    pub(super) fn finish(self, data: u64) -> Result<(u64, Vec<Segment>), Reason> {
        match self.data == data {
            true => Ok((self.size, self.pieces)),
            false => Err("its sparse map has more or less data than the archive"),
        }
    }
}

/// The map in a header of the old form; true if a block with more follows.
pub(super) fn header_pieces(block: &Block, map: &mut Map) -> Result<bool, Reason> {
    pieces(block, 386..482, map)
}

/// The map in a block behind such a header; true if another one follows.
pub(super) fn block_pieces(block: &Block, map: &mut Map) -> Result<bool, Reason> {
    pieces(block, 0..504, map)
}

fn pieces(block: &Block, places: Range<usize>, map: &mut Map) -> Result<bool, Reason> {
    let more = block[places.end] != 0;
    for place in block[places].chunks_exact(24) {
        if place[0] == 0 {
            break;
        }
        let (offset, length) = place.split_at(12);
        map.add(header::number(offset)?, header::number(length)?)?;
    }
    Ok(more)
}

/// A list of offsets and lengths, parted by commas, of so many pieces.
pub(super) fn list_pieces(list: &[u8], count: Option<i64>, map: &mut Map) -> Result<(), Reason> {
    const NUMBER: Reason = "a number of its sparse map is none";
    const COUNT: Reason = "its sparse map has not as many pieces as it says";
    let mut left = count.and_then(|c| u64::try_from(c).ok()).ok_or(COUNT)?;
    let mut numbers = list.split(|b| *b == b',');
    if list.is_empty() {
        numbers.next();
    }
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(COUNT)?;
        left = left.checked_sub(1).ok_or(COUNT)?;
        let number = |digits| pax::unsigned(digits).and_then(|n| i64::try_from(n).ok()).ok_or(NUMBER);
        map.add(number(offset)?, number(length)?)?;
    }
    if left > 0 { Err(COUNT) } else { Ok(()) }
}

/// The map at the begin of the content: lines of decimal digits, first the number of pieces, then offset and length of
/// each. What is behind the last line in its block does not count.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    digits: usize,
    number: i64,
    left: Option<u64>,
    offset: Option<i64>,
}

impl Beginning {
    /// Takes a block; true if the map goes on in the next one.
    pub(super) fn take(&mut self, block: &Block, map: &mut Map) -> Result<bool, Reason> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = i64::from(byte - b'0');
                    self.number = self
                        .number
                        .checked_mul(10)
                        .and_then(|n| n.checked_add(digit))
                        .ok_or("a number of its sparse map has more than 63 bits")?;
                    self.digits += 1;
                }
                b'\n' if self.digits > 0 => {
                    self.digits = 0;
                    let number = std::mem::take(&mut self.number);
                    if !self.line(number, map)? {
                        return Ok(false);
                    }
                }
                _ => return Err("a line of its sparse map is no number"),
            }
        }
        Ok(true)
    }

    /// True if there are more lines.
    fn line(&mut self, number: i64, map: &mut Map) -> Result<bool, Reason> {
        let left = match (self.left, self.offset.take()) {
            (None, _) => number.unsigned_abs(),
            (Some(left), None) => {
                self.offset = Some(number);
                left
            }
            (Some(left), Some(offset)) => {
                map.add(offset, number)?;
                left - 1
            }
        };
        self.left = Some(left);
        Ok(left > 0)
    }
}

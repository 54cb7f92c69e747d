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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::header::ZEROS;

    fn map(size: i64) -> Map {
        Map::of(size, 8).expect("a map")
    }

    fn segments(of: &[(u64, u64)]) -> Vec<Segment> {
        of.iter().map(|(o, l)| Segment { offset_bytes: *o, length_bytes: *l }).collect()
    }

    #[test]
    fn pieces_ascend_without_overlap_and_lie_within_the_file() {
        type Case<'a> = (&'a [(i64, i64)], &'a [(u64, u64)]);
        let good: &[Case<'_>] = &[
            (&[], &[]),
            (&[(0, 100)], &[(0, 100)]),
            (&[(100, 0)], &[]),
            (&[(0, 10), (10, 10)], &[(0, 20)]),
            (&[(0, 10), (20, 0), (20, 5)], &[(0, 10), (20, 5)]),
            (&[(0, 10), (10, 0), (10, 5), (99, 1)], &[(0, 15), (99, 1)]),
        ];
        for (pieces, expected) in good {
            let mut map = map(100);
            for (offset, length) in *pieces {
                map.add(*offset, *length).expect("a piece");
            }
            let data = expected.iter().map(|(_, length)| length).sum();
            assert_eq!(map.finish(data), Ok((100, segments(expected))), "{pieces:?}");
        }
        let bad: &[&[(i64, i64)]] = &[
            &[(0, 101)],
            &[(101, 0)],
            &[(-1, 1)],
            &[(1, -1)],
            &[(i64::MAX, i64::MAX)],
            &[(0, 10), (9, 1)],
            &[(50, 0), (40, 0)],
            &[(0, 1); 9],
            &[(0, 0); 9],
        ];
        for pieces in bad {
            let mut map = map(100);
            let taken: Result<(), Reason> = pieces.iter().try_for_each(|(o, l)| map.add(*o, *l));
            assert!(taken.is_err(), "{pieces:?}");
        }
        assert!(Map::of(-1, 8).is_err());
        assert!(map(100).finish(1).is_err());
    }

    #[test]
    fn lists_have_as_many_numbers_as_they_say() {
        type Case<'a> = (&'a str, i64, &'a [(u64, u64)]);
        let good: &[Case<'_>] =
            &[("", 0, &[]), ("0,5", 1, &[(0, 5)]), ("0,5,10,5,100,0", 3, &[(0, 5), (10, 5)])];
        for (list, count, expected) in good {
            let mut map = map(100);
            list_pieces(list.as_bytes(), Some(*count), &mut map).expect(list);
            assert_eq!(map.pieces, segments(expected), "{list}");
        }
        let bad: &[(&str, Option<i64>)] = &[
            ("", None),
            ("", Some(1)),
            ("", Some(-1)),
            ("", Some(i64::MAX)),
            ("0,5", Some(0)),
            ("0,5", Some(2)),
            ("0", Some(1)),
            ("0,", Some(1)),
            (",5", Some(1)),
            ("0,5,", Some(1)),
            ("0,5,10", Some(1)),
            ("0, 5", Some(1)),
            ("0,-5", Some(1)),
            ("0,9223372036854775808", Some(1)),
        ];
        for (list, count) in bad {
            assert!(list_pieces(list.as_bytes(), *count, &mut map(100)).is_err(), "{list} {count:?}");
        }
    }

    fn blocks(text: &str) -> Vec<Block> {
        let of = |chunk: &[u8]| {
            let mut block = ZEROS;
            block[..chunk.len()].copy_from_slice(chunk);
            block
        };
        text.as_bytes().chunks(512).map(of).collect()
    }

    #[test]
    fn a_map_before_the_content_may_cross_blocks() {
        let pieces: Vec<(u64, u64)> = (0..100).map(|i| (i * 1000, 7)).collect();
        let lines: String = pieces.iter().map(|(o, l)| format!("{o}\n{l}\n")).collect();
        for front in ["", "0", "00", "0000000"] {
            let blocks = blocks(&format!("{front}100\n{lines}"));
            let mut map = Map::of(1 << 20, 100).expect("a map");
            let mut beginning = Beginning::default();
            let more: Vec<_> = blocks.iter().map(|b| beginning.take(b, &mut map)).collect();
            let (last, others) = more.split_last().expect("blocks");
            assert_eq!((last, others.iter().all(|m| *m == Ok(true))), (&Ok(false), true));
            assert_eq!(map.pieces, segments(&pieces));
        }
        for (text, answer) in [("0\n", Ok(false)), ("1\n0\n5\nrest", Ok(false))] {
            assert_eq!(Beginning::default().take(&blocks(text)[0], &mut map(100)), answer, "{text:?}");
        }
        for bad in [
            "",
            "\n",
            "1\n0\n",
            "x\n",
            "-1\n",
            "1\n\n5\n",
            "1\n0 5\n",
            "9223372036854775808\n",
            "1\n0\n101\n",
        ] {
            let block = blocks(bad).first().copied().unwrap_or(ZEROS);
            assert!(Beginning::default().take(&block, &mut map(100)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_map_in_a_header_ends_at_the_first_empty_place() {
        let mut block = ZEROS;
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(386, b"00000000000\x0000000000005\0");
        put(410, b"00000000012\x0000000000001\0");
        // Behind the third place, which is empty.
        put(458, b"00000000017\x0000000000001\0");
        let mut found = map(100);
        assert_eq!(header_pieces(&block, &mut found), Ok(false));
        assert_eq!(found.pieces, segments(&[(0, 5), (10, 1)]));
        block[482] = 1;
        assert_eq!(header_pieces(&block, &mut map(100)), Ok(true));
        block[386] = b'9';
        assert!(header_pieces(&block, &mut map(100)).is_err());
        let mut last = ZEROS;
        last[..24].copy_from_slice(b"00000000024\x0000000000001\0");
        assert_eq!(block_pieces(&last, &mut found), Ok(false));
        last[504] = 0xff;
        assert_eq!(block_pieces(&last, &mut map(100)), Ok(true));
    }
}

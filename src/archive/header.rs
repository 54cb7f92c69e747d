//! The block that stands before each member: where its fields are, and how numbers and names are put into them.
//!
//! Functions of values only. The rules are those of Go's `archive/tar`, which containerd reads and writes layers with:
//! what it takes we take, and what we write are its bytes.
//!
//! # Source
//! POSIX.1-2017 `pax`, ustar interchange format; GNU tar manual, "Basic Tar Format"; behaviour measured against Go in
//! `tests/archive`.

use super::fault::Reason;
use std::ops::Range;

/// Bytes of a block. Everything in an archive begins at a multiple of it.
pub(super) const BLOCK: usize = 512;

/// One block.
pub(super) type Block = [u8; BLOCK];

/// A block of zeros: two of them end an archive.
pub(super) const ZEROS: Block = [0; BLOCK];

/// Bytes of the fields of a name and of a link.
pub(super) const NAME_BYTES: usize = 100;

/// Bytes of the field that takes the directories of a name in front of the name.
const PREFIX_BYTES: usize = 155;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const VERSION: Range<usize> = 263..265;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
const PREFIX: Range<usize> = 345..500;

// The forms of Schilling's star and of GNU have times where ustar has the prefix.
const STAR_PREFIX: Range<usize> = 345..476;
const STAR_ATIME: Range<usize> = 476..488;
const STAR_CTIME: Range<usize> = 488..500;
const STAR_TRAILER: Range<usize> = 508..512;
const GNU_ATIME: Range<usize> = 345..357;
const GNU_CTIME: Range<usize> = 357..369;
const GNU_REAL_SIZE: Range<usize> = 483..495;

/// Which fields the latter half of a header has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// None.
    V7,
    /// A prefix of the name. PAX headers have this form too.
    Ustar,
    /// A shorter prefix, and times.
    Star,
    /// Times, and a sparse map.
    Gnu,
}

/// What a header says, before extended headers and long names replace parts of it.
#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) form: Form,
    pub(super) flag: u8,
    pub(super) prefix: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) atime: Option<i64>,
    pub(super) major: i64,
    pub(super) minor: i64,
}

impl<'a> Header<'a> {
    /// What a block says.
    pub(super) fn of(block: &'a Block) -> Result<Self, Reason> {
        let form = form_of(block)?;
        let mut header = Self {
            form,
            flag: block[FLAG],
            prefix: &[],
            name: text(&block[NAME]),
            link: text(&block[LINK]),
            mode: number(&block[MODE]).map_err(|_| "the mode in its header is no number")?,
            uid: number(&block[UID]).map_err(|_| "the user in its header is no number")?,
            gid: number(&block[GID]).map_err(|_| "the group in its header is no number")?,
            size: number(&block[SIZE]).map_err(|_| "the size in its header is no number")?,
            mtime: number(&block[MTIME]).map_err(|_| "the time in its header is no number")?,
            atime: None,
            major: 0,
            minor: 0,
        };
        if form == Form::V7 {
            return Ok(header);
        }
        let device = |field: Range<usize>| {
            number(&block[field]).map_err(|_| "the device number in its header is no number")
        };
        (header.major, header.minor) = (device(MAJOR)?, device(MINOR)?);
        let time = |field: Range<usize>| {
            number(&block[field]).map_err(|_| "the time of access in its header is no number")
        };
        match form {
            Form::V7 => {}
            Form::Ustar => header.prefix = text(&block[PREFIX]),
            Form::Star => {
                header.prefix = text(&block[STAR_PREFIX]);
                header.atime = Some(time(STAR_ATIME)?);
                time(STAR_CTIME)?;
            }
            Form::Gnu => {
                let of = |field: Range<usize>| match block[field.start] {
                    0 => Ok(None),
                    _ => number(&block[field]).map(Some),
                };
                match (of(GNU_ATIME), of(GNU_CTIME)) {
                    (Ok(atime), Ok(_)) => header.atime = atime,
                    // Old versions of Go wrote a prefix here, as if this were ustar.
                    _ if text(&block[PREFIX]).is_ascii() => header.prefix = text(&block[PREFIX]),
                    _ => {}
                }
            }
        }
        Ok(header)
    }

    /// The name with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        match self.prefix {
            [] => self.name.to_vec(),
            prefix => [prefix, b"/", self.name].concat(),
        }
    }
}

/// The form of a header whose checksum is right.
fn form_of(block: &Block) -> Result<Form, Reason> {
    let said = octal(&block[CHECKSUM]).map_err(|_| "its checksum is no number")?;
    let (unsigned, signed) = checksum(block);
    if said != unsigned && said != signed {
        return Err("its checksum is wrong");
    }
    Ok(match (&block[MAGIC], &block[VERSION]) {
        (b"ustar\0", _) if &block[STAR_TRAILER] == b"tar\0" => Form::Star,
        (b"ustar\0", _) => Form::Ustar,
        (b"ustar ", b" \0") => Form::Gnu,
        _ => Form::V7,
    })
}

/// The sum of all bytes, its own field as spaces: as POSIX has it, and as old systems with signed characters had it.
fn checksum(block: &Block) -> (i64, i64) {
    // Sums over whole blocks, then its own field taken out: so the loops have no branches.
    let sum = |bytes: &[u8]| bytes.iter().map(|b| i64::from(*b)).sum::<i64>();
    let high = |bytes: &[u8]| bytes.iter().map(|b| i64::from(b >> 7)).sum::<i64>();
    let own = &block[CHECKSUM];
    let unsigned = sum(block) - sum(own) + 8 * i64::from(b' ');
    (unsigned, unsigned - 256 * (high(block) - high(own)))
}

/// Up to the first NUL, or all.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number in octal digits, or in base 256 if the first bit is set: then it may be negative.
pub(super) fn number(field: &[u8]) -> Result<i64, Reason> {
    let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) else {
        return octal(field);
    };
    // Two's complement in all bits but the first.
    let sign = if first & 0x40 == 0 { 0 } else { -1 };
    let mut value: i128 = (sign << 6) | i128::from(first & 0x3f);
    for byte in rest {
        value = (value << 8) | i128::from(*byte);
        // No longer field can bring it back, and shifting on would lose its top.
        if i64::try_from(value).is_err() {
            return Err("a number in its header has more than 64 bits");
        }
    }
    i64::try_from(value).map_err(|_| "a number in its header has more than 64 bits")
}

/// A number in octal digits with spaces and NULs around it; nothing is 0.
fn octal(field: &[u8]) -> Result<i64, Reason> {
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let Some(begin) = field.iter().position(|b| !blank(b)) else { return Ok(0) };
    let mut value: i64 = 0;
    let mut rest = field[begin..].iter();
    for byte in rest.by_ref() {
        match byte {
            b'0'..=b'7' => {
                value = value
                    .checked_mul(8)
                    .and_then(|v| v.checked_add(i64::from(byte - b'0')))
                    .ok_or("a number in its header has more than 64 bits")?;
            }
            // What stands behind the end of the text does not count.
            0 => return Ok(value),
            // Only blanks may follow.
            b' ' if rest.as_slice().iter().all(blank) => return Ok(value),
            _ => return Err("a number in its header has other characters than octal digits"),
        }
    }
    Ok(value)
}

/// The size that a header of GNU's old sparse form gives of the whole file.
pub(super) fn real_size(block: &Block) -> Result<i64, Reason> {
    number(&block[GNU_REAL_SIZE]).map_err(|_| "the size of its sparse file is no number")
}

/// Zeros from the end of so many bytes to the next block.
pub(super) fn padding(length: u64) -> usize {
    (length.wrapping_neg() % BLOCK as u64) as usize
}

/// True if a number can stand in a field of so many bytes as octal digits with a NUL behind.
fn fits(field_bytes: usize, value: u64) -> bool {
    value.checked_shr(3 * (field_bytes as u32 - 1)).unwrap_or(0) == 0
}

/// True if it can be a user or a group, a device number, or a mode of a header.
pub(super) fn fits_short(value: u64) -> bool {
    fits(UID.len(), value)
}

/// True if it can be a size or a time of a header.
pub(super) fn fits_long(value: u64) -> bool {
    fits(SIZE.len(), value)
}

/// What is written into a header. What does not fit is written shorter, or as 0: an extended header says it then.
pub(super) struct Fields<'a> {
    pub(super) flag: u8,
    pub(super) prefix: &'a [u8],
    pub(super) name: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: u64,
    /// `None` leaves the fields empty, as in the header of an extended header.
    pub(super) device: Option<(u64, u64)>,
}

impl Fields<'_> {
    /// The header.
    pub(super) fn block(&self) -> Block {
        let mut block = ZEROS;
        put_text(&mut block[NAME], self.name);
        put_octal(&mut block[MODE], self.mode);
        put_octal(&mut block[UID], self.uid);
        put_octal(&mut block[GID], self.gid);
        put_octal(&mut block[SIZE], self.size);
        put_octal(&mut block[MTIME], self.mtime);
        block[FLAG] = self.flag;
        put_text(&mut block[LINK], self.link);
        block[MAGIC].copy_from_slice(b"ustar\0");
        block[VERSION].copy_from_slice(b"00");
        if let Some((major, minor)) = self.device {
            put_octal(&mut block[MAJOR], major);
            put_octal(&mut block[MINOR], minor);
        }
        put_text(&mut block[PREFIX], self.prefix);
        let (sum, _) = checksum(&block);
        // Six digits, a NUL, a space: unlike all other numbers.
        let field = &mut block[CHECKSUM];
        put_octal(&mut field[..7], sum.unsigned_abs());
        field[7] = b' ';
        block
    }
}

fn put_octal(field: &mut [u8], value: u64) {
    let mut rest = if fits(field.len(), value) { value } else { 0 };
    let end = field.len() - 1;
    for digit in field[..end].iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[end] = 0;
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    // Readers that see only this field would take a file for a directory if it were cut behind a slash.
    if text.len() > field.len() && field.last() == Some(&b'/') {
        let end = field.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        field[end] = 0;
    }
}

/// Prefix and name of a path that is too long for the name alone, as ustar has it.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME_BYTES || !is_plain(path) {
        return None;
    }
    // The slash in the middle is in neither of the fields, and one at the end is none that can part them.
    let searched = match path.len() {
        length if length > PREFIX_BYTES + 1 => &path[..PREFIX_BYTES + 1],
        length => path.strip_suffix(b"/").unwrap_or(&path[..length]),
    };
    let slash = searched.iter().rposition(|b| *b == b'/').filter(|at| *at > 0)?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!name.is_empty() && name.len() <= NAME_BYTES && prefix.len() <= PREFIX_BYTES).then_some((prefix, name))
}

/// True if a header can hold it: ASCII without NUL.
pub(super) fn is_plain(text: &[u8]) -> bool {
    text.iter().all(|b| (1..0x80).contains(b))
}

/// What remains of a name for a header.
pub(super) fn plain(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| (1..0x80).contains(b)).collect()
}

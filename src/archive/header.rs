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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_with_blanks_or_in_base_256() {
        let good: &[(&[u8], i64)] = &[
            (b"", 0),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"0000644\0", 0o644),
            (b"   644 \0", 0o644),
            (b"\0 644\0 \0", 0o644),
            (b"644\x009zz", 0o644),
            (b"77777777", 0o7777_7777),
            (b"777777777777", 0o7777_7777_7777),
            (b"777777777777777777777", i64::MAX),
            (b"\x80\0\0\0\0\0\0\x01", 1),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", 1 << 33),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", -2),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", i64::MIN),
            (b"\xc0\0\0\0\0\0\0\0", -(1 << 62)),
            (b"\x80", 0),
            (b"\xbf", 63),
            (b"\xc0", -64),
        ];
        for (field, value) in good {
            assert_eq!(number(field), Ok(*value), "{}", field.escape_ascii());
        }
        let bad: &[&[u8]] = &[
            b"8",
            b"0x1",
            b"-1",
            b"+1",
            b"1 2",
            b"12 \x003",
            b"1_0",
            b"1000000000000000000000",
            b"\x80\0\0\x01\0\0\0\0\0\0\0\0",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ];
        for field in bad {
            assert!(number(field).is_err(), "{}", field.escape_ascii());
        }
    }

    fn fields() -> Fields<'static> {
        Fields {
            flag: b'0',
            prefix: b"",
            name: b"a",
            link: b"",
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 3,
            mtime: 4,
            device: Some((5, 6)),
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let block = Fields { prefix: b"d", ..fields() }.block();
        let header = Header::of(&block).expect("a header");
        assert_eq!((header.form, header.flag, &header.path()[..]), (Form::Ustar, b'0', &b"d/a"[..]));
        assert_eq!((header.mode, header.uid, header.gid, header.size, header.mtime), (0o644, 1, 2, 3, 4));
        assert_eq!((header.major, header.minor, header.atime), (5, 6, None));
        assert_eq!(&block[CHECKSUM], b"007527\0 ");
    }

    #[test]
    fn checksums_of_signed_and_unsigned_bytes_are_right() {
        let mut block = Fields { name: b"\xff\xfe\x80", ..fields() }.block();
        assert!(Header::of(&block).is_ok());
        let (unsigned, signed) = checksum(&block);
        assert_eq!(unsigned - signed, 3 * 256);
        put_octal(&mut block[CHECKSUM], signed.unsigned_abs());
        assert!(Header::of(&block).is_ok());
        for wrong in [unsigned + 1, unsigned - 1, signed + 1, 0] {
            put_octal(&mut block[CHECKSUM], wrong.unsigned_abs());
            assert_eq!(Header::of(&block).err(), Some("its checksum is wrong"), "{wrong}");
        }
        block[CHECKSUM].copy_from_slice(b"xxxxxxxx");
        assert_eq!(Header::of(&block).err(), Some("its checksum is no number"));
        assert!(Header::of(&[0xff; BLOCK]).is_err());
    }

    /// A block with other bytes in some places and the right checksum.
    fn changed(block: &Block, changes: &[(usize, &[u8])]) -> Block {
        let mut block = *block;
        for (at, bytes) in changes {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        let sum = checksum(&block).0.unsigned_abs();
        put_octal(&mut block[CHECKSUM], sum);
        block
    }

    #[test]
    fn each_form_has_its_own_latter_half() {
        let block = Fields { prefix: b"prefix", ..fields() }.block();
        let gnu = changed(&block, &[(257, b"ustar  \0"), (345, &[0; 24])]);
        let octal = b"00000000010\0";
        let cases: &[(Block, Form, &str, Option<i64>, i64)] = &[
            (block, Form::Ustar, "prefix/a", None, 5),
            (changed(&block, &[(263, b"\0\0")]), Form::Ustar, "prefix/a", None, 5),
            (changed(&block, &[(257, &[0; 8])]), Form::V7, "a", None, 0),
            (changed(&block, &[(257, b"ustar "), (263, b"  ")]), Form::V7, "a", None, 0),
            (changed(&block, &[(508, b"tar\0"), (476, octal)]), Form::Star, "prefix/a", Some(8), 5),
            (gnu, Form::Gnu, "a", None, 5),
            (changed(&gnu, &[(345, octal)]), Form::Gnu, "a", Some(8), 5),
            // Of old versions of Go.
            (changed(&gnu, &[(345, b"prefix\0")]), Form::Gnu, "prefix/a", None, 5),
            (changed(&gnu, &[(345, b"pr\xffx\0")]), Form::Gnu, "a", None, 5),
        ];
        for (index, (block, form, path, atime, major)) in cases.iter().enumerate() {
            let header = Header::of(block).expect("a header");
            assert_eq!((header.form, header.atime, header.major), (*form, *atime, *major), "{index}");
            assert_eq!(header.path(), path.as_bytes(), "{index}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_named() {
        let block = fields().block();
        for (at, words) in
            [(100, "mode"), (108, "user"), (116, "group"), (124, "size"), (136, "time"), (329, "device")]
        {
            let error = Header::of(&changed(&block, &[(at, b"zzz")])).err();
            assert!(error.is_some_and(|e| e.contains(words)), "{error:?}");
        }
    }

    #[test]
    fn long_paths_are_split_where_ustar_can() {
        let of =
            |parts: &[usize]| parts.iter().map(|n| "n".repeat(*n)).collect::<Vec<_>>().join("/").into_bytes();
        let cases: &[(&[usize], Option<usize>)] = &[
            (&[100], None),
            (&[101], None),
            (&[1, 99], Some(1)),
            (&[1, 100], Some(1)),
            (&[1, 101], None),
            (&[155, 100], Some(155)),
            (&[155, 101], None),
            (&[156, 100], None),
            (&[100, 54, 100], Some(155)),
            (&[100, 55, 100], None),
            (&[50, 50, 50], Some(101)),
            (&[0, 100], None),
            (&[100, 0], None),
            (&[50, 60, 0], Some(50)),
        ];
        for (parts, at) in cases {
            let path = of(parts);
            let expected = at.map(|at| (&path[..at], &path[at + 1..]));
            assert_eq!(split(&path), expected, "{parts:?}");
        }
        assert_eq!(split("é/".repeat(60).as_bytes()), None);
    }

    #[test]
    fn padding_fills_blocks() {
        for (length, zeros) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511), (u64::MAX, 1)] {
            assert_eq!(padding(length), zeros, "{length}");
        }
    }
}

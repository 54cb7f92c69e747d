//! Extended headers: records of names and values that replace or complete what the header behind them says.
//!
//! Functions of values only. A record that is there twice counts as it was there last, and one with an empty value
//! leaves what the header says, as in Go; extended attributes may be empty. What is not known is not looked at.
//!
//! # Source
//! POSIX.1-2017 `pax`, extended header; GNU tar manual, "Storing Sparse Files"; `libarchive` for the names that begin
//! with its own.

use super::fault::Reason;
use super::limits::Limits;
use crate::types::Timestamp;
use std::collections::BTreeMap;

/// What stands before the name of an extended attribute, as Schilling's star has it and everybody after it.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";

/// The same of libarchive: the name as in an URL, the value in base 64.
const ENCODED_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// What an extended header says.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) atime: Option<Timestamp>,
    pub(super) sparse: Sparse,
    xattrs: BTreeMap<Vec<u8>, (Source, Vec<u8>)>,
}

/// What an extended header says of a sparse file, in the words of GNU.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Option<Vec<u8>>,
    /// The size with its holes: of `GNU.sparse.size`, or else of `GNU.sparse.realsize`.
    pub(super) size: Option<i64>,
    real_size: Option<i64>,
    pub(super) pieces: Option<i64>,
    /// Offsets and lengths, parted by commas.
    pub(super) map: Vec<u8>,
    // Version 0.0 has one record for each number.
    numbers: Vec<u8>,
    expects_length: bool,
}

/// Which record an attribute is from. The latter counts, if there are both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Encoded,
    Plain,
}

impl Extended {
    /// The records of an extended header.
    pub(super) fn of(mut bytes: &[u8], limits: &Limits) -> Result<Self, Reason> {
        let mut extended = Self::default();
        while !bytes.is_empty() {
            let (record, rest) = Record::first_of(bytes)?;
            extended.take(record, limits)?;
            bytes = rest;
        }
        let sparse = &mut extended.sparse;
        sparse.size = sparse.size.or(sparse.real_size);
        if !sparse.numbers.is_empty() {
            sparse.map = std::mem::take(&mut sparse.numbers);
        }
        Ok(extended)
    }

    fn take(&mut self, record: Record<'_>, limits: &Limits) -> Result<(), Reason> {
        let Record { key, value } = record;
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.take_xattr(name.to_vec(), Source::Plain, value.to_vec(), limits);
        }
        if let Some(name) = key.strip_prefix(ENCODED_XATTR) {
            let name = decoded_name(name).ok_or("the name of an extended attribute is no part of an URL")?;
            let value = decoded_value(value).ok_or("an extended attribute of libarchive is not base 64")?;
            return self.take_xattr(name, Source::Encoded, value, limits);
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.take(key, value);
        }
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = integer(value).map_err(|_| "the record \"size\" is no number")?,
            b"uid" => self.uid = integer(value).map_err(|_| "the record \"uid\" is no number")?,
            b"gid" => self.gid = integer(value).map_err(|_| "the record \"gid\" is no number")?,
            b"mtime" => self.mtime = moment(value).map_err(|_| "the record \"mtime\" is no time")?,
            b"atime" => self.atime = moment(value).map_err(|_| "the record \"atime\" is no time")?,
            // Not kept, but no time is no time.
            b"ctime" => drop(moment(value).map_err(|_| "the record \"ctime\" is no time")?),
            _ => {}
        }
        Ok(())
    }

    fn take_xattr(
        &mut self,
        name: Vec<u8>,
        source: Source,
        value: Vec<u8>,
        limits: &Limits,
    ) -> Result<(), Reason> {
        if name.is_empty() || name.contains(&0) {
            return Err("an extended attribute has no name, or one with NUL");
        }
        if value.len() > limits.xattr_value_bytes {
            return Err("the value of an extended attribute is longer than the limit");
        }
        match self.xattrs.get(&name) {
            Some((present, _)) if *present > source => {}
            _ => {
                self.xattrs.insert(name, (source, value));
            }
        }
        Ok(())
    }

    /// Names and values of the extended attributes, in the order of their names.
    pub(super) fn take_xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.xattrs).into_iter().map(|(name, (_, value))| (name, value)).collect()
    }
}

impl Sparse {
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        const NUMBER: Reason = "a number of its sparse map is none";
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = some(value),
            b"size" => self.size = integer(value).map_err(|_| NUMBER)?,
            b"realsize" => self.real_size = integer(value).map_err(|_| NUMBER)?,
            b"numblocks" => self.pieces = integer(value).map_err(|_| NUMBER)?,
            b"map" => self.map = value.to_vec(),
            b"offset" | b"numbytes" => {
                if (key == b"numbytes") != self.expects_length || value.contains(&b',') {
                    return Err("offsets and lengths of its sparse map do not alternate");
                }
                self.expects_length = !self.expects_length;
                if !self.numbers.is_empty() {
                    self.numbers.push(b',');
                }
                self.numbers.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(())
    }
}

fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Record<'a> {
    /// The first record, and what stands behind it.
    fn first_of(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), Reason> {
        const LENGTH: Reason = "the length of a record of its extended header is wrong";
        // No header is so long that its length would have more digits.
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or(LENGTH)?;
        let length = unsigned(&bytes[..space]).ok_or(LENGTH)?;
        let length = usize::try_from(length).ok().filter(|l| *l <= bytes.len()).ok_or(LENGTH)?;
        let (record, rest) = bytes.split_at(length);
        let body = record.get(space + 1..).and_then(|body| body.strip_suffix(b"\n"));
        let body = body.ok_or("a record of its extended header does not end with its line")?;
        let equals = body.iter().position(|b| *b == b'=');
        let equals = equals.ok_or("a record of its extended header has no equals sign")?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        match key {
            b"" => Err("a record of its extended header has no name"),
            b"path" | b"linkpath" | b"uname" | b"gname" if value.contains(&0) => {
                Err("a name in its extended header holds a NUL")
            }
            _ if key.contains(&0) => Err("the name of a record of its extended header holds a NUL"),
            _ => Ok((Self { key, value }, rest)),
        }
    }
}

/// That records are records, whatever they say.
pub(super) fn check(mut bytes: &[u8]) -> Result<(), Reason> {
    while !bytes.is_empty() {
        (_, bytes) = Record::first_of(bytes)?;
    }
    Ok(())
}

/// Puts a record behind others.
pub(super) fn put_record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    // The length counts its own digits, and with them it can have one more.
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    to.extend_from_slice(length.to_string().as_bytes());
    to.push(b' ');
    to.extend_from_slice(key);
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Decimal digits and nothing else.
pub(super) fn unsigned(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Decimal digits, perhaps with a minus.
fn signed(digits: &[u8]) -> Option<i64> {
    match digits.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(unsigned(digits)?),
        None => i64::try_from(unsigned(digits)?).ok(),
    }
}

/// `None` for an empty value.
fn integer(value: &[u8]) -> Result<Option<i64>, Reason> {
    match value {
        b"" => Ok(None),
        value => signed(value).map(Some).ok_or("a record is no number"),
    }
}

/// Seconds and a fraction, of which nine digits count; both are negative before 1970. `None` for an empty value.
fn moment(value: &[u8]) -> Result<Option<Timestamp>, Reason> {
    if value.is_empty() {
        return Ok(None);
    }
    let (secs, fraction) = match value.iter().position(|b| *b == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &value[value.len()..]),
    };
    let time = || {
        let whole = signed(secs)?;
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
        let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
        match secs.starts_with(b"-") && nanos > 0 {
            true => Some(Timestamp { secs: whole.checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
            false => Some(Timestamp { secs: whole, nanos }),
        }
    };
    time().map(Some).ok_or("a record is no time")
}

/// A time for a record, without zeros at its end.
pub(super) fn time(at: Timestamp) -> String {
    let Timestamp { secs, nanos } = at;
    if nanos == 0 {
        return secs.to_string();
    }
    let text = match secs < 0 {
        true => format!("-{}.{:09}", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
        false => format!("{secs}.{nanos:09}"),
    };
    text.trim_end_matches('0').to_owned()
}

/// The name of the header of an extended header: of the member's, in a directory beside it.
pub(super) fn header_name(path: &[u8]) -> Vec<u8> {
    let file = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (dir, file) = path.split_at(file);
    let rooted = path.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in dir.split(|b| *b == b'/').chain([&b"PaxHeaders.0"[..], file]) {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(&last) if last != b".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(part),
            },
            part => parts.push(part),
        }
    }
    let name = parts.join(&b'/');
    match (rooted, name.is_empty()) {
        (true, _) => [b"/", &name[..]].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => name,
    }
}

/// A name in which bytes may be written as `%` and two hexadecimal digits.
fn decoded_name(name: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name.iter();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => *byte,
        };
        decoded.push(byte);
    }
    Some(decoded)
}

/// Base 64, with or without the signs that fill it up.
fn decoded_value(value: &[u8]) -> Option<Vec<u8>> {
    let end = value.iter().rposition(|b| *b != b'=').map_or(0, |last| last + 1);
    let (digits, filling) = value.split_at(end);
    if digits.len() % 4 == 1 || filling.len() > 2 {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits: u32 = 0;
        for digit in group {
            let six = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = (bits << 6) | u32::from(six);
        }
        let bytes = (bits << (6 * (4 - group.len()) + 8)).to_be_bytes();
        decoded.extend_from_slice(&bytes[..group.len() * 3 / 4]);
    }
    Some(decoded)
}

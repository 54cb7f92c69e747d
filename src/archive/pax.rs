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

/// What stands before the words of GNU for sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";

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
    xattr_names_bytes: usize,
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
        if let Some(key) = key.strip_prefix(SPARSE) {
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
        match self.xattrs.get_mut(&name) {
            Some(present) if present.0 > source => {}
            Some(present) => *present = (source, value),
            None => {
                self.xattr_names_bytes += name.len() + 1;
                if self.xattr_names_bytes > limits.xattr_names_bytes {
                    return Err("the names of its extended attributes are longer than the limit");
                }
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

/// That records are records, whatever they say: with the numbers of a sparse map in their order, as in Go.
pub(super) fn check(mut bytes: &[u8]) -> Result<(), Reason> {
    let mut sparse = Sparse::default();
    while !bytes.is_empty() {
        let (Record { key, value }, rest) = Record::first_of(bytes)?;
        if let Some(key @ (b"offset" | b"numbytes")) = key.strip_prefix(SPARSE) {
            sparse.take(key, value)?;
        }
        bytes = rest;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(records: &[(&str, &str)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            put_record(&mut text, key.as_bytes(), value.as_bytes());
        }
        text
    }

    fn of(records: &[(&str, &str)]) -> Result<Extended, Reason> {
        Extended::of(&text(records), &Limits::default())
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        let cases: &[(&str, usize, &str)] = &[
            ("k", 1, "6 k=v\n"),
            // 9 bytes, and with a second digit 10 would be 11.
            ("k", 4, "9 k=vvvv\n"),
            ("k", 5, "11 k=vvvvv\n"),
            ("k", 6, "12 k=vvvvvv\n"),
        ];
        for (key, length, record) in cases {
            assert_eq!(text(&[(key, &"v".repeat(*length))]), record.as_bytes(), "{length}");
        }
        for length in 0..2000 {
            let value = "v".repeat(length);
            let record = text(&[("key", &value)]);
            let found = Record::first_of(&record).expect("a record");
            assert_eq!(found, (Record { key: b"key", value: value.as_bytes() }, &b""[..]));
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let good: &[&str] = &["7 a=bc\n", "5 a=\n", "008 a=b\n", "8 a=b=c\n", "8 a=b\nc\n"];
        for record in good {
            assert!(check(record.as_bytes()).is_ok(), "{record:?}");
        }
        let bad: &[&str] = &[
            "7",
            " a=b\n",
            "x a=b\n",
            "6 a=bc\n",
            "8 a=bc\n",
            "+7 a=bc\n",
            "-7 a=bc\n",
            "6 abcd",
            "5 ab\n",
            "4 =\n",
            "2 ",
            "1 ",
            "0 a=b\n",
            "18446744073709551616 a=b\n",
            "99999999999999999999999999 a=b\n",
            "9 pa\0th=\n",
            "10 path=\0\n",
            "14 linkpath=\0\n",
            "7 a=bc\n7",
            "7  a=b\n\n",
        ];
        for record in bad {
            assert!(check(record.as_bytes()).is_err(), "{record:?}");
        }
        // Values of other records may hold it.
        assert!(check(b"6 a=\0\n").is_ok());
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_says_nothing() {
        let extended =
            of(&[("path", "a"), ("path", "b"), ("size", "5"), ("size", ""), ("uid", "7")]).expect("records");
        assert_eq!((extended.path, extended.size, extended.uid), (Some(b"b".to_vec()), None, Some(7)));
        for key in
            ["size", "uid", "gid", "mtime", "atime", "ctime", "GNU.sparse.size", "GNU.sparse.numblocks"]
        {
            for value in ["x", "1x", "0x1", " 1", "1 ", "+1", "--1", "-", "9223372036854775808", "1e3"] {
                assert!(of(&[(key, value)]).is_err(), "{key}={value}");
            }
            assert!(of(&[(key, "")]).is_ok(), "{key}");
        }
        assert_eq!(of(&[("size", "-9223372036854775808")]).expect("a number").size, Some(i64::MIN));
    }

    #[test]
    fn times_are_read_and_written_to_the_nanosecond() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        let both: &[(&str, Timestamp)] = &[
            ("0", at(0, 0)),
            ("1700000000", at(1_700_000_000, 0)),
            ("1.5", at(1, 500_000_000)),
            ("1.000000001", at(1, 1)),
            ("-1", at(-1, 0)),
            ("-1.5", at(-2, 500_000_000)),
            ("-0.25", at(-1, 750_000_000)),
            ("-9223372036854775807.5", at(i64::MIN, 500_000_000)),
            ("9223372036854775807.999999999", at(i64::MAX, 999_999_999)),
        ];
        for (said, time_of) in both {
            assert_eq!(moment(said.as_bytes()), Ok(Some(*time_of)), "{said}");
            assert_eq!(time(*time_of), *said);
        }
        let read: &[(&str, Timestamp)] = &[
            ("1.", at(1, 0)),
            ("1.0000000019", at(1, 1)),
            ("-1.0", at(-1, 0)),
            ("-0", at(0, 0)),
            ("01.50", both[2].1),
        ];
        for (said, time_of) in read {
            assert_eq!(moment(said.as_bytes()), Ok(Some(*time_of)), "{said}");
        }
        for bad in [".5", "-.5", "1.5.5", "1.-5", "1. 5", "-9223372036854775808.5", "nan"] {
            assert!(moment(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn attributes_come_in_their_order_and_plain_ones_before_encoded_ones() {
        let mut extended = of(&[
            ("SCHILY.xattr.user.b", "plain"),
            ("LIBARCHIVE.xattr.user.b", "ZW5jb2RlZA"),
            ("LIBARCHIVE.xattr.user.%61%3D", "AAH/"),
            ("SCHILY.xattr.user.a", "first"),
            ("SCHILY.xattr.user.a", ""),
        ])
        .expect("records");
        let expected = [("user.a", &b""[..]), ("user.a=", &[0, 1, 0xff]), ("user.b", b"plain")];
        let expected: Vec<_> = expected.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.to_vec())).collect();
        assert_eq!(extended.take_xattrs(), expected);
        for key in [
            "SCHILY.xattr.",
            "LIBARCHIVE.xattr.",
            "LIBARCHIVE.xattr.%",
            "LIBARCHIVE.xattr.%4",
            "LIBARCHIVE.xattr.%zz",
        ] {
            assert!(of(&[(key, "")]).is_err(), "{key}");
        }
        assert!(of(&[("LIBARCHIVE.xattr.user.%00", "")]).is_err());
    }

    #[test]
    fn base_64_is_read_with_and_without_filling() {
        let good: &[(&str, &[u8])] = &[
            ("", b""),
            ("YQ", b"a"),
            ("YQ==", b"a"),
            ("YWI", b"ab"),
            ("YWI=", b"ab"),
            ("YWJj", b"abc"),
            ("+/+/", b"\xfb\xff\xbf"),
        ];
        for (text, bytes) in good {
            assert_eq!(decoded_value(text.as_bytes()).as_deref(), Some(*bytes), "{text}");
        }
        for bad in ["Y", "YWJjY", "YQ===", "Y=Q", "Y Q", "YQ\n", "-_"] {
            assert_eq!(decoded_value(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_numbers_of_a_sparse_map_may_have_records_of_their_own() {
        let piece = |key: &str| format!("GNU.sparse.{key}");
        let (offset, length) = (piece("offset"), piece("numbytes"));
        let extended =
            of(&[(&offset, "1"), (&length, "2"), (&offset, "3"), (&length, "4")]).expect("records");
        assert_eq!(extended.sparse.map, b"1,2,3,4");
        for bad in [
            &[(&offset[..], "1"), (&offset, "2")][..],
            &[(&length, "1")],
            &[(&offset, "1"), (&length, "2"), (&length, "3")],
            &[(&offset, "1,2")],
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
        let sizes = [("GNU.sparse.realsize", "7"), ("GNU.sparse.size", "8")];
        assert_eq!(of(&sizes).expect("records").sparse.size, Some(8));
        assert_eq!(of(&sizes[..1]).expect("records").sparse.size, Some(7));
    }

    #[test]
    fn the_header_of_an_extended_header_is_named_as_go_does() {
        let cases = [
            ("a", "PaxHeaders.0/a"),
            ("a/b", "a/PaxHeaders.0/b"),
            ("a/b/", "a/b/PaxHeaders.0"),
            ("/a", "/PaxHeaders.0/a"),
            ("//a", "/PaxHeaders.0/a"),
            ("/", "/PaxHeaders.0"),
            ("..", "."),
            ("a/..", "a"),
            ("../a", "../PaxHeaders.0/a"),
            ("../../a", "../../PaxHeaders.0/a"),
            ("/../a", "/PaxHeaders.0/a"),
            ("a/../b", "PaxHeaders.0/b"),
            ("./a//b", "a/PaxHeaders.0/b"),
        ];
        for (path, name) in cases {
            assert_eq!(header_name(path.as_bytes()), name.as_bytes(), "{path}");
        }
    }
}

//! Archives of every form that a reader takes, made without the crate; and what can happen to them.

use super::entries;
use super::random::Random;
use std::ops::Range;

const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const FLAG: usize = 156;
const LINK: Range<usize> = 157..257;

/// The fields that are numbers.
const NUMBERS: [Range<usize>; 15] = [
    100..108, // mode
    108..116, // user
    116..124, // group
    SIZE,
    SIZE,
    136..148, // mtime
    329..337, // major
    337..345, // minor
    345..357, // atime of GNU
    357..369, // ctime of GNU
    386..398, // first offset of a sparse map
    398..410, // first length
    410..422,
    422..434,
    483..495, // size of a sparse file
];

/// Every flag that somebody has written, and some that nobody has.
const FLAGS: &[u8] = b"0012345677\0xxggLLKKSSSDMNVXAz\xff ";

/// An archive, and where its headers are.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    pub bytes: Vec<u8>,
    pub headers: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Archive {
    /// An archive of a few members.
    pub fn new(random: &mut Random) -> Self {
        let mut archive = Self::default();
        for _ in 0..1 + random.below(3) {
            archive.member(random);
        }
        let zeros = *random.one_of(&[2, 2, 2, 1, 0, 4]);
        archive.bytes.resize(archive.bytes.len() + zeros * BLOCK, 0);
        if random.once_in(8) {
            archive.bytes.extend(random.bytes(30));
        }
        archive
    }

    fn member(&mut self, random: &mut Random) {
        let form = *random.one_of(&[Form::V7, Form::Ustar, Form::Ustar, Form::Star, Form::Gnu, Form::Gnu]);
        let path = entries::name(random);
        if random.once_in(12) {
            let list = records(random, 0);
            self.special(random, b'g', &list);
        }
        if random.once_in(6) {
            let long = [&entries::name(random)[..], &b"\0"[..random.below(2)]].concat();
            let flag = *random.one_of(b"LK");
            self.special(random, flag, &long);
        }
        let content = vec![b'c'; *random.one_of(&[0, 0, 1, 511, 512, 700])];
        match random.below(10) {
            0 => self.old_sparse(random, &path),
            1 | 2 => self.new_sparse(random, &path),
            3..=5 => {
                let list = records(random, content.len());
                self.special(random, b'x', &list);
                let flag = *random.one_of(b"0012357");
                self.whole(random, form, flag, &path, &content);
            }
            _ => {
                let flag = *random.one_of(b"00\x00712345566");
                self.whole(random, form, flag, &path, &content);
            }
        }
    }

    /// A member whose header has a size only if content follows.
    fn whole(&mut self, random: &mut Random, form: Form, flag: u8, path: &[u8], content: &[u8]) {
        let is_old_directory = flag == 0 && path.ends_with(b"/");
        let content = if (b'1'..=b'6').contains(&flag) || is_old_directory { &[] } else { content };
        self.header(random, form, flag, path, content.len() as u64);
        self.content(content);
    }

    fn special(&mut self, random: &mut Random, flag: u8, text: &[u8]) {
        let form = if flag == b'L' || flag == b'K' { Form::Gnu } else { Form::Ustar };
        self.header(random, form, flag, b"././@Special", text.len() as u64);
        self.content(text);
    }

    fn header(&mut self, random: &mut Random, form: Form, flag: u8, path: &[u8], size: u64) {
        let mut block = [0; BLOCK];
        put(&mut block[NAME], path);
        put(&mut block[LINK], &entries::name(random));
        for (at, number) in [
            (100..108, random.number() & 0o7777),
            (108..116, random.number() & 0xffff),
            (116..124, random.number() & 0xffff),
            (136..148, random.number() & 0xffff_ffff),
        ] {
            put_number(random, &mut block[at], number.cast_signed());
        }
        put_number(random, &mut block[SIZE], size.cast_signed());
        block[FLAG] = flag;
        if form != Form::V7 {
            block[257..265].copy_from_slice(if form == Form::Gnu { b"ustar  \0" } else { b"ustar\x0000" });
            for at in [329..337, 337..345] {
                let number = random.number() & 0xff;
                put_number(random, &mut block[at], number.cast_signed());
            }
        }
        match form {
            Form::Ustar if random.once_in(3) => put(&mut block[345..500], &entries::name(random)),
            Form::Star => {
                put(&mut block[345..476], b"prefix");
                block[508..512].copy_from_slice(b"tar\0");
            }
            Form::Gnu if random.once_in(3) => put_number(random, &mut block[345..357], 1_600_000_000),
            _ => {}
        }
        self.put_header(random, block);
    }

    fn put_header(&mut self, random: &mut Random, block: [u8; BLOCK]) {
        let at = self.bytes.len();
        self.headers.push(at);
        self.bytes.extend(block);
        seal(&mut self.bytes[at..], random.once_in(8));
    }

    fn content(&mut self, content: &[u8]) {
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// A sparse file with its map in the header and in blocks behind it.
    fn old_sparse(&mut self, random: &mut Random, path: &[u8]) {
        let (pieces, size) = pieces(random, 30);
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        self.header(random, Form::Gnu, b'S', path, data);
        let start = self.bytes.len() - BLOCK;
        let mut rest = &pieces[..];
        let mut place = 386;
        let mut count = 4;
        let mut at = start;
        loop {
            let (now, later) = rest.split_at(rest.len().min(count));
            for (index, (offset, length)) in now.iter().enumerate() {
                let begin = at + place + 24 * index;
                octal(&mut self.bytes[begin..begin + 12], *offset);
                octal(&mut self.bytes[begin + 12..begin + 24], *length);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
            self.bytes[at + place + 24 * count] = 1;
            at = self.bytes.len();
            self.bytes.resize(at + BLOCK, 0);
            (place, count) = (0, 21);
        }
        octal(&mut self.bytes[start + 483..start + 495], size);
        seal(&mut self.bytes[start..], false);
        self.content(&vec![b's'; data as usize]);
    }

    /// A sparse file with its map in an extended header or before its content.
    fn new_sparse(&mut self, random: &mut Random, path: &[u8]) {
        let (pieces, size) = pieces(random, 6);
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        let mut text = Vec::new();
        let mut before = Vec::new();
        let size = size.to_string();
        let count = pieces.len().to_string();
        match random.below(3) {
            0 => {
                record(&mut text, b"GNU.sparse.size", size.as_bytes());
                record(&mut text, b"GNU.sparse.numblocks", count.as_bytes());
                for (offset, length) in &pieces {
                    record(&mut text, b"GNU.sparse.offset", offset.to_string().as_bytes());
                    record(&mut text, b"GNU.sparse.numbytes", length.to_string().as_bytes());
                }
            }
            1 => {
                record(&mut text, b"GNU.sparse.size", size.as_bytes());
                record(&mut text, b"GNU.sparse.numblocks", count.as_bytes());
                record(&mut text, b"GNU.sparse.name", path);
                let list: Vec<String> = pieces.iter().map(|(o, l)| format!("{o},{l}")).collect();
                record(&mut text, b"GNU.sparse.map", list.join(",").as_bytes());
            }
            _ => {
                record(&mut text, b"GNU.sparse.major", b"1");
                record(&mut text, b"GNU.sparse.minor", b"0");
                record(&mut text, b"GNU.sparse.name", path);
                record(&mut text, b"GNU.sparse.realsize", size.as_bytes());
                before.extend(format!("{count}\n").into_bytes());
                for (offset, length) in &pieces {
                    before.extend(format!("{offset}\n{length}\n").into_bytes());
                }
                before.resize(before.len().next_multiple_of(BLOCK), 0);
            }
        }
        self.special(random, b'x', &text);
        before.resize(before.len() + data as usize, b's');
        self.header(random, Form::Ustar, b'0', b"GNUSparseFile.0/f", before.len() as u64);
        self.content(&before);
    }

    /// One thing happens to it.
    pub fn change(&mut self, random: &mut Random, other: &Self) {
        if self.bytes.is_empty() {
            return;
        }
        match random.below(12) {
            0..=3 => self.change_header(random),
            4..=6 => self.change_content(random),
            7 => {
                let at = random.below(self.bytes.len());
                self.bytes[at] = random.number() as u8;
            }
            8 => self.bytes.truncate(random.below(self.bytes.len())),
            9 => {
                // Blocks of another archive, or of this one, between its own or instead of them.
                let blocks = |bytes: &[u8]| bytes.len() / BLOCK;
                let source = if random.once_in(2) { self.bytes.clone() } else { other.bytes.clone() };
                let from = random.below(blocks(&source).max(1)) * BLOCK;
                let until = (from + (1 + random.below(3)) * BLOCK).min(source.len());
                let to = random.below(blocks(&self.bytes) + 1) * BLOCK;
                let over = if random.once_in(2) { to } else { (to + until - from).min(self.bytes.len()) };
                if from < until {
                    self.bytes.splice(to..over, source[from..until].iter().copied());
                }
            }
            10 => {
                let at = random.below(self.bytes.len() / BLOCK + 1) * BLOCK;
                let end = (at + BLOCK).min(self.bytes.len());
                self.bytes.drain(at..end);
            }
            _ => {
                let (at, length) = (random.below(self.bytes.len()), 1 + random.below(16));
                let end = (at + length).min(self.bytes.len());
                let fill = *random.one_of(&[0, 0xff, b' ', b'\n', b'0', b'9']);
                self.bytes[at..end].fill(fill);
            }
        }
    }

    fn change_header(&mut self, random: &mut Random) {
        let Some(at) = self.some_header(random) else { return };
        let block = &mut self.bytes[at..at + BLOCK];
        match random.below(8) {
            0 | 1 => block[FLAG] = *random.one_of(FLAGS),
            2 => block[257..265].copy_from_slice(*random.one_of(&[
                b"ustar\x0000",
                b"ustar  \0",
                b"\0\0\0\0\0\0\0\0",
            ])),
            3 => put(&mut block[NAME], &entries::name(random)),
            4 => block[NAME][..6].copy_from_slice(*random.one_of(&[b"/etc/\0", b"../a/b", b"a\0b\0c\0"])),
            _ => {
                let field = random.one_of(&NUMBERS).clone();
                let number = random.edge().cast_signed();
                match random.below(6) {
                    0 => block[field].fill(*random.one_of(&[0, b' ', b'7', 0xff, 0x80, b'8'])),
                    1 => octal(&mut block[field], random.edge()),
                    2 => base256(&mut block[field], number),
                    3 => base256(&mut block[field], -number.saturating_abs()),
                    4 => {
                        let place = field.start + random.below(field.len());
                        block[place] = random.number() as u8;
                    }
                    _ => octal(&mut block[field], random.below(2000) as u64),
                }
            }
        }
        seal(block, random.once_in(16));
    }

    /// Changes a byte of what stands behind a header, preferring text.
    fn change_content(&mut self, random: &mut Random) {
        let Some(at) = self.some_header(random) else { return };
        let (from, to) = (at + BLOCK, (at + 2 * BLOCK).min(self.bytes.len()));
        let Some(content) = self.bytes.get_mut(from..to).filter(|c| !c.is_empty()) else { return };
        let length = content.iter().rposition(|b| *b != 0).map_or(content.len(), |last| last + 1);
        let place = random.below(length);
        content[place] = match random.below(3) {
            0 => *random.one_of(b"0123456789"),
            1 => *random.one_of(b"=\n ,.-\0%+/"),
            _ => random.number() as u8,
        };
    }

    /// Where a header is, if blocks were not moved meanwhile.
    fn some_header(&self, random: &mut Random) -> Option<usize> {
        let at = *self.headers.get(random.below(self.headers.len().max(1)))?;
        (at + BLOCK <= self.bytes.len()).then_some(at)
    }
}

/// A file with an extended header.
pub fn with_extended(records: &[u8], content: &[u8]) -> Vec<u8> {
    // Without chance: the plain way to write each number.
    let mut archive = Archive::default();
    for (flag, bytes) in [(b'x', records), (b'0', content)] {
        let mut block = [0; BLOCK];
        put(&mut block[NAME], b"name");
        octal(&mut block[SIZE], bytes.len() as u64);
        block[FLAG] = flag;
        seal(&mut block, false);
        archive.bytes.extend(block);
        archive.content(bytes);
    }
    archive.bytes
}

/// Ascending pieces and the size of their file.
fn pieces(random: &mut Random, most: usize) -> (Vec<(u64, u64)>, u64) {
    let mut pieces = Vec::new();
    let mut end = 0;
    for _ in 0..random.below(most) {
        let offset = end + random.below(1000) as u64;
        let length = random.below(40) as u64;
        pieces.push((offset, length));
        end = offset + length;
    }
    (pieces, end + random.below(1000) as u64)
}

/// Records that a member of so many bytes can have.
fn records(random: &mut Random, size: usize) -> Vec<u8> {
    let mut text = Vec::new();
    for _ in 0..1 + random.below(4) {
        let number = random.edge().to_string();
        match random.below(16) {
            0 | 1 => record(&mut text, b"path", &entries::name(random)),
            2 => record(&mut text, b"linkpath", &entries::name(random)),
            3 => record(&mut text, b"size", size.to_string().as_bytes()),
            4 if random.once_in(4) => record(&mut text, b"size", number.as_bytes()),
            5 | 6 => record(&mut text, [b"uid", b"gid"][random.below(2)], number.as_bytes()),
            7 | 8 => {
                let times = [
                    "0",
                    "1.5",
                    "-1.5",
                    "-0.25",
                    "12.0000000009",
                    "-9223372036854775808.9",
                    "1.",
                    "99999999999",
                ];
                let key = *random.one_of(&[&b"mtime"[..], b"atime", b"ctime"]);
                record(&mut text, key, random.one_of(&times).as_bytes());
            }
            9 => record(&mut text, b"SCHILY.xattr.user.a", &random.few_bytes(9)),
            10 => record(&mut text, b"SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0"),
            11 => record(
                &mut text,
                b"LIBARCHIVE.xattr.user.%61",
                random.one_of(&["YQ", "YWI", "YWJj", ""]).as_bytes(),
            ),
            12 => record(&mut text, b"hdrcharset", b"BINARY"),
            13 => record(&mut text, [b"path", b"size", b"gid\0"][random.below(3)], b""),
            _ => record(&mut text, b"comment", b"of no meaning"),
        }
    }
    text
}

/// A record of an extended header.
pub fn record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let length = (1..8).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l);
    to.extend(length.expect("a length that counts itself").to_string().into_bytes());
    to.extend([b" ", key, b"=", value, b"\n"].concat());
}

fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field.fill(0);
    field[..length].copy_from_slice(&text[..length]);
}

/// A number as one of those who write archives would do it.
fn put_number(random: &mut Random, field: &mut [u8], number: i64) {
    match random.below(12) {
        0 => base256(field, number),
        1 => {
            let text = format!("{number:o} ");
            field.fill(b' ');
            let at = field.len() - text.len();
            field[at..].copy_from_slice(text.as_bytes());
        }
        _ => octal(field, number.cast_unsigned()),
    }
}

fn octal(field: &mut [u8], number: u64) {
    let text = format!("{number:0width$o}", width = field.len() - 1);
    put(field, &text.as_bytes()[text.len() - (field.len() - 1)..]);
}

fn base256(field: &mut [u8], number: i64) {
    let wide = i128::from(number).to_be_bytes();
    let length = field.len();
    field.copy_from_slice(&wide[wide.len() - length..]);
    field[0] |= 0x80;
}

/// Makes the checksum of a header right.
fn seal(block: &mut [u8], signed: bool) {
    let block = &mut block[..BLOCK];
    block[CHECKSUM].fill(b' ');
    let unsigned: i64 = block.iter().map(|b| i64::from(*b)).sum();
    let high: i64 = block.iter().map(|b| i64::from(b >> 7)).sum();
    let sum = if signed { unsigned - 256 * high } else { unsigned };
    let mut rest = sum.max(0);
    for digit in block[CHECKSUM][..6].iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    block[CHECKSUM.end - 2] = 0;
}

//! Entries that can be written, of every kind and beyond every limit of the plain header.

use super::random::Random;
use plywood::archive::{Entry, EntryKind};
use plywood::types::Timestamp;

/// An entry, and content as long as it says.
pub fn entry(random: &mut Random) -> (Entry, Vec<u8>) {
    let kind = match random.below(10) {
        0 => EntryKind::HardLink(name(random)),
        1 => EntryKind::Symlink(name(random)),
        2 => EntryKind::Char { major: small(random), minor: small(random) },
        3 => EntryKind::Block { major: small(random), minor: small(random) },
        4 | 5 => EntryKind::Dir,
        6 => EntryKind::Fifo,
        _ => EntryKind::File,
    };
    let content = match kind {
        EntryKind::File if random.once_in(2) => {
            let length = *random.one_of(&[1, 9, 511, 512, 513, 1025]);
            vec![random.number() as u8; length]
        }
        _ => Vec::new(),
    };
    let mut path = name(random);
    while path.ends_with(b"/") {
        path.pop();
    }
    if path.is_empty() {
        path.push(b'f');
    }
    if kind == EntryKind::Dir && !random.once_in(4) {
        path.push(b'/');
    }
    let mut xattrs = Vec::new();
    if random.once_in(4) {
        for key in [&b"security.capability"[..], b"user.a", b"user.b\xff"] {
            let length = *random.one_of(&[0, 1, 20, 90, 1000]);
            if random.once_in(2) {
                xattrs.push((key.to_vec(), random.bytes(length)));
            }
        }
    }
    let entry = Entry {
        path,
        kind,
        mode: (random.number() & 0o7777) as u32,
        uid: id(random),
        gid: id(random),
        size_bytes: content.len() as u64,
        mtime: time(random),
        atime: None,
        xattrs,
    };
    (entry, content)
}

/// A name of any length that a layer can have, with slashes, and bytes of every kind but NUL.
pub fn name(random: &mut Random) -> Vec<u8> {
    let length = match random.below(8) {
        0 => random.below(300),
        1 => *random.one_of(&[99, 100, 101, 154, 155, 156, 157, 254, 255, 256, 257, 258]),
        _ => 1 + random.below(12),
    };
    let alphabet: &[u8] = match random.below(6) {
        0 => b"ab/\xc3\xa9",
        1 => b"a./",
        2 => b"abcdefghijklmnopq/\xff\x01= \n\\%",
        _ => b"abcdefghijklmnopqrstuvw/",
    };
    (0..length.max(1)).map(|_| *random.one_of(alphabet)).collect()
}

fn small(random: &mut Random) -> u32 {
    (random.edge() & 0x1f_ffff) as u32
}

fn id(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => (random.edge() as u32).min(u32::MAX - 1),
        _ => *random.one_of(&[0, 1000, 100_000, 0x1f_ffff, 0x20_0000, u32::MAX - 1]),
    }
}

fn time(random: &mut Random) -> Timestamp {
    let secs = match random.below(6) {
        0 => random.edge().cast_signed(),
        1 => *random.one_of(&[-1, -2, 0, 0x1_ffff_ffff, 0x2_0000_0000, i64::MAX, i64::MIN + 1]),
        _ => 1_700_000_000,
    };
    let nanos = match random.below(8) {
        0 => *random.one_of(&[1, 10, 100_000_000, 999_999_999, 500_000_000]),
        _ => 0,
    };
    // What Go takes for no time is written as 1970.
    let secs = if secs == -62_135_596_800 { 0 } else { secs };
    Timestamp { secs, nanos }
}

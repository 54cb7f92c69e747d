//! tar: whatever is read, the reader keeps its word; and what was written is read as it was.

use super::allocation;
use super::archives::{self, Archive};
use super::entries;
use super::harness::fuzz;
use super::random::Random;
use plywood::archive::{Entry, EntryKind, Limits, Reader, Writer};
use plywood::error::{Error, ErrorKind};

const BLOCK: usize = 512;

/// What a thread keeps: archives that are right, the same in every run, and room to change one.
struct State {
    pool: Vec<Archive>,
    changed: Archive,
}

impl State {
    fn new() -> Self {
        let mut random = Random::new(1);
        Self { pool: (0..3000).map(|_| Archive::new(&mut random)).collect(), changed: Archive::default() }
    }
}

#[test]
fn the_reader_keeps_its_word_whatever_it_reads() {
    fuzz("archive", 4_000_000, State::new, |state, random| match random.below(64) {
        0 => read(&Archive::new(random).bytes, random),
        1 => read(&noise(random), random),
        2..=5 => written_is_read(random),
        _ => {
            let State { pool, changed } = state;
            let original = random.one_of(pool);
            changed.bytes.clone_from(&original.bytes);
            changed.headers.clone_from(&original.headers);
            for _ in 0..1 + random.below(3) {
                let other = random.one_of(pool);
                changed.change(random, other);
            }
            read(&changed.bytes, random);
        }
    });
}

/// Bytes without any form.
fn noise(random: &mut Random) -> Vec<u8> {
    let length = match random.below(3) {
        0 => random.below(3 * BLOCK),
        _ => BLOCK * random.below(4),
    };
    random.bytes(length)
}

/// Limits that most archives keep, or that few do.
fn limits(random: &mut Random) -> Limits {
    if !random.once_in(4) {
        return Limits::default();
    }
    Limits {
        entries: random.below(4) as u64,
        path_bytes: random.below(200),
        pax_bytes: random.below(1000),
        xattr_value_bytes: random.below(10),
        xattr_names_bytes: random.below(40),
        sparse_pieces: random.below(10),
        total_bytes: random.below(8000) as u64,
    }
}

/// Reads all of it, or parts, and checks what is promised.
fn read(bytes: &[u8], random: &mut Random) {
    let limits = limits(random);
    let mut reader = Reader::new(bytes, limits);
    let mut buffer = [0; BLOCK];
    let mut entries = 0;
    let ended = loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        };
        entries += 1;
        check(&entry, &limits);
        let (pieces, wanted) = (random.below(8), 1 + random.below(BLOCK));
        if let Err(e) = read_content(&mut reader, &entry, pieces, &mut buffer[..wanted]) {
            break Err(e);
        }
    };
    assert!(entries <= limits.entries);
    assert!(reader.bytes_read() <= limits.total_bytes.min(bytes.len() as u64));
    match ended {
        Ok(()) => {
            assert_eq!(reader.next().expect("still the end"), None);
            assert!(reader.next_segment().expect("nothing more").is_none());
            match reader.finish() {
                Ok(rest) => assert!(rest.is_empty()),
                Err(e) => assert_eq!(e.kind(), ErrorKind::InvalidArgument),
            }
        }
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
            assert!(e.to_string().len() < 1000, "{e}");
            assert_eq!(reader.next().map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
        }
    }
}

/// What is promised of an entry.
fn check(entry: &Entry, limits: &Limits) {
    let link = match &entry.kind {
        EntryKind::HardLink(link) | EntryKind::Symlink(link) => &link[..],
        _ => &[],
    };
    for name in [&entry.path[..], link] {
        assert!(name.len() <= limits.path_bytes && !name.contains(&0), "{entry:?}");
    }
    assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX, "{entry:?}");
    assert!(entry.mtime.nanos < 1_000_000_000, "{entry:?}");
    match entry.kind {
        EntryKind::File => {
            assert!(entry.size_bytes <= i64::MAX as u64 && !entry.path.ends_with(b"/"), "{entry:?}");
        }
        _ => assert_eq!(entry.size_bytes, 0, "{entry:?}"),
    }
    assert!(entry.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0), "{entry:?}");
    let names: usize = entry.xattrs.iter().map(|(name, _)| name.len() + 1).sum();
    assert!(names <= limits.xattr_names_bytes, "{entry:?}");
    for (name, value) in &entry.xattrs {
        assert!(!name.is_empty() && !name.contains(&0), "{entry:?}");
        assert!(value.len() <= limits.xattr_value_bytes, "{entry:?}");
    }
}

/// Reads so many pieces of a file: they ascend, part by part, and lie within it.
fn read_content(
    reader: &mut Reader<&[u8]>,
    entry: &Entry,
    pieces: usize,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let mut end = None;
    for _ in 0..pieces {
        let Some(segment) = reader.next_segment()? else { break };
        assert!(segment.length_bytes > 0 && end.is_none_or(|end| end < segment.offset_bytes), "{entry:?}");
        let own_end = segment.offset_bytes + segment.length_bytes;
        assert!(own_end <= entry.size_bytes, "{entry:?}: {segment:?}");
        end = Some(own_end);
        let mut left = segment.length_bytes;
        loop {
            let read = reader.read(buffer)?;
            assert!(read <= buffer.len());
            if read == 0 {
                assert_eq!(left, 0, "{entry:?}: {segment:?}");
                break;
            }
            left -= read as u64;
        }
    }
    Ok(())
}

fn written_is_read(random: &mut Random) {
    let entries: Vec<_> = (0..1 + random.below(2)).map(|_| entries::entry(random)).collect();
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in &entries {
        writer.entry(entry).expect("an entry that can be written");
        writer.content(content).expect("its content");
    }
    let archive = writer.finish().expect("an end");
    let mut reader = Reader::new(&archive[..], Limits::default());
    for (entry, content) in &entries {
        assert_eq!(reader.next().expect("what was written").as_ref(), Some(entry));
        let mut read = Vec::new();
        while reader.next_segment().expect("content").is_some() {
            let mut buffer = [0; 2 * BLOCK];
            while let count @ 1.. = reader.read(&mut buffer).expect("content") {
                read.extend_from_slice(&buffer[..count]);
            }
        }
        assert_eq!(&read, content);
    }
    assert_eq!(reader.next().expect("an end"), None);
}

/// As much as an extended header or a sparse map can ask for.
#[test]
fn the_largest_of_everything_takes_little_memory() {
    let limits = Limits::default();
    let mut texts: Vec<(&str, Vec<u8>, Vec<u8>)> = Vec::new();
    let until_full = |record: &dyn Fn(usize) -> (Vec<u8>, Vec<u8>)| {
        let mut text = Vec::new();
        for index in 0.. {
            let (key, value) = record(index);
            if text.len() + key.len() + value.len() + 8 > limits.pax_bytes {
                break;
            }
            archives::record(&mut text, &key, &value);
        }
        text
    };
    let xattr =
        |index: usize, value: usize| (format!("SCHILY.xattr.{index:x}").into_bytes(), vec![b'v'; value]);
    texts.push(("many attributes", until_full(&|index| xattr(index % 13_000, 0)), Vec::new()));
    texts.push(("large attributes", until_full(&|index| xattr(index, 60_000)), Vec::new()));
    texts.push((
        "one name again and again",
        until_full(&|_| (b"path".to_vec(), vec![b'p'; 4000])),
        Vec::new(),
    ));
    let pieces = (limits.pax_bytes - 100) / 4;
    let list = until_full(&|index| match index {
        0 => (b"GNU.sparse.numblocks".to_vec(), pieces.to_string().into_bytes()),
        1 => (b"GNU.sparse.map".to_vec(), b"0,0,".repeat(pieces)[..4 * pieces - 1].to_vec()),
        _ => (b"comment".to_vec(), vec![0; limits.pax_bytes]),
    });
    texts.push(("a list of pieces", list, Vec::new()));
    let map = until_full(&|index| match index {
        0 => (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
        1 => (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
        2 => (b"GNU.sparse.realsize".to_vec(), b"9000000000".to_vec()),
        _ => (b"comment".to_vec(), vec![0; limits.pax_bytes]),
    });
    let count = 100_000;
    let mut content = format!("{count}\n").into_bytes();
    for index in 0..count {
        content.extend(format!("{}\n1\n", index * 2).into_bytes());
    }
    content.resize(content.len().next_multiple_of(BLOCK), 0);
    content.resize(content.len() + count, b'd');
    texts.push(("a map of pieces", map, content));
    for (what, text, content) in texts {
        let archive = archives::with_extended(&text, &content);
        let peak = allocation::peak_of(|| {
            let mut reader = Reader::new(&archive[..], limits);
            let entry = reader.next().expect(what).expect("a member");
            check(&entry, &limits);
            assert_eq!(reader.next().expect("an end"), None);
        });
        println!("{what}: {} KiB for {} KiB", peak >> 10, archive.len() >> 10);
        assert!(peak < 8 << 20, "{what}: {peak} bytes");
    }
}

//! Archives that are cut or changed give an error or fewer members, and never a panic.

use crate::archives::{Archive, record, with_extended};
use crate::entries;
use crate::members::{read, read_some, write};
use crate::random::Random;
use plywood::archive::{Entry, EntryKind, Limits, Reader};
use plywood::error::ErrorKind;

/// A small archive with a bit of everything.
fn small() -> Vec<u8> {
    let mut random = Random::new(11);
    let mut entries: Vec<(Entry, Vec<u8>)> = (0..6).map(|_| entries::entry(&mut random)).collect();
    entries.retain(|(entry, _)| entry.path.len() < 300);
    write(&entries)
}

#[test]
fn an_archive_cut_anywhere_gives_an_error_or_fewer_members() {
    let mut archives = vec![small()];
    let mut random = Random::new(5);
    archives.extend((0..40).map(|_| Archive::new(&mut random).bytes));
    for archive in archives {
        let (whole, _) = read_some(&archive);
        for end in 0..archive.len() {
            let (part, ended) = read_some(&archive[..end]);
            assert!(part.len() <= whole.len(), "cut at {end}");
            let same = part.iter().zip(&whole).filter(|(a, b)| a == b).count();
            assert!(same + 1 >= part.len(), "cut at {end}: only the last member may be cut");
            if ended.is_ok() {
                assert_eq!(
                    same,
                    part.len(),
                    "cut at {end}: an archive without an error is right as far as it goes"
                );
            }
        }
    }
}

#[test]
fn no_single_byte_makes_it_panic() {
    let archive = small();
    assert!(!read(&archive).is_empty());
    let mut changed = archive.clone();
    for at in 0..archive.len() {
        for value in [0, b'0', b'7', b' ', 0x80, 0xff, archive[at] ^ 1] {
            changed[at] = value;
            let (members, ended) = read_some(&changed);
            if let Err(e) = ended {
                assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
            }
            assert!(members.len() < 100);
        }
        changed[at] = archive[at];
    }
}

#[test]
fn an_empty_stream_is_an_empty_archive() {
    for archive in [&[][..], &[0; 512], &[0; 1024], &[0; 10_240]] {
        let mut reader = Reader::new(archive, Limits::default());
        assert_eq!(reader.next().expect("an end"), None);
        assert_eq!(reader.next().expect("still an end"), None);
        assert_eq!(reader.next_segment().expect("no content"), None);
        let rest = reader.finish().expect("a stream");
        assert!(rest.is_empty());
    }
    for archive in [&[0; 511][..], &[0; 513], &[1; 512]] {
        let failed = Reader::new(archive, Limits::default()).next().map_err(|e| e.kind());
        assert_eq!(failed, Err(ErrorKind::InvalidArgument));
    }
}

#[test]
fn what_stands_behind_the_end_is_read_by_finish_alone() {
    let mut archive = small();
    let count = read(&archive).len();
    archive.extend(b"signature".repeat(20_000));
    let mut reader = Reader::new(&archive[..], Limits::default());
    let mut found = 0;
    while reader.next().expect("a member").is_some() {
        found += 1;
    }
    assert_eq!(found, count);
    assert!(reader.bytes_read() < archive.len() as u64 - 150_000);
    assert!(reader.finish().expect("the stream").is_empty());
}

#[test]
fn a_reader_gives_up_at_the_first_error() {
    let mut archive = small();
    archive[0] ^= 1;
    let mut reader = Reader::new(&archive[..], Limits::default());
    let error = reader.next().expect_err("a wrong checksum");
    assert_eq!(
        error.to_string(),
        "read archive: header before byte 512: invalid archive: its checksum is wrong: invalid argument"
    );
    assert_eq!(reader.next().map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
    assert_eq!(reader.next_segment().map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
    assert_eq!(reader.finish().map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
}

#[test]
fn each_limit_is_kept_and_named() {
    let file = |path: &str, size: usize| {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size_bytes: size as u64,
            mtime: plywood::types::Timestamp::default(),
            atime: None,
            xattrs: vec![(b"user.a".to_vec(), vec![b'v'; 100])],
        };
        (entry, vec![b'c'; size])
    };
    let archive = write(&[file("a", 5), file(&"b".repeat(300), 5), file("c", 5)]);
    let all = |limits: Limits| -> plywood::error::Result<()> {
        let mut reader = Reader::new(&archive[..], limits);
        while reader.next()?.is_some() {}
        reader.finish().map(drop)
    };
    let of = Limits::default();
    let fits = Limits {
        entries: 3,
        path_bytes: 300,
        pax_bytes: 600,
        xattr_value_bytes: 100,
        total_bytes: archive.len() as u64,
        ..of
    };
    all(fits).expect("an archive within its limits");
    for (limits, words) in [
        (Limits { entries: 2, ..of }, "more than 2 entries"),
        (Limits { path_bytes: 299, ..of }, "its name has 300 bytes, where 299 are allowed"),
        (Limits { pax_bytes: 300, ..of }, "where 300 are allowed"),
        (Limits { xattr_value_bytes: 99, ..of }, "longer than the limit"),
        (Limits { total_bytes: archive.len() as u64 - 1, ..of }, "it has more than"),
    ] {
        let error = all(limits).expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn the_errors_of_the_stream_are_told_as_they_are() {
    struct Broken(Option<std::io::Error>);
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(self.0.take().expect("one error"))
        }
    }
    let kind = |e| Reader::new(Broken(Some(e)), Limits::default()).next().map_err(|e| e.kind());
    let refused = std::io::Error::from_raw_os_error(libc::EACCES);
    assert_eq!(kind(refused), Err(ErrorKind::PermissionDenied));
    let ours = plywood::error::Error::new(ErrorKind::Cancelled, "read", "blob", "stop");
    assert_eq!(kind(std::io::Error::other(ours)), Err(ErrorKind::Cancelled));
}

#[test]
fn a_wrong_record_is_an_error_that_says_so() {
    let check = |records: &[u8], words: &str| {
        let error = read_some(&with_extended(records, b"")).1.expect_err(words).to_string();
        assert!(error.contains(words), "{}: {error}", records.escape_ascii());
    };
    check(b"x", "the length of a record");
    check(b"5 a=b\n", "does not end with its line");
    check(b"8 abcde\n", "no equals sign");
    check(b"6 =ab\n", "has no name");
    let cases: &[(&str, &str, &str)] = &[
        ("path", "a\0b", "holds a NUL"),
        ("linkpath", "\0", "holds a NUL"),
        ("a\0", "b", "holds a NUL"),
        ("size", "x", "the record \"size\""),
        ("uid", "-1", "its user has the number -1"),
        ("gid", "4294967295", "its group has the number 4294967295"),
        ("mtime", "1x", "the record \"mtime\""),
        ("SCHILY.xattr.", "", "has no name"),
        ("GNU.sparse.map", "0,0", "as many pieces as it says"),
        ("GNU.sparse.numbytes", "1", "do not alternate"),
    ];
    for (key, value, words) in cases {
        let mut records = Vec::new();
        record(&mut records, key.as_bytes(), value.as_bytes());
        check(&records, words);
    }
}

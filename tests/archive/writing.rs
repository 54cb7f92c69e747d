//! What is written is what Go writes, byte for byte.

use crate::entries;
use crate::go::{GoEntry, Request, go, hex, unhex};
use crate::members::write;
use crate::random::Random;
use plywood::archive::{Entry, EntryKind, Writer};
use plywood::error::ErrorKind;
use plywood::types::Timestamp;

fn file(path: impl Into<Vec<u8>>) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size_bytes: 0,
        mtime: Timestamp { secs: 1_700_000_000, nanos: 0 },
        atime: None,
        xattrs: Vec::new(),
    }
}

fn of_kind(path: impl Into<Vec<u8>>, kind: EntryKind) -> Entry {
    Entry { kind, ..file(path) }
}

/// The bytes of the headers of one entry, or that it is refused.
fn header_of(entry: &Entry) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match Writer::new(&mut bytes).entry(entry) {
        Ok(()) => Some(bytes),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
            assert!(bytes.is_empty(), "something was written of {entry:?}");
            None
        }
    }
}

/// Compares the headers of entries, each as the only one of its archive.
fn compare(entries: &[Entry], any_form: bool) {
    let request =
        |entry: &Entry| Request { any_form, entries: vec![GoEntry::of(entry, b"")], ..Request::default() };
    let answers = go("write", &entries.iter().map(request).collect::<Vec<_>>());
    for (entry, answer) in entries.iter().zip(answers) {
        let ours = header_of(entry);
        let theirs = answer.errors.is_empty().then(|| unhex(&answer.archive));
        if ours != theirs {
            let text = |bytes: &Option<Vec<u8>>| {
                bytes
                    .as_ref()
                    .map(|b| b.chunks(64).map(|c| format!("\n{}", c.escape_ascii())).collect::<String>())
            };
            panic!("{entry:?}\nours {:?}\nGo's {:?} {:?}", text(&ours), text(&theirs), answer.errors);
        }
    }
}

/// Names of every length at which something changes, as `a...a`, cut by slashes into parts of so many bytes.
fn long_names() -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for length in
        [1, 98, 99, 100, 101, 102, 154, 155, 156, 157, 200, 254, 255, 256, 257, 258, 300, 1000, 4000]
    {
        for part in [7, 50, 99, 100, 101, 154, 155, 156, 5000] {
            let name: Vec<u8> = (1..=length).map(|i| if i % (part + 1) == 0 { b'/' } else { b'a' }).collect();
            names.push(name);
        }
    }
    for odd in [
        "a/b",
        "a//b",
        "./a",
        "../a",
        "a/..",
        "a/.",
        "..",
        ".",
        "/",
        "/a",
        "//a",
        "a/",
        "a//",
        "a/../../b",
        "/../a",
        "ä",
        "dir/ä/b",
        "日本/語",
        "a\u{301}",
        "a b",
        "a=b",
        "a\nb",
        "a\tb",
        "\u{7f}",
        "\u{1}",
        ".wh.a",
        "d/.wh..wh..opq",
    ] {
        names.push(odd.as_bytes().to_vec());
        names.push([odd.as_bytes(), &b"/x".repeat(80)].concat());
        names.push([&b"y/".repeat(80), odd.as_bytes()].concat());
    }
    names.extend([b"\xff".to_vec(), b"a/\xc3".to_vec(), b"\xf0\x9f\x98a/b".to_vec()]);
    let slashes = |n: usize| b"/".repeat(n);
    // Where the name is cut there is a slash, or only slashes.
    names.extend([[&b"\xc3\xa9"[..], &slashes(120)].concat(), [&b"a".repeat(99)[..], b"/\xc3\xa9"].concat()]);
    names.extend([[&b"a".repeat(90)[..], &slashes(20), b"\xc3\xa9"].concat(), slashes(101), slashes(300)]);
    names
}

#[test]
fn names_of_every_kind_are_written_as_go_does() {
    let mut entries = Vec::new();
    for name in long_names() {
        entries.push(file(name.clone()));
        entries.push(of_kind([&name[..], b"/"].concat(), EntryKind::Dir));
        entries.push(of_kind(name.clone(), EntryKind::Dir));
        entries.push(of_kind("l", EntryKind::HardLink(name.clone())));
        entries.push(of_kind(name.clone(), EntryKind::Symlink(name)));
    }
    compare(&entries, false);
}

#[test]
fn numbers_and_times_of_every_size_are_written_as_go_does() {
    let mut entries = Vec::new();
    for id in [0, 1, 1000, 65_534, 0x1f_ffff, 0x20_0000, 0x7fff_ffff, u32::MAX - 1, u32::MAX] {
        entries.push(Entry { uid: id, ..file("u") });
        entries.push(Entry { gid: id, ..file("g") });
    }
    for size_bytes in [1, 511, (1 << 33) - 1, 1 << 33, (1 << 33) + 1, i64::MAX as u64] {
        entries.push(Entry { size_bytes, ..file("s") });
    }
    for mode in [0, 0o777, 0o1777, 0o4755, 0o7777, 0o10_0644, 0x1f_ffff, 0x20_0000] {
        entries.push(Entry { mode, ..file("m") });
    }
    for number in [0, 1, 255, 4095, 0xf_ffff, 0x1f_ffff, 0x20_0000, u32::MAX] {
        entries.push(of_kind("c", EntryKind::Char { major: number, minor: 3 }));
        entries.push(of_kind("b", EntryKind::Block { major: 8, minor: number }));
    }
    let secs = [0, 1, -1, -2, 1 << 33, (1 << 33) - 1, 1 << 40, -(1 << 40), -62_135_596_800, -62_135_596_801];
    for secs in secs {
        for nanos in [0, 1, 10, 500_000_000, 999_999_999] {
            entries.push(Entry { mtime: Timestamp { secs, nanos }, ..file("t") });
        }
    }
    compare(&entries, false);
}

#[test]
fn attributes_and_other_records_are_written_in_the_order_of_go() {
    let xattrs = |list: &[(&str, &[u8])]| -> Vec<(Vec<u8>, Vec<u8>)> {
        list.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.to_vec())).collect()
    };
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice();
    let mut entries = Vec::new();
    for list in [
        &[("security.capability", capability)][..],
        &[("user.b", b"2"), ("user.a", b"1"), ("security.capability", capability)],
        &[("user.empty", b"")],
        &[("user.line", b"a\nb=c\n")],
        &[("user.\u{e9}", b"\xff\xfe")],
        &[("a=b", b"x")],
        &[("a\0b", b"x")],
    ] {
        entries.push(Entry { xattrs: xattrs(list), ..file("x") });
        let all = Entry {
            xattrs: xattrs(list),
            uid: 1 << 22,
            gid: 1 << 23,
            size_bytes: 1 << 34,
            mtime: Timestamp { secs: -5, nanos: 250_000_000 },
            ..file("dir/".repeat(40) + "f")
        };
        entries.push(all);
        let link = EntryKind::HardLink("target/".repeat(30).into_bytes());
        entries.push(Entry { xattrs: xattrs(list), ..of_kind("dir/".repeat(40) + "l", link) });
    }
    // The length of a record counts itself: around each power of ten.
    for length in (60..120).chain(960..1000).chain(9960..10_000) {
        let value = vec![b'v'; length];
        entries.push(Entry { xattrs: xattrs(&[("u", &value)]), ..file("x") });
    }
    // As much as an extended header holds, and one byte more.
    let record = "1048576 SCHILY.xattr.u=\n".len();
    for length in [(1 << 20) - record, (1 << 20) - record + 1] {
        let value = vec![b'v'; length];
        entries.push(Entry { xattrs: xattrs(&[("u", &value)]), ..file("x") });
    }
    compare(&entries, false);
}

#[test]
fn what_go_refuses_is_refused() {
    let entries = [
        file("a\0b"),
        file("a/"),
        of_kind("a/", EntryKind::Fifo),
        of_kind("a/", EntryKind::Char { major: 1, minor: 1 }),
        of_kind("a", EntryKind::Symlink(b"x\0".to_vec())),
        of_kind("a\0", EntryKind::Dir),
    ];
    for entry in &entries {
        assert_eq!(header_of(entry), None, "{entry:?}");
    }
    compare(&entries, false);
    // These Go would write.
    assert_eq!(header_of(&file("")), None);
    assert_eq!(header_of(&Entry { size_bytes: 1, ..of_kind("a", EntryKind::Dir) }), None);
    let twice = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.a".to_vec(), b"2".to_vec())];
    assert_eq!(header_of(&Entry { xattrs: twice, ..file("a") }), None);
}

/// containerd asks for no form when it writes a whiteout.
#[test]
fn a_whiteout_has_the_same_bytes_whatever_form_is_asked_for() {
    let mut entries = Vec::new();
    for name in long_names().into_iter().filter(|n| !n.ends_with(b"/")) {
        for secs in [0, 1_700_000_000, 1 << 34] {
            let mtime = Timestamp { secs, nanos: 0 };
            entries.push(Entry { mode: 0, mtime, ..file(name.clone()) });
        }
    }
    compare(&entries, true);
    compare(&entries, false);
}

/// containerd leaves the numbers of a device in the header of its further names.
#[test]
fn a_further_name_of_a_device_can_have_its_numbers() {
    let link = of_kind("b", EntryKind::HardLink(b"a".to_vec()));
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).entry_of_device(&link, 10, 200).expect("an entry that can be written");
    let theirs = GoEntry { major: 10, minor: 200, ..GoEntry::of(&link, b"") };
    let answers = go("write", &[Request { entries: vec![theirs], ..Request::default() }]);
    assert_eq!(hex(&bytes), answers[0].archive);
}

#[test]
fn whole_archives_have_the_bytes_of_go() {
    let mut random = Random::new(7);
    let mut requests = Vec::new();
    let mut ours = Vec::new();
    for _ in 0..2000 {
        let count = random.below(6);
        let entries: Vec<_> = (0..count).map(|_| entries::entry(&mut random)).collect();
        let theirs = entries.iter().map(|(entry, content)| GoEntry::of(entry, content)).collect();
        requests.push(Request { close: true, entries: theirs, ..Request::default() });
        ours.push((write(&entries), entries));
    }
    for ((bytes, entries), answer) in ours.iter().zip(go("write", &requests)) {
        assert!(answer.errors.is_empty(), "{:?} of {entries:?}", answer.errors);
        assert_eq!(hex(bytes), answer.archive, "{entries:?}");
        let read: Vec<_> = crate::members::read(bytes).into_iter().map(|m| (m.entry, m.content)).collect();
        assert_eq!(&read, entries);
    }
}

#[test]
fn calls_in_the_wrong_order_are_refused() {
    let sized = Entry { size_bytes: 3, ..file("a") };
    let mut writer = Writer::new(Vec::new());
    assert_eq!(writer.content(b"x").map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
    writer.entry(&sized).expect("an entry");
    writer.content(b"ab").expect("content");
    assert_eq!(writer.content(b"cd").map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
    assert_eq!(writer.entry(&sized).map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
    writer.content(b"c").expect("the rest");
    writer.entry(&sized).expect("another entry");
    assert_eq!(writer.finish().map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
}

#[test]
fn after_a_write_that_failed_nothing_more_is_written() {
    let mut small = [0; 600];
    let mut writer = Writer::new(&mut small[..]);
    writer.entry(&file("a")).expect("an entry that fits");
    let failed = writer.entry(&file("b")).map_err(|e| e.kind());
    assert!(failed.is_err_and(|kind| kind != ErrorKind::FailedPrecondition));
    assert_eq!(writer.entry(&file("c")).map_err(|e| e.kind()), Err(ErrorKind::FailedPrecondition));
}

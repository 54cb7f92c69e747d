use super::*;

fn map(text: &str) -> IdMap {
    IdMap::parse(text.as_bytes()).expect("the map is valid")
}

#[test]
fn an_id_map_shows_stored_ids_and_stores_shown_ones() {
    // (map, stored, shown)
    let both_ways = [
        ("", 0, 0),
        ("", 4_000_000_000, 4_000_000_000),
        (":", 7, 7),
        (":0:1000:1:1:100000:65536", 0, 1000),
        (":0:1000:1:1:100000:65536", 1, 100_000),
        (":0:1000:1:1:100000:65536", 65_536, 165_535),
        ("0:1:1001:1001:0:1:1002:1002:64535", 0, 1),
        ("0:1:1001:1001:0:1:1002:1002:64535", 1000, 1001),
        ("0:1:1001:1001:0:1:1002:1002:64535", 1001, 0),
        ("0:1:1001:1001:0:1:1002:1002:64535", 65_536, 65_536),
        ("::0:0:4294967295:", 4_294_967_294, 4_294_967_294),
        ("4294967294:5:1", 4_294_967_294, 5),
    ];
    for (text, stored, shown) in both_ways {
        let map = map(text);
        assert_eq!(map.from_disk(stored), shown, "{text}: shown for {stored}");
        assert_eq!(map.to_disk(shown), Some(stored), "{text}: stored for {shown}");
    }
}

#[test]
fn ids_outside_of_the_map_show_as_nobody_and_cannot_be_stored() {
    let map = map("0:1000:1:10:2000:5");
    for stored in [1, 9, 15, 1000, u32::MAX] {
        assert_eq!(map.from_disk(stored), OVERFLOW_ID, "stored {stored}");
    }
    for shown in [0, 999, 1001, 1999, 2005, u32::MAX] {
        assert_eq!(map.to_disk(shown), None, "shown {shown}");
    }
}

#[test]
fn only_a_map_without_ranges_is_the_identity() {
    assert!(map("").is_identity() && map("::").is_identity() && IdMap::identity().is_identity());
    assert!(!map("0:0:65536").is_identity());
    assert_eq!(map(":5:6:7").ranges(), [IdRange { stored: 5, shown: 6, len: 7 }]);
}

#[test]
fn maps_that_make_no_sense_are_refused_with_their_text() {
    let cases: [(&[u8], &str); 16] = [
        (b"0", "triples"),
        (b"0:1", "triples"),
        (b"0:1:1:2", "triples"),
        (b"0::1:1", "triples"),
        (b"a:1:1", "triples"),
        (b"-1:0:1", "triples"),
        (b"+1:0:1", "triples"),
        (b" 1:0:1", "triples"),
        (b"0:0:4294967296", "triples"),
        (b"\xff:0:1", "triples"),
        (b"0:1:0", "empty"),
        (b"4294967295:0:1", "4294967294"),
        (b"0:4294967290:6", "4294967294"),
        (b"0:100:10:5:200:10", "overlap"),
        (b"5:200:10:0:100:6", "overlap"),
        (b"0:100:10:50:109:1", "overlap"),
    ];
    for (text, word) in cases {
        let error = IdMap::parse(text).expect_err("the map is wrong");
        assert_eq!(error.errno(), libc::EINVAL);
        let message = error.to_string();
        assert!(message.contains(word), "{message}");
        assert!(message.starts_with(&format!("id map: {}: ", text.escape_ascii())), "{message}");
    }
}

#[test]
fn squash_beats_the_map_in_what_is_shown_and_leaves_what_is_stored() {
    let squash = |uid, gid| Some(Squash { uid, gid });
    // (squash, stored, shown)
    let cases = [
        (None, (0, 0), (1000, 2000)),
        (None, (5, 0), (OVERFLOW_ID, 2000)),
        (squash(Some(0), Some(0)), (5, 5), (0, 0)),
        (squash(Some(7), None), (5, 0), (7, 2000)),
        (squash(None, Some(8)), (0, 5), (1000, 8)),
        (squash(None, None), (0, 0), (1000, 2000)),
    ];
    for (squash, stored, shown) in cases {
        let ownership = Ownership { uid_map: map("0:1000:1"), gid_map: map("0:2000:1"), squash };
        let answer = ownership.shown(Owner { uid: stored.0, gid: stored.1 });
        assert_eq!(answer, Owner { uid: shown.0, gid: shown.1 }, "{squash:?} {stored:?}");
        assert_eq!(ownership.may_lose_owner(), squash.is_some());
        let root = Owner { uid: 1000, gid: 2000 };
        assert_eq!(ownership.stored(root), Some(Owner { uid: 0, gid: 0 }));
        assert_eq!(ownership.stored(Owner { uid: 1001, ..root }), None);
        assert_eq!(ownership.stored(Owner { gid: 2001, ..root }), None);
        let stranger = Owner { uid: 1001, gid: 2000 };
        assert_eq!(ownership.stored_for_new(stranger), Owner { uid: OVERFLOW_ID, gid: 0 });
    }
    let owner = Owner { uid: 3, gid: 4 };
    assert_eq!(Ownership::default().shown(owner), owner);
    assert_eq!(Ownership::default().stored(owner), Some(owner));
}

#[test]
fn an_override_is_written_as_containers_storage_writes_it_and_read_back() {
    let cases = [
        (1000, 1000, 0o755, Some(OverrideKind::Dir), "1000:1000:0755:dir"),
        (0, 0, 0o4755, Some(OverrideKind::File), "0:0:4755:file"),
        (0, 5, 0, Some(OverrideKind::Symlink), "0:5:0000:symlink"),
        (0, 0, 0o644, Some(OverrideKind::Fifo), "0:0:0644:pipe"),
        (0, 0, 0o7, Some(OverrideKind::Socket), "0:0:0007:socket"),
        (0, 6, 0o660, Some(OverrideKind::Block { major: 8, minor: 1 }), "0:6:0660:block-8-1"),
        (0, 0, 0o666, Some(OverrideKind::Char { major: 5, minor: 300 }), "0:0:0666:char-5-300"),
        (4_294_967_294, 0, 0o1777, None, "4294967294:0:1777"),
    ];
    for (uid, gid, mode, kind, text) in cases {
        let value = StatOverride { uid, gid, mode, kind };
        assert_eq!(value.format(), text.as_bytes());
        assert_eq!(StatOverride::parse(text.as_bytes()), Some(value), "{text}");
    }
    let with_type_bits = StatOverride { uid: 0, gid: 0, mode: 0o100_644, kind: None };
    assert_eq!(with_type_bits.format(), b"0:0:0644");
}

#[test]
fn overrides_of_older_writers_are_read() {
    let read = |text: &[u8]| StatOverride::parse(text).map(|s| (s.uid, s.gid, s.mode, s.kind));
    let cases: [(&[u8], _); 11] = [
        (b"0:0:555", (0, 0, 0o555, None)),
        (b"0:0:0555\n", (0, 0, 0o555, None)),
        (b"0:0:0555\0", (0, 0, 0o555, None)),
        (b"1:2:100644", (1, 2, 0o644, None)),
        (b"1:2:40755:dir", (1, 2, 0o755, Some(OverrideKind::Dir))),
        (b"-2:-1:7", (4_294_967_294, u32::MAX, 7, None)),
        (b"-2147483648:0:7", (1 << 31, 0, 7, None)),
        (b"0:0:7:directory", (0, 0, 7, Some(OverrideKind::Dir))),
        (b"0:0:7:file:more", (0, 0, 7, Some(OverrideKind::File))),
        (b"0:0:7:block-8-1-x", (0, 0, 7, Some(OverrideKind::Block { major: 8, minor: 1 }))),
        (b"0:0:7:char-5-1\0", (0, 0, 7, Some(OverrideKind::Char { major: 5, minor: 1 }))),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text), Some(expected), "{}", text.escape_ascii());
    }
}

#[test]
fn garbage_is_no_override() {
    let cases: [&[u8]; 19] = [
        b"",
        b":",
        b"::",
        b"0:0",
        b"0:0:",
        b"0:0:8",
        b"0:0:0o7",
        b"0:0:77777777777777",
        b"x:0:7",
        b"0: 0:7",
        b"4294967296:0:7",
        b"-2147483649:0:7",
        b"--1:0:7",
        b"0:0:7:",
        b"0:0:7:door",
        b"0:0:7:char-5",
        b"0:0:7:char-5-x",
        b"0:0:7:block-4294967296-0",
        b"\xff\xfe:0:7",
    ];
    for text in cases {
        assert_eq!(StatOverride::parse(text), None, "{}", text.escape_ascii());
    }
}

#[test]
fn a_kind_and_the_mode_and_device_of_a_file_say_the_same() {
    let cases = [
        (libc::S_IFDIR, 0, OverrideKind::Dir),
        (libc::S_IFREG, 0, OverrideKind::File),
        (libc::S_IFLNK, 0, OverrideKind::Symlink),
        (libc::S_IFIFO, 0, OverrideKind::Fifo),
        (libc::S_IFSOCK, 0, OverrideKind::Socket),
        (libc::S_IFBLK, libc::makedev(259, 70_000), OverrideKind::Block { major: 259, minor: 70_000 }),
        (libc::S_IFCHR, libc::makedev(1, 3), OverrideKind::Char { major: 1, minor: 3 }),
    ];
    for (bits, rdev, kind) in cases {
        assert_eq!(OverrideKind::from_stat(bits | 0o644, rdev), Some(kind));
        assert_eq!((kind.type_bits(), kind.rdev()), (bits, rdev));
    }
    assert_eq!(OverrideKind::from_stat(0o644, 0), None);
}

#[test]
fn attribute_names_are_kept_under_another_name_and_found_again() {
    let encoded = encode_xattr_name(c"security.capability").expect("a short name");
    assert_eq!(encoded.as_c_str(), c"user.containers.override_security.capability");
    assert_eq!(decode_xattr_name(encoded.to_bytes()), Some(&b"security.capability"[..]));

    let name_of = |len: usize| CString::new(format!("user.{}", "x".repeat(len - 5))).expect("no NUL");
    let room = 255 - ENCODED_PREFIX.len();
    assert!(encode_xattr_name(&name_of(room)).is_some_and(|name| name.as_bytes().len() == 255));
    assert_eq!(encode_xattr_name(&name_of(room + 1)), None);
    assert_eq!(encode_xattr_name(c"stat"), None);
    for name in [c"", c"user.containers", c"security.capability", c"user.containers.override_"] {
        assert_eq!(decode_xattr_name(name.to_bytes()), None);
    }
    for name in OverrideName::ALL {
        assert_eq!(decode_xattr_name(name.xattr().to_bytes()), None);
    }
}

//! Names of members: whatever is written, a path is clean and leads nowhere but down.

use super::harness::fuzz;
use super::random::Random;
use plywood::apply::name::{Meaning, Name, shown};

/// Names of which every piece matters.
pub fn nasty(random: &mut Random) -> Vec<u8> {
    const PARTS: [&[u8]; 20] = [
        b"/",
        b"/",
        b"..",
        b".",
        b"a",
        b"b",
        b".wh.",
        b".wh..wh.",
        b".wh..wh..opq",
        b".wh..wh.plnk",
        b"../",
        b"./",
        b"//",
        b"a/",
        b"\\",
        b"\xff",
        b"\n",
        b"a/b",
        b".wh.a",
        b"...",
    ];
    let mut name = Vec::new();
    for _ in 0..random.below(8) {
        let part: &&[u8] = random.one_of(&PARTS);
        name.extend_from_slice(part);
    }
    if random.once_in(200) {
        name.extend(vec![b'n'; random.below(5000)]);
    }
    if random.once_in(50) {
        name.push(0);
    }
    name
}

/// The same by an independent way: a stack of components.
fn cleaned(written: &[u8]) -> Vec<&[u8]> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in written.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts
}

#[test]
fn names_lead_nowhere_but_down() {
    fuzz("names", 4_000_000, Name::default, |name, random| {
        let written = if random.once_in(8) { random.few_bytes(40) } else { nasty(random) };
        let parts = cleaned(&written);
        assert_eq!(name.set(&written), !parts.is_empty());
        assert_eq!(name.path(), parts.join(&b'/'), "{}", written.escape_ascii());
        let Some((base, dirs)) = parts.split_last() else { return };
        assert_eq!((name.base(), name.dir()), (*base, &dirs.join(&b'/')[..]));
        let prefix = b".wh.";
        match name.meaning() {
            Meaning::Member => assert!(!base.starts_with(prefix)),
            Meaning::Opaque => assert_eq!(base, b".wh..wh..opq"),
            Meaning::Invalid => assert!([&b".wh."[..], b".wh..", b".wh..."].contains(base)),
            Meaning::Ignored => assert!(base.starts_with(b".wh..wh.") && *base != b".wh..wh..opq"),
            Meaning::Whiteout(hidden) => {
                assert_eq!([prefix, hidden].concat(), *base);
                assert!(
                    !hidden.is_empty() && ![&b"."[..], b".."].contains(&hidden) && !hidden.contains(&b'/')
                );
                assert!(!hidden.starts_with(prefix));
            }
        }
        assert!(shown(name.path()).len() < 1000);
    });
}

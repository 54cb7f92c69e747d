//! What is read of an archive is what Go reads of it.

use crate::archives::Archive;
use crate::go::{Answer, GoEntry, Request, go, hex, unhex};
use crate::members::{Member, read_some};
use crate::random::Random;
use plywood::archive::EntryKind;

/// The bytes of a file that `tar.go` looks at.
const COMPARED: usize = 1 << 16;

/// What we have read, in the words of Go.
fn in_go(member: &Member) -> GoEntry {
    let content = &member.content[..member.content.len().min(COMPARED)];
    GoEntry::of(&member.entry, content)
}

/// What Go has read, where it says the same in other words than we.
fn as_ours(mut entry: GoEntry, ours: &Member) -> GoEntry {
    entry.mode &= 0o7777;
    if [0, b'7', b'S'].contains(&entry.flag) {
        entry.flag = b'0';
    }
    // A file whose name ends in a slash is a directory for us.
    if entry.flag == b'0' && unhex(&entry.path).ends_with(b"/") {
        (entry.flag, entry.size, entry.content) = (b'5', 0, String::new());
    }
    if !matches!(ours.entry.kind, EntryKind::HardLink(_) | EntryKind::Symlink(_)) {
        entry.link.clear();
    }
    if !matches!(ours.entry.kind, EntryKind::Char { .. } | EntryKind::Block { .. }) {
        (entry.major, entry.minor) = (0, 0);
    }
    // What is no file has no size, whatever its header says.
    if ours.entry.kind != EntryKind::File {
        entry.size = 0;
    }
    // Go does not know those of libarchive.
    entry.xattrs.clear();
    entry
}

/// Why we refuse what Go takes.
const STRICTER: &[&str] = &[
    "has the number",
    "none that a layer can have",
    "of an unknown version",
    "more or less data than the archive",
    "a sparse map of what is no file",
    "of its sparse map is none",
    "as many pieces as it says",
    "is no number",
    "is no time",
    "the limit",
    "extended attribute",
    "holds a NUL",
    "the length of a record of its extended header is wrong",
    "are allowed",
    "a line of its sparse map is no number",
];

fn compare(archive: &[u8], answer: Answer) -> Result<(), String> {
    let (ours, ended) = read_some(archive);
    // Global headers are entries to Go.
    let theirs: Vec<_> = answer.entries.into_iter().filter(|e| e.flag != b'g').collect();
    for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let mut own = in_go(ours);
        let xattrs = std::mem::take(&mut own.xattrs);
        for pair in &theirs.xattrs {
            if !xattrs.contains(pair) {
                return Err(format!("entry {index} has no attribute {pair:?}: {ours:?}"));
            }
        }
        let mut theirs = as_ours(theirs.clone(), ours);
        // The content of a member that is cut is not comparable.
        let cut = index + 1 == ours_len(&ended, index);
        if cut {
            own.content.clone_from(&theirs.content);
        }
        if own != theirs {
            let from = own.content.bytes().zip(theirs.content.bytes()).position(|(a, b)| a != b);
            let lengths = (own.content.len(), theirs.content.len());
            (own.content, theirs.content) = Default::default();
            let content = format!("content from {from:?} on, {lengths:?}");
            return Err(format!("entry {index}: {content}\nours {own:?}\nGo's {theirs:?}"));
        }
    }
    match (&ended, answer.errors.first()) {
        (Ok(()), None) if ours.len() == theirs.len() => Ok(()),
        (Err(_), Some(_)) => Ok(()),
        (Err(e), None) if STRICTER.iter().any(|reason| e.to_string().contains(reason)) => Ok(()),
        (ended, error) => {
            Err(format!("{} entries and {ended:?}, Go's {} and {error:?}", ours.len(), theirs.len()))
        }
    }
}

/// The number of members if the last one was not read to its end, else none that there is.
fn ours_len(ended: &plywood::error::Result<()>, index: usize) -> usize {
    if ended.is_err() { index + 1 } else { 0 }
}

fn compare_all(seed: u64, count: usize, changes: usize) {
    let mut random = Random::new(seed);
    let mut archives: Vec<Vec<u8>> = Vec::new();
    let mut other = Archive::new(&mut random);
    for _ in 0..count {
        let mut archive = Archive::new(&mut random);
        for _ in 0..changes {
            archive.change(&mut random, &other);
        }
        archives.push(archive.bytes.clone());
        other = archive;
    }
    let request = |bytes: &Vec<u8>| Request { archive: hex(bytes), ..Request::default() };
    let answers = go("read", &archives.iter().map(request).collect::<Vec<_>>());
    let mut refused = 0;
    for (index, (archive, answer)) in archives.iter().zip(answers).enumerate() {
        refused += usize::from(read_some(archive).1.is_err());
        if let Err(why) = compare(archive, answer) {
            let blocks: String = archive
                .chunks(64)
                .filter(|c| c.iter().any(|b| *b != 0))
                .map(|c| format!("{}\n", c.escape_ascii()))
                .collect();
            panic!("archive {index} of seed {seed}: {why}\n{blocks}");
        }
    }
    println!("{refused} of {count} archives with {changes} changes were refused");
    assert!(refused < count, "some archives are right");
}

#[test]
fn archives_of_every_form_say_what_go_reads() {
    compare_all(1, 4000, 0);
}

#[test]
fn archives_to_which_something_happened_say_what_go_reads_or_nothing() {
    compare_all(2, 4000, 1);
    compare_all(3, 4000, 3);
}

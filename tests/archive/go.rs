//! Go's `archive/tar`, by `tests/programs/tar.go`.

use plywood::archive::{Entry, EntryKind};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::process::{Command, Stdio};

/// An entry in the words of the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoEntry {
    pub flag: u8,
    pub path: String,
    pub link: String,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub secs: i64,
    pub nanos: u32,
    pub major: i64,
    pub minor: i64,
    #[serde(deserialize_with = "null_is_empty")]
    pub xattrs: Vec<[String; 2]>,
    pub content: String,
}

#[derive(Debug, Default, Serialize)]
pub struct Request {
    pub any_form: bool,
    pub close: bool,
    pub entries: Vec<GoEntry>,
    pub archive: String,
}

#[derive(Debug, Deserialize)]
pub struct Answer {
    pub archive: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub entries: Vec<GoEntry>,
    #[serde(deserialize_with = "null_is_empty")]
    pub errors: Vec<String>,
}

/// Go writes a list of nothing as null.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    let half = |digit: u8| char::from(digit).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes().chunks(2).map(|pair| half(pair[0]) << 4 | half(pair[1])).collect()
}

impl GoEntry {
    /// The same entry for Go.
    pub fn of(entry: &Entry, content: &[u8]) -> Self {
        let (flag, link, (major, minor)) = match &entry.kind {
            EntryKind::File => (b'0', &[][..], (0, 0)),
            EntryKind::HardLink(link) => (b'1', &link[..], (0, 0)),
            EntryKind::Symlink(link) => (b'2', &link[..], (0, 0)),
            EntryKind::Char { major, minor } => (b'3', &[][..], (*major, *minor)),
            EntryKind::Block { major, minor } => (b'4', &[][..], (*major, *minor)),
            EntryKind::Dir => (b'5', &[][..], (0, 0)),
            EntryKind::Fifo => (b'6', &[][..], (0, 0)),
        };
        Self {
            flag,
            path: hex(&entry.path),
            link: hex(link),
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            size: entry.size_bytes.cast_signed(),
            secs: entry.mtime.secs,
            nanos: entry.mtime.nanos,
            major: major.into(),
            minor: minor.into(),
            xattrs: entry.xattrs.iter().map(|(name, value)| [hex(name), hex(value)]).collect(),
            content: hex(content),
        }
    }
}

/// What Go makes of requests: `write` or `read`.
pub fn go(what: &str, requests: &[Request]) -> Vec<Answer> {
    let mut child = Command::new("go")
        .args(["run", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/tar.go"), what])
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        // Where it stays for the next run, and goes with the other things that were built.
        .env("GOCACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/go"))
        .env("GOPATH", concat!(env!("CARGO_TARGET_TMPDIR"), "/gopath"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("go: {e}; install golang-go"));
    let mut asked = serde_json::to_vec(requests).expect("requests as JSON");
    asked.push(b'\n');
    let mut stdin = child.stdin.take().expect("its standard input");
    let writer = std::thread::spawn(move || stdin.write_all(&asked));
    let done = child.wait_with_output().expect("the Go program ends");
    assert!(done.status.success(), "go run tests/programs/tar.go {what}: {}", done.status);
    writer.join().expect("a thread that writes").expect("requests were taken");
    let answers: Vec<Answer> = serde_json::from_slice(&done.stdout).expect("answers as JSON");
    assert_eq!(answers.len(), requests.len());
    answers
}

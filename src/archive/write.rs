//! Members into a stream.
//!
//! Byte for byte what Go's `archive/tar` writes where containerd asks it for the PAX form: a plain ustar header if that
//! can say all, else an extended header before it with everything that does not fit. The same entries give the same
//! bytes, here and there and at any time; so a layer has the digest that containerd would give it.
//!
//! containerd asks for no form in particular when it writes whiteouts. Their bytes are the same: a name, an owner and
//! times that fit into ustar are written as ustar either way, and any other name needs the extended header either way.
//!
//! Sparse files are not written: a hole becomes zeros.

use super::entry::{Entry, EntryKind};
use super::fault::{misused, refused, unwritable};
use super::header::{self, Block, Fields, NAME_BYTES, ZEROS};
use super::pax;
use crate::error::Result;
use crate::types::Timestamp;
use std::borrow::Cow;
use std::io::Write;

/// Bytes of an extended header: as much as Go, libarchive and our own reader take.
const EXTENDED_BYTES: usize = 1 << 20;

/// The second that Go takes for no time at all: it is written as 1970.
const NO_TIME: Timestamp = Timestamp { secs: -62_135_596_800, nanos: 0 };

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W: Write> {
    inner: W,
    /// Bytes of content that the present member still wants.
    left: u64,
    /// Zeros behind its content.
    padding: usize,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// A writer to a stream. Headers are written block by block: a stream whose small writes are dear belongs into a
    /// [`std::io::BufWriter`].
    pub fn new(stream: W) -> Self {
        Self { inner: stream, left: 0, padding: 0, failed: false }
    }

    /// Begins a member. Its content follows by [`Writer::content`].
    ///
    /// Of the times only that of the last change is written. What is refused leaves the archive as it was.
    ///
    /// # Errors
    /// `InvalidArgument` if the form cannot say it: a NUL in a name, a slash behind the name of a file, an attribute
    /// whose name holds `=`, numbers or attributes that are too large; or a size of what is no file.
    /// `FailedPrecondition` if content of the member before is missing; the errors of the stream.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        let device = match entry.kind {
            EntryKind::Char { major, minor } | EntryKind::Block { major, minor } => (major, minor),
            _ => (0, 0),
        };
        self.write_entry(entry, device)
    }

    /// Begins a member that is a further name of a device: containerd writes the numbers of the device into it, which no
    /// reader looks at.
    ///
    /// # Errors
    /// As for [`Writer::entry`].
    pub fn entry_of_device(&mut self, link: &Entry, major: u32, minor: u32) -> Result<()> {
        self.write_entry(link, (major, minor))
    }

    /// Writes a part of the content of the present member.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is more than the member has; the errors of the stream.
    pub fn content(&mut self, bytes: &[u8]) -> Result<()> {
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => {
                self.put(bytes)?;
                self.left = left;
                Ok(())
            }
            None => Err(misused(format!("{} bytes where an entry has {} left", bytes.len(), self.left))),
        }
    }

    /// Ends the archive, and gives the stream back. It is not flushed.
    ///
    /// # Errors
    /// `FailedPrecondition` if content of the last member is missing; the errors of the stream.
    pub fn finish(mut self) -> Result<W> {
        self.end_member()?;
        self.put(&ZEROS)?;
        self.put(&ZEROS)?;
        Ok(self.inner)
    }

    fn write_entry(&mut self, entry: &Entry, device: (u32, u32)) -> Result<()> {
        if self.left > 0 {
            return Err(misused(format!("the entry before has {} bytes more", self.left)));
        }
        let headers = Headers::of(entry, device)?;
        self.end_member()?;
        if let Some((header, records)) = &headers.extended {
            self.put(header)?;
            self.put(records)?;
            self.put(&ZEROS[..header::padding(records.len() as u64)])?;
        }
        self.put(&headers.own)?;
        self.left = entry.size_bytes;
        self.padding = header::padding(entry.size_bytes);
        Ok(())
    }

    fn end_member(&mut self) -> Result<()> {
        if self.left > 0 {
            return Err(misused(format!("the last entry has {} bytes more", self.left)));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put(&ZEROS[..padding])
    }

    /// Writes all of it. What was half written cannot be gone on with.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        if self.failed {
            return Err(misused("an earlier write failed"));
        }
        self.inner.write_all(bytes).map_err(|e| {
            self.failed = true;
            unwritable(e)
        })
    }
}

/// The blocks of an entry.
struct Headers {
    /// Header and records of its extended header.
    extended: Option<(Block, Vec<u8>)>,
    own: Block,
}

impl Headers {
    fn of(entry: &Entry, device: (u32, u32)) -> Result<Self> {
        let (flag, link) = flag_and_link(&entry.kind);
        check(entry, link, device)?;
        let records = records(entry, link);
        if records.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(refused(&entry.path, "it has an attribute twice"));
        }
        let size = entry.size_bytes;
        let mut fields = Fields {
            flag,
            prefix: &[],
            name: &entry.path,
            link,
            mode: u64::from(entry.mode),
            uid: u64::from(entry.uid),
            gid: u64::from(entry.gid),
            size,
            mtime: match entry.mtime {
                NO_TIME => 0,
                // Before 1970 nothing fits, and 0 is written.
                time => u64::try_from(time.secs).unwrap_or(u64::MAX),
            },
            device: Some((u64::from(device.0), u64::from(device.1))),
        };
        // A path that ustar can split needs no record, but has one as soon as there are others.
        let is_ustar = match &records[..] {
            [] => true,
            [(key, _)] if &**key == b"path" => match header::split(&entry.path) {
                Some((prefix, name)) => {
                    (fields.prefix, fields.name) = (prefix, name);
                    true
                }
                None => false,
            },
            _ => false,
        };
        if is_ustar {
            return Ok(Self { extended: None, own: fields.block() });
        }
        let mut text = Vec::new();
        for (key, value) in &records {
            pax::put_record(&mut text, key, value);
        }
        if text.len() > EXTENDED_BYTES {
            let cause = format!(
                "its extended header has {} bytes, and readers take {EXTENDED_BYTES}: it has too many or too large attributes",
                text.len()
            );
            return Err(refused(&entry.path, cause));
        }
        let (name, link) = (header::plain(&entry.path), header::plain(link));
        (fields.name, fields.link) = (&name, &link);
        Ok(Self { extended: Some((extended_header(&entry.path, text.len()), text)), own: fields.block() })
    }
}

fn flag_and_link(kind: &EntryKind) -> (u8, &[u8]) {
    match kind {
        EntryKind::File => (b'0', &[]),
        EntryKind::HardLink(link) => (b'1', link),
        EntryKind::Symlink(link) => (b'2', link),
        EntryKind::Char { .. } => (b'3', &[]),
        EntryKind::Block { .. } => (b'4', &[]),
        EntryKind::Dir => (b'5', &[]),
        EntryKind::Fifo => (b'6', &[]),
    }
}

/// What cannot be written.
fn check(entry: &Entry, link: &[u8], device: (u32, u32)) -> Result<()> {
    let no = |cause: &str| Err(refused(&entry.path, cause));
    if entry.path.is_empty() {
        return no("an entry needs a name");
    }
    if entry.path.contains(&0) || link.contains(&0) {
        return no("a name or a link with a NUL cannot be written");
    }
    let may_have_slash =
        matches!(entry.kind, EntryKind::Dir | EntryKind::HardLink(_) | EntryKind::Symlink(_));
    if entry.path.ends_with(b"/") && !may_have_slash {
        return no("only the name of a directory ends in a slash");
    }
    if entry.kind != EntryKind::File && entry.size_bytes > 0 {
        return no("only a file has a size");
    }
    if i64::try_from(entry.size_bytes).is_err() {
        return no("a file has less than 2^63 bytes");
    }
    if ![entry.mode, device.0, device.1].into_iter().all(|n| header::fits_short(u64::from(n))) {
        return no("mode and device numbers have at most 21 bits");
    }
    if entry.mtime.nanos >= 1_000_000_000 {
        return no("its time has more nanoseconds than a second");
    }
    for (name, _) in &entry.xattrs {
        if name.is_empty() || name.iter().any(|b| *b == b'=' || *b == 0) {
            let name = name.escape_ascii();
            return no(&format!(
                "an attribute \"{name}\" cannot be written: it has no name, or one with = or NUL"
            ));
        }
    }
    Ok(())
}

type Record<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// What an extended header would say, in the order of the keys.
fn records<'a>(entry: &'a Entry, link: &'a [u8]) -> Vec<Record<'a>> {
    let mut records: Vec<Record<'a>> = Vec::new();
    for (name, value) in &entry.xattrs {
        records.push((Cow::Owned([pax::XATTR, name].concat()), Cow::Borrowed(value)));
    }
    let mut put = |key: &'static str, value: Cow<'a, [u8]>| {
        records.push((Cow::Borrowed(key.as_bytes()), value));
    };
    let number = |number: u64| Cow::Owned(number.to_string().into_bytes());
    if !header::fits_short(entry.gid.into()) {
        put("gid", number(entry.gid.into()));
    }
    let is_short = |name: &[u8]| name.len() <= NAME_BYTES && header::is_plain(name);
    if !is_short(link) {
        put("linkpath", Cow::Borrowed(link));
    }
    let Timestamp { secs, nanos } = entry.mtime;
    let fits = u64::try_from(secs).is_ok_and(header::fits_long) && nanos == 0;
    if entry.mtime != NO_TIME && !fits {
        put("mtime", Cow::Owned(pax::time(entry.mtime).into_bytes()));
    }
    if !is_short(&entry.path) {
        put("path", Cow::Borrowed(&entry.path));
    }
    if !header::fits_long(entry.size_bytes) {
        put("size", number(entry.size_bytes));
    }
    if !header::fits_short(entry.uid.into()) {
        put("uid", number(entry.uid.into()));
    }
    records.sort_by(|(a, _), (b, _)| a.cmp(b));
    records
}

/// The header of an extended header.
fn extended_header(path: &[u8], length: usize) -> Block {
    let mut name = header::plain(&pax::header_name(path));
    name.truncate(NAME_BYTES);
    let end = name.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
    name.truncate(end);
    let fields = Fields {
        flag: b'x',
        prefix: &[],
        name: &name,
        link: &[],
        mode: 0,
        uid: 0,
        gid: 0,
        size: length as u64,
        mtime: 0,
        device: None,
    };
    fields.block()
}

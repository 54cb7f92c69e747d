//! Members out of a stream, one after the other.
//!
//! What is taken for what follows Go's `archive/tar`, since an image must not mean one thing to containerd and another to
//! us. In three places we are like GNU tar and libarchive instead: a file whose name ends in a slash is a directory
//! whatever its flag, contiguous files (7) are files, and a sparse file of GNU's old form is one. Where Go guesses (a
//! sparse form of an unknown version, a map with more data than it says) we refuse.
//!
//! The stream is read in whole blocks, and content straight into the buffer of the caller: a stream whose small reads
//! are dear belongs into a [`std::io::BufReader`]. Nothing here trusts a number before it is compared with the
//! [`Limits`], and nothing is kept but the present member's name, attributes and sparse map.

use super::entry::{Entry, EntryKind};
use super::fault::{Reason, given_up, invalid, shown};
use super::header::{self, BLOCK, Block, Form, Header, ZEROS};
use super::limits::Limits;
use super::pax::{self, Extended, Sparse};
use super::source::Source;
use super::sparse::{self, Map, Segment};
use crate::error::Result;
use crate::types::Timestamp;
use std::io::Read;

/// Bytes that are read at a time where nobody wants them.
const SKIPPED: usize = 64 << 10;

/// Reads an archive.
///
/// ```
/// # use plywood::archive::{Limits, Reader};
/// # fn main() -> plywood::error::Result<()> {
/// # let stream: &[u8] = &[];
/// let mut reader = Reader::new(stream, Limits::default());
/// while let Some(entry) = reader.next()? {
///     while let Some(segment) = reader.next_segment()? {
///         let mut buffer = [0; 4096];
///         let mut at = segment.offset_bytes;
///         loop {
///             match reader.read(&mut buffer)? {
///                 0 => break,
///                 read => at += read as u64, // buffer[..read] belongs there
///             }
///         }
///     }
/// }
/// let stream = reader.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reader<R> {
    source: Source<R>,
    limits: Limits,
    state: State,
    entries: u64,
    has_end: bool,
    content: Content,
    /// The name of the present member, for messages.
    name: Vec<u8>,
    block: Box<Block>,
    /// For what is read to be parsed, or to be dropped.
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Members,
    Ended,
    Failed,
}

/// What of the present member is still in the stream.
#[derive(Debug, Default)]
struct Content {
    left: u64,
    padding: usize,
    pieces: Vec<Segment>,
    /// Index of the piece after the present one.
    following: usize,
    piece_left: u64,
}

/// What stands before a member and belongs to it.
#[derive(Default)]
struct Before {
    extended: Extended,
    name: Vec<u8>,
    link: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// A reader of a stream that stands at the begin of an archive.
    pub fn new(stream: R, limits: Limits) -> Self {
        Self {
            source: Source::new(stream, limits.total_bytes),
            limits,
            state: State::Members,
            entries: 0,
            has_end: false,
            content: Content::default(),
            name: Vec::new(),
            block: Box::new(ZEROS),
            buffer: Vec::new(),
        }
    }

    /// Bytes of the stream that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.source.taken()
    }

    /// The next member, or `None` at the end of the archive. Content of the one before that was not read is skipped.
    ///
    /// The archive ends with two blocks of zeros, or where the stream ends after a block: many programs write no end.
    ///
    /// # Errors
    /// `InvalidArgument` if the archive is none, is cut, holds what is no file, or goes beyond a limit; the errors of the
    /// stream. After an error the reader gives up: `FailedPrecondition`.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not lend the reader for the content"
    )]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        if self.state == State::Ended {
            return Ok(None);
        }
        self.guarded(|reader| {
            let found = reader.member()?;
            if found.is_none() {
                reader.state = State::Ended;
            }
            Ok(found)
        })
    }

    /// The next piece of the present file that has data, from the front to the back; what of the one before was not read
    /// is skipped. Between the pieces, and from the last one to the size of the file, are holes.
    ///
    /// # Errors
    /// As for [`Reader::next`].
    pub fn next_segment(&mut self) -> Result<Option<Segment>> {
        self.guarded(|reader| {
            let rest = reader.content.piece_left;
            reader.skip(rest)?;
            let content = &mut reader.content;
            let piece = content.pieces.get(content.following).copied();
            content.following += usize::from(piece.is_some());
            content.piece_left = piece.map_or(0, |p| p.length_bytes);
            Ok(piece)
        })
    }

    /// Reads from the present piece: 0 at its end, and before the first [`Reader::next_segment`].
    ///
    /// # Errors
    /// As for [`Reader::next`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.content.piece_left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        self.guarded(|reader| {
            let read = reader.source.read(&mut buffer[..wanted])?;
            if read == 0 {
                return Err(reader.cut());
            }
            reader.content.left -= read as u64;
            reader.content.piece_left -= read as u64;
            Ok(read)
        })
    }

    /// True once a block of zeros was met where a member could begin: the archive did not just stop between two members.
    pub fn has_end(&self) -> bool {
        self.has_end
    }

    /// Reads the stream to its end and gives it back. What stands behind the archive is not looked at, but belongs to the
    /// digest of a layer.
    ///
    /// # Errors
    /// Those of the stream, `InvalidArgument` if it has more bytes than the limit, `FailedPrecondition` after an error.
    pub fn finish(mut self) -> Result<R> {
        self.guarded(|reader| {
            reader.buffer.resize(SKIPPED, 0);
            while reader.source.read(&mut reader.buffer)? > 0 {}
            Ok(())
        })?;
        Ok(self.source.into_inner())
    }

    /// Gives up at the first error.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.state == State::Failed {
            return Err(given_up());
        }
        let done = work(self);
        if done.is_err() {
            self.state = State::Failed;
        }
        done
    }

    fn member(&mut self) -> Result<Option<Entry>> {
        let mut before = Before::default();
        loop {
            if !self.skip_member()? || !self.read_header()? {
                return Ok(None);
            }
            let block = *self.block;
            let header = Header::of(&block).map_err(|reason| self.invalid_header(reason))?;
            match header.flag {
                // For the whole archive, and not looked at further than Go does. As there, whatever else stood before the
                // member is forgotten with it.
                b'g' => {
                    self.read_special(&header)?;
                    pax::check(&self.buffer).map_err(|reason| self.invalid_header(reason))?;
                    before = Before::default();
                }
                b'x' => {
                    self.read_special(&header)?;
                    before.extended =
                        Extended::of(&self.buffer, &self.limits).map_err(|r| self.invalid_header(r))?;
                }
                b'L' => {
                    self.read_special(&header)?;
                    before.name = header::text(&self.buffer).to_vec();
                }
                b'K' => {
                    self.read_special(&header)?;
                    before.link = header::text(&self.buffer).to_vec();
                }
                _ => return self.describe(&block, &header, before).map(Some),
            }
        }
    }

    /// Reads the next header; false at the end of the archive.
    fn read_header(&mut self) -> Result<bool> {
        match self.source.fill(&mut *self.block)? {
            0 => return Ok(false),
            BLOCK => {}
            _ => return Err(invalid("stream".to_owned(), "it ends within a header")),
        }
        if *self.block != ZEROS {
            return Ok(true);
        }
        self.has_end = true;
        match self.source.fill(&mut *self.block)? {
            0 => Ok(false),
            BLOCK if *self.block == ZEROS => Ok(false),
            BLOCK => Err(self.invalid_header("a block of zeros stands before it")),
            _ => Err(invalid("stream".to_owned(), "it ends within the blocks that end it")),
        }
    }

    /// Reads all content of a header that only speaks of the next member.
    fn read_special(&mut self, header: &Header<'_>) -> Result<()> {
        let size = usize::try_from(header.size).map_err(|_| self.invalid_header("its size is negative"))?;
        if size > self.limits.pax_bytes {
            let reason =
                format!("an extended header of {size} bytes, where {} are allowed", self.limits.pax_bytes);
            return Err(invalid(self.place(), reason));
        }
        self.buffer.resize(size, 0);
        if self.source.fill(&mut self.buffer)? < size {
            return Err(invalid("stream".to_owned(), "it ends within an extended header"));
        }
        self.content = Content { padding: header::padding(size as u64), ..Content::default() };
        Ok(())
    }

    /// The member of a header, and its content as the present one.
    fn describe(&mut self, block: &Block, header: &Header<'_>, before: Before) -> Result<Entry> {
        let Before { mut extended, name, link } = before;
        let or = |long: Vec<u8>, record: Option<Vec<u8>>, own: &dyn Fn() -> Vec<u8>| match long.is_empty() {
            false => long,
            true => record.unwrap_or_else(own),
        };
        let path = or(name, extended.path.take(), &|| header.path());
        let link = or(link, extended.link.take(), &|| header.link.to_vec());
        self.name.clone_from(&path);
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.invalid(format!("it has more than {} entries", self.limits.entries)));
        }
        // Even if a record says another one, as in Go.
        if header.size < 0 && !matches!(header.flag, b'1'..=b'6') {
            return Err(self.invalid("its size is negative"));
        }
        let size = extended.size.unwrap_or(header.size);
        let is_old_directory = header.flag == 0 && path.ends_with(b"/");
        let mut entry = Entry {
            kind: self.kind_of(header, &path, link)?,
            path,
            mode: (header.mode & 0o7777) as u32,
            uid: self.owner(extended.uid.unwrap_or(header.uid), "user")?,
            gid: self.owner(extended.gid.unwrap_or(header.gid), "group")?,
            size_bytes: 0,
            mtime: extended.mtime.unwrap_or(Timestamp { secs: header.mtime, nanos: 0 }),
            atime: extended.atime.or(header.atime.map(|secs| Timestamp { secs, nanos: 0 })),
            xattrs: extended.take_xattrs(),
        };
        let form = SparseForm::of(header, &extended.sparse).map_err(|reason| self.invalid(reason))?;
        // Of what is no file the size says something else, or nothing: no content follows.
        if is_old_directory || entry.kind != EntryKind::File {
            if form != SparseForm::None {
                return Err(self.invalid("a sparse map of what is no file"));
            }
            self.begin(0);
        } else {
            let size = u64::try_from(size).map_err(|_| self.invalid("its size is negative"))?;
            self.begin(size);
            entry.size_bytes = self.read_map(block, form, &mut extended.sparse, size)?;
            if let Some(name) = extended.sparse.name.filter(|_| form.is_extended()) {
                entry.path = name;
            }
        }
        // The kind is known only now that the name is.
        if entry.kind == EntryKind::File && entry.path.ends_with(b"/") {
            (entry.kind, entry.size_bytes) = (EntryKind::Dir, 0);
            self.content.pieces.clear();
        }
        self.check_names(&entry)?;
        Ok(entry)
    }

    fn kind_of(&self, header: &Header<'_>, path: &[u8], link: Vec<u8>) -> Result<EntryKind> {
        let device = |number: i64| {
            u32::try_from(number).map_err(|_| self.invalid(format!("its device has the number {number}")))
        };
        Ok(match header.flag {
            b'0' | b'7' | b'S' | 0 => EntryKind::File,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => EntryKind::Char { major: device(header.major)?, minor: device(header.minor)? },
            b'4' => EntryKind::Block { major: device(header.major)?, minor: device(header.minor)? },
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            flag => {
                let reason = format!("its type '{}' is none that a layer can have", flag.escape_ascii());
                return Err(invalid(format!("entry {}", shown(path)), reason));
            }
        })
    }

    /// A user or group; the last number means nobody to the kernel.
    fn owner(&self, number: i64, whose: &str) -> Result<u32> {
        u32::try_from(number)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| self.invalid(format!("its {whose} has the number {number}")))
    }

    fn check_names(&self, entry: &Entry) -> Result<()> {
        let link = match &entry.kind {
            EntryKind::HardLink(link) | EntryKind::Symlink(link) => &link[..],
            _ => &[],
        };
        for (name, what) in [(&entry.path[..], "name"), (link, "link")] {
            if name.len() > self.limits.path_bytes {
                let limit = self.limits.path_bytes;
                let reason = format!("its {what} has {} bytes, where {limit} are allowed", name.len());
                return Err(self.invalid(reason));
            }
            if name.contains(&0) {
                return Err(self.invalid(format!("its {what} holds a NUL")));
            }
        }
        Ok(())
    }

    /// Makes the next bytes of the stream the content of the present member, in one piece.
    fn begin(&mut self, size: u64) {
        let content = &mut self.content;
        content.pieces.clear();
        if size > 0 {
            content.pieces.push(Segment { offset_bytes: 0, length_bytes: size });
        }
        (content.left, content.padding) = (size, header::padding(size));
        (content.following, content.piece_left) = (0, 0);
    }

    /// Reads the map of a sparse file, if it is one, and gives the size with the holes.
    fn read_map(&mut self, block: &Block, form: SparseForm, sparse: &mut Sparse, size: u64) -> Result<u64> {
        let limit = self.limits.sparse_pieces;
        let wrong = |reader: &Self, reason: Reason| reader.invalid(reason);
        let mut map = match form {
            SparseForm::None => return Ok(size),
            SparseForm::Old => header::real_size(block).and_then(|size| Map::of(size, limit)),
            // The size of the data stands for that of the file if nothing else does.
            _ => Map::of(sparse.size.unwrap_or(i64::try_from(size).unwrap_or(i64::MAX)), limit),
        }
        .map_err(|r| wrong(self, r))?;
        match form {
            SparseForm::None => {}
            SparseForm::Old => {
                let mut more = sparse::header_pieces(block, &mut map).map_err(|r| wrong(self, r))?;
                while more {
                    self.read_map_block()?;
                    more = sparse::block_pieces(&self.block, &mut map).map_err(|r| wrong(self, r))?;
                }
            }
            SparseForm::List => {
                let list = std::mem::take(&mut sparse.map);
                sparse::list_pieces(&list, sparse.pieces, &mut map).map_err(|r| wrong(self, r))?;
            }
            SparseForm::Beginning => {
                let mut beginning = sparse::Beginning::default();
                loop {
                    let left = self.content.left.checked_sub(BLOCK as u64);
                    self.content.left = left.ok_or_else(|| self.invalid("its sparse map is cut"))?;
                    self.read_map_block()?;
                    if !beginning.take(&self.block, &mut map).map_err(|r| wrong(self, r))? {
                        break;
                    }
                }
            }
        }
        let (size, pieces) = map.finish(self.content.left).map_err(|r| wrong(self, r))?;
        self.content.pieces = pieces;
        Ok(size)
    }

    fn read_map_block(&mut self) -> Result<()> {
        match self.source.fill(&mut *self.block)? {
            BLOCK => Ok(()),
            _ => Err(self.cut()),
        }
    }

    /// Skips what is left of the present member; false if the stream ends within the zeros that fill up its last block.
    fn skip_member(&mut self) -> Result<bool> {
        let (left, padding) = (self.content.left, std::mem::take(&mut self.content.padding));
        self.content.pieces.clear();
        self.content.piece_left = 0;
        self.skip(left)?;
        Ok(self.source.fill(&mut self.block[..padding])? == padding)
    }

    /// Skips so much of the content.
    fn skip(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(SKIPPED).min(SKIPPED);
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
            match self.source.read(&mut self.buffer[..wanted])? {
                0 => return Err(self.cut()),
                read => left -= read as u64,
            }
        }
        self.content.left -= bytes;
        Ok(())
    }

    /// Where the last header stands, for messages of what has no name yet.
    fn place(&self) -> String {
        format!("header before byte {}", self.source.taken())
    }

    fn invalid_header(&self, reason: Reason) -> crate::error::Error {
        invalid(self.place(), reason)
    }

    fn invalid(&self, reason: impl std::fmt::Display) -> crate::error::Error {
        invalid(format!("entry {}", shown(&self.name)), reason)
    }

    fn cut(&self) -> crate::error::Error {
        self.invalid("the stream ends within its content")
    }
}

/// How a header says where its file has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SparseForm {
    /// Not at all: everywhere.
    None,
    /// In the header and in blocks behind it.
    Old,
    /// In a list in the extended header.
    List,
    /// At the begin of the content.
    Beginning,
}

impl SparseForm {
    fn of(header: &Header<'_>, sparse: &Sparse) -> std::result::Result<Self, Reason> {
        if header.flag == b'S' {
            // That of star has the same flag and other fields.
            return match header.form {
                Form::Gnu => Ok(Self::Old),
                _ => Err("a sparse file of another form than GNU's"),
            };
        }
        match (&sparse.major[..], &sparse.minor[..]) {
            (b"0", b"0" | b"1") => Ok(Self::List),
            (b"1", b"0") => Ok(Self::Beginning),
            (b"", b"") if sparse.map.is_empty() => Ok(Self::None),
            (b"", b"") => Ok(Self::List),
            _ => Err("a sparse file of an unknown version"),
        }
    }

    fn is_extended(self) -> bool {
        matches!(self, Self::List | Self::Beginning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::header::Fields;
    use crate::archive::pax::put_record;

    fn block(flag: u8, name: &str, size: u64) -> Block {
        let name = name.as_bytes();
        let fields = Fields {
            flag,
            prefix: b"",
            name,
            link: b"target",
            mode: 0o644,
            uid: 1,
            gid: 2,
            size,
            mtime: 4,
            device: Some((5, 6)),
        };
        fields.block()
    }

    /// A header and content as long as it is.
    fn member(flag: u8, name: &str, content: &[u8]) -> Vec<u8> {
        let mut bytes = block(flag, name, content.len() as u64).to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn extended(records: &[(&str, &str)]) -> Vec<u8> {
        let mut text = Vec::new();
        for (key, value) in records {
            put_record(&mut text, key.as_bytes(), value.as_bytes());
        }
        member(b'x', "x", &text)
    }

    /// Kinds and names of all members, or the error.
    fn members(archive: &[u8]) -> std::result::Result<Vec<(EntryKind, String)>, String> {
        let mut reader = Reader::new(archive, Limits::default());
        let mut found = Vec::new();
        while let Some(entry) = reader.next().map_err(|e| e.to_string())? {
            found.push((entry.kind, entry.path.escape_ascii().to_string()));
        }
        Ok(found)
    }

    #[test]
    fn every_type_of_a_layer_has_its_kind() {
        let target = || b"target".to_vec();
        let cases = [
            (b'0', EntryKind::File),
            (0, EntryKind::File),
            (b'7', EntryKind::File),
            (b'1', EntryKind::HardLink(target())),
            (b'2', EntryKind::Symlink(target())),
            (b'3', EntryKind::Char { major: 5, minor: 6 }),
            (b'4', EntryKind::Block { major: 5, minor: 6 }),
            (b'5', EntryKind::Dir),
            (b'6', EntryKind::Fifo),
        ];
        for (flag, kind) in cases {
            assert_eq!(members(&member(flag, "a", b"")), Ok(vec![(kind, "a".to_owned())]));
        }
        for flag in [b'8', b'A', b'D', b'M', b'N', b'S', b'V', b'X', 1, 0xff] {
            let error = members(&member(flag, "a", b"")).expect_err("no type of a layer");
            assert!(error.starts_with("read archive: entry \"a\": invalid archive: "), "{error}");
        }
    }

    #[test]
    fn a_file_whose_name_ends_in_a_slash_is_a_directory() {
        let last = member(b'0', "last", b"");
        for (flag, content) in [(b'0', &b"content"[..]), (b'7', b"content"), (b'0', b""), (0, b"")] {
            let found = members(&[member(flag, "a/", content), last.clone()].concat());
            assert_eq!(found.map(|f| f[0].0.clone()), Ok(EntryKind::Dir), "{flag}");
        }
    }

    #[test]
    fn what_is_no_file_has_no_content_whatever_its_size_is() {
        let last = member(b'0', "last", b"");
        for flag in b'1'..=b'6' {
            let archive = [&block(flag, "a", 700)[..], &last].concat();
            assert_eq!(members(&archive).map(|f| f.len()), Ok(2), "{}", char::from(flag));
        }
        let archive = [&block(0, "old/", 700)[..], &last].concat();
        assert_eq!(members(&archive).map(|f| f.len()), Ok(2));
    }

    #[test]
    fn what_stands_before_a_member_counts_for_the_next_one_only() {
        let archive = [
            extended(&[("path", "long"), ("uid", "77")]),
            member(b'0', "short", b"x"),
            member(b'0', "b", b""),
            member(b'L', "L", b"longer\0\0"),
            member(b'K', "K", b"the link\0"),
            extended(&[("path", "not this"), ("linkpath", "nor this")]),
            member(b'2', "c", b""),
            extended(&[("path", "forgotten")]),
            member(b'g', "g", b"13 comment=a\n"),
            member(b'0', "d", b""),
            extended(&[("path", "")]),
            member(b'L', "L", b"\0"),
            member(b'0', "e", b""),
            extended(&[("path", "first")]),
            extended(&[("uid", "1")]),
            member(b'0', "f", b""),
        ]
        .concat();
        let names = members(&archive).map(|f| f.into_iter().map(|(_, name)| name).collect::<Vec<_>>());
        let expected = ["long", "b", "longer", "d", "e", "f"].map(str::to_owned).to_vec();
        assert_eq!(names, Ok(expected));
        let links = members(&archive).map(|f| f[2].0.clone());
        assert_eq!(links, Ok(EntryKind::Symlink(b"the link".to_vec())));
        // With nothing behind it, it is nothing.
        assert_eq!(members(&extended(&[("path", "a")])), Ok(Vec::new()));
    }

    #[test]
    fn numbers_that_linux_does_not_have_are_refused() {
        let file = member(b'0', "a", b"");
        let with = |key: &str, value: &str| members(&[extended(&[(key, value)]), file.clone()].concat());
        for key in ["uid", "gid"] {
            assert!(with(key, "4294967294").is_ok(), "{key}");
            for value in ["4294967295", "4294967296", "-1", "-2"] {
                assert!(with(key, value).is_err(), "{key}={value}");
            }
        }
        for value in ["-1", "9223372036854775808"] {
            assert!(with("size", value).is_err(), "{value}");
        }
        // Its size is right, but its content is not there.
        let error = with("size", "9223372036854775807").expect_err("no content");
        assert!(error.contains("the stream ends within its content"), "{error}");
    }

    #[test]
    fn sparse_files_of_unknown_versions_and_of_no_file_are_refused() {
        let version = |major: &str, minor: &str| {
            extended(&[("GNU.sparse.major", major), ("GNU.sparse.minor", minor), ("GNU.sparse.size", "9")])
        };
        let file = member(b'0', "a", b"0\n");
        for (major, minor) in [("1", "1"), ("2", "0"), ("0", "2"), ("1", ""), ("", "0")] {
            let error = members(&[version(major, minor), file.clone()].concat()).expect_err(major);
            assert!(error.contains("unknown version"), "{error}");
        }
        let error = members(&[version("1", "0"), member(b'5', "a", b"")].concat()).expect_err("a directory");
        assert!(error.contains("what is no file"), "{error}");
        let error = members(&[version("1", "0"), member(b'0', "a", b"1\n")].concat()).expect_err("a cut map");
        assert!(error.contains("its sparse map is cut"), "{error}");
    }

    #[test]
    fn pieces_are_skipped_as_far_as_they_were_not_read() {
        let list = [
            ("GNU.sparse.size", "100"),
            ("GNU.sparse.numblocks", "3"),
            ("GNU.sparse.map", "10,3,20,3,30,3"),
            ("GNU.sparse.name", "sparse"),
        ];
        let archive = [extended(&list), member(b'0', "a", b"aaabbbccc"), member(b'0', "b", b"b")].concat();
        for read in 0..=3 {
            let mut reader = Reader::new(&archive[..], Limits::default());
            let entry = reader.next().expect("an entry").expect("a member");
            assert_eq!((&entry.path[..], entry.size_bytes), (&b"sparse"[..], 100));
            let mut buffer = [0; 9];
            assert_eq!(reader.read(&mut buffer).expect("nothing yet"), 0);
            for (offset, letter) in [(10, b'a'), (20, b'b'), (30, b'c')] {
                let segment = Segment { offset_bytes: offset, length_bytes: 3 };
                assert_eq!(reader.next_segment().expect("a piece"), Some(segment));
                assert_eq!(reader.read(&mut buffer[..read]).expect("content"), read);
                assert!(buffer[..read].iter().all(|b| *b == letter));
            }
            assert_eq!(reader.next_segment().expect("no more"), None);
            assert_eq!(reader.read(&mut buffer).expect("no more"), 0);
            assert_eq!(reader.next().expect("an entry").map(|e| e.path), Some(b"b".to_vec()));
        }
    }
}

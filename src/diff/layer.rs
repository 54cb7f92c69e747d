//! How what differs becomes the members of a layer: the same ones in the same order as containerd writes.
//!
//! A changed path is a member; a path that is gone is a whiteout, an empty file `.wh.NAME`. Directories on the way
//! that are no change themselves come before, each once; of the root nothing is said. Of a file with several names the
//! first one that is written carries the content and the others are links to it: those that changed, and also those
//! that did not, since a reader would else have two files of one. Sockets are left out.
//!
//! What is remembered: which directories were written, and files of which the disk says that they have several names.
//!
//! # Source
//! `ChangeWriter` of containerd (`archive/tar.go`); whiteouts have time 0, as it writes them since 1.7.

use super::DiffOptions;
use super::change::{ChangeKind, FileId, Meta};
use super::tree::{Dir, Entry};
use super::walk::{Above, Seen, Sink};
use crate::archive::{self, EntryKind, Writer};
use crate::backend::{Progress, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Timestamp;
use plywood_fuse::layer::marks::WHITEOUT_PREFIX;
use plywood_fuse::types::Kind;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::Arc;

/// How much content is read at a time, in bytes: fewer calls are not felt any more.
const PIECE: usize = 256 * 1024;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of content, without headers.
    pub bytes: u64,
}

/// A name in a directory.
type Name = (Arc<Above>, Box<[u8]>);

/// Writes what it is told into an archive.
pub(super) struct LayerWriter<'a, W: Write> {
    out: &'a mut Writer<W>,
    options: &'a DiffOptions,
    progress: &'a dyn Progress,
    /// Directories that were written.
    dirs: HashSet<Box<[u8]>>,
    /// Files with several names that were written: under which one.
    sources: HashMap<FileId, Vec<u8>>,
    /// Names of files that are as they were, until the file is written.
    names: HashMap<FileId, Vec<Name>>,
    buffer: Vec<u8>,
    pub(super) written: Written,
}

impl<'a, W: Write> LayerWriter<'a, W> {
    pub(super) fn new(out: &'a mut Writer<W>, options: &'a DiffOptions, progress: &'a dyn Progress) -> Self {
        LayerWriter {
            out,
            options,
            progress,
            dirs: HashSet::new(),
            sources: HashMap::new(),
            names: HashMap::new(),
            buffer: vec![0; PIECE],
            written: Written::default(),
        }
    }

    /// The header of a file under a path.
    fn header(&self, path: Vec<u8>, kind: EntryKind, dir: &Dir, entry: &Entry) -> Result<archive::Entry> {
        let Meta { mode, uid, gid, mtime, .. } = entry.meta;
        let latest = self.options.source_date_epoch.unwrap_or(i64::MAX);
        let size_bytes = if kind == EntryKind::File { entry.meta.size_bytes } else { 0 };
        Ok(archive::Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            size_bytes,
            mtime: Timestamp { secs: mtime.secs.min(latest), nanos: 0 },
            atime: None,
            xattrs: dir.xattrs(entry, self.options.xattrs)?,
        })
    }

    fn count(&mut self) -> Result<()> {
        self.written.entries += 1;
        self.progress.copied(self.written.bytes, self.written.entries);
        go_on(self.progress, "diff")
    }

    /// Writes the directories on the way to something in `above` that were not written yet.
    fn write_parents(&mut self, above: &Arc<Above>) -> Result<()> {
        let mut missing = Vec::new();
        let mut path = above.path();
        let mut here = above;
        while let Some((outer, entry)) = here.inside() {
            if self.dirs.contains(&path[..]) {
                break;
            }
            missing.push((path.clone(), outer, entry));
            path.truncate(path.iter().rposition(|&b| b == b'/').unwrap_or(0));
            here = outer;
        }
        for (path, outer, entry) in missing.into_iter().rev() {
            self.write_dir(path, &outer.dir, entry)?;
        }
        Ok(())
    }

    fn write_dir(&mut self, path: Vec<u8>, dir: &Dir, entry: &Entry) -> Result<()> {
        check_name(&path)?;
        let mut header = self.header(path.clone(), EntryKind::Dir, dir, entry)?;
        header.path.push(b'/');
        self.out.entry(&header)?;
        self.dirs.insert(path.into());
        self.count()
    }

    fn write_whiteout(&mut self, path: &[u8]) -> Result<()> {
        let (dir, name) = split(path);
        check_name(path)?;
        let mut marker = Vec::with_capacity(path.len() + WHITEOUT_PREFIX.len());
        marker.extend_from_slice(dir);
        if !dir.is_empty() {
            marker.push(b'/');
        }
        marker.extend_from_slice(WHITEOUT_PREFIX);
        marker.extend_from_slice(name);
        self.out.entry(&archive::Entry {
            path: marker,
            kind: EntryKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            mtime: Timestamp::default(),
            atime: None,
            xattrs: Vec::new(),
        })?;
        self.count()
    }

    /// Writes another name of a file.
    fn write_link(&mut self, path: &[u8], source: &[u8], dir: &Dir, entry: &Entry) -> Result<()> {
        check_name(path)?;
        let header = self.header(path.to_vec(), EntryKind::HardLink(source.to_vec()), dir, entry)?;
        match entry.meta.kind {
            // containerd leaves the numbers in.
            Kind::Char | Kind::Block => {
                self.out.entry_of_device(&header, entry.meta.device.major, entry.meta.device.minor)?;
            }
            _ => self.out.entry(&header)?,
        }
        self.count()
    }

    /// Writes a file or directory with all it is.
    fn write_file(&mut self, path: &[u8], dir: &Dir, entry: &Entry) -> Result<()> {
        let device = entry.meta.device;
        let kind = match entry.meta.kind {
            Kind::Dir => return self.write_dir(path.to_vec(), dir, entry),
            // Not to be had in an archive.
            Kind::Socket => return Ok(()),
            Kind::File => EntryKind::File,
            Kind::Symlink => EntryKind::Symlink(dir.read_link(entry)?),
            Kind::Fifo => EntryKind::Fifo,
            Kind::Char => EntryKind::Char { major: device.major, minor: device.minor },
            Kind::Block => EntryKind::Block { major: device.major, minor: device.minor },
        };
        check_name(path)?;
        let header = self.header(path.to_vec(), kind, dir, entry)?;
        if header.size_bytes == 0 {
            self.out.entry(&header)?;
            return self.count();
        }
        // Before the header: a file that cannot be read leaves no half member.
        let content = dir.open(entry)?;
        self.out.entry(&header)?;
        let mut left = header.size_bytes;
        let mut at = 0;
        loop {
            // One byte more than there should be, to see the end.
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(1).min(PIECE);
            let piece = &mut self.buffer[..wanted];
            let failed = |e| Error::fuse("read", path.escape_ascii().to_string(), e);
            let length = content.read_at(piece, at).map_err(failed)?;
            let Some(rest) = left.checked_sub(length as u64) else { return Err(resized(path, "grew")) };
            self.out.content(&piece[..length])?;
            self.written.bytes += length as u64;
            (left, at) = (rest, at + length as u64);
            if length < wanted {
                break;
            }
            self.progress.copied(self.written.bytes, self.written.entries);
            go_on(self.progress, "diff")?;
        }
        if left > 0 {
            return Err(resized(path, "shrank"));
        }
        self.count()
    }

    /// Writes the first name of a file with several, and then those that were only remembered.
    fn write_source(&mut self, seen: &Seen<'_>, entry: &Entry) -> Result<()> {
        self.write_file(seen.path, &seen.above.dir, entry)?;
        self.sources.insert(entry.meta.id, seen.path.to_vec());
        for (above, name) in self.names.remove(&entry.meta.id).unwrap_or_default() {
            self.write_parents(&above)?;
            let mut path = above.path();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.write_link(&path, seen.path, &seen.above.dir, entry)?;
        }
        Ok(())
    }
}

impl<W: Write> Sink for LayerWriter<'_, W> {
    fn see(&mut self, seen: &Seen<'_>) -> Result<()> {
        let entry = match (seen.is, seen.kind) {
            (None, _) | (_, Some(ChangeKind::Removed)) => {
                self.write_parents(seen.above)?;
                return self.write_whiteout(seen.path);
            }
            (Some(entry), _) => entry,
        };
        if entry.meta.kind == Kind::Socket {
            return Ok(());
        }
        let source = match entry.meta.has_other_names() {
            true => self.sources.get(&entry.meta.id).cloned(),
            false => None,
        };
        match (source, seen.kind) {
            // Written before it was told again.
            (Some(_), None) if seen.again => Ok(()),
            (Some(source), _) => {
                self.write_parents(seen.above)?;
                self.write_link(seen.path, &source, &seen.above.dir, entry)
            }
            (None, None) => {
                let names = self.names.entry(entry.meta.id).or_default();
                names.push((Arc::clone(seen.above), entry.name.clone()));
                Ok(())
            }
            (None, Some(_)) if entry.meta.has_other_names() => {
                self.write_parents(seen.above)?;
                self.write_source(seen, entry)
            }
            (None, Some(_)) => {
                self.write_parents(seen.above)?;
                self.write_file(seen.path, &seen.above.dir, entry)
            }
        }
    }

    fn restart(&mut self) {
        self.names.clear();
    }
}

/// The directory and the last name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Fails for a name that every reader would take for a whiteout.
fn check_name(path: &[u8]) -> Result<()> {
    if !split(path).1.starts_with(WHITEOUT_PREFIX) {
        return Ok(());
    }
    let cause =
        "its name begins with \".wh.\", and in a layer that says that something is gone: rename or remove it";
    Err(Error::new(ErrorKind::InvalidArgument, "diff", path.escape_ascii().to_string(), cause))
}

fn resized(path: &[u8], how: &str) -> Error {
    let cause = format!("it {how} while it was read: try again once nobody writes to it");
    Error::new(ErrorKind::Aborted, "diff", path.escape_ascii().to_string(), cause)
}

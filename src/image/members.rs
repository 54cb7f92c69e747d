//! The members of an image archive, put where they can be read again: blobs into the content store, documents into
//! memory.
//!
//! An archive is read once, from its begin to its end, since it may come from standard input. Its members come in any
//! order, and only the last one may tell which of them are wanted. So everything that is not a document is ingested; what
//! nobody refers to in the end is swept when it is old.

use super::document;
use super::watch::{Watcher, go_on};
use crate::archive::{Entry, EntryKind, Limits, Reader};
use crate::content::{ContentInfo, ContentStore, Expected, put};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// Members that an archive of images may have.
const MAX_MEMBERS: u64 = 100_000;

/// Bytes that the names of all members may have together, with what links say: they are kept in memory.
const MAX_NAME_BYTES: usize = 8 << 20;

/// Links that are followed from one member to another.
const MAX_LINKS: usize = 8;

/// What an archive holds.
#[derive(Default)]
pub struct Members {
    /// `index.json` and `manifest.json` by their names.
    documents: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Blob>,
    links: BTreeMap<String, String>,
    /// What was put into the store, or was there.
    put: Vec<ContentInfo>,
}

struct Blob {
    digest: Digest,
    size_bytes: u64,
}

/// The documents that tell which images there are.
pub const INDEX: &str = "index.json";
/// Docker's.
pub const DOCKER: &str = "manifest.json";

/// What the name of a member says of the archive that it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It is an archive of images.
    Image,
    /// It is a root file system.
    Files,
    /// It may be either.
    Neither,
}

/// What a member says of the archive that it stands at the begin of.
pub fn sign(path: &[u8]) -> Sign {
    let Some(path) = std::str::from_utf8(path).ok().map(clean) else { return Sign::Files };
    let first = path.split('/').next().unwrap_or_default();
    let is_hash = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    // With the prefix as go-containerregistry writes it.
    let stem = first.split('.').next().unwrap_or_default();
    let stem = stem.strip_prefix("sha256:").unwrap_or(stem);
    match first {
        "" => Sign::Neither,
        "blobs" | "oci-layout" | INDEX | DOCKER | "repositories" => Sign::Image,
        _ if is_hash(stem) => Sign::Image,
        _ => Sign::Files,
    }
}

/// True for members that say nothing which is wanted: versions, and what Docker wrote of layers in former times.
fn is_needless(path: &str) -> bool {
    matches!(path, "oci-layout" | "repositories") || path.ends_with("/VERSION") || path.ends_with("/json")
}

/// A path as members name each other: without `./` and slashes at its ends.
fn clean(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.collect::<Vec<_>>().join("/")
}

/// The path that a symlink at `from` means, inside of the archive.
fn follow(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn invalid(subject: &str, cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, "read image", subject, cause)
}

impl Members {
    /// Reads an archive to its end. What was ingested by then is told by [`Members::put`], also after a failure.
    ///
    /// # Errors
    /// `InvalidArgument` if it is damaged, or a member is not what its name says; those of the content store.
    pub fn read(
        &mut self,
        source: impl Read,
        content: &dyn ContentStore,
        watcher: &dyn Watcher,
    ) -> Result<()> {
        let limits = Limits { entries: MAX_MEMBERS, ..Limits::default() };
        let mut reader = Reader::new(source, limits);
        let mut name_bytes = 0;
        while let Some(entry) = reader.next()? {
            go_on(watcher, "import")?;
            name_bytes += entry.path.len();
            if let EntryKind::Symlink(target) | EntryKind::HardLink(target) = &entry.kind {
                name_bytes += target.len();
            }
            if name_bytes > MAX_NAME_BYTES {
                let cause = format!("the names of its members have more than {MAX_NAME_BYTES} bytes");
                return Err(invalid("archive", cause));
            }
            let Ok(path) = std::str::from_utf8(&entry.path).map(clean) else { continue };
            match &entry.kind {
                EntryKind::File if path == INDEX || path == DOCKER => {
                    document::check_size(&path, entry.size_bytes)?;
                    let mut bytes = Vec::new();
                    let mut member = Member::new(&mut reader, &entry, watcher);
                    member.read_to_end(&mut bytes).map_err(|e| Error::io("read image", path.as_str(), e))?;
                    self.documents.insert(path, bytes);
                }
                EntryKind::File if is_needless(&path) => {}
                EntryKind::File => self.ingest(path, &mut reader, &entry, content, watcher)?,
                EntryKind::Symlink(target) => {
                    if let Ok(target) = std::str::from_utf8(target) {
                        self.links.insert(path.clone(), follow(&path, target));
                    }
                }
                EntryKind::HardLink(target) => {
                    if let Ok(target) = std::str::from_utf8(target) {
                        self.links.insert(path, clean(target));
                    }
                }
                _ => {}
            }
        }
        reader.finish()?;
        Ok(())
    }

    fn ingest(
        &mut self,
        path: String,
        reader: &mut Reader<impl Read>,
        entry: &Entry,
        content: &dyn ContentStore,
        watcher: &dyn Watcher,
    ) -> Result<()> {
        let digest = document::blob_of_path(&path);
        // What is in the store was checked when it came: nobody reads it again, and it counts as put there now.
        if let Some(digest) = &digest
            && let Some(put) = self.put.iter().find(|put| put.digest == *digest)
        {
            // Once more in one archive.
            let size_bytes = put.size_bytes;
            self.blobs.insert(path, Blob { digest: digest.clone(), size_bytes });
            return Ok(());
        }
        let expected = Expected { digest, size_bytes: Some(entry.size_bytes) };
        let mut member = Member::new(reader, entry, watcher);
        let info = keep(content, &expected, &mut member)
            .map_err(|e| of_outside(e).during("read image", path.as_str()))?;
        self.blobs.insert(path, Blob { digest: info.digest.clone(), size_bytes: info.size_bytes });
        self.put.push(info);
        Ok(())
    }

    /// A document at the top of the archive.
    pub fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// The blob that a member is: digest and size in bytes.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no such member.
    pub fn blob(&self, path: &str) -> Result<(Digest, u64)> {
        let mut path = clean(path);
        for _ in 0..MAX_LINKS {
            if let Some(blob) = self.blobs.get(&path) {
                return Ok((blob.digest.clone(), blob.size_bytes));
            }
            match self.links.get(&path) {
                Some(next) => path.clone_from(next),
                None => break,
            }
        }
        Err(invalid(&path, "the archive does not hold it"))
    }

    /// The blobs of this archive, as they were put into the store; some may have been there before.
    pub fn put(&self) -> &[ContentInfo] {
        &self.put
    }
}

/// Puts what a reader gives into the content store. Of a failure nothing stays.
///
/// # Errors
/// Those of the reader and of the store.
pub fn keep(content: &dyn ContentStore, expected: &Expected, reader: &mut dyn Read) -> Result<ContentInfo> {
    let reference = crate::layout::by_this_process("import");
    let kept = put(content, &reference, expected, reader);
    if kept.is_err()
        && let Err(error) = content.abort(&reference)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(%error, "a blob that is not whole stays until it is old");
    }
    kept
}

/// What is wrong with an archive is no fault of the store.
pub fn of_outside(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::FailedPrecondition => error.as_kind(ErrorKind::InvalidArgument),
        _ => error,
    }
}

/// The content of a member, which has no holes.
struct Member<'a, R> {
    reader: &'a mut Reader<R>,
    watcher: &'a dyn Watcher,
    size_bytes: u64,
    done_bytes: u64,
    /// Where the next bytes with data are, and how many.
    segment: Option<(u64, u64)>,
}

impl<'a, R: Read> Member<'a, R> {
    fn new(reader: &'a mut Reader<R>, entry: &Entry, watcher: &'a dyn Watcher) -> Self {
        Self { reader, watcher, size_bytes: entry.size_bytes, done_bytes: 0, segment: None }
    }
}

impl<R: Read> Read for Member<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        go_on(self.watcher, "import")?;
        if buffer.is_empty() || self.done_bytes == self.size_bytes {
            return Ok(0);
        }
        if self.segment.is_none() {
            let next = self.reader.next_segment()?;
            // Behind the last piece there is a hole to the end.
            self.segment = Some(next.map_or((self.size_bytes, 0), |s| (s.offset_bytes, s.length_bytes)));
        }
        let (offset, left) = self.segment.unwrap_or((self.size_bytes, 0));
        if offset != self.done_bytes {
            // Nobody writes blobs with holes, but who wants to fill a disk with few bytes.
            let cause = "it has holes, and members of an archive of images have none";
            return Err(invalid("sparse member", cause).into());
        }
        let came = self.reader.read(buffer)?;
        self.done_bytes += came as u64;
        let left = left - came as u64;
        self.segment = (left > 0).then_some((offset + came as u64, left));
        if came == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_members_tell_what_an_archive_is() {
        let hash = "ab".repeat(32);
        for (path, expected) in [
            ("./", Sign::Neither),
            (".", Sign::Neither),
            ("oci-layout", Sign::Image),
            ("./blobs/sha256/", Sign::Image),
            ("manifest.json", Sign::Image),
            (&format!("{hash}/"), Sign::Image),
            (&format!("{hash}.json"), Sign::Image),
            (&format!("{hash}/layer.tar"), Sign::Image),
            (&format!("sha256:{hash}"), Sign::Image),
            (&format!("{hash}.tar.gz"), Sign::Image),
            ("bin/", Sign::Files),
            ("./etc/passwd", Sign::Files),
            ("/etc", Sign::Files),
            (&hash[1..], Sign::Files),
        ] {
            assert_eq!(sign(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(sign(b"\xff"), Sign::Files);
    }

    #[test]
    fn members_that_are_links_stay_inside_of_the_archive() {
        assert_eq!(follow("a/layer.tar", "../b/layer.tar"), "b/layer.tar");
        assert_eq!(follow("a/layer.tar", "../../../../etc/passwd"), "etc/passwd");
        assert_eq!(follow("a", "./b//c"), "b/c");
        let mut members = Members::default();
        members.links.insert("a".to_owned(), "b".to_owned());
        members.links.insert("b".to_owned(), "a".to_owned());
        assert!(members.blob("a").is_err());
    }
}

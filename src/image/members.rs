//! The members of an image archive, put where they can be read again: blobs into the content store, documents into
//! memory.
//!
//! An archive is read once, from its begin to its end, since it may come from standard input. Its members come in any
//! order, and only the last one may tell which of them are wanted. So everything that is not a document is ingested; what
//! turned out not to be wanted is deleted by whoever chooses ([`Members::unwanted`]).

use super::document::{self, MAX_BYTES};
use super::watch::{Watcher, go_on};
use crate::archive::{Entry, EntryKind, Limits, Reader};
use crate::content::{ContentStore, Kept};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use std::collections::BTreeMap;
use std::io::Read;

/// Members that an archive of images may have.
const MAX_MEMBERS: u64 = 100_000;

/// Links that are followed from one member to another.
const MAX_LINKS: usize = 8;

/// What an archive holds.
#[derive(Default)]
pub struct Members {
    /// `index.json` and `manifest.json` by their names.
    documents: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Blob>,
    links: BTreeMap<String, String>,
}

struct Blob {
    digest: Digest,
    size_bytes: u64,
    kept: Kept,
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
    let stem = first.split('.').next().unwrap_or_default();
    match first {
        "" => Sign::Neither,
        "blobs" | "oci-layout" | INDEX | DOCKER | "repositories" => Sign::Image,
        _ if is_hash(stem) => Sign::Image,
        _ => Sign::Files,
    }
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
    /// Reads an archive to its end.
    ///
    /// # Errors
    /// `InvalidArgument` if it is damaged, or a member is not what its name says; those of the content store.
    pub fn read(source: impl Read, content: &dyn ContentStore, watcher: &dyn Watcher) -> Result<Members> {
        let limits = Limits { entries: MAX_MEMBERS, ..Limits::default() };
        let mut reader = Reader::new(source, limits);
        let mut members = Members::default();
        while let Some(entry) = reader.next()? {
            go_on(watcher, "import")?;
            let Ok(path) = std::str::from_utf8(&entry.path).map(clean) else { continue };
            match &entry.kind {
                EntryKind::File if path == INDEX || path == DOCKER => {
                    document::check_size(&path, entry.size_bytes)?;
                    let bytes = whole(&mut reader, &entry)?;
                    members.documents.insert(path, bytes);
                }
                EntryKind::File => members.ingest(path, &mut reader, &entry, content, watcher)?,
                EntryKind::Symlink(target) => {
                    if let Ok(target) = std::str::from_utf8(target) {
                        members.links.insert(path.clone(), follow(&path, target));
                    }
                }
                EntryKind::HardLink(target) => {
                    if let Ok(target) = std::str::from_utf8(target) {
                        members.links.insert(path, clean(target));
                    }
                }
                _ => {}
            }
        }
        reader.finish()?;
        Ok(members)
    }

    fn ingest(
        &mut self,
        path: String,
        reader: &mut Reader<impl Read>,
        entry: &Entry,
        content: &dyn ContentStore,
        watcher: &dyn Watcher,
    ) -> Result<()> {
        let expected = document::blob_of_path(&path);
        if let Some(digest) = &expected
            && content.info(digest).is_ok_and(|info| info.size_bytes == entry.size_bytes)
        {
            // Nobody reads it again to find that out: what is in the store was checked when it came.
            let blob = Blob { digest: digest.clone(), size_bytes: entry.size_bytes, kept: Kept::Before };
            self.blobs.insert(path, blob);
            return Ok(());
        }
        let mut ingest = content.ingest(&crate::layout::by_this_process("import"))?;
        each_piece(reader, entry, &mut |piece| {
            go_on(watcher, "import")?;
            ingest.write(piece)
        })?;
        let (info, kept) = ingest.commit(Some(entry.size_bytes), expected.as_ref()).map_err(|e| e.during("read image", path.as_str()))?;
        self.blobs.insert(path, Blob { digest: info.digest, size_bytes: info.size_bytes, kept });
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

    /// What came with this archive and is none of `wanted`.
    pub fn unwanted<'a>(&'a self, wanted: &'a [Digest]) -> impl Iterator<Item = &'a Digest> {
        let new = self.blobs.values().filter(|blob| blob.kept == Kept::Now);
        new.map(|blob| &blob.digest).filter(|digest| !wanted.contains(digest))
    }
}

/// Hands the content of a member on, piece by piece, with its holes.
fn each_piece(
    reader: &mut Reader<impl Read>,
    entry: &Entry,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    let mut done = 0;
    let mut holes = |until: u64, done: &mut u64, each: &mut dyn FnMut(&[u8]) -> Result<()>| -> Result<()> {
        let zeros = [0; 4096];
        while *done < until {
            let length = usize::try_from(until - *done).map_or(zeros.len(), |l| l.min(zeros.len()));
            each(&zeros[..length])?;
            *done += length as u64;
        }
        Ok(())
    };
    while let Some(segment) = reader.next_segment()? {
        holes(segment.offset_bytes, &mut done, each)?;
        loop {
            let came = reader.read(&mut buffer)?;
            if came == 0 {
                break;
            }
            each(&buffer[..came])?;
            done += came as u64;
        }
    }
    holes(entry.size_bytes, &mut done, each)
}

/// The content of a small member.
fn whole(reader: &mut Reader<impl Read>, entry: &Entry) -> Result<Vec<u8>> {
    debug_assert!(entry.size_bytes <= MAX_BYTES, "checked by the caller");
    let mut bytes = Vec::new();
    each_piece(reader, entry, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
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

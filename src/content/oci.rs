//! A directory that is an OCI image layout, as a content store: any tool that reads such layouts reads it.
//!
//! ```text
//! content/                0700
//!   oci-layout            marks it; written last, so that what has it is whole
//!   index.json            manifests that have a name
//!   blobs/sha256/HEX      0600, whole: they come by rename
//!   ingest/HEX/           what is being written, by the hash of its reference name; flock: held by who writes
//!     ref                 the reference name
//!     data                what is there of it
//!   lock                  flock: held for a moment, shared while a blob is put there, exclusive while unused ones or
//!                         index.json are changed
//! ```
//!
//! What a crash leaves: an ingest, to go on with or for [`ContentStore::sweep_ingests`]; `*.new`, which the next writer
//! overwrites. Blobs are synced before they get their name, so after a power cut, too, a blob is whole or not there.

use super::ingest::{self, ReferenceDir};
use super::place::{Access, Place, Root, blob_name, file_at, names, of_errno, size_and_time, stat_at};
use super::{Begun, Content, ContentInfo, ContentStore, Expected, Freed, IngestStatus, Swept, sweep};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crate::types::Timestamp;
use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A content store in a directory.
#[derive(Debug, Clone)]
pub struct OciLayout {
    pub(super) place: Place,
}

impl OciLayout {
    /// The layout in this directory, whose parent has to be there. It belongs to this user alone. Nothing is looked at
    /// or made before it is needed.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { place: Place { path: path.into(), access: Access::Own } }
    }

    /// A layout that somebody else made, to be read only.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is no layout of a version that is known.
    pub fn open_foreign(path: impl Into<PathBuf>) -> Result<Self> {
        const OPERATION: &str = "open image layout";
        let place = Place { path: path.into(), access: Access::Foreign };
        let subject = place.path.display().to_string();
        let no_layout = |cause: &str| Error::new(ErrorKind::InvalidArgument, OPERATION, &subject, cause);
        let marker = match place.root(OPERATION)? {
            Some(root) => root.text(OPERATION, super::place::MARKER)?,
            None => None,
        };
        let marker =
            marker.ok_or_else(|| no_layout("it is no OCI image layout: it has no file oci-layout"))?;
        let marker: Option<serde_json::Value> = serde_json::from_slice(&marker).ok();
        let version = marker.as_ref().and_then(|m| m["imageLayoutVersion"].as_str());
        match version {
            Some(version) if version.starts_with("1.") => Ok(Self { place }),
            _ => Err(no_layout("its file oci-layout does not say version 1")),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    fn blobs(&self, operation: &'static str) -> Result<Option<OwnedFd>> {
        self.place.root(operation)?.map_or(Ok(None), |root| root.blobs(operation))
    }

    fn shown(&self, name: &str) -> PathBuf {
        self.place.path.join("blobs").join(super::place::SHA256).join(name)
    }
}

fn not_found(operation: &'static str, digest: &Digest) -> Error {
    Error::new(ErrorKind::NotFound, operation, digest.as_str(), "there is no such blob")
}

fn described(digest: &Digest, stat: &rustix::fs::Stat) -> ContentInfo {
    let (size_bytes, updated) = size_and_time(stat);
    ContentInfo { digest: digest.clone(), size_bytes, updated }
}

impl ContentStore for OciLayout {
    fn info(&self, digest: &Digest) -> Result<ContentInfo> {
        const OPERATION: &str = "look at blob";
        let name = blob_name(OPERATION, digest)?;
        let blobs = self.blobs(OPERATION)?.ok_or_else(|| not_found(OPERATION, digest))?;
        let stat = stat_at(blobs.as_fd(), name);
        let stat = stat.map_err(|errno| of_errno(OPERATION, digest.as_str(), errno))?;
        stat.map(|stat| described(digest, &stat)).ok_or_else(|| not_found(OPERATION, digest))
    }

    fn open(&self, digest: &Digest) -> Result<Box<dyn Content>> {
        const OPERATION: &str = "open blob";
        let name = blob_name(OPERATION, digest)?;
        let blobs = self.blobs(OPERATION)?.ok_or_else(|| not_found(OPERATION, digest))?;
        let opened = file_at(OPERATION, blobs.as_fd(), name, &self.shown(name))?;
        let (file, stat) = opened.ok_or_else(|| not_found(OPERATION, digest))?;
        Ok(Box::new(Blob { file, size_bytes: size_and_time(&stat).0 }))
    }

    fn delete(&self, digest: &Digest) -> Result<Freed> {
        const OPERATION: &str = "delete blob";
        let name = blob_name(OPERATION, digest)?;
        if self.place.access == Access::Foreign {
            self.place.create(OPERATION)?;
        }
        let blobs = self.blobs(OPERATION)?.ok_or_else(|| not_found(OPERATION, digest))?;
        unlink(&blobs, digest, name)?.ok_or_else(|| not_found(OPERATION, digest))
    }

    fn take_back(&self, put: &ContentInfo) -> Result<Option<Freed>> {
        const OPERATION: &str = "take back blob";
        let Some(root) = self.place.root(OPERATION)? else { return Ok(None) };
        // Nobody asks for it between the look and the deletion.
        let _lock = root.lock(OPERATION, FlockOperation::LockExclusive)?;
        match self.info(&put.digest) {
            Ok(info) if info.updated == put.updated => self.delete(&put.digest).map(Some),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self, each: &mut dyn FnMut(ContentInfo) -> Result<()>) -> Result<()> {
        const OPERATION: &str = "list blobs";
        let Some(blobs) = self.blobs(OPERATION)? else { return Ok(()) };
        for name in names(blobs.as_fd()).map_err(self.place.failed(OPERATION, "blobs"))? {
            // Whatever else somebody has put there is no blob.
            let Ok(digest) = Digest::parse(&format!("{}:{name}", super::place::SHA256)) else { continue };
            let stat = stat_at(blobs.as_fd(), &name);
            // Deleted since it was listed.
            let Some(stat) = stat.map_err(self.place.failed(OPERATION, &name))? else { continue };
            each(described(&digest, &stat))?;
        }
        Ok(())
    }

    fn ingest(&self, reference: &str, expected: &Expected) -> Result<Begun> {
        const OPERATION: &str = "begin blob";
        ingest::check_reference(OPERATION, reference)?;
        let root = self.place.create(OPERATION)?;
        if let Some(digest) = &expected.digest {
            blob_name(OPERATION, digest)?;
            if let Some(info) = self.asked_for(OPERATION, &root, digest, expected.size_bytes)? {
                return Ok(Begun::There(info));
            }
        }
        Ok(Begun::Ingest(ingest::begin(self, &root, reference, expected)?))
    }

    fn ingests(&self) -> Result<Vec<IngestStatus>> {
        const OPERATION: &str = "list ingests";
        let mut all = Vec::new();
        for dir in sweep::all(&self.place, OPERATION)? {
            let is_busy = dir.is_busy(OPERATION)?;
            all.extend(dir.status(OPERATION, is_busy)?);
        }
        Ok(all)
    }

    fn abort(&self, reference: &str) -> Result<()> {
        const OPERATION: &str = "abort blob";
        ingest::check_reference(OPERATION, reference)?;
        let dir = match self.place.root(OPERATION)? {
            Some(root) => ReferenceDir::open(OPERATION, &root, &ingest::dir_name(reference))?,
            None => None,
        };
        let cause = "nothing was left under this reference name";
        let dir = dir.ok_or_else(|| Error::new(ErrorKind::NotFound, OPERATION, reference, cause))?;
        if !dir.try_lock(OPERATION)? {
            return Err(ingest::busy(OPERATION, reference));
        }
        dir.remove(OPERATION)
    }

    fn unused_since(&self, before: Timestamp) -> Result<Vec<Digest>> {
        sweep::unused_since(self, before)
    }

    fn delete_unused(&self, digest: &Digest, before: Timestamp) -> Result<Option<(ContentInfo, Freed)>> {
        const OPERATION: &str = "delete unused blob";
        let Some(root) = self.place.root(OPERATION)? else { return Ok(None) };
        // Nobody puts it there again between the look and the deletion.
        let _lock = root.lock(OPERATION, FlockOperation::LockExclusive)?;
        match self.info(digest) {
            Ok(info) if info.updated < before => Ok(Some((info, self.delete(digest)?))),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn sweep_ingests(&self, before: Timestamp) -> Result<Swept> {
        sweep::sweep_ingests(&self.place, before)
    }
}

impl OciLayout {
    /// The blob, if it is there in this size; then it counts as put there now. One of another size is damaged, and will
    /// be replaced.
    ///
    /// Its time on the disk is never again that of the one who put it there, nor the one that is told here: so whoever
    /// wants to take back what it put there sees that somebody else asked for it.
    pub(super) fn asked_for(
        &self,
        operation: &'static str,
        root: &Root,
        digest: &Digest,
        size_bytes: Option<u64>,
    ) -> Result<Option<ContentInfo>> {
        let _lock = root.lock(operation, FlockOperation::LockShared)?;
        let name = blob_name(operation, digest)?;
        let Some(blobs) = root.blobs(operation)? else { return Ok(None) };
        let failed = |errno| of_errno(operation, digest.as_str(), errno);
        let Some(stat) = stat_at(blobs.as_fd(), name).map_err(failed)? else { return Ok(None) };
        if size_bytes.is_some_and(|size| size != size_and_time(&stat).0) {
            return Ok(None);
        }
        // Finer than the clock by which the kernel sets times.
        let now = Timestamp::now();
        let now = rustix::fs::Timespec { tv_sec: now.secs, tv_nsec: now.nanos.into() };
        let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(&blobs, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(Some(ContentInfo { updated: Timestamp::now(), ..described(digest, &stat) })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(errno)),
        }
    }
}

/// Takes the name from a blob; its space is freed with the answer. None if there is no such blob.
fn unlink(blobs: &OwnedFd, digest: &Digest, name: &str) -> Result<Option<Freed>> {
    const OPERATION: &str = "delete blob";
    // The space of a large file is freed when the last descriptor of it goes, not with its name.
    let open = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let kept = rustix::fs::openat(blobs, name, open, rustix::fs::Mode::empty()).ok();
    match rustix::fs::unlinkat(blobs, name, AtFlags::empty()) {
        Ok(()) => Ok(Some(Freed::with(kept.map(File::from)))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(of_errno(OPERATION, digest.as_str(), errno)),
    }
}

/// An open blob.
struct Blob {
    file: File,
    size_bytes: u64,
}

impl Read for Blob {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.file.read(out)
    }
}

impl Seek for Blob {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Content for Blob {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, out: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.file.read_at(out, offset_bytes)
    }
}

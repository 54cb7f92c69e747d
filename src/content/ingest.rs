//! A blob that is being written, in a directory of its own that whoever writes it has locked.
//!
//! Commit: verify, sync, rename into the blobs, sync their directory, and only then forget the ingest. Killed between
//! any two of them, the blob is there whole or the ingest is there to go on with; a directory without data is nothing.

use super::oci::OciLayout;
use super::place::{FILE_MODE, Place, Root, blob_name, file_at, of_errno, size_and_time, stat_at, unlock};
use super::{ContentInfo, Expected, Ingest, IngestStatus};
use crate::compress::Hasher;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crate::types::quoted;
use rustix::fs::{AtFlags, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

const DATA: &str = "data";
const REFERENCE: &str = "ref";

/// Bytes that a reference name may have.
const MAX_REFERENCE_BYTES: usize = 4096;

/// From this size on a blob is hashed by a thread of its own.
const LARGE_BYTES: u64 = 1 << 20;

/// Times that a directory is tried because whoever had it threw it away meanwhile, or only looks at it, and how long to
/// wait each time.
const OPEN_TRIES: u32 = 20;
const OPEN_WAIT: Duration = Duration::from_millis(5);

/// The directory of an ingest, open.
pub(super) struct ReferenceDir {
    /// That of all ingests.
    parent: OwnedFd,
    fd: OwnedFd,
    name: String,
}

/// The name of the directory for a reference name.
pub(super) fn dir_name(reference: &str) -> String {
    let mut hasher = Hasher::new();
    hasher.update(reference.as_bytes());
    let digest = hasher.finish().map(|(digest, _)| digest);
    // Hashing here and not in a thread does not fail.
    digest.ok().as_ref().and_then(Digest::sha256_hex).unwrap_or_default().to_owned()
}

pub(super) fn check_reference(operation: &'static str, reference: &str) -> Result<()> {
    let invalid =
        |cause: &str| Err(Error::new(ErrorKind::InvalidArgument, operation, quoted(reference), cause));
    match reference.len() {
        0 => invalid("a reference name must not be empty"),
        1..=MAX_REFERENCE_BYTES => Ok(()),
        _ => invalid("a reference name has at most 4096 bytes"),
    }
}

pub(super) fn busy(operation: &'static str, reference: &str) -> Error {
    Error::new(ErrorKind::Busy, operation, quoted(reference), "somebody else is writing it: try again later")
}

impl ReferenceDir {
    pub(super) fn open(operation: &'static str, root: &Root, name: &str) -> Result<Option<Self>> {
        let Some(parent) = root.ingests(operation)? else { return Ok(None) };
        let fd = root.dir(operation, parent.as_fd(), name)?;
        Ok(fd.map(|fd| Self { parent, fd, name: name.to_owned() }))
    }

    /// Makes it if there is none, and locks it.
    fn create(operation: &'static str, root: &Root, reference: &str) -> Result<Self> {
        let name = dir_name(reference);
        for _ in 0..OPEN_TRIES {
            let parent = root.make_dir(operation, root.fd.as_fd(), "ingest")?;
            let fd = match root.make_dir(operation, parent.as_fd(), &name) {
                Ok(fd) => fd,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let dir = Self { parent, fd, name: name.clone() };
            if !dir.try_lock(operation)? {
                std::thread::sleep(OPEN_WAIT);
                continue;
            }
            // Whoever had the lock before may have thrown away just this directory.
            if dir.is_there(operation)? {
                return Ok(dir);
            }
        }
        Err(busy(operation, reference))
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> Error + use<> {
        let subject = format!("ingest {}", self.name);
        move |errno| of_errno(operation, &subject, errno)
    }

    /// True if it is locked for as long as it is open; false if somebody else has it locked.
    pub(super) fn try_lock(&self, operation: &'static str) -> Result<bool> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(self.failed(operation)(errno)),
        }
    }

    /// True if somebody writes it.
    pub(super) fn is_busy(&self, operation: &'static str) -> Result<bool> {
        // Shared: those who only look do not take each other for writers.
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                unlock(self.fd.as_fd());
                Ok(false)
            }
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(self.failed(operation)(errno)),
        }
    }

    fn is_there(&self, operation: &'static str) -> Result<bool> {
        let open = rustix::fs::fstat(&self.fd).map_err(self.failed(operation))?;
        match rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed(operation)(errno)),
        }
    }

    /// What is known of it; none if it has been thrown away.
    pub(super) fn status(&self, operation: &'static str, is_busy: bool) -> Result<Option<IngestStatus>> {
        let failed = self.failed(operation);
        let (offset_bytes, updated) = match stat_at(self.fd.as_fd(), DATA).map_err(&failed)? {
            Some(stat) => size_and_time(&stat),
            None if !self.is_there(operation)? => return Ok(None),
            None => (0, size_and_time(&rustix::fs::fstat(&self.fd).map_err(&failed)?).1),
        };
        let reference = self.reference(operation)?.unwrap_or_else(|| self.name.clone());
        Ok(Some(IngestStatus { reference, offset_bytes, updated, is_busy }))
    }

    /// The reference name, if it can be read and leads here.
    fn reference(&self, operation: &'static str) -> Result<Option<String>> {
        let shown = PathBuf::from(REFERENCE);
        let Some((file, _)) = file_at(operation, self.fd.as_fd(), REFERENCE, &shown)? else {
            return Ok(None);
        };
        let mut text = String::new();
        let read = file.take(MAX_REFERENCE_BYTES as u64).read_to_string(&mut text);
        Ok(read.ok().map(|_| text).filter(|text| dir_name(text) == self.name))
    }

    /// Throws it away. To be called by who has it locked.
    pub(super) fn remove(self, operation: &'static str) -> Result<()> {
        for name in super::place::names(self.fd.as_fd()).map_err(self.failed(operation))? {
            match rustix::fs::unlinkat(&self.fd, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.failed(operation)(errno)),
            }
        }
        match rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed(operation)(errno)),
        }
    }
}

impl Drop for ReferenceDir {
    fn drop(&mut self) {
        unlock(self.fd.as_fd());
    }
}

/// A blob that is being written.
struct Writing {
    layout: OciLayout,
    dir: ReferenceDir,
    data: File,
    hasher: Hasher,
    expected: Expected,
    reference: String,
}

pub(super) fn begin(
    layout: &OciLayout,
    root: &Root,
    reference: &str,
    expected: &Expected,
) -> Result<Box<dyn Ingest>> {
    const OPERATION: &str = "begin blob";
    let dir = ReferenceDir::create(OPERATION, root, reference)?;
    crate::fail::point("i.after_mkdir")?;
    let failed = dir.failed(OPERATION);
    if dir.reference(OPERATION)?.is_none() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir.fd, REFERENCE, flags, FILE_MODE).map_err(&failed)?;
        let written = File::from(file).write_all(reference.as_bytes());
        written.map_err(|e| Error::io(OPERATION, quoted(reference), e))?;
    }
    crate::fail::point("i.after_reference")?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let data = rustix::fs::openat(&dir.fd, DATA, flags, FILE_MODE).map_err(&failed)?;
    crate::fail::point("i.after_create")?;
    let mut writing = Writing {
        layout: layout.clone(),
        dir,
        data: data.into(),
        hasher: Hasher::new(),
        expected: expected.clone(),
        reference: reference.to_owned(),
    };
    if expected.digest.is_some() {
        writing.go_on()?;
    } else {
        writing.restart()?;
    }
    Ok(Box::new(writing))
}

impl Writing {
    fn io(&self, operation: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let subject = quoted(&self.reference);
        move |e| Error::io(operation, subject.clone(), e)
    }

    fn new_hasher(&self) -> Hasher {
        match self.expected.size_bytes {
            Some(..LARGE_BYTES) => Hasher::new(),
            _ => Hasher::in_thread(),
        }
    }

    /// Hashes what a former attempt left, and stands behind it.
    fn go_on(&mut self) -> Result<()> {
        const OPERATION: &str = "go on with blob";
        let length = self.data.metadata().map_err(self.io(OPERATION))?.len();
        if self.expected.size_bytes.is_some_and(|size| length > size) {
            return self.restart();
        }
        self.hasher = self.new_hasher();
        let mut buffer = vec![0; super::COPY_BYTES];
        loop {
            match self.data.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => self.hasher.update(&buffer[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(OPERATION)(e)),
            }
        }
    }

    /// Throws away what can never become the blob that was expected.
    fn refuse(self, cause: &str) -> Error {
        const OPERATION: &str = "commit blob";
        let error = Error::new(ErrorKind::Corrupt, OPERATION, quoted(&self.reference), cause);
        if let Err(failed) = self.dir.remove(OPERATION) {
            tracing::warn!(error = %failed, "what is left of a blob stays until the next cleanup");
        }
        error
    }
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.data.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        crate::fail::point("i.mid_write")?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ingest for Writing {
    fn offset_bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    fn restart(&mut self) -> Result<()> {
        const OPERATION: &str = "begin blob";
        self.data.set_len(0).map_err(self.io(OPERATION))?;
        io::Seek::rewind(&mut self.data).map_err(self.io(OPERATION))?;
        self.hasher = self.new_hasher();
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<ContentInfo> {
        const OPERATION: &str = "commit blob";
        let (digest, size_bytes) = std::mem::take(&mut self.hasher).finish()?;
        match self.expected.size_bytes {
            Some(expected) if size_bytes < expected => {
                let cause = format!("{size_bytes} bytes are there of {expected}");
                let kind = ErrorKind::FailedPrecondition;
                return Err(Error::new(kind, OPERATION, quoted(&self.reference), cause));
            }
            Some(expected) if size_bytes > expected => {
                return Err(self.refuse(&format!("it has {size_bytes} bytes, and {expected} were expected")));
            }
            _ => {}
        }
        if let Some(expected) = self.expected.digest.clone().filter(|expected| *expected != digest) {
            return Err(self.refuse(&format!("it is {digest}, and {expected} was expected: fetch it again")));
        }
        let name = blob_name(OPERATION, &digest)?;
        let root = self.layout.place.create(OPERATION)?;
        if let Some(info) = self.layout.asked_for(OPERATION, &root, &digest, Some(size_bytes))? {
            self.dir.remove(OPERATION)?;
            return Ok(info);
        }
        let io = self.io(OPERATION);
        self.data.sync_all().map_err(&io)?;
        let stat = rustix::fs::fstat(&self.data).map_err(self.dir.failed(OPERATION))?;
        let (_, updated) = size_and_time(&stat);
        crate::fail::point("i.after_sync")?;
        let failed = self.dir.failed(OPERATION);
        let blobs = root.blobs(OPERATION)?.ok_or_else(|| failed(Errno::NOENT))?;
        {
            let _lock = root.lock(OPERATION, FlockOperation::LockShared)?;
            // What somebody else has put there in this moment stays: it is theirs to take back.
            match rustix::fs::renameat_with(&self.dir.fd, DATA, &blobs, name, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    if let Some(info) = self.layout.asked_for(OPERATION, &root, &digest, Some(size_bytes))? {
                        self.dir.remove(OPERATION)?;
                        return Ok(info);
                    }
                    rustix::fs::renameat(&self.dir.fd, DATA, &blobs, name).map_err(&failed)?;
                }
                // A disk that cannot tell.
                Err(Errno::INVAL) => {
                    rustix::fs::renameat(&self.dir.fd, DATA, &blobs, name).map_err(&failed)?
                }
                Err(errno) => return Err(failed(errno)),
            }
        }
        crate::fail::point("i.after_rename")?;
        rustix::fs::fsync(&blobs).map_err(&failed)?;
        crate::fail::point("i.before_forget")?;
        // The blob is there, whatever becomes of the rest.
        if let Err(failed) = self.dir.remove(OPERATION) {
            tracing::warn!(error = %failed, "what is left of a blob stays until the next cleanup");
        }
        Ok(ContentInfo { digest, size_bytes, updated })
    }

    fn abort(self: Box<Self>) -> Result<()> {
        self.dir.remove("abort blob")
    }
}

/// Every directory of an ingest.
pub(super) fn all(place: &Place, operation: &'static str) -> Result<Vec<ReferenceDir>> {
    let Some(root) = place.root(operation)? else { return Ok(Vec::new()) };
    let Some(ingests) = root.ingests(operation)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for name in super::place::names(ingests.as_fd()).map_err(place.failed(operation, "ingest"))? {
        let is_ours = name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_ours {
            all.extend(ReferenceDir::open(operation, &root, &name)?);
        }
    }
    Ok(all)
}

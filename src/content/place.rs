//! The directories of a layout, as open descriptors: nothing below is reached through a symlink, and no name that came
//! from outside becomes part of a path.

use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crate::types::Timestamp;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The directory of blobs whose digest is a SHA-256.
pub(super) const SHA256: &str = "sha256";

/// The file that marks a layout.
pub(super) const MARKER: &str = "oci-layout";

/// What the marker says.
const VERSION: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// The list of manifests.
pub(super) const INDEX: &str = "index.json";

/// Bytes that a file of ours with JSON in it may have: as many as containerd takes of a manifest, and more.
pub(super) const MAX_JSON_BYTES: u64 = 8 << 20;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Reading: a pipe or a device in its place must not make anybody wait.
const TO_READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Directories are for their owner alone.
const DIR_MODE: Mode = Mode::RWXU;

/// Files are for their owner alone.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Whose a layout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Ours: made when it is first written to, and nobody else's.
    Own,
    /// Somebody's: only read.
    Foreign,
}

/// A layout by its path.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) access: Access,
}

/// The root directory of a layout, open.
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// An error of ours about something below it.
    pub(super) fn failed(&self, operation: &'static str, name: &str) -> impl Fn(Errno) -> Error + use<> {
        let subject = self.path.join(name).display().to_string();
        move |errno| of_errno(operation, &subject, errno)
    }

    /// The root directory, if there is one.
    pub(super) fn root(&self, operation: &'static str) -> Result<Option<Root>> {
        let flags = match self.access {
            Access::Own => DIRECTORY,
            // Whoever typed the path may have meant a symlink.
            Access::Foreign => DIRECTORY.difference(OFlags::NOFOLLOW),
        };
        match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(fd) => {
                let root = Root { fd, path: self.path.clone() };
                if self.access == Access::Own {
                    root.check_owner(operation)?;
                }
                Ok(Some(root))
            }
            Err(Errno::NOENT) if self.access == Access::Own => Ok(None),
            Err(errno) => Err(self.failed(operation, "")(errno)),
        }
    }

    /// The root directory, with everything in it that a layout has.
    pub(super) fn create(&self, operation: &'static str) -> Result<Root> {
        if self.access == Access::Foreign {
            let cause = "this layout is only read";
            let subject = self.path.display().to_string();
            return Err(Error::new(ErrorKind::FailedPrecondition, operation, subject, cause));
        }
        match rustix::fs::mkdir(&self.path, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed(operation, "")(errno)),
        }
        let Some(root) = self.root(operation)? else {
            return Err(self.failed(operation, "")(Errno::NOENT));
        };
        if root.file(operation, MARKER)?.is_none() {
            // The marker comes last: what has one is whole.
            let blobs = root.make_dir(operation, root.fd.as_fd(), "blobs")?;
            root.make_dir(operation, blobs.as_fd(), SHA256)?;
            rustix::fs::fsync(&blobs).map_err(self.failed(operation, "blobs"))?;
            root.make_dir(operation, root.fd.as_fd(), "ingest")?;
            let _lock = root.lock(operation, FlockOperation::LockExclusive)?;
            if root.file(operation, INDEX)?.is_none() {
                root.replace(operation, INDEX, super::index::EMPTY.as_bytes())?;
            }
            root.replace(operation, MARKER, VERSION.as_bytes())?;
            // Its own name, too, has to outlive a power cut that its first blob outlives.
            if let Some(parent) = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                let failed = |e| Error::io(operation, parent.display().to_string(), e);
                File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
            }
        }
        Ok(root)
    }
}

impl Root {
    fn failed(&self, operation: &'static str, name: &str) -> impl Fn(Errno) -> Error + use<> {
        let subject = self.path.join(name).display().to_string();
        move |errno| of_errno(operation, &subject, errno)
    }

    /// Whoever else owns it could lead us anywhere.
    fn check_owner(&self, operation: &'static str) -> Result<()> {
        let stat = rustix::fs::fstat(&self.fd).map_err(self.failed(operation, ""))?;
        let me = rustix::process::geteuid().as_raw();
        if stat.st_uid != me {
            let cause =
                format!("it belongs to user {}, and this is user {me}: run it as that user", stat.st_uid);
            let subject = self.path.display().to_string();
            return Err(Error::new(ErrorKind::PermissionDenied, operation, subject, cause));
        }
        if stat.st_mode & 0o7777 != 0o700 {
            rustix::fs::fchmod(&self.fd, DIR_MODE).map_err(self.failed(operation, ""))?;
        }
        Ok(())
    }

    /// The directory of blobs, if there is one.
    pub(super) fn blobs(&self, operation: &'static str) -> Result<Option<OwnedFd>> {
        let Some(blobs) = self.dir(operation, self.fd.as_fd(), "blobs")? else { return Ok(None) };
        self.dir(operation, blobs.as_fd(), SHA256)
    }

    /// The directory of what is being written, if there is one.
    pub(super) fn ingests(&self, operation: &'static str) -> Result<Option<OwnedFd>> {
        self.dir(operation, self.fd.as_fd(), "ingest")
    }

    pub(super) fn dir(
        &self,
        operation: &'static str,
        at: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Option<OwnedFd>> {
        match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(self.no_directory(operation, name)),
            Err(errno) => Err(self.failed(operation, name)(errno)),
        }
    }

    pub(super) fn make_dir(
        &self,
        operation: &'static str,
        at: BorrowedFd<'_>,
        name: &str,
    ) -> Result<OwnedFd> {
        match rustix::fs::mkdirat(at, name, DIR_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed(operation, name)(errno)),
        }
        // Removed again at once: for whoever calls to try again.
        self.dir(operation, at, name)?.ok_or_else(|| self.failed(operation, name)(Errno::NOENT))
    }

    fn no_directory(&self, operation: &'static str, name: &str) -> Error {
        let cause = "it is no directory: something else took the place of a part of the store";
        let subject = self.path.join(name).display().to_string();
        Error::new(ErrorKind::Corrupt, operation, subject, cause)
    }

    /// A regular file in the root directory, open for reading.
    pub(super) fn file(&self, operation: &'static str, name: &str) -> Result<Option<(File, Stat)>> {
        file_at(operation, self.fd.as_fd(), name, &self.path.join(name))
    }

    /// The content of a small file in the root directory.
    pub(super) fn text(&self, operation: &'static str, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((file, _)) = self.file(operation, name)? else { return Ok(None) };
        let subject = || self.path.join(name).display().to_string();
        let mut text = Vec::new();
        file.take(MAX_JSON_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|e| Error::io(operation, subject(), e))?;
        if text.len() as u64 > MAX_JSON_BYTES {
            let cause = format!("it has more than {MAX_JSON_BYTES} bytes");
            return Err(Error::new(ErrorKind::Corrupt, operation, subject(), cause));
        }
        Ok(Some(text))
    }

    /// Puts a file of this content into the root directory, at once and for good. Under the lock, since all of them use
    /// one temporary name.
    pub(super) fn replace(&self, operation: &'static str, name: &str, content: &[u8]) -> Result<()> {
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = self.failed(operation, &new);
        let file = rustix::fs::openat(&self.fd, &new, flags, FILE_MODE).map_err(&failed)?;
        let mut file = File::from(file);
        let io = |e| Error::io(operation, self.path.join(&new).display().to_string(), e);
        file.write_all(content).map_err(io)?;
        crate::fail::point("x.after_write")?;
        file.sync_all().map_err(io)?;
        rustix::fs::renameat(&self.fd, &new, &self.fd, name).map_err(&failed)?;
        crate::fail::point("x.after_rename")?;
        rustix::fs::fsync(&self.fd).map_err(&failed)
    }

    /// Keeps others out, or them from keeping us out, until the answer is dropped: it is held for moments only.
    pub(super) fn lock(&self, operation: &'static str, how: FlockOperation) -> Result<Lock> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = self.failed(operation, "lock");
        let file = rustix::fs::openat(&self.fd, "lock", flags, FILE_MODE).map_err(&failed)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, how)).map_err(&failed)?;
        Ok(Lock(file))
    }
}

/// A lock that is held.
pub(super) struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        unlock(self.0.as_fd());
    }
}

/// Gives a lock back. Closing alone would not: a child that is being started by another thread has the descriptor, too,
/// until it becomes another program.
pub(super) fn unlock(fd: BorrowedFd<'_>) {
    // It can only fail for what is no descriptor.
    let _ = rustix::fs::flock(fd, FlockOperation::Unlock);
}

/// A regular file, open for reading; none if nothing has the name.
pub(super) fn file_at(
    operation: &'static str,
    at: BorrowedFd<'_>,
    name: &str,
    shown: &Path,
) -> Result<Option<(File, Stat)>> {
    let subject = shown.display().to_string();
    let foreign = || {
        let cause = "it is no regular file: something else took the place of a part of the store";
        Error::new(ErrorKind::Corrupt, operation, subject.clone(), cause)
    };
    let file = match rustix::fs::openat(at, name, TO_READ, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Err(foreign()),
        Err(errno) => return Err(of_errno(operation, &subject, errno)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|errno| of_errno(operation, &subject, errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some((file.into(), stat))),
        _ => Err(foreign()),
    }
}

/// What is known of a regular file without opening it; none if nothing has the name, or something else does.
pub(super) fn stat_at(at: BorrowedFd<'_>, name: &str) -> std::result::Result<Option<Stat>, Errno> {
    match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat).filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory that are text.
pub(super) fn names(at: BorrowedFd<'_>) -> std::result::Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(at)? {
        names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
    }
    names.retain(|name| name != "." && name != "..");
    Ok(names)
}

/// The size and the last change of a file.
pub(super) fn size_and_time(stat: &Stat) -> (u64, Timestamp) {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    (u64::try_from(stat.st_size).unwrap_or_default(), Timestamp { secs: stat.st_mtime, nanos })
}

/// The name of the file of a blob.
pub(super) fn blob_name<'a>(operation: &'static str, digest: &'a Digest) -> Result<&'a str> {
    digest.sha256_hex().ok_or_else(|| {
        let cause = "only blobs with a SHA-256 digest are kept here";
        Error::new(ErrorKind::Unsupported, operation, digest.as_str(), cause)
    })
}

pub(super) fn of_errno(operation: &'static str, subject: &str, errno: Errno) -> Error {
    Error::io(operation, subject, errno.into())
}

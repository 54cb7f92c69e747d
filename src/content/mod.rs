//! Where blobs are: layers, configurations and manifests, by their digest.
//!
//! [`ContentStore`] is what plywood wants of such a store: the embedded one is an OCI image layout ([`OciLayout`]), and
//! the content service of containerd can stand in its place.
//!
//! Invariants:
//!
//! * A blob that is there is whole, and was what its digest says when it was put there.
//! * What is still being written ([`Ingest`]) is seen by nobody. It has a reference name, by which a later attempt
//!   goes on where this one ended; one at a time writes it.
//!
//! Absent on purpose: who refers to a blob, which is a matter of rows (`store::blobs`) and labels.

mod index;
mod ingest;
mod oci;
mod place;
mod sweep;

pub use index::{Descriptor, REF_NAME};
pub use oci::OciLayout;

use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crate::types::Timestamp;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was put there, or last asked for by who wanted to put it there.
    pub updated: Timestamp,
}

/// A blob that is open.
pub trait Content: Read + Seek + Send {
    /// Its size in bytes.
    fn size_bytes(&self) -> u64;

    /// Reads some bytes at an offset, wherever the reader stands; 0 at the end.
    ///
    /// # Errors
    /// Those of the store.
    fn read_at(&self, out: &mut [u8], offset_bytes: u64) -> io::Result<usize>;
}

/// What a blob is going to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// Its digest, where it is known.
    pub digest: Option<Digest>,
    /// Its size in bytes, where it is known.
    pub size_bytes: Option<u64>,
}

impl Expected {
    /// A blob of which both is known.
    pub fn new(digest: &Digest, size_bytes: u64) -> Self {
        Self { digest: Some(digest.clone()), size_bytes: Some(size_bytes) }
    }
}

/// The answer to who wants to put a blob there.
pub enum Begun {
    /// It is there already.
    There(ContentInfo),
    /// It can be written, from [`Ingest::offset_bytes`] on.
    Ingest(Box<dyn Ingest>),
}

/// A blob that is being written. Dropped, it stays as it is, to go on with.
pub trait Ingest: Write + Send {
    /// Bytes that are there: the next one to write.
    fn offset_bytes(&self) -> u64;

    /// Begins anew.
    ///
    /// # Errors
    /// Those of the store.
    fn restart(&mut self) -> Result<()>;

    /// Makes it a blob, if it is what was expected. That somebody else has put it there meanwhile is fine; then the time
    /// that is told is not that of the blob.
    ///
    /// # Errors
    /// `Corrupt` if it has another digest or more bytes than expected, and then nothing is left to go on with;
    /// `FailedPrecondition` if bytes are missing, and then it stays; `NoSpace`, and others of the store.
    fn commit(self: Box<Self>) -> Result<ContentInfo>;

    /// Throws away what is there.
    ///
    /// # Errors
    /// Those of the store.
    fn abort(self: Box<Self>) -> Result<()>;
}

/// What is known of a blob that is being written, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestStatus {
    /// Its reference name; what stands for it in the store, if it is not known.
    pub reference: String,
    /// Bytes that are there.
    pub offset_bytes: u64,
    /// When something was last written.
    pub updated: Timestamp,
    /// True if somebody writes it now.
    pub is_busy: bool,
}

/// The space of a blob that has been deleted: given back when this is dropped, which may take its time.
#[derive(Debug, Default)]
#[must_use = "dropping it frees the space: not while others wait"]
pub struct Freed {
    /// The last descriptor of the file: nobody reads it.
    _file: Option<File>,
}

impl Freed {
    /// What is given back already.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// What is given back when the last descriptor of a file without a name goes.
    pub(crate) fn with(file: Option<File>) -> Self {
        Self { _file: file }
    }
}

/// What a sweep deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs or ingests that are gone.
    pub count: usize,
    /// Bytes that they had.
    pub bytes: u64,
}

/// A store of blobs.
pub trait ContentStore: std::fmt::Debug + Send + Sync {
    /// What is known of a blob. Quick: it is asked inside of transactions.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for digests that it has none of.
    fn info(&self, digest: &Digest) -> Result<ContentInfo>;

    /// Opens a blob.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for digests that it has none of.
    fn open(&self, digest: &Digest) -> Result<Box<dyn Content>>;

    /// Opens a blob of which the size is known.
    ///
    /// # Errors
    /// `Corrupt` if it has another; those of [`ContentStore::open`].
    fn open_sized(&self, digest: &Digest, size_bytes: u64) -> Result<Box<dyn Content>> {
        let content = self.open(digest)?;
        if content.size_bytes() == size_bytes {
            return Ok(content);
        }
        let cause = format!("it has {} bytes, and {size_bytes} are expected", content.size_bytes());
        Err(Error::new(ErrorKind::Corrupt, "open blob", digest.as_str(), cause))
    }

    /// Deletes a blob. Quick: it is called inside of transactions, so that no snapshot can begin to refer to a blob
    /// that is being deleted. What takes time is left to the drop of the answer.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for digests that it has none of.
    fn delete(&self, digest: &Digest) -> Result<Freed>;

    /// Takes back a blob that was `put` there: deletes it, unless somebody else has asked for it since, or had put it there
    /// before. As quick as [`ContentStore::delete`].
    ///
    /// # Errors
    /// Those of the store.
    fn take_back(&self, put: &ContentInfo) -> Result<Option<Freed>> {
        match self.info(&put.digest) {
            Ok(info) if info.updated == put.updated => self.delete(&put.digest).map(Some),
            Ok(_) => Ok(None),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Calls `each` for every blob, in no order.
    ///
    /// # Errors
    /// Those of `each` and of the store.
    fn list(&self, each: &mut dyn FnMut(ContentInfo) -> Result<()>) -> Result<()>;

    /// Begins to write a blob under a reference name, or goes on with what a former attempt of this name left. That is
    /// only done if a digest is expected: without one nobody could tell what is left from what is to come.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is empty or too long; `Busy` while somebody else writes it.
    fn ingest(&self, reference: &str, expected: &Expected) -> Result<Begun>;

    /// What is being written, and what was left.
    ///
    /// # Errors
    /// Those of the store.
    fn ingests(&self) -> Result<Vec<IngestStatus>>;

    /// Throws away what was left under a reference name.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while somebody writes it.
    fn abort(&self, reference: &str) -> Result<()>;

    /// The blobs that nobody has put there or asked for since `before`, and that the store itself knows no use for. A
    /// store that others use, too, has none: they are not ours to judge.
    ///
    /// # Errors
    /// Those of the store.
    fn unused_since(&self, before: Timestamp) -> Result<Vec<Digest>> {
        let _ = before;
        Ok(Vec::new())
    }

    /// Deletes a blob of [`ContentStore::unused_since`], unless somebody has put it there again meanwhile. As quick as
    /// [`ContentStore::delete`].
    ///
    /// # Errors
    /// Those of the store.
    fn delete_unused(&self, digest: &Digest, before: Timestamp) -> Result<Option<(ContentInfo, Freed)>> {
        let _ = (digest, before);
        Ok(None)
    }

    /// Throws away what was left of ingests and not written to since `before`, if nobody writes it.
    ///
    /// # Errors
    /// Those of the store.
    fn sweep_ingests(&self, before: Timestamp) -> Result<Swept> {
        let _ = before;
        Ok(Swept::default())
    }
}

/// Copies a reader into a store, and makes it the blob that it is.
///
/// # Errors
/// Those of the reader and of the store: see [`Ingest::commit`].
pub fn put(
    store: &dyn ContentStore,
    reference: &str,
    expected: &Expected,
    reader: &mut dyn Read,
) -> Result<ContentInfo> {
    let mut ingest = match store.ingest(reference, expected)? {
        Begun::There(info) => return Ok(info),
        Begun::Ingest(ingest) => ingest,
    };
    // This reader begins at the begin.
    if ingest.offset_bytes() > 0 {
        ingest.restart()?;
    }
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return ingest.commit(),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io("put blob", "read", e)),
        };
        ingest.write_all(&buffer[..n]).map_err(|e| Error::io("put blob", reference, e))?;
    }
}

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;

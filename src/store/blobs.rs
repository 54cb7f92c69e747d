//! Which blob a snapshot was made from or became: both directions, and the content that nobody needs any more.
//!
//! Rows are kept by number, so a blob that was set on an active snapshot is that of the committed one. The
//! content itself belongs to a content store: a removal only leaves word, in its own transaction, that the
//! last reference is gone ([`Reader::blobs_due`]); whoever has deleted the content takes that word away
//! ([`Writer::blob_deleted`]). After a crash in between it is found again.

use super::codec::{Bytes, Input, Reason};
use super::reader::Reader;
use super::schema::{self, Table};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{SnapshotId, quoted};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

/// The label under which the blob of a snapshot is shown; computed, never stored.
pub const BLOB_LABEL: &str = "containerd.io/snapshot/plywood.blob";

/// The label of a snapshot to which a layer was begun to be applied and is not there whole; computed, never stored.
pub const INCOMPLETE_LABEL: &str = "containerd.io/snapshot/plywood.incomplete";

/// The digest of a blob: `algorithm:hex`. Checked, so that no digest is the begin of another's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Bytes that a digest may have: with separator and number it has to fit into a key of LMDB.
    const MAX_BYTES: usize = 256;

    /// The digest that a text says.
    ///
    /// # Errors
    /// `InvalidArgument` unless it is an algorithm, a colon, and lower-case hexadecimal digits: as many as the
    /// algorithm has, where it is known.
    pub fn parse(text: &str) -> Result<Self> {
        match Self::fault(text) {
            None => Ok(Self(text.to_owned())),
            Some(cause) => Err(Error::new(ErrorKind::InvalidArgument, "digest", quoted(text), cause)),
        }
    }

    /// The digest of this SHA-256.
    pub fn of_sha256(hash: [u8; 32]) -> Self {
        use fmt::Write as _;
        let mut text = String::from("sha256:");
        for byte in hash {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Its 64 digits if its algorithm is SHA-256.
    pub fn sha256_hex(&self) -> Option<&str> {
        self.0.strip_prefix("sha256:")
    }

    fn fault(text: &str) -> Option<&'static str> {
        let Some((algorithm, hex)) = text.split_once(':') else { return Some("it is not ALGORITHM:HEX") };
        let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !algorithm.split(['+', '.', '_', '-']).all(part) {
            return Some("its algorithm has characters that are none of a-z, 0-9, + . _ -");
        }
        if hex.is_empty() || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Some("behind the colon belong lower-case hexadecimal digits");
        }
        let expected = match algorithm {
            "sha256" => Some(64),
            "sha384" => Some(96),
            "sha512" => Some(128),
            _ => None,
        };
        if expected.is_some_and(|length| length != hex.len()) {
            return Some("it has not as many digits as its algorithm makes");
        }
        (text.len() > Self::MAX_BYTES).then_some("it has more than 256 bytes")
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The begin of the keys of all its references.
    fn prefix(&self) -> Vec<u8> {
        [self.0.as_bytes(), &[0]].concat()
    }

    fn key(&self, id: SnapshotId) -> Vec<u8> {
        [self.0.as_bytes(), &[0], &schema::id_key(id)].concat()
    }

    /// Digest and number of the key of a reference.
    pub(super) fn of_key(key: &[u8]) -> Option<(Self, SnapshotId)> {
        let (digest, id) = key.split_at_checked(key.len().checked_sub(8)?)?;
        let digest = Self::of_bytes(digest.strip_suffix(&[0])?)?;
        Some((digest, schema::id_of(id)?))
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        Self::fault(text).is_none().then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        match Self::fault(&text) {
            None => Ok(Self(text.into_owned())),
            Some(cause) => Err(serde::de::Error::custom(format!("digest {}: {cause}", quoted(&text)))),
        }
    }
}

/// A blob as a snapshot refers to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its media type; empty if it is not known.
    pub media_type: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl Blob {
    const VERSION: u8 = 1;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = Bytes::version(Self::VERSION);
        row.text(self.digest.as_str()).text(&self.media_type).u64(self.size_bytes).finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Self, Reason> {
        let mut input = Input::new(bytes);
        if input.u8()? != Self::VERSION {
            return Err("its version is unknown");
        }
        let digest = Digest::of_bytes(input.bytes()?).ok_or("its digest is none")?;
        let blob = Self { digest, media_type: input.text()?, size_bytes: input.u64()? };
        input.end()?;
        Ok(blob)
    }
}

/// What setting a blob did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobSet {
    /// The snapshot had none.
    New,
    /// It had this one.
    Same,
}

/// What [`Writer::reconcile_blobs`] found and mended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reconciled {
    /// Rows of snapshots that are gone.
    pub dropped: usize,
    /// References that one of the two tables lacked.
    pub completed: usize,
    /// Blobs whose last reference went with that: their content is due for deletion.
    pub due: Vec<Digest>,
}

impl Reader<'_> {
    /// The blob of a snapshot.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn blob_of(&self, id: SnapshotId) -> Result<Option<Blob>> {
        let Some(value) = self.get(Table::BlobBySnap, &schema::id_key(id))? else { return Ok(None) };
        Blob::decode(value).map(Some).map_err(|r| self.corrupt(format!("blob of snapshot {id}"), r))
    }

    /// The snapshots that refer to a blob.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn snapshots_of(&self, digest: &Digest) -> Result<Vec<SnapshotId>> {
        let mut ids = Vec::new();
        let prefix = digest.prefix();
        self.scan_prefix(Table::BlobByDigest, &prefix, &mut |key, _| {
            let id = schema::id_of(&key[prefix.len()..]);
            ids.push(
                id.ok_or_else(|| self.corrupt(digest.as_str(), "a reference has no number of 8 bytes"))?,
            );
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ids)
    }

    /// The blobs whose last reference is gone and whose content has not been deleted yet.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn blobs_due(&self) -> Result<Vec<Digest>> {
        let mut due = Vec::new();
        self.scan(Table::BlobGc, &[], &mut |key, _| {
            due.push(Digest::of_bytes(key).ok_or_else(|| self.corrupt("blobs due", "a digest is none"))?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(due)
    }

    /// Whether a content is due for deletion.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_blob_due(&self, digest: &Digest) -> Result<bool> {
        Ok(self.get(Table::BlobGc, digest.as_str().as_bytes())?.is_some())
    }

    /// Whether both tables agree with each other and with the snapshots that there are, as far as their rows can be
    /// read: if so, [`Writer::reconcile_blobs`] has nothing to do.
    ///
    /// # Errors
    /// Those of the database.
    pub fn are_blobs_reconciled(&self) -> Result<bool> {
        let (mut agrees, mut blobs, mut references) = (true, 0_usize, 0_usize);
        self.scan(Table::BlobBySnap, &[], &mut |key, value| {
            let Some((id, blob)) = schema::id_of(key).zip(Blob::decode(value).ok()) else {
                return Ok(ControlFlow::Continue(()));
            };
            blobs += 1;
            agrees = self.get(Table::Snap, key)?.is_some()
                && self.get(Table::BlobByDigest, &blob.digest.key(id))?.is_some();
            Ok(if agrees { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        // Each blob has its reference: with as many references none is left over.
        self.scan(Table::BlobByDigest, &[], &mut |key, _| {
            references += usize::from(Digest::of_key(key).is_some());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(agrees && blobs == references)
    }

    /// Whether any snapshot refers to a blob.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_blob_referenced(&self, digest: &Digest) -> Result<bool> {
        let mut found = false;
        self.scan_prefix(Table::BlobByDigest, &digest.prefix(), &mut |_, _| {
            found = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }
}

impl Writer<'_> {
    /// Says which blob a snapshot is. A content that was due for deletion no longer is.
    ///
    /// # Errors
    /// `NotFound` without the snapshot; `FailedPrecondition` if it has another blob already.
    pub fn set_blob(&mut self, id: SnapshotId, blob: &Blob) -> Result<BlobSet> {
        let record = self.record_that_exists(id)?;
        if let Some(present) = self.blob_of(id)? {
            if present.digest == blob.digest {
                return Ok(BlobSet::Same);
            }
            let cause = format!("a different blob is already set: {}", present.digest);
            return Err(self.error(ErrorKind::FailedPrecondition, quoted(&record.name), &cause));
        }
        self.put(Table::BlobBySnap, &schema::id_key(id), &blob.encode())?;
        self.put(Table::BlobByDigest, &blob.digest.key(id), &[])?;
        self.delete(Table::BlobGc, blob.digest.as_str().as_bytes())?;
        Ok(BlobSet::New)
    }

    /// Forgets that a content is due: it has been deleted, or was gone.
    ///
    /// # Errors
    /// Those of the database.
    pub fn blob_deleted(&mut self, digest: &Digest) -> Result<bool> {
        self.frees();
        self.delete(Table::BlobGc, digest.as_str().as_bytes())
    }

    /// Forgets which content is due although somebody refers to it, and returns the rest: what is to be deleted
    /// now.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn replay_blobs_due(&mut self) -> Result<Vec<Digest>> {
        let mut due = self.blobs_due()?;
        let mut wanted = BTreeSet::new();
        for digest in &due {
            if self.is_blob_referenced(digest)? {
                self.blob_deleted(digest)?;
                wanted.insert(digest.clone());
            }
        }
        due.retain(|d| !wanted.contains(d));
        Ok(due)
    }

    /// Makes both tables agree with each other and with the snapshots that there are. Rows that cannot be read
    /// stay as they are, and so does what leads to them: they are for `check` to tell of.
    ///
    /// # Errors
    /// Those of the database.
    pub fn reconcile_blobs(&mut self) -> Result<Reconciled> {
        let mut result = Reconciled::default();
        let mut lost = BTreeSet::new();
        for (id, blob) in self.all_blobs()? {
            let key = schema::id_key(id);
            if self.get(Table::Snap, &key)?.is_none() {
                self.delete(Table::BlobBySnap, &key)?;
                self.delete(Table::BlobByDigest, &blob.digest.key(id))?;
                lost.insert(blob.digest);
                result.dropped += 1;
            } else if self.get(Table::BlobByDigest, &blob.digest.key(id))?.is_none() {
                self.put(Table::BlobByDigest, &blob.digest.key(id), &[])?;
                result.completed += 1;
            }
        }
        for (digest, id) in self.all_references()? {
            let blob = self.get(Table::BlobBySnap, &schema::id_key(id))?.map(Blob::decode);
            if blob.is_none_or(|blob| blob.is_ok_and(|blob| blob.digest != digest)) {
                self.delete(Table::BlobByDigest, &digest.key(id))?;
                lost.insert(digest);
                result.dropped += 1;
            }
        }
        for digest in lost {
            if self.note_if_unreferenced(&digest)? {
                result.due.push(digest);
            }
        }
        Ok(result)
    }

    /// Deletes the rows of a snapshot that is being removed; the digest if it was the last to refer to it.
    pub(super) fn drop_blob(&mut self, id: SnapshotId) -> Result<Option<Digest>> {
        let Some(blob) = self.blob_of(id)? else { return Ok(None) };
        self.delete(Table::BlobBySnap, &schema::id_key(id))?;
        self.delete(Table::BlobByDigest, &blob.digest.key(id))?;
        Ok(self.note_if_unreferenced(&blob.digest)?.then_some(blob.digest))
    }

    fn note_if_unreferenced(&mut self, digest: &Digest) -> Result<bool> {
        if self.is_blob_referenced(digest)? {
            return Ok(false);
        }
        self.put(Table::BlobGc, digest.as_str().as_bytes(), &[])?;
        Ok(true)
    }

    fn all_blobs(&self) -> Result<Vec<(SnapshotId, Blob)>> {
        let mut all = Vec::new();
        self.scan(Table::BlobBySnap, &[], &mut |key, value| {
            all.extend(schema::id_of(key).zip(Blob::decode(value).ok()));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    fn all_references(&self) -> Result<Vec<(Digest, SnapshotId)>> {
        let mut all = Vec::new();
        self.scan(Table::BlobByDigest, &[], &mut |key, _| {
            all.extend(Digest::of_key(key));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_an_algorithm_and_hexadecimal_digits() {
        let sha256 = format!("sha256:{}", "0a".repeat(32));
        for good in [sha256.as_str(), "blake3:00", "multihash+base58:ab", "a.b_c-d:0"] {
            assert_eq!(Digest::parse(good).map(|d| d.to_string()).ok().as_deref(), Some(good));
        }
        let upper = sha256.to_uppercase();
        let (short, long) = (&sha256[..sha256.len() - 1], format!("{sha256}0"));
        let huge = format!("x:{}", "0".repeat(300));
        let bad = ["", ":", "sha256", "sha256:", ":00", "SHA256:00", "a++b:00", "x:0g", "x:00\0", "x :00"];
        for bad in bad.into_iter().chain([upper.as_str(), short, &long, &huge]) {
            assert_eq!(
                Digest::parse(bad).err().map(|e| e.kind()),
                Some(ErrorKind::InvalidArgument),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_blob_is_read_back_and_never_half() {
        let digest = Digest::parse("x:00").expect("a digest");
        assert_eq!(Digest::of_key(&digest.key(SnapshotId(5))), Some((digest.clone(), SnapshotId(5))));
        assert_eq!(Digest::of_key(b"x:00"), None);
        assert_eq!(Digest::of_key(b"x:00\x0112345678"), None);
        let blob = Blob { digest, media_type: "application/x".to_owned(), size_bytes: 9 };
        let bytes = blob.encode();
        assert_eq!(Blob::decode(&bytes), Ok(blob));
        for end in 0..bytes.len() {
            assert!(Blob::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}

//! A chain of committed snapshots becomes an OCI archive.
//!
//! A layer whose blob is known is written as it came. Any other is packed into the content store first, since an archive
//! tells the size of a member before its content, and is known from then on. The configuration is that of the image that
//! the chain was imported as, or is built upon.
//!
//! The archive also has Docker's `manifest.json`, for programs that do not know OCI archives. The same chain gives the
//! same bytes each time.

use super::chain::sha256;
use super::document::{self, Described, PackedLayer, Platform, blob_path, media};
use super::import::{CONFIG, IMAGE, MANIFEST};
use super::members::{DOCKER, INDEX};
use super::unpack::DIFF_ID;
use super::watch::{Asked, Task, Watcher, go_on};
use crate::archive::{Entry, EntryKind, Writer};
use crate::compress::{Compression, Hasher, HashingReader, decoder};
use crate::content::{Begun, ContentInfo, ContentStore, Expected, Ingest};
use crate::diff::{DiffOptions, Xattrs};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{self, Snapshotter};
use crate::store::{Blob, Digest};
use crate::types::{Info, Labels, SnapshotKind, Timestamp, quoted};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;

/// The label of a snapshot whose blob was packed here, not imported: how.
pub const PACKED_AS: &str = "containerd.io/snapshot/plywood.packed-as";

/// How an image is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// What it is called in the archive; `None`: as it was called when it was imported, if it was.
    pub tag: Option<String>,
    /// How layers are compressed that have no blob.
    pub compression: Compression,
    /// No time is later than this: seconds since 1970.
    pub source_date_epoch: Option<i64>,
    /// Which extended attributes layers have that have no blob.
    pub xattrs: Xattrs,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { tag: None, compression: Compression::Gzip, source_date_epoch: None, xattrs: Xattrs::Caps }
    }
}

/// An image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// The digest of its configuration.
    pub config: Digest,
    /// What it is called.
    pub tag: Option<String>,
    /// Its layers, the lowest first, with the names of their snapshots.
    pub layers: Vec<(String, PackedLayer)>,
}

/// Writes the committed snapshot `name` and all below it as an image.
///
/// # Errors
/// `NotFound`; `FailedPrecondition` if it is not committed; `Cancelled`; those of writing.
pub fn export(
    snapshotter: &Snapshotter,
    name: &str,
    out: impl Write,
    options: &ExportOptions,
    watcher: &dyn Watcher,
) -> Result<Exported> {
    let content = snapshotter.content();
    let export = Export { snapshotter, content, options, watcher };
    let mut put = Vec::new();
    let exported = export.run(name, out, &mut put);
    for put in &put {
        if let Err(error) = snapshotter.drop_unreferenced(put) {
            tracing::warn!(digest = %put.digest, %error, "a blob that nobody refers to stays until it is old");
        }
    }
    exported.map_err(|e| e.during("export", quoted(name)))
}

struct Export<'a> {
    snapshotter: &'a Snapshotter,
    content: &'a dyn ContentStore,
    options: &'a ExportOptions,
    watcher: &'a dyn Watcher,
}

impl Export<'_> {
    /// `put` gets the blobs that were made for this archive alone.
    fn run(&self, name: &str, out: impl Write, put: &mut Vec<ContentInfo>) -> Result<Exported> {
        let chain = self.chain(name)?;
        let mut layers = Vec::with_capacity(chain.len());
        for (at, info) in chain.iter().enumerate() {
            let title = format!("layer {} of {}", at + 1, chain.len());
            layers.push(self.layer(info, &title, put)?);
        }
        let config = document::make_config(self.base(&chain)?.as_deref(), &layers, &Platform::here())?;
        let described = |bytes: &[u8], media_type: &str| Described {
            digest: sha256(bytes),
            size_bytes: bytes.len() as u64,
            media_type: media_type.to_owned(),
        };
        let config_blob = described(&config, media::CONFIG);
        let manifest = match self.manifest_as_it_came(&chain, &config_blob, &layers)? {
            Some(manifest) => manifest,
            None => document::make_manifest(&config_blob, &layers)?,
        };
        let manifest_blob = described(&manifest, media::MANIFEST);
        let named = || chain.last().and_then(|top| top.labels.get(IMAGE).cloned());
        let tag = self.options.tag.clone().or_else(named);
        let tag = tag.as_deref();
        let documents = [
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            (INDEX.to_owned(), document::make_index(&manifest_blob, tag)?),
            (DOCKER.to_owned(), document::make_docker_manifest(&config_blob.digest, &layers, tag)?),
            (blob_path(&manifest_blob.digest), manifest),
            (blob_path(&config_blob.digest), config),
        ];
        self.write(out, &documents, &layers)?;
        let names = chain.into_iter().map(|info| info.name);
        Ok(Exported {
            manifest: manifest_blob.digest,
            config: config_blob.digest,
            tag: tag.map(str::to_owned),
            layers: names.zip(layers).collect(),
        })
    }

    /// The snapshot and all below it, the lowest first.
    fn chain(&self, name: &str) -> Result<Vec<Info>> {
        let mut chain = vec![self.snapshotter.stat(name)?];
        while let Some(parent) = chain.last().map(|i| i.parent.clone()).filter(|p| !p.is_empty()) {
            chain.push(self.snapshotter.stat(&parent)?);
        }
        if let Some(top) = chain.first()
            && top.kind != SnapshotKind::Committed
        {
            let cause = format!(
                "it is {}, and an image is made of committed snapshots: commit it first",
                top.kind.as_str()
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, "export", quoted(name), cause));
        }
        chain.reverse();
        Ok(chain)
    }

    /// The configuration of the nearest image that the chain is built upon.
    fn base(&self, chain: &[Info]) -> Result<Option<Vec<u8>>> {
        for (at, info) in chain.iter().enumerate().rev() {
            let Some(digest) = info.labels.get(CONFIG).and_then(|d| Digest::parse(d).ok()) else { continue };
            let Some(bytes) = self.document(&digest, &info.name)? else { continue };
            // A layer that was packed anew has another digest, and is the same layer.
            if document::config(digest.as_str(), &bytes)?.diff_ids.len() == at + 1 {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// A document that a label of a snapshot names; `None`, said in the log, if it is gone.
    fn document(&self, digest: &Digest, snapshot: &str) -> Result<Option<Vec<u8>>> {
        let Ok(blob) = self.content.open(digest) else {
            tracing::warn!(%digest, snapshot, "a document of the image is gone: a new one is made");
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let failed = |e| Error::io("read blob", digest.as_str(), e);
        blob.take(document::MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// The manifest that the image was imported with, if it is this very image: so that its digest stays.
    fn manifest_as_it_came(
        &self,
        chain: &[Info],
        config: &Described,
        layers: &[PackedLayer],
    ) -> Result<Option<Vec<u8>>> {
        let Some(top) = chain.last() else { return Ok(None) };
        let Some(Ok(digest)) = top.labels.get(MANIFEST).map(|d| Digest::parse(d)) else { return Ok(None) };
        let Some(bytes) = self.document(&digest, &top.name)? else { return Ok(None) };
        let Ok(manifest) = document::manifest(digest.as_str(), &bytes) else { return Ok(None) };
        let told = manifest.layers.iter().map(|l| (&l.digest, l.size_bytes));
        let same = told.eq(layers.iter().map(|l| (&l.blob.digest, l.blob.size_bytes)));
        Ok((same && manifest.config.digest == config.digest).then_some(bytes))
    }

    /// A layer as a blob: the one that is known, or one that is packed now.
    fn layer(&self, info: &Info, title: &str, put: &mut Vec<ContentInfo>) -> Result<PackedLayer> {
        go_on(self.watcher, "export")?;
        let created = Timestamp { nanos: 0, ..self.bounded(info.created) };
        let created = created.to_string().replace(".000000000", "");
        let created_by = "plywood commit".to_owned();
        let known = self.snapshotter.get_blob(&info.name)?;
        if let Some(blob) = known
            && self.may_reuse(info)
            && let Ok(present) = self.content.info(&blob.digest)
        {
            let media_type = match blob.media_type.as_str() {
                "" => Compression::None.media_type().to_owned(),
                known => known.to_owned(),
            };
            let diff_id = match info.labels.get(DIFF_ID).map(|d| Digest::parse(d)) {
                Some(Ok(diff_id)) => diff_id,
                _ => self.learn_diff_id(info, &blob.digest)?,
            };
            let blob = Described {
                digest: blob.digest,
                size_bytes: present.size_bytes,
                media_type: oci_media_type(&media_type),
            };
            return Ok(PackedLayer { diff_id, blob, created, created_by });
        }
        let task = self.watcher.begin(title, None);
        let reference = crate::layout::by_this_process("export");
        let packed = self.pack(info, &reference, &task);
        if packed.is_err()
            && let Err(error) = self.content.abort(&reference)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(%error, "a blob that is not whole stays until it is old");
        }
        let (packed, blob) = packed?;
        let media_type = self.options.compression.media_type().to_owned();
        if !self.remember(info, &packed.diff_id, &blob, &media_type)? {
            put.push(blob.clone());
        }
        task.finish("");
        let blob = Described { digest: blob.digest, size_bytes: blob.size_bytes, media_type };
        Ok(PackedLayer { diff_id: packed.diff_id, blob, created, created_by })
    }

    /// True if a blob that is known is what would be packed, or came with an image, which counts more.
    fn may_reuse(&self, info: &Info) -> bool {
        let packed_as = info.labels.get(PACKED_AS);
        packed_as.is_none_or(|how| self.options.source_date_epoch.is_none() && *how == self.packed_as())
    }

    /// How layers are packed here, as [`PACKED_AS`] has it.
    fn packed_as(&self) -> String {
        let xattrs = match self.options.xattrs {
            Xattrs::Caps => "caps",
            Xattrs::User => "user",
        };
        format!("{} {xattrs}", self.options.compression)
    }

    /// Notes what a layer was packed as, for the next time; false if the blob is for this archive alone, because its times
    /// are bounded or the snapshot has another blob.
    fn remember(&self, info: &Info, diff_id: &Digest, blob: &ContentInfo, media_type: &str) -> Result<bool> {
        if self.options.source_date_epoch.is_some() {
            return Ok(false);
        }
        let (digest, media_type) = (blob.digest.clone(), media_type.to_owned());
        match self.snapshotter.set_blob(&info.name, &Blob { digest, media_type, size_bytes: blob.size_bytes })
        {
            Err(e) if e.kind() == ErrorKind::FailedPrecondition => return Ok(false),
            other => drop(other?),
        }
        let labels = Labels::from([
            (DIFF_ID.to_owned(), diff_id.to_string()),
            (PACKED_AS.to_owned(), self.packed_as()),
        ]);
        let paths = [DIFF_ID, PACKED_AS].map(|key| format!("labels.{key}"));
        self.snapshotter.update(&info.name, &labels, &paths)?;
        Ok(true)
    }

    /// Packs a layer into the content store.
    fn pack(
        &self,
        info: &Info,
        reference: &str,
        task: &Arc<dyn Task>,
    ) -> Result<(snapshotter::PackedLayer, ContentInfo)> {
        let Begun::Ingest(ingest) = self.content.ingest(reference, &Expected::default())? else {
            return Err(Error::new(
                ErrorKind::Io,
                "export",
                quoted(&info.name),
                "a blob that nobody knows is there",
            ));
        };
        let options = DiffOptions {
            source_date_epoch: self.options.source_date_epoch,
            xattrs: self.options.xattrs,
            ..DiffOptions::default()
        };
        let base = Some(info.parent.as_str()).filter(|p| !p.is_empty());
        let sink = Sink { ingest, task: Arc::clone(task) };
        let compression = self.options.compression;
        let asked = Asked(self.watcher);
        let (packed, sink) = self.snapshotter.pack(&info.name, base, sink, compression, &options, &asked)?;
        let blob = sink.ingest.commit()?;
        Ok((packed, blob))
    }

    fn bounded(&self, time: Timestamp) -> Timestamp {
        match self.options.source_date_epoch {
            Some(epoch) if time.secs > epoch => Timestamp { secs: epoch, nanos: 0 },
            _ => time,
        }
    }

    /// The digest of a blob without compression, which only its content tells.
    fn learn_diff_id(&self, info: &Info, digest: &Digest) -> Result<Digest> {
        let mut reader = HashingReader::new(decoder(self.content.open(digest)?)?, Hasher::new());
        let mut buffer = vec![0; 128 << 10];
        loop {
            go_on(self.watcher, "export")?;
            let came = reader.read(&mut buffer).map_err(|e| Error::io("read blob", digest.as_str(), e))?;
            if came == 0 {
                break;
            }
        }
        let (_, diff_id, _) = reader.finish()?;
        self.note_diff_id(info, &diff_id)?;
        Ok(diff_id)
    }

    fn note_diff_id(&self, info: &Info, diff_id: &Digest) -> Result<()> {
        let labels = Labels::from([(DIFF_ID.to_owned(), diff_id.to_string())]);
        self.snapshotter.update(&info.name, &labels, &[format!("labels.{DIFF_ID}")]).map(drop)
    }

    fn write(&self, out: impl Write, documents: &[(String, Vec<u8>)], layers: &[PackedLayer]) -> Result<()> {
        let mut archive = Writer::new(out);
        let total = layers.iter().map(|l| l.blob.size_bytes).sum();
        let task = self.watcher.begin("write the archive", Some(total));
        for dir in ["blobs/", "blobs/sha256/"] {
            archive.entry(&member(dir, EntryKind::Dir, 0o755, 0))?;
        }
        for (path, bytes) in documents {
            archive.entry(&member(path, EntryKind::File, 0o644, bytes.len() as u64))?;
            archive.content(bytes)?;
        }
        let mut written = BTreeSet::new();
        let mut buffer = vec![0; 256 << 10];
        for layer in layers {
            let digest = &layer.blob.digest;
            // Two layers may be the same blob.
            if !written.insert(digest.clone()) {
                continue;
            }
            archive.entry(&member(&blob_path(digest), EntryKind::File, 0o644, layer.blob.size_bytes))?;
            let mut blob = self.content.open(digest)?;
            loop {
                go_on(self.watcher, "export")?;
                let came = blob.read(&mut buffer).map_err(|e| Error::io("read blob", digest.as_str(), e))?;
                if came == 0 {
                    break;
                }
                archive.content(&buffer[..came])?;
                task.advance(came as u64);
            }
        }
        archive.finish()?.flush().map_err(|e| Error::io("write", "archive", e))?;
        task.finish("");
        Ok(())
    }
}

/// A layer of Docker's media types as one of OCI's: the content is the same.
fn oci_media_type(media_type: &str) -> String {
    match Compression::of_media_type(media_type) {
        Some(compression) => compression.media_type().to_owned(),
        None => media_type.to_owned(),
    }
}

fn member(path: &str, kind: EntryKind, mode: u32, size_bytes: u64) -> Entry {
    Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        size_bytes,
        mtime: Timestamp::default(),
        atime: None,
        xattrs: Vec::new(),
    }
}

/// Where a packed layer goes.
struct Sink {
    ingest: Box<dyn Ingest>,
    task: Arc<dyn Task>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.ingest.write(bytes)?;
        self.task.advance(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.ingest.flush()
    }
}

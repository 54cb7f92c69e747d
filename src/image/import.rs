//! An image or a root file system from wherever it is becomes a chain of committed snapshots.
//!
//! | what comes | how it is told |
//! |---|---|
//! | a directory | an OCI image layout |
//! | an archive that begins with a member of an image | an OCI archive, or what `docker save` and `podman save` write |
//! | any other archive | the one layer of a root file system |
//!
//! The archives may be compressed. What is new goes into the content store and is checked there; then it is unpacked.

use super::chain::sha256;
use super::document::{self, Config, Described, Listed, Platform};
use super::members::{DOCKER, INDEX, Members, Sign, keep, of_outside, sign};
use super::unpack::{Blobs, Layer, Made, Unpacked, unpack};
use super::watch::{Asked, Task, Watched, Watcher, go_on};
use crate::apply::Below;
use crate::archive::{Limits, Reader};
use crate::compress::{Compression, decoder};
use crate::content::{Begun, ContentInfo, ContentStore, Expected, Ingest, OciLayout};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{AppliedLayer, IMAGE_LABELS, Layered, Snapshotter};
use crate::store::{Blob, Digest};
use crate::types::{Info, Labels, SnapshotKind, check_labels, quoted};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The labels of the configuration and of the manifest of an image, on its top snapshot: digests of blobs, which are
/// kept for as long as a snapshot has such a label.
pub const CONFIG: &str = IMAGE_LABELS[0];
/// See [`CONFIG`].
pub const MANIFEST: &str = IMAGE_LABELS[1];

/// The label of the name of an image, on its top snapshot.
pub const IMAGE: &str = "containerd.io/snapshot/plywood.image.name";

/// Where an image comes from.
pub enum Input {
    /// A directory or file of this machine.
    Path(PathBuf),
    /// A stream, such as standard input, and how it is called in messages.
    Stream(Box<dyn Read + Send>, String),
}

/// What an archive is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// What its first members say.
    AsItLooks,
    /// A root file system.
    AsFiles,
}

/// How an image is imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// Which image, where there are several.
    pub name: Option<String>,
    /// For which machine, where there are several.
    pub platform: Platform,
    /// What an archive is taken for.
    pub taken: Taken,
    /// Whether blobs are kept.
    pub blobs: Blobs,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self { name: None, platform: Platform::here(), taken: Taken::AsItLooks, blobs: Blobs::Kept }
    }
}

/// An image that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The name of its top snapshot: a chain ID.
    pub name: String,
    /// How it called itself.
    pub image: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<Unpacked>,
}

/// Bytes of an archive that are looked at before it is read.
const GLANCE_BYTES: usize = 64 << 10;

/// Imports an image or a root file system.
///
/// # Errors
/// `InvalidArgument` if it is damaged or is none; `NotFound` if it does not hold the image that is wanted; `Cancelled`;
/// those of the snapshotter and of the content store. What was committed stays, nothing else.
pub fn import(
    snapshotter: &Snapshotter,
    input: Input,
    options: &ImportOptions,
    watcher: &dyn Watcher,
) -> Result<Imported> {
    let content = snapshotter.content();
    let import = Import { snapshotter, content, options, watcher };
    let (stream, subject, total) = match input {
        Input::Path(path) if path.is_dir() => return import.directory(&path),
        Input::Path(path) => {
            let subject = path.display().to_string();
            let failed = |e| Error::io("import", subject.clone(), e);
            let file = File::open(&path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            let total = meta.is_file().then_some(meta.len());
            (Box::new(file) as Box<dyn Read + Send>, subject, total)
        }
        Input::Stream(stream, subject) => (stream, subject, None),
    };
    import.archive(stream, &subject, total).map_err(|e| e.during("import", subject.as_str()))
}

struct Import<'a> {
    snapshotter: &'a Snapshotter,
    content: &'a dyn ContentStore,
    options: &'a ImportOptions,
    watcher: &'a dyn Watcher,
}

/// An image whose blobs are in the content store.
struct Found {
    config: Vec<u8>,
    layers: Vec<Described>,
    /// The manifest, where it is one of OCI.
    manifest: Option<Vec<u8>>,
    image: Option<String>,
}

impl Import<'_> {
    fn directory(&self, path: &Path) -> Result<Imported> {
        let from = OciLayout::open_foreign(path).map_err(of_outside)?;
        let subject = path.display().to_string();
        let mut put = Vec::new();
        let imported = self.of_directory(&from, &subject, &mut put);
        self.take_back(&put, imported.is_ok());
        imported.map_err(|e| e.during("import", subject.as_str()))
    }

    fn of_directory(&self, from: &OciLayout, subject: &str, put: &mut Vec<ContentInfo>) -> Result<Imported> {
        let found = self.of_index(from, subject, &from.index().map_err(of_outside)?)?;
        let document = |bytes: &Vec<u8>, media_type: &str| Described {
            digest: sha256(bytes),
            size_bytes: bytes.len() as u64,
            media_type: media_type.to_owned(),
        };
        let manifest = found.manifest.as_ref().map(|bytes| document(bytes, document::media::MANIFEST));
        let config = document(&found.config, document::media::CONFIG);
        for described in found.layers.iter().chain(&manifest).chain([&config]) {
            if put.iter().all(|put| put.digest != described.digest) {
                put.push(self.fetch(from, described).map_err(of_outside)?);
            }
        }
        self.unpack(subject, found)
    }

    /// Copies a blob into the content store, unless it is there.
    fn fetch(&self, from: &OciLayout, described: &Described) -> Result<ContentInfo> {
        let digest = &described.digest;
        let task = self.watcher.begin(&format!("blob {digest}"), Some(described.size_bytes));
        let source = from.open(digest).map_err(missing)?;
        let mut source = Guarded { inner: Watched::new(source, Arc::clone(&task)), watcher: self.watcher };
        let info = keep(self.content, &Expected::new(digest, described.size_bytes), &mut source)?;
        task.finish("");
        Ok(info)
    }

    fn archive(
        &self,
        mut stream: Box<dyn Read + Send>,
        subject: &str,
        total: Option<u64>,
    ) -> Result<Imported> {
        let glance = glance(&mut stream).map_err(|e| Error::io("read", subject, e))?;
        if glance.is_empty() {
            let cause = "it is empty: whatever should have written it did not";
            return Err(Error::new(ErrorKind::InvalidArgument, "read image", subject, cause));
        }
        let is_image = self.options.taken == Taken::AsItLooks && begins_image(&glance);
        let stream = std::io::Cursor::new(glance).chain(stream);
        if !is_image {
            return self.files(stream, total);
        }
        let task = self.watcher.begin("read the archive", total);
        let stream = decoder(Watched::new(stream, Arc::clone(&task)))?;
        let mut members = Members::default();
        let imported = self.of_members(&mut members, stream, subject, &task);
        self.take_back(members.put(), imported.is_ok());
        imported
    }

    fn of_members(
        &self,
        members: &mut Members,
        stream: impl Read,
        subject: &str,
        task: &Arc<dyn Task>,
    ) -> Result<Imported> {
        members.read(stream, self.content, self.watcher).map_err(of_outside)?;
        task.finish("");
        let found = if let Some(index) = members.document(INDEX) {
            self.of_index(self.content, subject, index)
        } else if let Some(manifest) = members.document(DOCKER) {
            self.of_docker(members, subject, manifest)
        } else {
            let cause =
                "it holds neither index.json nor manifest.json; if it is a root file system, say --rootfs";
            Err(Error::new(ErrorKind::InvalidArgument, "read image", subject, cause))
        };
        self.unpack(subject, found?)
    }

    /// What came for nothing, or was not wanted for longer, goes again, unless somebody else relies on it.
    fn take_back(&self, put: &[ContentInfo], imported: bool) {
        for put in put {
            let is_kept = imported && self.options.blobs == Blobs::Kept;
            if is_kept && self.snapshotter.snapshots_of(&put.digest).is_ok_and(|names| !names.is_empty()) {
                continue;
            }
            if let Err(error) = self.snapshotter.drop_unreferenced(put) {
                tracing::warn!(digest = %put.digest, %error, "a blob that is not wanted stays until it is old");
            }
        }
    }

    fn of_index(&self, from: &dyn ContentStore, subject: &str, index: &[u8]) -> Result<Found> {
        let wanted = self.options.name.as_deref();
        let listed = document::index(subject, index)?;
        let mut chosen = document::choose(subject, &listed, wanted, &self.options.platform)?.clone();
        let image = chosen.name.clone();
        // An index may list another one for the machines of one image, and that no further one.
        if chosen.is_index() {
            let inner = self.small(from, &chosen.described)?;
            let listed: Vec<Listed> = document::index(chosen.described.digest.as_str(), &inner)?;
            chosen = document::choose(subject, &listed, None, &self.options.platform)?.clone();
        }
        let bytes = self.small(from, &chosen.described)?;
        let manifest = document::manifest(chosen.described.digest.as_str(), &bytes)?;
        let config = self.small(from, &manifest.config)?;
        let bytes = (chosen.described.media_type == document::media::MANIFEST).then_some(bytes);
        Ok(Found { config, layers: manifest.layers, manifest: bytes, image })
    }

    fn of_docker(&self, members: &Members, subject: &str, manifest: &[u8]) -> Result<Found> {
        let images = document::docker_manifest(subject, manifest)?;
        let wanted = self.options.name.as_deref();
        let is_wanted = |image: &&document::DockerImage| {
            wanted.is_none_or(|w| image.names.iter().any(|n| document::is_named(n, w)))
        };
        let matching: Vec<_> = images.iter().filter(is_wanted).collect();
        let [image] = matching.as_slice() else {
            let names: Vec<&str> = images.iter().flat_map(|i| &i.names).map(String::as_str).collect();
            let (kind, what) = match (matching.is_empty(), wanted) {
                (true, Some(wanted)) => (ErrorKind::NotFound, format!("there is no image {wanted:?}")),
                (true, None) => (ErrorKind::InvalidArgument, "it holds no image".to_owned()),
                _ => (
                    ErrorKind::InvalidArgument,
                    "there are several images, choose one with --name".to_owned(),
                ),
            };
            return Err(Error::new(
                kind,
                "read image",
                subject,
                format!("{what}: it holds {}", names.join(", ")),
            ));
        };
        let (config, size_bytes) = members.blob(&image.config)?;
        let config = Described { digest: config, size_bytes, media_type: document::media::CONFIG.to_owned() };
        let config = self.small(self.content, &config)?;
        let layers: Result<Vec<Described>> =
            image.layers.iter().map(|path| self.docker_layer(members, path)).collect();
        Ok(Found { config, layers: layers?, manifest: None, image: image.names.first().cloned() })
    }

    /// A layer of a Docker archive, which says nothing of how it is compressed.
    fn docker_layer(&self, members: &Members, path: &str) -> Result<Described> {
        let (digest, size_bytes) = members.blob(path)?;
        let mut begin = [0; 16];
        let mut source = self.content.open(&digest).map_err(missing)?;
        let mut length = 0;
        while length < begin.len() {
            match source.read(&mut begin[length..]).map_err(|e| Error::io("read blob", digest.as_str(), e))? {
                0 => break,
                came => length += came,
            }
        }
        let media_type = Compression::sniff(&begin[..length]).media_type().to_owned();
        Ok(Described { digest, size_bytes, media_type })
    }

    /// A document among the blobs, whole and checked.
    fn small(&self, from: &dyn ContentStore, described: &Described) -> Result<Vec<u8>> {
        let subject = described.digest.as_str();
        document::check_size(subject, described.size_bytes)?;
        let mut bytes = Vec::new();
        let source = from.open(&described.digest).map_err(|e| of_outside(missing(e)))?;
        let limit = document::MAX_BYTES + 1;
        source.take(limit).read_to_end(&mut bytes).map_err(|e| Error::io("read blob", subject, e))?;
        if bytes.len() as u64 != described.size_bytes || sha256(&bytes) != described.digest {
            let cause = "its content is not what its digest and size say";
            return Err(Error::new(ErrorKind::InvalidArgument, "read image", subject, cause));
        }
        Ok(bytes)
    }

    fn unpack(&self, subject: &str, found: Found) -> Result<Imported> {
        let Config { diff_ids, platform } = document::config(subject, &found.config)?;
        let invalid =
            |cause: String| Err(Error::new(ErrorKind::InvalidArgument, "read image", subject, cause));
        if diff_ids.len() != found.layers.len() {
            return invalid(format!(
                "its configuration tells of {} layers, its manifest of {}",
                diff_ids.len(),
                found.layers.len()
            ));
        }
        if diff_ids.is_empty() {
            return invalid("it has no layers, and so nothing to make snapshots of".to_owned());
        }
        if !platform.runs_on(&self.options.platform) && !platform.os.is_empty() {
            tracing::warn!(%platform, "the image is for another machine");
        }
        let layers: Vec<Layer> =
            found.layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| Layer { blob, diff_id }).collect();
        // Of no use without the blobs that it tells of.
        let manifest = found.manifest.filter(|_| self.options.blobs == Blobs::Kept);
        let labels = [
            (CONFIG, Some(sha256(&found.config).to_string())),
            (MANIFEST, manifest.map(|bytes| sha256(&bytes).to_string())),
            (IMAGE, found.image.clone()),
        ];
        let labels: Labels =
            labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
        // A name that no label can hold is told before there is anything that could have it.
        let labels = check_labels("import", labels)?;
        let unpacked = unpack(self.snapshotter, self.content, &layers, self.options.blobs, self.watcher)?;
        let Some(top) = unpacked.last() else { return invalid("it has no layers".to_owned()) };
        // Also those that it does not have: another image may have had the same layers.
        let paths = [CONFIG, MANIFEST, IMAGE].map(|key| format!("labels.{key}"));
        self.snapshotter.update(&top.name, &labels, &paths)?;
        Ok(Imported { name: top.name.clone(), image: found.image, layers: unpacked })
    }

    /// Imports a root file system, whose digest is known only when it is here.
    fn files(&self, stream: impl Read + Send + 'static, total: Option<u64>) -> Result<Imported> {
        let key = crate::layout::by_this_process("import");
        self.snapshotter.prepare_held(&key, None, Labels::new(), &Asked(self.watcher))?;
        let made = self.files_into(&key, stream, total);
        if !matches!(&made, Ok((_, Made::Now, _)))
            && let Err(error) = self.snapshotter.remove(&key)
        {
            tracing::warn!(key, %error, "a root file system that was not unpacked whole stays until the next cleanup");
        }
        let (diff_id, made, warnings) = made?;
        let name = diff_id.to_string();
        Ok(Imported {
            name: name.clone(),
            image: None,
            layers: vec![Unpacked { name, diff_id, made, warnings }],
        })
    }

    fn is_committed(&self, name: &str) -> bool {
        let is_it = |info: Info| info.kind == SnapshotKind::Committed && info.parent.is_empty();
        self.snapshotter.stat(name).is_ok_and(is_it)
    }

    fn files_into(
        &self,
        key: &str,
        stream: impl Read + Send + 'static,
        total: Option<u64>,
    ) -> Result<(Digest, Made, Vec<String>)> {
        let task = self.watcher.begin("root file system", total);
        let stream = Watched::new(stream, Arc::clone(&task));
        let (applied, ingest) = match self.options.blobs {
            Blobs::Dropped => {
                let layered = self.snapshotter.apply(key, stream, Below::Nothing, &Asked(self.watcher))?;
                (applied_of(layered)?.0, None)
            }
            Blobs::Kept => {
                let reference = crate::layout::by_this_process("import");
                let Begun::Ingest(ingest) = self.content.ingest(&reference, &Expected::default())? else {
                    return Err(Error::new(
                        ErrorKind::Io,
                        "import",
                        quoted(key),
                        "a blob that nobody knows is there",
                    ));
                };
                let ingest = Arc::new(Mutex::new(Some(ingest)));
                let tee = Tee { inner: stream, ingest: Arc::clone(&ingest) };
                let layered = self.snapshotter.apply(key, tee, Below::Nothing, &Asked(self.watcher));
                // Whoever reads ahead may have the reader still.
                let ingest = ingest.lock().take();
                match layered.and_then(applied_of) {
                    Ok((applied, _)) => (applied, ingest),
                    Err(error) => {
                        if let Some(Err(error)) = ingest.map(Ingest::abort) {
                            tracing::warn!(%error, "a blob that is not whole stays until it is old");
                        }
                        return Err(error);
                    }
                }
            }
        };
        if !applied.has_end {
            if let Some(Err(error)) = ingest.map(Ingest::abort) {
                tracing::warn!(%error, "a blob that is not whole stays until it is old");
            }
            let cause = "it has no end: the archive is empty, or was cut off";
            return Err(Error::new(ErrorKind::InvalidArgument, "import", "root file system", cause));
        }
        if let Some(ingest) = ingest {
            let info = ingest.commit()?;
            let media_type = applied.compression.media_type().to_owned();
            self.snapshotter
                .set_blob(key, &Blob { digest: info.digest, media_type, size_bytes: info.size_bytes })?;
        }
        let name = applied.diff_id.to_string();
        let labels = Labels::from([(super::unpack::DIFF_ID.to_owned(), name.clone())]);
        let made = match self.snapshotter.commit(&name, key, labels, None, &Asked(self.watcher)) {
            Ok(()) => Made::Now,
            Err(e) if e.kind() == ErrorKind::AlreadyExists && self.is_committed(&name) => Made::Before,
            Err(e) => return Err(e),
        };
        task.finish(if made == Made::Before { "there already" } else { "" });
        Ok((applied.diff_id, made, applied.applied.warnings))
    }
}

/// What an image tells of and does not hold is a fault of the image.
fn missing(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound { error.as_kind(ErrorKind::InvalidArgument) } else { error }
}

/// What was applied; the lowest layer never needs another one.
fn applied_of<R>(layered: Layered<R>) -> Result<(AppliedLayer, R)> {
    match layered {
        Layered::Applied(applied, reader) => Ok((applied, reader)),
        Layered::NeedsLower => {
            Err(Error::new(ErrorKind::InvalidArgument, "import", "", "it is not whole without other layers"))
        }
    }
}

/// A reader that keeps what is read in the content store, until its ingest is taken.
struct Tee<R> {
    inner: R,
    ingest: Arc<Mutex<Option<Box<dyn Ingest>>>>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let came = self.inner.read(buffer)?;
        match self.ingest.lock().as_mut() {
            Some(ingest) => ingest.write_all(&buffer[..came])?,
            None => return Err(io::Error::other("nobody wants it any more")),
        }
        Ok(came)
    }
}

/// A reader that ends when the caller gives up.
struct Guarded<'a, R> {
    inner: R,
    watcher: &'a dyn Watcher,
}

impl<R: Read> Read for Guarded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        go_on(self.watcher, "import")?;
        self.inner.read(buffer)
    }
}

/// The first bytes of a stream.
fn glance(stream: &mut dyn Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(GLANCE_BYTES);
    stream.take(GLANCE_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// True if these first bytes of an archive, perhaps compressed, are those of an archive of images. What they cut off is no
/// fault of the archive.
fn begins_image(bytes: &[u8]) -> bool {
    let Ok(stream) = decoder(std::io::Cursor::new(bytes.to_vec())) else { return false };
    let mut reader = Reader::new(stream, Limits::default());
    while let Ok(Some(entry)) = reader.next() {
        match sign(&entry.path) {
            Sign::Image => return true,
            Sign::Files => return false,
            Sign::Neither => {}
        }
    }
    false
}

//! Layers in and out: the two calls of `containerd.services.diff.v1`.
//!
//! Blobs are read from and written to the containerd that is served, in the namespace of the caller. What happens to a
//! snapshot is decided by [`Snapshotter::apply_to`] and [`Snapshotter::pack_between`].
//!
//! What is not for us is answered with Unimplemented, and containerd asks the next differ: layers of other media types,
//! or with anything to process them by; several mounts. Every other failure is final.

use super::content::{BlobWriter, Containerd, Session, Stored, UNCOMPRESSED, Upload, pipe};
use super::convert;
use super::metrics::Metrics;
use super::proto::containerd::services::diff::v1 as wire;
use super::proto::containerd::types::Descriptor;
use super::service::{Call, block};
use super::status::status;
use crate::backend::Progress;
use crate::compress::Compression;
use crate::diff::DiffOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{AppliedLayer, Durability, Layered, PackedLayer, Snapshotter};
use crate::types::{Mount, quoted};
use std::collections::HashMap;
use std::io::{Cursor, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use wire::diff_server::Diff;

/// Layers that are worked on at once: each keeps a processor busy, and a second one with digests.
const MAX_LAYERS: usize = 8;

/// Threads for blocking work that a runtime needs for this, besides those of other services.
pub const MAX_BLOCKING: usize = MAX_LAYERS + 1;

/// What a decoder wants to see before it says what the rest is.
const FIRST_BYTES: u64 = 4096;

/// How long a layer that makes no sense alone waits for those below to be committed.
const PARENT_PATIENCE: Duration = Duration::from_secs(600);

/// How often it is looked whether they are.
const PARENT_PAUSE: Duration = Duration::from_millis(200);

/// The diff service of one store.
#[derive(Clone)]
pub struct Layers {
    snapshotter: Arc<Snapshotter>,
    containerd: Option<Containerd>,
    places: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Layers {
    /// Moves layers between the snapshots of a store and the content of a containerd; `metrics` counts the
    /// calls.
    pub fn new(
        snapshotter: Arc<Snapshotter>,
        containerd: Option<Containerd>,
        metrics: Arc<Metrics>,
    ) -> Layers {
        let (places, questions) = (Arc::new(Semaphore::new(MAX_LAYERS)), Arc::new(Semaphore::new(1)));
        Layers { snapshotter, containerd, places, questions, metrics }
    }

    fn session(&self, operation: &'static str, headers: &MetadataMap) -> Result<Session> {
        let containerd = self.containerd.as_ref().ok_or_else(|| {
            let cause =
                "plywood does not know whose content to use: start it with --containerd-address SOCKET";
            Error::new(ErrorKind::Unsupported, operation, "", cause)
        })?;
        containerd.on_behalf(headers).map_err(|e| e.during(operation, ""))
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshotter, &dyn Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        block(&self.snapshotter, &self.places, work).await
    }

    async fn apply_layer(&self, headers: &MetadataMap, request: wire::ApplyRequest) -> Result<Descriptor> {
        let layer = request.diff.unwrap_or_default();
        let session = self.session("apply", headers)?;
        check_layer(&layer, request.payloads.len())?;
        let mounts: Arc<[Mount]> = convert::mounts_of("apply", request.mounts)?.into();
        if mounts.is_empty() {
            let cause = "the request says not where to: mounts are missing";
            return Err(Error::new(ErrorKind::InvalidArgument, "apply", quoted(&layer.digest), cause));
        }
        let durability = if request.sync_fs { Durability::Synced } else { Durability::AtCommit };
        let (blob, _pump) = session.read(&layer.digest).await?;
        let onto = Arc::clone(&mounts);
        let work = move |s: &Snapshotter, progress: &dyn Progress| {
            apart(s.apply_to(&onto, begun(blob)?, durability, progress))
        };
        let applied = self.work(work).await?;
        let applied = match applied {
            Some(applied) => applied,
            None => {
                let parent = self.parent_of(&mounts).await?;
                tracing::info!(
                    digest = layer.digest,
                    parent = quoted(&parent),
                    "a layer is applied on top of its parent"
                );
                let (blob, _pump) = session.read(&layer.digest).await?;
                let work = move |s: &Snapshotter, progress: &dyn Progress| {
                    apart(s.apply_again(&mounts, &parent, begun(blob)?, durability, progress))
                };
                self.work(work).await?.ok_or_else(|| {
                    let cause = "it could not be applied on top of its parent";
                    Error::new(ErrorKind::Io, "apply", quoted(&layer.digest), cause)
                })?
            }
        };
        let size = i64::try_from(applied.size_bytes).unwrap_or(i64::MAX);
        Ok(Descriptor {
            media_type: Compression::None.media_type().to_owned(),
            digest: applied.diff_id.to_string(),
            size,
            annotations: HashMap::new(),
        })
    }

    /// Waits for the snapshot that the one of these mounts will be put on. No place is taken meanwhile: it may be needed
    /// to make that one.
    async fn parent_of(&self, mounts: &Arc<[Mount]>) -> Result<String> {
        let patience = tokio::time::Instant::now() + PARENT_PATIENCE;
        loop {
            let of = Arc::clone(mounts);
            let found = block(&self.snapshotter, &self.questions, move |s, _| s.future_parent(&of)).await?;
            if let Some(parent) = found {
                return Ok(parent);
            }
            if tokio::time::Instant::now() >= patience {
                let cause = format!(
                    "the layer makes no sense without those below, and they were not committed in {} seconds: unpack \
                     the layers of this image one after the other",
                    PARENT_PATIENCE.as_secs()
                );
                return Err(Error::new(ErrorKind::FailedPrecondition, "apply", "", cause));
            }
            tokio::time::sleep(PARENT_PAUSE).await;
        }
    }

    async fn pack_layer(&self, headers: &MetadataMap, request: wire::DiffRequest) -> Result<Descriptor> {
        let mut session = self.session("diff", headers)?;
        let media_type = Some(request.media_type).filter(|media_type| !media_type.is_empty());
        let media_type = media_type.unwrap_or_else(|| Compression::Gzip.media_type().to_owned());
        let known = Compression::ALL.into_iter().find(|known| known.media_type() == media_type);
        let compression = known.ok_or_else(|| {
            let cause = "no layer of this media type is made here";
            Error::new(ErrorKind::Unsupported, "diff", quoted(&media_type), cause)
        })?;
        let left = convert::mounts_of("diff", request.left)?;
        let right = convert::mounts_of("diff", request.right)?;
        let options = DiffOptions {
            source_date_epoch: request.source_date_epoch.map(|time| time.seconds),
            ..DiffOptions::default()
        };
        session.secure().await?;
        let own = request.r#ref.is_empty();
        let reference = if own { crate::layout::by_this_process("plywood-diff") } else { request.r#ref };
        let mut unfinished =
            Unfinished { session: session.clone(), reference: own.then(|| reference.clone()) };
        let mut upload = session.write(&reference).await?;
        let (writer, pieces) = pipe();
        let pack =
            self.work(move |s, progress| pack(s, (&left, &right), writer, compression, &options, progress));
        let (fed, packed) = tokio::join!(feed(&mut upload, pieces), pack);
        // If nobody took what was packed, that is the reason.
        fed?;
        let packed = packed?;
        let mut labels = request.labels;
        let uncompressed = packed.diff_id.to_string();
        if compression != Compression::None {
            labels.entry(UNCOMPRESSED.to_owned()).or_insert_with(|| uncompressed.clone());
        }
        let stored = upload.commit(&packed.digest, labels).await?;
        unfinished.reference = None;
        let digest = packed.digest.to_string();
        if stored == Stored::Already {
            let label = (compression != Compression::None).then_some((UNCOMPRESSED, uncompressed.as_str()));
            session.adopt(&digest, label).await?;
        }
        let size = i64::try_from(packed.size_bytes).unwrap_or(i64::MAX);
        Ok(Descriptor { media_type, digest, size, annotations: HashMap::new() })
    }
}

/// A blob whose first bytes are there: until then nothing is known of it, and the snapshot is not kept from others.
fn begun<R: Read>(mut blob: R) -> Result<impl Read + use<R>> {
    let mut first = Vec::new();
    let read = blob.by_ref().take(FIRST_BYTES).read_to_end(&mut first);
    read.map_err(|e| Error::io("read blob", "", e))?;
    Ok(Cursor::new(first).chain(blob))
}

/// The reader is not needed any more.
fn apart<R>(layered: Result<Layered<R>>) -> Result<Option<AppliedLayer>> {
    layered.map(|layered| match layered {
        Layered::Applied(applied, _) => Some(applied),
        Layered::NeedsLower => None,
    })
}

async fn feed(upload: &mut Upload, pieces: tokio::sync::mpsc::Receiver<Vec<u8>>) -> Result<()> {
    upload.feed(pieces).await
}

fn pack(
    snapshotter: &Snapshotter,
    (left, right): (&[Mount], &[Mount]),
    writer: BlobWriter,
    compression: Compression,
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<PackedLayer> {
    let (packed, mut writer) =
        snapshotter.pack_between(left, right, writer, compression, options, progress)?;
    writer.flush().map_err(|e| Error::io("diff", "", e))?;
    Ok(packed)
}

/// A reference of our own, given up with this value: also if the caller goes away.
struct Unfinished {
    session: Session,
    reference: Option<String>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(reference) = self.reference.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let session = self.session.clone();
            runtime.spawn(async move { session.abort(&reference).await });
        }
    }
}

/// Refuses layers that somebody else may know how to apply.
fn check_layer(layer: &Descriptor, payloads: usize) -> Result<()> {
    let unsupported = |cause: &str| {
        let subject = format!("{} {}", quoted(&layer.media_type), quoted(&layer.digest));
        Err(Error::new(ErrorKind::Unsupported, "apply", subject, cause))
    };
    if payloads > 0 {
        return unsupported("layers are not processed by anything here before they are unpacked");
    }
    match Compression::of_media_type(&layer.media_type) {
        Some(_) => Ok(()),
        None => unsupported("layers of this media type are not unpacked here"),
    }
}

#[tonic::async_trait]
impl Diff for Layers {
    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> std::result::Result<Response<wire::ApplyResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let digest = request.diff.as_ref().map_or("", |layer| &layer.digest);
        let call = Call::begin(&self.metrics, "apply", digest);
        let applied = self.apply_layer(&headers, request).await;
        call.ended(&applied);
        let applied = applied.map_err(|error| status(&error))?;
        Ok(Response::new(wire::ApplyResponse { applied: Some(applied) }))
    }

    async fn diff(
        &self,
        request: Request<wire::DiffRequest>,
    ) -> std::result::Result<Response<wire::DiffResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = Call::begin(&self.metrics, "diff", &request.r#ref);
        let packed = self.pack_layer(&headers, request).await;
        call.ended(&packed);
        let packed = packed.map_err(|error| status(&error))?;
        Ok(Response::new(wire::DiffResponse { diff: Some(packed) }))
    }
}

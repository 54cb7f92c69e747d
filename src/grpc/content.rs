//! The content of the containerd that is served: blobs are read from it and written to it, and leases keep what was
//! written until its caller has seen it.
//!
//! A blob passes through a few pieces on its way between a stream of messages and a thread that blocks; whoever is slow
//! makes the other one wait. Nothing is kept of a caller who has gone: the stream ends with the future that drives it.
//!
//! # Source
//! `services/content/contentserver` of containerd for what a writer may say when.

use super::proto::containerd::services::content::v1 as wire;
use super::proto::containerd::services::leases::v1 as leases;
use super::server::MAX_MESSAGE_BYTES;
use super::status::error;
use crate::error::{Error, ErrorKind, Result};
use crate::store::Digest;
use crate::types::{Timestamp, quoted};
use leases::leases_client::LeasesClient;
use prost::bytes::{Buf, Bytes};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use wire::content_client::ContentClient;

/// Bytes of a piece that is written: containerd takes 8 MiB, and less is not felt.
const PIECE_BYTES: usize = 1 << 20;

/// Pieces that may be on the way.
const PIECES: usize = 2;

/// How long somebody else may hold the reference that a blob is to be written under.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// How long containerd may take to answer on its socket.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a lease lives: long enough for whoever asked to refer to the blob.
const LEASE_SECS: i64 = 3600;

const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";

/// The label of a compressed layer: its digest without compression.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// The way to a containerd. Nobody is called before something is asked, and a containerd that was started again is found.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
}

impl Containerd {
    /// The one that listens at this path. To be called in a runtime.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that is not absolute, or that no address can carry.
    pub fn at(path: &Path) -> Result<Containerd> {
        let invalid = |cause: &str| {
            let subject = path.display().to_string();
            Error::new(ErrorKind::InvalidArgument, "reach containerd", subject, cause)
        };
        let text = path.to_str().filter(|text| text.starts_with('/'));
        let text = text.ok_or_else(|| invalid("the path of its socket must be absolute and in UTF-8"))?;
        let endpoint = Endpoint::from_shared(format!("unix://{text}"));
        let endpoint =
            endpoint.map_err(|_| invalid("the path of its socket has letters that no address can carry"))?;
        Ok(Containerd { channel: endpoint.connect_timeout(CONNECT).connect_lazy() })
    }

    /// Speaks to it on behalf of whoever sent these headers.
    ///
    /// # Errors
    /// `FailedPrecondition` if they name no namespace.
    pub(super) fn on_behalf(&self, headers: &MetadataMap) -> Result<Session> {
        let namespace = headers.get(NAMESPACE).cloned().ok_or_else(|| {
            let cause = format!("the request has no header {NAMESPACE}: content belongs to a namespace");
            Error::new(ErrorKind::FailedPrecondition, "reach containerd", "", cause)
        })?;
        let contents = ContentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let leases = LeasesClient::new(self.channel.clone());
        Ok(Session { namespace, lease: headers.get(LEASE).cloned(), contents, leases })
    }
}

/// What one caller asks of containerd.
#[derive(Clone)]
pub(super) struct Session {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
    contents: ContentClient<Channel>,
    leases: LeasesClient<Channel>,
}

impl Session {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE, self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE, lease.clone());
        }
        request
    }

    /// What is known of a blob.
    ///
    /// # Errors
    /// `NotFound`; those of containerd.
    pub async fn info(&self, digest: &str) -> Result<wire::Info> {
        let request = self.request(wire::InfoRequest { digest: digest.to_owned() });
        let answer =
            self.contents.clone().info(request).await.map_err(|e| error("look at content", digest, &e))?;
        answer
            .into_inner()
            .info
            .ok_or_else(|| unclear("look at content", digest, "it answered without the blob"))
    }

    /// Begins to read a blob from its beginning. What is read ends with the second value.
    ///
    /// # Errors
    /// `NotFound`; those of containerd.
    pub async fn read(&self, digest: &str) -> Result<(BlobReader, Pump)> {
        let info = self.info(digest).await?;
        let size =
            u64::try_from(info.size).map_err(|_| unclear("read content", digest, "its size is negative"))?;
        let message = wire::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let stream = self.contents.clone().read(self.request(message)).await;
        let stream = stream.map_err(|e| error("read content", digest, &e))?.into_inner();
        let (pieces, taken) = mpsc::channel(PIECES);
        let pump = Pump(tokio::spawn(pump(stream, size, digest.to_owned(), pieces)));
        Ok((BlobReader { pieces: taken, present: Bytes::new(), ended: false }, pump))
    }

    /// Sees to it that what is written is not collected before its caller refers to it: by the lease that came with the
    /// request, else by one of our own, which is left to expire. Deleting it would open the gap again.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn secure(&mut self) -> Result<()> {
        if self.lease.is_some() {
            return Ok(());
        }
        let now = Timestamp::now();
        let expires = Timestamp { secs: now.secs.saturating_add(LEASE_SECS), nanos: now.nanos };
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let request = self.request(leases::CreateRequest { id: String::new(), labels });
        let made = self.leases.create(request).await.map_err(|e| error("make a lease", "", &e))?;
        let id = made.into_inner().lease.map(|lease| lease.id).filter(|id| !id.is_empty());
        let lease = id.and_then(|id| id.parse().ok());
        self.lease = Some(lease.ok_or_else(|| unclear("make a lease", "", "it answered without the lease"))?);
        Ok(())
    }

    /// Begins to write a blob under a reference, from its beginning, whatever was written under it before.
    ///
    /// # Errors
    /// `Unavailable` if somebody else holds the reference; those of containerd.
    pub async fn write(&self, reference: &str) -> Result<Upload> {
        let patience = tokio::time::Instant::now() + LOCK_PATIENCE;
        let mut pause = Duration::from_millis(50);
        loop {
            match self.begin(reference).await {
                Err(e) if e.kind() == ErrorKind::Unavailable && tokio::time::Instant::now() < patience => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                other => return other,
            }
        }
    }

    async fn begin(&self, reference: &str) -> Result<Upload> {
        let failed = |e: &Status| error("write content", reference, e);
        let (requests, sent) = mpsc::channel(1);
        let first = wire::WriteContentRequest {
            action: wire::WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            ..wire::WriteContentRequest::default()
        };
        // It answers nothing, not even that it listens, before it has the first request.
        let sending = requests.send(first).await;
        sending.map_err(|_| unclear("write content", reference, "the stream broke"))?;
        let stream = self.contents.clone().write(self.request(ReceiverStream::new(sent))).await;
        let mut answers = stream.map_err(|e| failed(&e))?.into_inner();
        let answer = answers.message().await.map_err(|e| failed(&e))?;
        let answer = answer.ok_or_else(|| unclear("write content", reference, "the stream ended"))?;
        let mut upload = Upload { reference: reference.to_owned(), requests, answers, offset: 0 };
        if answer.offset != 0 {
            // What an earlier one has left: whether it is the same cannot be known. Offset 0 truncates.
            upload.put(wire::WriteAction::Write, Vec::new()).await?;
        }
        Ok(upload)
    }

    /// Gives up what was written under a reference.
    pub async fn abort(&self, reference: &str) {
        let request = self.request(wire::AbortRequest { r#ref: reference.to_owned() });
        match self.contents.clone().abort(request).await {
            Err(e) if e.code() != tonic::Code::NotFound => {
                tracing::warn!(reference = quoted(reference), error = %e, "what was written of a blob stays at containerd");
            }
            _ => {}
        }
    }

    /// Sees to it that a blob that was there already is kept by the lease, and has this label.
    ///
    /// # Errors
    /// `NotFound` if it has gone meanwhile; those of containerd.
    pub async fn adopt(&self, digest: &str, label: Option<(&str, &str)>) -> Result<()> {
        if let Some(lease) = self.lease.as_ref().and_then(|lease| lease.to_str().ok()) {
            let resource = leases::Resource { id: digest.to_owned(), r#type: "content".to_owned() };
            let message = leases::AddResourceRequest { id: lease.to_owned(), resource: Some(resource) };
            let added = self.leases.clone().add_resource(self.request(message)).await;
            added.map_err(|e| error("keep content", digest, &e))?;
        }
        let info = self.info(digest).await?;
        let Some((key, value)) = label.filter(|(key, _)| !info.labels.contains_key(*key)) else {
            return Ok(());
        };
        let message = wire::UpdateRequest {
            info: Some(wire::Info {
                digest: digest.to_owned(),
                labels: HashMap::from([(key.to_owned(), value.to_owned())]),
                ..wire::Info::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: vec![format!("labels.{key}")] }),
        };
        let updated = self.contents.clone().update(self.request(message)).await;
        updated.map(drop).map_err(|e| error("label content", digest, &e))
    }
}

/// An answer of containerd that makes no sense.
fn unclear(operation: &'static str, subject: &str, cause: &str) -> Error {
    let subject = if subject.is_empty() { String::new() } else { quoted(subject) };
    Error::new(ErrorKind::Io, operation, subject, format!("containerd: {cause}"))
}

/// A stream that is being read; it ends with this value.
pub(super) struct Pump(JoinHandle<()>);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A piece of a blob. The end is told, so that a stream that was cut is not taken for one that ended.
enum Piece {
    Data(Bytes),
    Failed(Error),
    End,
}

/// Moves messages to whoever reads, and checks that together they are the blob.
async fn pump(
    mut stream: Streaming<wire::ReadContentResponse>,
    size_bytes: u64,
    digest: String,
    pieces: mpsc::Sender<Piece>,
) {
    let mut offset = 0;
    loop {
        let piece = match stream.message().await {
            Ok(Some(message)) => {
                let length = message.data.len() as u64;
                let fits = u64::try_from(message.offset).is_ok_and(|at| at == offset);
                if !fits || length > size_bytes - offset {
                    Piece::Failed(unclear("read content", &digest, "it sent other pieces than the blob has"))
                } else {
                    offset += length;
                    Piece::Data(message.data)
                }
            }
            Ok(None) if offset == size_bytes => Piece::End,
            Ok(None) => Piece::Failed(unclear("read content", &digest, "the blob ended early")),
            Err(e) => Piece::Failed(error("read content", &digest, &e)),
        };
        let is_last = !matches!(piece, Piece::Data(_));
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

/// A blob, for a thread that may block.
pub(super) struct BlobReader {
    pieces: mpsc::Receiver<Piece>,
    present: Bytes,
    ended: bool,
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.present.is_empty() && !self.ended && !out.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.present = bytes,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Failed(failed)) => return Err(failed.into()),
                None => {
                    let cause = "the caller gave up";
                    return Err(Error::new(ErrorKind::Cancelled, "read content", "", cause).into());
                }
            }
        }
        let n = (&self.present[..]).read(out)?;
        self.present.advance(n);
        Ok(n)
    }
}

/// A blob that is being written, for a thread that may block.
pub(super) struct BlobWriter {
    pieces: mpsc::Sender<Vec<u8>>,
    present: Vec<u8>,
}

/// A way for a blob from a thread that blocks to [`Upload::feed`].
pub(super) fn pipe() -> (BlobWriter, mpsc::Receiver<Vec<u8>>) {
    let (pieces, taken) = mpsc::channel(PIECES);
    (BlobWriter { pieces, present: Vec::new() }, taken)
}

impl BlobWriter {
    fn hand_over(&mut self) -> io::Result<()> {
        if self.present.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(&mut self.present);
        self.pieces.blocking_send(full).map_err(|_| {
            let cause = "nobody takes it any more";
            Error::new(ErrorKind::Cancelled, "write content", "", cause).into()
        })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE_BYTES - self.present.len());
        if self.present.capacity() == 0 {
            self.present.reserve_exact(PIECE_BYTES);
        }
        self.present.extend_from_slice(&bytes[..n]);
        if self.present.len() == PIECE_BYTES {
            self.hand_over()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()
    }
}

/// What came of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// The blob is there.
    New,
    /// It was there before.
    Already,
}

/// A blob on its way to containerd, whose reference is held. One request, one answer.
pub(super) struct Upload {
    reference: String,
    requests: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    offset: u64,
}

impl Upload {
    /// Writes all pieces that come.
    ///
    /// # Errors
    /// Those of containerd.
    pub async fn feed(&mut self, mut pieces: mpsc::Receiver<Vec<u8>>) -> Result<()> {
        while let Some(piece) = pieces.recv().await {
            self.put(wire::WriteAction::Write, piece).await?;
        }
        Ok(())
    }

    async fn put(&mut self, action: wire::WriteAction, data: Vec<u8>) -> Result<()> {
        let length = data.len() as u64;
        let request = wire::WriteContentRequest {
            action: action.into(),
            offset: self.wire_offset()?,
            data: data.into(),
            ..wire::WriteContentRequest::default()
        };
        let answer = self.exchange(request).await.map_err(|e| error("write content", &self.reference, &e))?;
        self.offset += length;
        if u64::try_from(answer.offset).is_ok_and(|at| at == self.offset) {
            return Ok(());
        }
        let cause =
            format!("it says that {} bytes are written, and {} were sent", answer.offset, self.offset);
        Err(unclear("write content", &self.reference, &cause))
    }

    fn wire_offset(&self) -> Result<i64> {
        i64::try_from(self.offset)
            .map_err(|_| unclear("write content", &self.reference, "the blob is too large"))
    }

    async fn exchange(
        &mut self,
        request: wire::WriteContentRequest,
    ) -> std::result::Result<wire::WriteContentResponse, Status> {
        // If it has ended the stream, the reason is in its answer.
        let _ = self.requests.send(request).await;
        let answer = self.answers.message().await?;
        answer.ok_or_else(|| Status::unknown("the stream ended without an answer"))
    }

    /// Makes a blob of all that was written.
    ///
    /// # Errors
    /// Those of containerd, which checks size and digest.
    pub async fn commit(mut self, digest: &Digest, labels: HashMap<String, String>) -> Result<Stored> {
        let offset = self.wire_offset()?;
        let request = wire::WriteContentRequest {
            action: wire::WriteAction::Commit.into(),
            total: offset,
            expected: digest.to_string(),
            // Another one would truncate, or be refused.
            offset,
            labels,
            ..wire::WriteContentRequest::default()
        };
        match self.exchange(request).await {
            Ok(answer) if answer.digest.is_empty() || answer.digest == digest.as_str() => Ok(Stored::New),
            Ok(answer) => {
                let cause = format!("it has made {} of it", quoted(&answer.digest));
                Err(unclear("write content", digest.as_str(), &cause))
            }
            Err(e) if e.code() == tonic::Code::AlreadyExists => Ok(Stored::Already),
            Err(e) => Err(error("write content", digest.as_str(), &e)),
        }
    }
}

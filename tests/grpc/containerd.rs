//! What a containerd does for a differ, in this process: content and leases, with the oddities that a test asks for.

use parking_lot::Mutex;
use plywood::grpc::proto::containerd::services::content::v1 as content;
use plywood::grpc::proto::containerd::services::leases::v1 as leases;
use plywood::store::Digest;
use prost::bytes::Bytes;
use sha2::Digest as _;
use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// How it misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Odd {
    /// Not at all.
    #[default]
    No,
    /// A blob ends early, and the stream as if nothing had happened.
    CutShort,
    /// A blob does not end.
    TooLong,
    /// A blob stops in the middle, and nothing comes any more.
    Stalls,
    /// The stream breaks.
    Breaks,
    /// The third piece that is written is refused.
    DiskFull,
    /// The first writers find their reference locked.
    Locked(u32),
}

/// A blob with its labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blob {
    pub data: Vec<u8>,
    pub labels: HashMap<String, String>,
}

#[derive(Debug, Default)]
pub struct State {
    pub blobs: HashMap<String, Blob>,
    /// What is written of references.
    pub ingests: HashMap<String, Vec<u8>>,
    /// Leases by their id.
    pub leases: HashMap<String, HashMap<String, String>>,
    /// Lease and digest.
    pub kept: Vec<(String, String)>,
    /// Namespace and lease of each call, with its name.
    pub calls: Vec<(&'static str, String, String)>,
    pub largest_piece: usize,
    pub odd: Odd,
}

/// The double.
#[derive(Clone, Default)]
pub struct Containerd(pub Arc<Mutex<State>>);

impl Containerd {
    /// Serves on a socket in a directory, in the present runtime.
    pub fn serve(&self, dir: &Path) -> PathBuf {
        let path = dir.join("containerd.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        let content =
            content::content_server::ContentServer::new(self.clone()).max_decoding_message_size(16 << 20);
        let leases = leases::leases_server::LeasesServer::new(self.clone());
        let (door, connections) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if door.send(Ok::<_, std::io::Error>(stream)).await.is_err() {
                    return;
                }
            }
        });
        let services = Services { content, leases };
        let incoming = ReceiverStream::new(connections);
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .serve_with_incoming(services, incoming)
                .await
                .expect("it serves");
        });
        path
    }

    /// Adds a blob; its digest.
    pub fn add(&self, data: Vec<u8>) -> String {
        let digest = digest(&data);
        self.0.lock().blobs.insert(digest.clone(), Blob { data, ..Blob::default() });
        digest
    }

    fn note(&self, call: &'static str, headers: &MetadataMap) -> Result<(), Status> {
        let header =
            |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (namespace, lease) = (header("containerd-namespace"), header("containerd-lease"));
        if namespace.is_empty() {
            return Err(Status::failed_precondition("namespace is required"));
        }
        self.0.lock().calls.push((call, namespace, lease));
        Ok(())
    }
}

pub fn digest(data: &[u8]) -> String {
    Digest::of_sha256(sha2::Sha256::digest(data).into()).to_string()
}

#[derive(Clone)]
struct Services {
    content: content::content_server::ContentServer<Containerd>,
    leases: leases::leases_server::LeasesServer<Containerd>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().contains(".leases.") {
            true => self.leases.call(request),
            false => self.content.call(request),
        }
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl content::content_server::Content for Containerd {
    async fn info(
        &self,
        request: Request<content::InfoRequest>,
    ) -> Result<Response<content::InfoResponse>, Status> {
        self.note("info", request.metadata())?;
        let digest = request.into_inner().digest;
        let state = self.0.lock();
        let blob = state.blobs.get(&digest).ok_or_else(|| Status::not_found("no such content"))?;
        let size = i64::try_from(blob.data.len()).expect("a small blob");
        let info = content::Info { digest, size, labels: blob.labels.clone(), ..content::Info::default() };
        Ok(Response::new(content::InfoResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<content::UpdateRequest>,
    ) -> Result<Response<content::UpdateResponse>, Status> {
        self.note("update", request.metadata())?;
        let request = request.into_inner();
        let info = request.info.expect("an info");
        let paths = request.update_mask.expect("a mask").paths;
        let mut state = self.0.lock();
        let blob = state.blobs.get_mut(&info.digest).ok_or_else(|| Status::not_found("no such content"))?;
        for (key, value) in &info.labels {
            assert!(paths.contains(&format!("labels.{key}")), "{paths:?}");
            blob.labels.insert(key.clone(), value.clone());
        }
        Ok(Response::new(content::UpdateResponse { info: Some(info) }))
    }

    type ListStream = Boxed<content::ListContentResponse>;

    async fn list(
        &self,
        _: Request<content::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn delete(&self, _: Request<content::DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    type ReadStream = Boxed<content::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<content::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.note("read", request.metadata())?;
        let request = request.into_inner();
        let (blob, odd) = {
            let state = self.0.lock();
            let blob =
                state.blobs.get(&request.digest).ok_or_else(|| Status::not_found("no such content"))?;
            (blob.data.clone(), state.odd)
        };
        let (pieces, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let half = blob.len() / 2;
            let end = if odd == Odd::No || odd == Odd::TooLong { blob.len() } else { half };
            let mut at = 0;
            while at < end {
                let next = (at + 10_000).min(end);
                let data = Bytes::copy_from_slice(&blob[at..next]);
                let offset = i64::try_from(at).expect("a small blob");
                if pieces.send(Ok(content::ReadContentResponse { offset, data })).await.is_err() {
                    return;
                }
                at = next;
            }
            match odd {
                Odd::Breaks => drop(pieces.send(Err(Status::data_loss("the disk is bad"))).await),
                Odd::Stalls => pieces.closed().await,
                Odd::TooLong => {
                    let offset = i64::try_from(at).expect("a small blob");
                    let data = Bytes::from_static(b"more");
                    let _ = pieces.send(Ok(content::ReadContentResponse { offset, data })).await;
                }
                _ => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn status(
        &self,
        _: Request<content::StatusRequest>,
    ) -> Result<Response<content::StatusResponse>, Status> {
        Err(Status::unimplemented("status"))
    }

    async fn list_statuses(
        &self,
        _: Request<content::ListStatusesRequest>,
    ) -> Result<Response<content::ListStatusesResponse>, Status> {
        Err(Status::unimplemented("list statuses"))
    }

    type WriteStream = Boxed<content::WriteContentResponse>;

    /// As containerd does: one answer for each request, none before the first.
    async fn write(
        &self,
        request: Request<Streaming<content::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        self.note("write", request.metadata())?;
        let mut requests = request.into_inner();
        if let Odd::Locked(times) = &mut self.0.lock().odd
            && *times > 0
        {
            *times -= 1;
            return Err(Status::unavailable("ref locked for 1s: unavailable"));
        }
        let first = requests.message().await?.ok_or_else(|| Status::invalid_argument("no request"))?;
        let reference = first.r#ref.clone();
        if reference.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference"));
        }
        let (answers, stream) = mpsc::channel(1);
        let double = self.clone();
        tokio::spawn(async move {
            let mut next = Some(first);
            let mut writes = 0;
            while let Some(request) = next {
                let is_commit = request.action() == content::WriteAction::Commit;
                writes += u32::from(request.action() == content::WriteAction::Write);
                let answer = double.answer(&reference, &request, writes);
                let is_last = answer.is_err() || is_commit;
                if answers.send(answer).await.is_err() || is_last {
                    return;
                }
                next = requests.message().await.ok().flatten();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn abort(&self, request: Request<content::AbortRequest>) -> Result<Response<()>, Status> {
        self.note("abort", request.metadata())?;
        let reference = request.into_inner().r#ref;
        let gone = self.0.lock().ingests.remove(&reference);
        gone.map(|_| Response::new(())).ok_or_else(|| Status::not_found("no such reference"))
    }
}

impl Containerd {
    fn answer(
        &self,
        reference: &str,
        request: &content::WriteContentRequest,
        writes: u32,
    ) -> Result<content::WriteContentResponse, Status> {
        let mut state = self.0.lock();
        let action = request.action();
        if !request.expected.is_empty() && state.blobs.contains_key(&request.expected) {
            state.ingests.remove(reference);
            return Err(Status::already_exists("blob with expected digest exists"));
        }
        state.largest_piece = state.largest_piece.max(request.data.len());
        let odd = state.odd;
        let present = state.ingests.entry(reference.to_owned()).or_default();
        if action != content::WriteAction::Stat {
            let at = usize::try_from(request.offset).expect("an offset");
            if at > 0 && at != present.len() {
                return Err(Status::out_of_range("write must occur at current offset"));
            }
            present.truncate(at);
            if odd == Odd::DiskFull && writes == 3 {
                return Err(Status::resource_exhausted("no space left on device"));
            }
            present.extend_from_slice(&request.data);
        }
        let answer = content::WriteContentResponse {
            action: request.action,
            offset: i64::try_from(present.len()).expect("a small blob"),
            digest: digest(present),
            ..content::WriteContentResponse::default()
        };
        if action == content::WriteAction::Commit {
            let data = state.ingests.remove(reference).expect("it is there");
            if request.total != answer.offset || request.expected != answer.digest {
                return Err(Status::failed_precondition("unexpected commit size or digest"));
            }
            state.blobs.insert(answer.digest.clone(), Blob { data, labels: request.labels.clone() });
        }
        Ok(answer)
    }
}

#[tonic::async_trait]
impl leases::leases_server::Leases for Containerd {
    async fn create(
        &self,
        request: Request<leases::CreateRequest>,
    ) -> Result<Response<leases::CreateResponse>, Status> {
        self.note("lease", request.metadata())?;
        let labels = request.into_inner().labels;
        let mut state = self.0.lock();
        let id = format!("lease-{}", state.leases.len());
        state.leases.insert(id.clone(), labels.clone());
        let lease = leases::Lease { id, labels, created_at: None };
        Ok(Response::new(leases::CreateResponse { lease: Some(lease) }))
    }

    async fn add_resource(
        &self,
        request: Request<leases::AddResourceRequest>,
    ) -> Result<Response<()>, Status> {
        self.note("keep", request.metadata())?;
        let request = request.into_inner();
        let resource = request.resource.expect("a resource");
        assert_eq!(resource.r#type, "content");
        self.0.lock().kept.push((request.id, resource.id));
        Ok(Response::new(()))
    }

    async fn delete(&self, _: Request<leases::DeleteRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn list(&self, _: Request<leases::ListRequest>) -> Result<Response<leases::ListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn delete_resource(
        &self,
        _: Request<leases::DeleteResourceRequest>,
    ) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete resource"))
    }

    async fn list_resources(
        &self,
        _: Request<leases::ListResourcesRequest>,
    ) -> Result<Response<leases::ListResourcesResponse>, Status> {
        Err(Status::unimplemented("list resources"))
    }
}

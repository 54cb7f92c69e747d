//! The ten calls of `containerd.services.snapshots.v1`.
//!
//! Each unpacks, calls the snapshotter in a thread for blocking work, and packs. A caller who goes away is noticed: the
//! work is told to give up. How much goes on at once is bounded; what is more waits. The name of the snapshotter in a
//! request is not looked at, and neither are headers: keys carry the namespace.

use super::convert;
use super::listen::Peer;
use super::metrics::Metrics;
use super::proto::containerd::services::snapshots::v1 as wire;
use super::status::{code, status};
use crate::backend::{BackendName, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filters;
use crate::snapshotter::{Snapshotter, Walk};
use crate::types::{Mount, quoted};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use wire::snapshots_server::Snapshots;

/// What a call answers.
type Answer<T> = std::result::Result<Response<T>, Status>;

/// A message of a list.
type Block = std::result::Result<wire::ListSnapshotsResponse, Status>;

/// Calls that are worked on at once. They wait for the disk mostly.
const MAX_CALLS: usize = 48;

/// Calls that only read rows and are worked on at once: they are quick, and do not queue behind those that write.
const MAX_LOOKS: usize = 8;

/// Snapshots that are measured at once: that may be long, and neither waits for those that write.
const MAX_MEASURED: usize = 8;

/// Pages of lists that are looked for at once: filters may be slow, and are not to keep other calls waiting.
const MAX_PAGES: usize = 8;

/// Threads for blocking work that a runtime needs for this.
pub const MAX_BLOCKING: usize = MAX_CALLS + MAX_LOOKS + MAX_MEASURED + MAX_PAGES;

/// Messages of a list that may wait for a slow reader.
const WAITING_BLOCKS: usize = 1;

/// How FUSE snapshots are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HandOut {
    /// As the caller can use it best: [`HandOut::Bind`] if it lives in our mount namespace, else [`HandOut::Fuse3`].
    #[default]
    Auto,
    /// As a bind mount of what plywood has mounted itself.
    Bind,
    /// As a mount that the caller carries out, with `mount.fuse3` and `plywood-fuse`.
    Fuse3,
}

impl HandOut {
    /// True if plywood is to mount for this caller.
    pub fn is_ours_to_mount(self, peer: Option<Peer>) -> bool {
        match self {
            HandOut::Auto => peer.is_some_and(|peer| peer.shares_mounts),
            HandOut::Bind => true,
            HandOut::Fuse3 => false,
        }
    }
}

/// The snapshot service of one store.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
}

struct Shared {
    snapshotter: Arc<Snapshotter>,
    hand_out: HandOut,
    calls: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    measured: Arc<Semaphore>,
    pages: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// One call, for the log and the metrics.
pub(super) struct Call {
    number: u64,
    name: &'static str,
    key: String,
    since: Instant,
    metrics: Arc<Metrics>,
    has_ended: bool,
}

impl Call {
    pub(super) fn begin(metrics: &Arc<Metrics>, name: &'static str, key: &str) -> Call {
        let (number, metrics) = (metrics.begun(), Arc::clone(metrics));
        Call { number, name, key: key.to_owned(), since: Instant::now(), metrics, has_ended: false }
    }

    pub(super) fn ended<T>(mut self, outcome: &Result<T>) {
        self.has_ended = true;
        let (request, key, name, taken) = (self.number, quoted(&self.key), self.name, self.since.elapsed());
        self.metrics.ended(name, outcome.as_ref().map_or_else(|e| code(e.kind()), |_| Code::Ok), taken);
        let milliseconds = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(_) => tracing::info!(request, call = name, %key, milliseconds, "done"),
            // What is wrong with the store or the machine, and not with the request.
            Err(error) if matches!(error.kind(), ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NoSpace) => {
                tracing::error!(request, call = name, %key, milliseconds, %error, "failed");
            }
            Err(error) => tracing::info!(request, call = name, %key, milliseconds, %error, "refused"),
        }
    }
}

impl Drop for Call {
    /// The caller has gone before there was an answer.
    fn drop(&mut self) {
        if !self.has_ended {
            self.metrics.ended(self.name, Code::Cancelled, self.since.elapsed());
            let (request, call, key) = (self.number, self.name, quoted(&self.key));
            tracing::info!(request, call, %key, "nobody waits for it any more");
        }
    }
}

/// Whoever holds this waits; it tells the work to give up when it goes.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Service {
    /// Serves the snapshots of the realm that the snapshotter was opened for; `metrics` counts its calls.
    pub fn new(snapshotter: Arc<Snapshotter>, hand_out: HandOut, metrics: Arc<Metrics>) -> Service {
        let shared = Shared {
            snapshotter,
            hand_out,
            calls: Arc::new(Semaphore::new(MAX_CALLS)),
            looks: Arc::new(Semaphore::new(MAX_LOOKS)),
            measured: Arc::new(Semaphore::new(MAX_MEASURED)),
            pages: Arc::new(Semaphore::new(MAX_PAGES)),
            metrics,
        };
        Service { shared: Arc::new(shared) }
    }

    fn begin(&self, name: &'static str, key: &str) -> Call {
        Call::begin(&self.shared.metrics, name, key)
    }

    /// Does blocking work in a thread for such, as soon as there is a place for it. The place is taken until the work
    /// ends, also if the caller has gone.
    async fn block<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        work: impl FnOnce(&Snapshotter, &dyn Progress) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        block(&self.shared.snapshotter, places, work).await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&Snapshotter, &dyn Progress) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        ended(call, self.block(&self.shared.calls, work).await)
    }

    /// As [`Service::call`], for what only reads rows.
    async fn look<T: Send + 'static>(
        &self,
        call: Call,
        work: impl FnOnce(&Snapshotter, &dyn Progress) -> Result<T> + Send + 'static,
    ) -> std::result::Result<T, Status> {
        ended(call, self.block(&self.shared.looks, work).await)
    }

    /// Who is to mount FUSE snapshots for this caller.
    fn mounter<T>(&self, request: &Request<T>) -> Mounter {
        let peer = request.extensions().get::<Peer>().copied();
        let is_fuse = self.shared.snapshotter.backend() == BackendName::Fuse;
        if is_fuse && self.shared.hand_out.is_ours_to_mount(peer) {
            Mounter::Plywood
        } else {
            Mounter::Caller
        }
    }
}

fn ended<T>(call: Call, outcome: Result<T>) -> std::result::Result<T, Status> {
    call.ended(&outcome);
    outcome.map_err(|error| status(&error))
}

/// Does blocking work in a thread for such, as soon as there is a place for it. The place is taken until the work ends,
/// also if the caller has gone.
pub(super) async fn block<T: Send + 'static>(
    snapshotter: &Arc<Snapshotter>,
    places: &Arc<Semaphore>,
    work: impl FnOnce(&Snapshotter, &dyn Progress) -> Result<T> + Send + 'static,
) -> Result<T> {
    let snapshotter = Arc::clone(snapshotter);
    let closed = || Error::new(ErrorKind::Unavailable, "serve", "", "the daemon is about to stop");
    let given_up = Arc::new(AtomicBool::new(false));
    let waiting = Waiting(Arc::clone(&given_up));
    let place = Arc::clone(places).acquire_owned().await.map_err(|_| closed())?;
    let in_place = move || {
        let done = work(&snapshotter, &*given_up);
        drop(place);
        done
    };
    let done = tokio::task::spawn_blocking(in_place).await;
    drop(waiting);
    done.unwrap_or_else(|error| match error.is_panic() {
        true => Err(Error::new(ErrorKind::Io, "serve", "", "plywood has made a mistake: see its log")),
        false => Err(closed()),
    })
}

/// Who mounts FUSE snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounter {
    Plywood,
    Caller,
}

impl Mounter {
    /// The mounts of a snapshot as the caller is to have them.
    fn mounts(self, snapshotter: &Snapshotter, key: &str, progress: &dyn Progress) -> Result<Vec<Mount>> {
        match self {
            Mounter::Caller => snapshotter.mounts(key),
            Mounter::Plywood => snapshotter.mounts_kept(key, progress),
        }
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<wire::PrepareSnapshotRequest>,
    ) -> Answer<wire::PrepareSnapshotResponse> {
        let mounter = self.mounter(&request);
        let wire::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let call = self.begin("prepare", &key);
        let work = move |snapshotter: &Snapshotter, progress: &dyn Progress| {
            let (parent, labels) = (convert::optional(&parent), convert::labels(labels));
            match mounter {
                Mounter::Caller => snapshotter.prepare(&key, parent, labels, progress),
                Mounter::Plywood => snapshotter.prepare_kept(&key, parent, labels, progress),
            }
        };
        let mounts = convert::mounts(self.call(call, work).await?);
        Ok(Response::new(wire::PrepareSnapshotResponse { mounts }))
    }

    async fn view(&self, request: Request<wire::ViewSnapshotRequest>) -> Answer<wire::ViewSnapshotResponse> {
        let mounter = self.mounter(&request);
        let wire::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let call = self.begin("view", &key);
        let work = move |snapshotter: &Snapshotter, progress: &dyn Progress| {
            let (parent, labels) = (convert::optional(&parent), convert::labels(labels));
            match mounter {
                Mounter::Caller => snapshotter.view(&key, parent, labels, progress),
                Mounter::Plywood => snapshotter.view_kept(&key, parent, labels, progress),
            }
        };
        let mounts = convert::mounts(self.call(call, work).await?);
        Ok(Response::new(wire::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<wire::MountsRequest>) -> Answer<wire::MountsResponse> {
        let mounter = self.mounter(&request);
        let key = request.into_inner().key;
        let call = self.begin("mounts", &key);
        let work = move |snapshotter: &Snapshotter, progress: &dyn Progress| {
            mounter.mounts(snapshotter, &key, progress)
        };
        let mounts = match mounter {
            Mounter::Caller => self.look(call, work).await?,
            // What is not mounted any more is mounted now.
            Mounter::Plywood => self.call(call, work).await?,
        };
        Ok(Response::new(wire::MountsResponse { mounts: convert::mounts(mounts) }))
    }

    async fn commit(&self, request: Request<wire::CommitSnapshotRequest>) -> Answer<()> {
        let wire::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        let call = self.begin("commit", &key);
        let work = move |snapshotter: &Snapshotter, progress: &dyn Progress| {
            let (parent, labels) = (convert::optional(&parent), convert::labels(labels));
            snapshotter.commit(&name, &key, labels, parent, progress)
        };
        self.call(call, work).await.map(Response::new)
    }

    async fn remove(&self, request: Request<wire::RemoveSnapshotRequest>) -> Answer<()> {
        let key = request.into_inner().key;
        let call = self.begin("remove", &key);
        self.call(call, move |snapshotter, _| snapshotter.remove(&key)).await.map(Response::new)
    }

    async fn stat(&self, request: Request<wire::StatSnapshotRequest>) -> Answer<wire::StatSnapshotResponse> {
        let key = request.into_inner().key;
        let call = self.begin("stat", &key);
        let info = self.look(call, move |snapshotter, _| snapshotter.stat(&key)).await?;
        Ok(Response::new(wire::StatSnapshotResponse { info: Some(convert::info(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateSnapshotRequest>,
    ) -> Answer<wire::UpdateSnapshotResponse> {
        let request = request.into_inner();
        let call = self.begin("update", request.info.as_ref().map_or("", |info| &info.name));
        let work = move |snapshotter: &Snapshotter, _: &dyn Progress| {
            let (key, labels, paths) = convert::update(request)?;
            snapshotter.update(&key, &labels, &paths)
        };
        let info = self.call(call, work).await?;
        Ok(Response::new(wire::UpdateSnapshotResponse { info: Some(convert::info(info)) }))
    }

    type ListStream = ReceiverStream<Block>;

    /// A reader that is slow, or does not read at all, keeps nothing but its task: no thread, no transaction, no more
    /// than a page of snapshots.
    async fn list(&self, request: Request<wire::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = request.into_inner().filters;
        let call = self.begin("list", &filters.join(" "));
        let filters = match self.block(&self.shared.pages, move |_, _| Filters::parse_all(&filters)).await {
            Ok(filters) => Arc::new(filters),
            Err(error) => {
                let answer = status(&error);
                call.ended::<()>(&Err(error));
                return Err(answer);
            }
        };
        let (blocks, stream) = mpsc::channel(WAITING_BLOCKS);
        let service = self.clone();
        tokio::spawn(async move {
            let listed = tokio::select! {
                listed = service.pages(filters, &blocks) => listed,
                () = blocks.closed() => Err(Error::new(ErrorKind::Cancelled, "list", "", "")),
            };
            call.ended(&listed);
            if let Err(error) = listed {
                let _ = blocks.send(Err(status(&error))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn usage(&self, request: Request<wire::UsageRequest>) -> Answer<wire::UsageResponse> {
        let key = request.into_inner().key;
        let call = self.begin("usage", &key);
        let work =
            move |snapshotter: &Snapshotter, progress: &dyn Progress| snapshotter.usage(&key, progress);
        let usage = ended(call, self.block(&self.shared.measured, work).await)?;
        Ok(Response::new(convert::usage(usage)))
    }

    async fn cleanup(&self, _request: Request<wire::CleanupRequest>) -> Answer<()> {
        let call = self.begin("cleanup", "");
        self.call(call, |snapshotter, _| snapshotter.cleanup().map(drop)).await.map(Response::new)
    }
}

impl Service {
    /// Sends what the filters match, block by block.
    async fn pages(&self, filters: Arc<Filters>, blocks: &mpsc::Sender<Block>) -> Result<()> {
        let (mut block, mut next) = (convert::Block::default(), Some(Walk::default()));
        while let Some(walk) = next {
            let filters = Arc::clone(&filters);
            let page = move |snapshotter: &Snapshotter, progress: &dyn Progress| {
                snapshotter.page(&filters, walk, progress)
            };
            let (infos, rest) = self.block(&self.shared.pages, page).await?;
            let mut full: Vec<_> = infos.into_iter().filter_map(|info| block.add(info)).collect();
            if rest.is_none() {
                full.extend(block.rest());
            }
            for message in full {
                // Nobody reads any more: the caller sees to that.
                let _ = blocks.send(Ok(message)).await;
            }
            next = rest;
        }
        Ok(())
    }
}

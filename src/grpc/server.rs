//! How does the daemon live? It listens, answers, and stops when it is told to.
//!
//! To stop is in this order: nobody new is let in, and the socket goes; those who wait for an answer get it, for as long
//! as [`DRAIN`]; what still goes on is told to give up; then the store is closed. Mounts stay, with their servers.

use super::content::Containerd;
use super::diff::{self, Layers};
use super::health::Healthy;
use super::listen::Listener;
use super::metrics::{self, Metrics};
use super::proto::containerd::services::diff::v1::diff_server::DiffServer;
use super::proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use super::proto::grpc::health::v1::health_server::HealthServer;
use super::service::{HandOut, MAX_BLOCKING, Service};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::Snapshotter;
use crate::sys::heap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service as Call, http};
use tonic::server::NamedService;
use tonic::transport::Server;

/// Bytes of a message, in and out, as containerd has it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How long those who wait for an answer may keep a stopping daemon; systemd kills after 90 seconds.
pub const DRAIN: Duration = Duration::from_secs(10);

/// How long deletions in the background may keep a daemon that has stopped; the next one does the rest.
pub const DELETIONS: Duration = Duration::from_secs(5);

/// How long what was told to give up may take to do so.
const GIVE_UP: Duration = Duration::from_secs(20);

/// Requests of one client at once; further ones wait at the client.
const MAX_STREAMS: u32 = 256;

/// Requests that a client may take back before they were looked at. More, and the connection ends: that is an attack.
const MAX_TAKEN_BACK: usize = 1024;

/// Bytes of one message, and of all of them, that may be on the way: less makes large lists slow.
const WINDOW_BYTES: u32 = 1 << 20;

/// Threads that carry messages; the work is done in others.
const CARRIERS: usize = 2;

/// How often memory that calls have left is given back to the system.
const TIDY: Duration = Duration::from_secs(60);

/// How a store is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeSettings {
    /// How FUSE snapshots are handed out.
    pub hand_out: HandOut,
    /// How long those who wait for an answer may keep a stopping daemon.
    pub drain: Duration,
    /// How long deletions in the background may keep a daemon that has stopped.
    pub deletions: Duration,
    /// The socket of the containerd that is served, for layers in and out.
    pub containerd: Option<PathBuf>,
    /// Where metrics are to be had, see [`metrics`].
    pub metrics: Option<PathBuf>,
}

impl Default for ServeSettings {
    fn default() -> Self {
        ServeSettings {
            hand_out: HandOut::default(),
            drain: DRAIN,
            deletions: DELETIONS,
            containerd: None,
            metrics: None,
        }
    }
}

/// Whether the daemon is to stop: told by one, heard by all who have a copy.
#[derive(Debug, Clone)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Tells it to stop.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    /// True once it was told.
    pub fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is told.
    pub async fn asked(&self) {
        // The sender lives as long as this does.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Serves a store on a socket until `stop`, and closes it; `ready` is called once callers are let in.
///
/// # Errors
/// Those of the socket, of threads that cannot be started, and of closing the store.
pub fn serve(
    snapshotter: &Arc<Snapshotter>,
    listener: Listener,
    settings: &ServeSettings,
    stop: &Stop,
    ready: impl FnOnce(),
) -> Result<()> {
    let failed = |e| Error::io("serve", "", e);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CARRIERS)
        .max_blocking_threads(MAX_BLOCKING + diff::MAX_BLOCKING + metrics::MAX_BLOCKING + 1)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(failed)?;
    let served = runtime.block_on(answer(snapshotter, listener, settings, stop, ready));
    // Whoever still waits is dropped, which tells the work to give up.
    runtime.shutdown_timeout(GIVE_UP);
    // Large trees would keep a service manager waiting.
    snapshotter.leave_deletions_after(settings.deletions);
    served.and(snapshotter.close())
}

async fn answer(
    snapshotter: &Arc<Snapshotter>,
    listener: Listener,
    settings: &ServeSettings,
    stop: &Stop,
    ready: impl FnOnce(),
) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let service = Service::new(Arc::clone(snapshotter), settings.hand_out, Arc::clone(&metrics));
    let snapshots = SnapshotsServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let containerd = settings.containerd.as_deref().map(Containerd::at).transpose()?;
    let layers = DiffServer::new(Layers::new(Arc::clone(snapshotter), containerd, Arc::clone(&metrics)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let health = HealthServer::new(Healthy::new(NAMES, stop.clone()));
    let routes = Routes { snapshots, layers, health };
    if let Some(address) = &settings.metrics {
        let asking = Listener::bind(address)?.incoming()?;
        tokio::spawn(metrics::answer(asking, metrics, Arc::clone(snapshotter), stop.clone()));
    }
    let incoming = listener.incoming()?;
    tokio::spawn(tidy());
    ready();
    let served = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_TAKEN_BACK))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .serve_with_incoming_shutdown(routes, incoming, stop.asked());
    let too_long = async {
        stop.asked().await;
        tokio::time::sleep(settings.drain).await;
    };
    tokio::select! {
        served = served => served.map_err(|e| {
            Error::new(ErrorKind::Io, "serve", "", e.to_string()).with_source(e)
        }),
        () = too_long => {
            tracing::warn!("some clients still wait for an answer, and get none");
            Ok(())
        }
    }
}

/// Gives memory back for as long as the daemon lives.
async fn tidy() {
    loop {
        tokio::time::sleep(TIDY).await;
        if tokio::task::spawn_blocking(heap::give_back).await.is_err() {
            return;
        }
    }
}

/// The services, by the names that clients ask health of.
const NAMES: &[&str] =
    &[SnapshotsServer::<Service>::NAME, DiffServer::<Layers>::NAME, HealthServer::<Healthy>::NAME];

/// Which service is meant?
#[derive(Clone)]
struct Routes {
    snapshots: SnapshotsServer<Service>,
    layers: DiffServer<Layers>,
    health: HealthServer<Healthy>,
}

impl Call<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        // So are all of them.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let name = request.uri().path().split('/').nth(1).unwrap_or_default();
        if name == SnapshotsServer::<Service>::NAME {
            return self.snapshots.call(request);
        }
        if name == DiffServer::<Layers>::NAME {
            return self.layers.call(request);
        }
        if name == HealthServer::<Healthy>::NAME {
            return self.health.call(request);
        }
        let unknown = tonic::Status::unimplemented(format!("{name:?} is no service of plywood"));
        Box::pin(std::future::ready(Ok(unknown.into_http())))
    }
}

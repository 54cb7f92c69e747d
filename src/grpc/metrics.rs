//! How is the daemon doing? Counted for machines, in the OpenMetrics text format.
//!
//! On a unix socket of its own, so that whoever collects metrics is not let near the snapshots by accident; the same rules
//! say who may call. `GET /metrics` has the answer, anything else is refused. Names of snapshots are never in it: they
//! have no bound.

use super::listen::{Connection, Incoming};
use super::server::Stop;
use crate::snapshotter::Snapshotter;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming as Body};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tonic::Code;

/// Threads for blocking work that a runtime needs for this: one answer is put together at a time.
pub const MAX_BLOCKING: usize = 1;

/// Upper ends of the buckets of times, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];

/// How long a client may take to say what it wants, and how long it may say nothing between two questions.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    call: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    call: &'static str,
}

/// The calls of a daemon, counted.
#[derive(Debug)]
pub struct Metrics {
    begun: AtomicU64,
    answers: Semaphore,
    since: SystemTime,
    calls: Family<Outcome, Counter>,
    seconds: Family<Name, Histogram>,
    in_progress: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            begun: AtomicU64::new(0),
            answers: Semaphore::new(MAX_BLOCKING),
            since: SystemTime::now(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            in_progress: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Counts a call that begins; the answer is its number.
    pub(super) fn begun(&self) -> u64 {
        self.in_progress.inc();
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Counts its end.
    pub(super) fn ended(&self, call: &'static str, code: Code, taken: Duration) {
        self.in_progress.dec();
        self.calls.get_or_create(&Outcome { call, code: name_of(code) }).inc();
        self.seconds.get_or_create(&Name { call }).observe(taken.as_secs_f64());
    }

    /// All that is counted, as text; what the store cannot tell is left out.
    fn text(&self, snapshotter: &Snapshotter) -> std::result::Result<String, std::fmt::Error> {
        let mut all = Registry::with_prefix("plywood");
        all.register("build", "What runs", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        let backend = Info::new(vec![("backend", snapshotter.backend().to_string())]);
        all.register("store", "What is served", backend);
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let started = ConstGauge::new(since);
        all.register_with_unit("start_time", "When the daemon started, since 1970", Unit::Seconds, started);
        all.register("calls", "Calls that have ended, by code of gRPC", self.calls.clone());
        let seconds = self.seconds.clone();
        all.register_with_unit(
            "call_duration",
            "How long calls took, with all waiting",
            Unit::Seconds,
            seconds,
        );
        all.register("calls_in_progress", "Calls that wait or are worked on", self.in_progress.clone());
        match snapshotter.figures() {
            Ok(figures) => {
                let gauge = |number: u64| ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
                all.register("snapshots", "Snapshots in the store", gauge(figures.snapshots));
                let used = gauge(figures.used_bytes);
                all.register_with_unit("database_used", "Size of the rows", Unit::Bytes, used);
                let map = gauge(figures.map_bytes);
                all.register_with_unit(
                    "database_map",
                    "Size the rows may grow to as it is",
                    Unit::Bytes,
                    map,
                );
                let free = gauge(figures.available_bytes);
                all.register_with_unit("disk_available", "What may still be written", Unit::Bytes, free);
            }
            Err(error) => tracing::warn!(%error, "metrics are without those of the store"),
        }
        let mut text = String::new();
        text::encode(&mut text, &all)?;
        Ok(text)
    }
}

fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// Answers those who come in until `stop`.
pub(super) async fn answer(
    mut incoming: Incoming,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
    stop: Stop,
) {
    loop {
        let connection = tokio::select! {
            connection = incoming.next() => connection,
            () = stop.asked() => return,
        };
        match connection {
            Some(Ok(connection)) => {
                let (metrics, snapshotter, stop) =
                    (Arc::clone(&metrics), Arc::clone(&snapshotter), stop.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = talk(connection, metrics, snapshotter) => {}
                        () = stop.asked() => {}
                    }
                });
            }
            Some(Err(error)) => tracing::debug!(%error, "a client of the metrics is gone"),
            None => return,
        }
    }
}

async fn talk(connection: Connection, metrics: Arc<Metrics>, snapshotter: Arc<Snapshotter>) {
    let answer = service_fn(move |request: Request<Body>| {
        let (metrics, snapshotter) = (Arc::clone(&metrics), Arc::clone(&snapshotter));
        async move { Ok::<_, Infallible>(respond(&request, metrics, snapshotter).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(connection), answer).await {
        tracing::debug!(%error, "a client of the metrics is gone");
    }
}

async fn respond(
    request: &Request<Body>,
    metrics: Arc<Metrics>,
    snapshotter: Arc<Snapshotter>,
) -> Response<Full<Bytes>> {
    let say = |code, content_type: &'static str, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if request.uri().path() != "/metrics" {
        return say(StatusCode::NOT_FOUND, PLAIN, "metrics are at /metrics\n".to_owned());
    }
    if request.method() != Method::GET {
        return say(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "metrics are read with GET\n".to_owned());
    }
    // However many ask, calls on snapshots find their threads.
    let _place = metrics.answers.acquire().await;
    let asked = Arc::clone(&metrics);
    match tokio::task::spawn_blocking(move || asked.text(&snapshotter)).await {
        Ok(Ok(text)) => say(StatusCode::OK, CONTENT_TYPE, text),
        failed => {
            tracing::error!(?failed, "metrics could not be written");
            say(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "see the log of plywood\n".to_owned())
        }
    }
}

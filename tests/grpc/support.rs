//! A store that is served in this process, and clients of it.

use plywood::backend::BackendName;
use plywood::grpc::listen::Listener;
use plywood::grpc::proto::containerd::services::snapshots::v1 as wire;
use plywood::grpc::server::{ServeSettings, Stop, serve};
use plywood::grpc::service::HandOut;
use plywood::snapshotter::{BackendChoice, Repair, Snapshotter, SnapshotterSettings};
use plywood::types::Realm;
use plywood_fuse::testing::TempDir;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use wire::snapshots_client::SnapshotsClient;

pub type Client = SnapshotsClient<Channel>;

/// A store with its daemon; dropping it stops the daemon and checks the store.
pub struct Daemon {
    pub snapshotter: Arc<Snapshotter>,
    pub stop: Stop,
    pub socket: PathBuf,
    thread: Option<JoinHandle<plywood::error::Result<()>>>,
    dir: Option<TempDir>,
}

impl Daemon {
    pub fn start() -> Daemon {
        Daemon::with(
            BackendName::Native,
            ServeSettings { hand_out: HandOut::Fuse3, ..ServeSettings::default() },
        )
    }

    pub fn with(backend: BackendName, settings: ServeSettings) -> Daemon {
        let dir = TempDir::new();
        let mut daemon = Daemon::below(dir.path(), backend, settings);
        daemon.dir = Some(dir);
        daemon
    }

    pub fn below(dir: &Path, backend: BackendName, mut settings: ServeSettings) -> Daemon {
        // On any disk: the check at the end counts what is left.
        settings.deletions = Duration::from_secs(60);
        let snapshotter = Arc::new(open(dir, backend, Realm::containerd()));
        let socket = dir.join("run/s");
        let listener = Listener::bind(&socket).expect("a socket");
        let stop = Stop::default();
        let thread = std::thread::spawn({
            let (snapshotter, stop) = (Arc::clone(&snapshotter), stop.clone());
            move || serve(&snapshotter, listener, &settings, &stop, || {})
        });
        Daemon { snapshotter, stop, socket, thread: Some(thread), dir: None }
    }

    pub async fn client(&self) -> Client {
        client(&self.socket).await
    }

    /// Stops it, and tells how that went.
    pub fn end(&mut self) -> plywood::error::Result<()> {
        self.stop.ask();
        self.thread.take().map_or(Ok(()), |thread| thread.join().expect("the daemon does not panic"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.end();
        if std::thread::panicking() {
            return;
        }
        ended.expect("the daemon stops");
        assert!(!self.socket.exists(), "the socket goes with the daemon");
        if let Some(dir) = &self.dir {
            let mounted = std::fs::read_to_string("/proc/self/mountinfo").expect("a list of mounts");
            let below = format!(" {}/", dir.path().display());
            assert!(!mounted.contains(&below), "a test removes what it has mounted:\n{mounted}");
            let again = open(dir.path(), self.snapshotter.backend(), Realm::containerd());
            let report = again.check(Repair::No).expect("a check");
            assert!(report.findings.is_empty(), "{report:?}");
        }
    }
}

pub fn open(dir: &Path, backend: BackendName, realm: Realm) -> Snapshotter {
    let mut settings = SnapshotterSettings::new(dir.join("store"));
    settings.backend = BackendChoice::Named(backend);
    settings.realm = realm;
    if backend == BackendName::Fuse {
        settings.mounting.fuse_program = Some(crate::privileges::server_program());
    }
    Snapshotter::open(settings).expect("a store")
}

pub async fn channel(socket: &Path) -> Channel {
    let address = format!("unix://{}", socket.display());
    let endpoint =
        Endpoint::from_shared(address).expect("an address").connect_timeout(Duration::from_secs(30));
    endpoint.connect().await.expect("a daemon")
}

pub async fn client(socket: &Path) -> Client {
    let client = SnapshotsClient::new(channel(socket).await);
    client.max_decoding_message_size(16 << 20).max_encoding_message_size(16 << 20)
}

/// Runs a test that waits.
pub fn wait_for<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), work).await.expect("in time") })
}

pub fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn prepare(key: &str, parent: &str) -> wire::PrepareSnapshotRequest {
    wire::PrepareSnapshotRequest {
        snapshotter: "any".to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: HashMap::new(),
    }
}

pub fn view(key: &str, parent: &str) -> wire::ViewSnapshotRequest {
    let wire::PrepareSnapshotRequest { snapshotter, key, parent, labels } = prepare(key, parent);
    wire::ViewSnapshotRequest { snapshotter, key, parent, labels }
}

pub fn commit(name: &str, key: &str) -> wire::CommitSnapshotRequest {
    wire::CommitSnapshotRequest {
        name: name.to_owned(),
        key: key.to_owned(),
        ..wire::CommitSnapshotRequest::default()
    }
}

pub fn stat(key: &str) -> wire::StatSnapshotRequest {
    wire::StatSnapshotRequest { key: key.to_owned(), ..wire::StatSnapshotRequest::default() }
}

pub fn remove(key: &str) -> wire::RemoveSnapshotRequest {
    wire::RemoveSnapshotRequest { key: key.to_owned(), ..wire::RemoveSnapshotRequest::default() }
}

pub fn mounts(key: &str) -> wire::MountsRequest {
    wire::MountsRequest { key: key.to_owned(), ..wire::MountsRequest::default() }
}

pub fn usage(key: &str) -> wire::UsageRequest {
    wire::UsageRequest { key: key.to_owned(), ..wire::UsageRequest::default() }
}

pub fn update(key: &str, labels: HashMap<String, String>, paths: &[&str]) -> wire::UpdateSnapshotRequest {
    let info = wire::Info { name: key.to_owned(), labels, ..wire::Info::default() };
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    wire::UpdateSnapshotRequest {
        snapshotter: String::new(),
        info: Some(info),
        update_mask: Some(prost_types::FieldMask { paths }),
    }
}

/// A committed snapshot.
pub async fn layer(client: &mut Client, name: &str, parent: &str) {
    let key = format!("making {name}");
    client.prepare(prepare(&key, parent)).await.expect("prepare");
    client.commit(commit(name, &key)).await.expect("commit");
}

/// What the filters match, by messages.
pub async fn blocks(client: &mut Client, filters: &[&str]) -> Result<Vec<Vec<wire::Info>>, Status> {
    let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
    let request = wire::ListSnapshotsRequest { filters, ..wire::ListSnapshotsRequest::default() };
    let mut stream = client.list(request).await?.into_inner();
    let mut blocks = Vec::new();
    while let Some(block) = stream.message().await? {
        blocks.push(block.info);
    }
    Ok(blocks)
}

/// The names that the filters match, sorted.
pub async fn names(client: &mut Client, filters: &[&str]) -> Vec<String> {
    let blocks = blocks(client, filters).await.expect("a list");
    let mut names: Vec<String> = blocks.into_iter().flatten().map(|info| info.name).collect();
    names.sort();
    names
}

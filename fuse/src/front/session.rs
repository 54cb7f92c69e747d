//! Runs the conversation with the kernel over an open device.

use super::counters::Requests;
use super::daemon::{EndNotice, Service};
use super::filesystem::OverlayFs;
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::layer::upper::Durability;
use crate::options::{AclMode, MountRequest, OpenProtocol, XattrMode};
use crate::overlay::Overlay;
use fuser::{Config, Session, SessionACL};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// How the protocol is spoken.
#[derive(Clone, Debug)]
pub struct SessionSettings {
    /// How long the kernel may keep names and attributes.
    pub ttl: Duration,
    /// Whether files are opened by requests.
    pub open_protocol: OpenProtocol,
    /// The kernel collects writes.
    pub writeback: bool,
    /// Whether there are extended attributes.
    pub xattrs: XattrMode,
    /// When the kernel asks for access control lists.
    pub acl_mode: AclMode,
    /// The kernel asks for access control lists; decided when the layers are open.
    pub acl: bool,
    /// Whether fsync does anything.
    pub durability: Durability,
    /// Threads that read requests; `None` takes one per processor, within reason.
    pub threads: Option<usize>,
    /// Only the owner of the mount and root are served.
    pub only_root_and_owner: bool,
    /// Another mount changes the top layer.
    pub shared_upper: bool,
}

/// More readers than processors do not help, and each has a buffer.
const MAX_READERS: usize = 8;

/// Threads for long work: a big copy must not keep a second one from going on.
const POOL_THREADS: usize = 4;

/// How long the kernel keeps what another mount may change.
const SHARED_TTL: Duration = Duration::from_secs(1);

impl SessionSettings {
    /// The settings that a caller asked for.
    pub fn of(request: &MountRequest) -> Self {
        let shared_upper = super::shares_upper(request);
        let ttl = Duration::try_from_secs_f64(request.entry_ttl_secs).unwrap_or(Duration::MAX);
        SessionSettings {
            ttl: if shared_upper { ttl.min(SHARED_TTL) } else { ttl },
            open_protocol: request.open_protocol,
            writeback: request.writeback,
            xattrs: request.xattrs,
            acl_mode: request.acl,
            acl: false,
            durability: super::convert::durability(request.durability),
            threads: request.threads,
            only_root_and_owner: request.kernel_mount.allow_root,
            shared_upper,
        }
    }

    fn readers(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        self.threads.unwrap_or(processors).clamp(1, MAX_READERS)
    }
}

/// A conversation that is going on.
pub struct Running {
    overlay: Arc<Overlay>,
    requests: Arc<Requests>,
    thread: JoinHandle<std::io::Result<()>>,
}

/// Shakes hands with the kernel and starts to answer.
///
/// # Errors
/// Those of the device, and of starting threads.
pub fn start(
    overlay: Arc<Overlay>,
    device: OwnedFd,
    settings: &SessionSettings,
    ended: EndNotice,
) -> Result<Running> {
    let mut settings = settings.clone();
    settings.acl = settings.xattrs == XattrMode::On
        && match settings.acl_mode {
            AclMode::On => true,
            AclMode::Off => false,
            AclMode::Auto => overlay.uses_acls(),
        };
    let readers = settings.readers();
    let acl = if settings.only_root_and_owner { SessionACL::RootAndOwner } else { SessionACL::All };
    let requests = Arc::new(Requests::default());
    let pool = Arc::new(Pool::new(POOL_THREADS));
    let files = OverlayFs::new(Arc::clone(&overlay), Arc::clone(&requests), pool, settings);
    let notifier = files.notifier();
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(readers);
    let session = Session::from_fd(files, device, acl, config)
        .map_err(|e| Error::from(e).during("start session", "FUSE device"))?;
    let _ = notifier.set(session.notifier());
    let thread = std::thread::Builder::new().name("session".to_owned()).spawn(move || {
        let _ended = ended;
        session.run()
    })?;
    Ok(Running { overlay, requests, thread })
}

impl Service for Running {
    fn counters(&self) -> String {
        let done = &self.overlay.counters;
        format!(
            "plywood-fuse: requests {}\nplywood-fuse: nodes={} copy_ups={} copied_bytes={} whiteouts={}\n",
            self.requests.text(),
            self.overlay.known_inodes(),
            done.copy_ups.load(Ordering::Relaxed),
            done.copied_bytes.load(Ordering::Relaxed),
            done.whiteouts.load(Ordering::Relaxed),
        )
    }

    fn finish(self) -> Result<()> {
        match self.thread.join() {
            Ok(ended) => ended.map_err(|e| Error::from(e).during("serve", "FUSE device")),
            Err(_) => Err(Error::new(libc::EIO, "serve", "FUSE device", "a thread panicked")),
        }
    }
}

//! `serve`.
//!
//! First the lock, then the store, then the socket: whoever finds the socket finds a store that is whole, and whoever
//! has lost the lock leaves the socket of the other alone.

use super::{Outcome, Session};
use crate::cli::args;
use crate::cli::exit::Code;
use crate::config::Surroundings;
use crate::error::{Error, ErrorKind, Result};
use crate::grpc::listen::{Listener, path_of};
use crate::grpc::lock::ServeLock;
use crate::grpc::server::{self, ServeSettings, Stop};
use crate::grpc::service::HandOut;
use crate::layout::Layout;
use crate::snapshotter::Snapshotter;
use crate::sys::activation::notify;
use crate::sys::{heap, userns};
use crate::types::Realm;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Heaps that the threads share: with one for each few threads, those of 64 clients took twice the memory and were no
/// faster.
const HEAPS: u16 = 4;

pub(super) fn serve(session: &Session, args: &args::Serve) -> Outcome {
    heap::share(HEAPS);
    // Before any file is opened: nothing else must take the number of a socket that is said to be there and is not.
    let passed = match &args.address {
        Some(_) => None,
        None => Listener::passed()?,
    };
    // From here on both signals are heard, and what goes on is brought to its end.
    let stop = Stop::default();
    stop_on_signals(&stop)?;
    let address = match (&args.address, &passed) {
        (Some(address), _) => path_of(address),
        (None, Some(passed)) => passed.address(),
        (None, None) => default_address(&Surroundings::here())?,
    };
    if args.mounts == HandOut::Bind && userns::was_reentered() {
        let cause = "this user's daemon has a mount namespace of its own, whose mounts no client sees: start it in the \
                     client's namespaces (README: rootless containerd), or let the client mount with --mounts fuse3";
        return Err(Error::new(ErrorKind::InvalidArgument, "serve", "--mounts bind", cause).into());
    }
    // Each client, each mount that is made and each layer of a stack that is read takes some.
    if let Err(error) = plywood_fuse::sys::process::raise_descriptor_limit() {
        tracing::warn!(%error, "only few files can be open at once");
    }
    let layout = Layout::create(&session.settings.root)?;
    let lock = ServeLock::take(&layout, &address)?;
    let mut settings = session.snapshotter_settings();
    settings.realm = Realm::containerd();
    let snapshotter = Arc::new(Snapshotter::open(settings)?);
    snapshotter.drop_unused_points()?;
    let listener = passed.map_or_else(|| Listener::bind(&address), Ok)?;
    clean_up(&snapshotter);
    let containerd = args.containerd_address.as_deref().map(path_of);
    let metrics = args.metrics_address.as_deref().map(path_of);
    let settings = ServeSettings { hand_out: args.mounts, containerd, metrics, ..ServeSettings::default() };
    let ready = || {
        let (root, backend) = (layout.root().display(), snapshotter.backend());
        tracing::info!(%root, %backend, address = %address.display(), "serving");
        tell("READY=1");
    };
    let served = server::serve(&snapshotter, listener, &settings, &stop, ready);
    drop(lock);
    tracing::info!("stopped");
    served?;
    Ok(Code::DONE)
}

/// Stops on SIGTERM and SIGINT; the second one does not wait.
fn stop_on_signals(stop: &Stop) -> Result<()> {
    let failed = |e| Error::io("serve", "signals", e);
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    let stop = stop.clone();
    let listen = move || {
        for signal in signals.forever() {
            if stop.is_asked() {
                tracing::warn!("told to stop twice: not waiting");
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
            tracing::info!(signal, "told to stop");
            tell("STOPPING=1");
            stop.ask();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map(drop).map_err(failed)
}

/// Deletes in the background what an earlier daemon left; trouble is told in the log.
fn clean_up(snapshotter: &Arc<Snapshotter>) {
    let snapshotter = Arc::clone(snapshotter);
    let clean = move || match snapshotter.cleanup() {
        Ok(report) => tracing::info!(deleted = report.deleted, rows = report.dropped_rows, "cleaned up"),
        Err(error) => tracing::warn!(%error, "what an earlier daemon left stays until the next cleanup"),
    };
    if let Err(error) = std::thread::Builder::new().name("cleanup".to_owned()).spawn(clean) {
        tracing::warn!(%error, "what an earlier daemon left stays until the next cleanup");
    }
}

fn tell(state: &str) {
    if let Err(error) = notify(state) {
        tracing::warn!(%error, state, "the service manager could not be told");
    }
}

/// Where the socket is if nobody says so.
fn default_address(around: &Surroundings) -> Result<PathBuf> {
    if around.is_root {
        return Ok(PathBuf::from("/run/plywood/plywood.sock"));
    }
    let runtime =
        around.variables.iter().find(|(name, _)| name == "XDG_RUNTIME_DIR").map(|(_, dir)| Path::new(dir));
    match runtime.filter(|dir| dir.is_absolute()) {
        Some(dir) => Ok(dir.join("plywood/plywood.sock")),
        None => {
            let cause =
                "XDG_RUNTIME_DIR does not say where sockets of this user are: choose one with --address";
            Err(Error::new(ErrorKind::InvalidArgument, "serve", "address", cause))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_in_the_runtime_directory() {
        let user = |variables: &[(&str, &str)]| Surroundings {
            variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            ..Surroundings::default()
        };
        let at = |around: &Surroundings| default_address(around).ok();
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            at(&user(&[("XDG_RUNTIME_DIR", "/run/user/7")])),
            path("/run/user/7/plywood/plywood.sock")
        );
        assert_eq!(at(&user(&[("XDG_RUNTIME_DIR", "x")])), None);
        assert_eq!(at(&user(&[])), None);
        let root = Surroundings { is_root: true, ..Surroundings::default() };
        assert_eq!(at(&root), path("/run/plywood/plywood.sock"));
    }
}

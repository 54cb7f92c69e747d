//! What a service manager hands to a daemon: sockets that listen already, and an ear for how it is.
//!
//! # Source
//! sd_listen_fds(3), sd_notify(3).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// Descriptors that are taken at most; a daemon is handed one or two.
const MOST: RawFd = 64;

/// The sockets that were handed over to this process, or to the one that has sent it into a user namespace. None the
/// second time: they are the caller's then.
///
/// # Errors
/// EBADF if one of them is not open.
pub fn passed_sockets() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let meant = number("LISTEN_PID");
    let is_ours = meant == Some(std::process::id())
        || (super::userns::was_reentered() && meant == Some(std::os::unix::process::parent_id()));
    if !is_ours || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|n| RawFd::try_from(n).ok()).unwrap_or(0).min(MOST);
    let mut sockets = Vec::new();
    for fd in FIRST..FIRST + count {
        // SAFETY: fcntl with F_SETFD takes any number and touches no memory; EBADF if nothing is open there.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open, and nobody else owns it: the service manager says that these numbers are for us, and the
        // flag above lets only one caller take them.
        sockets.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(sockets)
}

/// Tells the service manager how this process is, such as `READY=1`; false if there is none that wants to know.
///
/// # Errors
/// Those of the socket.
pub fn notify(state: &str) -> io::Result<bool> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
        return Ok(false);
    };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(true)
}

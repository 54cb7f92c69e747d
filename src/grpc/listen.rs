//! Where is the socket, and who calls?
//!
//! The socket is 0600 from the start, in a directory that is made 0700 if it is missing. What an earlier daemon left is
//! replaced only if it is a socket of ours on which nobody answers. Besides, a caller must be this user, or root, as the
//! kernel tells it.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::activation;
use crate::sys::attach::mount_namespace;
use plywood_fuse::sys::process::{effective_gid, effective_uid};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

const OPERATION: &str = "listen";

/// Connections at once; a client has one. Further ones wait in the queue of the kernel.
const MAX_CONNECTIONS: usize = 128;

/// How long nobody is let in after that failed, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// `sun_path` of the kernel, without the zero at its end.
const MAX_PATH_BYTES: usize = 107;

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Where, and the number of its inode, if it is ours to remove.
    bound: Option<(PathBuf, u64)>,
}

/// The path in an address: of a socket, with or without `unix://`.
pub fn path_of(address: &str) -> PathBuf {
    PathBuf::from(address.strip_prefix("unix://").unwrap_or(address))
}

impl Listener {
    /// Listens on a socket at `path`.
    ///
    /// # Errors
    /// `AlreadyExists` if something else is there, `Busy` if somebody answers on it; `InvalidArgument` for a path that
    /// is too long for a socket; those of the disk.
    pub fn bind(path: &Path) -> Result<Listener> {
        let path = std::path::absolute(path).map_err(|e| failed(path, e))?;
        let (Some(dir), Some(_)) = (path.parent(), path.file_name()) else {
            let cause = "this is no name of a file";
            return Err(Error::new(ErrorKind::InvalidArgument, OPERATION, path.display().to_string(), cause));
        };
        if path.as_os_str().len() > MAX_PATH_BYTES {
            let cause = format!(
                "the kernel takes at most {MAX_PATH_BYTES} bytes as path of a socket: choose a shorter one"
            );
            return Err(Error::new(ErrorKind::InvalidArgument, OPERATION, path.display().to_string(), cause));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed(dir, e))?;
        check_directory(dir)?;
        remove_stale(&path)?;
        let listening = listen(&path).and_then(|socket| Ok((socket, fs::symlink_metadata(&path)?.ino())));
        let (socket, number) = listening.map_err(|e| failed(&path, e))?;
        Ok(Listener { socket, bound: Some((path, number)) })
    }

    /// The socket that the service manager handed over, if it did.
    ///
    /// # Errors
    /// `InvalidArgument` if it is no unix socket, or if there are several.
    pub fn passed() -> Result<Option<Listener>> {
        const SUBJECT: &str = "the socket of the service manager";
        let mut sockets = activation::passed_sockets().map_err(|e| Error::io(OPERATION, SUBJECT, e))?;
        let invalid = |cause: &str| Error::new(ErrorKind::InvalidArgument, OPERATION, SUBJECT, cause);
        let Some(socket) = sockets.pop() else { return Ok(None) };
        if !sockets.is_empty() {
            return Err(invalid("there is more than one: give plywood.socket one ListenStream"));
        }
        let socket = UnixListener::from(socket);
        socket.local_addr().map_err(|_| invalid("it is no unix socket: ListenStream must be a path"))?;
        match rustix::net::sockopt::socket_acceptconn(&socket) {
            Ok(true) => Ok(Some(Listener { socket, bound: None })),
            Ok(false) => Err(invalid("nobody can connect to it: Accept of plywood.socket must be no")),
            Err(e) => Err(Error::io(OPERATION, SUBJECT, e.into())),
        }
    }

    /// Where it listens, for people.
    pub fn address(&self) -> PathBuf {
        let passed = || Some(self.socket.local_addr().ok()?.as_pathname()?.to_owned());
        self.bound.as_ref().map(|(path, _)| path.clone()).or_else(passed).unwrap_or_default()
    }

    /// Those who call, one after the other. To be called in a runtime; it ends when nobody takes them any more.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn incoming(self) -> Result<Incoming> {
        let address = self.address();
        let listener = self.socket.try_clone().and_then(|socket| {
            socket.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(socket)
        });
        let listener = listener.map_err(|e| failed(&address, e))?;
        let (door, connections) = mpsc::channel(1);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::spawn(async move {
            tokio::select! {
                () = let_in(&listener, &places, &door) => {}
                () = door.closed() => {}
            }
            // Only now: the socket goes with it.
            drop(self);
        });
        Ok(ReceiverStream::new(connections))
    }
}

/// Refuses a directory in which somebody else could put a socket of his own into the place of ours.
fn check_directory(dir: &Path) -> Result<()> {
    let meta = fs::metadata(dir).map_err(|e| failed(dir, e))?;
    // In a user namespace the machine's root is nobody, as the owner of / shows.
    let root = fs::metadata("/").map_or(0, |root| root.uid());
    if may_be_trusted(&[effective_uid(), 0, root], effective_gid(), meta.uid(), meta.gid(), meta.mode()) {
        return Ok(());
    }
    let cause = "others may rename what is in this directory, and answer in our place: choose one that only you can write to";
    Err(Error::new(ErrorKind::PermissionDenied, OPERATION, dir.display().to_string(), cause))
}

/// True if nobody but `owners` can rename what is in a directory. A user's own group often has nobody else in it.
fn may_be_trusted(owners: &[u32], own_group: u32, uid: u32, gid: u32, mode: u32) -> bool {
    let is_shared = mode & 0o002 != 0 || (mode & 0o020 != 0 && gid != own_group);
    let is_sticky = mode & 0o1000 != 0;
    owners.contains(&uid) && (!is_shared || is_sticky)
}

impl Drop for Listener {
    /// Removes the socket, unless another one has taken its name.
    fn drop(&mut self) {
        if let Some((path, number)) = &self.bound
            && fs::symlink_metadata(path).is_ok_and(|there| there.ino() == *number)
        {
            let _ = fs::remove_file(path);
        }
    }
}

/// Those who call.
pub(super) type Incoming = ReceiverStream<io::Result<Connection>>;

async fn let_in(
    listener: &tokio::net::UnixListener,
    places: &Arc<Semaphore>,
    door: &mpsc::Sender<io::Result<Connection>>,
) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "nobody can be let in for now");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        match Peer::of(&stream) {
            Ok(peer) if peer.may_call() => {
                tracing::debug!(?peer, "a client is connected");
                if door.send(Ok(Connection { stream, peer, _place: place })).await.is_err() {
                    return;
                }
            }
            Ok(peer) => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused: only this user and root may call");
            }
            Err(error) => tracing::warn!(%error, "refused: the kernel does not tell who calls"),
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user, as this process sees it.
    pub uid: u32,
    /// Its process when it connected, if it can be seen from here.
    pub pid: Option<u32>,
    /// It lives in the mount namespace of this process: what is mounted here it can see.
    pub shares_mounts: bool,
}

impl Peer {
    fn of(stream: &tokio::net::UnixStream) -> io::Result<Peer> {
        let who = stream.peer_cred()?;
        let pid = who.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
        let here = mount_namespace(None).ok();
        let there = pid.and_then(|pid| mount_namespace(Some(pid)).ok());
        Ok(Peer { uid: who.uid(), pid, shares_mounts: here.is_some() && here == there })
    }

    /// What the modes of socket and directory say, once more: both may be handed over by somebody careless.
    fn may_call(self) -> bool {
        self.uid == 0 || self.uid == effective_uid()
    }
}

/// A client that is connected.
#[derive(Debug)]
pub(super) struct Connection {
    stream: tokio::net::UnixStream,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    let kind = match error.raw_os_error() {
        // Somebody was quicker.
        Some(libc::EADDRINUSE) => ErrorKind::Busy,
        Some(errno) => ErrorKind::of_errno(errno),
        None => ErrorKind::Io,
    };
    Error::io(OPERATION, path.display().to_string(), error).as_kind(kind)
}

/// Calls that may wait to be let in.
const BACKLOG: i32 = 1024;

fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The kernel gives the file the mode of the socket: unix_bind_bsd of net/unix/af_unix.c.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Removes a socket of ours on which nobody answers.
fn remove_stale(path: &Path) -> Result<()> {
    let refused = |kind, cause: &str| Err(Error::new(kind, OPERATION, path.display().to_string(), cause));
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(path, e)),
    };
    if !there.file_type().is_socket() {
        return refused(
            ErrorKind::AlreadyExists,
            "something is there that is no socket: choose another --address",
        );
    }
    if there.uid() != effective_uid() {
        return refused(
            ErrorKind::PermissionDenied,
            "a socket of somebody else is there: choose another --address",
        );
    }
    match UnixStream::connect(path) {
        Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|e| failed(path, e))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => refused(
            ErrorKind::Busy,
            "somebody serves there already: stop that one, or choose another --address",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_is_for_its_owner_alone_and_goes_with_its_listener() {
        let dir = TempDir::new();
        let path = dir.path().join("made/too/plywood.sock");
        let listener = Listener::bind(&path).unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&dir.path().join("made")), 0o700);
        assert_eq!(mode(&dir.path().join("made/too")), 0o700);
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_in_which_others_rename_is_refused() {
        // Owner, group, mode; user 5 has group 7.
        let cases = [
            ((5, 7, 0o700), true),
            ((5, 7, 0o755), true),
            ((0, 0, 0o755), true),
            ((0, 0, 0o1777), true),
            // A group that is the user's own.
            ((5, 7, 0o775), true),
            ((5, 8, 0o775), false),
            ((5, 8, 0o1775), true),
            ((5, 7, 0o777), false),
            ((6, 7, 0o700), false),
            ((6, 6, 0o1777), false),
        ];
        for ((uid, gid, mode), expected) in cases {
            assert_eq!(may_be_trusted(&[5, 0], 7, uid, gid, mode), expected, "{uid} {gid} {mode:o}");
        }
        let dir = TempDir::new();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Listener::bind(&dir.path().join("s")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }

    #[test]
    fn what_an_earlier_daemon_left_is_replaced_and_nothing_else_is() {
        let dir = TempDir::new();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        drop(Listener::bind(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        // Another daemon has taken the name: its socket stays.
        fs::remove_file(&path).unwrap();
        let old = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = Listener::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn a_path_may_have_as_many_bytes_as_the_kernel_takes() {
        let dir = TempDir::new();
        let named = |bytes: usize| {
            let rest = bytes - dir.path().as_os_str().len() - 1;
            dir.path().join("s".repeat(rest))
        };
        assert!(Listener::bind(&named(MAX_PATH_BYTES)).is_ok());
        let error = Listener::bind(&named(MAX_PATH_BYTES + 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }

    #[test]
    fn only_this_user_and_root_may_call() {
        let peer = |uid| Peer { uid, pid: None, shares_mounts: false };
        assert!(peer(0).may_call() && peer(effective_uid()).may_call());
        assert!(!peer(effective_uid() + 1).may_call());
    }
}

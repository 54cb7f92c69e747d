//! How this process lives: start, become a daemon, serve, and end with the mount.
//!
//! The caller waits for our first process and reads its standard error to the end. So exit code 0 means
//! "mounted and answering", and from then on nothing of the caller is held: not its pipes, not its terminal,
//! not its directory. The order of the steps in [`run`] is what makes this true; each says why it is there.
//!
//! ```text
//! umask, limits
//! fork ──────────────► wait for the word ──► exit code of the caller
//!   │ leave the session, close what was inherited
//!   │ block signals          (before any thread)
//!   │ open the layers        (before the mount, which can cover them; relative to the caller's directory)
//!   │ mount
//!   │ start the session      (it answers from here on)
//!   │ look at the mount
//!   │ go to /, silence stdio, send the word
//!   └ wait for a signal or for the end of the session
//! ```
//!
//! Absent on purpose: anything about layers and requests. Those come in as two callbacks and a [`Service`].

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::mount::{self, How, Mounted, Request, Unmounted};
use crate::error::{Error, Result};
use crate::options::MountRequest;
use crate::sys::mount::Detach;
use crate::sys::process::{self, Ended, Fork, Pid, Signal, Signals};

/// How long the end of the session may take after a signal. Requests in flight finish in that time; podman
/// and systemd kill what takes longer than ten seconds, and that would leave the mount behind.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// How long the first look at the mount may take. It is one request, for layers that are open already; a
/// caller that waits for a mount that never answers is worse off than with an error.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// How long the session of a mount that is gone may take to notice.
const GONE_PATIENCE: Duration = Duration::from_millis(500);

/// The files for the counters, the first that is set: ours, and the one that fuse-overlayfs knows.
const STATS_VARIABLES: [&str; 2] = ["PLYWOOD_FUSE_STATS", "FUSE_OVERLAYFS_DEBUG_LOG"];

/// The word that the mount answers, and the word that it failed and the reason was told.
const READY: u8 = b'r';
const FAILED: u8 = b'f';

/// Whether the process that was started is the one that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// It serves, with its terminal, until the end.
    Foreground,
    /// It leaves a server behind and ends when the mount answers.
    Background,
}

/// What [`run`] has to know.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The name of this program, which starts each line on standard error.
    pub program: String,
    /// Who serves.
    pub stay: Stay,
    /// What to mount, and where.
    pub mount: Request,
    /// Inherited descriptors that layers are named by, see [`mount::inherited_descriptor`]. That of the
    /// mount point is kept anyway; all others are closed.
    pub keep: Vec<RawFd>,
    /// What is to be said on standard error before anything else, one line each.
    pub warnings: Vec<String>,
}

impl Launch {
    /// What `typed` asks for.
    pub fn of(typed: &MountRequest) -> Self {
        let layers = typed.lowers.iter().chain(&typed.upper).chain(&typed.work);
        Self {
            program: typed.program.to_string_lossy().into_owned(),
            stay: if typed.foreground { Stay::Foreground } else { Stay::Background },
            mount: Request::of(typed),
            keep: layers.filter_map(|path| mount::inherited_descriptor(path)).collect(),
            warnings: typed.warnings.clone(),
        }
    }
}

/// A session that answers requests in threads of its own.
pub trait Service {
    /// The counters, for a person to read, one per line.
    fn counters(&self) -> String;

    /// Collects what the session left. Called once, after every [`EndNotice`] of it is gone.
    ///
    /// # Errors
    /// Why the session ended, if that was not because of an unmount.
    fn finish(self) -> Result<()>;
}

/// Tells [`run`] that the session has ended, by being dropped.
///
/// Belongs to the thread that outlives all others of the session, which so tells of its end even by a panic.
#[derive(Debug)]
pub struct EndNotice {
    /// The write end of a pipe; nothing is ever written, its closing is the news.
    _closes: OwnedFd,
}

impl EndNotice {
    /// A notice, and the descriptor that becomes readable when it is dropped.
    fn new() -> Result<(OwnedFd, EndNotice)> {
        let (end, closes) = process::pipe()?;
        Ok((end, EndNotice { _closes: closes }))
    }
}

/// Mounts, serves until the end, and answers with the exit code.
///
/// `open` opens the layers and adds lines to the warnings it gets. `start` takes what `open` made, the device
/// and the notice, shakes hands with the kernel and returns when the threads that answer requests run.
///
/// Has to be called while this process has one thread. Every failure is told in one line on standard error;
/// a success says nothing but the warnings.
///
/// The exit code is 0 when the mount answers (background), or has ended by an unmount or a signal
/// (foreground, and the server left behind); else 1.
pub fn run<L, S: Service>(
    launch: Launch,
    open: impl FnOnce(&mut Vec<String>) -> Result<L>,
    start: impl FnOnce(L, OwnedFd, EndNotice) -> Result<S>,
) -> u8 {
    let program = launch.program.clone();
    // The kernel sends modes with the caller's mask applied, or the mask beside them: ours would only spoil
    // what is created in the layers.
    process::set_umask(0);
    let mut report = None;
    if launch.stay == Stay::Background {
        match split() {
            Ok(Half::Caller(word, server)) => return await_word(&program, word, server),
            Ok(Half::Server(pipe)) => report = Some(pipe),
            Err(error) => {
                say(&program, &error);
                return 1;
            }
        }
    }
    let result = serve(launch, open, start, &mut report);
    if let Err(error) = &result {
        say(&program, error);
    }
    if let Some(mut report) = report {
        // After the line, so that it is complete when the caller's process ends.
        let _ = report.write_all(&[FAILED]);
    }
    u8::from(result.is_err())
}

/// Writes one line to standard error; that nobody reads it is no reason to stop.
fn say(program: &str, text: &dyn std::fmt::Display) {
    let _ = io::stderr().write_all(format!("{program}: {text}\n").as_bytes());
}

enum Half {
    /// The process that was started: where the word comes from, and who sends it.
    Caller(File, Pid),
    /// The process that serves: where the word goes to.
    Server(File),
}

fn split() -> Result<Half> {
    let (word, report) = process::pipe()?;
    // One fork is enough: the server leaves the session and leads a new one, but it never opens a terminal.
    match process::fork()? {
        Fork::Parent(server) => Ok(Half::Caller(word.into(), server)),
        Fork::Child => Ok(Half::Server(report.into())),
    }
}

/// The rest of the life of the process that was started.
fn await_word(program: &str, mut word: File, server: Pid) -> u8 {
    let mut byte = [0];
    match word.read_exact(&mut byte) {
        Ok(()) if byte[0] == READY => return 0,
        // It has said why.
        Ok(()) => return 1,
        Err(_) => {}
    }
    let how = match process::wait_for_child(server) {
        Ok(Ended::Exit(code)) => format!("with exit code {code}"),
        Ok(Ended::Signal(number)) => format!("by signal {number}"),
        Err(error) => format!("in a way that cannot be told ({error})"),
    };
    say(program, &format_args!("mount: the server ended {how} before the mount answered"));
    1
}

/// Unmounts when dropped: for every way out between the mount and the word.
struct Unready<'a>(&'a Mounted);

impl Drop for Unready<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to tell.
        let _ = mount::unmount(self.0, Detach::Lazily);
    }
}

/// The life of the process that serves. `report` is taken once the word is sent.
fn serve<L, S: Service>(
    launch: Launch,
    open: impl FnOnce(&mut Vec<String>) -> Result<L>,
    start: impl FnOnce(L, OwnedFd, EndNotice) -> Result<S>,
    report: &mut Option<File>,
) -> Result<()> {
    let Launch { program, stay, mount: request, mut keep, mut warnings } = launch;
    if stay == Stay::Background {
        process::leave_session()?;
    }
    keep.extend(mount::inherited_descriptor(&request.mount_point));
    keep.extend(report.as_ref().map(|pipe| pipe.as_raw_fd()));
    // Whoever reads the other end of an inherited pipe waits for all its writers. Before anything is opened.
    process::close_inherited(&keep)?;
    if let Err(error) = process::raise_descriptor_limit() {
        warnings.push(format!("warning: the limit of open files stays as it is: {error}"));
    }
    let signals = Signals::block(&listened_to(stay))?;
    let mut statistics = Statistics::open(stay, &mut warnings);
    tell(&program, &mut warnings);
    let layers = open(&mut warnings)?;
    tell(&program, &mut warnings);

    let (device, mounted) = mount::mount(&request)?;
    let unready = Unready(&mounted);
    let (ended, notice) = EndNotice::new()?;
    // Never dropped by us: a drop could wait for threads that wait for the unmount.
    let started = start(layers, device, notice);
    let service = ManuallyDrop::new(
        started.map_err(|e| e.during("start session", mounted.mount_point.display().to_string()))?,
    );
    if let Err(error) = look_at_mount(&mounted, &signals, &ended) {
        // Who watches the table of mounts, as Apptainer does, can unmount before we have looked. In the
        // foreground that is an end like any other.
        let soon = Some(Instant::now() + GONE_PATIENCE);
        if stay == Stay::Foreground && process::wait_readable([ended.as_fd()], soon)? == [true] {
            return ManuallyDrop::into_inner(service).finish();
        }
        return Err(error);
    }
    // A daemon in the caller's directory would keep its file system busy.
    env::set_current_dir("/").map_err(|e| Error::from(e).during("change directory", "/"))?;
    if stay == Stay::Background {
        process::silence_stdio()?;
    }
    if let Some(pipe) = report {
        // Nobody reads it: our caller's process was killed while it waited, so nobody knows of this mount.
        pipe.write_all(&[READY])?;
        *report = None;
    }
    std::mem::forget(unready);
    process::trim_heap();

    let end = await_end(&mounted, &signals, &ended, || statistics.write(&service.counters()))?;
    match end {
        End::Session => ManuallyDrop::into_inner(service).finish(),
        End::Process => Ok(()),
    }
}

/// Says the warnings that came up so far.
fn tell(program: &str, warnings: &mut Vec<String>) {
    for warning in warnings.drain(..) {
        say(program, &warning);
    }
}

/// The signals that this process collects. What the caller had ignored stays ignored in the foreground:
/// nohup(1), and Control-C for a job in the background. A daemon gets those from nobody by accident.
fn listened_to(stay: Stay) -> Vec<Signal> {
    let mut signals = vec![Signal::Terminate, Signal::User1];
    for signal in [Signal::Hangup, Signal::Interrupt] {
        if stay == Stay::Background || !signal.is_ignored() {
            signals.push(signal);
        }
    }
    signals
}

/// Work that can call upon our own mount, in a thread: a session that hangs must not make us deaf.
///
/// The thread does not hold the device, so that nothing hangs for ever if we are killed meanwhile.
struct Aside<T> {
    thread: JoinHandle<Result<T>>,
    /// Readable when the work is done.
    done: OwnedFd,
    /// Held until then: the thread's own copy closes without a trace in our table.
    _tell: Arc<OwnedFd>,
}

impl<T: Send + 'static> Aside<T> {
    fn start(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Self> {
        let (done, tell) = process::pipe()?;
        let tell = Arc::new(tell);
        let sender = Arc::clone(&tell);
        let thread = thread::Builder::new().spawn(move || {
            let tell = TellWhenDone(sender);
            // Some container filters forbid it. It only matters if the session hangs as well.
            let _ = process::part_descriptors(tell.0.as_fd());
            work()
        })?;
        Ok(Self { thread, done, _tell: tell })
    }

    /// What came of it, once `done` is readable.
    fn finish(self) -> Result<T> {
        self.thread.join().unwrap_or_else(|_| Err(Error::new(libc::EIO, "run", "thread", "it panicked")))
    }
}

/// Writes to the pipe when dropped, so that a panic counts as done.
struct TellWhenDone(Arc<OwnedFd>);

impl Drop for TellWhenDone {
    fn drop(&mut self) {
        if let Ok(copy) = self.0.try_clone() {
            let _ = File::from(copy).write_all(&[0]);
        }
    }
}

/// Waits until the mount has answered a question.
fn look_at_mount(mounted: &Mounted, signals: &Signals, ended: &OwnedFd) -> Result<()> {
    if mounted.how == How::Inherited {
        return Ok(());
    }
    let subject = || mounted.mount_point.display().to_string();
    let copy = mounted.clone();
    let look = Aside::start(move || mount::check_answer(&copy))?;
    let deadline = Instant::now() + ANSWER_PATIENCE;
    loop {
        let [signal, end, answer] =
            process::wait_readable([signals.as_fd(), ended.as_fd(), look.done.as_fd()], Some(deadline))?;
        if answer {
            return look.finish();
        }
        if end {
            return Err(Error::new(libc::ENOTCONN, "check mount", subject(), "the session ended"));
        }
        if signal && matches!(signals.arrived()?, Some(got) if got != Signal::User1) {
            return Err(Error::new(libc::EINTR, "check mount", subject(), "told to end by a signal"));
        }
        if !signal && Instant::now() >= deadline {
            return Err(Error::new(libc::ETIMEDOUT, "check mount", subject(), "no answer"));
        }
    }
}

/// Why the wait is over.
enum End {
    /// The session has ended.
    Session,
    /// The session still runs, and ends with this process.
    Process,
}

fn await_end(mounted: &Mounted, signals: &Signals, ended: &OwnedFd, mut count: impl FnMut()) -> Result<End> {
    loop {
        let [signal, end] = process::wait_readable([signals.as_fd(), ended.as_fd()], None)?;
        if end {
            // Unmounted by somebody else, as a rule. If the connection was aborted instead, the dead mount
            // is still there; only a number that is never used twice can tell it from the next mount.
            if mounted.mount_id.is_some_and(|id| id.is_unique()) {
                let _ = mount::unmount(mounted, Detach::Lazily);
            }
            return Ok(End::Session);
        }
        if signal {
            match signals.arrived()? {
                Some(Signal::User1) => count(),
                Some(_) => return shut_down(mounted, signals, ended),
                None => {}
            }
        }
    }
}

/// Ends the mount and waits for the session, within [`END_PATIENCE`].
fn shut_down(mounted: &Mounted, signals: &Signals, ended: &OwnedFd) -> Result<End> {
    let deadline = Instant::now() + END_PATIENCE;
    let copy = mounted.clone();
    // An unmount flushes through our own session.
    let mut work = Some(Aside::start(move || mount::unmount(&copy, Detach::Now))?);
    loop {
        // Its news stays readable: wait for it once.
        let unmounted = work.as_ref().map_or(ended.as_fd(), |work| work.done.as_fd());
        let [signal, end, unmounted] =
            process::wait_readable([signals.as_fd(), ended.as_fd(), unmounted], Some(deadline))?;
        if end {
            return Ok(End::Session);
        }
        if let Some(work) = work.take_if(|_| unmounted)
            && work.finish()? == Unmounted::NotOurs
        {
            return Ok(End::Process);
        }
        if signal && matches!(signals.arrived()?, Some(got) if got != Signal::User1) {
            process::exit_now(1);
        }
        if Instant::now() >= deadline {
            return Ok(End::Process);
        }
    }
}

/// Where the counters go.
struct Statistics {
    file: Option<File>,
    stay: Stay,
}

impl Statistics {
    /// Opened once at the start: later the directory and what standard error means are not the caller's.
    fn open(stay: Stay, warnings: &mut Vec<String>) -> Self {
        let path = STATS_VARIABLES.iter().find_map(|name| env::var_os(name).filter(|path| !path.is_empty()));
        let file = path.and_then(|path| {
            // Not for others to read: it tells what is in use inside of a container.
            let file = File::options().append(true).create(true).mode(0o600).open(&path);
            file.inspect_err(|error| {
                warnings.push(format!("warning: no counters: {}: {error}", path.to_string_lossy()));
            })
            .ok()
        });
        Self { file, stay }
    }

    /// Appends in one piece, since several servers can share the file.
    fn write(&mut self, text: &str) {
        let mut text = text.to_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(text.as_bytes());
        }
        if self.stay == Stay::Foreground {
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_aside_is_done_when_it_returns_and_when_it_panics() {
        let soon = || Some(Instant::now() + Duration::from_secs(10));
        let work = Aside::start(|| Ok(7)).unwrap();
        assert_eq!(process::wait_readable([work.done.as_fd()], soon()).unwrap(), [true]);
        assert_eq!(work.finish().unwrap(), 7);
        let work = Aside::<()>::start(|| panic!("on purpose")).unwrap();
        assert_eq!(process::wait_readable([work.done.as_fd()], soon()).unwrap(), [true]);
        assert_eq!(work.finish().unwrap_err().errno(), libc::EIO);
    }

    #[test]
    fn the_end_of_a_session_is_seen_even_if_its_thread_panics() {
        let (ended, notice) = EndNotice::new().unwrap();
        let now = || Some(Instant::now());
        assert_eq!(process::wait_readable([ended.as_fd()], now()).unwrap(), [false]);
        let thread = thread::spawn(move || {
            let _notice = notice;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        assert_eq!(process::wait_readable([ended.as_fd()], now()).unwrap(), [true]);
    }

    #[test]
    fn descriptors_of_all_layers_are_kept() {
        let mut typed = MountRequest::new("/dev/fd/9");
        typed.lowers = vec!["/dev/fd/3/a".into(), "relative".into(), "/proc/self/fd/4".into()];
        typed.upper = Some("/dev/fd/5".into());
        typed.work = Some("/dev/fd/6".into());
        let launch = Launch::of(&typed);
        assert_eq!(launch.keep, [3, 4, 5, 6]);
        assert_eq!(launch.stay, Stay::Background);
    }
}

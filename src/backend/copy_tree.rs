//! How a directory tree that somebody else filled is copied, so that nobody can tell the copy from it: data (shared,
//! where the disk can), holes, hard links, devices, owners, modes, attributes, times.
//!
//! One walk ([`super::walk`]) makes the directories; workers make everything else. A directory gets its attributes
//! when all in it are made, so that its times stay and it may be read-only. Everything goes by descriptors, nothing
//! through a symlink, nothing across a mount. Whoever waits for the first name of an inode waits for a worker that
//! waits for nobody. A failure or a crash leaves a part of the copy, for the caller to delete.

use super::directory::{Owner, disk_error};
use super::walk::{self, Found, Step, Visitor};
use super::{Progress, copy_file, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::open::DirMode;
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::{self, Place, node};
use plywood_fuse::types::Kind;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

const OPERATION: &str = "copy";

/// How many entries wait for a worker at most. Each holds its directory open, on both sides.
const QUEUE: usize = 64;

/// How many workers there are at most, unless configured: what more would do, one disk does not.
const MAX_WORKERS: usize = 8;

/// Entries and bytes after which the caller is told again.
const TELL_ENTRIES: u64 = 64;
const TELL_BYTES: u64 = 16 << 20;

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of files, holes included.
    pub bytes: u64,
    /// Names, without the root.
    pub entries: u64,
}

/// Copies everything below the directory `from` into the empty directory `to`, and the attributes of `from` itself
/// but its owner, which is `owner`. With `workers` = 0 there are as many as there are processors, within reason.
///
/// # Errors
/// `PermissionDenied`, with what to do, where the caller may not make a device or give a file its owner; `Busy` where
/// something is mounted in `from`; `Cancelled`; those of the disk. A part of the copy stays.
pub fn copy_tree(
    from: &Path,
    to: &Path,
    owner: Owner,
    workers: usize,
    progress: &dyn Progress,
) -> Result<Copied> {
    let opened = |path: &Path| {
        let open = || {
            let base = sys::open::open_root(path)?;
            sys::open::open_dir_at(base.as_fd(), b".", DirMode::List)
        };
        open().map_err(|e| disk_error("open", path, e))
    };
    let (source, target) = (opened(from)?, Arc::new(opened(to)?));
    let stat = sys::stat::stat(Place::Fd(source.as_fd())).map_err(|e| disk_error("look at", from, e))?;
    let shared = Shared {
        root: Arc::clone(&target),
        progress,
        totals: Mutex::default(),
        links: Mutex::default(),
        link_news: Condvar::new(),
        first_error: Mutex::new(None),
        stopped: AtomicBool::new(false),
        files: copy_file::Ways::default(),
    };
    let source_again = source.try_clone().map_err(|e| disk_error("open", from, e.into()))?;
    let root = Pair::new(source_again, target, Vec::new(), stat, Some(owner));
    std::thread::scope(|scope| {
        let (send, receive) = bounded(QUEUE);
        for started in 0..worker_count(workers) {
            let receive = receive.clone();
            let worker = std::thread::Builder::new().name("copy".to_owned());
            match worker.spawn_scoped(scope, || work(&shared, receive)) {
                Ok(_) => {}
                Err(_) if started > 0 => break,
                Err(e) => return shared.fail(Error::io("start thread", "copy", e)),
            }
        }
        drop(receive);
        let mut maker = Maker { shared: &shared, send, levels: vec![Level::of(root)] };
        if let Err(error) = walk::walk(source, &mut maker) {
            shared.fail(error);
        }
    });
    if let Some(error) = shared.first_error.into_inner() {
        return Err(error.during(OPERATION, from.display().to_string()));
    }
    let copied = shared.totals.into_inner().copied;
    progress.copied(copied.bytes, copied.entries);
    Ok(copied)
}

fn worker_count(configured: usize) -> usize {
    // Asked once: the answer is in files of the control group.
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get));
    if configured > 0 { configured } else { processors.min(MAX_WORKERS) }
}

/// What all workers share.
struct Shared<'a> {
    /// The root of the copy.
    root: Arc<OwnedFd>,
    progress: &'a dyn Progress,
    totals: Mutex<Totals>,
    /// Inodes with more than one name, by device and number in the source.
    links: Mutex<HashMap<(u64, u64), Link>>,
    /// An entry of `links` changed.
    link_news: Condvar,
    first_error: Mutex<Option<Error>>,
    stopped: AtomicBool,
    files: copy_file::Ways,
}

#[derive(Default)]
struct Totals {
    copied: Copied,
    told: Copied,
}

/// What became of the first name of an inode.
enum Link {
    /// A worker is at it.
    Copying,
    /// It is there, under this path below the root of the copy.
    Done(Vec<u8>),
    /// It failed, and so will the copy as a whole.
    Failed,
}

impl Shared<'_> {
    /// Keeps the first failure, and stops the others.
    fn fail(&self, error: Error) {
        self.first_error.lock().get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn count(&self, bytes: u64, entries: u64) {
        let mut totals = self.totals.lock();
        totals.copied.bytes += bytes;
        totals.copied.entries += entries;
        let (now, told) = (totals.copied, totals.told);
        if now.entries - told.entries >= TELL_ENTRIES || now.bytes - told.bytes >= TELL_BYTES {
            totals.told = now;
            // Within the lock, so that what the caller hears only grows.
            self.progress.copied(now.bytes, now.entries);
        }
    }
}

impl copy_file::Watch for Shared<'_> {
    fn moved(&self, bytes: u64) -> Result<()> {
        self.count(bytes, 0);
        go_on(self.progress, OPERATION)
    }
}

/// A directory and its copy.
struct Pair {
    from: OwnedFd,
    to: Arc<OwnedFd>,
    /// Below the root.
    path: Vec<u8>,
    stat: Stat,
    /// The owner of the root, which need not be that of the source.
    owner: Option<Owner>,
    /// What is not made yet in it; the walk counts as one.
    open: AtomicUsize,
}

impl Pair {
    fn new(from: OwnedFd, to: Arc<OwnedFd>, path: Vec<u8>, stat: Stat, owner: Option<Owner>) -> Arc<Pair> {
        Arc::new(Pair { from, to, path, stat, owner, open: AtomicUsize::new(1) })
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, name].join(&b'/') }
    }

    /// One thing less; after the last, the directory gets its attributes.
    fn release(&self, shared: &Shared<'_>) {
        if self.open.fetch_sub(1, Ordering::AcqRel) != 1 || shared.is_stopped() {
            return;
        }
        let subject = shown(&self.path);
        let place = Place::Fd(self.to.as_fd());
        let finish = || {
            match self.owner {
                Some(owner) => owner.apply(place, &subject)?,
                None => give_owner(place, &self.stat, &subject)?,
            }
            copy_attributes(Place::Fd(self.from.as_fd()), place, &self.stat, &subject)
        };
        if let Err(error) = finish() {
            shared.fail(error);
        }
    }
}

/// One entry that a worker has to make.
struct Job {
    dir: Arc<Pair>,
    name: Vec<u8>,
}

fn work(shared: &Shared<'_>, jobs: Receiver<Job>) {
    for Job { dir, name } in jobs {
        // After a failure the queue is emptied, so that the walk does not wait.
        if !shared.is_stopped() {
            let made = go_on(shared.progress, OPERATION).and_then(|()| make_entry(shared, &dir, &name));
            match made {
                Ok(()) => shared.count(0, 1),
                Err(error) => shared.fail(error),
            }
        }
        dir.release(shared);
    }
}

fn shown(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(path))
}

/// Makes what is no directory.
fn make_entry(shared: &Shared<'_>, dir: &Pair, name: &[u8]) -> Result<()> {
    let path = dir.path_of(name);
    let subject = shown(&path);
    let from = Place::At(dir.from.as_fd(), name);
    let stat = sys::stat::stat(from).map_err(|e| disk_error("look at", &subject, e))?;
    if stat.nlink == 1 {
        return copy_one(shared, dir, name, &stat, &subject);
    }
    let inode = (stat.dev, stat.ino);
    let mut links = shared.links.lock();
    loop {
        match links.get(&inode) {
            None => break,
            Some(Link::Copying) => shared.link_news.wait(&mut links),
            Some(Link::Failed) => return Ok(()),
            Some(Link::Done(first)) => {
                let first = first.clone();
                drop(links);
                return link(shared, &first, dir, name).map_err(|e| disk_error("link", &subject, e));
            }
        }
    }
    links.insert(inode, Link::Copying);
    drop(links);
    let mut first = FirstName { shared, inode, outcome: Link::Failed };
    copy_one(shared, dir, name, &stat, &subject)?;
    first.outcome = Link::Done(path);
    Ok(())
}

/// Tells those who wait for the first name of an inode how it went, however that ends.
struct FirstName<'a> {
    shared: &'a Shared<'a>,
    inode: (u64, u64),
    outcome: Link,
}

impl Drop for FirstName<'_> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Link::Failed);
        self.shared.links.lock().insert(self.inode, outcome);
        self.shared.link_news.notify_all();
    }
}

fn link(shared: &Shared<'_>, first: &[u8], dir: &Pair, name: &[u8]) -> std::result::Result<(), SysError> {
    let (above, last) = match first.iter().rposition(|&b| b == b'/') {
        Some(at) => (&first[..at], &first[at + 1..]),
        None => (&[][..], first),
    };
    let from = sys::open::open_dir_beneath(shared.root.as_fd(), above, DirMode::Base)?;
    node::link(Place::At(from.as_fd(), last), dir.to.as_fd(), name)
}

fn copy_one(shared: &Shared<'_>, dir: &Pair, name: &[u8], stat: &Stat, subject: &Path) -> Result<()> {
    let (from, to) = (dir.from.as_fd(), dir.to.as_fd());
    let failed = |e| disk_error(OPERATION, subject, e);
    let target = Place::At(to, name);
    match stat.kind() {
        Kind::File => return copy_regular(shared, from, to, name, subject),
        Kind::Symlink => {
            let text = node::read_link(from, name).map_err(failed)?;
            node::symlink(&text, to, name).map_err(failed)?;
        }
        Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block => {
            let mode = stat.kind().mode_bits() | 0o600;
            node::mknod(to, name, mode, stat.rdev).map_err(|e| device_error(stat, subject, e))?;
        }
        Kind::Dir => return Err(failed(SysError::from_errno(libc::EISDIR))),
    }
    give_owner(target, stat, subject)?;
    copy_attributes(Place::At(from, name), target, stat, subject)
}

fn device_error(stat: &Stat, subject: &Path, e: SysError) -> Error {
    if !e.is_denied() {
        return disk_error("make node", subject, e);
    }
    let cause = format!(
        "it is a device ({}:{}), and only root of the machine may make one: run it as root, or use the backend fuse",
        stat.rdev.major, stat.rdev.minor
    );
    let subject = subject.display().to_string();
    Error::new(ErrorKind::PermissionDenied, "make device", subject, cause).with_source(e)
}

fn copy_regular(
    shared: &Shared<'_>,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &[u8],
    subject: &Path,
) -> Result<()> {
    let failed = |e| disk_error(OPERATION, subject, e);
    let source = walk::open_file(from, name).map_err(|e| source_error(subject, e))?;
    // What is open cannot be exchanged any more.
    let stat = sys::stat::stat(Place::Fd(source.as_fd())).map_err(failed)?;
    if stat.kind() != Kind::File {
        return Err(Error::new(
            ErrorKind::Aborted,
            OPERATION,
            subject.display().to_string(),
            "it changed meanwhile",
        ));
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    let target = sys::open::open_at(to, name, flags, 0o600).map_err(failed)?;
    shared.files.copy(source.as_fd(), target.as_fd(), stat.size, shared).map_err(|e| match e {
        copy_file::Failure::Disk(e) => failed(e),
        copy_file::Failure::Caller(e) => e,
    })?;
    let place = Place::Fd(target.as_fd());
    give_owner(place, &stat, subject)?;
    copy_attributes(Place::Fd(source.as_fd()), place, &stat, subject)
}

fn source_error(subject: &Path, e: SysError) -> Error {
    if e.is_cross_device() {
        let cause = "something is mounted there: unmount it first";
        return Error::new(ErrorKind::Busy, OPERATION, subject.display().to_string(), cause).with_source(e);
    }
    disk_error("open", subject, e)
}

/// Gives a new file the owner of its source. Before anything that a change of owner takes away: capabilities, the
/// set-user-id bit.
fn give_owner(place: Place<'_>, stat: &Stat, subject: &Path) -> Result<()> {
    // A copy that belongs to somebody else would be another content: never in silence.
    Owner::Asked(stat.uid, stat.gid).apply(place, subject)
}

/// Attributes, mode and times, in this order: setting an access control list changes the mode, and everything
/// changes the times.
fn copy_attributes(from: Place<'_>, to: Place<'_>, stat: &Stat, subject: &Path) -> Result<()> {
    copy_file::copy_xattrs(from, to).map_err(|(name, e)| {
        disk_error("set attribute", subject, e.during("attribute", name.escape_ascii().to_string()))
    })?;
    let finish = || {
        if stat.kind() != Kind::Symlink {
            sys::stat::chmod(to, stat.mode & 0o7777)?;
        }
        copy_file::copy_times(to, stat)
    };
    finish().map_err(|e| disk_error("set mode and times", subject, e))
}

/// The walk: makes directories, and sends everything else to the workers.
struct Maker<'a> {
    shared: &'a Shared<'a>,
    send: Sender<Job>,
    /// The directories on the way down.
    levels: Vec<Level>,
}

/// A directory of the copy on the way down.
struct Level {
    /// Until all in it was seen.
    pair: Option<Arc<Pair>>,
    /// `None` while enough others below are open.
    to: Option<Arc<OwnedFd>>,
    who: (u64, u64),
}

impl Level {
    fn of(pair: Arc<Pair>) -> Level {
        Level { to: Some(Arc::clone(&pair.to)), pair: Some(pair), who: (0, 0) }
    }
}

impl Maker<'_> {
    fn lost(found: &Found<'_>) -> Error {
        let subject = found.path().display().to_string();
        Error::new(ErrorKind::Aborted, OPERATION, subject, "the copy was moved meanwhile")
    }

    /// Closes the copy of a directory far above; [`walk`] does the same with the source.
    fn close_far(&mut self) -> std::result::Result<(), SysError> {
        let far = self.levels.len().checked_sub(walk::OPEN_DIRS + 1);
        if let Some(level) = far.and_then(|at| self.levels.get_mut(at))
            && let Some(fd) = level.to.take()
        {
            level.who = walk::identity(fd.as_fd())?;
        }
        Ok(())
    }
}

impl Visitor for Maker<'_> {
    fn entry(&mut self, found: &Found<'_>) -> Result<Step> {
        if self.shared.is_stopped() {
            return Ok(Step::Stop);
        }
        go_on(self.shared.progress, OPERATION)?;
        // Here and not in the workers: a test may want it in the thread that called.
        fail::point("c.mid_copy")?;
        let failed = |e| disk_error(OPERATION, &found.path(), e);
        let pair =
            self.levels.last().and_then(|level| level.pair.as_ref()).ok_or_else(|| Self::lost(found))?;
        let kind = match found.kind {
            Some(kind) => kind,
            None => sys::stat::stat(found.place()).map_err(failed)?.kind(),
        };
        if kind == Kind::Dir {
            node::mkdir(pair.to.as_fd(), found.name, 0o700).map_err(failed)?;
            return Ok(Step::Enter);
        }
        pair.open.fetch_add(1, Ordering::Relaxed);
        let job = Job { dir: Arc::clone(pair), name: found.name.to_vec() };
        match self.send.send(job) {
            Ok(()) => Ok(Step::Next),
            // No worker is left: they say why.
            Err(_) => Ok(Step::Stop),
        }
    }

    fn listed(&mut self) -> Result<()> {
        if let Some(pair) = self.levels.last_mut().and_then(|level| level.pair.take()) {
            pair.release(self.shared);
        }
        Ok(())
    }

    fn open(&mut self, found: &Found<'_>) -> Result<Option<OwnedFd>> {
        let path = found.path();
        let failed = |e| disk_error(OPERATION, &path, e);
        let from = walk::open_dir(found.dir, found.name).map_err(|e| source_error(&path, e))?;
        let stat = sys::stat::stat(Place::Fd(from.as_fd())).map_err(failed)?;
        let above =
            self.levels.last().and_then(|level| level.to.as_ref()).ok_or_else(|| Self::lost(found))?;
        let to = open_own(above.as_fd(), found.name).map_err(failed)?;
        let again = from.try_clone().map_err(|e| failed(e.into()))?;
        let path_bytes = path.as_os_str().as_bytes().to_vec();
        self.levels.push(Level::of(Pair::new(again, Arc::new(to), path_bytes, stat, None)));
        self.close_far().map_err(failed)?;
        self.shared.count(0, 1);
        Ok(Some(from))
    }

    fn leave(&mut self, found: &Found<'_>) -> Result<()> {
        let done = self.levels.pop();
        let (Some(done), Some(above)) = (done.and_then(|level| level.to), self.levels.last_mut()) else {
            return Err(Self::lost(found));
        };
        if above.to.is_none() {
            above.to = walk::climb(done.as_fd(), above.who).map(Arc::new);
        }
        Ok(())
    }
}

/// Opens a directory that was just made, for everything.
fn open_own(dir: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, SysError> {
    match sys::open::open_dir_at(dir, name, DirMode::List) {
        // The umask can take even our own permissions.
        Err(e) if e.is_denied() => {
            sys::stat::chmod(Place::At(dir, name), 0o700)?;
            sys::open::open_dir_at(dir, name, DirMode::List)
        }
        other => other,
    }
}

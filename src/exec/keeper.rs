//! The keeper: mounts the snapshot, keeps it while the command runs, and takes everything away again.
//!
//! It is a fork of a process that may have threads: it logs nothing, and what fails it reports.

use super::furnish::{self, Base};
use super::report::Message;
use super::{OPERATION, Plan, init};
use crate::error::{Error, ErrorKind, Result};
use crate::mounting::perform;
use crate::mounting::plan::Step;
use crate::sys::attach;
use crate::sys::child::{self, Arrived, Ended, Fate, Sender, Signals};
use crate::sys::userns::{self, Ids, Threshold};
use plywood_fuse::sys::mount::{Detach, open_fuse_device, unmount};
use plywood_fuse::sys::process::{close_inherited, wait_readable};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the server may take to end after the unmount: it has answered everything by then.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// How long the mount may be in use after the last process has ended: the kernel lets go of some things later.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// The life of the keeper. `life` comes to its end with the caller.
pub fn run(plan: Plan, threshold: Option<Threshold>, report: OwnedFd, life: OwnedFd, signals: &Signals) -> ! {
    let mut keep = vec![report.as_raw_fd(), life.as_raw_fd(), signals.as_fd().as_raw_fd()];
    keep.extend(threshold.iter().flat_map(Threshold::descriptors));
    let mut report = File::from(report);
    let done = close_inherited(&keep).map_err(|e| Error::fuse(OPERATION, "", e)).and_then(|()| {
        child::hear_of_children();
        let left = match threshold {
            Some(threshold) => threshold.enter(),
            None => attach::leave_mount_namespace(),
        };
        left.map_err(|e| Error::io(OPERATION, "leave the mount namespace", e))?;
        let mut keeper = Keeper { plan, server: None, made: None };
        let kept = keeper.set_up().and_then(|base| keeper.keep(&base, &mut report, &life, signals));
        let cleared = keeper.clear();
        kept.and(cleared)
    });
    if let Err(error) = done {
        Message::of(&error).send(&mut report);
    }
    child::end(0)
}

struct Keeper {
    plan: Plan,
    server: Option<Pid>,
    made: Option<MountPoints>,
}

impl Keeper {
    /// Mounts the snapshot.
    fn set_up(&mut self) -> Result<Base> {
        let base = Base::furnish(&self.plan.base)?;
        let mut step = self.plan.step.clone();
        if let Step::Bind { source, .. } = &step {
            let missing = furnish::missing_mount_points(source);
            if step.is_read_only() {
                // Served as a stack it can have a layer below.
                if !missing.is_empty() && open_fuse_device().is_ok() {
                    step = step.as_stack();
                }
            } else {
                self.made = Some(MountPoints::make(source, &missing)?);
            }
        }
        step.put_below(&base.below);
        let running = perform(&step, &base.root, &self.plan.settings, Fate::Follows)?;
        self.server = running.and_then(|r| Pid::from_raw(r.server.pid.cast_signed()));
        Ok(base)
    }

    /// Starts the init and waits for its end.
    fn keep(&mut self, base: &Base, report: &mut File, life: &OwnedFd, signals: &Signals) -> Result<()> {
        let failed = |e| Error::io(OPERATION, "start a process namespace", e);
        let mut wanted = UnshareFlags::NEWPID;
        wanted.set(UnshareFlags::NEWUTS, self.plan.hostname.is_some());
        attach::leave(wanted).map_err(failed)?;
        let Some(init) = child::fork().map_err(failed)? else {
            init::run(&self.plan, base, report, signals);
        };
        let mut caller_lives = true;
        loop {
            while let Some((pid, ended)) = child::ended(None) {
                if pid == init {
                    return init_ended(ended);
                }
                if Some(pid) == self.server {
                    self.server = None;
                    child::kill(init);
                    let _ = child::wait(init);
                    let cause = format!("it ended while the command ran ({ended:?}): changes may be missing");
                    return Err(Error::new(ErrorKind::Io, OPERATION, "server", cause));
                }
            }
            let news = if caller_lives {
                wait_readable([signals.as_fd(), life.as_fd()], None)
            } else {
                wait_readable([signals.as_fd()], None).map(|[signal]| [signal, false])
            };
            let [signal, gone] = news.map_err(|e| Error::fuse(OPERATION, "", e))?;
            if gone {
                caller_lives = false;
                child::kill(init);
            }
            if signal {
                while let Some(arrived) = signals.arrived() {
                    if let Arrived::Signal(number, Sender::Process) = arrived {
                        child::send(init, number);
                    }
                }
            }
        }
    }

    /// Takes everything away again; what is left of the namespace goes with this process.
    fn clear(&mut self) -> Result<()> {
        if let Some(made) = self.made.take() {
            made.remove();
        }
        let root = Base::root_of(&self.plan.base);
        let failed = |e: plywood_fuse::error::Error| Error::fuse("unmount", "snapshot", e);
        let deadline = Instant::now() + BUSY_PATIENCE;
        let mut unmounted = unmount(&root, Detach::Now);
        while unmounted.as_ref().is_err_and(|e| e.errno() == libc::EBUSY) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            unmounted = unmount(&root, Detach::Now);
        }
        let unmounted = match unmounted {
            // Nothing was mounted, because something failed before.
            Err(e) if matches!(e.errno(), libc::EINVAL | libc::ENOENT) => Ok(()),
            Err(e) if e.errno() == libc::EBUSY => unmount(&root, Detach::Lazily).map_err(failed),
            other => other.map_err(failed),
        };
        let ended = self.server.take().map_or(Ok(()), wait_for_server);
        unmounted.and(ended)
    }
}

/// The init reports itself how the command ended; what it cannot report is why it was killed.
fn init_ended(ended: Ended) -> Result<()> {
    match ended {
        Ended::Exit(_) => Ok(()),
        Ended::Signal(number) => {
            let cause = format!("the first process inside was killed by signal {number}");
            Err(Error::new(ErrorKind::Cancelled, OPERATION, "", cause))
        }
    }
}

fn wait_for_server(server: Pid) -> Result<()> {
    let failed = |cause: String| Err(Error::new(ErrorKind::Io, OPERATION, "server", cause));
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let deadline = Instant::now() + END_PATIENCE;
        while Instant::now() < deadline {
            match child::ended(Some(server)) {
                Some((_, Ended::Exit(0))) => return Ok(()),
                Some((_, ended)) => {
                    return failed(format!("it failed at the end ({ended:?}): changes may be missing"));
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        child::send(server, signal);
    }
    let _ = child::wait(server);
    failed("it did not end after the unmount: changes may be missing".to_owned())
}

/// Mount points that a plain directory lacked.
struct MountPoints {
    dir: PathBuf,
    made: Vec<PathBuf>,
    /// The times of the directory before and after they were made.
    times: Option<(Times, Times)>,
}

/// When a directory was last changed, in seconds and nanoseconds.
type Times = (i64, i64);

fn changed(dir: &Path) -> Option<Times> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(dir).ok().map(|m| (m.mtime(), m.mtime_nsec()))
}

impl MountPoints {
    fn make(dir: &Path, missing: &[&str]) -> Result<Self> {
        let before = changed(dir);
        let mut all = Self { dir: dir.to_owned(), made: Vec::new(), times: None };
        for name in missing {
            let path = dir.join(name);
            if let Err(e) = std::fs::create_dir(&path) {
                let error = Error::io(OPERATION, format!("make mount point {}", path.display()), e);
                all.remove();
                return Err(error);
            }
            all.made.push(path);
        }
        all.times = before.zip(changed(dir)).filter(|_| !all.made.is_empty());
        Ok(all)
    }

    /// Removes what is still empty, and makes the directory as old as it was if nobody else has changed it.
    fn remove(self) {
        let untouched = |after| changed(&self.dir) == Some(after);
        let before = self.times.filter(|(_, after)| untouched(*after)).map(|(before, _)| before);
        for path in &self.made {
            let _ = std::fs::remove_dir(path);
        }
        if let (Some((tv_sec, tv_nsec)), Ok(dir)) = (before, File::open(&self.dir)) {
            let last_modification = rustix::fs::Timespec { tv_sec, tv_nsec };
            let last_access = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
            let _ = rustix::fs::futimens(&dir, &rustix::fs::Timestamps { last_access, last_modification });
        }
    }
}

/// True if files can be given to nobody but root here.
pub fn has_one_id() -> bool {
    userns::ids_here() == Ids::One
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;

    #[test]
    fn mount_points_come_and_go_without_a_trace() {
        let dir = TempDir::new();
        let path = dir.path();
        let old = rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
        rustix::fs::futimens(File::open(path).unwrap(), &times).unwrap();
        let made = MountPoints::make(path, &["proc", "dev"]).unwrap();
        assert!(path.join("proc").is_dir() && path.join("dev").is_dir());
        made.remove();
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
        assert_eq!(changed(path), Some((1_000_000, 5)));
        // What was put into one, and what was changed beside, stays.
        let made = MountPoints::make(path, &["proc", "dev"]).unwrap();
        std::fs::write(path.join("dev/file"), "x").unwrap();
        std::fs::write(path.join("new"), "x").unwrap();
        made.remove();
        assert!(path.join("dev/file").exists() && !path.join("proc").exists());
        assert_ne!(changed(path), Some((1_000_000, 5)));
    }
}

//! Who carries out a mount, where is it, and is it still there?
//!
//! [`attach`] carries out the mounts of a snapshot at a directory as whoever runs it: root and root of a user namespace
//! by system calls, a plain user by a server of the layer stack and `fusermount3`. What it answers, [`Attached`], is
//! plain data to be recorded; from that [`state`] tells later, perhaps after a crash or a restart, what became of the
//! mount, and [`detach`] ends it.
//!
//! - `plan`: what to do, a pure function of mount and privilege.
//! - `server`: the life of a server.
//! - `state`: what became of a recorded mount.
//! - `temporary`: mounts that end when nobody looks any more.
//!
//! A failure leaves nothing mounted and no process. A crash between mount and record leaves a mount that nobody knows:
//! it is in `/proc/mounts`, and [`detach`] ends it by its path.

pub mod plan;
pub mod server;
mod state;
pub mod temporary;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::attach::{self as kernel, MountFlags};
use crate::sys::child::Fate;
use crate::sys::userns::{Privilege, find_program};
use crate::types::Mount;
use plan::Step;
use plywood_fuse::sys::mount::{Detach as KernelDetach, mounted_at, unmount};
pub use server::Server;
pub use state::{State, find_dead, is_live, is_seen_by_others, state};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const OPERATION: &str = "mount";

/// How long a mount may be in use before it counts as busy. A program that another thread of ours starts holds our open
/// files for a moment.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);

/// How long a server may take to end once its mount is gone: it writes nothing then.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How mounts are carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSettings {
    /// The program that serves layer stacks, as a path or a name; see [`server::find`] for where it is looked for.
    pub fuse_program: Option<PathBuf>,
    /// A directory of ours on the disk of the snapshots, for mount points and the like.
    pub scratch: PathBuf,
    /// More options for each server, after those of the mount.
    pub fuse_options: Vec<String>,
}

impl MountSettings {
    /// The defaults, with this directory for mount points and the like: [`crate::layout::Layout::mounts`].
    pub fn new(scratch: &Path) -> Self {
        Self { fuse_program: None, scratch: scratch.to_owned(), fuse_options: Vec::new() }
    }
}

/// Who keeps a mount going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The kernel alone.
    Kernel,
    /// A server.
    Server,
}

/// A mount that was made; all that is needed to recognise it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Where: an absolute path without symbolic links.
    pub target: PathBuf,
    /// The kernel's number of the mount. Since Linux 6.8 it is never given to another one.
    pub mount_id: u64,
    /// The number of the mount namespace in which it is seen.
    pub namespace: u64,
    /// The server, if there is one.
    pub server: Option<Server>,
    /// Which start of the machine this was: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Who keeps it going.
    pub how: How,
}

/// How to end a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Only if nobody uses it.
    Clean,
    /// Out of sight at once; it goes when nobody uses it any more.
    Lazy,
}

/// Which start of the machine this is; empty where that cannot be known.
pub fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Carries out the mounts of a snapshot (there is one) at the directory `target`.
///
/// On return the files can be seen. A failure leaves nothing mounted.
///
/// # Errors
/// `NotFound` if `target` or the server's program is missing; `FailedPrecondition` if a dead file system is mounted at
/// `target`; `PermissionDenied` if the kernel does not mount this for us; `InvalidArgument` for more than one mount;
/// `Io` with what the server or the kernel said.
pub fn attach(mounts: &[Mount], target: &Path, settings: &MountSettings) -> Result<Attached> {
    let step = plan::plan(single(mounts)?, Privilege::current(), &settings.scratch)?;
    let target = mount_point(target)?;
    let running = perform(&step, &target, settings, Fate::Outlives)?;
    if let Some(words) = running.as_ref().map(|r| &r.words).filter(|words| !words.is_empty()) {
        tracing::warn!(target = %target.display(), "the server said: {words}");
    }
    let server = running.map(|running| running.server);
    let describe = || -> io::Result<Attached> {
        Ok(Attached {
            mount_id: kernel::mount_number(&target)?,
            namespace: kernel::mount_namespace(None)?,
            how: if server.is_some() { How::Server } else { How::Kernel },
            target: target.clone(),
            server,
            boot_id: boot_id(),
        })
    };
    describe().map_err(|e| {
        // The first error is the one to tell.
        let _ = detach(&target, server, Detach::Lazy);
        Error::io(OPERATION, target.display().to_string(), e)
    })
}

/// Makes a file system read-only wherever it is mounted.
///
/// # Errors
/// `Busy` while a file is open for writing; those of the kernel.
pub fn freeze(target: &Path) -> Result<()> {
    kernel::freeze(target).map_err(|e| Error::io("make read-only", target.display().to_string(), e))
}

/// The one mount there is.
pub(crate) fn single(mounts: &[Mount]) -> Result<&Mount> {
    match mounts {
        [mount] => Ok(mount),
        _ => {
            let cause = format!("a snapshot has one mount, not {}", mounts.len());
            Err(Error::new(ErrorKind::InvalidArgument, OPERATION, "", cause))
        }
    }
}

/// The canonical path of a directory to mount at.
fn mount_point(target: &Path) -> Result<PathBuf> {
    let failed = |e: io::Error| {
        let subject = target.display().to_string();
        match e.raw_os_error() {
            Some(libc::ENOTCONN) => {
                let cause = "a file system that is mounted here has died: unmount it first (plywood umount)";
                Error::new(ErrorKind::FailedPrecondition, OPERATION, subject, cause)
            }
            _ => Error::io(OPERATION, subject, e),
        }
    };
    let canonical = fs::canonicalize(target).map_err(failed)?;
    if !fs::metadata(&canonical).map_err(failed)?.is_dir() {
        let cause = "this is no directory";
        return Err(Error::new(ErrorKind::InvalidArgument, OPERATION, target.display().to_string(), cause));
    }
    Ok(canonical)
}

/// Carries out one step at a canonical path; answers with the server if it started one.
///
/// # Errors
/// As [`attach`].
pub(crate) fn perform(
    step: &Step,
    target: &Path,
    settings: &MountSettings,
    fate: Fate,
) -> Result<Option<server::Running>> {
    let failed = |subject: &str| {
        let subject = format!("{subject} at {}", target.display());
        move |e: io::Error| Error::io(OPERATION, subject.clone(), e)
    };
    match step {
        Step::Bind { source, depth, flags } => {
            let failed = failed(&source.display().to_string());
            kernel::bind(source, target, *depth).map_err(&failed)?;
            if !flags.is_empty()
                && let Err(e) = kernel::set_flags(target, *flags)
            {
                let _ = unmount(target, KernelDetach::Lazily);
                return Err(failed(e));
            }
            Ok(None)
        }
        Step::Overlay { lowers, rest, flags } => {
            overlay(lowers, rest, *flags, target).map_err(failed("overlay"))?;
            Ok(None)
        }
        Step::Kernel { kind, source, options, flags } => {
            let mounted = kernel::mount(source, target, kind, *flags, &options.join(","));
            mounted.map_err(failed(source))?;
            Ok(None)
        }
        Step::Serve { .. } => {
            let mut step = step.clone();
            if let Step::Serve { options, .. } = &mut step {
                options.extend(settings.fuse_options.iter().cloned());
            }
            server::start(&step, target, settings, fate).map(Some)
        }
    }
}

/// Mounts a stack by the kernel, however long its options are (S78).
///
/// mount(2) takes one page of options. More are given one by one (Linux 6.7), each of at most 255 bytes; so the common
/// beginning of all paths becomes the current directory, of a thread of our own. Where the kernel takes no single
/// layers, the shortened paths may still fit the page.
fn overlay(lowers: &[String], rest: &[String], flags: MountFlags, target: &Path) -> io::Result<()> {
    let text = |lowers: &[String], rest: &[String]| {
        let escaped: Vec<String> =
            lowers.iter().map(|l| l.replace('\\', "\\\\").replace(':', "\\:")).collect();
        let lowerdir = format!("lowerdir={}", escaped.join(":"));
        let options: Vec<&str> =
            std::iter::once(lowerdir.as_str()).chain(rest.iter().map(|r| &**r)).collect();
        options.join(",")
    };
    let whole = text(lowers, rest);
    if whole.len() < kernel::page_size() {
        return kernel::mount("overlay", target, "overlay", flags, &whole);
    }
    let base = common_directory(lowers);
    let shorten = |path: &str| {
        let relative = Path::new(path).strip_prefix(&base).ok().and_then(Path::to_str);
        relative.filter(|relative| !relative.is_empty()).unwrap_or(path).to_owned()
    };
    let lowers: Vec<String> = lowers.iter().map(|lower| shorten(lower)).collect();
    let rest: Vec<String> = rest
        .iter()
        .map(|option| match option.split_once('=') {
            Some((key @ ("upperdir" | "workdir"), path)) => format!("{key}={}", shorten(path)),
            _ => option.clone(),
        })
        .collect();
    kernel::in_directory(&base, || {
        let mut parts: Vec<(&str, Option<&str>)> =
            lowers.iter().map(|lower| ("lowerdir+", Some(lower.as_str()))).collect();
        parts.extend(rest.iter().map(|option| match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        }));
        let by_parts = kernel::mount_by_parts("overlay", &parts, target, flags);
        let short = text(&lowers, &rest);
        match by_parts {
            Err(_) if short.len() < kernel::page_size() => {
                kernel::mount("overlay", target, "overlay", flags, &short)
            }
            Err(e) => {
                let cause =
                    format!("{e}: {} layers are too many for this kernel: use backend fuse", lowers.len());
                Err(io::Error::new(e.kind(), cause))
            }
            done => done,
        }
    })
}

/// The longest directory that all paths are below of.
fn common_directory(paths: &[String]) -> PathBuf {
    let mut paths = paths.iter().map(Path::new);
    let first = paths.next().and_then(Path::parent).unwrap_or(Path::new("/")).to_path_buf();
    paths.fold(first, |common, path| {
        common.ancestors().find(|dir| path.starts_with(dir)).unwrap_or(Path::new("/")).to_path_buf()
    })
}

/// Ends the mount at `target` with all that is mounted below it, and waits for its server to end. That nothing is
/// mounted there is fine (S82).
///
/// # Errors
/// `Busy` if somebody uses it, and it is to go cleanly; `PermissionDenied` if it belongs to somebody else.
pub fn detach(target: &Path, server: Option<Server>, how: Detach) -> Result<()> {
    let target = resolve(target);
    let points = kernel::mount_points(&target);
    let points = points.map_err(|e| Error::io("unmount", target.display().to_string(), e))?;
    // What is hidden below the target goes first; a lazy unmount takes it along.
    // The last mounted comes first. What was mounted before ours, there or below, is somebody else's.
    let Some(ours) = points.iter().position(|point| *point == target) else { return Ok(()) };
    let points = &points[..=ours];
    let deadline = Instant::now() + BUSY_PATIENCE;
    for point in points.iter().filter(|point| how == Detach::Clean || **point == target) {
        let mut done = unmount_one(point, how);
        while done.as_ref().is_err_and(|e| e.kind() == ErrorKind::Busy) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            done = unmount_one(point, how);
        }
        done?;
    }
    if let Some(server) = server.filter(|server| !points.is_empty() && server.is_running())
        && how == Detach::Clean
        && !server.wait_for_end(END_PATIENCE)
    {
        // Another namespace holds a copy of the mount: it ends with that one.
        tracing::warn!(target = %target.display(), pid = server.pid, "the server still runs after the unmount");
    }
    Ok(())
}

/// The canonical path, also where a dead file system is mounted, or one that is not for us.
fn resolve(target: &Path) -> PathBuf {
    let by_parent = || {
        let absolute = std::path::absolute(target).ok()?;
        Some(fs::canonicalize(absolute.parent()?).ok()?.join(absolute.file_name()?))
    };
    fs::canonicalize(target).ok().or_else(by_parent).unwrap_or_else(|| target.to_owned())
}

fn unmount_one(point: &Path, how: Detach) -> Result<()> {
    let subject = || point.display().to_string();
    let busy = || {
        let cause =
            "somebody uses it: end the programs that work in it (fuser -vm tells which), or unmount lazily";
        Error::new(ErrorKind::Busy, "unmount", subject(), cause)
    };
    let kernel_how = match how {
        Detach::Clean => KernelDetach::Now,
        Detach::Lazy => KernelDetach::Lazily,
    };
    let Err(error) = unmount(point, kernel_how) else { return Ok(()) };
    match error.errno() {
        // Nothing is mounted there, any more.
        libc::EINVAL | libc::ENOENT => return Ok(()),
        libc::EBUSY => return Err(busy()),
        libc::EPERM => {}
        _ => return Err(Error::fuse("unmount", subject(), error)),
    }
    let kind = mounted_at(point).map_err(|e| Error::fuse("unmount", subject(), e))?;
    let is_fuse = |kind: &str| kind == "fuse" || kind.starts_with("fuse.");
    match kind {
        None => return Ok(()),
        Some((kind, _)) if kind.to_str().is_some_and(is_fuse) => {}
        Some(_) => return Err(Error::fuse("unmount", subject(), error)),
    }
    let Some(program) = find_program("fusermount3").or_else(|| find_program("fusermount")) else {
        let cause = "fusermount3 is not found: install package fuse3";
        return Err(Error::new(ErrorKind::NotFound, "unmount", subject(), cause));
    };
    let words: &[&str] = if how == Detach::Lazy { &["-u", "-z", "--"] } else { &["-u", "--"] };
    let output = Command::new(program).args(words).arg(point).stdin(Stdio::null()).output();
    let output = output.map_err(|e| Error::io("unmount", subject(), e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    match () {
        () if mounted_at(point).is_ok_and(|there| there.is_none()) => Ok(()),
        () if said.contains("busy") => Err(busy()),
        () => Err(Error::new(ErrorKind::PermissionDenied, "unmount", subject(), said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_directory_is_above_all_layers() {
        let of = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
            common_directory(&paths)
        };
        assert_eq!(of(&["/s/snapshots/7/fs", "/s/snapshots/12/fs"]), Path::new("/s/snapshots"));
        assert_eq!(of(&["/s/snapshots/7/fs"]), Path::new("/s/snapshots/7"));
        assert_eq!(of(&["/a", "/b"]), Path::new("/"));
        assert_eq!(of(&["/ab/x", "/a/x"]), Path::new("/"));
    }

    #[test]
    fn a_snapshot_has_exactly_one_mount() {
        assert_eq!(single(&[]).unwrap_err().kind(), ErrorKind::InvalidArgument);
        let mount = Mount { kind: "bind".into(), source: "/".into(), options: Vec::new() };
        assert_eq!(single(std::slice::from_ref(&mount)).unwrap(), &mount);
        assert!(single(&[mount.clone(), mount]).is_err());
    }

    #[test]
    fn nothing_is_mounted_at_a_file_or_at_nothing() {
        assert_eq!(mount_point(Path::new("/no such place")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(mount_point(Path::new("/etc/passwd")).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn to_unmount_what_is_not_mounted_does_nothing() {
        // S82
        let dir = plywood_fuse::testing::TempDir::new();
        detach(dir.path(), None, Detach::Clean).unwrap();
        detach(&dir.path().join("missing"), None, Detach::Lazy).unwrap();
    }
}

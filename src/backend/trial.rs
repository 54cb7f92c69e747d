//! Whether a backend works here, found out by doing: a scratch stack is mounted, read, written, and unmounted.
//!
//! Everything is below one `new-0-*` in the store, where no snapshot is, and goes when the trial is over. Who may make
//! a mount namespace mounts in one of his own, so that even a crash leaves no mount behind; a plain user mounts
//! through `fusermount3`, where everybody can see it. The name tells who tries, and a cleanup spares it while he lives.

use super::delete::delete_tree;
use super::directory::{disk_error, make};
use super::native::can_share_data;
use super::open::{BackendSettings, needs};
use super::overlay::extra_options;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{Layout, TRIAL};
use crate::sys::mount;
use crate::sys::userns::Privilege;
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::mount::{Detach, FUSE_DEVICE, open_fuse_device, unmount};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long an unmount is tried: a mount is busy for a moment after it was looked at.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a mount may take; a server that answers does so at once.
const MOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// A directory for one trial.
struct Scratch(PathBuf);

impl Scratch {
    fn new(layout: &Layout) -> Result<Scratch> {
        let path = layout.staged(TRIAL);
        make(&path, 0o700)?;
        Ok(Scratch(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Layers for a stack: one file below, one whiteout to be made, one file to be written.
    fn stack(&self, extra: &[String]) -> Result<Stack> {
        let target = Layout::trial_mount(&self.0);
        make(&target, 0o755)?;
        for name in ["low", "fs", "work"] {
            make(&self.path(name), 0o755)?;
        }
        for name in ["low/a", "low/b"] {
            let path = self.path(name);
            std::fs::write(&path, "below").map_err(|e| disk_error("write", &path, e.into()))?;
        }
        let layer = |key: &str, name: &str| format!("{key}={}", self.path(name).display());
        let mut options = vec![layer("workdir", "work"), layer("upperdir", "fs"), layer("lowerdir", "low")];
        options.extend(extra.iter().cloned());
        Ok(Stack { target, options: options.join(",") })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = delete_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the remains of a trial stay until the next cleanup");
        }
    }
}

/// A stack that can be mounted.
struct Stack {
    target: PathBuf,
    options: String,
}

impl Stack {
    /// Looks whether the mounted stack behaves.
    fn use_it(&self) -> io::Result<()> {
        let (a, b) = (self.target.join("a"), self.target.join("b"));
        let below = std::fs::read(&a)?;
        std::fs::write(&a, "above")?;
        std::fs::remove_file(&b)?;
        let names = std::fs::read_dir(&self.target)?.count();
        if below != b"below" || std::fs::read(&a)? != b"above" || names != 1 {
            return Err(io::Error::other("it is mounted, but shows something else than it should"));
        }
        Ok(())
    }
}

/// Tries `plywood-fuse`.
///
/// # Errors
/// What is missing, and what to do.
pub fn fuse(layout: &Layout, settings: &BackendSettings) -> Result<String> {
    let program = settings.find_fuse_program()?;
    let scratch = Scratch::new(layout)?;
    let stack = scratch.stack(&settings.fuse_options)?;
    let attempt = || {
        run_fuse(&program, &stack)?;
        let used = stack.use_it();
        let ended = end_fuse(&stack.target);
        used.and(ended)
    };
    let tried = match mount::in_private_namespace(attempt) {
        Ok(tried) => tried,
        // A plain user, or a filter.
        Err(_) => attempt(),
    };
    tried.map_err(|e| unsupported("fuse", &e, fuse_advice()))?;
    Ok(String::new())
}

/// Why FUSE may not work, as far as can be seen from here.
fn fuse_advice() -> String {
    match open_fuse_device() {
        Ok(_) if Privilege::current() == Privilege::User => {
            "install fusermount3 (package fuse3), or run it inside a user namespace".to_owned()
        }
        Ok(_) => format!("{FUSE_DEVICE} is there: look at the message of the program"),
        Err(e) if e.is_denied() && Privilege::current() == Privilege::User => {
            format!("let this user open {FUSE_DEVICE} (chmod 0666), or install fusermount3 (package fuse3)")
        }
        Err(e) if e.is_denied() => {
            format!("let this user open {FUSE_DEVICE}: chmod 0666 {FUSE_DEVICE} as root")
        }
        Err(_) => {
            format!(
                "{FUSE_DEVICE} is missing: load the kernel module fuse, or pass the device into this container"
            )
        }
    }
}

fn unsupported(what: &'static str, e: &io::Error, advice: String) -> Error {
    Error::new(ErrorKind::Unsupported, "try", what, format!("{e}: {advice}"))
}

/// Starts the program, which returns when its mount answers.
fn run_fuse(program: &Path, stack: &Stack) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg("overlay").arg(&stack.target).arg("-o").arg(&stack.options);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let deadline = Instant::now() + MOUNT_PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            let _ = unmount(&stack.target, Detach::Lazily);
            return Err(io::Error::other("the mount did not answer in time"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no reason given").trim();
    Err(io::Error::other(format!("the mount failed: {last}")))
}

/// Unmounts as whoever mounted.
fn end_fuse(target: &Path) -> io::Result<()> {
    let deadline = Instant::now() + UNMOUNT_PATIENCE;
    loop {
        let ended = match unmount(target, Detach::Now) {
            Err(e) if e.is_denied() => fusermount(target),
            other => other,
        };
        match ended {
            Ok(()) => return Ok(()),
            Err(e) if e.errno() == libc::EBUSY && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => {
                let _ = unmount(target, Detach::Lazily);
                return Err(e.during("unmount", target.display().to_string()).into());
            }
        }
    }
}

fn fusermount(target: &Path) -> std::result::Result<(), SysError> {
    let mut command = Command::new("fusermount3");
    command.args(["-u", "--"]).arg(target);
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // It has one exit code for all failures.
    Err(SysError::new(libc::EBUSY, "fusermount3", target.display().to_string(), words))
}

/// Tries the kernel's overlayfs.
///
/// # Errors
/// What is missing, and what to do.
pub fn overlay(layout: &Layout, settings: &BackendSettings) -> Result<String> {
    let scratch = Scratch::new(layout)?;
    let extra = extra_options(&settings.overlay_options, needs(layout));
    let stack = scratch.stack(&extra)?;
    let tried = mount::in_private_namespace(|| {
        mount::overlay(&stack.target, &stack.options)?;
        let used = stack.use_it();
        let ended = unmount(&stack.target, Detach::Now).or_else(|_| unmount(&stack.target, Detach::Lazily));
        used.and(ended.map_err(Into::into))
    });
    match tried {
        Ok(Ok(())) => Ok(String::new()),
        Ok(Err(e)) => Err(unsupported("overlay", &e, overlay_advice(&e))),
        Err(e) if e.is_denied() => {
            let advice = "only root may mount it: run it as root, or inside a user namespace (unshare -Urm)";
            Err(unsupported("overlay", &e.into(), advice.to_owned()))
        }
        Err(e) => Err(unsupported("overlay", &e.into(), "no mount namespace can be made".to_owned())),
    }
}

fn overlay_advice(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENODEV) => "this kernel has no overlayfs: load the module overlay".to_owned(),
        Some(libc::EPERM) => {
            "this kernel does not mount overlayfs in a user namespace (Linux 5.11 does): run it as root".to_owned()
        }
        Some(libc::EINVAL) => {
            "the file system of the store cannot be an upper layer, or an option of overlay_options is wrong: the \
             kernel log (dmesg) has the details"
                .to_owned()
        }
        _ => "the kernel log (dmesg) has the details".to_owned(),
    }
}

/// Tries full copies: they always work, so only how much they cost is told.
///
/// # Errors
/// Those of the disk: nothing can be made there at all.
pub fn native(layout: &Layout) -> Result<String> {
    let scratch = Scratch::new(layout)?;
    Ok(if can_share_data(&scratch.0)? {
        "copies share their data with the original (reflink)".to_owned()
    } else {
        "every snapshot is a full copy: this file system cannot share data (reflink)".to_owned()
    })
}

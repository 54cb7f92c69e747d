//! The random operations of `model.rs`, by system calls on a real mount.
//!
//! Fails where nothing can be mounted, unless `PLYWOOD_SKIP_MOUNTED=1` says to leave it out.

use plywood_fuse::error::{Error, Result};
use plywood_fuse::overlay::changes::Change;
use plywood_fuse::overlay::{Metacopy, Renames};
use plywood_fuse::testing::judge;
use plywood_fuse::testing::model::{Stack, Subject, Variant};
use plywood_fuse::testing::operation::{Answer, Operation};
use plywood_fuse::testing::plain::Plain;
use plywood_fuse::testing::suite;
use plywood_fuse::testing::tree::Entries;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How long a server may take to mount, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server in the foreground, and the tree that it shows.
struct Mounted {
    variant: Variant,
    running: Option<Running>,
}

struct Running {
    server: Child,
    merged: PathBuf,
    plain: Plain,
}

fn failed(what: &'static str, words: impl Into<String>) -> Error {
    Error::new(libc::EIO, what, "plywood-fuse", words)
}

fn is_mounted(merged: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == merged.to_str())
}

fn wait(mut until: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !until() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

impl Subject for Mounted {
    fn open(&mut self, stack: &Stack) -> Result<()> {
        let merged = stack.work.with_extension("merged");
        std::fs::create_dir_all(&merged)?;
        let lowers: Vec<String> = stack.lowers.iter().map(|l| l.display().to_string()).collect();
        let redirect = match self.variant.renames {
            Renames::Redirect => "on",
            Renames::Copy => "copy",
            Renames::Refuse => "off",
            Renames::RefuseAndIgnore => "nofollow",
        };
        let metacopy = if self.variant.metacopy == Metacopy::On { "on" } else { "off" };
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir={redirect},metacopy={metacopy},suid,dev",
            lowers.join(":"),
            stack.upper.display(),
            stack.work.display(),
        );
        if self.variant.user_xattr {
            options.push_str(",userxattr");
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_plywood-fuse"));
        command.arg("-f").arg("-o").arg(options).arg(&merged);
        if self.variant.whiteout_files {
            command.env("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1");
        }
        let mut server = command.spawn()?;
        let up = wait(|| is_mounted(&merged) || server.try_wait().is_ok_and(|ended| ended.is_some()));
        if !up || !is_mounted(&merged) {
            return Err(failed("mount", "the server did not come up"));
        }
        let plain = Plain::open(&merged)?;
        self.running = Some(Running { server, merged, plain });
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(Running { mut server, merged, mut plain }) = self.running.take() else { return Ok(()) };
        plain.close_handles();
        drop(plain);
        judge::unmount(&merged).map_err(|words| failed("unmount", words))?;
        let ended = wait(|| server.try_wait().is_ok_and(|ended| ended.is_some()));
        if !ended {
            server.kill()?;
            return Err(failed("unmount", "the server did not end"));
        }
        match server.wait()?.success() {
            true => Ok(()),
            false => Err(failed("unmount", "the server failed")),
        }
    }

    fn apply(&mut self, operation: &Operation) -> Result<Answer> {
        self.running()?.plain.apply(operation)
    }

    fn entries(&mut self, dir: &str) -> Result<Entries> {
        self.running()?.plain.entries(dir)
    }

    fn is_absent(&mut self, path: &str) -> Result<bool> {
        match self.running()?.plain.identity(path) {
            Ok(_) => Ok(false),
            Err(e) if e.is_absent() => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn changes(&mut self) -> Option<Result<Vec<Change>>> {
        None
    }
}

impl Mounted {
    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().ok_or_else(|| failed("use mount", "not mounted"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = Command::new("umount").arg("-l").arg(&running.merged).status();
            let _ = running.server.kill();
            let _ = running.server.wait();
        }
    }
}

fn mounted(variant: &Variant) -> Box<dyn Subject> {
    Box::new(Mounted { variant: variant.clone(), running: None })
}

#[test]
fn a_mount_with_redirects_shows_the_tree_of_the_reference() {
    if suite::may_mount_fuse() {
        suite::random(&Variant::usual(), 12_000, &mounted);
    }
}

#[test]
fn a_mount_that_renames_by_copies_shows_the_tree_of_the_reference() {
    if suite::may_mount_fuse() {
        let variant = Variant { renames: Renames::Copy, metacopy: Metacopy::Off, ..Variant::usual() };
        suite::random(&variant, 10_000, &mounted);
    }
}

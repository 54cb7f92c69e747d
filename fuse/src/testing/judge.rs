//! The second judge: what the kernel's overlayfs shows of the same layers.

use super::model::Stack;
use super::tree::{self, Entries};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How often an unmount is tried.
const TRIES: usize = 100;

/// Mounts the layers for reading, looks at everything, and unmounts.
///
/// With `user_xattr` marks are below `user.`; then neither redirects nor metacopy files are followed.
///
/// # Errors
/// In words: the mount fails, or a part of the tree cannot be read.
pub fn look(stack: &Stack, user_xattr: bool, target: &Path) -> Result<Entries, String> {
    let (upper, work) = (target.with_extension("upper"), target.with_extension("work"));
    for dir in [target, &work] {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    }
    // A copy, since the kernel tidies even where it only reads: it removes marks that it finds needless.
    command(Command::new("cp").arg("-a").arg("--").args([&stack.upper, &upper]))?;
    let mut options = OsString::from("ro,lowerdir=");
    for (at, lower) in stack.lowers.iter().enumerate() {
        options.push(if at == 0 { "" } else { ":" });
        options.push(lower);
    }
    for (name, path) in [(",upperdir=", &upper), (",workdir=", &work)] {
        options.push(name);
        options.push(path);
    }
    options.push(if user_xattr { ",userxattr" } else { ",redirect_dir=on,metacopy=on,index=off,xino=off" });
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o"]).arg(options).arg(target);
    command(&mut mount)?;
    let seen =
        tree::snapshot(target).map_err(|e| format!("the kernel's overlayfs cannot read its tree: {e}"));
    let unmounted = unmount(target);
    let removed = std::fs::remove_dir_all(&upper);
    let seen = seen?;
    unmounted?;
    removed.map_err(|e| format!("remove {}: {e}", upper.display()))?;
    Ok(seen)
}

/// Unmounts; another thread that starts a program may hold a descriptor for a moment.
///
/// # Errors
/// In words, if that takes more than two seconds.
pub fn unmount(target: &Path) -> Result<(), String> {
    let mut unmounted = command(Command::new("umount").arg(target));
    for _ in 0..TRIES {
        if unmounted.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        unmounted = command(Command::new("umount").arg(target));
    }
    unmounted
}

fn command(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

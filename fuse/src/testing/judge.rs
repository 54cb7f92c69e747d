//! The second judge: what the kernel's overlayfs shows of the same layers.

use super::model::Stack;
use super::tree::{self, Entries};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// Mounts the layers for reading, looks at everything, and unmounts.
///
/// With `user_xattr` marks are below `user.`; then neither redirects nor metacopy files are followed.
///
/// # Errors
/// In words: the mount fails, or a part of the tree cannot be read.
pub fn look(stack: &Stack, user_xattr: bool, target: &Path) -> Result<Entries, String> {
    for dir in [target.to_owned(), target.with_extension("work")] {
        std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    }
    let mut options = OsString::from("ro,lowerdir=");
    for (at, lower) in stack.lowers.iter().enumerate() {
        options.push(if at == 0 { "" } else { ":" });
        options.push(lower);
    }
    for (name, path) in [(",upperdir=", &stack.upper), (",workdir=", &target.with_extension("work"))] {
        options.push(name);
        options.push(path);
    }
    options.push(if user_xattr { ",userxattr" } else { ",redirect_dir=on,metacopy=on,index=off,xino=off" });
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o"]).arg(options).arg(target);
    command(&mut mount)?;
    let seen =
        tree::snapshot(target).map_err(|e| format!("the kernel's overlayfs cannot read its tree: {e}"));
    let unmounted = command(Command::new("umount").arg(target));
    let seen = seen?;
    unmounted?;
    Ok(seen)
}

fn command(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

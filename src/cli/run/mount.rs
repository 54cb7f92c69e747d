//! `mounts`, `mount`, `umount`.

use super::{Outcome, Session};
use crate::cli::args;
use crate::cli::namespace::Touches;
use crate::cli::output::{Answer, printable, shell_word};
use crate::types::Mount;
use serde::Serialize;
use std::ffi::OsStr;
use std::path::PathBuf;

/// How a snapshot is mounted.
#[derive(Serialize)]
pub(super) struct Mounts<'a> {
    pub key: &'a str,
    pub mounts: &'a [Mount],
    #[serde(skip)]
    pub target: Option<&'a OsStr>,
}

impl Answer for Mounts<'_> {
    /// One command of mount(8) a line, as a shell reads it.
    fn text(&self) -> String {
        let target = self.target.unwrap_or(OsStr::new("TARGET")).to_string_lossy();
        let line = |mount: &Mount| {
            let options = mount.options.join(",");
            let words = ["mount", "-t", &mount.kind, &mount.source, &target, "-o", &options];
            printable(&words.map(shell_word).join(" ")) + "\n"
        };
        self.mounts.iter().map(line).collect()
    }
}

pub(super) fn mounts(session: &Session, args: &args::Mounts) -> Outcome {
    let snapshotter = match session.open_or_enter(Touches::RowsOrLayers, |_| false)? {
        Ok(snapshotter) => snapshotter,
        Err(code) => return Ok(code),
    };
    let mounts = snapshotter.mounts(&args.key)?;
    Session::close(&snapshotter);
    session.print(&Mounts { key: &args.key, mounts: &mounts, target: Some(args.target.as_os_str()) })
}

/// A snapshot that is mounted.
#[derive(Serialize)]
struct Mounted<'a> {
    key: &'a str,
    target: String,
}

impl Answer for Mounted<'_> {
    fn text(&self) -> String {
        String::new()
    }
}

pub(super) fn mount(session: &Session, args: &args::Mount) -> Outcome {
    let snapshotter = session.open()?;
    let mounted = snapshotter.mount(&args.key, &args.target)?;
    Session::close(&snapshotter);
    session.print(&Mounted { key: &args.key, target: mounted.target.to_string_lossy().into_owned() })
}

/// What is no longer mounted.
#[derive(Serialize)]
struct Unmounted {
    unmounted: Vec<String>,
}

impl Answer for Unmounted {
    fn text(&self) -> String {
        String::new()
    }
}

pub(super) fn umount(session: &Session, args: &args::Umount) -> Outcome {
    let snapshotter = session.open()?;
    let ended = snapshotter.unmount(PathBuf::from(&args.target))?;
    Session::close(&snapshotter);
    let unmounted = ended.iter().map(|target| target.to_string_lossy().into_owned()).collect();
    session.print(&Unmounted { unmounted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_commands_that_a_shell_reads() {
        let mount = |source: &str, options: &[&str]| Mount {
            kind: "overlay".to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let mounts = [mount("overlay", &["lowerdir=/a:/b", "ro"]), mount("it's", &[])];
        let of = |target: Option<&str>| {
            Mounts { key: "k", mounts: &mounts, target: target.map(OsStr::new) }.text()
        };
        assert_eq!(
            of(Some("/m p")),
            "mount -t overlay overlay '/m p' -o lowerdir=/a:/b,ro\n\
             mount -t overlay 'it'\\''s' '/m p' -o ''\n"
        );
        assert!(of(None).starts_with("mount -t overlay overlay TARGET -o "));
    }
}

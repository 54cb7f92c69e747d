//! What became of a mount that was recorded?

use super::server::Server;
use super::{Attached, Detach, How, boot_id, detach};
use crate::error::{Error, Result};
use crate::sys::attach as kernel;
use plywood_fuse::sys::mount::ask_attributes;
use plywood_fuse::sys::process::effective_uid;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

/// What became of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Mounted,
    /// It is there, but its path leads elsewhere: something is mounted over it, or a directory above it was renamed.
    Covered,
    /// It is gone, perhaps with the machine's last shutdown.
    Unmounted,
    /// It is there, and its server is gone: whoever looks into it gets ENOTCONN.
    Dead,
    /// It belongs to another mount namespace, which may still exist: it cannot be seen from here.
    Elsewhere,
}

/// What became of a mount.
///
/// It asks no server that runs, so that it does not wait for one that hangs.
///
/// # Errors
/// As reading `/proc`.
pub fn state(attached: &Attached) -> Result<State> {
    let failed = |e| Error::io("look at mount", attached.target.display().to_string(), e);
    let boot = boot_id();
    if !boot.is_empty() && boot != attached.boot_id {
        return Ok(State::Unmounted);
    }
    if kernel::mount_namespace(None).map_err(failed)? != attached.namespace {
        // A server ends with its mount.
        let is_there = match attached.server {
            Some(server) => server.is_running(),
            None => may_be_inhabited(attached.namespace),
        };
        return Ok(if is_there { State::Elsewhere } else { State::Unmounted });
    }
    let by_path = match kernel::mount_number(&attached.target) {
        Ok(number) => Some(number),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => None,
        Err(e) => return Err(failed(e)),
    };
    if by_path != Some(attached.mount_id) {
        // Where the kernel cannot tell: a server ends with its mount.
        let runs = || attached.server.is_some_and(Server::is_running);
        let is_there = kernel::mount_exists(attached.mount_id).unwrap_or_else(runs);
        return Ok(if is_there { State::Covered } else { State::Unmounted });
    }
    // One that runs is not asked; one that does not, or is numbered in another namespace, cannot hang.
    let runs = attached.server.is_some_and(Server::is_running);
    let died = attached.how == How::Server
        && !runs
        && ask_attributes(&attached.target).is_err_and(|error| error.errno() == libc::ENOTCONN);
    Ok(if died { State::Dead } else { State::Mounted })
}

/// True if the mount can be used, here or in another mount namespace.
///
/// # Errors
/// As [`state`].
pub fn is_live(attached: &Attached) -> Result<bool> {
    Ok(matches!(state(attached)?, State::Mounted | State::Covered | State::Elsewhere))
}

/// True if a process has the file system of this mount in its mount namespace, other than its server and those of `servers`:
/// they keep a namespace that everybody else has left. A server that does not show the mount itself counts as true; a
/// process that may not be looked at is another user's, and does not count.
///
/// # Errors
/// As reading `/proc`.
pub fn is_seen_by_others(attached: &Attached, servers: &HashSet<u32>) -> Result<bool> {
    let failed = |e| Error::io("look at mount", attached.target.display().to_string(), e);
    let Some(server) = attached.server else { return Ok(true) };
    let read = |pid: u32| fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let own = read(server.pid);
    let Some(device) = device_at(&own, attached.target.as_os_str().as_bytes()) else { return Ok(true) };
    let list = fs::read_dir("/proc").map_err(failed)?.flatten();
    let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut others = pids.filter(|pid| *pid != server.pid && !servers.contains(pid));
    Ok(others.any(|pid| mounts_in(&read(pid)).any(|(other, _)| other == device)))
}

/// Device and mount point of each line of a `/proc/pid/mountinfo`.
///
/// # Source
/// proc(5): fields 3 and 5.
fn mounts_in(mountinfo: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        Some((words.nth(2)?, words.nth(1)?))
    })
}

/// The device of what is mounted at `target`, on top.
fn device_at<'a>(mountinfo: &'a [u8], target: &[u8]) -> Option<&'a [u8]> {
    mounts_in(mountinfo).filter(|(_, at)| *at == target).last().map(|(device, _)| device)
}

/// Those of `rows` that are gone or dead; the dead ones are detached. For the start of a program: their records can go.
///
/// One that cannot be looked at, or not be detached, is kept and logged.
pub fn find_dead<'a>(rows: impl IntoIterator<Item = &'a Attached>) -> Vec<&'a Attached> {
    let is_over = |row: &&Attached| {
        let over = match state(row) {
            Ok(State::Mounted | State::Covered | State::Elsewhere) => Ok(false),
            Ok(State::Unmounted) => Ok(true),
            Ok(State::Dead) => detach(&row.target, None, Detach::Lazy).map(|()| true),
            Err(error) => Err(error),
        };
        over.unwrap_or_else(|error| {
            tracing::warn!(target = %row.target.display(), "a mount that was recorded: {error}");
            false
        })
    };
    rows.into_iter().filter(is_over).collect()
}

/// True if a process lives in the mount namespace, or one of our own might that may not be looked at: from inside of a
/// user namespace those outside of it. A namespace that is new can have the number of one that is gone.
fn may_be_inhabited(namespace: u64) -> bool {
    let Ok(list) = fs::read_dir("/proc") else { return true };
    let pids = list.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_ours = |pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == effective_uid());
    let may_live_there = |pid| match kernel::mount_namespace(Some(pid)) {
        Ok(number) => number == namespace && Server::of(pid).is_some(),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied && is_ours(pid),
    };
    pids.into_iter().any(may_live_there)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;
    use std::path::Path;

    fn recorded(target: &Path, how: How) -> Attached {
        Attached {
            target: target.to_owned(),
            mount_id: kernel::mount_number(target).unwrap(),
            namespace: kernel::mount_namespace(None).unwrap(),
            server: None,
            boot_id: boot_id(),
            how,
        }
    }

    #[test]
    fn the_device_is_that_of_the_topmost_mount_at_a_path() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:50 / /s/mnt/2 rw - fuse x rw\n3 1 0:51 / /s/mnt/2 rw - fuse x rw\n\n1 2\n";
        assert_eq!(device_at(text, b"/s/mnt/2"), Some(&b"0:51"[..]));
        assert_eq!(device_at(text, b"/s/mnt"), None);
        assert_eq!(mounts_in(text).count(), 3);
    }

    #[test]
    fn a_record_tells_what_became_of_its_mount() {
        let dir = TempDir::new();
        let row = recorded(Path::new("/"), How::Kernel);
        let own = Server::of(std::process::id()).unwrap();
        let gone = Server { start_time: own.start_time + 1, ..own };
        // Kernels that cannot tell are asked about servers only.
        let there = match kernel::mount_exists(row.mount_id) {
            Some(true) => State::Covered,
            _ => State::Unmounted,
        };
        let cases = [
            (row.clone(), State::Mounted),
            (Attached { boot_id: "another".into(), ..row.clone() }, State::Unmounted),
            (Attached { mount_id: row.mount_id + 1_000_000, ..row.clone() }, State::Unmounted),
            (
                Attached { target: dir.path().join("missing"), mount_id: u64::MAX - 1, ..row.clone() },
                State::Unmounted,
            ),
            (
                Attached {
                    target: dir.path().join("missing"),
                    how: How::Server,
                    server: Some(own),
                    ..row.clone()
                },
                State::Covered,
            ),
            (Attached { how: How::Server, ..row.clone() }, State::Mounted),
            (Attached { how: How::Server, server: Some(own), ..row.clone() }, State::Mounted),
            // It answers, whoever serves it.
            (Attached { how: How::Server, server: Some(gone), ..row.clone() }, State::Mounted),
            (Attached { namespace: 1, server: Some(own), ..row.clone() }, State::Elsewhere),
            (Attached { namespace: 1, server: Some(gone), ..row.clone() }, State::Unmounted),
            (Attached { target: dir.path().join("missing"), ..row.clone() }, there),
        ];
        for (row, expected) in &cases {
            assert_eq!(state(row).unwrap(), *expected, "{row:?}");
            assert_eq!(is_live(row).unwrap(), *expected != State::Unmounted);
        }
        let live = find_dead([&cases[0].0, &cases[3].0]);
        assert_eq!(live, [&cases[3].0]);
    }
}

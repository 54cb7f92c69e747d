//! Where each thing lives below the root directory of a store; nobody else joins path names.
//!
//! ```text
//! ROOT/                 0700, no ',' ':' '\' or white space in its path: options are joined with them
//!   db/                 LMDB: data.mdb, lock.mdb, 0700
//!   content/            an OCI image layout, made when the first blob comes, 0700: see `content::OciLayout`
//!   lock                flock: held by who serves the store
//!   snapshots/          0700
//!     7/                one snapshot by its id: a directory, or a btrfs subvolume
//!       fs/             content, for backends that stack layers
//!       work/           scratch space of overlays, until the snapshot is committed
//!     new-7-MAKER/      being made: garbage when its maker is gone
//!     new-0-MAKER/      a trial of a backend: garbage when its maker is gone
//!     rm-7-MAKER/       being removed: garbage
//!   mnt/7               mount points that plywood keeps itself
//!     work-7/           scratch space of the mount of a full copy: garbage when the snapshot is gone
//!     exec-MAKER/       mount point of a command: garbage when its maker is gone
//!     look-MAKER/       mount point of what a client brings: garbage when its maker is gone
//! ```
//!
//! Keys and names never become path components: only ids do, and MAKER: a process and a count, in hex.

use crate::error::{Error, ErrorKind, Result};
use crate::store::ProcessMark;
use crate::types::SnapshotId;
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The directories of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

/// What a name below `snapshots` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A snapshot of this id.
    Snapshot(SnapshotId),
    /// Something that is being made, to be the snapshot of this id.
    Staged(SnapshotId),
    /// A trial of a backend, by this process. It is nobody's snapshot, and no transaction protects it.
    Trial(Option<ProcessMark>),
    /// Something that is being removed.
    Removed,
    /// Not ours.
    Foreign,
}

/// What a name below `mnt` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountEntry {
    /// Scratch space of the mount of this snapshot.
    Work(SnapshotId),
    /// The mount point of this snapshot for clients.
    Kept(SnapshotId),
    /// The mount point of a command that this process runs.
    Exec(ProcessMark),
    /// A mount point of this process for what a client brings.
    Look(ProcessMark),
    /// Nothing that is ever garbage.
    Other,
}

impl Layout {
    /// Makes what is missing of the directories below `root`, and resolves its symlinks; what is there is fine.
    ///
    /// # Errors
    /// `InvalidArgument` if the path has a character that mount options cannot carry; those of the disk.
    pub fn create(root: &Path) -> Result<Layout> {
        let failed = |path: &Path| {
            let subject = path.display().to_string();
            move |e| Error::io("create store", subject, e)
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let is_new = !root.exists();
        builder.create(root).map_err(failed(root))?;
        let root = root.canonicalize().map_err(failed(root))?;
        let layout = Layout { root };
        layout.check()?;
        own(&layout.root, is_new)?;
        for dir in [layout.db(), layout.snapshots(), layout.mounts()] {
            builder.create(&dir).map_err(failed(&dir))?;
            own(&dir, true)?;
        }
        Ok(layout)
    }

    fn check(&self) -> Result<()> {
        let bad = |c: char| matches!(c, ',' | ':' | '\\' | '"') || c.is_whitespace();
        match self.root.to_str() {
            Some(path) if !path.contains(bad) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                "open store",
                format!("{:?}", self.root),
                "mount options cannot carry a path with ',', ':', '\\', quotes, white space or bytes that are no UTF-8: \
                 choose another directory with --root",
            )),
        }
    }

    /// The root directory: absolute, without symlinks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the database.
    pub fn db(&self) -> PathBuf {
        self.root.join("db")
    }

    /// The file that who serves the store locks.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The directory of all snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// The directory of mount points that plywood keeps itself.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// The directory of the embedded content store.
    pub fn content_store(&self) -> PathBuf {
        self.root.join("content")
    }

    /// The mount point of a snapshot that plywood keeps mounted itself.
    pub fn mount_point(&self, id: SnapshotId) -> PathBuf {
        self.mounts().join(id.to_string())
    }

    /// The directory of a snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// The content of a snapshot of a backend that stacks layers.
    pub fn content(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join(CONTENT)
    }

    /// The scratch space of an active snapshot of a backend that stacks layers.
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.snapshot(id).join(WORK)
    }

    /// A name that nothing has, for something that is being made and will be the snapshot `id`.
    pub fn staged(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(unique("new", id))
    }

    /// A name that nothing has, for the remains of a snapshot.
    pub fn removed(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(unique("rm", id))
    }

    /// Where the directory of a trial has its mount.
    pub fn trial_mount(trial: &Path) -> PathBuf {
        trial.join("mnt")
    }

    /// What a name below [`Layout::snapshots`] means.
    pub fn entry(name: &str) -> Entry {
        let first = |rest: &str| id(rest.split('-').next().unwrap_or_default());
        if let Some(staged) = name.strip_prefix("new-").and_then(first) {
            let trial = || name.strip_prefix("new-0-").and_then(maker_of);
            return if staged == TRIAL { Entry::Trial(trial()) } else { Entry::Staged(staged) };
        }
        if name.strip_prefix("rm-").and_then(first).is_some() {
            return Entry::Removed;
        }
        id(name).map_or(Entry::Foreign, Entry::Snapshot)
    }

    /// What a name below [`Layout::mounts`] means.
    pub fn mount_entry(name: &str) -> MountEntry {
        let work = || name.strip_prefix("work-").and_then(id).map(MountEntry::Work);
        let exec = || name.strip_prefix("exec-").and_then(maker_of).map(MountEntry::Exec);
        let look = || name.strip_prefix("look-").and_then(maker_of).map(MountEntry::Look);
        let kept = || id(name).map(MountEntry::Kept);
        work().or_else(exec).or_else(look).or_else(kept).unwrap_or(MountEntry::Other)
    }
}

/// The id of the directories of trials: no snapshot has it.
pub const TRIAL: SnapshotId = SnapshotId(0);

/// Makes sure that a directory of the store is a directory and ours, and for nobody else if `closed`: whoever else owns it
/// could lead us anywhere by a symlink.
///
/// # Errors
/// `PermissionDenied` if it belongs to another user, `Corrupt` if it is no directory.
fn own(dir: &Path, closed: bool) -> Result<()> {
    let subject = dir.display().to_string();
    let failed = |e| Error::io("open store", subject.clone(), e);
    // The umask of whoever made it does not count, not even if it locks us out.
    let opened = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let opened = match opened {
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
            let cause = "it is no directory: something else took the place of a part of the store";
            return Err(Error::new(ErrorKind::Corrupt, "open store", subject, cause));
        }
        other => other.map_err(|e| failed(e.into()))?,
    };
    let stat = rustix::fs::fstat(&opened).map_err(|e| failed(e.into()))?;
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me {
        let cause = format!("it belongs to user {}, and this is user {me}: run it as that user", stat.st_uid);
        return Err(Error::new(ErrorKind::PermissionDenied, "open store", subject, cause));
    }
    if closed && stat.st_mode & 0o7777 != 0o700 {
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        std::fs::set_permissions(link, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// The name of the content below a snapshot of a backend that stacks layers.
pub const CONTENT: &str = "fs";

/// The name of the scratch space below such a snapshot.
pub const WORK: &str = "work";

/// A name that no process of this machine has used, and that tells who made it: see [`Layout::entry`].
fn unique(what: &str, id: SnapshotId) -> String {
    by_this_process(&format!("{what}-{id}"))
}

/// `what` with this process and a counter: no other process ever writes that, and whether the maker lives can be told.
pub fn by_this_process(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    match ProcessMark::current() {
        Ok(ProcessMark { pid, start_time, boot_id, pid_namespace }) => {
            let boot = u128::from_be_bytes(boot_id);
            format!("{what}-{pid:x}-{start_time:x}-{pid_namespace:x}-{boot:x}-{count:x}")
        }
        // Without /proc nobody can be told to live: the time tells the names apart.
        Err(_) => {
            let now = std::time::SystemTime::now();
            let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            format!("{what}-{:x}-{:x}-{count:x}", std::process::id(), since.as_nanos())
        }
    }
}

/// The process in the rest of a name by [`by_this_process`].
fn maker_of(rest: &str) -> Option<ProcessMark> {
    let parts: Vec<u128> =
        rest.split('-').map(|part| u128::from_str_radix(part, 16).ok()).collect::<Option<_>>()?;
    let [pid, start_time, pid_namespace, boot, _count] = parts[..] else { return None };
    Some(ProcessMark {
        pid: u32::try_from(pid).ok()?,
        start_time: u64::try_from(start_time).ok()?,
        boot_id: boot.to_be_bytes(),
        pid_namespace: u64::try_from(pid_namespace).ok()?,
    })
}

/// A number as we write it.
fn id(text: &str) -> Option<SnapshotId> {
    text.parse::<u64>().ok().filter(|id| id.to_string() == text).map(SnapshotId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_below_snapshots_tells_what_it_is() {
        let cases = [
            ("7", Entry::Snapshot(SnapshotId(7))),
            ("18446744073709551615", Entry::Snapshot(SnapshotId(u64::MAX))),
            ("07", Entry::Foreign),
            ("+7", Entry::Foreign),
            ("", Entry::Foreign),
            ("lost+found", Entry::Foreign),
            ("new-1-2-3-4", Entry::Staged(SnapshotId(1))),
            ("rm-7-2-3-4", Entry::Removed),
            ("new-x", Entry::Foreign),
            ("rm-", Entry::Foreign),
        ];
        for (name, entry) in cases {
            assert_eq!(Layout::entry(name), entry, "{name:?}");
        }
    }

    #[test]
    fn the_names_of_trials_and_of_mount_points_tell_who_made_them() {
        let own = ProcessMark::current().unwrap();
        let trial = unique("new", TRIAL);
        assert_eq!(Layout::entry(&trial), Entry::Trial(Some(own)), "{trial}");
        assert_ne!(unique("new", TRIAL), trial);
        assert_eq!(Layout::entry("new-0-4d2-1f-0"), Entry::Trial(None));
        assert_eq!(Layout::mount_entry(&by_this_process("exec")), MountEntry::Exec(own));
        assert_eq!(Layout::mount_entry("work-7"), MountEntry::Work(SnapshotId(7)));
        assert_eq!(Layout::mount_entry("7"), MountEntry::Kept(SnapshotId(7)));
        for other in ["07", "empty", "work-", "work-07", "exec-4d2-1f-0", "exec-x-1-1-1-1", "exec-"] {
            assert_eq!(Layout::mount_entry(other), MountEntry::Other, "{other:?}");
        }
    }
}

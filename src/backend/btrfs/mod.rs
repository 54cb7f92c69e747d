//! Snapshots that the disk makes itself: each one is a subvolume of btrfs, and shares all that it did not change.
//!
//! `snapshots/ID` is the subvolume, with nothing between it and the content. An active one is a writable snapshot of
//! its parent, a view a read-only one; committing makes it read-only where it is. So a committed snapshot is complete
//! by itself, and only the nearest parent of a chain is ever looked at.
//!
//! btrfs leaves an empty directory where a subvolume was within the one that is snapshotted; what it held would be
//! missing from every snapshot built on top. So subvolumes within are carried along, one by one, and frozen and
//! thawed with the outer one: they are as writable as that, whatever they were before.
//!
//! Root of the machine gets mounts of type `btrfs` with the number of the subvolume. Everybody else, who may not
//! mount a disk, gets a bind of its directory, and needs nothing but write permission in the store: where destroying
//! a subvolume is refused, it is emptied and removed as a directory.
//!
//! A crash leaves a subvolume under `new-*` or `rm-*`, perhaps with others in it, perhaps half emptied;
//! [`Backend::delete`] takes it in any state. A crash while freezing or thawing leaves the outer subvolume read-only
//! as long as any within it is, so that [`Backend::is_frozen`] finds it.

mod mounted;
mod usage;

use super::directory::{CONTENT_MODE, Directories, Owner, disk_error};
use super::measure::measure;
use super::open::BackendSettings;
use super::{Abilities, Backend, BackendName, MountRequest, Progress, Stage, Staged, go_on};
use crate::error::{Error, ErrorKind, Result};
use crate::fail;
use crate::layout::Layout;
use crate::sys::btrfs::{self, Access};
use crate::sys::userns::Privilege;
use crate::types::{Mount, SnapshotId, SnapshotKind, Usage};
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::Place;
use plywood_fuse::sys::node;
use plywood_fuse::sys::open::open_root;
use plywood_fuse::sys::stat::{chmod, set_times, stat};
use plywood_fuse::types::SetTime;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What the probe's subvolumes are called: no snapshot has this id.
const PROBE: SnapshotId = SnapshotId(0);

/// The backend of subvolumes and snapshots of btrfs.
#[derive(Debug)]
pub struct Btrfs {
    directories: Directories,
    /// What the caller says the device is.
    given: Option<String>,
    /// The device for mounts; `None` where mounts are binds.
    device: OnceLock<Option<String>>,
}

impl Btrfs {
    /// The backend of a store on btrfs; the device is found from the path of the store when a mount needs it.
    ///
    /// Whether it works here is the question of [`probe`].
    pub fn new(layout: &Layout, settings: &BackendSettings) -> Self {
        Self { directories: Directories::new(layout, settings), given: None, device: OnceLock::new() }
    }

    /// The same backend; whoever may mount a device mounts this one.
    #[must_use]
    pub fn with_device(self, device: impl Into<String>) -> Self {
        Self { given: Some(device.into()), device: OnceLock::new(), ..self }
    }

    fn layout(&self) -> &Layout {
        self.directories.layout()
    }

    /// The device that mounts name; `None` for who may not mount it, and where its name leads to no device.
    fn device(&self) -> Result<Option<&str>> {
        if let Some(device) = self.device.get() {
            return Ok(device.as_deref());
        }
        let device = match (Privilege::current(), &self.given) {
            (Privilege::NamespaceRoot | Privilege::User, _) => None,
            (Privilege::Root, Some(given)) => Some(given.clone()),
            (Privilege::Root, None) => {
                let mounts = mounted::read()?;
                mounted::device(mounted::holder(self.layout().root(), &mounts)?)
            }
        };
        Ok(self.device.get_or_init(|| device).as_deref())
    }

    /// The directory of all snapshots, open for requests.
    fn snapshots(&self, operation: &'static str) -> Result<OwnedFd> {
        let path = self.layout().snapshots();
        let opened = open_root(&path).and_then(|root| btrfs::open_within(root.as_fd(), b""));
        opened.map_err(|e| Error::fuse(operation, path.display().to_string(), e))
    }

    /// The subvolume of a snapshot that has to be there, open for requests.
    fn open(&self, operation: &'static str, id: SnapshotId) -> Result<OwnedFd> {
        let snapshots = self.snapshots(operation)?;
        let path = self.layout().snapshot(id);
        let corrupt = |cause| Error::new(ErrorKind::Corrupt, operation, path.display().to_string(), cause);
        let opened = match btrfs::open_within(snapshots.as_fd(), id.to_string().as_bytes()) {
            Err(e) if e.is_absent() => {
                return Err(corrupt("its subvolume is gone: plywood check tells what else is"));
            }
            other => other.map_err(|e| disk_error(operation, &path, e))?,
        };
        if btrfs::is_subvolume(opened.as_fd()).map_err(|e| disk_error(operation, &path, e))? {
            return Ok(opened);
        }
        Err(corrupt("it is no subvolume: somebody put another directory in its place"))
    }

    /// Makes the subvolume at `path` and fills it.
    fn make(&self, stage: &Stage<'_>, path: &Path) -> Result<()> {
        let failed = |e| disk_error("stage", path, e);
        let (snapshots, name) = (self.snapshots("stage")?, last(path)?);
        let access = match stage.kind {
            SnapshotKind::View => Access::ReadOnly,
            SnapshotKind::Active | SnapshotKind::Committed => Access::Writable,
        };
        let Some(&parent) = stage.chain.first() else {
            btrfs::create(snapshots.as_fd(), name).map_err(failed)?;
            fail::point("c.after_mkdir")?;
            let root = btrfs::open_within(snapshots.as_fd(), name).map_err(failed)?;
            // Neither the umask nor a set-group-id bit of the directory above counts.
            chmod(Place::Fd(root.as_fd()), CONTENT_MODE).map_err(failed)?;
            Owner::of(stage, None)?.apply(Place::dir(&root), path)?;
            fail::point("c.after_fill")?;
            return btrfs::set_access(root.as_fd(), access).map_err(failed);
        };
        let source = self.open("stage", parent)?;
        let of_parent = |e| disk_error("stage", &self.layout().snapshot(parent), e);
        let within = btrfs::nested_at_any_depth(source.as_fd()).map_err(of_parent)?;
        // Each change of access waits for the disk: what needs no filling is made as it shall be.
        let as_is = stage.owner.is_none() && within.is_empty();
        let first = if as_is { access } else { Access::Writable };
        btrfs::snapshot(source.as_fd(), snapshots.as_fd(), name, first).map_err(of_parent)?;
        fail::point("c.after_mkdir")?;
        if !as_is {
            let root = btrfs::open_within(snapshots.as_fd(), name).map_err(failed)?;
            // It has that of the parent already.
            if let Some((uid, gid)) = stage.owner {
                Owner::Asked(uid, gid).apply(Place::dir(&root), path)?;
            }
            for inner in &within {
                let at = |e| disk_error("stage", &path.join(OsStr::from_bytes(&inner.path())), e);
                carry(source.as_fd(), root.as_fd(), inner).map_err(at)?;
            }
            if access == Access::ReadOnly {
                btrfs::set_access_of_all(root.as_fd(), access).map_err(failed)?;
            }
        }
        fail::point("c.after_fill")
    }

    /// Says of a snapshot and the subvolumes in it whether they can be changed.
    fn set_access(&self, operation: &'static str, id: SnapshotId, to: Access) -> Result<()> {
        let root = self.open(operation, id)?;
        let failed = |e| Error::fuse(operation, self.layout().snapshot(id).display().to_string(), e);
        btrfs::set_access_of_all(root.as_fd(), to).map_err(failed)
    }
}

/// The last component of a path below the directory of all snapshots.
fn last(path: &Path) -> Result<&[u8]> {
    path.file_name().map(OsStrExt::as_bytes).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "look at", path.display().to_string(), "it names no directory")
    })
}

/// Makes a subvolume within `source` again at the same place in `target`, its snapshot.
fn carry(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    inner: &btrfs::Nested,
) -> std::result::Result<(), SysError> {
    let Some(from) = btrfs::open_nested(source, inner)? else { return Ok(()) };
    let dir = btrfs::open_within(target, &inner.dir)?;
    let before = stat(Place::Fd(dir.as_fd()))?;
    // The empty directory that stands for it.
    node::rmdir(dir.as_fd(), &inner.name)?;
    btrfs::snapshot(from.as_fd(), dir.as_fd(), &inner.name, Access::Writable)?;
    set_times(Place::dir(&dir), Some(SetTime::At(before.atime)), Some(SetTime::At(before.mtime)))
}

fn busy(operation: &'static str, path: &Path, mount: &mounted::Entry) -> Error {
    let cause = format!("it is in use by the mount at {}: unmount that first", mount.point.display());
    Error::new(ErrorKind::Busy, operation, path.display().to_string(), cause)
}

impl Backend for Btrfs {
    fn name(&self) -> BackendName {
        BackendName::Btrfs
    }

    fn abilities(&self) -> Abilities {
        Abilities { rebase: false, slow_stage: false, view_has_directory: true }
    }

    fn stage(&self, stage: Stage<'_>, progress: &dyn Progress) -> Result<Staged> {
        go_on(progress, "stage")?;
        let path = self.layout().staged(stage.id);
        match self.make(&stage, &path) {
            Ok(()) => Ok(Staged { path }),
            Err(e) => {
                if let Err(undo) = self.delete(&path) {
                    tracing::warn!(path = %path.display(), error = %undo, "stage: what was begun cannot be removed");
                }
                Err(e)
            }
        }
    }

    fn names_first(&self) -> Option<PathBuf> {
        self.directories.names_first()
    }

    fn publish(&self, staged: &mut Staged, id: SnapshotId) -> Result<()> {
        self.directories.publish(staged, id)
    }

    fn seal(&self, id: SnapshotId) -> Result<()> {
        self.open("seal", id)?;
        // Making a subvolume read-only writes none of its data: that is done here, before anybody waits for it.
        self.directories.seal()
    }

    fn freeze(&self, id: SnapshotId) -> Result<()> {
        let frozen = self.set_access("freeze", id, Access::ReadOnly);
        if frozen.is_err()
            && let Err(undo) = self.thaw(id)
        {
            tracing::warn!(snapshot = %id, error = %undo, "freeze: what was begun cannot be undone");
        }
        frozen
    }

    fn thaw(&self, id: SnapshotId) -> Result<()> {
        self.set_access("thaw", id, Access::Writable)
    }

    fn is_frozen(&self, id: SnapshotId) -> Result<bool> {
        let root = self.open("look at", id)?;
        let access = btrfs::access(root.as_fd());
        let failed = |e| Error::fuse("look at", self.layout().snapshot(id).display().to_string(), e);
        Ok(access.map_err(failed)? == Access::ReadOnly)
    }

    fn committed(&self, _: SnapshotId) {
        // There is no scratch space.
    }

    fn usage(&self, id: SnapshotId, chain: &[SnapshotId], progress: &dyn Progress) -> Result<Usage> {
        go_on(progress, "usage")?;
        let path = self.layout().snapshot(id);
        let Some(&parent) = chain.first() else { return measure(&path, progress) };
        let parent = self.open("usage", parent)?;
        let root = open_root(&path).and_then(|root| btrfs::open_within(root.as_fd(), b""));
        let root = root.map_err(|e| Error::fuse("usage", path.display().to_string(), e))?;
        usage::measure_against(root.as_fd(), parent.as_fd(), progress)
            .map_err(|e| e.during("usage", path.display().to_string()))
    }

    fn mounts(&self, request: MountRequest<'_>) -> Result<Vec<Mount>> {
        let nearest = request.chain.first().copied();
        let id = if request.has_directory { Some(request.id) } else { nearest };
        let (id, access) = match (id, request.kind) {
            (Some(id), SnapshotKind::View) => (id, "ro"),
            (Some(id), SnapshotKind::Active) if request.has_directory => (id, "rw"),
            _ => {
                let subject = format!("{} snapshot {}", request.kind.as_str(), request.id);
                let cause = "only a view or an active snapshot with a subvolume can be mounted";
                return Err(Error::new(ErrorKind::FailedPrecondition, "mounts", subject, cause));
            }
        };
        let root = self.open("mounts", id)?;
        let path = self.layout().snapshot(id).display().to_string();
        let mount = match self.device()? {
            Some(device) => {
                let number = btrfs::id(root.as_fd()).map_err(|e| Error::fuse("mounts", path, e))?;
                let mut options = vec![format!("subvolid={number}")];
                options.extend((access == "ro").then(|| access.to_owned()));
                Mount { kind: "btrfs".to_owned(), source: device.to_owned(), options }
            }
            None => {
                let options = vec!["rbind".to_owned(), access.to_owned()];
                Mount { kind: "bind".to_owned(), source: path, options }
            }
        };
        Ok(vec![mount])
    }

    fn retire(&self, id: SnapshotId) -> Result<Option<PathBuf>> {
        let path = self.layout().snapshot(id);
        let mounts = mounted::read()?;
        if let Some(mount) = mounted::within(&path, &mounts) {
            return Err(busy("retire", &path, mount));
        }
        // Whatever else is there under that name can go.
        if let Ok(root) = self.open("retire", id) {
            let number = btrfs::id(root.as_fd()).map_err(|e| disk_error("retire", &path, e))?;
            let holder = mounted::holder(self.layout().root(), &mounts)?;
            if let Some(mount) = mounted::showing(number, holder, &mounts) {
                return Err(busy("retire", &path, mount));
            }
        }
        self.directories.retire(id)
    }

    fn delete(&self, path: &Path) -> Result<()> {
        // Destroying a subvolume would detach mounts in it without a word.
        match mounted::within(path, &mounted::read()?) {
            Some(mount) => Err(busy("delete", path, mount)),
            None => self.directories.delete(path),
        }
    }

    fn upper(&self, _: SnapshotId) -> Option<PathBuf> {
        None
    }

    fn layers(&self, id: SnapshotId, chain: &[SnapshotId], has_directory: bool) -> Vec<PathBuf> {
        let id = if has_directory { Some(id) } else { chain.first().copied() };
        id.map(|id| self.layout().snapshot(id)).into_iter().collect()
    }
}

/// Tries all that the backend needs in a store: makes a subvolume, a snapshot of it, and deletes both.
///
/// # Errors
/// `Unsupported` if the store is not on btrfs; else what was refused, and what to do.
pub fn probe(layout: &Layout) -> Result<()> {
    let root = layout.root().display().to_string();
    let opened = open_root(layout.root()).map_err(|e| Error::fuse("probe btrfs", root.clone(), e))?;
    if !btrfs::is_btrfs(opened.as_fd()).map_err(|e| Error::fuse("probe btrfs", root.clone(), e))? {
        let cause = "it is not on btrfs: choose a directory on btrfs with --root, or another backend";
        return Err(Error::new(ErrorKind::Unsupported, "probe btrfs", root, cause));
    }
    let backend = Btrfs::new(layout, &BackendSettings::default());
    let snapshots = backend.snapshots("probe btrfs")?;
    let (volume, copy) = (layout.staged(PROBE), layout.staged(PROBE));
    let made = try_out(snapshots.as_fd(), last(&volume)?, last(&copy)?);
    // The copy first: both go, whatever the other says.
    let deleted = [&copy, &volume].map(|path| backend.delete(path));
    made.map_err(|(what, e)| {
        let cause = format!(
            "{what}: {e}: plywood needs to own {}, on a btrfs that can be written",
            layout.snapshots().display()
        );
        Error::new(ErrorKind::of_errno(e.errno()), "probe btrfs", root.clone(), cause).with_source(e)
    })?;
    deleted.into_iter().collect::<Result<()>>().map_err(|e| {
        let cause = "subvolumes cannot be deleted here: mount btrfs with user_subvol_rm_allowed, or take a kernel of \
            4.18 or later";
        Error::new(e.kind(), "probe btrfs", root.clone(), cause).with_source(e)
    })
}

fn try_out(
    snapshots: BorrowedFd<'_>,
    volume: &[u8],
    copy: &[u8],
) -> std::result::Result<(), (&'static str, SysError)> {
    btrfs::create(snapshots, volume).map_err(|e| ("a subvolume cannot be made", e))?;
    let cannot_open = |e| ("a subvolume cannot be opened", e);
    let root = btrfs::open_within(snapshots, volume).map_err(cannot_open)?;
    btrfs::snapshot(root.as_fd(), snapshots, copy, Access::ReadOnly)
        .map_err(|e| ("a snapshot cannot be made", e))
}

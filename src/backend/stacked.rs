//! What the backends that stack layers have in common: everything but the mounts.
//!
//! A snapshot is `ID/fs`, its own changes with whiteouts as marks, and `ID/work` while it can change. The directories
//! of `fuse` and `overlay` are the same, so a store can change from one to the other. A view of parents has none.

use super::directory::{CONTENT_MODE, Directories, Owner, disk_error, make_at};
use super::measure::measure;
use super::open::BackendSettings;
use super::{Abilities, Backend, BackendName, MountRequest, Progress, Stage, Staged, delete};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{CONTENT, Layout, WORK};
use crate::types::{Mount, SnapshotId, SnapshotKind, Usage};
use plywood_fuse::sys::Place;
use std::path::{Path, PathBuf};

/// The mode of `ID`: consumers enter through mounts, not by path.
const SNAPSHOT_MODE: u32 = 0o700;

/// The mode of `ID/work`.
const WORK_MODE: u32 = 0o711;

/// The part that differs: how a stack is mounted.
pub trait Mounter: Send + Sync {
    /// Which backend this is.
    fn name(&self) -> BackendName;

    /// Looks whether these layers can be mounted.
    ///
    /// # Errors
    /// `FailedPrecondition` with what is in the way, and what to do.
    fn check(&self, layout: &Layout, chain: &[SnapshotId]) -> Result<()>;

    /// The mounts that show a snapshot.
    ///
    /// # Errors
    /// As [`Mounter::check`].
    fn mounts(&self, layout: &Layout, request: MountRequest<'_>) -> Result<Vec<Mount>>;

    /// Whether id mappings hold for what is changed, too, and not for the layers below only.
    fn maps_upper(&self) -> bool;
}

/// A backend that stacks layers.
pub struct Stacked<M> {
    directories: Directories,
    mounter: M,
}

impl<M: Mounter> Stacked<M> {
    /// The backend on the directories of `layout`.
    pub fn new(layout: &Layout, settings: &BackendSettings, mounter: M) -> Stacked<M> {
        Stacked { directories: Directories::new(layout, settings), mounter }
    }

    fn layout(&self) -> &Layout {
        self.directories.layout()
    }
}

impl<M: Mounter> Backend for Stacked<M> {
    fn name(&self) -> BackendName {
        self.mounter.name()
    }

    fn abilities(&self) -> Abilities {
        Abilities { rebase: true, slow_stage: false, view_has_directory: false }
    }

    fn check_chain(&self, chain: &[SnapshotId]) -> Result<()> {
        self.mounter.check(self.layout(), chain)
    }

    fn stage(&self, stage: Stage<'_>, _: &dyn Progress) -> Result<Staged> {
        refuse_needless(&stage)?;
        // Better now than when the snapshot is there.
        self.check_chain(stage.chain)?;
        let parent = stage.chain.first().map(|&parent| self.layout().content(parent));
        // Where the mount maps ids they are on the disk as the container has them.
        let owner = match stage.chain {
            [_, ..] if self.mounter.maps_upper() => {
                Owner::of(&Stage { owner: None, ..stage }, parent.as_deref())?
            }
            _ => Owner::of(&stage, parent.as_deref())?,
        };
        self.directories.stage(&stage, SNAPSHOT_MODE, |path, dir| {
            let failed = |name: &'static str| {
                let path = path.join(name);
                move |e| disk_error("make directory", &path, e)
            };
            let content = make_at(dir, CONTENT.as_bytes(), CONTENT_MODE).map_err(failed(CONTENT))?;
            owner.apply(Place::dir(&content), &path.join(CONTENT))?;
            if stage.kind == SnapshotKind::Active {
                make_at(dir, WORK.as_bytes(), WORK_MODE).map_err(failed(WORK))?;
            }
            Ok(())
        })
    }

    fn names_first(&self) -> Option<PathBuf> {
        self.directories.names_first()
    }

    fn publish(&self, staged: &mut Staged, id: SnapshotId) -> Result<()> {
        self.directories.publish(staged, id)
    }

    fn seal(&self, _: SnapshotId) -> Result<()> {
        self.directories.seal()
    }

    fn committed(&self, id: SnapshotId) {
        if let Err(error) = delete::delete_tree(&self.layout().work(id)) {
            // It goes with the snapshot.
            tracing::warn!(%id, %error, "commit: the work directory stays");
        }
    }

    fn usage(&self, id: SnapshotId, _: &[SnapshotId], progress: &dyn Progress) -> Result<Usage> {
        measure(&self.layout().content(id), progress)
    }

    fn mounts(&self, request: MountRequest<'_>) -> Result<Vec<Mount>> {
        refuse_committed(&request)?;
        self.mounter.mounts(self.layout(), request)
    }

    fn retire(&self, id: SnapshotId) -> Result<Option<PathBuf>> {
        self.directories.retire(id)
    }

    fn delete(&self, path: &Path) -> Result<()> {
        self.directories.delete(path)
    }

    fn upper(&self, id: SnapshotId) -> Option<PathBuf> {
        Some(self.layout().content(id))
    }

    fn layers(&self, id: SnapshotId, chain: &[SnapshotId], has_directory: bool) -> Vec<PathBuf> {
        let own = has_directory.then_some(id);
        own.iter().chain(chain).map(|&id| self.layout().content(id)).collect()
    }
}

/// Refuses to make a directory that nobody would look into.
///
/// # Errors
/// `FailedPrecondition` for a view of parents.
pub fn refuse_needless(stage: &Stage<'_>) -> Result<()> {
    if stage.kind == SnapshotKind::View && !stage.chain.is_empty() {
        let cause = "a view shows its parent and has no directory of its own";
        return Err(Error::new(ErrorKind::FailedPrecondition, "stage", stage.id.to_string(), cause));
    }
    Ok(())
}

/// Refuses to mount what is immutable.
///
/// # Errors
/// `FailedPrecondition` for a committed snapshot.
pub fn refuse_committed(request: &MountRequest<'_>) -> Result<()> {
    if request.kind == SnapshotKind::Committed {
        let cause = "it is committed, so nothing may change it: mount a view of it";
        return Err(Error::new(ErrorKind::FailedPrecondition, "mounts", request.id.to_string(), cause));
    }
    Ok(())
}

/// What shows a snapshot of a stack.
#[derive(Debug, PartialEq, Eq)]
pub enum Shape {
    /// One directory by itself, and whose it is.
    One(PathBuf, Whose),
    /// Layers, as the options `workdir`, `upperdir` and `lowerdir`.
    Layers(Vec<String>),
}

/// Whose directory a bind mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// That of the snapshot.
    Own,
    /// That of its parent.
    Parents,
}

/// What shows the snapshot of `request`.
pub fn shape(layout: &Layout, request: &MountRequest<'_>) -> Shape {
    let is_active = request.kind == SnapshotKind::Active;
    match request.chain {
        [] => Shape::One(layout.content(request.id), Whose::Own),
        [parent] if !is_active => Shape::One(layout.content(*parent), Whose::Parents),
        chain => {
            let mut options = Vec::new();
            if is_active {
                options.push(format!("workdir={}", layout.work(request.id).display()));
                options.push(format!("upperdir={}", layout.content(request.id).display()));
            }
            options.push(lower_option(layout, chain));
            Shape::Layers(options)
        }
    }
}

/// The option `lowerdir` of a chain, nearest first.
pub fn lower_option(layout: &Layout, chain: &[SnapshotId]) -> String {
    let paths: Vec<String> = chain.iter().map(|&id| layout.content(id).display().to_string()).collect();
    format!("lowerdir={}", paths.join(":"))
}

/// The word for whether a snapshot may be changed.
pub fn access_word(kind: SnapshotKind) -> &'static str {
    if kind == SnapshotKind::Active { "rw" } else { "ro" }
}

/// A bind mount of a directory; `first` are options that come before the others.
pub fn bind(source: &Path, kind: SnapshotKind, first: Vec<String>) -> Vec<Mount> {
    let mut options = first;
    options.extend([access_word(kind).to_owned(), "rbind".to_owned()]);
    vec![Mount { kind: "bind".to_owned(), source: source.display().to_string(), options }]
}

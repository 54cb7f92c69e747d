//! The backend `native`: every active snapshot is a full copy of its parent, every mount a bind mount.
//!
//! Works on any file system of Linux. The directory of a snapshot is its content: `ID/`, complete by itself, so of a
//! chain only the nearest matters. A view of a parent has no directory and shows the parent's.

use super::copy_tree::copy_tree;
use super::directory::{CONTENT_MODE, Directories, Owner, disk_error};
use super::measure::measure;
use super::open::BackendSettings;
use super::stacked::{access_word, refuse_committed, refuse_needless};
use super::{Abilities, Backend, BackendName, MountRequest, Progress, Stage, Staged};
use crate::error::Result;
use crate::layout::Layout;
use crate::types::{Mount, SnapshotId, Usage};
use plywood_fuse::sys::{self, Place};
use std::path::{Path, PathBuf};

/// Full copies.
pub struct Native {
    directories: Directories,
    workers: usize,
}

impl Native {
    /// The backend on the directories of `layout`.
    pub fn new(layout: &Layout, settings: &BackendSettings) -> Native {
        Native { directories: Directories::new(layout, settings), workers: settings.copy_workers }
    }

    fn layout(&self) -> &Layout {
        self.directories.layout()
    }
}

impl Backend for Native {
    fn name(&self) -> BackendName {
        BackendName::Native
    }

    fn abilities(&self) -> Abilities {
        Abilities { rebase: false, slow_stage: true, view_has_directory: false }
    }

    fn stage(&self, stage: Stage<'_>, progress: &dyn Progress) -> Result<Staged> {
        refuse_needless(&stage)?;
        let parent = stage.chain.first().map(|&parent| self.layout().snapshot(parent));
        let owner = Owner::of(&stage, parent.as_deref())?;
        self.directories.stage(&stage, CONTENT_MODE, |path, dir| {
            let Some(parent) = &parent else {
                return owner.apply(Place::dir(&dir), path);
            };
            copy_tree(parent, path, owner, self.workers, progress)?;
            self.directories.sync_copy()
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

    fn committed(&self, _: SnapshotId) {}

    fn usage(&self, id: SnapshotId, _: &[SnapshotId], progress: &dyn Progress) -> Result<Usage> {
        measure(&self.layout().snapshot(id), progress)
    }

    fn mounts(&self, request: MountRequest<'_>) -> Result<Vec<Mount>> {
        refuse_committed(&request)?;
        Ok(describe(self.layout(), &request))
    }

    fn retire(&self, id: SnapshotId) -> Result<Option<PathBuf>> {
        self.directories.retire(id)
    }

    fn delete(&self, path: &Path) -> Result<()> {
        self.directories.delete(path)
    }

    fn upper(&self, _: SnapshotId) -> Option<PathBuf> {
        None
    }

    fn layers(&self, id: SnapshotId, chain: &[SnapshotId], has_directory: bool) -> Vec<PathBuf> {
        let own = has_directory.then_some(id);
        own.iter().chain(chain).take(1).map(|&id| self.layout().snapshot(id)).collect()
    }
}

/// The mount of a snapshot: a bind of its directory, or of its parent's, with all that is mounted below.
pub fn describe(layout: &Layout, request: &MountRequest<'_>) -> Vec<Mount> {
    let shown = match request.chain {
        [parent, ..] if !request.has_directory => *parent,
        _ => request.id,
    };
    vec![Mount {
        kind: "bind".to_owned(),
        source: layout.snapshot(shown).display().to_string(),
        options: vec!["rbind".to_owned(), access_word(request.kind).to_owned()],
    }]
}

/// True if this directory's file system lets files share their data.
///
/// # Errors
/// Those of the disk.
pub fn can_share_data(dir: &Path) -> Result<bool> {
    use std::os::fd::AsFd;
    let failed = |e| disk_error("try reflink", dir, e);
    let fd = sys::open::open_root(dir).map_err(failed)?;
    let made = |name: &[u8]| {
        sys::open::open_at(fd.as_fd(), name, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600)
            .map_err(failed)
    };
    let (from, to) = (made(b"from")?, made(b"to")?);
    sys::copy::write_at(from.as_fd(), b"shared", 0).map_err(failed)?;
    Ok(sys::copy::clone_file(from.as_fd(), to.as_fd()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SnapshotKind::{self, Active, View};
    use plywood_fuse::testing::TempDir;

    // S53: a view of a parent shows the parent's directory. S59, S60: bind mounts, with what is mounted below.
    #[test]
    fn each_case_has_its_mount() {
        let temp = TempDir::new();
        let layout = Layout::create(temp.path()).unwrap();
        let cases: [(SnapshotKind, &[u64], bool, u64, &str); 5] = [
            (Active, &[], true, 9, "rw"),
            (View, &[], true, 9, "ro"),
            (Active, &[7, 3], true, 9, "rw"),
            (View, &[7], false, 7, "ro"),
            (View, &[7, 3], false, 7, "ro"),
        ];
        for (kind, parents, has_directory, shown, access) in cases {
            let chain: Vec<SnapshotId> = parents.iter().copied().map(SnapshotId).collect();
            let (uid_mapping, gid_mapping) = (None, None);
            let request = MountRequest {
                id: SnapshotId(9),
                kind,
                chain: &chain,
                has_directory,
                uid_mapping,
                gid_mapping,
            };
            let expected = Mount {
                kind: "bind".into(),
                source: layout.snapshot(SnapshotId(shown)).display().to_string(),
                options: vec!["rbind".into(), access.into()],
            };
            assert_eq!(describe(&layout, &request), vec![expected], "{kind:?} {parents:?}");
        }
    }
}

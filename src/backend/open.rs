//! Which backends there are, with which settings, and which of them work here.

use super::btrfs::Btrfs;
use super::fuse::{Fuse, MOUNT_TYPE};
use super::native::Native;
use super::overlay::{Needs, Overlay};
use super::stacked::Stacked;
use super::{Backend, BackendName, trial};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::sys::userns::Privilege;
use plywood_fuse::sys::{self, Place};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Settings of the backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// Options for mounts of the kernel's overlayfs, in order; never for bind mounts.
    pub overlay_options: Vec<String>,
    /// Options for mounts of `plywood-fuse`, in order; never for bind mounts.
    pub fuse_options: Vec<String>,
    /// The type of mounts of `plywood-fuse`, without `/`.
    pub fuse_type: String,
    /// The program `plywood-fuse`: a path, or a name to look for beside this program and on the path.
    pub fuse_program: PathBuf,
    /// Content is on the disk before a commit says so.
    pub sync_on_commit: bool,
    /// The name of a new snapshot, and what was copied for it, are on the disk before it is said to be there.
    pub sync_on_create: bool,
    /// How many workers copy a tree; 0 for as many as there are processors, within reason.
    pub copy_workers: usize,
}

impl Default for BackendSettings {
    fn default() -> Self {
        Self {
            overlay_options: Vec::new(),
            fuse_options: Vec::new(),
            fuse_type: MOUNT_TYPE.to_owned(),
            fuse_program: PathBuf::from("plywood-fuse"),
            sync_on_commit: true,
            sync_on_create: true,
            copy_workers: 0,
        }
    }
}

impl BackendSettings {
    fn check(&self) -> Result<()> {
        let invalid = |subject: &str, cause: &str| {
            Err(Error::new(ErrorKind::InvalidArgument, "settings", format!("{subject:?}"), cause))
        };
        // containerd takes what is before a slash for one of its own words.
        if self.fuse_type.is_empty() || self.fuse_type.contains(|c: char| c == '/' || c.is_whitespace()) {
            return invalid(&self.fuse_type, "the type of a mount is a word without '/': fuse3.PROGRAM");
        }
        let bad = |o: &&String| o.is_empty() || o.contains([',', '\0']);
        if let Some(option) = self.overlay_options.iter().chain(&self.fuse_options).find(bad) {
            return invalid(option, "give each mount option by itself, without commas");
        }
        let ours = |o: &&String| {
            matches!(
                o.split('=').next(),
                Some("lowerdir" | "upperdir" | "workdir" | "lowerdir+" | "ro" | "rw")
            )
        };
        if let Some(option) = self.overlay_options.iter().chain(&self.fuse_options).find(ours) {
            return invalid(option, "plywood itself says what is mounted and whether it may change");
        }
        Ok(())
    }

    /// Where the program `plywood-fuse` is: as configured if that is a path, else beside this program, else on the
    /// path.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is nowhere, with what to do.
    pub fn find_fuse_program(&self) -> Result<PathBuf> {
        let name = &self.fuse_program;
        let is_path = name.components().count() > 1;
        let beside = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.join(name)));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name));
        let places: Vec<PathBuf> =
            if is_path { vec![name.clone()] } else { beside.into_iter().chain(on_path).collect() };
        places.into_iter().find(|place| is_program(place)).ok_or_else(|| {
            let cause = if is_path {
                "there is no such program: correct fuse_program"
            } else {
                "it is neither beside this program nor on the path: install it, or set fuse_program"
            };
            Error::new(ErrorKind::FailedPrecondition, "find", name.display().to_string(), cause)
        })
    }
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The backend `name` on the directories of `layout`. Whether it works here is another question: [`try_one`].
///
/// # Errors
/// `InvalidArgument` for settings that make no sense.
pub fn open(name: BackendName, layout: &Layout, settings: &BackendSettings) -> Result<Arc<dyn Backend>> {
    settings.check()?;
    forget_default_acl(layout);
    Ok(match name {
        BackendName::Fuse => {
            let mount_type = settings.fuse_type.clone();
            let fuse = Fuse { mount_type, options: settings.fuse_options.clone() };
            Arc::new(Stacked::new(layout, settings, fuse))
        }
        BackendName::Overlay => {
            let overlay = Overlay::new(&settings.overlay_options, needs(layout));
            Arc::new(Stacked::new(layout, settings, overlay))
        }
        BackendName::Native => Arc::new(Native::new(layout, settings)),
        BackendName::Btrfs => Arc::new(Btrfs::new(layout, settings)),
    })
}

/// A default access control list would be inherited by the root of every snapshot, and be content there. It can only
/// come from the directory that the store was made in.
fn forget_default_acl(layout: &Layout) {
    if let Ok(dir) = sys::open::open_root(&layout.snapshots()) {
        let _ = sys::xattr::remove(Place::dir(&dir), c"system.posix_acl_default");
    }
}

/// What mounts of overlayfs need here.
pub fn needs(layout: &Layout) -> Needs {
    Needs {
        // Whoever is not root of the machine now can only mount in a user namespace.
        user_xattr: Privilege::current() != Privilege::Root && has_user_attributes(layout),
        index_off: Path::new("/sys/module/overlay/parameters/index").exists(),
    }
}

/// False on an older tmpfs: there, marks below `user.` are refused, and overlayfs does without any.
fn has_user_attributes(layout: &Layout) -> bool {
    let Ok(dir) = sys::open::open_root(&layout.snapshots()) else { return true };
    match sys::xattr::get(Place::dir(&dir), c"user.overlay.opaque", &mut []) {
        Ok(_) => true,
        Err(e) => e.errno() != libc::EOPNOTSUPP,
    }
}

/// What came of trying a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Which one.
    pub backend: BackendName,
    /// It works here.
    pub works: bool,
    /// If it does not: why, and what to do. If it does: what is good to know; may be empty.
    pub why: String,
}

/// Tries all backends, the best first, by doing what they need in a corner of the store.
pub fn try_all(layout: &Layout, settings: &BackendSettings) -> Vec<Trial> {
    BackendName::ALL.into_iter().map(|name| try_one(name, layout, settings)).collect()
}

/// Tries one backend by doing what it needs in a corner of the store.
pub fn try_one(backend: BackendName, layout: &Layout, settings: &BackendSettings) -> Trial {
    let tried = settings.check().and_then(|()| match backend {
        BackendName::Fuse => trial::fuse(layout, settings),
        BackendName::Btrfs => super::btrfs::probe(layout).map(|()| String::new()),
        BackendName::Overlay => trial::overlay(layout, settings),
        BackendName::Native => trial::native(layout),
    });
    match tried {
        Ok(why) => Trial { backend, works: true, why },
        Err(e) => Trial { backend, works: false, why: e.to_string().replace('\n', " ") },
    }
}

/// A backend that works here.
///
/// # Errors
/// `Unsupported` with the reason and what to do if it does not; as [`open`].
pub fn open_working(
    name: BackendName,
    layout: &Layout,
    settings: &BackendSettings,
) -> Result<Arc<dyn Backend>> {
    let trial = try_one(name, layout, settings);
    if !trial.works {
        let cause = format!("the backend is not supported here: {}", trial.why);
        return Err(Error::new(ErrorKind::Unsupported, "open backend", name.to_string(), cause));
    }
    open(name, layout, settings)
}

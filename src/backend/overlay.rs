//! The backend `overlay`: stacks are mounted by the overlayfs of the kernel.
//!
//! Its directories are those of `fuse`, and `plywood-fuse` writes some marks that the kernel does not follow: chains
//! with such marks are refused ([`super::followed`]), before anything shows wrong content.

use super::followed::{Reader, kernel_cannot_follow};
use super::stacked::{self, Mounter, Shape, Whose, bind};
use super::{BackendName, MountRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::types::{Mount, SnapshotId, SnapshotKind};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// How many lower layers the kernel stacks (`OVL_MAX_STACK`).
const MAX_LOWERS: usize = 500;

/// Mounts by the kernel.
pub struct Overlay {
    extra: Vec<String>,
    reader: Reader,
    /// What is in the way in each committed layer that was looked through, below its content. Committed layers do
    /// not change, and no id is used twice.
    known: Mutex<HashMap<SnapshotId, Option<PathBuf>>>,
}

/// What the kernel of this machine needs to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Marks are below `user.`: in a user namespace.
    pub user_xattr: bool,
    /// The kernel knows the option `index`, which would refuse an upper directory that is mounted twice.
    pub index_off: bool,
}

impl Overlay {
    /// With configured options, on a kernel that `needs` these.
    pub fn new(configured: &[String], needs: Needs) -> Overlay {
        let extra = extra_options(configured, needs);
        let reader = Reader::with_options(&extra);
        Overlay { extra, reader, known: Mutex::default() }
    }
}

/// Refuses a layer in which something was `found` that the kernel cannot follow.
fn refuse(id: SnapshotId, content: &Path, found: Option<PathBuf>) -> Result<()> {
    let Some(path) = found else { return Ok(()) };
    let cause = format!(
        "layer {id} holds {}, which only plywood-fuse can read: use the backend fuse for this store",
        content.join(path).display()
    );
    Err(Error::new(ErrorKind::FailedPrecondition, "mount overlay", id.to_string(), cause))
}

impl Mounter for Overlay {
    fn name(&self) -> BackendName {
        BackendName::Overlay
    }

    fn check(&self, layout: &Layout, chain: &[SnapshotId]) -> Result<()> {
        if chain.len() > MAX_LOWERS {
            let cause = format!(
                "the kernel stacks at most {MAX_LOWERS} layers, and this chain has {}: use the backend fuse",
                chain.len()
            );
            let subject = chain.first().map(ToString::to_string).unwrap_or_default();
            return Err(Error::new(ErrorKind::FailedPrecondition, "mount overlay", subject, cause));
        }
        for &id in chain {
            let content = layout.content(id);
            let known = self.known.lock().get(&id).cloned();
            let found = match known {
                Some(found) => found,
                None => {
                    let found = kernel_cannot_follow(&content, self.reader)?;
                    self.known.lock().insert(id, found.clone());
                    found
                }
            };
            refuse(id, &content, found)?;
        }
        Ok(())
    }

    fn maps_upper(&self) -> bool {
        false
    }

    fn mounts(&self, layout: &Layout, request: MountRequest<'_>) -> Result<Vec<Mount>> {
        if let [_, ..] = request.chain {
            self.check(layout, request.chain)?;
            if request.kind == SnapshotKind::Active {
                // Somebody else may have written there meanwhile, so nothing is remembered.
                let content = layout.content(request.id);
                refuse(request.id, &content, kernel_cannot_follow(&content, self.reader)?)?;
            }
        }
        Ok(describe(layout, &request, &self.extra))
    }
}

/// The options after our own: configured ones first, since of two the kernel takes the last.
pub fn extra_options(configured: &[String], needs: Needs) -> Vec<String> {
    let mut extra = configured.to_vec();
    let has = |name: &str| configured.iter().any(|o| o.split('=').next() == Some(name));
    if needs.user_xattr && !has("userxattr") {
        extra.push("userxattr".to_owned());
    }
    if needs.index_off && !has("index") {
        extra.push("index=off".to_owned());
    }
    extra
}

/// The mounts of each case; `extra` never applies to a bind mount:
///
/// | | |
/// |---|---|
/// | no parent | bind of the directory, `rw` or `ro` |
/// | view of one parent | bind of the parent's, `ro`, with the id mappings |
/// | else | a stack with the id mappings; a view has no upper directory |
pub fn describe(layout: &Layout, request: &MountRequest<'_>, extra: &[String]) -> Vec<Mount> {
    let mut options = maps(request);
    match stacked::shape(layout, request) {
        // What is in there was made with the ids of this side, and must not be mapped again.
        Shape::One(directory, Whose::Own) => return bind(&directory, request.kind, Vec::new()),
        Shape::One(directory, Whose::Parents) => return bind(&directory, request.kind, options),
        Shape::Layers(layers) => options.extend(layers),
    }
    options.extend(extra.iter().cloned());
    vec![Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }]
}

/// The id mappings, first of all options, as containerd's own overlay snapshotter orders them.
fn maps(request: &MountRequest<'_>) -> Vec<String> {
    let named = [("uidmap", request.uid_mapping), ("gidmap", request.gid_mapping)];
    named.into_iter().filter_map(|(name, map)| Some(format!("{name}={}", map?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn configured_options_come_first_and_are_not_said_twice() {
        let needs = Needs { user_xattr: true, index_off: true };
        let none = Needs { user_xattr: false, index_off: false };
        let cases: [(&[&str], Needs, &[&str]); 4] = [
            (&[], none, &[]),
            (&[], needs, &["userxattr", "index=off"]),
            (&["volatile", "index=on"], needs, &["volatile", "index=on", "userxattr"]),
            (&["userxattr"], needs, &["userxattr", "index=off"]),
        ];
        for (configured, needs, expected) in cases {
            assert_eq!(extra_options(&words(configured), needs), words(expected), "{configured:?}");
        }
    }

    // S3, S36
    #[test]
    fn each_case_has_its_mount() {
        use SnapshotKind::{Active, View};
        let temp = TempDir::new();
        let layout = Layout::create(temp.path()).unwrap();
        let s = layout.snapshots().display().to_string();
        let path = |text: &str| text.replace("S/", &format!("{s}/"));
        type Case<'a> = (SnapshotKind, &'a [u64], Option<&'a str>, &'a str, &'a str, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            (Active, &[], None, "bind", "S/9/fs", &["rw", "rbind"]),
            (View, &[], None, "bind", "S/9/fs", &["ro", "rbind"]),
            (Active, &[], Some("0:5:1"), "bind", "S/9/fs", &["rw", "rbind"]),
            (View, &[7], None, "bind", "S/7/fs", &["ro", "rbind"]),
            (View, &[7], Some("0:5:1"), "bind", "S/7/fs", &["uidmap=0:5:1", "gidmap=0:5:1", "ro", "rbind"]),
            (
                Active,
                &[7],
                None,
                "overlay",
                "overlay",
                &["workdir=S/9/work", "upperdir=S/9/fs", "lowerdir=S/7/fs", "volatile", "index=off"],
            ),
            (View, &[7, 3], None, "overlay", "overlay", &["lowerdir=S/7/fs:S/3/fs", "volatile", "index=off"]),
            (
                View,
                &[7, 3],
                Some("0:5:1,1:9:2"),
                "overlay",
                "overlay",
                &[
                    "uidmap=0:5:1,1:9:2",
                    "gidmap=0:5:1,1:9:2",
                    "lowerdir=S/7/fs:S/3/fs",
                    "volatile",
                    "index=off",
                ],
            ),
        ];
        for (kind, parents, mapping, mount_kind, source, options) in cases {
            let chain: Vec<SnapshotId> = parents.iter().copied().map(SnapshotId).collect();
            let request = MountRequest {
                id: SnapshotId(9),
                kind,
                chain: &chain,
                has_directory: kind == Active || chain.is_empty(),
                uid_mapping: mapping,
                gid_mapping: mapping,
            };
            let expected = Mount {
                kind: mount_kind.into(),
                source: path(source),
                options: options.iter().map(|o| path(o)).collect(),
            };
            let extra = words(&["volatile", "index=off"]);
            assert_eq!(describe(&layout, &request, &extra), vec![expected], "{kind:?} {parents:?}");
        }
    }

    #[test]
    fn more_layers_than_the_kernel_stacks_are_refused() {
        let temp = TempDir::new();
        let layout = Layout::create(temp.path()).unwrap();
        let overlay = Overlay::new(&[], Needs { user_xattr: false, index_off: false });
        let chain: Vec<SnapshotId> = (1..=501).map(SnapshotId).collect();
        let refused = overlay.check(&layout, &chain).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
        assert!(refused.to_string().contains("500"), "{refused}");
    }
}

//! The backend `fuse`: stacks are mounted by `plywood-fuse`.
//!
//! Nothing is mounted here: the descriptors say how. What each case looks like is the table of [`describe`].

use super::stacked::{self, Mounter, Shape, Whose, bind, lower_option};
use super::{BackendName, MountRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::types::{Mount, SnapshotId, SnapshotKind};

/// The type of the mounts, unless configured: `mount.fuse3` runs the program of that name.
pub const MOUNT_TYPE: &str = "fuse3.plywood-fuse";

/// The longest argument of a program, in bytes (`MAX_ARG_STRLEN` of the kernel), less what helpers add.
const MAX_OPTIONS_BYTES: usize = 128 * 1024 - 256;

/// Mounts by `plywood-fuse`.
#[derive(Debug, Clone)]
pub struct Fuse {
    /// The type of the mounts, such as [`MOUNT_TYPE`].
    pub mount_type: String,
    /// Options for every stack, after our own.
    pub options: Vec<String>,
}

impl Mounter for Fuse {
    fn name(&self) -> BackendName {
        BackendName::Fuse
    }

    fn check(&self, _: &Layout, _: &[SnapshotId]) -> Result<()> {
        Ok(())
    }

    fn maps_upper(&self) -> bool {
        true
    }

    fn mounts(&self, layout: &Layout, request: MountRequest<'_>) -> Result<Vec<Mount>> {
        let mounts = describe(layout, &request, self);
        let bytes: usize = mounts.iter().flat_map(|m| &m.options).map(|o| o.len() + 1).sum();
        if bytes > MAX_OPTIONS_BYTES {
            let cause = format!(
                "its {} layers do not fit into the options of one mount: commit fewer layers on top of each other, \
                 or move the store to a shorter path",
                request.chain.len()
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, "mounts", request.id.to_string(), cause));
        }
        Ok(mounts)
    }
}

/// The mounts of each case:
///
/// | | |
/// |---|---|
/// | no parent | bind of the directory, `rw` or `ro` |
/// | view of one parent | bind of the parent's, `ro`; with id mappings a stack, since a bind mount cannot map |
/// | else | a stack; `ro` for a view |
pub fn describe(layout: &Layout, request: &MountRequest<'_>, fuse: &Fuse) -> Vec<Mount> {
    let maps = maps(request);
    let mut options = match stacked::shape(layout, request) {
        Shape::One(directory, Whose::Parents) if maps.is_empty() => {
            return bind(&directory, request.kind, Vec::new());
        }
        Shape::One(_, Whose::Parents) => vec![lower_option(layout, request.chain)],
        // What is in there was made with the ids of this side.
        Shape::One(directory, Whose::Own) => return bind(&directory, request.kind, Vec::new()),
        Shape::Layers(options) => options,
    };
    if request.kind != SnapshotKind::Active {
        options.push("ro".to_owned());
    }
    options.extend(maps);
    options.extend(fuse.options.iter().cloned());
    vec![Mount { kind: fuse.mount_type.clone(), source: "overlay".to_owned(), options }]
}

/// The id mappings as `fuse-overlayfs` spells them: a comma would end the option.
fn maps(request: &MountRequest<'_>) -> Vec<String> {
    let named = [("uidmapping", request.uid_mapping), ("gidmapping", request.gid_mapping)];
    named.into_iter().filter_map(|(name, map)| Some(format!("{name}={}", map?.replace(',', ":")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;

    /// A request of a test: kind, parents, mappings.
    type Case<'a> = (SnapshotKind, &'a [u64], Option<&'a str>, Mount);

    // S3, S36: a view differs in being read-only, and has no upper directory.
    #[test]
    fn each_case_has_its_mount() {
        use SnapshotKind::{Active, View};
        let temp = TempDir::new();
        let layout = Layout::create(temp.path()).unwrap();
        let s = layout.snapshots().display().to_string();
        let bind = |source: String, options: &[&str]| Mount {
            kind: "bind".into(),
            source,
            options: options.iter().map(ToString::to_string).collect(),
        };
        let stack =
            |options: Vec<String>| Mount { kind: MOUNT_TYPE.into(), source: "overlay".into(), options };
        let own = || vec![format!("workdir={s}/9/work"), format!("upperdir={s}/9/fs")];
        let with = |mut first: Vec<String>, rest: &[&str]| {
            first.extend(rest.iter().map(ToString::to_string));
            first
        };
        let map = "0:100000:65536,65536:5:1";
        let maps = ["uidmapping=0:100000:65536:65536:5:1", "gidmapping=0:100000:65536:65536:5:1"];
        let lower = |ids: &[u64]| {
            format!("lowerdir={}", ids.iter().map(|i| format!("{s}/{i}/fs")).collect::<Vec<_>>().join(":"))
        };
        let cases: [Case<'_>; 8] = [
            (Active, &[], None, bind(format!("{s}/9/fs"), &["rw", "rbind"])),
            (View, &[], None, bind(format!("{s}/9/fs"), &["ro", "rbind"])),
            (View, &[7], None, bind(format!("{s}/7/fs"), &["ro", "rbind"])),
            (Active, &[7], None, stack(with(own(), &[&lower(&[7]), "noacl"]))),
            (Active, &[7, 3], None, stack(with(own(), &[&lower(&[7, 3]), "noacl"]))),
            (View, &[7, 3], None, stack(vec![lower(&[7, 3]), "ro".into(), "noacl".into()])),
            (Active, &[7], Some(map), stack(with(own(), &[&lower(&[7]), maps[0], maps[1], "noacl"]))),
            (View, &[7], Some(map), stack(with(vec![lower(&[7])], &["ro", maps[0], maps[1], "noacl"]))),
        ];
        let fuse = Fuse { mount_type: MOUNT_TYPE.into(), options: vec!["noacl".into()] };
        for (kind, parents, mapping, mount) in cases {
            let chain: Vec<SnapshotId> = parents.iter().copied().map(SnapshotId).collect();
            let request = MountRequest {
                id: SnapshotId(9),
                kind,
                chain: &chain,
                has_directory: kind == Active || chain.is_empty(),
                uid_mapping: mapping,
                gid_mapping: mapping,
            };
            assert_eq!(fuse.mounts(&layout, request).unwrap(), vec![mount], "{kind:?} {parents:?}");
        }
    }

    #[test]
    fn more_layers_than_one_argument_can_name_are_refused() {
        let temp = TempDir::new();
        let layout = Layout::create(temp.path()).unwrap();
        let fuse = Fuse { mount_type: MOUNT_TYPE.into(), options: Vec::new() };
        let mounts = |layers: u64| {
            let chain: Vec<SnapshotId> = (0..layers).map(SnapshotId).collect();
            let kind = SnapshotKind::View;
            fuse.mounts(
                &layout,
                MountRequest {
                    id: SnapshotId(9),
                    kind,
                    chain: &chain,
                    has_directory: false,
                    uid_mapping: None,
                    gid_mapping: None,
                },
            )
        };
        assert_eq!(mounts(500).unwrap().len(), 1);
        let refused = mounts(20_000).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    }
}

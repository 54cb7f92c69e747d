//! Mounts that a client brings, carried out for just as long as they are looked at.

use super::{Attached, Detach, MountSettings, attach, detach, plan};
use crate::error::{Error, ErrorKind, Result};
use crate::types::Mount;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Whether something is changed through a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It is only read.
    Reading,
    /// It is changed.
    Changing,
}

/// A mount that ends with this value.
#[derive(Debug)]
pub struct Temporary {
    point: PathBuf,
    attached: Option<Attached>,
}

impl Temporary {
    /// Carries out the one mount at `point`, a directory that is made for it.
    ///
    /// # Errors
    /// Those of [`attach`].
    pub fn attach(
        mount: &Mount,
        purpose: Purpose,
        point: PathBuf,
        settings: &MountSettings,
    ) -> Result<Temporary> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&point);
        made.map_err(|e| Error::io("mount", point.display().to_string(), e))?;
        let mut temporary = Temporary { point, attached: None };
        let mount = adapted(mount.clone(), purpose);
        temporary.attached = Some(attach(&[mount], &temporary.point, settings)?);
        Ok(temporary)
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Ends it, after all is written.
    ///
    /// # Errors
    /// `Busy` if somebody else uses it.
    pub fn end(mut self) -> Result<()> {
        match self.attached.take() {
            Some(attached) => detach(&attached.target, attached.server, Detach::Clean).inspect_err(|_| {
                let _ = detach(&attached.target, None, Detach::Lazy);
            }),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(attached) = self.attached.take()
            && let Err(error) = detach(&attached.target, attached.server, Detach::Lazy)
        {
            tracing::warn!(target = %self.point.display(), %error, "a mount stays until the next cleanup");
        }
        if let Err(error) = fs::remove_dir(&self.point) {
            tracing::debug!(target = %self.point.display(), %error, "a mount point stays until the next cleanup");
        }
    }
}

/// A mount as it is carried out for a moment: without what makes writing unsafe, or maps ids; to be read, a stack for the
/// kernel is one without a layer for changes, which may be in use, and anything else is mounted with `ro`.
///
/// # Source
/// `mount.WithTempMount` and `mount.WithReadonlyTempMount` of containerd.
fn adapted(mut mount: Mount, purpose: Purpose) -> Mount {
    if mount.kind == "overlay" {
        let is_left_out = |option: &String| {
            let name = option.split('=').next().unwrap_or_default();
            matches!(option.as_str(), "volatile" | "fsync=volatile") || matches!(name, "uidmap" | "gidmap")
        };
        mount.options.retain(|option| !is_left_out(option));
    }
    match purpose {
        Purpose::Changing => mount,
        Purpose::Reading if mount.kind == "overlay" => {
            let upper = mount.options.iter().find_map(|o| o.strip_prefix("upperdir=").map(str::to_owned));
            mount.options.retain(|o| !o.starts_with("upperdir=") && !o.starts_with("workdir="));
            if let Some(upper) = upper {
                for option in &mut mount.options {
                    if let Some(lowers) = option.strip_prefix("lowerdir=") {
                        *option = format!("lowerdir={upper}:{lowers}");
                    }
                }
            }
            mount
        }
        Purpose::Reading => {
            mount.options.retain(|option| option != "rw" && option != "ro");
            mount.options.push("ro".to_owned());
            mount
        }
    }
}

/// The one mount that can be carried out so; something that is mounted below another one cannot.
///
/// # Errors
/// `Unsupported`: whoever asked has somebody else to ask.
pub fn the_one(mounts: &[Mount]) -> Result<&Mount> {
    let [mount] = mounts else {
        let cause = format!("mounts are carried out one at a time, and these are {}", mounts.len());
        return Err(Error::new(ErrorKind::Unsupported, "mount", "", cause));
    };
    Ok(mount)
}

/// The layers of a stack, top first, with the one that takes changes in front; `None` if it is no stack.
pub fn layers_of(mount: &Mount) -> Option<(Vec<PathBuf>, bool)> {
    let is_stack =
        mount.kind == "overlay" || mount.kind.starts_with("fuse3.") || mount.kind.starts_with("fuse.");
    if !is_stack {
        return None;
    }
    let (lowers, rest) = plan::split_lowers(mount.options.clone());
    let upper = rest.iter().rev().find_map(|option| option.strip_prefix("upperdir="));
    let layers = upper.map(PathBuf::from).into_iter().chain(lowers.into_iter().map(PathBuf::from)).collect();
    Some((layers, upper.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &str) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: "/s".to_owned(),
            options: options.split(',').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn a_mount_is_adapted_to_its_purpose() {
        let stack = "uidmap=0:1:2,gidmap=0:1:2,workdir=/w,upperdir=/u,lowerdir=/a:/b,volatile,index=off";
        let cases = [
            ("overlay", stack, Purpose::Changing, "workdir=/w,upperdir=/u,lowerdir=/a:/b,index=off"),
            ("overlay", stack, Purpose::Reading, "lowerdir=/u:/a:/b,index=off"),
            ("overlay", "lowerdir=/a:/b", Purpose::Reading, "lowerdir=/a:/b"),
            ("bind", "rbind,rw", Purpose::Reading, "rbind,ro"),
            ("bind", "rbind,rw", Purpose::Changing, "rbind,rw"),
            ("fuse3.x", "upperdir=/u,volatile", Purpose::Reading, "upperdir=/u,volatile,ro"),
        ];
        for (kind, options, purpose, expected) in cases {
            let adapted = adapted(mount(kind, options), purpose);
            assert_eq!(adapted.options.join(","), expected, "{kind} {options} {purpose:?}");
        }
    }

    #[test]
    fn the_layers_of_a_stack_are_told_top_first() {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        let cases = [
            ("overlay", "workdir=/w,upperdir=/u,lowerdir=/a:/b", Some((paths(&["/u", "/a", "/b"]), true))),
            ("fuse3.plywood-fuse", "lowerdir=/a:/b,ro", Some((paths(&["/a", "/b"]), false))),
            ("bind", "rbind,ro", None),
            ("btrfs", "subvolid=5", None),
        ];
        for (kind, options, expected) in cases {
            assert_eq!(layers_of(&mount(kind, options)), expected, "{kind} {options}");
        }
    }
}

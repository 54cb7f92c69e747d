//! Which system calls and programs carry out a mount, for whom? Pure: nothing is asked, nothing is done.
//!
//! The kernel mounts for root, and for root of a user namespace except for btrfs. For a plain user it mounts FUSE only,
//! so that everything that consists of plain directories is served by the layer stack then: a stack for the kernel has
//! the same options, and a directory alone is a stack of one.

use crate::error::{Error, ErrorKind, Result};
use crate::layout::{CONTENT, WORK};
use crate::sys::attach::{Depth, MountFlags};
use crate::sys::userns::Privilege;
use crate::types::Mount;
use std::path::{Path, PathBuf};

const OPERATION: &str = "mount";

/// The program that serves a layer stack.
pub const SERVER: &str = "plywood-fuse";

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Show a directory at the target.
    Bind {
        /// The directory.
        source: PathBuf,
        /// Whether mounts below it come along.
        depth: Depth,
        /// Flags to set afterwards.
        flags: MountFlags,
    },
    /// Mount a stack by the kernel.
    Overlay {
        /// The layers to read from, the top one first.
        lowers: Vec<String>,
        /// Other options for the file system, in order.
        rest: Vec<String>,
        /// Flags of the mount.
        flags: MountFlags,
    },
    /// Mount something else by the kernel.
    Kernel {
        /// The type.
        kind: String,
        /// What to mount.
        source: String,
        /// Options for the file system, in order.
        options: Vec<String>,
        /// Flags of the mount.
        flags: MountFlags,
    },
    /// Start a server.
    Serve {
        /// The name of its program.
        program: String,
        /// What `/proc/mounts` shows as the source.
        source: String,
        /// Its options, in order; `lowerdir` is not among them.
        options: Vec<String>,
        /// The layers to read from, the top one first.
        lowers: Vec<String>,
        /// Directories that have to be there; what is missing is made.
        made: Vec<PathBuf>,
    },
}

/// Decides how `mount` is carried out.
///
/// `scratch` is a directory of ours on the disk of the snapshots.
///
/// # Errors
/// `PermissionDenied` with the way out if the kernel does not mount this for whoever asks; `InvalidArgument`.
pub fn plan(mount: &Mount, privilege: Privilege, scratch: &Path) -> Result<Step> {
    match (mount.kind.as_str(), privilege) {
        ("bind", Privilege::User) => serve_directory(mount, scratch),
        ("bind", _) => Ok(bind(mount)),
        ("overlay", Privilege::User) => Ok(serve(mount, SERVER, privilege)),
        ("overlay", _) => Ok(overlay(mount)),
        (kind, _) if kind.starts_with("fuse3.") || kind.starts_with("fuse.") => {
            let program = kind.split_once('.').map_or(SERVER, |(_, program)| program);
            Ok(serve(mount, program, privilege))
        }
        (kind, Privilege::Root) => {
            let (flags, options) = split_flags(&mount.options);
            Ok(Step::Kernel { kind: kind.to_owned(), source: mount.source.clone(), options, flags })
        }
        (kind, _) => {
            let cause = format!(
                "the kernel mounts {kind} for root only: run this as root, or choose the backend fuse for the store"
            );
            Err(Error::new(ErrorKind::PermissionDenied, OPERATION, &mount.source, cause))
        }
    }
}

impl Step {
    /// The same step with `ro`, whatever it said.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        match &mut self {
            Step::Bind { flags, .. } | Step::Overlay { flags, .. } | Step::Kernel { flags, .. } => {
                flags.insert(MountFlags::RDONLY);
            }
            Step::Serve { options, .. } => {
                options.retain(|option| option != "rw");
                options.push("ro".to_owned());
            }
        }
        self
    }

    /// True if nothing can be changed through the mount.
    pub fn is_read_only(&self) -> bool {
        let upper = |options: &[String]| options.iter().any(|option| option.starts_with("upperdir="));
        match self {
            Step::Bind { flags, .. } | Step::Kernel { flags, .. } => flags.contains(MountFlags::RDONLY),
            Step::Overlay { flags, rest, .. } => flags.contains(MountFlags::RDONLY) || !upper(rest),
            Step::Serve { options, .. } => is_read_only(options) || !upper(options),
        }
    }

    /// Puts a layer below all others, if this is a stack: its files show where no other layer has any.
    ///
    /// True if that was possible.
    pub fn put_below(&mut self, layer: &Path) -> bool {
        match (self, layer.to_str()) {
            (Step::Overlay { lowers, .. } | Step::Serve { lowers, .. }, Some(layer)) => {
                lowers.push(layer.to_owned());
                true
            }
            _ => false,
        }
    }

    /// Serves a directory that would be shown read-only by a bind mount as a stack instead.
    #[must_use]
    pub fn as_stack(self) -> Self {
        match self {
            Step::Bind { ref source, flags, .. } if flags.contains(MountFlags::RDONLY) => {
                match source.to_str() {
                    Some(source) => Step::Serve {
                        program: SERVER.to_owned(),
                        source: "overlay".to_owned(),
                        options: vec!["suid".to_owned(), "dev".to_owned(), "ro".to_owned()],
                        lowers: vec![source.to_owned()],
                        made: Vec::new(),
                    },
                    None => self,
                }
            }
            other => other,
        }
    }
}

fn bind(mount: &Mount) -> Step {
    let (flags, rest) = split_flags(&mount.options);
    let depth = if rest.iter().any(|option| option == "rbind") { Depth::All } else { Depth::One };
    Step::Bind { source: PathBuf::from(&mount.source), depth, flags }
}

fn overlay(mount: &Mount) -> Step {
    let (flags, options) = split_flags(&mount.options);
    let (lowers, rest) = split_lowers(options);
    Step::Overlay { lowers, rest, flags }
}

fn serve(mount: &Mount, program: &str, privilege: Privilege) -> Step {
    let (lowers, rest) = split_lowers(mount.options.clone());
    // As mount.fuse3 does for root, so that a mount is the same whoever carries it out. First, since the last wins.
    let mut options = match privilege {
        Privilege::Root | Privilege::NamespaceRoot => vec!["suid".to_owned(), "dev".to_owned()],
        Privilege::User => Vec::new(),
    };
    options.extend(rest);
    Step::Serve {
        program: program.to_owned(),
        source: mount.source.clone(),
        options,
        lowers,
        made: Vec::new(),
    }
}

/// A directory alone, for a plain user.
fn serve_directory(mount: &Mount, scratch: &Path) -> Result<Step> {
    let source = Path::new(&mount.source);
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, OPERATION, path.display().to_string(), "not in UTF-8")
        })
    };
    let step = |options: Vec<String>, lowers, made| Step::Serve {
        program: SERVER.to_owned(),
        source: "overlay".to_owned(),
        options,
        lowers,
        made,
    };
    if is_read_only(&mount.options) {
        return Ok(step(vec!["ro".to_owned()], vec![mount.source.clone()], Vec::new()));
    }
    let work = match source.parent() {
        Some(snapshot) if source.file_name().is_some_and(|name| name == CONTENT) => snapshot.join(WORK),
        // A full copy has no place for it; the same one each time, so that nobody has to remember it.
        _ => {
            let name = source.file_name().unwrap_or_default().to_string_lossy();
            scratch.join(format!("work-{name}"))
        }
    };
    let empty = scratch.join("empty");
    let options = vec![format!("upperdir={}", mount.source), format!("workdir={}", text(&work)?)];
    Ok(step(options, vec![text(&empty)?], vec![empty, work]))
}

/// True if the last word on it is `ro`.
fn is_read_only(options: &[String]) -> bool {
    options.iter().rev().find(|o| *o == "ro" || *o == "rw").is_some_and(|o| o == "ro")
}

/// Takes the layers out of the options; a backslash keeps the colon behind it.
pub(crate) fn split_lowers(options: Vec<String>) -> (Vec<String>, Vec<String>) {
    let mut lowers = Vec::new();
    let mut rest = Vec::new();
    for option in options {
        if let Some(list) = option.strip_prefix("lowerdir=") {
            lowers = split_list(list);
        } else if let Some(one) = option.strip_prefix("lowerdir+=") {
            lowers.push(one.to_owned());
        } else {
            rest.push(option);
        }
    }
    (lowers, rest)
}

fn split_list(list: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut letters = list.chars();
    while let Some(letter) = letters.next() {
        match (letter, all.last_mut()) {
            (':', _) => all.push(String::new()),
            ('\\', Some(last)) => last.extend(letters.next()),
            (letter, Some(last)) => last.push(letter),
            (_, None) => {}
        }
    }
    all.retain(|path| !path.is_empty());
    all
}

/// Takes the words that are flags of mount(2) out of the options.
fn split_flags(options: &[String]) -> (MountFlags, Vec<String>) {
    let none = MountFlags::empty();
    let mut flags = none;
    let mut rest = Vec::new();
    for option in options {
        let (set, clear) = match option.as_str() {
            "ro" => (MountFlags::RDONLY, none),
            "rw" => (none, MountFlags::RDONLY),
            "nosuid" => (MountFlags::NOSUID, none),
            "suid" => (none, MountFlags::NOSUID),
            "nodev" => (MountFlags::NODEV, none),
            "dev" => (none, MountFlags::NODEV),
            "noexec" => (MountFlags::NOEXEC, none),
            "exec" => (none, MountFlags::NOEXEC),
            "noatime" => (MountFlags::NOATIME, MountFlags::RELATIME | MountFlags::STRICTATIME),
            "relatime" | "atime" => (MountFlags::RELATIME, MountFlags::NOATIME | MountFlags::STRICTATIME),
            "strictatime" => (MountFlags::STRICTATIME, MountFlags::NOATIME | MountFlags::RELATIME),
            "nodiratime" => (MountFlags::NODIRATIME, none),
            "diratime" => (none, MountFlags::NODIRATIME),
            "sync" => (MountFlags::SYNCHRONOUS, none),
            "async" => (none, MountFlags::SYNCHRONOUS),
            "dirsync" => (MountFlags::DIRSYNC, none),
            "defaults" => (none, none),
            _ => {
                rest.push(option.clone());
                continue;
            }
        };
        flags = (flags - clear) | set;
    }
    (flags, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &str) -> Mount {
        let options = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
        Mount { kind: kind.to_owned(), source: source.to_owned(), options }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn planned(mount: &Mount, privilege: Privilege) -> Step {
        plan(mount, privilege, Path::new("/s/mnt")).unwrap()
    }

    #[test]
    fn a_bind_mount_has_depth_and_flags() {
        // S59, S60
        let step = planned(&mount("bind", "/s/7/fs", "rbind,rw"), Privilege::Root);
        let expected = |flags| Step::Bind { source: PathBuf::from("/s/7/fs"), depth: Depth::All, flags };
        assert_eq!(step, expected(MountFlags::empty()));
        assert!(!step.is_read_only());
        let step = planned(&mount("bind", "/s/7/fs", "ro,rbind"), Privilege::NamespaceRoot);
        assert_eq!(step, expected(MountFlags::RDONLY));
        assert!(step.is_read_only());
        let Step::Bind { depth, .. } = planned(&mount("bind", "/x", "bind"), Privilege::Root) else {
            panic!()
        };
        assert_eq!(depth, Depth::One);
    }

    #[test]
    fn a_plain_user_gets_a_directory_served_as_a_stack_of_one() {
        let serve = |options: &[&str], lower: &str, made: &[&str]| Step::Serve {
            program: "plywood-fuse".to_owned(),
            source: "overlay".to_owned(),
            options: words(options),
            lowers: words(&[lower]),
            made: made.iter().map(PathBuf::from).collect(),
        };
        let active = planned(&mount("bind", "/s/snapshots/7/fs", "rw,rbind"), Privilege::User);
        let options = ["upperdir=/s/snapshots/7/fs", "workdir=/s/snapshots/7/work"];
        assert_eq!(active, serve(&options, "/s/mnt/empty", &["/s/mnt/empty", "/s/snapshots/7/work"]));
        assert!(!active.is_read_only());
        let copy = planned(&mount("bind", "/s/snapshots/7", "rbind,rw"), Privilege::User);
        let options = ["upperdir=/s/snapshots/7", "workdir=/s/mnt/work-7"];
        assert_eq!(copy, serve(&options, "/s/mnt/empty", &["/s/mnt/empty", "/s/mnt/work-7"]));
        let view = planned(&mount("bind", "/s/snapshots/7/fs", "ro,rbind"), Privilege::User);
        assert_eq!(view, serve(&["ro"], "/s/snapshots/7/fs", &[]));
        assert!(view.is_read_only());
    }

    #[test]
    fn a_stack_for_the_kernel_is_served_to_a_plain_user() {
        let stack = mount("overlay", "overlay", "workdir=/w,upperdir=/u,lowerdir=/a:/b,userxattr,index=off");
        let Step::Serve { program, options, lowers, .. } = planned(&stack, Privilege::User) else { panic!() };
        assert_eq!((program.as_str(), lowers), ("plywood-fuse", words(&["/a", "/b"])));
        assert_eq!(options, words(&["workdir=/w", "upperdir=/u", "userxattr", "index=off"]));
        let step = planned(&stack, Privilege::NamespaceRoot);
        let Step::Overlay { lowers, rest, flags } = &step else { panic!() };
        assert_eq!((lowers, flags), (&words(&["/a", "/b"]), &MountFlags::empty()));
        assert_eq!(*rest, words(&["workdir=/w", "upperdir=/u", "userxattr", "index=off"]));
        assert!(!step.is_read_only() && step.read_only().is_read_only());
    }

    #[test]
    fn a_server_is_called_by_the_type() {
        for kind in ["fuse3.plywood-fuse", "fuse.plywood-fuse"] {
            let stack = mount(kind, "overlay", "lowerdir=/a:/b,ro");
            let Step::Serve { program, options, .. } = planned(&stack, Privilege::Root) else { panic!() };
            assert_eq!((program.as_str(), options), ("plywood-fuse", words(&["suid", "dev", "ro"])));
            let Step::Serve { options, .. } = planned(&stack, Privilege::User) else { panic!() };
            assert_eq!(options, words(&["ro"]));
        }
    }

    #[test]
    fn what_the_kernel_keeps_for_root_is_refused_with_advice() {
        let subvolume = mount("btrfs", "/dev/vdb", "subvolid=257,ro");
        let Step::Kernel { kind, options, flags, .. } = planned(&subvolume, Privilege::Root) else {
            panic!()
        };
        assert_eq!((kind.as_str(), options, flags), ("btrfs", words(&["subvolid=257"]), MountFlags::RDONLY));
        for privilege in [Privilege::NamespaceRoot, Privilege::User] {
            let error = plan(&subvolume, privilege, Path::new("/s/mnt")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("as root"), "{error}");
        }
    }

    #[test]
    fn the_last_word_wins_and_colons_can_be_kept() {
        assert_eq!(split_flags(&words(&["ro", "rw", "nosuid", "suid", "x"])).0, MountFlags::empty());
        assert_eq!(split_flags(&words(&["noatime", "relatime"])).0, MountFlags::RELATIME);
        assert!(!is_read_only(&words(&["ro", "rw"])) && is_read_only(&words(&["rw", "ro"])));
        assert_eq!(split_list("/a\\:b:/c"), words(&["/a:b", "/c"]));
        let (lowers, rest) = split_lowers(words(&["lowerdir=/a", "x", "lowerdir=/b:/c", "lowerdir+=/d:e"]));
        assert_eq!((lowers, rest), (words(&["/b", "/c", "/d:e"]), words(&["x"])));
    }

    #[test]
    fn a_layer_goes_below_a_stack_only() {
        let below = Path::new("/stub");
        let mut stack = planned(&mount("overlay", "overlay", "lowerdir=/a"), Privilege::Root);
        assert!(stack.put_below(below) && stack.is_read_only());
        let Step::Overlay { lowers, .. } = stack else { panic!() };
        assert_eq!(lowers, words(&["/a", "/stub"]));
        let mut bind = planned(&mount("bind", "/a", "ro"), Privilege::Root);
        assert!(!bind.put_below(below));
        assert!(bind.as_stack().put_below(below));
    }
}

//! What does a command find besides the snapshot: `/proc`, `/dev`, `/sys`, and the machine's network names?
//!
//! Mount points inside are opened so that no symbolic link of the snapshot leads out of it. What cannot be mounted is
//! left out, as long as a command can do without.

use super::OPERATION;
use crate::error::{Error, Result};
use crate::sys::attach::{self, Depth, MountFlags};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Directories in the snapshot's root that are mounted on.
const MOUNT_POINTS: [&str; 3] = ["proc", "dev", "sys"];

/// Files of the machine that are shown as copies, by the directory they are in.
const NETWORK_FILES: [(&str, &str); 2] = [("etc", "resolv.conf"), ("etc", "hosts")];

/// Devices that programs expect, as in the specification of container runtimes.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Symbolic links in `/dev`, likewise.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where apt is told to stay root, below `/dev`: see [`crate::sys::pretend`].
const APT_CONFIG: &str = "plywood-apt.conf";

/// The same as the command sees it.
pub const APT_CONFIG_PATH: &str = "/dev/plywood-apt.conf";

/// What of [`MOUNT_POINTS`] is not in a directory.
pub fn missing_mount_points(dir: &Path) -> Vec<&'static str> {
    let is_missing = |name: &&str| {
        fs::symlink_metadata(dir.join(name)).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    };
    MOUNT_POINTS.into_iter().filter(is_missing).collect()
}

/// A directory of ours, with a file system in memory that nobody else sees.
pub struct Base {
    /// Where the snapshot is mounted.
    pub root: PathBuf,
    /// A layer with all mount points, empty.
    pub below: PathBuf,
    dev: PathBuf,
    files: PathBuf,
}

impl Base {
    /// Where the snapshot is mounted.
    pub fn root_of(path: &Path) -> PathBuf {
        path.join("root")
    }

    /// Makes it at an empty directory.
    pub fn furnish(path: &Path) -> Result<Self> {
        let base = Self {
            root: Self::root_of(path),
            below: path.join("below"),
            dev: path.join("dev"),
            files: path.join("files"),
        };
        let make = || -> io::Result<()> {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            attach::mount("plywood", path, "tmpfs", flags, "mode=0755")?;
            for dir in [&base.root, &base.below, &base.dev, &base.files] {
                make_dir(dir)?;
            }
            for name in MOUNT_POINTS {
                make_dir(&base.below.join(name))?;
            }
            for (dir, name) in NETWORK_FILES {
                let parent = base.below.join(dir);
                if !parent.exists() {
                    make_dir(&parent)?;
                }
                // What cannot be read is shown empty.
                let content = fs::read(Path::new("/").join(dir).join(name)).unwrap_or_default();
                make_file(&parent.join(name), b"")?;
                make_file(&base.files.join(name), &content)?;
            }
            Ok(())
        };
        make().map_err(|e| Error::io(OPERATION, path.display().to_string(), e))?;
        Ok(base)
    }

    /// Mounts everything in the root, seen from a new mount namespace. `one_id`: no id but 0 exists.
    pub fn mount_all(&self, one_id: bool, terminal: Option<&Path>) -> Result<()> {
        let failed = |what: &'static str| move |e| Error::io(OPERATION, what, e);
        let root = File::open(&self.root).map_err(failed("open the root"))?;
        let root = root.as_fd();
        if let Some(proc) = mount_point(root, "proc") {
            mount_proc(&proc).map_err(failed("mount /proc"))?;
        }
        if let Some(dev) = mount_point(root, "dev") {
            self.make_dev(one_id, terminal).map_err(failed("make /dev"))?;
            attach::move_mount(&self.dev, &attach::path_of(&dev)).map_err(failed("mount /dev"))?;
        }
        if let Some(sys) = mount_point(root, "sys") {
            mount_sys(&sys);
        }
        for (dir, name) in NETWORK_FILES {
            let place = attach::open_inside(root, &Path::new(dir).join(name));
            let is_file = |place: &OwnedFd| fs::metadata(attach::path_of(place)).is_ok_and(|m| m.is_file());
            if let Some(place) = place.ok().filter(is_file) {
                // Names of machines are a comfort.
                let _ = attach::bind(&self.files.join(name), &attach::path_of(&place), Depth::One);
            }
        }
        Ok(())
    }

    fn make_dev(&self, one_id: bool, terminal: Option<&Path>) -> io::Result<()> {
        let dev = &self.dev;
        attach::mount("plywood", dev, "tmpfs", MountFlags::NOSUID, "mode=0755,size=64k")?;
        for name in DEVICES {
            show_device(&Path::new("/dev").join(name), &dev.join(name));
        }
        for (name, target) in LINKS {
            symlink(target, dev.join(name))?;
        }
        let shm = dev.join("shm");
        make_dir(&shm)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        attach::mount("plywood", &shm, "tmpfs", flags, "mode=1777")?;
        let pts = dev.join("pts");
        make_dir(&pts)?;
        let options = "newinstance,ptmxmode=0666,mode=0620";
        let with_group = format!("{options},gid=5");
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        let tries = if one_id { vec![options] } else { vec![with_group.as_str(), options] };
        let mounted =
            tries.iter().any(|options| attach::mount("plywood", &pts, "devpts", flags, options).is_ok());
        if !mounted {
            attach::bind(Path::new("/dev/pts"), &pts, Depth::All)?;
        }
        // The caller's terminal has no name in a new /dev/pts: so ttyname(3) finds it.
        if let Some(terminal) = terminal {
            show_device(terminal, &dev.join("console"));
        }
        if one_id {
            make_file(&dev.join(APT_CONFIG), b"APT::Sandbox::User \"root\";\n")?;
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn make_file(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// A device of the machine; one that is missing there is missing here.
fn show_device(device: &Path, place: &Path) {
    if device.exists() && make_file(place, b"").is_ok() && attach::bind(device, place, Depth::One).is_err() {
        let _ = fs::remove_file(place);
    }
}

/// A directory to mount on, if the snapshot has it.
fn mount_point(root: BorrowedFd<'_>, name: &str) -> Option<OwnedFd> {
    let place = attach::open_inside(root, Path::new(name)).ok()?;
    fs::metadata(attach::path_of(&place)).is_ok_and(|m| m.is_dir()).then_some(place)
}

/// Shows the processes of the new namespace; where that is refused, because something hides parts of the machine's
/// `/proc`, those of the machine.
fn mount_proc(place: &OwnedFd) -> io::Result<()> {
    let target = attach::path_of(place);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    attach::mount("proc", &target, "proc", flags, "")
        .or_else(|_| attach::bind(Path::new("/proc"), &target, Depth::All))
}

/// Shows the machine's `/sys`, read-only or not at all.
fn mount_sys(place: &OwnedFd) {
    let target = attach::path_of(place);
    if attach::bind(Path::new("/sys"), &target, Depth::All).is_err() {
        return;
    }
    // The descriptor is of the directory below the new mount.
    let mounted = fs::canonicalize(&target).unwrap_or(target);
    let read_only =
        attach::set_read_only_below(&mounted).or_else(|_| attach::set_flags(&mounted, MountFlags::RDONLY));
    if read_only.is_err() {
        let _ = plywood_fuse::sys::mount::unmount(&mounted, plywood_fuse::sys::mount::Detach::Lazily);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plywood_fuse::testing::TempDir;

    #[test]
    fn only_what_is_absent_is_missing() {
        let dir = TempDir::new();
        assert_eq!(missing_mount_points(dir.path()), MOUNT_POINTS);
        fs::create_dir(dir.path().join("proc")).unwrap();
        symlink("/nowhere", dir.path().join("sys")).unwrap();
        assert_eq!(missing_mount_points(dir.path()), ["dev"]);
        let root = File::open(dir.path()).unwrap();
        assert!(mount_point(root.as_fd(), "proc").is_some());
        assert!(mount_point(root.as_fd(), "sys").is_none());
        assert!(mount_point(root.as_fd(), "dev").is_none());
        assert!(APT_CONFIG_PATH.ends_with(APT_CONFIG));
    }
}

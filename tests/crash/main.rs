//! Killed anywhere, a store loses nothing that was answered, and is whole when it is opened again.
//!
//! The program starts itself again as the process that dies: at a fail point that `PLYWOOD_FAIL` arms (`points`), or
//! by SIGKILL at a random moment (`kills`). Then: `check` finds nothing but garbage, `cleanup` leaves none, what was
//! committed is there with its content, and the interrupted call succeeds when it is made again.
//!
//! No mounts are needed: content is written to the directories that a snapshotter names. Only btrfs wants a disk of
//! its own, and so root.

mod imports;
mod kills;
mod points;

use plywood::backend::BackendName;
use plywood::error::ErrorKind;
use plywood::filter::Filters;
use plywood::snapshotter::{BackendChoice, Removal, Repair, Snapshotter, SnapshotterSettings};
use plywood::store::Severity;
use plywood::types::{Labels, SnapshotKind};
use plywood_fuse::testing::TempDir;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory for a store, on a disk that the backend wants.
struct Disk {
    temp: TempDir,
    mounted: bool,
}

impl Disk {
    /// `None`, said aloud, if the user wants tests that mount left out.
    fn new(backend: BackendName) -> Option<Disk> {
        let temp = TempDir::new();
        std::fs::create_dir(temp.path().join("disk")).expect("a directory in the temporary directory");
        if backend != BackendName::Btrfs {
            return Some(Disk { temp, mounted: false });
        }
        if !plywood_fuse::testing::suite::may_mount() {
            return None;
        }
        let (image, disk) = (temp.path().join("image"), temp.path().join("disk"));
        let file = std::fs::File::create(&image).expect("image");
        file.set_len(1 << 30).expect("a sparse image");
        let mut make = Command::new("mkfs.btrfs");
        make.arg("-q").arg(&image);
        let mut mount = Command::new("mount");
        mount.args(["-t", "btrfs", "-o", "loop"]).arg(&image).arg(&disk);
        for mut command in [make, mount] {
            let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install btrfs-progs"));
            assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Some(Disk { temp, mounted: true })
    }

    fn store(&self) -> PathBuf {
        self.temp.path().join("disk/store")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.temp.path().join("disk")).status();
        }
    }
}

fn open(backend: BackendName, root: &Path) -> Snapshotter {
    let mut settings = SnapshotterSettings::new(root);
    settings.backend = BackendChoice::Named(backend);
    settings.removal = Removal::Sync;
    Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"))
}

/// Where the content of an active snapshot is written without a mount.
fn own_directory(snapshotter: &Snapshotter, key: &str) -> plywood::error::Result<PathBuf> {
    let layers = snapshotter.layers(key)?;
    Ok(match layers.upper {
        Some((upper, _)) => upper,
        None => layers.lowers.into_iter().next().expect("an active snapshot has a directory"),
    })
}

/// What the directories of a snapshot hold, as one number: names and content, in order, top layer first.
fn digest(snapshotter: &Snapshotter, name: &str) -> String {
    let layers = snapshotter.layers(name).unwrap_or_else(|e| panic!("{e}"));
    let mut hash = Sha256::new();
    let upper = layers.upper.map(|(upper, _)| upper);
    for layer in upper.into_iter().chain(layers.lowers) {
        let mut todo = vec![layer.clone()];
        let mut found = BTreeMap::new();
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
                let path = entry.expect("directory entry").path();
                if path.is_dir() {
                    todo.push(path.clone());
                    found.insert(path, Vec::new());
                } else {
                    // A whiteout is a device.
                    let is_file = path.is_file();
                    let content = if is_file { std::fs::read(&path) } else { Ok(b"special".to_vec()) };
                    let content = content.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                    found.insert(path, content);
                }
            }
        }
        for (path, content) in found {
            let below = path.strip_prefix(&layer).expect("below the layer");
            hash.update(below.as_os_str().as_encoded_bytes());
            hash.update((content.len() as u64).to_be_bytes());
            hash.update(content);
        }
        hash.update(b"\0next layer");
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Opens a store whose processes are dead, and fails unless it is whole and can be cleared of garbage.
fn reopen(backend: BackendName, root: &Path, after: &str) -> Snapshotter {
    let snapshotter = open(backend, root);
    let report = snapshotter.check(Repair::No).unwrap_or_else(|e| panic!("{after}: {e}"));
    let broken: Vec<_> = report.findings.iter().filter(|f| f.severity() != Severity::Garbage).collect();
    assert!(broken.is_empty(), "{after}: {broken:#?}");
    let cleaned = snapshotter.cleanup().unwrap_or_else(|e| panic!("{after}: {e}"));
    assert_eq!(cleaned.failed, Vec::new(), "{after}");
    let report = snapshotter.check(Repair::No).unwrap_or_else(|e| panic!("{after}: {e}"));
    assert!(report.findings.is_empty(), "{after}: {:#?}", report.findings);
    let again = snapshotter.cleanup().unwrap_or_else(|e| panic!("{after}: {e}"));
    assert_eq!((again.deleted, again.dropped_rows), (0, 0), "{after}: one cleanup clears everything");
    for info in snapshotter.list(&Filters::everything()).unwrap_or_else(|e| panic!("{after}: {e}")) {
        // Every row has its directories.
        for layer in snapshotter.layers(&info.name).unwrap_or_else(|e| panic!("{after}: {e}")).lowers {
            assert!(layer.is_dir(), "{after}: {} of {:?}", layer.display(), info.name);
        }
    }
    snapshotter
}

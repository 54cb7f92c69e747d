//! A store of its own for each test, on a file system that the backend wants.

use plywood::backend::BackendName;
use plywood::mounting::{self, Detach};
use plywood::snapshotter::{BackendChoice, Removal, Repair, Snapshotter, SnapshotterSettings};
use plywood::types::{Labels, Mount};
use plywood_fuse::testing::TempDir;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one test works with.
pub struct World {
    pub snapshotter: Snapshotter,
    settings: SnapshotterSettings,
    temp: TempDir,
    image: Option<PathBuf>,
    mounts: AtomicUsize,
}

/// A mount that ends with its scope.
pub struct Shown {
    path: PathBuf,
    attached: Option<mounting::Attached>,
}

/// Names the mount program where it cannot be built.
pub const PROGRAM: &str = "PLYWOOD_CONTRACT_PROGRAM";

/// The mount program, built once for all tests.
pub fn mount_program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(program) = std::env::var_os(PROGRAM) {
            return program.into();
        }
        let mut me = std::env::current_exe().expect("a running program has a path");
        me.pop();
        me.pop();
        let release = me.ends_with("release");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "plywood-fuse"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        build.arg("--target-dir").arg(me.parent().expect("target directory"));
        if release {
            build.arg("--release");
        }
        let status = build.status().expect("cargo runs");
        assert!(status.success(), "{build:?}: {status}");
        me.join("plywood-fuse")
    })
}

impl World {
    /// `None`, said aloud, if the user wants mounted tests left out.
    pub fn new(backend: BackendName) -> Option<World> {
        if !plywood_fuse::testing::suite::may_mount() {
            return None;
        }
        let temp = TempDir::new();
        let image = (backend == BackendName::Btrfs).then(|| btrfs_image(temp.path()));
        let mut settings = SnapshotterSettings::new(temp.path().join("disk/store"));
        settings.backend = BackendChoice::Named(backend);
        settings.removal = Removal::Sync;
        settings.backends.fuse_program = mount_program().to_owned();
        settings.mounting.fuse_program = Some(mount_program().to_owned());
        let snapshotter = Snapshotter::open(settings.clone()).unwrap_or_else(|e| panic!("{e}"));
        Some(World { snapshotter, settings, temp, image, mounts: AtomicUsize::new(0) })
    }

    pub fn backend(&self) -> BackendName {
        self.snapshotter.backend()
    }

    pub fn settings(&self) -> &SnapshotterSettings {
        &self.settings
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.temp.path().join(name);
        std::fs::create_dir_all(&dir).expect("a directory in the temporary directory");
        dir
    }

    pub fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        self.prepare_with(key, parent, Labels::new())
    }

    pub fn prepare_with(&self, key: &str, parent: &str, labels: Labels) -> Vec<Mount> {
        let parent = (!parent.is_empty()).then_some(parent);
        self.snapshotter.prepare(key, parent, labels, &()).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        let parent = (!parent.is_empty()).then_some(parent);
        self.snapshotter.view(key, parent, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn commit(&self, name: &str, key: &str) {
        self.snapshotter.commit(name, key, Labels::new(), None, &()).unwrap_or_else(|e| panic!("{e}"));
    }

    pub fn remove(&self, key: &str) {
        self.snapshotter.remove(key).unwrap_or_else(|e| panic!("{e}"));
    }

    /// Mounts what a snapshotter said.
    pub fn show(&self, mounts: &[Mount]) -> Shown {
        let number = self.mounts.fetch_add(1, Ordering::Relaxed);
        let path = self.dir(&format!("mnt/{number}"));
        let attached = mounting::attach(mounts, &path, &self.snapshotter.settings().mounting);
        let attached = attached.unwrap_or_else(|e| panic!("{mounts:?}: {e}"));
        Shown { path, attached: Some(attached) }
    }

    /// Prepares, changes and commits one layer; returns its name.
    pub fn layer(&self, name: &str, parent: &str, change: impl FnOnce(&Path)) -> String {
        let key = format!("{name}-active");
        let mounts = self.prepare(&key, parent);
        let shown = self.show(&mounts);
        change(shown.path());
        shown.end();
        self.commit(name, &key);
        name.to_owned()
    }

    /// Calls `look` on a mounted view of a committed snapshot.
    pub fn look<T>(&self, name: &str, look: impl FnOnce(&Path) -> T) -> T {
        let key = format!("{name}-view-{}", self.mounts.load(Ordering::Relaxed));
        let mounts = self.view(&key, name);
        let shown = self.show(&mounts);
        let seen = look(shown.path());
        shown.end();
        self.remove(&key);
        seen
    }

    /// Every invariant of the store holds, and nothing is left that no row names.
    pub fn finish(&self) {
        // The test may have closed it.
        let snapshotter = Snapshotter::open(self.settings.clone()).unwrap_or_else(|e| panic!("{e}"));
        let report = snapshotter.check(Repair::No).unwrap_or_else(|e| panic!("{e}"));
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        let cleaned = snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((cleaned.deleted, cleaned.failed), (0, Vec::new()), "garbage");
        snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.image.is_some() {
            let _ = Command::new("umount").arg("-l").arg(self.temp.path().join("disk")).status();
        }
    }
}

impl Shown {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts, and fails if that does.
    pub fn end(mut self) {
        if let Some(attached) = self.attached.take() {
            mounting::detach(&attached.target, attached.server, Detach::Clean)
                .unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(attached) = self.attached.take() {
            let _ = mounting::detach(&attached.target, attached.server, Detach::Lazy);
        }
    }
}

/// A file system of btrfs in a sparse file, mounted at `disk`. S38
fn btrfs_image(temp: &Path) -> PathBuf {
    let image = temp.join("image");
    let file = std::fs::File::create(&image).expect("image");
    file.set_len(512 << 20).expect("a sparse image");
    let disk = temp.join("disk");
    std::fs::create_dir(&disk).expect("mount point");
    let mut make = Command::new("mkfs.btrfs");
    make.arg("-q").arg(&image);
    let mut mount = Command::new("mount");
    mount.args(["-t", "btrfs", "-o", "loop"]).arg(&image).arg(&disk);
    for mut command in [make, mount] {
        let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install btrfs-progs"));
        assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    image
}

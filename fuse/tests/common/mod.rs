//! Where a test of this crate works: directories of its own, an overlay over them, and their state on disk.

#![allow(dead_code, reason = "each test file uses its part")]

use plywood_fuse::overlay::{Overlay, Settings};
use plywood_fuse::types::Identity;
use plywood_fuse::view::View;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Directories for one test: some lower layers, an upper and a work directory. They are removed with it.
pub struct Layers {
    base: PathBuf,
    lowers: Vec<PathBuf>,
    /// The upper layer.
    pub upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    /// `count` empty lower layers.
    pub fn new(count: usize) -> Layers {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("plywood-view-{}-{number}", std::process::id()));
        let lowers = (0..count).map(|at| base.join(format!("lower{at}"))).collect();
        let layers = Layers { lowers, upper: base.join("upper"), work: base.join("work"), base };
        for dir in layers.lowers.iter().chain([&layers.upper, &layers.work]) {
            fs::create_dir_all(dir).expect("a directory for the test");
            // Whatever umask the test runs with.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        layers
    }

    /// The layers that another process made in `base`; they stay when this value goes.
    pub fn of(base: PathBuf, count: usize) -> std::mem::ManuallyDrop<Layers> {
        let lowers = (0..count).map(|at| base.join(format!("lower{at}"))).collect();
        let (upper, work) = (base.join("upper"), base.join("work"));
        std::mem::ManuallyDrop::new(Layers { lowers, upper, work, base })
    }

    /// The directory that holds them all.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// What an ended overlay has left in the work directory.
    pub fn left_in_work(&self) -> Vec<OsString> {
        let left = fs::read_dir(self.work.join("work")).expect("the work directory");
        left.map(|entry| entry.expect("an entry").file_name()).collect()
    }

    /// A path in a lower layer; 0 is the top.
    pub fn lower(&self, layer: usize, path: &str) -> PathBuf {
        self.lowers[layer].join(path)
    }

    /// A file in a lower layer, mode 0644, and the directories above it.
    pub fn file(&self, layer: usize, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.lower(layer, path);
        self.dirs(path.parent().expect("a file has a parent"));
        fs::write(&path, content).expect("a file of a lower layer");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("its mode");
        self
    }

    /// A directory in a lower layer, mode 0755.
    pub fn dir(&self, layer: usize, path: &str) -> &Self {
        self.dirs(&self.lower(layer, path));
        self
    }

    fn dirs(&self, path: &Path) {
        if !path.exists() {
            self.dirs(path.parent().expect("below the base"));
            fs::create_dir(path).expect("a directory of a lower layer");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
    }

    /// An overlay of all layers.
    pub fn open(&self) -> Arc<Overlay> {
        self.open_with(Settings::default())
    }

    /// An overlay of all layers that behaves as said.
    pub fn open_with(&self, settings: Settings) -> Arc<Overlay> {
        Arc::new(Overlay::open(&self.lowers, Some((&self.upper, &self.work)), settings).expect("an overlay"))
    }

    /// An overlay without an upper layer.
    pub fn open_read_only(&self) -> Arc<Overlay> {
        Arc::new(Overlay::open(&self.lowers, None, Settings::default()).expect("an overlay"))
    }

    /// All layers as root sees them.
    pub fn root(&self) -> View {
        self.open().as_user(Identity::root())
    }

    /// What the lower layers hold: a line for each file, with all that a reader could notice of a change.
    pub fn lower_state(&self) -> BTreeMap<PathBuf, String> {
        let mut state = BTreeMap::new();
        for lower in &self.lowers {
            note(lower, &mut state);
        }
        state
    }
}

fn note(path: &Path, state: &mut BTreeMap<PathBuf, String>) {
    let meta = fs::symlink_metadata(path).expect("attributes");
    let content = match meta.file_type() {
        kind if kind.is_file() => format!("{:?}", fs::read(path).map(|c| fnv(&c))),
        kind if kind.is_symlink() => format!("{:?}", fs::read_link(path)),
        _ => String::new(),
    };
    let line = format!(
        "{:o} {}:{} {} links {} bytes, modified {}.{}, changed {}.{}: {content}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.nlink(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    state.insert(path.to_owned(), line);
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("a listing") {
            note(&entry.expect("an entry").path(), state);
        }
    }
}

/// A digest of a content, to tell two apart.
pub fn fnv(content: &[u8]) -> u64 {
    content
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Drop for Layers {
    fn drop(&mut self) {
        open_up(&self.base);
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// Lets this process into directories that a test closed.
fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// The whole tree: path, mode, owner, size or target, digest, number.
pub fn tree(view: &View) -> BTreeMap<OsString, String> {
    use plywood_fuse::types::Kind;
    let mut tree = BTreeMap::new();
    for entry in view.walk("/").expect("a walk") {
        let entry = entry.expect("an entry");
        let attr = entry.attr;
        let content = match attr.kind {
            Kind::File => format!("{:x}", fnv(&view.read(&entry.path).expect("content"))),
            Kind::Symlink => format!("{:?}", view.read_link(&entry.path).expect("target")),
            Kind::Char | Kind::Block => format!("{:?}", attr.device),
            _ => String::new(),
        };
        let size = if attr.kind == Kind::Dir { 0 } else { attr.size_bytes };
        let line = format!(
            "{:o} {}:{} {size} bytes, number {}: {content}",
            attr.mode(),
            attr.uid,
            attr.gid,
            attr.ino.0
        );
        tree.insert(OsString::from(entry.path.as_os_str()), line);
    }
    tree
}

/// The errno of a failure, 0 if there is none.
pub fn errno<T>(result: plywood_fuse::error::Result<T>) -> i32 {
    result.map_or_else(|error| error.errno(), |_| 0)
}

/// A path of any bytes.
pub fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

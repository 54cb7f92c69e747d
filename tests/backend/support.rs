//! Stores in temporary directories, trees to fill them with, and tests that start themselves again as somebody else.

use plywood::backend::open::{BackendSettings, open};
use plywood::backend::walk::{self, Found, Step, Visitor};
use plywood::backend::{Backend, BackendName, MountRequest, Progress, Stage};
use plywood::layout::Layout;
use plywood::types::{SnapshotId, SnapshotKind};
use plywood_fuse::sys::node::{self, mknod};
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::xattr::{self, SetMode};
use plywood_fuse::sys::{self, Place};
use plywood_fuse::testing::TempDir;
use plywood_fuse::testing::tree::{Entry, entry_at, pattern};
use plywood_fuse::types::{Device, Kind, SetTime, Time};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

pub const NOBODY: u32 = 65_534;

/// The backends of this file.
pub const PLAIN: [BackendName; 3] = [BackendName::Fuse, BackendName::Overlay, BackendName::Native];

pub fn is_root() -> bool {
    effective_uid() == 0
}

/// False, said aloud, if the test needs root and the user wants such tests left out.
///
/// # Panics
/// Without root, unless `PLYWOOD_SKIP_MOUNTED=1` is set.
pub fn may_be_root() -> bool {
    plywood_fuse::testing::suite::may_mount()
}

/// A store of a test.
pub struct Store {
    pub layout: Layout,
    pub backend: Arc<dyn Backend>,
    _temp: TempDir,
}

/// Settings that do not wait for the disk.
pub fn quick() -> BackendSettings {
    BackendSettings { sync_on_commit: false, sync_on_create: false, ..BackendSettings::default() }
}

impl Store {
    pub fn new(name: BackendName) -> Store {
        Store::with(name, &quick())
    }

    pub fn with(name: BackendName, settings: &BackendSettings) -> Store {
        let temp = TempDir::new();
        let layout = Layout::create(&temp.path().join("store")).expect("a store can be made");
        let backend = open(name, &layout, settings).expect("the backend can be opened");
        Store { layout, backend, _temp: temp }
    }

    /// Stages and publishes.
    pub fn make(&self, id: u64, kind: SnapshotKind, parents: &[u64]) -> PathBuf {
        let chain = ids(parents);
        let stage = Stage { id: SnapshotId(id), kind, chain: &chain, owner: None };
        let mut staged = self.backend.stage(stage, &()).unwrap_or_else(|e| panic!("stage {id}: {e}"));
        self.backend.publish(&mut staged, SnapshotId(id)).unwrap_or_else(|e| panic!("publish {id}: {e}"));
        self.content(id)
    }

    /// Stages, and gives up on failure.
    pub fn stage(
        &self,
        id: u64,
        parents: &[u64],
        progress: &dyn Progress,
    ) -> plywood::error::Result<PathBuf> {
        let chain = ids(parents);
        let stage = Stage { id: SnapshotId(id), kind: SnapshotKind::Active, chain: &chain, owner: None };
        self.backend.stage(stage, progress).map(|staged| staged.path)
    }

    /// The root directory of a snapshot's own content.
    pub fn content(&self, id: u64) -> PathBuf {
        match self.backend.name() {
            BackendName::Native => self.layout.snapshot(SnapshotId(id)),
            _ => self.layout.content(SnapshotId(id)),
        }
    }

    /// All names below `snapshots`, sorted.
    pub fn names(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.layout.snapshots()).expect("snapshots can be listed");
        let mut names: Vec<String> =
            listed.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

pub fn ids(numbers: &[u64]) -> Vec<SnapshotId> {
    numbers.iter().copied().map(SnapshotId).collect()
}

pub fn request(id: u64, kind: SnapshotKind, chain: &[SnapshotId]) -> MountRequest<'_> {
    let has_directory = kind == SnapshotKind::Active || chain.is_empty();
    MountRequest { id: SnapshotId(id), kind, chain, has_directory, uid_mapping: None, gid_mapping: None }
}

/// Permission bits of a path.
pub fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode()
        & 0o7777
}

/// Set for a test that was started again: how.
pub const AGAIN: &str = "PLYWOOD_BACKEND_AGAIN";

/// How this test was started again, if it was.
pub fn again() -> Option<String> {
    std::env::var(AGAIN).ok()
}

/// Who runs a test again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Same,
    Nobody,
}

/// A directory in which a test runs again.
pub struct Elsewhere {
    pub temp: TempDir,
    program: PathBuf,
    who: Who,
}

impl Elsewhere {
    pub fn new(who: Who) -> Elsewhere {
        let temp = TempDir::new();
        let program = temp.path().join("test");
        let me = std::env::current_exe().expect("this program has a name");
        plywood_fuse::testing::copy_program(&me, &program);
        for path in [temp.path(), &program] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("our own files");
        }
        if who == Who::Nobody && is_root() {
            chown(temp.path(), Some(NOBODY), Some(NOBODY)).expect("root can give a directory away");
        }
        Elsewhere { temp, program, who }
    }

    /// Runs one test in a process of its own, below `before` if that is a program.
    pub fn run(&self, test: &str, how: &str, before: &[&str], env: &[(&str, &OsStr)]) -> ExitStatus {
        let mut words: Vec<&OsStr> = before.iter().map(OsStr::new).collect();
        words.push(self.program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command.env(AGAIN, how).env("TMPDIR", self.temp.path()).current_dir(self.temp.path());
        command.envs(env.iter().copied());
        if self.who == Who::Nobody && is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"))
    }
}

/// Runs the body as whoever runs the tests, and if that is root, again as "nobody".
pub fn as_both(test: &str, body: impl FnOnce()) {
    if is_root() && again().is_none() {
        let status = Elsewhere::new(Who::Nobody).run(test, "nobody", &[], &[]);
        assert!(status.success(), "as nobody: {status}");
    }
    body();
}

/// What a tree looks like, hard links by the first name of their inode.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    pub entries: BTreeMap<Vec<u8>, Entry>,
    pub names_of: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct Looker {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Visitor for Looker {
    fn entry(&mut self, found: &Found<'_>) -> plywood::error::Result<Step> {
        let entry = entry_at(found.dir, found.name).unwrap_or_else(|e| panic!("{:?}: {e}", found.path()));
        let step = if entry.kind == Kind::Dir { Step::Enter } else { Step::Next };
        self.entries.insert(found.path().as_os_str().as_bytes().to_vec(), entry);
        Ok(step)
    }
}

/// Everything below a directory, and itself.
pub fn tree(root: &Path) -> Tree {
    let base = sys::open::open_root(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut looker = Looker { entries: BTreeMap::new() };
    looker.entries.insert(b".".to_vec(), entry_at(base.as_fd(), b".").expect("the root can be read"));
    let list = walk::open_dir(base.as_fd(), b".").expect("the root can be listed");
    walk::walk(list, &mut looker).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    let mut names_of = BTreeMap::new();
    for (path, entry) in &mut looker.entries {
        if entry.kind != Kind::Dir && entry.nlink > 1 {
            names_of.insert(path.clone(), first.entry(entry.ino).or_insert_with(|| path.clone()).clone());
        }
        // These belong to the inode, not to the content.
        (entry.ino, entry.ctime, entry.btime, entry.blocks) = (0, Time::default(), None, 0);
        if entry.kind == Kind::Dir {
            entry.nlink = 0;
        }
    }
    Tree { entries: looker.entries, names_of }
}

/// Compares two trees, and tells the first difference.
pub fn assert_same(left: &Path, right: &Path) {
    let (a, b) = (tree(left), tree(right));
    for (path, entry) in &a.entries {
        let other = b.entries.get(path);
        assert_eq!(Some(entry), other, "{}", path.escape_ascii());
    }
    assert_eq!(a, b);
}

fn at(root: &OwnedFd, path: &[u8]) -> (OwnedFd, Vec<u8>) {
    let (dir, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    let dir = sys::open::open_dir_beneath(root.as_fd(), dir, sys::open::DirMode::Base);
    (dir.expect("the directory is there"), name.to_vec())
}

/// Fills a directory with everything that is hard to copy.
pub fn zoo(root: &Path) {
    let base = sys::open::open_root(root).expect("the root is there");
    let path = |name: &str| root.join(name);
    for dir in ["d", "d/inner", "empty", "locked"] {
        std::fs::create_dir(path(dir)).expect(dir);
    }
    for (name, size) in [("small", 10), ("large", 3_000_000), ("empty-file", 0), ("d/inner/f", 5000)] {
        std::fs::write(path(name), pattern(7, 0, size)).expect(name);
    }
    // Names of one inode in several directories, more than one inode, and one that is no regular file.
    for (new, old) in [("d/link", "small"), ("d/inner/link", "small"), ("empty/again", "large")] {
        std::fs::hard_link(path(old), path(new)).expect(new);
    }
    sparse(&path("sparse"), &[(0, 100), (5 << 20, 4096)], 9 << 20);
    sparse(&path("only-hole"), &[], 1 << 20);
    let (target, odd) = (OsStr::from_bytes(b"\xff\n "), OsStr::from_bytes(b"odd \xfe\n\\name"));
    for (to, name) in
        [(OsStr::new("/etc/passwd"), "absolute"), (OsStr::new("../.."), "d/up"), (target, "nowhere")]
    {
        std::os::unix::fs::symlink(to, path(name)).expect(name);
    }
    std::fs::hard_link(path("nowhere"), path("d/nowhere-too")).expect("a link to a symlink");
    for name in [odd, OsStr::new("-rf"), OsStr::new(" "), OsStr::new(".wh.x"), OsStr::new("...")] {
        std::fs::write(root.join(name), b"odd").expect("an odd name");
    }
    std::fs::write(root.join(OsStr::from_bytes(&[b'n'; 255])), b"long").expect("a long name");
    for (name, kind) in
        [(&b"fifo"[..], libc::S_IFIFO), (b"socket", libc::S_IFSOCK), (b"whiteout", libc::S_IFCHR)]
    {
        mknod(base.as_fd(), name, kind | 0o640, Device::default()).expect("a node");
    }
    for (name, attribute, value) in [
        (&b"small"[..], c"user.small", &b"value"[..]),
        (b"large", c"user.empty", b""),
        (b"d", c"user.on-a-directory", &[7; 1000]),
    ] {
        xattr::set(Place::At(base.as_fd(), name), attribute, value, SetMode::Any).expect("an attribute");
    }
    std::fs::write(path("locked/inside"), b"x").expect("a file");
    if is_root() && again().is_none() {
        privileged(&base);
    }
    for (name, mode) in
        [("small", 0o4751), ("-rf", 0o604), ("d", 0o3777), ("empty", 0o2750), ("locked", 0o555)]
    {
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).expect(name);
    }
    // The deepest first, since each change below changes the time above.
    let names: [&[u8]; 8] = [b"d/inner/f", b"d/inner", b"d", b"small", b"absolute", b"fifo", b"locked", b"."];
    for (count, name) in names.into_iter().enumerate() {
        let time = |secs| Some(SetTime::At(Time { secs, nanos: 123_456_789 }));
        let (dir, last) = at(&base, name);
        let moment = 1_000_000_000 + count as i64;
        sys::stat::set_times(Place::At(dir.as_fd(), &last), time(moment - 5), time(moment)).expect("a time");
    }
}

/// The zoo, without what only `plywood-fuse` can read if this is for the kernel.
pub fn zoo_for(name: BackendName, root: &Path) {
    zoo(root);
    if name == BackendName::Overlay {
        std::fs::remove_file(root.join(".wh.x")).expect("a file of the zoo");
    }
}

/// What only root can make.
fn privileged(base: &OwnedFd) {
    let null = Device { major: 1, minor: 3 };
    mknod(base.as_fd(), b"null", libc::S_IFCHR | 0o666, null).expect("a device");
    mknod(base.as_fd(), b"block", libc::S_IFBLK | 0o600, Device { major: 7, minor: 200 }).expect("a device");
    node::link(Place::At(base.as_fd(), b"null"), base.as_fd(), b"null-too").expect("a link to a device");
    let (inner, _) = at(base, b"d/inner/f");
    for (dir, name, uid, gid) in [
        (base, &b"small"[..], 1234, 5678),
        (base, b"absolute", 12, 34),
        (base, b"fifo", 1, 2),
        (&inner, b".", 99, 98),
    ] {
        let place = Place::At(dir.as_fd(), name);
        sys::stat::chown(place, Some(uid), Some(gid)).expect("root can give files away");
    }
    // cap_net_raw+ep, after the owner, since a change of owner takes it away.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let file = Place::At(inner.as_fd(), b"f");
    sys::stat::chown(file, Some(1000), Some(1000)).expect("root can give files away");
    xattr::set(file, c"security.capability", &capability, SetMode::Any).expect("a capability");
    let place = Place::At(base.as_fd(), b"absolute");
    xattr::set(place, c"trusted.on-a-symlink", b"v", SetMode::Any).expect("an attribute of a symlink");
}

/// A file with data at these places only.
pub fn sparse(path: &Path, data: &[(u64, usize)], size: u64) {
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(size).expect("a size");
    for &(at, length) in data {
        sys::copy::write_at(file.as_fd(), &pattern(3, at, length), at).expect("data");
    }
}

/// Directories `d/d/d...`, `depth` of them, with a file in the last one.
pub fn deep(root: &Path, depth: usize) {
    let mut dir = sys::open::open_root(root).expect("the root is there");
    for _ in 0..depth {
        node::mkdir(dir.as_fd(), b"d", 0o755).expect("a directory");
        dir = sys::open::open_dir_at(dir.as_fd(), b"d", sys::open::DirMode::Base).expect("a directory");
    }
    let flags = libc::O_CREAT | libc::O_WRONLY;
    sys::open::open_at(dir.as_fd(), b"bottom", flags, 0o644).expect("a file");
}

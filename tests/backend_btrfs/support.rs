//! A btrfs for a test, a store on it, and whoever runs the test.

use plywood::backend::btrfs::Btrfs;
use plywood::backend::open::BackendSettings;
use plywood::backend::{Backend, MountRequest, Stage, Staged};
use plywood::layout::Layout;
use plywood::sys::btrfs::{self, Access};
use plywood::types::{Mount, SnapshotId, SnapshotKind, Usage};
use plywood_fuse::sys::open::{DirMode, open_dir_at, open_root};
use plywood_fuse::testing::{TempDir, suite};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Says that this process is in a mount namespace of its own.
const INSIDE: &str = "PLYWOOD_BTRFS_INSIDE";

/// Says that this process is another user, whose store may be below this directory.
const HOME: &str = "PLYWOOD_BTRFS_HOME";

/// An ordinary user without an entry anywhere.
const USER: u32 = 12_345;

pub const ACTIVE: SnapshotKind = SnapshotKind::Active;
pub const VIEW: SnapshotKind = SnapshotKind::View;

/// Runs `program`, and returns what it printed.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.trim().to_owned()
}

/// True if this machine has all that these tests need; false, said aloud, if the user wants them left out.
#[track_caller]
fn may_run() -> bool {
    // Made once in each process, and gone with its mount namespace.
    const TRIAL: &str = "for tool in btrfs findmnt setfattr setpriv; do \
            command -v $tool || { echo $tool is missing >&2; exit 1; }; \
        done; \
        dir=$(mktemp -d); trap 'rm -r $dir' EXIT; mkdir $dir/disk; truncate -s 1G $dir/image; \
        mkfs.btrfs -q $dir/image; mount -o loop $dir/image $dir/disk; umount $dir/disk";
    static CANNOT: LazyLock<Option<String>> = LazyLock::new(|| {
        let trial = Command::new("unshare").args(["--mount", "sh", "-ec", TRIAL]).output();
        match trial {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(e) => Some(format!("unshare: {e}")),
        }
    });
    const SKIP: &str = "PLYWOOD_SKIP_MOUNTED";
    let Some(cannot) = CANNOT.as_ref().filter(|_| suite::may_mount()) else { return suite::may_mount() };
    if std::env::var_os(SKIP).is_some_and(|v| v == "1") {
        eprintln!("LEFT OUT, as {SKIP}=1 asks: no btrfs can be mounted: {cannot}");
        return false;
    }
    panic!("no btrfs can be mounted: {cannot}: install btrfs-progs, util-linux and attr, or set {SKIP}=1");
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The name of the test that runs.
pub fn this_test() -> String {
    std::thread::current().name().expect("tests have names").to_owned()
}

/// Runs this test again with other words in front and `variables` set.
#[track_caller]
pub fn again(program: &Path, before: &[&str], variables: &[(&str, &str)]) {
    let test = this_test();
    let mut words = before.to_vec();
    words.extend([text(program), "--exact", &test, "--nocapture", "--test-threads=1"]);
    let output = Command::new(words[0]).args(&words[1..]).envs(variables.iter().copied()).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", words[0]));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words:?}: {}\n{out}{err}", output.status);
    assert!(out.contains("1 passed"), "{words:?} ran nothing:\n{out}{err}");
}

/// Runs `body` with a store on a fresh btrfs, in a mount namespace of its own.
#[track_caller]
pub fn on_btrfs(body: fn(&Disk)) {
    if std::env::var_os(INSIDE).is_some() {
        return body(&Disk::new());
    }
    if may_run() {
        let program = std::env::current_exe().expect("our own path");
        again(&program, &["unshare", "--mount", "--propagation", "private"], &[(INSIDE, "1")]);
    }
}

/// Who runs a test again.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// A user without any privilege.
    PlainUser,
    /// The same user as root of a user namespace.
    NamespaceRoot,
}

/// Runs `body` as somebody without root, with a store of his own on a fresh btrfs.
#[track_caller]
pub fn as_somebody(who: Who, body: fn(&Store)) {
    if let Some(home) = std::env::var_os(HOME) {
        return body(&Store::new(Path::new(&home)));
    }
    if std::env::var_os(INSIDE).is_none() {
        return on_btrfs(|_| unreachable!("it is run again"));
    }
    let disk = Disk::new();
    let options = run("findmnt", &["-no", "OPTIONS", text(&disk.mount)]);
    assert!(!options.contains("user_subvol_rm_allowed"), "{options}");
    let program = disk.mount.join("tests");
    plywood_fuse::testing::copy_program(&std::env::current_exe().expect("our own path"), &program);
    let home = disk.mount.join("home");
    fs::create_dir(&home).expect("mkdir");
    chown(&home, Some(USER), Some(USER)).expect("chown");
    let user = USER.to_string();
    let mut before = vec!["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--inh-caps=-all"];
    if matches!(who, Who::NamespaceRoot) {
        before.extend(["unshare", "--user", "--map-root-user", "--mount"]);
    }
    again(&program, &before, &[(HOME, text(&home))]);
}

/// A btrfs in a sparse image, mounted; gone when this value goes.
pub struct Disk {
    pub mount: PathBuf,
    pub image: PathBuf,
    pub temp: TempDir,
}

impl Disk {
    pub fn new() -> Disk {
        let temp = TempDir::new();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let (image, mount) = (temp.path().join("image"), temp.path().join("disk"));
        // S38: nothing is written, the image only has a length.
        let file = fs::File::create(&image).expect("create image");
        file.set_len(1 << 30).expect("truncate image");
        run("mkfs.btrfs", &["-q", text(&image)]);
        fs::create_dir(&mount).expect("mkdir");
        // Nothing is written by the clock.
        run("mount", &["-o", "loop,commit=300", text(&image), text(&mount)]);
        Disk { mount, image, temp }
    }

    pub fn store(&self) -> Store {
        Store::new(&self.mount.join("store"))
    }

    pub fn target(&self, name: &str) -> PathBuf {
        let target = self.temp.path().join(name);
        fs::create_dir(&target).expect("mkdir");
        target
    }

    pub fn device(&self) -> String {
        run("findmnt", &["-no", "SOURCE", text(&self.mount)])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--recursive").arg(&self.mount).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{}: still mounted", self.mount.display());
        }
    }
}

/// A backend, and short words for what is done to it.
pub struct Store {
    pub layout: Layout,
    pub backend: Btrfs,
}

impl Store {
    pub fn new(root: &Path) -> Store {
        let layout = Layout::create(root).expect("make the layout");
        Store { backend: open(&layout), layout }
    }

    pub fn try_stage(
        &self,
        id: u64,
        kind: SnapshotKind,
        parent: Option<u64>,
    ) -> plywood::error::Result<Staged> {
        let chain: Vec<_> = parent.into_iter().map(SnapshotId).collect();
        let stage = Stage { id: SnapshotId(id), kind, chain: &chain, owner: None };
        self.backend.stage(stage, &())
    }

    /// Stages and publishes.
    #[track_caller]
    pub fn create(&self, id: u64, kind: SnapshotKind, parent: Option<u64>) -> PathBuf {
        let mut staged = self.try_stage(id, kind, parent).expect("stage");
        self.backend.publish(&mut staged, SnapshotId(id)).expect("publish");
        let names = self.backend.names_first().expect("it is to be durable");
        fs::File::open(names).and_then(|dir| dir.sync_all()).expect("sync");
        assert_eq!(staged.path, self.layout.snapshot(SnapshotId(id)));
        staged.path
    }

    #[track_caller]
    pub fn commit(&self, id: u64) {
        self.backend.seal(SnapshotId(id)).expect("seal");
        self.backend.freeze(SnapshotId(id)).expect("freeze");
        self.backend.committed(SnapshotId(id));
    }

    #[track_caller]
    pub fn mount_of(&self, id: u64, kind: SnapshotKind) -> Mount {
        let mut mounts = self.backend.mounts(request(id, kind)).expect("mounts");
        assert_eq!(mounts.len(), 1);
        mounts.remove(0)
    }

    #[track_caller]
    pub fn usage(&self, id: u64, parent: Option<u64>) -> Usage {
        let chain: Vec<_> = parent.into_iter().map(SnapshotId).collect();
        self.backend.usage(SnapshotId(id), &chain, &()).expect("usage")
    }

    /// Names of all that is there.
    pub fn entries(&self) -> Vec<String> {
        let list = fs::read_dir(self.layout.snapshots()).expect("list");
        let mut names: Vec<_> =
            list.map(|entry| entry.expect("entry").file_name().into_string().expect("utf-8")).collect();
        names.sort();
        names
    }

    #[track_caller]
    pub fn remove(&self, id: u64) {
        let retired = self.backend.retire(SnapshotId(id)).expect("retire").expect("it was there");
        self.backend.delete(&retired).expect("delete");
    }
}

pub fn open(layout: &Layout) -> Btrfs {
    Btrfs::new(layout, &BackendSettings::default())
}

pub fn request(id: u64, kind: SnapshotKind) -> MountRequest<'static> {
    let id = SnapshotId(id);
    MountRequest { id, kind, chain: &[], has_directory: true, uid_mapping: None, gid_mapping: None }
}

/// A directory, open for requests.
#[track_caller]
pub fn directory(path: &Path) -> OwnedFd {
    open_dir_at(open_root(path).expect("open").as_fd(), b".", DirMode::List).expect("open")
}

/// Makes a subvolume by its path.
#[track_caller]
pub fn subvolume(path: &Path) {
    let parent = directory(path.parent().expect("a parent"));
    btrfs::create(parent.as_fd(), path.file_name().expect("a name").as_bytes()).expect("subvolume");
}

pub fn is_subvolume(path: &Path) -> bool {
    btrfs::is_subvolume(open_root(path).expect("open").as_fd()).expect("ask")
}

pub fn access(path: &Path) -> Access {
    btrfs::access(directory(path).as_fd()).expect("ask")
}

pub fn set_access(path: &Path, access: Access) {
    btrfs::set_access(directory(path).as_fd(), access).expect("set");
}

#[track_caller]
pub fn assert_read_only(dir: &Path) {
    let refused = fs::write(dir.join("new"), "x").expect_err("it was written");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{}", dir.display());
}

pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::write(path, content).expect("write");
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).expect("read")
}

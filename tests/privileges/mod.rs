//! Tests that mount, run by users with different rights.
//!
//! A test program that uses this calls itself again, in a mount namespace of its own: as root, as root of a user
//! namespace with one id, as a plain user with one id, and as a plain user with subordinate ids. There it runs the tests
//! in its module `anyone`, which return at once otherwise, see [`inside`]. If we are root the plain user is "nobody",
//! with a FUSE device that is open to all and subordinate ids that are there in this namespace only.

// Each test program uses its part.
#![allow(dead_code)]

use plywood::types::Mount;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Set for a test program that was started again; names who it is.
const AGAIN: &str = "PLYWOOD_TEST_AGAIN";

/// Where a test program that was started again finds others.
const PROGRAMS: &str = "PLYWOOD_TEST_PROGRAMS";

/// The user that root becomes: "nobody", who owns nothing on any system.
const NOBODY: u32 = 65_534;

/// Who the tests run as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Root of the machine.
    Root,
    /// Root of a user namespace that has one id.
    NamespaceRoot,
    /// A plain user without subordinate ids.
    PlainUser,
    /// A plain user with subordinate ids.
    UserWithIds,
}

impl Who {
    const ALL: [Who; 4] = [Who::Root, Who::NamespaceRoot, Who::PlainUser, Who::UserWithIds];

    fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Who this process is, if it was started again.
pub fn inside() -> Option<Who> {
    let name = std::env::var(AGAIN).ok()?;
    Who::ALL.into_iter().find(|who| who.name() == name)
}

/// Says why a test cannot run here. It fails, unless PLYWOOD_SKIP_MOUNTED=1 says that it may be left out.
#[track_caller]
pub fn cannot_run(why: &str) {
    if std::env::var_os("PLYWOOD_SKIP_MOUNTED").is_some_and(|v| v == "1") {
        eprintln!("SKIPPED, as PLYWOOD_SKIP_MOUNTED asks: {why}");
        return;
    }
    panic!("this test cannot run here: {why}; PLYWOOD_SKIP_MOUNTED=1 leaves such tests out");
}

/// True if this process is root of the machine: all ids are mapped.
fn is_real_root() -> bool {
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    plywood_fuse::sys::process::effective_uid() == 0 && maps.split_whitespace().eq(["0", "0", "4294967295"])
}

/// True if a program can be found.
pub fn has_program(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).stdout(Stdio::null()).status();
    found.is_ok_and(|s| s.success())
}

/// A program of this workspace: built once, and found beside the test programs.
fn built(arguments: &[&str], place: &str) -> PathBuf {
    let name = Path::new(place).file_name().expect("a name");
    if let Some(dir) = std::env::var_os(PROGRAMS) {
        return Path::new(&dir).join(name);
    }
    let done = Command::new(env!("CARGO")).args(["build", "--quiet"]).args(arguments).status();
    assert!(done.expect("run cargo").success(), "{place} cannot be built");
    // target/debug/deps/TEST
    let own = std::env::current_exe().expect("our own path");
    own.ancestors().nth(2).expect("a target directory").join(place)
}

/// The mount program.
pub fn server_program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built(&["-p", "plywood-fuse"], "plywood-fuse")).clone()
}

/// A program from `tests/programs`, which has one thread.
pub fn example(name: &str) -> PathBuf {
    built(&["-p", "plywood", "--example", name], &format!("examples/{name}"))
}

/// Runs the tests of the module `anyone` as somebody else; `least` of them have to run.
#[track_caller]
pub fn again(who: Who, least: usize) {
    again_with(who, least, &[]);
}

/// The same for tests that use these examples.
#[track_caller]
pub fn again_with(who: Who, least: usize, examples: &[&str]) {
    if inside().is_some() {
        return;
    }
    if !is_real_root() {
        let maps = plywood::sys::userns::IdMaps::of_this_user();
        let have_ids = maps.ids() == plywood::sys::userns::Ids::Many;
        let ours = if have_ids { Who::UserWithIds } else { Who::PlainUser };
        if who != ours && who != Who::NamespaceRoot {
            return cannot_run("only root of the machine can become another user");
        }
    }
    if who == Who::UserWithIds && !(has_program("newuidmap") && has_program("newgidmap")) {
        return cannot_run("newuidmap and newgidmap are missing: install package uidmap");
    }
    let stage = Stage::new();
    let bin = stage.dir("bin");
    let place = |from: &Path, name: &str| {
        let to = bin.join(name);
        if fs::hard_link(from, &to).is_err() {
            plywood_fuse::testing::copy_program(from, &to);
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("chmod of a program");
        to
    };
    let tests = place(&std::env::current_exe().expect("our own path"), "tests");
    place(&server_program(), "plywood-fuse");
    for name in examples {
        place(&example(name), name);
    }
    place(Path::new(env!("CARGO_BIN_EXE_plywood")), "plywood");
    let home = stage.dir("home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).expect("chmod of the home");
    let mut script = String::new();
    if is_real_root() {
        let dev = stage.dir("dev").display().to_string();
        script.push_str(&format!(
            "mount -t tmpfs -o mode=755 tmpfs {dev}; mknod {dev}/fuse c 10 229; chmod 666 {dev}/fuse; \
             mount --bind {dev}/fuse /dev/fuse\n"
        ));
        let range = if who == Who::UserWithIds { format!("{NOBODY}:200000:65536\n") } else { String::new() };
        let ids = stage.file("ids", range);
        for file in ["/etc/subuid", "/etc/subgid"].into_iter().filter(|file| Path::new(file).exists()) {
            script.push_str(&format!("mount --bind {} {file}\n", ids.display()));
        }
    }
    script.push_str("exec ");
    if is_real_root() && who != Who::Root {
        script
            .push_str(&format!("setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --inh-caps=-all "));
    }
    if who == Who::NamespaceRoot {
        script.push_str("unshare -Urm ");
    }
    script.push_str(&format!("timeout -k 5 400 {} anyone:: --test-threads=3", tests.display()));
    let mut command = Command::new(if is_real_root() { "unshare" } else { "sh" });
    if is_real_root() {
        command.args(["-m", "sh"]);
    }
    let output = command
        .args(["-ec", &script])
        .env(AGAIN, who.name())
        .env(PROGRAMS, &bin)
        .env("TMPDIR", &home)
        .env("HOME", &home)
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .expect("start the tests again");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as {who:?}, {}:\n{script}\n{out}\n{err}", output.status);
    let ran = out.lines().filter(|line| line.starts_with("test ") && line.ends_with("ok")).count();
    assert!(ran >= least, "only {ran} tests ran:\n{out}");
    let left: Vec<_> = fs::read_dir(&home).expect("list the home").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "as {who:?}, left behind: {left:?}\n{out}\n{err}");
}

/// A directory of one test, gone when it is dropped.
pub struct Stage(PathBuf);

impl Stage {
    /// An empty one.
    pub fn new() -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("plywood-stage-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod of the stage");
        Self(dir.canonicalize().expect("path of the stage"))
    }

    /// A path on the stage.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.join(relative)
    }

    /// Makes a directory with all above it.
    pub fn dir(&self, relative: impl AsRef<Path>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        path
    }

    /// Makes a file with all directories above it.
    pub fn file(&self, relative: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap_or_else(|e| panic!("mkdir {}: {e}", parent.display()));
        }
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    }

    /// The text of a path, for options.
    pub fn text(&self, relative: &str) -> String {
        self.path(relative).display().to_string()
    }

    /// Settings for mounts, with a place for mount points.
    pub fn settings(&self) -> plywood::mounting::MountSettings {
        let mut settings = plywood::mounting::MountSettings::new(&self.dir("mnt"));
        settings.fuse_program = Some(server_program());
        settings
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What a failed test left mounted may show anything: nothing is deleted through it.
        if is_mounted(&self.0) {
            eprintln!("{}: left behind, something is mounted there", self.0.display());
            return;
        }
        let remove = |with: &mut Command| {
            with.args(["rm", "-rf", "--one-file-system", "--"]).arg(&self.0).stderr(Stdio::null());
            with.status().is_ok_and(|s| s.success())
        };
        if remove(&mut Command::new("env")) {
            return;
        }
        // Files of subordinate ids belong to nobody else outside of a user namespace.
        if !remove(Command::new("unshare").args(["-U", "--map-root-user", "--map-auto"])) {
            eprintln!("{}: left behind", self.0.display());
        }
    }
}

/// A mount as a backend would describe it.
pub fn mount(kind: &str, source: impl AsRef<OsStr>, options: &str) -> Mount {
    let source = source.as_ref().to_str().expect("UTF-8").to_owned();
    let options = options.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
    Mount { kind: kind.to_owned(), source, options }
}

/// Fills a directory with busybox and links to it, and nothing else; false, said aloud, if there is none.
#[track_caller]
pub fn install_busybox(root: &Path) -> bool {
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|p| p.exists())
    else {
        cannot_run("busybox is missing: install package busybox-static");
        return false;
    };
    let bin = root.join("bin");
    fs::create_dir_all(&bin).expect("make bin");
    plywood_fuse::testing::copy_program(busybox, &bin.join("busybox"));
    for applet in [
        "sh", "ls", "cat", "echo", "touch", "mkdir", "rm", "rmdir", "sleep", "chown", "stat", "id", "ps",
        "tty", "test", "hostname", "pwd", "env", "true", "false", "kill", "wc", "grep", "mount", "dd",
        "tail", "sort", "mv", "head",
    ] {
        symlink("busybox", bin.join(applet)).expect("link an applet");
    }
    true
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
    let mut names: Vec<String> =
        list.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Everything below a directory: path, kind and mode, one line each.
pub fn tree(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for name in names(&next) {
            let path = next.join(name);
            let meta = fs::symlink_metadata(&path).expect("stat");
            lines.push(format!("{} {:o}", path.strip_prefix(dir).expect("below").display(), meta.mode()));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}

/// True if something is mounted at a path or below it, as this process sees it.
pub fn is_mounted(below: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(point).starts_with(below))
}

/// The processes that have `word` in their command line.
pub fn processes_with(word: &str) -> Vec<u32> {
    let list = fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_word = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != std::process::id() && String::from_utf8_lossy(&line).contains(word)
    };
    pids.filter(has_word).collect()
}

/// Waits until a condition holds.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Words of a command line.
pub fn words(list: &[&str]) -> Vec<OsString> {
    list.iter().map(OsString::from).collect()
}

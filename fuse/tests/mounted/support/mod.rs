//! Temporary layers, a real server over them, and its counters.
//!
//! A [`Stage`] is a directory on a real disk that is gone when it is dropped. A [`Mount`] is a running
//! `plywood-fuse`; it is unmounted, and its server waited for, when it is dropped. A server that hangs is killed by a
//! watchdog, so that a test fails instead of waiting for ever.

mod files;

pub use files::*;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use plywood_fuse::sys::{self, mount::Detach};

/// How long a server may take to end after its unmount.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// How long one mount may live before its server is taken to hang.
const WATCHDOG: Duration = Duration::from_secs(600);

/// Says why a test cannot run here. It fails, unless PLYWOOD_SKIP_MOUNTED=1 says that it may be left out.
#[track_caller]
pub fn cannot_run(why: &str) {
    if std::env::var_os("PLYWOOD_SKIP_MOUNTED").is_some_and(|v| v == "1") {
        return plywood_fuse::testing::say_skipped(&format!("{why}, and PLYWOOD_SKIP_MOUNTED=1 is set"));
    }
    panic!("this test cannot run here: {why}; PLYWOOD_SKIP_MOUNTED=1 leaves such tests out");
}

/// Leaves the test unless the condition holds; see [`cannot_run`].
macro_rules! needs {
    ($condition:expr, $why:expr) => {
        if !$condition {
            $crate::support::cannot_run($why);
            return;
        }
    };
}
pub(crate) use needs;

/// Leaves the test unless this user can mount; see [`cannot_run`].
macro_rules! needs_mount {
    () => {
        if let Err(why) = $crate::support::can_mount() {
            $crate::support::cannot_run(why);
            return;
        }
    };
}
pub(crate) use needs_mount;

/// Whether this user can mount, or why not. Found out without the program under test, which is to fail if it cannot.
pub fn can_mount() -> Result<(), &'static str> {
    let device = sys::mount::open_fuse_device().map_err(|_| "/dev/fuse cannot be opened")?;
    let stat =
        sys::stat::stat(sys::Place::Fd(device.as_fd())).map_err(|_| "/dev/fuse cannot be looked at")?;
    if stat.rdev != (plywood_fuse::types::Device { major: 10, minor: 229 }) {
        return Err("/dev/fuse is something else");
    }
    match sys::process::may_administrate() || has_program("fusermount3") {
        true => Ok(()),
        false => Err("only root may mount, or who has fusermount3"),
    }
}

/// True if this process is root, perhaps of a user namespace only.
pub fn is_root() -> bool {
    sys::process::effective_uid() == 0
}

/// True if this process is root of the machine: all ids are mapped.
pub fn is_real_root() -> bool {
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_root() && maps.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("PLYWOOD_TEST_PROGRAM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_plywood-fuse")), PathBuf::from)
}

/// Where stages are made: on a real disk, reachable for every user.
fn stages() -> PathBuf {
    let asked = std::env::var_os("PLYWOOD_TEST_DIR").map(PathBuf::from);
    asked.unwrap_or_else(|| PathBuf::from("/var/tmp"))
}

/// How many threads have a stage, and whether more may have one.
static GATE: (Mutex<Gate>, Condvar) = (Mutex::new(Gate { threads: 0, closed: false }), Condvar::new());

struct Gate {
    threads: usize,
    closed: bool,
}

thread_local! {
    static STAGES: Cell<usize> = const { Cell::new(0) };
}

/// Runs `f` while no test has a stage, so a mount: a new mount namespace would hold a copy of it, and keep its server
/// from ending.
pub fn while_nothing_is_mounted<T>(f: impl FnOnce() -> T) -> T {
    let (gate, news) = &GATE;
    let mut state = gate.lock().expect("the gate");
    state = news.wait_while(state, |state| state.closed).expect("the gate");
    state.closed = true;
    drop(news.wait_while(state, |state| state.threads > 0).expect("the gate"));
    let result = f();
    gate.lock().expect("the gate").closed = false;
    news.notify_all();
    result
}

/// A directory of one test.
pub struct Stage {
    dir: PathBuf,
    counted: bool,
}

impl Stage {
    /// An empty stage.
    pub fn new() -> Self {
        if STAGES.replace(STAGES.get() + 1) == 0 {
            let (gate, news) = &GATE;
            let state = gate.lock().expect("the gate");
            news.wait_while(state, |state| state.closed).expect("the gate").threads += 1;
        }
        let mut stage = Self::uncounted();
        stage.counted = true;
        stage
    }

    /// A stage for one who mounts nothing.
    pub fn uncounted() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = stages().join(format!("plywood-test-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("chmod of the stage");
        Self { dir, counted: false }
    }

    /// A path on the stage.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.join(relative)
    }

    /// Makes a directory with all above it.
    pub fn dir(&self, relative: &str) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        path
    }

    /// Makes a file with all directories above it.
    pub fn file(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap_or_else(|e| panic!("mkdir {}: {e}", parent.display()));
        }
        fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        path
    }

    /// A mount of `low` with upper layer `up`, all made if they are missing.
    pub fn plan(&self) -> Plan<'_> {
        Plan {
            stage: self,
            lowers: vec!["low".to_owned()],
            upper: Some("up".to_owned()),
            work: "work".to_owned(),
            merged: "merged".to_owned(),
            options: Vec::new(),
            traced: false,
        }
    }

    /// Mounts `low` with upper layer `up`.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        self.plan().mount()
    }

    /// The same with options.
    #[track_caller]
    pub fn mount_with(&self, options: &str) -> Mount {
        self.plan().option(options).mount()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.counted && STAGES.replace(STAGES.get() - 1) == 1 {
            GATE.0.lock().expect("the gate").threads -= 1;
            GATE.1.notify_all();
        }
        // Not with our own code: what is under test must not clean up after its own mistakes.
        let removed = Command::new("rm").arg("-rf").arg("--").arg(&self.dir).stderr(Stdio::null()).status();
        if !removed.is_ok_and(|s| s.success()) {
            let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(&self.dir).stderr(Stdio::null()).status();
            let _ = Command::new("rm").arg("-rf").arg("--").arg(&self.dir).status();
        }
    }
}

/// What to mount.
#[derive(Clone)]
pub struct Plan<'a> {
    stage: &'a Stage,
    lowers: Vec<String>,
    upper: Option<String>,
    work: String,
    merged: String,
    options: Vec<String>,
    traced: bool,
}

impl Plan<'_> {
    /// These layers instead of `low`, the top one first.
    pub fn lowers<S: AsRef<str>>(mut self, lowers: impl IntoIterator<Item = S>) -> Self {
        self.lowers = lowers.into_iter().map(|l| l.as_ref().to_owned()).collect();
        self
    }

    /// Another upper layer, with a work directory of its own.
    pub fn upper(mut self, upper: &str) -> Self {
        self.work = format!("{upper}-work");
        self.upper = Some(upper.to_owned());
        self
    }

    /// No upper layer.
    pub fn read_only(mut self) -> Self {
        self.upper = None;
        self
    }

    /// Another mount point.
    pub fn at(mut self, merged: &str) -> Self {
        self.merged = merged.to_owned();
        self
    }

    /// More options.
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Runs the server under strace, see [`Mount::calls`].
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// The option string, with all directories made.
    pub fn option_string(&self) -> String {
        let dir = |name: &str| self.stage.dir(name).display().to_string();
        let lowers: Vec<String> = self.lowers.iter().map(|l| dir(l)).collect();
        let mut text = format!("lowerdir={}", lowers.join(":"));
        if let Some(upper) = &self.upper {
            text.push_str(&format!(",upperdir={},workdir={}", dir(upper), dir(&self.work)));
        }
        for option in self.options.iter().filter(|o| !o.is_empty()) {
            text.push(',');
            text.push_str(option);
        }
        text
    }

    /// Starts a server; it answers on return.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        match self.try_mount() {
            Ok(mount) => mount,
            Err(output) => {
                panic!("the mount failed, {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
            }
        }
    }

    /// Starts a server, or tells what the program said.
    pub fn try_mount(&self) -> Result<Mount, Output> {
        let merged = self.stage.dir(&self.merged);
        let mut words: Vec<OsString> = Vec::new();
        let files = Files::next(self.stage);
        if self.traced {
            words.extend(["strace", "-f", "-qq", "-o"].map(OsString::from));
            words.push(files.trace.clone().into());
        }
        words.push(program().into());
        words.push("-o".into());
        words.push(self.option_string().into());
        words.push(merged.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env("PLYWOOD_FUSE_STATS", &files.stats).stdin(Stdio::null());
        let output = command.output_or_trace(self.traced, &merged);
        Mount::of(output, merged, files)
    }
}

/// Files beside a mount.
struct Files {
    stats: PathBuf,
    trace: PathBuf,
}

impl Files {
    fn next(stage: &Stage) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { stats: stage.path(format!("stats-{number}")), trace: stage.path(format!("trace-{number}")) }
    }
}

impl Stage {
    /// Runs a command that leaves a server behind for `merged`, one word of its command line.
    pub fn start(&self, command: &mut Command, merged: &Path) -> Result<Mount, Output> {
        let files = Files::next(self);
        let output = command.env("PLYWOOD_FUSE_STATS", &files.stats).stdin(Stdio::null()).output();
        Mount::of(output.expect("run the program"), merged.to_path_buf(), files)
    }
}

trait OutputOrTrace {
    fn output_or_trace(&mut self, traced: bool, merged: &Path) -> Output;
}

impl OutputOrTrace for Command {
    /// As `output()`; a tracer stays as long as its server does, so it is left alone once the mount is there.
    fn output_or_trace(&mut self, traced: bool, merged: &Path) -> Output {
        if !traced {
            return self.output().expect("run the program");
        }
        let before = fs::metadata(merged).expect("mount point").dev();
        let mut child = self.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run strace");
        let deadline = Instant::now() + END_PATIENCE;
        while fs::metadata(merged).is_ok_and(|m| m.dev() == before) {
            if child.try_wait().expect("wait for strace").is_some() || Instant::now() > deadline {
                return Command::new("false").output().expect("run false");
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Collected when it ends with its server.
        thread::spawn(move || child.wait());
        Command::new("true").output().expect("run true")
    }
}

/// The process that serves a mount point: it runs our program, and the path is one of its words.
pub fn server_of(merged: &Path) -> Option<u32> {
    let ours = program();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let runs = fs::read_link(entry.path().join("exe")).ok();
        if runs.as_deref().and_then(Path::file_name) != ours.file_name() {
            continue;
        }
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if words.split(|b| *b == 0).any(|word| word == merged.as_os_str().as_bytes()) {
            return Some(pid);
        }
    }
    None
}

/// True if a process runs; one that has ended and was not collected does not.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Sends a signal to one process.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// Waits until a condition holds.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

struct Watchdog {
    done: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    fn start(server: u32) -> Self {
        let (done, waits) = mpsc::channel();
        let thread = thread::spawn(move || {
            if waits.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("server {server} is taken to hang, and killed");
                signal(server, "KILL");
            }
        });
        Self { done, thread }
    }

    fn stop(self) {
        drop(self.done);
        let _ = self.thread.join();
    }
}

/// A running mount.
pub struct Mount {
    merged: PathBuf,
    stats: PathBuf,
    trace: PathBuf,
    /// What the program said on standard error.
    pub said: String,
    /// The process that serves.
    pub server: u32,
    watchdog: Option<Watchdog>,
    ended: bool,
}

impl Mount {
    fn of(output: Output, merged: PathBuf, files: Files) -> Result<Self, Output> {
        if !output.status.success() {
            return Err(output);
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let Some(server) = server_of(&merged) else { panic!("nobody serves {}: {said}", merged.display()) };
        let Files { stats, trace } = files;
        Ok(Self { merged, stats, trace, said, watchdog: Some(Watchdog::start(server)), server, ended: false })
    }

    /// A path in the mounted tree.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.merged.join(relative)
    }

    /// The names in a directory, sorted.
    #[track_caller]
    pub fn names(&self, relative: &str) -> Vec<String> {
        names(&self.path(relative))
    }

    /// The counters since the mount began.
    #[track_caller]
    pub fn counts(&self) -> Counts {
        let lines = || fs::read_to_string(&self.stats).unwrap_or_default();
        let before = lines().lines().count();
        signal(self.server, "USR1");
        let told = wait_until(END_PATIENCE, || {
            let now = lines();
            now.ends_with('\n') && now.lines().count() >= before + 2
        });
        assert!(told, "the server writes no counters");
        Counts::parse(&lines().lines().skip(before).collect::<Vec<_>>().join(" "))
    }

    /// The requests that `operation` made.
    #[track_caller]
    pub fn requests(&self, operation: impl FnOnce()) -> Counts {
        let before = self.counts();
        operation();
        self.counts().since(&before)
    }

    /// The system calls that the server makes during `operation`, by name, without those by which it waits for the
    /// kernel and answers. Only if the plan was traced.
    pub fn calls(&self, operation: impl FnOnce()) -> Counts {
        let length = || fs::metadata(&self.trace).expect("trace of strace").len();
        let settle = || {
            let mut last = 0;
            wait_until(END_PATIENCE, || {
                thread::sleep(Duration::from_millis(30));
                std::mem::replace(&mut last, length()) == length()
            })
        };
        settle();
        let from = usize::try_from(length()).expect("a short trace");
        operation();
        settle();
        let trace = fs::read(&self.trace).expect("trace of strace");
        let text = String::from_utf8_lossy(&trace[from..]).into_owned();
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            let Some((name, _)) = call.split_once('(') else { continue };
            let waits =
                ["read", "writev", "futex", "ppoll", "poll", "restart_syscall", "sched_yield", "madvise"];
            if !waits.contains(&name) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                *calls.entry(name.to_owned()).or_default() += 1;
            }
        }
        Counts(calls)
    }

    /// Unmounts, and waits for the server to end.
    #[track_caller]
    pub fn end(mut self) {
        if let Err(why) = self.finish() {
            panic!("{why}");
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.stop();
        }
        // A server that has ended by itself may have taken its mount along.
        let unmounted = match unmount(&self.merged) {
            Err(_) if !runs(self.server) => Ok(()),
            other => other,
        };
        if wait_until(END_PATIENCE, || !runs(self.server)) {
            return unmounted;
        }
        signal(self.server, "KILL");
        let _ = unmount(&self.merged);
        Err(format!("the server did not end after the unmount ({unmounted:?})"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = self.finish();
        if !thread::panicking() {
            ended.expect("end of the mount");
        }
    }
}

/// The line of a mount in the table of this process: source, type and options.
pub fn mount_line(merged: &Path) -> Option<[String; 3]> {
    let table = fs::read_to_string("/proc/self/mounts").expect("the table of mounts");
    let words = table.lines().rev().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let mut mine = words.filter(|words| words.get(1).is_some_and(|point| Path::new(point) == merged));
    mine.next().map(|words| [words[0].clone(), words[2].clone(), words[3].clone()])
}

/// Unmounts, as root or through fusermount3; lazily if somebody still looks into it.
pub fn unmount(merged: &Path) -> Result<(), String> {
    let direct = sys::mount::unmount(merged, Detach::Now);
    let Err(error) = direct else { return Ok(()) };
    if error.errno() == libc::EBUSY {
        return sys::mount::unmount(merged, Detach::Lazily).map_err(|e| e.to_string());
    }
    if !error.is_denied() {
        return Err(error.to_string());
    }
    let output = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(merged).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("fusermount3: {error}")),
    }
}

/// Counted things by name; what is not there is 0.
#[derive(Clone, PartialEq, Eq)]
pub struct Counts(BTreeMap<String, u64>);

impl Counts {
    fn parse(text: &str) -> Self {
        let pairs = text.split_whitespace().filter_map(|word| word.split_once('='));
        Self(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// What was counted since `before`; what did not change is left out.
    fn since(&self, before: &Self) -> Self {
        let delta = |(name, now): (&String, &u64)| {
            let more = now.wrapping_sub(before.of(name));
            (more != 0).then(|| (name.clone(), more))
        };
        Self(self.0.iter().filter_map(delta).collect())
    }

    /// How many of `name`.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How many of all in the list.
    pub fn sum(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(name, count)| format!("{name}={count}")).collect();
        f.write_str(&words.join(" "))
    }
}

/// Runs a shell script and gives what it printed.
#[track_caller]
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(script).stdin(Stdio::null()).output().expect("run sh");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}\n{script}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// True if a program can be found.
pub fn has_program(name: impl AsRef<OsStr>) -> bool {
    Command::new("sh")
        .arg("-c")
        .arg("command -v \"$0\"")
        .arg(name)
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// What a shell script prints that runs in the root of a stack mounted by the kernel's overlayfs, to read. `None` if
/// there is no overlayfs, or it may not be used here.
#[track_caller]
pub fn as_the_kernel_reads(stage: &Stage, lowers: &[&str], script: &str) -> Option<String> {
    let layers: Vec<String> = lowers.iter().map(|l| stage.path(l).display().to_string()).collect();
    let option = if is_real_root() { "" } else { ",userxattr" };
    let point = stage.dir("kernel-mount").display().to_string();
    let mounts =
        format!("mount -t overlay overlay -o lowerdir={}{option} {point} && cd {point}", layers.join(":"));
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.arg("-Ur");
        }
        command.args(["-m", "sh", "-ec", script]).output().expect("run unshare")
    };
    if !run(&mounts).status.success() {
        return None;
    }
    let output = run(&format!("{mounts}\n{script}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}\n{script}", output.status);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

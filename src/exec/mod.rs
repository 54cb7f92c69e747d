//! How is a command run in a snapshot that is mounted for just that long?
//!
//! Four processes. The caller forks the *keeper*, which leaves for namespaces of its own (a plain user becomes root of
//! a user namespace there), mounts the snapshot and starts the server if there is one. The keeper forks the *init* of a
//! new process namespace, which changes into the snapshot as its root, and starts the *command*.
//!
//! ```text
//! caller ── fork ──► keeper            user and mount namespace, snapshot, server
//!   │ writes the id maps │ fork
//!   │                    └──► init     mount and process namespace, /proc /dev /sys, new root
//!   │ signals ──────────► signals ───► │ fork
//!   │                    │             └──► command
//!   │                    │             ends: the kernel ends all that the command left
//!   │                    unmounts, waits for the server, ends
//!   takes the terminal back, returns the exit code
//! ```
//!
//! What is mounted is seen in those namespaces only, and goes with them: if the caller is killed the keeper ends the
//! init; if the keeper is killed the kernel ends the init and asks the server to end. What a crash leaves is an empty
//! directory `exec-*` among the mount points, until the next cleanup, and in a snapshot that is no stack perhaps the mount points themselves.
//!
//! Nothing is added to the snapshot. Mount points that it lacks (`proc`, `dev`, `sys`, `etc/resolv.conf`, `etc/hosts`)
//! come from a layer of our own below all of its layers. A writable snapshot that is a plain directory gets `proc`,
//! `dev` and `sys` as directories, which are removed afterwards; there `etc/resolv.conf` and `etc/hosts` are only
//! covered if they exist. The command sees copies of the machine's two files; what it writes to them is dropped.
//!
//! This is no sandbox: the network is the machine's, and root stays root.

mod furnish;
mod init;
mod keeper;
mod report;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::by_this_process;
use crate::mounting::plan::{self, Step};
use crate::mounting::{MountSettings, server, single};
use crate::sys::child::{self, Arrived, Sender, Signals, Terminal};
use crate::sys::userns::{Door, IdMaps, Privilege};
use crate::types::Mount;
use plywood_fuse::sys::process::{pipe, wait_readable};
use report::Message;
use rustix::process::Pid;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const OPERATION: &str = "exec";

/// Where programs are looked for, unless the request says otherwise: as container runtimes do.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables of the caller that the command gets: what kind of terminal it has, and how to reach the network.
const PASSED_ON: [&str; 9] = [
    "TERM",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
];

/// What to run, and in what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The mounts of the snapshot, as its backend gives them.
    pub mounts: Vec<Mount>,
    /// The program and its arguments. A name without a slash is looked for in the `PATH` that the command gets, within
    /// the snapshot.
    pub command: Vec<OsString>,
    /// The directory in which it starts, within the snapshot.
    pub workdir: PathBuf,
    /// Variables besides `PATH`, `HOME` and those of [`environment`]; these win.
    pub env: Vec<(OsString, OsString)>,
    /// Refuse changes.
    pub read_only: bool,
    /// The name of the machine that the command sees, if not the real one.
    pub hostname: Option<String>,
}

impl ExecRequest {
    /// A command in the root directory of a snapshot, with nothing special.
    pub fn new(mounts: Vec<Mount>, command: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            mounts,
            command: command.into_iter().collect(),
            workdir: PathBuf::from("/"),
            env: Vec::new(),
            read_only: false,
            hostname: None,
        }
    }
}

/// What became of the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself, with this exit code.
    Exit(u8),
    /// This signal ended it.
    Signal(u8),
    /// There is no such command; in words.
    NotFound(String),
    /// It cannot be run; in words.
    NotExecutable(String),
}

/// The exit code for a failure of ours, when there is none of a command.
pub const FAILED: i32 = 125;

impl Outcome {
    /// As an exit code, in the way of shells and container runtimes: 128 and the signal, 127 not found, 126 not
    /// executable.
    pub fn code(&self) -> i32 {
        match self {
            Outcome::Exit(code) => i32::from(*code),
            Outcome::Signal(number) => 128 + i32::from(*number),
            Outcome::NotFound(_) => 127,
            Outcome::NotExecutable(_) => 126,
        }
    }
}

/// The variables that a command gets besides those that are asked for: `PATH`, `HOME`, and of the caller's those that
/// say what its terminal is and how to reach the network.
pub fn environment(outer: impl Fn(&str) -> Option<OsString>) -> Vec<(OsString, OsString)> {
    let mut all = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())];
    let kept = PASSED_ON.iter().filter_map(|name| Some((OsString::from(name), outer(name)?)));
    all.extend(kept);
    all
}

/// All that the other processes have to know, made while there is time.
struct Plan {
    step: Step,
    settings: MountSettings,
    /// An empty directory, to mount on.
    base: PathBuf,
    args: Vec<CString>,
    env: Vec<(OsString, OsString)>,
    command: OsString,
    workdir: PathBuf,
    hostname: Option<String>,
    /// Whether the caller has a terminal, whose process group the command then shares.
    has_terminal: bool,
    /// The file of that terminal.
    terminal: Option<PathBuf>,
}

impl Plan {
    fn of(request: &ExecRequest, settings: &MountSettings, privilege: Privilege) -> Result<Plan> {
        let invalid =
            |subject: &str, cause: &str| Error::new(ErrorKind::InvalidArgument, OPERATION, subject, cause);
        // A plain user becomes root of a namespace.
        let inside = if privilege == Privilege::User { Privilege::NamespaceRoot } else { privilege };
        let step = plan::plan(single(&request.mounts)?, inside, &settings.scratch)?;
        let step = if request.read_only { step.read_only() } else { step };
        if let Step::Serve { program, .. } = &step {
            // Better now than in another process.
            server::find(program, settings)?;
        }
        let text = |text: &OsStr| {
            child::c_string(text).map_err(|_| invalid(&text.to_string_lossy(), "it holds a NUL byte"))
        };
        let args = request.command.iter().map(|arg| text(arg)).collect::<Result<Vec<_>>>()?;
        let Some(command) = request.command.first().filter(|name| !name.is_empty()).cloned() else {
            return Err(invalid("", "there is no command"));
        };
        let mut env = environment(|name| std::env::var_os(name));
        for (name, value) in &request.env {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(invalid(&name.to_string_lossy(), "this is no name of a variable"));
            }
            text(name).and_then(|_| text(value))?;
            env.retain(|(known, _)| known != name);
            env.push((name.clone(), value.clone()));
        }
        if !request.workdir.is_absolute() {
            return Err(invalid(
                &request.workdir.to_string_lossy(),
                "the working directory has to be absolute",
            ));
        }
        Ok(Plan {
            step,
            settings: settings.clone(),
            base: PathBuf::new(),
            args,
            env,
            command,
            workdir: request.workdir.clone(),
            hostname: request.hostname.clone(),
            has_terminal: false,
            terminal: None,
        })
    }

    /// The programs to try, in this order.
    fn candidates(&self) -> Vec<OsString> {
        if self.command.as_bytes().contains(&b'/') {
            return vec![self.command.clone()];
        }
        let path = self.env.iter().find(|(name, _)| name == "PATH");
        let dirs = path.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value);
        // An empty entry is the current directory.
        dirs.as_bytes()
            .split(|byte| *byte == b':')
            .map(|dir| {
                let dir = if dir.is_empty() { b"." } else { dir };
                Path::new(OsStr::from_bytes(dir)).join(&self.command).into_os_string()
            })
            .collect()
    }

    fn env_strings(&self) -> Vec<CString> {
        let joined = self.env.iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
        // Those with a NUL were refused before.
        joined.filter_map(|text| child::c_string(&OsString::from_vec(text)).ok()).collect()
    }
}

/// A directory to mount on, outside of every snapshot; removed when dropped.
struct Base(PathBuf);

impl Base {
    fn make(scratch: &Path) -> Result<Base> {
        let failed = |e| Error::io(OPERATION, scratch.display().to_string(), e);
        let scratch = std::fs::canonicalize(scratch).map_err(failed)?;
        // A cleanup removes it if this process is killed, and not before.
        let path = scratch.join(by_this_process("exec"));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(Base(path))
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), "a mount point is left behind: {error}");
        }
    }
}

/// Runs a command in a snapshot and waits for its end.
///
/// On return nothing is mounted any more, no process is left, and all changes are in the directory of the snapshot;
/// the server has ended. Standard input, output and error are the caller's. Signals that come meanwhile are passed on.
/// With a terminal the command is in the caller's process group, so that its keys and a shell's job control reach it;
/// without one it has a group of its own.
///
/// Other threads of this process should block the signals that end it, or there should be none: a signal that kills
/// this process ends the command, but nobody learns its exit code.
///
/// Where the user namespace has only one id, system calls that change an owner to another id, or become another user,
/// succeed without effect, so that package managers work: see [`crate::sys::pretend`].
///
/// # Errors
/// `InvalidArgument` for a request that makes no sense; those of mounting; `Unsupported` where user namespaces are
/// switched off; `Io` if the server did not end well, for then changes may be missing.
pub fn run(request: &ExecRequest, settings: &MountSettings) -> Result<Outcome> {
    let failed = |e| Error::io(OPERATION, "", e);
    let piped = || pipe().map_err(|e| Error::fuse(OPERATION, "", e));
    let privilege = Privilege::current();
    let mut plan = Plan::of(request, settings, privilege)?;
    let base = Base::make(&settings.scratch)?;
    plan.base.clone_from(&base.0);
    let terminal = Terminal::open();
    plan.has_terminal = terminal.is_some();
    plan.terminal = child::terminal_file();
    let maps = (privilege == Privilege::User).then(IdMaps::of_this_user);
    let (door, threshold) = match &maps {
        Some(_) => Door::pair().map(|(door, threshold)| (Some(door), Some(threshold)))?,
        None => (None, None),
    };
    let (reports, report) = piped()?;
    let (life, alive) = piped()?;
    let signals = Signals::block().map_err(failed)?;
    let forked = child::fork();
    if let Ok(None) = forked {
        drop((door, reports, alive));
        keeper::run(plan, threshold, report, life, &signals);
    }
    drop((threshold, report, life));
    let outcome = match forked {
        Ok(Some(keeper)) => attend(keeper, door.zip(maps.as_ref()), reports, &signals),
        Ok(None) => Err(Error::new(ErrorKind::Io, OPERATION, "", "the child came back")),
        Err(error) => Err(failed(error)),
    };
    drop(alive);
    if let Some(terminal) = terminal {
        terminal.take_back();
    }
    signals.restore();
    outcome
}

/// Lets the keeper in, passes signals on to it, and hears what it reports until its end.
fn attend(
    keeper: Pid,
    door: Option<(Door, &IdMaps)>,
    reports: OwnedFd,
    signals: &Signals,
) -> Result<Outcome> {
    if let Some((door, maps)) = door
        && let Err(error) = door.admit(keeper, maps)
    {
        child::kill(keeper);
        let _ = child::wait(keeper);
        return Err(error);
    }
    let mut told = Vec::new();
    let mut reports = File::from(reports);
    loop {
        let news = wait_readable([reports.as_fd(), signals.as_fd()], None);
        let [report, signal] = news.map_err(|e| Error::fuse(OPERATION, "", e))?;
        if signal {
            while let Some(arrived) = signals.arrived() {
                if let Arrived::Signal(number, Sender::Process) = arrived {
                    child::send(keeper, number);
                }
            }
        }
        if report {
            let mut bytes = [0; 4096];
            match reports.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => told.extend_from_slice(&bytes[..length]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(OPERATION, "", e)),
            }
        }
    }
    let ended = child::wait(keeper).map_err(|e| Error::io(OPERATION, "", e))?;
    report::outcome(&Message::read_all(&told)).unwrap_or_else(|| {
        let cause = format!("the process that kept the mount ended without a word ({ended:?})");
        Err(Error::new(ErrorKind::Io, OPERATION, "", cause))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: &[&str]) -> ExecRequest {
        let mount = Mount { kind: "bind".into(), source: "/s/7/fs".into(), options: vec!["rbind".into()] };
        ExecRequest::new(vec![mount], command.iter().map(OsString::from))
    }

    fn plan(request: &ExecRequest) -> Result<Plan> {
        Plan::of(request, &MountSettings::new("/s/mnt".as_ref()), Privilege::User)
    }

    #[test]
    fn outcomes_have_the_exit_codes_of_shells() {
        assert_eq!(Outcome::Exit(3).code(), 3);
        assert_eq!(Outcome::Signal(9).code(), 137);
        assert_eq!(Outcome::NotFound(String::new()).code(), 127);
        assert_eq!(Outcome::NotExecutable(String::new()).code(), 126);
    }

    #[test]
    fn the_environment_is_new_but_for_terminal_and_proxies() {
        let outer = |name: &str| match name {
            "TERM" => Some("vt100".into()),
            "https_proxy" => Some("http://proxy".into()),
            "SECRET" | "PATH" | "HOME" => Some("of the caller".into()),
            _ => None,
        };
        let all = environment(outer);
        let text: Vec<String> =
            all.iter().map(|(n, v)| format!("{}={}", n.to_string_lossy(), v.to_string_lossy())).collect();
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(text, [path.as_str(), "HOME=/root", "TERM=vt100", "https_proxy=http://proxy"]);
    }

    #[test]
    fn a_command_is_looked_for_in_the_path_it_gets() {
        let mut request = request(&["ls"]);
        request.env =
            vec![("PATH".into(), "/a::/b".into()), ("X".into(), "1".into()), ("X".into(), "2".into())];
        let planned = plan(&request).unwrap();
        assert_eq!(planned.candidates(), ["/a/ls", "./ls", "/b/ls"]);
        let env: Vec<String> =
            planned.env_strings().iter().map(|e| e.to_string_lossy().into_owned()).collect();
        assert!(env.contains(&"X=2".to_owned()) && !env.contains(&"X=1".to_owned()), "{env:?}");
        request.command = vec!["./x/ls".into()];
        assert_eq!(plan(&request).unwrap().candidates(), ["./x/ls"]);
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_before_anything_starts() {
        let good = request(&["ls"]);
        let bad = [
            ExecRequest { command: Vec::new(), ..good.clone() },
            ExecRequest { command: vec!["".into()], ..good.clone() },
            ExecRequest { command: vec!["a\0b".into()], ..good.clone() },
            ExecRequest { workdir: "tmp".into(), ..good.clone() },
            ExecRequest { env: vec![("A=B".into(), "".into())], ..good.clone() },
            ExecRequest { env: vec![("".into(), "x".into())], ..good.clone() },
            ExecRequest { mounts: Vec::new(), ..good.clone() },
        ];
        for request in bad {
            let error = plan(&request).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::InvalidArgument), "{request:?}");
        }
        assert!(plan(&good).is_ok());
    }
}

//! How is a server of a layer stack found, started and waited for?
//!
//! It is started in the foreground, in a session of its own, so that its process id is known from the start; what it
//! says is read until the mount answers. One that outlives us is nobody's child, so that no daemon has to collect it.
//! A crash of ours while it starts leaves a mount that nobody has recorded.

use super::plan::{SERVER, Step};
use super::{MountSettings, OPERATION};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::attach;
use crate::sys::child::{self, Fate};
use crate::sys::userns::find_program;
use plywood_fuse::sys::mount::{Detach as KernelDetach, ask_attributes, unmount};
use plywood_fuse::sys::process::{pipe, wait_readable};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until its mount is there. It gives up itself before.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// How long the kernel may take to end a process that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// A `lowerdir` that is longer is given layer by layer: the kernel takes words of 128 KiB at most.
const MAX_LIST_BYTES: usize = 64 * 1024;

/// The process of a server; the time tells it from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Its process id, as this process sees it.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub start_time: u64,
}

impl Server {
    /// That of a running process.
    pub fn of(pid: u32) -> Option<Self> {
        let (state, start_time) = read_stat(pid)?;
        (!matches!(state, 'Z' | 'X')).then_some(Self { pid, start_time })
    }

    /// True if it runs; one that has ended and was not collected does not.
    pub fn is_running(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Asks it to end, and after `patience` ends it: what it has not written by then is lost.
    pub fn end(self, patience: Duration) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(process) = pid.and_then(|p| rustix::process::pidfd_open(p, PidfdFlags::empty()).ok()) else {
            return;
        };
        // Only now is it certain that the descriptor is of this very process.
        if !self.is_running() {
            return;
        }
        let _ = rustix::process::pidfd_send_signal(&process, Signal::TERM);
        if !self.wait_for_end(patience) {
            let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
            self.wait_for_end(KILL_PATIENCE);
        }
    }

    /// Waits until it has ended; false if it still runs after `patience`.
    pub fn wait_for_end(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(process) = pid.and_then(|p| rustix::process::pidfd_open(p, PidfdFlags::empty()).ok()) {
            // Only now is it certain that the descriptor is of this very process.
            if !self.is_running() {
                return true;
            }
            let _ = wait_readable([process.as_fd()], Some(deadline));
        }
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// State and start time of a process.
///
/// # Source
/// proc(5), `/proc/pid/stat`: fields 3 and 22; field 2 is in parentheses and may hold anything.
fn read_stat(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut words = rest.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((state, words.nth(18)?.parse().ok()?))
}

/// A server that answers.
#[derive(Debug)]
pub struct Running {
    /// Which process.
    pub server: Server,
    /// To be waited for, if it is our child.
    pub child: Option<Child>,
    /// What it said.
    pub words: String,
}

/// Finds the program of a server: as configured (a path, or another name), else beside this program, else in PATH.
///
/// # Errors
/// `NotFound` with what to do.
pub fn find(name: &str, settings: &MountSettings) -> Result<PathBuf> {
    let configured = settings.fuse_program.as_deref();
    if let Some(path) = configured.filter(|program| program.components().count() > 1) {
        return Ok(path.to_owned());
    }
    let name = configured.and_then(Path::to_str).unwrap_or(name);
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join(name));
    let is_program = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    beside.filter(is_program).or_else(|| find_program(name)).ok_or_else(|| {
        let cause = format!(
            "the program is neither beside plywood nor in PATH: build it (cargo build --release -p {SERVER}), put it \
             into one of the two places, or set fuse_program"
        );
        Error::new(ErrorKind::NotFound, OPERATION, name, cause)
    })
}

/// The words of the command line behind the program.
fn arguments(source: &str, options: &[String], lowers: &[String], target: &Path) -> Vec<std::ffi::OsString> {
    let mut words: Vec<std::ffi::OsString> = vec!["-f".into(), source.into(), target.into()];
    let mut option = |text: String| words.extend(["-o".into(), text.into()]);
    let escaped: Vec<String> = lowers.iter().map(|l| l.replace('\\', "\\\\").replace(':', "\\:")).collect();
    let list = escaped.join(":");
    if list.len() <= MAX_LIST_BYTES {
        option(format!("lowerdir={list}"));
    } else {
        lowers.iter().for_each(|lower| option(format!("lowerdir+={lower}")));
    }
    options.iter().for_each(|text| option(text.clone()));
    words
}

/// Starts the server of a [`Step::Serve`] and waits until its mount at `target`, a canonical path, answers. A failure
/// leaves no mount and no process.
///
/// # Errors
/// Those of [`find`]; `Io` with what the server said.
pub fn start(step: &Step, target: &Path, settings: &MountSettings, fate: Fate) -> Result<Running> {
    let Step::Serve { program: name, source, options, lowers, made } = step else {
        return Err(Error::new(ErrorKind::InvalidArgument, OPERATION, "", "this needs no server"));
    };
    for dir in made {
        let built = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
        built.map_err(|e| Error::io(OPERATION, dir.display().to_string(), e))?;
    }
    let program = find(name, settings)?;
    let subject = || target.display().to_string();
    let failed = |e| Error::io(OPERATION, subject(), e);
    let before = attach::mount_number(target).map_err(failed)?;
    let piped = || pipe().map_err(|e| Error::fuse(OPERATION, subject(), e));
    let ((number, announce), (said, say)) = (piped()?, piped()?);
    let mut command = Command::new(&program);
    command.args(arguments(source, options, lowers, target));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(say)).current_dir("/");
    child::set_apart(&mut command, fate, announce);
    let spawned = command.spawn();
    // Its ends of the pipes go with it.
    drop(command);
    let mut child = spawned.map_err(|e| Error::io(OPERATION, format!("start {}", program.display()), e))?;
    let mut bytes = [0; 4];
    let pid = File::from(number).read_exact(&mut bytes).map(|()| u32::from_ne_bytes(bytes));
    let child = match fate {
        Fate::Follows => Some(child),
        Fate::Outlives => child.wait().ok().and(None),
    };
    let mut starting = Starting { pid: pid.map_err(failed)?, child, said, words: String::new() };
    match starting.wait(target, before) {
        Ok(server) => Ok(Running { server, child: starting.child, words: starting.words.trim().to_owned() }),
        Err(cause) => {
            starting.give_up(target, before);
            Err(Error::new(ErrorKind::Io, OPERATION, subject(), cause))
        }
    }
}

/// A server that may not answer yet.
struct Starting {
    pid: u32,
    child: Option<Child>,
    said: OwnedFd,
    words: String,
}

impl Starting {
    /// Waits until the mount is there and answers; else why it never will.
    fn wait(&mut self, target: &Path, before: u64) -> std::result::Result<Server, String> {
        let is_there = || attach::mount_number(target).is_ok_and(|now| now != before);
        let deadline = Instant::now() + START_PATIENCE;
        while !is_there() {
            if Instant::now() >= deadline {
                return Err("the server does not mount anything".to_owned());
            }
            let soon = Some(Instant::now() + Duration::from_millis(1));
            let news = wait_readable([self.said.as_fd()], soon);
            if news.is_ok_and(|[news]| news) && !self.listen() {
                return Err(self.last_words());
            }
        }
        let answered = ask_attributes(target);
        let server = Server::of(self.pid);
        match (answered, server) {
            (Ok(_), Some(server)) if is_there() => {
                while wait_readable([self.said.as_fd()], Some(Instant::now())).is_ok_and(|[news]| news)
                    && self.listen()
                {}
                Ok(server)
            }
            _ => {
                // It is about to end, and says why before.
                let soon = Instant::now() + Duration::from_secs(2);
                while wait_readable([self.said.as_fd()], Some(soon)).is_ok_and(|[news]| news) && self.listen()
                {
                }
                Err(self.last_words())
            }
        }
    }

    /// Reads what was said; false at the end.
    fn listen(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let Ok(copy) = self.said.try_clone() else { return false };
        match File::from(copy).read(&mut bytes) {
            Ok(length @ 1..) => {
                self.words.push_str(&String::from_utf8_lossy(&bytes[..length]));
                true
            }
            _ => false,
        }
    }

    fn last_words(&self) -> String {
        let lines = self.words.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        if lines.is_empty() { "the server ended without a word".to_owned() } else { lines.join("; ") }
    }

    fn give_up(&mut self, target: &Path, before: u64) {
        if let Some(pid) = Server::of(self.pid).and_then(|_| Pid::from_raw(self.pid.cast_signed())) {
            child::kill(pid);
        }
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
        if attach::mount_number(target).is_ok_and(|now| now != before) {
            let _ = unmount(target, KernelDetach::Lazily);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one() {
        let own = Server::of(std::process::id()).unwrap();
        assert!(own.is_running());
        assert!(!Server { start_time: own.start_time + 1, ..own }.is_running());
        assert!(!own.wait_for_end(Duration::from_millis(10)));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let server = Server::of(child.id()).unwrap();
        child.kill().unwrap();
        // Not collected yet, and over nevertheless.
        assert!(server.wait_for_end(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(server.wait_for_end(Duration::from_secs(10)));
    }

    #[test]
    fn many_layers_are_named_one_by_one() {
        let text = |words: &[std::ffi::OsString]| {
            words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let options = ["ro".to_owned()];
        let two = ["/a:b".to_owned(), "/c".to_owned()];
        let words = arguments("overlay", &options, &two, Path::new("/t"));
        assert_eq!(text(&words), "-f overlay /t -o lowerdir=/a\\:b:/c -o ro");
        let many = vec!["/".repeat(100) + "a:b"; 2000];
        let words = arguments("overlay", &options, &many, Path::new("/t"));
        assert_eq!(words.len(), 3 + 2 * 2001);
        assert!(words.iter().all(|w| w.len() < 1000));
        assert!(text(&words[3..5]).ends_with("a:b"), "a colon needs no escape here");
    }

    #[test]
    fn a_program_is_found_as_configured_or_an_error_says_what_to_do() {
        let mut settings = MountSettings::new("/s".as_ref());
        let error = find("no-such-server", &settings).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("cargo build"), "{error}");
        settings.fuse_program = Some("/opt/server".into());
        assert_eq!(find("no-such-server", &settings).unwrap(), Path::new("/opt/server"));
        settings.fuse_program = Some("sh".into());
        assert!(find("no-such-server", &settings).unwrap().ends_with("sh"));
    }
}

//! How to ask the kernel for processes: make one, wait, pass signals on, follow one that ends.
//!
//! Nothing here decides: the order of the steps is the design of `exec` and of [`super::userns`]. All calls work in
//! a process with several threads; what a child may do before it becomes another program stands at [`fork`].

use std::ffi::{CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal, WaitOptions};

/// The signals that are passed on: what a person or a program sends to make somebody end, look up or think again.
/// Stop and continue stay with each process, so that the job control of a shell works.
const PASSED_ON: [libc::c_int; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A text for the kernel.
///
/// # Errors
/// EINVAL if it holds a NUL.
pub fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Makes a second process like this one, with one thread: `None` in the new one.
///
/// Other threads of this process do not exist in the child, so locks that they hold are never released there. The
/// child may use memory (the C library sees to that), files and system calls; it must not log, print by the
/// standard library, or change the environment, and it ends by [`end`] or by becoming another program.
///
/// # Errors
/// As fork(2).
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: fork(2) has no arguments; what the child may do is the contract above, which both callers keep: they
    // call system calls, allocate, and end without running destructors of this process.
    Ok(Pid::from_raw(check(unsafe { libc::fork() })?))
}

/// Ends this process at once; nothing of what it shares with its parent is flushed or dropped.
pub fn end(code: u8) -> ! {
    plywood_fuse::sys::process::exit_now(i32::from(code))
}

/// Becomes another program; returns only if that fails.
pub fn become_program(path: &OsStr, args: &[CString], env: &[CString]) -> io::Error {
    let path = match c_string(path) {
        Ok(path) => path,
        Err(error) => return error,
    };
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: execve(2) reads a NUL-terminated path and two arrays of NUL-terminated strings, each ended by a null
    // pointer; all of them live until the call returns, if it does.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exit(u8),
    /// By this signal.
    Signal(u8),
}

impl Ended {
    /// As one number, in the way of shells: 128 and the signal.
    pub fn code(self) -> u8 {
        match self {
            Ended::Exit(code) => code,
            Ended::Signal(number) => number.saturating_add(128),
        }
    }

    fn of(status: rustix::process::WaitStatus) -> Self {
        let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exit(byte(code)),
            (None, Some(signal)) => Ended::Signal(byte(signal)),
            (None, None) => Ended::Exit(u8::MAX),
        }
    }
}

/// Waits until the child `pid` ends; `None` if nobody can tell how, because SIGCHLD is ignored.
///
/// # Errors
/// As waitpid(2); EINTR is retried.
pub fn wait(pid: Pid) -> io::Result<Option<Ended>> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(Some(Ended::of(status))),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A child that has ended, if there is one: `which`, or any.
pub fn ended(which: Option<Pid>) -> Option<(Pid, Ended)> {
    let waited = match which {
        Some(pid) => rustix::process::waitpid(Some(pid), WaitOptions::NOHANG),
        // `waitpid` of nobody would mean any child of our own process group.
        None => rustix::process::wait(WaitOptions::NOHANG),
    };
    waited.ok().flatten().map(|(pid, status)| (pid, Ended::of(status)))
}

/// Sends a signal to a child that was not waited for yet; that it has ended already is fine.
pub fn send(pid: Pid, number: i32) {
    // SAFETY: kill(2) takes two integers.
    unsafe { libc::kill(pid.as_raw_nonzero().get(), number) };
}

/// Ends a child that was not waited for yet, at once.
pub fn kill(pid: Pid) {
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

/// Who sent a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The terminal, or the kernel: all processes of the group got it.
    Kernel,
    /// A process.
    Process,
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// A child changed its state.
    Child,
    /// One to pass on.
    Signal(i32, Sender),
}

/// The signals to pass on and the news of children: blocked in this thread and read instead.
pub struct Signals {
    fd: OwnedFd,
    former: libc::sigset_t,
}

impl Signals {
    /// Blocks them in this thread, and in processes that it makes. What our caller has ignored stays ignored.
    ///
    /// Other threads of this process still die of them, unless they block them as well.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    ///
    /// # Source
    /// signalfd(2): each process that reads gets its own signals, even from an inherited descriptor.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut former = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset(3) makes `set` a valid empty set, sigaddset(3) adds valid signal numbers.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            for number in PASSED_ON.into_iter().filter(|number| !is_ignored(*number)) {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
        }
        // SAFETY: signalfd(2) reads the valid set.
        let fd = check(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
        // SAFETY: the kernel just made this descriptor for us; nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: pthread_sigmask(3) reads one valid set and writes the other.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), former.as_mut_ptr()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // SAFETY: written by the call above.
        Ok(Self { fd, former: unsafe { former.assume_init() } })
    }

    /// The next one, if one came.
    pub fn arrived(&self) -> Option<Arrived> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: read(2) writes at most `size` bytes to `info`, which is that long.
        let got = unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(got) != Ok(size) {
            return None;
        }
        // SAFETY: all fields are integers, for which zeroes are valid, and the kernel filled them whole.
        let info = unsafe { info.assume_init() };
        let number = i32::try_from(info.ssi_signo).ok()?;
        let sender = if info.ssi_code > 0 { Sender::Kernel } else { Sender::Process };
        Some(if number == libc::SIGCHLD { Arrived::Child } else { Arrived::Signal(number, sender) })
    }

    /// Blocks what was blocked before, in this thread. What came meanwhile and was not read acts now.
    pub fn restore(&self) {
        // SAFETY: pthread_sigmask(3) reads the valid set that it once wrote.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.former, std::ptr::null_mut()) };
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_ignored(number: libc::c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: sigaction(2) without a new action only writes the current one; zeroes are valid for all its fields.
    let action = unsafe {
        libc::sigaction(number, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Lets `number` act as it does in a new program.
fn set_default(number: libc::c_int) {
    // SAFETY: signal(2) with the default action installs no function of ours.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// Makes news of children come, even if our caller ignores them.
pub fn hear_of_children() {
    set_default(libc::SIGCHLD);
}

/// Lets a write to a pipe that nobody reads end a program, as everywhere but in Rust.
pub fn end_by_broken_pipe() {
    set_default(libc::SIGPIPE);
}

/// What becomes of a new process when the thread that makes it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It lives on.
    Outlives,
    /// It is asked to end (SIGTERM).
    Follows,
}

/// Makes the command start in a session of its own, out of reach of our terminal, with no signal blocked.
///
/// One that outlives us is not our child: its process id is written to `announce`, as four bytes, and the child
/// that the command seems to be ends at once with exit code 0. So nobody has to wait for it later.
pub fn set_apart(command: &mut Command, fate: Fate, announce: OwnedFd) {
    let prepare = move || {
        let mut none = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset(3) makes the set valid, pthread_sigmask(3) reads it; setsid(2) has no arguments.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
            check(libc::setsid())?;
        }
        match fate {
            Fate::Follows => die_with_parent(Signal::TERM)?,
            Fate::Outlives => {
                // SAFETY: fork(2) in a process that has one thread; both halves call only system calls.
                if check(unsafe { libc::fork() })? > 0 {
                    plywood_fuse::sys::process::exit_now(0);
                }
            }
        }
        // SAFETY: getpid(2) has no arguments; write(2) reads four bytes that live until after the call.
        let written = unsafe {
            let pid = libc::getpid().to_ne_bytes();
            libc::write(announce.as_raw_fd(), pid.as_ptr().cast(), pid.len())
        };
        if written == 4 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes system calls only: it takes no lock and uses no memory.
    unsafe { command.pre_exec(prepare) };
}

/// Lets the kernel send this process a signal when the thread that made it ends. A change of user undoes it.
///
/// # Errors
/// EINVAL for a signal that does not exist.
pub fn die_with_parent(signal: Signal) -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(signal))?)
}

/// The terminal of this session, if there is one.
pub struct Terminal {
    tty: OwnedFd,
    /// The process group that it belonged to at first.
    group: libc::pid_t,
}

impl Terminal {
    /// Opens it.
    pub fn open() -> Option<Self> {
        let tty: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/tty").ok()?.into();
        let group = foreground(&tty);
        Some(Self { tty, group })
    }

    /// Makes our process group its foreground again, if it was before: a shell that ran in it and ended may have
    /// left it to a group that is gone.
    pub fn take_back(&self) {
        // SAFETY: getpgrp(2) has no arguments.
        let ours = unsafe { libc::getpgrp() };
        if self.group != ours || foreground(&self.tty) == ours {
            return;
        }
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut former = MaybeUninit::<libc::sigset_t>::zeroed();
        // A process in the background is stopped for this, unless it blocks the signal.
        // SAFETY: the sets are made valid before they are read, and live until after the calls; tcsetpgrp(3) takes
        // an open descriptor and an integer.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTTOU);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), former.as_mut_ptr());
            libc::tcsetpgrp(self.tty.as_raw_fd(), ours);
            libc::pthread_sigmask(libc::SIG_SETMASK, former.as_ptr(), std::ptr::null_mut());
        }
    }
}

fn foreground(tty: &OwnedFd) -> libc::pid_t {
    // SAFETY: tcgetpgrp(3) takes an open descriptor.
    unsafe { libc::tcgetpgrp(tty.as_raw_fd()) }
}

/// Which file the terminal on one of the standard descriptors is, if one is a terminal.
pub fn terminal_file() -> Option<std::path::PathBuf> {
    (0..=2).find_map(|fd| {
        // SAFETY: isatty(3) takes any number.
        let is_terminal = unsafe { libc::isatty(fd) } == 1;
        is_terminal.then(|| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    #[test]
    fn a_child_of_a_process_with_threads_ends_with_its_code() {
        match fork().unwrap() {
            None => end(7),
            Some(pid) => assert_eq!(wait(pid).unwrap(), Some(Ended::Exit(7))),
        }
        match fork().unwrap() {
            None => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            Some(pid) => {
                assert_eq!(ended(Some(pid)), None);
                kill(pid);
                let ended = wait(pid).unwrap().unwrap();
                assert_eq!((ended, ended.code()), (Ended::Signal(9), 137));
                assert_eq!(ended.code(), Ended::Exit(137).code());
            }
        }
    }

    #[test]
    fn a_failed_start_of_a_program_says_why() {
        let name = c_string(OsStr::new("x")).unwrap();
        let error = become_program(OsStr::new("/no such program"), &[name], &[]);
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert!(c_string(OsStr::from_bytes(b"a\0b")).is_err());
    }

    #[test]
    fn a_blocked_signal_is_read_with_its_sender() {
        // In a thread, so that the mask of the others stays as it is.
        std::thread::spawn(|| {
            let signals = Signals::block().unwrap();
            assert_eq!(signals.arrived(), None);
            // SAFETY: pthread_kill(3) with this very thread, where the signal is blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) };
            assert_eq!(signals.arrived(), Some(Arrived::Signal(libc::SIGUSR1, Sender::Process)));
            signals.restore();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_process_that_is_set_apart_is_no_child_and_tells_its_number() {
        let (number, announce) = plywood_fuse::sys::process::pipe().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        set_apart(&mut command, Fate::Outlives, announce);
        let mut child = command.spawn().unwrap();
        drop(command);
        assert!(child.wait().unwrap().success());
        let mut bytes = [0; 4];
        std::fs::File::from(number).read_exact(&mut bytes).unwrap();
        let pid = Pid::from_raw(i32::from_ne_bytes(bytes)).unwrap();
        // Not by rustix, which does not expect 0: a session that was begun outside of this process namespace.
        // SAFETY: getsid(2) takes an integer.
        let (its, ours) = unsafe { (libc::getsid(pid.as_raw_nonzero().get()), libc::getsid(0)) };
        assert!(its > 0 && its != ours, "it is in session {its}, and we are in {ours}");
        assert_eq!(ended(Some(pid)), None);
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        let parent = format!("PPid:\t{}\n", std::process::id());
        assert!(!status.contains(&parent), "it is our child");
        kill(pid);
        let begin = Instant::now();
        while std::path::Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists() {
            assert!(begin.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

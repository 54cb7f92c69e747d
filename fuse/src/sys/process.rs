//! How to ask the kernel about this process: fork, sessions, descriptors, limits, signals, waiting.
//!
//! Nothing here decides: the order of these steps is the design of `front::daemon`.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use super::check;
use crate::error::{Error, Result};

/// The user whose rights this process has, as numbered in its user namespace.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// The group whose rights this process has, as numbered in its user namespace.
pub fn effective_gid() -> u32 {
    // SAFETY: getegid(2) has no arguments and cannot fail.
    unsafe { libc::getegid() }
}

/// A process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(libc::pid_t);

/// Which of the two processes after a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The process that asked; the new one has this id.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Makes a second process like this one.
///
/// Only while this process has a single thread: others would not exist in the child, and the locks they hold
/// would never be released.
///
/// # Errors
/// EBUSY if there is more than one thread; else as fork(2).
pub fn fork() -> Result<Fork> {
    // Without a readable /proc the caller's word must do.
    if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(Error::new(libc::EBUSY, "fork", "this process", "it has more than one thread"));
    }
    // SAFETY: fork(2) with a single thread, as checked: the child may do everything the parent may.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(Pid(pid))),
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Waits until the child `pid` ends.
///
/// # Errors
/// ECHILD if it is not our child, or SIGCHLD is ignored; EINTR is retried.
pub fn wait_for_child(pid: Pid) -> Result<Ended> {
    let mut status = 0;
    loop {
        // SAFETY: waitpid(2) writes one integer to `status`, which lives until after the call.
        match check(unsafe { libc::waitpid(pid.0, &raw mut status, 0) }) {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error),
            Ok(_) if libc::WIFSIGNALED(status) => return Ok(Ended::Signal(libc::WTERMSIG(status))),
            Ok(_) => return Ok(Ended::Exit(libc::WEXITSTATUS(status))),
        }
    }
}

/// A pipe, closed on exec: the end to read from and the end to write to.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: pipe2(2) writes two integers to `fds`, which lives until after the call.
    check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the kernel just made both for us; nothing else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// Leaves the caller's session and terminal.
///
/// # Errors
/// EPERM if this process leads its process group.
pub fn leave_session() -> Result<()> {
    // SAFETY: setsid(2) has no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Makes descriptors 0, 1 and 2 mean `/dev/null`, so that whoever reads our output sees its end.
///
/// # Errors
/// As opening `/dev/null`, and as dup2(2).
pub fn silence_stdio() -> Result<()> {
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: dup2(2) with an open descriptor onto 0, 1 or 2: those belong to the process as a whole,
        // stay open, and the standard library only ever borrows them.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    Ok(())
}

/// Closes every descriptor above 2 that is not in `keep`, and marks those in `keep` close-on-exec.
///
/// Only at the start of the program, while it owns no descriptor that is not in `keep`.
///
/// # Errors
/// Only where the kernel has no close_range(2) (before 5.9) and `/proc` is missing: as getrlimit(2).
pub fn close_inherited(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().copied().filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    for &fd in &keep {
        // SAFETY: fcntl(2) F_SETFD takes any number and answers EBADF for one that is not open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let mut first = 3;
    for &fd in &keep {
        if fd > first {
            close_range(first, fd - 1, &keep)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, &keep)
}

/// Gives this thread descriptors of its own: 0, 1, 2 and `keep`, without the others of this process.
///
/// For a thread that asks the kernel something which this same process has to answer. If the process is
/// killed meanwhile, the device that it answers on is closed with the last table that holds it; were that
/// the table of the asking thread too, it would wait for ever, out of reach of every signal.
///
/// From then on this thread may use no descriptor that was opened before, except `keep`.
///
/// # Errors
/// ENOMEM, EMFILE; EPERM if a filter forbids unshare(2). Then the thread has the descriptors that it had.
///
/// # Source
/// unshare(2), `CLONE_FILES`; `request_wait_answer` of `fs/fuse/dev.c`, which stops listening to SIGKILL once
/// the server has read the request.
pub fn part_descriptors(keep: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: unshare(2) takes one integer. The copy of the table has the same numbers as the former one.
    check(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    let keep = keep.as_raw_fd();
    if keep > 3 {
        close_range(3, keep - 1, &[keep])?;
    }
    close_range(keep.max(2) + 1, RawFd::MAX, &[keep])
}

/// Closes what is open from `first` to `last`, without `keep`: in the table of this thread, and only where
/// nothing that this thread will use owns a descriptor of that range.
fn close_range(first: RawFd, last: RawFd, keep: &[RawFd]) -> Result<()> {
    // SAFETY: close_range(2) takes three integers; both callers demand of theirs that nothing is used any
    // more that owns a descriptor of this range. By number, since older C libraries lack the function.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return Ok(());
    }
    // ENOSYS before Linux 5.9, EPERM from filters that do not know the call: one by one.
    let open: Vec<RawFd> = match fs::read_dir("/proc/thread-self/fd") {
        Ok(list) => {
            let names: Vec<_> = list.flatten().map(|entry| entry.file_name()).collect();
            names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect()
        }
        // Numbers are given from below, so that hardly any is higher.
        Err(_) => (first..descriptor_limit()?.rlim_cur.min(1 << 16) as RawFd).collect(),
    };
    for fd in open.into_iter().filter(|fd| (first..=last).contains(fd) && !keep.contains(fd)) {
        // SAFETY: close(2) takes any number and answers EBADF for one that is not open; the directory that
        // was listed is closed already, and the rest is used by nobody, as above.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Sets which permission bits new files do not get, and returns the former value.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: umask(2) takes one integer and cannot fail.
    unsafe { libc::umask(mask as libc::mode_t) }
}

fn descriptor_limit() -> Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one `struct rlimit`, which lives until after the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

/// How many descriptors this process may have open.
///
/// # Errors
/// As getrlimit(2).
pub fn max_descriptors() -> Result<u64> {
    Ok(descriptor_limit()?.rlim_cur)
}

/// Raises the limit of open descriptors as far as this process may.
///
/// # Errors
/// As setrlimit(2).
pub fn raise_descriptor_limit() -> Result<()> {
    let mut limit = descriptor_limit()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit(2) reads one `struct rlimit`, which lives until after the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(())
}

/// True if this process may mount in its mount namespace: CAP_SYS_ADMIN is in effect.
pub fn may_administrate() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << CAP_SYS_ADMIN) != 0)
}

/// Ends this process at once: no destructor runs, no buffer is flushed.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes one integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives free memory of the heap back to the kernel, where the C library can.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes one integer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A signal that this program listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: the terminal is gone.
    Hangup,
    /// SIGINT: Control-C.
    Interrupt,
    /// SIGTERM: a polite request to end.
    Terminate,
    /// SIGUSR1: a question.
    User1,
}

impl Signal {
    const ALL: [Signal; 4] = [Signal::Hangup, Signal::Interrupt, Signal::Terminate, Signal::User1];

    fn number(self) -> libc::c_int {
        match self {
            Signal::Hangup => libc::SIGHUP,
            Signal::Interrupt => libc::SIGINT,
            Signal::Terminate => libc::SIGTERM,
            Signal::User1 => libc::SIGUSR1,
        }
    }

    /// True if our caller had this signal ignored, as nohup(1) does, or a shell for a job in the background.
    pub fn is_ignored(self) -> bool {
        // SAFETY: `struct sigaction` holds integers and pointers, for which zeroes are valid.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: sigaction(2) without a new action only writes the current one to `action`.
        let result = unsafe { libc::sigaction(self.number(), std::ptr::null(), &raw mut action) };
        result == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Blocked signals, read instead of handled.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks `wanted` in this thread and in all that it starts from now on, and collects them.
    ///
    /// Before any other thread is started: one that does not block them would die of them.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    ///
    /// # Source
    /// signalfd(2).
    pub fn block(wanted: &[Signal]) -> Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset(3) makes `set` a valid empty set, sigaddset(3) adds valid signal numbers.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in wanted {
                libc::sigaddset(set.as_mut_ptr(), signal.number());
            }
        }
        // SAFETY: pthread_sigmask(3) reads the valid set; a null third argument asks for nothing back.
        let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
        if error != 0 {
            return Err(Error::from_errno(error));
        }
        // SAFETY: signalfd(2) reads the valid set.
        let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        // SAFETY: the kernel just made this descriptor for us; nothing else owns it.
        check(fd).map(|fd| Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next signal, if one came.
    ///
    /// # Errors
    /// As read(2), except EAGAIN, which is `None`.
    pub fn arrived(&self) -> Result<Option<Signal>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        loop {
            // SAFETY: read(2) writes at most `size` bytes to `info`, which is that long.
            let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size) };
            if got < 0 {
                let error = Error::last_os_error();
                match error.errno() {
                    libc::EINTR => continue,
                    libc::EAGAIN => return Ok(None),
                    _ => return Err(error),
                }
            }
            // SAFETY: all fields are integers, for which zeroes are valid, and the kernel fills them whole.
            let info = unsafe { info.assume_init() };
            return Ok(Signal::ALL.into_iter().find(|signal| signal.number() == info.ssi_signo as i32));
        }
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` has something to read, has come to its end, or `deadline` is past.
///
/// The answer says of each whether it is ready; all are false at the deadline.
///
/// # Errors
/// As poll(2); EINTR is retried.
pub fn wait_readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    deadline: Option<Instant>,
) -> Result<[bool; N]> {
    let mut entries = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    loop {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => -1,
            // Rounded up, so that a wait never ends before the deadline and starts over.
            Some(left) => (left + Duration::from_micros(999)).as_millis().min(i32::MAX as u128) as i32,
        };
        // SAFETY: poll(2) reads and writes N entries of `struct pollfd`, which live until after the call;
        // the descriptors in them are borrowed for as long.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), N as libc::nfds_t, timeout) };
        match check(ready) {
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(entries.map(|entry| entry.revents != 0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::thread;

    #[test]
    fn a_wait_ends_at_the_deadline_or_with_news_or_when_the_other_end_closes() {
        let (first, first_in) = pipe().unwrap();
        let (second, second_in) = pipe().unwrap();
        let fds = || [first.as_fd(), second.as_fd()];
        let begin = Instant::now();
        let soon = Some(begin + Duration::from_millis(20));
        assert_eq!(wait_readable(fds(), soon).unwrap(), [false, false]);
        assert!(begin.elapsed() >= Duration::from_millis(20));
        fs::File::from(first_in.try_clone().unwrap()).write_all(b"x").unwrap();
        assert_eq!(wait_readable(fds(), None).unwrap(), [true, false]);
        drop(second_in);
        assert_eq!(wait_readable(fds(), None).unwrap(), [true, true]);
    }

    #[test]
    fn fork_refuses_a_process_with_more_threads() {
        let (wait, tell) = pipe().unwrap();
        let thread = thread::spawn(move || fs::File::from(wait).read(&mut [0]));
        assert_eq!(fork().unwrap_err().errno(), libc::EBUSY);
        drop(tell);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_blocked_signal_is_read_once() {
        // In a thread, so that the mask of the others stays as it is.
        thread::spawn(|| {
            let signals = Signals::block(&[Signal::User1, Signal::Hangup]).unwrap();
            assert_eq!(signals.arrived().unwrap(), None);
            // SAFETY: pthread_kill(3) with this very thread, where the signal is blocked.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGHUP) };
            assert_eq!(wait_readable([signals.as_fd()], None).unwrap(), [true]);
            assert_eq!(signals.arrived().unwrap(), Some(Signal::Hangup));
            assert_eq!(signals.arrived().unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_that_parts_keeps_one_descriptor_and_leaves_the_others_to_the_rest() {
        let (end, write_end) = pipe().unwrap();
        let other = fs::File::open("/").unwrap();
        let number = other.as_raw_fd();
        let copy = write_end.try_clone().unwrap();
        thread::spawn(move || {
            part_descriptors(copy.as_fd()).unwrap();
            // SAFETY: fcntl(2) F_GETFD takes any number.
            let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
            let mut copy = fs::File::from(copy);
            copy.write_all(&[u8::from(open)]).unwrap();
        })
        .join()
        .unwrap();
        let mut answer = [9];
        fs::File::from(end).read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0], "the thread still had the descriptor");
        assert!(other.metadata().is_ok(), "the others lost theirs");
    }
}

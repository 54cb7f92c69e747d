//! What may this process do, and how does a plain user get a namespace in which it may do more?
//!
//! A plain user can be root of a *user namespace*: of its own id, shown as 0, and of the subordinate ids that
//! `/etc/subuid` and `/etc/subgid` give it, shown as 1 and up. The setuid programs `newuidmap` and `newgidmap` enter
//! those; without them, or without such ids, there is one id only.
//!
//! A process enters by a child that leaves its namespaces, says so and waits, while the parent writes the maps:
//! [`Door::pair`], [`Threshold::enter`], [`Door::admit`]. A crash leaves nothing, since namespaces go with their last
//! process.

use super::attach;
use super::child::{self, Arrived, Ended, Sender, Signals};
use crate::error::{Error, ErrorKind, Result};
use plywood_fuse::sys::process::{effective_gid, effective_uid, wait_readable};
use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, UnshareFlags};
use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The inode number of the first user namespace, of which all others are descendants.
///
/// # Source
/// `PROC_USER_INIT_INO` of `linux/proc_ns.h`.
const INITIAL_NAMESPACE: u64 = 0xefff_fffd;

/// Tells a program that it was started again by [`reenter`].
const MARK: &str = "PLYWOOD_USERNS";

/// As many ranges as `newuidmap` takes at most, and the kernel.
const MAX_RANGES: usize = 340;

/// True if this process is in the first user namespace, the one of the machine.
pub fn in_initial_userns() -> bool {
    match fs::metadata("/proc/self/ns/user") {
        Ok(namespace) => namespace.ino() == INITIAL_NAMESPACE,
        // Without /proc only the rights of this process can tell.
        Err(_) => true,
    }
}

/// What this process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the machine.
    Root,
    /// Root of a user namespace.
    NamespaceRoot,
    /// No more than its own files allow.
    User,
}

impl Privilege {
    /// That of this thread, which other threads of this program share.
    pub fn current() -> Self {
        let capabilities = rustix::thread::capabilities(None);
        let can_mount = capabilities.is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_ADMIN));
        match (can_mount, in_initial_userns()) {
            (false, _) => Self::User,
            (true, true) => Self::Root,
            (true, false) => Self::NamespaceRoot,
        }
    }
}

/// Ids that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// The ranges that `text`, the content of `/etc/subuid` or `/etc/subgid`, gives to a user; lines that cannot be read
/// are passed over.
///
/// # Source
/// subuid(5): `NAME-OR-UID:FIRST:COUNT`.
pub fn subordinate_ids(text: &str, name: Option<&str>, uid: u32) -> Vec<IdRange> {
    let number = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut words = line.trim().splitn(3, ':');
        let owner = words.next()?;
        let is_ours = owner == number || (!owner.is_empty() && Some(owner) == name);
        let first: u32 = words.next()?.trim().parse().ok()?;
        let count: u32 = words.next()?.trim().parse().ok()?;
        let fits = first.checked_add(count).is_some() && count > 0;
        (is_ours && fits).then_some(IdRange { first, count })
    });
    ranges.collect()
}

/// The name of a user.
fn user_name(uid: u32) -> Option<String> {
    let mut buffer = vec![0; 16 * 1024];
    let mut entry = std::mem::MaybeUninit::<libc::passwd>::zeroed();
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    // SAFETY: getpwuid_r(3) writes one `struct passwd` and at most the given number of bytes to the buffer it points
    // into, and stores null or the address of the entry; all live until after the last use of the name below.
    unsafe {
        libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found);
        if found.is_null() || (*found).pw_name.is_null() {
            return None;
        }
        CStr::from_ptr((*found).pw_name).to_str().ok().map(str::to_owned)
    }
}

/// Which ids there are in a new user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
    programs: Option<(PathBuf, PathBuf)>,
}

/// What a namespace got in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Our own id as 0, and subordinate ones.
    Many,
    /// Our own id as 0, and no other.
    One,
}

impl IdMaps {
    /// All that this user may have.
    pub fn of_this_user() -> Self {
        let uid = effective_uid();
        let name = user_name(uid);
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let uids = subordinate_ids(&read("/etc/subuid"), name.as_deref(), uid);
        let gids = subordinate_ids(&read("/etc/subgid"), name.as_deref(), uid);
        Self { uids, gids, programs: find_program("newuidmap").zip(find_program("newgidmap")) }
    }

    /// Only the id of this user.
    pub fn single() -> Self {
        Self { uids: Vec::new(), gids: Vec::new(), programs: None }
    }

    /// How many ids there will be, at most.
    pub fn ids(&self) -> Ids {
        match self.programs {
            Some(_) if !self.uids.is_empty() && !self.gids.is_empty() => Ids::Many,
            _ => Ids::One,
        }
    }

    /// Writes the maps of the new user namespace of `pid`.
    fn write(&self, pid: Pid) -> Result<Ids> {
        let pid = pid.as_raw_nonzero().to_string();
        let by_programs = self.programs.as_ref().filter(|_| self.ids() == Ids::Many);
        let write = |file: &str, text: String| {
            let path = format!("/proc/{pid}/{file}");
            fs::write(&path, text).map_err(|e| Error::io("enter user namespace", path, e))
        };
        // The program says better than the kernel what is wrong.
        let either =
            |refused: Result<()>, written: Result<()>| written.map_err(|e| refused.err().unwrap_or(e));
        let mut ids = Ids::One;
        let uids =
            by_programs.map(|(uids, _)| run_map_program(uids, &pid, &map_words(effective_uid(), &self.uids)));
        let gids =
            by_programs.map(|(_, gids)| run_map_program(gids, &pid, &map_words(effective_gid(), &self.gids)));
        match (uids, gids) {
            (Some(Ok(())), Some(Ok(()))) => ids = Ids::Many,
            (uids, gids) => {
                let missing = |done: &Option<Result<()>>| !matches!(done, Some(Ok(())));
                if missing(&uids) {
                    let written = write("uid_map", format!("0 {} 1", effective_uid()));
                    either(uids.unwrap_or(Ok(())), written)?;
                }
                if missing(&gids) {
                    let written = write("setgroups", "deny".to_owned());
                    let written = written.and_then(|()| write("gid_map", format!("0 {} 1", effective_gid())));
                    either(gids.unwrap_or(Ok(())), written)?;
                }
            }
        }
        Ok(ids)
    }
}

/// Own id as 0, then the ranges from 1 on: `INSIDE OUTSIDE COUNT` for each.
fn map_words(own: u32, ranges: &[IdRange]) -> Vec<String> {
    let mut next = 1u32;
    let mut words = vec![[0, own, 1]];
    for range in ranges.iter().take(MAX_RANGES - 1) {
        // Ids stop before 2^32 - 1, which means "no id".
        let count = range.count.min((u32::MAX - 1) - next);
        if count == 0 {
            break;
        }
        words.push([next, range.first, count]);
        next += count;
    }
    words.iter().flatten().map(u32::to_string).collect()
}

fn run_map_program(program: &Path, pid: &str, words: &[String]) -> Result<()> {
    let failed = |cause: String| {
        let advice = "check /etc/subuid and /etc/subgid, and that the program is installed setuid";
        let subject = program.display().to_string();
        Error::new(ErrorKind::PermissionDenied, "enter user namespace", subject, format!("{cause}: {advice}"))
    };
    let output = Command::new(program).arg(pid).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")))
}

/// A program by its name: in PATH, then where distributions put it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let is_program =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let mut places = std::env::split_paths(&path).filter(|place| place.is_absolute()).chain(usual);
    places.find_map(|place| Some(place.join(name)).filter(is_program))
}

/// The parent's side of entering a user namespace.
pub struct Door {
    left: fs::File,
    admit: fs::File,
}

/// The child's side.
pub struct Threshold {
    left: fs::File,
    admitted: fs::File,
}

impl Door {
    /// Both sides, to be made before the fork; each process drops the side that it does not use.
    ///
    /// # Errors
    /// EMFILE.
    pub fn pair() -> Result<(Door, Threshold)> {
        let pipe = || plywood_fuse::sys::process::pipe().map_err(|e| Error::fuse("make pipe", "", e));
        let ((left, tell_left), (admitted, admit)) = (pipe()?, pipe()?);
        let door = Door { left: left.into(), admit: admit.into() };
        Ok((door, Threshold { left: tell_left.into(), admitted: admitted.into() }))
    }

    /// Waits until the child has left our user namespace, and writes the maps of its new one.
    ///
    /// # Errors
    /// `Unsupported` if the child could not leave; `PermissionDenied` if the maps were refused.
    pub fn admit(mut self, pid: Pid, maps: &IdMaps) -> Result<Ids> {
        let mut errno = [0; 4];
        self.left.read_exact(&mut errno).map_err(|e| Error::io("enter user namespace", "child", e))?;
        let errno = i32::from_ne_bytes(errno);
        if errno != 0 {
            let cause = format!(
                "{}: user namespaces are switched off for you: ask for them (sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone or kernel.apparmor_restrict_unprivileged_userns), or run as root",
                io::Error::from_raw_os_error(errno)
            );
            return Err(Error::new(ErrorKind::Unsupported, "enter user namespace", "", cause));
        }
        let ids = maps.write(pid)?;
        let told = self.admit.write_all(b"a");
        told.map_err(|e| Error::io("enter user namespace", "child", e))?;
        Ok(ids)
    }
}

impl Threshold {
    /// The descriptors that have to stay open until then.
    pub fn descriptors(&self) -> [std::os::fd::RawFd; 2] {
        use std::os::fd::AsRawFd;
        [self.left.as_raw_fd(), self.admitted.as_raw_fd()]
    }

    /// Leaves the user namespace and the mount namespace, waits for the maps, and becomes root of the new ones.
    /// Mounts that are made from now on are seen by nobody else.
    ///
    /// Only in a process with one thread.
    ///
    /// # Errors
    /// Those of the kernel. The parent has been told.
    pub fn enter(mut self) -> io::Result<()> {
        let left = attach::leave(UnshareFlags::NEWUSER | UnshareFlags::NEWNS);
        let errno = left.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
        self.left.write_all(&errno.to_ne_bytes())?;
        left?;
        self.admitted.read_exact(&mut [0])?;
        // Refused where there is one id only, and then there are no groups that matter.
        let _ = rustix::thread::set_thread_groups(&[]);
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        attach::keep_mounts_to_ourselves()
    }
}

/// How many ids this process can give files to: [`Ids::One`] if its user namespace has a single one.
pub fn ids_here() -> Ids {
    let several = |file| {
        let map = fs::read_to_string(file).unwrap_or_default();
        let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
        counts.sum::<u64>() > 1
    };
    let readable = Path::new("/proc/self/uid_map").exists();
    if !readable || (several("/proc/self/uid_map") && several("/proc/self/gid_map")) {
        Ids::Many
    } else {
        Ids::One
    }
}

/// True if this program should [`reenter`] before it works on content that may belong to subordinate ids: a plain
/// user, and not started by that already.
pub fn should_reenter() -> bool {
    Privilege::current() == Privilege::User && std::env::var_os(MARK).is_none()
}

/// True in a process that [`reenter`] has started.
pub fn was_reentered() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs this program again with `args` (the first is its name), as root of a new user namespace with all ids that this
/// user may have and a mount namespace of its own, and returns its exit code; 128 and the number if a signal ended it.
///
/// Standard input, output and error, the terminal and the current directory are the same; signals that come meanwhile
/// are passed on. If this process is killed, so is the other. Mounts that it makes go with it.
///
/// # Errors
/// `FailedPrecondition` in a process that was started so itself; `Unsupported` where user namespaces are switched off;
/// those of starting a process.
pub fn reenter(args: impl IntoIterator<Item = OsString>) -> Result<i32> {
    const OPERATION: &str = "enter user namespace";
    if std::env::var_os(MARK).is_some() {
        let cause = "this process was started in one already";
        return Err(Error::new(ErrorKind::FailedPrecondition, OPERATION, "", cause));
    }
    let failed = |e| Error::io(OPERATION, "", e);
    let args = args.into_iter().map(|arg| child::c_string(&arg)).collect::<io::Result<Vec<CString>>>();
    let args = args.map_err(failed)?;
    let mut env = std::env::vars_os().map(|(name, value)| variable(name, value)).collect::<Vec<_>>();
    env.push(variable(MARK.into(), "1".into()));
    let env = env.into_iter().map(|text| child::c_string(&text)).collect::<io::Result<Vec<CString>>>();
    let env = env.map_err(failed)?;
    let maps = IdMaps::of_this_user();
    let (door, threshold) = Door::pair()?;
    let (why, tell_why) = plywood_fuse::sys::process::pipe().map_err(|e| Error::fuse(OPERATION, "", e))?;
    let signals = Signals::block().map_err(failed)?;
    let parent = std::process::id();
    let forked = child::fork();
    if let Ok(None) = forked {
        drop((door, why));
        let error = start_again(threshold, parent, &signals, &args, &env);
        let _ = fs::File::from(tell_why).write_all(&error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        child::end(125);
    }
    drop((threshold, tell_why));
    let outcome = match forked {
        Ok(Some(pid)) => see_through(pid, door, &maps, &signals, why),
        Ok(None) => Err(Error::new(ErrorKind::Io, OPERATION, "", "the child came back")),
        Err(error) => Err(failed(error)),
    };
    signals.restore();
    outcome.map(|ended| i32::from(ended.code()))
}

fn variable(name: OsString, value: OsString) -> OsString {
    let mut text = name.into_vec();
    text.push(b'=');
    text.extend(value.into_vec());
    OsString::from_vec(text)
}

/// The life of the child; returns only why it failed.
fn start_again(
    threshold: Threshold,
    parent: u32,
    signals: &Signals,
    args: &[CString],
    env: &[CString],
) -> io::Error {
    let entered = threshold.enter().and_then(|()| child::die_with_parent(Signal::KILL));
    if let Err(error) = entered {
        return error;
    }
    // It may have been killed just before.
    if std::os::unix::process::parent_id() != parent {
        return io::Error::from_raw_os_error(libc::ECHILD);
    }
    // It meets them as if our caller had started it.
    signals.restore();
    child::become_program("/proc/self/exe".as_ref(), args, env)
}

/// The rest of the life of the parent.
fn see_through(pid: Pid, door: Door, maps: &IdMaps, signals: &Signals, why: OwnedFd) -> Result<Ended> {
    if let Err(error) = door.admit(pid, maps) {
        child::kill(pid);
        let _ = child::wait(pid);
        return Err(error);
    }
    let mut errno = [0; 4];
    if fs::File::from(why).read_exact(&mut errno).is_ok() {
        let _ = child::wait(pid);
        let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
        return Err(Error::io("enter user namespace", "", error));
    }
    pass_on_until_end(pid, signals).map_err(|e| Error::io("wait for the process", "", e))
}

/// Passes signals on to a child until it ends.
fn pass_on_until_end(pid: Pid, signals: &Signals) -> io::Result<Ended> {
    loop {
        if let Some((_, ended)) = child::ended(Some(pid)) {
            return Ok(ended);
        }
        // News of children can go to another thread of this process.
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(100);
        wait_readable([signals.as_fd()], Some(soon)).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        while let Some(arrived) = signals.arrived() {
            if let Arrived::Signal(number, Sender::Process) = arrived {
                child::send(pid, number);
            }
        }
        if rustix::process::test_kill_process(pid).is_err() {
            // SIGCHLD is ignored, so that the kernel does not keep how it ended.
            return Ok(Ended::Exit(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "root:1:2\n# comment\nply:100000:65536\n1001:300000:10\nply:x:1\nply:5:0\n:7:7\nply:4294967295:2\n\
                    other:9:9\n";
        let range = |first, count| IdRange { first, count };
        let both = [range(100_000, 65_536), range(300_000, 10)];
        assert_eq!(subordinate_ids(text, Some("ply"), 1001), both);
        assert_eq!(subordinate_ids(text, None, 1001), both[1..]);
        assert_eq!(subordinate_ids(text, Some("nobody"), 65_534), []);
        assert_eq!(subordinate_ids("", Some("ply"), 1001), []);
    }

    #[test]
    fn a_map_shows_the_user_as_root_and_the_rest_behind() {
        let range = |first, count| IdRange { first, count };
        assert_eq!(map_words(1000, &[]).join(" "), "0 1000 1");
        let words = map_words(1000, &[range(100_000, 65_536), range(300_000, 10)]).join(" ");
        assert_eq!(words, "0 1000 1 1 100000 65536 65537 300000 10");
        let words = map_words(0, &[range(1, u32::MAX - 1), range(5, 5)]).join(" ");
        assert_eq!(words, "0 0 1 1 1 4294967293");
    }

    #[test]
    fn one_id_is_what_there_is_without_the_programs_or_without_ranges() {
        let some = vec![IdRange { first: 1, count: 1 }];
        let programs = Some((PathBuf::from("/a"), PathBuf::from("/b")));
        let maps = |uids: &Vec<IdRange>, gids: &Vec<IdRange>, programs: &Option<(PathBuf, PathBuf)>| {
            IdMaps { uids: uids.clone(), gids: gids.clone(), programs: programs.clone() }.ids()
        };
        assert_eq!(maps(&some, &some, &programs), Ids::Many);
        assert_eq!(maps(&some, &some, &None), Ids::One);
        assert_eq!(maps(&Vec::new(), &some, &programs), Ids::One);
        assert_eq!(maps(&some, &Vec::new(), &programs), Ids::One);
        assert_eq!(IdMaps::single().ids(), Ids::One);
    }

    #[test]
    fn the_name_of_root_is_known() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_name(4_000_000_000), None);
    }
}

//! Who makes and unmakes the mount.
//!
//! Three ways, tried in this order: the caller handed us a device that is mounted already; we call mount(2)
//! ourselves, which works for root and for the root of a user namespace; or the setuid program `fusermount3`
//! does it for a plain user. fuser's own mounting is not used: it unmounts what may be somebody else's mount.
//!
//! A mount is only ever ended if the kernel says that it is still the one made here.
//!
//! Absent on purpose: `auto_unmount` of fusermount, a second process for the life of the mount. This process
//! unmounts when it is told to end, and a client that finds a dead mount knows how to detach it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::options::{AccessTimes, KernelMountOptions, MountRequest};
use crate::sys::mount::{self as kernel, Detach, Inherited, MountFlags, MountId};
use crate::sys::process::{effective_gid, effective_uid};

/// The names that this program is known by. It shows the one it was called by, so that scripts and rules
/// written for fuse-overlayfs find what they look for; the first one if called by any other name.
const SUBTYPES: [&str; 2] = ["plywood-fuse", "fuse-overlayfs"];

/// What to mount, and where.
///
/// What was not typed becomes the default for who we are: `suid,nodev,noatime,allow_other` for root,
/// `nosuid,nodev,noatime` for everybody else.
#[derive(Clone, Debug)]
pub struct Request {
    /// The mount point as typed: a path, `/dev/fd/N` or `/proc/self/fd/N`.
    pub mount_point: PathBuf,
    /// The first word of the line in `/proc/mounts`.
    pub source: OsString,
    /// What follows `fuse.` in the type of the mount.
    pub subtype: OsString,
    /// The mount refuses changes.
    pub read_only: bool,
    /// What else was typed. `allow_root` lets everybody in here; the session must see to the difference.
    pub options: KernelMountOptions,
}

impl Request {
    /// The mount that `typed` asks for.
    pub fn of(typed: &MountRequest) -> Self {
        let options = typed.kernel_mount.clone();
        let known = SUBTYPES.into_iter().find(|name| typed.program == *name).unwrap_or(SUBTYPES[0]);
        let source = options.fsname.clone().or_else(|| typed.source.clone());
        Self {
            mount_point: typed.mount_point.clone(),
            source: source.filter(|s| !s.is_empty()).unwrap_or_else(|| known.into()),
            subtype: options.subtype.clone().filter(|s| !s.is_empty()).unwrap_or_else(|| known.into()),
            read_only: typed.read_only,
            options,
        }
    }

    /// Whether users besides us are let in.
    fn lets_others_in(&self, root: bool) -> bool {
        self.options.allow_root || self.options.allow_other.unwrap_or(root)
    }
}

/// Who made a mount, and so how it can be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// We did, by mount(2).
    Direct,
    /// This program did for us.
    Fusermount(PathBuf),
    /// Our caller did, and gave us the device; we do not know where it is mounted.
    Inherited,
}

/// A mount that was made.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// Who made it.
    pub how: How,
    /// Where it is: an absolute path without symbolic links, or the typed one if [`How::Inherited`].
    pub mount_point: PathBuf,
    /// Which mount it is; `None` if [`How::Inherited`].
    pub mount_id: Option<MountId>,
}

/// What became of a mount that was to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone from the tree.
    Done,
    /// It was gone already, is hidden below another one, or was never ours to end. Nothing was touched.
    NotOurs,
}

/// The number in `/dev/fd/N`, `/proc/self/fd/N` or `/proc/thread-self/fd/N`, also with more path after it.
pub fn inherited_descriptor(path: &Path) -> Option<RawFd> {
    split_descriptor(path).map(|(fd, _)| fd)
}

/// As [`inherited_descriptor`], with what follows the number.
fn split_descriptor(path: &Path) -> Option<(RawFd, &Path)> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return None;
    }
    let mut word = || match parts.next() {
        Some(Component::Normal(word)) => word.to_str(),
        _ => None,
    };
    match (word()?, word()?) {
        ("dev", "fd") => {}
        ("proc", "self" | "thread-self") if word()? == "fd" => {}
        _ => return None,
    }
    let fd = word()?.parse().ok().filter(|fd| *fd >= 0)?;
    Some((fd, parts.as_path()))
}

/// A mount point, looked at before anything is mounted there.
enum Target {
    /// A directory.
    Directory {
        /// Where to mount, for this process.
        here: PathBuf,
        /// The same for every process.
        absolute: PathBuf,
    },
    /// A device that our caller has mounted.
    Device(RawFd),
}

fn look_at(typed: &Path) -> Result<Target> {
    let subject = || typed.display().to_string();
    let failed = |error: Error| match error.errno() {
        libc::ENOTCONN => Error::new(
            libc::ENOTCONN,
            "mount point",
            subject(),
            format!("a file system mounted here has died; run fusermount3 -u {}", typed.display()),
        ),
        _ => error.during("mount point", subject()),
    };
    let number = split_descriptor(typed).filter(|(_, rest)| rest.as_os_str().is_empty()).map(|(fd, _)| fd);
    if let Some(number) = number {
        match kernel::inherited_kind(number).map_err(failed)? {
            Inherited::FuseDevice => return Ok(Target::Device(number)),
            Inherited::Directory => {}
            Inherited::Other => return Err(failed(Error::from_errno(libc::ENOTDIR))),
        }
    }
    let here = fs::metadata(typed).map_err(|e| failed(e.into()))?;
    if !here.is_dir() {
        return Err(failed(Error::from_errno(libc::ENOTDIR)));
    }
    let absolute = fs::canonicalize(typed).map_err(|e| failed(e.into()))?;
    if number.is_none() {
        return Ok(Target::Directory { here: absolute.clone(), absolute });
    }
    // The link of a descriptor can name what is gone, or hidden by another mount.
    let there = fs::metadata(&absolute).map_err(|e| failed(e.into()))?;
    if (there.dev(), there.ino()) != (here.dev(), here.ino()) {
        let cause = format!("the directory cannot be reached as {}", absolute.display());
        return Err(Error::new(libc::ENOENT, "mount point", subject(), cause));
    }
    Ok(Target::Directory { here: typed.to_path_buf(), absolute })
}

/// Mounts, and answers with the device and what was made of it.
///
/// The mount is there on return, but whoever looks into it waits until a session answers on the device. A
/// failure leaves no mount behind.
///
/// # Errors
/// ENOENT or ENOTDIR for the mount point; ENOTCONN if a dead file system is mounted there; ENODEV, ENOENT
/// without FUSE; EPERM with the words of `fusermount3` if it refused.
///
/// # Source
/// `fs/fuse/inode.c` for the options; libfuse `lib/mount.c` for the meaning of `/dev/fd/N` as a mount point.
pub fn mount(request: &Request) -> Result<(OwnedFd, Mounted)> {
    let (here, absolute) = match look_at(&request.mount_point)? {
        Target::Directory { here, absolute } => (here, absolute),
        Target::Device(number) => {
            let subject = || request.mount_point.display().to_string();
            let device = kernel::take_inherited(number).map_err(|e| e.during("mount point", subject()))?;
            let mount_point = request.mount_point.clone();
            return Ok((device, Mounted { how: How::Inherited, mount_point, mount_id: None }));
        }
    };
    let subject = || absolute.display().to_string();
    let (device, how) = match mount_directly(request, &here) {
        Ok(device) => (device, How::Direct),
        Err(error) if error.is_denied() => {
            let (device, program) =
                mount_by_fusermount(request, &absolute, &error).map_err(|e| e.during("mount", subject()))?;
            (device, How::Fusermount(program))
        }
        Err(error) => return Err(error.during("mount", subject())),
    };
    let mut mounted = Mounted { how, mount_point: absolute.clone(), mount_id: None };
    match kernel::mount_id(&mounted.mount_point) {
        Ok(id) => mounted.mount_id = Some(id),
        Err(error) => {
            // Nobody else can have used it yet. The first error is the one to tell.
            let _ = detach(&mounted, Detach::Lazily);
            return Err(error.during("mount", subject()));
        }
    }
    Ok((device, mounted))
}

/// Changes the flags of the FUSE mount that is there; what was not typed stays as it is.
///
/// `mount -o remount` comes here through mount.fuse3, which starts this program again.
///
/// # Errors
/// EINVAL if no FUSE file system is mounted there; EBUSY for `ro` while files are open to be written; EPERM
/// without privilege.
pub fn remount(request: &Request) -> Result<()> {
    let subject = || request.mount_point.display().to_string();
    let failed = |error: Error| error.during("remount", subject());
    let absolute = fs::canonicalize(&request.mount_point).map_err(|e| failed(e.into()))?;
    let mounted = kernel::mounted_at(&absolute).map_err(failed)?;
    let is_fuse = |kind: &OsStr| kind == "fuse" || kind.as_bytes().starts_with(b"fuse.");
    let Some((_, now)) = mounted.filter(|(kind, _)| is_fuse(kind)) else {
        return Err(Error::new(libc::EINVAL, "remount", subject(), "no FUSE file system is mounted here"));
    };
    let flags = remount_flags(request, now);
    kernel::mount_fuse(&request.source, &absolute, &request.subtype, flags, "").map_err(|error| {
        let cause = match error.errno() {
            libc::EPERM => "only root can change the flags of a mount; unmount it and mount it again",
            libc::EBUSY => "files are open to be written; close them first",
            _ => return failed(error),
        };
        Error::new(error.errno(), "remount", subject(), cause)
    })
}

/// The flags for a remount: what was typed, else what is there.
fn remount_flags(request: &Request, now: MountFlags) -> MountFlags {
    let mut wanted = request.clone();
    let options = &mut wanted.options;
    options.suid.get_or_insert(!now.contains(MountFlags::NO_SUID));
    options.dev.get_or_insert(!now.contains(MountFlags::NO_DEV));
    options.exec.get_or_insert(!now.contains(MountFlags::NO_EXEC));
    if options.access_times == AccessTimes::Never && !now.contains(MountFlags::NO_ATIME) {
        // The default and the word look alike; a mount that has access times keeps them.
        options.access_times = AccessTimes::Relative;
    }
    kernel_flags(&wanted, false).with(MountFlags::REMOUNT)
}

/// True if we are root, perhaps of a user namespace only: then users besides us are let in by default.
fn is_root() -> bool {
    effective_uid() == 0
}

fn mount_directly(request: &Request, here: &Path) -> Result<OwnedFd> {
    let device = kernel::open_fuse_device().map_err(|error| {
        if error.is_denied() {
            return error.during("open", kernel::FUSE_DEVICE);
        }
        let advice = "load the kernel module fuse, or pass the device into this container";
        Error::new(error.errno(), "open", kernel::FUSE_DEVICE, advice)
    })?;
    let data = kernel_options(request, device.as_raw_fd(), effective_uid(), effective_gid());
    let flags = kernel_flags(request, is_root());
    kernel::mount_fuse(&request.source, here, &request.subtype, flags, &data)?;
    Ok(device)
}

/// The option text for the kernel. It never holds what was typed, so nothing in it needs escaping.
fn kernel_options(request: &Request, device: RawFd, uid: u32, gid: u32) -> String {
    let mut text = format!("fd={device},rootmode=40000,user_id={uid},group_id={gid}");
    if request.options.default_permissions {
        text.push_str(",default_permissions");
    }
    if request.lets_others_in(uid == 0) {
        text.push_str(",allow_other");
    }
    text
}

/// The flags for the kernel, defaults applied.
fn kernel_flags(request: &Request, root: bool) -> MountFlags {
    let options = &request.options;
    let rules = [
        (request.read_only, MountFlags::READ_ONLY),
        (!options.suid.unwrap_or(root), MountFlags::NO_SUID),
        (!options.dev.unwrap_or(false), MountFlags::NO_DEV),
        (!options.exec.unwrap_or(true), MountFlags::NO_EXEC),
        (options.access_times == AccessTimes::Never, MountFlags::NO_ATIME),
        (options.access_times == AccessTimes::Strict, MountFlags::STRICT_ATIME),
        (!options.directory_access_times, MountFlags::NO_DIR_ATIME),
        (options.sync, MountFlags::SYNC),
        (options.dirsync, MountFlags::DIR_SYNC),
    ];
    let chosen = rules.into_iter().filter(|(wanted, _)| *wanted);
    chosen.fold(MountFlags::NONE, |all, (_, flag)| all.with(flag))
}

/// The option text for fusermount, which is `nosuid,nodev` unless told otherwise.
///
/// Only words that every version knows: it refuses others. `suid` and `dev` of a plain user are not passed
/// on, since it would complain about them and give neither.
fn fusermount_options(request: &Request, root: bool) -> OsString {
    let mut text = b"fsname=".to_vec();
    push_escaped(&mut text, &request.source);
    text.extend_from_slice(b",subtype=");
    push_escaped(&mut text, &request.subtype);
    let flags = kernel_flags(request, root);
    let words = [
        (request.options.default_permissions, ",default_permissions"),
        (request.lets_others_in(root), ",allow_other"),
        (flags.contains(MountFlags::READ_ONLY), ",ro"),
        (root && !flags.contains(MountFlags::NO_SUID), ",suid"),
        (root && !flags.contains(MountFlags::NO_DEV), ",dev"),
        (flags.contains(MountFlags::NO_EXEC), ",noexec"),
        (flags.contains(MountFlags::NO_ATIME), ",noatime"),
        (flags.contains(MountFlags::SYNC), ",sync"),
        (flags.contains(MountFlags::DIR_SYNC), ",dirsync"),
    ];
    for (_, word) in words.iter().filter(|(wanted, _)| *wanted) {
        text.extend_from_slice(word.as_bytes());
    }
    OsString::from_vec(text)
}

/// Appends a value so that fusermount reads it as one, whatever is in it.
fn push_escaped(text: &mut Vec<u8>, value: &OsStr) {
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(byte);
    }
}

/// Mounts through fusermount; `direct` says why we could not do it ourselves.
///
/// # Source
/// libfuse `lib/mount.c` (`fuse_mount_fusermount`) and `util/fusermount.c`: the device comes back over the
/// socket whose number is in `_FUSE_COMMFD`.
fn mount_by_fusermount(request: &Request, absolute: &Path, direct: &Error) -> Result<(OwnedFd, PathBuf)> {
    let Some(program) = find_fusermount() else {
        let cause =
            format!("not found; install package fuse3 to mount without privilege (directly: {direct})");
        return Err(Error::new(direct.errno(), "run", "fusermount3", cause));
    };
    let subject = || program.display().to_string();
    let (ours, theirs) = UnixStream::pair()?;
    // The socket is the program's standard input: it needs a number that survives exec, and this one does.
    let child = Command::new(&program)
        .arg("-o")
        .arg(fusermount_options(request, is_root()))
        .arg("--")
        .arg(absolute)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::from(e).during("run", subject()))?;
    let device = kernel::receive_descriptor(ours.as_fd());
    // Its end comes before its words are complete.
    let output = child.wait_with_output().map_err(|e| Error::from(e).during("run", subject()))?;
    if let Ok(Some(device)) = device
        && output.status.success()
    {
        return Ok((device, program));
    }
    let mut cause = words_of(&program, &output.stderr);
    if cause.is_empty() {
        cause = format!("no device came ({})", output.status);
    }
    if is_root() {
        cause = format!("{cause}; and directly: {direct}");
    }
    Err(Error::new(libc::EPERM, "run", subject(), cause))
}

/// What a program said about its failure, in one line, without its name before each.
fn words_of(program: &Path, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let name = format!("{}: ", program.display());
    let base = format!("{}: ", program.file_name().unwrap_or_default().display());
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.map(|line| line.strip_prefix(&name).or(line.strip_prefix(&base)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("; ")
}

/// The program that mounts for plain users: looked for in PATH, then where distributions put it.
fn find_fusermount() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let places: Vec<PathBuf> = env::split_paths(&path).chain(usual).collect();
    let is_program =
        |file: &PathBuf| fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let found = ["fusermount3", "fusermount"]
        .iter()
        .find_map(|name| places.iter().map(|place| place.join(name)).find(is_program))?;
    // It is needed again after the change of directory.
    std::path::absolute(found).ok()
}

/// Asks the mounted file system for the attributes of its root, past every cache; then lets it read ahead.
///
/// Only while a session answers; it says nothing about an inherited device.
///
/// # Errors
/// What the file system answers; ENOTCONN if nobody does; ESTALE if another mount is there.
pub fn check_answer(mounted: &Mounted) -> Result<()> {
    let Some(id) = mounted.mount_id else { return Ok(()) };
    let failed = |error: Error| error.during("check mount", mounted.mount_point.display().to_string());
    let device = kernel::ask_attributes(&mounted.mount_point).map_err(failed)?;
    if mounted.how == How::Direct {
        widen_read_ahead(device);
    }
    match kernel::mount_id(&mounted.mount_point) {
        Ok(found) if found == id => Ok(()),
        Ok(_) => Err(failed(Error::from_errno(libc::ESTALE))),
        Err(error) => Err(failed(error)),
    }
}

/// Makes the kernel read ahead as much as one request can carry, where this process may say so.
///
/// The protocol itself stops at 128 KiB. Only root of the machine may set it; without it large files are read
/// in smaller pieces, and that is all.
fn widen_read_ahead((major, minor): (u32, u32)) {
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let _ = std::fs::write(setting, READ_AHEAD_KIB);
}

/// As much as the largest request carries.
const READ_AHEAD_KIB: &str = "1024";

/// Ends the mount if it is still ours; in any case lazily if it is in use.
///
/// # Errors
/// EPERM if we may not any more, or with the words of fusermount.
pub fn unmount(mounted: &Mounted, how: Detach) -> Result<Unmounted> {
    let Some(id) = mounted.mount_id else { return Ok(Unmounted::NotOurs) };
    // Between this question and the call somebody else can still swap the mounts. The kernel offers no call
    // that ends a mount by its number.
    if kernel::mount_id(&mounted.mount_point).ok() != Some(id) {
        return Ok(Unmounted::NotOurs);
    }
    let failed = |error: Error| error.during("unmount", mounted.mount_point.display().to_string());
    match detach(mounted, how) {
        Err(error) if how == Detach::Now && error.errno() == libc::EBUSY => {
            detach(mounted, Detach::Lazily).map_err(failed)?;
        }
        other => other.map_err(failed)?,
    }
    Ok(Unmounted::Done)
}

fn detach(mounted: &Mounted, how: Detach) -> Result<()> {
    let program = match &mounted.how {
        How::Direct => return kernel::unmount(&mounted.mount_point, how),
        How::Fusermount(program) => program,
        How::Inherited => return Ok(()),
    };
    let words: &[&str] = match how {
        Detach::Now => &["-u", "--"],
        Detach::Lazily => &["-u", "-z", "--"],
    };
    let output = Command::new(program)
        .args(words)
        .arg(&mounted.mount_point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e: io::Error| Error::from(e).during("run", program.display().to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    // It says in words only why it failed. In use is by far the first reason.
    let cause = words_of(program, &output.stderr);
    let errno = if how == Detach::Now { libc::EBUSY } else { libc::EPERM };
    Err(Error::new(errno, "run", program.display().to_string(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request { source: "overlay".into(), ..Request::of(&MountRequest::new("/m")) }
    }

    fn asking(change: impl FnOnce(&mut KernelMountOptions)) -> Request {
        let mut request = request();
        change(&mut request.options);
        request
    }

    #[test]
    fn the_mount_is_named_by_what_was_typed_or_by_the_program() {
        let cases = [
            ("plywood-fuse", None, None, ("plywood-fuse", "plywood-fuse")),
            ("fuse-overlayfs", None, None, ("fuse-overlayfs", "fuse-overlayfs")),
            ("fuse-overlayfs", Some("overlay"), None, ("overlay", "fuse-overlayfs")),
            ("a.out", Some(""), None, ("plywood-fuse", "plywood-fuse")),
            ("a.out", Some("overlay"), Some("typed"), ("typed", "plywood-fuse")),
        ];
        for (program, source, fsname, (shown, subtype)) in cases {
            let mut typed = MountRequest::new("/m");
            typed.program = program.into();
            typed.source = source.map(Into::into);
            typed.kernel_mount.fsname = fsname.map(Into::into);
            let request = Request::of(&typed);
            assert_eq!((request.source, request.subtype), (shown.into(), subtype.into()), "{program}");
        }
    }

    #[test]
    fn paths_of_descriptors_are_told_from_other_paths() {
        let cases = [
            ("/dev/fd/3", Some((3, ""))),
            ("/proc/self/fd/12", Some((12, ""))),
            ("/proc/thread-self/fd/0", Some((0, ""))),
            ("//dev//fd/3/", Some((3, ""))),
            ("/proc/self/fd/12/a/b", Some((12, "a/b"))),
            ("/proc/self/fd/12/fd/7", Some((12, "fd/7"))),
            ("/dev/fd/3/..", Some((3, ".."))),
            ("/dev/fd", None),
            ("/dev/fd/x", None),
            ("/dev/fd/-1", None),
            ("/dev/fd/99999999999", None),
            ("dev/fd/3", None),
            ("/dev/fuse", None),
            ("/proc/self/exe", None),
            ("/proc/1/fd/3", None),
        ];
        for (path, expected) in cases {
            let expected = expected.map(|(fd, rest)| (fd, Path::new(rest)));
            assert_eq!(split_descriptor(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn kernel_flags_have_defaults_by_privilege_and_obey_what_was_typed() {
        let defaults = MountFlags::NO_DEV.with(MountFlags::NO_ATIME);
        assert_eq!(kernel_flags(&request(), true), defaults);
        assert_eq!(kernel_flags(&request(), false), defaults.with(MountFlags::NO_SUID));
        let mut typed = asking(|options| {
            options.suid = Some(false);
            options.dev = Some(true);
            options.exec = Some(false);
            options.access_times = AccessTimes::Relative;
            options.directory_access_times = false;
        });
        typed.read_only = true;
        let expected = MountFlags::READ_ONLY
            .with(MountFlags::NO_SUID)
            .with(MountFlags::NO_EXEC)
            .with(MountFlags::NO_DIR_ATIME);
        assert_eq!(kernel_flags(&typed, true), expected);
        let typed = asking(|options| (options.suid, options.dev) = (Some(true), Some(true)));
        assert_eq!(kernel_flags(&typed, false), MountFlags::NO_ATIME);
    }

    #[test]
    fn a_remount_keeps_what_was_not_typed() {
        let now = MountFlags::NO_SUID.with(MountFlags::NO_EXEC).with(MountFlags::NO_ATIME);
        let typed = Request { read_only: true, ..request() };
        let expected = now.with(MountFlags::READ_ONLY).with(MountFlags::REMOUNT);
        assert_eq!(remount_flags(&typed, now), expected);
        let typed = asking(|options| (options.suid, options.exec) = (Some(true), Some(true)));
        let expected = MountFlags::NO_ATIME.with(MountFlags::REMOUNT);
        assert_eq!(remount_flags(&typed, now.with(MountFlags::READ_ONLY)), expected);
        assert_eq!(remount_flags(&request(), MountFlags::NONE), MountFlags::REMOUNT);
    }

    #[test]
    fn the_kernel_is_told_to_let_others_in_for_root_or_when_asked() {
        let others = |request: &Request, uid| kernel_options(request, 5, uid, 100).ends_with(",allow_other");
        assert_eq!(
            kernel_options(&request(), 5, 1000, 100),
            "fd=5,rootmode=40000,user_id=1000,group_id=100,default_permissions"
        );
        assert!(others(&request(), 0));
        assert!(others(&asking(|o| o.allow_other = Some(true)), 1000));
        assert!(others(&asking(|o| o.allow_root = true), 1000));
        assert!(!others(&asking(|o| o.allow_other = Some(false)), 0));
    }

    #[test]
    fn words_of_fusermount_become_one_line_without_its_name() {
        let said = b"fusermount3: one\n\n/usr/bin/fusermount3: two\nthree\n";
        assert_eq!(words_of(Path::new("/usr/bin/fusermount3"), said), "one; two; three");
    }

    #[test]
    fn fusermount_gets_an_escaped_source_and_only_what_it_grants() {
        let mut typed = asking(|options| {
            options.suid = Some(true);
            options.dev = Some(true);
            options.exec = Some(false);
            options.directory_access_times = false;
        });
        typed.source = "a,b\\c".into();
        typed.read_only = true;
        assert_eq!(
            fusermount_options(&typed, false),
            "fsname=a\\,b\\\\c,subtype=plywood-fuse,default_permissions,ro,noexec,noatime"
        );
        assert_eq!(
            fusermount_options(&asking(|o| o.allow_other = Some(true)), false),
            "fsname=overlay,subtype=plywood-fuse,default_permissions,allow_other,noatime"
        );
    }
}

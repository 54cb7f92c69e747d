//! Mount options: what did the caller ask for?
//!
//! [`parse_command_line`] turns the words of a command line into a [`Command`]. It is a pure function: no
//! file is opened, no path resolved, nothing printed. What should be said on standard error comes back in
//! [`MountRequest::warnings`].
//!
//! - `table` has one row for each option: its name, what it takes, its help text, and what it does.
//! - `split` cuts an option string into items, and `lowerdir=` into paths.
//! - `value` reads the value of one option.
//! - `help` makes the help text, the README table and the version text from the rows.
//!
//! Rules that hold for all options:
//!
//! - Later wins: several `-o` are one list. A second `lowerdir=` replaces the first; `lowerdir+=` appends.
//! - **Index 0 of the lower layers is the top.** Paths stay as typed, bytes and all; a relative one is
//!   resolved from the working directory by whoever opens it.
//! - An option without a row is tolerated with a warning, like an option that takes no value but got one:
//!   callers pass words meant for other file systems. A row without effect is silent.
//! - A known option with a wrong value is an error that names both and says what to write.
//!
//! Absent on purpose: what the disk, the kernel or the caller's privileges allow. `None` and `Auto` leave
//! such choices to the code that can look.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::idmap::{IdMap, Squash};

mod help;
mod split;
mod table;
mod value;

#[cfg(test)]
mod tests;

pub use help::{help, markdown_table, version_text};
pub use split::{OptionItem, split_lowers, split_options, unescape_lower, unescape_path};
pub use table::{OptionRow, Section, Takes, sections};

use split::printable;
use table::{Draft, SwitchEffect};
use value::Given;

/// How long the kernel may keep names and attributes if the caller does not say, in seconds: a year.
///
/// Nobody but the mount changes its layers, so this only has to be long; the kernel is told of the rest.
pub const DEFAULT_ENTRY_TTL_SECS: f64 = 86_400.0 * 365.0;

/// The longest time that `timeout=` can set, in seconds; longer ones are cut to it.
///
/// Far above the 1e9 of fuse-overlayfs, and far below what overflows a `Duration`.
pub const MAX_ENTRY_TTL_SECS: f64 = 1e12;

/// The largest number of threads that `threads=` accepts; above it a mistake is likelier than a wish.
pub const MAX_THREADS: u32 = 1024;

/// What the program shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Print [`help`] on standard output.
    Help,
    /// Print [`version_text`] on standard output.
    Version,
    /// Mount.
    Mount(Box<MountRequest>),
}

/// One mount as the caller asked for it, with the defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct MountRequest {
    /// Where to mount, as typed: the last word. May be `/dev/fd/N`, a device that the caller has opened.
    pub mount_point: PathBuf,
    /// The word before the mount point, as mount(8) helpers put it; it names nothing that is opened.
    pub source: Option<OsString>,
    /// The last component of the name that the program was called by; the natural default of a subtype.
    pub program: OsString,
    /// Stay in the foreground (`-f`, and all that sets `debug`).
    pub foreground: bool,
    /// Tell about each request on standard error.
    pub debug: bool,
    /// The lower layers, as typed, **index 0 is the top**; never empty, except for `remount`.
    pub lowers: Vec<PathBuf>,
    /// The upper layer, as typed. With `read_only` it is the top layer and is not written to.
    pub upper: Option<PathBuf>,
    /// The work directory, as typed; always there if `upper` is and `read_only` is not.
    pub work: Option<PathBuf>,
    /// The mount refuses changes: `ro` was typed last, or there is no upper layer.
    pub read_only: bool,
    /// Nothing is mounted: the flags of the mount that is there change. Layers mean nothing then.
    pub remount: bool,
    /// How directories of lower layers are renamed, and whether redirects are followed.
    pub redirect_dir: RedirectDir,
    /// Copy up attributes without data where only attributes change.
    pub metacopy: bool,
    /// Write `user.overlay.*` attributes; `None` leaves the choice to a probe of the disk.
    pub user_xattr: Option<bool>,
    /// What fsync does.
    pub durability: Durability,
    /// How long the kernel may keep names and attributes, in seconds: 0 to [`MAX_ENTRY_TTL_SECS`].
    pub entry_ttl_secs: f64,
    /// Whether the kernel asks at each open.
    pub open_protocol: OpenProtocol,
    /// Let the kernel collect writes and send them later.
    pub writeback: bool,
    /// Whether callers see extended attributes.
    pub xattrs: XattrMode,
    /// Whether POSIX access control lists are in force.
    pub acl: AclMode,
    /// Whether owner, mode and type are kept in an attribute.
    pub stat_override: StatOverrideMode,
    /// What is shown instead of the owner; the uid and gid asked for beat `squash_to_root`.
    pub squash: Option<Squash>,
    /// How user ids are moved.
    pub uid_map: IdMap,
    /// How group ids are moved.
    pub gid_map: IdMap,
    /// Show one link for each directory instead of counting its children.
    pub static_nlink: bool,
    /// How inode numbers are made when layers are on several disks.
    pub xino: XinoMode,
    /// How many threads answer requests, from 1 to [`MAX_THREADS`]; `None` leaves it to the machine.
    pub threads: Option<usize>,
    /// What the kernel's own mount flags and FUSE's mount data shall be.
    pub kernel_mount: KernelMountOptions,
    /// Lines for standard error, in the order in which their causes were typed; most mounts have none.
    pub warnings: Vec<String>,
}

impl MountRequest {
    /// A request with the defaults of the mount program and no layers yet.
    pub fn new(mount_point: impl Into<PathBuf>) -> Self {
        Self {
            mount_point: mount_point.into(),
            source: None,
            program: OsString::from(help::PROGRAM),
            foreground: false,
            debug: false,
            lowers: Vec::new(),
            upper: None,
            work: None,
            read_only: false,
            remount: false,
            redirect_dir: RedirectDir::Copy,
            metacopy: false,
            user_xattr: None,
            durability: Durability::Durable,
            entry_ttl_secs: DEFAULT_ENTRY_TTL_SECS,
            open_protocol: OpenProtocol::Never,
            writeback: false,
            xattrs: XattrMode::On,
            acl: AclMode::Auto,
            stat_override: StatOverrideMode::Auto,
            squash: None,
            uid_map: IdMap::identity(),
            gid_map: IdMap::identity(),
            static_nlink: false,
            xino: XinoMode::Auto,
            threads: None,
            kernel_mount: KernelMountOptions::default(),
            warnings: Vec::new(),
        }
    }
}

/// How a directory of a lower layer is renamed, and whether redirects found on disk are followed.
///
/// # Source
///
/// `redirect_dir=` in the kernel's overlayfs documentation; `Copy` is plywood's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectDir {
    /// A renamed directory leaves a redirect; redirects are followed.
    On,
    /// Renaming gives EXDEV; redirects are followed.
    Follow,
    /// A renamed directory is copied up whole, so that the upper layer stays plain files; redirects are
    /// followed. The default.
    Copy,
    /// Renaming gives EXDEV; redirects are followed, as the kernel does by default for `off`.
    Off,
    /// Renaming gives EXDEV; redirects are not followed.
    NoFollow,
}

/// What fsync does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// fsync reaches the disk. The default.
    Durable,
    /// Nothing is synced: after a crash of the machine the upper layer is to be thrown away.
    Volatile,
}

/// Whether the kernel asks the program at each open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenProtocol {
    /// Opens are answered by the kernel. The default.
    Never,
    /// Each open and each close is a request.
    Classic,
}

/// Whether callers see extended attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// They are read and written. The default.
    On,
    /// They are not supported, which spares many requests.
    Off,
}

/// Whether POSIX access control lists are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclMode {
    /// If all layers can keep them. The default.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Whether owner, mode and type are kept in an attribute instead of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatOverrideMode {
    /// For each layer whose root has such an attribute. The default.
    Auto,
    /// Never; attributes that are there are not read.
    Off,
    /// As `Auto`, and the upper layer keeps `security.fuseoverlayfs.override_stat` (`xattr_permissions=1`).
    Security,
    /// As `Auto`, and the upper layer keeps `user.containers.override_stat` (`xattr_permissions=2`).
    Containers,
}

/// How inode numbers are made when layers are on several disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XinoMode {
    /// Lasting across mounts if the layers allow it. The default.
    Auto,
    /// Lasting across mounts, or no mount.
    On,
    /// Whatever is cheapest.
    Off,
}

/// When reading a file changes its access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTimes {
    /// Never (`noatime`). The default, as for the peers.
    Never,
    /// When the old one is older than the change, or than a day (`relatime`, `atime`).
    Relative,
    /// Always (`strictatime`).
    Strict,
}

/// What the kernel's own mount flags and FUSE's mount data shall be; `None` if the caller did not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelMountOptions {
    /// Let other users in.
    pub allow_other: Option<bool>,
    /// Let root in, besides the user who mounts.
    pub allow_root: bool,
    /// The kernel checks permissions. On from the start: plywood does not check them itself.
    pub default_permissions: bool,
    /// Honour set-user-id bits and file capabilities.
    pub suid: Option<bool>,
    /// Honour device nodes.
    pub dev: Option<bool>,
    /// Let programs run.
    pub exec: Option<bool>,
    /// When reading changes the access time.
    pub access_times: AccessTimes,
    /// Whether reading a directory changes its access time; without effect if `access_times` is `Never`.
    pub directory_access_times: bool,
    /// Write everything at once.
    pub sync: bool,
    /// Write changes of directories at once.
    pub dirsync: bool,
    /// The source that /proc/mounts shows.
    pub fsname: Option<OsString>,
    /// What /proc/mounts shows behind `fuse.`.
    pub subtype: Option<OsString>,
}

impl Default for KernelMountOptions {
    fn default() -> Self {
        Self {
            allow_other: None,
            allow_root: false,
            default_permissions: true,
            suid: None,
            dev: None,
            exec: None,
            access_times: AccessTimes::Never,
            directory_access_times: true,
            sync: false,
            dirsync: false,
            fsname: None,
            subtype: None,
        }
    }
}

/// Reads a command line: `program` is its word 0, `args` are the rest.
///
/// `--help` and `--version` win over everything else on the line, the first of them if there are several.
///
/// # Errors
///
/// EINVAL, as one line that says what to do: `-o` without options, a known option with a wrong value or
/// without the one it needs, no mount point, no lower layer, an upper layer without work directory (unless
/// `ro`).
///
/// # Source
///
/// The forms that containers/storage, moby, Apptainer and mount.fuse3 use: `-o X`, `-oX`, several of them,
/// a source before the mount point, and the last word wins.
pub fn parse_command_line(program: &OsStr, args: &[OsString]) -> Result<Command> {
    let mut draft = Draft::new(base_name(program));
    let mut option_lists: Vec<&[u8]> = Vec::new();
    let mut words: Vec<&OsString> = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_bytes() {
            b"--" => {
                words.extend(rest.by_ref());
            }
            b"-o" => option_lists.push(rest.next().ok_or_else(lonely_o)?.as_bytes()),
            [b'-', b'o', list @ ..] => option_lists.push(list),
            typed @ [b'-', _, ..] => match table::find_switch(typed) {
                Some(SwitchEffect::Help) => return Ok(Command::Help),
                Some(SwitchEffect::Version) => return Ok(Command::Version),
                Some(SwitchEffect::Foreground) => draft.request.foreground = true,
                Some(SwitchEffect::Debug) => draft.debug(),
                Some(SwitchEffect::Nothing) => {}
                Some(SwitchEffect::NothingWithWord) => {
                    rest.next();
                }
                None => draft.unknown(typed),
            },
            _ => words.push(arg),
        }
    }
    let items = option_lists.into_iter().flat_map(split_options);
    items.into_iter().try_for_each(|item| apply(&mut draft, item))?;

    let Some(mount_point) = words.pop().filter(|word| !word.is_empty()) else {
        return Err(Error::new(
            libc::EINVAL,
            "command line",
            printable(draft.request.program.as_bytes()),
            "no mount point is given: write it as the last word, after -o lowerdir=DIR",
        ));
    };
    draft.request.mount_point = PathBuf::from(mount_point);
    draft.request.source = words.pop().cloned();
    Ok(Command::Mount(Box::new(draft.finish()?)))
}

fn lonely_o() -> Error {
    Error::new(libc::EINVAL, "command line", "-o", "no options follow: write -o lowerdir=DIR MOUNTPOINT")
}

/// The last component of a program name; the default name if there is none.
fn base_name(program: &OsStr) -> OsString {
    Path::new(program).file_name().map_or_else(|| help::PROGRAM.into(), OsStr::to_os_string)
}

fn apply(draft: &mut Draft, item: OptionItem<'_>) -> Result<()> {
    let Some(row) = table::find_option(item.name) else {
        draft.unknown(item.typed);
        return Ok(());
    };
    let refused = |cause: String| Error::new(libc::EINVAL, "mount option", printable(item.typed), cause);
    match (row.takes, item.value) {
        (Takes::Nothing, Some(_)) => {
            draft.unknown(item.typed);
            Ok(())
        }
        (Takes::Value(value), None) => {
            Err(refused(format!("it needs a value: write it as {}={value}", row.name)))
        }
        _ => row.apply(draft, Given(item.value)).map_err(refused),
    }
}

impl Draft {
    fn new(program: OsString) -> Self {
        let request = MountRequest { program, ..MountRequest::new(PathBuf::new()) };
        Self { request, read_only: false, squash: Squash::default(), squash_to_root: false }
    }

    fn unknown(&mut self, typed: &[u8]) {
        self.request.warnings.push(format!("unknown argument ignored: {}", printable(typed)));
    }

    /// Settles what depends on several options, and refuses what does not fit together.
    fn finish(self) -> Result<MountRequest> {
        let Self { mut request, read_only, squash, squash_to_root } = self;
        if request.remount {
            request.read_only = read_only;
            return Ok(request);
        }
        if request.lowers.is_empty() {
            let subject = printable(request.mount_point.as_os_str().as_bytes());
            let cause = "no lower layer is given: add -o lowerdir=DIR, or lowerdir=TOP:NEXT for several";
            return Err(Error::new(libc::EINVAL, "mount", subject, cause));
        }
        if let (Some(upper), None, false) = (&request.upper, &request.work, read_only) {
            let subject = format!("upperdir={}", printable(upper.as_os_str().as_bytes()));
            let cause =
                "no work directory is given: add workdir=DIR on the same disk, or ro to change nothing";
            return Err(Error::new(libc::EINVAL, "mount", subject, cause));
        }
        request.read_only = read_only || request.upper.is_none();
        let root = squash_to_root.then_some(0);
        let squash = Squash { uid: squash.uid.or(root), gid: squash.gid.or(root) };
        request.squash = (squash != Squash::default()).then_some(squash);
        Ok(request)
    }
}

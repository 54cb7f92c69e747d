//! What does each option mean?
//!
//! One row for each name. Help text and README are made from the rows, and the tests try every one of them.
//! A row whose effect is [`Effect::Nothing`] is accepted in silence, whatever its value.

use super::value::{Cause, Given};
use super::{
    AccessTimes, AclMode, Durability, MAX_THREADS, MountRequest, OpenProtocol, RedirectDir, StatOverrideMode,
    XattrMode, XinoMode,
};
use crate::idmap::Squash;

/// A request while options are applied: later ones may still change what earlier ones said.
pub(super) struct Draft {
    /// What has been said so far.
    pub request: MountRequest,
    /// `ro` or `rw`, whichever came last.
    pub read_only: bool,
    /// `squash_to_uid=` and `squash_to_gid=`; they beat `squash_to_root` in any order.
    pub squash: Squash,
    /// `squash_to_root`.
    pub squash_to_root: bool,
}

impl Draft {
    /// Debugging keeps the program in the foreground, where it can be read.
    pub fn debug(&mut self) {
        self.request.debug = true;
        self.request.foreground = true;
    }
}

/// What stands behind the name of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// The bare name; with a value it is an unknown argument.
    Nothing,
    /// `=` and a value, which the help text calls so.
    Value(&'static str),
    /// The bare name, or `=` and a value.
    Optional(&'static str),
}

/// One option: what is typed, and what it means.
pub struct OptionRow {
    /// The name before any `=`. A `*` at the end stands for any text.
    pub name: &'static str,
    /// What stands behind the name.
    pub takes: Takes,
    /// What the option does, in words for a user.
    pub help: &'static str,
    effect: Effect,
}

enum Effect {
    Flag(fn(&mut Draft)),
    Set(fn(&mut Draft, Given<'_>) -> Result<(), Cause>),
    Nothing,
}

impl OptionRow {
    /// True if the option is accepted and does nothing.
    pub fn is_without_effect(&self) -> bool {
        matches!(self.effect, Effect::Nothing)
    }

    pub(super) fn apply(&self, draft: &mut Draft, given: Given<'_>) -> Result<(), Cause> {
        match self.effect {
            Effect::Flag(set) => set(draft),
            Effect::Set(set) => return set(draft, given),
            Effect::Nothing => {}
        }
        Ok(())
    }

    fn matches(&self, name: &[u8]) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix.as_bytes()),
            None => name == self.name.as_bytes(),
        }
    }
}

/// Options that belong together, under one title.
pub struct Section {
    /// The title, without a colon.
    pub title: &'static str,
    /// The options, in the order of the help text.
    pub rows: &'static [OptionRow],
}

/// All options, in the order of the help text.
pub fn sections() -> &'static [Section] {
    SECTIONS
}

pub(super) fn find_option(name: &[u8]) -> Option<&'static OptionRow> {
    SECTIONS.iter().flat_map(|section| section.rows).find(|row| row.matches(name))
}

/// A word of the command line that starts with `-` and is no list of options.
pub(super) struct Switch {
    /// The forms that mean the same.
    pub names: &'static [&'static str],
    /// What it does, in words for a user.
    pub help: &'static str,
    effect: SwitchEffect,
}

#[derive(Clone, Copy)]
pub(super) enum SwitchEffect {
    Help,
    Version,
    Foreground,
    Debug,
    Nothing,
    NothingWithWord,
}

pub(super) fn find_switch(typed: &[u8]) -> Option<SwitchEffect> {
    let is_it = |switch: &&Switch| switch.names.iter().any(|name| name.as_bytes() == typed);
    SWITCHES.iter().find(is_it).map(|switch| switch.effect)
}

pub(super) const SWITCHES: &[Switch] = &[
    switch(&["-f"], "stay in the foreground", SwitchEffect::Foreground),
    switch(&["-d", "--debug"], "tell about each request, in the foreground", SwitchEffect::Debug),
    switch(&["-h", "--help"], "print this text", SwitchEffect::Help),
    switch(&["-V", "--version"], "print the version", SwitchEffect::Version),
    switch(&["-s", "-n", "-v"], "accepted without effect", SwitchEffect::Nothing),
    switch(&["-t"], "accepted without effect, and so is the next word", SwitchEffect::NothingWithWord),
];

const fn switch(names: &'static [&'static str], help: &'static str, effect: SwitchEffect) -> Switch {
    Switch { names, help, effect }
}

/// A row without a value.
const fn flag(name: &'static str, help: &'static str, set: fn(&mut Draft)) -> OptionRow {
    OptionRow { name, takes: Takes::Nothing, help, effect: Effect::Flag(set) }
}

/// A row whose value is read.
const fn row(
    name: &'static str,
    takes: Takes,
    help: &'static str,
    set: fn(&mut Draft, Given<'_>) -> Result<(), Cause>,
) -> OptionRow {
    OptionRow { name, takes, help, effect: Effect::Set(set) }
}

/// A row that is accepted in silence, with or without a value; the help says why.
const fn silent(name: &'static str, help: &'static str) -> OptionRow {
    OptionRow { name, takes: Takes::Optional(""), help, effect: Effect::Nothing }
}

const SECTIONS: &[Section] = &[
    Section { title: "Layers", rows: LAYERS },
    Section { title: "Behaviour", rows: BEHAVIOUR },
    Section { title: "Owners", rows: OWNERS },
    Section { title: "Speed", rows: SPEED },
    Section { title: "Mount flags", rows: MOUNT_FLAGS },
    Section { title: "Accepted without effect", rows: WITHOUT_EFFECT },
];

const LAYERS: &[OptionRow] = &[
    row(
        "lowerdir",
        Takes::Value("DIR[:DIR...]"),
        "the layers to read from, the top one first; write a colon in a path as \\:",
        |draft, given| {
            draft.request.lowers = given.lowers()?;
            Ok(())
        },
    ),
    row(
        "lowerdir+",
        Takes::Value("DIR"),
        "one more layer, below those named so far; its colons need no backslash",
        |draft, given| {
            draft.request.lowers.push(given.lower()?);
            Ok(())
        },
    ),
    row(
        "datadir+",
        Takes::Value("DIR"),
        "the same, with a warning: the kernel hides the names of such a layer, plywood shows them",
        |draft, given| {
            let path = given.lower()?;
            let shown = super::printable(path.as_os_str().as_encoded_bytes());
            draft.request.lowers.push(path);
            draft.request.warnings.push(format!("datadir+={shown}: the names of this layer are not hidden"));
            Ok(())
        },
    ),
    row(
        "upperdir",
        Takes::Value("DIR"),
        "the layer that takes all changes; without it the mount is read-only",
        |draft, given| {
            draft.request.upper = Some(given.path()?);
            Ok(())
        },
    ),
    row(
        "workdir",
        Takes::Value("DIR"),
        "a directory for unfinished files, on the same disk as upperdir and needed with it",
        |draft, given| {
            draft.request.work = Some(given.path()?);
            Ok(())
        },
    ),
    flag("ro", "refuse changes; workdir is not needed then", |draft| draft.read_only = true),
    flag("rw", "allow changes, if there is an upperdir (default)", |draft| draft.read_only = false),
];

const BEHAVIOUR: &[OptionRow] = &[
    row(
        "redirect_dir",
        Takes::Value("copy|on|follow|nofollow|off"),
        "how to rename a directory of a lower layer: copy it up whole, so that upperdir stays plain files \
         (copy, the default); leave a redirect (on); or give EXDEV (the others). Redirects found in layers \
         are followed, except for nofollow",
        |draft, given| {
            draft.request.redirect_dir = given.choice(&[
                ("copy", RedirectDir::Copy),
                ("on", RedirectDir::On),
                ("follow", RedirectDir::Follow),
                ("nofollow", RedirectDir::NoFollow),
                ("off", RedirectDir::Off),
            ])?;
            Ok(())
        },
    ),
    row(
        "metacopy",
        Takes::Optional("on|off"),
        "copy up attributes without data where only attributes change (default off)",
        |draft, given| {
            draft.request.metacopy = given.switch()?;
            Ok(())
        },
    ),
    row(
        "userxattr",
        Takes::Optional("on|off"),
        "keep overlay attributes in user.overlay (default: what the disk allows)",
        |draft, given| {
            draft.request.user_xattr = Some(given.switch()?);
            Ok(())
        },
    ),
    row(
        "noxattrs",
        Takes::Optional("0|1"),
        "callers see no extended attributes and cannot set any",
        |draft, given| {
            draft.request.xattrs = if given.switch()? { XattrMode::Off } else { XattrMode::On };
            Ok(())
        },
    ),
    row("xattr", Takes::Optional("on|off"), "extended attributes (default on)", |draft, given| {
        draft.request.xattrs = if given.switch()? { XattrMode::On } else { XattrMode::Off };
        Ok(())
    }),
    row(
        "acl",
        Takes::Optional("on|off|auto"),
        "POSIX access control lists (default auto: where a layer shows some at its root)",
        |draft, given| {
            draft.request.acl =
                given.choice(&[("on", AclMode::On), ("off", AclMode::Off), ("auto", AclMode::Auto)])?;
            Ok(())
        },
    ),
    flag("noacl", "the same as acl=off", |draft| draft.request.acl = AclMode::Off),
    flag("posix_acl", "the same as acl=on", |draft| draft.request.acl = AclMode::On),
    row(
        "xino",
        Takes::Optional("on|off|auto"),
        "inode numbers last across mounts on one disk and on several, whatever is chosen",
        |draft, given| {
            draft.request.xino =
                given.choice(&[("on", XinoMode::On), ("off", XinoMode::Off), ("auto", XinoMode::Auto)])?;
            Ok(())
        },
    ),
    row(
        "verity",
        Takes::Value("off|on|require"),
        "digests in layers are not checked: require is refused, the others have no effect",
        |_, given| match given.choice(&[("off", true), ("on", true), ("require", false)])? {
            true => Ok(()),
            false => Err("digests are not checked, so they cannot be required: leave the option out".into()),
        },
    ),
    flag("static_nlink", "show one link for each directory, uncounted", |draft| {
        draft.request.static_nlink = true
    }),
    flag("debug", "the same as -d", |draft| draft.debug()),
];

const OWNERS: &[OptionRow] = &[
    row(
        "uidmapping",
        Takes::Value("STORED:SHOWN:LEN[:...]"),
        "show users who are stored as STORED on disk as SHOWN, for LEN ids from there on; a leading colon is \
         allowed",
        |draft, given| {
            draft.request.uid_map = given.id_map()?;
            Ok(())
        },
    ),
    row("gidmapping", Takes::Value("STORED:SHOWN:LEN[:...]"), "the same for groups", |draft, given| {
        draft.request.gid_map = given.id_map()?;
        Ok(())
    }),
    flag("squash_to_root", "show every file as owned by 0:0", |draft| draft.squash_to_root = true),
    row(
        "squash_to_uid",
        Takes::Value("UID"),
        "show every file as owned by this user; beats squash_to_root",
        |draft, given| {
            draft.squash.uid = Some(given.id()?);
            Ok(())
        },
    ),
    row(
        "squash_to_gid",
        Takes::Value("GID"),
        "show every file as owned by this group; beats squash_to_root",
        |draft, given| {
            draft.squash.gid = Some(given.id()?);
            Ok(())
        },
    ),
    row(
        "xattr_permissions",
        Takes::Value("0|1|2"),
        "keep owner, mode and type of new files in an attribute: security.fuseoverlayfs.override_stat (1) or \
         user.containers.override_stat (2); 0, the default, if the upper layer has done so before",
        |draft, given| {
            draft.request.stat_override = given.choice(&[
                ("0", StatOverrideMode::Auto),
                ("1", StatOverrideMode::Security),
                ("2", StatOverrideMode::Containers),
            ])?;
            Ok(())
        },
    ),
    row(
        "stat_override",
        Takes::Value("auto|off|security|containers"),
        "the same in words; off does not even read such attributes",
        |draft, given| {
            draft.request.stat_override = given.choice(&[
                ("auto", StatOverrideMode::Auto),
                ("off", StatOverrideMode::Off),
                ("security", StatOverrideMode::Security),
                ("containers", StatOverrideMode::Containers),
            ])?;
            Ok(())
        },
    ),
];

const SPEED: &[OptionRow] = &[
    flag("volatile", "sync nothing: faster, and upperdir is lost if the machine goes down", |draft| {
        draft.request.durability = Durability::Volatile
    }),
    row(
        "fsync",
        Takes::Optional("0|1"),
        "0 is the same as volatile; the kernel's words auto, strict and volatile are understood, too",
        |draft, given| {
            draft.request.durability = match given.0 {
                Some(b"volatile") => Durability::Volatile,
                Some(b"auto" | b"strict") => Durability::Durable,
                _ => durability(given)?,
            };
            Ok(())
        },
    ),
    row(
        "sync",
        Takes::Optional("0|1"),
        "with a value the same as fsync; alone, write everything at once",
        |draft, given| {
            match given.0 {
                Some(_) => draft.request.durability = durability(given)?,
                None => draft.request.kernel_mount.sync = true,
            }
            Ok(())
        },
    ),
    row(
        "timeout",
        Takes::Value("SECONDS"),
        "how long the kernel keeps names and attributes (default a year); 0 keeps nothing",
        |draft, given| {
            draft.request.entry_ttl_secs = given.seconds()?;
            Ok(())
        },
    ),
    row(
        "writeback",
        Takes::Optional("on|off"),
        "let the kernel collect writes and send them later (default off)",
        |draft, given| {
            draft.request.writeback = given.switch()?;
            Ok(())
        },
    ),
    row(
        "open",
        Takes::Value("on|off"),
        "whether the kernel asks plywood at each open and close (default off)",
        |draft, given| {
            draft.request.open_protocol =
                if given.switch()? { OpenProtocol::Classic } else { OpenProtocol::Never };
            Ok(())
        },
    ),
    flag("no_open", "the same as open=off", |draft| draft.request.open_protocol = OpenProtocol::Never),
    row(
        "threads",
        Takes::Value("N"),
        "how many threads answer requests (default: what the machine has)",
        |draft, given| {
            draft.request.threads = Some(given.count(MAX_THREADS)?);
            Ok(())
        },
    ),
];

fn durability(given: Given<'_>) -> Result<Durability, Cause> {
    Ok(if given.switch()? { Durability::Durable } else { Durability::Volatile })
}

const MOUNT_FLAGS: &[OptionRow] = &[
    row("allow_other", Takes::Optional("on|off"), "let other users in", |draft, given| {
        draft.request.kernel_mount.allow_other = Some(given.switch()?);
        Ok(())
    }),
    flag("allow_root", "let root in, besides the user who mounts", |draft| {
        draft.request.kernel_mount.allow_root = true
    }),
    flag("default_permissions", "the kernel checks permissions (always on)", |draft| {
        draft.request.kernel_mount.default_permissions = true
    }),
    flag("suid", "honour set-user-id bits", |draft| draft.request.kernel_mount.suid = Some(true)),
    flag("nosuid", "ignore set-user-id bits", |draft| draft.request.kernel_mount.suid = Some(false)),
    flag("dev", "honour device nodes", |draft| draft.request.kernel_mount.dev = Some(true)),
    flag("nodev", "ignore device nodes", |draft| draft.request.kernel_mount.dev = Some(false)),
    flag("exec", "let programs run", |draft| draft.request.kernel_mount.exec = Some(true)),
    flag("noexec", "let no program run", |draft| draft.request.kernel_mount.exec = Some(false)),
    flag("noatime", "reading changes no access time (default)", |draft| {
        draft.request.kernel_mount.access_times = AccessTimes::Never
    }),
    flag("atime", "the same as relatime", |draft| {
        draft.request.kernel_mount.access_times = AccessTimes::Relative
    }),
    flag("relatime", "reading changes outdated access times", |draft| {
        draft.request.kernel_mount.access_times = AccessTimes::Relative
    }),
    flag("strictatime", "reading always changes the access time", |draft| {
        draft.request.kernel_mount.access_times = AccessTimes::Strict
    }),
    flag("diratime", "the same for directories (default)", |draft| {
        draft.request.kernel_mount.directory_access_times = true
    }),
    flag("nodiratime", "reading a directory changes no access time", |draft| {
        draft.request.kernel_mount.directory_access_times = false
    }),
    flag("async", "write later (default)", |draft| draft.request.kernel_mount.sync = false),
    flag("dirsync", "write changes of directories at once", |draft| {
        draft.request.kernel_mount.dirsync = true
    }),
    row("fsname", Takes::Value("TEXT"), "the source that /proc/mounts shows", |draft, given| {
        draft.request.kernel_mount.fsname = Some(given.word());
        Ok(())
    }),
    row(
        "subtype",
        Takes::Value("TEXT"),
        "what /proc/mounts shows behind \"fuse.\" (default: the program's name)",
        |draft, given| {
            draft.request.kernel_mount.subtype = Some(given.word());
            Ok(())
        },
    ),
    flag(
        "remount",
        "change the mount flags of a running mount, as mount -o remount does; layers stay",
        |draft| draft.request.remount = true,
    ),
];

const WITHOUT_EFFECT: &[OptionRow] = &[
    silent("context", "SELinux labels belong to the caller's mount; quotes are understood"),
    silent("fscontext", "as context"),
    silent("defcontext", "as context"),
    silent("rootcontext", "as context"),
    silent("seclabel", "as context"),
    silent("threaded", "see threads"),
    silent("fast_ino", "tuning of fuse-overlayfs"),
    silent("fast_ino_check", "as fast_ino"),
    silent("ino32_t", "inode numbers are 64 bits wide"),
    silent("plugins", "there are no layer plugins; a lower layer that asks for one is refused"),
    silent("index", "kernel overlayfs only"),
    silent("nfs_export", "kernel overlayfs only"),
    silent("uuid", "kernel overlayfs only"),
    silent("override_creds", "kernel overlayfs only"),
    silent("nooverride_creds", "kernel overlayfs only"),
    silent("lazytime", "times are kept by the disks below"),
    silent("nolazytime", "as lazytime"),
    silent("norelatime", "see strictatime"),
    silent("nostrictatime", "see relatime"),
    silent("kernel_cache", "see timeout"),
    silent("auto_cache", "as kernel_cache"),
    silent("noauto_cache", "as kernel_cache"),
    silent("max_write", "the largest size that the kernel takes is used"),
    silent("max_read", "as max_write"),
    silent("big_writes", "as max_write"),
    silent("splice_read", "tuning of libfuse"),
    silent("splice_write", "tuning of libfuse"),
    silent("splice_move", "tuning of libfuse"),
    silent("no_splice_read", "tuning of libfuse"),
    silent("no_splice_write", "tuning of libfuse"),
    silent("no_splice_move", "tuning of libfuse"),
    silent("clone_fd", "tuning of libfuse"),
    silent("max_idle_threads", "tuning of libfuse"),
    silent("max_threads", "tuning of libfuse; see threads"),
    silent("nonempty", "a mount point may hold files"),
    silent("private", "propagation is the caller's"),
    silent("rprivate", "as private"),
    silent("shared", "as private"),
    silent("rshared", "as private"),
    silent("slave", "as private"),
    silent("rslave", "as private"),
    silent("unbindable", "as private"),
    silent("runbindable", "as private"),
    silent("defaults", "for mount(8)"),
    silent("auto", "for mount(8)"),
    silent("noauto", "for mount(8)"),
    silent("user", "for mount(8)"),
    silent("nouser", "for mount(8)"),
    silent("users", "for mount(8)"),
    silent("nousers", "for mount(8)"),
    silent("owner", "for mount(8)"),
    silent("group", "for mount(8)"),
    silent("nofail", "for mount(8)"),
    silent("_netdev", "for mount(8)"),
    silent("comment", "for mount(8)"),
    silent("x-*", "for mount(8)"),
    silent("X-*", "for mount(8)"),
];

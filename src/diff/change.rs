//! What differs between two files or two paths: decided from what is known of them, without asking a disk.
//!
//! The rules are containerd's, since both have to find the same changes: see [`judge`] for what makes a file another
//! one, and [`order`] for which path comes first.

use crate::types::Timestamp;
use plywood_fuse::types::{Device, Kind};
use std::cmp::Ordering;

/// How a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content, its attributes or its kind is another.
    Modified,
    /// It is gone; so is everything below it.
    Removed,
}

/// One path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path from the root of the tree, without a slash at its front.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
    /// What it is now, or what it was if it is gone.
    pub meta: Meta,
}

/// Which file of the disk it is, whatever its names: the same value, the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// The device.
    pub dev: u64,
    /// The inode number on it.
    pub ino: u64,
}

/// What is known of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-user-id, set-group-id and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The number of a device.
    pub device: Device,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// How many names the disk says it has; perhaps more than the tree shows.
    pub links: u32,
    /// Which file it is.
    pub id: FileId,
}

impl Meta {
    /// True for a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// True for a file that may have other names in the tree.
    pub fn has_other_names(&self) -> bool {
        !self.is_dir() && self.links > 1
    }
}

/// Which extended attributes belong to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Xattrs {
    /// `security.capability` alone, as containerd has it.
    #[default]
    Caps,
    /// Also `user.*`, except what layers and snapshotters keep there for themselves.
    User,
}

/// The attribute that is always kept.
pub const CAPABILITY: &[u8] = b"security.capability";

/// Attributes that say how a layer or a snapshotter keeps something, and not what a user wrote.
const NOT_KEPT: [&[u8]; 4] =
    [b"user.overlay.", b"user.fuseoverlayfs.", b"user.containers.override", b"user.plywood."];

impl Xattrs {
    /// True for an attribute that belongs to a file.
    pub fn keeps(self, name: &[u8]) -> bool {
        name == CAPABILITY
            || self == Xattrs::User
                && name.starts_with(b"user.")
                && !NOT_KEPT.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// What two files with the same path are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// One file, or equal.
    Same,
    /// Not equal.
    Different,
    /// Equal if their attributes are.
    IfAttributes,
    /// Equal if their attributes are and what they hold: the content of a file, the target of a symlink.
    IfContent,
}

/// Judges two files with the same path.
///
/// Of directories the time does not count. A time without nanoseconds may have been cut off when it was stored in an
/// archive, so where both have none the content decides.
///
/// # Source
/// `sameFile` of containerd's continuity (`fs/path.go`) and `compareSysStat` (`fs/diff_unix.go`).
pub fn judge(was: &Meta, is: &Meta) -> Verdict {
    if was.id == is.id {
        return Verdict::Same;
    }
    let attributes = |m: &Meta| (m.kind, m.mode, m.uid, m.gid, m.device);
    if attributes(was) != attributes(is) {
        return Verdict::Different;
    }
    if is.is_dir() {
        return Verdict::IfAttributes;
    }
    if was.size_bytes != is.size_bytes || was.mtime != is.mtime {
        return Verdict::Different;
    }
    let holds_nothing = is.kind != Kind::Symlink && is.size_bytes == 0;
    if is.mtime.nanos == 0 && !holds_nothing { Verdict::IfContent } else { Verdict::IfAttributes }
}

/// The order of paths in a layer: a slash sorts before every other byte, so that what is below a directory comes
/// right after it.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Meta {
        Meta {
            kind: Kind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            device: Device::default(),
            size_bytes: 10,
            mtime: Timestamp { secs: 1000, nanos: 0 },
            links: 1,
            id: FileId { dev: 1, ino: 1 },
        }
    }

    fn other(change: impl FnOnce(&mut Meta)) -> Meta {
        let mut other = Meta { id: FileId { dev: 1, ino: 2 }, ..file() };
        change(&mut other);
        other
    }

    #[test]
    fn what_makes_a_file_another_one() {
        let at = |secs, nanos| Timestamp { secs, nanos };
        let cases = [
            (Verdict::IfContent, other(|_| ())),
            (Verdict::IfContent, other(|m| m.links = 5)),
            (Verdict::Different, other(|m| m.mode = 0o4644)),
            (Verdict::Different, other(|m| m.uid = 9)),
            (Verdict::Different, other(|m| m.gid = 9)),
            (Verdict::Different, other(|m| m.kind = Kind::Fifo)),
            (Verdict::Different, other(|m| m.size_bytes = 11)),
            (Verdict::Different, other(|m| m.mtime = at(1001, 0))),
            (Verdict::Different, other(|m| m.mtime = at(1000, 1))),
            (Verdict::Same, Meta { mode: 0, ..file() }),
        ];
        for (expected, meta) in cases {
            assert_eq!(judge(&file(), &meta), expected, "{meta:?}");
        }
    }

    #[test]
    fn the_content_decides_only_where_both_times_may_be_cut_off() {
        let with = |m: Meta, nanos, kind, size_bytes| Meta {
            mtime: Timestamp { secs: 1000, nanos },
            kind,
            size_bytes,
            ..m
        };
        for (nanos, kind, size, expected) in [
            (0, Kind::File, 10, Verdict::IfContent),
            (0, Kind::File, 0, Verdict::IfAttributes),
            (0, Kind::Symlink, 10, Verdict::IfContent),
            (0, Kind::Fifo, 0, Verdict::IfAttributes),
            (5, Kind::File, 10, Verdict::IfAttributes),
            (5, Kind::Symlink, 10, Verdict::IfAttributes),
        ] {
            let (was, is) = (with(file(), nanos, kind, size), with(other(|_| ()), nanos, kind, size));
            assert_eq!(judge(&was, &is), expected, "{nanos} {kind:?} {size}");
        }
    }

    #[test]
    fn of_directories_neither_time_nor_size_counts() {
        let dir = |m: Meta| Meta { kind: Kind::Dir, ..m };
        let changed = dir(other(|m| (m.size_bytes, m.mtime.secs) = (4096, 5)));
        assert_eq!(judge(&dir(file()), &changed), Verdict::IfAttributes);
        let wider = dir(other(|m| m.mode = 0o755));
        assert_eq!(judge(&dir(file()), &wider), Verdict::Different);
    }

    #[test]
    fn what_is_below_a_directory_comes_right_after_it() {
        let sorted: [&[u8]; 7] = [b"a", b"a/b", b"a/b/c", b"a/b-c", b"a\x01", b"a-b", b"ab"];
        for (i, a) in sorted.iter().enumerate() {
            for (j, b) in sorted.iter().enumerate() {
                assert_eq!(order(a, b), i.cmp(&j), "{} {}", a.escape_ascii(), b.escape_ascii());
            }
        }
    }

    #[test]
    fn attributes_of_layers_do_not_belong_to_files() {
        let rows: [(&[u8], bool, bool); 9] = [
            (b"security.capability", true, true),
            (b"user.note", false, true),
            (b"user.overlay.opaque", false, false),
            (b"user.fuseoverlayfs.opaque", false, false),
            (b"user.containers.override_stat", false, false),
            (b"user.plywood.x", false, false),
            (b"trusted.x", false, false),
            (b"security.selinux", false, false),
            (b"system.posix_acl_access", false, false),
        ];
        for (name, caps, user) in rows {
            let kept = (Xattrs::Caps.keeps(name), Xattrs::User.keeps(name));
            assert_eq!(kept, (caps, user), "{}", name.escape_ascii());
        }
    }
}

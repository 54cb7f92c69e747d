//! What a member gets beside its content: whose it is, its mode, its times, its attributes. Decided by values alone.

use crate::archive::Entry;
use crate::types::Timestamp;
use plywood_fuse::idmap::Owner;
use plywood_fuse::types::{Kind, SetTime, Time};

/// The attributes of a member, bounded to what a disk takes.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// User and group; `None` leaves it to whoever makes it.
    pub owner: Option<Owner>,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub perm: u32,
    /// When it was used and changed; `None` leaves it to the clock.
    pub times: Option<Times>,
    /// Extended attributes, name and value.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Attributes<'a> {
    /// Those of a member.
    pub fn of(entry: &'a Entry) -> Attributes<'a> {
        Attributes {
            owner: Some(Owner { uid: entry.uid, gid: entry.gid }),
            perm: entry.mode & 0o7777,
            times: Some(Times::of(entry)),
            xattrs: &entry.xattrs,
        }
    }

    /// Those of a directory that one of the members lies in, and that none describes.
    pub fn of_missing_parent() -> Attributes<'static> {
        Attributes { owner: None, perm: 0o755, times: None, xattrs: &[] }
    }
}

/// The times that a file gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
}

/// The last moment that Go's nanoseconds reach, in seconds and nanoseconds: in the year 2262.
const LAST: Timestamp = Timestamp { secs: 9_223_372_036, nanos: 854_775_807 };

impl Times {
    /// Those of a member: it was not used before it was changed.
    ///
    /// # Source
    /// containerd's `boundTime` and `latestTime`: what is out of bounds is the beginning of 1970.
    pub fn of(entry: &Entry) -> Times {
        let used = entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime));
        Times { atime: bound(used), mtime: bound(entry.mtime) }
    }

    /// For the call that sets both.
    pub fn to_set(self) -> (Option<SetTime>, Option<SetTime>) {
        (Some(SetTime::At(self.atime)), Some(SetTime::At(self.mtime)))
    }
}

fn bound(time: Timestamp) -> Time {
    let sound = (Timestamp::default()..=LAST).contains(&time) && time.nanos < 1_000_000_000;
    if sound { Time { secs: time.secs, nanos: time.nanos } } else { Time::default() }
}

/// True for an attribute that no archive sets: those are for root of the machine alone, and the marks of layers are
/// among them.
pub fn is_left_out(name: &[u8]) -> bool {
    name.starts_with(b"trusted.")
}

/// Whether a file goes without an attribute that the disk refuses with this errno; else that is a failure.
pub fn goes_without(name: &[u8], kind: Kind, errno: i32) -> bool {
    match errno {
        libc::EOPNOTSUPP => true,
        // Only files and directories can have attributes of users.
        libc::EPERM => name.starts_with(b"user.") && !matches!(kind, Kind::File | Kind::Dir),
        _ => false,
    }
}

/// True for the attribute that a change of owner takes away.
pub fn is_capability(name: &[u8]) -> bool {
    name == b"security.capability"
}

/// True for an access control list, of which the permission bits are a part.
pub fn is_access_list(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::EntryKind;

    fn at(secs: i64, nanos: u32) -> Timestamp {
        Timestamp { secs, nanos }
    }

    fn entry(mtime: Timestamp, atime: Option<Timestamp>) -> Entry {
        Entry {
            path: b"a".to_vec(),
            kind: EntryKind::File,
            mode: 0o104_755,
            uid: 1,
            gid: 2,
            size_bytes: 0,
            mtime,
            atime,
            xattrs: Vec::new(),
        }
    }

    #[test]
    fn times_are_between_1970_and_the_last_nanosecond_and_use_is_not_before_change() {
        let time = |secs, nanos| Time { secs, nanos };
        for (mtime, atime, used, changed) in [
            (at(5, 1), None, time(5, 1), time(5, 1)),
            (at(5, 1), Some(at(4, 0)), time(5, 1), time(5, 1)),
            (at(5, 1), Some(at(6, 0)), time(6, 0), time(5, 1)),
            (at(-1, 999_999_999), None, time(0, 0), time(0, 0)),
            (at(-5, 0), Some(at(7, 7)), time(7, 7), time(0, 0)),
            (LAST, None, time(LAST.secs, LAST.nanos), time(LAST.secs, LAST.nanos)),
            (at(LAST.secs, LAST.nanos + 1), None, time(0, 0), time(0, 0)),
            (at(i64::MAX, 0), None, time(0, 0), time(0, 0)),
            (at(i64::MIN, 0), Some(at(i64::MAX, 5)), time(0, 0), time(0, 0)),
            (at(1, 1_000_000_000), None, time(0, 0), time(0, 0)),
        ] {
            let times = Times::of(&entry(mtime, atime));
            assert_eq!((times.atime, times.mtime), (used, changed), "{mtime:?} {atime:?}");
        }
    }

    #[test]
    fn a_mode_is_permission_bits_and_no_type() {
        let entry = entry(at(0, 0), None);
        assert_eq!(Attributes::of(&entry).perm, 0o4755);
    }

    #[test]
    fn attributes_that_are_refused_are_told_apart() {
        for (name, kind, errno, goes) in [
            (&b"user.a"[..], Kind::File, libc::EOPNOTSUPP, true),
            (b"security.selinux", Kind::File, libc::EOPNOTSUPP, true),
            (b"user.a", Kind::Symlink, libc::EPERM, true),
            (b"user.a", Kind::Char, libc::EPERM, true),
            (b"user.a", Kind::File, libc::EPERM, false),
            (b"user.a", Kind::Dir, libc::EPERM, false),
            (b"security.capability", Kind::Symlink, libc::EPERM, false),
            (b"security.capability", Kind::File, libc::EPERM, false),
            (b"user.a", Kind::File, libc::ENOSPC, false),
            (b"user.a", Kind::File, libc::ERANGE, false),
        ] {
            assert_eq!(goes_without(name, kind, errno), goes, "{} {kind:?} {errno}", name.escape_ascii());
        }
        assert!(is_left_out(b"trusted.overlay.opaque") && !is_left_out(b"user.trusted.a"));
    }
}

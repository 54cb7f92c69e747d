//! May this caller do this? What the kernel decides with `default_permissions`, as functions of values.
//!
//! For the path-level API of the library, where no kernel stands in front. A question is answered from the
//! attributes and the lists of the files it is about, and from who asks; nothing is read or changed here. User 0
//! is root and has the capabilities that matter for files: CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_CHOWN, CAP_FSETID,
//! CAP_MKNOD, CAP_SYS_ADMIN.
//!
//! Deliberately absent: search permission on the way to a file (ask [`may_access`] for each directory), whether
//! names exist or directories are empty, read-only mounts, immutable and append-only flags, security modules,
//! and what the `fs.protected_*` settings add. File capabilities are also the caller's: `security.capability`
//! goes away at each write, truncation and change of owner of a regular file, whoever does it.
//!
//! What is said here was compared with a running kernel, by random files, lists and callers (Linux 6.18: ext4
//! and tmpfs).

mod acl;
mod setattr;
mod xattr;

pub use acl::Acl;
pub use setattr::{Through, kill_privileges_on_write, may_set_attr, perm_after_acl};
pub(crate) use xattr::ACL_ACCESS;
pub use xattr::{lists_xattr, may_get_xattr, may_remove_xattr, may_set_xattr};

use crate::error::{Error, Result};
use crate::types::{Attr, Device, Identity, Kind};

const S_ISUID: u32 = libc::S_ISUID;
const S_ISGID: u32 = libc::S_ISGID;
const S_ISVTX: u32 = libc::S_ISVTX;
/// The group's execute bit: without it, the setgid bit of a file once meant mandatory locks, so some rules that
/// take the setgid bit away ask for it.
const S_IXGRP: u32 = libc::S_IXGRP;

/// What a caller wants to do with a file: any of read, write, execute (for a directory: search).
///
/// The bits are those of `access(2)`, and of one digit of a mode. The default wants nothing, which is always
/// granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Read the content; list the directory.
    pub const READ: Access = Access(4);
    /// Write the content; create and remove names in the directory.
    pub const WRITE: Access = Access(2);
    /// Execute the file; search the directory.
    pub const EXECUTE: Access = Access(1);

    /// The mask of `access(2)`: R_OK, W_OK, X_OK; other bits are dropped.
    pub const fn from_mask(mask: u32) -> Access {
        Access((mask & 0o7) as u8)
    }

    /// Both this and `other`.
    pub const fn union(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }

    /// True if everything in `other` is wanted.
    pub const fn contains(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if the low three bits of `perm` grant all of it.
    const fn is_within(self, perm: u32) -> bool {
        self.0 as u32 & !perm == 0
    }
}

/// May `who` use the file in this way? `acl` is its access list, if it has one.
///
/// The owner is judged by the mode. Others are judged by the list, unless the group bits of the mode (its mask)
/// are all clear: then, as in the kernel, the list is passed over, and a named user counts as group or other.
/// Root may do everything, but execute only what somebody may execute; directories it may always search.
///
/// # Errors
/// EACCES if not.
///
/// # Source
/// `generic_permission` and `acl_permission_check` of Linux.
pub fn may_access(attr: &Attr, acl: Option<&Acl>, who: &Identity, want: Access) -> Result<()> {
    let granted = if who.uid == attr.uid {
        want.is_within(attr.perm >> 6)
    } else {
        match acl {
            Some(acl) if attr.perm & 0o070 != 0 => acl.evaluate(attr, who, want),
            _ if who.in_group(attr.gid) => want.is_within(attr.perm >> 3),
            _ => want.is_within(attr.perm),
        }
    };
    let overridden =
        is_root(who) && (attr.kind == Kind::Dir || !want.contains(Access::EXECUTE) || attr.perm & 0o111 != 0);
    if granted || overridden { Ok(()) } else { Err(Error::from_errno(libc::EACCES)) }
}

/// May `who` make a new name in the directory? `acl` is the access list of the directory.
///
/// For a node that is neither file, directory nor link, ask [`may_make_node`] as well.
///
/// # Errors
/// EACCES without the right to write and search `dir`.
///
/// # Source
/// `may_create` and `may_o_create` of Linux.
pub fn may_create(dir: &Attr, acl: Option<&Acl>, who: &Identity) -> Result<()> {
    may_access(dir, acl, who, Access::WRITE.union(Access::EXECUTE))
}

/// May `who` make a node of this kind, in a directory where it [may create](may_create)?
///
/// Everybody may make everything but devices. A character device 0/0 is no device but a whiteout: everybody may.
///
/// # Errors
/// EPERM for a device, unless root asks.
///
/// # Source
/// `vfs_mknod` of Linux.
pub fn may_make_node(kind: Kind, device: Device, who: &Identity) -> Result<()> {
    match kind {
        Kind::Char if device == Device::default() => Ok(()),
        Kind::Char | Kind::Block if !is_root(who) => Err(Error::from_errno(libc::EPERM)),
        _ => Ok(()),
    }
}

/// What the caller takes the thing to be that it removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A directory: `rmdir`, or renaming a directory over it.
    Dir,
    /// Anything else: `unlink`, or renaming something else over it.
    NotDir,
    /// Whatever it is: the source of a rename, and both sides of an exchange.
    Any,
}

/// May `who` remove the name of `victim` from the directory? `dir_acl` is the access list of the directory.
///
/// In a sticky directory only the owner of the victim, the owner of the directory, and root may. To move a
/// directory under another parent, the caller also needs [`may_access`] with WRITE on what is moved, since its
/// `..` changes; the kernel asks this last.
///
/// # Errors
/// In this order: EACCES without the right to write and search `dir`; EPERM by the sticky rule; ENOTDIR or
/// EISDIR if the victim is not what was expected.
///
/// # Source
/// `may_delete` and `__check_sticky` of Linux.
pub fn may_delete(
    dir: &Attr,
    dir_acl: Option<&Acl>,
    victim: &Attr,
    who: &Identity,
    expected: Expected,
) -> Result<()> {
    may_access(dir, dir_acl, who, Access::WRITE.union(Access::EXECUTE))?;
    if dir.perm & S_ISVTX != 0 && !is_owner_or_root(victim, who) && who.uid != dir.uid {
        return Err(Error::from_errno(libc::EPERM));
    }
    match (expected, victim.kind) {
        (Expected::Dir, kind) if kind != Kind::Dir => Err(Error::from_errno(libc::ENOTDIR)),
        (Expected::NotDir, Kind::Dir) => Err(Error::from_errno(libc::EISDIR)),
        _ => Ok(()),
    }
}

/// What a new file begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits with setuid, setgid and sticky.
    pub perm: u32,
    /// The access list to set, if `perm` does not say it all.
    pub acl: Option<Acl>,
    /// The default list to set; only on a directory.
    pub default_acl: Option<Acl>,
}

/// Owner, group, mode and lists of a file that `who` makes in `dir` with the mode `perm`.
///
/// `default_acl` is the default list of `dir`; where there is one, it stands in for the umask. A setgid directory
/// hands its group down, and to directories its setgid bit; an executable file of that group is not setgid
/// unless its maker is in the group or root. mkdir knows no setuid and setgid bits; the mode of a symbolic link
/// is always 0777.
///
/// # Source
/// `vfs_prepare_mode`, `mode_strip_sgid`, `inode_init_owner` and `posix_acl_create` of Linux.
pub fn new_file_owner(
    dir: &Attr,
    default_acl: Option<&Acl>,
    who: &Identity,
    perm: u32,
    kind: Kind,
) -> NewFile {
    let from_dir = dir.perm & S_ISGID != 0;
    let mut new = NewFile {
        uid: who.uid,
        gid: if from_dir { dir.gid } else { who.gid },
        perm: perm & 0o7777,
        acl: None,
        default_acl: None,
    };
    match kind {
        Kind::Symlink => {
            new.perm = 0o777;
            return new;
        }
        Kind::Dir => new.perm &= S_ISVTX | 0o777,
        // Asked before the umask, as the kernel does: the umask could take the execute bit away.
        _ if from_dir && perm & S_IXGRP != 0 && !is_member_or_root(dir.gid, who) => new.perm &= !S_ISGID,
        _ => {}
    }
    match default_acl {
        None => new.perm &= !(who.umask & 0o777),
        Some(default_acl) => {
            (new.acl, new.perm) = default_acl.create_masq(new.perm);
            new.default_acl = (kind == Kind::Dir).then(|| default_acl.clone());
        }
    }
    if kind == Kind::Dir && from_dir {
        new.perm |= S_ISGID;
    }
    new
}

/// CAP_DAC_OVERRIDE and the others of the module's first lines.
fn is_root(who: &Identity) -> bool {
    who.uid == 0
}

/// `inode_owner_or_capable` of Linux.
fn is_owner_or_root(attr: &Attr, who: &Identity) -> bool {
    who.uid == attr.uid || is_root(who)
}

/// `in_group_or_capable` of Linux.
fn is_member_or_root(gid: u32, who: &Identity) -> bool {
    who.in_group(gid) || is_root(who)
}

#[cfg(test)]
mod testing {
    use crate::types::{Attr, Device, Identity, Ino, Kind, Time};

    /// The owner of most files in these tests.
    pub(super) const OWNER: u32 = 1000;

    pub(super) fn attr(kind: Kind, perm: u32, uid: u32, gid: u32) -> Attr {
        Attr {
            ino: Ino(7),
            kind,
            perm,
            nlink: 1,
            uid,
            gid,
            device: Device::default(),
            size_bytes: 0,
            blocks: 0,
            block_size: 4096,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: None,
        }
    }

    /// A user with these groups (the first is the primary one, at least one) and no umask.
    pub(super) fn who(uid: u32, gids: &[u32]) -> Identity {
        Identity { uid, gid: gids[0], groups: gids[1..].to_vec(), umask: 0 }
    }

    pub(super) fn errno<T>(result: crate::error::Result<T>) -> i32 {
        result.map_or_else(|error| error.errno(), |_| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{OWNER, attr, errno, who};
    use super::*;

    const KINDS: [Kind; 7] =
        [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block];
    const EVERY_DIGIT: std::ops::RangeInclusive<u32> = 0..=7;

    #[test]
    fn without_a_list_exactly_one_digit_of_the_mode_decides() {
        let member = who(5, &[9, 20]);
        let table = [("owner", who(OWNER, &[20]), 6), ("group", member, 3), ("other", who(5, &[9]), 0)];
        for (case, who, shift) in table {
            for digit in EVERY_DIGIT {
                // The other two digits say the opposite.
                let perm = (digit << shift) | (((!digit & 7) * 0o111) & !(7 << shift));
                for want in EVERY_DIGIT {
                    let answer = errno(may_access(
                        &attr(Kind::File, perm, OWNER, 20),
                        None,
                        &who,
                        Access::from_mask(want),
                    ));
                    let expected = if want & !digit == 0 { 0 } else { libc::EACCES };
                    assert_eq!(answer, expected, "{case}, mode {perm:o}, wants {want}");
                }
            }
        }
    }

    #[test]
    fn root_may_everything_but_execute_what_nobody_may() {
        let root = who(0, &[0]);
        for kind in KINDS {
            for want in EVERY_DIGIT {
                let want = Access::from_mask(want);
                for (perm, execute) in
                    [(0, false), (0o666, false), (0o100, true), (0o010, true), (0o001, true)]
                {
                    let allowed = kind == Kind::Dir || execute || !want.contains(Access::EXECUTE);
                    let answer = errno(may_access(&attr(kind, perm, OWNER, 20), None, &root, want));
                    assert_eq!(answer == 0, allowed, "{kind:?} {perm:o} {want:?}");
                }
            }
        }
    }

    #[test]
    fn the_list_decides_unless_owner_or_empty_mask() {
        let named = |mask| Acl::from_parts(0, &[(5, 7)], 0, &[(30, 7)], Some(mask), 0);
        let table: &[(&str, u32, Acl, Identity, u32, bool)] = &[
            ("the owner is judged by the mode", 0o770, named(7), who(OWNER, &[1]), 7, true),
            ("a named user by the list", 0o070, named(7), who(5, &[1]), 7, true),
            ("a named group by the list", 0o070, named(7), who(6, &[30]), 7, true),
            ("the mask limits", 0o040, named(4), who(5, &[1]), 2, false),
            ("a stranger", 0o070, named(7), who(6, &[1]), 4, false),
            ("an empty mask: the named user counts as other", 0o704, named(0), who(5, &[1]), 4, true),
            ("an empty mask: or as group", 0o704, named(0), who(5, &[20]), 4, false),
            ("root", 0o070, named(7), who(0, &[0]), 7, true),
        ];
        for (case, perm, acl, who, want, allowed) in table {
            let file = attr(Kind::File, *perm, OWNER, 20);
            let answer = errno(may_access(&file, Some(acl), who, Access::from_mask(*want)));
            assert_eq!(answer, if *allowed { 0 } else { libc::EACCES }, "{case}");
        }
    }

    #[test]
    fn access_bits_are_those_of_the_system_call() {
        let all = Access::READ.union(Access::WRITE).union(Access::EXECUTE);
        assert_eq!(Access::from_mask((libc::R_OK | libc::W_OK | libc::X_OK) as u32), all);
        assert_eq!(Access::from_mask(libc::R_OK as u32), Access::READ);
        assert_eq!(Access::from_mask(libc::W_OK as u32), Access::WRITE);
        assert_eq!(Access::from_mask(libc::X_OK as u32), Access::EXECUTE);
        assert_eq!(Access::from_mask(!7), Access::default());
        assert!(all.contains(Access::WRITE) && !Access::WRITE.contains(all));
    }

    #[test]
    fn creating_needs_both_write_and_search() {
        for digit in EVERY_DIGIT {
            let dir = attr(Kind::Dir, digit, OWNER, 20);
            let expected = if digit & 3 == 3 { 0 } else { libc::EACCES };
            assert_eq!(errno(may_create(&dir, None, &who(5, &[9]))), expected, "{digit}");
            assert_eq!(errno(may_create(&dir, None, &who(0, &[9]))), 0, "root, {digit}");
        }
    }

    #[test]
    fn only_root_makes_devices_but_everybody_whiteouts() {
        let device = Device { major: 1, minor: 3 };
        for kind in KINDS {
            for (device, whiteout) in [(device, false), (Device::default(), kind == Kind::Char)] {
                let refused = matches!(kind, Kind::Char | Kind::Block) && !whiteout;
                let expected = if refused { libc::EPERM } else { 0 };
                assert_eq!(
                    errno(may_make_node(kind, device, &who(5, &[9]))),
                    expected,
                    "{kind:?} {device:?}"
                );
                assert_eq!(errno(may_make_node(kind, device, &who(0, &[0]))), 0, "root, {kind:?} {device:?}");
            }
        }
    }

    #[test]
    fn a_sticky_directory_protects_files_of_others() {
        let victim_owner = 6;
        // The callers: owner of the victim, owner of the directory, root, a stranger, a member of the group.
        let table = [
            (0o777, 6, &[9], 0),
            (0o777, 5, &[9], 0),
            (0o1777, 6, &[9], 0),
            (0o1777, OWNER, &[9], 0),
            (0o1777, 0, &[9], 0),
            (0o1777, 5, &[9], libc::EPERM),
            (0o1777, 5, &[20], libc::EPERM),
            // Without the right to write the sticky bit is not asked.
            (0o1775, 5, &[9], libc::EACCES),
            (0o1775, 6, &[9], libc::EACCES),
            (0o1775, 6, &[20], 0),
            (0o1000, OWNER, &[9], libc::EACCES),
            (0o1000, 0, &[9], 0),
        ];
        for (perm, uid, gids, expected) in table {
            let dir = attr(Kind::Dir, perm, OWNER, 20);
            let victim = attr(Kind::File, 0, victim_owner, 20);
            let answer = errno(may_delete(&dir, None, &victim, &who(uid, gids), Expected::NotDir));
            assert_eq!(answer, expected, "{perm:o}, user {uid}, groups {gids:?}");
        }
    }

    #[test]
    fn what_is_removed_must_be_what_was_expected() {
        let dir = attr(Kind::Dir, 0o1777, OWNER, 20);
        for kind in KINDS {
            let victim = attr(kind, 0, 6, 20);
            let is_dir = kind == Kind::Dir;
            let table = [
                (Expected::Dir, if is_dir { 0 } else { libc::ENOTDIR }),
                (Expected::NotDir, if is_dir { libc::EISDIR } else { 0 }),
                (Expected::Any, 0),
            ];
            for (expected, answer) in table {
                let ask = |who: &Identity| errno(may_delete(&dir, None, &victim, who, expected));
                assert_eq!(ask(&who(6, &[9])), answer, "{kind:?} {expected:?}");
                // The sticky rule comes first.
                assert_eq!(ask(&who(5, &[9])), libc::EPERM, "{kind:?} {expected:?}");
            }
        }
    }

    #[test]
    fn a_directory_list_is_asked_for_creating_and_removing() {
        let acl = Acl::from_parts(7, &[(5, 3)], 0, &[], Some(7), 0);
        let dir = attr(Kind::Dir, 0o770, OWNER, 20);
        let victim = attr(Kind::File, 0, 6, 20);
        for (uid, expected) in [(5, 0), (6, libc::EACCES)] {
            let who = who(uid, &[9]);
            assert_eq!(errno(may_create(&dir, Some(&acl), &who)), expected);
            assert_eq!(errno(may_delete(&dir, Some(&acl), &victim, &who, Expected::NotDir)), expected);
        }
    }

    #[test]
    fn a_new_file_takes_owner_group_and_mode_from_caller_and_directory() {
        let member = who(5, &[9, 20]);
        let stranger = who(5, &[9]);
        let with_umask = Identity { umask: 0o027, ..stranger.clone() };
        let root = who(0, &[0]);
        let (file, dir, fifo) = (Kind::File, Kind::Dir, Kind::Fifo);
        // directory mode, caller, mode asked for, kind, group, mode
        let table = [
            (0o755, &stranger, 0o7777, file, 9, 0o7777),
            (0o755, &with_umask, 0o7777, file, 9, 0o7750),
            (0o755, &with_umask, 0o666, fifo, 9, 0o640),
            (0o755, &with_umask, 0o7777, dir, 9, 0o1750),
            (0o755, &with_umask, 0, Kind::Symlink, 9, 0o777),
            (0o2755, &stranger, 0o644, file, 20, 0o644),
            (0o2755, &stranger, 0o7777, dir, 20, 0o3777),
            (0o2755, &stranger, 0, Kind::Symlink, 20, 0o777),
            // A stranger makes no setgid program of the directory's group.
            (0o2755, &stranger, 0o6755, file, 20, 0o4755),
            (0o2755, &stranger, 0o2755, fifo, 20, 0o755),
            (0o2755, &stranger, 0o2745, file, 20, 0o2745),
            (0o2755, &member, 0o2755, file, 20, 0o2755),
            (0o2755, &root, 0o2755, file, 20, 0o2755),
            (0o0755, &stranger, 0o2755, file, 9, 0o2755),
            // The execute bit that the umask takes counts.
            (0o2755, &Identity { umask: 0o010, ..stranger.clone() }, 0o2755, file, 20, 0o745),
            // Bits that are no mode, and a umask with more than nine bits.
            (0o755, &Identity { umask: !0, ..stranger.clone() }, !0, file, 9, 0o7000),
        ];
        for (dir_perm, who, asked, kind, gid, perm) in table {
            let new = new_file_owner(&attr(dir, dir_perm, OWNER, 20), None, who, asked, kind);
            let expected = NewFile { uid: who.uid, gid, perm, acl: None, default_acl: None };
            assert_eq!(new, expected, "in {dir_perm:o} by {who:?}: {kind:?} {asked:o}");
        }
    }

    #[test]
    fn a_default_list_stands_in_for_the_umask() {
        let who = Identity { umask: 0o777, ..who(5, &[9]) };
        let parent = attr(Kind::Dir, 0o2777, OWNER, 20);
        let default = Acl::from_parts(7, &[(6, 7)], 5, &[], Some(7), 5);
        let limited = Acl::from_parts(6, &[(6, 7)], 5, &[], Some(4), 4);
        let new = |perm, kind| {
            let new = new_file_owner(&parent, Some(&default), &who, perm, kind);
            (new.perm, new.acl, new.default_acl)
        };
        assert_eq!(new(0o644, Kind::File), (0o644, Some(limited.clone()), None));
        assert_eq!(new(0o644, Kind::Dir), (0o2644, Some(limited), Some(default.clone())));
        assert_eq!(new(0o644, Kind::Symlink), (0o777, None, None));
        assert_eq!(new(0o2777, Kind::File), (0o775, Some(default.clone()), None));
        // A list that a mode can express is kept as default list only.
        let plain = Acl::from_perm(0o750);
        let made = new_file_owner(&parent, Some(&plain), &who, 0o777, Kind::Dir);
        assert_eq!((made.perm, made.acl, made.default_acl), (0o2750, None, Some(plain)));
    }
}

//! May this caller change these attributes, and what else changes with them?

use super::{
    Access, Acl, S_ISGID, S_ISUID, S_IXGRP, is_member_or_root, is_owner_or_root, is_root, may_access,
};
use crate::error::{Error, Result};
use crate::types::{Attr, Identity, Kind, SetAttr, SetTime};

/// How the caller reached the file whose attributes it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// By a name: what it may do is asked now.
    Path,
    /// By a handle opened for writing: the right to truncate was asked at the open.
    WriteHandle,
}

/// May `who` make this change? Returns the change to make: the one asked for, and what follows from it.
///
/// - Owner: only root gives a file away. Group: the owner may choose among its own groups.
/// - Mode: owner and root. The setgid bit is dropped unless the caller is root or in the (new) group.
/// - Times: owner and root; setting both to [`SetTime::Now`] also whoever may write.
/// - Size: whoever may write, or has a handle for writing.
///
/// A change of owner or group, even to what it was and even by root, clears setuid, and setgid where a program
/// could use it, except on directories; a change of size does as [`kill_privileges_on_write`] says. A mode that
/// is given along with them is taken as set after them.
///
/// `acl` is the access list of the file. Whoever sets a mode has to rewrite the list by [`Acl::chmod_masq`].
///
/// # Errors
/// In this order: for a size EISDIR, EINVAL (not a regular file, or above 2^63 - 1) and EACCES; for both times to
/// now EACCES; for the mode of a symbolic link EOPNOTSUPP; for the id -1 EINVAL; then EPERM.
///
/// # Source
/// `setattr_prepare`, `notify_change`, `chown_common`, `vfs_utimes` and `vfs_truncate` of Linux; chown(2),
/// utimensat(2).
pub fn may_set_attr(
    attr: &Attr,
    acl: Option<&Acl>,
    who: &Identity,
    change: &SetAttr,
    through: Through,
) -> Result<SetAttr> {
    if let Some(size_bytes) = change.size_bytes {
        may_set_size(attr, acl, who, size_bytes, through)?;
    }
    let owner = is_owner_or_root(attr, who);
    let touch = change.atime == Some(SetTime::Now) && change.mtime == Some(SetTime::Now);
    if touch && !owner {
        may_access(attr, acl, who, Access::WRITE)?;
    }
    if change.perm.is_some() && attr.kind == Kind::Symlink {
        return Err(Error::from_errno(libc::EOPNOTSUPP));
    }
    if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
        return Err(Error::from_errno(libc::EINVAL));
    }
    let uid_ok = change.uid.is_none_or(|uid| is_root(who) || who.uid == attr.uid && uid == attr.uid);
    let my_gid = |gid| who.in_group(gid) || gid == attr.gid;
    let gid_ok = change.gid.is_none_or(|gid| is_root(who) || who.uid == attr.uid && my_gid(gid));
    let for_owner = change.perm.is_some() || !touch && (change.atime.is_some() || change.mtime.is_some());
    if !uid_ok || !gid_ok || for_owner && !owner {
        return Err(Error::from_errno(libc::EPERM));
    }
    Ok(SetAttr { perm: perm_to_set(attr, who, change), ..*change })
}

fn may_set_size(
    attr: &Attr,
    acl: Option<&Acl>,
    who: &Identity,
    size_bytes: u64,
    through: Through,
) -> Result<()> {
    match attr.kind {
        _ if i64::try_from(size_bytes).is_err() => Err(Error::from_errno(libc::EINVAL)),
        Kind::Dir => Err(Error::from_errno(libc::EISDIR)),
        Kind::File if through == Through::Path => may_access(attr, acl, who, Access::WRITE),
        Kind::File => Ok(()),
        _ => Err(Error::from_errno(libc::EINVAL)),
    }
}

/// The mode to set along with an allowed change, if it is not to stay as it is.
fn perm_to_set(attr: &Attr, who: &Identity, change: &SetAttr) -> Option<u32> {
    if let Some(perm) = change.perm {
        let keep = is_member_or_root(change.gid.unwrap_or(attr.gid), who);
        return Some(perm & 0o7777 & if keep { !0 } else { !S_ISGID });
    }
    let mut perm = attr.perm;
    if change.size_bytes.is_some() {
        perm = kill_privileges_on_write(attr, who).unwrap_or(perm);
    }
    if (change.uid.is_some() || change.gid.is_some()) && attr.kind != Kind::Dir {
        perm &= without_privileges(attr, who);
    }
    (perm != attr.perm).then_some(perm)
}

/// The mode that a write by `who` leaves behind, if it is another: setuid is cleared, and so is setgid where the
/// group may execute or the writer is not in the group. Root's writes clear nothing, and only regular files have
/// something to lose.
///
/// # Source
/// `setattr_should_drop_suidgid` of Linux.
pub fn kill_privileges_on_write(attr: &Attr, who: &Identity) -> Option<u32> {
    let perm = without_privileges(attr, who);
    (attr.kind == Kind::File && !is_root(who) && perm != attr.perm).then_some(perm)
}

/// The mode without setuid, and without setgid by the rule of `setattr_should_drop_sgid` of Linux.
fn without_privileges(attr: &Attr, who: &Identity) -> u32 {
    let drop_setgid = attr.perm & S_IXGRP != 0 || !is_member_or_root(attr.gid, who);
    attr.perm & !S_ISUID & if drop_setgid { !S_ISGID } else { !0 }
}

/// What setting an access list does: the list to store, `None` if the mode says it all, and the new mode.
///
/// The mode follows the list, and loses the setgid bit unless the caller is root or in the group. Whether the
/// caller may set it is asked of [`may_set_xattr`](super::may_set_xattr).
///
/// Removing a list is another matter: the mode stays as it is, as on ext4. (On tmpfs the setgid bit goes then,
/// too: there the file systems of Linux differ.)
///
/// # Source
/// `posix_acl_update_mode` of Linux.
pub fn perm_after_acl(attr: &Attr, who: &Identity, acl: Acl) -> (Option<Acl>, u32) {
    let mut perm = attr.perm & !0o777 | acl.perm();
    if !is_member_or_root(attr.gid, who) {
        perm &= !S_ISGID;
    }
    (acl.equivalent_mode().is_none().then_some(acl), perm)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OWNER, attr, errno, who};
    use super::*;
    use crate::types::Time;

    const AT: SetTime = SetTime::At(Time { secs: 5, nanos: 0 });
    const NOW: SetTime = SetTime::Now;

    fn ask(attr: &Attr, who: &Identity, change: SetAttr) -> Result<SetAttr> {
        may_set_attr(attr, None, who, &change, Through::Path)
    }

    #[test]
    fn only_root_gives_away_and_the_owner_chooses_among_its_groups() {
        let file = attr(Kind::File, 0o666, OWNER, 20);
        /// Caller, its groups, new owner, new group, errno.
        type Row<'a> = (u32, &'a [u32], Option<u32>, Option<u32>, i32);
        let table: &[Row] = &[
            (0, &[0], Some(5), Some(6), 0),
            (OWNER, &[9], Some(OWNER), None, 0),
            (OWNER, &[9], Some(5), None, libc::EPERM),
            (OWNER, &[9], None, Some(9), 0),
            (OWNER, &[9, 30], None, Some(30), 0),
            (OWNER, &[9], None, Some(20), 0),
            (OWNER, &[9], None, Some(30), libc::EPERM),
            (OWNER, &[9], Some(OWNER), Some(9), 0),
            (OWNER, &[9], Some(5), Some(9), libc::EPERM),
            (5, &[20], Some(5), None, libc::EPERM),
            (5, &[20], Some(OWNER), None, libc::EPERM),
            (5, &[20], None, Some(20), libc::EPERM),
            // -1 is "leave it" to the disk, never an id.
            (0, &[0], Some(u32::MAX), None, libc::EINVAL),
            (0, &[0], None, Some(u32::MAX), libc::EINVAL),
            (0, &[0], Some(u32::MAX - 1), Some(u32::MAX - 1), 0),
        ];
        for &(caller, gids, uid, gid, expected) in table {
            let answer = errno(ask(&file, &who(caller, gids), SetAttr { uid, gid, ..SetAttr::default() }));
            assert_eq!(answer, expected, "{caller} {gids:?}: chown {uid:?} {gid:?}");
        }
    }

    #[test]
    fn a_chown_takes_setuid_and_setgid_from_all_but_directories() {
        let owner = who(OWNER, &[9]);
        let member = who(OWNER, &[9, 20]);
        let root = who(0, &[0]);
        let table = [
            // kind, mode, caller, mode to set
            (Kind::File, 0o755, &owner, None),
            (Kind::File, 0o4755, &owner, Some(0o755)),
            (Kind::File, 0o7755, &owner, Some(0o1755)),
            (Kind::File, 0o6755, &root, Some(0o755)),
            // Setgid without the group's execute bit stays for members and root.
            (Kind::File, 0o6745, &owner, Some(0o745)),
            (Kind::File, 0o6745, &member, Some(0o2745)),
            (Kind::File, 0o2745, &member, None),
            (Kind::File, 0o2745, &root, None),
            (Kind::Fifo, 0o4755, &root, Some(0o755)),
            (Kind::Dir, 0o6755, &owner, None),
            (Kind::Dir, 0o6755, &root, None),
        ];
        for (kind, perm, who, expected) in table {
            let change = SetAttr { gid: Some(9), ..SetAttr::default() };
            let todo = ask(&attr(kind, perm, OWNER, 20), who, change).unwrap();
            assert_eq!(todo, SetAttr { perm: expected, ..change }, "{kind:?} {perm:o} by {who:?}");
        }
    }

    #[test]
    fn a_chown_to_the_same_owner_is_a_chown() {
        let file = attr(Kind::File, 0o4755, OWNER, 20);
        let change = SetAttr { uid: Some(OWNER), ..SetAttr::default() };
        assert_eq!(ask(&file, &who(OWNER, &[9]), change).unwrap().perm, Some(0o755));
    }

    #[test]
    fn a_chmod_is_for_the_owner_and_setgid_for_members() {
        let chmod = |kind, caller, gids: &[u32], perm, gid| {
            let change = SetAttr { perm: Some(perm), gid, ..SetAttr::default() };
            ask(&attr(kind, 0, OWNER, 20), &who(caller, gids), change).map(|todo| todo.perm)
        };
        for kind in [Kind::File, Kind::Dir, Kind::Socket] {
            assert_eq!(errno(chmod(kind, 5, &[20], 0o644, None)), libc::EPERM);
            assert_eq!(chmod(kind, OWNER, &[9], 0o7777, None).unwrap(), Some(0o5777));
            assert_eq!(chmod(kind, OWNER, &[9], 0o2644, None).unwrap(), Some(0o644));
            assert_eq!(chmod(kind, OWNER, &[9, 20], 0o7777, None).unwrap(), Some(0o7777));
            assert_eq!(chmod(kind, 0, &[0], 0o7777, None).unwrap(), Some(0o7777));
            // Along with a chown, the new group counts, and the mode is set after it.
            assert_eq!(chmod(kind, OWNER, &[9], 0o6777, Some(9)).unwrap(), Some(0o6777));
            assert_eq!(chmod(kind, OWNER, &[9, 20], 0o6777, Some(20)).unwrap(), Some(0o6777));
            assert_eq!(chmod(kind, OWNER, &[9], 0o6777, Some(20)).unwrap(), Some(0o4777));
            // Type bits are not part of a mode here.
            assert_eq!(chmod(kind, 0, &[0], libc::S_IFREG | 0o644, None).unwrap(), Some(0o644));
        }
        assert_eq!(errno(chmod(Kind::Symlink, 0, &[0], 0o777, None)), libc::EOPNOTSUPP);
        assert_eq!(errno(chmod(Kind::Symlink, 5, &[9], 0o777, None)), libc::EOPNOTSUPP);
    }

    #[test]
    fn both_times_to_now_is_for_writers_any_other_time_for_the_owner() {
        let table = [
            // access time, modification time, errno of a writer, of a reader
            (None, None, 0, 0),
            (Some(NOW), Some(NOW), 0, libc::EACCES),
            (Some(NOW), None, libc::EPERM, libc::EPERM),
            (None, Some(NOW), libc::EPERM, libc::EPERM),
            (Some(AT), Some(NOW), libc::EPERM, libc::EPERM),
            (Some(NOW), Some(AT), libc::EPERM, libc::EPERM),
            (Some(AT), Some(AT), libc::EPERM, libc::EPERM),
            (None, Some(AT), libc::EPERM, libc::EPERM),
        ];
        for (atime, mtime, writer, reader) in table {
            let change = SetAttr { atime, mtime, ..SetAttr::default() };
            let file = attr(Kind::File, 0o464, OWNER, 20);
            for (caller, gid, expected) in [(5, 20, writer), (5, 9, reader), (OWNER, 9, 0), (0, 0, 0)] {
                let answer = ask(&file, &who(caller, &[gid]), change);
                assert_eq!(errno(answer), expected, "{atime:?} {mtime:?} by {caller}");
            }
        }
        // A list can make a writer; a handle for writing does not.
        let file = attr(Kind::File, 0o660, OWNER, 20);
        let acl = Acl::from_parts(6, &[(5, 6)], 0, &[], Some(6), 0);
        let touch = SetAttr { atime: Some(NOW), mtime: Some(NOW), ..SetAttr::default() };
        let user = who(5, &[9]);
        assert_eq!(errno(may_set_attr(&file, Some(&acl), &user, &touch, Through::Path)), 0);
        assert_eq!(errno(may_set_attr(&file, None, &user, &touch, Through::WriteHandle)), libc::EACCES);
    }

    #[test]
    fn a_truncation_is_for_writers_of_regular_files() {
        let truncate = |kind, caller, size_bytes, through| {
            let change = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
            errno(may_set_attr(&attr(kind, 0o600, OWNER, 20), None, &who(caller, &[9]), &change, through))
        };
        let largest = i64::MAX as u64;
        let table = [
            (Kind::File, OWNER, 0, Through::Path, 0),
            (Kind::File, OWNER, largest, Through::Path, 0),
            (Kind::File, OWNER, largest + 1, Through::Path, libc::EINVAL),
            (Kind::File, 0, 0, Through::Path, 0),
            (Kind::File, 5, 0, Through::Path, libc::EACCES),
            (Kind::File, 5, 0, Through::WriteHandle, 0),
            (Kind::File, 5, largest + 1, Through::WriteHandle, libc::EINVAL),
            (Kind::Dir, 0, 0, Through::Path, libc::EISDIR),
            (Kind::Dir, 5, largest + 1, Through::Path, libc::EINVAL),
            (Kind::Fifo, 0, 0, Through::Path, libc::EINVAL),
            (Kind::Symlink, 0, 0, Through::Path, libc::EINVAL),
        ];
        for (kind, caller, size, through, expected) in table {
            assert_eq!(truncate(kind, caller, size, through), expected, "{kind:?} by {caller}: {size}");
        }
    }

    #[test]
    fn a_write_takes_setuid_and_setgid_unless_root_writes() {
        let member = who(5, &[9, 20]);
        let table = [
            // kind, mode, writer, mode left
            (Kind::File, 0o777, who(5, &[9]), None),
            (Kind::File, 0o7777, who(5, &[9]), Some(0o1777)),
            (Kind::File, 0o4666, who(5, &[9]), Some(0o666)),
            (Kind::File, 0o2776, who(OWNER, &[9]), Some(0o776)),
            (Kind::File, 0o2766, who(OWNER, &[9]), Some(0o766)),
            (Kind::File, 0o2766, member.clone(), None),
            (Kind::File, 0o6766, member.clone(), Some(0o2766)),
            (Kind::File, 0o2776, member, Some(0o776)),
            (Kind::File, 0o6777, who(0, &[0]), None),
            (Kind::Fifo, 0o6777, who(5, &[9]), None),
            (Kind::Dir, 0o6777, who(5, &[9]), None),
        ];
        for (kind, perm, who, expected) in table {
            let file = attr(kind, perm, OWNER, 20);
            assert_eq!(kill_privileges_on_write(&file, &who), expected, "{kind:?} {perm:o} by {who:?}");
            if kind == Kind::File {
                let change = SetAttr { size_bytes: Some(0), ..SetAttr::default() };
                let todo = may_set_attr(&file, None, &who, &change, Through::WriteHandle).unwrap();
                assert_eq!(todo, SetAttr { perm: expected, ..change }, "truncate {perm:o} by {who:?}");
            }
        }
    }

    #[test]
    fn of_several_changes_the_first_refusal_is_told() {
        let file = attr(Kind::File, 0o644, OWNER, 20);
        let all = SetAttr {
            perm: Some(0),
            uid: Some(1),
            gid: Some(1),
            size_bytes: Some(0),
            atime: Some(AT),
            mtime: None,
        };
        let stranger = who(5, &[9]);
        assert_eq!(errno(ask(&file, &stranger, all)), libc::EACCES);
        assert_eq!(errno(ask(&file, &stranger, SetAttr { size_bytes: None, ..all })), libc::EPERM);
        assert_eq!(ask(&file, &who(0, &[0]), all).unwrap(), all);
        assert_eq!(ask(&file, &stranger, SetAttr::default()).unwrap(), SetAttr::default());
    }

    #[test]
    fn a_list_sets_the_mode_and_costs_a_non_member_setgid() {
        let named = Acl::from_parts(7, &[(6, 7)], 1, &[], Some(5), 4);
        let plain = Acl::from_perm(0o751);
        let table = [
            (who(OWNER, &[9]), &named, Some(named.clone()), 0o5754),
            (who(OWNER, &[20]), &named, Some(named.clone()), 0o7754),
            (who(0, &[0]), &named, Some(named.clone()), 0o7754),
            (who(OWNER, &[9]), &plain, None, 0o5751),
            (who(OWNER, &[20]), &plain, None, 0o7751),
        ];
        for (who, acl, stored, perm) in table {
            let file = attr(Kind::File, 0o7000, OWNER, 20);
            assert_eq!(perm_after_acl(&file, &who, acl.clone()), (stored, perm), "{acl:?} by {who:?}");
        }
    }
}

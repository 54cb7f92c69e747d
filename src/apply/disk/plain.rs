//! Owners in a whole tree: the disk has to take them.

use super::SameOwner;
use crate::apply::attributes::Attributes;
use crate::apply::report::Applied;
use crate::sys::userns::in_initial_userns;
use plywood_fuse::error::{Error as SysError, Result as SysResult};
use plywood_fuse::idmap::Owner;
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::{self, Place};

/// A whole tree.
pub(super) struct Plain {
    same_owner: SameOwner,
    takes_devices: bool,
}

/// The bits that give whoever runs a file the rights of its owner or group.
const PRIVILEGES: u32 = 0o6000;

/// Permission bits that no file has.
const UNKNOWN: u32 = u32::MAX;

impl Plain {
    pub fn new(same_owner: SameOwner) -> Plain {
        Plain { same_owner, takes_devices: effective_uid() == 0 && in_initial_userns() }
    }

    pub fn goes_without_owners(&self) -> bool {
        self.same_owner != SameOwner::Keep
    }

    pub fn takes_devices(&self) -> bool {
        self.takes_devices
    }

    /// Gives a file its owner. Returns the permission bits that it has then, and those that it is to have.
    pub fn give_owner(
        &self,
        place: Place<'_>,
        stat: &Stat,
        attributes: &Attributes<'_>,
        path: &[u8],
        report: &mut Applied,
    ) -> SysResult<Option<(u32, u32)>> {
        let (now, perm) = (stat.mode & 0o7777, attributes.perm);
        let without = perm & !PRIVILEGES;
        let Some(owner) = attributes.owner else { return Ok(Some((now, perm))) };
        let is_owner = (stat.uid, stat.gid) == (owner.uid, owner.gid);
        match self.same_owner {
            _ if is_owner => return Ok(Some((now, perm))),
            SameOwner::Ignore => return Ok(Some((now, without))),
            SameOwner::Keep | SameOwner::IfPossible => {}
        }
        match sys::stat::chown(place, Some(owner.uid), Some(owner.gid)) {
            // The disk may take these bits along with the owner that was.
            Ok(()) if now & PRIVILEGES != 0 => Ok(Some((UNKNOWN, perm))),
            Ok(()) => Ok(Some((now, perm))),
            Err(e) if e.is_owner_refused() && self.same_owner == SameOwner::IfPossible => {
                report.owner_left_out(path, owner.uid, owner.gid);
                Ok(Some((now, without)))
            }
            Err(e) => Err(explain(owner, e)),
        }
    }
}

/// What a refused owner means, in words that help.
fn explain(owner: Owner, e: SysError) -> SysError {
    let Owner { uid, gid } = owner;
    let cause = match e.errno() {
        libc::EINVAL => format!(
            "this user namespace has no ids {uid}:{gid}: give the user more subordinate ids in /etc/subuid and \
             /etc/subgid"
        ),
        libc::EPERM => format!(
            "user {} may not give files to {uid}:{gid}: run it as root or inside a user namespace, or leave owners out",
            effective_uid()
        ),
        _ => format!("{uid}:{gid}"),
    };
    let errno = if e.errno() == libc::EINVAL { libc::EPERM } else { e.errno() };
    SysError::new(errno, "set owner", format!("{uid}:{gid}"), cause)
}

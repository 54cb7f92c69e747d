//! May this caller read, set, remove or see this extended attribute?
//!
//! The rules go by the first part of the name. Names that start with none of the four known words are treated
//! as the kernel does before it finds no handler for them: like the content of the file.

use super::{Access, Acl, S_ISVTX, is_owner_or_root, is_root, may_access};
use crate::error::{Error, Result};
use crate::types::{Attr, Identity, Kind};

/// The attribute that holds a file's access list.
pub(crate) const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that holds a directory's default list.
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// May `who` read the attribute `name`? `acl` is the access list of the file.
///
/// `security.*` and the lists are open to whoever reaches the file.
///
/// # Errors
/// `trusted.*`: ENODATA unless root. `user.*`: ENODATA on what is neither regular file nor directory, else
/// EACCES without the right to read. Lists: EOPNOTSUPP on a symbolic link.
///
/// # Source
/// `xattr_permission` and `vfs_get_acl` of Linux; xattr(7).
pub fn may_get_xattr(name: &[u8], attr: &Attr, acl: Option<&Acl>, who: &Identity) -> Result<()> {
    if is_acl_name(name) {
        return not_on_symlink(attr);
    }
    match Space::of(name) {
        Space::Security | Space::System => Ok(()),
        Space::Trusted if !is_root(who) => Err(Error::from_errno(libc::ENODATA)),
        Space::Trusted => Ok(()),
        Space::User if !holds_user_attributes(attr) => Err(Error::from_errno(libc::ENODATA)),
        Space::User | Space::Unknown => may_access(attr, acl, who, Access::READ),
    }
}

/// May `who` set the attribute `name`? `acl` is the access list of the file.
///
/// # Errors
/// `trusted.*` and `security.*`: EPERM unless root. `user.*`: EPERM on what is neither regular file nor directory,
/// and on a sticky directory unless its owner or root; else EACCES without the right to write. Lists: EOPNOTSUPP
/// on a symbolic link; EACCES for a default list on anything but a directory; EPERM unless owner or root. (What
/// the value has to be, [`Acl::parse`] says, and the kernel asks that first.)
///
/// # Source
/// `xattr_permission`, `cap_inode_setxattr` and `set_posix_acl` of Linux; xattr(7).
pub fn may_set_xattr(name: &[u8], attr: &Attr, acl: Option<&Acl>, who: &Identity) -> Result<()> {
    if is_acl_name(name) {
        not_on_symlink(attr)?;
        return match name {
            ACL_DEFAULT if attr.kind != Kind::Dir => Err(Error::from_errno(libc::EACCES)),
            _ if !is_owner_or_root(attr, who) => Err(Error::from_errno(libc::EPERM)),
            _ => Ok(()),
        };
    }
    match Space::of(name) {
        Space::System => Ok(()),
        Space::Trusted | Space::Security if !is_root(who) => Err(Error::from_errno(libc::EPERM)),
        Space::Trusted | Space::Security => Ok(()),
        Space::User if !holds_user_attributes(attr) => Err(Error::from_errno(libc::EPERM)),
        Space::User if is_sticky_dir(attr) && !is_owner_or_root(attr, who) => {
            Err(Error::from_errno(libc::EPERM))
        }
        Space::User | Space::Unknown => may_access(attr, acl, who, Access::WRITE),
    }
}

/// May `who` remove the attribute `name`, or set a list without entries? `acl` is the access list of the file.
///
/// Removing the default list of what is not a directory is allowed to all: there is none, and nothing happens.
///
/// # Errors
/// As [`may_set_xattr`], else.
///
/// # Source
/// `vfs_remove_acl` and `set_posix_acl` of Linux.
pub fn may_remove_xattr(name: &[u8], attr: &Attr, acl: Option<&Acl>, who: &Identity) -> Result<()> {
    match attr.kind {
        Kind::Dir | Kind::Symlink => may_set_xattr(name, attr, acl, who),
        _ if name == ACL_DEFAULT => Ok(()),
        _ => may_set_xattr(name, attr, acl, who),
    }
}

/// True if `who` sees the attribute `name` in a list of names: `trusted.*` is shown to root only.
///
/// # Source
/// The `list` function of the trusted handlers in Linux; xattr(7).
pub fn lists_xattr(name: &[u8], who: &Identity) -> bool {
    Space::of(name) != Space::Trusted || is_root(who)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    User,
    Trusted,
    Security,
    System,
    Unknown,
}

impl Space {
    fn of(name: &[u8]) -> Space {
        const SPACES: [(&[u8], Space); 4] = [
            (b"user.", Space::User),
            (b"trusted.", Space::Trusted),
            (b"security.", Space::Security),
            (b"system.", Space::System),
        ];
        SPACES.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(Space::Unknown, |&(_, space)| space)
    }
}

fn is_acl_name(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

fn holds_user_attributes(attr: &Attr) -> bool {
    matches!(attr.kind, Kind::File | Kind::Dir)
}

fn is_sticky_dir(attr: &Attr) -> bool {
    attr.kind == Kind::Dir && attr.perm & S_ISVTX != 0
}

fn not_on_symlink(attr: &Attr) -> Result<()> {
    match attr.kind {
        Kind::Symlink => Err(Error::from_errno(libc::EOPNOTSUPP)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OWNER, attr, errno, who};
    use super::*;
    use libc::{EACCES, ENODATA, EOPNOTSUPP, EPERM};

    const MEMBER: u32 = 5;
    const STRANGER: u32 = 6;

    /// Attribute, kind, mode, caller, then the errno of reading and of setting.
    type Row<'a> = (&'a str, Kind, u32, u32, i32, i32);

    #[test]
    fn each_kind_of_name_has_its_rule() {
        let (acl, default) = ("system.posix_acl_access", "system.posix_acl_default");
        let (file, dir, link) = (Kind::File, Kind::Dir, Kind::Symlink);
        let table: &[Row] = &[
            // user: like the content, on files and directories only
            ("user.a", file, 0o640, OWNER, 0, 0),
            ("user.a", file, 0o640, MEMBER, 0, EACCES),
            ("user.a", file, 0o620, MEMBER, EACCES, 0),
            ("user.a", file, 0o640, STRANGER, EACCES, EACCES),
            ("user.a", file, 0, 0, 0, 0),
            ("user.a", link, 0o777, 0, ENODATA, EPERM),
            ("user.a", Kind::Fifo, 0o666, OWNER, ENODATA, EPERM),
            ("user.a", Kind::Char, 0o666, 0, ENODATA, EPERM),
            ("user.a", dir, 0o777, STRANGER, 0, 0),
            ("user.a", dir, 0o1777, STRANGER, 0, EPERM),
            ("user.a", dir, 0o1777, OWNER, 0, 0),
            ("user.a", dir, 0o1777, 0, 0, 0),
            ("user.a", dir, 0o1577, OWNER, 0, EACCES),
            // sticky means nothing on a file
            ("user.a", file, 0o1777, STRANGER, 0, 0),
            // trusted and security: for root
            ("trusted.a", file, 0o777, OWNER, ENODATA, EPERM),
            ("trusted.a", file, 0, 0, 0, 0),
            ("trusted.a", link, 0o777, 0, 0, 0),
            ("security.a", file, 0, STRANGER, 0, EPERM),
            ("security.a", file, 0o777, OWNER, 0, EPERM),
            ("security.a", link, 0o777, 0, 0, 0),
            // lists: read by all, set by the owner
            (acl, file, 0, STRANGER, 0, EPERM),
            (acl, file, 0, OWNER, 0, 0),
            (acl, Kind::Socket, 0, 0, 0, 0),
            (acl, link, 0o777, 0, EOPNOTSUPP, EOPNOTSUPP),
            (default, dir, 0o777, STRANGER, 0, EPERM),
            (default, dir, 0, OWNER, 0, 0),
            (default, file, 0o777, 0, 0, EACCES),
            (default, link, 0o777, OWNER, EOPNOTSUPP, EOPNOTSUPP),
            // other system attributes are left to the disk, unknown names are like content
            ("system.a", file, 0, STRANGER, 0, 0),
            ("bogus.a", file, 0o640, MEMBER, 0, EACCES),
            ("user", Kind::Fifo, 0o620, MEMBER, EACCES, 0),
            ("", file, 0, STRANGER, EACCES, EACCES),
        ];
        for &(name, kind, perm, uid, get, set) in table {
            let attr = attr(kind, perm, OWNER, 20);
            let who = who(uid, if uid == MEMBER { &[20] } else { &[9] });
            let case = format!("{name} of {kind:?} {perm:o} by {uid}");
            assert_eq!(errno(may_get_xattr(name.as_bytes(), &attr, None, &who)), get, "get {case}");
            assert_eq!(errno(may_set_xattr(name.as_bytes(), &attr, None, &who)), set, "set {case}");
            let harmless = name == default && kind == file;
            let remove = if harmless { 0 } else { set };
            assert_eq!(errno(may_remove_xattr(name.as_bytes(), &attr, None, &who)), remove, "remove {case}");
        }
    }

    #[test]
    fn a_list_opens_user_attributes_too() {
        let file = attr(Kind::File, 0o660, OWNER, 20);
        let acl = Acl::from_parts(6, &[(STRANGER, 4)], 0, &[], Some(6), 0);
        let stranger = who(STRANGER, &[9]);
        assert_eq!(errno(may_get_xattr(b"user.a", &file, Some(&acl), &stranger)), 0);
        assert_eq!(errno(may_set_xattr(b"user.a", &file, Some(&acl), &stranger)), EACCES);
    }

    #[test]
    fn removing_a_default_list_that_cannot_be_there_is_allowed_to_all() {
        let name = b"system.posix_acl_default";
        for (kind, expected) in
            [(Kind::File, 0), (Kind::Fifo, 0), (Kind::Dir, EPERM), (Kind::Symlink, EOPNOTSUPP)]
        {
            let attr = attr(kind, 0, OWNER, 20);
            assert_eq!(
                errno(may_remove_xattr(name, &attr, None, &who(STRANGER, &[9]))),
                expected,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn trusted_names_are_shown_to_root_only() {
        for name in ["user.a", "security.a", "system.posix_acl_access", "trusted.a", "trustedx"] {
            assert!(lists_xattr(name.as_bytes(), &who(0, &[0])), "{name}");
            let shown = name != "trusted.a";
            assert_eq!(lists_xattr(name.as_bytes(), &who(OWNER, &[9])), shown, "{name}");
        }
    }
}

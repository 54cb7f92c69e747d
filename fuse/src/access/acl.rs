//! What does an access control list say? The attribute format, the decision, and how it follows a mode.
//!
//! A list is held as its six parts, so every [`Acl`] is one that the kernel accepts: no part is missing or
//! doubled, and named entries never stand without a mask. Ids are those of the merged tree; whoever reads a
//! list from a disk with other ids translates it first.

use std::iter;

use super::Access;
use crate::error::{Error, Result};
use crate::types::{Attr, Identity};

/// `POSIX_ACL_XATTR_VERSION`: the only version there is; any other number is another format.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

// The tags of `linux/posix_acl_xattr.h`: they are on disks, so they never change.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// `ACL_UNDEFINED_ID`: the id of an entry that names nobody; a named entry must not have it.
const NO_ID: u32 = u32::MAX;

/// A POSIX access control list: the value of `system.posix_acl_access` or `system.posix_acl_default`.
///
/// # Source
/// acl(5); `fs/posix_acl.c` of Linux.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    owner: u8,
    /// Named users in the order of the attribute: of two with one id, the first counts.
    users: Vec<(u32, u8)>,
    group: u8,
    groups: Vec<(u32, u8)>,
    /// Always there if `users` or `groups` is not empty.
    mask: Option<u8>,
    other: u8,
}

impl Acl {
    /// Reads the value of an attribute; `None` if it holds no entry: the kernel takes such a value as "no list",
    /// and setting it removes the list.
    ///
    /// The order is owner, named users, group, named groups, mask, other. Named entries may come in any order
    /// of their ids, and twice; the id of the other entries is ignored.
    ///
    /// # Errors
    /// EOPNOTSUPP for a version other than 2. EINVAL for a value that is cut off, an unknown tag, permission
    /// bits above 7, a part that is missing, doubled or out of order, a named entry with the id -1, and named
    /// entries without a mask.
    ///
    /// # Source
    /// `posix_acl_from_xattr` and `posix_acl_valid` of Linux.
    pub fn parse(value: &[u8]) -> Result<Option<Acl>> {
        if value.is_empty() {
            return Ok(None);
        }
        let Some((version, entries)) = value.split_first_chunk::<HEADER_BYTES>() else {
            return Err(invalid("shorter than its header"));
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Error::new(libc::EOPNOTSUPP, "parse acl", "attribute", "version is not 2"));
        }
        let (entries, cut_off) = entries.as_chunks::<ENTRY_BYTES>();
        if !cut_off.is_empty() {
            return Err(invalid("ends within an entry"));
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let mut rest = Entries(entries);
        let owner = rest.one(USER_OBJ)?.ok_or_else(|| invalid("the owner is not first"))?;
        let users = rest.named(USER)?;
        let group = rest.one(GROUP_OBJ)?.ok_or_else(|| invalid("the group is not after the users"))?;
        let groups = rest.named(GROUP)?;
        let mask = rest.one(MASK)?;
        let other = rest.one(OTHER)?.ok_or_else(|| invalid("other is not after the groups and the mask"))?;
        if !rest.0.is_empty() {
            return Err(invalid("other is not last"));
        }
        if mask.is_none() && !(users.is_empty() && groups.is_empty()) {
            return Err(invalid("named entries without a mask"));
        }
        Ok(Some(Acl { owner, users, group, groups, mask, other }))
    }

    /// The value of the attribute, as the kernel writes it.
    ///
    /// # Source
    /// `posix_acl_to_xattr` of Linux.
    pub fn format(&self) -> Vec<u8> {
        let one = |tag: u16, perm: u8| iter::once((tag, perm, NO_ID));
        let entries = one(USER_OBJ, self.owner)
            .chain(self.users.iter().map(|&(id, perm)| (USER, perm, id)))
            .chain(one(GROUP_OBJ, self.group))
            .chain(self.groups.iter().map(|&(id, perm)| (GROUP, perm, id)))
            .chain(self.mask.map(|perm| (MASK, perm, NO_ID)))
            .chain(one(OTHER, self.other));
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&u16::from(perm).to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// The list that says the same as permission bits: owner, group and other, nobody named.
    ///
    /// # Source
    /// `posix_acl_from_mode` of Linux.
    pub fn from_perm(perm: u32) -> Acl {
        Acl {
            owner: triple(perm >> 6),
            users: Vec::new(),
            group: triple(perm >> 3),
            groups: Vec::new(),
            mask: None,
            other: triple(perm),
        }
    }

    /// The nine permission bits that `stat` shows for a file with this list: the mask, if there is one, stands
    /// where the group's bits are.
    pub fn perm(&self) -> u32 {
        let group = self.mask.unwrap_or(self.group);
        u32::from(self.owner) << 6 | u32::from(group) << 3 | u32::from(self.other)
    }

    /// The nine permission bits that say the same as this list, or `None` if the list says more: a mask or named
    /// entries. A file keeps a list as an attribute only in the second case.
    ///
    /// # Source
    /// `posix_acl_equiv_mode` of Linux.
    pub fn equivalent_mode(&self) -> Option<u32> {
        self.mask.is_none().then(|| self.perm())
    }

    /// True if the list grants `who` everything in `want`: the first that applies of owner, named user, group
    /// and named groups together, other. The mask limits all but owner and other; of several groups one has to
    /// grant everything by itself.
    ///
    /// `attr` says who the owner and the group are. Root's privileges are not looked at, and neither is the
    /// kernel's rule that a list with an empty mask is passed over: that is [`may_access`](super::may_access).
    ///
    /// # Source
    /// `posix_acl_permission` of Linux; acl(5), "Access check algorithm".
    pub fn evaluate(&self, attr: &Attr, who: &Identity, want: Access) -> bool {
        let mask = self.mask.unwrap_or(0o7);
        if who.uid == attr.uid {
            return want.is_within(self.owner.into());
        }
        if let Some(&(_, perm)) = self.users.iter().find(|&&(uid, _)| uid == who.uid) {
            return want.is_within((perm & mask).into());
        }
        let mut mine = iter::once((attr.gid, self.group))
            .chain(self.groups.iter().copied())
            .filter(|&(gid, _)| who.in_group(gid))
            .map(|(_, perm)| perm)
            .peekable();
        if mine.peek().is_none() {
            return want.is_within(self.other.into());
        }
        mine.any(|perm| want.is_within((perm & mask).into()))
    }

    /// A new file's access list and permission bits, where this is the default list of its directory and `perm`
    /// the bits that the creator asked for: each limits the other. `None` if the bits alone say it all.
    ///
    /// Bits of `perm` above the nine pass through. The umask has no part in it.
    ///
    /// # Source
    /// `posix_acl_create_masq` of Linux; acl(5), "Object creation and default ACLs".
    pub fn create_masq(&self, perm: u32) -> (Option<Acl>, u32) {
        let mut acl = self.clone();
        acl.owner &= triple(perm >> 6);
        *acl.mask.as_mut().unwrap_or(&mut acl.group) &= triple(perm >> 3);
        acl.other &= triple(perm);
        let perm = perm & !0o777 | acl.perm();
        (acl.mask.is_some().then_some(acl), perm)
    }

    /// Makes the list follow a chmod: owner and other get their bits, the mask (without one, the group) the
    /// group's. Bits of `perm` above the nine are ignored.
    ///
    /// # Source
    /// `__posix_acl_chmod_masq` of Linux.
    pub fn chmod_masq(&mut self, perm: u32) {
        self.owner = triple(perm >> 6);
        *self.mask.as_mut().unwrap_or(&mut self.group) = triple(perm >> 3);
        self.other = triple(perm);
    }
}

#[cfg(test)]
impl Acl {
    /// A list from its parts, for tests.
    pub(super) fn from_parts(
        owner: u8,
        users: &[(u32, u8)],
        group: u8,
        groups: &[(u32, u8)],
        mask: Option<u8>,
        other: u8,
    ) -> Acl {
        Acl { owner, users: users.to_vec(), group, groups: groups.to_vec(), mask, other }
    }
}

/// The low three bits.
fn triple(perm: u32) -> u8 {
    (perm & 0o7) as u8
}

fn invalid(cause: &str) -> Error {
    Error::new(libc::EINVAL, "parse acl", "attribute", cause)
}

/// The entries that are not read yet.
struct Entries<'a>(&'a [[u8; ENTRY_BYTES]]);

impl Entries<'_> {
    /// Takes the next entry, if it has this tag: its permission bits and its id.
    fn next_if(&mut self, tag: u16) -> Result<Option<(u8, u32)>> {
        let Some((&[t0, t1, p0, p1, i0, i1, i2, i3], rest)) = self.0.split_first() else {
            return Ok(None);
        };
        if u16::from_le_bytes([t0, t1]) != tag {
            return Ok(None);
        }
        self.0 = rest;
        match u16::from_le_bytes([p0, p1]) {
            perm @ 0..=0o7 => Ok(Some((triple(perm.into()), u32::from_le_bytes([i0, i1, i2, i3])))),
            _ => Err(invalid("permission bits above 7")),
        }
    }

    fn one(&mut self, tag: u16) -> Result<Option<u8>> {
        Ok(self.next_if(tag)?.map(|(perm, _)| perm))
    }

    fn named(&mut self, tag: u16) -> Result<Vec<(u32, u8)>> {
        let mut named = Vec::new();
        while let Some((perm, id)) = self.next_if(tag)? {
            if id == NO_ID {
                return Err(invalid("a named entry without an id"));
            }
            named.push((id, perm));
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{OWNER, attr, who};
    use super::*;
    use crate::types::Kind;

    /// The bytes of an attribute.
    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    const U: (u16, u16, u32) = (USER_OBJ, 6, NO_ID);
    const G: (u16, u16, u32) = (GROUP_OBJ, 4, NO_ID);
    const M: (u16, u16, u32) = (MASK, 7, NO_ID);
    const O: (u16, u16, u32) = (OTHER, 0, NO_ID);
    const NAMED_U: (u16, u16, u32) = (USER, 7, 5);
    const NAMED_G: (u16, u16, u32) = (GROUP, 2, 6);

    #[test]
    fn a_value_has_the_bytes_that_setfacl_writes() {
        let bytes = [
            2, 0, 0, 0, // version
            1, 0, 6, 0, 255, 255, 255, 255, // u::rw-
            2, 0, 7, 0, 5, 0, 0, 0, // u:5:rwx
            4, 0, 4, 0, 255, 255, 255, 255, // g::r--
            8, 0, 2, 0, 1, 2, 0, 0, // g:513:-w-
            16, 0, 7, 0, 255, 255, 255, 255, // m::rwx
            32, 0, 0, 0, 255, 255, 255, 255, // o::---
        ];
        let acl = Acl::from_parts(6, &[(5, 7)], 4, &[(513, 2)], Some(7), 0);
        assert_eq!(Acl::parse(&bytes).unwrap(), Some(acl.clone()));
        assert_eq!(acl.format(), bytes);
    }

    #[test]
    fn what_the_kernel_accepts_comes_back_unchanged() {
        let highest_id = (USER, 0, NO_ID - 1);
        let valid: &[&[(u16, u16, u32)]] = &[
            &[U, G, O],
            &[U, G, M, O],
            &[U, NAMED_U, G, M, O],
            &[U, G, NAMED_G, M, O],
            // Neither the order of the ids nor a second entry for one id is a fault.
            &[U, highest_id, NAMED_U, NAMED_U, G, NAMED_G, (GROUP, 7, 0), M, O],
        ];
        for entries in valid {
            let value = value(entries);
            let acl = Acl::parse(&value).unwrap().unwrap();
            assert_eq!(acl.format(), value, "{entries:?}");
        }
    }

    #[test]
    fn the_id_of_an_entry_that_names_nobody_is_ignored() {
        let acl = Acl::parse(&value(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 7), O])).unwrap().unwrap();
        assert_eq!(acl.format(), value(&[U, G, O]));
    }

    #[test]
    fn a_value_without_entries_is_no_list() {
        assert_eq!(Acl::parse(&[]).unwrap(), None);
        assert_eq!(Acl::parse(&value(&[])).unwrap(), None);
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        let invalid: &[&[(u16, u16, u32)]] = &[
            &[G, O],
            &[U, O],
            &[U, G],
            &[U],
            &[U, U, G, O],
            &[U, G, G, O],
            &[U, G, O, O],
            &[U, G, M, M, O],
            &[G, U, O],
            &[U, O, G],
            &[U, G, O, M],
            &[U, M, G, O],
            &[NAMED_U, U, G, M, O],
            &[U, G, NAMED_U, M, O],
            &[U, NAMED_G, G, M, O],
            &[U, G, M, NAMED_G, O],
            // Named entries need a mask.
            &[U, NAMED_U, G, O],
            &[U, G, NAMED_G, O],
            // An id of -1, permission bits above 7, tags that do not exist or are two in one.
            &[U, (USER, 7, NO_ID), G, M, O],
            &[U, G, (GROUP, 7, NO_ID), M, O],
            &[(USER_OBJ, 8, NO_ID), G, O],
            &[U, (GROUP_OBJ, 0x100, NO_ID), O],
            &[(0, 6, NO_ID), G, O],
            &[(USER_OBJ | USER, 6, NO_ID), G, O],
            &[(0x101, 6, NO_ID), G, O],
            &[U, G, O, (0x40, 0, NO_ID)],
        ];
        for entries in invalid {
            let error = Acl::parse(&value(entries)).unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL, "{entries:?}");
        }
    }

    #[test]
    fn a_cut_off_value_is_invalid_and_another_version_unsupported() {
        let whole = value(&[U, G, O]);
        for len in 1..whole.len() {
            if len != HEADER_BYTES {
                assert_eq!(Acl::parse(&whole[..len]).unwrap_err().errno(), libc::EINVAL, "{len} bytes");
            }
        }
        for version in [0u32, 1, 3, 0x0200_0000] {
            let mut other = whole.clone();
            other[..HEADER_BYTES].copy_from_slice(&version.to_le_bytes());
            assert_eq!(Acl::parse(&other).unwrap_err().errno(), libc::EOPNOTSUPP, "version {version}");
            // The version is looked at before the length.
            other.pop();
            assert_eq!(Acl::parse(&other).unwrap_err().errno(), libc::EOPNOTSUPP, "version {version}");
        }
    }

    #[test]
    fn a_message_says_what_is_wrong() {
        let error = Acl::parse(&value(&[U, NAMED_U, G, O])).unwrap_err();
        assert_eq!(error.to_string(), "parse acl: attribute: named entries without a mask: invalid argument");
    }

    #[test]
    fn the_first_entry_that_applies_decides() {
        let file = attr(Kind::File, 0o640, OWNER, 20);
        // Owner rw-, user 5 r-x, user 6 ---, owning group r--, group 30 -w-, group 31 r-x, mask rwx, other --x.
        let open = Acl::from_parts(6, &[(5, 5), (6, 0), (5, 7)], 4, &[(30, 2), (31, 5)], Some(7), 1);
        let masked = Acl { mask: Some(4), ..open.clone() };
        /// Who, list, user, groups, a digit that is granted, one that is not.
        type Row<'a> = (&'a str, &'a Acl, u32, &'a [u32], u8, u8);
        let table: &[Row] = &[
            ("the owner", &open, OWNER, &[20], 6, 1),
            ("the owner, not limited by the mask", &masked, OWNER, &[20], 6, 1),
            (
                "the owner, though also named",
                &Acl::from_parts(0, &[(OWNER, 7)], 7, &[], Some(7), 7),
                OWNER,
                &[20],
                0,
                4,
            ),
            ("a named user, first entry", &open, 5, &[20], 5, 2),
            ("a named user, limited by the mask", &masked, 5, &[31], 4, 1),
            ("a named user with nothing, though in a group", &open, 6, &[20, 31], 0, 1),
            ("the owning group", &open, 7, &[20], 4, 1),
            ("a named group", &open, 7, &[30], 2, 4),
            ("a supplementary group", &open, 7, &[99, 31], 5, 2),
            ("two groups, but none grants both", &open, 7, &[20, 30], 4, 6),
            ("two groups, one grants both", &open, 7, &[20, 31], 5, 6),
            ("a group, limited by the mask", &masked, 7, &[31], 4, 1),
            ("a group that the mask leaves nothing", &masked, 7, &[30], 0, 2),
            ("a stranger", &open, 7, &[99], 1, 4),
            ("a stranger, not limited by the mask", &masked, 7, &[99], 1, 4),
            ("the group of a list without mask", &Acl::from_parts(0, &[], 5, &[], None, 7), 7, &[20], 5, 2),
        ];
        for &(case, acl, uid, gids, granted, refused) in table {
            let who = who(uid, gids);
            assert!(acl.evaluate(&file, &who, Access(granted)), "{case} has {granted}");
            assert!(!acl.evaluate(&file, &who, Access(refused)), "{case} does not have {refused}");
        }
    }

    #[test]
    fn the_mode_shows_the_mask_as_the_group() {
        let table = [
            (Acl::from_parts(6, &[], 4, &[], None, 1), 0o641, Some(0o641)),
            (Acl::from_parts(6, &[], 4, &[], Some(7), 1), 0o671, None),
            (Acl::from_parts(7, &[(5, 7)], 7, &[], Some(0), 7), 0o707, None),
        ];
        for (acl, perm, equivalent) in table {
            assert_eq!((acl.perm(), acl.equivalent_mode()), (perm, equivalent), "{acl:?}");
        }
        for perm in 0..=0o777 {
            assert_eq!(Acl::from_perm(0o7000 | perm).equivalent_mode(), Some(perm));
        }
    }

    #[test]
    fn a_default_list_and_the_asked_mode_limit_each_other() {
        let minimal = Acl::from_parts(7, &[], 5, &[], None, 0);
        let named = Acl::from_parts(7, &[(5, 7)], 5, &[], Some(6), 4);
        let table: &[(&Acl, u32, Option<Acl>, u32)] = &[
            (&minimal, 0o666, None, 0o640),
            (&minimal, 0o7777, None, 0o7750),
            (&minimal, 0, None, 0),
            (&named, 0o777, Some(named.clone()), 0o764),
            // The asked group bits limit the mask, never the group's entry.
            (&named, 0o4651, Some(Acl::from_parts(6, &[(5, 7)], 5, &[], Some(4), 0)), 0o4640),
            (&named, 0, Some(Acl::from_parts(0, &[(5, 7)], 5, &[], Some(0), 0)), 0),
        ];
        for (default, asked, acl, perm) in table {
            assert_eq!(default.create_masq(*asked), (acl.clone(), *perm), "{default:?} {asked:o}");
        }
    }

    #[test]
    fn a_chmod_sets_the_mask_or_else_the_group() {
        let mut minimal = Acl::from_parts(7, &[], 5, &[], None, 0);
        minimal.chmod_masq(0o6123);
        assert_eq!(minimal, Acl::from_parts(1, &[], 2, &[], None, 3));
        let mut named = Acl::from_parts(7, &[(5, 7)], 5, &[(6, 1)], Some(6), 4);
        named.chmod_masq(0o123);
        assert_eq!(named, Acl::from_parts(1, &[(5, 7)], 5, &[(6, 1)], Some(2), 3));
    }
}

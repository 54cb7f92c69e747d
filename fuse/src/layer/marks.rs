//! What a whiteout, an opaque directory or a redirect looks like in each dialect.
//!
//! Pure: bytes in, meaning out. Whoever reads or writes a mark on disk asks here how it is spelt.
//!
//! Three families of marks are understood: those of the kernel's overlayfs (a character device 0:0, or
//! attributes below `trusted.overlay.` or `user.overlay.`), those of AUFS and of OCI archives (`.wh.NAME`,
//! `.wh..wh..opq`), and `user.fuseoverlayfs.opaque`.
//!
//! Marks made by users of the mount are data, not marks: their attributes are stored one level down
//! ([`escape`]), a file called `.wh.x` carries [`Mark::Literal`], and a device 0:0 is a regular file with
//! [`Mark::Device`]. All of these are below [`Namespace::prefix`], so that the kernel's overlayfs hides them.

use crate::types::Device;
use std::ffi::{CStr, CString};

/// The prefix of an AUFS or OCI whiteout.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The file that makes a directory opaque in AUFS and OCI layers.
pub const OPAQUE_FILE: &[u8] = b".wh..wh..opq";
/// The names that AUFS keeps for itself; others of this form hide a file whose own name begins like a whiteout.
const RESERVED_NAMES: [&[u8]; 3] = [b".wh..wh.aufs", b".wh..wh.orph", b".wh..wh.plnk"];

/// What a name means in a layer of the AUFS dialect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AufsName<'a> {
    /// An ordinary name.
    Plain,
    /// Hides this name in the layers below.
    Whiteout(&'a [u8]),
    /// Hides all names of the layers below in this directory.
    Opaque,
    /// Something of AUFS itself; not shown.
    Reserved,
}

/// Reads a file name as AUFS does.
pub fn aufs_name(name: &[u8]) -> AufsName<'_> {
    match name.strip_prefix(WHITEOUT_PREFIX) {
        None => AufsName::Plain,
        Some(_) if name == OPAQUE_FILE => AufsName::Opaque,
        Some(_) if RESERVED_NAMES.contains(&name) => AufsName::Reserved,
        Some(hidden) if hidden.is_empty() || hidden == b"." || hidden == b".." => AufsName::Plain,
        Some(hidden) => AufsName::Whiteout(hidden),
    }
}

/// The AUFS whiteout of a name, or `None` if that would be longer than a name can be or means something else.
pub fn aufs_whiteout(name: &[u8]) -> Option<Vec<u8>> {
    let whole = [WHITEOUT_PREFIX, name].concat();
    let fits = whole.len() <= crate::types::NAME_MAX;
    (fits && aufs_name(&whole) == AufsName::Whiteout(name)).then_some(whole)
}

/// Where the attributes of overlayfs are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.`: needs root of the machine.
    Trusted,
    /// `user.overlay.`: as the kernel's overlayfs with `userxattr`.
    User,
}

impl Namespace {
    /// The prefix of all attributes, with the last dot.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Namespace::Trusted => b"trusted.overlay.",
            Namespace::User => b"user.overlay.",
        }
    }

    /// The name of a mark in this namespace.
    pub fn attribute(self, mark: Mark) -> &'static CStr {
        match (self, mark) {
            (Namespace::Trusted, Mark::Opaque) => c"trusted.overlay.opaque",
            (Namespace::Trusted, Mark::Redirect) => c"trusted.overlay.redirect",
            (Namespace::Trusted, Mark::Metacopy) => c"trusted.overlay.metacopy",
            (Namespace::Trusted, Mark::Origin) => c"trusted.overlay.origin",
            (Namespace::Trusted, Mark::Impure) => c"trusted.overlay.impure",
            (Namespace::Trusted, Mark::Whiteout) => c"trusted.overlay.whiteout",
            (Namespace::Trusted, Mark::Escapes) => c"trusted.overlay.plywood.escapes",
            (Namespace::Trusted, Mark::Literal) => c"trusted.overlay.plywood.literal",
            (Namespace::Trusted, Mark::Device) => c"trusted.overlay.plywood.device",
            (Namespace::Trusted, Mark::Acl) => c"trusted.overlay.plywood.acl",
            (Namespace::User, Mark::Opaque) => c"user.overlay.opaque",
            (Namespace::User, Mark::Redirect) => c"user.overlay.redirect",
            (Namespace::User, Mark::Metacopy) => c"user.overlay.metacopy",
            (Namespace::User, Mark::Origin) => c"user.overlay.origin",
            (Namespace::User, Mark::Impure) => c"user.overlay.impure",
            (Namespace::User, Mark::Whiteout) => c"user.overlay.whiteout",
            (Namespace::User, Mark::Escapes) => c"user.overlay.plywood.escapes",
            (Namespace::User, Mark::Literal) => c"user.overlay.plywood.literal",
            (Namespace::User, Mark::Device) => c"user.overlay.plywood.device",
            (Namespace::User, Mark::Acl) => c"user.overlay.plywood.acl",
        }
    }
}

/// The marks that are attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// `y`: the directory hides those below; `x`: it holds whiteouts that are attributes.
    Opaque,
    /// Where the directory, or the data of a file, is in the layers below.
    Redirect,
    /// The file has attributes only, its data is below.
    Metacopy,
    /// The file handle of what was copied up.
    Origin,
    /// The directory holds entries that were copied up or moved here.
    Impure,
    /// An empty regular file that hides a name.
    Whiteout,
    /// Our own: the directory holds files with `Literal` or `Device`.
    Escapes,
    /// Our own: a file whose name looks like a whiteout and is none.
    Literal,
    /// Our own: a regular file that stands for a device the disk or the format cannot hold.
    Device,
    /// Our own, on the root of an upper: access control lists were set through the mount.
    Acl,
}

const MARKS: [(Mark, &[u8]); 10] = [
    (Mark::Opaque, b"opaque"),
    (Mark::Redirect, b"redirect"),
    (Mark::Metacopy, b"metacopy"),
    (Mark::Origin, b"origin"),
    (Mark::Impure, b"impure"),
    (Mark::Whiteout, b"whiteout"),
    (Mark::Escapes, b"plywood.escapes"),
    (Mark::Literal, b"plywood.literal"),
    (Mark::Device, b"plywood.device"),
    (Mark::Acl, b"plywood.acl"),
];

/// The mark that an attribute name means, and the namespace it is in.
pub fn mark_of(attribute: &[u8]) -> Option<(Namespace, Mark)> {
    let namespace = namespace_of(attribute)?;
    let suffix = attribute.strip_prefix(namespace.prefix())?;
    MARKS.iter().find(|(_, name)| *name == suffix).map(|(mark, _)| (namespace, *mark))
}

fn namespace_of(attribute: &[u8]) -> Option<Namespace> {
    [Namespace::User, Namespace::Trusted].into_iter().find(|n| attribute.starts_with(n.prefix()))
}

/// The opaque mark of fuse-overlayfs.
pub const FUSE_OPAQUE: &CStr = c"user.fuseoverlayfs.opaque";

/// What an opaque attribute says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Opaque {
    /// Nothing is hidden.
    #[default]
    No,
    /// The directory hides those below.
    Yes,
    /// The directory hides nothing as a whole, but holds whiteouts that are attributes.
    XattrWhiteouts,
}

/// Reads the value of an opaque attribute; values nobody writes mean nothing.
pub fn parse_opaque(value: &[u8]) -> Opaque {
    match value {
        b"y" => Opaque::Yes,
        b"x" => Opaque::XattrWhiteouts,
        _ => Opaque::No,
    }
}

/// Where a redirect leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Redirect {
    /// Another name in the same directory.
    Name(Box<[u8]>),
    /// A path from the root of the merged tree, without slashes at its ends.
    Path(Box<[u8]>),
}

/// Reads the value of a redirect attribute; `None` if it is nonsense.
///
/// A component may not be empty, `.` or `..`: a redirect never climbs.
pub fn parse_redirect(value: &[u8]) -> Option<Redirect> {
    let (absolute, path) = match value.strip_prefix(b"/") {
        Some(path) => (true, path),
        None => (false, value),
    };
    let sound = |part: &[u8]| crate::types::check_name(part).is_ok();
    if !path.split(|&b| b == b'/').all(sound) || (!absolute && path.contains(&b'/')) {
        return None;
    }
    Some(if absolute { Redirect::Path(path.into()) } else { Redirect::Name(path.into()) })
}

/// Prefixes of attributes that have a meaning in a layer though they are not below an overlay namespace.
const RESERVED: [&[u8]; 4] = [
    b"user.fuseoverlayfs.",
    b"security.fuseoverlayfs.",
    crate::idmap::ENCODED_PREFIX,
    b"user.overlay.plywood.",
];

/// How an attribute that a user of the mount names is called on disk.
///
/// Attributes of overlays *inside* the mount go one level down, as the kernel's overlayfs stores them
/// (`trusted.overlay.overlay.opaque`); attributes of the other dialects go below our own prefix.
/// `None` if the name on disk would be too long.
///
/// # Source
/// `Documentation/filesystems/overlayfs.rst`, "Nesting overlayfs mounts".
pub fn escape(attribute: &[u8], own: Namespace) -> Option<CString> {
    let on_disk = if let Some(namespace) = namespace_of(attribute) {
        let suffix = attribute.strip_prefix(namespace.prefix())?;
        [namespace.prefix(), b"overlay.", suffix].concat()
    } else if RESERVED.iter().any(|r| attribute.starts_with(r)) {
        [own.prefix(), FOREIGN, attribute].concat()
    } else {
        attribute.to_vec()
    };
    if on_disk.len() > crate::types::NAME_MAX {
        return None;
    }
    CString::new(on_disk).ok()
}

/// True for an attribute that is stored under another name than the one users know.
pub fn is_escaped(attribute: &[u8]) -> bool {
    namespace_of(attribute).is_some() || RESERVED.iter().any(|r| attribute.starts_with(r))
}

/// Where escaped attributes of other dialects are kept, below the prefix of the namespace.
const FOREIGN: &[u8] = b"plywood.esc.";

/// What users of the mount see of an attribute on disk: its name, or `None` if it is ours.
pub fn unescape(on_disk: &[u8]) -> Option<Vec<u8>> {
    if let Some(namespace) = namespace_of(on_disk) {
        let suffix = on_disk.strip_prefix(namespace.prefix())?;
        if let Some(inner) = suffix.strip_prefix(b"overlay.") {
            return Some([namespace.prefix(), inner].concat());
        }
        return suffix.strip_prefix(FOREIGN).map(<[u8]>::to_vec);
    }
    if RESERVED.iter().any(|r| on_disk.starts_with(r)) {
        return None;
    }
    Some(on_disk.to_vec())
}

/// The value of [`Mark::Device`].
pub fn format_device(kind_is_block: bool, device: Device) -> Vec<u8> {
    let kind = if kind_is_block { 'b' } else { 'c' };
    format!("{kind}:{}:{}", device.major, device.minor).into_bytes()
}

/// Reads the value of [`Mark::Device`]: true for a block device, and the number.
pub fn parse_device(value: &[u8]) -> Option<(bool, Device)> {
    let mut parts = std::str::from_utf8(value).ok()?.split(':');
    let is_block = match parts.next()? {
        "b" => true,
        "c" => false,
        _ => return None,
    };
    let device = Device { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? };
    parts.next().is_none().then_some((is_block, device))
}

/// The file handle of the lower inode that a file was copied up from, in the form of overlayfs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The file system of the lower inode.
    pub uuid: [u8; 16],
    /// The type of the handle, as the file system chose it.
    pub kind: u8,
    /// The handle.
    pub handle: Vec<u8>,
}

/// The bytes before the handle: version, magic, length, flags, type, uuid.
const ORIGIN_HEADER: usize = 21;
const ORIGIN_MAGIC: u8 = 0xfb;

impl Origin {
    /// Reads the value of an origin attribute; `None` if it is empty, foreign or damaged.
    ///
    /// # Source
    /// `struct ovl_fb` of the kernel's overlayfs.
    pub fn parse(value: &[u8]) -> Option<Origin> {
        let handle = value.get(ORIGIN_HEADER..)?;
        let big_endian = value[3] & 1 != 0;
        let any_endian = value[3] & 2 != 0;
        let foreign = !any_endian && big_endian != cfg!(target_endian = "big");
        if value[0] != 0 || value[1] != ORIGIN_MAGIC || usize::from(value[2]) != value.len() || foreign {
            return None;
        }
        Some(Origin { uuid: value[5..21].try_into().ok()?, kind: value[4], handle: handle.to_vec() })
    }

    /// The value of the attribute; `None` if the handle is too long for it.
    pub fn format(&self) -> Option<Vec<u8>> {
        let length = u8::try_from(ORIGIN_HEADER + self.handle.len()).ok()?;
        let flags = u8::from(cfg!(target_endian = "big"));
        let mut value = vec![0, ORIGIN_MAGIC, length, flags, self.kind];
        value.extend_from_slice(&self.uuid);
        value.extend_from_slice(&self.handle);
        Some(value)
    }

    /// The inode number inside the handle, for the file systems whose handles are known.
    ///
    /// # Source
    /// `include/linux/exportfs.h`: FILEID_INO32_GEN (ext4 and others; 12 bytes: tmpfs), the XFS 64-bit
    /// form, FILEID_BTRFS_WITHOUT_PARENT.
    pub fn inode(&self) -> Option<u64> {
        let word = |at: usize| {
            self.handle.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes).map(u64::from)
        };
        let long =
            |at: usize| self.handle.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_ne_bytes);
        match (self.kind, self.handle.len()) {
            (1, 8) => word(0),
            (1, 12) => Some(word(4)? | (word(8)? << 32)),
            (0x81, 12) => long(0),
            (0x4d, 20) => long(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aufs_names_are_told_apart() {
        use AufsName::{Opaque, Plain, Reserved, Whiteout};
        for (name, meaning) in [
            (&b"a"[..], Plain),
            (b".wh", Plain),
            (b".wh.", Plain),
            (b".wh..", Plain),
            (b".wh...", Plain),
            (b".wh.a", Whiteout(b"a")),
            (b".wh..a", Whiteout(b".a")),
            (b".wh..wh..opq", Opaque),
            (b".wh..wh.plnk", Reserved),
            (b".wh..wh.a", Whiteout(b".wh.a")),
        ] {
            assert_eq!(aufs_name(name), meaning, "{}", name.escape_ascii());
        }
        assert_eq!(aufs_whiteout(&[b'x'; 251]).map(|n| n.len()), Some(255));
        assert_eq!(aufs_whiteout(&[b'x'; 252]), None);
        assert_eq!(aufs_whiteout(b".wh..opq"), None);
    }

    #[test]
    fn redirects_never_climb() {
        assert_eq!(parse_redirect(b"a"), Some(Redirect::Name((*b"a").into())));
        assert_eq!(parse_redirect(b"/a/b"), Some(Redirect::Path((*b"a/b").into())));
        for bad in [&b""[..], b"/", b"a/b", b"/a//b", b"/a/", b"..", b"/../a", b"/a/./b", b"a\0b"] {
            assert_eq!(parse_redirect(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn every_mark_is_found_by_its_own_name() {
        for namespace in [Namespace::Trusted, Namespace::User] {
            for (mark, _) in MARKS {
                let name = namespace.attribute(mark).to_bytes();
                assert_eq!(mark_of(name), Some((namespace, mark)));
                assert_eq!(unescape(name), None, "{mark:?} must be hidden");
            }
        }
    }

    #[test]
    fn attributes_of_inner_overlays_come_back_as_they_were_set() {
        for own in [Namespace::Trusted, Namespace::User] {
            for name in [
                &b"user.overlay.opaque"[..],
                b"trusted.overlay.redirect",
                b"user.overlay.overlay.opaque",
                b"user.overlay.plywood.literal",
                b"user.fuseoverlayfs.opaque",
                b"user.containers.override_stat",
                b"user.containers.override_security.capability",
                b"user.mine",
                b"security.capability",
            ] {
                let on_disk = escape(name, own).expect("short enough");
                assert_eq!(unescape(on_disk.to_bytes()).as_deref(), Some(name));
                assert!(mark_of(on_disk.to_bytes()).is_none(), "{on_disk:?} would be a mark");
                assert_eq!(is_escaped(name), on_disk.to_bytes() != name);
            }
        }
        assert_eq!(
            escape(b"user.overlay.opaque", Namespace::User).as_deref(),
            Some(c"user.overlay.overlay.opaque")
        );
        assert_eq!(escape(&[b"user.overlay.".as_slice(), &[b'x'; 240]].concat(), Namespace::User), None);
    }

    #[test]
    fn origins_survive_a_round_trip_and_garbage_is_refused() {
        let origin = Origin { uuid: [7; 16], kind: 1, handle: vec![5, 0, 0, 0, 9, 9, 9, 9] };
        let value = origin.format().expect("short");
        assert_eq!(Origin::parse(&value), Some(origin.clone()));
        assert_eq!(origin.inode(), Some(5));
        for bad in [&b""[..], b"\0", &value[..20], &value[..24], &[value.as_slice(), b"x"].concat()] {
            assert_eq!(Origin::parse(bad), None);
        }
        let long = Origin { handle: vec![0; 250], ..origin };
        assert_eq!(long.format(), None);
    }

    #[test]
    fn devices_survive_a_round_trip() {
        for (is_block, device) in
            [(false, Device::default()), (true, Device { major: 4095, minor: 1_048_575 })]
        {
            assert_eq!(parse_device(&format_device(is_block, device)), Some((is_block, device)));
        }
        for bad in [&b""[..], b"c", b"c:1", b"x:1:2", b"c:1:2:3", b"c:-1:2"] {
            assert_eq!(parse_device(bad), None);
        }
    }
}

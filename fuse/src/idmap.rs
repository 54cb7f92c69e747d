//! Whose file is it?
//!
//! Three answers lie between the owner on disk and the owner that a caller sees, all of them pure functions:
//!
//! - an [`IdMap`] moves ranges of ids (`uidmapping=`, `gidmapping=`),
//! - [`Ownership`] puts the two maps together with the squashing of all owners to one,
//! - a [`StatOverride`] is an owner, a mode and a file type kept in an extended attribute, for disks or
//!   callers that cannot store them as such.
//!
//! Words: an id is *stored* on disk and *shown* to callers. Reading attributes and writing them is not done
//! here, nor is the decision which layer uses which attribute.

use std::ffi::{CStr, CString};

use crate::error::{Error, Result};

#[cfg(test)]
mod tests;

/// The id that is shown for an owner outside of the map: "nobody".
///
/// # Source
///
/// `/proc/sys/kernel/overflowuid`, whose default no distribution changes.
pub const OVERFLOW_ID: u32 = 65_534;

/// The end of the id space: 2^32 - 1 means "no id" in chown(2), so ids stop before it.
const ID_END: u32 = u32::MAX;

/// A run of ids, stored under one set of numbers and shown under another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id on disk.
    pub stored: u32,
    /// The first id that callers see.
    pub shown: u32,
    /// How many ids; never 0, and neither end passes 2^32 - 2.
    pub len: u32,
}

/// Which stored id is shown as which: ranges that overlap on neither side, or the identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Empty means identity, which is the everyday case and costs one comparison.
    ranges: Vec<IdRange>,
}

impl IdMap {
    /// The map that shows each id as it is stored.
    pub const fn identity() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Reads `STORED:SHOWN:LEN[:STORED:SHOWN:LEN...]`, decimal; colons before and after are allowed.
    ///
    /// Text without any number is the identity, as for the peers.
    ///
    /// # Errors
    ///
    /// EINVAL: not triples of numbers, a length of 0, a range that passes 2^32 - 2, or overlapping ranges.
    ///
    /// # Source
    ///
    /// fuse-overlayfs(1), "dynamic uid and gid mapping"; containers/storage writes the leading colon.
    pub fn parse(text: &[u8]) -> Result<Self> {
        Self::parse_words(text)
            .map_err(|cause| Error::new(libc::EINVAL, "id map", text.escape_ascii().to_string(), cause))
    }

    /// As [`IdMap::parse`], with the bare cause for a caller that names the subject itself.
    pub(crate) fn parse_words(text: &[u8]) -> std::result::Result<Self, &'static str> {
        const NOT_TRIPLES: &str = "an id map is made of triples STORED:SHOWN:LEN, like 0:1000:1";
        let text = trim_colons(text);
        if text.is_empty() {
            return Ok(Self::identity());
        }
        let numbers =
            text.split(|&byte| byte == b':').map(decimal).collect::<Option<Vec<u32>>>().ok_or(NOT_TRIPLES)?;
        let triples = numbers.chunks_exact(3);
        if !triples.remainder().is_empty() {
            return Err(NOT_TRIPLES);
        }
        let mut ranges: Vec<IdRange> = Vec::with_capacity(numbers.len() / 3);
        for triple in triples {
            let &[stored, shown, len] = triple else { return Err(NOT_TRIPLES) };
            if len == 0 {
                return Err("a range of ids must not be empty");
            }
            // `ID_END - first` cannot underflow, and is the room between the first id and the end.
            if len > ID_END - stored || len > ID_END - shown {
                return Err("a range of ids ends after 4294967294");
            }
            let range = IdRange { stored, shown, len };
            if ranges.iter().any(|other| range.overlaps(other)) {
                return Err("two ranges of ids overlap");
            }
            ranges.push(range);
        }
        Ok(Self { ranges })
    }

    /// True if every id is shown as it is stored because no map was given.
    #[inline]
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges in the order in which they were typed; none for the identity.
    pub fn ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// The id to store for one that a caller uses, or `None` if the map has no place for it.
    #[inline]
    pub fn to_disk(&self, shown: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(shown);
        }
        self.ranges.iter().find_map(|range| translate(shown, range.shown, range.stored, range.len))
    }

    /// The id to show for one that is stored; [`OVERFLOW_ID`] if the map does not know it.
    #[inline]
    #[allow(clippy::wrong_self_convention, reason = "the other direction of `to_disk`; nothing is made here")]
    pub fn from_disk(&self, stored: u32) -> u32 {
        if self.ranges.is_empty() {
            return stored;
        }
        self.ranges
            .iter()
            .find_map(|range| translate(stored, range.stored, range.shown, range.len))
            .unwrap_or(OVERFLOW_ID)
    }
}

impl IdRange {
    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: u32, b: u32| if a <= b { b - a < self.len } else { a - b < other.len };
        meet(self.stored, other.stored) || meet(self.shown, other.shown)
    }
}

/// `id`, moved from the run that starts at `from` to the one at `to`; the sum was checked at parse time.
#[inline]
fn translate(id: u32, from: u32, to: u32, len: u32) -> Option<u32> {
    let offset = id.checked_sub(from)?;
    if offset < len { to.checked_add(offset) } else { None }
}

fn trim_colons(mut text: &[u8]) -> &[u8] {
    while let [b':', rest @ ..] | [rest @ .., b':'] = text {
        text = rest;
    }
    text
}

/// A decimal number of digits only: no sign, no blanks, no overflow.
pub(crate) fn decimal(text: &[u8]) -> Option<u32> {
    number(text, 10)
}

/// Digits of a base up to 10; `None` for anything else and for what does not fit.
fn number(text: &[u8], base: u32) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u32, |sum, &byte| {
        let digit = char::from(byte).to_digit(base)?;
        sum.checked_mul(base)?.checked_add(digit)
    })
}

/// The user and the group that own a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// Show every file as owned by one user, by one group, or by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Squash {
    /// The user that is shown for every file; `None` leaves users to the map.
    pub uid: Option<u32>,
    /// The group that is shown for every file; `None` leaves groups to the map.
    pub gid: Option<u32>,
}

/// All that lies between the owner on disk and the owner that callers see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// How user ids are moved.
    pub uid_map: IdMap,
    /// How group ids are moved.
    pub gid_map: IdMap,
    /// What is shown instead of the owner, whatever the maps say.
    pub squash: Option<Squash>,
}

impl Ownership {
    /// The owner to show for one that is stored: squash first, then the maps.
    #[inline]
    pub fn shown(&self, stored: Owner) -> Owner {
        let squash = self.squash.unwrap_or_default();
        Owner {
            uid: squash.uid.unwrap_or_else(|| self.uid_map.from_disk(stored.uid)),
            gid: squash.gid.unwrap_or_else(|| self.gid_map.from_disk(stored.gid)),
        }
    }

    /// The owner to store for one that a caller uses, or `None` if a map has no place for it.
    ///
    /// Squashing changes what is shown and not what is stored: the maps alone decide here.
    /// For `None` the kernel answers EINVAL to a chown; for what is new see [`Ownership::stored_for_new`].
    #[inline]
    pub fn stored(&self, shown: Owner) -> Option<Owner> {
        Some(Owner { uid: self.uid_map.to_disk(shown.uid)?, gid: self.gid_map.to_disk(shown.gid)? })
    }

    /// The owner to store for what a caller makes: [`OVERFLOW_ID`] where a map has no place for the caller.
    ///
    /// # Source
    ///
    /// fuse-overlayfs does so, and podman relies on it: it makes `/etc/mtab` as root of its own namespace, whom
    /// `uidmapping=` does not know, and only then gives it to the container's root.
    #[inline]
    pub fn stored_for_new(&self, shown: Owner) -> Owner {
        Owner {
            uid: self.uid_map.to_disk(shown.uid).unwrap_or(OVERFLOW_ID),
            gid: self.gid_map.to_disk(shown.gid).unwrap_or(OVERFLOW_ID),
        }
    }

    /// True if a disk that refuses an owner is no failure, because the owner is not shown anyway.
    ///
    /// # Source
    ///
    /// fuse-overlayfs 1.16 ignores a refused chown as soon as one of the squash options is set.
    #[inline]
    pub fn may_lose_owner(&self) -> bool {
        self.squash.is_some()
    }
}

/// A file type, as an override attribute keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideKind {
    /// `dir`
    Dir,
    /// `file`
    File,
    /// `symlink`: the target is the content of the regular file that carries the attribute.
    Symlink,
    /// `pipe`
    Fifo,
    /// `socket`
    Socket,
    /// `block-MAJOR-MINOR`
    Block {
        /// The number of the driver.
        major: u32,
        /// The number that the driver gives its device.
        minor: u32,
    },
    /// `char-MAJOR-MINOR`
    Char {
        /// The number of the driver.
        major: u32,
        /// The number that the driver gives its device.
        minor: u32,
    },
}

impl OverrideKind {
    /// The kind of a file with this `st_mode` and `st_rdev`; `None` if the type bits are none of the known.
    pub fn from_stat(mode: u32, rdev: u64) -> Option<Self> {
        let (major, minor) = (libc::major(rdev), libc::minor(rdev));
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Some(Self::Dir),
            libc::S_IFREG => Some(Self::File),
            libc::S_IFLNK => Some(Self::Symlink),
            libc::S_IFIFO => Some(Self::Fifo),
            libc::S_IFSOCK => Some(Self::Socket),
            libc::S_IFBLK => Some(Self::Block { major, minor }),
            libc::S_IFCHR => Some(Self::Char { major, minor }),
            _ => None,
        }
    }

    /// The type bits of `st_mode`.
    pub fn type_bits(self) -> u32 {
        match self {
            Self::Dir => libc::S_IFDIR,
            Self::File => libc::S_IFREG,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::Block { .. } => libc::S_IFBLK,
            Self::Char { .. } => libc::S_IFCHR,
        }
    }

    /// The `st_rdev` of a device; 0 for anything else.
    pub fn rdev(self) -> u64 {
        match self {
            Self::Block { major, minor } | Self::Char { major, minor } => libc::makedev(major, minor),
            _ => 0,
        }
    }

    /// Reads the word of a type; what follows the known prefix is ignored, as the peers do.
    fn parse(word: &[u8]) -> Option<Self> {
        const PLAIN: [(&[u8], OverrideKind); 5] = [
            (b"file", OverrideKind::File),
            (b"dir", OverrideKind::Dir),
            (b"symlink", OverrideKind::Symlink),
            (b"pipe", OverrideKind::Fifo),
            (b"socket", OverrideKind::Socket),
        ];
        if let Some((_, kind)) = PLAIN.iter().find(|(name, _)| word.starts_with(name)) {
            return Some(*kind);
        }
        let mut parts = word.split(|&byte| byte == b'-');
        let name = parts.next()?;
        let (major, minor) = (decimal(parts.next()?)?, decimal(parts.next()?)?);
        match name {
            b"block" => Some(Self::Block { major, minor }),
            b"char" => Some(Self::Char { major, minor }),
            _ => None,
        }
    }

    fn word(self) -> String {
        match self {
            Self::Dir => "dir".into(),
            Self::File => "file".into(),
            Self::Symlink => "symlink".into(),
            Self::Fifo => "pipe".into(),
            Self::Socket => "socket".into(),
            Self::Block { major, minor } => format!("block-{major}-{minor}"),
            Self::Char { major, minor } => format!("char-{major}-{minor}"),
        }
    }
}

/// An owner, a mode and perhaps a type that stand in an attribute instead of the inode.
///
/// # Source
///
/// `pkg/idtools` of containers/storage (`FormatContainersOverrideXattrDevice` and its parser), and the
/// form without a type that fuse-overlayfs 1.x writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatOverride {
    /// The user id, as stored.
    pub uid: u32,
    /// The group id, as stored.
    pub gid: u32,
    /// Permission bits with set-user-id, set-group-id and sticky: within 0o7777.
    pub mode: u32,
    /// The file type; `None` means that of the inode itself.
    pub kind: Option<OverrideKind>,
}

impl StatOverride {
    /// Reads `UID:GID:MODE[:TYPE]`, the mode octal; `None` for anything else.
    ///
    /// Tolerant like the peers: type bits in the mode, text after a type, further fields, and NULs or
    /// white space at the end are ignored; an id printed with `%d` may be negative.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut fields = trim_end(value).split(|&byte| byte == b':');
        let uid = signed_id(fields.next()?)?;
        let gid = signed_id(fields.next()?)?;
        let mode = number(fields.next()?, 8)? & 0o7777;
        let kind = match fields.next() {
            Some(word) => Some(OverrideKind::parse(word)?),
            None => None,
        };
        Some(Self { uid, gid, mode, kind })
    }

    /// The value as containers/storage writes it: `%d:%d:%04o:TYPE`, without `:TYPE` if there is none.
    pub fn format(&self) -> Vec<u8> {
        let Self { uid, gid, .. } = self;
        let mode = self.mode & 0o7777;
        match self.kind {
            Some(kind) => format!("{uid}:{gid}:{mode:04o}:{}", kind.word()),
            None => format!("{uid}:{gid}:{mode:04o}"),
        }
        .into_bytes()
    }
}

/// An id that C code printed with `%d`: ids from 2^31 on look negative.
fn signed_id(text: &[u8]) -> Option<u32> {
    match text {
        [b'-', digits @ ..] => {
            let below = decimal(digits)?;
            if below <= 1 << 31 { Some(below.wrapping_neg()) } else { None }
        }
        digits => decimal(digits),
    }
}

/// The value without NULs and white space at its end, which hand-made attributes tend to have.
fn trim_end(mut value: &[u8]) -> &[u8] {
    while let [rest @ .., 0 | b' ' | b'\n'] = value {
        value = rest;
    }
    value
}

/// The attributes that hold a [`StatOverride`]; one on the root of a layer turns the mode on for that layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideName {
    /// `user.containers.override_stat`: written by containers/storage and fuse-overlayfs from 1.14 on.
    UserContainers,
    /// `user.fuseoverlayfs.override_stat`: written by fuse-overlayfs before 1.14.
    UserFuseOverlayfs,
    /// `security.fuseoverlayfs.override_stat`: written by a mount of root with `xattr_permissions=1`.
    Security,
}

impl OverrideName {
    /// All names, in the order in which a layer root is searched for them.
    pub const ALL: [Self; 3] = [Self::Security, Self::UserContainers, Self::UserFuseOverlayfs];

    /// True if a layer with this attribute keeps others, too, that only root may write.
    pub fn keeps_attributes(self) -> bool {
        self != Self::Security
    }

    /// The full name of the attribute.
    pub fn xattr(self) -> &'static CStr {
        match self {
            Self::UserContainers => c"user.containers.override_stat",
            Self::UserFuseOverlayfs => c"user.fuseoverlayfs.override_stat",
            Self::Security => c"security.fuseoverlayfs.override_stat",
        }
    }
}

/// What stands before a full attribute name that is kept under another one.
pub(crate) const ENCODED_PREFIX: &[u8] = b"user.containers.override_";

/// The longest attribute name in bytes, without the NUL: `XATTR_NAME_MAX` of `linux/limits.h`.
const XATTR_NAME_MAX_BYTES: usize = 255;

/// The name that keeps an attribute which this process may not write: `user.containers.override_NAME`.
///
/// `None` if that would be longer than 255 bytes, or if `name` has no namespace and could be taken for
/// the attribute of a [`StatOverride`].
pub fn encode_xattr_name(name: &CStr) -> Option<CString> {
    let name = name.to_bytes();
    if !name.contains(&b'.') || ENCODED_PREFIX.len() + name.len() > XATTR_NAME_MAX_BYTES {
        return None;
    }
    CString::new([ENCODED_PREFIX, name].concat()).ok()
}

/// The attribute name that [`encode_xattr_name`] made into `name`; `None` if it was not made so.
pub fn decode_xattr_name(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(ENCODED_PREFIX).filter(|inner| inner.contains(&b'.'))
}

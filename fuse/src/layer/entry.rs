//! What one layer says about one name.
//!
//! [`judge`] turns attributes and marks into meaning. It decides; where the attributes come from is the
//! caller's business, and so is which of them are read at all: marks of a plain file are read only where the
//! directory, the layer or the file itself says that there can be some.

use crate::error::Result;
use crate::idmap::{OverrideKind, OverrideName, StatOverride};
use crate::layer::marks::{self, Mark, Opaque, Origin, Redirect};
use crate::sys::stat::Stat;
use crate::sys::xattr::Names;
use crate::types::{Device, Kind};

/// What is known of a directory of a layer that matters for its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirContext {
    /// It holds entries that were copied up.
    pub impure: bool,
    /// It holds whiteouts that are attributes.
    pub xattr_whiteouts: bool,
    /// It holds names or devices that are not what they seem.
    pub escapes: bool,
    /// New entries inherit an access control list.
    pub default_acl: bool,
}

/// The marks of one file, read from its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// See [`Mark::Opaque`].
    pub opaque: Opaque,
    /// See [`Mark::Redirect`].
    pub redirect: Option<Redirect>,
    /// A redirect is there that leads nowhere sane.
    pub redirect_is_broken: bool,
    /// See [`Mark::Metacopy`].
    pub metacopy: bool,
    /// See [`Mark::Origin`].
    pub origin: Option<Origin>,
    /// See [`Mark::Impure`].
    pub impure: bool,
    /// See [`Mark::Whiteout`].
    pub whiteout: bool,
    /// See [`Mark::Escapes`].
    pub escapes: bool,
    /// See [`Mark::Literal`].
    pub literal: bool,
    /// See [`Mark::Device`].
    pub device: Option<(bool, Device)>,
    /// Owner, mode and type that the disk could not hold.
    pub stat_override: Option<StatOverride>,
    /// It has an access control list.
    pub acl: bool,
    /// Its new entries inherit an access control list.
    pub default_acl: bool,
}

impl Marks {
    /// Collects the marks among `names`; `value` reads one of them.
    ///
    /// # Errors
    /// Those of `value`.
    pub fn read(
        names: &Names,
        overrides: Option<OverrideName>,
        mut value: impl FnMut(&std::ffi::CStr) -> Result<Option<Vec<u8>>>,
    ) -> Result<Marks> {
        let mut found = Marks::default();
        for name in names.iter() {
            if let Some((namespace, mark)) = marks::mark_of(name) {
                let attribute = namespace.attribute(mark);
                match mark {
                    Mark::Impure => found.impure = true,
                    Mark::Metacopy => found.metacopy = true,
                    Mark::Whiteout => found.whiteout = true,
                    Mark::Escapes => found.escapes = true,
                    Mark::Literal => found.literal = true,
                    Mark::Acl => {}
                    Mark::Opaque => {
                        let opaque = marks::parse_opaque(&value(attribute)?.unwrap_or_default());
                        if found.opaque != Opaque::Yes {
                            found.opaque = opaque;
                        }
                    }
                    Mark::Redirect => {
                        found.redirect = marks::parse_redirect(&value(attribute)?.unwrap_or_default());
                        found.redirect_is_broken = found.redirect.is_none();
                    }
                    Mark::Origin => found.origin = Origin::parse(&value(attribute)?.unwrap_or_default()),
                    Mark::Device => {
                        found.device = marks::parse_device(&value(attribute)?.unwrap_or_default());
                    }
                }
            } else if name == marks::FUSE_OPAQUE.to_bytes() {
                if marks::parse_opaque(&value(marks::FUSE_OPAQUE)?.unwrap_or_default()) == Opaque::Yes {
                    found.opaque = Opaque::Yes;
                }
            } else if overrides.is_some_and(|o| o.xattr().to_bytes() == name) {
                let attribute = overrides.map(OverrideName::xattr).unwrap_or_default();
                found.stat_override = StatOverride::parse(&value(attribute)?.unwrap_or_default());
            } else if name == b"system.posix_acl_access" {
                found.acl = true;
            } else if name == b"system.posix_acl_default" {
                found.default_acl = true;
            }
        }
        Ok(found)
    }

    /// What matters of a directory for its entries.
    pub fn context(&self) -> DirContext {
        DirContext {
            impure: self.impure,
            xattr_whiteouts: self.opaque == Opaque::XattrWhiteouts,
            escapes: self.escapes,
            default_acl: self.default_acl,
        }
    }
}

/// A file, directory or other node that a layer shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its attributes, with overrides applied; `dev` and `ino` are those of the disk.
    pub stat: Stat,
    /// Its marks; empty if there was no reason to read them.
    pub marks: Marks,
}

impl Found {
    /// What the file is to users of the merged tree.
    pub fn kind(&self) -> Kind {
        self.stat.kind()
    }
}

/// What one layer says about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerEntry {
    /// Nothing: the layers below decide.
    Absent,
    /// The name is hidden.
    Whiteout,
    /// It is this.
    Found(Box<Found>),
}

/// True if the marks of a file with these attributes have to be read.
///
/// A metacopy file has a size and (nearly) no blocks, so plain files with all of their blocks are spared;
/// one extra block may hold the attributes themselves.
pub fn must_read_marks(stat: &Stat, context: DirContext, overrides: bool) -> bool {
    match stat.kind() {
        Kind::Dir => true,
        Kind::File => {
            let is_empty = stat.size == 0;
            let has_no_data = !is_empty && stat.blocks <= 8 && stat.blocks * 512 < stat.size;
            overrides
                || context.impure
                || has_no_data
                || is_empty && (context.xattr_whiteouts || context.escapes)
        }
        _ => context.impure,
    }
}

/// What the attributes and marks of a name mean.
pub fn judge(mut stat: Stat, marks: Marks, context: DirContext) -> LayerEntry {
    if stat.is_whiteout_device() {
        return LayerEntry::Whiteout;
    }
    if stat.kind() == Kind::File {
        if context.xattr_whiteouts && marks.whiteout && stat.size == 0 {
            return LayerEntry::Whiteout;
        }
        if let Some((is_block, device)) = marks.device {
            let kind = if is_block { Kind::Block } else { Kind::Char };
            stat.mode = (stat.mode & 0o7777) | kind.mode_bits();
            stat.rdev = device;
        }
    }
    if let Some(over) = marks.stat_override {
        apply_override(&mut stat, &over);
    }
    LayerEntry::Found(Box::new(Found { stat, marks }))
}

/// Shows a file as its override says. Only a regular file can stand for another kind.
pub fn apply_override(stat: &mut Stat, over: &StatOverride) {
    let disk_kind = stat.kind();
    let (kind, device) = match over.kind {
        Some(OverrideKind::Symlink) => (Kind::Symlink, None),
        Some(OverrideKind::Fifo) => (Kind::Fifo, None),
        Some(OverrideKind::Socket) => (Kind::Socket, None),
        Some(OverrideKind::Block { major, minor }) => (Kind::Block, Some(Device { major, minor })),
        Some(OverrideKind::Char { major, minor }) => (Kind::Char, Some(Device { major, minor })),
        Some(OverrideKind::Dir | OverrideKind::File) | None => (disk_kind, None),
    };
    let kind = if disk_kind == Kind::File { kind } else { disk_kind };
    stat.uid = over.uid;
    stat.gid = over.gid;
    stat.mode = kind.mode_bits() | (over.mode & 0o7777);
    if let (Some(device), true) = (device, disk_kind == Kind::File) {
        stat.rdev = device;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(mode: u32, size: u64, blocks: u64) -> Stat {
        Stat { mode, size, blocks, ..Stat::default() }
    }

    #[test]
    fn marks_of_plain_files_are_not_read_without_a_reason() {
        let plain = DirContext::default();
        let impure = DirContext { impure: true, ..plain };
        let x = DirContext { xattr_whiteouts: true, ..plain };
        for (stat, context, overrides, expected) in [
            (stat(libc::S_IFREG, 100, 8), plain, false, false),
            (stat(libc::S_IFREG, 0, 0), plain, false, false),
            (stat(libc::S_IFREG, 100, 0), plain, false, true),
            (stat(libc::S_IFREG, 1 << 30, 8), plain, false, true),
            (stat(libc::S_IFREG, 100, 8), impure, false, true),
            (stat(libc::S_IFREG, 0, 0), x, false, true),
            (stat(libc::S_IFREG, 1, 8), x, false, false),
            (stat(libc::S_IFREG, 1, 8), plain, true, true),
            (stat(libc::S_IFDIR, 0, 0), plain, false, true),
            (stat(libc::S_IFLNK, 3, 0), plain, false, false),
        ] {
            assert_eq!(must_read_marks(&stat, context, overrides), expected, "{stat:?} {context:?}");
        }
    }

    #[test]
    fn an_xattr_whiteout_counts_only_in_a_directory_that_says_so() {
        let marks = Marks { whiteout: true, ..Marks::default() };
        let x = DirContext { xattr_whiteouts: true, ..DirContext::default() };
        let file = stat(libc::S_IFREG | 0o644, 0, 0);
        assert_eq!(judge(file, marks.clone(), x), LayerEntry::Whiteout);
        assert!(matches!(judge(file, marks.clone(), DirContext::default()), LayerEntry::Found(_)));
        let with_data = stat(libc::S_IFREG | 0o644, 5, 8);
        assert!(matches!(judge(with_data, marks, x), LayerEntry::Found(_)));
    }

    #[test]
    fn an_override_gives_a_regular_file_another_kind_but_never_a_directory() {
        let over = StatOverride {
            uid: 5,
            gid: 6,
            mode: 0o4755,
            kind: Some(OverrideKind::Char { major: 1, minor: 3 }),
        };
        let marks = Marks { stat_override: Some(over), ..Marks::default() };
        let LayerEntry::Found(found) = judge(stat(libc::S_IFREG, 0, 0), marks.clone(), DirContext::default())
        else {
            panic!("must be found");
        };
        assert_eq!((found.kind(), found.stat.uid, found.stat.mode & 0o7777), (Kind::Char, 5, 0o4755));
        let LayerEntry::Found(found) = judge(stat(libc::S_IFDIR, 0, 0), marks, DirContext::default()) else {
            panic!("must be found");
        };
        assert_eq!(found.kind(), Kind::Dir);
    }

    #[test]
    fn a_device_0_0_is_a_whiteout_and_an_escaped_one_is_a_device() {
        let device = stat(libc::S_IFCHR, 0, 0);
        assert_eq!(judge(device, Marks::default(), DirContext::default()), LayerEntry::Whiteout);
        let marks = Marks { device: Some((false, Device::default())), ..Marks::default() };
        let LayerEntry::Found(found) = judge(stat(libc::S_IFREG | 0o600, 0, 0), marks, DirContext::default())
        else {
            panic!("must be found");
        };
        assert_eq!(found.kind(), Kind::Char);
    }
}

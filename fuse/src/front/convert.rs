//! The words of the FUSE protocol and ours.

use crate::error::Error;
use crate::layer::upper::Durability;
use crate::overlay::rename::Target;
use crate::sys::xattr::SetMode;
use crate::types::{Attr, Device, Ino, Kind, SetTime, Time};
use fuser::{Errno, FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The errno of a failure.
pub fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

/// Our number of an inode.
pub fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

/// The kind of a file.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

/// A time.
pub fn system_time(time: Time) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let secs = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs < 0 { UNIX_EPOCH.checked_sub(secs) } else { UNIX_EPOCH.checked_add(secs) };
    base.and_then(|t| t.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time, the other way round.
pub fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => {
            Time { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
        }
        Err(before) => {
            let before = before.duration();
            let secs = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match before.subsec_nanos() {
                0 => Time { secs, nanos: 0 },
                nanos => Time { secs: secs - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

/// A time to be set.
pub fn set_time(time_or_now: TimeOrNow) -> SetTime {
    match time_or_now {
        TimeOrNow::SpecificTime(t) => SetTime::At(time(t)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// A device number, in the 32 bits that the protocol has for it.
///
/// # Source
/// `new_encode_dev` of the kernel.
pub fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

/// A device number, the other way round.
pub fn decode_device(rdev: u32) -> Device {
    Device { major: (rdev & 0xf_ff00) >> 8, minor: (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00) }
}

/// The attributes of a file.
pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.device),
        blksize: attr.block_size,
        flags: 0,
    }
}

/// What a rename does about the new name; `None` for what we do not have.
///
/// RENAME_WHITEOUT is refused: an overlay inside then makes its whiteouts in two steps, which works.
pub fn rename_target(flags: RenameFlags) -> Option<Target> {
    if flags.is_empty() {
        Some(Target::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Some(Target::MustNotExist)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Some(Target::Exchange)
    } else {
        None
    }
}

/// What setting an attribute does about one that is there.
pub fn set_mode(flags: i32) -> SetMode {
    match flags {
        libc::XATTR_CREATE => SetMode::Create,
        libc::XATTR_REPLACE => SetMode::Replace,
        _ => SetMode::Any,
    }
}

/// Whether changes are synced.
pub fn durability(typed: crate::options::Durability) -> Durability {
    match typed {
        crate::options::Durability::Durable => Durability::Durable,
        crate::options::Durability::Volatile => Durability::Volatile,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_a_round_trip() {
        for t in [
            Time { secs: 0, nanos: 0 },
            Time { secs: 1, nanos: 999_999_999 },
            Time { secs: -1, nanos: 1 },
            Time { secs: -5, nanos: 0 },
            Time { secs: 4_000_000_000, nanos: 7 },
        ] {
            assert_eq!(time(system_time(t)), t);
        }
    }

    #[test]
    fn devices_survive_a_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (4095, 1_048_575)] {
            let device = Device { major, minor };
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }

    #[test]
    fn renames_know_their_flags() {
        assert_eq!(rename_target(RenameFlags::empty()), Some(Target::Replace));
        assert_eq!(rename_target(RenameFlags::RENAME_EXCHANGE), Some(Target::Exchange));
        assert_eq!(rename_target(RenameFlags::RENAME_WHITEOUT), None);
    }
}

//! What the disk of the upper layer can do, found out by doing it once per mount.
//!
//! The answers belong to one mount and are kept there: another mount of the same process may be on another
//! disk. Everything is tried in the work directory, with names that the caller removes.

use crate::error::Result;
use crate::layer::marks::{Mark, Namespace};
use crate::sys::node::RenameMode;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::Device;
use std::os::fd::BorrowedFd;

/// What the disk can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Where marks can be kept; `None` if the disk takes no attributes.
    pub namespace: Option<Namespace>,
    /// How a whiteout is written.
    pub whiteout: WhiteoutForm,
    /// A rename can leave a whiteout behind.
    pub rename_whiteout: bool,
    /// Two names can be swapped.
    pub exchange: bool,
    /// What keeps a rename from reaching the disk before the data of the file.
    pub ordering: Ordering,
}

/// What keeps a rename from reaching the disk before the data that was written to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// The journal, once the data has its place on the disk.
    Journal,
    /// There is no disk.
    NotNeeded,
    /// Nothing: the data has to be synced.
    Nothing,
}

/// File systems of which more is known, as in `linux/magic.h`.
const EXT4_MAGIC: u64 = 0xef53;
const TMPFS_MAGIC: u64 = 0x0102_1994;

fn ordering(work: BorrowedFd<'_>) -> Ordering {
    match sys::stat::fs_magic(work) {
        Ok(EXT4_MAGIC) => Ordering::Journal,
        Ok(TMPFS_MAGIC) => Ordering::NotNeeded,
        _ => Ordering::Nothing,
    }
}

/// How a whiteout is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0, as the kernel's overlayfs does.
    Device,
    /// A file `.wh.NAME`.
    File,
}

/// What the caller wants, whatever the disk can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Keep marks below `user.` (true) or `trusted.` (false); `None` takes `trusted.` where it can be had.
    pub user_xattr: Option<bool>,
    /// Write whiteouts as files even where devices can be made.
    pub whiteout_files: bool,
}

/// Names for the trial, in the work directory.
const TRIAL: [&[u8]; 3] = [b"#probe-a", b"#probe-b", b"#probe-c"];

/// Tries out the disk that holds the directory `work`.
///
/// # Errors
/// With EACCES, EROFS, ENOSPC, if nothing can be made there at all.
pub fn probe(work: BorrowedFd<'_>, wishes: Wishes) -> Result<Abilities> {
    let clean = || {
        for name in TRIAL {
            let _ = sys::node::rmdir(work, name);
            let _ = sys::node::unlink(work, name);
        }
    };
    let [dir, first, second] = TRIAL;
    if let Err(e) = sys::node::mkdir(work, dir, 0o700) {
        if !e.is_exists() {
            return Err(e);
        }
        clean();
        sys::node::mkdir(work, dir, 0o700)?;
    }
    let namespace = probe_namespace(Place::At(work, dir), wishes);
    let device = !wishes.whiteout_files
        && sys::node::mknod(work, first, libc::S_IFCHR, Device::default()).is_ok()
        && sys::stat::stat(Place::At(work, first)).is_ok_and(|s| s.is_whiteout_device());
    let exchange = device && sys::node::rename(work, dir, work, first, RenameMode::Exchange).is_ok();
    // After the exchange `dir` names the device.
    let source = if exchange { dir } else { first };
    let rename_whiteout = device
        && sys::node::rename(work, source, work, second, RenameMode::Whiteout).is_ok()
        && sys::stat::stat(Place::At(work, source)).is_ok_and(|s| s.is_whiteout_device());
    clean();
    Ok(Abilities {
        namespace,
        whiteout: if device { WhiteoutForm::Device } else { WhiteoutForm::File },
        rename_whiteout,
        exchange,
        ordering: ordering(work),
    })
}

fn probe_namespace(place: Place<'_>, wishes: Wishes) -> Option<Namespace> {
    let candidates: &[Namespace] = match wishes.user_xattr {
        Some(true) => &[Namespace::User],
        Some(false) => &[Namespace::Trusted],
        None => &[Namespace::Trusted, Namespace::User],
    };
    let works = |n: &Namespace| sys::xattr::set(place, n.attribute(Mark::Opaque), b"n", SetMode::Any).is_ok();
    candidates.iter().copied().find(works)
}

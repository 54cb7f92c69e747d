//! The FUSE protocol: unpack, call [`Overlay`], reply. Decides nothing about files.
//!
//! [`convert`] turns words, [`counters`] counts requests, [`filesystem`] answers them (with `listing`, `data` and
//! `reply`), [`pool`] has threads for long work, [`session`] runs the conversation, [`mount`] makes and unmakes the
//! mount, [`daemon`] is the life of the process.

pub mod convert;
pub mod counters;
pub mod daemon;
mod data;
pub mod filesystem;
mod listing;
pub mod mount;
pub mod pool;
mod reply;
pub mod session;

use crate::error::Result;
use crate::idmap::{OverrideName, Ownership};
use crate::layer::probe::Wishes;
use crate::layer::upper::{OverridePolicy, UpperOptions};
use crate::options::{MountRequest, RedirectDir, StatOverrideMode};
use crate::overlay::{Metacopy, Overlay, Renames, Settings, TopLayer};
use std::path::Path;

/// Opens the stack of layers that a caller asked for.
///
/// With `ro` an upper directory is the topmost of the layers that are only read, and may belong to another
/// mount that changes it.
///
/// # Errors
/// As [`Overlay::open`].
pub fn open(request: &MountRequest, warnings: &mut Vec<String>) -> Result<Overlay> {
    let mut lowers = request.lowers.clone();
    let mut settings = settings(request);
    let mut writable = None;
    match (&request.upper, &request.work) {
        (Some(upper), _) if request.read_only => {
            lowers.insert(0, upper.clone());
            settings.top_layer = TopLayer::MayChange;
        }
        (Some(upper), Some(work)) => writable = Some((upper.as_path(), work.as_path())),
        _ => {}
    }
    let overlay = Overlay::open_around(&lowers, writable, settings, Some(&request.mount_point))?;
    warnings.extend(overlay.warning().map(str::to_owned));
    Ok(overlay)
}

/// How many descriptors a mount keeps open at most: half the limit of the process, and never more than
/// one mount among many may take from the system.
const MAX_DESCRIPTORS: u64 = 16_384;

fn settings(request: &MountRequest) -> Settings {
    let limit = crate::sys::process::max_descriptors().unwrap_or(1024);
    Settings {
        renames: match request.redirect_dir {
            RedirectDir::On => Renames::Redirect,
            RedirectDir::Copy => Renames::Copy,
            RedirectDir::Follow | RedirectDir::Off => Renames::Refuse,
            RedirectDir::NoFollow => Renames::RefuseAndIgnore,
        },
        metacopy: if request.metacopy { Metacopy::On } else { Metacopy::Off },
        ownership: Ownership {
            uid_map: request.uid_map.clone(),
            gid_map: request.gid_map.clone(),
            squash: request.squash,
        },
        upper: UpperOptions {
            wishes: Wishes {
                user_xattr: request.user_xattr,
                whiteout_files: std::env::var_os("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT").is_some(),
            },
            durability: convert::durability(request.durability),
            overrides: match request.stat_override {
                StatOverrideMode::Auto => OverridePolicy::WhenRefused,
                StatOverrideMode::Off => OverridePolicy::Never,
                StatOverrideMode::Security => OverridePolicy::Always(OverrideName::Security),
                StatOverrideMode::Containers => OverridePolicy::Always(OverrideName::UserContainers),
            },
            ..UpperOptions::default()
        },
        descriptors: usize::try_from((limit / 2).min(MAX_DESCRIPTORS)).unwrap_or(512),
        static_nlink: request.static_nlink,
        top_layer: TopLayer::Still,
    }
}

/// True if a mount of this request may be shared with somebody who changes the upper directory.
pub fn shares_upper(request: &MountRequest) -> bool {
    request.read_only && request.upper.as_deref().is_some_and(Path::is_dir)
}

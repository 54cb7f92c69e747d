//! The merged names of a directory while somebody reads them.
//!
//! A listing is ordered by the hash of its names, and the hash is the position that a reader continues from.
//! So a position stays good whatever is made or removed meanwhile, and whoever holds the directory open: no
//! name that stays is skipped or given twice. The listing is kept up to date by every change and dropped when
//! a reader has come to its end, or when too many are kept ([`super::kept_listings`]).

use super::Overlay;
use super::place::dir_part;
use crate::error::Result;
use crate::inode::node::{DirPart, DirState, Node};
use crate::layer::marks::{self, AufsName};
use crate::layer::read;
use crate::layer::source::LayerSource;
use crate::merge::readdir::{Merger, Name, Source};
use crate::sys::dir::RawName;
use crate::sys::open::DirMode;
use crate::sys::{self, Place};
use crate::types::Kind;
use std::collections::BTreeMap;
use std::os::fd::AsFd;

/// The first position that a name can have; those below are `.` and `..`, and the start.
pub const FIRST_POSITION: u64 = 3;

/// The merged names of a directory, by position.
#[derive(Debug, Default)]
pub struct Listing {
    entries: BTreeMap<u64, Listed>,
}

/// One merged name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: Box<[u8]>,
    /// `None` if it has to be asked.
    pub only: Option<Only>,
    /// Its layer lists it as a directory; what counts is what it says when it is asked.
    pub is_dir: bool,
}

/// A name that one known layer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// The upper layer.
    Upper,
    /// The lower directory at this position.
    Lower(u16),
}

impl Listing {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Names from a position on.
    pub fn after(&self, position: u64) -> impl Iterator<Item = (u64, &Listed)> {
        self.entries.range(position.saturating_add(1)..).map(|(at, listed)| (*at, listed))
    }

    fn insert(&mut self, hash: u64, listed: Listed) {
        let mut at = position_of(hash);
        loop {
            match self.entries.get(&at) {
                Some(other) if other.name != listed.name => at += 1,
                _ => break,
            }
        }
        self.entries.insert(at, listed);
    }

    fn remove(&mut self, hash: u64, name: &[u8]) {
        let mut at = position_of(hash);
        while let Some(listed) = self.entries.get(&at) {
            if *listed.name == *name {
                self.entries.remove(&at);
                return;
            }
            at += 1;
        }
    }
}

/// Positions are 63 bits, since the kernel's are signed, and leave room for `.` and `..` and for collisions.
fn position_of(hash: u64) -> u64 {
    (hash >> 2) + FIRST_POSITION
}

impl Overlay {
    /// Notes a name that was made in the upper layer.
    pub(crate) fn list_made(&self, state: &mut DirState, name: &[u8]) {
        if let Some(listing) = &mut state.listing {
            let listed = Listed { name: name.into(), only: None, is_dir: false };
            listing.insert(self.name_hash(name), listed);
        }
    }

    /// Notes a name that is gone.
    pub(crate) fn list_gone(&self, state: &mut DirState, name: &[u8]) {
        if let Some(listing) = &mut state.listing {
            listing.remove(self.name_hash(name), name);
        }
    }

    /// Notes that a name is decided by another layer now.
    pub(crate) fn list_moved(&self, state: &mut DirState, name: &[u8]) {
        self.list_made(state, name);
    }

    /// Reads the merged names of a directory. The caller holds its lock.
    pub(crate) fn read_listing(&self, dir: &Node, state: &DirState) -> Result<Listing> {
        let part = dir_part(dir)?;
        let mut entries = Vec::new();
        let found = self.merge_names(dir, part, state)?;
        for (name, source) in found {
            let upper = u16::from(state.upper.is_some());
            let only = if source.merged {
                None
            } else if source.layer < upper {
                Some(Only::Upper)
            } else {
                Some(Only::Lower(source.layer - upper))
            };
            entries.push((position_of(self.name_hash(&name)), Listed { name, only, is_dir: source.is_dir }));
        }
        entries.sort_unstable_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        // Equal hashes get neighbouring positions.
        let mut free = 0;
        for (at, _) in &mut entries {
            *at = (*at).max(free);
            free = *at + 1;
        }
        Ok(Listing { entries: entries.into_iter().collect() })
    }

    /// True if a directory shows no name. The caller holds its lock.
    pub(crate) fn is_empty_dir(&self, dir: &Node, state: &DirState) -> Result<bool> {
        let part = dir_part(dir)?;
        Ok(self.merge_names(dir, part, state)?.next().is_none())
    }

    fn merge_names(
        &self,
        dir: &Node,
        part: &DirPart,
        state: &DirState,
    ) -> Result<impl Iterator<Item = (Box<[u8]>, Source)> + use<>> {
        let mut merger = Merger::default();
        if let Some(upper) = &state.upper {
            let base = self.upper_dir(dir)?;
            let list = sys::open::open_dir_at(base.as_fd(), b".", DirMode::List);
            let list = match list {
                Err(e) if e.is_denied() => {
                    crate::overlay::io::open_upper(Place::At(base.as_fd(), b"."), libc::O_RDONLY)
                }
                other => other,
            }?;
            let mut doubtful = Vec::new();
            sys::dir::list(list.as_fd(), usize::MAX, &mut |raw| {
                hear(&mut merger, raw, upper.context.xattr_whiteouts, &mut doubtful);
            })?;
            let overrides = self.writable()?.overrides();
            for name in doubtful {
                use crate::layer::entry::LayerEntry;
                let is_mark = |name: &[u8]| read::is_mark_file(base.as_fd(), name);
                if decide_mark_file(&mut merger, &name, is_mark)? {
                    continue;
                }
                match read::read_entry(base.as_fd(), upper.context, overrides, &name) {
                    Ok(LayerEntry::Absent) => {}
                    Ok(LayerEntry::Whiteout) => merger.name(&name, Name::Hidden),
                    Ok(LayerEntry::Found(found)) => merger.name(&name, shown(found.kind())),
                    // A name all the same; who asks for it is told.
                    Err(_) => merger.name(&name, Name::Shown),
                }
            }
            merger.end_of_layer();
        }
        if state.merged {
            for lower in &part.lowers {
                let layer = self.lower(lower.layer)?;
                self.hear_lower(&mut merger, layer, lower)?;
                merger.end_of_layer();
            }
        }
        Ok(merger.finish())
    }

    fn hear_lower(
        &self,
        merger: &mut Merger,
        layer: &dyn LayerSource,
        lower: &crate::inode::node::LowerDir,
    ) -> Result<()> {
        use crate::layer::entry::LayerEntry;
        let mut doubtful = Vec::new();
        layer.list(&lower.path, usize::MAX, &mut |raw| {
            hear(merger, raw, lower.context.xattr_whiteouts, &mut doubtful);
        })?;
        for name in doubtful {
            if decide_mark_file(merger, &name, |name| layer.has_mark_file(&lower.path, name))? {
                continue;
            }
            match layer.entry(&lower.path, lower.context, &name) {
                Ok(LayerEntry::Absent) => {}
                Ok(LayerEntry::Whiteout) => merger.name(&name, Name::Hidden),
                Ok(LayerEntry::Found(found)) => merger.name(&name, shown(found.kind())),
                Err(_) => merger.name(&name, Name::Shown),
            }
        }
        Ok(())
    }
}

fn shown(kind: Kind) -> Name {
    if kind == Kind::Dir { Name::ShownDir } else { Name::Shown }
}

/// Tells the merger what a raw name says; puts those aside that have to be looked at.
fn hear(merger: &mut Merger, raw: RawName<'_>, xattr_whiteouts: bool, doubtful: &mut Vec<Vec<u8>>) {
    let may_be_mark = raw.name.starts_with(marks::WHITEOUT_PREFIX);
    match raw.kind {
        libc::DT_DIR => merger.name(raw.name, Name::ShownDir),
        libc::DT_REG if !may_be_mark && !xattr_whiteouts => merger.name(raw.name, Name::Shown),
        libc::DT_REG | libc::DT_CHR | libc::DT_UNKNOWN => doubtful.push(raw.name.to_vec()),
        _ => merger.name(raw.name, Name::Shown),
    }
}

/// Tells the merger what a `.wh.` file hides; false if it is an ordinary file.
fn decide_mark_file(
    merger: &mut Merger,
    name: &[u8],
    is_mark: impl FnOnce(&[u8]) -> Result<bool>,
) -> Result<bool> {
    if !name.starts_with(marks::WHITEOUT_PREFIX) || !is_mark(name)? {
        return Ok(false);
    }
    match marks::aufs_name(name) {
        AufsName::Whiteout(hidden) => merger.name(hidden, Name::Hidden),
        // Whether the directory is opaque was decided when it was looked up.
        AufsName::Opaque | AufsName::Reserved => {}
        AufsName::Plain => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &[u8]) -> Listed {
        Listed { name: name.into(), only: None, is_dir: false }
    }

    #[test]
    fn positions_stay_good_while_names_come_and_go() {
        let mut listing = Listing::default();
        for (hash, name) in [(40, b"a"), (80, b"b"), (120, b"c"), (160, b"d")] {
            listing.insert(hash, listed(name));
        }
        let second = listing.after(0).nth(1).map(|(at, _)| at).expect("four names");
        listing.remove(40, b"a");
        listing.remove(120, b"c");
        listing.insert(100, listed(b"e"));
        let rest: Vec<&[u8]> = listing.after(second).map(|(_, l)| &*l.name).collect();
        assert_eq!(rest, [&b"e"[..], b"d"]);
    }

    #[test]
    fn equal_hashes_do_not_swallow_a_name() {
        let mut listing = Listing::default();
        for name in [b"a", b"b", b"c"] {
            listing.insert(40, listed(name));
        }
        listing.insert(40, listed(b"a"));
        assert_eq!(listing.after(0).count(), 3);
        listing.remove(40, b"c");
        assert_eq!(listing.after(0).count(), 2);
    }
}

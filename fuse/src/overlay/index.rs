//! Which names the lower directories of one merged directory have.
//!
//! In a directory that many layers share, a name is usually in one of them. Asking each costs a system call;
//! reading their names once costs a few per layer and answers from then on. So it is done for the directories
//! that matter: there are several lower ones, and one read tells all names. A larger directory is not read,
//! it is asked. Lower layers do not change, so what was read stays true.

use super::{Overlay, TopLayer};
use crate::error::Result;
use crate::inode::node::LowerDir;
use crate::layer::marks::{self, AufsName};
use crate::sys::dir::Listed;
use std::hash::BuildHasher;

/// One name of one lower directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Entry {
    hash: u64,
    position: u16,
    /// The directory hides the name in those below it, by a file `.wh.NAME`.
    hides: bool,
}

/// The names of the lower directories, except of the last one, which is always asked.
#[derive(Debug, Default)]
pub struct LowerNames {
    entries: Box<[Entry]>,
    /// Positions of directories that are too large to be read, or that change.
    large: Box<[u16]>,
}

/// What is known of a name at one position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hint {
    /// It may be there.
    pub ask: bool,
    /// It is hidden in the directories below.
    pub hides: bool,
    /// A file `.wh.NAME` may be there; nobody knows.
    pub ask_for_mark_file: bool,
}

impl LowerNames {
    /// Positions at which anything is known about a name, in order, with what is known.
    pub fn hints(&self, hash: u64, positions: usize) -> impl Iterator<Item = (u16, Hint)> + '_ {
        let start = self.entries.partition_point(|e| e.hash < hash);
        let mine = self.entries[start..].iter().take_while(move |e| e.hash == hash);
        let mut hints: Vec<(u16, Hint)> = Vec::new();
        for entry in mine {
            let new = Hint { ask: !entry.hides, hides: entry.hides, ask_for_mark_file: false };
            match hints.last_mut() {
                Some((position, hint)) if *position == entry.position => {
                    hint.ask |= new.ask;
                    hint.hides |= new.hides;
                }
                _ => hints.push((entry.position, new)),
            }
        }
        let unknown = Hint { ask: true, hides: false, ask_for_mark_file: true };
        hints.extend(self.large.iter().map(|&position| (position, unknown)));
        if let Some(last) = positions.checked_sub(1).and_then(|l| u16::try_from(l).ok()) {
            hints.push((last, Hint { ask_for_mark_file: false, ..unknown }));
        }
        hints.sort_by_key(|(position, _)| *position);
        hints.into_iter()
    }
}

impl Overlay {
    pub(crate) fn name_hash(&self, name: &[u8]) -> u64 {
        self.hash.hash_one(name)
    }

    /// Reads the names of lower directories; none for a single one.
    pub(crate) fn read_lower_names(&self, lowers: &[LowerDir]) -> Result<LowerNames> {
        let mut entries = Vec::new();
        let mut large = Vec::new();
        let all_but_last = lowers.split_last().map_or(&[][..], |(_, rest)| rest);
        for (position, dir) in all_but_last.iter().enumerate() {
            let position = u16::try_from(position).unwrap_or(u16::MAX);
            if dir.layer == 0 && self.settings.top_layer == TopLayer::MayChange {
                large.push(position);
                continue;
            }
            let layer = self.lower(dir.layer)?;
            let first = entries.len();
            let mut mark_files: Vec<Vec<u8>> = Vec::new();
            let listed = layer.list(&dir.path, 1, &mut |raw| {
                if raw.name.starts_with(marks::WHITEOUT_PREFIX) {
                    mark_files.push(raw.name.to_vec());
                } else {
                    entries.push(Entry { hash: self.name_hash(raw.name), position, hides: false });
                }
            })?;
            if listed == Listed::Partly {
                entries.truncate(first);
                large.push(position);
                continue;
            }
            for name in mark_files {
                let hides = match marks::aufs_name(&name) {
                    AufsName::Whiteout(hidden) if layer.has_mark_file(&dir.path, &name)? => {
                        entries.push(Entry { hash: self.name_hash(hidden), position, hides: true });
                        true
                    }
                    AufsName::Opaque | AufsName::Reserved => layer.has_mark_file(&dir.path, &name)?,
                    AufsName::Whiteout(_) | AufsName::Plain => false,
                };
                if !hides {
                    entries.push(Entry { hash: self.name_hash(&name), position, hides: false });
                }
            }
        }
        entries.sort_unstable();
        Ok(LowerNames { entries: entries.into(), large: large.into() })
    }
}

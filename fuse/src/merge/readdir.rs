//! Which names a merged directory shows.
//!
//! Layers are told from the top. A name that a layer above showed or hid stays as it is; what a layer hides
//! counts only for the layers below it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What a layer says about one of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// It shows it.
    Shown,
    /// It shows it, and it is a directory.
    ShownDir,
    /// It hides it.
    Hidden,
}

/// Where a name of a merged directory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// How many layers were told before the one that shows it.
    pub layer: u16,
    /// It is a directory, and a layer below has a directory of that name too.
    pub merged: bool,
    /// It is a directory.
    pub is_dir: bool,
}

#[derive(Clone, Copy)]
struct Seen {
    /// The layer that decided.
    layer: u16,
    said: Name,
    /// Layers below this one add nothing to it.
    last: u16,
    merged: bool,
}

/// Collects the names of a merged directory.
#[derive(Default)]
pub struct Merger {
    names: HashMap<Box<[u8]>, Seen>,
    layer: u16,
}

impl Merger {
    /// Takes in one name of the layer that is told now.
    ///
    /// In one layer a name may be hidden and shown (`.wh.a` beside `a`): it is shown, and the layers below
    /// add nothing to it.
    pub fn name(&mut self, name: &[u8], said: Name) {
        let layer = self.layer;
        match self.names.entry(name.into()) {
            Entry::Vacant(slot) => {
                let last = if said == Name::ShownDir { u16::MAX } else { layer };
                slot.insert(Seen { layer, said, last, merged: false });
            }
            Entry::Occupied(mut slot) => {
                let seen = slot.get_mut();
                if seen.layer == layer {
                    // Hidden and shown at once, in either order.
                    seen.last = layer;
                    if seen.said == Name::Hidden {
                        seen.said = said;
                    }
                } else if layer <= seen.last {
                    seen.merged |= said == Name::ShownDir;
                    if said != Name::ShownDir {
                        seen.last = layer;
                    }
                }
            }
        }
    }

    /// The layer that was told is complete; what follows is the next one below.
    pub fn end_of_layer(&mut self) {
        self.layer += 1;
    }

    /// The names that are shown.
    pub fn finish(self) -> impl Iterator<Item = (Box<[u8]>, Source)> {
        self.names.into_iter().filter(|(_, seen)| seen.said != Name::Hidden).map(
            |(name, Seen { layer, merged, said, .. })| {
                (name, Source { layer, merged, is_dir: said == Name::ShownDir })
            },
        )
    }
}

//! What two stacks that share layers need not be compared in.
//!
//! A directory of a stack is made of directories of its layers. Where two stacks have the same ones below, only names
//! that the layers above list can differ, since every other name is answered by the same layers in the same order.
//! This module says what a directory is made of and what its layers list, marks included; which stacks share what, and
//! what follows from it, is for the caller.

use super::Overlay;
use super::place::dir_part;
use crate::error::{Error, Result};
use crate::inode::node::{At, LowerDir, Node};
use crate::layer::marks::{self, AufsName};
use std::ops::Range;
use std::sync::Arc;

/// Which file on the disk shows the attributes of an inode: of a file that has only its attributes in one layer and
/// its data in another, the former.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealInode {
    /// The lower layer, 0 the topmost; `None` for the upper layer.
    pub layer: Option<u16>,
    /// The inode number on the disk of that layer. A copied-up file shows the number of what it was copied from to its
    /// users; this is its own.
    pub ino: u64,
}

impl Overlay {
    /// Device and inode number of the root directory of each lower layer, topmost first: two layers with the same are
    /// one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn lower_roots(&self) -> Result<Vec<(u64, u64)>> {
        self.lowers.iter().map(|layer| layer.root().map(|root| (root.stat.dev, root.stat.ino))).collect()
    }

    /// Which file on the disk an inode is.
    ///
    /// # Errors
    /// ESTALE for one that has lost its place.
    pub fn real_inode(&self, node: &Node) -> Result<RealInode> {
        let place = node.place.read();
        let stale = || Error::from_errno(libc::ESTALE);
        let layer = match place.at {
            At::Upper => None,
            At::Lower(position) => {
                let (dir, position) = match (&node.dir, &place.parent) {
                    (Some(own), _) => (own.as_ref(), 0),
                    (None, Some(parent)) => (dir_part(parent)?, usize::from(position)),
                    (None, None) => return Err(stale()),
                };
                Some(dir.lowers.get(position).ok_or_else(stale)?.layer)
            }
        };
        // The root keeps none of its own.
        let ino = match (place.real_ino, layer, &place.parent) {
            (0, Some(layer), None) => self.lower(layer)?.root()?.stat.ino,
            (ino, ..) => ino,
        };
        Ok(RealInode { layer, ino })
    }

    /// The directories of lower layers that a directory is made of, topmost first; none for a file.
    pub fn lower_dirs<'a>(&self, dir: &'a Node) -> &'a [LowerDir] {
        dir.dir.as_ref().map_or(&[], |part| &part.lowers)
    }

    /// Gives every name that some lower layers list in a directory, and every name that a file `.wh.NAME` among them
    /// would hide: some twice, in no order, whether the merged directory has them or not.
    ///
    /// # Errors
    /// ENOTDIR and those of the disk.
    pub fn names_in_layers(
        &self,
        dir: &Arc<Node>,
        layers: Range<u16>,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        for lower in dir_part(dir)?.lowers.iter().filter(|lower| layers.contains(&lower.layer)) {
            self.lower(lower.layer)?.list(&lower.path, usize::MAX, &mut |raw| {
                each(raw.name);
                if let AufsName::Whiteout(hidden) = marks::aufs_name(raw.name) {
                    each(hidden);
                }
            })?;
        }
        Ok(())
    }

    /// Gives the inode number of every name in some lower layers that is no directory, with its layer: whether the
    /// merged tree shows it or not.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn inodes_in_layers(&self, layers: Range<u16>, each: &mut dyn FnMut(u16, u64)) -> Result<()> {
        for layer in layers {
            super::links::walk(self.lower(layer)?, &mut |_, ino, _| each(layer, ino))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::marks::Namespace;
    use crate::overlay::Settings;
    use crate::testing::TempDir;
    use crate::testing::tree::Layer;
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt;

    /// Layers in directories, the topmost first, and the stack of them.
    fn stack(temp: &TempDir, layers: &[&str]) -> Overlay {
        let mut dirs = Vec::new();
        for (at, text) in layers.iter().enumerate() {
            let dir = temp.path().join(at.to_string());
            std::fs::create_dir(&dir).expect("a directory");
            Layer::parse(text).build(&dir, Namespace::User).expect("a layer");
            dirs.push(dir);
        }
        Overlay::open(&dirs, None, Settings::default()).expect("a stack")
    }

    #[test]
    fn only_the_asked_layers_list_names_with_what_their_marks_hide() {
        let temp = TempDir::new();
        let overlay = stack(
            &temp,
            &[
                "file; dir d; file d/new size=1; whiteout d/old",
                "kernel; dir d; file d/two size=1",
                "kernel; dir d; file d/old size=1",
            ],
        );
        let (dir, _) = overlay.lookup(overlay.root(), b"d").expect("a directory");
        let names = |layers| {
            let mut names = BTreeSet::new();
            overlay
                .names_in_layers(&dir, layers, &mut |name| {
                    names.insert(name.to_vec());
                })
                .expect("names");
            names.into_iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(0..1), [".wh.old", "new", "old"]);
        assert_eq!(names(1..3), ["old", "two"]);
        let mut count = [0; 3];
        overlay.inodes_in_layers(0..2, &mut |layer, _| count[usize::from(layer)] += 1).expect("inodes");
        assert_eq!(count, [2, 1, 0]);
        assert_eq!(overlay.lower_dirs(&dir).iter().map(|d| d.layer).collect::<Vec<_>>(), [0, 1, 2]);
        overlay.forget(dir.ino, 1);
    }

    #[test]
    fn an_inode_says_which_file_of_which_layer_it_is() {
        let temp = TempDir::new();
        let overlay = stack(&temp, &["kernel; dir d; file d/a size=1", "kernel; dir d; file d/b size=1"]);
        let (dir, _) = overlay.lookup(overlay.root(), b"d").expect("a directory");
        for (name, layer) in [("a", 0), ("b", 1)] {
            let (node, _) = overlay.lookup(&dir, name.as_bytes()).expect("a file");
            let real = std::fs::metadata(temp.path().join(format!("{layer}/d/{name}"))).expect("a file");
            let expected = RealInode { layer: Some(layer), ino: real.ino() };
            assert_eq!(overlay.real_inode(&node).expect("it has one"), expected);
            drop(node);
        }
        let real = |path: &str| std::fs::metadata(temp.path().join(path)).expect("a directory").ino();
        assert_eq!(overlay.real_inode(&dir).expect("one"), RealInode { layer: Some(0), ino: real("0/d") });
        let root = overlay.real_inode(overlay.root()).expect("one");
        assert_eq!(root, RealInode { layer: Some(0), ino: real("0") });
        let roots = overlay.lower_roots().expect("roots");
        assert_eq!(roots.iter().map(|(_, ino)| *ino).collect::<Vec<_>>(), [real("0"), real("1")]);
    }
}

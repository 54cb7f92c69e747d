//! What the upper layer changes: the merged tree against the layers below.
//!
//! Only directories that are in the upper layer are looked into; the rest is as it was.

use super::readdir::Taken;
use super::{Overlay, Settings};
use crate::error::Result;
use crate::inode::node::{LowerDir, Node};
use crate::types::{Attr, Kind};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a path differs from the layers below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// Its content, its attributes or its kind is another.
    Modified,
    /// It is gone; so is everything below it.
    Removed,
}

/// One path that differs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Change {
    /// The path from the root of the tree, without a slash at its front.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
}

type Children = BTreeMap<Vec<u8>, (Arc<Node>, Attr)>;

impl Overlay {
    /// All paths that differ from the layers below, sorted; parents before their children.
    ///
    /// A directory that was removed and made again is compared by its content. A renamed directory is removed
    /// under its old name and added, with all it holds, under the new one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn changes(&self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        if self.upper.is_none() {
            return Ok(changes);
        }
        let base = match self.lowers.is_empty() {
            true => None,
            false => Some(Overlay::with_layers(
                self.lowers.clone(),
                None,
                Settings {
                    ownership: self.settings.ownership.clone(),
                    renames: self.settings.renames,
                    ..Settings::default()
                },
            )?),
        };
        // Whatever is handed out is kept to the end, since a directory is visited after its parent; it is given
        // back last first, children before their parents.
        let mut held = Vec::new();
        let mut walk = || -> Result<()> {
            let below = base.as_ref().map(|b| Arc::clone(&b.root));
            let mut todo = vec![(Vec::new(), Arc::clone(&self.root), below)];
            while let Some((path, dir, below)) = todo.pop() {
                let mut old = match (&base, &below) {
                    (Some(base), Some(below)) => base.children(below)?,
                    _ => Children::new(),
                };
                for (name, (node, attr)) in self.children(&dir)? {
                    let child: Vec<u8> =
                        if path.is_empty() { name.clone() } else { [&path[..], b"/", &name].concat() };
                    let before = old.remove(&name);
                    let kind = match &before {
                        None => Some(ChangeKind::Added),
                        Some((_, was)) => differs(was, &attr).then_some(ChangeKind::Modified),
                    };
                    if let Some(kind) = kind {
                        changes.push(Change { path: child.clone(), kind });
                    }
                    let below = before.map(|(node, _)| node);
                    if node.is_dir() && below.as_ref().is_none_or(|b| !is_unchanged(&node, b)) {
                        todo.push((child, Arc::clone(&node), below.filter(|b| b.is_dir())));
                        held.push(node);
                    } else {
                        self.put(node);
                        if let (Some(base), Some(below)) = (&base, below) {
                            base.put(below);
                        }
                    }
                }
                for (name, (node, _)) in old {
                    if let Some(base) = &base {
                        base.put(node);
                    }
                    let child = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
                    changes.push(Change { path: child, kind: ChangeKind::Removed });
                }
            }
            Ok(())
        };
        let walked = walk();
        while let Some(node) = held.pop() {
            self.put(node);
        }
        walked?;
        changes.sort();
        Ok(changes)
    }

    fn children(&self, dir: &Arc<Node>) -> Result<Children> {
        let mut children = Children::new();
        let mut after = 0;
        let mut failed = None;
        loop {
            let before = children.len();
            let read = self.read_dir(dir, after, &mut |entry| {
                after = entry.position;
                match entry.found {
                    Ok(found) => children.insert(entry.name.to_vec(), found),
                    // Nobody can tell whether it differs.
                    Err(broken) => {
                        let name = entry.name.escape_ascii().to_string();
                        failed = Some(broken.error.during("compare with the layers below", name));
                        return Taken::Full;
                    }
                };
                Taken::Kept
            });
            if let Err(e) = failed.take().map_or(read, Err) {
                for (node, _) in children.into_values() {
                    self.put(node);
                }
                return Err(e);
            }
            if children.len() == before {
                return Ok(children);
            }
        }
    }
}

/// True for a directory that is only in lower layers, and in the same ones as before: nothing in it can differ.
/// Below a renamed directory a path leads to what another path led to.
fn is_unchanged(node: &Node, below: &Node) -> bool {
    let (Some(is), Some(was)) = (&node.dir, &below.dir) else { return false };
    let is_same = |(a, b): (&LowerDir, &LowerDir)| a.layer == b.layer && a.path == b.path;
    !node.is_upper() && is.lowers.len() == was.lowers.len() && is.lowers.iter().zip(&was.lowers).all(is_same)
}

fn differs(was: &Attr, is: &Attr) -> bool {
    let common = (was.kind, was.perm, was.uid, was.gid) != (is.kind, is.perm, is.uid, is.gid);
    let device = was.device != is.device;
    let content = is.kind != Kind::Dir && (was.size_bytes, was.mtime) != (is.size_bytes, is.mtime);
    common || device || content
}

//! Mounts that come back: a client hands the mounts of a snapshot to whoever is to apply a layer to it, or to tell what
//! changed.
//!
//! Those of this store are known by their paths, and are never carried out: a layer goes straight into the directory of
//! the snapshot, and what changed is read from the layers, also while a container has them mounted. Anything else is
//! mounted for as long as it takes.
//!
//! A client that unpacks layers in parallel prepares each without a parent, and gives it one when it is committed. That
//! it will do so is told by the label `containerd.io/snapshot/parent-chain-id`, which containerd sets on every layer but
//! the lowest one:
//!
//! | snapshot without a parent | the layer becomes |
//! |---|---|
//! | with the label | a layer that names what it removes by marks on the disk, whatever is below |
//! | without the label | the lowest layer, without marks: it cannot get a parent afterwards |
//!
//! Some layers mean nothing without those below: a hard link to a file that is not in the layer, a directory that is on
//! the way and not in it, an opaque root. Such a layer waits until the snapshot of the label's chain is committed in the
//! same namespace, is begun anew, and applied on top of that one; then it is as if it had been prepared from it. Another
//! differ could not help, as it would lose the marks: so none is asked.

use super::kept::sync;
use super::layers::{Layered, Onto, PackedLayer, apply_to_tree, of_outside, pack_trees, read_layer};
use super::{LayerPaths, Snapshotter, not_found};
use crate::apply::Below;
use crate::backend::Progress;
use crate::compress::{Compression, decoder};
use crate::diff::{DiffOptions, PlainTree, StackTree, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filters;
use crate::layout::by_this_process;
use crate::mounting::temporary::{Purpose, Temporary, layers_of, the_one};
use crate::store::Record;
use crate::types::{Mount, SnapshotId, SnapshotKind, quoted};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The chain that the parent of a layer has, in the words of containerd.
const PARENT_LABEL: &str = "containerd.io/snapshot/parent-chain-id";

/// The chain that a snapshot is of, in the words of containerd.
const CHAIN_LABEL: &str = "containerd.io/snapshot.ref";

/// Whether a layer is to be on the disk when it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It is.
    Synced,
    /// It is when the snapshot is committed.
    AtCommit,
}

/// A snapshot of ours that mounts show.
struct Handed {
    record: Record,
    /// The directories that show it, top first.
    layers: Vec<PathBuf>,
}

/// What the paths of a mount say, if all of them are of this store.
struct Named {
    id: SnapshotId,
    /// The layers, top first; none are named by a mount that is kept.
    layers: Option<Vec<PathBuf>>,
    /// The first of them takes changes.
    takes_changes: bool,
}

/// A tree that mounts show.
enum Side {
    Nothing,
    Ours(Vec<PathBuf>),
    Mounted(Temporary),
}

impl Snapshotter {
    /// Unpacks a layer, compressed or not, into what mounts show.
    ///
    /// # Errors
    /// Those of [`Snapshotter::apply`] for a snapshot of ours; else those of mounting, of the layer and of the disk.
    pub fn apply_to<R: Read + Send + 'static>(
        &self,
        mounts: &[Mount],
        layer: R,
        durability: Durability,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        let Some(handed) = self.handed("apply", mounts)? else {
            return self.apply_mounted(mounts, layer, durability, progress);
        };
        let record = &handed.record;
        let onto = match (handed.layers.len(), record.labels.contains_key(PARENT_LABEL)) {
            _ if self.backend.upper(record.id).is_none() => Onto::Snapshot(Below::Nothing),
            (2.., _) => Onto::Snapshot(Below::Nothing),
            (_, true) => Onto::Snapshot(Below::Unknown),
            (_, false) => Onto::Lowest,
        };
        self.apply_handed(&handed, layer, &onto, durability, progress)
    }

    /// After [`Layered::NeedsLower`]: unpacks the layer once more from its beginning, on top of the snapshot `parent`.
    ///
    /// # Errors
    /// As [`Snapshotter::apply_to`].
    pub fn apply_again<R: Read + Send + 'static>(
        &self,
        mounts: &[Mount],
        parent: &str,
        layer: R,
        durability: Durability,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        let handed = self.handed("apply", mounts)?.ok_or_else(|| not_found("apply", parent))?;
        let onto = Onto::Again(self.layers(parent)?.lowers);
        self.apply_handed(&handed, layer, &onto, durability, progress)
    }

    /// After [`Layered::NeedsLower`]: the snapshot that the one of these mounts will be put on, once that is committed.
    ///
    /// # Errors
    /// `NotFound` if the snapshot is gone; `FailedPrecondition` if nothing tells what it will be put on.
    pub fn future_parent(&self, mounts: &[Mount]) -> Result<Option<String>> {
        let handed = self.handed("apply", mounts)?;
        let chain = handed.as_ref().and_then(|handed| handed.record.labels.get(PARENT_LABEL));
        let (Some(handed), Some(chain)) = (&handed, chain) else {
            let cause = "the layer makes no sense without those below, and nothing tells which they are: \
                         unpack the layers of this image one after the other";
            return Err(Error::new(ErrorKind::FailedPrecondition, "apply", "", cause));
        };
        let namespace = |name: &str| name.split_once('/').map(|(namespace, _)| namespace.to_owned());
        let own = namespace(&handed.record.name);
        let mut found = None;
        self.walk(&Filters::default(), |info| {
            let is_it = info.kind == SnapshotKind::Committed
                && info.labels.get(CHAIN_LABEL) == Some(chain)
                && namespace(&info.name) == own;
            if is_it {
                found = Some(info.name);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn apply_handed<R: Read + Send + 'static>(
        &self,
        handed: &Handed,
        layer: R,
        onto: &Onto,
        durability: Durability,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        let Record { id, name, .. } = &handed.record;
        self.without_kept(name, *id, progress, || {
            let applied = self.apply_onto(name, Some(*id), layer, onto, progress)?;
            if let (Some(top), Durability::Synced, Layered::Applied(..)) =
                (handed.layers.first(), durability, &applied)
            {
                sync(top).map_err(|e| Error::io("sync", top.display().to_string(), e))?;
            }
            Ok(applied)
        })
    }

    fn apply_mounted<R: Read + Send + 'static>(
        &self,
        mounts: &[Mount],
        layer: R,
        durability: Durability,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        let stream = decoder(layer).map_err(of_outside)?;
        let mounted = self.mounted(mounts, Purpose::Changing)?;
        let applied = read_layer(stream, |reader| apply_to_tree(mounted.path(), reader, progress));
        let applied = applied.map_err(|e| of_outside(e).during("apply", ""))?;
        if durability == Durability::Synced {
            let subject = || mounted.path().display().to_string();
            sync(mounted.path()).map_err(|e| Error::io("sync", subject(), e))?;
        }
        mounted.end()?;
        Ok(applied)
    }

    /// Packs what turns the tree of one set of mounts into that of another as a layer; gives the writer back. No mounts are
    /// an empty tree.
    ///
    /// # Errors
    /// As [`Snapshotter::pack`]; those of mounting.
    pub fn pack_between<W: Write>(
        &self,
        left: &[Mount],
        right: &[Mount],
        out: W,
        compression: Compression,
        options: &DiffOptions,
        progress: &dyn Progress,
    ) -> Result<(PackedLayer, W)> {
        let sides = (self.side(left)?, self.side(right)?);
        let trees = match &sides {
            (Side::Nothing, Side::Ours(new)) => Tree::pair(None, &paths(new), self.form())?,
            (Side::Ours(base), Side::Ours(new)) => Tree::pair(Some(&paths(base)), &paths(new), self.form())?,
            (base, new) => (tree(base)?, tree(new)?),
        };
        let packed = pack_trees(&trees, out, compression, options, progress);
        // Nothing may be open in what is unmounted.
        drop(trees);
        packed.map_err(|e| e.during("diff", ""))
    }

    fn side(&self, mounts: &[Mount]) -> Result<Side> {
        if mounts.is_empty() {
            return Ok(Side::Nothing);
        }
        match self.handed("diff", mounts)? {
            Some(handed) => {
                self.sync_kept(handed.record.id)?;
                Ok(Side::Ours(handed.layers))
            }
            None => self.mounted(mounts, Purpose::Reading).map(Side::Mounted),
        }
    }

    fn mounted(&self, mounts: &[Mount], purpose: Purpose) -> Result<Temporary> {
        let point = self.layout.mounts().join(by_this_process("look"));
        Temporary::attach(the_one(mounts)?, purpose, point, &self.settings.mounting)
    }

    /// The snapshot that mounts show, if they are of this store.
    fn handed(&self, operation: &'static str, mounts: &[Mount]) -> Result<Option<Handed>> {
        let Some(named) = the_one(mounts).ok().and_then(|mount| self.named_by(mount)) else {
            return Ok(None);
        };
        let id = named.id;
        let (record, chain) = self.store.read(operation, |rows| {
            let record = rows.record(id)?.filter(|record| record.realm == *self.realm());
            let record = record.ok_or_else(|| {
                let cause = "there is no such snapshot any more";
                Error::new(ErrorKind::NotFound, operation, format!("the mount of snapshot {id}"), cause)
            })?;
            let chain = rows.chain(&record)?;
            Ok((record, chain))
        })?;
        let whole = || self.backend.layers(id, &chain, record.has_directory);
        let Some(layers) = named.layers else {
            let layers = whole();
            return Ok(Some(Handed { record, layers }));
        };
        if named.takes_changes && layers != whole() {
            let cause = "the mount is of a snapshot of this store, with other layers than it has";
            return Err(Error::new(ErrorKind::InvalidArgument, operation, quoted(&record.name), cause));
        }
        Ok(Some(Handed { record, layers }))
    }

    /// What the paths of a mount say; `None` if one of them is not of this store.
    fn named_by(&self, mount: &Mount) -> Option<Named> {
        if mount.kind == "bind" {
            let source = Path::new(&mount.source);
            let kept = self.id_below(&self.layout.mounts(), source);
            if let Some(id) = kept.filter(|id| self.layout.mount_point(*id) == source) {
                return Some(Named { id, layers: None, takes_changes: false });
            }
            let layers = Some(vec![source.to_owned()]);
            return Some(Named { id: self.id_of(source)?, layers, takes_changes: false });
        }
        let (layers, takes_changes) = layers_of(mount)?;
        let ids: Vec<SnapshotId> = layers.iter().map(|layer| self.id_of(layer)).collect::<Option<_>>()?;
        Some(Named { id: *ids.first()?, layers: Some(layers), takes_changes })
    }

    /// The snapshot whose own directory this is.
    fn id_of(&self, path: &Path) -> Option<SnapshotId> {
        let id = self.id_below(&self.layout.snapshots(), path)?;
        (self.backend.layers(id, &[], true).first()? == path).then_some(id)
    }

    /// The id that the first name below `dir` is.
    fn id_below(&self, dir: &Path, path: &Path) -> Option<SnapshotId> {
        let first = path.strip_prefix(dir).ok()?.components().next()?;
        let id = first.as_os_str().to_str()?.parse().ok().map(SnapshotId)?;
        (id.to_string().as_str() == first.as_os_str()).then_some(id)
    }
}

fn paths(layers: &[PathBuf]) -> LayerPaths {
    LayerPaths { lowers: layers.to_vec(), upper: None, writable: false }
}

fn tree(side: &Side) -> Result<Tree> {
    match side {
        Side::Nothing => Ok(Tree::Empty),
        Side::Mounted(mounted) => PlainTree::open(mounted.path()).map(Tree::Plain),
        Side::Ours(layers) => match &layers[..] {
            [only] => PlainTree::open(only).map(Tree::Plain),
            layers => StackTree::open(layers).map(Tree::Stack),
        },
    }
}

//! Layers become committed snapshots, each on top of the one before and called by its chain ID.
//!
//! A layer that is there already is not made again. Where a backend lets a snapshot have its parent at commit, several
//! layers are unpacked at once, each without knowing what lies below it; one that needs to know (a hard link to a file of
//! a layer below, a directory that the layer itself does not hold) is unpacked again in its turn, on top of its parent.
//!
//! Each is unpacked in a snapshot that this process makes for itself ([`Snapshotter::prepare_held`]): after a failure it
//! is removed, after a crash the next cleanup removes it. What is committed is a whole layer with the digest that the
//! image says.

use super::chain::chain_ids;
use super::document::Described;
use super::watch::{Asked, Task, Watched, Watcher, go_on};
use crate::apply::Below;
use crate::content::ContentStore;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{Layered, Snapshotter};
use crate::store::{Blob, Digest};
use crate::types::{Labels, SnapshotKind, quoted};
use crossbeam::channel::{Receiver, bounded};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The label of the digest of a layer without compression.
pub const DIFF_ID: &str = "containerd.io/snapshot/plywood.diff-id";

/// How many layers are unpacked at once at most: what more would do, one disk does not, and each takes memory.
const MAX_AT_ONCE: usize = 4;

/// A layer to be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its blob.
    pub blob: Described,
    /// Its digest without compression.
    pub diff_id: Digest,
}

/// Whether a layer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Now.
    Now,
    /// It was there before.
    Before,
}

/// A layer that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The name of the snapshot.
    pub name: String,
    /// Its digest without compression.
    pub diff_id: Digest,
    /// Whether it was made.
    pub made: Made,
    /// What was left out, the first of it in words.
    pub warnings: Vec<String>,
}

/// Whether the blobs of layers stay in the content store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blobs {
    /// They do, for as long as their snapshots.
    Kept,
    /// They do not.
    Dropped,
}

/// Unpacks the layers of an image, the lowest first, from the content store.
///
/// # Errors
/// `InvalidArgument` if a layer is damaged or is not what the image says; `Cancelled`; those of the snapshotter. Layers
/// that were committed before stay.
pub fn unpack(
    snapshotter: &Snapshotter,
    content: &dyn ContentStore,
    layers: &[Layer],
    blobs: Blobs,
    watcher: &dyn Watcher,
) -> Result<Vec<Unpacked>> {
    let diff_ids: Vec<Digest> = layers.iter().map(|l| l.diff_id.clone()).collect();
    let names: Vec<String> = chain_ids(&diff_ids).iter().map(ToString::to_string).collect();
    let work =
        Work { snapshotter, content, layers, names: &names, blobs, watcher, warnings: Mutex::default() };
    // The chain is followed from its top: what is committed has its parents.
    let present = (0..layers.len()).rev().find(|&at| work.is_there(at)).map_or(0, |at| at + 1);
    for at in 0..present {
        work.adopt(at)?;
        let task = watcher.begin(&work.title(at), None);
        task.finish("there already");
    }
    for layer in &layers[present..] {
        work.check(&layer.blob)?;
    }
    let at_once = work.at_once(layers.len() - present);
    if at_once > 1 {
        work.side_by_side(present, at_once)?
    } else {
        work.one_by_one(present)?
    }
    let made = |at| if at < present { Made::Before } else { Made::Now };
    let mut warnings = work.warnings.into_inner();
    Ok(names
        .iter()
        .zip(diff_ids)
        .enumerate()
        .map(|(at, (name, diff_id))| Unpacked {
            name: name.clone(),
            diff_id,
            made: made(at),
            warnings: warnings.remove(&at).unwrap_or_default(),
        })
        .collect())
}

struct Work<'a> {
    snapshotter: &'a Snapshotter,
    content: &'a dyn ContentStore,
    layers: &'a [Layer],
    names: &'a [String],
    blobs: Blobs,
    watcher: &'a dyn Watcher,
    /// What was left out of each layer.
    warnings: Mutex<BTreeMap<usize, Vec<String>>>,
}

/// A layer in a snapshot of ours that is not committed yet. Removed when it is dropped.
struct Begun<'a> {
    snapshotter: &'a Snapshotter,
    key: String,
    committed: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = self.snapshotter.remove(&self.key) {
            tracing::warn!(key = self.key, %error, "a layer that was not unpacked whole stays until the next cleanup");
        }
    }
}

impl Work<'_> {
    fn title(&self, at: usize) -> String {
        let hex = self.layers[at].diff_id.as_str();
        let short = hex.split_once(':').map_or(hex, |(_, hex)| hex.get(..12).unwrap_or(hex));
        format!("layer {} of {} {short}", at + 1, self.layers.len())
    }

    fn parent(&self, at: usize) -> Option<&str> {
        at.checked_sub(1).map(|below| self.names[below].as_str())
    }

    fn is_there(&self, at: usize) -> bool {
        self.snapshotter.stat(&self.names[at]).is_ok_and(|info| {
            info.kind == SnapshotKind::Committed && info.parent == self.parent(at).unwrap_or_default()
        })
    }

    /// How many layers are unpacked at once.
    fn at_once(&self, count: usize) -> usize {
        if !self.snapshotter.can_rebase() {
            return 1;
        }
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        count.min(processors).min(MAX_AT_ONCE)
    }

    /// Of an image that is not whole nothing is unpacked.
    fn check(&self, blob: &Described) -> Result<()> {
        self.content.open_sized(&blob.digest, blob.size_bytes).map(drop).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::Corrupt => e.as_kind(ErrorKind::InvalidArgument),
            _ => e,
        })
    }

    /// A layer that was there may not know its blob: it is told.
    fn adopt(&self, at: usize) -> Result<()> {
        let blob = &self.layers[at].blob;
        if self.blobs == Blobs::Dropped || self.content.info(&blob.digest).is_err() {
            return Ok(());
        }
        match self.snapshotter.set_blob(&self.names[at], &blob_of(blob)) {
            // It came another time with another compression; or it has just gone with the last one that referred to it.
            Err(e) if matches!(e.kind(), ErrorKind::FailedPrecondition | ErrorKind::NotFound) => Ok(()),
            other => other.map(drop),
        }
    }

    fn one_by_one(&self, from: usize) -> Result<()> {
        for at in from..self.layers.len() {
            let task = self.watcher.begin(&self.title(at), Some(self.layers[at].blob.size_bytes));
            let begun = self.begin(at, self.parent(at), Below::Nothing, &task)?;
            let begun =
                begun.ok_or_else(|| self.failed(at, "it could not be unpacked on top of its parent"))?;
            self.commit(at, begun, None)?;
            task.finish("");
        }
        Ok(())
    }

    /// Workers take layers from below; commits are in order, since each needs its parent.
    fn side_by_side(&self, from: usize, at_once: usize) -> Result<()> {
        let next = AtomicUsize::new(from);
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (send, receive) = bounded(self.layers.len());
            for _ in 0..at_once {
                let (send, next, stopped) = (send.clone(), &next, &stopped);
                let work = move || {
                    while !stopped.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= self.layers.len() {
                            break;
                        }
                        let task = self.watcher.begin(&self.title(at), Some(self.layers[at].blob.size_bytes));
                        // The lowest layer has nothing below that it could need.
                        let below = if at == 0 { Below::Nothing } else { Below::Unknown };
                        let begun = self.begin(at, None, below, &task);
                        if send.send((at, begun, task)).is_err() {
                            break;
                        }
                    }
                };
                std::thread::Builder::new()
                    .name("unpack".to_owned())
                    .spawn_scoped(scope, work)
                    .map_err(|e| Error::io("start thread", "unpack", e))?;
            }
            drop(send);
            let done = self.commit_in_order(from, &receive);
            stopped.store(true, Ordering::Relaxed);
            done
        })
    }

    fn commit_in_order(&self, from: usize, receive: &Receiver<Arrival<'_>>) -> Result<()> {
        let mut waiting = BTreeMap::new();
        for at in from..self.layers.len() {
            while !waiting.contains_key(&at) {
                // A worker ends only when it has sent what it took, or nobody wants it any more.
                let Ok((came, begun, task)) = receive.recv() else {
                    return Err(self.failed(at, "whoever unpacked it is gone"));
                };
                waiting.insert(came, (begun?, task));
            }
            let Some((begun, task)) = waiting.remove(&at) else { continue };
            match begun {
                Some(begun) => self.commit(at, begun, self.parent(at))?,
                None => {
                    tracing::info!(layer = %self.layers[at].diff_id, "unpacked again on top of its parent");
                    let again = self.watcher.begin(&self.title(at), Some(self.layers[at].blob.size_bytes));
                    let begun = self.begin(at, self.parent(at), Below::Nothing, &again)?;
                    let begun = begun
                        .ok_or_else(|| self.failed(at, "it could not be unpacked on top of its parent"))?;
                    self.commit(at, begun, None)?;
                }
            }
            task.finish("");
        }
        Ok(())
    }

    /// Unpacks a layer into a snapshot of our own; `None` if it needs to know what is below.
    fn begin(
        &self,
        at: usize,
        parent: Option<&str>,
        below: Below,
        task: &Arc<dyn Task>,
    ) -> Result<Option<Begun<'_>>> {
        go_on(self.watcher, "import")?;
        let layer = &self.layers[at];
        let key = crate::layout::by_this_process("import");
        self.snapshotter.prepare_held(&key, parent, Labels::new(), &Asked(self.watcher))?;
        let begun = Begun { snapshotter: self.snapshotter, key, committed: false };
        let source = Watched::new(self.content.open(&layer.blob.digest)?, Arc::clone(task));
        let applied = self.snapshotter.apply(&begun.key, source, below, &Asked(self.watcher));
        match applied.map_err(|e| e.during("unpack", layer.blob.digest.as_str()))? {
            Layered::NeedsLower => Ok(None),
            Layered::Applied(applied, _) if applied.diff_id == layer.diff_id => {
                self.warnings.lock().insert(at, applied.applied.warnings);
                Ok(Some(begun))
            }
            Layered::Applied(applied, _) => {
                let cause = format!(
                    "its content has the digest {}, and the image says {}",
                    applied.diff_id, layer.diff_id
                );
                Err(Error::new(ErrorKind::InvalidArgument, "unpack", layer.blob.digest.as_str(), cause))
            }
        }
    }

    fn commit(&self, at: usize, mut begun: Begun<'_>, parent: Option<&str>) -> Result<()> {
        let layer = &self.layers[at];
        let labels = Labels::from([(DIFF_ID.to_owned(), layer.diff_id.to_string())]);
        match self.snapshotter.commit(&self.names[at], &begun.key, labels, parent, &Asked(self.watcher)) {
            Ok(()) => begun.committed = true,
            // Somebody else unpacked the same image meanwhile.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && self.is_there(at) => {}
            Err(e) => return Err(e),
        }
        // Not before: with a snapshot that is given up its blob would go, which others may be about to unpack.
        self.adopt(at)
    }

    fn failed(&self, at: usize, cause: &str) -> Error {
        Error::new(ErrorKind::Io, "unpack", quoted(&self.names[at]), cause)
    }
}

/// A layer that a worker is done with.
type Arrival<'a> = (usize, Result<Option<Begun<'a>>>, Arc<dyn Task>);

fn blob_of(described: &Described) -> Blob {
    Blob {
        digest: described.digest.clone(),
        media_type: described.media_type.clone(),
        size_bytes: described.size_bytes,
    }
}

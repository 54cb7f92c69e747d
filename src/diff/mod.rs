//! What differs between two trees, and the layer that says so.
//!
//! [`changes`] tells every path that differs; [`write_layer`] writes what turns the base into the new tree as a tar
//! archive, byte for byte what containerd's walking differ makes of the same two trees. [`Tree`] is what both look at:
//! a directory, a stack of layers, or nothing.
//!
//! From the ground up: [`change`] says what makes a file another one and which path comes first, as functions of values;
//! `tree` with `plain` and `stack` reads; `ahead` lets others read ahead; `walk` goes through both trees side by
//! side; `layer` makes members of what it finds.
//!
//! Of two stacks that have layers in common only what the other layers list is looked at, so that the cost follows what
//! changed and not what exists. The result is the same: [`Extent::Everything`] is there to prove it.
//!
//! Absent: compression and digests, which are for whoever has the stream; opaque marks, since a layer that
//! names each removed path is what a walk of two trees gives.

mod ahead;
pub mod change;
mod layer;
mod plain;
mod stack;
mod tree;
mod walk;

pub use change::{Change, ChangeKind, FileId, Meta, Xattrs};
pub use layer::Written;
pub use plain::PlainTree;
pub use stack::StackTree;
pub use tree::{Form, Tree};
pub use walk::Extent;

use crate::archive::Writer;
use crate::backend::Progress;
use crate::error::Result;
use std::io::Write;
use walk::{Seen, Sink, Walk};

/// How two trees are compared and what of them is written.
#[derive(Debug, Clone, Default)]
pub struct DiffOptions {
    /// No time in the layer is later than this one, in seconds since 1970; `None` leaves them as they are.
    pub source_date_epoch: Option<i64>,
    /// Which extended attributes are compared and written.
    pub xattrs: Xattrs,
    /// How much is looked at. The result is the same.
    pub extent: Extent,
}

/// Tells every path that differs, in the order of a layer: parents before their children, `/` before every other byte.
/// A removed directory is one change.
///
/// # Errors
/// Those of `each` and of the disk; `Aborted` if something is exchanged meanwhile; `Cancelled`.
pub fn changes(
    base: &Tree,
    new: &Tree,
    options: &DiffOptions,
    progress: &dyn Progress,
    each: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    let walk = Walk { base, new, xattrs: options.xattrs, progress };
    walk.run(options.extent, &mut Teller(each))
}

struct Teller<'a>(&'a mut dyn FnMut(Change) -> Result<()>);

impl Sink for Teller<'_> {
    fn see(&mut self, seen: &Seen<'_>) -> Result<()> {
        match seen.kind {
            Some(kind) => (self.0)(Change { path: seen.path.to_vec(), kind, meta: seen.meta }),
            None => Ok(()),
        }
    }

    fn restart(&mut self) {}
}

/// Writes what turns `base` into `new` to an archive, which is not finished.
///
/// # Errors
/// `InvalidArgument` if a layer cannot say it: a changed file whose own name begins with `.wh.`, a path that is too
/// long; `Aborted` if a file is exchanged or changes its size meanwhile: what was written so far is no layer then;
/// `Cancelled`; those of the disk and of the archive.
pub fn write_layer<W: Write>(
    base: &Tree,
    new: &Tree,
    writer: &mut Writer<W>,
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<Written> {
    let walk = Walk { base, new, xattrs: options.xattrs, progress };
    let mut layer = layer::LayerWriter::new(writer, options, progress);
    walk.run(options.extent, &mut layer)?;
    Ok(layer.written)
}

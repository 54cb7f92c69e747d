//! Layers into snapshots and out of them, without a mount.
//!
//! A snapshot to which a layer is being applied is marked as incomplete in its row before anything is changed, and held by
//! this process; the mark goes when the layer is there whole. So whatever fails or is killed in between, half a layer is
//! never committed: such a snapshot can be looked at and removed.

use super::mounted::{hold_row, in_use, is_held_by};
use super::{LayerPaths, Snapshotter};
use crate::apply::{self, Below, DirTarget, OverlayTarget, SameOwner};
use crate::archive::{Limits, Reader, Writer};
use crate::backend::delete::delete_at;
use crate::backend::{BackendName, Progress};
use crate::compress::{
    Compression, Decoder, Encoder, Hasher, HashingReader, HashingWriter, ReadAhead, decoder,
};
use crate::diff::{self, Change, DiffOptions, Form, Tree};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Digest, MountRow, ProcessMark, Record};
use crate::types::{SnapshotId, SnapshotKind, check_name, quoted};
use plywood_fuse::sys::process::effective_uid;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A layer that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedLayer {
    /// Its digest without compression.
    pub diff_id: Digest,
    /// Its bytes without compression.
    pub size_bytes: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// The archive has an end of its own. Many programs write none, but one without may have been cut off.
    pub has_end: bool,
    /// What was done.
    pub applied: apply::Applied,
}

/// What came of a layer.
#[derive(Debug)]
pub enum Layered<R> {
    /// It was applied, and its reader has been read to its end.
    Applied(AppliedLayer, R),
    /// It cannot be applied without the layers below. The snapshot holds a part of it, and can only be removed.
    NeedsLower,
}

/// A layer that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayer {
    /// Its digest as it was written.
    pub digest: Digest,
    /// Its bytes as they were written.
    pub size_bytes: u64,
    /// Its digest without compression.
    pub diff_id: Digest,
    /// Members of the archive.
    pub entries: u64,
}

/// An active snapshot that a layer is being applied to by this process.
struct Opened {
    record: Record,
    paths: LayerPaths,
    process: ProcessMark,
}

/// What a layer is applied to.
pub(super) enum Onto {
    /// The snapshot as it is; `Below` counts for one that has no parent.
    Snapshot(Below),
    /// A snapshot without a parent, as the lowest layer of all: it will not get one.
    Lowest,
    /// A snapshot without a parent that holds a part of the layer, on top of these directories, which it will be put on.
    Again(Vec<PathBuf>),
}

impl Onto {
    fn below(&self) -> Below {
        match self {
            Onto::Snapshot(below) => *below,
            Onto::Lowest => Below::Nothing,
            Onto::Again(_) => Below::Unknown,
        }
    }
}

impl Snapshotter {
    /// Unpacks a layer, compressed or not, into an active snapshot.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` if it is not active or another layer was not applied whole; `Busy` while it is
    /// mounted or somebody works in it; `InvalidArgument` for a layer that is damaged or makes no sense; `Cancelled`;
    /// those of the disk. A snapshot that was changed by then can only be removed.
    pub fn apply<R: Read + Send + 'static>(
        &self,
        key: &str,
        layer: R,
        below: Below,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        check_name("apply", key)?;
        self.apply_onto(key, None, layer, &Onto::Snapshot(below), progress)
    }

    /// The same, if the key is that of the snapshot `expected`.
    pub(super) fn apply_onto<R: Read + Send + 'static>(
        &self,
        key: &str,
        expected: Option<SnapshotId>,
        layer: R,
        onto: &Onto,
        progress: &dyn Progress,
    ) -> Result<Layered<R>> {
        // What cannot be read at all changes nothing.
        let stream = decoder(layer).map_err(of_outside)?;
        let opened = self.begin_layer(key, expected, onto)?;
        let applied = read_layer(stream, |reader| self.apply_members(&opened, reader, onto, progress));
        let whole = matches!(&applied, Ok(Layered::Applied(..)));
        self.end_layer(&opened, whole)?;
        applied.map_err(|e| {
            let e = of_outside(e).during("apply", quoted(key));
            tracing::debug!(key, error = %e, "the snapshot holds a part of a layer");
            e
        })
    }

    fn apply_members(
        &self,
        opened: &Opened,
        reader: &mut dyn apply::Source,
        onto: &Onto,
        progress: &dyn Progress,
    ) -> Result<apply::Outcome> {
        let (id, below) = (opened.record.id, onto.below());
        match (&opened.paths.upper, self.backend.upper(id)) {
            // Changes are kept apart from the layers below.
            (Some((upper, work)), _) => {
                let mut target = OverlayTarget::open(&opened.paths.lowers, upper, work)?;
                apply::apply(reader, &mut target, progress)
            }
            (None, Some(upper)) => {
                let work = self.layout.work(id);
                if let Onto::Again(lowers) = onto {
                    clear(&upper)?;
                    let mut target = OverlayTarget::open(lowers, &upper, &work)?;
                    return apply::apply(reader, &mut target, progress);
                }
                // A layer by itself, which others will be stacked upon, or which will be stacked.
                let mut target = DirTarget::layer(&upper, &work, below)?;
                apply::apply(reader, &mut target, progress)
            }
            (None, None) => {
                let root = opened.paths.lowers.first();
                let missing = || {
                    Error::new(
                        ErrorKind::Corrupt,
                        "apply",
                        quoted(&opened.record.name),
                        "it has no directory",
                    )
                };
                apply_to_tree(root.ok_or_else(missing)?, reader, progress)
            }
        }
    }

    /// Marks a snapshot as incomplete, and holds it.
    fn begin_layer(&self, key: &str, expected: Option<SnapshotId>, onto: &Onto) -> Result<Opened> {
        let process = ProcessMark::current()?;
        self.forget_dead_mounts_of(key)?;
        let (record, former) = self.store.write_with_others("apply", |rows| {
            let record = rows.find(self.realm(), key)?;
            let former = record.flags;
            let refuse = |kind, cause: String| Err(Error::new(kind, "apply", quoted(key), cause));
            if expected.is_some_and(|id| id != record.id) {
                return refuse(
                    ErrorKind::Aborted,
                    "it was removed and made anew meanwhile: try again".to_owned(),
                );
            }
            if record.kind != SnapshotKind::Active {
                let cause = format!(
                    "it is {}, and only active snapshots are changed: prepare one",
                    record.kind.as_str()
                );
                return refuse(ErrorKind::FailedPrecondition, cause);
            }
            let ours = |row: &MountRow| record.flags & Record::TRANSIENT != 0 && is_held_by(row, &process);
            if let Some(row) = rows.mounts_of(record.id)?.iter().find(|row| !ours(row)) {
                return refuse(ErrorKind::Busy, in_use(row));
            }
            if record.flags & Record::INCOMPLETE != 0 && !matches!(onto, Onto::Again(_)) {
                let cause = "another layer was not applied to it whole: remove it, and begin again";
                return refuse(ErrorKind::FailedPrecondition, cause.to_owned());
            }
            if record.flags & Record::TRANSIENT == 0 {
                rows.add_mount(&hold_row(record.id, process))?;
            }
            let lowest = if matches!(onto, Onto::Lowest) { Record::LOWEST } else { 0 };
            Ok((rows.set_flags(record.id, record.flags | Record::INCOMPLETE | lowest)?, former))
        })?;
        let begun = crate::fail::point("l.after_begin")
            .and_then(|()| self.thaw_after_crash("apply", &record))
            .and_then(|()| self.layers(key));
        match begun {
            Ok(paths) => Ok(Opened { record, paths, process }),
            Err(failed) => {
                if let Err(undo) = self.let_go(&record, &process, record.flags & !former) {
                    tracing::warn!(key, error = %undo, "a snapshot into which nothing was put stays marked and held");
                }
                Err(failed)
            }
        }
    }

    /// Lets a snapshot go, and takes the mark away if the layer is whole.
    fn end_layer(&self, opened: &Opened, whole: bool) -> Result<()> {
        crate::fail::point("l.before_end")?;
        let gone = if whole { Record::INCOMPLETE } else { 0 };
        self.let_go(&opened.record, &opened.process, gone)
    }

    /// Lets a snapshot go, and takes these flags away.
    fn let_go(&self, opened: &Record, process: &ProcessMark, gone: u32) -> Result<()> {
        self.store.write_with_others("apply", |rows| {
            let Some(record) = rows.record(opened.id)? else { return Ok(()) };
            if record.flags & Record::TRANSIENT == 0 {
                let held = rows.mounts_of(record.id)?;
                if let Some(row) = held.iter().find(|row| is_held_by(row, process)) {
                    rows.remove_mount(row)?;
                }
            }
            if record.flags & gone != 0 {
                rows.set_flags(record.id, record.flags & !gone)?;
            }
            Ok(())
        })
    }

    /// What the directories of this backend are.
    pub(super) fn form(&self) -> Form {
        let stacks = self.backend().shares_directories_with(BackendName::Fuse);
        if stacks { Form::Layers } else { Form::Whole }
    }

    /// The trees of a snapshot and of what it is compared with: its parent, if `base` is not said.
    fn trees(&self, operation: &'static str, key: &str, base: Option<&str>) -> Result<(Tree, Tree)> {
        check_name(operation, key)?;
        let parent;
        let base = match base {
            Some(base) => Some(base),
            None => {
                parent = self.stat(key)?.parent;
                Some(parent.as_str()).filter(|p| !p.is_empty())
            }
        };
        let base = base.map(|base| self.layers(base)).transpose()?;
        let form = self.form();
        Tree::pair(base.as_ref(), &self.layers(key)?, form).map_err(|e| e.during(operation, quoted(key)))
    }

    /// Tells every path in which a snapshot differs from another one, or from its parent, in the order of a layer.
    ///
    /// # Errors
    /// `NotFound`; those of `each` and of the disk; `Cancelled`.
    pub fn changes(
        &self,
        key: &str,
        base: Option<&str>,
        progress: &dyn Progress,
        each: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<()> {
        let (base, new) = self.trees("changes", key, base)?;
        diff::changes(&base, &new, &DiffOptions::default(), progress, each)
            .map_err(|e| e.during("changes", quoted(key)))
    }

    /// Packs what turns another snapshot, or the parent, into this one as a layer; gives the writer back.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a tree that no layer can express; `Cancelled`; those of the disk and of the
    /// writer.
    pub fn pack<W: Write>(
        &self,
        key: &str,
        base: Option<&str>,
        out: W,
        compression: Compression,
        options: &DiffOptions,
        progress: &dyn Progress,
    ) -> Result<(PackedLayer, W)> {
        let trees = self.trees("diff", key, base)?;
        pack_trees(&trees, out, compression, options, progress).map_err(|e| e.during("diff", quoted(key)))
    }
}

/// Packs what turns the first tree into the second one.
pub(super) fn pack_trees<W: Write>(
    (base, new): &(Tree, Tree),
    out: W,
    compression: Compression,
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<(PackedLayer, W)> {
    let out = HashingWriter::new(out, Hasher::in_thread());
    if compression == Compression::None {
        let mut writer = Writer::new(out);
        let written = diff::write_layer(base, new, &mut writer, options, progress)?;
        let (out, digest, size_bytes) = writer.finish()?.finish()?;
        let diff_id = digest.clone();
        return Ok((PackedLayer { digest, size_bytes, diff_id, entries: written.entries }, out));
    }
    let encoder = Encoder::new(out, compression, None, 0)?;
    let mut writer = Writer::new(HashingWriter::new(encoder, Hasher::in_thread()));
    let written = diff::write_layer(base, new, &mut writer, options, progress)?;
    let (encoder, diff_id, _) = writer.finish()?.finish()?;
    let (out, digest, size_bytes) = encoder.finish()?.finish()?;
    Ok((PackedLayer { digest, size_bytes, diff_id, entries: written.entries }, out))
}

/// Reads a layer to its end, and has its members applied.
pub(super) fn read_layer<R: Read + Send + 'static>(
    stream: ReadAhead<Decoder<R>>,
    apply: impl FnOnce(&mut dyn apply::Source) -> Result<apply::Outcome>,
) -> Result<Layered<R>> {
    let stream = HashingReader::new(stream, Hasher::in_thread());
    let mut reader = Reader::new(stream, Limits::default());
    let applied = match apply(&mut reader)? {
        apply::Outcome::Applied(applied) => applied,
        apply::Outcome::NeedsLower(why) => {
            tracing::debug!(why, "a layer needs those below");
            return Ok(Layered::NeedsLower);
        }
    };
    // What stands behind the end of the archive counts for its digest.
    let has_end = reader.has_end();
    let (stream, diff_id, size_bytes) = reader.finish()?.finish()?;
    let decoder = stream.into_inner()?;
    let compression = decoder.compression();
    let layer = AppliedLayer { diff_id, size_bytes, compression, has_end, applied };
    Ok(Layered::Applied(layer, decoder.into_inner()))
}

/// Applies members to a directory that is a whole tree.
pub(super) fn apply_to_tree(
    root: &Path,
    reader: &mut dyn apply::Source,
    progress: &dyn Progress,
) -> Result<apply::Outcome> {
    let same_owner = if effective_uid() == 0 { SameOwner::Keep } else { SameOwner::IfPossible };
    let mut target = DirTarget::plain(root, same_owner)?;
    apply::apply(reader, &mut target, progress)
}

/// Empties a directory.
fn clear(dir: &Path) -> Result<()> {
    let failed = |e| Error::io("clear", dir.display().to_string(), e);
    let root = std::fs::File::open(dir).map_err(failed)?;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        delete_at(root.as_fd(), entry.map_err(failed)?.file_name().as_bytes())?;
    }
    Ok(())
}

/// What is wrong with a layer is no fault of the store.
pub(super) fn of_outside(error: Error) -> Error {
    if error.kind() == ErrorKind::Corrupt { error.as_kind(ErrorKind::InvalidArgument) } else { error }
}

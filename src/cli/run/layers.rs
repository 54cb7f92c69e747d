//! `diff`, `changes`, `apply`.

use super::{Failed, Outcome, Session};
use crate::apply::Below;
use crate::cli::args::layers as args;
use crate::cli::args::layers::{Attributes, Packing};
use crate::cli::ended;
use crate::cli::exit::Code;
use crate::cli::output::{self, Answer, bytes, fields, printable};
use crate::cli::progress::{Shown, Source};
use crate::compress::Compression;
use crate::diff::{ChangeKind, DiffOptions, Xattrs};
use crate::error::{Error, ErrorKind, Result};
use crate::image::watch::{Asked, Watched, Watcher};
use crate::snapshotter::Layered;
use crate::types::quoted;
use serde::Serialize;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a word of the command line compresses.
pub(super) fn compression(packing: Packing) -> Compression {
    match packing {
        Packing::None => Compression::None,
        Packing::Gzip => Compression::Gzip,
        Packing::Zstd => Compression::Zstd,
    }
}

/// Which attributes a word of the command line means.
pub(super) fn xattrs(attributes: Attributes) -> Xattrs {
    match attributes {
        Attributes::Caps => Xattrs::Caps,
        Attributes::User => Xattrs::User,
    }
}

/// How the name of a file says that it is compressed.
fn compression_of(path: &Path) -> Compression {
    match path.extension().and_then(|e| e.to_str()) {
        Some("gz" | "tgz") => Compression::Gzip,
        Some("zst" | "tzst") => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The time that `SOURCE_DATE_EPOCH` says.
pub(super) fn source_date_epoch() -> Result<Option<i64>> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    let number = value.to_str().and_then(|v| v.parse::<i64>().ok()).filter(|n| *n >= 0);
    number.map(Some).ok_or_else(|| {
        let cause = "it must be seconds since 1970, like 1700000000";
        Error::new(ErrorKind::InvalidArgument, "SOURCE_DATE_EPOCH", format!("{value:?}"), cause)
    })
}

/// Where a layer or an archive goes: standard output, or a file that has its name when it is whole.
pub(super) enum Output {
    Standard(io::Stdout),
    File {
        file: File,
        temporary: PathBuf,
        path: PathBuf,
        kept: bool,
    },
    /// A device, a fifo: written as it is.
    Special(File),
}

impl Output {
    pub(super) fn open(path: &Path) -> Result<Output> {
        if path.as_os_str() == "-" {
            let out = io::stdout();
            if out.is_terminal() {
                let cause = "standard output is a terminal: choose a file with --output, or a pipe";
                return Err(Error::new(ErrorKind::InvalidArgument, "write", "-", cause));
            }
            return Ok(Output::Standard(out));
        }
        // A symlink is written through: what it leads to is replaced, not the link. What the kernel makes up (such as
        // /dev/stdout) is written in place.
        let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let made_up = |p: &Path| p.starts_with("/dev") || p.starts_with("/proc");
        let failed = |e| Error::io("write", path.display().to_string(), e);
        let is_special = std::fs::metadata(&resolved).is_ok_and(|meta| !meta.is_file() && !meta.is_dir());
        if is_special || made_up(path) || made_up(&resolved) {
            let file = File::options().write(true).open(path).map_err(failed)?;
            return Ok(Output::Special(file));
        }
        let path = resolved.as_path();
        let name = path.file_name().ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EISDIR)))?;
        if path.is_dir() {
            return Err(failed(io::Error::from_raw_os_error(libc::EISDIR)));
        }
        let mut temporary = name.to_owned();
        temporary.push(crate::layout::by_this_process(".plywood"));
        let temporary = path.with_file_name(temporary);
        let file =
            File::options().write(true).create_new(true).mode(0o666).open(&temporary).map_err(failed)?;
        Ok(Output::File { file, temporary, path: path.to_owned(), kept: false })
    }

    pub(super) fn writer(&mut self) -> &mut (dyn Write + Send) {
        match self {
            Output::Standard(out) => out,
            Output::File { file, .. } | Output::Special(file) => file,
        }
    }

    /// True if what is said beside it could get into it.
    pub(super) fn is_standard(&self) -> bool {
        matches!(self, Output::Standard(_) | Output::Special(_))
    }

    /// All is written: the file gets its name.
    pub(super) fn keep(&mut self) -> Result<()> {
        match self {
            Output::Standard(out) => out.flush().map_err(|e| Error::io("write", "standard output", e)),
            Output::Special(_) => Ok(()),
            Output::File { temporary, path, kept, .. } => {
                std::fs::rename(&*temporary, &*path)
                    .map_err(|e| Error::io("write", path.display().to_string(), e))?;
                *kept = true;
                Ok(())
            }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Output::File { temporary, kept: false, .. } = self {
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Prints an answer; on standard error if standard output has the layer.
pub(super) fn tell(session: &Session, answer: &impl Answer, to_standard: bool) -> Outcome {
    if !to_standard {
        return session.print(answer);
    }
    output::print(&mut io::stderr().lock(), session.format, answer).map_err(Failed::Unheard)?;
    Ok(Code::DONE)
}

/// A layer that was written.
#[derive(Serialize)]
struct Written {
    digest: String,
    diff_id: String,
    size_bytes: u64,
    entries: u64,
}

impl Answer for Written {
    fn text(&self) -> String {
        fields(&[
            ("digest", self.digest.clone()),
            ("diff id", self.diff_id.clone()),
            ("size", bytes(self.size_bytes)),
            ("entries", self.entries.to_string()),
        ])
    }
}

pub(super) fn diff(session: &Session, args: &args::Diff) -> Outcome {
    let options = DiffOptions {
        source_date_epoch: source_date_epoch()?,
        xattrs: xattrs(args.xattrs),
        ..DiffOptions::default()
    };
    let compression = args.compress.map_or_else(|| compression_of(&args.output), compression);
    let snapshotter = session.open()?;
    let shown = Shown::start(session.verbosity())?;
    let base = args.base.as_deref();
    let done = Output::open(&args.output).and_then(|mut out| {
        let task = shown.begin(&format!("layer of {}", args.key), None);
        let sink = Told { inner: out.writer(), task: Arc::clone(&task) };
        let (packed, _) = snapshotter.pack(&args.key, base, sink, compression, &options, &Asked(&shown))?;
        out.keep()?;
        task.finish("");
        Ok((packed, out.is_standard()))
    });
    Session::close(&snapshotter);
    match done {
        Ok((packed, to_standard)) => {
            let written = Written {
                digest: packed.digest.to_string(),
                diff_id: packed.diff_id.to_string(),
                size_bytes: packed.size_bytes,
                entries: packed.entries,
            };
            tell(session, &written, to_standard)
        }
        Err(error) => Ok(ended(&error)),
    }
}

/// A writer that tells its task what was written.
struct Told<W> {
    inner: W,
    task: Arc<dyn crate::image::watch::Task>,
}

impl<W: Write> Write for Told<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.task.advance(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A path that differs.
#[derive(Serialize)]
struct Changed {
    path: String,
    kind: &'static str,
}

/// Paths that differ, in order.
#[derive(Serialize)]
#[serde(transparent)]
struct ChangeList(Vec<Changed>);

impl Answer for ChangeList {
    fn text(&self) -> String {
        let letter = |kind: &str| kind.get(..1).unwrap_or_default().to_uppercase();
        self.0.iter().map(|c| format!("{} {}\n", letter(c.kind), printable(&c.path))).collect()
    }
}

pub(super) fn changes(session: &Session, args: &args::Changes) -> Outcome {
    let snapshotter = session.open()?;
    let shown = Shown::start(session.verbosity())?;
    let mut list = Vec::new();
    let found = snapshotter.changes(&args.key, args.base.as_deref(), &Asked(&shown), &mut |change| {
        list.push(Changed {
            path: format!("/{}", String::from_utf8_lossy(&change.path)),
            kind: match change.kind {
                ChangeKind::Added => "added",
                ChangeKind::Modified => "modified",
                ChangeKind::Removed => "deleted",
            },
        });
        Ok(())
    });
    Session::close(&snapshotter);
    match found {
        Ok(()) => session.print(&ChangeList(list)),
        Err(error) => Ok(ended(&error)),
    }
}

/// A layer that was applied.
#[derive(Serialize)]
struct Applied<'a> {
    key: &'a str,
    diff_id: String,
    size_bytes: u64,
    entries: u64,
}

impl Answer for Applied<'_> {
    fn text(&self) -> String {
        format!("{}\n", self.diff_id)
    }
}

pub(super) fn apply(session: &Session, args: &args::Apply) -> Outcome {
    let shown = Shown::start(session.verbosity())?;
    let (source, total): (Box<dyn Read + Send>, Option<u64>) = match shown.open(Path::new(&args.file))? {
        Source::File(file, size_bytes) => (Box::new(file), Some(size_bytes)),
        Source::Stream(stream) => (Box::new(stream), None),
    };
    let snapshotter = session.open()?;
    let task = shown.begin(&format!("layer into {}", args.key), total);
    let source = Watched::new(source, Arc::clone(&task));
    let applied = snapshotter.apply(&args.key, source, Below::Nothing, &Asked(&shown));
    Session::close(&snapshotter);
    match applied {
        Ok(Layered::Applied(layer, _)) => {
            task.finish("");
            for warning in &layer.applied.warnings {
                tracing::warn!("{warning}");
            }
            session.print(&Applied {
                key: &args.key,
                diff_id: layer.diff_id.to_string(),
                size_bytes: layer.size_bytes,
                entries: layer.applied.entries,
            })
        }
        Ok(Layered::NeedsLower) => {
            let cause = "it could not be applied on top of the layers below";
            Ok(ended(&Error::new(ErrorKind::Io, "apply", quoted(&args.key), cause)))
        }
        Err(error) => Ok(ended(&error)),
    }
}

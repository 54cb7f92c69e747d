//! `import`, `export`.

use super::layers::{Output, compression, source_date_epoch, xattrs};
use super::{Outcome, Session};
use crate::cli::args::layers as args;
use crate::cli::output::{Align, Answer, Table, bytes};
use crate::cli::progress::{Shown, Source};
use crate::cli::{ended, output};
use crate::error::{Error, ErrorKind, Result};
use crate::image::document::Platform;
use crate::image::export::{ExportOptions, Exported, export as pack};
use crate::image::import::{ImportOptions, Imported, Input, Taken, import as take_in};
use crate::image::unpack::{Blobs, Made};
use serde::Serialize;
use std::path::Path;

/// An image that was imported.
#[derive(Serialize)]
struct ImportedImage {
    name: String,
    image: Option<String>,
    layers: Vec<ImportedLayer>,
}

#[derive(Serialize)]
struct ImportedLayer {
    name: String,
    diff_id: String,
    new: bool,
}

impl Answer for ImportedImage {
    /// The name of the top snapshot, alone: for `$(plywood import ...)`.
    fn text(&self) -> String {
        format!("{}\n", self.name)
    }
}

impl From<Imported> for ImportedImage {
    fn from(imported: Imported) -> Self {
        let layer = |layer: crate::image::unpack::Unpacked| ImportedLayer {
            name: layer.name,
            diff_id: layer.diff_id.to_string(),
            new: layer.made == Made::Now,
        };
        Self {
            name: imported.name,
            image: imported.image,
            layers: imported.layers.into_iter().map(layer).collect(),
        }
    }
}

pub(super) fn import(session: &Session, args: args::Import) -> Outcome {
    let platform = match &args.platform {
        Some(words) => platform(words)?,
        None => Platform::here(),
    };
    let options = ImportOptions {
        name: args.name,
        platform,
        taken: if args.rootfs { Taken::AsFiles } else { Taken::AsItLooks },
        blobs: if args.no_blobs { Blobs::Dropped } else { Blobs::Kept },
    };
    let shown = Shown::start(session.verbosity())?;
    let input = match args.image.is_dir() {
        true => Input::Path(args.image),
        false => match shown.open(&args.image)? {
            // What is a file is opened again where it is read.
            Source::File(_, _) if args.image.as_os_str() != "-" => Input::Path(args.image),
            Source::File(file, _) => Input::Stream(Box::new(file), "standard input".to_owned()),
            Source::Stream(stream) => Input::Stream(Box::new(stream), args.image.display().to_string()),
        },
    };
    let snapshotter = session.open()?;
    let imported = take_in(&snapshotter, input, &options, &shown);
    Session::close(&snapshotter);
    match imported {
        Ok(imported) => {
            for warning in imported.layers.iter().flat_map(|layer| &layer.warnings) {
                tracing::warn!("{warning}");
            }
            session.print(&ImportedImage::from(imported))
        }
        Err(error) => Ok(ended(&error)),
    }
}

/// Reads `OS/ARCH[/VARIANT]`.
fn platform(words: &str) -> Result<Platform> {
    let mut parts = words.split('/').map(str::to_owned);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { os, architecture, variant: variant.unwrap_or_default() })
        }
        _ => {
            let cause = "a platform is OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64";
            Err(Error::new(ErrorKind::InvalidArgument, "import", format!("{words:?}"), cause))
        }
    }
}

/// An image that was exported.
#[derive(Serialize)]
struct ExportedImage {
    manifest: String,
    config: String,
    tag: Option<String>,
    layers: Vec<ExportedLayer>,
}

#[derive(Serialize)]
struct ExportedLayer {
    name: String,
    diff_id: String,
    digest: String,
    size_bytes: u64,
}

impl Answer for ExportedImage {
    fn text(&self) -> String {
        let mut table =
            Table::new(&[("LAYER", Align::Left), ("SIZE", Align::Right), ("SNAPSHOT", Align::Left)]);
        for layer in &self.layers {
            table.row([layer.digest.clone(), bytes(layer.size_bytes), layer.name.clone()]);
        }
        let tag = self.tag.as_deref().map(|tag| format!(" {}", output::printable(tag))).unwrap_or_default();
        format!("{}{}{tag}\n", table.text(), self.manifest)
    }
}

impl From<Exported> for ExportedImage {
    fn from(exported: Exported) -> Self {
        let layers = exported.layers.into_iter().map(|(name, layer)| ExportedLayer {
            name,
            diff_id: layer.diff_id.to_string(),
            digest: layer.blob.digest.to_string(),
            size_bytes: layer.blob.size_bytes,
        });
        Self {
            manifest: exported.manifest.to_string(),
            config: exported.config.to_string(),
            tag: exported.tag,
            layers: layers.collect(),
        }
    }
}

pub(super) fn export(session: &Session, args: &args::Export) -> Outcome {
    let options = ExportOptions {
        tag: args.tag.clone(),
        compression: compression(args.compress),
        source_date_epoch: source_date_epoch()?,
        xattrs: xattrs(args.xattrs),
    };
    let snapshotter = session.open()?;
    let shown = Shown::start(session.verbosity())?;
    let done = Output::open(Path::new(&args.output)).and_then(|mut out| {
        let exported = pack(&snapshotter, &args.name, out.writer(), &options, &shown)?;
        out.keep()?;
        Ok((exported, out.is_standard()))
    });
    Session::close(&snapshotter);
    match done {
        Ok((exported, to_standard)) => {
            super::layers::tell(session, &ExportedImage::from(exported), to_standard)
        }
        Err(error) => Ok(ended(&error)),
    }
}

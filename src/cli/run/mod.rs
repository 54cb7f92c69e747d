//! What does a command do? Unpack what was typed, call the library, pack the answer. One family of commands per file.

mod blob;
mod create;
mod exec;
mod files;
mod image;
mod layers;
mod look;
mod mount;
mod remove;
mod serve;

use super::args::{Args, Command};
use super::exit::Code;
use super::namespace::{self, Standing, Touches};
use super::output::{self, Answer, Format};
use super::progress::Verbosity;
use crate::backend::BackendName;
use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshotter::{BackendChoice, Removal, Snapshotter, SnapshotterSettings};
use crate::sys::userns;
use crate::types::Labels;
use clap::CommandFactory;
use plywood_fuse::sys::process::effective_uid;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failed {
    /// Something went wrong.
    Said(Error),
    /// The answer could not be printed.
    Unheard(io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Said(error)
    }
}

/// How a command ends.
type Outcome = std::result::Result<Code, Failed>;

/// What all commands work with.
struct Session {
    settings: Settings,
    format: Format,
    standing: Standing,
    /// As typed, for who starts this program again.
    words: Vec<OsString>,
}

/// Runs a command.
///
/// # Errors
/// What went wrong, still to be told.
pub fn run(args: Args, settings: Settings, words: Vec<OsString>) -> Outcome {
    let format = if args.global.json { Format::Json } else { Format::Text };
    let standing = Standing::of(effective_uid(), userns::should_reenter());
    let session = Session { settings, format, standing, words };
    let touches = namespace::touches(&args.command);
    if session.must_enter(touches, None) {
        // A new store gets the backend that works for this user, who mounts without a namespace.
        let snapshotter = session.open()?;
        if matches!(args.command, Command::Cleanup) {
            snapshotter.end_dead_trials()?;
        }
        Session::close(&snapshotter);
        drop(snapshotter);
        if let Some(code) = session.enter()? {
            return Ok(code);
        }
    }
    match args.command {
        Command::Prepare(args) => create::prepare(&session, args),
        Command::View(args) => create::view(&session, args),
        Command::Commit(args) => create::commit(&session, args),
        Command::Mounts(args) => mount::mounts(&session, &args),
        Command::Mount(args) => mount::mount(&session, &args),
        Command::Umount(args) => mount::umount(&session, &args),
        Command::Rm(args) => remove::rm(&session, args),
        Command::Cleanup => remove::cleanup(&session),
        Command::Check(args) => remove::check(&session, &args),
        Command::Stat(args) => look::stat(&session, &args),
        Command::Ls(args) => look::ls(&session, &args),
        Command::Tree => look::tree(&session),
        Command::Usage(args) => look::usage(&session, args),
        Command::Label(args) => look::label(&session, args),
        Command::Backends => look::backends(&session),
        Command::Exec(args) => exec::exec(&session, args),
        Command::Import(args) => image::import(&session, args),
        Command::Export(args) => image::export(&session, &args),
        Command::Diff(args) => layers::diff(&session, &args),
        Command::Changes(args) => layers::changes(&session, &args),
        Command::Apply(args) => layers::apply(&session, &args),
        Command::Fs(args) => files::run(&session, args),
        Command::Blob(args) => blob::run(&session, args),
        Command::Serve(args) => serve::serve(&session, &args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Args::command(), "plywood", &mut script);
            session.write(&script)?;
            Ok(Code::DONE)
        }
    }
}

impl Session {
    /// Opens the store for a command that touches this, unless the whole command was done in a user namespace: then its
    /// code. Only the store knows what its backend does with content; `needs_ids` tells whether other ids are needed
    /// besides.
    fn open_or_enter(
        &self,
        touches: Touches,
        needs_ids: impl FnOnce(&Snapshotter) -> bool,
    ) -> Result<std::result::Result<Snapshotter, Code>> {
        let snapshotter = self.open()?;
        let is_plain = self.standing == Standing::Plain;
        let must =
            self.must_enter(touches, Some(snapshotter.backend())) || (is_plain && needs_ids(&snapshotter));
        if !must {
            return Ok(Ok(snapshotter));
        }
        Session::close(&snapshotter);
        drop(snapshotter);
        match self.enter()? {
            Some(code) => Ok(Err(code)),
            None => self.open().map(Ok),
        }
    }

    fn must_enter(&self, touches: Touches, backend: Option<BackendName>) -> bool {
        namespace::must_enter(touches, self.standing, backend)
    }

    /// Does the whole command in a user namespace; the code that it ended with there. `None` if there are no
    /// namespaces to be had: then it is to be done here.
    fn enter(&self) -> Result<Option<Code>> {
        match userns::reenter(self.words.iter().cloned()) {
            Ok(code) => Ok(Some(Code(u8::try_from(code).unwrap_or(1)))),
            // Without namespaces there are no other ids: all content belongs to this user.
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                tracing::info!(%error, "goes on without a user namespace");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open(&self) -> Result<Snapshotter> {
        Snapshotter::open(self.snapshotter_settings())
    }

    /// Closes the store, after what still goes on in the background.
    fn close(snapshotter: &Snapshotter) {
        if let Err(error) = snapshotter.close() {
            tracing::warn!(%error, "close");
        }
    }

    fn snapshotter_settings(&self) -> SnapshotterSettings {
        let ours = &self.settings;
        let mut settings = SnapshotterSettings::new(&ours.root);
        settings.backend = ours.backend.map_or(BackendChoice::Auto, BackendChoice::Named);
        settings.removal = if ours.sync_remove { Removal::Sync } else { Removal::Async };
        settings.views_require_parent = ours.views_require_parent;
        settings.store.map_bytes = ours.map_bytes;
        settings.store.max_map_bytes = ours.max_map_bytes;
        settings.store.durability = ours.durability;
        settings.store.allow_remote_fs = ours.allow_remote_fs;
        settings.backends.sync_on_commit = ours.sync_on_commit;
        settings.backends.overlay_options.clone_from(&ours.overlay_options);
        settings.backends.fuse_options.clone_from(&ours.fuse_options);
        settings.backends.fuse_program = PathBuf::from(&ours.fuse_program);
        settings.mounting.fuse_program = Some((&ours.fuse_program).into());
        if !ours.fuse_program.contains('/') {
            // Whoever mounts by mount.fuse3 finds it by this, in the PATH.
            settings.backends.fuse_type = format!("fuse3.{}", ours.fuse_program);
        }
        settings
    }

    /// How much is shown of work that takes long: nothing to programs.
    fn verbosity(&self) -> Verbosity {
        if self.format == Format::Json { Verbosity::Silent } else { Verbosity::Usual }
    }

    fn print(&self, answer: &impl Answer) -> Outcome {
        output::print(&mut io::stdout().lock(), self.format, answer).map_err(Failed::Unheard)?;
        Ok(Code::DONE)
    }

    /// Prints what is the same for people and programs.
    fn write(&self, bytes: &[u8]) -> std::result::Result<(), Failed> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(Failed::Unheard)
    }
}

/// Labels as they were typed; of two values for one key the last counts.
fn labels(pairs: Vec<(String, String)>) -> Labels {
    pairs.into_iter().collect()
}

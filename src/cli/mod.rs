//! A person's words <-> ours: the command line `plywood`.
//!
//! [`args`] is what was typed, [`run`] calls the library and packs its answer, [`output`] prints it, [`exit`] says how
//! the process ends. Nothing here decides what happens to a snapshot: all of that is in [`crate::snapshotter`], and
//! what could be decided is pure and stands by itself ([`tree`], [`namespace`], [`fs::place`]).

pub mod args;
pub mod exit;
pub mod fs;
pub mod namespace;
pub mod output;
pub mod progress;
pub mod run;
pub mod tree;

use crate::config::{Settings, Surroundings};
use crate::error::Error;
use args::{Args, Global};
use clap::Parser;
use exit::Code;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// Does what the words of the command line say; the first is the name of the program.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let args = match Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(error) => {
            // Help and version too; nobody to read them is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let settings = match Settings::load(&flags(&args.global), &Surroundings::here()) {
        Ok(settings) => settings,
        Err(error) => return report(&error).into(),
    };
    if let Err(error) = start_log(&settings.log) {
        return report(&error).into();
    }
    let code = run::run(args, settings, words).unwrap_or_else(|failed| match failed {
        run::Failed::Said(error) => report(&error),
        // Who reads has what it wanted, as with head(1).
        run::Failed::Unheard(e) if e.kind() == io::ErrorKind::BrokenPipe => Code::DONE,
        run::Failed::Unheard(e) => report(&Error::io("print", "standard output", e)),
    });
    code.into()
}

/// The flags that are settings.
fn flags(global: &Global) -> Vec<(&str, OsString)> {
    let mut flags: Vec<(&str, OsString)> =
        global.settings.iter().map(|(name, value)| (name.as_str(), value.into())).collect();
    let mut flag = |name, value: Option<OsString>| flags.extend(value.map(|value| (name, value)));
    flag("root", global.root.as_ref().map(|root| root.into()));
    flag("backend", global.backend.clone());
    flag("log", global.log.clone());
    flag("sync_remove", global.sync_remove.then(|| "true".into()));
    flags
}

/// Tells of a failure, and how the process is to end.
fn report(error: &Error) -> Code {
    // Not eprintln, which panics if nobody reads.
    let _ = writeln!(io::stderr(), "plywood: {}", output::printable(&error.to_string()));
    Code::of(error.kind())
}

/// Tells of the failure of work that Ctrl-C can end, and how the process is to end then: as if it had died of it.
fn ended(error: &Error) -> Code {
    let code = report(error);
    if error.kind() == crate::error::ErrorKind::Cancelled { Code::INTERRUPTED } else { code }
}

fn start_log(filter: &str) -> crate::error::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|e| {
        let cause = format!("{e}: must be off, error, warn, info, debug or trace");
        Error::new(crate::error::ErrorKind::InvalidArgument, "configuration", "log", cause)
    })?;
    // Somebody else's log is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    Ok(())
}

//! `exec`.

use super::{Outcome, Session};
use crate::cli::args;
use crate::cli::exit::Code;
use crate::cli::namespace::Touches;
use crate::cli::output::printable;
use crate::cli::report;
use crate::exec::{ExecRequest, Outcome as Ended, run};
use std::io::Write;

pub(super) fn exec(session: &Session, args: args::Exec) -> Outcome {
    // What fails before the command is never a code that the command could have ended with.
    Ok(ended(session, args).unwrap_or_else(|error| {
        report(&error);
        Code::EXEC_FAILED
    }))
}

fn ended(session: &Session, args: args::Exec) -> crate::error::Result<Code> {
    let snapshotter = match session.open_or_enter(Touches::RowsOrLayers, |_| false)? {
        Ok(snapshotter) => snapshotter,
        Err(code) => return Ok(code),
    };
    let mounts = snapshotter.mounts(&args.key).map_err(|e| e.during("exec", args.key.clone()))?;
    let mounting = snapshotter.settings().mounting.clone();
    snapshotter.hold(&args.key).map_err(|e| e.during("exec", args.key.clone()))?;
    // No other thread is left that could take the signals.
    Session::close(&snapshotter);
    drop(snapshotter);
    let mut request = ExecRequest::new(mounts, args.command);
    request.workdir = args.workdir;
    request.env = args.variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    request.read_only = args.read_only;
    request.hostname = args.hostname;
    let ended = run(&request, &mounting)?;
    if let Ended::NotFound(words) | Ended::NotExecutable(words) = &ended {
        // Not eprintln, which panics if nobody reads.
        let _ = writeln!(std::io::stderr(), "plywood: exec: {}", printable(words));
    }
    Ok(Code(u8::try_from(ended.code()).unwrap_or(Code::EXEC_FAILED.0)))
}

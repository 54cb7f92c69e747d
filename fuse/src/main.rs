//! The mount program: parse, run, exit code.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use plywood_fuse::error::Error;
use plywood_fuse::front;
use plywood_fuse::front::daemon::{self, Launch};
use plywood_fuse::front::session::{self, SessionSettings};
use plywood_fuse::options::{self, Command, MountRequest};

fn main() -> ExitCode {
    let mut words = env::args_os();
    let program = words.next().unwrap_or_else(|| env!("CARGO_PKG_NAME").into());
    let args: Vec<OsString> = words.collect();
    match options::parse_command_line(&program, &args) {
        Ok(Command::Help) => print(&options::help()),
        Ok(Command::Version) => print(&options::version_text(&name(&program).to_string())),
        Ok(Command::Mount(request)) if request.remount => {
            match front::mount::remount(&front::mount::Request::of(&request)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failure(&program, &error),
            }
        }
        Ok(Command::Mount(request)) => ExitCode::from(mount(&request)),
        Err(error) => failure(&program, &error),
    }
}

fn failure(program: &OsStr, error: &Error) -> ExitCode {
    // Not eprintln, which panics if nobody reads.
    let _ = writeln!(io::stderr(), "{}: {error}", name(program));
    ExitCode::FAILURE
}

fn mount(request: &MountRequest) -> u8 {
    daemon::run(
        Launch::of(request),
        |warnings| front::open(request, warnings),
        |overlay, device, ended| {
            session::start(Arc::new(overlay), device, &SessionSettings::of(request), ended)
        },
    )
}

/// The name that this program was called by, without the way to it.
fn name(program: &OsStr) -> impl Display {
    Path::new(program).file_name().unwrap_or(program).display()
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

//! Runs a command in a stack of directories, with no store at all.
//!
//!     exec SCRATCH TYPE SOURCE OPTIONS COMMAND [ARGUMENT...]
//!
//! `SCRATCH` is an empty directory on the disk of the layers; type, source and options are those of a mount, as
//! `plywood mounts` shows them: `fuse3.plywood-fuse overlay lowerdir=LOWER,upperdir=UPPER,workdir=WORK`. The program
//! plywood-fuse is taken from `PLYWOOD_FUSE_PROGRAM`, else from where this program is, else from `PATH`.

use plywood::exec::{ExecRequest, FAILED, run};
use plywood::mounting::MountSettings;
use plywood::types::Mount;
use std::ffi::OsString;

fn main() {
    let mut words = std::env::args_os().skip(1);
    let mut word = || {
        words.next().unwrap_or_else(|| {
            eprintln!("usage: exec SCRATCH TYPE SOURCE OPTIONS COMMAND [ARGUMENT...]");
            std::process::exit(FAILED);
        })
    };
    let text = |word: OsString| word.to_string_lossy().into_owned();
    let mut settings = MountSettings::new(word().as_ref());
    settings.fuse_program = std::env::var_os("PLYWOOD_FUSE_PROGRAM").map(Into::into);
    let (kind, source, options) = (text(word()), text(word()), text(word()));
    let mount = Mount { kind, source, options: options.split(',').map(str::to_owned).collect() };
    let code = match run(&ExecRequest::new(vec![mount], words), &settings) {
        Ok(outcome) => {
            if let plywood::exec::Outcome::NotFound(why) | plywood::exec::Outcome::NotExecutable(why) =
                &outcome
            {
                eprintln!("exec: {why}");
            }
            outcome.code()
        }
        Err(error) => {
            eprintln!("{error}");
            FAILED
        }
    };
    std::process::exit(code);
}

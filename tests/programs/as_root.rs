//! Runs a command as root of a user namespace with all ids that the caller may have, by starting this program again
//! inside.
//!
//!     as_root COMMAND [ARGUMENT...]

use plywood::sys::userns;
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    if userns::should_reenter() {
        let code = userns::reenter(std::env::args_os()).unwrap_or_else(|error| {
            eprintln!("{error}");
            125
        });
        std::process::exit(code);
    }
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: as_root COMMAND [ARGUMENT...]");
        std::process::exit(125);
    };
    let error = Command::new(&program).args(words).exec();
    eprintln!("{}: {error}", program.to_string_lossy());
    std::process::exit(127);
}

//! The command line: parse, run, exit code.

fn main() -> std::process::ExitCode {
    plywood::cli::main(std::env::args_os())
}

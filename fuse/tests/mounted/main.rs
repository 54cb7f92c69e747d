//! The real program, mounted.
//!
//! - `peers`: faults of other overlay file systems, each as a test that must pass here: `removal`, `copying`, `names`,
//!   `attributes`, `links`.
//! - `economy`: how many requests and system calls an operation costs.
//! - `bad_input`: broken stacks, options and marks.
//! - `program`: command lines of real clients, and the life of the process.
//! - `owners`: whose files they are, by options.
//! - `again`: the tests in modules called `anyone` once more, as root of a user namespace and as a plain user.
//!
//! A test that cannot run fails, unless PLYWOOD_SKIP_MOUNTED=1; then it says so. Stages are made in `/var/tmp` or in
//! the directory that PLYWOOD_TEST_DIR names; it has to be on a real disk.

mod again;
mod bad_input;
mod economy;
mod owners;
mod peers;
mod program;
mod support;

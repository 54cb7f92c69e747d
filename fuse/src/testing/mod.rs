//! For tests: trees from a description, and random operations against a reference tree.
//!
//! [`tree`] builds layers and looks at what is there; [`operation`] are the changes, as values that can be
//! written down; [`plain`] does them to a directory by system calls and [`inside`] to an
//! [`crate::overlay::Overlay`]; [`model`] runs both side by side and tells the first difference; [`judge`]
//! asks the kernel's overlayfs what it makes of the same layers; [`random`] chooses operations and shortens a
//! sequence that fails.
//!
//! Panics are how a test ends, so what cannot fail in a sound surrounding is expected to work here.

pub mod inside;
pub mod judge;
pub mod model;
pub mod operation;
pub mod plain;
pub mod random;
pub mod suite;
pub mod tree;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Says aloud that a test leaves something out: the test harness would keep what `eprintln!` says to itself.
pub fn say_skipped(why: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nobody to hear it is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// A directory that goes when this value goes, unless `PLYWOOD_KEEP=1` says to leave it to be looked at.
pub struct TempDir(PathBuf);

impl TempDir {
    /// A new directory below that of the system (`TMPDIR`).
    ///
    /// # Panics
    /// If nothing can be made there.
    #[allow(clippy::new_without_default)]
    pub fn new() -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        std::fs::create_dir_all(std::env::temp_dir()).expect("a directory for tests can be made");
        loop {
            let count = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("plywood-{}-{count}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return TempDir(path),
                // Left by another process that had this number.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => panic!("a directory for the test can be made: {}: {e}", path.display()),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if std::env::var_os("PLYWOOD_KEEP").is_some_and(|v| v == "1") {
            return eprintln!("{}: left behind", self.0.display());
        }
        let removed = std::fs::remove_dir_all(&self.0);
        if removed.is_err() && !std::thread::panicking() {
            eprintln!("{}: left behind", self.0.display());
        }
    }
}

/// Copies a program that will be started.
///
/// By another process: a descriptor that is open to write would be inherited by a program that another thread starts just
/// then, and as long as somebody has one the kernel starts no copy (ETXTBSY).
///
/// # Panics
/// If it cannot be copied.
pub fn copy_program(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("cp").arg("--").arg(from).arg(to).output();
    let done = done.unwrap_or_else(|e| panic!("cp: {e}"));
    assert!(done.status.success(), "cp: {}", String::from_utf8_lossy(&done.stderr));
}

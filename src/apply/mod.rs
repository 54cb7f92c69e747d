//! A layer tar becomes a directory tree.
//!
//! [`apply`] reads members and decides: where a name leads ([`name`], `way`), what it means, in which order things
//! happen (`engine`), which times and attributes count ([`attributes`]), what an opaque marker spares (`ours`). A
//! [`Target`] acts, one name in one open directory at a time: [`DirTarget`] on a directory, which is the whole tree or a
//! layer with marks; [`OverlayTarget`] on top of lower layers, without a mount. Both ways, and every target, give the
//! same tree.
//!
//! An archive is hostile. Whatever it says, nothing outside of the root is made, changed or removed, also while somebody
//! changes the tree at the same time: every call is about one name in a directory that is open. What fails leaves a part
//! of the layer; to throw that away is the caller's business. Nothing is synced here.

pub mod attributes;
pub mod disk;
mod engine;
pub mod name;
mod ours;
pub mod overlay;
pub mod report;
pub mod target;
mod way;

pub use self::disk::{Below, DirTarget, SameOwner};
pub use self::overlay::OverlayTarget;
pub use self::report::Applied;
pub use self::target::Target;

use self::target::Failure;
use crate::archive::{Entry, Reader, Segment};
use crate::backend::Progress;
use crate::backend::directory::disk_error;
use crate::error::{Error, Result};
use plywood_fuse::error::{Error as SysError, Result as SysResult};
use plywood_fuse::types::Kind;
use std::ffi::CString;
use std::io::Read;
use std::path::Path;

/// The operation in messages.
const OPERATION: &str = "apply";

/// Where members come from.
pub trait Source {
    /// The next member; what was not read of the content of the one before is passed over.
    ///
    /// # Errors
    /// Those of the archive.
    fn next(&mut self) -> Result<Option<Entry>>;

    /// The next piece of the present file that has data.
    ///
    /// # Errors
    /// Those of the archive.
    fn next_segment(&mut self) -> Result<Option<Segment>>;

    /// Bytes of the present piece; 0 at its end.
    ///
    /// # Errors
    /// Those of the archive.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize>;
}

impl<R: Read> Source for Reader<R> {
    fn next(&mut self) -> Result<Option<Entry>> {
        Reader::next(self)
    }

    fn next_segment(&mut self) -> Result<Option<Segment>> {
        Reader::next_segment(self)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        Reader::read(self, buffer)
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The tree is there.
    Applied(Applied),
    /// The archive cannot be applied without the layers below, for the reason that is said. A part of it is there: it has
    /// to go, before the archive is applied from its beginning to an [`OverlayTarget`].
    NeedsLower(String),
}

/// Applies an archive to a tree.
///
/// # Errors
/// `InvalidArgument` for an archive that makes no sense; `PermissionDenied`, with what to do, for an owner that this user
/// may not give; `Cancelled`; `Busy` where something is mounted in the way; those of the source and of the disk. A part
/// of the archive stays.
pub fn apply<T: Target>(source: &mut dyn Source, target: &mut T, progress: &dyn Progress) -> Result<Outcome> {
    match engine::Engine::new(target, progress).and_then(|engine| engine.run(source)) {
        Ok(applied) => Ok(Outcome::Applied(applied)),
        Err(Stop::NeedsLower(why)) => Ok(Outcome::NeedsLower(why)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Why applying ended early.
enum Stop {
    Failed(Error),
    NeedsLower(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// What went wrong with a member, in words that say which.
fn failed(path: &[u8], what: &'static str, failure: Failure) -> Stop {
    match failure {
        Failure::Caller(error) => Stop::Failed(error),
        Failure::Disk(e) => Stop::Failed(disk_error(what, Path::new(&name::shown(path)), e)),
    }
}

/// Sets an attribute of a member by `set`, unless it is one that no archive sets, or the disk refuses it and the file may
/// go without; both are noted.
fn set_or_leave_out(
    path: &[u8],
    kind: Kind,
    name: &[u8],
    report: &mut Applied,
    set: impl FnOnce(&CString) -> SysResult<()>,
) -> SysResult<()> {
    if attributes::is_left_out(name) {
        report.xattr_left_out(path, name, "it is for root of the machine alone");
        return Ok(());
    }
    let spelt = CString::new(name).map_err(|_| SysError::from_errno(libc::EINVAL));
    match spelt.and_then(|name| set(&name)) {
        Err(e) if attributes::goes_without(name, kind, e.errno()) => {
            report.xattr_left_out(path, name, &e.to_string());
            Ok(())
        }
        other => other.map_err(|e| e.during("set attribute", name.escape_ascii().to_string())),
    }
}

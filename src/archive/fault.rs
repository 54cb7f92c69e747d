//! What is said of an archive that is wrong, and of an entry that cannot be written.
//!
//! An archive comes from outside: that it is broken is never [`ErrorKind::Corrupt`], which is said of our own disk,
//! but [`ErrorKind::InvalidArgument`]. Only what the stream itself refuses has another kind.

use crate::error::{Error, ErrorKind};
use std::io;

/// Why something is wrong, in words that follow "invalid archive: ".
pub(super) type Reason = &'static str;

/// Reading, in messages.
const READING: &str = "read archive";

/// Writing, in messages.
const WRITING: &str = "write archive";

/// Bytes of a name that a message shows.
const SHOWN: usize = 200;

/// A name for messages: quoted, escaped, and cut where it is long.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..SHOWN) {
        Some(begin) if name.len() > SHOWN => {
            format!("\"{}\"… ({} bytes)", begin.escape_ascii(), name.len())
        }
        _ => format!("\"{}\"", name.escape_ascii()),
    }
}

/// The error of an archive that is wrong.
pub(super) fn invalid(subject: String, reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, READING, subject, format!("invalid archive: {reason}"))
}

/// The error of a stream that cannot be read. What another module of this crate put into it keeps its kind.
pub(super) fn unreadable(cause: io::Error) -> Error {
    match cause.downcast::<Error>() {
        Ok(ours) => ours.during(READING, "stream"),
        Err(cause) => Error::io(READING, "stream", cause),
    }
}

/// The error of somebody who goes on with a reader after an error.
pub(super) fn given_up() -> Error {
    Error::new(ErrorKind::FailedPrecondition, READING, "stream", "it was given up after an error")
}

/// The error of an entry that cannot be written.
pub(super) fn refused(name: &[u8], cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, WRITING, format!("entry {}", shown(name)), cause)
}

/// The error of calls in the wrong order.
pub(super) fn misused(cause: impl Into<String>) -> Error {
    Error::new(ErrorKind::FailedPrecondition, WRITING, "stream", cause)
}

/// The error of a stream that cannot be written. What another module of this crate put into it keeps its kind.
pub(super) fn unwritable(cause: io::Error) -> Error {
    match cause.downcast::<Error>() {
        Ok(ours) => ours.during(WRITING, "stream"),
        Err(cause) => Error::io(WRITING, "stream", cause),
    }
}

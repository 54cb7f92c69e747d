//! Which code does a failure have?
//!
//! One total function from the kind of a failure to the code; clients turn the codes back into containerd's classes.

use crate::error::{Error, ErrorKind};
use crate::types::quoted;
use tonic::{Code, Status};

/// Bytes of a message. It travels in a header, where each byte may take three, and a client takes 16 KiB of headers.
const MAX_MESSAGE_BYTES: usize = 4096;

/// The code of a failure.
///
/// What is in use is a failed precondition: collecting garbage, containerd goes on after that class alone.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::PermissionDenied => Code::PermissionDenied,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::FailedPrecondition | ErrorKind::Busy => Code::FailedPrecondition,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Io => Code::Internal,
    }
}

/// A failure as it is answered.
pub fn status(error: &Error) -> Status {
    Status::new(code(error.kind()), message(error.to_string()))
}

/// What a failure of somebody whom we asked means here. That containerd does not know a call is not for our caller to take
/// for our answer.
pub(super) fn error(operation: &'static str, subject: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::InvalidArgument => ErrorKind::InvalidArgument,
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::PermissionDenied | Code::Unauthenticated => ErrorKind::PermissionDenied,
        Code::ResourceExhausted => ErrorKind::NoSpace,
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::Unavailable => ErrorKind::Unavailable,
        Code::Cancelled | Code::DeadlineExceeded => ErrorKind::Cancelled,
        Code::Aborted | Code::OutOfRange => ErrorKind::Aborted,
        Code::DataLoss => ErrorKind::Corrupt,
        Code::Ok | Code::Unknown | Code::Internal | Code::Unimplemented => ErrorKind::Io,
    };
    let subject = if subject.is_empty() { String::new() } else { quoted(subject) };
    Error::new(kind, operation, subject, format!("containerd: {}", status.message()))
}

/// The message, cut where it is long; never with an end by which Go clients tell other classes.
fn message(mut text: String) -> String {
    if text.len() > MAX_MESSAGE_BYTES {
        let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    if [": conflict", ": not modified"].iter().any(|end| text.ends_with(end)) {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_a_code() {
        let cases = [
            (ErrorKind::InvalidArgument, 3),
            (ErrorKind::NotFound, 5),
            (ErrorKind::AlreadyExists, 6),
            (ErrorKind::PermissionDenied, 7),
            (ErrorKind::NoSpace, 8),
            (ErrorKind::FailedPrecondition, 9),
            (ErrorKind::Busy, 9),
            (ErrorKind::Unsupported, 12),
            (ErrorKind::Unavailable, 14),
            (ErrorKind::Cancelled, 1),
            (ErrorKind::Aborted, 10),
            (ErrorKind::Corrupt, 15),
            (ErrorKind::Io, 13),
        ];
        for (kind, number) in cases {
            assert_eq!(code(kind) as i32, number, "{kind:?}");
            let status = status(&Error::new(kind, "remove", "\"k\"", "why"));
            assert!(status.message().starts_with("remove: \"k\": why"), "{status}");
        }
    }

    #[test]
    fn no_message_ends_as_one_of_another_class() {
        let cases = [("a: conflict", "a: conflict."), ("a: not modified", "a: not modified."), ("a", "a")];
        for (text, expected) in cases {
            assert_eq!(message(text.to_owned()), expected);
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_letter() {
        let cut = message("ä".repeat(MAX_MESSAGE_BYTES));
        assert_eq!(cut.len(), MAX_MESSAGE_BYTES + '…'.len_utf8());
    }
}

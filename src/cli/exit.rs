//! How does the process end?
//!
//! One total function from the kind of a failure to the exit code; the help text of the program lists the codes.

use crate::error::ErrorKind;

/// How a command went, for those that go on after a failure or pass on the code of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8);

impl Code {
    /// Done.
    pub const DONE: Code = Code(0);
    /// The store contradicts itself.
    pub const CORRUPT: Code = Code(9);
    /// Ctrl-C ended it: 128 and the signal, as shells say it.
    pub const INTERRUPTED: Code = Code(130);
    /// `exec` could not even try; as env(1) and the tools for containers say it.
    pub const EXEC_FAILED: Code = Code(125);

    /// What a failure of this kind ends with.
    pub fn of(kind: ErrorKind) -> Code {
        match kind {
            ErrorKind::Io | ErrorKind::Unavailable | ErrorKind::Cancelled | ErrorKind::Aborted => Code(1),
            ErrorKind::InvalidArgument => Code(2),
            ErrorKind::NotFound => Code(3),
            ErrorKind::AlreadyExists => Code(4),
            ErrorKind::FailedPrecondition | ErrorKind::Busy => Code(5),
            ErrorKind::PermissionDenied => Code(6),
            ErrorKind::NoSpace => Code(7),
            ErrorKind::Unsupported => Code(8),
            ErrorKind::Corrupt => Code::CORRUPT,
        }
    }

    /// The first failure counts.
    #[must_use]
    pub fn or(self, later: Code) -> Code {
        if self == Code::DONE { later } else { self }
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        code.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_failure_has_the_code_that_the_help_text_says() {
        let cases = [
            (ErrorKind::InvalidArgument, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::AlreadyExists, 4),
            (ErrorKind::PermissionDenied, 6),
            (ErrorKind::NoSpace, 7),
            (ErrorKind::FailedPrecondition, 5),
            (ErrorKind::Busy, 5),
            (ErrorKind::Unsupported, 8),
            (ErrorKind::Unavailable, 1),
            (ErrorKind::Cancelled, 1),
            (ErrorKind::Aborted, 1),
            (ErrorKind::Corrupt, 9),
            (ErrorKind::Io, 1),
        ];
        for (kind, code) in cases {
            assert_eq!(Code::of(kind), Code(code), "{kind:?}");
        }
    }

    #[test]
    fn the_first_failure_decides() {
        assert_eq!(Code::DONE.or(Code(3)).or(Code(5)), Code(3));
        assert_eq!(Code(3).or(Code::DONE), Code(3));
        assert_eq!(Code::DONE.or(Code::DONE), Code::DONE);
    }
}

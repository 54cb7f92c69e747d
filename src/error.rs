//! What went wrong: a kind, the operation, its subject, and the cause.
//!
//! Every failure of this crate is an [`Error`]. Its [`ErrorKind`] is chosen where its meaning is known; each
//! adapter (command line, gRPC) maps kinds outward by one total function.

use std::fmt;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The classes of failure, with the words of containerd's error classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request makes no sense, whatever the state.
    InvalidArgument,
    /// The key, name or parent is not known.
    NotFound,
    /// The key or name is in use.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// Disk, quota or the configured size of the store is full.
    NoSpace,
    /// The state does not allow it: a parent that has children, a committed snapshot that should be written.
    FailedPrecondition,
    /// Somebody uses it: a mount, a lock.
    Busy,
    /// The operation does not exist here.
    Unsupported,
    /// The store is closed, or closing.
    Unavailable,
    /// The caller gave up.
    Cancelled,
    /// Another change came in between; to be tried again.
    Aborted,
    /// What is on the disk contradicts itself.
    Corrupt,
    /// The system refused, for a reason that is none of the above.
    Io,
}

impl ErrorKind {
    /// The kind that an errno means when nothing is known of the operation.
    pub fn of_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT => Self::NotFound,
            libc::EEXIST => Self::AlreadyExists,
            libc::EPERM | libc::EACCES => Self::PermissionDenied,
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::EBUSY | libc::ETXTBSY => Self::Busy,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::Unsupported,
            libc::EINTR | libc::ECANCELED => Self::Cancelled,
            _ => Self::Io,
        }
    }

    /// Its words in messages, as containerd's.
    pub fn words(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::NoSpace => "no space left",
            Self::FailedPrecondition => "failed precondition",
            Self::Busy => "busy",
            Self::Unsupported => "not implemented",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
            Self::Corrupt => "data loss",
            Self::Io => "input/output error",
        }
    }
}

/// A failed operation.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    subject: String,
    cause: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of a kind: during which operation, on what, and why (or what to do).
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        subject: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self(Box::new(Inner { kind, operation, subject: subject.into(), cause: cause.into(), source: None }))
    }

    /// What the system refused: the kind follows from the errno. An error of ours that came through a reader or
    /// writer keeps its kind.
    pub fn io(operation: &'static str, subject: impl Into<String>, source: std::io::Error) -> Self {
        let own = source.get_ref().and_then(|e| e.downcast_ref::<Error>()).map(Error::kind);
        let kind = own.unwrap_or_else(|| source.raw_os_error().map_or(ErrorKind::Io, ErrorKind::of_errno));
        Self::new(kind, operation, subject, source.to_string()).with_source(source)
    }

    /// A failure of the layer stack or of a system call below it: the kind follows from the errno.
    pub fn fuse(
        operation: &'static str,
        subject: impl Into<String>,
        source: plywood_fuse::error::Error,
    ) -> Self {
        let kind = ErrorKind::of_errno(source.errno());
        Self::new(kind, operation, subject, source.to_string()).with_source(source)
    }

    /// The same error with the failure that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }

    /// The same error as another kind, where its meaning is known better than from the errno.
    #[must_use]
    pub fn as_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// The same failure as part of a larger operation; what it said becomes the cause.
    #[must_use]
    pub fn during(self, operation: &'static str, subject: impl Into<String>) -> Self {
        let cause = self.words();
        Self(Box::new(Inner {
            kind: self.0.kind,
            operation,
            subject: subject.into(),
            cause,
            source: self.0.source,
        }))
    }

    /// Its class.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Operation, subject and cause without the words of the kind.
    fn words(&self) -> String {
        let Inner { operation, subject, cause, .. } = &*self.0;
        match (subject.is_empty(), cause.is_empty()) {
            (true, true) => (*operation).to_owned(),
            (true, false) => format!("{operation}: {cause}"),
            (false, true) => format!("{operation}: {subject}"),
            (false, false) => format!("{operation}: {subject}: {cause}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.words())?;
        // The words of an errno say it already.
        match self.0.kind {
            ErrorKind::Io => Ok(()),
            kind if self.0.cause.to_lowercase().ends_with(kind.words()) => Ok(()),
            kind => write!(f, ": {}", kind.words()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

/// An error as what readers and writers return; [`Error::io`] finds its kind again.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_came_through_a_reader_keeps_its_kind() {
        let inner = Error::new(ErrorKind::Corrupt, "decompress", "gzip", "it is cut off");
        let outer = Error::io("apply", "layer", inner.into());
        assert_eq!(outer.kind(), ErrorKind::Corrupt);
        assert_eq!(outer.to_string(), "apply: layer: decompress: gzip: it is cut off: data loss");
    }

    #[test]
    fn a_message_names_operation_subject_cause_and_kind() {
        let e = Error::new(ErrorKind::FailedPrecondition, "remove", "key \"a\"", "it has children");
        assert_eq!(e.to_string(), "remove: key \"a\": it has children: failed precondition");
        let e = Error::io("open", "/x", std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert_eq!(
            e.during("prepare", "\"k\"").to_string(),
            "prepare: \"k\": open: /x: No such file or directory (os error 2): not found"
        );
    }

    #[test]
    fn no_kind_has_words_that_go_clients_take_for_another_class() {
        for kind in [ErrorKind::FailedPrecondition, ErrorKind::Busy, ErrorKind::Aborted] {
            assert!(!kind.words().ends_with("conflict") && !kind.words().ends_with("not modified"));
        }
    }
}

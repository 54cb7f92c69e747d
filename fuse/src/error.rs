//! What went wrong: an errno, the operation, its subject, and the cause.
//!
//! Every failure of this crate is an [`Error`]. Its errno is chosen where its meaning is known, so the
//! FUSE front answers it as it is. Comparisons of errno values live here and nowhere else.

use std::fmt;
use std::io;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed operation.
///
/// The plain form, an errno alone, allocates nothing: it is the everyday answer of a lookup.
pub struct Error {
    errno: i32,
    context: Option<Box<Context>>,
}

struct Context {
    operation: &'static str,
    subject: String,
    cause: Option<String>,
}

impl Error {
    /// An error that is nothing but an errno.
    pub const fn from_errno(errno: i32) -> Self {
        Self { errno, context: None }
    }

    /// The errno that the last system call of this thread left.
    pub fn last_os_error() -> Self {
        Self::from_errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// An error with an operation, its subject, and a cause in words.
    pub fn new(
        errno: i32,
        operation: &'static str,
        subject: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        let context = Context { operation, subject: subject.into(), cause: Some(cause.into()) };
        Self { errno, context: Some(Box::new(context)) }
    }

    /// The same error, with the operation and its subject named; words already there become the cause.
    #[must_use]
    pub fn during(self, operation: &'static str, subject: impl Into<String>) -> Self {
        let cause = self.context.map(|c| c.to_string());
        Self {
            errno: self.errno,
            context: Some(Box::new(Context { operation, subject: subject.into(), cause })),
        }
    }

    /// The errno, as in `errno.h`.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// True if the subject is not there: ENOENT, or ENOTDIR on the way to it.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno, libc::ENOENT | libc::ENOTDIR)
    }

    /// True if the file system or the kernel does not have the feature.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY)
    }

    /// True if an attribute name is not set, or attributes are not supported at all.
    pub fn is_no_attribute(&self) -> bool {
        matches!(self.errno, libc::ENODATA | libc::EOPNOTSUPP)
    }

    /// True if the caller may not do this.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno, libc::EPERM | libc::EACCES)
    }

    /// True if the disk refuses an attribute: not permitted, or none of this namespace.
    pub fn is_attribute_refused(&self) -> bool {
        matches!(self.errno, libc::EPERM | libc::EACCES | libc::EOPNOTSUPP)
    }

    /// True if the disk refuses an owner: not permitted, or an id that it cannot store.
    pub fn is_owner_refused(&self) -> bool {
        matches!(self.errno, libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP)
    }

    /// True if the name is in use.
    pub fn is_exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// True if a directory still holds entries.
    pub fn is_not_empty(&self) -> bool {
        matches!(self.errno, libc::ENOTEMPTY | libc::EEXIST)
    }

    /// True if two places are on different file systems.
    pub fn is_cross_device(&self) -> bool {
        self.errno == libc::EXDEV
    }

    /// True if there is no room: disk, quota, or hard link count.
    pub fn is_link_limit(&self) -> bool {
        self.errno == libc::EMLINK
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.subject)?;
        match &self.cause {
            Some(cause) => write!(f, ": {cause}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = io::Error::from_raw_os_error(self.errno);
        let reason = reason.to_string();
        let reason = reason.split(" (os error").next().unwrap_or_default().to_lowercase();
        match &self.context {
            Some(context) => write!(f, "{context}: {reason}"),
            None => f.write_str(&reason),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error.context {
            None => Self::from_raw_os_error(error.errno),
            Some(_) => Self::new(Self::from_raw_os_error(error.errno).kind(), error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_operation_subject_and_cause() {
        let e = Error::from_errno(libc::ENOENT).during("open layer", "/a").during("mount", "/m");
        assert_eq!(e.to_string(), "mount: /m: open layer: /a: no such file or directory");
        assert_eq!(e.errno(), libc::ENOENT);
    }

    #[test]
    fn predicates_tell_errnos_apart() {
        let of = Error::from_errno;
        assert!(of(libc::ENOTDIR).is_absent() && !of(libc::EACCES).is_absent());
        assert!(of(libc::ENODATA).is_no_attribute() && !of(libc::EPERM).is_no_attribute());
        assert!(of(libc::EPERM).is_owner_refused() && of(libc::EINVAL).is_owner_refused());
        assert!(of(libc::EXDEV).is_cross_device() && !of(libc::EEXIST).is_cross_device());
    }
}

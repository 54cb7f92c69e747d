//! The words of the snapshotter as types: keys, ids, kinds, labels, usage, mounts.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The number of a snapshot and of its directory; never used twice in one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SnapshotId(pub u64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Bytes that a key or name may have: as much as containerd's own database takes.
pub const MAX_NAME_BYTES: usize = 32 * 1024;

/// Bytes that key and value of one label may have together, as in containerd.
pub const MAX_LABEL_BYTES: usize = 4096;

/// Bytes that the labels of one snapshot may have together: what is known of it is to fit a message.
pub const MAX_LABELS_BYTES: usize = 1 << 20;

/// Who a snapshot belongs to: a service sees and removes only its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Realm(String);

impl Realm {
    /// The realm of the command line.
    pub fn cli() -> Self {
        Self("cli".to_owned())
    }

    /// The realm of containerd, or of BuildKit.
    pub fn containerd() -> Self {
        Self("containerd".to_owned())
    }

    /// The realm of the graph driver.
    pub fn graph() -> Self {
        Self("graph".to_owned())
    }

    /// A realm by its name.
    ///
    /// # Errors
    /// `InvalidArgument` unless it has 1 to 32 lower-case letters, digits or dashes.
    pub fn named(name: &str) -> Result<Self> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=32).contains(&name.len()) && name.bytes().all(good) {
            return Ok(Self(name.to_owned()));
        }
        let cause = "a realm has 1 to 32 lower-case letters, digits or dashes";
        Err(Error::new(ErrorKind::InvalidArgument, "realm", format!("{name:?}"), cause))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Read-only, not yet or never part of a chain.
    View,
    /// Writable.
    Active,
    /// Immutable, may be a parent.
    Committed,
}

impl SnapshotKind {
    /// Its name in filters and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Labels, sorted by key. An empty value is not stored.
pub type Labels = BTreeMap<String, String>;

/// A moment, UTC, to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// The present moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { secs: since.as_secs().cast_signed(), nanos: since.subsec_nanos() }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to a date of the Gregorian calendar, counted in eras of 400 years that begin on 1 March.
        let (days, rest) = (self.secs.div_euclid(86_400), self.secs.rem_euclid(86_400));
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", self.nanos)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Its key (active, view) or name (committed).
    pub name: String,
    /// The name of its parent; empty without one.
    pub parent: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
    /// Its labels.
    pub labels: Labels,
}

/// What a snapshot occupies by itself, without its parents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Bytes on the disk.
    pub size_bytes: u64,
    /// Inodes, directories included.
    pub inodes: u64,
}

/// A mount for a caller to carry out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// The file system type, such as `bind` or `overlay`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What to mount.
    pub source: String,
    /// Its options, in order.
    pub options: Vec<String>,
}

/// Checks a key or name from outside.
///
/// # Errors
/// `InvalidArgument` if it is empty, holds NUL, or is longer than [`MAX_NAME_BYTES`].
pub fn check_name(operation: &'static str, name: &str) -> Result<()> {
    let invalid = |cause: String| Err(Error::new(ErrorKind::InvalidArgument, operation, quoted(name), cause));
    if name.is_empty() {
        return invalid("a key or name must not be empty".to_owned());
    }
    if name.contains('\0') {
        return invalid("a key or name must not hold a NUL byte".to_owned());
    }
    if name.len() > MAX_NAME_BYTES {
        return invalid(format!(
            "a key or name has at most {MAX_NAME_BYTES} bytes, this one has {}",
            name.len()
        ));
    }
    Ok(())
}

/// Checks labels from outside, and drops those without a value.
///
/// # Errors
/// `InvalidArgument` if one is larger than [`MAX_LABEL_BYTES`] or has no key, or if they are larger than
/// [`MAX_LABELS_BYTES`] together.
pub fn check_labels(operation: &'static str, labels: Labels) -> Result<Labels> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_LABELS_BYTES {
        let cause = format!("labels have at most {MAX_LABELS_BYTES} bytes together, these have {bytes}");
        return Err(Error::new(ErrorKind::InvalidArgument, operation, "labels", cause));
    }
    for (key, value) in &labels {
        let invalid = |cause: String| {
            Error::new(ErrorKind::InvalidArgument, operation, format!("label {}", quoted(key)), cause)
        };
        if key.is_empty() {
            return Err(invalid("a label needs a key".to_owned()));
        }
        if key.len() + value.len() > MAX_LABEL_BYTES {
            let cause = format!(
                "key and value have at most {MAX_LABEL_BYTES} bytes, these have {}",
                key.len() + value.len()
            );
            return Err(invalid(cause));
        }
    }
    Ok(labels.into_iter().filter(|(_, v)| !v.is_empty()).collect())
}

/// A name for messages: quoted, escaped, and cut where it is long.
pub fn quoted(name: &str) -> String {
    const SHOWN: usize = 200;
    if name.len() <= SHOWN {
        return format!("{name:?}");
    }
    let end = (0..=SHOWN).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    format!("{:?}… ({} bytes)", &name[..end], name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_reads_as_rfc_3339() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000000005Z"),
            (-62_135_596_800, 0, "0001-01-01T00:00:00.000000000Z"),
            (4_102_444_799, 999_999_999, "2099-12-31T23:59:59.999999999Z"),
        ];
        for (secs, nanos, text) in cases {
            assert_eq!(Timestamp { secs, nanos }.to_string(), text);
        }
    }

    #[test]
    fn names_and_labels_have_limits() {
        assert!(check_name("prepare", &"x".repeat(MAX_NAME_BYTES)).is_ok());
        for bad in ["", "a\0b", &"x".repeat(MAX_NAME_BYTES + 1)] {
            assert_eq!(check_name("prepare", bad).map_err(|e| e.kind()), Err(ErrorKind::InvalidArgument));
        }
        let of = |k: &str, v: &str| Labels::from([(k.to_owned(), v.to_owned())]);
        assert_eq!(check_labels("update", of("a", "")).ok(), Some(Labels::new()));
        assert!(check_labels("update", of("a", &"x".repeat(MAX_LABEL_BYTES - 1))).is_ok());
        assert!(check_labels("update", of("a", &"x".repeat(MAX_LABEL_BYTES))).is_err());
        assert!(check_labels("update", of("", "x")).is_err());
        let many = |count: usize| (0..count).map(|n| (format!("{n:08}"), "x".repeat(1016))).collect();
        assert!(check_labels("update", many(MAX_LABELS_BYTES / 1024)).is_ok());
        assert!(check_labels("update", many(MAX_LABELS_BYTES / 1024 + 1)).is_err());
    }
}

//! What one row of `snap` holds, as a value and as bytes, and what asks for one.

use super::blobs::Digest;
use super::codec::{Bytes, Input, Reason};
use crate::types::{Labels, Realm, SnapshotId, SnapshotKind, Timestamp, Usage};

/// One snapshot, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number; never changes, whatever becomes of the name.
    pub id: SnapshotId,
    /// What it is.
    pub kind: SnapshotKind,
    /// The committed snapshot that it is made from.
    pub parent: Option<SnapshotId>,
    /// Who it belongs to.
    pub realm: Realm,
    /// Its key (active, view) or name (committed).
    pub name: String,
    /// When it was made; a commit makes it anew.
    pub created: Timestamp,
    /// When it was last changed.
    pub updated: Timestamp,
    /// What it occupies by itself: measured at commit, zero before.
    pub usage: Usage,
    /// Its labels, as stored: without those that are computed.
    pub labels: Labels,
    /// Whether it has a directory of its own.
    pub has_directory: bool,
    /// What backends must know of its content: bits such as [`Record::REDIRECTS`].
    pub flags: u32,
}

impl Record {
    /// The layer holds marks that the kernel's overlayfs does not follow for everyone: redirects, metacopy.
    pub const REDIRECTS: u32 = 1;

    /// A layer was begun to be applied to it and is not there whole: it can be looked at and removed, not committed.
    pub const INCOMPLETE: u32 = 2;

    /// It was made by a process for itself: garbage once nobody works in it any more.
    pub const TRANSIENT: u32 = 4;

    /// A layer was applied to it as the lowest one, without marks of what it removes: it cannot be put on others.
    pub const LOWEST: u32 = 8;

    /// The version of its bytes.
    const VERSION: u8 = 1;

    /// Its bytes. The id is not among them: it is the key.
    pub(super) fn encode(&self) -> Vec<u8> {
        Bytes::version(Self::VERSION)
            .kind(self.kind)
            .u8(u8::from(self.has_directory))
            .u32(self.flags)
            .u64(self.parent.map_or(0, |p| p.0))
            .text(self.realm.as_str())
            .text(&self.name)
            .time(self.created)
            .time(self.updated)
            .usage(self.usage)
            .labels(&self.labels)
            .finish()
    }

    /// The record of these bytes.
    pub(super) fn decode(id: SnapshotId, bytes: &[u8]) -> Result<Self, Reason> {
        let mut input = Input::new(bytes);
        if input.u8()? != Self::VERSION {
            return Err("its version is unknown");
        }
        let record = Self {
            id,
            kind: input.kind()?,
            has_directory: input.flag()?,
            flags: input.u32()?,
            parent: parent_of(input.u64()?),
            realm: input.realm()?,
            name: input.text()?,
            created: input.time()?,
            updated: input.time()?,
            usage: input.usage()?,
            labels: input.labels()?,
        };
        input.end()?;
        Ok(record)
    }
}

/// Ids begin with 1, so that 0 stands for none.
pub(super) fn parent_of(number: u64) -> Option<SnapshotId> {
    (number != 0).then_some(SnapshotId(number))
}

/// A snapshot to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewSnapshot<'a> {
    /// Who it belongs to; its parent is looked for there.
    pub realm: &'a Realm,
    /// Its key.
    pub name: &'a str,
    /// Active or View.
    pub kind: SnapshotKind,
    /// The name of its parent; an empty one is none.
    pub parent: Option<&'a str>,
    /// Its labels; those without a value are not stored.
    pub labels: &'a Labels,
    /// Whether it has a directory of its own.
    pub has_directory: bool,
    /// As [`Record::flags`].
    pub flags: u32,
}

/// Whether an active snapshot without a parent may get one at commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebase {
    /// Its content does not depend on the parent.
    Allowed,
    /// It does.
    Refused,
}

/// A commit.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// Who the snapshot belongs to.
    pub realm: &'a Realm,
    /// The key of the active snapshot.
    pub key: &'a str,
    /// The name of the committed one.
    pub name: &'a str,
    /// Its labels: those of the active one are not inherited.
    pub labels: &'a Labels,
    /// What it occupies.
    pub usage: Usage,
    /// Bits that are added to [`Record::flags`].
    pub flags: u32,
    /// The parent that the caller asks for; none or an empty one leaves it as it is.
    pub parent: Option<&'a str>,
    /// Whether a parent may be given to a snapshot without one.
    pub rebase: Rebase,
    /// The snapshot that was measured and synced before: another under the same key is refused.
    pub expected: Option<SnapshotId>,
    /// The moment, for both times.
    pub now: Timestamp,
}

/// A snapshot whose rows are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// What it was.
    pub record: Record,
    /// The blob that it was the last to refer to: its content is due for deletion.
    pub blob_due: Option<Digest>,
}

/// Some records, and where to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In the order of their ids.
    pub records: Vec<Record>,
    /// What to pass as `after` for the rest; `None` at the end.
    pub next: Option<SnapshotId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::store) fn sample() -> Record {
        Record {
            id: SnapshotId(7),
            kind: SnapshotKind::Committed,
            parent: Some(SnapshotId(3)),
            realm: Realm::cli(),
            name: "k8s.io/42/extract-1 sha256:ab".to_owned(),
            created: Timestamp { secs: -1, nanos: 999_999_999 },
            updated: Timestamp { secs: i64::MAX, nanos: 0 },
            usage: Usage { size_bytes: u64::MAX, inodes: 1 },
            labels: Labels::from([("a/b.c".into(), "x".into()), ("z".into(), "ä".into())]),
            has_directory: true,
            flags: Record::REDIRECTS,
        }
    }

    #[test]
    fn a_record_is_read_back_as_it_was() {
        let full = sample();
        let bare = Record { parent: None, labels: Labels::new(), has_directory: false, ..sample() };
        for record in [full, bare] {
            assert_eq!(Record::decode(record.id, &record.encode()), Ok(record));
        }
    }

    #[test]
    fn a_record_that_is_cut_or_changed_is_a_reason_and_no_panic() {
        let good = sample().encode();
        for end in 0..good.len() {
            assert!(Record::decode(SnapshotId(7), &good[..end]).is_err(), "cut at {end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Either another record, or a reason; then what it says is what is stored.
                if let Ok(record) = Record::decode(SnapshotId(7), &bad) {
                    assert_eq!(record.encode(), bad);
                }
            }
        }
        let longer = [good.as_slice(), &[0]].concat();
        assert!(Record::decode(SnapshotId(7), &longer).is_err());
        let newer = [&[2], &good[1..]].concat();
        assert_eq!(Record::decode(SnapshotId(7), &newer), Err("its version is unknown"));
    }

    #[test]
    fn the_bytes_of_a_record_stay_as_earlier_versions_wrote_them() {
        let record = Record {
            id: SnapshotId(1),
            kind: SnapshotKind::Active,
            parent: None,
            realm: Realm::cli(),
            name: "a".to_owned(),
            created: Timestamp { secs: 1, nanos: 2 },
            updated: Timestamp { secs: 3, nanos: 4 },
            usage: Usage { size_bytes: 5, inodes: 6 },
            labels: Labels::from([("k".into(), "v".into())]),
            has_directory: true,
            flags: 1,
        };
        let expected = "01020100000001000000000000000000000003636c690000000161000000000000000100000002\
                        0000000000000003000000040000000000000005000000000000000600000001000000016b0000000176";
        let hex: String = record.encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
    }
}

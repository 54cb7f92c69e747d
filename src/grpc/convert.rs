//! containerd's words <-> ours: pure, and lenient where containerd is.
//!
//! What a caller says of times, kind and parent in an update is never looked at: containerd itself sends the year 1.

use super::proto::containerd::services::snapshots::v1 as wire;
use super::proto::containerd::types::Mount as WireMount;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Info, Labels, Mount, SnapshotKind, Timestamp, Usage};
use prost::Message;
use std::collections::HashMap;

/// Snapshots in one message of a list, as containerd sends them.
pub const BLOCK_INFOS: usize = 100;

/// Bytes at which such a message is full, too: together with one more snapshot it stays far below what clients take.
pub const BLOCK_BYTES: usize = 4 << 20;

/// A name that may be missing: nothing is said by an empty text.
pub fn optional(name: &str) -> Option<&str> {
    (!name.is_empty()).then_some(name)
}

/// The labels of a request.
pub fn labels(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

/// What an update changes: the snapshot, its labels, and the paths of those that count.
///
/// # Errors
/// `InvalidArgument` if it names no snapshot.
pub fn update(request: wire::UpdateSnapshotRequest) -> Result<(String, Labels, Vec<String>)> {
    let Some(info) = request.info else {
        let cause = "the request says nothing of the snapshot: info is missing";
        return Err(Error::new(ErrorKind::InvalidArgument, "update", "", cause));
    };
    let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
    Ok((info.name, labels(info.labels), paths))
}

/// Mounts for whoever asked.
pub fn mounts(mounts: Vec<Mount>) -> Vec<WireMount> {
    let one = |mount: Mount| WireMount {
        r#type: mount.kind,
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(one).collect()
}

/// Mounts that a caller brings.
///
/// # Errors
/// `Unsupported` for those that are to be mounted below another one: whoever asked has somebody else to ask.
pub fn mounts_of(operation: &'static str, mounts: Vec<WireMount>) -> Result<Vec<Mount>> {
    let one = |mount: WireMount| {
        let WireMount { r#type: kind, source, target, options } = mount;
        if target.is_empty() {
            return Ok(Mount { kind, source, options });
        }
        let cause = "mounts below other mounts are not carried out here";
        Err(Error::new(ErrorKind::Unsupported, operation, crate::types::quoted(&target), cause))
    };
    mounts.into_iter().map(one).collect()
}

/// What is known of a snapshot.
pub fn info(info: Info) -> wire::Info {
    wire::Info {
        name: info.name,
        parent: info.parent,
        kind: kind(info.kind).into(),
        created_at: Some(time(info.created)),
        updated_at: Some(time(info.updated)),
        labels: info.labels.into_iter().collect(),
    }
}

/// What a snapshot occupies. Numbers that the words cannot carry are the largest they can.
pub fn usage(usage: Usage) -> wire::UsageResponse {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    wire::UsageResponse { size: number(usage.size_bytes), inodes: number(usage.inodes) }
}

fn kind(kind: SnapshotKind) -> wire::Kind {
    match kind {
        SnapshotKind::View => wire::Kind::View,
        SnapshotKind::Active => wire::Kind::Active,
        SnapshotKind::Committed => wire::Kind::Committed,
    }
}

fn time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.secs, nanos: time.nanos.cast_signed() }
}

/// Snapshots on their way into the messages of a list.
#[derive(Debug, Default)]
pub struct Block {
    infos: Vec<wire::Info>,
    bytes: usize,
}

impl Block {
    /// Adds a snapshot; the message, if it is full now.
    pub fn add(&mut self, snapshot: Info) -> Option<wire::ListSnapshotsResponse> {
        let snapshot = info(snapshot);
        self.bytes += snapshot.encoded_len();
        self.infos.push(snapshot);
        let full = self.infos.len() >= BLOCK_INFOS || self.bytes >= BLOCK_BYTES;
        if full { self.rest() } else { None }
    }

    /// The message with what is left; none if that is nothing.
    pub fn rest(&mut self) -> Option<wire::ListSnapshotsResponse> {
        let Block { infos, .. } = std::mem::take(self);
        (!infos.is_empty()).then_some(wire::ListSnapshotsResponse { info: infos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, label_bytes: usize) -> Info {
        Info {
            name: name.to_owned(),
            parent: "p".to_owned(),
            kind: SnapshotKind::View,
            created: Timestamp { secs: -62_135_596_800, nanos: 0 },
            updated: Timestamp { secs: 1, nanos: 999_999_999 },
            labels: Labels::from([("l".to_owned(), "x".repeat(label_bytes))]),
        }
    }

    #[test]
    fn kinds_have_the_numbers_of_containerd() {
        let cases = [(SnapshotKind::View, 1), (SnapshotKind::Active, 2), (SnapshotKind::Committed, 3)];
        for (ours, number) in cases {
            assert_eq!(kind(ours) as i32, number);
        }
    }

    #[test]
    fn what_is_known_is_told_with_times_before_1970_too() {
        let told = info(snapshot("n", 1));
        assert_eq!((told.name.as_str(), told.parent.as_str(), told.kind), ("n", "p", 1));
        assert_eq!(told.created_at.map(|t| (t.seconds, t.nanos)), Some((-62_135_596_800, 0)));
        assert_eq!(told.updated_at.map(|t| (t.seconds, t.nanos)), Some((1, 999_999_999)));
        assert_eq!(told.labels, HashMap::from([("l".to_owned(), "x".to_owned())]));
    }

    #[test]
    fn an_update_is_read_whatever_it_says_of_kind_and_times() {
        let strange = wire::Info {
            name: "n".to_owned(),
            parent: "another".to_owned(),
            kind: 99,
            created_at: Some(prost_types::Timestamp { seconds: i64::MIN, nanos: -1 }),
            updated_at: None,
            labels: HashMap::from([("a".to_owned(), "b".to_owned())]),
        };
        let mask = |paths: &[&str]| prost_types::FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
        for (update_mask, paths) in [
            (None, vec![]),
            (Some(mask(&[])), vec![]),
            (Some(mask(&["labels.a"])), vec!["labels.a".to_owned()]),
        ] {
            let request = wire::UpdateSnapshotRequest {
                info: Some(strange.clone()),
                update_mask,
                ..wire::UpdateSnapshotRequest::default()
            };
            assert_eq!(update(request).unwrap(), ("n".to_owned(), labels.clone(), paths));
        }
        let missing = update(wire::UpdateSnapshotRequest::default()).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn numbers_that_are_too_large_are_cut() {
        let told = usage(Usage { size_bytes: u64::MAX, inodes: 7 });
        assert_eq!((told.size, told.inodes), (i64::MAX, 7));
    }

    #[test]
    fn a_mount_has_no_target() {
        let ours = Mount { kind: "bind".to_owned(), source: "/s".to_owned(), options: vec!["ro".to_owned()] };
        let told = mounts(vec![ours]);
        assert_eq!(told[0].r#type, "bind");
        assert_eq!((told[0].source.as_str(), told[0].target.as_str()), ("/s", ""));
        assert_eq!(told[0].options, ["ro"]);
    }

    #[test]
    fn a_block_is_full_by_count_or_by_bytes_and_never_empty() {
        let mut block = Block::default();
        assert!(block.rest().is_none());
        for n in 1..BLOCK_INFOS {
            assert!(block.add(snapshot("n", 1)).is_none(), "{n}");
        }
        assert_eq!(block.add(snapshot("n", 1)).map(|full| full.info.len()), Some(BLOCK_INFOS));
        assert!(block.rest().is_none());
        assert!(block.add(snapshot("n", BLOCK_BYTES / 2)).is_none());
        assert_eq!(block.add(snapshot("n", BLOCK_BYTES / 2)).map(|full| full.info.len()), Some(2));
        assert!(block.add(snapshot("n", 1)).is_none());
        assert_eq!(block.rest().map(|rest| rest.info.len()), Some(1));
    }
}

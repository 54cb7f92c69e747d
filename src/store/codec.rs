//! Bytes of rows: numbers, strings and labels, written and read back; pure.
//!
//! Whatever the bytes, reading ends in a value or in a reason. Memory is taken only for what is really there.

use crate::types::{Labels, Realm, SnapshotKind, Timestamp, Usage};

/// Why bytes are no row.
pub(super) type Reason = &'static str;

/// Appends values to a row.
#[derive(Debug, Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    /// An empty row of a version.
    pub(super) fn version(version: u8) -> Self {
        Self(vec![version])
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// Length and content. Names and labels are limited far below 4 GiB before they come here.
    pub(super) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.u32(length).raw(&value[..value.len().min(u32::MAX as usize)])
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(value.as_bytes())
    }

    pub(super) fn time(&mut self, value: Timestamp) -> &mut Self {
        self.raw(&value.secs.to_be_bytes()).u32(value.nanos)
    }

    pub(super) fn usage(&mut self, value: Usage) -> &mut Self {
        self.u64(value.size_bytes).u64(value.inodes)
    }

    pub(super) fn kind(&mut self, value: SnapshotKind) -> &mut Self {
        self.u8(match value {
            SnapshotKind::View => 1,
            SnapshotKind::Active => 2,
            SnapshotKind::Committed => 3,
        })
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> &mut Self {
        self.u32(u32::try_from(labels.len()).unwrap_or(u32::MAX));
        for (key, value) in labels {
            self.text(key).text(value);
        }
        self
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Takes values from a row, in the order in which they were appended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn raw(&mut self, length: usize) -> Result<&'a [u8], Reason> {
        let (head, rest) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        self.raw(N)?.try_into().map_err(|_| "it ends too early")
    }

    pub(super) fn u8(&mut self) -> Result<u8, Reason> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Reason> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Reason> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Reason> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a yes or no is neither"),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Reason> {
        let length = self.u32()? as usize;
        self.raw(length)
    }

    pub(super) fn text(&mut self) -> Result<String, Reason> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| "a text is no UTF-8")?;
        Ok(text.to_owned())
    }

    pub(super) fn realm(&mut self) -> Result<Realm, Reason> {
        Realm::named(&self.text()?).map_err(|_| "its realm has no proper name")
    }

    pub(super) fn time(&mut self) -> Result<Timestamp, Reason> {
        let (secs, nanos) = (i64::from_be_bytes(self.array()?), self.u32()?);
        if nanos >= 1_000_000_000 {
            return Err("a time has more than a second of nanoseconds");
        }
        Ok(Timestamp { secs, nanos })
    }

    pub(super) fn usage(&mut self) -> Result<Usage, Reason> {
        Ok(Usage { size_bytes: self.u64()?, inodes: self.u64()? })
    }

    pub(super) fn kind(&mut self) -> Result<SnapshotKind, Reason> {
        match self.u8()? {
            1 => Ok(SnapshotKind::View),
            2 => Ok(SnapshotKind::Active),
            3 => Ok(SnapshotKind::Committed),
            _ => Err("its kind is unknown"),
        }
    }

    pub(super) fn labels(&mut self) -> Result<Labels, Reason> {
        let mut labels = Labels::new();
        for _ in 0..self.u32()? {
            let (key, value) = (self.text()?, self.text()?);
            if labels.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err("its labels are out of order");
            }
            labels.insert(key, value);
        }
        Ok(labels)
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err("more follows than it should have") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_taken_back() {
        let labels = Labels::from([("a".into(), "1".into()), ("b".into(), String::new())]);
        let time = Timestamp { secs: -62_135_596_800, nanos: 999_999_999 };
        let mut row = Bytes::version(7);
        row.u32(5).u64(u64::MAX).text("ä").bytes(b"\0\xff").time(time).labels(&labels).u8(1);
        row.kind(SnapshotKind::View).usage(Usage { size_bytes: 3, inodes: 4 });
        let row = row.finish();
        let mut input = Input::new(&row);
        assert_eq!(input.u8(), Ok(7));
        assert_eq!(input.u32(), Ok(5));
        assert_eq!(input.u64(), Ok(u64::MAX));
        assert_eq!(input.text(), Ok("ä".to_owned()));
        assert_eq!(input.bytes(), Ok(b"\0\xff".as_slice()));
        assert_eq!(input.time(), Ok(time));
        assert_eq!(input.labels(), Ok(labels));
        assert_eq!(input.flag(), Ok(true));
        assert_eq!(input.kind(), Ok(SnapshotKind::View));
        assert_eq!(input.usage(), Ok(Usage { size_bytes: 3, inodes: 4 }));
        assert_eq!(input.end(), Ok(()));
    }

    #[test]
    fn what_is_wrong_with_a_row_is_said() {
        assert!(Input::new(&[0, 0, 0]).u32().is_err());
        assert!(Input::new(&[2]).flag().is_err());
        assert!(Input::new(&[4]).kind().is_err());
        assert!(Input::new(&[0]).kind().is_err());
        assert!(Input::new(&[0]).end().is_err());
        assert!(Input::new(Bytes::default().bytes(&[0xff]).finish().as_slice()).text().is_err());
        assert!(Input::new(Bytes::default().text("NO").finish().as_slice()).realm().is_err());
        let late = Timestamp { secs: 0, nanos: 1_000_000_000 };
        assert!(Input::new(Bytes::default().time(late).finish().as_slice()).time().is_err());
        let mut twice = Bytes::default();
        twice.u32(2).text("a").text("1").text("a").text("2");
        assert!(Input::new(&twice.finish()).labels().is_err());
    }

    #[test]
    fn a_length_that_lies_takes_no_memory() {
        assert!(Input::new(&[0xff, 0xff, 0xff, 0xff, 1]).bytes().is_err());
        assert!(Input::new(&[0xff, 0xff, 0xff, 0xff]).labels().is_err());
    }
}

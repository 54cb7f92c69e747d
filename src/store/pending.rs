//! Snapshots that are being made slowly: the key is taken and the parent held, but nobody sees them yet.

use super::codec::{Bytes, Input, Reason};
use super::process::ProcessMark;
use super::reader::Reader;
use super::record::{NewSnapshot, Record, parent_of};
use super::schema::{self, Table};
use super::writer::Writer;
use crate::error::{ErrorKind, Result};
use crate::types::{Labels, Realm, SnapshotId, SnapshotKind, Timestamp, quoted};
use std::ops::ControlFlow;

/// A snapshot that is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub id: SnapshotId,
    /// What it will be.
    pub kind: SnapshotKind,
    /// Its parent.
    pub parent: Option<SnapshotId>,
    /// Who it will belong to.
    pub realm: Realm,
    /// Its key.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Whether it will have a directory of its own.
    pub has_directory: bool,
    /// As [`Record::flags`].
    pub flags: u32,
    /// Who makes it: with the death of that process the row means nothing.
    pub owner: ProcessMark,
}

impl Pending {
    const VERSION: u8 = 1;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut row = Bytes::version(Self::VERSION);
        row.kind(self.kind).u8(u8::from(self.has_directory)).u32(self.flags);
        row.u64(self.parent.map_or(0, |p| p.0))
            .text(self.realm.as_str())
            .text(&self.name)
            .labels(&self.labels);
        self.owner.encode(&mut row);
        row.finish()
    }

    pub(super) fn decode(id: SnapshotId, bytes: &[u8]) -> std::result::Result<Self, Reason> {
        let mut input = Input::new(bytes);
        if input.u8()? != Self::VERSION {
            return Err("its version is unknown");
        }
        let pending = Self {
            id,
            kind: input.kind()?,
            has_directory: input.flag()?,
            flags: input.u32()?,
            parent: parent_of(input.u64()?),
            realm: input.realm()?,
            name: input.text()?,
            labels: input.labels()?,
            owner: ProcessMark::decode(&mut input)?,
        };
        input.end()?;
        Ok(pending)
    }
}

impl Reader<'_> {
    /// All snapshots that are being made, or whose maker was killed.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn pending(&self) -> Result<Vec<Pending>> {
        let mut all = Vec::new();
        self.scan(Table::Pending, &[], &mut |key, value| {
            let id = schema::id_of(key).ok_or_else(|| self.corrupt("pending", "a key has not 8 bytes"))?;
            all.push(Pending::decode(id, value).map_err(|r| self.corrupt(format!("pending {id}"), r))?);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// The one of that number.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn pending_of(&self, id: SnapshotId) -> Result<Option<Pending>> {
        let Some(value) = self.get(Table::Pending, &schema::id_key(id))? else { return Ok(None) };
        Pending::decode(id, value).map(Some).map_err(|r| self.corrupt(format!("pending {id}"), r))
    }
}

impl Writer<'_> {
    /// Begins a snapshot that takes long to make: from now on its key is in use and its parent has a child.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn add_pending(&mut self, new: &NewSnapshot<'_>, owner: &ProcessMark) -> Result<SnapshotId> {
        let parent = self.check_new(new)?;
        let id = self.new_id()?;
        let pending = Pending {
            id,
            kind: new.kind,
            parent,
            realm: new.realm.clone(),
            name: new.name.to_owned(),
            labels: self.stored_labels(new.labels)?,
            has_directory: new.has_directory,
            flags: new.flags,
            owner: *owner,
        };
        self.put(Table::Pending, &schema::id_key(id), &pending.encode())?;
        self.put_name(new.realm, new.name, id)?;
        if let Some(parent) = parent {
            self.put(Table::Child, &schema::child_key(parent, id), new.name.as_bytes())?;
        }
        Ok(id)
    }

    /// Makes a snapshot of what was begun.
    ///
    /// # Errors
    /// `Aborted` if the row is gone: somebody took its owner for dead.
    pub fn finish_pending(&mut self, id: SnapshotId, now: Timestamp) -> Result<Record> {
        let Some(pending) = self.pending_of(id)? else {
            let cause = "what was begun has been dropped: try again";
            return Err(self.error(ErrorKind::Aborted, format!("snapshot {id}"), cause));
        };
        let record = Record {
            id,
            kind: pending.kind,
            parent: pending.parent,
            realm: pending.realm,
            name: pending.name,
            created: now,
            updated: now,
            usage: Default::default(),
            labels: pending.labels,
            has_directory: pending.has_directory,
            flags: pending.flags,
        };
        // Name and back reference stand already.
        self.delete(Table::Pending, &schema::id_key(id))?;
        self.put_record(&record)?;
        Ok(record)
    }

    /// Gives up what was begun; false if it was gone already.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn drop_pending(&mut self, id: SnapshotId) -> Result<bool> {
        let Some(pending) = self.pending_of(id)? else { return Ok(false) };
        self.frees();
        self.delete(Table::Pending, &schema::id_key(id))?;
        let key = schema::name_key(&pending.realm, &pending.name);
        if self.get(Table::Name, &key)? == Some(&schema::id_key(id)) {
            self.delete(Table::Name, &key)?;
        }
        if let Some(parent) = pending.parent {
            self.delete(Table::Child, &schema::child_key(parent, id))?;
        }
        Ok(true)
    }

    /// Gives up whatever was begun by processes that `is_dead`, and returns the numbers: what is on the disk
    /// under them is garbage.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn drop_dead_pending(
        &mut self,
        mut is_dead: impl FnMut(&ProcessMark) -> bool,
    ) -> Result<Vec<SnapshotId>> {
        let mut dropped = Vec::new();
        for pending in self.pending()? {
            if is_dead(&pending.owner) {
                tracing::info!(
                    id = pending.id.0,
                    name = quoted(&pending.name),
                    "dropping what a dead process began"
                );
                self.drop_pending(pending.id)?;
                dropped.push(pending.id);
            }
        }
        Ok(dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_row_is_read_back_and_never_half() {
        let pending = Pending {
            id: SnapshotId(9),
            kind: SnapshotKind::View,
            parent: Some(SnapshotId(1)),
            realm: Realm::containerd(),
            name: "n".to_owned(),
            labels: Labels::from([("a".into(), "b".into())]),
            has_directory: false,
            flags: 4,
            owner: ProcessMark { pid: 1, start_time: 2, boot_id: [3; 16], pid_namespace: 4 },
        };
        let bytes = pending.encode();
        assert_eq!(Pending::decode(pending.id, &bytes), Ok(pending));
        for end in 0..bytes.len() {
            assert!(Pending::decode(SnapshotId(9), &bytes[..end]).is_err(), "cut at {end}");
        }
    }
}

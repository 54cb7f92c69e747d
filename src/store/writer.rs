//! Changing rows: each method leaves all tables in agreement, or fails and the whole transaction with it.

use super::reader::{Reader, Txn};
use super::record::{Commit, NewSnapshot, Rebase, Record, Removed};
use super::schema::{self, Shutdown, Table, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Labels, Realm, SnapshotId, SnapshotKind, Timestamp, check_labels, check_name, quoted};
use lmdb::{Transaction, WriteFlags};
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A transaction that changes rows; as a [`Reader`] it sees its own changes.
pub struct Writer<'t> {
    reader: Reader<'t>,
    /// The map had no room: the transaction is void, and is run again once the map has grown.
    full: bool,
    purpose: Purpose,
    /// The closure that runs now has changed something.
    changed: bool,
    /// Directories that are to be on the disk before the rows are.
    first: Vec<PathBuf>,
}

/// What a transaction does to a store that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It takes room, or leaves it as it is.
    Adds,
    /// It gives room back, though it takes some first: pages are copied before they change.
    Frees,
}

impl<'t> Deref for Writer<'t> {
    type Target = Reader<'t>;

    fn deref(&self) -> &Reader<'t> {
        &self.reader
    }
}

impl<'t> Writer<'t> {
    pub(super) fn new(reader: Reader<'t>) -> Self {
        Self { reader, full: false, purpose: Purpose::Adds, changed: false, first: Vec::new() }
    }

    /// A number that no snapshot has had. It is taken only if the transaction succeeds.
    ///
    /// # Errors
    /// `Corrupt`, `NoSpace`.
    pub fn new_id(&mut self) -> Result<SnapshotId> {
        let id = self.next_id()?;
        self.put(Table::Meta, meta::NEXT_ID, &schema::id_key(SnapshotId(id.0 + 1)))?;
        Ok(id)
    }

    /// Makes the rows of a new snapshot whose number is from [`Writer::new_id`].
    ///
    /// The parent is looked at first, then the key, as containerd does.
    ///
    /// # Errors
    /// `NotFound` without the parent, `InvalidArgument` if it is not committed or something given is not allowed,
    /// `AlreadyExists` if the key is in use, also by a snapshot that is being made.
    pub fn create(&mut self, id: SnapshotId, new: &NewSnapshot<'_>, now: Timestamp) -> Result<Record> {
        let parent = self.check_new(new)?;
        let record = Record {
            id,
            kind: new.kind,
            parent,
            realm: new.realm.clone(),
            name: new.name.to_owned(),
            created: now,
            updated: now,
            usage: Default::default(),
            labels: self.stored_labels(new.labels)?,
            has_directory: new.has_directory,
            flags: new.flags,
        };
        self.put_record(&record)?;
        self.put_name(&record.realm, &record.name, id)?;
        if let Some(parent) = parent {
            self.put(Table::Child, &schema::child_key(parent, id), record.name.as_bytes())?;
        }
        Ok(record)
    }

    /// The checks of a creation; the parent's number.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn check_new(&self, new: &NewSnapshot<'_>) -> Result<Option<SnapshotId>> {
        check_name(self.operation(), new.name)?;
        if new.kind == SnapshotKind::Committed {
            let cause = "a committed snapshot comes from an active one only";
            return Err(self.error(ErrorKind::InvalidArgument, quoted(new.name), cause));
        }
        let parent = match named(new.parent) {
            Some(name) => {
                let parent = self.find_parent(new.realm, name, new.name)?;
                if parent.kind != SnapshotKind::Committed {
                    let cause = format!("parent {} is not committed", quoted(name));
                    return Err(self.error(ErrorKind::InvalidArgument, quoted(new.name), &cause));
                }
                Some(parent.id)
            }
            None => None,
        };
        self.check_free(new.realm, new.name)?;
        Ok(parent)
    }

    fn find_parent(&self, realm: &Realm, parent: &str, child: &str) -> Result<Record> {
        self.find(realm, parent).map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                let cause = format!("there is no parent {}", quoted(parent));
                self.error(ErrorKind::NotFound, quoted(child), &cause)
            }
            _ => error,
        })
    }

    fn check_free(&self, realm: &Realm, name: &str) -> Result<()> {
        match self.id(realm, name)? {
            None => Ok(()),
            Some(_) => Err(self.error(ErrorKind::AlreadyExists, quoted(name), "the key or name is in use")),
        }
    }

    /// Makes a committed snapshot of an active one: same number, other name, both times new, labels replaced.
    ///
    /// # Errors
    /// `NotFound` without the key or the parent, `AlreadyExists` if the name is in use, `FailedPrecondition` if
    /// the snapshot is not active, the parent not committed, or a parent may not be given now;
    /// `InvalidArgument` if it has another parent; `Aborted` if the key is not the snapshot that was expected.
    pub fn commit(&mut self, commit: &Commit<'_>) -> Result<Record> {
        check_name(self.operation(), commit.name)?;
        let mut record = self.find(commit.realm, commit.key)?;
        if commit.expected.is_some_and(|id| id != record.id) {
            let cause = "it was removed and made anew meanwhile: try again";
            return Err(self.error(ErrorKind::Aborted, quoted(commit.key), cause));
        }
        self.check_free(commit.realm, commit.name)?;
        if record.kind != SnapshotKind::Active {
            let cause = format!("it is {}, and only active snapshots can be committed", record.kind.as_str());
            return Err(self.error(ErrorKind::FailedPrecondition, quoted(commit.key), &cause));
        }
        if record.flags & Record::INCOMPLETE != 0 {
            let cause = "a layer was not applied to it whole: remove it, and begin again";
            return Err(self.error(ErrorKind::FailedPrecondition, quoted(commit.key), cause));
        }
        if let Some(parent) = self.parent_at_commit(&record, commit)? {
            record.parent = Some(parent);
        }
        self.delete(Table::Name, &schema::name_key(&record.realm, &record.name))?;
        record.kind = SnapshotKind::Committed;
        record.name = commit.name.to_owned();
        record.labels = self.stored_labels(commit.labels)?;
        record.usage = commit.usage;
        record.flags = (record.flags & !Record::TRANSIENT) | commit.flags;
        record.created = commit.now;
        record.updated = commit.now;
        self.put_record(&record)?;
        self.put_name(&record.realm, &record.name, record.id)?;
        if let Some(parent) = record.parent {
            self.put(Table::Child, &schema::child_key(parent, record.id), record.name.as_bytes())?;
        }
        Ok(record)
    }

    /// The parent that a commit adds, if it adds one.
    fn parent_at_commit(&self, record: &Record, commit: &Commit<'_>) -> Result<Option<SnapshotId>> {
        let Some(name) = named(commit.parent) else { return Ok(None) };
        let refuse = |kind, cause: String| Err(self.error(kind, quoted(commit.key), &cause));
        if record.parent.is_some() {
            let present = self.parent_name(record)?;
            if present == name {
                return Ok(None);
            }
            let cause = format!("its parent is {} and cannot become {}", quoted(&present), quoted(name));
            return refuse(ErrorKind::InvalidArgument, cause);
        }
        if record.flags & Record::LOWEST != 0 {
            let cause = "its layer was applied as the lowest one, since nothing said that it gets a parent (label \
                         containerd.io/snapshot/parent-chain-id): prepare it from the parent";
            return refuse(ErrorKind::FailedPrecondition, cause.to_owned());
        }
        let parent = self.find_parent(commit.realm, name, commit.key)?;
        if parent.kind != SnapshotKind::Committed {
            let cause = format!("parent {} is not committed", quoted(name));
            return refuse(ErrorKind::FailedPrecondition, cause);
        }
        if commit.rebase == Rebase::Refused {
            let cause = "with this backend a snapshot made without a parent cannot get one: prepare it from the parent";
            return refuse(ErrorKind::FailedPrecondition, cause.to_owned());
        }
        Ok(Some(parent.id))
    }

    /// Removes all rows of a snapshot, those of its blob and mounts included.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it has children of whatever kind.
    pub fn remove(&mut self, realm: &Realm, key: &str) -> Result<Removed> {
        let record = self.find(realm, key)?;
        self.frees();
        if let Some(child) = self.first_child(record.id)? {
            let cause = format!("cannot remove a snapshot with children, such as {}", quoted(&child.name));
            return Err(self.error(ErrorKind::FailedPrecondition, quoted(key), &cause));
        }
        self.delete(Table::Snap, &schema::id_key(record.id))?;
        self.delete(Table::Name, &schema::name_key(realm, key))?;
        if let Some(parent) = record.parent {
            self.delete(Table::Child, &schema::child_key(parent, record.id))?;
        }
        self.remove_mounts(record.id)?;
        let blob_due = self.drop_blob(record.id)?;
        Ok(Removed { record, blob_due })
    }

    /// Replaces the labels of a snapshot.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if a label is too large.
    pub fn set_labels(&mut self, id: SnapshotId, labels: &Labels, now: Timestamp) -> Result<Record> {
        let mut record = self.record_that_exists(id)?;
        record.labels = self.stored_labels(labels)?;
        record.updated = now;
        self.put_record(&record)?;
        Ok(record)
    }

    /// Replaces [`Record::flags`].
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_flags(&mut self, id: SnapshotId, flags: u32) -> Result<Record> {
        let mut record = self.record_that_exists(id)?;
        record.flags = flags;
        self.put_record(&record)?;
        Ok(record)
    }

    /// Records, for good, whose directories the store holds. Recording the same name again is fine.
    ///
    /// # Errors
    /// `FailedPrecondition` if it is another one.
    pub fn record_backend(&mut self, name: &str) -> Result<()> {
        match self.backend()? {
            Some(present) if present == name => Ok(()),
            Some(present) => {
                let cause = format!("the store was made with backend {present}");
                Err(self.error(ErrorKind::FailedPrecondition, format!("backend {name}"), &cause))
            }
            None => self.replace_backend(name),
        }
    }

    /// Records another backend, one that uses the directories as they are.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn replace_backend(&mut self, name: &str) -> Result<()> {
        self.put(Table::Meta, meta::BACKEND, name.as_bytes())
    }

    /// Records how the store is left.
    ///
    /// # Errors
    /// `NoSpace`.
    pub fn set_shutdown(&mut self, how: Shutdown) -> Result<()> {
        self.put(Table::Meta, meta::CLEAN_SHUTDOWN, &[u8::from(how == Shutdown::Clean)])
    }

    pub(super) fn record_that_exists(&self, id: SnapshotId) -> Result<Record> {
        let missing =
            || self.error(ErrorKind::NotFound, format!("snapshot {id}"), "there is no such snapshot");
        self.record(id)?.ok_or_else(missing)
    }

    /// Labels as they are stored: checked, without empty ones and without those that are computed.
    pub(super) fn stored_labels(&self, labels: &Labels) -> Result<Labels> {
        let mut labels = check_labels(self.operation(), labels.clone())?;
        labels.remove(super::BLOB_LABEL);
        labels.remove(super::INCOMPLETE_LABEL);
        Ok(labels)
    }

    pub(super) fn put_record(&mut self, record: &Record) -> Result<()> {
        self.put(Table::Snap, &schema::id_key(record.id), &record.encode())
    }

    pub(super) fn put_name(&mut self, realm: &Realm, name: &str, id: SnapshotId) -> Result<()> {
        let key = schema::name_key(realm, name);
        // Another long name with the same hash, or an index that is damaged: neither may lose its entry.
        if self.get(Table::Name, &key)?.is_some_and(|other| other != schema::id_key(id).as_slice()) {
            let cause = "its place in the index belongs to another: check the store, or choose another name";
            return Err(self.error(ErrorKind::AlreadyExists, quoted(name), cause));
        }
        self.put(Table::Name, &key, &schema::id_key(id))
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        let handle = self.reader.tables().of(table);
        let done = match (self.reader.txn_mut(), crate::fail::point("db.map_full")) {
            (_, Err(_)) => Err(lmdb::Error::MapFull),
            (Txn::Write(txn), Ok(())) => txn.put(handle, &key, &value, WriteFlags::empty()),
            (Txn::Read(_), Ok(())) => Err(lmdb::Error::BadTxn),
        };
        self.changed(table, done)
    }

    /// Deletes a row; false if it was not there.
    pub(super) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool> {
        let handle = self.reader.tables().of(table);
        let done = match self.reader.txn_mut() {
            Txn::Write(txn) => txn.del(handle, &key, None),
            Txn::Read(_) => Err(lmdb::Error::BadTxn),
        };
        match done {
            Err(lmdb::Error::NotFound) => Ok(false),
            done => self.changed(table, done).map(|()| true),
        }
    }

    fn changed(&mut self, table: Table, done: std::result::Result<(), lmdb::Error>) -> Result<()> {
        self.full |= done == Err(lmdb::Error::MapFull);
        self.changed = true;
        done.map_err(|error| super::environment::failed(self.operation(), table.name(), error))
    }

    /// Has the names in the directory `dir` on the disk before the rows are: they tell of one that was made there.
    pub fn sync_first(&mut self, dir: &Path) {
        if !self.first.iter().any(|known| known == dir) {
            self.first.push(dir.to_owned());
        }
    }

    /// Does what was asked for by [`Writer::sync_first`].
    pub(super) fn sync_what_comes_first(&self) -> Result<()> {
        self.first.iter().try_for_each(|dir| {
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(|e| {
                let error = Error::io(self.operation(), dir.display().to_string(), e);
                match error.kind() {
                    // What a directory is or can is no answer to who asks for a snapshot.
                    ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Unsupported => {
                        error.as_kind(ErrorKind::Io)
                    }
                    _ => error,
                }
            })
        })
    }

    /// Another closure runs from now on, for this operation.
    pub(super) fn begin_part(&mut self, operation: &'static str) {
        self.reader.set_operation(operation);
        (self.changed, self.purpose) = (false, Purpose::Adds);
    }

    /// Whether the closure that runs now has changed something.
    pub(super) fn part_has_changed(&self) -> bool {
        self.changed
    }

    /// This transaction removes something.
    pub(super) fn frees(&mut self) {
        self.purpose = Purpose::Frees;
    }

    /// What it is for, as far as it has come.
    pub(super) fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Whether the map had no room for a change.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Makes all changes last.
    pub(super) fn finish(self) -> std::result::Result<(), lmdb::Error> {
        match self.reader.into_txn() {
            Txn::Write(txn) => txn.commit(),
            Txn::Read(_) => Err(lmdb::Error::BadTxn),
        }
    }
}

impl Reader<'_> {
    /// The number that the next snapshot gets: all directories have smaller ones.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn next_id(&self) -> Result<SnapshotId> {
        let value = self.get(Table::Meta, meta::NEXT_ID)?;
        match value.map(schema::id_of) {
            None => Ok(SnapshotId(1)),
            Some(Some(id)) if id.0 != 0 && id.0 != u64::MAX => Ok(id),
            Some(_) => Err(self.corrupt("next id", "it is no proper number")),
        }
    }
}

/// A name, unless it is empty.
fn named(name: Option<&str>) -> Option<&str> {
    name.filter(|n| !n.is_empty())
}

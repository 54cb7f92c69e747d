//! Reading rows: one moment of the store, copied out as values.

use super::record::{Batch, Record};
use super::schema::{self, Shutdown, Table, Tables, meta};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Info, Realm, SnapshotId, quoted};
use lmdb::{Cursor, RoTransaction, RwTransaction, Transaction};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// One moment of the store. Whatever it answers is a copy: no slice of the map leaves the transaction.
pub struct Reader<'t> {
    txn: Txn<'t>,
    tables: &'t Tables,
    operation: &'static str,
}

/// A transaction of either sort: a writer reads its own changes.
pub(super) enum Txn<'t> {
    Read(RoTransaction<'t>),
    Write(RwTransaction<'t>),
}

/// Is shown rows, key and value, until it breaks off.
type EachRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>;

/// A snapshot that stands below a parent, perhaps still being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    /// Its number.
    pub id: SnapshotId,
    /// Its present name.
    pub name: String,
}

/// Parents above a snapshot before the chain counts as a loop: far more than any mount can stack.
const MAX_CHAIN: usize = 1 << 16;

impl<'t> Reader<'t> {
    pub(super) fn new(txn: Txn<'t>, tables: &'t Tables, operation: &'static str) -> Self {
        Self { txn, tables, operation }
    }

    /// How many snapshots there are, in all realms.
    ///
    /// # Errors
    /// Those of the store.
    pub fn snapshot_count(&self) -> Result<u64> {
        let handle = self.tables.of(Table::Snap);
        let stat = match &self.txn {
            Txn::Read(txn) => txn.stat(handle),
            Txn::Write(txn) => txn.stat(handle),
        };
        let stat = stat.map_err(|e| super::environment::failed(self.operation, "table snap", e))?;
        Ok(stat.entries() as u64)
    }

    /// The number of the snapshot of that name, or of the one that is being made under it.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn id(&self, realm: &Realm, name: &str) -> Result<Option<SnapshotId>> {
        let Some(id) = self.indexed(realm, name)? else { return Ok(None) };
        // A long name shares its key with every name of the same beginning and hash: the full one decides.
        let same = match self.record(id)? {
            Some(record) => record.name == name && record.realm == *realm,
            None => self.pending_of(id)?.is_some_and(|p| p.name == name && p.realm == *realm),
        };
        Ok(same.then_some(id))
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// `NotFound`, also for one that is still being made; `Corrupt`.
    pub fn find(&self, realm: &Realm, name: &str) -> Result<Record> {
        let record = match self.indexed(realm, name)? {
            Some(id) => self.record(id)?.filter(|r| r.name == name && r.realm == *realm),
            None => None,
        };
        record.ok_or_else(|| self.error(ErrorKind::NotFound, quoted(name), "there is no such snapshot"))
    }

    /// What the index says of a name.
    fn indexed(&self, realm: &Realm, name: &str) -> Result<Option<SnapshotId>> {
        let Some(value) = self.get(Table::Name, &schema::name_key(realm, name))? else { return Ok(None) };
        let id = schema::id_of(value);
        id.map(Some).ok_or_else(|| self.corrupt(quoted(name), "its number has no 8 bytes"))
    }

    /// The snapshot of that number.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn record(&self, id: SnapshotId) -> Result<Option<Record>> {
        let Some(value) = self.get(Table::Snap, &schema::id_key(id))? else { return Ok(None) };
        Record::decode(id, value).map(Some).map_err(|reason| self.corrupt(format!("snapshot {id}"), reason))
    }

    /// The parent's name; empty without a parent.
    ///
    /// # Errors
    /// `Corrupt` if the parent is missing.
    pub fn parent_name(&self, record: &Record) -> Result<String> {
        let Some(parent) = record.parent else { return Ok(String::new()) };
        match self.record(parent)? {
            Some(parent) => Ok(parent.name),
            None => Err(self.corrupt(format!("snapshot {}", record.id), "its parent is missing")),
        }
    }

    /// What callers may know of a snapshot, computed labels included.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn info(&self, record: &Record) -> Result<Info> {
        let mut labels = record.labels.clone();
        if let Some(blob) = self.blob_of(record.id)? {
            labels.insert(super::BLOB_LABEL.to_owned(), blob.digest.to_string());
        }
        if record.flags & Record::INCOMPLETE != 0 {
            labels.insert(super::INCOMPLETE_LABEL.to_owned(), "true".to_owned());
        }
        Ok(Info {
            name: record.name.clone(),
            parent: self.parent_name(record)?,
            kind: record.kind,
            created: record.created,
            updated: record.updated,
            labels,
        })
    }

    /// The ancestors of a snapshot, nearest first, without itself.
    ///
    /// # Errors
    /// `Corrupt` if one is missing, or they form a loop.
    pub fn chain(&self, record: &Record) -> Result<Vec<SnapshotId>> {
        let mut chain = Vec::new();
        let mut next = record.parent;
        while let Some(id) = next {
            let subject = || format!("snapshot {}", record.id);
            if chain.len() == MAX_CHAIN {
                return Err(self.corrupt(subject(), "its parents form a loop"));
            }
            chain.push(id);
            let parent = self.record(id)?;
            next = parent
                .ok_or_else(|| self.corrupt(subject(), &format!("its ancestor {id} is missing")))?
                .parent;
        }
        Ok(chain)
    }

    /// The snapshots made from one, of every kind, those included that are still being made.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn children(&self, id: SnapshotId) -> Result<Vec<Child>> {
        let mut children = Vec::new();
        self.each_child(id, &mut |child| {
            children.push(child);
            ControlFlow::Continue(())
        })?;
        Ok(children)
    }

    /// One of them, if there is any.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn first_child(&self, id: SnapshotId) -> Result<Option<Child>> {
        let mut first = None;
        self.each_child(id, &mut |child| {
            first = Some(child);
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    fn each_child(&self, id: SnapshotId, each: &mut dyn FnMut(Child) -> ControlFlow<()>) -> Result<()> {
        let corrupt = |reason| self.corrupt(format!("children of snapshot {id}"), reason);
        self.scan_prefix(Table::Child, &schema::child_prefix(id), &mut |key, value| {
            let (_, child) = schema::child_of(key).ok_or_else(|| corrupt("a key has not 17 bytes"))?;
            let name = std::str::from_utf8(value).map_err(|_| corrupt("a name is no UTF-8"))?;
            Ok(each(Child { id: child, name: name.to_owned() }))
        })
    }

    /// Up to `limit` snapshots in the order of their ids, of one realm or of all, from behind `after`.
    ///
    /// A caller that wants all takes batch after batch, each in a transaction of its own: what is made meanwhile
    /// comes at the end, and no id comes twice.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn records(&self, realm: Option<&Realm>, after: Option<SnapshotId>, limit: usize) -> Result<Batch> {
        let mut batch = Batch { records: Vec::new(), next: None };
        let first = match after {
            Some(SnapshotId(u64::MAX)) => return Ok(batch),
            Some(id) => SnapshotId(id.0 + 1),
            None => SnapshotId(0),
        };
        self.scan(Table::Snap, &schema::id_key(first), &mut |key, value| {
            if batch.records.len() == limit {
                batch.next = batch.records.last().map(|r| r.id).or(after);
                return Ok(ControlFlow::Break(()));
            }
            let record = self.record_of_row(key, value)?;
            if realm.is_none_or(|realm| record.realm == *realm) {
                batch.records.push(record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(batch)
    }

    /// The largest number of a snapshot.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn last_id(&self) -> Result<Option<SnapshotId>> {
        let handle = self.tables.of(Table::Snap);
        let failed = |error| super::environment::failed(self.operation, Table::Snap.name(), error);
        let cursor = match &self.txn {
            Txn::Read(txn) => txn.open_ro_cursor(handle),
            Txn::Write(txn) => txn.open_ro_cursor(handle),
        };
        match cursor.map_err(failed)?.get(None, None, lmdb_sys::MDB_LAST) {
            Ok((key, _)) => match key.and_then(schema::id_of) {
                Some(id) => Ok(Some(id)),
                None => Err(self.corrupt("snapshots", "a key has not 8 bytes")),
            },
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn record_of_row(&self, key: &[u8], value: &[u8]) -> Result<Record> {
        let id = schema::id_of(key).ok_or_else(|| self.corrupt("snapshots", "a key has not 8 bytes"))?;
        Record::decode(id, value).map_err(|reason| self.corrupt(format!("snapshot {id}"), reason))
    }

    /// Whether a directory of this number belongs to somebody: to a snapshot, or to one that is being made.
    ///
    /// # Errors
    /// Those of the database.
    pub fn is_known(&self, id: SnapshotId) -> Result<bool> {
        let key = schema::id_key(id);
        Ok(self.get(Table::Snap, &key)?.is_some() || self.get(Table::Pending, &key)?.is_some())
    }

    /// All numbers that [`Reader::is_known`] knows.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn known_ids(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut ids = BTreeSet::new();
        for table in [Table::Snap, Table::Pending] {
            self.scan(table, &[], &mut |key, _| {
                ids.insert(
                    schema::id_of(key).ok_or_else(|| self.corrupt(table.name(), "a key has not 8 bytes"))?,
                );
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(ids)
    }

    /// The backend whose directories the store holds; `None` in a new one.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn backend(&self) -> Result<Option<String>> {
        let Some(value) = self.get(Table::Meta, meta::BACKEND)? else { return Ok(None) };
        let name = std::str::from_utf8(value).map_err(|_| self.corrupt("backend", "its name is no UTF-8"))?;
        Ok(Some(name.to_owned()))
    }

    /// How the store was left.
    ///
    /// # Errors
    /// Those of the database.
    pub fn shutdown(&self) -> Result<Shutdown> {
        Ok(match self.get(Table::Meta, meta::CLEAN_SHUTDOWN)? {
            Some([0]) => Shutdown::Running,
            _ => Shutdown::Clean,
        })
    }

    /// The operation that this transaction is part of.
    pub(super) fn operation(&self) -> &'static str {
        self.operation
    }

    pub(super) fn set_operation(&mut self, operation: &'static str) {
        self.operation = operation;
    }

    pub(super) fn error(&self, kind: ErrorKind, subject: impl Into<String>, cause: &str) -> Error {
        Error::new(kind, self.operation, subject, cause)
    }

    pub(super) fn corrupt(&self, subject: impl Into<String>, cause: &str) -> Error {
        self.error(ErrorKind::Corrupt, subject, &format!("the store contradicts itself: {cause}"))
    }

    pub(super) fn txn_mut(&mut self) -> &mut Txn<'t> {
        &mut self.txn
    }

    pub(super) fn into_txn(self) -> Txn<'t> {
        self.txn
    }

    pub(super) fn tables(&self) -> &'t Tables {
        self.tables
    }

    /// One value, as long as the transaction.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>> {
        let handle = self.tables.of(table);
        let found = match &self.txn {
            Txn::Read(txn) => txn.get(handle, &key),
            Txn::Write(txn) => txn.get(handle, &key),
        };
        match found {
            Ok(value) => Ok(Some(value)),
            Err(lmdb::Error::NotFound) => Ok(None),
            Err(error) => Err(super::environment::failed(self.operation, table.name(), error)),
        }
    }

    /// All rows from the key `from` on (an empty one is the begin), until `each` breaks off.
    pub(super) fn scan(&self, table: Table, from: &[u8], each: EachRow<'_>) -> Result<()> {
        let handle = self.tables.of(table);
        let failed = |error| super::environment::failed(self.operation, table.name(), error);
        let cursor = match &self.txn {
            Txn::Read(txn) => txn.open_ro_cursor(handle),
            Txn::Write(txn) => txn.open_ro_cursor(handle),
        };
        // The iterator borrows nothing of the cursor and would outlive it: both stay in this function.
        let mut cursor = cursor.map_err(failed)?;
        let rows = if from.is_empty() { cursor.iter_start() } else { cursor.iter_from(from) };
        for row in rows {
            let (key, value) = row.map_err(failed)?;
            if each(key, value)?.is_break() {
                break;
            }
        }
        drop(cursor);
        Ok(())
    }

    /// All rows whose key begins with `prefix`, until `each` breaks off.
    pub(super) fn scan_prefix(&self, table: Table, prefix: &[u8], each: EachRow<'_>) -> Result<()> {
        self.scan(table, prefix, &mut |key, value| {
            if key.starts_with(prefix) { each(key, value) } else { Ok(ControlFlow::Break(())) }
        })
    }
}

//! Whether all rows agree with each other and with the directories: every invariant, and what can be mended.
//!
//! [`check`] reads everything and believes nothing: a row that cannot be read is a finding like any other.
//! [`repair`] changes rows only; what is wrong on the disk its caller mends.

use super::blobs::{Blob, Digest};
use super::mounts::MountRow;
use super::pending::Pending;
use super::process::ProcessMark;
use super::reader::Reader;
use super::record::Record;
use super::schema::{self, Table, meta};
use super::writer::Writer;
use crate::error::Result;
use crate::types::{Realm, SnapshotId, SnapshotKind, quoted};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;

/// Something that should not be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A row cannot be read.
    Unreadable {
        /// Its table.
        table: &'static str,
        /// Its key, in hexadecimal digits.
        key: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// A snapshot has no directory (I1).
    DirectoryMissing {
        /// Which.
        id: SnapshotId,
        /// Its name.
        name: String,
    },
    /// A directory belongs to nobody (I3).
    DirectoryLeaked {
        /// Its number.
        id: SnapshotId,
    },
    /// A snapshot cannot be found by its name (I4).
    NameMissing {
        /// Which.
        id: SnapshotId,
        /// Its realm.
        realm: Realm,
        /// Its name.
        name: String,
    },
    /// Two snapshots have one name (I4): the one that is found by it, and this one.
    NameTwice {
        /// The one that is not found.
        id: SnapshotId,
        /// The name.
        name: String,
    },
    /// A name leads to nothing, or to a snapshot of another name (I4).
    NameStray {
        /// Its key.
        key: Vec<u8>,
    },
    /// A child does not stand below its parent, or under an old name (I4).
    BackReferenceMissing {
        /// The parent.
        parent: SnapshotId,
        /// The child.
        child: SnapshotId,
        /// The child's name.
        name: String,
    },
    /// Somebody stands below a snapshot who is not its child (I4).
    BackReferenceStray {
        /// The key.
        key: Vec<u8>,
    },
    /// The parent does not exist (I6).
    ParentMissing {
        /// The child.
        id: SnapshotId,
        /// The parent.
        parent: SnapshotId,
    },
    /// The parent is not committed.
    ParentNotCommitted {
        /// The child.
        id: SnapshotId,
        /// The parent.
        parent: SnapshotId,
    },
    /// The parents of a snapshot lead back to itself.
    ParentsLoop {
        /// Which.
        id: SnapshotId,
    },
    /// A creation was begun by a process that has ended.
    PendingDead {
        /// Which.
        id: SnapshotId,
        /// Its name.
        name: String,
    },
    /// A snapshot is there and still being made.
    PendingTwice {
        /// Which.
        id: SnapshotId,
    },
    /// A number is in use that is still to be given out (I5).
    NumberAhead {
        /// The largest in use.
        id: SnapshotId,
        /// The next to be given out.
        next: SnapshotId,
    },
    /// A blob belongs to a snapshot that does not exist (I4).
    BlobStray {
        /// Which snapshot.
        id: SnapshotId,
        /// The blob.
        digest: Digest,
    },
    /// One of the two blob tables lacks what the other says (I4).
    BlobOneSided {
        /// Which snapshot.
        id: SnapshotId,
        /// The blob.
        digest: Digest,
    },
    /// A content is due for deletion although it is referred to.
    BlobDueInUse {
        /// The blob.
        digest: Digest,
    },
    /// A mount is noted of a snapshot that does not exist.
    MountStray {
        /// The mount.
        mount: Box<MountRow>,
    },
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It takes room or is about to be swept; nothing is wrong.
    Garbage,
    /// Rows disagree; nothing is lost.
    Damage,
    /// A snapshot has lost something that no row can bring back.
    Loss,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::DirectoryLeaked { .. } | Self::PendingDead { .. } | Self::BlobDueInUse { .. } => {
                Severity::Garbage
            }
            Self::Unreadable { .. }
            | Self::DirectoryMissing { .. }
            | Self::NameTwice { .. }
            | Self::ParentMissing { .. }
            | Self::ParentNotCommitted { .. }
            | Self::ParentsLoop { .. } => Severity::Loss,
            _ => Severity::Damage,
        }
    }

    /// Whether [`repair`] can mend it.
    pub fn is_repairable(&self) -> bool {
        self.severity() != Severity::Loss && !matches!(self, Self::DirectoryLeaked { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { table, key, cause } => {
                write!(f, "row {key} of table {table} cannot be read: {cause}")
            }
            Self::DirectoryMissing { id, name } => {
                write!(f, "snapshot {id} ({}): its directory is missing", quoted(name))
            }
            Self::DirectoryLeaked { id } => write!(f, "directory {id}: no snapshot owns it"),
            Self::NameMissing { id, name, .. } => {
                write!(f, "snapshot {id} ({}): it is not found by its name", quoted(name))
            }
            Self::NameTwice { id, name } => {
                write!(f, "snapshot {id} ({}): another snapshot has the same name", quoted(name))
            }
            Self::NameStray { key } => write!(f, "name {}: it leads to no snapshot", shown(key)),
            Self::BackReferenceMissing { parent, child, name } => {
                write!(f, "snapshot {child} ({}): it does not stand below its parent {parent}", quoted(name))
            }
            Self::BackReferenceStray { key } => match schema::child_of(key) {
                Some((parent, child)) => {
                    write!(f, "snapshot {parent}: {child} stands below it and is not its child")
                }
                None => write!(f, "back reference {}: it has no proper key", hex(key)),
            },
            Self::ParentMissing { id, parent } => {
                write!(f, "snapshot {id}: its parent {parent} does not exist")
            }
            Self::ParentNotCommitted { id, parent } => {
                write!(f, "snapshot {id}: its parent {parent} is not committed")
            }
            Self::ParentsLoop { id } => write!(f, "snapshot {id}: its parents lead back to itself"),
            Self::PendingDead { id, name } => {
                write!(f, "creation {id} ({}): the process that began it has ended", quoted(name))
            }
            Self::PendingTwice { id } => write!(f, "creation {id}: the snapshot exists already"),
            Self::NumberAhead { id, next } => {
                write!(f, "number {id} is in use, but the next to be given out is {next}")
            }
            Self::BlobStray { id, digest } => write!(f, "blob {digest}: snapshot {id} does not exist"),
            Self::BlobOneSided { id, digest } => {
                write!(f, "blob {digest} of snapshot {id}: only one table has it")
            }
            Self::BlobDueInUse { digest } => write!(f, "blob {digest}: it is due for deletion, but in use"),
            Self::MountStray { mount } => {
                write!(f, "mount {}: snapshot {} does not exist", mount.target.display(), mount.id)
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn shown(key: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(key))
}

/// Everything that is wrong. `on_disk` are the numbers of all directories, or `None` to look at rows alone;
/// `is_dead` is asked about whoever began what is still being made.
///
/// # Errors
/// Those of the database; what is wrong with single rows is found, not failed on.
pub fn check(
    reader: &Reader<'_>,
    on_disk: Option<&BTreeSet<SnapshotId>>,
    is_dead: &mut dyn FnMut(&ProcessMark) -> bool,
) -> Result<Vec<Finding>> {
    let mut check = Check { reader, findings: Vec::new() };
    let rows = check.load()?;
    check.directories(&rows, on_disk);
    check.names(&rows)?;
    check.parents(&rows);
    check.back_references(&rows)?;
    check.pending(&rows, is_dead);
    check.numbers(&rows, on_disk);
    check.blobs(&rows)?;
    check.mounts(&rows)?;
    Ok(check.findings)
}

/// What is known of each snapshot, also of those being made, without labels.
struct Rows {
    snaps: BTreeMap<SnapshotId, Brief>,
    pending: BTreeMap<SnapshotId, (Brief, ProcessMark)>,
    /// Those whose row is there and cannot be read. What leads to them is not taken for stray: it may be all that
    /// is left to tell what they were.
    unreadable: BTreeSet<SnapshotId>,
}

struct Brief {
    kind: SnapshotKind,
    parent: Option<SnapshotId>,
    realm: Realm,
    name: String,
    has_directory: bool,
}

impl Rows {
    /// The snapshot, or what is being made, under a number.
    fn any(&self, id: SnapshotId) -> Option<&Brief> {
        self.snaps.get(&id).or_else(|| self.pending.get(&id).map(|(brief, _)| brief))
    }

    /// Whether a snapshot has this number, be its row readable or not.
    fn is_there(&self, id: SnapshotId) -> bool {
        self.snaps.contains_key(&id) || self.unreadable.contains(&id)
    }

    fn all(&self) -> impl Iterator<Item = (SnapshotId, &Brief)> {
        let pending = self.pending.iter().filter(|(id, _)| !self.snaps.contains_key(id));
        self.snaps.iter().map(|(id, b)| (*id, b)).chain(pending.map(|(id, (b, _))| (*id, b)))
    }
}

struct Check<'a, 't> {
    reader: &'a Reader<'t>,
    findings: Vec<Finding>,
}

impl Check<'_, '_> {
    /// Takes each row of a table that can be read; the others are findings.
    fn each<T>(
        &mut self,
        table: Table,
        decode: impl Fn(&[u8], &[u8]) -> std::result::Result<T, &'static str>,
        mut take: impl FnMut(&mut Vec<Finding>, T),
    ) -> Result<()> {
        let findings = &mut self.findings;
        self.reader.scan(table, &[], &mut |key, value| {
            match decode(key, value) {
                Ok(row) => take(findings, row),
                Err(cause) => {
                    findings.push(Finding::Unreadable { table: table.name(), key: hex(key), cause })
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn load(&mut self) -> Result<Rows> {
        const KEY: &str = "its key has not 8 bytes";
        let (snaps, pending) = (BTreeMap::new(), BTreeMap::new());
        let mut rows = Rows { snaps, pending, unreadable: BTreeSet::new() };
        let snap = |key: &[u8], value: &[u8]| Record::decode(schema::id_of(key).ok_or(KEY)?, value);
        self.each(Table::Snap, snap, |_, r| {
            let Record { id, kind, parent, realm, name, has_directory, .. } = r;
            rows.snaps.insert(id, Brief { kind, parent, realm, name, has_directory });
        })?;
        let pending = |key: &[u8], value: &[u8]| Pending::decode(schema::id_of(key).ok_or(KEY)?, value);
        self.each(Table::Pending, pending, |_, p| {
            let Pending { id, kind, parent, realm, name, has_directory, owner, .. } = p;
            rows.pending.insert(id, (Brief { kind, parent, realm, name, has_directory }, owner));
        })?;
        for table in [Table::Snap, Table::Pending] {
            self.reader.scan(table, &[], &mut |key, _| {
                let read = |id: &SnapshotId| match table {
                    Table::Snap => rows.snaps.contains_key(id),
                    _ => rows.pending.contains_key(id),
                };
                rows.unreadable.extend(schema::id_of(key).filter(|id| !read(id)));
                Ok(ControlFlow::Continue(()))
            })?;
        }
        Ok(rows)
    }

    fn directories(&mut self, rows: &Rows, on_disk: Option<&BTreeSet<SnapshotId>>) {
        let Some(on_disk) = on_disk else { return };
        for (id, brief) in &rows.snaps {
            if brief.has_directory && !on_disk.contains(id) {
                self.findings.push(Finding::DirectoryMissing { id: *id, name: brief.name.clone() });
            }
        }
        for id in on_disk {
            // The directory of a view without one, or of a record that cannot be read, is nobody's to delete.
            if !self.reader.is_known(*id).unwrap_or(true) {
                self.findings.push(Finding::DirectoryLeaked { id: *id });
            }
        }
    }

    fn names(&mut self, rows: &Rows) -> Result<()> {
        let mut found = BTreeSet::new();
        let decode = |key: &[u8], value: &[u8]| {
            let id = schema::id_of(value).ok_or("its number has not 8 bytes")?;
            Ok((key.to_owned(), id))
        };
        self.each(Table::Name, decode, |findings, (key, id)| {
            match rows.any(id) {
                _ if rows.unreadable.contains(&id) => {}
                Some(brief) if schema::name_key(&brief.realm, &brief.name) == key => {
                    found.insert(id);
                }
                _ => findings.push(Finding::NameStray { key }),
            };
        })?;
        for (id, brief) in rows.all() {
            if found.contains(&id) {
                continue;
            }
            let (realm, name) = (brief.realm.clone(), brief.name.clone());
            let holder =
                self.reader.get(Table::Name, &schema::name_key(&realm, &name))?.and_then(schema::id_of);
            self.findings.push(match holder {
                Some(other) if rows.any(other).is_some_and(|b| b.realm == realm && b.name == name) => {
                    Finding::NameTwice { id, name }
                }
                _ => Finding::NameMissing { id, realm, name },
            });
        }
        Ok(())
    }

    fn parents(&mut self, rows: &Rows) {
        let mut sound = BTreeSet::new();
        for (id, brief) in rows.all() {
            let Some(parent) = brief.parent else { continue };
            match rows.snaps.get(&parent) {
                None if rows.unreadable.contains(&parent) => {}
                None => self.findings.push(Finding::ParentMissing { id, parent }),
                Some(above) if above.kind != SnapshotKind::Committed => {
                    self.findings.push(Finding::ParentNotCommitted { id, parent });
                }
                Some(_) => {}
            }
            // Each chain is followed only as far as it has not been followed before.
            let mut way = BTreeSet::from([id]);
            let mut next = Some(parent);
            while let Some(at) = next.filter(|at| !sound.contains(at)) {
                if !way.insert(at) {
                    if at == id {
                        self.findings.push(Finding::ParentsLoop { id });
                    }
                    break;
                }
                next = rows.snaps.get(&at).and_then(|b| b.parent);
            }
            if next.is_none_or(|at| sound.contains(&at)) {
                sound.extend(way);
            }
        }
    }

    fn back_references(&mut self, rows: &Rows) -> Result<()> {
        let mut found = BTreeSet::new();
        let decode = |key: &[u8], value: &[u8]| Ok((key.to_owned(), value.to_owned()));
        self.each(Table::Child, decode, |findings, (key, name)| {
            let ids = schema::child_of(&key);
            match ids.and_then(|(parent, id)| Some((parent, id, rows.any(id)?))) {
                _ if ids.is_some_and(|(_, id)| rows.unreadable.contains(&id)) => {}
                // One of an old name is written over when it is found to be missing.
                Some((parent, id, brief)) if brief.parent == Some(parent) => {
                    found.extend((brief.name.as_bytes() == name).then_some(id));
                }
                _ => findings.push(Finding::BackReferenceStray { key }),
            }
        })?;
        for (child, brief) in rows.all() {
            if let Some(parent) = brief.parent.filter(|_| !found.contains(&child)) {
                let name = brief.name.clone();
                self.findings.push(Finding::BackReferenceMissing { parent, child, name });
            }
        }
        Ok(())
    }

    fn pending(&mut self, rows: &Rows, is_dead: &mut dyn FnMut(&ProcessMark) -> bool) {
        for (id, (brief, owner)) in &rows.pending {
            if rows.unreadable.contains(id) {
                continue;
            }
            if rows.snaps.contains_key(id) {
                self.findings.push(Finding::PendingTwice { id: *id });
            } else if is_dead(owner) {
                self.findings.push(Finding::PendingDead { id: *id, name: brief.name.clone() });
            }
        }
    }

    fn numbers(&mut self, rows: &Rows, on_disk: Option<&BTreeSet<SnapshotId>>) {
        let in_rows = rows.all().map(|(id, _)| id).max();
        let used = in_rows.into_iter().chain(on_disk.into_iter().flatten().copied()).max();
        match self.reader.next_id() {
            // A directory of this number or a later one is what an aborted creation left: it moves out of the way.
            Ok(next) => {
                if let Some(id) = in_rows.filter(|id| *id >= next) {
                    self.findings.push(Finding::NumberAhead { id, next });
                }
            }
            Err(_) => self
                .findings
                .push(Finding::NumberAhead { id: used.unwrap_or(SnapshotId(0)), next: SnapshotId(0) }),
        }
    }

    fn blobs(&mut self, rows: &Rows) -> Result<()> {
        let mut by_snap = BTreeMap::new();
        let decode = |key: &[u8], value: &[u8]| {
            Ok((schema::id_of(key).ok_or("its key has not 8 bytes")?, Blob::decode(value)?.digest))
        };
        self.each(Table::BlobBySnap, decode, |_, (id, digest)| {
            by_snap.insert(id, digest);
        })?;
        let mut by_digest = BTreeSet::new();
        let decode = |key: &[u8], _: &[u8]| Digest::of_key(key).ok_or("its key is no digest and number");
        self.each(Table::BlobByDigest, decode, |_, (digest, id)| {
            by_digest.insert((digest, id));
        })?;
        for (id, digest) in &by_snap {
            let reference = (digest.clone(), *id);
            if !rows.is_there(*id) {
                self.findings.push(Finding::BlobStray { id: *id, digest: digest.clone() });
            } else if !by_digest.contains(&reference) {
                self.findings.push(Finding::BlobOneSided { id: *id, digest: digest.clone() });
            }
        }
        for (digest, id) in &by_digest {
            if by_snap.get(id) != Some(digest) {
                self.findings.push(Finding::BlobOneSided { id: *id, digest: digest.clone() });
            }
        }
        let in_use: BTreeSet<&Digest> = by_digest.iter().map(|(digest, _)| digest).collect();
        let decode = |key: &[u8], _: &[u8]| Digest::of_bytes(key).ok_or("its key is no digest");
        self.each(Table::BlobGc, decode, |findings, digest| {
            if in_use.contains(&digest) {
                findings.push(Finding::BlobDueInUse { digest });
            }
        })
    }

    fn mounts(&mut self, rows: &Rows) -> Result<()> {
        self.each(Table::Mount, MountRow::decode, |findings, mount| {
            if !rows.is_there(mount.id) {
                findings.push(Finding::MountStray { mount: Box::new(mount) });
            }
        })
    }
}

/// Mends what rows can mend, and returns how many findings that were. They have to be of the same transaction,
/// else a row that somebody else has put right meanwhile would be put wrong.
///
/// # Errors
/// Those of the database.
pub fn repair(writer: &mut Writer<'_>, findings: &[Finding]) -> Result<usize> {
    let mut mended = 0;
    let mut blobs = false;
    // Names and references are put back after those that lead nowhere are gone: they may have the same key.
    let (first, last): (Vec<&Finding>, Vec<&Finding>) = findings
        .iter()
        .filter(|f| f.is_repairable())
        .partition(|f| !matches!(f, Finding::NameMissing { .. } | Finding::BackReferenceMissing { .. }));
    for finding in first.into_iter().chain(last) {
        mended += 1;
        match finding {
            // What is no longer being made, after this repair, needs neither name nor reference.
            Finding::NameMissing { id, realm, name } => {
                if writer.is_known(*id)? {
                    writer.put(Table::Name, &schema::name_key(realm, name), &schema::id_key(*id))?;
                }
            }
            Finding::NameStray { key } => {
                writer.delete(Table::Name, key)?;
            }
            Finding::BackReferenceMissing { parent, child, name } => {
                if writer.is_known(*child)? {
                    writer.put(Table::Child, &schema::child_key(*parent, *child), name.as_bytes())?;
                }
            }
            Finding::BackReferenceStray { key } => {
                writer.delete(Table::Child, key)?;
            }
            Finding::PendingDead { id, .. } => {
                writer.drop_pending(*id)?;
            }
            Finding::PendingTwice { id } => {
                writer.delete(Table::Pending, &schema::id_key(*id))?;
            }
            Finding::NumberAhead { id, .. } => {
                writer.put(
                    Table::Meta,
                    meta::NEXT_ID,
                    &schema::id_key(SnapshotId(id.0.saturating_add(1))),
                )?;
            }
            Finding::BlobStray { .. } | Finding::BlobOneSided { .. } | Finding::BlobDueInUse { .. } => {
                blobs = true
            }
            Finding::MountStray { mount } => {
                writer.remove_mount(mount)?;
            }
            Finding::Unreadable { .. }
            | Finding::DirectoryMissing { .. }
            | Finding::DirectoryLeaked { .. }
            | Finding::NameTwice { .. }
            | Finding::ParentMissing { .. }
            | Finding::ParentNotCommitted { .. }
            | Finding::ParentsLoop { .. } => mended -= 1,
        }
    }
    if blobs {
        writer.reconcile_blobs()?;
        for finding in findings {
            if let Finding::BlobDueInUse { digest } = finding
                && writer.is_blob_referenced(digest)?
            {
                writer.blob_deleted(digest)?;
            }
        }
    }
    Ok(mended)
}

#[cfg(test)]
mod tests;

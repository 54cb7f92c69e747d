//! Which tables there are, how their keys look, and how an older store becomes a present one.

use super::codec::Input;
use super::reader::Reader;
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Realm, SnapshotId};
use lmdb::Database;
use sha2::{Digest as _, Sha256};

/// The version of tables and rows that this program writes.
pub(super) const SCHEMA: u32 = 1;

/// The tables, in the order of their handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Meta,
    Snap,
    Name,
    Child,
    Pending,
    BlobBySnap,
    BlobByDigest,
    BlobGc,
    Mount,
}

impl Table {
    /// How many there are.
    pub(super) const COUNT: usize = 9;

    /// Their names in the environment, in order.
    pub(super) const NAMES: [&'static str; Self::COUNT] =
        ["meta", "snap", "name", "child", "pending", "blob_by_snap", "blob_by_digest", "blob_gc", "mount"];

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// The handles of all tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables(pub(super) [Database; Table::COUNT]);

impl Tables {
    /// The handle of one.
    pub(super) fn of(&self, table: Table) -> Database {
        self.0[table as usize]
    }
}

/// Keys of `meta`.
pub(super) mod meta {
    pub(in crate::store) const SCHEMA: &[u8] = b"schema";
    pub(in crate::store) const NEXT_ID: &[u8] = b"next_id";
    pub(in crate::store) const STORE_ID: &[u8] = b"store_id";
    pub(in crate::store) const BACKEND: &[u8] = b"backend";
    pub(in crate::store) const CLEAN_SHUTDOWN: &[u8] = b"clean_shutdown";
}

/// How the store was left by who served it last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// In order.
    Clean,
    /// It is being served, or whoever did so was killed.
    Running,
}

/// Bytes of a name that stand in its key as they are. With realm, separators and a hash a key stays below the
/// 511 bytes that LMDB takes; changing it makes long names unfindable.
const NAME_PREFIX: usize = 400;

/// The key of a name in `name`. Names that share it are told apart by the full name in the record.
pub(super) fn name_key(realm: &Realm, name: &str) -> Vec<u8> {
    let (realm, name) = (realm.as_str().as_bytes(), name.as_bytes());
    let mut key = Vec::with_capacity(realm.len() + name.len().min(NAME_PREFIX + 33) + 1);
    key.extend_from_slice(realm);
    key.push(0);
    if name.len() <= NAME_PREFIX {
        key.extend_from_slice(name);
    } else {
        key.extend_from_slice(&name[..NAME_PREFIX]);
        key.push(0);
        key.extend_from_slice(&Sha256::digest(name));
    }
    key
}

/// The key of a snapshot.
pub(super) fn id_key(id: SnapshotId) -> [u8; 8] {
    id.0.to_be_bytes()
}

/// The snapshot of a key.
pub(super) fn id_of(key: &[u8]) -> Option<SnapshotId> {
    Some(SnapshotId(u64::from_be_bytes(key.try_into().ok()?)))
}

/// The begin of the keys of all children of a snapshot. The zero byte ends the parent's part.
pub(super) fn child_prefix(parent: SnapshotId) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&id_key(parent));
    key
}

/// The key of a back reference.
pub(super) fn child_key(parent: SnapshotId, child: SnapshotId) -> [u8; 17] {
    let mut key = [0; 17];
    key[..9].copy_from_slice(&child_prefix(parent));
    key[9..].copy_from_slice(&id_key(child));
    key
}

/// Parent and child of the key of a back reference.
pub(super) fn child_of(key: &[u8]) -> Option<(SnapshotId, SnapshotId)> {
    let mut input = Input::new(key);
    let parent = SnapshotId(input.u64().ok()?);
    let zero = input.u8().ok()?;
    let child = SnapshotId(input.u64().ok()?);
    (zero == 0 && input.end().is_ok()).then_some((parent, child))
}

/// How rows of one schema become those of the next.
pub(super) struct Step {
    /// The schema that it finds.
    pub(super) from: u32,
    /// What it does; tables that it needs have been made.
    pub(super) run: fn(&mut Writer<'_>) -> Result<()>,
}

/// All steps. The first schema needs none.
pub(super) const STEPS: &[Step] = &[];

/// The schema of a store; `None` if it never got one.
pub(super) fn version(reader: &Reader<'_>) -> Result<Option<u32>> {
    let Some(bytes) = reader.get(Table::Meta, meta::SCHEMA)? else { return Ok(None) };
    let version: [u8; 4] = bytes
        .try_into()
        .map_err(|_| Error::new(ErrorKind::Corrupt, "open store", "schema", "it is no number"))?;
    Ok(Some(u32::from_be_bytes(version)))
}

/// Brings the rows from schema `found` to schema `to` within one transaction.
///
/// # Errors
/// `FailedPrecondition` if the store is newer, or nobody knows the way.
pub(super) fn migrate(writer: &mut Writer<'_>, found: u32, to: u32, steps: &[Step]) -> Result<()> {
    let refuse = |cause: String| {
        Err(Error::new(ErrorKind::FailedPrecondition, "open store", format!("schema {found}"), cause))
    };
    if found > to {
        return refuse(format!(
            "a newer plywood made this store, and this one understands schema {to}: use the newer one"
        ));
    }
    for from in found..to {
        let Some(step) = steps.iter().find(|s| s.from == from) else {
            return refuse(format!("this plywood cannot read stores as old as that, only schema {to}"));
        };
        (step.run)(writer)?;
        writer.put(Table::Meta, meta::SCHEMA, &(from + 1).to_be_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_name_fits_however_long_the_name_is() {
        let longest = Realm::named(&"r".repeat(32)).expect("a realm");
        for length in [1, 399, 400, 401, 510, 511, 512, 32_768] {
            let name = "n".repeat(length);
            let key = name_key(&longest, &name);
            assert!(key.len() <= 511, "{length}");
            assert_eq!(key.len(), 33 + if length <= 400 { length } else { 433 });
            // The same beginning, another end.
            let other = format!("{}m", "n".repeat(length - 1));
            assert_ne!(key, name_key(&longest, &other), "{length}");
        }
    }

    #[test]
    fn no_name_has_the_key_of_another_realm_or_of_a_longer_name() {
        let realm = |n: &str| Realm::named(n).expect("a realm");
        assert_ne!(name_key(&realm("a"), "b"), name_key(&realm("ab"), ""));
        assert_ne!(name_key(&realm("a"), "x"), name_key(&realm("b"), "x"));
        // Names hold no NUL, so a short one never looks like a hashed one.
        let long = "n".repeat(401);
        assert_eq!(name_key(&realm("a"), &long)[2 + 400], 0);
    }

    // S31
    #[test]
    fn a_back_reference_is_read_back_from_its_key() {
        let (parent, child) = (SnapshotId(0x0100), SnapshotId(u64::MAX));
        assert_eq!(child_of(&child_key(parent, child)), Some((parent, child)));
        assert!(child_key(parent, child).starts_with(&child_prefix(parent)));
        assert_eq!(child_of(&[0; 16]), None);
        assert_eq!(child_of(&[0; 18]), None);
        let mut other = child_key(parent, child);
        other[8] = 1;
        assert_eq!(child_of(&other), None);
    }
}

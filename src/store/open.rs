//! How a store is opened: which checks come before the first page is read.
//!
//! A new database is made whole in `new/` beside the place where it will be and then renamed there, so a data
//! file that is there but empty, cut, or without schema was damaged. What a crash leaves in `new/` whoever opens
//! the store next removes. LMDB itself would take an empty file for a new database, and a cut one would kill the
//! process when it is read.

use super::environment::{Durability, Opened, StoreSettings, failed};
use super::pages;
use super::reader::{Reader, Txn};
use super::registry::Identity;
use super::schema::{self, SCHEMA, STEPS, Step, Table, Tables, meta};
use super::writer::Writer;
use crate::error::{Error, ErrorKind, Result};
use crate::sys;
use crate::types::SnapshotId;
use lmdb::{Environment, EnvironmentFlags};
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const OPERATION: &str = "open store";

/// The directory of a database.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
}

impl Place {
    /// Makes the directory if it is missing: nobody else may look into it.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(OPERATION, path.display().to_string(), e);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let metadata = fs::metadata(&path).map_err(failed)?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()), path })
    }

    fn data(&self) -> PathBuf {
        self.path.join("data.mdb")
    }

    /// Where a new one is made.
    fn unfinished(&self) -> PathBuf {
        self.path.join("new")
    }

    fn io(&self, error: std::io::Error) -> Error {
        Error::io(OPERATION, self.path.display().to_string(), error)
    }

    fn corrupt(&self, cause: &str) -> Error {
        let cause =
            format!("{cause}: restore it from a copy, or move it away to begin anew without its snapshots");
        Error::new(ErrorKind::Corrupt, OPERATION, self.data().display().to_string(), cause)
    }
}

/// The name of a file system on which LMDB is not safe, because another machine may write behind its back or
/// its shared memory is not; `None` for a local one. `magic` is the number in `linux/magic.h`.
///
/// A FUSE file system may be local, but none promises coherent shared memory.
pub fn remote_file_system(magic: u64) -> Option<&'static str> {
    // Some of them are written with their upper half set where numbers of file systems are signed.
    match magic & 0xffff_ffff {
        0x6969 => Some("nfs"),
        0x517b => Some("smb"),
        0xff53_4d42 => Some("cifs"),
        0xfe53_4d42 => Some("smb2"),
        0x0102_1997 => Some("9p"),
        0x6573_5546 => Some("fuse"),
        0x00c3_6400 => Some("ceph"),
        0x5346_414f | 0x6b41_4653 => Some("afs"),
        0x7375_7245 => Some("coda"),
        0x0bd0_0bd0 => Some("lustre"),
        0x564c => Some("ncp"),
        0x786f_4256 => Some("vboxsf"),
        _ => None,
    }
}

/// Opens the database in `place`, or makes it; the answer has its name too.
pub(super) fn open(place: &Place, settings: &StoreSettings) -> Result<(Opened, String)> {
    open_at_schema(place, settings, SCHEMA, STEPS)
}

fn open_at_schema(
    place: &Place,
    settings: &StoreSettings,
    schema: u32,
    steps: &[Step],
) -> Result<(Opened, String)> {
    let dir = File::open(&place.path).map_err(|e| place.io(e))?;
    check_file_system(place, &dir, settings)?;
    match fs::metadata(place.data()) {
        Ok(data) if data.len() == 0 => return Err(place.corrupt("the data file is empty")),
        // Whoever made it was killed before it was done with that.
        Ok(_) if place.unfinished().exists() => create(place, &dir, settings)?,
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => create(place, &dir, settings)?,
        Err(e) => return Err(place.io(e)),
    }
    let env = environment(&place.path, settings).map_err(|e| match e {
        lmdb::Error::Invalid => place.corrupt("it is cut, or no database"),
        e => failed(OPERATION, place.path.display().to_string(), e),
    })?;
    let failed = |e| failed(OPERATION, place.path.display().to_string(), e);
    check_size(place, &env)?;
    let swept = sys::lmdb::sweep_readers(&env).map_err(failed)?;
    if swept > 0 {
        tracing::info!(dir = %place.path.display(), slots = swept, "readers were killed");
    }
    let tables = tables(&env).map_err(failed)?;
    let opened = Opened { env, tables };
    reach_schema(place, &opened, settings, schema, steps)?;
    let store_id = store_id(place, &opened)?;
    Ok((opened, store_id))
}

fn check_file_system(place: &Place, dir: &File, settings: &StoreSettings) -> Result<()> {
    let subject = || place.path.display().to_string();
    let magic =
        plywood_fuse::sys::stat::fs_magic(dir.as_fd()).map_err(|e| Error::fuse(OPERATION, subject(), e))?;
    match remote_file_system(magic) {
        Some(name) if !settings.allow_remote_fs => {
            let cause = format!(
                "it is on {name}, where the database is not safe: choose a directory on a local file system, or \
                 allow it explicitly if no other machine ever opens this store"
            );
            Err(Error::new(ErrorKind::Unsupported, OPERATION, subject(), cause))
        }
        _ => Ok(()),
    }
}

/// Opens the environment as all of them are opened.
fn environment(dir: &Path, settings: &StoreSettings) -> std::result::Result<Environment, lmdb::Error> {
    // Slots belong to transactions and not to threads; a map that can be written would lie open to stray writes.
    let mut flags = EnvironmentFlags::NO_TLS;
    if settings.durability == Durability::Relaxed {
        flags |= EnvironmentFlags::NO_META_SYNC;
    }
    let env = Environment::new()
        .set_flags(flags)
        .set_max_dbs(Table::COUNT as u32 + 7)
        .set_max_readers(settings.max_readers.max(1))
        .set_map_size(settings.map_bytes)
        .open_with_permissions(dir, 0o600)?;
    // LMDB does this for its lock file only. At once: a program that another thread starts just now still gets it.
    rustix::io::fcntl_setfd(sys::lmdb::data_file(&env)?, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| lmdb::Error::Other(e.raw_os_error()))?;
    Ok(env)
}

/// Makes a new database, unless another process has done so; what a killed one left goes.
fn create(place: &Place, dir: &File, settings: &StoreSettings) -> Result<()> {
    // Held until the descriptor is closed at the end of `open`: one creator at a time.
    rustix::fs::flock(dir, rustix::fs::FlockOperation::LockExclusive).map_err(|e| place.io(e.into()))?;
    let made = create_locked(place, settings);
    let unlocked = rustix::fs::flock(dir, rustix::fs::FlockOperation::Unlock);
    made?;
    unlocked.map_err(|e| place.io(e.into()))?;
    dir.sync_all().map_err(|e| place.io(e))
}

fn create_locked(place: &Place, settings: &StoreSettings) -> Result<()> {
    let new = place.unfinished();
    match fs::remove_dir_all(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(place.io(e)),
        _ => {}
    }
    if place.data().exists() {
        return Ok(());
    }
    DirBuilder::new().mode(0o700).create(&new).map_err(|e| place.io(e))?;
    let mut id = [0; 16];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut id)).map_err(|e| place.io(e))?;
    let failed = |e| failed(OPERATION, new.display().to_string(), e);
    {
        // Whatever the settings: this one is on the disk when it gets its name.
        let durable = StoreSettings { durability: Durability::Full, ..settings.clone() };
        let env = environment(&new, &durable).map_err(failed)?;
        let tables = Tables(sys::lmdb::create_tables(&env, Table::NAMES).map_err(failed)?);
        let txn = env.begin_rw_txn().map_err(failed)?;
        let mut writer = Writer::new(Reader::new(Txn::Write(txn), &tables, OPERATION));
        writer.put(Table::Meta, meta::SCHEMA, &SCHEMA.to_be_bytes())?;
        writer.put(Table::Meta, meta::NEXT_ID, &schema::id_key(SnapshotId(1)))?;
        writer.put(Table::Meta, meta::STORE_ID, &id)?;
        writer.finish().map_err(failed)?;
    }
    fs::rename(new.join("data.mdb"), place.data()).map_err(|e| place.io(e))?;
    fs::remove_dir_all(&new).map_err(|e| place.io(e))
}

/// Refuses a file that is shorter than what it holds: reading behind its end would kill the process.
fn check_size(place: &Place, env: &Environment) -> Result<()> {
    let failed = |e| failed(OPERATION, place.path.display().to_string(), e);
    // The transaction keeps pages from being used again while they are looked at.
    let _pinned = env.begin_ro_txn().map_err(failed)?;
    let (info, stat) = (env.info().map_err(failed)?, env.stat().map_err(failed)?);
    let data = sys::lmdb::data_file(env).map_err(failed)?;
    let length = rustix::fs::fstat(data).map_err(|e| place.io(e.into()))?.st_size.cast_unsigned();
    let pages = info.last_pgno() as u64 + 1;
    if length >= pages * u64::from(stat.page_size()) {
        return Ok(());
    }
    // Pages that a transaction took and gave back were perhaps never written, at the end of the file too.
    match pages::first_missing(data, length) {
        Ok(None) => Ok(()),
        Ok(Some(page)) => Err(place.corrupt(&format!("it is cut: page {page} of {pages} is missing"))),
        Err(e) => Err(place.corrupt(&format!("it is cut, and the rest cannot be read: {e}"))),
    }
}

fn tables(env: &Environment) -> std::result::Result<Tables, lmdb::Error> {
    let found = sys::lmdb::open_tables(env, Table::NAMES)?;
    if found.iter().all(Option::is_some) {
        let found: Vec<_> = found.into_iter().flatten().collect();
        return found.try_into().map(Tables).map_err(|_| lmdb::Error::BadDbi);
    }
    sys::lmdb::create_tables(env, Table::NAMES).map(Tables)
}

/// Checks the schema and, if it is an older one, rewrites the rows in one transaction.
fn reach_schema(
    place: &Place,
    opened: &Opened,
    settings: &StoreSettings,
    to: u32,
    steps: &[Step],
) -> Result<()> {
    let failed = |e| failed(OPERATION, place.path.display().to_string(), e);
    let txn = opened.env.begin_ro_txn().map_err(failed)?;
    let version = |reader: &Reader<'_>| {
        schema::version(reader)?
            .ok_or_else(|| place.corrupt("it has no schema: it is not a store of plywood"))
    };
    if version(&Reader::new(Txn::Read(txn), &opened.tables, OPERATION))? == to {
        return Ok(());
    }
    let mut map_bytes = settings.map_bytes;
    loop {
        let txn = opened.env.begin_rw_txn().map_err(failed)?;
        let mut writer = Writer::new(Reader::new(Txn::Write(txn), &opened.tables, OPERATION));
        // Again, since another process may have done it meanwhile.
        let found = version(&writer)?;
        let migrated = schema::migrate(&mut writer, found, to, steps);
        if !writer.is_full() {
            migrated?;
            tracing::info!(dir = %place.path.display(), from = found, to, "the store has a new schema");
            return writer.finish().map_err(failed);
        }
        drop(writer);
        map_bytes = map_bytes.saturating_mul(2);
        if map_bytes > settings.max_map_bytes {
            return Err(failed(lmdb::Error::MapFull));
        }
        // Nobody else in this process has a transaction yet.
        opened.env.set_map_size(map_bytes).map_err(failed)?;
    }
}

fn store_id(place: &Place, opened: &Opened) -> Result<String> {
    let failed = |e| failed(OPERATION, place.path.display().to_string(), e);
    let txn = opened.env.begin_ro_txn().map_err(failed)?;
    let reader = Reader::new(Txn::Read(txn), &opened.tables, OPERATION);
    match reader.get(Table::Meta, meta::STORE_ID)? {
        Some(id) if id.len() == 16 => Ok(id.iter().map(|b| format!("{b:02x}")).collect()),
        _ => Err(place.corrupt("it has no id: it is not a store of plywood")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Record, Store, codec::Bytes};
    use crate::types::{Labels, Realm, SnapshotKind, Timestamp, Usage};
    use plywood_fuse::testing::TempDir;
    use std::ops::ControlFlow;

    fn place(dir: &TempDir) -> Place {
        Place::create(&dir.path().join("db")).expect("it can be made")
    }

    fn small() -> StoreSettings {
        StoreSettings { map_bytes: 256 << 10, ..StoreSettings::default() }
    }

    fn record(id: u64) -> Record {
        Record {
            id: SnapshotId(id),
            kind: SnapshotKind::Active,
            parent: None,
            realm: Realm::cli(),
            name: format!("name {id}"),
            created: Timestamp { secs: 1, nanos: 2 },
            updated: Timestamp { secs: 3, nanos: 4 },
            usage: Usage::default(),
            labels: Labels::from([("l".to_owned(), "v".repeat(500))]),
            has_directory: true,
            flags: 0,
        }
    }

    /// A record of a schema that never was: as that of today, without flags.
    fn without_flags(record: &Record) -> Vec<u8> {
        let today = record.encode();
        let mut row = Bytes::version(0);
        row.raw(&today[1..3]).raw(&today[7..]).finish()
    }

    /// From that schema to today's.
    const ADD_FLAGS: Step = Step {
        from: 0,
        run: |rows| {
            let mut old = Vec::new();
            rows.scan(Table::Snap, &[], &mut |key, value| {
                old.push((key.to_owned(), value.to_owned()));
                Ok(ControlFlow::Continue(()))
            })?;
            for (key, value) in old {
                let mut row = Bytes::version(1);
                let row = row.raw(&value[1..3]).u32(0).raw(&value[3..]).finish();
                rows.put(Table::Snap, &key, &row)?;
            }
            Ok(())
        },
    };

    fn change(opened: &Opened, f: impl FnOnce(&mut Writer<'_>) -> Result<()>) {
        let txn = opened.env.begin_rw_txn().expect("it begins");
        let mut writer = Writer::new(Reader::new(Txn::Write(txn), &opened.tables, "test"));
        f(&mut writer).expect("it can be changed");
        writer.finish().expect("it is committed");
    }

    fn all_rows(opened: &Opened) -> Vec<Vec<u8>> {
        let txn = opened.env.begin_ro_txn().expect("it begins");
        let reader = Reader::new(Txn::Read(txn), &opened.tables, "test");
        let mut rows = Vec::new();
        let keep = &mut |_: &[u8], value: &[u8]| {
            rows.push(value.to_owned());
            Ok(ControlFlow::Continue(()))
        };
        reader.scan(Table::Snap, &[], keep).expect("rows");
        rows
    }

    /// A store of schema 0 with so many snapshots.
    fn older(dir: &TempDir, count: u64) -> Place {
        let place = place(dir);
        let (opened, _) = open(&place, &small()).expect("it can be made");
        change(&opened, |rows| {
            (1..=count).try_for_each(|id| {
                rows.put(Table::Snap, &schema::id_key(SnapshotId(id)), &without_flags(&record(id)))
            })
        });
        change(&opened, |rows| rows.put(Table::Meta, meta::SCHEMA, &0_u32.to_be_bytes()));
        place
    }

    #[test]
    fn an_older_store_becomes_a_present_one() {
        let dir = TempDir::new();
        let place = older(&dir, 3);
        {
            let (opened, _) = open_at_schema(&place, &small(), 1, &[ADD_FLAGS]).expect("it can be read");
            let expected: Vec<_> = (1..=3).map(|id| record(id).encode()).collect();
            assert_eq!(all_rows(&opened), expected);
        }
        // For good: now it is read without any step.
        let store = Store::open(&place.path, &small()).expect("it is of today");
        let read = store.read("stat", |rows| rows.record(SnapshotId(3))).expect("rows");
        assert_eq!(read, Some(record(3)));
    }

    #[test]
    fn a_migration_that_needs_more_room_than_the_map_has_gets_it() {
        let dir = TempDir::new();
        // More than half of the map: all rows once more do not fit beside the old ones.
        let place = older(&dir, 200);
        let (opened, _) = open_at_schema(&place, &small(), 1, &[ADD_FLAGS]).expect("the map grows");
        assert!(opened.env.info().expect("it is open").map_size() > small().map_bytes);
        assert_eq!(all_rows(&opened).len(), 200);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_store_as_it_was() {
        const BREAKS: Step = Step {
            from: 1,
            run: |rows| {
                rows.put(Table::Snap, &schema::id_key(SnapshotId(9)), b"x")?;
                Err(Error::new(ErrorKind::Corrupt, "test", "", ""))
            },
        };
        let dir = TempDir::new();
        let place = older(&dir, 3);
        let failed = open_at_schema(&place, &small(), 2, &[ADD_FLAGS, BREAKS]).err();
        assert_eq!(failed.map(|e| e.kind()), Some(ErrorKind::Corrupt));
        let (opened, _) = open_at_schema(&place, &small(), 0, &[]).expect("it is still of schema 0");
        let expected: Vec<_> = (1..=3).map(|id| without_flags(&record(id))).collect();
        assert_eq!(all_rows(&opened), expected);
    }

    #[test]
    fn a_store_that_is_newer_or_too_old_is_refused_and_left_alone() {
        let dir = TempDir::new();
        let place = older(&dir, 1);
        for (schema, words) in [(0, "this plywood cannot read stores as old"), (7, "a newer plywood made")] {
            {
                let (opened, _) = open_at_schema(&place, &small(), 0, &[]).expect("it is of schema 0");
                change(&opened, |rows| rows.put(Table::Meta, meta::SCHEMA, &u32::to_be_bytes(schema)));
            }
            let error = Store::open(&place.path, &small()).expect_err("it is of another schema");
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
            assert!(error.to_string().contains(words), "{error}");
            let (opened, _) = open_at_schema(&place, &small(), schema, &[]).expect("nothing has changed");
            change(&opened, |rows| rows.put(Table::Meta, meta::SCHEMA, &0_u32.to_be_bytes()));
        }
    }

    #[test]
    fn a_database_of_somebody_else_is_no_store() {
        let dir = TempDir::new();
        let place = place(&dir);
        drop(environment(&place.path, &small()).expect("it can be made"));
        let error = Store::open(&place.path, &small()).expect_err("it has no schema");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("it is not a store of plywood"), "{error}");
    }

    #[test]
    fn what_a_killed_creation_left_is_made_anew() {
        let dir = TempDir::new();
        let place = place(&dir);
        fs::create_dir(place.path.join("new")).expect("it can be made");
        fs::write(place.path.join("new/data.mdb"), b"half").expect("it can be written");
        drop(open(&place, &small()).expect("it can be made"));
        assert!(!place.unfinished().exists());
        // Killed when the data file had its name already.
        fs::create_dir(place.unfinished()).expect("it can be made");
        let (_, id) = open(&place, &small()).expect("it is there");
        assert!(!place.unfinished().exists());
        assert_eq!(Store::open(&place.path, &small()).expect("it is the same").store_id(), id);
    }
}

//! Each kind of damage, done to a sound store: it is found, alone, and mended if it can be.

use super::*;
use crate::store::{Durability, MountHow, NewMount, NewSnapshot, Store, StoreSettings, writer::Writer};
use crate::types::{Labels, Timestamp};
use plywood_fuse::testing::TempDir;
use std::path::Path;
use std::sync::Arc;

/// base(1) is committed and has below it: child(2), committed, with active(3); view(4); pending(5).
/// The same blob is that of base and child; active is mounted.
struct World {
    store: Arc<Store>,
    _dir: TempDir,
}

const BASE: SnapshotId = SnapshotId(1);
const CHILD: SnapshotId = SnapshotId(2);
const ACTIVE: SnapshotId = SnapshotId(3);
const VIEW: SnapshotId = SnapshotId(4);
const PENDING: SnapshotId = SnapshotId(5);

fn blob() -> Blob {
    Blob { digest: digest("x:00"), media_type: String::new(), size_bytes: 1 }
}

fn digest(text: &str) -> Digest {
    Digest::parse(text).expect("a digest")
}

fn owner() -> ProcessMark {
    ProcessMark { pid: 1, start_time: 2, boot_id: [3; 16], pid_namespace: 4 }
}

impl World {
    fn new() -> World {
        let dir = TempDir::new();
        let settings = StoreSettings { durability: Durability::Relaxed, ..StoreSettings::default() };
        let store = Store::open(&dir.path().join("db"), &settings).expect("it can be made");
        let realm = Realm::cli();
        let labels = Labels::new();
        let now = Timestamp::default();
        let new = |name, kind, parent| NewSnapshot {
            realm: &realm,
            name,
            kind,
            parent,
            labels: &labels,
            has_directory: kind == SnapshotKind::Active,
            flags: 0,
        };
        let commit = |key, name| crate::store::Commit {
            realm: &realm,
            key,
            name,
            labels: &labels,
            usage: Default::default(),
            flags: 0,
            parent: None,
            rebase: crate::store::Rebase::Refused,
            expected: None,
            now,
        };
        let fill = |rows: &mut Writer<'_>| {
            for (key, name, parent) in [("key", "base", None), ("key", "child", Some("base"))] {
                let id = rows.new_id()?;
                rows.create(id, &new(key, SnapshotKind::Active, parent), now)?;
                rows.commit(&commit(key, name))?;
                rows.set_blob(id, &blob())?;
            }
            let id = rows.new_id()?;
            rows.create(id, &new("active", SnapshotKind::Active, Some("child")), now)?;
            let id = rows.new_id()?;
            rows.create(id, &new("view", SnapshotKind::View, Some("base")), now)?;
            rows.add_pending(&new("pending", SnapshotKind::Active, Some("base")), &owner())?;
            rows.add_mount(&NewMount {
                id: ACTIVE,
                target: Path::new("/mnt"),
                server: None,
                mount_id: 1,
                namespace: 2,
                boot_id: [3; 16],
                uid: 4,
                how: MountHow::Bind,
            })
        };
        store.write("fill", fill).expect("it can be filled");
        World { store, _dir: dir }
    }

    fn check(&self) -> Vec<String> {
        self.check_with(None, &mut |_| false)
    }

    fn check_with(
        &self,
        on_disk: Option<&BTreeSet<SnapshotId>>,
        is_dead: &mut dyn FnMut(&ProcessMark) -> bool,
    ) -> Vec<String> {
        let found = self.store.read("check", |rows| check(rows, on_disk, is_dead)).expect("it ends");
        found.iter().map(ToString::to_string).collect()
    }

    fn repair(&self, is_dead: &mut (dyn FnMut(&ProcessMark) -> bool + Send)) -> usize {
        let mend = |rows: &mut Writer<'_>| {
            let found = check(rows, None, is_dead)?;
            repair(rows, &found)
        };
        self.store.write("repair", mend).expect("it ends")
    }
}

/// What is found after `damage`, and what is left of it after a repair.
fn damaged(damage: impl Fn(&mut Writer<'_>) -> Result<()> + Sync) -> (Vec<String>, Vec<String>) {
    let world = World::new();
    assert_eq!(world.check(), Vec::<String>::new());
    world.store.write("damage", |rows| damage(rows)).expect("it can be done");
    let found = world.check();
    world.repair(&mut |_| false);
    (found, world.check())
}

/// It is found, and mended.
#[track_caller]
fn mended(damage: impl Fn(&mut Writer<'_>) -> Result<()> + Sync, expected: &[&str]) {
    let (found, left) = damaged(damage);
    assert_eq!(found, expected);
    assert_eq!(left, Vec::<String>::new());
}

/// It is found, and stays.
#[track_caller]
fn kept(damage: impl Fn(&mut Writer<'_>) -> Result<()> + Sync, expected: &[&str]) {
    let (found, left) = damaged(damage);
    assert_eq!(found, expected);
    assert_eq!(left, expected);
}

fn name(name: &str) -> Vec<u8> {
    schema::name_key(&Realm::cli(), name)
}

fn change(rows: &mut Writer<'_>, id: SnapshotId, f: impl Fn(&mut Record)) -> Result<()> {
    let mut record = rows.record_that_exists(id)?;
    f(&mut record);
    rows.put_record(&record)
}

#[test]
fn a_repair_of_a_sound_store_changes_nothing() {
    let world = World::new();
    assert_eq!(world.repair(&mut |_| false), 0);
    assert_eq!(world.check(), Vec::<String>::new());
}

// I1, I3
#[test]
fn directories_without_rows_and_rows_without_directories_are_found() {
    let world = World::new();
    let all = BTreeSet::from([BASE, CHILD, ACTIVE, PENDING]);
    assert_eq!(world.check_with(Some(&all), &mut |_| false), Vec::<String>::new());
    // The view needs none; what is being made may have one or not.
    let some = BTreeSet::from([BASE, ACTIVE, VIEW]);
    let missing = ["snapshot 2 (\"child\"): its directory is missing"];
    assert_eq!(world.check_with(Some(&some), &mut |_| false), missing);
    let more = BTreeSet::from([BASE, CHILD, ACTIVE, SnapshotId(9)]);
    assert_eq!(world.check_with(Some(&more), &mut |_| false), ["directory 9: no snapshot owns it"]);
}

// I4
#[test]
fn names_that_lead_nowhere_or_are_missing_are_mended() {
    let missing = "snapshot 3 (\"active\"): it is not found by its name";
    let stray = |n: &str| format!("name \"cli\\0{n}\": it leads to no snapshot");
    mended(|rows| rows.delete(Table::Name, &name("active")).map(drop), &[missing]);
    mended(|rows| rows.put(Table::Name, &name("x"), &schema::id_key(SnapshotId(99))), &[&stray("x")]);
    mended(|rows| rows.put(Table::Name, &name("x"), &schema::id_key(ACTIVE)), &[&stray("x")]);
    // One key is both: it leads to the wrong one, and the right one misses it.
    mended(
        |rows| rows.put(Table::Name, &name("active"), &schema::id_key(VIEW)),
        &[&stray("active"), missing],
    );
    let missing = "snapshot 5 (\"pending\"): it is not found by its name";
    mended(|rows| rows.delete(Table::Name, &name("pending")).map(drop), &[missing]);
}

#[test]
fn of_two_snapshots_of_one_name_none_is_lost() {
    let (found, left) = damaged(|rows| change(rows, VIEW, |r| r.name = "active".to_owned()));
    let twice = "snapshot 4 (\"active\"): another snapshot has the same name";
    assert_eq!(
        found,
        [
            "name \"cli\\0view\": it leads to no snapshot",
            twice,
            "snapshot 4 (\"active\"): it does not stand below its parent 1"
        ]
    );
    assert_eq!(left, [twice]);
}

#[test]
fn back_references_that_are_wrong_are_mended() {
    let missing = "snapshot 3 (\"active\"): it does not stand below its parent 2";
    let key = schema::child_key(CHILD, ACTIVE);
    mended(|rows| rows.delete(Table::Child, &key).map(drop), &[missing]);
    mended(|rows| rows.put(Table::Child, &key, b"an old name"), &[missing]);
    let stray = "snapshot 2: 4 stands below it and is not its child";
    mended(|rows| rows.put(Table::Child, &schema::child_key(CHILD, VIEW), b"view"), &[stray]);
    let stray = "snapshot 2: 99 stands below it and is not its child";
    mended(|rows| rows.put(Table::Child, &schema::child_key(CHILD, SnapshotId(99)), b"x"), &[stray]);
    mended(|rows| rows.put(Table::Child, b"odd", b"x"), &["back reference 6f6464: it has no proper key"]);
}

// I6
#[test]
fn a_parent_that_is_missing_or_wrong_is_told_and_kept() {
    let (found, left) = damaged(|rows| change(rows, ACTIVE, |r| r.parent = Some(SnapshotId(99))));
    let missing = "snapshot 3: its parent 99 does not exist";
    assert_eq!(
        found,
        [
            missing,
            "snapshot 2: 3 stands below it and is not its child",
            "snapshot 3 (\"active\"): it does not stand below its parent 99"
        ]
    );
    assert_eq!(left, [missing]);
    kept(
        |rows| change(rows, CHILD, |r| r.kind = SnapshotKind::View),
        &["snapshot 3: its parent 2 is not committed"],
    );
    let (found, left) = damaged(|rows| {
        change(rows, BASE, |r| r.parent = Some(CHILD))?;
        rows.put(Table::Child, &schema::child_key(CHILD, BASE), b"base")
    });
    let expected =
        ["snapshot 1: its parents lead back to itself", "snapshot 2: its parents lead back to itself"];
    assert_eq!(found, expected);
    assert_eq!(left, expected);
}

#[test]
fn what_a_dead_process_began_is_dropped() {
    let world = World::new();
    let mut dead = |process: &ProcessMark| *process == owner();
    let found = ["creation 5 (\"pending\"): the process that began it has ended"];
    assert_eq!(world.check_with(None, &mut dead), found);
    assert_eq!(world.repair(&mut dead), 1);
    assert_eq!(world.check_with(None, &mut dead), Vec::<String>::new());
    // Its name and reference, were they missing too, are not put back.
    let world = World::new();
    let damage = |rows: &mut Writer<'_>| {
        rows.delete(Table::Name, &name("pending"))?;
        rows.delete(Table::Child, &schema::child_key(BASE, PENDING))
    };
    world.store.write("damage", damage).expect("it can be done");
    assert_eq!(world.repair(&mut dead), 3);
    assert_eq!(world.check_with(None, &mut dead), Vec::<String>::new());
    mended(
        |rows| {
            let pending = rows.pending_of(PENDING)?.expect("it is there");
            rows.put(Table::Pending, &schema::id_key(ACTIVE), &Pending { id: ACTIVE, ..pending }.encode())
        },
        &["creation 3: the snapshot exists already"],
    );
}

// I5
#[test]
fn a_number_that_would_be_given_out_twice_is_skipped() {
    let found = "number 5 is in use, but the next to be given out is 2";
    mended(|rows| rows.put(Table::Meta, meta::NEXT_ID, &schema::id_key(SnapshotId(2))), &[found]);
    let found = "number 5 is in use, but the next to be given out is 0";
    mended(|rows| rows.put(Table::Meta, meta::NEXT_ID, b"odd"), &[found]);
}

// S87: also what makes the two tables disagree.
#[test]
fn blobs_of_which_only_one_table_knows_are_mended() {
    let one_sided = |id: u64| format!("blob x:00 of snapshot {id}: only one table has it");
    let by_digest = |id| [b"x:00\0".as_slice(), &schema::id_key(id)].concat();
    mended(|rows| rows.delete(Table::BlobByDigest, &by_digest(CHILD)).map(drop), &[&one_sided(2)]);
    mended(|rows| rows.delete(Table::BlobBySnap, &schema::id_key(CHILD)).map(drop), &[&one_sided(2)]);
    mended(|rows| rows.put(Table::BlobByDigest, &by_digest(SnapshotId(99)), &[]), &[&one_sided(99)]);
    mended(
        |rows| {
            rows.put(Table::BlobBySnap, &schema::id_key(SnapshotId(99)), &blob().encode())?;
            rows.put(Table::BlobByDigest, &by_digest(SnapshotId(99)), &[])
        },
        &["blob x:00: snapshot 99 does not exist"],
    );
    mended(|rows| rows.put(Table::BlobGc, b"x:00", &[]), &["blob x:00: it is due for deletion, but in use"]);
}

#[test]
fn reconciling_tells_what_it_did_and_which_content_is_due() {
    let world = World::new();
    let other = Blob { digest: digest("y:11"), ..blob() };
    let by_digest = |blob: &Blob, id| {
        [blob.digest.as_str().as_bytes(), &[0], schema::id_key(SnapshotId(id)).as_slice()].concat()
    };
    let damage = |rows: &mut Writer<'_>| {
        // Of a snapshot that is gone, and the last of its blob.
        rows.put(Table::BlobBySnap, &schema::id_key(SnapshotId(99)), &other.encode())?;
        rows.put(Table::BlobByDigest, &by_digest(&other, 99), &[])?;
        // Lacking in one table, and of a snapshot with another blob.
        rows.delete(Table::BlobByDigest, &by_digest(&blob(), 1))?;
        rows.put(Table::BlobByDigest, &by_digest(&other, 2), &[])
    };
    world.store.write("damage", damage).expect("it can be done");
    let reconciled = || world.store.read("reconcile", |rows| rows.are_blobs_reconciled()).expect("rows");
    assert!(!reconciled());
    let done = world.store.write("reconcile", |rows| rows.reconcile_blobs()).expect("it ends");
    assert!(reconciled());
    assert_eq!((done.dropped, done.completed, done.due), (2, 1, vec![digest("y:11")]));
    let rows = world.store.read("blobs", |rows| {
        Ok((rows.snapshots_of(&digest("x:00"))?, rows.snapshots_of(&digest("y:11"))?, rows.blobs_due()?))
    });
    assert_eq!(rows.expect("rows"), (vec![BASE, CHILD], vec![], vec![digest("y:11")]));
    assert_eq!(world.check(), Vec::<String>::new());
}

#[test]
fn a_mount_of_nothing_is_forgotten() {
    mended(
        |rows| {
            let mount = MountRow { id: SnapshotId(99), ..rows.mounts_of(ACTIVE)?[0].clone() };
            let value = rows.get(Table::Mount, &MountRow::key(ACTIVE, 0))?.map(<[u8]>::to_vec);
            rows.put(Table::Mount, &MountRow::key(mount.id, 0), &value.expect("it is there"))
        },
        &["mount /mnt: snapshot 99 does not exist"],
    );
}

// A row that cannot be read is told, not failed on, and what leads to it is kept: the name it has tells whose it was.
#[test]
fn a_row_that_cannot_be_read_is_told_and_nothing_is_thrown_away() {
    let unreadable =
        |table: &str, key: &str, cause: &str| format!("row {key} of table {table} cannot be read: {cause}");
    let cut = |rows: &mut Writer<'_>, table: Table, key: &[u8]| {
        let value = rows.get(table, key)?.expect("it is there").to_vec();
        rows.put(table, key, &value[..value.len() - 1])
    };
    for (table, key) in [
        (Table::Snap, schema::id_key(CHILD).to_vec()),
        (Table::Snap, schema::id_key(ACTIVE).to_vec()),
        (Table::Pending, schema::id_key(PENDING).to_vec()),
        (Table::Mount, MountRow::key(ACTIVE, 0).to_vec()),
    ] {
        let line = unreadable(table.name(), &hex(&key), "it ends too early");
        kept(|rows| cut(rows, table, &key), &[&line]);
    }
    let blob = [
        unreadable("blob_by_snap", &hex(&schema::id_key(CHILD)), "it ends too early"),
        "blob x:00 of snapshot 2: only one table has it".to_owned(),
    ];
    let blob: Vec<&str> = blob.iter().map(String::as_str).collect();
    kept(|rows| cut(rows, Table::BlobBySnap, &schema::id_key(CHILD)), &blob);
    kept(
        |rows| rows.put(Table::Snap, b"odd", b"x"),
        &[&unreadable("snap", "6f6464", "its key has not 8 bytes")],
    );
    kept(
        |rows| rows.put(Table::Name, b"cli\0x", b"x"),
        &[&unreadable("name", "636c690078", "its number has not 8 bytes")],
    );
    kept(
        |rows| rows.put(Table::BlobGc, b"odd", b""),
        &[&unreadable("blob_gc", "6f6464", "its key is no digest")],
    );
}

// S24: what is not there is not found; what cannot be read is another error.
#[test]
fn a_row_that_cannot_be_read_is_corrupt_to_everybody_else() {
    let world = World::new();
    let break_it = |rows: &mut Writer<'_>| rows.put(Table::Snap, &schema::id_key(CHILD), b"\x01garbage");
    world.store.write("damage", break_it).expect("it can be done");
    let kinds = world.store.read("stat", |rows| {
        let active = rows.record(ACTIVE)?.expect("it is there");
        let base = rows.record(BASE)?.expect("it is there");
        Ok([
            rows.find(&Realm::cli(), "child").err(),
            rows.chain(&active).err(),
            rows.info(&active).err(),
            rows.records(None, None, 100).err(),
            rows.info(&base).err(),
        ]
        .map(|e| e.map(|e| e.kind())))
    });
    let corrupt = Some(crate::error::ErrorKind::Corrupt);
    assert_eq!(kinds.expect("rows"), [corrupt, corrupt, corrupt, corrupt, None]);
}

#[test]
fn severity_says_what_is_lost_and_what_can_be_mended() {
    let lost = Finding::ParentMissing { id: BASE, parent: CHILD };
    let damage = Finding::NameStray { key: vec![1] };
    let garbage = Finding::DirectoryLeaked { id: BASE };
    assert!(lost.severity() > damage.severity() && damage.severity() > garbage.severity());
    assert_eq!((lost.is_repairable(), damage.is_repairable(), garbage.is_repairable()), (false, true, false));
    let dead = Finding::PendingDead { id: BASE, name: "x".to_owned() };
    assert_eq!((dead.severity(), dead.is_repairable()), (Severity::Garbage, true));
}

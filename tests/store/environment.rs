//! What LMDB must never do to us: growth, limits, damage, descriptors, and two of one store.

use crate::*;
use plywood::store::{Durability, remote_file_system};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

fn small() -> StoreSettings {
    StoreSettings { map_bytes: 64 * KIB, ..StoreSettings::default() }
}

/// Snapshots with labels, so that each takes more than a page.
fn fill(store: &Store, prefix: &str, count: usize) -> Result<()> {
    let (realm, labels) = (realm(), labels(&[("large", &"v".repeat(4000)), ("larger", &"w".repeat(4000))]));
    for n in 0..count {
        let name = format!("{prefix}-{n}");
        let new = NewSnapshot {
            realm: &realm,
            name: &name,
            kind: ACTIVE,
            parent: None,
            labels: &labels,
            has_directory: true,
            flags: 0,
        };
        store.write("create", |rows| {
            let id = rows.new_id()?;
            rows.create(id, &new, at(1))
        })?;
    }
    Ok(())
}

// S85: nobody else looks into it; what cannot be opened is an error at once.
#[test]
fn a_new_store_is_for_its_owner_only() {
    let world = World::new();
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode(&world.db()), 0o700);
    for file in ["data.mdb", "lock.mdb"] {
        assert_eq!(mode(&world.db().join(file)), 0o600, "{file}");
    }
    assert!(!world.db().join("new").exists());
    let file = world.dir.path().join("file");
    fs::write(&file, b"").expect("it can be made");
    let error = Store::open(&file.join("db"), &StoreSettings::default()).expect_err("below a file");
    assert!(error.to_string().starts_with("open store: "), "{error}");
}

#[test]
fn a_process_has_a_store_open_once() {
    let world = World::new();
    let link = world.dir.path().join("link");
    symlink("db", &link).expect("it can be made");
    let second = Store::open(&link, &small()).expect("it is the same");
    assert!(Arc::ptr_eq(&world.store, &second));
    assert_ne!(second.size().expect("it is open").map_bytes, 64 * KIB as u64);
    let other = World::new();
    assert!(!Arc::ptr_eq(&world.store, &other.store));
}

#[test]
fn a_closed_store_is_unavailable_and_can_be_opened_again() {
    let world = World::new();
    create(&world, ACTIVE, "a", "").expect("it can be made");
    world.close().expect("it closes");
    world.close().expect("again is fine");
    assert_eq!(kind_of(find(&world, "a")), Some(ErrorKind::Unavailable));
    assert_eq!(kind_of(remove(&world, "a")), Some(ErrorKind::Unavailable));
    assert_eq!(kind_of(world.size()), Some(ErrorKind::Unavailable));
    assert_eq!(kind_of(world.sweep_readers()), Some(ErrorKind::Unavailable));
    let again = Store::open(&world.db(), &StoreSettings::default()).expect("it opens");
    assert!(!Arc::ptr_eq(&world.store, &again));
    assert!(find(&again, "a").is_ok());
    // The closed one, when it goes, takes nothing from the open one.
    world.close().expect("again is fine");
    let third = Store::open(&world.db(), &StoreSettings::default()).expect("it is open");
    assert!(Arc::ptr_eq(&third, &again));
    assert_eq!(findings(&again).expect("rows"), Vec::<String>::new());
}

#[test]
fn threads_that_open_and_drop_one_store_never_have_two() {
    let dir = TempDir::new();
    let db = dir.path().join("db");
    std::thread::scope(|threads| {
        for thread in 0..8 {
            let db = &db;
            threads.spawn(move || {
                for n in 0..20 {
                    let store = Store::open(db, &small()).expect("it opens");
                    create(&store, ACTIVE, &format!("{thread}-{n}"), "").expect("it can be made");
                    if thread == 0 && n % 5 == 0 {
                        drop(store);
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let store = Store::open(&db, &small()).expect("it opens");
    assert_eq!(all_names(&store).len(), 160);
    assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
}

#[test]
fn no_descriptor_of_the_store_reaches_another_program() {
    let world = World::new();
    let output = Command::new("sh").args(["-c", "ls -l /proc/self/fd"]).output().expect("sh is there");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("pipe:"), "{text}");
    // Other tests of this process are opening theirs just now.
    let own = text.lines().filter(|l| l.contains(world.db().to_str().expect("it is UTF-8")));
    assert_eq!(own.count(), 0, "{text}");
    let own = fs::read_dir("/proc/self/fd").expect("/proc is there").flatten();
    let open = own.filter_map(|e| fs::read_link(e.path()).ok()).filter(|p| p.starts_with(world.db())).count();
    assert!(open >= 2, "the test looks for the wrong names");
}

// The map begins with 64 KiB and ends beyond 4 MiB, while eight threads read without pause: 800 records take two pages
// each, and what readers still hold cannot be used again.
#[test]
fn the_map_grows_under_readers() {
    let world = World::with(&small());
    fill(&world, "first", 1).expect("there is room");
    let done = AtomicBool::new(false);
    let reads: u64 = std::thread::scope(|threads| {
        let reader = || {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let batch = world.read("walk", |rows| rows.records(None, None, 50)).expect("rows");
                assert!(batch.records.iter().all(|r| r.labels["large"].len() == 4000));
                assert!(find(&world, "first-0").is_ok());
                reads += 1;
            }
            reads
        };
        let readers: Vec<_> = (0..8).map(|_| threads.spawn(reader)).collect();
        let filled = fill(&world, "more", 800);
        done.store(true, Ordering::Relaxed);
        filled.expect("the map grows");
        readers.into_iter().map(|r| r.join().expect("no panic")).sum()
    });
    assert!(reads > 8);
    let size = world.size().expect("it is open");
    assert!(size.map_bytes > 4 * MIB as u64 && size.used_bytes > 4 * MIB as u64, "{size:?}");
    assert_eq!(all_names(&world).len(), 801);
}

#[test]
fn one_transaction_may_be_larger_than_the_map() {
    let world = World::with(&small());
    let (realm, labels) = (realm(), labels(&[("large", &"v".repeat(4000))]));
    let mut runs = 0;
    world
        .write("create", |rows| {
            runs += 1;
            for n in 0..500 {
                let name = format!("{n}");
                let new = NewSnapshot {
                    realm: &realm,
                    name: &name,
                    kind: VIEW,
                    parent: None,
                    labels: &labels,
                    has_directory: false,
                    flags: 0,
                };
                let id = rows.new_id()?;
                rows.create(id, &new, at(1))?;
            }
            Ok(())
        })
        .expect("it is run again until the map suffices");
    assert!(runs > 1, "the map was large enough from the begin");
    let names = all_names(&world);
    assert_eq!((names.len(), names[499].as_str()), (500, "499"));
    assert_eq!(world.read("check", |rows| rows.next_id()).expect("rows"), SnapshotId(501));
}

#[test]
fn a_closure_that_hides_a_full_map_is_run_again_all_the_same() {
    let world = World::with(&small());
    let large = labels(&[("large", &"v".repeat(4000))]);
    let first = create(&world, ACTIVE, "first", "").expect("there is room").id;
    let mut runs = 0;
    world
        .write("create", |rows| {
            runs += 1;
            for n in 0..100 {
                let new = NewSnapshot {
                    realm: &realm(),
                    name: &format!("{n}"),
                    kind: VIEW,
                    parent: None,
                    labels: &large,
                    has_directory: false,
                    flags: 0,
                };
                let id = rows.new_id().unwrap_or(first);
                let _ = rows.create(id, &new, at(1));
            }
            Ok(())
        })
        .expect("it is run again");
    assert!(runs > 1);
    assert_eq!(all_names(&world).len(), 101);
}

#[test]
fn a_store_at_its_limit_is_full_and_still_can_be_emptied() {
    let settings = StoreSettings { max_map_bytes: 512 * KIB, ..small() };
    let world = World::with(&settings);
    let error = fill(&world, "a", 1000).expect_err("it has a limit");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("limit of 524288 bytes"), "{error}");
    let names = all_names(&world);
    assert!(names.len() > 20, "{}", names.len());
    // Again and again the same, and nothing else suffers.
    assert_eq!(kind_of(fill(&world, "b", 1)), Some(ErrorKind::NoSpace));
    assert_eq!(all_names(&world), names);
    for name in &names[..20] {
        remove(&world, name).expect("removing needs no room that is not there");
    }
    fill(&world, "c", 5).expect("there is room again");
    // A higher limit is all it needs.
    world.close().expect("it closes");
    let store = Store::open(&world.db(), &small()).expect("it opens");
    fill(&store, "d", 200).expect("the limit is higher");
    assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
}

#[test]
fn a_limit_that_is_no_multiple_of_anything_is_kept() {
    let world = World::with(&StoreSettings { max_map_bytes: 100_000, ..small() });
    assert_eq!(kind_of(fill(&world, "a", 100)), Some(ErrorKind::NoSpace));
    let some = all_names(&world).len();
    assert!(some > 0 && world.size().expect("it is open").map_bytes == 64 * KIB as u64);
}

// Rows of less than a page fill it to the last one, and even a removal has to copy some.
#[test]
fn a_store_without_a_free_page_can_be_emptied_to_the_last_snapshot() {
    for limit in [128 * KIB, 256 * KIB, 512 * KIB] {
        let world = World::with(&StoreSettings { max_map_bytes: limit, ..small() });
        let mut made = 0;
        let full = loop {
            match create(&world, ACTIVE, &format!("{made}"), "") {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        assert!(made > 20, "{made} in {limit}");
        assert_eq!(world.size().expect("it is open").map_bytes, limit as u64);
        for n in 0..made {
            remove(&world, &format!("{n}")).expect("a full store can be emptied");
        }
        // Little by little means little.
        assert!(world.size().expect("it is open").map_bytes <= (limit + 512 * KIB) as u64);
        create(&world, ACTIVE, "again", "").expect("there is room");
    }
}

/// Runs the test `name` again behind a shell command, with the store in `$DB`.
fn behind(name: &str, db: &Path, start: &[&str], before: &str) -> std::process::Output {
    let program = std::env::current_exe().expect("this program has a path");
    let script = format!("{before} && exec \"$0\" --exact {name} --nocapture --test-threads=1");
    let mut command = Command::new(start[0]);
    command.args(&start[1..]).args(["sh", "-c", &script]).arg(program).env(OTHER, db).env("DB", db);
    command.output().expect("it starts")
}

#[track_caller]
fn assert_passed(output: &std::process::Output) {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{:?}\n{text}", output.status);
}

#[test]
fn a_map_that_the_kernel_does_not_give_leaves_the_store_as_it_was() {
    const NAME: &str = "environment::a_map_that_the_kernel_does_not_give_leaves_the_store_as_it_was";
    let Some(db) = as_other() else {
        // Address space for a map of one GiB, and not for one of two.
        let dir = TempDir::new();
        return assert_passed(&behind(NAME, &dir.path().join("db"), &["env"], "ulimit -v 2000000"));
    };
    let store = Store::open(&db, &StoreSettings::default()).expect("there is room for that");
    create(&store, ACTIVE, "a", "").expect("it can be made");
    plywood::fail::arm("db.map_full=error:28");
    let error = create(&store, ACTIVE, "b", "").expect_err("it cannot grow");
    assert!(error.to_string().contains("map of the store"), "{error}");
    // It goes on with the map that it had.
    create(&store, ACTIVE, "b", "").expect("it can be made");
    assert_eq!((all_names(&store).len(), store.size().expect("it is open").map_bytes), (2, 1 << 30));
}

// In a file system of one MiB of its own, in a user namespace.
#[test]
fn a_full_disk_is_told_as_such_and_loses_nothing() {
    const NAME: &str = "environment::a_full_disk_is_told_as_such_and_loses_nothing";
    if std::env::var_os("PLYWOOD_SKIP_MOUNTED").is_some_and(|v| v == "1") {
        return eprintln!("left out, as PLYWOOD_SKIP_MOUNTED says: {NAME}");
    }
    let Some(db) = as_other() else {
        let dir = TempDir::new();
        let db = dir.path().join("db");
        fs::create_dir(&db).expect("it is new");
        let start = ["unshare", "--user", "--map-root-user", "--mount"];
        return assert_passed(&behind(NAME, &db, &start, "mount -t tmpfs -o size=1m none \"$DB\""));
    };
    let store = Store::open(&db, &StoreSettings::default()).expect("there is room");
    let error = fill(&store, "a", 1000).expect_err("there is one MiB");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    // Small ones take what the large ones left.
    let small = (0..10_000).map(|n| create(&store, ACTIVE, &format!("{n}"), ""));
    let error = small.filter_map(Result::err).next().expect("they take room too");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let names = all_names(&store);
    assert!(names.len() > 20, "{}", names.len());
    assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
    store.close().expect("it closes");
    let store = Store::open(&db, &StoreSettings::default()).expect("it opens");
    assert_eq!(all_names(&store), names);
    for name in &names {
        remove(&store, name).expect("a full disk can be emptied");
    }
    assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
}

#[test]
fn a_map_that_another_process_has_grown_is_followed() {
    const NAME: &str = "environment::a_map_that_another_process_has_grown_is_followed";
    if let Some(db) = as_other() {
        let store = Store::open(&db, &small()).expect("it is there");
        let round = all_names(&store).len();
        fill(&store, &format!("other-{round}"), 100).expect("the map grows");
        return;
    }
    let world = World::with(&small());
    fill(&world, "own", 1).expect("there is room");
    run_other(NAME, &world.db());
    assert_eq!(all_names(&world).len(), 101, "a reader follows");
    run_other(NAME, &world.db());
    fill(&world, "own again", 1).expect("a writer follows");
    assert_eq!(all_names(&world).len(), 202);
}

#[test]
fn a_reader_waits_for_a_slot_and_says_so_if_none_becomes_free() {
    let world = World::with(&StoreSettings { max_readers: 4, ..StoreSettings::default() });
    create(&world, ACTIVE, "a", "").expect("it can be made");
    std::thread::scope(|threads| {
        let (inside, arrived) = std::sync::mpsc::channel();
        let gates: Vec<_> = (0..4)
            .map(|_| {
                let (open, gate) = std::sync::mpsc::channel::<()>();
                let (inside, world) = (inside.clone(), &world);
                threads.spawn(move || {
                    world.read("walk", |_| {
                        inside.send(()).expect("somebody listens");
                        let _ = gate.recv();
                        Ok(())
                    })
                });
                open
            })
            .collect();
        (0..4).for_each(|_| arrived.recv().expect("they come"));
        let error = find(&world, "a").expect_err("there are four slots");
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        // A writer needs none.
        create(&world, ACTIVE, "b", "").expect("it can be made");
        let waiting = threads.spawn(|| find(&world, "b").map(|r| r.id));
        std::thread::sleep(Duration::from_millis(100));
        gates[0].send(()).expect("it waits");
        assert_eq!(waiting.join().expect("no panic").ok(), Some(SnapshotId(2)));
        drop(gates);
    });
}

/// Opens a damaged copy and, if that works, reads every row. A process that dies of it fails the test.
fn try_all_rows(db: &Path) -> Result<usize> {
    let store = Store::open(db, &StoreSettings::default())?;
    assert_eq!(findings(&store)?, Vec::<String>::new());
    Ok(all_names(&store).len())
}

#[test]
fn a_file_that_was_cut_is_corrupt_wherever_it_was_cut() {
    let world = World::new();
    fill(&world, "a", 60).expect("there is room");
    world.close().expect("it closes");
    let data = fs::read(world.db().join("data.mdb")).expect("it is there");
    assert!(data.len() > 400 * KIB);
    let copy = world.dir.path().join("cut");
    let mut corrupt = 0;
    for length in (0..data.len()).step_by(4096).chain([1, 4095, 8191, data.len() - 1]) {
        fs::create_dir(&copy).expect("it is not there");
        fs::write(copy.join("data.mdb"), &data[..length]).expect("it can be written");
        match try_all_rows(&copy) {
            Ok(count) => assert_eq!(count, 60, "cut at {length}"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {length}: {error}");
                corrupt += 1;
            }
        }
        fs::remove_dir_all(&copy).expect("it is ours");
    }
    // Few pages at the end are free.
    assert!(corrupt > data.len() / 4096 * 8 / 10, "{corrupt}");
}

#[test]
fn a_file_that_is_no_database_is_corrupt_and_left_alone() {
    let dir = TempDir::new();
    for (name, content) in [("empty", Vec::new()), ("text", b"text".to_vec()), ("zeroes", vec![0; 1 << 16])] {
        let db = dir.path().join(name);
        fs::create_dir(&db).expect("it is new");
        fs::write(db.join("data.mdb"), &content).expect("it can be written");
        let error = Store::open(&db, &StoreSettings::default()).expect_err("it is no database");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name}: {error}");
        assert_eq!(fs::read(db.join("data.mdb")).expect("it is there"), content);
        // And it can be tried again: nothing holds on to the failure.
        let again = Store::open(&db, &StoreSettings::default());
        assert_eq!(kind_of(again), Some(ErrorKind::Corrupt));
    }
}

#[test]
fn a_file_that_ends_before_pages_that_nobody_needs_is_whole() {
    let world = World::new();
    create(&world, ACTIVE, "a", "").expect("it can be made");
    // With free pages about, a large row that comes and goes in one transaction takes some that are never written.
    fill(&world, "goes", 5).expect("there is room");
    for n in 0..5 {
        remove(&world, &format!("goes-{n}")).expect("no children");
    }
    let (realm, many) = (realm(), (0..40).map(|n| (format!("{n}"), "v".repeat(4000))).collect::<Labels>());
    let new = NewSnapshot {
        realm: &realm,
        name: "passing",
        kind: ACTIVE,
        parent: None,
        labels: &many,
        has_directory: true,
        flags: 0,
    };
    world
        .write("create", |rows| {
            let id = rows.new_id()?;
            rows.create(id, &new, at(1))?;
            rows.remove(&realm, "passing")
        })
        .expect("it comes and goes");
    let (size, db) = (world.size().expect("it is open"), world.db());
    world.close().expect("it closes");
    let length = fs::metadata(db.join("data.mdb")).expect("it is there").len();
    assert!(length < size.used_bytes, "{length} of {}: the case does not occur", size.used_bytes);
    assert_eq!(try_all_rows(&db).expect("nothing is missing"), 1);
}

#[test]
fn a_compact_copy_is_smaller_and_has_everything() {
    let world = World::new();
    fill(&world, "goes", 100).expect("there is room");
    create(&world, ACTIVE, "stays", "").expect("it can be made");
    for n in 0..100 {
        remove(&world, &format!("goes-{n}")).expect("no children");
    }
    let copy = world.dir.path().join("copy");
    fs::create_dir(&copy).expect("it is new");
    world.copy_compact(&copy.join("data.mdb")).expect("it can be copied");
    let size = |path: &Path| fs::metadata(path.join("data.mdb")).expect("it is there").len();
    assert!(size(&copy) * 4 < size(&world.db()), "{} of {}", size(&copy), size(&world.db()));
    assert_eq!(kind_of(world.copy_compact(&copy.join("data.mdb"))), Some(ErrorKind::AlreadyExists));
    let other = Store::open(&copy, &StoreSettings::default()).expect("it opens");
    assert_eq!(all_names(&other), ["stays"]);
    assert_eq!(create(&other, ACTIVE, "next", "").expect("it can be made").id, SnapshotId(102));
    assert_eq!(findings(&other).expect("rows"), Vec::<String>::new());
}

#[test]
fn a_relaxed_store_is_opened_again_as_it_was() {
    let world = World::with(&StoreSettings { durability: Durability::Relaxed, ..StoreSettings::default() });
    create(&world, ACTIVE, "a", "").expect("it can be made");
    world.close().expect("it closes");
    let again = Store::open(&world.db(), &StoreSettings::default()).expect("it opens");
    assert_eq!(all_names(&again), ["a"]);
}

#[test]
fn a_remote_file_system_is_known_by_its_number() {
    let remote = [
        (0x6969, "nfs"),
        (0xff53_4d42, "cifs"),
        (0xffff_ffff_ff53_4d42, "cifs"),
        (0xfe53_4d42, "smb2"),
        (0x517b, "smb"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "fuse"),
        (0x00c3_6400, "ceph"),
        (0x5346_414f, "afs"),
        (0x0bd0_0bd0, "lustre"),
    ];
    for (magic, name) in remote {
        assert_eq!(remote_file_system(magic), Some(name));
    }
    // ext4, xfs, btrfs, tmpfs, overlay, zfs, f2fs, bcachefs
    for magic in
        [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1, 0xf2f5_2010, 0xca45_1a4e]
    {
        assert_eq!(remote_file_system(magic), None, "{magic:x}");
    }
}

/// In a process of its own: points are armed for all of a process.
#[test]
fn failures_of_the_database_undo_the_transaction_and_nothing_else() {
    let Some(db) = as_other() else {
        let dir = TempDir::new();
        let name = "environment::failures_of_the_database_undo_the_transaction_and_nothing_else";
        return run_other(name, &dir.path().join("db"));
    };
    use plywood::fail::arm;
    let store = Store::open(&db, &small()).expect("it can be made");
    let map = |store: &Store| store.size().expect("it is open").map_bytes;
    // The map is said to be full at the second row: it grows, and all runs again.
    arm("db.map_full=error:28@2");
    let before = map(&store);
    assert_eq!(create(&store, ACTIVE, "a", "").expect("it runs again").id, SnapshotId(1));
    assert_eq!(map(&store), 2 * before);
    // It cannot grow: said, and nothing has changed.
    arm("db.map_full=error:28,db.resize=error:12");
    assert!(create(&store, ACTIVE, "b", "").is_err());
    assert_eq!((map(&store), all_names(&store)), (2 * before, vec!["a".to_owned()]));
    arm("db.commit_enospc=error:28");
    assert_eq!(kind_of(create(&store, ACTIVE, "b", "")), Some(ErrorKind::NoSpace));
    arm("db.commit_eio=error:5");
    assert_eq!(kind_of(create(&store, ACTIVE, "b", "")), Some(ErrorKind::Io));
    arm("db.readers_full=error:11");
    assert_eq!(kind_of(find(&store, "b")), Some(ErrorKind::NotFound), "it tries again");
    arm("");
    assert_eq!(create(&store, ACTIVE, "b", "").expect("it can be made").id, SnapshotId(2));
    assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
}

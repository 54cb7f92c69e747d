//! Processes that are killed while they have a transaction, and what the others notice of it: nothing.

use crate::*;
use plywood::store::ProcessMark;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

/// Says to the process that waits for it in [`wait_for`] that this one has come so far, and stays there.
fn stay_here() -> ! {
    println!("\nhere");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Waits until the other process has come to [`stay_here`].
#[track_caller]
fn wait_for(child: &mut Child) {
    let output = child.stdout.as_mut().expect("it is piped");
    let mut lines = BufReader::new(output).lines();
    assert!(lines.any(|line| line.is_ok_and(|l| l == "here")), "it ended before it came so far");
}

fn kill(mut child: Child) {
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

#[test]
fn slots_of_killed_readers_are_freed() {
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings::default()).expect("it is there");
        let _: Result<()> = store.read("walk", |_| stay_here());
    }
    let world = World::new();
    let name = "killed::slots_of_killed_readers_are_freed";
    let mut readers: Vec<Child> = (0..3).map(|_| other_process(name, &world.db())).collect();
    readers.iter_mut().for_each(wait_for);
    assert_eq!(world.sweep_readers().expect("it is open"), 0, "they live");
    readers.into_iter().for_each(kill);
    assert_eq!(world.sweep_readers().expect("it is open"), 3);
    assert_eq!(world.sweep_readers().expect("it is open"), 0);
}

#[test]
fn a_full_reader_table_of_killed_processes_is_swept_by_who_finds_it_full() {
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings::default()).expect("it is there");
        let _: Result<()> = store.read("walk", |_| stay_here());
    }
    let world = World::with(&StoreSettings { max_readers: 3, ..StoreSettings::default() });
    let name = "killed::a_full_reader_table_of_killed_processes_is_swept_by_who_finds_it_full";
    let mut readers: Vec<Child> = (0..3)
        .map(|_| {
            let mut child = other_process(name, &world.db());
            wait_for(&mut child);
            child
        })
        .collect();
    let error = find(&world, "a").expect_err("there is no slot");
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    kill(readers.pop().expect("there are three"));
    assert_eq!(kind_of(find(&world, "a")), Some(ErrorKind::NotFound));
    readers.into_iter().for_each(kill);
}

#[test]
fn what_a_killed_writer_had_not_finished_never_was() {
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings::default()).expect("it is there");
        let _: Result<()> = store.write("create", |rows| {
            rows.commit(&commit(&realm(), "a", "b", &Labels::new()))?;
            rows.new_id()?;
            stay_here()
        });
    }
    let world = World::new();
    create(&world, ACTIVE, "a", "").expect("it can be made");
    for _ in 0..3 {
        let mut writer =
            other_process("killed::what_a_killed_writer_had_not_finished_never_was", &world.db());
        wait_for(&mut writer);
        assert_eq!(find(&world, "a").map(|r| r.kind).ok(), Some(ACTIVE), "readers do not wait for a writer");
        kill(writer);
        let start = Instant::now();
        assert_eq!(kind_of(commit_as(&world, "b", "c")), Some(ErrorKind::NotFound));
        assert!(start.elapsed() < Duration::from_secs(50), "the lock of the dead is free at once");
    }
    assert_eq!(create(&world, ACTIVE, "c", "").expect("it can be made").id, SnapshotId(2));
}

#[test]
fn what_a_killed_process_had_begun_is_dropped() {
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings::default()).expect("it is there");
        let (realm, none) = (realm(), Labels::new());
        let new = NewSnapshot {
            realm: &realm,
            name: "slow",
            kind: ACTIVE,
            parent: Some("base"),
            labels: &none,
            has_directory: true,
            flags: 0,
        };
        let own = ProcessMark::current().expect("/proc is there");
        store.write("prepare", |rows| rows.add_pending(&new, &own)).expect("it can be begun");
        stay_here();
    }
    let world = World::new();
    layer(&world, "base", "");
    let mut maker = other_process("killed::what_a_killed_process_had_begun_is_dropped", &world.db());
    wait_for(&mut maker);
    let sweep = || world.write("cleanup", |rows| rows.drop_dead_pending(ProcessMark::is_dead)).expect("rows");
    assert_eq!(sweep(), []);
    assert_eq!(kind_of(create(&world, ACTIVE, "slow", "")), Some(ErrorKind::AlreadyExists));
    kill(maker);
    assert_eq!(
        findings(&world).expect("rows"),
        ["creation 2 (\"slow\"): the process that began it has ended"]
    );
    assert_eq!(sweep(), ids(&[2]));
    remove(&world, "base").expect("it has no children");
}

/// Kills processes that write without pause, at any moment: all that was answered stays, and rows agree.
#[test]
fn a_store_survives_processes_killed_at_any_moment() {
    if let Some(db) = as_other() {
        let store = Store::open(&db, &StoreSettings { map_bytes: 1 << 16, ..StoreSettings::default() });
        let store = store.expect("it opens, or is made");
        for n in 0.. {
            let name = format!("{}-{n}", std::process::id());
            let key = format!("key of {name}");
            create(&store, ACTIVE, &key, "").expect("it can be made");
            commit_as(&store, &key, &name).expect("it can be committed");
            // Only what stands on this line was promised.
            println!("\nmade {name}");
            if n % 3 == 2 {
                let former = format!("{}-{}", std::process::id(), n - 1);
                println!("\ngoes {former}");
                remove(&store, &former).expect("it has no children");
            }
        }
    }
    let dir = TempDir::new();
    let db = dir.path().join("db");
    let (mut made, mut gone) = (Vec::new(), Vec::new());
    for round in 0..30_u64 {
        let mut writers: Vec<Child> = (0..2)
            .map(|_| other_process("killed::a_store_survives_processes_killed_at_any_moment", &db))
            .collect();
        // Some are killed while they make the store.
        std::thread::sleep(Duration::from_millis(10 + round * 13 % 150));
        for writer in &mut writers {
            writer.kill().expect("it is ours");
        }
        for mut writer in writers {
            let mut text = String::new();
            let read = writer.stdout.take().expect("it is piped").read_to_string(&mut text);
            read.expect("it is UTF-8");
            writer.wait().expect("it is ours");
            made.extend(text.lines().filter_map(|l| l.strip_prefix("made ")).map(str::to_owned));
            gone.extend(text.lines().filter_map(|l| l.strip_prefix("goes ")).map(str::to_owned));
        }
        let store = Store::open(&db, &StoreSettings::default()).expect("it opens");
        assert_eq!(findings(&store).expect("rows"), Vec::<String>::new());
    }
    let store = Store::open(&db, &StoreSettings::default()).expect("it opens");
    for name in made.iter().filter(|name| !gone.contains(name)) {
        assert!(find(&store, name).is_ok_and(|r| r.kind == COMMITTED), "{name} is lost");
    }
    assert!(made.len() > 30, "too few were made to prove anything: {}", made.len());
    assert!(!db.join("new").exists() || db.join("data.mdb").exists());
}

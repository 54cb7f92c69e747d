//! The metadata store from outside: rows and their rules, names, blobs, and what LMDB must never do to us.
//!
//! Whatever a test does, its store passes `check` at the end.

mod blobs;
mod environment;
mod killed;
mod metastore;
mod names;
mod rows;
mod threads;

use plywood::error::{Error, ErrorKind, Result};
use plywood::store::{Commit, NewSnapshot, Rebase, Record, Removed, Store, StoreSettings, check};
use plywood::types::{Labels, Realm, SnapshotId, SnapshotKind, Timestamp, Usage};
use plywood_fuse::testing::TempDir;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const ACTIVE: SnapshotKind = SnapshotKind::Active;
const VIEW: SnapshotKind = SnapshotKind::View;
const COMMITTED: SnapshotKind = SnapshotKind::Committed;

/// A store in a directory of its own.
struct World {
    store: Arc<Store>,
    dir: TempDir,
}

impl World {
    fn new() -> World {
        World::with(&StoreSettings::default())
    }

    fn with(settings: &StoreSettings) -> World {
        let dir = TempDir::new();
        let store = Store::open(&dir.path().join("db"), settings).expect("a store can be made");
        World { store, dir }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }
}

impl Deref for World {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        match findings(&self.store) {
            Ok(found) => assert_eq!(found, Vec::<String>::new(), "the store contradicts itself"),
            // A test may have closed it.
            Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}"),
        }
    }
}

/// What `check` says of the rows of a store.
fn findings(store: &Store) -> Result<Vec<String>> {
    let found = store.read("check", |rows| check(rows, None, &mut |process| process.is_dead()))?;
    Ok(found.iter().map(ToString::to_string).collect())
}

fn realm() -> Realm {
    Realm::cli()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn at(secs: i64) -> Timestamp {
    Timestamp { secs, nanos: 5 }
}

fn kind_of<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|e: Error| e.kind())
}

/// Makes the rows of a snapshot in the realm of the command line.
fn create(store: &Store, kind: SnapshotKind, name: &str, parent: &str) -> Result<Record> {
    create_in(store, &realm(), kind, name, parent)
}

fn create_in(store: &Store, realm: &Realm, kind: SnapshotKind, name: &str, parent: &str) -> Result<Record> {
    let labels = labels(&[("test", name)]);
    // Labels have a limit below that of names.
    let labels = if name.len() > 1000 { Labels::new() } else { labels };
    let parent = Some(parent);
    let new = NewSnapshot { realm, name, kind, parent, labels: &labels, has_directory: true, flags: 0 };
    store.write("create", |rows| {
        let id = rows.new_id()?;
        rows.create(id, &new, at(1))
    })
}

/// The usual commit: no parent asked for, nothing expected.
fn commit<'a>(realm: &'a Realm, key: &'a str, name: &'a str, labels: &'a Labels) -> Commit<'a> {
    let usage = Usage { size_bytes: 1, inodes: 2 };
    let (parent, rebase, expected, now) = (None, Rebase::Allowed, None, at(2));
    Commit { realm, key, name, labels, usage, flags: 0, parent, rebase, expected, now }
}

fn commit_as(store: &Store, key: &str, name: &str) -> Result<Record> {
    store.write("commit", |rows| rows.commit(&commit(&realm(), key, name, &Labels::new())))
}

/// A committed snapshot on top of another.
fn layer(store: &Store, name: &str, parent: &str) -> Record {
    create(store, ACTIVE, "making a layer", parent).expect("it can be made");
    commit_as(store, "making a layer", name).expect("it can be committed")
}

fn find(store: &Store, name: &str) -> Result<Record> {
    store.read("stat", |rows| rows.find(&realm(), name))
}

fn remove(store: &Store, name: &str) -> Result<Removed> {
    store.write("remove", |rows| rows.remove(&realm(), name))
}

/// The names of everything there is, in the order of numbers.
fn all_names(store: &Store) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = None;
    loop {
        let batch = store.read("walk", |rows| rows.records(None, after, 3)).expect("rows can be read");
        names.extend(batch.records.into_iter().map(|r| r.name));
        after = batch.next;
        if after.is_none() {
            return names;
        }
    }
}

fn ids(numbers: &[u64]) -> Vec<SnapshotId> {
    numbers.iter().map(|n| SnapshotId(*n)).collect()
}

/// Says that this process is the other one of a test, and where its store is.
const OTHER: &str = "PLYWOOD_STORE_OTHER";

/// The store for which this process was started by [`other_process`].
fn as_other() -> Option<PathBuf> {
    std::env::var_os(OTHER).map(PathBuf::from)
}

/// Runs the test `name` of this program again in a process of its own, which sees a store in [`as_other`].
fn other_process(name: &str, db: &std::path::Path) -> Child {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(OTHER, db);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program starts")
}

/// Runs it to its end.
#[track_caller]
fn run_other(name: &str, db: &std::path::Path) {
    let output = other_process(name, db).wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{name}: {:?}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{name} is no test of this program\n{text}");
}

//! Blobs of snapshots, as rows.

use crate::*;
use plywood::store::{BLOB_LABEL, Blob, BlobSet, Digest};

fn digest(letter: char) -> Digest {
    Digest::parse(&format!("sha256:{}", String::from(letter).repeat(64))).expect("a digest")
}

fn blob(letter: char) -> Blob {
    Blob { digest: digest(letter), media_type: "application/x".to_owned(), size_bytes: 7 }
}

fn set(store: &Store, id: SnapshotId, blob: &Blob) -> Result<BlobSet> {
    store.write("set blob", |rows| rows.set_blob(id, blob))
}

fn references(store: &Store, digest: &Digest) -> Vec<SnapshotId> {
    store.read("blobs", |rows| rows.snapshots_of(digest)).expect("rows")
}

fn due(store: &Store) -> Vec<Digest> {
    store.read("blobs", |rows| rows.blobs_due()).expect("rows")
}

// S86, S93, S95, S96, S97, S99: what comes out is a copy, and used here long after the transaction.
#[test]
fn a_snapshot_has_one_blob_and_a_blob_many_snapshots() {
    let world = World::new();
    let (a, b) = (layer(&world, "a", "").id, layer(&world, "b", "").id);
    let of = |id| world.read("blobs", |rows| rows.blob_of(id)).expect("rows");
    assert_eq!(of(a), None);
    assert_eq!(set(&world, a, &blob('1')).ok(), Some(BlobSet::New));
    assert_eq!(set(&world, a, &blob('1')).ok(), Some(BlobSet::Same));
    let error = set(&world, a, &blob('2')).expect_err("it has another");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains("different blob is already set"), "{error}");
    assert_eq!(set(&world, b, &blob('1')).ok(), Some(BlobSet::New));
    assert_eq!(kind_of(set(&world, SnapshotId(99), &blob('1'))), Some(ErrorKind::NotFound));
    assert_eq!((of(a), of(b)), (Some(blob('1')), Some(blob('1'))));
    assert_eq!(references(&world, &digest('1')), ids(&[1, 2]));
    assert_eq!(references(&world, &digest('2')), []);
}

// S98: a digest that is the begin of another does not count its references.
#[test]
fn references_of_a_longer_digest_are_not_counted() {
    let world = World::new();
    let (a, b) = (layer(&world, "a", "").id, layer(&world, "b", "").id);
    let of = |text: &str| Blob {
        digest: Digest::parse(text).expect("a digest"),
        media_type: String::new(),
        size_bytes: 0,
    };
    set(&world, a, &of("x:00")).expect("it can be set");
    set(&world, b, &of("x:0000")).expect("it can be set");
    assert_eq!(references(&world, &of("x:00").digest), [a]);
    assert_eq!(references(&world, &of("x:0000").digest), [b]);
    assert_eq!(references(&world, &of("x:0").digest), []);
    assert_eq!(remove(&world, "a").expect("no children").blob_due, Some(of("x:00").digest));
}

// S88, S89, S90: only the last reference makes the content due, and a refused removal leaves all as it was.
#[test]
fn the_last_snapshot_that_goes_makes_the_content_due() {
    let world = World::new();
    let (a, b) = (layer(&world, "a", "").id, layer(&world, "b", "a").id);
    layer(&world, "without", "");
    set(&world, a, &blob('1')).expect("it can be set");
    set(&world, b, &blob('1')).expect("it can be set");
    assert_eq!(kind_of(remove(&world, "a")), Some(ErrorKind::FailedPrecondition));
    assert_eq!(references(&world, &digest('1')), [a, b]);
    assert_eq!(remove(&world, "without").expect("no children").blob_due, None);
    assert_eq!(remove(&world, "b").expect("no children").blob_due, None);
    assert_eq!(due(&world), []);
    assert_eq!(remove(&world, "a").expect("no children").blob_due, Some(digest('1')));
    assert_eq!(due(&world), [digest('1')]);
    assert_eq!(references(&world, &digest('1')), []);
    // What has been deleted is forgotten, once.
    assert!(world.write("blobs", |rows| rows.blob_deleted(&digest('1'))).expect("rows"));
    assert!(!world.write("blobs", |rows| rows.blob_deleted(&digest('1'))).expect("rows"));
    assert_eq!(due(&world), []);
}

#[test]
fn content_that_is_referred_to_again_is_no_longer_due() {
    let world = World::new();
    let a = layer(&world, "a", "").id;
    set(&world, a, &blob('1')).expect("it can be set");
    remove(&world, "a").expect("no children");
    assert_eq!(due(&world), [digest('1')]);
    let again = layer(&world, "a", "").id;
    set(&world, again, &blob('1')).expect("it can be set");
    assert_eq!(due(&world), []);
    remove(&world, "a").expect("no children");
    assert_eq!(world.write("blobs", |rows| rows.replay_blobs_due()).expect("rows"), [digest('1')]);
}

// S91: however removals fall, exactly one of them was the last.
#[test]
fn of_many_removals_at_once_exactly_one_is_the_last() {
    let world = World::new();
    for round in 0..5 {
        let names: Vec<String> = (0..8).map(|n| format!("{round}-{n}")).collect();
        for name in &names {
            let id = layer(&world, name, "").id;
            set(&world, id, &blob('1')).expect("it can be set");
        }
        let last: usize = std::thread::scope(|threads| {
            let store = &world.store;
            let removals: Vec<_> =
                names.iter().map(|name| threads.spawn(move || remove(store, name))).collect();
            let removed = removals.into_iter().map(|t| t.join().expect("no panic").expect("no children"));
            removed.filter(|r| r.blob_due.is_some()).count()
        });
        assert_eq!(last, 1);
        assert_eq!(due(&world), [digest('1')]);
        world.write("blobs", |rows| rows.blob_deleted(&digest('1'))).expect("rows");
    }
}

// S100, S102: shown as a label, never stored as one, and kept by a commit.
#[test]
fn a_blob_set_on_an_active_snapshot_is_that_of_the_committed_one() {
    let world = World::new();
    let active = create(&world, ACTIVE, "key", "").expect("it can be made");
    set(&world, active.id, &blob('1')).expect("it can be set");
    let record = commit_as(&world, "key", "name").expect("it can be committed");
    let info = world.read("stat", |rows| rows.info(&rows.find(&realm(), "name")?)).expect("it is there");
    assert_eq!(info.labels, labels(&[(BLOB_LABEL, digest('1').as_str())]));
    assert_eq!(record.labels, Labels::new());
    assert_eq!(references(&world, &digest('1')), [record.id]);
    // Labels that were read go back without it.
    let updated =
        world.write("update", |rows| rows.set_labels(record.id, &info.labels, at(3))).expect("rows");
    assert_eq!(updated.labels, Labels::new());
}

// S87: nothing to do where nothing is wrong; what it mends is tested beside the code.
#[test]
fn reconciling_a_sound_store_does_nothing() {
    let world = World::new();
    let a = layer(&world, "a", "").id;
    set(&world, a, &blob('1')).expect("it can be set");
    let done = world.write("blobs", |rows| rows.reconcile_blobs()).expect("rows");
    assert_eq!((done.dropped, done.completed, done.due.len()), (0, 0, 0));
    assert_eq!(references(&world, &digest('1')), [a]);
}

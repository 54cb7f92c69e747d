//! Blobs of snapshots: S85 to S102 of the contract, on a whole snapshotter.

use plywood::backend::BackendName;
use plywood::content::{
    self, Begun, Content, ContentInfo, ContentStore, Expected, Freed, IngestStatus, OciLayout,
};
use plywood::error::{Error, ErrorKind, Result};
use plywood::filter::Filters;
use plywood::snapshotter::{BackendChoice, IMAGE_LABELS, Removal, Snapshotter, SnapshotterSettings};
use plywood::store::{BLOB_LABEL, Blob, BlobSet, Digest};
use plywood::types::{Labels, Realm};
use plywood_fuse::testing::TempDir;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct World {
    temp: TempDir,
    settings: SnapshotterSettings,
    snapshotter: Snapshotter,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut SnapshotterSettings)) -> Self {
        let temp = TempDir::new();
        let mut settings = SnapshotterSettings::new(temp.path().join("store"));
        settings.backend = BackendChoice::Named(BackendName::Native);
        settings.removal = Removal::Sync;
        change(&mut settings);
        let snapshotter = Snapshotter::open(settings.clone()).unwrap_or_else(|e| panic!("{e}"));
        Self { temp, settings, snapshotter }
    }

    fn reopen(self) -> Self {
        self.snapshotter.close().expect("close");
        let Self { temp, settings, snapshotter } = self;
        drop(snapshotter);
        let snapshotter = Snapshotter::open(settings.clone()).unwrap_or_else(|e| panic!("{e}"));
        Self { temp, settings, snapshotter }
    }

    fn committed(&self, name: &str, parent: &str) {
        let parent = (!parent.is_empty()).then_some(parent);
        self.snapshotter.prepare("being-made", parent, Labels::new(), &()).expect("prepare");
        self.snapshotter.commit(name, "being-made", Labels::new(), None, &()).expect("commit");
    }

    fn put(&self, bytes: &[u8]) -> Blob {
        put(self.snapshotter.content(), bytes)
    }

    fn has(&self, blob: &Blob) -> bool {
        self.snapshotter.content().info(&blob.digest).is_ok()
    }

    fn age(&self, blob: &Blob) {
        let hex = blob.digest.sha256_hex().expect("sha256");
        age(&self.snapshotter.layout().content_store().join("blobs/sha256").join(hex));
    }
}

fn age(path: &std::path::Path) {
    let file = std::fs::File::open(path).expect("it is there");
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600))
        .expect("touch");
}

fn put(store: &dyn ContentStore, bytes: &[u8]) -> Blob {
    let info = content::put(store, "put", &Expected::default(), &mut &bytes[..]).expect("put");
    Blob { digest: info.digest, media_type: "application/x".to_owned(), size_bytes: info.size_bytes }
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

// S85
#[test]
fn rows_and_content_are_for_their_owner_alone_and_what_cannot_be_opened_is_an_error() {
    let world = World::new();
    world.put(b"x");
    let layout = world.snapshotter.layout();
    for (path, mode) in [
        (layout.db(), 0o700),
        (layout.db().join("data.mdb"), 0o600),
        (layout.content_store(), 0o700),
        (layout.content_store().join("index.json"), 0o600),
    ] {
        assert_eq!(path.metadata().expect("it is there").mode() & 0o7777, mode, "{}", path.display());
    }
    let temp = TempDir::new();
    std::fs::create_dir_all(temp.path().join("store/db")).expect("mkdir");
    std::fs::write(temp.path().join("store/db/data.mdb"), b"no database").expect("write");
    let opened = Snapshotter::open(SnapshotterSettings::new(temp.path().join("store")));
    assert_eq!(kind(opened.map(drop)), Some(ErrorKind::Corrupt));
}

#[test]
fn a_store_without_blobs_has_no_content_store() {
    let world = World::new();
    world.committed("a", "");
    world.snapshotter.cleanup().expect("cleanup");
    world.snapshotter.remove("a").expect("remove");
    assert!(!world.snapshotter.layout().content_store().exists());
}

// S86, S93, S94, S95, S96, S97
#[test]
fn a_blob_is_set_once_and_has_to_be_there() {
    let world = World::new();
    world.committed("a", "");
    let s = &world.snapshotter;
    assert_eq!(s.get_blob("a").expect("get"), None, "none");
    let missing = Blob { digest: Digest::of_sha256([1; 32]), media_type: String::new(), size_bytes: 0 };
    assert_eq!(kind(s.set_blob("a", &missing)), Some(ErrorKind::NotFound));
    assert_eq!(s.get_blob("a").expect("get"), None);
    let (one, two) = (world.put(b"one"), world.put(b"another"));
    assert_eq!(s.set_blob("a", &Blob { size_bytes: 99, ..one.clone() }).expect("set"), BlobSet::New);
    assert_eq!(s.get_blob("a").expect("get"), Some(one.clone()), "its size is that of the content");
    assert_eq!(s.set_blob("a", &one).expect("set"), BlobSet::Same);
    let refused = s.set_blob("a", &two).expect_err("it has another");
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.to_string().contains("different blob is already set"), "{refused}");
    for nobody in ["b", "a/x"] {
        assert_eq!(kind(s.set_blob(nobody, &one)), Some(ErrorKind::NotFound));
        assert_eq!(kind(s.get_blob(nobody)), Some(ErrorKind::NotFound));
    }
    assert_eq!(s.snapshots_of(&one.digest).expect("snapshots"), ["a"]);
    assert!(s.snapshots_of(&two.digest).expect("snapshots").is_empty());
}

// S88, S89, S90
#[test]
fn content_goes_with_the_last_snapshot_that_refers_to_it() {
    let world = World::new();
    world.committed("a", "");
    world.committed("b", "a");
    world.committed("without", "");
    let s = &world.snapshotter;
    let blob = world.put(b"layer");
    s.set_blob("a", &blob).expect("set");
    s.set_blob("b", &blob).expect("set");
    assert_eq!(s.snapshots_of(&blob.digest).expect("snapshots"), ["a", "b"]);
    assert_eq!(kind(s.remove("a")), Some(ErrorKind::FailedPrecondition), "it has a child");
    assert_eq!(s.get_blob("a").expect("get"), Some(blob.clone()), "a refused removal leaves all as it was");
    s.remove("without").expect("remove");
    s.remove("b").expect("remove");
    assert!(world.has(&blob));
    s.remove("a").expect("remove");
    assert!(!world.has(&blob));
    // Content that is gone already is no trouble.
    world.committed("c", "");
    let blob = world.put(b"layer");
    s.set_blob("c", &blob).expect("set");
    drop(s.content().delete(&blob.digest).expect("delete"));
    s.remove("c").expect("remove");
}

// S89, S91: whichever of two removals is the last.
#[test]
fn two_removals_of_the_last_references_at_once_delete_the_content() {
    let world = World::new();
    for round in 0..30 {
        let blob = world.put(format!("layer {round}").as_bytes());
        for name in ["a", "b"] {
            world.committed(name, "");
            world.snapshotter.set_blob(name, &blob).expect("set");
        }
        std::thread::scope(|threads| {
            for name in ["a", "b"] {
                threads.spawn(|| world.snapshotter.remove(name).expect("remove"));
            }
        });
        assert!(!world.has(&blob));
    }
}

/// However removal, putting and setting fall: what a row names is there.
#[test]
fn a_snapshot_never_refers_to_content_that_is_just_being_deleted() {
    let world = World::new();
    let s = &world.snapshotter;
    let bytes = b"shared by all";
    std::thread::scope(|threads| {
        for thread in 0..4 {
            threads.spawn(move || {
                for round in 0..25 {
                    let (key, name) = (format!("k{thread}"), format!("n{thread}-{round}"));
                    s.prepare(&key, None, Labels::new(), &()).expect("prepare");
                    s.commit(&name, &key, Labels::new(), None, &()).expect("commit");
                    let blob = loop {
                        let reference = format!("put-{thread}");
                        let mut reader = &bytes[..];
                        let put = content::put(s.content(), &reference, &Expected::default(), &mut reader);
                        let info = put.unwrap_or_else(|e| panic!("{e}"));
                        let media_type = String::new();
                        let blob = Blob { digest: info.digest, media_type, size_bytes: info.size_bytes };
                        match s.set_blob(&name, &blob) {
                            Ok(_) => break blob,
                            // It went with somebody's last reference: put it there again.
                            Err(e) if e.kind() == ErrorKind::NotFound => {}
                            Err(e) => panic!("{e}"),
                        }
                    };
                    assert!(s.content().info(&blob.digest).is_ok(), "what a row names is there");
                    s.remove(&name).expect("remove");
                }
            });
        }
    });
    let mut left = 0;
    let listed = s.content().list(&mut |_| {
        left += 1;
        Ok(())
    });
    listed.expect("list");
    assert!(left <= 1, "one that was put there and never set");
}

// S92
#[test]
fn usage_includes_the_blob_and_is_told_without_it_if_that_cannot_be_looked_at() {
    let world = World::new();
    let s = &world.snapshotter;
    world.committed("a", "");
    let inner = s.usage("a", &()).expect("usage");
    let (same, none) = s.usage_with_blob("a", &()).expect("usage");
    assert!(same == inner && none.is_none());
    let blob = world.put(&[7; 1234]);
    s.set_blob("a", &blob).expect("set");
    let (with, none) = s.usage_with_blob("a", &()).expect("usage");
    assert!(none.is_none());
    assert_eq!((with.size_bytes, with.inodes), (inner.size_bytes + 1234, inner.inodes + 1));
    assert_eq!(s.usage("a", &()).expect("usage"), inner);
    drop(s.content().delete(&blob.digest).expect("delete"));
    let (without, failed) = s.usage_with_blob("a", &()).expect("usage");
    assert_eq!(without, inner);
    assert_eq!(failed.map(|e| e.kind()), Some(ErrorKind::NotFound));
    assert_eq!(kind(s.usage_with_blob("nobody", &())), Some(ErrorKind::NotFound));
}

// S100, S102
#[test]
fn a_blob_is_shown_and_survives_a_commit() {
    let world = World::new();
    let s = &world.snapshotter;
    let blob = world.put(b"layer");
    s.prepare("key", None, Labels::new(), &()).expect("prepare");
    s.set_blob("key", &blob).expect("set");
    s.commit("name", "key", Labels::new(), None, &()).expect("commit");
    assert_eq!(s.get_blob("name").expect("get"), Some(blob.clone()));
    let shown = s.stat("name").expect("stat").labels;
    assert_eq!(shown.get(BLOB_LABEL).map(String::as_str), Some(blob.digest.as_str()));
    let filter = format!("labels.\"{BLOB_LABEL}\"==\"{}\"", blob.digest);
    let found = s.list(&Filters::parse_all(&[filter]).expect("a filter")).expect("list");
    assert_eq!(found.len(), 1);
}

/// A store whose deletions fail while somebody wants it.
#[derive(Debug)]
struct Failing {
    inner: OciLayout,
    fails: AtomicBool,
}

impl ContentStore for Failing {
    fn info(&self, digest: &Digest) -> Result<ContentInfo> {
        self.inner.info(digest)
    }
    fn open(&self, digest: &Digest) -> Result<Box<dyn Content>> {
        self.inner.open(digest)
    }
    fn delete(&self, digest: &Digest) -> Result<Freed> {
        match self.fails.load(Ordering::SeqCst) {
            true => {
                Err(Error::new(ErrorKind::Unavailable, "delete blob", digest.as_str(), "as a test wants"))
            }
            false => self.inner.delete(digest),
        }
    }
    fn list(&self, each: &mut dyn FnMut(ContentInfo) -> Result<()>) -> Result<()> {
        self.inner.list(each)
    }
    fn ingest(&self, reference: &str, expected: &Expected) -> Result<Begun> {
        self.inner.ingest(reference, expected)
    }
    fn ingests(&self) -> Result<Vec<IngestStatus>> {
        self.inner.ingests()
    }
    fn abort(&self, reference: &str) -> Result<()> {
        self.inner.abort(reference)
    }
}

fn failing(path: PathBuf) -> Arc<Failing> {
    Arc::new(Failing { inner: OciLayout::new(path), fails: AtomicBool::new(true) })
}

// S89, S101: the hook of a removal runs again until it succeeds.
#[test]
fn a_deletion_that_fails_is_made_again_at_the_next_open_or_cleanup() {
    let temp = TempDir::new();
    let store = failing(temp.path().join("content"));
    for by_open in [true, false] {
        let mut world = World::with(|settings| settings.content = Some(store.clone()));
        world.committed("a", "");
        let blob = world.put(b"layer");
        world.snapshotter.set_blob("a", &blob).expect("set");
        store.fails.store(true, Ordering::SeqCst);
        world.snapshotter.remove("a").expect("the snapshot is gone");
        assert_eq!(kind(world.snapshotter.stat("a")), Some(ErrorKind::NotFound));
        assert!(world.has(&blob));
        world = world.reopen();
        assert!(world.has(&blob), "it fails still");
        store.fails.store(false, Ordering::SeqCst);
        if by_open {
            world = world.reopen();
        } else {
            world.snapshotter.cleanup().expect("cleanup");
        }
        assert!(!world.has(&blob));
        assert!(!world.snapshotter.layout().content_store().exists(), "the store is where it was said to be");
    }
}

#[test]
fn content_that_somebody_refers_to_again_is_not_deleted_later() {
    let temp = TempDir::new();
    let store = failing(temp.path().join("content"));
    let mut world = World::with(|settings| settings.content = Some(store.clone()));
    for name in ["a", "b"] {
        world.committed(name, "");
    }
    let blob = world.put(b"layer");
    world.snapshotter.set_blob("a", &blob).expect("set");
    world.snapshotter.remove("a").expect("remove");
    world.snapshotter.set_blob("b", &blob).expect("set");
    store.fails.store(false, Ordering::SeqCst);
    world = world.reopen();
    world.snapshotter.cleanup().expect("cleanup");
    assert!(world.has(&blob));
    world.snapshotter.remove("b").expect("remove");
    assert!(!world.has(&blob));
}

/// The store of others: never swept.
#[test]
fn a_cleanup_leaves_a_store_alone_that_does_not_say_what_is_unused() {
    let temp = TempDir::new();
    let store = failing(temp.path().join("content"));
    let world = World::with(|settings| settings.content = Some(store.clone()));
    let blob = world.put(b"somebody's");
    age(&temp.path().join("content/blobs/sha256").join(blob.digest.sha256_hex().expect("sha256")));
    let report = world.snapshotter.cleanup().expect("cleanup");
    assert_eq!((report.deleted_blobs, report.deleted_ingests), (0, 0));
    assert!(world.has(&blob));
}

#[test]
fn a_cleanup_deletes_old_blobs_that_nothing_names() {
    let world = World::new();
    let s = &world.snapshotter;
    world.committed("a", "");
    let other = {
        let mut settings = world.settings.clone();
        settings.realm = Realm::named("other").expect("a realm");
        Snapshotter::open(settings).expect("open")
    };
    other.prepare("theirs", None, Labels::new(), &()).expect("prepare");
    let [set, theirs, config, manifest, lonely, fresh] =
        ["set", "theirs", "config", "manifest", "lonely", "fresh"].map(|text| world.put(text.as_bytes()));
    s.set_blob("a", &set).expect("set");
    other.set_blob("theirs", &theirs).expect("set");
    assert!(s.snapshots_of(&theirs.digest).expect("snapshots").is_empty(), "of another realm");
    let labels =
        [(0, &config), (1, &manifest)].map(|(n, b)| (IMAGE_LABELS[n].to_owned(), b.digest.to_string()));
    s.update("a", &Labels::from(labels), &[]).expect("labels");
    for old in [&set, &theirs, &config, &manifest, &lonely] {
        world.age(old);
    }
    let started =
        s.content().ingest("started", &Expected::new(&Digest::of_sha256([0; 32]), 9)).expect("begin");
    let Begun::Ingest(mut started) = started else { panic!("it is not there") };
    std::io::Write::write_all(&mut started, b"1234").expect("write");
    drop(started);
    for dir in std::fs::read_dir(s.layout().content_store().join("ingest")).expect("list") {
        age(&dir.expect("an entry").path().join("data"));
    }
    let report = s.cleanup().expect("cleanup");
    assert_eq!((report.deleted_blobs, report.deleted_ingests, report.freed_content_bytes), (1, 1, 10));
    assert_eq!(report.failed, []);
    for (blob, kept) in
        [(&set, true), (&theirs, true), (&config, true), (&manifest, true), (&lonely, false), (&fresh, true)]
    {
        assert_eq!(world.has(blob), kept, "{}", blob.size_bytes);
    }
    // Once the snapshot is gone, so is what its labels named.
    other.remove("theirs").expect("remove");
    s.remove("a").expect("remove");
    assert!(!world.has(&set) && !world.has(&theirs) && world.has(&config));
    assert_eq!(s.cleanup().expect("cleanup").deleted_blobs, 2);
    assert_eq!(s.cleanup().expect("cleanup").deleted_blobs, 0);
}

/// Reads and writes that this thread has asked the system for.
fn requests_of_this_thread() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("read");
    let counts = io.lines().filter_map(|line| line.strip_prefix("syscr: ").or(line.strip_prefix("syscw: ")));
    counts.map(|count| count.parse::<u64>().expect("a number")).sum()
}

#[test]
fn opening_reads_no_blob() {
    let mut world = World::new();
    for n in 0..300 {
        let name = format!("n{n}");
        world.committed(&name, "");
        let blob = world.put(name.as_bytes());
        world.snapshotter.set_blob(&name, &blob).expect("set");
    }
    let before = requests_of_this_thread();
    world = world.reopen();
    let requests = requests_of_this_thread() - before;
    assert!(requests < 100, "{requests}");
    assert_eq!(world.snapshotter.list(&Filters::everything()).expect("list").len(), 300);
    assert!(world.temp.path().exists());
}

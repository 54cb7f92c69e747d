//! The content store: a blob is whole or not there, whoever is killed when, and whatever lies about.

use plywood::content::{self, Begun, ContentStore, Descriptor, Expected, Ingest, OciLayout, REF_NAME};
use plywood::error::{Error, ErrorKind, Result};
use plywood::store::Digest;
use plywood::types::Timestamp;
use plywood_fuse::testing::TempDir;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

struct World {
    temp: TempDir,
    store: OciLayout,
}

impl World {
    fn new() -> Self {
        let temp = TempDir::new();
        let store = OciLayout::new(temp.path().join("content"));
        Self { temp, store }
    }

    fn put(&self, bytes: &[u8]) -> Digest {
        let mut reader = bytes;
        let expected = Expected::new(&digest(bytes), bytes.len() as u64);
        content::put(&self.store, "put", &expected, &mut reader).expect("it can be put there").digest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.path("blobs/sha256").join(digest.sha256_hex().expect("sha256"))
    }

    fn age(&self, path: &Path) {
        let file = std::fs::File::open(path).expect("it is there");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000)).expect("touch");
    }
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = plywood::compress::Hasher::new();
    hasher.update(bytes);
    hasher.finish().expect("digest").0
}

fn ingest(store: &OciLayout, reference: &str, expected: &Expected) -> Box<dyn Ingest> {
    match store.ingest(reference, expected).expect("it begins") {
        Begun::Ingest(ingest) => ingest,
        Begun::There(info) => panic!("it is there: {info:?}"),
    }
}

fn read(store: &OciLayout, digest: &Digest) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    store.open(digest)?.read_to_end(&mut bytes).expect("read");
    Ok(bytes)
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

fn all(store: &OciLayout) -> Vec<Digest> {
    let mut all = Vec::new();
    let listed = store.list(&mut |info| {
        all.push(info.digest);
        Ok(())
    });
    listed.expect("list");
    all.sort();
    all
}

#[test]
fn nothing_is_made_before_the_first_blob() {
    let world = World::new();
    let none = digest(b"none");
    assert_eq!(kind(world.store.info(&none)), Some(ErrorKind::NotFound));
    assert_eq!(kind(world.store.open(&none)), Some(ErrorKind::NotFound));
    assert_eq!(kind(world.store.delete(&none)), Some(ErrorKind::NotFound));
    assert_eq!(kind(world.store.abort("x")), Some(ErrorKind::NotFound));
    assert!(all(&world.store).is_empty());
    assert!(world.store.ingests().expect("list").is_empty());
    assert!(world.store.manifests().expect("index").is_empty());
    assert!(world.store.unused_since(Timestamp::now()).expect("unused").is_empty());
    assert_eq!(world.store.sweep_ingests(Timestamp::now()).expect("sweep").count, 0);
    assert!(!world.store.path().exists());
}

#[test]
fn a_blob_is_put_there_read_listed_and_deleted() {
    let world = World::new();
    let (a, b) = (world.put(b"hello"), world.put(b""));
    assert_eq!(a, digest(b"hello"));
    assert_eq!(world.store.info(&a).expect("info").size_bytes, 5);
    assert_eq!(read(&world.store, &a).expect("open"), b"hello");
    assert_eq!(read(&world.store, &b).expect("open"), b"");
    let mut both = vec![a.clone(), b.clone()];
    both.sort();
    assert_eq!(all(&world.store), both);
    let mut content = world.store.open_sized(&a, 5).expect("its size is right");
    content.seek(SeekFrom::Start(3)).expect("seek");
    let mut two = [0; 2];
    assert_eq!(content.read_at(&mut two, 1).expect("read"), 2);
    assert_eq!(&two, b"el");
    content.read_exact(&mut two).expect("read");
    assert_eq!(&two, b"lo", "it stood where it was");
    assert_eq!(kind(world.store.open_sized(&a, 6)), Some(ErrorKind::Corrupt));
    drop(world.store.delete(&a).expect("delete"));
    assert_eq!(kind(world.store.delete(&a)), Some(ErrorKind::NotFound));
    assert_eq!(all(&world.store), [b]);
    assert!(world.store.ingests().expect("list").is_empty());
}

#[test]
fn everything_is_for_its_owner_alone() {
    let world = World::new();
    let a = world.put(b"hello");
    let dirs = ["", "blobs", "blobs/sha256", "ingest"].map(|name| (world.path(name), 0o40_700));
    let files = ["oci-layout", "index.json"].map(|name| (world.path(name), 0o100_600));
    for (path, mode) in dirs.into_iter().chain(files).chain([(world.blob(&a), 0o100_600)]) {
        assert_eq!(path.metadata().expect("it is there").mode(), mode, "{}", path.display());
    }
    std::fs::set_permissions(world.store.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    world.store.info(&a).expect("info");
    assert_eq!(world.store.path().metadata().expect("it is there").mode() & 0o777, 0o700);
}

#[test]
fn only_sha256_is_kept() {
    let world = World::new();
    for text in [format!("sha512:{}", "0".repeat(128)), "x:00".to_owned()] {
        let other = Digest::parse(&text).expect("a digest");
        let unsupported = Some(ErrorKind::Unsupported);
        assert_eq!(kind(world.store.info(&other)), unsupported);
        assert_eq!(kind(world.store.open(&other)), unsupported);
        assert_eq!(kind(world.store.delete(&other)), unsupported);
        assert_eq!(kind(world.store.ingest("x", &Expected::new(&other, 0))), unsupported);
    }
}

#[test]
fn what_is_there_already_is_not_written_again_and_counts_as_new() {
    let world = World::new();
    let a = world.put(b"hello");
    world.age(&world.blob(&a));
    let inode = world.blob(&a).metadata().expect("it is there").ino();
    assert!(world.store.info(&a).expect("info").updated.secs <= 1_000_000);
    let Ok(Begun::There(info)) = world.store.ingest("again", &Expected::new(&a, 5)) else {
        panic!("it is there")
    };
    assert!(info.updated.secs > 1_000_000);
    assert!(world.store.info(&a).expect("info").updated.secs > 1_000_000);
    // Nobody knew what it would be.
    let mut again = ingest(&world.store, "unknown", &Expected::default());
    again.write_all(b"hello").expect("write");
    assert_eq!(again.commit().expect("commit").digest, a);
    assert_eq!(world.blob(&a).metadata().expect("it is there").ino(), inode);
    assert!(world.store.ingests().expect("list").is_empty());
}

#[test]
fn a_damaged_blob_is_replaced() {
    let world = World::new();
    let a = world.put(b"hello");
    std::fs::write(world.blob(&a), b"he").expect("damage");
    world.put(b"hello");
    assert_eq!(read(&world.store, &a).expect("open"), b"hello");
}

#[test]
fn an_attempt_goes_on_where_the_one_before_ended() {
    let world = World::new();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let expected = Expected::new(&digest(&bytes), bytes.len() as u64);
    let mut first = ingest(&world.store, "layer", &expected);
    first.write_all(&bytes[..1_000_000]).expect("write");
    drop(first);
    let status = world.store.ingests().expect("list");
    assert_eq!((status.len(), &*status[0].reference), (1, "layer"));
    assert_eq!((status[0].offset_bytes, status[0].is_busy), (1_000_000, false));
    let mut second = ingest(&world.store, "layer", &expected);
    assert_eq!(second.offset_bytes(), 1_000_000);
    second.write_all(&bytes[1_000_000..2_000_000]).expect("write");
    let early = second.commit().expect_err("bytes are missing");
    assert_eq!(early.kind(), ErrorKind::FailedPrecondition);
    assert!(all(&world.store).is_empty());
    let mut third = ingest(&world.store, "layer", &expected);
    assert_eq!(third.offset_bytes(), 2_000_000);
    third.write_all(&bytes[2_000_000..]).expect("write");
    let info = third.commit().expect("commit");
    assert_eq!((Some(info.digest.clone()), info.size_bytes), (expected.digest, 3_000_000));
    assert!(read(&world.store, &info.digest).expect("open") == bytes);
    assert!(world.store.ingests().expect("list").is_empty());
}

#[test]
fn without_a_digest_an_attempt_begins_anew() {
    let world = World::new();
    let mut first = ingest(&world.store, "stdin", &Expected::default());
    first.write_all(b"what nobody can tell from what comes").expect("write");
    drop(first);
    let mut second = ingest(&world.store, "stdin", &Expected::default());
    assert_eq!(second.offset_bytes(), 0);
    second.write_all(b"short").expect("write");
    assert_eq!(second.commit().expect("commit").digest, digest(b"short"));
}

#[test]
fn what_is_not_as_expected_is_refused_and_thrown_away() {
    let world = World::new();
    let expected = Expected::new(&digest(b"hello"), 5);
    for wrong in [&b"jello"[..], b"hello, world"] {
        let mut writing = ingest(&world.store, "wrong", &expected);
        writing.write_all(wrong).expect("write");
        assert_eq!(kind(writing.commit()), Some(ErrorKind::Corrupt), "{wrong:?}");
        assert!(world.store.ingests().expect("list").is_empty());
        assert!(all(&world.store).is_empty());
    }
    // More than there can be was left by somebody: not gone on with.
    let mut writing =
        ingest(&world.store, "wrong", &Expected { digest: expected.digest.clone(), size_bytes: None });
    writing.write_all(b"much too long").expect("write");
    drop(writing);
    assert_eq!(ingest(&world.store, "wrong", &expected).offset_bytes(), 0);
}

#[test]
fn one_at_a_time_writes_a_reference() {
    let world = World::new();
    let expected = Expected::default();
    let first = ingest(&world.store, "a", &expected);
    assert_eq!(kind(world.store.ingest("a", &expected)), Some(ErrorKind::Busy));
    assert_eq!(kind(world.store.abort("a")), Some(ErrorKind::Busy));
    assert!(world.store.ingests().expect("list")[0].is_busy);
    drop(ingest(&world.store, "b", &expected));
    first.abort().expect("abort");
    world.store.abort("b").expect("abort");
    assert!(world.store.ingests().expect("list").is_empty());
    drop(ingest(&world.store, "a", &expected));
}

#[test]
fn many_threads_put_the_same_blobs_under_the_same_names() {
    let world = World::new();
    let blobs: Vec<Vec<u8>> = (0..4u8).map(|n| vec![n; 100_000]).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, blobs) = (&world.store, &blobs);
            scope.spawn(move || {
                for round in 0..40 {
                    let bytes = &blobs[(thread + round) % blobs.len()];
                    let reference = format!("ref-{}", round % 3);
                    let expected = Expected::new(&digest(bytes), bytes.len() as u64);
                    let done = content::put(store, &reference, &expected, &mut &bytes[..]);
                    assert!(matches!(kind(done), None | Some(ErrorKind::Busy)));
                    if round % 5 == 0 {
                        let _ = store.delete(&digest(bytes));
                    }
                    for blob in blobs {
                        if let Ok(there) = read(store, &digest(blob)) {
                            assert!(there == *blob, "a blob that is there is whole");
                        }
                    }
                }
            });
        }
    });
    for bytes in &blobs {
        world.put(bytes);
    }
    assert_eq!(all(&world.store).len(), 4);
    assert_eq!(world.store.ingests().expect("list").iter().filter(|i| i.is_busy).count(), 0);
}

#[test]
fn names_of_references_are_checked() {
    let world = World::new();
    let long = "x".repeat(4097);
    for bad in ["", &long] {
        assert_eq!(kind(world.store.ingest(bad, &Expected::default())), Some(ErrorKind::InvalidArgument));
        assert_eq!(kind(world.store.abort(bad)), Some(ErrorKind::InvalidArgument));
    }
    for odd in ["../../x", "/etc/passwd", "a\nb", "layer-sha256:00", &long[1..]] {
        drop(ingest(&world.store, odd, &Expected::default()));
    }
    let mut names: Vec<String> =
        world.store.ingests().expect("list").into_iter().map(|i| i.reference).collect();
    names.sort();
    assert_eq!(names.len(), 5);
    assert!(names.contains(&"../../x".to_owned()));
    assert!(!world.temp.path().join("x").exists());
}

#[test]
fn nothing_is_reached_through_a_symlink_or_another_kind_of_file() {
    let world = World::new();
    let a = world.put(b"hello");
    let path = world.blob(&a);
    let outside = world.temp.path().join("outside");
    std::fs::write(&outside, b"hello").expect("write");
    std::fs::remove_file(&path).expect("remove");
    symlink(&outside, &path).expect("symlink");
    assert_eq!(kind(world.store.open(&a)), Some(ErrorKind::Corrupt));
    assert_eq!(kind(world.store.info(&a)), Some(ErrorKind::NotFound));
    assert!(all(&world.store).is_empty());
    std::fs::remove_file(&path).expect("remove");
    let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    assert_eq!(kind(world.store.open(&a)), Some(ErrorKind::Corrupt), "and nobody waits");
    std::fs::remove_file(&path).expect("remove");
    // A directory in its place.
    std::fs::rename(world.path("blobs"), world.temp.path().join("blobs")).expect("rename");
    symlink(world.temp.path().join("blobs"), world.path("blobs")).expect("symlink");
    assert_eq!(kind(world.store.info(&a)), Some(ErrorKind::Corrupt));
    std::fs::remove_file(world.path("index.json")).expect("remove");
    symlink(&outside, world.path("index.json")).expect("symlink");
    assert_eq!(kind(world.store.manifests()), Some(ErrorKind::Corrupt));
    assert_eq!(std::fs::read(&outside).expect("read"), b"hello");
}

#[test]
fn a_full_disk_is_no_space_and_what_was_written_can_be_gone_on_with() {
    let world = World::new();
    let bytes = [7; 100];
    let expected = Expected::new(&digest(&bytes), 100);
    let mut writing = ingest(&world.store, "full", &expected);
    writing.write_all(&bytes[..50]).expect("write");
    plywood::fail::arm("i.mid_write=error:28");
    let failed = writing.write_all(&bytes[50..60]).expect_err("it is full");
    assert_eq!(Error::io("write", "", failed).kind(), ErrorKind::NoSpace);
    plywood::fail::arm("");
    drop(writing);
    let mut writing = ingest(&world.store, "full", &expected);
    let offset = usize::try_from(writing.offset_bytes()).expect("small");
    assert!(offset >= 50);
    writing.write_all(&bytes[offset..]).expect("write");
    plywood::fail::arm("i.after_sync=error:122");
    assert_eq!(kind(writing.commit()), Some(ErrorKind::NoSpace));
    plywood::fail::arm("");
    assert!(all(&world.store).is_empty());
    let writing = ingest(&world.store, "full", &expected);
    assert_eq!(writing.offset_bytes(), 100);
    writing.commit().expect("commit");
}

const STEPS: &[&str] = &[
    "x.after_write",
    "x.after_write@2",
    "x.after_rename",
    "x.after_rename@2",
    "i.after_mkdir",
    "i.after_reference",
    "i.after_create",
    "i.mid_write",
    "i.mid_write@3",
    "i.after_sync",
    "i.after_rename",
    "i.before_forget",
];

const STORE: &str = "PLYWOOD_TEST_CONTENT";

fn killed_bytes() -> Vec<u8> {
    (0..1_000_000u32).map(|i| (i % 249) as u8).collect()
}

fn put_in_pieces(store: &OciLayout) -> Result<Digest> {
    let bytes = killed_bytes();
    let expected = Expected::new(&digest(&bytes), bytes.len() as u64);
    let mut writing = match store.ingest("killed", &expected)? {
        Begun::There(info) => return Ok(info.digest),
        Begun::Ingest(writing) => writing,
    };
    let offset = usize::try_from(writing.offset_bytes()).expect("small");
    for piece in bytes[offset..].chunks(100_000) {
        writing.write_all(piece).map_err(|e| Error::io("write", "", e))?;
    }
    Ok(writing.commit()?.digest)
}

/// The process that dies: only started by the test below, and by itself no test.
#[test]
fn the_process_that_dies() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let store = OciLayout::new(PathBuf::from(store));
    put_in_pieces(&store).unwrap_or_else(|e| panic!("{e}"));
    panic!("no fail point was met");
}

#[test]
fn killed_at_any_step_a_blob_is_whole_or_not_there_and_the_next_attempt_succeeds() {
    for step in STEPS {
        let world = World::new();
        let (name, times) = step.split_once('@').unwrap_or((step, "1"));
        let mut child = Command::new(std::env::current_exe().expect("a running program has a path"));
        child.args(["--exact", "the_process_that_dies", "--nocapture", "--test-threads=1"]);
        child.env(STORE, world.store.path()).env("PLYWOOD_FAIL", format!("{name}=exit@{times}"));
        let done = child.output().expect("the program starts itself");
        assert_eq!(done.status.code(), Some(137), "{step}: {}", String::from_utf8_lossy(&done.stderr));
        let there = all(&world.store);
        assert!(there.len() <= 1, "{step}");
        for digest in &there {
            assert!(read(&world.store, digest).expect("open") == killed_bytes(), "{step}: it is whole");
        }
        for ingest in world.store.ingests().expect("list") {
            assert!(!ingest.is_busy, "{step}: the lock went with its holder");
        }
        let digest = put_in_pieces(&world.store).unwrap_or_else(|e| panic!("{step}: {e}"));
        assert!(read(&world.store, &digest).expect("open") == killed_bytes(), "{step}");
        let old = Timestamp { secs: i64::MAX, nanos: 0 };
        world.store.sweep_ingests(old).unwrap_or_else(|e| panic!("{step}: {e}"));
        assert!(world.store.ingests().expect("list").is_empty(), "{step}");
        assert_eq!(all(&world.store), [digest]);
    }
}

fn named(name: &str, digest: Digest, size_bytes: u64) -> Descriptor {
    let mut manifest = Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest, size_bytes);
    if !name.is_empty() {
        manifest.annotations.insert(REF_NAME.to_owned(), name.to_owned());
    }
    manifest
}

#[test]
fn the_index_names_each_name_and_each_nameless_digest_once() {
    let world = World::new();
    let (a, b) = (digest(b"a"), digest(b"b"));
    for manifest in
        [named("x", a.clone(), 1), named("", a.clone(), 1), named("x", b.clone(), 1), named("", a.clone(), 1)]
    {
        world.store.put_manifest(manifest).expect("put");
    }
    let listed = world.store.manifests().expect("index");
    assert_eq!(listed, [named("x", b.clone(), 1), named("", a.clone(), 1)]);
    world.store.put_manifest(named("y", b.clone(), 1)).expect("put");
    assert_eq!(world.store.remove_manifests(|m| m.digest == b).expect("remove"), 2);
    assert_eq!(world.store.remove_manifests(|m| m.digest == b).expect("remove"), 0);
    assert_eq!(world.store.manifests().expect("index"), [named("", a, 1)]);
    let text = std::fs::read_to_string(world.path("index.json")).expect("read");
    assert!(text.contains("\"schemaVersion\":2"), "{text}");
}

#[test]
fn what_others_wrote_into_the_index_is_kept() {
    let world = World::new();
    world.put(b"x");
    let written = format!(
        "{{\"schemaVersion\":2,\"annotations\":{{\"k\":\"v\"}},\"manifests\":[{{\"mediaType\":\"m\",\"digest\":\"{}\",\
         \"size\":7,\"platform\":{{\"os\":\"linux\"}}}}]}}",
        digest(b"a")
    );
    std::fs::write(world.path("index.json"), written).expect("write");
    world.store.put_manifest(named("x", digest(b"b"), 1)).expect("put");
    let text = std::fs::read_to_string(world.path("index.json")).expect("read");
    let json: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(json["annotations"]["k"], "v");
    assert_eq!(json["manifests"][0]["platform"]["os"], "linux");
    assert_eq!(json["manifests"].as_array().map(Vec::len), Some(2));
    for bad in ["", "[]", "{\"manifests\":[{\"digest\":\"sha256:../../x\",\"size\":1}]}", "{\"manifests\":7}"]
    {
        std::fs::write(world.path("index.json"), bad).expect("write");
        assert_eq!(kind(world.store.manifests()), Some(ErrorKind::Corrupt), "{bad}");
        assert_eq!(kind(world.store.put_manifest(named("x", digest(b"b"), 1))), Some(ErrorKind::Corrupt));
        assert_eq!(std::fs::read_to_string(world.path("index.json")).expect("read"), bad, "it is as before");
    }
    std::fs::File::create(world.path("index.json")).and_then(|f| f.set_len(9 << 20)).expect("write");
    assert_eq!(kind(world.store.manifests()), Some(ErrorKind::Corrupt), "too large");
}

#[test]
fn many_change_the_index_at_once_and_nothing_is_lost() {
    let world = World::new();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &world.store;
            scope.spawn(move || {
                for n in 0..10 {
                    let name = format!("{thread}-{n}");
                    store.put_manifest(named(&name, digest(name.as_bytes()), 1)).expect("put");
                }
            });
        }
    });
    assert_eq!(world.store.manifests().expect("index").len(), 80);
}

#[test]
fn old_blobs_that_the_index_does_not_lead_to_are_unused() {
    let world = World::new();
    let (config, layer, lonely, fresh) =
        (world.put(b"{}"), world.put(b"layer"), world.put(b"lonely"), world.put(b"fresh"));
    let manifest = format!(
        "{{\"config\":{{\"digest\":\"{config}\",\"size\":2}},\"layers\":[{{\"digest\":\"{layer}\",\"size\":5}},{{\"digest\":7}}]}}"
    );
    let manifest = world.put(manifest.as_bytes());
    // An index that names itself, too.
    let index = world.put(format!("{{\"manifests\":[{{\"digest\":\"{manifest}\"}}]}}").as_bytes());
    world.store.put_manifest(named("x", index.clone(), 1)).expect("put");
    for old in [&config, &layer, &lonely, &manifest, &index] {
        world.age(&world.blob(old));
    }
    let before = Timestamp { secs: 2_000_000, nanos: 0 };
    assert_eq!(world.store.unused_since(before).expect("unused"), std::slice::from_ref(&lonely));
    world.store.remove_manifests(|_| true).expect("remove");
    assert_eq!(world.store.unused_since(before).expect("unused").len(), 5);
    // Asked for meanwhile.
    assert!(matches!(world.store.ingest("x", &Expected::new(&layer, 5)), Ok(Begun::There(_))));
    assert!(world.store.delete_unused(&layer, before).expect("delete").is_none());
    assert!(world.store.delete_unused(&fresh, before).expect("delete").is_none());
    assert!(world.store.delete_unused(&digest(b"none"), before).expect("delete").is_none());
    let (info, freed) = world.store.delete_unused(&lonely, before).expect("delete").expect("it is unused");
    assert_eq!((info.digest, info.size_bytes), (lonely.clone(), 6));
    drop(freed);
    assert_eq!(kind(world.store.info(&lonely)), Some(ErrorKind::NotFound));
}

#[test]
fn old_ingests_go_unless_somebody_writes_them() {
    let world = World::new();
    let expected = Expected::new(&digest(b"x"), 1000);
    let mut busy = ingest(&world.store, "busy", &expected);
    busy.write_all(b"12345").expect("write");
    for name in ["old", "fresh"] {
        ingest(&world.store, name, &expected).write_all(b"12345").expect("write");
    }
    for dir in std::fs::read_dir(world.path("ingest")).expect("list") {
        let dir = dir.expect("an entry").path();
        if std::fs::read(dir.join("ref")).expect("read") != b"fresh" {
            world.age(&dir.join("data"));
        }
    }
    let swept = world.store.sweep_ingests(Timestamp { secs: 2_000_000, nanos: 0 }).expect("sweep");
    assert_eq!((swept.count, swept.bytes), (1, 5));
    let mut left: Vec<String> =
        world.store.ingests().expect("list").into_iter().map(|i| i.reference).collect();
    left.sort();
    assert_eq!(left, ["busy", "fresh"]);
    drop(busy);
}

#[test]
fn a_foreign_layout_is_read_and_never_written() {
    let world = World::new();
    let a = world.put(b"hello");
    std::fs::set_permissions(world.store.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    let foreign = OciLayout::open_foreign(world.store.path()).expect("a layout");
    assert_eq!(read(&foreign, &a).expect("open"), b"hello");
    assert_eq!(kind(foreign.ingest("x", &Expected::default())), Some(ErrorKind::FailedPrecondition));
    assert_eq!(kind(foreign.delete(&a)), Some(ErrorKind::FailedPrecondition));
    assert_eq!(kind(foreign.put_manifest(named("x", a.clone(), 1))), Some(ErrorKind::FailedPrecondition));
    assert_eq!(world.store.path().metadata().expect("it is there").mode() & 0o777, 0o755);
    let none = world.temp.path().join("none");
    assert_eq!(kind(OciLayout::open_foreign(&none)), Some(ErrorKind::NotFound));
    std::fs::create_dir(&none).expect("mkdir");
    assert_eq!(kind(OciLayout::open_foreign(&none)), Some(ErrorKind::InvalidArgument));
    for (marker, good) in [
        ("{\"imageLayoutVersion\":\"1.1.0\"}", true),
        ("{\"imageLayoutVersion\":\"2.0\"}", false),
        ("x", false),
    ] {
        std::fs::write(none.join("oci-layout"), marker).expect("write");
        assert_eq!(OciLayout::open_foreign(&none).is_ok(), good, "{marker}");
    }
}

#[test]
fn skopeo_reads_an_image_from_it() {
    let world = World::new();
    let layer = world.put(&[0; 1024]);
    let diff_id = &layer;
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{diff_id}\"]}}}}"
    );
    let config_digest = world.put(config.as_bytes());
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\
         \"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config_digest}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\
         \"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{layer}\",\"size\":1024}}]}}",
        config.len()
    );
    let digest = world.put(manifest.as_bytes());
    world.store.put_manifest(named("test", digest.clone(), manifest.len() as u64)).expect("put");
    let shown = Command::new("skopeo")
        .args(["inspect", "--raw", &format!("oci:{}:test", world.store.path().display())])
        .output()
        .expect("the test needs skopeo");
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    assert_eq!(String::from_utf8_lossy(&shown.stdout), manifest);
    let copy = world.temp.path().join("copy");
    let copied = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "-q", "--preserve-digests"])
        .args([format!("oci:{}:test", world.store.path().display()), format!("oci:{}:copy", copy.display())])
        .output()
        .expect("the test needs skopeo");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let foreign = OciLayout::open_foreign(&copy).expect("a layout");
    assert_eq!(foreign.manifests().expect("index")[0].digest, digest);
    assert_eq!(read(&foreign, &layer).expect("open"), [0; 1024]);
}

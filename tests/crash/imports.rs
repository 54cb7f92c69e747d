//! An import that dies at any point it reaches: what was committed is whole, the rest is garbage that one cleanup clears,
//! and the same import made again succeeds.

use super::*;
use plywood::archive::{Entry, EntryKind, Writer};
use plywood::image::chain::{chain_ids, sha256};
use plywood::image::document::{blob_path, media};
use plywood::image::import::{ImportOptions, Input, import};
use plywood::types::Timestamp;
use serde_json::json;

/// Fail points that an import reaches, how often at least, and for which backends.
const POINTS: &[(&str, u32, &[BackendName])] = &[
    ("i.after_mkdir", 5, &BackendName::ALL),
    ("i.after_reference", 5, &BackendName::ALL),
    ("i.after_create", 5, &BackendName::ALL),
    ("i.mid_write", 5, &BackendName::ALL),
    ("i.after_sync", 5, &BackendName::ALL),
    ("i.after_rename", 5, &BackendName::ALL),
    ("i.before_forget", 5, &BackendName::ALL),
    ("c.after_mkdir", 3, &BackendName::ALL),
    ("c.after_fill", 3, &BackendName::ALL),
    ("c.after_rename", 3, &BackendName::ALL),
    ("c.before_commit", 3, &BackendName::ALL),
    ("c.after_commit", 3, &BackendName::ALL),
    ("c.after_pending", 2, &[BackendName::Native]),
    ("c.mid_copy", 2, &[BackendName::Native]),
    ("c.after_copy", 2, &[BackendName::Native]),
    ("l.after_begin", 3, &BackendName::ALL),
    ("l.before_end", 3, &BackendName::ALL),
    ("m.after_usage", 3, &BackendName::ALL),
    ("m.after_sync", 3, &BackendName::ALL),
    ("m.after_ro", 3, &BackendName::ALL),
    ("m.before_commit", 3, &BackendName::ALL),
    ("m.after_commit", 3, &BackendName::ALL),
    ("b.before_commit", 3, &BackendName::ALL),
    ("u.before_commit", 1, &BackendName::ALL),
];

const STORE: &str = "PLYWOOD_TEST_IMPORT_STORE";
const BACKEND: &str = "PLYWOOD_TEST_IMPORT_BACKEND";
const ARCHIVE: &str = "PLYWOOD_TEST_IMPORT_ARCHIVE";

fn pack(members: &[(&str, EntryKind, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, kind, content) in members {
        let entry = Entry {
            path: path.as_bytes().to_vec(),
            kind: kind.clone(),
            mode: 0o755,
            uid: 0,
            gid: 0,
            size_bytes: content.len() as u64,
            mtime: Timestamp::default(),
            atime: None,
            xattrs: Vec::new(),
        };
        writer.entry(&entry).expect("a member");
        writer.content(content).expect("its content");
    }
    writer.finish().expect("an end")
}

/// An archive of an image, and the names of its snapshots.
fn image() -> (Vec<u8>, Vec<String>) {
    let (dir, file) = (EntryKind::Dir, EntryKind::File);
    let layers = [
        pack(&[("a/", dir.clone(), b""), ("a/f", file.clone(), &[1; 9000]), ("a/g", file.clone(), b"2")]),
        // It needs what is below.
        pack(&[("linked", EntryKind::HardLink(b"a/f".to_vec()), b""), ("a/.wh.g", file.clone(), b"")]),
        pack(&[("b/", dir, b""), ("b/h", file, &[3; 70_000])]),
    ];
    let diff_ids: Vec<_> = layers.iter().map(|layer| sha256(layer)).collect();
    let ids: Vec<&str> = diff_ids.iter().map(|id| id.as_str()).collect();
    let of = |bytes: &[u8], kind: &str| json!({ "mediaType": kind, "digest": sha256(bytes).as_str(), "size": bytes.len() });
    let config =
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let described: Vec<_> = layers.iter().map(|l| of(l, "application/vnd.oci.image.layer.v1.tar")).collect();
    let manifest = json!({ "schemaVersion": 2, "config": of(&config, media::CONFIG), "layers": described });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({ "schemaVersion": 2, "manifests": [of(&manifest, media::MANIFEST)] }).to_string();
    let mut blobs: Vec<(String, &[u8])> = vec![("index.json".to_owned(), index.as_bytes())];
    for bytes in layers.iter().chain([&config, &manifest]) {
        blobs.push((blob_path(&sha256(bytes)), bytes));
    }
    let members: Vec<_> = blobs.iter().map(|(path, bytes)| (&path[..], EntryKind::File, *bytes)).collect();
    (pack(&members), chain_ids(&diff_ids).iter().map(ToString::to_string).collect())
}

fn take(snapshotter: &Snapshotter, archive: &Path) -> plywood::error::Result<String> {
    let input = Input::Path(archive.to_owned());
    import(snapshotter, input, &ImportOptions::default(), &()).map(|imported| imported.name)
}

/// The process that dies: only started by the tests below, and by itself no test.
#[test]
fn the_import_that_dies() {
    let (Some(store), Some(archive)) = (std::env::var_os(STORE), std::env::var_os(ARCHIVE)) else { return };
    let backend = std::env::var(BACKEND).ok().and_then(|name| BackendName::named(&name)).expect("a backend");
    let snapshotter = open(backend, Path::new(&store));
    take(&snapshotter, Path::new(&archive)).unwrap_or_else(|e| panic!("{e}"));
    // Whoever counts the times of a point goes too far in the end.
    std::process::exit(42);
}

/// True if the process died at the point.
fn dies(backend: BackendName, store: &Path, archive: &Path, point: &str, time: u32) -> bool {
    let mut child = Command::new(std::env::current_exe().expect("a running program has a path"));
    child.args(["--exact", "imports::the_import_that_dies", "--nocapture", "--test-threads=1"]);
    child.env(STORE, store).env(BACKEND, backend.as_str()).env(ARCHIVE, archive);
    child.env("PLYWOOD_FAIL", format!("{point}=exit@{time}"));
    let done = child.output().expect("the program starts itself");
    let told = String::from_utf8_lossy(&done.stderr);
    match done.status.code() {
        Some(137) => true,
        Some(42) => false,
        other => panic!("{backend} {point} {time}: {other:?}: {told}"),
    }
}

/// Old enough to be swept: what an import leaves there is left alone for a day.
fn make_old(content: &Path) {
    let long_ago = std::time::SystemTime::now() - 2 * plywood::snapshotter::UNUSED_GRACE;
    let mut dirs = vec![content.join("blobs/sha256"), content.join("ingest")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().expect("a type").is_dir();
            let file = std::fs::File::open(entry.path()).expect("open");
            file.set_modified(long_ago).expect("set the time");
            if is_dir {
                dirs.push(entry.path());
            }
        }
    }
}

fn every_point(backend: BackendName) {
    let (bytes, chain) = image();
    let whole = {
        let Some(disk) = Disk::new(backend) else { return };
        let archive = disk.temp.path().join("image.tar");
        std::fs::write(&archive, &bytes).expect("write");
        let snapshotter = open(backend, &disk.store());
        assert_eq!(
            &take(&snapshotter, &archive).unwrap_or_else(|e| panic!("{e}")),
            chain.last().expect("layers")
        );
        let digests: Vec<String> = chain.iter().map(|name| digest(&snapshotter, name)).collect();
        snapshotter.close().expect("close");
        digests
    };
    let mut deaths = 0;
    for (point, least, backends) in POINTS {
        if !backends.contains(&backend) {
            continue;
        }
        let mut times = 0;
        let Some(disk) = Disk::new(backend) else { return };
        let archive = disk.temp.path().join("image.tar");
        std::fs::write(&archive, &bytes).expect("write");
        for time in 1.. {
            let store = disk.store();
            let what = format!("{backend}: import killed at {point}, time {time}");
            if !dies(backend, &store, &archive, point, time) {
                break;
            }
            times += 1;
            let snapshotter = reopen(backend, &store, &what);
            for info in snapshotter.list(&Filters::everything()).unwrap_or_else(|e| panic!("{what}: {e}")) {
                let at = chain.iter().position(|name| *name == info.name);
                let at = at.unwrap_or_else(|| panic!("{what}: {} is left", info.name));
                assert_eq!(digest(&snapshotter, &info.name), whole[at], "{what}: layer {at}");
            }
            // Made again, in the store as it is, or without what is old.
            if time % 2 == 0 {
                make_old(&snapshotter.layout().content_store());
                let cleaned = snapshotter.cleanup().unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!((cleaned.failed, cleaned.deleted), (Vec::new(), 0), "{what}");
                let ingests = snapshotter.content().ingests().unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(ingests.is_empty(), "{what}: {ingests:?}");
            }
            let again = take(&snapshotter, &archive).unwrap_or_else(|e| panic!("{what}: again: {e}"));
            assert_eq!(&again, chain.last().expect("layers"), "{what}");
            for (name, whole) in chain.iter().zip(&whole) {
                assert_eq!(&digest(&snapshotter, name), whole, "{what}: again");
                let blob = snapshotter.get_blob(name).unwrap_or_else(|e| panic!("{what}: {e}"));
                let blob = blob.unwrap_or_else(|| panic!("{what}: {name} has no blob"));
                snapshotter.content().info(&blob.digest).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            // Nothing is left for the next time: children first.
            for name in chain.iter().rev() {
                snapshotter.remove(name).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            make_old(&snapshotter.layout().content_store());
            let cleaned = snapshotter.cleanup().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((cleaned.failed, cleaned.deleted), (Vec::new(), 0), "{what}");
            let listed = snapshotter.content().list(&mut |info| panic!("{what}: {} is left", info.digest));
            listed.unwrap_or_else(|e| panic!("{what}: {e}"));
            snapshotter.close().unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        deaths += times;
        assert!(times >= *least, "{backend}: {point} was reached {times} times only");
    }
    eprintln!("{backend}: {deaths} deaths");
}

#[test]
fn imports_into_fuse_survive_every_point() {
    every_point(BackendName::Fuse);
}

#[test]
fn imports_into_overlay_survive_every_point() {
    every_point(BackendName::Overlay);
}

#[test]
fn imports_into_native_survive_every_point() {
    every_point(BackendName::Native);
}

#[test]
fn imports_into_btrfs_survive_every_point() {
    every_point(BackendName::Btrfs);
}

//! Images in memory, a store to import them into, and what has to hold of it afterwards.

use super::support::{Tar, Tree, in_stack, on_disk};
use plywood::apply::{DirTarget, SameOwner, apply};
use plywood::archive::{Entry, EntryKind, Writer};
use plywood::backend::BackendName;
use plywood::compress::{Compression, Encoder};
use plywood::error::Result;
use plywood::filter::Filters;
use plywood::image::chain::{chain_ids, sha256};
use plywood::image::document::{blob_path, media};
use plywood::image::import::{ImportOptions, Imported, Input, import};
use plywood::snapshotter::{BackendChoice, IMAGE_LABELS, Removal, Repair, Snapshotter, SnapshotterSettings};
use plywood::store::Digest;
use plywood::types::{SnapshotKind, Timestamp};
use plywood_fuse::testing::TempDir;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Cursor, Write};
use std::path::Path;

/// The backends that need neither a mount nor a disk of their own.
pub const BACKENDS: [BackendName; 2] = [BackendName::Fuse, BackendName::Native];

/// The bytes of an archive.
pub fn packed(tar: &Tar) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in &tar.0 {
        writer.entry(entry).expect("a member that can be written");
        writer.content(content).expect("its content");
    }
    writer.finish().expect("an end")
}

/// The same bytes, compressed.
pub fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    if compression == Compression::None {
        return bytes.to_vec();
    }
    let mut encoder = Encoder::new(Vec::new(), compression, None, 1).expect("an encoder");
    encoder.write_all(bytes).expect("compress");
    encoder.finish().expect("compress")
}

/// A layer of an image.
#[derive(Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub media_type: String,
}

impl Layer {
    pub fn new(tar: &Tar, compression: Compression) -> Layer {
        Layer::of(packed(tar), compression)
    }

    pub fn of(tar: Vec<u8>, compression: Compression) -> Layer {
        let blob = compressed(&tar, compression);
        Layer { tar, blob, media_type: compression.media_type().to_owned() }
    }
}

/// An image.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub name: Option<String>,
    pub config: Value,
}

/// A member of an archive of images, or a file of a layout.
#[derive(Clone)]
pub enum Member {
    File(Vec<u8>),
    Symlink(String),
    Dir,
}

pub type Members = Vec<(String, Member)>;

pub fn file(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> (String, Member) {
    (path.into(), Member::File(bytes.into()))
}

pub fn symlink(path: impl Into<String>, text: impl Into<String>) -> (String, Member) {
    (path.into(), Member::Symlink(text.into()))
}

impl Image {
    /// An image for this machine of such layers.
    pub fn new(tars: &[Tar]) -> Image {
        Image::packed_as(tars, &[Compression::Gzip])
    }

    /// The same, whose layers are compressed as the list says, again and again.
    pub fn packed_as(tars: &[Tar], how: &[Compression]) -> Image {
        let layers = tars.iter().zip(how.iter().cycle()).map(|(tar, how)| Layer::new(tar, *how));
        Image::of(layers.collect())
    }

    pub fn of(layers: Vec<Layer>) -> Image {
        let here = plywood::image::document::Platform::here();
        let config = json!({
            "architecture": here.architecture, "os": here.os, "author": "nobody",
            "config": { "Env": ["A=b"], "Cmd": ["/bin/true"] },
            "history": vec![json!({ "created_by": "a test" }); layers.len()],
        });
        Image { layers, name: None, config }
    }

    pub fn named(mut self, name: &str) -> Image {
        self.name = Some(name.to_owned());
        self
    }

    pub fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|layer| sha256(&layer.tar)).collect()
    }

    pub fn chain(&self) -> Vec<String> {
        chain_ids(&self.diff_ids()).iter().map(ToString::to_string).collect()
    }

    /// The name of its top snapshot.
    pub fn top(&self) -> String {
        self.chain().last().expect("a layer").clone()
    }

    pub fn config_bytes(&self) -> Vec<u8> {
        self.config_with(&self.diff_ids())
    }

    pub fn config_with(&self, diff_ids: &[Digest]) -> Vec<u8> {
        let ids: Vec<&str> = diff_ids.iter().map(Digest::as_str).collect();
        let mut config = self.config.clone();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": ids });
        serde_json::to_vec(&config).expect("JSON")
    }

    pub fn manifest_of(&self, config: &[u8]) -> Value {
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| described(&layer.blob, &layer.media_type)).collect();
        json!({
            "schemaVersion": 2, "mediaType": media::MANIFEST,
            "config": described(config, media::CONFIG), "layers": layers,
        })
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.manifest_of(&self.config_bytes())).expect("JSON")
    }

    /// How an index tells of it.
    pub fn listed(&self) -> Value {
        let mut listed = described(&self.manifest_bytes(), media::MANIFEST);
        if let Some(name) = &self.name {
            listed["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        listed
    }

    /// Its blobs where a layout has them.
    pub fn blobs(&self) -> Members {
        self.blobs_with(&self.config_bytes(), &self.manifest_bytes())
    }

    fn blobs_with(&self, config: &[u8], manifest: &[u8]) -> Members {
        let layers = self.layers.iter().map(|layer| blob(&layer.blob));
        layers.chain([blob(config), blob(manifest)]).collect()
    }

    /// An OCI layout.
    pub fn oci(&self) -> Members {
        layout(&[self.listed()], self.blobs())
    }

    /// An OCI layout with this configuration and a manifest that was changed.
    pub fn oci_with(&self, config: &[u8], change: impl FnOnce(&mut Value)) -> Members {
        let mut manifest = self.manifest_of(config);
        change(&mut manifest);
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        layout(&[described(&manifest, media::MANIFEST)], self.blobs_with(config, &manifest))
    }

    /// What `docker save` wrote in former times: layers without compression, each in a directory of its own.
    pub fn docker(&self) -> Members {
        let config = self.config_bytes();
        let hex = |digest: &Digest| digest.sha256_hex().expect("SHA-256").to_owned();
        let config_path = format!("{}.json", hex(&sha256(&config)));
        let (mut members, mut layers) = (Members::new(), Vec::new());
        for (at, layer) in self.layers.iter().enumerate() {
            let id = hex(&sha256(format!("{at}").as_bytes()));
            let path = format!("{id}/layer.tar");
            members.push((format!("{id}/"), Member::Dir));
            members.push(file(format!("{id}/VERSION"), "1.0"));
            members.push(file(format!("{id}/json"), "{}"));
            // A layer that was there is a symlink to it.
            match self.layers[..at].iter().position(|before| before.tar == layer.tar) {
                None => members.push(file(path.clone(), layer.tar.clone())),
                Some(before) => {
                    let before = hex(&sha256(format!("{before}").as_bytes()));
                    members.push(symlink(path.clone(), format!("../{before}/layer.tar")));
                }
            }
            layers.push(path);
        }
        members.push(file(config_path.clone(), config));
        let tags: Vec<&String> = self.name.iter().collect();
        let manifest = json!([{ "Config": config_path, "RepoTags": tags, "Layers": layers }]);
        members.push(file("manifest.json", manifest.to_string()));
        members.push(file("repositories", "{}"));
        members
    }

    /// Its tree, made by applying one layer after the other to a directory.
    pub fn tree(&self) -> Tree {
        let temp = TempDir::new();
        for layer in &self.layers {
            let mut reader = plywood::archive::Reader::new(&layer.tar[..], Default::default());
            let mut target = DirTarget::plain(temp.path(), SameOwner::Keep).expect("a directory");
            apply(&mut reader, &mut target, &()).unwrap_or_else(|e| panic!("{e}"));
        }
        on_disk(temp.path())
    }
}

pub fn described(bytes: &[u8], media_type: &str) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes).as_str(), "size": bytes.len() })
}

pub fn blob(bytes: &[u8]) -> (String, Member) {
    file(blob_path(&sha256(bytes)), bytes)
}

pub fn index(listed: &[Value]) -> Vec<u8> {
    let index = json!({ "schemaVersion": 2, "mediaType": media::INDEX, "manifests": listed });
    serde_json::to_vec(&index).expect("JSON")
}

/// A layout of an index and blobs, each once.
pub fn layout(listed: &[Value], blobs: Members) -> Members {
    let mut members = vec![
        file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        ("blobs/".to_owned(), Member::Dir),
        ("blobs/sha256/".to_owned(), Member::Dir),
    ];
    let mut seen = BTreeSet::new();
    members.extend(blobs.into_iter().filter(|(path, _)| seen.insert(path.clone())));
    members.push(file("index.json", index(listed)));
    members
}

pub fn entry(path: &str, kind: EntryKind, size_bytes: u64) -> Entry {
    let mode = if kind == EntryKind::Dir { 0o755 } else { 0o644 };
    let (path, mtime) = (path.as_bytes().to_vec(), Timestamp::default());
    Entry { path, kind, mode, uid: 0, gid: 0, size_bytes, mtime, atime: None, xattrs: Vec::new() }
}

/// The members as an archive.
pub fn archive(members: &Members) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, member) in members {
        let (kind, bytes) = match member {
            Member::File(bytes) => (EntryKind::File, &bytes[..]),
            Member::Symlink(text) => (EntryKind::Symlink(text.as_bytes().to_vec()), &[][..]),
            Member::Dir => (EntryKind::Dir, &[][..]),
        };
        writer.entry(&entry(path, kind, bytes.len() as u64)).expect("a member that can be written");
        writer.content(bytes).expect("its content");
    }
    writer.finish().expect("an end")
}

/// The members as files below a directory.
pub fn on_a_disk(members: &Members, root: &Path) {
    std::fs::create_dir_all(root).expect("make a directory");
    for (path, member) in members {
        let path = root.join(path);
        match member {
            Member::File(bytes) => std::fs::write(&path, bytes).expect("write"),
            Member::Symlink(text) => std::os::unix::fs::symlink(text, &path).expect("symlink"),
            Member::Dir => std::fs::create_dir_all(&path).expect("make a directory"),
        }
    }
}

/// A store.
pub struct World {
    pub temp: TempDir,
    pub snapshotter: Snapshotter,
    pub backend: BackendName,
}

impl World {
    pub fn new(backend: BackendName) -> World {
        let temp = TempDir::new();
        let mut settings = SnapshotterSettings::new(temp.path().join("store"));
        settings.backend = BackendChoice::Named(backend);
        settings.removal = Removal::Sync;
        let snapshotter = Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"));
        World { temp, snapshotter, backend }
    }

    pub fn stream(&self, bytes: Vec<u8>, options: &ImportOptions) -> Result<Imported> {
        let input = Input::Stream(Box::new(Cursor::new(bytes)), "a stream".to_owned());
        import(&self.snapshotter, input, options, &())
    }

    /// Imports an archive as it would come through a pipe.
    pub fn take(&self, bytes: Vec<u8>) -> Result<Imported> {
        self.stream(bytes, &ImportOptions::default())
    }

    #[track_caller]
    pub fn import(&self, members: &Members) -> Imported {
        self.take(archive(members)).unwrap_or_else(|e| panic!("{}: {e}", self.backend))
    }

    /// What a committed snapshot shows.
    #[track_caller]
    pub fn tree(&self, name: &str) -> Tree {
        let layers = self.snapshotter.layers(name).unwrap_or_else(|e| panic!("{}: {e}", self.backend));
        assert!(layers.upper.is_none());
        in_stack(&layers.lowers)
    }

    /// The names of all snapshots.
    pub fn names(&self) -> BTreeSet<String> {
        let all = self.snapshotter.list(&Filters::everything()).expect("list");
        for info in &all {
            assert_eq!(info.kind, SnapshotKind::Committed, "{}: {} is left", self.backend, info.name);
        }
        all.into_iter().map(|info| info.name).collect()
    }

    /// The blobs that nobody refers to.
    pub fn unused_blobs(&self) -> Vec<Digest> {
        let all = self.snapshotter.list(&Filters::everything()).expect("list");
        let labels =
            all.iter().flat_map(|info| IMAGE_LABELS.iter().filter_map(|label| info.labels.get(*label)));
        let named: BTreeSet<&str> = labels.map(String::as_str).collect();
        let mut unused = Vec::new();
        let listed = self.snapshotter.content().list(&mut |info| {
            if self.snapshotter.snapshots_of(&info.digest)?.is_empty()
                && !named.contains(info.digest.as_str())
            {
                unused.push(info.digest);
            }
            Ok(())
        });
        listed.unwrap_or_else(|e| panic!("{}: {e}", self.backend));
        unused
    }

    /// Whatever was tried: the store is sound, holds no half layer, and there is nothing to clean up.
    #[track_caller]
    pub fn check(&self, what: &str) {
        let what = format!("{}: {what}", self.backend);
        self.names();
        let report = self.snapshotter.check(Repair::No).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(report.findings.is_empty(), "{what}: {:#?}", report.findings);
        let cleaned = self.snapshotter.cleanup().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(cleaned, Default::default(), "{what}: there was something to clean up");
        let ingests = self.snapshotter.content().ingests().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(ingests.is_empty(), "{what}: {ingests:?}");
        let outside: Vec<_> = std::fs::read_dir(self.temp.path()).expect("list").flatten().collect();
        let known = |name: &std::ffi::OsStr| name == "store" || name == "layout" || name == "image.tar";
        assert!(outside.iter().all(|e| known(&e.file_name())), "{what}: {outside:?}");
    }

    /// The same where an import failed: no blob is left that nobody refers to, and snapshots are those of the image.
    #[track_caller]
    pub fn check_failed(&self, what: &str, image: &Image) {
        self.check(what);
        assert_eq!(self.unused_blobs(), [], "{}: {what}", self.backend);
        let chain: BTreeSet<String> = image.chain().into_iter().collect();
        assert!(self.names().is_subset(&chain), "{}: {what}: {:?}", self.backend, self.names());
    }

    /// Removes everything, children first.
    pub fn empty(&self) {
        loop {
            // Layers that are unpacked at once get their numbers in any order: who has children is looked for each time.
            let all = self.snapshotter.list(&Filters::everything()).expect("list");
            let parents: BTreeSet<&str> = all.iter().map(|info| info.parent.as_str()).collect();
            let Some(last) = all.iter().find(|info| !parents.contains(info.name.as_str())) else { break };
            self.snapshotter.remove(&last.name).unwrap_or_else(|e| panic!("{}: {e}", self.backend));
        }
        // Configurations and manifests are for cleanup, when they are old.
        for digest in self.unused_blobs() {
            drop(
                self.snapshotter
                    .content()
                    .delete(&digest)
                    .unwrap_or_else(|e| panic!("{}: {e}", self.backend)),
            );
        }
    }
}

/// A few layers that have something of everything.
pub fn three_layers() -> Vec<Tar> {
    vec![
        Tar::new()
            .dir("etc", 0o755)
            .file("etc/passwd", "root")
            .file("etc/group", "wheel")
            .dir("gone", 0o700)
            .file("gone/f", "x"),
        Tar::new()
            .dir("etc", 0o750)
            .file("etc/passwd", "root and others")
            .mark("etc/.wh.group")
            .mark(".wh.gone"),
        Tar::new()
            .dir("usr", 0o755)
            .dir("usr/bin", 0o755)
            .file("usr/bin/true", vec![7; 20_000])
            .symlink("usr/bin", "bin"),
    ]
}

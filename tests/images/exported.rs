//! Images that go out again.

use super::support::{Tar, assert_same};
use super::world::*;
use plywood::apply::Below;
use plywood::backend::BackendName;
use plywood::compress::Compression;
use plywood::error::ErrorKind;
use plywood::image::chain::sha256;
use plywood::image::export::{ExportOptions, Exported, export};
use plywood::image::import::ImportOptions;
use plywood::image::unpack::Blobs;
use plywood::types::Labels;
use std::io::Cursor;

impl World {
    #[track_caller]
    fn export(&self, name: &str, options: &ExportOptions) -> (Vec<u8>, Exported) {
        let mut out = Vec::new();
        let exported = export(&self.snapshotter, name, &mut out, options, &());
        (out, exported.unwrap_or_else(|e| panic!("{}: {e}", self.backend)))
    }

    /// A committed snapshot with a change on top of another one.
    fn change(&self, name: &str, parent: &str, tar: &Tar) {
        self.snapshotter.prepare("change", Some(parent), Labels::new(), &()).expect("prepare");
        let layer = Cursor::new(packed(tar));
        self.snapshotter.apply("change", layer, Below::Nothing, &()).unwrap_or_else(|e| panic!("{e}"));
        self.snapshotter.commit(name, "change", Labels::new(), None, &()).expect("commit");
    }

    /// A document among the blobs of an archive.
    fn document(&self, bytes: &[u8], digest: &plywood::store::Digest) -> serde_json::Value {
        let mut reader = plywood::archive::Reader::new(bytes, Default::default());
        let path = plywood::image::document::blob_path(digest);
        while let Some(entry) = reader.next().expect("an archive") {
            if entry.path != path.as_bytes() {
                continue;
            }
            let mut content = vec![0; entry.size_bytes as usize];
            reader.next_segment().expect("content");
            let mut at = 0;
            while at < content.len() {
                at += reader.read(&mut content[at..]).expect("content");
            }
            return serde_json::from_slice(&content).expect("JSON");
        }
        panic!("{path} is missing");
    }
}

fn image() -> Image {
    Image::packed_as(&three_layers(), &[Compression::Gzip, Compression::Zstd]).named("localhost/a:1")
}

#[test]
fn an_image_that_was_not_changed_has_the_same_digests() {
    let image = image();
    for backend in BACKENDS {
        let world = World::new(backend);
        world.import(&image.oci());
        let (first, exported) = world.export(&image.top(), &ExportOptions::default());
        assert_eq!(exported.manifest, sha256(&image.manifest_bytes()));
        assert_eq!(exported.config, sha256(&image.config_bytes()));
        assert_eq!(exported.tag.as_deref(), Some("localhost/a:1"));
        let (second, _) = world.export(&image.top(), &ExportOptions::default());
        assert!(first == second, "twice the same bytes");
        world.check("exported");
        let elsewhere =
            World::new(if backend == BackendName::Fuse { BackendName::Native } else { BackendName::Fuse });
        let imported = elsewhere.take(first.clone()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((imported.name, imported.image.as_deref()), (image.top(), Some("localhost/a:1")));
        assert_same(&elsewhere.tree(&image.top()), &image.tree(), "elsewhere");
        let (third, _) = elsewhere.export(&image.top(), &ExportOptions::default());
        assert!(first == third, "the same bytes from elsewhere");
    }
}

#[test]
fn an_image_with_one_more_layer_keeps_what_its_configuration_says() {
    let image = image();
    for backend in BACKENDS {
        let world = World::new(backend);
        world.import(&image.oci());
        world.change("changed", &image.top(), &Tar::new().file("new", "x").mark("etc/.wh.passwd"));
        let options = ExportOptions { tag: Some("localhost/b:2".to_owned()), ..ExportOptions::default() };
        let (bytes, exported) = world.export("changed", &options);
        let config = world.document(&bytes, &exported.config);
        assert_eq!(config["config"], image.config["config"]);
        assert_eq!(config["author"], "nobody");
        assert_eq!(config["history"].as_array().map(Vec::len), Some(4));
        assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(4));
        let manifest = world.document(&bytes, &exported.manifest);
        for (at, layer) in image.layers.iter().enumerate() {
            assert_eq!(manifest["layers"][at], described(&layer.blob, &layer.media_type), "as it came");
        }
        let (again, _) = world.export("changed", &options);
        assert!(bytes == again, "twice the same bytes");
        world.check("exported");
        assert_eq!(world.unused_blobs(), []);
        let elsewhere = World::new(backend);
        let imported = elsewhere.take(bytes).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(imported.image.as_deref(), Some("localhost/b:2"));
        assert_same(&elsewhere.tree(&imported.name), &world.tree("changed"), "elsewhere");
    }
}

#[test]
fn no_time_is_later_than_source_date_epoch() {
    let image = image();
    let options = ExportOptions { source_date_epoch: Some(1_000_000_000), ..ExportOptions::default() };
    let mut all = Vec::new();
    for backend in BACKENDS {
        for _ in 0..2 {
            let world = World::new(backend);
            world.import(&image.oci());
            world.change(
                "changed",
                &image.top(),
                &Tar::new().file("new/f", "x").but(|e| e.mtime.secs = 2_000_000_000),
            );
            let (bytes, exported) = world.export("changed", &options);
            let config = world.document(&bytes, &exported.config);
            assert_eq!(config["created"], "2001-09-09T01:46:40Z");
            let (again, _) = world.export("changed", &options);
            assert!(bytes == again, "twice the same bytes");
            world.check("exported");
            assert_eq!(world.unused_blobs(), [], "what was packed for the archive alone is gone");
            assert_eq!(world.snapshotter.get_blob("changed").expect("it is there"), None);
            all.push(bytes);
        }
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "whatever the store and the backend");
}

#[test]
fn what_has_no_blob_any_more_is_packed_anew() {
    let image = image();
    for backend in BACKENDS {
        let world = World::new(backend);
        let options = ImportOptions { blobs: Blobs::Dropped, ..ImportOptions::default() };
        world.stream(archive(&image.oci()), &options).unwrap_or_else(|e| panic!("{e}"));
        let (bytes, exported) = world.export(&image.top(), &ExportOptions::default());
        let config = world.document(&bytes, &exported.config);
        assert_eq!(config["config"], image.config["config"]);
        let elsewhere = World::new(backend);
        let imported = elsewhere.take(bytes).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&elsewhere.tree(&imported.name), &image.tree(), "packed anew");

        // Somebody deletes the content behind our back.
        for (name, layer) in &exported.layers {
            drop(
                world
                    .snapshotter
                    .content()
                    .delete(&layer.blob.digest)
                    .unwrap_or_else(|e| panic!("{name}: {e}")),
            );
        }
        let (_, again) = world.export(&image.top(), &ExportOptions::default());
        let digests = |exported: &Exported| {
            exported.layers.iter().map(|(_, layer)| layer.diff_id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(digests(&again), digests(&exported));
        let imported_again = world.import(&image.oci());
        assert_eq!(imported_again.name, image.top());
    }
}

#[test]
fn only_committed_snapshots_are_images() {
    for backend in BACKENDS {
        let world = World::new(backend);
        let image = image();
        world.import(&image.oci());
        world.snapshotter.prepare("active", Some(&image.top()), Labels::new(), &()).expect("prepare");
        world.snapshotter.view("view", Some(&image.top()), Labels::new(), &()).expect("view");
        for (name, kind) in [
            ("active", ErrorKind::FailedPrecondition),
            ("view", ErrorKind::FailedPrecondition),
            ("nothing", ErrorKind::NotFound),
            ("", ErrorKind::InvalidArgument),
        ] {
            let mut out = Vec::new();
            let failed = export(&world.snapshotter, name, &mut out, &ExportOptions::default(), &());
            assert_eq!(failed.expect_err(name).kind(), kind);
            assert!(out.is_empty(), "nothing was written");
        }
    }
}

/// A disk that is full, or a pipe that nobody reads.
struct Full(usize);

impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::from_raw_os_error(28));
        }
        let written = bytes.len().min(self.0);
        self.0 -= written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told() {
    let image = image();
    for backend in BACKENDS {
        let world = World::new(backend);
        world.import(&image.oci());
        for room in [0, 1, 512, 3000, 6000] {
            let failed = export(&world.snapshotter, &image.top(), Full(room), &ExportOptions::default(), &());
            assert_eq!(failed.expect_err("full").kind(), ErrorKind::NoSpace);
            world.check("full");
        }
    }
}

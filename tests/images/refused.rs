//! Images that are damaged, or made to do harm: what is said, and that nothing of them stays but whole layers.

use super::support::Tar;
use super::world::*;
use plywood::archive::{EntryKind, Writer};
use plywood::compress::Compression;
use plywood::error::{Error, ErrorKind};
use plywood::image::chain::sha256;
use plywood::image::document::{blob_path, media};
use plywood::image::import::{ImportOptions, Input, import};
use plywood_fuse::testing::TempDir;
use serde_json::json;

fn image() -> Image {
    Image::packed_as(&three_layers(), &[Compression::Gzip, Compression::Zstd]).named("localhost/a:1")
}

/// Every backend refuses the bytes, with this kind and these words, and nothing is left of them.
#[track_caller]
fn refused(what: &str, image: &Image, bytes: &[u8], kind: ErrorKind, words: &str) {
    for backend in BACKENDS {
        let world = World::new(backend);
        let failed = world.take(bytes.to_vec()).expect_err(what);
        assert_eq!(failed.kind(), kind, "{backend}: {what}: {failed}");
        let said = failed.to_string();
        assert!(said.contains(words) && said.len() < 2000, "{backend}: {what}: {said}");
        world.check_failed(what, image);
        // It did no harm to the next one.
        assert_eq!(world.import(&image.oci()).name, image.top(), "{what}");
        world.check(what);
    }
}

#[track_caller]
fn invalid(what: &str, image: &Image, members: &Members, words: &str) {
    refused(what, image, &archive(members), ErrorKind::InvalidArgument, words);
}

fn change(mut members: Members, path: &str, with: impl FnOnce(&mut Vec<u8>)) -> Members {
    let found = members.iter_mut().find(|(name, _)| name == path);
    match found {
        Some((_, Member::File(bytes))) => with(bytes),
        _ => panic!("{path} is no file of the archive"),
    }
    members
}

fn without(mut members: Members, path: &str) -> Members {
    let before = members.len();
    members.retain(|(name, _)| name != path);
    assert_eq!(members.len(), before - 1, "{path}");
    members
}

#[test]
fn digests_that_are_not_those_of_the_content() {
    let image = image();
    let mut ids = image.diff_ids();
    for at in 0..3 {
        let right = std::mem::replace(&mut ids[at], sha256(b"something else"));
        let members = image.oci_with(&image.config_with(&ids), |_| ());
        // Layers below are whole, but called otherwise.
        for backend in BACKENDS {
            let world = World::new(backend);
            let failed = world.take(archive(&members)).expect_err("a wrong diff id");
            assert_eq!(failed.kind(), ErrorKind::InvalidArgument, "{failed}");
            assert!(failed.to_string().contains(right.as_str()), "{failed}");
            world.check_failed("a wrong diff id", &image);
        }
        ids[at] = right;
    }
    for layer in &image.layers {
        let path = blob_path(&sha256(&layer.blob));
        let members = change(image.oci(), &path, |bytes| *bytes.last_mut().expect("bytes") ^= 1);
        invalid("a blob that was changed", &image, &members, "fetch it again");
        let members = change(image.oci(), &path, |bytes| bytes.push(0));
        invalid("a blob that is too long", &image, &members, "");
        invalid("a blob that is missing", &image, &without(image.oci(), &path), "no such blob");
    }
    let other = sha256(b"nobody has this");
    let members = image.oci_with(&image.config_bytes(), |m| m["layers"][1]["digest"] = json!(other.as_str()));
    invalid("a layer that is not there", &image, &members, other.as_str());
    for size in [json!(0), json!(image.layers[1].blob.len() + 1), json!(i64::MAX)] {
        let members = image.oci_with(&image.config_bytes(), |m| m["layers"][1]["size"] = size.clone());
        invalid("a wrong size of a layer", &image, &members, "bytes");
    }
    let members = image.oci_with(&image.config_bytes(), |m| m["config"]["size"] = json!(1));
    invalid("a wrong size of the configuration", &image, &members, "not what its digest and size say");
}

#[test]
fn documents_that_are_missing_or_make_no_sense() {
    let image = image();
    let (config, manifest) =
        (blob_path(&sha256(&image.config_bytes())), blob_path(&sha256(&image.manifest_bytes())));
    for path in [&config, &manifest] {
        invalid("a document is missing", &image, &without(image.oci(), path), "no such blob");
    }
    invalid("no index", &image, &without(image.oci(), "index.json"), "neither index.json nor manifest.json");
    let huge = vec![b' '; 5 << 20];
    let deep = "[".repeat(100_000).into_bytes();
    let strange: [&[u8]; 9] =
        [b"", b"{", b"null", b"[]", b"[[]]", b"{\"schemaVersion\":2}", b"\xff\xfe", &huge, &deep];
    for bytes in strange {
        let members = change(image.oci(), "index.json", |index| *index = bytes.to_vec());
        invalid("an index that is none", &image, &members, "");
        let members =
            layout(&[described(bytes, media::MANIFEST)], [image.blobs(), vec![blob(bytes)]].concat());
        invalid("a manifest that is none", &image, &members, "");
        let members = image.oci_with(bytes, |_| ());
        invalid("a configuration that is none", &image, &members, "");
        if bytes != b"[]" {
            let members = change(image.docker(), "manifest.json", |manifest| *manifest = bytes.to_vec());
            invalid("a manifest of Docker that is none", &image, &members, "");
        }
    }
    let members = change(image.docker(), "manifest.json", |manifest| *manifest = b"[]".to_vec());
    invalid("no image", &image, &members, "it holds no image");
    let members = layout(&[], image.blobs());
    refused("no image", &image, &archive(&members), ErrorKind::NotFound, "it holds no image");
    let itself = index(&[]);
    let members = layout(&[described(&itself, media::INDEX)], vec![blob(&itself)]);
    refused("an index of nothing", &image, &archive(&members), ErrorKind::NotFound, "no image");
    // An index in an index in an index.
    let inner = index(&[image.listed()]);
    let middle = index(&[described(&inner, media::INDEX)]);
    let members = layout(
        &[described(&middle, media::INDEX)],
        [image.blobs(), vec![blob(&inner), blob(&middle)]].concat(),
    );
    invalid("an index too deep", &image, &members, "");
}

#[test]
fn as_many_layers_as_the_configuration_says() {
    let image = image();
    let ids = image.diff_ids();
    let more = [&ids[..], &ids[..1]].concat();
    for ids in [&ids[..2], &more[..], &[][..]] {
        let members = image.oci_with(&image.config_with(ids), |_| ());
        invalid("another number of layers", &image, &members, "layers");
    }
    let members = image.oci_with(&image.config_with(&[]), |m| m["layers"] = json!([]));
    invalid("no layers", &image, &members, "it has no layers");
    let members =
        image.oci_with(&image.config_bytes(), |m| m["layers"] = json!(vec![m["layers"][0].clone(); 5000]));
    invalid("more layers than anybody can stack", &image, &members, "more than 4096 layers");
}

#[test]
fn paths_that_lead_out_of_the_archive_lead_nowhere() {
    let image = image();
    let outside = TempDir::new();
    let secret = outside.path().join("secret");
    let config = image.config_bytes();
    std::fs::write(&secret, &config).expect("write");
    let path = blob_path(&sha256(&config));
    let secret = secret.display().to_string();
    let up = format!("{}{secret}", "../".repeat(40));
    for target in [&secret, &up, &"index.json".to_owned(), &path] {
        let mut members = without(image.oci(), &path);
        members.insert(0, symlink(path.clone(), target.clone()));
        invalid("a configuration that is a symlink", &image, &members, "no such blob");
    }
    for odd in [&secret[..], &up, "../x", "", "/", ".", "blobs/sha256/../../../../etc/passwd"] {
        let manifest = json!([{ "Config": odd, "Layers": [] }]).to_string();
        let members = change(image.docker(), "manifest.json", |bytes| *bytes = manifest.into_bytes());
        invalid("a configuration elsewhere", &image, &members, "does not hold it");
        let config = sha256(&config).sha256_hex().map(|hex| format!("{hex}.json")).expect("SHA-256");
        let manifest = json!([{ "Config": config, "Layers": [odd, odd, odd] }]).to_string();
        let members = change(image.docker(), "manifest.json", |bytes| *bytes = manifest.into_bytes());
        invalid("layers elsewhere", &image, &members, "does not hold it");
    }
    // Names that mean nothing to an image are no harm.
    for backend in BACKENDS {
        let world = World::new(backend);
        let mut members = image.oci();
        for odd in [
            "blobs/sha256/../../x",
            "/tmp/absolute",
            "../../up",
            "blobs/sha256/00",
            "blobs/sha512/ab",
            "blobs",
        ] {
            members.push(file(odd, "odd"));
        }
        members.push(symlink("blobs/sha256/link", "/etc/passwd"));
        assert_eq!(world.import(&members).name, image.top());
        world.check("odd names");
    }
}

#[test]
fn a_layout_directory_that_leads_elsewhere() {
    let image = image();
    let outside = TempDir::new();
    let config = image.config_bytes();
    let path = blob_path(&sha256(&config));
    std::fs::write(outside.path().join("secret"), &config).expect("write");
    let secret = outside.path().join("secret").display().to_string();
    let layer = blob_path(&sha256(&image.layers[2].blob));
    let link = |path: &str, text: &str| {
        let mut members = without(image.oci(), path);
        members.push(symlink(path, text));
        members
    };
    let long = json!({ "schemaVersion": 2, "manifests": [], "x": " ".repeat(5 << 20) }).to_string();
    let cases = [
        ("the configuration is a symlink", link(&path, &secret)),
        ("a layer is a symlink", link(&layer, "/dev/zero")),
        ("the index never ends", link("index.json", "/dev/zero")),
        ("the mark never ends", link("oci-layout", "/dev/zero")),
        ("the index is huge", change(image.oci(), "index.json", |bytes| *bytes = long.into_bytes())),
        ("a layer was changed", change(image.oci(), &layer, |bytes| bytes[20] ^= 1)),
        ("a layer is missing", without(image.oci(), &layer)),
        ("a layer is too short", change(image.oci(), &layer, |bytes| bytes.truncate(30))),
        ("a wrong diff id", image.oci_with(&image.config_with(&vec![sha256(b"x"); 3]), |_| ())),
    ];
    for (what, members) in cases {
        for backend in BACKENDS {
            let world = World::new(backend);
            let dir = world.temp.path().join("layout");
            on_a_disk(&members, &dir);
            let taken = import(&world.snapshotter, Input::Path(dir), &ImportOptions::default(), &());
            let failed = taken.expect_err(what);
            assert_eq!(failed.kind(), ErrorKind::InvalidArgument, "{backend}: {what}: {failed}");
            world.check_failed(what, &image);
        }
    }
    let world = World::new(BACKENDS[0]);
    let dir = world.temp.path().join("layout");
    on_a_disk(&without(image.oci(), "index.json"), &dir);
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("index.json"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .expect("a fifo");
    let from = |path: &std::path::Path| {
        import(&world.snapshotter, Input::Path(path.to_owned()), &ImportOptions::default(), &())
    };
    assert_eq!(from(&dir).expect_err("a fifo").kind(), ErrorKind::InvalidArgument);
    assert_eq!(from(outside.path()).expect_err("no layout").kind(), ErrorKind::InvalidArgument);
    assert_eq!(from(&outside.path().join("nothing")).expect_err("nothing").kind(), ErrorKind::NotFound);
    world.check_failed("nothing", &image);
}

#[test]
fn an_archive_that_was_cut_off_anywhere() {
    let image = image();
    for members in [image.oci(), image.docker()] {
        let bytes = archive(&members);
        for backend in BACKENDS {
            let world = World::new(backend);
            let step = (bytes.len() / 50).max(1);
            let mut cuts: Vec<usize> = (1..bytes.len() - 1024).step_by(step).collect();
            cuts.extend((512..bytes.len() - 1024).step_by(512 * 7));
            for cut in cuts {
                match world.take(bytes[..cut].to_vec()) {
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{backend}: cut at {cut}: {e}");
                        world.check_failed("cut off", &image);
                    }
                    // Only what nobody needs is missing.
                    Ok(imported) => {
                        assert_eq!(imported.name, image.top(), "{backend}: cut at {cut} of {}", bytes.len());
                        world.check("cut off behind the image");
                        world.empty();
                    }
                }
            }
        }
    }
    let zipped = compressed(&archive(&image.oci()), Compression::Gzip);
    for backend in BACKENDS {
        let world = World::new(backend);
        for cut in (20..zipped.len() - 1).step_by(zipped.len() / 60) {
            let failed = world.take(zipped[..cut].to_vec()).expect_err("cut off");
            assert_eq!(failed.kind(), ErrorKind::InvalidArgument, "{backend}: cut at {cut}: {failed}");
            world.check_failed("cut off", &image);
        }
    }
}

/// A root file system has no digest that could tell, but a stream that failed half-way must not become one.
#[test]
fn a_root_file_system_that_was_cut_off() {
    let mut tar = Tar::new();
    for n in 0..40 {
        tar = tar.file(format!("f{n}"), vec![n; 3000]);
    }
    let image = Image::new(&[tar]);
    for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bytes = compressed(&image.layers[0].tar, how);
        for backend in BACKENDS {
            let world = World::new(backend);
            let end = if how == Compression::None { bytes.len() - 1024 } else { bytes.len() - 1 };
            for cut in (0..end).step_by((end / 40).max(1)).chain([512 * 8]).filter(|cut| *cut < end) {
                let failed = match world.take(bytes[..cut].to_vec()) {
                    Err(failed) => failed,
                    Ok(_) => panic!("{backend}: {how:?} cut at {cut} of {} was taken", bytes.len()),
                };
                assert_eq!(failed.kind(), ErrorKind::InvalidArgument, "{backend}: cut at {cut}: {failed}");
                world.check_failed("cut off", &image);
            }
        }
    }
}

/// A reader that fails, as a pipe or a disk does.
struct Failing(std::io::Cursor<Vec<u8>>);

impl std::io::Read for Failing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::Error::from_raw_os_error(5)),
            came => Ok(came),
        }
    }
}

#[test]
fn a_stream_that_fails() {
    let image = image();
    let rootfs = packed(&Tar::new().file("f", vec![1; 500_000]));
    for bytes in [archive(&image.oci()), archive(&image.docker()), rootfs] {
        for backend in BACKENDS {
            let world = World::new(backend);
            for cut in
                [0, 1, 600, 70_000, bytes.len() / 2, bytes.len() - 10].map(|cut| cut.min(bytes.len() - 1))
            {
                let stream = Box::new(Failing(std::io::Cursor::new(bytes[..cut].to_vec())));
                let input = Input::Stream(stream, "a disk".to_owned());
                let failed = import(&world.snapshotter, input, &ImportOptions::default(), &());
                let failed = failed.expect_err("it fails");
                assert_eq!(failed.kind(), ErrorKind::Io, "{backend}: {cut}: {failed}");
                world.check_failed("failed", &image);
            }
        }
    }
}

#[test]
fn members_that_say_they_are_larger_than_any_disk() {
    let image = image();
    let digest = blob_path(&sha256(b"x"));
    for (path, size) in [(&digest[..], i64::MAX as u64), ("index.json", 1 << 40), ("x/layer.tar", 1 << 62)] {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.entry(&entry("oci-layout", EntryKind::File, 0)).expect("a member");
        writer.entry(&entry(path, EntryKind::File, size)).expect("a member");
        writer.content(&[0; 5000]).expect("a part of its content");
        refused("a size that is none", &image, &bytes, ErrorKind::InvalidArgument, "");
    }
    let members: Members = std::iter::once(file("oci-layout", ""))
        .chain((0..3000).map(|n| symlink(format!("{n}"), "x".repeat(4000))))
        .collect();
    invalid("names without end", &image, &members, "names");
}

#[test]
fn layers_that_are_damaged_though_their_digest_is_right() {
    let base = image();
    let with = |layer: Layer| {
        let mut layers = base.layers.clone();
        layers[1] = layer;
        Image::of(layers)
    };
    let tar = base.layers[1].tar.clone();
    let cut = |how, at: usize| {
        let mut layer = Layer::of(tar.clone(), how);
        layer.blob.truncate(at);
        layer
    };
    let noise = Layer::of(b"this is no archive".repeat(100), Compression::None);
    let hostile = |name: &str| Layer::new(&Tar::new().mark(name), Compression::Gzip);
    for (what, layer) in [
        ("gzip, cut off", cut(Compression::Gzip, 40)),
        ("zstd, cut off", cut(Compression::Zstd, 40)),
        ("tar, cut off", Layer::of(tar[..700].to_vec(), Compression::None)),
        ("noise", noise),
        ("a whiteout of the directory above", hostile("a/.wh...")),
        ("a hard link to nothing", Layer::new(&Tar::new().link("../../nothing", "a"), Compression::Zstd)),
        ("a hard link to a directory", Layer::new(&Tar::new().link("etc", "a"), Compression::Gzip)),
    ] {
        let image = with(layer);
        for members in [image.oci(), image.docker()] {
            for backend in BACKENDS {
                let world = World::new(backend);
                // Docker's form has the layer without compression.
                let Err(failed) = world.take(archive(&members)) else {
                    assert!(
                        what.contains("cut off") && members.iter().any(|(path, _)| path == "manifest.json")
                    );
                    continue;
                };
                assert_eq!(failed.kind(), ErrorKind::InvalidArgument, "{backend}: {what}: {failed}");
                world.check_failed(what, &image);
                assert_eq!(world.import(&base.oci()).name, base.top());
                world.check(what);
            }
        }
    }
}

#[test]
fn layers_stay_inside_of_their_snapshots() {
    let outside = TempDir::new();
    let path = outside.path().display().to_string();
    let up = "../".repeat(30);
    let image = Image::new(&[
        Tar::new().symlink(&path, "abs").symlink(&format!("{up}{path}"), "rel").symlink("/", "root"),
        Tar::new()
            .file("abs/a", "x")
            .file("rel/b", "x")
            .file(format!("{up}tmp/c"), "x")
            .file(format!("root/{path}/d"), "x")
            .file(format!("{path}/e"), "x"),
        Tar::new().mark(&format!("{path}/.wh.e")).mark("abs/.wh..wh..opq"),
    ]);
    for backend in BACKENDS {
        let world = World::new(backend);
        assert_eq!(world.import(&image.oci()).name, image.top());
        super::support::assert_same(&world.tree(&image.top()), &image.tree(), "inside");
        world.check("inside");
    }
    assert_eq!(std::fs::read_dir(outside.path()).expect("list").count(), 0);
}

#[test]
fn names_that_no_label_can_hold() {
    let long = image().named(&"n".repeat(100_000));
    for backend in BACKENDS {
        let world = World::new(backend);
        match world.take(archive(&long.oci())) {
            Ok(imported) => assert_eq!(imported.name, long.top()),
            Err(e) => assert_eq!(Error::kind(&e), ErrorKind::InvalidArgument, "{e}"),
        }
        world.check("a long name");
        assert_eq!(world.unused_blobs(), []);
    }
}

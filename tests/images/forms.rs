//! The forms in which an image comes: all give the same snapshots.

use super::support::{Tar, assert_same, text};
use super::world::*;
use plywood::compress::Compression;
use plywood::error::ErrorKind;
use plywood::image::document::{Platform, media};
use plywood::image::import::{ImportOptions, Input, Taken, import};
use plywood::image::unpack::{Blobs, Made};
use serde_json::json;

const KINDS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn image() -> Image {
    Image::packed_as(&three_layers(), &KINDS).named("localhost/a:1")
}

fn everywhere(check: impl Fn(&World)) {
    for backend in BACKENDS {
        check(&World::new(backend));
    }
}

#[track_caller]
fn is_there(world: &World, image: &Image, what: &str) {
    assert_same(&world.tree(&image.top()), &image.tree(), &format!("{}: {what}", world.backend));
    world.check(what);
}

#[test]
fn an_oci_archive_becomes_its_chain() {
    let image = image();
    everywhere(|world| {
        let imported = world.import(&image.oci());
        assert_eq!(imported.name, image.top());
        assert_eq!(imported.image.as_deref(), Some("localhost/a:1"));
        let names: Vec<String> = imported.layers.iter().map(|layer| layer.name.clone()).collect();
        assert_eq!(names, image.chain());
        is_there(world, &image, "OCI archive");
        assert_eq!(world.unused_blobs(), []);
        let again = world.import(&image.oci());
        assert!(again.layers.iter().all(|layer| layer.made == Made::Before));
        is_there(world, &image, "a second time");
        assert_eq!(world.unused_blobs(), []);
    });
}

#[test]
fn members_come_in_any_order_and_the_archive_may_be_compressed() {
    let image = image();
    everywhere(|world| {
        let mut members = image.oci();
        for turn in 0..members.len() {
            members.rotate_left(1);
            assert_eq!(world.import(&members).name, image.top(), "{turn}");
            world.empty();
        }
        members.reverse();
        assert_eq!(world.import(&members).name, image.top());
        for how in KINDS {
            world.empty();
            let bytes = compressed(&archive(&image.oci()), how);
            assert_eq!(world.take(bytes).unwrap_or_else(|e| panic!("{how:?}: {e}")).name, image.top());
            is_there(world, &image, "compressed archive");
        }
        // As tar(1) writes a directory.
        world.empty();
        let mut members = image.oci();
        members.iter_mut().for_each(|(path, _)| *path = format!("./{path}"));
        members.insert(0, ("./".to_owned(), Member::Dir));
        assert_eq!(world.import(&members).name, image.top());
        is_there(world, &image, "with dots");
    });
}

#[test]
fn a_layout_directory_and_a_file_are_as_good_as_a_stream() {
    let image = image();
    everywhere(|world| {
        let (dir, path) = (world.temp.path().join("layout"), world.temp.path().join("image.tar"));
        on_a_disk(&image.oci(), &dir);
        std::fs::write(&path, archive(&image.oci())).expect("write");
        for from in [dir, path] {
            let imported = import(&world.snapshotter, Input::Path(from), &ImportOptions::default(), &());
            assert_eq!(imported.unwrap_or_else(|e| panic!("{e}")).name, image.top());
            is_there(world, &image, "from the disk");
            assert_eq!(world.unused_blobs(), []);
            world.empty();
        }
    });
}

#[test]
fn a_docker_archive_with_layers_that_are_symlinks() {
    let mut tars = three_layers();
    tars.push(tars[0].clone());
    tars.push(tars[2].clone());
    let image = Image::new(&tars).named("localhost/a:1");
    everywhere(|world| {
        let imported = world.import(&image.docker());
        assert_eq!((imported.name, imported.image.as_deref()), (image.top(), Some("localhost/a:1")));
        is_there(world, &image, "docker archive");
        assert_eq!(world.unused_blobs(), []);
        world.empty();
        // The manifest first, and a link before what it means.
        let mut members = image.docker();
        members.reverse();
        assert_eq!(world.import(&members).name, image.top());
        is_there(world, &image, "docker archive, the other way round");
        for named in ["localhost/a:1", "a:1"] {
            let options = ImportOptions { name: Some(named.to_owned()), ..ImportOptions::default() };
            assert_eq!(world.stream(archive(&members), &options).expect(named).name, image.top());
        }
        let options = ImportOptions { name: Some("b".to_owned()), ..ImportOptions::default() };
        let failed = world.stream(archive(&members), &options).expect_err("there is none");
        assert_eq!(failed.kind(), ErrorKind::NotFound, "{failed}");
        is_there(world, &image, "another name");
    });
}

/// An index of images, one of which is an index for several machines, with attestations.
#[test]
fn an_image_is_chosen_by_name_and_machine_wherever_it_is_listed() {
    let of = |text: &str| Image::new(&[Tar::new().file("which", text)]);
    let (ours, arm, riscv, other) =
        (of("ours"), of("arm"), of("riscv"), of("other").named("localhost/other:2"));
    let here = Platform::here();
    let listed = |image: &Image, architecture: &str, os: &str| {
        let mut listed = image.listed();
        listed["platform"] = json!({ "architecture": architecture, "os": os });
        listed
    };
    let attestation = of("an attestation");
    let inner = index(&[
        listed(&arm, "mips64le", "linux"),
        listed(&attestation, "unknown", "unknown"),
        listed(&ours, &here.architecture, "linux"),
        listed(&riscv, "loong64", "linux"),
        listed(&attestation, "unknown", "unknown"),
    ]);
    let mut outer = described(&inner, media::INDEX);
    outer["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/many:1" });
    let mut blobs = vec![blob(&inner)];
    for image in [&ours, &arm, &riscv, &other, &attestation] {
        blobs.extend(image.blobs());
    }
    let members = layout(&[outer, other.listed()], blobs);
    let machine = |architecture: &str| Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: String::new(),
    };
    everywhere(|world| {
        let take = |name: Option<&str>, platform: Platform| {
            let options =
                ImportOptions { name: name.map(str::to_owned), platform, ..ImportOptions::default() };
            world.stream(archive(&members), &options)
        };
        for (name, platform, expected) in [
            ("many:1", here.clone(), "ours"),
            ("docker.io/library/many:1", machine("mips64le"), "arm"),
            ("library/many:1", machine("loong64"), "riscv"),
            ("localhost/other:2", here.clone(), "other"),
            ("other:2", machine("mips64le"), "other"),
        ] {
            let imported = take(Some(name), platform).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(text(&world.tree(&imported.name), "which"), expected);
            world.check(name);
        }
        let kind = |name, platform| take(name, platform).expect_err("no such image").kind();
        assert_eq!(kind(None, here.clone()), ErrorKind::InvalidArgument);
        assert_eq!(kind(Some("many:1"), machine("vax")), ErrorKind::NotFound);
        assert_eq!(kind(Some("many:2"), here.clone()), ErrorKind::NotFound);
        world.check("none");
    });
}

#[test]
fn a_root_file_system_is_one_layer() {
    let mut tar = Tar::new();
    for members in three_layers() {
        tar.0.extend(members.0.into_iter().filter(|(entry, _)| !entry.path.windows(4).any(|w| w == b".wh.")));
    }
    let image = Image::new(&[tar]);
    everywhere(|world| {
        for how in KINDS {
            for blobs in [Blobs::Kept, Blobs::Dropped] {
                let bytes = compressed(&image.layers[0].tar, how);
                let options = ImportOptions { blobs, ..ImportOptions::default() };
                let imported = world.stream(bytes.clone(), &options).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!((&imported.name, imported.layers[0].made), (&image.top(), Made::Now));
                is_there(world, &image, "root file system");
                assert_eq!(world.unused_blobs(), []);
                let blob = world.snapshotter.get_blob(&image.top()).expect("it is there");
                assert_eq!(blob.is_some(), blobs == Blobs::Kept);
                let again = world.stream(bytes, &options).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(again.layers[0].made, Made::Before);
                is_there(world, &image, "a second time");
                assert_eq!(world.unused_blobs(), []);
                world.empty();
            }
        }
    });
}

/// What begins as an image does is a root file system if somebody says so.
#[test]
fn a_root_file_system_that_looks_like_an_image() {
    let image = Image::new(&[Tar::new().dir("blobs", 0o755).file("blobs/f", "x")]);
    everywhere(|world| {
        let bytes = image.layers[0].tar.clone();
        let failed = world.take(bytes.clone()).expect_err("no image");
        assert_eq!(failed.kind(), ErrorKind::InvalidArgument);
        assert!(failed.to_string().contains("--rootfs"), "{failed}");
        world.check_failed("no image", &image);
        let options = ImportOptions { taken: Taken::AsFiles, ..ImportOptions::default() };
        world.stream(bytes, &options).unwrap_or_else(|e| panic!("{e}"));
        is_there(world, &image, "as files");
    });
}

#[test]
fn without_blobs_nothing_of_the_layers_stays() {
    let image = image();
    let options = ImportOptions { blobs: Blobs::Dropped, ..ImportOptions::default() };
    everywhere(|world| {
        for members in [image.oci(), image.docker()] {
            world.stream(archive(&members), &options).unwrap_or_else(|e| panic!("{e}"));
            is_there(world, &image, "without blobs");
            for layer in &image.layers {
                let digest = plywood::image::chain::sha256(&layer.blob);
                assert!(world.snapshotter.content().info(&digest).is_err(), "{digest} is left");
            }
            world.empty();
        }
    });
}

//! What layers say of each other: the tree is that of applying them one by one, however they were unpacked.

use super::support::{Tar, assert_same, same_file, text};
use super::world::*;
use plywood::compress::Compression;

/// Imports an image and looks at its tree and at that of each of its layers.
#[track_caller]
fn same_as_one_by_one(tars: &[Tar]) -> super::support::Tree {
    let image = Image::packed_as(tars, &[Compression::Zstd, Compression::None]);
    for backend in BACKENDS {
        let world = World::new(backend);
        assert_eq!(world.import(&image.oci()).name, image.top());
        for (at, name) in image.chain().iter().enumerate() {
            let until = Image { layers: image.layers[..=at].to_vec(), ..image.clone() };
            assert_same(&world.tree(name), &until.tree(), &format!("{backend}: layer {}", at + 1));
        }
        world.check("layers");
        assert_eq!(world.unused_blobs(), []);
    }
    image.tree()
}

#[test]
fn a_hard_link_to_a_file_of_a_lower_layer() {
    let tree = same_as_one_by_one(&[
        Tar::new().dir("a", 0o755).file("a/f", "content").but(|entry| entry.mode = 0o4711),
        Tar::new().file("other", "x"),
        Tar::new().link("a/f", "b").link("/a/f", "a/c"),
        Tar::new().link("b", "d"),
    ]);
    assert_eq!(text(&tree, "d"), "content");
    assert!(same_file(&tree, "b", "a/f") && same_file(&tree, "a/c", "d"));
}

#[test]
fn an_entry_below_a_directory_that_only_a_lower_layer_has() {
    let tree = same_as_one_by_one(&[
        Tar::new().dir("a", 0o711).dir("a/b", 0o750).file("a/b/f", "low"),
        Tar::new().file("a/b/g", "high").file("new/way/h", "made"),
        Tar::new().file("a/b/f", "higher").mark("new/way/.wh.h"),
    ]);
    assert_eq!((text(&tree, "a/b/f"), text(&tree, "a/b/g")), ("higher", "high"));
    assert_eq!((tree["a"].perm, tree["a/b"].perm), (0o711, 0o750), "as the lower layer has them");
    assert!(!tree.contains_key("new/way/h"));
}

#[test]
fn an_entry_behind_a_symlink_of_a_lower_layer() {
    let tree = same_as_one_by_one(&[
        Tar::new().dir("usr", 0o755).dir("usr/lib", 0o755).symlink("usr/lib", "lib").symlink("/usr", "abs"),
        Tar::new().file("lib/one", "1").file("abs/two", "2"),
        Tar::new().mark("lib/.wh.one").file("lib/three", "3"),
        Tar::new().symlink("../../../../../..", "out"),
        Tar::new().file("out/inside", "4"),
    ]);
    assert_eq!(
        (text(&tree, "usr/two"), text(&tree, "usr/lib/three"), text(&tree, "inside")),
        ("2", "3", "4")
    );
    assert!(!tree.contains_key("usr/lib/one"));
}

#[test]
fn whiteouts_and_opaque_directories_through_several_layers() {
    let tree = same_as_one_by_one(&[
        Tar::new()
            .dir("d", 0o755)
            .file("d/a", "1")
            .file("d/b", "1")
            .dir("d/e", 0o755)
            .file("d/e/f", "1")
            .file("x", "1"),
        Tar::new().mark("d/.wh.a").mark(".wh.x"),
        Tar::new().file("d/a", "3").mark("d/e/.wh.f"),
        Tar::new().dir("d", 0o700).mark("d/.wh..wh..opq").file("d/c", "4"),
        Tar::new().file("d/b", "5").dir("x", 0o755).file("x/y", "5"),
        Tar::new().mark(".wh.d"),
        Tar::new().dir("d", 0o711).file("d/z", "7").mark("x/.wh..wh..opq"),
        Tar::new().mark("never/.wh.there").mark(".wh.nor-this"),
    ]);
    let names: Vec<&str> = tree.keys().map(String::as_str).filter(|path| path.starts_with('d')).collect();
    assert_eq!(names, ["d", "d/z"]);
    assert!(tree.contains_key("x") && !tree.contains_key("x/y"));
}

#[test]
fn kinds_change_from_layer_to_layer() {
    same_as_one_by_one(&[
        Tar::new().dir("a", 0o755).file("a/f", "1").file("b", "1").symlink("a", "c"),
        Tar::new().file("a", "2").dir("b", 0o755).file("b/g", "2").dir("c", 0o755).file("c/h", "2"),
        Tar::new().dir("a", 0o700).file("a/i", "3").symlink("c", "b").file("c", "3"),
    ]);
}

#[test]
fn empty_layers_and_equal_ones() {
    let some = Tar::new().dir("a", 0o755).file("a/f", "1");
    let other = Tar::new().mark("a/.wh.f");
    same_as_one_by_one(&[
        Tar::new(),
        some.clone(),
        Tar::new(),
        Tar::new(),
        other.clone(),
        some.clone(),
        some,
        other,
    ]);
    same_as_one_by_one(&[Tar::new()]);
}

/// What there is of an image is not unpacked again, and the rest is put on top of it.
#[test]
fn images_share_what_they_have_in_common() {
    let tars = three_layers();
    let (short, long) = (Image::new(&tars[..2]), Image::new(&tars));
    for backend in BACKENDS {
        let world = World::new(backend);
        world.import(&short.oci());
        let imported = world.import(&long.docker());
        let made: Vec<bool> =
            imported.layers.iter().map(|layer| layer.made == plywood::image::unpack::Made::Now).collect();
        assert_eq!(made, [false, false, true]);
        assert_same(&world.tree(&long.top()), &long.tree(), "together");
        world.check("shared");
        world.snapshotter.remove(&long.top()).expect("remove the top");
        assert_same(&world.tree(&short.top()), &short.tree(), "the short one");
        world.check("one of them removed");
    }
}

#[test]
fn an_image_of_200_layers() {
    let tars: Vec<Tar> = (0..200)
        .map(|n| {
            Tar::new().file(format!("f{}", n % 50), format!("{n}")).mark(&format!(".wh.f{}", (n + 7) % 50))
        })
        .collect();
    let image = Image::packed_as(&tars, &[Compression::Gzip, Compression::Zstd, Compression::None]);
    for backend in BACKENDS {
        let world = World::new(backend);
        assert_eq!(world.import(&image.oci()).layers.len(), 200);
        assert_same(&world.tree(&image.top()), &image.tree(), "200 layers");
        world.check("200 layers");
        let mut out = Vec::new();
        let export = plywood::image::export::export;
        let exported = export(&world.snapshotter, &image.top(), &mut out, &Default::default(), &());
        assert_eq!(exported.unwrap_or_else(|e| panic!("{e}")).layers.len(), 200);
        assert_eq!(world.take(out).unwrap_or_else(|e| panic!("{e}")).name, image.top());
    }
}

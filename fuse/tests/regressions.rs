//! Defects that a review found, each as the story that showed it.

mod common;

use common::Layers;
use plywood_fuse::types::Identity;
use plywood_fuse::view::{Open, View};
use std::fs;

fn again(layers: &Layers) -> View {
    layers.open().as_user(Identity::root())
}

#[test]
fn a_removed_lower_name_does_not_come_back_when_another_link_is_written() {
    let layers = Layers::new(1);
    layers.file(0, "d/a", "one");
    fs::hard_link(layers.lower(0, "d/a"), layers.lower(0, "d/b")).unwrap();
    let view = layers.root();
    let held = view.open("d/a", Open::read()).unwrap();
    let _other = view.open("d/b", Open::read()).unwrap();
    view.remove_file("d/a").unwrap();
    view.write("d/b", "two").unwrap();
    assert_eq!(held.read_all().unwrap(), b"two", "one inode");
    drop(held);
    assert_eq!(view.names("d").unwrap(), ["b"]);
    drop(view);
    let view = again(&layers);
    assert_eq!(view.names("d").unwrap(), ["b"]);
    assert_eq!(view.read("d/b").unwrap(), b"two");
}

#[test]
fn a_removed_lower_file_with_links_elsewhere_does_not_come_back_when_it_is_written() {
    let layers = Layers::new(1);
    layers.file(0, "f", "one");
    // As in a store that keeps equal files once.
    fs::hard_link(layers.lower(0, "f"), layers.upper.with_file_name("elsewhere")).unwrap();
    let view = layers.root();
    let held = view.open("f", Open::read().and_write()).unwrap();
    view.remove_file("f").unwrap();
    held.write_all_at(b"two", 0).unwrap();
    assert_eq!(held.read_all().unwrap(), b"two");
    assert_eq!(view.names("/").unwrap(), Vec::<std::ffi::OsString>::new());
}

#[test]
fn a_link_that_nobody_looked_at_gets_what_is_written_through_a_removed_name() {
    let layers = Layers::new(1);
    layers.file(0, "d/a", "one").dir(0, "e");
    fs::hard_link(layers.lower(0, "d/a"), layers.lower(0, "e/b")).unwrap();
    let view = layers.root();
    let held = view.open("d/a", Open::read().and_write()).unwrap();
    view.remove_file("d/a").unwrap();
    held.write_all_at(b"two", 0).unwrap();
    drop(held);
    assert_eq!(view.read("e/b").unwrap(), b"two");
    drop(view);
    let view = again(&layers);
    assert!(view.names("d").unwrap().is_empty());
    assert_eq!(view.read("e/b").unwrap(), b"two");
}

#[test]
fn an_open_file_outlives_all_its_names_though_they_go_at_the_same_time() {
    let layers = Layers::new(1);
    let view = layers.root();
    view.create_dir("d").unwrap();
    view.create_dir("e").unwrap();
    for round in 0..200 {
        view.write("d/f", "kept").unwrap();
        view.link("d/f", "e/f").unwrap();
        let held = view.open("d/f", Open::read().and_write()).unwrap();
        let _ = view.metadata("e/f").unwrap();
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for name in ["d/f", "e/f"] {
                let (start, view) = (&start, &view);
                scope.spawn(move || {
                    start.wait();
                    view.remove_file(name).unwrap();
                });
            }
        });
        assert_eq!(held.metadata().map(|attr| attr.nlink).map_err(|e| e.errno()), Ok(0), "round {round}");
        held.set_permissions(0o600).unwrap();
        held.write_all_at(b"K", 0).unwrap();
        assert_eq!(held.read_all().unwrap(), b"Kept");
    }
}

#[test]
fn a_read_only_file_with_its_data_below_gets_a_second_name() {
    let layers = Layers::new(1);
    layers.file(0, "f", vec![7; 300_000]);
    fs::set_permissions(layers.lower(0, "f"), std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let view = layers.root();
    view.set_times("f", None, Some(plywood_fuse::types::SetTime::Now)).unwrap();
    view.link("f", "g").unwrap();
    assert_eq!(view.metadata("g").unwrap().perm, 0o444);
    assert_eq!(view.read("g").unwrap(), vec![7; 300_000]);
}

#[test]
fn a_removed_name_that_looks_like_a_mark_hides_nothing_else() {
    use plywood_fuse::layer::probe::Wishes;
    use plywood_fuse::overlay::Settings;
    let mut settings = Settings::default();
    settings.upper.wishes = Wishes { user_xattr: Some(true), whiteout_files: true };
    let layers = Layers::new(1);
    layers.file(0, "d/.wh..opq", "x").file(0, "d/other", "kept");
    let view = layers.open_with(settings.clone()).as_user(Identity::root());
    let _ = view.remove_file("d/.wh..opq");
    drop(view);
    let view = layers.open_with(settings).as_user(Identity::root());
    assert_eq!(view.read("d/other").unwrap(), b"kept");
}

#[test]
fn the_links_of_a_lower_file_are_those_that_are_left_even_when_nobody_knew_it_meanwhile() {
    let layers = Layers::new(1);
    layers.file(0, "d/a", "one").dir(0, "e");
    for other in ["d/b", "d/c", "e/d"] {
        fs::hard_link(layers.lower(0, "d/a"), layers.lower(0, other)).unwrap();
    }
    let view = layers.root();
    let links = |view: &View, path: &str| view.metadata(path).unwrap().nlink;
    view.remove_file("d/b").unwrap();
    assert_eq!(view.overlay().known_inodes(), 1, "the file is forgotten");
    assert_eq!((links(&view, "d/a"), links(&view, "e/d")), (3, 3));
    view.rename("d/c", "e/c", plywood_fuse::overlay::rename::Target::Replace).unwrap();
    assert_eq!(["d/a", "e/c", "e/d"].map(|path| links(&view, path)), [3; 3], "all are one copy");
    drop(view);
    // A mount that comes later counts the names of the copy. Of a file that is only below it counts what is on the
    // disk, names that an earlier mount removed with it: to know them is to list the layer.
    let layers = Layers::new(1);
    layers.file(0, "a", "one");
    fs::hard_link(layers.lower(0, "a"), layers.lower(0, "b")).unwrap();
    let view = layers.root();
    view.remove_file("b").unwrap();
    assert_eq!(links(&view, "a"), 1);
    drop(view);
    assert_eq!(links(&again(&layers), "a"), 2);
}

#[test]
fn a_user_can_be_given_a_file_whose_group_no_map_has() {
    use plywood_fuse::idmap::{IdMap, OVERFLOW_ID};
    use std::os::unix::fs::MetadataExt;
    let layers = Layers::new(1);
    layers.file(0, "f", "one");
    let me = fs::metadata(layers.lower(0, "f")).unwrap();
    let map = |id: u32| IdMap::parse(format!("{id}:0:1").as_bytes()).unwrap();
    let mut settings = plywood_fuse::overlay::Settings::default();
    settings.ownership.uid_map = map(me.uid());
    settings.ownership.gid_map = map(me.gid() + 1);
    let view = layers.open_with(settings).as_user(Identity::root());
    let owner = |path: &str| view.metadata(path).map(|attr| (attr.uid, attr.gid)).unwrap();
    assert_eq!(owner("f"), (0, OVERFLOW_ID));
    view.chown("f", Some(0), None).unwrap();
    assert_eq!(owner("f"), (0, OVERFLOW_ID));
    let copy = fs::metadata(layers.upper.join("f")).unwrap();
    assert_eq!((copy.uid(), copy.gid()), (me.uid(), me.gid()), "the group is as it was");
    let unknown = view.chown("f", Some(1), None).map_err(|e| e.errno());
    assert_eq!(unknown, Err(libc::EINVAL), "no map has this user");
}

#[test]
fn an_attribute_of_another_dialect_is_read_from_a_layer_with_the_other_namespace() {
    use plywood_fuse::sys::{self, Place, xattr::SetMode};
    use std::os::fd::AsFd;
    if sys::process::effective_uid() != 0 {
        return plywood_fuse::testing::say_skipped("only root has attributes below trusted.");
    }
    let layers = Layers::new(2);
    layers.file(1, "f", "one");
    let dir = sys::open::open_root(&layers.lower(1, "")).unwrap();
    let name = c"trusted.overlay.plywood.esc.user.fuseoverlayfs.opaque";
    sys::xattr::set(Place::At(dir.as_fd(), b"f"), name, b"mine", SetMode::Any).unwrap();
    let view = layers.open_read_only().as_user(Identity::root());
    assert_eq!(view.xattrs("f").unwrap(), [b"user.fuseoverlayfs.opaque"]);
    assert_eq!(view.xattr("f", "user.fuseoverlayfs.opaque").unwrap().as_deref(), Some(&b"mine"[..]));
}

#[test]
fn a_tree_is_removed_as_one_name() {
    let layers = Layers::new(1);
    for path in ["d/a/f", "d/b/f", "d/g", "keep"] {
        layers.file(0, path, "below");
    }
    let view = layers.root();
    view.write("d/a/new", "above").unwrap();
    view.create_dir("u").unwrap();
    view.create_dir("u/v").unwrap();
    view.write("u/v/f", "above only").unwrap();
    let overlay = view.overlay();
    let root = overlay.root();
    let before = overlay.counters.copy_ups.load(std::sync::atomic::Ordering::Relaxed);
    for name in ["d", "u"] {
        overlay.remove_tree(root, name.as_bytes()).unwrap();
    }
    assert_eq!(overlay.counters.copy_ups.load(std::sync::atomic::Ordering::Relaxed), before);
    assert_eq!(overlay.counters.whiteouts.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(overlay.remove_tree(root, b"d").unwrap_err().errno(), libc::ENOENT);
    assert_eq!(view.names("/").unwrap(), ["keep"]);
    assert_eq!(overlay.known_inodes(), 1);
    view.create_dir("d").unwrap();
    assert!(view.names("d").unwrap().is_empty(), "what is below stays hidden");
    drop(view);
    let view = again(&layers);
    assert_eq!(view.names("/").unwrap(), ["d", "keep"]);
    assert!(view.names("d").unwrap().is_empty());
}

#[test]
fn a_tree_of_which_something_is_known_is_not_removed_as_one_name() {
    let layers = Layers::new(1);
    layers.file(0, "d/a/f", "below");
    let view = layers.root();
    let held = view.open("d/a/f", Open::read()).unwrap();
    let overlay = view.overlay();
    assert_eq!(overlay.remove_tree(overlay.root(), b"d").unwrap_err().errno(), libc::EBUSY);
    assert_eq!(view.names("d/a").unwrap(), ["f"]);
    drop(held);
    overlay.remove_tree(overlay.root(), b"d").unwrap();
    assert!(view.names("/").unwrap().is_empty());
}

#[test]
fn a_work_directory_is_emptied_however_deep_it_is() {
    let layers = Layers::new(1);
    let view = layers.root();
    let mut path = String::new();
    for _ in 0..700 {
        path.push_str("/d");
        view.create_dir(&path).unwrap();
    }
    view.write(format!("{path}/f"), "bottom").unwrap();
    let overlay = view.overlay();
    overlay.remove_tree(overlay.root(), b"d").unwrap();
    drop(view);
    let view = again(&layers);
    assert!(view.names("/").unwrap().is_empty());
    let work = layers.upper.with_file_name("work").join("work");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0);
}

#[test]
fn a_reserved_attribute_reads_back_from_a_stack_without_an_upper_layer() {
    use plywood_fuse::overlay::{Overlay, Settings};
    let layers = Layers::new(1);
    let view = layers.root();
    view.write("f", "x").unwrap();
    view.set_xattr("f", b"user.fuseoverlayfs.opaque", b"y").unwrap();
    drop(view);
    let overlay = Overlay::open(std::slice::from_ref(&layers.upper), None, Settings::default()).unwrap();
    let (node, _) = overlay.lookup(overlay.root(), b"f").unwrap();
    assert_eq!(overlay.xattr_names(&node).unwrap(), [b"user.fuseoverlayfs.opaque"]);
    assert_eq!(overlay.xattr(&node, b"user.fuseoverlayfs.opaque").unwrap(), b"y");
}

#[test]
fn a_file_is_made_over_a_lower_one_without_a_whiteout() {
    use plywood_fuse::overlay::create::{Creator, New};
    let layers = Layers::new(1);
    layers.file(0, "f", "below").file(0, "d/f", "below");
    fs::hard_link(layers.lower(0, "f"), layers.lower(0, "g")).unwrap();
    let view = layers.root();
    let held = view.open("f", Open::read()).unwrap();
    let overlay = view.overlay();
    let creator = Creator { uid: 0, gid: 0, umask: 0 };
    let make = |name: &[u8], new: New<'_>| overlay.create_over(overlay.root(), name, new, 0o640, creator);
    let (node, _) = make(b"f", New::File).unwrap();
    overlay.forget(node.ino, 1);
    assert_eq!(
        make(b"f", New::File).err().map(|e| e.errno()),
        Some(libc::EEXIST),
        "it is in the upper layer"
    );
    assert_eq!(make(b"d", New::Symlink(b"x")).err().map(|e| e.errno()), Some(libc::EEXIST), "a directory");
    assert_eq!(make(b"e", New::Dir).err().map(|e| e.errno()), Some(libc::EISDIR));
    make(b"n", New::Symlink(b"x")).unwrap();
    assert_eq!(overlay.counters.whiteouts.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!((view.read("f").unwrap(), view.read("g").unwrap()), (Vec::new(), b"below".to_vec()));
    assert_eq!(held.read_all().unwrap(), b"below", "who has the old one open keeps it");
    view.write("g", "changed").unwrap();
    assert_eq!(view.read("f").unwrap(), b"");
    assert_eq!(view.symlink_metadata("f").unwrap().perm, 0o640);
    drop((held, node));
    drop(view);
    let view = again(&layers);
    assert_eq!((view.read("f").unwrap(), view.read("g").unwrap()), (Vec::new(), b"changed".to_vec()));
}

//! Members and what they get: content, holes, modes, times, attributes, devices; what replaces what; who is told.

use super::support::{
    ALL, How, THEN, Tar, World, assert_same, everywhere, may_be_root, nothing, put, refused_everywhere, text,
};
use plywood::apply::{DirTarget, Outcome, SameOwner, Source, apply};
use plywood::archive::{Entry, EntryKind, Segment};
use plywood::backend::Progress;
use plywood::error::{Error, ErrorKind, Result};
use plywood::types::Timestamp;
use plywood_fuse::testing::TempDir;
use plywood_fuse::types::{Device, Kind, Time};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn members_come_out_as_they_went_in() {
    let tar = Tar::new()
        .dir("d", 0o1755)
        .file("d/f", "content")
        .but(|e| {
            e.mode = 0o4751;
            e.mtime = Timestamp { secs: 5, nanos: 123_456_789 };
        })
        .link("d/f", "d/g")
        .but(|e| {
            e.mode = 0o4751;
            e.mtime = Timestamp { secs: 5, nanos: 123_456_789 };
        })
        .symlink("f", "d/l")
        .member("d/p", EntryKind::Fifo, 0o622)
        .file("d/closed", "secret")
        .but(|e| e.mode = 0);
    let tree = everywhere(nothing, &tar);
    assert_eq!((tree["d"].perm, tree["d/f"].perm, tree["d/p"].perm), (0o1755, 0o4751, 0o622));
    assert_eq!((tree["d/closed"].perm, text(&tree, "d/closed")), (0, "secret"));
    assert_eq!(tree["d/f"].mtime, Some(Time { secs: 5, nanos: 123_456_789 }));
    for path in ["d", "d/l", "d/p"] {
        assert_eq!(tree[path].mtime, Some(Time { secs: THEN, nanos: 0 }), "{path}");
    }
    assert_eq!(tree["d/g"].first_name, "d/f");
    assert_eq!(tree["d/p"].kind, Kind::Fifo);
}

// DirectoryCreation
#[test]
fn missing_directories_are_made_for_members() {
    let fill = |root: &Path| fs::create_dir(root.join("etc")).expect("mkdir");
    let tar = Tar::new()
        .dir("/etc/subdir", 0o755)
        .dir("/etc/subdir2/", 0o755)
        .dir("/etc/subdir2/more", 0o755)
        .dir("/other/noparent-1/1", 0o700)
        .dir("/other/noparent-2/2/", 0o755);
    let tree = everywhere(fill, &tar);
    for path in ["etc/subdir", "etc/subdir2/more", "other/noparent-2/2"] {
        assert_eq!((tree[path].kind, tree[path].perm), (Kind::Dir, 0o755), "{path}");
    }
    assert_eq!((tree["other"].perm, tree["other/noparent-1"].perm), (0o755, 0o755));
    assert_eq!(tree["other/noparent-1/1"].perm, 0o700);
}

#[test]
fn times_of_directories_come_last_however_members_are_ordered() {
    let tar = Tar::new()
        .dir("a", 0o755)
        .dir("b", 0o755)
        .dir("a/c", 0o755)
        .file("b/f", "")
        .file("a/c/f", "")
        .file("b/g", "")
        .file("a/f", "")
        .mark("b/.wh.g")
        .symlink("a/c", "l")
        .file("l/h", "");
    let tree = everywhere(nothing, &tar);
    for path in ["a", "b", "a/c"] {
        assert_eq!(tree[path].mtime, Some(Time { secs: THEN, nanos: 0 }), "{path}");
    }
    let old = |root: &Path| put(root, "a/c/old", "");
    assert_same(&everywhere(old, &tar.clone().mark("a/c/.wh.old")), &tree, "with something old");
}

#[test]
fn directories_a_thousand_deep_get_their_times() {
    let mut path = String::new();
    let mut tar = Tar::new();
    for _ in 0..500 {
        path.push_str("d/");
        tar = tar.dir(&path, 0o755);
    }
    for depth in [400, 3, 450, 200] {
        tar = tar.file(format!("{}f", &path[..2 * depth]), "late");
    }
    let tree = everywhere(nothing, &tar);
    assert_eq!(tree.len(), 504);
    for (path, shown) in &tree {
        assert_eq!(shown.mtime, Some(Time { secs: THEN, nanos: 0 }), "{path}");
    }
}

#[test]
fn what_is_there_is_replaced_and_a_directory_keeps_what_it_has() {
    let fill = |root: &Path| {
        for path in ["file", "dir/x", "merged/x", "tree/a/b"] {
            put(root, path, "old");
        }
        symlink("file", root.join("link")).expect("symlink");
    };
    let tar = Tar::new()
        .dir("file", 0o700)
        .file("dir", "now a file")
        .dir("merged", 0o750)
        .file("merged/y", "new")
        .file("link", "now a file")
        .member("tree", EntryKind::Fifo, 0o600);
    let tree = everywhere(fill, &tar);
    assert_eq!(
        tree.keys().collect::<Vec<_>>(),
        ["dir", "file", "link", "merged", "merged/x", "merged/y", "tree"]
    );
    assert_eq!((text(&tree, "dir"), text(&tree, "link")), ("now a file", "now a file"));
    assert_eq!((tree["file"].kind, tree["file"].perm, tree["merged"].perm), (Kind::Dir, 0o700, 0o750));
    assert_eq!((tree["tree"].kind, text(&tree, "merged/x")), (Kind::Fifo, "old"));
}

#[test]
fn a_name_may_come_twice() {
    let tar = Tar::new()
        .file("f", "first")
        .file("./f", "second")
        .dir("d", 0o755)
        .file("d/x", "stays")
        .dir("d/", 0o711)
        .symlink("a", "l")
        .symlink("b", "l");
    let tree = everywhere(nothing, &tar);
    assert_eq!((text(&tree, "f"), text(&tree, "d/x"), text(&tree, "l")), ("second", "stays", "b"));
    assert_eq!(tree["d"].perm, 0o711);
}

#[test]
fn another_name_of_a_replaced_file_keeps_its_content() {
    let tar = Tar::new().file("f", "first").link("f", "g").file("f", "second");
    let tree = everywhere(nothing, &tar);
    assert_eq!((text(&tree, "f"), text(&tree, "g")), ("second", "first"));
    let fill = |root: &Path| {
        put(root, "f", "first");
        fs::hard_link(root.join("f"), root.join("g")).expect("link");
    };
    let tree = everywhere(fill, &Tar::new().file("f", "second"));
    assert_eq!((text(&tree, "f"), text(&tree, "g")), ("second", "first"));
}

/// Holes: what the archive says where.
struct Sparse {
    pieces: Vec<(u64, &'static str)>,
    size: u64,
    at: Option<usize>,
    offset: usize,
}

impl Source for Sparse {
    fn next(&mut self) -> Result<Option<Entry>> {
        if self.at.is_some() {
            return Ok(None);
        }
        self.at = Some(0);
        let mut entry = Tar::new().file("f", "").0.remove(0).0;
        entry.size_bytes = self.size;
        Ok(Some(entry))
    }

    fn next_segment(&mut self) -> Result<Option<Segment>> {
        let at = self.at.expect("a file is being read");
        self.offset = 0;
        self.at = Some(at + 1);
        let piece = self.pieces.get(at);
        Ok(piece.map(|(at, data)| Segment { offset_bytes: *at, length_bytes: data.len() as u64 }))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let data = self.pieces[self.at.expect("a file is being read") - 1].1.as_bytes();
        let length = (data.len() - self.offset).min(buffer.len()).min(3);
        buffer[..length].copy_from_slice(&data[self.offset..self.offset + length]);
        self.offset += length;
        Ok(length)
    }
}

#[test]
fn holes_stay_holes() {
    for (pieces, size) in [
        (vec![(0, "begin"), (1 << 20, "middle")], (2 << 20) + 1),
        (vec![(1 << 20, "end")], (1 << 20) + 3),
        (vec![], 1 << 20),
        (vec![], 0),
    ] {
        let mut expected = vec![0; size as usize];
        for (at, data) in &pieces {
            expected[*at as usize..*at as usize + data.len()].copy_from_slice(data.as_bytes());
        }
        let tree = super::support::everywhere_from(nothing, || {
            Box::new(Sparse { pieces: pieces.clone(), size, at: None, offset: 0 })
        });
        assert!(tree["f"].content == expected, "{pieces:?} {size}");
    }
    let temp = TempDir::new();
    let mut target = DirTarget::plain(temp.path(), SameOwner::Keep).expect("open");
    let mut sparse = Sparse { pieces: vec![(1 << 30, "far")], size: 2 << 30, at: None, offset: 0 };
    apply(&mut sparse, &mut target, &()).expect("apply");
    let meta = fs::metadata(temp.path().join("f")).expect("stat");
    assert_eq!(meta.len(), 2 << 30);
    assert!(meta.blocks() < 100, "{} blocks", meta.blocks());
}

#[test]
fn devices_are_made() {
    if !may_be_root() {
        return;
    }
    let tar = Tar::new()
        .member("null", EntryKind::Char { major: 1, minor: 3 }, 0o666)
        .member("disk", EntryKind::Block { major: 8, minor: 1_048_575 }, 0o660)
        .but(|e| (e.uid, e.gid) = (0, 6))
        .dir("d", 0o755)
        .member("d/zero", EntryKind::Char { major: 0, minor: 0 }, 0o600)
        .file("d/f", "beside it");
    let tree = everywhere(nothing, &tar);
    assert_eq!(tree["null"].device, Device { major: 1, minor: 3 });
    assert_eq!(
        (tree["disk"].device.minor, tree["disk"].owner, tree["disk"].perm),
        (1_048_575, (0, 6), 0o660)
    );
    // A device 0:0 is a whiteout on the disk, and a device in the tree.
    assert_eq!((tree["d/zero"].kind, tree["d/zero"].device), (Kind::Char, Device::default()));
}

fn attributes(path: &str, attributes: &[(&str, &str)]) -> Tar {
    Tar::new().file(path, "x").but(|e| {
        e.xattrs = attributes.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    })
}

/// A version 2 capability, `cap_net_raw+ep`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn attributes_are_set_but_those_for_root_of_the_machine() {
    let tar = attributes(
        "f",
        &[("user.a", "1"), ("user.b", ""), ("trusted.c", "3"), ("trusted.overlay.opaque", "y")],
    );
    for how in ALL {
        let mut world = World::new(how, nothing);
        let applied = world.apply(|| Box::new(tar.source())).expect("apply");
        let tree = world.tree();
        let names: Vec<_> = tree["f"].xattrs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        assert_eq!(names, [("user.a", &b"1"[..]), ("user.b", b"")], "{how:?}");
        assert_eq!((applied.xattrs_left_out, applied.warnings.len()), (2, 2), "{how:?}");
        assert!(applied.warnings[0].contains("trusted.c"), "{how:?}: {:?}", applied.warnings);
    }
}

#[test]
fn a_symlink_goes_without_attributes_of_users() {
    for how in ALL {
        let mut world = World::new(how, nothing);
        let tar = Tar::new().symlink("x", "l").but(|e| e.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())]);
        let applied = world.apply(|| Box::new(tar.source())).expect("apply");
        assert_eq!((applied.xattrs_left_out, world.tree()["l"].xattrs.len()), (1, 0), "{how:?}");
    }
}

#[test]
fn attributes_that_make_no_sense_are_refused() {
    refused_everywhere(nothing, &attributes("f", &[("user.", "1")]), "user.");
    refused_everywhere(nothing, &attributes("f", &[("user.a\0b", "1")]), "attribute");
    let long = format!("user.{}", "x".repeat(300));
    refused_everywhere(nothing, &attributes("f", &[(&long, "1")]), "attribute");
}

#[test]
fn a_capability_survives_the_owner_the_mode_and_another_name() {
    if !may_be_root() {
        return;
    }
    let owned = |e: &mut Entry| (e.uid, e.gid, e.mode) = (33, 34, 0o6755);
    let tar = Tar::new()
        .file("f", "program")
        .but(|e| e.xattrs = vec![(b"security.capability".to_vec(), CAPABILITY.to_vec())])
        .but(owned)
        // GNU tar says nothing of the attributes of a further name.
        .link("f", "g")
        .but(owned);
    let tree = everywhere(nothing, &tar);
    assert_eq!(tree["f"].xattrs["security.capability"], CAPABILITY);
    assert_eq!((tree["f"].owner, tree["f"].perm), ((33, 34), 0o6755));
    assert_eq!(tree["g"].first_name, "f");
}

#[test]
fn a_hard_link_brings_the_attributes_that_it_says() {
    let tar = Tar::new().file("f", "content").link("f", "g").but(|e| {
        e.mode = 0o600;
        e.mtime.secs = 7;
        e.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    });
    let tree = everywhere(nothing, &tar);
    assert_eq!(
        (tree["f"].perm, tree["f"].mtime.map(|t| t.secs), tree["f"].xattrs.len()),
        (0o600, Some(7), 1)
    );
}

#[test]
fn a_group_that_a_directory_hands_down_does_not_count() {
    if !may_be_root() {
        return;
    }
    let tar = Tar::new()
        .dir("d", 0o2775)
        .but(|e| e.gid = 50)
        .file("d/a", "x")
        .file("d/b", "x")
        .but(|e| e.gid = 51)
        .dir("d/e", 0o755)
        .symlink("a", "d/l")
        .dir("d/f", 0o2755)
        .but(|e| e.gid = 50);
    let tree = everywhere(nothing, &tar);
    let seen = |path: &str| (tree[path].owner.1, tree[path].perm);
    assert_eq!((seen("d"), seen("d/a"), seen("d/b")), ((50, 0o2775), (0, 0o644), (51, 0o644)));
    assert_eq!((seen("d/e"), seen("d/f"), tree["d/l"].owner), ((0, 0o755), (50, 0o2755), (0, 0)));
}

#[test]
fn a_list_that_a_directory_hands_down_does_not_count() {
    let hands_down = |root: &Path| {
        let done =
            std::process::Command::new("setfacl").args(["-d", "-m", "u:5:rwx,m:rwx"]).arg(root).status();
        if !done.is_ok_and(|s| s.success()) {
            super::privileges::cannot_run("setfacl is missing: install package acl");
        }
    };
    let temp = TempDir::new();
    hands_down(temp.path());
    let tar = Tar::new().file("a", "").file("b", "").but(|e| e.mode = 0o600).dir("d", 0o711).file("d/c", "");
    let mut target = DirTarget::plain(temp.path(), SameOwner::Keep).expect("open");
    apply(&mut tar.source(), &mut target, &()).expect("apply");
    for (path, perm) in [("a", 0o644), ("b", 0o600), ("d", 0o711), ("d/c", 0o644)] {
        let mode = fs::metadata(temp.path().join(path)).expect("stat").permissions().mode() & 0o7777;
        assert_eq!(mode, perm, "{path}");
    }
}

#[test]
fn nul_bytes_are_refused() {
    for tar in [
        Tar::new().file("a\0b", ""),
        Tar::new().symlink("a\0b", "l"),
        Tar::new().file("f", "").link("f\0", "l"),
    ] {
        refused_everywhere(nothing, &tar, "NUL");
    }
}

#[test]
fn names_that_are_too_long_are_an_error() {
    let long = "x".repeat(256);
    for tar in [
        Tar::new().file(&long, ""),
        Tar::new().file(format!("{long}/f"), ""),
        Tar::new().symlink(&long, "l").file("l/f", ""),
    ] {
        refused_everywhere(nothing, &tar, "too long");
    }
    // There is no such name, so there is nothing to be removed.
    let tree = everywhere(nothing, &Tar::new().mark(&format!(".wh.{}", "x".repeat(251))));
    assert!(tree.is_empty());
}

/// Counts what it is told, and gives up after some entries.
struct Watch {
    told: AtomicU64,
    bytes: AtomicU64,
    until: u64,
}

impl Progress for Watch {
    fn copied(&self, bytes: u64, entries: u64) {
        assert!(bytes >= self.bytes.swap(bytes, Ordering::Relaxed));
        assert!(entries >= self.told.swap(entries, Ordering::Relaxed));
    }

    fn is_cancelled(&self) -> bool {
        self.told.load(Ordering::Relaxed) >= self.until
    }
}

fn many(count: usize) -> Tar {
    (0..count).fold(Tar::new(), |tar, number| tar.file(format!("d/f{number}"), "content"))
}

#[test]
fn who_waits_is_told_and_may_give_up() {
    let temp = TempDir::new();
    let mut target = DirTarget::plain(temp.path(), SameOwner::Keep).expect("open");
    let watch = Watch { told: AtomicU64::new(0), bytes: AtomicU64::new(0), until: u64::MAX };
    let outcome = apply(&mut many(1000).source(), &mut target, &watch).expect("apply");
    let Outcome::Applied(applied) = outcome else { panic!("{outcome:?}") };
    assert_eq!((applied.entries, applied.bytes), (1000, 7000));
    assert_eq!((watch.told.into_inner(), watch.bytes.into_inner()), (1000, 7000));

    let watch = Watch { told: AtomicU64::new(0), bytes: AtomicU64::new(0), until: 300 };
    let error = apply(&mut many(1000).source(), &mut target, &watch).expect_err("given up");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!((300..400).contains(&watch.told.into_inner()));
}

/// An archive that ends in the middle of a file.
struct Cut(super::support::Listed, usize);

impl Source for Cut {
    fn next(&mut self) -> Result<Option<Entry>> {
        self.0.next()
    }

    fn next_segment(&mut self) -> Result<Option<Segment>> {
        self.0.next_segment()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.1 =
            self.1.checked_sub(1).ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "read", "", "cut"))?;
        self.0.read(buffer)
    }
}

#[test]
fn an_archive_that_is_cut_fails_as_it_says() {
    for how in ALL {
        let mut world = World::new(how, nothing);
        let error = world.apply(|| Box::new(Cut(many(5).source(), 4))).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{how:?}: {error}");
        assert!(error.to_string().contains("cut"), "{how:?}: {error}");
    }
}

#[test]
fn messages_name_the_member() {
    let mut world = World::new(How::Plain, |root| put(root, "f", ""));
    let error = world.apply(|| Box::new(Tar::new().file("f/inside", "").source())).expect_err("no directory");
    assert_eq!(
        error.to_string(),
        "apply: \"f\": something on the way to it is no directory: invalid argument"
    );
}

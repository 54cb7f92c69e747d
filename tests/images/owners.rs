//! A root file system of many owners in the hands of a plain user, who has one uid and no namespace.

use super::privileges::{Who, again, inside};

#[test]
fn a_plain_user_keeps_owners_modes_and_devices() {
    again(Who::PlainUser, 2);
}

#[test]
fn root_of_a_namespace_with_one_id_keeps_owners_modes_and_devices() {
    again(Who::NamespaceRoot, 2);
}

mod anyone {
    use super::{Who, inside};
    use crate::support::{Tar, assert_same};
    use crate::world::*;
    use plywood::apply::Below;
    use plywood::archive::{Entry, EntryKind, Limits, Reader};
    use plywood::backend::BackendName;
    use plywood::compress::Compression;
    use plywood::error::ErrorKind;
    use plywood::image::document::{blob_of_path, blob_path};
    use plywood::image::export::{ExportOptions, export};
    use plywood::image::import::ImportOptions;
    use plywood::image::unpack::Blobs;
    use plywood::types::Labels;
    use std::collections::BTreeMap;
    use std::io::Cursor;

    /// cap_net_raw=ep, version 2.
    const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// What a Debian tree has that is not a plain user's to make.
    fn debian() -> Tar {
        let mut tar = Tar::new();
        let mut add = |path: &str, kind: EntryKind, mode, owner, content: &str| {
            let mut one = match kind {
                EntryKind::File => std::mem::take(&mut tar).file(path, content),
                kind => std::mem::take(&mut tar).member(path, kind, mode),
            };
            let (entry, _) = one.0.last_mut().expect("one was added");
            entry.mode = mode;
            (entry.uid, entry.gid) = owner;
            tar = one;
        };
        let (dir, file) = (|| EntryKind::Dir, || EntryKind::File);
        add("dev", dir(), 0o755, (0, 0), "");
        add("dev/null", EntryKind::Char { major: 1, minor: 3 }, 0o666, (0, 0), "");
        add("dev/sda", EntryKind::Block { major: 8, minor: 0 }, 0o660, (0, 6), "");
        add("etc", dir(), 0o755, (0, 0), "");
        add("etc/shadow", file(), 0o640, (0, 42), "root:*");
        add("run", dir(), 0o755, (0, 0), "");
        add("run/pipe", EntryKind::Fifo, 0o600, (7, 7), "");
        add("tmp", dir(), 0o1777, (0, 0), "");
        add("usr", dir(), 0o755, (0, 0), "");
        add("usr/ping", file(), 0o755, (0, 0), "ping");
        add("usr/su", file(), 0o4755, (0, 0), "su");
        add("usr/write", file(), 0o2755, (0, 5), "write");
        add("var", dir(), 0o2775, (0, 50), "");
        add("var/closed", dir(), 0o700, (101, 101), "");
        add("var/closed/f", file(), 0, (101, 102), "inside");
        add("var/link", EntryKind::Symlink(b"closed".to_vec()), 0o777, (33, 33), "");
        let ping = tar.0.iter_mut().find(|(entry, _)| entry.path == b"usr/ping").expect("it was added");
        ping.0.xattrs.push((b"security.capability".to_vec(), CAPABILITY.to_vec()));
        tar
    }

    /// What a change of it adds.
    fn change() -> Tar {
        let mut tar = Tar::new().dir("srv", 0o750).file("srv/new", "new").mark("etc/.wh.shadow");
        for (entry, _) in &mut tar.0 {
            (entry.uid, entry.gid) = (1000, 1001);
        }
        tar
    }

    type Said = (EntryKind, u32, (u32, u32), Vec<(Vec<u8>, Vec<u8>)>);

    fn said(entry: Entry) -> (Vec<u8>, Said) {
        let mut path = entry.path;
        while path.ends_with(b"/") {
            path.pop();
        }
        (path, (entry.kind, entry.mode, (entry.uid, entry.gid), entry.xattrs))
    }

    /// The members of a layer of an archive.
    fn members(archive: &[u8], blob: &str) -> BTreeMap<Vec<u8>, Said> {
        let mut outer = Reader::new(archive, Limits::default());
        while let Some(entry) = outer.next().expect("an archive") {
            if entry.path != blob.as_bytes() {
                continue;
            }
            let mut layer = vec![0; entry.size_bytes as usize];
            outer.next_segment().expect("content");
            let mut at = 0;
            while at < layer.len() {
                at += outer.read(&mut layer[at..]).expect("content");
            }
            let mut inner = Reader::new(&layer[..], Limits::default());
            let mut found = BTreeMap::new();
            while let Some(entry) = inner.next().expect("a layer") {
                found.extend([said(entry)]);
            }
            return found;
        }
        panic!("{blob} is missing");
    }

    #[test]
    fn in_layers_owners_modes_and_devices_survive() {
        if inside().is_none() {
            return;
        }
        let world = World::new(BackendName::Fuse);
        let options = ImportOptions { blobs: Blobs::Dropped, ..ImportOptions::default() };
        let base = world.stream(packed(&debian()), &options).unwrap_or_else(|e| panic!("{e}"));
        let tree = world.tree(&base.name);
        assert_eq!((tree["etc/shadow"].owner, tree["etc/shadow"].perm), ((0, 42), 0o640));
        assert_eq!(tree["usr/su"].perm, 0o4755);
        world.snapshotter.prepare("change", Some(&base.name), Labels::new(), &()).expect("prepare");
        let layer = Cursor::new(packed(&change()));
        world.snapshotter.apply("change", layer, Below::Nothing, &()).unwrap_or_else(|e| panic!("{e}"));
        world.snapshotter.commit("changed", "change", Labels::new(), None, &()).expect("commit");

        let options = ExportOptions { compression: Compression::None, ..ExportOptions::default() };
        let mut archive = Vec::new();
        let exported = export(&world.snapshotter, "changed", &mut archive, &options, &());
        let exported = exported.unwrap_or_else(|e| panic!("{e}"));
        for ((_, layer), tar) in exported.layers.iter().zip([debian(), change()]) {
            let path = blob_path(&layer.blob.digest);
            assert!(blob_of_path(&path).is_some());
            let wanted: BTreeMap<_, _> = tar.0.into_iter().map(|(entry, _)| said(entry)).collect();
            let found = members(&archive, &path);
            for (path, wanted) in wanted {
                let name = path.escape_ascii().to_string();
                let found = found.get(&path).unwrap_or_else(|| panic!("{name} is missing: {found:?}"));
                if name.contains(".wh.") {
                    continue;
                }
                assert_eq!(*found, wanted, "{name}");
            }
        }
        world.check("changed");
        let elsewhere = World::new(BackendName::Fuse);
        let imported = elsewhere.take(archive).unwrap_or_else(|e| panic!("{e}"));
        assert_same(&elsewhere.tree(&imported.name), &world.tree("changed"), "elsewhere");
        elsewhere.check("elsewhere");
    }

    #[test]
    fn in_full_copies_they_are_this_users() {
        if inside().is_none() {
            return;
        }
        let world = World::new(BackendName::Native);
        let taken = world.take(packed(&debian()));
        if inside() == Some(Who::NamespaceRoot) {
            // It may have been given more ids, and is told how.
            let failed = taken.expect_err("there is one id");
            assert_eq!(failed.kind(), ErrorKind::PermissionDenied, "{failed}");
            assert!(failed.to_string().contains("/etc/subuid"), "{failed}");
            world.check_failed("one id", &Image::new(&[debian()]));
            return;
        }
        let base = taken.unwrap_or_else(|e| panic!("{e}"));
        let warnings = &base.layers[0].warnings;
        for path in ["etc/shadow", "usr/ping", "dev/null"] {
            assert!(warnings.iter().any(|w| w.contains(path)), "{path}: {warnings:?}");
        }
        let layers = world.snapshotter.layers(&base.name).unwrap_or_else(|e| panic!("{e}"));
        let root = &layers.lowers[0];
        let me = rustix::process::geteuid().as_raw();
        for (path, content) in [("etc/shadow", "root:*"), ("usr/ping", "ping")] {
            use std::os::unix::fs::MetadataExt;
            assert_eq!(std::fs::read_to_string(root.join(path)).expect(path), content);
            assert_eq!(root.join(path).metadata().expect(path).uid(), me, "{path}");
        }
        assert!(!root.join("dev/null").exists(), "nobody else makes devices");
        world.check("native");
        // As it came: the blob says what the disk cannot.
        let mut archive = Vec::new();
        let exported = export(&world.snapshotter, &base.name, &mut archive, &ExportOptions::default(), &());
        let exported = exported.unwrap_or_else(|e| panic!("{e}"));
        let found = members(&archive, &blob_path(&exported.layers[0].1.blob.digest));
        for (entry, _) in debian().0 {
            let (path, wanted) = said(entry);
            assert_eq!(found[&path], wanted, "{}", path.escape_ascii());
        }
    }
}

//! The content of files.

use super::common::{Layers, errno};
use super::{assert_all_given_back, give, rooted, user};
use libc::{EACCES, EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, EOPNOTSUPP, EROFS};
use plywood_fuse::overlay::rename::Target;
use plywood_fuse::types::Kind;
use plywood_fuse::view::Open;
use std::io::{Read, Seek, SeekFrom, Write};

#[test]
fn a_handle_does_what_it_was_opened_for() {
    let layers = Layers::new(1);
    layers.file(0, "file", "content").dir(0, "dir");
    let root = rooted(&layers);
    let (read, write) = (root.open("file", Open::read()).unwrap(), root.open("file", Open::write()).unwrap());
    let dir = root.open("dir", Open::read()).unwrap();
    let mut buffer = [0; 3];
    let table = [
        ("read", errno(read.read_at(&mut buffer, 0)), 0),
        ("read of a writer", errno(write.read_at(&mut buffer, 0)), EBADF),
        ("read of a directory", errno(dir.read_at(&mut buffer, 0)), EISDIR),
        ("write of a reader", errno(read.write_at(b"x", 0)), EBADF),
        ("write of a directory", errno(dir.write_at(b"x", 0)), EBADF),
        ("set_len of a reader", errno(read.set_len(0)), EINVAL),
        ("set_len too large", errno(write.set_len(1 << 63)), EINVAL),
        ("allocate by a reader", errno(read.allocate(0, 1)), EBADF),
        ("allocate nothing", errno(write.allocate(0, 0)), EINVAL),
        ("copy from a writer", errno(write.copy_range(0, &write, 0, 1)), EBADF),
        ("copy to a reader", errno(read.copy_range(0, &read, 0, 1)), EBADF),
        ("sync of a directory", errno(dir.sync()), 0),
        ("sync", errno(read.sync_data()), 0),
        ("seek of a directory", errno(dir.seek_data(0)), EISDIR),
    ];
    for (case, answer, expected) in table {
        assert_eq!(answer, expected, "{case}");
    }
    assert_eq!(dir.metadata().unwrap().kind, Kind::Dir);
    for how in [Open::write(), Open::append(), Open::read().truncate(), Open::read().and_write()] {
        assert_eq!(errno(root.open("dir", how)), EISDIR, "{how:?}");
    }
    root.symlink("file", "link").unwrap();
    assert_eq!(errno(root.open("link", Open::read().nofollow())), ELOOP);
    assert_eq!(errno(root.open("link", Open::write().or_create().nofollow())), ELOOP);
    assert_eq!(errno(root.open("link", Open::write().create_new())), EEXIST);
    assert_eq!(errno(root.open("link/", Open::read().nofollow())), libc::ENOTDIR);
    drop((read, write, dir));
    assert_all_given_back(root.overlay());
}

#[test]
fn a_new_file_is_open_whatever_its_mode() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    root.create_dir("d").unwrap();
    give(&root, "d", (super::USER, super::GROUP), 0o755);
    let me = root.as_user(user());
    let file = me.open("d/f", Open::read().and_write().create_new().mode(0)).unwrap();
    file.write_all_at(b"secret", 0).unwrap();
    assert_eq!(file.read_all().unwrap(), b"secret");
    assert_eq!(errno(me.read("d/f")), EACCES);
    assert_eq!(root.read("d/f").unwrap(), b"secret");
    // A right that was had at the open stays.
    root.remove_dir_all("d").unwrap();
    assert_eq!(file.read_all().unwrap(), b"secret");
}

#[test]
fn a_position_moves_with_reads_and_writes_and_seeks() {
    let layers = Layers::new(1);
    layers.file(0, "file", "0123456789");
    let root = rooted(&layers);
    let mut file = root.open("file", Open::read().and_write()).unwrap();
    let mut three = [0; 3];
    file.read_exact(&mut three).unwrap();
    assert_eq!(&three, b"012");
    file.write_all(b"abc").unwrap();
    assert_eq!(file.stream_position().unwrap(), 6);
    assert_eq!(file.seek(SeekFrom::End(-2)).unwrap(), 8);
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "89");
    assert_eq!(file.seek(SeekFrom::Current(-10)).unwrap(), 0);
    let error = file.seek(SeekFrom::Current(-1)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EINVAL));
    file.rewind().unwrap();
    rest.clear();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "012abc6789");
    // Another handle sees it at once, with a position of its own.
    let mut other = root.open("file", Open::read()).unwrap();
    rest.clear();
    other.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "012abc6789");
    let error = other.write(b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(EBADF));
}

#[test]
fn appending_goes_to_the_end_wherever_it_is() {
    let layers = Layers::new(1);
    layers.file(0, "log", "one\n");
    let root = rooted(&layers);
    let mut first = root.open("log", Open::append().and_read()).unwrap();
    let mut second = root.open("log", Open::append()).unwrap();
    first.write_all(b"two\n").unwrap();
    second.write_all(b"three\n").unwrap();
    first.seek(SeekFrom::Start(0)).unwrap();
    first.write_all(b"four\n").unwrap();
    assert_eq!(first.stream_position().unwrap(), 19, "the position follows to the end");
    first.write_at(b"five\n", 0).unwrap();
    assert_eq!(root.read("log").unwrap(), b"one\ntwo\nthree\nfour\nfive\n");
    assert_eq!(errno(second.copy_range(0, &first, 0, 1)), EBADF);
    let reader = root.open("log", Open::read()).unwrap();
    assert_eq!(errno(reader.copy_range(0, &first, 0, 1)), EBADF);
}

#[test]
fn many_who_append_lose_nothing() {
    let layers = Layers::new(1);
    layers.file(0, "log", "");
    let root = rooted(&layers);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let file = root.open("log", Open::append()).unwrap();
                for _ in 0..100 {
                    file.write_all_at(b"12345678", 0).unwrap();
                }
            });
        }
    });
    assert_eq!(root.read("log").unwrap(), b"12345678".repeat(400));
    assert_all_given_back(root.overlay());
}

#[test]
fn holes_stay_holes_and_read_as_zeros() {
    const MIB: u64 = 1 << 20;
    let layers = Layers::new(1);
    let lower = layers.lower(0, "lower");
    let file = std::fs::File::create(&lower).unwrap();
    file.set_len(8 * MIB).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"middle", 4 * MIB).unwrap();
    drop(file);
    let root = rooted(&layers);
    root.write("upper", "").unwrap();
    let upper = root.open("upper", Open::write()).unwrap();
    upper.set_len(8 * MIB).unwrap();
    upper.write_all_at(b"middle", 4 * MIB).unwrap();
    for name in ["lower", "upper"] {
        // Copied up, the lower one has its holes too.
        let writer = root.open(name, Open::read().and_write()).unwrap();
        writer.write_all_at(b"M", 4 * MIB).unwrap();
        let attr = writer.metadata().unwrap();
        assert_eq!(attr.size_bytes, 8 * MIB);
        assert!(attr.blocks * 512 < MIB, "{name} has {} blocks", attr.blocks);
        let content = root.read(name).unwrap();
        assert_eq!(content.len() as u64, 8 * MIB);
        assert_eq!(&content[4 << 20..][..6], b"Middle");
        assert_eq!(content.iter().filter(|&&b| b != 0).count(), 6);
        if let Ok(Some(data)) = writer.seek_data(0) {
            assert!(data <= 4 * MIB && data > 3 * MIB, "{name}: data at {data}");
            assert_eq!(writer.seek_data(5 * MIB).unwrap(), None);
            assert_eq!(writer.seek_hole(0).unwrap(), Some(0));
            assert_eq!(writer.seek_hole(8 * MIB).unwrap(), None);
        }
        match writer.punch(4 * MIB, 4096) {
            Ok(()) => assert_eq!(root.read(name).unwrap().iter().filter(|&&b| b != 0).count(), 0),
            Err(e) => assert_eq!(e.errno(), EOPNOTSUPP),
        }
        assert_eq!(writer.metadata().unwrap().size_bytes, 8 * MIB);
        match writer.allocate(8 * MIB, 4096) {
            Ok(()) => assert_eq!(writer.metadata().unwrap().size_bytes, 8 * MIB + 4096),
            Err(e) => assert_eq!(e.errno(), EOPNOTSUPP),
        }
    }
}

#[test]
fn a_size_grows_by_zeros_and_shrinks_by_cutting() {
    let layers = Layers::new(1);
    layers.file(0, "file", "0123456789").dir(0, "dir");
    let root = rooted(&layers);
    for (size, content) in [(4, &b"0123"[..]), (6, b"0123\0\0"), (0, b""), (2, b"\0\0")] {
        root.truncate("file", size).unwrap();
        assert_eq!(root.read("file").unwrap(), content);
        assert_eq!(root.metadata("file").unwrap().size_bytes, size);
    }
    assert_eq!(errno(root.truncate("dir", 0)), EISDIR);
    assert_eq!(errno(root.truncate("gone", 0)), ENOENT);
    assert_eq!(errno(root.truncate("file", u64::MAX)), EINVAL);
    root.write("file", "new").unwrap();
    assert_eq!(root.read("file").unwrap(), b"new");
}

#[test]
fn a_range_is_copied_between_files() {
    let layers = Layers::new(1);
    layers.file(0, "from", "0123456789".repeat(10_000)).file(0, "to", "abc");
    let root = rooted(&layers);
    let (from, to) =
        (root.open("from", Open::read()).unwrap(), root.open("to", Open::read().and_write()).unwrap());
    let mut at = 0;
    while at < 100_000 {
        let copied = from.copy_range(at, &to, at + 1, 100_000).unwrap();
        assert!(copied > 0);
        at += copied as u64;
    }
    assert_eq!(from.copy_range(100_000, &to, 0, 10).unwrap(), 0, "at the end there is nothing");
    let expected = [b"a".to_vec(), b"0123456789".repeat(10_000)].concat();
    assert_eq!(to.read_all().unwrap(), expected);
    assert_eq!(root.read("from").unwrap().len(), 100_000);
    let same = root.open("from", Open::read().and_write()).unwrap();
    assert_eq!(errno(same.copy_range(0, &same, 5, 100)), EINVAL);
    assert_eq!(same.copy_range(0, &same, 50_000, 10).unwrap(), 10);
}

#[test]
fn an_open_file_keeps_its_data_when_it_loses_its_name() {
    let layers = Layers::new(2);
    for name in ["lower", "copied", "replaced", "later", "renamed-over"] {
        layers.file(1, name, format!("{name} data"));
    }
    let before = layers.lower_state();
    let root = rooted(&layers);
    root.write("upper", "upper data").unwrap();
    root.write("copied", "copied data").unwrap();
    root.write("source", "other").unwrap();
    let all = ["lower", "copied", "replaced", "later", "renamed-over", "upper"];
    let files = all.map(|name| root.open(name, Open::read().and_write()).unwrap());
    let inos = all.map(|name| root.metadata(name).unwrap().ino);
    for name in ["lower", "copied", "replaced", "later", "upper"] {
        root.remove_file(name).unwrap();
    }
    root.rename("source", "renamed-over", Target::Replace).unwrap();
    root.write("replaced", "a new file").unwrap();
    root.create_dir("upper").unwrap();
    for ((name, file), ino) in all.iter().zip(&files).zip(inos) {
        assert_eq!(file.read_all().unwrap(), format!("{name} data").as_bytes(), "{name}");
        let attr = file.metadata().unwrap();
        assert_eq!((attr.nlink, attr.ino), (0, ino), "{name}");
        // It can still be changed; a lower one is copied up without a name.
        file.write_all_at(b"CHANGED", 0).unwrap();
        file.set_permissions(0o600).unwrap();
        file.set_len(7).unwrap();
        assert_eq!(file.read_all().unwrap(), b"CHANGED", "{name}");
        let attr = file.metadata().unwrap();
        assert_eq!((attr.nlink, attr.perm, attr.size_bytes, attr.ino), (0, 0o600, 7, ino), "{name}");
        file.sync().unwrap();
        assert_eq!(errno(file.link("again")), ENOENT, "{name}");
    }
    assert_eq!(root.names("/").unwrap(), ["renamed-over", "replaced", "upper"]);
    assert_eq!(root.read("renamed-over").unwrap(), b"other");
    assert_eq!(root.read("replaced").unwrap(), b"a new file");
    drop(files);
    assert_all_given_back(root.overlay());
    drop(root);
    assert_eq!(layers.lower_state(), before);
}

#[test]
fn a_removed_file_gives_its_room_back() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x");
    let root = rooted(&layers);
    for name in ["lower", "upper"] {
        let file = root.open(name, Open::read().and_write().or_create()).unwrap();
        file.write_all_at(b"some data", 0).unwrap();
        assert_eq!(file.read_all().unwrap().len(), 9);
        root.remove_file(name).unwrap();
        drop(file);
        root.write(name, "again").unwrap();
        root.remove_file(name).unwrap();
    }
    // Descriptors of this process that lead to files which have no name any more.
    let base = layers.upper.parent().unwrap().to_owned();
    let lost: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|target| target.starts_with(&base) && target.to_string_lossy().ends_with(" (deleted)"))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_removed_directory_stays_usable_to_who_has_it_open() {
    let layers = Layers::new(1);
    layers.dir(0, "lower").dir(0, "merged");
    let root = rooted(&layers);
    root.write("merged/x", "").unwrap();
    root.remove_file("merged/x").unwrap();
    root.create_dir("upper").unwrap();
    for name in ["lower", "merged", "upper"] {
        let dir = root.open(name, Open::read()).unwrap();
        let ino = dir.metadata().unwrap().ino;
        root.remove_dir(name).unwrap();
        assert_eq!(errno(root.metadata(name)), ENOENT);
        let attr = dir.metadata().unwrap();
        assert_eq!((attr.ino, attr.nlink, attr.kind), (ino, 0, Kind::Dir), "{name}");
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn a_file_without_a_name_can_get_one() {
    let layers = Layers::new(1);
    layers.dir(0, "dir").file(0, "dir/gone", "x");
    let root = rooted(&layers);
    give(&root, "dir", (super::USER, super::GROUP), 0o2755);
    let me = root.as_user(user());
    let file = match me.open_nameless("dir", 0o640) {
        // Not every disk has them.
        Err(e) if e.errno() == EOPNOTSUPP => return,
        other => other.unwrap(),
    };
    file.write_all_at(b"finished", 0).unwrap();
    let attr = file.metadata().unwrap();
    assert_eq!((attr.nlink, attr.perm, attr.uid, attr.gid), (0, 0o640, super::USER, super::GROUP));
    assert_eq!(root.names("dir").unwrap(), ["gone"]);
    root.remove_file("dir/gone").unwrap();
    file.link("dir/gone").unwrap();
    file.link("dir/second").unwrap();
    assert_eq!(root.read("dir/gone").unwrap(), b"finished");
    let named = root.metadata("dir/second").unwrap();
    assert_eq!((named.nlink, named.ino), (2, attr.ino));
    file.write_all_at(b"F", 0).unwrap();
    assert_eq!(root.read("dir/second").unwrap(), b"Finished");
    root.remove_file("dir/gone").unwrap();
    root.remove_file("dir/second").unwrap();
    assert_eq!(file.read_all().unwrap(), b"Finished");
    assert_eq!(errno(me.open_nameless("dir/x", 0o640)), ENOENT);
    let forgotten = me.open_nameless("dir", 0o640).unwrap();
    drop((file, forgotten));
    assert_all_given_back(root.overlay());
    assert_eq!(root.names("dir").unwrap().len(), 0);
}

#[test]
fn without_an_upper_layer_nothing_changes() {
    let layers = Layers::new(1);
    layers.file(0, "dir/file", "x");
    let before = layers.lower_state();
    let root = layers.open_read_only().as_user(plywood_fuse::types::Identity::root());
    assert_eq!(root.read("dir/file").unwrap(), b"x");
    let table = [
        ("write", errno(root.write("dir/file", "y")), EROFS),
        ("new", errno(root.write("dir/new", "y")), EROFS),
        ("mkdir", errno(root.create_dir("d")), EROFS),
        ("mkdir of what is there", errno(root.create_dir("dir")), EEXIST),
        ("unlink", errno(root.remove_file("dir/file")), EROFS),
        ("unlink of nothing", errno(root.remove_file("dir/gone")), EROFS),
        ("rename", errno(root.rename("dir", "d", Target::Replace)), EROFS),
        ("chmod", errno(root.set_permissions("dir", 0o700)), EROFS),
        ("chown", errno(root.chown("dir", Some(5), None)), EROFS),
        ("truncate", errno(root.truncate("dir/file", 0)), EROFS),
        ("truncate of a directory", errno(root.truncate("dir", 0)), EISDIR),
        ("xattr", errno(root.set_xattr("dir", "user.a", "x")), EROFS),
        ("open to read", errno(root.open("dir/file", Open::read())), 0),
        ("access", errno(root.access("dir/file", plywood_fuse::access::Access::WRITE)), EROFS),
        ("nameless", errno(root.open_nameless("dir", 0o600)), EROFS),
    ];
    for (case, answer, expected) in table {
        assert_eq!(answer, expected, "{case}");
    }
    assert_eq!(root.changes().unwrap().len(), 0);
    assert_all_given_back(root.overlay());
    drop(root);
    assert_eq!(layers.lower_state(), before);
}

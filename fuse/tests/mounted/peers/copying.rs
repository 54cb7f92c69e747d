//! Copy-up: what it keeps, what it costs, and who waits for it.

mod anyone {
    use crate::support::*;
    use std::fs::{self, File};
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::time::{Duration, Instant};

    #[test]
    fn copy_up_keeps_modes_of_directories_and_files() {
        needs_mount!();
        let stage = Stage::new();
        let modes = [0o700, 0o711, 0o1777, 0o2755, 0o750, 0o500];
        let mut lower = Vec::new();
        for mode in modes {
            stage.file(&format!("low/{mode:o}/f"), "f");
            let path = stage.path(format!("low/{mode:o}"));
            fs::set_permissions(path.join("f"), fs::Permissions::from_mode(mode & 0o777)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            lower.push((fs::metadata(&path).unwrap().mode(), fs::metadata(path.join("f")).unwrap().mode()));
        }
        let mount = stage.mount();
        for mode in modes {
            let file = mount.path(format!("{mode:o}/f"));
            let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            File::open(&file).unwrap().set_times(times).unwrap();
        }
        let seen = |root: &str| -> Vec<(u32, u32)> {
            let mode = |path: String| fs::metadata(stage.path(path)).unwrap().mode();
            modes.iter().map(|m| (mode(format!("{root}/{m:o}")), mode(format!("{root}/{m:o}/f")))).collect()
        };
        assert_eq!(seen("merged"), lower, "shown");
        if is_root() {
            // A mode that would lock a server without privilege out may be kept in an attribute instead.
            assert_eq!(seen("up"), lower, "in the upper layer");
        }
        mount.end();
        let mount = stage.mount();
        assert_eq!(seen("merged"), lower, "after mounting again");
        mount.end();
    }

    #[test]
    fn copy_up_keeps_holes_times_attributes_and_content() {
        needs_mount!();
        let stage = Stage::new();
        let path = stage.file("low/d/sparse", "");
        let file = File::options().write(true).open(&path).unwrap();
        file.write_at(b"begin", 0).unwrap();
        file.write_at(b"middle", 40 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        file.set_times(
            fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000, 7)),
        )
        .unwrap();
        let binary = [0u8, 255, 10, b'='];
        set_xattr(&path, "user.plywood-test", &binary).unwrap();
        let mount = stage.mount();
        let merged = mount.path("d/sparse");
        let before = fs::metadata(&merged).unwrap();
        let done = mount.requests(|| {
            set_xattr(&merged, "user.other", b"1").unwrap();
            File::options().write(true).open(&merged).unwrap().write_at(b"BEGIN", 0).unwrap();
        });
        assert!(done.of("copied_bytes") < 1 << 20, "holes were copied: {done:?}");
        let upper = fs::metadata(stage.path("up/d/sparse")).unwrap();
        assert!(upper.blocks() < 4096, "{} blocks, {} below", upper.blocks(), before.blocks());
        let mut text = [0; 6];
        File::open(&merged).unwrap().read_exact_at(&mut text, 40 << 20).unwrap();
        assert_eq!(&text, b"middle");
        assert_eq!(xattr(&merged, "user.plywood-test").as_deref(), Some(&binary[..]));
        let after = fs::metadata(&merged).unwrap();
        assert_eq!((after.len(), after.ino()), (before.len(), before.ino()), "size and number");
    }

    #[test]
    fn a_change_of_attributes_keeps_the_times_that_tar_looks_at() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "f");
        stage.file("low/d/g", "g");
        sh(&format!("touch -d @1000000 {0}/d/f {0}/d/g {0}/d", stage.path("low").display()));
        let mount = stage.mount();
        let times = |name: &str| {
            fs::metadata(mount.path(name)).map(|m| (m.mtime(), m.mtime_nsec(), m.size())).unwrap()
        };
        let before = [times("d/f"), times("d/g"), times("d")];
        fs::set_permissions(mount.path("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        // Opened to write and not written: the kernel does not tell, and nothing changes.
        drop(File::options().append(true).open(mount.path("d/g")).unwrap());
        assert_eq!([times("d/f"), times("d/g")], before[..2], "modification times and sizes");
        let of_dir = times("d");
        assert_eq!((of_dir.0, of_dir.1), (before[2].0, before[2].1), "that of the directory");
    }

    #[test]
    fn an_open_reader_never_makes_writes_reach_the_lower_layer() {
        needs_mount!();
        let stage = Stage::new();
        let content = vec![b'l'; 300_000];
        stage.file("low/f", &content);
        for option in ["", "open=on", "writeback=1"] {
            let upper = format!("up{}", option.len());
            let mount = stage.plan().upper(&upper).option(option).mount();
            let mut reader = File::open(mount.path("f")).unwrap();
            let mut first = [0; 4096];
            reader.read_exact(&mut first).unwrap();
            let writer = File::options().read(true).write(true).open(mount.path("f")).unwrap();
            writer.write_at(b"upper", 0).unwrap();
            writer.write_at(b"upper", 200_000).unwrap();
            writer.sync_all().unwrap();
            let below = fs::read(stage.path("low/f")).unwrap();
            assert!(below == content, "{option:?}: the lower layer was written");
            let mut seen = [0; 5];
            reader.read_exact_at(&mut seen, 200_000).unwrap();
            assert_eq!(&seen, b"upper", "{option:?}: what the old reader sees");
            let stored = fs::read(stage.path(format!("{upper}/f"))).unwrap();
            assert!(
                stored.starts_with(b"upper") && stored.len() == content.len(),
                "{option:?}: the upper file"
            );
        }
    }

    #[test]
    fn a_mapped_lower_file_is_not_written_below() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", vec![b'l'; 8192]);
        let mount = stage.mount();
        needs!(has_program("python3"), "python3 is needed for a shared mapping");
        sh(&format!(
            "python3 -c \"import mmap; f = open('{}', 'r+b'); m = mmap.mmap(f.fileno(), 8192); m[0:5] = b'upper'; \
             m.flush(); m.close()\"",
            mount.path("f").display()
        ));
        assert_eq!(fs::read(stage.path("low/f")).unwrap(), vec![b'l'; 8192], "the lower layer");
        assert!(fs::read(mount.path("f")).unwrap().starts_with(b"upperl"));
        assert!(fs::read(stage.path("up/f")).unwrap().starts_with(b"upperl"));
    }

    #[test]
    fn a_big_copy_up_keeps_nobody_waiting() {
        needs_mount!();
        let stage = Stage::new();
        let size = 400_u64 << 20;
        let big = stage.file("low/big", "");
        sh(&format!("head -c {size} /dev/zero | tr '\\0' x > {}", big.display()));
        for number in 0..200 {
            stage.file(&format!("low/d/{number}"), "x");
        }
        let mount = stage.plan().option("threads=2").mount();
        let path = mount.path("big");
        let copy = std::thread::spawn(move || {
            let start = Instant::now();
            let file = File::options().write(true).open(path).unwrap();
            let took = start.elapsed();
            file.write_at(b"changed", 0).unwrap();
            took
        });
        let mut asked = 0;
        while !copy.is_finished() && asked < 200 {
            let name = format!("d/{asked}");
            fs::symlink_metadata(mount.path(&name)).unwrap();
            fs::read(mount.path(&name)).unwrap();
            fs::write(mount.path(format!("new{asked}")), "x").unwrap();
            // The big file itself can be looked at, too.
            fs::symlink_metadata(mount.path("big")).unwrap();
            asked += 1;
        }
        let whole = copy.join().unwrap();
        let is_clone = whole < Duration::from_millis(50);
        assert!(is_clone || asked > 1, "nobody was served while {whole:?} were spent on the copy");
    }

    #[test]
    fn an_overwritten_lower_file_is_not_copied() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", vec![1; 5 << 20]);
        stage.file("low/g", vec![1; 5 << 20]);
        let mount = stage.mount();
        let done = mount.requests(|| {
            fs::write(mount.path("f"), "new").unwrap();
            let g = File::options().write(true).open(mount.path("g")).unwrap();
            g.set_len(0).unwrap();
        });
        assert_eq!((done.of("copied_bytes"), done.of("copy_ups")), (0, 2), "{done:?}");
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"new");
        assert_eq!(fs::metadata(mount.path("g")).unwrap().len(), 0);
    }

    #[test]
    fn files_without_read_permission_can_be_written() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/low", "lower");
        fs::set_permissions(stage.path("low/low"), fs::Permissions::from_mode(0o200)).unwrap();
        let mount = stage.mount();
        let new = File::options().write(true).create_new(true).mode(0o200).open(mount.path("new"));
        new.unwrap().write_all(b"one").unwrap();
        let open = |name: &str| File::options().append(true).open(mount.path(name));
        open("new").unwrap().write_all(b"two").unwrap();
        fs::set_permissions(mount.path("new"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::read(mount.path("new")).unwrap(), b"onetwo");
        // A server without privilege cannot read such a lower file, so it cannot be copied: an error and no damage.
        match open("low").and_then(|mut file| file.write_all(b"+")) {
            Ok(()) => assert_eq!(fs::metadata(mount.path("low")).unwrap().len(), 6),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EACCES)),
        }
        let mode = |path: &str| fs::metadata(stage.path(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("low/low"), mode("merged/low")), (0o200, 0o200));
    }

    #[test]
    fn a_new_file_is_writable_through_the_handle_that_made_it_whatever_its_mode() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        for option in ["", "open=on", "writeback=1"] {
            let mount = stage.plan().upper(&format!("up{}", option.len())).option(option).mount();
            let open =
                File::options().read(true).write(true).create_new(true).mode(0o000).open(mount.path("none"));
            let mut file = open.unwrap();
            file.write_all(b"content").unwrap();
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "content", "{option:?}");
            assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0, "{option:?}");
        }
    }

    #[test]
    fn direct_and_appending_writes_land_where_they_should() {
        needs_mount!();
        for option in ["", "open=on", "writeback=1"] {
            let stage = Stage::new();
            stage.file("low/log", "lower\n");
            stage.file("low/direct", vec![b'l'; 16384]);
            let mount = stage.mount_with(option);
            let append = || File::options().append(true).open(mount.path("log")).unwrap();
            let (mut one, mut two) = (append(), append());
            for number in 0..3 {
                one.write_all(format!("one {number}\n").as_bytes()).unwrap();
                two.write_all(format!("two {number}\n").as_bytes()).unwrap();
            }
            let expected = "lower\none 0\ntwo 0\none 1\ntwo 1\none 2\ntwo 2\n";
            assert_eq!(fs::read_to_string(mount.path("log")).unwrap(), expected, "{option:?}");
            let direct = |bytes: &str, seek: u32| {
                sh(&format!(
                    "printf %4096s '' | tr ' ' {bytes} | dd of={} bs=4096 seek={seek} oflag=direct conv=notrunc \
                     iflag=fullblock status=none",
                    mount.path("direct").display()
                ))
            };
            direct("d", 1);
            direct("e", 4);
            let read = sh(&format!(
                "dd if={} bs=4096 iflag=direct status=none | fold -w 4096 | cut -c 1",
                mount.path("direct").display()
            ));
            assert_eq!(read, "l\nd\nl\nl\ne\n", "{option:?}");
            assert_eq!(fs::metadata(stage.path("low/direct")).unwrap().len(), 16384, "the lower layer");
        }
    }

    #[test]
    fn holes_space_and_ranges_work_on_lower_and_upper_files() {
        needs_mount!();
        let stage = Stage::new();
        let path = stage.file("low/f", "");
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_at(b"data", 4 << 20).unwrap();
        drop(file);
        let mount = stage.mount();
        let mut lower = File::open(mount.path("f")).unwrap();
        use plywood_fuse::sys::copy;
        assert_eq!(
            copy::seek(lower.as_fd(), 0, libc::SEEK_DATA).ok(),
            Some(4 << 20),
            "data of the lower file"
        );
        let new = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(mount.path("new"))
            .unwrap();
        copy::allocate(new.as_fd(), 0, 0, 1 << 20).unwrap();
        assert_eq!(new.metadata().unwrap().len(), 1 << 20, "fallocate");
        let copied = copy::copy_range(lower.as_fd(), 4 << 20, new.as_fd(), 100, 4).unwrap();
        let mut text = [0; 4];
        new.read_exact_at(&mut text, 100).unwrap();
        assert_eq!((copied, &text), (4, b"data"), "copy_file_range");
        copy::allocate(new.as_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 8192).unwrap();
        new.read_exact_at(&mut text, 100).unwrap();
        assert_eq!(&text, &[0; 4], "after a hole was punched");
        lower.seek(SeekFrom::Start(4 << 20)).unwrap();
        lower.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"data", "the lower file");
    }

    #[test]
    fn a_read_only_stack_of_one_layer_refuses_every_change() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        stage.dir("low/d");
        let before = tree(&stage.path("low"));
        let mount = stage.plan().read_only().mount();
        for (what, got) in [
            ("create", errno(fs::write(mount.path("new"), ""))),
            ("write", errno(File::options().write(true).open(mount.path("f")))),
            ("mkdir", errno(fs::create_dir(mount.path("new")))),
            ("unlink", errno(fs::remove_file(mount.path("f")))),
            ("rmdir", errno(fs::remove_dir(mount.path("d")))),
            ("rename", errno(fs::rename(mount.path("f"), mount.path("g")))),
            ("link", errno(fs::hard_link(mount.path("f"), mount.path("g")))),
            ("chmod", errno(fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(0o600)))),
            ("setxattr", set_xattr(&mount.path("f"), "user.x", b"").err().unwrap_or(0)),
        ] {
            assert_eq!(got, libc::EROFS, "{what}");
        }
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"f");
        mount.end();
        assert_eq!(tree(&stage.path("low")), before);
    }
}

/// What needs a small file system of its own.
mod root {
    use crate::support::*;
    use std::fs::{self, File};
    use std::io::Write;
    use std::process::Command;

    struct Tmpfs(std::path::PathBuf);

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }

    #[test]
    fn a_copy_up_that_finds_no_room_leaves_nothing_behind() {
        needs_mount!();
        needs!(is_root(), "only root mounts a small file system");
        let stage = Stage::new();
        stage.file("low/big", vec![1; 3 << 20]);
        stage.file("low/small", "small");
        let disk = stage.dir("disk");
        sh(&format!("mount -t tmpfs -o size=2m tmpfs {}", disk.display()));
        let _disk = Tmpfs(disk);
        stage.dir("disk/up");
        let mount = stage.plan().upper("disk/up").mount();
        let written =
            File::options().append(true).open(mount.path("big")).and_then(|mut f| f.write_all(b"more"));
        assert_eq!(errno(written), libc::ENOSPC);
        assert_eq!(fs::metadata(mount.path("big")).unwrap().len(), 3 << 20, "the file is as it was");
        assert_eq!(fs::read(mount.path("big")).unwrap(), vec![1; 3 << 20], "its content");
        let left = tree(&stage.path("disk/up-work/work"));
        assert!(!left.contains(" bytes "), "left in the work directory:\n{left}");
        assert_eq!(names(&stage.path("disk/up")), [""; 0]);
        sh(&format!("echo more >> {}", mount.path("small").display()));
        assert_eq!(fs::read_to_string(mount.path("small")).unwrap(), "smallmore\n");
        fs::remove_file(mount.path("big")).unwrap();
        mount.end();
    }
}

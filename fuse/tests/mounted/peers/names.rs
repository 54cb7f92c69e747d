//! Names, paths, and what renaming does.

mod anyone {
    use crate::support::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    use plywood_fuse::sys::node::RenameMode;
    use plywood_fuse::sys::open::DirMode;
    use plywood_fuse::sys::{node, open};

    fn rename(mount: &Mount, from: &str, to: &str, mode: RenameMode) -> i32 {
        let dir = fs::File::open(mount.path("")).unwrap();
        let renamed = node::rename(dir.as_fd(), from.as_bytes(), dir.as_fd(), to.as_bytes(), mode);
        renamed.err().map_or(0, |e| e.errno())
    }

    #[test]
    fn names_like_whiteouts_are_ordinary_names_for_users() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/x", "lower x");
        stage.file("low/d/y", "lower y");
        let plan = stage.plan();
        let mount = plan.mount();
        fs::write(mount.path(".wh.x"), "mine").unwrap();
        fs::write(mount.path(".wh..wh..opq"), "mine").unwrap();
        fs::create_dir(mount.path(".wh.dir")).unwrap();
        fs::write(mount.path("d/.wh.y"), "").unwrap();
        fs::write(mount.path("plain"), "renamed").unwrap();
        fs::rename(mount.path("plain"), mount.path("d/.wh.z")).unwrap();
        std::os::unix::fs::symlink("t", mount.path(".wh.link")).unwrap();
        let check = |mount: &Mount, when: &str| {
            assert_eq!(mount.names(""), [".wh..wh..opq", ".wh.dir", ".wh.link", ".wh.x", "d", "x"], "{when}");
            assert_eq!(mount.names("d"), [".wh.y", ".wh.z", "y"], "{when}");
            assert_eq!(fs::read_to_string(mount.path(".wh.x")).unwrap(), "mine", "{when}");
            assert_eq!(fs::read_to_string(mount.path("x")).unwrap(), "lower x", "{when}");
            assert_eq!(fs::read_to_string(mount.path("d/.wh.z")).unwrap(), "renamed", "{when}");
        };
        check(&mount, "in the live mount");
        mount.end();
        let mount = plan.mount();
        check(&mount, "after mounting again");
        for name in [".wh.x", "d/.wh.y", "d/.wh.z", ".wh.link"] {
            fs::remove_file(mount.path(name)).unwrap();
        }
        assert_eq!(mount.names("d"), ["y"]);
    }

    #[test]
    fn names_of_255_bytes_work_and_256_are_too_long() {
        needs_mount!();
        let stage = Stage::new();
        let name = |c: &str, length: usize| c.repeat(length);
        stage.file(&format!("low/{}", name("l", 255)), "lower");
        stage.file(&format!("low/{}", name("r", 252)), "to be removed");
        let plan = stage.plan();
        let mount = plan.mount();
        for length in 250..=255 {
            let file = name("n", length);
            fs::write(mount.path(&file), "new").unwrap_or_else(|e| panic!("{length} bytes: {e}"));
            fs::rename(mount.path(&file), mount.path(name("m", length))).unwrap();
            fs::create_dir(mount.path(name("d", length))).unwrap_or_else(|e| panic!("{length} bytes: {e}"));
        }
        let long = mount.path(name("x", 256));
        for (what, got) in [
            ("stat", errno(fs::symlink_metadata(&long))),
            ("create", errno(fs::write(&long, ""))),
            ("mkdir", errno(fs::create_dir(&long))),
            ("unlink", errno(fs::remove_file(&long))),
            ("rmdir", errno(fs::remove_dir(&long))),
            ("symlink", errno(std::os::unix::fs::symlink("t", &long))),
            ("rename", errno(fs::rename(mount.path(name("m", 255)), &long))),
            ("link", errno(fs::hard_link(mount.path(name("m", 255)), &long))),
        ] {
            assert_eq!(got, libc::ENAMETOOLONG, "{what} with 256 bytes");
        }
        assert_eq!(fs::read_to_string(mount.path(name("l", 255))).unwrap(), "lower");
        sh(&format!("printf + >> {}", mount.path(name("l", 255)).display()));
        fs::remove_file(mount.path(name("l", 255))).unwrap();
        fs::remove_file(mount.path(name("r", 252))).unwrap();
        let limit = sh(&format!("stat -f -c %l {}", mount.path("").display()));
        assert_eq!(limit.trim(), "255", "the limit that statfs tells");
        mount.end();
        let mount = plan.mount();
        let names = mount.names("");
        assert_eq!(names.len(), 12, "after mounting again: {names:?}");
        assert!(!names.iter().any(|n| n.starts_with(['l', 'r', 'n'])), "after mounting again: {names:?}");
    }

    #[test]
    fn paths_near_path_max_work() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let mount = stage.mount();
        // 4095 bytes with the mount point, built and used from directory to directory.
        let part = "p".repeat(255);
        let script = format!(
            "cd {}; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do mkdir {part}; cd -P {part}; done; \
             echo deep > file; cat file; mv file other; ln other linked; rm other; stat -c %h linked; \
             chmod 600 linked; rm linked; ls",
            mount.path("").display()
        );
        assert_eq!(sh(&script), "deep\n1\n");
        let room = 4095 - mount.path("").as_os_str().len();
        let mut path = vec!["x".repeat(200); room / 201].join("/");
        path.push('/');
        path.push_str(&"y".repeat(room - path.len()));
        let whole = mount.path(&path);
        assert_eq!(whole.as_os_str().len(), 4095, "the longest path there is");
        fs::create_dir_all(whole.parent().unwrap()).unwrap();
        fs::write(&whole, "end").unwrap();
        assert_eq!(fs::read_to_string(&whole).unwrap(), "end");
        assert_eq!(errno(fs::metadata(mount.path(format!("{path}z")))), libc::ENAMETOOLONG);
        mount.end();
        // Lower layers have paths longer than any call takes.
        let mount = stage.plan().lowers(["up", "low"]).upper("up2").mount();
        let script = format!(
            "cd {}; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do cd -P {part}; done; \
             echo again > file; cat file; ls",
            mount.path("").display()
        );
        assert_eq!(sh(&script), "again\nfile\n");
        assert_eq!(fs::read_to_string(&whole).unwrap(), "end");
        fs::write(&whole, "changed").unwrap();
        assert_eq!(fs::read_to_string(&whole).unwrap(), "changed");
    }

    #[test]
    fn a_directory_of_a_lower_layer_can_be_renamed() {
        needs_mount!();
        for option in ["", "redirect_dir=on", "redirect_dir=copy"] {
            let stage = Stage::new();
            stage.file("low/d/f", "f");
            stage.file("low/d/sub/g", "g");
            stage.file("low/other/h", "h");
            stage.file("mid/d/m", "m");
            let plan = stage.plan().lowers(["mid", "low"]).option(option);
            let mount = plan.mount();
            let number = fs::metadata(mount.path("d")).unwrap().ino();
            fs::rename(mount.path("d"), mount.path("other/moved")).unwrap();
            fs::write(mount.path("other/moved/new"), "new").unwrap();
            fs::remove_file(mount.path("other/moved/f")).unwrap();
            fs::create_dir(mount.path("d")).unwrap();
            let check = |mount: &Mount, when: &str| {
                assert_eq!(mount.names("d"), [""; 0], "{option:?} {when}");
                assert_eq!(mount.names("other"), ["h", "moved"], "{option:?} {when}");
                assert_eq!(mount.names("other/moved"), ["m", "new", "sub"], "{option:?} {when}");
                assert_eq!(
                    fs::read_to_string(mount.path("other/moved/sub/g")).unwrap(),
                    "g",
                    "{option:?} {when}"
                );
                assert_eq!(errno(fs::metadata(mount.path("d/f"))), libc::ENOENT, "{option:?} {when}");
            };
            check(&mount, "in the live mount");
            assert_eq!(fs::metadata(mount.path("other/moved")).unwrap().ino(), number, "{option:?}");
            mount.end();
            check(&plan.mount(), "after mounting again");
            let as_lower = stage.plan().lowers(["up", "mid", "low"]).upper("next").mount();
            check(&as_lower, "as a lower layer");
        }
    }

    #[test]
    fn without_redirects_a_lower_directory_gives_exdev_and_a_new_one_moves() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "f");
        let mount = stage.mount_with("redirect_dir=off");
        assert_eq!(errno(fs::rename(mount.path("d"), mount.path("e"))), libc::EXDEV);
        fs::create_dir(mount.path("new")).unwrap();
        fs::write(mount.path("new/f"), "f").unwrap();
        fs::rename(mount.path("new"), mount.path("moved")).unwrap();
        fs::rename(mount.path("d/f"), mount.path("moved/g")).unwrap();
        assert_eq!(mount.names("moved"), ["f", "g"]);
        assert_eq!(mount.names("d"), [""; 0]);
        // mv(1) copies then.
        sh(&format!("mv {0}/d {0}/e", mount.path("").display()));
        assert_eq!(mount.names(""), ["e", "moved"]);
    }

    #[test]
    fn renames_know_their_flags_over_whiteouts_and_across_layers() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/a", "a");
        stage.file("low/b", "b");
        stage.file("low/gone", "gone");
        stage.file("low/d/in", "in");
        let plan = stage.plan();
        let mount = plan.mount();
        fs::write(mount.path("new"), "new").unwrap();
        assert_eq!(rename(&mount, "a", "b", RenameMode::NoReplace), libc::EEXIST);
        fs::remove_file(mount.path("gone")).unwrap();
        assert_eq!(rename(&mount, "new", "gone", RenameMode::NoReplace), 0, "over a whiteout");
        assert_eq!(rename(&mount, "a", "none", RenameMode::Exchange), libc::ENOENT);
        assert_eq!(rename(&mount, "a", "b", RenameMode::Exchange), 0, "two lower files");
        assert_eq!(rename(&mount, "d", "a", RenameMode::Exchange), 0, "a directory and a file");
        let check = |mount: &Mount, when: &str| {
            assert_eq!(mount.names(""), ["a", "b", "d", "gone"], "{when}");
            assert_eq!(fs::read_to_string(mount.path("b")).unwrap(), "a", "{when}");
            assert_eq!(fs::read_to_string(mount.path("d")).unwrap(), "b", "{when}");
            assert_eq!(fs::read_to_string(mount.path("gone")).unwrap(), "new", "{when}");
            assert_eq!(mount.names("a"), ["in"], "{when}");
        };
        check(&mount, "in the live mount");
        mount.end();
        check(&plan.mount(), "after mounting again");
    }

    #[test]
    fn five_hundred_layers_can_be_mounted_and_read() {
        needs_mount!();
        let stage = Stage::new();
        let lowers: Vec<String> = (0..500).map(|n| format!("l{n}")).collect();
        for (number, layer) in lowers.iter().enumerate() {
            stage.file(&format!("{layer}/common/f{number}"), layer);
            stage.file(&format!("{layer}/same"), layer);
        }
        let mount = stage.plan().lowers(&lowers).mount();
        assert_eq!(mount.names("common").len(), 500);
        assert_eq!(fs::read_to_string(mount.path("same")).unwrap(), "l0");
        assert_eq!(fs::read_to_string(mount.path("common/f499")).unwrap(), "l499");
        fs::write(mount.path("common/f499"), "changed").unwrap();
        assert_eq!(fs::read_to_string(mount.path("common/f499")).unwrap(), "changed");
    }

    #[test]
    fn marks_of_a_container_inside_come_back_as_they_were_made() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low/d");
        let plan = stage.plan();
        let mount = plan.mount();
        let attribute = "user.overlay.opaque";
        let set = set_xattr(&mount.path("d"), attribute, b"y");
        assert_eq!(set, Ok(()));
        set_xattr(&mount.path("d"), "user.fuseoverlayfs.opaque", b"y").unwrap();
        set_xattr(&mount.path("d"), "user.containers.override_stat", b"5:6:0777").unwrap();
        let made = make_whiteout(&mount.path("d/white"));
        let check = |mount: &Mount, when: &str| {
            let d = mount.path("d");
            assert_eq!(xattr(&d, attribute).as_deref(), Some(&b"y"[..]), "{when}");
            let mut names = xattrs(&d);
            names.retain(|n| n.starts_with("user."));
            names.sort();
            let all = ["user.containers.override_stat", "user.fuseoverlayfs.opaque", "user.overlay.opaque"];
            assert_eq!(names, all, "{when}");
            assert_eq!(is_whiteout(&d.join("white")), made, "{when}");
            assert_eq!(mount.names("d").len(), usize::from(made), "{when}");
        };
        check(&mount, "in the live mount");
        mount.end();
        check(&plan.mount(), "after mounting again");
        check(&stage.plan().lowers(["up", "low"]).upper("next").mount(), "as a lower layer");
    }

    #[test]
    fn a_directory_opened_before_its_removal_is_as_dead_as_any() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "");
        let mount = stage.mount();
        let open = open::open_root(&mount.path("d")).unwrap();
        fs::remove_dir_all(mount.path("d")).unwrap();
        let listed = open::open_dir_at(open.as_fd(), b".", DirMode::List).unwrap();
        let got = plywood_fuse::sys::dir::list(listed.as_fd(), usize::MAX, &mut |_| {});
        assert_eq!(got.map(drop).map_err(|e| e.errno()), Err(libc::ENOENT), "listing it, as on any disk");
        let place = plywood_fuse::sys::Place::dir(&open);
        assert_eq!(plywood_fuse::sys::stat::stat(place).map(|s| s.nlink).map_err(|e| e.errno()), Ok(0));
        let made = node::mkdir(open.as_fd(), b"new", 0o755);
        assert_eq!(made.map_err(|e| e.errno()), Err(libc::ENOENT), "mkdir in it");
        fs::create_dir(mount.path("d")).unwrap();
        assert_eq!(mount.names("d"), [""; 0], "a new one of that name");
    }
}

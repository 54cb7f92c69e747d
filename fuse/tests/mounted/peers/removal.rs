//! Removing, and what a layer holds afterwards.

mod anyone {
    use crate::support::*;
    use std::fs;
    use std::time::Duration;

    #[test]
    fn unlink_of_a_lower_file_copies_nothing_up() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/big", vec![7; 3 << 20]);
        stage.file("low/d/deep", "x");
        let mount = stage.mount();
        let done = mount.requests(|| {
            fs::remove_file(mount.path("big")).unwrap();
            fs::remove_file(mount.path("d/deep")).unwrap();
        });
        // The directory of the second one is copied up, to hold the whiteout.
        let got = (done.of("copy_ups"), done.of("copied_bytes"), done.of("whiteouts"));
        assert_eq!(got, (1, 0, 2), "{done:?}");
        assert_eq!(names(&stage.path("up")), ["big", "d"]);
        assert!(fs::metadata(stage.path("up/big")).is_ok_and(|m| m.len() == 0), "a whiteout has no data");
    }

    #[test]
    fn a_deleted_tree_stays_deleted_when_its_directory_is_made_again() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/old", "old");
        stage.file("low/d/sub/deep", "deep");
        stage.file("low/in/d/old", "old");
        let plan = stage.plan();
        let mount = plan.mount();
        for dir in ["d", "in/d"] {
            fs::remove_dir_all(mount.path(dir)).unwrap();
            fs::create_dir(mount.path(dir)).unwrap();
            fs::write(mount.path(dir).join("new"), "new").unwrap();
        }
        let check = |mount: &Mount, when: &str| {
            for dir in ["d", "in/d"] {
                assert_eq!(mount.names(dir), ["new"], "{dir} {when}");
                // Names that no listing gave: the commit of containers/storage asks for them.
                for name in ["old", "sub", "sub/deep"] {
                    let path = mount.path(dir).join(name);
                    assert_eq!(errno(fs::symlink_metadata(&path)), libc::ENOENT, "stat {dir}/{name} {when}");
                    assert_eq!(errno(fs::read(&path)), libc::ENOENT, "read {dir}/{name} {when}");
                }
            }
        };
        check(&mount, "in the live mount");
        mount.end();
        check(&plan.mount(), "after mounting again");
        // As a lower layer of the next mount, too.
        check(&stage.plan().lowers(["up", "low"]).upper("next").mount(), "as a lower layer");
    }

    #[test]
    fn a_tree_that_aufs_whiteouts_delete_stays_deleted_too() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/old", "old");
        stage.file("low/d/kept", "kept");
        stage.file("mid/d/.wh.old", "");
        let mount = stage.plan().lowers(["mid", "low"]).mount();
        assert_eq!(mount.names("d"), ["kept"]);
        fs::remove_dir_all(mount.path("d")).unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        fs::write(mount.path("d/new"), "").unwrap();
        assert_eq!(mount.names("d"), ["new"]);
        for name in ["d/old", "d/kept", "d/.wh.old"] {
            assert_eq!(errno(fs::symlink_metadata(mount.path(name))), libc::ENOENT, "{name}");
        }
    }

    #[test]
    fn the_kernel_reads_a_directory_made_again_at_the_root_as_empty() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/old", "old");
        stage.file("low/gone", "gone");
        stage.file("low/kept", "kept");
        let mount = stage.mount();
        fs::remove_dir_all(mount.path("d")).unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        fs::write(mount.path("d/new"), "new").unwrap();
        fs::remove_file(mount.path("gone")).unwrap();
        mount.end();
        let seen = as_the_kernel_reads(&stage, &["up", "low"], "find . | sort");
        needs!(seen.is_some(), "the kernel's overlayfs is not to be had");
        assert_eq!(seen.unwrap_or_default(), ".\n./d\n./d/new\n./kept\n");
    }

    #[test]
    fn an_opaque_directory_holds_no_whiteouts_and_the_upper_no_mark_files() {
        needs_mount!();
        let stage = Stage::new();
        for name in ["a", "b", "sub/c"] {
            stage.file(&format!("low/d/{name}"), name);
        }
        let mount = stage.mount();
        fs::remove_dir_all(mount.path("d")).unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        for name in ["a", "b", "sub"] {
            fs::write(mount.path("d").join(name), "new").unwrap();
            fs::remove_file(mount.path("d").join(name)).unwrap();
        }
        assert_eq!(mount.names("d"), [""; 0]);
        mount.end();
        assert_eq!(tree(&stage.path("up/d")), "", "left in the opaque directory");
        let all = tree(&stage.path("up"));
        assert!(!all.contains(".wh."), "a mark file in the upper layer:\n{all}");
    }

    #[test]
    fn removing_a_directory_of_nothing_but_whiteouts_leaves_nothing_in_work() {
        needs_mount!();
        let stage = Stage::new();
        for name in ["d/a", "d/b", "over/d/a", "e/f/g"] {
            stage.file(&format!("low/{name}"), name);
        }
        let mount = stage.mount();
        for dir in ["d", "over/d", "e/f"] {
            for name in mount.names(dir) {
                fs::remove_file(mount.path(dir).join(name)).unwrap();
            }
        }
        fs::remove_dir(mount.path("d")).unwrap();
        fs::remove_dir(mount.path("e/f")).unwrap();
        // The other way to lose such a directory.
        fs::create_dir(mount.path("moved")).unwrap();
        fs::rename(mount.path("moved"), mount.path("over/d")).unwrap();
        assert_eq!(mount.names(""), ["e", "over"]);
        assert_eq!(mount.names("over/d"), [""; 0]);
        mount.end();
        let mount = stage.mount();
        assert_eq!(mount.names(""), ["e", "over"], "after mounting again");
        assert_eq!(mount.names("over/d"), [""; 0], "after mounting again");
        mount.end();
        assert_eq!(tree(&stage.path("work/work")), "", "left in the work directory");
    }

    #[test]
    fn removing_a_directory_of_the_upper_layer_needs_no_whiteout() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low/d");
        let mount = stage.mount();
        let done = mount.requests(|| {
            fs::create_dir_all(mount.path("new/sub")).unwrap();
            fs::write(mount.path("d/f"), "").unwrap();
            fs::remove_file(mount.path("d/f")).unwrap();
            fs::remove_dir_all(mount.path("new")).unwrap();
        });
        assert_eq!(done.of("whiteouts"), 0, "{done:?}");
        assert_eq!(tree(&stage.path("up")), tree(&stage.path("low")), "the upper layer");
    }

    #[test]
    fn leftovers_in_the_work_directory_are_removed_and_harm_nothing() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "short");
        for number in 0..40 {
            stage.file(&format!("work/work/{number}"), "a long leftover of a server that was killed");
            stage.dir(&format!("work/work/d{number}/sub"));
            stage.file(&format!("work/work/#{number}"), "x");
        }
        let locked = stage.dir("work/work/locked");
        stage.file("work/work/locked/x", "");
        sh(&format!("chmod 0 {}", locked.display()));
        let mount = stage.mount();
        fs::create_dir(mount.path("made")).unwrap();
        sh(&format!("printf e >> {}", mount.path("f").display()));
        assert_eq!(fs::read_to_string(mount.path("f")).unwrap(), "shorte");
        mount.end();
        assert_eq!(tree(&stage.path("work/work")), "", "left in the work directory");
    }

    #[test]
    fn a_server_that_is_killed_leaves_a_mount_that_can_be_made_again() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        let mount = stage.mount();
        fs::write(mount.path("before"), "kept").unwrap();
        signal(mount.server, "KILL");
        assert!(wait_until(Duration::from_secs(60), || !runs(mount.server)), "killed");
        let got = errno(fs::metadata(mount.path("f")));
        assert!([libc::ENOTCONN, libc::ECONNABORTED].contains(&got), "errno {got} without a server");
        drop(mount);
        let mount = stage.mount();
        assert_eq!(mount.names(""), ["before", "f"]);
        assert_eq!(fs::read_to_string(mount.path("before")).unwrap(), "kept");
    }

    #[test]
    fn an_unlinked_open_file_shows_no_links_and_works() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/low", "lower");
        let mount = stage.mount();
        fs::write(mount.path("new"), "upper").unwrap();
        use std::io::{Read, Seek, Write};
        use std::os::unix::fs::MetadataExt;
        for (name, content) in [("low", "lower"), ("new", "upper")] {
            let open = fs::File::options().read(true).write(true).open(mount.path(name));
            let mut file = open.unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 1, "{name} before");
            fs::remove_file(mount.path(name)).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{name} after its unlink");
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, content, "{name} read after its unlink");
            file.rewind().unwrap();
            file.write_all(b"other").unwrap();
            file.set_len(3).unwrap();
            file.rewind().unwrap();
            text.clear();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "oth", "{name} written after its unlink");
            // A new file of that name is another one.
            fs::write(mount.path(name), "new").unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{name} after a new one was made");
            assert_eq!(fs::read_to_string(mount.path(name)).unwrap(), "new", "the new {name}");
        }
        assert_eq!(fs::read_to_string(stage.path("low/low")).unwrap(), "lower", "the layer below");
    }

    #[test]
    fn the_server_forgets_what_is_removed() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let mount = stage.mount();
        let before = mount.counts().of("nodes");
        fs::create_dir(mount.path("d")).unwrap();
        for number in 0..500 {
            fs::write(mount.path(format!("d/{number}")), "x").unwrap();
        }
        assert!(mount.counts().of("nodes") >= before + 500, "{:?}", mount.counts());
        fs::remove_dir_all(mount.path("d")).unwrap();
        let mut last = None;
        let forgot = wait_until(Duration::from_secs(60), || {
            let now = mount.counts();
            let few = now.of("nodes") <= before + 2;
            last = Some(now);
            few
        });
        assert!(forgot, "{before} nodes before, now {last:?}");
    }
}

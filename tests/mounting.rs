//! Mounts carried out on real directories, as whoever runs them: see `privileges`.

mod privileges;

use privileges::{Who, again};

/// As many tests as there are in `anyone`.
const TESTS: usize = 13;

#[test]
fn root_mounts_in_every_way() {
    again(Who::Root, TESTS);
}

#[test]
fn root_of_a_user_namespace_mounts_in_every_way() {
    again(Who::NamespaceRoot, TESTS);
}

#[test]
fn a_plain_user_mounts_through_servers() {
    again(Who::PlainUser, TESTS);
}

#[test]
fn a_plain_user_with_subordinate_ids_mounts_through_servers() {
    again(Who::UserWithIds, TESTS);
}

mod anyone {
    use super::privileges::*;
    use plywood::error::ErrorKind;
    use plywood::mounting::{Attached, Detach, How, State, attach, boot_id, detach, find_dead, state};
    use plywood::sys::attach::mount_namespace;
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(60);

    /// A snapshot with one parent, as the backends lay it out.
    fn two_layers(stage: &Stage) -> String {
        stage.file("snapshots/1/fs/low", "low");
        stage.dir("snapshots/2/fs");
        stage.dir("snapshots/2/work");
        format!(
            "workdir={},upperdir={},lowerdir={}",
            stage.text("snapshots/2/work"),
            stage.text("snapshots/2/fs"),
            stage.text("snapshots/1/fs")
        )
    }

    /// Unmounts and checks that nothing is left.
    #[track_caller]
    fn end(attached: &Attached) {
        detach(&attached.target, attached.server, Detach::Clean).expect("detach");
        assert_eq!(state(attached).expect("state"), State::Unmounted);
        assert!(!is_mounted(&attached.target));
        assert_eq!(names(&attached.target), Vec::<String>::new());
        if let Some(server) = attached.server {
            assert!(!server.is_running(), "the server still runs after the unmount");
        }
    }

    #[test]
    fn a_served_stack_is_changed_in_its_upper_layer() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let options = two_layers(&stage);
        let mounts = [mount("fuse3.plywood-fuse", "overlay", &options)];
        let target = stage.dir("target");
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        assert_eq!((attached.target.as_path(), attached.how), (target.as_path(), How::Server));
        assert_eq!(state(&attached).unwrap(), State::Mounted);
        assert_eq!(fs::read_to_string(target.join("low")).unwrap(), "low");
        fs::write(target.join("new"), "new").unwrap();
        let server = attached.server.unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.pid)).unwrap();
        let parent: u32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
        assert_ne!(parent, std::process::id(), "the server would stay a zombie");
        end(&attached);
        assert_eq!(fs::read_to_string(stage.path("snapshots/2/fs/new")).unwrap(), "new");
        // Again, at once, and without a trace of the first time.
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        assert_eq!(names(&target), ["low", "new"]);
        end(&attached);
    }

    #[test]
    fn a_stack_for_the_kernel_is_mounted_by_it_or_served() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let mut options = two_layers(&stage);
        if inside() != Some(Who::Root) {
            options.push_str(",userxattr");
        }
        let mounts = [mount("overlay", "overlay", &options)];
        let target = stage.dir("target");
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        let by_kernel = matches!(inside(), Some(Who::Root | Who::NamespaceRoot));
        assert_eq!(attached.how, if by_kernel { How::Kernel } else { How::Server });
        fs::write(target.join("low"), "changed").unwrap();
        assert_eq!(state(&attached).unwrap(), State::Mounted);
        end(&attached);
        assert_eq!(fs::read_to_string(stage.path("snapshots/2/fs/low")).unwrap(), "changed");
        assert_eq!(fs::read_to_string(stage.path("snapshots/1/fs/low")).unwrap(), "low");
    }

    // S78
    #[test]
    fn more_layers_than_fit_into_a_page_of_options_are_mounted() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let lowers: Vec<String> = (0..300)
            .map(|n| {
                stage.file(format!("a-long-name-of-a-directory/{n}/fs/file-{n:03}"), n.to_string());
                stage.text(&format!("a-long-name-of-a-directory/{n}/fs"))
            })
            .collect();
        let target = stage.dir("target");
        for kind in ["overlay", "fuse3.plywood-fuse"] {
            let mounts = [mount(kind, "overlay", &format!("lowerdir={}", lowers.join(":")))];
            let attached = attach(&mounts, &target, &stage.settings()).unwrap();
            assert_eq!(names(&target).len(), 300, "{kind}");
            assert_eq!(fs::read_to_string(target.join("file-299")).unwrap(), "299");
            assert!(fs::write(target.join("new"), "").is_err(), "without an upper layer nothing changes");
            end(&attached);
        }
    }

    // S59
    #[test]
    fn a_directory_alone_is_mounted_writable() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        stage.file("snapshots/3/fs/old", "old");
        stage.file("snapshots/4/old", "old");
        let target = stage.dir("target");
        for source in ["snapshots/3/fs", "snapshots/4"] {
            let mounts = [mount("bind", stage.path(source), "rbind,rw")];
            let attached = attach(&mounts, &target, &stage.settings()).unwrap();
            fs::write(target.join("new"), "new").unwrap();
            fs::remove_file(target.join("old")).unwrap();
            end(&attached);
            assert_eq!(names(&stage.path(source)), ["new"], "{source}");
        }
    }

    // S59
    #[test]
    fn a_directory_alone_is_mounted_read_only() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let source = stage.file("snapshots/3/fs/old", "old").parent().unwrap().to_owned();
        let target = stage.dir("target");
        let attached = attach(&[mount("bind", &source, "ro,rbind")], &target, &stage.settings()).unwrap();
        assert_eq!(fs::read_to_string(target.join("old")).unwrap(), "old");
        let error = fs::write(target.join("old"), "new").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        fs::write(source.join("beside"), "the source itself can be written").unwrap();
        end(&attached);
    }

    // S60
    #[test]
    fn mounts_below_a_directory_come_along_and_go_again() {
        if !matches!(inside(), Some(Who::Root | Who::NamespaceRoot)) {
            return;
        }
        let stage = Stage::new();
        let source = stage.dir("source");
        let below = stage.dir("source/below");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&below).status();
        assert!(mounted.unwrap().success());
        fs::write(below.join("file"), "x").unwrap();
        let target = stage.dir("target");
        let attached = attach(&[mount("bind", &source, "rbind,rw")], &target, &stage.settings()).unwrap();
        assert_eq!(fs::read_to_string(target.join("below/file")).unwrap(), "x");
        end(&attached);
        assert!(below.join("file").exists());
        assert!(Command::new("umount").arg(&below).status().unwrap().success());
    }

    #[test]
    fn the_mount_of_a_killed_server_is_found_dead_and_detached() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let mounts = [mount("fuse3.plywood-fuse", "overlay", &two_layers(&stage))];
        let target = stage.dir("target");
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        let server = attached.server.unwrap();
        assert!(find_dead([&attached]).is_empty());
        Command::new("kill").args(["-KILL", &server.pid.to_string()]).status().unwrap();
        assert!(server.wait_for_end(SOON));
        assert!(wait_until(SOON, || state(&attached).unwrap() == State::Dead));
        let error = attach(&mounts, &target, &stage.settings()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("has died"), "{error}");
        assert_eq!(find_dead([&attached]), [&attached]);
        assert!(!is_mounted(&target));
        assert_eq!(state(&attached).unwrap(), State::Unmounted);
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        end(&attached);
    }

    #[test]
    fn a_mount_in_use_is_busy_and_can_be_detached_lazily() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let mounts = [mount("fuse3.plywood-fuse", "overlay", &two_layers(&stage))];
        let target = stage.dir("target");
        let attached = attach(&mounts, &target, &stage.settings()).unwrap();
        let user = fs::File::open(target.join("low")).unwrap();
        let error = detach(&target, attached.server, Detach::Clean).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert_eq!(state(&attached).unwrap(), State::Mounted);
        detach(&target, attached.server, Detach::Lazy).unwrap();
        assert_eq!(state(&attached).unwrap(), State::Unmounted);
        assert!(!is_mounted(&target));
        let server = attached.server.unwrap();
        assert!(server.is_running(), "a file is still open");
        drop(user);
        assert!(server.wait_for_end(SOON));
    }

    // S82
    #[test]
    fn to_unmount_twice_is_no_error() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let mounts = [mount("fuse3.plywood-fuse", "overlay", &two_layers(&stage))];
        let attached = attach(&mounts, &stage.dir("target"), &stage.settings()).unwrap();
        end(&attached);
        detach(&attached.target, attached.server, Detach::Clean).unwrap();
        detach(&attached.target, None, Detach::Lazy).unwrap();
    }

    #[test]
    fn a_mount_that_fails_leaves_nothing_and_says_why() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let target = stage.dir("target");
        let missing = format!("lowerdir={}", stage.text("missing-layer"));
        let fails = |kind: &str, options: &str, words: &str| {
            let error = attach(&[mount(kind, stage.path("missing"), options)], &target, &stage.settings())
                .unwrap_err();
            assert!(error.to_string().contains(words), "{kind}: {error}");
            assert!(!is_mounted(&target), "{kind}");
        };
        fails("fuse3.plywood-fuse", &missing, "missing-layer");
        let wrong = format!("lowerdir={},redirect_dir=wrong", stage.dir("empty").display());
        fails("fuse3.plywood-fuse", &wrong, "redirect_dir");
        fails("overlay", &missing, if inside() == Some(Who::Root) { "No such file" } else { "" });
        fails("bind", "rbind,ro", "missing");
        let mut settings = stage.settings();
        settings.fuse_program = Some(stage.path("no-program"));
        let mounts = [mount("fuse3.plywood-fuse", "overlay", &two_layers(&stage))];
        let error = attach(&mounts, &target, &settings).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let error = attach(&mounts, &stage.path("no-target"), &stage.settings()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(processes_with(&stage.text("target")), Vec::<u32>::new());
    }

    #[test]
    fn what_the_kernel_mounts_for_root_only_is_refused_to_others_with_advice() {
        if inside().is_none() {
            return;
        }
        let stage = Stage::new();
        let mounts = [mount("btrfs", "/dev/no-such-device", "subvolid=257")];
        let error = attach(&mounts, &stage.dir("target"), &stage.settings()).unwrap_err();
        let expected =
            if inside() == Some(Who::Root) { ErrorKind::NotFound } else { ErrorKind::PermissionDenied };
        // A kernel without btrfs says ENODEV.
        assert!(error.kind() == expected || inside() == Some(Who::Root), "{error}");
    }

    #[test]
    fn a_mount_in_another_namespace_counts_while_somebody_is_there() {
        if inside().is_none() {
            return;
        }
        let mut unshare = Command::new("unshare");
        if !matches!(inside(), Some(Who::Root | Who::NamespaceRoot)) {
            unshare.arg("-Ur");
        }
        let mut there = unshare.args(["-m", "sleep", "100"]).stdin(Stdio::null()).spawn().unwrap();
        let ours = mount_namespace(None).unwrap();
        let theirs = || mount_namespace(Some(there.id())).ok().filter(|number| *number != ours);
        assert!(wait_until(SOON, || theirs().is_some()));
        let row = Attached {
            target: "/".into(),
            mount_id: 1,
            namespace: theirs().unwrap(),
            server: None,
            boot_id: boot_id(),
            how: How::Kernel,
        };
        assert_eq!(state(&row).unwrap(), State::Elsewhere);
        assert!(find_dead([&row]).is_empty());
        there.kill().unwrap();
        there.wait().unwrap();
    }

    #[test]
    fn an_empty_directory_stands_in_for_a_missing_layer_below() {
        if inside().is_none() {
            return;
        }
        // The plan for a plain user, carried out by anybody: what is made for it is made once.
        let stage = Stage::new();
        stage.file("snapshots/3/fs/file", "x");
        let settings = stage.settings();
        let target = stage.dir("target");
        for _ in 0..2 {
            let step = plywood::mounting::plan::plan(
                &mount("bind", stage.path("snapshots/3/fs"), "rbind,rw"),
                plywood::sys::userns::Privilege::User,
                &settings.scratch,
            )
            .unwrap();
            let fate = plywood::sys::child::Fate::Outlives;
            let running = plywood::mounting::server::start(&step, &target, &settings, fate).unwrap();
            assert_eq!(names(&target), ["file"]);
            detach(&target, Some(running.server), Detach::Clean).unwrap();
            assert!(!running.server.is_running());
        }
        assert!(Path::new(&settings.scratch).join("empty").is_dir());
        assert!(stage.path("snapshots/3/work").is_dir());
    }
}

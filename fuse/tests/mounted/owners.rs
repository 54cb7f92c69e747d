//! Whose files they are: id maps, squashing, and owners kept in attributes.

mod anyone {
    use crate::support::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const OVERRIDE: &str = "user.containers.override_stat";

    fn kept(stage: &Stage, name: &str) -> String {
        let value = xattr(&stage.path("up").join(name), OVERRIDE);
        String::from_utf8_lossy(&value.unwrap_or_default()).into_owned()
    }

    #[test]
    fn capabilities_that_the_disk_refuses_read_back_as_they_were_set() {
        needs_mount!();
        needs!(has_program("setcap") && has_program("getcap"), "setcap and getcap are wanted");
        let stage = Stage::new();
        stage.file("low/f", "f");
        let plan = stage.plan();
        let mount = plan.mount();
        let file = mount.path("f").display().to_string();
        fs::write(mount.path("new"), "new").unwrap();
        // As root of a user namespace with one id, which any user can be.
        let set = |name: &str| {
            let file = mount.path(name).display().to_string();
            sh(&format!("unshare -Ur sh -ec 'setcap cap_net_raw+ep {file}; getcap {file}'"))
        };
        for name in ["f", "new"] {
            assert!(set(name).contains("cap_net_raw=ep"), "{name}");
        }
        mount.end();
        let mount = plan.mount();
        assert!(sh(&format!("unshare -Ur getcap {file}")).contains("cap_net_raw=ep"), "after mounting again");
        let shown = xattrs(&mount.path("f"));
        assert!(!shown.iter().any(|name| name.starts_with("user.")), "{shown:?}");
        // It says what was set, and a mount that a user made gives nobody anything by it.
        sh(&format!("printf + >> {file}"));
        assert_eq!(sh(&format!("unshare -Ur getcap {file}")), "", "after a write");
    }

    #[test]
    fn every_way_to_make_a_file_keeps_owner_mode_and_type_in_the_attribute() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "f");
        fs::set_permissions(stage.path("low/d/f"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("old target", stage.path("low/l")).unwrap();
        make_node(&stage.path("low/p"), libc::S_IFIFO | 0o604, Default::default()).unwrap();
        let plan = stage.plan().option("xattr_permissions=2");
        let mount = plan.mount();
        let root = mount.path("").display().to_string();
        sh(&format!(
            "cd {root}; umask 022; echo new > file; mkdir dir; mkdir -m 2750 special; mkfifo -m 620 fifo; \
             ln -s target link; ln file hard; mkdir -m 711 dir/sub; chmod 4711 dir/sub; echo + >> d/f; \
             touch -h -d @5 l; chmod 600 p; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('s')\""
        ));
        let (uid, gid) = (
            fs::metadata(mount.path("file")).unwrap().uid(),
            fs::metadata(mount.path("file")).unwrap().gid(),
        );
        let me = sh("echo $(id -u):$(id -g)");
        assert_eq!(format!("{uid}:{gid}"), me.trim());
        let expected = [
            ("file", "0644:file"),
            ("hard", "0644:file"),
            ("dir", "0755:dir"),
            ("special", "2750:dir"),
            ("fifo", "0620:pipe"),
            ("link", "0777:symlink"),
            ("dir/sub", "4711:dir"),
            ("d/f", "0640:file"),
            ("d", "0755:dir"),
            ("l", "0777:symlink"),
            ("p", "0600:pipe"),
            ("s", "0755:socket"),
        ];
        for (name, end) in expected {
            assert_eq!(kept(&stage, name), format!("{uid}:{gid}:{end}"), "{name}");
            let meta = fs::symlink_metadata(stage.path("up").join(name)).unwrap();
            assert!(meta.is_file() || meta.is_dir(), "{name} is kept as a regular file or directory");
        }
        assert_eq!(kept(&stage, "").split(':').count(), 4, "the root is marked: {}", kept(&stage, ""));
        let look = || {
            let names = expected.map(|(name, _)| name).join(" ");
            sh(&format!("cd {root}; stat -c '%n %F %a %u:%g' {names}; readlink link l; cat d/f"))
        };
        let shown = look();
        for (name, end) in expected {
            let mode = end.split(':').next().unwrap_or_default().trim_start_matches('0');
            let line = shown.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_default();
            assert!(line.ends_with(&format!(" {mode} {uid}:{gid}")), "{line:?} of {name} {end}");
        }
        assert!(
            shown.contains("fifo fifo") && shown.contains("s socket") && shown.contains("link symbolic link"),
            "{shown}"
        );
        assert!(shown.ends_with("target\nold target\nf+\n"), "{shown}");
        assert_eq!(
            xattrs(&mount.path("file")).iter().find(|n| n.starts_with("user.")),
            None,
            "it is ours to know"
        );
        mount.end();
        let mount = plan.mount();
        assert_eq!(look(), shown, "after mounting again");
        mount.end();
        // Without the option: the root tells that the layer is of this kind.
        let mount = stage.mount();
        assert_eq!(look(), shown, "after mounting without the option");
        sh(&format!("cd {root}; rm fifo link s; rm -r dir; mkfifo fifo2; mv file moved"));
        assert_eq!(kept(&stage, "moved").split(':').nth(2), Some("0644"));
        mount.end();
        let mount = stage.plan().lowers(["up", "low"]).upper("next").mount();
        assert_eq!(fs::read_link(mount.path("l")).unwrap().as_os_str(), "old target", "as a lower layer");
        let script = format!("cd {root}; stat -c '%n %F %a' p special fifo2; echo more >> moved; cat moved");
        let seen = sh(&script);
        assert!(
            seen.starts_with("p fifo 600\nspecial directory 2750\nfifo2 fifo "),
            "as a lower layer: {seen}"
        );
        assert!(seen.ends_with("new\nmore\n"), "as a lower layer: {seen}");
    }

    #[test]
    fn modes_that_bind_the_server_do_not_bind_whoever_is_let_in() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let mount = stage.mount_with("xattr_permissions=2");
        fs::write(mount.path("f"), "f").unwrap();
        for mode in [0o000, 0o200, 0o400, 0o4755] {
            fs::set_permissions(mount.path("f"), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, mode);
        }
        assert_eq!(kept(&stage, "f").split(':').nth(2), Some("4755"));
    }
}

mod root {
    use crate::support::*;
    use plywood_fuse::types::Device;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, chown, lchown};

    fn owner(path: &std::path::Path) -> (u32, u32) {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.uid(), meta.gid())
    }

    #[test]
    fn mapped_ids_are_shown_and_stored() {
        needs_mount!();
        needs!(is_real_root(), "only root gives files to others");
        let stage = Stage::new();
        for (name, uid) in [("zero", 0), ("one", 1), ("last", 499), ("out", 500)] {
            chown(stage.file(&format!("low/{name}"), name), Some(uid), Some(uid)).unwrap();
        }
        chown(stage.file("low/odd", "odd"), Some(0), Some(54321)).unwrap();
        let mount = stage.mount_with("uidmapping=:0:1000:1:1:100000:499,gidmapping=:0:2000:500");
        assert_eq!(owner(&mount.path("zero")), (1000, 2000));
        assert_eq!(owner(&mount.path("one")), (100_000, 2001));
        assert_eq!(owner(&mount.path("last")), (100_498, 2499));
        assert_eq!(owner(&mount.path("out")), (65_534, 65_534));
        // A change of something else keeps the owner on disk.
        sh(&format!("cd {}; touch -d @5 zero one; chmod 600 last", mount.path("").display()));
        assert_eq!(owner(&stage.path("up/zero")), (0, 0));
        assert_eq!(owner(&stage.path("up/one")), (1, 1));
        assert_eq!(owner(&stage.path("up/last")), (499, 499));
        chown(mount.path("zero"), Some(100_001), Some(2002)).unwrap();
        assert_eq!((owner(&mount.path("zero")), owner(&stage.path("up/zero"))), ((100_001, 2002), (2, 2)));
        assert_eq!(errno(chown(mount.path("one"), Some(7), None)), libc::EINVAL, "an id without a place");
        let make = format!(
            "cd {}; chmod 777 .; setpriv --reuid 1000 --regid 2000 --clear-groups sh -c 'echo x > made; mkdir dir; \
             ln -s t link; mkfifo pipe; echo y > dir/in'",
            mount.path("").display()
        );
        sh(&make);
        for name in ["made", "dir", "link", "pipe", "dir/in"] {
            assert_eq!(owner(&mount.path(name)), (1000, 2000), "{name} shown");
            assert_eq!(owner(&stage.path("up").join(name)), (0, 0), "{name} stored");
        }
        // A chown names one id, and the other may be one that no map has.
        chown(mount.path("odd"), Some(1000), None).unwrap();
        assert_eq!(owner(&mount.path("odd")), (1000, 65534));
        assert_eq!(owner(&stage.path("up/odd")), (0, 54321));
        mount.end();
        let mount = stage.mount();
        assert_eq!(owner(&mount.path("zero")), (2, 2), "without a map");
    }

    #[test]
    fn squashed_owners_are_shown_and_the_real_ones_kept() {
        needs_mount!();
        needs!(is_real_root(), "only root gives files to others");
        let stage = Stage::new();
        chown(stage.file("low/f", "f"), Some(12), Some(34)).unwrap();
        for (options, shown) in [
            ("squash_to_root", (0, 0)),
            ("squash_to_uid=5,squash_to_gid=6", (5, 6)),
            ("squash_to_uid=5", (5, 34)),
            ("squash_to_root,squash_to_gid=7", (0, 7)),
        ] {
            let mount = stage.plan().upper(&format!("up-{}", options.len())).option(options).mount();
            assert_eq!(owner(&mount.path("f")), shown, "{options}");
            sh(&format!("touch -d @5 {}", mount.path("f").display()));
            assert_eq!(owner(&mount.path("f")), shown, "{options} after copy-up");
            mount.end();
            let upper = stage.path(format!("up-{}", options.len()));
            assert_eq!(owner(&upper.join("f")), (12, 34), "{options} on disk");
        }
    }

    #[test]
    fn owners_and_devices_in_attributes_come_back() {
        needs_mount!();
        needs!(is_real_root(), "only root gives files to others");
        let stage = Stage::new();
        chown(stage.file("low/theirs", "theirs"), Some(1234), Some(2345)).unwrap();
        make_node(&stage.path("low/null"), libc::S_IFCHR | 0o666, Device { major: 1, minor: 3 }).unwrap();
        let plan = stage.plan().option("xattr_permissions=2");
        let mount = plan.mount();
        let make =
            format!("cd {}; mknod -m 620 tty c 5 1; mknod -m 660 disk b 259 70000", mount.path("").display());
        sh(&make);
        lchown(mount.path("tty"), Some(3), Some(5)).unwrap();
        sh(&format!("cd {}; chmod 600 null; echo + >> theirs; chown 77:88 theirs", mount.path("").display()));
        let kept = |name: &str| {
            let value =
                xattr(&stage.path("up").join(name), "user.containers.override_stat").unwrap_or_default();
            String::from_utf8_lossy(&value).into_owned()
        };
        assert_eq!(kept("tty"), "3:5:0620:char-5-1");
        assert_eq!(kept("disk"), "0:0:0660:block-259-70000");
        assert_eq!(kept("null"), "0:0:0600:char-1-3");
        assert_eq!(kept("theirs"), "77:88:0644:file");
        let look = |mount: &Mount| {
            sh(&format!(
                "cd {}; stat -c '%n %F %a %u:%g %t:%T' tty disk null theirs",
                mount.path("").display()
            ))
        };
        let shown = look(&mount);
        let expected = "tty character special file 620 3:5 5:1\ndisk block special file 660 0:0 103:11170\n\
                        null character special file 600 0:0 1:3\ntheirs regular file 644 77:88 0:0\n";
        assert_eq!(shown, expected);
        mount.end();
        for name in ["tty", "disk", "null", "theirs"] {
            assert_eq!(owner(&stage.path("up").join(name)), (0, 0), "{name} on disk");
        }
        let mount = plan.mount();
        assert_eq!(look(&mount), expected, "after mounting again");
        mount.end();
        let mount = stage.plan().lowers(["up", "low"]).upper("next").mount();
        assert_eq!(look(&mount), expected, "as a lower layer");
        // A lower layer with attributes below an upper without.
        sh(&format!("cd {}; chmod 640 theirs tty", mount.path("").display()));
        assert_eq!(fs::symlink_metadata(mount.path("tty")).unwrap().uid(), 3);
    }

    #[test]
    fn layers_that_others_wrote_with_overrides_are_read() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/dev", "");
        stage.file("low/link", "the target");
        stage.file("low/f", "f");
        let set = |name: &str, value: &str| {
            set_xattr(&stage.path("low").join(name), "user.containers.override_stat", value.as_bytes())
                .unwrap();
        };
        set("", "0:0:0755");
        set("dev", "0:6:0660:block-8-1");
        set("link", "1:2:0777:symlink");
        set("f", "1000:1000:0640");
        let mount = stage.mount();
        let shown = sh(&format!(
            "cd {}; stat -c '%n %F %a %u:%g %t:%T' dev link f; readlink link",
            mount.path("").display()
        ));
        let expected = "dev block special file 660 0:6 8:1\nlink symbolic link 777 1:2 0:0\n\
                        f regular file 640 1000:1000 0:0\nthe target\n";
        assert_eq!(shown, expected);
    }
}

//! Broken options, directories and marks: one clear line and exit code 1, or a safe answer. Never a panic, a hang, or
//! a file outside of the layers.

mod anyone {
    use crate::support::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    /// Runs the program, which must fail with one line that has all of `words`.
    #[track_caller]
    fn refused(stage: &Stage, options: &str, mount_point: &str, words: &[&str]) {
        let place = |text: &str| {
            text.replace("S/", &format!("{}/", stage.path("").display().to_string().trim_end_matches('/')))
        };
        let point = place(mount_point);
        let mut command = Command::new("timeout");
        command.arg("60").arg(program());
        if !options.is_empty() {
            command.arg("-o").arg(place(options));
        }
        let output = command.arg(&point).current_dir(stage.path("")).output().expect("run the program");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            let _ = unmount(point.as_ref());
        }
        assert_eq!(output.status.code(), Some(1), "{options} {mount_point}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        assert_eq!(said.lines().count(), 1, "{options} {mount_point}: {said}");
        assert!(said.starts_with("plywood-fuse: "), "{said}");
        for word in words {
            assert!(said.contains(&place(word)), "{options} {mount_point}: {said:?} does not say {word:?}");
        }
        assert!(output.stdout.is_empty(), "{output:?}");
    }

    fn layers() -> Stage {
        let stage = Stage::new();
        stage.file("low/f", "f");
        stage.file("file", "a file");
        for dir in ["up", "work", "m"] {
            stage.dir(dir);
        }
        stage
    }

    #[test]
    fn options_that_make_no_sense_are_refused_by_name() {
        let stage = layers();
        let rw = "lowerdir=S/low,upperdir=S/up,workdir=S/work";
        for (options, point, words) in [
            ("", "S/m", vec!["S/m", "lowerdir="]),
            ("ro", "S/m", vec!["lowerdir="]),
            ("lowerdir=", "S/m", vec!["lowerdir"]),
            ("lowerdir=::", "S/m", vec!["lowerdir"]),
            ("lowerdir=S/low,upperdir=S/up", "S/m", vec!["upperdir=S/up", "workdir=DIR"]),
            ("lowerdir=S/low", "", vec!["mount point"]),
            (&format!("{rw},timeout=never"), "S/m", vec!["timeout=never", "seconds"]),
            (&format!("{rw},threads=0"), "S/m", vec!["threads=0"]),
            (&format!("{rw},uidmapping=0:1"), "S/m", vec!["uidmapping=0:1", "triples"]),
            (&format!("{rw},redirect_dir=perhaps"), "S/m", vec!["redirect_dir=perhaps", "on, follow"]),
            ("lowerdir=//plugin/data/S/low", "S/m", vec!["lowerdir", "plugin"]),
        ] {
            refused(&stage, options, point, &words);
        }
        assert_eq!(names(&stage.path("up")), [""; 0]);
    }

    #[test]
    fn directories_that_do_not_do_are_refused_by_name() {
        let stage = layers();
        symlink("nowhere", stage.path("dangling")).unwrap();
        symlink("loop", stage.path("loop")).unwrap();
        let closed = stage.dir("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let mut cases = vec![
            ("lowerdir=S/none", "S/m", vec!["S/none", "no such file"]),
            ("lowerdir=S/low:S/none", "S/m", vec!["S/none", "no such file"]),
            ("lowerdir=S/file", "S/m", vec!["S/file", "not a directory"]),
            ("lowerdir=S/low:S/file", "S/m", vec!["S/file", "not a directory"]),
            ("lowerdir=S/dangling", "S/m", vec!["S/dangling", "no such file"]),
            ("lowerdir=S/loop", "S/m", vec!["S/loop", "symbolic links"]),
            ("lowerdir=none", "S/m", vec!["none", "no such file"]),
            ("lowerdir=S/low,upperdir=S/none,workdir=S/work", "S/m", vec!["S/none", "no such file"]),
            ("lowerdir=S/low,upperdir=S/file,workdir=S/work", "S/m", vec!["S/file", "not a directory"]),
            ("lowerdir=S/low,upperdir=S/up,workdir=S/file", "S/m", vec!["S/file", "not a directory"]),
            ("lowerdir=S/low,upperdir=S/up,workdir=S/none/deep", "S/m", vec!["S/none/deep", "no such file"]),
            ("lowerdir=S/low,upperdir=S/up,workdir=/proc", "S/m", vec!["/proc"]),
            ("lowerdir=S/low", "S/none", vec!["mount point", "S/none", "no such file"]),
            ("lowerdir=S/low", "S/file", vec!["mount point", "S/file", "not a directory"]),
            ("lowerdir=S/low", "/dev/fd/77", vec!["/dev/fd/77"]),
            ("lowerdir=/dev/fd/77", "S/m", vec!["/dev/fd/77"]),
            ("lowerdir=S/low", "/dev/fd/x", vec!["/dev/fd/x"]),
        ];
        if !is_root() {
            cases.push(("lowerdir=S/closed", "S/m", vec!["S/closed", "permission denied"]));
            cases.push(("lowerdir=S/low,upperdir=S/closed,workdir=S/work", "S/m", vec!["S/closed"]));
        }
        for (options, point, words) in cases {
            refused(&stage, options, point, &words);
        }
        let left = names(&stage.path(""));
        assert_eq!(
            left,
            ["closed", "dangling", "file", "loop", "low", "m", "up", "work"],
            "made by a failure"
        );
        assert_eq!(names(&stage.path("up")), [""; 0]);
    }

    #[test]
    fn directories_in_one_another_are_refused() {
        let stage = layers();
        stage.dir("up/inner");
        stage.dir("work/inner");
        for (options, words) in [
            ("lowerdir=S/low,upperdir=S/up,workdir=S/up", vec!["workdir", "upperdir"]),
            ("lowerdir=S/low,upperdir=S/up,workdir=S/up/inner", vec!["workdir", "upperdir"]),
            ("lowerdir=S/low,upperdir=S/work/inner,workdir=S/work", vec!["workdir", "upperdir"]),
        ] {
            refused(&stage, options, "S/m", &words);
        }
        assert_eq!(names(&stage.path("up")), ["inner"], "nothing is removed");
        assert_eq!(names(&stage.path("work")), ["inner"], "nothing is removed");
    }

    #[test]
    fn a_layer_that_is_named_twice_or_is_the_upper_too_harms_nothing() {
        needs_mount!();
        let stage = layers();
        stage.file("low/d/g", "g");
        let mount = stage.plan().lowers(["low", "low"]).at("m").mount();
        assert_eq!(mount.names(""), ["d", "f"]);
        fs::remove_file(mount.path("f")).unwrap();
        assert_eq!(mount.names(""), ["d"]);
        mount.end();
        // upper and lower the same: refused or served, but nothing is lost that nobody removed.
        let before = tree(&stage.path("low"));
        let options = format!("lowerdir={0}low,upperdir={0}low,workdir={0}w2", stage.path("").display());
        let merged = stage.path("m");
        let mut command = Command::new(program());
        command.arg("-o").arg(options).arg(&merged);
        match stage.start(&mut command, &merged) {
            Ok(mount) => {
                let _ = tree(&merged);
                fs::write(mount.path("new"), "new").unwrap();
                fs::remove_file(mount.path("new")).unwrap();
                let _ = fs::rename(mount.path("d"), mount.path("e"));
                let _ = fs::rename(mount.path("e"), mount.path("d"));
                assert_eq!(fs::read(mount.path("d/g")).unwrap(), b"g");
                mount.end();
                assert_eq!(fs::read(stage.path("low/d/g")).unwrap(), b"g");
            }
            Err(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("upperdir") && said.lines().count() == 1, "{said}");
                assert_eq!(tree(&stage.path("low")), before);
            }
        }
    }

    #[test]
    fn a_mount_point_inside_of_a_layer_does_not_hang() {
        needs_mount!();
        let stage = layers();
        stage.dir("low/here");
        stage.file("low/x/y", "y");
        stage.file("low/deep/here/inside", "inside");
        for (merged, upper) in [("low/here", "up"), ("low", "up2"), ("up3", "up3"), ("low/deep/here", "up4")]
        {
            let mount = stage.plan().at(merged).upper(upper).mount();
            assert_eq!(fs::read(mount.path("x/y")).unwrap(), b"y", "{merged}");
            fs::write(mount.path("new"), "new").unwrap();
            // The tree within itself has an end: what is below the mount is in the layer, not the mount.
            assert!(!tree(&mount.path("here")).contains("new"), "{merged}");
            assert_eq!(
                tree(&mount.path("deep")).lines().count(),
                2,
                "{merged}: {}",
                tree(&mount.path("deep"))
            );
            assert_eq!(fs::read(mount.path("deep/here/inside")).unwrap(), b"inside", "{merged}");
            fs::write(mount.path("deep/here/inside"), "changed").unwrap();
            fs::create_dir(mount.path("here/dir")).unwrap();
            fs::rename(mount.path("deep/here"), mount.path("moved")).unwrap();
            assert_eq!(mount.names("moved"), ["inside"], "{merged}");
            mount.end();
        }
        assert_eq!(fs::read(stage.path("low/deep/here/inside")).unwrap(), b"inside");
        assert_eq!(names(&stage.path("low/here")), [""; 0]);
    }

    #[test]
    fn a_mount_point_inside_of_upper_or_work_directory_is_refused() {
        let stage = layers();
        let options = "lowerdir=S/low,upperdir=S/up,workdir=S/work";
        for (point, option) in [("up/here", "upperdir"), ("work/work/here", "workdir")] {
            stage.dir(point);
            refused(&stage, options, &format!("S/{point}"), &["mount point", &format!("S/{point}"), option]);
            assert!(stage.path(point).is_dir(), "nothing is removed");
        }
    }

    #[test]
    fn symlinks_in_layers_are_shown_and_never_followed() {
        needs_mount!();
        let stage = layers();
        stage.file("outside/secret", "secret");
        let outside = stage.path("outside");
        symlink(&outside, stage.path("low/d")).unwrap();
        stage.file("mid/d/x", "x");
        stage.file("deep/d/deep", "deep");
        // A directory above a symlink above a directory; a symlink above a directory.
        let mount = stage.plan().lowers(["mid", "low", "deep"]).at("m").mount();
        assert_eq!(mount.names("d"), ["x"]);
        assert_eq!(errno(fs::metadata(mount.path("d/secret"))), libc::ENOENT);
        fs::write(mount.path("d/secret"), "mine").unwrap();
        fs::write(mount.path("d/deep"), "mine").unwrap();
        mount.end();
        let mount = stage.plan().lowers(["low", "mid"]).upper("up2").at("m").mount();
        assert!(fs::symlink_metadata(mount.path("d")).unwrap().is_symlink());
        fs::remove_file(mount.path("d")).unwrap();
        fs::create_dir(mount.path("d")).unwrap();
        assert_eq!(mount.names("d"), [""; 0]);
        fs::write(mount.path("d/secret"), "mine").unwrap();
        mount.end();
        // A symlink in the upper layer where a server would copy a directory up to.
        symlink(&outside, stage.dir("up3").join("d")).unwrap();
        let mount = stage.plan().lowers(["mid"]).upper("up3").at("m").mount();
        assert!(fs::symlink_metadata(mount.path("d")).unwrap().is_symlink());
        mount.end();
        assert_eq!(tree(&outside).lines().count(), 1, "changed outside of the layers: {}", tree(&outside));
        assert_eq!(fs::read(stage.path("outside/secret")).unwrap(), b"secret");
    }

    #[test]
    fn a_symlink_that_comes_into_the_upper_behind_our_back_is_not_followed() {
        needs_mount!();
        let stage = layers();
        stage.file("outside/secret", "secret");
        stage.file("low/d/e/f", "f");
        let mount = stage.plan().at("m").mount();
        fs::write(mount.path("d/e/new"), "new").unwrap();
        // The directory is swapped for a symlink under the server's feet.
        fs::rename(stage.path("up/d"), stage.path("up/away")).unwrap();
        symlink(stage.path("outside"), stage.path("up/d")).unwrap();
        let _ = fs::write(mount.path("d/evil"), "evil");
        let _ = fs::write(mount.path("d/secret"), "evil");
        let _ = fs::remove_file(mount.path("d/secret"));
        let _ = fs::create_dir(mount.path("d/dir"));
        let _ = fs::rename(mount.path("f"), mount.path("d/f"));
        mount.end();
        assert_eq!(names(&stage.path("outside")), ["secret"]);
        assert_eq!(fs::read(stage.path("outside/secret")).unwrap(), b"secret");
    }

    /// The namespace that this user's marks are in.
    fn mark(name: &str) -> String {
        format!("{}.overlay.{name}", if is_real_root() { "trusted" } else { "user" })
    }

    #[test]
    fn redirects_in_circles_and_upwards_lead_nowhere() {
        needs_mount!();
        let stage = layers();
        stage.file("outside/secret", "secret");
        stage.file("low/a/in-a", "a");
        stage.file("low/b/in-b", "b");
        let evil = [
            "../../outside",
            "/../outside",
            "..",
            "/..",
            ".",
            "",
            "/",
            "//",
            "a/../b",
            "/a//b",
            "/a/",
            "\0",
            "/a\0b",
        ];
        for (number, value) in evil.iter().enumerate() {
            stage.file(&format!("mid/e/evil{number}/f"), "f");
            let _ =
                set_xattr(&stage.path(format!("mid/e/evil{number}")), &mark("redirect"), value.as_bytes());
        }
        for (name, value) in [("a", "/b"), ("b", "/a"), ("self", "/self"), ("deep", "/deep/deep/deep")] {
            stage.dir(&format!("mid/{name}"));
            set_xattr(&stage.path("mid").join(name), &mark("redirect"), value.as_bytes()).unwrap();
        }
        let long = "/x".repeat(2000);
        stage.dir("mid/long");
        let _ = set_xattr(&stage.path("mid/long"), &mark("redirect"), &long.as_bytes()[..1000]);
        stage.file("low/deep/deep/deep/bottom", "bottom");
        for lowers in [vec!["mid", "low"], vec!["mid", "mid", "low"], vec!["mid", "low", "mid", "low"]] {
            let upper = format!("up-{}", lowers.join(""));
            let mount = stage.plan().lowers(&lowers).upper(&upper).at("m").mount();
            for (number, value) in evil.iter().enumerate() {
                let dir = format!("e/evil{number}");
                let _ = fs::write(mount.path(&dir).join("new"), "new");
                // EIO, as from the kernel, or what is there without a redirect.
                let list = fs::read_dir(mount.path(&dir));
                let seen: Vec<_> =
                    list.map(|l| l.flatten().map(|e| e.file_name()).collect()).unwrap_or_default();
                assert!(!seen.iter().any(|n| n == "secret" || n == "outside"), "{value:?}: {seen:?}");
            }
            if lowers.len() == 2 {
                // Each is a rename done once: a is what was b, and the other way round.
                assert_eq!(mount.names("a"), ["in-b"]);
                assert_eq!(mount.names("b"), ["in-a"]);
                assert_eq!(mount.names("deep"), ["bottom"]);
            }
            for name in ["a", "b", "self", "deep"] {
                let all = tree(&mount.path(name));
                assert!(!all.contains("secret"), "{name}: {all}");
            }
            let _ = fs::rename(mount.path("a"), mount.path("b/a"));
            let _ = fs::remove_dir_all(mount.path("self"));
            mount.end();
        }
        assert_eq!(tree(&stage.path("outside")).lines().count(), 1);
    }

    #[test]
    fn redirects_are_ignored_if_that_is_asked_for() {
        needs_mount!();
        let stage = layers();
        stage.file("low/b/in-b", "b");
        stage.dir("mid/a");
        set_xattr(&stage.path("mid/a"), &mark("redirect"), b"/b").unwrap();
        let mount = stage.plan().lowers(["mid", "low"]).option("redirect_dir=nofollow").at("m").mount();
        assert_eq!(mount.names("a"), [""; 0]);
        assert_eq!(mount.names("b"), ["in-b"]);
    }

    #[test]
    fn garbage_in_every_mark_is_survived() {
        needs_mount!();
        let stage = layers();
        let garbage: [&[u8]; 8] = [
            b"",
            b"x",
            b"\0",
            b"nonsense",
            &[255; 300],
            b"y",
            b"0:0:0",
            b"99999999999999999999:-1:9999999:char-x-y",
        ];
        let marks = [
            "opaque",
            "redirect",
            "metacopy",
            "origin",
            "impure",
            "whiteout",
            "nlink",
            "upper",
            "protattr",
            "plywood.escapes",
            "plywood.literal",
            "plywood.device",
            "plywood.acl",
        ];
        let kinds = ["user.overlay.", "trusted.overlay."];
        let others = [
            "user.containers.override_stat",
            "user.fuseoverlayfs.override_stat",
            "security.fuseoverlayfs.override_stat",
            "user.fuseoverlayfs.opaque",
            "user.fuseoverlayfs.origin",
        ];
        let mut all: Vec<String> =
            kinds.iter().flat_map(|k| marks.iter().map(move |m| format!("{k}{m}"))).collect();
        all.extend(others.map(str::to_owned));
        for (number, value) in garbage.iter().enumerate() {
            for (index, attribute) in all.iter().enumerate() {
                let name = format!("mid/g{number}/m{index}");
                stage.file(&format!("{name}/d/f"), "f");
                stage.file(&format!("{name}/g"), "g");
                stage.file(&format!("low/g{number}/m{index}/d/below"), "below");
                for victim in ["", "d", "d/f", "g"] {
                    let _ = set_xattr(&stage.path(&name).join(victim), attribute, value);
                }
            }
        }
        let plan = stage.plan().lowers(["mid", "low"]).at("m");
        let mount = plan.mount();
        // Every answer is fine, as long as there is one.
        let walk = |what: &str| {
            let script = format!(
                "set +e; cd {}; find . -ls 2>&1; find . -type f -exec cat {{}} + 2>&1; {what}; true",
                mount.path("").display()
            );
            sh(&script)
        };
        let seen = walk("for f in */*/g; do echo + >> $f; done 2>&1");
        assert!(seen.len() > 10_000, "{seen}");
        assert!(!seen.contains("Transport") && !seen.contains("Connection"), "the server died");
        walk("chmod -R u+rwX . 2>&1; for d in */*/d; do mv $d $d.moved; done 2>&1; touch */*/new 2>&1");
        walk("rm -rf g0 g1 g2 2>&1; mkdir g0 2>&1; getfattr -dR -m - . 2>&1");
        assert!(runs(mount.server), "the server died");
        mount.end();
        // As upper layer, and on the roots.
        for (number, value) in garbage.iter().enumerate() {
            for attribute in &all {
                let _ = set_xattr(&stage.path("mid"), attribute, value);
                let _ = set_xattr(&stage.dir("work"), attribute, value);
            }
            let mount = stage.plan().upper("mid").at("m").try_mount();
            let Ok(mount) = mount else { continue };
            let script = format!(
                "set +e; cd {}; find . > /dev/null 2>&1; touch g{number}/new 2>&1; rm -rf g4 2>&1; true",
                mount.path("").display()
            );
            sh(&script);
            assert!(runs(mount.server), "the server died");
            mount.end();
        }
    }

    #[test]
    fn absurd_numbers_in_an_override_do_not_count() {
        needs_mount!();
        let stage = layers();
        set_xattr(&stage.path("low"), "user.containers.override_stat", b"0:0:0755").unwrap();
        let values = [
            "-1:0:0644",
            "4294967295:0:0644",
            "4294967296:0:0644",
            "0:0:7777777777",
            "0:0:0999",
            "0:0:-1",
            "0",
            "0:0",
            ":::",
            "0:0:0644:char-99999999999-1",
            "0:0:0644:block-",
            "0:0:0644:unknown",
            "0:0:0644:char",
        ];
        for (number, value) in values.iter().enumerate() {
            let path = stage.file(&format!("low/f{number}"), "content");
            set_xattr(&path, "user.containers.override_stat", value.as_bytes()).unwrap();
        }
        let mount = stage.plan().at("m").mount();
        for (number, value) in values.iter().enumerate() {
            let meta = fs::symlink_metadata(mount.path(format!("f{number}")));
            let meta = meta.unwrap_or_else(|e| panic!("{value}: {e}"));
            assert!(meta.is_file() || value.contains("char"), "{value}: {meta:?}");
            let _ = fs::read(mount.path(format!("f{number}")));
        }
        assert_eq!(mount.names("").len(), values.len() + 1);
    }

    #[test]
    fn a_metacopy_without_data_is_an_error_and_no_empty_file() {
        needs_mount!();
        let stage = layers();
        stage.file("low/data/good", "the data");
        for name in ["alone", "away", "good"] {
            // As the kernel makes them: sparse, with the size of the data.
            fs::File::options()
                .write(true)
                .open(stage.file(&format!("mid/{name}"), ""))
                .unwrap()
                .set_len(8)
                .unwrap();
            set_xattr(&stage.path("mid").join(name), &mark("metacopy"), b"").unwrap();
        }
        set_xattr(&stage.path("mid/away"), &mark("redirect"), b"/none/here").unwrap();
        set_xattr(&stage.path("mid/good"), &mark("redirect"), b"/data/good").unwrap();
        let mount = stage.plan().lowers(["mid", "low"]).at("m").mount();
        for name in ["alone", "away"] {
            assert_eq!(errno(fs::read(mount.path(name))), libc::EIO, "{name}");
        }
        assert_eq!(fs::read_to_string(mount.path("good")).unwrap(), "the data");
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"f");
        fs::write(mount.path("good"), "changed").unwrap();
        assert_eq!(fs::read_to_string(stage.path("low/data/good")).unwrap(), "the data");
    }

    /// As the kernel's overlayfs does it: the name is there, with the type that its directory tells, and whoever asks
    /// for more is told EIO; `rm -rf` removes what is beside it.
    #[test]
    fn a_name_that_leads_nowhere_is_listed_and_only_itself_an_error() {
        needs_mount!();
        let stage = layers();
        fs::File::options().write(true).open(stage.file("mid/d/alone", "")).unwrap().set_len(8).unwrap();
        set_xattr(&stage.path("mid/d/alone"), &mark("metacopy"), b"").unwrap();
        stage.dir("mid/d/lost");
        set_xattr(&stage.path("mid/d/lost"), &mark("redirect"), b"a/b").unwrap();
        stage.file("mid/d/fine", "fine");
        let mount = stage.plan().lowers(["mid", "low"]).at("m").mount();
        let with_types = || {
            let list = fs::read_dir(mount.path("d")).unwrap().map(Result::unwrap);
            let mut seen: Vec<_> = list
                .map(|e| (e.file_name().into_string().unwrap(), e.file_type().unwrap().is_dir()))
                .collect();
            seen.sort();
            seen
        };
        let all = [("alone", false), ("fine", false), ("lost", true)].map(|(n, d)| (n.to_owned(), d));
        assert_eq!(with_types(), all);
        for name in ["d/alone", "d/lost"] {
            let path = mount.path(name);
            assert_eq!(errno(fs::symlink_metadata(&path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::File::open(&path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::read_dir(&path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::remove_file(&path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::remove_dir(&path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::rename(&path, mount.path("d/other"))), libc::EIO, "{name}");
            assert_eq!(errno(fs::rename(mount.path("d/fine"), &path)), libc::EIO, "{name}");
            assert_eq!(errno(fs::write(&path, "new")), libc::EIO, "{name}");
        }
        assert_eq!(fs::read(mount.path("d/fine")).unwrap(), b"fine");
        fs::write(mount.path("d/new"), "new").unwrap();
        assert_eq!(mount.names("d"), ["alone", "fine", "lost", "new"]);
        assert_eq!(errno(fs::remove_dir(mount.path("d"))), libc::ENOTEMPTY);
        assert!(!Command::new("rm").arg("-rf").arg(mount.path("d")).output().unwrap().status.success());
        assert_eq!(mount.names("d"), ["alone", "lost"]);
        assert_eq!(with_types(), [all[0].clone(), all[2].clone()]);
    }

    #[test]
    fn a_layer_that_vanishes_gives_errors_and_no_end() {
        needs_mount!();
        let stage = layers();
        for number in 0..50 {
            stage.file(&format!("gone/d/{number}"), "x");
        }
        stage.file("gone/open", "open");
        let mount = stage.plan().lowers(["gone", "low"]).at("m").mount();
        let open = fs::File::open(mount.path("open")).unwrap();
        assert_eq!(mount.names("d").len(), 50);
        fs::remove_dir_all(stage.path("gone")).unwrap();
        for number in 0..50 {
            let _ = fs::read(mount.path(format!("d/{number}")));
            let _ = fs::write(mount.path(format!("d/{number}")), "new");
            let _ = fs::remove_file(mount.path(format!("d/{number}")));
        }
        let _ = fs::metadata(mount.path("d/none"));
        let _ = fs::rename(mount.path("d"), mount.path("e"));
        let _ = std::io::read_to_string(open);
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"f", "the other layer");
        fs::write(mount.path("new"), "new").unwrap();
        assert!(runs(mount.server), "the server died");
    }

    #[test]
    fn an_upper_that_vanishes_gives_errors_and_no_end() {
        needs_mount!();
        let stage = layers();
        stage.file("low/d/g", "g");
        let mount = stage.plan().at("m").mount();
        fs::write(mount.path("d/new"), "new").unwrap();
        fs::remove_dir_all(stage.path("up")).unwrap();
        fs::remove_dir_all(stage.path("work")).unwrap();
        assert!(fs::write(mount.path("other"), "other").is_err());
        assert!(fs::write(mount.path("d/other"), "other").is_err());
        assert!(fs::create_dir(mount.path("dir")).is_err());
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"f", "the lower layer");
        assert!(!stage.path("up").exists());
        assert!(runs(mount.server), "the server died");
    }

    #[test]
    fn two_mounts_of_one_upper_are_told_about() {
        needs_mount!();
        let stage = layers();
        let first = stage.plan().mount();
        assert_eq!(first.said, "");
        let second = stage.plan().at("m").mount();
        assert!(
            second.said.contains("in use by another mount") && second.said.lines().count() == 1,
            "{}",
            second.said
        );
        fs::write(first.path("one"), "one").unwrap();
        fs::write(second.path("two"), "two").unwrap();
        assert_eq!(names(&stage.path("up")), ["one", "two"]);
    }

    #[test]
    fn a_dead_mount_point_is_told_with_the_way_out() {
        needs_mount!();
        let stage = layers();
        let mount = stage.plan().at("m").mount();
        signal(mount.server, "KILL");
        assert!(wait_until(std::time::Duration::from_secs(60), || !runs(mount.server)), "killed");
        assert!(
            wait_until(std::time::Duration::from_secs(60), || fs::metadata(mount.path("")).is_err()),
            "dead"
        );
        refused(&stage, "lowerdir=S/low", "S/m", &["S/m", "fusermount3 -u"]);
    }
}

mod root {
    use crate::support::*;
    use std::process::Command;

    #[test]
    fn a_work_directory_on_another_disk_is_refused() {
        needs!(is_root(), "only root mounts a second disk");
        let stage = Stage::new();
        stage.dir("low");
        stage.dir("up");
        let disk = stage.dir("disk");
        sh(&format!("mount -t tmpfs -o size=1m tmpfs {}", disk.display()));
        let output = Command::new(program())
            .arg("-o")
            .arg(format!("lowerdir={0}low,upperdir={0}up,workdir={0}disk/work", stage.path("").display()))
            .arg(stage.dir("m"))
            .output();
        sh(&format!("umount {}", disk.display()));
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in ["disk/work", "upperdir", "file system"] {
            assert!(said.contains(word), "{said}");
        }
    }
}

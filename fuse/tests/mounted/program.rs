//! Command lines as clients write them, and the life of the process.

mod anyone {
    use crate::support::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    /// The layers of one container of containers/storage.
    fn storage() -> Stage {
        let stage = Stage::new();
        stage.file("a/diff/from-a", "a");
        stage.file("b/diff/from-b", "b");
        stage.file("b/diff/both", "b");
        stage.file("a/diff/both", "a");
        stage.dir("l");
        symlink("../a/diff", stage.path("l/AAA")).unwrap();
        symlink("../b/diff", stage.path("l/BBB")).unwrap();
        for dir in ["id/diff", "id/work", "id/merged", "id/empty"] {
            stage.dir(dir);
        }
        stage
    }

    #[test]
    fn the_option_strings_of_storage_buildah_and_podman_mount_in_silence() {
        needs_mount!();
        let rw = "upperdir=S/id/diff,workdir=S/id/work";
        let lowers = "lowerdir=S/l/AAA:S/l/BBB";
        let keep_id = ":0:1:1001:1001:0:1:1002:1002:64535";
        let mut cases = vec![
            format!("{lowers},{rw},,volatile"),
            format!("lowerdir=S/id/empty,{rw},,volatile"),
            format!("{lowers},{rw},"),
            "lowerdir=S/id/diff:S/l/BBB".to_owned(),
            format!("{lowers},{rw},,volatile,uidmapping={keep_id},gidmapping={keep_id}"),
            format!("{lowers},{rw},uidmapping=:0:1:500,gidmapping=:0:1:500"),
            format!("{lowers},{rw},uidmapping=0:1:500,gidmapping=0:1:500"),
            format!("{lowers},{rw},squash_to_uid=5,squash_to_gid=6"),
            format!("{lowers},{rw},xattr_permissions=2"),
            format!("{lowers},{rw},private"),
            "lowerdir=l/AAA:l/../b/diff,upperdir=id/diff,workdir=id/work".to_owned(),
            format!("{lowers},{rw},context=\"system_u:object_r:container_file_t:s0:c1,c2\",nodev"),
            format!("{lowers},{rw},nodev,metacopy=on,index=off,userxattr,lazytime,redirect_dir=off"),
            format!("{lowers},{rw},kernel_cache,splice_read,max_write=65536,nodiratime,big_writes,xino=on"),
            format!("{lowers},{rw},fast_ino=1,threaded=0,fsync=0,timeout=1.5,noacl,static_nlink"),
        ];
        if is_root() {
            // fusermount grants it only by a setting of the system.
            cases.push(format!("allow_other,{lowers},{rw},noacl"));
            cases.push(format!("{lowers},{rw},dev,suid"));
        }
        for case in cases {
            let stage = storage();
            let options = case
                .replace("S/", &format!("{}/", stage.path("").display().to_string().trim_end_matches('/')));
            let merged = stage.path("id/merged");
            let mut command = Command::new(program());
            command.arg("-o").arg(&options).arg(&merged).current_dir(stage.path(""));
            let mount = stage.start(&mut command, &merged);
            let mount = mount.unwrap_or_else(|o| panic!("{case}: {}", String::from_utf8_lossy(&o.stderr)));
            assert_eq!(mount.said, "", "{case}");
            if !case.contains("empty") {
                let top = if case.contains("AAA") { "a" } else { "b" };
                assert_eq!(fs::read_to_string(mount.path("both")).unwrap(), top, "{case}");
            }
            // Who is shown as somebody else is not let in, if not root.
            let is_other = case.contains("mapping") || (case.contains("squash") && !is_real_root());
            let may_make = !is_other && case.contains("upperdir");
            if may_make {
                fs::write(mount.path("new"), "new").unwrap_or_else(|e| panic!("{case}: {e}"));
                assert_eq!(fs::read_to_string(stage.path("id/diff/new")).unwrap(), "new", "{case}");
            }
            mount.end();
        }
    }

    #[test]
    fn the_words_of_mount_fuse_are_understood() {
        needs_mount!();
        let stage = storage();
        let merged = stage.path("id/merged");
        let options = format!(
            "workdir={0}id/work,upperdir={0}id/diff,lowerdir={0}l/AAA:{0}l/BBB",
            stage.path("").display()
        );
        let words: [&[&str]; 6] = [
            &["overlay", "MERGED", "-o", "OPTIONS,dev,suid"],
            &["overlay", "MERGED", "-o", "OPTIONS,ro,dev,suid"],
            &["MERGED", "-oOPTIONS"],
            &["-o", "noatime", "-o", "OPTIONS", "-t", "fuse", "overlay", "MERGED"],
            &["-o", "OPTIONS", "--", "MERGED"],
            &["-s", "-n", "-v", "-o", "OPTIONS", "MERGED"],
        ];
        for words in words {
            let mut command = Command::new(program());
            for word in words {
                command
                    .arg(word.replace("OPTIONS", &options).replace("MERGED", &merged.display().to_string()));
            }
            let mount = stage.start(&mut command, &merged);
            let mount = mount.unwrap_or_else(|o| panic!("{words:?}: {}", String::from_utf8_lossy(&o.stderr)));
            assert_eq!(mount.said, "", "{words:?}");
            assert_eq!(mount.names(""), ["both", "from-a", "from-b"], "{words:?}");
            let source = if words.contains(&"overlay") { "overlay" } else { "plywood-fuse" };
            assert_eq!(mount_line(&merged).map(|l| l[0].clone()).as_deref(), Some(source), "{words:?}");
            mount.end();
        }
    }

    #[test]
    fn a_mount_can_be_a_lower_layer_of_another() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "f");
        stage.file("other/g", "g");
        let image = stage.mount();
        fs::write(image.path("d/new"), "new").unwrap();
        let inner =
            stage.plan().lowers(["merged", "other"]).upper("in-up").at("in").option("private").mount();
        assert_eq!(inner.names(""), ["d", "g"]);
        assert_eq!(fs::read_to_string(inner.path("d/new")).unwrap(), "new");
        sh(&format!("echo more >> {0}/d/f; rm {0}/d/new; mkdir {0}/d/sub", inner.path("").display()));
        assert_eq!(inner.names("d"), ["f", "sub"]);
        assert_eq!(fs::read_to_string(inner.path("d/f")).unwrap(), "fmore\n");
        assert_eq!(image.names("d"), ["f", "new"]);
        inner.end();
    }

    #[test]
    fn the_type_of_the_mount_is_the_name_of_the_program() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let mount = stage.mount();
        assert_eq!(
            mount_line(&stage.path("merged")).map(|l| l[1].clone()).as_deref(),
            Some("fuse.plywood-fuse")
        );
        mount.end();
        let link = stage.path("fuse-overlayfs");
        symlink(program(), &link).unwrap();
        let mut command = Command::new(&link);
        let merged = stage.dir("merged");
        command.arg("-o").arg(format!("lowerdir={}", stage.path("low").display())).arg(&merged);
        let mount = stage.start(&mut command, &merged).unwrap_or_else(|o| panic!("{o:?}"));
        let line = mount_line(&merged).unwrap();
        assert_eq!((line[0].as_str(), line[1].as_str()), ("fuse-overlayfs", "fuse.fuse-overlayfs"));
        assert!(line[2].split(',').any(|o| o == "ro"), "{line:?}");
        mount.end();
    }

    #[test]
    fn the_version_has_three_lines_and_the_name_it_was_called_by() {
        let stage = Stage::new();
        let link = stage.path("fuse-overlayfs");
        symlink(program(), &link).unwrap();
        for word in ["--version", "-V"] {
            let output = Command::new(&link).arg(word).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(text.starts_with("fuse-overlayfs: version "), "{text}");
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
        let help = Command::new(&link).arg("--help").output().unwrap();
        assert!(
            help.status.success() && String::from_utf8_lossy(&help.stdout).contains("lowerdir"),
            "{help:?}"
        );
    }

    #[test]
    fn the_server_holds_nothing_of_its_caller() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        let merged = stage.dir("merged");
        let options = format!("lowerdir={}", stage.path("low").display());
        let place = stage.dir("place");
        // Descriptor 9 is a pipe; cat ends when all its writers have closed it.
        let script = format!(
            "{{ {} -o {options} {} 2>&1 >/dev/null; echo code $?; }} 9>&1 | cat",
            program().display(),
            merged.display()
        );
        let output =
            Command::new("timeout").args(["100", "sh", "-c", &script]).current_dir(&place).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "code 0\n");
        let server = server_of(&merged).expect("a server");
        let proc = Path::new("/proc").join(server.to_string());
        if let Ok(cwd) = fs::read_link(proc.join("cwd")) {
            assert_eq!(cwd, Path::new("/"));
            for number in 0..3 {
                assert_eq!(fs::read_link(proc.join(format!("fd/{number}"))).unwrap(), Path::new("/dev/null"));
            }
        }
        unmount(&merged).unwrap();
        assert!(wait_until(Duration::from_secs(60), || !runs(server)), "it ends with its mount");
    }

    #[test]
    fn exit_code_0_means_that_the_mount_answers() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        for _ in 0..10 {
            let before = fs::metadata(stage.dir("merged")).unwrap().dev();
            let mount = stage.mount();
            assert_ne!(fs::metadata(mount.path("")).unwrap().dev(), before);
            assert_eq!(fs::read(mount.path("f")).unwrap(), b"f");
            mount.end();
            assert_eq!(fs::metadata(stage.path("merged")).unwrap().dev(), before);
        }
    }

    #[test]
    fn sigterm_unmounts_also_while_files_are_open() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        for name in ["TERM", "INT", "HUP"] {
            let mount = stage.mount();
            let open = (name == "INT").then(|| File::open(mount.path("f")).unwrap());
            signal(mount.server, name);
            assert!(wait_until(Duration::from_secs(60), || !runs(mount.server)), "SIG{name}: it runs on");
            assert_eq!(mount_line(&stage.path("merged")), None, "SIG{name}: the mount is there");
            assert_eq!(names(&stage.path("merged")), [""; 0], "SIG{name}");
            drop(open);
            drop(mount);
        }
    }

    #[test]
    fn the_foreground_serves_and_ends_with_the_unmount() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        let merged = stage.dir("merged");
        let child = Command::new(program())
            .args(["-f", "-o", &stage.plan().option_string()])
            .arg(&merged)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert!(wait_until(Duration::from_secs(60), || mount_line(&merged).is_some()), "no mount");
        assert_eq!(fs::read(merged.join("f")).unwrap(), b"f");
        unmount(&merged).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            (output.stdout.len(), String::from_utf8_lossy(&output.stderr).into_owned()),
            (0, String::new())
        );
    }

    #[test]
    fn a_lazy_unmount_ends_the_server_when_the_last_file_is_closed() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "content");
        let mount = stage.mount();
        let server = mount.server;
        let open = File::open(mount.path("f")).unwrap();
        if unmount(&stage.path("merged")).is_ok() {
            assert!(runs(server), "a file is open");
            assert_eq!(std::io::read_to_string(&open).unwrap(), "content");
        }
        drop(open);
        assert!(wait_until(Duration::from_secs(60), || !runs(server)), "it runs on");
    }

    #[test]
    fn a_read_only_mount_of_a_live_upper_sees_changes_and_makes_none() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/d/f", "f");
        stage.file("low/gone", "gone");
        let live = stage.mount();
        fs::write(live.path("before"), "before").unwrap();
        let plan = stage.plan().at("view").option("ro");
        let view = plan.mount();
        assert_eq!(view.said, "");
        let work = || tree(&stage.path("work"));
        let (work_before, up_before) = (work(), tree(&stage.path("up")));
        assert_eq!(view.names(""), ["before", "d", "gone"]);
        assert_eq!(fs::read_to_string(view.path("before")).unwrap(), "before");
        assert_eq!(errno(fs::write(view.path("no"), "")), libc::EROFS);
        assert_eq!((work(), tree(&stage.path("up"))), (work_before, up_before), "written by the view");
        fs::write(live.path("new"), "new").unwrap();
        fs::write(live.path("before"), "changed and longer").unwrap();
        fs::remove_file(live.path("gone")).unwrap();
        fs::write(live.path("d/f"), "copied up").unwrap();
        fs::create_dir(live.path("made")).unwrap();
        fs::write(live.path("made/in"), "in").unwrap();
        let sees = wait_until(Duration::from_secs(60), || {
            view.names("") == ["before", "d", "made", "new"]
                && fs::read_to_string(view.path("before")).is_ok_and(|t| t == "changed and longer")
                && fs::read_to_string(view.path("d/f")).is_ok_and(|t| t == "copied up")
                && errno(fs::metadata(view.path("gone"))) == libc::ENOENT
        });
        assert!(sees, "the view shows\n{}", tree(&view.path("")));
        assert_eq!(fs::read_to_string(view.path("made/in")).unwrap(), "in");
        view.end();
        // The kernel of the live mount still works on the same directories.
        fs::write(live.path("after"), "after").unwrap();
        live.end();
    }

    #[test]
    fn volatile_mounts_do_not_sync() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        for option in ["volatile", "fsync=0"] {
            let mount = stage.mount_with(option);
            let got = mount.requests(|| {
                for number in 0..5 {
                    let file = File::create(mount.path(format!("f{number}"))).unwrap();
                    file.sync_all().unwrap();
                }
            });
            assert!(got.of("fsync") <= 1, "{option}: {got:?}");
            mount.end();
        }
        let mount = stage.mount();
        let got = mount.requests(|| File::create(mount.path("g")).unwrap().sync_all().unwrap());
        assert_eq!(got.of("fsync"), 1, "{got:?}");
    }

    #[test]
    fn unknown_options_are_told_and_do_no_harm() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let mount = stage.mount_with("nonsense=1,more nonsense");
        let lines: Vec<&str> = mount.said.lines().collect();
        let expected = ["unknown argument ignored: nonsense=1", "unknown argument ignored: more nonsense"];
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines.iter().zip(expected).all(|(line, end)| line.ends_with(end)), "{lines:?}");
    }

    #[test]
    fn counters_go_to_the_file_that_the_peers_name() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        let merged = stage.dir("merged");
        let log = stage.path("log");
        let mut command = Command::new(program());
        command
            .args(["-o", &stage.plan().option_string()])
            .arg(&merged)
            .env("FUSE_OVERLAYFS_DEBUG_LOG", &log);
        command.env_remove("PLYWOOD_FUSE_STATS");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let server = server_of(&merged).expect("a server");
        signal(server, "USR1");
        let read = || fs::read_to_string(&log).unwrap_or_default();
        let told = wait_until(Duration::from_secs(60), || read().lines().count() == 2);
        unmount(&merged).unwrap();
        assert!(told && read().contains("requests total=") && read().contains("nodes="), "{}", read());
        assert!(wait_until(Duration::from_secs(60), || !runs(server)), "it runs on");
    }
}

mod root {
    use crate::support::*;
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Output};

    fn flags(merged: &Path) -> Vec<String> {
        let line = mount_line(merged).expect("a mount");
        line[2].split(',').map(str::to_owned).collect()
    }

    fn has(merged: &Path, flag: &str) -> bool {
        flags(merged).iter().any(|f| f == flag)
    }

    fn run(words: &[&str]) -> Output {
        Command::new(words[0]).args(&words[1..]).output().expect("run it")
    }

    #[test]
    fn an_overlay_whose_upper_is_in_an_overlay_keeps_what_is_deleted() {
        needs_mount!();
        needs!(is_root(), "fusermount does not mount inside of a mount of a plain user");
        let stage = Stage::new();
        stage.file("low/image/d/old", "old");
        stage.file("low/image/f", "f");
        let outer = stage.mount();
        for dir in ["up", "work", "merged"] {
            fs::create_dir(outer.path(dir)).unwrap();
        }
        let options = format!("lowerdir={0}image,upperdir={0}up,workdir={0}work", outer.path("").display());
        let merged = outer.path("merged");
        let start = || {
            let mut command = Command::new(program());
            command.args(["-o", &options]).arg(&merged);
            stage
                .start(&mut command, &merged)
                .unwrap_or_else(|o| panic!("{}", String::from_utf8_lossy(&o.stderr)))
        };
        let inner = start();
        fs::remove_file(inner.path("f")).unwrap();
        fs::remove_dir_all(inner.path("d")).unwrap();
        fs::create_dir(inner.path("d")).unwrap();
        fs::write(inner.path("d/new"), "new").unwrap();
        inner.end();
        let inner = start();
        assert_eq!(inner.names(""), ["d"], "after mounting the inner one again");
        assert_eq!(inner.names("d"), ["new"], "after mounting the inner one again");
        inner.end();
        outer.end();
        let outer = stage.mount();
        let inner = start();
        assert_eq!(inner.names(""), ["d"], "after mounting both again");
        assert_eq!(inner.names("d"), ["new"], "after mounting both again");
        inner.end();
        outer.end();
    }

    #[test]
    fn mount_remounts_read_only_and_back() {
        needs_mount!();
        needs!(is_root(), "only root remounts");
        let stage = Stage::new();
        stage.file("low/f", "f");
        let own = program().display().to_string();
        // mount(8) starts mount.fuse3 without our PATH, and that starts what the type names.
        let mount = stage.mount_with(&format!("subtype={own}"));
        let merged = stage.path("merged");
        let point = merged.display().to_string();
        let before = flags(&merged);
        for words in [
            [vec!["mount", "-o", "remount,ro", &point], vec!["mount", "-o", "remount,rw", &point]],
            [vec![&own, "-o", "remount,ro", &point], vec![&own, "-o", "remount", &point]],
            [
                vec![&own, "source", &point, "-o", "remount,ro,nodev"],
                vec![&own, "-oremount,rw", "--", &point],
            ],
        ] {
            let [there, back] = words;
            let output = run(&there);
            assert!(output.status.success() && output.stderr.is_empty(), "{there:?}: {output:?}");
            assert!(has(&merged, "ro"), "{there:?}: {:?}", flags(&merged));
            assert_eq!(errno(fs::write(mount.path("new"), "")), libc::EROFS, "{there:?}");
            assert_eq!(fs::read(mount.path("f")).unwrap(), b"f");
            let output = run(&back);
            assert!(output.status.success() && output.stderr.is_empty(), "{back:?}: {output:?}");
            assert_eq!(flags(&merged), before, "{back:?}");
            fs::write(mount.path("new"), "").unwrap();
        }
        let output = run(&[&own, "-o", "remount,noexec", &point]);
        assert!(output.status.success() && has(&merged, "noexec"), "{output:?} {:?}", flags(&merged));
        assert!(runs(mount.server), "the server goes on");
    }

    #[test]
    fn a_remount_of_what_is_no_mount_says_so() {
        let stage = Stage::new();
        let dir = stage.dir("dir").display().to_string();
        for point in [dir.as_str(), "/proc"] {
            let output = Command::new(program()).args(["-o", "remount,ro", point]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{point}: {said}");
            assert!(said.contains(point) && said.contains("no FUSE file system"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }

    #[test]
    fn a_helper_of_mount_starts_it() {
        needs_mount!();
        needs!(is_root(), "only root runs mount.fuse3");
        needs!(has_program("mount.fuse3"), "mount.fuse3 is needed");
        let stage = Stage::new();
        stage.file("low/f", "f");
        let merged = stage.dir("merged");
        let options = stage.plan().option_string();
        let dir = program().parent().expect("a directory").display().to_string();
        let path = format!("{dir}:{}", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("mount.fuse3");
        command.arg("overlay").arg(&merged).env("PATH", &path);
        for option in options.split(',') {
            command.args(["-o", option]);
        }
        command.args(["-t", "plywood-fuse"]);
        let mount = stage.start(&mut command, &merged).unwrap_or_else(|o| panic!("{o:?}"));
        assert_eq!(fs::read(mount.path("f")).unwrap(), b"f");
        let line = mount_line(&merged).unwrap();
        assert_eq!((line[0].as_str(), line[1].as_str()), ("overlay", "fuse.plywood-fuse"));
        assert_eq!(mount.said, "");
    }

    #[test]
    fn a_mounted_device_can_be_handed_over_as_a_descriptor() {
        needs_mount!();
        needs!(is_root(), "only root mounts for somebody else");
        needs!(has_program("python3"), "python3 is needed to mount by hand");
        let stage = Stage::new();
        stage.file("low/f", "f");
        let merged = stage.dir("merged");
        let script = "import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
program, merged, options = sys.argv[1:]
device = os.open('/dev/fuse', os.O_RDWR)
data = f'fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other,default_permissions'
if libc.mount(b'by-hand', merged.encode(), b'fuse.by-hand', 0, data.encode()) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
word = f'/dev/fd/{device}'
run = subprocess.run([program, '-o', options, word], pass_fds=[device])
os.close(device)
print(run.returncode, open(merged + '/f').read(), os.listdir(merged))
open(merged + '/new', 'w').write('new')
libc.umount2(merged.encode(), 0)
";
        let output = Command::new("timeout")
            .args(["60", "python3", "-c", script])
            .arg(program())
            .arg(&merged)
            .arg(stage.plan().option_string())
            .output()
            .unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(said, "0 f ['f']\n");
        assert_eq!(fs::read(stage.path("up/new")).unwrap(), b"new");
    }

    #[test]
    fn a_directory_descriptor_is_a_mount_point_and_layers_can_be_descriptors() {
        needs_mount!();
        needs!(is_root(), "fusermount cannot use it");
        let stage = Stage::new();
        stage.file("low/f", "f");
        let merged = stage.dir("merged");
        let output = Command::new("sh")
            .args(["-c", "exec 7< \"$1\" 8< \"$2\"; exec \"$0\" -o lowerdir=/dev/fd/8 /dev/fd/7"])
            .arg(program())
            .arg(&merged)
            .arg(stage.path("low"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(fs::read(merged.join("f")).unwrap(), b"f");
        unmount(&merged).unwrap();
    }
}

//! Modes, extended attributes, numbers.

mod anyone {
    use crate::support::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};

    #[test]
    fn the_umask_of_the_caller_counts_for_everything_that_is_made() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low/d");
        let mount = stage.mount();
        let script = format!(
            "cd {}\numask 077\n: > f077; mkdir d077; mkfifo p077; mknod n077 p\numask 022\n: > f022; mkdir d022; \
             mkfifo p022\numask 0\n: > f000; mkdir d000; mkfifo p000; mkdir d/d000\numask 027\nmkdir -p d/e/f; \
             : > d/e/f/g\nstat -c '%n %a' f* d* p* n* d/e d/e/f d/e/f/g d/d000",
            mount.path("").display()
        );
        let expected = "f000 666\nf022 644\nf077 600\nd 755\nd000 777\nd022 755\nd077 700\np000 666\np022 644\n\
                        p077 600\nn077 600\nd/e 750\nd/e/f 750\nd/e/f/g 640\nd/d000 777\n";
        assert_eq!(sh(&script), expected);
    }

    #[test]
    fn a_default_acl_beats_the_umask_and_is_inherited() {
        needs_mount!();
        let stage = Stage::new();
        let dir = stage.dir("low/d");
        needs!(has_program("setfacl"), "setfacl is needed");
        sh(&format!("setfacl -d -m u::rwx,g::rwx,o::r,m::rwx {}", dir.display()));
        let mount = stage.mount();
        let script = format!(
            "cd {}/d; umask 077; : > f; mkdir s; : > s/g; stat -c '%n %a' f s s/g",
            mount.path("").display()
        );
        assert_eq!(sh(&script), "f 664\ns 774\ns/g 664\n");
        mount.end();
        let mount = stage.plan().lowers(["up", "low"]).upper("next").mount();
        let acl = sh(&format!("getfacl -cd {}", mount.path("d/s").display()));
        assert_eq!(acl.trim(), "user::rwx\ngroup::rwx\nmask::rwx\nother::r--", "as a lower layer");
    }

    #[test]
    fn setgid_directories_give_their_group_and_their_bit() {
        needs_mount!();
        let stage = Stage::new();
        let dir = stage.dir("low/d");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2775)).unwrap();
        let mount = stage.mount();
        fs::create_dir(mount.path("d/s")).unwrap();
        fs::write(mount.path("d/f"), "").unwrap();
        let mode = |name: &str| fs::metadata(mount.path(name)).unwrap().mode() & 0o7000;
        assert_eq!((mode("d"), mode("d/s"), mode("d/f")), (0o2000, 0o2000, 0));
    }

    #[test]
    fn attributes_of_a_symlink_never_reach_its_target() {
        needs_mount!();
        let stage = Stage::new();
        let outside = stage.file("outside", "outside");
        stage.file("low/inside", "inside");
        stage.dir("low/d");
        symlink(&outside, stage.path("low/out")).unwrap();
        symlink("inside", stage.path("low/in")).unwrap();
        let mount = stage.mount();
        // A target that leads back into the mount made a peer wait for itself.
        symlink(mount.path("inside"), mount.path("back")).unwrap();
        symlink(mount.path("d"), mount.path("dir")).unwrap();
        for name in ["out", "in", "back", "dir"] {
            for attribute in ["user.test", "trusted.test"] {
                let _ = set_xattr(&mount.path(name), attribute, b"x");
                let _ = try_xattr(&mount.path(name), attribute);
            }
            let all = xattrs(&mount.path(name));
            assert!(
                !all.iter().any(|n| n.starts_with("user.")),
                "a symlink has no user attributes: {name} {all:?}"
            );
        }
        for target in [outside, mount.path("inside"), mount.path("d"), stage.path("low/inside")] {
            let all = xattrs(&target);
            assert!(!all.iter().any(|n| n.contains("test")), "{} has {all:?}", target.display());
        }
        let times =
            |path: &std::path::Path| fs::metadata(path).map(|m| (m.mtime(), m.mode(), m.uid())).unwrap();
        let before = times(&stage.path("outside"));
        sh(&format!("touch -h -d @77 {0}; chown -h $(id -u) {0}", mount.path("out").display()));
        assert_eq!(times(&stage.path("outside")), before, "times, mode and owner of the target");
        assert_eq!(fs::symlink_metadata(mount.path("out")).unwrap().mtime(), 77);
    }

    #[test]
    fn attributes_are_set_read_listed_and_removed() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/f", "f");
        set_xattr(&stage.path("low/f"), "user.lower", b"lower").unwrap();
        let mount = stage.mount();
        let f = mount.path("f");
        assert_eq!(xattr(&f, "user.lower").as_deref(), Some(&b"lower"[..]));
        assert_eq!(xattr(&f, "user.none"), None);
        set_xattr(&f, "user.empty", b"").unwrap();
        set_xattr(&f, "user.bytes", &[0, 1, 255]).unwrap();
        set_xattr(&f, "user.lower", b"changed").unwrap();
        let mut all = xattrs(&f);
        all.retain(|n| n.starts_with("user."));
        all.sort();
        assert_eq!(all, ["user.bytes", "user.empty", "user.lower"]);
        assert_eq!(xattr(&f, "user.empty").as_deref(), Some(&b""[..]));
        assert_eq!(xattr(&f, "user.bytes").as_deref(), Some(&[0, 1, 255][..]));
        assert_eq!(
            xattr(&stage.path("low/f"), "user.lower").as_deref(),
            Some(&b"lower"[..]),
            "the lower layer"
        );
        for attribute in ["trusted.overlay.opaque", "user.overlay.origin", "user.overlay.impure"] {
            assert!(!xattrs(&f).contains(&attribute.to_owned()), "{attribute} is ours to know");
        }
    }

    #[test]
    fn without_xattrs_none_are_seen_and_none_can_be_set() {
        needs_mount!();
        let stage = Stage::new();
        set_xattr(&stage.file("low/f", "f"), "user.lower", b"lower").unwrap();
        let mount = stage.mount_with("noxattrs=1");
        assert_eq!(set_xattr(&mount.path("f"), "user.x", b""), Err(libc::EOPNOTSUPP));
        let listed = try_xattrs(&mount.path("f")).unwrap_or_default();
        assert!(!listed.iter().any(|n| n.starts_with("user.")), "{listed:?}");
    }

    #[test]
    fn numbers_stay_when_files_change_and_when_the_upper_becomes_a_lower() {
        needs_mount!();
        let stage = Stage::new();
        for name in ["d/f", "d/sub/g", "h"] {
            stage.file(&format!("low/{name}"), name);
        }
        let all = ["d", "d/f", "d/sub", "d/sub/g", "h", "new", "new/f"];
        let numbers = |mount: &Mount| -> Vec<(String, u64)> {
            let number = |name: &str| fs::symlink_metadata(mount.path(name)).unwrap().ino();
            all.iter().map(|name| ((*name).to_owned(), number(name))).collect()
        };
        let listed = |mount: &Mount| {
            let script = format!("cd {}; ls -i1 . d d/sub new | grep -v : | sort", mount.path("").display());
            sh(&script)
        };
        let plan = stage.plan();
        let mount = plan.mount();
        fs::create_dir(mount.path("new")).unwrap();
        fs::write(mount.path("new/f"), "new").unwrap();
        let before = numbers(&mount);
        let listed_before = listed(&mount);
        for name in ["d/f", "d/sub/g", "h"] {
            sh(&format!("echo + >> {}", mount.path(name).display()));
        }
        assert_eq!(numbers(&mount), before, "after copy-up");
        assert_eq!(listed(&mount), listed_before, "listed after copy-up");
        mount.end();
        let mount = plan.mount();
        assert_eq!(listed(&mount), listed_before, "listed after mounting again");
        assert_eq!(numbers(&mount), before, "after mounting again");
        mount.end();
        let mount = stage.plan().lowers(["up", "low"]).upper("next").mount();
        assert_eq!(listed(&mount), listed_before, "listed with the upper as a lower layer");
        assert_eq!(numbers(&mount), before, "with the upper as a lower layer");
        let distinct: BTreeSet<u64> = numbers(&mount).into_iter().map(|(_, n)| n).collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn kinds_of_files_are_shown_made_and_copied_up() {
        needs_mount!();
        let stage = Stage::new();
        stage.dir("low");
        make_node(&stage.path("low/pipe"), libc::S_IFIFO | 0o640, Default::default()).unwrap();
        make_node(&stage.path("low/socket"), libc::S_IFSOCK | 0o640, Default::default()).unwrap();
        symlink("nowhere", stage.path("low/link")).unwrap();
        let mount = stage.mount();
        let kinds = |stage_dir: &str| {
            let dir = stage.path(stage_dir).display().to_string();
            sh(&format!("cd {dir}; stat -c '%n %F %a' link pipe socket"))
        };
        assert_eq!(kinds("merged"), kinds("low"));
        sh(&format!("cd {}; chmod 600 pipe socket; touch -h -d @5 link", mount.path("").display()));
        let expected = "link symbolic link 777\npipe fifo 600\nsocket socket 600\n";
        assert_eq!(kinds("merged"), expected);
        mount.end();
        assert_eq!(kinds("up"), expected);
    }

    #[test]
    fn sticky_and_special_bits_are_kept_and_taken_by_writes_of_others() {
        needs_mount!();
        let stage = Stage::new();
        stage.file("low/suid", "x");
        fs::set_permissions(stage.path("low/suid"), fs::Permissions::from_mode(0o6755)).unwrap();
        let mount = stage.mount();
        fs::DirBuilder::new().mode(0o1777).create(mount.path("tmp")).unwrap();
        assert_eq!(fs::metadata(mount.path("suid")).unwrap().mode() & 0o7777, 0o6755);
        sh(&format!("echo y >> {}", mount.path("suid").display()));
        // Only root of the machine keeps them: the disk asks for CAP_FSETID there.
        let expected = if is_real_root() { 0o6755 } else { 0o755 };
        assert_eq!(fs::metadata(mount.path("suid")).unwrap().mode() & 0o7777, expected, "after a write");
    }
}

mod root {
    use crate::support::*;
    use plywood_fuse::types::Device;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn devices_and_owners_are_kept_by_copy_up() {
        needs_mount!();
        needs!(is_real_root(), "only root makes devices");
        let stage = Stage::new();
        stage.dir("low");
        let device = Device { major: 1, minor: 3 };
        make_node(&stage.path("low/null"), libc::S_IFCHR | 0o666, device).unwrap();
        stage.file("low/f", "f");
        sh(&format!(
            "cd {}; chown 1234:2345 f; mkdir d; chown 11:22 d; : > d/x",
            stage.path("low").display()
        ));
        let mount = stage.mount_with("dev");
        sh(&format!(
            "cd {}; echo gone > null; chmod 600 null f; echo y > d/y; chown -h 5:6 null; setfattr -n trusted.x -v 1 f",
            mount.path("").display()
        ));
        mount.end();
        let meta = |name: &str| fs::symlink_metadata(stage.path("up").join(name)).unwrap();
        let null = meta("null");
        assert_eq!((null.rdev(), null.mode() & 0o7777, null.uid(), null.gid()), (0x103, 0o600, 5, 6));
        assert_eq!((meta("f").uid(), meta("f").gid()), (1234, 2345));
        assert_eq!((meta("d").uid(), meta("d").gid()), (11, 22));
        assert_eq!(xattr(&stage.path("up/f"), "trusted.x").as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_chown_takes_special_bits_and_capabilities() {
        needs_mount!();
        needs!(is_real_root(), "only root changes owners");
        let stage = Stage::new();
        stage.file("low/f", "f");
        sh(&format!("chmod 6755 {}", stage.path("low/f").display()));
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        set_xattr(&stage.path("low/f"), "security.capability", &capability).unwrap();
        let mount = stage.mount();
        assert!(xattr(&mount.path("f"), "security.capability").is_some());
        sh(&format!("chown 1:1 {}", mount.path("f").display()));
        assert_eq!(fs::metadata(mount.path("f")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(xattr(&mount.path("f"), "security.capability"), None);
    }

    /// The kernel leaves the bits to the server, and goes by the mode that it remembers unless it is told.
    #[test]
    fn whoever_writes_a_setuid_program_does_not_run_it_as_its_owner() {
        needs_mount!();
        needs!(is_real_root(), "only root has programs that others may write and run as root");
        needs!(has_program("python3"), "python3 is needed to write and run as somebody else");
        let stage = Stage::new();
        sh(&format!("cp $(command -v id) {}", stage.dir("low").join("id").display()));
        for how in ["write", "small", "copy"] {
            for layer in ["low", "up"] {
                let name = stage.dir(layer).join(format!("{how}-{layer}"));
                sh(&format!("cp $(command -v env) {0}; chmod 6777 {0}", name.display()));
            }
        }
        let mount = stage.mount();
        let script = "import os, sys
how, path, source = sys.argv[1:]
data, original = open(source, 'rb').read(), os.open(source, os.O_RDONLY)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
before = os.stat(path).st_mode & 0o7777
fd = os.open(path, os.O_WRONLY)
done = 0
while done < len(data):
    if how == 'copy':
        done += os.copy_file_range(original, fd, 1 << 20)
    else:
        done += os.write(fd, data[done:done + (4096 if how == 'small' else 1 << 20)])
os.close(fd)
print(oct(before), flush=True)
os.execv(path, ['id', '-u'])
";
        for how in ["write", "small", "copy"] {
            for layer in ["low", "up"] {
                let path = mount.path(format!("{how}-{layer}"));
                let mut python = std::process::Command::new("python3");
                let output =
                    python.args(["-c", script, how]).arg(&path).arg(mount.path("id")).output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                let failed = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(said, "0o6777\n65534\n", "{how} {layer}: {failed}");
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777, "{how} {layer}");
            }
        }
    }

    #[test]
    fn whoever_makes_room_in_a_setuid_program_takes_its_bits() {
        needs_mount!();
        needs!(is_real_root(), "only root has programs that others may write");
        needs!(has_program("python3"), "python3 is needed to be somebody else");
        let stage = Stage::new();
        for layer in ["low", "up"] {
            for (name, mode) in [("of-others", "6777"), ("of-nobody", "6666"), ("of-root", "6777")] {
                let file = stage.file(&format!("{layer}/{name}-{layer}"), "x".repeat(200_000));
                sh(&format!("chmod {mode} {}", file.display()));
            }
        }
        let mount = stage.mount();
        // Within the file, so nothing else makes the kernel ask again.
        let script = "import os, sys
if 'root' not in sys.argv[1]:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
before = os.stat(sys.argv[1]).st_mode & 0o7777
fd = os.open(sys.argv[1], os.O_RDWR)
os.posix_fallocate(fd, 0, 100000)
print(oct(before), oct(os.stat(sys.argv[1]).st_mode & 0o7777))
";
        for layer in ["low", "up"] {
            for (name, expected) in [
                ("of-others", "0o6777 0o777\n"),
                ("of-nobody", "0o6666 0o666\n"),
                ("of-root", "0o6777 0o6777\n"),
            ] {
                let mut python = std::process::Command::new("python3");
                let path = mount.path(format!("{name}-{layer}"));
                let output = python.args(["-c", script]).arg(path).output().unwrap();
                let failed = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{name} {layer}: {failed}");
            }
        }
    }

    #[test]
    fn an_access_list_takes_the_setgid_bit_of_who_is_not_in_the_group() {
        needs_mount!();
        needs!(is_real_root(), "only root gives files away");
        needs!(has_program("python3") && has_program("setfacl"), "python3 and setfacl are needed");
        let stage = Stage::new();
        for name in ["low/file", "up/dir/x"] {
            stage.file(name, "");
        }
        let mount = stage.mount();
        let script = "import os, subprocess, sys
path, gid, groups = sys.argv[1], int(sys.argv[2]), [int(g) for g in sys.argv[3:]]
os.chown(path, 65534, 100)
os.chmod(path, 0o2755)
def become():
    os.setgroups(groups); os.setgid(gid); os.setuid(65534)
subprocess.run(['setfacl', '-m', 'u::rwx,g::rwx,o::rwx', path], preexec_fn=become, check=True)
print(oct(os.stat(path).st_mode & 0o7777))
";
        for name in ["file", "dir"] {
            for (groups, expected) in [
                (&["100"][..], "0o2777\n"),
                (&["65534", "7", "100"][..], "0o2777\n"),
                (&["65534", "7"][..], "0o777\n"),
            ] {
                let mut python = std::process::Command::new("python3");
                let output = python.args(["-c", script]).arg(mount.path(name)).args(groups).output().unwrap();
                let failed = String::from_utf8_lossy(&output.stderr).into_owned();
                assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{name} {groups:?}: {failed}");
            }
        }
    }

    #[test]
    fn a_handle_of_a_file_opens_it_again() {
        needs_mount!();
        needs!(is_real_root(), "only root opens by handle");
        needs!(has_program("python3"), "python3 is needed to open by handle");
        let stage = Stage::new();
        stage.file("low/d/f", "content");
        let mount = stage.mount();
        let script = "import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('handle', ctypes.c_ubyte * 128)]
handle, mount = Handle(128), ctypes.c_int()
path = sys.argv[1].encode()
if libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
root = os.open(os.path.dirname(path), os.O_RDONLY)
fd = libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY)
print(os.read(fd, 100).decode() if fd >= 0 else os.strerror(ctypes.get_errno()))
";
        let output = std::process::Command::new("python3")
            .arg("-c")
            .arg(script)
            .arg(mount.path("d/f"))
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "content\n");
    }
}

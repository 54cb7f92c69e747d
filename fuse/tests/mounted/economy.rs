//! What an operation costs: requests of the kernel, from the counters, and system calls of the server, from strace.
//!
//! Each request is a switch to the server and back, some ten microseconds; nothing else costs as much.

mod anyone {
    use crate::support::*;
    use std::fs::{self, File};
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;

    /// A mount of some files, on which the kernel has learned already what it learns once per mount.
    fn prepare(stage: &Stage, option: &str) -> Mount {
        for number in 0..20 {
            stage.file(&format!("low/d/f{number}"), vec![b'x'; 3000]);
        }
        for name in ["a", "b", "c", "e"] {
            stage.file(&format!("low/w/{name}"), vec![b'x'; 3000]);
        }
        std::os::unix::fs::symlink("target", stage.path("low/w/link")).unwrap();
        stage.file("low/warm/up", "x");
        let mount = stage.mount_with(option);
        fs::read(mount.path("warm/up")).unwrap();
        mount.names("warm");
        fs::write(mount.path("warm/new"), "x").unwrap();
        let _ = File::open(mount.path("warm/new")).unwrap().sync_all();
        for name in ["d", "w"] {
            fs::metadata(mount.path(name)).unwrap();
        }
        mount
    }

    /// Asserts the most that an operation may cost, with directories known: a change makes the kernel forget the
    /// attributes of its directory, and the next who passes through asks for them once.
    #[track_caller]
    fn costs(mount: &Mount, what: &str, most: u64, operation: impl FnOnce()) {
        for dir in ["", "d", "w"] {
            let _ = fs::metadata(mount.path(dir));
        }
        let got = mount.requests(operation);
        assert!(got.of("total") <= most, "{what}: at most {most} requests, got {got:?}");
        if std::env::var_os("PLYWOOD_TEST_TELL").is_some() {
            eprintln!("{what}: {most} expected, {got:?}");
        }
    }

    fn read(mount: &Mount, name: &str) {
        // Not to its end: that asks for the size, and for the access time, which the first read made stale.
        let mut text = [0; 4096];
        assert_eq!(File::open(mount.path(name)).unwrap().read(&mut text).unwrap(), 3000);
    }

    #[test]
    fn looking_costs_one_request_and_then_none() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "");
        let stat = |name: &str| drop(fs::symlink_metadata(mount.path(name)));
        costs(&mount, "stat, cold", 1, || stat("d/f0"));
        costs(&mount, "stat, warm", 0, || stat("d/f0"));
        costs(&mount, "stat of what is missing, cold", 1, || stat("d/none"));
        costs(&mount, "stat of what is missing, warm", 0, || stat("d/none"));
        costs(&mount, "a directory, warm", 0, || stat("d"));
        costs(&mount, "readlink, cold", 2, || drop(fs::read_link(mount.path("w/link"))));
        costs(&mount, "readlink, warm", 0, || drop(fs::read_link(mount.path("w/link"))));
        costs(&mount, "access, warm", 0, || drop(sh(&format!("test -r {}", mount.path("d/f0").display()))));
    }

    #[test]
    fn reading_again_costs_nothing() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "");
        costs(&mount, "open, read, close, first", 2, || read(&mount, "d/f1"));
        costs(&mount, "open, read, close, again", 0, || read(&mount, "d/f1"));
    }

    #[test]
    fn listing_costs_two_requests_and_then_none() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "");
        let list = || drop(mount.names("d"));
        costs(&mount, "list 20 names, first", 2, list);
        costs(&mount, "list 20 names, second", 1, list);
        costs(&mount, "list 20 names, third", 0, list);
        let list_and_stat = || {
            for name in mount.names("d") {
                fs::symlink_metadata(mount.path("d").join(name)).unwrap();
            }
        };
        costs(&mount, "list and stat 20 names", 0, list_and_stat);
        let other = Stage::new();
        let mount = prepare(&other, "");
        let list_and_stat = || {
            for name in mount.names("d") {
                fs::symlink_metadata(mount.path("d").join(name)).unwrap();
            }
        };
        costs(&mount, "list and stat 20 names, first", 2, list_and_stat);
        costs(&mount, "list and stat 20 names, second", 1, list_and_stat);
        costs(&mount, "list and stat 20 names, third", 0, list_and_stat);
    }

    #[test]
    fn writing_costs_no_question_per_write() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "");
        let write = |file: &mut File, times: usize| {
            for _ in 0..times {
                file.write_all(&[b'y'; 4096]).unwrap();
            }
        };
        costs(&mount, "create, one write, close", 4, || {
            write(&mut File::create(mount.path("w/new1")).unwrap(), 1)
        });
        costs(&mount, "create, ten writes, close", 13, || {
            write(&mut File::create(mount.path("w/new10")).unwrap(), 10)
        });
        fs::metadata(mount.path("w/a")).unwrap();
        costs(&mount, "overwrite with O_TRUNC", 4, || fs::write(mount.path("w/a"), [b'z'; 100]).unwrap());
        let append = || {
            File::options().append(true).open(mount.path("w/new1")).unwrap().write_all(&[b'z'; 100]).unwrap()
        };
        costs(&mount, "append", 2, append);
        let mut file = File::options().append(true).open(mount.path("w/new10")).unwrap();
        let got = mount.requests(|| write(&mut file, 100));
        assert!(got.of("getxattr") <= 1, "100 writes: {got:?}");
        assert_eq!(got.of("write"), 100, "100 writes: {got:?}");
    }

    #[test]
    fn changing_names_and_attributes_costs_one_or_two_requests() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "");
        for name in ["a", "b", "c", "e"] {
            fs::metadata(mount.path("w").join(name)).unwrap();
        }
        let chmod = || fs::set_permissions(mount.path("w/a"), fs::Permissions::from_mode(0o600)).unwrap();
        costs(&mount, "chmod", 1, chmod);
        costs(&mount, "unlink", 1, || fs::remove_file(mount.path("w/b")).unwrap());
        costs(&mount, "mkdir", 2, || fs::create_dir(mount.path("w/dir")).unwrap());
        costs(&mount, "rename", 2, || fs::rename(mount.path("w/c"), mount.path("w/moved")).unwrap());
        costs(&mount, "rmdir", 1, || fs::remove_dir(mount.path("w/dir")).unwrap());
        // The kernel forgets a name that goes, and remembers that it is gone once it has asked.
        costs(&mount, "stat of what was removed", 1, || drop(fs::symlink_metadata(mount.path("w/b"))));
        costs(&mount, "stat of what was removed, again", 0, || drop(fs::symlink_metadata(mount.path("w/b"))));
    }

    #[test]
    fn a_warm_tree_is_walked_without_a_request() {
        needs_mount!();
        let stage = Stage::new();
        for dir in 0..10 {
            for file in 0..10 {
                stage.file(&format!("low/d{dir}/f{file}"), "x");
            }
        }
        let mount = stage.mount();
        let walk = || {
            let mut todo = vec![mount.path("")];
            while let Some(dir) = todo.pop() {
                for name in names(&dir) {
                    let path = dir.join(name);
                    if fs::symlink_metadata(&path).unwrap().is_dir() {
                        todo.push(path);
                    } else {
                        assert_eq!(fs::read(path).unwrap(), b"x");
                    }
                }
            }
        };
        walk();
        walk();
        costs(&mount, "list, stat and read all, warm", 0, walk);
    }

    #[test]
    fn nobody_asks_for_access_control_lists_where_there_are_none() {
        needs_mount!();
        let stage = Stage::new();
        for number in 0..20 {
            stage.file(&format!("low/d/f{number}"), "x");
        }
        sh(&format!("chmod -R a+rX {}", stage.path("low").display()));
        let mount = stage.mount();
        let script = format!("cat {}/d/* > /dev/null", mount.path("").display());
        // Whoever is not the owner is asked about; if we are not root, we own them all.
        let script = match is_real_root() {
            true => format!("exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -ec '{script}'"),
            false => script,
        };
        let got = mount.requests(|| drop(sh(&script)));
        assert_eq!((got.of("getxattr"), got.of("read")), (0, 20), "{got:?}");
    }

    #[test]
    fn the_classic_protocol_opens_and_closes() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "open=on");
        let got = mount.requests(|| {
            read(&mount, "d/f1");
            mount.names("d");
            fs::write(mount.path("w/new"), "x").unwrap();
            File::options().append(true).open(mount.path("w/a")).unwrap().write_all(b"y").unwrap();
        });
        assert_eq!((got.of("open"), got.of("opendir"), got.of("create")), (2, 1, 1), "{got:?}");
        let mut all = mount.counts();
        let closed = wait_until(std::time::Duration::from_secs(60), || {
            all = mount.counts();
            all.of("release") == all.of("open") + all.of("create")
                && all.of("releasedir") == all.of("opendir")
        });
        assert!(closed, "every open is closed: {all:?}");
        let again = mount.requests(|| read(&mount, "d/f1"));
        assert_eq!(again.of("read"), 0, "the kernel keeps what was read: {again:?}");
        // Opening to write copies up, as the classic protocol expects.
        let copies = mount.requests(|| drop(File::options().write(true).open(mount.path("w/b")).unwrap()));
        assert_eq!(copies.of("copy_ups"), 1, "{copies:?}");
        assert_eq!(fs::read(mount.path("w/a")).unwrap().len(), 3001);
    }

    #[test]
    fn without_a_timeout_nothing_is_remembered() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "timeout=0");
        let got = mount.requests(|| {
            fs::symlink_metadata(mount.path("d/f0")).unwrap();
            fs::symlink_metadata(mount.path("d/f0")).unwrap();
        });
        assert!(got.of("lookup") >= 2, "{got:?}");
    }

    #[test]
    fn the_kernel_collects_writes_if_it_is_told_to() {
        needs_mount!();
        let stage = Stage::new();
        let mount = prepare(&stage, "writeback=1");
        let got = mount.requests(|| {
            let mut file = File::create(mount.path("w/new")).unwrap();
            for _ in 0..100 {
                file.write_all(&[b'y'; 100]).unwrap();
            }
            file.sync_all().unwrap();
        });
        assert!(got.of("write") <= 4, "{got:?}");
        assert_eq!(fs::read(stage.path("up/w/new")).unwrap(), vec![b'y'; 10_000]);
    }
}

/// System calls of the server, counted by strace.
mod traced {
    use crate::support::*;
    use std::fs;

    #[test]
    fn looking_at_a_big_directory_lists_nothing() {
        needs_mount!();
        needs!(has_program("strace") && is_root(), "strace is needed, and root: fusermount cannot be traced");
        let stage = Stage::new();
        for layer in ["one", "two"] {
            for number in 0..2000 {
                stage.file(&format!("{layer}/big/{number}"), "");
            }
        }
        for number in 0..2000 {
            stage.file(&format!("one/alone/{number}"), "");
        }
        let mount = stage.plan().lowers(["one", "two"]).traced().mount();
        // A first lookup reads the names of the directory above, once.
        let _ = fs::symlink_metadata(mount.path("none"));
        let calls = mount.calls(|| {
            fs::symlink_metadata(mount.path("big")).unwrap();
            fs::symlink_metadata(mount.path("alone")).unwrap();
        });
        assert_eq!(calls.of("getdents64"), 0, "{calls:?}");
        assert!(calls.sum() < 60, "{calls:?}");
        // Asking again, past the kernel's cache, costs the same whatever is in it.
        let calls = mount.calls(|| drop(sh(&format!("stat --cached=never {}", mount.path("big").display()))));
        assert_eq!(calls.of("getdents64"), 0, "{calls:?}");
    }

    #[test]
    fn a_change_in_a_big_directory_costs_what_it_costs_in_a_small_one() {
        needs_mount!();
        needs!(has_program("strace") && is_root(), "strace is needed, and root: fusermount cannot be traced");
        let stage = Stage::new();
        for number in 0..3000 {
            stage.file(&format!("low/big/{number}"), "");
        }
        for number in 0..30 {
            stage.file(&format!("low/small/{number}"), "");
        }
        let mount = stage.plan().traced().mount();
        let change = |dir: &str| {
            let dir = mount.path(dir);
            for number in 0..10 {
                fs::remove_file(dir.join(number.to_string())).unwrap();
                fs::write(dir.join(format!("new{number}")), "x").unwrap();
                fs::symlink_metadata(&dir).unwrap();
                fs::remove_file(dir.join(format!("new{number}"))).unwrap();
            }
        };
        // What is learned once about a directory is not counted.
        for dir in ["small", "big"] {
            fs::write(mount.path(dir).join("first"), "").unwrap();
            drop(mount.names(dir));
        }
        let small = mount.calls(|| change("small"));
        let big = mount.calls(|| change("big"));
        assert!(big.sum() <= small.sum() + small.sum() / 5 + 10, "small: {small:?}\nbig: {big:?}");
    }

    #[test]
    fn a_lookup_does_not_ask_layers_that_do_not_have_the_name() {
        needs_mount!();
        needs!(has_program("strace") && is_root(), "strace is needed, and root: fusermount cannot be traced");
        let cost = |layers: usize| {
            let stage = Stage::new();
            let names: Vec<String> = (0..layers).map(|n| format!("l{n}")).collect();
            for (number, layer) in names.iter().enumerate() {
                stage.file(&format!("{layer}/d/own{number}"), "x");
            }
            stage.file(&format!("l{}/d/deep1", layers - 1), "x");
            stage.file(&format!("l{}/d/deep2", layers - 1), "x");
            let mount = stage.plan().lowers(&names).traced().mount();
            // The names of the directory are read once.
            fs::symlink_metadata(mount.path("d/deep1")).unwrap();
            let found = mount.calls(|| assert!(fs::symlink_metadata(mount.path("d/deep2")).is_ok()));
            let missing = mount.calls(|| assert!(fs::symlink_metadata(mount.path("d/none")).is_err()));
            (found, missing)
        };
        let (few, many) = (cost(10), cost(128));
        assert!(
            many.0.sum() <= few.0.sum() + 2,
            "a name of the lowest layer: 10 {:?}, 128 {:?}",
            few.0,
            many.0
        );
        assert!(many.1.sum() <= few.1.sum() + 2, "a missing name: 10 {:?}, 128 {:?}", few.1, many.1);
        assert!(few.1.sum() <= 4, "a missing name: {:?}", few.1);
    }
}

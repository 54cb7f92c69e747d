//! `fs`: files of snapshots without a mount.

use crate::support::{BACKENDS, Cli, column, keys, text};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

/// A committed base with a small tree, and an active snapshot on top of it.
fn with_tree(backend: &'static str) -> Cli {
    let cli = Cli::new(backend);
    let tree = cli.stage.dir("tree");
    fs::create_dir_all(tree.join("etc/conf.d")).expect("directories");
    fs::write(tree.join("etc/motd"), "from below\n").expect("a file");
    fs::write(tree.join("etc/conf.d/a"), "a").expect("a file");
    fs::write(tree.join("etc/conf.d/b"), "b").expect("a file");
    symlink("/etc/motd", tree.join("link")).expect("a symlink");
    fs::set_permissions(tree.join("etc/motd"), fs::Permissions::from_mode(0o640)).expect("its mode");
    cli.good("prepare one");
    cli.good("fs cp tree/. one:/");
    cli.good("commit base one");
    cli.good("prepare work base");
    cli.good("view look base");
    cli
}

#[test]
fn files_of_every_kind_of_snapshot_are_listed_and_shown() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        for key in ["base", "work", "look"] {
            assert_eq!(cli.good(&format!("fs ls -q {key}")), "etc\nlink\n");
            assert_eq!(cli.good(&format!("fs ls -q {key} etc/conf.d")), "a\nb\n");
            assert_eq!(cli.good(&format!("fs cat {key} /etc/motd link")), "from below\nfrom below\n");
        }
        let listed = cli.json("fs ls work /");
        assert_eq!(
            keys(&listed[0]),
            ["gid", "kind", "links", "mode", "modified", "name", "size_bytes", "uid"]
        );
        assert_eq!(column(&listed, "kind"), ["directory", "symlink"]);
        assert_eq!(listed[1]["target"], json!("/etc/motd"));
        let stat = cli.json("fs stat work etc/motd");
        assert_eq!(
            (&stat[0]["name"], &stat[0]["mode"], &stat[0]["size_bytes"], &stat[0]["uid"]),
            (&json!("etc/motd"), &json!("0640"), &json!(11), &json!(0))
        );
        let table = cli.good("fs ls work");
        assert!(table.starts_with("KIND ") && table.contains("link -> /etc/motd"), "{table}");
        assert_eq!(
            cli.json("fs ls work etc/motd")[0]["name"],
            json!("etc/motd"),
            "a file is listed as itself"
        );
    }
}

#[test]
fn changes_stay_in_the_active_snapshot() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        cli.put("work", "/etc/motd", "changed");
        cli.put("work", "/etc/new", "new");
        assert_eq!(cli.json("fs rm -r work etc/conf.d link"), json!({"removed": ["etc/conf.d", "link"]}));
        assert_eq!(cli.good("fs cat work etc/motd etc/new"), "changednew");
        assert_eq!(cli.good("fs ls -q work /etc"), "motd\nnew\n");
        assert_eq!(cli.good("fs cat base etc/motd"), "from below\n");
        assert_eq!(cli.good("fs ls -q look /etc"), "conf.d\nmotd\n");
        // They survive a commit, and are seen by the next layer.
        cli.good("commit next work");
        cli.good("prepare more next");
        cli.good("view both next");
        for key in ["next", "more", "both"] {
            assert_eq!(cli.good(&format!("fs ls -q {key} /etc")), "motd\nnew\n");
            assert_eq!(cli.good(&format!("fs cat {key} etc/motd")), "changed");
            assert_eq!(cli.good(&format!("fs ls -q {key}")), "etc\n");
        }
        assert_eq!(cli.good("check"), "nothing is wrong\n");
    }
}

#[test]
fn committed_snapshots_and_views_are_never_written() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        cli.stage.file("x", "x");
        for key in ["base", "look"] {
            for words in [
                format!("fs cp x {key}:/x"),
                format!("fs rm {key} link"),
                format!("fs cp work:/etc {key}:/x"),
            ] {
                let message = cli.bad(5, &words);
                assert!(message.contains("only active snapshots can be changed"), "{message}");
            }
            assert_eq!(cli.good(&format!("fs ls -q {key}")), "etc\nlink\n");
        }
    }
}

#[test]
fn files_are_copied_in_and_out_and_from_one_snapshot_to_another() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        cli.stage.dir("out");
        assert_eq!(cli.json("fs cp work:/etc out"), json!({"files": 3, "directories": 2, "bytes": 13}));
        assert_eq!(fs::read(cli.stage.path("out/etc/motd")).expect("a file"), b"from below\n");
        let meta = fs::metadata(cli.stage.path("out/etc/motd")).expect("it is there");
        assert_eq!(meta.mode() & 0o7777, 0o640);
        assert_eq!(meta.uid(), plywood_fuse::sys::process::effective_uid(), "it belongs to who copies");
        // Symlinks as such, unless they are to be followed.
        cli.good("fs cp work:/link out");
        assert!(fs::symlink_metadata(cli.stage.path("out/link")).expect("it is there").is_symlink());
        cli.good("fs cp -L work:/link out/file");
        assert_eq!(fs::read(cli.stage.path("out/file")).expect("a file"), b"from below\n");
        // Several at once need a directory.
        cli.good("fs cp work:/etc/motd work:/etc/conf.d/a out");
        assert!(cli.stage.path("out/a").exists());
        assert!(cli.bad(2, "fs cp work:/etc/motd work:/link out/a").contains("directory"));
        // From one to another, and within one.
        cli.good("prepare other");
        cli.good("fs cp work:/etc other:/");
        assert_eq!(cli.good("fs ls -q other etc"), "conf.d\nmotd\n");
        cli.good("fs cp work:/etc/motd work:/etc/copy");
        assert_eq!(cli.good("fs cat work etc/copy"), "from below\n");
        assert_eq!(cli.run("fs cp work:/etc work:/etc/conf.d").code, 1, "a directory into itself");
        // Paths of this machine alone are for cp.
        assert!(cli.bad(2, "fs cp out out2").contains("KEY:PATH"));
        assert!(cli.bad(3, "fs cp missing work:/").contains("missing"));
        assert!(cli.bad(3, "fs cp work:/missing out").contains("/missing"));
        assert!(cli.bad(3, "fs cp gone:/x out").contains("gone"));
    }
}

#[test]
fn new_files_belong_to_root_unless_owners_are_kept() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        let file = cli.stage.file("mine", "mine");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).expect("its mode");
        cli.good("fs cp mine work:/plain");
        cli.good("fs cp -a mine work:/kept");
        let of = |path: &str| -> Value { cli.json(&format!("fs stat work {path}"))[0].clone() };
        assert_eq!((&of("plain")["uid"], &of("plain")["mode"]), (&json!(0), &json!("0755")));
        assert_eq!(of("kept")["mode"], json!("4755"));
        let now: Vec<Value> = [of("plain"), of("kept")].iter().map(|v| v["modified"].clone()).collect();
        assert_eq!(now[0], now[1], "times are kept either way");
    }
}

#[test]
fn failures_name_the_path_and_go_on_where_there_are_several() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        let ended = cli.run("fs cat work missing etc/motd etc");
        assert_eq!((ended.code, ended.out.as_str()), (3, "from below\n"), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 2, "{ended:?}");
        let ended = cli.run("--json fs rm work missing link");
        assert_eq!(ended.code, 3, "{ended:?}");
        assert_eq!(serde_json::from_str::<Value>(&ended.out).expect("JSON"), json!({"removed": ["link"]}));
        assert_eq!(cli.good("fs rm -f work missing"), "");
        let message = cli.bad(1, "fs rm work etc");
        assert!(message.contains("--recursive"), "{message}");
        assert_eq!(cli.run("fs rm -r work /").code, 5, "the root is busy");
        assert_eq!(cli.good("fs ls -q work etc"), "conf.d\nmotd\n");
        cli.bad(3, "fs ls work missing");
        cli.bad(3, "fs stat work missing");
    }
}

#[test]
fn no_path_leads_out_of_a_snapshot() {
    for backend in BACKENDS {
        let cli = with_tree(backend);
        let secret = cli.stage.file("secret", "secret");
        symlink(&secret, cli.stage.path("evil")).expect("a symlink");
        symlink("/../../../..", cli.stage.path("up")).expect("a symlink");
        cli.good("fs cp ./evil ./up work:/");
        cli.bad(3, "fs cat work evil");
        cli.bad(3, &format!("fs cat work {}", text(&secret)));
        cli.bad(3, &format!("fs cat work up{}", text(&secret)));
        assert_eq!(cli.good("fs cat work ../../etc/motd"), "from below\n");
        // What is copied onto a symlink replaces or fails, and never goes outside.
        cli.stage.file("new", "new");
        cli.run("fs cp new work:/evil");
        assert_eq!(fs::read(&secret).expect("a file"), b"secret");
    }
}

#[test]
fn a_key_with_colons_can_be_named() {
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        cli.good("prepare k8s.io/1/sha256:ab");
        cli.stage.file("f", "content");
        cli.good("fs cp f k8s.io/1/sha256:ab:/a:b");
        assert_eq!(cli.good("fs cat k8s.io/1/sha256:ab a:b"), "content");
        cli.good("fs cp k8s.io/1/sha256:ab:/a:b out");
        assert_eq!(fs::read(cli.stage.path("out")).expect("a file"), b"content");
    }
}

//! Snapshots from their making to their removal, for people and for programs.

use crate::support::{BACKENDS, Cli, by_a_dead_process, column, ended, keys, text};
use serde_json::json;
use std::fs;

/// base <- web, and work on top of base.
fn small(backend: &'static str) -> Cli {
    let cli = Cli::new(backend);
    cli.good("prepare one");
    cli.put("one", "/etc", "first");
    cli.good("commit base one --label stage=base --label empty=");
    cli.good("prepare two base");
    cli.good("commit web two");
    cli.good("prepare work base -l owner=me");
    cli
}

#[test]
fn a_snapshot_lives_from_prepare_to_rm_and_says_nothing_to_people() {
    // S3, S4, S8, S14, S15, S19, S20, S34, S35
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        assert_eq!(cli.good("prepare a"), "");
        assert_eq!(cli.good("commit base a"), "");
        assert_eq!(cli.good("view look base"), "");
        assert_eq!(cli.good("prepare b base"), "");
        assert!(cli.bad(5, "rm base").contains("child"), "S20");
        assert_eq!(cli.good("rm b look base"), "");
        assert_eq!(cli.json("ls"), json!([]));
    }
}

#[test]
fn every_answer_for_programs_has_the_shape_that_its_help_shows() {
    for backend in BACKENDS {
        let cli = small(backend);
        let made = cli.json("prepare new base");
        assert_eq!((keys(&made), &made["key"]), (vec!["key", "mounts"], &json!("new")));
        let mount = &made["mounts"][0];
        assert_eq!(keys(mount), ["options", "source", "type"]);
        assert_eq!(made["mounts"].as_array().map(Vec::len), Some(1), "one mount: {made}");
        assert_eq!(cli.json("mounts new"), made, "S11: the same after a restart");
        assert_eq!(keys(&cli.json("view look base")), ["key", "mounts"]);
        assert_eq!(cli.json("commit done new"), json!({"name": "done", "key": "new"}));

        let info = cli.json("stat base");
        assert_eq!(keys(&info), ["created", "kind", "labels", "name", "parent", "updated"]);
        assert_eq!((&info["kind"], &info["parent"]), (&json!("committed"), &json!("")));
        assert_eq!(info["labels"], json!({"stage": "base"}), "a label without value is none");
        let created = info["created"].as_str().expect("a time");
        assert!(created.len() == 30 && created.ends_with('Z') && created.contains('T'), "{created}");

        let all = cli.json("ls");
        assert_eq!(column(&all, "name"), ["base", "web", "work", "done", "look"]);
        assert_eq!(all[0], info, "S45: what a walk shows is what stat shows");

        let tree = cli.json("tree");
        assert_eq!(keys(&tree[0]), ["depth", "kind", "name", "parent"]);
        assert_eq!(column(&tree, "name"), ["base", "done", "look", "web", "work"]);
        assert_eq!(tree[1]["depth"], json!(1));

        let usage = cli.json("usage base work");
        assert_eq!(keys(&usage[0]), ["inodes", "key", "size_bytes"]);
        assert_eq!(usage[0]["inodes"], json!(2), "the root and a file");
        assert_eq!(cli.json("usage").as_array().map(Vec::len), Some(5));

        let labelled = cli.json("label work owner=you more=x");
        assert_eq!(labelled["labels"], json!({"owner": "you", "more": "x"}));
        assert_eq!(cli.json("label work more=")["labels"], json!({"owner": "you"}));

        assert_eq!(cli.json("umount work"), json!({"unmounted": []}));
        assert_eq!(cli.json("rm look done"), json!({"removed": ["look", "done"]}));
        let cleaned = cli.json("cleanup");
        assert_eq!(
            keys(&cleaned),
            ["deleted", "deleted_blobs", "deleted_ingests", "dropped_rows", "failed", "freed_content_bytes"]
        );
        assert_eq!(cli.json("check"), json!({"findings": [], "repaired": 0}));
        let backends = cli.json("backends");
        assert_eq!(column(&backends, "backend"), ["fuse", "btrfs", "overlay", "native"]);
        assert_eq!(keys(&backends[0]), ["backend", "used", "why", "works"]);
        for row in backends.as_array().expect("a list") {
            assert_eq!(row["used"], json!(row["backend"] == json!(backend)), "{row}");
            assert!(row["works"] == json!(true) || row["why"] != json!(""), "why not: {row}");
        }
    }
}

#[test]
fn tables_for_people_have_a_header_and_aligned_columns() {
    for backend in BACKENDS {
        let cli = small(backend);
        let listed = cli.good("ls");
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 4, "{listed}");
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["KEY", "PARENT", "KIND", "CREATED"]);
        let column = lines[0].find("PARENT").expect("a column");
        assert!(lines[2].starts_with("web ") && lines[2][column..].starts_with("base "), "{listed}");
        assert!(lines[2].ends_with("now") || lines[2].ends_with("ago"), "{listed}");
        assert_eq!(cli.good("ls -q kind==committed"), "base\nweb\n");
        assert_eq!(cli.good("tree"), "base (committed)\n├── web (committed)\n└── work (active)\n");
        let usage = cli.good("usage base");
        assert!(usage.starts_with("KEY ") && usage.contains("KiB"), "{usage}");
        let bytes = cli.good("usage --bytes base");
        assert!(!bytes.contains("KiB") && bytes.lines().nth(1).is_some_and(|l| l.ends_with(" 2")), "{bytes}");
        let known = cli.good("stat base");
        assert!(known.starts_with("name:    base\nparent:\nkind:    committed\ncreated: 2"), "{known}");
        assert!(known.ends_with("labels:\n  stage=base\n"), "{known}");
        assert!(cli.good("backends").starts_with("BACKEND "));
        assert_eq!(cli.good("check"), "nothing is wrong\n");
        assert_eq!(cli.good("label work a=b").lines().last(), Some("  owner=me"));
    }
}

#[test]
fn mounts_are_printed_as_commands_with_their_target() {
    for backend in BACKENDS {
        let cli = small(backend);
        let line = cli.good("mounts work /mnt");
        assert!(
            line.starts_with("mount -t ") && line.contains(" /mnt -o ") && line.lines().count() == 1,
            "{line}"
        );
        assert!(cli.good("mounts work").contains(" TARGET -o "), "a place for the target");
        let with_target = cli.good("prepare other base --target /mnt");
        assert_eq!(with_target, cli.good("mounts other /mnt"));
        assert!(line.contains(text(&cli.root())), "{line}");
        cli.bad(5, "mounts base");
    }
}

#[test]
fn every_failure_ends_with_its_code_and_says_what_and_why() {
    for backend in BACKENDS {
        let cli = small(backend);
        let cases: &[(i32, &str, &str)] = &[
            (3, "stat gone", "\"gone\""),
            (3, "prepare x gone", "\"gone\""),
            (3, "view x gone", "\"gone\""),
            (3, "commit x gone", "\"gone\""),
            (3, "mounts gone", "\"gone\""),
            (3, "rm gone", "\"gone\""),
            (3, "usage gone", "\"gone\""),
            (3, "label gone a=b", "\"gone\""),
            (3, "mount gone .", "\"gone\""),
            (3, "umount gone", "gone"),
            (3, "fs ls gone", "\"gone\""),
            (3, "fs cat work /missing", "/missing"),
            (4, "prepare work", "\"work\""),
            (4, "prepare base", "\"base\""),
            (4, "view web base", "\"web\""),
            (4, "commit base work", "\"base\""),
            (5, "commit x web", "\"web\""),
            (5, "rm base", "\"base\""),
            (5, "mounts base", "\"base\""),
            (5, "fs rm base etc", "\"base\""),
            (2, "prepare x work", "\"work\""),
            (2, "ls name=x", "at byte 4"),
            (125, "exec gone -- true", "gone"),
        ];
        for (code, words, subject) in cases {
            let message = cli.bad(*code, words);
            assert!(message.contains(subject), "{words}: {message}");
            assert_eq!(message.lines().count(), 1, "{words}: {message}");
            assert!(!message.trim_end().ends_with('.'), "{words}: {message}");
        }
        // Nothing of it changed anything.
        assert_eq!(cli.good("ls -q"), "base\nweb\nwork\n");
        assert_eq!(cli.good("check"), "nothing is wrong\n");
    }
}

#[test]
fn several_keys_go_on_after_a_failure_and_end_with_its_code() {
    for backend in BACKENDS {
        let cli = small(backend);
        let ended = cli.run("--json rm gone work base web");
        assert_eq!(ended.code, 3, "the first failure: {ended:?}");
        assert_eq!(ended.err.lines().count(), 2, "{ended:?}");
        let answer: serde_json::Value = serde_json::from_str(&ended.out).expect("JSON all the same");
        assert_eq!(answer, json!({"removed": ["work", "web"]}));
        let ended = cli.run("--json usage gone base");
        assert_eq!(ended.code, 3);
        assert!(ended.out.contains("\"base\""), "{ended:?}");
    }
}

#[test]
fn labels_of_a_commit_replace_those_of_the_active_snapshot() {
    for backend in BACKENDS {
        let cli = small(backend);
        cli.good("commit done work -l a=1 -l b=x=y");
        assert_eq!(cli.json("stat done")["labels"], json!({"a": "1", "b": "x=y"}));
        cli.good("prepare owned -l containerd.io/snapshot/uidmapping=0:0:1,1:1:10");
        let filter = "labels.\"containerd.io/snapshot/uidmapping\"";
        let found = cli.run_words(["ls", "-q", filter]);
        assert_eq!(found.out, "owned\n", "{found:?}");
        assert!(cli.bad(2, "prepare x -l containerd.io/snapshot/uidmapping=1:1:1").contains("id 0"));
    }
}

#[test]
fn a_cleanup_spares_trials_and_mount_points_of_processes_that_live() {
    let alive = plywood::layout::by_this_process;
    for backend in BACKENDS {
        let cli = small(backend);
        let (snapshots, mounts) = (cli.root().join("snapshots"), cli.root().join("mnt"));
        let kept = [snapshots.join(alive("new-0")), mounts.join(alive("exec")), mounts.join("empty")];
        let dead = [snapshots.join(by_a_dead_process("new-0")), mounts.join(by_a_dead_process("exec"))];
        for dir in kept.iter().chain(&dead) {
            fs::create_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
        let cleaned = cli.json("cleanup");
        assert_eq!((&cleaned["deleted"], &cleaned["failed"]), (&json!(2), &json!([])));
        assert!(kept.iter().all(|dir| dir.is_dir()), "{kept:?}");
        assert!(dead.iter().all(|dir| !dir.exists()), "{dead:?}");
    }
}

#[test]
fn scratch_space_of_a_mount_goes_once_its_snapshot_is_gone() {
    for backend in BACKENDS {
        let cli = small(backend);
        let ids = crate::privileges::names(&cli.root().join("snapshots"));
        let known: Vec<String> = ids.iter().map(|id| format!("work-{id}")).collect();
        let unknown = ["work-990".to_owned(), "work-991".to_owned()];
        for name in known.iter().chain(&unknown) {
            cli.stage.file(format!("store/mnt/{name}/work/file"), "scratch");
        }
        assert_eq!(cli.json("cleanup")["deleted"], json!(2));
        assert_eq!(crate::privileges::names(&cli.root().join("mnt")), known);
    }
}

#[test]
fn what_a_crash_left_is_found_and_cleaned_up() {
    for backend in BACKENDS {
        let cli = small(backend);
        cli.stage.file("store/snapshots/new-77-1-2-3/fs/half", "half");
        cli.stage.file("store/snapshots/rm-78-1-2-3/fs/old", "old");
        cli.stage.file("store/snapshots/990/fs/leaked", "leaked");
        let found = cli.json("check");
        assert_eq!(keys(&found["findings"][0]), ["repairable", "severity", "what"]);
        assert_eq!(found["findings"][0]["severity"], json!("garbage"), "{found}");
        assert!(cli.good("check").contains("`plywood cleanup`"));
        assert_eq!(cli.json("cleanup")["deleted"], json!(3));
        assert_eq!(cli.good("cleanup"), "0 directories deleted\n");
        assert_eq!(cli.good("check"), "nothing is wrong\n");
        let left = crate::privileges::names(&cli.root().join("snapshots"));
        assert_eq!(left.len(), 3, "{left:?}");
    }
}

#[test]
fn a_store_that_lost_a_directory_is_told_as_corrupt() {
    for backend in BACKENDS {
        let cli = small(backend);
        let mounts = cli.json("mounts work");
        assert_ne!(mounts["mounts"], json!([]));
        let id = crate::privileges::names(&cli.root().join("snapshots")).pop().expect("a directory");
        std::fs::remove_dir_all(cli.root().join("snapshots").join(&id)).expect("it goes");
        let ended = cli.run("--json check");
        assert_eq!(ended.code, 9, "{ended:?}");
        assert!(ended.out.contains("\"loss\"") && ended.out.contains(&id), "{ended:?}");
        assert_eq!(cli.run("check --repair").code, 9, "no repair brings content back");
    }
}

#[test]
fn removal_frees_the_directory_before_the_program_ends() {
    for backend in BACKENDS {
        for flags in ["", "--sync-remove "] {
            let cli = small(backend);
            cli.good(&format!("{flags}rm work"));
            let left = crate::privileges::names(&cli.root().join("snapshots"));
            assert_eq!(left.len(), 2, "{flags}{left:?}");
        }
    }
}

#[test]
fn a_store_is_not_opened_by_a_backend_that_cannot_read_it() {
    for (backend, other) in [("native", "fuse"), ("fuse", "native")] {
        let cli = small(backend);
        let message = cli.bad(5, &format!("--backend {other} ls"));
        assert!(message.contains(&format!("--backend {backend}")), "{message}");
        assert_eq!(cli.good("--backend auto ls -q"), "base\nweb\nwork\n");
    }
}

#[test]
fn a_program_that_is_named_is_the_type_of_the_mounts() {
    let cli = Cli::new("fuse");
    cli.good("prepare a");
    cli.good("commit base a");
    for (program, expected) in [("other-fuse", "fuse3.other-fuse"), ("/opt/other", "fuse3.plywood-fuse")] {
        let mut command = cli.command(["--json", "prepare", expected, "base"]);
        let ended = ended(command.env("PLYWOOD_FUSE_PROGRAM", program).output().expect("the program starts"));
        assert!(ended.code == 0 && ended.out.contains(&format!("\"{expected}\"")), "{ended:?}");
    }
}

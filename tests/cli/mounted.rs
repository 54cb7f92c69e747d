//! `mount`, `umount`, `exec`, and content of other owners: called as users of different rights.

use crate::privileges::{Who, inside, install_busybox, is_mounted, mount, names, server_program};
use crate::support::{BACKENDS, Cli, by_a_dead_process, text};
use plywood::mounting::{MountSettings, attach};
use serde_json::json;
use std::fs;

/// A store with a committed base that has busybox, and an active snapshot on top; `None` if there is no busybox.
fn with_busybox() -> Option<Cli> {
    with_busybox_by("fuse")
}

fn with_busybox_by(backend: &'static str) -> Option<Cli> {
    inside()?;
    let cli = Cli::new(backend);
    if !install_busybox(&cli.stage.dir("tree")) {
        return None;
    }
    cli.good("prepare one");
    cli.good("fs cp tree/. one:/");
    cli.good("commit base one");
    cli.good("prepare work base");
    Some(cli)
}

pub fn a_snapshot_is_mounted_and_unmounted_by_its_key_and_by_its_target() {
    let Some(cli) = with_busybox() else { return };
    let target = cli.stage.dir("target");
    for by_key in [true, false] {
        let mounted = cli.json("mount work target");
        assert_eq!(mounted, json!({"key": "work", "target": text(&target)}));
        assert!(is_mounted(&target));
        fs::write(target.join("file"), "through the mount").expect("it is writable");
        let given = if by_key { "work" } else { "target" };
        assert_eq!(cli.json(&format!("umount {given}")), json!({"unmounted": [text(&target)]}));
        assert!(!is_mounted(&target));
        assert_eq!(cli.good("fs cat work file"), "through the mount");
    }
    assert_eq!(cli.json("umount work"), json!({"unmounted": []}));
}

pub fn a_mounted_snapshot_is_not_removed_and_not_changed_beside_the_mount() {
    let Some(cli) = with_busybox() else { return };
    let target = cli.stage.dir("target");
    cli.stage.file("x", "x");
    cli.good("mount work target");
    let message = cli.bad(5, "rm work");
    assert!(message.contains(text(&target)), "{message}");
    let message = cli.bad(5, "fs cp x work:/x");
    assert!(message.contains("mounted"), "{message}");
    assert_eq!(cli.good("fs ls -q work bin/cat"), "bin/cat\n", "looking is fine");
    cli.good("umount work");
    cli.good("fs cp x work:/x");
    cli.good("rm work");
}

pub fn exec_passes_on_output_and_code_of_the_command() {
    let Some(cli) = with_busybox() else { return };
    assert_eq!(cli.good("exec work -- echo hello"), "hello\n");
    let cases: &[(i32, &[&str])] = &[
        (0, &["true"]),
        (1, &["false"]),
        (3, &["sh", "-c", "exit 3"]),
        (125, &["sh", "-c", "exit 125"]),
        (137, &["sh", "-c", "kill -9 $$"]),
        (127, &["no-such-command"]),
        (126, &["/bin"]),
    ];
    for (code, command) in cases {
        let ended = cli.run_words(["exec", "work", "--"].iter().chain(*command));
        assert_eq!(ended.code, *code, "{command:?}: {ended:?}");
        let ours = matches!(code, 126 | 127);
        assert_eq!(ended.err.starts_with("plywood: exec: "), ours, "{command:?}: {ended:?}");
    }
    let shown =
        cli.run_words(["exec", "work", "-e", "A=b c", "-w", "/bin", "--", "sh", "-c", "echo $A; pwd"]);
    assert_eq!((shown.code, shown.out.as_str()), (0, "b c\n/bin\n"), "{shown:?}");
    assert_eq!(cli.good("exec work --hostname box -- hostname"), "box\n");
    let ended = cli.run("exec work --workdir bin -- true");
    assert_eq!(ended.code, 125, "a relative directory: {ended:?}");
    assert!(cli.run("exec base -- true").code == 125, "a committed snapshot");
}

pub fn what_exec_changes_is_committed_and_seen_by_the_next() {
    let Some(cli) = with_busybox() else { return };
    let shown = cli.run_words(["exec", "work", "--", "sh", "-c", "echo one > /file; rm /bin/wc; mkdir /dir"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert_eq!(cli.good("fs cat work file"), "one\n");
    cli.good("commit next work");
    cli.good("prepare more next");
    assert_eq!(cli.good("exec more -- cat /file"), "one\n");
    assert_eq!(cli.run("exec more -- test -e /bin/wc").code, 1);
    let tree = "base (committed)\n└── next (committed)\n    └── more (active)\n";
    assert_eq!(cli.good("tree"), tree);
    assert_eq!(cli.good("check"), "nothing is wrong\n");
}

pub fn content_of_other_owners_is_measured_shown_copied_and_removed() {
    for backend in BACKENDS {
        let Some(cli) = with_busybox_by(backend) else { return };
        other_owners(&cli);
    }
}

fn other_owners(cli: &Cli) {
    let script = "mkdir -p /home/u; echo secret > /home/u/f; chown -R 1000:1000 /home/u; chmod 600 /home/u/f; \
                  chmod 700 /home/u";
    let ended = cli.run_words(["exec", "work", "--", "sh", "-c", script]);
    assert_eq!(ended.code, 0, "{ended:?}");
    // With one id the owner is told to be 1000 all the same, or chown is accepted without effect.
    let has_ids = matches!(inside(), Some(Who::Root | Who::UserWithIds));
    let stat = cli.json("fs stat work home/u/f");
    if has_ids {
        assert_eq!(stat[0]["uid"], json!(1000), "{stat}");
    }
    assert_eq!(stat[0]["mode"], json!("0600"));
    assert_eq!(cli.good("fs cat work home/u/f"), "secret\n");
    cli.good("fs cp work:/home out");
    assert_eq!(fs::read(cli.stage.path("out/u/f")).expect("it is ours now"), b"secret\n");
    assert!(cli.json("usage work")[0]["inodes"].as_u64().is_some_and(|n| n >= 4));
    cli.good("commit next work");
    cli.good("prepare more next");
    if has_ids {
        assert_eq!(cli.json("fs stat more home/u/f")[0]["uid"], json!(1000));
    }
    assert_eq!(cli.good("fs cat more home/u/f"), "secret\n");
    cli.good("fs rm -r more home/u");
    cli.good("rm more next");
    let left = crate::privileges::names(&cli.root().join("snapshots"));
    assert_eq!(left.len(), 1, "content of other owners is freed: {left:?}");
    assert_eq!(cli.json("cleanup")["failed"], json!([]));
    assert_eq!(cli.good("check"), "nothing is wrong\n");
}

pub fn the_owner_of_the_root_directory_is_that_of_the_parent() {
    for backend in BACKENDS {
        let Some(cli) = with_busybox_by(backend) else { return };
        let ended = cli.run_words(["exec", "work", "--", "chown", "1000:1001", "/"]);
        assert_eq!(ended.code, 0, "{ended:?}");
        cli.good("commit next work");
        cli.good("prepare more next");
        cli.good("view look next");
        for key in ["more", "look"] {
            let stat = cli.json(&format!("fs stat {key} /"));
            if matches!(inside(), Some(Who::Root | Who::UserWithIds)) {
                assert_eq!(
                    (&stat[0]["uid"], &stat[0]["gid"]),
                    (&json!(1000), &json!(1001)),
                    "{key} {backend}"
                );
            }
        }
        cli.good("rm more look next");
    }
}

pub fn the_backend_overlay_reads_layers_with_content_of_other_owners() {
    let Some(mut cli) = with_busybox() else { return };
    let script = "mkdir /closed; echo x > /closed/file; chmod 700 /closed; chown 1000:1000 /closed";
    let ended = cli.run_words(["exec", "work", "--", "sh", "-c", script]);
    assert_eq!(ended.code, 0, "{ended:?}");
    cli.good("commit next work");
    cli.backend = "overlay";
    let made = cli.json("prepare more next");
    assert_eq!(made["mounts"][0]["type"], json!("overlay"), "{made}");
    assert_eq!(cli.json("mounts more"), made);
    cli.good("view look next");
    assert_eq!(cli.good("exec more -- cat /closed/file"), "x\n");
    assert_eq!(cli.run_words(["exec", "more", "--", "sh", "-c", "exit 7"]).code, 7);
    cli.good("rm more look next");
}

pub fn a_cleanup_ends_the_mount_of_a_trial_whose_maker_is_dead() {
    let Some(_) = inside() else { return };
    let cli = Cli::new("fuse");
    cli.good("prepare one");
    let mut settings = MountSettings::new(&cli.root().join("mnt"));
    settings.fuse_program = Some(server_program());
    let snapshots = cli.root().join("snapshots");
    let mount_in = |name: &str| {
        let dir = |part: &str| cli.stage.dir(format!("store/snapshots/{name}/{part}"));
        let [low, fs, work, mnt] = ["low", "fs", "work", "mnt"].map(dir);
        let options = format!("workdir={},upperdir={},lowerdir={}", text(&work), text(&fs), text(&low));
        attach(&[mount("fuse3.plywood-fuse", "overlay", &options)], &mnt, &settings)
            .unwrap_or_else(|e| panic!("mount: {e}"));
        snapshots.join(name)
    };
    let dead = mount_in(&by_a_dead_process("new-0"));
    let alive = mount_in(&plywood::layout::by_this_process("new-0"));
    let cleaned = cli.json("cleanup");
    assert_eq!((&cleaned["deleted"], &cleaned["failed"]), (&json!(1), &json!([])));
    assert!(!is_mounted(&dead) && !dead.exists(), "{}", dead.display());
    assert!(is_mounted(&alive), "{}", alive.display());
    cli.run_words(["umount", text(&alive.join("mnt"))]);
    assert!(!is_mounted(&alive), "{}", alive.display());
}

pub fn nothing_stays_among_the_mount_points_after_rm_and_cleanup() {
    let Some(_) = inside() else { return };
    let cli = Cli::new("native");
    cli.good("prepare one");
    cli.stage.dir("target");
    cli.good("mount one target");
    fs::write(cli.stage.path("target/file"), "through the mount").expect("it is writable");
    cli.good("umount one");
    cli.good("rm one");
    cli.good("cleanup");
    let left: Vec<String> =
        names(&cli.root().join("mnt")).into_iter().filter(|name| name != "empty").collect();
    assert_eq!(left, Vec::<String>::new());
}

pub fn a_view_is_read_only_for_exec() {
    let Some(cli) = with_busybox() else { return };
    cli.good("view look base");
    assert_eq!(cli.run("exec look -- touch /file").code, 1);
    assert_eq!(cli.run("exec work --read-only -- touch /file").code, 1);
    assert_eq!(cli.good("exec look -- echo fine"), "fine\n");
    cli.good("rm look");
}

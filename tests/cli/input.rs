//! What is typed wrong, odd names, and where settings come from.

use crate::support::{BACKENDS, Cli, ended, text};
use serde_json::json;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

#[test]
fn words_that_make_no_sense_end_with_2_and_the_usage() {
    let cli = Cli::new("native");
    let cases = [
        "frobnicate",
        "prepare",
        "prepare a b c",
        "commit a",
        "rm",
        "label a",
        "label a b",
        "label a =b",
        "prepare a -l x",
        "prepare a --frobnicate",
        "mount a",
        "exec a",
        "exec a true",
        "fs",
        "fs cat a",
        "fs cp a",
        "completions tcl",
        "ls --set x",
        "tree a",
    ];
    for words in cases {
        let ended = cli.run(words);
        assert_eq!(ended.code, 2, "{words}: {ended:?}");
        assert!(ended.out.is_empty() && ended.err.contains("error:"), "{words}: {ended:?}");
    }
    assert!(!cli.root().exists(), "nothing was made");
}

#[test]
fn no_words_at_all_show_the_help() {
    let cli = Cli::new("native");
    let ended = ended(cli.bare().output().expect("it starts"));
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.err.contains("Usage: plywood"), "{ended:?}");
}

#[test]
fn keys_may_be_anything_and_are_shown_without_obeying_them() {
    // S7
    let odd = [
        "with space",
        "a/b/../c",
        "../../etc",
        "-dash",
        "k8s.io/42/extract-1 sha256:ab",
        "ünï",
        "\u{1b}[31mred",
        "a\nb",
    ];
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        for key in odd {
            let ended = cli.run_words(["prepare", "--", key]);
            assert_eq!(ended.code, 0, "{key:?}: {ended:?}");
        }
        let long = "k".repeat(5000);
        assert_eq!(cli.run_words(["prepare", &long]).code, 0, "S7: a long key");
        let listed = cli.json("ls");
        let names: Vec<&str> =
            listed.as_array().expect("a list").iter().filter_map(|i| i["name"].as_str()).collect();
        assert_eq!(names[..odd.len()], odd);
        assert_eq!(names[odd.len()], long);
        for words in ["ls", "tree", "ls -q"] {
            let shown = cli.good(words);
            assert!(!shown.contains('\u{1b}') && shown.contains("\\u{1b}[31mred"), "{shown}");
            assert!(shown.contains("a\\nb"), "{shown}");
        }
        let message = cli.run_words(["stat", "\u{1b}[2Jgone"]).err;
        assert!(!message.contains('\u{1b}'), "{message:?}");
        // No key is a path.
        assert!(!cli.stage.path("etc").exists());
        for key in odd {
            assert_eq!(cli.run_words(["rm", "--", key]).code, 0, "{key:?}");
        }
    }
}

#[test]
fn keys_and_labels_have_limits() {
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        let refused = |words: &[&str]| {
            let ended = cli.run_words(words);
            assert_eq!(ended.code, 2, "{ended:?}");
            assert!(ended.err.len() < 1000, "long names are cut: {ended:?}");
        };
        refused(&["prepare", ""]);
        refused(&["prepare", &"x".repeat(32 * 1024 + 1)]);
        refused(&["stat", ""]);
        refused(&["prepare", "a", "-l", &format!("k={}", "v".repeat(4096))]);
        assert_eq!(cli.run_words(["prepare", &"x".repeat(32 * 1024)]).code, 0);
        assert_eq!(cli.json("ls").as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn words_that_are_no_utf_8_are_refused_without_a_panic() {
    let cli = Cli::new("native");
    let bytes = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    for words in [
        vec!["prepare".as_ref(), bytes],
        vec!["ls".as_ref(), bytes],
        vec!["--backend".as_ref(), bytes, "ls".as_ref()],
    ] {
        let ended = cli.run_words(words);
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(!ended.err.contains("panic"), "{ended:?}");
    }
}

#[test]
fn filters_choose_what_is_listed() {
    // S21, S22
    let cli = Cli::new("native");
    cli.good("prepare a");
    cli.good("commit base a -l x=1");
    cli.good("prepare b base -l x=2");
    cli.good("view v base");
    let cases: &[(&[&str], &str)] = &[
        (&[], "base\nb\nv\n"),
        (&["kind==view"], "v\n"),
        (&["labels.x"], "base\nb\n"),
        (&["labels.x==2"], "b\n"),
        (&["parent==base,kind!=view"], "b\n"),
        (&["name~=^b", "kind==view"], "base\nb\nv\n"),
        (&["name==none"], ""),
        (&[""], "base\nb\nv\n"),
    ];
    for (filters, expected) in cases {
        let ended = cli.run_words(["ls", "-q"].iter().chain(*filters));
        assert_eq!((ended.code, ended.out.as_str()), (0, *expected), "{filters:?}: {ended:?}");
    }
    let message = cli.bad(2, "ls labels.a/b==c");
    assert!(message.contains("at byte 8"), "{message}");
}

#[test]
fn settings_come_from_flags_variables_and_the_file_in_this_order() {
    let cli = Cli::new("native");
    let store = |name: &str| cli.stage.text(name);
    let file = cli.stage.file("config.toml", format!("root = \"{}\"\nbackend = \"native\"\n", store("file")));
    let run = |flag: Option<&str>, variable: Option<&str>| {
        let mut command = cli.bare();
        command.env("PLYWOOD_CONFIG", &file);
        command.envs(variable.map(|name| ("PLYWOOD_ROOT", store(name))));
        if let Some(name) = flag {
            command.arg("--root").arg(store(name));
        }
        let ended = ended(command.args(["prepare", "a"]).output().expect("it starts"));
        assert_eq!(ended.code, 0, "{ended:?}");
        let made = ["flag", "variable", "file"].into_iter().filter(|name| cli.stage.path(name).exists());
        let made: Vec<&str> = made.collect();
        for name in &made {
            std::fs::remove_dir_all(cli.stage.path(name)).expect("a store of the test");
        }
        made
    };
    assert_eq!(run(Some("flag"), Some("variable")), ["flag"]);
    assert_eq!(run(None, Some("variable")), ["variable"]);
    assert_eq!(run(None, None), ["file"]);
}

#[test]
fn the_store_of_a_user_is_below_the_data_of_that_user() {
    let cli = Cli::new("native");
    let data = cli.stage.dir("data");
    let config = cli.stage.dir("config");
    cli.stage.file("config/plywood/config.toml", "backend = 'native'\n");
    let mut command = cli.bare();
    command.env("XDG_DATA_HOME", &data).env("XDG_CONFIG_HOME", &config).args(["prepare", "a"]);
    if plywood_fuse::sys::process::effective_uid() == 0 && plywood::sys::userns::in_initial_userns() {
        // Root's store is that of the machine, which is none of a test's business; in a namespace it is a user's.
        let mut inside = std::process::Command::new("unshare");
        inside.args(["-U", "--map-root-user"]).arg(command.get_program()).args(command.get_args());
        inside.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command = inside;
    }
    let ended = ended(command.output().expect("it starts"));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(data.join("plywood/db/data.mdb").exists());
}

#[test]
fn what_is_wrong_in_the_configuration_is_named_with_its_place() {
    let cli = Cli::new("native");
    let with = |content: &str, words: &[&str]| {
        let file = cli.stage.file("config.toml", content);
        let ended = ended(cli.bare().env("PLYWOOD_CONFIG", &file).args(words).output().expect("it starts"));
        assert_eq!(ended.code, 2, "{ended:?}");
        (ended.err, text(&file).to_owned())
    };
    let (message, file) = with("log = 'warn'\nbakend = 'native'\n", &["ls"]);
    assert!(message.contains(&format!("{file}: line 2: \"bakend\"")), "{message}");
    assert!(message.contains("sync_remove"), "the settings that there are: {message}");
    let (message, _) = with("", &["--set", "durability=none", "ls"]);
    assert!(message.contains("full or relaxed"), "{message}");
    let (message, _) = with("", &["--set", "colour=red", "ls"]);
    assert!(message.contains("\"colour\""), "{message}");
    let (message, _) = with("", &["--backend", "zfs", "ls"]);
    assert!(message.contains("native"), "{message}");
    let (message, _) = with("", &["--log", "a=b=c", "ls"]);
    assert!(message.contains("log"), "{message}");
    let ended =
        ended(cli.bare().env("PLYWOOD_CONFIG", "missing.toml").arg("ls").output().expect("it starts"));
    assert_eq!(ended.code, 3, "{ended:?}");
}

#[test]
fn settings_reach_the_store() {
    let cli = Cli::new("native");
    let refused = cli.bad(2, "--set views_require_parent=true view v");
    assert!(refused.contains("views_require_parent"), "{refused}");
    assert_eq!(cli.good("view v"), "");
    assert_eq!(cli.json("--set durability=relaxed --set map_bytes=64MiB stat v")["kind"], json!("view"));
}

#[test]
fn a_root_that_mount_options_cannot_carry_is_refused() {
    let cli = Cli::new("fuse");
    for name in ["a,b", "a:b", "a b"] {
        let ended = ended(
            cli.bare()
                .arg("--root")
                .arg(cli.stage.path(name))
                .args(["--backend", "fuse", "prepare", "x"])
                .output()
                .expect("it starts"),
        );
        assert_eq!(ended.code, 2, "{name}: {ended:?}");
        assert!(ended.err.contains("--root"), "{ended:?}");
    }
}

#[test]
fn nobody_to_read_the_answer_is_no_failure() {
    let cli = Cli::new("native");
    for i in 0..40 {
        cli.run_words(["prepare".to_owned(), format!("{i}-{}", "k".repeat(4000))]);
    }
    for words in ["ls", "--json ls", "completions bash", "--help"] {
        let mut child = cli
            .command(words.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        drop(child.stdout.take());
        let ended = ended(child.wait_with_output().expect("it ends"));
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
        assert_eq!(ended.err, "", "{words}");
    }
}

#[test]
fn a_full_disk_under_the_answer_is_told() {
    let cli = Cli::new("native");
    cli.good("prepare a");
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let output = cli.command(["ls"]).stdout(full).stderr(Stdio::piped()).output().expect("it starts");
    let ended = ended(output);
    assert_eq!(ended.code, 7, "{ended:?}");
    assert!(ended.err.starts_with("plywood: print: standard output: "), "{ended:?}");
}

#[test]
fn the_log_goes_to_standard_error_only() {
    let cli = Cli::new("native");
    let ended = cli.run("--log debug --json prepare a");
    assert_eq!(ended.code, 0, "{ended:?}");
    let answer: serde_json::Value = serde_json::from_str(&ended.out).expect("nothing but JSON");
    assert_eq!(answer["key"], json!("a"));
    assert_eq!(cli.run("--log off stat gone").err.lines().count(), 1);
}

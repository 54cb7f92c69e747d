//! What the program says about itself.

use crate::support::{Cli, Ended, ended};

const COMMANDS: [&str; 19] = [
    "prepare",
    "view",
    "commit",
    "mounts",
    "mount",
    "umount",
    "rm",
    "stat",
    "ls",
    "tree",
    "usage",
    "label",
    "cleanup",
    "check",
    "backends",
    "exec",
    "fs",
    "blob",
    "completions",
];

fn say(words: &[&str]) -> Ended {
    let cli = Cli::new("native");
    let ended = ended(cli.bare().args(words).output().expect("it starts"));
    assert_eq!(ended.code, 0, "{words:?}: {ended:?}");
    assert_eq!(ended.err, "", "{words:?}");
    assert!(!cli.root().exists());
    ended
}

#[test]
fn the_help_lists_every_command_and_every_exit_code() {
    let help = say(&["--help"]).out;
    for command in COMMANDS {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command}: {help}"
        );
    }
    for code in 0..=9 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}: {help}");
    }
    assert!(help.contains("125") && help.contains("PLYWOOD_CONFIG"), "{help}");
    for flag in ["--root", "--backend", "--json", "--log", "--sync-remove", "--set"] {
        assert!(help.contains(flag), "{flag}: {help}");
    }
}

#[test]
fn every_command_has_help_that_shows_its_json() {
    for command in COMMANDS {
        let help = say(&[command, "--help"]).out;
        assert!(help.contains(&format!("Usage: plywood {command}")), "{help}");
        assert!(help.contains("JSON"), "{help}");
    }
    for command in ["ls", "cat", "cp", "rm", "stat"] {
        let help = say(&["fs", command, "--help"]).out;
        assert!(help.contains(&format!("Usage: plywood fs {command}")) && help.contains("JSON"), "{help}");
    }
    for command in ["ls", "show", "set", "of", "add", "cat"] {
        let help = say(&["blob", command, "--help"]).out;
        assert!(help.contains(&format!("Usage: plywood blob {command}")) && help.contains("JSON"), "{help}");
    }
}

#[test]
fn every_setting_can_be_found_in_the_help() {
    let help = say(&["--help"]).out;
    for key in plywood::config::KEYS {
        assert!(help.contains(key.name), "{}: {help}", key.name);
        assert!(key.help.contains("default"), "{}", key.name);
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(say(&["--version"]).out, format!("plywood {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = say(&["completions", shell]).out;
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

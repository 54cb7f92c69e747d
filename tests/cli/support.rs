//! A store of its own for each test, and the program to run on it.

use crate::privileges::{Stage, inside};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The backends that work everywhere without a mount.
pub const BACKENDS: [&str; 2] = ["native", "fuse"];

/// A store, and whoever works on it.
pub struct Cli {
    pub stage: Stage,
    pub backend: &'static str,
}

/// How the program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The program: where everybody can reach it, if this test was started again as somebody else.
pub fn program() -> PathBuf {
    match inside() {
        Some(_) => std::env::current_exe().expect("our own path").with_file_name("plywood"),
        None => PathBuf::from(env!("CARGO_BIN_EXE_plywood")),
    }
}

impl Cli {
    /// An empty store.
    pub fn new(backend: &'static str) -> Cli {
        Cli { stage: Stage::new(), backend }
    }

    /// Where the store is.
    pub fn root(&self) -> PathBuf {
        self.stage.path("store")
    }

    /// The program in clean surroundings, with neither store nor backend chosen.
    pub fn bare(&self) -> Command {
        let mut command = Command::new(program());
        command.env_clear();
        for kept in ["PATH", "TMPDIR", "PLYWOOD_FAIL"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        command.env("HOME", self.stage.dir("home")).current_dir(self.stage.path("")).stdin(Stdio::null());
        if inside().is_some() || cfg!(debug_assertions) {
            command.env("PLYWOOD_FUSE_PROGRAM", crate::privileges::server_program());
        }
        command
    }

    /// The program, about to work on the store.
    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.bare();
        command.arg("--root").arg(self.root()).args(["--backend", self.backend]).args(words);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, words: &str) -> Ended {
        ended(self.command(words.split_whitespace()).output().expect("the program starts"))
    }

    /// Runs it with words that have spaces.
    pub fn run_words<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ended {
        ended(self.command(words).output().expect("the program starts"))
    }

    /// Runs what has to succeed, without a word on standard error; its output.
    #[track_caller]
    pub fn good(&self, words: &str) -> String {
        let ended = self.run(words);
        assert!(ended.code == 0 && ended.err.is_empty(), "{words}: {ended:?}");
        ended.out
    }

    /// Runs what has to fail with this code; its message, which begins with the name of the program.
    #[track_caller]
    pub fn bad(&self, code: i32, words: &str) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, code, "{words}: {ended:?}");
        assert!(ended.err.starts_with("plywood: "), "{words}: {ended:?}");
        ended.err
    }

    /// The JSON of what has to succeed.
    #[track_caller]
    pub fn json(&self, words: &str) -> Value {
        let text = self.good(&format!("--json {words}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words}: {e}: {text}"))
    }

    /// Makes a file on the stage, and copies it into a snapshot.
    #[track_caller]
    pub fn put(&self, key: &str, path: &str, content: &str) {
        let file = self.stage.file("put", content);
        let to = format!("{key}:{path}");
        let ended = self.run_words([OsString::from("fs"), "cp".into(), file.into(), to.into()]);
        assert!(ended.code == 0 && ended.err.is_empty(), "{key}:{path}: {ended:?}");
    }
}

/// Packs what came back.
pub fn ended(output: Output) -> Ended {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the output is UTF-8");
    Ended { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// A name of [`plywood::layout::by_this_process`], as if an earlier process with the same number had made it.
pub fn by_a_dead_process(what: &str) -> String {
    let own = plywood::layout::by_this_process(what);
    let mut parts: Vec<&str> = own.split('-').collect();
    let start_time = parts.len() - 4;
    parts[start_time] = "1";
    parts.join("-")
}

/// The keys of a JSON object, sorted.
#[track_caller]
pub fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value}"))
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

/// The names in a list of objects.
#[track_caller]
pub fn column<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let list = value.as_array().unwrap_or_else(|| panic!("no list: {value}"));
    list.iter().map(|item| item[key].as_str().unwrap_or_else(|| panic!("no text {key}: {item}"))).collect()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is UTF-8")
}

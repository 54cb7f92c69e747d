//! Rules that the source keeps, read from the source.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the sources") {
        let path = entry.expect("directory entry").path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|e| e == "rs") => found.push(path),
            false => {}
        }
    }
}

/// Every line of the library that is no comment and no test, with where it stands.
fn lines() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 40, "the sources were found");
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("source");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            let place = format!("{}:{}", file.strip_prefix(&root).expect("below src").display(), number + 1);
            lines.push((place, line.to_owned()));
        }
    }
    lines
}

/// S25
#[test]
fn nothing_but_the_command_line_prints() {
    let prints = ["println!", "print!(", "dbg!("];
    let found: Vec<_> = lines()
        .into_iter()
        .filter(|(place, line)| !place.starts_with("cli") && prints.iter().any(|p| line.contains(p)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn nothing_but_sys_is_unsafe() {
    let found: Vec<_> = lines()
        .into_iter()
        .filter(|(place, line)| {
            !place.starts_with("sys") && line.split_whitespace().any(|word| word == "unsafe")
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

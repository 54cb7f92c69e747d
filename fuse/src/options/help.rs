//! What does the program say about itself?
//!
//! Help text, README table and version text, made from the rows of `table` so that they cannot disagree with
//! what is parsed.

use std::fmt::Write as _;

use super::table::{self, OptionRow, Section, Takes};

/// The name of the program when it is not called by another one.
pub(super) const PROGRAM: &str = "plywood-fuse";

/// The release of the `fuser` crate that the protocol comes from, as in `Cargo.toml`; a test compares them.
const FUSER_VERSION: &str = "0.18";

/// The protocol version that this release of `fuser` offers, minor part; `FUSE_KERNEL_MINOR_VERSION` there.
const FUSE_KERNEL_MINOR: u32 = 40;

/// The width of the help text in columns.
const WIDTH: usize = 80;

/// Where the explanations begin, in columns.
const INDENT: usize = 26;

/// The help text, for standard output; ends with a line feed.
pub fn help() -> String {
    let mut out = format!("usage: {PROGRAM} [-f] [-d] [-o OPTION[,OPTION...]]... [SOURCE] MOUNTPOINT\n\n");
    out.push_str("Shows a stack of directories as one; changes go to the upper one.\n\n");
    for switch in table::SWITCHES {
        entry(&mut out, &switch.names.join(", "), switch.help);
    }
    for section in table::sections() {
        _ = write!(out, "\n{}:\n", section.title);
        if section.rows.iter().all(OptionRow::is_without_effect) {
            let names: Vec<&str> = section.rows.iter().map(|row| row.name).collect();
            wrap(&mut out, &names.join(", "), 2);
            continue;
        }
        for row in section.rows {
            entry(&mut out, &spelling(row), row.help);
        }
    }
    out.push_str("\nUnmount with: fusermount3 -u MOUNTPOINT\n");
    out
}

/// All options as Markdown tables, one under each section title; ends with a line feed.
pub fn markdown_table() -> String {
    let mut out = String::new();
    for Section { title, rows } in table::sections() {
        let blank = if out.is_empty() { "" } else { "\n" };
        _ = write!(out, "{blank}**{title}**\n\n| option | meaning |\n|---|---|\n");
        for row in *rows {
            // Outside of code Markdown takes a backslash for an escape.
            let meaning = row.help.replace('\\', "\\\\");
            _ = writeln!(out, "| `{}` | {} |", escape_bars(&spelling(row)), escape_bars(&meaning));
        }
    }
    out
}

/// Three lines for standard output: the program by the name it was called by, its FUSE library, the protocol.
///
/// `program` may be a path; only its last component is used.
///
/// # Source
///
/// The lines that fuse-overlayfs 1.x prints; `podman info` shows them as they are.
pub fn version_text(program: &str) -> String {
    let name = program.rsplit('/').find(|part| !part.is_empty()).unwrap_or(PROGRAM);
    let version = env!("CARGO_PKG_VERSION");
    let real_name = if name.starts_with("plywood") { "" } else { " (plywood)" };
    format!(
        "{name}: version {version}{real_name}\n\
         FUSE library version {FUSER_VERSION} (fuser)\n\
         using FUSE kernel interface version 7.{FUSE_KERNEL_MINOR}\n"
    )
}

/// The option as it is typed, its value by name.
fn spelling(row: &OptionRow) -> String {
    match row.takes {
        Takes::Nothing | Takes::Optional("") => row.name.into(),
        Takes::Value(value) => format!("{}={value}", row.name),
        Takes::Optional(value) => format!("{}[={value}]", row.name),
    }
}

fn escape_bars(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A name and its explanation, side by side; a long name stands on a line of its own.
fn entry(out: &mut String, name: &str, text: &str) {
    let fits = name.len() + 4 <= INDENT;
    if fits {
        let mut wrapped = String::new();
        wrap(&mut wrapped, text, INDENT);
        _ = write!(out, "  {name:<width$}{}", wrapped.trim_start(), width = INDENT - 2);
    } else {
        _ = writeln!(out, "  {name}");
        wrap(out, text, INDENT);
    }
}

/// Words in lines of at most [`WIDTH`] columns, each line indented.
fn wrap(out: &mut String, text: &str, indent: usize) {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column > 0 && column + 1 + word.len() > WIDTH {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            _ = write!(out, "{:indent$}{word}", "");
            column = indent + word.len();
        } else {
            _ = write!(out, " {word}");
            column += 1 + word.len();
        }
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_and_fits_a_terminal() {
        let help = help();
        for line in help.lines() {
            assert!(line.len() <= WIDTH && line == line.trim_end(), "{line}");
        }
        for row in table::sections().iter().flat_map(|section| section.rows) {
            assert!(help.contains(row.name), "{}", row.name);
        }
        for name in table::SWITCHES.iter().flat_map(|switch| switch.names) {
            assert!(help.contains(name), "{name}");
        }
    }

    #[test]
    fn the_markdown_table_has_one_row_with_two_cells_for_each_option() {
        let table = markdown_table();
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
        let options = table::sections().iter().flat_map(|section| section.rows).count();
        assert_eq!(rows.len(), options);
        for row in rows {
            let bars = row.replace("\\|", "").matches('|').count();
            assert_eq!(bars, 3, "{row}");
        }
        assert!(table.contains("| `metacopy[=on\\|off]` | "), "{table}");
    }

    #[test]
    fn the_version_has_three_lines_and_starts_with_the_name_called_by() {
        let version = env!("CARGO_PKG_VERSION");
        let cases = [
            ("/usr/bin/fuse-overlayfs", format!("fuse-overlayfs: version {version} (plywood)")),
            ("fuse-overlayfs", format!("fuse-overlayfs: version {version} (plywood)")),
            ("./plywood-fuse", format!("plywood-fuse: version {version}")),
            ("", format!("plywood-fuse: version {version}")),
            ("/", format!("plywood-fuse: version {version}")),
        ];
        for (program, first) in cases {
            let text = version_text(program);
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.first(), Some(&first.as_str()));
            assert_eq!(lines.len(), 3);
            assert!(lines[1].starts_with("FUSE library version "), "{}", lines[1]);
            assert!(lines[2].starts_with("using FUSE kernel interface version 7."), "{}", lines[2]);
        }
    }

    #[test]
    fn the_named_release_of_fuser_is_the_one_in_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("fuser = {{ version = \"{FUSER_VERSION}\"")));
    }
}

//! The tables of the README say what the program says of itself.

use clap::CommandFactory;
use plywood::cli::args::Args;
use plywood::config::KEYS;

fn readme() -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    std::fs::read_to_string(path).expect("README.md")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Fails with the rows that are missing, ready to be copied.
fn assert_rows(rows: &[String]) {
    let readme = readme();
    let missing: Vec<&str> =
        rows.iter().map(String::as_str).filter(|row| !readme.lines().any(|l| l == *row)).collect();
    assert!(missing.is_empty(), "README.md lacks these rows:\n{}", missing.join("\n"));
}

#[test]
fn every_command_has_its_row() {
    let mut rows = Vec::new();
    for command in Args::command().get_subcommands().filter(|c| c.get_name() != "help") {
        let mut words = command.get_name().to_owned();
        for argument in command.get_positionals() {
            let name = argument.get_value_names().and_then(|n| n.first()).map_or("", |n| n.as_str());
            let many = if argument.get_action().takes_values()
                && argument.get_num_args().is_some_and(|n| n.max_values() > 1)
            {
                "..."
            } else {
                ""
            };
            let dashes = if argument.is_last_set() { "-- " } else { "" };
            words += &match argument.is_required_set() {
                true => format!(" {dashes}{name}{many}"),
                false => format!(" [{dashes}{name}{many}]"),
            };
        }
        let under: Vec<&str> =
            command.get_subcommands().map(clap::Command::get_name).filter(|n| *n != "help").collect();
        if !under.is_empty() {
            words += &format!(" {}", under.join("|"));
        }
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        rows.push(format!("| `{}` | {} |", one_line(&words), one_line(&about)));
    }
    assert!(rows.len() > 15);
    assert_rows(&rows);
}

#[test]
fn every_setting_has_its_row() {
    let row = |key: &plywood::config::Key| {
        format!(
            "| `{}`, `{}` | `{}` | {} |",
            key.name,
            key.variable(),
            one_line(key.values),
            one_line(key.help)
        )
    };
    assert_rows(&KEYS.iter().map(row).collect::<Vec<_>>());
}

//! How does an answer look? As text for people, or as JSON for programs.
//!
//! An answer is a value that serializes to its JSON and can write itself as text. Names come from anybody, so text
//! shows control characters escaped: no name can move the cursor of who looks at it.

use crate::types::Timestamp;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The answer of a command.
pub trait Answer: Serialize {
    /// Its text; each line ends with a line feed.
    fn text(&self) -> String;
}

/// Prints an answer.
///
/// # Errors
/// Those of writing.
pub fn print(out: &mut dyn Write, format: Format, answer: &impl Answer) -> io::Result<()> {
    match format {
        Format::Text => out.write_all(answer.text().as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, answer)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()
}

/// Where the text of a column stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// At its left: words.
    Left,
    /// At its right: numbers.
    Right,
}

/// Rows under a header line, each column as wide as its widest cell; the last one is not filled up.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[(&'static str, Align)]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; each cell is shown as [`printable`] has it.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row has a cell for each column");
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The lines.
    pub fn text(&self) -> String {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let mut widths = vec![0; self.columns.len()];
        for line in lines() {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(columns(cell));
            }
        }
        let mut text = String::new();
        for line in lines() {
            let mut out = String::new();
            for ((cell, width), (_, align)) in line.iter().zip(&widths).zip(&self.columns) {
                let fill = " ".repeat(width - columns(cell));
                match align {
                    Align::Left => out.extend([cell.as_str(), &fill, "  "]),
                    Align::Right => out.extend([fill.as_str(), cell, "  "]),
                }
            }
            text.push_str(out.trim_end());
            text.push('\n');
        }
        text
    }
}

/// How many columns of the terminal a text takes: wide characters are counted as one, which only sets a table askew.
fn columns(text: &str) -> usize {
    text.chars().count()
}

/// The text with everything escaped that a terminal would not show as such.
pub fn printable(text: &str) -> String {
    if !text.chars().any(hides) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut out, c| {
        if hides(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

/// True for what a terminal obeys, or shows in another order than it is written.
fn hides(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A number of bytes with three digits and a unit of 1024.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // In tenths of the unit below: `count` has at most 64 bits, so this cannot pass the last unit.
    let mut unit = 0;
    let mut rest = u128::from(count) * 10;
    while rest >= 10_240 * 1024 {
        rest /= 1024;
        unit += 1;
    }
    let tenths = (rest + 512) / 1024;
    let (tenths, unit) = if tenths >= 10_240 { (10, unit + 1) } else { (tenths, unit) };
    match tenths {
        0..1000 => format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]),
        _ => format!("{} {}", (tenths + 5) / 10, UNITS[unit]),
    }
}

/// How long ago a moment was, in the largest unit.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    const UNITS: [(i64, &str); 6] = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
    ];
    let secs = now.secs.saturating_sub(then.secs);
    if secs < 0 {
        return then.to_string();
    }
    for (length, unit) in UNITS {
        if secs >= length {
            let count = secs / length;
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {unit}{plural} ago");
        }
    }
    if secs < 2 { "just now".to_owned() } else { format!("{secs} seconds ago") }
}

/// A word as a shell reads it back.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| {
        c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '=' | ',' | ':' | '+' | '@' | '%')
    };
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Lines of a name and its value, the values below each other.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| columns(name)).max().unwrap_or_default() + 1;
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let name = format!("{name}:");
        let _ = writeln!(text, "{}", format!("{name:<width$} {}", printable(value)).trim_end());
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_have_three_digits() {
        let cases: &[(u64, &str)] = &[
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10_240, "10.0 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_048_576, "1.0 MiB"),
            (5_300_000, "5.1 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(*count), *text, "{count}");
        }
    }

    #[test]
    fn times_are_told_by_their_distance() {
        let at = |secs| Timestamp { secs, nanos: 0 };
        let cases = [
            (0, "just now"),
            (1, "just now"),
            (2, "2 seconds ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (7200, "2 hours ago"),
            (86_400, "1 day ago"),
            (8 * 86_400, "1 week ago"),
            (60 * 86_400, "2 months ago"),
            (800 * 86_400, "2 years ago"),
        ];
        for (secs, text) in cases {
            assert_eq!(ago(at(1_000_000_000 - secs), at(1_000_000_000)), text);
        }
        assert_eq!(ago(at(10), at(0)), "1970-01-01T00:00:10.000000000Z", "a clock that went back");
        assert!(ago(at(i64::MIN), at(i64::MAX)).ends_with("years ago"));
    }

    #[test]
    fn tables_are_aligned_and_show_no_control_characters() {
        let mut table = Table::new(&[("KEY", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        table.row(["a".into(), "1 B".into(), "x".into()]);
        table.row(["länger".into(), "10.0 KiB".into(), String::new()]);
        table.row(["\u{1b}[2J".into(), String::new(), "a\nb".into()]);
        let expected = "KEY            SIZE  NOTE\n\
                        a               1 B  x\n\
                        länger     10.0 KiB\n\
                        \\u{1b}[2J            a\\nb\n";
        assert_eq!(table.text(), expected);
    }

    #[test]
    fn words_for_a_shell_are_quoted_where_they_must_be() {
        let cases = [
            ("", "''"),
            ("a", "a"),
            ("lowerdir=/a:/b,upperdir=/c", "lowerdir=/a:/b,upperdir=/c"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(x)", "'$(x)'"),
            ("~", "'~'"),
            ("a\nb", "'a\nb'"),
        ];
        for (word, expected) in cases {
            assert_eq!(shell_word(word), expected);
        }
    }

    #[test]
    fn fields_stand_below_each_other() {
        let text = fields(&[("name", "a".into()), ("parent", String::new()), ("kind", "x\ty".into())]);
        assert_eq!(text, "name:   a\nparent:\nkind:   x\\ty\n");
    }
}

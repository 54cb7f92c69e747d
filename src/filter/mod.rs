//! Which snapshots does a caller want to see?
//!
//! Filters in the words of containerd: several are joined by *or*, the selectors of one, separated by commas, by
//! *and*; none at all, and an empty one, match everything.
//!
//! ```text
//! selector  := fieldpath [op value]        no operator: the field is there
//! fieldpath := field ('.' field)*
//! field     := "quoted" | [A-Za-z0-9_]+
//! op        := '==' | '!=' | '~='          '!=' also holds where the field is missing
//! value     := "quoted" | a run without space and comma; after '~=' also /quoted/ and |quoted|
//! ```
//!
//! Quotes take the escape sequences of Go. The fields are `name`, `parent`, `kind` and `labels.KEY`; further parts
//! of the path of a label belong to its key.
//!
//! `~=` searches anywhere in the value, and a bad pattern matches nothing, as there; the language of patterns is
//! that of the `regex` crate, which is RE2's but for details (`\d`, `\w`, `\s` and `\b` know all of Unicode here).
//! A pattern is searched in time proportional to the text, and [`limits`] bound what a hostile caller can ask for.
//!
//! Pure: no I/O, no state.

mod lex;
mod parse;
#[cfg(test)]
mod tests;

use crate::error::{Error, ErrorKind, Result};
use crate::types::Info;
use regex::Regex;

/// What the filters of one request may cost.
pub mod limits {
    /// Bytes of all filters together. The longest name is 32 KiB, and a program may ask for some of them at once.
    pub const FILTER_BYTES: usize = 1 << 20;
    /// Selectors of all filters together: each is asked of each snapshot.
    pub const SELECTORS: usize = 4096;
    /// Patterns of all filters together.
    pub const PATTERNS: usize = 32;
    /// Memory of one compiled pattern; a larger one is bad, so it matches nothing. Searching costs in the worst
    /// case this, times the length of the text.
    pub const PATTERN_BYTES: usize = 1 << 18;
    /// How deep the groups of a pattern may be nested.
    pub const PATTERN_NESTING: u32 = 64;
}

/// A question about snapshots.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// One that holds is enough; none means everything.
    any: Vec<Filter>,
}

/// The selectors of one filter, all of which must hold.
type Filter = Vec<Selector>;

#[derive(Debug, Clone)]
struct Selector {
    field: Field,
    test: Test,
}

/// What a field path means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
    /// Nothing that a snapshot has: never there.
    Unknown,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None`: a bad pattern.
    Matches(Option<Regex>),
}

impl Filters {
    /// The question that every snapshot answers.
    pub fn everything() -> Filters {
        Filters::default()
    }

    /// Reads filters; none, and an empty one among them, match everything.
    ///
    /// # Errors
    /// `InvalidArgument` with the position, in bytes, if one cannot be read, or if they are larger than [`limits`].
    pub fn parse_all<S: AsRef<str>>(filters: &[S]) -> Result<Filters> {
        let bytes: usize = filters.iter().map(|f| f.as_ref().len()).sum();
        if bytes > limits::FILTER_BYTES {
            let max = limits::FILTER_BYTES;
            return Err(too_large(format!("they have {bytes} bytes, at most {max} are taken")));
        }
        let mut all = Filters::default();
        let (mut selectors, mut patterns) = (0, 0);
        for filter in filters.iter().map(AsRef::as_ref).filter(|f| !f.is_empty()) {
            let filter = parse::filter(filter)?;
            selectors += filter.len();
            patterns += filter.iter().filter(|s| s.is_pattern()).count();
            if selectors > limits::SELECTORS || patterns > limits::PATTERNS {
                let cause = format!(
                    "they ask more than {} questions, or for more than {} patterns",
                    limits::SELECTORS,
                    limits::PATTERNS
                );
                return Err(too_large(cause));
            }
            all.any.push(filter.into_iter().map(Selector::compile).collect());
        }
        if filters.iter().any(|f| f.as_ref().is_empty()) {
            return Ok(Filters::everything());
        }
        Ok(all)
    }

    /// True if the snapshot is wanted.
    pub fn matches(&self, info: &Info) -> bool {
        self.any.is_empty() || self.any.iter().any(|filter| filter.iter().all(|s| s.holds(info)))
    }

    /// True if every snapshot is wanted, whatever it is.
    pub fn is_everything(&self) -> bool {
        self.any.is_empty()
    }
}

impl Selector {
    fn compile(parsed: parse::Selector) -> Selector {
        let test = match parsed.test {
            parse::Test::Present => Test::Present,
            parse::Test::Equal(value) => Test::Equal(value),
            parse::Test::NotEqual(value) => Test::NotEqual(value),
            parse::Test::Matches(pattern) => Test::Matches(compile(&pattern)),
        };
        Selector { field: Field::of(&parsed.path), test }
    }

    fn holds(&self, info: &Info) -> bool {
        let value = self.field.of_info(info);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(wanted) => value != Some(wanted),
            Test::Matches(pattern) => {
                value.zip(pattern.as_ref()).is_some_and(|(value, pattern)| pattern.is_match(value))
            }
        }
    }
}

impl Field {
    /// As in containerd, what follows a field that has no parts is ignored.
    fn of(path: &[String]) -> Field {
        match path.split_first() {
            Some((first, rest)) => match first.as_str() {
                "name" => Field::Name,
                "parent" => Field::Parent,
                "kind" => Field::Kind,
                "labels" => Field::Label(rest.join(".")),
                _ => Field::Unknown,
            },
            None => Field::Unknown,
        }
    }

    fn of_info<'a>(&self, info: &'a Info) -> Option<&'a str> {
        match self {
            Field::Name => Some(&info.name),
            Field::Parent => Some(&info.parent),
            Field::Kind => Some(info.kind.as_str()),
            Field::Label(key) => info.labels.get(key).map(String::as_str),
            Field::Unknown => None,
        }
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    let compiled = regex::RegexBuilder::new(pattern)
        .size_limit(limits::PATTERN_BYTES)
        .dfa_size_limit(limits::PATTERN_BYTES)
        .nest_limit(limits::PATTERN_NESTING)
        .build();
    compiled.map_err(|e| tracing::debug!(pattern, "bad pattern in a filter matches nothing: {e}")).ok()
}

fn too_large(cause: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, "filter", "", cause)
}

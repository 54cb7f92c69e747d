//! From the text of a filter to its selectors.

use super::lex::{Lexer, Quotes};
use crate::error::{Error, ErrorKind, Result};
use crate::types::quoted;

/// A selector as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    /// At least one part.
    pub path: Vec<String>,
    pub test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// A pattern that may be bad.
    Matches(String),
}

impl Selector {
    pub fn is_pattern(&self) -> bool {
        matches!(self.test, Test::Matches(_))
    }
}

/// What is wrong with a filter, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    /// Bytes before it.
    at: usize,
    cause: &'static str,
}

impl Failure {
    pub fn new(at: usize, cause: &'static str) -> Self {
        Self { at, cause }
    }
}

/// Reads one filter that is not empty.
///
/// # Errors
/// `InvalidArgument` with the position.
pub(super) fn filter(text: &str) -> Result<Vec<Selector>> {
    selectors(&mut Lexer::new(text)).map_err(|failure| {
        let cause = format!("at byte {}: {}", failure.at, failure.cause);
        Error::new(ErrorKind::InvalidArgument, "filter", quoted(text), cause)
    })
}

fn selectors(lexer: &mut Lexer<'_>) -> std::result::Result<Vec<Selector>, Failure> {
    let mut all = vec![selector(lexer)?];
    loop {
        if lexer.take(',') {
            all.push(selector(lexer)?);
            continue;
        }
        return match lexer.next() {
            (_, None) => Ok(all),
            (at, Some(_)) => {
                Err(Failure::new(at, "a comma or the end was expected; quote a value with spaces"))
            }
        };
    }
}

fn selector(lexer: &mut Lexer<'_>) -> std::result::Result<Selector, Failure> {
    let mut path = vec![lexer.field()?];
    while lexer.take('.') {
        path.push(lexer.field()?);
    }
    if let (_, None | Some(',')) = lexer.next() {
        return Ok(Selector { path, test: Test::Present });
    }
    let test = match lexer.operator() {
        (_, "==") => Test::Equal(lexer.value(Quotes::Double)?),
        (_, "!=") => Test::NotEqual(lexer.value(Quotes::Double)?),
        (_, "~=") => Test::Matches(lexer.value(Quotes::Any)?),
        (at, _) => return Err(Failure::new(at, "an operator was expected: ==, != or ~=")),
    };
    Ok(Selector { path, test })
}

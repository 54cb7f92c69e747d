//! The words of a filter: where one ends, and what a quoted one says.
//!
//! What a character means depends on where it stands (`.` separates fields and is part of a value), so the parser
//! asks for the kind of word that it needs.

use super::parse::Failure;

/// A filter and how far it has been read.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    /// Bytes that have been read.
    at: usize,
}

/// Which quotes a word may stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// `"` alone.
    Double,
    /// `/` and `|` too, which save a pattern from escaping.
    Any,
}

const QUOTES: [char; 3] = ['"', '/', '|'];

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Skips white space, and says what comes next and where it stands.
    pub fn next(&mut self) -> (usize, Option<char>) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        (self.at, self.text[self.at..].chars().next())
    }

    /// Reads `wanted` if it comes next.
    pub fn take(&mut self, wanted: char) -> bool {
        let found = self.next().1 == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    /// Reads the characters that follow as long as they are `good`; perhaps none.
    fn run(&mut self, good: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.text[self.at..];
        let run = &rest[..rest.find(|c| !good(c)).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    /// Reads one part of a field path.
    pub fn field(&mut self) -> Result<String, Failure> {
        let (at, next) = self.next();
        match next {
            Some(quote) if QUOTES.contains(&quote) => self.quoted(Quotes::Double),
            _ => match self.run(|c| c.is_ascii_alphanumeric() || c == '_') {
                "" => Err(Failure::new(
                    at,
                    "a field is missing: a word of letters, digits and _, or \"quoted\"",
                )),
                field => Ok(field.to_owned()),
            },
        }
    }

    /// Reads all that looks like an operator.
    pub fn operator(&mut self) -> (usize, &'a str) {
        let (at, _) = self.next();
        (at, self.run(|c| matches!(c, '=' | '!' | '~')))
    }

    /// Reads a value.
    pub fn value(&mut self, quotes: Quotes) -> Result<String, Failure> {
        let (at, next) = self.next();
        match next {
            Some(quote) if QUOTES.contains(&quote) => self.quoted(quotes),
            _ => match self.run(|c| !c.is_whitespace() && !c.is_control() && c != ',') {
                "" => Err(Failure::new(at, "a value is missing; an empty one is \"\"")),
                value => Ok(value.to_owned()),
            },
        }
    }

    /// Reads a quoted word, whose quote comes next.
    fn quoted(&mut self, quotes: Quotes) -> Result<String, Failure> {
        let start = self.at;
        let mut chars = Chars { text: self.text, at: start };
        let open = || Failure::new(start, "the quote is never closed");
        let quote = chars.next().ok_or_else(open)?;
        // Bytes, since an escape sequence can name a part of a character.
        let mut value = Vec::new();
        loop {
            match chars.next().ok_or_else(open)? {
                '\n' => return Err(open()),
                '\\' => chars.escape(quote, &mut value)?,
                c if c == quote => break,
                c => value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if quotes == Quotes::Double && quote != '"' {
            let cause = "this needs double quotes; / and | quote the pattern after ~= only";
            return Err(Failure::new(start, cause));
        }
        self.at = chars.at;
        String::from_utf8(value).map_err(|_| Failure::new(start, "the quoted text is not UTF-8"))
    }
}

/// The characters of a quoted word.
struct Chars<'a> {
    text: &'a str,
    at: usize,
}

impl Chars<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.text[self.at..].chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Reads an escape sequence of Go whose backslash has been read.
    fn escape(&mut self, quote: char, value: &mut Vec<u8>) -> Result<(), Failure> {
        let at = self.at - 1;
        let unknown = || Failure::new(at, "this is no escape sequence; a backslash is written \\\\");
        let simple = match self.next().ok_or_else(unknown)? {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            c if c == quote && c.is_ascii() => c as u8,
            'x' => u8::try_from(self.number(2, 16).ok_or_else(unknown)?).map_err(|_| unknown())?,
            '0'..='7' => {
                self.at -= 1;
                u8::try_from(self.number(3, 8).ok_or_else(unknown)?).map_err(|_| unknown())?
            }
            c @ ('u' | 'U') => {
                let digits = if c == 'u' { 4 } else { 8 };
                let c = self.number(digits, 16).and_then(char::from_u32).ok_or_else(unknown)?;
                value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(unknown()),
        };
        value.push(simple);
        Ok(())
    }

    /// Reads exactly so many digits.
    fn number(&mut self, digits: usize, radix: u32) -> Option<u32> {
        (0..digits).try_fold(0u32, |number, _| {
            let digit = self.next()?.to_digit(radix)?;
            number.checked_mul(radix)?.checked_add(digit)
        })
    }
}

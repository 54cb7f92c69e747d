//! What does the value of one option say?
//!
//! Each reader takes the bytes behind the `=` and answers with a value, or with a cause in words that names
//! what was expected. The option and the value are added to the cause where the option is applied.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::MAX_ENTRY_TTL_SECS;
use super::split;
use crate::idmap::{self, IdMap};

/// Why a value is refused, in words.
pub(super) type Cause = String;

/// The value of one option: `None` for the bare name. Quotes are gone, escapes are still in place.
#[derive(Clone, Copy)]
pub(super) struct Given<'a>(pub Option<&'a [u8]>);

impl<'a> Given<'a> {
    fn bytes(self) -> &'a [u8] {
        self.0.unwrap_or_default()
    }

    /// On or off: the bare name is on, and so is every number but 0, as for `%d` options of libfuse.
    pub fn switch(self) -> Result<bool, Cause> {
        match self.0 {
            None => Ok(true),
            Some(b"on" | b"yes" | b"true") => Ok(true),
            Some(b"off" | b"no" | b"false") => Ok(false),
            Some(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                Ok(digits.iter().any(|&digit| digit != b'0'))
            }
            Some(_) => Err("neither on nor off: write on, off, 1 or 0".into()),
        }
    }

    /// One word of a list; the bare name counts as `on`.
    pub fn choice<T: Copy>(self, words: &[(&str, T)]) -> Result<T, Cause> {
        let typed = self.0.unwrap_or(b"on");
        let found = words.iter().find(|(word, _)| word.as_bytes() == typed);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            format!("write one of {}", known.join(", "))
        })
    }

    /// Seconds with a fraction, from 0 to [`MAX_ENTRY_TTL_SECS`]; more is cut to that.
    pub fn seconds(self) -> Result<f64, Cause> {
        let text = std::str::from_utf8(self.bytes()).ok();
        match text.and_then(|text| text.parse::<f64>().ok()) {
            Some(secs) if secs.is_finite() && secs >= 0.0 => Ok(secs.min(MAX_ENTRY_TTL_SECS)),
            _ => Err("not a number of seconds: write it like 60 or 0.5".into()),
        }
    }

    /// A user or group id.
    pub fn id(self) -> Result<u32, Cause> {
        match idmap::decimal(self.bytes()) {
            Some(id) if id != u32::MAX => Ok(id),
            _ => Err("not an id: write a number from 0 to 4294967294".into()),
        }
    }

    /// A number from 1 to `most`.
    pub fn count(self, most: u32) -> Result<usize, Cause> {
        match idmap::decimal(self.bytes()) {
            Some(count) if (1..=most).contains(&count) => Ok(count as usize),
            _ => Err(format!("write a number from 1 to {most}")),
        }
    }

    /// A map of ids.
    pub fn id_map(self) -> Result<IdMap, Cause> {
        IdMap::parse_words(self.bytes()).map_err(Cause::from)
    }

    /// A path in which `\x` means `x`.
    pub fn path(self) -> Result<PathBuf, Cause> {
        not_empty(split::unescape_path(self.bytes()))
    }

    /// A list of lower layers, top first; may be empty.
    pub fn lowers(self) -> Result<Vec<PathBuf>, Cause> {
        split::split_lowers(self.bytes()).into_iter().map(lower).collect()
    }

    /// One lower layer, with its colons.
    pub fn lower(self) -> Result<PathBuf, Cause> {
        lower(split::unescape_lower(self.bytes()))
    }

    /// A word that is passed on.
    pub fn word(self) -> OsString {
        OsStr::from_bytes(&split::unescape_path(self.bytes())).to_os_string()
    }
}

fn lower(path: Vec<u8>) -> Result<PathBuf, Cause> {
    // `//NAME/DATA/PATH` asks a plugin of fuse-overlayfs 1.x; taken as a path it would be another layer.
    if path.starts_with(b"//") {
        let path = split::printable(&path);
        return Err(format!(
            "{path} asks for a layer plugin, which is not supported: give a directory, with one leading slash"
        ));
    }
    not_empty(path)
}

fn not_empty(path: Vec<u8>) -> Result<PathBuf, Cause> {
    if path.is_empty() {
        return Err("the path is empty: give a directory".into());
    }
    Ok(PathBuf::from(OsString::from_vec(path)))
}

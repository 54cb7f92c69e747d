//! Which side of a copy is meant: `KEY:PATH`, or a path of this machine? Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file of this machine.
    Machine(PathBuf),
    /// A file of a snapshot.
    Snapshot {
        /// Its key.
        key: String,
        /// The path in it.
        path: PathBuf,
    },
}

impl Place {
    /// Reads one side. A path of this machine begins with `/` or `.`, or has no colon; in all else the key ends at
    /// the first `:/`, else at the last colon. Keys hold colons (`sha256:...`), and so may paths.
    ///
    /// # Errors
    /// In words, for a key that is empty or no UTF-8.
    pub fn read(text: &OsStr) -> Result<Place, String> {
        let bytes = text.as_bytes();
        let colon = match bytes.first() {
            None => return Err("must not be empty".to_owned()),
            Some(b'/' | b'.') => None,
            Some(_) => {
                bytes.windows(2).position(|two| two == b":/").or(bytes.iter().rposition(|b| *b == b':'))
            }
        };
        let Some(colon) = colon else { return Ok(Place::Machine(text.into())) };
        let key = std::str::from_utf8(&bytes[..colon]).map_err(|_| "a key is UTF-8".to_owned())?;
        if key.is_empty() {
            return Err("no key stands before the colon".to_owned());
        }
        let path = match &bytes[colon + 1..] {
            b"" => PathBuf::from("/"),
            path => PathBuf::from(OsString::from_vec(path.to_vec())),
        };
        Ok(Place::Snapshot { key: key.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_where_its_path_begins() {
        let machine = |path: &str| Ok(Place::Machine(path.into()));
        let snapshot = |key: &str, path: &str| Ok(Place::Snapshot { key: key.to_owned(), path: path.into() });
        let cases = [
            ("file", machine("file")),
            ("./a:b", machine("./a:b")),
            ("../a:/b", machine("../a:/b")),
            (".", machine(".")),
            ("/a:/b", machine("/a:/b")),
            ("dir/file", machine("dir/file")),
            ("k:/etc", snapshot("k", "/etc")),
            ("k:etc/x", snapshot("k", "etc/x")),
            ("k:", snapshot("k", "/")),
            ("k:/", snapshot("k", "/")),
            ("k8s.io/12/sha256:ab:/etc/a:b", snapshot("k8s.io/12/sha256:ab", "/etc/a:b")),
            ("sha256:ab:etc", snapshot("sha256:ab", "etc")),
            ("a b:/c d", snapshot("a b", "/c d")),
        ];
        for (text, place) in cases {
            assert_eq!(Place::read(text.as_ref()), place, "{text}");
        }
        for bad in ["", ":", ":/x", ":x"] {
            assert!(Place::read(bad.as_ref()).is_err(), "{bad:?}");
        }
        assert!(Place::read(OsStr::from_bytes(b"\xff:/x")).is_err());
        assert_eq!(
            Place::read(OsStr::from_bytes(b"k:/\xff")),
            Ok(Place::Snapshot { key: "k".to_owned(), path: OsStr::from_bytes(b"/\xff").into() })
        );
    }
}

//! Operations on a tree, as values that can be written down and read again: `rename a b/c`, `write a 100 5 1`.

use std::fmt;
use std::str::FromStr;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Makes a regular file; permission bits.
    Create,
    /// Makes a directory; permission bits.
    Mkdir,
    /// Makes a named pipe; permission bits.
    Mkfifo,
    /// Makes a character device; major and minor number.
    Mknod,
    /// Makes a symlink; the other path is its target.
    Symlink,
    /// Gives the file the other path as a second name.
    Link,
    /// Removes a file.
    Unlink,
    /// Removes a directory.
    Rmdir,
    /// Renames to the other path.
    Rename,
    /// Renames if the other path is free.
    RenameNoReplace,
    /// Swaps the two.
    Exchange,
    /// Writes; offset, length, seed of the content.
    Write,
    /// Writes at the end; length, seed.
    Append,
    /// Sets the size.
    Truncate,
    /// Punches a hole; offset, length.
    Punch,
    /// Allocates space; offset, length.
    Allocate,
    /// Copies to the other path; offset there, offset here, length.
    CopyRange,
    /// Sets permission bits.
    Chmod,
    /// Sets owner and group.
    Chown,
    /// Sets both times; seconds, 0 for now.
    Times,
    /// Sets the attribute that the other path names; length and seed of the value.
    SetXattr,
    /// Removes the attribute that the other path names.
    RemoveXattr,
    /// Reads; offset, length.
    Read,
    /// Lists a directory.
    List,
    /// Opens a file; handle.
    Open,
    /// Writes by a handle; handle, offset, length, seed.
    WriteOpen,
    /// Reads by a handle; handle, offset, length.
    ReadOpen,
    /// Sets the size by a handle; handle, size.
    TruncateOpen,
    /// Sets permission bits by a handle; handle, bits.
    ChmodOpen,
    /// Asks for size and links of an open file; handle.
    StatOpen,
    /// Closes a handle.
    Close,
    /// Lets the kernel forget what it knows.
    Forget,
    /// Closes the file system and opens it again.
    Remount,
    /// Makes the upper layer a lower one, below a new empty upper layer.
    Rotate,
    /// Asks what has changed since the last rotation.
    Changes,
}

/// Each verb: its word, whether it has a path, whether it has another, and how many numbers.
const VERBS: [(&str, Verb, bool, bool, usize); 35] = [
    ("create", Verb::Create, true, false, 1),
    ("mkdir", Verb::Mkdir, true, false, 1),
    ("mkfifo", Verb::Mkfifo, true, false, 1),
    ("mknod", Verb::Mknod, true, false, 2),
    ("symlink", Verb::Symlink, true, true, 0),
    ("link", Verb::Link, true, true, 0),
    ("unlink", Verb::Unlink, true, false, 0),
    ("rmdir", Verb::Rmdir, true, false, 0),
    ("rename", Verb::Rename, true, true, 0),
    ("rename-no-replace", Verb::RenameNoReplace, true, true, 0),
    ("exchange", Verb::Exchange, true, true, 0),
    ("write", Verb::Write, true, false, 3),
    ("append", Verb::Append, true, false, 2),
    ("truncate", Verb::Truncate, true, false, 1),
    ("punch", Verb::Punch, true, false, 2),
    ("allocate", Verb::Allocate, true, false, 2),
    ("copy-range", Verb::CopyRange, true, true, 3),
    ("chmod", Verb::Chmod, true, false, 1),
    ("chown", Verb::Chown, true, false, 2),
    ("times", Verb::Times, true, false, 1),
    ("set-xattr", Verb::SetXattr, true, true, 2),
    ("remove-xattr", Verb::RemoveXattr, true, true, 0),
    ("read", Verb::Read, true, false, 2),
    ("list", Verb::List, true, false, 0),
    ("open", Verb::Open, true, false, 1),
    ("write-open", Verb::WriteOpen, false, false, 4),
    ("read-open", Verb::ReadOpen, false, false, 3),
    ("truncate-open", Verb::TruncateOpen, false, false, 2),
    ("chmod-open", Verb::ChmodOpen, false, false, 2),
    ("stat-open", Verb::StatOpen, false, false, 1),
    ("close", Verb::Close, false, false, 1),
    ("forget", Verb::Forget, false, false, 0),
    ("remount", Verb::Remount, false, false, 0),
    ("rotate", Verb::Rotate, false, false, 0),
    ("changes", Verb::Changes, false, false, 0),
];

impl Verb {
    fn row(self) -> (&'static str, Verb, bool, bool, usize) {
        *VERBS.iter().find(|(_, verb, ..)| *verb == self).expect("each verb has a row")
    }

    /// True if the shape of the tree may be another afterwards.
    pub fn changes_names(self) -> bool {
        use Verb::{
            Create, Exchange, Link, Mkdir, Mkfifo, Mknod, Rename, RenameNoReplace, Rmdir, Symlink, Unlink,
        };
        matches!(
            self,
            Create
                | Mkdir
                | Mkfifo
                | Mknod
                | Symlink
                | Link
                | Unlink
                | Rmdir
                | Rename
                | RenameNoReplace
                | Exchange
        )
    }

    /// True if the permission bits of the operation are printed as such.
    fn is_octal(self) -> bool {
        matches!(self, Verb::Create | Verb::Mkdir | Verb::Mkfifo | Verb::Chmod | Verb::ChmodOpen)
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub verb: Verb,
    /// To what; empty where the verb has no path.
    pub path: String,
    /// The other path, target or attribute name.
    pub other: String,
    /// Numbers, as the verb says.
    pub numbers: Vec<u64>,
}

impl Operation {
    /// A number; those that are missing are 0.
    pub fn number(&self, at: usize) -> u64 {
        self.numbers.get(at).copied().unwrap_or(0)
    }

    /// Reads operations, one per line or separated by semicolons.
    ///
    /// # Panics
    /// If one is none.
    pub fn parse_all(text: &str) -> Vec<Operation> {
        let parts = text.split([';', '\n']).map(str::trim).filter(|p| !p.is_empty());
        parts.map(|p| p.parse().unwrap_or_else(|()| panic!("{p:?}: not an operation"))).collect()
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, _, has_path, has_other, _) = self.verb.row();
        f.write_str(word)?;
        if has_path {
            write!(f, " {}", if self.path.is_empty() { "." } else { &self.path })?;
        }
        if has_other {
            write!(f, " {}", if self.other.is_empty() { "." } else { &self.other })?;
        }
        let last = self.numbers.len().saturating_sub(1);
        self.numbers.iter().enumerate().try_for_each(|(at, n)| {
            if self.verb.is_octal() && at == last { write!(f, " {n:o}") } else { write!(f, " {n}") }
        })
    }
}

impl FromStr for Operation {
    type Err = ();

    fn from_str(text: &str) -> Result<Operation, ()> {
        let mut words = text.split_whitespace();
        let word = words.next().ok_or(())?;
        let &(_, verb, has_path, has_other, count) = VERBS.iter().find(|(w, ..)| *w == word).ok_or(())?;
        let mut path = |wanted: bool| -> Result<String, ()> {
            let word = if wanted { words.next().ok_or(())? } else { "" };
            Ok(if word == "." { String::new() } else { word.into() })
        };
        let (path, other) = (path(has_path)?, path(has_other)?);
        let numbers: Vec<&str> = words.collect();
        if numbers.len() != count {
            return Err(());
        }
        let number = |(at, word): (usize, &&str)| {
            let radix = if verb.is_octal() && at + 1 == count { 8 } else { 10 };
            u64::from_str_radix(word, radix).map_err(|_| ())
        };
        let numbers: Result<Vec<u64>, ()> = numbers.iter().enumerate().map(number).collect();
        Ok(Operation { verb, path, other, numbers: numbers? })
    }
}

/// What an operation answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing but that it is done.
    Done,
    /// So many bytes, and a hash of them.
    Bytes(usize, u64),
    /// So many bytes were written.
    Written(usize),
    /// These names.
    Names(Vec<String>),
    /// Size, links, permission bits.
    Stat(u64, u32, u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_read_as_it_is_written() {
        for (_, verb, has_path, has_other, count) in VERBS {
            let text = |wanted: bool, text: &str| if wanted { text.into() } else { String::new() };
            let numbers = (0..count as u64).map(|n| n + 64).collect();
            let operation =
                Operation { verb, path: text(has_path, "a/b"), other: text(has_other, "c"), numbers };
            assert_eq!(operation.to_string().parse(), Ok(operation));
        }
    }
}

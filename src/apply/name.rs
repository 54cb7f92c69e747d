//! Where the name of a member leads, and what it means: bytes in, meaning out.
//!
//! Names come from outside. They are cleaned as text, before any disk is asked: what is above the root is the root.
//! What is left has no `.`, no `..` and no empty component, so a directory on the way can only be left through a
//! symlink, and `way` sees to those.

use plywood_fuse::layer::marks::{OPAQUE_FILE, WHITEOUT_PREFIX};

/// A cleaned name, kept from one member to the next so that its memory is used again.
#[derive(Debug, Default)]
pub struct Name {
    path: Vec<u8>,
    /// Where the last component begins.
    base: usize,
}

/// What the last component of a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// A file, directory or link of this name.
    Member,
    /// This name is removed.
    Whiteout(&'a [u8]),
    /// What the directory had before this archive is removed.
    Opaque,
    /// Something of AUFS itself, of no concern to anybody else.
    Ignored,
    /// A whiteout of the directory itself, or of the one above it.
    Invalid,
}

impl Name {
    /// Takes the name of a member; false if it leads to the root.
    ///
    /// # Source
    /// Go's `filepath.Clean`, by which containerd reads names.
    pub fn set(&mut self, written: &[u8]) -> bool {
        self.path.clear();
        for part in written.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    let parent = self.path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                    self.path.truncate(parent);
                }
                part => {
                    if !self.path.is_empty() {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(part);
                }
            }
        }
        self.base = self.path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        !self.path.is_empty()
    }

    /// The whole path, without a slash at either end.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path of the directory; empty for the root.
    pub fn dir(&self) -> &[u8] {
        &self.path[..self.base.saturating_sub(1)]
    }

    /// The last component.
    pub fn base(&self) -> &[u8] {
        &self.path[self.base..]
    }

    /// What the last component means. Only that one counts: `.wh.etc/f` is a path like any other.
    ///
    /// # Source
    /// The OCI layer specification, "Whiteouts". Of the other names that begin with `.wh..wh.` containerd makes
    /// whiteouts of names that AUFS never shows.
    pub fn meaning(&self) -> Meaning<'_> {
        let base = self.base();
        match base.strip_prefix(WHITEOUT_PREFIX) {
            None => Meaning::Member,
            Some(_) if base == OPAQUE_FILE => Meaning::Opaque,
            Some(b"" | b"." | b"..") => Meaning::Invalid,
            Some(hidden) if hidden.starts_with(WHITEOUT_PREFIX) => Meaning::Ignored,
            Some(hidden) => Meaning::Whiteout(hidden),
        }
    }
}

/// A path for messages: escaped, and cut where it is long.
pub fn shown(path: &[u8]) -> String {
    const SHOWN: usize = 200;
    match path.get(..SHOWN) {
        Some(begin) if path.len() > SHOWN => {
            format!("\"{}\"… ({} bytes)", begin.escape_ascii(), path.len())
        }
        _ => format!("\"{}\"", path.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_and_never_lead_above_the_root() {
        for (written, dir, base) in [
            (&b"a"[..], &b""[..], &b"a"[..]),
            (b"/a", b"", b"a"),
            (b"./a/b/", b"a", b"b"),
            (b"a//b/./c", b"a/b", b"c"),
            (b"../a", b"", b"a"),
            (b"../../a/../b", b"", b"b"),
            (b"a/../../../b/c", b"b", b"c"),
            (b"a/b/..", b"", b"a"),
            (b"...", b"", b"..."),
            (b"a/..b", b"a", b"..b"),
            (b"a\nb/\xff", b"a\nb", b"\xff"),
        ] {
            let mut name = Name::default();
            assert!(name.set(written), "{}", written.escape_ascii());
            assert_eq!((name.dir(), name.base()), (dir, base), "{}", written.escape_ascii());
        }
        for root in [&b""[..], b".", b"..", b"/", b"./", b"a/..", b"../..", b"/../", b"a/b/../../.."] {
            assert!(!Name::default().set(root), "{}", root.escape_ascii());
        }
    }

    #[test]
    fn a_name_that_was_taken_before_leaves_nothing_behind() {
        let mut name = Name::default();
        assert!(name.set(b"a/long/path"));
        assert!(name.set(b"b"));
        assert_eq!((name.path(), name.dir(), name.base()), (&b"b"[..], &b""[..], &b"b"[..]));
    }

    #[test]
    fn the_last_component_alone_says_what_is_meant() {
        use Meaning::{Ignored, Invalid, Member, Opaque, Whiteout};
        for (written, meaning) in [
            (&b"a"[..], Member),
            (b".wh", Member),
            (b"x.wh.a", Member),
            (b".wh.etc/f", Member),
            (b"d/.wh.a", Whiteout(b"a")),
            (b".wh.a/", Whiteout(b"a")),
            (b".wh..a", Whiteout(b".a")),
            (b".wh....", Whiteout(b"...")),
            (b"d/.wh..wh..opq", Opaque),
            (b".wh..wh.plnk", Ignored),
            (b".wh..wh.a", Ignored),
            (b".wh..wh.", Ignored),
            (b".wh..wh..opqx", Ignored),
            (b".wh.", Invalid),
            (b"d/.wh..", Invalid),
            (b"d/.wh...", Invalid),
        ] {
            let mut name = Name::default();
            assert!(name.set(written));
            assert_eq!(name.meaning(), meaning, "{}", written.escape_ascii());
        }
    }
}

//! Which layers make up one name.
//!
//! Layers are asked from the top. The first that knows the name decides what it is. A directory goes on to
//! collect the directories below it until one is opaque, a whiteout, or not a directory; a file with only its
//! attributes goes on until its data is found.
//!
//! # Source
//! `Documentation/filesystems/overlayfs.rst`; the order of tests is that of the kernel's `ovl_lookup`.

use crate::layer::marks::{Opaque, Redirect};
use crate::layer::source::split_path;
use std::borrow::Cow;
use std::sync::Arc;

/// What one layer says about a name, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing.
    Absent,
    /// It is hidden.
    Whiteout,
    /// A file that is complete.
    File,
    /// A file with attributes only; its data is below, perhaps elsewhere.
    Metacopy(Option<Redirect>),
    /// A directory.
    Dir(Opaque, Option<Redirect>),
}

/// What to look for in the next layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cursor<'n> {
    /// This name in the lower directories of the parent.
    Name(Cow<'n, [u8]>),
    /// This path from the root of the layer.
    Path(Arc<[u8]>),
}

/// What the caller does with a layer that has spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// This layer is part of the result.
    pub takes_part: bool,
    /// Ask the next layer.
    pub go_on: bool,
    /// The next layer is to be asked for something else.
    pub moved: bool,
}

/// The state of a lookup between two layers.
#[derive(Clone, Debug)]
pub struct Lookup<'n> {
    found: Kind,
    cursor: Cursor<'n>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nothing,
    Dir,
    MetadataOnly,
}

impl<'n> Lookup<'n> {
    /// A lookup of `name`.
    pub fn new(name: &'n [u8]) -> Self {
        Lookup { found: Kind::Nothing, cursor: Cursor::Name(Cow::Borrowed(name)) }
    }

    /// What to look for in the next layer.
    pub fn cursor(&self) -> &Cursor<'n> {
        &self.cursor
    }

    /// Makes the next layers be asked for another path: a directory on the way was renamed.
    pub fn retarget(&mut self, path: &[u8]) {
        self.cursor = Cursor::Path(path.into());
    }

    /// Takes in what a layer said.
    pub fn hear(&mut self, said: &Said) -> Verdict {
        let verdict = |takes_part, go_on| Verdict { takes_part, go_on, moved: false };
        let moving = |takes_part, go_on, moved| Verdict { takes_part, go_on, moved };
        match (self.found, said) {
            (_, Said::Absent) => verdict(false, true),
            (_, Said::Whiteout) => verdict(false, false),
            (Kind::Nothing | Kind::Dir, Said::Dir(opaque, redirect)) => {
                self.found = Kind::Dir;
                self.follow(redirect.as_ref());
                moving(true, *opaque != Opaque::Yes, redirect.is_some())
            }
            (Kind::Dir, Said::File | Said::Metacopy(_)) => verdict(false, false),
            (Kind::Nothing | Kind::MetadataOnly, Said::File) => verdict(true, false),
            (Kind::Nothing | Kind::MetadataOnly, Said::Metacopy(redirect)) => {
                self.found = Kind::MetadataOnly;
                self.follow(redirect.as_ref());
                moving(true, true, redirect.is_some())
            }
            (Kind::MetadataOnly, Said::Dir(..)) => verdict(false, false),
        }
    }

    /// Makes the next layers be asked where a redirect of the upper layer leads.
    fn follow(&mut self, redirect: Option<&Redirect>) {
        let Some(redirect) = redirect else { return };
        self.cursor = match (redirect, &self.cursor) {
            (Redirect::Path(path), _) => Cursor::Path(Arc::from(&**path)),
            (Redirect::Name(name), Cursor::Name(_)) => Cursor::Name(Cow::Owned(name.to_vec())),
            (Redirect::Name(name), Cursor::Path(path)) => match split_path(path) {
                ([], _) => Cursor::Path(Arc::from(&**name)),
                (dir, _) => Cursor::Path([dir, b"/", name].concat().into()),
            },
        };
    }
}

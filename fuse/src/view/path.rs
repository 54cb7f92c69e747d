//! From a path to a file: the walk that the kernel makes.
//!
//! A walk keeps the directories from the root down to where it is, so `..` is a step back and needs no parent
//! pointer, and a rename meanwhile does not lead it astray. Each directory that is left, whatever by, is given
//! back to the overlay.

use super::{Known, View};
use crate::access::Access;
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::types::{Attr, Kind};
use std::sync::Arc;

/// How many symlinks one path may lead through.
///
/// # Source
/// `MAXSYMLINKS` of Linux.
const MAX_LINKS: u32 = 40;

/// The longest path in bytes: `PATH_MAX` counts the NUL at its end too.
const PATH_MAX_BYTES: usize = libc::PATH_MAX as usize - 1;

/// Whether a symlink at the end of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follow {
    /// It is.
    Yes,
    /// Only if a slash follows it.
    No,
    /// It is, but a slash after it means nothing: the path names what is to be made.
    ToCreate,
    /// Never: the path names an entry of a directory.
    Never,
}

/// A file and what it was when it was looked up.
pub(super) struct Here {
    pub known: Known,
    pub attr: Attr,
}

impl Here {
    pub fn node(&self) -> &Arc<Node> {
        self.known.node()
    }

    pub fn is_dir(&self) -> bool {
        self.attr.kind == Kind::Dir
    }
}

/// The directories of a walk, the root first; never empty.
pub(super) struct Trail(Vec<Here>);

impl Trail {
    pub fn dir(&self) -> &Here {
        self.0.last().expect("a trail begins with the root, which is never left")
    }

    /// True if `node` is one of the directories.
    pub fn leads_through(&self, node: &Arc<Node>) -> bool {
        self.0.iter().any(|here| Arc::ptr_eq(here.node(), node))
    }

    fn step_back(&mut self) {
        if self.0.len() > 1 {
            self.0.pop();
        }
    }

    fn back_to_root(&mut self) {
        while self.0.len() > 1 {
            self.0.pop();
        }
    }

    /// Gives up all but the last directory.
    fn into_dir(mut self) -> Option<Here> {
        self.0.pop()
    }
}

impl Drop for Trail {
    /// Children before their parents: a parent cannot be freed while a child points to it.
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

/// The last component of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Name(Vec<u8>),
    Dot,
    DotDot,
    Root,
}

/// Where a path ends.
pub(super) struct Spot {
    /// The directories down to the one that holds the last component; where that is none (`.`, `..`, `/`), to
    /// what it names.
    pub trail: Trail,
    /// The last component.
    pub last: Last,
    /// A slash comes after it.
    pub slash: bool,
    /// What is there; `None` for a name that is not in use, and for what is no name.
    pub leaf: Option<Here>,
}

impl Spot {
    /// The name at the end, or this errno if it is none.
    pub fn name(&self, otherwise: i32) -> Result<&[u8]> {
        match &self.last {
            Last::Name(name) => Ok(name),
            Last::Dot | Last::DotDot | Last::Root => Err(Error::from_errno(otherwise)),
        }
    }

    pub fn dir(&self) -> &Here {
        self.trail.dir()
    }
}

impl View {
    /// Finds the file that `path` names.
    pub(super) fn find(&self, path: &[u8], follow: Follow) -> Result<Here> {
        let Spot { trail, last, slash, leaf } = self.resolve(path, follow)?;
        let found = match last {
            Last::Name(_) => leaf,
            Last::Dot | Last::DotDot | Last::Root => trail.into_dir(),
        };
        match found {
            None => Err(Error::from_errno(libc::ENOENT)),
            Some(here) if slash && !here.is_dir() => Err(Error::from_errno(libc::ENOTDIR)),
            Some(here) => Ok(here),
        }
    }

    /// Walks along `path`.
    ///
    /// # Source
    /// `link_path_walk`, `walk_component` and `pick_link` of Linux; path_resolution(7).
    pub(super) fn resolve(&self, path: &[u8], follow: Follow) -> Result<Spot> {
        if path.is_empty() {
            return Err(Error::from_errno(libc::ENOENT));
        }
        if path.contains(&0) {
            return Err(Error::from_errno(libc::EINVAL));
        }
        if path.len() > PATH_MAX_BYTES {
            return Err(Error::from_errno(libc::ENAMETOOLONG));
        }
        let mut trail = Trail(vec![self.root()?]);
        let mut rest = Rest::default();
        rest.prepend(path);
        let mut slash = path.ends_with(b"/");
        let mut last = Last::Root;
        let mut links = 0;
        while let Some(part) = rest.next() {
            let is_final = rest.is_empty();
            self.may(trail.dir(), Access::EXECUTE)?;
            last = match &*part {
                b"." => Last::Dot,
                b".." => {
                    trail.step_back();
                    Last::DotDot
                }
                _ => Last::Name(part.into_vec()),
            };
            let Last::Name(name) = &last else { continue };
            let found = match self.look(trail.dir(), name) {
                Err(e) if e.errno() == libc::ENOENT && is_final => None,
                other => Some(other?),
            };
            let follows = match follow {
                _ if !is_final => true,
                Follow::Yes => true,
                Follow::No => slash,
                Follow::ToCreate => !slash,
                Follow::Never => false,
            };
            match found {
                Some(here) if here.attr.kind == Kind::Symlink && follows => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Error::from_errno(libc::ELOOP));
                    }
                    let target = self.overlay.read_link(here.node())?;
                    if target.is_empty() {
                        return Err(Error::from_errno(libc::ENOENT));
                    }
                    if target.starts_with(b"/") {
                        trail.back_to_root();
                        last = Last::Root;
                    }
                    slash |= is_final && target.ends_with(b"/");
                    rest.prepend(&target);
                }
                leaf if is_final => return Ok(Spot { trail, last, slash, leaf }),
                Some(here) if here.is_dir() => trail.0.push(here),
                _ => return Err(Error::from_errno(libc::ENOTDIR)),
            }
        }
        Ok(Spot { trail, last, slash, leaf: None })
    }

    fn root(&self) -> Result<Here> {
        let known = Known::root(&self.overlay);
        let attr = self.overlay.attributes(known.node())?;
        Ok(Here { known, attr })
    }

    /// Looks up one name, without a question of permission.
    pub(super) fn look(&self, dir: &Here, name: &[u8]) -> Result<Here> {
        let (node, attr) = self.overlay.lookup(dir.node(), name)?;
        Ok(Here { known: Known::new(&self.overlay, node), attr })
    }
}

/// The components that are still to be walked, the next one last.
#[derive(Default)]
struct Rest(Vec<Box<[u8]>>);

impl Rest {
    fn prepend(&mut self, path: &[u8]) {
        let parts = path.split(|&b| b == b'/').filter(|part| !part.is_empty());
        self.0.extend(parts.rev().map(Box::from));
    }

    fn next(&mut self) -> Option<Box<[u8]>> {
        self.0.pop()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

//! The whole merged tree, one entry after the other.

use super::path::{Follow, Here};
use super::{View, during};
use crate::error::Result;
use crate::types::Attr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One entry of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkEntry {
    /// Its path from where the walk began, without a slash at its front.
    pub path: PathBuf,
    /// Its attributes; those of a symlink, not of what it leads to.
    pub attr: Attr,
}

impl View {
    /// All that is below a directory: depth first, each directory before what it holds, its names in order of
    /// their bytes. Symlinks are not followed, except for `path` itself.
    ///
    /// # Errors
    /// Those of [`View::read_dir`]. A directory further down that cannot be read is an entry, and an error
    /// after it; the walk goes on beside it.
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Walk> {
        during("walk", path.as_ref(), |path| {
            let top = self.find(path, Follow::Yes)?;
            let names = self.list(&top)?;
            let frame = Frame { dir: top, path: PathBuf::new(), names };
            Ok(Walk { view: self.clone(), frames: vec![frame], next: None })
        })
    }
}

/// A walk through a tree; see [`View::walk`].
pub struct Walk {
    view: View,
    /// The directories from the top down to where the walk is.
    frames: Vec<Frame>,
    /// A directory that was given and is to be opened next.
    next: Option<(Here, PathBuf)>,
}

struct Frame {
    dir: Here,
    path: PathBuf,
    /// What is still to come, the next one last.
    names: Vec<Vec<u8>>,
}

impl Walk {
    fn open(&mut self, dir: Here, path: PathBuf) -> Result<()> {
        let names = during("walk", &path, |_| self.view.list(&dir))?;
        self.frames.push(Frame { dir, path, names });
        Ok(())
    }
}

impl Iterator for Walk {
    type Item = Result<WalkEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some((dir, path)) = self.next.take()
            && let Err(e) = self.open(dir, path)
        {
            return Some(Err(e));
        }
        loop {
            let frame = self.frames.last_mut()?;
            let Some(name) = frame.names.pop() else {
                self.frames.pop();
                continue;
            };
            let here = match self.view.look(&frame.dir, &name) {
                Ok(here) => here,
                // Gone meanwhile.
                Err(e) if e.is_absent() => continue,
                Err(e) => return Some(Err(e.during("walk", frame.path.display().to_string()))),
            };
            let path = frame.path.join(std::ffi::OsString::from_vec(name));
            let entry = WalkEntry { path: path.clone(), attr: here.attr };
            if here.is_dir() {
                self.next = Some((here, path));
            }
            return Some(Ok(entry));
        }
    }
}

impl Drop for Walk {
    /// Children before their parents: a parent cannot be freed while a child points to it.
    fn drop(&mut self) {
        self.next = None;
        while self.frames.pop().is_some() {}
    }
}

//! Names by path: making, linking, renaming, removing and listing them.

use super::path::{Follow, Here, Spot};
use super::{Known, View, during};
use crate::access::{Access, Expected, may_delete, may_make_node, new_file_owner};
use crate::error::{Error, Result};
use crate::overlay::create::{Creator, New};
use crate::overlay::remove::Victim;
use crate::overlay::rename::{End, Target};
use crate::types::{Attr, Device, Identity, Kind};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: OsString,
    /// Its attributes; those of a symlink, not of what it leads to.
    pub attr: Attr,
}

/// The longest target of a symlink in bytes.
const TARGET_MAX_BYTES: usize = libc::PATH_MAX as usize - 1;

impl View {
    /// Makes a directory with the mode 0777, less the umask.
    ///
    /// # Errors
    /// EEXIST; EACCES for who may not write the directory that is to hold it; EROFS; ENOSPC; those of
    /// [`View::metadata`].
    pub fn create_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        self.create_dir_with(path, 0o777)
    }

    /// Makes a directory with this mode, less the umask.
    ///
    /// # Errors
    /// Those of [`View::create_dir`].
    pub fn create_dir_with(&self, path: impl AsRef<Path>, perm: u32) -> Result<()> {
        during("mkdir", path.as_ref(), |path| self.make_new(path, New::Dir, perm))
    }

    /// Makes a directory and those above it that are missing; one that is there already is fine.
    ///
    /// # Errors
    /// Those of [`View::create_dir`]; EEXIST if something else is there.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        // The longest part of the path that can be made is looked for from its end.
        let mut missing: Vec<&Path> = Vec::new();
        for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            match self.create_dir(part) {
                Err(e) if e.errno() == libc::ENOENT => missing.push(part),
                made => {
                    self.made_or_there(part, made)?;
                    break;
                }
            }
        }
        while let Some(part) = missing.pop() {
            self.made_or_there(part, self.create_dir(part))?;
        }
        Ok(())
    }

    fn made_or_there(&self, path: &Path, made: Result<()>) -> Result<()> {
        match made {
            Err(e) if !e.is_absent() && self.metadata(path).is_ok_and(|a| a.kind == Kind::Dir) => Ok(()),
            other => other,
        }
    }

    /// Makes a symlink at `path` that leads to `target`.
    ///
    /// # Errors
    /// ENOENT for an empty target, ENAMETOOLONG for one above 4095 bytes; those of [`View::create_dir`].
    pub fn symlink(&self, target: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let target = target.as_ref().as_os_str().as_bytes();
        during("symlink", path.as_ref(), |path| {
            match target.len() {
                0 => return Err(Error::from_errno(libc::ENOENT)),
                1..=TARGET_MAX_BYTES => {}
                _ => return Err(Error::from_errno(libc::ENAMETOOLONG)),
            }
            if target.contains(&0) {
                return Err(Error::from_errno(libc::EINVAL));
            }
            self.make_new(path, New::Symlink(target), 0o777)
        })
    }

    /// Makes a regular file, pipe, socket or device with this mode, less the umask.
    ///
    /// # Errors
    /// EPERM for a directory or symlink, and for a device unless root asks; those of [`View::create_dir`].
    pub fn mknod(&self, path: impl AsRef<Path>, kind: Kind, perm: u32, device: Device) -> Result<()> {
        during("mknod", path.as_ref(), |path| {
            let new = match kind {
                Kind::Dir | Kind::Symlink => return Err(Error::from_errno(libc::EPERM)),
                Kind::File => New::File,
                Kind::Fifo | Kind::Socket => New::Node(kind, Device::default()),
                Kind::Char | Kind::Block => New::Node(kind, device),
            };
            self.make_new(path, new, perm)
        })
    }

    /// Makes what must not be there yet.
    ///
    /// # Source
    /// `filename_create` of Linux for the order of the errors.
    fn make_new(&self, path: &[u8], new: New<'_>, perm: u32) -> Result<()> {
        let spot = self.resolve(path, Follow::Never)?;
        self.expect_free(&spot, matches!(new, New::Dir))?;
        self.make_at(&spot, new, perm).map(drop)
    }

    /// Asks whether the name at the end of a path can be made.
    fn expect_free(&self, spot: &Spot, is_dir: bool) -> Result<()> {
        spot.name(libc::EEXIST)?;
        if spot.leaf.is_some() {
            return Err(Error::from_errno(libc::EEXIST));
        }
        if spot.slash && !is_dir {
            return Err(Error::from_errno(libc::ENOENT));
        }
        self.may(spot.dir(), Access::WRITE.union(Access::EXECUTE))
    }

    /// Makes a file for a path that was resolved; asks only what is about the file itself.
    pub(super) fn make_at(&self, spot: &Spot, new: New<'_>, perm: u32) -> Result<Here> {
        let (kind, device) = match new {
            New::File => (Kind::File, Device::default()),
            New::Dir => (Kind::Dir, Device::default()),
            New::Symlink(_) => (Kind::Symlink, Device::default()),
            New::Node(kind, device) => (kind, device),
        };
        may_make_node(kind, device, &self.who)?;
        let dir = spot.dir();
        let (creator, perm) = self.creator(&dir.attr, kind, perm);
        let name = spot.name(libc::EEXIST)?;
        let (node, attr) = self.overlay.create(dir.node(), name, new, perm, creator)?;
        Ok(Here { known: Known::new(&self.overlay, node), attr })
    }

    /// For whom a file is made, and the mode before the umask. The overlay itself knows the directory's group and
    /// default list, but not the groups of the caller.
    pub(super) fn creator(&self, dir: &Attr, kind: Kind, perm: u32) -> (Creator, u32) {
        let unmasked = Identity { umask: 0, ..self.who.clone() };
        let mut perm = new_file_owner(dir, None, &unmasked, perm, kind).perm;
        if kind == Kind::Dir {
            perm &= !libc::S_ISGID;
        }
        (Creator { uid: self.who.uid, gid: self.who.gid, umask: self.who.umask & 0o777 }, perm)
    }

    /// Gives the file at `existing` another name; a symlink is not followed.
    ///
    /// # Errors
    /// EPERM for a directory; EMLINK; those of [`View::create_dir`].
    pub fn link(&self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<()> {
        let existing = existing.as_ref().as_os_str().as_bytes();
        during("link", path.as_ref(), |path| {
            let here = self.find(existing, Follow::No)?;
            self.link_at(&here.known, path)
        })
    }

    pub(super) fn link_at(&self, known: &Known, path: &[u8]) -> Result<()> {
        let spot = self.resolve(path, Follow::Never)?;
        self.expect_free(&spot, false)?;
        self.overlay.link(known.node(), spot.dir().node(), spot.name(libc::EEXIST)?)?;
        // The overlay handed the node out once more.
        drop(Known::new(&self.overlay, known.node().clone()));
        Ok(())
    }

    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// EISDIR; EACCES for who may not write the directory that holds it; EPERM in a sticky directory unless
    /// one of the two is the caller's; EROFS; those of [`View::metadata`].
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        during("unlink", path.as_ref(), |path| {
            let spot = self.resolve(path, Follow::Never)?;
            let name = spot.name(libc::EISDIR)?;
            self.writable()?;
            let leaf = spot.leaf.as_ref().ok_or(Error::from_errno(libc::ENOENT))?;
            if spot.slash {
                Self::expect_file(&leaf.attr, libc::ENOTDIR)?;
                return Err(Error::from_errno(libc::ENOTDIR));
            }
            self.remove_at(spot.dir(), name, leaf, Victim::NotDir)
        })
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOTEMPTY; ENOTDIR; EINVAL for a path that ends in `.`; EBUSY for the root; those of
    /// [`View::remove_file`].
    pub fn remove_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        during("rmdir", path.as_ref(), |path| {
            let spot = self.resolve(path, Follow::Never)?;
            let name = spot.name(match spot.last {
                super::path::Last::DotDot => libc::ENOTEMPTY,
                super::path::Last::Dot => libc::EINVAL,
                _ => libc::EBUSY,
            })?;
            self.writable()?;
            let leaf = spot.leaf.as_ref().ok_or(Error::from_errno(libc::ENOENT))?;
            self.remove_at(spot.dir(), name, leaf, Victim::Dir)
        })
    }

    fn remove_at(&self, dir: &Here, name: &[u8], leaf: &Here, victim: Victim) -> Result<()> {
        let expected = match victim {
            Victim::Dir => Expected::Dir,
            Victim::NotDir => Expected::NotDir,
        };
        self.may_remove(dir, leaf, expected)?;
        self.overlay.remove(dir.node(), name, victim)
    }

    fn may_remove(&self, dir: &Here, leaf: &Here, expected: Expected) -> Result<()> {
        let acl = self.acl_of(dir.node(), &dir.attr)?;
        may_delete(&dir.attr, acl.as_ref(), &leaf.attr, &self.who, expected)
    }

    /// Removes a directory with all it holds, or a name that is no directory; symlinks are removed, not
    /// followed.
    ///
    /// # Errors
    /// Those of [`View::remove_dir`] and [`View::read_dir`]; what was removed until then is gone.
    pub fn remove_dir_all(&self, path: impl AsRef<Path>) -> Result<()> {
        during("remove tree", path.as_ref(), |path| {
            let spot = self.resolve(path, Follow::Never)?;
            let name = spot.name(libc::EBUSY)?.to_vec();
            self.writable()?;
            let leaf = spot.leaf.as_ref().ok_or(Error::from_errno(libc::ENOENT))?;
            if !leaf.is_dir() {
                if spot.slash {
                    return Err(Error::from_errno(libc::ENOTDIR));
                }
                return self.remove_at(spot.dir(), &name, leaf, Victim::NotDir);
            }
            self.empty(self.look(spot.dir(), &name)?)?;
            self.remove_at(spot.dir(), &name, leaf, Victim::Dir)
        })
    }

    /// Removes all that a directory holds, without recursion: a tree may be deep.
    fn empty(&self, top: Here) -> Result<()> {
        let names = self.list(&top)?;
        let mut open = vec![(top, Vec::new(), names)];
        while let Some((dir, _, names)) = open.last_mut() {
            if let Some(name) = names.pop() {
                let child = match self.look(dir, &name) {
                    Err(e) if e.errno() == libc::ENOENT => continue,
                    other => other?,
                };
                if child.is_dir() {
                    let names = self.list(&child)?;
                    open.push((child, name, names));
                } else {
                    self.remove_at(dir, &name, &child, Victim::NotDir)?;
                }
                continue;
            }
            let done = open.pop();
            if let (Some((dir, name, _)), Some((parent, ..))) = (done, open.last()) {
                self.remove_at(parent, &name, &dir, Victim::Dir)?;
            }
        }
        Ok(())
    }

    /// Renames; `target` says what happens to what is at `to`.
    ///
    /// # Errors
    /// Those of `rename(2)` and `renameat2(2)`: EACCES and EPERM as for removing and making the two names,
    /// and EACCES to move a directory that the caller may not write elsewhere; ENOTEMPTY; EISDIR and ENOTDIR;
    /// EINVAL for a directory into itself; EEXIST for [`Target::MustNotExist`]; EBUSY for `.`, `..` and the
    /// root; EXDEV for a directory of a lower layer if redirects are off; those of [`View::metadata`].
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>, target: Target) -> Result<()> {
        let to = to.as_ref().as_os_str().as_bytes();
        during("rename", from.as_ref(), |from| {
            let from = self.resolve(from, Follow::Never)?;
            let to = self.resolve(to, Follow::Never)?;
            let no_name = if target == Target::MustNotExist { libc::EEXIST } else { libc::EBUSY };
            let names = (from.name(libc::EBUSY)?, to.name(no_name)?);
            self.writable()?;
            let source = from.leaf.as_ref().ok_or(Error::from_errno(libc::ENOENT))?;
            check_rename(&from, source, &to, target)?;
            if to.leaf.as_ref().is_some_and(|leaf| leaf.attr.ino == source.attr.ino) {
                return Ok(());
            }
            self.may_rename(&from, source, &to, target)?;
            let ends =
                (End { dir: from.dir().node(), name: names.0 }, End { dir: to.dir().node(), name: names.1 });
            self.overlay.rename(ends.0, ends.1, target)
        })
    }

    /// # Source
    /// The first half of `vfs_rename` of Linux.
    fn may_rename(&self, from: &Spot, source: &Here, to: &Spot, target: Target) -> Result<()> {
        self.may_remove(from.dir(), source, Expected::Any)?;
        match &to.leaf {
            None => self.may(to.dir(), Access::WRITE.union(Access::EXECUTE))?,
            Some(leaf) => {
                let expected = match target {
                    Target::Exchange => Expected::Any,
                    _ if source.is_dir() => Expected::Dir,
                    _ => Expected::NotDir,
                };
                self.may_remove(to.dir(), leaf, expected)?;
            }
        }
        if from.dir().attr.ino == to.dir().attr.ino {
            return Ok(());
        }
        // Their `..` changes.
        if source.is_dir() {
            self.may(source, Access::WRITE)?;
        }
        match &to.leaf {
            Some(leaf) if target == Target::Exchange && leaf.is_dir() => self.may(leaf, Access::WRITE),
            _ => Ok(()),
        }
    }

    /// The entries of a directory with their attributes, sorted by name; symlinks on the way are followed.
    ///
    /// # Errors
    /// ENOTDIR; EACCES for who may not read and search it; those of [`View::metadata`], of the directory and of
    /// every name in it.
    pub fn read_dir(&self, path: impl AsRef<Path>) -> Result<Vec<DirEntry>> {
        during("read directory", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            self.expect_dir(&here, Access::READ.union(Access::EXECUTE))?;
            let mut entries = self.overlay.names(here.node())?;
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            let entry = |(name, attr): (Vec<u8>, Result<Attr>)| match attr {
                Ok(attr) => Ok(DirEntry { name: OsString::from_vec(name), attr }),
                Err(e) => Err(e.during("look at", name.escape_ascii().to_string())),
            };
            entries.into_iter().map(entry).collect()
        })
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    /// As [`View::read_dir`] for the directory, but who may only read it sees its names.
    pub fn names(&self, path: impl AsRef<Path>) -> Result<Vec<OsString>> {
        during("read directory", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            self.expect_dir(&here, Access::READ)?;
            let mut names: Vec<OsString> = self
                .overlay
                .names(here.node())?
                .into_iter()
                .map(|(name, _)| OsString::from_vec(name))
                .collect();
            names.sort();
            Ok(names)
        })
    }

    pub(super) fn expect_dir(&self, here: &Here, want: Access) -> Result<()> {
        if !here.is_dir() {
            return Err(Error::from_errno(libc::ENOTDIR));
        }
        self.may(here, want)
    }

    /// The names in a directory, the last one first; for who takes them from the end.
    pub(super) fn list(&self, dir: &Here) -> Result<Vec<Vec<u8>>> {
        self.expect_dir(dir, Access::READ.union(Access::EXECUTE))?;
        let mut names: Vec<Vec<u8>> =
            self.overlay.names(dir.node())?.into_iter().map(|(name, _)| name).collect();
        names.sort_by(|a, b| b.cmp(a));
        Ok(names)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL if it is none; those of [`View::metadata`].
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<OsString> {
        during("read link", path.as_ref(), |path| {
            let here = self.find(path, Follow::No)?;
            Ok(OsString::from_vec(self.overlay.read_link(here.node())?))
        })
    }
}

/// The rules of a rename that stand before those of permission.
///
/// # Source
/// `do_renameat2` of Linux.
fn check_rename(from: &Spot, source: &Here, to: &Spot, target: Target) -> Result<()> {
    let fail = |errno| Err(Error::from_errno(errno));
    match (&to.leaf, target) {
        (Some(_), Target::MustNotExist) => return fail(libc::EEXIST),
        (None, Target::Exchange) => return fail(libc::ENOENT),
        (Some(leaf), Target::Exchange) if !leaf.is_dir() && to.slash => return fail(libc::ENOTDIR),
        _ => {}
    }
    let is_dir = source.is_dir();
    if !is_dir && (from.slash || to.slash && target != Target::Exchange) {
        return fail(libc::ENOTDIR);
    }
    if is_dir && to.trail.leads_through(source.node()) {
        return fail(libc::EINVAL);
    }
    if to.leaf.as_ref().is_some_and(|leaf| leaf.is_dir() && from.trail.leads_through(leaf.node())) {
        return fail(if target == Target::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
    }
    Ok(())
}

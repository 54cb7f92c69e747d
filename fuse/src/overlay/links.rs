//! Hard links through copy-up: names of one lower inode stay one inode.
//!
//! When a file with several names is copied up, all its names that the merged tree shows are made to point to
//! the copy. So what one name changes the others show: in this mount, at the next one, when the upper layer has
//! become a lower one, and when the kernel's overlayfs mounts it. The copy has the content of the original
//! when the names are linked, so a crash between two of them loses nothing.
//!
//! Other names are looked for in the same directory first, where nearly all of them are. Only if some are
//! missing the layer is searched, once per mount.

use super::Overlay;
use super::lookup::Resolved;
use super::place::dir_part;
use crate::error::{Error, Result};
use crate::inode::node::{At, LowerFile, Node};
use crate::layer::entry::{DirContext, LayerEntry};
use crate::layer::marks::Redirect;
use crate::layer::read::read_marks;
use crate::layer::source::{LayerPath, LayerSource, child_path};
use crate::sys::dir::RawName;
use crate::sys::node::RenameMode;
use crate::sys::open::DirMode;
use crate::sys::stat::Stat;
use crate::sys::{self, Place};
use crate::types::{Ino, SetTime};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

/// A name in a layer.
type Name = (LayerPath, Box<[u8]>);

/// Which names of a layer share an inode.
type Census = HashMap<u64, Vec<Name>>;

/// The census of one layer, and where its directories lead, once somebody asked for it.
#[derive(Default)]
pub struct CensusCell(Mutex<Option<Arc<Census>>>, Mutex<Option<Arc<Redirects>>>);

/// Which directories of a layer show another one of the layers below: its path, and the other's.
pub(crate) type Redirects = Vec<(Vec<u8>, Vec<u8>)>;

/// How many paths are tried for one directory of a layer. Each layer can show it under a few at most.
const PATHS_MAX: usize = 64;

impl Overlay {
    /// Makes the other names of a lower inode point to its copy.
    ///
    /// A name that cannot be linked is left as it is; it is tried again when it is looked up.
    pub(crate) fn link_other_names(&self, node: &Arc<Node>, source: &LowerFile, stat: &Stat) {
        let Ok(names) = self.other_names(source, stat) else { return };
        for (dir, name) in names {
            let _ = self.link_lower_name(node, source.layer, &dir, &name, stat.ino);
        }
    }

    /// Finds another name of a lower inode whose name was removed, if the merged tree still shows one: a copy is
    /// made there then, and not without a name.
    pub(crate) fn find_other_name(&self, node: &Arc<Node>) {
        if !node.is_unlinked() {
            return;
        }
        let Ok((_, _, found)) = self.lower_found(node) else { return };
        let source = self.lower_file(node, &node.place.read());
        let (Ok(source), true) = (source, found.stat.nlink > 1) else { return };
        for (dir, name) in self.other_names(&source, &found.stat).unwrap_or_default() {
            let Ok(parent) = self.dir_at(source.layer, &dir) else { continue };
            // To look it up is to note it.
            if let Ok((other, _)) = self.lookup(&parent, &name) {
                self.put(other);
            }
            let ino = parent.ino;
            drop(parent);
            self.forget(ino, 1);
            if !node.is_unlinked() {
                return;
            }
        }
    }

    fn other_names(&self, source: &LowerFile, stat: &Stat) -> Result<Vec<Name>> {
        let layer = self.lower(source.layer)?;
        let mut names: Vec<Name> = Vec::new();
        layer.list(&source.dir, usize::MAX, &mut |raw| {
            if raw.ino == stat.ino && *raw.name != *source.name {
                names.push((Arc::clone(&source.dir), raw.name.into()));
            }
        })?;
        if names.len() + 1 >= stat.nlink as usize {
            return Ok(names);
        }
        let census = self.census(source.layer, layer)?;
        let is_source = |(dir, name): &Name| **dir == *source.dir && **name == *source.name;
        let all = census.get(&stat.ino).map(Vec::as_slice).unwrap_or_default();
        Ok(all.iter().filter(|n| !is_source(n)).cloned().collect())
    }

    fn census(&self, number: u16, layer: &dyn LayerSource) -> Result<Arc<Census>> {
        let stale = || Error::from_errno(libc::ESTALE);
        let mut cell = self.censuses.get(usize::from(number)).ok_or_else(stale)?.0.lock();
        if let Some(census) = &*cell {
            return Ok(Arc::clone(census));
        }
        let mut seen = HashSet::new();
        let mut shared = HashSet::new();
        walk(layer, &mut |_, ino, _| {
            if !seen.insert(ino) {
                shared.insert(ino);
            }
        })?;
        drop(seen);
        let mut census = Census::new();
        walk(layer, &mut |dir, ino, name| {
            if shared.contains(&ino) {
                census.entry(ino).or_default().push((Arc::clone(dir), name.into()));
            }
        })?;
        Ok(Arc::clone(cell.insert(Arc::new(census))))
    }

    /// Makes one name of a lower inode point to its copy, if the merged tree shows that name.
    fn link_lower_name(
        &self,
        node: &Arc<Node>,
        layer: u16,
        dir: &LayerPath,
        name: &[u8],
        real_ino: u64,
    ) -> Result<()> {
        let parent = self.dir_at(layer, dir)?;
        let linked = self.link_in(node, &parent, name, Some((layer, dir)), real_ino);
        let ino = parent.ino;
        drop(parent);
        self.forget(ino, 1);
        linked
    }

    fn link_in(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        expected: Option<(u16, &LayerPath)>,
        real_ino: u64,
    ) -> Result<()> {
        let upper = self.writable()?;
        let part = dir_part(parent)?;
        self.copy_up_dir(parent)?;
        let mut state = part.state.write();
        let resolved = self.resolve_present(parent, &state, name)?;
        let At::Lower(position) = resolved.at else { return Ok(()) };
        let lower = part.lowers.get(usize::from(position)).ok_or(Error::from_errno(libc::ESTALE))?;
        let is_expected = expected.is_none_or(|(layer, dir)| lower.layer == layer && lower.path == *dir);
        if resolved.found.stat.ino != real_ino || !is_expected {
            return Ok(());
        }
        let fd = self.upper_dir(parent)?;
        let times = sys::stat::stat(Place::dir(&fd))?;
        let mut place = node.place.write();
        if place.at != At::Upper || place.is_unlinked() {
            return Ok(());
        }
        // By way of the work directory: a link cannot replace what a layer of another dialect has there.
        let temp = upper.temp_name();
        self.with_upper_place(&place, |at| {
            self.mark_if_literal(upper, at, name)?;
            sys::node::link(at, upper.work(), &temp)
        })?;
        let renamed = sys::node::rename(upper.work(), &temp, fd.as_fd(), name, RenameMode::NoReplace);
        if renamed.is_err() {
            upper.delete_temp(&temp, node.kind);
        }
        renamed?;
        place.extra_mut().aliases.push((Arc::clone(parent), name.into()));
        drop(place);
        self.mark_impure(upper, &mut state.upper, fd.as_fd())?;
        let (atime, mtime) = (SetTime::At(times.atime), SetTime::At(times.mtime));
        sys::stat::set_times(Place::dir(&fd), Some(atime), Some(mtime))?;
        self.list_moved(&mut state, name);
        Ok(())
    }

    /// A name was found in a lower layer whose inode this mount copied up: links it now.
    pub(crate) fn heal_links(&self, dir: &Arc<Node>, name: &[u8], node: &Arc<Node>, resolved: &Resolved) {
        if matches!(resolved.at, At::Lower(_)) && !node.is_dir() && node.is_upper() {
            let _ = self.link_in(node, dir, name, None, resolved.found.stat.ino);
        }
    }

    /// The directory of the merged tree that is made of a directory of a layer; the caller forgets it once.
    fn dir_at(&self, layer: u16, path: &LayerPath) -> Result<Arc<Node>> {
        let is_it = |node: &Node| {
            node.dir.as_ref().is_some_and(|d| {
                d.lowers.iter().any(|l| l.layer == layer && l.path == *path) && d.state.read().merged
            })
        };
        // A renamed directory is not where its path says, but then the outside knows it by its number.
        if let Some(known) = self.table.get(self.lower_dir_number(layer, path)?).filter(|n| is_it(n)) {
            known.nlookup.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Ok(known);
        }
        if let Some(found) = self.dir_by_path(path, &is_it) {
            return Ok(found);
        }
        let others = self.paths_shown(layer, path)?;
        let found = others.iter().find_map(|other| self.dir_by_path(other, &is_it));
        found.ok_or(Error::from_errno(libc::ENOENT))
    }

    /// The directory under a path of the merged tree, if it is the one that is looked for.
    fn dir_by_path(&self, path: &[u8], is_it: &dyn Fn(&Node) -> bool) -> Option<Arc<Node>> {
        let mut current = Arc::clone(&self.root);
        let forget = |node: Arc<Node>| {
            let ino = node.ino;
            drop(node);
            self.forget(ino, u64::from(ino != Ino::ROOT));
        };
        for name in path.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
            let next = self.lookup(&current, name);
            forget(current);
            current = next.ok()?.0;
        }
        if is_it(&current) {
            return Some(current);
        }
        forget(current);
        None
    }

    /// Under which paths the merged tree may show a directory of a layer: those that a directory was given which
    /// was renamed, in a layer above that one or in the upper one.
    fn paths_shown(&self, layer: u16, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut paths = vec![path.to_vec()];
        for above in (0..layer).rev() {
            follow(&mut paths, &*self.redirects(above)?);
        }
        follow(&mut paths, &*self.upper_redirects()?);
        Ok(paths)
    }

    fn redirects(&self, number: u16) -> Result<Arc<Redirects>> {
        let layer = self.lower(number)?;
        let stale = || Error::from_errno(libc::ESTALE);
        let mut cell = self.censuses.get(usize::from(number)).ok_or_else(stale)?.1.lock();
        if let Some(known) = &*cell {
            return Ok(Arc::clone(known));
        }
        let found = find_redirects(
            |dir, each| layer.list(dir, usize::MAX, each).map(drop),
            |dir, name| match layer.entry(dir, DirContext::default(), name)? {
                LayerEntry::Found(found) => Ok(found.marks.redirect),
                LayerEntry::Absent | LayerEntry::Whiteout => Ok(None),
            },
        )?;
        Ok(Arc::clone(cell.insert(Arc::new(found))))
    }

    fn upper_redirects(&self) -> Result<Arc<Redirects>> {
        let upper = self.writable()?;
        let mut cell = self.moved.lock();
        if let Some(known) = &*cell {
            return Ok(Arc::clone(known));
        }
        let open = |dir: &LayerPath| sys::open::open_dir_beneath(upper.root(), dir, DirMode::List);
        let found = find_redirects(
            |dir, each| sys::dir::list(open(dir)?.as_fd(), usize::MAX, each).map(drop),
            |dir, name| Ok(read_marks(Place::At(open(dir)?.as_fd(), name), None)?.redirect),
        )?;
        Ok(Arc::clone(cell.insert(Arc::new(found))))
    }

    /// A directory is about to get another name.
    pub(crate) fn forget_redirects(&self) {
        *self.moved.lock() = None;
    }
}

/// Adds the paths that a layer gives to what is under these paths in the layers below.
fn follow(paths: &mut Vec<Vec<u8>>, redirects: &Redirects) {
    for at in 0..paths.len() {
        for (path, target) in redirects {
            let rest = match paths.get(at).and_then(|p| p.strip_prefix(&target[..])) {
                Some(rest) if rest.is_empty() || rest.starts_with(b"/") => rest,
                _ => continue,
            };
            let shown = [path, rest].concat();
            if paths.len() < PATHS_MAX && !paths.contains(&shown) {
                paths.push(shown);
            }
        }
    }
}

/// The redirects of the directories of a layer, with the paths that they lead to.
fn find_redirects(
    list: impl Fn(&LayerPath, &mut dyn FnMut(RawName<'_>)) -> Result<()>,
    redirect: impl Fn(&LayerPath, &[u8]) -> Result<Option<Redirect>>,
) -> Result<Redirects> {
    let mut found = Redirects::new();
    let empty: LayerPath = Arc::from(&b""[..]);
    // Each directory, and what it shows of the layers below.
    let mut dirs = vec![(Arc::clone(&empty), empty)];
    while let Some((dir, below)) = dirs.pop() {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        list(&dir, &mut |raw| {
            if raw.kind == libc::DT_DIR {
                names.push(raw.name.into());
            }
        })?;
        for name in names {
            let path = child_path(&dir, &name);
            let target = match redirect(&dir, &name)? {
                Some(Redirect::Path(to)) => Arc::from(to),
                Some(Redirect::Name(to)) => child_path(&below, &to),
                None => child_path(&below, &name),
            };
            if path != target {
                found.push((path.to_vec(), target.to_vec()));
            }
            dirs.push((path, target));
        }
    }
    Ok(found)
}

/// Gives every name of a layer that is not a directory: its directory, its inode number, the name.
pub(crate) fn walk(layer: &dyn LayerSource, each: &mut dyn FnMut(&LayerPath, u64, &[u8])) -> Result<()> {
    let mut dirs: Vec<LayerPath> = vec![Arc::from(&b""[..])];
    while let Some(dir) = dirs.pop() {
        layer.list(&dir, usize::MAX, &mut |raw| {
            if raw.kind == libc::DT_DIR {
                dirs.push(child_path(&dir, raw.name));
            } else {
                each(&dir, raw.ino, raw.name);
            }
        })?;
    }
    Ok(())
}

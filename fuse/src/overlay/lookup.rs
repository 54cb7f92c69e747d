//! Names to inodes: asks the layers, lets [`crate::merge::lookup`] decide, and makes the node.

use super::place::dir_part;
use super::{Overlay, Renames};
use crate::error::{Error, Result};
use crate::inode::node::{
    At, DirPart, DirState, LowerDir, LowerFile, MarkFiles, Node, UpperDir, Whereabouts,
};
use crate::inode::table::Same;
use crate::layer::entry::{DirContext, Found, LayerEntry};
use crate::layer::marks::{self, Opaque, Redirect};
use crate::layer::probe::WhiteoutForm;
use crate::layer::read;
use crate::layer::source::{LayerPath, child_path, split_path};
use crate::merge::lookup::{Cursor, Lookup, Said};
use crate::sys::dir::Listed;
use crate::sys::open::DirMode;
use crate::sys::{self, Place};
use crate::types::{Attr, Ino, Kind, check_name};
use parking_lot::RwLock;
use std::os::fd::AsFd;
use std::sync::Arc;

/// What a name turned out to be.
pub(crate) enum Resolution {
    /// It does not exist in the merged tree.
    Absent {
        /// The upper layer has a whiteout under that very name.
        whiteout: bool,
    },
    /// It does.
    Present(Box<Resolved>),
}

/// An entry of the merged tree that has no node yet.
pub(crate) struct Resolved {
    pub found: Found,
    pub at: At,
    /// For a directory: what it is merged from.
    pub lowers: Vec<LowerDir>,
    /// For a file with attributes only: its data.
    pub data: Option<LowerFile>,
}

/// Which layers are asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layers {
    All,
    OnlyLower,
}

/// What an asked layer has under a name, and where.
struct Hit {
    entry: LayerEntry,
    dir: LayerPath,
    name: Box<[u8]>,
    /// The layers below are to look for this path: a directory on the way was renamed.
    retarget: Option<Vec<u8>>,
    /// Nothing below counts any more.
    last: bool,
}

impl Overlay {
    /// Looks up `name` in the directory `dir`; the outside knows the result once more.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENAMETOOLONG; EIO for a file whose data is missing.
    pub fn lookup(&self, dir: &Arc<Node>, name: &[u8]) -> Result<(Arc<Node>, Attr)> {
        let part = dir_part(dir)?;
        if name.len() > crate::types::NAME_MAX {
            return Err(Error::from_errno(libc::ENAMETOOLONG));
        }
        check_name(name).map_err(|_| Error::from_errno(libc::ENOENT))?;
        let node;
        let resolved;
        {
            self.learn_names(part)?;
            let state = part.state.read();
            resolved = self.resolve_present(dir, &state, name)?;
            node = self.node_of(dir, name, &resolved);
        }
        self.heal_links(dir, name, &node, &resolved);
        match self.attr_of(&node, &resolved) {
            Ok(attr) => Ok((node, attr)),
            Err(e) => {
                self.put(node);
                Err(e)
            }
        }
    }

    pub(crate) fn resolve_present(&self, dir: &Node, state: &DirState, name: &[u8]) -> Result<Box<Resolved>> {
        match self.resolve(dir, state, name, Layers::All)? {
            Resolution::Present(resolved) => Ok(resolved),
            Resolution::Absent { .. } => Err(Error::from_errno(libc::ENOENT)),
        }
    }

    /// Reads the names of the lower directories, once, where that is worth it.
    pub(crate) fn learn_names(&self, part: &DirPart) -> Result<()> {
        if part.lowers.len() < 2 || part.state.read().names.is_some() {
            return Ok(());
        }
        let names = Arc::new(self.read_lower_names(&part.lowers)?);
        part.state.write().names.get_or_insert(names);
        Ok(())
    }

    /// Finds out what `name` is. The caller holds the lock of the directory.
    pub(crate) fn resolve(
        &self,
        dir: &Node,
        state: &DirState,
        name: &[u8],
        layers: Layers,
    ) -> Result<Resolution> {
        if state.removed {
            return Err(Error::from_errno(libc::ENOENT));
        }
        let mut search = Search { lookup: Lookup::new(name), top: None, lowers: Vec::new(), data: None };
        let mut whiteout = false;
        let mut go_on = true;
        let mut upper_is_dir = false;
        if let (Some(upper), Layers::All) = (&state.upper, layers) {
            let fd = self.upper_dir(dir)?;
            let (said, found, stop) = self.ask_upper(fd.as_fd(), upper, state.merged, name)?;
            whiteout =
                said == Said::Whiteout && self.writable()?.abilities().whiteout == WhiteoutForm::Device;
            let verdict = search.lookup.hear(&said);
            go_on = verdict.go_on && !stop;
            if let (true, Some(found)) = (verdict.takes_part, found) {
                upper_is_dir = found.kind() == Kind::Dir;
                search.top = Some((found, At::Upper));
            }
        }
        // A redirect leads to the layers below even from a directory that has none of its own.
        let is_elsewhere = matches!(search.lookup.cursor(), Cursor::Path(_));
        if go_on && (state.merged || is_elsewhere) {
            let upper_opaque = |me: &Self| -> Result<bool> {
                if !upper_is_dir {
                    return Ok(false);
                }
                let fd = me.upper_dir(dir)?;
                let inner = sys::open::open_dir_at(fd.as_fd(), name, DirMode::Base)?;
                read::is_mark_file(inner.as_fd(), marks::OPAQUE_FILE)
            };
            self.resolve_lowers(dir, state, &mut search, upper_opaque)?;
        }
        search.finish(whiteout)
    }

    /// What the upper layer says, what it has, and whether the layers below are hidden for this name.
    fn ask_upper(
        &self,
        fd: std::os::fd::BorrowedFd<'_>,
        upper: &UpperDir,
        merged: bool,
        name: &[u8],
    ) -> Result<(Said, Option<Found>, bool)> {
        let overrides = self.writable()?.overrides();
        let entry = read::read_entry(fd, upper.context, overrides, name)?;
        let is_mark = |entry: &LayerEntry| matches!(entry, LayerEntry::Found(f) if f.kind() == Kind::File && f.stat.size == 0);
        if name.starts_with(marks::WHITEOUT_PREFIX) && is_mark(&entry) && read::is_mark_file(fd, name)? {
            return Ok((Said::Absent, None, false));
        }
        let may_be_hidden = merged && self.upper_mark_files(fd, upper)? == MarkFiles::Some;
        let hidden = may_be_hidden
            && match marks::aufs_whiteout(name) {
                Some(marker) => read::is_mark_file(fd, &marker)?,
                None => false,
            };
        let said = match self.said(&entry) {
            Said::Absent if hidden => Said::Whiteout,
            said => said,
        };
        let found = match entry {
            LayerEntry::Found(found) => Some(*found),
            LayerEntry::Absent | LayerEntry::Whiteout => None,
        };
        let stop = hidden && !found.as_ref().is_some_and(leads_away);
        Ok((said, found, stop))
    }

    /// Whether an upper directory may hold `.wh.` files: known for those that this mount made, looked up once
    /// for those it found.
    fn upper_mark_files(&self, fd: std::os::fd::BorrowedFd<'_>, upper: &UpperDir) -> Result<MarkFiles> {
        if let Some(known) = upper.mark_files.get() {
            return Ok(*known);
        }
        let mut answer = self.new_mark_files()?;
        let list = sys::open::open_dir_at(fd, b".", DirMode::List)?;
        let listed = sys::dir::list(list.as_fd(), 1, &mut |raw| {
            if raw.name.starts_with(marks::WHITEOUT_PREFIX) {
                answer = MarkFiles::Some;
            }
        })?;
        if listed == Listed::Partly {
            answer = MarkFiles::Some;
        }
        Ok(*upper.mark_files.get_or_init(|| answer))
    }

    /// Whether directories that this mount makes may come to hold `.wh.` files.
    pub(crate) fn new_mark_files(&self) -> Result<MarkFiles> {
        Ok(match self.writable()?.abilities().whiteout {
            WhiteoutForm::Device => MarkFiles::None,
            WhiteoutForm::File => MarkFiles::Some,
        })
    }

    fn said(&self, entry: &LayerEntry) -> Said {
        let follow = self.settings.renames != Renames::RefuseAndIgnore;
        let redirect = |r: &Option<Redirect>| r.clone().filter(|_| follow);
        match entry {
            LayerEntry::Absent => Said::Absent,
            LayerEntry::Whiteout => Said::Whiteout,
            LayerEntry::Found(found) => match found.kind() {
                Kind::Dir => Said::Dir(found.marks.opaque, redirect(&found.marks.redirect)),
                Kind::File if found.marks.metacopy => Said::Metacopy(redirect(&found.marks.redirect)),
                _ => Said::File,
            },
        }
    }

    /// Asks the lower layers, from the top, until the search is over.
    fn resolve_lowers(
        &self,
        dir: &Node,
        state: &DirState,
        search: &mut Search<'_>,
        upper_opaque: impl Fn(&Self) -> Result<bool>,
    ) -> Result<()> {
        let part = dir_part(dir)?;
        let mut next_layer: u16 = 0;
        let mut position = 0;
        let mut hints = None;
        let count = u16::try_from(self.lowers.len()).unwrap_or(u16::MAX);
        loop {
            let cursor = search.lookup.cursor().clone();
            let (layer, at, hit) = match &cursor {
                Cursor::Name(name) => {
                    if hints.is_none() {
                        hints = Some(self.hints(part, state, name));
                    }
                    let all = hints.as_deref().unwrap_or_default();
                    let Some(&(at, hint)) = all.iter().find(|(at, _)| *at >= position) else { break };
                    position = at + 1;
                    let Some(lower) = part.lowers.get(usize::from(at)) else { break };
                    next_layer = lower.layer + 1;
                    (lower.layer, at, self.ask_lower(lower, name, hint)?)
                }
                Cursor::Path(path) => {
                    if next_layer >= count {
                        break;
                    }
                    let layer = next_layer;
                    next_layer += 1;
                    (layer, 0, self.ask_lower_path(layer, path)?)
                }
            };
            let Some(hit) = hit else { continue };
            let said = self.said(&hit.entry);
            if matches!(said, Said::Dir(..))
                && search.has_dir()
                && self.is_opaque_by_file(search, &upper_opaque)?
            {
                break;
            }
            let verdict = search.lookup.hear(&said);
            if verdict.moved {
                hints = None;
            }
            if let Some(path) = &hit.retarget {
                search.lookup.retarget(path);
            }
            let last = hit.last;
            if verdict.takes_part {
                search.take(layer, at, hit);
            }
            if !verdict.go_on || last {
                break;
            }
        }
        Ok(())
    }

    fn hints(&self, part: &DirPart, state: &DirState, name: &[u8]) -> Vec<(u16, super::index::Hint)> {
        match &state.names {
            Some(names) => names.hints(self.name_hash(name), part.lowers.len()).collect(),
            None => {
                let last = part.lowers.len().saturating_sub(1);
                (0..part.lowers.len())
                    .map(|at| {
                        let hint =
                            super::index::Hint { ask: true, hides: false, ask_for_mark_file: at < last };
                        (u16::try_from(at).unwrap_or(u16::MAX), hint)
                    })
                    .collect()
            }
        }
    }

    /// True if the last directory that was found hides those below by a file, as AUFS and OCI layers do.
    fn is_opaque_by_file(&self, search: &Search<'_>, upper: &impl Fn(&Self) -> Result<bool>) -> Result<bool> {
        match search.lowers.last() {
            Some(dir) => self.lower(dir.layer)?.has_mark_file(&dir.path, marks::OPAQUE_FILE),
            None => upper(self),
        }
    }

    /// Asks one lower directory of the parent.
    fn ask_lower(&self, lower: &LowerDir, name: &[u8], hint: super::index::Hint) -> Result<Option<Hit>> {
        let layer = self.lower(lower.layer)?;
        let mut entry = LayerEntry::Absent;
        if hint.ask {
            entry = layer.entry(&lower.path, lower.context, name)?;
            let looks_like_mark = name.starts_with(marks::WHITEOUT_PREFIX);
            if looks_like_mark && layer.has_mark_file(&lower.path, name)? {
                entry = LayerEntry::Absent;
            }
        }
        let mut last = hint.hides;
        let marker = marks::aufs_whiteout(name).filter(|_| hint.ask_for_mark_file);
        if let (Some(marker), false) = (marker, entry == LayerEntry::Whiteout) {
            last |= layer.has_mark_file(&lower.path, &marker)?;
        }
        if last && entry == LayerEntry::Absent {
            entry = LayerEntry::Whiteout;
        }
        if entry == LayerEntry::Absent {
            return Ok(None);
        }
        last &= !matches!(&entry, LayerEntry::Found(found) if leads_away(found));
        let dir = Arc::clone(&lower.path);
        Ok(Some(Hit { entry, dir, name: name.into(), retarget: None, last }))
    }

    /// Asks a layer about a path from its root, one component after the other.
    fn ask_lower_path(&self, number: u16, path: &[u8]) -> Result<Option<Hit>> {
        let layer = self.lower(number)?;
        let mut context = layer.root()?.marks.context();
        let mut dir: LayerPath = Arc::from(&b""[..]);
        let mut below: Option<Vec<u8>> = None;
        let mut last = false;
        let (_, final_name) = split_path(path);
        let mut rest = path;
        loop {
            let (name, after) = match rest.iter().position(|&b| b == b'/') {
                Some(at) => (&rest[..at], &rest[at + 1..]),
                None => (rest, &[][..]),
            };
            let entry = layer.entry(&dir, context, name)?;
            let hidden = |me: &Self| -> Result<bool> {
                match marks::aufs_whiteout(name) {
                    Some(marker) if usize::from(number) + 1 < me.lowers.len() => {
                        layer.has_mark_file(&dir, &marker)
                    }
                    _ => Ok(false),
                }
            };
            let retarget = below.as_ref().map(|b| child_bytes(b, rest));
            let stop = |last| {
                Some(Hit {
                    entry: LayerEntry::Whiteout,
                    dir: Arc::clone(&dir),
                    name: final_name.into(),
                    retarget: None,
                    last,
                })
            };
            match entry {
                LayerEntry::Whiteout => return Ok(stop(true)),
                LayerEntry::Absent => {
                    if hidden(self)? {
                        return Ok(stop(true));
                    }
                    if let Some(path) = retarget {
                        // The layer adds nothing, but what is below has another name.
                        return Ok(Some(Hit {
                            entry: LayerEntry::Absent,
                            dir,
                            name: name.into(),
                            retarget: Some(path),
                            last,
                        }));
                    }
                    return Ok(last.then(|| stop(true)).flatten());
                }
                LayerEntry::Found(found) if after.is_empty() => {
                    last = !leads_away(&found) && (last || hidden(self)?);
                    // Its own redirect counts more than those on the way.
                    let retarget = match (&found.marks.redirect, &below) {
                        (Some(Redirect::Path(_)), _) => None,
                        (Some(Redirect::Name(to)), Some(below)) => Some(child_bytes(below, to)),
                        _ => retarget,
                    };
                    let entry = LayerEntry::Found(found);
                    return Ok(Some(Hit { entry, dir, name: name.into(), retarget, last }));
                }
                LayerEntry::Found(found) => {
                    if found.kind() != Kind::Dir {
                        return Ok(stop(true));
                    }
                    let is_opaque = |me: &Self| -> Result<bool> {
                        Ok(found.marks.opaque == Opaque::Yes
                            || usize::from(number) + 1 < me.lowers.len()
                                && layer.has_mark_file(&child_path(&dir, name), marks::OPAQUE_FILE)?)
                    };
                    last = !leads_away(&found) && (last || is_opaque(self)? || hidden(self)?);
                    match &found.marks.redirect {
                        Some(Redirect::Path(to)) => below = Some(to.to_vec()),
                        Some(Redirect::Name(to)) => {
                            let (parent, _) = split_path(below.as_deref().unwrap_or_default());
                            below = Some(child_bytes(parent, to));
                        }
                        None => {
                            if let Some(b) = &mut below {
                                *b = child_bytes(b, name);
                            }
                        }
                    }
                    context = found.marks.context();
                    dir = child_path(&dir, name);
                    rest = after;
                }
            }
        }
    }

    // Nodes ------------------------------------------------------------------------------------------------

    /// The number that a found file shows.
    pub(crate) fn number_of(&self, found: &Found) -> Ino {
        let origin = found.marks.origin.as_ref().and_then(|o| self.numbers.of_origin(o));
        origin.unwrap_or_else(|| self.numbers.number(found.stat.dev, found.stat.ino))
    }

    /// The node of an entry; the outside knows it once more. The caller holds the lock of the directory.
    pub(crate) fn node_of(&self, dir: &Arc<Node>, name: &[u8], resolved: &Resolved) -> Arc<Node> {
        let (dev, ino) = (resolved.found.stat.dev, resolved.found.stat.ino);
        let mut number = self.number_of(&resolved.found);
        loop {
            let same = |node: &Node| is_same(node, resolved);
            let make = || self.new_node(number, dir, name, resolved);
            if let Some(node) = self.table.remember(number, same, make) {
                self.note_name(&node, dir, name, resolved);
                return node;
            }
            // The number belongs to somebody else: a broken hard link group, or a foreign origin mark.
            let own = self.numbers.number(dev, ino);
            number = if number == own { self.numbers.alternative(dev, ino) } else { own };
        }
    }

    fn new_node(&self, ino: Ino, parent: &Arc<Node>, name: &[u8], resolved: &Resolved) -> Node {
        let kind = resolved.found.kind();
        let mut place = Whereabouts {
            parent: Some(Arc::clone(parent)),
            name: name.into(),
            at: resolved.at,
            real_ino: resolved.found.stat.ino,
            extra: None,
        };
        if let Some(data) = &resolved.data {
            place.extra_mut().data = Some(data.clone());
        }
        let dir = (kind == Kind::Dir).then(|| {
            let context = resolved.found.marks.context();
            let upper = (resolved.at == At::Upper).then(|| UpperDir { context, ..UpperDir::default() });
            let merged = !resolved.lowers.is_empty();
            let state = DirState { upper, merged, ..DirState::default() };
            DirPart { lowers: resolved.lowers.clone().into(), state: RwLock::new(state) }
        });
        Node::new(ino, kind, place, dir)
    }

    /// Remembers that a known node has this name too.
    fn note_name(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8], resolved: &Resolved) {
        if node.is_dir() {
            return;
        }
        {
            let place = node.place.read();
            let is_here = place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, dir)) && *place.name == *name;
            if is_here && !place.is_unlinked() && place.pinned().is_none() {
                return;
            }
        }
        let mut place = node.place.write();
        let lost = place.is_unlinked() || place.pinned().is_some();
        let same_layers =
            matches!((place.at, resolved.at), (At::Upper, At::Upper) | (At::Lower(_), At::Lower(_)));
        if lost && same_layers {
            let old =
                (place.parent.replace(Arc::clone(dir)), std::mem::replace(&mut place.name, name.into()));
            place.at = resolved.at;
            let extra = place.extra_mut();
            extra.unlinked = false;
            let pinned = extra.pinned.take();
            drop(place);
            drop((old, pinned));
        } else if same_layers {
            let extra = place.extra_mut();
            let known = |(d, n): &(Arc<Node>, Box<[u8]>)| Arc::ptr_eq(d, dir) && **n == *name;
            if !extra.aliases.iter().any(known) {
                extra.aliases.push((Arc::clone(dir), name.into()));
            }
        }
    }

    /// The attributes of a node that was just resolved.
    pub(crate) fn attr_of(&self, node: &Arc<Node>, resolved: &Resolved) -> Result<Attr> {
        // A node that is elsewhere by now, or whose data is elsewhere, is asked itself.
        if resolved.data.is_some() || node.place.read().at != resolved.at {
            return self.attributes(node);
        }
        Ok(self.attr_from(node, &resolved.found.stat))
    }

    /// The node and the attributes of a file that was just made in the upper layer.
    pub(crate) fn adopt(&self, dir: &Arc<Node>, name: &[u8], found: Found) -> (Arc<Node>, Attr) {
        let resolved = Resolved { found, at: At::Upper, lowers: Vec::new(), data: None };
        let node = self.node_of(dir, name, &resolved);
        if let Some(part) = &node.dir {
            let mut state = part.state.write();
            if let (Some(upper), Ok(known)) = (&mut state.upper, self.new_mark_files()) {
                let _ = upper.mark_files.set(known);
            }
        }
        let attr = self.attr_from(&node, &resolved.found.stat);
        (node, attr)
    }

    /// Reads what the upper directory at `place` says about a name that must be there.
    pub(crate) fn read_upper(&self, place: Place<'_>, context: DirContext) -> Result<Found> {
        let stat = sys::stat::stat(place)?;
        match read::judge_at(place, stat, context, self.writable()?.overrides())? {
            LayerEntry::Found(found) => Ok(*found),
            LayerEntry::Absent | LayerEntry::Whiteout => Err(Error::from_errno(libc::EIO)),
        }
    }
}

/// True for a directory, or a file whose data is below, that shows another path of the layers below, whatever hides
/// those under its own: a file `.wh.NAME` beside it, too.
///
/// # Source
/// `ovl_check_redirect` of the kernel: an absolute redirect takes back the stop of an ancestor, not its own.
fn leads_away(found: &Found) -> bool {
    found.marks.opaque != Opaque::Yes && matches!(found.marks.redirect, Some(Redirect::Path(_)))
}

fn child_bytes(dir: &[u8], rest: &[u8]) -> Vec<u8> {
    if dir.is_empty() { rest.to_vec() } else { [dir, b"/", rest].concat() }
}

/// Whether a node that has the number of an entry is that entry.
fn is_same(node: &Node, resolved: &Resolved) -> Same {
    let place = node.place.read();
    let real = resolved.found.stat.ino;
    let same = node.kind == resolved.found.kind()
        && match (place.at, resolved.at) {
            (At::Upper, At::Upper) | (At::Lower(_), At::Lower(_)) => place.real_ino == real,
            (At::Upper, At::Lower(_)) => place.extra.as_ref().is_some_and(|e| e.copied_from == Some(real)),
            (At::Lower(_), At::Upper) => false,
        };
    if same { Same::Yes } else { Same::No }
}

/// A search on its way down the layers.
struct Search<'n> {
    lookup: Lookup<'n>,
    top: Option<(Found, At)>,
    lowers: Vec<LowerDir>,
    data: Option<LowerFile>,
}

impl Search<'_> {
    /// A directory was found already.
    fn has_dir(&self) -> bool {
        self.top.as_ref().is_some_and(|(found, _)| found.kind() == Kind::Dir)
    }

    /// Takes a layer into the result.
    fn take(&mut self, layer: u16, position: u16, hit: Hit) {
        let LayerEntry::Found(found) = hit.entry else { return };
        if found.kind() == Kind::Dir {
            // Layers with the same path share it.
            let path = match self.lowers.last() {
                Some(above) if path_is(&above.path, &hit.dir, &hit.name) => Arc::clone(&above.path),
                _ => child_path(&hit.dir, &hit.name),
            };
            self.lowers.push(LowerDir { path, layer, context: found.marks.context() });
        } else if self.top.is_some() {
            self.data = Some(LowerFile { layer, dir: hit.dir, name: hit.name });
        } else if found.marks.metacopy {
            // Its data comes from a layer below; until then nothing is known of it.
            self.data = None;
        }
        if self.top.is_none() {
            self.top = Some((*found, At::Lower(position)));
        }
    }

    fn finish(self, whiteout: bool) -> Result<Resolution> {
        let Some((found, at)) = self.top else { return Ok(Resolution::Absent { whiteout }) };
        if found.kind() == Kind::File && found.marks.metacopy && self.data.is_none() {
            return Err(Error::new(
                libc::EIO,
                "find data of metacopy file",
                "lower layers",
                "no layer below has it; the stack is incomplete",
            ));
        }
        Ok(Resolution::Present(Box::new(Resolved { found, at, lowers: self.lowers, data: self.data })))
    }
}

fn path_is(path: &[u8], dir: &[u8], name: &[u8]) -> bool {
    match path.strip_suffix(name) {
        Some(rest) if dir.is_empty() => rest.is_empty(),
        Some(rest) => rest.strip_suffix(b"/").is_some_and(|d| d == dir),
        None => false,
    }
}

//! Renaming, and swapping two names.
//!
//! Copies are made before any lock is taken. Then the rename lock keeps the shape of the tree still, the two
//! directories are locked (one above the other first), both ends are looked up again, marks are written, and
//! one rename of the disk does it, leaving a whiteout behind where a lower layer shows the old name. Marks
//! come before the rename: a redirect or an opaque mark on a directory that has not moved changes nothing.

use super::lookup::{Layers, Resolution, Resolved};
use super::place::dir_part;
use super::readdir::Taken;
use super::{Counters, Overlay, Renames};
use crate::copy_up::Want;
use crate::error::{Error, Result};
use crate::inode::node::{At, DirState, Node};
use crate::layer::marks::{self, Mark, Redirect};
use crate::layer::probe::WhiteoutForm;
use crate::layer::read::read_marks;
use crate::layer::source::split_path;
use crate::layer::upper::Upper;
use crate::sys::node::RenameMode;
use crate::sys::open::DirMode;
use crate::sys::{self, Place};
use crate::types::{Kind, SetTime, check_name};
use parking_lot::RwLockWriteGuard;
use std::os::fd::AsFd;
use std::sync::Arc;

/// What a rename does about what is under the new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// It is replaced.
    Replace,
    /// There must be nothing.
    MustNotExist,
    /// It gets the old name.
    Exchange,
}

/// One end of a rename.
#[derive(Clone, Copy)]
pub struct End<'a> {
    /// The directory.
    pub dir: &'a Arc<Node>,
    /// The name in it.
    pub name: &'a [u8],
}

/// How often a rename starts over because somebody else was at the same names.
const TRIES: usize = 16;

impl Overlay {
    /// Renames.
    ///
    /// # Errors
    /// As `renameat2(2)`; EXDEV for a directory of a lower layer if redirects are off.
    pub fn rename(&self, from: End<'_>, to: End<'_>, target: Target) -> Result<()> {
        check_name(from.name)?;
        check_name(to.name)?;
        self.writable()?;
        for _ in 0..TRIES {
            if let Some(done) = self.try_rename(from, to, target)? {
                return Ok(done);
            }
        }
        Err(Error::from_errno(libc::EAGAIN))
    }

    /// One try; `None` if the tree changed between the copies and the locks.
    fn try_rename(&self, from: End<'_>, to: End<'_>, target: Target) -> Result<Option<()>> {
        let source = self.peek(from)?.ok_or(Error::from_errno(libc::ENOENT))?;
        let victim = match self.peek(to) {
            Ok(victim) => victim,
            Err(e) => {
                self.put(source);
                return Err(e);
            }
        };
        let done = self.rename_nodes(from, to, target, &source, victim.as_ref());
        self.put(source);
        if let Some(victim) = victim {
            self.put(victim);
        }
        done
    }

    /// The node under a name, if there is one; the caller puts it back.
    fn peek(&self, end: End<'_>) -> Result<Option<Arc<Node>>> {
        let part = dir_part(end.dir)?;
        self.learn_names(part)?;
        let state = part.state.read();
        Ok(match self.resolve(end.dir, &state, end.name, Layers::All)? {
            Resolution::Present(resolved) => Some(self.node_of(end.dir, end.name, &resolved)),
            Resolution::Absent { .. } => None,
        })
    }

    pub(crate) fn put(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        self.forget(ino, 1);
    }

    fn rename_nodes(
        &self,
        from: End<'_>,
        to: End<'_>,
        target: Target,
        source: &Arc<Node>,
        victim: Option<&Arc<Node>>,
    ) -> Result<Option<()>> {
        self.check_rename(from, to, target, source, victim)?;
        if victim.is_some_and(|v| Arc::ptr_eq(v, source)) {
            return Ok(Some(()));
        }
        self.prepare(source)?;
        self.copy_up_dir(from.dir)?;
        self.copy_up_dir(to.dir)?;
        if let (Target::Exchange, Some(victim)) = (target, victim) {
            self.prepare(victim)?;
        }
        let _shape = self.rename_lock.lock();
        if source.is_dir() && is_above(source, to.dir) {
            return Err(Error::from_errno(libc::EINVAL));
        }
        if victim.is_some_and(|v| v.is_dir() && is_above(v, from.dir)) {
            let errno = if target == Target::Exchange { libc::EINVAL } else { libc::ENOTEMPTY };
            return Err(Error::from_errno(errno));
        }
        let mut states = Locked::lock(from.dir, to.dir)?;
        let Some(now) = self.look_again(from, states.from(), source)? else { return Ok(None) };
        let then = match self.resolve(to.dir, states.to(), to.name, Layers::All)? {
            Resolution::Present(found) => match victim {
                Some(victim) if self.is_node(victim, &found) => Some(found),
                _ => return Ok(None),
            },
            Resolution::Absent { .. } if victim.is_some() => return Ok(None),
            Resolution::Absent { .. } => None,
        };
        match (target, victim, then) {
            (Target::Exchange, Some(victim), Some(then)) => {
                if then.at != At::Upper {
                    return Ok(None);
                }
                self.exchange(from, to, source, victim, &mut states)?;
            }
            (_, Some(victim), Some(then)) => {
                self.replace(from, to, source, &now, Some((victim, &then)), &mut states)?;
            }
            _ => self.replace(from, to, source, &now, None, &mut states)?,
        }
        Ok(Some(()))
    }

    /// The rules of `rename(2)` that need no lock.
    fn check_rename(
        &self,
        from: End<'_>,
        to: End<'_>,
        target: Target,
        source: &Arc<Node>,
        victim: Option<&Arc<Node>>,
    ) -> Result<()> {
        let fail = |errno| Err(Error::from_errno(errno));
        match (target, victim) {
            (Target::MustNotExist, Some(_)) => return fail(libc::EEXIST),
            (Target::Exchange, None) => return fail(libc::ENOENT),
            _ => {}
        }
        if source.is_dir() && is_above(source, to.dir) {
            return fail(libc::EINVAL);
        }
        if let Some(victim) = victim.filter(|v| v.is_dir()) {
            if is_above(victim, from.dir) {
                return fail(if target == Target::Exchange { libc::EINVAL } else { libc::ENOTEMPTY });
            }
            if target == Target::Replace && !source.is_dir() {
                return fail(libc::EISDIR);
            }
            if target == Target::Replace && !Arc::ptr_eq(victim, source) {
                let part = dir_part(victim)?;
                if !self.is_empty_dir(victim, &part.state.read())? {
                    return fail(libc::ENOTEMPTY);
                }
            }
        } else if target == Target::Replace && victim.is_some() && source.is_dir() {
            return fail(libc::ENOTDIR);
        }
        Ok(())
    }

    /// Brings what is to be moved into the upper layer, in a form that can be moved.
    fn prepare(&self, node: &Arc<Node>) -> Result<()> {
        if !node.is_dir() {
            return self.copy_up(node, Want::Attributes);
        }
        let part = dir_part(node)?;
        if !part.state.read().merged {
            return self.copy_up_dir(node);
        }
        match self.settings.renames {
            Renames::Refuse | Renames::RefuseAndIgnore => Err(Error::from_errno(libc::EXDEV)),
            Renames::Redirect if self.writable()?.can_mark() => self.copy_up_dir(node),
            Renames::Redirect | Renames::Copy => self.copy_up_tree(node),
        }
    }

    /// Copies a whole directory up and cuts it off from the layers below.
    fn copy_up_tree(&self, top: &Arc<Node>) -> Result<()> {
        // Each directory is visited twice: on the way down to copy, on the way up to cut off.
        enum Visit {
            Down(Arc<Node>),
            Up(Arc<Node>),
        }
        let mut held = Vec::new();
        let mut todo = vec![Visit::Down(Arc::clone(top))];
        let mut walk = || -> Result<()> {
            while let Some(visit) = todo.pop() {
                match visit {
                    Visit::Down(dir) => {
                        self.copy_up_dir(&dir)?;
                        let mut children = Vec::new();
                        let mut after = 0;
                        let mut failed;
                        loop {
                            let before = children.len();
                            let mut broken = None;
                            failed = self.read_dir(&dir, after, &mut |entry| {
                                after = entry.position;
                                match entry.found {
                                    Ok((node, _)) => children.push(node),
                                    Err(e) => {
                                        broken = Some(e.error);
                                        return Taken::Full;
                                    }
                                }
                                Taken::Kept
                            });
                            failed = broken.map_or(failed, Err);
                            if failed.is_err() || children.len() == before {
                                break;
                            }
                        }
                        todo.push(Visit::Up(dir));
                        for child in children {
                            if !child.is_dir() {
                                if failed.is_ok() {
                                    failed = self.copy_up(&child, Want::Data);
                                }
                                self.put(child);
                            } else if dir_part(&child)?.state.read().merged {
                                held.push(Arc::clone(&child));
                                todo.push(Visit::Down(child));
                            } else {
                                self.put(child);
                            }
                        }
                        failed?;
                    }
                    Visit::Up(dir) => self.cut_off(&dir)?,
                }
            }
            Ok(())
        };
        let walked = walk();
        drop(todo);
        for node in held {
            self.put(node);
        }
        walked
    }

    /// Makes a directory opaque whose visible entries are all in the upper layer, and drops its whiteouts.
    fn cut_off(&self, dir: &Arc<Node>) -> Result<()> {
        let upper = self.writable()?;
        let part = dir_part(dir)?;
        let mut state = part.state.write();
        let fd = self.upper_dir(dir)?;
        let times = sys::stat::stat(Place::dir(&fd))?;
        upper.make_opaque(fd.as_fd())?;
        state.merged = false;
        let list = sys::open::open_dir_at(fd.as_fd(), b".", DirMode::List)?;
        let mut marks_found = Vec::new();
        sys::dir::list(list.as_fd(), usize::MAX, &mut |raw| {
            let may_be = raw.kind == libc::DT_CHR || raw.name.starts_with(marks::WHITEOUT_PREFIX);
            if may_be && raw.name != marks::OPAQUE_FILE {
                marks_found.push(raw.name.to_vec());
            }
        })?;
        for name in marks_found {
            let is_device = sys::stat::stat(Place::At(fd.as_fd(), &name))?.is_whiteout_device();
            if is_device || crate::layer::read::is_mark_file(fd.as_fd(), &name)? {
                sys::node::unlink(fd.as_fd(), &name)?;
            }
        }
        // Nothing that is shown has changed.
        let (atime, mtime) = (SetTime::At(times.atime), SetTime::At(times.mtime));
        sys::stat::set_times(Place::dir(&fd), Some(atime), Some(mtime))
    }

    fn is_node(&self, node: &Arc<Node>, resolved: &Resolved) -> bool {
        let place = node.place.read();
        place.real_ino == resolved.found.stat.ino && node.kind == resolved.found.kind()
            || self.number_of(&resolved.found) == node.ino
    }

    /// The source, if it is still what it was and ready to be moved.
    fn look_again(
        &self,
        from: End<'_>,
        state: &DirState,
        source: &Arc<Node>,
    ) -> Result<Option<Box<Resolved>>> {
        Ok(match self.resolve(from.dir, state, from.name, Layers::All)? {
            Resolution::Present(found) if found.at == At::Upper && self.is_node(source, &found) => {
                Some(found)
            }
            Resolution::Present(_) | Resolution::Absent { .. } => None,
        })
    }

    /// Notes where the layers below have what is about to move, unless it was moved before.
    fn set_redirect(&self, at: Place<'_>, path: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
        let upper = self.writable()?;
        let mut path = match read_marks(at, upper.overrides())?.redirect {
            Some(Redirect::Path(_)) => return Ok(()),
            Some(Redirect::Name(name)) => {
                let path = path()?;
                child(split_path(&path).0.to_vec(), &name)
            }
            None => path()?,
        };
        path.insert(0, b'/');
        upper.set_mark(at, Mark::Redirect, &path)
    }

    /// The path of a merged directory in the tree that the lower layers make together.
    ///
    /// That is what a redirect says, since each layer is asked for it in turn; the path in the layer that has
    /// the directory may be another, if a layer above that one renamed a directory on the way.
    fn path_below(&self, dir: &Arc<Node>) -> Result<Vec<u8>> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut current = Arc::clone(dir);
        let mut path = loop {
            let first = current.dir.as_ref().and_then(|d| d.lowers.first());
            if let Some(first) = first.filter(|l| l.layer == 0) {
                break first.path.to_vec();
            }
            let Ok((parent, mut name)) = self.named(&current) else { break Vec::new() };
            if current.is_upper() {
                let fd = self.upper_dir(&current)?;
                match read_marks(Place::dir(&fd), self.writable()?.overrides())?.redirect {
                    Some(Redirect::Path(path)) => break path.to_vec(),
                    Some(Redirect::Name(old)) => name = old,
                    None => {}
                }
            }
            names.push(name);
            current = parent;
        };
        for name in names.iter().rev() {
            path = child(path, name);
        }
        Ok(path)
    }

    /// Writes the marks that a file or directory needs under its new name.
    fn mark_for_move(
        &self,
        node: &Arc<Node>,
        from: End<'_>,
        to: End<'_>,
        below: bool,
        to_state: &mut DirState,
        from_is_impure: bool,
    ) -> Result<()> {
        let upper = self.writable()?;
        let to_fd = self.upper_dir(to.dir)?;
        if from_is_impure {
            self.mark_impure(upper, &mut to_state.upper, to_fd.as_fd())?;
        }
        if let Some(part) = &node.dir {
            let fd = self.upper_dir(node)?;
            let merged = part.state.read().merged;
            return match merged {
                true => self.set_redirect(Place::dir(&fd), || self.path_below(node)),
                false if below => upper.make_opaque(fd.as_fd()),
                false => Ok(()),
            };
        }
        if node.kind == Kind::Char {
            self.carry_escape(node, to_state, to_fd.as_fd())?;
        }
        if node.kind == Kind::File {
            let has_data_below = node.place.read().data().is_some();
            if has_data_below {
                let path = || Ok(child(self.path_below(from.dir)?, from.name));
                self.with_upper(node, |at| self.set_redirect(at, path))?;
            }
        }
        self.with_upper(node, |at| self.mark_if_literal(upper, at, to.name))
    }

    fn replace(
        &self,
        from: End<'_>,
        to: End<'_>,
        source: &Arc<Node>,
        now: &Resolved,
        victim: Option<(&Arc<Node>, &Resolved)>,
        states: &mut Locked<'_>,
    ) -> Result<()> {
        let upper = self.writable()?;
        let leaves_whiteout = self.shows_below(from.dir, states.from(), from.name)?;
        let below = self.shows_below(to.dir, states.to(), to.name)?;
        let impure = is_impure(states.from());
        self.mark_for_move(source, from, to, below, states.new_mut(), impure)?;
        let from_fd = self.upper_dir(from.dir)?;
        let to_fd = self.upper_dir(to.dir)?;
        let obstacle = match victim {
            Some(_) => super::create::Obstacle::None,
            None => self.obstacle(to.dir, states.to(), to.name)?,
        };
        let mut victim_state = match victim {
            Some((node, _)) if node.is_dir() => {
                let state = dir_part(node)?.state.write();
                if !self.is_empty_dir(node, &state)? {
                    return Err(Error::from_errno(libc::ENOTEMPTY));
                }
                Some(state)
            }
            _ => None,
        };
        let mut held = None;
        if let Some((node, found)) = victim.filter(|(_, found)| found.at == At::Upper) {
            if node.is_dir() {
                let fd = self.upper_dir(node)?;
                self.clear_dir(upper, to_fd.as_fd(), to.name)?;
                node.place.write().extra_mut().pinned = Some(fd);
            } else {
                held = self.pin_before_loss(node, to.dir, to.name, to_fd.as_fd(), found.found.stat.nlink)?;
            }
        }
        let whiteout_files = upper.abilities().whiteout == WhiteoutForm::File;
        // Such a file hides only what is below, so it may come first. If that is a part of the source, a redirect
        // leads there by now, whatever hides the name.
        let whiteout_first = leaves_whiteout && whiteout_files;
        if whiteout_first {
            upper.make_whiteout(from_fd.as_fd(), from.name)?;
        }
        // The rename has happened once the disk says so; what fails after that is told when all know of it.
        let mut finished = Ok(());
        let over_whiteout = obstacle == super::create::Obstacle::Whiteout && source.is_dir();
        if over_whiteout && upper.abilities().exchange {
            // The whiteout changes places with the directory: it may be just what the old name needs.
            sys::node::rename(from_fd.as_fd(), from.name, to_fd.as_fd(), to.name, RenameMode::Exchange)?;
            if !leaves_whiteout {
                finished = sys::node::unlink(from_fd.as_fd(), from.name);
            }
        } else {
            if over_whiteout {
                sys::node::unlink(to_fd.as_fd(), to.name)?;
            }
            let with_whiteout = leaves_whiteout && !whiteout_files && upper.abilities().rename_whiteout;
            let mode = if with_whiteout { RenameMode::Whiteout } else { RenameMode::Replace };
            let renamed = sys::node::rename(from_fd.as_fd(), from.name, to_fd.as_fd(), to.name, mode);
            if renamed.is_err() && whiteout_first {
                let _ = upper.remove_whiteout_file(from_fd.as_fd(), from.name);
            }
            renamed?;
            if leaves_whiteout && !whiteout_first && !with_whiteout {
                finished = upper.make_whiteout(from_fd.as_fd(), from.name);
            }
        }
        Counters::add(&self.counters.whiteouts, u64::from(leaves_whiteout));
        if obstacle == super::create::Obstacle::WhiteoutFile {
            finished = finished.and(upper.remove_whiteout_file(to_fd.as_fd(), to.name));
        }
        if let Some((node, found)) = victim {
            match (&mut victim_state, found.at) {
                (Some(state), _) => {
                    node.place.write().extra_mut().unlinked = true;
                    state.removed = true;
                    state.listing = None;
                    upper.dirs.remove(&node.ino);
                }
                (None, At::Upper) => {
                    self.lose_upper_name(node, to.dir, to.name, found.found.stat.nlink, held);
                }
                (None, At::Lower(_)) => self.lose_lower_name(node, to.dir, to.name, found.found.stat.nlink),
            }
        }
        drop(victim_state);
        let _ = now;
        move_name(source, from, to);
        if source.is_dir() {
            self.forget_redirects();
        }
        self.list_gone(states.old_mut(), from.name);
        self.list_made(states.new_mut(), to.name);
        finished
    }

    fn exchange(
        &self,
        from: End<'_>,
        to: End<'_>,
        source: &Arc<Node>,
        other: &Arc<Node>,
        states: &mut Locked<'_>,
    ) -> Result<()> {
        let below_to = self.shows_below(to.dir, states.to(), to.name)?;
        let below_from = self.shows_below(from.dir, states.from(), from.name)?;
        let (from_impure, to_impure) = (is_impure(states.from()), is_impure(states.to()));
        self.mark_for_move(source, from, to, below_to, states.new_mut(), from_impure)?;
        self.mark_for_move(other, to, from, below_from, states.old_mut(), to_impure)?;
        let (from_fd, to_fd) = (self.upper_dir(from.dir)?, self.upper_dir(to.dir)?);
        sys::node::rename(from_fd.as_fd(), from.name, to_fd.as_fd(), to.name, RenameMode::Exchange)?;
        move_name(source, from, to);
        move_name(other, to, from);
        if source.is_dir() || other.is_dir() {
            self.forget_redirects();
        }
        self.list_moved(states.old_mut(), from.name);
        self.list_moved(states.new_mut(), to.name);
        Ok(())
    }

    /// Makes an upper directory that shows nothing really empty, so that a rename can replace it.
    fn clear_dir(&self, upper: &Upper, parent: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let dir = sys::open::open_dir_at(parent, name, DirMode::List)?;
        let mut is_empty = true;
        sys::dir::list(dir.as_fd(), 1, &mut |_| is_empty = false)?;
        if is_empty {
            return Ok(());
        }
        // Opaque first: the whiteouts that go must not uncover anything, whatever is killed when.
        upper.make_opaque(dir.as_fd())?;
        crate::layer::upper::empty_dir(dir.as_fd())
    }
}

fn is_impure(state: &DirState) -> bool {
    state.upper.as_ref().is_some_and(|u| u.context.impure)
}

fn child(mut dir: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !dir.is_empty() {
        dir.push(b'/');
    }
    dir.extend_from_slice(name);
    dir
}

/// True if `above` is `node` or a directory above it. The caller holds the rename lock, or can stand an
/// answer that is out of date.
fn is_above(above: &Arc<Node>, node: &Arc<Node>) -> bool {
    let mut current = Some(Arc::clone(node));
    while let Some(node) = current {
        if Arc::ptr_eq(&node, above) {
            return true;
        }
        current = node.place.read().parent.clone();
    }
    false
}

/// Notes that a node has another name now.
fn move_name(node: &Arc<Node>, from: End<'_>, to: End<'_>) {
    let mut place = node.place.write();
    let is_main =
        place.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, from.dir)) && *place.name == *from.name;
    let mut old = None;
    if is_main {
        old = place.parent.replace(Arc::clone(to.dir));
        place.name = to.name.into();
    } else if let Some(extra) = &mut place.extra {
        for (dir, name) in &mut extra.aliases {
            if Arc::ptr_eq(dir, from.dir) && **name == *from.name {
                *dir = Arc::clone(to.dir);
                *name = to.name.into();
            }
        }
    }
    drop(place);
    drop(old);
}

/// The locks of both directories, or of the one.
struct Locked<'a> {
    from: RwLockWriteGuard<'a, DirState>,
    to: Option<RwLockWriteGuard<'a, DirState>>,
}

impl<'a> Locked<'a> {
    /// Locks in the order that all use: the upper one of two first, else by number.
    fn lock(from: &'a Arc<Node>, to: &'a Arc<Node>) -> Result<Locked<'a>> {
        let (source, target) = (&dir_part(from)?.state, &dir_part(to)?.state);
        if Arc::ptr_eq(from, to) {
            return Ok(Locked { from: source.write(), to: None });
        }
        let to_first = is_above(to, from) || (!is_above(from, to) && to.ino < from.ino);
        if to_first {
            let to = target.write();
            return Ok(Locked { from: source.write(), to: Some(to) });
        }
        let from = source.write();
        Ok(Locked { from, to: Some(target.write()) })
    }

    fn from(&self) -> &DirState {
        &self.from
    }

    fn to(&self) -> &DirState {
        self.to.as_deref().unwrap_or(&self.from)
    }

    fn old_mut(&mut self) -> &mut DirState {
        &mut self.from
    }

    fn new_mut(&mut self) -> &mut DirState {
        self.to.as_deref_mut().unwrap_or(&mut self.from)
    }
}

impl Overlay {
    /// True if renaming this name may copy much first.
    ///
    /// For those who decide which thread does the work.
    pub fn rename_copies(&self, dir: &Arc<Node>, name: &[u8]) -> bool {
        // What no lower layer has is not copied.
        if dir.dir.as_ref().is_none_or(|part| !part.state.read().merged) {
            return false;
        }
        let Ok(Some(node)) = self.peek(End { dir, name }) else { return false };
        let copies = match &node.dir {
            Some(part) => self.settings.renames == Renames::Copy && part.state.read().merged,
            None => self.pending_copy_bytes(&node) > 0,
        };
        self.put(node);
        copies
    }
}

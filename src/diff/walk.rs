//! How two trees are walked side by side, so that every path that differs comes once, in the order of a layer.
//!
//! One directory of both trees is compared at a time: names are merged in order of their bytes, and what is below a
//! directory comes right after it. Other threads list and compare the next directories meanwhile
//! ([`super::ahead`]); what is known at a time are the directories on the way down and [`AHEAD`] more in each. A removed
//! directory is one change and is not walked; the same holds for whatever [`Shared`] says cannot differ.
//!
//! A file that is as it was is told too if it may have other names: a new name of the same file makes a layer hold it.
//! Whatever is skipped has no such name that would matter; the first changed file of which that is not certain ends
//! the short way, and all is walked once more from the start: see [`Sink::restart`].

use super::ahead::{Task, Tasks};
use super::change::{ChangeKind, Meta, Verdict, Xattrs, judge, order};
use super::stack::{Scope, Shared};
use super::tree::{Dir, Entry, Tree};
use crate::backend::{Progress, go_on};
use crate::error::{Error, ErrorKind, Result};
use plywood_fuse::types::Kind;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many directories beside those on the way down are read ahead, in each of them: enough that a helper has
/// always something to do, and few enough that their names need no room.
const AHEAD: usize = 4;

/// How many helpers read ahead at most: listing is quick, and the walk itself is one.
const HELPERS: usize = 3;

/// The longest path, in bytes: no longer one can be used with the system calls that take paths, and readers of layers
/// refuse it.
const PATH_MAX: usize = libc::PATH_MAX as usize;

/// How much of two files is compared at a time, in bytes.
const COMPARED: usize = 128 * 1024;

/// How much of two trees is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    /// What can differ.
    #[default]
    Needed,
    /// Everything, as if nothing were known of how the trees are kept.
    Everything,
}

/// A name in a directory of one or both trees.
pub(super) struct Item {
    /// In the base; kept only if it is needed further.
    was: Option<Entry>,
    /// In the new tree.
    is: Option<Entry>,
    /// `None` if it is as it was.
    kind: Option<ChangeKind>,
}

impl Item {
    fn entry(&self) -> Option<&Entry> {
        self.is.as_ref().or(self.was.as_ref())
    }

    fn name(&self) -> &[u8] {
        self.entry().map_or(&[], |entry| &entry.name)
    }

    fn is_dir(&self) -> bool {
        self.is.as_ref().is_some_and(|is| is.meta.is_dir())
    }
}

/// A directory of the new tree on the way down, with those above it.
pub(super) struct Above {
    /// The directory itself.
    pub(super) dir: Dir,
    /// `None` for the root.
    inside: Option<(Arc<Above>, Arc<Item>)>,
}

impl Above {
    /// The directory above this one and what it says of this one; `None` for the root, of which no layer speaks.
    pub(super) fn inside(&self) -> Option<(&Arc<Above>, &Entry)> {
        let (above, item) = self.inside.as_ref()?;
        Some((above, item.is.as_ref()?))
    }

    /// Its path from the root of the tree; empty for the root.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut here = self.inside();
        while let Some((above, entry)) = here {
            names.push(&entry.name[..]);
            here = above.inside();
        }
        names.reverse();
        names.join(&b'/')
    }
}

/// One name that was found.
pub(super) struct Seen<'a> {
    /// The directory of the new tree that it is in.
    pub(super) above: &'a Arc<Above>,
    /// Its path from the root of the tree.
    pub(super) path: &'a [u8],
    /// How it differs; `None` if it is as it was and may have other names.
    pub(super) kind: Option<ChangeKind>,
    /// What it is now, unless it was removed.
    pub(super) is: Option<&'a Entry>,
    /// What it is or was.
    pub(super) meta: Meta,
    /// It was told before, unless it is as it was.
    pub(super) again: bool,
}

/// Who is told what was found.
pub(super) trait Sink {
    /// A name: changes in order, and names that are as they were in between.
    fn see(&mut self, seen: &Seen<'_>) -> Result<()>;

    /// Names that are as they were will come once more, from the first one, since some were left out. Changes go on
    /// where they were.
    fn restart(&mut self);
}

/// Two trees to be walked.
pub(super) struct Walk<'a> {
    pub(super) base: &'a Tree,
    pub(super) new: &'a Tree,
    pub(super) xattrs: Xattrs,
    pub(super) progress: &'a dyn Progress,
}

/// How a walk ended.
enum End {
    All,
    /// At this path: from there on more has to be known than the short way shows.
    TooShort(Vec<u8>),
}

/// A directory to be compared: its entry, and where both trees have it.
struct Pair {
    base: Dir,
    new: Dir,
    item: Arc<Item>,
}

/// A directory that was compared.
struct Level {
    base: Dir,
    new: Dir,
    items: Vec<Arc<Item>>,
}

type Compared = Result<Level>;

/// A directory on the way down.
struct Frame {
    base: Dir,
    above: Arc<Above>,
    items: Vec<Arc<Item>>,
    /// The next item.
    at: usize,
    /// The next item to be read ahead.
    ahead_at: usize,
    ahead: VecDeque<(usize, Arc<Task<Pair, Compared>>)>,
    path_bytes: usize,
}

/// Sends the helpers home, however the walk ends.
struct Closing<'a>(&'a Tasks<Pair, Compared>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Walk<'_> {
    /// Tells `sink` everything that differs.
    pub(super) fn run(&self, extent: Extent, sink: &mut dyn Sink) -> Result<()> {
        let shared = match (extent, self.base, self.new) {
            (Extent::Needed, Tree::Stack(base), Tree::Stack(new)) => Shared::of(base, new),
            _ => None,
        };
        if shared.is_some() {
            let End::TooShort(from) = self.walk(shared.as_ref(), None, sink)? else { return Ok(()) };
            sink.restart();
            return self.walk(None, Some(&from), sink).map(drop);
        }
        self.walk(None, None, sink).map(drop)
    }

    fn walk(&self, shared: Option<&Shared<'_>>, from: Option<&[u8]>, sink: &mut dyn Sink) -> Result<End> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let helpers = (cores - 1).min(HELPERS);
        let tasks = Tasks::new();
        std::thread::scope(|scope| {
            let closing = Closing(&tasks);
            for _ in 0..helpers {
                scope.spawn(|| tasks.help(&|pair| self.compare(shared, pair)));
            }
            let mut frames = Vec::new();
            let end = self.frames(shared, from, &tasks, &mut frames, sink);
            drop(closing);
            // The deepest first, so that none is freed by way of all below it.
            while frames.pop().is_some() {}
            end
        })
    }

    fn frames(
        &self,
        shared: Option<&Shared<'_>>,
        from: Option<&[u8]>,
        tasks: &Tasks<Pair, Compared>,
        frames: &mut Vec<Frame>,
        sink: &mut dyn Sink,
    ) -> Result<End> {
        let (base, new) = (self.base.root()?, self.new.root()?);
        let items = self.items(shared, &base, &new)?;
        let mut path: Vec<u8> = Vec::new();
        frames.push(Frame::new(Level { base, new, items }, None, 0));
        while let Some(frame) = frames.last_mut() {
            frame.read_ahead(tasks);
            path.truncate(frame.path_bytes);
            let (at, item) = match frame.items.get(frame.at) {
                Some(item) => (frame.at, Arc::clone(item)),
                None => {
                    frames.pop();
                    continue;
                }
            };
            frame.at += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(item.name());
            if path.len() > PATH_MAX {
                let cause = format!("a path in a layer has at most {PATH_MAX} bytes, this one is longer");
                let subject = format!("{}...", path[..64].escape_ascii());
                return Err(Error::new(ErrorKind::InvalidArgument, "compare", subject, cause));
            }
            if let Some(shared) = shared
                && has_unseen_names(shared, &item)?
            {
                return Ok(End::TooShort(path));
            }
            let again = from.is_some_and(|from| order(&path, from) == Ordering::Less);
            self.tell(&frame.above, &item, &path, again, sink)?;
            if item.is_dir() {
                go_on(self.progress, "compare")?;
                let task = frame.task(at, &item);
                let level = task.answer(|pair| self.compare(shared, pair));
                let lost = || Error::new(ErrorKind::Io, "compare", "", "a thread of it ended");
                let level = level.ok_or_else(lost)?.map_err(|e| inside(e, &path))?;
                if !level.items.is_empty() {
                    let inside = Some((Arc::clone(&frame.above), item));
                    frames.push(Frame::new(level, inside, path.len()));
                }
            }
        }
        Ok(End::All)
    }

    fn tell(
        &self,
        above: &Arc<Above>,
        item: &Item,
        path: &[u8],
        again: bool,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let Some(entry) = item.entry() else { return Ok(()) };
        match item.kind {
            None if item.is_dir() => Ok(()),
            Some(_) if again => Ok(()),
            kind => sink.see(&Seen { above, path, kind, is: item.is.as_ref(), meta: entry.meta, again }),
        }
    }

    /// Opens a directory in both trees and compares what is in it.
    fn compare(&self, shared: Option<&Shared<'_>>, pair: Pair) -> Compared {
        let enter = |dir: &Dir, entry: &Option<Entry>| match entry {
            Some(entry) if entry.meta.is_dir() => dir.enter(entry),
            _ => Ok(Dir::Empty),
        };
        let base = enter(&pair.base, &pair.item.was)?;
        let new = enter(&pair.new, &pair.item.is)?;
        let items = self.items(shared, &base, &new)?;
        Ok(Level { base, new, items })
    }

    /// What differs in two directories, what is to be looked into, and files that may have other names: in order.
    fn items(&self, shared: Option<&Shared<'_>>, base: &Dir, new: &Dir) -> Result<Vec<Arc<Item>>> {
        let mut items = Vec::new();
        let mut pair = |was: Option<Entry>, is: Option<Entry>| -> Result<()> {
            items.extend(self.item(shared, base, new, was, is)?.map(Arc::new));
            Ok(())
        };
        if let (Some(shared), Dir::Stack(base), Dir::Stack(new)) = (shared, base, new) {
            match shared.scope(base, new)? {
                Scope::Nothing => return Ok(items),
                Scope::Names(names) => {
                    for name in names {
                        pair(base.look(&name)?, new.look(&name)?)?;
                    }
                    return Ok(items);
                }
                Scope::Everything => {}
            }
        }
        let mut was = base.list()?.into_iter().peekable();
        let mut is = new.list()?.into_iter().peekable();
        loop {
            let first = match (was.peek(), is.peek()) {
                (None, None) => return Ok(items),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(was), Some(is)) => was.name.cmp(&is.name),
            };
            match first {
                Ordering::Less => pair(was.next(), None),
                Ordering::Greater => pair(None, is.next()),
                Ordering::Equal => pair(was.next(), is.next()),
            }?;
        }
    }

    /// One name; `None` if nobody needs to know of it.
    fn item(
        &self,
        shared: Option<&Shared<'_>>,
        base: &Dir,
        new: &Dir,
        was: Option<Entry>,
        is: Option<Entry>,
    ) -> Result<Option<Item>> {
        let (was, is) = match (was, is) {
            (None, None) => return Ok(None),
            (None, Some(is)) => {
                return Ok(Some(Item { was: None, is: Some(is), kind: Some(ChangeKind::Added) }));
            }
            (Some(was), None) => {
                return Ok(Some(Item { was: Some(was), is: None, kind: Some(ChangeKind::Removed) }));
            }
            (Some(was), Some(is)) => (was, is),
        };
        let kind = (!self.is_same(base, &was, new, &is)?).then_some(ChangeKind::Modified);
        if kind.is_none() {
            let holds_no_change = match shared {
                Some(shared) if is.meta.is_dir() => shared.is_untouched(&was, &is),
                _ => !is.meta.is_dir() && !is.meta.has_other_names(),
            };
            if holds_no_change {
                return Ok(None);
            }
        }
        let was = (is.meta.is_dir() && was.meta.is_dir()).then_some(was);
        Ok(Some(Item { was, is: Some(is), kind }))
    }

    fn is_same(&self, base: &Dir, was: &Entry, new: &Dir, is: &Entry) -> Result<bool> {
        let verdict = judge(&was.meta, &is.meta);
        match verdict {
            Verdict::Same => return Ok(true),
            Verdict::Different => return Ok(false),
            Verdict::IfAttributes | Verdict::IfContent => {}
        }
        if base.xattrs(was, self.xattrs)? != new.xattrs(is, self.xattrs)? {
            return Ok(false);
        }
        if verdict == Verdict::IfAttributes {
            return Ok(true);
        }
        match is.meta.kind {
            Kind::Symlink => Ok(base.read_link(was)? == new.read_link(is)?),
            Kind::File => self.has_same_content(base, was, new, is),
            // Neither a device nor a pipe is read.
            _ => Ok(true),
        }
    }

    fn has_same_content(&self, base: &Dir, was: &Entry, new: &Dir, is: &Entry) -> Result<bool> {
        let failed = |e| Error::fuse("compare content", is.name.escape_ascii().to_string(), e);
        let (a, b) = (base.open(was)?, new.open(is)?);
        let size = usize::try_from(is.meta.size_bytes).unwrap_or(usize::MAX).min(COMPARED);
        // One byte more than there should be, to see the end.
        let (mut a_bytes, mut b_bytes) = (vec![0; size + 1], vec![0; size + 1]);
        let mut at = 0;
        loop {
            let a_length = a.read_at(&mut a_bytes, at).map_err(failed)?;
            let b_length = b.read_at(&mut b_bytes, at).map_err(failed)?;
            if a_bytes[..a_length] != b_bytes[..b_length] {
                return Ok(false);
            }
            if a_length < a_bytes.len() {
                return Ok(true);
            }
            at += a_length as u64;
            go_on(self.progress, "compare")?;
        }
    }
}

/// Says in which directory something failed.
fn inside(e: Error, path: &[u8]) -> Error {
    match e.kind() {
        ErrorKind::Cancelled => e,
        _ => e.during("compare", path.escape_ascii().to_string()),
    }
}

/// True if a name that is left out may belong to a changed file.
fn has_unseen_names(shared: &Shared<'_>, item: &Item) -> Result<bool> {
    match (&item.is, item.kind) {
        (Some(is), Some(_)) if is.meta.has_other_names() => shared.may_have_unseen_names(is),
        _ => Ok(false),
    }
}

impl Frame {
    fn new(level: Level, inside: Option<(Arc<Above>, Arc<Item>)>, path_bytes: usize) -> Frame {
        let Level { base, new, items } = level;
        let above = Arc::new(Above { dir: new, inside });
        Frame { base, above, items, at: 0, ahead_at: 0, ahead: VecDeque::new(), path_bytes }
    }

    fn pair(&self, item: &Arc<Item>) -> Pair {
        Pair { base: self.base.clone(), new: self.above.dir.clone(), item: Arc::clone(item) }
    }

    /// Offers the next directories to the helpers.
    fn read_ahead(&mut self, tasks: &Tasks<Pair, Compared>) {
        let mut offered = Vec::new();
        while self.ahead.len() < AHEAD {
            let Some(item) = self.items.get(self.ahead_at) else { break };
            if item.is_dir() {
                let task = Task::new(self.pair(item));
                offered.push(Arc::clone(&task));
                self.ahead.push_back((self.ahead_at, task));
            }
            self.ahead_at += 1;
        }
        // The next that is needed is taken first; the very first one the walk needs itself.
        for task in offered.iter().rev() {
            tasks.offer(task);
        }
    }

    /// The task of the directory at a position, which is the next one.
    fn task(&mut self, at: usize, item: &Arc<Item>) -> Arc<Task<Pair, Compared>> {
        match self.ahead.pop_front() {
            Some((position, task)) if position == at => task,
            _ => Task::new(self.pair(item)),
        }
    }
}

//! A file system beside a reference tree: each operation done to both, and the first difference told.
//!
//! The reference is what the layers make by definition ([`tree::merged`]), in a plain directory. After each
//! operation the answers and the directories that it touched are compared, now and then the whole trees, and
//! whenever the file system is closed the layers themselves: lower ones are as they were, the upper one has no
//! mark without a need, the work directory nothing but a whiteout to be linked.

use super::judge;
use super::operation::{Answer, Operation, Verb};
use super::plain::{Identity, Plain, identity};
use super::tree::{self, Dialect, Entries, Entry, Layer, join, split};
use super::{TempDir, random};
use crate::error::{Error, Result};
use crate::idmap::OverrideName;
use crate::layer::marks::{self, Mark, Namespace, OPAQUE_FILE};
use crate::layer::probe::Wishes;
use crate::layer::upper::{Durability, OverridePolicy, UpperOptions};
use crate::overlay::changes::{Change, ChangeKind};
use crate::overlay::{Metacopy, Renames, Settings};
use crate::types::{Kind, Time};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is tried: settings of the file system and the kinds of layers that it gets.
#[derive(Clone, Debug)]
pub struct Variant {
    /// See [`Renames`].
    pub renames: Renames,
    /// See [`Metacopy`].
    pub metacopy: Metacopy,
    /// Whiteouts are files.
    pub whiteout_files: bool,
    /// Marks are below `user.`.
    pub user_xattr: bool,
    /// Owners and modes are kept in attributes.
    pub overrides: bool,
    /// The test has privilege: owners, devices, modes that close a file to its owner.
    pub privileged: bool,
    /// The kernel's overlayfs is asked, too.
    pub judge: bool,
    /// What lower layers are made of.
    pub dialects: Vec<Dialect>,
}

impl Variant {
    /// Everything as it comes.
    pub fn usual() -> Variant {
        Variant {
            renames: Renames::Redirect,
            metacopy: Metacopy::On,
            whiteout_files: false,
            user_xattr: false,
            overrides: false,
            privileged: true,
            judge: false,
            dialects: vec![Dialect::Kernel, Dialect::File, Dialect::Xattr, Dialect::FuseOverlayfs],
        }
    }

    /// Where marks are kept.
    pub fn namespace(&self) -> Namespace {
        if self.user_xattr { Namespace::User } else { Namespace::Trusted }
    }

    /// The settings of an overlay.
    pub fn settings(&self) -> Settings {
        let wishes = Wishes { user_xattr: Some(self.user_xattr), whiteout_files: self.whiteout_files };
        let overrides = match self.overrides {
            true => OverridePolicy::Always(OverrideName::UserContainers),
            false => OverridePolicy::WhenRefused,
        };
        let upper = UpperOptions { wishes, overrides, durability: Durability::Volatile, cached_dirs: 0 };
        Settings {
            renames: self.renames,
            metacopy: self.metacopy,
            upper,
            descriptors: 256,
            ..Settings::default()
        }
    }
}

/// The directories that a file system is made of.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Lower layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper layer.
    pub upper: PathBuf,
    /// The work directory.
    pub work: PathBuf,
}

/// The file system that is tried.
pub trait Subject {
    /// Opens it.
    ///
    /// # Errors
    /// If that fails.
    fn open(&mut self, stack: &Stack) -> Result<()>;

    /// Closes it, and all handles with it.
    ///
    /// # Errors
    /// If something is left.
    fn close(&mut self) -> Result<()>;

    /// Does one operation.
    ///
    /// # Errors
    /// As the operation.
    fn apply(&mut self, operation: &Operation) -> Result<Answer>;

    /// The entries of a directory.
    ///
    /// # Errors
    /// As listing, and if it contradicts itself.
    fn entries(&mut self, dir: &str) -> Result<Entries>;

    /// True if there is nothing under a path.
    ///
    /// # Errors
    /// As looking it up, other than that.
    fn is_absent(&mut self, path: &str) -> Result<bool>;

    /// What has changed, if it can tell.
    fn changes(&mut self) -> Option<Result<Vec<Change>>>;
}

/// What is known when the next operation is chosen.
pub struct View {
    /// Every path, with its kind.
    pub all: random::Kinds,
}

/// How often both are compared, besides at the end and whenever the file system is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The whole trees after each operation.
    Each,
    /// What was touched after each operation, the whole trees after so many.
    Touched(usize),
    /// Answers only, and the whole trees after so many.
    Answers(usize),
}

/// Where both went apart.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The operations, the last one included.
    pub operations: Vec<Operation>,
    /// In words.
    pub words: String,
}

struct Run<'a> {
    variant: &'a Variant,
    temp: &'a Path,
    pace: Pace,
    subject: &'a mut dyn Subject,
    reference: Plain,
    stack: Stack,
    /// The merged tree below the upper layer.
    base: Entries,
    /// What each lower layer held when it became one.
    lowers: Vec<Entries>,
    /// Which number each inode of the reference has in the subject.
    numbers: HashMap<Identity, u64>,
    /// How many links inodes of lower layers have, names included that the merged tree does not show. As in the
    /// kernel's overlayfs, nobody remembers how many of them were removed.
    linked: Option<HashMap<u64, u32>>,
    started: Time,
    rotations: usize,
}

type Checked<T = ()> = std::result::Result<T, String>;

/// Runs operations until there are no more.
///
/// # Errors
/// The first difference.
pub fn run(
    variant: &Variant,
    layers: &[Layer],
    subject: &mut dyn Subject,
    pace: Pace,
    next: &mut dyn FnMut(&View) -> Option<Operation>,
) -> std::result::Result<usize, Failure> {
    let temp = TempDir::new();
    let mut operations = Vec::new();
    let done = Run::prepare(variant, layers, subject, temp.path(), pace).and_then(|mut run| {
        let done = run.all(next, &mut operations);
        let closed = run.subject.close();
        done.and_then(|()| closed.map_err(|e| format!("close: {e}")))?;
        run.check_layers()?;
        Ok(operations.len())
    });
    done.map_err(|words| Failure { operations, words })
}

impl<'a> Run<'a> {
    fn prepare(
        variant: &'a Variant,
        layers: &[Layer],
        subject: &'a mut dyn Subject,
        temp: &'a Path,
        pace: Pace,
    ) -> Checked<Run<'a>> {
        let make = |name: String| {
            let path = temp.join(name);
            std::fs::create_dir(&path).map(|()| path).map_err(|e| e.to_string())
        };
        let mut lowers = Vec::new();
        for (at, layer) in layers.iter().enumerate() {
            let dir = make(format!("lower-{at}"))?;
            layer.build(&dir, variant.namespace()).map_err(|e| format!("build {layer}: {e}"))?;
            lowers.push(dir);
        }
        let plain = make("reference".into())?;
        tree::merged(layers).build(&plain, Namespace::User).map_err(|e| format!("build reference: {e}"))?;
        let stack = Stack { lowers, upper: make("upper-0".into())?, work: make("work-0".into())? };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut run = Run {
            variant,
            temp,
            pace,
            subject,
            reference: Plain::open(&plain).map_err(|e| e.to_string())?,
            stack,
            base: Entries::new(),
            lowers: Vec::new(),
            numbers: HashMap::new(),
            linked: None,
            // The clock of a disk goes in steps of some milliseconds.
            started: Time { secs: now.as_secs().cast_signed() - 1, nanos: 0 },
            rotations: 0,
        };
        run.open()?;
        Ok(run)
    }

    /// Opens the file system on a new upper layer.
    fn open(&mut self) -> Checked {
        self.lowers.clear();
        for dir in &self.stack.lowers {
            self.lowers.push(tree::snapshot(dir).map_err(|e| e.to_string())?);
        }
        self.subject.open(&self.stack).map_err(|e| format!("open: {e}"))?;
        self.base = self.whole_reference()?;
        self.linked = None;
        let shown = self.compare_all()?;
        let linked = shown.values().filter(|e| e.kind != Kind::Dir && e.nlink > 1);
        self.linked = Some(linked.map(|e| (e.ino, e.nlink)).collect());
        Ok(())
    }

    fn all(
        &mut self,
        next: &mut dyn FnMut(&View) -> Option<Operation>,
        done: &mut Vec<Operation>,
    ) -> Checked {
        let mut view = self.view()?;
        while let Some(operation) = next(&view) {
            done.push(operation.clone());
            self.step(&operation).map_err(|words| format!("{operation}:\n{words}"))?;
            let is_due = match self.pace {
                Pace::Each => true,
                Pace::Touched(every) | Pace::Answers(every) => done.len().is_multiple_of(every),
            };
            if is_due {
                self.compare_all().map_err(|words| format!("after {operation}:\n{words}"))?;
            }
            if operation.verb.changes_names() {
                view = self.view()?;
            }
        }
        self.compare_all()?;
        self.check_changes()
    }

    fn view(&self) -> Checked<View> {
        Ok(View { all: self.reference.kinds().map_err(|e| format!("reference: {e}"))? })
    }

    fn whole_reference(&self) -> Checked<Entries> {
        tree::whole(&mut |dir| self.reference.entries(dir)).map_err(|e| format!("reference: {e}"))
    }

    fn step(&mut self, operation: &Operation) -> Checked {
        match operation.verb {
            Verb::Remount => return self.remount(),
            Verb::Rotate => return self.rotate(),
            Verb::Changes => return self.check_changes(),
            _ => {}
        }
        let gone = self.about_to_go(operation);
        let ours = self.subject.apply(operation);
        if self.may_refuse(operation) && ours.as_ref().is_err_and(Error::is_cross_device) {
            return self.compare_touched(operation);
        }
        let theirs = self.reference.apply(operation);
        self.compare_answers(&ours, &theirs)?;
        if let (Some(identity), Ok(_)) = (gone, &theirs) {
            self.numbers.remove(&identity);
        }
        self.compare_touched(operation)
    }

    /// An inode that has its last name under a path that may vanish: its number may be used again.
    fn about_to_go(&self, operation: &Operation) -> Option<Identity> {
        let path = match operation.verb {
            Verb::Unlink | Verb::Rmdir => &operation.path,
            Verb::Rename => &operation.other,
            _ => return None,
        };
        let (kind, nlink, identity) = self.reference.identity(path).ok()?;
        (kind == Kind::Dir || nlink == 1).then_some(identity)
    }

    /// True if the settings allow this to fail with EXDEV: a directory of a lower layer is renamed.
    fn may_refuse(&self, operation: &Operation) -> bool {
        let is_dir = |path: &str| self.reference.identity(path).is_ok_and(|(kind, ..)| kind == Kind::Dir);
        self.variant.renames == Renames::Refuse
            && matches!(operation.verb, Verb::Rename | Verb::RenameNoReplace | Verb::Exchange)
            && (is_dir(&operation.path) || is_dir(&operation.other))
    }

    fn compare_answers(&self, ours: &Result<Answer>, theirs: &Result<Answer>) -> Checked {
        let same = match (ours, theirs) {
            (Ok(Answer::Stat(s, n, p)), Ok(Answer::Stat(size, nlink, perm))) => {
                let links = n == nlink || n > nlink && self.linked.as_ref().is_none_or(|l| !l.is_empty());
                (s, p) == (size, perm) && links
            }
            (Ok(a), Ok(b)) => a == b,
            (Err(a), Err(b)) => a.errno() == b.errno() || (a.is_not_empty() && b.is_not_empty()),
            _ => false,
        };
        if same { Ok(()) } else { Err(format!("answers {ours:?}, the reference {theirs:?}")) }
    }

    fn compare_touched(&mut self, operation: &Operation) -> Checked {
        if matches!(self.pace, Pace::Answers(_)) {
            return Ok(());
        }
        let has_other = !matches!(operation.verb, Verb::SetXattr | Verb::RemoveXattr | Verb::Symlink);
        let mut dirs = vec![split(&operation.path).0];
        if has_other && split(&operation.other).0 != dirs[0] {
            dirs.push(split(&operation.other).0);
        }
        dirs.into_iter().try_for_each(|dir| self.compare_dir(dir).map(drop))
    }

    /// Compares the entries of one directory; returns those of both.
    fn compare_dir(&mut self, dir: &str) -> Checked<(Entries, Entries)> {
        let (ours, theirs) = match (self.subject.entries(dir), self.reference.entries(dir)) {
            (Ok(ours), Ok(theirs)) => (ours, theirs),
            (Err(a), Err(b)) if a.errno() == b.errno() => return Ok(Default::default()),
            (ours, theirs) => return Err(format!("list {dir:?}: {ours:?}, the reference {theirs:?}")),
        };
        let names = |entries: &Entries| entries.keys().cloned().collect::<Vec<_>>();
        if names(&ours) != names(&theirs) {
            let words = format!("{dir:?} has {:?}, the reference {:?}", names(&ours), names(&theirs));
            return Err(words);
        }
        for (name, a) in &ours {
            let Some(b) = theirs.get(name) else { continue };
            self.compare_entry(a, b).map_err(|words| {
                format!("{:?}: {words}\n     ours: {a:?}\nreference: {b:?}", join(dir, name))
            })?;
        }
        Ok((ours, theirs))
    }

    fn compare_entry(&mut self, ours: &Entry, theirs: &Entry) -> Checked {
        let (a, b) = (ours, theirs);
        let device = |e: &Entry| (matches!(e.kind, Kind::Char | Kind::Block), e.device);
        // What was set is the same; what the clock gave is of this test.
        let is_new = |e: &Entry| e.mtime >= self.started;
        let mtime = a.mtime == b.mtime || is_new(a) && is_new(b);
        let links = a.kind == Kind::Dir
            || a.nlink == b.nlink
            || a.nlink > b.nlink
                && self.linked.as_ref().is_none_or(|l| l.get(&a.ino).is_some_and(|n| a.nlink <= *n));
        // Only files and directories can keep a mark below `user.` that tells where they come from.
        let keeps_number = !self.variant.user_xattr || matches!(a.kind, Kind::File | Kind::Dir);
        let known = *self.numbers.entry(identity(b.ino, b.btime)).or_insert(a.ino);
        let checks = [
            ("kind", a.kind == b.kind),
            ("mode", a.perm == b.perm),
            ("owner", (a.uid, a.gid) == (b.uid, b.gid)),
            ("size", a.size_bytes == b.size_bytes),
            ("content", a.content == b.content),
            ("target", a.target == b.target),
            ("device", !device(a).0 || device(a) == device(b)),
            ("attributes", a.attributes == b.attributes),
            ("modification time", mtime),
            ("links", links),
            ("inode number", known == a.ino || !keeps_number),
            ("holes", a.kind != Kind::File || a.blocks <= b.blocks + 128),
        ];
        match checks.iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some(("inode number", _)) => Err(format!("the inode number was {known}")),
            Some((what, _)) => Err(format!("{what} differs")),
        }
    }

    /// Compares the whole trees; returns ours.
    fn compare_all(&mut self) -> Checked<Entries> {
        let mut numbers: HashMap<Identity, u64> = HashMap::new();
        let mut owners: HashMap<u64, (Identity, String)> = HashMap::new();
        let mut tree = Entries::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            let (ours, theirs) = self.compare_dir(&dir)?;
            for name in ["a", "b", "c", "d", ".wh.a", ".wh.b", ".wh.c", ".wh.e", ".wh..wh.a", OPAQUE] {
                let path = join(&dir, name);
                match self.subject.is_absent(&path) {
                    Ok(absent) if absent != ours.contains_key(name) => {}
                    other => return Err(format!("{path:?}: is it absent? {other:?}, but a listing differs")),
                }
            }
            for (name, entry) in ours {
                let path = join(&dir, &name);
                let Some(theirs) = theirs.get(&name) else { continue };
                let identity = identity(theirs.ino, theirs.btime);
                numbers.insert(identity, entry.ino);
                let (owner, first) = owners.entry(entry.ino).or_insert((identity, path.clone()));
                if *owner != identity {
                    return Err(format!("{path:?} has the inode number of {first:?}: {}", entry.ino));
                }
                if entry.kind == Kind::Dir {
                    dirs.push(path.clone());
                }
                tree.insert(path, entry);
            }
        }
        self.numbers = numbers;
        Ok(tree)
    }

    fn remount(&mut self) -> Checked {
        self.reference.close_handles();
        self.subject.close().map_err(|e| format!("close: {e}"))?;
        self.check_upper()?;
        self.check_work()?;
        self.subject.open(&self.stack).map_err(|e| format!("open: {e}"))?;
        self.compare_all().map(drop)
    }

    fn rotate(&mut self) -> Checked {
        self.check_changes()?;
        self.reference.close_handles();
        self.subject.close().map_err(|e| format!("close: {e}"))?;
        self.check_layers()?;
        self.rotations += 1;
        let make = |name: &str| {
            let path = self.temp.join(format!("{name}-{}", self.rotations));
            std::fs::create_dir(&path).map(|()| path).map_err(|e| e.to_string())
        };
        let (upper, work) = (make("upper")?, make("work")?);
        let old = std::mem::replace(&mut self.stack.upper, upper);
        self.stack.lowers.insert(0, old);
        self.stack.work = work;
        self.open()
    }

    // Layers -------------------------------------------------------------------------------------------------

    fn check_layers(&self) -> Checked {
        for (dir, before) in self.stack.lowers.iter().zip(&self.lowers) {
            let now = tree::snapshot(dir).map_err(|e| e.to_string())?;
            if now != *before {
                let changed = difference(before, &now);
                return Err(format!("lower layer {} was changed: {changed}", dir.display()));
            }
        }
        self.check_upper()?;
        self.check_work()?;
        if self.variant.judge {
            let seen = judge::look(&self.stack, self.variant.user_xattr, &self.temp.join("judge"))?;
            self.compare_judge(&seen)?;
        }
        Ok(())
    }

    fn check_work(&self) -> Checked {
        let left = tree::snapshot(&self.stack.work.join("work")).map_err(|e| e.to_string())?;
        let unexpected = |e: &Entry| e.kind != Kind::Char || e.device != Default::default();
        match left.iter().find(|(_, entry)| unexpected(entry)) {
            Some((name, entry)) => Err(format!("left in the work directory: {name:?} {entry:?}")),
            None => Ok(()),
        }
    }

    /// The marks of the upper layer: none without a need.
    fn check_upper(&self) -> Checked {
        let upper = tree::snapshot(&self.stack.upper).map_err(|e| e.to_string())?;
        // Each directory of the upper layer, and the one of the merged tree below that it is joined with.
        let mut joined: HashMap<String, Option<String>> =
            HashMap::from([(String::new(), Some(String::new()))]);
        let mark = |entry: &Entry, mark: Mark| {
            let name = self.variant.namespace().attribute(mark).to_bytes();
            entry.attributes.get(name).cloned()
        };
        let in_order = upper.iter();
        for (path, entry) in in_order {
            let (parent, name) = split(path);
            let below = joined.get(parent).cloned().flatten();
            let below_name = |name: &str| below.as_ref().map(|b| join(b, name));
            let is_below = |name: &str| below_name(name).is_some_and(|p| self.base.contains_key(&p));
            let is_literal = mark(entry, Mark::Literal).is_some();
            let hidden = match name.strip_prefix(".wh.") {
                _ if entry.kind == Kind::Char && entry.device == Default::default() => Some(name),
                Some(hidden) if entry.kind == Kind::File && entry.size_bytes == 0 && !is_literal => {
                    Some(hidden)
                }
                _ => None,
            };
            let hidden = hidden.filter(|_| name.as_bytes() != OPAQUE_FILE);
            if hidden.is_some_and(|hidden| !is_below(hidden)) {
                return Err(format!("upper layer: whiteout {path:?} hides nothing"));
            }
            if entry.kind != Kind::Dir {
                continue;
            }
            let redirect = mark(entry, Mark::Redirect).map(|value| marks::parse_redirect(&value));
            let opaque_file = upper.contains_key(&join(path, OPAQUE));
            let opaque = mark(entry, Mark::Opaque).is_some_and(|v| v == b"y") || opaque_file;
            let lower = match redirect {
                _ if opaque => None,
                Some(Some(marks::Redirect::Path(to))) => Some(String::from_utf8_lossy(&to).into_owned()),
                Some(Some(marks::Redirect::Name(to))) => below_name(&String::from_utf8_lossy(&to)),
                Some(None) => {
                    return Err(format!("upper layer: {path:?} has a redirect that cannot be read"));
                }
                None => below_name(name),
            };
            let is_dir = |p: &String| self.base.get(p).is_some_and(|e| e.kind == Kind::Dir);
            joined.insert(path.clone(), lower.filter(is_dir));
        }
        Ok(())
    }

    fn compare_judge(&self, seen: &Entries) -> Checked {
        let reference = self.whole_reference()?;
        let shown = |e: &Entry| {
            let mut same = e.clone();
            let is_new = e.mtime >= self.started;
            same.mtime = if is_new { self.started } else { e.mtime };
            (same.ctime, same.btime, same.ino, same.nlink, same.blocks) = Default::default();
            same
        };
        let plain =
            |entries: &Entries| entries.iter().map(|(p, e)| (p.clone(), shown(e))).collect::<Entries>();
        let (ours, theirs) = (plain(seen), plain(&reference));
        if ours != theirs {
            return Err(format!("the kernel's overlayfs shows another tree: {}", difference(&theirs, &ours)));
        }
        let mut groups: HashMap<u64, u64> = HashMap::new();
        for (path, entry) in seen.iter().filter(|(_, e)| e.kind != Kind::Dir) {
            let Some(number) = reference.get(path).map(|e| e.ino) else { continue };
            if *groups.entry(number).or_insert(entry.ino) != entry.ino {
                return Err(format!("the kernel's overlayfs shows no hard link at {path:?}"));
            }
        }
        Ok(())
    }

    // Changes ------------------------------------------------------------------------------------------------

    fn check_changes(&mut self) -> Checked {
        let Some(ours) = self.subject.changes() else { return Ok(()) };
        let ours = ours.map_err(|e| format!("changes: {e}"))?;
        let theirs = expected_changes(&self.base, &self.whole_reference()?);
        if ours == theirs {
            return Ok(());
        }
        let only = |a: &[Change], b: &[Change]| {
            let text = |c: &Change| format!("{:?} {}", c.kind, c.path.escape_ascii());
            a.iter().filter(|c| !b.contains(c)).map(text).collect::<Vec<_>>()
        };
        let (more, less) = (only(&ours, &theirs), only(&theirs, &ours));
        Err(format!("changes: told but not so {more:?}, not told {less:?}"))
    }
}

const OPAQUE: &str = ".wh..wh..opq";

fn expected_changes(before: &Entries, after: &Entries) -> Vec<Change> {
    let change = |path: &String, kind| Change { path: path.clone().into_bytes(), kind };
    let mut changes = Vec::new();
    for (path, is) in after {
        match before.get(path) {
            None => changes.push(change(path, ChangeKind::Added)),
            Some(was) => {
                let device = |e: &Entry| matches!(e.kind, Kind::Char | Kind::Block).then_some(e.device);
                let common = |e: &Entry| (e.kind, e.perm, e.uid, e.gid, device(e));
                let content =
                    is.kind != Kind::Dir && (was.size_bytes, was.mtime) != (is.size_bytes, is.mtime);
                if common(was) != common(is) || content {
                    changes.push(change(path, ChangeKind::Modified));
                }
            }
        }
    }
    for path in before.keys().filter(|p| !after.contains_key(*p)) {
        // What was below something that is gone, or that is no directory any more, goes with it.
        let parent = split(path).0;
        if parent.is_empty() || after.get(parent).is_some_and(|e| e.kind == Kind::Dir) {
            changes.push(change(path, ChangeKind::Removed));
        }
    }
    changes.sort();
    changes
}

/// What differs, in words.
fn difference(before: &Entries, after: &Entries) -> String {
    let mut words = String::new();
    for (path, was) in before {
        match after.get(path) {
            None => drop(writeln!(words, "{path:?} is missing: {was:?}")),
            Some(is) if is != was => drop(writeln!(words, "{path:?} is {is:?}\n  and not {was:?}")),
            Some(_) => {}
        }
    }
    for (path, is) in after.iter().filter(|(p, _)| !before.contains_key(*p)) {
        let _ = writeln!(words, "{path:?} is new: {is:?}");
    }
    words
}

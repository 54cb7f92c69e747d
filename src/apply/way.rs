//! The way from the root to the directory of a member, as in a chroot.
//!
//! Directories on the way stay open from one member to the next: archives are written directory by directory, so most
//! members cost nothing here. A symlink on the way is read and evaluated here, bounded to the root; the disk is only
//! ever asked for one name in one directory that is open. What is missing on the way, and what the archive may give
//! `..` after it, is as containerd's `RootPath` has it: text.
//!
//! A directory that is left gets its times, since nothing will change it any more; if something does, [`super::Target`]
//! says what they were.

use super::attributes::Attributes;
use super::name::shown;
use super::ours::{Ours, PathId};
use super::report::Applied;
use super::target::{Before, Later, Look, Made, Missing, Spot, Target};
use super::{OPERATION, Stop, failed};
use crate::error::{Error, ErrorKind};

/// How many symlinks a path may lead through.
///
/// # Source
/// containerd's `walkLink`.
const MAX_LINKS: usize = 255;

/// How many directories are open at a time: a path may be a thousand deep, and a process has a limit.
const OPEN_DIRS: usize = 64;

/// A directory on the way.
struct Level<D> {
    name: Box<[u8]>,
    /// `None` while enough others below are open.
    dir: Option<D>,
    id: PathId,
    /// Everything in it is from this archive.
    fresh: bool,
    /// Layers below have nothing that shows in it.
    sealed: bool,
    /// It is known that something was put into it.
    noted: bool,
    /// Not there while the level above is closed.
    later: Option<Later>,
    /// It got what it was to get later, although it was not left.
    settled: bool,
}

/// Where the path of a directory led.
pub(super) enum Reached {
    /// It is open.
    Yes,
    /// It is not there, and was not to be made.
    Absent,
}

/// What is done about a directory that is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Make {
    /// It is made.
    Yes,
    /// Nothing.
    No,
}

/// The directories from the root down to where the last member was.
pub(super) struct Way<D> {
    /// The root first; never empty.
    levels: Vec<Level<D>>,
    /// The path that was asked for last, if it leads to the last level still.
    asked: Option<Vec<u8>>,
    /// No symlink was on that path: nothing that is made or removed makes it lead elsewhere.
    plain: bool,
}

/// A component that is on the way without being a directory.
enum Ghost {
    /// It is missing, in a directory in which nothing of a lower layer shows, or whose lower layers are known.
    Missing(Vec<u8>),
    /// A layer below may have it.
    Unknown,
    /// It was removed by this archive.
    Removed(Vec<u8>),
    /// It is no directory.
    NoDir,
}

impl<D: Clone> Way<D> {
    /// A way that begins at `root`; with `fresh` that was empty.
    pub fn new(root: D, ours: &Ours, fresh: bool) -> Way<D> {
        let level = Level {
            name: Box::default(),
            dir: Some(root),
            id: ours.root(),
            fresh,
            sealed: false,
            noted: fresh,
            later: None,
            settled: false,
        };
        Way { levels: vec![level], asked: Some(Vec::new()), plain: true }
    }

    fn top(&self) -> &Level<D> {
        self.levels.last().expect("the root is never left")
    }

    /// The directory that was reached.
    pub fn dir(&self) -> D {
        self.top().dir.clone().expect("the last level is always open")
    }

    /// The id of a name in that directory.
    pub fn child_id(&self, ours: &Ours, name: &[u8]) -> PathId {
        ours.child(self.top().id, name)
    }

    /// The id of that directory.
    pub fn id(&self) -> PathId {
        self.top().id
    }

    /// True if all in that directory is from this archive.
    pub fn is_fresh(&self) -> bool {
        self.top().fresh
    }

    /// Layers below have nothing that shows in that directory any more.
    pub fn seal(&mut self) {
        if let Some(top) = self.levels.last_mut() {
            top.sealed = true;
        }
    }

    /// A name in that directory was replaced, or a symlink was made: paths through symlinks may lead elsewhere now.
    pub fn changed(&mut self) {
        if !self.plain {
            self.asked = None;
        }
    }

    /// Remembers that the archive put something into that directory, where that matters.
    pub fn note_put(&mut self, ours: &mut Ours, name: &[u8]) {
        if self.is_fresh() {
            return;
        }
        ours.note_put(ours.child(self.top().id, name));
        for level in self.levels.iter_mut().rev() {
            if std::mem::replace(&mut level.noted, true) {
                break;
            }
            ours.note_put(level.id);
        }
    }

    /// Goes on into the directory `name`, which has just been made or described.
    pub fn enter<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &Ours,
        name: &[u8],
        entered: Entered<D>,
    ) -> Result<(), Stop> {
        let top = self.top();
        let level = Level {
            name: name.into(),
            dir: Some(entered.dir),
            id: ours.child(top.id, name),
            fresh: top.fresh || entered.fresh,
            sealed: top.sealed || entered.sealed,
            noted: top.fresh || entered.fresh,
            later: Some(entered.later).filter(|later| *later != Later::default()),
            settled: false,
        };
        if let Some(asked) = &mut self.asked {
            if !asked.is_empty() {
                asked.push(b'/');
            }
            asked.extend_from_slice(name);
        }
        self.push(target, level)
    }

    fn push<T: Target<Dir = D>>(&mut self, target: &mut T, level: Level<D>) -> Result<(), Stop> {
        self.levels.push(level);
        if let Some(far) = self.levels.len().checked_sub(OPEN_DIRS + 1).filter(|&far| far > 0) {
            // What it gets later it gets now: to set it again costs less than to keep all open.
            self.settle(target, far)?;
            if far > 1 {
                self.levels[far - 1].dir = None;
            }
        }
        Ok(())
    }

    /// Gives a level what it is to get once it is left.
    fn settle<T: Target<Dir = D>>(&mut self, target: &mut T, at: usize) -> Result<(), Stop> {
        self.levels[at].settled = true;
        let Some(later) = self.levels[at].later.take() else { return Ok(()) };
        let (above, level) = (&self.levels[at - 1], &self.levels[at]);
        let (Some(above), Some(dir)) = (&above.dir, &level.dir) else { return Ok(()) };
        let spot = Spot { dir: above, name: &level.name, path: &level.name };
        target.leave(spot, dir, later).map_err(|e| failed(&level.name, "set times of directory", e))
    }

    /// Leaves the last directory.
    fn pop<T: Target<Dir = D>>(&mut self, target: &mut T) -> Result<(), Stop> {
        self.settle(target, self.levels.len() - 1)?;
        self.levels.pop();
        Ok(())
    }

    /// Leaves all directories.
    pub fn finish<T: Target<Dir = D>>(&mut self, target: &mut T) -> Result<(), Stop> {
        self.asked = None;
        while self.levels.len() > 1 {
            self.pop(target)?;
        }
        Ok(())
    }

    /// Goes to the directory `path`, which is cleaned.
    pub fn go<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &mut Ours,
        path: &[u8],
        make: Make,
        report: &mut Applied,
    ) -> Result<Reached, Stop> {
        if self.asked.as_deref() == Some(path) {
            return Ok(Reached::Yes);
        }
        let shared = self.shared(path);
        self.asked = None;
        self.back_to(target, ours, shared, path)?;
        let (ghosts, plain) = self.walk(target, ours, path)?;
        for ghost in &ghosts {
            let name = match ghost {
                Ghost::NoDir => {
                    let cause = "something on the way to it is no directory";
                    let e = Error::new(ErrorKind::InvalidArgument, OPERATION, shown(path), cause);
                    let unsure = target.missing() == Missing::NeedsLower;
                    return Err(if unsure { Stop::NeedsLower(e.to_string()) } else { Stop::Failed(e) });
                }
                _ if make == Make::No && !matches!(ghost, Ghost::Unknown) => return Ok(Reached::Absent),
                Ghost::Unknown => {
                    return Err(Stop::NeedsLower(format!(
                        "{}: the archive does not say what its directory is",
                        shown(path)
                    )));
                }
                Ghost::Missing(name) | Ghost::Removed(name) => name,
            };
            let sealed = matches!(ghost, Ghost::Removed(_));
            self.make(target, ours, name, sealed, path, report)?;
        }
        self.asked = Some(path.to_vec());
        self.plain = plain;
        Ok(Reached::Yes)
    }

    fn make<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &mut Ours,
        name: &[u8],
        sealed: bool,
        path: &[u8],
        report: &mut Applied,
    ) -> Result<(), Stop> {
        let dir = self.dir();
        let spot = Spot { dir: &dir, name, path };
        let attributes = Attributes::of_missing_parent();
        let made = target.make_dir(spot, &attributes, Before::Unknown, report);
        match made.map_err(|e| failed(path, "make directory", e))? {
            Made::New((dir, later)) => {
                self.note_put(ours, name);
                if !self.is_fresh() {
                    ours.note_made(self.child_id(ours, name));
                }
                self.enter(target, ours, name, Entered { dir, later, fresh: true, sealed })
            }
            Made::Taken => {
                let cause = "somebody else changes the tree at the same time";
                Err(Stop::Failed(Error::new(ErrorKind::Aborted, OPERATION, shown(path), cause)))
            }
        }
    }

    /// How many levels below the root are on the path, if no symlink is.
    fn shared(&self, path: &[u8]) -> usize {
        let parts = path.split(|&byte| byte == b'/');
        self.levels[1..].iter().zip(parts).take_while(|(level, part)| *level.name == **part).count()
    }

    /// Leaves all levels but the root and `keep` below it, and opens the last of those again if need be.
    fn back_to<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &Ours,
        keep: usize,
        path: &[u8],
    ) -> Result<(), Stop> {
        while self.levels.len() > keep + 1 {
            self.pop(target)?;
        }
        let last = self.levels.len() - 1;
        let Some(above) = last.checked_sub(1) else { return Ok(()) };
        let is_open = |level: &Level<D>| level.dir.is_some();
        if !self.levels[last].settled && is_open(&self.levels[last]) {
            return Ok(());
        }
        // By name from the last one that is open; those in between are needed for that alone.
        let from = self.levels[..last].iter().rposition(is_open).unwrap_or(0);
        let mut dir = self.levels[from].dir.clone();
        for at in from + 1..=last {
            let Some(parent) = dir else { break };
            let name = &self.levels[at].name;
            let found = target.look(&parent, name).map_err(|e| failed(path, "open directory", e))?;
            let Look::Dir(found) = found else {
                let cause = "a directory above it was replaced meanwhile";
                return Err(Stop::Failed(Error::new(ErrorKind::Aborted, OPERATION, shown(path), cause)));
            };
            if at == last {
                let later =
                    again(target, ours, Spot { dir: &parent, name, path }, &found, self.levels[at].id)?;
                self.levels[above].dir = Some(parent);
                self.levels[last].later = later;
                self.levels[last].settled = false;
                self.levels[last].dir = Some(found.clone());
            }
            dir = Some(found);
        }
        Ok(())
    }

    /// Walks the rest of a path, from the last level on. Returns what is on the way and is no directory, and whether
    /// no symlink was met.
    fn walk<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &mut Ours,
        path: &[u8],
    ) -> Result<(Vec<Ghost>, bool), Stop> {
        let mut rest: Vec<u8> = Vec::new();
        for part in path.split(|&byte| byte == b'/').skip(self.levels.len() - 1) {
            rest.extend_from_slice(part);
            rest.push(b'/');
        }
        let mut ghosts = Vec::new();
        let mut links = 0;
        while let Some(slash) = rest.iter().position(|&byte| byte == b'/') {
            let part: Vec<u8> = rest.drain(..=slash).take(slash).collect();
            match &*part {
                b"." | b"" => continue,
                b".." => {
                    if ghosts.pop().is_none() {
                        let depth = self.levels.len().saturating_sub(2);
                        self.back_to(target, ours, depth, path)?;
                    }
                    continue;
                }
                _ => {}
            }
            if let Some(above) = ghosts.last() {
                ghosts.push(below(above, part));
                continue;
            }
            let dir = self.dir();
            match target.look(&dir, &part).map_err(|e| failed(path, "look at", e))? {
                Look::Dir(found) => self.walk_into(target, ours, part, found, path)?,
                Look::Absent if target.missing() == Missing::NeedsLower && !self.top().sealed => {
                    ghosts.push(Ghost::Unknown);
                }
                Look::Absent => ghosts.push(Ghost::Missing(part)),
                Look::Removed => ghosts.push(Ghost::Removed(part)),
                Look::Other => ghosts.push(Ghost::NoDir),
                Look::Symlink(mut text) => {
                    links += 1;
                    if links > MAX_LINKS {
                        let cause = format!("more than {MAX_LINKS} symlinks are on the way to it");
                        let e = Error::new(ErrorKind::InvalidArgument, OPERATION, shown(path), cause);
                        return Err(Stop::Failed(e));
                    }
                    if text.starts_with(b"/") {
                        self.back_to(target, ours, 0, path)?;
                    }
                    text.push(b'/');
                    rest.splice(..0, text);
                }
            }
        }
        Ok((ghosts, links == 0))
    }

    fn walk_into<T: Target<Dir = D>>(
        &mut self,
        target: &mut T,
        ours: &Ours,
        name: Vec<u8>,
        dir: D,
        path: &[u8],
    ) -> Result<(), Stop> {
        let above = self.dir();
        let top = self.top();
        let id = ours.child(top.id, &name);
        let fresh = top.fresh || ours.is_made(id);
        let sealed = top.sealed;
        let spot = Spot { dir: &above, name: &name, path };
        let later = again(target, ours, spot, &dir, id)?;
        let noted = fresh || ours.is_put(id);
        let level =
            Level { name: name.into(), dir: Some(dir), id, fresh, sealed, noted, later, settled: false };
        self.push(target, level)
    }
}

/// What a directory that is entered once more is to get again: something, if a member describes it.
fn again<T: Target>(
    target: &mut T,
    ours: &Ours,
    spot: Spot<'_, T::Dir>,
    dir: &T::Dir,
    id: PathId,
) -> Result<Option<Later>, Stop> {
    if !ours.is_described(id) {
        return Ok(None);
    }
    target.enter_again(spot, dir).map(Some).map_err(|e| failed(spot.path, "open directory", e))
}

/// What is below something that is no directory.
fn below(above: &Ghost, name: Vec<u8>) -> Ghost {
    match above {
        Ghost::NoDir => Ghost::NoDir,
        Ghost::Unknown => Ghost::Unknown,
        Ghost::Missing(_) | Ghost::Removed(_) => Ghost::Missing(name),
    }
}

/// A directory that a way goes on into.
pub(super) struct Entered<D> {
    /// The directory.
    pub dir: D,
    /// What it gets later.
    pub later: Later,
    /// The archive made it.
    pub fresh: bool,
    /// Layers below have nothing that shows in it.
    pub sealed: bool,
}

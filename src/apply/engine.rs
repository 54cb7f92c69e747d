//! Member by member: the order of what is done, the same for every target.
//!
//! Whiteouts first; what is there under the name goes, unless it is a directory and one is to be made; then the member is
//! made. Making comes before looking: most names are free. What a member gets is in this order: content, owner (a change
//! of which takes capabilities away), attributes, mode (which an access control list changes), times.

use super::attributes::Attributes;
use super::name::{Meaning, Name, shown};
use super::ours::{Ours, PathId};
use super::report::Applied;
use super::target::{
    Before, Content, Done, Failure, Linked, Look, Made, Marked, Missing, Special, Spot, Target,
};
use super::way::{Entered, Make, Reached, Way};
use super::{OPERATION, Source, Stop, failed};
use crate::archive::{Entry, EntryKind, Segment};
use crate::backend::{Progress, go_on};
use crate::error::{Error, ErrorKind, Result};
use plywood_fuse::types::{Device, Kind};

/// How often a name may come back between removing it and making a member under it, before somebody else is to blame.
const TRIES: usize = 8;

/// Entries and bytes after which the caller is told again.
const TELL_ENTRIES: u64 = 64;
const TELL_BYTES: u64 = 16 << 20;

/// An archive that is being applied.
pub(super) struct Engine<'a, T: Target> {
    target: &'a mut T,
    way: Way<T::Dir>,
    ours: Ours,
    name: Name,
    tally: Tally<'a>,
    report: Applied,
}

/// How far it is, and who wants to know.
struct Tally<'a> {
    progress: &'a dyn Progress,
    entries: u64,
    bytes: u64,
    told_entries: u64,
    told_bytes: u64,
}

impl Tally<'_> {
    /// Asks whether it shall go on, and tells how far it is now and then.
    fn step(&mut self) -> Result<()> {
        go_on(self.progress, OPERATION)?;
        if self.entries - self.told_entries >= TELL_ENTRIES || self.bytes - self.told_bytes >= TELL_BYTES {
            self.tell();
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.progress.copied(self.bytes, self.entries);
        (self.told_entries, self.told_bytes) = (self.entries, self.bytes);
    }
}

/// The content of the present member, counted.
struct Watched<'a, 'b> {
    source: &'a mut dyn Source,
    tally: &'a mut Tally<'b>,
    size_bytes: u64,
}

impl Content for Watched<'_, '_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_segment(&mut self) -> Result<Option<Segment>> {
        self.source.next_segment()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.source.read(buffer)?;
        self.tally.bytes += read as u64;
        if self.tally.bytes - self.tally.told_bytes >= TELL_BYTES {
            self.tally.step()?;
        }
        Ok(read)
    }
}

impl<'a, T: Target> Engine<'a, T> {
    /// Begins at the root of the target.
    pub fn new(target: &'a mut T, progress: &'a dyn Progress) -> std::result::Result<Self, Stop> {
        let root = target.root().map_err(|e| failed(b"/", "open", e))?;
        let was_empty = target.list(&root).map_err(|e| failed(b"/", "list", e))?.is_empty();
        let ours = Ours::default();
        let way = Way::new(root, &ours, was_empty);
        let tally = Tally { progress, entries: 0, bytes: 0, told_entries: 0, told_bytes: 0 };
        Ok(Engine { target, way, ours, name: Name::default(), tally, report: Applied::default() })
    }

    /// Applies all members.
    pub fn run(mut self, source: &mut dyn Source) -> std::result::Result<Applied, Stop> {
        let mut name = std::mem::take(&mut self.name);
        while let Some(entry) = source.next()? {
            self.tally.step()?;
            self.entry(source, &entry, &mut name)?;
            self.tally.entries += 1;
        }
        self.way.finish(self.target)?;
        self.target.finish().map_err(|e| failed(b"/", "finish", e))?;
        self.tally.tell();
        self.report.entries = self.tally.entries;
        self.report.bytes = self.tally.bytes;
        Ok(self.report)
    }

    fn entry(
        &mut self,
        source: &mut dyn Source,
        entry: &Entry,
        name: &mut Name,
    ) -> std::result::Result<(), Stop> {
        if entry.path.contains(&0) {
            return Err(Stop::Failed(invalid(&entry.path, "there is a NUL byte in the name")));
        }
        // The root is nobody's to change: what a layer says of it is lost when it is written, too.
        if !name.set(&entry.path) {
            return Ok(());
        }
        let is_device = matches!(entry.kind, EntryKind::Char { .. } | EntryKind::Block { .. });
        if is_device && !self.target.takes_devices() {
            self.report.device_left_out(name.path(), "nobody but root of the machine may make one");
            return Ok(());
        }
        match name.meaning() {
            Meaning::Ignored => Ok(()),
            Meaning::Invalid => {
                let cause = "a whiteout cannot be of the directory that it is in, nor of that above";
                Err(Stop::Failed(invalid(name.path(), cause)))
            }
            Meaning::Opaque => {
                self.go(name.dir())?;
                self.opaque(name)
            }
            Meaning::Whiteout(hidden) => {
                self.go(name.dir())?;
                self.whiteout(name, hidden)
            }
            Meaning::Member => match &entry.kind {
                EntryKind::HardLink(target) => self.link(name, target, &Attributes::of(entry)),
                _ => {
                    self.go(name.dir())?;
                    self.member(source, entry, name)
                }
            },
        }
    }

    /// Goes to a directory that is to hold a member.
    fn go(&mut self, dir: &[u8]) -> std::result::Result<(), Stop> {
        self.way.go(self.target, &mut self.ours, dir, Make::Yes, &mut self.report).map(drop)
    }

    fn whiteout(&mut self, name: &Name, hidden: &[u8]) -> std::result::Result<(), Stop> {
        let dir = self.way.dir();
        let spot = Spot { dir: &dir, name: hidden, path: name.path() };
        self.target.remove(spot).map_err(|e| failed(name.path(), "remove", e))?;
        self.way.changed();
        let marked = self.target.mark_removed(spot).map_err(|e| failed(name.path(), "hide", e))?;
        expect_no_lower(marked, name)
    }

    fn opaque(&mut self, name: &Name) -> std::result::Result<(), Stop> {
        let dir = self.way.dir();
        let marked = self.target.mark_opaque(&dir).map_err(|e| failed(name.path(), "hide", e))?;
        expect_no_lower(marked, name)?;
        self.way.seal();
        if marked == Marked::Yes || self.way.is_fresh() {
            return Ok(());
        }
        let id = self.way.id();
        self.way.changed();
        self.clear(dir, id, name)
    }

    /// Removes everything in a directory that this archive did not put there.
    fn clear(&mut self, dir: T::Dir, id: PathId, name: &Name) -> std::result::Result<(), Stop> {
        let path = name.path();
        let fail = |what| move |e| failed(path, what, e);
        let names = self.target.list(&dir).map_err(fail("list"))?;
        let mut levels = vec![(dir, id, names, Vec::new(), None)];
        while let Some((dir, id, names, ..)) = levels.last_mut() {
            self.tally.step()?;
            let Some(child) = names.pop() else {
                let done = levels.pop();
                if let (Some((dir, _, _, name, Some(later))), Some((above, ..))) = (done, levels.last()) {
                    let spot = Spot { dir: above, name: &name, path };
                    self.target.leave(spot, &dir, later).map_err(fail("set times of directory"))?;
                }
                continue;
            };
            let child_id = self.ours.child(*id, &child);
            let spot = Spot { dir, name: &child, path };
            if !self.ours.is_put(child_id) {
                self.target.remove(spot).map_err(fail("remove"))?;
            } else if !self.ours.is_made(child_id)
                && let Look::Dir(found) = self.target.look(dir, &child).map_err(fail("look at"))?
            {
                let later = match self.ours.is_described(child_id) {
                    true => Some(self.target.enter_again(spot, &found).map_err(fail("open directory"))?),
                    false => None,
                };
                let names = self.target.list(&found).map_err(fail("list"))?;
                levels.push((found, child_id, names, child, later));
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        source: &mut dyn Source,
        entry: &Entry,
        name: &Name,
    ) -> std::result::Result<(), Stop> {
        let attributes = Attributes::of(entry);
        match &entry.kind {
            EntryKind::Dir => self.directory(name, &attributes),
            EntryKind::File => {
                let size_bytes = entry.size_bytes;
                self.replace(name, |target, spot, tally, report| {
                    let mut content = Watched { source: &mut *source, tally, size_bytes };
                    target.make_file(spot, &attributes, &mut content, report)
                })
            }
            EntryKind::Symlink(text) => {
                if text.contains(&0) {
                    return Err(Stop::Failed(invalid(name.path(), "there is a NUL byte in the symlink")));
                }
                self.way.changed();
                self.special(name, Special::Symlink(text), &attributes)
            }
            EntryKind::Fifo => self.special(name, Special::Node(Kind::Fifo, Device::default()), &attributes),
            &EntryKind::Char { major, minor } => {
                self.special(name, Special::Node(Kind::Char, Device { major, minor }), &attributes)
            }
            &EntryKind::Block { major, minor } => {
                self.special(name, Special::Node(Kind::Block, Device { major, minor }), &attributes)
            }
            EntryKind::HardLink(_) => Ok(()),
        }
    }

    fn special(
        &mut self,
        name: &Name,
        special: Special<'_>,
        attributes: &Attributes<'_>,
    ) -> std::result::Result<(), Stop> {
        self.replace(name, |target, spot, _, report| target.make_special(spot, special, attributes, report))
    }

    /// Makes something in place of whatever is there.
    fn replace(
        &mut self,
        name: &Name,
        mut make: impl FnMut(&mut T, Spot<'_, T::Dir>, &mut Tally<'a>, &mut Applied) -> Done<Made<()>>,
    ) -> std::result::Result<(), Stop> {
        let dir = self.way.dir();
        let spot = Spot { dir: &dir, name: name.base(), path: name.path() };
        for _ in 0..TRIES {
            let made = make(self.target, spot, &mut self.tally, &mut self.report);
            match made.map_err(|e| failed(name.path(), "make", e))? {
                Made::New(()) => {
                    self.way.note_put(&mut self.ours, name.base());
                    return Ok(());
                }
                Made::Taken => self.target.remove(spot).map_err(|e| failed(name.path(), "replace", e))?,
            }
            self.way.changed();
        }
        Err(Stop::Failed(meddled(name)))
    }

    /// Makes a directory, or gives the one that is there its attributes.
    fn directory(&mut self, name: &Name, attributes: &Attributes<'_>) -> std::result::Result<(), Stop> {
        let dir = self.way.dir();
        let base = name.base();
        let spot = Spot { dir: &dir, name: base, path: name.path() };
        let fail = |what| move |e| failed(name.path(), what, e);
        let id = self.way.child_id(&self.ours, base);
        let mut before = Before::Unknown;
        for _ in 0..TRIES {
            let made = self.target.make_dir(spot, attributes, before, &mut self.report);
            if let Made::New((made, later)) = made.map_err(fail("make directory"))? {
                self.way.note_put(&mut self.ours, base);
                if !self.way.is_fresh() {
                    self.ours.note_made(id);
                }
                self.ours.note_described(id);
                let sealed = before == Before::NoDir;
                let entered = Entered { dir: made, later, fresh: true, sealed };
                return self.way.enter(self.target, &self.ours, base, entered);
            }
            match self.target.look(&dir, base).map_err(fail("look at"))? {
                Look::Dir(found) => {
                    let later = self.target.change_dir(spot, &found, attributes, &mut self.report);
                    let later = later.map_err(fail("change directory"))?;
                    self.way.note_put(&mut self.ours, base);
                    self.ours.note_described(id);
                    let entered = Entered { dir: found, later, fresh: self.ours.is_made(id), sealed: false };
                    return self.way.enter(self.target, &self.ours, base, entered);
                }
                Look::Absent | Look::Removed => {}
                Look::Symlink(_) | Look::Other => {
                    self.target.remove(spot).map_err(fail("replace"))?;
                    before = Before::NoDir;
                }
            }
            self.way.changed();
        }
        Err(Stop::Failed(meddled(name)))
    }

    fn link(
        &mut self,
        name: &Name,
        written: &[u8],
        attributes: &Attributes<'_>,
    ) -> std::result::Result<(), Stop> {
        let mut source = Name::default();
        if written.contains(&0) {
            return Err(Stop::Failed(invalid(name.path(), "there is a NUL byte in the hard link")));
        }
        if !source.set(written) {
            return Err(Stop::Failed(invalid(name.path(), "a hard link cannot be to the root")));
        }
        let reached = self.way.go(self.target, &mut self.ours, source.dir(), Make::No, &mut self.report)?;
        if let Reached::Absent = reached {
            return Err(self.no_source(name, &source));
        }
        let (from, from_id) = (self.way.dir(), self.way.child_id(&self.ours, source.base()));
        self.go(name.dir())?;
        if from_id == self.way.child_id(&self.ours, name.base()) {
            return Err(Stop::Failed(invalid(name.path(), "it is a hard link to itself")));
        }
        let from = Spot { dir: &from, name: source.base(), path: source.path() };
        let dir = self.way.dir();
        let spot = Spot { dir: &dir, name: name.base(), path: name.path() };
        for _ in 0..TRIES {
            let linked = self.target.link(from, spot, attributes, &mut self.report);
            if matches!(&linked, Err(Failure::Disk(e)) if e.errno() == libc::EPERM)
                && matches!(self.target.look(from.dir, from.name), Ok(Look::Dir(_)))
            {
                return Err(Stop::Failed(invalid(name.path(), "a hard link cannot be to a directory")));
            }
            match linked.map_err(|e| failed(name.path(), "link", e))? {
                Linked::New => {
                    self.way.note_put(&mut self.ours, name.base());
                    return Ok(());
                }
                Linked::Taken => self.target.remove(spot).map_err(|e| failed(name.path(), "replace", e))?,
                Linked::NoSource => return Err(self.no_source(name, &source)),
            }
            self.way.changed();
        }
        Err(Stop::Failed(meddled(name)))
    }

    /// What a hard link is to is not there.
    fn no_source(&self, name: &Name, source: &Name) -> Stop {
        let cause = format!("it is a hard link to {}, which is not there", shown(source.path()));
        let error = invalid(name.path(), cause);
        match self.target.missing() {
            Missing::Made => Stop::Failed(error),
            Missing::NeedsLower => Stop::NeedsLower(error.to_string()),
        }
    }
}

fn expect_no_lower(marked: Marked, name: &Name) -> std::result::Result<(), Stop> {
    match marked {
        Marked::Yes | Marked::No => Ok(()),
        Marked::NeedsLower => {
            Err(Stop::NeedsLower(format!("{}: what it hides has to be known", shown(name.path()))))
        }
    }
}

fn meddled(name: &Name) -> Error {
    let cause = "somebody else changes the tree at the same time";
    Error::new(ErrorKind::Aborted, OPERATION, shown(name.path()), cause)
}

/// The error of an archive that is wrong.
fn invalid(path: &[u8], reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidArgument, OPERATION, shown(path), format!("invalid archive: {reason}"))
}

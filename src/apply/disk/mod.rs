//! A directory that archives are applied to: the whole tree, or a layer of one.
//!
//! In a whole tree what a whiteout names is deleted. In a layer, whose lower layers need not be known, it becomes a mark,
//! as the kernel's overlayfs would have made it (`layer`); a directory that takes the place of something removed hides
//! what is below it, and what would be a mark by chance is escaped.
//!
//! Every call is about one name in an open directory, without following it; what was made is changed by its descriptor
//! where it has one. What the first file of a directory gets by itself (owner, group) is looked at, and the next ones
//! get the same: most files need no chown and no chmod.

mod layer;
mod plain;

use self::layer::Layer;
use self::plain::Plain;
use super::attributes::{Attributes, Times, is_access_list, is_capability};
use super::report::Applied;
use super::target::{
    Before, Content, Done, Failure, Later, Linked, Look, Made, Marked, Missing, Special, Spot, Target,
};
use crate::backend::delete::delete_at;
use crate::error::{Error, Result};
use plywood_fuse::error::{Error as SysError, Result as SysResult};
use plywood_fuse::layer::upper::UpperOptions;
use plywood_fuse::sys::open::DirMode;
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::stat::Stat;
use plywood_fuse::sys::{self, Place, node};
use plywood_fuse::types::{Device, Kind};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Bytes of content that are moved at once.
const BUFFER: usize = 256 * 1024;

/// Whether files belong to whom the archive says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SameOwner {
    /// They do, or applying fails.
    #[default]
    Keep,
    /// They do as far as this user may give files away; what is not given away loses set-user-id and set-group-id.
    IfPossible,
    /// They belong to whoever applies, without set-user-id and set-group-id.
    Ignore,
}

/// What is known of the layers below the one that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// There are none.
    Nothing,
    /// Nothing.
    Unknown,
}

/// A directory.
pub struct DirTarget {
    root: Dir,
    form: Form,
    umask: Option<u32>,
    /// Not bound by the modes of files.
    is_root: bool,
    buffer: Vec<u8>,
}

/// What the directory is.
enum Form {
    Plain(Plain),
    Layer(Layer),
}

/// An open directory.
#[derive(Clone)]
pub struct Dir(Arc<Open>);

struct Open {
    fd: OwnedFd,
    /// What new files in it get by themselves, once that is known; `None` if it has to be looked at each time.
    gives: OnceLock<Option<(u32, u32)>>,
}

impl Dir {
    fn of(fd: OwnedFd) -> Dir {
        Dir(Arc::new(Open { fd, gives: OnceLock::new() }))
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl DirTarget {
    /// The directory `path` as a whole tree.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn plain(path: &Path, same_owner: SameOwner) -> Result<DirTarget> {
        Self::new(path, Form::Plain(Plain::new(same_owner)))
    }

    /// The empty directory `path` as a layer; `work` is a directory beside it for what is not finished, made if it is
    /// missing.
    ///
    /// # Errors
    /// `Busy` while somebody has it mounted; those of opening both.
    pub fn layer(path: &Path, work: &Path, below: Below) -> Result<DirTarget> {
        Self::layer_with(path, work, below, UpperOptions::default())
    }

    /// As [`DirTarget::layer`], for who wants the marks in another form than the best that the disk has.
    ///
    /// # Errors
    /// As [`DirTarget::layer`].
    pub fn layer_with(path: &Path, work: &Path, below: Below, options: UpperOptions) -> Result<DirTarget> {
        Self::new(path, Form::Layer(Layer::open(path, work, below, options)?))
    }

    fn new(path: &Path, form: Form) -> Result<DirTarget> {
        let open = || {
            let base = sys::open::open_root(path)?;
            sys::open::open_dir_at(base.as_fd(), b".", DirMode::List)
        };
        let root = open().map_err(|e| Error::fuse("open", path.display().to_string(), e)).map(Dir::of)?;
        let is_root = effective_uid() == 0;
        Ok(DirTarget { root, form, umask: umask(), is_root, buffer: Vec::new() })
    }

    /// What a new file is, without asking where that is known: `asked` are the type and the permission bits it was made
    /// with.
    fn stat_of_new(&self, dir: &Dir, place: Place<'_>, asked: u32) -> SysResult<Stat> {
        let mask = match Kind::from_mode(asked) {
            // Always open to all.
            Kind::Symlink => Some(0),
            _ => self.umask,
        };
        if let (Some(Some((uid, gid))), Some(mask)) = (dir.0.gives.get(), mask) {
            return Ok(Stat { mode: asked & !mask, uid: *uid, gid: *gid, ..Stat::default() });
        }
        let stat = sys::stat::stat(place)?;
        if dir.0.gives.get().is_none() {
            let here = Place::Fd(dir.fd());
            // A group that is handed down is handed down to directories with the bit, a list changes modes.
            let hands_down = sys::stat::stat(here)?.mode & libc::S_ISGID != 0
                || sys::xattr::get_value(here, c"system.posix_acl_default")?.is_some();
            let _ = dir.0.gives.set((!hands_down).then_some((stat.uid, stat.gid)));
        }
        Ok(stat)
    }

    /// True for a tree whose files may belong to whoever makes them.
    fn goes_without_owners(&self) -> bool {
        matches!(&self.form, Form::Plain(plain) if plain.goes_without_owners())
    }

    /// Gives a file that has this `stat` its owner, attributes and mode; not its times.
    fn dress(
        &self,
        spot: Spot<'_, Dir>,
        place: Place<'_>,
        stat: &Stat,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> SysResult<()> {
        let here = (spot.dir.fd(), spot.name);
        // Who is bound by modes needs the right to write, to set attributes.
        let is_closed = !self.is_root && !attributes.xattrs.is_empty() && attributes.perm & 0o600 != 0o600;
        let chosen = match &self.form {
            Form::Plain(plain) => plain.give_owner(place, stat, attributes, spot.path, report)?,
            Form::Layer(layer) if is_closed => {
                let open = Attributes { perm: attributes.perm | 0o600, ..*attributes };
                layer.settle(here, place, stat, &open)?
            }
            Form::Layer(layer) => layer.settle(here, place, stat, attributes)?,
        };
        let mut changes_mode = false;
        for (name, value) in attributes.xattrs {
            changes_mode |= is_access_list(name);
            let set = |name: &CString| match &self.form {
                Form::Plain(_) => sys::xattr::set(place, name, value, sys::xattr::SetMode::Any),
                Form::Layer(layer) => layer.set_attribute(place, name, value),
            };
            match super::set_or_leave_out(spot.path, stat.kind(), name, report, set) {
                // Whoever may give no file away may give none a capability either.
                Err(e) if is_capability(name) && e.errno() == libc::EPERM && self.goes_without_owners() => {
                    report.xattr_left_out(spot.path, name, "this user may not set it");
                }
                other => other?,
            }
        }
        match (&self.form, chosen) {
            (Form::Layer(layer), _) if is_closed => {
                layer.settle(here, place, &self.shown(place)?, attributes)?;
            }
            (_, Some((now, perm))) if stat.kind() != Kind::Symlink && (now != perm || changes_mode) => {
                sys::stat::chmod(place, perm)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self, fd: BorrowedFd<'_>, content: &mut dyn Content) -> Done<()> {
        self.buffer.resize(BUFFER, 0);
        let mut end = 0;
        while let Some(segment) = content.next_segment().map_err(Failure::Caller)? {
            let mut at = segment.offset_bytes;
            loop {
                let read = content.read(&mut self.buffer).map_err(Failure::Caller)?;
                if read == 0 {
                    break;
                }
                if sys::copy::write_at(fd, &self.buffer[..read], at)? < read {
                    return Err(SysError::from_errno(libc::ENOSPC).into());
                }
                at += read as u64;
            }
            end = at;
        }
        if end < content.size_bytes() {
            sys::stat::truncate(fd, content.size_bytes())?;
        }
        Ok(())
    }

    /// What a file shows of itself: where it is a layer, not what the disk says alone.
    fn shown(&self, place: Place<'_>) -> SysResult<Stat> {
        let stat = sys::stat::stat(place)?;
        match &self.form {
            Form::Plain(_) => Ok(stat),
            Form::Layer(layer) => layer.shown(place, stat),
        }
    }

    /// Makes room for a new name: true if there was a mark in its place.
    fn take_mark(&self, spot: Spot<'_, Dir>) -> SysResult<bool> {
        match &self.form {
            Form::Plain(_) => Ok(false),
            Form::Layer(layer) => layer.take_mark(spot.dir.fd(), spot.name),
        }
    }

    /// Does what makes a new name; what is a mark only makes room for it. Returns whether it was made, and whether there
    /// was a mark.
    fn make<T>(&self, spot: Spot<'_, Dir>, make: impl Fn() -> SysResult<T>) -> SysResult<Option<(T, bool)>> {
        match make() {
            Err(e) if e.is_exists() => {}
            other => {
                let made = other?;
                let was_hidden = match &self.form {
                    Form::Layer(layer) => layer.has_mark_file(spot.dir.fd(), spot.name)?,
                    Form::Plain(_) => false,
                };
                return Ok(Some((made, was_hidden)));
            }
        }
        if !self.take_mark(spot)? {
            return Ok(None);
        }
        match make() {
            Err(e) if e.is_exists() => Ok(None),
            other => other.map(|made| Some((made, true))),
        }
    }

    /// A name that was hidden by a mark beside it is there again.
    fn forget_mark_file(&self, spot: Spot<'_, Dir>, was_hidden: bool) -> SysResult<()> {
        match &self.form {
            Form::Layer(layer) if was_hidden => layer.forget_mark_file(spot.dir.fd(), spot.name),
            _ => Ok(()),
        }
    }

    /// The permission bits that a new file is made with: its final ones where that is known to be right.
    fn first_perm(&self, attributes: &Attributes<'_>) -> u32 {
        let own = if self.is_root { 0 } else { 0o600 };
        (attributes.perm & 0o777) | own
    }
}

/// The permission bits that this process takes from new files, if it can be told.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}

/// Opens a directory: to list it if this user may, else to work in it.
fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<OwnedFd> {
    match sys::open::open_dir_at(dir, name, DirMode::List) {
        Err(e) if e.is_denied() => sys::open::open_dir_at(dir, name, DirMode::Base),
        other => other,
    }
}

impl Target for DirTarget {
    type Dir = Dir;

    fn root(&mut self) -> Done<Dir> {
        Ok(self.root.clone())
    }

    fn takes_devices(&self) -> bool {
        match &self.form {
            Form::Plain(plain) => plain.takes_devices(),
            Form::Layer(_) => true,
        }
    }

    fn missing(&self) -> Missing {
        match &self.form {
            Form::Layer(layer) if layer.below() == Below::Unknown => Missing::NeedsLower,
            _ => Missing::Made,
        }
    }

    fn look(&mut self, dir: &Dir, name: &[u8]) -> Done<Look<Dir>> {
        let absent = || match &self.form {
            Form::Layer(layer) if layer.has_mark_file(dir.fd(), name)? => Ok(Look::Removed),
            _ => Ok(Look::Absent),
        };
        match open_dir(dir.fd(), name) {
            Ok(fd) => return Ok(Look::Dir(Dir::of(fd))),
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENAMETOOLONG) => return absent(),
            Err(e) if matches!(e.errno(), libc::ENOTDIR | libc::ELOOP) => {}
            Err(e) => return Err(e.into()),
        }
        match node::read_link(dir.fd(), name) {
            Ok(text) => return Ok(Look::Symlink(text)),
            Err(e) if e.errno() == libc::EINVAL => {}
            Err(e) if e.errno() == libc::ENOENT => return absent(),
            Err(e) => return Err(e.into()),
        }
        match &self.form {
            Form::Plain(_) => Ok(Look::Other),
            Form::Layer(layer) => Ok(layer.look(dir.fd(), name)?),
        }
    }

    fn list(&mut self, dir: &Dir) -> Done<Vec<Vec<u8>>> {
        // Another descriptor: this one has a position, and may be none to list by.
        let listing = sys::open::open_dir_at(dir.fd(), b".", DirMode::List)?;
        let mut names = Vec::new();
        sys::dir::list(listing.as_fd(), usize::MAX, &mut |raw| names.push(raw.name.to_vec()))?;
        Ok(names)
    }

    fn make_dir(
        &mut self,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        before: Before,
        report: &mut Applied,
    ) -> Done<Made<(Dir, Later)>> {
        let asked = (attributes.perm & 0o777) | if self.is_root { 0 } else { 0o700 };
        let Some(((), was_hidden)) = self.make(spot, || node::mkdir(spot.dir.fd(), spot.name, asked))? else {
            return Ok(Made::Taken);
        };
        let fd = match sys::open::open_dir_at(spot.dir.fd(), spot.name, DirMode::List) {
            // The umask can take even our own permissions.
            Err(e) if e.is_denied() => {
                sys::stat::chmod(Place::At(spot.dir.fd(), spot.name), asked | 0o700)?;
                sys::open::open_dir_at(spot.dir.fd(), spot.name, DirMode::List)?
            }
            other => other?,
        };
        if let (Form::Layer(layer), true) = (&self.form, was_hidden || before == Before::NoDir) {
            layer.make_opaque(fd.as_fd())?;
        }
        self.forget_mark_file(spot, was_hidden)?;
        let place = Place::Fd(fd.as_fd());
        let stat = self.stat_of_new(spot.dir, place, Kind::Dir.mode_bits() | asked)?;
        let later = self.dress_dir(spot, place, &stat, attributes, report)?;
        Ok(Made::New((Dir::of(fd), later)))
    }

    fn make_file(
        &mut self,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        content: &mut dyn Content,
        report: &mut Applied,
    ) -> Done<Made<()>> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        let asked = self.first_perm(attributes);
        let open = || sys::open::open_at(spot.dir.fd(), spot.name, flags, asked);
        let Some((file, was_hidden)) = self.make(spot, open)? else { return Ok(Made::Taken) };
        self.forget_mark_file(spot, was_hidden)?;
        self.write(file.as_fd(), content)?;
        let place = Place::Fd(file.as_fd());
        let stat = self.stat_of_new(spot.dir, place, Kind::File.mode_bits() | asked)?;
        self.dress(spot, place, &stat, attributes, report)?;
        set_times(place, attributes)?;
        Ok(Made::New(()))
    }

    fn make_special(
        &mut self,
        spot: Spot<'_, Dir>,
        special: Special<'_>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Made<()>> {
        let (dir, name) = (spot.dir.fd(), spot.name);
        let kind = special.kind();
        let asked = kind.mode_bits() | if kind == Kind::Symlink { 0o777 } else { attributes.perm & 0o777 };
        let made = self.make(spot, || match (special, &self.form) {
            (Special::Symlink(text), _) => node::symlink(text, dir, name),
            (Special::Node(Kind::Fifo, _), _) => node::mknod(dir, name, asked, Device::default()),
            (Special::Node(_, device), Form::Plain(_)) => node::mknod(dir, name, asked, device),
            (Special::Node(kind, device), Form::Layer(layer)) => {
                layer.make_device(dir, name, kind, device, attributes)
            }
        })?;
        let Some(((), was_hidden)) = made else { return Ok(Made::Taken) };
        self.forget_mark_file(spot, was_hidden)?;
        let place = Place::At(dir, name);
        let stat = match (&self.form, kind) {
            // It may be something that stands for it.
            (Form::Layer(_), Kind::Char | Kind::Block) => self.shown(place)?,
            _ => self.stat_of_new(spot.dir, place, asked)?,
        };
        self.dress(spot, place, &stat, attributes, report)?;
        set_times(place, attributes)?;
        Ok(Made::New(()))
    }

    fn link(
        &mut self,
        source: Spot<'_, Dir>,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Linked> {
        let from = Place::At(source.dir.fd(), source.name);
        if let Form::Layer(layer) = &self.form
            && !layer.is_there(source.dir.fd(), source.name)?
        {
            return Ok(Linked::NoSource);
        }
        let made = match self.make(spot, || node::link(from, spot.dir.fd(), spot.name)) {
            Err(e) if e.is_absent() => return Ok(Linked::NoSource),
            other => other?,
        };
        let Some(((), was_hidden)) = made else { return Ok(Linked::Taken) };
        self.forget_mark_file(spot, was_hidden)?;
        let place = Place::At(spot.dir.fd(), spot.name);
        let stat = self.shown(place)?;
        self.dress(spot, place, &stat, attributes, report)?;
        if attributes.times.is_some_and(|times| times.mtime != stat.mtime || times.atime != stat.atime) {
            set_times(place, attributes)?;
        }
        Ok(Linked::New)
    }

    fn change_dir(
        &mut self,
        spot: Spot<'_, Dir>,
        itself: &Dir,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Later> {
        let place = Place::Fd(itself.fd());
        let stat = self.shown(place)?;
        Ok(self.dress_dir(spot, place, &stat, attributes, report)?)
    }

    fn enter_again(&mut self, spot: Spot<'_, Dir>, itself: &Dir) -> Done<Later> {
        let stat = sys::stat::stat(Place::Fd(itself.fd()))?;
        let mut later = Later { perm: None, times: Some(Times { atime: stat.atime, mtime: stat.mtime }) };
        let perm = stat.mode & 0o7777;
        if !self.is_root && perm & 0o700 != 0o700 {
            sys::stat::chmod(Place::At(spot.dir.fd(), spot.name), perm | 0o700)?;
            later.perm = Some(perm);
        }
        Ok(later)
    }

    fn leave(&mut self, spot: Spot<'_, Dir>, itself: &Dir, later: Later) -> Done<()> {
        if let Some(perm) = later.perm {
            sys::stat::chmod(Place::At(spot.dir.fd(), spot.name), perm)?;
        }
        if let Some(times) = later.times {
            let (atime, mtime) = times.to_set();
            sys::stat::set_times(Place::Fd(itself.fd()), atime, mtime)?;
        }
        Ok(())
    }

    fn remove(&mut self, spot: Spot<'_, Dir>) -> Done<()> {
        delete_at(spot.dir.fd(), spot.name).map_err(Failure::Caller)
    }

    fn mark_removed(&mut self, spot: Spot<'_, Dir>) -> Done<Marked> {
        match &self.form {
            Form::Plain(_) => Ok(Marked::Yes),
            Form::Layer(layer) => Ok(layer.mark_removed(spot.dir.fd(), spot.name)?),
        }
    }

    fn mark_opaque(&mut self, dir: &Dir) -> Done<Marked> {
        match &self.form {
            Form::Plain(_) => Ok(Marked::No),
            Form::Layer(layer) if layer.below() == Below::Nothing => Ok(Marked::Yes),
            // The kernel's overlayfs does not ask the root of a layer whether it is opaque.
            Form::Layer(_) if Arc::ptr_eq(&dir.0, &self.root.0) => Ok(Marked::NeedsLower),
            Form::Layer(layer) => layer.make_opaque(dir.fd()).map(|()| Marked::Yes).map_err(Failure::Disk),
        }
    }
}

impl DirTarget {
    /// As [`DirTarget::dress`], for a directory in which more will be made.
    fn dress_dir(
        &self,
        spot: Spot<'_, Dir>,
        place: Place<'_>,
        stat: &Stat,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> SysResult<Later> {
        let mut later = Later { perm: None, times: attributes.times };
        let mut now = *attributes;
        if !self.is_root && attributes.perm & 0o700 != 0o700 && matches!(self.form, Form::Plain(_)) {
            now.perm |= 0o700;
            later.perm = Some(attributes.perm);
        }
        self.dress(spot, place, stat, &now, report)?;
        Ok(later)
    }
}

fn set_times(place: Place<'_>, attributes: &Attributes<'_>) -> SysResult<()> {
    let Some(times) = attributes.times else { return Ok(()) };
    let (atime, mtime) = times.to_set();
    sys::stat::set_times(place, atime, mtime)
}

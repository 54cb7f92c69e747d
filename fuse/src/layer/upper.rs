//! The only writer: how the upper layer changes.
//!
//! Nothing appears half made under its name. What takes more than one step is built in the work directory
//! and published by one rename; what must vanish together with a whiteout appearing is swapped out to the
//! work directory by one rename and deleted there. The work directory is emptied at the next mount.
//!
//! Nothing in here knows of nodes or of the layers below: callers say which directory, which name.

use crate::error::{Error, Result};
use crate::idmap::OverrideName;
use crate::layer::ancestry::Ancestry;
use crate::layer::entry::DirContext;
use crate::layer::marks::{self, Mark, Namespace};
use crate::layer::probe::{self, Abilities, WhiteoutForm, Wishes};
use crate::layer::read::{self, FdCache};
use crate::sys::dir::RawName;
use crate::sys::node::RenameMode;
use crate::sys::open::DirMode;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Device, Ino, Kind};
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Whether changes are brought to the disk before they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// A copied-up file is synced before it is published; fsync does what it says.
    #[default]
    Durable,
    /// Nothing is synced: after a crash of the machine the upper layer is to be thrown away.
    Volatile,
}

/// When owners, modes and types are kept in an attribute instead of the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OverridePolicy {
    /// Where the disk refuses them.
    #[default]
    WhenRefused,
    /// Never: what the disk refuses fails.
    Never,
    /// Always, in this attribute.
    Always(OverrideName),
}

/// How an upper layer is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpperOptions {
    /// See [`Wishes`].
    pub wishes: Wishes,
    /// See [`Durability`].
    pub durability: Durability,
    /// See [`OverridePolicy`].
    pub overrides: OverridePolicy,
    /// How many directories are kept open.
    pub cached_dirs: usize,
}

/// The upper layer.
pub struct Upper {
    pub(super) root: OwnedFd,
    work: OwnedFd,
    /// Held to keep other mounts off the work directory; `None` if one was there first.
    _lock: Option<OwnedFd>,
    abilities: Abilities,
    durability: Durability,
    pub(super) policy: OverridePolicy,
    /// The attribute in use, as an index into [`OverrideName::ALL`], or [`NO_OVERRIDE`].
    pub(super) overrides: AtomicU8,
    uuid: Option<[u8; 16]>,
    device: u64,
    next_temp: AtomicU64,
    /// Part of the names in the work directory, so that two mounts that share one do not meet.
    process: u32,
    /// The name in the work directory of a whiteout that can be linked.
    whiteout: Mutex<Option<Vec<u8>>>,
    /// Descriptors of upper directories, by inode number.
    pub(crate) dirs: FdCache<Ino>,
    warning: Option<String>,
}

pub(super) const NO_OVERRIDE: u8 = u8::MAX;

/// How long a mount waits for another one to let go of the work directory, in steps of 20 ms: a server that
/// was just unmounted needs a moment to end.
const LOCK_TRIES: usize = 50;

impl Upper {
    /// Opens the upper layer and empties its work directory, which is made if it is missing.
    ///
    /// # Errors
    /// With the directory named: it is missing, is no directory, is not writable, or the two are not on one
    /// file system (EXDEV).
    pub fn open(upper: &Path, work: &Path, options: UpperOptions) -> Result<Upper> {
        let root = sys::open::open_root(upper)
            .map_err(|e| e.during("open upper layer", upper.display().to_string()))?;
        let device = sys::stat::stat(Place::dir(&root))
            .map_err(|e| e.during("open upper layer", upper.display().to_string()))?
            .dev;
        check_apart(root.as_fd(), upper, work)?;
        let (work_fd, lock) =
            open_work(work).map_err(|e| e.during("open work directory", work.display().to_string()))?;
        if sys::stat::stat(Place::dir(&work_fd))?.dev != device {
            return Err(Error::new(
                libc::EXDEV,
                "open work directory",
                work.display().to_string(),
                format!("not on the file system of upperdir {}; choose one beside it", upper.display()),
            ));
        }
        let warning = lock.is_none().then(|| {
            format!("work directory {} is in use by another mount; results are undefined", work.display())
        });
        if lock.is_some() {
            empty_dir(work_fd.as_fd())
                .map_err(|e| e.during("empty work directory", work.display().to_string()))?;
        }
        let abilities = probe::probe(work_fd.as_fd(), options.wishes)
            .map_err(|e| e.during("write to work directory", work.display().to_string()))?;
        let uuid = sys::open::open_dir_at(root.as_fd(), b".", DirMode::List)
            .and_then(|fd| sys::node::fs_uuid(fd.as_fd()))
            .ok();
        let found = match options.overrides {
            OverridePolicy::Always(name) => Some(name),
            OverridePolicy::Never => None,
            OverridePolicy::WhenRefused => read::find_override(Place::dir(&root))?,
        };
        let opened = Upper {
            root,
            work: work_fd,
            _lock: lock,
            abilities,
            durability: options.durability,
            policy: options.overrides,
            overrides: AtomicU8::new(NO_OVERRIDE),
            uuid,
            device,
            next_temp: AtomicU64::new(0),
            process: std::process::id(),
            whiteout: Mutex::new(None),
            dirs: FdCache::new(options.cached_dirs),
            warning,
        };
        if let Some(name) = found {
            opened.turn_overrides_on(name)?;
        }
        Ok(opened)
    }

    /// Something the user should know although the layer could be opened.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The work directory.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// What the disk can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Whether changes are synced.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// The device number of the disk.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The UUID of the file system, if it tells.
    pub fn uuid(&self) -> Option<[u8; 16]> {
        self.uuid
    }

    // Marks ------------------------------------------------------------------------------------------------

    /// True if marks can be written at all.
    pub fn can_mark(&self) -> bool {
        self.abilities.namespace.is_some()
    }

    /// The namespace for names that users of the mount set.
    pub fn namespace(&self) -> Namespace {
        self.abilities.namespace.unwrap_or(Namespace::User)
    }

    /// Writes a mark.
    ///
    /// # Errors
    /// EOPNOTSUPP if the disk takes none; else those of the disk.
    pub fn set_mark(&self, place: Place<'_>, mark: Mark, value: &[u8]) -> Result<()> {
        let namespace = self.abilities.namespace.ok_or(Error::from_errno(libc::EOPNOTSUPP))?;
        as_owner(place, || sys::xattr::set(place, namespace.attribute(mark), value, SetMode::Any))
    }

    /// Removes a mark; it may be missing.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove_mark(&self, place: Place<'_>, mark: Mark) -> Result<()> {
        let Some(namespace) = self.abilities.namespace else { return Ok(()) };
        match as_owner(place, || sys::xattr::remove(place, namespace.attribute(mark))) {
            Err(e) if e.is_no_attribute() => Ok(()),
            other => other,
        }
    }

    /// Makes a directory hide those below it.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn make_opaque(&self, dir: BorrowedFd<'_>) -> Result<()> {
        if self.can_mark() {
            return self.set_mark(Place::dir(&dir), Mark::Opaque, b"y");
        }
        let flags = libc::O_CREAT | libc::O_WRONLY;
        sys::open::open_at(dir, marks::OPAQUE_FILE, flags, 0o644).map(drop)
    }

    // Names ------------------------------------------------------------------------------------------------

    /// Moves what was built in the work directory to its name, in place of what is there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn publish(&self, temp: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let rename = || sys::node::rename(self.work(), temp, dir, name, RenameMode::Replace);
        match rename() {
            Err(e) if e.is_denied() => {
                // Both need the write bit: the directory that gets the name, and a directory that moves.
                let perm = let_owner_in(Place::dir(&dir))?;
                let own_perm = let_owner_in(Place::At(self.work(), temp))?;
                let done = if perm.or(own_perm).is_some() { rename() } else { Err(e) };
                if let Some(own_perm) = own_perm {
                    let place = match &done {
                        Ok(()) => Place::At(dir, name),
                        Err(_) => Place::At(self.work(), temp),
                    };
                    sys::stat::chmod(place, own_perm)?;
                }
                if let Some(perm) = perm {
                    sys::stat::chmod(Place::dir(&dir), perm)?;
                }
                done
            }
            other => other,
        }
    }

    /// A name in the work directory that nobody uses.
    pub fn temp_name(&self) -> Vec<u8> {
        let count = self.next_temp.fetch_add(1, Ordering::Relaxed);
        format!("#{:x}.{count:x}", self.process).into_bytes()
    }

    /// Makes a whiteout where the upper directory has nothing.
    ///
    /// # Errors
    /// ENAMETOOLONG if the name has no room for `.wh.`; else those of the disk.
    pub fn make_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        match self.abilities.whiteout {
            WhiteoutForm::Device => self.link_whiteout(dir, name),
            WhiteoutForm::File => {
                let marker = marks::aufs_whiteout(name).ok_or(Error::from_errno(libc::ENAMETOOLONG))?;
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                match sys::open::open_at(dir, &marker, flags, 0o644) {
                    Err(e) if e.is_exists() && read::is_mark_file(dir, &marker)? => Ok(()),
                    Err(e) if e.is_exists() => Err(Error::new(
                        libc::EPERM,
                        "hide",
                        name.escape_ascii().to_string(),
                        "a file of the whiteout's name is there, and this disk takes no other whiteouts",
                    )),
                    other => other.map(drop),
                }
            }
        }
    }

    /// Links the shared whiteout, so that a thousand of them need one inode.
    fn link_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let mut shared = self.whiteout.lock();
        for _ in 0..2 {
            let temp = match &*shared {
                Some(temp) => temp.clone(),
                None => {
                    let temp = self.temp_name();
                    sys::node::mknod(self.work(), &temp, libc::S_IFCHR, Device::default())?;
                    shared.insert(temp).clone()
                }
            };
            match sys::node::link(Place::At(self.work(), &temp), dir, name) {
                // Too many links, or somebody emptied the work directory: take a new one.
                Err(e) if e.is_link_limit() || e.is_absent() => *shared = None,
                // Not on this disk, or not for us: each whiteout is an inode of its own.
                Err(e) if e.is_denied() || e.is_cross_device() || e.is_unsupported() => {
                    return sys::node::mknod(dir, name, libc::S_IFCHR, Device::default());
                }
                other => return other,
            }
        }
        sys::node::mknod(dir, name, libc::S_IFCHR, Device::default())
    }

    /// Replaces an entry by a whiteout, in one step where the disk can do that, and deletes the entry.
    ///
    /// # Errors
    /// Those of the disk; then the entry is still there.
    pub fn replace_by_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8], kind: Kind) -> Result<()> {
        let temp = self.temp_name();
        if self.abilities.whiteout == WhiteoutForm::File {
            self.make_whiteout(dir, name)?;
            sys::node::rename(dir, name, self.work(), &temp, RenameMode::Replace)?;
        } else if kind != Kind::Dir {
            self.link_whiteout(self.work(), &temp)?;
            let renamed = sys::node::rename(self.work(), &temp, dir, name, RenameMode::Replace);
            if renamed.is_err() {
                let _ = sys::node::unlink(self.work(), &temp);
            }
            return renamed;
        } else if self.abilities.exchange {
            self.link_whiteout(self.work(), &temp)?;
            let swapped = sys::node::rename(self.work(), &temp, dir, name, RenameMode::Exchange);
            if swapped.is_err() {
                let _ = sys::node::unlink(self.work(), &temp);
            }
            swapped?;
        } else {
            sys::node::rename(dir, name, self.work(), &temp, RenameMode::Replace)?;
            self.make_whiteout(dir, name)?;
        }
        self.delete_temp(&temp, kind);
        Ok(())
    }

    /// Takes an entry out of sight and deletes it.
    ///
    /// # Errors
    /// Those of the disk; then the entry is still there.
    pub fn remove_tree(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let temp = self.temp_name();
        sys::node::rename(dir, name, self.work(), &temp, RenameMode::Replace)?;
        self.delete_temp(&temp, Kind::Dir);
        Ok(())
    }

    /// Removes the whiteout of a name, if there is one. In the form of a device it *is* the name.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove_whiteout_file(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let Some(marker) = marks::aufs_whiteout(name) else { return Ok(()) };
        match sys::node::unlink(dir, &marker) {
            Err(e) if e.is_absent() => Ok(()),
            other => other,
        }
    }

    /// Deletes what was moved to the work directory; what cannot be deleted waits for the next mount.
    pub fn delete_temp(&self, temp: &[u8], kind: Kind) {
        if kind != Kind::Dir {
            let _ = sys::node::unlink(self.work(), temp);
            return;
        }
        if sys::node::rmdir(self.work(), temp).is_ok() {
            return;
        }
        if let Ok(dir) = sys::open::open_dir_at(self.work(), temp, DirMode::List) {
            let _ = empty_dir(dir.as_fd());
        }
        let _ = sys::node::rmdir(self.work(), temp);
    }

    /// Reads what matters of an upper directory for its entries.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read_context(&self, dir: BorrowedFd<'_>) -> Result<DirContext> {
        Ok(read::read_marks(Place::At(dir, b"."), self.overrides())?.context())
    }
}

/// Changes an attribute of a file; one whose mode closes it to its owner, this process, is opened for a moment.
pub(super) fn as_owner(place: Place<'_>, change: impl Fn() -> Result<()>) -> Result<()> {
    match change() {
        Err(e) if e.is_denied() => {
            let Some(perm) = let_owner_in(place)? else { return Err(e) };
            let done = change();
            sys::stat::chmod(place, perm)?;
            done
        }
        other => other,
    }
}

/// Gives the owner of a file or directory the write bit for a moment; returns the mode to be given back, or
/// `None` if the bit was there or is not ours to give.
///
/// A server without privilege is bound by the modes of its own files, and a copy has to be made in a directory
/// that its owner may not write to. A crash in that moment leaves bits for the owner, for nobody else.
fn let_owner_in(place: Place<'_>) -> Result<Option<u32>> {
    let stat = sys::stat::stat(place)?;
    let perm = stat.mode & 0o7777;
    let wanted = match stat.kind() {
        Kind::Dir => perm | 0o300,
        Kind::File => perm | 0o200,
        _ => perm,
    };
    Ok((wanted != perm && sys::stat::chmod(place, wanted).is_ok()).then_some(perm))
}

/// Fails if one of the two directories is the other, or inside of it: the work directory is emptied.
fn check_apart(root: BorrowedFd<'_>, upper: &Path, work: &Path) -> Result<()> {
    // One that is missing is made, or told about.
    let Ok(outer) = sys::open::open_root(work) else { return Ok(()) };
    let who = |fd: BorrowedFd<'_>| sys::stat::stat(Place::dir(&fd)).map(|stat| (stat.dev, stat.ino)).ok();
    let same = who(root).is_some_and(|root| who(outer.as_fd()) == Some(root));
    let inside = |dir: &Path, root| Ancestry::of(dir).is_some_and(|dir| dir.below(root).is_some());
    if !same && !inside(work, root) && !inside(upper, outer.as_fd()) {
        return Ok(());
    }
    let subject = work.display().to_string();
    let cause = format!("workdir is or overlaps upperdir {}; choose one beside it", upper.display());
    Err(Error::new(libc::EINVAL, "open work directory", subject, cause))
}

/// Opens `<work>/work`, made if it is missing, and a lock on it.
fn open_work(work: &Path) -> Result<(OwnedFd, Option<OwnedFd>)> {
    let outer = match sys::open::open_root(work) {
        Err(e) if e.is_absent() && !work.exists() => {
            std::fs::create_dir(work)?;
            sys::open::open_root(work)?
        }
        other => other?,
    };
    match sys::node::mkdir(outer.as_fd(), b"work", 0o700) {
        Err(e) if !e.is_exists() => return Err(e),
        _ => {}
    }
    // The kernel's overlayfs leaves its work directory without any permission.
    let inner = match sys::open::open_dir_at(outer.as_fd(), b"work", DirMode::List) {
        Err(e) if e.is_denied() => {
            sys::stat::chmod(Place::At(outer.as_fd(), b"work"), 0o700)?;
            sys::open::open_dir_at(outer.as_fd(), b"work", DirMode::List)?
        }
        other => other?,
    };
    for _ in 0..LOCK_TRIES {
        match sys::open::try_lock(inner.as_fd()) {
            Ok(true) => {
                let lock = inner.try_clone()?;
                return Ok((inner, Some(lock)));
            }
            Ok(false) => std::thread::sleep(std::time::Duration::from_millis(20)),
            // No locks on this disk: nobody can be told apart.
            Err(_) => {
                let lock = inner.try_clone()?;
                return Ok((inner, Some(lock)));
            }
        }
    }
    Ok((inner, None))
}

/// How deep a directory is emptied by recursion; what lies deeper is moved up first, so that neither descriptors nor the
/// stack run out.
const MAX_DEPTH: usize = 32;

/// Removes everything below an open directory, never through a symlink, however deep it is.
///
/// # Errors
/// Those of the disk.
pub fn empty_dir(dir: BorrowedFd<'_>) -> Result<()> {
    let mut moved = Moved { top: dir, count: 0 };
    loop {
        let before = moved.count;
        empty_below(dir, 0, &mut moved)?;
        if moved.count == before {
            return Ok(());
        }
    }
}

/// Directories that were too deep, and are in the top one now.
struct Moved<'a> {
    top: BorrowedFd<'a>,
    count: u64,
}

impl Moved<'_> {
    fn take(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        loop {
            let new = format!("#deep.{}", self.count);
            self.count += 1;
            match sys::node::rename(dir, name, self.top, new.as_bytes(), RenameMode::NoReplace) {
                Err(e) if e.is_exists() => {}
                other => return other,
            }
        }
    }
}

fn empty_below(dir: BorrowedFd<'_>, depth: usize, moved: &mut Moved<'_>) -> Result<()> {
    let mut names: Vec<(Box<[u8]>, u8)> = Vec::new();
    let listing = sys::open::open_dir_at(dir, b".", DirMode::List)?;
    sys::dir::list(listing.as_fd(), usize::MAX, &mut |raw: RawName<'_>| {
        names.push((raw.name.into(), raw.kind))
    })?;
    drop(listing);
    for (name, kind) in names {
        if kind != libc::DT_DIR && sys::node::unlink(dir, &name).is_ok() {
            continue;
        }
        match sys::node::rmdir(dir, &name) {
            Ok(()) => continue,
            Err(e) if e.errno() == libc::ENOTDIR => {
                sys::node::unlink(dir, &name)?;
                continue;
            }
            Err(_) => {}
        }
        let open = || sys::open::open_dir_at(dir, &name, DirMode::List);
        let inner = match open() {
            Err(e) if e.is_denied() => {
                sys::stat::chmod(Place::At(dir, &name), 0o700)?;
                open()?
            }
            other => other?,
        };
        if depth == MAX_DEPTH {
            // A directory that moves has to be open to its owner.
            sys::stat::chmod(Place::Fd(inner.as_fd()), 0o700)?;
            moved.take(dir, &name)?;
            continue;
        }
        empty_below(inner.as_fd(), depth + 1, moved)?;
        sys::node::rmdir(dir, &name)?;
    }
    Ok(())
}

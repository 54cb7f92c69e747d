//! One open LMDB environment, and the rules under which its transactions run.
//!
//! The gate: every transaction holds it shared; whoever changes the map holds it exclusively, because a reader
//! whose map moves away dies of SIGBUS. A thread has at most one transaction of a store at a time, else a map
//! that has to grow would wait for itself.
//!
//! The map grows before a writer begins if little room is left, and again if that was not enough: then the
//! writer's closure runs a second time. If another process has grown it, this one follows.

use super::open;
use super::reader::{Reader, Txn};
use super::registry::{self, Identity};
use super::schema::Tables;
use super::turns::Turns;
use super::writer::Purpose;
use crate::error::{Error, ErrorKind, Result};
use crate::sys;
use lmdb::{Environment, RoTransaction};
use parking_lot::RwLock;
use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Nothing that was answered.
    #[default]
    Full,
    /// The last transactions; what is there stays consistent.
    Relaxed,
}

/// How a store is opened. Only the first who opens it in a process is asked.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// Size of the map in bytes: address space, not memory and not disk.
    pub map_bytes: usize,
    /// Size in bytes that it may grow to; beyond it the store is full. Removals may go beyond it little by little,
    /// since they need room too before they give any.
    pub max_map_bytes: usize,
    /// Transactions that may read at the same time, in all processes together. Whoever opens a store that nobody
    /// has open decides.
    pub max_readers: u32,
    /// What a power cut may take.
    pub durability: Durability,
    /// Whether a remote file system is accepted: only where a single machine ever opens the store, and its
    /// mmap and locks are sound.
    pub allow_remote_fs: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            map_bytes: 1 << 30,
            max_map_bytes: usize::try_from(64_u64 << 30).unwrap_or(1 << 31),
            max_readers: 1024,
            durability: Durability::Full,
            allow_remote_fs: false,
        }
    }
}

/// How large a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Size of the map in bytes.
    pub map_bytes: u64,
    /// Bytes up to the last page that was ever used; pages before it may be free.
    pub used_bytes: u64,
    /// Slots of the reader table that have been used.
    pub readers: u32,
}

/// The rows of one directory. Shared by all who open it in this process.
pub struct Store {
    db_dir: PathBuf,
    identity: Identity,
    pub(super) settings: StoreSettings,
    store_id: String,
    /// `None` once it is closed.
    pub(super) gate: RwLock<Option<Opened>>,
    /// Whose turn it is to write: LMDB's own lock does not know who came first.
    pub(super) turns: Turns,
    /// Whether the registry still knows it.
    registered: AtomicBool,
}

/// An environment and the handles of its tables.
pub(super) struct Opened {
    pub(super) env: Environment,
    pub(super) tables: Tables,
}

/// Room that a writer shall find free when it begins: a quarter of the map, at most this many bytes.
const HEADROOM: usize = 4 << 20;

/// What a removal may take beyond the limit, each time that the store is full: some sixty pages.
const RESERVE: usize = 256 << 10;

/// The size of a map is a multiple of this: the largest page of any machine.
const MAP_UNIT: usize = 64 << 10;

/// Times a reader waits for a free slot, and how long each time: two seconds in all.
const SLOT_TRIES: u32 = 200;
const SLOT_WAIT: Duration = Duration::from_millis(10);

/// Times a transaction begins anew because another process has grown the map, or because it grew here.
pub(super) const MAP_TRIES: u32 = 64;

impl Store {
    /// Opens the store in `db_dir`, or makes it, directory included.
    ///
    /// If this process has it open already the answer is the same one, and `settings` count for nothing.
    ///
    /// # Errors
    /// `Unsupported` on a remote file system; `Corrupt` if the file is cut or no store; `FailedPrecondition` if a
    /// newer program made it; those of the disk.
    pub fn open(db_dir: &Path, settings: &StoreSettings) -> Result<Arc<Store>> {
        let place = open::Place::create(db_dir)?;
        registry::get_or_open(place.identity, || {
            let (opened, store_id) = open::open(&place, settings)?;
            Ok(Arc::new(Store {
                db_dir: place.path.clone(),
                identity: place.identity,
                settings: settings.clone(),
                store_id,
                gate: RwLock::new(Some(opened)),
                turns: Turns::default(),
                registered: AtomicBool::new(true),
            }))
        })
    }

    /// Where it is.
    pub fn db_dir(&self) -> &Path {
        &self.db_dir
    }

    /// Its random name, made with it: 32 hexadecimal digits.
    pub fn store_id(&self) -> &str {
        &self.store_id
    }

    /// Closes it for everyone in this process who shares it, once their transactions have ended. Closing again
    /// is fine.
    ///
    /// # Errors
    /// Those of the disk, if the last transactions cannot be made durable; it is closed nevertheless.
    /// `FailedPrecondition` from within a transaction.
    pub fn close(&self) -> Result<()> {
        let _inside = Inside::enter(self, "close store")?;
        let mut synced = Ok(());
        self.close_once(|opened| {
            if self.settings.durability == Durability::Relaxed {
                synced = opened.env.sync(true).map_err(|e| failed("close store", "", e));
            }
        });
        synced
    }

    /// Makes certain that what was written cannot be lost any more, before something is done that relies on it: a row that
    /// came back after a power cut would miss its directory. With [`Durability::Full`] that is so already.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn settle(&self, operation: &'static str) -> Result<()> {
        if self.settings.durability == Durability::Full {
            return Ok(());
        }
        // Also from within a transaction.
        match &*self.gate.read_recursive() {
            Some(opened) => opened.env.sync(true).map_err(|e| failed(operation, "", e)),
            // It was synced when it was closed.
            None => Ok(()),
        }
    }

    fn close_once(&self, before: impl FnOnce(&Opened)) {
        if !self.registered.swap(false, Ordering::AcqRel) {
            return;
        }
        registry::close(self.identity, || {
            let opened = self.gate.write().take();
            if let Some(opened) = &opened {
                before(opened);
            }
        });
    }

    /// Reads one moment of the store. `operation` stands in every error of its rows.
    ///
    /// # Errors
    /// `Unavailable` once it is closed; `Busy` if more readers than there are slots do not end;
    /// `FailedPrecondition` from within another transaction of this thread; those of `f`.
    pub fn read<T>(&self, operation: &'static str, f: impl FnOnce(&Reader<'_>) -> Result<T>) -> Result<T> {
        let _inside = Inside::enter(self, operation)?;
        let (mut slot_tries, mut map_tries) = (SLOT_TRIES, MAP_TRIES);
        loop {
            let gate = self.gate.read();
            let opened = open_or_closed(&gate, operation)?;
            let error = match opened.begin_read() {
                Ok(txn) => return f(&Reader::new(Txn::Read(txn), &opened.tables, operation)),
                Err(error) => error,
            };
            match error {
                lmdb::Error::MapResized if map_tries > 0 => {
                    map_tries -= 1;
                    drop(gate);
                    self.follow(operation)?;
                }
                lmdb::Error::ReadersFull if slot_tries > 0 => {
                    slot_tries -= 1;
                    let swept = sys::lmdb::sweep_readers(&opened.env);
                    drop(gate);
                    if swept.map_err(|e| failed(operation, "reader table", e))? == 0 {
                        std::thread::sleep(SLOT_WAIT);
                    }
                }
                error => return Err(failed(operation, "", error)),
            }
        }
    }

    /// Enlarges the map beyond the size that a writer found too small.
    pub(super) fn make_room(&self, operation: &'static str, seen: usize, purpose: Purpose) -> Result<()> {
        let mut gate = self.gate.write();
        let opened = open_or_closed(&gate, operation)?;
        let present = opened.size(operation)?.map_bytes as usize;
        // Another thread was quicker.
        if present > seen {
            return Ok(());
        }
        crate::fail::point("db.resize")?;
        let mut wanted = present.saturating_mul(2).min(self.settings.max_map_bytes) / MAP_UNIT * MAP_UNIT;
        if wanted <= present && purpose == Purpose::Frees {
            wanted = present.saturating_add(RESERVE) / MAP_UNIT * MAP_UNIT;
        }
        if wanted <= present {
            let cause =
                format!("the store has reached its limit of {present} bytes: raise it, or remove snapshots");
            return Err(Error::new(ErrorKind::NoSpace, operation, "", cause));
        }
        tracing::debug!(from = present, to = wanted, "the map of the store grows");
        self.remap(operation, &mut gate, wanted)
    }

    /// Takes over the size that another process gave the map.
    pub(super) fn follow(&self, operation: &'static str) -> Result<()> {
        let mut gate = self.gate.write();
        self.remap(operation, &mut gate, 0)
    }

    /// Maps the file anew, with the gate held by us alone. If that fails LMDB is left without a map.
    fn remap(&self, operation: &'static str, gate: &mut Option<Opened>, bytes: usize) -> Result<()> {
        let opened = open_or_closed(gate, operation)?;
        let former = opened.size(operation)?.map_bytes as usize;
        let Err(error) = opened.env.set_map_size(bytes) else { return Ok(()) };
        self.replace(operation, gate, former)?;
        Err(failed(operation, "map of the store", error))
    }

    /// Opens the environment anew after an error that it does not recover from.
    pub(super) fn reopen(&self, operation: &'static str, map_bytes: usize) -> Result<()> {
        let mut gate = self.gate.write();
        self.replace(operation, &mut gate, map_bytes)
    }

    fn replace(&self, operation: &'static str, gate: &mut Option<Opened>, map_bytes: usize) -> Result<()> {
        if gate.take().is_none() {
            return Err(closed(operation));
        }
        tracing::warn!(dir = %self.db_dir.display(), "opening the store anew");
        let place = open::Place { path: self.db_dir.clone(), identity: self.identity };
        let settings = StoreSettings { map_bytes, ..self.settings.clone() };
        *gate = Some(open::open(&place, &settings)?.0);
        Ok(())
    }

    /// Frees the reader slots of processes that were killed while they read; returns how many there were.
    ///
    /// # Errors
    /// `Unavailable` once it is closed.
    pub fn sweep_readers(&self) -> Result<usize> {
        let operation = "sweep readers";
        let gate = self.gate.read_recursive();
        let opened = open_or_closed(&gate, operation)?;
        sys::lmdb::sweep_readers(&opened.env).map_err(|e| failed(operation, "", e))
    }

    /// How large it is.
    ///
    /// # Errors
    /// `Unavailable` once it is closed.
    pub fn size(&self) -> Result<Size> {
        let gate = self.gate.read_recursive();
        open_or_closed(&gate, "size of store")?.size("size of store")
    }

    /// Writes a copy of one moment without free pages to a new file: the data file itself never shrinks. It may
    /// take the place of `data.mdb` while no process has the store open.
    ///
    /// # Errors
    /// `AlreadyExists` if there is such a file; those of the disk, and then nothing stays.
    pub fn copy_compact(&self, to: &Path) -> Result<()> {
        let operation = "compact store";
        let _inside = Inside::enter(self, operation)?;
        let gate = self.gate.read();
        let opened = open_or_closed(&gate, operation)?;
        let subject = || to.display().to_string();
        let file = File::options().write(true).create_new(true).mode(0o600).open(to);
        let file = file.map_err(|e| Error::io(operation, subject(), e))?;
        let copied =
            sys::lmdb::copy_compact(&opened.env, file.as_fd()).map_err(|e| failed(operation, subject(), e));
        let result = copied.and_then(|()| file.sync_all().map_err(|e| Error::io(operation, subject(), e)));
        if result.is_err() {
            // Best effort: the first failure is the one to tell.
            let _ = std::fs::remove_file(to);
        }
        result
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close_once(|opened| {
            if self.settings.durability == Durability::Relaxed
                && let Err(error) = opened.env.sync(true)
            {
                tracing::warn!(dir = %self.db_dir.display(), %error, "the store could not be synced");
            }
        });
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("db_dir", &self.db_dir).finish_non_exhaustive()
    }
}

impl Opened {
    fn begin_read(&self) -> std::result::Result<RoTransaction<'_>, lmdb::Error> {
        match crate::fail::point("db.readers_full") {
            Ok(()) => self.env.begin_ro_txn(),
            Err(_) => Err(lmdb::Error::ReadersFull),
        }
    }

    pub(super) fn size(&self, operation: &'static str) -> Result<Size> {
        let failed = |e| failed(operation, "", e);
        let (info, stat) = (self.env.info().map_err(failed)?, self.env.stat().map_err(failed)?);
        Ok(Size {
            map_bytes: info.map_size() as u64,
            used_bytes: (info.last_pgno() as u64 + 1) * u64::from(stat.page_size()),
            readers: info.num_readers(),
        })
    }

    pub(super) fn lacks_room(&self, size: &Size) -> bool {
        let wanted = (size.map_bytes / 4).min(HEADROOM as u64);
        size.map_bytes.saturating_sub(size.used_bytes) < wanted
    }

    /// The error of a commit.
    pub(super) fn not_committed(&self, operation: &'static str, error: lmdb::Error) -> Error {
        failed(operation, "", self.real_cause(error))
    }

    /// LMDB says EIO where the disk took only a part of what it was to write.
    fn real_cause(&self, error: lmdb::Error) -> lmdb::Error {
        if error == lmdb::Error::Other(libc::EIO) {
            let file = sys::lmdb::data_file(&self.env);
            let room = file.ok().and_then(|f| plywood_fuse::sys::stat::stat_fs(f).ok());
            if room.is_some_and(|fs| fs.blocks_available == 0) {
                return lmdb::Error::Other(libc::ENOSPC);
            }
        }
        error
    }

    /// Whether a transaction was not committed since the map or the disk had no room for it: a smaller one may find some.
    pub(super) fn had_no_room(&self, error: lmdb::Error) -> bool {
        match self.real_cause(error) {
            lmdb::Error::MapFull => true,
            // If it was the page that makes a transaction valid, nobody knows what the disk has, and nobody can begin.
            lmdb::Error::Other(libc::ENOSPC | libc::EDQUOT) => self.env.begin_rw_txn().is_ok(),
            _ => false,
        }
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "", "the store is closed")
}

pub(super) fn open_or_closed<'a>(gate: &'a Option<Opened>, operation: &'static str) -> Result<&'a Opened> {
    gate.as_ref().ok_or_else(|| closed(operation))
}

/// What LMDB's answer means.
pub(super) fn failed(operation: &'static str, subject: impl Into<String>, error: lmdb::Error) -> Error {
    use lmdb::Error as E;
    let kind = match error {
        E::Other(errno) => return Error::io(operation, subject, std::io::Error::from_raw_os_error(errno)),
        E::MapFull | E::TxnFull => ErrorKind::NoSpace,
        E::ReadersFull => ErrorKind::Busy,
        E::PageNotFound | E::Corrupted | E::Invalid | E::VersionMismatch | E::Incompatible => {
            ErrorKind::Corrupt
        }
        _ => ErrorKind::Io,
    };
    Error::new(kind, operation, subject, format!("the database says: {error}"))
}

thread_local! {
    /// The stores that this thread has a transaction of.
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// This thread has a transaction of a store.
pub(super) struct Inside(usize);

impl Inside {
    pub(super) fn enter(store: &Store, operation: &'static str) -> Result<Self> {
        let address = std::ptr::from_ref(store).addr();
        HELD.with_borrow_mut(|held| {
            if held.contains(&address) {
                let cause = "this thread has a transaction of the store already: end it first";
                return Err(Error::new(ErrorKind::FailedPrecondition, operation, "", cause));
            }
            held.push(address);
            Ok(Self(address))
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| held.retain(|&address| address != self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SnapshotId;
    use plywood_fuse::testing::TempDir;

    #[test]
    fn an_environment_is_replaced_under_those_who_use_it() {
        let dir = TempDir::new();
        let store = Store::open(&dir.path().join("db"), &StoreSettings::default()).expect("it can be made");
        std::thread::scope(|threads| {
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    threads.spawn(|| {
                        for _ in 0..20 {
                            store.write("test", |rows| rows.new_id()).expect("it is open");
                            store.read("test", |rows| rows.next_id()).expect("it is open");
                        }
                    })
                })
                .collect();
            for _ in 0..10 {
                store.reopen("test", store.settings.map_bytes).expect("it opens");
            }
            writers.into_iter().for_each(|w| w.join().expect("no panic"));
        });
        assert_eq!(store.read("test", |rows| rows.next_id()).ok(), Some(SnapshotId(81)));
        store.close().expect("it closes");
        let closed = store.reopen("test", store.settings.map_bytes).err();
        assert_eq!(closed.map(|e| e.kind()), Some(ErrorKind::Unavailable), "what is closed stays closed");
    }

    #[test]
    fn what_the_database_says_has_a_kind() {
        use lmdb::Error as E;
        let cases = [
            (E::MapFull, ErrorKind::NoSpace),
            (E::Other(libc::ENOSPC), ErrorKind::NoSpace),
            (E::Other(libc::EDQUOT), ErrorKind::NoSpace),
            (E::Other(libc::EACCES), ErrorKind::PermissionDenied),
            (E::Other(libc::EIO), ErrorKind::Io),
            (E::ReadersFull, ErrorKind::Busy),
            (E::Corrupted, ErrorKind::Corrupt),
            (E::PageNotFound, ErrorKind::Corrupt),
            (E::Panic, ErrorKind::Io),
            (E::BadValSize, ErrorKind::Io),
        ];
        for (error, kind) in cases {
            let error = failed("write", "snap", error);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().starts_with("write: snap: "), "{error}");
            // No type of LMDB is hidden in it.
            let source = std::error::Error::source(&error);
            assert!(source.is_none_or(|s| s.downcast_ref::<lmdb::Error>().is_none()));
        }
    }
}

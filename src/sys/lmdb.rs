//! What lmdb-rkv does not offer, or only as `unsafe`: the one door to LMDB's own calls.
//!
//! Everything here takes an open [`Environment`], whose pointer is valid as long as it is borrowed.

use lmdb::{Database, DatabaseFlags, Environment, Error, Transaction};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Turns a return code into a result.
fn check(code: i32) -> Result<(), Error> {
    if code == lmdb_sys::MDB_SUCCESS { Ok(()) } else { Err(Error::from_err_code(code)) }
}

/// Frees the reader slots of processes that have ended, and returns how many there were.
pub(crate) fn sweep_readers(env: &Environment) -> Result<usize, Error> {
    let mut dead = 0;
    // SAFETY: the environment is open; the call writes one integer to `dead`, which lives until after it.
    check(unsafe { lmdb_sys::mdb_reader_check(env.env(), &raw mut dead) })?;
    Ok(usize::try_from(dead).unwrap_or(0))
}

/// The descriptor of the data file.
pub(crate) fn data_file(env: &Environment) -> Result<BorrowedFd<'_>, Error> {
    let mut fd: lmdb_sys::mdb_filehandle_t = -1;
    // SAFETY: the environment is open; the call writes one integer to `fd`, which lives until after it.
    check(unsafe { lmdb_sys::mdb_env_get_fd(env.env(), &raw mut fd) })?;
    // SAFETY: the descriptor belongs to the environment, which is borrowed as long as the answer.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Opens tables in one transaction; the answer has `None` for each that does not exist.
///
/// Only while no other transaction of this process uses the environment: before it is shared.
pub(crate) fn open_tables<const N: usize>(
    env: &Environment,
    names: [&str; N],
) -> Result<[Option<Database>; N], Error> {
    let txn = env.begin_ro_txn()?;
    let mut tables = [None; N];
    for (table, name) in tables.iter_mut().zip(names) {
        // SAFETY: no other transaction of this process opens a table: the caller has the environment alone.
        *table = match unsafe { txn.open_db(Some(name)) } {
            Ok(table) => Some(table),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
    }
    // Handles live on only if the transaction that opened them is not aborted.
    txn.commit()?;
    Ok(tables)
}

/// As [`open_tables`], but makes what is missing: all or, on failure, none.
pub(crate) fn create_tables<const N: usize>(
    env: &Environment,
    names: [&str; N],
) -> Result<[Database; N], Error> {
    let txn = env.begin_rw_txn()?;
    let mut tables = [None; N];
    for (table, name) in tables.iter_mut().zip(names) {
        // SAFETY: as in `open_tables`.
        *table = Some(unsafe { txn.create_db(Some(name), DatabaseFlags::empty()) }?);
    }
    txn.commit()?;
    // Each was filled above.
    let tables: Vec<Database> = tables.into_iter().flatten().collect();
    tables.try_into().map_err(|_| Error::BadDbi)
}

/// Writes a copy without free pages to an open, empty file.
pub(crate) fn copy_compact(env: &Environment, to: BorrowedFd<'_>) -> Result<(), Error> {
    // SAFETY: the environment is open, the descriptor too; LMDB closes neither.
    check(unsafe { lmdb_sys::mdb_env_copyfd2(env.env(), to.as_raw_fd(), lmdb_sys::MDB_CP_COMPACT) })
}

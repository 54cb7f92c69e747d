//! Rows: what is known of each snapshot, in LMDB; nothing of directories.
//!
//! A [`Store`] is opened once per process and directory and shared. [`Store::read`] hands a [`Reader`] to a
//! closure: one moment of the store, whatever others write meanwhile. [`Store::write`] hands a [`Writer`]: all
//! of its changes or, if the closure fails, none. There is one write transaction at a time among all processes, so nothing
//! slow belongs into either; threads that wait for it share the next one.
//!
//! # Tables
//!
//! Numbers are big-endian and of fixed width: the order of keys is that of numbers.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | `schema`, `next_id`, `store_id`, `backend`, `clean_shutdown` | scalar |
//! | `snap` | id | [`Record`], versioned |
//! | `name` | realm ‖ 00 ‖ name, hashed where it is long | id, of `snap` or of `pending` |
//! | `child` | id of the parent ‖ 00 ‖ id | the child's name |
//! | `pending` | id | [`Pending`]: being made, by whom |
//! | `blob_by_snap` | id | [`Blob`] |
//! | `blob_by_digest` | digest ‖ 00 ‖ id | nothing |
//! | `blob_gc` | digest | nothing: the last reference is gone, its content is to be deleted |
//! | `mount` | id ‖ number | [`MountRow`] |
//!
//! # What holds in every transaction
//!
//! Each record is found by its name, each parent exists and is committed, each child stands below its parent,
//! both blob tables say the same, and an id is given out once. [`check()`] proves it, [`repair()`] mends it.
//!
//! # What a crash leaves
//!
//! Of an unfinished transaction nothing. Of a slow creation a `pending` row, whose owner is then seen to be
//! dead ([`Writer::drop_dead_pending`]). Of a removal a `blob_gc` row. Of a killed reader a slot of the
//! reader table, which is swept at open and when it is missing.
//!
//! # What callers owe
//!
//! Closures are short: no sleep, no network, no copying, and nothing but rows that may not happen twice. A process
//! that has a store open does not fork and go on: it starts another program. `data.mdb` and `lock.mdb` are opened
//! by nobody else in the process, since closing one would drop the locks. Nobody shortens the file while it is open.
//!
//! No type of LMDB leaves this module and `sys::lmdb`.

mod blobs;
mod check;
mod codec;
mod environment;
mod mask;
mod mounts;
mod open;
mod pages;
mod pending;
mod process;
mod reader;
mod record;
mod registry;
mod schema;
mod turns;
mod write;
mod writer;

pub use blobs::{BLOB_LABEL, Blob, BlobSet, Digest, INCOMPLETE_LABEL, Reconciled};
pub use check::{Finding, Severity, check, repair};
pub use environment::{Durability, Size, Store, StoreSettings};
pub use mask::apply_mask;
pub use mounts::{MountHow, MountRow, NewMount};
pub use open::remote_file_system;
pub use pending::Pending;
pub use process::{Liveness, ProcessMark};
pub use reader::{Child, Reader};
pub use record::{Batch, Commit, NewSnapshot, Rebase, Record, Removed};
pub use schema::Shutdown;
pub use writer::Writer;

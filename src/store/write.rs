//! Write transactions: begun, run, committed, and begun again where the map had no room.
//!
//! Several closures may share a transaction ([`super::turns`]), if they say so. They do so only as long as all goes
//! well: if the map has too little room for all of them, or one fails after it has changed something, the transaction is
//! void and each runs again in one of its own.

use super::environment::{Inside, MAP_TRIES, Opened, Store, failed, open_or_closed};
use super::reader::{Reader, Txn};
use super::turns::{Call, Job, Ran, Waiting};
use super::writer::{Purpose, Writer};
use crate::error::{Error, ErrorKind, Result};

/// How running a closure in a transaction ended.
enum Attempt {
    /// It was committed, or the closure failed.
    Done,
    /// The map has this size, and little of it is free.
    LittleRoom(usize),
    /// The map has this size, and it did not suffice for a transaction of this purpose.
    Full(usize, Purpose),
    /// Another process has grown the map.
    Outgrown,
    /// An earlier error of the disk has made the environment unusable.
    Broken,
}

/// How much room a writer wants to find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// So much that it hardly ever has to run twice.
    Ample,
    /// Whatever there is.
    AsItIs,
}

/// Whether several closures were run together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Together {
    Done,
    /// Nothing was changed.
    Impossible,
}

impl Store {
    /// Changes the store: all that `f` does, or nothing if it fails. `operation` stands in every error of its rows.
    ///
    /// `f` sees only what is on the disk, and writes to no other store. It runs again from the begin if the map had no room;
    /// what it does besides rows must bear that. It may run in the thread of another caller, while this one waits. Others
    /// who write wait meanwhile, in all processes.
    ///
    /// # Errors
    /// `Unavailable` once it is closed; `NoSpace` if the map may not grow further or the disk is full;
    /// `FailedPrecondition` from within another transaction of this thread; those of `f`, and of the disk.
    pub fn write<T: Send>(
        &self,
        operation: &'static str,
        f: impl FnMut(&mut Writer<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        self.run(Call::alone(operation, f))
    }

    /// As [`Store::write`], and quicker where many write: closures that wait share a transaction.
    ///
    /// `f` sees what those before it have done, which may come to nothing. So what it does besides rows must rely on no row
    /// of others being there, and on none being gone. It runs again also if another one failed.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn write_with_others<T: Send>(
        &self,
        operation: &'static str,
        f: impl FnMut(&mut Writer<'_>) -> Result<T> + Send,
    ) -> Result<T> {
        self.run(Call::with_others(operation, f))
    }

    /// How many threads wait for their turn to write.
    #[cfg(test)]
    pub(crate) fn waiting_writers(&self) -> usize {
        self.turns.waiting()
    }

    fn run<T: Send, F: FnMut(&mut Writer<'_>) -> Result<T> + Send>(&self, mut call: Call<T, F>) -> Result<T> {
        let _inside = Inside::enter(self, call.operation())?;
        self.turns.take(&mut call, |job| self.write_alone(job), |jobs| self.write_together(jobs));
        call.into_answer()
    }

    fn write_alone(&self, job: &mut dyn Job) {
        let done = self.try_alone(job);
        job.end(done);
    }

    fn try_alone(&self, job: &mut dyn Job) -> Result<()> {
        let operation = job.operation();
        let (mut may_reopen, mut room) = (true, Room::Ample);
        for _ in 0..MAP_TRIES {
            match self.attempt(job, room)? {
                Attempt::Done => return Ok(()),
                Attempt::LittleRoom(map_bytes) => {
                    // Once, and what there is may do.
                    room = Room::AsItIs;
                    if let Err(error) = self.make_room(operation, map_bytes, Purpose::Adds) {
                        tracing::debug!(%error, "the map of the store could not grow early");
                    }
                }
                Attempt::Full(map_bytes, purpose) => {
                    // Slots of the dead keep free pages from being used.
                    self.sweep_readers()?;
                    self.make_room(operation, map_bytes, purpose)?;
                }
                Attempt::Outgrown => self.follow(operation)?,
                Attempt::Broken if may_reopen => {
                    may_reopen = false;
                    self.reopen(operation, self.settings.map_bytes)?;
                }
                Attempt::Broken => return Err(failed(operation, "", lmdb::Error::Panic)),
            }
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            operation,
            "",
            "the map of the store grew and grew, and never sufficed",
        ))
    }

    /// Runs a closure once.
    fn attempt(&self, job: &mut dyn Job, room: Room) -> Result<Attempt> {
        let operation = job.operation();
        let gate = self.gate.read();
        let opened = open_or_closed(&gate, operation)?;
        let map_bytes = opened.size(operation)?.map_bytes as usize;
        if room == Room::Ample && self.lacks_room(opened)? {
            return Ok(Attempt::LittleRoom(map_bytes));
        }
        let txn = match opened.env.begin_rw_txn() {
            Ok(txn) => txn,
            Err(lmdb::Error::MapResized) => return Ok(Attempt::Outgrown),
            Err(lmdb::Error::Panic) => return Ok(Attempt::Broken),
            Err(error) => return Err(failed(operation, "", error)),
        };
        let mut writer = Writer::new(Reader::new(Txn::Write(txn), &opened.tables, operation));
        let ran = job.run(&mut writer);
        // Whatever the closure made of it: rows are missing.
        let purpose = writer.purpose();
        if writer.is_full() {
            return Ok(Attempt::Full(map_bytes, purpose));
        }
        if ran != Ran::Well {
            return Ok(Attempt::Done);
        }
        writer.sync_what_comes_first()?;
        crate::fail::point("db.commit_enospc")?;
        crate::fail::point("db.commit_eio")?;
        match writer.finish() {
            Ok(()) => Ok(Attempt::Done),
            // The free list needs room too.
            Err(lmdb::Error::MapFull) => Ok(Attempt::Full(map_bytes, purpose)),
            Err(error) => Err(opened.not_committed(operation, error)),
        }
    }

    fn lacks_room(&self, opened: &Opened) -> Result<bool> {
        let size = opened.size("size of store")?;
        Ok(opened.lacks_room(&size) && size.map_bytes < self.settings.max_map_bytes as u64)
    }

    fn write_together(&self, jobs: &mut [Waiting]) {
        if jobs.len() > 1 && self.attempt_together(jobs) == Together::Done {
            return;
        }
        for waiting in jobs {
            waiting.job.with(|job| self.write_alone(job));
        }
    }

    /// Runs closures in one transaction. Trouble of any kind is left to those who then run alone.
    fn attempt_together(&self, jobs: &mut [Waiting]) -> Together {
        let gate = self.gate.read();
        let Some(opened) = &*gate else { return Together::Impossible };
        if self.lacks_room(opened).unwrap_or(true) {
            return Together::Impossible;
        }
        let Ok(txn) = opened.env.begin_rw_txn() else { return Together::Impossible };
        let mut writer = Writer::new(Reader::new(Txn::Write(txn), &opened.tables, "write"));
        for waiting in &mut *jobs {
            let ran = waiting.job.with(|job| {
                writer.begin_part(job.operation());
                job.run(&mut writer)
            });
            let is_spoilt = ran == Ran::Panicked || (ran == Ran::Refused && writer.part_has_changed());
            if writer.is_full() || is_spoilt {
                return Together::Impossible;
            }
        }
        if writer.sync_what_comes_first().is_err() {
            return Together::Impossible;
        }
        let committed = match crate::fail::point("db.commit_together") {
            Ok(()) => writer.finish(),
            Err(error) => {
                drop(writer);
                let full = error.kind() == ErrorKind::NoSpace;
                Err(lmdb::Error::Other(if full { libc::ENOSPC } else { libc::EIO }))
            }
        };
        if committed.is_err_and(|error| opened.had_no_room(error)) {
            return Together::Impossible;
        }
        for waiting in jobs {
            waiting.job.with(|job| {
                job.end(committed.map_err(|error| opened.not_committed(job.operation(), error)));
            });
        }
        Together::Done
    }
}

#[cfg(test)]
mod tests;

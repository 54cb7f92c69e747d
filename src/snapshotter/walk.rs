//! Walks over the snapshots of a realm: batch by batch, each in a transaction of its own.
//!
//! A walk shows what there was at its begin and is still there when it comes to it. Names are unique at every moment, but
//! one that was removed and made again, or that a commit has taken over, would be met twice: so what is begun later is left
//! out, and no name is told a second time.

use super::Snapshotter;
use crate::backend::{Progress, go_on};
use crate::error::Result;
use crate::filter::Filters;
use crate::types::{Info, SnapshotId};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Rows that are read in one transaction.
pub(super) const BATCH: usize = 256;

/// How far a walk has come; the default is its begin.
#[derive(Debug, Default)]
pub struct Walk {
    last: Option<SnapshotId>,
    /// The number of the last snapshot that there was at the begin.
    end: Option<SnapshotId>,
    /// Hashes of names that were told: eight bytes for each snapshot, and none where one batch has them all.
    told: HashSet<u64>,
    hasher: RandomState,
}

impl Walk {
    /// True if the name was not told before. Two names with one hash are as likely as an error of the memory.
    fn is_new(&mut self, name: &str) -> bool {
        self.told.insert(self.hasher.hash_one(name))
    }
}

impl Snapshotter {
    /// Calls `each` for every snapshot that the filters match, in the order of their ids. No transaction is open
    /// meanwhile, so `each` may call anything here. What is removed meanwhile may be seen or not, what is begun meanwhile is
    /// not, and no name is seen twice.
    ///
    /// # Errors
    /// Those of `each` and of the database.
    pub fn walk(&self, filters: &Filters, mut each: impl FnMut(Info) -> Result<()>) -> Result<()> {
        let mut next = Some(Walk::default());
        while let Some(walk) = next {
            let (infos, rest) = self.page(filters, walk, &())?;
            infos.into_iter().try_for_each(&mut each)?;
            next = rest;
        }
        Ok(())
    }

    /// What the filters match among the next snapshots of a walk, and how it goes on; at the end it does not. For those
    /// who cannot be called back.
    ///
    /// # Errors
    /// `Cancelled`; those of the database.
    pub fn page(
        &self,
        filters: &Filters,
        mut walk: Walk,
        progress: &dyn Progress,
    ) -> Result<(Vec<Info>, Option<Walk>)> {
        let (mut infos, next, end) = self.store.read("walk", |rows| {
            let end = match walk.end {
                Some(end) => end,
                None => rows.last_id()?.unwrap_or(SnapshotId(0)),
            };
            let batch = rows.records(Some(self.realm()), walk.last, BATCH)?;
            let then = batch.records.iter().take_while(|record| record.id <= end);
            let infos: Vec<Info> = then.map(|record| rows.info(record)).collect::<Result<_>>()?;
            let is_over = infos.len() < batch.records.len();
            Ok((infos, batch.next.filter(|_| !is_over), end))
        })?;
        let is_all = walk.end.is_none() && next.is_none();
        (walk.last, walk.end) = (next, Some(end));
        let mut given_up = Ok(());
        infos.retain(|info| {
            given_up = go_on(progress, "walk");
            given_up.is_ok() && filters.matches(info) && (is_all || walk.is_new(&info.name))
        });
        given_up.map(|()| (infos, next.map(|_| walk)))
    }

    /// Every snapshot that the filters match.
    ///
    /// # Errors
    /// Those of the database.
    pub fn list(&self, filters: &Filters) -> Result<Vec<Info>> {
        let mut infos = Vec::new();
        self.walk(filters, |info| {
            infos.push(info);
            Ok(())
        })?;
        Ok(infos)
    }
}

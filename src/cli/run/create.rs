//! `prepare`, `view`, `commit`.

use super::mount::Mounts;
use super::{Outcome, Session, labels};
use crate::cli::args;
use crate::cli::namespace::Touches;
use crate::cli::output::Answer;
use crate::snapshotter::Snapshotter;
use crate::types::Mount;
use serde::Serialize;
use std::path::Path;

/// A new snapshot.
#[derive(Serialize)]
#[serde(transparent)]
struct Created<'a>(Mounts<'a>);

impl Answer for Created<'_> {
    fn text(&self) -> String {
        // Only who names a target wants to see them.
        if self.0.target.is_some() { self.0.text() } else { String::new() }
    }
}

pub(super) fn prepare(session: &Session, args: args::Create) -> Outcome {
    create(session, &args, |snapshotter, key, parent| {
        snapshotter.prepare(key, parent, labels(args.labels.clone()), &())
    })
}

pub(super) fn view(session: &Session, args: args::Create) -> Outcome {
    create(session, &args, |snapshotter, key, parent| {
        snapshotter.view(key, parent, labels(args.labels.clone()), &())
    })
}

fn create(
    session: &Session,
    args: &args::Create,
    make: impl FnOnce(&Snapshotter, &str, Option<&str>) -> crate::error::Result<Vec<Mount>>,
) -> Outcome {
    let mut snapshotter = session.open()?;
    // Only the store knows whether its backend copies the parent.
    if session.must_enter(Touches::RowsOrCopies, Some(snapshotter.backend())) {
        Session::close(&snapshotter);
        drop(snapshotter);
        if let Some(code) = session.enter()? {
            return Ok(code);
        }
        snapshotter = session.open()?;
    }
    let parent = Some(args.parent.as_str()).filter(|parent| !parent.is_empty());
    let mounts = make(&snapshotter, &args.key, parent)?;
    Session::close(&snapshotter);
    session.print(&Created(Mounts {
        key: &args.key,
        mounts: &mounts,
        target: args.target.as_deref().map(Path::as_os_str),
    }))
}

/// A committed snapshot.
#[derive(Serialize)]
struct Committed<'a> {
    name: &'a str,
    key: &'a str,
}

impl Answer for Committed<'_> {
    fn text(&self) -> String {
        String::new()
    }
}

pub(super) fn commit(session: &Session, args: args::Commit) -> Outcome {
    let snapshotter = session.open()?;
    snapshotter.commit(&args.name, &args.key, labels(args.labels), args.parent.as_deref(), &())?;
    Session::close(&snapshotter);
    session.print(&Committed { name: &args.name, key: &args.key })
}

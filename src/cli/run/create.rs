//! `prepare`, `view`, `commit`.

use super::mount::Mounts;
use super::{Outcome, Session, labels};
use crate::cli::args;
use crate::cli::namespace::Touches;
use crate::cli::output::Answer;
use crate::snapshotter::Snapshotter;
use crate::types::Mount;
use plywood_fuse::sys::process::{effective_gid, effective_uid};
use serde::Serialize;
use std::os::unix::fs::MetadataExt;
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
    let parent = Some(args.parent.as_str()).filter(|parent| !parent.is_empty());
    let inherits = |snapshotter: &Snapshotter| parent.is_some_and(|parent| is_of_others(snapshotter, parent));
    let snapshotter = match session.open_or_enter(Touches::RowsOrCopies, inherits)? {
        Ok(snapshotter) => snapshotter,
        Err(code) => return Ok(code),
    };
    let mounts = make(&snapshotter, &args.key, parent)?;
    Session::close(&snapshotter);
    session.print(&Created(Mounts {
        key: &args.key,
        mounts: &mounts,
        target: args.target.as_deref().map(Path::as_os_str),
    }))
}

/// True if the root directory of a snapshot belongs to another id than ours, which only root of a namespace with that
/// id can give to the root directory of a child. What cannot be looked at is reported when the child is made.
fn is_of_others(snapshotter: &Snapshotter, parent: &str) -> bool {
    let root = snapshotter.layers(parent).ok().and_then(|layers| layers.lowers.into_iter().next());
    let meta = root.and_then(|root| std::fs::metadata(root).ok());
    meta.is_some_and(|meta| (meta.uid(), meta.gid()) != (effective_uid(), effective_gid()))
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

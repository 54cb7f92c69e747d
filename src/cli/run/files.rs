//! `fs ls`, `fs cat`, `fs cp`, `fs rm`, `fs stat`.

use super::{Failed, Outcome, Session};
use crate::cli::args::{Fs, FsCp, FsLs, FsPaths, FsRm};
use crate::cli::exit::Code;
use crate::cli::fs::copy::{Copied, Copier, How, Keep, NewOwner};
use crate::cli::fs::files::{Files, Links, Meta};
use crate::cli::fs::place::Place;
use crate::cli::fs::plain::Plain;
use crate::cli::fs::{Purpose, open};
use crate::cli::output::{Align, Answer, Table, bytes, printable};
use crate::cli::report;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Timestamp, quoted};
use plywood_fuse::error::Error as SysError;
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::types::Kind;
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(super) fn run(session: &Session, command: Fs) -> Outcome {
    match command {
        Fs::Ls(args) => ls(session, &args),
        Fs::Cat(args) => cat(session, &args),
        Fs::Cp(args) => cp(session, &args),
        Fs::Rm(args) => rm(session, args),
        Fs::Stat(args) => stat(session, args),
    }
}

/// What is known of a file.
#[derive(Serialize)]
struct Entry {
    name: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    links: u32,
    modified: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

impl Entry {
    fn of(name: &Path, path: &Path, files: &dyn Files, meta: &Meta) -> plywood_fuse::error::Result<Entry> {
        let attr = &meta.attr;
        let target = match attr.kind {
            Kind::Symlink => Some(files.read_link(path)?.to_string_lossy().into_owned()),
            _ => None,
        };
        Ok(Entry {
            name: name.to_string_lossy().into_owned(),
            kind: kind(attr.kind),
            mode: format!("{:04o}", attr.perm),
            uid: attr.uid,
            gid: attr.gid,
            size_bytes: attr.size_bytes,
            links: attr.nlink,
            modified: Timestamp { secs: attr.mtime.secs, nanos: attr.mtime.nanos },
            target,
        })
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Char => "char",
        Kind::Block => "block",
    }
}

/// Files, one a line.
#[derive(Serialize)]
#[serde(transparent)]
struct Entries {
    entries: Vec<Entry>,
    #[serde(skip)]
    names_only: bool,
}

impl Answer for Entries {
    fn text(&self) -> String {
        if self.names_only {
            return self.entries.iter().map(|entry| printable(&entry.name) + "\n").collect();
        }
        let mut table = Table::new(&[
            ("KIND", Align::Left),
            ("MODE", Align::Left),
            ("UID", Align::Right),
            ("GID", Align::Right),
            ("SIZE", Align::Right),
            ("MODIFIED", Align::Left),
            ("NAME", Align::Left),
        ]);
        for entry in &self.entries {
            let name = match &entry.target {
                Some(target) => format!("{} -> {target}", entry.name),
                None => entry.name.clone(),
            };
            let modified = Timestamp { nanos: 0, ..entry.modified }.to_string().replace(".000000000", "");
            table.row([
                entry.kind.to_owned(),
                entry.mode.clone(),
                entry.uid.to_string(),
                entry.gid.to_string(),
                bytes(entry.size_bytes),
                modified,
                name,
            ]);
        }
        table.text()
    }
}

fn ls(session: &Session, args: &FsLs) -> Outcome {
    let failed = |e: SysError| Error::fuse("fs ls", quoted(&args.key), e);
    let snapshotter = session.open()?;
    let files = open(&snapshotter, "fs ls", &args.key, Purpose::Read)?;
    let mut entries = Vec::new();
    // A file is listed as itself, as ls(1) does.
    if files.stat(&args.path, Links::Follow).map_err(failed)?.is_dir() {
        for name in files.names(&args.path).map_err(failed)? {
            let path = args.path.join(&name);
            match files.stat(&path, Links::Keep) {
                Ok(meta) => entries.push(Entry::of(Path::new(&name), &path, &*files, &meta).map_err(failed)?),
                // Gone meanwhile.
                Err(e) if e.is_absent() => {}
                Err(e) => return Err(failed(e).into()),
            }
        }
    } else {
        let meta = files.stat(&args.path, Links::Keep).map_err(failed)?;
        entries.push(Entry::of(&args.path, &args.path, &*files, &meta).map_err(failed)?);
    }
    Session::close(&snapshotter);
    session.print(&Entries { entries, names_only: args.quiet })
}

fn stat(session: &Session, args: FsPaths) -> Outcome {
    let snapshotter = session.open()?;
    let files = open(&snapshotter, "fs stat", &args.key, Purpose::Read)?;
    let (mut entries, mut code) = (Vec::new(), Code::DONE);
    for path in &args.paths {
        let entry = files.stat(path, Links::Keep).and_then(|meta| Entry::of(path, path, &*files, &meta));
        match entry {
            Ok(entry) => entries.push(entry),
            Err(e) => code = code.or(report(&Error::fuse("fs stat", quoted(&args.key), e))),
        }
    }
    Session::close(&snapshotter);
    session.print(&Entries { entries, names_only: false })?;
    Ok(code)
}

/// Bytes of a file that are read at once.
const STEP_BYTES: usize = 256 * 1024;

fn cat(session: &Session, args: &FsPaths) -> Outcome {
    let snapshotter = session.open()?;
    let files = open(&snapshotter, "fs cat", &args.key, Purpose::Read)?;
    let (mut code, mut out) = (Code::DONE, std::io::stdout().lock());
    let mut buffer = vec![0; STEP_BYTES];
    for path in &args.paths {
        let failed = |e: SysError| Error::fuse("fs cat", quoted(&args.key), e);
        let content = match files.open(path) {
            Ok(content) => content,
            Err(e) => {
                code = code.or(report(&failed(e)));
                continue;
            }
        };
        let mut at = 0;
        loop {
            let subject = || path.display().to_string();
            let came = content.read_at(&mut buffer, at).map_err(|e| failed(e.during("read", subject())))?;
            if came == 0 {
                break;
            }
            out.write_all(&buffer[..came]).map_err(Failed::Unheard)?;
            at += came as u64;
        }
    }
    out.flush().map_err(Failed::Unheard)?;
    drop(files);
    Session::close(&snapshotter);
    Ok(code)
}

/// Files that are gone.
#[derive(Serialize)]
struct Removed {
    removed: Vec<String>,
}

impl Answer for Removed {
    fn text(&self) -> String {
        String::new()
    }
}

fn rm(session: &Session, args: FsRm) -> Outcome {
    let snapshotter = session.open()?;
    let files = open(&snapshotter, "fs rm", &args.key, Purpose::Write)?;
    let (mut removed, mut code) = (Vec::new(), Code::DONE);
    for path in &args.paths {
        let is_dir = |meta: Meta| meta.is_dir();
        let gone =
            files.stat(path, Links::Keep).map(is_dir).and_then(|is_dir| match is_dir && args.recursive {
                true => files.remove_tree(path),
                false => files.remove_file(path),
            });
        match gone {
            Ok(()) => removed.push(path.to_string_lossy().into_owned()),
            Err(e) if args.force && e.is_absent() => {}
            Err(e) => {
                let hint = if e.errno() == libc::EISDIR { "; --recursive removes directories" } else { "" };
                let e = Error::fuse("fs rm", quoted(&args.key), e);
                let said =
                    Error::new(e.kind(), "fs rm", quoted(&args.key), format!("{}{hint}", cause_of(&e)));
                code = code.or(report(&said));
            }
        }
    }
    drop(files);
    Session::close(&snapshotter);
    session.print(&Removed { removed })?;
    Ok(code)
}

/// The failure below, in words.
fn cause_of(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

impl Answer for Copied {
    fn text(&self) -> String {
        String::new()
    }
}

fn cp(session: &Session, args: &FsCp) -> Outcome {
    let sources = args.sources.iter().map(place).collect::<Result<Vec<_>>>()?;
    let destination = place(&args.destination)?;
    let machine_only = |place: &Place| matches!(place, Place::Machine(_));
    if machine_only(&destination) && sources.iter().all(machine_only) {
        let cause = "neither side is in a snapshot; write KEY:PATH for one that is, or use cp";
        return Err(invalid(&args.destination, cause).into());
    }
    let snapshotter = session.open()?;
    let failed = |side: &Place| {
        let subject = subject(side);
        move |e: SysError| Error::fuse("fs cp", subject, e)
    };
    let files_of = |place: &Place, purpose: Purpose| -> Result<Box<dyn Files>> {
        match place {
            Place::Machine(_) => Ok(Box::new(Plain::Machine)),
            Place::Snapshot { key, .. } => open(&snapshotter, "fs cp", key, purpose),
        }
    };
    let to = files_of(&destination, Purpose::Write)?;
    if sources.len() > 1
        && !to.stat(path_of(&destination), Links::Follow).map_err(failed(&destination))?.is_dir()
    {
        let cause = "it is no directory, and there are several sources";
        return Err(invalid(&args.destination, cause).into());
    }
    let mut copied = Copied::default();
    let mut left_out = Vec::new();
    for source in &sources {
        let same_tree = key_of(source) == key_of(&destination);
        let owner = match destination {
            Place::Snapshot { .. } if effective_uid() == 0 => NewOwner::Root,
            // Without a namespace nothing can be given to root.
            Place::Snapshot { .. } | Place::Machine(_) => NewOwner::Nobody,
        };
        let how = How {
            keep: if args.archive { Keep::All } else { Keep::Content },
            owner,
            links: if args.follow_link { Links::Follow } else { Links::Keep },
            same_tree,
        };
        // One tree, seen by one pair of eyes: what is written is to be read as it is then.
        let from = if same_tree { None } else { Some(files_of(source, Purpose::Read)?) };
        let mut copier = Copier::new(from.as_deref().unwrap_or(&*to), &*to, how);
        copier.copy(path_of(source), path_of(&destination)).map_err(failed(source))?;
        copied += copier.copied;
        left_out.append(&mut copier.left_out);
    }
    drop(to);
    Session::close(&snapshotter);
    for sentence in left_out {
        // Not eprintln, which panics if nobody reads.
        let _ = writeln!(std::io::stderr(), "plywood: fs cp: {}", printable(&sentence));
    }
    session.print(&copied)
}

fn invalid(subject: &OsString, cause: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, "fs cp", format!("{subject:?}"), cause)
}

fn place(text: &OsString) -> Result<Place> {
    Place::read(text).map_err(|cause| invalid(text, &cause))
}

fn path_of(place: &Place) -> &Path {
    match place {
        Place::Machine(path) | Place::Snapshot { path, .. } => path,
    }
}

fn key_of(place: &Place) -> Option<&str> {
    match place {
        Place::Machine(_) => None,
        Place::Snapshot { key, .. } => Some(key),
    }
}

fn subject(place: &Place) -> String {
    match place {
        Place::Machine(path) => path.display().to_string(),
        Place::Snapshot { key, path } => quoted(&format!("{key}:{}", PathBuf::from(path).display())),
    }
}

//! `blob ls`, `blob show`, `blob set`, `blob of`, `blob add`, `blob cat`.

use super::{Failed, Outcome, Session};
use crate::cli::args::{Blob as Words, BlobAdd, BlobDigest, BlobLs, BlobSet, Key};
use crate::cli::exit::Code;
use crate::cli::output::{Align, Answer, Table, bytes, fields, printable};
use crate::compress::{Hasher, HashingReader};
use crate::content::{self, Expected};
use crate::error::{Error, ErrorKind};
use crate::store::{self, Digest};
use crate::types::quoted;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

pub(super) fn run(session: &Session, command: Words) -> Outcome {
    match command {
        Words::Ls(args) => ls(session, &args),
        Words::Show(args) => show(session, args),
        Words::Set(args) => set(session, args),
        Words::Of(args) => of(session, &args),
        Words::Add(args) => add(session, &args),
        Words::Cat(args) => cat(session, &args),
    }
}

/// Blobs, one a line.
#[derive(Serialize)]
#[serde(transparent)]
struct Listed {
    blobs: Vec<Row>,
    #[serde(skip)]
    digests_only: bool,
}

#[derive(Serialize)]
struct Row {
    digest: Digest,
    size_bytes: u64,
    snapshots: Vec<String>,
}

impl Answer for Listed {
    fn text(&self) -> String {
        if self.digests_only {
            return self.blobs.iter().map(|row| format!("{}\n", row.digest)).collect();
        }
        let columns = [("DIGEST", Align::Left), ("SIZE", Align::Right), ("SNAPSHOTS", Align::Left)];
        let mut table = Table::new(&columns);
        for Row { digest, size_bytes, snapshots } in &self.blobs {
            table.row([digest.to_string(), bytes(*size_bytes), snapshots.join(", ")]);
        }
        table.text()
    }
}

fn ls(session: &Session, args: &BlobLs) -> Outcome {
    let snapshotter = session.open()?;
    let mut blobs = Vec::new();
    snapshotter.content().list(&mut |info| {
        let snapshots = snapshotter.snapshots_of(&info.digest)?;
        blobs.push(Row { digest: info.digest, size_bytes: info.size_bytes, snapshots });
        Ok(())
    })?;
    Session::close(&snapshotter);
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    session.print(&Listed { blobs, digests_only: args.quiet })
}

/// The blob of a snapshot.
#[derive(Serialize)]
struct Shown {
    key: String,
    digest: Digest,
    media_type: String,
    size_bytes: u64,
}

impl Answer for Shown {
    fn text(&self) -> String {
        fields(&[
            ("digest", self.digest.to_string()),
            ("media type", self.media_type.clone()),
            ("size", format!("{} ({} bytes)", bytes(self.size_bytes), self.size_bytes)),
        ])
    }
}

fn show(session: &Session, args: Key) -> Outcome {
    let snapshotter = session.open()?;
    let blob = snapshotter.get_blob(&args.key)?;
    Session::close(&snapshotter);
    let store::Blob { digest, media_type, size_bytes } = blob.ok_or_else(|| {
        let cause = "it has no blob: `plywood blob set` gives it one";
        Error::new(ErrorKind::NotFound, "blob show", quoted(&args.key), cause)
    })?;
    session.print(&Shown { key: args.key, digest, media_type, size_bytes })
}

/// What was set.
#[derive(Serialize)]
struct Set {
    key: String,
    digest: Digest,
}

impl Answer for Set {
    fn text(&self) -> String {
        String::new()
    }
}

fn set(session: &Session, args: BlobSet) -> Outcome {
    let digest = Digest::parse(&args.digest)?;
    let snapshotter = session.open()?;
    let media_type = args.media_type.unwrap_or_default();
    snapshotter.set_blob(&args.key, &store::Blob { digest: digest.clone(), media_type, size_bytes: 0 })?;
    Session::close(&snapshotter);
    session.print(&Set { key: args.key, digest })
}

/// Snapshots of a blob, one a line.
#[derive(Serialize)]
struct Of {
    digest: Digest,
    snapshots: Vec<String>,
}

impl Answer for Of {
    fn text(&self) -> String {
        self.snapshots.iter().map(|name| printable(name) + "\n").collect()
    }
}

fn of(session: &Session, args: &BlobDigest) -> Outcome {
    let digest = Digest::parse(&args.digest)?;
    let snapshotter = session.open()?;
    let snapshots = snapshotter.snapshots_of(&digest)?;
    Session::close(&snapshotter);
    session.print(&Of { digest, snapshots })
}

/// What was added.
#[derive(Serialize)]
struct Added {
    digest: Digest,
    size_bytes: u64,
}

impl Answer for Added {
    fn text(&self) -> String {
        format!("{}\n", self.digest)
    }
}

fn add(session: &Session, args: &BlobAdd) -> Outcome {
    let failed = |e| Error::io("blob add", args.file.display().to_string(), e);
    let mut reader: Box<dyn Read> = match args.file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(&args.file).map_err(failed)?),
    };
    let snapshotter = session.open()?;
    // Nobody knows yet what it will be, so nobody can go on with it: a name of its own.
    let reference = crate::layout::by_this_process("blob-add");
    let put = content::put(snapshotter.content(), &reference, &Expected::default(), &mut *reader);
    if put.is_err() {
        // There may be none.
        let _ = snapshotter.content().abort(&reference);
    }
    let info = put?;
    Session::close(&snapshotter);
    session.print(&Added { digest: info.digest, size_bytes: info.size_bytes })
}

/// Bytes that are printed at a time.
const STEP_BYTES: usize = 256 * 1024;

fn cat(session: &Session, args: &BlobDigest) -> Outcome {
    let digest = Digest::parse(&args.digest)?;
    let snapshotter = session.open()?;
    let content = snapshotter.content().open(&digest)?;
    let mut content = HashingReader::new(content, Hasher::in_thread());
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        let came = content.read(&mut buffer).map_err(|e| Error::io("blob cat", digest.as_str(), e))?;
        if came == 0 {
            break;
        }
        out.write_all(&buffer[..came]).map_err(Failed::Unheard)?;
    }
    out.flush().map_err(Failed::Unheard)?;
    let (_, found, _) = content.finish()?;
    Session::close(&snapshotter);
    if found != digest {
        let cause = format!("it is damaged, what was printed is {found}: delete the file and add it again");
        return Err(Error::new(ErrorKind::Corrupt, "blob cat", digest.as_str(), cause).into());
    }
    Ok(Code::DONE)
}

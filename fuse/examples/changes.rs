//! Prints what an upper layer changes: `cargo run --example changes -- LOWER[:LOWER...] UPPER WORK`.
//!
//! One line for each path, `added`, `modified` or `removed` and then the path from the root of the tree. Owners and
//! attributes are read as this process sees them, so layers that were written inside of a user namespace have to be
//! looked at from inside of one like it. Nothing may be mounted on the layers meanwhile.

use plywood_fuse::overlay::changes::ChangeKind;
use plywood_fuse::overlay::{Overlay, Settings};
use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [lowers, upper, work] = arguments.as_slice() else {
        return Err("usage: changes LOWER[:LOWER...] UPPER WORK".into());
    };
    let lowers: Vec<PathBuf> = env::split_paths(lowers).collect();
    let overlay = Overlay::open(&lowers, Some((Path::new(upper), Path::new(work))), Settings::default())?;
    let mut out = BufWriter::new(io::stdout().lock());
    for change in overlay.changes()? {
        let word: &[u8] = match change.kind {
            ChangeKind::Added => b"added ",
            ChangeKind::Modified => b"modified ",
            ChangeKind::Removed => b"removed ",
        };
        out.write_all(&[word, &change.path, b"\n"].concat())?;
    }
    out.flush()?;
    Ok(())
}

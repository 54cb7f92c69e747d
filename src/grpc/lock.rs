//! Who serves a store? One daemon: two would collect each other's snapshots as garbage.
//!
//! The lock is flock(2) on a file of the store, so it ends with its process however that ends; what the file says is for
//! the message to the next one only.

use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the file may say at most: a number and a path.
const MAX_WORDS_BYTES: u64 = 8192;

/// The store is ours to serve while this lives.
#[derive(Debug)]
pub struct ServeLock {
    _file: File,
}

/// How long the lock may be held still: what a daemon was starting when it was killed has it for a moment.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it is tried.
const PAUSE: Duration = Duration::from_millis(20);

impl ServeLock {
    /// Takes the lock of a store that is to be served on `address`.
    ///
    /// # Errors
    /// `Busy` with who has it; those of the disk.
    pub fn take(layout: &Layout, address: &Path) -> Result<ServeLock> {
        let path = layout.lock();
        let failed = |e| Error::io("lock store", path.display().to_string(), e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(layout, &file)),
                Err(e) => return Err(failed(e.into())),
            }
        }
        let words = format!("process {} on {}\n", std::process::id(), address.display());
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(words.as_bytes()));
        written.map_err(failed)?;
        Ok(ServeLock { _file: file })
    }
}

fn held(layout: &Layout, file: &File) -> Error {
    let mut words = String::new();
    // Without its words the message is a shorter one.
    let _ = file.take(MAX_WORDS_BYTES).read_to_string(&mut words);
    let who = match words.trim() {
        "" => "another plywood".to_owned(),
        words => words.escape_debug().to_string(),
    };
    let cause = format!("{who} serves it already: stop that one, or choose another --root");
    Error::new(ErrorKind::Busy, "lock store", layout.root().display().to_string(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_served_by_one_whose_name_the_next_is_told() {
        let dir = plywood_fuse::testing::TempDir::new();
        let layout = Layout::create(dir.path()).unwrap();
        let first = ServeLock::take(&layout, Path::new("/run/a.sock")).unwrap();
        let error = ServeLock::take(&layout, Path::new("/run/b.sock")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let who = format!("process {} on /run/a.sock serves it already", std::process::id());
        assert!(error.to_string().contains(&who), "{error}");
        drop(first);
        ServeLock::take(&layout, Path::new("/c")).unwrap();
    }
}

//! Which mounts show the store, as `/proc/self/mountinfo` tells it: the device it lies on, and who is in the way.
//!
//! Only mounts of our own mount namespace are seen. Read anew at each question, since others mount and unmount.

use crate::error::{Error, ErrorKind, Result};
use plywood_fuse::sys::open::open_root;
use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number, as long as it lives.
    pub id: u64,
    /// Device number of the file system, `major:minor`: one for all mounts and subvolumes of a btrfs.
    pub device_number: String,
    /// Where it is.
    pub point: PathBuf,
    /// Type of the file system.
    pub kind: String,
    /// What is mounted: for btrfs one of its devices.
    pub source: OsString,
    /// The number of the subvolume that it shows, or that the directory it shows is in.
    pub subvolume: Option<u64>,
}

/// All mounts, in the order of the kernel.
///
/// # Errors
/// `FailedPrecondition` without `/proc`.
pub fn read() -> Result<Vec<Entry>> {
    let text = std::fs::read("/proc/self/mountinfo").map_err(|e| needs_proc(&e))?;
    Ok(text.split(|&b| b == b'\n').filter_map(parse).collect())
}

fn needs_proc(e: &std::io::Error) -> Error {
    let cause = format!("{e}: mount /proc, which tells what is mounted");
    Error::new(ErrorKind::FailedPrecondition, "read mounts", "/proc/self", cause)
}

/// One line, as proc_pid_mountinfo(5) describes it; `None` for one that is cut.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut words = line.split(|&b| b == b' ');
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let id = text(words.next()?).parse().ok()?;
    let device_number = text(words.nth(1)?);
    let point = PathBuf::from(unescaped(words.nth(1)?));
    // Optional fields end with a dash.
    words.find(|word| *word == b"-")?;
    let kind = text(words.next()?);
    let source = unescaped(words.next()?);
    let options = words.next()?.split(|&b| b == b',');
    let number = |option: &[u8]| text(option.strip_prefix(b"subvolid=")?).parse().ok();
    Some(Entry { id, device_number, point, kind, source, subvolume: options.filter_map(number).next_back() })
}

/// A word with its `\040` and such as bytes again.
fn unescaped(word: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match after.get(..3).filter(|_| first == b'\\').and_then(octal) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The mount among `mounts` that holds `path`.
///
/// # Errors
/// Those of opening it; `FailedPrecondition` without `/proc`, or if its mount is not one of ours.
pub fn holder<'a>(path: &Path, mounts: &'a [Entry]) -> Result<&'a Entry> {
    let subject = || path.display().to_string();
    let opened = open_root(path).map_err(|e| Error::fuse("find mount", subject(), e))?;
    let file = format!("/proc/self/fdinfo/{}", opened.as_raw_fd());
    let info = std::fs::read_to_string(file).map_err(|e| needs_proc(&e))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
    mounts.iter().find(|mount| Some(mount.id) == id).ok_or_else(|| {
        let cause = "the mount that holds it is not in /proc/self/mountinfo";
        Error::new(ErrorKind::FailedPrecondition, "find mount", subject(), cause)
    })
}

/// The first of `mounts` that is on `path` or below it.
pub fn within<'a>(path: &Path, mounts: &'a [Entry]) -> Option<&'a Entry> {
    mounts.iter().find(|mount| mount.point.starts_with(path))
}

/// The first of `mounts` that shows the subvolume of that number, of the file system that `holder` is a mount of.
///
/// `holder` itself, and others that show the whole store, show another one.
pub fn showing<'a>(subvolume: u64, holder: &Entry, mounts: &'a [Entry]) -> Option<&'a Entry> {
    let same_disk = |mount: &&Entry| mount.kind == "btrfs" && mount.device_number == holder.device_number;
    mounts.iter().filter(same_disk).find(|mount| mount.subvolume == Some(subvolume))
}

/// The source of a mount if another mount can be made of it: a block device that is there under that name.
pub fn device(mount: &Entry) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let usable = |text: &&str| !text.contains(|c: char| c.is_control());
    let is_device = std::fs::metadata(&mount.source).is_ok_and(|m| m.file_type().is_block_device());
    mount.source.to_str().filter(usable).filter(|_| is_device).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes_and_optional_fields() {
        let line = b"36 35 0:39 /a/b /mnt\\040x\\134y rw,relatime shared:1 master:2 - btrfs /dev/loop\\0400 \
            rw,space_cache=v2,subvolid=257,subvol=/a/b";
        let entry = parse(line).expect("a whole line");
        assert_eq!(entry.id, 36);
        assert_eq!(entry.device_number, "0:39");
        assert_eq!(entry.point, Path::new("/mnt x\\y"));
        assert_eq!((entry.kind.as_str(), entry.source.to_str()), ("btrfs", Some("/dev/loop 0")));
        assert_eq!(entry.subvolume, Some(257));
        let plain = parse(b"22 1 8:1 / / rw - ext4 /dev/sda1 rw").expect("a whole line");
        assert_eq!((plain.kind.as_str(), plain.subvolume), ("ext4", None));
        for cut in
            [&b""[..], b"36 35 0:39 /a", b"36 35 0:39 / /mnt rw shared:1", b"36 35 0:39 / /mnt rw - btrfs"]
        {
            assert_eq!(parse(cut), None);
        }
    }

    #[test]
    fn the_mount_that_holds_a_path_is_found_by_its_number() {
        let mounts = read().expect("mountinfo");
        assert_eq!(holder(Path::new("/proc/self"), &mounts).expect("a mount").kind, "proc");
        assert!(within(Path::new("/proc"), &mounts).is_some());
        assert!(within(Path::new("/proc/self/status"), &mounts).is_none());
    }
}

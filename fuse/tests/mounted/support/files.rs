//! Looking at files and making them, symbolic links never followed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::sys::{self, Place};
use plywood_fuse::types::Device;

/// The names in a directory, sorted.
#[track_caller]
pub fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
    let mut names: Vec<String> = list
        .map(|entry| entry.unwrap_or_else(|e| panic!("list {}: {e}", dir.display())))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Everything below a directory: path, kind, mode and content, one line each; times and owners are not in it.
#[track_caller]
pub fn tree(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(next) = todo.pop() {
        for name in names(&next) {
            let path = next.join(&name);
            let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
            let what = if meta.is_dir() {
                todo.push(path.clone());
                "dir".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).expect("readlink").display())
            } else if meta.is_file() {
                let content = fs::read(&path).unwrap_or_else(|e| format!("unreadable: {e}").into_bytes());
                format!("{} bytes {}", content.len(), content[..content.len().min(80)].escape_ascii())
            } else {
                format!("device {:x}", meta.rdev())
            };
            let shown = path.strip_prefix(dir).expect("below the directory").display().to_string();
            lines.push(format!("{shown} {:o} {what}\n", meta.mode()));
        }
    }
    lines.sort();
    lines.concat()
}

/// The errno of a failure, 0 for success.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}

/// Calls `f` with the place of a path: a name in an open directory, symbolic links not followed.
fn at<T>(path: &Path, f: impl FnOnce(Place<'_>) -> plywood_fuse::error::Result<T>) -> Result<T, i32> {
    let parent = File::open(path.parent().expect("a parent")).map_err(|e| e.raw_os_error().unwrap_or(-1))?;
    let name = path.file_name().expect("a name");
    f(Place::At(parent.as_fd(), name.as_bytes())).map_err(|e| e.errno())
}

/// An attribute of a file, symbolic links not followed.
#[track_caller]
pub fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let value = try_xattr(path, name);
    value.unwrap_or_else(|e| panic!("read {name} of {}: errno {e}", path.display()))
}

/// The same, or an errno.
pub fn try_xattr(path: &Path, name: &str) -> Result<Option<Vec<u8>>, i32> {
    let name = CString::new(name).expect("no NUL");
    at(path, |place| sys::xattr::get_value(place, &name))
}

/// The names of the attributes of a file, symbolic links not followed.
#[track_caller]
pub fn xattrs(path: &Path) -> Vec<String> {
    try_xattrs(path).unwrap_or_else(|e| panic!("list attributes of {}: errno {e}", path.display()))
}

/// The same, or an errno.
pub fn try_xattrs(path: &Path) -> Result<Vec<String>, i32> {
    let names = at(path, sys::xattr::list)?;
    Ok(names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect())
}

/// Sets an attribute, symbolic links not followed.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<(), i32> {
    let name = CString::new(name).expect("no NUL");
    at(path, |place| sys::xattr::set(place, &name, value, SetMode::Any))
}

/// Makes a device, fifo or socket.
pub fn make_node(path: &Path, mode: u32, device: Device) -> Result<(), i32> {
    at(path, |place| match place {
        Place::At(dir, name) => sys::node::mknod(dir, name, mode, device),
        Place::Fd(_) => unreachable!("a path has a name"),
    })
}

/// Makes a whiteout as the kernel does; false where that is not allowed.
pub fn make_whiteout(path: &Path) -> bool {
    make_node(path, libc::S_IFCHR, Device::default()).is_ok()
}

/// True for a whiteout of the kernel.
pub fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.mode() & libc::S_IFMT == libc::S_IFCHR && m.rdev() == 0)
}

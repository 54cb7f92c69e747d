//! Everything that two equal trees have in common.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One entry of a tree, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Content or link target.
    pub content: Vec<u8>,
    /// Seconds and nanoseconds of the last change; of directories 0, since they change with each entry.
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first name, in order, of the same inode.
    pub same_as: Option<PathBuf>,
}

/// Every path below `root`, with what stands there; the root itself is `""`.
pub fn read(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut tree = BTreeMap::new();
    let mut seen = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        if meta.is_dir() {
            let names = std::fs::read_dir(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            todo.extend(names.map(|n| path.join(n.expect("directory entry").file_name())));
        }
        let kind = meta.file_type();
        let content = if kind.is_file() {
            std::fs::read(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()))
        } else if kind.is_symlink() {
            std::fs::read_link(&full).expect("link target").into_os_string().into_vec()
        } else {
            Vec::new()
        };
        let device = kind.is_char_device() || kind.is_block_device();
        if !meta.is_dir() && meta.nlink() > 1 {
            seen.entry(meta.ino()).or_insert_with(Vec::new).push(path.clone());
        }
        let entry = Entry {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: if device { meta.rdev() } else { 0 },
            content,
            mtime: if meta.is_dir() { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) },
            xattrs: xattrs(&full),
            same_as: None,
        };
        tree.insert(path, entry);
    }
    for names in seen.values_mut().filter(|names| names.len() > 1) {
        names.sort();
        for name in names.iter().skip(1) {
            if let Some(entry) = tree.get_mut(name) {
                entry.same_as = Some(names[0].clone());
            }
        }
    }
    tree
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    use plywood_fuse::sys::{self, Place};
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    let parent = sys::open::open_root(path.parent().expect("not the top")).expect("parent");
    let name = path.file_name().expect("a name").as_bytes();
    let place = Place::At(parent.as_fd(), name);
    let names = sys::xattr::list(place).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    names
        .iter()
        .filter(|name| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."))
        .filter_map(|name| {
            let attribute = std::ffi::CString::new(name).ok()?;
            let value = sys::xattr::get_value(place, &attribute).ok()??;
            Some((OsString::from_vec(name.to_vec()), value))
        })
        .collect()
}

/// Panics with the first differences unless both are equal.
pub fn assert_equal(left: &BTreeMap<PathBuf, Entry>, right: &BTreeMap<PathBuf, Entry>, what: &str) {
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let different: Vec<_> = paths.into_iter().filter(|p| left.get(*p) != right.get(*p)).take(5).collect();
    for path in &different {
        eprintln!("{}:\n  {:?}\n  {:?}", path.display(), left.get(*path), right.get(*path));
    }
    assert!(different.is_empty(), "{what}: the trees differ at {different:?}");
}

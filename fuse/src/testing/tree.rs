//! Trees: layers from a description, the tree that they make, and what is in a directory.
//!
//! A layer is described by lines such as `dir a`, `file a/b size=100 perm=4755`, `link c a/b`, `whiteout d`
//! and `opaque e`, so that a failing test can print it and a named test can hold it.

use crate::error::{Error, Result};
use crate::layer::marks::{Mark, Namespace, OPAQUE_FILE, WHITEOUT_PREFIX};
use crate::sys::open::DirMode;
use crate::sys::stat::Stat;
use crate::sys::xattr::SetMode;
use crate::sys::{self, Place};
use crate::types::{Device, Kind, SetTime, Time};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How a layer writes its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As the kernel's overlayfs does: a device 0:0, an attribute `opaque`.
    Kernel,
    /// As OCI archives do: files `.wh.NAME`, `.wh..wh..opq`.
    File,
    /// The kernel's second form: an empty file with an attribute, in a directory that says so.
    Xattr,
    /// A device 0:0, and the opaque attribute of fuse-overlayfs.
    FuseOverlayfs,
}

const DIALECTS: [(&str, Dialect); 4] = [
    ("kernel", Dialect::Kernel),
    ("file", Dialect::File),
    ("xattr", Dialect::Xattr),
    ("fuse-overlayfs", Dialect::FuseOverlayfs),
];

/// What a layer has under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A directory that hides those below.
    Opaque,
    /// A regular file of this size.
    File(u64),
    /// A regular file of this size with data at its two ends only.
    Sparse(u64),
    /// A symlink.
    Symlink(String),
    /// A named pipe.
    Fifo,
    /// A character device.
    Device(u32, u32),
    /// Another name of a file of the same layer.
    Link(String),
    /// Nothing, and nothing from below.
    Whiteout,
}

/// One line of a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where.
    pub path: String,
    /// What.
    pub what: What,
    /// Permission bits.
    pub perm: u32,
    /// Owner and group; `None` leaves them to the disk.
    pub owner: Option<(u32, u32)>,
    /// Modification time in seconds; also tells the content of a file from that of others.
    pub mtime: i64,
    /// Extended attributes.
    pub attributes: Vec<(String, String)>,
}

impl Item {
    /// An item with the usual permissions.
    pub fn new(path: impl Into<String>, what: What) -> Item {
        let perm = if matches!(what, What::Dir | What::Opaque) { 0o755 } else { 0o644 };
        Item { path: path.into(), what, perm, owner: None, mtime: 1_000_000_000, attributes: Vec::new() }
    }

    fn parse(line: &str) -> Option<Item> {
        let mut words = line.split_whitespace();
        let (verb, path) = (words.next()?, words.next()?);
        let what = match verb {
            "dir" => What::Dir,
            "opaque" => What::Opaque,
            "file" => What::File(0),
            "sparse" => What::Sparse(0),
            "symlink" => What::Symlink(words.next()?.into()),
            "fifo" => What::Fifo,
            "device" => {
                let (major, minor) = words.next()?.split_once(':')?;
                What::Device(major.parse().ok()?, minor.parse().ok()?)
            }
            "link" => What::Link(words.next()?.into()),
            "whiteout" => What::Whiteout,
            _ => return None,
        };
        let mut item = Item::new(path, what);
        for word in words {
            let (key, value) = word.split_once('=')?;
            match (key, &mut item.what) {
                ("size", What::File(size) | What::Sparse(size)) => *size = value.parse().ok()?,
                ("perm", _) => item.perm = u32::from_str_radix(value, 8).ok()?,
                ("own", _) => {
                    let (uid, gid) = value.split_once(':')?;
                    item.owner = Some((uid.parse().ok()?, gid.parse().ok()?));
                }
                ("mtime", _) => item.mtime = value.parse().ok()?,
                _ => item.attributes.push((key.into(), value.into())),
            }
        }
        Some(item)
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.what {
            What::Dir => write!(f, "dir {path}"),
            What::Opaque => write!(f, "opaque {path}"),
            What::File(size) => write!(f, "file {path} size={size}"),
            What::Sparse(size) => write!(f, "sparse {path} size={size}"),
            What::Symlink(target) => write!(f, "symlink {path} {target}"),
            What::Fifo => write!(f, "fifo {path}"),
            What::Device(major, minor) => write!(f, "device {path} {major}:{minor}"),
            What::Link(to) => write!(f, "link {path} {to}"),
            What::Whiteout => write!(f, "whiteout {path}"),
        }?;
        let usual = Item::new("", self.what.clone());
        if self.perm != usual.perm {
            write!(f, " perm={:o}", self.perm)?;
        }
        if let Some((uid, gid)) = self.owner {
            write!(f, " own={uid}:{gid}")?;
        }
        if self.mtime != usual.mtime {
            write!(f, " mtime={}", self.mtime)?;
        }
        self.attributes.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// How its marks are written.
    pub dialect: Dialect,
    /// What it has.
    pub items: Vec<Item>,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = DIALECTS.iter().find(|(_, d)| *d == self.dialect).map_or("", |(name, _)| name);
        write!(f, "{name}")?;
        self.items.iter().try_for_each(|item| write!(f, "; {item}"))
    }
}

impl Layer {
    /// Reads a description: the dialect, then items, separated by semicolons.
    ///
    /// # Panics
    /// If it is not one.
    pub fn parse(text: &str) -> Layer {
        let mut parts = text.split(';').map(str::trim).filter(|p| !p.is_empty());
        let dialect = parts.next().and_then(|d| DIALECTS.iter().find(|(name, _)| *name == d));
        let dialect = dialect.unwrap_or_else(|| panic!("{text:?}: no dialect")).1;
        let item = |line| Item::parse(line).unwrap_or_else(|| panic!("{line:?}: not an item"));
        Layer { dialect, items: parts.map(item).collect() }
    }

    /// The same layer, made possible: parents are there, each path once, links lead somewhere.
    #[must_use]
    pub fn sound(&self) -> Layer {
        let mut items: BTreeMap<String, Item> = BTreeMap::new();
        'items: for item in &self.items {
            if items.contains_key(&item.path) || self.clashes(&items, item) {
                continue;
            }
            if let What::Link(to) = &item.what {
                let is_file = |i: &Item| matches!(i.what, What::File(_) | What::Sparse(_) | What::Fifo);
                if !items.get(to).is_some_and(is_file) {
                    continue;
                }
            }
            let parents: Vec<&str> = item.path.match_indices('/').map(|(at, _)| &item.path[..at]).collect();
            for parent in &parents {
                let is_dir = |i: &Item| matches!(i.what, What::Dir | What::Opaque);
                if items.get(*parent).is_some_and(|i| !is_dir(i)) {
                    continue 'items;
                }
            }
            for parent in parents {
                items.entry(parent.into()).or_insert_with(|| Item::new(parent, What::Dir));
            }
            items.insert(item.path.clone(), item.clone());
        }
        Layer { dialect: self.dialect, items: items.into_values().collect() }
    }

    /// True for what cannot be beside what is there: a file that would be a mark.
    fn clashes(&self, items: &BTreeMap<String, Item>, item: &Item) -> bool {
        let (dir, name) = split(&item.path);
        let is_whiteout = item.what == What::Whiteout;
        let marker = join(dir, &format!(".wh.{name}"));
        let hidden = name.strip_prefix(".wh.").map(|hidden| join(dir, hidden));
        let hides = |path: &str| items.get(path).is_some_and(|i| i.what == What::Whiteout);
        let in_opaque = items.get(dir).is_some_and(|i| i.what == What::Opaque);
        self.dialect == Dialect::Xattr && is_whiteout && in_opaque
            || name.starts_with(".wh.") && (item.what == What::File(0) || is_whiteout)
            || self.dialect == Dialect::File && is_whiteout && items.contains_key(&marker)
            || self.dialect == Dialect::File && hidden.is_some_and(|h| hides(&h))
    }

    /// Writes the layer into the empty directory `root`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn build(&self, root: &Path, namespace: Namespace) -> Result<()> {
        let root = sys::open::open_root(root)?;
        let layer = self.sound();
        let is_link = |i: &&Item| matches!(i.what, What::Link(_));
        for item in layer.items.iter().filter(|i| !is_link(i)) {
            layer.make(root.as_fd(), item, namespace).map_err(|e| e.during("build", item.to_string()))?;
        }
        for item in layer.items.iter().filter(is_link) {
            let What::Link(to) = &item.what else { continue };
            sys::node::link(Place::At(root.as_fd(), to.as_bytes()), root.as_fd(), item.path.as_bytes())?;
        }
        // Children first: each of them changes the times of the directory that it is in.
        for item in layer.items.iter().rev().filter(|i| i.what != What::Whiteout && !is_link(i)) {
            set_mtime(Place::At(root.as_fd(), item.path.as_bytes()), item.mtime)?;
        }
        set_mtime(Place::At(root.as_fd(), b"."), 1_000_000_000)
    }

    fn make(&self, root: BorrowedFd<'_>, item: &Item, namespace: Namespace) -> Result<()> {
        let path = item.path.as_bytes();
        let place = Place::At(root, path);
        match &item.what {
            What::Dir => sys::node::mkdir(root, path, 0o700)?,
            What::Opaque => {
                sys::node::mkdir(root, path, 0o700)?;
                match self.dialect {
                    Dialect::Kernel | Dialect::Xattr => {
                        sys::xattr::set(place, namespace.attribute(Mark::Opaque), b"y", SetMode::Any)?;
                    }
                    Dialect::File => {
                        let name = [path, b"/", OPAQUE_FILE].concat();
                        drop(create(root, &name)?);
                    }
                    Dialect::FuseOverlayfs => {
                        sys::xattr::set(place, crate::layer::marks::FUSE_OPAQUE, b"y", SetMode::Any)?;
                    }
                }
            }
            What::File(size) => {
                let data = pattern(item.mtime as u64, 0, *size as usize);
                sys::copy::write_at(create(root, path)?.as_fd(), &data, 0)?;
            }
            What::Sparse(size) => {
                let file = create(root, path)?;
                sys::stat::truncate(file.as_fd(), *size)?;
                let data = pattern(item.mtime as u64, 0, 100);
                sys::copy::write_at(file.as_fd(), &data, 0)?;
                sys::copy::write_at(file.as_fd(), &data, size.saturating_sub(100))?;
            }
            What::Symlink(target) => sys::node::symlink(target.as_bytes(), root, path)?,
            What::Fifo => sys::node::mknod(root, path, libc::S_IFIFO | 0o600, Device::default())?,
            What::Device(major, minor) => {
                let device = Device { major: *major, minor: *minor };
                sys::node::mknod(root, path, libc::S_IFCHR | 0o600, device)?;
            }
            What::Link(_) => {}
            What::Whiteout => return self.make_whiteout(root, &item.path, namespace),
        }
        if let Some((uid, gid)) = item.owner {
            sys::stat::chown(place, Some(uid), Some(gid))?;
        }
        if !matches!(item.what, What::Symlink(_)) {
            sys::stat::chmod(place, item.perm)?;
        }
        for (name, value) in &item.attributes {
            sys::xattr::set(place, &c_string(name.as_bytes()), value.as_bytes(), SetMode::Any)?;
        }
        Ok(())
    }

    fn make_whiteout(&self, root: BorrowedFd<'_>, path: &str, namespace: Namespace) -> Result<()> {
        let (dir, name) = split(path);
        match self.dialect {
            Dialect::Kernel | Dialect::FuseOverlayfs => {
                sys::node::mknod(root, path.as_bytes(), libc::S_IFCHR, Device::default())
            }
            Dialect::File => create(root, join(dir, &format!(".wh.{name}")).as_bytes()).map(drop),
            Dialect::Xattr => {
                let file = create(root, path.as_bytes())?;
                let mark = namespace.attribute(Mark::Whiteout);
                sys::xattr::set(Place::Fd(file.as_fd()), mark, b"y", SetMode::Any)?;
                let parent = Place::At(root, if dir.is_empty() { b"." } else { dir.as_bytes() });
                match sys::xattr::set(parent, namespace.attribute(Mark::Opaque), b"x", SetMode::Create) {
                    // An opaque directory stays one; it needs no whiteouts, and this one hides nothing.
                    Err(e) if e.is_exists() => Ok(()),
                    other => other,
                }
            }
        }
    }
}

/// The tree that layers make, topmost first, as a layer without marks.
///
/// The definition: from the lowest layer up, whiteouts remove, files replace, and directories are joined.
pub fn merged(layers: &[Layer]) -> Layer {
    let mut tree: BTreeMap<String, (Item, usize)> = BTreeMap::new();
    let mut inodes = 0;
    for layer in layers.iter().rev() {
        let layer = layer.sound();
        let mut own: HashMap<&str, usize> = HashMap::new();
        for item in &layer.items {
            match item.what {
                What::Whiteout => remove(&mut tree, &item.path, true),
                What::Opaque => remove(&mut tree, &item.path, false),
                _ => {}
            }
        }
        let is_link = |i: &&Item| matches!(i.what, What::Link(_));
        let in_order = layer.items.iter().filter(|i| !is_link(i)).chain(layer.items.iter().filter(is_link));
        for item in in_order {
            if item.what == What::Whiteout {
                continue;
            }
            let is_dir = matches!(item.what, What::Dir | What::Opaque);
            let was_dir = tree.get(&item.path).is_some_and(|(i, _)| i.what == What::Dir);
            if !(is_dir && was_dir) {
                remove(&mut tree, &item.path, true);
            }
            let mut item_now = item.clone();
            let mut inode = inodes;
            if let What::Link(to) = &item.what {
                let Some(first) = layer.items.iter().find(|i| i.path == *to) else { continue };
                item_now = Item { path: item.path.clone(), ..first.clone() };
                inode = own.get(to.as_str()).copied().unwrap_or(inode);
            }
            inodes += 1;
            if is_dir {
                item_now.what = What::Dir;
            }
            own.insert(&item.path, inode);
            tree.insert(item.path.clone(), (item_now, inode));
        }
    }
    let mut first: HashMap<usize, String> = HashMap::new();
    let mut items = Vec::new();
    for (path, (mut item, inode)) in tree {
        match first.get(&inode) {
            Some(to) => item.what = What::Link(to.clone()),
            None => drop(first.insert(inode, path)),
        }
        items.push(item);
    }
    Layer { dialect: Dialect::Kernel, items }
}

fn remove(tree: &mut BTreeMap<String, (Item, usize)>, path: &str, itself: bool) {
    let below = format!("{path}/");
    tree.retain(|p, _| !(p.starts_with(&below) || itself && p == path));
}

/// The directory and the last name of a path.
pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The path of a name in a directory.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, at: u64, length: usize) -> Vec<u8> {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (at..at + length as u64)
        .map(|i| (seed ^ (seed >> 8) ^ (i.wrapping_mul(7)) ^ (i >> 8)) as u8 | 1)
        .collect()
}

/// A name for a system call.
pub fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("names in tests have no NUL")
}

fn create(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    sys::open::open_at(root, path, libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o644)
}

fn set_mtime(place: Place<'_>, secs: i64) -> Result<()> {
    let time = SetTime::At(Time { secs, nanos: 0 });
    sys::stat::set_times(place, Some(time), Some(time))
}

/// What is under one path.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; 0 for a directory.
    pub size_bytes: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Birth.
    pub btime: Option<Time>,
    /// Device number.
    pub device: Device,
    /// Inode number.
    pub ino: u64,
    /// Number of links.
    pub nlink: u32,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// A symlink's target.
    pub target: Vec<u8>,
    /// A hash of the content of a regular file.
    pub content: u64,
    /// Extended attributes.
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:04o} {}:{} size {} nlink {} ino {}",
            self.kind, self.perm, self.uid, self.gid, self.size_bytes, self.nlink, self.ino
        )?;
        write!(f, " mtime {}.{:09}", self.mtime.secs, self.mtime.nanos)?;
        match self.kind {
            Kind::File => write!(f, " content {:08x}", self.content as u32)?,
            Kind::Symlink => write!(f, " -> {}", self.target.escape_ascii())?,
            Kind::Char | Kind::Block => write!(f, " device {}:{}", self.device.major, self.device.minor)?,
            _ => {}
        }
        for (name, value) in &self.attributes {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        Ok(())
    }
}

/// The entries of a directory, or of a whole tree by their paths.
pub type Entries = BTreeMap<String, Entry>;

/// A hash of some bytes, to compare contents by: quick, since much is compared.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for word in bytes.chunks(8) {
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(whole)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    hash
}

/// What is under a name of a directory of the disk.
///
/// # Errors
/// Those of the disk.
pub fn entry_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Entry> {
    let place = Place::At(dir, name);
    let stat = sys::stat::stat(place)?;
    let mut entry = Entry::of(&stat);
    if stat.kind() == Kind::Symlink {
        entry.target = sys::node::read_link(dir, name)?;
    }
    if stat.kind() == Kind::File {
        let file = sys::open::open_at(dir, name, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
        let mut data = vec![0; stat.size as usize];
        let length = sys::copy::read_at(file.as_fd(), &mut data, 0)?;
        if length as u64 != stat.size {
            return Err(Error::new(
                libc::EIO,
                "read",
                name.escape_ascii().to_string(),
                "shorter than its size",
            ));
        }
        entry.content = digest(&data);
    }
    for attribute in sys::xattr::list(place)?.iter() {
        let value = sys::xattr::get_value(place, &c_string(attribute))?;
        let value = value.ok_or_else(|| {
            let name = attribute.escape_ascii().to_string();
            Error::new(libc::ENODATA, "read attribute", name, "it is listed but not there")
        })?;
        entry.attributes.insert(attribute.to_vec(), value);
    }
    Ok(entry)
}

impl Entry {
    /// The part that `stat(2)` tells.
    pub fn of(stat: &Stat) -> Entry {
        let is_dir = stat.kind() == Kind::Dir;
        Entry {
            kind: stat.kind(),
            perm: stat.mode & 0o7777,
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: if is_dir { 0 } else { stat.size },
            mtime: stat.mtime,
            ctime: stat.ctime,
            btime: stat.btime,
            device: stat.rdev,
            ino: stat.ino,
            nlink: stat.nlink,
            blocks: stat.blocks,
            target: Vec::new(),
            content: 0,
            attributes: BTreeMap::new(),
        }
    }
}

/// All entries of a directory of the disk.
///
/// # Errors
/// Those of the disk; EIO if a name is listed twice.
pub fn entries_at(root: BorrowedFd<'_>, dir: &str) -> Result<Entries> {
    let fd = sys::open::open_dir_beneath(root, dir.as_bytes(), DirMode::List)?;
    let mut names = BTreeSet::new();
    let mut twice = None;
    sys::dir::list(fd.as_fd(), usize::MAX, &mut |raw| {
        let name = String::from_utf8_lossy(raw.name).into_owned();
        if !names.insert(name.clone()) {
            twice = Some(name);
        }
    })?;
    if let Some(name) = twice {
        return Err(Error::new(libc::EIO, "list", join(dir, &name), "listed twice"));
    }
    let entry = |name: String| {
        let found = entry_at(fd.as_fd(), name.as_bytes());
        found.map(|e| (name.clone(), e)).map_err(|e| e.during("look at", join(dir, &name)))
    };
    names.into_iter().map(entry).collect()
}

/// The kind of everything below a directory of the disk.
///
/// # Errors
/// Those of the disk.
pub fn kinds_at(root: BorrowedFd<'_>) -> Result<BTreeMap<String, Kind>> {
    let mut kinds = BTreeMap::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let fd = sys::open::open_dir_beneath(root, dir.as_bytes(), DirMode::List)?;
        sys::dir::list(fd.as_fd(), usize::MAX, &mut |raw| {
            let path = join(&dir, &String::from_utf8_lossy(raw.name));
            let kind = Kind::from_mode(u32::from(raw.kind) << 12);
            if kind == Kind::Dir {
                dirs.push(path.clone());
            }
            kinds.insert(path, kind);
        })?;
    }
    Ok(kinds)
}

/// Everything below a directory of the disk, as it is there, marks and all.
///
/// # Errors
/// Those of the disk.
pub fn snapshot(root: &Path) -> Result<Entries> {
    let fd = sys::open::open_root(root)?;
    whole(&mut |dir| entries_at(fd.as_fd(), dir))
}

/// A whole tree, by a function that gives the entries of one directory.
///
/// # Errors
/// Those of the function.
pub fn whole(list: &mut dyn FnMut(&str) -> Result<Entries>) -> Result<Entries> {
    let mut tree = Entries::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for (name, entry) in list(&dir)? {
            let path = join(&dir, &name);
            if entry.kind == Kind::Dir {
                dirs.push(path.clone());
            }
            tree.insert(path, entry);
        }
    }
    Ok(tree)
}

/// True for a name that looks like a whiteout.
pub fn looks_like_mark(name: &str) -> bool {
    name.as_bytes().starts_with(WHITEOUT_PREFIX)
}

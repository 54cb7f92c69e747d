//! How files are copied from one tree to another.
//!
//! Nothing is followed below the source but directories, and nothing of the target is written through a symlink but
//! the path that was typed. A file appears under its name with its content still to come, readable by its owner only;
//! what a failure leaves is a part of the copy.

use super::files::{Change, Content, Files, Links, Meta, Node};
use plywood_fuse::error::{Error, Result};
use plywood_fuse::types::Kind;
use serde::Serialize;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What is kept of a file beside content, permissions and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: it belongs to whoever copies, without setuid and setgid.
    Content,
    /// Owner and all attributes.
    All,
}

/// Whose the copies are, where owners are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewOwner {
    /// Root's.
    Root,
    /// Whoever runs this.
    Nobody,
}

/// How files are copied.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// See [`Keep`].
    pub keep: Keep,
    /// See [`NewOwner`].
    pub owner: NewOwner,
    /// Whether a source that is a symlink is meant, or what it leads to.
    pub links: Links,
    /// Source and target are one tree.
    pub same_tree: bool,
}

/// How much was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Names that are no directories.
    pub files: u64,
    /// Directories, those that were there already included.
    pub directories: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Bytes that are read at once.
const STEP_BYTES: usize = 256 * 1024;

/// Zeroes of this length stay a hole.
const HOLE_BYTES: usize = 4096;

/// A copy that is under way, of one or several sources.
pub struct Copier<'a> {
    from: &'a dyn Files,
    to: &'a dyn Files,
    how: How,
    /// Where the copies of files with several names are.
    names: HashMap<(u64, u64), PathBuf>,
    /// The directory that is the top of the present copy: never a source, or the copy would have no end.
    top: Option<(u64, u64)>,
    buffer: Vec<u8>,
    /// How much was copied.
    pub copied: Copied,
    /// What was not copied, and why; each a sentence.
    pub left_out: Vec<String>,
}

impl<'a> Copier<'a> {
    /// Copies from one tree to another.
    pub fn new(from: &'a dyn Files, to: &'a dyn Files, how: How) -> Copier<'a> {
        Copier {
            from,
            to,
            how,
            names: HashMap::new(),
            top: None,
            buffer: vec![0; STEP_BYTES],
            copied: Copied::default(),
            left_out: Vec::new(),
        }
    }

    /// Copies `source` to `target` by the rules of cp(1): into a directory that is there, else as the name that is
    /// not; what a path that ends in `/.` holds is copied without the directory itself.
    ///
    /// # Errors
    /// With the operation and the path named: ENOENT for the source, or what is to hold the target; ENOTDIR and
    /// EISDIR where directory and file would replace each other; EINVAL for what would be copied into itself; those
    /// of both trees.
    pub fn copy(&mut self, source: &Path, target: &Path) -> Result<()> {
        let follow = self.how.links == Links::Follow || ends_in_slash(source) || is_content(source);
        let meta = self.from.stat(source, if follow { Links::Follow } else { Links::Keep })?;
        let there = absent(self.to.stat(target, Links::Follow))?;
        match (meta.is_dir(), there) {
            (true, Some(there)) if is_content(source) && there.is_dir() => self.merge(source, &meta, target),
            (_, Some(there)) if there.is_dir() => {
                let name = source.file_name().ok_or_else(|| {
                    let cause = "it has no name to copy it as";
                    Error::new(libc::EINVAL, "copy", source.display().to_string(), cause)
                })?;
                self.entry(source, &meta, &target.join(name))
            }
            (true, Some(_)) => Err(failed(libc::ENOTDIR, target)),
            (false, _) if ends_in_slash(target) => Err(failed(libc::ENOTDIR, target)),
            (false, Some(there)) if meta.attr.kind == Kind::File && there.attr.kind == Kind::File => {
                self.overwrite(source, &meta, target, &there)
            }
            (true, None) => self.entry(source, &meta, without_slash(target)),
            (false, _) => self.entry(source, &meta, target),
        }
    }

    /// Copies one file of any kind to the name `target`, which may be in use.
    fn entry(&mut self, source: &Path, meta: &Meta, target: &Path) -> Result<()> {
        if let Some(why) = self.leaves_out(meta.attr.kind) {
            self.left_out.push(format!("{}: {why}", source.display()));
            return Ok(());
        }
        let there = absent(self.to.stat(target, Links::Keep))?;
        if let Some(there) = &there {
            self.expect_other(source, meta, there)?;
        }
        match (meta.is_dir(), there) {
            (true, Some(there)) if there.is_dir() => return self.merge(source, meta, target),
            (true, Some(_)) => return Err(failed(libc::ENOTDIR, target)),
            (true, None) => {
                self.to.make(target, &Node::Dir)?;
                self.merge(source, meta, target)?;
                return self.dress(source, meta, target);
            }
            (false, Some(there)) if there.is_dir() => return Err(failed(libc::EISDIR, target)),
            (false, Some(_)) => self.to.remove_file(target)?,
            (false, None) => {}
        }
        if meta.attr.nlink > 1
            && let Some(first) = self.names.get(&meta.identity())
            && self.to.link(first, target).is_ok()
        {
            self.copied.files += 1;
            return Ok(());
        }
        match meta.attr.kind {
            Kind::File => {
                let content = self.to.create(target)?;
                self.content(source, &*content, target)?;
            }
            Kind::Symlink => self.to.make(target, &Node::Symlink(self.from.read_link(source)?))?,
            // Neither directories nor sockets come here.
            Kind::Fifo | Kind::Char | Kind::Block | Kind::Socket | Kind::Dir => {
                self.to.make(target, &Node::Special(meta.attr.kind, meta.attr.device))?;
            }
        }
        self.copied.files += 1;
        if meta.attr.nlink > 1 {
            self.names.insert(meta.identity(), target.to_owned());
        }
        self.dress(source, meta, target)
    }

    /// Why files of a kind are not copied.
    fn leaves_out(&self, kind: Kind) -> Option<&'static str> {
        match (kind, self.how.keep, self.how.owner) {
            // It belongs to the process that made it, and means nothing elsewhere.
            (Kind::Socket, ..) => Some("a socket is not copied"),
            // A device that a snapshot brings would be a way to that of this machine.
            (Kind::Char | Kind::Block, Keep::Content, NewOwner::Nobody) => {
                Some("a device is copied with --archive only")
            }
            _ => None,
        }
    }

    /// Copies what a directory holds into one that is there.
    fn merge(&mut self, source: &Path, meta: &Meta, target: &Path) -> Result<()> {
        let there = self.to.stat(target, Links::Follow)?;
        self.expect_other(source, meta, &there)?;
        let is_top = self.top.is_none();
        if is_top {
            self.top = Some(there.identity());
        } else if self.how.same_tree && self.top == Some(meta.identity()) {
            let cause = "a directory cannot be copied into itself";
            return Err(Error::new(libc::EINVAL, "copy", source.display().to_string(), cause));
        }
        self.copied.directories += 1;
        for name in self.from.names(source)? {
            let path = source.join(&name);
            // Gone meanwhile.
            let Some(meta) = absent(self.from.stat(&path, Links::Keep))? else { continue };
            self.entry(&path, &meta, &target.join(&name))?;
        }
        if is_top {
            self.top = None;
        }
        Ok(())
    }

    /// Writes the content of one regular file over that of another, which stays the file that it is.
    fn overwrite(&mut self, source: &Path, meta: &Meta, target: &Path, there: &Meta) -> Result<()> {
        self.expect_other(source, meta, there)?;
        let content = self.to.overwrite(target)?;
        self.content(source, &*content, target)?;
        self.copied.files += 1;
        Ok(())
    }

    fn expect_other(&self, source: &Path, meta: &Meta, there: &Meta) -> Result<()> {
        if self.how.same_tree && meta.identity() == there.identity() {
            let cause = "source and target are the same file";
            return Err(Error::new(libc::EINVAL, "copy", source.display().to_string(), cause));
        }
        Ok(())
    }

    fn content(&mut self, source: &Path, to: &dyn Content, target: &Path) -> Result<()> {
        let from = self.from.open(source)?;
        let mut at = 0;
        loop {
            let read = |e: Error| e.during("read", source.display().to_string());
            let came = from.read_at(&mut self.buffer, at).map_err(read)?;
            let write = |e: Error| e.during("write", target.display().to_string());
            if came == 0 {
                self.copied.bytes += at;
                return to.set_len(at).map_err(write);
            }
            let mut done = 0;
            for piece in self.buffer[..came].chunks(HOLE_BYTES) {
                if piece.iter().any(|byte| *byte != 0) {
                    to.write_all_at(piece, at + done).map_err(write)?;
                }
                done += piece.len() as u64;
            }
            at += done;
        }
    }

    /// Gives a copy the attributes that it is to have; owner first, since a new owner takes capabilities and setuid
    /// away, and times last, since everything else changes them.
    fn dress(&mut self, source: &Path, meta: &Meta, target: &Path) -> Result<()> {
        let attr = &meta.attr;
        let owner = match (self.how.keep, self.how.owner) {
            (Keep::All, _) => Some((attr.uid, attr.gid)),
            (Keep::Content, NewOwner::Root) => Some((0, 0)),
            (Keep::Content, NewOwner::Nobody) => None,
        };
        self.to.change(target, Change { owner, ..Change::default() })?;
        if matches!(attr.kind, Kind::File | Kind::Dir) {
            self.xattrs(source, target)?;
        }
        let perm = match self.how.keep {
            Keep::All => attr.perm,
            Keep::Content => attr.perm & 0o1777,
        };
        let times = Some((attr.atime, attr.mtime));
        self.to.change(target, Change { owner: None, perm: Some(perm), times })
    }

    fn xattrs(&mut self, source: &Path, target: &Path) -> Result<()> {
        for (name, value) in self.from.xattrs(source)? {
            if !is_kept(&name, self.how.keep) {
                continue;
            }
            match self.to.set_xattr(target, &name, &value) {
                Ok(()) => {}
                Err(e) if e.is_denied() || e.errno() == libc::EOPNOTSUPP => {
                    let name = name.escape_ascii();
                    self.left_out.push(format!("{}: without its attribute {name}: {e}", target.display()));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Whether a copy gets this attribute: those that say what a layer hides never, since they would say it again.
fn is_kept(name: &[u8], keep: Keep) -> bool {
    const MARKS: [&[u8]; 3] = [b"user.overlay.", b"user.fuseoverlayfs.", b"user.plywood."];
    let of = |class: &[u8]| name.starts_with(class);
    match keep {
        _ if MARKS.iter().any(|mark| of(mark)) => false,
        Keep::Content => of(b"user."),
        Keep::All => of(b"user.") || of(b"system.posix_acl_") || name == b"security.capability",
    }
}

fn absent(found: Result<Meta>) -> Result<Option<Meta>> {
    match found {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.errno() == libc::ENOENT => Ok(None),
        Err(e) => Err(e),
    }
}

fn failed(errno: i32, path: &Path) -> Error {
    Error::from_errno(errno).during("copy to", path.display().to_string())
}

fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn without_slash(path: &Path) -> &Path {
    // The components of a path have none at their end.
    path.components().as_path()
}

/// True for a path that means what a directory holds.
fn is_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"."
        || bytes.ends_with(b"/.")
        || !matches!(path.components().next_back(), Some(Component::Normal(_)))
}

impl std::ops::AddAssign for Copied {
    fn add_assign(&mut self, more: Copied) {
        self.files += more.files;
        self.directories += more.directories;
        self.bytes += more.bytes;
    }
}

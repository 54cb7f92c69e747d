//! Operations on an [`Overlay`] in this process, called as the kernel calls it: by inodes, each name looked up,
//! each inode forgotten as often as it was handed out.

use super::model::{Stack, Subject};
use super::operation::{Answer, Operation, Verb};
use super::plain::{errno, privileges, time_of};
use super::tree::{Entries, Entry, digest, join, pattern, split};
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::overlay::changes::Change;
use crate::overlay::create::{Creator, New};
use crate::overlay::readdir::Taken;
use crate::overlay::remove::Victim;
use crate::overlay::rename::{End, Target};
use crate::overlay::{Overlay, Settings};
use crate::sys;
use crate::sys::xattr::SetMode;
use crate::types::{Attr, Device, Ino, Kind, SetAttr};
use std::collections::HashMap;
use std::sync::Arc;

/// How many inodes are known at most besides those in use, as a kernel would remember them.
const HELD: usize = 64;

/// An overlay in this process.
pub struct Inside {
    settings: Settings,
    overlay: Option<Overlay>,
    handles: HashMap<u64, Ino>,
    /// Inodes that are remembered for no reason, the oldest first.
    held: Vec<Ino>,
    /// Whether those that are met now are remembered: each operation decides that for itself, so that it does
    /// the same in a shorter sequence.
    holds: bool,
}

impl Inside {
    /// An overlay with these settings, to be opened later.
    pub fn new(settings: Settings) -> Inside {
        Inside { settings, overlay: None, handles: HashMap::new(), held: Vec::new(), holds: false }
    }

    fn overlay(&self) -> Result<&Overlay> {
        self.overlay.as_ref().ok_or(errno(libc::ENOTCONN))
    }

    /// Gives a node back.
    fn put(&self, node: Arc<Node>) {
        let ino = node.ino;
        drop(node);
        if let (Some(overlay), true) = (&self.overlay, ino != Ino::ROOT) {
            overlay.forget(ino, 1);
        }
    }

    /// Gives a node back, or remembers it for a while.
    fn put_or_hold(&mut self, node: Arc<Node>) {
        if !self.holds || node.ino == Ino::ROOT {
            return self.put(node);
        }
        self.held.push(node.ino);
        drop(node);
        if self.held.len() > HELD {
            let oldest = self.held.remove(0);
            if let Some(overlay) = &self.overlay {
                overlay.forget(oldest, 1);
            }
        }
    }

    /// The node of a path; the caller gives it back.
    fn walk(&mut self, path: &str) -> Result<(Arc<Node>, Attr)> {
        let overlay = self.overlay()?;
        let root = Arc::clone(overlay.root());
        let attr = overlay.attributes(&root)?;
        let mut current = (root, attr);
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let next = match current.0.kind {
                Kind::Symlink => Err(errno(libc::ENOTDIR)),
                _ => self.overlay()?.lookup(&current.0, name.as_bytes()),
            };
            self.put_or_hold(current.0);
            current = next?;
        }
        Ok(current)
    }

    /// The directory of a path, and the last name.
    fn dir_of<'a>(&mut self, path: &'a str) -> Result<(Arc<Node>, &'a [u8])> {
        let (dir, name) = split(path);
        let (node, _) = self.walk(dir)?;
        if node.is_dir() {
            return Ok((node, name.as_bytes()));
        }
        self.put(node);
        Err(errno(libc::ENOTDIR))
    }

    /// The node of a regular file.
    fn file(&mut self, path: &str) -> Result<(Arc<Node>, Attr)> {
        let (node, attr) = self.walk(path)?;
        let wrong = match node.kind {
            Kind::File => return Ok((node, attr)),
            Kind::Dir => libc::EISDIR,
            _ => libc::EINVAL,
        };
        self.put(node);
        Err(errno(wrong))
    }

    fn make(&mut self, operation: &Operation) -> Result<Answer> {
        let (dir, name) = self.dir_of(&operation.path)?;
        let perm = operation.number(0) as u32;
        let new = match operation.verb {
            Verb::Create => New::File,
            Verb::Mkdir => New::Dir,
            Verb::Mkfifo => New::Node(Kind::Fifo, Device::default()),
            Verb::Mknod => New::Node(Kind::Char, Device { major: perm, minor: operation.number(1) as u32 }),
            _ => New::Symlink(operation.other.as_bytes()),
        };
        let perm = match operation.verb {
            Verb::Mknod => 0o644,
            // The kernel itself takes these bits away.
            Verb::Mkdir => perm & 0o1777,
            _ => perm,
        };
        let (uid, gid) = (sys::process::effective_uid(), sys::process::effective_gid());
        let made = self.overlay()?.create(&dir, name, new, perm, Creator { uid, gid, umask: 0o022 });
        self.put(dir);
        let (node, attr) = made?;
        let now = self.overlay()?.attributes(&node);
        self.put_or_hold(node);
        expect_same("create", &attr, &now?)?;
        Ok(Answer::Done)
    }

    fn remove(&mut self, operation: &Operation) -> Result<Answer> {
        let (dir, name) = self.dir_of(&operation.path)?;
        let victim = if operation.verb == Verb::Rmdir { Victim::Dir } else { Victim::NotDir };
        let removed = self.overlay()?.remove(&dir, name, victim);
        self.put(dir);
        removed.map(|()| Answer::Done)
    }

    fn rename(&mut self, operation: &Operation) -> Result<Answer> {
        let (from, old) = self.dir_of(&operation.path)?;
        let to = self.dir_of(&operation.other);
        let (to, new) = match to {
            Ok(to) => to,
            Err(e) => {
                self.put(from);
                return Err(e);
            }
        };
        let target = match operation.verb {
            Verb::Rename => Target::Replace,
            Verb::RenameNoReplace => Target::MustNotExist,
            _ => Target::Exchange,
        };
        let (start, end) = (End { dir: &from, name: old }, End { dir: &to, name: new });
        let renamed = self.overlay()?.rename(start, end, target);
        self.put(from);
        self.put(to);
        renamed.map(|()| Answer::Done)
    }

    fn link(&mut self, operation: &Operation) -> Result<Answer> {
        let (from, _) = self.dir_of(&operation.path)?;
        self.put(from);
        let (dir, name) = self.dir_of(&operation.other)?;
        let node = match self.walk(&operation.path) {
            Ok((node, _)) => node,
            Err(e) => {
                self.put(dir);
                return Err(e);
            }
        };
        let linked = self.overlay()?.link(&node, &dir, name);
        if linked.is_ok() {
            // It was handed out once more.
            self.overlay()?.forget(node.ino, 1);
        }
        self.put(dir);
        self.put_or_hold(node);
        linked.map(|_| Answer::Done)
    }

    fn copy_range(&mut self, operation: &Operation) -> Result<Answer> {
        let (to, _) = self.file(&operation.other)?;
        let from = match self.file(&operation.path) {
            Ok((from, _)) => from,
            Err(e) => {
                self.put(to);
                return Err(e);
            }
        };
        let n = |at| operation.number(at);
        let copied = self.overlay()?.copy_range(&from, n(1), &to, n(0), n(2) as usize, privileges());
        self.put(from);
        self.put_or_hold(to);
        copied.map(Answer::Written)
    }

    fn on_file(&mut self, operation: &Operation) -> Result<Answer> {
        let (node, attr) = self.file(&operation.path)?;
        let n = |at| operation.number(at);
        let overlay = self.overlay()?;
        let done = match operation.verb {
            Verb::Write => write(overlay, &node, n(0), n(1), n(2)),
            Verb::Append => {
                let data = pattern(n(1), 0, n(0) as usize);
                overlay.write(&node, attr.size_bytes, &data, privileges()).map(Answer::Written)
            }
            Verb::Truncate => set(overlay, &node, SetAttr { size_bytes: Some(n(0)), ..SetAttr::default() }),
            Verb::Punch => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                overlay.allocate(&node, mode, n(0), n(1), privileges()).map(|()| Answer::Done)
            }
            Verb::Allocate => overlay.allocate(&node, 0, n(0), n(1), privileges()).map(|()| Answer::Done),
            _ => read(overlay, &node, n(0), n(1)),
        };
        self.put_or_hold(node);
        done
    }

    fn change_attributes(&mut self, operation: &Operation) -> Result<Answer> {
        let (node, _) = self.walk(&operation.path)?;
        let n = |at| operation.number(at) as u32;
        let overlay = self.overlay()?;
        let time = Some(time_of(operation.number(0)));
        let none = SetAttr::default();
        let name = operation.other.as_bytes();
        let done = match operation.verb {
            Verb::Chmod if node.kind == Kind::Symlink => Err(errno(libc::EOPNOTSUPP)),
            Verb::Chmod => set(overlay, &node, SetAttr { perm: Some(n(0)), ..none }),
            Verb::Chown => set(overlay, &node, SetAttr { uid: Some(n(0)), gid: Some(n(1)), ..none }),
            Verb::Times => set(overlay, &node, SetAttr { atime: time, mtime: time, ..none }),
            // The kernel itself decides that only these two kinds have attributes for users.
            _ if !matches!(node.kind, Kind::File | Kind::Dir) => Err(errno(libc::EPERM)),
            Verb::SetXattr => {
                let value = pattern(operation.number(1), 0, operation.number(0) as usize);
                overlay.set_xattr(&node, name, &value, SetMode::Any).map(|()| Answer::Done)
            }
            _ => overlay.remove_xattr(&node, name).map(|()| Answer::Done),
        };
        self.put_or_hold(node);
        done
    }

    fn by_handle(&mut self, operation: &Operation) -> Result<Answer> {
        let n = |at| operation.number(at);
        if operation.verb == Verb::Open {
            if self.handles.contains_key(&n(0)) {
                return Err(errno(libc::EBUSY));
            }
            let (node, _) = self.file(&operation.path)?;
            self.handles.insert(n(0), node.ino);
            return Ok(Answer::Done);
        }
        let ino = *self.handles.get(&n(0)).ok_or(errno(libc::EBADF))?;
        let overlay = self.overlay()?;
        let node = overlay.node(ino)?;
        match operation.verb {
            Verb::WriteOpen => write(overlay, &node, n(1), n(2), n(3)),
            Verb::ReadOpen => read(overlay, &node, n(1), n(2)),
            Verb::TruncateOpen => {
                set(overlay, &node, SetAttr { size_bytes: Some(n(1)), ..SetAttr::default() })
            }
            Verb::ChmodOpen => set(overlay, &node, SetAttr { perm: Some(n(1) as u32), ..SetAttr::default() }),
            Verb::StatOpen => {
                let attr = overlay.attributes(&node)?;
                Ok(Answer::Stat(attr.size_bytes, attr.nlink, attr.perm))
            }
            _ => {
                self.handles.remove(&n(0));
                self.put(node);
                Ok(Answer::Done)
            }
        }
    }

    /// The entries of a directory; that a listing and a lookup agree is checked on the way.
    fn list(&mut self, dir: &str) -> Result<Entries> {
        let (node, _) = self.walk(dir)?;
        let listed = self.list_node(&node, dir);
        self.put_or_hold(node);
        listed
    }

    fn list_node(&mut self, dir: &Arc<Node>, path: &str) -> Result<Entries> {
        if dir.kind != Kind::Dir {
            return Err(errno(libc::ENOTDIR));
        }
        let overlay = self.overlay()?;
        let mut listed = Vec::new();
        let mut after = 0;
        loop {
            let before = listed.len();
            let mut broken = None;
            overlay.read_dir(dir, after, &mut |entry| {
                // In small portions, as a kernel with a small buffer would ask.
                if listed.len() == before + 3 {
                    return Taken::Full;
                }
                after = entry.position;
                match entry.found {
                    Ok((node, attr)) => {
                        listed.push((String::from_utf8_lossy(entry.name).into_owned(), node, attr));
                    }
                    Err(found) => broken = Some(found.error),
                }
                Taken::Kept
            })?;
            broken.map_or(Ok(()), Err)?;
            if listed.len() == before {
                break;
            }
        }
        let mut entries = Entries::new();
        for (name, node, attr) in listed {
            let seen = self.look(dir, &name, &node, &attr);
            self.put(node);
            let entry = seen.map_err(|e| e.during("look at", join(path, &name)))?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(Error::new(libc::EIO, "list", join(path, &name), "listed twice"));
            }
        }
        Ok(entries)
    }

    fn look(&self, dir: &Arc<Node>, name: &str, node: &Arc<Node>, listed: &Attr) -> Result<Entry> {
        let overlay = self.overlay()?;
        let (again, attr) = overlay.lookup(dir, name.as_bytes())?;
        let is_same = Arc::ptr_eq(&again, node);
        self.put(again);
        expect_same("look up", listed, &attr)?;
        if !is_same {
            return Err(Error::new(libc::EIO, "look up", name, "another inode than listed"));
        }
        let mut entry = Entry {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            size_bytes: if attr.kind == Kind::Dir { 0 } else { attr.size_bytes },
            mtime: attr.mtime,
            ctime: attr.ctime,
            btime: attr.btime,
            device: attr.device,
            ino: attr.ino.0,
            nlink: attr.nlink,
            blocks: attr.blocks,
            target: Vec::new(),
            content: 0,
            attributes: Default::default(),
        };
        if attr.kind == Kind::Symlink {
            entry.target = overlay.read_link(node)?;
        }
        if attr.kind == Kind::File {
            let mut data = vec![0; attr.size_bytes as usize + 1];
            let length = overlay.read(node, 0, &mut data)?;
            if length as u64 != attr.size_bytes {
                let words = format!("{length} bytes can be read of {}", attr.size_bytes);
                return Err(Error::new(libc::EIO, "read", name, words));
            }
            entry.content = digest(&data[..length]);
        }
        for attribute in overlay.xattr_names(node)? {
            let value = overlay.xattr(node, &attribute)?;
            entry.attributes.insert(attribute, value);
        }
        expect_same("read", &attr, &overlay.attributes(node)?)?;
        Ok(entry)
    }

    fn forget_all(&mut self) {
        for ino in std::mem::take(&mut self.held) {
            if let Some(overlay) = &self.overlay {
                overlay.forget(ino, 1);
            }
        }
    }
}

/// Fails if attributes differ in more than the time of the last access, and for a file in its blocks: the disk gives
/// what was written its place when it likes.
fn expect_same(what: &'static str, was: &Attr, is: &Attr) -> Result<()> {
    let blocks = if was.kind == Kind::File { is.blocks } else { was.blocks };
    if (Attr { atime: is.atime, blocks, ..*was }) == *is {
        Ok(())
    } else {
        Err(Error::new(libc::EIO, what, format!("{was:?}"), format!("now {is:?}")))
    }
}

fn write(overlay: &Overlay, node: &Arc<Node>, at: u64, length: u64, seed: u64) -> Result<Answer> {
    overlay.write(node, at, &pattern(seed, at, length as usize), privileges()).map(Answer::Written)
}

fn read(overlay: &Overlay, node: &Arc<Node>, at: u64, length: u64) -> Result<Answer> {
    let mut data = vec![0; length as usize];
    let length = overlay.read(node, at, &mut data)?;
    Ok(Answer::Bytes(length, digest(&data[..length])))
}

fn set(overlay: &Overlay, node: &Arc<Node>, change: SetAttr) -> Result<Answer> {
    let attr = overlay.set_attributes(node, &change, privileges())?;
    expect_same("set attributes", &attr, &overlay.attributes(node)?)?;
    Ok(Answer::Done)
}

impl Subject for Inside {
    fn open(&mut self, stack: &Stack) -> Result<()> {
        let upper = (stack.upper.as_path(), stack.work.as_path());
        self.overlay = Some(Overlay::open(&stack.lowers, Some(upper), self.settings.clone())?);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.forget_all();
        for ino in std::mem::take(&mut self.handles).into_values() {
            self.overlay()?.forget(ino, 1);
        }
        let Some(overlay) = self.overlay.take() else { return Ok(()) };
        match overlay.known_inodes() {
            1 => Ok(()),
            left => {
                Err(Error::new(libc::EIO, "close", left.to_string(), "inodes are known that were forgotten"))
            }
        }
    }

    fn apply(&mut self, operation: &Operation) -> Result<Answer> {
        use Verb::*;
        self.holds = digest(operation.to_string().as_bytes()).is_multiple_of(3);
        match operation.verb {
            Create | Mkdir | Mkfifo | Mknod | Symlink => self.make(operation),
            Unlink | Rmdir => self.remove(operation),
            Rename | RenameNoReplace | Exchange => self.rename(operation),
            Link => self.link(operation),
            CopyRange => self.copy_range(operation),
            Write | Append | Truncate | Punch | Allocate | Read => self.on_file(operation),
            Chmod | Chown | Times | SetXattr | RemoveXattr => self.change_attributes(operation),
            Open | WriteOpen | ReadOpen | TruncateOpen | ChmodOpen | StatOpen | Close => {
                self.by_handle(operation)
            }
            List => Ok(Answer::Names(self.list(&operation.path)?.into_keys().collect())),
            Forget => {
                self.forget_all();
                Ok(Answer::Done)
            }
            Remount | Rotate | Changes => Ok(Answer::Done),
        }
    }

    fn entries(&mut self, dir: &str) -> Result<Entries> {
        self.list(dir)
    }

    fn is_absent(&mut self, path: &str) -> Result<bool> {
        match self.walk(path) {
            Ok((node, _)) => {
                self.put(node);
                Ok(false)
            }
            Err(e) if e.is_absent() => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn changes(&mut self) -> Option<Result<Vec<Change>>> {
        Some(self.overlay().and_then(Overlay::changes))
    }
}

//! Answers requests.

use super::convert;
use super::counters::{Request as Kind_, Requests};
use super::pool::Pool;
use super::session::SessionSettings;
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::options::{OpenProtocol, XattrMode};
use crate::overlay::Overlay;
use crate::overlay::attr::Privileges;
use crate::overlay::create::{Creator, New};
use crate::overlay::readdir::{Entry, Taken};
use crate::overlay::remove::Victim;
use crate::overlay::rename::End;
use crate::sys::copy::Sync;
use crate::types::{Attr, Device, Ino, Kind, SetAttr, Time};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Copies above this size are made by the pool: at some hundred MB a second they take milliseconds.
const LONG_COPY_BYTES: u64 = 1 << 20;

/// The largest write the kernel is asked to send; its default limit is 256 pages.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Requests of the kernel that nobody waits for (read-ahead, direct I/O) at one time.
const MAX_BACKGROUND: u16 = 64;

/// Positions of `.` and `..` in a listing; names follow from [`crate::overlay::listing::FIRST_POSITION`].
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

/// An overlay behind the FUSE protocol.
pub struct OverlayFs {
    overlay: Arc<Overlay>,
    requests: Arc<Requests>,
    pool: Arc<Pool>,
    settings: SessionSettings,
    ttl: Duration,
    /// There once the session is.
    notifier: Arc<OnceLock<Notifier>>,
}

thread_local! {
    /// The data of one read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One generation: numbers are never used again while the kernel knows them.
const GENERATION: Generation = Generation(0);

fn here() -> FileHandle {
    FileHandle(0)
}

impl OverlayFs {
    /// An adapter for `overlay`.
    pub fn new(
        overlay: Arc<Overlay>,
        requests: Arc<Requests>,
        pool: Arc<Pool>,
        settings: SessionSettings,
    ) -> Self {
        let ttl = settings.ttl;
        OverlayFs { overlay, requests, pool, settings, ttl, notifier: Arc::default() }
    }

    /// Where the way to tell the kernel something goes.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        Arc::clone(&self.notifier)
    }

    /// Runs the code behind one request. A panic there drops the reply, which answers EIO, and the thread
    /// goes on with the next request.
    fn serve(&self, request: Kind_, f: impl FnOnce()) {
        self.requests.count(request);
        let _ = catch_unwind(AssertUnwindSafe(f));
    }

    fn node(&self, number: INodeNo) -> Result<Arc<Node>> {
        self.overlay.node(convert::ino(number))
    }

    fn creator(request: &Request, umask: u32) -> Creator {
        Creator { uid: request.uid(), gid: request.gid(), umask }
    }

    fn privileges_of(request: &Request) -> Privileges {
        if request.uid() == 0 { Privileges::Keep } else { Privileges::Kill }
    }

    fn reply_entry(&self, reply: ReplyEntry, result: Result<(Arc<Node>, Attr)>) {
        match result {
            Ok((_, attr)) => reply.entry(&self.ttl, &convert::attr(&attr), GENERATION),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn reply_attr(&self, reply: ReplyAttr, result: Result<Attr>) {
        reply_attr(self.ttl, reply, result);
    }

    fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        new: New<'_>,
        perm: u32,
        creator: Creator,
    ) -> Result<(Arc<Node>, Attr)> {
        let dir = self.node(parent)?;
        self.overlay.create(&dir, name.as_bytes(), new, perm & 0o7777, creator)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, victim: Victim) -> Result<()> {
        self.overlay.remove(&self.node(parent)?, name.as_bytes(), victim)
    }

    /// Runs `f` in the pool if it has to copy much first, else here.
    fn maybe_long(&self, node: &Arc<Node>, f: impl FnOnce() + Send + 'static) {
        if self.overlay.pending_copy_bytes(node) >= LONG_COPY_BYTES {
            self.pool.run(f);
        } else {
            f();
        }
    }
}

/// Takes setuid and setgid bits from a file that is about to be written.
///
/// The kernel leaves that to us, and goes on to run the file with the bits that it remembers: it is told to forget
/// them. No page is named, so it waits for nothing that could wait for this request.
fn take_privileges(
    overlay: &Overlay,
    notifier: &OnceLock<Notifier>,
    node: &Arc<Node>,
    privileges: Privileges,
) -> Result<()> {
    if privileges == Privileges::Kill
        && overlay.take_privileges(node)?
        && let Some(notifier) = notifier.get()
    {
        let _ = notifier.inval_inode(INodeNo(node.ino.0), -1, 0);
    }
    Ok(())
}

fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

fn reply_attr(ttl: Duration, reply: ReplyAttr, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.attr(&ttl, &convert::attr(&attr)),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

/// The attributes of `.` and `..`: only number and kind are looked at.
fn bare_dir(ino: Ino) -> FileAttr {
    convert::attr(&Attr {
        ino,
        kind: Kind::Dir,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        device: Device::default(),
        size_bytes: 0,
        blocks: 0,
        block_size: 4096,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        btime: None,
    })
}

fn parent_ino(node: &Node) -> Ino {
    node.place.read().parent.as_ref().map_or(Ino::ROOT, |p| p.ino)
}

impl Filesystem for OverlayFs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_HAS_RESEND;
        if self.settings.shared_upper {
            // Somebody else changes the files: what is cached must be checked.
            wanted.remove(InitFlags::FUSE_EXPLICIT_INVAL_DATA | InitFlags::FUSE_CACHE_SYMLINKS);
            wanted.insert(InitFlags::FUSE_AUTO_INVAL_DATA);
        }
        if self.settings.acl {
            wanted.insert(InitFlags::FUSE_POSIX_ACL);
        }
        if self.settings.writeback {
            wanted.insert(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Kind_::Lookup, || {
            match self.node(parent).and_then(|dir| self.overlay.lookup(&dir, name.as_bytes())) {
                // Number 0 is "there is none", which the kernel remembers too.
                Err(e) if e.errno() == libc::ENOENT => {
                    reply.entry(&self.ttl, &bare_dir(Ino(0)), GENERATION);
                }
                result => self.reply_entry(reply, result),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.serve(Kind_::Forget, || self.overlay.forget(convert::ino(ino), nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(Kind_::Getattr, || {
            self.reply_attr(reply, self.node(ino).and_then(|node| self.overlay.attributes(&node)));
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(Kind_::Setattr, || {
            let change = SetAttr {
                perm: mode.map(|m| m & 0o7777),
                uid,
                gid,
                size_bytes: size,
                atime: atime.map(convert::set_time),
                mtime: mtime.map(convert::set_time),
            };
            let node = match self.node(ino) {
                Ok(node) => node,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            let privileges = Self::privileges_of(req);
            let (overlay, ttl) = (Arc::clone(&self.overlay), self.ttl);
            let copies = size != Some(0);
            let work = {
                let node = Arc::clone(&node);
                move || reply_attr(ttl, reply, overlay.set_attributes(&node, &change, privileges))
            };
            if copies { self.maybe_long(&node, work) } else { work() }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(Kind_::Readlink, || match self.node(ino).and_then(|node| self.overlay.read_link(&node)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(convert::errno(&e)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.serve(Kind_::Mknod, || {
            let new = match Kind::from_mode(mode) {
                Kind::File => New::File,
                kind => New::Node(kind, convert::decode_device(rdev)),
            };
            self.reply_entry(reply, self.make(parent, name, new, mode, Self::creator(req, umask)));
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.serve(Kind_::Mkdir, || {
            self.reply_entry(reply, self.make(parent, name, New::Dir, mode, Self::creator(req, umask)));
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind_::Unlink, || reply_empty(reply, self.remove(parent, name, Victim::NotDir)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind_::Rmdir, || reply_empty(reply, self.remove(parent, name, Victim::Dir)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.serve(Kind_::Symlink, || {
            let new = New::Symlink(target.as_os_str().as_bytes());
            self.reply_entry(reply, self.make(parent, link_name, new, 0o777, Self::creator(req, 0)));
        });
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Kind_::Rename, || {
            let Some(target) = convert::rename_target(flags) else { return reply.error(Errno::EINVAL) };
            let dirs = self.node(parent).and_then(|from| Ok((from, self.node(newparent)?)));
            let (from, to) = match dirs {
                Ok(dirs) => dirs,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            // A rename may copy a file, or a whole directory: nobody else shall wait for it.
            let overlay = Arc::clone(&self.overlay);
            let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
            let is_long = overlay.rename_copies(&from, &name);
            let work = move || {
                let (from, to) = (End { dir: &from, name: &name }, End { dir: &to, name: &newname });
                reply_empty(reply, overlay.rename(from, to, target));
            };
            if is_long { self.pool.run(work) } else { work() }
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.serve(Kind_::Link, || {
            let nodes = self.node(ino).and_then(|node| Ok((node, self.node(newparent)?)));
            let (node, dir) = match nodes {
                Ok(nodes) => nodes,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            let (overlay, ttl) = (Arc::clone(&self.overlay), self.ttl);
            let newname = newname.as_bytes().to_vec();
            let work = {
                let node = Arc::clone(&node);
                move || match overlay.link(&node, &dir, &newname) {
                    Ok(attr) => reply.entry(&ttl, &convert::attr(&attr), GENERATION),
                    Err(e) => reply.error(convert::errno(&e)),
                }
            };
            self.maybe_long(&node, work);
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Kind_::Open, || {
            if self.settings.open_protocol == OpenProtocol::Never {
                return reply.error(Errno::ENOSYS);
            }
            let node = match self.node(ino) {
                Ok(node) => node,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            let overlay = Arc::clone(&self.overlay);
            let work = {
                let node = Arc::clone(&node);
                move || match overlay.open_file(&node, flags.0) {
                    Ok(()) => reply.opened(here(), FopenFlags::FOPEN_KEEP_CACHE),
                    Err(e) => reply.error(convert::errno(&e)),
                }
            };
            if flags.0 & libc::O_ACCMODE == libc::O_RDONLY { work() } else { self.maybe_long(&node, work) }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(Kind_::Read, || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let Some(data) = buffer.get_mut(..size) else { return reply.error(Errno::EIO) };
                match self.node(ino).and_then(|node| self.overlay.read(&node, offset, data)) {
                    Ok(length) => reply.data(data.get(..length).unwrap_or_default()),
                    Err(e) => reply.error(convert::errno(&e)),
                }
            });
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.serve(Kind_::Write, || {
            let node = match self.node(ino) {
                Ok(node) => node,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let privileges = if kill { Privileges::Kill } else { Privileges::Keep };
            if self.overlay.pending_copy_bytes(&node) >= LONG_COPY_BYTES {
                let (overlay, data) = (Arc::clone(&self.overlay), data.to_vec());
                let notifier = Arc::clone(&self.notifier);
                return self.pool.run(move || {
                    let written = take_privileges(&overlay, &notifier, &node, privileges)
                        .and_then(|()| overlay.write(&node, offset, &data, Privileges::Keep));
                    reply_written(reply, written);
                });
            }
            let written = take_privileges(&self.overlay, &self.notifier, &node, privileges)
                .and_then(|()| self.overlay.write(&node, offset, data, Privileges::Keep));
            reply_written(reply, written);
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.serve(Kind_::Flush, || reply.error(Errno::ENOSYS));
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Kind_::Release, || reply.ok());
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(Kind_::Fsync, || self.sync(ino, datasync, reply));
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve(Kind_::Fsyncdir, || self.sync(ino, datasync, reply));
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Kind_::Opendir, || match self.settings.open_protocol {
            OpenProtocol::Never => reply.error(Errno::ENOSYS),
            OpenProtocol::Classic => {
                reply.opened(here(), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Kind_::Releasedir, || reply.ok());
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.serve(Kind_::Readdir, || {
            let filled = self.node(ino).and_then(|node| {
                let dots = [(DOT, ".", node.ino), (DOT_DOT, "..", parent_ino(&node))];
                for (position, name, ino) in dots {
                    if offset < position && reply.add(INodeNo(ino.0), position, FileType::Directory, name) {
                        return Ok(());
                    }
                }
                self.overlay.read_dir(&node, offset.max(DOT_DOT), &mut |entry| {
                    let kind = convert::file_type(entry.attr.kind);
                    let name = OsStr::from_bytes(entry.name);
                    match reply.add(INodeNo(entry.attr.ino.0), entry.position, kind, name) {
                        true => Taken::Full,
                        false => Taken::Seen,
                    }
                })
            });
            match filled {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(Kind_::Readdirplus, || {
            let ttl = self.ttl;
            let filled = self.node(ino).and_then(|node| {
                let dots = [(DOT, ".", node.ino), (DOT_DOT, "..", parent_ino(&node))];
                for (position, name, ino) in dots {
                    let number = INodeNo(ino.0);
                    if offset < position
                        && reply.add(number, position, name, &ttl, &bare_dir(ino), GENERATION)
                    {
                        return Ok(());
                    }
                }
                self.overlay.read_dir(&node, offset.max(DOT_DOT), &mut |entry: Entry<'_>| {
                    let attr = convert::attr(&entry.attr);
                    let name = OsStr::from_bytes(entry.name);
                    match reply.add(attr.ino, entry.position, name, &ttl, &attr, GENERATION) {
                        true => Taken::Full,
                        false => Taken::Kept,
                    }
                })
            });
            match filled {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(Kind_::Statfs, || match self.overlay.stat_fs() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.fragment_size,
            ),
            Err(e) => reply.error(convert::errno(&e)),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(Kind_::Setxattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let mode = convert::set_mode(flags);
            let done = self.node(ino).and_then(|n| self.overlay.set_xattr(&n, name.as_bytes(), value, mode));
            reply_empty(reply, done);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Kind_::Getxattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let value = self.node(ino).and_then(|node| self.overlay.xattr(&node, name.as_bytes()));
            reply_xattr(reply, size, value);
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(Kind_::Listxattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let names = self.node(ino).and_then(|node| self.overlay.xattr_names(&node));
            let joined = names.map(|names| {
                names.iter().flat_map(|n| n.iter().copied().chain(std::iter::once(0))).collect::<Vec<u8>>()
            });
            reply_xattr(reply, size, joined);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind_::Removexattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let done = self.node(ino).and_then(|node| self.overlay.remove_xattr(&node, name.as_bytes()));
            reply_empty(reply, done);
        });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.serve(Kind_::Access, || reply.error(Errno::ENOSYS));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve(Kind_::Create, || {
            match self.make(parent, name, New::File, mode, Self::creator(req, umask)) {
                // Handle 0: nothing is kept for it, since a server that answers opens once and for all is
                // never told of the close.
                Ok((_, attr)) => {
                    let flags = FopenFlags::FOPEN_KEEP_CACHE;
                    reply.created(&self.ttl, &convert::attr(&attr), GENERATION, here(), flags);
                }
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(Kind_::Ioctl, || {
            let is = |command: libc::Ioctl| cmd == command as u32;
            let answer = self.node(ino).and_then(|node| {
                if is(libc::FS_IOC_GETFLAGS as _) {
                    return Ok(self.overlay.flags(&node)?.to_ne_bytes().to_vec());
                }
                if is(libc::FS_IOC_SETFLAGS as _) {
                    let flags = in_data.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
                    let flags = flags.ok_or(Error::from_errno(libc::EINVAL))?;
                    self.overlay.set_flags(&node, flags)?;
                    return Ok(Vec::new());
                }
                Err(Error::from_errno(libc::ENOTTY))
            });
            match answer {
                Ok(data) => reply.ioctl(0, &data),
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(Kind_::Fallocate, || {
            let node = match self.node(ino) {
                Ok(node) => node,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            let privileges = Self::privileges_of(req);
            let overlay = Arc::clone(&self.overlay);
            let work = {
                let node = Arc::clone(&node);
                move || reply_empty(reply, overlay.allocate(&node, mode, offset, length, privileges))
            };
            self.maybe_long(&node, work);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(Kind_::Lseek, || {
            match self.node(ino).and_then(|node| self.overlay.seek(&node, offset, whence)) {
                Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                Err(e) => reply.error(convert::errno(&e)),
            }
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(Kind_::CopyFileRange, || {
            let nodes = self.node(ino_in).and_then(|from| Ok((from, self.node(ino_out)?)));
            let (from, to) = match nodes {
                Ok(nodes) => nodes,
                Err(e) => return reply.error(convert::errno(&e)),
            };
            // The count of the answer has 32 bits.
            let length = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
            let privileges = Self::privileges_of(req);
            let (overlay, notifier) = (Arc::clone(&self.overlay), Arc::clone(&self.notifier));
            self.pool.run(move || {
                let copied = take_privileges(&overlay, &notifier, &to, privileges).and_then(|()| {
                    overlay.copy_range(&from, offset_in, &to, offset_out, length, Privileges::Keep)
                });
                reply_written(reply, copied);
            });
        });
    }
}

impl OverlayFs {
    fn sync(&self, ino: INodeNo, datasync: bool, reply: ReplyEmpty) {
        use crate::layer::upper::Durability;
        if self.settings.durability == Durability::Volatile {
            // Said once, the kernel does not ask again.
            return reply.error(Errno::ENOSYS);
        }
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(e) => return reply.error(convert::errno(&e)),
        };
        let overlay = Arc::clone(&self.overlay);
        let what = if datasync { Sync::Data } else { Sync::All };
        self.pool.run(move || reply_empty(reply, overlay.sync(&node, what)));
    }
}

fn reply_written(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

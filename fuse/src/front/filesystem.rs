//! Answers requests: what each of them asks of the overlay. Listings are in `listing`, data in `data`,
//! the form of answers in `reply`.

use super::counters::{Request as Kind_, Requests};
use super::data::Caller;
use super::pool::Pool;
use super::session::SessionSettings;
use super::{convert, reply};
use crate::access::ACL_ACCESS;
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::options::{OpenProtocol, XattrMode};
use crate::overlay::Overlay;
use crate::overlay::attr::Privileges;
use crate::overlay::create::{Creator, New};
use crate::overlay::remove::Victim;
use crate::overlay::rename::End;
use crate::types::{Attr, Ino, Kind, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// The largest write the kernel is asked to send; its default limit is 256 pages.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Requests of the kernel that nobody waits for (read-ahead, direct I/O) at one time.
const MAX_BACKGROUND: u16 = 64;

/// An overlay behind the FUSE protocol.
pub struct OverlayFs {
    pub(super) overlay: Arc<Overlay>,
    pub(super) requests: Arc<Requests>,
    pub(super) pool: Arc<Pool>,
    pub(super) settings: SessionSettings,
    pub(super) ttl: Duration,
    /// There once the session is.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
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

    pub(super) fn node(&self, number: INodeNo) -> Result<Arc<Node>> {
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
            Ok((_, attr)) => reply.entry(&self.ttl, &convert::attr(&attr), reply::GENERATION),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    fn reply_attr(&self, reply: ReplyAttr, result: Result<Attr>) {
        reply::attr(self.ttl, reply, result);
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
                    reply.entry(&self.ttl, &reply::bare_dir(Ino(0)), reply::GENERATION);
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
                move || reply::attr(ttl, reply, overlay.set_attributes(&node, &change, privileges))
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
        self.serve(Kind_::Unlink, || reply::empty(reply, self.remove(parent, name, Victim::NotDir)));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind_::Rmdir, || reply::empty(reply, self.remove(parent, name, Victim::Dir)));
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
                reply::empty(reply, overlay.rename(from, to, target));
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
                    Ok(attr) => reply.entry(&ttl, &convert::attr(&attr), reply::GENERATION),
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
                    Ok(()) => reply.opened(reply::here(), FopenFlags::FOPEN_KEEP_CACHE),
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
            self.read_data(ino, offset, size, reply);
        });
    }

    fn write(
        &self,
        req: &Request,
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
            let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let privileges = if kill { Privileges::Kill } else { Privileges::Keep };
            self.write_data(ino, offset, data, (privileges, Caller::of(req)), reply);
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
                reply.opened(reply::here(), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
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

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(Kind_::Readdir, || {
            self.list(ino, offset, reply);
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.serve(Kind_::Readdirplus, || {
            self.list_with_attributes(ino, offset, reply);
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
        req: &Request,
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
            let done = self.node(ino).and_then(|node| {
                let loses_setgid = name.as_bytes() == ACL_ACCESS && self.loses_setgid(req, &node)?;
                self.overlay.set_xattr(&node, name.as_bytes(), value, mode)?;
                if loses_setgid { self.take_setgid(&node) } else { Ok(()) }
            });
            reply::empty(reply, done);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.serve(Kind_::Getxattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let value = self.node(ino).and_then(|node| self.overlay.xattr(&node, name.as_bytes()));
            reply::xattr(reply, size, value);
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
            reply::xattr(reply, size, joined);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Kind_::Removexattr, || {
            if self.settings.xattrs == XattrMode::Off {
                return reply.error(Errno::ENOSYS);
            }
            let done = self.node(ino).and_then(|node| self.overlay.remove_xattr(&node, name.as_bytes()));
            reply::empty(reply, done);
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
                    reply.created(&self.ttl, &convert::attr(&attr), reply::GENERATION, reply::here(), flags);
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
            let writer = (Self::privileges_of(req), Caller::of(req));
            self.allocate_data(&node, mode, (offset, length), writer, reply);
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
            // The count of the answer has 32 bits.
            let length = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
            let (from, to) = ((ino_in, offset_in), (ino_out, offset_out));
            self.copy_data(from, to, length, (Self::privileges_of(req), Caller::of(req)), reply);
        });
    }
}

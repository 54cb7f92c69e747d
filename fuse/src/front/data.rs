//! Answers requests for data: reads and writes where they come in, what takes long in the pool.

use super::filesystem::OverlayFs;
use super::{convert, reply};
use crate::error::Result;
use crate::inode::node::Node;
use crate::overlay::Overlay;
use crate::overlay::attr::Privileges;
use crate::sys::copy::Sync;
use crate::types::SetAttr;
use fuser::{Errno, INodeNo, Notifier, ReplyData, ReplyEmpty, ReplyWrite, Request};
use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

/// Copies above this size are made by the pool: at some hundred MB a second they take milliseconds.
const LONG_COPY_BYTES: u64 = 1 << 20;

thread_local! {
    /// The data of one read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Takes setuid and setgid bits from a file that is about to be written.
///
/// The kernel leaves that to us, and goes on to run the file with the bits that it remembers: it is told to forget
/// them. No page is named, so it waits for nothing that could wait for this request.
fn take_privileges(
    overlay: &Overlay,
    notifier: &OnceLock<Notifier>,
    node: &Arc<Node>,
    (privileges, caller): (Privileges, Caller),
) -> Result<()> {
    if privileges == Privileges::Kill
        && overlay.take_privileges(node, |gid| caller.is_member(gid))?
        && let Some(notifier) = notifier.get()
    {
        let _ = notifier.inval_inode(INodeNo(node.ino.0), -1, 0);
    }
    Ok(())
}

/// Who sent a request, as far as groups are concerned.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    gid: u32,
    pid: u32,
}

impl Caller {
    pub(super) fn of(request: &Request) -> Caller {
        Caller { gid: request.gid(), pid: request.pid() }
    }

    fn is_member(self, gid: u32) -> bool {
        self.gid == gid || groups_of(self.pid).contains(&gid)
    }
}

/// The supplementary groups of a process; none if it cannot be asked.
fn groups_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.unwrap_or_default().split_whitespace().filter_map(|gid| gid.parse().ok()).collect()
}

impl OverlayFs {
    /// Runs `f` in the pool if it has to copy much first, else here.
    pub(super) fn maybe_long(&self, node: &Arc<Node>, f: impl FnOnce() + Send + 'static) {
        if self.overlay.pending_copy_bytes(node) >= LONG_COPY_BYTES {
            self.pool.run(f);
        } else {
            f();
        }
    }

    /// Data of a file.
    pub(super) fn read_data(&self, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
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
    }

    /// New data for a file.
    pub(super) fn write_data(
        &self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        writer: (Privileges, Caller),
        reply: ReplyWrite,
    ) {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(e) => return reply.error(convert::errno(&e)),
        };
        if self.overlay.pending_copy_bytes(&node) >= LONG_COPY_BYTES {
            let (overlay, data) = (Arc::clone(&self.overlay), data.to_vec());
            let notifier = Arc::clone(&self.notifier);
            return self.pool.run(move || {
                let written = take_privileges(&overlay, &notifier, &node, writer)
                    .and_then(|()| overlay.write(&node, offset, &data, Privileges::Keep));
                reply::written(reply, written);
            });
        }
        let written = take_privileges(&self.overlay, &self.notifier, &node, writer)
            .and_then(|()| self.overlay.write(&node, offset, data, Privileges::Keep));
        reply::written(reply, written);
    }

    /// Data of one file for another, each from an offset.
    pub(super) fn copy_data(
        &self,
        (from, offset_in): (INodeNo, u64),
        (to, offset_out): (INodeNo, u64),
        length: usize,
        writer: (Privileges, Caller),
        reply: ReplyWrite,
    ) {
        let nodes = self.node(from).and_then(|from| Ok((from, self.node(to)?)));
        let (from, to) = match nodes {
            Ok(nodes) => nodes,
            Err(e) => return reply.error(convert::errno(&e)),
        };
        let (overlay, notifier) = (Arc::clone(&self.overlay), Arc::clone(&self.notifier));
        self.pool.run(move || {
            let copied = take_privileges(&overlay, &notifier, &to, writer).and_then(|()| {
                overlay.copy_range(&from, offset_in, &to, offset_out, length, Privileges::Keep)
            });
            reply::written(reply, copied);
        });
    }

    /// Room for a file, or holes in it.
    pub(super) fn allocate_data(
        &self,
        node: &Arc<Node>,
        mode: i32,
        (offset, length): (u64, u64),
        writer: (Privileges, Caller),
        reply: ReplyEmpty,
    ) {
        let (overlay, notifier) = (Arc::clone(&self.overlay), Arc::clone(&self.notifier));
        let work = {
            let node = Arc::clone(node);
            move || {
                let done = take_privileges(&overlay, &notifier, &node, writer)
                    .and_then(|()| overlay.allocate(&node, mode, offset, length, Privileges::Keep));
                reply::empty(reply, done);
            }
        };
        self.maybe_long(node, work);
    }

    /// Whether a new access list takes the setgid bit of a file, as a new mode would: its owner is not in its group.
    ///
    /// The kernel decides that for modes, and tells it of lists only in a form of the request that fuser does not read.
    pub(super) fn loses_setgid(&self, request: &Request, node: &Arc<Node>) -> Result<bool> {
        if request.uid() == 0 {
            return Ok(false);
        }
        let attr = self.overlay.attributes(node)?;
        Ok(attr.perm & libc::S_ISGID != 0 && !Caller::of(request).is_member(attr.gid))
    }

    /// Takes the setgid bit from a file or a directory.
    pub(super) fn take_setgid(&self, node: &Arc<Node>) -> Result<()> {
        let perm = self.overlay.attributes(node)?.perm & !libc::S_ISGID;
        let change = SetAttr { perm: Some(perm), ..SetAttr::default() };
        self.overlay.set_attributes(node, &change, Privileges::Keep)?;
        if let Some(notifier) = self.notifier.get() {
            let _ = notifier.inval_inode(INodeNo(node.ino.0), -1, 0);
        }
        Ok(())
    }

    /// Brings a file to the disk.
    pub(super) fn sync(&self, ino: INodeNo, datasync: bool, reply: ReplyEmpty) {
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
        self.pool.run(move || reply::empty(reply, overlay.sync(&node, what)));
    }
}

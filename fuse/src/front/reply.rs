//! Answers in the words of the protocol.

use super::convert;
use crate::error::Result;
use crate::types::{Attr, Device, Ino, Kind, Time};
use fuser::{Errno, FileAttr, FileHandle, Generation, ReplyAttr, ReplyEmpty, ReplyWrite, ReplyXattr};
use std::time::Duration;

/// One generation: numbers are never used again while the kernel knows them.
pub(super) const GENERATION: Generation = Generation(0);

/// No handle: an open file is its inode.
pub(super) fn here() -> FileHandle {
    FileHandle(0)
}

pub(super) fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

pub(super) fn attr(ttl: Duration, reply: ReplyAttr, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.attr(&ttl, &convert::attr(&attr)),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

pub(super) fn xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

/// The attributes of `.` and `..`: only number and kind are looked at.
pub(super) fn bare_dir(ino: Ino) -> FileAttr {
    bare(ino, Kind::Dir)
}

pub(super) fn bare(ino: Ino, kind: Kind) -> FileAttr {
    convert::attr(&Attr {
        ino,
        kind,
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

pub(super) fn written(reply: ReplyWrite, result: Result<usize>) {
    match result {
        Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
        Err(e) => reply.error(convert::errno(&e)),
    }
}

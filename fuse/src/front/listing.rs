//! Answers requests for the names in a directory.

use super::convert;
use super::filesystem::OverlayFs;
use super::reply::{GENERATION, bare, bare_dir};
use crate::inode::node::Node;
use crate::overlay::readdir::{Entry, Taken};
use crate::types::Ino;
use fuser::{FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Positions of `.` and `..` in a listing; names follow from [`crate::overlay::listing::FIRST_POSITION`].
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

fn parent_ino(node: &Node) -> Ino {
    node.place.read().parent.as_ref().map_or(Ino::ROOT, |p| p.ino)
}

impl OverlayFs {
    /// Names with numbers and kinds.
    pub(super) fn list(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
        let filled = self.node(ino).and_then(|node| {
            let dots = [(DOT, ".", node.ino), (DOT_DOT, "..", parent_ino(&node))];
            for (position, name, ino) in dots {
                if offset < position && reply.add(INodeNo(ino.0), position, FileType::Directory, name) {
                    return Ok(());
                }
            }
            self.overlay.read_dir(&node, offset.max(DOT_DOT), &mut |entry| {
                let (ino, kind) = match entry.found {
                    Ok((node, attr)) => (node.ino, attr.kind),
                    Err(broken) => (broken.ino, broken.kind),
                };
                let name = OsStr::from_bytes(entry.name);
                match reply.add(INodeNo(ino.0), entry.position, convert::file_type(kind), name) {
                    true => Taken::Full,
                    false => Taken::Seen,
                }
            })
        });
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(convert::errno(&e)),
        }
    }

    /// Names with all that a lookup would tell.
    pub(super) fn list_with_attributes(&self, ino: INodeNo, offset: u64, mut reply: ReplyDirectoryPlus) {
        let ttl = self.ttl;
        let filled = self.node(ino).and_then(|node| {
            let dots = [(DOT, ".", node.ino), (DOT_DOT, "..", parent_ino(&node))];
            for (position, name, ino) in dots {
                let number = INodeNo(ino.0);
                if offset < position && reply.add(number, position, name, &ttl, &bare_dir(ino), GENERATION) {
                    return Ok(());
                }
            }
            self.overlay.read_dir(&node, offset.max(DOT_DOT), &mut |entry: Entry<'_>| {
                let (attr, ttl) = match entry.found {
                    Ok((_, attr)) => (convert::attr(&attr), ttl),
                    // There is no way to list a name without an inode: number 0 is what the C library
                    // leaves out. So it gets one that the kernel believes for no time: it asks for the
                    // name when somebody uses it, and is told. It forgets a number that nobody knows.
                    Err(broken) => (bare(broken.ino, broken.kind), Duration::ZERO),
                };
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
    }
}

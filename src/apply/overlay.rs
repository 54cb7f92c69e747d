//! A stack of layers that archives are applied to, without a mount: changes go to the upper layer, and whatever has to be
//! known of the layers below is looked up there.
//!
//! Marks, copies of directories on the way, escapes and what the disk refuses are the business of the layer stack itself.
//! What is written can be read by the kernel's overlayfs too. Inodes are given back as soon as a member is made, so that
//! memory does not grow with the archive.

use super::attributes::{Attributes, Times, is_access_list};
use super::report::Applied;
use super::target::{
    Before, Content, Done, Failure, Later, Linked, Look, Made, Marked, Missing, Special, Spot, Target,
};
use crate::error::{Error, Result};
use plywood_fuse::error::{Error as SysError, Result as SysResult};
use plywood_fuse::inode::node::Node;
use plywood_fuse::overlay::attr::Privileges;
use plywood_fuse::overlay::create::{Creator, New};
use plywood_fuse::overlay::{Metacopy, Overlay, Renames, Settings};
use plywood_fuse::sys::process::effective_uid;
use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::types::{Attr, Kind, SetAttr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of content that are moved at once.
const BUFFER: usize = 256 * 1024;

/// A stack of layers.
pub struct OverlayTarget {
    overlay: Arc<Overlay>,
    /// Not bound by the modes of files.
    is_root: bool,
    buffer: Vec<u8>,
}

/// A directory of the stack that is known.
#[derive(Clone)]
pub struct Dir(Arc<Known>);

impl Dir {
    fn node(&self) -> &Arc<Node> {
        self.0.node()
    }
}

/// An inode that was handed out, given back when this goes.
struct Known {
    overlay: Arc<Overlay>,
    /// `None` only while it goes.
    node: Option<Arc<Node>>,
}

impl Known {
    fn new(overlay: &Arc<Overlay>, node: Arc<Node>) -> Known {
        Known { overlay: Arc::clone(overlay), node: Some(node) }
    }

    fn node(&self) -> &Arc<Node> {
        self.node.as_ref().expect("the node is there until the end")
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let Some(node) = self.node.take() else { return };
        let ino = node.ino;
        // The overlay lets an inode go only when nobody holds it.
        drop(node);
        self.overlay.forget(ino, 1);
    }
}

impl OverlayTarget {
    /// The stack of `lowers`, top first, under the layer `upper` with its work directory.
    ///
    /// # Errors
    /// `Busy` while somebody has it mounted; with the directory named.
    pub fn open(lowers: &[PathBuf], upper: &Path, work: &Path) -> Result<OverlayTarget> {
        let settings = Settings { renames: Renames::Copy, metacopy: Metacopy::Off, ..Settings::default() };
        let failed = |e| Error::fuse("open layer", upper.display().to_string(), e);
        let overlay = Overlay::open(lowers, Some((upper, work)), settings).map_err(failed)?;
        match overlay.warning() {
            Some(_) => Err(failed(SysError::from_errno(libc::EBUSY))),
            None => Ok(OverlayTarget {
                overlay: Arc::new(overlay),
                is_root: effective_uid() == 0,
                buffer: Vec::new(),
            }),
        }
    }

    /// How many inodes are known: no more than there are directories on the way.
    pub fn known_inodes(&self) -> usize {
        self.overlay.known_inodes()
    }

    /// Makes something; `None` if the name is in use, and not hidden by what is made.
    fn create(
        &self,
        spot: Spot<'_, Dir>,
        new: New<'_>,
        attributes: &Attributes<'_>,
    ) -> SysResult<Option<(Known, Attr)>> {
        let owner = attributes.owner.unwrap_or_default();
        let creator = Creator { uid: owner.uid, gid: owner.gid, umask: 0 };
        // Set-user-id and set-group-id come last: a write by somebody without privilege takes them away. Who is bound by
        // modes needs the right to write, to set attributes.
        let own = if self.is_root || attributes.xattrs.is_empty() { 0 } else { 0o600 };
        let perm = attributes.perm & 0o1777 | own;
        let made = match new {
            New::Dir => self.overlay.create(spot.dir.node(), spot.name, new, perm, creator),
            _ => self.overlay.create_over(spot.dir.node(), spot.name, new, perm, creator),
        };
        match made {
            Ok((node, attr)) => Ok(Some((Known::new(&self.overlay, node), attr))),
            Err(e) if e.is_exists() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Gives a file that has the attributes `attr` those of a member.
    fn dress(
        &self,
        node: &Arc<Node>,
        mut attr: Attr,
        attributes: &Attributes<'_>,
        path: &[u8],
        report: &mut Applied,
    ) -> SysResult<()> {
        let owner = attributes.owner.unwrap_or_default();
        if (attr.uid, attr.gid) != (owner.uid, owner.gid) {
            let change = SetAttr { uid: Some(owner.uid), gid: Some(owner.gid), ..SetAttr::default() };
            attr = self.overlay.set_attributes(node, &change, Privileges::Keep)?;
        }
        let mut changes_mode = false;
        for (name, value) in attributes.xattrs {
            changes_mode |= is_access_list(name);
            super::set_or_leave_out(path, attr.kind, name, report, |name| {
                self.overlay.set_xattr(node, name.to_bytes(), value, SetMode::Any)
            })?;
        }
        let mut change = SetAttr::default();
        if attr.kind != Kind::Symlink && (attr.perm != attributes.perm || changes_mode) {
            change.perm = Some(attributes.perm);
        }
        // Those of a directory come when all in it is made.
        if attr.kind != Kind::Dir
            && let Some(times) = attributes.times
            && (attr.atime, attr.mtime) != (times.atime, times.mtime)
        {
            (change.atime, change.mtime) = times.to_set();
        }
        if change != SetAttr::default() {
            self.overlay.set_attributes(node, &change, Privileges::Keep)?;
        }
        Ok(())
    }

    fn write(&mut self, node: &Arc<Node>, content: &mut dyn Content) -> Done<()> {
        self.buffer.resize(BUFFER, 0);
        let mut end = 0;
        while let Some(segment) = content.next_segment().map_err(Failure::Caller)? {
            let mut at = segment.offset_bytes;
            loop {
                let read = content.read(&mut self.buffer).map_err(Failure::Caller)?;
                if read == 0 {
                    break;
                }
                if self.overlay.write(node, at, &self.buffer[..read], Privileges::Keep)? < read {
                    return Err(SysError::from_errno(libc::ENOSPC).into());
                }
                at += read as u64;
            }
            end = at;
        }
        if end < content.size_bytes() {
            let change = SetAttr { size_bytes: Some(content.size_bytes()), ..SetAttr::default() };
            self.overlay.set_attributes(node, &change, Privileges::Keep)?;
        }
        Ok(())
    }
}

impl Target for OverlayTarget {
    type Dir = Dir;

    fn root(&mut self) -> Done<Dir> {
        Ok(Dir(Arc::new(Known::new(&self.overlay, Arc::clone(self.overlay.root())))))
    }

    fn takes_devices(&self) -> bool {
        true
    }

    fn missing(&self) -> Missing {
        Missing::Made
    }

    fn look(&mut self, dir: &Dir, name: &[u8]) -> Done<Look<Dir>> {
        let (node, attr) = match self.overlay.lookup(dir.node(), name) {
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENAMETOOLONG) => return Ok(Look::Absent),
            other => other?,
        };
        let known = Known::new(&self.overlay, node);
        match attr.kind {
            Kind::Dir => Ok(Look::Dir(Dir(Arc::new(known)))),
            Kind::Symlink => Ok(Look::Symlink(self.overlay.read_link(known.node())?)),
            _ => Ok(Look::Other),
        }
    }

    fn list(&mut self, dir: &Dir) -> Done<Vec<Vec<u8>>> {
        Ok(self.overlay.names(dir.node())?.into_iter().map(|(name, _)| name).collect())
    }

    fn make_dir(
        &mut self,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        _: Before,
        report: &mut Applied,
    ) -> Done<Made<(Dir, Later)>> {
        let Some((known, attr)) = self.create(spot, New::Dir, attributes)? else { return Ok(Made::Taken) };
        self.dress(known.node(), attr, attributes, spot.path, report)?;
        Ok(Made::New((Dir(Arc::new(known)), Later { perm: None, times: attributes.times })))
    }

    fn make_file(
        &mut self,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        content: &mut dyn Content,
        report: &mut Applied,
    ) -> Done<Made<()>> {
        let Some((known, attr)) = self.create(spot, New::File, attributes)? else { return Ok(Made::Taken) };
        self.write(known.node(), content)?;
        self.dress(known.node(), attr, attributes, spot.path, report)?;
        Ok(Made::New(()))
    }

    fn make_special(
        &mut self,
        spot: Spot<'_, Dir>,
        special: Special<'_>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Made<()>> {
        let new = match special {
            Special::Symlink(text) => New::Symlink(text),
            Special::Node(kind, device) => New::Node(kind, device),
        };
        let Some((known, attr)) = self.create(spot, new, attributes)? else { return Ok(Made::Taken) };
        self.dress(known.node(), attr, attributes, spot.path, report)?;
        Ok(Made::New(()))
    }

    fn link(
        &mut self,
        source: Spot<'_, Dir>,
        spot: Spot<'_, Dir>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Linked> {
        let existing = match self.overlay.lookup(source.dir.node(), source.name) {
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENAMETOOLONG) => return Ok(Linked::NoSource),
            other => Known::new(&self.overlay, other?.0),
        };
        let attr = match self.overlay.link(existing.node(), spot.dir.node(), spot.name) {
            Err(e) if e.is_exists() => return Ok(Linked::Taken),
            other => other?,
        };
        // The overlay handed the node out once more.
        let linked = Known::new(&self.overlay, Arc::clone(existing.node()));
        self.dress(linked.node(), attr, attributes, spot.path, report)?;
        Ok(Linked::New)
    }

    fn change_dir(
        &mut self,
        spot: Spot<'_, Dir>,
        itself: &Dir,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Later> {
        let attr = self.overlay.attributes(itself.node())?;
        self.dress(itself.node(), attr, attributes, spot.path, report)?;
        Ok(Later { perm: None, times: attributes.times })
    }

    fn enter_again(&mut self, _: Spot<'_, Dir>, itself: &Dir) -> Done<Later> {
        let attr = self.overlay.attributes(itself.node())?;
        Ok(Later { perm: None, times: Some(Times { atime: attr.atime, mtime: attr.mtime }) })
    }

    fn leave(&mut self, _: Spot<'_, Dir>, itself: &Dir, later: Later) -> Done<()> {
        let Some(times) = later.times else { return Ok(()) };
        let (atime, mtime) = times.to_set();
        let change = SetAttr { atime, mtime, ..SetAttr::default() };
        self.overlay.set_attributes(itself.node(), &change, Privileges::Keep)?;
        Ok(())
    }

    fn remove(&mut self, spot: Spot<'_, Dir>) -> Done<()> {
        match self.overlay.remove_tree(spot.dir.node(), spot.name) {
            Err(e) if matches!(e.errno(), libc::ENOENT | libc::ENAMETOOLONG) => Ok(()),
            other => Ok(other?),
        }
    }

    fn mark_removed(&mut self, _: Spot<'_, Dir>) -> Done<Marked> {
        Ok(Marked::Yes)
    }

    fn mark_opaque(&mut self, _: &Dir) -> Done<Marked> {
        Ok(Marked::No)
    }
}

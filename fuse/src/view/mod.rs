//! The overlay as one caller sees it: by paths, with permissions checked.
//!
//! [`crate::overlay`] speaks of inodes and lets everybody do everything, since a kernel stands in front of it.
//! Here stands none: a [`View`] walks paths, asks [`crate::access`] and then calls the overlay. It is what a
//! program or a test uses that wants the merged tree without mounting it.
//!
//! # Invariants
//!
//! * What the overlay hands out is given back exactly once, by `Known`; so when all views, files and walks
//!   are dropped, [`Overlay::known_inodes`] is 1: the root.
//! * No path leads out of the tree: `..` stops at its root, and an absolute symlink starts there.
//! * Nothing is changed before every question about it was asked, so a refused call changes nothing.
//! * A failure names the operation and the path.
//!
//! Deliberately absent: a current directory (a relative path starts at the root too), locks between callers
//! (of two changes of one name one wins, as on a disk), pipes, sockets and devices as channels of data, and
//! the `fs.protected_*` settings.
//!
//! # Example
//!
//! ```
//! use plywood_fuse::overlay::{Overlay, Settings};
//! use plywood_fuse::types::Identity;
//! use plywood_fuse::view::View;
//! use std::sync::Arc;
//!
//! let base = std::env::temp_dir().join(format!("plywood-doc-{}", std::process::id()));
//! let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
//! for dir in [&lower, &upper, &work] {
//!     std::fs::create_dir_all(dir)?;
//! }
//! std::fs::write(lower.join("motd"), "from below")?;
//!
//! let overlay = Overlay::open(&[lower.clone()], Some((&upper, &work)), Settings::default())?;
//! let view = View::new(Arc::new(overlay), Identity::root());
//! view.write("motd", "changed")?;
//! view.create_dir_all("etc/conf.d")?;
//!
//! assert_eq!(view.read("/etc/../motd")?, b"changed");
//! assert_eq!(std::fs::read(lower.join("motd"))?, b"from below");
//! let changed: Vec<String> =
//!     view.changes()?.iter().map(|c| String::from_utf8_lossy(&c.path).into_owned()).collect();
//! assert_eq!(changed, ["etc", "etc/conf.d", "motd"]);
//! # drop(view);
//! # std::fs::remove_dir_all(&base)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attr;
mod file;
mod names;
mod path;
mod walk;

pub use file::{File, Open};
pub use names::DirEntry;
pub use walk::{Walk, WalkEntry};

use crate::access::{Access, Acl, may_access};
use crate::error::{Error, Result};
use crate::inode::node::Node;
use crate::overlay::Overlay;
use crate::overlay::changes::Change;
use crate::sys::stat::FsStat;
use crate::types::{Attr, Identity, Kind};
use path::{Follow, Here};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// The attribute that holds the access control list of a file.
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// An overlay as one caller sees it.
///
/// Cheap to clone, and many may look at one overlay at once. Every path is resolved from the root of the tree,
/// with or without a slash at its front; see [`View::metadata`] for the errors that all paths share.
#[derive(Clone)]
pub struct View {
    overlay: Arc<Overlay>,
    who: Identity,
}

impl Overlay {
    /// This overlay as `who` sees it.
    pub fn as_user(self: &Arc<Self>, who: Identity) -> View {
        View::new(Arc::clone(self), who)
    }
}

impl View {
    /// `overlay` as `who` sees it.
    pub fn new(overlay: Arc<Overlay>, who: Identity) -> View {
        View { overlay, who }
    }

    /// The same overlay as somebody else sees it.
    #[must_use]
    pub fn as_user(&self, who: Identity) -> View {
        View::new(Arc::clone(&self.overlay), who)
    }

    /// The overlay below.
    pub fn overlay(&self) -> &Arc<Overlay> {
        &self.overlay
    }

    /// Who looks.
    pub fn identity(&self) -> &Identity {
        &self.who
    }

    /// What the upper layer changes, sorted by path; asks for no permission.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn changes(&self) -> Result<Vec<Change>> {
        self.overlay.changes()
    }

    /// The room on the file system that takes the changes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn stat_fs(&self) -> Result<FsStat> {
        self.overlay.stat_fs()
    }

    /// Asks whether the caller may use `path` in this way, as `access(2)` does; symlinks are followed.
    ///
    /// # Errors
    /// EACCES if not; EROFS to write where nothing can be changed; those of [`View::metadata`].
    pub fn access(&self, path: impl AsRef<Path>, want: Access) -> Result<()> {
        during("access", path.as_ref(), |path| {
            let here = self.find(path, Follow::Yes)?;
            self.may(&here, want)
        })
    }

    // Questions of permission --------------------------------------------------------------------------------

    /// EROFS if nothing can be changed.
    fn writable(&self) -> Result<()> {
        if self.overlay.is_read_only() { Err(Error::from_errno(libc::EROFS)) } else { Ok(()) }
    }

    /// May the caller use this file in this way?
    fn may(&self, here: &Here, want: Access) -> Result<()> {
        let has_content = matches!(here.attr.kind, Kind::File | Kind::Dir | Kind::Symlink);
        if want.contains(Access::WRITE) && has_content {
            self.writable()?;
        }
        let acl = self.acl_of(here.node(), &here.attr)?;
        may_access(&here.attr, acl.as_ref(), &self.who, want)
    }

    /// The access list of a file, if it can matter to this caller: the owner is judged by the mode, root by
    /// nothing, and a mode without group bits switches the list off.
    fn acl_of(&self, node: &Arc<Node>, attr: &Attr) -> Result<Option<Acl>> {
        let no_matter = self.who.uid == 0 || self.who.uid == attr.uid || attr.perm & 0o070 == 0;
        if no_matter || attr.kind == Kind::Symlink {
            return Ok(None);
        }
        match self.overlay.xattr(node, ACL_ACCESS) {
            Ok(value) => Acl::parse(&value),
            Err(e) if e.is_no_attribute() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// An inode that the overlay handed out, to be given back once.
pub(crate) struct Known {
    overlay: Arc<Overlay>,
    /// `None` only while it is dropped.
    node: Option<Arc<Node>>,
}

impl Known {
    /// Takes over one of the times that the overlay handed out `node`.
    fn new(overlay: &Arc<Overlay>, node: Arc<Node>) -> Known {
        Known { overlay: Arc::clone(overlay), node: Some(node) }
    }

    /// The root, which is never given back.
    fn root(overlay: &Arc<Overlay>) -> Known {
        Known::new(overlay, Arc::clone(overlay.root()))
    }

    fn node(&self) -> &Arc<Node> {
        self.node.as_ref().expect("a node is taken out by drop only")
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let Some(node) = self.node.take() else { return };
        let ino = node.ino;
        // Before it is forgotten, or the table could not free it. Forgetting the root does nothing.
        drop(node);
        self.overlay.forget(ino, 1);
    }
}

/// Calls `f` with the bytes of `path`; a failure names the operation and the path.
fn during<T>(operation: &'static str, path: &Path, f: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
    f(path.as_os_str().as_bytes()).map_err(|e| e.during(operation, path.display().to_string()))
}

//! Where members of an archive go: what the engine asks of a tree, and nothing about how the tree is kept.
//!
//! A target acts on one name in one directory that it has given out before. It follows no symlink, resolves no path
//! and decides nothing: that is the engine's part, so that all targets mean the same by the same archive.

use super::attributes::{Attributes, Times};
use super::report::Applied;
use crate::archive::Segment;
use crate::error::{Error, Result};
use plywood_fuse::error::Error as SysError;
use plywood_fuse::types::{Device, Kind};

/// Why something was not done.
#[derive(Debug)]
pub enum Failure {
    /// The disk.
    Disk(SysError),
    /// The archive, or whoever wants to stop.
    Caller(Error),
}

impl From<SysError> for Failure {
    fn from(e: SysError) -> Self {
        Failure::Disk(e)
    }
}

/// What a target is asked for ends so.
pub type Done<T> = std::result::Result<T, Failure>;

/// What a name is.
#[derive(Debug)]
pub enum Look<D> {
    /// Nothing.
    Absent,
    /// Nothing, and nothing in layers below either: this archive removed it.
    Removed,
    /// A directory.
    Dir(D),
    /// A symlink, and what it says.
    Symlink(Vec<u8>),
    /// Anything else.
    Other,
}

/// Whether something was made.
#[derive(Debug)]
pub enum Made<T> {
    /// It was.
    New(T),
    /// The name is in use; nothing has changed.
    Taken,
}

/// What came of a hard link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// It was made.
    New,
    /// The name is in use; nothing has changed.
    Taken,
    /// There is nothing that it could be another name of.
    NoSource,
}

/// What was known of a name when something is made under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Unknown,
    /// Something that is no directory was removed from here, so that no lower directory may show through.
    NoDir,
}

/// What a directory gets once nothing is made in it any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Later {
    /// Permission bits that would be in the way until then.
    pub perm: Option<u32>,
    /// Times, which everything made in it changes.
    pub times: Option<Times>,
}

/// What is no directory, no regular file and no hard link.
#[derive(Debug, Clone, Copy)]
pub enum Special<'a> {
    /// A symlink, and what it says.
    Symlink(&'a [u8]),
    /// A fifo or a device.
    Node(Kind, Device),
}

impl Special<'_> {
    /// What it is.
    pub fn kind(self) -> Kind {
        match self {
            Special::Symlink(_) => Kind::Symlink,
            Special::Node(kind, _) => kind,
        }
    }
}

/// The content of the member that is being made.
pub trait Content {
    /// Its size with holes.
    fn size_bytes(&self) -> u64;

    /// The next piece that has data.
    ///
    /// # Errors
    /// Those of the archive.
    fn next_segment(&mut self) -> Result<Option<Segment>>;

    /// Bytes of the present piece; 0 at its end.
    ///
    /// # Errors
    /// Those of the archive; `Cancelled`.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize>;
}

/// One name in a directory that is open.
#[derive(Debug)]
pub struct Spot<'a, D> {
    /// The directory.
    pub dir: &'a D,
    /// The name in it.
    pub name: &'a [u8],
    /// The path that the archive says, for messages.
    pub path: &'a [u8],
}

impl<D> Clone for Spot<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D> Copy for Spot<'_, D> {}

/// What happens where a directory on the way is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Made,
    /// A layer below may have it: the archive cannot be applied without those.
    NeedsLower,
}

/// What came of a whiteout or of an opaque marker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marked {
    /// The mark is on the disk, or none is needed.
    Yes,
    /// There are no marks here: what is to be hidden has to go, and was not touched.
    No,
    /// What is to be hidden has to be known.
    NeedsLower,
}

/// A tree that an archive is applied to.
pub trait Target {
    /// A directory that is open.
    type Dir: Clone;

    /// The root.
    ///
    /// # Errors
    /// Those of the disk.
    fn root(&mut self) -> Done<Self::Dir>;

    /// Devices can be made or stood in for.
    fn takes_devices(&self) -> bool;

    /// See [`Missing`].
    fn missing(&self) -> Missing;

    /// What a name is. `Absent` also for a name that is too long to be there.
    ///
    /// # Errors
    /// Those of the disk.
    fn look(&mut self, dir: &Self::Dir, name: &[u8]) -> Done<Look<Self::Dir>>;

    /// The names in a directory.
    ///
    /// # Errors
    /// Those of the disk.
    fn list(&mut self, dir: &Self::Dir) -> Done<Vec<Vec<u8>>>;

    /// Makes a directory, and what it gets later.
    ///
    /// # Errors
    /// Those of the disk.
    fn make_dir(
        &mut self,
        spot: Spot<'_, Self::Dir>,
        attributes: &Attributes<'_>,
        before: Before,
        report: &mut Applied,
    ) -> Done<Made<(Self::Dir, Later)>>;

    /// Makes a regular file; `content` was not read if the name is in use.
    ///
    /// # Errors
    /// Those of the disk and of `content`.
    fn make_file(
        &mut self,
        spot: Spot<'_, Self::Dir>,
        attributes: &Attributes<'_>,
        content: &mut dyn Content,
        report: &mut Applied,
    ) -> Done<Made<()>>;

    /// Makes a symlink, fifo or device.
    ///
    /// # Errors
    /// Those of the disk.
    fn make_special(
        &mut self,
        spot: Spot<'_, Self::Dir>,
        special: Special<'_>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Made<()>>;

    /// Gives the file at `source`, whose last component is not followed, another name, and the attributes that are said
    /// of it there.
    ///
    /// # Errors
    /// EPERM for a directory; those of the disk.
    fn link(
        &mut self,
        source: Spot<'_, Self::Dir>,
        spot: Spot<'_, Self::Dir>,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Linked>;

    /// Gives a directory that is there the attributes of a member.
    ///
    /// # Errors
    /// Those of the disk.
    fn change_dir(
        &mut self,
        spot: Spot<'_, Self::Dir>,
        itself: &Self::Dir,
        attributes: &Attributes<'_>,
        report: &mut Applied,
    ) -> Done<Later>;

    /// A directory that had its attributes is to be changed once more: lets its owner in, and says what is to be set
    /// again.
    ///
    /// # Errors
    /// Those of the disk.
    fn enter_again(&mut self, spot: Spot<'_, Self::Dir>, itself: &Self::Dir) -> Done<Later>;

    /// Nothing is made in a directory any more.
    ///
    /// # Errors
    /// Those of the disk.
    fn leave(&mut self, spot: Spot<'_, Self::Dir>, itself: &Self::Dir, later: Later) -> Done<()>;

    /// Removes a name with all below it; that there is none is fine. No directory below it is open.
    ///
    /// # Errors
    /// Those of the disk.
    fn remove(&mut self, spot: Spot<'_, Self::Dir>) -> Done<()>;

    /// Marks a name as removed, after [`Target::remove`].
    ///
    /// # Errors
    /// Those of the disk.
    fn mark_removed(&mut self, spot: Spot<'_, Self::Dir>) -> Done<Marked>;

    /// Marks a directory as hiding what layers below have in it.
    ///
    /// # Errors
    /// Those of the disk.
    fn mark_opaque(&mut self, dir: &Self::Dir) -> Done<Marked>;

    /// Waits for what is still being done.
    ///
    /// # Errors
    /// Those of the disk.
    fn finish(&mut self) -> Done<()> {
        Ok(())
    }
}

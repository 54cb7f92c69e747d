//! What a layer holds that the kernel's overlayfs would not follow: it would show other content than `plywood-fuse`,
//! or an error, and say so to nobody but its log.
//!
//! Such are: directories that were renamed without privilege, and files whose data is in a layer below, if the mount
//! does not follow those; marks of the namespace that the mount does not read; whiteouts that are files or
//! attributes; owners kept in attributes. Looking for them costs one listing of attributes for each entry.

use super::walk::{self, Found, Step, Visitor};
use crate::error::{Error, Result};
use plywood_fuse::layer::marks::{
    AufsName, FUSE_OPAQUE, Mark, Namespace, Opaque, aufs_name, mark_of, parse_opaque,
};
use plywood_fuse::sys;
use plywood_fuse::types::Kind;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// What a mount of the kernel's overlayfs follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Where it looks for marks.
    pub namespace: Namespace,
    /// It follows redirects of directories.
    pub redirects: bool,
    /// It follows files without data of their own.
    pub metacopy: bool,
}

/// Where the kernel keeps the defaults of overlayfs.
const PARAMETERS: &str = "/sys/module/overlay/parameters";

impl Reader {
    /// A mount with these options, on this kernel.
    ///
    /// # Source
    /// `Documentation/filesystems/overlayfs.rst`, "redirect_dir" and "Metadata only copy up": `userxattr` turns both
    /// off; `redirect_dir=off` still follows if the module says so.
    pub fn with_options(options: &[String]) -> Reader {
        let is_on = |parameter: &str| {
            let text = std::fs::read_to_string(Path::new(PARAMETERS).join(parameter));
            text.is_ok_and(|t| t.trim_start().starts_with('Y'))
        };
        Reader::of(options, &is_on)
    }

    /// As [`Reader::with_options`], with the parameters of the module given.
    pub fn of(options: &[String], is_on: &dyn Fn(&str) -> bool) -> Reader {
        if options.iter().any(|o| o == "userxattr") {
            return Reader { namespace: Namespace::User, redirects: false, metacopy: false };
        }
        let value = |name: &str| {
            options.iter().rev().find_map(|o| o.split_once('=').filter(|(n, _)| *n == name)).map(|(_, v)| v)
        };
        let redirects = match value("redirect_dir") {
            Some("on" | "follow") => true,
            Some("nofollow") => false,
            Some(_) => is_on("redirect_always_follow"),
            None => is_on("redirect_dir") || is_on("redirect_always_follow"),
        };
        let metacopy = value("metacopy").map_or_else(|| is_on("metacopy"), |v| v == "on");
        Reader { namespace: Namespace::Trusted, redirects, metacopy: metacopy && redirects }
    }
}

/// The first thing below the directory `layer` that `reader` does not follow, if any; its path is relative.
///
/// # Errors
/// `NotFound` if there is no such directory; those of the disk.
pub fn kernel_cannot_follow(layer: &Path, reader: Reader) -> Result<Option<PathBuf>> {
    let failed = |e| Error::fuse("look through layer", layer.display().to_string(), e);
    let root = sys::open::open_root(layer).map_err(failed)?;
    let mut search = Search { reader, found: None };
    if search.has_mark(sys::Place::dir(&root)).map_err(failed)? {
        return Ok(Some(PathBuf::from(".")));
    }
    let root = walk::open_dir(root.as_fd(), b".").map_err(failed)?;
    walk::walk(root, &mut search).map_err(|e| e.during("look through layer", layer.display().to_string()))?;
    Ok(search.found)
}

struct Search {
    reader: Reader,
    found: Option<PathBuf>,
}

impl Search {
    /// True if an attribute of the file means something that the kernel does not follow.
    fn has_mark(&self, place: sys::Place<'_>) -> plywood_fuse::error::Result<bool> {
        let names = sys::xattr::list(place)?;
        for name in names.iter() {
            if is_override(name) {
                return Ok(true);
            }
            let hidden = match mark_of(name) {
                Some((namespace, mark)) if namespace == self.reader.namespace => match mark {
                    Mark::Redirect => !self.reader.redirects,
                    Mark::Metacopy => !self.reader.metacopy,
                    // Only kernels from 6.7 on know whiteouts that are attributes.
                    Mark::Opaque => opaque(place, name)? == Opaque::XattrWhiteouts,
                    Mark::Whiteout | Mark::Device => true,
                    Mark::Origin | Mark::Impure | Mark::Escapes | Mark::Literal | Mark::Acl => false,
                },
                // Where the kernel does not look at all.
                Some((_, mark)) => match mark {
                    Mark::Redirect | Mark::Metacopy | Mark::Whiteout | Mark::Device => true,
                    Mark::Opaque => opaque(place, name)? != Opaque::No,
                    Mark::Origin | Mark::Impure | Mark::Escapes | Mark::Literal | Mark::Acl => false,
                },
                None => name == FUSE_OPAQUE.to_bytes() && opaque(place, name)? != Opaque::No,
            };
            if hidden {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn opaque(place: sys::Place<'_>, name: &[u8]) -> plywood_fuse::error::Result<Opaque> {
    let Ok(name) = CString::new(name) else { return Ok(Opaque::No) };
    Ok(sys::xattr::get_value(place, &name)?.map_or(Opaque::No, |value| parse_opaque(&value)))
}

/// True for an attribute that holds an owner and a mode.
fn is_override(name: &[u8]) -> bool {
    matches!(
        name,
        b"user.containers.override_stat"
            | b"user.fuseoverlayfs.override_stat"
            | b"security.fuseoverlayfs.override_stat"
    )
}

/// True if a name that looks like a whiteout is one.
fn is_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> plywood_fuse::error::Result<bool> {
    match aufs_name(name) {
        AufsName::Plain => Ok(false),
        AufsName::Whiteout(_) | AufsName::Opaque | AufsName::Reserved => {
            let names = sys::xattr::list(sys::Place::At(dir, name))?;
            Ok(!names.iter().any(|n| matches!(mark_of(n), Some((_, Mark::Literal)))))
        }
    }
}

impl Visitor for Search {
    fn entry(&mut self, found: &Found<'_>) -> Result<Step> {
        let looked = || -> plywood_fuse::error::Result<bool> {
            let known = match found.kind {
                Some(kind) => kind,
                None => sys::stat::stat(found.place())?.kind(),
            };
            let is_file = known == Kind::File;
            Ok(is_file && is_whiteout(found.dir, found.name)? || self.has_mark(found.place())?)
        };
        match looked() {
            Ok(true) => {
                self.found = Some(found.path());
                Ok(Step::Stop)
            }
            // An upper layer may change meanwhile.
            Err(e) if e.is_absent() => Ok(Step::Next),
            Err(e) => Err(Error::fuse("read marks", found.path().display().to_string(), e)),
            Ok(false) if matches!(found.kind, Some(Kind::Dir) | None) => Ok(Step::Enter),
            Ok(false) => Ok(Step::Next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mount_follows_comes_from_its_options_and_from_the_module() {
        let read = |options: &[&str], on: &[&str]| {
            let options: Vec<String> = options.iter().map(ToString::to_string).collect();
            let reader = Reader::of(&options, &|parameter| on.contains(&parameter));
            (reader.namespace, reader.redirects, reader.metacopy)
        };
        use Namespace::{Trusted, User};
        assert_eq!(read(&[], &[]), (Trusted, false, false));
        assert_eq!(read(&[], &["redirect_always_follow"]), (Trusted, true, false));
        assert_eq!(read(&[], &["redirect_dir", "metacopy"]), (Trusted, true, true));
        assert_eq!(read(&["redirect_dir=nofollow"], &["redirect_dir", "metacopy"]), (Trusted, false, false));
        assert_eq!(read(&["redirect_dir=off"], &["redirect_always_follow"]), (Trusted, true, false));
        assert_eq!(read(&["redirect_dir=off", "redirect_dir=on", "metacopy=on"], &[]), (Trusted, true, true));
        assert_eq!(read(&["userxattr"], &["redirect_dir", "metacopy"]), (User, false, false));
    }
}

//! Two trees, the layer that turns one into the other, and what is in it.

use plywood::archive::{EntryKind, Limits, Reader, Writer};
use plywood::diff::{self, ChangeKind, DiffOptions, PlainTree, StackTree, Tree};
use plywood::error::Result;
use plywood_fuse::testing::TempDir;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory, a changed copy of it, and room.
pub struct Two {
    _temp: TempDir,
    pub base: PathBuf,
    pub new: PathBuf,
}

impl Two {
    /// Makes the base, copies it with all times, and changes the copy.
    pub fn new(make: impl FnOnce(&Path), change: impl FnOnce(&Path)) -> Two {
        let temp = TempDir::new();
        let (base, new) = (temp.path().join("base"), temp.path().join("new"));
        std::fs::create_dir(&base).expect("a directory");
        make(&base);
        copy(&base, &new);
        change(&new);
        Two { _temp: temp, base, new }
    }

    pub fn layer(&self) -> Vec<u8> {
        self.try_layer(&DiffOptions::default()).expect("a layer")
    }

    pub fn try_layer(&self, options: &DiffOptions) -> Result<Vec<u8>> {
        layer(&plain(&self.base), &plain(&self.new), options)
    }

    /// The members of the layer, one a line.
    pub fn members(&self) -> Vec<String> {
        members(&self.layer())
    }

    /// The changes, one a line.
    pub fn changes(&self) -> Vec<String> {
        changes(&plain(&self.base), &plain(&self.new), &DiffOptions::default()).expect("changes")
    }
}

/// Copies a directory as `cp -a` does.
pub fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg("--").args([from, to]).output().expect("cp can be started");
    assert!(done.status.success(), "cp: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn plain(path: &Path) -> Tree {
    Tree::Plain(PlainTree::open(path).expect("a tree"))
}

pub fn stack(layers: &[PathBuf]) -> Tree {
    Tree::Stack(StackTree::open(layers).expect("a stack"))
}

/// The whole archive.
pub fn layer(base: &Tree, new: &Tree, options: &DiffOptions) -> Result<Vec<u8>> {
    let mut writer = Writer::new(Vec::new());
    let written = diff::write_layer(base, new, &mut writer, options, &())?;
    let bytes = writer.finish()?;
    assert!(written.bytes <= bytes.len() as u64);
    Ok(bytes)
}

pub fn changes(base: &Tree, new: &Tree, options: &DiffOptions) -> Result<Vec<String>> {
    let mut found = Vec::new();
    diff::changes(base, new, options, &(), &mut |change| {
        let kind = match change.kind {
            ChangeKind::Added => "add",
            ChangeKind::Modified => "modify",
            ChangeKind::Removed => "remove",
        };
        found.push(format!("{kind} {}", change.path.escape_ascii()));
        Ok(())
    })?;
    Ok(found)
}

/// The members of an archive: path, mode, and content or where it leads.
pub fn members(archive: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(archive, Limits::default());
    let mut members = Vec::new();
    while let Some(entry) = reader.next().expect("an archive") {
        let mut words = format!("{} {:o}", entry.path.escape_ascii(), entry.mode);
        match &entry.kind {
            EntryKind::File => {
                let mut content = Vec::new();
                let mut buffer = [0; 4096];
                while reader.next_segment().expect("a segment").is_some() {
                    loop {
                        let length = reader.read(&mut buffer).expect("content");
                        if length == 0 {
                            break;
                        }
                        content.extend_from_slice(&buffer[..length]);
                    }
                }
                words += &format!(" \"{}\"", content.escape_ascii());
            }
            EntryKind::HardLink(to) => words += &format!(" link {}", to.escape_ascii()),
            EntryKind::Symlink(to) => words += &format!(" symlink {}", to.escape_ascii()),
            EntryKind::Char { major, minor } => words += &format!(" char {major}:{minor}"),
            EntryKind::Block { major, minor } => words += &format!(" block {major}:{minor}"),
            EntryKind::Fifo => words += " fifo",
            EntryKind::Dir => {}
        }
        for (name, value) in &entry.xattrs {
            words += &format!(" {}={}", name.escape_ascii(), value.escape_ascii());
        }
        members.push(words);
    }
    members
}

/// What a test does to a tree.
pub trait Changing {
    fn dir(&self, path: &str, mode: u32) -> &Self;
    fn file(&self, path: &str, content: &str, mode: u32) -> &Self;
    fn link(&self, old: &str, new: &str) -> &Self;
    fn symlink(&self, target: &str, path: &str) -> &Self;
    fn chmod(&self, path: &str, mode: u32) -> &Self;
    fn remove(&self, path: &str) -> &Self;
    fn times(&self, path: &str, secs: i64, nanos: u32) -> &Self;
}

impl Changing for Path {
    fn dir(&self, path: &str, mode: u32) -> &Self {
        std::fs::create_dir(self.join(path)).expect("a directory");
        self.chmod(path, mode)
    }

    fn file(&self, path: &str, content: &str, mode: u32) -> &Self {
        std::fs::write(self.join(path), content).expect("a file");
        self.chmod(path, mode)
    }

    fn link(&self, old: &str, new: &str) -> &Self {
        std::fs::hard_link(self.join(old), self.join(new)).expect("a link");
        self
    }

    fn symlink(&self, target: &str, path: &str) -> &Self {
        std::os::unix::fs::symlink(target, self.join(path)).expect("a symlink");
        self
    }

    fn chmod(&self, path: &str, mode: u32) -> &Self {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(self.join(path), PermissionsExt::from_mode(mode)).expect("a mode");
        self
    }

    fn remove(&self, path: &str) -> &Self {
        let path = self.join(path);
        let removed = match std::fs::symlink_metadata(&path).expect("something").is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.expect("it goes");
        self
    }

    fn times(&self, path: &str, secs: i64, nanos: u32) -> &Self {
        use plywood_fuse::types::{SetTime, Time};
        let root = plywood_fuse::sys::open::open_root(self).expect("a directory");
        let place = plywood_fuse::sys::Place::At(std::os::fd::AsFd::as_fd(&root), path.as_bytes());
        let time = Some(SetTime::At(Time { secs, nanos }));
        plywood_fuse::sys::stat::set_times(place, time, time).expect("times");
        self
    }
}

/// True for root; says aloud what is left out for anybody else.
pub fn is_root(why: &str) -> bool {
    let is_root = plywood_fuse::sys::process::effective_uid() == 0;
    if !is_root {
        plywood_fuse::testing::say_skipped(why);
    }
    is_root
}

//! Archives with nasty names applied to a directory: nothing is made, changed, linked or removed outside of it.
//!
//! Around the root lies a tree that nobody may touch. It is small, so that all of it is looked at after every case.

use super::archives::Archive;
use super::entries;
use super::harness::fuzz;
use super::names::nasty;
use super::random::Random;
use plywood::apply::{Below, DirTarget, Outcome, SameOwner, apply};
use plywood::archive::{EntryKind, Limits, Reader, Writer};
use plywood::error::{ErrorKind, Result};
use plywood_fuse::testing::TempDir;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Cases that are applied to one tree, one on top of the other.
const LAYERS: u64 = 12;

/// A world of one thread: `outer/root` is the tree, everything else is none of its business.
struct World {
    _temp: TempDir,
    outer: PathBuf,
    before: BTreeMap<PathBuf, String>,
    cases: u64,
    is_layer: bool,
    pool: Vec<Archive>,
    changed: Archive,
}

impl World {
    fn new() -> Self {
        let temp = TempDir::new();
        let outer = temp.path().join("outer");
        std::fs::create_dir_all(outer.join("a/b")).expect("make directories");
        for path in ["f", "a/f", "a/b/f", ".wh.f", "secret"] {
            std::fs::write(outer.join(path), "untouched").expect("write");
        }
        std::os::unix::fs::symlink("a", outer.join("b")).expect("symlink");
        let mut random = Random::new(4);
        let pool = (0..500).map(|_| Archive::new(&mut random)).collect();
        let mut world = World {
            _temp: temp,
            outer,
            before: BTreeMap::new(),
            cases: 0,
            is_layer: false,
            pool,
            changed: Archive::default(),
        };
        world.before = world.look();
        world
    }

    fn root(&self) -> PathBuf {
        self.outer.join("root")
    }

    /// An empty tree now and then.
    fn begin(&mut self, random: &mut Random) {
        if self.cases.is_multiple_of(LAYERS) {
            for dir in ["root", "work"] {
                let dir = self.outer.join(dir);
                if dir.exists() && std::fs::remove_dir_all(&dir).is_err() {
                    // Of a plain user, who has to be let in first.
                    let _ = std::process::Command::new("chmod").args(["-R", "u+rwx"]).arg(&dir).status();
                    std::fs::remove_dir_all(&dir).expect("empty the tree");
                }
                std::fs::create_dir(&dir).expect("make it again");
            }
            self.is_layer = random.once_in(4);
        }
        self.cases += 1;
    }

    /// Everything outside of the tree.
    fn look(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![self.outer.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).expect("list").map(|entry| entry.expect("an entry")) {
                let path = entry.path();
                if dir == self.outer && (entry.file_name() == "root" || entry.file_name() == "work") {
                    continue;
                }
                let meta = entry.metadata().expect("stat");
                let words = format!(
                    "{:o} {}:{} {} {} {}.{} {}.{}",
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.nlink(),
                    meta.size(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    meta.ctime(),
                    meta.ctime_nsec()
                );
                if meta.is_dir() {
                    dirs.push(path.clone());
                }
                found.insert(path, words);
            }
        }
        found
    }
}

/// What a link says: of something outside, if it may.
fn target(random: &mut Random, outer: &Path) -> Vec<u8> {
    let outside = outer.display().to_string();
    match random.below(8) {
        0 => outside.into_bytes(),
        1 => format!("{outside}/secret").into_bytes(),
        2 => format!("{}{outside}/a", "../".repeat(random.below(30))).into_bytes(),
        3 => b"../secret".to_vec(),
        4 => b"../a".to_vec(),
        5 => b"..".to_vec(),
        6 => b"a".to_vec(),
        _ => nasty(random),
    }
}

fn archive(random: &mut Random, outer: &Path) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for _ in 0..1 + random.below(8) {
        let (mut entry, content) = entries::entry(random);
        entry.kind = match random.below(10) {
            0..=2 => EntryKind::Symlink(target(random, outer)),
            3 => EntryKind::HardLink(target(random, outer)),
            4 | 5 => EntryKind::Dir,
            6 => entry.kind,
            _ => EntryKind::File,
        };
        if entry.kind != EntryKind::File {
            entry.size_bytes = 0;
        }
        entry.path = match random.below(8) {
            0 => target(random, outer),
            1 => [&target(random, outer)[..], b"/", &nasty(random)].concat(),
            2 => entry.path,
            _ => nasty(random),
        };
        if entry.kind == EntryKind::File {
            while entry.path.ends_with(b"/") {
                entry.path.pop();
            }
        }
        // What no archive can say is left out.
        if writer.entry(&entry).is_ok() && entry.size_bytes > 0 {
            writer.content(&content).expect("its content");
        }
    }
    writer.finish().expect("an end")
}

fn run(world: &World, bytes: &[u8], random: &mut Random) -> Result<Outcome> {
    let mut reader = Reader::new(bytes, Limits::default());
    let mut target = if world.is_layer {
        let below = if random.once_in(2) { Below::Nothing } else { Below::Unknown };
        DirTarget::layer(&world.root(), &world.outer.join("work"), below)?
    } else {
        DirTarget::plain(&world.root(), SameOwner::IfPossible)?
    };
    apply(&mut reader, &mut target, &())
}

#[test]
fn nothing_is_done_outside_of_the_root() {
    // What a debug build has elsewhere would take a minute.
    let cases = if cfg!(debug_assertions) { 2000 } else { 60_000 };
    fuzz("applying", cases, World::new, |world, random| {
        world.begin(random);
        let bytes = if random.once_in(8) {
            let World { pool, changed, .. } = world;
            let original = random.one_of(pool);
            changed.bytes.clone_from(&original.bytes);
            changed.headers.clone_from(&original.headers);
            changed.change(random, random.clone().one_of(pool));
            changed.bytes.clone()
        } else {
            let mut bytes = archive(random, &world.outer);
            if random.once_in(8) {
                let at = random.below(bytes.len());
                bytes[at] = random.number() as u8;
            }
            bytes
        };
        match run(world, &bytes, random) {
            Ok(_) => {}
            Err(e) => {
                assert!(!matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Aborted), "{e}");
                // A name may be said twice, and has as many bytes as a path may have.
                assert!(e.to_string().len() < 20_000, "{e}");
            }
        }
        let now = world.look();
        assert!(now == world.before, "{:#?}\n{now:#?}\n{}", world.before, bytes.escape_ascii());
    });
}

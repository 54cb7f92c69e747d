//! Chance, and what is made of it: layers, operations, and shorter sequences.
//!
//! Few names, so that operations meet each other. Operations are chosen for the tree as it is, most for what is
//! there and some for what is not; as a sequence they are valid whatever is left out of it.

use super::model::{Variant, View};
use super::operation::{Operation, Verb};
use super::tree::{Item, Layer, What, join, merged};
use crate::types::Kind;
use std::collections::BTreeMap;

/// Random numbers (splitmix64): the same for the same seed, everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", ".wh.a", ".wh.b"];

/// Where whiteouts are files: a file of that name and the whiteout cannot both be there.
const NAMES_BESIDE_FILES: [&str; 6] = ["a", "b", "c", "d", ".wh.e", ".wh.f"];

/// How deep a tree gets at most by what is made.
const MAX_DEPTH: usize = 4;

/// How many entries a tree has at most, about.
const MAX_ENTRIES: usize = 40;

/// The size of a file that is copied up without its data, if only attributes change.
const LARGE: u64 = 200 * 1024;

fn depth(path: &str) -> usize {
    path.split('/').filter(|n| !n.is_empty()).count()
}

fn name(random: &mut Random, variant: &Variant) -> &'static str {
    let names = if variant.whiteout_files { &NAMES_BESIDE_FILES } else { &NAMES };
    names[random.below(names.len() as u64) as usize]
}

fn any_path(random: &mut Random, variant: &Variant) -> String {
    let depth = 1 + random.below(3);
    (0..depth).map(|_| name(random, variant)).collect::<Vec<_>>().join("/")
}

/// Random layers for a variant, topmost first.
pub fn layers(random: &mut Random, variant: &Variant) -> Vec<Layer> {
    let count = 1 + random.below(3);
    let mut mtime = 1_000_000_000;
    let mut below: Vec<String> = Vec::new();
    let mut layers = Vec::new();
    for _ in 0..count {
        let mut items = Vec::new();
        let mut files: Vec<String> = Vec::new();
        for _ in 0..4 + random.below(12) {
            mtime += 1;
            let path = match below.is_empty() || random.once_in(2) {
                true => any_path(random, variant),
                false => random.pick(&below).clone(),
            };
            let mut item = Item { mtime, ..Item::new(path.clone(), what(random, variant, &below, &files)) };
            decorate(random, variant, &mut item);
            if matches!(item.what, What::File(_)) {
                files.push(path.clone());
            }
            below.push(path);
            items.push(item);
        }
        let mut layer = Layer { dialect: *random.pick(&variant.dialects), items }.sound();
        if variant.judge {
            // The kernel lists a whiteout that hides nothing.
            let shown = merged(&layers);
            let is_shown = |path: &str| shown.items.iter().any(|i| i.path == path);
            layer.items.retain(|i| i.what != What::Whiteout || is_shown(&i.path));
        }
        layers.insert(0, layer);
    }
    layers
}

fn what(random: &mut Random, variant: &Variant, below: &[String], files: &[String]) -> What {
    match random.below(20) {
        0..=4 => What::Dir,
        5 if !below.is_empty() => What::Opaque,
        6..=7 if !below.is_empty() => What::Whiteout,
        8 => What::Symlink(name(random, variant).into()),
        9 => What::Fifo,
        10..=11 if !files.is_empty() => What::Link(random.pick(files).clone()),
        12 => What::Sparse(LARGE),
        13 if variant.privileged => What::Device(1, 3),
        _ => What::File(random.below(3000)),
    }
}

fn decorate(random: &mut Random, variant: &Variant, item: &mut Item) {
    if random.once_in(3) {
        item.perm = permissions(random, variant, matches!(item.what, What::Dir | What::Opaque));
    }
    if random.once_in(3) && variant.privileged {
        item.owner = Some((1000 + random.below(2) as u32, 1000 + random.below(2) as u32));
    }
    if random.once_in(4) && matches!(item.what, What::Dir | What::Opaque | What::File(_) | What::Sparse(_)) {
        item.attributes.push(("user.a".into(), format!("v{}", random.below(9))));
    }
}

fn permissions(random: &mut Random, variant: &Variant, is_dir: bool) -> u32 {
    const DIRS: [u32; 5] = [0o755, 0o700, 0o1777, 0o2775, 0o711];
    const FILES: [u32; 5] = [0o644, 0o600, 0o755, 0o4755, 0o2755];
    const ROOT_ONLY: [u32; 3] = [0, 0o200, 0o444];
    if variant.privileged && random.once_in(6) {
        return *random.pick(&ROOT_ONLY);
    }
    *random.pick(if is_dir { &DIRS } else { &FILES })
}

/// How often each verb is chosen.
const WEIGHTS: [(Verb, u64); 35] = [
    (Verb::Create, 8),
    (Verb::Mkdir, 8),
    (Verb::Mkfifo, 1),
    (Verb::Mknod, 1),
    (Verb::Symlink, 2),
    (Verb::Link, 5),
    (Verb::Unlink, 8),
    (Verb::Rmdir, 6),
    (Verb::Rename, 14),
    (Verb::RenameNoReplace, 3),
    (Verb::Exchange, 5),
    (Verb::Write, 6),
    (Verb::Append, 3),
    (Verb::Truncate, 4),
    (Verb::Punch, 2),
    (Verb::Allocate, 1),
    (Verb::CopyRange, 3),
    (Verb::Chmod, 4),
    (Verb::Chown, 3),
    (Verb::Times, 3),
    (Verb::SetXattr, 4),
    (Verb::RemoveXattr, 3),
    (Verb::Read, 2),
    (Verb::List, 2),
    (Verb::Open, 4),
    (Verb::WriteOpen, 4),
    (Verb::ReadOpen, 3),
    (Verb::TruncateOpen, 1),
    (Verb::ChmodOpen, 1),
    (Verb::StatOpen, 3),
    (Verb::Close, 2),
    (Verb::Forget, 1),
    (Verb::Remount, 1),
    (Verb::Rotate, 1),
    (Verb::Changes, 1),
];

fn verb(random: &mut Random) -> Verb {
    let total: u64 = WEIGHTS.iter().map(|(_, w)| w).sum();
    let mut left = random.below(total);
    for (verb, weight) in WEIGHTS {
        if left < weight {
            return verb;
        }
        left -= weight;
    }
    Verb::List
}

/// A random operation for a tree.
pub fn operation(random: &mut Random, variant: &Variant, view: &View) -> Operation {
    let mut verb = verb(random);
    if matches!(verb, Verb::Create | Verb::Mkdir) && view.all.len() > MAX_ENTRIES {
        verb = if random.once_in(2) { Verb::Unlink } else { Verb::Rmdir };
    }
    if !variant.privileged && matches!(verb, Verb::Chown | Verb::Mknod) {
        verb = Verb::Chmod;
    }
    if verb == Verb::Mknod && variant.judge {
        verb = Verb::Mkfifo;
    }
    let (path, other) = paths(random, variant, view, verb);
    let numbers = numbers(random, variant, view, verb, &path);
    Operation { verb, path, other, numbers }
}

fn paths(random: &mut Random, variant: &Variant, view: &View, verb: Verb) -> (String, String) {
    use Verb::*;
    let none = String::new;
    let mut of = |kind: Option<Kind>| existing(random, variant, view, kind);
    match verb {
        Create | Mkdir | Mkfifo | Mknod => (fresh(random, variant, view), none()),
        Symlink => (fresh(random, variant, view), name(random, variant).into()),
        Link => (of(Some(Kind::File)), fresh(random, variant, view)),
        Rmdir => (of(Some(Kind::Dir)), none()),
        Rename | RenameNoReplace => {
            let from = if random.once_in(2) {
                existing(random, variant, view, Some(Kind::Dir))
            } else {
                any(random, variant, view)
            };
            let to =
                if random.once_in(2) { any(random, variant, view) } else { fresh(random, variant, view) };
            (from, to)
        }
        Exchange => (of(None), of(None)),
        Write | Append | Truncate | Punch | Allocate | Read | Open => (of(Some(Kind::File)), none()),
        CopyRange => (of(Some(Kind::File)), of(Some(Kind::File))),
        Unlink | Chmod | Chown | Times => (of(None), none()),
        SetXattr | RemoveXattr => (of(None), attribute(random, variant).into()),
        List => (of(Some(Kind::Dir)), none()),
        _ => (none(), none()),
    }
}

fn attribute(random: &mut Random, variant: &Variant) -> &'static str {
    const ALWAYS: [&str; 2] = ["user.a", "user.b"];
    const INNER: [&str; 4] =
        ["user.overlay.opaque", "user.fuseoverlayfs.opaque", "user.overlay.plywood.literal", "user.a"];
    let names: &[&str] = if !variant.judge && random.once_in(4) { &INNER } else { &ALWAYS };
    names[random.below(names.len() as u64) as usize]
}

/// A name that may or may not be there, in a directory that is.
fn fresh(random: &mut Random, variant: &Variant, view: &View) -> String {
    let dirs: Vec<&String> = view
        .all
        .iter()
        .filter(|(path, kind)| **kind == Kind::Dir && depth(path) < MAX_DEPTH)
        .map(|(path, _)| path)
        .collect();
    let dir = if dirs.is_empty() || random.once_in(4) { "" } else { random.pick(&dirs).as_str() };
    join(dir, name(random, variant))
}

/// Something that is there.
fn existing(random: &mut Random, variant: &Variant, view: &View, kind: Option<Kind>) -> String {
    let fitting: Vec<&String> =
        view.all.iter().filter(|(_, k)| kind.is_none_or(|kind| kind == **k)).map(|(path, _)| path).collect();
    match fitting.is_empty() || random.once_in(8) {
        true => any_path(random, variant),
        false => (*random.pick(&fitting)).clone(),
    }
}

fn any(random: &mut Random, variant: &Variant, view: &View) -> String {
    existing(random, variant, view, None)
}

fn numbers(random: &mut Random, variant: &Variant, view: &View, verb: Verb, path: &str) -> Vec<u64> {
    use Verb::*;
    let is_dir = view.all.get(path) == Some(&Kind::Dir);
    let seed = random.below(1000);
    let offset = if random.once_in(20) { random.below(LARGE) } else { random.below(3000) };
    let length = random.below(2000);
    let handle = random.below(3);
    match verb {
        Create => vec![u64::from(permissions(random, variant, false))],
        Mkfifo => vec![0o644],
        Mkdir => vec![u64::from(permissions(random, variant, true))],
        Chmod => vec![u64::from(permissions(random, variant, is_dir))],
        Mknod => {
            if random.once_in(2) {
                vec![0, 0]
            } else {
                vec![1, 5]
            }
        }
        Write => vec![offset, length, seed],
        Append => vec![length, seed],
        Truncate => vec![if random.once_in(3) { 0 } else { offset }],
        Punch | Allocate => vec![offset, length + 1],
        CopyRange => vec![offset, random.below(2000), length],
        Chown => vec![1000 + random.below(2), 1000 + random.below(2)],
        Times => vec![if random.once_in(5) { 0 } else { 1_100_000_000 + random.below(1_000_000) }],
        SetXattr => vec![random.below(40), seed],
        Read => vec![offset, length],
        Open | StatOpen | Close => vec![handle],
        WriteOpen => vec![handle, offset, length, seed],
        ReadOpen => vec![handle, offset, length],
        TruncateOpen => vec![handle, offset],
        ChmodOpen => vec![handle, u64::from(permissions(random, variant, false))],
        _ => Vec::new(),
    }
}

/// A shorter list that still fails, found by leaving out more and more of less and less.
pub fn shorten<T: Clone>(list: &[T], tries: &mut usize, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut best = list.to_vec();
    let mut size = best.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < best.len() && *tries > 0 {
            let end = (at + size).min(best.len());
            let without: Vec<T> = [&best[..at], &best[end..]].concat();
            *tries -= 1;
            if fails(&without) {
                best = without;
                shorter = true;
            } else {
                at = end;
            }
        }
        if *tries == 0 || (size == 1 && !shorter) {
            return best;
        }
        size = if shorter && size == 1 { 1 } else { size.div_ceil(2).max(1) };
        if size > best.len() {
            size = best.len().max(1);
        }
    }
}

/// The kinds of what is under each path.
pub type Kinds = BTreeMap<String, Kind>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shortened_to_what_fails() {
        let list: Vec<u32> = (0..100).collect();
        let short = shorten(&list, &mut 1000, &mut |l| l.contains(&17) && l.contains(&60));
        assert_eq!(short, [17, 60]);
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        assert_eq!(Random::new(7).number(), Random::new(7).number());
        assert_ne!(Random::new(7).number(), Random::new(8).number());
    }
}

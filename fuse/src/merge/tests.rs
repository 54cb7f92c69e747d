//! Every kind of entry over four layers, against a definition written down independently.
//!
//! The definition is the text of the overlayfs documentation as a recursion from the top layer; the state
//! machines are loops that hear one layer after the other. They share nothing but the words.

use super::lookup::{Cursor, Lookup, Said};
use super::readdir::{Merger, Name, Source};
use crate::layer::marks::{Opaque, Redirect};
use std::collections::BTreeMap;

/// What a layer can have under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Has {
    Nothing,
    Whiteout,
    File,
    /// Attributes only.
    Metacopy,
    Dir,
    OpaqueDir,
    /// A directory with whiteouts that are attributes: hides nothing as a whole.
    DirWithXattrWhiteouts,
}

const ALL: [Has; 7] = [
    Has::Nothing,
    Has::Whiteout,
    Has::File,
    Has::Metacopy,
    Has::Dir,
    Has::OpaqueDir,
    Has::DirWithXattrWhiteouts,
];

fn said(has: Has) -> Said {
    match has {
        Has::Nothing => Said::Absent,
        Has::Whiteout => Said::Whiteout,
        Has::File => Said::File,
        Has::Metacopy => Said::Metacopy(None),
        Has::Dir => Said::Dir(Opaque::No, None),
        Has::OpaqueDir => Said::Dir(Opaque::Yes, None),
        Has::DirWithXattrWhiteouts => Said::Dir(Opaque::XattrWhiteouts, None),
    }
}

/// The definition: which layers make up the name, from `at` down.
fn defined(stack: &[Has], at: usize) -> Vec<usize> {
    let Some(&has) = stack.get(at) else { return Vec::new() };
    match has {
        Has::Nothing => defined(stack, at + 1),
        Has::Whiteout => Vec::new(),
        Has::File | Has::OpaqueDir => vec![at],
        Has::Metacopy => [vec![at], data_below(stack, at + 1)].concat(),
        Has::Dir | Has::DirWithXattrWhiteouts => [vec![at], dirs_below(stack, at + 1)].concat(),
    }
}

/// Below a directory: the directories that show through, until something else is in the way.
fn dirs_below(stack: &[Has], at: usize) -> Vec<usize> {
    match stack.get(at) {
        Some(Has::Nothing) => dirs_below(stack, at + 1),
        Some(Has::OpaqueDir) => vec![at],
        Some(Has::Dir | Has::DirWithXattrWhiteouts) => [vec![at], dirs_below(stack, at + 1)].concat(),
        Some(Has::Whiteout | Has::File | Has::Metacopy) | None => Vec::new(),
    }
}

/// Below a file without data: the files down to the first that has it.
fn data_below(stack: &[Has], at: usize) -> Vec<usize> {
    match stack.get(at) {
        Some(Has::Nothing) => data_below(stack, at + 1),
        Some(Has::File) => vec![at],
        Some(Has::Metacopy) => [vec![at], data_below(stack, at + 1)].concat(),
        Some(Has::Whiteout | Has::Dir | Has::OpaqueDir | Has::DirWithXattrWhiteouts) | None => Vec::new(),
    }
}

fn heard(stack: &[Has]) -> Vec<usize> {
    let mut lookup = Lookup::new(b"name");
    let mut parts = Vec::new();
    for (layer, &has) in stack.iter().enumerate() {
        let verdict = lookup.hear(&said(has));
        if verdict.takes_part {
            parts.push(layer);
        }
        if !verdict.go_on {
            break;
        }
    }
    parts
}

fn every_stack<const LAYERS: usize, T: Copy>(kinds: &[T], mut check: impl FnMut(&[T])) {
    for number in 0..kinds.len().pow(LAYERS as u32) {
        let stack: Vec<T> =
            (0..LAYERS).map(|layer| kinds[number / kinds.len().pow(layer as u32) % kinds.len()]).collect();
        check(&stack);
    }
}

#[test]
fn every_stack_of_four_layers_merges_as_defined() {
    let mut checked = 0;
    every_stack::<4, Has>(&ALL, |stack| {
        assert_eq!(heard(stack), defined(stack, 0), "{stack:?}");
        checked += 1;
    });
    assert_eq!(checked, 7_usize.pow(4));
}

#[test]
fn a_redirect_changes_what_the_layers_below_are_asked_for() {
    let name = |n: &[u8]| Some(Redirect::Name(n.into()));
    let path = |p: &[u8]| Some(Redirect::Path(p.into()));
    for (redirects, expected) in [
        (vec![name(b"old")], Cursor::Name(b"old".to_vec().into())),
        (vec![path(b"a/old")], Cursor::Path((*b"a/old").into())),
        (vec![path(b"a/b"), name(b"c")], Cursor::Path((*b"a/c").into())),
        (vec![path(b"a"), name(b"c")], Cursor::Path((*b"c").into())),
        (vec![name(b"b"), name(b"c")], Cursor::Name(b"c".to_vec().into())),
        (vec![name(b"b"), path(b"x/y"), None], Cursor::Path((*b"x/y").into())),
    ] {
        let mut lookup = Lookup::new(b"new");
        for redirect in &redirects {
            let moved = lookup.hear(&Said::Dir(Opaque::No, redirect.clone())).moved;
            assert_eq!(moved, redirect.is_some());
        }
        assert_eq!(lookup.cursor(), &expected, "{redirects:?}");
    }
}

/// What a layer can say about a name in a listing; two at once where one layer hides and shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lists {
    Nothing,
    Hidden,
    File,
    Dir,
    HiddenAndFile,
    HiddenAndDir,
}

const LISTS: [Lists; 6] =
    [Lists::Nothing, Lists::Hidden, Lists::File, Lists::Dir, Lists::HiddenAndFile, Lists::HiddenAndDir];

/// The definition: which layer shows the name, and whether another directory is below that one.
fn listed(stack: &[Lists]) -> Option<Source> {
    let layer = stack.iter().position(|l| *l != Lists::Nothing)?;
    let merged = match stack[layer] {
        Lists::Hidden | Lists::Nothing => return None,
        Lists::File | Lists::HiddenAndFile | Lists::HiddenAndDir => false,
        Lists::Dir => {
            let next = stack[layer + 1..].iter().find(|l| **l != Lists::Nothing);
            matches!(next, Some(Lists::Dir | Lists::HiddenAndDir))
        }
    };
    let is_dir = matches!(stack[layer], Lists::Dir | Lists::HiddenAndDir);
    Some(Source { layer: layer as u16, merged, is_dir })
}

#[test]
fn every_listing_of_four_layers_shows_what_is_defined() {
    every_stack::<4, Lists>(&LISTS, |stack| {
        // Within a layer the order of names is that of the disk: both have to do.
        for hidden_first in [true, false] {
            let mut merger = Merger::default();
            for lists in stack {
                let words: &[Name] = match (lists, hidden_first) {
                    (Lists::Nothing, _) => &[],
                    (Lists::Hidden, _) => &[Name::Hidden],
                    (Lists::File, _) => &[Name::Shown],
                    (Lists::Dir, _) => &[Name::ShownDir],
                    (Lists::HiddenAndFile, true) => &[Name::Hidden, Name::Shown],
                    (Lists::HiddenAndFile, false) => &[Name::Shown, Name::Hidden],
                    (Lists::HiddenAndDir, true) => &[Name::Hidden, Name::ShownDir],
                    (Lists::HiddenAndDir, false) => &[Name::ShownDir, Name::Hidden],
                };
                words.iter().for_each(|word| merger.name(b"name", *word));
                merger.end_of_layer();
            }
            let found: BTreeMap<Box<[u8]>, Source> = merger.finish().collect();
            assert_eq!(found.get(&b"name"[..]).copied(), listed(stack), "{stack:?}, {hidden_first}");
        }
    });
}

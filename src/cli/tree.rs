//! Which snapshot stands where in a drawing of trees? Pure.
//!
//! A snapshot stands below its parent if that is drawn too, else it begins a tree. Chains may be long, so nothing
//! recurses.

use crate::types::{Info, SnapshotKind};
use serde::Serialize;
use std::collections::HashMap;

/// One line of the drawing.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Line<'a> {
    /// The lines that lead to the snapshot.
    #[serde(skip)]
    pub branch: String,
    /// Its name.
    pub name: &'a str,
    /// Its parent; empty without one.
    pub parent: &'a str,
    /// What it is.
    pub kind: SnapshotKind,
    /// Snapshots above it in the drawing.
    pub depth: usize,
}

/// The lines, each tree from its root down, the snapshots below one parent sorted by name.
pub fn draw(infos: &[Info]) -> Vec<Line<'_>> {
    let position: HashMap<&str, usize> =
        infos.iter().enumerate().map(|(at, i)| (i.name.as_str(), at)).collect();
    let mut below: Vec<Vec<usize>> = vec![Vec::new(); infos.len()];
    let mut roots = Vec::new();
    for (at, info) in infos.iter().enumerate() {
        match position.get(info.parent.as_str()) {
            Some(&parent) => below[parent].push(at),
            None => roots.push(at),
        }
    }
    let sort = |list: &mut Vec<usize>| list.sort_by(|a, b| infos[*b].name.cmp(&infos[*a].name));
    below.iter_mut().for_each(sort);
    sort(&mut roots);

    let mut lines = Vec::with_capacity(infos.len());
    // What is still to be drawn, the next one last: a snapshot, its depth, and whether others follow beside it.
    let mut todo: Vec<(usize, usize, bool)> = roots.into_iter().map(|at| (at, 0, false)).collect();
    // Whether others follow, for each depth on the way to the snapshot; that of depth 0 draws nothing.
    let mut follows: Vec<bool> = Vec::new();
    while let Some((at, depth, more)) = todo.pop() {
        follows.truncate(depth);
        follows.push(more);
        let mut branch: String =
            follows.iter().take(depth).skip(1).map(|more| if *more { "│   " } else { "    " }).collect();
        if depth > 0 {
            branch.push_str(if more { "├── " } else { "└── " });
        }
        let Info { name, parent, kind, .. } = &infos[at];
        lines.push(Line { branch, name, parent, kind: *kind, depth });
        // The list is in reverse, so its first is the last to be drawn.
        todo.extend(below[at].iter().enumerate().map(|(i, &child)| (child, depth + 1, i > 0)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Labels, Timestamp};

    fn info(name: &str, parent: &str) -> Info {
        Info {
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind: SnapshotKind::Committed,
            created: Timestamp::default(),
            updated: Timestamp::default(),
            labels: Labels::new(),
        }
    }

    fn drawn(pairs: &[(&str, &str)]) -> Vec<String> {
        let infos: Vec<Info> = pairs.iter().map(|(name, parent)| info(name, parent)).collect();
        draw(&infos).iter().map(|line| format!("{}{}", line.branch, line.name)).collect()
    }

    #[test]
    fn snapshots_stand_below_their_parents() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
        let cases: &[Case<'_>] = &[
            (&[], &[]),
            (&[("a", "")], &["a"]),
            (&[("b", ""), ("a", "")], &["a", "b"]),
            (&[("c", "b"), ("b", "a"), ("a", "")], &["a", "└── b", "    └── c"]),
            (
                &[("r", ""), ("y", "r"), ("x", "r"), ("x1", "x"), ("x2", "x"), ("y1", "y"), ("z", "")],
                &["r", "├── x", "│   ├── x1", "│   └── x2", "└── y", "    └── y1", "z"],
            ),
            // The parent is not in the list: a filter left it out.
            (&[("b", "gone"), ("c", "b")], &["b", "└── c"]),
        ];
        for (pairs, expected) in cases {
            assert_eq!(drawn(pairs), *expected);
        }
    }

    #[test]
    fn the_depth_is_that_of_the_drawing() {
        let infos = [info("b", "a"), info("a", ""), info("c", "b"), info("d", "gone")];
        let depths: Vec<(&str, usize)> = draw(&infos).iter().map(|line| (line.name, line.depth)).collect();
        assert_eq!(depths, [("a", 0), ("b", 1), ("c", 2), ("d", 0)]);
    }

    #[test]
    fn a_chain_of_thousands_is_drawn() {
        let infos: Vec<Info> = (0..3000)
            .map(|i| info(&i.to_string(), &if i == 0 { String::new() } else { (i - 1).to_string() }))
            .collect();
        let lines = draw(&infos);
        assert_eq!(lines.len(), infos.len());
        assert!(lines.iter().enumerate().all(|(at, line)| line.depth == at));
    }
}

//! What a comparison costs: as much as changed, not as much as there is.

use crate::support::{Changing, changes, layer, stack};
use plywood::diff::{DiffOptions, Extent};
use plywood_fuse::testing::TempDir;

/// Directories of a large tree, and files in each.
const DIRS: usize = 200;
const FILES: usize = 100;

#[test]
fn ten_changed_files_in_a_tree_of_twenty_thousand_are_found_by_looking_at_few() {
    let temp = TempDir::new();
    let (base, upper) = (temp.path().join("base"), temp.path().join("upper"));
    for root in [&base, &upper] {
        std::fs::create_dir(root).expect("a directory");
    }
    for dir in 0..DIRS {
        base.dir(&format!("d{dir}"), 0o755);
        for file in 0..FILES {
            std::fs::write(base.join(format!("d{dir}/f{file}")), "x").expect("a file");
        }
    }
    for dir in 0..10 {
        let path = format!("d{}", dir * 17);
        upper.dir(&path, 0o755).file(&format!("{path}/f5"), "changed", 0o644);
    }
    let new = [upper, base.clone()];
    let run = |extent| {
        let (base, new) = (stack(std::slice::from_ref(&base)), stack(&new));
        let options = DiffOptions { extent, ..DiffOptions::default() };
        let bytes = layer(&base, &new, &options).expect("a layer");
        (bytes, base.looked_at() + new.looked_at())
    };
    let (short, few) = run(Extent::Needed);
    let (whole, all) = run(Extent::Everything);
    assert!(short == whole, "the same bytes");
    // Each changed file and its directory, in both trees.
    assert_eq!(few, 40);
    assert!(all > 2 * (DIRS * FILES) as u64);
    let found =
        changes(&stack(std::slice::from_ref(&base)), &stack(&new), &DiffOptions::default()).expect("changes");
    assert_eq!(found.len(), 10);
}

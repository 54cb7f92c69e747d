//! Random operations on an overlay in this process, beside a reference tree.

use plywood_fuse::testing::inside::Inside;
use plywood_fuse::testing::model::{Subject, Variant};
use plywood_fuse::testing::suite;

fn inside(variant: &Variant) -> Box<dyn Subject> {
    Box::new(Inside::new(variant.settings()))
}

#[test]
fn random_with_redirects() {
    suite::random(&Variant::usual(), 12_000, &inside);
}

#[test]
#[ignore]
fn again() {
    let text = std::fs::read_to_string(std::env::var("PLYWOOD_MODEL_REPLAY").unwrap()).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let ops = lines.pop().unwrap();
    suite::replay(&Variant::usual(), &lines, ops, &inside);
}

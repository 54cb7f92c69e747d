//! The README says what the program does.

use plywood_fuse::options;

const README: &str = include_str!("../../README.md");

#[test]
fn the_table_of_options_is_the_one_of_the_program() {
    let table = options::markdown_table();
    assert!(README.contains(table.trim()), "README.md, \"Mount options\", must hold this table:\n\n{table}");
}

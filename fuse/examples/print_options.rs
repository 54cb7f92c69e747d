//! Prints the table of mount options as it stands in the README.

fn main() {
    print!("{}", plywood_fuse::options::markdown_table());
}

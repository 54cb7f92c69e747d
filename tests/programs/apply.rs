//! Applies an uncompressed archive: `apply plain|bottom|layer|overlay DIRECTORY ARCHIVE [LOWER..]`. For measuring.

use plywood::apply::{Below, DirTarget, Outcome, OverlayTarget, SameOwner, Source, apply};
use plywood::archive::{Limits, Reader};
use std::path::{Path, PathBuf};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, form, directory, archive, lowers @ ..] = args.as_slice() else {
        panic!("apply plain|bottom|layer|overlay DIRECTORY ARCHIVE [LOWER..]");
    };
    let directory = Path::new(directory);
    let work = directory.with_extension("work");
    std::fs::create_dir_all(directory).expect("make the directory");
    let file =
        std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(archive).expect("open the archive"));
    let mut reader = Reader::new(file, Limits::default());
    let source: &mut dyn Source = &mut reader;
    let outcome = match form.as_str() {
        "overlay" => {
            let lowers: Vec<PathBuf> = lowers.iter().map(PathBuf::from).collect();
            let mut target = OverlayTarget::open(&lowers, directory, &work).expect("open the stack");
            let outcome = apply(source, &mut target, &());
            println!("known inodes: {}", target.known_inodes());
            outcome
        }
        form => {
            let target = match form {
                "plain" => DirTarget::plain(directory, SameOwner::Keep),
                "bottom" => DirTarget::layer(directory, &work, Below::Nothing),
                _ => DirTarget::layer(directory, &work, Below::Unknown),
            };
            apply(source, &mut target.expect("open the directory"), &())
        }
    };
    match outcome.expect("apply") {
        Outcome::Applied(applied) => println!("{applied:?}"),
        Outcome::NeedsLower(why) => println!("needs lower: {why}"),
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
}

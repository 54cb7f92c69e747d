//! How much memory the server needs for the files that the kernel knows, and whether it gives it back.
//!
//! A program of its own, since it makes the kernel forget everything, and the tests beside it count requests.

#[allow(dead_code, unused_macros)]
#[path = "mounted/support/mod.rs"]
mod support;

use crate::support::{Stage, is_real_root, needs, needs_mount};
use std::fs;

/// How many files are walked; the issue of this project asks for half a million.
const FILES: usize = 500_000;
const PER_DIRECTORY: usize = 500;

/// The most that one of them may cost, in bytes of resident memory.
const BYTES_PER_FILE: usize = 250;

fn resident_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("a resident size");
    let kib: usize = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kib * 1024
}

fn walk(dir: &std::path::Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let attributes = entry.metadata().expect("attributes");
        count += if attributes.is_dir() { walk(&entry.path()) } else { 1 };
    }
    count
}

#[test]
fn half_a_million_files_cost_little_memory_and_give_it_back() {
    needs_mount!();
    needs!(is_real_root(), "only root of the machine can make the kernel forget what it knows");
    let stage = Stage::new();
    for directory in 0..FILES / PER_DIRECTORY {
        let path = stage.dir(&format!("low/{:02}/{:03}", directory % 20, directory));
        for file in 0..PER_DIRECTORY {
            fs::File::create(path.join(format!("some-file-name-{file:05}.txt"))).expect("a file");
        }
    }
    let mount = stage.mount();
    let before = resident_bytes(mount.server);
    assert_eq!(walk(&mount.path("")), FILES);
    let known = resident_bytes(mount.server);
    let each = (known - before) / FILES;
    assert!(each <= BYTES_PER_FILE, "{each} bytes a file: {before} bytes before the walk, {known} after");
    // What the kernel forgets, the server frees: all but a small part.
    let allowed = before + (known - before) / 4;
    let given_back = crate::support::wait_until(std::time::Duration::from_secs(30), || {
        fs::write("/proc/sys/vm/drop_caches", "2").expect("root may");
        resident_bytes(mount.server) < allowed
    });
    let after = resident_bytes(mount.server);
    assert!(given_back, "{before} bytes before the walk, {known} after, {after} when forgotten");
}

//! The same bytes as containerd's walking differ, of whatever changed.
//!
//! It is built from the Debian package `golang-github-containerd-containerd-dev`; without Go or the package these tests
//! fail, unless `PLYWOOD_SKIP_CLIENTS=1` says to leave them out. Version 1.6 gives whiteouts the present time, later
//! ones none: that is made equal before both are compared.

use crate::support::{Changing, Two, copy, members};
use plywood_fuse::sys::xattr::SetMode;
use plywood_fuse::sys::{self, Place};
use plywood_fuse::testing::random::Random;
use plywood_fuse::types::Device;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program, built once.
fn program() -> Option<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if std::env::var_os("PLYWOOD_SKIP_CLIENTS").is_some_and(|v| v == "1") {
        plywood_fuse::testing::say_skipped("PLYWOOD_SKIP_CLIENTS=1");
        return None;
    }
    Some(PROGRAM.get_or_init(|| {
        let temp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let built = temp.join("walking_diff");
        let done = Command::new("go")
            .args(["build", "-o"])
            .arg(&built)
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/walking_diff.go"))
            .env("GO111MODULE", "off")
            .env("GOPATH", "/usr/share/gocode")
            .env("GOCACHE", temp.join("go-cache"))
            .env_remove("GOFLAGS")
            .output()
            .expect("go can be started: install golang-go, or set PLYWOOD_SKIP_CLIENTS=1");
        let words = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{words}: install golang-github-containerd-containerd-dev");
        built
    }))
}

fn theirs(program: &Path, two: &Two) -> Vec<u8> {
    let done = Command::new(program).args([&two.base, &two.new]).output().expect("it can be started");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// Takes the times from the headers of whiteouts.
fn without_times_of_whiteouts(mut archive: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while archive.get(at).is_some_and(|b| *b != 0) {
        let header = &mut archive[at..at + 512];
        let text = |bytes: &[u8]| bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let octal = String::from_utf8(text(&header[124..136])).expect("octal digits");
        let size = usize::from_str_radix(octal.trim(), 8).expect("a size");
        let name = text(&header[..100]);
        let last = name.rsplit(|b| *b == b'/').next().unwrap_or_default();
        // A long name is cut; the mode of a whiteout is 0.
        if (last.starts_with(b".wh.") || name.len() == 100) && header[100..107] == *b"0000000" && size == 0 {
            header[136..147].copy_from_slice(b"00000000000");
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at += 512 + size.div_ceil(512) * 512;
    }
    archive
}

fn compare(program: &Path, two: &Two, words: &str) {
    let ours = two.layer();
    let theirs = theirs(program, two);
    if without_times_of_whiteouts(ours.clone()) != without_times_of_whiteouts(theirs.clone()) {
        let (ours, theirs) = (members(&ours), members(&theirs));
        let first = ours.iter().zip(&theirs).find(|(a, b)| a != b);
        panic!("{words}: {} and {} members, the first that differ: {first:?}", ours.len(), theirs.len());
    }
}

const LONG: &str = "a-name-of-one-hundred-and-twenty-bytes-which-needs-an-extended-header-wherever-it-is-in-the-tree-and-however-one-looks-at";

fn random_name(random: &mut Random) -> String {
    match random.below(12) {
        0 => LONG.to_owned(),
        1 => format!("{LONG}{LONG}"),
        2 => "n\u{e4}me".to_owned(),
        3 => "with space".to_owned(),
        n => format!("n{n}"),
    }
}

/// Somewhere below `root`: an existing directory, or the root.
fn random_dir(random: &mut Random, root: &Path) -> PathBuf {
    let mut dir = root.to_owned();
    while !random.once_in(3) {
        let entries = std::fs::read_dir(&dir).expect("a directory");
        let mut dirs: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
        dirs.retain(|path| path.symlink_metadata().is_ok_and(|m| m.is_dir()));
        dirs.sort();
        if dirs.is_empty() || dir.as_os_str().len() > 1500 {
            break;
        }
        dir = random.pick(&dirs).clone();
    }
    dir
}

fn random_entry(random: &mut Random, root: &Path) -> Option<PathBuf> {
    let dir = random_dir(random, root);
    let entries = std::fs::read_dir(&dir).expect("a directory");
    let mut all: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    all.sort();
    if all.is_empty() { None } else { Some(random.pick(&all).clone()) }
}

/// Makes something new, if its name is free.
fn make(random: &mut Random, root: &Path) {
    let dir = random_dir(random, root);
    let name = random_name(random);
    let path = dir.join(&name);
    if path.symlink_metadata().is_ok() {
        return;
    }
    let fd = sys::open::open_root(&dir).expect("a directory");
    let name = name.as_bytes();
    match random.below(12) {
        0..=2 => std::fs::create_dir(&path).expect("a directory"),
        3 => {
            let target = if random.once_in(3) { LONG.repeat(3) } else { "../x".to_owned() };
            std::os::unix::fs::symlink(target, &path).expect("a symlink");
        }
        4 => sys::node::mknod(fd.as_fd(), name, libc::S_IFIFO | 0o600, Device::default()).expect("a fifo"),
        5 => {
            let device = Device { major: 250 + random.below(300) as u32, minor: random.below(70_000) as u32 };
            let kind = if random.once_in(2) { libc::S_IFCHR } else { libc::S_IFBLK };
            sys::node::mknod(fd.as_fd(), name, kind | 0o600, device).expect("a device");
        }
        6..=7 => {
            if let Some(old) =
                random_entry(random, root).filter(|p| p.symlink_metadata().is_ok_and(|m| !m.is_dir()))
            {
                std::fs::hard_link(old, &path).expect("a link");
                return;
            }
        }
        _ => std::fs::write(&path, vec![b'x'; random.below(3000) as usize]).expect("a file"),
    }
    if path.symlink_metadata().is_ok() {
        decorate(random, &path);
    }
}

fn decorate(random: &mut Random, path: &Path) {
    let parent = sys::open::open_root(path.parent().expect("a parent")).expect("a directory");
    let name = path.file_name().expect("a name").as_encoded_bytes();
    let place = Place::At(parent.as_fd(), name);
    let kind = path.symlink_metadata().expect("something").file_type();
    if random.once_in(3) {
        let id = *random.pick(&[0, 1000, 2_097_151, 2_097_152, 4_000_000_000]);
        sys::stat::chown(place, Some(id), Some(id / 2)).expect("an owner");
    }
    if random.once_in(3) && !kind.is_symlink() {
        sys::stat::chmod(place, *random.pick(&[0o644, 0o4755, 0o2755, 0o1777, 0o000, 0o777]))
            .expect("a mode");
    }
    if random.once_in(8) && kind.is_file() {
        let value = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        sys::xattr::set(place, c"security.capability", value, SetMode::Any).expect("a capability");
    }
    if random.once_in(2) {
        let secs = *random.pick(&[-5, 0, 1_000_000_000, 8_589_934_591, 8_589_934_592]);
        let nanos = *random.pick(&[0, 0, 1, 999_999_999]);
        path.parent().expect("a parent").times(std::str::from_utf8(name).expect("text"), secs, nanos);
    }
}

fn change(random: &mut Random, root: &Path) {
    for _ in 0..random.below(20) {
        let Some(path) = random_entry(random, root) else {
            make(random, root);
            continue;
        };
        let kind = path.symlink_metadata().expect("something").file_type();
        match random.below(6) {
            0 => drop(root.remove(path.to_str().expect("text"))),
            1 => decorate(random, &path),
            2 if kind.is_file() => {
                use std::io::Write;
                let file = std::fs::OpenOptions::new().append(true).open(&path);
                file.and_then(|mut file| file.write_all(b"more")).expect("more content");
            }
            3 => {
                let to = random_dir(random, root).join(random_name(random));
                if !to.starts_with(&path) && to.symlink_metadata().is_err() {
                    std::fs::rename(&path, to).expect("another name");
                }
            }
            _ => make(random, root),
        }
    }
}

#[test]
fn random_trees_give_the_same_bytes_as_containerd() {
    if !crate::support::is_root("devices need root") {
        return;
    }
    let Some(program) = program() else { return };
    let wanted = std::env::var("PLYWOOD_DIFF_TREES").ok().and_then(|text| text.parse().ok());
    for seed in 0..wanted.unwrap_or(150_u64) {
        let mut random = Random::new(seed);
        let two = Two::new(|a| (0..30).for_each(|_| make(&mut random, a)), |_| ());
        change(&mut random, &two.new);
        compare(program, &two, &format!("seed {seed}"));
    }
}

#[test]
fn a_part_of_this_machine_gives_the_same_bytes_as_containerd() {
    let Some(program) = program() else { return };
    let mut random = Random::new(4);
    let two = Two::new(
        |a| {
            for from in ["/usr/share/zoneinfo", "/usr/include", "/usr/lib/git-core", "/usr/bin"] {
                if Path::new(from).is_dir() {
                    copy(Path::new(from), &a.join(Path::new(from).file_name().expect("a name")));
                }
            }
        },
        |_| (),
    );
    compare(program, &two, "nothing changed");
    for round in 0..3 {
        for _ in 0..15 {
            change(&mut random, &two.new);
        }
        compare(program, &two, &format!("round {round}"));
    }
    std::fs::remove_dir_all(&two.base).expect("it goes");
    std::fs::create_dir(&two.base).expect("a directory");
    compare(program, &two, "all of it");
}

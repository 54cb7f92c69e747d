//! Which paths differ: the cases of continuity's tests.

use crate::support::{Changing, Two};

#[test]
fn files_are_added_modified_and_removed() {
    let two = Two::new(
        |a| {
            a.dir("etc", 0o755).file("etc/hosts", "mydomain 10.0.0.1", 0o644);
            a.file("etc/profile", "PATH=/usr/bin", 0o644).file("etc/unchanged", "PATH=/usr/bin", 0o644);
            a.file("etc/unexpected", "#!/bin/sh", 0o644);
        },
        |b| {
            b.file("etc/hosts", "mydomain 10.0.0.120", 0o644).dir("root", 0o700);
            b.file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644).remove("etc/unexpected");
        },
    );
    let expected = ["modify etc/hosts", "remove etc/unexpected", "add root", "add root/.bashrc"];
    assert_eq!(two.changes(), expected);
}

#[test]
fn empty_files_are_equal() {
    let two = Two::new(
        |a| {
            a.dir("etc", 0o755).file("etc/empty", "", 0o644);
        },
        |_| (),
    );
    assert!(two.changes().is_empty());
}

#[test]
fn what_is_removed_deep_in_a_tree_is_told_once() {
    let two = Two::new(
        |a| {
            a.dir("d0", 0o755).dir("d1", 0o755).dir("d1/d", 0o755).file("d1/d/f1", "mydomain", 0o644);
            a.file("d1/d/f2", "mydomain", 0o644);
        },
        |b| {
            b.remove("d0").remove("d1");
        },
    );
    assert_eq!(two.changes(), ["remove d0", "remove d1"]);
}

#[test]
fn a_directory_replaced_by_a_file_is_modified_and_what_it_held_is_not_told() {
    let two = Two::new(
        |a| {
            a.dir("dir1", 0o755).file("dir1/f1", "x", 0o644).file("dir1/f2", "x", 0o644);
            a.dir("dir2", 0o755).file("dir2/f1", "x", 0o644);
        },
        |b| {
            b.file("dir1/f11", "x", 0o644).remove("dir2").file("dir2", "x", 0o666);
        },
    );
    assert_eq!(two.changes(), ["add dir1/f11", "modify dir2"]);
}

#[test]
fn names_beside_a_removed_tree_are_not_taken_for_names_in_it() {
    let two = Two::new(
        |a| {
            for dir in ["dir1", "dir1/dir2", "dir1-before", "dir2", "dir2-before"] {
                a.dir(dir, 0o755);
            }
            a.file("dir1/f1", "x", 0o644).file("dir1/dir2/f2", "x", 0o644).file("dir2-before/f", "x", 0o644);
        },
        |b| {
            b.remove("dir1").remove("dir2-before/f");
        },
    );
    assert_eq!(two.changes(), ["remove dir1", "remove dir2-before/f"]);
}

#[test]
fn a_file_replaced_by_a_directory_is_modified_and_what_is_in_it_added() {
    let two = Two::new(
        |a| {
            a.file("dir1", "a file, not a directory", 0o644);
        },
        |b| {
            b.remove("dir1").dir("dir1", 0o755).dir("dir1/dir2", 0o755).file("dir1/dir2/f", "", 0o644);
        },
    );
    assert_eq!(two.changes(), ["modify dir1", "add dir1/dir2", "add dir1/dir2/f"]);
}

#[test]
fn a_directory_above_a_change_is_no_change() {
    let two = Two::new(
        |a| {
            a.dir("dir1", 0o700).dir("dir2", 0o751).dir("dir3", 0o777);
        },
        |b| {
            b.file("dir1/f", "x", 0o644).dir("dir2/d", 0o751).chmod("dir3", 0o755).file("dir3/f", "x", 0o644);
        },
    );
    assert_eq!(two.changes(), ["add dir1/f", "add dir2/d", "modify dir3", "add dir3/f"]);
}

#[test]
fn the_content_decides_only_if_both_times_are_whole_seconds() {
    let files = [
        ("whole-equal", "1", "1", 0, 0, false),
        ("whole-different", "1", "2", 0, 0, true),
        ("nanos-equal", "1", "2", 5, 5, false),
        ("nanos-different", "1", "1", 5, 6, true),
        ("one-whole", "1", "1", 0, 6, true),
        ("other-size", "1", "22", 0, 0, true),
    ];
    let two = Two::new(
        |a| {
            for (name, was, _, nanos, _, _) in files {
                a.file(name, was, 0o644).times(name, 1000, nanos);
            }
        },
        |b| {
            for (name, _, is, _, nanos, _) in files {
                b.file(name, is, 0o644).times(name, 1000, nanos);
            }
        },
    );
    let mut expected: Vec<String> =
        files.iter().filter(|(.., differs)| *differs).map(|(name, ..)| format!("modify {name}")).collect();
    expected.sort();
    assert_eq!(two.changes(), expected);
}

#[test]
fn large_files_are_compared_to_their_end() {
    let text = "0123456789abcdef".repeat(40_000);
    let two = Two::new(
        |a| {
            for name in ["equal", "last"] {
                a.file(name, &text, 0o644).times(name, 1000, 0);
            }
        },
        |b| {
            let other = format!("{}!", &text[..text.len() - 1]);
            b.file("last", &other, 0o644).times("last", 1000, 0);
            b.remove("equal").file("equal", &text, 0o644).times("equal", 1000, 0);
        },
    );
    assert_eq!(two.changes(), ["modify last"]);
}

#[test]
fn of_symlinks_the_target_decides_if_both_times_are_whole_seconds() {
    let links = [("equal", "a", "a", 0), ("whole", "a", "b", 0), ("nanos", "a", "b", 7)];
    let two = Two::new(
        |a| {
            for (name, was, _, nanos) in links {
                a.symlink(was, name).times(name, 1000, nanos);
            }
        },
        |b| {
            for (name, _, is, nanos) in links {
                b.remove(name).symlink(is, name).times(name, 1000, nanos);
            }
        },
    );
    assert_eq!(two.changes(), ["modify whole"]);
}

#[test]
fn a_slash_sorts_before_every_other_byte() {
    let names = ["a", "a/b", "a/b/c", "a/b-c", "a\x01", "a-b", "ab"];
    let two = Two::new(
        |_| (),
        |b| {
            b.dir("a", 0o755)
                .dir("a/b", 0o755)
                .dir("a/b/c", 0o755)
                .dir("a/b-c", 0o755)
                .dir("a\x01", 0o755)
                .dir("a-b", 0o755)
                .dir("ab", 0o755);
        },
    );
    let expected: Vec<String> =
        names.iter().map(|name| format!("add {}", name.as_bytes().escape_ascii())).collect();
    assert_eq!(two.changes(), expected);
}

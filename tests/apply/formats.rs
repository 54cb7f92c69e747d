//! Archives by GNU tar and bsdtar: the tree is the one that they make of them.

use super::privileges::{cannot_run, has_program};
use super::support::{Tree, assert_same, everywhere_from, file_source, may_be_root, nothing, on_disk};
use plywood_fuse::testing::TempDir;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

#[track_caller]
fn run(program: &str, args: &[&str], dir: &Path) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A tree with everything that an archive can hold.
fn fill(root: &Path) {
    for (path, content) in
        [("bin/tool", "program"), ("etc/conf", "text"), ("etc/empty", ""), ("übung/ä\n", "odd")]
    {
        super::support::put(root, path, content);
    }
    let deep = ["directory-with-a-long-name"; 12].join("/");
    super::support::put(root, &format!("{deep}/{}", "file".repeat(40)), "long");
    symlink("../bin/tool", root.join("etc/link")).expect("symlink");
    symlink("x".repeat(300), root.join("etc/long-link")).expect("symlink");
    fs::hard_link(root.join("bin/tool"), root.join("bin/other")).expect("link");
    fs::hard_link(root.join("etc/link"), root.join("etc/link-again")).expect("link");
    let sparse = fs::File::create(root.join("sparse")).expect("create");
    for at in [0, 1 << 20, (3 << 20) + 5] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[7; 5000], at).expect("write");
    }
    sparse.set_len(8 << 20).expect("grow");
    run("mkfifo", &["-m", "640", "pipe"], root);
    run("mknod", &["-m", "666", "null", "c", "1", "3"], root);
    run("mknod", &["disk", "b", "259", "300"], root);
    for (path, uid, gid) in [("bin/tool", 0, 2_000_000), ("etc", 33, 33), ("etc/link", 5, 6), ("pipe", 7, 0)]
    {
        std::os::unix::fs::lchown(root.join(path), Some(uid), Some(gid)).expect("chown");
    }
    chown(root.join("etc/conf"), Some(4_000_000_000), Some(1)).expect("chown");
    for (path, mode) in [("bin/tool", 0o6755), ("etc", 0o1777), ("etc/empty", 0), ("bin", 0o2750)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).expect("chmod");
    }
    run("setfattr", &["-n", "user.note", "-v", "0x000102", "etc/conf"], root);
    run("setfattr", &["-n", "user.dir", "-v", "on a directory", "etc"], root);
    run("setcap", &["cap_net_raw+ep", "bin/tool"], root);
    run("touch", &["-h", "-d", "2001-02-03 04:05:06.789", "etc/link", "etc/conf"], root);
    run("touch", &["-d", "1960-01-01", "etc/empty"], root);
    run("touch", &["-d", "2030-01-01 00:00:00.5", "bin", "."], root);
}

/// What the program that wrote an archive makes of it.
fn by_itself(program: &str, archive: &Path) -> Tree {
    let temp = TempDir::new();
    let archive = archive.display().to_string();
    let args: &[&str] = match program {
        "tar" => &["-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f", &archive],
        _ => &["-x", "-p", "--numeric-owner", "--xattrs", "-f", &archive],
    };
    run(program, args, temp.path());
    on_disk(temp.path())
}

#[track_caller]
fn same_as(program: &str, args: &[&str]) {
    if !may_be_root() {
        return;
    }
    for needed in [program, "setfattr", "setcap", "mknod"] {
        if !has_program(needed) {
            return cannot_run(&format!(
                "{needed} is missing: install tar, libarchive-tools, attr and libcap2-bin"
            ));
        }
    }
    let temp = TempDir::new();
    let (tree, archive) = (temp.path().join("tree"), temp.path().join("archive.tar"));
    fs::create_dir(&tree).expect("mkdir");
    fill(&tree);
    let file = archive.display().to_string();
    let mut all = vec!["-c", "-f", &file];
    all.extend(args);
    all.push(".");
    run(program, &all, &tree);
    let mut expected = by_itself(program, &archive);
    let tree = everywhere_from(nothing, || file_source(&archive));
    // Nothing is older than 1970 here.
    if let Some(old) = expected.get_mut("etc/empty") {
        old.mtime = old.mtime.map(|t| if t.secs < 0 { plywood_fuse::types::Time::default() } else { t });
    }
    assert!(tree.len() > 25, "{:?}", tree.keys());
    assert_same(&tree, &expected, program);
}

#[test]
fn gnu_tar_writes_pax() {
    same_as("tar", &["--format=posix", "--xattrs", "--xattrs-include=*"]);
}

#[test]
fn gnu_tar_writes_pax_with_holes() {
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        same_as("tar", &["--format=posix", "--sparse", &version, "--xattrs", "--xattrs-include=*"]);
    }
}

#[test]
fn gnu_tar_writes_its_own_format() {
    same_as("tar", &["--format=gnu"]);
    same_as("tar", &["--format=oldgnu", "--sparse"]);
}

#[test]
fn bsdtar_writes_pax() {
    same_as("bsdtar", &["--format=pax", "--xattrs"]);
    same_as("bsdtar", &["--format=pax", "--xattrs", "--read-sparse"]);
}

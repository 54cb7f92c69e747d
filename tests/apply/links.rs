//! Symlinks and hard links never lead out of the root: containerd's archive tests of that, in our words. The names of
//! theirs stand above each.

use super::support::{ALL, Tar, World, everywhere, nothing, put, refused_everywhere, same_file, text};
use plywood_fuse::types::Kind;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn etc() -> Tar {
    Tar::new().dir("etc", 0o770).file("/etc/passwd", "inside")
}

// SymlinkAbsolute, SymlinkUpAndOut, SymlinkMultipleAbsolute, SymlinkMultipleRelative
#[test]
fn a_symlink_on_the_way_leads_within_the_root() {
    let begin = || Tar::new().dir("etc", 0o755).dir("dummy", 0o755);
    for (tar, path) in [
        (begin().symlink("/etc", "localetc"), "/localetc/unbroken"),
        (begin().symlink("/dummy/../etc", "localetc"), "/localetc/unbroken"),
        (begin().symlink("../../../../etc", "localetc"), "/localetc/unbroken"),
        (begin().symlink("/etc", "/dummy/etc").symlink("/dummy/etc", "localetc"), "/dummy/etc/unbroken"),
        (begin().symlink("/etc", "/dummy/etc").symlink("./dummy/etc", "localetc"), "/dummy/etc/unbroken"),
        (begin().symlink("/etc", "/dummy/etc").symlink("./dummy/etc", "localetc"), "/localetc/unbroken"),
    ] {
        let tree = everywhere(nothing, &tar.file(path, "unbroken"));
        assert_eq!(text(&tree, "etc/unbroken"), "unbroken");
        assert_eq!(tree["localetc"].kind, Kind::Symlink);
    }
}

// SymlinkEmptyFile
#[test]
fn a_file_behind_a_symlink_is_replaced() {
    let tar = Tar::new().dir("etc", 0o755).file("etc/emptied", "not empty").symlink("/etc", "localetc");
    let tree = everywhere(nothing, &tar.file("/localetc/emptied", ""));
    assert_eq!(text(&tree, "etc/emptied"), "");
}

// HardlinkRelative, HardlinkDownAndOut, HardlinkAbsolute, HardlinkRelativeLong, HardlinkRelativeUpAndOut
#[test]
fn a_hard_link_through_a_symlink_is_to_a_file_in_the_root() {
    for (link, at, target, name) in [
        ("../../etc", "breakouts/d1", "/breakouts/d1/passwd", "breakouts/mypasswd"),
        ("../downandout/../../etc", "breakouts/d1", "/breakouts/d1/passwd", "breakouts/mypasswd"),
        ("/etc", "localetc", "/localetc/passwd", "localpasswd"),
        ("../../../../../../../etc", "localetc", "/localetc/passwd", "localpasswd"),
        ("upandout/../../../etc", "localetc", "/localetc/passwd", "localpasswd"),
    ] {
        let tar = etc().dir("breakouts", 0o755).dir("downandout", 0o755);
        let tree = everywhere(nothing, &tar.symlink(link, at).link(target, name));
        assert!(same_file(&tree, name, "etc/passwd"), "{link}");
        assert_eq!(text(&tree, name), "inside");
    }
}

// HardlinkDirectRelative, HardlinkDirectAbsolute
#[test]
fn a_hard_link_above_the_root_is_to_a_file_in_it() {
    for target in ["../../../../../etc/passwd", "/etc/passwd", "etc/passwd", "./etc//passwd"] {
        let tree = everywhere(nothing, &etc().link(target, "localpasswd"));
        assert!(same_file(&tree, "localpasswd", "etc/passwd"), "{target}");
    }
}

// HardlinkSymlinkBeforeCreateTarget, HardlinkSymlinkRelative, HardlinkSymlinkAbsolute
#[test]
fn a_hard_link_to_a_symlink_is_the_symlink() {
    for text in ["/etc/passwd", "../../../../../etc/passwd", "etc/passwd"] {
        for first in [true, false] {
            let tar = match first {
                true => etc().symlink(text, "passwdlink").link("/passwdlink", "localpasswd"),
                false => {
                    let tar = Tar::new().dir("etc", 0o770).symlink(text, "passwdlink");
                    tar.link("passwdlink", "localpasswd").file("/etc/passwd", "after")
                }
            };
            let tree = everywhere(nothing, &tar);
            assert!(same_file(&tree, "localpasswd", "passwdlink"));
            assert_eq!(
                (tree["localpasswd"].kind, &*tree["localpasswd"].content),
                (Kind::Symlink, text.as_bytes())
            );
        }
    }
}

// HardlinkSymlinkChmod
#[test]
fn a_hard_link_changes_no_mode_outside_of_the_root() {
    for how in ALL {
        let mut world = World::new(how, nothing);
        let outside = world.path("outside");
        fs::write(&outside, "...").expect("write");
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o400)).expect("chmod");
        let (link, target) = (world.path("exists-outside"), outside.display().to_string());
        fs::write(&link, "...").expect("write");
        let link = link.display().to_string();
        let tar = Tar::new().symlink(&target, &link).link(&link, "sketchy");
        // The directories above the symlink are nobody's: a layer that does not know what is below asks.
        world.apply(|| Box::new(tar.source())).expect("apply");
        assert_eq!(fs::metadata(&outside).expect("stat").permissions().mode() & 0o7777, 0o400);
        assert_eq!(world.tree()["sketchy"].kind, Kind::Symlink);
    }
}

// SymlinkParentDirectory, SymlinkEmptyFilename
#[test]
fn a_member_that_is_the_root_changes_nothing() {
    for name in ["..", "", ".", "/", "./", "../..", "a/../.."] {
        let tree = everywhere(nothing, &etc().symlink("/etc/", name).link("/etc/passwd", "localpasswd"));
        assert!(same_file(&tree, "localpasswd", "etc/passwd"), "{name:?}");
        assert_eq!(tree.len(), 3, "{name:?}");
    }
    let tree = everywhere(nothing, &Tar::new().dir("./", 0o700).dir("/", 0o711).file("..", "x"));
    assert!(tree.is_empty());
}

// SymlinkParentRelative
#[test]
fn dots_in_a_name_are_text() {
    let tar = etc().symlink("/etc/", "localetc/sub/..").link("/etc/passwd", "/localetc/localpasswd");
    let tree = everywhere(nothing, &tar);
    assert!(same_file(&tree, "etc/localpasswd", "etc/passwd"));
    assert_eq!(tree["localetc"].kind, Kind::Symlink);
}

// SymlinkSlashEnded
#[test]
fn a_slash_at_the_end_of_a_name_means_nothing() {
    let tar = etc().dir("localetc/", 0o770).link("/etc/passwd", "/localetc/localpasswd");
    let tree = everywhere(nothing, &tar);
    assert!(same_file(&tree, "localetc/localpasswd", "etc/passwd"));
}

fn two_dirs(root: &Path) {
    put(root, "etc/passwd", "inside");
    fs::create_dir(root.join("localetc")).expect("mkdir");
    put(root, "localetc/old", "old");
}

// SymlinkOverrideDirectory, SymlinkOverrideDirectoryRelative
#[test]
fn a_symlink_takes_the_place_of_a_directory() {
    for target in ["/etc", "../../etc"] {
        let tar = Tar::new().symlink(target, "localetc").link("/etc/passwd", "/localetc/localpasswd");
        let tree = everywhere(two_dirs, &tar);
        assert!(same_file(&tree, "etc/localpasswd", "etc/passwd"));
        assert_eq!(tree["localetc"].kind, Kind::Symlink);
        assert!(!tree.contains_key("etc/old"));
    }
}

// DirectoryOverrideSymlink, DirectoryOverrideSymlinkAndHardlink
#[test]
fn a_directory_takes_the_place_of_a_symlink() {
    let fill = |root: &Path| {
        put(root, "etc/passwd", "inside");
        symlink("etc", root.join("localetc")).expect("symlink");
        fs::hard_link(root.join("etc/passwd"), root.join("localetc/other")).expect("link");
    };
    let tar = Tar::new().dir("/localetc/", 0o755).link("/etc/passwd", "/localetc/localpasswd");
    let tree = everywhere(fill, &tar);
    assert_eq!(tree["localetc"].kind, Kind::Dir);
    assert!(same_file(&tree, "localetc/localpasswd", "etc/passwd"));

    let tar = Tar::new().dir("/localetc/", 0o755).file("/localetc/other", "different");
    let tree = everywhere(fill, &tar);
    assert!(!same_file(&tree, "localetc/other", "etc/passwd"));
    assert_eq!((text(&tree, "localetc/other"), text(&tree, "etc/other")), ("different", "inside"));
}

// SymlinkOverridePath
#[test]
fn a_symlink_outside_is_replaced_and_not_written_through() {
    for how in ALL {
        let outside = plywood_fuse::testing::TempDir::new();
        fs::write(outside.path().join("f"), "safe").expect("write");
        let there = outside.path().to_path_buf();
        let mut world = World::new(how, |root| symlink(&there, root.join("out")).expect("symlink"));
        let tar = Tar::new().file("out/f", "escaped").dir("out/d", 0o755).mark("out/.wh.f");
        world.apply(|| Box::new(tar.source())).expect("apply");
        assert_eq!(fs::read_to_string(outside.path().join("f")).expect("read"), "safe");
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 1);
        let tree = world.tree();
        let inside = there.strip_prefix("/").expect("absolute").join("d");
        assert!(tree.contains_key(inside.to_str().expect("UTF-8")), "{:?}", tree.keys());
        let mut world = World::new(how, |root| symlink(there.join("f"), root.join("f")).expect("symlink"));
        world.apply(|| Box::new(Tar::new().file("f", "new").source())).expect("apply");
        assert_eq!(fs::read_to_string(outside.path().join("f")).expect("read"), "safe");
        assert_eq!(text(&world.tree(), "f"), "new");
    }
}

#[test]
fn a_path_leads_through_255_symlinks_and_no_more() {
    let chain = |links: usize| {
        let mut tar = Tar::new().dir("d", 0o755).symlink("d", "l0");
        for number in 1..links {
            tar = tar.symlink(&format!("l{}", number - 1), &format!("l{number}"));
        }
        tar.file(format!("l{}/f", links - 1), "far")
    };
    assert_eq!(text(&everywhere(nothing, &chain(255)), "d/f"), "far");
    refused_everywhere(nothing, &chain(256), "255 symlinks");
    let circle = Tar::new().symlink("b", "a").symlink("a", "b").file("a/f", "never");
    refused_everywhere(nothing, &circle, "255 symlinks");
}

#[test]
fn a_symlink_that_leads_nowhere_makes_directories() {
    let tar = Tar::new().symlink("missing/../also/deep", "l").file("l/f", "found");
    let tree = everywhere(nothing, &tar);
    assert_eq!(text(&tree, "also/deep/f"), "found");
    assert!(!tree.contains_key("missing"));
    assert_eq!(tree["also/deep"].perm, 0o755);
}

#[test]
fn a_file_on_the_way_is_an_error() {
    let words = "is no directory";
    refused_everywhere(nothing, &Tar::new().file("f", "").file("f/x", ""), words);
    refused_everywhere(|root| put(root, "f", ""), &Tar::new().file("f/x/y", ""), words);
    refused_everywhere(nothing, &Tar::new().file("f", "").symlink("f", "l").file("l/x", ""), words);
}

#[test]
fn hard_links_to_nothing_to_the_root_and_to_themselves_are_refused() {
    refused_everywhere(nothing, &Tar::new().link("missing", "l"), "not there");
    refused_everywhere(nothing, &Tar::new().link("missing/x", "l"), "not there");
    for root in ["/", "..", "", "a/.."] {
        refused_everywhere(nothing, &Tar::new().link(root, "l"), "to the root");
    }
    refused_everywhere(nothing, &Tar::new().file("f", "x").link("f", "f"), "to itself");
    refused_everywhere(nothing, &Tar::new().dir("d", 0o755).link("d", "l"), "");
}

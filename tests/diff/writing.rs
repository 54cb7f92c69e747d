//! Which members a layer has: the cases of containerd's `TestDiffTar` and what the contract adds.

use crate::support::{Changing, Two, layer, members, plain};
use plywood::diff::{DiffOptions, Tree, Xattrs};
use plywood_fuse::sys::{self, Place};
use plywood_fuse::types::Device;
use std::os::fd::AsFd;
use std::path::Path;

#[test]
fn what_did_not_change_is_an_archive_without_members() {
    let two = Two::new(
        |a| {
            a.dir("etc", 0o755);
        },
        |_| (),
    );
    assert_eq!(two.layer(), [0; 1024]);
}

#[test]
fn a_change_brings_the_directories_above_it() {
    let two = Two::new(
        |a| {
            a.dir("d1", 0o755).dir("d2", 0o770);
        },
        |b| {
            b.dir("d1/d", 0o700).file("d2/f", "ok", 0o644);
        },
    );
    assert_eq!(two.members(), ["d1/ 755", "d1/d/ 700", "d2/ 770", "d2/f 644 \"ok\""]);
}

#[test]
fn a_new_link_brings_its_old_name_with_the_directories_above_that() {
    let two = Two::new(
        |a| {
            for dir in ["d1", "d2", "d3", "d4", "d5", "d6"] {
                a.dir(dir, 0o755);
            }
            for file in ["d1/f1", "d2/f1", "d4/f1", "d5/f1"] {
                a.file(file, "link me", 0o644);
            }
            a.link("d1/f1", "d6/l1").link("d5/f1", "d6/l2");
        },
        |b| {
            b.link("d1/f1", "d2/l1").link("d4/f1", "d3/l1").remove("d6/l1").remove("d6/l2");
        },
    );
    let expected = [
        "d2/ 755",
        "d2/l1 644 \"link me\"",
        "d1/ 755",
        "d1/f1 644 link d2/l1",
        "d3/ 755",
        "d3/l1 644 \"link me\"",
        "d4/ 755",
        "d4/f1 644 link d3/l1",
        "d6/ 755",
        "d6/.wh.l1 0 \"\"",
        "d6/.wh.l2 0 \"\"",
    ];
    assert_eq!(two.members(), expected);
}

#[test]
fn a_directory_with_another_mode_comes_once_with_what_is_new_in_it() {
    let two = Two::new(
        |a| {
            a.dir("d1", 0o755).dir("d2", 0o770);
        },
        |b| {
            b.chmod("d1", 0o777).dir("d1/d", 0o700).file("d2/f", "ok", 0o644);
        },
    );
    assert_eq!(two.members(), ["d1/ 777", "d1/d/ 700", "d2/ 770", "d2/f 644 \"ok\""]);
}

#[test]
fn a_link_into_a_directory_that_was_written_does_not_write_it_again() {
    let two = Two::new(
        |a| {
            for dir in ["d1", "d2", "d3", "d4"] {
                a.dir(dir, 0o755);
            }
            for file in ["d1/f1", "d2/f1", "d3/f1"] {
                a.file(file, "link me", 0o644);
            }
        },
        |b| {
            b.chmod("d1", 0o777).link("d1/f1", "d2/l1").chmod("d4", 0o777).link("d3/f1", "d4/l1");
        },
    );
    let expected = [
        "d1/ 777",
        "d2/ 755",
        "d2/l1 644 \"link me\"",
        "d1/f1 644 link d2/l1",
        "d4/ 777",
        "d4/l1 644 \"link me\"",
        "d3/ 755",
        "d3/f1 644 link d4/l1",
    ];
    assert_eq!(two.members(), expected);
}

#[test]
fn whiteouts_bring_the_directories_above_them_and_stand_where_the_name_would() {
    let two = Two::new(
        |a| {
            for dir in ["d1", "d2", "d3", "d4", "d5"] {
                a.dir(dir, 0o755).file(&format!("{dir}/f1"), "content", 0o644);
            }
            a.file("d2/f2", "content", 0o644);
        },
        |b| {
            for dir in ["d1", "d2", "d3", "d4"] {
                b.remove(&format!("{dir}/f1"));
            }
            b.chmod("d2/f2", 0o777).file("d3/f2", "content", 0o644).file("d4/f0", "content", 0o644);
            b.remove("d5");
        },
    );
    let expected = [
        "d1/ 755",
        "d1/.wh.f1 0 \"\"",
        "d2/ 755",
        "d2/.wh.f1 0 \"\"",
        "d2/f2 777 \"content\"",
        "d3/ 755",
        "d3/.wh.f1 0 \"\"",
        "d3/f2 644 \"content\"",
        "d4/ 755",
        "d4/f0 644 \"content\"",
        "d4/.wh.f1 0 \"\"",
        ".wh.d5 0 \"\"",
    ];
    assert_eq!(two.members(), expected);
}

#[test]
fn a_removed_tree_is_one_whiteout() {
    let two = Two::new(
        |a| {
            a.dir("d1", 0o755).dir("d2", 0o755).file("d2/f1", "content", 0o644);
        },
        |b| {
            b.remove("d1").remove("d2").dir("d3", 0o755);
        },
    );
    assert_eq!(two.members(), [".wh.d1 0 \"\"", ".wh.d2 0 \"\"", "d3/ 755"]);
}

#[test]
fn sockets_are_left_out() {
    let two = Two::new(
        |a| {
            a.file("f1", "content", 0o644).file("gone", "", 0o644);
        },
        |b| {
            b.file("f2", "content", 0o644).file("f3", "content", 0o644).remove("gone").dir("d", 0o755);
            for name in ["s0", "gone", "d/s"] {
                drop(std::os::unix::net::UnixListener::bind(b.join(name)).expect("a socket"));
            }
        },
    );
    assert_eq!(two.members(), ["d/ 755", "f2 644 \"content\"", "f3 644 \"content\""]);
}

#[test]
fn no_time_is_later_than_the_source_date_epoch_and_whiteouts_have_none() {
    let two = Two::new(
        |a| {
            a.file("gone", "", 0o644);
        },
        |b| {
            b.remove("gone").dir("d", 0o755).file("d/new", "x", 0o644).file("d/old", "x", 0o644);
            b.times("d/new", 2_000_000_000, 999_999_999).times("d/old", 1000, 999_999_999);
            b.times("d", 1_700_000_000, 1);
        },
    );
    let times = |options: &DiffOptions| {
        let bytes = two.try_layer(options).expect("a layer");
        let mut reader = plywood::archive::Reader::new(&bytes[..], plywood::archive::Limits::default());
        let mut times = Vec::new();
        while let Some(entry) = reader.next().expect("an archive") {
            assert_eq!(entry.mtime.nanos, 0);
            times.push((entry.path.escape_ascii().to_string(), entry.mtime.secs));
        }
        times
    };
    let row = |path: &str, secs| (path.to_owned(), secs);
    let free =
        [row("d/", 1_700_000_000), row("d/new", 2_000_000_000), row("d/old", 1000), row(".wh.gone", 0)];
    assert_eq!(times(&DiffOptions::default()), free);
    let bound = DiffOptions { source_date_epoch: Some(1_500_000_000), ..DiffOptions::default() };
    let bounded =
        [row("d/", 1_500_000_000), row("d/new", 1_500_000_000), row("d/old", 1000), row(".wh.gone", 0)];
    assert_eq!(times(&bound), bounded);
}

#[test]
fn a_directory_that_becomes_a_file_and_the_reverse_need_no_whiteout() {
    let two = Two::new(
        |a| {
            a.dir("d", 0o755).file("d/f", "x", 0o644).file("f", "x", 0o644);
        },
        |b| {
            b.remove("d").file("d", "now a file", 0o600);
            b.remove("f").dir("f", 0o700).file("f/x", "", 0o644).symlink("../d", "f/y");
        },
    );
    let expected = ["d 600 \"now a file\"", "f/ 700", "f/x 644 \"\"", "f/y 777 symlink ../d"];
    assert_eq!(two.members(), expected);
}

#[test]
fn a_tree_without_base_is_all_of_it_but_the_root() {
    let two = Two::new(
        |a| {
            a.dir("d", 0o711).file("d/f", "x", 0o4755).link("d/f", "g");
        },
        |_| (),
    );
    let layer = layer(&Tree::Empty, &plain(&two.new), &DiffOptions::default()).expect("a layer");
    assert_eq!(members(&layer), ["d/ 711", "d/f 4755 \"x\"", "g 4755 link d/f"]);
}

#[test]
fn a_tree_of_which_all_is_gone_is_whiteouts() {
    let two = Two::new(
        |a| {
            a.dir("d", 0o711).file("d/f", "x", 0o644).file("g", "", 0o644);
        },
        |_| (),
    );
    let layer = layer(&plain(&two.new), &Tree::Empty, &DiffOptions::default()).expect("a layer");
    assert_eq!(members(&layer), [".wh.d 0 \"\"", ".wh.g 0 \"\""]);
}

#[test]
fn the_mode_of_the_root_is_lost() {
    let two = Two::new(
        |a| {
            a.file("f", "x", 0o644);
        },
        |b| {
            b.chmod("", 0o700);
        },
    );
    assert_eq!(two.layer(), [0; 1024]);
}

#[test]
fn a_hole_becomes_zeros() {
    let two = Two::new(
        |_| (),
        |b| {
            let file = std::fs::File::create(b.join("sparse")).expect("a file");
            file.set_len(3 << 20).expect("a size");
            std::os::unix::fs::FileExt::write_all_at(&file, b"end", (3 << 20) - 3).expect("data");
        },
    );
    let bytes = two.layer();
    assert_eq!(bytes.len(), 512 + (3 << 20) + 1024);
    assert!(bytes[512..512 + (3 << 20) - 3].iter().all(|b| *b == 0));
    assert_eq!(&bytes[512 + (3 << 20) - 3..512 + (3 << 20)], b"end");
}

#[test]
fn a_layer_does_not_depend_on_the_order_of_the_disk() {
    let names: Vec<String> = (0..300).map(|n| format!("name-{}", n * 7919 % 1000)).collect();
    let make = |dir: &Path, names: &mut dyn Iterator<Item = &String>| {
        std::fs::create_dir(dir).expect("a directory");
        for name in names {
            dir.file(name, name, 0o644).times(name, 1000, 5);
        }
    };
    let two = Two::new(|_| (), |_| ());
    make(&two.new.join("d"), &mut names.iter());
    make(&two.base.join("d"), &mut names.iter().rev());
    for root in [&two.new, &two.base] {
        root.chmod("d", 0o755).times("d", 1000, 5);
    }
    let layer = |path| layer(&Tree::Empty, &plain(path), &DiffOptions::default()).expect("a layer");
    assert_eq!(layer(&two.new), layer(&two.base));
    assert_eq!(two.changes(), Vec::<String>::new());
}

/// A capability as `setcap cap_net_raw+ep` stores it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn set(root: &Path, path: &str, name: &std::ffi::CStr, value: &[u8]) {
    let fd = sys::open::open_root(root).expect("a directory");
    let place = Place::At(fd.as_fd(), path.as_bytes());
    sys::xattr::set(place, name, value, sys::xattr::SetMode::Any).expect("an attribute");
}

#[test]
fn capabilities_are_written_always_and_attributes_of_users_if_wanted() {
    if !crate::support::is_root("capabilities need root") {
        return;
    }
    let two = Two::new(
        |a| {
            a.file("same", "x", 0o644).file("caps", "x", 0o755).file("note", "x", 0o644);
        },
        |b| {
            set(b, "caps", c"security.capability", CAPABILITY);
            set(b, "caps", c"trusted.secret", b"no");
            set(b, "note", c"user.note", b"hello");
            set(b, "note", c"user.overlay.origin", b"no");
            set(b, "same", c"user.fuseoverlayfs.x", b"no");
        },
    );
    let capability = CAPABILITY.escape_ascii();
    let caps = format!("caps 755 \"x\" security.capability={capability}");
    assert_eq!(two.members(), std::slice::from_ref(&caps));
    let user = DiffOptions { xattrs: Xattrs::User, ..DiffOptions::default() };
    let all = members(&two.try_layer(&user).expect("a layer"));
    assert_eq!(all, [caps, "note 644 \"x\" user.note=hello".to_owned()]);
}

#[test]
fn special_files_and_their_links_are_written() {
    if !crate::support::is_root("devices need root") {
        return;
    }
    let two = Two::new(
        |_| (),
        |b| {
            let fd = sys::open::open_root(b).expect("a directory");
            let make = |name: &[u8], mode, major, minor| {
                sys::node::mknod(fd.as_fd(), name, mode, Device { major, minor }).expect("a node");
            };
            make(b"null", libc::S_IFCHR | 0o600, 1, 3);
            make(b"loop", libc::S_IFBLK | 0o600, 7, 0);
            make(b"pipe", libc::S_IFIFO | 0o600, 0, 0);
            b.link("null", "other").link("pipe", "other-pipe").symlink("a", "s").link("s", "t");
        },
    );
    let expected = [
        "loop 600 block 7:0",
        "null 600 char 1:3",
        "other 600 link null",
        "other-pipe 600 fifo",
        "pipe 600 link other-pipe",
        "s 777 symlink a",
        "t 777 link s",
    ];
    assert_eq!(two.members(), expected);
}

#[test]
fn owners_and_modes_in_attributes_count_where_the_root_says_so() {
    let two = Two::new(
        |_| (),
        |b| {
            let over = c"user.containers.override_stat";
            b.file("f", "x", 0o600).dir("d", 0o700).file("l", "target", 0o600).file("dev", "", 0o600);
            set(b, ".", over, b"0:0:0755:dir");
            set(b, "f", over, b"7:8:4755:file");
            set(b, "d", over, b"7:8:1777:dir");
            set(b, "l", over, b"7:8:0777:symlink");
            set(b, "dev", over, b"0:0:0600:char-1-3");
        },
    );
    let expected = ["d/ 1777", "dev 600 char 1:3", "f 4755 \"x\"", "l 777 symlink target"];
    assert_eq!(two.members(), expected);
}

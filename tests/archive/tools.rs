//! What GNU tar and bsdtar write, in every form that they know, is read whole.

use crate::members::{Member, read};
use plywood::archive::EntryKind;
use plywood_fuse::testing::TempDir;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// What a form can hold.
#[derive(Debug, Clone, Copy)]
struct Form {
    program: &'static str,
    options: &'static [&'static str],
    long_names: bool,
    nanos: bool,
    xattrs: bool,
    sparse: bool,
    devices: bool,
}

const GNU: Form = Form {
    program: "tar",
    options: &[],
    long_names: true,
    nanos: false,
    xattrs: false,
    sparse: false,
    devices: true,
};
const GNU_POSIX: Form = Form { nanos: true, xattrs: true, ..GNU };
const BSD: Form = Form { program: "bsdtar", ..GNU };

const FORMS: &[Form] = &[
    Form { options: &["--format=v7"], long_names: false, devices: false, ..GNU },
    Form { options: &["--format=ustar"], long_names: false, ..GNU },
    Form { options: &["--format=oldgnu"], ..GNU },
    Form { options: &["--format=gnu"], ..GNU },
    Form { options: &["--format=oldgnu", "--sparse"], sparse: true, ..GNU },
    Form { options: &["--format=gnu", "--sparse"], sparse: true, ..GNU },
    Form { options: &["--format=posix"], xattrs: false, ..GNU_POSIX },
    Form { options: &["--format=posix", "--xattrs", "--xattrs-include=*"], ..GNU_POSIX },
    Form {
        options: &["--format=posix", "--pax-option=globexthdr.name=g,comment=global"],
        xattrs: false,
        ..GNU_POSIX
    },
    Form {
        options: &["--format=posix", "--sparse", "--sparse-version=0.0"],
        xattrs: false,
        sparse: true,
        ..GNU_POSIX
    },
    Form {
        options: &["--format=posix", "--sparse", "--sparse-version=0.1"],
        xattrs: false,
        sparse: true,
        ..GNU_POSIX
    },
    Form {
        options: &["--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs", "--xattrs-include=*"],
        sparse: true,
        ..GNU_POSIX
    },
    Form { options: &["--format=v7"], long_names: false, devices: false, ..BSD },
    Form { options: &["--format=ustar"], long_names: false, ..BSD },
    Form { options: &["--format=gnutar"], ..BSD },
    Form { options: &["--format=pax"], nanos: true, xattrs: true, sparse: true, ..BSD },
    Form { options: &["--format=pax", "--no-read-sparse"], nanos: true, xattrs: true, ..BSD },
    Form {
        options: &["--format=pax", "--options=xattrheader=LIBARCHIVE"],
        nanos: true,
        xattrs: true,
        sparse: true,
        ..BSD
    },
    Form {
        options: &["--format=pax", "--options=xattrheader=SCHILY"],
        nanos: true,
        xattrs: true,
        sparse: true,
        ..BSD
    },
];

fn run(program: &str, args: &[&str], at: &Path) {
    let mut command = Command::new(program);
    command.args(args).current_dir(at).env("LC_ALL", "C.UTF-8");
    let done =
        command.output().unwrap_or_else(|e| panic!("{program}: {e}; install libarchive-tools and attr"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A file with data in so many places, far from each other, and with a hole at its end.
fn sparse(path: &Path, places: u64) {
    let file = std::fs::File::create(path).expect("file");
    for place in 0..places {
        file.write_all_at(&vec![b'0' + (place % 10) as u8; 5000], place * (1 << 20) + 4096).expect("data");
    }
    file.set_len(places * (1 << 20) + (3 << 20)).expect("a hole");
}

/// A tree with everything that the form can hold.
fn tree(root: &Path, form: Form) {
    let file = |name: &str, content: &[u8]| std::fs::write(root.join(name), content).expect("file");
    std::fs::create_dir(root.join("d")).expect("directory");
    std::fs::set_permissions(root.join("d"), std::fs::Permissions::from_mode(0o1777)).expect("mode");
    file("empty", b"");
    file("block", &[b'b'; 512]);
    file("d/file", &b"content".repeat(1000));
    file("ümlaut", b"a name that is not ASCII");
    std::fs::set_permissions(root.join("block"), std::fs::Permissions::from_mode(0o4755)).expect("mode");
    std::fs::hard_link(root.join("d/file"), root.join("hard")).expect("link");
    std::os::unix::fs::symlink("../outside", root.join("d/link")).expect("link");
    if form.devices {
        run("mkfifo", &["d/fifo"], root);
        run("mknod", &["d/char", "c", "1", "3"], root);
        run("mknod", &["d/block", "b", "7", "9"], root);
    }
    std::os::unix::fs::lchown(root.join("block"), Some(200_000), Some(70_000)).expect("owner");
    if form.long_names {
        let long = format!("{}/{}", "l".repeat(150), "n".repeat(200));
        std::fs::create_dir(root.join("l".repeat(150))).expect("directory");
        file(&long, b"a long name");
        std::os::unix::fs::symlink("t".repeat(300), root.join("long link")).expect("link");
        std::fs::hard_link(root.join(&long), root.join("m".repeat(120))).expect("link");
    }
    if form.xattrs {
        run("setfattr", &["-n", "user.a", "-v", "0x00ff0a3d", "d/file"], root);
        // Other forms have no words for such a name, or other words than Go.
        if form.options.contains(&"--options=xattrheader=LIBARCHIVE") {
            run("setfattr", &["-n", "user.name with = and %", "-v", "x", "d"], root);
        }
        run("setfattr", &["-n", "user.empty", "d"], root);
    }
    sparse(&root.join("hole"), 0);
    sparse(&root.join("few"), 3);
    sparse(&root.join("many"), 40);
    for (name, secs) in [("empty", "1.5"), ("d/file", "1700000000.25"), ("few", "123456789")] {
        run("touch", &["-h", "-d", &format!("@{secs}"), name], root);
    }
    if form.nanos {
        // bsdtar adds a fraction before 1970 to the wrong side of its second.
        run("touch", &["-d", if form.program == "tar" { "@-1.5" } else { "@-2" }, "empty"], root);
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (mut names, mut value) = (vec![0; 4096], vec![0; 4096]);
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("attributes");
    let names = names[..length].split(|b| *b == 0).filter(|n| n.starts_with(b"user."));
    let mut found = BTreeMap::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("attribute");
        found.insert(name.to_vec(), value[..length].to_vec());
    }
    found
}

/// Compares a member with the file that it was made from.
fn compare(member: &Member, root: &Path, form: Form) {
    use std::os::unix::ffi::OsStrExt;
    let entry = &member.entry;
    let path = root.join(std::ffi::OsStr::from_bytes(entry.path.strip_prefix(b"./").unwrap_or(&entry.path)));
    let stat = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let of = format!("{} by {form:?}", path.display());
    assert_eq!((entry.uid, entry.gid, entry.mode), (stat.uid(), stat.gid(), stat.mode() & 0o7777), "{of}");
    assert_eq!(entry.mtime.secs, stat.mtime(), "{of}");
    assert_eq!(i64::from(entry.mtime.nanos), if form.nanos { stat.mtime_nsec() } else { 0 }, "{of}");
    let kind = match &entry.kind {
        EntryKind::File => libc::S_IFREG,
        EntryKind::Dir => libc::S_IFDIR,
        EntryKind::Fifo => libc::S_IFIFO,
        EntryKind::Symlink(to) => {
            assert_eq!(to, std::fs::read_link(&path).expect("link").as_os_str().as_bytes(), "{of}");
            libc::S_IFLNK
        }
        EntryKind::Char { major, minor } => {
            assert_eq!((*major, *minor), (libc::major(stat.rdev()), libc::minor(stat.rdev())), "{of}");
            libc::S_IFCHR
        }
        EntryKind::Block { major, minor } => {
            assert_eq!((*major, *minor), (libc::major(stat.rdev()), libc::minor(stat.rdev())), "{of}");
            libc::S_IFBLK
        }
        EntryKind::HardLink(to) => {
            let to = root.join(std::ffi::OsStr::from_bytes(to.strip_prefix(b"./").unwrap_or(to)));
            assert_eq!(to.symlink_metadata().expect("target").ino(), stat.ino(), "{of}");
            return;
        }
    };
    assert_eq!(stat.mode() & libc::S_IFMT, kind, "{of}");
    if form.xattrs {
        assert_eq!(entry.xattrs.iter().cloned().collect::<BTreeMap<_, _>>(), xattrs(&path), "{of}");
    }
    if entry.kind == EntryKind::File {
        assert_eq!(entry.size_bytes, stat.size(), "{of}");
        let content = std::fs::read(&path).expect("content");
        let compared = member.content.len();
        assert!(member.content == content[..compared], "{of}");
        let data: u64 = member.segments.iter().map(|s| s.length_bytes).sum();
        if form.sparse && ["few", "many", "hole"].iter().any(|n| entry.path.ends_with(n.as_bytes())) {
            assert!(data < 1 << 20, "{of}: {data} bytes of data");
        } else {
            assert_eq!(data, entry.size_bytes, "{of}");
        }
    }
}

#[test]
fn archives_of_gnu_tar_and_bsdtar_are_read_whole() {
    for form in FORMS {
        let temp = TempDir::new();
        let root = temp.path().join("root");
        std::fs::create_dir(&root).expect("directory");
        tree(&root, *form);
        let archive = temp.path().join("archive").display().to_string();
        let args = [form.options, &["--numeric-owner", "-cf", &archive, "."]].concat();
        run(form.program, &args, &root);
        let members = read(&std::fs::read(&archive).expect("archive"));
        let files = Command::new("find").current_dir(&root).output().expect("find").stdout;
        let files = files.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count();
        assert_eq!(members.len(), files, "{form:?}");
        for member in &members {
            compare(member, &root, *form);
        }
    }
}

#[test]
fn sizes_and_owners_beyond_octal_digits_are_read_in_every_form() {
    let temp = TempDir::new();
    let file = std::fs::File::create(temp.path().join("large")).expect("file");
    file.set_len(9 << 30).expect("a large hole");
    std::os::unix::fs::lchown(temp.path().join("large"), Some(4_000_000_000), Some(3_000_000))
        .expect("owner");
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let args = [options, &["--numeric-owner", "-cf", "archive", "large"]].concat();
        run("tar", &args, temp.path());
        let members = read(&std::fs::read(temp.path().join("archive")).expect("archive"));
        let entry = &members[0].entry;
        assert_eq!(
            (entry.size_bytes, entry.uid, entry.gid),
            (9 << 30, 4_000_000_000, 3_000_000),
            "{options:?}"
        );
    }
    // Without holes: only the header.
    for options in [&["--format=gnu"][..], &["--format=posix"]] {
        let script =
            format!("tar {} --numeric-owner -cf - large | head -c 8192 > archive", options.join(" "));
        run("sh", &["-c", &script], temp.path());
        let archive = std::fs::read(temp.path().join("archive")).expect("archive");
        let mut reader = plywood::archive::Reader::new(&archive[..], plywood::archive::Limits::default());
        let entry = reader.next().expect("a header").expect("a member");
        assert_eq!(
            (entry.size_bytes, entry.uid, entry.gid),
            (9 << 30, 4_000_000_000, 3_000_000),
            "{options:?}"
        );
    }
}

/// True for names that are listed in one line, and that bsdtar can show.
fn is_text(entry: &plywood::archive::Entry) -> bool {
    let link = match &entry.kind {
        EntryKind::HardLink(link) | EntryKind::Symlink(link) => &link[..],
        _ => &[],
    };
    [&entry.path[..], link].iter().all(|name| std::str::from_utf8(name).is_ok() && !name.contains(&b'\n'))
}

/// What we write is read by them.
#[test]
fn gnu_tar_and_bsdtar_read_what_is_written() {
    let mut random = crate::random::Random::new(3);
    let entries: Vec<_> =
        (0..200).map(|_| crate::entries::entry(&mut random)).filter(|(entry, _)| is_text(entry)).collect();
    let temp = TempDir::new();
    std::fs::write(temp.path().join("archive"), crate::members::write(&entries)).expect("archive");
    for program in ["tar", "bsdtar"] {
        let mut command = Command::new(program);
        command.args(["-tf", "archive"]).current_dir(temp.path()).env("LC_ALL", "C.UTF-8");
        let done = command.output().unwrap_or_else(|e| panic!("{program}: {e}; install libarchive-tools"));
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
        let listed = done.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count();
        assert_eq!(listed, entries.len(), "{program}");
    }
}

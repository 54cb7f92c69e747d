use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt;

use super::*;

fn parse(words: &[&str]) -> Result<Command> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    parse_command_line(OsStr::new("/usr/bin/fuse-overlayfs"), &words)
}

fn mount(words: &[&str]) -> MountRequest {
    match parse(words) {
        Ok(Command::Mount(request)) => *request,
        other => panic!("{words:?}: {other:?}"),
    }
}

/// A writable mount with these options behind the three directories.
fn with(options: &str) -> MountRequest {
    mount(&["-o", &format!("lowerdir=/l,upperdir=/u,workdir=/w,{options}"), "/m"])
}

fn refusal(words: &[&str]) -> String {
    match parse(words) {
        Err(error) => {
            assert_eq!(error.errno(), libc::EINVAL);
            error.to_string()
        }
        Ok(command) => panic!("{words:?}: {command:?}"),
    }
}

fn paths(words: &[&str]) -> Vec<PathBuf> {
    words.iter().map(PathBuf::from).collect()
}

#[test]
fn the_command_lines_of_known_clients_are_understood() {
    // (words, mount point, lowers, upper, work, read only)
    type Case<'a> = (&'a [&'a str], &'a str, &'a [&'a str], Option<&'a str>, Option<&'a str>, bool);
    let cases: [Case<'_>; 10] = [
        (
            &["-o", "lowerdir=S/l/AAA:S/l/BBB,upperdir=S/ID/diff,workdir=S/ID/work,,volatile", "S/ID/merged"],
            "S/ID/merged",
            &["S/l/AAA", "S/l/BBB"],
            Some("S/ID/diff"),
            Some("S/ID/work"),
            false,
        ),
        (&["-o", "lowerdir=L,upperdir=U,workdir=W,", "M"], "M", &["L"], Some("U"), Some("W"), false),
        (&["-o", "lowerdir=S/ID/diff:S/l/BBB", "M"], "M", &["S/ID/diff", "S/l/BBB"], None, None, true),
        (&["-o", "lowerdir=L,upperdir=U,workdir=W,private", "M"], "M", &["L"], Some("U"), Some("W"), false),
        (
            &["-f", "-o", "allow_other,lowerdir=A:B,upperdir=U,workdir=W,noacl", "T"],
            "T",
            &["A", "B"],
            Some("U"),
            Some("W"),
            false,
        ),
        (
            &["overlay", "T", "-o", "workdir=W,upperdir=U,lowerdir=B:A,dev,suid"],
            "T",
            &["B", "A"],
            Some("U"),
            Some("W"),
            false,
        ),
        (
            &["overlay", "T", "-o", "workdir=W,upperdir=U,lowerdir=B,ro,dev,suid"],
            "T",
            &["B"],
            Some("U"),
            Some("W"),
            true,
        ),
        (&["-olowerdir=A", "-oupperdir=U", "-o", "workdir=W", "M"], "M", &["A"], Some("U"), Some("W"), false),
        (&["-o", "lowerdir=A", "--", "/dev/fd/7"], "/dev/fd/7", &["A"], None, None, true),
        (&["-o", "lowerdir=A,upperdir=U,ro", "M"], "M", &["A"], Some("U"), None, true),
    ];
    for (words, mount_point, lowers, upper, work, read_only) in cases {
        let request = mount(words);
        assert_eq!(request.mount_point, PathBuf::from(mount_point), "{words:?}");
        assert_eq!(request.lowers, paths(lowers), "{words:?}");
        assert_eq!(request.upper, upper.map(PathBuf::from), "{words:?}");
        assert_eq!(request.work, work.map(PathBuf::from), "{words:?}");
        assert_eq!(request.read_only, read_only, "{words:?}");
        assert_eq!(request.warnings, [""; 0], "{words:?}");
        assert_eq!(request.program, "fuse-overlayfs");
    }
}

#[test]
fn the_last_word_is_the_mount_point_and_the_one_before_it_the_source() {
    let cases: [(&[&str], Option<&str>, &str); 7] = [
        (&["M"], None, "M"),
        (&["S", "M"], Some("S"), "M"),
        (&["X", "S", "M"], Some("S"), "M"),
        (&["", "M"], Some(""), "M"),
        (&["-", "M"], Some("-"), "M"),
        (&["--", "-f", "-M"], Some("-f"), "-M"),
        (&["-t", "fuse.plywood", "S", "M"], Some("S"), "M"),
    ];
    for (words, source, mount_point) in cases {
        let request = mount(&[&["-olowerdir=L"], words].concat());
        assert_eq!(request.source, source.map(OsString::from), "{words:?}");
        assert_eq!(request.mount_point, PathBuf::from(mount_point), "{words:?}");
        assert!(!request.foreground, "{words:?}");
    }
}

#[test]
fn switches_set_what_they_say() {
    let of = |switch: &str| {
        let request = mount(&[switch, "-o", "lowerdir=L", "M"]);
        (request.foreground, request.debug, request.warnings)
    };
    let unknown = |switch: &str| vec![format!("unknown argument ignored: {switch}")];
    let cases = [
        ("-f", (true, false, vec![])),
        ("-d", (true, true, vec![])),
        ("--debug", (true, true, vec![])),
        ("-s", (false, false, vec![])),
        ("-n", (false, false, vec![])),
        ("-v", (false, false, vec![])),
        ("-x", (false, false, unknown("-x"))),
        ("--nothing=1", (false, false, unknown("--nothing=1"))),
    ];
    for (switch, expected) in cases {
        assert_eq!(of(switch), expected, "{switch}");
    }
}

#[test]
fn help_and_version_win_over_everything_else() {
    let cases: [(&[&str], Command); 7] = [
        (&["-h"], Command::Help),
        (&["--help"], Command::Help),
        (&["-V"], Command::Version),
        (&["--version", "-h"], Command::Version),
        (&["-o", "timeout=never", "-V"], Command::Version),
        (&["-o", "-h", "--version"], Command::Version),
        (&["-f", "M", "-h"], Command::Help),
    ];
    for (words, command) in cases {
        assert_eq!(parse(words).expect("no mount is asked for"), command, "{words:?}");
    }
}

#[test]
fn an_empty_request_has_the_documented_defaults() {
    let request = mount(&["-o", "lowerdir=/l,upperdir=/u,workdir=/w", "/m"]);
    let expected = MountRequest {
        program: "fuse-overlayfs".into(),
        lowers: paths(&["/l"]),
        upper: Some("/u".into()),
        work: Some("/w".into()),
        ..MountRequest::new("/m")
    };
    assert_eq!(request, expected);
    assert_eq!(request.redirect_dir, RedirectDir::Copy);
    assert_eq!(request.entry_ttl_secs, 31_536_000.0);
    assert!(!request.writeback && !request.metacopy && request.kernel_mount.default_permissions);
}

/// Every option with an effect: what is typed behind a plain writable mount, and what must then be true.
#[expect(clippy::type_complexity, reason = "one table")]
const EFFECTS: &[(&str, fn(&MountRequest) -> bool)] = &[
    ("lowerdir=/a:/b", |r| r.lowers == paths(&["/a", "/b"])),
    (r"lowerdir=/a\:b:/c\,d", |r| r.lowers == paths(&["/a:b", "/c,d"])),
    ("lowerdir=:/a::/b:", |r| r.lowers == paths(&["/a", "/b"])),
    ("lowerdir=../a:.", |r| r.lowers == paths(&["../a", "."])),
    (r#"lowerdir="/a,b:/c""#, |r| r.lowers == paths(&["/a,b", "/c"])),
    ("lowerdir+=/a:b,lowerdir+=/c", |r| r.lowers == paths(&["/l", "/a:b", "/c"])),
    ("lowerdir+=/a,lowerdir=/b", |r| r.lowers == paths(&["/b"])),
    ("datadir+=/a", |r| r.lowers == paths(&["/l", "/a"]) && r.warnings.len() == 1),
    (r"upperdir=/a\,b\:c\\", |r| r.upper == Some(r"/a,b:c\".into())),
    ("workdir=/a b", |r| r.work == Some("/a b".into())),
    ("ro", |r| r.read_only),
    ("remount,ro", |r| r.remount && r.read_only),
    ("remount", |r| r.remount && !r.read_only),
    ("ro,rw", |r| !r.read_only),
    ("redirect_dir=on", |r| r.redirect_dir == RedirectDir::On),
    ("redirect_dir=follow", |r| r.redirect_dir == RedirectDir::Follow),
    ("redirect_dir=nofollow", |r| r.redirect_dir == RedirectDir::NoFollow),
    ("redirect_dir=off", |r| r.redirect_dir == RedirectDir::Off),
    ("redirect_dir=off,redirect_dir=copy", |r| r.redirect_dir == RedirectDir::Copy),
    ("metacopy=on", |r| r.metacopy),
    ("metacopy,metacopy=off", |r| !r.metacopy),
    ("userxattr", |r| r.user_xattr == Some(true)),
    ("userxattr=off", |r| r.user_xattr == Some(false)),
    ("noxattrs", |r| r.xattrs == XattrMode::Off),
    ("noxattrs=1", |r| r.xattrs == XattrMode::Off),
    ("noxattrs,noxattrs=0", |r| r.xattrs == XattrMode::On),
    ("xattr=off", |r| r.xattrs == XattrMode::Off),
    ("noxattrs,xattr=on", |r| r.xattrs == XattrMode::On),
    ("acl", |r| r.acl == AclMode::On),
    ("acl=on", |r| r.acl == AclMode::On),
    ("acl=off", |r| r.acl == AclMode::Off),
    ("noacl", |r| r.acl == AclMode::Off),
    ("noacl,acl=auto", |r| r.acl == AclMode::Auto),
    ("posix_acl", |r| r.acl == AclMode::On),
    ("xino=on", |r| r.xino == XinoMode::On),
    ("xino", |r| r.xino == XinoMode::On),
    ("xino=off", |r| r.xino == XinoMode::Off),
    ("xino=off,xino=auto", |r| r.xino == XinoMode::Auto),
    ("verity=on,verity=off", |r| *r == with("")),
    ("static_nlink", |r| r.static_nlink),
    ("debug", |r| r.debug && r.foreground),
    ("uidmapping=:0:1000:1", |r| r.uid_map.from_disk(0) == 1000 && r.gid_map.is_identity()),
    ("gidmapping=0:1000:1", |r| r.gid_map.from_disk(0) == 1000 && r.uid_map.is_identity()),
    ("squash_to_root", |r| r.squash == Some(Squash { uid: Some(0), gid: Some(0) })),
    ("squash_to_uid=5", |r| r.squash == Some(Squash { uid: Some(5), gid: None })),
    ("squash_to_gid=6,squash_to_root", |r| r.squash == Some(Squash { uid: Some(0), gid: Some(6) })),
    ("squash_to_root,squash_to_uid=5,squash_to_gid=6", |r| {
        r.squash == Some(Squash { uid: Some(5), gid: Some(6) })
    }),
    ("xattr_permissions=1", |r| r.stat_override == StatOverrideMode::Security),
    ("xattr_permissions=2", |r| r.stat_override == StatOverrideMode::Containers),
    ("xattr_permissions=2,xattr_permissions=0", |r| r.stat_override == StatOverrideMode::Auto),
    ("stat_override=off", |r| r.stat_override == StatOverrideMode::Off),
    ("stat_override=security", |r| r.stat_override == StatOverrideMode::Security),
    ("stat_override=containers", |r| r.stat_override == StatOverrideMode::Containers),
    ("stat_override=off,stat_override=auto", |r| r.stat_override == StatOverrideMode::Auto),
    ("volatile", |r| r.durability == Durability::Volatile),
    ("fsync=0", |r| r.durability == Durability::Volatile),
    ("fsync=volatile", |r| r.durability == Durability::Volatile),
    ("volatile,fsync=1", |r| r.durability == Durability::Durable),
    ("volatile,fsync=strict", |r| r.durability == Durability::Durable),
    ("sync=0", |r| r.durability == Durability::Volatile && !r.kernel_mount.sync),
    ("sync", |r| r.durability == Durability::Durable && r.kernel_mount.sync),
    ("timeout=0", |r| r.entry_ttl_secs == 0.0),
    ("timeout=0.5", |r| r.entry_ttl_secs == 0.5),
    ("timeout=1e9", |r| r.entry_ttl_secs == 1e9),
    ("timeout=1e300", |r| r.entry_ttl_secs == MAX_ENTRY_TTL_SECS),
    ("writeback", |r| r.writeback),
    ("writeback=1", |r| r.writeback),
    ("writeback=on,writeback=0", |r| !r.writeback),
    ("open=on", |r| r.open_protocol == OpenProtocol::Classic),
    ("open=on,open=off", |r| r.open_protocol == OpenProtocol::Never),
    ("open=on,no_open", |r| r.open_protocol == OpenProtocol::Never),
    ("threads=1", |r| r.threads == Some(1)),
    ("threads=1024", |r| r.threads == Some(1024)),
    ("allow_other", |r| r.kernel_mount.allow_other == Some(true)),
    ("allow_other=off", |r| r.kernel_mount.allow_other == Some(false)),
    ("allow_root", |r| r.kernel_mount.allow_root),
    ("default_permissions", |r| r.kernel_mount.default_permissions),
    ("suid", |r| r.kernel_mount.suid == Some(true)),
    ("suid,nosuid", |r| r.kernel_mount.suid == Some(false)),
    ("dev", |r| r.kernel_mount.dev == Some(true)),
    ("dev,nodev", |r| r.kernel_mount.dev == Some(false)),
    ("exec", |r| r.kernel_mount.exec == Some(true)),
    ("exec,noexec", |r| r.kernel_mount.exec == Some(false)),
    ("atime", |r| r.kernel_mount.access_times == AccessTimes::Relative),
    ("relatime", |r| r.kernel_mount.access_times == AccessTimes::Relative),
    ("strictatime", |r| r.kernel_mount.access_times == AccessTimes::Strict),
    ("strictatime,noatime", |r| r.kernel_mount.access_times == AccessTimes::Never),
    ("nodiratime", |r| !r.kernel_mount.directory_access_times),
    ("nodiratime,diratime", |r| r.kernel_mount.directory_access_times),
    ("dirsync", |r| r.kernel_mount.dirsync),
    ("sync,async", |r| !r.kernel_mount.sync),
    (r"fsname=a\,b", |r| r.kernel_mount.fsname == Some("a,b".into())),
    ("subtype=fuse-overlayfs", |r| r.kernel_mount.subtype == Some("fuse-overlayfs".into())),
];

/// Values that are wrong: what is typed, and a word of the answer.
const REFUSALS: &[(&str, &str)] = &[
    ("lowerdir", "lowerdir=DIR"),
    ("lowerdir=", "no lower layer"),
    ("lowerdir=:", "no lower layer"),
    ("lowerdir=/a://plugin/data/path", "plugin"),
    ("lowerdir+=//plugin/data/path", "plugin"),
    ("lowerdir+=", "empty"),
    ("datadir+=", "empty"),
    ("upperdir=", "empty"),
    ("workdir", "workdir=DIR"),
    ("redirect_dir=maybe", "copy, on, follow, nofollow, off"),
    ("redirect_dir", "redirect_dir=copy|on"),
    ("metacopy=maybe", "on, off"),
    ("noxattrs=-1", "on, off"),
    ("writeback=", "on, off"),
    ("fsync=never", "on, off"),
    ("sync=volatile", "on, off"),
    ("acl=1", "on, off, auto"),
    ("xino=2", "on, off, auto"),
    ("verity=require", "leave the option out"),
    ("uidmapping=0:1", "triples"),
    ("uidmapping=0:0:1:0:5:1", "overlap"),
    ("gidmapping=a:b:c", "triples"),
    ("squash_to_uid=root", "not an id"),
    ("squash_to_uid=4294967295", "not an id"),
    ("squash_to_gid=-1", "not an id"),
    ("xattr_permissions=3", "0, 1, 2"),
    ("stat_override=on", "auto, off, security, containers"),
    ("timeout=", "seconds"),
    ("timeout=never", "seconds"),
    ("timeout=-1", "seconds"),
    ("timeout=inf", "seconds"),
    ("timeout=nan", "seconds"),
    ("timeout=5s", "seconds"),
    ("threads=0", "1 to 1024"),
    ("threads=1025", "1 to 1024"),
    ("open=maybe", "on, off"),
];

#[test]
fn every_option_with_an_effect_has_it_and_needs_no_warning() {
    let mut tried = BTreeSet::new();
    for (options, holds) in EFFECTS {
        let request = with(options);
        assert!(holds(&request), "{options}: {request:?}");
        assert!(request.warnings.is_empty() || options.contains("datadir+"), "{options}: {request:?}");
        tried.extend(split_options(options.as_bytes()).into_iter().map(|item| item.name.to_vec()));
    }
    for row in sections().iter().flat_map(|section| section.rows) {
        assert!(row.is_without_effect() || tried.contains(row.name.as_bytes()), "{} is not tried", row.name);
    }
}

#[test]
fn wrong_values_are_refused_by_name_in_one_line() {
    for (options, word) in REFUSALS {
        let message = refusal(&["-o", &format!("lowerdir=/l,upperdir=/u,workdir=/w,{options}"), "/m"]);
        assert!(message.contains(word), "{options}: {message}");
        let (subject, no_lower) = (format!("mount option: {options}: "), "mount: /m: no lower layer");
        assert!(message.starts_with(&subject) || message.starts_with(no_lower), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn options_without_effect_are_accepted_in_silence_with_any_value() {
    let plain = with("");
    for row in sections().iter().flat_map(|section| section.rows).filter(|row| row.is_without_effect()) {
        let name = row.name.replace('*', "systemd.requires");
        for typed in [name.clone(), format!("{name}="), format!("{name}=1"), format!("{name}=\"a,b\"")] {
            assert_eq!(with(&typed), plain, "{typed}");
        }
    }
    let seen = "lazytime,kernel_cache,max_write=65536,index=off,nfs_export=off,uuid=null,threaded=1,\
                fast_ino=1,context=\"system_u:object_r:container_file_t:s0:c1,c2\",x-gvfs-show,private,plugins=";
    assert_eq!(with(seen), plain);
}

#[test]
fn unknown_options_are_told_as_the_peers_tell_them() {
    let cases: [(&str, &[&str]); 7] = [
        ("foo", &["foo"]),
        ("foo=bar,ro,baz", &["foo=bar", "baz"]),
        ("nodev=1", &["nodev=1"]),
        ("=x", &["=x"]),
        ("RO", &["RO"]),
        ("foo=\"a,b\"", &["foo=\"a,b\""]),
        ("foo\nbar", &["foo\\nbar"]),
    ];
    for (options, unknown) in cases {
        let expected: Vec<String> =
            unknown.iter().map(|x| format!("unknown argument ignored: {x}")).collect();
        assert_eq!(with(options).warnings, expected, "{options}");
    }
}

#[test]
fn several_lists_are_one_and_later_words_win() {
    let request =
        mount(&["-o", "lowerdir=/a,ro,nodev", "-olowerdir=/b", "M", "-o", "rw,dev,upperdir=U,workdir=W"]);
    assert_eq!(request.lowers, paths(&["/b"]));
    assert!(!request.read_only);
    assert_eq!(request.kernel_mount.dev, Some(true));
}

#[test]
fn what_is_missing_is_named_with_what_to_write() {
    let cases: [(&[&str], &str); 9] = [
        (&[], "command line: fuse-overlayfs: no mount point"),
        (&[""], "command line: fuse-overlayfs: no mount point"),
        (&["-o", "lowerdir=/l"], "command line: fuse-overlayfs: no mount point"),
        (&["-o"], "command line: -o: no options follow"),
        (&["M", "-o"], "command line: -o: no options follow"),
        (&["M"], "mount: M: no lower layer is given: add -o lowerdir="),
        (&["-o", "upperdir=U,workdir=W", "M"], "mount: M: no lower layer is given: add -o lowerdir="),
        (
            &["-o", "lowerdir=L,upperdir=U", "M"],
            "mount: upperdir=U: no work directory is given: add workdir=",
        ),
        (&["-o", "lowerdir=L,upperdir=U,ro,rw", "M"], "mount: upperdir=U: no work directory is given"),
    ];
    for (words, start) in cases {
        let message = refusal(words);
        assert!(message.starts_with(start), "{words:?}: {message}");
    }
}

#[test]
fn paths_and_words_keep_bytes_that_are_not_text() {
    let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
    let args = [
        bytes(b"s\xff"),
        bytes(b"m\xfe"),
        bytes(b"-o"),
        bytes(b"lowerdir=/a\xff:/b\xfe,upperdir=/u\xfd,workdir=/w\xfc,odd\xff"),
    ];
    let Ok(Command::Mount(request)) = parse_command_line(OsStr::new(""), &args) else {
        panic!("bytes are no reason to refuse");
    };
    assert_eq!(request.lowers, [PathBuf::from(bytes(b"/a\xff")), PathBuf::from(bytes(b"/b\xfe"))]);
    assert_eq!(request.upper, Some(PathBuf::from(bytes(b"/u\xfd"))));
    assert_eq!(request.work, Some(PathBuf::from(bytes(b"/w\xfc"))));
    assert_eq!(request.mount_point, PathBuf::from(bytes(b"m\xfe")));
    assert_eq!(request.source, Some(bytes(b"s\xff")));
    assert_eq!(request.warnings, ["unknown argument ignored: odd\u{fffd}"]);
    assert_eq!(request.program, "plywood-fuse");
}

#[test]
fn every_name_stands_in_the_table_once_and_is_no_other_rows_prefix_pattern() {
    let mut names = BTreeSet::new();
    for row in sections().iter().flat_map(|section| section.rows) {
        assert!(names.insert(row.name), "{} stands twice", row.name);
        assert!(!row.help.is_empty() && !row.help.ends_with('.'), "{}", row.name);
        assert!(row.name.bytes().all(|b| b.is_ascii_graphic() && !b",=\\\"".contains(&b)), "{}", row.name);
    }
}

#[test]
fn any_words_are_answered_without_a_panic() {
    const PIECES: &[&str] = &[
        "lowerdir=",
        "lowerdir+=",
        "upperdir=",
        "workdir=",
        "uidmapping=",
        "timeout=",
        "threads=",
        "ro",
        ",",
        ":",
        "\\",
        "\"",
        "=",
        "/a",
        "//",
        "0",
        "4294967295",
        "-",
        "-o",
        "-t",
        "--",
        "1e999",
        "context=\"",
        "\n",
    ];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..20_000 {
        let words = random() % 5;
        let args: Vec<OsString> = (0..words)
            .map(|_| {
                let pieces = random() % 8;
                (0..pieces).map(|_| PIECES[random() % PIECES.len()]).collect::<String>().into()
            })
            .collect();
        if let Ok(Command::Mount(request)) = parse_command_line(OsStr::new("p"), &args) {
            assert!(!request.lowers.is_empty() && !request.mount_point.as_os_str().is_empty(), "{args:?}");
            assert!(request.read_only || request.upper.is_some() && request.work.is_some(), "{args:?}");
        }
    }
}

//! Who may do what, and what a new file begins with.

use super::common::{Layers, errno};
use super::{GROUP, USER, assert_all_given_back, give, rooted, stranger, user};
use libc::{EACCES, EPERM};
use plywood_fuse::access::Access;
use plywood_fuse::overlay::rename::Target;
use plywood_fuse::types::{Device, Identity, Kind, SetTime, Time};
use plywood_fuse::view::{Open, View};

const ACCESS_LIST: &str = "system.posix_acl_access";
const DEFAULT_LIST: &str = "system.posix_acl_default";

/// A list: owner, one named user, group, mask, other.
fn list(owner: u16, named: (u32, u16), group: u16, mask: u16, other: u16) -> Vec<u8> {
    let none = u32::MAX;
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, owner, none), (2, named.1, named.0), (4, group, none), (16, mask, none), (32, other, none)]
    {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&perm.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn member() -> Identity {
    Identity { groups: vec![9, GROUP], ..stranger() }
}

#[test]
fn the_mode_decides_for_owner_group_and_others() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x");
    let root = rooted(&layers);
    root.write("upper", "x").unwrap();
    let callers = [Identity::root(), user(), member(), stranger()];
    let table = [
        // mode, then for each caller: may read, may write
        (0o600, [(true, true), (true, true), (false, false), (false, false)]),
        (0o640, [(true, true), (true, true), (true, false), (false, false)]),
        (0o066, [(true, true), (false, false), (true, true), (true, true)]),
        (0o604, [(true, true), (true, true), (false, false), (true, false)]),
        (0o020, [(true, true), (false, false), (false, true), (false, false)]),
        (0o000, [(true, true), (false, false), (false, false), (false, false)]),
    ];
    for name in ["lower", "upper"] {
        for (perm, expected) in table {
            give(&root, name, (USER, GROUP), perm);
            for (who, (read, write)) in callers.iter().zip(expected) {
                let view = root.as_user(who.clone());
                let case = format!("{name} {perm:o} by {who:?}");
                let answer = |yes| if yes { 0 } else { EACCES };
                assert_eq!(errno(view.read(name)), answer(read), "read {case}");
                assert_eq!(errno(view.open(name, Open::write())), answer(write), "write {case}");
                assert_eq!(errno(view.open(name, Open::append())), answer(write), "append {case}");
                assert_eq!(errno(view.truncate(name, 1)), answer(write), "truncate {case}");
                assert_eq!(errno(view.access(name, Access::READ)), answer(read), "access {case}");
                let both = errno(view.open(name, Open::read().and_write()));
                assert_eq!(both, answer(read && write), "read and write {case}");
                let cut = errno(view.open(name, Open::read().truncate()));
                assert_eq!(cut, answer(read && write), "read and cut {case}");
            }
        }
    }
    drop(callers);
    assert_all_given_back(root.overlay());
}

#[test]
fn names_are_made_and_removed_by_who_may_write_the_directory() {
    let layers = Layers::new(1);
    layers.file(0, "dir/file", "x").dir(0, "dir/sub").file(0, "theirs/file", "x");
    let root = rooted(&layers);
    give(&root, "theirs", (0, 0), 0o755);
    for (perm, allowed) in [(0o777, true), (0o755, false), (0o733, true), (0o722, false), (0o711, false)] {
        give(&root, "dir", (0, 0), perm);
        let user = root.as_user(user());
        let answers = [
            ("open", errno(user.open("dir/new", Open::write().create_new()))),
            ("mkdir", errno(user.create_dir("dir/newdir"))),
            ("symlink", errno(user.symlink("x", "dir/newlink"))),
            ("fifo", errno(user.mknod("dir/fifo", Kind::Fifo, 0o666, Device::default()))),
            ("link", errno(user.link("dir/file", "dir/second"))),
            ("rename", errno(user.rename("dir/file", "dir/other", Target::Replace))),
            ("rename back", errno(user.rename("dir/other", "dir/file", Target::Replace))),
            ("rmdir", errno(user.remove_dir("dir/newdir"))),
            ("unlink", errno(user.remove_file("dir/second"))),
            ("nameless", errno(user.open_nameless("dir", 0o600))),
        ];
        for (what, answer) in answers {
            let is_allowed = answer == 0 || (answer == libc::EOPNOTSUPP && what == "nameless");
            // What an earlier call would have made is not there, or the directory cannot be searched.
            assert!(if allowed { is_allowed } else { answer != 0 }, "{what} {perm:o}: {answer}");
        }
        for name in ["new", "newdir", "newlink", "fifo", "second", "other"] {
            let _ = root.remove_dir_all(format!("dir/{name}"));
        }
        assert_eq!(errno(user.rename("dir/file", "theirs/other", Target::Replace)), EACCES);
        assert_eq!(errno(user.remove_file("theirs/file")), EACCES);
        let device = Device { major: 1, minor: 3 };
        let node = errno(user.mknod("dir/null", Kind::Char, 0o666, device));
        assert_eq!(node, if allowed { EPERM } else { EACCES }, "{perm:o}");
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    let layers = Layers::new(1);
    layers.file(0, "tmp/mine", "x").file(0, "tmp/theirs", "x").dir(0, "tmp/mydir").dir(0, "tmp/theirdir");
    let root = rooted(&layers);
    for name in ["mine", "mydir"] {
        give(&root, &format!("tmp/{name}"), (USER, GROUP), 0o755);
    }
    for name in ["theirs", "theirdir"] {
        give(&root, &format!("tmp/{name}"), (USER + 1, GROUP + 1), 0o777);
    }
    give(&root, "tmp", (0, 0), 0o1777);
    let me = root.as_user(user());
    assert_eq!(errno(me.remove_file("tmp/theirs")), EPERM);
    assert_eq!(errno(me.remove_dir("tmp/theirdir")), EPERM);
    assert_eq!(errno(me.rename("tmp/theirs", "tmp/x", Target::Replace)), EPERM);
    assert_eq!(errno(me.rename("tmp/mine", "tmp/theirs", Target::Replace)), EPERM);
    assert_eq!(errno(me.rename("tmp/mine", "tmp/theirs", Target::Exchange)), EPERM);
    assert_eq!(errno(me.set_xattr("tmp", "user.a", "x")), EPERM);
    assert_eq!(errno(me.rename("tmp/mine", "tmp/renamed", Target::Replace)), 0);
    assert_eq!(errno(me.remove_file("tmp/renamed")), 0);
    assert_eq!(errno(me.remove_dir("tmp/mydir")), 0);
    // The owner of the directory may remove all.
    give(&root, "tmp", (USER, GROUP), 0o1777);
    assert_eq!(errno(me.remove_file("tmp/theirs")), 0);
    assert_eq!(errno(root.remove_dir("tmp/theirdir")), 0);
}

#[test]
fn the_umask_takes_bits_from_what_is_made() {
    let layers = Layers::new(1);
    let root = rooted(&layers);
    root.create_dir("d").unwrap();
    root.set_permissions("d", 0o777).unwrap();
    for umask in [0, 0o022, 0o027, 0o077, 0o777] {
        let view = root.as_user(Identity { umask, ..user() });
        let file = view.open("d/file", Open::read().and_write().create_new().mode(0o4777)).unwrap();
        view.create_dir_with("d/dir", 0o1777).unwrap();
        view.mknod("d/fifo", Kind::Fifo, 0o666, Device::default()).unwrap();
        view.symlink("x", "d/link").unwrap();
        let perm = |name: &str| root.symlink_metadata(format!("d/{name}")).unwrap().perm;
        assert_eq!(perm("file"), 0o4777 & !umask, "umask {umask:o}");
        assert_eq!(perm("dir"), 0o1777 & !umask, "umask {umask:o}");
        assert_eq!(perm("fifo"), 0o666 & !umask, "umask {umask:o}");
        assert_eq!(perm("link"), 0o777);
        // Its maker may use it whatever its mode says.
        file.write_all_at(b"data", 0).unwrap();
        assert_eq!(file.read_all().unwrap(), b"data");
        for name in ["file", "dir", "fifo", "link"] {
            let attr = root.symlink_metadata(format!("d/{name}")).unwrap();
            assert_eq!((attr.uid, attr.gid), (USER, GROUP), "{name}");
            root.remove_dir_all(format!("d/{name}")).unwrap();
        }
    }
}

#[test]
fn a_setgid_directory_hands_its_group_down() {
    let layers = Layers::new(1);
    layers.dir(0, "lower").file(0, "lower/gone", "x");
    let root = rooted(&layers);
    root.create_dir("upper").unwrap();
    root.remove_file("lower/gone").unwrap();
    for dir in ["lower", "upper"] {
        give(&root, dir, (0, GROUP), 0o2777);
        let me = root.as_user(Identity { umask: 0, ..stranger() });
        // One of the names lies over a whiteout, where a file is made in another way.
        for suffix in ["gone", "new"] {
            let name = format!("{dir}/{suffix}");
            me.open(&name, Open::write().create_new().mode(0o2775)).unwrap();
            let attr = root.metadata(&name).unwrap();
            assert_eq!((attr.uid, attr.gid, attr.perm), (USER + 1, GROUP, 0o775), "{name}");
            root.remove_file(&name).unwrap();
            me.create_dir(&name).unwrap();
            let attr = root.metadata(&name).unwrap();
            assert_eq!((attr.uid, attr.gid, attr.perm), (USER + 1, GROUP, 0o2777), "{name}");
            root.remove_dir(&name).unwrap();
            me.symlink("x", &name).unwrap();
            assert_eq!(root.symlink_metadata(&name).unwrap().gid, GROUP, "{name}");
            root.remove_file(&name).unwrap();
            root.as_user(member()).open(&name, Open::write().create_new().mode(0o2775)).unwrap();
            assert_eq!(root.metadata(&name).unwrap().perm, 0o2755, "{name}: its maker is in the group");
            root.remove_file(&name).unwrap();
        }
    }
    root.create_dir("plain").unwrap();
    root.set_permissions("plain", 0o777).unwrap();
    root.as_user(user()).create_dir_with("plain/dir", 0o7777).unwrap();
    assert_eq!(root.metadata("plain/dir").unwrap().perm, 0o1755, "mkdir knows no setuid and setgid");
}

/// The disk may have no lists; then there is nothing to test.
fn has_lists(root: &View) -> bool {
    root.write("probe", "").unwrap();
    let set = root.set_xattr("probe", ACCESS_LIST, list(6, (USER, 6), 4, 6, 0));
    root.remove_file("probe").unwrap();
    match set {
        // EINVAL: an id that the user namespace of the test does not have.
        Err(e) if matches!(e.errno(), libc::EOPNOTSUPP | libc::EINVAL) => {
            plywood_fuse::testing::say_skipped("no access control lists here");
            false
        }
        other => other.map(|()| true).unwrap(),
    }
}

#[test]
fn a_list_on_a_file_lets_a_named_user_in() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x");
    let root = rooted(&layers);
    if !has_lists(&root) {
        return;
    }
    root.write("upper", "x").unwrap();
    for name in ["lower", "upper"] {
        give(&root, name, (USER + 1, GROUP + 1), 0o600);
        let (me, owner) = (root.as_user(user()), root.as_user(stranger()));
        assert_eq!(errno(me.read(name)), EACCES, "{name}");
        assert_eq!(errno(me.set_xattr(name, ACCESS_LIST, list(6, (USER, 7), 0, 7, 0))), EPERM);
        owner.set_xattr(name, ACCESS_LIST, list(6, (USER, 4), 0, 6, 0)).unwrap();
        assert_eq!(root.metadata(name).unwrap().perm, 0o660, "{name}: the mask shows as group");
        assert_eq!(me.read(name).unwrap(), b"x");
        assert_eq!(errno(me.open(name, Open::write())), EACCES, "{name}");
        owner.set_xattr(name, ACCESS_LIST, list(6, (USER, 6), 0, 6, 0)).unwrap();
        assert_eq!(errno(me.open(name, Open::write())), 0, "{name}");
        // A chmod moves the mask.
        owner.set_permissions(name, 0o640).unwrap();
        assert_eq!(errno(me.open(name, Open::write())), EACCES, "{name}");
        assert_eq!(me.read(name).unwrap(), b"x");
        let now = root.xattr(name, ACCESS_LIST).unwrap().unwrap();
        assert_eq!(now, list(6, (USER, 6), 0, 4, 0), "{name}");
        owner.remove_xattr(name, ACCESS_LIST).unwrap();
        assert_eq!(root.xattr(name, ACCESS_LIST).unwrap(), None, "{name}");
        assert_eq!(errno(me.read(name)), EACCES, "{name}");
        // A list that says no more than a mode is one.
        let mut plain = 2u32.to_le_bytes().to_vec();
        for (tag, perm) in [(1u16, 6u16), (4, 4), (32, 4)] {
            plain.extend_from_slice(&tag.to_le_bytes());
            plain.extend_from_slice(&perm.to_le_bytes());
            plain.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        owner.set_xattr(name, ACCESS_LIST, &plain).unwrap();
        assert_eq!(root.metadata(name).unwrap().perm, 0o644, "{name}");
        assert_eq!(root.xattr(name, ACCESS_LIST).unwrap(), None, "{name}");
        assert_eq!(errno(owner.set_xattr(name, ACCESS_LIST, "nonsense")), libc::EOPNOTSUPP);
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn a_list_on_a_directory_lets_a_named_user_pass() {
    let layers = Layers::new(1);
    layers.file(0, "dir/file", "x");
    let root = rooted(&layers);
    if !has_lists(&root) {
        return;
    }
    give(&root, "dir", (0, 0), 0o700);
    let me = root.as_user(user());
    assert_eq!(errno(me.read("dir/file")), EACCES);
    root.set_xattr("dir", ACCESS_LIST, list(7, (USER, 1), 0, 1, 0)).unwrap();
    assert_eq!(me.read("dir/file").unwrap(), b"x");
    assert_eq!(errno(me.write("dir/new", "x")), EACCES);
    assert_eq!(errno(me.names("dir")), EACCES);
    root.set_xattr("dir", ACCESS_LIST, list(7, (USER, 7), 0, 7, 0)).unwrap();
    assert_eq!(errno(me.write("dir/new", "x")), 0);
    assert_eq!(errno(me.remove_file("dir/file")), 0);
    assert_eq!(errno(root.as_user(stranger()).names("dir")), EACCES);
}

#[test]
fn a_default_list_stands_in_for_the_umask() {
    let layers = Layers::new(1);
    layers.dir(0, "dir").file(0, "dir/gone", "x");
    let root = rooted(&layers);
    if !has_lists(&root) {
        return;
    }
    give(&root, "dir", (0, 0), 0o777);
    root.remove_file("dir/gone").unwrap();
    assert_eq!(errno(root.set_xattr("dir/nothing", DEFAULT_LIST, list(7, (USER, 6), 5, 7, 0))), libc::ENOENT);
    let default = list(7, (USER + 1, 6), 5, 7, 0);
    root.set_xattr("dir", DEFAULT_LIST, &default).unwrap();
    let me = root.as_user(Identity { umask: 0o077, ..user() });
    for name in ["dir/gone", "dir/new"] {
        me.open(name, Open::write().create_new().mode(0o666)).unwrap();
        let attr = root.metadata(name).unwrap();
        assert_eq!((attr.uid, attr.gid, attr.perm), (USER, GROUP, 0o660), "{name}");
        let acl = root.xattr(name, ACCESS_LIST).unwrap();
        assert_eq!(acl, Some(list(6, (USER + 1, 6), 5, 6, 0)), "{name}");
        assert_eq!(errno(root.as_user(stranger()).open(name, Open::read().and_write())), 0, "{name}");
        root.remove_file(name).unwrap();
        me.create_dir(name).unwrap();
        assert_eq!(root.metadata(name).unwrap().perm, 0o770, "{name}");
        assert_eq!(root.xattr(name, DEFAULT_LIST).unwrap(), Some(default.clone()), "{name}");
        me.write(format!("{name}/deeper"), "x").unwrap();
        assert_eq!(root.metadata(format!("{name}/deeper")).unwrap().perm, 0o660, "{name}");
        root.remove_dir_all(name).unwrap();
        me.symlink("x", name).unwrap();
        assert_eq!(root.symlink_metadata(name).unwrap().perm, 0o777);
        root.remove_file(name).unwrap();
    }
    match me.open_nameless("dir", 0o666) {
        Ok(file) => assert_eq!(file.metadata().unwrap().perm, 0o660),
        Err(e) => assert_eq!(e.errno(), libc::EOPNOTSUPP),
    }
    root.remove_xattr("dir", DEFAULT_LIST).unwrap();
    me.write("dir/new", "x").unwrap();
    assert_eq!(root.metadata("dir/new").unwrap().perm, 0o600, "the umask counts again");
    assert_eq!(errno(root.set_xattr("dir/new", DEFAULT_LIST, &default)), EACCES);
}

#[test]
fn owners_that_the_disk_refuses_are_kept_all_the_same() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x").dir(0, "dir");
    let root = rooted(&layers);
    root.symlink("target", "link").unwrap();
    root.mknod("fifo", Kind::Fifo, 0o640, Device::default()).unwrap();
    root.mknod("socket", Kind::Socket, 0o640, Device::default()).unwrap();
    let device = Device { major: 1, minor: 3 };
    root.mknod("char", Kind::Char, 0o666, device).unwrap();
    root.mknod("block", Kind::Block, 0o660, Device { major: 8, minor: 300 }).unwrap();
    let all = ["file", "dir", "link", "fifo", "socket", "char", "block"];
    for (at, name) in (7000..).zip(all) {
        root.lchown(name, Some(at), Some(at + 100)).unwrap();
    }
    let check = |root: &View| {
        for (at, name) in (7000..).zip(all) {
            let attr = root.symlink_metadata(name).unwrap();
            assert_eq!((attr.uid, attr.gid), (at, at + 100), "{name}");
        }
        let kinds = all.map(|name| root.symlink_metadata(name).unwrap().kind);
        assert_eq!(
            kinds,
            [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::Char, Kind::Block]
        );
        assert_eq!(root.read_link("link").unwrap(), "target");
        assert_eq!(root.metadata("char").unwrap().device, device);
        assert_eq!(root.metadata("char").unwrap().perm, 0o644);
        assert_eq!(root.metadata("block").unwrap().device, Device { major: 8, minor: 300 });
        assert_eq!(root.read("file").unwrap(), b"x");
        assert_eq!(errno(root.open("fifo", Open::read())), libc::ENXIO);
        let listed: Vec<_> = root.read_dir("/").unwrap().into_iter().map(|e| (e.name, e.attr)).collect();
        for (name, attr) in listed {
            assert_eq!(attr, root.symlink_metadata(&name).unwrap(), "{name:?}: list and stat agree");
        }
    };
    check(&root);
    drop(root);
    let root = layers.root();
    check(&root);
    // The owner is who the tree says.
    let owner = root.as_user(Identity::user(7000, 1));
    owner.set_permissions("file", 0o600).unwrap();
    assert_eq!(errno(root.as_user(user()).set_permissions("file", 0o666)), EPERM);
    drop((owner, root));
    let root = layers.root();
    assert_eq!(root.metadata("file").unwrap().perm, 0o600);
    root.rename("char", "dir/null", Target::Replace).unwrap();
    assert_eq!(root.metadata("dir/null").unwrap().device, device);
    root.link("link", "dir/link").unwrap();
    assert_eq!(root.read_link("dir/link").unwrap(), "target");
    assert_eq!(root.symlink_metadata("dir/link").unwrap().nlink, 2);
    assert_all_given_back(root.overlay());
}

#[test]
fn only_root_gives_files_away_and_owners_choose_among_their_groups() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x");
    let root = rooted(&layers);
    give(&root, "file", (USER, GROUP), 0o644);
    let me = root.as_user(Identity { groups: vec![77], ..user() });
    assert_eq!(errno(me.chown("file", Some(1), None)), EPERM);
    assert_eq!(errno(me.chown("file", None, Some(78))), EPERM);
    assert_eq!(errno(root.as_user(stranger()).chown("file", None, Some(GROUP + 1))), EPERM);
    assert_eq!(errno(me.chown("file", Some(USER), Some(77))), 0);
    let attr = root.metadata("file").unwrap();
    assert_eq!((attr.uid, attr.gid), (USER, 77));
}

#[test]
fn a_chown_takes_setuid_and_setgid() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x").dir(0, "dir");
    let root = rooted(&layers);
    root.write("upper", "x").unwrap();
    for name in ["lower", "upper"] {
        for (perm, left) in [(0o6755, 0o755), (0o4711, 0o711), (0o2644, 0o2644), (0o1755, 0o1755)] {
            give(&root, name, (USER, GROUP), perm);
            assert_eq!(root.metadata(name).unwrap().perm, perm, "{name}");
            root.chown(name, Some(USER), Some(77)).unwrap();
            assert_eq!(root.metadata(name).unwrap().perm, left, "{name} {perm:o}");
        }
    }
    give(&root, "dir", (USER, GROUP), 0o6755);
    root.chown("dir", Some(5), Some(5)).unwrap();
    assert_eq!(root.metadata("dir").unwrap().perm, 0o6755);
}

#[test]
fn a_write_takes_setuid_and_setgid_unless_root_writes() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "0123456789").file(0, "source", "abc");
    let root = rooted(&layers);
    root.write("upper", "0123456789").unwrap();
    type Change = (&'static str, fn(&View, &str));
    let changes: [Change; 7] = [
        ("write", |v, name| v.open(name, Open::write()).unwrap().write_all_at(b"x", 0).unwrap()),
        ("append", |v, name| v.open(name, Open::append()).unwrap().write_all_at(b"x", 0).unwrap()),
        ("cut", |v, name| drop(v.open(name, Open::write().truncate()).unwrap())),
        ("truncate", |v, name| v.truncate(name, 5).unwrap()),
        ("set_len", |v, name| v.open(name, Open::write()).unwrap().set_len(20).unwrap()),
        ("allocate", |v, name| v.open(name, Open::write()).unwrap().allocate(0, 100).unwrap()),
        ("copy", |v, name| {
            let (from, to) = (v.open("source", Open::read()).unwrap(), v.open(name, Open::write()).unwrap());
            assert_eq!(from.copy_range(0, &to, 0, 3).unwrap(), 3);
        }),
    ];
    for (what, change) in changes {
        for name in ["lower", "upper"] {
            // Mode, who writes, mode left. A member of the group keeps setgid without execution.
            for (perm, who, left) in [
                (0o6777, user(), 0o777),
                (0o4666, stranger(), 0o666),
                (0o2666, stranger(), 0o666),
                (0o2666, member(), 0o2666),
                (0o6777, Identity::root(), 0o6777),
                (0o777, user(), 0o777),
            ] {
                give(&root, name, (USER, GROUP), perm);
                change(&root.as_user(who.clone()), name);
                assert_eq!(root.metadata(name).unwrap().perm, left, "{what} {name} {perm:o} by {who:?}");
            }
        }
    }
    assert_all_given_back(root.overlay());
}

#[test]
fn a_change_takes_file_capabilities_whoever_makes_it() {
    let layers = Layers::new(1);
    take_capabilities(&rooted(&layers));
    // Without privilege the layer is of this kind by now.
    let mut settings = plywood_fuse::overlay::Settings::default();
    settings.upper.overrides =
        plywood_fuse::layer::upper::OverridePolicy::Always(plywood_fuse::idmap::OverrideName::UserContainers);
    let layers = Layers::new(1);
    take_capabilities(&layers.open_with(settings).as_user(Identity::root()));
}

fn take_capabilities(root: &View) {
    const NAME: &str = "security.capability";
    /// `cap_net_raw+ep`, version 2.
    const VALUE: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    root.write("file", "x").unwrap();
    type Change = (&'static str, fn(&View));
    let changes: [Change; 5] = [
        ("write", |v| v.open("file", Open::write()).unwrap().write_all_at(b"x", 0).unwrap()),
        ("truncate", |v| v.truncate("file", 0).unwrap()),
        ("cut", |v| drop(v.open("file", Open::write().truncate()).unwrap())),
        ("chown", |v| v.chown("file", Some(USER), None).unwrap()),
        ("chgrp", |v| v.chown("file", None, Some(GROUP)).unwrap()),
    ];
    for (what, change) in changes {
        root.set_xattr("file", NAME, VALUE).unwrap();
        root.set_permissions("file", 0o755).unwrap();
        assert_eq!(root.xattr("file", NAME).unwrap().as_deref(), Some(&VALUE[..]), "before {what}");
        change(root);
        assert_eq!(root.xattr("file", NAME).unwrap(), None, "after {what}");
    }
    // A descriptor that is open already takes them too.
    let held = root.open("file", Open::write()).unwrap();
    for _ in 0..2 {
        held.write_all_at(b"x", 0).unwrap();
        root.set_xattr("file", NAME, VALUE).unwrap();
        held.write_all_at(b"x", 0).unwrap();
        assert_eq!(root.xattr("file", NAME).unwrap(), None, "after a write by an old descriptor");
    }
}

#[test]
fn modes_and_times_are_for_owners() {
    let layers = Layers::new(1);
    layers.file(0, "file", "x");
    let root = rooted(&layers);
    give(&root, "file", (USER, GROUP), 0o646);
    root.symlink("file", "link").unwrap();
    let (me, stranger) = (root.as_user(user()), root.as_user(stranger()));
    let at = |secs| Some(SetTime::At(Time { secs, nanos: 5 }));
    assert_eq!(errno(stranger.set_permissions("file", 0o777)), EPERM);
    assert_eq!(errno(stranger.set_times("file", at(1), at(1))), EPERM);
    assert_eq!(errno(stranger.set_times("file", Some(SetTime::Now), None)), EPERM);
    assert_eq!(errno(stranger.set_times("file", Some(SetTime::Now), Some(SetTime::Now))), 0, "it may write");
    me.set_times("link", at(1_000_000_000), at(-5)).unwrap();
    let attr = root.metadata("file").unwrap();
    assert_eq!(attr.atime, Time { secs: 1_000_000_000, nanos: 5 });
    assert_eq!(attr.mtime, Time { secs: -5, nanos: 5 });
    root.set_symlink_times("link", at(7), at(8)).unwrap();
    assert_eq!(root.symlink_metadata("link").unwrap().mtime.secs, 8);
    assert_eq!(root.metadata("link").unwrap().mtime.secs, -5);
    me.set_permissions("link", 0o2640).unwrap();
    assert_eq!(root.metadata("file").unwrap().perm, 0o2640, "its group is the caller's");
    root.chown("file", None, Some(1)).unwrap();
    me.set_permissions("file", 0o2640).unwrap();
    assert_eq!(root.metadata("file").unwrap().perm, 0o640, "its group is not");
}

#[test]
fn a_mode_that_forbids_all_can_be_set_and_taken_back() {
    let layers = Layers::new(1);
    layers.file(0, "lower", "x").dir(0, "dir").file(0, "dir/in", "y");
    let root = layers.root();
    root.write("upper", "x").unwrap();
    // They belong to whoever runs the test, so the disk has nothing to refuse.
    for name in ["lower", "upper"] {
        let owner = root.metadata(name).unwrap();
        let me = root.as_user(Identity::user(owner.uid, owner.gid));
        for perm in [0, 0o200, 0o444, 0o4000] {
            me.set_permissions(name, perm).unwrap();
            assert_eq!(root.metadata(name).unwrap().perm, perm, "{name}");
            assert_eq!(root.read(name).unwrap(), b"x", "{name} {perm:o}");
            root.open(name, Open::write()).unwrap().write_all_at(b"x", 0).unwrap();
            root.rename(name, "other", Target::Replace).unwrap();
            root.rename("other", name, Target::Replace).unwrap();
            assert!(root.read_dir("/").unwrap().iter().any(|e| e.attr.perm == perm), "{name} {perm:o}");
        }
        me.set_permissions(name, 0o644).unwrap();
    }
    root.set_permissions("dir", 0).unwrap();
    assert_eq!(root.names("dir").unwrap(), ["in"]);
    assert_eq!(root.read("dir/in").unwrap(), b"y");
    root.write("dir/new", "z").unwrap();
    root.set_permissions("dir", 0o555).unwrap();
    root.write("dir/newer", "z").unwrap();
    drop(root);
    let root = layers.root();
    root.remove_dir_all("dir").unwrap();
    assert_all_given_back(root.overlay());
}

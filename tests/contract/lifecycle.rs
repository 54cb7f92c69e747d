//! Rules of the contract that containerd's suite does not ask for.

use crate::suite::{mkdir, read, write};
use crate::world::World;
use plywood::backend::BackendName;
use plywood::error::{ErrorKind, Result};
use plywood::filter::Filters;
use plywood::snapshotter::{BackendChoice, Snapshotter};
use plywood::types::{Labels, MAX_NAME_BYTES, Realm, SnapshotKind};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|e| e.kind())
}

fn entries(world: &World) -> Vec<PathBuf> {
    let dir = world.snapshotter.layout().snapshots();
    let mut names: Vec<_> =
        fs::read_dir(dir).expect("list").map(|n| n.expect("name").file_name().into()).collect();
    names.sort();
    names
}

pub fn committed_snapshots_have_no_mounts(world: &World) {
    world.layer("1", "", |_| ());
    assert_eq!(kind(world.snapshotter.mounts("1")), Some(ErrorKind::FailedPrecondition));
    assert_eq!(kind(world.snapshotter.mounts("nobody")), Some(ErrorKind::NotFound));
}

/// S9 S10 S11 S59 S60
pub fn mounts_are_the_same_each_time_and_after_opening_again(world: &World) {
    world.layer("1", "", |root| write(&root.join("a"), "a"));
    world.layer("2", "1", |root| write(&root.join("b"), "b"));
    let mut made = Vec::new();
    for (key, parent) in [("a", ""), ("b", "1"), ("c", "2")] {
        made.push((key.to_owned(), world.prepare(key, parent)));
        let view = format!("view-{key}");
        let mounts = world.view(&view, parent);
        made.push((view, mounts));
    }
    for (key, mounts) in &made {
        assert_eq!(mounts.len(), 1, "exactly one mount: {mounts:?}");
        let read_only = mounts[0].options.iter().any(|o| o == "ro");
        let has_upper = mounts[0].options.iter().any(|o| o.starts_with("upperdir="));
        if key.starts_with("view") {
            let overlay = mounts[0].kind == "overlay";
            assert!((read_only || overlay) && !has_upper, "{key}: {mounts:?}");
        } else {
            assert!(
                !read_only,
                "a client would take it for content that is there already: {key}: {mounts:?}"
            );
        }
        assert_eq!(&world.snapshotter.mounts(key).unwrap_or_else(|e| panic!("{e}")), mounts);
    }
    world.snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    let again = Snapshotter::open(world.settings().clone()).unwrap_or_else(|e| panic!("{e}"));
    for (key, mounts) in &made {
        assert_eq!(&again.mounts(key).unwrap_or_else(|e| panic!("{e}")), mounts, "{key}");
    }
    again.close().unwrap_or_else(|e| panic!("{e}"));
}

/// S14 S15 S17
pub fn commit_replaces_labels_and_times(world: &World) {
    let of = |k: &str| Labels::from([(k.to_owned(), "v".to_owned())]);
    world.layer("base", "", |_| ());
    world.prepare_with("active", "base", of("old"));
    let active = world.snapshotter.stat("active").unwrap_or_else(|e| panic!("{e}"));
    world.snapshotter.commit("name", "active", of("new"), None, &()).unwrap_or_else(|e| panic!("{e}"));
    let committed = world.snapshotter.stat("name").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(committed.labels, of("new"));
    assert_eq!(committed.parent, "base");
    assert!(committed.created > active.created);
    assert_eq!(committed.created, committed.updated);
}

/// S12 S13 S42
pub fn commit_of_what_cannot_be_committed(world: &World) {
    let commit = |name: &str, key: &str, parent: Option<&str>| {
        kind(world.snapshotter.commit(name, key, Labels::new(), parent, &()))
    };
    world.layer("base", "", |_| ());
    world.view("view", "base");
    world.prepare("active", "base");
    assert_eq!(commit("x", "nobody", None), Some(ErrorKind::NotFound));
    assert_eq!(commit("x", "view", None), Some(ErrorKind::FailedPrecondition));
    assert_eq!(commit("x", "base", None), Some(ErrorKind::FailedPrecondition));
    assert_eq!(commit("", "active", None), Some(ErrorKind::InvalidArgument));
    world.layer("other", "", |_| ());
    assert_eq!(commit("x", "active", Some("other")), Some(ErrorKind::InvalidArgument));
    assert_eq!(commit("x", "active", Some("base")), None);
    assert_eq!(kind(world.snapshotter.stat("active")), Some(ErrorKind::NotFound));
}

/// S4 S43
pub fn only_committed_snapshots_are_parents(world: &World) {
    world.prepare("active", "");
    world.view("view", "");
    let before = entries(world);
    for (parent, expected) in [
        ("nobody", ErrorKind::NotFound),
        ("active", ErrorKind::InvalidArgument),
        ("view", ErrorKind::InvalidArgument),
    ] {
        let prepared = world.snapshotter.prepare("new", Some(parent), Labels::new(), &());
        assert_eq!(kind(prepared), Some(expected), "{parent}");
        let viewed = world.snapshotter.view("new", Some(parent), Labels::new(), &());
        assert_eq!(kind(viewed), Some(expected), "{parent}");
    }
    assert_eq!(entries(world), before);
}

/// S7
pub fn odd_keys_never_become_paths(world: &World) {
    let long = "x".repeat(MAX_NAME_BYTES);
    let similar = format!("{}y", &long[1..]);
    let keys = [
        "../../etc/passwd",
        "/",
        "..",
        "k8s.io/42/extract-1-AbCd sha256:0",
        "new\nline",
        "ä/ö\u{1f600}",
        "*",
        " ",
        "-rf",
        &long,
        &similar,
    ];
    for key in keys {
        world.prepare(key, "");
        assert_eq!(world.snapshotter.stat(key).map(|i| i.name).ok().as_deref(), Some(key));
    }
    assert_eq!(world.snapshotter.list(&Filters::everything()).map(|l| l.len()).ok(), Some(keys.len()));
    for name in entries(world) {
        assert!(name.to_str().is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())), "{}", name.display());
    }
    for key in keys {
        world.remove(key);
    }
    for bad in ["", "a\0b", &format!("{long}x")] {
        let refused = world.snapshotter.prepare(bad, None, Labels::new(), &());
        assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument));
    }
}

/// S61
pub fn usage_counts_own_resources_only(world: &World) {
    let usage = |key: &str| world.snapshotter.usage(key, &()).unwrap_or_else(|e| panic!("{e}"));
    let mib = 1 << 20;
    world.layer("big", "", |root| {
        fs::write(root.join("big"), vec![7; 4 * mib]).expect("write");
        fs::hard_link(root.join("big"), root.join("same")).expect("ln");
    });
    let big = usage("big");
    assert!(big.size_bytes >= 4 << 20 && big.size_bytes < 5 << 20, "hard links count once: {big:?}");
    world.view("view", "big");
    assert_eq!((usage("view").size_bytes, usage("view").inodes), (0, 0));
    let mounts = world.prepare("next", "big");
    let shown = world.show(&mounts);
    fs::write(shown.path().join("small"), vec![7; mib]).expect("write");
    shown.end();
    // A snapshot of btrfs knows its blocks once they are on the disk.
    assert!(std::process::Command::new("sync").status().is_ok_and(|s| s.success()));
    let next = usage("next");
    let own = if world.backend() == BackendName::Native { 5 << 20 } else { 1 << 20 };
    assert!(next.size_bytes >= own && next.size_bytes < own + (mib as u64), "{next:?}");
    world.commit("next-name", "next");
    assert_eq!(usage("next-name"), next);
    assert_eq!(kind(world.snapshotter.usage("nobody", &())), Some(ErrorKind::NotFound));
}

/// S29 S54 S55 S58
pub fn a_failed_create_leaves_nothing(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    let before = entries(world);
    for point in ["c.after_mkdir", "c.after_fill", "c.after_copy", "c.after_rename", "c.before_commit"] {
        // Points are of the process: only this thread's call may meet them, so others are told apart by the error.
        plywood::fail::arm(&format!("{point}=error:28"));
        let failed = world.snapshotter.prepare("key", Some("base"), Labels::new(), &());
        plywood::fail::arm("");
        match failed {
            Err(e) => assert_eq!(e.kind(), ErrorKind::NoSpace, "{point}: {e}"),
            Ok(_) => world.remove("key"),
        }
        assert_eq!(entries(world), before, "{point}");
        assert_eq!(kind(world.snapshotter.stat("key")), Some(ErrorKind::NotFound), "{point}");
    }
    world.prepare("key", "base");
}

/// S18 S26
pub fn cleanup_deletes_what_no_row_names(world: &World) {
    world.layer("1", "", |root| write(&root.join("a"), "a"));
    let dir = world.snapshotter.layout().snapshots();
    for garbage in ["new-900-1-1-1/fs/deep", "rm-901-1-1-1/fs", "902/fs/x"] {
        mkdir(&dir.join(garbage), 0o700);
        write(&dir.join(garbage).join("file"), "garbage");
    }
    mkdir(&dir.join("not-ours"), 0o700);
    let report = world.snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((report.deleted, report.failed), (3, Vec::new()));
    assert_eq!(entries(world).len(), 2);
    fs::remove_dir(dir.join("not-ours")).expect("what is not ours stays");
    world.look("1", |root| assert_eq!(read(&root.join("a")), "a"));
}

pub fn id_mappings_give_the_root_to_the_mapped_owner(world: &World) {
    let of = |uid: &str, gid: &str| {
        Labels::from([
            ("containerd.io/snapshot/uidmapping".to_owned(), uid.to_owned()),
            ("containerd.io/snapshot/gidmapping".to_owned(), gid.to_owned()),
        ])
    };
    let before = entries(world);
    for (uid, gid) in
        [("0", "0:1:1"), ("1:1000:10", "0:1000:10"), ("0:4294967295:1", "0:1:1"), ("a:b:c", "0:1:1")]
    {
        let refused = world.snapshotter.prepare("bad", None, of(uid, gid), &());
        assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument), "{uid} {gid}");
    }
    assert_eq!(entries(world), before);
    world.prepare_with("mapped", "", of("0:1000:100", "0:2000:100"));
    let layers = world.snapshotter.layers("mapped").unwrap_or_else(|e| panic!("{e}"));
    let root = fs::metadata(&layers.lowers[0]).expect("stat");
    assert_eq!((root.uid(), root.gid()), (1000, 2000));
}

/// S37: decided the other way, with an option for the strict one.
pub fn a_view_without_parent_is_empty(world: &World) {
    let mounts = world.view("view", "");
    let shown = world.show(&mounts);
    assert_eq!(fs::read_dir(shown.path()).expect("list").count(), 0);
    assert!(fs::write(shown.path().join("x"), "x").is_err());
    shown.end();
    world.snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    let mut strict = world.settings().clone();
    strict.views_require_parent = true;
    let strict = Snapshotter::open(strict).unwrap_or_else(|e| panic!("{e}"));
    let refused = strict.view("other", None, Labels::new(), &());
    assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument));
    strict.close().unwrap_or_else(|e| panic!("{e}"));
}

pub fn rebase_gives_a_parent_where_the_backend_can(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    let mounts = world.prepare("loose", "");
    let shown = world.show(&mounts);
    write(&shown.path().join("b"), "b");
    shown.end();
    world.prepare("active", "");
    let rebase =
        |key: &str, parent: &str| world.snapshotter.commit("rebased", key, Labels::new(), Some(parent), &());
    let stacked = matches!(world.backend(), BackendName::Fuse | BackendName::Overlay);
    if !stacked {
        assert_eq!(kind(rebase("loose", "base")), Some(ErrorKind::FailedPrecondition));
        return;
    }
    assert_eq!(kind(rebase("loose", "nobody")), Some(ErrorKind::NotFound));
    assert_eq!(kind(rebase("loose", "active")), Some(ErrorKind::FailedPrecondition));
    assert_eq!(kind(rebase("loose", "base")), None);
    assert_eq!(world.snapshotter.stat("rebased").map(|i| i.parent).ok().as_deref(), Some("base"));
    world.look("rebased", |root| {
        assert_eq!((read(&root.join("a")), read(&root.join("b"))), ("a".to_owned(), "b".to_owned()));
    });
    assert_eq!(kind(world.snapshotter.remove("base")), Some(ErrorKind::FailedPrecondition));
}

/// S1 S46 S47
pub fn a_store_of_another_backend_is_refused(world: &World) {
    world.layer("1", "", |root| write(&root.join("a"), "a"));
    world.snapshotter.close().unwrap_or_else(|e| panic!("{e}"));
    for other in BackendName::ALL {
        let mut settings = world.settings().clone();
        settings.backend = BackendChoice::Named(other);
        let opened = Snapshotter::open(settings);
        if world.backend().shares_directories_with(other) {
            let opened = opened.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(opened.stat("1").map(|i| i.kind).ok(), Some(SnapshotKind::Committed));
            opened.close().unwrap_or_else(|e| panic!("{e}"));
        } else {
            let refused = opened.err().unwrap_or_else(|| panic!("{other} cannot read this store"));
            assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
            assert!(refused.to_string().contains("--backend"), "{refused}");
        }
    }
    let again = Snapshotter::open(world.settings().clone()).unwrap_or_else(|e| panic!("{e}"));
    again.close().unwrap_or_else(|e| panic!("{e}"));
}

pub fn realms_do_not_see_each_other(world: &World) {
    world.layer("name", "", |root| write(&root.join("a"), "cli"));
    let mut settings = world.settings().clone();
    settings.realm = Realm::containerd();
    let other = Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(other.list(&Filters::everything()).unwrap_or_else(|e| panic!("{e}")), []);
    for refused in [
        kind(other.remove("name")),
        kind(other.stat("name")),
        kind(other.prepare("key", Some("name"), Labels::new(), &())),
    ] {
        assert_eq!(refused, Some(ErrorKind::NotFound));
    }
    other.prepare("name", None, Labels::new(), &()).unwrap_or_else(|e| panic!("{e}"));
    other.remove("name").unwrap_or_else(|e| panic!("{e}"));
    world.look("name", |root| assert_eq!(read(&root.join("a")), "cli"));
}

/// S70
pub fn a_mounted_snapshot_is_not_removed(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    world.layer("more", "base", |root| write(&root.join("b"), "b"));
    for parent in ["", "base", "more"] {
        world.prepare("key", parent);
        let target = world.dir("target");
        let mounted = world.snapshotter.mount("key", &target).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(mounted.target, target.canonicalize().expect("target"));
        write(&target.join("new"), "new");
        let refused = world.snapshotter.remove("key").expect_err("it is mounted");
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains(target.to_str().expect("text")), "{refused}");
        world.snapshotter.unmount("key").unwrap_or_else(|e| panic!("{e}"));
        assert!(!target.join("new").exists(), "unmounted");
        world.remove("key");
    }
}

/// What is logged while `work` runs, on this thread.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    let lines = lines.0.lock().expect("no panic").clone();
    String::from_utf8(lines).expect("text")
}

/// S28 S30: what could not be undone is told in the log, with the path where it is now; the caller hears the first error.
pub fn a_failing_undo_does_not_hide_the_first_error(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    let before = entries(world);
    let log = logged(|| {
        plywood::fail::arm("c.before_commit=error:28,r.mid_delete=error:5");
        let failed = world.snapshotter.prepare("key", Some("base"), Labels::new(), &());
        plywood::fail::arm("");
        assert_eq!(kind(failed), Some(ErrorKind::NoSpace));
    });
    let left: Vec<_> = entries(world).into_iter().filter(|name| !before.contains(name)).collect();
    // Deleting a subvolume is one step, which has no middle.
    if world.backend() == BackendName::Btrfs {
        assert_eq!(left, Vec::<PathBuf>::new());
        return;
    }
    assert_eq!(left.len(), 1, "{left:?}");
    let name = left[0].to_str().expect("text");
    assert!(name.starts_with("rm-") && log.contains(name) && log.contains("WARN"), "{name}: {log}");
    let report = world.snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.deleted, 1);
}

/// S18 S30: trouble with the directory of a removed snapshot is told in the log, and not to the caller.
pub fn a_removal_that_cannot_delete_succeeds_and_is_logged(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    world.prepare("key", "base");
    let log = logged(|| {
        plywood::fail::arm("r.after_rename=error:5");
        world.remove("key");
        plywood::fail::arm("");
    });
    assert!(log.contains("until the next cleanup"), "{log}");
    assert_eq!(kind(world.snapshotter.stat("key")), Some(ErrorKind::NotFound));
    let report = world.snapshotter.cleanup().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.deleted, 1);
}

fn run(program: &str, words: &[&std::ffi::OsStr]) {
    let done =
        std::process::Command::new(program).args(words).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A tmpfs of somebody else; gone with its scope.
struct Foreign(PathBuf);

impl Foreign {
    fn mount(at: PathBuf) -> Foreign {
        run("mount", &["-t".as_ref(), "tmpfs".as_ref(), "tmpfs".as_ref(), at.as_os_str()]);
        Foreign(at)
    }

    fn is_there(&self) -> bool {
        plywood_fuse::sys::mount::mounted_at(&self.0)
            .is_ok_and(|there| there.is_some_and(|(kind, _)| kind == "tmpfs"))
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub fn what_somebody_else_mounted_is_not_unmounted(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    world.prepare("key", "base");
    // Below a directory, by the name of a key, and below a mount of ours.
    let foreign = Foreign::mount(world.dir("host/disk"));
    assert!(world.snapshotter.unmount(world.dir("host")).is_ok_and(|ended| ended.is_empty()));
    assert!(foreign.is_there());
    let refused = world.snapshotter.unmount(&foreign.0);
    assert_eq!(kind(refused), Some(ErrorKind::FailedPrecondition));
    assert!(foreign.is_there());
    world.snapshotter.mount("key", &foreign.0).unwrap_or_else(|e| panic!("{e}"));
    assert!(!foreign.is_there());
    assert_eq!(world.snapshotter.unmount("key").unwrap_or_else(|e| panic!("{e}")).len(), 1);
    assert!(foreign.is_there(), "what was there before is there again");
    assert_eq!(world.snapshotter.unmount("key").unwrap_or_else(|e| panic!("{e}")), Vec::<PathBuf>::new());
    assert!(foreign.is_there());
}

pub fn a_mount_that_is_covered_or_moved_is_still_one(world: &World) {
    world.layer("base", "", |root| write(&root.join("a"), "a"));
    for key in ["covered", "moved"] {
        world.prepare(key, "base");
    }
    let target = world.dir("target");
    world.snapshotter.mount("covered", &target).unwrap_or_else(|e| panic!("{e}"));
    let foreign = Foreign::mount(target.clone());
    assert_eq!(kind(world.snapshotter.remove("covered")), Some(ErrorKind::Busy));
    assert_eq!(kind(world.snapshotter.unmount("covered")), Some(ErrorKind::Busy));
    assert!(foreign.is_there());
    drop(foreign);
    world.snapshotter.unmount("covered").unwrap_or_else(|e| panic!("{e}"));
    world.remove("covered");

    let outer = world.dir("outer");
    world.snapshotter.mount("moved", &world.dir("outer/inner")).unwrap_or_else(|e| panic!("{e}"));
    let elsewhere = outer.with_file_name("elsewhere");
    fs::rename(&outer, &elsewhere).expect("a directory above a mount point can be renamed");
    assert_eq!(kind(world.snapshotter.remove("moved")), Some(ErrorKind::Busy));
    fs::rename(&elsewhere, &outer).expect("and back");
    world.snapshotter.unmount("moved").unwrap_or_else(|e| panic!("{e}"));
    world.remove("moved");
}

pub fn a_store_that_leads_elsewhere_is_not_opened(world: &World) {
    let victim = world.dir("victim");
    fs::create_dir(victim.join("12")).expect("mkdir");
    let open = |root: PathBuf| {
        let mut settings = world.settings().clone();
        settings.root = root;
        Snapshotter::open(settings).map(drop)
    };
    let evil = world.settings().root.join("../evil");
    fs::create_dir(&evil).expect("mkdir");
    std::os::unix::fs::symlink(&victim, evil.join("snapshots")).expect("ln -s");
    assert_eq!(kind(open(evil)), Some(ErrorKind::Corrupt));
    let foreign = world.settings().root.join("../foreign");
    fs::create_dir(&foreign).expect("mkdir");
    std::os::unix::fs::chown(&foreign, Some(1), Some(1)).expect("chown");
    assert_eq!(kind(open(foreign)), Some(ErrorKind::PermissionDenied));
    assert!(victim.join("12").is_dir());
    assert_ne!(fs::metadata(&victim).expect("stat").mode() & 0o777, 0o700);
}

/// S49: a layer travels: unpacked into a snapshot, committed, changed, the difference packed, and unpacked in another store.
/// Archives are tar(1)'s here.
pub fn layers_travel_from_store_to_store(world: &World) {
    let tar = |words: &[&str], dir: &std::path::Path, archive: &std::path::Path| {
        let mut all: Vec<&std::ffi::OsStr> = vec!["--xattrs".as_ref(), "--xattrs-include=user.*".as_ref()];
        all.extend([
            "--numeric-owner".as_ref(),
            "-C".as_ref(),
            dir.as_os_str(),
            "-f".as_ref(),
            archive.as_os_str(),
        ]);
        all.extend(words.iter().map(|w| std::ffi::OsStr::new(*w)));
        run("tar", &all);
    };
    // Pull: an archive of somebody's tree.
    let origin = world.dir("origin");
    mkdir(&origin.join("etc/sub"), 0o750);
    write(&origin.join("etc/passwd"), "root");
    write(&origin.join("gone"), "gone");
    fs::hard_link(origin.join("etc/passwd"), origin.join("etc/sub/same")).expect("ln");
    std::os::unix::fs::symlink("etc/passwd", origin.join("link")).expect("ln -s");
    std::os::unix::fs::chown(origin.join("gone"), Some(7), Some(8)).expect("chown");
    let base = world.dir("archives").join("base.tar");
    tar(&["-c", "."], &origin, &base);
    // Unpack and commit, then change and commit.
    world.layer("base", "", |root| tar(&["-xp"], root, &base));
    world.layer("top", "base", |root| {
        fs::remove_file(root.join("gone")).expect("rm");
        fs::remove_file(root.join("link")).expect("rm");
        mkdir(&root.join("link"), 0o711);
        write(&root.join("link/inside"), "now a directory");
        write(&root.join("etc/sub/new"), "new");
        std::os::unix::fs::chown(root.join("etc/sub/new"), Some(3), Some(4)).expect("chown");
    });
    // Diff: what a walk of both finds.
    let lower = world.look("base", crate::tree::read);
    let upper = world.look("top", crate::tree::read);
    let deleted: Vec<_> = lower
        .keys()
        .filter(|p| upper.get(*p).is_none_or(|u| (u.mode ^ lower[*p].mode) & libc::S_IFMT != 0))
        .collect();
    let changed: Vec<String> = upper
        .iter()
        .filter(|(path, entry)| !path.as_os_str().is_empty() && lower.get(*path) != Some(entry))
        .map(|(path, _)| path.to_str().expect("text").to_owned())
        .collect();
    assert_eq!(deleted, [std::path::Path::new("gone"), std::path::Path::new("link")]);
    assert!(
        changed.contains(&"link/inside".to_owned()) && !changed.contains(&"etc/passwd".to_owned()),
        "{changed:?}"
    );
    let diff = base.with_file_name("diff.tar");
    world.look("top", |root| {
        let mut words = vec!["-c", "--no-recursion"];
        words.extend(changed.iter().map(String::as_str));
        tar(&words, root, &diff);
    });
    // Push: another store makes the same of it.
    let mut settings = world.settings().clone();
    settings.root = world.settings().root.join("../another");
    let another = Snapshotter::open(settings).unwrap_or_else(|e| panic!("{e}"));
    let none = Labels::new;
    let good = |e: plywood::error::Error| -> Vec<plywood::types::Mount> { panic!("{e}") };
    let shown = world.show(&another.prepare("a", None, none(), &()).unwrap_or_else(good));
    tar(&["-xp"], shown.path(), &base);
    shown.end();
    another.commit("base", "a", none(), None, &()).unwrap_or_else(|e| panic!("{e}"));
    let shown = world.show(&another.prepare("b", Some("base"), none(), &()).unwrap_or_else(good));
    for path in deleted {
        fs::remove_file(shown.path().join(path)).expect("rm");
    }
    tar(&["-xp"], shown.path(), &diff);
    shown.end();
    another.commit("top", "b", none(), None, &()).unwrap_or_else(|e| panic!("{e}"));
    let shown = world.show(&another.view("c", Some("top"), none(), &()).unwrap_or_else(good));
    // An archive has whole seconds.
    let seconds = |mut tree: std::collections::BTreeMap<PathBuf, crate::tree::Entry>| {
        tree.values_mut().for_each(|entry| entry.mtime.1 = 0);
        tree
    };
    let theirs = seconds(crate::tree::read(shown.path()));
    shown.end();
    crate::tree::assert_equal(&seconds(upper), &theirs, "another store");
    another.close().unwrap_or_else(|e| panic!("{e}"));
}

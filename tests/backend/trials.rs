//! Trying the backends, and mounting what they describe.

use crate::support::*;
use plywood::backend::open::{BackendSettings, Trial, open_working, try_all, try_one};
use plywood::backend::{Backend, BackendName};
use plywood::error::ErrorKind;
use plywood::layout::Layout;
use plywood::sys::mount::in_private_namespace;
use plywood::types::Mount;
use plywood::types::SnapshotKind::{Active, View};
use plywood_fuse::sys::mount::{Detach, unmount};
use plywood_fuse::testing::TempDir;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program `plywood-fuse` as it is now.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        if let Some(given) = std::env::var_os("PLYWOOD_TEST_PROGRAM") {
            return PathBuf::from(given);
        }
        let me = std::env::current_exe().expect("this program has a name");
        let profile = me.ancestors().nth(2).expect("it is in PROFILE/deps");
        let target = profile.parent().expect("PROFILE is in the target directory");
        let mut build = Command::new(env!("CARGO"));
        build.args([
            "build",
            "--quiet",
            "--package",
            "plywood-fuse",
            "--bin",
            "plywood-fuse",
            "--target-dir",
        ]);
        build.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo").success(), "plywood-fuse cannot be built");
        profile.join("plywood-fuse")
    };
    PROGRAM.get_or_init(find).clone()
}

fn settings() -> BackendSettings {
    BackendSettings { fuse_program: program(), ..quick() }
}

fn empty_store() -> (TempDir, Layout) {
    let temp = TempDir::new();
    let layout = Layout::create(&temp.path().join("store")).expect("a store");
    (temp, layout)
}

fn of(trials: &[Trial], name: BackendName) -> &Trial {
    trials.iter().find(|t| t.backend == name).expect("all are tried")
}

/// What a trial must not leave behind.
fn nothing_is_left(layout: &Layout) {
    assert_eq!(std::fs::read_dir(layout.snapshots()).expect("a directory").count(), 0);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&layout.root().display().to_string()), "{mounts}");
}

fn explained(trial: &Trial) {
    assert!(trial.works || (trial.why.len() > 20 && !trial.why.contains('\n')), "{trial:?}");
}

// S65: what does not work says so, and why.
#[test]
fn as_root_every_backend_works_that_the_disk_allows() {
    if !may_be_root() {
        return;
    }
    let (_temp, layout) = empty_store();
    let trials = try_all(&layout, &settings());
    let order: Vec<BackendName> = trials.iter().map(|t| t.backend).collect();
    assert_eq!(order, BackendName::ALL);
    trials.iter().for_each(explained);
    for name in PLAIN {
        assert!(of(&trials, name).works, "{:?}", of(&trials, name));
    }
    let dir = std::fs::File::open(layout.root()).expect("the store");
    let is_btrfs = plywood::sys::btrfs::is_btrfs(dir.as_fd()).expect("a kind of disk");
    let btrfs = of(&trials, BackendName::Btrfs);
    assert_eq!(btrfs.works, is_btrfs, "{btrfs:?}");
    assert!(is_btrfs || btrfs.why.contains("not on btrfs"), "{btrfs:?}");
    assert!(of(&trials, BackendName::Native).why.contains("reflink"));
    nothing_is_left(&layout);
}

// S1, S65: the program is missing, an option is wrong.
#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let (_temp, layout) = empty_store();
    let missing = BackendSettings { fuse_program: "/no/such/program".into(), ..quick() };
    let nowhere = BackendSettings { fuse_program: "no-such-plywood-fuse".into(), ..quick() };
    let cases = [(&missing, "fuse_program"), (&nowhere, "install")];
    for (settings, word) in cases {
        let trial = try_one(BackendName::Fuse, &layout, settings);
        assert!(!trial.works && trial.why.contains(word), "{trial:?}");
        let refused = open_working(BackendName::Fuse, &layout, settings).err().expect("it does not work");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert!(refused.to_string().contains("not supported here"), "{refused}");
    }
    for settings in [
        BackendSettings { overlay_options: vec!["a,b".into()], ..quick() },
        BackendSettings { overlay_options: vec!["upperdir=/x".into()], ..quick() },
        BackendSettings { fuse_type: "fuse3/x".into(), ..quick() },
    ] {
        let refused = plywood::backend::open::open(BackendName::Native, &layout, &settings).err();
        assert_eq!(refused.map(|e| e.kind()), Some(ErrorKind::InvalidArgument), "{settings:?}");
    }
    nothing_is_left(&layout);
}

#[test]
fn a_kernel_that_does_not_know_an_option_is_told_of() {
    if !may_be_root() {
        return;
    }
    let (_temp, layout) = empty_store();
    let settings = BackendSettings { overlay_options: vec!["no_such_option".into()], ..settings() };
    let trial = try_one(BackendName::Overlay, &layout, &settings);
    assert!(!trial.works && trial.why.contains("overlay_options"), "{trial:?}");
    nothing_is_left(&layout);
}

#[test]
fn a_plain_user_mounts_through_fusermount_or_is_told_why_not() {
    const NAME: &str = "trials::a_plain_user_mounts_through_fusermount_or_is_told_why_not";
    if is_root() && again().is_none() {
        return again_as_nobody(NAME, &[]);
    }
    let (_temp, layout) = empty_store();
    let trials = try_all(&layout, &settings());
    trials.iter().for_each(explained);
    assert!(of(&trials, BackendName::Native).works);
    let overlay = of(&trials, BackendName::Overlay);
    assert!(!overlay.works && overlay.why.contains("user namespace"), "{overlay:?}");
    let fuse = of(&trials, BackendName::Fuse);
    let has_helper = Command::new("fusermount3").arg("-V").output().is_ok_and(|o| o.status.success());
    assert!(fuse.works == has_helper || fuse.why.contains("fusermount3"), "{fuse:?}");
    nothing_is_left(&layout);
}

#[test]
fn in_a_user_namespace_overlay_keeps_its_marks_below_user() {
    const NAME: &str = "trials::in_a_user_namespace_overlay_keeps_its_marks_below_user";
    if again().is_none() {
        if plywood_fuse::testing::suite::may_unshare() {
            again_as_nobody(NAME, &["unshare", "--user", "--map-root-user", "--mount", "--"]);
        }
        return;
    }
    let (_temp, layout) = empty_store();
    let trials = try_all(&layout, &settings());
    trials.iter().for_each(explained);
    let overlay = of(&trials, BackendName::Overlay);
    assert!(overlay.works, "{overlay:?}");
    let fuse = of(&trials, BackendName::Fuse);
    assert!(fuse.works || fuse.why.contains("/dev/fuse"), "{fuse:?}");
    nothing_is_left(&layout);
    let store = Store::with(BackendName::Overlay, &settings());
    lives_mounted(&store);
}

fn again_as_nobody(test: &str, before: &[&str]) {
    let elsewhere = Elsewhere::new(Who::Nobody);
    let copy = elsewhere.temp.path().join("plywood-fuse");
    plywood_fuse::testing::copy_program(program().as_ref(), &copy);
    let status = elsewhere.run(test, "nobody", before, &[("PLYWOOD_TEST_PROGRAM", OsStr::new(&copy))]);
    assert!(status.success(), "{status}");
}

/// Carries out what a backend describes, and takes it away again.
fn mounted<T>(mounts: &[Mount], target: &Path, look: impl FnOnce(&Path) -> T) -> T {
    let [mount] = mounts else { panic!("exactly one mount: {mounts:?}") };
    let mut command = if mount.kind.starts_with("fuse3.") {
        Command::new(program())
    } else {
        let mut command = Command::new("mount");
        command.args(["-t", if mount.kind == "bind" { "none" } else { &mount.kind }]);
        command
    };
    command.arg(&mount.source).arg(target).arg("-o").arg(mount.options.join(","));
    let output = command.output().expect("the program can be started");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let seen = look(target);
    unmount(target, Detach::Lazily).expect("unmount");
    seen
}

fn read(dir: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(name)).ok()
}

/// Three layers, each seen through the mounts of the backend.
fn lives_mounted(store: &Store) {
    in_private_namespace(|| {
        let temp = TempDir::new();
        let target = temp.path().to_owned();
        let show = |id, kind, parents: &[u64], look: &dyn Fn(&Path)| {
            let chain = ids(parents);
            let mounts = store.backend.mounts(request(id, kind, &chain)).expect("mounts");
            let again = store.backend.mounts(request(id, kind, &chain)).expect("mounts");
            assert_eq!(mounts, again, "not the same each time");
            mounted(&mounts, &target, look);
        };
        store.make(1, Active, &[]);
        show(1, Active, &[], &|dir| {
            std::fs::write(dir.join("a"), "1").expect("a file");
            std::fs::write(dir.join("b"), "1").expect("a file");
        });
        store.make(2, Active, &[1]);
        show(2, Active, &[1], &|dir| {
            assert_eq!(read(dir, "a").as_deref(), Some("1"));
            std::fs::write(dir.join("a"), "2").expect("a file");
            std::fs::remove_file(dir.join("b")).expect("a file");
        });
        store.backend.committed(plywood::types::SnapshotId(2));
        store.make(3, Active, &[2, 1]);
        show(3, Active, &[2, 1], &|dir| std::fs::write(dir.join("c"), "3").expect("a file"));
        let read_only = |dir: &Path| {
            let refused = std::fs::write(dir.join("new"), "x").expect_err("a view");
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        };
        for (parents, expected) in [
            (&[1][..], [Some("1"), Some("1"), None]),
            (&[2, 1], [Some("2"), None, None]),
            (&[3, 2, 1], [Some("2"), None, Some("3")]),
        ] {
            show(9, View, parents, &|dir| {
                let seen = ["a", "b", "c"].map(|name| read(dir, name));
                assert_eq!(seen.each_ref().map(Option::as_deref), expected, "{parents:?}");
                read_only(dir);
            });
        }
        // S37 as decided: an empty view is one, too.
        store.make(4, View, &[]);
        show(4, View, &[], &|dir| {
            assert_eq!(std::fs::read_dir(dir).expect("a directory").count(), 0);
            read_only(dir);
        });
    })
    .expect("a mount namespace");
}

// S3, S5, S10, S11, S36, S59: a chain looks the same on all of them.
#[test]
fn what_is_described_can_be_mounted() {
    if !may_be_root() {
        return;
    }
    for name in PLAIN {
        lives_mounted(&Store::with(name, &settings()));
    }
}

#[test]
fn a_store_changes_between_fuse_and_overlay_without_conversion() {
    if !may_be_root() {
        return;
    }
    let store = Store::with(BackendName::Fuse, &settings());
    lives_mounted(&store);
    let overlay =
        plywood::backend::open::open(BackendName::Overlay, &store.layout, &settings()).expect("open");
    in_private_namespace(|| {
        let temp = TempDir::new();
        let look = |backend: &dyn Backend| {
            let chain = ids(&[3, 2, 1]);
            let mounts = backend.mounts(request(9, View, &chain)).expect("mounts");
            mounted(&mounts, temp.path(), |dir| ["a", "b", "c"].map(|name| read(dir, name)))
        };
        assert_eq!(look(&*overlay), look(&*store.backend));
    })
    .expect("a mount namespace");
}

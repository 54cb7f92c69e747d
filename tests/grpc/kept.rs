//! FUSE that plywood mounts itself, for clients in its mount namespace. Needs /dev/fuse; fails without, unless
//! PLYWOOD_SKIP_MOUNTED says to leave such tests out.

use crate::support::{Daemon, commit, layer, mounts, prepare, remove, stat, view, wait_for};
use plywood::backend::BackendName;
use plywood::grpc::server::ServeSettings;
use plywood::grpc::service::HandOut;
use plywood::store::{Commit, Rebase, Store, StoreSettings};
use plywood::types::{Labels, Realm, Timestamp, Usage};
use plywood_fuse::sys::mount::mounted_at;
use plywood_fuse::testing::TempDir;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn settings(hand_out: HandOut) -> ServeSettings {
    ServeSettings { hand_out, ..ServeSettings::default() }
}

fn is_mounted(path: &Path) -> bool {
    mounted_at(path).is_ok_and(|there| there.is_some())
}

fn server_of(daemon: &Daemon, key: &str) -> u32 {
    let there = daemon.snapshotter.mounted_at(key).unwrap();
    there.first().and_then(|at| at.server_pid).expect("a server")
}

#[test]
fn a_client_binds_what_plywood_has_mounted_until_commit_or_removal() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let daemon = Daemon::with(BackendName::Fuse, settings(HandOut::Auto));
    wait_for(async {
        let mut client = daemon.client().await;
        let empty = client.prepare(prepare("a", "")).await.unwrap().into_inner().mounts;
        assert!(!empty[0].source.contains("/mnt/"), "a directory alone needs no server: {empty:?}");
        fs::write(format!("{}/old", empty[0].source), "old").unwrap();
        client.commit(commit("base", "a")).await.unwrap();

        let made = client.prepare(prepare("b", "base")).await.unwrap().into_inner().mounts;
        assert_eq!(
            (made[0].r#type.as_str(), &made[0].options[..]),
            ("bind", &["rw".to_owned(), "rbind".to_owned()][..])
        );
        let point = PathBuf::from(&made[0].source);
        assert!(point.starts_with(daemon.snapshotter.layout().mounts()) && is_mounted(&point));
        fs::write(point.join("new"), "new").unwrap();
        fs::remove_file(point.join("old")).unwrap();
        assert_eq!(client.mounts(mounts("b")).await.unwrap().into_inner().mounts, made);
        client.commit(commit("top", "b")).await.unwrap();
        assert!(!point.exists(), "an old answer leads nowhere");

        let shown = client.view(view("v", "top")).await.unwrap().into_inner().mounts;
        assert!(shown[0].options.contains(&"ro".to_owned()), "{shown:?}");
        let point = PathBuf::from(&shown[0].source);
        assert_eq!(fs::read(point.join("new")).unwrap(), b"new");
        assert!(!point.join("old").exists());
        assert!(fs::write(point.join("new"), "x").is_err());
        client.remove(remove("v")).await.unwrap();
        assert!(!point.exists());
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read_dir(daemon.snapshotter.layout().mounts()).unwrap().count() > 0 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_client_mounts_itself_where_it_is_to() {
    let daemon = Daemon::with(BackendName::Fuse, settings(HandOut::Fuse3));
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        let made = client.prepare(prepare("b", "base")).await.unwrap().into_inner().mounts;
        assert_eq!(made[0].r#type, "fuse3.plywood-fuse");
        assert!(made[0].options.iter().any(|option| option.starts_with("upperdir=")), "{made:?}");
        assert!(!made[0].options.contains(&"ro".to_owned()), "rule 2");
    });
}

#[test]
fn a_mount_outlives_its_daemon_and_is_made_again_when_its_server_is_gone() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let dir = TempDir::new();
    let mut first = Daemon::below(dir.path(), BackendName::Fuse, settings(HandOut::Bind));
    let (made, pid) = wait_for(async {
        let mut client = first.client().await;
        layer(&mut client, "base", "").await;
        let made = client.prepare(prepare("b", "base")).await.unwrap().into_inner().mounts;
        fs::write(format!("{}/kept", made[0].source), "kept").unwrap();
        (made, server_of(&first, "b"))
    });
    let point = PathBuf::from(&made[0].source);
    first.end().unwrap();
    assert_eq!(
        fs::read(point.join("kept")).unwrap(),
        b"kept",
        "nobody serves the socket, and files are there"
    );
    drop(first);

    let second = Daemon::below(dir.path(), BackendName::Fuse, settings(HandOut::Bind));
    second.snapshotter.drop_unused_points().unwrap();
    wait_for(async {
        let mut client = second.client().await;
        assert_eq!(client.mounts(mounts("b")).await.unwrap().into_inner().mounts, made);
        assert_eq!(server_of(&second, "b"), pid, "it is the same mount");
        let killed = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // The kernel takes a moment to end it.
        while second.snapshotter.mounted_at("b").unwrap().iter().any(|at| at.server_pid == Some(pid)) {
            assert!(Instant::now() < deadline);
            assert_eq!(client.mounts(mounts("b")).await.unwrap().into_inner().mounts, made);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // It may have ended after the last answer.
        assert_eq!(client.mounts(mounts("b")).await.unwrap().into_inner().mounts, made);
        assert_ne!(server_of(&second, "b"), pid);
        assert_eq!(fs::read(point.join("kept")).unwrap(), b"kept");
        // Somebody has unmounted it.
        second.snapshotter.unmount(&point).unwrap();
        assert_eq!(client.mounts(mounts("b")).await.unwrap().into_inner().mounts, made);
        assert_eq!(fs::read(point.join("kept")).unwrap(), b"kept");
        client.remove(remove("b")).await.unwrap();
        assert!(!point.exists());
        assert!(client.stat(stat("b")).await.is_err());
    });
}

#[test]
fn many_callers_at_once_get_one_mount() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let daemon = Daemon::with(BackendName::Fuse, settings(HandOut::Bind));
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("b", "base")).await.unwrap();
        let point = daemon.snapshotter.mounted_at("b").unwrap()[0].target.clone();
        daemon.snapshotter.unmount(&point).unwrap();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let mut client = client.clone();
            waiting.spawn(async move {
                client.mounts(mounts("b")).await.map(|answer| answer.into_inner().mounts)
            });
        }
        while let Some(answer) = waiting.join_next().await {
            assert_eq!(Path::new(&answer.unwrap().unwrap()[0].source), point);
        }
        assert_eq!(daemon.snapshotter.mounted_at("b").unwrap().len(), 1);
        client.remove(remove("b")).await.unwrap();
    });
}

#[test]
fn a_mount_of_what_is_committed_ends_with_the_next_daemon() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let dir = TempDir::new();
    let first = Daemon::below(dir.path(), BackendName::Fuse, settings(HandOut::Bind));
    let made = wait_for(async {
        let mut client = first.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("b", "base")).await.unwrap().into_inner().mounts
    });
    let point = PathBuf::from(&made[0].source);
    let pid = server_of(&first, "b");
    drop(first);
    // What a commit writes, and then it dies.
    let store = Store::open(&dir.path().join("store/db"), &StoreSettings::default()).unwrap();
    let committed = store.write("commit", |rows| {
        let realm = Realm::containerd();
        let (key, name, labels) = ("b", "top", &Labels::new());
        let (usage, flags, parent, expected) = (Usage::default(), 0, None, None);
        let (rebase, now) = (Rebase::Allowed, Timestamp::now());
        rows.commit(&Commit { realm: &realm, key, name, labels, usage, flags, parent, rebase, expected, now })
    });
    committed.unwrap();
    store.close().unwrap();
    assert!(point.exists() && Path::new(&format!("/proc/{pid}")).exists(), "it serves what is committed");
    let second = Daemon::below(dir.path(), BackendName::Fuse, settings(HandOut::Bind));
    second.snapshotter.drop_unused_points().unwrap();
    assert!(!point.exists());
    assert_eq!(second.snapshotter.mounted_at("top").unwrap(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "its server lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_for(async {
        let mut client = second.client().await;
        client.remove(remove("top")).await.unwrap();
        client.remove(remove("base")).await.unwrap();
    });
}

//! Who comes in between, hangs, or is gone: nobody else's snapshot suffers. Those that mount need /dev/fuse, and fail
//! without, unless PLYWOOD_SKIP_MOUNTED says to leave such tests out.

use crate::support::{Client, Daemon, client, commit, layer, mounts, open, prepare, remove, stat, wait_for};
use plywood::backend::{BackendName, Progress};
use plywood::error::ErrorKind;
use plywood::grpc::server::ServeSettings;
use plywood::grpc::service::HandOut;
use plywood::snapshotter::{BackendChoice, Snapshotter, SnapshotterSettings};
use plywood::types::{Labels, Realm};
use plywood_fuse::testing::TempDir;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tonic::Code;

fn bind() -> ServeSettings {
    ServeSettings { hand_out: HandOut::Bind, ..ServeSettings::default() }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn server_of(daemon: &Daemon, key: &str) -> Pid {
    let there = daemon.snapshotter.mounted_at(key).unwrap();
    let pid = there.first().and_then(|at| at.server_pid).expect("a server");
    Pid::from_raw(pid.cast_signed()).unwrap()
}

#[test]
fn a_prepare_that_fails_leaves_alone_who_has_its_key_by_now() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let dir = TempDir::new();
    let (started, go, program) =
        (dir.path().join("started"), dir.path().join("go"), dir.path().join("server"));
    let script = format!(
        "#!/bin/sh\n: >{}\nwhile [ ! -e {} ]; do sleep 0.01; done\necho no >&2\nexit 1\n",
        started.display(),
        go.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut settings = SnapshotterSettings::new(dir.path().join("store"));
    settings.backend = BackendChoice::Named(BackendName::Fuse);
    settings.mounting.fuse_program = Some(program);
    let snapshotter = Snapshotter::open(settings).unwrap();
    snapshotter.prepare("a", None, Labels::new(), &()).unwrap();
    snapshotter.commit("base", "a", Labels::new(), None, &()).unwrap();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| snapshotter.prepare_kept("k", Some("base"), Labels::new(), &()));
        wait_for(until(|| started.exists()));
        snapshotter.remove("k").unwrap();
        snapshotter.prepare("k", Some("base"), Labels::new(), &()).unwrap();
        fs::write(&go, "").unwrap();
        let error = slow.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    });
    snapshotter.stat("k").expect("it is another one's");
}

struct Gone;

impl Progress for Gone {
    fn is_cancelled(&self) -> bool {
        true
    }
}

#[test]
fn what_nobody_waits_for_is_not_made() {
    for backend in [BackendName::Fuse, BackendName::Native] {
        let dir = TempDir::new();
        let snapshotter = open(dir.path(), backend, Realm::containerd());
        snapshotter.prepare("a", None, Labels::new(), &()).unwrap();
        snapshotter.commit("base", "a", Labels::new(), None, &()).unwrap();
        for parent in [None, Some("base")] {
            let error = snapshotter.prepare("k", parent, Labels::new(), &Gone).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            let error = snapshotter.view("k", parent, Labels::new(), &Gone).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
            assert_eq!(snapshotter.stat("k").unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}

#[test]
fn who_has_bound_a_mount_only_looks_after_the_commit() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let (dir, daemon) = (TempDir::new(), Daemon::with(BackendName::Fuse, bind()));
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        let made = client.prepare(prepare("b", "base")).await.unwrap().into_inner().mounts;
        let bound =
            Command::new("mount").arg("--bind").arg(&made[0].source).arg(dir.path()).status().unwrap();
        assert!(bound.success());
        fs::write(dir.path().join("before"), "x").unwrap();
        client.commit(commit("top", "b")).await.unwrap();
        let refused = fs::write(dir.path().join("after"), "x").map_err(|e| e.raw_os_error());
        let kept = fs::read(dir.path().join("before"));
        assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
        assert_eq!(refused, Err(Some(libc::EROFS)));
        assert_eq!(kept.unwrap(), b"x");
        client.remove(remove("top")).await.unwrap();
    });
}

#[test]
fn a_server_that_hangs_keeps_nobody_waiting_who_wants_something_else() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let daemon = Daemon::with(BackendName::Fuse, bind());
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("hangs", "base")).await.unwrap();
        kill_process(server_of(&daemon, "hangs"), Signal::STOP).unwrap();
        let mut other = client.clone();
        let committing = tokio::spawn(async move { other.commit(commit("top", "hangs")).await });
        let answers_late = |mut client: Client| async move {
            let a_moment = Duration::from_millis(300);
            tokio::time::timeout(a_moment, client.mounts(mounts("hangs"))).await.is_err()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !answers_late(client.clone()).await {
            assert!(Instant::now() < deadline, "the commit does not begin");
        }
        // More than there are places: their callers go, and they with them.
        let mut waiting = Vec::new();
        for _ in 0..60 {
            waiting.push(tokio::spawn(answers_late(client.clone())));
        }
        for one in waiting {
            assert!(one.await.unwrap(), "it hangs");
        }
        client.prepare(prepare("another", "base")).await.unwrap();
        client.remove(remove("another")).await.unwrap();
        client.remove(remove("hangs")).await.unwrap();
        committing.await.unwrap().expect_err("what was not written is not committed");
        assert_eq!(client.stat(stat("hangs")).await.unwrap_err().code(), Code::NotFound);
    });
}

/// A daemon in a mount namespace of its own.
fn apart(dir: &Path) -> Child {
    let (store, socket) = (dir.join("store"), dir.join("run/s"));
    let _ = fs::remove_file(&socket);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(env!("CARGO_BIN_EXE_plywood"));
    command.env("PLYWOOD_FUSE_PROGRAM", crate::privileges::server_program());
    command
        .arg("--root")
        .arg(store)
        .args(["--backend", "fuse", "serve", "--mounts", "bind", "--address"])
        .arg(socket);
    command.spawn().expect("unshare")
}

fn stop(mut daemon: Child) {
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_daemon_in_another_namespace_takes_over_what_nobody_can_reach_any_more() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    let dir = TempDir::new();
    let socket = dir.path().join("run/s");
    let first = apart(dir.path());
    wait_for(async {
        until(|| UnixStream::connect(&socket).is_ok()).await;
        let mut client = client(&socket).await;
        layer(&mut client, "base", "").await;
        for key in ["one", "two", "three"] {
            client.prepare(prepare(key, "base")).await.unwrap();
        }
    });
    stop(first);
    let second = apart(dir.path());
    wait_for(async {
        until(|| UnixStream::connect(&socket).is_ok()).await;
        let mut client = client(&socket).await;
        client.mounts(mounts("one")).await.unwrap();
        client.commit(commit("top", "two")).await.unwrap();
        for key in ["one", "top", "three", "base"] {
            client.remove(remove(key)).await.unwrap();
        }
    });
    stop(second);
    let store = open(dir.path(), BackendName::Fuse, Realm::containerd());
    assert!(store.check(plywood::snapshotter::Repair::No).unwrap().findings.is_empty());
}

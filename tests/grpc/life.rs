//! The daemon starts, stops, and starts again.

use crate::support::{Daemon, channel, client, commit, names, prepare, remove, stat, wait_for};
use plywood::backend::BackendName;
use plywood::grpc::proto::grpc::health::v1::HealthCheckRequest;
use plywood::grpc::proto::grpc::health::v1::health_check_response::ServingStatus;
use plywood::grpc::proto::grpc::health::v1::health_client::HealthClient;
use plywood::grpc::server::ServeSettings;
use plywood_fuse::testing::TempDir;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tonic::Code;

fn plywood(dir: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plywood"));
    command.arg("--root").arg(dir.join("store")).args(["--backend", "native", "--log", "info"]).args(words);
    command.env_remove("PLYWOOD_CONFIG").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn serve(dir: &Path) -> Command {
    let socket = dir.join("run/s");
    plywood(dir, &["serve", "--address", socket.to_str().unwrap()])
}

fn wait_for_socket(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::os::unix::net::UnixStream::connect(path).is_err() {
        assert!(Instant::now() < deadline, "no daemon");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn terminate(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn the_program_serves_until_it_is_told_to_stop_and_goes_on_where_it_was() {
    let dir = TempDir::new();
    let socket = dir.path().join("run/s");
    for (round, signal) in
        [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::KILL]
            .into_iter()
            .enumerate()
    {
        let mut daemon = serve(dir.path()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_socket(&socket);
        assert_eq!(std::fs::symlink_metadata(&socket).unwrap().mode() & 0o777, 0o600);
        wait_for(async {
            let mut client = client(&socket).await;
            assert_eq!(names(&mut client, &[]).await.len(), 2 * round);
            client.prepare(prepare(&format!("k{round}"), "")).await.unwrap();
            client.commit(commit(&format!("c{round}"), &format!("k{round}"))).await.unwrap();
            client.prepare(prepare(&format!("k{round}"), &format!("c{round}"))).await.unwrap();
        });
        terminate(&daemon, signal);
        let ended = daemon.wait().unwrap();
        let killed = signal == rustix::process::Signal::KILL;
        assert_eq!(ended.success(), !killed, "{ended}");
        assert_eq!(socket.exists(), killed, "a stale socket is left by a crash only");
    }
    let mut daemon = serve(dir.path()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_socket(&socket);
    wait_for(async { assert_eq!(names(&mut client(&socket).await, &[]).await.len(), 6) });
    terminate(&daemon, rustix::process::Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(plywood(dir.path(), &["check"]).status().unwrap().success());
}

#[test]
fn a_store_is_served_once_and_the_second_is_told_by_whom() {
    let dir = TempDir::new();
    let mut daemon = serve(dir.path()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_socket(&dir.path().join("run/s"));
    let other = dir.path().join("run/other");
    let second = plywood(dir.path(), &["serve", "--address", other.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(5), "{said}");
    assert!(said.contains(&format!("process {} on ", daemon.id())), "{said}");
    assert!(!other.exists());
    // Another store does not get the socket either.
    let mut elsewhere = Command::new(env!("CARGO_BIN_EXE_plywood"));
    elsewhere.arg("--root").arg(dir.path().join("another")).args([
        "--backend",
        "native",
        "serve",
        "--address",
    ]);
    let third = elsewhere.arg(dir.path().join("run/s")).output().unwrap();
    assert_eq!(third.status.code(), Some(5), "{}", String::from_utf8_lossy(&third.stderr));
    // The command line works beside it.
    assert!(plywood(dir.path(), &["prepare", "mine"]).status().unwrap().success());
    terminate(&daemon, rustix::process::Signal::TERM);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_deletion_that_goes_on_does_not_keep_the_daemon_and_the_next_one_does_it() {
    let dir = TempDir::new();
    let socket = dir.path().join("run/s");
    let removed_trees = || {
        let listed = std::fs::read_dir(dir.path().join("store/snapshots")).unwrap();
        let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("rm-")).count()
    };
    let hold_up = Duration::from_secs(200);
    let mut daemon = serve(dir.path())
        .env("PLYWOOD_FAIL", format!("r.after_rename=pause:{}", hold_up.as_millis()))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_socket(&socket);
    wait_for(async {
        let mut client = client(&socket).await;
        client.prepare(prepare("k", "")).await.unwrap();
        client.remove(remove("k")).await.unwrap();
    });
    let patience = Instant::now() + Duration::from_secs(60);
    while removed_trees() == 0 {
        assert!(Instant::now() < patience, "nobody deletes it");
        std::thread::sleep(Duration::from_millis(10));
    }
    let asked = Instant::now();
    terminate(&daemon, rustix::process::Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(asked.elapsed() < hold_up / 2, "{:?}", asked.elapsed());
    assert_eq!(removed_trees(), 1);
    let mut daemon = serve(dir.path()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_socket(&socket);
    let deadline = Instant::now() + Duration::from_secs(60);
    while removed_trees() > 0 {
        assert!(Instant::now() < deadline, "it stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    terminate(&daemon, rustix::process::Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    assert!(plywood(dir.path(), &["check"]).status().unwrap().success());
}

#[test]
fn a_service_manager_hands_over_the_socket_and_is_told_how_it_goes() {
    let dir = TempDir::new();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let ear = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    ear.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // As sd_listen_fds(3) says: number 3, in a process whose number stands in LISTEN_PID, which only a shell can tell.
    let mut command = Command::new("sh");
    command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh", env!("CARGO_BIN_EXE_plywood")]);
    command.arg("--root").arg(dir.path().join("store")).args(["--backend", "native", "serve"]);
    command.env("LISTEN_FDS", "1").env("NOTIFY_SOCKET", dir.path().join("notify")).stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: dup2 and fcntl are among what may be called between fork and exec.
    unsafe {
        // (If it is number 3 already, dup2 leaves it as it is: to be closed.)
        command.pre_exec(move || match (libc::dup2(fd, 3), libc::fcntl(3, libc::F_SETFD, 0)) {
            (3, 0) => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut daemon = command.spawn().unwrap();
    let heard = || {
        let mut words = [0; 100];
        let length = ear.recv(&mut words).unwrap();
        String::from_utf8_lossy(&words[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1");
    wait_for(async { client(&socket).await.prepare(prepare("k", "")).await.unwrap() });
    terminate(&daemon, rustix::process::Signal::TERM);
    assert_eq!(heard(), "STOPPING=1");
    assert!(daemon.wait().unwrap().success());
    assert!(socket.exists(), "it belongs to the service manager");
}

#[test]
fn what_a_service_manager_hands_over_must_be_a_socket_that_listens() {
    let dir = TempDir::new();
    // Nothing at all, no socket, and one that is connected.
    for (number_3, says) in [("3>&-", "socket"), ("3</dev/null", "socket"), ("3<&0", "nobody can connect")] {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("LISTEN_PID=$$ exec \"$@\" {number_3}"), "sh"]);
        command.arg(env!("CARGO_BIN_EXE_plywood")).arg("--root").arg(dir.path().join("store"));
        command.args(["--backend", "native", "serve"]).env("LISTEN_FDS", "1");
        command.stdin(std::os::fd::OwnedFd::from(theirs));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{number_3}: {said}");
        drop(ours);
    }
}

#[test]
fn health_is_told_until_the_daemon_stops() {
    let mut daemon = Daemon::start();
    let stop = daemon.stop.clone();
    wait_for(async {
        let mut health = HealthClient::new(channel(&daemon.socket).await);
        let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
        for service in ["", "containerd.services.snapshots.v1.Snapshots", "grpc.health.v1.Health"] {
            let told = health.check(of(service)).await.unwrap().into_inner();
            assert_eq!(told.status(), ServingStatus::Serving, "{service}");
        }
        assert_eq!(health.check(of("nobody")).await.unwrap_err().code(), Code::NotFound);
        let mut unknown = health.watch(of("nobody")).await.unwrap().into_inner();
        assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
        let mut news = health.watch(of("")).await.unwrap().into_inner();
        assert_eq!(news.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        stop.ask();
        assert_eq!(news.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(news.message().await.unwrap().is_none());
    });
    daemon.end().unwrap();
}

#[test]
fn who_waits_gets_an_answer_while_the_daemon_stops_and_later_ones_do_not() {
    let mut daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let made = client.prepare(prepare("a", "")).await.unwrap().into_inner().mounts;
        for n in 0..5_000 {
            std::fs::write(format!("{}/{n}", made[0].source), b"x").unwrap();
        }
        client.commit(commit("base", "a")).await.unwrap();
        let mut slow = client.clone();
        let copy = tokio::spawn(async move { slow.prepare(prepare("copy", "base")).await });
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::read_dir(daemon.snapshotter.layout().snapshots()).unwrap().count() < 2 {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        daemon.stop.ask();
        assert!(copy.await.unwrap().is_ok(), "it was asked before");
        daemon.end().unwrap();
        let late = client.stat(stat("copy")).await.unwrap_err();
        assert_eq!(late.code(), Code::Unavailable, "{late}");
    });
}

#[test]
fn who_never_ends_does_not_keep_the_daemon() {
    let settings = ServeSettings { drain: Duration::from_millis(200), ..ServeSettings::default() };
    let mut daemon = Daemon::with(BackendName::Native, settings);
    wait_for(async {
        let mut client = daemon.client().await;
        let key = "k".repeat(30_000);
        for n in 0..400 {
            let request = plywood::grpc::proto::containerd::services::snapshots::v1::ViewSnapshotRequest {
                key: format!("{key}{n}"),
                ..Default::default()
            };
            client.view(request).await.unwrap();
        }
        // More than fits what may be on the way, and nobody reads it.
        let _unread = client
            .list(plywood::grpc::proto::containerd::services::snapshots::v1::ListSnapshotsRequest::default())
            .await
            .unwrap();
        let since = Instant::now();
        daemon.end().unwrap();
        assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    });
}

#[test]
fn a_closed_connection_is_no_news_on_standard_output() {
    let dir = TempDir::new();
    let mut daemon = serve(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_socket(&dir.path().join("run/s"));
    wait_for(async {
        client(&dir.path().join("run/s")).await.prepare(prepare("k\u{1b}[31m", "")).await.unwrap()
    });
    terminate(&daemon, rustix::process::Signal::TERM);
    assert!(daemon.wait().unwrap().success());
    let (mut out, mut log) = (String::new(), String::new());
    daemon.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    daemon.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(out, "");
    assert!(
        log.contains("call=\"prepare\"") && log.contains("milliseconds=") && log.contains("request=1"),
        "{log}"
    );
    assert!(!log.contains('\u{1b}'), "keys do not reach a terminal as they are: {log}");
}

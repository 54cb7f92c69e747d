//! What machines are told of the daemon.

use crate::support::{Daemon, client, prepare, wait_for};
use plywood::backend::BackendName;
use plywood::grpc::server::ServeSettings;
use plywood_fuse::testing::TempDir;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tonic::Code;

/// Status, headers and body of an answer.
fn ask(socket: &Path, request: &str) -> (String, String) {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

fn get(socket: &Path, path: &str) -> (String, String) {
    ask(socket, &format!("GET {path} HTTP/1.1\r\nHost: plywood\r\nConnection: close\r\n\r\n"))
}

/// The value of a line of metrics.
fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().expect("a number")
}

#[test]
fn calls_are_counted_by_name_and_code_and_the_store_says_what_it_holds() {
    let dir = TempDir::new();
    let metrics = dir.path().join("run/metrics");
    let settings = ServeSettings { metrics: Some(metrics.clone()), ..ServeSettings::default() };
    let daemon = Daemon::below(dir.path(), BackendName::Native, settings);
    wait_for(async {
        let mut client = client(&daemon.socket).await;
        for key in ["a", "b", "secret"] {
            client.prepare(prepare(key, "")).await.unwrap();
        }
        assert_eq!(client.prepare(prepare("a", "")).await.unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(client.prepare(prepare("d", "none")).await.unwrap_err().code(), Code::NotFound);
    });
    assert_eq!(std::fs::symlink_metadata(&metrics).unwrap().mode() & 0o777, 0o600);
    let (head, text) = get(&metrics, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(value(&text, "plywood_calls_total{call=\"prepare\",code=\"ok\"}"), 3.0);
    assert_eq!(value(&text, "plywood_calls_total{call=\"prepare\",code=\"already_exists\"}"), 1.0);
    assert_eq!(value(&text, "plywood_calls_total{call=\"prepare\",code=\"not_found\"}"), 1.0);
    assert_eq!(value(&text, "plywood_call_duration_seconds_count{call=\"prepare\"}"), 5.0);
    assert_eq!(value(&text, "plywood_calls_in_progress"), 0.0);
    assert_eq!(value(&text, "plywood_snapshots"), 3.0);
    assert!(value(&text, "plywood_database_used_bytes") > 0.0);
    assert!(value(&text, "plywood_disk_available_bytes") > 0.0);
    assert!(text.contains("plywood_store_info{backend=\"native\"} 1"), "{text}");
    assert!(!text.contains("secret"), "keys have no bound: {text}");
    drop(daemon);
    assert!(!metrics.exists(), "the socket goes with the daemon");
}

#[test]
fn whoever_asks_for_something_else_or_nothing_is_refused_and_holds_nothing_up() {
    let dir = TempDir::new();
    let metrics = dir.path().join("run/metrics");
    let settings = ServeSettings { metrics: Some(metrics.clone()), ..ServeSettings::default() };
    let daemon = Daemon::below(dir.path(), BackendName::Native, settings);
    wait_for(async { client(&daemon.socket).await });
    let silent = UnixStream::connect(&metrics).unwrap();
    assert!(get(&metrics, "/").0.starts_with("HTTP/1.1 404"));
    let post = "POST /metrics HTTP/1.1\r\nHost: plywood\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(ask(&metrics, post).0.starts_with("HTTP/1.1 405"));
    assert!(ask(&metrics, "\0\0 nonsense\r\n\r\n").0.starts_with("HTTP/1.1 400"));
    assert!(get(&metrics, "/metrics").0.starts_with("HTTP/1.1 200"));
    // It stops though somebody has said nothing.
    drop(daemon);
    drop(silent);
}

//! Clients that send nonsense, too much, or go away: they are answered, and nobody else notices.

use crate::support::{
    Client, Daemon, blocks, channel, commit, labels, layer, names, prepare, remove, stat, view, wait_for,
};
use plywood::grpc::proto::containerd::services::snapshots::v1 as wire;
use plywood::types::{MAX_LABELS_BYTES, MAX_NAME_BYTES};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

/// Messages as bytes, whatever they mean.
#[derive(Default)]
struct Raw;

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes_put(buffer, &item);
        Ok(())
    }
}

fn bytes_put(buffer: &mut EncodeBuf<'_>, bytes: &[u8]) {
    use prost::bytes::BufMut;
    buffer.put_slice(bytes);
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

async fn send(socket: &Path, method: &str, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut raw = tonic::client::Grpc::new(channel(socket).await);
    raw.ready().await.expect("a daemon");
    let path = format!("/containerd.services.snapshots.v1.Snapshots/{method}");
    let path = PathAndQuery::try_from(path).expect("a path");
    raw.unary(Request::new(message), path, Raw).await.map(|answer| answer.into_inner())
}

const METHODS: [&str; 9] =
    ["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "Usage", "Cleanup"];

#[test]
fn malformed_messages_are_refused_and_nothing_is_done() {
    let daemon = Daemon::start();
    wait_for(async {
        let broken: [&[u8]; 7] = [
            &[0xff],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0x0a, 5, b'a'],
            &[0x12, 2, 0xc3, 0x28],
            &[0x0b; 400],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x07],
        ];
        for method in METHODS {
            for message in broken {
                let answer = send(&daemon.socket, method, message.to_vec()).await;
                // Cleanup has one field, so that other fields are skipped as unknown ones.
                if let Err(refused) = answer {
                    let codes = [Code::Internal, Code::InvalidArgument];
                    assert!(codes.contains(&refused.code()), "{method} {message:?}: {refused}");
                }
            }
        }
        let mut client = daemon.client().await;
        assert!(names(&mut client, &[]).await.is_empty());
        let unknown = send(&daemon.socket, "Nonsense", Vec::new()).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
    });
}

#[test]
fn random_messages_do_no_harm() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..500 {
            let length = usize::try_from(random() % 64).unwrap();
            let message: Vec<u8> = (0..length).map(|_| random().to_le_bytes()[0]).collect();
            let method = METHODS[usize::try_from(random() % 9).unwrap()];
            let _ = send(&daemon.socket, method, message).await;
        }
        daemon.client().await.prepare(prepare("still there", "")).await.unwrap();
    });
}

#[test]
fn bytes_that_are_no_protocol_end_their_connection_only() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 100],
            &[0xff; 100_000],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff",
        ] {
            let mut stream = tokio::net::UnixStream::connect(&daemon.socket).await.unwrap();
            let _ = stream.write_all(garbage).await;
        }
        client.prepare(prepare("k", "")).await.unwrap();
    });
}

#[test]
fn a_key_may_have_32_kib_and_not_more() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let (long, other) = ("k".repeat(MAX_NAME_BYTES), "k".repeat(MAX_NAME_BYTES - 1) + "l");
        layer(&mut client, "base", "").await;
        for key in [&long, &other] {
            client.prepare(prepare(key, "base")).await.unwrap();
            assert_eq!(client.stat(stat(key)).await.unwrap().into_inner().info.unwrap().name, *key);
        }
        assert_eq!(client.prepare(prepare(&long, "")).await.unwrap_err().code(), Code::AlreadyExists);
        let filter = format!("name=={long}");
        assert_eq!(names(&mut client, &[&filter]).await, std::slice::from_ref(&long));
        let too_long = client.prepare(prepare(&format!("{long}k"), "")).await.unwrap_err();
        assert_eq!(too_long.code(), Code::InvalidArgument);
        assert!(too_long.message().len() < 1000, "{too_long}");
        client.commit(commit(&"c".repeat(MAX_NAME_BYTES), &long)).await.unwrap();
        client.prepare(prepare("child", &"c".repeat(MAX_NAME_BYTES))).await.unwrap();
        client.remove(remove(&other)).await.unwrap();
    });
}

#[test]
fn labels_and_messages_have_limits_and_what_is_stored_can_be_listed() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let mut request = prepare("k", "");
        request.labels = labels(&[("l", &"x".repeat(1 << 20))]);
        assert_eq!(client.prepare(request).await.unwrap_err().code(), Code::InvalidArgument);
        let many = |bytes: usize| {
            let one = |n: usize| (format!("{n:08}"), "x".repeat(1016));
            (0..bytes / 1024).map(one).collect()
        };
        let most = wire::PrepareSnapshotRequest { labels: many(MAX_LABELS_BYTES), ..prepare("k", "") };
        for n in 0..20 {
            let key = format!("{n}");
            client.prepare(wire::PrepareSnapshotRequest { key, ..most.clone() }).await.unwrap();
        }
        let more = wire::PrepareSnapshotRequest { labels: many(MAX_LABELS_BYTES + 1024), ..prepare("k", "") };
        assert_eq!(client.prepare(more).await.unwrap_err().code(), Code::InvalidArgument);
        let listed = blocks(&mut client, &[]).await.unwrap();
        assert_eq!(listed.iter().map(Vec::len).sum::<usize>(), 20);
        assert!(listed.len() > 3, "20 MiB do not fit one message");

        let huge = wire::PrepareSnapshotRequest { labels: many(17 << 20), ..prepare("k", "") };
        let mut unlimited = client.clone().max_encoding_message_size(usize::MAX);
        let refused = unlimited.prepare(huge).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        assert_eq!(client.stat(stat("k")).await.unwrap_err().code(), Code::NotFound);
    });
}

// Nobody reads these; each keeps no more than its task.
#[test]
fn ten_thousand_open_streams_keep_nobody_waiting() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        for n in 0..300 {
            client.view(view(&format!("{n}"), "")).await.unwrap();
        }
        let mut open = Vec::new();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let client = daemon.client().await;
            for _ in 0..250 {
                let mut client: Client = client.clone();
                waiting.spawn(async move { client.list(wire::ListSnapshotsRequest::default()).await });
            }
        }
        while let Some(stream) = waiting.join_next().await {
            open.push(stream.unwrap().expect("a stream"));
        }
        assert_eq!(open.len(), 10_000);
        client.prepare(prepare("k", "")).await.unwrap();
        client.remove(remove("k")).await.unwrap();
        // Another list comes after those that were asked for before.
        assert_eq!(names(&mut client, &["kind==view"]).await.len(), 300);
    });
}

#[test]
fn slow_filters_keep_nobody_waiting_and_end_with_their_caller() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let long = "a".repeat(30_000);
        for n in 0..64 {
            client.view(view(&format!("{long}{n}"), "")).await.unwrap();
        }
        let pattern = format!("name~=/{}/", "(a?){40}".repeat(20) + "b$");
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..32 {
            let (mut client, pattern) = (client.clone(), pattern.clone());
            waiting.spawn(async move { blocks(&mut client, &[pattern.as_str(); 8]).await });
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.prepare(prepare("k", "")).await.unwrap();
        client.remove(remove("k")).await.unwrap();
        let ended = std::iter::from_fn(|| waiting.try_join_next()).count();
        assert!(ended < 32, "they were not slow");
        waiting.shutdown().await;
    });
}

// 1.3: cancelled requests leave neither record nor directory.
#[test]
fn a_copy_whose_caller_goes_away_is_given_up() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let made = client.prepare(prepare("a", "")).await.unwrap().into_inner().mounts;
        for n in 0..20_000 {
            std::fs::write(format!("{}/{n}", made[0].source), b"x").unwrap();
        }
        client.commit(commit("base", "a")).await.unwrap();
        let mut given_up = 0;
        for wait in [1, 20, 50, 100] {
            let key = format!("copy {wait}");
            let slow = client.prepare(prepare(&key, "base"));
            let in_time = tokio::time::timeout(Duration::from_millis(wait), slow).await;
            given_up += usize::from(in_time.is_err());
        }
        assert!(given_up > 0, "this machine copies 20,000 files in a millisecond");
        let deadline = Instant::now() + Duration::from_secs(100);
        loop {
            let names = names(&mut client, &["kind==active"]).await.len();
            let left = std::fs::read_dir(daemon.snapshotter.layout().snapshots()).unwrap().count();
            if names + given_up == 4 && left == 1 + names {
                break;
            }
            assert!(Instant::now() < deadline, "{names} snapshots, {left} directories, {given_up} given up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let again = client.prepare(prepare("copy 1", "base")).await;
        assert!(again.is_ok() || again.unwrap_err().code() == Code::AlreadyExists);
    });
}

#[test]
fn a_deadline_of_the_caller_is_kept() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let mut request = Request::new(prepare("k", ""));
        request.set_timeout(Duration::from_nanos(1));
        let late = client.prepare(request).await.unwrap_err();
        assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    });
}

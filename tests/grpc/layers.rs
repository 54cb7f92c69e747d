//! Layers in and out over the socket, with a double of the containerd that keeps the blobs.

use crate::containerd::{Containerd, Odd, digest};
use crate::support::{
    Client, Daemon, channel, commit, labels, layer, mounts, prepare, remove, view, wait_for,
};
use plywood::archive::{self, EntryKind, Limits, Reader, Writer};
use plywood::backend::BackendName;
use plywood::compress::{Compression, Encoder};
use plywood::grpc::proto::containerd::services::diff::v1 as wire;
use plywood::grpc::proto::containerd::services::snapshots::v1 as snapshots;
use plywood::grpc::proto::containerd::types::{Descriptor, Mount};
use plywood::grpc::server::ServeSettings;
use plywood::grpc::service::HandOut;
use plywood::types::Timestamp;
use plywood_fuse::testing::TempDir;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use wire::diff_client::DiffClient;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A daemon with its clients, and the containerd whose content it uses.
struct World {
    containerd: Containerd,
    daemon: Daemon,
    client: Client,
    layers: DiffClient<Channel>,
    _dir: TempDir,
}

impl World {
    async fn new(backend: BackendName, hand_out: HandOut) -> World {
        let dir = TempDir::new();
        let containerd = Containerd::default();
        let socket = containerd.serve(dir.path());
        let settings = ServeSettings { hand_out, containerd: Some(socket), ..ServeSettings::default() };
        let daemon = Daemon::with(backend, settings);
        let client = daemon.client().await;
        let layers = DiffClient::new(channel(&daemon.socket).await);
        World { containerd, daemon, client, layers, _dir: dir }
    }

    async fn native() -> World {
        World::new(BackendName::Native, HandOut::Fuse3).await
    }

    /// Stacked layers, which nobody mounts.
    async fn stacked() -> World {
        World::new(BackendName::Fuse, HandOut::Fuse3).await
    }

    async fn prepare(&mut self, key: &str, parent: &str, pairs: &[(&str, &str)]) -> Vec<Mount> {
        let request = snapshots::PrepareSnapshotRequest { labels: labels(pairs), ..prepare(key, parent) };
        self.client.prepare(request).await.expect("prepare").into_inner().mounts
    }

    async fn apply(&self, digest: &str, media_type: &str, mounts: Vec<Mount>) -> Result<Descriptor, Status> {
        let answer = self.layers.clone().apply(headed(apply_request(digest, media_type, mounts))).await?;
        Ok(answer.into_inner().applied.expect("a descriptor"))
    }

    async fn diff(&self, request: wire::DiffRequest) -> Result<Descriptor, Status> {
        let answer = self.layers.clone().diff(headed(request)).await?;
        Ok(answer.into_inner().diff.expect("a descriptor"))
    }

    /// A layer that is applied and committed.
    async fn unpacked(&mut self, name: &str, parent: &str, tar: Vec<u8>) {
        let digest = self.containerd.add(tar);
        let key = format!("for {name}");
        let mounts = self.prepare(&key, parent, &[]).await;
        self.apply(&digest, TAR, mounts).await.expect("apply");
        self.client.commit(commit(name, &key)).await.expect("commit");
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        self.containerd.0.lock().blobs.get(digest).expect("a blob").data.clone()
    }
}

fn headed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "ns".parse().expect("a header"));
    request
}

fn apply_request(digest: &str, media_type: &str, mounts: Vec<Mount>) -> wire::ApplyRequest {
    let diff =
        Descriptor { media_type: media_type.to_owned(), digest: digest.to_owned(), ..Descriptor::default() };
    wire::ApplyRequest { diff: Some(diff), mounts, sync_fs: true, ..wire::ApplyRequest::default() }
}

fn entry(path: &str, kind: EntryKind, size_bytes: u64) -> archive::Entry {
    let is_dir = kind == EntryKind::Dir;
    archive::Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: if is_dir { 0o755 } else { 0o644 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        size_bytes,
        mtime: Timestamp { secs: 1_600_000_000, nanos: 0 },
        atime: None,
        xattrs: Vec::new(),
    }
}

/// Names: one that ends in a slash is a directory; `a>b` is a hard link `a` to `b`; else a file that says its own name.
fn tar(names: &[&str]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for name in names {
        if name.ends_with('/') {
            writer.entry(&entry(name, EntryKind::Dir, 0)).expect("a member");
        } else if let Some((name, target)) = name.split_once('>') {
            writer.entry(&entry(name, EntryKind::HardLink(target.as_bytes().to_vec()), 0)).expect("a member");
        } else {
            writer.entry(&entry(name, EntryKind::File, name.len() as u64)).expect("a member");
            writer.content(name.as_bytes()).expect("content");
        }
    }
    writer.finish().expect("an archive")
}

fn members(tar: &[u8]) -> Vec<String> {
    let mut reader = Reader::new(tar, Limits::default());
    let mut all = Vec::new();
    while let Some(entry) = reader.next().expect("an archive") {
        all.push(String::from_utf8(entry.path).expect("text"));
    }
    all
}

fn unpack_bytes(compressed: &[u8]) -> Vec<u8> {
    let mut decoder =
        plywood::compress::decoder(std::io::Cursor::new(compressed.to_vec())).expect("a decoder");
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut plain).expect("whole");
    plain
}

fn compressed(plain: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, None, 0).expect("an encoder");
    encoder.write_all(plain).expect("written");
    encoder.finish().expect("whole")
}

/// Where a bind mount leads.
fn source(mounts: &[Mount]) -> PathBuf {
    assert_eq!((mounts.len(), mounts[0].r#type.as_str()), (1, "bind"));
    PathBuf::from(&mounts[0].source)
}

/// The directory that takes the changes of a stack.
fn upper(mounts: &[Mount]) -> PathBuf {
    let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
    PathBuf::from(upper.expect("a stack"))
}

#[test]
fn without_a_containerd_the_next_differ_is_asked_in_words_that_say_why() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut layers = DiffClient::new(channel(&daemon.socket).await);
        let refused = layers.apply(headed(apply_request("d", TAR, Vec::new()))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("--containerd-address"), "{refused}");
        let refused = layers.diff(headed(wire::DiffRequest::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
    });
}

#[test]
fn a_layer_of_each_media_type_is_applied_and_the_answer_describes_it_uncompressed() {
    wait_for(async {
        let mut world = World::native().await;
        let plain = tar(&["d/", "d/file", "big"]);
        let docker = "application/vnd.docker.image.rootfs";
        let cases = [
            (TAR.to_owned(), plain.clone()),
            (GZIP.to_owned(), compressed(&plain, Compression::Gzip)),
            (ZSTD.to_owned(), compressed(&plain, Compression::Zstd)),
            (format!("{docker}.diff.tar.gzip"), compressed(&plain, Compression::Gzip)),
            (format!("{docker}.diff.tar"), compressed(&plain, Compression::Gzip)),
            (format!("{docker}.foreign.diff.tar.gzip"), plain.clone()),
        ];
        for (at, (media_type, blob)) in cases.into_iter().enumerate() {
            let digest_of_blob = world.containerd.add(blob);
            let key = format!("k{at}");
            let mounts = world.prepare(&key, "", &[]).await;
            let applied = world.apply(&digest_of_blob, &media_type, mounts.clone()).await.expect(&media_type);
            assert_eq!(applied.media_type, TAR);
            assert_eq!(applied.digest, digest(&plain), "{media_type}");
            assert_eq!(applied.size, i64::try_from(plain.len()).unwrap());
            assert_eq!(fs::read(source(&mounts).join("d/file")).unwrap(), b"d/file", "{media_type}");
        }
        // An empty blob is an empty layer.
        let empty = world.containerd.add(Vec::new());
        let mounts = world.prepare("empty", "", &[]).await;
        let applied = world.apply(&empty, GZIP, mounts).await.unwrap();
        assert_eq!((applied.digest, applied.size), (digest(b""), 0));
        let calls = &world.containerd.0.lock().calls;
        assert!(calls.iter().all(|(_, namespace, _)| namespace == "ns"), "{calls:?}");
    });
}

#[test]
fn what_is_for_another_differ_is_told_so_and_changes_nothing() {
    wait_for(async {
        let mut world = World::native().await;
        let blob = world.containerd.add(tar(&["file"]));
        let mounts = world.prepare("a", "", &[]).await;
        for media_type in ["", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "text/plain"] {
            let refused = world.apply(&blob, media_type, mounts.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unimplemented, "{media_type}: {refused}");
        }
        let mut request = apply_request(&blob, TAR, mounts.clone());
        request.payloads = HashMap::from([("id".to_owned(), prost_types::Any::default())]);
        let refused = world.layers.apply(headed(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        let refused = world.apply(&blob, TAR, [mounts.clone(), mounts.clone()].concat()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        let below = Mount { target: "/sub".to_owned(), ..mounts[0].clone() };
        let refused = world.apply(&blob, TAR, vec![below]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        let refused =
            world.diff(wire::DiffRequest { media_type: "x".to_owned(), ..Default::default() }).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
        assert_eq!(fs::read_dir(source(&mounts)).unwrap().count(), 0);
        // The snapshot can still be used.
        world.apply(&blob, TAR, mounts).await.unwrap();
    });
}

#[test]
fn a_request_that_makes_no_sense_is_refused_by_its_class() {
    wait_for(async {
        let mut world = World::stacked().await;
        let blob = world.containerd.add(tar(&["file"]));
        let mounts = world.prepare("a", "", &[]).await;
        let refused = world.apply(&blob, TAR, Vec::new()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let refused = world.apply(&digest(b"other"), TAR, mounts.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let without = Request::new(apply_request(&blob, TAR, mounts.clone()));
        let refused = world.layers.apply(without).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("containerd-namespace"), "{refused}");
        world.client.commit(commit("base", "a")).await.unwrap();
        // What is committed stays as it is, whatever mount of it somebody has kept.
        let refused = world.apply(&blob, TAR, mounts.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        world.client.remove(remove("base")).await.unwrap();
        let refused = world.apply(&blob, TAR, mounts).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        let garbage = world.containerd.add(vec![b'x'; 5000]);
        let mounts = world.prepare("b", "", &[]).await;
        let refused = world.apply(&garbage, TAR, mounts).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    });
}

#[test]
fn a_blob_that_does_not_come_whole_is_no_layer_and_the_snapshot_cannot_be_committed() {
    wait_for(async {
        let mut world = World::native().await;
        let names: Vec<String> = (0..200).map(|n| format!("file{n:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let blob = world.containerd.add(tar(&names));
        for (at, odd) in [Odd::CutShort, Odd::TooLong, Odd::Breaks].into_iter().enumerate() {
            world.containerd.0.lock().odd = odd;
            let key = format!("k{at}");
            let mounts = world.prepare(&key, "", &[]).await;
            let refused = world.apply(&blob, TAR, mounts.clone()).await.unwrap_err();
            assert!(!matches!(refused.code(), Code::Unimplemented | Code::Ok), "{odd:?}: {refused}");
            let refused = world.client.commit(commit("c", &key)).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{odd:?}: {refused}");
            world.containerd.0.lock().odd = Odd::No;
            let refused = world.apply(&blob, TAR, mounts).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{odd:?}: {refused}");
            world.client.remove(remove(&key)).await.unwrap();
        }
    });
}

#[test]
fn a_caller_who_goes_away_ends_the_work_though_the_blob_does_not_come() {
    wait_for(async {
        let mut world = World::native().await;
        let blob = world.containerd.add(tar(&["a", "b", "c", "d"]));
        world.containerd.0.lock().odd = Odd::Stalls;
        let mounts = world.prepare("a", "", &[]).await;
        let waiting = tokio::time::timeout(Duration::from_millis(500), world.apply(&blob, TAR, mounts)).await;
        assert!(waiting.is_err());
        // Whoever works in it lets it go.
        let removed = tokio::time::timeout(Duration::from_secs(60), async {
            while world.client.remove(remove("a")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        removed.await.expect("the work ends");
    });
}

#[test]
fn a_layer_becomes_marks_in_a_stack_without_a_mount() {
    wait_for(async {
        let mut world = World::stacked().await;
        world.unpacked("base", "", tar(&["d/", "d/old", "d/stays", "gone"])).await;
        let blob = world.containerd.add(tar(&["d/", "d/.wh.old", "d/new", ".wh.gone"]));
        let mounts = world.prepare("a", "base", &[]).await;
        assert_eq!(mounts[0].r#type, "fuse3.plywood-fuse");
        world.apply(&blob, TAR, mounts.clone()).await.unwrap();
        let upper = upper(&mounts);
        assert_eq!(fs::read(upper.join("d/new")).unwrap(), b"d/new");
        if rustix::process::geteuid().is_root() {
            assert!(fs::symlink_metadata(upper.join("gone")).unwrap().file_type().is_char_device());
        }
        world.client.commit(commit("top", "a")).await.unwrap();
        let paths = world.daemon.snapshotter.layers("top").unwrap();
        let shown = plywood_fuse::overlay::Overlay::open(&paths.lowers, None, Default::default()).unwrap();
        let names = names(shown);
        assert_eq!(names, ["d", "d/new", "d/stays"]);
    });
}

/// Every name in a stack, sorted.
fn names(overlay: plywood_fuse::overlay::Overlay) -> Vec<String> {
    let view = plywood_fuse::view::View::new(overlay.into(), plywood_fuse::types::Identity::root());
    let mut all = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in view.read_dir(if dir.is_empty() { "." } else { &dir }).expect("a directory") {
            let name = entry.name.into_string().expect("text");
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if entry.attr.kind == plywood_fuse::types::Kind::Dir {
                dirs.push(path.clone());
            }
            all.push(path);
        }
    }
    all.sort();
    all
}

const PARENT: &str = "containerd.io/snapshot/parent-chain-id";
const REF: &str = "containerd.io/snapshot.ref";

// Contract 1.8, D 4: in parallel mode every layer is prepared without a parent.
#[test]
fn layers_that_are_unpacked_in_parallel_keep_their_whiteouts() {
    wait_for(async {
        let mut world = World::stacked().await;
        let base = world.containerd.add(tar(&["d/", "d/old", "gone", ".wh.never"]));
        let top = world.containerd.add(tar(&["d/", "d/.wh.old", "d/new", ".wh.gone"]));
        let upper = world.prepare("ns/2/top", "", &[(REF, "sha256:2"), (PARENT, "sha256:1")]).await;
        let lower = world.prepare("ns/1/base", "", &[(REF, "sha256:1")]).await;
        let (one, two) = tokio::join!(world.apply(&top, TAR, upper), world.apply(&base, TAR, lower.clone()));
        one.and(two).unwrap();
        assert!(!source(&lower).join("never").exists(), "the lowest layer has no marks");
        world.client.commit(commit("ns/3/sha256:1", "ns/1/base")).await.unwrap();
        let onto = snapshots::CommitSnapshotRequest {
            parent: "ns/3/sha256:1".to_owned(),
            ..commit("ns/4/sha256:2", "ns/2/top")
        };
        world.client.commit(onto).await.unwrap();
        let paths = world.daemon.snapshotter.layers("ns/4/sha256:2").unwrap();
        assert_eq!(paths.lowers.len(), 2);
        let shown = plywood_fuse::overlay::Overlay::open(&paths.lowers, None, Default::default()).unwrap();
        assert_eq!(names(shown), ["d", "d/new"]);
    });
}

#[test]
fn a_layer_that_makes_no_sense_alone_waits_for_those_below() {
    wait_for(async {
        let mut world = World::stacked().await;
        let base = world.containerd.add(tar(&["d/", "d/file", "gone"]));
        // A hard link to a file of the layer below, behind something that stands there already.
        let top = world.containerd.add(tar(&["first", ".wh.gone", "link>d/file"]));
        let lower = world.prepare("ns/1/base", "", &[(REF, "sha256:1")]).await;
        let upper = world.prepare("ns/2/top", "", &[(REF, "sha256:2"), (PARENT, "sha256:1")]).await;
        // The same chain in another namespace is somebody else's.
        let other = world.prepare("other/1/x", "", &[]).await;
        drop(other);
        let made = snapshots::CommitSnapshotRequest {
            labels: labels(&[(REF, "sha256:1")]),
            ..commit("other/9/sha256:1", "other/1/x")
        };
        world.client.commit(made).await.unwrap();
        let mut client = world.client.clone();
        let below = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            world.apply(&base, TAR, lower).await.expect("the lower one is applied meanwhile");
            let made = snapshots::CommitSnapshotRequest {
                labels: labels(&[(REF, "sha256:1")]),
                ..commit("ns/3/sha256:1", "ns/1/base")
            };
            client.commit(made).await.expect("and committed");
        };
        let (applied, ()) = tokio::join!(world.apply(&top, TAR, upper), below);
        assert_eq!(applied.unwrap().digest, top);
        let onto = snapshots::CommitSnapshotRequest {
            parent: "ns/3/sha256:1".to_owned(),
            ..commit("ns/4/sha256:2", "ns/2/top")
        };
        world.client.commit(onto).await.unwrap();
        let paths = world.daemon.snapshotter.layers("ns/4/sha256:2").unwrap();
        let shown = plywood_fuse::overlay::Overlay::open(&paths.lowers, None, Default::default()).unwrap();
        assert_eq!(names(shown), ["d", "d/file", "first", "link"]);
    });
}

#[test]
fn a_layer_that_was_applied_as_the_lowest_one_gets_no_parent() {
    wait_for(async {
        let mut world = World::stacked().await;
        world.unpacked("base", "", tar(&["gone"])).await;
        let top = world.containerd.add(tar(&[".wh.gone"]));
        let mounts = world.prepare("a", "", &[]).await;
        world.apply(&top, TAR, mounts).await.unwrap();
        let onto = snapshots::CommitSnapshotRequest { parent: "base".to_owned(), ..commit("top", "a") };
        let refused = world.client.commit(onto).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("parent-chain-id"), "{refused}");
        world.client.commit(commit("alone", "a")).await.unwrap();
    });
}

#[test]
fn a_kept_mount_shows_the_layer_afterwards() {
    if !plywood_fuse::testing::suite::may_mount() {
        return;
    }
    wait_for(async {
        let mut world = World::new(BackendName::Fuse, HandOut::Bind).await;
        world.unpacked("base", "", tar(&["old"])).await;
        let top = world.containerd.add(tar(&[".wh.old", "new"]));
        let given = world.prepare("a", "base", &[]).await;
        let point = source(&given);
        assert!(point.join("old").exists());
        world.apply(&top, TAR, given.clone()).await.unwrap();
        assert!(point.join("new").exists() && !point.join("old").exists());
        assert_eq!(world.client.mounts(mounts("a")).await.unwrap().into_inner().mounts, given);
        // And what somebody changes there is in the layer.
        fs::write(point.join("more"), "x").unwrap();
        let parent = world.client.view(view("v", "base")).await.unwrap().into_inner().mounts;
        let request = wire::DiffRequest {
            left: parent,
            right: given,
            media_type: TAR.to_owned(),
            ..wire::DiffRequest::default()
        };
        let made = world.diff(request).await.unwrap();
        assert_eq!(members(&world.blob(&made.digest)), ["more", "new", ".wh.old"]);
        for key in ["a", "v"] {
            world.client.remove(remove(key)).await.unwrap();
        }
    });
}

#[test]
fn what_is_not_ours_is_mounted_for_as_long_as_it_takes() {
    if !plywood_fuse::testing::suite::may_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    wait_for(async {
        let world = World::native().await;
        let dir = TempDir::new();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for tree in [&old, &new] {
            fs::create_dir(tree).unwrap();
            fs::write(tree.join("gone"), "x").unwrap();
        }
        let bind = |path: &PathBuf| Mount {
            r#type: "bind".to_owned(),
            source: path.to_str().expect("text").to_owned(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
            ..Mount::default()
        };
        let blob = world.containerd.add(tar(&["d/", "d/new", ".wh.gone"]));
        world.apply(&blob, TAR, vec![bind(&new)]).await.unwrap();
        assert!(new.join("d/new").exists() && !new.join("gone").exists());
        let request = wire::DiffRequest {
            left: vec![bind(&old)],
            right: vec![bind(&new)],
            media_type: TAR.to_owned(),
            ..wire::DiffRequest::default()
        };
        let made = world.diff(request).await.unwrap();
        assert_eq!(members(&world.blob(&made.digest)), ["d/", "d/new", ".wh.gone"]);
        let left = fs::read_dir(world.daemon.snapshotter.layout().mounts()).unwrap().count();
        assert_eq!(left, 0, "no mount point stays");
    });
}

fn diff_request(left: Vec<Mount>, right: Vec<Mount>) -> wire::DiffRequest {
    wire::DiffRequest { left, right, ..wire::DiffRequest::default() }
}

#[test]
fn a_diff_is_stored_with_its_labels_under_a_lease() {
    wait_for(async {
        let mut world = World::stacked().await;
        world.unpacked("base", "", tar(&["d/", "d/old", "gone"])).await;
        let left = world.client.view(view("v", "base")).await.unwrap().into_inner().mounts;
        let right = world.prepare("a", "base", &[]).await;
        fs::write(upper(&right).join("new"), vec![7; 3_000_000]).unwrap();
        let mut plain = Vec::new();
        for media_type in [TAR, "", GZIP, ZSTD] {
            let request = wire::DiffRequest {
                media_type: media_type.to_owned(),
                r#ref: "my ref".to_owned(),
                labels: labels(&[("mine", "1")]),
                ..diff_request(left.clone(), right.clone())
            };
            // Somebody wrote half of something under it before.
            world.containerd.0.lock().ingests.insert("my ref".to_owned(), vec![1; 777]);
            let made = world.diff(request).await.expect(media_type);
            assert_eq!(made.media_type, if media_type.is_empty() { GZIP } else { media_type });
            let state = world.containerd.0.lock();
            let blob = &state.blobs[&made.digest];
            assert_eq!(made.size, i64::try_from(blob.data.len()).unwrap());
            if media_type == TAR {
                assert_eq!(members(&blob.data), ["new"]);
                assert_eq!(blob.labels, labels(&[("mine", "1")]));
                plain = blob.data.clone();
            } else if media_type == GZIP || media_type == ZSTD {
                assert!(unpack_bytes(&blob.data) == plain, "{media_type}");
                assert_eq!(blob.labels["containerd.io/uncompressed"], digest(&plain));
            }
            assert!(state.ingests.is_empty(), "{:?}", state.ingests.keys());
        }
        let state = world.containerd.0.lock();
        assert!(state.largest_piece <= 1 << 20, "{}", state.largest_piece);
        let writes: Vec<_> = state.calls.iter().filter(|(call, ..)| *call == "write").collect();
        assert_eq!(writes.len(), 4);
        for (_, namespace, lease) in writes {
            let expires = &state.leases[lease]["containerd.io/gc.expire"];
            assert!(expires.ends_with('Z') && namespace == "ns", "{expires}");
        }
    });
}

#[test]
fn a_lease_that_came_with_the_request_is_used_and_no_other_is_made() {
    wait_for(async {
        let mut world = World::native().await;
        let right = world.prepare("a", "", &[]).await;
        let mut request = headed(diff_request(Vec::new(), right));
        request.metadata_mut().insert("containerd-lease", "theirs".parse().unwrap());
        world.layers.diff(request).await.unwrap();
        let state = world.containerd.0.lock();
        assert!(state.leases.is_empty());
        assert!(state.calls.iter().any(|(call, _, lease)| *call == "write" && lease == "theirs"));
    });
}

#[test]
fn a_blob_that_is_there_already_is_kept_and_gets_the_label_that_it_lacks() {
    wait_for(async {
        let mut world = World::native().await;
        let right = world.prepare("a", "", &[]).await;
        fs::write(source(&right).join("file"), "x").unwrap();
        let first = world.diff(diff_request(Vec::new(), right.clone())).await.unwrap();
        world.containerd.0.lock().blobs.get_mut(&first.digest).unwrap().labels.clear();
        let again = world.diff(diff_request(Vec::new(), right)).await.unwrap();
        assert_eq!(first, again);
        let state = world.containerd.0.lock();
        assert!(state.blobs[&first.digest].labels.contains_key("containerd.io/uncompressed"));
        assert!(state.kept.iter().any(|(_, digest)| *digest == first.digest), "{:?}", state.kept);
        assert!(state.ingests.is_empty());
    });
}

#[test]
fn a_reference_of_ours_is_given_up_when_writing_fails_and_the_reason_is_told() {
    wait_for(async {
        let mut world = World::native().await;
        let right = world.prepare("a", "", &[]).await;
        fs::write(source(&right).join("file"), vec![1; 6_000_000]).unwrap();
        world.containerd.0.lock().odd = Odd::DiskFull;
        let request =
            wire::DiffRequest { media_type: TAR.to_owned(), ..diff_request(Vec::new(), right.clone()) };
        let refused = world.diff(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let given_up = tokio::time::timeout(Duration::from_secs(60), async {
            while !world.containerd.0.lock().ingests.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        given_up.await.expect("it is given up");
        // Somebody else holds the reference for a moment.
        world.containerd.0.lock().odd = Odd::Locked(2);
        world.diff(diff_request(Vec::new(), right)).await.unwrap();
    });
}

#[test]
fn times_are_lowered_to_the_epoch_of_the_source() {
    wait_for(async {
        let mut world = World::native().await;
        layer(&mut world.client, "base", "").await;
        let left = world.client.view(view("v", "base")).await.unwrap().into_inner().mounts;
        let right = world.prepare("a", "base", &[]).await;
        fs::write(source(&right).join("file"), "x").unwrap();
        assert!(fs::metadata(source(&right).join("file")).unwrap().mtime() > 1000);
        let request = wire::DiffRequest {
            media_type: TAR.to_owned(),
            source_date_epoch: Some(prost_types::Timestamp { seconds: 1000, nanos: 0 }),
            ..diff_request(left, right)
        };
        let made = world.diff(request).await.unwrap();
        let blob = world.blob(&made.digest);
        let entry = Reader::new(&blob[..], Limits::default()).next().unwrap().unwrap();
        assert_eq!((entry.path, entry.mtime.secs), (b"file".to_vec(), 1000));
    });
}

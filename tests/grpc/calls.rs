//! Each call does what it says.

use crate::support::{
    Daemon, blocks, commit, labels, layer, mounts, names, open, prepare, remove, stat, update, usage, view,
    wait_for,
};
use plywood::backend::BackendName;
use plywood::grpc::proto::containerd::services::snapshots::v1 as wire;
use plywood::types::Realm;
use std::collections::HashMap;
use wire::Kind;

#[test]
fn a_layer_is_prepared_changed_committed_viewed_and_removed() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let made = client.prepare(prepare("a", "")).await.unwrap().into_inner().mounts;
        assert_eq!((made.len(), made[0].r#type.as_str(), made[0].target.as_str()), (1, "bind", ""));
        assert_eq!(made[0].options, ["rbind", "rw"]);
        std::fs::write(format!("{}/file", made[0].source), vec![1; 10_000]).unwrap();
        assert_eq!(client.mounts(mounts("a")).await.unwrap().into_inner().mounts, made);
        let used = client.usage(usage("a")).await.unwrap().into_inner();
        assert!(used.size >= 10_000 && used.inodes == 2, "{used:?}");

        let request = wire::CommitSnapshotRequest { labels: labels(&[("l", "1")]), ..commit("base", "a") };
        client.commit(request).await.unwrap();
        let info = client.stat(stat("base")).await.unwrap().into_inner().info.unwrap();
        assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("base", "", Kind::Committed));
        assert_eq!((info.labels, info.created_at), (labels(&[("l", "1")]), info.updated_at));
        assert_eq!(client.usage(usage("base")).await.unwrap().into_inner(), used);

        let shown = client.view(view("v", "base")).await.unwrap().into_inner().mounts;
        assert_eq!(shown[0].options, ["rbind", "ro"]);
        assert_eq!(std::fs::read(format!("{}/file", shown[0].source)).unwrap().len(), 10_000);
        client.prepare(prepare("b", "base")).await.unwrap();
        let info = client.stat(stat("b")).await.unwrap().into_inner().info.unwrap();
        assert_eq!((info.parent.as_str(), info.kind()), ("base", Kind::Active));
        let info = client.stat(stat("v")).await.unwrap().into_inner().info.unwrap();
        assert_eq!((info.parent.as_str(), info.kind()), ("base", Kind::View));

        for key in ["v", "b", "base"] {
            client.remove(remove(key)).await.unwrap();
        }
        client.cleanup(wire::CleanupRequest::default()).await.unwrap();
        assert!(blocks(&mut client, &[]).await.unwrap().is_empty(), "nothing matches: no message");
    });
}

// 1.3 Update, and rule 5: what containerd says of kind, parent and times does not count.
#[test]
fn an_update_changes_the_labels_that_its_mask_names() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        client.prepare(prepare("k", "")).await.unwrap();
        let created = client.stat(stat("k")).await.unwrap().into_inner().info.unwrap().created_at;
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: [(Pairs<'_>, &[&str], Pairs<'_>); 6] = [
            (&[("a", "1"), ("b", "2")], &[], &[("a", "1"), ("b", "2")]),
            (&[("b", "3"), ("c", "4")], &["labels.b"], &[("a", "1"), ("b", "3")]),
            (&[], &["labels.a"], &[("b", "3")]),
            (&[("x.y/z", "5")], &["labels.x.y/z"], &[("b", "3"), ("x.y/z", "5")]),
            (&[("d", "6")], &["labels"], &[("d", "6")]),
            (&[("d", "")], &["labels.d"], &[]),
        ];
        for (given, mask, expected) in cases {
            let mut request = update("k", labels(given), mask);
            if let Some(info) = &mut request.info {
                info.kind = Kind::Committed.into();
                info.parent = "nobody".to_owned();
                info.created_at = Some(prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 });
            }
            let info = client.update(request).await.unwrap().into_inner().info.unwrap();
            assert_eq!(info.labels, labels(expected), "{given:?} {mask:?}");
            assert_eq!((info.kind(), info.parent.as_str(), info.created_at), (Kind::Active, "", created));
            assert_eq!(client.stat(stat("k")).await.unwrap().into_inner().info, Some(info));
        }
        let without_mask =
            wire::UpdateSnapshotRequest { update_mask: None, ..update("k", labels(&[("e", "7")]), &[]) };
        let info = client.update(without_mask).await.unwrap().into_inner().info.unwrap();
        assert_eq!(info.labels, labels(&[("e", "7")]));
    });
}

#[test]
fn a_list_is_what_the_filters_match() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        let request = wire::PrepareSnapshotRequest {
            labels: labels(&[("containerd.io/snapshot.ref", "sha256:1"), ("l", "x")]),
            ..prepare("k8s.io/42/extract-1 sha256:2", "base")
        };
        client.prepare(request).await.unwrap();
        client.view(view("v", "base")).await.unwrap();
        let active = "k8s.io/42/extract-1 sha256:2";
        let cases: [(&[&str], &[&str]); 10] = [
            (&[], &["base", active, "v"]),
            (&[""], &["base", active, "v"]),
            (&["kind==committed"], &["base"]),
            (&["kind!=committed"], &[active, "v"]),
            (&["parent==base,kind==view"], &["v"]),
            (&["name==base", "labels.l"], &["base", active]),
            (&["labels.\"containerd.io/snapshot.ref\"==sha256:1,parent==\"base\""], &[active]),
            (&["name~=/^k8s/"], &[active]),
            (&["name~=|(|"], &[]),
            (&["name==nobody"], &[]),
        ];
        for (filters, expected) in cases {
            assert_eq!(names(&mut client, filters).await, expected, "{filters:?}");
        }
    });
}

#[test]
fn a_long_list_comes_in_blocks_of_a_hundred() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        for n in 0..450 {
            client.view(view(&format!("{n:03}"), "")).await.unwrap();
        }
        let blocks = blocks(&mut client, &[]).await.unwrap();
        let lengths: Vec<usize> = blocks.iter().map(Vec::len).collect();
        assert_eq!(lengths, [100, 100, 100, 100, 50]);
        let all: Vec<wire::Info> = blocks.into_iter().flatten().collect();
        assert!(all.iter().enumerate().all(|(n, info)| info.name == format!("{n:03}")), "each one once");
        for info in &all[..10] {
            let known = client.stat(stat(&info.name)).await.unwrap().into_inner().info;
            assert_eq!(known.as_ref(), Some(info), "a list tells what stat tells");
        }
    });
}

// 1.3: a Stat from inside of a walk, and removal while one goes on.
#[test]
fn a_list_that_goes_on_keeps_nobody_from_anything() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        for n in 0..350 {
            client.view(view(&format!("{n:03}"), "")).await.unwrap();
        }
        let mut other = client.clone();
        let mut stream = client.list(wire::ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let mut seen = 0;
        while let Some(block) = stream.message().await.unwrap() {
            for info in block.info {
                seen += 1;
                if other.stat(stat(&info.name)).await.is_ok() {
                    other.remove(remove(&info.name)).await.unwrap();
                }
            }
        }
        assert_eq!(seen, 350);
        assert!(names(&mut client, &[]).await.is_empty());
    });
}

// Rule 1, [D 5]: realms.
#[test]
fn snapshots_of_other_realms_are_neither_seen_nor_removed() {
    let daemon = Daemon::start();
    let dir = daemon.socket.parent().and_then(|run| run.parent()).unwrap().to_owned();
    let ours = open(&dir, BackendName::Native, Realm::cli());
    ours.prepare("mine", None, Default::default(), &()).unwrap();
    wait_for(async {
        let mut client = daemon.client().await;
        assert!(names(&mut client, &[]).await.is_empty());
        let refused = client.remove(remove("mine")).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        client.prepare(prepare("mine", "")).await.unwrap();
        client.cleanup(wire::CleanupRequest::default()).await.unwrap();
        client.remove(remove("mine")).await.unwrap();
    });
    assert!(ours.stat("mine").is_ok());
    assert!(std::fs::metadata(&ours.mounts("mine").unwrap()[0].source).is_ok(), "its directory is there");
}

// 1.8, and rule 10: the parent comes in a field that only newer versions have.
#[test]
fn a_snapshot_without_a_parent_gets_one_at_commit_where_layers_are_stacked() {
    let settings = plywood::grpc::server::ServeSettings {
        hand_out: plywood::grpc::service::HandOut::Fuse3,
        ..Default::default()
    };
    let daemon = Daemon::with(BackendName::Fuse, settings);
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("a", "")).await.unwrap();
        let with =
            |parent: &str| wire::CommitSnapshotRequest { parent: parent.to_owned(), ..commit("top", "a") };
        let missing = client.commit(with("nobody")).await.unwrap_err();
        assert_eq!(missing.code(), tonic::Code::NotFound);
        client.commit(with("base")).await.unwrap();
        let info = client.stat(stat("top")).await.unwrap().into_inner().info.unwrap();
        assert_eq!(info.parent, "base");
    });
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("a", "")).await.unwrap();
        let request = wire::CommitSnapshotRequest { parent: "base".to_owned(), ..commit("top", "a") };
        let refused = client.commit(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "a full copy has its parent's content");
        assert_eq!(client.stat(stat("a")).await.unwrap().into_inner().info.unwrap().kind(), Kind::Active);
    });
}

#[test]
fn labels_are_stored_as_given_but_for_empty_ones() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        let given = labels(&[("containerd.io/snapshot.ref", "sha256:1"), ("empty", ""), ("ä", "ö")]);
        client.prepare(wire::PrepareSnapshotRequest { labels: given, ..prepare("k", "") }).await.unwrap();
        let info = client.stat(stat("k")).await.unwrap().into_inner().info.unwrap();
        assert_eq!(info.labels, labels(&[("containerd.io/snapshot.ref", "sha256:1"), ("ä", "ö")]));
        client.commit(commit("c", "k")).await.unwrap();
        let info = client.stat(stat("c")).await.unwrap().into_inner().info.unwrap();
        assert_eq!(info.labels, HashMap::new(), "commit replaces them");
    });
}

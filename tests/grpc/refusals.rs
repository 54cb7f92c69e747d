//! Each way to be refused has its code.

use crate::support::{
    Daemon, blocks, commit, labels, layer, mounts, prepare, remove, stat, update, usage, view, wait_for,
};
use plywood::grpc::proto::containerd::services::snapshots::v1 as wire;
use tonic::{Code, Status};

fn is(refused: Result<impl std::fmt::Debug, Status>, code: Code, what: &str) {
    let refused = refused.expect_err(what);
    assert_eq!(refused.code(), code, "{what}: {refused}");
    assert!(!refused.message().is_empty(), "{what}");
}

#[test]
fn every_refusal_has_the_code_of_its_class() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base", "").await;
        client.prepare(prepare("active", "base")).await.unwrap();
        client.view(view("view", "base")).await.unwrap();

        for key in ["active", "view", "base"] {
            is(client.prepare(prepare(key, "base")).await, Code::AlreadyExists, key);
            is(client.view(view(key, "")).await, Code::AlreadyExists, key);
        }
        is(client.prepare(prepare("x", "nobody")).await, Code::NotFound, "prepare without parent");
        is(client.view(view("x", "nobody")).await, Code::NotFound, "view without parent");
        is(client.prepare(prepare("x", "active")).await, Code::InvalidArgument, "parent is active");
        is(client.view(view("x", "view")).await, Code::InvalidArgument, "parent is a view");
        is(client.stat(stat("x")).await, Code::NotFound, "nothing was made");

        is(client.mounts(mounts("base")).await, Code::FailedPrecondition, "mounts of committed");
        is(client.mounts(mounts("x")).await, Code::NotFound, "mounts");
        is(client.usage(usage("x")).await, Code::NotFound, "usage");
        is(client.remove(remove("x")).await, Code::NotFound, "remove");
        is(client.update(update("x", labels(&[]), &[])).await, Code::NotFound, "update");
        is(client.commit(commit("new", "x")).await, Code::NotFound, "commit");
        is(client.commit(commit("base", "active")).await, Code::AlreadyExists, "commit to a name in use");
        is(client.commit(commit("new", "view")).await, Code::FailedPrecondition, "commit of a view");
        is(client.commit(commit("new", "base")).await, Code::FailedPrecondition, "commit of committed");

        for paths in [&["parent"][..], &["name"], &["labels.a", "kind"], &["Labels"], &["created_at"]] {
            let refused = client.update(update("active", labels(&[("a", "1")]), paths)).await;
            is(refused, Code::InvalidArgument, &format!("{paths:?}"));
        }
        let unchanged = client.stat(stat("active")).await.unwrap().into_inner().info.unwrap();
        assert!(unchanged.labels.is_empty());
        is(client.update(wire::UpdateSnapshotRequest::default()).await, Code::InvalidArgument, "no info");

        for filter in ["name==", "name=x", "==x", "a b", "name==\"x", "labels.", ",,"] {
            is(blocks(&mut client, &[filter]).await, Code::InvalidArgument, filter);
        }
        for key in ["", "nul\0inside"] {
            is(client.prepare(prepare(key, "")).await, Code::InvalidArgument, key);
            is(client.stat(stat(key)).await, Code::InvalidArgument, key);
            is(client.remove(remove(key)).await, Code::InvalidArgument, key);
        }
        for (name, value) in [
            ("containerd.io/snapshot/uidmapping", "1:2"),
            ("containerd.io/snapshot/uidmapping", "1:100000:65536"),
            ("containerd.io/snapshot/gidmapping", "0:4294967295:2"),
        ] {
            let mut request = prepare("mapped", "");
            request.labels = labels(&[
                ("containerd.io/snapshot/uidmapping", "0:1:1"),
                ("containerd.io/snapshot/gidmapping", "0:1:1"),
                (name, value),
            ]);
            is(client.prepare(request).await, Code::InvalidArgument, value);
        }
    });
}

// The suite of containerd looks for the word; clients take the end of a message for another class.
#[test]
fn removal_of_a_parent_says_what_was_refused() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        layer(&mut client, "base: conflict", "").await;
        client.prepare(prepare("child", "base: conflict")).await.unwrap();
        let refused = client.remove(remove("base: conflict")).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains("remove"), "{refused}");
        assert!(!refused.message().ends_with(": conflict"), "{refused}");
        client.remove(remove("child")).await.unwrap();
        client.remove(remove("base: conflict")).await.unwrap();
    });
}

#[test]
fn what_is_in_use_is_a_failed_precondition() {
    let daemon = Daemon::start();
    wait_for(async {
        let mut client = daemon.client().await;
        client.prepare(prepare("held", "")).await.unwrap();
        daemon.snapshotter.hold("held").unwrap();
        is(client.remove(remove("held")).await, Code::FailedPrecondition, "somebody works in it");
    });
}

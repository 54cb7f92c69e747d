//! containerd's suite of its own metadata store, case by case.

use crate::*;

/// Two layers, actives and views on both, on each other's heads and on nothing.
fn populated() -> World {
    let world = World::new();
    layer(&world, "committed-1", "");
    layer(&world, "committed-2", "committed-1");
    for (kind, name, parent) in [
        (ACTIVE, "active-1", ""),
        (ACTIVE, "active-2", "committed-1"),
        (ACTIVE, "active-3", "committed-2"),
        (VIEW, "view-1", ""),
        (VIEW, "view-2", "committed-1"),
        (VIEW, "view-3", "committed-2"),
    ] {
        create(&world, kind, name, parent).expect("it can be made");
    }
    world
}

// S23, S45: parent, kind, labels and times of every kind.
#[test]
fn get_info_tells_name_parent_and_kind() {
    let world = populated();
    let cases = [
        ("committed-1", "", COMMITTED),
        ("committed-2", "committed-1", COMMITTED),
        ("active-1", "", ACTIVE),
        ("active-2", "committed-1", ACTIVE),
        ("active-3", "committed-2", ACTIVE),
        ("view-1", "", VIEW),
        ("view-2", "committed-1", VIEW),
        ("view-3", "committed-2", VIEW),
    ];
    for (name, parent, kind) in cases {
        let info = world.read("stat", |rows| rows.info(&rows.find(&realm(), name)?)).expect("it is there");
        assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind), (name, parent, kind));
        assert_eq!(info.created, info.updated);
        if kind != COMMITTED {
            assert_eq!(info.labels, labels(&[("test", name)]));
        }
    }
}

#[test]
fn get_info_of_what_is_not_there_is_not_found() {
    assert_eq!(kind_of(find(&populated(), "active-not-exist")), Some(ErrorKind::NotFound));
}

// S33: in a new store all tables are there, and empty.
#[test]
fn get_info_of_a_new_store_is_not_found() {
    let world = World::new();
    assert_eq!(kind_of(find(&world, "active-1")), Some(ErrorKind::NotFound));
    assert_eq!(all_names(&world), Vec::<String>::new());
    assert_eq!(world.read("stat", |rows| rows.children(SnapshotId(1))).expect("it can be read"), []);
}

#[test]
fn walk_shows_everything_once_in_the_order_of_numbers() {
    let world = populated();
    let expected =
        ["committed-1", "committed-2", "active-1", "active-2", "active-3", "view-1", "view-2", "view-3"];
    assert_eq!(all_names(&world), expected);
}

#[test]
fn get_snapshot_tells_the_chain_nearest_first() {
    let world = populated();
    for (name, chain) in [
        ("active-1", ids(&[])),
        ("active-2", ids(&[1])),
        ("active-3", ids(&[2, 1])),
        ("view-1", ids(&[])),
        ("view-2", ids(&[1])),
        ("view-3", ids(&[2, 1])),
    ] {
        let found = world.read("mounts", |rows| rows.chain(&rows.find(&realm(), name)?));
        assert_eq!(found.expect("it is there"), chain, "{name}");
    }
}

#[test]
fn get_snapshot_of_a_committed_one_tells_that_it_is_committed() {
    let record = find(&populated(), "committed-1").expect("it is there");
    assert_eq!((record.kind, record.usage.size_bytes), (COMMITTED, 1));
}

#[test]
fn get_snapshot_of_what_is_not_there_is_not_found() {
    let error = find(&populated(), "active-not-exist").expect_err("it is not there");
    assert_eq!(error.to_string(), "stat: \"active-not-exist\": there is no such snapshot: not found");
}

#[test]
fn get_snapshot_of_a_new_store_is_not_found() {
    let world = World::new();
    let record = world.read("mounts", |rows| rows.record(SnapshotId(1)));
    assert_eq!(record.expect("it can be read"), None);
}

// S6, S43: the parent is recorded, by number and by name.
#[test]
fn create_active_makes_it_below_its_parent() {
    let world = populated();
    let without = create(&world, ACTIVE, "new-1", "").expect("it can be made");
    assert_eq!((without.parent, without.kind), (None, ACTIVE));
    let with = create(&world, ACTIVE, "new-2", "committed-2").expect("it can be made");
    assert_eq!(with.parent, Some(SnapshotId(2)));
    let above = world
        .read("stat", |rows| Ok((rows.parent_name(&without)?, rows.parent_name(&with)?, rows.chain(&with)?)));
    assert_eq!(above.expect("it is there"), (String::new(), "committed-2".to_owned(), ids(&[2, 1])));
    let view = create(&world, VIEW, "new-3", "committed-2").expect("it can be made");
    assert_eq!((view.parent, view.kind), (Some(SnapshotId(2)), VIEW));
}

#[test]
fn create_active_below_what_is_not_there_is_not_found() {
    let world = populated();
    for kind in [ACTIVE, VIEW] {
        assert_eq!(kind_of(create(&world, kind, "new", "committed-not-exist")), Some(ErrorKind::NotFound));
        assert_eq!(kind_of(find(&world, "new")), Some(ErrorKind::NotFound));
    }
}

// S8, S40, S41: one key space for all kinds, and a refusal changes nothing.
#[test]
fn create_active_with_a_key_in_use_already_exists() {
    let world = populated();
    let before: Vec<Record> =
        all_names(&world).iter().map(|n| find(&world, n).expect("it is there")).collect();
    for name in ["active-1", "view-1", "committed-1"] {
        for kind in [ACTIVE, VIEW] {
            for parent in ["", "committed-1"] {
                assert_eq!(
                    kind_of(create(&world, kind, name, parent)),
                    Some(ErrorKind::AlreadyExists),
                    "{name}"
                );
            }
        }
    }
    let after: Vec<Record> =
        all_names(&world).iter().map(|n| find(&world, n).expect("it is there")).collect();
    assert_eq!(before, after);
}

#[test]
fn create_active_from_an_active_one_is_an_invalid_argument() {
    let world = populated();
    for parent in ["active-1", "view-1"] {
        assert_eq!(kind_of(create(&world, ACTIVE, "new", parent)), Some(ErrorKind::InvalidArgument));
    }
    // The parent is looked at before the key.
    assert_eq!(kind_of(create(&world, ACTIVE, "active-1", "active-2")), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(create(&world, ACTIVE, "active-1", "nothing")), Some(ErrorKind::NotFound));
}

// S14, S15, S42: same number and parent, key gone, both times new, labels replaced.
#[test]
fn commit_makes_a_committed_snapshot_of_an_active_one() {
    let (world, realm) = (populated(), realm());
    for (key, name, parent) in
        [("active-1", "committed-3", None), ("active-2", "committed-4", Some(SnapshotId(1)))]
    {
        let active = find(&world, key).expect("it is there");
        let new = labels(&[("containerd.io/snapshot.ref", "x"), ("empty", "")]);
        let request = Commit { now: at(77), flags: Record::REDIRECTS, ..commit(&realm, key, name, &new) };
        let record = world.write("commit", |rows| rows.commit(&request)).expect("it can be committed");
        assert_eq!(record, find(&world, name).expect("it is there"));
        assert_eq!((record.id, record.kind, record.parent), (active.id, COMMITTED, parent));
        assert_eq!((record.created, record.updated), (at(77), at(77)));
        assert_eq!(record.labels, labels(&[("containerd.io/snapshot.ref", "x")]));
        assert_eq!(record.usage, Usage { size_bytes: 1, inodes: 2 });
        assert_eq!(record.flags, Record::REDIRECTS);
        assert_eq!(kind_of(find(&world, key)), Some(ErrorKind::NotFound));
        create(&world, ACTIVE, key, name).expect("the key is free, and the name may be a parent");
    }
    // S32: the back reference follows.
    let children = world.read("stat", |rows| rows.children(SnapshotId(1))).expect("it can be read");
    assert!(children.iter().any(|c| c.name == "committed-4"));
    assert!(!children.iter().any(|c| c.name == "active-2"));
}

// S16
#[test]
fn commit_onto_a_name_in_use_already_exists() {
    let world = populated();
    for name in ["committed-1", "view-1", "active-2", "active-1"] {
        assert_eq!(kind_of(commit_as(&world, "active-1", name)), Some(ErrorKind::AlreadyExists), "{name}");
    }
    assert_eq!(find(&world, "active-1").map(|r| r.kind).ok(), Some(ACTIVE));
}

// S13
#[test]
fn commit_of_what_is_not_there_is_not_found() {
    let world = populated();
    assert_eq!(kind_of(commit_as(&world, "active-not-exist", "committed-3")), Some(ErrorKind::NotFound));
    // The key is looked at before the name.
    assert_eq!(kind_of(commit_as(&world, "active-not-exist", "committed-1")), Some(ErrorKind::NotFound));
}

// S12, S42
#[test]
fn commit_of_a_view_or_of_a_committed_snapshot_is_refused() {
    let world = populated();
    for key in ["view-1", "view-2", "committed-1"] {
        assert_eq!(
            kind_of(commit_as(&world, key, "committed-3")),
            Some(ErrorKind::FailedPrecondition),
            "{key}"
        );
    }
    assert_eq!(kind_of(find(&world, "committed-3")), Some(ErrorKind::NotFound));
}

#[test]
fn of_two_commits_of_one_key_the_second_finds_nothing() {
    let world = populated();
    commit_as(&world, "active-1", "committed-3").expect("it can be committed");
    assert_eq!(kind_of(commit_as(&world, "active-1", "committed-4")), Some(ErrorKind::NotFound));
}

#[test]
fn commit_of_another_snapshot_than_was_measured_is_aborted() {
    let world = populated();
    let measured = find(&world, "active-1").expect("it is there").id;
    remove(&world, "active-1").expect("it can be removed");
    create(&world, ACTIVE, "active-1", "").expect("the key is free");
    let (realm, none) = (realm(), Labels::new());
    let request = Commit { expected: Some(measured), ..commit(&realm, "active-1", "committed-3", &none) };
    assert_eq!(kind_of(world.write("commit", |rows| rows.commit(&request))), Some(ErrorKind::Aborted));
    let present = find(&world, "active-1").expect("it is there").id;
    let request = Commit { expected: Some(present), ..request };
    assert_eq!(kind_of(world.write("commit", |rows| rows.commit(&request))), None);
}

// S19, S44: one call for all kinds; the key is free at once.
#[test]
fn remove_frees_the_key_and_the_parent() {
    let world = populated();
    for name in
        ["active-1", "active-2", "active-3", "view-1", "view-2", "view-3", "committed-2", "committed-1"]
    {
        let record = find(&world, name).expect("it is there");
        let removed = remove(&world, name).expect("nothing stands below it any more");
        assert_eq!((removed.record, removed.blob_due), (record, None));
        assert_eq!(kind_of(find(&world, name)), Some(ErrorKind::NotFound));
        create(&world, VIEW, name, "").expect("the key is free");
        remove(&world, name).expect("it has no children");
    }
    assert_eq!(all_names(&world), Vec::<String>::new());
}

// S20: whatever the kind of the child; the suite wants the word "remove" in the message.
#[test]
fn remove_of_a_parent_is_refused_while_it_has_children() {
    let world = populated();
    let error = remove(&world, "committed-1").expect_err("it has children");
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let text = error.to_string();
    assert!(text.contains("remove") && text.ends_with(": failed precondition"), "{text}");
    // Children first, each refusal until the last of them is gone.
    for name in ["active-3", "view-3", "committed-2", "active-2", "view-2"] {
        assert_eq!(kind_of(remove(&world, "committed-1")), Some(ErrorKind::FailedPrecondition));
        remove(&world, name).expect("its children are gone");
    }
    remove(&world, "committed-1").expect("the last child is gone");
}

#[test]
fn remove_of_what_is_not_there_is_not_found() {
    let world = populated();
    assert_eq!(kind_of(remove(&world, "active-not-exist")), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(remove(&World::new(), "active-1")), Some(ErrorKind::NotFound));
}

#[test]
fn parent_ids_of_a_deep_chain_are_complete() {
    let world = World::new();
    for depth in 1..=300 {
        let parent = if depth == 1 { String::new() } else { format!("layer-{}", depth - 1) };
        layer(&world, &format!("layer-{depth}"), &parent);
    }
    let top = create(&world, VIEW, "top", "layer-300").expect("it can be made");
    let chain = world.read("mounts", |rows| rows.chain(&top)).expect("it is whole");
    assert_eq!(chain, (1..=300).rev().map(SnapshotId).collect::<Vec<_>>());
}

#[test]
fn rebase_gives_a_parent_to_a_snapshot_without_one() {
    let world = populated();
    let none = Labels::new();
    let realm = realm();
    let with = |key, name, parent, rebase| {
        let request = Commit { parent: Some(parent), rebase, ..commit(&realm, key, name, &none) };
        world.write("commit", |rows| rows.commit(&request))
    };
    // Without a parent: any committed one, if the backend can.
    assert_eq!(kind_of(with("active-1", "new", "nothing", Rebase::Allowed)), Some(ErrorKind::NotFound));
    for parent in ["active-2", "view-1", "active-1"] {
        let refused = kind_of(with("active-1", "new", parent, Rebase::Allowed));
        assert_eq!(refused, Some(ErrorKind::FailedPrecondition), "{parent}");
    }
    let refused = kind_of(with("active-1", "new", "committed-2", Rebase::Refused));
    assert_eq!(refused, Some(ErrorKind::FailedPrecondition));
    let rebased = with("active-1", "rebased", "committed-2", Rebase::Allowed).expect("it can be");
    assert_eq!(rebased.parent, Some(SnapshotId(2)));
    let above = world.read("stat", |rows| Ok((rows.parent_name(&rebased)?, rows.chain(&rebased)?)));
    assert_eq!(above.expect("it is there"), ("committed-2".to_owned(), ids(&[2, 1])));
    // Its parent now has a child more.
    remove(&world, "active-3").expect("no children");
    remove(&world, "view-3").expect("no children");
    assert_eq!(kind_of(remove(&world, "committed-2")), Some(ErrorKind::FailedPrecondition));
    // With a parent: the same one, whatever the backend can; none given is fine too.
    let other = kind_of(with("active-2", "new", "committed-2", Rebase::Allowed));
    assert_eq!(other, Some(ErrorKind::InvalidArgument));
    let same = with("active-2", "same", "committed-1", Rebase::Refused).expect("it is the same");
    assert_eq!(same.parent, Some(SnapshotId(1)));
    create(&world, ACTIVE, "plain", "committed-1").expect("it can be made");
    let plain = with("plain", "plain committed", "", Rebase::Refused).expect("none is asked for");
    assert_eq!(plain.parent, Some(SnapshotId(1)));
}

//! Keys and names of every length and content, and realms.

use crate::*;
use plywood::types::MAX_NAME_BYTES;

// S7: a key of any length and content comes back as it was; the boundaries are those of a key in LMDB.
#[test]
fn a_name_of_any_length_is_found_and_comes_back() {
    let world = World::new();
    let lengths = [1, 399, 400, 401, 510, 511, 512, 4096, MAX_NAME_BYTES];
    let ascii = lengths.iter().map(|length| "n".repeat(*length));
    // The cut at 400 bytes falls into a character.
    let wide = [399, 400, 401, 600].iter().map(|length| format!("{}äöü", "w".repeat(length - 1)));
    let odd =
        ["default/7/sha256:ab cd", "../..", "a/b/c", "\n\t", "k8s.io/42/extract-1 sha256:ff", "-", "\u{1}"];
    let names: Vec<String> = ascii.chain(wide).chain(odd.iter().map(|n| (*n).to_owned())).collect();
    for name in &names {
        let made = create(&world, ACTIVE, name, "").expect("it can be made");
        assert_eq!(find(&world, name).expect("it is found"), made);
        assert_eq!(kind_of(create(&world, VIEW, name, "")), Some(ErrorKind::AlreadyExists));
    }
    assert_eq!(all_names(&world), names);
    for (number, name) in names.iter().enumerate() {
        commit_as(&world, name, &format!("{number}")).expect("it can be committed");
        create(&world, ACTIVE, name, &format!("{number}"))
            .expect("the key is free, and a long one a child's");
        remove(&world, name).expect("it can be removed");
        assert_eq!(kind_of(find(&world, name)), Some(ErrorKind::NotFound));
    }
}

#[test]
fn long_names_that_begin_alike_are_different_snapshots() {
    let world = World::new();
    let of = |end: &str| format!("{}{end}", "n".repeat(500));
    let ends = ["", "a", "b", "aa"];
    for (number, end) in (1..).zip(ends) {
        assert_eq!(create(&world, ACTIVE, &of(end), "").expect("it can be made").id, SnapshotId(number));
    }
    for (number, end) in (1..).zip(ends) {
        assert_eq!(find(&world, &of(end)).expect("it is found").id, SnapshotId(number));
    }
    remove(&world, &of("a")).expect("it can be removed");
    assert_eq!(kind_of(find(&world, &of("a"))), Some(ErrorKind::NotFound));
    assert_eq!(find(&world, &of("aa")).map(|r| r.id).ok(), Some(SnapshotId(4)));
}

#[test]
fn a_name_that_cannot_be_is_an_invalid_argument() {
    let world = World::new();
    create(&world, ACTIVE, "good", "").expect("it can be made");
    let long = "n".repeat(MAX_NAME_BYTES + 1);
    for name in ["", "a\0b", long.as_str()] {
        assert_eq!(kind_of(create(&world, ACTIVE, name, "")), Some(ErrorKind::InvalidArgument));
        assert_eq!(kind_of(commit_as(&world, "good", name)), Some(ErrorKind::InvalidArgument));
        assert_eq!(kind_of(find(&world, name)), Some(ErrorKind::NotFound));
    }
}

// S47: one store for all of them, and none sees another's.
#[test]
fn realms_have_names_of_their_own() {
    let world = World::new();
    let (cli, containerd, graph) = (Realm::cli(), Realm::containerd(), Realm::graph());
    for realm in [&cli, &containerd] {
        create_in(&world, realm, ACTIVE, "same", "").expect("the name is free there");
        create_in(&world, realm, ACTIVE, "making", "").expect("the name is free there");
        let none = Labels::new();
        world
            .write("commit", |rows| rows.commit(&commit(realm, "making", "base", &none)))
            .expect("it can be");
    }
    let id =
        |realm: &Realm, name: &str| world.read("stat", |rows| rows.id(realm, name)).expect("it can be read");
    assert_eq!(id(&cli, "same"), Some(SnapshotId(1)));
    assert_eq!(id(&containerd, "same"), Some(SnapshotId(3)));
    assert_eq!(id(&graph, "same"), None);
    // A parent is looked for in the realm of the child.
    assert_eq!(kind_of(create_in(&world, &graph, ACTIVE, "x", "base")), Some(ErrorKind::NotFound));
    assert_eq!(
        create_in(&world, &containerd, ACTIVE, "x", "base").map(|r| r.parent).ok(),
        Some(Some(SnapshotId(4)))
    );
    let foreign = world.write("remove", |rows| rows.remove(&graph, "same"));
    assert_eq!(kind_of(foreign), Some(ErrorKind::NotFound));
    let names = |realm: &Realm| -> Vec<String> {
        let batch = world.read("walk", |rows| rows.records(Some(realm), None, 100)).expect("it can be read");
        batch.records.into_iter().map(|r| r.name).collect()
    };
    assert_eq!(names(&cli), ["same", "base"]);
    assert_eq!(names(&containerd), ["same", "base", "x"]);
    assert_eq!(names(&graph), Vec::<String>::new());
}

#[test]
fn a_batch_says_where_the_next_one_begins() {
    let world = World::new();
    for number in 0..10 {
        create_in(
            &world,
            &if number % 3 == 0 { Realm::graph() } else { realm() },
            ACTIVE,
            &format!("{number}"),
            "",
        )
        .expect("it can be made");
    }
    for limit in [1, 2, 3, 4, 100] {
        for (realm, expected) in
            [(Some(Realm::graph()), ids(&[1, 4, 7, 10])), (Some(realm()), ids(&[2, 3, 5, 6, 8, 9]))]
        {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let batch =
                    world.read("walk", |rows| rows.records(realm.as_ref(), after, limit)).expect("rows");
                assert!(batch.records.len() <= limit);
                found.extend(batch.records.iter().map(|r| r.id));
                after = batch.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "batches of {limit}");
        }
    }
    let last = world.read("walk", |rows| rows.records(None, Some(SnapshotId(u64::MAX)), 1)).expect("rows");
    assert_eq!((last.records.len(), last.next), (0, None));
}

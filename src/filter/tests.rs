//! What matches, what does not, and what is no filter.

use super::*;
use crate::types::{Labels, SnapshotKind, Timestamp};
use std::time::{Duration, Instant};

fn info(name: &str, kind: SnapshotKind, parent: &str, labels: &[(&str, &str)]) -> Info {
    Info {
        name: name.to_owned(),
        parent: parent.to_owned(),
        kind,
        created: Timestamp::default(),
        updated: Timestamp::default(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>(),
    }
}

/// The snapshots of containerd's Walk test.
fn walked() -> Vec<Info> {
    use SnapshotKind::{Active, Committed, View};
    let root = ("containerd.io/gc.root", "check-walk");
    vec![
        info("a-np", Active, "", &[root]),
        info("p", Committed, "", &[root]),
        info("a", Active, "p", &[root]),
        info("v", View, "p", &[root]),
        info("p-wl", Committed, "", &[root, ("l", "1")]),
        info("a-wl", Active, "p-wl", &[root, ("l", "2")]),
        info("v-wl", View, "p-wl", &[root, ("l", "3")]),
        info("a-np-wl", Active, "", &[root, ("l", "2")]),
    ]
}

fn names(of: &[Info], filters: &[&str]) -> Vec<String> {
    let filters = Filters::parse_all(filters).unwrap_or_else(|e| panic!("{filters:?}: {e}"));
    of.iter().filter(|i| filters.matches(i)).map(|i| i.name.clone()).collect()
}

#[test]
fn the_filters_of_the_walk_test_of_containerd_choose_what_they_choose_there() {
    // S21, S22
    let cases: &[(&[&str], &str)] = &[
        (&[r#"labels."containerd.io/gc.root"==check-walk"#], "a-np p a v p-wl a-wl v-wl a-np-wl"),
        (&[r#"kind==active,labels."containerd.io/gc.root"==check-walk"#], "a-np a a-wl a-np-wl"),
        (&[r#"kind==view,labels."containerd.io/gc.root"==check-walk"#], "v v-wl"),
        (&[r#"kind==committed,labels."containerd.io/gc.root"==check-walk"#], "p p-wl"),
        (&["name==p", "name==a-np-wl"], "p a-np-wl"),
        (&["name==a-wl,labels.l"], "a-wl"),
        (&["parent==p"], "a v"),
        (&[r#"parent!="",labels."containerd.io/gc.root"==check-walk"#], "a v a-wl v-wl"),
        (&["labels.l"], "p-wl a-wl v-wl a-np-wl"),
        (&["labels.l==2"], "a-wl a-np-wl"),
    ];
    for (filters, expected) in cases {
        assert_eq!(names(&walked(), filters).join(" "), *expected, "{filters:?}");
    }
}

#[test]
fn no_filter_and_an_empty_one_match_everything() {
    let all = walked().len();
    for filters in [&[][..], &[""], &["name==p", ""], &["", "name==p"]] {
        assert_eq!(names(&walked(), filters).len(), all, "{filters:?}");
        assert!(Filters::parse_all(filters).unwrap().is_everything());
    }
    // An empty one does not excuse a bad one beside it.
    assert!(Filters::parse_all(&["", "name=="]).is_err());
}

#[test]
fn the_question_that_containerd_asks_for_a_layer_finds_it() {
    let digest = "sha256:2f1a63ad71dc2d0c5a0f0ce1dc0d9ad0bd4d2a5d3c1e6cf6f8d5ba0e7d29d2aa";
    let parent = "k8s.io/12/sha256:00ff";
    let label = "containerd.io/snapshot.ref";
    let wanted = info("k8s.io/13/x", SnapshotKind::Committed, parent, &[(label, digest)]);
    let others = [
        info("k8s.io/14/x", SnapshotKind::Committed, "", &[(label, digest)]),
        info("k8s.io/15/x", SnapshotKind::Committed, parent, &[(label, "sha256:aa")]),
        info("k8s.io/16/x", SnapshotKind::Committed, parent, &[]),
    ];
    let all: Vec<Info> = others.into_iter().chain([wanted]).collect();
    let filter = format!("labels.{label:?}=={digest},parent=={parent:?}");
    assert_eq!(names(&all, &[&filter]), ["k8s.io/13/x"]);
}

#[test]
fn each_selector_holds_where_it_should() {
    let it = info(
        "default/7/extract-1 sha256:ab",
        SnapshotKind::Active,
        "",
        &[
            ("a.b.c", "dots"),
            ("with \\ and \"", "quotes"),
            ("ns/key", "slash"),
            ("word", "omg_asdf.asdf-qwer"),
            ("wide", "grün, 日本"),
            ("tab", "a\tb\u{7}"),
        ],
    );
    let cases: &[(&str, bool)] = &[
        ("name", true),
        ("parent", true),
        ("kind", true),
        ("size", false),
        ("labels", false),
        ("labels.word", true),
        ("labels.none", false),
        ("name.ignored==\"default/7/extract-1 sha256:ab\"", true),
        ("parent==\"\"", true),
        ("parent!=\"\"", false),
        ("kind==active", true),
        ("kind==Active", false),
        ("size==3", false),
        ("size!=3", true),
        ("labels.none!=x", true),
        ("labels.none==\"\"", false),
        ("labels.a.b.c==dots", true),
        ("labels.a.\"b.c\"==dots", true),
        ("labels.\"a.b.c\"==dots", true),
        (r#"labels."with \\ and \""==quotes"#, true),
        (r#"labels."ns/key"==slash"#, true),
        ("labels.word==omg_asdf.asdf-qwer", true),
        ("labels.wide==\"grün, 日本\"", true),
        (r#"labels.wide=="gr\u00fcn, \U000065e5\u672c""#, true),
        (r#"labels.wide=="gr\xc3\xbcn, 日本""#, true),
        (r#"labels.tab=="a\tb\a""#, true),
        (r#"labels.tab=="a\011b\007""#, true),
        // Patterns search anywhere.
        ("name~=extract-[0-9]+", true),
        ("name~=^extract", false),
        ("name~=/sha256:[ab]{2}$/", true),
        ("name~=/7\\/extract/", true),
        ("name~=|7/extract|", true),
        ("name~=\"extract-\\\\d\"", true),
        ("labels.none~=.*", false),
        ("parent~=^$", true),
        // Patterns with Unicode classes still fit the limit.
        ("name~=|\\\\w+/\\\\d+/\\\\w+-\\\\d{1,9} \\\\w+:|", true),
        ("labels.wide~=(?i)GRÜN", true),
        // A bad pattern matches nothing, and is no error.
        ("name~=/[/", false),
        ("name~=(", false),
        ("name~=/a{2,1}/", false),
        ("labels.a.b.c~=d,labels.word~=o", true),
        ("labels.a.b.c~=d,labels.word~=/^d/", false),
        // White space between words counts nowhere.
        (" kind  ==\tactive , labels . word\n", true),
        ("labels.word==omg_asdf.asdf-qwer ", true),
    ];
    for (filter, expected) in cases {
        let filters = Filters::parse_all(&[filter]).unwrap_or_else(|e| panic!("{filter}: {e}"));
        assert_eq!(filters.matches(&it), *expected, "{filter}");
    }
}

#[test]
fn what_is_no_filter_is_refused_with_its_position() {
    let cases: &[(&str, usize)] = &[
        (" ", 1),
        (",", 0),
        ("name==foo,", 10),
        ("name,,kind", 5),
        ("labels.", 7),
        ("labels..a", 7),
        (".name", 0),
        ("==a", 0),
        ("name=a", 4),
        ("name===a", 4),
        ("name=!a", 4),
        ("name~a", 4),
        ("name a", 5),
        ("name==", 6),
        ("name==,kind", 6),
        ("name!=", 6),
        ("image~=,id?=?fbaq", 7),
        ("name==a b", 8),
        ("name==\"a", 6),
        ("name==\"a\nb\"", 6),
        ("name==\"a\"b", 9),
        ("name==\"\\", 7),
        ("labels.|foo|==x", 7),
        ("labels./foo/==x", 7),
        ("labels.ns/key==value", 9),
        ("labels.?\"a\"", 7),
        ("labels.grün", 9),
        ("labels.key==/value", 12),
        ("labels.key==/value/", 12),
        ("labels.key!=|value|", 12),
        ("name~=/a", 6),
        ("name~=/\\d/", 7),
        (r#"name=="\d""#, 7),
        (r#"name=="\/""#, 7),
        (r#"name=="\'""#, 7),
        (r#"name=="\x4""#, 7),
        (r#"name=="\400""#, 7),
        (r#"name=="\08""#, 7),
        (r#"name=="\ud800""#, 7),
        (r#"name=="\U00110000""#, 7),
        (r#"name=="\U1000000000""#, 7),
        (r#"name=="\xff""#, 6),
        ("name==\u{1}", 6),
    ];
    for (filter, at) in cases {
        let error = Filters::parse_all(&["name", filter]).expect_err(filter);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{filter}");
        assert!(error.to_string().contains(&format!(": at byte {at}: ")), "{filter}: {error}");
    }
}

#[test]
fn filters_that_are_too_large_are_refused() {
    let refused = |filters: &[String]| {
        let error = Filters::parse_all(filters).expect_err("too large");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    };
    let of = |text: &str, times: usize| vec![text; times].join(",");
    assert!(Filters::parse_all(&[of("name", limits::SELECTORS)]).is_ok());
    refused(&[of("name", limits::SELECTORS + 1)]);
    refused(&vec!["name".to_owned(); limits::SELECTORS + 1]);
    assert!(Filters::parse_all(&[of("name~=a", limits::PATTERNS)]).is_ok());
    refused(&[of("name~=a", limits::PATTERNS), "name~=a".to_owned()]);
    let quoted = |bytes: usize| format!("name==\"{}\"", "x".repeat(bytes - 8));
    assert!(Filters::parse_all(&[quoted(limits::FILTER_BYTES)]).is_ok());
    refused(&[quoted(limits::FILTER_BYTES + 1)]);
}

#[test]
fn a_pattern_made_to_be_slow_is_not() {
    let name = "a".repeat(crate::types::MAX_LABEL_BYTES);
    let it = info(&name, SnapshotKind::Active, "", &[]);
    let deep = format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000));
    let patterns = [
        "(a*)*b".to_owned(),
        "(a|aa)+$b".to_owned(),
        "(x+x+)+y".to_owned(),
        "((a{0,100}){0,100}){0,100}b".to_owned(),
        "(\\pL{1000}){1000}".to_owned(),
        "[a-z]{0,900}[a-z]{0,900}b".to_owned(),
        format!("{}b", "(.*)*".repeat(500)),
        format!("^{}{}$", "a?".repeat(2000), "a".repeat(2000)),
        deep,
    ];
    for pattern in patterns {
        let start = Instant::now();
        let filters =
            Filters::parse_all(&[format!("name~={pattern:?}")]).expect("a pattern is never an error");
        assert!(!filters.matches(&it), "{pattern}");
        // Debug builds are slow; what grows without bound would take hours.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "{} bytes: {took:?}", pattern.len());
    }
}

#[test]
fn any_text_is_read_or_refused_without_a_panic() {
    // Every sequence of four of the characters that mean something.
    let alphabet: Vec<&str> = vec!["a", ".", ",", "=", "!", "~", "\"", "/", "|", "\\", " ", "x", "7", "é"];
    for (i, j, k, l) in quadruples(alphabet.len()) {
        let tail = [alphabet[i], alphabet[j], alphabet[k], alphabet[l]].concat();
        for head in ["", "name", "name==", "name~=/", "labels.\"\\"] {
            let _ = Filters::parse_all(&[format!("{head}{tail}")]);
        }
    }
}

fn quadruples(n: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    (0..n.pow(4)).map(move |x| (x % n, x / n % n, x / n / n % n, x / n / n / n))
}

//! `plywood blob`.

use crate::support::{BACKENDS, Cli, ended, keys};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::process::Stdio;

const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn a_blob_is_added_set_shown_printed_and_goes_with_its_last_snapshot() {
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        let file = cli.stage.file("hello", "hello");
        assert_eq!(cli.json("blob ls"), json!([]));
        assert_eq!(cli.good(&format!("blob add {}", file.display())), format!("{HELLO}\n"));
        assert_eq!(
            cli.json(&format!("blob add {}", file.display())),
            json!({"digest": HELLO, "size_bytes": 5})
        );
        let mut child =
            cli.command(["blob", "add", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let child = child.as_mut().expect("it starts");
        drop(child.stdin.take().expect("stdin").write_all(b""));
        assert!(child.wait().expect("it ends").success());
        assert_eq!(cli.good("blob ls -q"), format!("{HELLO}\n{NOTHING}\n"));
        cli.good("prepare work");
        cli.good("commit base work");
        cli.good("prepare work base");
        assert!(cli.bad(3, "blob show base").contains("blob set"));
        assert_eq!(cli.good(&format!("blob set base {HELLO} --media-type a/b")), "");
        assert_eq!(
            cli.json(&format!("blob set work {HELLO} --media-type a/b")),
            json!({"key": "work", "digest": HELLO})
        );
        cli.bad(5, &format!("blob set work {NOTHING}"));
        cli.bad(3, &format!("blob set nobody {HELLO}"));
        cli.bad(3, &format!("blob set base sha256:{}", "0".repeat(64)));
        cli.bad(2, "blob set base sha256:xyz");
        cli.bad(2, "blob of ../../etc/passwd");
        let shown = json!({"key": "base", "digest": HELLO, "media_type": "a/b", "size_bytes": 5});
        assert_eq!(cli.json("blob show base"), shown);
        assert!(cli.good("blob show base").contains("5 bytes"));
        assert_eq!(cli.good(&format!("blob of {HELLO}")), "base\nwork\n");
        assert_eq!(cli.json(&format!("blob of {NOTHING}")), json!({"digest": NOTHING, "snapshots": []}));
        let all = cli.json("blob ls");
        assert_eq!(keys(&all[0]), ["digest", "size_bytes", "snapshots"]);
        assert_eq!(all[0], json!({"digest": HELLO, "size_bytes": 5, "snapshots": ["base", "work"]}));
        let text = cli.good("blob ls");
        assert!(text.starts_with("DIGEST") && text.contains("5 B  base, work"), "{text}");
        assert_eq!(cli.good(&format!("blob cat {HELLO}")), "hello");
        assert_eq!(cli.good(&format!("blob cat {NOTHING}")), "");
        assert_eq!(cli.json("stat base")["labels"]["containerd.io/snapshot/plywood.blob"], json!(HELLO));
        cli.good("rm work base");
        assert_eq!(cli.good("blob ls -q"), format!("{NOTHING}\n"));
        cli.bad(3, &format!("blob cat {HELLO}"));
    }
}

#[test]
fn a_damaged_blob_is_told() {
    let cli = Cli::new("native");
    let file = cli.stage.file("hello", "hello");
    cli.good(&format!("blob add {}", file.display()));
    let hex = HELLO.strip_prefix("sha256:").expect("its algorithm");
    fs::write(cli.root().join("content/blobs/sha256").join(hex), "jello").expect("damage");
    let ended = cli.run(&format!("blob cat {HELLO}"));
    assert_eq!((ended.code, &*ended.out), (9, "jello"), "{ended:?}");
    assert!(ended.err.contains("damaged"), "{ended:?}");
    cli.bad(3, "blob add /nowhere");
    assert!(!cli.bad(1, "blob add /").is_empty());
    assert_eq!(fs::read_dir(cli.root().join("content/ingest")).expect("list").count(), 0, "nothing is left");
    let refused = ended_of(&cli, &["blob", "add"]);
    assert_eq!(refused.code, 2);
}

fn ended_of(cli: &Cli, words: &[&str]) -> crate::support::Ended {
    ended(cli.command(words).output().expect("it starts"))
}

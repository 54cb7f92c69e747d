//! Several processes on one store at the same time.

use crate::support::{BACKENDS, Cli, ended};
use std::process::{Child, Stdio};

fn start(cli: &Cli, words: &str) -> Child {
    let mut command = cli.command(words.split_whitespace());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

#[test]
fn of_many_who_prepare_one_key_exactly_one_wins() {
    // S8, S40
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        cli.good("prepare a");
        cli.good("commit base a");
        let children: Vec<Child> = (0..8).map(|_| start(&cli, "prepare key base")).collect();
        let codes = children.into_iter().map(|child| ended(child.wait_with_output().expect("it ends")).code);
        let mut codes: Vec<i32> = codes.collect();
        codes.sort_unstable();
        assert_eq!(codes, [0, 4, 4, 4, 4, 4, 4, 4]);
        assert_eq!(cli.good("check"), "nothing is wrong\n");
        cli.good("cleanup");
        assert_eq!(crate::privileges::names(&cli.root().join("snapshots")).len(), 2, "base and key");
    }
}

#[test]
fn two_processes_make_a_new_store_at_the_same_time() {
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        let children: Vec<Child> = (0..4).map(|i| start(&cli, &format!("prepare {i}"))).collect();
        for child in children {
            let ended = ended(child.wait_with_output().expect("it ends"));
            assert_eq!(ended.code, 0, "{ended:?}");
        }
        let mut keys: Vec<String> = cli.good("ls -q").lines().map(str::to_owned).collect();
        keys.sort();
        assert_eq!(keys, ["0", "1", "2", "3"]);
    }
}

#[test]
fn lives_beside_each_other_do_not_meet() {
    for backend in BACKENDS {
        let cli = Cli::new(backend);
        std::thread::scope(|scope| {
            for who in 0..3 {
                let cli = &cli;
                scope.spawn(move || {
                    for round in 0..4 {
                        let key = format!("{who}-{round}");
                        cli.good(&format!("prepare {key}"));
                        cli.good(&format!("commit c-{key} {key}"));
                        cli.good(&format!("view v-{key} c-{key}"));
                        cli.bad(5, &format!("rm c-{key}"));
                        cli.good("ls");
                        cli.good(&format!("rm v-{key} c-{key}"));
                        cli.good("cleanup");
                    }
                });
            }
        });
        assert_eq!(cli.good("ls -q"), "");
        assert_eq!(cli.good("check"), "nothing is wrong\n");
        let left = crate::privileges::names(&cli.root().join("snapshots"));
        assert_eq!(left, Vec::<String>::new());
    }
}

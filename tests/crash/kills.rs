//! Processes killed at random moments while eight of them work on one store.
//!
//! Each tells on its standard output what it was answered: `committed NAME DIGEST` and `removed NAME`, one line each,
//! written after the answer. So what was told must be so when all are dead.

use super::*;
use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const STORE: &str = "PLYWOOD_TEST_KILLED_STORE";
const BACKEND: &str = "PLYWOOD_TEST_KILLED_BACKEND";
const SEED: &str = "PLYWOOD_TEST_KILLED_SEED";
const CLIENTS: u64 = 8;
/// Of each of them.
const THREADS: u64 = 3;

/// A generator of numbers that depend on the seed alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The process that is killed: only started by the tests below, and by itself no test.
#[test]
fn the_process_that_is_killed() {
    let (Some(store), Ok(seed)) = (std::env::var_os(STORE), std::env::var(SEED)) else { return };
    let backend = std::env::var(BACKEND).ok().and_then(|name| BackendName::named(&name)).expect("a backend");
    let seed: u64 = seed.parse().expect("a number");
    let snapshotter = open(backend, Path::new(&store));
    // Those that wait for each other share transactions.
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let snapshotter = &snapshotter;
            threads.spawn(move || work(snapshotter, seed, thread));
        }
    });
}

fn work(snapshotter: &Snapshotter, seed: u64, thread: u64) {
    let mut dice = Dice((seed * THREADS + thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut mine: Vec<String> = Vec::new();
    for round in 0.. {
        if let Err(e) = step(snapshotter, &mut dice, seed, round * THREADS + thread, &mut mine) {
            // Others use the same parents, and may be quicker.
            let fair = [ErrorKind::NotFound, ErrorKind::FailedPrecondition, ErrorKind::InvalidArgument];
            if !fair.contains(&e.kind()) {
                // The other threads go on until they are killed, and then somebody reads this.
                panic!("{e}");
            }
        }
    }
}

fn tell(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the reader is there");
}

fn step(
    snapshotter: &Snapshotter,
    dice: &mut Dice,
    seed: u64,
    number: u64,
    mine: &mut Vec<String>,
) -> plywood::error::Result<()> {
    let key = format!("{seed}/{number}");
    match dice.roll(10) {
        0 => snapshotter.cleanup().map(drop),
        1 => {
            snapshotter.view(&key, mine.last().map(String::as_str), Labels::new(), &())?;
            snapshotter.remove(&key)
        }
        2 | 3 if !mine.is_empty() => {
            let name = mine.swap_remove(dice.roll(mine.len() as u64) as usize);
            snapshotter.remove(&name)?;
            tell(&format!("\nremoved {name}\n"));
            Ok(())
        }
        _ => {
            let parent = if dice.roll(3) == 0 { None } else { mine.last().cloned() };
            snapshotter.prepare(&key, parent.as_deref(), Labels::new(), &())?;
            let dir = own_directory(snapshotter, &key)?;
            for n in 0..dice.roll(6) {
                std::fs::write(dir.join(format!("file{n}")), vec![n as u8; dice.roll(9000) as usize])
                    .expect("write");
            }
            if dice.roll(5) == 0 {
                return snapshotter.remove(&key);
            }
            let name = format!("{key}-committed");
            snapshotter.commit(&name, &key, Labels::new(), None, &())?;
            tell(&format!("\ncommitted {name} {}\n", digest(snapshotter, &name)));
            mine.push(name);
            Ok(())
        }
    }
}

fn start(backend: BackendName, store: &Path, seed: u64) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("a running program has a path"));
    child.args(["--exact", "kills::the_process_that_is_killed", "--nocapture", "--test-threads=1"]);
    child.env(STORE, store).env(BACKEND, backend.as_str()).env(SEED, seed.to_string());
    child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts itself")
}

/// Removals may have been carried out and not told: whoever was removing when the kill came.
fn kills(backend: BackendName, how_many: u64, life: Duration) {
    let Some(disk) = Disk::new(backend) else { return };
    let store = disk.store();
    open(backend, &store).close().unwrap_or_else(|e| panic!("{e}"));
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let mut committed: BTreeMap<String, String> = BTreeMap::new();
    let started = Instant::now();
    let mut answers = 0;
    for round in 0..how_many / CLIENTS {
        let clients: Vec<_> = (0..CLIENTS).map(|n| start(backend, &store, round * CLIENTS + n + 1)).collect();
        std::thread::sleep(life / 4 + Duration::from_millis(dice.roll(life.as_millis() as u64)));
        for mut client in clients {
            std::thread::sleep(Duration::from_millis(dice.roll(8)));
            client.kill().expect("SIGKILL");
            let (mut told, mut failed) = (String::new(), String::new());
            client.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
            client.stderr.take().expect("piped").read_to_string(&mut failed).expect("text");
            client.wait().expect("it is dead");
            assert!(!failed.contains("panicked"), "{backend} round {round}: {failed}");
            answers += remember(&told, &mut committed);
        }
        let what = format!("{backend}: round {round}");
        let snapshotter = reopen(backend, &store, &what);
        for (name, content) in &committed {
            match snapshotter.stat(name) {
                Ok(_) => assert_eq!(&digest(&snapshotter, name), content, "{what}: {name}"),
                // Its client was removing it when it died.
                Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound, "{what}: {name}: {e}"),
            }
        }
        let there = |name: &String| snapshotter.stat(name).is_ok();
        let lost = committed.keys().filter(|name| !there(name)).count() as u64;
        assert!(
            lost <= CLIENTS * THREADS,
            "{what}: {lost} committed snapshots are gone that nobody was told to be removed"
        );
        // A new start, so that chains do not grow for ever: children first.
        let mut infos = snapshotter.list(&Filters::everything()).unwrap_or_else(|e| panic!("{what}: {e}"));
        infos.reverse();
        for info in infos {
            snapshotter.remove(&info.name).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        committed.clear();
        snapshotter.close().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    eprintln!("{backend}: {how_many} kills, {answers} answers, {:?}", started.elapsed());
    assert!(answers * 3 > how_many, "the clients did some work before they died: {answers} answers");
}

fn remember(told: &str, committed: &mut BTreeMap<String, String>) -> u64 {
    let mut answers = 0;
    for line in told.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["committed", name, content] if content.len() == 64 => {
                committed.insert(name.to_owned(), content.to_owned());
                answers += 1;
            }
            ["removed", name] => {
                committed.remove(name);
                answers += 1;
            }
            _ => {}
        }
    }
    answers
}

#[test]
fn fuse_loses_nothing_in_600_kills() {
    kills(BackendName::Fuse, 600, Duration::from_millis(150));
}

#[test]
fn native_loses_nothing_in_200_kills() {
    kills(BackendName::Native, 200, Duration::from_millis(200));
}

#[test]
fn btrfs_loses_nothing_in_200_kills() {
    kills(BackendName::Btrfs, 200, Duration::from_millis(1000));
}

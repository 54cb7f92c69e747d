//! How another program uses plywood as a library, and how long each call takes.
//!
//! ```console
//! $ cargo run --example lifecycle -- tour DIR       # the life of two snapshots, told step by step: begin here
//! $ cargo run --release --example lifecycle -- fill DIR --backend fuse --snapshots 10000
//! $ cargo run --release --example lifecycle -- measure DIR --backend fuse --snapshots 10000 --seconds 2
//! ```
//!
//! `measure` prints one line of JSON for each operation: calls per second, the middle and the slow end of their times
//! in microseconds. `scripts/bench --lifecycle` runs it beside containerd's own snapshotters, which
//! `scripts/lifecycle/containerd.go` drives in the same way: same names, same order, same lines.

use clap::{Args, Parser, Subcommand, ValueEnum};
use plywood::backend::{BackendName, Stage};
use plywood::filter::Filters;
use plywood::snapshotter::{BackendChoice, Removal, Snapshotter, SnapshotterSettings};
use plywood::store::{Commit, Durability, NewSnapshot, Rebase, Store, Writer};
use plywood::types::{Labels, Realm, SnapshotKind, Timestamp, Usage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes two snapshots in a new or old store, tells each step, and removes them.
    Tour(StoreArguments),
    /// Fills a new store with committed snapshots: a base, and children on it.
    Fill {
        #[command(flatten)]
        store: StoreArguments,
        /// How many.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        snapshots: u64,
    },
    /// Measures calls on a store that `fill` made, and leaves as many snapshots as it found.
    Measure {
        #[command(flatten)]
        store: StoreArguments,
        /// How many `fill` made.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        snapshots: u64,
        /// Time for all calls, in seconds.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Calls of each kind, at most; 20 are made even if there is no time left.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        samples: u64,
    },
}

#[derive(Args)]
struct StoreArguments {
    /// The root directory of the store.
    root: PathBuf,
    /// Which backend [default: that of the store, or the best that works here].
    #[arg(long, value_parser = backend_named)]
    backend: Option<BackendName>,
    /// What a power cut may take: nothing that was answered, or the last transactions.
    #[arg(long, value_enum, default_value = "full")]
    durability: Durable,
    /// Whether the content of a snapshot is on the disk before it is committed.
    #[arg(long, value_enum, default_value = "on")]
    sync_on_commit: Switch,
    /// Whether the name of a new snapshot is on the disk before it is said to be there.
    #[arg(long, value_enum, default_value = "on")]
    sync_on_create: Switch,
    /// When the directory of a removed snapshot goes: before the call returns, or in the background.
    #[arg(long, value_enum, default_value = "sync")]
    removal: When,
}

#[derive(Clone, Copy, ValueEnum)]
enum Durable {
    Full,
    Relaxed,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, ValueEnum)]
enum When {
    Sync,
    Async,
}

fn backend_named(name: &str) -> std::result::Result<BackendName, String> {
    BackendName::named(name).ok_or_else(|| "one of fuse, btrfs, overlay, native".to_owned())
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Tour(store) => tour(&store),
        Command::Fill { store, snapshots } => fill(&store, snapshots),
        Command::Measure { store, snapshots, seconds, samples } => {
            measure(&store, snapshots, seconds, samples).and_then(|calls| calls.report(&store, snapshots))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lifecycle: {error}");
            ExitCode::FAILURE
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------
// The library
// ------------------------------------------------------------------------------------------------------------------

/// Settings come from `SnapshotterSettings::new`, and are fields to change.
fn settings(arguments: &StoreArguments) -> SnapshotterSettings {
    let mut settings = SnapshotterSettings::new(&arguments.root);
    // A program of its own has a realm of its own: it sees and removes nobody else's snapshots.
    settings.realm = realm();
    if let Some(name) = arguments.backend {
        settings.backend = BackendChoice::Named(name);
    }
    settings.store.durability = match arguments.durability {
        Durable::Full => Durability::Full,
        Durable::Relaxed => Durability::Relaxed,
    };
    settings.backends.sync_on_commit = arguments.sync_on_commit == Switch::On;
    settings.backends.sync_on_create = arguments.sync_on_create == Switch::On;
    settings.removal = match arguments.removal {
        When::Sync => Removal::Sync,
        When::Async => Removal::Async,
    };
    settings
}

fn realm() -> Realm {
    Realm::containerd()
}

/// Prepare, change, commit, prepare on top, look, remove.
fn tour(arguments: &StoreArguments) -> Result<()> {
    let snapshotter = Snapshotter::open(settings(arguments))?;
    println!("opened {}, backend {}", arguments.root.display(), snapshotter.backend());

    // A new snapshot without a parent is an empty directory. The mounts are for whoever shows it to somebody; `()`
    // is a progress that nobody watches.
    let mounts = snapshotter.prepare("tour-base", None, Labels::new(), &())?;
    for mount in &mounts {
        println!(
            "prepared tour-base: mount -t {} {} -o {}",
            mount.kind,
            mount.source,
            mount.options.join(",")
        );
    }

    // Content can be written through the mounts, or without any mount into the directory that takes changes.
    change(&snapshotter, "tour-base")?;

    // Commit makes it immutable and gives it its name, under which others can stand on it.
    let labels = Labels::from([("example/step".to_owned(), "1".to_owned())]);
    snapshotter.commit("tour:1", "tour-base", labels, None, &())?;
    let usage = snapshotter.usage("tour:1", &())?;
    println!("committed tour:1: {} bytes in {} inodes", usage.size_bytes, usage.inodes);

    let mounts = snapshotter.prepare("tour-next", Some("tour:1"), Labels::new(), &())?;
    for mount in &mounts {
        println!(
            "prepared tour-next: mount -t {} {} -o {}",
            mount.kind,
            mount.source,
            mount.options.join(",")
        );
    }

    // A field path changes one label and leaves the others.
    let seen = Labels::from([("example/seen".to_owned(), "yes".to_owned())]);
    snapshotter.update("tour:1", &seen, &["labels.example/seen".to_owned()])?;
    let info = snapshotter.stat("tour:1")?;
    println!("tour:1 is {}, made at {}, labels {:?}", info.kind.as_str(), info.created, info.labels);

    // Filters are containerd's; `walk` does the same without keeping them all.
    for info in snapshotter.list(&Filters::parse_all(&["name~=^tour"])?)? {
        println!("there is {:?}, {}, parent {:?}", info.name, info.kind.as_str(), info.parent);
    }

    // What has children stays; the error says what is in the way.
    match snapshotter.remove("tour:1") {
        Ok(()) => return Err("a parent could be removed".into()),
        Err(refused) => println!("as it should be: {refused}"),
    }
    snapshotter.remove("tour-next")?;
    snapshotter.remove("tour:1")?;
    // Waits for directories that go in the background.
    snapshotter.close()?;
    println!("removed both");
    Ok(())
}

/// Puts one file into an active snapshot.
fn change(snapshotter: &Snapshotter, key: &str) -> Result<()> {
    let layers = snapshotter.layers(key)?;
    let dir = match (layers.upper, layers.lowers.into_iter().next()) {
        (Some((upper, _work)), _) => upper,
        (None, Some(only)) if layers.writable => only,
        _ => return Err(format!("{key} cannot be changed").into()),
    };
    std::fs::write(dir.join("file"), b"content\n".repeat(512))?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------------
// Names: those of scripts/lifecycle/containerd.go, since their order decides which pages of a tree are touched
// ------------------------------------------------------------------------------------------------------------------

const REF_LABEL: &str = "containerd.io/snapshot.ref";
const GC_LABEL: &str = "containerd.io/gc.root";

/// Numbers of snapshots that are made while it is measured begin here.
const FIRST_MEASURED: u64 = 1_000_000_000;

/// The n-th number of splitmix64.
fn mixed(n: u64) -> u64 {
    let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn digest(n: u64) -> String {
    let [a, b, c, d] = [1, 2, 3, 4].map(|part| mixed(4 * n + part));
    format!("sha256:{a:016x}{b:016x}{c:016x}{d:016x}")
}

fn name_of(n: u64) -> String {
    format!("default/{n}/{}", digest(n))
}

fn key_of(n: u64) -> String {
    format!("default/{n}/extract-{:08x}", mixed(n) & 0xffff_ffff)
}

fn labels_of(n: u64) -> Labels {
    Labels::from([(REF_LABEL.to_owned(), digest(n))])
}

// ------------------------------------------------------------------------------------------------------------------
// Filling
// ------------------------------------------------------------------------------------------------------------------

/// Snapshots that are made in one transaction.
const FILL_BATCH: u64 = 1000;

/// The base in the ordinary way; the children with the rows and directories of the same modules, but many in one
/// transaction: a store of 100,000 shall not take long to make. An ordinary program does not do that.
fn fill(arguments: &StoreArguments, snapshots: u64) -> Result<()> {
    let mut settings = settings(arguments);
    settings.backends.sync_on_create = false;
    let snapshotter = Snapshotter::open(settings.clone())?;
    snapshotter.prepare(&key_of(0), None, labels_of(0), &())?;
    change(&snapshotter, &key_of(0))?;
    snapshotter.commit(&name_of(0), &key_of(0), labels_of(0), None, &())?;
    // The same store, which this process has open already.
    let store = Store::open(&snapshotter.layout().db(), &settings.store)?;
    let backend =
        plywood::backend::open::open(snapshotter.backend(), snapshotter.layout(), &settings.backends)?;
    let base = store.read("fill", |rows| rows.find(&realm(), &name_of(0)))?.id;
    let make = |rows: &mut Writer<'_>, n: u64| {
        let (key, labels, realm, now) = (key_of(n), labels_of(n), realm(), Timestamp::now());
        let id = rows.new_id()?;
        let new = NewSnapshot {
            realm: &realm,
            name: &key,
            kind: SnapshotKind::Active,
            parent: Some(&name_of(0)),
            labels: &labels,
            has_directory: true,
            flags: 0,
        };
        rows.create(id, &new, now)?;
        let mut staged =
            backend.stage(Stage { id, kind: SnapshotKind::Active, chain: &[base], owner: None }, &())?;
        backend.publish(&mut staged, id)?;
        backend.freeze(id)?;
        rows.commit(&Commit {
            realm: &realm,
            key: &key,
            name: &name_of(n),
            labels: &labels,
            usage: Usage { size_bytes: 8192, inodes: 2 },
            flags: 0,
            parent: None,
            rebase: Rebase::Refused,
            expected: Some(id),
            now,
        })?;
        backend.committed(id);
        Ok(())
    };
    let mut first = 1;
    while first < snapshots {
        let end = snapshots.min(first + FILL_BATCH);
        store.write("fill", |rows| (first..end).try_for_each(|n| make(rows, n)))?;
        first = end;
    }
    snapshotter.close()?;
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------------
// Measuring
// ------------------------------------------------------------------------------------------------------------------

/// Calls that are made even if there is no time left.
const FEWEST_CALLS: u64 = 20;

const MOST_LISTS: usize = 5;

/// The time of each call, by operation.
#[derive(Default)]
struct Calls(BTreeMap<&'static str, Vec<Duration>>);

impl Calls {
    fn time<T>(
        &mut self,
        operation: &'static str,
        call: impl FnOnce() -> plywood::error::Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        let answer = call();
        self.0.entry(operation).or_default().push(start.elapsed());
        Ok(answer?)
    }

    fn report(mut self, arguments: &StoreArguments, snapshots: u64) -> Result<()> {
        let mut out = std::io::stdout().lock();
        for (operation, times) in &mut self.0 {
            times.sort_unstable();
            let at = |part: f64| {
                let index = (part * (times.len() - 1) as f64).round() as usize;
                times[index].as_nanos() as f64 / 1e3
            };
            let total: Duration = times.iter().sum();
            let line = Line {
                system: "plywood",
                backend: arguments.backend.map_or("auto", BackendName::as_str),
                durability: match arguments.durability {
                    Durable::Full => "full",
                    Durable::Relaxed => "relaxed",
                },
                sync_on_commit: arguments.sync_on_commit == Switch::On,
                sync_on_create: arguments.sync_on_create == Switch::On,
                removal: match arguments.removal {
                    When::Sync => "sync",
                    When::Async => "async",
                },
                snapshots,
                operation,
                calls: times.len(),
                per_second: times.len() as f64 / total.as_secs_f64(),
                p50_us: at(0.5),
                p99_us: at(0.99),
            };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// One line of the answer.
#[derive(Serialize)]
struct Line<'a> {
    system: &'a str,
    backend: &'a str,
    durability: &'a str,
    sync_on_commit: bool,
    sync_on_create: bool,
    removal: &'a str,
    snapshots: u64,
    operation: &'a str,
    calls: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

fn measure(arguments: &StoreArguments, snapshots: u64, seconds: f64, samples: u64) -> Result<Calls> {
    let (settings, time) = (settings(arguments), Duration::try_from_secs_f64(seconds)?);
    let mut calls = Calls::default();
    let snapshotter = calls.time("open", || {
        let snapshotter = Snapshotter::open(settings)?;
        snapshotter.stat(&name_of(0))?;
        Ok(snapshotter)
    })?;
    count(&snapshotter, snapshots)?;
    let end = Instant::now() + time;
    for i in 0..samples {
        if i >= FEWEST_CALLS && Instant::now() >= end {
            break;
        }
        life(&snapshotter, snapshots, i, &mut calls)?;
    }
    let end = Instant::now() + time;
    for i in 0..MOST_LISTS {
        if i > 0 && Instant::now() >= end {
            break;
        }
        let took = count(&snapshotter, snapshots)?;
        calls.0.entry("list").or_default().push(took);
    }
    calls.time("cleanup", || snapshotter.cleanup())?;
    snapshotter.close()?;
    Ok(calls)
}

/// One snapshot from prepare to remove: so there are always as many as `fill` made, or one more.
fn life(snapshotter: &Snapshotter, snapshots: u64, i: u64, calls: &mut Calls) -> Result<()> {
    let n = FIRST_MEASURED + i;
    let (key, name) = (key_of(n), name_of(n));
    let (parent, other) = (name_of(mixed(3 * i) % snapshots), name_of(mixed(3 * i + 1) % snapshots));
    let mounts = calls.time("prepare", || snapshotter.prepare(&key, Some(&parent), labels_of(n), &()))?;
    let again = calls.time("mounts", || snapshotter.mounts(&key))?;
    if mounts.is_empty() || mounts != again {
        return Err(format!("{key}: other mounts than before").into());
    }
    let info = calls.time("stat", || snapshotter.stat(&other))?;
    if !info.labels.contains_key(REF_LABEL) {
        return Err(format!("{other}: a label is gone").into());
    }
    let label = Labels::from([(GC_LABEL.to_owned(), format!("{i:020}"))]);
    calls.time("update", || snapshotter.update(&other, &label, &[format!("labels.{GC_LABEL}")]))?;
    change(snapshotter, &key)?;
    calls.time("commit", || snapshotter.commit(&name, &key, labels_of(n), None, &()))?;
    calls.time("remove", || snapshotter.remove(&name))
}

/// Lists everything, and says how long that took.
fn count(snapshotter: &Snapshotter, expected: u64) -> Result<Duration> {
    let start = Instant::now();
    let infos = snapshotter.list(&Filters::everything())?;
    let took = start.elapsed();
    if infos.len() as u64 != expected {
        return Err(format!("list: {} snapshots instead of {expected}", infos.len()).into());
    }
    Ok(took)
}

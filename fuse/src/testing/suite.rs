//! Many random sequences for one variant, and one sequence again.

use super::model::{self, Failure, Pace, Subject, Variant};
use super::operation::Operation;
use super::random::{self, Random, shorten};
use super::tree::{Item, Layer};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Makes the file system that is tried.
pub type Maker<'a> = &'a dyn Fn(&Variant) -> Box<dyn Subject>;

/// How many operations one sequence has: enough for a few rotations, few enough to be shortened.
const LENGTH: usize = 250;

/// After how many operations the whole trees are compared.
const EVERY: usize = 50;

/// How long a failing sequence is shortened at most.
const SHORTEN: Duration = Duration::from_secs(120);

/// A number from the environment.
pub fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(usual)
}

/// Runs about `operations` random operations.
///
/// `PLYWOOD_MODEL_SEED` is the seed of the first sequence. With `PLYWOOD_MODEL_OPS` the number is that share of
/// it which it is of [`ALL`].
///
/// # Panics
/// At the first difference, with everything that is needed to see it again.
pub fn random(variant: &Variant, operations: u64, make: Maker<'_>) {
    let wanted = operations * setting("PLYWOOD_MODEL_OPS", ALL) / ALL;
    let first = setting("PLYWOOD_MODEL_SEED", 1);
    let started = Instant::now();
    let (mut done, mut sequences) = (0, 0);
    while done < wanted {
        let seed = first + sequences;
        done += sequence(variant, seed, make);
        sequences += 1;
    }
    let secs = started.elapsed().as_secs_f64();
    eprintln!("{done} operations in {sequences} sequences, {:.0} a second", done as f64 / secs);
}

/// How many operations all tests together do unless the environment says otherwise.
pub const ALL: u64 = 100_000;

fn sequence(variant: &Variant, seed: u64, make: Maker<'_>) -> u64 {
    let mut random = Random::new(seed);
    let layers = random::layers(&mut random, variant);
    let mut left = LENGTH;
    let mut next = |view: &model::View| {
        left = left.checked_sub(1)?;
        Some(random::operation(&mut random, variant, view))
    };
    match model::run(variant, &layers, &mut *make(variant), Pace::Touched(EVERY), &mut next) {
        Ok(done) => done as u64,
        Err(failure) => {
            let (layers, short) = smallest(variant, &layers, &failure, make);
            panic!("{}", report(variant, seed, &layers, &short, &failure));
        }
    }
}

fn again(variant: &Variant, layers: &[Layer], operations: &[Operation], make: Maker<'_>) -> Option<Failure> {
    let mut rest = operations.iter().cloned();
    let pace = if operations.len() > 30 { Pace::Answers(30) } else { Pace::Each };
    model::run(variant, layers, &mut *make(variant), pace, &mut |_| rest.next()).err()
}

/// What went wrong, without names and numbers: a shorter sequence that fails otherwise is another failure.
fn kind(failure: &Failure) -> String {
    let words = failure.words.split_once('\n').map_or(failure.words.as_str(), |(_, words)| words);
    let unquoted: String = words.split('"').step_by(2).collect();
    unquoted.chars().filter(|c| c.is_alphabetic()).take(16).collect()
}

/// The smallest sequence and layers that still go wrong, found in limited time.
fn smallest(
    variant: &Variant,
    layers: &[Layer],
    failure: &Failure,
    make: Maker<'_>,
) -> (Vec<Layer>, Failure) {
    let started = Instant::now();
    let mut tries = 100_000;
    let mut best = failure.clone();
    let mut layers = layers.to_vec();
    let in_time = || started.elapsed() < SHORTEN;
    let operations = failure.operations.clone();
    let operations = shorten(&operations, &mut tries, &mut |operations| {
        let failed = if in_time() { again(variant, &layers, operations, make) } else { None };
        let failed = failed.filter(|f| kind(f) == kind(failure));
        let fails = failed.is_some();
        best = failed.unwrap_or_else(|| best.clone());
        fails
    });
    for at in 0..layers.len() {
        let items = layers[at].items.clone();
        let with = |items: &[Item]| {
            let mut changed = layers.clone();
            changed[at].items = items.to_vec();
            changed
        };
        let items = shorten(&items, &mut tries, &mut |items| {
            let failed = if in_time() { again(variant, &with(items), &operations, make) } else { None };
            let failed = failed.filter(|f| kind(f) == kind(failure));
            let fails = failed.is_some();
            best = failed.unwrap_or_else(|| best.clone());
            fails
        });
        layers[at].items = items;
    }
    (layers, best)
}

fn report(variant: &Variant, seed: u64, layers: &[Layer], short: &Failure, first: &Failure) -> String {
    let mut text = format!("PLYWOOD_MODEL_SEED={seed}, {variant:?}\n");
    let _ = writeln!(text, "after {} operations: {}\n", first.operations.len(), first.words);
    let _ = writeln!(text, "shortened, to be kept as a named test:\n&[");
    for layer in layers {
        let _ = writeln!(text, "    \"{layer}\",");
    }
    let operations: Vec<String> = short.operations.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "],\n\"{}\"\n\n{}", operations.join("; "), short.words);
    text
}

/// Runs a sequence that failed once.
///
/// # Panics
/// If it fails.
pub fn replay(variant: &Variant, layers: &[&str], operations: &str, make: Maker<'_>) {
    let layers: Vec<Layer> = layers.iter().map(|text| Layer::parse(text)).collect();
    let operations = Operation::parse_all(operations);
    if let Some(failure) = again(variant, &layers, &operations, make) {
        panic!("at operation {}: {}", failure.operations.len(), failure.words);
    }
}

/// True if the test may mount; false, said aloud, if the user wants it left out.
///
/// # Panics
/// If it may not, unless `PLYWOOD_SKIP_MOUNTED=1` is set.
pub fn may_mount() -> bool {
    allowed(crate::sys::process::may_administrate(), "only root can mount: run as root")
}

/// True if the test may mount, and there is a FUSE device; false, said aloud, if the user wants it left out.
///
/// # Panics
/// If it may not, unless `PLYWOOD_SKIP_MOUNTED=1` is set.
pub fn may_mount_fuse() -> bool {
    let device = crate::sys::mount::open_fuse_device();
    may_mount() && allowed(device.is_ok(), "/dev/fuse cannot be opened")
}

/// True if this user can make a user namespace; false, said aloud, if the user wants such tests left out.
///
/// # Panics
/// Without it, unless `PLYWOOD_SKIP_MOUNTED=1` is set.
pub fn may_unshare() -> bool {
    let mut command = std::process::Command::new("unshare");
    let made = command.args(["--user", "--map-root-user", "--mount", "true"]).output();
    allowed(made.is_ok_and(|o| o.status.success()), "no user namespace can be made: allow it to this user")
}

fn allowed(can: bool, cannot: &str) -> bool {
    const SKIP: &str = "PLYWOOD_SKIP_MOUNTED";
    if can {
        return true;
    }
    if std::env::var_os(SKIP).is_some_and(|v| v == "1") {
        super::say_skipped(&format!("{cannot}, and {SKIP}=1 is set"));
        return false;
    }
    panic!("{cannot}, or set {SKIP}=1 to leave this test out");
}

//! Runs the cases of a target on all processors.

use super::allocation;
use super::random::Random;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes that a case may have allocated at a time.
const PEAK_BYTES: usize = 8 << 20;

/// Cases of a debug build, where nothing else is said.
const DEBUG_CASES: u64 = 20_000;

/// Cases that a thread takes at a time.
const BATCH: u64 = 1000;

/// Runs as many cases as the environment says, or `release_cases`. Each thread makes its own state.
///
/// # Panics
/// If a case does, after its seed was printed; or if one takes too much memory.
pub fn fuzz<S>(
    target: &str,
    release_cases: u64,
    state: impl Fn() -> S + Sync,
    case: impl Fn(&mut S, &mut Random) + Sync,
) {
    let default = if cfg!(debug_assertions) { DEBUG_CASES.min(release_cases) } else { release_cases };
    let cases = from_environment("PLYWOOD_FUZZ_CASES").unwrap_or(default);
    let seed = from_environment("PLYWOOD_FUZZ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() * 1_000_000_000
    });
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let largest = AtomicUsize::new(0);
    let started = Instant::now();
    let work = || {
        let mut own = state();
        while !failed.load(Ordering::Relaxed) {
            let begin = next.fetch_add(BATCH, Ordering::Relaxed);
            if begin >= cases {
                break;
            }
            let present = Cell::new(0);
            let batch = catch_unwind(AssertUnwindSafe(|| {
                for index in begin..(begin + BATCH).min(cases) {
                    present.set(seed.wrapping_add(index));
                    let mut random = Random::new(scattered(present.get()));
                    let peak = allocation::peak_of(|| case(&mut own, &mut random));
                    assert!(peak <= PEAK_BYTES, "{target}: {peak} bytes were allocated");
                    if peak > largest.load(Ordering::Relaxed) {
                        largest.fetch_max(peak, Ordering::Relaxed);
                    }
                }
            }));
            if let Err(why) = batch {
                failed.store(true, Ordering::Relaxed);
                eprintln!("{target}: again by PLYWOOD_FUZZ_CASES=1 PLYWOOD_FUZZ_SEED={}", present.get());
                resume_unwind(why);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let rate = cases as f64 / started.elapsed().as_secs_f64();
    println!(
        "{target}: {cases} cases of seed {seed} by {threads} threads, {rate:.0}/s, at most {} KiB in a case",
        largest.into_inner() >> 10
    );
}

/// Neighbours become strangers: the generator of a case must not be that of the next one, one step further.
fn scattered(seed: u64) -> u64 {
    Random::new(seed ^ 0x5bd1_e995_0000_0000).number()
}

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

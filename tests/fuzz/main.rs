//! What comes from outside, made up by the million: no panic, no memory without bound, and what is said holds.
//!
//! Each target is a module with one test that calls [`harness::fuzz`]. `PLYWOOD_FUZZ_CASES` says how many cases a target
//! has (else few in a debug build, and in a release build as many as the target names), `PLYWOOD_FUZZ_SEED` which. A
//! failure prints the seed of its case; `PLYWOOD_FUZZ_CASES=1` with that seed is the same case again.
//!
//! ```text
//! cargo test --release -p plywood --test fuzz -- --nocapture
//! ```
//!
//! A target needs: a state that each thread makes once (`|| ()` if there is none), and a function of it and of a
//! [`random::Random`] that panics if something is wrong. It depends on nothing else, so that a case can be repeated.

mod allocation;
mod applying;
mod archive;
mod archives;
mod compression;
mod documents;
mod entries;
mod harness;
mod names;
mod random;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

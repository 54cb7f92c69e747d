//! Archives become trees: the same on a plain directory, as a layer with marks, and through the layer stack.
//!
//! As whoever runs the tests; what needs root of the machine fails without it, unless `PLYWOOD_SKIP_MOUNTED=1` leaves it
//! out, aloud. Archives by GNU tar and bsdtar need those programs.

mod formats;
mod links;
mod marks;
mod meddling;
mod members;
mod owners;
#[path = "../privileges/mod.rs"]
mod privileges;
mod support;

//! Faults of other overlay file systems. Each test is named after the behaviour that they miss.

mod attributes;
mod copying;
mod links;
mod names;
mod removal;

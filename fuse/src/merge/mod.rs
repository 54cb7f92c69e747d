//! Which entries win through the stack: pure state machines.
//!
//! [`lookup`] decides about one name, [`readdir`] about all names of a directory. Neither does any I/O: the
//! caller asks the layers, top first, and tells what they said.

pub mod lookup;
pub mod readdir;

#[cfg(test)]
mod tests;

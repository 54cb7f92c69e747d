//! Images that come in and go out, sound ones and those that somebody made to do harm.
//!
//! All are made in memory. Trees are looked at through the layer stack, without a mount.

mod cancelled;
mod exported;
mod forms;
mod layers;
mod owners;
#[path = "../privileges/mod.rs"]
mod privileges;
mod refused;
#[path = "../apply/support.rs"]
#[allow(dead_code)]
mod support;
mod together;
mod world;

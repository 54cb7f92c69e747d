//! `plywood serve` as its clients see it: over the socket, with the code that containerd's definitions generate.

mod calls;
mod containerd;
mod hostile;
mod kept;
mod layers;
mod life;
mod metrics;
#[path = "../privileges/mod.rs"]
mod privileges;
mod races;
mod refusals;
mod support;

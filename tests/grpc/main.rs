//! `plywood serve` as its clients see it: over the socket, with the code that containerd's definitions generate.

mod calls;
mod hostile;
mod kept;
mod life;
#[path = "../privileges/mod.rs"]
mod privileges;
mod refusals;
mod support;

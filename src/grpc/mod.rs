//! containerd's words <-> ours: the daemon behind `plywood serve`.
//!
//! A unix socket on which containerd and BuildKit find the snapshot service of one store. From the ground up: [`proto`]
//! is the words of containerd as generated code; [`convert`] and [`status`] turn words into ours and failures into
//! codes, both pure; [`service`] is the ten calls on snapshots, [`diff`] moves layers between them and the [`content`] of
//! the containerd that is served; [`health`] tells whether anybody is there; [`listen`] makes the
//! socket and knows who calls; [`metrics`] counts calls; [`lock`] lets one daemon serve a store; [`server`] runs all that until it is told to stop.
//!
//! Nothing here decides what happens to a snapshot: all of that is in [`crate::snapshotter`]. Its calls block, so each
//! runs in a thread for such, and no transaction is ever open while a task waits.

pub mod content;
pub mod convert;
pub mod diff;
pub mod health;
pub mod listen;
pub mod lock;
pub mod metrics;
pub mod server;
pub mod service;
pub mod status;

/// The words of containerd, as generated from `src/grpc/proto` (see `tests/generated.rs`).
///
/// The definitions are those of containerd 1.6, with the fields that later versions added.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod proto {
    pub mod containerd {
        pub mod types {
            include!("generated/containerd.types.rs");
        }
        pub mod services {
            pub mod snapshots {
                pub mod v1 {
                    include!("generated/containerd.services.snapshots.v1.rs");
                }
            }
            pub mod diff {
                pub mod v1 {
                    include!("generated/containerd.services.diff.v1.rs");
                }
            }
            pub mod content {
                pub mod v1 {
                    include!("generated/containerd.services.content.v1.rs");
                }
            }
            pub mod leases {
                pub mod v1 {
                    include!("generated/containerd.services.leases.v1.rs");
                }
            }
        }
    }
    pub mod grpc {
        pub mod health {
            pub mod v1 {
                include!("generated/grpc.health.v1.rs");
            }
        }
    }
}

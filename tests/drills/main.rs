//! On a real node: see `tests/node/lib.rs`, and `tests/README.md` for what in it is real.

// A hub and its own API, as its tests have them.
#[path = "../hub/api.rs"]
#[expect(dead_code, reason = "its tests ask for more")]
mod api;
#[path = "../hub/cluster.rs"]
#[expect(dead_code, reason = "its tests do more with a cluster")]
mod cluster;
#[path = "../hub/fleet.rs"]
#[expect(dead_code, reason = "its tests look at more")]
mod fleet;

mod deployments;
mod gate;
mod hands;
mod hub;
mod image;
mod job;
mod jobs;
mod k0rdent;
mod metrics;
mod moment;
mod old_flags;
mod one_command;
mod partition;
mod pods;
mod power_cuts;
mod relay;
mod schedule;
mod served;
mod systems;
mod units;
mod waits;

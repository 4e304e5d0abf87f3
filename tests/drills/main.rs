//! On a real node: see `tests/node/lib.rs`, and `tests/README.md` for what in it is real.

mod deployments;
mod gate;
mod hands;
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
mod schedule;
mod served;
mod systems;
mod units;
mod waits;

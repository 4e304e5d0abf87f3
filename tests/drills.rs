//! On a real node: see `tests/node/mod.rs`, and `tests/README.md` for what in it is real.

#[path = "node/mod.rs"]
pub mod node;

#[path = "drills/deployments.rs"]
mod deployments;
#[path = "drills/hands.rs"]
mod hands;
#[path = "drills/host.rs"]
mod host;
#[path = "drills/image.rs"]
mod image;
#[path = "drills/job.rs"]
mod job;
#[path = "drills/jobs.rs"]
mod jobs;
#[path = "drills/moment.rs"]
mod moment;
#[path = "drills/old_flags.rs"]
mod old_flags;
#[path = "drills/one_command.rs"]
mod one_command;
#[path = "drills/pods.rs"]
mod pods;
#[path = "drills/power_cuts.rs"]
mod power_cuts;
#[path = "drills/smoke.rs"]
mod smoke;
#[path = "drills/systems.rs"]
mod systems;
#[path = "drills/units.rs"]
mod units;
#[path = "drills/waits.rs"]
mod waits;

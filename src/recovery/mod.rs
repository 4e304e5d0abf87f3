//! Recoveries: a node whose upgrade failed gets back to what a backup says, phase by phase, across reboots, whatever fails on the way.
//!
//! Reading order:
//!
//! 1. [`procedure`]: the phases, and what a run is asked to do; the [engine](crate::engine) carries it out and keeps its journal.
//! 2. [`undo`]: what must be put back however it ends.
//! 3. `run` (what a step has at hand), then one file per phase with its steps in order: [`preflight`] (before a run), [`platform`] (with the table
//!    of deployments), `restore_files`, `resume`, `redeploy`, `finish`; `waits` and `ports` are what they look at.
//! 4. `plan`, `verbs`, [`fn@abandon`]: what users ask for. [`mod@status`]: what they are told. `follow`: watching another agent at it. `history`: where
//!    runs end.

mod abandon;
mod carry_on;
mod ending;
mod finish;
mod follow;
mod history;
mod plan;
pub mod platform;
mod ports;
pub mod preflight;
pub mod procedure;
mod redeploy;
pub mod report;
mod restore_files;
mod resume;
mod run;
pub mod status;
pub mod step;
mod steps;
pub mod undo;
mod verbs;
mod waits;

pub use abandon::abandon;
pub use plan::{Proposal, plan, plan_restart};
pub use preflight::{From, Options, PlanReport};
pub use procedure::{Asked, EtcdRestore, WAIT};
pub use report::{AbandonReport, Changed, Outcome, RunReport};
pub use status::{StatusReport, status};
pub use verbs::{ResumeOptions, platform_report, resume};

//! Recoveries: a node whose upgrade failed gets back to what a backup says, phase by phase, across reboots, whatever fails on the way.
//!
//! Reading order:
//!
//! 1. [`machine`]: which events may follow which, and what is next. Pure.
//! 2. [`journal`]: those events on disk. [`undo`]: what must be put back however it ends.
//! 3. [`driver`]: asks the machine, writes down, acts, writes down.
//! 4. `run` (what a step has at hand), then one file per phase with its steps in order: [`preflight`] (before a run), [`platform`] (with the table
//!    of deployments), `restore_files`, `resume`, `redeploy`, `finish`; `waits` and `ports` are what they look at.
//! 5. `plan`, `verbs`, [`fn@abandon`]: what users ask for. [`mod@status`]: what they are told. `follow`: watching another agent at it. `history`: where
//!    runs end.

mod abandon;
pub mod driver;
mod finish;
mod follow;
mod history;
pub mod journal;
pub mod machine;
mod plan;
pub mod platform;
mod ports;
pub mod preflight;
mod redeploy;
mod restore_files;
mod resume;
mod run;
pub mod status;
pub mod undo;
mod verbs;
mod waits;

use std::time::Duration;

pub use abandon::{AbandonReport, abandon};
pub use journal::{Asked, EtcdRestore};
pub use plan::{Proposal, plan, plan_restart};
pub use preflight::{From, Options, PlanReport};
pub use status::{StatusReport, status};
pub use verbs::{Outcome, ResumeOptions, RunReport, platform_report, resume};

/// The deadline of each wait of a recovery unless it is given. As long as the old tool's: an installer takes 30 to 90 s, a lease 330 s, the
/// start-up monitor up to 300 s.
pub const WAIT: Duration = Duration::from_secs(1200);

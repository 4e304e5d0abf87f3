//! Recoveries: a node whose upgrade failed gets back to what a backup says, phase by phase, across reboots, whatever fails on the way.
//!
//! Reading order:
//!
//! 1. [`procedure`]: the phases, and what a run is asked to do; the [engine](crate::engine) carries it out and keeps its journal.
//! 2. [`undo`]: what must be put back however it ends.
//! 3. [`step`] (the names of the steps) and `run` (what a step has at hand), then one file per phase with its steps in order: [`platform`] (with the
//!    table of deployments), `restore_files`, `resume`, `redeploy`, `finish`; `waits` and `ports` are what they look at, `modifier` and `patch` what rules change. `steps` puts them together.
//! 4. What users ask for: `propose` (the verbs that begin a recovery, after [`preflight`]), `carry_on` (the verb `resume`; the file `resume` is the phase),
//!    `abandon`, [`mod@status`]. `follow`: watching another agent at it. `history`: where runs are kept when they are over;
//!    [`mod@account`]: what is told of one.
//!
//! A failed step is named in the message, in `recovery status` and in the journal, `etcd-data`: that is a constant in [`step`], and the `STEPS` of the
//! phase's file say which function it is.

mod abandon;
pub mod account;
mod carry_on;
mod finish;
mod follow;
mod history;
mod modifier;
mod patch;
pub mod platform;
mod ports;
pub mod preflight;
pub mod procedure;
mod propose;
mod redeploy;
pub mod report;
mod restore_files;
mod resume;
mod run;
pub mod status;
pub mod step;
mod steps;
pub mod undo;
mod waits;

pub use abandon::abandon;
pub use account::{Account, account};
pub use carry_on::{ResumeOptions, resume};
pub use modifier::{DROP_DESIRED_UPDATE, ModifierReport, ObjectReport, RuleReport};
pub use platform::platform_report;
pub use preflight::{FirstPhase, Options, PlanReport};
pub use procedure::{Asked, EtcdRestore, WAIT};
pub use propose::{Proposal, propose, propose_restart};
pub use report::{AbandonReport, Changed, Outcome, RunReport};
pub use status::{StatusReport, status};

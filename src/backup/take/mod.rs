//! Taking a backup.
//!
//! Reading order: [`steps`] (all of them, in order); [`options`] (what the caller asks for); [`preflight`] (what is checked before anything
//! is changed); [`trees`] with [`tmpfiles`] (what is archived); [`procedure`] and [`partial`] (what the engine carries out, and an
//! unfinished backup that can be continued); [`install`] (the agent beside it); [`pins`] (its deployment stays); [`publish`] (from then on
//! it is a backup).

pub mod install;
pub mod options;
pub mod partial;
pub mod pins;
pub mod preflight;
pub mod procedure;
pub mod publish;
pub mod steps;
pub mod tmpfiles;
pub mod trees;

pub use options::{KEEP, TakeOptions};
pub use steps::{Outcome, Taken, already_taken, take};

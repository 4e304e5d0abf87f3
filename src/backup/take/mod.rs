//! Taking a backup.
//!
//! Reading order: [`steps`] (all of them, in order); [`options`] (what is asked for); [`preflight`] (what is looked at before anything is
//! changed); [`trees`] with [`tmpfiles`] (what is archived); [`procedure`] and [`partial`] (what the engine
//! carries out, and one that is not finished and can be gone on with); [`pins`] (its deployment stays); [`log`] (what was done); [`publish`] (from then on it is a backup).

pub mod log;
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

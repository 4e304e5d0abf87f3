//! The layout of the old `upgrade-recovery.sh`.
//!
//! Reading order: [`layout`] (what lies where); [`members`] (its archives); [`excludes`] (its list of what a restore leaves alone);
//! [`check`] (whether a recovery takes it); [`mod@import`] (a backup of it); [`mod@export`] (it, of a backup).

mod check;
mod excludes;
pub mod export;
pub mod import;
pub mod layout;
mod members;

pub use check::{problem, verify};
pub use export::{export, export_cluster};
pub use layout::{Legacy, find};

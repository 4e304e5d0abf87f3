//! The layout of the old `upgrade-recovery.sh`.
//!
//! Reading order: [`layout`] (where its files are); [`members`] (its archives); [`excludes`] (its list of what a restore excludes);
//! [`check`] (whether a recovery can use it); [`mod@import`] (makes a backup from it); [`mod@export`] (makes it from a backup).

mod check;
mod excludes;
pub mod export;
pub mod import;
pub mod layout;
mod members;

pub use check::{problem, verify};
pub use export::{export, export_cluster};
pub use layout::{Legacy, find};

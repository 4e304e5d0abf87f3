//! The gate before an upgrade: none begins without a good backup.
//!
//! Reading order: [`here`] (where the cluster is); [`good`] (the one judge of whether a backup would bring it back there); [`pass`](mod@pass) (waiting for one, or
//! taking one); [`door`] (the same in the API server, for whoever changes the release there); [`upgrade`](mod@upgrade) (all of it in one command).

pub mod door;
pub mod good;
pub mod here;
pub mod pass;
pub mod upgrade;

pub use pass::{Asked, Passed, pass};

//! What a monitoring system asks of a node: whether there is a good backup, how the last one ended, what is open.
//!
//! Reading order: [`mod@gather`] (what there is to tell, from files alone), [`text`] (in the format that Prometheus reads).

pub mod gather;
pub mod text;

pub use gather::{Metrics, gather};

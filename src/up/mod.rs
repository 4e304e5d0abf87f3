//! Whether everything is up: one list, one verdict for each part, against how it was when a backup was taken.
//!
//! Reading order: [`containers`] (those of the control plane); [`look`](mod@look) (every part, once); [`wait`](mod@wait) (until all are up, and stay up).

pub mod containers;
pub mod look;
pub mod wait;

pub use look::{Before, Checked, Part, look};
pub use wait::{Fell, HOLD, Terms, Up, wait};

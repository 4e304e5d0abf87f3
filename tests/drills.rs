//! On a real node: see `tests/node/mod.rs`, and `tests/README.md` for what in it is real.

#[path = "node/mod.rs"]
pub mod node;

#[path = "drills/smoke.rs"]
mod smoke;

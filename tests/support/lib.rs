//! What the tests, the demo and the benchmark have in common. `tests/README.md` says what in it is real and what is emulated.
//!
//! - [`node`]: an emulated node, whole; [`place`]: where its parts are, for its programs too (`tests/standin`).
//! - [`etcd`]: real etcd of four releases.
//! - [`api`]: an emulated API server; [`pki`], [`csr`]: certificates and requests for them.
//! - [`agent`]: the agent as one of another version; [`sealed`]: its files with a checksum, changed.
//! - [`tree`]: a file tree with one of everything; [`manifest`]: a backup's manifest with nothing special in it.
//! - [`cargo`]: the checkout, and what cargo has built in it.

#![allow(
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::new_without_default,
    reason = "helpers of tests: every one fails when it cannot do what it says, which ends the test"
)]

pub mod agent;
pub mod api;
pub mod cargo;
pub mod csr;
pub mod etcd;
pub mod manifest;
pub mod node;
pub mod pki;
pub mod place;
pub mod sealed;
pub mod session;
pub mod subject;
pub mod tree;

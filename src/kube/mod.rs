//! The Kubernetes API: waits with deadlines, facts, redeployment of static pods, certificate requests.
//!
//! Reading order: `kubeconfig` (how the node's own API server is reached, without looking up a name), `client` (one request, with
//! a limit; the API going away is normal), `objects` (the few fields that are read, tolerant of everything else), then what is asked:
//! `facts`, `redeploy`, `requests` (certificates), `jobs` (the backup's own), `obstacles` (why nothing moves), `patched` (objects
//! that were changed before the API server ran).
//!
//! What a parser decides is pure and apart from what is fetched; captures of real clusters are the tests.

mod client;
mod facts;
mod jobs;
mod kubeconfig;
mod objects;
mod obstacles;
mod patched;
mod redeploy;
mod requests;

pub use client::{Client, Refused};
pub use facts::{Cluster, OperatorState, update_ahead};
pub use patched::Place;

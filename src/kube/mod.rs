//! The Kubernetes API: waits with deadlines, facts, redeployment of static pods, certificate requests.
//!
//! Reading order: `kubeconfig` (how the node's own API server is reached, without looking up a name), `client` (one request, with
//! a limit; the API going away is normal), `objects` (the few fields that are read, tolerant of everything else), then what is asked:
//! `facts`, `redeploy`, `requests` (certificates), `jobs` (the backup's own), `obstacles` (why nothing changes).
//!
//! Decisions are pure functions, separate from the requests; they are tested on captures of real clusters.

mod client;
mod facts;
mod jobs;
mod kubeconfig;
mod objects;
mod obstacles;
mod redeploy;
mod requests;

pub use client::{Client, Refused};
pub use facts::{Cluster, OperatorState};

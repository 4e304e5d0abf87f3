//! The Kubernetes API: waits with deadlines, facts, redeployment of static pods, certificate requests.
//!
//! Reading order: `kubeconfig` (how the node's own API server is reached, without looking up a name), `client` (one request, with
//! a limit; the API going away is normal), `objects` (the few fields that are read, tolerant of everything else), then what is asked:
//! `facts`, `redeploy`, `requests` (certificates), `workloads`, `management` and `health` (whether what runs is up), `release` (the one that is asked for)
//! and `policy` (the gate before it), `jobs` (the backup's own), `obstacles` (why nothing moves), `patched` (objects that were changed before
//! the API server ran).
//!
//! Decisions are pure functions, separate from the requests; they are tested on captures of real clusters.

mod client;
mod facts;
mod health;
mod jobs;
mod kubeconfig;
mod management;
pub(crate) mod objects;
mod obstacles;
mod patched;
pub mod policy;
mod redeploy;
mod release;
mod requests;
mod workloads;

pub use client::{Client, Refused};
pub use facts::{Cluster, OperatorState, update_ahead};
pub use health::Health;
pub use management::{Management, management_ahead};
pub use patched::Place;
pub use policy::{Permission, is_gate};
pub use release::{Skipped, Upgrade, Upgraded};
pub use workloads::{Workload, WorkloadKind};

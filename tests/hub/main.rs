//! The hub from outside: what it does to clusters, which are real API servers, or a thousand cheap ones.

mod alike;
mod api;
mod between;
mod cluster;
mod fleet;
mod harness;
mod hostile;
mod https;
mod killed;
mod kubelet;
mod many;
mod ocm;
mod refused;
mod states;
mod thousand;

//! Backups, from the outside: real `sha256sum`, `tar`, `zstd`, `etcdctl`, a real etcd, real file systems.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails with it, helpers included")]

mod install;
mod legacy;
mod manifests;
mod place;
mod store;
mod take;

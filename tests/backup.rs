//! Backups, from the outside: real `sha256sum`, `tar`, `zstd`, `etcdctl`, a real etcd, real file systems.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails with it, helpers included")]

#[path = "support/manifest.rs"]
pub mod manifest;
#[path = "support/etcd.rs"]
pub mod real_etcd;

#[path = "backup/legacy.rs"]
mod legacy;
#[path = "backup/manifests.rs"]
mod manifests;
#[path = "backup/place.rs"]
mod place;
#[path = "backup/store.rs"]
mod store;
#[path = "backup/take.rs"]
mod take;

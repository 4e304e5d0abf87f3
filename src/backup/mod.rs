//! Backups: what one is on disk, and how one is taken, checked, listed, pruned, exported, and imported from the old script.
//!
//! Reading order: what all share: [`layout`] and [`parts`] (its files), [`names`] (what one may be called), [`asked_by`] (who wants it),
//! [`manifest`] (what it says of itself), [`sums`], [`published`] (all of it is there), [`survey`] (all that lie in the recovery
//! directory), [`mod@verify`] (whether a recovery takes one), [`last_run`] (how the last run ended); then the rooms: [`mod@take`], [`legacy`] (the old script's layout), [`store`]
//! (list, choose, delete, prune), with [`selector`] (those that have certain labels).
//!
//! The caller of anything here that changes the recovery directory holds its [lock](crate::node::dir::RecoveryDir::lock).

pub mod asked_by;
pub mod last_run;
pub mod layout;
pub mod legacy;
pub mod manifest;
pub mod names;
pub mod parts;
pub mod published;
pub mod selector;
pub mod store;
pub mod sums;
pub mod survey;
pub mod take;
pub mod verify;

pub use layout::LEGACY_ID;
pub use legacy::{export, export_cluster};
pub use parts::{ETC, ETCD, EXTRAS, KUBELET, STATIC_PODS, USR_LOCAL};
pub use published::Backup;
pub use store::choose;
pub use take::take;
pub use verify::verify;

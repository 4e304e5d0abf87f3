//! A recovery from the outside of its room: what each verb does to a node, and what it refuses.

#[path = "support/manifest.rs"]
pub mod manifest;
#[path = "support/etcd.rs"]
pub mod real_etcd;

#[path = "support/node.rs"]
pub mod node;

// First: it takes longest.
#[path = "recovery/all_the_way.rs"]
mod all_the_way;
#[path = "recovery/before_a_backup.rs"]
mod before_a_backup;
#[path = "recovery/by_hand.rs"]
mod by_hand;
#[path = "recovery/cluster_restore.rs"]
mod cluster_restore;
#[path = "recovery/full_disk.rs"]
mod full_disk;
#[path = "recovery/hostile.rs"]
mod hostile;
#[path = "recovery/images.rs"]
mod images;
#[path = "recovery/in_the_way.rs"]
mod in_the_way;
#[path = "recovery/journald.rs"]
mod journald;
#[path = "recovery/old_script.rs"]
mod old_script;
#[path = "recovery/one_command.rs"]
mod one_command;
#[path = "recovery/own_job.rs"]
mod own_job;
#[path = "recovery/place.rs"]
mod place;
#[path = "recovery/refusals.rs"]
mod refusals;
#[path = "recovery/reports.rs"]
mod reports;
#[path = "recovery/runtimes.rs"]
mod runtimes;
#[path = "recovery/signals.rs"]
mod signals;
#[path = "recovery/soft_reboot.rs"]
mod soft_reboot;
#[path = "recovery/through.rs"]
mod through;
#[path = "recovery/unit.rs"]
mod unit;
#[path = "recovery/walk.rs"]
mod walk;

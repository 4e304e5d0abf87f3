//! Backups on time: the host keeps time, because the cluster is what may be broken.
//!
//! Reading order: [`cron`] with [`zone`] (when).

pub mod cron;
pub mod zone;

//! Backups on time: the host keeps time, because the cluster is what may be broken.
//!
//! Reading order: [`cron`] with [`zone`] (when); [`store`] (the schedules of a node, and what became of them so far); [`due`] (what is to be done, a pure
//! function); [`run`](mod@run) (doing it); [`mod@arm`] (being woken for it); [`change`] (making, changing, deleting them) and [`manifest`] (as k0rdent's guide
//! writes them).

pub mod arm;
pub mod change;
pub mod cron;
pub mod due;
pub mod manifest;
pub mod run;
pub mod store;
pub mod zone;

pub use change::{Change, Pace, backup_takes, delete, instants, put};
pub use due::Verdict;
pub use store::{Schedule, Schedules};

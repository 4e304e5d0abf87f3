//! What is done with the backups that there are: listing them, finding the one that is meant, deleting them.
//!
//! Reading order: [`list`](mod@list) and [`logs`](mod@logs) (what there is); [`choose`](mod@choose) (which one is meant); [`delete`](mod@delete),
//! [`prune`](mod@prune), and [`after`], what both share.

pub mod after;
pub mod choose;
pub mod delete;
pub mod list;
pub mod logs;
pub mod prune;

pub use after::Removed;
pub use choose::{Found, choose, choose_unchanged, find, verify_chosen};
pub use delete::{Deletion, delete, deletion};
pub use list::{Listed, Shown, State, list, show};
pub use logs::logs;
pub use prune::{Retention, prune};

pub use super::survey::{Survey, is_deleted, survey};
pub use super::take::publish::finish_interrupted;

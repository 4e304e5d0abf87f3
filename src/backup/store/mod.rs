//! The backups that there are: which, which one is meant, and fewer of them.
//!
//! Reading order: [`list`] (what there is); [`choose`](mod@choose) (which one is meant); [`delete`](mod@delete), [`prune`](mod@prune), and [`after`], what both share.

pub mod after;
pub mod choose;
pub mod delete;
pub mod list;
pub mod prune;

pub use after::Removed;
pub use choose::{Found, check, choose, find};
pub use delete::{Deletion, delete, deletion};
pub use list::{Listed, Shown, State, list, show};
pub use prune::prune;

pub use super::survey::{Survey, is_deleted, survey};

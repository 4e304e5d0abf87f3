//! The hub: backups of a fleet before its upgrades, as objects of Kubernetes. `recovery hub run` is a controller in a cluster of its own, the hub; each
//! cluster of the fleet is a spoke.
//!
//! ```text
//! BackupSchedule ─ at each instant ─▶ ClusterGroupBackup ─ for each cluster, so many at a time ─▶ ClusterBackup ─ the Job on its spoke
//! ```
//!
//! Reading order: [`api`] (what can be asked for, and what is said of it); [`machine`] (the states of one cluster's backup) and [`plan`] (what a group does next):
//! pure functions; [`spoke`] (the two ways to a cluster); then what is done with them: [`backup`] (with `at_work`, `words` and `after`),
//! [`group`], [`schedule`], each the controller of one kind of object, and [`own`] (what they have in common); [`run`] (all of them together, in the replica that has the [`lease`]); [`numbers`] and [`serve`] (metrics and health); [`status`] (for people).
//!
//! Nothing is kept in memory that is not in the objects' status or on the spokes: a hub that is killed goes on where it was. What makes that true:
//!
//! * A state is written before what it is about is done, with the version of the object that it was decided by: of two writers, one is refused.
//! * The Job of a try is named after the try's uid, and is made in the state Starting alone, which it leaves as soon as the Job is seen.
//! * Whatever is done on a spoke can be done twice.

mod after;
pub mod api;
mod at_work;
pub mod backup;
pub mod group;
pub mod lease;
pub mod machine;
pub mod numbers;
pub mod own;
pub mod plan;
pub mod run;
pub mod schedule;
pub mod serve;
pub mod spoke;
pub mod status;
mod words;

use std::time::Duration;

/// Who writes, as `managedFields` have it: on the hub and on the spokes.
pub const FIELD_MANAGER: &str = "recovery-hub";

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Many repeat their cause in their own words.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// The end of a text, from a whole character on.
pub(crate) fn last(text: &str, most: usize) -> String {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

/// About so long: up to a quarter more, so that what began together does not ask together.
pub(crate) fn about(pause: Duration) -> Duration {
    pause + pause.mul_f32(f32::from(uuid::Uuid::new_v4().as_bytes()[0]) / 1024.0)
}

//! What is said of a try in its status: a word for programs, sentences for people.

use jiff::Timestamp;

use super::api::{ClusterBackup, ClusterBackupStatus};
use super::last;
use super::machine::{Seen, State};
use super::spoke::{Job, JobEnd, Look, Trouble};
use crate::report::words::{line, lines};

/// The most bytes that a cluster says in a status: of a message, and of a word.
const MOST_MESSAGE: usize = 4096;
const MOST_WORD: usize = 100;

/// A word as a status takes it, whatever a cluster says, and as a terminal may show it.
pub(super) fn a_word(said: &str) -> String {
    line(&last(said, MOST_WORD)).into_owned()
}

/// The same of sentences.
pub(super) fn sentences(said: &str) -> String {
    lines(&last(said, MOST_MESSAGE)).into_owned()
}

/// A word and sentences for what was seen.
pub(super) fn words(backup: &ClusterBackup, status: &ClusterBackupStatus, seen: Seen, looked: &Result<Look, Trouble>) -> (String, String) {
    let word = |word: &str, message: String| (word.to_owned(), message);
    let vanished = status.state == State::Active && matches!(seen, Seen::Nothing | Seen::Leftovers);
    if vanished {
        let which = status.job.as_deref().unwrap_or("of this try");
        return word(
            "JobVanished",
            format!("the Job ({which}) is gone, and nobody knows what it did: it was deleted, or the cluster was set back"),
        );
    }
    let job = looked.as_ref().ok().and_then(|look| look.job.as_ref());
    let heard = job.map(|job| job.said.trim()).unwrap_or_default();
    match (seen, looked) {
        (Seen::TooLate, _) => {
            let last = if status.message.is_empty() { status.state.name().to_owned() } else { status.message.clone() };
            word(
                "GaveUp",
                format!("not done {} s after it was begun ({}): {last}", backup.spec.give_up_after_seconds, with_reason(&status.reason)),
            )
        }
        (_, Err(Trouble::Unreachable { reason, message })) => word(reason, message.clone()),
        (_, Err(Trouble::Refused(message))) => word("Refused", message.clone()),
        (Seen::Leftovers, Ok(look)) => {
            word("Leftovers", format!("waiting until what earlier tries left on the cluster is gone: {}", first(&look.leftovers)))
        }
        (Seen::Nothing, _) => word("Starting", "putting the Job onto the cluster".to_owned()),
        (Seen::Verified, _) => word("Verified", "the node has read the whole backup back and found it good".to_owned()),
        (Seen::Stale, _) => stale(backup, job),
        (Seen::Unproven, _) => {
            let said = if heard.is_empty() { "nothing".to_owned() } else { format!("\"{heard}\"") };
            word("NotVerified", format!("the Job is complete, but the node did not say that its backup is verified: its pod said {said}"))
        }
        (Seen::Running, Ok(Look { job: Some(job), .. })) if !job.waits.is_empty() => word("PodWaiting", job.waits.clone()),
        // At its deadline a Job is without a pod for a moment: why that did not begin is still what there is to say.
        (Seen::Running, Ok(Look { job: Some(job), .. })) if !job.runs && status.reason == "PodWaiting" => {
            word(&status.reason, status.message.clone())
        }
        (Seen::Running, _) => word("Running", "the backup is being taken".to_owned()),
        (_, Ok(Look { job: Some(Job { end: JobEnd::Failed { reason, message }, waits, .. }), .. })) => {
            let why = [heard, waits.as_str(), message.as_str()].into_iter().find(|text| !text.is_empty()).unwrap_or("it did not say why");
            let reason = if reason.is_empty() { "JobFailed" } else { reason };
            // The pod is gone by now.
            let until =
                if heard.is_empty() && status.reason == "PodWaiting" { format!("; until then: {}", status.message) } else { String::new() };
            word(reason, format!("{why}{until}"))
        }
        (_, Ok(_)) => word("Unknown", String::new()),
    }
}

/// Of a backup that is verified, and not good for an upgrade all the same.
fn stale(backup: &ClusterBackup, job: Option<&Job>) -> (String, String) {
    let Some(result) = job.and_then(Job::result) else { return ("TooOld".to_owned(), String::new()) };
    let named = format!("the node's backup {} is verified, but", result.backup);
    match result.certificates_expire.filter(|expires| *expires <= Timestamp::now()) {
        Some(expires) => {
            ("Expired".to_owned(), format!("{named} a certificate in it has expired, {expires:.0}: no upgrade may begin with it"))
        }
        None => (
            "TooOld".to_owned(),
            format!(
                "{named} it was begun at {:.0}, longer ago than spec.maxAge, {}: give that more than a backup takes",
                result.taken, backup.spec.max_age
            ),
        ),
    }
}

fn with_reason(reason: &str) -> &str {
    if reason.is_empty() { "nothing was heard" } else { reason }
}

/// The first of some names, for a sentence.
fn first(names: &[String]) -> String {
    let more = names.len().saturating_sub(3);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", names.iter().take(3).cloned().collect::<Vec<_>>().join(", "))
}

//! What a group has to do now, and what is to be said of it. Pure: from its clusters, its `ClusterBackups` and the time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use super::api::{
    ClusterBackup, ClusterBackupSpec, ClusterGroupBackup, ClusterGroupBackupSpec, ClusterGroupBackupStatus, Condition, Counts,
    FailedCluster, SCHEDULE_LABEL,
};
use super::last;
use super::machine::State;

/// How many of the clusters that failed are named.
const NAMED: usize = 20;
/// The most bytes of why no try of one can be made.
const MOST_REASON: usize = 256;
/// What the reason of such a cluster begins with.
pub(super) const REFUSED: &str = "Refused: ";
/// Conditions, as the old tool's hub has them (its own `BackupSuceeded` lacks a letter).
pub(super) const BACKUP_SUCCEEDED: &str = "BackupSucceeded";
pub(super) const PROGRESSING: &str = "Progressing";

/// What a group has to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The clusters whose backup is begun now, and the number of the try.
    pub begin: Vec<(String, u32)>,
    /// The names of the `ClusterBackups` that nobody needs any more.
    pub forget: Vec<String>,
    /// What is to be said of it.
    pub status: ClusterGroupBackupStatus,
    /// When it has to be looked at again although nothing has happened.
    pub next: Option<Timestamp>,
}

/// How a cluster of a group stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Standing<'a> {
    /// This try is to be made.
    Due(u32),
    /// A backup is under way.
    Running(State),
    /// It has a good one until then.
    Good(Timestamp),
    /// It failed with this try, and is not tried again.
    Failed(&'a ClusterBackup),
    /// No try of it can be made: why.
    Refused(&'a str),
}

impl Standing<'_> {
    /// Whether an upgrade has to wait.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        !matches!(self, Self::Good(_))
    }
}

/// How a cluster with these tries stands, which may come in any order. With `once`, a good backup is not taken again however old it is.
#[must_use]
pub fn standing<'a>(tries: &[&'a ClusterBackup], retries: u32, once: bool, now: Timestamp) -> Standing<'a> {
    let next = tries.iter().map(|one| one.spec.attempt).max().unwrap_or(0).saturating_add(1);
    if let Some(running) = tries.iter().find(|one| !one.state().is_final()) {
        return Standing::Running(running.state());
    }
    // One that is deleted has somebody who wants it tried again.
    let mut ended: Vec<&ClusterBackup> = tries.iter().copied().filter(|one| one.metadata.deletion_timestamp.is_none()).collect();
    ended.sort_by_key(|one| std::cmp::Reverse(one.spec.attempt));
    let Some(last) = ended.first() else { return Standing::Due(next) };
    match last.state() {
        State::Succeeded => match last.status.as_ref().and_then(|status| status.good_until) {
            Some(until) if until > now || once => Standing::Good(until),
            _ => Standing::Due(next),
        },
        State::BackupTimeout => {
            let in_a_row = ended.iter().take_while(|one| one.state() == State::BackupTimeout).count();
            if in_a_row <= retries as usize { Standing::Due(next) } else { Standing::Failed(last) }
        }
        _ => Standing::Failed(last),
    }
}

/// What the group has to do. `clusters` are those that it chooses now, and `refused` says of some why no try of them can be made; `tries` are all
/// `ClusterBackups` that belong to it, those that were made a moment ago among them: with one left out, too many run.
#[must_use]
pub fn plan(
    group: &ClusterGroupBackup,
    clusters: &BTreeSet<String>,
    refused: &BTreeMap<String, String>,
    tries: &[&ClusterBackup],
    now: Timestamp,
) -> Plan {
    let ClusterGroupBackupSpec { enable, max_concurrency, retries, keep, .. } = group.spec;
    let mut of: BTreeMap<&str, Vec<&ClusterBackup>> = BTreeMap::new();
    for one in tries {
        of.entry(one.spec.cluster.as_str()).or_default().push(one);
    }
    let none = Vec::new();
    // The next one is the schedule's to take.
    let once = group.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(SCHEDULE_LABEL));
    let stands = |cluster: &String| match standing(of.get(cluster.as_str()).unwrap_or(&none), retries, once, now) {
        Standing::Due(attempt) => refused.get(cluster).map_or(Standing::Due(attempt), |why| Standing::Refused(why)),
        standing => standing,
    };
    let standings: Vec<(&String, Standing<'_>)> = clusters.iter().map(|cluster| (cluster, stands(cluster))).collect();
    // Whatever runs takes a place, also where its cluster has left the group.
    let running = tries.iter().filter(|one| !one.state().is_final()).count();
    let free = (max_concurrency as usize).saturating_sub(running);
    let mut due: Vec<(u32, &String)> = standings
        .iter()
        .filter_map(|(cluster, standing)| if let Standing::Due(n) = standing { Some((*n, *cluster)) } else { None })
        .collect();
    // Whoever was never tried comes first: those that fail again and again hold nobody up.
    due.sort();
    let begin = if enable { due.iter().take(free).map(|(attempt, cluster)| ((*cluster).clone(), *attempt)).collect() } else { Vec::new() };
    let next = standings
        .iter()
        .filter_map(|(_, standing)| if let Standing::Good(until) = standing { Some(*until).filter(|until| *until > now) } else { None })
        .min();
    Plan {
        begin,
        forget: of.values().flat_map(|tries| forgotten(tries, keep)).collect(),
        status: status(group, &standings, tries, now),
        next,
    }
}

/// The tries of a cluster that are over and that nobody needs any more: those before the last good one, and all but so many good ones.
fn forgotten(tries: &[&ClusterBackup], keep: u32) -> Vec<String> {
    let mut good: Vec<u32> = tries.iter().filter(|one| one.state() == State::Succeeded).map(|one| one.spec.attempt).collect();
    good.sort_unstable_by_key(|attempt| std::cmp::Reverse(*attempt));
    good.truncate(keep as usize);
    let (Some(&last), Some(&oldest)) = (good.first(), good.last()) else { return Vec::new() };
    let over = tries.iter().filter(|one| one.state().is_final() && one.metadata.deletion_timestamp.is_none());
    over.filter(|one| {
        let first = if one.state() == State::Succeeded { oldest } else { last };
        one.spec.attempt < first
    })
    .filter_map(|one| one.metadata.name.clone())
    .collect()
}

fn status(
    group: &ClusterGroupBackup,
    standings: &[(&String, Standing<'_>)],
    tries: &[&ClusterBackup],
    now: Timestamp,
) -> ClusterGroupBackupStatus {
    let mut counts = Counts { clusters: u32::try_from(standings.len()).unwrap_or(u32::MAX), ..Counts::default() };
    let mut failed = Vec::new();
    for (cluster, standing) in standings {
        match standing {
            Standing::Due(_) => counts.waiting += 1,
            Standing::Running(state) => {
                counts.running += 1;
                match state {
                    State::PreparingToStart => counts.preparing += 1,
                    State::Starting => counts.starting += 1,
                    _ => counts.active += 1,
                }
            }
            Standing::Good(_) => counts.succeeded += 1,
            Standing::Failed(last) => {
                counts.failed += 1;
                let status = last.status.clone().unwrap_or_default();
                if status.state == State::BackupTimeout {
                    counts.timeout += 1;
                } else {
                    counts.error += 1;
                }
                failed.push(FailedCluster { name: (*cluster).clone(), state: status.state, reason: status.reason });
            }
            Standing::Refused(why) => {
                counts.failed += 1;
                counts.error += 1;
                let reason = format!("{REFUSED}{}", last(why, MOST_REASON));
                failed.push(FailedCluster { name: (*cluster).clone(), state: State::UnrecoverableError, reason });
            }
        }
    }
    let names = named(&failed);
    failed.truncate(NAMED);
    let before = group.status.clone().unwrap_or_default();
    let generation = group.metadata.generation;
    let begun = tries.iter().filter_map(|one| one.status.as_ref()?.started_at).min();
    let condition =
        |kind: &str, (is, reason, message): (bool, &str, String)| set(&before.conditions, kind, is, reason, message, generation, now);
    ClusterGroupBackupStatus {
        observed_generation: generation,
        started_at: before.started_at.or(begun),
        counts,
        failed,
        conditions: vec![
            condition(BACKUP_SUCCEEDED, succeeded(&counts, group.spec.enable, &names)),
            condition(PROGRESSING, progressing(&counts, group.spec.enable)),
        ],
    }
}

/// The first of those that failed, for a sentence.
fn named(failed: &[FailedCluster]) -> String {
    let first: Vec<&str> = failed.iter().take(NAMED).map(|one| one.name.as_str()).collect();
    let more = failed.len().saturating_sub(NAMED);
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", first.join(", "))
}

fn succeeded(counts: &Counts, enable: bool, names: &str) -> (bool, &'static str, String) {
    let Counts { clusters, waiting, running, succeeded, failed, .. } = *counts;
    match (waiting + running, failed) {
        (0, _) if clusters == 0 => (false, "NoClusters", "the group has no cluster".to_owned()),
        (0, 0) => (true, "BackupCompleted", format!("each of {clusters} clusters has a good backup")),
        (0, failed) if failed == clusters => (false, "Failed", format!("all {failed} clusters failed: {names}")),
        (0, failed) => (true, "PartiallyDone", format!("{succeeded} of {clusters} clusters have a good backup; {failed} failed: {names}")),
        _ if !enable && running == 0 => (false, "NotEnabled", format!("{waiting} of {clusters} clusters wait until spec.enable is true")),
        _ => {
            let failures = if failed == 0 { String::new() } else { format!("; {failed} failed: {names}") };
            (
                false,
                "InProgress",
                format!("{succeeded} of {clusters} clusters have a good backup, {running} are at it, {waiting} wait{failures}"),
            )
        }
    }
}

fn progressing(counts: &Counts, enable: bool) -> (bool, &'static str, String) {
    let Counts { clusters, waiting, running, .. } = *counts;
    match (waiting, running) {
        (0, 0) if clusters == 0 => (false, "NoClusters", "the group has no cluster".to_owned()),
        (0, 0) => (false, "Completed", format!("all of {clusters} clusters are at an end")),
        (_, 0) if !enable => (false, "NotEnabled", "spec.enable is false: nothing is begun".to_owned()),
        _ => (true, "InProgress", format!("{running} backups are under way, {waiting} clusters wait for their turn")),
    }
}

/// A condition; its time stays while its status does.
pub(super) fn set(
    before: &[Condition],
    kind: &str,
    is: bool,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if is { "True" } else { "False" };
    let since = before.iter().find(|one| one.kind == kind && one.status == status).map_or(now, |one| one.last_transition_time);
    Condition {
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: since,
        observed_generation: generation,
    }
}

/// The try of a cluster, as the group asks for it. `image` is what the hub takes where the group names none.
#[must_use]
pub fn spec(group: &ClusterGroupBackup, cluster: &str, attempt: u32, image: &str) -> ClusterBackupSpec {
    let name = group.metadata.name.clone().unwrap_or_default();
    let asked = &group.spec;
    let filled = asked.name_template.replace("{group}", &name).replace("{cluster}", cluster).replace("{attempt}", &attempt.to_string());
    ClusterBackupSpec {
        cluster: cluster.to_owned(),
        group: name,
        attempt,
        reach: asked.reach,
        image: asked.image.clone().unwrap_or_else(|| image.to_owned()),
        deadline_seconds: asked.deadline_seconds,
        give_up_after_seconds: asked.give_up_after_seconds,
        max_age: asked.max_age.clone(),
        backup_name: filled,
        labels: asked.labels.clone(),
        keep: asked.keep,
        install_gate: asked.install_gate,
    }
}

/// Until when a backup is good for an upgrade: so long after it was begun, and no longer than its certificates. A node whose clock is ahead gains nothing.
#[must_use]
pub fn good_until(max_age: &str, taken: Timestamp, now: Timestamp, expires: Option<Timestamp>) -> Timestamp {
    let age: SignedDuration = max_age.parse().unwrap_or_default();
    let aged = taken.min(now).saturating_add(age).unwrap_or(Timestamp::MAX);
    expires.map_or(aged, |expires| aged.min(expires))
}

#[cfg(test)]
mod tests;

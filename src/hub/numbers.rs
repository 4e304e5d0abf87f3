//! What a monitoring system asks of a hub.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use kube::ResourceExt;

use super::api::{ClusterBackup, Counts};
use super::machine::State;
use super::run::Hub;
use crate::metrics::text::{Labels, family};

/// What is counted while a hub runs.
#[derive(Debug, Default)]
pub struct Numbers {
    /// By [`State::ALL`]: how often a state was reached.
    states: [AtomicU64; State::ALL.len()],
    looks: AtomicU64,
    failures: AtomicU64,
}

impl Numbers {
    /// A try has reached this state.
    pub fn count(&self, state: State) {
        if let Some(at) = State::ALL.iter().position(|one| *one == state) {
            self.states[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An object was looked at.
    pub fn looked(&self, went_well: bool) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if !went_well {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The metrics, in Prometheus' text format. Of a replica that is not the active one: only that.
#[must_use]
pub fn text(hub: Option<&Hub>) -> String {
    let mut text = String::new();
    family(&mut text, "recovery_hub_active", "gauge", "Whether this replica is the active one.", [(Vec::new(), u8::from(hub.is_some()))]);
    let Some(hub) = hub else { return text };
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let states = State::ALL.iter().zip(&hub.numbers.states).map(|(state, count)| (vec![("state", state.name())], read(count)));
    family(
        &mut text,
        "recovery_hub_transitions_total",
        "counter",
        "How often a ClusterBackup has reached this state since the hub was started.",
        states,
    );
    let looks = [(Vec::new(), read(&hub.numbers.looks))];
    family(&mut text, "recovery_hub_looks_total", "counter", "How often the hub has looked at an object.", looks);
    let failures = [(Vec::new(), read(&hub.numbers.failures))];
    family(&mut text, "recovery_hub_look_failures_total", "counter", "How often such a look came to nothing.", failures);
    let spokes = [(Vec::new(), hub.at_work.len())];
    family(&mut text, "recovery_hub_spokes_at_work", "gauge", "How many clusters the hub works on.", spokes);
    groups(&mut text, hub);
    text
}

fn groups(text: &mut String, hub: &Hub) {
    let groups: Vec<_> = hub.groups.state();
    let places: Vec<(String, String)> = groups.iter().map(|group| (group.namespace().unwrap_or_default(), group.name_any())).collect();
    let counts: Vec<Counts> = groups.iter().map(|group| group.status.as_ref().map(|status| status.counts).unwrap_or_default()).collect();
    let of = |place: usize, state: Option<&'static str>| -> Labels<'_> {
        let (namespace, name) = &places[place];
        [("namespace", namespace.as_str()), ("group", name.as_str())].into_iter().chain(state.map(|state| ("state", state))).collect()
    };
    let states = counts.iter().enumerate().flat_map(|(place, counts)| {
        let Counts { waiting, preparing, starting, active, succeeded, timeout, error, .. } = *counts;
        let all = [
            ("Waiting", waiting),
            (State::PreparingToStart.name(), preparing),
            (State::Starting.name(), starting),
            (State::Active.name(), active),
            (State::Succeeded.name(), succeeded),
            (State::BackupTimeout.name(), timeout),
            (State::UnrecoverableError.name(), error),
        ];
        all.map(|(state, count)| (of(place, Some(state)), count))
    });
    family(text, "recovery_hub_clusters", "gauge", "How many clusters of a group are in this state; Waiting is before its first.", states);
    let done = groups.iter().enumerate().filter_map(|(place, group)| {
        let condition = group.status.as_ref()?.conditions.iter().find(|one| one.kind == super::plan::BACKUP_SUCCEEDED)?;
        Some((of(place, None), u8::from(condition.status == "True" && condition.reason == "BackupCompleted")))
    });
    family(text, "recovery_hub_group_succeeded", "gauge", "Whether each cluster of a group has a good backup.", done);
    let oldest = groups.iter().enumerate().filter_map(|(place, group)| {
        let name = group.name_any();
        let is_good = |backup: &ClusterBackup| {
            backup.spec.group == name && backup.namespace() == group.namespace() && backup.state() == State::Succeeded
        };
        let mut newest: BTreeMap<String, Timestamp> = BTreeMap::new();
        for backup in hub.backups.state_filter(is_good) {
            if let Some(taken) = backup.status.as_ref().and_then(|status| status.taken) {
                newest.entry(backup.spec.cluster.clone()).and_modify(|known| *known = taken.max(*known)).or_insert(taken);
            }
        }
        Some((of(place, None), newest.values().min()?.as_second()))
    });
    let help = "When the oldest of the last good backups of a group's clusters was taken.";
    family(text, "recovery_hub_oldest_backup_timestamp_seconds", "gauge", help, oldest);
}

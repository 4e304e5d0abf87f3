//! What a monitoring system asks of a hub.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use kube::ResourceExt;

use super::api::Counts;
use super::machine::State;
use super::run::Hub;
use crate::metrics::text::family as sample;

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
    sample(&mut text, "recovery_hub_active", "gauge", "Whether this replica is the active one.", [(Vec::new(), u8::from(hub.is_some()))]);
    let Some(hub) = hub else { return text };
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let states = State::ALL.iter().zip(&hub.numbers.states).map(|(state, count)| (vec![("state", state.name())], read(count)));
    sample(
        &mut text,
        "recovery_hub_transitions_total",
        "counter",
        "How often a ClusterBackup has reached this state since the hub was started.",
        states,
    );
    let looks = [(Vec::new(), read(&hub.numbers.looks))];
    sample(&mut text, "recovery_hub_looks_total", "counter", "How often the hub has looked at an object.", looks);
    let failures = [(Vec::new(), read(&hub.numbers.failures))];
    sample(&mut text, "recovery_hub_look_failures_total", "counter", "How often such a look came to nothing.", failures);
    let spokes = [(Vec::new(), hub.at_work.len())];
    sample(&mut text, "recovery_hub_spokes_at_work", "gauge", "How many clusters the hub works on.", spokes);
    groups(&mut text, hub);
    text
}

fn groups(text: &mut String, hub: &Hub) {
    let groups: Vec<_> = hub.groups.state();
    let places: Vec<(String, String)> = groups.iter().map(|group| (group.namespace().unwrap_or_default(), group.name_any())).collect();
    let counts: Vec<Counts> = groups.iter().map(|group| group.status.as_ref().map(|status| status.counts).unwrap_or_default()).collect();
    let of = |(namespace, name): &'_ (String, String)| [("namespace", namespace.clone()), ("group", name.clone())];
    let samples = places.iter().zip(&counts).flat_map(|(place, counts)| {
        let Counts { waiting, preparing, starting, active, succeeded, timeout, error, .. } = *counts;
        let all = [
            ("Waiting", waiting),
            ("PreparingToStart", preparing),
            ("Starting", starting),
            ("Active", active),
            ("Succeeded", succeeded),
            ("BackupTimeout", timeout),
            ("UnrecoverableError", error),
        ];
        all.map(|(state, count)| {
            let mut labels: Vec<(&'static str, String)> = of(place).to_vec();
            labels.push(("state", state.to_owned()));
            (labels, count)
        })
    });
    sample_owned(text, "recovery_hub_clusters", "How many clusters of a group are in this state; Waiting is before its first.", samples);
    let done = groups.iter().zip(&places).filter_map(|(group, place)| {
        let condition = group.status.as_ref()?.conditions.iter().find(|one| one.kind == super::plan::BACKUP_SUCCEEDED)?;
        Some((of(place).to_vec(), u8::from(condition.status == "True" && condition.reason == "BackupCompleted")))
    });
    sample_owned(text, "recovery_hub_group_succeeded", "Whether each cluster of a group has a good backup.", done);
    let oldest = groups.iter().zip(&places).filter_map(|(group, place)| {
        let name = group.name_any();
        let is_good = |backup: &super::api::ClusterBackup| backup.spec.group == name && backup.namespace() == group.namespace();
        let times = hub.backups.state_filter(is_good).into_iter().filter_map(|backup| {
            let status = backup.status.as_ref().filter(|status| status.state == State::Succeeded)?;
            Some((backup.spec.cluster.clone(), status.taken?))
        });
        let mut newest: std::collections::BTreeMap<String, Timestamp> = std::collections::BTreeMap::new();
        times.for_each(|(cluster, taken)| {
            newest.entry(cluster).and_modify(|known| *known = taken.max(*known)).or_insert(taken);
        });
        Some((of(place).to_vec(), newest.values().min()?.as_second()))
    });
    let help = "When the oldest of the last good backups of a group's clusters was taken.";
    sample_owned(text, "recovery_hub_oldest_backup_timestamp_seconds", help, oldest);
}

/// As [`sample`], of labels whose values are made here; nothing where there is no sample.
fn sample_owned<V: std::fmt::Display>(
    text: &mut String,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Vec<(&'static str, String)>, V)>,
) {
    let samples: Vec<_> = samples.into_iter().map(|(labels, value)| (labels, value.to_string())).collect();
    sample(
        text,
        name,
        "gauge",
        help,
        samples.iter().map(|(labels, value)| (labels.iter().map(|(key, value)| (*key, value.as_str())).collect(), value)),
    );
}

//! Who may be upgraded, and who is blocked: for people and pipelines, from the hub's objects.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::{Client, ResourceExt};
use serde::Serialize;

use super::api::{CLUSTER_LABEL, ClusterBackup, ClusterGroupBackup, GROUP_LABEL, GateState, SCHEDULE_LABEL};
use super::machine::State;
use super::own::{self, Own};
use super::plan::{REFUSED, Standing, standing};
use super::{chain, group, run};
use crate::error::{misfit, unanswered};

/// What there is to say.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The clusters, by group and name.
    pub clusters: Vec<Cluster>,
    /// Why there may be others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// One cluster of one group.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// The namespace of the group.
    pub namespace: String,
    /// The group.
    pub group: String,
    /// The cluster.
    pub cluster: String,
    /// An upgrade has to wait.
    pub blocked: bool,
    /// The state of its last backup; none before the first.
    pub state: Option<State>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// One word.
    pub reason: String,
    /// Why it is blocked, or until when it is not.
    pub why: String,
    /// The last backup, when it is good.
    pub backup: Option<String>,
    /// The release that it leads back to.
    pub release: Option<String>,
    /// Until when it is good for an upgrade.
    pub good_until: Option<Timestamp>,
    /// What the hub has written into the cluster's gate.
    pub gate: Option<GateState>,
    /// Why it could not be written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gate_trouble: String,
}

impl Report {
    /// True when each cluster there is may be upgraded.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.unknown.is_empty() && !self.clusters.is_empty() && self.clusters.iter().all(|one| !one.blocked)
    }
}

/// Asks the hub's API.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) without a way to the hub's API, or when there is no such group;
/// [`FailureKind::Unanswered`](crate::error::FailureKind::Unanswered) when it does not answer.
pub fn status(namespace: Option<&str>, group: Option<&str>, cluster: Option<&str>) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the client's runtime")?;
    runtime.block_on(async {
        let client = run::client().await?;
        let groups: Vec<ClusterGroupBackup> = list(&client, namespace, "").await?;
        let groups: Vec<_> = groups.into_iter().filter(|one| group.is_none_or(|name| one.name_any() == name)).collect();
        if let Some(name) = group.filter(|_| groups.is_empty()) {
            return Err(misfit(format!("the hub has no ClusterGroupBackup {name}")));
        }
        let selector = [(GROUP_LABEL, group), (CLUSTER_LABEL, cluster)];
        let selector: Vec<String> = selector.iter().filter_map(|(key, value)| Some(format!("{key}={}", (*value)?))).collect();
        let tries: Vec<ClusterBackup> = list(&client, namespace, &selector.join(",")).await?;
        let (mut chosen, mut unknown) = (Vec::new(), Vec::new());
        for group in &groups {
            let mut names = group.spec.clusters.clone();
            if !group.spec.cluster_label_selectors.is_empty() {
                match group::chosen(group, &client).await {
                    Ok(Ok(more)) => names.extend(more),
                    Ok(Err((_, why))) => unknown.push(format!("{}: {why}", group.name_any())),
                    Err(error) => unknown.push(format!("{}: asking for the clusters that it chooses: {}", group.name_any(), chain(&error))),
                }
            }
            chosen.push((group, names));
        }
        Ok(Report { unknown, ..report(&chosen, &tries, cluster, Timestamp::now()) })
    })
}

async fn list<K: Own>(client: &Client, namespace: Option<&str>, labels: &str) -> Result<Vec<K>> {
    let api = own::scoped::<K>(client, namespace);
    own::list(labels, async |page| api.list(&page).await).await.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 404 => misfit(format!("this cluster is no hub: it does not know {}", K::kind(&()))),
        error => unanswered(format!("asking the hub for {}: {}", K::kind(&()), chain(error))),
    })
}

/// What there is to say of these objects: groups with the clusters that they choose, and tries, of clusters that have left their group, too.
#[must_use]
pub fn report(groups: &[(&ClusterGroupBackup, Vec<String>)], tries: &[ClusterBackup], cluster: Option<&str>, now: Timestamp) -> Report {
    let mut of: BTreeMap<(String, String, String), Vec<&ClusterBackup>> = BTreeMap::new();
    for one in tries {
        let place = (one.namespace().unwrap_or_default(), one.spec.group.clone(), one.spec.cluster.clone());
        of.entry(place).or_default().push(one);
    }
    let mut clusters = Vec::new();
    for (group, chosen) in groups {
        let place = |cluster: &str| (group.namespace().unwrap_or_default(), group.name_any(), cluster.to_owned());
        let with_tries = of.keys().filter(|(namespace, name, _)| (namespace.as_str(), name) == (&place("").0, &place("").1));
        let mut names: BTreeSet<String> = with_tries.map(|(_, _, cluster)| cluster.clone()).collect();
        names.extend(chosen.iter().cloned());
        for name in names.into_iter().filter(|name| cluster.is_none_or(|only| name == only)) {
            let none = Vec::new();
            let tries = of.get(&place(&name)).unwrap_or(&none);
            clusters.push(one(group, name, tries, now));
        }
    }
    Report { clusters, unknown: Vec::new() }
}

fn one(group: &ClusterGroupBackup, cluster: String, tries: &[&ClusterBackup], now: Timestamp) -> Cluster {
    // A group of a schedule takes one backup; whether that is still good enough for an upgrade is another question.
    let standing = standing(tries, group.spec.retries, group.labels().contains_key(SCHEDULE_LABEL), now);
    let last = tries.iter().max_by_key(|one| one.spec.attempt);
    let status = last.and_then(|one| one.status.clone());
    let good = status.as_ref().filter(|status| status.state == State::Succeeded);
    let until = good.and_then(|status| status.good_until);
    let refused =
        group.status.iter().flat_map(|status| &status.failed).find(|failed| failed.name == cluster && failed.reason.starts_with(REFUSED));
    let blocked = until.is_none_or(|until| until <= now);
    let why = match (standing, until) {
        (_, Some(until)) if !blocked => format!("good until {until:.0}"),
        (_, Some(until)) => format!("its backup was good until {until:.0}"),
        (Standing::Due(_), None) if !group.spec.enable => "it waits until spec.enable of its group is true".to_owned(),
        (Standing::Due(_), None) if refused.is_some() => refused.map(|one| one.reason.clone()).unwrap_or_default(),
        (Standing::Due(1), None) => "its turn has not come".to_owned(),
        (Standing::Due(_), None) => format!("it waits for another try: {}", status.as_ref().map_or("", |status| status.message.as_str())),
        _ => status.as_ref().map(|status| format!("{}: {}", status.reason, status.message)).unwrap_or_default(),
    };
    Cluster {
        namespace: group.namespace().unwrap_or_default(),
        group: group.name_any(),
        cluster,
        blocked,
        state: status.as_ref().map(|status| status.state),
        since: status.as_ref().and_then(|status| status.since),
        reason: status.as_ref().map(|status| status.reason.clone()).unwrap_or_default(),
        why,
        backup: good.and_then(|status| status.backup_id.clone()),
        release: good.and_then(|status| status.release.clone()),
        good_until: until,
        gate: status.as_ref().and_then(|status| status.gate),
        gate_trouble: status.map(|status| status.gate_trouble).unwrap_or_default(),
    }
}

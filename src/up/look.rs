//! One look at every part.

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use serde::Serialize;

use super::containers;
use crate::backup::manifest::Manifest;
use crate::kube::{Client, Health, OperatorState};
use crate::node::Node;
use crate::node::clock;
use crate::node::identity::Identity;
use crate::node::profile::Profile;
use crate::tools::crictl;
use crate::tools::needs::KUBELET_UNIT;
use crate::tools::systemctl;

/// What is looked at, in the order in which it comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The unit of kubelet.
    Kubelet,
    /// The container runtime answers.
    Runtime,
    /// The containers of the control plane, and of its operators, run.
    StaticPods,
    /// The API server is ready.
    ApiServer,
    /// The node is Ready.
    Node,
    /// The control plane is at the release that it was at.
    Release,
    /// OpenShift's ClusterVersion asks for no other release, and is at rest.
    ClusterVersion,
    /// OpenShift's operators are as they were.
    ClusterOperators,
    /// The machine configuration is rolled out.
    MachineConfigPools,
    /// Custom resources are served.
    Definitions,
    /// Somebody answers for each webhook that fails closed.
    Webhooks,
    /// Deployments, StatefulSets and DaemonSets have their pods.
    Workloads,
    /// k0rdent is at its release, with every component.
    Management,
    /// Flux's releases are ready.
    HelmReleases,
}

impl Part {
    /// True for what a backup records how it was. Of the others nobody knows whether they were well before.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        !matches!(
            self,
            Self::ClusterVersion | Self::MachineConfigPools | Self::Definitions | Self::Webhooks | Self::Management | Self::HelmReleases
        )
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Kubelet => "kubelet",
            Self::Runtime => "container runtime",
            Self::StaticPods => "static pods",
            Self::ApiServer => "API server",
            Self::Node => "node",
            Self::Release => "release",
            Self::ClusterVersion => "ClusterVersion",
            Self::ClusterOperators => "ClusterOperators",
            Self::MachineConfigPools => "MachineConfigPools",
            Self::Definitions => "definitions",
            Self::Webhooks => "webhooks",
            Self::Workloads => "workloads",
            Self::Management => "Management",
            Self::HelmReleases => "HelmReleases",
        })
    }
}

/// What was found of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The part.
    pub part: Part,
    /// How many objects it has.
    pub total: usize,
    /// Those that are not up, with the reason of each.
    pub down: Vec<Health>,
}

impl Checked {
    /// True when all of it is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.down.is_empty()
    }

    fn of(part: Part, all: Result<Vec<Health>>) -> Self {
        match all {
            Ok(all) => Self { part, total: all.len(), down: all.into_iter().filter(|one| one.trouble.is_some()).collect() },
            Err(error) => Self { part, total: 1, down: vec![Health { name: part.to_string(), trouble: Some(format!("{error:#}")) }] },
        }
    }

    fn one(part: Part, name: &str, trouble: Option<String>) -> Self {
        Self::of(part, Ok(vec![Health { name: name.to_owned(), trouble }]))
    }
}

impl std::fmt::Display for Checked {
    /// Its name, and those that are not up.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let down = |one: &Health| format!("{}: {}", one.name, one.trouble.as_deref().unwrap_or_default());
        write!(f, "{}: {}", self.part, self.down.iter().map(down).collect::<Vec<_>>().join("; "))
    }
}

/// How it was, by a backup: what is compared with. Without one, everything has to be well.
#[derive(Debug, Clone, Copy, Default)]
pub struct Before<'a> {
    /// The backup's manifest.
    pub manifest: Option<&'a Manifest>,
    /// When kubelet was started: what it reported before says nothing.
    pub since: Option<Timestamp>,
}

/// Looks at every part that this kind of node has.
///
/// # Errors
/// When interrupted. Whatever cannot be asked is not up.
pub fn look(node: &Node, before: Before<'_>) -> Result<Vec<Checked>> {
    clock::interrupted()?;
    let profile = match Profile::of(node) {
        Ok(profile) => profile,
        Err(error) => return Ok(vec![Checked::one(Part::Node, "node", Some(format!("{error:#}")))]),
    };
    let mut found = vec![
        Checked::one(Part::Kubelet, KUBELET_UNIT, kubelet_trouble(node)),
        Checked::one(Part::Runtime, "runtime", (!crictl::answers(node)).then(|| "crictl gets no answer".to_owned())),
        Checked::of(Part::StaticPods, static_pods(node, profile, before)),
    ];
    let client = Client::of(node, profile);
    let ready = client.as_ref().map_err(|error| anyhow!("{error:#}")).and_then(Client::ready);
    found.push(Checked::one(Part::ApiServer, "API server", ready.as_ref().err().map(|error| format!("{error:#}"))));
    if let (Ok(client), Ok(())) = (client, ready) {
        clock::interrupted()?;
        found.extend(in_the_cluster(node, profile, &client, before));
    }
    Ok(found)
}

fn kubelet_trouble(node: &Node) -> Option<String> {
    match systemctl::show(node, KUBELET_UNIT) {
        Ok(unit) if unit.is_active() => None,
        Ok(unit) => Some(format!("it is {}: see `journalctl -u {KUBELET_UNIT}`", unit.active)),
        Err(error) => Some(format!("{error:#}")),
    }
}

fn static_pods(node: &Node, profile: &Profile, before: Before<'_>) -> Result<Vec<Health>> {
    let wanted = containers::wanted(profile, before.manifest.and_then(|manifest| manifest.operator_containers.as_deref()));
    let missing = containers::missing(&wanted, &crictl::containers(node)?, &[]);
    let health = |one: &containers::Wanted| {
        let (name, namespace) = one;
        Health { name: format!("{namespace}/{name}"), trouble: missing.contains(one).then(|| containers::explain(node, &[*one])) }
    };
    Ok(wanted.iter().map(health).collect())
}

/// What the API server knows of.
fn in_the_cluster(node: &Node, profile: &'static Profile, client: &Client, before: Before<'_>) -> Vec<Checked> {
    let manifest = before.manifest;
    let release = manifest.and_then(|manifest| manifest.cluster.as_ref()).map(|cluster| cluster.version.as_str());
    let name = manifest
        .map_or_else(|| Identity::of(node, profile).map(|identity| identity.node_name), |manifest| Ok(manifest.identity.node_name.clone()));
    let ready = name.and_then(|name| {
        let since = if before.since.is_some() { " since it was started" } else { "" };
        let trouble = (!client.node_ready(&name, before.since)?).then(|| format!("kubelet has not reported it Ready{since}"));
        Ok(vec![Health { name, trouble }])
    });
    let mut found = vec![Checked::of(Part::Node, ready)];
    if let Some(release) = release {
        let is = client.cluster().map(|cluster| cluster.version);
        let trouble = |is: String| (is != release).then(|| format!("it is {is}"));
        found.push(Checked::of(Part::Release, is.map(|is| vec![Health { name: release.to_owned(), trouble: trouble(is) }])));
    }
    if profile.is_openshift() {
        let operators = client.operators().map(|now| operators(manifest.map(|manifest| manifest.operators.as_slice()), &now));
        found.push(Checked::of(Part::ClusterVersion, client.cluster_versions(release)));
        found.push(Checked::of(Part::ClusterOperators, operators));
        found.push(Checked::of(Part::MachineConfigPools, client.machine_config_pools()));
    }
    found.push(Checked::of(Part::Definitions, client.definitions()));
    found.push(Checked::of(Part::Webhooks, client.webhooks()));
    found.push(Checked::of(Part::Workloads, client.workloads_health(manifest.and_then(|manifest| manifest.workloads.as_deref()))));
    let was_there = manifest.is_some_and(|manifest| manifest.management.is_some());
    let management = client.management_health(was_there).map(|one| one.into_iter().collect());
    let of_k0rdent = [Checked::of(Part::Management, management), Checked::of(Part::HelmReleases, client.helm_releases())];
    found.extend(of_k0rdent.into_iter().filter(|part| part.total > 0));
    found
}

/// Operators that were available then must be available again and settled. One that was degraded need not be better now; one that was
/// not available, or was progressing, is not waited for. Where nobody knows how they were, all must be well.
fn operators(then: Option<&[OperatorState]>, now: &[OperatorState]) -> Vec<Health> {
    let well = |is: &OperatorState| OperatorState { available: true, progressing: false, degraded: false, ..is.clone() };
    let all: Vec<OperatorState> = then.map_or_else(|| now.iter().map(well).collect(), <[OperatorState]>::to_vec);
    let health = |was: &OperatorState| {
        let trouble = match now.iter().find(|is| is.name == was.name) {
            Some(is) => worse(was, is),
            None => was.available.then(|| "it is not there".to_owned()),
        };
        Health { name: was.name.clone(), trouble }
    };
    all.iter().map(health).collect()
}

fn worse(was: &OperatorState, is: &OperatorState) -> Option<String> {
    let worse = [
        (was.available && !is.available, "not available"),
        (!was.progressing && is.progressing, "progressing"),
        (was.available && !was.degraded && is.degraded, "degraded"),
    ];
    let worse: Vec<&str> = worse.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
    (!worse.is_empty()).then(|| format!("it is {}", worse.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(name: &str, available: bool, progressing: bool, degraded: bool) -> OperatorState {
        OperatorState { name: name.to_owned(), version: None, available, progressing, degraded }
    }

    #[test]
    fn an_operator_is_waited_for_until_it_is_what_it_was() {
        let trouble = |then: OperatorState, now: OperatorState| operators(Some(&[then]), &[now]).remove(0).trouble;
        let good = || operator("dns", true, false, false);
        assert_eq!(trouble(good(), good()), None);
        assert_eq!(trouble(good(), operator("dns", false, true, false)).as_deref(), Some("it is not available and progressing"));
        assert_eq!(trouble(good(), operator("dns", true, false, true)).as_deref(), Some("it is degraded"));
        assert_eq!(trouble(operator("dns", true, false, true), operator("dns", true, false, true)), None, "degraded then, degraded now");
        assert_eq!(trouble(operator("dns", false, false, true), operator("dns", false, false, true)), None);
        assert_eq!(operators(Some(&[good()]), &[]).remove(0).trouble.as_deref(), Some("it is not there"));
        assert_eq!(operators(Some(&[]), &[operator("new", false, true, true)]), Vec::new());
    }

    #[test]
    fn without_a_backup_every_operator_has_to_be_well() {
        let now = [operator("dns", true, false, false), operator("etcd", true, false, true)];
        let troubles: Vec<_> = operators(None, &now).into_iter().map(|one| one.trouble).collect();
        assert_eq!(troubles, [None, Some("it is degraded".to_owned())]);
    }
}

//! What the waits of a recovery look at, and how they say what is in the way: containers, the API server, certificate requests.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;

use super::procedure::Phase;
use super::run::{Doing, KUBELET_UNIT};
use super::step;
use crate::formats::notes::StartKubeletV1;
use crate::kube::Client;
use crate::node::Node;
use crate::node::profile::Profile;
use crate::tools::crictl::{self, Container};
use crate::tools::systemctl;

/// How often a wait looks.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// A container that is waited for: its name and namespace.
pub(super) type Wanted = (&'static str, &'static str);

/// The containers of the profile that must be new and running at the end: those of the static pods, and of the operators those that `ran` when the
/// backup was taken; all of them, when the backup does not say.
pub(super) fn wanted(profile: &Profile, ran: Option<&[(String, String)]>) -> Vec<Wanted> {
    let pods = profile.static_pods.iter().map(|p| (p.container, p.namespace));
    let operators = profile.operator_containers.iter().map(|o| (o.container, o.namespace));
    let has_run =
        |wanted: &Wanted| ran.is_none_or(|ran| ran.iter().any(|(name, namespace)| (name.as_str(), namespace.as_str()) == *wanted));
    pods.chain(operators.filter(has_run)).collect()
}

/// Those of `wanted` that do not run in a container whose id is new. Name and namespace are kubelet's labels: a name alone matches others.
pub(super) fn missing(wanted: &[Wanted], containers: &[Container], old: &[String]) -> Vec<Wanted> {
    let is_there = |(name, namespace): &Wanted| {
        containers.iter().any(|c| c.running && c.name == *name && c.namespace == *namespace && !old.contains(&c.id))
    };
    wanted.iter().filter(|w| !is_there(w)).copied().collect()
}

/// The state of each of these containers, with the last line of its log.
pub(super) fn explain(node: &Node, wanted: &[Wanted]) -> String {
    let containers = match crictl::containers(node) {
        Ok(containers) => containers,
        Err(error) => return format!("the container runtime does not answer: {error:#}"),
    };
    let state = |(name, namespace): &Wanted| {
        let newest = containers.iter().filter(|c| c.name == *name && c.namespace == *namespace).max_by_key(|c| c.created_at);
        let Some(container) = newest else { return format!("{namespace}/{name} has no container yet") };
        let log = crictl::log_tail(node, &container.id, 1);
        let said = if log.is_empty() { String::new() } else { format!(", its last words: {log}") };
        format!("{namespace}/{name} is {} (attempt {}){said}", container.state, container.attempt)
    };
    let mut said: Vec<String> = wanted.iter().map(state).collect();
    if let Ok(unit) = systemctl::show(node, KUBELET_UNIT)
        && !unit.is_active()
    {
        said.insert(0, format!("kubelet is {}: see `journalctl -u {KUBELET_UNIT}`", unit.active));
    }
    said.join("; ")
}

/// Adds the obstacles that the API server knows of to what is said already.
pub(super) fn with_obstacles(said: String, client: &Client) -> String {
    let obstacles = client.obstacles();
    if obstacles.is_empty() { said } else { format!("{said}; {}", obstacles.join("; ")) }
}

/// Approves this node's certificate requests that are newer than the start of kubelet, after the hold was lifted. An API server that is away now
/// is asked again by the next look.
pub(super) fn approve(here: &Doing<'_, '_>, client: &Client) {
    let Some(since) = kubelet_started(here) else { return };
    match client.approve_requests(&here.run.backup.manifest.identity.node_name, since) {
        Ok(approved) if approved.is_empty() => {}
        Ok(approved) => here.run.session.progress.say(&format!("approved the node's certificate requests {}", approved.join(", "))),
        Err(error) => tracing::debug!("approving certificate requests: {error:#}"),
    }
}

/// When kubelet was started after the hold was lifted, as the wall clock of now has it, which may have been set right since: that is asked which
/// certificate requests are newer.
pub(super) fn kubelet_started(here: &Doing<'_, '_>) -> Option<Timestamp> {
    let started: StartKubeletV1 = here.noted_by(Phase::Resume, step::START_KUBELET).ok()??;
    let clock = here.run.session.node.clock();
    if clock.boot_id().ok()? != started.boot {
        return Some(started.wall);
    }
    let ago = clock.since_boot().as_secs_f64() - started.since_boot;
    Some(clock.now() - Duration::try_from_secs_f64(ago).ok()?)
}

/// Waits until the API server is ready, and returns a client of it.
pub(super) fn api(here: &mut Doing<'_, '_>) -> Result<Client> {
    let client = Client::of(here.run.session.node, here.run.profile)?;
    let pod = here.run.profile.api_server();
    let last = std::cell::RefCell::new(String::new());
    here.wait_for(
        "the API server to be ready",
        PAUSE,
        |_| match client.ready() {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                *last.borrow_mut() = format!("{error:#}");
                Ok(None)
            }
        },
        |node| format!("{}; {}", last.borrow(), explain(node, &[(pod.container, pod.namespace)])),
    )?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::profile::OPENSHIFT;

    fn container(id: &str, name: &str, namespace: &str, running: bool) -> Container {
        Container {
            id: id.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            pod: String::new(),
            running,
            state: String::new(),
            sandbox: String::new(),
            image: String::new(),
            created_at: 0,
            attempt: 0,
        }
    }

    #[test]
    fn a_container_counts_only_if_it_is_new_runs_and_is_the_right_one() {
        let etcd = [("etcd", "openshift-etcd")];
        let old = ["a".to_owned()];
        let is_missing = |c: Container| !missing(&etcd, &[c], &old).is_empty();
        assert!(!is_missing(container("b", "etcd", "openshift-etcd", true)));
        assert!(is_missing(container("a", "etcd", "openshift-etcd", true)), "the old one");
        assert!(is_missing(container("b", "etcd", "openshift-etcd", false)), "an exited one");
        assert!(is_missing(container("b", "etcd", "other", true)), "one of another namespace");
        assert_eq!(missing(&etcd, &[], &old), etcd);
    }

    #[test]
    fn an_operator_that_did_not_run_when_the_backup_was_taken_is_not_waited_for() {
        assert_eq!(wanted(&OPENSHIFT, None).len(), 8);
        assert_eq!(wanted(&OPENSHIFT, Some(&[])).len(), 4);
        let ran = [("etcd-operator".to_owned(), "openshift-etcd-operator".to_owned())];
        assert_eq!(wanted(&OPENSHIFT, Some(&ran))[4..], [("etcd-operator", "openshift-etcd-operator")]);
    }
}

//! The containers of the control plane: which have to run, which do not, and why.

use crate::node::Node;
use crate::node::profile::Profile;

use crate::tools::crictl::{self, Container};
use crate::tools::needs::KUBELET_UNIT;
use crate::tools::systemctl;

/// A container that is waited for: its name and namespace.
pub type Wanted = (&'static str, &'static str);

/// The containers of the profile that must be new and running at the end: those of the static pods, and of the operators those that `ran` when the
/// backup was taken; all of them, when the backup does not say.
#[must_use]
pub fn wanted(profile: &Profile, ran: Option<&[(String, String)]>) -> Vec<Wanted> {
    let pods = profile.static_pods.iter().map(|p| (p.container, p.namespace));
    let operators = profile.operator_containers.iter().map(|o| (o.container, o.namespace));
    let has_run =
        |wanted: &Wanted| ran.is_none_or(|ran| ran.iter().any(|(name, namespace)| (name.as_str(), namespace.as_str()) == *wanted));
    pods.chain(operators.filter(has_run)).collect()
}

/// Those of `wanted` that do not run in a container whose id is new. Name and namespace are kubelet's labels: a name alone matches others.
#[must_use]
pub fn missing(wanted: &[Wanted], containers: &[Container], old: &[String]) -> Vec<Wanted> {
    let is_there = |(name, namespace): &Wanted| {
        containers.iter().any(|c| c.running && c.name == *name && c.namespace == *namespace && !old.contains(&c.id))
    };
    wanted.iter().filter(|w| !is_there(w)).copied().collect()
}

/// The state of each of these containers, with the last line of its log.
#[must_use]
pub fn explain(node: &Node, wanted: &[Wanted]) -> String {
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

//! Which node and cluster this is, read from its disk alone: the API may be down.

use std::path::Path;

use anyhow::{Context, Result};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::Node;
use super::certificates::root_fingerprints;
use super::profile::Profile;
use super::static_pod::etcd_member_name;
use crate::error::misfit;

/// What tells one node from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The node's name, from its etcd static pod; the host name where there is no such pod.
    pub node_name: String,
    /// SHA-256 fingerprints (hex, of the DER) of the self-signed certificates in the profile's root CA bundle, sorted.
    pub root_ca: Vec<String>,
}

impl Identity {
    /// Reads it.
    ///
    /// # Errors
    /// When a file of it cannot be read or is damaged; [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when the node has no name or no root CA.
    pub fn of(node: &Node, profile: &Profile) -> Result<Self> {
        let machine_id = node.read_text("/etc/machine-id")?.trim().to_owned();
        let node_name = match etcd_member_name(node, profile)? {
            Some(name) => name,
            None => node.read_text("/etc/hostname").context("the node has no etcd static pod that names it")?.trim().to_owned(),
        };
        if machine_id.is_empty() || node_name.is_empty() {
            return Err(misfit("this node has no identity: /etc/machine-id or its name is empty"));
        }
        Ok(Self { machine_id, node_name, root_ca: root_ca(node, profile)? })
    }

    /// What differs between this (a backup's) and `other` (the node's), one sentence each; empty when they are the same node.
    ///
    /// Authorities are renewed, so one that both have in common is enough.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut sentences = Vec::new();
        if self.machine_id != other.machine_id {
            sentences.push(format!("the machine id is {}, not {} as in the backup", other.machine_id, self.machine_id));
        }
        if self.node_name != other.node_name {
            sentences.push(format!("the node's name is {}, not {} as in the backup", other.node_name, self.node_name));
        }
        if !self.root_ca.iter().any(|root| other.root_ca.contains(root)) {
            sentences.push(
                "the backup and this node have no certificate authority of Kubernetes in common: they are of different clusters".to_owned(),
            );
        }
        sentences
    }
}

/// The fingerprints from the profile's bundle; where that is missing or has no root, from the authorities in the kubeconfigs.
fn root_ca(node: &Node, profile: &Profile) -> Result<Vec<String>> {
    if node.exists(profile.root_ca) {
        let roots = root_fingerprints(&node.read(profile.root_ca)?).with_context(|| format!("reading {}", profile.root_ca))?;
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    for path in profile.kubeconfigs.iter().filter(|path| node.exists(path)) {
        let roots = kubeconfig_roots(node, Path::new(path)).with_context(|| format!("reading {path}"))?;
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(misfit(format!(
        "no certificate authority of Kubernetes identifies this node: {} has none, and no kubeconfig either",
        profile.root_ca
    )))
}

#[derive(Debug, Deserialize)]
struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

fn kubeconfig_roots(node: &Node, path: &Path) -> Result<Vec<String>> {
    let kubeconfig: Kubeconfig = super::yaml::first_of_secrets(&node.read_text(path)?)?;
    let mut roots = Vec::new();
    for Named { cluster } in kubeconfig.clusters {
        let pem = match (cluster.certificate_authority_data, cluster.certificate_authority) {
            (Some(data), _) => BASE64.decode(data.trim().as_bytes()).context("decoding its certificate authority")?,
            (None, Some(file)) => node.read(path.parent().unwrap_or(Path::new("/")).join(file))?,
            (None, None) => continue,
        };
        roots.extend(root_fingerprints(&pem)?);
    }
    roots.sort();
    roots.dedup();
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use crate::node::profile::{KUBEADM, OPENSHIFT};
    use rcgen::{CertificateParams, KeyPair};

    fn root(name: &str) -> String {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn put(dir: &Path, path: &str, text: &str) {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_node_is_known_by_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::at(dir.path(), None);
        put(dir.path(), "etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        put(dir.path(), "etc/hostname", "its-host-name\n");
        assert_eq!(exit_code(&Identity::of(&node, &OPENSHIFT).unwrap_err()), 78);
        let (first, second) = (root("first"), root("second"));
        let data = BASE64.encode(first.as_bytes());
        let kubeconfig =
            format!("clusters:\n- name: c\n  cluster:\n    server: https://localhost:6443\n    certificate-authority-data: {data}\n");
        put(dir.path(), OPENSHIFT.kubeconfigs[1].trim_start_matches('/'), &kubeconfig);
        let by_kubeconfig = Identity::of(&node, &OPENSHIFT).unwrap();
        assert_eq!(by_kubeconfig.node_name, "its-host-name");
        put(dir.path(), "etc/kubernetes/manifests/etcd-pod.yaml", include_str!("../../tests/fixtures/static-pods/etcd-pod-rev3.yaml"));
        put(dir.path(), "etc/kubernetes/kubelet-ca.crt", &format!("{first}{second}"));
        let identity = Identity::of(&node, &OPENSHIFT).unwrap();
        assert_eq!((identity.node_name.as_str(), identity.root_ca.len()), ("sno-node-0", 2));
        assert!(identity.root_ca.contains(&by_kubeconfig.root_ca[0]));
        put(dir.path(), "etc/kubernetes/pki/ca.crt", &second);
        put(dir.path(), "etc/kubernetes/manifests/etcd.yaml", "");
        assert_eq!(exit_code(&Identity::of(&node, &KUBEADM).unwrap_err()), 65);
        // A name that cannot be read is an error: an unreadable manifest must not make this another node.
        std::fs::remove_file(dir.path().join("etc/kubernetes/manifests/etcd.yaml")).unwrap();
        assert_eq!(Identity::of(&node, &KUBEADM).unwrap().node_name, "its-host-name");
    }

    #[test]
    fn differences_are_told_and_a_renewed_authority_is_none() {
        let one = Identity { machine_id: "1".into(), node_name: "a".into(), root_ca: vec!["x".into(), "y".into()] };
        assert!(one.differences(&Identity { root_ca: vec!["y".into(), "z".into()], ..one.clone() }).is_empty());
        let other = Identity { machine_id: "2".into(), node_name: "b".into(), root_ca: vec!["z".into()] };
        let told = one.differences(&other);
        assert_eq!(told.len(), 3);
        assert!(told[0].contains("is 2, not 1") && told[1].contains("is b, not a"), "{told:?}");
    }
}

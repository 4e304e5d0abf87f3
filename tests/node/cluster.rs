//! What the API of a new cluster holds: who may ask for certificates, OpenShift's own resources, and the operators.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Node;
use super::command::Limit;
use super::release::Kind;

const READY: Limit = Limit::of(180);

impl Node {
    /// Approves every request for a certificate that is pending, as a cluster's own approver does, until the node is Ready and has the
    /// certificate that it serves with.
    pub fn approve_requests(&self) -> Result<()> {
        let mut issued = Vec::new();
        let both = || {
            let list = self.get(&["certificatesigningrequests"])?;
            issued.clear();
            for request in list["items"].as_array().into_iter().flatten() {
                let name = request["metadata"]["name"].as_str().context("a request without a name")?;
                if request["status"]["conditions"].is_null() {
                    self.kubectl(&["certificate", "approve", name])?;
                } else if request["status"]["certificate"].is_string() {
                    issued.push(request["spec"]["signerName"].as_str().unwrap_or_default().to_owned());
                }
            }
            let has = |signer: &str| issued.iter().any(|one| one == signer);
            let both = has("kubernetes.io/kube-apiserver-client-kubelet") && has("kubernetes.io/kubelet-serving");
            Ok(both.then_some(()))
        };
        READY.wait("kubelet's certificates to be asked for and issued", both, || self.explain())?;
        self.wait_ready()
    }
}

/// Fills an empty cluster, and waits until all of it is well.
pub fn fill(node: &Node) -> Result<()> {
    node.apply(&[may_bootstrap(node.kind())])?;
    node.approve_requests()
}

/// A node's first certificate is asked for by somebody who can do nothing else.
fn may_bootstrap(kind: Kind) -> Value {
    let who = match kind {
        Kind::OpenShift => json!({"kind": "ServiceAccount", "name": "node-bootstrapper", "namespace": "openshift-machine-config-operator"}),
        Kind::Kubeadm => json!({"kind": "Group", "name": "system:bootstrappers", "apiGroup": "rbac.authorization.k8s.io"}),
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "system-bootstrap-node-bootstrapper"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper"},
        "subjects": [who],
    })
}

/// The operators' pods: namespace and label.
pub const OPERATORS: [(&str, &str); 0] = [];

//! What the API of a new cluster holds: who may ask for certificates, OpenShift's own resources, and the operators.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testing::api::objects::{self, Seed};
use testing::cargo::in_checkout;

use super::Node;
use super::command::Limit;
use super::release::{BEFORE, COMPONENTS, Kind, NODE};

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
    node.approve_requests()?;
    if node.kind() == Kind::OpenShift {
        openshift(node).context("filling the cluster with what OpenShift has")?;
    }
    node.wait_well()
}

/// Deployment and container of each operator, in the order of [`COMPONENTS`]: the scheduler's are called otherwise.
pub const DEPLOYMENTS: [(&str, &str); 4] = [
    ("etcd-operator", "etcd-operator"),
    ("kube-apiserver-operator", "kube-apiserver-operator"),
    ("kube-controller-manager-operator", "kube-controller-manager-operator"),
    ("openshift-kube-scheduler-operator", "kube-scheduler-operator-container"),
];

/// The resource of a component's operator: `etcds`, `kubeapiservers`, …
#[must_use]
pub fn operator_resource(component: &str) -> String {
    format!("{}s", component.replace('-', ""))
}

/// OpenShift's resources and their objects, and the operators that act on them.
fn openshift(node: &Node) -> Result<()> {
    let folder = in_checkout("tests/fixtures/crds");
    let mut definitions = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        definitions.extend(std::fs::read(entry?.path())?);
        definitions.extend(b"\n---\n");
    }
    let argv = ["kubectl", "apply", "--server-side", "--filename=-"];
    node.exec_with(&argv, &definitions, READY)?.checked()?;
    let established = ["kubectl", "wait", "--for=condition=Established", "customresourcedefinitions", "--all", "--timeout=170s"];
    node.exec(&established, READY)?.checked()?;
    let objects = objects()?;
    let bare: Vec<Value> = objects.iter().map(without_status).collect();
    // A namespace comes before what is in it.
    let (namespaces, others): (Vec<_>, Vec<_>) = bare.into_iter().partition(|object| object["kind"] == "Namespace");
    node.apply(&namespaces)?;
    node.apply(&others)?;
    for object in objects.iter().filter(|object| object["status"].is_object()) {
        write_status(node, object)?;
    }
    node.apply(&COMPONENTS.iter().zip(DEPLOYMENTS).flat_map(|(operand, names)| operator(operand, names)).collect::<Vec<_>>())
}

/// What the captures give, as objects to create: nothing that an API server or kubelet makes by itself.
fn objects() -> Result<Vec<Value>> {
    let seed =
        Seed { node: NODE.to_owned(), revisions: BEFORE.revisions.map(i64::from), config_maps: 20, version: BEFORE.version.to_owned() };
    let made = |object: &Value| ["Node", "Pod"].iter().any(|kind| object["kind"] == *kind);
    let mut objects: Vec<Value> = objects::objects(&seed)?.into_iter().filter(|object| !made(object)).collect();
    for object in &mut objects {
        let metadata = object["metadata"].as_object_mut().context("an object without metadata")?;
        // An owner that does not exist is one that was deleted: the object would follow.
        metadata.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    }
    Ok(objects)
}

fn without_status(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(object) = object.as_object_mut() {
        object.shift_remove("status");
    }
    object
}

/// The revisions come in a second write: a node has none when it is first heard of (a rule of the resources' definitions).
fn write_status(node: &Node, object: &Value) -> Result<()> {
    let (kind, name) = (object["kind"].as_str().unwrap_or_default(), object["metadata"]["name"].as_str().unwrap_or_default());
    let patch = |status: &Value| {
        // Not a merge patch: in that, null removes what must be there and null.
        let patch = json!([{"op": "add", "path": "/status", "value": status}]).to_string();
        node.kubectl(&["patch", kind, name, "--subresource=status", "--type=json", "--patch", &patch]).map(drop)
    };
    if object["status"]["nodeStatuses"].is_array() {
        patch(&json!({"nodeStatuses": [{"nodeName": NODE}]}))?;
    }
    patch(&object["status"])
}

/// An operator: its account, which may do anything, and its Deployment. On the host's network, because services are not played.
fn operator(operand: &str, (deployment, container): (&str, &str)) -> [Value; 3] {
    let namespace = format!("openshift-{operand}-operator");
    let account = json!({"kind": "ServiceAccount", "name": deployment, "namespace": namespace});
    let labels = json!({"app": deployment});
    let mounts = [("kubernetes", "/etc/kubernetes", "Directory"), ("pace", "/var/lib/operators", "DirectoryOrCreate")];
    let pod = json!({
        "hostNetwork": true,
        "serviceAccountName": deployment,
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": container, "image": BEFORE.image("operator"), "imagePullPolicy": "IfNotPresent", "args": [operand],
            "resources": {"requests": {"cpu": "10m", "memory": "20Mi"}},
            "volumeMounts": mounts.map(|(name, path, _)| json!({"name": name, "mountPath": path})),
        }],
        "volumes": mounts.map(|(name, path, kind)| json!({"name": name, "hostPath": {"path": path, "type": kind}})),
    });
    [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": deployment, "namespace": namespace}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("system:openshift:operator:{deployment}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [account],
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": deployment, "namespace": namespace},
            "spec": {
                "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }),
    ]
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

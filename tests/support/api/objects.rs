//! The objects of a plausible single-node cluster, made from the captures in `tests/fixtures/oc`.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What the cluster looks like.
#[derive(Debug, Clone)]
pub struct Seed {
    /// The node's name.
    pub node: String,
    /// Revisions of etcd, kube-apiserver, kube-controller-manager and kube-scheduler, as the node's manifests have them.
    pub revisions: [i64; 4],
    /// How many config maps there are besides.
    pub config_maps: usize,
    /// Release.
    pub version: String,
}

impl Default for Seed {
    fn default() -> Self {
        Self { node: "sno-node-0".into(), revisions: [3, 8, 6, 5], config_maps: 20, version: "4.16.4".into() }
    }
}

const OPERATORS: [(&str, &str); 4] = [
    (include_str!("../../fixtures/oc/etcd-6-at-latest-rev3.json"), "etcd"),
    (include_str!("../../fixtures/oc/kubeapiserver-3-at-latest-rev3.json"), "kube-apiserver"),
    (include_str!("../../fixtures/oc/kubecontrollermanager-new-revision-stale-condition.json"), "kube-controller-manager"),
    (include_str!("../../fixtures/oc/kubescheduler-at-latest-rev5.json"), "kube-scheduler"),
];

/// The objects of such a cluster.
///
/// # Errors
/// When a capture is not what it was.
pub fn objects(seed: &Seed) -> Result<Vec<Value>> {
    let parse = |text: &str| -> Result<Value> { Ok(serde_json::from_str(&text.replace("sno-node-0", &seed.node))?) };
    let mut all = vec![release(parse(include_str!("../../fixtures/oc/clusterversion-sno-2-installed.json"))?, &seed.version)];
    for ((text, operand), revision) in OPERATORS.iter().zip(seed.revisions) {
        all.push(settled(parse(text)?, revision));
        all.push(object("v1", "Namespace", None, &format!("openshift-{operand}")));
        all.push(object("v1", "Namespace", None, &format!("openshift-{operand}-operator")));
        let mut map = object("v1", "ConfigMap", Some(&format!("openshift-{operand}")), &format!("{operand}-pod-{revision}"));
        map["data"] = json!({"forceRedeploymentReason": "", "version": seed.version});
        all.push(map);
        all.push(mirror(operand, &seed.node, revision));
    }
    let operators = parse(include_str!("../../fixtures/oc/clusteroperators-sno-upgrading-4.16-to-4.17.json"))?;
    for operator in operators["items"].as_array().context("the capture of ClusterOperators has no items")? {
        all.push(healthy(operator.clone(), &seed.version));
    }
    let pools = parse(include_str!("../../fixtures/oc/machineconfigpools-sno-4.16.json"))?;
    all.extend(pools["items"].as_array().context("the capture of MachineConfigPools has no items")?.iter().cloned());
    let mut node = parse(include_str!("../../fixtures/oc/node-sno-4.16.json"))?;
    node["metadata"]["name"] = json!(seed.node);
    node["metadata"]["labels"]["kubernetes.io/hostname"] = json!(seed.node);
    node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "192.0.2.10"}, {"type": "Hostname", "address": seed.node}]);
    all.push(node);
    all.extend(["default", "kube-system", "openshift-ovn-kubernetes"].map(|name| object("v1", "Namespace", None, name)));
    for pod in ["ovnkube-node", "ovnkube-control-plane"] {
        all.push(running(&format!("{pod}-x7k2p"), "openshift-ovn-kubernetes", pod, &seed.node));
    }
    for at in 0..seed.config_maps {
        let mut map = object("v1", "ConfigMap", Some("default"), &format!("settings-{at:06}"));
        map["data"] = json!({"number": at.to_string(), "text": "as it was before the upgrade"});
        all.push(map);
    }
    Ok(all)
}

fn object(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({"name": name, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": "2024-08-05T15:00:00Z"});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({"apiVersion": api_version, "kind": kind, "metadata": metadata})
}

fn release(mut version: Value, release: &str) -> Value {
    version["status"]["desired"]["version"] = json!(release);
    version["status"]["history"][0]["version"] = json!(release);
    version
}

fn settled(mut operator: Value, revision: i64) -> Value {
    let status = &mut operator["status"];
    status["latestAvailableRevision"] = json!(revision);
    let node = status["nodeStatuses"][0]["nodeName"].clone();
    status["nodeStatuses"] = json!([{"nodeName": node, "currentRevision": revision}]);
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if condition["type"] == "NodeInstallerProgressing" {
            condition["status"] = json!("False");
            condition["reason"] = json!("AllNodesAtLatestRevision");
            condition["message"] = json!(format!("1 node is at revision {revision}"));
        }
    }
    operator
}

fn healthy(mut operator: Value, version: &str) -> Value {
    for condition in operator["status"]["conditions"].as_array_mut().into_iter().flatten() {
        let good = if condition["type"] == "Available" || condition["type"] == "Upgradeable" { "True" } else { "False" };
        condition["status"] = json!(good);
    }
    for one in operator["status"]["versions"].as_array_mut().into_iter().flatten() {
        one["version"] = json!(version);
    }
    operator
}

fn mirror(operand: &str, node: &str, revision: i64) -> Value {
    let mut pod = running(&format!("{operand}-{node}"), &format!("openshift-{operand}"), operand, node);
    pod["metadata"]["labels"]["revision"] = json!(revision.to_string());
    pod["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
    pod
}

fn running(name: &str, namespace: &str, app: &str, node: &str) -> Value {
    let mut pod = object("v1", "Pod", Some(namespace), name);
    pod["metadata"]["labels"] = json!({"app": app});
    pod["spec"] = json!({"nodeName": node, "containers": [{"name": app, "image": "registry.example/release@sha256:00"}]});
    pod["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    pod
}

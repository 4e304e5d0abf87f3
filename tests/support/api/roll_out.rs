//! How the static-pod operators of OpenShift roll out a revision, as library-go's controllers do: what they would do next, what they say
//! while they do it, and what they do to the node's files.
//!
//! Nothing here talks to an API: the emulated one has its operators in its own process (`operators.rs`), the real one has them in pods
//! (`tests/node/operator`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// How fast the operators are, and what goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pace {
    /// From the start of the process until an operator has its lease back.
    #[serde(rename = "lease_ms", deserialize_with = "ms")]
    pub lease: Duration,
    /// From the reason to the new revision.
    #[serde(rename = "react_ms", deserialize_with = "ms")]
    pub react: Duration,
    /// For how long the condition still says that all is done at the old revision.
    #[serde(rename = "stale_ms", deserialize_with = "ms")]
    pub stale: Duration,
    /// What the installer and the new pod take.
    #[serde(rename = "install_ms", deserialize_with = "ms")]
    pub install: Duration,
    /// Revisions skipped each time.
    pub skip: i64,
    /// Resource names (`etcds`) of operators whose installer never succeeds.
    pub stuck: Vec<String>,
    /// Resource names of operators that do not run.
    pub absent: Vec<String>,
}

impl Default for Pace {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { lease: ms(0), react: ms(200), stale: ms(1000), install: ms(1000), skip: 0, stuck: Vec::new(), absent: Vec::new() }
    }
}

impl Pace {
    /// From a JSON file; the defaults when there is none.
    pub fn read(path: &Path) -> Self {
        let Ok(text) = std::fs::read_to_string(path) else { return Self::default() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            eprintln!("operators: reading the pace: {error}");
            Self::default()
        })
    }

    /// True for an operator that does not run.
    pub fn is_absent(&self, plural: &str) -> bool {
        self.absent.iter().any(|absent| absent == plural)
    }
}

fn ms<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_millis)
}

/// Resource and operand of each operator.
pub const OPERATORS: [(&str, &str); 4] = [
    ("etcds", "etcd"),
    ("kubeapiservers", "kube-apiserver"),
    ("kubecontrollermanagers", "kube-controller-manager"),
    ("kubeschedulers", "kube-scheduler"),
];

/// What an operator would do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is where it should be, or is not to be managed.
    Nothing,
    /// Make this revision available.
    Reveal(i64),
    /// Say that this revision is being rolled out.
    Announce(i64),
    /// Install it, and when the pod runs say so.
    Install(i64),
}

/// What an operator would do next about its object (`spec` and `status` of `operator.openshift.io/v1`). `acted_on` is the reason for a
/// redeployment that the latest revision was made for.
pub fn next(object: &Value, acted_on: &str, skip: i64) -> Next {
    let (spec, status) = (&object["spec"], &object["status"]);
    let latest = latest(object);
    let node = &status["nodeStatuses"][0];
    let (current, target) = (node["currentRevision"].as_i64().unwrap_or(0), node["targetRevision"].as_i64().unwrap_or(0));
    if spec["managementState"] == "Unmanaged" {
        Next::Nothing
    } else if target != 0 {
        Next::Install(target)
    } else if spec["forceRedeploymentReason"].as_str().unwrap_or_default() != acted_on {
        Next::Reveal(latest + 1 + skip)
    } else if current < latest {
        Next::Announce(latest)
    } else {
        Next::Nothing
    }
}

/// The latest available revision of an operator's object.
pub fn latest(object: &Value) -> i64 {
    object["status"]["latestAvailableRevision"].as_i64().unwrap_or(0)
}

/// The config map in the operand's namespace that remembers what a revision was made for.
pub fn config_map(operand: &str, revision: i64) -> String {
    format!("{operand}-pod-{revision}")
}

/// The node installer says in the operator's status that it is on the way to `revision`, or at it. What it says in the `ClusterOperator`.
pub fn say_progress(status: &mut Value, progressing: bool, revision: i64, now: &str) -> String {
    let current = &status["nodeStatuses"][0]["currentRevision"];
    let (is, reason, text) = if progressing {
        ("True", None, format!("1 node is at revision {current}; 0 nodes have achieved new revision {revision}"))
    } else {
        ("False", Some("AllNodesAtLatestRevision"), format!("1 node is at revision {revision}"))
    };
    condition(status, "NodeInstallerProgressing", is, reason, &text, now);
    format!("NodeInstallerProgressing: {text}")
}

/// What the status of the `ClusterOperator` says then.
pub fn say_cluster_operator(status: &mut Value, progressing: bool, message: &str, now: &str) {
    let (is, reason) = if progressing { ("True", "NodeInstaller") } else { ("False", "AsExpected") };
    condition(status, "Progressing", is, Some(reason), message, now);
}

/// The operator's status says that the node installer is on the way.
pub fn says_progress(status: &Value) -> bool {
    let of_it = |condition: &Value| condition["type"] == "NodeInstallerProgressing" && condition["status"] == "True";
    status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(of_it))
}

/// So does the status of the `ClusterOperator`.
pub fn says_cluster_progress(status: &Value) -> bool {
    let of_it = |condition: &Value| condition["type"] == "Progressing" && condition["reason"] == "NodeInstaller";
    status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(of_it))
}

/// The installer of a revision has failed.
pub fn say_stuck(status: &mut Value, revision: i64, now: &str) {
    let message = format!("installer pod of revision {revision} failed");
    condition(status, "NodeInstallerDegraded", "True", Some("InstallerPodFailed"), &message, now);
}

/// The node is at this revision.
pub fn say_installed(status: &mut Value, revision: i64) {
    let node = &mut status["nodeStatuses"][0];
    node["currentRevision"] = json!(revision);
    if let Some(node) = node.as_object_mut() {
        node.shift_remove("targetRevision");
    }
}

/// Sets one condition; its transition time moves only when its status does.
fn condition(status: &mut Value, kind: &str, is: &str, reason: Option<&str>, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let old = conditions.iter().position(|condition| condition["type"] == kind);
    let since = old
        .map(|at| conditions.remove(at))
        .filter(|old| old["status"] == is)
        .map_or_else(|| json!(now), |old| old["lastTransitionTime"].clone());
    let mut new = json!({"type": kind, "status": is, "lastTransitionTime": since, "message": message});
    if let Some(reason) = reason {
        new["reason"] = json!(reason);
    }
    conditions.push(new);
}

/// What the installer pod does: a directory of the new revision, then the manifest, in one step each.
pub fn install(root: &Path, operand: &str, revision: i64) -> Result<()> {
    let (resources, name) = (root.join("etc/kubernetes/static-pod-resources"), format!("{operand}-pod.yaml"));
    let manifest = root.join("etc/kubernetes/manifests").join(&name);
    let text = std::fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let pod: Value = serde_json::from_str(&text).with_context(|| format!("reading {}", manifest.display()))?;
    let old = pod["metadata"]["labels"]["revision"].as_str().unwrap_or("0").to_owned();
    if old == revision.to_string() {
        return Ok(());
    }
    let (from, to) = (resources.join(format!("{operand}-pod-{old}")), resources.join(format!("{operand}-pod-{revision}")));
    if from.is_dir() {
        copy_tree(&from, &to)?;
    } else {
        std::fs::create_dir_all(&to)?;
    }
    let mut pod: Value = serde_json::from_str(&text.replace(&format!("{operand}-pod-{old}"), &format!("{operand}-pod-{revision}")))?;
    pod["metadata"]["labels"]["revision"] = json!(revision.to_string());
    std::fs::write(to.join(&name), pod.to_string())?;
    // Written outside the directory that kubelet watches, then moved into it.
    let staged = resources.join(format!(".{name}"));
    std::fs::write(&staged, pod.to_string())?;
    std::fs::rename(&staged, &manifest).with_context(|| format!("writing {}", manifest.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).with_context(|| format!("copying {}", entry.path().display()))?;
        }
    }
    Ok(())
}

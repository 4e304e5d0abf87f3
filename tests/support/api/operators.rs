//! The four static-pod operators, reacting to `forceRedeploymentReason` as library-go's controllers do.
//!
//! What an operator knows is in the store and in the node's manifests, so it goes on where it was when its process is killed in the
//! middle, as it is when the API server it runs beside is itself redeployed. The reason it has acted on is in the config map
//! `<operand>-pod-<revision>`, as in a real cluster.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admission;
use super::config::ms;
use super::resources::Resource;
use super::rest::now;
use super::store::Store;

const TICK: Duration = Duration::from_millis(50);

/// Where the operators work.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operators {
    /// The node's root: manifests and revision directories are written there. None: only the API shows a roll-out.
    pub(crate) root: Option<PathBuf>,
    /// A JSON file of [`Pace`], looked at all the time; the defaults when it is missing.
    pub(crate) pace: Option<PathBuf>,
}

/// How fast the operators are, and what goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Pace {
    /// From the start of the process until an operator has its lease back.
    #[serde(rename = "lease_ms", deserialize_with = "ms")]
    lease: Duration,
    /// From the reason to the new revision.
    #[serde(rename = "react_ms", deserialize_with = "ms")]
    react: Duration,
    /// For how long the condition still says that all is done at the old revision.
    #[serde(rename = "stale_ms", deserialize_with = "ms")]
    stale: Duration,
    /// What the installer and the new pod take.
    #[serde(rename = "install_ms", deserialize_with = "ms")]
    install: Duration,
    /// Revisions skipped each time.
    skip: i64,
    /// Resource names (`etcds`) of operators whose installer never succeeds.
    stuck: Vec<String>,
}

impl Default for Pace {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { lease: ms(0), react: ms(200), stale: ms(1000), install: ms(1000), skip: 0, stuck: Vec::new() }
    }
}

impl Operators {
    /// Those of a node, which write into its files.
    pub(crate) fn of_node(root: &Path, pace: &Path) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("finding {}", root.display()))?;
        Ok(Self { root: Some(root), pace: Some(pace.to_owned()) })
    }

    fn pace(&self) -> Pace {
        let Some(text) = self.pace.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) else { return Pace::default() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            eprintln!("operators: reading the pace: {error}");
            Pace::default()
        })
    }
}

/// Resource and operand of each operator.
const OPERATORS: [(&str, &str); 4] = [
    ("etcds", "etcd"),
    ("kubeapiservers", "kube-apiserver"),
    ("kubecontrollermanagers", "kube-controller-manager"),
    ("kubeschedulers", "kube-scheduler"),
];

/// What an operator would do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Nothing,
    /// Make this revision available.
    Reveal(i64),
    /// Say that this revision is being rolled out.
    Announce(i64),
    /// Install it, and when the pod runs say so.
    Install(i64),
}

/// Runs all of them for ever.
pub(super) async fn run(store: Arc<Store>, operators: Operators) {
    let start = Instant::now();
    let mut since: HashMap<&str, (Next, Instant)> = HashMap::new();
    loop {
        tokio::time::sleep(TICK).await;
        let pace = operators.pace();
        if start.elapsed() < pace.lease {
            continue;
        }
        for (plural, operand) in OPERATORS {
            // etcd may be away for a while: the next round looks again.
            let Ok(Some(next)) = next(&store, plural, operand, pace.skip).await else { continue };
            let (_, at) = *since
                .entry(plural)
                .and_modify(|seen| {
                    if seen.0 != next {
                        *seen = (next, Instant::now());
                    }
                })
                .or_insert((next, Instant::now()));
            if let Err(error) = act(&store, &operators, &pace, (plural, operand), next, at.elapsed()).await {
                eprintln!("operators: {plural}: {error:#}");
            }
        }
    }
}

fn resource(plural: &str) -> Result<&'static Resource> {
    Resource::find("operator.openshift.io", "v1", plural).context("no such operator")
}

async fn next(store: &Store, plural: &str, operand: &str, skip: i64) -> Result<Option<Next>> {
    let Some(object) = store.get(&resource(plural)?.key(None, "cluster")).await? else { return Ok(None) };
    let (spec, status) = (&object.value["spec"], &object.value["status"]);
    let latest = status["latestAvailableRevision"].as_i64().unwrap_or(0);
    let node = &status["nodeStatuses"][0];
    let (current, target) = (node["currentRevision"].as_i64().unwrap_or(0), node["targetRevision"].as_i64().unwrap_or(0));
    let acted_on = store.get(&config_map(operand, latest)).await?;
    let acted_on = acted_on.as_ref().and_then(|map| map.value["data"]["forceRedeploymentReason"].as_str()).unwrap_or_default();
    Ok(Some(if spec["managementState"] == "Unmanaged" {
        Next::Nothing
    } else if target != 0 {
        Next::Install(target)
    } else if spec["forceRedeploymentReason"].as_str().unwrap_or_default() != acted_on {
        Next::Reveal(latest + 1 + skip)
    } else if current < latest {
        Next::Announce(latest)
    } else {
        Next::Nothing
    }))
}

fn config_map(operand: &str, revision: i64) -> String {
    format!("configmaps/openshift-{operand}/{operand}-pod-{revision}")
}

async fn act(
    store: &Store,
    operators: &Operators,
    pace: &Pace,
    (plural, operand): (&str, &str),
    next: Next,
    waited: Duration,
) -> Result<()> {
    match next {
        Next::Reveal(revision) if waited >= pace.react => reveal(store, plural, operand, revision).await,
        Next::Announce(revision) if waited >= pace.stale => {
            // Two writes with a moment in between, as two controllers do it: the condition first, then the target.
            conditions(store, plural, operand, "True", revision).await?;
            change(store, plural, |status| status["nodeStatuses"][0]["targetRevision"] = json!(revision)).await
        }
        Next::Install(revision) if pace.stuck.iter().any(|stuck| stuck == plural) => {
            change(store, plural, |status| {
                condition(
                    status,
                    "NodeInstallerDegraded",
                    "True",
                    Some("InstallerPodFailed"),
                    &format!("installer pod of revision {revision} failed"),
                );
            })
            .await
        }
        Next::Install(revision) => {
            if let Some(root) = &operators.root {
                install(root, operand, revision)?;
            }
            if waited < pace.install {
                return Ok(());
            }
            change(store, plural, |status| {
                let node = &mut status["nodeStatuses"][0];
                node["currentRevision"] = json!(revision);
                if let Some(node) = node.as_object_mut() {
                    node.shift_remove("targetRevision");
                }
            })
            .await?;
            conditions(store, plural, operand, "False", revision).await
        }
        _ => Ok(()),
    }
}

async fn reveal(store: &Store, plural: &str, operand: &str, revision: i64) -> Result<()> {
    let object = store.get(&resource(plural)?.key(None, "cluster")).await?.context("the operator's object is gone")?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("{operand}-pod-{revision}"), "namespace": format!("openshift-{operand}"), "creationTimestamp": now()},
        "data": {"forceRedeploymentReason": object.value["spec"]["forceRedeploymentReason"]},
    });
    // One that is there already was made just before the process was killed.
    store.put(&config_map(operand, revision), &map, 0).await?;
    change(store, plural, |status| status["latestAvailableRevision"] = json!(revision)).await
}

/// Sets what the node installer says: in the operator's own status, and in its ClusterOperator.
async fn conditions(store: &Store, plural: &str, operand: &str, progressing: &str, revision: i64) -> Result<()> {
    let mut message = String::new();
    change(store, plural, |status| {
        let current = &status["nodeStatuses"][0]["currentRevision"];
        let (reason, text) = match progressing {
            "True" => (None, format!("1 node is at revision {current}; 0 nodes have achieved new revision {revision}")),
            _ => (Some("AllNodesAtLatestRevision"), format!("1 node is at revision {revision}")),
        };
        condition(status, "NodeInstallerProgressing", progressing, reason, &text);
        message = format!("NodeInstallerProgressing: {text}");
    })
    .await?;
    let key = format!("config.openshift.io/clusteroperators/{operand}");
    let Some(mut object) = store.get(&key).await? else { return Ok(()) };
    condition(
        &mut object.value["status"],
        "Progressing",
        progressing,
        Some(if progressing == "True" { "NodeInstaller" } else { "AsExpected" }),
        &message,
    );
    store.put(&key, &object.value, object.revision).await?;
    Ok(())
}

/// Changes an operator's status, obeying its CRD's rules; somebody else being faster is for the next round.
async fn change(store: &Store, plural: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let resource = resource(plural)?;
    let key = resource.key(None, "cluster");
    let object = store.get(&key).await?.context("the operator's object is gone")?;
    let mut new = object.value.clone();
    edit(&mut new["status"]);
    admission::validate(resource, &object.value, &new).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    if new != object.value {
        store.put(&key, &new, object.revision).await?;
    }
    Ok(())
}

/// Sets one condition; its transition time moves only when its status does.
fn condition(status: &mut Value, kind: &str, is: &str, reason: Option<&str>, message: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let old = conditions.iter().position(|condition| condition["type"] == kind);
    let since = old
        .map(|at| conditions.remove(at))
        .filter(|old| old["status"] == is)
        .map_or_else(|| json!(now()), |old| old["lastTransitionTime"].clone());
    let mut new = json!({"type": kind, "status": is, "lastTransitionTime": since, "message": message});
    if let Some(reason) = reason {
        new["reason"] = json!(reason);
    }
    conditions.push(new);
}

/// What the installer pod does: a directory of the new revision, then the manifest, in one step each.
fn install(root: &Path, operand: &str, revision: i64) -> Result<()> {
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

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
use serde_json::{Value, json};

use super::admission;
use super::resources::Resource;
use super::rest::now;
use super::roll_out::{self, Next, OPERATORS, Pace};
use super::store::Store;

const TICK: Duration = Duration::from_millis(50);
/// For how long an operator that has nothing to do sees to what it says.
const SETTLES: Duration = Duration::from_secs(5);

/// Where the operators work.
#[derive(Debug, Clone, Default)]
pub struct Operators {
    /// The node's root: manifests and revision directories are written there. None: only the API shows a roll-out.
    pub root: Option<PathBuf>,
    /// A JSON file of [`Pace`], looked at all the time; the defaults when it is missing.
    pub pace: Option<PathBuf>,
}

impl Operators {
    /// Those of a node, which write into its files.
    pub fn of_node(root: &Path, pace: &Path) -> Result<Self> {
        let root = root.canonicalize().with_context(|| format!("finding {}", root.display()))?;
        Ok(Self { root: Some(root), pace: Some(pace.to_owned()) })
    }

    fn pace(&self) -> Pace {
        self.pace.as_deref().map_or_else(Pace::default, Pace::read)
    }
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
        for (plural, operand) in OPERATORS.into_iter().filter(|(plural, _)| !pace.is_absent(plural)) {
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
    let acted_on = store.get(&config_map(operand, roll_out::latest(&object.value))).await?;
    let acted_on = acted_on.as_ref().and_then(|map| map.value["data"]["forceRedeploymentReason"].as_str()).unwrap_or_default();
    Ok(Some(roll_out::next(&object.value, acted_on, skip)))
}

fn config_map(operand: &str, revision: i64) -> String {
    format!("configmaps/openshift-{operand}/{}", roll_out::config_map(operand, revision))
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
            conditions(store, plural, operand, true, revision).await?;
            change(store, plural, |status| status["nodeStatuses"][0]["targetRevision"] = json!(revision)).await
        }
        Next::Install(revision) if pace.stuck.iter().any(|stuck| stuck == plural) => {
            change(store, plural, |status| roll_out::say_stuck(status, revision, &now())).await
        }
        Next::Install(revision) => {
            if let Some(root) = &operators.root {
                roll_out::install(root, operand, revision)?;
            }
            if waited < pace.install {
                return Ok(());
            }
            change(store, plural, |status| roll_out::say_installed(status, revision)).await?;
            conditions(store, plural, operand, false, revision).await
        }
        Next::Nothing if waited < SETTLES => settle(store, plural, operand).await,
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

/// Says that a revision is there where the process was killed after it had installed that, and before it said so.
async fn settle(store: &Store, plural: &str, operand: &str) -> Result<()> {
    let operator = store.get(&resource(plural)?.key(None, "cluster")).await?.context("the operator's object is gone")?;
    let cluster_operator = store.get(&cluster_operator(operand)).await?;
    let left = roll_out::says_progress(&operator.value["status"])
        || cluster_operator.is_some_and(|object| roll_out::says_cluster_progress(&object.value["status"]));
    if !left || operator.value["spec"]["managementState"] == "Unmanaged" {
        return Ok(());
    }
    conditions(store, plural, operand, false, roll_out::latest(&operator.value)).await
}

fn cluster_operator(operand: &str) -> String {
    format!("config.openshift.io/clusteroperators/{operand}")
}

/// Sets what the node installer says: in the operator's own status, and in its ClusterOperator.
async fn conditions(store: &Store, plural: &str, operand: &str, progressing: bool, revision: i64) -> Result<()> {
    let mut message = String::new();
    change(store, plural, |status| message = roll_out::say_progress(status, progressing, revision, &now())).await?;
    let key = cluster_operator(operand);
    let Some(mut object) = store.get(&key).await? else { return Ok(()) };
    roll_out::say_cluster_operator(&mut object.value["status"], progressing, &message, &now());
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

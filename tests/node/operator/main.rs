//! A stand-in for OpenShift's static-pod operators, one operand a process: `operator etcd`. It runs as a pod under the real names, on the
//! real API server, and does what the agent waits for: it takes its lease, answers a new `forceRedeploymentReason` with a new revision,
//! installs that on the node (a revision directory and a manifest, which the real kubelet acts on), and reports as the real ones do, late.
//!
//! Left out: everything else that they do, and the installer's own pod. How fast it is, and what goes wrong, is read from [`PACE`] on the
//! node, each time.

mod api;
mod lease;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use api::Api;
use lease::Lease;
use recovery::node::clock::{catch_signals, interrupted};
use testing::api::roll_out::{self, Next, OPERATORS, Pace};

/// On the node, and mounted here under the same name; not part of any backup.
const PACE: &str = "/var/lib/operators/pace.json";
/// The node's root, as far as it is mounted here.
const ROOT: &str = "/";
const TICK: Duration = Duration::from_millis(500);

struct Operator {
    api: Api,
    /// Resource and operand.
    plural: &'static str,
    operand: &'static str,
    /// What it is about to do, and since when.
    about: (Next, Instant),
}

fn main() -> Result<()> {
    catch_signals()?;
    let operand = std::env::args().nth(1).context("usage: operator OPERAND")?;
    let (plural, operand) = OPERATORS.into_iter().find(|(_, known)| *known == operand).context("no such operand")?;
    let mut operator = Operator { api: Api::of_pod()?, plural, operand, about: (Next::Nothing, Instant::now()) };
    let mut lease = Lease::new(operand)?;
    while interrupted().is_ok() {
        let pace = Pace::read(Path::new(PACE));
        // The API server goes away while it is itself rolled out: the next round looks again.
        let done = lease
            .hold(&operator.api, pace.lease)
            .and_then(|held| if held && !pace.is_absent(plural) { operator.round(&pace) } else { Ok(()) });
        if let Err(error) = done {
            eprintln!("operator: {operand}: {error:#}");
        }
        std::thread::sleep(TICK);
    }
    lease.release(&operator.api)
}

impl Operator {
    fn path(&self) -> String {
        format!("/apis/operator.openshift.io/v1/{}/cluster", self.plural)
    }

    fn config_map(&self, revision: i64) -> String {
        format!("/api/v1/namespaces/openshift-{}/configmaps/{}", self.operand, roll_out::config_map(self.operand, revision))
    }

    fn round(&mut self, pace: &Pace) -> Result<()> {
        let Some(object) = self.api.get(&self.path())? else { return Ok(()) };
        let map = self.api.get(&self.config_map(roll_out::latest(&object)))?.unwrap_or_default();
        let acted_on = map["data"]["forceRedeploymentReason"].as_str().unwrap_or_default();
        let next = roll_out::next(&object, acted_on, pace.skip);
        if next != self.about.0 {
            self.about = (next, Instant::now());
        }
        self.act(next, pace, &object)
    }

    fn act(&self, next: Next, pace: &Pace, object: &Value) -> Result<()> {
        let waited = self.about.1.elapsed();
        match next {
            Next::Reveal(revision) if waited >= pace.react => self.reveal(object, revision),
            Next::Announce(revision) if waited >= pace.stale => {
                self.conditions(true, revision)?;
                self.change(|status| status["nodeStatuses"][0]["targetRevision"] = json!(revision))
            }
            Next::Install(revision) if pace.stuck.iter().any(|stuck| stuck == self.plural) => {
                self.change(|status| roll_out::say_stuck(status, revision, &now()))
            }
            Next::Install(revision) => {
                roll_out::install(Path::new(ROOT), self.operand, revision)?;
                if waited < pace.install || !self.runs(revision)? {
                    return Ok(());
                }
                self.change(|status| roll_out::say_installed(status, revision))?;
                self.conditions(false, revision)
            }
            _ => Ok(()),
        }
    }

    /// Makes a revision available: first what it was made for, so that after a crash in between it is not made for nothing.
    fn reveal(&self, object: &Value, revision: i64) -> Result<()> {
        let namespace = format!("openshift-{}", self.operand);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": roll_out::config_map(self.operand, revision), "namespace": namespace},
            "data": {"forceRedeploymentReason": object["spec"]["forceRedeploymentReason"]},
        });
        if self.api.get(&self.config_map(revision))?.is_some() {
            self.api.patch(&self.config_map(revision), &json!({"data": map["data"]}))?;
        } else {
            self.api.post(&format!("/api/v1/namespaces/{namespace}/configmaps"), &map)?;
        }
        self.change(|status| status["latestAvailableRevision"] = json!(revision))
    }

    /// True when kubelet runs the static pod of this revision, and it is Ready.
    fn runs(&self, revision: i64) -> Result<bool> {
        let path = format!("/api/v1/namespaces/openshift-{0}/pods?labelSelector=app%3D{0}%2Crevision%3D{revision}", self.operand);
        let pods = self.api.get(&path)?.unwrap_or_default();
        let ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
        };
        Ok(pods["items"].as_array().is_some_and(|pods| pods.iter().any(ready)))
    }

    /// What the node installer says, in the operator's own status and in its `ClusterOperator`.
    fn conditions(&self, progressing: bool, revision: i64) -> Result<()> {
        let mut message = String::new();
        self.change(|status| message = roll_out::say_progress(status, progressing, revision, &now()))?;
        let path = format!("/apis/config.openshift.io/v1/clusteroperators/{}", self.operand);
        self.api.change_status(&path, |status| roll_out::say_cluster_operator(status, progressing, &message, &now()))
    }

    fn change(&self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        self.api.change_status(&self.path(), edit)
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

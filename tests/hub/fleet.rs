//! A hub with its clusters: the hub's own API, the built agent as `recovery hub run` with the rights that `packaging/hub` gives it, and spokes.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use real_node::Limit;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process, secret};

/// For what the hub does: a namespace takes some seconds to go.
pub(crate) const LIMIT: Limit = Limit::of(90);
/// Where the hub's objects are.
const OBJECTS: &str = "/apis/hub.recovery/v1alpha1/namespaces/recovery-hub";

/// A hub: its API, and what its program says.
pub(crate) struct Hub {
    pub(crate) cluster: Cluster,
    dir: tempfile::TempDir,
}

impl Hub {
    /// The hub's API, with what `kubectl apply -k packaging/hub` puts there. The program does not run yet.
    pub(crate) fn start() -> Result<Self> {
        let cluster = Cluster::start("hub", true)?;
        let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/hub");
        cluster.kubectl(&["apply", "-k", packaging], "")?.checked()?;
        let hub = Self { cluster, dir: tempfile::tempdir()? };
        for kind in ["clustergroupbackups", "clusterbackups", "backupschedules"] {
            hub.cluster.api.until(&format!("{OBJECTS}/{kind}"), LIMIT, |_| Some(()))?;
        }
        Ok(hub)
    }

    /// Makes a cluster known.
    pub(crate) fn knows(&self, cluster: &str, kubeconfig: &str) -> Result<()> {
        let secrets = "/api/v1/namespaces/recovery-hub/secrets";
        self.cluster.api.create(secrets, &secret("recovery-hub", cluster, kubeconfig)).map(drop)
    }

    /// Makes a cluster known by another kubeconfig.
    pub(crate) fn is_known_by(&self, cluster: &str, kubeconfig: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/recovery-hub/secrets/{cluster}-kubeconfig");
        self.cluster.api.merge(&path, &json!({"stringData": {"value": kubeconfig}})).map(drop)
    }

    /// A kubeconfig with the rights of the hub's account.
    pub(crate) fn kubeconfig(&self) -> Result<String> {
        self.cluster.kubeconfig_of_account("recovery-hub", "recovery-hub")
    }

    /// Runs the hub with this kubeconfig; dropped, it is killed with -9.
    pub(crate) fn run(&self, kubeconfig: &str) -> Result<Process> {
        run(self.dir.path(), kubeconfig)
    }

    /// What the program has said.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("hub.log")).unwrap_or_default()
    }

    /// Makes a group.
    pub(crate) fn group(&self, name: &str, spec: &Value) -> Result<()> {
        let group = json!({
            "apiVersion": "hub.recovery/v1alpha1", "kind": "ClusterGroupBackup", "metadata": {"name": name}, "spec": spec,
        });
        self.cluster.api.create(&path("clustergroupbackups", ""), &group).map(drop)
    }

    /// The status of a `ClusterBackup`, as soon as it has this state.
    pub(crate) fn state(&self, name: &str, state: &str) -> Result<Value> {
        let has = |one: &Value| (one["status"]["state"] == state).then(|| one["status"].clone());
        self.cluster
            .api
            .until(&path("clusterbackups", name), LIMIT, has)
            .with_context(|| format!("{name} in {state}: {:?}\n{}", self.cluster.api.get(&path("clusterbackups", name)), self.said()))
    }

    /// A condition of a group, as soon as it has this reason.
    pub(crate) fn reason(&self, group: &str, condition: &str, reason: &str) -> Result<Value> {
        let has = |one: &Value| {
            let all = one["status"]["conditions"].as_array()?;
            all.iter().find(|one| one["type"] == condition && one["reason"] == reason).cloned()
        };
        self.cluster.api.until(&path("clustergroupbackups", group), LIMIT, has).with_context(|| self.said())
    }

    /// Deletes an object, and waits until it is gone.
    pub(crate) fn forget(&self, kind: &str, name: &str) -> Result<()> {
        self.cluster.api.delete(&path(kind, name))?;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(150);
        while self.cluster.api.get(&path(kind, name))?.is_some() {
            anyhow::ensure!(std::time::Instant::now() < end, "{kind} {name} does not go: {}", self.said());
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        Ok(())
    }

    /// The states of which events tell, of an object.
    pub(crate) fn told(&self, name: &str) -> Result<Vec<String>> {
        let mut all = self.cluster.api.list("/apis/events.k8s.io/v1/namespaces/recovery-hub/events")?;
        all.retain(|event| event["regarding"]["name"] == name);
        all.sort_by_key(|event| event["eventTime"].as_str().map(str::to_owned));
        Ok(all.iter().filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect())
    }
}

/// Runs a hub with this kubeconfig; it and the log, `hub.log`, are in `dir`.
pub(crate) fn run(dir: &Path, kubeconfig: &str) -> Result<Process> {
    let file = dir.join("kubeconfig");
    std::fs::write(&file, kubeconfig)?;
    let log = File::options().create(true).append(true).open(dir.join("hub.log"))?;
    let words = ["hub", "run", "--namespace", "recovery-hub", "--image", "verified", "--listen", "127.0.0.1:0"];
    let environment = format!("KUBECONFIG={}", file.display());
    let arguments = [&environment, env!("CARGO_BIN_EXE_recovery")].into_iter().chain(words);
    Process::start(Path::new("/usr/bin/env"), log, arguments.map(str::to_owned).collect())
}

/// The path of an object of the hub.
pub(crate) fn path(kind: &str, name: &str) -> String {
    if name.is_empty() { format!("{OBJECTS}/{kind}") } else { format!("{OBJECTS}/{kind}/{name}") }
}

/// What the agent says at its end, when all is well.
pub(crate) fn verified() -> String {
    verified_until(None)
}

/// The same, of a backup with a certificate that expires then.
pub(crate) fn verified_until(expires: Option<jiff::Timestamp>) -> String {
    let now = jiff::Timestamp::now();
    json!({
        "version": 1, "agent": "1.0.0", "backup": "20260301T021704Z-4.16.3", "verified": true, "digest": "0f", "release": "4.16.3",
        "taken": now, "certificates_expire": expires,
    })
    .to_string()
}

//! The way to clusters through Open Cluster Management, with the real work agent between two real API servers.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use real_node::{Limit, base};
use recovery::hub::api::{ClusterBackup, GateState};
use recovery::hub::spoke::manifest_work::ByManifestWork;
use recovery::hub::spoke::{Job, JobEnd, Look, Spoke, Trouble, Try};
use recovery::kube::Permission;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Process, free_port};
use crate::fleet::{self, verified};
use crate::kubelet::{Kubelet, Play};

/// For what the agent does: a namespace takes some seconds to go.
const LIMIT: Limit = Limit::of(60);
const PODS: &str = "/api/v1/namespaces/recovery-spoke/pods";
const PARAMETER: &str = "/api/v1/namespaces/kube-system/configmaps/recovery-upgrade-gate";

/// A hub of Open Cluster Management with one managed cluster, `one`, and the work agent of that. There is no registration agent: a test says whether
/// the cluster is available.
struct Ocm {
    hub: Cluster,
    spoke: Cluster,
    agent: Option<Process>,
    port: (u16, File),
    dir: tempfile::TempDir,
}

impl Ocm {
    fn start() -> Result<Self> {
        let (hub, spoke, dir) = (Cluster::start("hub", false)?, Cluster::start("one", true)?, tempfile::tempdir()?);
        let crds = base::ocm_tools()?.join("crds");
        for (cluster, kind, group) in
            [(&hub, "manifestworks", "work"), (&hub, "managedclusters", "cluster"), (&spoke, "appliedmanifestworks", "work")]
        {
            let definition = std::fs::read_to_string(crds.join(format!("{kind}.yaml")))?;
            cluster.kubectl(&["apply", "-f", "-"], &definition)?.checked()?;
            cluster.api.until(&format!("/apis/{group}.open-cluster-management.io/v1/{kind}"), LIMIT, |_| Some(()))?;
        }
        hub.api.create("/api/v1/namespaces", &json!({"metadata": {"name": "one"}}))?;
        let managed = json!({
            "apiVersion": "cluster.open-cluster-management.io/v1", "kind": "ManagedCluster",
            "metadata": {"name": "one"}, "spec": {"hubAcceptsClient": true},
        });
        hub.api.create("/apis/cluster.open-cluster-management.io/v1/managedclusters", &managed)?;
        let mut ocm = Self { hub, spoke, agent: None, port: free_port()?, dir };
        ocm.is_available("True")?;
        ocm.start_agent()?;
        Ok(ocm)
    }

    /// The work agent, as it runs on a node of its own, but that it looks more often.
    fn start_agent(&mut self) -> Result<()> {
        self.agent = None;
        let file = |name: &str, text: &str| -> Result<String> {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let (hub, spoke) = (file("hub", &self.hub.kubeconfig)?, file("spoke", &self.spoke.kubeconfig)?);
        let arguments = [
            ("spoke-cluster-name", "one".to_owned()),
            ("workload-source-config", hub),
            ("spoke-kubeconfig", spoke.clone()),
            ("kubeconfig", spoke),
            ("namespace", "default".to_owned()),
            ("disable-leader-election", "true".to_owned()),
            ("status-sync-interval", "1s".to_owned()),
            ("listen", format!("127.0.0.1:{}", self.port.0)),
        ];
        let arguments = arguments.map(|(flag, value)| format!("--{flag}={value}")).to_vec();
        let log = File::options().create(true).append(true).open(self.dir.path().join("agent.log"))?;
        self.agent = Some(Process::start(&base::ocm_tools()?.join("work-agent"), log, arguments)?);
        Ok(())
    }

    /// What the hub's registration controller says of the cluster.
    fn is_available(&self, status: &str) -> Result<()> {
        let condition = |name: &str, status: &str, reason: &str| json!({"type": name, "status": status, "reason": reason, "message": "as a test has it", "lastTransitionTime": Timestamp::now()});
        let conditions = [
            condition("HubAcceptedManagedCluster", "True", "HubClusterAdminAccepted"),
            condition("ManagedClusterConditionAvailable", status, "ManagedClusterLeaseUpdateStopped"),
        ];
        let path = "/apis/cluster.open-cluster-management.io/v1/managedclusters/one/status";
        self.hub.api.merge(path, &json!({"status": {"conditions": conditions}}))?;
        Ok(())
    }

    fn way(&self) -> ByManifestWork {
        ByManifestWork::new(&self.hub.api.client, "one")
    }

    fn look(&self, this: &Try) -> Result<Look, Trouble> {
        self.hub.api.run(self.way().look(this))
    }

    fn do_start(&self, this: &Try) -> Result<()> {
        Ok(self.hub.api.run(self.way().start(this))?)
    }

    /// Looks until `done` says something of it.
    fn until<T>(&self, what: &str, this: &Try, mut done: impl FnMut(&Result<Look, Trouble>) -> Option<T>) -> Result<T> {
        let end = Instant::now() + LIMIT.0;
        loop {
            let look = self.look(this);
            if let Some(found) = done(&look) {
                return Ok(found);
            }
            ensure!(Instant::now() < end, "waited {} s for {what}: {look:?}; the agent said:\n{}", LIMIT.0.as_secs(), self.said());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    fn until_job(&self, what: &str, this: &Try, is: impl Fn(&Job) -> bool) -> Result<Job> {
        self.until(what, this, |look| look.as_ref().ok()?.job.clone().filter(&is))
    }

    fn said(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default();
        // Its errors and its end; that nobody signs for an aggregated API server is none.
        let is_one = |line: &&str| line.starts_with(['E', 'F', 'p']) && !line.contains("requestheader");
        let lines: Vec<&str> = log.lines().filter(is_one).collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

/// The try of a `ClusterBackup` with this uid.
fn this_try(uid: &str) -> Result<Try> {
    let backup: ClusterBackup = serde_json::from_value(json!({
        "apiVersion": "hub.recovery/v1alpha1", "kind": "ClusterBackup",
        "metadata": {"name": format!("group.one.{uid}"), "namespace": "fleet", "uid": uid},
        "spec": {
            "cluster": "one", "group": "group", "attempt": 1, "reach": "ManifestWork", "image": "registry/recovery:1",
            "deadlineSeconds": 480, "giveUpAfterSeconds": 1200, "maxAge": "24h", "backupName": "hub", "keep": 3,
        },
    }))?;
    Try::of(&backup).context("no try")
}

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

#[test]
fn a_try_is_carried_out_once_and_leaves_nothing() -> Result<()> {
    let mut ocm = Ocm::start()?;
    let (first, second, third) = (this_try("aaaaaaaa-1")?, this_try("bbbbbbbb-2")?, this_try("cccccccc-3")?);
    let said = verified();
    let kubelet = Kubelet::start(&ocm.spoke, "node", move |pod| match name_of(pod) {
        "backup-aaaaaaaa-1" => Play::exits(1500, 0, &said),
        "backup-bbbbbbbb-2" => Play::hangs(),
        _ => Play::exits(300, 75, "no space is left on /var"),
    })?;

    // Carried out, also when it is asked for twice.
    ensure!(ocm.look(&first)? == Look::default());
    ocm.do_start(&first)?;
    ocm.do_start(&first)?;
    let running = ocm.until_job("the pod", &first, |_| true)?;
    ensure!(running.end == JobEnd::Running && running.uid.len() == 36, "{running:?}");
    let done = ocm.until_job("its end", &first, |job| job.end != JobEnd::Running)?;
    ensure!(done.end == JobEnd::Complete && done.uid == running.uid, "{done:?}");
    ensure!(done.result().is_some_and(|result| result.verified), "{done:?}");
    // It stays so when the cluster is not there any more.
    ocm.is_available("Unknown")?;
    ensure!(ocm.look(&first)?.job == Some(done));
    ocm.is_available("True")?;

    // Another try finds what this one has left, and has it removed: namespace and all.
    let leftovers = ocm.look(&second)?;
    ensure!(leftovers.job.is_none() && leftovers.leftovers == ["the ManifestWork backup-aaaaaaaa-1"], "{leftovers:?}");
    ocm.hub.api.run(ocm.way().clear(&second))?;
    ocm.until("leftovers to go", &second, |look| (*look == Ok(Look::default())).then_some(()))?;
    ensure!(ocm.spoke.api.get("/api/v1/namespaces/recovery-spoke")?.is_none(), "the namespace has stayed");

    // One that vanishes has vanished, and is not made again: not when the agent starts, nor when the work changes.
    ocm.do_start(&second)?;
    ocm.until_job("the pod", &second, |job| job.end == JobEnd::Running)?;
    let path = "/apis/work.open-cluster-management.io/v1/namespaces/one/manifestworks/backup-bbbbbbbb-2";
    ocm.hub.api.until(path, LIMIT, |work| work["metadata"]["annotations"]["hub.recovery/pod"].is_string().then_some(()))?;
    let generation = |work: &Value| work["status"]["conditions"][0]["observedGeneration"].as_i64().filter(|seen| *seen >= 2);
    ocm.hub.api.until(path, LIMIT, generation).with_context(|| ocm.said())?;
    ocm.spoke.api.delete(&format!("{PODS}/backup-bbbbbbbb-2"))?;
    ocm.until("the pod to be missed", &second, |look| (look.as_ref().ok()? == &Look::default()).then_some(()))?;
    ocm.start_agent()?;
    ocm.hub.api.merge(path, &json!({"metadata": {"labels": {"people": "change"}}}))?;
    std::thread::sleep(std::time::Duration::from_secs(5));
    ensure!(ocm.look(&second)? == Look::default() && kubelet.pods() == 2, "it was made again");
    ocm.hub.api.run(ocm.way().remove(&second, false))?;
    ocm.until("the work to go", &third, |look| (*look == Ok(Look::default())).then_some(()))?;

    // A failure comes with its words.
    ocm.do_start(&third)?;
    let failed = ocm.until_job("its end", &third, |job| job.end != JobEnd::Running)?;
    let words = JobEnd::Failed { reason: "Error".to_owned(), message: "its container exited with 75".to_owned() };
    ensure!(failed.end == words && failed.said == "no space is left on /var", "{failed:?}");

    // Without its agent the work stays, for whoever comes back; it belongs to no other try's way.
    ocm.agent = None;
    ocm.hub.api.run(ocm.way().remove(&third, true))?;
    ensure!(ocm.look(&first)?.leftovers == ["the ManifestWork backup-cccccccc-3"]);
    ocm.start_agent()?;
    ocm.until("the work to go", &first, |look| (*look == Ok(Look::default())).then_some(()))?;
    ensure!(ocm.spoke.api.get("/api/v1/namespaces/recovery-spoke")?.is_none(), "the namespace has stayed");
    Ok(())
}

#[test]
fn what_keeps_a_try_from_its_cluster_is_said() -> Result<()> {
    let ocm = Ocm::start()?;
    let this = this_try("dddddddd-4")?;
    let _kubelet = Kubelet::start(&ocm.spoke, "node", |_| Play::NoImage)?;
    let reason = |look: &Result<Look, Trouble>| match look {
        Err(Trouble::Unreachable { reason, message }) => Some((*reason, message.clone())),
        _ => None,
    };

    // A managed cluster that is away, that is none, a hub without Open Cluster Management.
    ocm.is_available("Unknown")?;
    let (word, message) = reason(&ocm.look(&this)).context("it is reached")?;
    ensure!(word == "Unreachable" && message.contains("as a test has it"), "{word} {message}");
    let other = ocm.hub.api.run(ByManifestWork::new(&ocm.hub.api.client, "two").look(&this));
    ensure!(reason(&other).is_some_and(|(word, _)| word == "NoManagedCluster"), "{other:?}");
    let none = ocm.spoke.api.run(ByManifestWork::new(&ocm.spoke.api.client, "one").look(&this));
    ensure!(reason(&none).is_some_and(|(word, _)| word == "NoManifestWork"), "{none:?}");
    let nowhere = ocm.hub.api.run(ByManifestWork::new(&ocm.hub.api.client, "two").start(&this));
    ensure!(matches!(nowhere, Err(Trouble::Unreachable { reason: "NoNamespace", .. })), "{nowhere:?}");
    ocm.is_available("True")?;

    // One whose image cannot be had waits; it is not taken for running well.
    ocm.do_start(&this)?;
    let waits = ocm.until_job("its image", &this, |job| !job.waits.is_empty())?;
    ensure!(waits.end == JobEnd::Running && waits.waits.contains("Image"), "{waits:?}");
    // A cluster that goes away while it runs is not there, whatever was reported.
    ocm.is_available("Unknown")?;
    ensure!(reason(&ocm.look(&this)).is_some_and(|(word, _)| word == "Unreachable"));
    ocm.is_available("True")?;
    // Out of time, as kubelet writes it.
    let out_of_time = json!({"status": {
        "phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline",
    }});
    ocm.spoke.api.merge(&format!("{PODS}/backup-dddddddd-4/status"), &out_of_time)?;
    let late = ocm.until_job("its end", &this, |job| job.end != JobEnd::Running)?;
    ensure!(
        matches!(&late.end, JobEnd::Failed { reason, message } if reason == "DeadlineExceeded" && message.contains("longer")),
        "{late:?}"
    );
    ocm.hub.api.run(ocm.way().remove(&this, false))?;

    // What the cluster refuses it will refuse again.
    let refused = this_try("eeeeeeee-5")?;
    ocm.until("the work to go", &refused, |look| (*look == Ok(Look::default())).then_some(()))?;
    ocm.spoke.api.create("/api/v1/namespaces", &json!({"metadata": {"name": "recovery-spoke"}}))?;
    let quota =
        json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}, "status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}});
    ocm.spoke.api.create("/api/v1/namespaces/recovery-spoke/resourcequotas", &quota)?;
    ocm.spoke.api.merge("/api/v1/namespaces/recovery-spoke/resourcequotas/none/status", &json!({"status": quota["status"]}))?;
    ocm.do_start(&refused)?;
    let why = ocm.until("the refusal", &refused, |look| match look {
        Err(Trouble::Refused(why)) => Some(why.clone()),
        _ => None,
    })?;
    ensure!(why.contains("exceeded quota"), "{why}");
    Ok(())
}

#[test]
fn the_gate_is_written_where_there_is_one_and_left_to_the_node() -> Result<()> {
    let ocm = Ocm::start()?;
    let api = &ocm.spoke.api;
    let this = this_try("aaaaaaaa-1")?;
    let gate = |permission: &Permission| ocm.hub.api.run(ocm.way().gate(&this, permission, false));
    let release = "4.16.3".to_owned();
    let closed = Permission::Closed { release: release.clone(), why: "the last backup failed".to_owned() };
    let open = Permission::Open { release, backup: "20261130T040000Z".to_owned(), until: "2026-12-01T04:00:00Z".parse()? };

    ensure!(gate(&closed).with_context(|| ocm.said())? == GateState::NotInstalled && api.get(PARAMETER)?.is_none());

    let nodes = json!({"metadata": {"name": "recovery-upgrade-gate"}, "data": {"state": "closed", "why": "of the node"}});
    api.create("/api/v1/namespaces/kube-system/configmaps", &nodes)?;
    for (permission, state, word) in [(&open, GateState::Open, "open"), (&closed, GateState::Closed, "closed")] {
        ensure!(gate(permission).with_context(|| ocm.said())? == state);
        let written = api.get(PARAMETER)?.context("it is gone")?;
        ensure!(written["data"]["state"] == word && written["metadata"]["ownerReferences"].is_null(), "{written}");
    }
    // The work goes, its ConfigMap stays, and what the node writes stays too.
    let works = "/apis/work.open-cluster-management.io/v1/namespaces/one/manifestworks";
    let end = Instant::now() + LIMIT.0;
    while !ocm.hub.api.list(works)?.is_empty() {
        ensure!(Instant::now() < end, "the gate's work has stayed: {}", ocm.said());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    api.merge(PARAMETER, &json!({"data": {"state": "open"}}))?;
    std::thread::sleep(std::time::Duration::from_secs(3));
    ensure!(api.get(PARAMETER)?.context("it is gone")?["data"]["state"] == "open");
    Ok(())
}

/// A hub, with the rights that it has on a real one.
fn start_hub(ocm: &Ocm) -> Result<Process> {
    fleet::run(ocm.dir.path(), &ocm.hub.kubeconfig_of_account("recovery-hub", "recovery-hub")?)
}

#[test]
fn a_group_is_backed_up_by_a_hub_that_is_killed_meanwhile() -> Result<()> {
    let ocm = Ocm::start()?;
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/hub");
    ocm.hub.kubectl(&["apply", "-k", packaging], "")?.checked()?;
    ocm.hub.kubectl(&["apply", "-f", &format!("{packaging}/ocm.yaml")], "")?.checked()?;
    let said = verified();
    let kubelet = Kubelet::start(&ocm.spoke, "node", move |_| Play::exits(8000, 0, &said))?;

    let hub = start_hub(&ocm)?;
    let groups = "/apis/hub.recovery/v1alpha1/namespaces/recovery-hub/clustergroupbackups";
    let group = json!({
        "apiVersion": "hub.recovery/v1alpha1", "kind": "ClusterGroupBackup", "metadata": {"name": "all"},
        "spec": {"clusterLabelSelectors": [{"matchLabels": {"site": "one"}}], "reach": "ManifestWork"},
    });
    let managed = "/apis/cluster.open-cluster-management.io/v1/managedclusters/one";
    ocm.hub.api.merge(managed, &json!({"metadata": {"labels": {"site": "one"}}}))?;
    ocm.hub.api.until(groups, LIMIT, |_| Some(()))?;
    let mut with_gate = group.clone();
    with_gate["spec"]["installGate"] = true.into();
    let refused = ocm.hub.api.create(groups, &with_gate).err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("installGate is not supported with spec.reach ManifestWork"), "{refused}");
    ocm.hub.api.create(groups, &group)?;
    let backup = "/apis/hub.recovery/v1alpha1/namespaces/recovery-hub/clusterbackups/all.one.1";
    let hub_said = || std::fs::read_to_string(ocm.dir.path().join("hub.log")).unwrap_or_default();
    let state = |wanted: &'static str| move |one: &Value| (one["status"]["state"] == wanted).then(|| one["status"].clone());
    let active = ocm.hub.api.until(backup, LIMIT, state("Active")).with_context(hub_said)?;
    ensure!(active["job"].is_string(), "{active}");
    drop(hub);
    let _hub = start_hub(&ocm)?;
    let done = ocm.hub.api.until(backup, LIMIT, state("Succeeded")).with_context(hub_said)?;
    ensure!(done["verified"] == true && done["job"] == active["job"] && kubelet.pods() == 1, "{done}");
    // What was put there goes, and of a gate that is not installed nothing is made.
    ocm.hub.api.until(backup, LIMIT, |one| {
        let status = &one["status"];
        (status["cleaned"] == true && status["gate"] == "NotInstalled").then_some(())
    })?;
    let works = "/apis/work.open-cluster-management.io/v1/namespaces/one/manifestworks";
    let none = |list: &Value| list["items"].as_array().is_some_and(Vec::is_empty).then_some(());
    ocm.hub.api.until(works, LIMIT, none).with_context(|| ocm.said())?;
    ensure!(ocm.spoke.api.get("/api/v1/namespaces/recovery-spoke")?.is_none(), "the namespace has stayed");

    // The last try of a cluster that is not there any more waits for nobody, and its work does not wait for the agent's return.
    ocm.hub.api.delete(&format!("{groups}/all"))?;
    let mut last = group.clone();
    last["metadata"]["name"] = "last".into();
    ocm.hub.api.create(groups, &last)?;
    let backup = backup.replace("all.one", "last.one");
    ocm.hub.api.until(&backup, LIMIT, state("Active")).with_context(hub_said)?;
    ocm.is_available("Unknown")?;
    // Nobody here would remove what was made for a group that is gone, as Kubernetes does: nothing is.
    ocm.hub.api.delete(&format!("{groups}/last"))?;
    ocm.hub.api.delete(&backup)?;
    let end = Instant::now() + LIMIT.0;
    while ocm.hub.api.get(&backup)?.is_some() {
        ensure!(Instant::now() < end, "it waits for a cluster that is not there: {}", hub_said());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    ocm.hub.api.until(works, LIMIT, none).with_context(|| ocm.said())
}

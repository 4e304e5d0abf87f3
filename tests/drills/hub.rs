//! The node as a spoke of a hub: each state of a backup, by what really leads there.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::gate::{VERSION, ask, upgrade};
use super::hands::AGENT;
use super::job::{backups, in_the_middle, make_large, make_small};
use super::jobs::{self, Job};
use super::moment::Stopped;
use super::relay::Relay;
use crate::cluster::Process;
use crate::fleet::{Hub, path};
use real_node::release::BEFORE;
use real_node::{Done, Limit, Node, Variant};

/// The hub's namespace on its spokes.
const SPOKE: &str = "recovery-spoke";
const SOON: Limit = Limit::of(120);
/// Until a hub says of a node without power that it does not answer: it looks at a Job every two minutes, and a request has its time.
const NOTICED: Limit = Limit::of(300);
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/recovery-hub/leases/recovery-hub";

/// A hub, and the one node that it knows.
struct Fleet {
    hub: Hub,
    relay: Relay,
    node: Node,
    _dir: tempfile::TempDir,
}

impl Fleet {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let node = Node::up(&dir.path().join("node"), &Variant::default())?;
        jobs::import_image(&node)?;
        let (relay, hub) = (Relay::start(&node)?, Hub::start()?);
        hub.knows("node", &relay.kubeconfig(&node)?)?;
        Ok(Self { hub, relay, node, _dir: dir })
    }

    fn run(&self) -> Result<Process> {
        self.hub.run(&self.hub.kubeconfig()?)
    }

    /// Asks for a backup of the node.
    fn group(&self, name: &str, more: &Value) -> Result<()> {
        let mut spec = json!({"clusters": ["node"], "image": jobs::IMAGE, "retries": 0, "deadlineSeconds": 600, "giveUpAfterSeconds": 900});
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        self.hub.group(name, &spec)
    }

    /// The status of a try, as soon as it has this in this field.
    fn says(&self, backup: &str, field: &str, value: impl Into<Value>) -> Result<Value> {
        let value = value.into();
        let has = |one: &Value| (one["status"][field] == value).then(|| one["status"].clone());
        let said = self.hub.cluster.api.until(&path("clusterbackups", backup), NOTICED, has);
        let said = said.with_context(|| format!("{field} of {backup}; the hub said {}", self.hub.said()))?;
        eprintln!("{backup}: {said}");
        Ok(said)
    }

    /// Asks for a backup, and stops its agent at once: the status of the try, which is at work.
    fn at_work(&self, group: &str, more: &Value) -> Result<(Stopped, Value)> {
        self.group(group, more)?;
        let agent = Stopped::when(&self.node, "an agent at work", SOON, || true)?;
        Ok((agent, self.says(&format!("{group}.node.1"), "state", "Active")?))
    }

    /// The names of the Jobs that the hub has on the node.
    fn jobs(&self) -> Result<Vec<String>> {
        let names = self.node.kubectl(&["get", "jobs", "--namespace", SPOKE, "--output=jsonpath={.items[*].metadata.name}"])?;
        Ok(names.split_whitespace().map(str::to_owned).collect())
    }

    fn job(&self) -> Result<String> {
        let mut jobs = self.jobs()?;
        ensure!(jobs.len() == 1, "the hub has these Jobs on the node: {jobs:?}");
        Ok(jobs.remove(0))
    }

    /// The backup that a hub tells of is the node's newest, is good there, and was asked for by that very Job.
    fn is_the_nodes_word(&self, status: &Value) -> Result<()> {
        let word = |field: &str| status[field].as_str().with_context(|| format!("no {field}: {status}"));
        let (id, job) = (word("backupId")?, word("job")?);
        let taken = backups(&self.node)?;
        ensure!(taken.first() == Some(&(id.to_owned(), format!("job/{job}"))), "{taken:?}, and the hub says {status}");
        ensure!(status["verified"] == true && word("release")? == BEFORE.version, "{status}");
        let sums = self.node.run(&["sha256sum", &format!("/var/recovery/backups/{id}/SHA256SUMS")])?;
        ensure!(sums.split_whitespace().next() == Some(word("digest")?), "{sums}, and the hub says {status}");
        self.node.run(&[AGENT, "verify", id]).map(drop)
    }

    /// Waits until an upgrade is answered so: the API server takes up a policy, and what that goes by, a moment later.
    fn upgrade(&self, what: &str, is_so: impl Fn(&Done) -> bool) -> Result<()> {
        let mut last = String::new();
        let asked = || {
            let done = ask(&self.node, &VERSION, &upgrade(), true)?;
            let answered = is_so(&done).then_some(());
            last = done.stdout + &done.stderr;
            Ok(answered)
        };
        SOON.wait(&format!("an upgrade to be {what}"), asked, String::new).with_context(|| last)
    }

    fn refuses_an_upgrade(&self, why: &str) -> Result<()> {
        let says = |done: &Done| ["waits for a good backup", why].iter().all(|words| done.stderr.contains(words));
        self.upgrade("refused", |done| done.code() != 0 && says(done))
    }
}

#[test]
fn each_end_of_a_job_is_the_state_of_its_backup() -> Result<()> {
    let fleet = Fleet::start()?;
    let node = &fleet.node;
    let _running = fleet.run()?;

    // What the node has said when its pod ended; a gate that nobody has installed is none.
    fleet.group("good", &json!({}))?;
    let good = fleet.says("good.node.1", "state", "Succeeded")?;
    fleet.is_the_nodes_word(&good)?;
    let over = fleet.says("good.node.1", "gate", "NotInstalled")?;
    ensure!(over["cleaned"] == true && fleet.jobs()?.is_empty(), "{over}: {:?}", fleet.jobs());
    fleet.upgrade("taken", |done| done.code() == 0)?;

    // Nothing more fits on the recovery partition: the agent ends by itself.
    let left = "$(stat --file-system --format='%a * %S' /var/recovery)";
    node.run(&["sh", "-c", &format!("fallocate --length=$(({left} - (1 << 20))) /var/recovery/full")])?;
    fleet.group("full", &json!({"installGate": true}))?;
    let full = fleet.says("full.node.1", "state", "UnrecoverableError")?;
    let (message, log) = (full["message"].as_str().unwrap_or_default(), full["log"].as_str().unwrap_or_default());
    ensure!(full["reason"] == "BackoffLimitExceeded" && message.starts_with("taking a backup: "), "{full}");
    ensure!(message.contains("are missing; next: make room there") && log.contains(message.trim()), "{full}");
    let stays = Job::of(node, SPOKE, &fleet.job()?).ended_container()?;
    ensure!(stays.0 == 73, "{stays:?}");
    node.run(&["rm", "/var/recovery/full"])?;
    fleet.says("full.node.1", "gate", "Closed")?;
    fleet.refuses_an_upgrade("the last backup ended in UnrecoverableError (BackoffLimitExceeded)")?;

    // The Job's deadline comes in the middle of its work; the next try goes on there.
    make_large(node)?;
    fleet.group("late", &json!({"installGate": true, "retries": 1}))?;
    // Stopped, so that no machine is too slow or too fast for it.
    let agent = in_the_middle(node)?;
    fleet.says("late.node.1", "state", "Active")?;
    Job::of(node, SPOKE, &fleet.job()?).is_overdue()?;
    let partial = node.run(&["sh", "-c", "cd /var/recovery/backups && ls -d *.partial"])?;
    make_small(node)?;
    agent.go_on()?;
    let late = fleet.says("late.node.1", "state", "BackupTimeout")?;
    ensure!(late["reason"] == "DeadlineExceeded", "{late}");
    let done = fleet.says("late.node.2", "state", "Succeeded")?;
    ensure!(done["backupId"] == partial.trim().trim_end_matches(".partial"), "{done} does not go on with {partial}");
    fleet.is_the_nodes_word(&done)?;
    fleet.says("late.node.2", "gate", "Open")?;
    fleet.upgrade("taken", |done| done.code() == 0)?;

    // Somebody deletes the Job while it is at work.
    let (agent, _) = fleet.at_work("gone", &json!({}))?;
    node.kubectl(&["delete", "job", "--namespace", SPOKE, "--all"])?;
    let gone = fleet.says("gone.node.1", "state", "UnrecoverableError")?;
    ensure!(gone["reason"] == "JobVanished", "{gone}");
    agent.go_on()?;
    fleet.says("gone.node.1", "gate", "Closed")?;
    fleet.refuses_an_upgrade("the last backup ended in UnrecoverableError (JobVanished)")?;

    // What was put there goes with the last of them, and with it the gate, which the hub has installed.
    for group in ["good", "full", "late", "gone"] {
        fleet.hub.forget("clustergroupbackups", group)?;
    }
    let is_gone = || Ok((node.exec(&["kubectl", "get", "namespace", SPOKE], SOON)?.stderr.contains("NotFound")).then_some(()));
    SOON.wait("the namespace of the hub to be gone", is_gone, || fleet.hub.said())?;
    fleet.upgrade("taken", |done| done.code() == 0)?;
    fleet.node.down()
}

/// Hub, line and node go away one after the other, each while a backup is under way.
#[test]
fn whoever_goes_away_meanwhile_is_waited_for_and_there_is_one_job() -> Result<()> {
    let mut fleet = Fleet::start()?;
    let running = fleet.run()?;

    fleet.relay.pull();
    fleet.group("line", &json!({}))?;
    let away = fleet.says("line.node.1", "reason", "Unreachable")?;
    ensure!(away["state"] == "PreparingToStart", "{away}");
    fleet.relay.put_back();
    fleet.says("line.node.1", "state", "Succeeded")?;

    // The hub, with -9: the next one, when the Lease of that one is over, knows the Job again.
    let taken = backups(&fleet.node)?.len();
    let (agent, active) = fleet.at_work("killed", &json!({}))?;
    let holder = |lease: &Value| lease["spec"]["holderIdentity"].as_str().map(str::to_owned);
    let was = fleet.hub.cluster.api.get(LEASE)?.as_ref().and_then(holder);
    drop(running);
    let _running = fleet.run()?;
    let next = fleet.hub.cluster.api.until(LEASE, SOON, |lease| holder(lease).filter(|now| was.as_ref() != Some(now)));
    next.with_context(|| fleet.hub.said())?;
    agent.go_on()?;
    let done = fleet.says("killed.node.1", "state", "Succeeded")?;
    fleet.is_the_nodes_word(&done)?;
    ensure!(done["job"] == active["job"], "{active} became {done}");
    ensure!(backups(&fleet.node)?.len() == taken + 1, "{:?}", backups(&fleet.node)?);

    // The node's power. It comes back in time.
    let (_, active) = fleet.at_work("power", &json!({}))?;
    fleet.relay.pull();
    fleet.node.kill()?;
    let away = fleet.says("power.node.1", "reason", "Unreachable")?;
    ensure!(away["state"] == "Active", "{away}");
    fleet.node.boot()?;
    fleet.node.wait_well()?;
    fleet.relay.put_back();
    let lost = fleet.says("power.node.1", "state", "UnrecoverableError")?;
    ensure!(lost["job"] == active["job"] && lost["reason"] == "BackoffLimitExceeded", "{active} became {lost}");
    ensure!(lost["message"] == "its container exited with 255 (Unknown)", "{lost}");
    // All that the node's runtime knows of it is that it is gone.
    let ended = Job::of(&fleet.node, SPOKE, &fleet.job()?).ended_container()?;
    ensure!(ended == (255, String::new()), "{ended:?}");

    // And it does not.
    let _ = fleet.at_work("dark", &json!({"deadlineSeconds": 80, "giveUpAfterSeconds": 90}))?;
    fleet.relay.pull();
    fleet.node.kill()?;
    let dark = fleet.says("dark.node.1", "state", "BackupTimeout")?;
    ensure!(dark["reason"] == "GaveUp", "{dark}");
    fleet.node.boot()?;
    fleet.node.wait_well()?;
    fleet.relay.put_back();
    fleet.group("light", &json!({}))?;
    let light = fleet.says("light.node.1", "state", "Succeeded")?;
    fleet.is_the_nodes_word(&light)?;
    fleet.node.down()
}

//! What the drills of a recovery have in common: the agent on the node, what there was before, and what is looked at afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use recovery::recovery::{Outcome, RunReport};
use serde_json::{Value, json};

use super::moment::journal;
use real_node::release::{BEFORE, COMPONENTS};
use real_node::{Done, Kind, Limit, Node, cluster};

/// The agent on the node.
pub(crate) const AGENT: &str = "/var/recovery/recovery";
/// While it is there, kubelet does not start.
pub(crate) const HOLD: &str = "/var/lib/recovery/hold-kubelet";
/// The unit that goes on with a recovery.
pub(crate) const UNIT: &str = "recovery-resume.service";
/// One call of the agent.
const CALL: Limit = Limit::of(300);
/// From the reboot that a recovery asks for to its end.
const RECOVERED: Limit = Limit::of(1200);
/// For an API server that has just started, and refuses once or twice what it serves a moment later.
const MOMENT: Limit = Limit::of(30);

/// Kinds of objects that nothing but a person or a release changes: neither kubelet nor a controller writes them while all is well.
const KINDS: &str = "namespaces,configmaps,secrets,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,\
                     customresourcedefinitions,priorityclasses,persistentvolumes";
/// Kinds whose status controllers write: what was asked for, and which object it is, stay the same.
const RUN_BY_CONTROLLERS: &str = "deployments,jobs";

/// A node of this variant, with the agent on it, and the directory that is removed after it: what is dropped last stands first.
pub(crate) fn up(variant: &str) -> Result<(tempfile::TempDir, Node)> {
    let dir = tempfile::tempdir()?;
    let node = Node::up(&dir.path().join("node"), &variant.parse()?)?;
    node.install(Path::new(env!("CARGO_BIN_EXE_recovery")))?;
    Ok((dir, node))
}

/// The agent, however it ends.
pub(crate) fn agent(node: &Node, args: &[&str]) -> Result<Done> {
    node.exec(&typed(args), CALL)
}

/// The agent with its arguments; where a verb begins a recovery, the cluster has to stay up at its end for a few seconds and not for a minute.
pub(crate) fn typed<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let begins = args.iter().any(|arg| ["recover", "restore-files"].contains(arg));
    let hold: &[&str] = if begins { &["--hold", "5"] } else { &[] };
    [&[AGENT], args, hold].concat()
}

/// The agent, which has to end with 0: what it printed.
pub(crate) fn ok(node: &Node, args: &[&str]) -> Result<String> {
    Ok(agent(node, args)?.checked()?.stdout)
}

/// The agent, which has to end with this exit code and say all of that.
pub(crate) fn fails(node: &Node, args: &[&str], code: i32, says: &[&str]) -> Result<()> {
    let done = agent(node, args)?;
    ensure!(done.code() == code, "`{}` ended with {} and not {code}: {}{}", args.join(" "), done.code(), done.stdout, done.stderr);
    for words in says {
        ensure!(done.stderr.contains(words), "`{}` does not say `{words}`: {}", args.join(" "), done.stderr);
    }
    Ok(())
}

/// The agent's `verb`, after which the node goes down and comes up again. The connection may drop before it has ended.
pub(crate) fn over_the_reboot(node: &Node, args: &[&str]) -> Result<()> {
    let boots = node.boots()?;
    let done = agent(node, args)?;
    // 255: the shell of the connection was killed with the node.
    ensure!([0, 255, 137, 143].contains(&done.code()), "`{}` ended with {}: {}", args.join(" "), done.code(), done.stderr);
    node.wait_boots(boots + 1)
}

/// What was on the node when the backup was taken.
pub(crate) struct Before {
    /// The backup.
    pub(crate) backup: String,
    objects: BTreeMap<String, Value>,
    units: String,
    images: String,
    unit_files: String,
    revisions: Vec<(String, i64)>,
}

/// Writes objects, takes a backup, writes others.
pub(crate) fn back_up(node: &Node) -> Result<Before> {
    node.kubectl(&["create", "configmap", "written-before", "--from-literal=word=kept"])?;
    node.apply(&[deployment_without_pods(), job_that_waits()])?;
    // Its controller waits for the lease of the one before.
    let seen = ["kubectl", "wait", "deployment/written-before", "--for=jsonpath={.status.observedGeneration}=1", "--timeout=180s"];
    node.exec(&seen, CALL)?.checked()?;
    let report: Value = serde_json::from_str(&ok(node, &["backup", "--json"])?).context("reading the backup's report")?;
    let backup = report["manifest"]["id"].as_str().with_context(|| format!("the backup has no id: {report}"))?.to_owned();
    let (objects, units, images, unit_files) = (objects(node)?, units(node)?, images(node)?, unit_files(node)?);
    let before = Before { backup, objects, units, images, unit_files, revisions: revisions(node)? };
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost"])?;
    node.kubectl(&["create", "namespace", "made-after"])?;
    node.kubectl(&["delete", "configmap,deployment,job", "written-before"])?;
    Ok(before)
}

/// What pods come back as is another drill's.
fn deployment_without_pods() -> Value {
    let labels = json!({"app": "written-before"});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "written-before", "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod()}},
    })
}

fn job_that_waits() -> Value {
    let mut pod = pod();
    pod["restartPolicy"] = json!("Never");
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "written-before", "namespace": "default"},
        "spec": {"suspend": true, "template": {"spec": pod}},
    })
}

fn pod() -> Value {
    json!({"containers": [{"name": "pause", "image": BEFORE.image("pause"), "imagePullPolicy": "IfNotPresent"}]})
}

impl Before {
    /// Everything is as it was: objects, units, images, kubelet, pods. Operators' new revisions are their own, and each has one.
    pub(crate) fn is_back(&self, node: &Node) -> Result<()> {
        self.is_back_beside(node, None)
    }

    /// The same; of the units, what this is in the name of is left out, which is kept whatever is restored.
    pub(crate) fn is_back_beside(&self, node: &Node, kept: Option<&str>) -> Result<()> {
        node.wait_well()?;
        ensure!(!node.exists(HOLD)?, "the hold on kubelet is still there");
        ensure!(!node.exists("/var/recovery/progress")? && !node.exists("/var/recovery/undo.json")?, "the run is over and left its files");
        let now = objects(node)?;
        let mut differences = Vec::new();
        for (name, object) in &self.objects {
            match now.get(name) {
                None => differences.push(format!("{name} is gone")),
                Some(is) if is != object => differences.push(format!("{name} is another: {object} became {is}")),
                Some(_) => {}
            }
        }
        let of_a_revision = |name: &str| name.starts_with("ConfigMap openshift-") && name.contains("-pod-");
        differences.extend(now.keys().filter(|name| !self.objects.contains_key(*name) && !of_a_revision(name)).cloned());
        ensure!(differences.is_empty(), "not as before:\n{}", differences.join("\n"));
        for kind in ["ConfigMap", "Deployment", "Job"] {
            ensure!(now.contains_key(&format!("{kind} default/written-before")), "there was no {kind} to be brought back");
        }
        let now_at = revisions(node)?;
        let rose = self.revisions.iter().zip(&now_at).all(|((operator, was), (same, is))| operator == same && is > was);
        ensure!(
            rose && now_at.len() == self.revisions.len(),
            "not every operator has a new revision: {:?}, now {now_at:?}",
            self.revisions
        );
        ensure!(!now.contains_key("ConfigMap default/written-after"), "what was written after the backup is still there");
        let others = |text: &str| {
            let lines = text.lines().filter(|line| kept.is_none_or(|kept| !line.contains(kept)));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (was, is) = (others(&self.units), others(&units(node)?));
        ensure!(was == is, "the units were\n{was}\nand are\n{is}");
        let (was, is) = (others(&self.unit_files), others(&unit_files(node)?));
        ensure!(was == is, "the unit files were\n{was}\nand are\n{is}");
        let (was, is) = (&self.images, images(node)?);
        ensure!(*was == is, "the images were\n{was}\nand are\n{is}");
        // What came after the backup is written again without trouble.
        node.kubectl(&["create", "configmap", "written-at-last", "--from-literal=word=new"])?;
        node.kubectl(&["delete", "configmap", "written-at-last"]).map(drop)
    }
}

/// Every object of [`KINDS`] and, on OpenShift, the cluster's version, as the API has it: unchanged is what is equal to the last byte, version
/// included. Of [`RUN_BY_CONTROLLERS`] without what these write.
fn objects(node: &Node) -> Result<BTreeMap<String, Value>> {
    let more = if node.kind() == Kind::OpenShift { ",clusterversions" } else { "" };
    let list = asked(node, &["get", "--output=json", &format!("{KINDS}{more},{RUN_BY_CONTROLLERS}"), "--all-namespaces"])?;
    let list: Value = serde_json::from_str(&list).context("reading the list of objects")?;
    let mut objects = BTreeMap::new();
    for object in list["items"].as_array().context("no list")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, namespace, name) = (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let mut object = object.clone();
        if ["Deployment", "Job"].contains(&kind.as_str()) {
            for (parent, written) in [("", "status"), ("/metadata", "resourceVersion"), ("/metadata", "managedFields")] {
                object.pointer_mut(parent).and_then(Value::as_object_mut).and_then(|parent| parent.shift_remove(written));
            }
        }
        objects.insert(format!("{kind} {namespace}/{name}"), object);
    }
    ensure!(objects.len() > 50, "a cluster has more than {} objects", objects.len());
    Ok(objects)
}

/// What kubectl prints, asked again for a moment when it fails.
fn asked(node: &Node, args: &[&str]) -> Result<String> {
    let mut last = String::new();
    let look = || Ok(node.kubectl(args).map_err(|error| last = format!("{error:#}")).ok());
    let answer = MOMENT.wait("an answer of the API server", look, String::new);
    answer.with_context(|| last)
}

/// The revision of each operator that the node runs; none without operators.
fn revisions(node: &Node) -> Result<Vec<(String, i64)>> {
    if node.kind() != Kind::OpenShift {
        return Ok(Vec::new());
    }
    let revision = |component: &str| {
        let resource = cluster::operator_resource(component);
        let operator: Value = serde_json::from_str(&asked(node, &["get", "--output=json", &resource, "cluster"])?)?;
        let revision = operator["status"]["nodeStatuses"][0]["currentRevision"].as_i64();
        Ok((resource, revision.with_context(|| format!("{component} has no revision: {}", operator["status"]))?))
    };
    COMPONENTS.into_iter().map(revision).collect()
}

fn units(node: &Node) -> Result<String> {
    node.run(&["systemctl", "list-unit-files", "--no-legend", "--no-pager", "--plain"])
}

fn unit_files(node: &Node) -> Result<String> {
    node.run(&["sh", "-c", "find /etc/systemd -type f -exec sha256sum {} + | sort; find /etc/systemd -type l -printf '%p %l\\n' | sort"])
}

fn images(node: &Node) -> Result<String> {
    node.run(&["sh", "-c", "crictl images --quiet --no-trunc | sort"])
}

/// Waits until so many runs are in the history, and none is open; the report of the one that ended last, which is finished.
pub(crate) fn wait_recovered(node: &Node, runs: usize) -> Result<RunReport> {
    let mut given_up = 0;
    let look = || {
        let Ok(listed) = node.exec(&["sh", "-c", "ls -t /var/recovery/history/*.json; test ! -e /var/recovery/progress"], CALL) else {
            return Ok(None);
        };
        let reports: Vec<&str> = listed.stdout.lines().collect();
        if listed.code() == 0 && reports.len() >= runs {
            return Ok(Some(reports[0].to_owned()));
        }
        // While it goes down, its units fail too.
        let failed = node.exec(&["systemctl", "is-failed", "--quiet", UNIT], CALL).is_ok_and(|done| done.code() == 0);
        let stopping = || node.exec(&["systemctl", "is-system-running"], CALL).is_ok_and(|done| done.stdout.trim() == "stopping");
        given_up = if failed && !stopping() { given_up + 1 } else { 0 };
        ensure!(given_up < 20, "{UNIT} has given up: {}", unit_status(node)?);
        Ok(None)
    };
    // What it waits for, the unit says.
    let stuck = || format!("{:?}\n{}\n{}", journal(node).ok(), unit_status(node).unwrap_or_default(), node.explain());
    let newest = RECOVERED.wait("the recovery to end", look, stuck)?;
    let condition = r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}"#;
    let ready = asked(node, &["get", "nodes", "--output", condition])?;
    let report = RunReport::of_history(node.read(&newest)?.as_bytes()).with_context(|| format!("reading {newest}"))?;
    // What an etcd that was restored holds of the node is as old as the backup.
    let (status, reported) = ready.split_once(' ').context("the node has no condition Ready")?;
    let since = node.power()?.since;
    ensure!(
        status == "True" && reported.parse::<jiff::Timestamp>()?.as_second() >= since,
        "the run ended, and the node was {ready}; booted at {since}"
    );
    ensure!(report.outcome == Outcome::Finished, "{newest} ended as {:?}", report.outcome);
    Ok(report)
}

/// What an administrator sees of the unit.
pub(crate) fn unit_status(node: &Node) -> Result<String> {
    Ok(node.exec(&["systemctl", "status", "--no-pager", "--full", UNIT], CALL)?.stdout)
}

/// Every step has its time, the agent's own part is short, and `status` and the history tell the same.
pub(crate) fn is_accounted_for(node: &Node, before: &Before, report: &RunReport, own: f64) -> Result<()> {
    for step in report.run.phases.iter().flat_map(|phase| &phase.steps) {
        ensure!(step.seconds.is_some(), "{} has no time: {step:?}", step.name);
    }
    let mine = report.seconds - report.waited;
    eprintln!("{}: {mine:.1} s of its own, {:.1} s of waiting", report.run.id, report.waited);
    for phase in &report.run.phases {
        let times = phase
            .steps
            .iter()
            .map(|step| format!("{} {:.1}-{:.1}", step.name, step.seconds.unwrap_or_default(), step.waited.unwrap_or_default()));
        eprintln!("  {}: {}", phase.phase, times.collect::<Vec<_>>().join(", "));
    }
    ensure!(mine < own, "the agent's own part took {mine:.1} s, {report:?}");
    ensure!(report.run.backup == before.backup, "{} was restored, not {}", report.run.backup, before.backup);
    let status = ok(node, &["status"])?;
    let last = format!("last: recovery {} from backup {}", report.run.id, before.backup);
    ensure!(status.contains("no recovery is in progress") && status.contains(&last) && status.contains("finished"), "{status}");
    let recorded = node.exists(&format!("/var/recovery/history/{}.progress", report.run.id))?;
    ensure!(recorded, "the journal of the run is not in the history");
    Ok(())
}

/// What the container runtime has logged in all boots of the node, of each of which there is a log.
pub(crate) fn runtime_log(node: &Node) -> Result<Vec<String>> {
    let fields = ["--output=json", "--output-fields=MESSAGE,_BOOT_ID", "--no-pager"];
    let text = node.run(&[&["journalctl", "--unit=crio", "--unit=containerd"][..], &fields].concat())?;
    let (mut boots, mut messages) = (BTreeSet::new(), Vec::new());
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).context("reading the runtime's log")?;
        boots.insert(entry["_BOOT_ID"].to_string());
        messages.push(entry["MESSAGE"].as_str().unwrap_or_default().to_owned());
    }
    ensure!(boots.len() == node.boots()? as usize, "the runtime's log is of {} boots of {}", boots.len(), node.boots()?);
    Ok(messages)
}

/// No image was pulled since the node was made, by what the container runtime logs and kubelet reports; and that log would show it.
pub(crate) fn nothing_was_pulled(node: &Node) -> Result<()> {
    let pulls = || Ok::<_, anyhow::Error>(runtime_log(node)?.into_iter().filter(|line| line.contains("PullImage")).collect::<Vec<_>>());
    let pulled = pulls()?;
    ensure!(pulled.is_empty(), "the container runtime has pulled: {pulled:?}");
    let events = node.kubectl(&["get", "events", "--all-namespaces", "--output=name", "--field-selector=reason=Pulling"])?;
    ensure!(events.trim().is_empty(), "kubelet has pulled: {events}");
    ensure!(!node.exec(&["crictl", "pull", "registry.test/release/none:1"], CALL)?.status.success());
    ensure!(!pulls()?.is_empty(), "a pull is not in the log that was looked at");
    Ok(())
}

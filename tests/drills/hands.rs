//! What the drills of a recovery have in common: the agent on the node, its journal as it grows, what there was before, and what is
//! looked at afterwards.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use recovery::recovery::{Outcome, RunReport};
use serde_json::Value;

use super::node::{Done, Limit, Node, Variant};

/// The agent on the node.
pub(crate) const AGENT: &str = "/var/recovery/recovery";
/// While it is there, kubelet does not start.
pub(crate) const HOLD: &str = "/var/lib/recovery/hold-kubelet";
/// The unit that goes on with a recovery.
pub(crate) const UNIT: &str = "recovery-resume.service";
/// One call of the agent.
const CALL: Limit = Limit::of(300);
/// From the reboot that a recovery asks for to its end.
const RECOVERED: Limit = Limit::of(480);
/// Between two looks at the journal of a run: what is to be cut short may take no longer than a few of these.
const GLANCE: Duration = Duration::from_millis(1);

/// Kinds of objects that nothing but a person or a release changes: neither kubelet nor a controller writes them while all is well.
const KINDS: &str = "namespaces,configmaps,secrets,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,\
                     customresourcedefinitions,priorityclasses,persistentvolumes";

/// A node of this variant, with the agent on it. It is gone with the directory.
pub(crate) fn up(variant: &str) -> Result<(Node, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let variant: Variant = variant.parse()?;
    let node = Node::up(&dir.path().join("node"), &variant)?;
    node.install(Path::new(env!("CARGO_BIN_EXE_recovery")))?;
    Ok((node, dir))
}

/// The agent, however it ends.
pub(crate) fn agent(node: &Node, args: &[&str]) -> Result<Done> {
    node.exec(&[&[AGENT], args].concat(), CALL)
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
}

/// Writes an object, takes a backup, writes another one.
pub(crate) fn back_up(node: &Node) -> Result<Before> {
    node.kubectl(&["create", "configmap", "written-before", "--from-literal=word=kept"])?;
    let report: Value = serde_json::from_str(&ok(node, &["backup", "--json"])?).context("reading the backup's report")?;
    let backup = report["manifest"]["id"].as_str().with_context(|| format!("the backup has no id: {report}"))?.to_owned();
    let before = Before { backup, objects: objects(node)?, units: units(node)?, images: images(node)?, unit_files: unit_files(node)? };
    node.kubectl(&["create", "configmap", "written-after", "--from-literal=word=lost"])?;
    node.kubectl(&["create", "namespace", "made-after"])?;
    node.kubectl(&["delete", "configmap", "written-before"])?;
    Ok(before)
}

impl Before {
    /// Everything is as it was: objects, units, images, kubelet, pods. Operators' new revisions are their own.
    pub(crate) fn is_back(&self, node: &Node) -> Result<()> {
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
        ensure!(now.contains_key("ConfigMap default/written-before") && !now.contains_key("ConfigMap default/written-after"));
        let (was, is) = (&self.units, units(node)?);
        ensure!(*was == is, "the units were\n{was}\nand are\n{is}");
        let (was, is) = (&self.unit_files, unit_files(node)?);
        ensure!(*was == is, "the unit files were\n{was}\nand are\n{is}");
        let (was, is) = (&self.images, images(node)?);
        ensure!(*was == is, "the images were\n{was}\nand are\n{is}");
        // What came after the backup is written again without trouble.
        node.kubectl(&["create", "configmap", "written-at-last", "--from-literal=word=new"])?;
        node.kubectl(&["delete", "configmap", "written-at-last"]).map(drop)
    }
}

/// Every object of [`KINDS`], as the API has it: unchanged is what is equal to the last byte, version included.
fn objects(node: &Node) -> Result<BTreeMap<String, Value>> {
    let list = node.get(&[KINDS, "--all-namespaces"])?;
    let mut objects = BTreeMap::new();
    for object in list["items"].as_array().context("no list")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        objects.insert(format!("{} {namespace}/{name}", text(&object["kind"])), object.clone());
    }
    ensure!(objects.len() > 50, "a cluster has more than {} objects", objects.len());
    Ok(objects)
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

/// The lines of the journal of the open run so far, read without the node's help; none when there is no run.
pub(crate) fn journal(node: &Node) -> Result<Vec<Value>> {
    let leader = node.power()?.leader.context("the node is off")?;
    let text = std::fs::read_to_string(format!("/proc/{leader}/root/var/recovery/progress")).unwrap_or_default();
    // The last line may be half written.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// An event of the journal: `resume etcd-data step-done`.
pub(crate) fn said(line: &Value) -> String {
    let word = |name: &str| line[name].as_str().unwrap_or_default();
    format!("{} {} {}", word("phase"), word("step"), word("event"))
}

/// Waits, looking all the time, until the journal has this event.
pub(crate) fn wait_event(node: &Node, event: &str, limit: Limit) -> Result<()> {
    let end = Instant::now() + limit.0;
    loop {
        let journal = journal(node).unwrap_or_default();
        if journal.iter().any(|line| said(line) == event) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("`{event}` does not come; the last that came is {:?}", journal.last().map(said));
        }
        std::thread::sleep(GLANCE);
    }
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
        given_up = if failed { given_up + 1 } else { 0 };
        ensure!(given_up < 20, "{UNIT} has given up: {}", unit_status(node)?);
        Ok(None)
    };
    let newest = RECOVERED.wait("the recovery to end", look, || format!("{:?}\n{}", journal(node).ok(), node.explain()))?;
    let ready = node.kubectl(&[
        "get",
        "nodes",
        "--output",
        r#"jsonpath={range .items[*].status.conditions[?(@.type=="Ready")]}{.status} {.lastHeartbeatTime}{end}"#,
    ])?;
    let report: RunReport = serde_json::from_str(&node.read(&newest)?).with_context(|| format!("reading {newest}"))?;
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

/// No image was pulled since the node was made, by what the container runtime logs and kubelet reports; and that log would show it.
pub(crate) fn nothing_was_pulled(node: &Node) -> Result<()> {
    let pulls = || node.run(&["sh", "-c", "journalctl --unit=crio --unit=containerd --output=cat --no-pager | grep -c PullImage || true"]);
    let count = pulls()?;
    ensure!(count.trim() == "0", "the container runtime has pulled {} times", count.trim());
    let events = node.kubectl(&["get", "events", "--all-namespaces", "--output=name", "--field-selector=reason=Pulling"])?;
    ensure!(events.trim().is_empty(), "kubelet has pulled: {events}");
    ensure!(!node.exec(&["crictl", "pull", "registry.test/release/none:1"], CALL)?.status.success());
    ensure!(pulls()?.trim() != "0", "a pull is not in the log that was looked at");
    Ok(())
}

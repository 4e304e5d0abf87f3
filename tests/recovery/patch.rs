//! The agent is killed at every boundary of the steps that patch, and goes on: each object is patched once, whatever the moment.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::through::{WAIT, command, journal_says, json as report, node, ok, over_the_reboot, settled, start};
use testing::node::{Kind, Node};

const OBJECTS: [&str; 2] = ["/registry/k0rdent.mirantis.com/managements/one", "/registry/k0rdent.mirantis.com/managements/two"];
/// Of a built-in kind. (The emulated API server has them as JSON, where the real one has protobuf; the agent does not read either.)
const SERVED: [&str; 2] = ["/registry/configmaps/kcm-system/first", "/registry/configmaps/kcm-system/second"];
const NOT: &str = "/registry/configmaps/kcm-system/without";
const JOURNAL: &str = "/var/recovery/progress";
/// What is sent to etcd, and what is written to the journal.
const CALLS: &str = "fdatasync,sendto,sendmsg,writev";

const RULES: &str = "version: v1
resourceModifierRules:
- conditions: {groupResource: managements.k0rdent.mirantis.com}
  patches:
  - {operation: add, path: /spec/list/-, value: once}
- conditions: {groupResource: configmaps, namespaces: [kcm-system], resourceNameRegex: '^(first|second)$'}
  patches:
  - {operation: add, path: /list/-, value: once}
- conditions: {groupResource: configmaps, resourceNameRegex: ^without$}
  patches:
  - {operation: replace, path: /data/none, value: x}
";

fn management(name: &str) -> Value {
    json!({
        "apiVersion": "k0rdent.mirantis.com/v1beta1", "kind": "Management", "metadata": {"name": name, "uid": name, "generation": 3},
        "spec": {"list": ["before"]}, "status": {"observedGeneration": 3},
    })
}

pub(crate) fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "kcm-system", "uid": name}, "list": ["before"]})
}

pub(crate) fn put(node: &Node, key: &str, value: &Value) -> Result<()> {
    node.with_etcd(async |client| client.put(key, value.to_string(), None).await.map(drop).context("writing a key"))
}

/// The value of a key, and how often it was written since it was made.
pub(crate) fn written(node: &Node, key: &str) -> Result<(Value, i64)> {
    node.with_etcd(async |client| {
        let answer = client.get(key, None).await?;
        let found = answer.kvs().first().with_context(|| format!("{key} is not there"))?;
        Ok((serde_json::from_slice(found.value())?, found.version()))
    })
}

fn set_up(node: &Node, dir: &Path) -> Result<()> {
    put(node, OBJECTS[0], &management("one"))?;
    put(node, OBJECTS[1], &management("two"))?;
    put(node, SERVED[0], &config_map("first"))?;
    put(node, SERVED[1], &config_map("second"))?;
    put(node, NOT, &config_map("without"))?;
    ok(node, &["backup"])?;
    std::fs::write(dir.join("rules.yaml"), RULES).context("writing the rules")
}

/// The agent goes on, and is killed when it makes one of the `calls` for the time of this `number`.
fn killed_at(node: &Node, wait: &str, calls: &str, number: usize) -> Result<Output> {
    let agent = command(node, &["--wait", wait, "resume"])?;
    let mut strace = Command::new("strace");
    let inject = format!("inject={calls}:signal=KILL:when={number}");
    strace.args(["-qq", "-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &inject]);
    strace.arg(agent.get_program()).args(agent.get_args()).stdin(std::process::Stdio::null());
    strace.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace.output().context("running strace (package strace)")
}

/// The agent goes on until it is about to do this step, and is killed there.
pub(crate) fn goes_on(node: &Node, until: &str) -> Result<()> {
    let mut agent = start(node, &["resume"])?;
    let says = journal_says(node, "resume", until);
    kill_process(Pid::from_child(&agent), Signal::KILL)?;
    agent.wait()?;
    says
}

pub(crate) fn lines(node: &Node) -> Result<Vec<String>> {
    Ok(std::fs::read_to_string(node.at(JOURNAL))?.split_inclusive('\n').map(str::to_owned).collect())
}

fn is_of(line: &str, step: &str) -> bool {
    line.contains(&format!("\"step\":\"{step}\""))
}

/// What is patched, and where in it.
struct Patched {
    keys: [&'static str; 2],
    made: fn(&str) -> Value,
    list: &'static str,
}

impl Patched {
    fn put(&self, node: &Node) -> Result<()> {
        self.keys.iter().try_for_each(|key| put(node, key, &(self.made)(key.rsplit('/').next().unwrap_or_default())))
    }

    fn writes(&self, node: &Node) -> Result<[i64; 2]> {
        Ok([written(node, self.keys[0])?.1, written(node, self.keys[1])?.1])
    }

    /// How many are patched, each once at most.
    fn count(&self, node: &Node, before: [i64; 2]) -> Result<usize> {
        let mut count = 0;
        for (key, before) in self.keys.iter().zip(before) {
            let (object, writes) = written(node, key)?;
            let list = object.pointer(self.list);
            ensure!(list == Some(&json!(["before"])) || list == Some(&json!(["before", "once"])), "{object}");
            let is_patched = list == Some(&json!(["before", "once"]));
            ensure!(writes == before + i64::from(is_patched), "{key} was written {} times", writes - before);
            count += usize::from(is_patched);
        }
        Ok(count)
    }

    /// Kills the agent, which waits `wait` seconds, at each call between the beginning of one step and that of another, and lets it go on.
    fn sweep(&self, node: &Node, wait: &str, from: &str, until: &str) -> Result<()> {
        let whole = lines(node)?;
        let begins = whole.iter().position(|line| is_of(line, from)).with_context(|| format!("there is no step {from}"))?;
        // How often it was killed when none, one and two were patched.
        let mut killed = [0; 3];
        // At every call; and where a line of the journal is synced, as if it was lost with the power.
        for (calls, lost) in [(CALLS, false), ("fdatasync", true)] {
            for number in 1.. {
                std::fs::write(node.at(JOURNAL), whole[..begins].concat())?;
                self.put(node)?;
                let before = self.writes(node)?;
                let output = killed_at(node, wait, calls, number)?;
                let left = lines(node)?;
                if left.iter().any(|line| is_of(line, until)) {
                    break;
                }
                ensure!(output.status.code().is_none(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
                let context = || format!("killed at call {number} ({calls}) after the beginning of {from}, its last line lost: {lost}");
                killed[self.count(node, before).with_context(context)?] += 1;
                if lost {
                    std::fs::write(node.at(JOURNAL), left[..left.len() - 1].concat())?;
                }
                goes_on(node, until)?;
                let patched = self.count(node, before).with_context(context)?;
                ensure!(patched == 2, "{patched} are patched: {}", context());
            }
        }
        println!("killed {killed:?} times between {from} and {until}");
        ensure!(killed.iter().all(|killed| *killed > 0), "{killed:?}");
        Ok(())
    }
}

#[test]
fn an_agent_that_is_killed_anywhere_in_the_patch_patches_each_object_once() -> Result<()> {
    let (dir, node) = node(Kind::Kubeadm, |_| ())?;
    set_up(&node, dir.path())?;
    let rules = dir.path().join("rules.yaml");
    let rules = rules.to_str().context("a path that is no text")?;
    let plan = report(&node, &["recover", "--dry-run", "--resource-modifier", rules])?;
    let of_rule = |rule: usize, field: &str| plan["modifier"]["rules"][rule][field].clone();
    ensure!(of_rule(0, "changed") == 2 && of_rule(0, "through_api") == 0, "{}", plan["modifier"]);
    ensure!(of_rule(1, "objects") == 2 && of_rule(1, "changed") == 0 && of_rule(1, "through_api") == 2, "{}", plan["modifier"]);
    ensure!(of_rule(1, "patches") == json!(["add /list/- \"once\""]), "{}", plan["modifier"]);
    let first = json!({
        "resource": "configmaps", "namespace": "kcm-system", "name": "first", "api_version": "v1", "outcome": "through-api", "race_free": false,
    });
    ensure!(of_rule(1, "shown")[0] == first, "{}", plan["modifier"]);
    ensure!(
        plan["warnings"].to_string().contains("3 of the objects that the rules are about are of built-in kinds"),
        "{}",
        plan["warnings"]
    );
    let shown = ok(&node, &["recover", "--dry-run", "--resource-modifier", rules])?;
    for line in [
        "rule 2 (configmaps) is about 2 objects, and changes 0:\n  2 through the API server, not race-free, and judged only then:\n    add /list/- \"once\"\n",
        "  configmaps kcm-system/first (stored as v1): through the API server\n",
    ] {
        ensure!(shown.contains(line), "it does not say `{line}`: {shown}");
    }

    over_the_reboot(&node, &["recover", "--resource-modifier", rules, "--yes"])?;
    // As long as its port is taken, the API server does not come.
    let taken = TcpListener::bind(("127.0.0.1", node.ports().api))?;
    goes_on(&node, "api-server-ready")?;
    let objects = Patched { keys: OBJECTS, made: management, list: "/spec/list" };
    objects.sweep(&node, "1", "patch-objects", "api-server-ready")?;
    ensure!(written(&node, OBJECTS[0])?.0["metadata"]["generation"] == 4);
    let writes = objects.writes(&node)?;

    drop(taken);
    node.wait_api()?;
    goes_on(&node, "patched-objects")?;
    goes_on(&node, "manifests")?;
    let served = Patched { keys: SERVED, made: config_map, list: "/list" };
    served.sweep(&node, WAIT, "patch-served-objects", "manifests")?;
    let done = report(&node, &["resume"])?;
    ensure!(objects.writes(&node)? == writes, "they were patched again");
    ensure!(written(&node, NOT)?.0 == config_map("without"));
    let said = done["run"].to_string();
    let why =
        "configmaps kcm-system/without was not patched, and is as the backup has it: rule 3 fails on it: replace: there is no /data/none";
    ensure!(said.contains(why), "{said}");
    settled(&node)
}

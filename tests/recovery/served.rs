//! Objects of built-in kinds are patched through the API server, and something is in the way of each: the node comes up, nothing is patched twice, and what
//! was not patched, or cannot be told, is said.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::patch::{config_map, goes_on, lines, put, written};
use crate::through::{json as report, node, ok, over_the_reboot, run, settled, start};
use testing::node::{Kind, Node, wait_for};

const RULES: &str = "version: v1
resourceModifierRules:
- conditions: {groupResource: configmaps, namespaces: [kcm-system]}
  patches:
  - {operation: add, path: /list/-, value: once}
";
const FAULTS: &str = "/var/lib/emulated/api-faults.json";
/// Always, as long as a test may take.
const ALWAYS: u32 = 1000;

fn key(name: &str) -> String {
    format!("/registry/configmaps/kcm-system/{name}")
}

/// A rule about these objects is begun with on a node, which has rebooted; the first of them is patched first.
fn begun(names: &[&str]) -> Result<(tempfile::TempDir, Node)> {
    let (dir, node) = node(Kind::Kubeadm, |_| ())?;
    // What was written last is patched first.
    names.iter().rev().try_for_each(|name| put(&node, &key(name), &config_map(name)))?;
    ok(&node, &["backup"])?;
    let rules = dir.path().join("rules.yaml");
    std::fs::write(&rules, RULES).context("writing the rules")?;
    over_the_reboot(&node, &["recover", "--resource-modifier", rules.to_str().context("a path that is no text")?, "--yes"])?;
    Ok((dir, node))
}

/// `{what}` befalls requests of a method for an object, so often.
fn mishap(name: &str, method: &str, is_dry: bool, times: u32, what: &Value) -> Value {
    let path = format!("/api/v1/namespaces/kcm-system/configmaps/{name}");
    json!({"method": method, "path": path, "dry": is_dry, "times": times, "what": what})
}

fn mishaps(node: &Node, all: &[Value]) -> Result<()> {
    let (new, faults) = (node.at(FAULTS).with_extension("new"), node.at(FAULTS));
    std::fs::write(&new, json!({"mishaps": all}).to_string())?;
    std::fs::rename(new, faults).context("writing the mishaps")
}

fn is_patched(node: &Node, name: &str) -> Result<bool> {
    let (object, _) = written(node, &key(name))?;
    let list = &object["list"];
    ensure!(*list == json!(["before"]) || *list == json!(["before", "once"]), "{object}");
    Ok(*list == json!(["before", "once"]))
}

/// How often the object was put, dry runs aside, as far as that was answered.
fn puts(node: &Node, name: &str) -> Result<usize> {
    let log = std::fs::read_to_string(node.at("/var/lib/emulated/api-requests.log"))?;
    let is_put = |line: &&str| line.contains("\"PUT\"") && line.contains(&format!("/configmaps/{name}\"")) && !line.contains("dryRun");
    Ok(log.lines().filter(is_put).count())
}

fn was_noted(node: &Node, number: usize) -> Result<bool> {
    let is_note = |line: &String| {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["event"] == "step-noted" && line["step"] == "patch-served-objects" && line["detail"]["number"] == number
    };
    Ok(lines(node)?.iter().any(is_note))
}

/// What is in the way of each object, and what is said of one that is not patched for certain; true for one that is patched nevertheless.
const WAYS: &[(&str, bool, &str)] = &[
    ("overtaken", true, ""),
    ("busy", true, ""),
    ("unwell", true, ""),
    ("slow-webhook", true, ""),
    ("cut", true, ""),
    ("late", true, ""),
    ("lost", true, ""),
    ("away", true, ""),
    (
        "changed",
        true,
        "whether configmaps kcm-system/changed was patched cannot be told: something has changed it when it was about to be patched",
    ),
    ("contended", false, "kcm-system/contended was not patched, and is as the backup has it: something else wrote to it 5 times meanwhile"),
    (
        "hanging",
        false,
        "kcm-system/hanging was not patched, and is as the backup has it: PUT /api/v1/namespaces/kcm-system/configmaps/hanging?dryRun=All: ",
    ),
    (
        "refused",
        false,
        "kcm-system/refused was not patched, and is as the backup has it: the API server refused (422 Mishap): a mishap of code 422",
    ),
    (
        "undecoded",
        false,
        "kcm-system/undecoded was not patched, and is as the backup has it: GET /api/v1/namespaces/kcm-system/configmaps/undecoded: ",
    ),
    ("forbidden", false, "kcm-system/forbidden was not patched, and is as the backup has it: the API server refused (403 Mishap)"),
    ("unsure", false, "whether configmaps kcm-system/unsure was patched cannot be told: PUT "),
    (
        "noted",
        false,
        "kcm-system/noted was not patched, and is as the backup has it: the API server refused (422 Mishap): a mishap of code 422",
    ),
    ("stopped", true, ""),
];

#[test]
fn whatever_befalls_an_object_that_is_patched_through_the_api_server_the_node_comes_up_and_it_is_patched_once() -> Result<()> {
    let names: Vec<&str> = WAYS.iter().map(|(name, ..)| *name).collect();
    let (_dir, node) = begun(&names)?;
    let code = |code: u16| json!({"code": code});
    mishaps(
        &node,
        &[
            mishap("overtaken", "PUT", false, 2, &json!("overtaken")),
            mishap("busy", "GET", false, 2, &code(429)),
            mishap("unwell", "PUT", true, 1, &code(500)),
            mishap("unwell", "PUT", false, 1, &code(503)),
            // Longer than other requests may take.
            mishap("slow-webhook", "PUT", true, ALWAYS, &json!({"delay": 11_000})),
            mishap("cut", "PUT", false, 1, &json!("cut")),
            mishap("late", "PUT", false, 1, &json!("late")),
            mishap("lost", "PUT", false, 1, &json!("lost")),
            mishap("away", "PUT", false, 1, &json!({"away": 6000})),
            mishap("changed", "PUT", false, 1, &json!("cut_and_changed")),
            mishap("contended", "PUT", false, ALWAYS, &json!("overtaken")),
            mishap("hanging", "PUT", true, ALWAYS, &json!("lost")),
            mishap("refused", "PUT", true, ALWAYS, &code(422)),
            mishap("undecoded", "GET", false, ALWAYS, &code(500)),
            mishap("forbidden", "GET", false, ALWAYS, &code(403)),
            mishap("unsure", "PUT", false, ALWAYS, &code(500)),
            mishap("noted", "PUT", false, 1, &code(422)),
            mishap("stopped", "PUT", false, 1, &json!({"delay": 3_600_000})),
        ],
    )?;
    let mut agent = start(&node, &["resume"])?;
    let noted = wait_for("the last object to be noted", || was_noted(&node, names.len() - 1));
    kill_process(Pid::from_child(&agent), Signal::KILL)?;
    agent.wait()?;
    noted?;
    // What was refused after it was noted is written to by somebody else before the agent goes on.
    let (mut object, _) = written(&node, &key("noted"))?;
    object["metadata"]["labels"] = json!({"somebody": "else"});
    put(&node, &key("noted"), &object)?;

    let done = report(&node, &["resume"])?["run"].to_string();
    for (name, is, said) in WAYS {
        ensure!(is_patched(&node, name)? == *is, "{name}: {}, {done}", written(&node, &key(name))?.0);
        ensure!(done.contains(said), "it does not say `{said}`: {done}");
        ensure!(!said.is_empty() || !done.contains(&format!("kcm-system/{name} ")), "{name} is said not to be patched: {done}");
    }
    // As often as each was put: answered with 409 twice, with 503 once, and not again after it was given up.
    for (name, often) in [("overtaken", 3), ("unwell", 2), ("cut", 0), ("contended", 5), ("unsure", 3), ("noted", 1)] {
        ensure!(puts(&node, name)? == often, "{name} was put {} times", puts(&node, name)?);
    }
    settled(&node)
}

#[test]
fn objects_for_which_no_time_is_left_are_not_patched_through_the_api_server_and_the_node_comes_up() -> Result<()> {
    let (_dir, node) = begun(&["slow", "next", "last"])?;
    goes_on(&node, "patch-served-objects")?;
    mishaps(&node, &[mishap("slow", "PUT", true, 1, &json!({"delay": 4000}))])?;
    node.wait_api()?;
    let ended = run(&node, &["--wait", "3", "resume"])?;
    if ended.code != Some(0) {
        // A later step has not come to its end in that time.
        ok(&node, &["resume"])?;
    }
    let done = ended.to_string();
    ensure!(is_patched(&node, "slow")?, "{done}");
    for name in ["next", "last"] {
        ensure!(!is_patched(&node, name)?, "{name}: {done}");
        let said = format!("kcm-system/{name} was not patched, and is as the backup has it: no time was left of 3 s");
        ensure!(done.contains(&said), "it does not say `{said}`: {done}");
    }
    settled(&node)
}

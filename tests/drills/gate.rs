//! The gate in a real API server: an upgrade is refused until there is a good backup, and again when that is too old.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::hands::{AGENT, agent, fails, ok, up};
use real_node::{Done, Limit, Node};

const CALL: Limit = Limit::of(60);
const PAIRS: usize = 8;
const TO: &str = "4.99.0";

/// Asks for a release as people and controllers do; nothing comes of it with `dry`.
pub(crate) fn ask(node: &Node, object: &[&str], change: &Value, dry: bool) -> Result<Done> {
    let change = change.to_string();
    let dry = if dry { "--dry-run=server" } else { "--dry-run=none" };
    node.exec(&[&["kubectl", "patch"], object, &["--type=merge", dry, "-p", &change]].concat(), CALL)
}

fn refused(done: &Done, says: &[&str]) -> Result<()> {
    ensure!(done.code() != 0, "it was taken: {}", done.stdout);
    for words in says {
        ensure!(done.stderr.contains(words), "it does not say `{words}`: {}", done.stderr);
    }
    Ok(())
}

/// What an OpenShift upgrade changes.
pub(crate) const VERSION: [&str; 2] = ["clusterversion", "version"];

pub(crate) fn upgrade() -> Value {
    json!({"spec": {"desiredUpdate": {"version": TO}}})
}

#[test]
fn an_upgrade_waits_for_a_good_backup() -> Result<()> {
    let (_dir, node) = up("")?;
    ensure!(ask(&node, &VERSION, &upgrade(), true)?.code() == 0, "it is refused before there is a gate");
    ok(&node, &["gate", "install"])?;
    let says = [AGENT, "gate --take", "there is no backup", TO];
    refused(&ask(&node, &VERSION, &upgrade(), false)?, &says)?;
    // Nothing else is in its way: other fields, and what only says how it is.
    ask(&node, &VERSION, &json!({"metadata": {"labels": {"site": "7"}}, "spec": {"channel": "stable-4.99"}}), false)?.checked()?;
    let status = ["clusterversion", "version", "--subresource=status"];
    ask(&node, &status, &json!({"status": {"observedGeneration": 3}}), false)?.checked()?;

    no_slower_than_a_backup(&node)?;
    let passed = json_of(&node, &["gate", "--take", "--max-age", "45s"])?;
    let until = Instant::now() + Duration::from_secs(46);
    ensure!(passed["taken_now"] == true, "{passed}");
    // The API server takes a moment to see the ConfigMap; then everybody passes, at the same time too.
    Limit::of(10).wait(
        "the gate to open",
        || Ok((ask(&node, &VERSION, &upgrade(), true)?.code() == 0).then_some(())),
        || ok(&node, &["gate", "status"]).unwrap_or_default(),
    )?;
    let all = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..20).map(|_| scope.spawn(|| ask(&node, &VERSION, &upgrade(), true))).collect();
        writers.into_iter().map(|writer| writer.join().expect("a writer")).collect::<Result<Vec<Done>>>()
    })?;
    ensure!(all.iter().all(|done| done.code() == 0), "{all:?}");
    let told = ok(&node, &["gate", "status"])?;
    ensure!(told.contains("open, the ClusterVersion may be changed"), "{told}");
    // Nobody has to close it.
    std::thread::sleep(until.saturating_duration_since(Instant::now()));
    refused(&ask(&node, &VERSION, &upgrade(), true)?, &["the last one was good until"])?;
    fails(&node, &["gate", "--max-age", "45s"], 1, &["longer ago than 45s"])?;
    refused(&ask(&node, &VERSION, &upgrade(), true)?, &["longer ago than 45s"])?;

    // With a reason, and for that release alone.
    let annotated = |text: &str| {
        let mut change = upgrade();
        change["metadata"] = json!({"annotations": {"recovery/skip-gate": text}});
        ask(&node, &VERSION, &change, true)
    };
    annotated(&format!("{TO}: the site is new"))?.checked()?;
    refused(&annotated("4.98.0: the site is new")?, &["recovery-upgrade-gate"])?;
    refused(&annotated("")?, &["recovery-upgrade-gate"])?;

    // Without the ConfigMap nobody passes; the next look at the gate writes it again.
    node.kubectl(&["-n", "kube-system", "delete", "configmap", "recovery-upgrade-gate"])?;
    Limit::of(10).wait(
        "the parameter to be missed",
        || Ok(ask(&node, &VERSION, &upgrade(), true)?.stderr.contains("no params found").then_some(())),
        String::new,
    )?;
    ok(&node, &["gate"])?;
    Limit::of(10).wait(
        "the gate to open again",
        || Ok((ask(&node, &VERSION, &upgrade(), true)?.code() == 0).then_some(())),
        String::new,
    )?;

    // All of it in one command; the harness is the cluster-version-operator.
    let command = [
        "sh",
        "-c",
        &format!(
            "setsid {AGENT} upgrade --yes --json --wait 120 --to {TO} > /tmp/upgrade.out 2> /tmp/upgrade.err; echo $? > /tmp/upgrade.code"
        ),
    ]
    .map(str::to_owned);
    std::thread::scope(|scope| -> Result<()> {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let node = &node;
        let upgrading = scope.spawn(move || node.exec(&words, Limit::of(180)));
        Limit::of(60).wait(
            "the upgrade to be asked for",
            || Ok((node.get(&VERSION)?["spec"]["desiredUpdate"]["version"] == TO).then_some(())),
            || node.read("/tmp/upgrade.err").unwrap_or_default(),
        )?;
        let now = now();
        let version = node.get(&VERSION)?;
        let mut history = version["status"]["history"].as_array().cloned().unwrap_or_default();
        history.insert(
            0,
            json!({"state": "Completed", "version": TO, "image": "quay.io/x", "startedTime": now, "completionTime": now, "verified": true}),
        );
        let arrived = json!({"status": {"observedGeneration": version["metadata"]["generation"], "history": history}});
        ask(node, &status, &arrived, false)?.checked()?;
        upgrading.join().expect("the upgrade")?.checked().map(drop)
    })?;
    ensure!(node.read("/tmp/upgrade.code")?.trim() == "0", "{}", node.read("/tmp/upgrade.err")?);
    // The permission was for an upgrade from the release before, and it is still young.
    let next = json!({"spec": {"desiredUpdate": {"version": "4.99.1"}}});
    refused(&ask(&node, &VERSION, &next, true)?, &["the last one is of", "the cluster is at 4.99.0"])?;
    // From there on, the backup is of the release before.
    fails(&node, &["gate"], 1, &["it is of the release"])?;
    fails(&node, &["upgrade", "--yes", "--to", "4.99.1", "--wait", "15"], 69, &["has not arrived", "recover --backup"])?;
    // One that the operator does not take ends long before the deadline; it says so of whatever is asked for from now on.
    let no = json!({"type": "ReleaseAccepted", "status": "False", "reason": "RetrievePayload", "message": "no signature", "lastTransitionTime": now()});
    let mut conditions = node.get(&VERSION)?["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "ReleaseAccepted");
    conditions.push(no);
    ask(&node, &status, &json!({"status": {"observedGeneration": 1000, "conditions": conditions}}), false)?.checked()?;
    let began = Instant::now();
    let says = ["the upgrade to 4.99.2 is refused: no signature", "oc adm upgrade --clear"];
    fails(&node, &["upgrade", "--yes", "--to", "4.99.2", "--wait", "3000"], 69, &says)?;
    ensure!(began.elapsed() > Duration::from_secs(60), "{:?}: it may take it yet", began.elapsed());

    ok(&node, &["gate", "remove", "--yes"])?;
    ask(&node, &VERSION, &json!({"spec": {"desiredUpdate": {"version": "4.99.3"}}}), true)?.checked()?;
    Ok(())
}

/// From *upgrade wanted* to *gate open* is at most a fifth longer than a backup. On a machine that others use too the clock says little: it is the time of the
/// processor that is compared, of some pairs the best of each; by the clock there may be half a second more, as each answer of the API server takes its time.
fn no_slower_than_a_backup(node: &Node) -> Result<()> {
    let timed = |args: &[&str]| -> Result<[f64; 2]> {
        let script = "TIMEFORMAT='%R %U %S'; time \"$@\" > /dev/null 2> /tmp/timed";
        let done = node.exec(&[&["bash", "-c", script, "timed", AGENT], args].concat(), CALL)?;
        ensure!(done.code() == 0, "{}", node.read("/tmp/timed")?);
        let times: Vec<f64> =
            done.stderr.split_whitespace().map(str::parse).collect::<Result<_, _>>().with_context(|| done.stderr.clone())?;
        let [clock, user, system] = times[..] else { anyhow::bail!("{}", done.stderr) };
        let id = json_of(node, &["list"])?[0]["id"].as_str().context("no backup")?.to_owned();
        ok(node, &["delete", "--force", "--yes", &id])?;
        Ok([clock, user + system])
    };
    let (mut backup, mut gate) = ([f64::MAX; 2], [f64::MAX; 2]);
    for _ in 0..PAIRS {
        for (best, args) in [(&mut backup, &["backup"][..]), (&mut gate, &["gate", "--take"])] {
            let took = timed(args)?;
            *best = [best[0].min(took[0]), best[1].min(took[1])];
        }
        eprintln!(
            "a backup: {} s, {:.3} s of the processor; until the gate is open: {} s, {:.3} s",
            backup[0], backup[1], gate[0], gate[1]
        );
        if gate[1] <= backup[1] * 1.2 && gate[0] <= backup[0] * 1.2 + 0.5 {
            return Ok(());
        }
    }
    anyhow::bail!("of {PAIRS} backups and openings of the gate the best took {backup:?} and {gate:?} s, of the clock and of the processor")
}

/// A time, for what needs one.
fn now() -> &'static str {
    "2026-01-01T00:00:00Z"
}

fn json_of(node: &Node, args: &[&str]) -> Result<Value> {
    let done = agent(node, &[args, &["--json"]].concat())?.checked()?;
    serde_json::from_str(&done.stdout).with_context(|| done.stdout.clone())
}

//! The gate before an upgrade, as a pipeline has it: which backup opens it, and that waiting is seen.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json as value};

use crate::through::{Ended, command, ended, json, node, ok, run, start};
use testing::node::{Kind, Node, checked, wait_for};
use testing::place::Wrong;

const VERSION: &str = "/kubernetes.io/config.openshift.io/clusterversions/version";
const LABEL: &str = "k0rdent.mirantis.com/release-backup";

/// The ClusterVersion as the node's etcd has it.
fn cluster_version(node: &Node) -> Result<Value> {
    let (_, found) = node.keys()?.into_iter().find(|(key, _)| key == VERSION.as_bytes()).context("no ClusterVersion")?;
    Ok(serde_json::from_slice(&found)?)
}

/// The gate without `--wait`, which would wait for what is missing.
fn gate(node: &Node, args: &[&str]) -> Result<Ended> {
    Ok(node.run(&[&["gate"], args].concat())?.into())
}

fn closed(node: &Node, says: &[&str]) -> Result<()> {
    gate(node, &[])?.expect(1, &[&["no upgrade may begin from", "`recovery gate --take`"], says].concat()).map(drop)
}

fn open(node: &Node, id: &str) -> Result<()> {
    let passed = json(node, &["gate"])?;
    ensure!(passed["id"] == id && passed["taken_now"] == false, "{passed}");
    Ok(())
}

#[test]
fn only_a_good_backup_opens_it() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let release = cluster_version(&node)?["status"]["history"][0]["version"].as_str().context("no release")?.to_owned();
    closed(&node, &["there is no backup", &release])?;

    gate(&node, &["--take", "--for", "example-backup"])?.expect(78, &["there is no schedule `example-backup`"])?;
    ensure!(json(&node, &["list"])? == value!([]), "it took a backup first");
    ok(&node, &["schedule", "set", "example-backup", "--cron", "0 4 * * *"])?;
    let ended = gate(&node, &["--take", "--for", "example-backup", "--json"])?.expect(0, &["taking one"])?;
    let taken: Value = serde_json::from_str(&ended.out)?;
    ensure!(taken["release"] == release.as_str() && taken["taken_now"] == true, "{taken}");
    let id = taken["id"].as_str().context("no id")?.to_owned();
    open(&node, &id)?;
    // The one that is good is not taken again.
    ensure!(serde_json::from_str::<Value>(&gate(&node, &["--take", "--json"])?.expect(0, &[])?.out)?["id"] == id.as_str());
    let listed = json(&node, &["list", "-l", &format!("{LABEL}={release},k0rdent.mirantis.com/management-backup in (example-backup)")])?;
    ensure!(listed[0]["id"] == id.as_str() && listed[0]["name"] == format!("example-backup-{release}").as_str(), "{listed}");
    ensure!(json(&node, &["list", "-l", &format!("!{LABEL}")])? == value!([]));
    ensure!(ok(&node, &["list", "-l", LABEL, "-o", "name"])? == format!("{id}\n"));

    std::thread::sleep(Duration::from_secs(2));
    gate(&node, &["--max-age", "1s"])?.expect(1, &["longer ago than 1s"])?;
    gate(&node, &["--max-age", "0s"])?.expect(2, &["--max-age"])?;

    let pin = |how: &[&str]| checked(node.tool("ostree").args([&["admin", "pin"], how].concat())).map(drop);
    pin(&["--unpin", "0"])?;
    closed(&node, &["its deployment is not pinned"])?;
    pin(&["0"])?;
    open(&node, &id)?;

    let machine_id = node.at("/etc/machine-id");
    let was = std::fs::read(&machine_id)?;
    std::fs::write(&machine_id, "0123456789abcdef0123456789abcdef\n")?;
    closed(&node, &["the machine id is"])?;
    let shown = ok(&node, &["show", &id])?;
    ensure!(shown.contains("OtherNode") && shown.contains("the machine id is") && shown.contains("next: "), "{shown}");
    ensure!(ok(&node, &["list"])?.contains("OtherNode"));
    // One that another node took, of before an upgrade too, and newer: it pushes out none of this node's.
    let (ours, aside) = (node.at("/var/recovery/backups").join(&id), node.at("/var/recovery").join(&id));
    std::fs::rename(&ours, &aside)?;
    let other = serde_json::from_str::<Value>(&gate(&node, &["--take", "--json"])?.expect(0, &[])?.out)?["id"].clone();
    std::fs::rename(&aside, &ours)?;
    std::fs::write(&machine_id, was)?;
    ok(&node, &["prune", "--keep", "1", "--yes"])?;
    let left = json(&node, &["list"])?;
    ensure!(left[0]["id"] == other && left[1]["id"] == id.as_str(), "{left}");
    ok(&node, &["delete", "--force", "--yes", other.as_str().context("no id")?])?;
    open(&node, &id)?;

    let found = cluster_version(&node)?;
    let mut moving = found.clone();
    let conditions = moving["status"]["conditions"].as_array_mut().context("no conditions")?;
    conditions.iter_mut().filter(|condition| condition["type"] == "Progressing").for_each(|condition| condition["status"] = value!("True"));
    node.put_key(VERSION, &moving.to_string())?;
    gate(&node, &["--take"])?.expect(75, &["is being upgraded", &release])?;
    let mut arrived = found.clone();
    arrived["status"]["history"][0]["version"] = value!("4.99.0");
    node.put_key(VERSION, &arrived.to_string())?;
    closed(&node, &[&format!("it is of the release {release}, and the cluster is at 4.99.0")])?;
    node.put_key(VERSION, &found.to_string())?;
    open(&node, &id)?;

    let backup: PathBuf = node.at("/var/recovery/backups").join(&id);
    flip(&backup.join("etcd-snapshot.db.zst"))?;
    closed(&node, &["etcd-snapshot.db.zst is not what SHA256SUMS says"])?;
    flip(&backup.join("etcd-snapshot.db.zst"))?;
    open(&node, &id)?;
    ok(&node, &["delete", "--force", "--yes", &id])?;
    closed(&node, &["there is no backup"])
}

/// While the backup pins the deployment, which is near its end, this is done; how the gate then ends.
fn changed_meanwhile(node: &Node, change: impl FnOnce() -> Result<()>) -> Result<Ended> {
    let pins =
        || -> Result<usize> { Ok(node.calls()?.iter().filter(|call| call.tool == "ostree" && call.args.contains("admin pin")).count()) };
    let before = pins()?;
    node.fault("ostree", "admin pin", Some(1), Wrong::Slow(4000))?;
    let taking = start(node, &["gate", "--take", "--wait", "1"])?;
    wait_for("the backup to pin the deployment", || Ok(pins()? > before))?;
    change()?;
    ended(taking)
}

#[test]
fn what_changes_while_the_backup_is_taken_keeps_it_closed() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let found = cluster_version(&node)?;
    let mut moving = found.clone();
    let conditions = moving["status"]["conditions"].as_array_mut().context("no conditions")?;
    conditions.iter_mut().filter(|condition| condition["type"] == "Progressing").for_each(|condition| condition["status"] = value!("True"));
    changed_meanwhile(&node, || node.put_key(VERSION, &moving.to_string()))?.expect(69, &["taking one", "is being upgraded"])?;
    node.put_key(VERSION, &found.to_string())?;
    let backup = json(&node, &["list"])?[0]["id"].as_str().context("no backup")?.to_owned();
    open(&node, &backup)?;
    ok(&node, &["delete", "--force", "--yes", &backup])?;
    // One that has arrived meanwhile is where no backup leads back to.
    let mut arrived = found;
    arrived["status"]["history"][0]["version"] = value!("4.99.0");
    let says = ["no upgrade may begin from 4.99.0", "it is of the release", "and the cluster is at 4.99.0"];
    changed_meanwhile(&node, || node.put_key(VERSION, &arrived.to_string()))?.expect(1, &says).map(drop)
}

/// Changes a byte in the middle of a file, and back when it is called again.
fn flip(file: &std::path::Path) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

#[test]
fn waiting_is_seen_and_ends_with_the_backup_of_somebody_else() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    run(&node, &["gate", "--wait", "1"])?.expect(69, &["waited since", "there is no backup"])?;
    let mut waiting = command(&node, &["gate", "--wait", "120", "--json"])?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(waiting.stderr.take().context("no stderr")?);
    let mut line = String::new();
    while !line.contains("waiting since") {
        line.clear();
        ensure!(said.read_line(&mut line)? > 0, "it does not say that it waits");
    }
    ensure!(line.contains("there is no backup"), "{line}");
    let backup = json(&node, &["backup"])?;
    let ended = waiting.wait_with_output()?;
    let passed: Value = serde_json::from_slice(&ended.stdout)?;
    ensure!(ended.status.success() && passed["id"] == backup["manifest"]["id"] && passed["taken_now"] == false, "{passed}");
    ensure!(passed["waited"].as_f64().is_some_and(|seconds| seconds > 1.0), "{passed}");
    Ok(())
}

#[test]
fn an_api_server_without_policies_and_a_cluster_without_an_object_to_change() -> Result<()> {
    let (_temporary, openshift) = node(Kind::OpenShift, |_| ())?;
    run(&openshift, &["gate", "install"])?.expect(64, &["no ValidatingAdmissionPolicy", "`recovery gate --take`"])?;
    ensure!(ok(&openshift, &["gate", "status"])?.contains("not installed"));
    drop(openshift);
    let (_temporary, kubeadm) = node(Kind::Kubeadm, |_| ())?;
    run(&kubeadm, &["gate", "install"])?.expect(64, &["neither a ClusterVersion nor k0rdent's Management", "kubeadm upgrade apply"])?;
    run(&kubeadm, &["--yes", "upgrade", "--to", "v1.99.0"])?.expect(64, &["upgraded by hand", "kubeadm upgrade apply"])?;
    run(&kubeadm, &["upgrade", "--to", "v1.99.0"])?.expect(2, &["not confirmed"])?;
    ensure!(json(&kubeadm, &["list"])? == value!([]), "it took a backup first");
    ok(&kubeadm, &["backup"])?;
    // What is behind `&&` in a shell runs when the gate is open, and only then.
    let ask = || -> Result<String> {
        let mut shell = Command::new("sh");
        let gate = kubeadm.recovery()?;
        shell.args(["-c", "\"$@\" && echo upgraded", "sh"]).arg(gate.get_program()).args(gate.get_args()).arg("gate");
        shell.envs(gate.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(String::from_utf8_lossy(&shell.output()?.stdout).into_owned())
    };
    ensure!(ask()?.ends_with("upgraded\n"));
    let id = json(&kubeadm, &["list"])?[0]["id"].as_str().context("no backup")?.to_owned();
    ok(&kubeadm, &["delete", "--force", "--yes", &id])?;
    ensure!(ask()?.is_empty());
    Ok(())
}

//! What a backup looks at before it begins, as an administrator is told of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use etcd_client::MemberAddOptions;
use serde_json::json as value;

use crate::through::{json, node, ok, run};
use testing::node::{Kind, Node, checked};

const OPERATOR: &str = "/kubernetes.io/config.openshift.io/clusteroperators/machine-config";

fn sh(node: &Node, script: &str, args: &[&Path]) -> Result<()> {
    checked(Command::new("bash").args(["-euc", script, "bash"]).args(args).current_dir(node.root())).map(drop)
}

/// Takes a backup, of which this is to be said; the report.
fn taken(node: &Node, args: &[&str], says: &[&str]) -> Result<serde_json::Value> {
    let ended = run(node, &[&["--json", "backup"], args].concat())?.expect(0, says)?;
    serde_json::from_str(&ended.out).with_context(|| ended.out)
}

#[test]
fn a_cluster_that_is_not_at_rest() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    let (_, operator) = node.keys()?.into_iter().find(|(key, _)| key == OPERATOR.as_bytes()).context("no such operator")?;
    let mut operator: serde_json::Value = serde_json::from_slice(&operator)?;
    let conditions = operator["status"]["conditions"].as_array_mut().context("no conditions")?;
    conditions.iter_mut().filter(|condition| condition["type"] == "Progressing").for_each(|condition| condition["status"] = value!("True"));
    node.put_key(OPERATOR, &operator.to_string())?;
    let says = "not at rest: the operator machine-config (progressing or being rolled out)";
    run(&node, &["backup"])?.expect(75, &[says, "`oc get clusteroperators`", "--force"])?;
    ensure!(json(&node, &["list"])? == value!([]), "the refused backup left something");
    let forced = taken(&node, &["--force"], &[])?;
    ensure!(forced["warnings"].to_string().contains(says), "{forced}");
    let id = forced["manifest"]["id"].as_str().context("no id")?;
    ensure!(json(&node, &["verify", id])?[0]["good"] == true);
    Ok(())
}

#[test]
fn an_etcd_of_several_members() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    // One that only learns costs the other its majority as little as its vote.
    let learner = Some(MemberAddOptions::new().with_is_learner());
    let added = node.with_etcd(async |client| Ok(client.member_add(["https://127.0.0.1:1"], learner).await?))?;
    for args in [&["backup"][..], &["backup", "--force"]] {
        run(&node, args)?.expect(78, &["etcd has 2 members", "single node"])?;
    }
    ensure!(json(&node, &["list"])? == value!([]), "the refused backup left something");
    let id = added.member().context("no member")?.id();
    node.with_etcd(async |client| Ok(client.member_remove(id).await.map(drop)?))?;
    taken(&node, &[], &[]).map(drop)
}

#[test]
fn a_clock_that_is_not_set_and_no_room_for_another_kernel() -> Result<()> {
    let (temporary, node) = node(Kind::OpenShift, |_| ())?;
    let first = taken(&node, &["--name", "first"], &[])?;
    ensure!(!first["warnings"].to_string().contains("the clock says") && !first["warnings"].to_string().contains("/boot"), "{first}");
    // The newest backup is of a later time, as after a dead battery; so is the agent.
    let backup = node.at("/var/recovery/latest").canonicalize()?;
    let later = r#"cd $1; sed -i 's/"taken": "[^"]*"/"taken": "2099-01-01T00:00:00Z"/' manifest.json; rm SHA256SUMS; sha256sum -- * > .s; mv .s SHA256SUMS"#;
    sh(&node, later, &[&backup])?;
    let agent = node.recovery()?;
    let copy = temporary.path().join("agent");
    sh(&node, "install -m 755 $1 $2; touch -d 2098-01-01 $2", &[Path::new(agent.get_program()), &copy])?;
    // A pinned deployment keeps its kernel, and here is no room for another.
    sh(
        &node,
        "cp -a boot $1; mount -t tmpfs -o size=1m tmpfs boot; cp -a $1/. boot; dd if=/dev/zero of=boot/filler 2> /dev/null || :",
        &[&temporary.path().join("boot")],
    )?;
    let mut again = Command::new(&copy);
    again.args(agent.get_args()).args(["--json", "backup"]).envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let report: serde_json::Value = serde_json::from_str(&checked(&mut again)?)?;
    let warnings = report["warnings"].to_string();
    for words in
        ["before the newest backup was taken (2099-01-01", "before this agent was installed (2098-01-01", "/boot has 0 B free", "old pins"]
    {
        ensure!(warnings.contains(words), "it does not say `{words}`: {warnings}");
    }
    ensure!(report["manifest"]["sequence"] == 2, "the order is the sequence's, not the clock's: {report}");
    Ok(())
}

#[test]
fn a_control_plane_between_two_releases() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |_| ())?;
    let first = taken(&node, &["--name", "first"], &[])?;
    ensure!(first["manifest"]["cluster"]["progressing"] == false, "{first}");
    for (component, tag) in [("kube-controller-manager", "v1.30.2"), ("kube-scheduler", "v1.30.1")] {
        let path = node.at(&format!("/etc/kubernetes/manifests/{component}.yaml"));
        let image = format!("registry.example.com/release/{component}:");
        let manifest = std::fs::read_to_string(&path)?.replace(&format!("{image}4.16.4"), &format!("{image}{tag}"));
        ensure!(manifest.contains(tag), "{manifest}");
        std::fs::write(&path, manifest)?;
    }
    let says = "not at rest: the static pods, which are of v1.30.1 and v1.30.2 (`kubeadm upgrade` is at work, or stopped half-way)";
    run(&node, &["backup"])?.expect(75, &[says, "wait for it, or use --force"])?;
    // Nor is one on time.
    ok(&node, &["schedule", "set", "nightly", "--cron", "30 2 * * *"])?;
    run(&node, &["schedule", "run", "nightly"])?.expect(75, &[says])?;
    ensure!(json(&node, &["list"])?.as_array().is_some_and(|all| all.len() == 1), "what was refused left something");
    let second = taken(&node, &["--force", "--name", "second"], &[])?;
    ensure!(second["warnings"].to_string().contains(says) && second["manifest"]["cluster"]["progressing"] == true, "{second}");
    // No upgrade begins from there.
    run(&node, &["gate", "--wait", "1"])?.expect(69, &["is being upgraded"])?;

    // One that says nothing of a pod, as after a power cut: by force, all else is recorded.
    std::fs::write(node.at("/etc/kubernetes/manifests/kube-scheduler.yaml"), "")?;
    run(&node, &["backup"])?.expect(65, &["kube-scheduler.yaml is not the manifest of a pod"])?;
    let third = taken(&node, &["--force", "--name", "third"], &[])?;
    let says = "whether the static pods are all of one release is not known";
    ensure!(third["warnings"].to_string().contains(says) && third["manifest"]["cluster"]["version"].is_string(), "{third}");
    Ok(())
}

//! The whole way: a node is backed up, ruined by an upgrade, rolled back, restored over the reboot, and equal to what it was. The recovery
//! directory is a file system of its own, once with room and once nearly full.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::through::{ended, journal_says, json as report, node, noise, ok, ok_without_name_service};
use crate::through::{over_the_reboot, run, same, settled, start};
use testing::node::{Kind, Node, wait_for};

/// Requests that lie in etcd when the backup is taken, with a date of after the recovery. None is this node's kubelet's.
const REQUESTS: &str = "/kubernetes.io/certificatesigningrequests/";

fn foreign_request(node: &Node, name: &str, of: &str, asked_by: &str) -> Result<()> {
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name, "uid": "0", "creationTimestamp": "2099-01-01T00:00:00Z"},
        "spec": {
            "request": data_encoding::BASE64.encode(node.certificate_request(of)?.as_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
            "username": asked_by, "groups": ["system:authenticated"],
        },
    });
    node.put_key(&format!("{REQUESTS}{name}"), &request.to_string())
}

/// Each request in the cluster, and whether it was approved.
fn requests(node: &Node) -> Result<Vec<(String, bool)>> {
    let keys = node.keys()?.into_iter().map(|(key, value)| Ok((String::from_utf8(key)?, value)));
    let keys: Vec<(String, Vec<u8>)> = keys.collect::<Result<_>>()?;
    let of = |(key, value): &(String, Vec<u8>)| {
        let name = key.split_once("/certificatesigningrequests/")?.1.to_owned();
        let object: Value = serde_json::from_slice(value).ok()?;
        let approved = object["status"]["conditions"].as_array().is_some_and(|c| c.iter().any(|c| c["type"] == "Approved"));
        Some((name, approved))
    };
    Ok(keys.iter().filter_map(of).collect())
}

#[test]
fn an_openshift_node_is_what_it_was() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |options| (options.bootstrap, options.recovery_disk) = (true, Some(400)))?;
    foreign_request(&node, "csr-another-node", "another-node", "system:bootstrap:abcdef")?;
    foreign_request(&node, "csr-somebody", "sno-node-0", "system:serviceaccount:default:somebody")?;
    let kind = rustix::fs::statfs(node.at("/var/recovery"))?.f_type;
    ensure!(kind == 0x5846_5342, "/var/recovery is no XFS but {kind:x}");
    ok_without_name_service(&node, &["backup"])?;
    // After it: the backup has put the two files of the hold into /etc, and archived them.
    let before = node.snapshot()?;
    let asked_before: Vec<String> = requests(&node)?.into_iter().map(|(name, _)| name).collect();
    ensure!(asked_before.len() > 2, "kubelet has asked already, and nobody answered: {asked_before:?}");

    node.ruin()?;
    node.roll_back_platform()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    // One phase, to look at what was restored before the operators redeploy; then the rest.
    ok_without_name_service(&node, &["resume", "--step"])?;
    same(&node, &before)?;
    ok_without_name_service(&node, &["resume"])?;
    settled(&node)?;

    let now = requests(&node)?;
    let approved: Vec<&String> = now.iter().filter(|(_, approved)| *approved).map(|(name, _)| name).collect();
    ensure!(approved.len() == 2, "one as the bootstrapper and one as the node, not {approved:?}");
    ensure!(approved.iter().all(|name| !asked_before.contains(name)), "an old request was approved: {now:?}");
    ensure!(asked_before.iter().all(|name| now.iter().any(|(is, _)| is == name)), "a request is gone: {now:?}");
    let status = report(&node, &["status"])?;
    ensure!(status["run"].is_null(), "{status}");

    // What operators see of it.
    let told = report(&node, &["report"])?;
    ensure!(told["end"] == "finished" && told["without_journal"].is_null() && told["node"] == "sno-node-0", "{told}");
    let phases = told["phases"].as_array().context("no phases")?;
    ensure!(phases.iter().all(|phase| phase["seconds"].as_f64() > Some(0.0)), "{told}");
    let rebooted = &phases.iter().find(|phase| phase["phase"] == "restore-files").context("no such phase")?["reboots"][0];
    ensure!(rebooted["asked"].as_str() < rebooted["back"].as_str(), "{told}");
    let metrics = report(&node, &["metrics"])?;
    ensure!(metrics["errors"] == json!({}) && metrics["backups"]["good"]["id"] == told["backup"], "{metrics}");
    ensure!(metrics["last_run"]["exit"] == 0 && metrics["last_run"]["backup"] == told["backup"] && metrics["hold"] == false, "{metrics}");
    Ok(())
}

#[test]
fn what_kubelet_has_asked_for_before_the_agent_is_back_is_approved() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |options| options.bootstrap = true)?;
    ok(&node, &["backup"])?;
    let before = node.snapshot()?;
    let asked_before = requests(&node)?;
    node.ruin()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    // The agent waits for an API server that finds its port taken, when the power fails.
    let taken = std::net::TcpListener::bind(("127.0.0.1", node.ports().api))?;
    let agent = start(&node, &["resume"])?;
    journal_says(&node, "resume", "api-server-ready")?;
    node.power_cut()?;
    ended(agent)?;
    drop(taken);
    // The hold is lifted: kubelet comes with the boot.
    node.boot()?;
    let has_asked = || Ok(requests(&node).is_ok_and(|now| now.iter().any(|request| !asked_before.contains(request))));
    wait_for("kubelet to ask for its certificate", has_asked)?;
    // The API has whole seconds.
    std::thread::sleep(std::time::Duration::from_secs(2));
    ok(&node, &["resume"])?;
    same(&node, &before)?;
    settled(&node)
}

/// Fills the file system of `dir` until about `left` bytes are free. XFS gives back what was deleted a moment later.
fn leave_free(dir: &Path, left: u64) -> Result<()> {
    let mut filler = std::fs::File::options().create(true).append(true).open(dir.join("filler"))?;
    wait_for(&format!("{left} bytes to be free"), || {
        let free = rustix::fs::statvfs(dir).map(|stat| stat.f_bavail * stat.f_frsize)?;
        if free < left {
            filler.set_len(filler.metadata()?.len().saturating_sub(left - free))?;
        } else if free > left + (1 << 20) {
            std::io::copy(&mut std::io::repeat(0).take(free - left), &mut filler).context("filling the disk")?;
        }
        filler.sync_all()?;
        Ok(free.abs_diff(left) <= 1 << 20)
    })
}

#[test]
fn a_kubeadm_node_is_what_it_was_from_a_disk_that_is_nearly_full() -> Result<()> {
    let (_temporary, node) = node(Kind::Kubeadm, |options| options.recovery_disk = Some(400))?;
    let (disk, big) = (node.at("/var/recovery"), node.at("/var/lib/kubelet/big"));
    // A quarter of it does not compress: that is what the next one is thought to be like.
    noise(&big, 10)?;
    std::io::Write::write_all(&mut std::fs::File::options().append(true).open(&big)?, &vec![b'a'; 30 << 20])?;
    ok(&node, &["backup", "--name", "good"])?;
    let before = node.snapshot()?;
    let backups = || report(&node, &["list"]);
    let listed = backups()?;

    // No room at all: known before anything is written.
    leave_free(&disk, 3 << 20)?;
    noise(&big, 60)?;
    run(&node, &["backup"])?.expect(73, &["/var/recovery has", "are missing", "recovery prune"])?;
    ensure!(backups()? == listed, "the refused backup left something");
    // Room for what it is thought to take, and for a recovery, but nothing of it compresses.
    leave_free(&disk, 46 << 20)?;
    run(&node, &["backup"])?.expect(73, &["No space left on device", "unfinished backup was deleted", "untouched"])?;
    ensure!(backups()? == listed, "the backup that did not fit left something");
    ok(&node, &["verify", "good"])?;

    // A recovery needs no more than room for its journal.
    leave_free(&disk, 3 << 20)?;
    node.ruin()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    ok(&node, &["resume"])?;
    same(&node, &before)?;
    settled(&node)
}

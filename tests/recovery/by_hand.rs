//! The README's recovery without the agent, to the letter: its own commands, on the node's files, with tar, zstd, sha256sum and etcdutl.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::through::{CONTROL_PLANE, json, may_differ, names, node, ok};
use testing::etcd::{Etcd, Options as Start, Version};
use testing::node::{Kind, Node, checked};

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));

/// The blocks of commands: before the reboot, after it, and for the cluster's own script in place of etcdutl.
fn blocks() -> Result<[String; 3]> {
    let section =
        README.split("\n## ").find(|section| section.starts_with("Without the agent")).context("the README has no such section")?;
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match (line.strip_prefix("    "), blocks.last_mut()) {
            (Some(command), Some(block)) => *block += &format!("{command}\n"),
            (None, Some(block)) if !block.is_empty() => blocks.push(String::new()),
            _ => {}
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks.try_into().map_err(|blocks| anyhow::anyhow!("three blocks of commands are expected: {blocks:?}"))
}

/// Runs a script where the node's `/` is the root: `tar` and the others are this machine's, `systemctl` and `crictl` the node's, which run
/// where the test does.
fn on_the_node(node: &Node, script: &str) -> Result<()> {
    let (dir, programs) = (node.place().dir(), node.at("/run/programs"));
    std::fs::create_dir_all(&programs)?;
    let space = format!("/proc/{}/task/{}/ns/mnt", std::process::id(), rustix::thread::gettid().as_raw_nonzero());
    // Programs are copied by a child: what this process wrote, a child that another thread forks at that moment holds open, and it cannot be
    // run ("text file busy").
    let install = |from: &Path, tool| checked(Command::new("install").args(["-m", "755"]).args([from, &programs.join(tool)])).map(drop);
    let text_of_it = programs.join("text");
    for tool in ["systemctl", "crictl"] {
        let text = format!("#!/bin/sh\nEMULATED_NODE={0} exec nsenter --mount={space} {0}/tools/{tool} \"$@\"\n", dir.display());
        std::fs::write(&text_of_it, text)?;
        install(&text_of_it, tool)?;
    }
    install(&Version::V35.program("etcdutl")?, "etcdutl")?;
    let (root, inside) = (node.root(), dir.join("by-hand"));
    std::fs::create_dir_all(&inside)?;
    let mounts = "mount --rbind $1 $2; mount --bind /usr $2/usr; mount --rbind $1/var/usrlocal $2/usr/local
                  mount --rbind /dev $2/dev; mount --rbind /proc $2/proc
                  exec env -i PATH=/run/programs:/usr/sbin:/usr/bin HOME=/root chroot $2 bash -eu -o pipefail -c \"$3\"";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "bash", "-euc", mounts, "bash"]).args([&root, &inside]).arg(script);
    let output = unshare.output().context("running unshare")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{script}\nended with {}: {said}", output.status);
    Ok(())
}

#[test]
fn a_node_is_brought_back_by_the_readmes_commands() -> Result<()> {
    let etcd = Version::V35.program("etcd")?;
    let (_temporary, node) = node(Kind::OpenShift, |options| options.etcd = etcd)?;
    ok(&node, &["backup", "--name", "it"])?;
    let exported = tempfile::tempdir()?;
    let report = json(&node, &["export", "it", &exported.path().to_string_lossy()])?;
    ensure!(Some(report["to"].as_str().context("no text")?) == exported.path().to_str() && report["id"].is_string(), "{report}");
    etcdutl_takes(&node, &exported.path().join("cluster"))?;
    let before = node.snapshot()?;
    node.ruin()?;
    node.roll_back_platform()?;
    // Nothing of the agent is needed from here on.
    std::fs::remove_file(node.at("/var/recovery/recovery"))?;

    // tar replaces no file with that flag; whoever restores by hand has to see to it.
    checked(Command::new("chattr").arg("-a").args(["/etc/site/odd", "/usr/local/share/odd"].map(|odd| node.at(odd).join("append-only"))))?;

    let [first, second, cluster] = blocks()?;
    let (_, boots) = node.power()?;
    on_the_node(&node, &first)?;
    node.wait_boot(boots)?;
    on_the_node(&node, &cluster)?;
    same_for_the_script(&node.at("/root/cluster"), &exported.path().join("cluster"))?;
    let second = second.replace("NODE", "sno-node-0").replace("ADDRESS:2380", &format!("127.0.0.1:{}", node.ports().peer));
    on_the_node(&node, &second)?;
    node.wait_api()?;
    node.wait_containers(&CONTROL_PLANE)?;
    let mut differences = before.differences(&node.snapshot()?);
    differences.retain(|line| !may_differ(line) && !left_by_hand(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    // Files that cannot be changed are among what was exported.
    testing::node::clean(exported.path())
}

/// `cluster-restore.sh` takes the one as it takes the other: the same snapshot, and the same files of the static pods.
fn same_for_the_script(by_hand: &Path, exported: &Path) -> Result<()> {
    let script = "cmp $1/snapshot*.db $2/snapshot*.db
                  for dir in $1 $2; do mkdir $dir/out; tar -xzf $dir/static_kuberesources*.tar.gz -C $dir/out; done
                  diff -r $1/out $2/out; test $(ls $1/out/static-pod-resources | wc -l) = 4";
    let output = Command::new("bash").args(["-euc", script, "bash"]).args([by_hand, exported]).output()?;
    ensure!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// etcd's own tool takes the exported snapshot for one, and restores it: an etcd on that has every key of the backup.
fn etcdutl_takes(node: &Node, cluster: &Path) -> Result<()> {
    let name = names(cluster)?.into_iter().find(|name| name.starts_with("snapshot_")).context("no snapshot")?;
    let (snapshot, scratch) = (cluster.join(name), tempfile::tempdir()?);
    let data = scratch.path().join("data");
    let manifest = json(node, &["show", "it"])?["manifest"].take();
    let status = checked(Command::new(Version::V35.program("etcdutl")?).args(["snapshot", "status", "-w", "json"]).arg(&snapshot))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let ours = json(node, &["etcd", "status", &snapshot.to_string_lossy()])?;
    ensure!(status["hash"] == ours["hash"] && status["revision"] == ours["revision"], "{status}: {ours}");
    ensure!(status["revision"] == manifest["etcd"]["revision"] && ours["total_keys"] == manifest["etcd"]["keys"], "{manifest}: {ours}");
    checked(Version::V35.restorer()?.arg(&snapshot).arg("--data-dir").arg(&data))?;
    let etcd = Etcd::start(Version::V35, &data, &Start::default())?;
    ensure!(manifest["etcd"]["keys"] == etcd.contents()?.len(), "it holds {} keys: {manifest}", etcd.contents()?.len());
    Ok(())
}

/// As the README says: files that the upgrade added stay, and tar knows no `chattr`. The manifests were moved away and back.
fn left_by_hand(line: &str) -> bool {
    let was_and_is = line.split_once(": was ").and_then(|(_, rest)| rest.split_once(", is "));
    let lost_its_flag = was_and_is
        .is_some_and(|(was, is)| [" immutable", " append-only"].iter().any(|flag| was.strip_suffix(flag).is_some_and(|was| was == is)));
    line.starts_with('/') && (line.ends_with(": is new") || lost_its_flag || line.starts_with("/etc/kubernetes/manifests: was 04"))
}

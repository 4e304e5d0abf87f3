//! What upgrade-recovery.sh left is listed, checked, shown, and brings a node back; so does a backup of the agent's that was exported.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::through::{json, names, node, ok, over_the_reboot, run, same};
use testing::etcd::Version;
use testing::node::{Kind, Node, Snapshot, checked};

const DATE: &str = "2026-05-01_120000__POSSIBLY_DIRTY__";

fn sh(folder: &Path, script: &str) -> Result<String> {
    checked(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(folder))
}

/// Takes a backup as the old script does, with the same programs.
fn old_backup(node: &Node) -> Result<()> {
    let (to, pki) = (node.at("/var/recovery"), node.place().dir().join("pki"));
    std::fs::create_dir_all(to.join("cluster"))?;
    std::fs::set_permissions(&to, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    checked(node.tool("ostree").args(["admin", "pin", "0"]))?;
    let mut etcdctl = Command::new(Version::V34.program("etcdctl")?);
    etcdctl.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://127.0.0.1:{}", node.ports().etcd));
    for (flag, file) in [("cacert", "etcd-ca.crt"), ("cert", "etcd-client.crt"), ("key", "etcd-client.key")] {
        etcdctl.arg(format!("--{flag}={}", pki.join(file).display()));
    }
    checked(etcdctl.args(["snapshot", "save"]).arg(to.join(format!("cluster/snapshot_{DATE}.db"))))?;
    let config: Value = serde_json::from_slice(&std::fs::read(node.at("/etc/machine-config-daemon/currentconfig"))?)?;
    let files = config["spec"]["config"]["storage"]["files"].as_array().context("no files are managed")?;
    let managed = files.iter().filter_map(|file| file["path"].as_str());
    let extras: Vec<&str> =
        managed.filter(|path| !["/etc/", "/usr/local/", "/var/lib/kubelet/"].iter().any(|tree| path.starts_with(tree))).collect();
    let extras: Vec<&str> = extras.iter().map(|path| path.trim_start_matches('/')).collect();
    let script = format!(
        "to=var/recovery
         tar -cpzf $to/cluster/static_kuberesources_{DATE}.tar.gz -C etc/kubernetes static-pod-resources/etcd-pod-3 \
           static-pod-resources/kube-apiserver-pod-8 static-pod-resources/kube-controller-manager-pod-6 static-pod-resources/kube-scheduler-pod-5
         cat etc/tmpfiles.d/* | sed 's/#.*//' | awk '{{print $2}}' | grep '^/etc/' | sed 's#^/etc/##' > $to/etc.exclude.list
         echo .updated >> $to/etc.exclude.list; echo kubernetes/manifests >> $to/etc.exclude.list
         echo 'site/of-this-*.conf' >> $to/etc.exclude.list
         cp -Ra etc/ $to/; cp -Ra usr/local/ $to/; cp -Ra var/lib/kubelet/ $to/
         tar czf $to/extras.tgz {}",
        extras.join(" ")
    );
    sh(&node.root(), &script).map(drop)
}

/// What `before` becomes when it went through the old layout: its copies know no immutable flag, its tar archives whole seconds.
fn as_the_old_layout_keeps_it(mut before: Snapshot) -> Snapshot {
    for (path, attributes) in &mut before.files {
        *attributes = attributes.replace(" immutable", "").replace(" append-only", "");
        if path.starts_with("/var/lib/site") || path.starts_with("/var/opt") {
            let words = attributes.split(' ').map(|word| match word.split_once('.') {
                Some((seconds, rest)) if seconds.parse::<i64>().is_ok() && rest.len() == 9 => format!("{seconds}.000000000"),
                _ => word.to_owned(),
            });
            *attributes = words.collect::<Vec<_>>().join(" ");
        }
    }
    before
}

#[test]
fn a_backup_of_the_old_script_and_an_exported_one_bring_a_node_back() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    // Of the three that the list of exclusions names one was there then, one is there now, and one was and is.
    let [was, is, was_and_is] = ["was", "is", "was-and-is"].map(|when| node.at(&format!("/etc/site/of-this-node-{when}.conf")));
    for file in [&was, &was_and_is] {
        std::fs::write(file, "of the backup\n")?;
    }
    old_backup(&node)?;
    let site = std::fs::File::open(node.at("/etc/site"))?;
    let time = site.metadata()?.modified()?;
    for file in [&is, &was_and_is] {
        std::fs::write(file, "of now\n")?;
    }
    std::fs::remove_file(was)?;
    // The directory's time is the backup's.
    site.set_modified(time)?;
    let before = node.snapshot()?;
    let listed = json(&node, &["list"])?;
    ensure!(listed[0]["id"] == "upgrade-recovery" && listed[0]["state"] == "legacy", "{listed}");
    ensure!(json(&node, &["verify"])?[0]["good"] == true);
    let shown = ok(&node, &["show", "upgrade-recovery"])?;
    for words in ["2026-05-01T12:00:00Z", "upgrade-recovery.sh", "cluster", "etc", "local", "kubelet", "extras.tgz"] {
        ensure!(shown.contains(words), "{words} is not in\n{shown}");
    }
    ensure!(!names(&node.at("/var/recovery"))?.contains(&"backups".to_owned()), "reports import nothing");

    node.ruin()?;
    // It records no deployment: the pinned one is meant.
    run(&node, &["restore-files", "--yes"])?.expect(78, &["rollback slot", "next: `recovery platform --rollback`"])?;
    node.roll_back_platform()?;
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    ensure!(node.at("/var/recovery/recovery").exists(), "the unit has nothing to run");
    ok(&node, &["--resume", "--step"])?;
    // What was excluded is as it was, too, and not as in the backup.
    same(&node, &as_the_old_layout_keeps_it(before))?;
    ok(&node, &["abandon", "--yes"])?;

    // Now one of the agent's own; what is restored is its export, in a recovery directory that holds nothing else.
    ok(&node, &["backup", "--name", "own"])?;
    let before = node.snapshot()?;
    let exported = node.at("/var/exported");
    ok(&node, &["export", "own", exported.to_str().context("a path that is no text")?])?;
    node.ruin()?;
    node.roll_back_platform()?;
    over_the_reboot(&node, &["--dir", "/var/exported", "restore-files", "--backup", "upgrade-recovery", "--reboot", "--yes"])?;
    ok(&node, &["--dir", "/var/exported", "resume", "--step"])?;
    same(&node, &as_the_old_layout_keeps_it(before))?;
    ok(&node, &["--dir", "/var/exported", "abandon", "--yes"]).map(drop)
}

//! `--etcd-restore=cluster-restore`: etcd comes back by the cluster's own script, which fails in its own ways.

use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Result, ensure};

use crate::through::{json, node, ok, over_the_reboot, run, same};
use testing::node::Kind;
use testing::place::Wrong;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recovery/cluster-restore.sh");

#[test]
fn etcd_comes_back_by_the_clusters_own_script() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    symlink("/bin/bash", node.place().tools().join("bash"))?;
    ok(&node, &["backup", "--name", "without"])?;
    let begin = ["restore-files", "--etcd-restore", "cluster-restore", "--reboot", "--yes"];
    run(&node, &begin)?.expect(78, &["holds no /usr/local/bin/cluster-restore.sh", "leave --etcd-restore away"])?;
    std::fs::copy(SCRIPT, node.at("/var/usrlocal/bin/cluster-restore.sh"))?;
    std::fs::set_permissions(node.at("/var/usrlocal/bin/cluster-restore.sh"), std::fs::Permissions::from_mode(0o755))?;
    ok(&node, &["backup"])?;
    let before = node.snapshot()?;
    let manifest = node.at("/etc/kubernetes/manifests/etcd-pod.yaml");
    let written = manifest.metadata()?.modified()?;
    node.ruin()?;
    node.roll_back_platform()?;
    over_the_reboot(&node, &begin)?;

    // It waits for ever; the agent does not.
    node.fault("crictl", "ps -q", None, Wrong::Print("0123456789ab\n".to_owned()))?;
    run(&node, &["--wait", "10", "resume", "--step"])?
        .expect(69, &["step etcd-data failed", "cluster-restore.sh", "did not end within 10 s"])?;
    node.clear_faults()?;
    // It says what it does not like.
    let stray = node.at("/var/lib/etcd/revision.json");
    std::fs::write(&stray, "{}")?;
    run(&node, &["resume", "--step"])?
        .expect(1, &["step etcd-data failed", "exit status 1", "holds revision.json: it is not empty", "next: "])?;
    std::fs::remove_file(&stray)?;
    ensure!(node.at("/var/lib/recovery/hold-kubelet").exists() && !manifest.exists());
    let done = json(&node, &["resume", "--step"])?;
    ensure!(done["outcome"] == "phase-done", "{done}");
    // The manifest is the script's to write, and its archive knows whole seconds at most.
    std::fs::File::options().append(true).open(&manifest)?.set_modified(written)?;
    same(&node, &before)?;
    ensure!(node.at("/var/lib/etcd-backup/member").is_dir(), "it was another that restored etcd");
    ensure!(!node.at("/var/recovery/cluster-restore").exists(), "the layout made for the script is left");
    ok(&node, &["abandon", "--yes"]).map(drop)
}

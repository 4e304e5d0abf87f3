//! The whole way: a node is backed up, ruined by an upgrade, rolled back, restored over the reboot, and equal to what it was.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use recovery::backup;
use recovery::node::dir::RecoveryDir;
use recovery::recovery::{Asked, Options, Outcome, ResumeOptions, Wait};
use recovery::report::Progress;

use crate::node::{Kind, Node, Options as NodeOptions};
use crate::real_etcd;

const WAIT: Duration = Duration::from_secs(60);

/// What the recovery itself writes into the cluster: operators redeploy, and everything that runs reports that it does.
const OF_THE_RECOVERY: [&str; 4] = ["/operator.openshift.io/", "/pods/", "/certificatesigningrequests/", "/minions/"];

/// Directories that no archive holds, only files in them.
const TIMES_OF_OTHERS: [&str; 3] = ["/var/lib/kubelet/pods", "/var/lib/site", "/var/opt/site"];

pub(crate) fn taken(node: &Node, dir: &RecoveryDir) -> Result<()> {
    let options = backup::take::TakeOptions {
        name: None,
        labels: std::collections::BTreeMap::new(),
        force: false,
        keep: 3,
        wait: WAIT,
        asked_by: backup::asked_by::AskedBy::this_process(),
    };
    dir.prepare()?;
    let _lock = dir.lock("backup")?;
    backup::take(&node.agent(), dir, &options, &Progress::hidden()).map(drop)
}

fn there_and_back(kind: Kind) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let node = Node::build(temporary.path(), &NodeOptions::new(kind, &real_etcd::Version::V34.program("etcd")?))?;
    node.wait_containers(&["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"])?;
    let agent = node.agent();
    let dir = RecoveryDir::new(&agent, Path::new("/var/recovery"));
    taken(&node, &dir)?;
    // After it: the backup has put the two files of the hold into /etc, and archived them.
    let before = node.snapshot()?;
    node.ruin()?;
    if kind == Kind::OpenShift {
        node.roll_back_platform()?;
    }
    let progress = Progress::hidden();
    let asked = Asked { reboot: true, ..Asked::default() };
    let (_, boots) = node.power()?;
    let report = recovery::recovery::plan(&agent, &dir, Options { asked, wait: Wait(WAIT), ..Options::default() }, &progress)?.begin()?;
    ensure!(report.outcome == Outcome::Rebooting, "{:?}", report.outcome);
    node.wait_boot(boots)?;
    // One phase, to look at what was restored before the operators redeploy; then the rest.
    let wait = Wait(WAIT);
    let resume = |step| {
        let report = recovery::recovery::resume(&agent, &dir, &ResumeOptions { step, unit: false, wait }, &progress)?;
        report.context("no recovery is in progress").map(|report| report.outcome)
    };
    let outcome = resume(true)?;
    ensure!(outcome == Outcome::PhaseDone, "{outcome:?}");
    let mut differences = before.differences(&node.snapshot()?);
    differences.retain(|line| !may_differ(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    let outcome = resume(false)?;
    ensure!(outcome == Outcome::Finished, "{outcome:?}");
    ensure!(!dir.in_recovery() && !dir.undo().exists() && !node.at("/var/lib/recovery/hold-kubelet").exists());
    ensure!(std::fs::read_dir(node.at("/var/lib/etcd"))?.count() == 1, "the etcd data from before is cleared away");
    Ok(())
}

/// What runs again writes of itself, and the times of directories above managed files, which are nobody's.
pub(crate) fn may_differ(line: &str) -> bool {
    let of_the_cluster = line.starts_with("key ") && OF_THE_RECOVERY.iter().any(|part| line.contains(part));
    of_the_cluster || TIMES_OF_OTHERS.iter().any(|path| line.starts_with(&format!("{path}: was 04")))
}

#[test]
fn an_openshift_node_is_what_it_was() -> Result<()> {
    there_and_back(Kind::OpenShift)
}

#[test]
fn a_kubeadm_node_is_what_it_was() -> Result<()> {
    there_and_back(Kind::Kubeadm)
}

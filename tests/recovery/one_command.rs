//! `recover`: from the failed release to the backup, over both reboots, with the deployments as they are found.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use recovery::error::exit_code;
use recovery::node::dir::RecoveryDir;
use recovery::recovery::machine::Phase;
use recovery::recovery::{Asked, From, Options, Outcome, ResumeOptions, Wait};
use recovery::report::Progress;
use recovery::tools::ostree;

use crate::node::{Kind, Node, Options as NodeOptions};
use crate::real_etcd;
use crate::whole::{may_differ, taken};

const WAIT: Wait = Wait(Duration::from_secs(60));

fn options(from: From, step: bool) -> Options {
    Options { asked: Asked { reboot: true, step, ..Asked::default() }, wait: WAIT, from, ..Options::default() }
}

/// What the operators' new revisions change, in files and keys.
const REDEPLOYED: [&str; 5] = ["/static-pod-resources", "/manifests", "/kubelet/pods", "/clusteroperators/", "-pod-"];

/// A node of the failed release, with a backup of the one before.
fn failed(temporary: &Path) -> Result<(Node, RecoveryDir, crate::node::Snapshot)> {
    let node = Node::build(temporary, &NodeOptions::new(Kind::OpenShift, &real_etcd::Version::V35.program("etcd")?))?;
    node.wait_containers(&["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"])?;
    let dir = RecoveryDir::new(&node.agent(), Path::new("/var/recovery"));
    taken(&node, &dir)?;
    let before = node.snapshot()?;
    node.ruin()?;
    Ok((node, dir, before))
}

/// The unit at the next boot.
fn boot(node: &Node, dir: &RecoveryDir, boots: u32) -> Result<Outcome> {
    node.wait_boot(boots)?;
    let report =
        recovery::recovery::resume(&node.agent(), dir, &ResumeOptions { step: false, unit: true, wait: WAIT }, &Progress::hidden())?;
    report.context("no recovery is in progress").map(|report| report.outcome)
}

#[test]
fn one_command_rolls_back_restores_and_continues_over_both_reboots() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (node, dir, before) = failed(temporary.path())?;
    let agent = node.agent();
    let (_, boots) = node.power()?;
    let hidden = Progress::hidden();
    let proposal = recovery::recovery::plan(&agent, &dir, options(From::Platform, false), &hidden)?;
    ensure!(proposal.report.phases[0].phase == Phase::Platform && proposal.report.phases[0].reboot);
    ensure!(proposal.begin()?.outcome == Outcome::Rebooting);
    ensure!(boot(&node, &dir, boots)? == Outcome::Rebooting, "the files are restored on the target");
    ensure!(node.at("/var/lib/recovery/hold-kubelet").exists());
    ensure!(boot(&node, &dir, boots + 1)? == Outcome::Finished);
    let first = ostree::deployments(&agent)?.into_iter().next().context("no deployments")?;
    ensure!(first.booted && first.pinned, "{first}");
    let mut differences = before.differences(&node.snapshot()?);
    let of_the_redeployment = |line: &String| REDEPLOYED.iter().any(|part| line.contains(part));
    differences.retain(|line| !may_differ(line) && !of_the_redeployment(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    ensure!(!dir.in_recovery() && !dir.undo().exists() && !node.at("/var/lib/recovery/hold-kubelet").exists());
    Ok(())
}

#[test]
fn the_platform_by_itself_leaves_the_files_to_a_person() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (node, dir, _) = failed(temporary.path())?;
    let agent = node.agent();
    let hidden = Progress::hidden();
    let refused = recovery::recovery::plan(&agent, &dir, options(From::Files, false), &hidden).err().context("the target is not booted")?;
    ensure!(exit_code(&refused) == 78 && refused.to_string().contains("recovery platform --rollback"), "{refused:#}");
    let (_, boots) = node.power()?;
    ensure!(recovery::recovery::plan(&agent, &dir, options(From::Platform, true), &hidden)?.begin()?.outcome == Outcome::Rebooting);
    ensure!(boot(&node, &dir, boots)? == Outcome::LeftToAPerson);
    // What comes next begins a run of its own, which goes on by itself.
    let (_, boots) = node.power()?;
    ensure!(recovery::recovery::plan(&agent, &dir, options(From::Files, false), &hidden)?.begin()?.outcome == Outcome::Rebooting);
    ensure!(boot(&node, &dir, boots)? == Outcome::Finished);
    let journals =
        std::fs::read_dir(dir.history())?.filter_map(Result::ok).filter(|e| e.path().extension().is_some_and(|e| e == "progress"));
    ensure!(journals.count() == 2, "the run of the platform, and the one that took its place");
    Ok(())
}

//! `recover`: from the failed release to the backup, over both reboots, with the deployments as they are found.

use anyhow::{Result, ensure};

use crate::node::place::Wrong;
use crate::node::{Kind, Node};
use crate::through::{json, may_differ, names, node, ok, over_the_reboot, run, settled};

/// What the operators' new revisions change, in files and keys.
const REDEPLOYED: [&str; 5] = ["/static-pod-resources", "/manifests", "/kubelet/pods", "/clusteroperators/", "-pod-"];

/// How far the run came in this boot, as the unit's agent reports it.
fn by_the_unit(node: &Node) -> Result<String> {
    Ok(json(node, &["resume", "--unit"])?["outcome"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn one_command_rolls_back_restores_and_continues_over_both_reboots() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    let before = node.snapshot()?;
    node.ruin()?;
    over_the_reboot(&node, &["recover", "--yes"])?;
    ensure!(node.at("/var/lib/recovery/hold-kubelet").exists());
    let (_, boots) = node.power()?;
    ensure!(by_the_unit(&node)? == "rebooting", "the files are restored on the target");
    node.wait_boot(boots)?;
    ensure!(by_the_unit(&node)? == "finished");
    let table = json(&node, &["platform"])?;
    ensure!(table["deployments"][0]["booted"] == true && table["deployments"][0]["pinned"] == true, "{table}");
    let mut differences = before.differences(&node.snapshot()?);
    let of_the_redeployment = |line: &String| REDEPLOYED.iter().any(|part| line.contains(part));
    differences.retain(|line| !may_differ(line) && !of_the_redeployment(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    settled(&node)
}

#[test]
fn the_platform_by_itself_leaves_the_files_to_a_person() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    run(&node, &["restore-files", "--yes"])?.expect(78, &["recovery platform --rollback"])?;
    over_the_reboot(&node, &["platform", "--rollback", "--yes"])?;
    ensure!(by_the_unit(&node)? == "left-to-a-person");
    // What comes next begins a run of its own, which goes on by itself.
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    ensure!(by_the_unit(&node)? == "finished");
    let journals = names(&node.at("/var/recovery/history"))?.into_iter().filter(|name| name.ends_with(".progress")).count();
    ensure!(journals == 2, "the run of the platform, and the one that took its place");
    settled(&node)
}

#[test]
fn another_deployment_than_the_backups_after_the_reboot_is_not_restored_into() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    over_the_reboot(&node, &["recover", "--yes"])?;
    // Somebody chooses the other entry of the boot menu.
    node.roll_back_platform()?;
    let says = ["phase restore-files, step deployment failed", "roll back and reboot", "next: `recovery restart`"];
    run(&node, &["resume", "--unit"])?.expect(78, &says)?;
    ensure!(json(&node, &["status"])?["run"]["failure"].as_str().is_some_and(|cause| cause.contains("`recovery restart`")));
    // Asked for again, the recovery begins again, with the deployment.
    let (_, boots) = node.power()?;
    run(&node, &["recover", "--yes"])?.expect(0, &["It takes the place of the open recovery", "platform: rolling back"])?;
    node.wait_boot(boots)?;
    let (_, boots) = node.power()?;
    ensure!(by_the_unit(&node)? == "rebooting", "the files are restored on the target");
    node.wait_boot(boots)?;
    ensure!(by_the_unit(&node)? == "finished");
    settled(&node)
}

#[test]
fn a_rollback_that_fails_is_tried_again_and_never_taken_back() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    let pinned_and_next = || -> Result<bool> {
        let table = json(&node, &["platform"])?;
        Ok(table["deployments"][0]["pinned"] == true && table["deployments"][0]["booted"] == false)
    };
    let says = ["phase platform, step roll-back failed", "rpm-ostree rollback`", "next: put the cause right and `recovery resume`"];

    let cause = "error: Bootloader write config: Regfile copy: No space left on device";
    node.fault("rpm-ostree", "rollback", Some(1), Wrong::Fail(cause.to_owned(), 1))?;
    run(&node, &["recover", "--yes"])?.expect(1, &[&says[..], &[cause]].concat())?;
    ensure!(!pinned_and_next()? && node.at("/var/lib/recovery/hold-kubelet").exists());

    // It has done it all the same, and says that it failed: done again, it would boot the failed release.
    let cause = "error: Timeout was reached";
    node.fault("rpm-ostree", "rollback", Some(1), Wrong::FailAfter(cause.to_owned(), 1))?;
    run(&node, &["resume"])?.expect(1, &[&says[..], &[cause]].concat())?;
    ensure!(pinned_and_next()?);
    over_the_reboot(&node, &["resume"])?;
    let (_, boots) = node.power()?;
    ensure!(by_the_unit(&node)? == "rebooting", "the files are restored on the target");
    node.wait_boot(boots)?;
    ensure!(by_the_unit(&node)? == "finished");
    settled(&node)
}

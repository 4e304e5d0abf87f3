//! `recover`: from the failed release to the backup, over both reboots, with the deployments as they are found.

use std::path::Path;

use anyhow::{Result, ensure};
use recovery::node::dir::{DEFAULT, RecoveryDir};
use recovery::node::recovery_mount::{BY_PARTLABEL, make};

use crate::through::{json, may_differ, names, node, of_the_redeployment, ok, over_the_reboot, run, settled};
use testing::node::{Kind, Node, checked};
use testing::place::Wrong;

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
    let report = json(&node, &["resume", "--unit"])?;
    ensure!(report["outcome"] == "finished", "{report}");
    let step = |name: &str| report["run"]["phases"][2]["steps"].as_array().and_then(|all| all.iter().find(|s| s["name"] == name)).cloned();
    let booted = step("deployment").map(|step| step["figures"]["rebooted_into"].clone());
    ensure!(booted.as_ref().is_some_and(|name| name.as_str().is_some_and(|name| name.starts_with("rhcos "))), "rebooted into {booted:?}");
    let table = json(&node, &["platform"])?;
    ensure!(table["deployments"][0]["booted"] == true && table["deployments"][0]["pinned"] == true, "{table}");
    let mut differences = before.differences(&node.snapshot()?);
    differences.retain(|line| !may_differ(line) && !of_the_redeployment(line));
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    settled(&node)
}

/// The unit that mounts the recovery directory was made after the upgrade: neither the `/etc` of the backup's deployment nor the backup's own has it.
#[test]
fn a_partition_that_was_made_after_the_upgrade_is_mounted_over_both_reboots() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |options| options.recovery_disk = Some(400))?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    let agent = node.agent();
    make(&agent, &RecoveryDir::new(&agent, Path::new(DEFAULT)), BY_PARTLABEL)?;
    let units = ["/etc/systemd/system/var-recovery.mount", "/etc/systemd/system/local-fs.target.wants/var-recovery.mount"];
    let has_it = || units.iter().all(|unit| node.at(unit).symlink_metadata().is_ok());
    ensure!(has_it());
    over_the_reboot(&node, &["recover", "--yes"])?;
    ensure!(has_it(), "the deployment of before the partition does not mount it");
    let (_, boots) = node.power()?;
    ensure!(by_the_unit(&node)? == "rebooting");
    node.wait_boot(boots)?;
    ensure!(has_it(), "the restored /etc does not mount it");
    ensure!(by_the_unit(&node)? == "finished");
    settled(&node)
}

#[test]
fn the_platform_by_itself_leaves_the_files_to_a_person() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    std::fs::create_dir_all(node.at("/etc/crio/crio.conf.d"))?;
    std::fs::write(node.at("/etc/crio/crio.conf.d/50-site"), "[crio]\nversion_file_persist = \"/var/lib/crio/version\"\n")?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    run(&node, &["restore-files", "--yes"])?.expect(78, &["recovery platform --rollback"])?;
    // The failed release's CRI-O ran last; what cannot be removed of its containers costs the older one their images.
    std::fs::write(node.at("/var/lib/crio/version"), "\"1.30.1+unknown\"")?;
    node.fault("crictl", "rmp", None, Wrong::Fail("as told".to_owned(), 1))?;
    over_the_reboot(&node, &["platform", "--rollback", "--yes"])?;
    node.clear_faults()?;
    let warnings = json(&node, &["status"])?["run"]["warnings"].to_string();
    ensure!(warnings.contains("CRI-O 1.29, of the backup's release, deletes them because the one that ran last (1.30)"), "{warnings}");
    ensure!(by_the_unit(&node)? == "left-to-a-person");
    // What comes next begins a run of its own, which goes on by itself.
    over_the_reboot(&node, &["restore-files", "--reboot", "--yes"])?;
    ensure!(by_the_unit(&node)? == "finished");
    let journals = names(&node.at("/var/recovery/history"))?.into_iter().filter(|name| name.ends_with(".progress")).count();
    ensure!(journals == 2, "the run of the platform, and the one that took its place");
    settled(&node)
}

#[test]
fn a_rollback_that_was_only_reported_is_done_by_the_next_resume() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    node.fault("rpm-ostree", "rollback", Some(1), Wrong::Print(String::new()))?;
    run(&node, &["recover", "--yes"])?.expect(1, &["step roll-back failed: `rpm-ostree rollback` reported success, but", "next: "])?;
    over_the_reboot(&node, &["resume"])?;
    ensure!(json(&node, &["platform"])?["deployments"][0]["booted"] == true);
    Ok(())
}

#[test]
fn another_deployment_than_the_backups_after_the_reboot_is_not_restored_into() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    over_the_reboot(&node, &["recover", "--yes"])?;
    // Somebody chooses the other entry of the boot menu.
    node.roll_back_platform()?;
    let failed = "phase restore-files, step deployment failed: the node has rebooted, but it booted rhcos ";
    // It was chosen for this once: the boot loader would boot the right one.
    checked(node.tool("rpm-ostree").arg("rollback"))?;
    run(&node, &["resume", "--unit"])?.expect(78, &[failed, "is pending: reboot", "next: `systemctl reboot`"])?;
    checked(node.tool("rpm-ostree").arg("rollback"))?;
    run(&node, &["resume", "--unit"])?.expect(78, &[failed, "roll back and reboot", "next: `recovery restart`"])?;
    ensure!(json(&node, &["status"])?["next"].as_str().is_some_and(|next| next.contains("`recovery restart`")));
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

/// As ostree 2026.4 does in a soft reboot into a deployment that was dropped: the boot id is the same, and it cannot be asked.
#[test]
fn a_soft_reboot_is_not_the_reboot_that_was_asked_for() -> Result<()> {
    let (_dir, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    // It is asked for, and what comes is the other.
    node.fault("systemctl", "reboot", Some(1), Wrong::Print(String::new()))?;
    ok(&node, &["recover", "--yes"])?;
    let lost = "error: loading sysroot: Unexpected state: /run/ostree-booted found and in / sysroot, but bootloader entry not found";
    node.fault("systemctl", "SoftRebootsCount", None, Wrong::Print("SoftRebootsCount=1\n".to_owned()))?;
    node.fault("ostree", "admin status", None, Wrong::Fail(lost.to_owned(), 1))?;
    let (_, boots) = node.power()?;
    run(&node, &["resume", "--unit"])?.expect(0, &["gone through a soft reboot", "the reboot is asked for again"])?;
    node.wait_boot(boots)?;
    node.clear_faults()?;
    // In the middle of a phase, it is named with the way out.
    node.fault("systemctl", "SoftRebootsCount", None, Wrong::Print("SoftRebootsCount=1\n".to_owned()))?;
    node.fault("ostree", "admin status", None, Wrong::Fail(lost.to_owned(), 1))?;
    let says = [
        "phase restore-files, step deployment failed",
        "bootloader entry not found",
        "soft reboot",
        "next: `systemctl reboot`, then run the same command again",
    ];
    run(&node, &["resume", "--unit"])?.expect(78, &says)?;
    node.clear_faults()?;
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

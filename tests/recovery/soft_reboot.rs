//! A prepared soft reboot (`/run/nextroot`): a plain reboot would go into it, past the boot loader and the deployment that was checked.

use anyhow::{Result, ensure};

use crate::through::{ended, json, node, ok, run, settled, start};
use testing::node::{Kind, Node, checked, wait_for};
use testing::place::Wrong;

fn prepare(node: &Node, index: &str) -> Result<()> {
    checked(node.tool("ostree").args(["admin", "prepare-soft-reboot", index])).map(drop)
}

/// The version that is booted.
fn booted(node: &Node) -> Result<String> {
    let table = json(node, &["platform"])?;
    let booted = table["deployments"].as_array().into_iter().flatten().find(|deployment| deployment["booted"] == true);
    Ok(booted.map_or(String::new(), |deployment| deployment["version"].as_str().unwrap_or_default().to_owned()))
}

fn boot_id(node: &Node) -> Result<String> {
    node.agent().clock().boot_id()
}

#[test]
fn the_reboot_is_a_real_one_into_the_deployment_that_was_checked() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    node.ruin()?;
    // One more deployment ahead, and prepared for.
    checked(node.tool("ostree").args(["admin", "deploy", "--os=rhcos", "--karg-append=nosmt", "os/4.17.0"]))?;
    prepare(&node, "0")?;
    ensure!(checked(node.tool("ostree").args(["admin", "status"]))?.contains(".1 (pending) (soft-reboot)"));

    // An ostree that cannot take it back: refused, before kubelet is held or anything dropped.
    let cause = "error: Unknown command 'prepare-soft-reboot'";
    node.fault("ostree", "prepare-soft-reboot --reset", None, Wrong::Fail(cause.to_owned(), 1))?;
    run(&node, &["recover", "--yes"])?
        .expect(78, &["a soft reboot into /run/nextroot is prepared", cause, "next: `umount -R /run/nextroot`"])?;
    ensure!(!node.at("/var/lib/recovery/hold-kubelet").exists());
    ensure!(json(&node, &["platform"])?["deployments"].as_array().is_some_and(|all| all.len() == 3), "something was dropped");

    // One that can: seen, said, taken back.
    node.clear_faults()?;
    let (before, (_, boots)) = (boot_id(&node)?, node.power()?);
    run(&node, &["recover", "--yes"])?.expect(0, &["a soft reboot into /run/nextroot was prepared", "the reboot is a real one"])?;
    node.wait_boot(boots)?;
    ensure!(boot_id(&node)? != before && booted(&node)? == "4.16.4");

    // Prepared while the reboot is being asked for: systemd is told not to go there.
    node.fault("systemctl", "reboot", Some(1), Wrong::Slow(8000))?;
    let asked =
        |node: &Node| Ok::<_, anyhow::Error>(node.calls()?.iter().filter(|call| call.tool == "systemctl" && call.args == "reboot").count());
    let (before, (_, boots), asked_before) = (boot_id(&node)?, node.power()?, asked(&node)?);
    let agent = start(&node, &["resume"])?;
    wait_for("the reboot to be asked for", || Ok(asked(&node)? > asked_before))?;
    prepare(&node, "1")?;
    ended(agent)?.expect(0, &[])?;
    node.wait_boot(boots)?;
    ensure!(boot_id(&node)? != before && booted(&node)? == "4.16.4");
    ensure!(json(&node, &["resume"])?["outcome"] == "finished");
    settled(&node)
}

#[test]
fn a_soft_reboot_by_somebody_else_is_no_reboot() -> Result<()> {
    let (_temporary, node) = node(Kind::OpenShift, |_| ())?;
    ok(&node, &["backup"])?;
    let before = boot_id(&node)?;
    checked(node.tool("ostree").args(["admin", "deploy", "--os=rhcos", "--not-as-default", "--karg-append=nosmt", "os/4.16.4"]))?;
    ok(&node, &["restore-files", "--yes"])?;
    let (_, boots) = node.power()?;
    prepare(&node, "1")?;
    let status = || checked(node.tool("ostree").args(["admin", "status"]));
    ensure!(status()?.contains(" (soft-reboot)"));
    checked(node.tool("ostree").args(["admin", "undeploy", "1"]))?;
    ensure!(!status()?.contains(" (soft-reboot)") && node.at("/run/nextroot/usr").exists(), "nothing tells of it, and it is there");
    checked(node.tool("systemctl").arg("reboot"))?;
    node.wait_boot(boots)?;
    ensure!(boot_id(&node)? == before && status().is_err(), "a deployment that ostree does not know");
    run(&node, &["resume"])?.expect(75, &["has not rebooted since phase restore-files", "soft reboot", "next: `systemctl reboot`"])?;

    let (_, boots) = node.power()?;
    checked(node.tool("systemctl").arg("reboot"))?;
    node.wait_boot(boots)?;
    ensure!(boot_id(&node)? != before);
    ensure!(json(&node, &["resume"])?["outcome"] == "finished");
    settled(&node)
}

//! Newer operating systems, on which `/sysroot`, and with composefs the root itself, are read-only.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::hands::{self, agent, back_up, nothing_was_pulled, ok, wait_recovered};
use real_node::release::AFTER;
use real_node::{Broken, Limit, Node};

const OSTREE: Limit = Limit::of(120);

/// What is mounted there: the type, and whether it can be written to.
fn mounted(node: &Node, point: &str) -> Result<(String, bool)> {
    let text = node.run(&["findmnt", "--json", "--output=FSTYPE,OPTIONS", "--mountpoint", point])?;
    let found: Value = serde_json::from_str(&text)?;
    let field = |name: &str| found["filesystems"][0][name].as_str().with_context(|| format!("{point} has no {name}: {text}"));
    Ok((field("fstype")?.to_owned(), field("options")?.split(',').any(|option| option == "rw")))
}

/// It is the system that is meant: these versions, `/sysroot` read-only, made by ostree's own program.
fn is_as_meant(node: &Node, ostree: &str, systemd: &str, root: &str) -> Result<()> {
    let version = node.run(&["ostree", "--version"])?;
    ensure!(version.contains(&format!("Version: '{ostree}'")), "{version}");
    let version = node.run(&["systemctl", "--version"])?;
    ensure!(version.starts_with(&format!("systemd {systemd} ")), "{version}");
    ensure!(mounted(node, "/sysroot")? == ("xfs".to_owned(), false), "/sysroot is {:?}", mounted(node, "/sysroot")?);
    ensure!(mounted(node, "/")?.0 == root, "/ is {:?}", mounted(node, "/")?);
    ensure!(!node.exec(&["touch", "/usr/written"], OSTREE)?.status.success(), "/usr can be written to");
    // Of size 0 where it is only a flag.
    let made = node.run(&["cat", "/run/ostree-booted"])?;
    ensure!(made.contains("sysroot-ro") && made.contains("composefs") == (root == "overlay"), "/run/ostree-booted holds {made:?}");
    Ok(())
}

#[test]
fn a_failed_upgrade_comes_back_where_sysroot_is_read_only() -> Result<()> {
    let (_dir, node) = hands::up("debian13,kubeadm")?;
    is_as_meant(&node, "2025.2", "257", "xfs")?;
    let target = node.power()?.deployment;
    let before = back_up(&node)?;
    node.upgrade(Broken::ApiServer)?;
    // Another release is staged and has to be dropped: by an ostree that has no --json.
    node.exec(&["ostree", "admin", "deploy", "--stage", &AFTER.branch()], OSTREE)?.checked()?;
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    is_as_meant(&node, "2025.2", "257", "xfs")?;
    ensure!(node.power()?.deployment == target, "booted is {} and not {target}", node.power()?.deployment);
    nothing_was_pulled(&node)?;
    node.down()
}

/// And past a soft reboot: systemd would go into the root that is prepared for it, whatever the boot loader says.
#[test]
fn a_failed_upgrade_comes_back_on_a_composefs_root_and_takes_no_prepared_soft_reboot() -> Result<()> {
    let (_dir, node) = hands::up("composefs")?;
    is_as_meant(&node, "2026.4", "262", "overlay")?;
    ensure!(!mounted(&node, "/")?.1, "/ can be written to");
    let target = node.power()?.deployment;
    let before = back_up(&node)?;
    node.upgrade(Broken::ApiServer)?;
    // Deployed again, it has the same kernel: ostree asks for that.
    node.exec(&["ostree", "admin", "deploy", "--os=rhcos", &AFTER.branch()], OSTREE)?.checked()?;
    node.exec(&["ostree", "admin", "prepare-soft-reboot", "0"], OSTREE)?.checked()?;
    ensure!(node.exists("/run/nextroot/usr/bin/ostree")?, "no soft reboot is prepared");
    let boot_id = node.read("/proc/sys/kernel/random/boot_id")?;
    hands::over_the_reboot(&node, &["recover", "--yes"])?;
    let report = wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    is_as_meant(&node, "2026.4", "262", "overlay")?;
    ensure!(node.power()?.deployment == target, "booted is {} and not {target}", node.power()?.deployment);
    ensure!(node.read("/proc/sys/kernel/random/boot_id")? != boot_id, "the boot id is the same");
    ensure!(node.run(&["systemctl", "show", "--property=SoftRebootsCount", "--value"])?.trim() == "0", "a soft reboot was taken");
    ensure!(!node.exists("/run/nextroot/usr")?, "a soft reboot is prepared still");
    ensure!(report.run.warnings.iter().any(|warning| warning.contains("soft reboot")), "nothing says that one was prepared: {report:?}");
    nothing_was_pulled(&node)?;
    let again = agent(&node, &["resume"])?.stdout;
    ensure!(again.contains("nothing to do"), "{again}");
    ensure!(ok(&node, &["platform"])?.contains("boots next"), "{}", ok(&node, &["platform"])?);
    node.down()
}

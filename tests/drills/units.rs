//! What is in `systemd/`, on the node it is for; and what an administrator sees of a recovery there.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use recovery::report::event;
use serde_json::Value;

use super::hands::typed;
use super::jobs;
use real_node::{Limit, Node, Variant};

const AGENT: &str = "/var/recovery/recovery";
const UNIT: &str = "recovery-resume.service";
/// A whole recovery of such a node, at its slowest.
const RECOVERY: Limit = Limit::of(1200);

/// What systemd says of the resume unit.
fn shown(node: &Node, property: &str) -> Result<String> {
    Ok(node.run(&["systemctl", "show", &format!("--property={property}"), "--value", UNIT])?.trim().to_owned())
}

/// Starting the unit does nothing, and nothing is wrong with that.
fn starting_it_does_nothing(node: &Node, result: &str) -> Result<()> {
    node.run(&["systemctl", "start", UNIT])?;
    let ended = || Ok((shown(node, "ActiveState")? != "active").then_some(()));
    Limit::of(30).wait("the unit to end", ended, || node.explain())?;
    ensure!(shown(node, "ActiveState")? == "inactive", "the unit is {}", shown(node, "ActiveState")?);
    ensure!(shown(node, "ConditionResult")? == result, "its condition: {}", shown(node, "ConditionResult")?);
    let failed = node.run(&["systemctl", "--failed", "--plain", "--no-legend"])?;
    ensure!(!failed.contains(UNIT), "{failed}");
    Ok(())
}

/// The units hold what is packaged, mount what they say, and are what systemd's own checker wants.
fn units_are_well(node: &Node) -> Result<()> {
    for (packaged, installed) in [
        (include_str!("../../systemd/recovery-resume.service"), "/etc/systemd/system/recovery-resume.service"),
        (include_str!("../../systemd/10-recovery-hold.conf"), "/etc/systemd/system/kubelet.service.d/10-recovery-hold.conf"),
        (include_str!("../../systemd/10-recovery-images.conf"), "/etc/systemd/system/crio-wipe.service.d/10-recovery-images.conf"),
        (include_str!("../../systemd/var-recovery.mount"), "/etc/systemd/system/var-recovery.mount"),
    ] {
        ensure!(node.read(installed)? == packaged, "{installed} is not as it is packaged");
    }
    let mount = node.run(&["findmnt", "--noheadings", "--output=SOURCE,FSTYPE,OPTIONS", "/var/recovery"])?;
    let expected = ["/dev/disk/by-label/recovery", "xfs", "nosuid", "nodev"];
    ensure!(expected.iter().all(|word| mount.contains(word)), "/var/recovery is {mount}");
    let unit = node.run(&["systemctl", "show", "--property=ActiveState,FragmentPath", "var-recovery.mount"])?;
    ensure!(unit.contains("ActiveState=active") && unit.contains("/etc/systemd/system/var-recovery.mount"), "{unit}");
    let verify = ["systemd-analyze", "verify", "--man=no", UNIT, "kubelet.service", "var-recovery.mount"];
    let done = node.exec(&verify, RECOVERY)?.checked()?;
    let about_ours = |line: &&str| ["recovery", "kubelet"].iter().any(|name| line.contains(name));
    let said: Vec<&str> = done.stderr.lines().filter(about_ours).collect();
    ensure!(said.is_empty(), "systemd-analyze verify says: {said:?}");
    Ok(())
}

/// Each status that `systemctl status` showed until no recovery is in progress and the unit has ended, which is a moment later.
fn statuses_until_the_end(node: &Node) -> Result<BTreeSet<String>> {
    let mut said = BTreeSet::new();
    let ended = || {
        // While it reboots, there is nobody to ask.
        let (Ok(status), Ok(open)) = (shown(node, "StatusText"), node.exists("/var/recovery/progress")) else { return Ok(None) };
        said.insert(status);
        Ok((!open && said.len() > 1 && shown(node, "ActiveState").is_ok_and(|state| state == "inactive")).then_some(()))
    };
    RECOVERY.wait("the recovery to end by itself", ended, || node.explain())?;
    said.insert(shown(node, "StatusText")?);
    Ok(said)
}

/// `journalctl -x` explains the end of the recovery, and `collect` finds what it looks for, with the node's own programs.
fn support_gets_what_is_there(node: &Node) -> Result<()> {
    node.run(&[AGENT, "generate", "catalog", "/usr/local/lib/systemd/catalog"])?;
    node.run(&["journalctl", "--update-catalog"])?;
    let finished = node.run(&["journalctl", "-x", "--no-pager", &format!("MESSAGE_ID={}", event::RECOVERY_FINISHED.id)])?;
    ensure!(
        finished.contains("Subject: The recovery of this node is finished") && finished.contains("Journal and report of"),
        "{finished}"
    );
    let report = node.run(&[AGENT, "--json", "collect", "--to", "/var/tmp/collected.tar.zst"])?;
    let report: Value = serde_json::from_str(&report)?;
    let missing: Vec<&str> = report["missing"].as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
    ensure!(missing.is_empty(), "{report}");
    let size = |name: &str| report["entries"].as_array()?.iter().find(|entry| entry["name"] == name)?["bytes"].as_u64();
    for name in [
        "logs/recovery.txt",
        "logs/kubelet.service.txt",
        "containers/ps.txt",
        "units/units.txt",
        "deployments/ostree.txt",
        "disk/lsblk.txt",
    ] {
        ensure!(size(name).is_some_and(|bytes| bytes > 100), "{name}: {report}");
    }
    Ok(())
}

#[test]
fn the_units_do_what_they_say_and_show_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = Node::up(&dir.path().join("node"), &"kubeadm".parse::<Variant>()?)?;
    node.install(std::path::Path::new(jobs::AGENT))?;
    node.run(&[AGENT, "backup"])?;
    node.run(&["systemctl", "daemon-reload"])?;
    units_are_well(&node)?;
    starting_it_does_nothing(&node, "no")?;

    let boots = node.boots()?;
    // It ends with the reboot that it asks for, and may not be heard any more.
    node.exec(&typed(&["recover", "--yes"]), RECOVERY)?;
    node.wait_boots(boots + 1)?;
    // As a person who logs in now, on a serial console of 24 lines: until interrupted.
    let watch = format!("export TERM=vt220; stty rows 24 columns 80; timeout --foreground --signal=INT 6 {AGENT} status --watch");
    let screen = node.exec(&["script", "--quiet", "--return", "--command", &watch, "/dev/null"], RECOVERY)?;
    let said = statuses_until_the_end(&node)?;
    ensure!(said.iter().any(|status| status.starts_with("resume: ")), "no step was shown: {said:?}");
    ensure!(said.iter().any(|status| status.contains("is finished")), "the end was not shown: {said:?}");
    ensure!(shown(&node, "Result")? == "success" && shown(&node, "NRestarts")? == "0", "{}", shown(&node, "Result")?);
    ensure!(screen.code() == 124 && screen.stdout.contains("\x1b[H"), "it ended with {}: {}", screen.code(), screen.stdout);
    ensure!(screen.stdout.contains("  > "), "no step at work was seen: {}", screen.stdout);
    let tall = |frame: &&str| frame.lines().count() > 24;
    ensure!(!screen.stdout.split("\x1b[H").any(|frame| tall(&frame)), "a screen of more than 24 lines: {}", screen.stdout);
    node.wait_well()?;
    support_gets_what_is_there(&node)?;

    // One phase at a time: the unit leaves that to whoever began it.
    node.run(&typed(&["restore-files", "--yes", "--step"]))?;
    node.reboot()?;
    starting_it_does_nothing(&node, "yes")?;
    ensure!(shown(&node, "StatusText")?.contains("left to a person"), "{}", shown(&node, "StatusText")?);
    ensure!(node.exists("/var/lib/recovery/hold-kubelet")?, "the hold is gone");
    node.exec(&[AGENT, "resume"], RECOVERY)?.checked()?;
    ensure!(!node.exists("/var/recovery/progress")?, "the recovery goes on");
    node.wait_well()?;
    node.down()
}

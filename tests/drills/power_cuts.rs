//! The power fails at the four worst moments of one recovery: nothing starts kubelet before everything is restored, and the unit goes on
//! by itself each time.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::hands::{self, HOLD, agent, back_up, journal, said, wait_event, wait_recovered};
use super::node::{Broken, Limit, Node};

/// Files in `/etc` that make its restore take long enough to be cut short: so many of so many MiB.
const BALLAST: (u32, u32) = (300, 1);
const SOON: Limit = Limit::of(120);

/// The boot that is running.
fn boot_id(node: &Node) -> Result<String> {
    Ok(node.read("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// On again after a cut: systemd came to kubelet and left it alone, because of the hold. Whether it was still so when it was asked, in a boot
/// in which the hold is lifted.
fn boot_again(node: &mut Node, boots: &mut Vec<String>) -> Result<bool> {
    node.boot()?;
    boots.push(boot_id(node)?);
    let properties = ["ActiveState", "ConditionResult", "ConditionTimestampMonotonic"].map(|name| format!("--property={name}"));
    let argv = [&["systemctl", "show", "kubelet.service"][..], &properties.each_ref().map(String::as_str)].concat();
    let come_to = || Ok(Some(node.run(&argv)?).filter(|shown| !shown.contains("Monotonic=0")));
    let shown = SOON.wait("systemd to come to kubelet", come_to, || node.explain())?;
    let held = node.exists(HOLD)?;
    let left_alone = shown.contains("ActiveState=inactive") && shown.contains("ConditionResult=no");
    ensure!(left_alone || !held, "the hold is there, and kubelet is\n{shown}");
    Ok(held)
}

/// Where the run stood when this boot ended: the last line that was written in it.
fn last_of<'a>(journal: &'a [Value], boot: &str) -> Result<&'a Value> {
    journal.iter().rfind(|line| line["boot"] == boot).with_context(|| format!("nothing was written in boot {boot}"))
}

/// When systemd started kubelet in a boot, seconds since 1970.
fn kubelet_started_in(node: &Node, boot: &str) -> Result<Vec<f64>> {
    let boot = format!("_BOOT_ID={}", boot.replace('-', ""));
    let lines = node.run(&["journalctl", "--unit=kubelet.service", "_PID=1", &boot, "--output=json", "--no-pager"])?;
    let mut started = Vec::new();
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line)?;
        if line["MESSAGE"].as_str().is_some_and(|message| message.starts_with("Started ")) {
            let at = line["__REALTIME_TIMESTAMP"].as_str().and_then(|at| at.parse::<f64>().ok());
            started.push(at.context("an entry without a time")? / 1e6);
        }
    }
    Ok(started)
}

/// The whole journal of the run that has ended.
fn ended(node: &Node, run: &str) -> Result<Vec<Value>> {
    let text = node.read(&format!("/var/recovery/history/{run}.progress"))?;
    text.lines().map(|line| serde_json::from_str(line).context("reading the journal")).collect()
}

#[test]
fn the_power_may_fail_at_every_bad_moment() -> Result<()> {
    let (mut node, _dir) = hands::up("kubeadm")?;
    let (files, size) = BALLAST;
    let fill = format!("mkdir /etc/ballast; for n in $(seq {files}); do head --bytes={size}M /dev/urandom >/etc/ballast/$n; done");
    node.run(&["sh", "-c", &fill])?;
    let before = back_up(&node)?;
    let sums = ["sh", "-c", "cd /etc/ballast && sha256sum * | sha256sum"];
    let ballast = node.run(&sums)?;
    // Of neither release any more: the restore has to write it all.
    node.run(&["rm", "--recursive", "/etc/ballast"])?;
    node.upgrade(Broken::ApiServer)?;
    let (mut boots, first) = (vec![boot_id(&node)?], node.boots()?);

    // Right after the reboot into the backup's deployment.
    agent(&node, &["recover", "--yes"])?;
    SOON.wait("the reboot", || Ok((node.boots()? > first && node.power()?.leader.is_some()).then_some(())), || node.explain())?;
    node.kill()?;
    ensure!(boot_again(&mut node, &mut boots)?, "kubelet is not held");

    // In the middle of the restore of /etc.
    wait_event(&node, "restore-files etc step-intent", SOON)?;
    std::thread::sleep(std::time::Duration::from_millis(400));
    node.kill()?;
    ensure!(boot_again(&mut node, &mut boots)?, "kubelet is not held");

    // Between that and the reboot.
    wait_event(&node, "restore-files etc step-done", SOON)?;
    node.kill()?;
    ensure!(boot_again(&mut node, &mut boots)?, "kubelet is not held");

    // After etcd is restored.
    wait_event(&node, "resume etcd-data step-done", SOON)?;
    let fourth = journal(&node)?.last().context("the journal is empty")?["boot"].as_str().unwrap_or_default().to_owned();
    node.kill()?;
    boots.push(fourth.clone());
    boot_again(&mut node, &mut boots)?;

    let report = wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    ensure!(node.run(&sums)? == ballast, "the files of /etc are others");

    let lines = ended(&node, &report.run.id)?;
    let at = |boot: &str| last_of(&lines, boot).map(said);
    let cut = [at(&boots[1])?, at(&boots[2])?, at(&fourth)?];
    eprintln!("the power failed after {cut:?}");
    ensure!(cut[0] == "restore-files etc step-intent", "{cut:?}");
    ensure!(cut[1].starts_with("restore-files ") && !cut[1].starts_with("restore-files etc step-intent"), "{cut:?}");
    ensure!(cut[2].starts_with("resume ") && !cut[2].contains("kubelet step"), "{cut:?}");
    let lifted = lines.iter().find(|line| said(line) == "resume lift-hold step-intent").context("the hold was never lifted")?;
    let lifted: jiff::Timestamp = lifted["time"].as_str().unwrap_or_default().parse()?;
    for boot in &boots[1..] {
        let started = kubelet_started_in(&node, boot)?;
        let early = started.iter().filter(|at| **at < lifted.as_duration().as_secs_f64()).count();
        ensure!(early == 0, "boot {boot} has started kubelet at {started:?}, before the hold was lifted at {lifted}");
    }
    ensure!(!kubelet_started_in(&node, &boot_id(&node)?)?.is_empty(), "kubelet runs, and its start is not in the log that was looked at");
    node.down()
}

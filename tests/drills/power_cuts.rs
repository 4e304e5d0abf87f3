//! The power fails at the four worst moments of one recovery: nothing starts kubelet before everything is restored, and the unit goes on
//! by itself each time.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::hands::{self, HOLD, agent, back_up, wait_recovered};
use super::moment::{Stopped, inside, journal, said};
use real_node::{Broken, Limit, Node};

/// Files in `/etc` that make its restore take long enough to be cut short: so many of so many MiB.
const BALLAST: (u32, u32) = (300, 1);
/// So many of them have to be there when it is.
const BEGUN: usize = 10;
const SOON: Limit = Limit::of(120);

/// Cuts the power. The journal of the run at that moment: what is stopped writes no more.
fn cut(node: &mut Node, _: Stopped) -> Result<Vec<Value>> {
    let journal = journal(node)?;
    node.kill()?;
    Ok(journal)
}

/// On again after a cut: systemd comes to kubelet and leaves it alone, because of the hold. The agent is stopped while that is looked at, so that
/// it neither lifts the hold nor reboots meanwhile. Whether the hold was there.
fn boot_again(node: &mut Node) -> Result<bool> {
    node.boot()?;
    let agent = Stopped::when(node, "the unit's agent", SOON, || true)?;
    let properties = ["ActiveState", "ConditionResult", "ConditionTimestampMonotonic"].map(|name| format!("--property={name}"));
    let argv = [&["systemctl", "show", "kubelet.service"][..], &properties.each_ref().map(String::as_str)].concat();
    let come_to = || Ok(Some(node.run(&argv)?).filter(|shown| !shown.contains("Monotonic=0")));
    let shown = SOON.wait("systemd to come to kubelet", come_to, || node.explain())?;
    let held = node.exists(HOLD)?;
    let left_alone = shown.contains("ActiveState=inactive") && shown.contains("ConditionResult=no");
    ensure!(left_alone || !held, "the hold is there, and kubelet is\n{shown}");
    agent.go_on()?;
    Ok(held)
}

/// What systemd says of kubelet in the log of a boot, with the time in seconds since 1970.
fn said_of_kubelet(node: &Node, boot: &str) -> Result<Vec<(f64, String)>> {
    let boot = format!("_BOOT_ID={}", boot.replace('-', ""));
    let lines = node.run(&["journalctl", "--unit=kubelet.service", "_PID=1", &boot, "--output=json", "--no-pager"])?;
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line)?;
        let at = line["__REALTIME_TIMESTAMP"].as_str().and_then(|at| at.parse::<f64>().ok()).context("an entry without a time")?;
        Ok((at / 1e6, line["MESSAGE"].as_str().unwrap_or_default().to_owned()))
    };
    lines.lines().map(entry).collect()
}

/// In the log of every boot from this one on that began with the hold, systemd has come to kubelet and left it alone, and in none has it started
/// it before the hold was lifted.
fn kubelet_was_held(node: &Node, journal: &[Value], from: &Value) -> Result<()> {
    let lifts = journal.iter().position(|line| said(line) == "resume lift-hold step-intent").context("the hold was never lifted")?;
    let lifted: jiff::Timestamp = journal[lifts]["time"].as_str().unwrap_or_default().parse()?;
    let mut boots: Vec<&str> = journal.iter().filter_map(|line| line["boot"].as_str()).collect();
    boots.dedup();
    let boots: Vec<&str> = boots.into_iter().skip_while(|boot| from != boot).collect();
    // Those of three cuts, and the last; one more where the third cut came before the agent's own reboot.
    ensure!(boots.len() >= 4, "the run was at work in the boots {boots:?}");
    let mut started = Vec::new();
    for boot in &boots {
        let said = said_of_kubelet(node, boot)?;
        let held = journal[..lifts].iter().any(|line| line["boot"] == **boot);
        ensure!(
            !held || said.iter().any(|(_, message)| message.contains("hold-kubelet")),
            "boot {boot} has not left kubelet alone, or has no log: {said:?}"
        );
        started.extend(said.into_iter().filter(|(_, message)| message.starts_with("Started ")).map(|(at, _)| at));
    }
    let early = started.iter().filter(|at| **at < lifted.as_duration().as_secs_f64()).count();
    ensure!(early == 0, "kubelet was started at {started:?}, before the hold was lifted at {lifted}");
    ensure!(!started.is_empty(), "kubelet runs, and its start is not in the log that was looked at");
    Ok(())
}

/// The whole journal of the run that has ended.
fn ended(node: &Node, run: &str) -> Result<Vec<Value>> {
    let text = node.read(&format!("/var/recovery/history/{run}.progress"))?;
    text.lines().map(|line| serde_json::from_str(line).context("reading the journal")).collect()
}

#[test]
fn the_power_may_fail_at_every_bad_moment() -> Result<()> {
    let (_dir, mut node) = hands::up("kubeadm")?;
    let (files, size) = BALLAST;
    let fill = format!("mkdir /etc/ballast; for n in $(seq {files}); do head --bytes={size}M /dev/urandom >/etc/ballast/$n; done");
    node.run(&["sh", "-c", &fill])?;
    let before = back_up(&node)?;
    let sums = ["sh", "-c", "cd /etc/ballast && sha256sum * | sha256sum"];
    let ballast = node.run(&sums)?;
    // Of neither release any more: the restore has to write it all.
    node.run(&["rm", "--recursive", "/etc/ballast"])?;
    node.upgrade(Broken::ApiServer)?;
    let first = node.boots()?;

    // Right after the reboot into the backup's deployment.
    agent(&node, &["recover", "--yes"])?;
    SOON.wait("the reboot", || Ok((node.boots()? > first && node.power()?.leader.is_some()).then_some(())), || node.explain())?;
    node.kill()?;
    ensure!(boot_again(&mut node)?, "kubelet is not held");

    // In the middle of the restore of /etc.
    let begun = || inside(&node, "etc/ballast").and_then(|dir| Ok(std::fs::read_dir(dir)?.count())).is_ok_and(|files| files >= BEGUN);
    let stopped = Stopped::when(&node, "the restore of /etc", SOON, begun)?;
    let in_etc = cut(&mut node, stopped)?;
    ensure!(boot_again(&mut node)?, "kubelet is not held");

    // Between that and the reboot.
    let stopped = Stopped::at(&node, "restore-files etc step-done", SOON)?;
    let before_the_reboot = cut(&mut node, stopped)?;
    ensure!(boot_again(&mut node)?, "kubelet is not held");

    // After etcd is restored.
    let stopped = Stopped::at(&node, "resume etcd-data step-done", SOON)?;
    let in_resume = cut(&mut node, stopped)?;
    boot_again(&mut node)?;

    let report = wait_recovered(&node, 1)?;
    before.is_back(&node)?;
    ensure!(node.run(&sums)? == ballast, "the files of /etc are others");

    let cuts = [&in_etc, &before_the_reboot, &in_resume].map(|journal| journal.last().map(said).unwrap_or_default());
    eprintln!("the power failed after {cuts:?}");
    ensure!(cuts[0] == "restore-files etc step-intent", "{cuts:?}");
    ensure!(cuts[1].starts_with("restore-files ") && cuts[1] != cuts[0], "{cuts:?}");
    ensure!(cuts[2].starts_with("resume "), "{cuts:?}");
    kubelet_was_held(&node, &ended(&node, &report.run.id)?, &in_etc[in_etc.len() - 1]["boot"])?;
    node.down()
}

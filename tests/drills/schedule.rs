//! Schedules with the real systemd: it wakes the agent, also after a kill and a reboot, and its own tools show when.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::hands::{AGENT, ok, up};
use real_node::{Limit, Node};

const TIMER: &str = "recovery-schedule.timer";
const SERVICE: &str = "recovery-schedule.service";
/// For the timer to elapse and a backup to be taken: minutes, and after a boot two more.
const RUN: Limit = Limit::of(400);

/// The schedule, as `show` has it.
fn schedule(node: &Node) -> Result<Value> {
    serde_json::from_str(&ok(node, &["--json", "schedule", "show", "often"])?).context("what `show` prints")
}

/// Waits until the schedule has another good backup than `before`, by itself; its id.
fn another(node: &Node, before: &str) -> Result<String> {
    let look = || {
        let Ok(schedule) = schedule(node) else { return Ok(None) };
        Ok(schedule["good"]["backup"].as_str().filter(|id| *id != before).map(str::to_owned))
    };
    let explain = || {
        let show = ["systemctl", "status", "--no-pager", "--full", TIMER, SERVICE];
        node.exec(&show, RUN).map_or_else(|error| format!("{error:#}"), |done| done.stdout) + &node.explain()
    };
    RUN.wait("a backup by the schedule", look, explain)
}

#[test]
fn systemd_wakes_the_agent_for_its_schedules_and_shows_when() -> Result<()> {
    let (_dir, node) = up("kubeadm")?;
    ok(&node, &["schedule", "set", "often", "--cron", "0 0 * * *", "--keep", "2"])?;
    let next = schedule(&node)?["next"].as_str().context("no next")?.replace('T', " ").replace('Z', "");
    let timers = node.run(&["env", "TZ=UTC", "systemctl", "list-timers", "--all", "--no-pager"])?;
    let line = timers.lines().find(|line| line.contains(TIMER)).with_context(|| timers.clone())?;
    ensure!(line.contains(&next) && line.contains(SERVICE), "{line} for {next}");
    let done = node.exec(&["systemd-analyze", "verify", "--man=no", TIMER, SERVICE], RUN)?.checked()?;
    ensure!(!done.stderr.contains("recovery-schedule"), "systemd-analyze verify says: {}", done.stderr);

    ok(&node, &["schedule", "set", "often", "--cron", "* * * * *"])?;
    let first = another(&node, "")?;
    // What systemd runs behind it has the timer elapse again, killed or not.
    let second = another(&node, &first)?;
    let kill = format!(
        "until systemctl is-active --quiet {SERVICE} || [ $(systemctl show --value --property=ActiveState {SERVICE}) = activating ]; do sleep 0.1; done
         systemctl kill --signal=KILL {SERVICE}"
    );
    node.exec(&["sh", "-euc", &kill], RUN)?.checked()?;
    let third = another(&node, &second)?;

    // The drop-in is gone with /run; the unit is enabled by its link.
    node.reboot()?;
    node.wait_well()?;
    let up = || node.exec(&["cat", "/proc/uptime"], RUN).map(|done| done.stdout);
    let fourth = another(&node, &third).with_context(|| format!("up for {:?}", up()))?;
    let list: Value = serde_json::from_str(&ok(&node, &["--json", "list"])?)?;
    let complete: Vec<&str> = list.as_array().context("no list")?.iter().filter_map(|one| one["id"].as_str()).collect();
    ensure!(complete.contains(&fourth.as_str()) && complete.len() <= 3, "{complete:?}");

    // While a backup is taken, it has the lock.
    let idle = format!(
        "until {AGENT} schedule set often --paused || [ $? != 75 ]; do sleep 0.5; done; until [ $(systemctl show --value --property=ActiveState {SERVICE}) = inactive ]; do sleep 0.1; done"
    );
    node.exec(&["sh", "-euc", &idle], RUN)?.checked()?;
    ok(&node, &["schedule", "delete", "often"])?;
    let timers = node.run(&["systemctl", "list-timers", "--all", "--no-pager"])?;
    ensure!(!timers.contains(TIMER), "{timers}");
    for left in [
        "/etc/systemd/system/recovery-schedule.timer",
        "/etc/systemd/system/recovery-schedule.service",
        "/run/systemd/system/recovery-schedule.timer.d/10-next.conf",
    ] {
        ensure!(!node.exists(left)?, "{left} is still there");
    }
    node.down()
}

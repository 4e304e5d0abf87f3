//! `systemctl`: units and the reboot. What a unit is doing is read from `systemctl show`, never from an exit status.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::error::{FailureKind, kind, unanswered};
use crate::node::Node;

/// The time limit of a job: kubelet and the runtime have up to 90 s by default to stop before systemd kills them, and a start waits for a
/// stop.
const JOB: Duration = Duration::from_secs(240);

/// A unit's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// `ActiveState`: active, reloading, inactive, failed, activating, deactivating.
    pub active: String,
    /// `SubState`: running, dead, auto-restart, …
    pub sub: String,
    /// `LoadState`: loaded, not-found, masked, …
    pub load: String,
    /// `Job`: true when a job for the unit is queued or runs.
    pub job: bool,
    /// `ConditionResult`: whether its conditions were met when it was last started; false if it never was.
    pub condition: bool,
    /// `ExecMainStartTimestampMonotonic`: when the current or last main process of a service was started; see [`Clock::since_monotonic`].
    /// Every systemd prints this form of a time alike: dates are in the node's time zone, and `--timestamp=` is too new for the oldest
    /// nodes.
    ///
    /// [`Clock::since_monotonic`]: crate::node::clock::Clock::since_monotonic
    pub started: Option<Duration>,
}

impl Unit {
    /// True for `active`.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active == "active"
    }

    /// True when no process of it runs: `inactive` or `failed`.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed")
    }

    /// True while it is being started, or its start is queued, as during a boot. A failed unit that will be started again (`auto-restart`)
    /// does not count: it may fail for ever.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        (self.active == "activating" && self.sub.starts_with("start")) || (self.job && self.active == "inactive")
    }

    /// True when it runs, or will without further action: it is being started, its start is queued, or it will be started again after a
    /// failure.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        matches!(self.active.as_str(), "active" | "activating" | "reloading") || self.is_starting()
    }

    /// False for a unit without a unit file.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.load != "not-found"
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}), {}", self.active, self.sub, self.load)
    }
}

/// `systemctl show`'s `Key=value` lines.
fn parse(text: &str) -> Result<Unit> {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("`systemctl show` printed no {key}: {:?}", text.chars().take(200).collect::<String>()))
    };
    // systemd prints nothing, or 0, where there is no such time.
    let number = |key: &str| value(key).ok()?.parse().ok().filter(|number: &u64| *number > 0);
    Ok(Unit {
        job: number("Job").is_some(),
        started: number("ExecMainStartTimestampMonotonic").map(Duration::from_micros),
        active: value("ActiveState")?,
        sub: value("SubState")?,
        load: value("LoadState")?,
        condition: value("ConditionResult")? == "yes",
    })
}

/// The state of a unit now. A unit that does not exist is `inactive`, `not-found`.
///
/// # Errors
/// When systemd does not answer, or does not print the properties.
pub fn show(node: &Node, unit: &str) -> Result<Unit> {
    let properties = "--property=ActiveState,SubState,LoadState,Job,ConditionResult,ExecMainStartTimestampMonotonic";
    let output = node.command("systemctl")?.args(["show", properties, unit]).run()?;
    parse(output.text()?)
}

/// True when `point` is mounted at a boot: systemd then has a unit file for it, perhaps made from `/etc/fstab`. A mount by hand has a unit
/// too, but no file.
///
/// # Errors
/// When systemd does not answer.
pub fn mounts_at_boot(node: &Node, point: &Path) -> Result<bool> {
    let output = node.command("systemctl")?.args(["show", "--property=FragmentPath"]).arg(point).run()?;
    Ok(output.text()?.lines().any(|line| line.strip_prefix("FragmentPath=").is_some_and(|path| !path.is_empty())))
}

/// Starts a unit and checks that it is active: `systemctl start` exits with 0 even when a condition kept the unit from starting.
///
/// # Errors
/// [`FailureKind::Unanswered`] when the job fails or the unit is not active afterwards; when a condition of
/// its unit file keeps it from starting.
pub fn start(node: &Node, unit: &str) -> Result<()> {
    bring_up(node, "start", unit)
}

/// Restarts a unit and checks that it is active.
///
/// # Errors
/// As [`start`].
pub fn restart(node: &Node, unit: &str) -> Result<()> {
    bring_up(node, "restart", unit)
}

fn bring_up(node: &Node, verb: &str, unit: &str) -> Result<()> {
    let asked = node.command("systemctl")?.args([verb, unit]).limit(JOB).output().with_context(|| format!("{verb}ing {unit}"))?;
    let now = show(node, unit)?;
    if asked.status.success() && now.is_active() {
        return Ok(());
    }
    if !asked.status.success() {
        // What the unit depends on may be there next time.
        return Err(unanswered(format!("{verb}ing {unit}: {:#}; it is {now}: see `journalctl -u {unit}`", asked.error())));
    }
    if now.is_stopped() && !now.condition {
        bail!("{unit} was not started, because a condition of its unit file is not met: `systemctl status {unit}` names it");
    }
    Err(unanswered(format!("{unit} is {now} after `systemctl {verb}`: see `journalctl -u {unit}`")))
}

/// Stops a unit and checks that no process of it runs. It is fine when the unit does not exist.
///
/// # Errors
/// When systemctl fails; [`FailureKind::Unanswered`] when the unit is not stopped afterwards.
pub fn stop(node: &Node, unit: &str) -> Result<()> {
    let before = show(node, unit)?;
    // A unit whose file is gone can still run, and is stopped like any other.
    if !before.exists() && before.is_stopped() {
        return Ok(());
    }
    node.command("systemctl")?.args(["stop", unit]).limit(JOB).run().with_context(|| format!("stopping {unit}"))?;
    let now = show(node, unit)?;
    if now.is_stopped() { Ok(()) } else { Err(unanswered(format!("{unit} is {now} after `systemctl stop`"))) }
}

/// Makes systemd forget that the unit failed; true when it had failed.
///
/// # Errors
/// When systemctl fails.
pub fn reset_failed(node: &Node, unit: &str) -> Result<bool> {
    let failed = show(node, unit)?.active == "failed";
    if failed {
        node.command("systemctl")?.args(["reset-failed", unit]).run()?;
    }
    Ok(failed)
}

/// Reloads unit files.
///
/// # Errors
/// When systemctl fails.
pub fn daemon_reload(node: &Node) -> Result<()> {
    node.command("systemctl")?.arg("daemon-reload").limit(JOB).run().context("reloading the unit files")?;
    Ok(())
}

/// How many soft reboots this boot has seen (`SoftRebootsCount`, systemd 256 and later): a soft reboot changes the root but keeps the
/// kernel and its boot id. 0 where systemd does not say.
#[must_use]
pub fn soft_reboots(node: &Node) -> u32 {
    let ask = || node.command("systemctl")?.args(["show", "--property=SoftRebootsCount"]).run();
    ask().ok().and_then(|output| count(output.text().ok()?)).unwrap_or(0)
}

fn count(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("SoftRebootsCount="))?.trim().parse().ok()
}

/// Asks for a reboot: a real one, even when a soft reboot into `/run/nextroot` is prepared (systemd 254 and later would take that). The
/// exit status proves nothing (the connection to systemd may be reset although the reboot is under way, or the reboot may end this process
/// in the middle of the call), so a failure is returned as text. Only a new boot id proves a reboot.
///
/// # Errors
/// When there is no systemctl.
pub fn reboot(node: &Node) -> Result<Option<String>> {
    let asked = node.command("systemctl")?.arg("reboot").env("SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT", "1").run();
    match asked {
        Ok(_) => Ok(None),
        Err(error) if kind(&error) == FailureKind::Misfit => Err(error),
        Err(error) => Ok(Some(format!("{error:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn properties_in_any_order() -> Result<()> {
        // As systemd 252 prints them: in its own order, not that of the request.
        let unit = parse("LoadState=loaded\nActiveState=active\nSubState=running\nConditionResult=yes\n")?;
        assert!(unit.is_active() && unit.condition && unit.exists());
        assert!(!unit.is_starting());
        let queued = parse("LoadState=loaded\nActiveState=inactive\nSubState=dead\nJob=214\nConditionResult=no\n")?;
        assert!(
            queued.is_starting()
                && !parse("LoadState=loaded\nActiveState=inactive\nSubState=dead\nJob=0\nConditionResult=no\n")?.is_starting()
        );
        let started = |value: &str| {
            parse(&format!("{value}LoadState=loaded\nActiveState=active\nSubState=running\nConditionResult=yes\n")).map(|unit| unit.started)
        };
        assert_eq!(started("ExecMainStartTimestampMonotonic=5034211\n")?, Some(Duration::from_micros(5_034_211)));
        assert_eq!((started("ExecMainStartTimestampMonotonic=0\n")?, started("")?), (None, None));
        let activating =
            |sub: &str| parse(&format!("LoadState=loaded\nActiveState=activating\nSubState={sub}\nJob=\nConditionResult=yes\n"));
        assert!(
            activating("start")?.is_starting() && activating("start-post")?.is_starting() && !activating("auto-restart")?.is_starting()
        );
        let unit = parse("LoadState=not-found\nActiveState=inactive\nSubState=dead\nConditionResult=no\n")?;
        assert!(unit.is_stopped() && !unit.exists());
        assert!(!parse("LoadState=loaded\nActiveState=deactivating\nSubState=stop-sigterm\nConditionResult=yes\n")?.is_stopped());
        Ok(())
    }

    #[test]
    fn soft_reboots_are_counted() {
        assert_eq!((count("SoftRebootsCount=1\n"), count("SoftRebootsCount=\n"), count("")), (Some(1), None, None));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "active\n", "ActiveState=\nSubState=dead\nLoadState=loaded\nConditionResult=no\n", "Failed to connect to bus"] {
            assert_eq!(exit_code(&parse(text).unwrap_err()), 1);
        }
    }
}

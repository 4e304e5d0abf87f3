//! The unit that writes metrics, closed as it is, with the real systemd: its timer starts it, and it writes all of them into a directory of another user's.

use anyhow::{Result, ensure};

use super::hands::{agent, ok, up};
use real_node::Limit;

const TIMER: &str = "recovery-metrics.timer";
const SERVICE: &str = "recovery-metrics.service";
/// The directory that the unit names.
const TEXTFILES: &str = "/var/lib/prometheus/node-exporter";
/// The timer elapses each minute, and after a boot it waits for one.
const MINUTES: Limit = Limit::of(240);

#[test]
fn the_closed_unit_writes_all_metrics_when_its_timer_says_so() -> Result<()> {
    let (_dir, node) = up("kubeadm")?;
    for (unit, text) in
        [(TIMER, include_str!("../../systemd/recovery-metrics.timer")), (SERVICE, include_str!("../../systemd/recovery-metrics.service"))]
    {
        node.put(&format!("/etc/systemd/system/{unit}"), text.as_bytes(), 0o644)?;
    }
    node.run(&["install", "-d", "-o", "nobody", TEXTFILES])?;
    node.run(&["systemctl", "daemon-reload"])?;
    // After them: a recovery brings back the /etc of the backup.
    ok(&node, &["backup"])?;
    let done = node.exec(&["systemd-analyze", "verify", "--man=no", TIMER, SERVICE], MINUTES)?.checked()?;
    ensure!(!done.stderr.contains("recovery-metrics"), "systemd-analyze verify says: {}", done.stderr);
    // 0 is closed, 10 open: systemd's own unit of the journal has 4.3.
    node.run(&["systemd-analyze", "security", "--no-pager", "--threshold=30", SERVICE])?;

    node.run(&["systemctl", "enable", "--now", TIMER])?;
    let file = format!("{TEXTFILES}/recovery.prom");
    let explain = || node.run(&["systemctl", "status", "--no-pager", "--full", TIMER, SERVICE]).unwrap_or_default() + &node.explain();
    MINUTES.wait("metrics by the timer", || Ok(node.exists(&file)?.then_some(())), explain)?;
    let told = node.read(&file)?;
    for part in recovery::metrics::gather::PARTS {
        ensure!(told.contains(&format!("recovery_metrics_errors{{part=\"{part}\"}} 0\n")), "{told}");
    }
    ensure!(told.contains("\nrecovery_backup_last_run_success 1\n") && told.contains("\nrecovery_backup_last_good_size_bytes "), "{told}");
    let result = node.run(&["systemctl", "show", "--property=Result", "--value", SERVICE])?;
    ensure!(result.trim() == "success", "{result}");

    // With a recovery open and held, and nothing of the unit's doing left.
    ok(&node, &["restore-files", "--yes", "--step"])?;
    node.run(&["systemctl", "start", SERVICE])?;
    let told = node.read(&file)?;
    ensure!(told.contains("\nrecovery_open 1\n") && told.contains("\nrecovery_hold 1\n"), "{told}");
    agent(&node, &["abandon", "--yes"])?.checked()?;
    ensure!(node.run(&["ls", "-A", TEXTFILES])?.trim() == "recovery.prom");
    node.down()
}

//! Having systemd wake the agent when it is time.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::due::{LOOK_AGAIN, Now, Verdict, judge, wake};
use super::store::{Moment, Schedules};
use crate::node::{Node, dir::RecoveryDir, hold, timer};
use crate::tools::systemctl;

/// How long another one may take to set the timer.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the time is, and what is in the way of any backup of this node; who holds the lock is not.
///
/// # Errors
/// When the boot's id cannot be read.
pub fn now(node: &Node, dir: &RecoveryDir) -> Result<Now> {
    let clock = node.clock();
    let moment = Moment { wall: clock.now(), boot: clock.boot_id()?, seconds: clock.since_boot().as_secs() };
    let blocked = if dir.in_recovery() {
        Some("a recovery is in progress: `recovery status` shows it".to_owned())
    } else if hold::is_left(node) {
        Some("a recovery with another recovery directory is in progress".to_owned())
    } else {
        dir.old_recovery()
    };
    Ok(Now { moment, blocked })
}

/// Puts the units where they belong and the timer to the earliest next instant; with the last schedule, all of it goes.
///
/// # Errors
/// When systemd does not answer, or something cannot be written.
pub fn arm(node: &Node) -> Result<()> {
    let _one_at_a_time = alone(node)?;
    let schedules = Schedules::of(node)?;
    let Some(owner) = timer::owner(node)?.filter(|_| !schedules.is_empty()) else {
        return disarm(node);
    };
    let now = now(node, &RecoveryDir::new(node, &owner))?;
    let mut times = Vec::new();
    for schedule in schedules.all.values() {
        // What is wrong with one of them is said when it is due, or listed: it must not keep the others from running.
        let (settled, changed) = schedule.settled(&now);
        times.extend(judge(&settled, &now).ok().as_ref().and_then(Verdict::wake));
        // Whoever has the lock then writes down from when it is counted.
        times.extend(changed.then(|| now.moment.wall + LOOK_AGAIN));
    }
    timer::install(node, &node.real_path("/etc"))?;
    let at = wake(times.into_iter(), now.moment.wall);
    timer::wake(node, at)?;
    // Each time, because nobody knows how far one that was killed here has come.
    systemctl::daemon_reload(node)?;
    if at.is_some() {
        systemctl::restart(node, timer::TIMER).context("having the next scheduled backup woken")
    } else {
        // All are paused: one that is resumed starts it again.
        systemctl::stop(node, timer::TIMER)
    }
}

/// Whoever else is at it would write what it had read before.
fn alone(node: &Node) -> Result<Option<File>> {
    let path = node.path(timer::SCHEDULES);
    let Ok(dir) = File::open(&path) else { return Ok(None) };
    let look = || match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(None),
        locked => locked.map(Some).with_context(|| format!("locking {}", timer::SCHEDULES)),
    };
    node.clock()
        .deadline(PATIENCE)
        .wait_for("another agent that sets the timer", Duration::from_millis(20), look, || "it is still at it".to_owned())?;
    Ok(Some(dir))
}

fn disarm(node: &Node) -> Result<()> {
    let etc = node.real_path("/etc");
    if [timer::TIMER_UNIT, timer::SERVICE_UNIT, timer::WANTED].iter().any(|name| etc.join(name).symlink_metadata().is_ok()) {
        systemctl::stop(node, timer::TIMER)?;
        timer::remove(node)?;
        systemctl::daemon_reload(node)?;
    }
    timer::disown(node)
}

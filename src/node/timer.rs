//! What wakes the agent for scheduled backups: a timer and a service in `/etc`, and in `/run` a drop-in that says when.
//!
//! They are there while there are schedules, and every backup and recovery puts them back, as it does the [hold](super::hold): a restore of `/etc`
//! leaves them alone. That there are schedules, and to which recovery directory their backups go, says a file beside them in [`SCHEDULES`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::dir::DEFAULT;
use super::{Node, durable};

/// Where the schedules are: on `/var`, which every deployment shares and no recovery restores.
pub const SCHEDULES: &str = "/var/lib/recovery/schedules";
/// The file beside them that names the recovery directory.
const OWNER: &str = "directory";
/// The timer.
pub const TIMER: &str = "recovery-schedule.timer";
/// Its file, relative to `/etc`.
pub const TIMER_UNIT: &str = "systemd/system/recovery-schedule.timer";
/// What it wakes, relative to `/etc`.
pub const SERVICE_UNIT: &str = "systemd/system/recovery-schedule.service";
/// The link that starts the timer at a boot, relative to `/etc`.
pub const WANTED: &str = "systemd/system/timers.target.wants/recovery-schedule.timer";
/// The drop-in that says when.
pub const WAKE: &str = "/run/systemd/system/recovery-schedule.timer.d/10-next.conf";

/// The recovery directory that the schedules' backups go to, as the node calls it; nothing where there are no schedules.
///
/// # Errors
/// When the file that says it cannot be read.
pub fn owner(node: &Node) -> Result<Option<PathBuf>> {
    let path = node.path(SCHEDULES).join(OWNER);
    match durable::read(&path, 4096) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", node.shown(&path).display())),
        Ok(bytes) => Ok(Some(PathBuf::from(String::from_utf8_lossy(&bytes).trim()))),
    }
}

/// Writes down to which recovery directory the schedules' backups go.
///
/// # Errors
/// When it cannot be written.
pub fn own(node: &Node, dir: &Path) -> Result<()> {
    durable::write(&node.path(SCHEDULES).join(OWNER), format!("{}\n", dir.display()).as_bytes(), 0o600)
}

/// Takes that back: there are no schedules any more.
///
/// # Errors
/// When it cannot be removed.
pub fn disown(node: &Node) -> Result<()> {
    durable::remove(&node.path(SCHEDULES).join(OWNER))
}

fn files(dir: &Path) -> [(&'static str, String); 2] {
    let service = include_str!("../../systemd/recovery-schedule.service");
    let service = match dir.to_str() {
        Some(other) if other != DEFAULT => {
            let moved = service.split(DEFAULT).collect::<Vec<_>>().join(other);
            moved.replace("/recovery schedule", &format!("/recovery --dir {other} schedule"))
        }
        _ => service.to_owned(),
    };
    [(SERVICE_UNIT, service), (TIMER_UNIT, include_str!("../../systemd/recovery-schedule.timer").to_owned())]
}

/// Puts the units into the `/etc` at `etc` (the booted one, or another deployment's) where the node has schedules; true when something was written.
///
/// # Errors
/// When they cannot be written.
pub fn install(node: &Node, etc: &Path) -> Result<bool> {
    let Some(dir) = owner(node)? else { return Ok(false) };
    let mut wrote = false;
    for (name, text) in files(&dir) {
        let path = etc.join(name);
        if std::fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
            continue;
        }
        make_parent(&path)?;
        durable::write(&path, text.as_bytes(), 0o644)?;
        wrote = true;
    }
    let (link, target) = (etc.join(WANTED), Path::new("..").join(TIMER));
    if !std::fs::read_link(&link).is_ok_and(|have| have == target) {
        make_parent(&link)?;
        durable::symlink(&target, &link)?;
        wrote = true;
    }
    Ok(wrote)
}

/// Takes the units out of `/etc`, and the drop-in out of `/run`.
///
/// # Errors
/// When they cannot be removed.
pub fn remove(node: &Node) -> Result<()> {
    let etc = node.real_path("/etc");
    [WANTED, TIMER_UNIT, SERVICE_UNIT].iter().try_for_each(|name| durable::remove(&etc.join(name)))?;
    wake(node, None).map(drop)
}

/// Writes when the timer is to elapse next; with `None`, that nobody knows. True when that is something new.
///
/// # Errors
/// When it cannot be written.
pub fn wake(node: &Node, at: Option<Timestamp>) -> Result<bool> {
    let path = node.path(WAKE);
    let Some(at) = at else {
        let was = path.exists();
        durable::remove(&path)?;
        return Ok(was);
    };
    let text = drop_in(at);
    if std::fs::read(&path).is_ok_and(|have| have == text.as_bytes()) {
        return Ok(false);
    }
    make_parent(&path)?;
    durable::write(&path, text.as_bytes(), 0o644)?;
    Ok(true)
}

/// When the timer elapses once more, after its instant: a service that could not be started then (its mount failed) writes no new drop-in.
const ONCE_MORE: [SignedDuration; 3] = [SignedDuration::from_hours(1), SignedDuration::from_hours(6), SignedDuration::from_hours(24)];

/// The drop-in. The empty line takes back what the timer's own file says of when: see there.
fn drop_in(at: Timestamp) -> String {
    let times = std::iter::once(at).chain(ONCE_MORE.into_iter().filter_map(|later| at.checked_add(later).ok()));
    let line = |at: Timestamp| format!("OnCalendar={} UTC\n", at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S"));
    let lines: String = times.map(line).collect();
    format!(
        "# The earliest next instant of the schedules (`recovery schedule list`), and some later ones: should nothing come of it. Written \
         by the agent.\n[Timer]\nOnBootSec=\n{lines}"
    )
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().with_context(|| format!("{} has no directory", path.display()))?;
    std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    parent.parent().map_or(Ok(()), durable::sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_units_are_there_where_there_are_schedules_and_say_where_the_agent_is() -> Result<()> {
        let root = tempfile::tempdir()?;
        let (node, etc) = (Node::at(root.path(), None), root.path().join("etc"));
        std::fs::create_dir_all(node.path(SCHEDULES))?;
        assert!(!install(&node, &etc)? && !etc.exists());
        own(&node, Path::new(DEFAULT))?;
        assert!(install(&node, &etc)? && !install(&node, &etc)?);
        assert_eq!(std::fs::canonicalize(etc.join(WANTED))?, std::fs::canonicalize(etc.join(TIMER_UNIT))?);
        assert_eq!(std::fs::read_to_string(etc.join(SERVICE_UNIT))?, include_str!("../../systemd/recovery-schedule.service"));
        own(&node, Path::new("/var/recovery/b"))?;
        assert!(install(&node, &etc)?);
        let unit = std::fs::read_to_string(etc.join(SERVICE_UNIT))?;
        for line in [
            "ExecStart=/var/recovery/b/recovery --dir /var/recovery/b schedule due",
            "ExecStopPost=/var/recovery/b/recovery --dir /var/recovery/b schedule due --arm",
            "RequiresMountsFor=/var/recovery/b /var/lib/recovery",
            "ConditionPathExistsGlob=/var/lib/recovery/schedules/*.json",
        ] {
            assert!(unit.lines().any(|one| one == line), "{line}: {unit}");
        }
        disown(&node)?;
        remove(&node)?;
        remove(&node)?;
        assert!(!etc.join(SERVICE_UNIT).exists() && etc.join(WANTED).symlink_metadata().is_err());
        Ok(())
    }

    #[test]
    fn when_is_written_once() -> Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let at = "2026-11-21T05:00:00.5Z".parse()?;
        assert!(wake(&node, Some(at))? && !wake(&node, Some(at))?);
        let text = std::fs::read_to_string(node.path(WAKE))?;
        assert!(text.contains("[Timer]\nOnBootSec=\nOnCalendar=2026-11-21 05:00:00 UTC\nOnCalendar=2026-11-21 06:00:00 UTC\n"), "{text}");
        assert!(wake(&node, None)? && !wake(&node, None)? && !node.exists(WAKE));
        Ok(())
    }
}

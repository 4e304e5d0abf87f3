//! Where runs go when they are over: journal and report of each, by its id, in `history/`.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::journal::Reading;
use super::status::RunStatus;
use super::undo::Undo;
use super::verbs::{Outcome, RunReport};
use crate::node::dir::RecoveryDir;
use crate::node::durable;

/// The journal if it can be read; damage is what `restart` and `abandon` are for.
pub(super) fn readable(dir: &RecoveryDir) -> Option<Reading> {
    Reading::of(&dir.journal()).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    })
}

/// Puts a run that is finished away: its report, then its journal, go to `history/`. Done again after a crash, it ends the same.
pub(super) fn settle(dir: &RecoveryDir, reading: &Reading) -> Result<()> {
    close(dir, Some(reading.run()), &RunReport::of(reading, Outcome::Finished))
}

/// The run that ended last, when its report can be read: for people, so that nothing is made of one that cannot.
pub(super) fn last(dir: &RecoveryDir) -> Option<RunStatus> {
    let report = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        let json = (path.extension()? == "json").then(|| durable::read(&path, durable::SMALL).ok())??;
        let mut report: serde_json::Value = serde_json::from_slice(&json).ok()?;
        serde_json::from_value::<RunStatus>(report.get_mut("run")?.take()).ok()
    };
    std::fs::read_dir(dir.history()).ok()?.filter_map(report).max_by_key(|run| run.since)
}

fn write_report(dir: &RecoveryDir, name: &str, report: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(report).context("serializing the report")?;
    durable::write(&dir.history().join(format!("{name}.json")), &json, 0o600)
}

/// Gives the journal so far a second name in `history/`: the new one replaces the first in one step, so there is never none.
pub(super) fn file_away(dir: &RecoveryDir, run: Option<&str>) -> Result<()> {
    let path = dir.history().join(format!("{}.progress", name_of(dir, run)?));
    if !dir.in_recovery() {
        return Ok(());
    }
    durable::remove(&path)?;
    std::fs::hard_link(dir.journal(), &path).with_context(|| format!("moving the journal to {}", path.display()))?;
    durable::sync_dir(&dir.history())
}

/// Moves the notes of a recovery that upgrade-recovery.sh did not end to `history/`, and says so.
pub(super) fn set_aside_old(dir: &RecoveryDir) -> Result<Option<String>> {
    let Some(old) = dir.old_recovery() else { return Ok(None) };
    durable::create_dir(&dir.history(), 0o700)?;
    let name = format!("upgrade-recovery-{}.progress", jiff::Timestamp::now().as_second());
    durable::rename(&dir.journal(), &dir.history().join(&name))?;
    Ok(Some(format!("{old}: its notes are now {}", dir.shown().join("history").join(name).display())))
}

/// The name of a run's files in `history/`, which is made. A run nobody can name is called by the time.
fn name_of(dir: &RecoveryDir, run: Option<&str>) -> Result<String> {
    durable::create_dir(&dir.history(), 0o700)?;
    let plain = |run: &&str| Path::new(run).components().count() == 1 && !run.contains(['/', '.']) && !run.is_empty();
    Ok(run.filter(plain).map_or_else(|| format!("unknown-{}", jiff::Timestamp::now().as_second()), str::to_owned))
}

/// Nothing is left to undo; report and journal of a run go to `history/`. The journal goes last: until then, every verb sees a run that is
/// over and puts it away.
pub(super) fn close(dir: &RecoveryDir, run: Option<&str>, report: &impl Serialize) -> Result<()> {
    let name = name_of(dir, run)?;
    write_report(dir, &name, report)?;
    Undo::forget(dir)?;
    if dir.in_recovery() {
        durable::rename(&dir.journal(), &dir.history().join(format!("{name}.progress")))?;
        // A restart that was cut short has linked it there before, and a rename between two names of one file does nothing.
        durable::remove(&dir.journal())?;
    }
    Ok(())
}

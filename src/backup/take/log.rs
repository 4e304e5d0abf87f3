//! The log of the run that took a backup, kept beside its manifest: what was done when, what it warned of, what is not in it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::procedure::{Event, Reading};
use crate::archive::Skipped;
use crate::backup::layout::LOG;
use crate::node::durable;
use crate::report::words::line;

/// The log of `reading`, so far.
#[must_use]
pub fn text(reading: &Reading) -> String {
    let mut text = String::new();
    let agent = reading.agent.as_deref().unwrap_or("of an unknown version");
    for record in &reading.records {
        let detail = match &record.detail {
            serde_json::Value::Null => String::new(),
            detail => format!(" {detail}"),
        };
        let what = match &record.event {
            Event::RunBegun(_) => format!("the backup {} begins, by recovery {agent}", reading.subject),
            Event::StepDone(_, step) => format!("{step}: done{detail}"),
            Event::StepFailed(_, step) => {
                format!("{step}: failed: {}", record.failure().map_or_else(String::new, |failure| failure.message))
            }
            Event::StepIntent(_, step) => format!("{step}: begins"),
            _ => continue,
        };
        writeln!(text, "{:.3} {}", record.time, line(&what)).ok();
    }
    text
}

/// Writes the log of a backup that lacks nothing else but its manifest.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(partial: &Path, reading: &Reading, warnings: &[String], skipped: &[(String, Skipped)]) -> Result<Vec<u8>> {
    let mut log = text(reading);
    for warning in warnings {
        writeln!(log, "warning: {}", line(warning)).ok();
    }
    for (path, why) in skipped {
        writeln!(log, "not in it: {}: {why}", line(path)).ok();
    }
    durable::write(&partial.join(LOG), log.as_bytes(), 0o600)?;
    Ok(log.into_bytes())
}

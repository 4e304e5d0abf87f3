//! `logs`: what was done when a backup was taken.

use anyhow::{Context, Result};

use super::choose::no_such;
use crate::backup::layout::{LOG, PARTIAL, read_small};
use crate::backup::survey::survey;
use crate::backup::take::log::text;
use crate::backup::take::partial::JOURNAL;
use crate::backup::take::procedure::Reading;
use crate::error::misfit;
use crate::session::Session;

/// The most that is read of one: a line for each step, warning and file that is not in it.
const MOST: u64 = 8 << 20;

/// The log of a backup, by its id or name; of one that is not finished, so far.
///
/// # Errors
/// [`FailureKind::Misfit`](crate::error::FailureKind::Misfit) when there is no such backup, or it has none; as
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it cannot be read.
pub fn logs(session: &Session<'_>, wanted: &str) -> Result<String> {
    let dir = session.dir;
    let survey = survey(dir)?;
    let partial = survey.partial.iter().find(|id| *id == wanted || id.strip_suffix(PARTIAL) == Some(wanted));
    if let Some(partial) = partial {
        let reading = Reading::of(&dir.backups().join(partial).join(JOURNAL))?;
        return Ok(text(&reading.with_context(|| format!("{partial} has no journal any more"))?));
    }
    // A log may say what is wrong with a backup that is damaged.
    let broken = survey.damaged.iter().chain(&survey.unsupported).find(|(id, _)| id == wanted).map(|(id, _)| dir.backups().join(id));
    let path = match survey.find(wanted) {
        Some(backup) => backup.path.clone(),
        None => broken.ok_or_else(|| no_such(dir, &survey, wanted))?,
    };
    if !path.join(LOG).exists() {
        return Err(misfit(format!("the backup {wanted} has no log: it was imported, or an agent took it that kept none")));
    }
    Ok(String::from_utf8_lossy(&read_small(&path, LOG, MOST)?).into_owned())
}

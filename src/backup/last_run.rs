//! How the last run of a backup ended: what took one is in `backups/`, but what failed would be known to its caller alone.
//!
//! It is noted beside the schedules and not in the recovery directory, whose disk may be full or missing: that is then the failure.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::asked_by::AskedBy;
use crate::error::{FailureKind, exit_code, kind, said};
use crate::formats::{last_run as format, seal};
use crate::node::{Node, dir::RecoveryDir, durable};

/// Where it is noted: on `/var`, which every deployment shares and no recovery restores.
pub const NOTE: &str = "/var/lib/recovery/last-backup.json";

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// The recovery directory that the backup was for, as the node calls it.
    pub directory: PathBuf,
    /// Who asked.
    pub asked_by: String,
    /// When it began.
    pub begun: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The id of the backup that it took.
    pub backup: Option<String>,
    /// The exit code that this is.
    pub exit: u8,
    /// The kind of its failure.
    pub failure: Option<String>,
    /// What it failed of, in words.
    pub why: Option<String>,
}

impl LastRun {
    /// The run that is noted on this node; nothing where none is.
    ///
    /// # Errors
    /// When the note cannot be read, or is none.
    pub fn of(node: &Node) -> Result<Option<Self>> {
        match durable::read(&node.path(NOTE), durable::SMALL) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read
                .map_err(anyhow::Error::from)
                .and_then(|json| format::read(&json))
                .map(|note| Some(Self::from(note)))
                .with_context(|| format!("reading {NOTE}")),
        }
    }
}

/// Notes how a run ended that began at `begun`: with the id of its backup, or with its failure. A command line that made no sense began none. That it
/// cannot be noted changes nothing about the backup, and is a warning.
pub(crate) fn note(node: &Node, dir: &RecoveryDir, asked_by: &AskedBy, begun: Timestamp, end: Result<&str, &anyhow::Error>) {
    if end.is_err_and(|error| kind(error) == FailureKind::Usage) {
        return;
    }
    let run = format::V1 {
        version: format::FORMAT.version,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        directory: dir.shown().to_owned(),
        asked_by: asked_by.to_string(),
        begun,
        ended: node.clock().now(),
        backup: end.ok().map(str::to_owned),
        exit: end.err().map_or(0, exit_code),
        failure: end.err().map(|error| kind(error).name()),
        why: end.err().map(said),
    };
    if let Err(error) = write(node, &run) {
        tracing::warn!("how this backup ended is not noted for `recovery metrics`: {error:#}");
    }
}

fn write(node: &Node, run: &format::V1) -> Result<()> {
    let (path, json) = (node.path(NOTE), seal(run).context("writing it as JSON")?);
    let above = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(above).with_context(|| format!("making {}", node.shown(above).display()))?;
    durable::write(&path, &json, 0o600)
}

impl From<format::V1> for LastRun {
    fn from(note: format::V1) -> Self {
        let format::V1 { directory, asked_by, begun, ended, backup, exit, failure, why, .. } = note;
        Self { directory, asked_by, begun, ended, backup, exit, failure, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{no_space, usage};

    #[test]
    fn the_last_run_is_known_however_it_ended() -> Result<()> {
        let root = tempfile::tempdir()?;
        let node = Node::at(root.path(), None);
        let dir = RecoveryDir::new(&node, Path::new("/var/recovery"));
        let begun = "2026-11-21T06:00:00Z".parse()?;
        let (asked_by, noted) = (AskedBy::Schedule("nightly".to_owned()), || LastRun::of(&node));
        assert_eq!(noted()?, None);
        note(&node, &dir, &asked_by, begun, Err(&usage("a label that is none")));
        assert_eq!(noted()?, None);
        note(&node, &dir, &asked_by, begun, Err(&no_space("too little").context("taking a backup")));
        let failed = noted()?.context("nothing is noted")?;
        assert_eq!((failed.exit, failed.failure.as_deref(), failed.backup.as_deref()), (73, Some("no-space"), None));
        assert_eq!(
            (failed.why.as_deref(), failed.asked_by.as_str(), failed.begun),
            (Some("taking a backup: too little"), "schedule/nightly", begun)
        );
        note(&node, &dir, &asked_by, begun, Ok("b1"));
        let good = noted()?.context("nothing is noted")?;
        assert_eq!((good.exit, good.failure, good.backup.as_deref()), (0, None, Some("b1")));
        std::fs::write(node.path(NOTE), "{")?;
        assert!(noted().is_err());
        Ok(())
    }
}

//! `list` and `show`: what there is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use serde::Serialize;

use super::choose::no_such;
use crate::backup::asked_by::AskedBy;
use crate::backup::layout::LEGACY_ID;
use crate::backup::legacy;
use crate::backup::manifest::{DeploymentId, Manifest};
use crate::backup::survey::survey;
use crate::node::Node;
use crate::node::identity::Identity;
use crate::node::mounts;
use crate::node::profile::Profile;
use crate::session::Session;

/// Whether a backup can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Published; all its files are there.
    Complete,
    /// The same, but the first of its certificates has expired.
    Expired,
    /// The same, but of another node or cluster.
    OtherNode,
    /// Being taken, or interrupted.
    Partial,
    /// Published, but damaged: it cannot be used.
    Damaged,
    /// Published by a newer agent, which this one cannot read.
    Unsupported,
    /// Left by the old script; imported when it is chosen.
    Legacy,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Complete, Self::Expired, Self::OtherNode, Self::Partial, Self::Damaged, Self::Unsupported, Self::Legacy];

    /// Its name, as JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Expired => "expired",
            Self::OtherNode => "other-node",
            Self::Partial => "partial",
            Self::Damaged => "damaged",
            Self::Unsupported => "unsupported",
            Self::Legacy => "legacy",
        }
    }
}

/// One line of `list`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Whether it can be used.
    pub state: State,
    /// Why not, when it is not complete.
    pub reason: Option<String>,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Its place in the order; 0 when imported.
    pub sequence: Option<u64>,
    /// When it was begun.
    pub taken: Option<Timestamp>,
    /// How long it took, seconds, where it says so.
    pub seconds: Option<u64>,
    /// When the first of its certificates expires.
    pub certificates_expire: Option<Timestamp>,
    /// What somebody was told when it was taken, one sentence each.
    pub warnings: Vec<String>,
    /// Release of the cluster.
    pub release: Option<String>,
    /// Deployment it belongs to.
    pub deployment: Option<DeploymentId>,
    /// Who asked for it.
    pub asked_by: Option<AskedBy>,
    /// Bytes it takes on disk.
    pub stored: u64,
}

/// What `show` says.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// Whether it can be used. Its contents are not read: `verify` does that.
    pub state: State,
    /// Why not, when it is not complete.
    pub reason: Option<String>,
    /// Its directory, as the node calls it.
    pub path: PathBuf,
    /// When it was taken, as far as it says.
    pub taken: Option<Timestamp>,
    /// Its manifest; what the old script left has none.
    pub manifest: Option<Manifest>,
    /// Bytes of each file on disk, of the old script's each part.
    pub files: BTreeMap<String, u64>,
}

/// Every backup that `selector` selects by its labels: usable ones newest first, then what the old script left, those of a newer agent, damaged ones and unfinished ones.
///
/// # Errors
/// As [`survey`].
pub fn list(session: &Session<'_>, selector: &Selector) -> Result<Vec<Listed>> {
    let Session { node, dir, .. } = *session;
    let survey = survey(dir)?;
    let (identity, now) = (identity(node), node.clock().now());
    let bare = |id: &str, state, reason| Listed {
        id: id.to_owned(),
        state,
        reason,
        name: None,
        labels: BTreeMap::new(),
        sequence: None,
        taken: None,
        seconds: None,
        certificates_expire: None,
        warnings: Vec::new(),
        release: None,
        deployment: None,
        asked_by: None,
        stored: mounts::usage(&dir.backups().join(id)).unwrap_or(0),
    };
    let mut lines: Vec<Listed> = Vec::new();
    for backup in survey.backups {
        let (state, reason) = judge(&backup.manifest, identity.as_ref(), now);
        let Manifest { name, labels, sequence, taken, seconds, certificates_expire, warnings, cluster, deployment, asked_by, .. } =
            backup.manifest;
        lines.push(Listed {
            name,
            labels,
            sequence: Some(sequence),
            taken: Some(taken),
            seconds,
            certificates_expire,
            warnings,
            release: cluster.map(|c| c.version),
            deployment,
            asked_by: Some(asked_by),
            ..bare(&backup.id, state, reason)
        });
    }
    if let Some(old) = legacy::find(dir) {
        let (state, reason) = legacy::problem(&old)?.map_or((State::Legacy, None), |problem| (State::Damaged, Some(problem)));
        let stored = old.usage();
        lines.push(Listed { taken: old.taken(), asked_by: Some(AskedBy::OldScript), stored, ..bare(LEGACY_ID, state, reason) });
    }
    lines.extend(survey.unsupported.iter().map(|(id, error)| bare(id, State::Unsupported, Some(format!("{error:#}")))));
    lines.extend(survey.damaged.iter().map(|(id, error)| bare(id, State::Damaged, Some(format!("{error:#}")))));
    lines.extend(survey.partial.iter().map(|id| bare(id, State::Partial, None)));
    lines.retain(|line| selector.matches(&line.labels));
    Ok(lines)
}

/// Who the node is; where it cannot say that, no backup is another's.
fn identity(node: &Node) -> Option<Identity> {
    Profile::of(node).and_then(|profile| Identity::of(node, profile)).ok()
}

/// Whether a published backup is for this node, now.
fn judge(manifest: &Manifest, identity: Option<&Identity>, now: Timestamp) -> (State, Option<String>) {
    let differences = identity.map(|identity| manifest.identity.differences(identity)).unwrap_or_default();
    if !differences.is_empty() {
        return (State::OtherNode, Some(differences.join("; ")));
    }
    match manifest.certificates_expire.filter(|when| *when < now) {
        Some(when) => (State::Expired, Some(format!("the first of its certificates expired at {when}"))),
        None => (State::Complete, None),
    }
}

/// The manifest and files of one backup.
///
/// # Errors
/// When there is no such backup, or it cannot be used. Nothing is imported.
pub fn show(session: &Session<'_>, wanted: &str) -> Result<Shown> {
    let Session { node, dir, .. } = *session;
    let survey = survey(dir)?;
    let Some(backup) = survey.find(wanted) else {
        let old = legacy::find(dir).filter(|_| wanted == LEGACY_ID).ok_or_else(|| no_such(dir, &survey, wanted))?;
        let (path, files) = (dir.shown().to_owned(), old.files());
        let (state, reason) = legacy::problem(&old)?.map_or((State::Legacy, None), |problem| (State::Damaged, Some(problem)));
        return Ok(Shown { id: LEGACY_ID.to_owned(), state, reason, path, taken: old.taken(), manifest: None, files });
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&backup.path).with_context(|| format!("listing {}", backup.path.display()))? {
        let entry = entry.with_context(|| format!("listing {}", backup.path.display()))?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata().map_or(0, |m| m.len()));
    }
    let manifest = backup.manifest.clone();
    let (state, reason) = judge(&manifest, identity(node).as_ref(), node.clock().now());
    Ok(Shown {
        id: backup.id.clone(),
        state,
        reason,
        path: node.shown(&backup.path),
        taken: Some(manifest.taken),
        manifest: Some(manifest),
        files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_one_name() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}

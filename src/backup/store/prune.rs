//! `prune`: deletes all but the newest good backups, of each kind by itself.

use std::collections::BTreeMap;

use anyhow::Result;

use super::after::{Removed, clear_up, not_during_a_recovery};
use crate::backup::manifest::Manifest;
use crate::backup::names::{RELEASE_LABEL, SCHEDULE_LABEL};
use crate::backup::published::Backup;
use crate::backup::survey::Survey;
use crate::backup::verify;
use crate::error::usage;
use crate::node::identity::Identity;
use crate::node::profile::Profile;
use crate::session::{Locked, Session};

/// How many good backups stay. Those of each schedule count by themselves, by [`SCHEDULE_LABEL`], and so do those from before an upgrade, by
/// [`RELEASE_LABEL`]: each of these stays until a newer one is good, however many others are taken. What is left alone is not even looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Of those that belong to neither; `None` leaves them alone.
    pub others: Option<usize>,
    /// Of those of each schedule, by the value of its label.
    pub schedules: BTreeMap<String, usize>,
    /// Of those of each schedule that is not among these, such as one that was deleted; `None` leaves them alone.
    pub gone: Option<usize>,
}

/// So many of those that belong to no schedule, which are the only ones that are pruned besides those from before an upgrade.
impl From<usize> for Retention {
    fn from(others: usize) -> Self {
        Self { others: Some(others), ..Self::default() }
    }
}

/// What a backup counts with.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group<'a> {
    BeforeAnUpgrade,
    Schedule(&'a str),
    Other,
}

impl Group<'_> {
    fn of(manifest: &Manifest) -> Group<'_> {
        match (manifest.labels.contains_key(RELEASE_LABEL), manifest.labels.get(SCHEDULE_LABEL)) {
            (true, _) => Group::BeforeAnUpgrade,
            (false, Some(schedule)) => Group::Schedule(schedule),
            (false, None) => Group::Other,
        }
    }
}

impl Retention {
    /// How many of a group stay; nothing where it is left alone.
    fn keep(&self, group: &Group<'_>) -> Option<usize> {
        match group {
            Group::BeforeAnUpgrade => Some(1),
            Group::Schedule(name) => self.schedules.get(*name).copied().or(self.gone),
            Group::Other => self.others,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`FailureKind::Usage`](crate::error::FailureKind::Usage) for none at all.
    pub fn check(&self) -> Result<()> {
        if self.others.iter().chain(self.schedules.values()).chain(&self.gone).any(|keep| *keep == 0) {
            return Err(usage("at least one good backup is always kept: --keep takes 1 or more"));
        }
        Ok(())
    }
}

/// Deletes the backups that are older than the newest good ones that `retention` keeps, unfinished backups, and what an interrupted deletion left.
/// Whether a backup is good is checked against its `SHA256SUMS`, on disk and now; `trusted` has just been checked. While there are fewer good ones in a group, none of it
/// that is published is deleted. A damaged one among the newest stays, for somebody to look at it, and one that another node or cluster took, which brings
/// this one back to nothing: neither counts as good. One that a newer agent took stays as well, and does not count as good: this agent cannot read it.
///
/// # Errors
/// [`FailureKind::Busy`](crate::error::FailureKind::Busy) during a recovery; as [`Retention::check`]; when something cannot be read or removed.
pub fn prune(session: &Locked<'_>, mut found: Survey, retention: &Retention, trusted: Option<&str>) -> Result<Removed> {
    let Session { node, dir, progress, .. } = **session;
    not_during_a_recovery(dir)?;
    retention.check()?;
    let mut result = Removed::default();
    for id in found.partial.clone() {
        found.remove(dir, &id)?;
        result.removed.push(id);
    }
    let backups = found.backups.clone();
    let mut groups: BTreeMap<Group<'_>, usize> = BTreeMap::new();
    for backup in &backups {
        *groups.entry(Group::of(&backup.manifest)).or_default() += 1;
    }
    // Where nothing would go, nothing has to be read.
    groups.retain(|group, there| retention.keep(group).is_some_and(|keep| *there > keep));
    // On a machine that says no more who it is, each counts.
    let here = Profile::of(node).and_then(|profile| Identity::of(node, profile)).ok();
    let is_ours = |manifest: &Manifest| here.as_ref().is_none_or(|here| manifest.identity.differences(here).is_empty());
    let mut good: BTreeMap<Group<'_>, usize> = BTreeMap::new();
    for Backup { id, path, manifest } in &backups {
        let group = Group::of(manifest);
        let keep = retention.keep(&group).filter(|_| groups.contains_key(&group));
        let Some(keep) = keep else {
            result.kept.push(id.clone());
            continue;
        };
        let good = good.entry(group).or_default();
        if *good == keep {
            found.remove(dir, id)?;
            result.removed.push(id.clone());
            continue;
        }
        if !is_ours(manifest) {
            result.kept.push(id.clone());
            continue;
        }
        let report = if trusted == Some(id.as_str()) { None } else { Some(verify::report(path, id, false, progress)?) };
        if let Some(bad) = report.filter(|report| !report.good) {
            result.warnings.push(format!("the backup {id} is {}: `recovery verify {id}` says how", bad.verdict()));
            continue;
        }
        *good += 1;
        result.kept.push(id.clone());
    }
    let newer = |(id, error): &(String, _)| format!("the backup {id} is not supported and stays: {error:#}");
    result.warnings.extend(found.unsupported.iter().map(newer));
    result.warnings.extend(found.damaged.iter().map(|(id, error)| format!("the backup {id} is damaged: {error:#}")));
    clear_up(session, &found, &mut result)?;
    Ok(result)
}

//! Whether a backup is good: whether it would bring this cluster back to where it is now.

use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::here::Here;
use crate::backup::published::Backup;
use crate::backup::survey::survey;
use crate::backup::verify::{self, VerifyReport};
use crate::kube::Upgraded;
use crate::session::Session;

/// How old a good backup may be, unless said otherwise.
pub const MAX_AGE: Duration = Duration::from_secs(3600);
/// How far the clock may have gone back since it was taken: more is no correction.
const CORRECTION: SignedDuration = SignedDuration::from_secs(300);

/// Why a backup is not good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "fault", rename_all = "kebab-case")]
pub enum Fault {
    /// Something of it is not as it was written, or nothing that a recovery takes.
    #[error("{problems}")]
    Damaged {
        /// What `verify` says.
        problems: String,
    },
    /// It is another node's or cluster's.
    #[error("{differences}")]
    OtherNode {
        /// In what they differ.
        differences: String,
    },
    /// The cluster was at another release.
    #[error("it is of the release {}, and the cluster is at {wanted}", found.as_deref().unwrap_or("that the API did not say"))]
    OtherRelease {
        /// The backup's.
        found: Option<String>,
        /// The cluster's.
        wanted: String,
    },
    /// Something was being rolled out.
    #[error("it was taken while the cluster was not at rest")]
    NotAtRest,
    /// The deployment that it belongs to is not the booted one.
    #[error("it belongs to another deployment than the booted one")]
    OtherDeployment,
    /// The upgrade's clean-up would take its deployment away.
    #[error("its deployment is not pinned")]
    NotPinned,
    /// It is too old.
    #[error("it was taken at {taken:.0}, longer ago than {max:#}")]
    TooOld {
        /// When it was taken.
        taken: Timestamp,
        /// How old it may be.
        max: SignedDuration,
    },
    /// By the clock, it has not been taken yet.
    #[error("it was taken at {taken:.0}, which is still to come: the clock has been set back")]
    FromTheFuture {
        /// When it was taken.
        taken: Timestamp,
    },
}

/// A good backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Good {
    /// Its id.
    pub id: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// When it is too old.
    pub until: Timestamp,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Look {
    /// The newest good one.
    pub good: Option<Good>,
    /// Those that are newer, or all of them, with what is wrong; newest first.
    pub passed_over: Vec<(String, Vec<Fault>)>,
}

impl Look {
    /// Why there is none, in a sentence.
    #[must_use]
    pub fn why(&self) -> String {
        match self.passed_over.first() {
            Some((id, faults)) => format!("the newest backup, {id}, is not good: {}", sentence(faults)),
            None => "there is no backup".to_owned(),
        }
    }
}

fn sentence(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

/// Looks for the newest good backup: published and read back, of this node, at this release and its deployment pinned, and young enough.
/// `trusted` has just been read back.
///
/// # Errors
/// As [`Here::release`]; when the backups cannot be listed, or when interrupted.
pub fn look(session: &Session<'_>, here: &Here, max_age: Duration, trusted: Option<&str>) -> Result<Look> {
    let now = session.node.clock().now();
    here.release()?;
    let found = survey(session.dir)?;
    let mut look = Look { good: None, passed_over: Vec::new() };
    for backup in &found.backups {
        let mut faults = judge(here, backup, max_age, now);
        // All of it is read only where all else is well.
        if faults.is_empty() && trusted != Some(backup.id.as_str()) {
            faults.extend(damage(&verify::report(&backup.path, &backup.id, true, session.progress)?));
        }
        if faults.is_empty() {
            let taken = backup.manifest.taken;
            look.good = Some(Good { id: backup.id.clone(), taken, until: taken.saturating_add(age(max_age)).unwrap_or(taken) });
            break;
        }
        look.passed_over.push((backup.id.clone(), faults));
    }
    if look.good.is_none() {
        let unusable = found.damaged.iter().chain(&found.unsupported);
        look.passed_over.extend(unusable.map(|(id, error)| (id.clone(), vec![Fault::Damaged { problems: format!("{error:#}") }])));
    }
    Ok(look)
}

fn age(max_age: Duration) -> SignedDuration {
    SignedDuration::try_from(max_age).unwrap_or(SignedDuration::MAX)
}

fn damage(report: &VerifyReport) -> Option<Fault> {
    (!report.good).then(|| Fault::Damaged { problems: report.problems.join("; ") })
}

/// All that can be said against a backup without reading its files.
fn judge(here: &Here, backup: &Backup, max_age: Duration, now: Timestamp) -> Vec<Fault> {
    let manifest = &backup.manifest;
    let mut faults = Vec::new();
    let differences = manifest.identity.differences(&here.identity);
    if !differences.is_empty() {
        faults.push(Fault::OtherNode { differences: differences.join("; ") });
    }
    let mut releases = vec![(manifest.cluster.as_ref().map(|cluster| cluster.version.clone()), here.cluster.version.clone())];
    if here.upgraded() == Some(Upgraded::Management) {
        let of = |management: Option<&crate::kube::Management>| management.and_then(|management| management.release.clone());
        releases.push((of(manifest.management.as_ref()), of(here.management.as_ref()).unwrap_or_default()));
    }
    faults.extend(
        releases
            .into_iter()
            .filter(|(found, wanted)| found.as_ref() != Some(wanted))
            .map(|(found, wanted)| Fault::OtherRelease { found, wanted }),
    );
    let moving = manifest.cluster.as_ref().is_some_and(|cluster| cluster.progressing)
        || manifest.operators.iter().any(|operator| operator.progressing)
        || manifest.management.as_ref().is_some_and(|management| !management.ready);
    if moving {
        faults.push(Fault::NotAtRest);
    }
    match (&manifest.deployment, &here.booted) {
        (Some(deployment), Some(booted)) if here.is_booted(deployment) => {
            if !booted.pinned {
                faults.push(Fault::NotPinned);
            }
        }
        (None, None) => {}
        _ => faults.push(Fault::OtherDeployment),
    }
    let (taken, old) = (manifest.taken, now.duration_since(manifest.taken));
    if old > age(max_age) {
        faults.push(Fault::TooOld { taken, max: age(max_age) });
    } else if old < -CORRECTION {
        faults.push(Fault::FromTheFuture { taken });
    }
    faults
}

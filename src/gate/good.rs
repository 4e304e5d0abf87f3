//! Whether a backup is good: whether it would bring this cluster back to where it is now.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::here::Here;
use crate::backup::names::RELEASE_LABEL;
use crate::backup::published::Backup;
use crate::backup::survey::survey;
use crate::backup::verify;
use crate::kube::Upgraded;
use crate::session::Session;
use crate::tools::ostree::Deployment;

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
    /// A newer agent took it.
    #[error("{why}")]
    NotSupported {
        /// Which.
        why: String,
    },
    /// It is another node's or cluster's.
    #[error("{differences}")]
    OtherNode {
        /// In what they differ.
        differences: String,
    },
    /// The cluster was at another release.
    #[error("it is of {}, and the cluster is at {wanted}", found.as_ref().map_or("a release that it does not know".to_owned(), |found| format!("the release {found}")))]
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
    /// It has the label of a backup from before an upgrade, so that no other pushes it out.
    #[serde(skip)]
    pub stays: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Look {
    /// The newest good one.
    pub good: Option<Good>,
    /// Those that are newer, or all of them, with what is wrong: newest first, then those that cannot be read.
    pub passed_over: Vec<(String, Vec<Fault>)>,
}

impl Look {
    /// True when all that is wrong with the backup `id` is its age.
    #[must_use]
    pub fn is_only_too_old(&self, id: &str) -> bool {
        let faults = self.passed_over.iter().find(|(passed, _)| passed == id).map(|(_, faults)| faults.as_slice());
        self.good.is_none() && matches!(faults, Some([Fault::TooOld { .. }]))
    }

    /// Why there is none, in a sentence.
    #[must_use]
    pub fn why(&self) -> String {
        match self.passed_over.first() {
            Some((id, faults)) => format!("the backup {id} is not good: {}", sentence(faults)),
            None => "there is no backup".to_owned(),
        }
    }
}

fn sentence(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")
}

/// Looks for the newest good backup: published and read back, of this node, at this release and its deployment pinned, and young enough.
/// What was read before is not read again.
///
/// # Errors
/// As [`Here::release`] and [`Here::booted`]; when the backups cannot be listed, or when interrupted.
pub fn look(session: &Session<'_>, here: &Here, max_age: Duration, read: &mut ReadBack) -> Result<Look> {
    let now = session.node.clock().now();
    here.release()?;
    let found = survey(session.dir)?;
    let mut look = Look { good: None, passed_over: Vec::new() };
    for backup in &found.backups {
        let mut faults = judge(here, backup, max_age, now);
        // ostree is asked, and all of it is read, only where all else is well.
        if faults.is_empty() {
            faults.extend(deployment_fault(backup, here.booted(session.node)?));
        }
        if faults.is_empty() {
            faults.extend(read.judge(session, backup)?);
        }
        if faults.is_empty() {
            let taken = backup.manifest.taken;
            let stays = backup.manifest.labels.contains_key(RELEASE_LABEL);
            look.good = Some(Good { id: backup.id.clone(), taken, until: taken.saturating_add(age(max_age)).unwrap_or(taken), stays });
            break;
        }
        look.passed_over.push((backup.id.clone(), faults));
    }
    if look.good.is_none() {
        let damaged =
            found.damaged.iter().map(|(id, error)| (id.clone(), vec![Fault::Damaged { problems: format!("it is damaged: {error:#}") }]));
        let newer = found.unsupported.iter().map(|(id, error)| (id.clone(), vec![Fault::NotSupported { why: format!("{error:#}") }]));
        look.passed_over.extend(damaged.chain(newer));
    }
    Ok(look)
}

/// As a distance of two times.
pub(super) fn age(max_age: Duration) -> SignedDuration {
    SignedDuration::try_from(max_age).unwrap_or(SignedDuration::MAX)
}

/// The backups that this process has read to their last byte, each with what is wrong. A published backup never changes.
#[derive(Debug, Default)]
pub struct ReadBack(BTreeMap<String, Option<Fault>>);

impl ReadBack {
    /// Notes a backup that was read back when it was taken.
    pub fn is_good(&mut self, id: &str) {
        self.0.entry(id.to_owned()).or_insert(None);
    }

    fn judge(&mut self, session: &Session<'_>, backup: &Backup) -> Result<Option<Fault>> {
        if let Some(known) = self.0.get(&backup.id) {
            return Ok(known.clone());
        }
        let report = verify::report(&backup.path, &backup.id, true, session.progress)?;
        let fault = (!report.good).then(|| Fault::Damaged { problems: report.problems.join("; ") });
        self.0.insert(backup.id.clone(), fault.clone());
        Ok(fault)
    }
}

/// All that can be said against a backup without reading its files, but for its deployment.
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
    let is_management = here.upgraded() == Some(Upgraded::Management);
    let moving = manifest.cluster.as_ref().is_some_and(|cluster| cluster.progressing)
        || manifest.operators.iter().any(|operator| operator.progressing)
        || is_management && manifest.management.as_ref().is_some_and(|management| !management.ready);
    if moving {
        faults.push(Fault::NotAtRest);
    }
    let (taken, old) = (manifest.taken, now.duration_since(manifest.taken));
    if old > age(max_age) {
        faults.push(Fault::TooOld { taken, max: age(max_age) });
    } else if old < -CORRECTION {
        faults.push(Fault::FromTheFuture { taken });
    }
    faults
}

fn deployment_fault(backup: &Backup, booted: Option<&Deployment>) -> Option<Fault> {
    match (&backup.manifest.deployment, booted) {
        (Some(deployment), Some(booted)) if deployment.is(booted) => (!booted.pinned).then_some(Fault::NotPinned),
        (None, None) => None,
        _ => Some(Fault::OtherDeployment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::Manifest;
    use crate::formats::samples;
    use crate::kube::Management;
    use crate::node::Node;

    /// A good backup, taken a minute ago, and the time.
    fn good() -> (Backup, Timestamp) {
        let mut manifest = Manifest::parse(&samples::read("manifest.2.json")).unwrap();
        manifest.operators.iter_mut().for_each(|operator| operator.progressing = false);
        manifest.cluster.as_mut().unwrap().progressing = false;
        let now = manifest.taken + SignedDuration::from_mins(1);
        (Backup { id: manifest.id.clone(), path: "/nowhere".into(), manifest }, now)
    }

    /// What is said of the backup after a change, by the cluster that it was taken of.
    fn faults(change: impl FnOnce(&mut Backup, &mut Here, &mut Timestamp)) -> Vec<Fault> {
        let (mut backup, mut now) = good();
        let mut here = Here::of_manifest(&backup.manifest);
        change(&mut backup, &mut here, &mut now);
        let mut faults = judge(&here, &backup, MAX_AGE, now);
        faults.extend(deployment_fault(&backup, here.booted(&Node::at(std::path::Path::new("/nowhere"), None)).unwrap()));
        faults
    }

    #[test]
    fn a_good_backup_has_no_fault_and_each_fault_is_found() {
        assert_eq!(faults(|_, _, _| ()), []);
        assert_eq!(faults(|backup, _, _| backup.manifest.cluster.as_mut().unwrap().progressing = true), [Fault::NotAtRest]);
        assert_eq!(faults(|backup, _, _| backup.manifest.operators[0].progressing = true), [Fault::NotAtRest]);
        assert_eq!(faults(|_, here, _| here.set_booted(|booted| booted.as_mut().unwrap().pinned = false)), [Fault::NotPinned]);
        assert_eq!(faults(|_, here, _| here.set_booted(|booted| booted.as_mut().unwrap().serial += 1)), [Fault::OtherDeployment]);
        assert_eq!(faults(|backup, _, _| backup.manifest.deployment = None), [Fault::OtherDeployment]);
        assert_eq!(faults(|_, here, _| here.set_booted(|booted| *booted = None)), [Fault::OtherDeployment]);
        assert!(matches!(&faults(|_, here, _| here.identity.node_name += "-2")[..], [Fault::OtherNode { .. }]));
        assert!(matches!(&faults(|_, here, _| here.cluster.version = "4.99.0".to_owned())[..], [Fault::OtherRelease { .. }]));
        let unknown = &faults(|backup, _, _| backup.manifest.cluster = None)[..];
        assert!(matches!(unknown, [Fault::OtherRelease { found: None, .. }]));
        assert!(unknown[0].to_string().contains("a release that it does not know"));
    }

    #[test]
    fn neither_an_old_backup_nor_one_from_the_future_is_good() {
        let at = |offset: i64| faults(|backup, _, now| *now = backup.manifest.taken + SignedDuration::from_secs(offset));
        assert_eq!(at(3600), []);
        assert!(matches!(&at(3601)[..], [Fault::TooOld { .. }]));
        assert_eq!(at(-300), [], "a correction of the clock");
        assert!(matches!(&at(-301)[..], [Fault::FromTheFuture { .. }]));
    }

    #[test]
    fn k0rdent_is_at_the_release_of_its_management() {
        let with = |release: Option<&str>, ready: bool| {
            faults(|backup, here, _| {
                let (copy, _) = good();
                *here = Here::of_manifest(&copy.manifest).of_k0rdent("kcm-0-2-0");
                backup.manifest.management =
                    release.map(|release| Management { release: Some(release.to_owned()), asked: release.to_owned(), ready });
            })
        };
        assert_eq!(with(Some("kcm-0-2-0"), true), []);
        assert_eq!(with(Some("kcm-0-2-0"), false), [Fault::NotAtRest]);
        assert!(matches!(&with(Some("kcm-0-1-0"), true)[..], [Fault::OtherRelease { .. }]));
        assert!(matches!(&with(None, true)[..], [Fault::OtherRelease { found: None, .. }]));
        // Where the cluster is not upgraded through it, how it is says nothing.
        assert_eq!(
            faults(|backup, _, _| backup.manifest.management = Some(Management { release: None, asked: String::new(), ready: false })),
            []
        );
    }
}

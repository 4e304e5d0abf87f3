//! Phase `finish`: the cluster is as the backup recorded it, and what the run needed is cleared away.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::modifier;
use super::run::{Doing, Step};
use super::step;
use super::undo::Units;
use super::waits;
use crate::error::{FailureKind, kind};
use crate::etcd;
use crate::kube::Skipped;
use crate::up::{Before, Checked, look};

/// Between two looks: each asks for a good deal.
const LOOK: Duration = Duration::from_secs(2);
/// How long what the backup does not record is waited for once all else is up.
const OTHERS: Duration = Duration::from_secs(120);

pub(super) const STEPS: &[Step] = &[
    Step::new(step::CLUSTER, "waiting for the cluster to be as the backup recorded it", cluster),
    Step::new(step::ETCD_COPY, "removing the etcd data that was replaced", drop_old_etcd),
    Step::new(step::PUT_BACK, "putting back what the recovery changed", put_back),
];

fn cluster(here: &mut Doing<'_, '_>) -> Result<()> {
    let client = waits::api(here)?;
    let mut manifest = here.run.backup.manifest.clone();
    // Under the release that rules ask for, other workloads may run than under the one that the backup is of; an older backup does not know any.
    if here.rules().is_some() || manifest.workloads.is_none() {
        manifest.workloads = Some(Vec::new());
    }
    let last = std::cell::RefCell::new(Vec::new());
    let clock = here.run.session.node.clock().clone();
    let recorded_since = std::cell::Cell::new(None);
    let left = here.wait_for(
        "the cluster to be as the backup recorded it",
        LOOK,
        |here| {
            waits::approve(here, &client);
            let before = Before { manifest: Some(&manifest), since: waits::kubelet_started(here) };
            *last.borrow_mut() = look(here.run.session.node, before)?.into_iter().filter(|part| !part.is_up()).collect();
            let down = last.borrow();
            if down.iter().any(|part: &Checked| part.part.is_recorded()) {
                recorded_since.set(None);
                return Ok(None);
            }
            let since = recorded_since.get().unwrap_or_else(|| clock.since_boot());
            recorded_since.set(Some(since));
            let is_over = down.is_empty() || clock.since_boot().saturating_sub(since) >= OTHERS;
            Ok(is_over.then(|| down.clone()))
        },
        |_| waits::with_obstacles(sentences(&last.borrow()), &client),
    )?;
    for part in left {
        here.warn(format!("not up, and the backup does not say whether it was before: {part}"));
    }
    Ok(())
}

/// What is not up, in a sentence.
fn sentences(down: &[Checked]) -> String {
    down.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The data that this run replaced, and that which the runs replaced that it restarted.
fn drop_old_etcd(here: &mut Doing<'_, '_>) -> Result<()> {
    let data = here.run.session.node.real_path(here.run.profile.etcd_data);
    if let Some(member) = etcd::kept_of(&data, &here.id()) {
        match let_pass(here, &member) {
            Ok(found) => found.into_iter().for_each(|skipped| {
                here.warn(format!("before the recovery, an upgrade was let pass the gate without a good backup: {skipped}"));
            }),
            Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
            // It may be what was broken.
            Err(error) => tracing::debug!("looking at the etcd data that was replaced: {error:#}"),
        }
    }
    etcd::drop_kept(&data, &here.id(), &here.run.undo.runs)
}

/// Where the `ClusterVersion` is, below the prefix of the keys.
const CLUSTER_VERSION: &str = "config.openshift.io/clusterversions/version";

/// The upgrades that somebody let pass the gate, by the data that was replaced: nowhere else is it known any more.
fn let_pass(here: &Doing<'_, '_>, member: &Path) -> Result<Vec<Skipped>> {
    let prefix = modifier::prefix(&here.run.backup)?;
    let (version, managements) = (format!("{prefix}/{}", CLUSTER_VERSION), format!("{prefix}/k0rdent.mirantis.com/managements/"));
    let mut wanted = |key: &[u8]| key == version.as_bytes() || key.starts_with(managements.as_bytes());
    let mut found = Vec::new();
    let mut look = |_: &[u8], value: &[u8]| {
        found.extend(serde_json::from_slice(value).ok().as_ref().and_then(Skipped::of));
        Ok(())
    };
    etcd::Snapshot::open_without_hash(&member.join("snap/db"), &|_| ())?.live(&mut wanted, &mut look)?;
    Ok(found)
}

fn put_back(here: &mut Doing<'_, '_>) -> Result<()> {
    let run = &mut *here.run;
    let said = run.undo.put_back(run.session, Units::Start)?;
    here.figure("put-back", said);
    Ok(())
}

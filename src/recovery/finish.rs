//! Phase `finish`: the cluster is as the backup recorded it and stays so, and what the run needed is cleared away.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::modifier;
use super::run::{Doing, Step};
use super::step;
use super::undo::Units;
use super::waits;
use crate::error::{FailureKind, kind, unanswered};
use crate::etcd;
use crate::formats::notes::EtcdCopyV1;
use crate::kube::Skipped;
use crate::report::unit;
use crate::up::{Before, Checked, Terms, look, wait};

/// How long that is waited for of which the backup does not say whether it was up before, once all else is up. It cannot be waited for until the
/// deadline: what was broken before the upgrade would keep each recovery from its end. Two minutes are what a webhook's pod or a controller takes that
/// does come back.
const OTHERS: Duration = Duration::from_secs(120);

pub(super) const STEPS: &[Step] = &[
    Step::new(step::CLUSTER, "waiting for the cluster to be as the backup recorded it, and to stay so", cluster),
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
    let what = "the cluster to be as the backup recorded it";
    let terms = Terms { hold: here.run.hold, patience: here.run.wait, others: Some(OTHERS) };
    let stays = format!("everything is up; it has to stay so for {} s", terms.hold.as_secs());
    let up = here.waiting(&format!("waiting for {what}"), |here, task| {
        let node = here.run.session.node;
        let mut look_again = || {
            waits::approve(here, &client);
            look(node, Before { manifest: Some(&manifest), since: waits::kubelet_started(here) })
        };
        let mut said = None;
        let mut show = |parts: &[Checked], _| {
            let now = if parts.iter().all(Checked::is_up) { stays.clone() } else { sentences(parts) };
            task.note(&now);
            // systemd keeps the last word: what `systemctl status` shows is what is waited for.
            if said.as_ref() != Some(&now) {
                unit::status(&format!("finish: {now}"));
                said = Some(now);
            }
        };
        wait(node.clock(), terms, &mut look_again, &mut show)
    })?;
    let fell: Vec<String> = up.fell.iter().map(ToString::to_string).collect();
    if !up.up {
        let why = [vec![sentences(&up.parts)], fell].concat().join("; ");
        return Err(unanswered(format!("waited {} s for {what}: {}", up.waited.round(), waits::with_obstacles(why, &client))));
    }
    here.figure("held", up.held);
    for part in up.parts.iter().filter(|part| !part.is_up()) {
        here.warn(format!("not up, and the backup does not say whether it was before: {part}"));
    }
    fell.into_iter().for_each(|fell| here.warn(fell));
    Ok(())
}

/// What is not up, in a sentence.
fn sentences(parts: &[Checked]) -> String {
    parts.iter().filter(|part| !part.is_up()).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The data that this run replaced, and that which the runs replaced that it restarted.
fn drop_old_etcd(here: &mut Doing<'_, '_>) -> Result<()> {
    let data = here.run.session.node.real_path(here.run.profile.etcd_data);
    let runs = here.run.undo.runs.clone();
    // Known before the first of it is gone: done again after a crash, the step finds it no more.
    let let_pass = if let Some(noted) = here.noted::<EtcdCopyV1>()? {
        noted
    } else {
        let found = EtcdCopyV1(let_pass(here, &data, &runs)?);
        if !found.0.is_empty() {
            here.note(&found)?;
        }
        found
    };
    let_pass.0.into_iter().for_each(|sentence| here.warn(sentence));
    etcd::drop_kept(&data, &here.id(), &runs)
}

/// Where the `ClusterVersion` is, below the prefix of the keys.
const CLUSTER_VERSION: &str = "config.openshift.io/clusterversions/version";

/// The upgrades that may pass the gate by an annotation, by the data that was replaced, one sentence each: nowhere else is it known any more. What a run of
/// before a restart has put aside is the cluster's; the restarted run, then, what that one had restored.
fn let_pass(here: &Doing<'_, '_>, data: &Path, runs: &[String]) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for member in runs.iter().chain([&here.id()]).filter_map(|run| etcd::kept_of(data, run)) {
        match skipped(here, &member) {
            Ok(found) => said.extend(found.iter().map(|skipped| format!("in the etcd data that was replaced, {}", skipped.sentence()))),
            Err(error) if kind(&error) == FailureKind::Interrupted => return Err(error),
            // It may be what was broken.
            Err(error) => tracing::debug!("looking at the etcd data that was replaced: {error:#}"),
        }
    }
    said.sort_unstable();
    said.dedup();
    Ok(said)
}

/// The annotations in the data of one member.
fn skipped(here: &Doing<'_, '_>, member: &Path) -> Result<Vec<Skipped>> {
    let prefix = modifier::prefix(&here.run.backup)?;
    let (version, managements) = (format!("{prefix}/{CLUSTER_VERSION}"), format!("{prefix}/k0rdent.mirantis.com/managements/"));
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

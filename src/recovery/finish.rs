//! Phase `finish`: the cluster is as the backup recorded it, and what the run needed is cleared away.

use std::time::Duration;

use anyhow::Result;

use super::run::{Doing, Step};
use super::step;
use super::undo::Units;
use super::waits;
use crate::etcd;
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
    etcd::drop_kept(&data, &here.id(), &here.run.undo.runs)
}

fn put_back(here: &mut Doing<'_, '_>) -> Result<()> {
    let run = &mut *here.run;
    let said = run.undo.put_back(run.session, Units::Start)?;
    here.figure("put-back", said);
    Ok(())
}

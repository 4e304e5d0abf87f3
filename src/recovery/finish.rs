//! Phase `finish`: the cluster is as the backup recorded it, and what the run needed is cleared away.

use anyhow::Result;

use super::run::{Doing, Step};
use super::step;
use super::undo::Units;
use super::waits::{self, PAUSE};
use crate::etcd;
use crate::up::{Before, Checked, look};

pub(super) const STEPS: &[Step] = &[
    Step::new(step::CLUSTER, "waiting for the cluster to be as the backup recorded it", cluster),
    Step::new(step::ETCD_COPY, "removing the etcd data that was replaced", drop_old_etcd),
    Step::new(step::PUT_BACK, "putting back what the recovery changed", put_back),
];

fn cluster(here: &mut Doing<'_, '_>) -> Result<()> {
    let client = waits::api(here)?;
    let manifest = here.run.backup.manifest.clone();
    let last = std::cell::RefCell::new(Vec::new());
    here.wait_for(
        "the cluster to be as the backup recorded it",
        PAUSE,
        |here| {
            waits::approve(here, &client);
            let before = Before { manifest: Some(&manifest), since: waits::kubelet_started(here) };
            *last.borrow_mut() = look(here.run.session.node, before)?.into_iter().filter(|part| !part.is_up()).collect();
            Ok(last.borrow().is_empty().then_some(()))
        },
        |_| waits::with_obstacles(sentences(&last.borrow()), &client),
    )?;
    if let (Some(then), Ok(now)) = (&manifest.cluster, client.cluster())
        && now.version != then.version
    {
        here.warn(format!("the cluster says it is at {}, the backup was taken at {}", now.version, then.version));
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

//! Phase `finish`: the cluster is as the backup recorded it, and what the run needed is cleared away.

use std::fmt;

use anyhow::Result;
use jiff::Timestamp;

use super::run::{Doing, Step};
use super::step;
use super::undo::Units;
use super::waits::{self, PAUSE};
use crate::etcd;
use crate::kube::{Client, OperatorState};

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
            *last.borrow_mut() = unlike(&client, &manifest.identity.node_name, waits::kubelet_started(here), &manifest.operators);
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

/// Something that is not yet as the backup recorded it.
#[derive(Debug, PartialEq, Eq)]
enum Unlike {
    /// The API server does not say.
    Unknown(String),
    /// kubelet has not reported this node Ready since it was started.
    NodeNotReady(String),
    /// There is no operator of this name.
    OperatorGone(String),
    /// An operator is worse than it was.
    Operator { name: String, is: Vec<&'static str> },
}

impl fmt::Display for Unlike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(why) => f.write_str(why),
            Self::NodeNotReady(node) => write!(f, "kubelet has not reported the node {node} Ready since it was started"),
            Self::OperatorGone(name) => write!(f, "the operator {name} is not there"),
            Self::Operator { name, is } => write!(f, "the operator {name} is {}", is.join(" and ")),
        }
    }
}

/// What is not yet as it was. The API server may be away for a moment: then that is.
fn unlike(client: &Client, node: &str, since: Option<Timestamp>, then: &[OperatorState]) -> Vec<Unlike> {
    let unknown = |error: anyhow::Error| Unlike::Unknown(format!("{error:#}"));
    let mut found = match client.node_ready(node, since) {
        Ok(true) => Vec::new(),
        Ok(false) => vec![Unlike::NodeNotReady(node.to_owned())],
        Err(error) => return vec![unknown(error)],
    };
    match client.operators() {
        Ok(now) => found.extend(operators_unlike(then, &now)),
        Err(error) => found.push(unknown(error)),
    }
    found
}

/// Operators that were available then must be available again and settled. One that was degraded need not be better now; one that was
/// not available, or was progressing, is not waited for.
fn operators_unlike(then: &[OperatorState], now: &[OperatorState]) -> Vec<Unlike> {
    let unlike = |was: &OperatorState| {
        let Some(is) = now.iter().find(|o| o.name == was.name) else {
            return was.available.then(|| Unlike::OperatorGone(was.name.clone()));
        };
        let worse = [
            (was.available && !is.available, "not available"),
            (!was.progressing && is.progressing, "progressing"),
            (was.available && !was.degraded && is.degraded, "degraded"),
        ];
        let worse: Vec<&str> = worse.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
        (!worse.is_empty()).then(|| Unlike::Operator { name: was.name.clone(), is: worse })
    };
    then.iter().filter_map(unlike).collect()
}

/// The sentences for them.
fn sentences(unlike: &[Unlike]) -> String {
    unlike.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn operator(name: &str, available: bool, progressing: bool, degraded: bool) -> OperatorState {
        OperatorState { name: name.to_owned(), version: None, available, progressing, degraded }
    }

    #[test]
    fn an_operator_is_waited_for_until_it_is_what_it_was() {
        let unlike = |then: OperatorState, now: OperatorState| sentences(&operators_unlike(&[then], &[now]));
        let good = || operator("dns", true, false, false);
        assert_eq!(unlike(good(), good()), "");
        assert_eq!(unlike(good(), operator("dns", false, true, false)), "the operator dns is not available and progressing");
        assert_eq!(unlike(good(), operator("dns", true, false, true)), "the operator dns is degraded");
        assert_eq!(unlike(operator("dns", true, false, true), operator("dns", true, false, true)), "", "degraded then, degraded now");
        assert_eq!(unlike(operator("dns", false, false, true), operator("dns", false, false, true)), "");
        assert_eq!(sentences(&operators_unlike(&[good()], &[])), "the operator dns is not there");
        assert_eq!(operators_unlike(&[], &[operator("new", false, true, true)]), Vec::new());
    }
}

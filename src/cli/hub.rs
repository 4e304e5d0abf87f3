//! `recovery hub`: the controller of a fleet's backups, and who is blocked.

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::args::{HubArgs, HubRunArgs, HubStatusArgs, HubVerb};
use super::context::Context;
use crate::error::usage;
use crate::hub::run::{self, Options};
use crate::hub::status::{Report, status};
use crate::report::words::line;

pub(super) fn run(context: &Context, args: &HubArgs) -> Result<ExitCode> {
    match &args.verb {
        HubVerb::Run(args) => run::run(&options(args)?).context("running the hub")?,
        HubVerb::Status(HubStatusArgs { cluster, group, namespace, check }) => {
            let report = status(namespace.as_deref(), group.as_deref(), cluster.as_deref())?;
            context.print(&report, describe)?;
            if *check && !report.is_good() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(args: &HubRunArgs) -> Result<Options> {
    let lease = args.lease_namespace.clone().or_else(|| args.namespace.clone()).ok_or_else(|| usage("--lease-namespace is missing"))?;
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Options {
        namespace: args.namespace.clone(),
        lease,
        image: args.image.clone(),
        listen: args.listen,
        name: args.identity.clone().unwrap_or_else(host),
    })
}

fn describe(report: &Report) -> String {
    let unknown: String = report.unknown.iter().map(|why| format!("not all clusters are known: {}\n", line(why))).collect();
    if report.clusters.is_empty() {
        return format!("{unknown}the hub knows of no such cluster\n");
    }
    let mut text = format!("{:30} {:8} {:19} {:22} {}\n", "CLUSTER", "UPGRADE", "STATE", "BACKUP", "WHY");
    for one in &report.clusters {
        let upgrade = if one.blocked { "blocked" } else { "may" };
        let state = one.state.map_or("Waiting", |state| state.name());
        let backup = one.backup.as_deref().unwrap_or("-");
        text += &format!("{:30} {upgrade:8} {state:19} {:22} {}\n", line(&one.cluster), line(backup), line(&one.why));
        if !one.gate_trouble.is_empty() {
            text += &format!("{:30} its gate could not be written: {}\n", "", line(&one.gate_trouble));
        }
    }
    let blocked = report.clusters.iter().filter(|one| one.blocked).count();
    text + &format!("{} clusters, {blocked} of them blocked\n{unknown}", report.clusters.len())
}

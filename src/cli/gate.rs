//! `recovery gate` and `recovery upgrade`: no upgrade without a good backup.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use jiff::SignedDuration;

use super::args::{GateArgs, GateVerb, UpgradeArgs};
use super::context::Context;
use crate::backup::take::trees::refuse_dir_inside;
use crate::error::usage;
use crate::gate::door::{self, Door};
use crate::gate::good::Look;
use crate::gate::upgrade::{self, Arrived};
use crate::gate::{Asked, Passed, pass};
use crate::kube::Permission;
use crate::report::words::line;
use crate::schedule::store::Schedules;

/// The deadline of an upgrade unless `--wait` says otherwise: one of a single node takes an hour or two.
const UPGRADE: Duration = Duration::from_secs(3 * 3600);

pub(super) fn run(context: &Context, args: &GateArgs) -> Result<ExitCode> {
    let session = || context.prepared_session();
    match args.verb {
        None => {
            refuse_dir_inside(&context.node, &context.dir)?;
            let wait = context.wait.map(Duration::from_secs);
            let asked = asked(context, args.schedule.clone(), args.take, wait, args.max_age)?;
            let (passed, ..) = pass(session()?, &asked)?;
            context.print(&passed, describe)?;
        }
        Some(GateVerb::Install) => context.print(&door::install(&session()?)?, describe_door)?,
        Some(GateVerb::Status) => context.print(&door::status(&session()?)?, describe_door)?,
        Some(GateVerb::Remove) => {
            context.confirm(&["Upgrades may begin without a good backup from then on.".to_owned()])?;
            let removed = door::remove(&session()?)?;
            context.print(&serde_json::json!({ "removed": removed }), |_| {
                if removed { "the gate is removed from the API server\n" } else { "there is no gate in the API server\n" }.to_owned()
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn upgrade(context: &Context, args: &UpgradeArgs) -> Result<ExitCode> {
    refuse_dir_inside(&context.node, &context.dir)?;
    let session = context.prepared_session()?;
    let asked = asked(context, args.schedule.clone(), true, None, args.max_age)?;
    context.confirm(&[format!("This cluster will be upgraded to {}, after a good backup.", args.to)])?;
    let patience = context.wait.map_or(UPGRADE, Duration::from_secs);
    let arrived = upgrade::upgrade(session, &asked, &args.to, patience)?;
    context
        .print(&arrived, |Arrived { passed, to, seconds }| format!("{}the cluster is at {to}, after {seconds:.0} s\n", describe(passed)))?;
    Ok(ExitCode::SUCCESS)
}

fn asked(context: &Context, schedule: Option<String>, take: bool, wait: Option<Duration>, max_age: SignedDuration) -> Result<Asked> {
    let max_age =
        Duration::try_from(max_age).ok().filter(|age| !age.is_zero()).ok_or_else(|| usage("--max-age must be more than nothing"))?;
    // The schedule that says so takes the backup before an upgrade.
    let schedules = Schedules::of(&context.node)?;
    let schedule = match schedule {
        Some(name) => Some(schedules.take(&name)?.name),
        None => schedules.all.into_values().find(|schedule| schedule.before_upgrade).map(|schedule| schedule.name),
    };
    Ok(Asked { schedule, take, through_the_api: false, wait, max_age, patience: context.deadline() })
}

fn describe(passed: &Passed) -> String {
    let how = if passed.taken_now { "taken now" } else { "taken before" };
    let mut text = format!(
        "the gate is open: the backup {} ({how}) brings this cluster back to {}; it is good until {:.0}\n",
        line(&passed.good.id),
        line(&passed.release),
        passed.good.until
    );
    for warning in &passed.warnings {
        text += &format!("  warning: {}\n", line(warning));
    }
    text
}

fn describe_door(door: &Door) -> String {
    let mut text = match (&door.installed, door.upgraded) {
        (Some(Permission::Open { release, until, .. }), Some(what)) => {
            format!("in the API server: open, the {what} may be changed from {} until {until:.0}\n", line(release))
        }
        (Some(Permission::Closed { why, .. }), Some(what)) => {
            format!("in the API server: closed, the {what} may not be changed: {}\n", line(why))
        }
        (Some(_), None) => "in the API server: installed, but there is nothing that it is about\n".to_owned(),
        (None, Some(_)) => "in the API server: not installed; `recovery gate install` puts it there\n".to_owned(),
        (None, None) => "in the API server: not installed; this cluster is upgraded by hand, after `recovery gate --take`\n".to_owned(),
    };
    if let Some(skipped) = &door.skipped {
        text += &format!("passed over: {}\n", line(&skipped.to_string()));
    }
    match (&door.found, &door.why) {
        (Some(Look { good: Some(good), .. }), _) => {
            text += &format!("on the node: the backup {} is good until {:.0}\n", line(&good.id), good.until);
        }
        (Some(look), _) => text += &format!("on the node: {}\n", line(&look.why())),
        (None, why) => text += &format!("on the node: {}\n", line(why.as_deref().unwrap_or("nothing is known"))),
    }
    text
}

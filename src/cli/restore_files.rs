//! `recovery restore-files`: begins a recovery.

use std::process::ExitCode;

use anyhow::Result;

use super::args::RestoreFilesArgs;
use super::context::Context;
use super::status::describe_run_report;
use crate::recovery::preflight::PlanReport;
use crate::recovery::{Asked, FirstPhase, Options, Proposal, propose};
use crate::report::words;

pub(super) fn run(context: &Context, args: &RestoreFilesArgs) -> Result<ExitCode> {
    let options = Options {
        backup: args.backup.clone(),
        asked: Asked {
            force: args.force,
            reboot: args.reboot,
            step: args.step,
            etcd: args.etcd_restore,
            wait: context.wait,
            hold: args.hold,
        },
        from: FirstPhase::Files,
        compare: args.dry_run,
        rules: None,
    };
    let proposal = propose(&context.session()?, options)?;
    if args.dry_run {
        context.print(&proposal.report, |report| describe_plan(report).join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    begin(context, proposal)
}

/// Asks, begins the recovery, and says how far it came.
pub(super) fn begin(context: &Context, proposal: Proposal<'_>) -> Result<ExitCode> {
    context.confirm(&describe_plan(&proposal.report))?;
    let report = proposal.begin()?;
    context.print(&report, describe_run_report)?;
    Ok(ExitCode::SUCCESS)
}

/// What a recovery found and would do, one line each.
pub(super) fn describe_plan(plan: &PlanReport) -> Vec<String> {
    let release = plan.release.as_deref().map_or_else(String::new, |release| format!(" (release {release})"));
    let mut lines = vec![format!("This node will be brought back to the backup {} of {}{release}.", plan.backup, plan.taken)];
    lines.extend(plan.continues.iter().map(|run| format!("It goes on with the open recovery {run}.")));
    lines.extend(plan.replaces.iter().map(|run| format!("It takes the place of the open recovery {run}, and begins again.")));
    lines.push(format!("deployment: {}", plan.platform.summary));
    lines.push(format!("the backup's sums are right (checked in {:.1} s)", plan.verified_seconds));
    lines.extend(plan.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.extend(plan.missing_images.iter().map(|image| format!("  missing: {}", image.name)));
    lines.extend(plan.modifier.iter().flat_map(super::modifier::describe));
    for tree in &plan.changes {
        lines.push(format!("{}: {}", tree.tree, super::archive::describe_counts(&tree.counts)));
        lines.extend(super::archive::describe_changes(&tree.changes).lines().map(|line| format!("  {line}")));
    }
    for phase in &plan.phases {
        let steps: Vec<&str> = phase.steps.iter().map(|step| step.name.as_str()).collect();
        lines.push(format!("{}: {}{}", phase.phase, steps.join(", "), if phase.reboot { ", reboot" } else { "" }));
    }
    lines.iter().map(|line| words::line(line).into_owned()).collect()
}

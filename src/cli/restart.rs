//! `recovery restart`: begins the open recovery again from its first phase.

use std::process::ExitCode;

use anyhow::Result;

use super::args::RestartArgs;
use super::context::Context;
use super::restore_files::describe_plan;
use super::status::describe_run_report;
use crate::recovery::{Asked, Options, Wait, plan_restart};

pub(super) fn run(context: &Context, args: &RestartArgs) -> Result<ExitCode> {
    let options = Options {
        backup: args.backup.clone(),
        asked: Asked { force: args.force, ..Asked::default() },
        wait: Wait(context.wait),
        compare: false,
    };
    let proposal = plan_restart(&context.node, &context.dir, options, &context.progress)?;
    context.confirm(&describe_plan(&proposal.report))?;
    let report = proposal.begin()?;
    context.print(&report, describe_run_report)?;
    Ok(ExitCode::SUCCESS)
}

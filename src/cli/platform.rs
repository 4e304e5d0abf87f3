//! `recovery platform`: which deployment a recovery needs, and what it takes to boot it.

use std::process::ExitCode;

use anyhow::Result;

use super::args::PlatformArgs;
use super::context::Context;
use crate::error::misfit;
use crate::recovery::platform::{Action, PlatformReport, table};
use crate::recovery::platform_report;

pub(super) fn run(context: &Context, args: &PlatformArgs) -> Result<ExitCode> {
    let report = platform_report(&context.node, &context.dir, args.backup.as_deref(), &context.progress)?;
    context.print(&report, describe)?;
    match &report.action {
        Action::Refuse { why } => Err(misfit(why)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn describe(report: &PlatformReport) -> String {
    let mut text = table(&report.deployments);
    text += &format!("{}\n", report.summary);
    for command in &report.commands {
        text += &format!("  {command}\n");
    }
    text
}

//! `recovery resume`: what the unit runs after each reboot, and an administrator by hand.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::args::ResumeArgs;
use super::context::Context;
use super::status::{describe_run_report, how_far};
use crate::recovery::{ResumeOptions, resume};
use crate::report::unit;

pub(super) fn run(context: &Context, args: &ResumeArgs) -> Result<ExitCode> {
    let options = ResumeOptions {
        step: args.step,
        unit: args.unit,
        wait: context.wait.map(Duration::from_secs),
        hold: args.hold.map(Duration::from_secs),
    };
    if args.unit {
        unit::ready();
    }
    let report = resume(&context.session()?, &options).inspect_err(|error| {
        if args.unit {
            unit::status(&context.as_called(&format!("{error:#}")));
        }
    })?;
    if let (true, Some(report)) = (args.unit, &report) {
        unit::status(how_far(report.outcome));
    }
    context.print(&report, |report| match report {
        Some(report) => describe_run_report(report),
        None => "no recovery is in progress: nothing to do\n".to_owned(),
    })?;
    Ok(ExitCode::SUCCESS)
}

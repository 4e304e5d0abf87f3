//! `recovery platform`: which deployment a recovery needs, and what it takes to boot it; with `--rollback`, that is done.

use std::process::ExitCode;

use anyhow::Result;

use super::args::PlatformArgs;
use super::context::Context;
use super::restore_files::begin;
use crate::error::{misfit, to_exit};
use crate::recovery::platform::table::{Action, PlatformReport, table};
use crate::recovery::{Asked, FirstPhase, Options, platform_report, propose};
use crate::report::words::line;

pub(super) fn run(context: &Context, args: &PlatformArgs) -> Result<ExitCode> {
    let report = platform_report(&context.session()?, args.backup.as_deref())?;
    match &report.action {
        Action::Drop { .. } | Action::RollBack { .. } | Action::Reboot { .. } if args.rollback => roll_back(context, args),
        Action::Refuse { .. } => {
            context.print(&report, describe)?;
            Ok(to_exit(&misfit("")))
        }
        _ => {
            context.print(&report, describe)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The first phase of a recovery, by itself: the next one is for a person to begin.
fn roll_back(context: &Context, args: &PlatformArgs) -> Result<ExitCode> {
    let options = Options {
        backup: args.backup.clone(),
        asked: Asked { reboot: true, step: true, wait: context.wait, ..Asked::default() },
        from: FirstPhase::Platform,
        compare: false,
        rules: None,
    };
    begin(context, propose(&context.session()?, options)?)
}

fn describe(report: &PlatformReport) -> String {
    let mut text = table(&report.deployments);
    text += &format!("{}\n", line(&report.summary));
    text += &report.soft_reboot.as_ref().map_or_else(String::new, |prepared| format!("{}\n", line(prepared)));
    for command in &report.commands {
        text += &format!("  {}\n", line(command));
    }
    if let Action::Refuse { way: Some(way), .. } = &report.action {
        text += &format!("next: {}\n", line(&way.to_string()));
    }
    text
}

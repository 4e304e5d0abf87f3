//! `recovery abandon`: ends the open recovery where it is.

use std::process::ExitCode;

use anyhow::Result;

use super::args::AbandonArgs;
use super::context::Context;
use crate::recovery::{AbandonReport, abandon};
use crate::report::words::line;

pub(super) fn run(context: &Context, args: &AbandonArgs) -> Result<ExitCode> {
    context.confirm(&[
        "The recovery will be ended where it is: what it has restored stays, what it holds back (kubelet, SELinux) is let go.".to_owned(),
        "`recovery status` says how far it came.".to_owned(),
    ])?;
    let report = abandon(&context.session()?, args.force)?;
    context.print(&report, |report| report.as_ref().map_or_else(|| "no recovery is in progress: nothing to do\n".to_owned(), describe))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &AbandonReport) -> String {
    let mut text = report.put_back.iter().map(|said| format!("{}\n", line(said))).collect::<String>();
    text += &format!("{}\n", line(&report.state));
    text
}

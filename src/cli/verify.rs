//! `recovery verify`: every file against its sum, and all content.

use std::process::ExitCode;

use anyhow::Result;
use kube::core::Selector;

use super::args::VerifyArgs;
use super::context::Context;
use crate::backup::store::{self, Listed, State};
use crate::backup::verify::VerifyReport;
use crate::error::{FailureKind, to_exit};
use crate::report::{mib, words::line};

pub(super) fn run(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let session = context.session()?;
    let check = |wanted| store::verify_chosen(&session, wanted, true);
    let listed: Vec<_> = store::list(&session, &Selector::default())?.into_iter().filter(|one| one.state != State::Partial).collect();
    let reports = match &args.backup {
        None if !listed.is_empty() => listed.iter().filter_map(|one| there(context, one, check(Some(&one.id)))).collect::<Result<_>>()?,
        wanted => vec![check(wanted.as_deref())?],
    };
    context.print(&reports, |reports| reports.iter().map(describe).collect())?;
    // What is damaged counts more than what is not taken.
    let Some(worst) = reports
        .iter()
        .filter(|report| !report.good)
        .min_by_key(|report| (report.kind != Some(FailureKind::Damaged), report.kind.map(FailureKind::code)))
    else {
        return Ok(ExitCode::SUCCESS);
    };
    let bad: Vec<&str> = reports.iter().filter(|report| !report.good).map(|report| report.id.as_str()).collect();
    let text =
        format!("{}: {}; `recovery verify` checks all there are, `recovery backup` takes a new one", worst.verdict(), bad.join(", "));
    let error = worst.failure(text);
    // The reports, which are printed already, say it all: JSON is one document.
    if context.json { Ok(to_exit(&error)) } else { Err(error) }
}

/// What the check of a backup said, unless that was deleted after it had been listed, which is said instead.
fn there(context: &Context, one: &Listed, checked: Result<VerifyReport>) -> Option<Result<VerifyReport>> {
    if checked.is_err() && store::is_deleted(&context.dir, &one.id) {
        context.progress.say(&format!("the backup {} was deleted meanwhile", one.id));
        return None;
    }
    Some(checked)
}

fn describe(report: &VerifyReport) -> String {
    let count = if report.files.is_empty() { String::new() } else { format!(" in {} files", report.files.len()) };
    let verdict = if report.good { "good".to_owned() } else { report.verdict().to_uppercase() };
    let mut text = format!("{}: {verdict}, {}{count}\n", line(&report.id), mib(report.bytes));
    for problem in &report.problems {
        text += &format!("    {}\n", line(problem));
    }
    text
}

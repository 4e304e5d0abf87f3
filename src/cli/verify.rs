//! `recovery verify`: every file against its sum, and all content.

use std::process::ExitCode;

use anyhow::Result;

use super::args::VerifyArgs;
use super::context::Context;
use crate::backup::store::{self, Listed, State};
use crate::backup::verify::VerifyReport;
use crate::error::{damaged, to_exit, unsupported};
use crate::report::{mib, words::line};

pub(super) fn run(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let check = |wanted| store::check(&context.dir, wanted, true, &context.progress);
    let listed: Vec<_> = store::list(&context.dir)?.into_iter().filter(|one| one.state != State::Partial).collect();
    let reports = match &args.backup {
        None if !listed.is_empty() => listed.iter().filter_map(|one| there(context, one, check(Some(&one.id)))).collect::<Result<_>>()?,
        wanted => vec![check(wanted.as_deref())?],
    };
    context.print(&reports, |reports| reports.iter().map(describe).collect())?;
    let named = |which: fn(&&VerifyReport) -> bool| reports.iter().filter(which).map(|r| r.id.as_str()).collect::<Vec<_>>().join(", ");
    let (bad, not_taken) = (named(|r| !r.good && !r.unsupported), named(|r| r.unsupported));
    let error = match (bad.is_empty(), not_taken.is_empty()) {
        (true, true) => return Ok(ExitCode::SUCCESS),
        (true, false) => unsupported(format!("not supported: {not_taken}; above is what to do instead")),
        (false, _) => damaged(format!("damaged: {bad}; `recovery list` shows which are good, `recovery backup` takes a new one")),
    };
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
    let size: u64 = report.files.values().map(|sum| sum.bytes).sum();
    let state = match report {
        VerifyReport { good: true, .. } => "good",
        VerifyReport { unsupported: true, .. } => "not supported",
        _ => "DAMAGED",
    };
    let mut text = format!("{}: {state}, {} in {} files\n", line(&report.id), mib(size), report.files.len());
    for problem in &report.problems {
        text += &format!("    {}\n", line(problem));
    }
    text
}

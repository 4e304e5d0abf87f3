//! `recovery verify`: every file against its sum, and all content.

use std::process::ExitCode;

use anyhow::Result;

use super::args::VerifyArgs;
use super::context::Context;
use crate::backup::store::{self, Listed, State};
use crate::backup::verify::VerifyReport;
use crate::error::{Failure, damaged};
use crate::report::{mib, words::line};

pub(super) fn run(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let check = |wanted| store::check(&context.dir, wanted, true, &context.progress);
    let listed: Vec<_> = store::list(&context.dir)?.into_iter().filter(|one| one.state != State::Partial).collect();
    let reports = match &args.backup {
        None if !listed.is_empty() => listed.iter().filter_map(|one| there(context, one, check(Some(&one.id)))).collect::<Result<_>>()?,
        wanted => vec![check(wanted.as_deref())?],
    };
    context.print(&reports, |reports| reports.iter().map(describe).collect())?;
    let bad: Vec<&str> = reports.iter().filter(|r| !r.good).map(|r| r.id.as_str()).collect();
    if bad.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if context.json {
        return Ok(ExitCode::from(Failure::Damaged(String::new()).code()));
    }
    Err(damaged(format!("damaged: {}; `recovery list` shows which are good, `recovery backup` takes a new one", bad.join(", "))))
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
    let mut text =
        format!("{}: {}, {} in {} files\n", line(&report.id), if report.good { "good" } else { "DAMAGED" }, mib(size), report.files.len());
    for problem in &report.problems {
        text += &format!("    {}\n", line(problem));
    }
    text
}

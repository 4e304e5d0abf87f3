//! `recovery report`: the account of a recovery, as people paste it into a ticket, and as a page.

mod page;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;

use super::args::ReportArgs;
use super::context::{Context, reported, to_stdout};
use crate::error::{AndNext, by_hand, usage};
use crate::node::durable;
use crate::recovery::account::{Account, Attempt, AttemptEnd, End, PhaseAccount, StepAccount};
use crate::recovery::report::StepState;
use crate::report::{paths, words::line};

pub(super) fn run(context: &Context, args: &ReportArgs) -> Result<ExitCode> {
    let account = crate::recovery::account(&context.session()?, args.run.as_deref())?;
    let Some(file) = &args.html else {
        context.print(&account, describe)?;
        return Ok(ExitCode::SUCCESS);
    };
    let page = page::page(&account, &|text| context.as_called(text));
    if file == Path::new("-") {
        if context.json {
            return Err(usage("`--html -` and --json both go to standard output: give one of them"));
        }
        reported(to_stdout(&page))?;
        return Ok(ExitCode::SUCCESS);
    }
    write(file, args.force, &page)?;
    context.print(&account, |account| format!("the report of recovery {} is in {}\n", line(&account.id), paths::shown(file)))?;
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, force: bool, page: &str) -> Result<()> {
    let folder = file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let error = usage(format!("there is no folder {} that the report could be put into", paths::shown(folder)));
        return Err(error.and_next(by_hand("make it, or name a file elsewhere")));
    }
    let there = file.symlink_metadata().ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        let error = usage(format!("{} is there and no regular file, which is what a report can be written over", paths::shown(file)));
        return Err(error.and_next(by_hand("name another file; without --html, the report goes to standard output")));
    }
    if !force && there.is_some() {
        let error = usage(format!("{} is there already, and stays as it is", paths::shown(file)));
        return Err(error.and_next(by_hand("name another file, or give --force to write over this one")));
    }
    durable::write(file, page.as_bytes(), 0o600)
}

/// How it ended, in words.
fn ended(account: &Account) -> &'static str {
    match account.end {
        End::Open => "in progress",
        End::Finished => "finished",
        End::Abandoned => "abandoned",
        End::Replaced => "replaced: another recovery was begun in its place",
    }
}

fn state(step: &StepAccount) -> &'static str {
    match step.state {
        StepState::Waiting => "-",
        StepState::Begun => "begun",
        StepState::Failed => "failed",
        StepState::Done => "done",
    }
}

/// A point in time, as far as people need it.
fn instant(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A length of time, as people say it.
fn length(seconds: f64) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "nothing that a clock measured is as long")]
    let whole = seconds.round() as i64;
    match whole {
        ..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// What stands above the table: what it is about, when, and how it ended.
fn facts(account: &Account) -> Vec<(&'static str, String)> {
    let none = || "not known".to_owned();
    let mut facts = vec![
        ("backup", account.backup.clone().unwrap_or_else(none)),
        ("node", account.node.clone().unwrap_or_else(none)),
        ("agent", account.agent.as_ref().map_or_else(none, |agent| format!("recovery {agent}"))),
        ("begun", account.begun.map_or_else(none, instant)),
    ];
    let took = elapsed(account).map_or_else(String::new, |seconds| format!(", {} after its begin", length(seconds)));
    let what = if account.end == End::Open { "last event" } else { "ended" };
    facts.push((what, account.ended.map_or_else(none, |time| format!("{}{took}", instant(time)))));
    let said = account.state.as_ref().filter(|_| account.end != End::Finished).map_or_else(String::new, |state| format!(" ({state})"));
    facts.push(("outcome", format!("{}{said}", ended(account))));
    let own = account.seconds - account.waited - account.unfinished;
    let unfinished = match account.unfinished {
        ..0.05 => String::new(),
        seconds => format!(", {} in attempts that did not reach their end", length(seconds)),
    };
    facts.push(("steps", format!("{} of their own work, {} of waiting{unfinished}", length(own), length(account.waited))));
    facts
}

/// How long it was open, by the wall clock, which can have been set meanwhile.
fn elapsed(account: &Account) -> Option<f64> {
    Some(account.ended?.duration_since(account.begun?).as_secs_f64()).filter(|seconds| *seconds >= 0.0)
}

/// Every attempt that did not reach its end, in order of time: its phase, step, number, and itself.
fn troubles(account: &Account) -> Vec<(&PhaseAccount, &StepAccount, usize, &Attempt)> {
    let steps = account.phases.iter().flat_map(|phase| phase.steps.iter().map(move |step| (phase, step)));
    let attempts = steps.flat_map(|(phase, step)| step.attempts.iter().zip(1..).map(move |(one, number)| (phase, step, number, one)));
    let mut troubles: Vec<_> = attempts.filter(|(.., one)| matches!(one.end, AttemptEnd::Failed | AttemptEnd::CutShort)).collect();
    troubles.sort_by_key(|(.., one)| one.begun);
    troubles
}

/// A trouble in a sentence.
fn trouble((phase, step, number, one): &(&PhaseAccount, &StepAccount, usize, &Attempt)) -> String {
    let at = format!("{}: {}, attempt {number} of {}, at {}", phase.phase, step.step, step.attempts.len(), instant(one.begun));
    match &one.failure {
        Some(failure) => {
            let next = failure.next.as_ref().map_or_else(String::new, |next| format!("; next was: {next}"));
            format!("{at}: failed after {} ({}): {}{next}", length(one.seconds), failure.kind, failure.message)
        }
        None if one.end == AttemptEnd::Failed => format!("{at}: failed after {}", length(one.seconds)),
        None => format!("{at}: cut short; the step was done again"),
    }
}

fn describe(account: &Account) -> String {
    let mut text = format!("recovery {}\n", line(&account.id));
    for (what, value) in facts(account) {
        writeln!(text, "  {what:<12}{}", line(&value)).ok();
    }
    if !account.phases.is_empty() {
        writeln!(text, "\n{:<34}{:<8}{:>6}{:>11}{:>11}", "PHASE AND STEP", "STATE", "TRIES", "SECONDS", "WAITING").ok();
    }
    for phase in &account.phases {
        let sums = if phase.has_begun() { format!("{:>11.1}{:>11.1}", phase.seconds, phase.waited) } else { String::new() };
        writeln!(text, "{}", format!("{:<48}{sums}", line(&phase.phase)).trim_end()).ok();
        for step in &phase.steps {
            let number = |seconds: Option<f64>| seconds.map_or_else(String::new, |seconds| format!("{seconds:.1}"));
            let row = format!(
                "  {:<32}{:<8}{:>6}{:>11}{:>11}",
                line(&step.step),
                state(step),
                step.tries,
                number(step.seconds),
                number(step.waited)
            );
            writeln!(text, "{}", row.trim_end()).ok();
        }
        for reboot in &phase.reboots {
            let back = reboot.back.map_or_else(|| "not back yet".to_owned(), |back| format!("went on at {}", instant(back)));
            writeln!(text, "  reboot asked for at {}, {back}", instant(reboot.asked)).ok();
        }
    }
    for (title, lines) in lists(account) {
        writeln!(text, "\n{title}").ok();
        lines.iter().for_each(|one| text += &format!("  - {}\n", line(one)));
    }
    if let Some(next) = &account.next {
        writeln!(text, "\nnext: {}", line(&next.to_string())).ok();
    }
    text
}

/// What stands below the table, each list with its title; none is empty.
fn lists(account: &Account) -> Vec<(&'static str, Vec<String>)> {
    let failures = troubles(account).iter().map(trouble).collect();
    let about_the_journal = account.without_journal.iter().map(|why| format!("attempts and times of the steps are not known: {why}"));
    let lists = [
        ("What failed", failures),
        ("Warnings", account.warnings.iter().cloned().chain(about_the_journal).collect()),
        ("What had changed when it was abandoned", account.changed.clone()),
        ("What was put back, and what is left to do", account.put_back.clone()),
        ("The node then", account.left.iter().cloned().collect()),
    ];
    lists.into_iter().filter(|(_, lines)| !lines.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_well() {
        assert_eq!(length(0.04), "0.0 s");
        assert_eq!(length(59.4), "59.4 s");
        assert_eq!(length(59.6), "1 min 0 s");
        assert_eq!(length(3599.6), "1 h 0 min");
        assert_eq!(length(90_061.0), "25 h 1 min");
    }
}

//! `recovery schedule`: backups on time.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::args::{ScheduleArgs, ScheduleSetArgs, ScheduleVerb};
use super::context::Context;
use crate::backup::survey::survey;
use crate::error::{FailureKind, kind, usage};
use crate::node::durable;
use crate::report::words::line;
use crate::schedule::due::{Now, judge};
use crate::schedule::store::{State, check_owner};
use crate::schedule::{Change, Pace, Schedule, Schedules, Verdict, arm, backup_takes, delete, instants, manifest, put, run as runs};

/// How many instants are shown.
const SHOWN: usize = 3;

/// A schedule, as it is reported.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: String,
    cron: String,
    time_zone: String,
    before_upgrade: bool,
    keep: u32,
    paused: bool,
    created: Timestamp,
    /// When something is done about it next.
    next: Option<Timestamp>,
    /// Why it waits, being due.
    waits: Option<String>,
    /// What is wrong with how often it is.
    pace: Option<String>,
    /// Its next instants.
    instants: Vec<Timestamp>,
    #[serde(flatten)]
    state: State,
}

/// A line of `list`: a schedule, or why it cannot be read.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Listed {
    Schedule(Box<Report>),
    Unreadable { name: String, error: String },
}

pub(super) fn run(context: &Context, args: &ScheduleArgs) -> Result<ExitCode> {
    match &args.verb {
        ScheduleVerb::Apply { filename } => {
            let changes = manifest::read(&text(filename)?).with_context(|| format!("reading {}", filename.display()))?;
            change(context, &changes)
        }
        ScheduleVerb::Set(args) => change(context, &[asked(args)]),
        ScheduleVerb::List => list(context),
        ScheduleVerb::Show { name } => show(context, name),
        ScheduleVerb::Delete { name } => {
            delete(&context.session()?.lock("schedule delete")?, name)?;
            context.print(&serde_json::json!({"deleted": name}), |_| {
                format!("the schedule {name} is deleted; its backups stay: `recovery list`\n")
            })?;
            Ok(ExitCode::SUCCESS)
        }
        ScheduleVerb::Run { name, force } => now(context, name, *force),
        ScheduleVerb::Due { arm: true } => {
            arm::arm(&context.node)?;
            Ok(ExitCode::SUCCESS)
        }
        ScheduleVerb::Due { arm: false } => due(context),
    }
}

fn text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let mut read = || -> Result<usize> {
        if file == Path::new("-") {
            return Ok(std::io::stdin().take(manifest::MOST + 1).read_to_string(&mut text)?);
        }
        Ok(durable::open_regular(file)?.take(manifest::MOST + 1).read_to_string(&mut text)?)
    };
    let bytes = read().with_context(|| format!("reading {}", file.display()))?;
    if bytes as u64 > manifest::MOST {
        return Err(usage(format!("{} has more than {} bytes: that is no schedule", file.display(), manifest::MOST)));
    }
    Ok(text)
}

fn asked(args: &ScheduleSetArgs) -> Change {
    let ScheduleSetArgs { name, cron, time_zone, before_upgrade, keep, paused } = args.clone();
    Change { name, cron, time_zone, before_upgrade, keep, paused }
}

fn change(context: &Context, changes: &[Change]) -> Result<ExitCode> {
    // Before the directory is made, perhaps in a tree that is archived.
    crate::backup::take::trees::refuse_dir_inside(&context.node, &context.dir)?;
    let made = put(&context.prepared_session()?.lock("schedule set")?, changes)?;
    let (now, takes) = (clocks(context)?, takes(context)?);
    let reports: Vec<Report> = made.into_iter().map(|schedule| report(&schedule, takes, &now)).collect::<Result<_>>()?;
    context.print(&reports, |reports| reports.iter().map(describe_set).collect())?;
    Ok(ExitCode::SUCCESS)
}

/// What the time is and what is in the way; whoever holds the lock, too.
fn clocks(context: &Context) -> Result<Now> {
    let mut now = arm::now(&context.node, &context.dir)?;
    let holder = context.dir.holder();
    now.blocked = now.blocked.or_else(|| holder.map(|holder| format!("{} is locked by {holder}", context.dir.shown().display())));
    Ok(now)
}

/// How long a backup takes here.
fn takes(context: &Context) -> Result<Option<Duration>> {
    Ok(backup_takes(&survey(&context.dir)?))
}

fn report(schedule: &Schedule, takes: Option<Duration>, now: &Now) -> Result<Report> {
    let (schedule, _) = schedule.settled(now);
    let verdict = judge(&schedule, now)?;
    let waits = if let Verdict::Waits { why, .. } = &verdict { Some(why.clone()) } else { None };
    Ok(Report {
        next: verdict.wake(),
        waits,
        pace: Pace::now(&schedule, takes, now.moment.wall)?.said(),
        instants: instants(&schedule, now.moment.wall, SHOWN)?,
        time_zone: schedule.zone_name()?,
        name: schedule.name,
        cron: schedule.expression,
        before_upgrade: schedule.before_upgrade,
        keep: schedule.keep,
        paused: schedule.paused,
        created: schedule.created,
        state: schedule.state,
    })
}

fn list(context: &Context) -> Result<ExitCode> {
    context.print(&listed(context)?, |listed| describe_list(listed))?;
    Ok(ExitCode::SUCCESS)
}

/// All schedules, as they are reported.
pub(super) fn listed(context: &Context) -> Result<Vec<Listed>> {
    context.session()?;
    check_owner(&context.node, &context.dir)?;
    let (now, takes) = (clocks(context)?, takes(context)?);
    let Schedules { all, unreadable } = Schedules::of(&context.node)?;
    let unreadable = unreadable.into_iter().map(|(name, error)| Listed::Unreadable { name, error: format!("{error:#}") });
    let readable = all.into_values().map(|schedule| {
        let name = schedule.name.clone();
        report(&schedule, takes, &now)
            .map_or_else(|error| Listed::Unreadable { name, error: format!("{error:#}") }, |report| Listed::Schedule(Box::new(report)))
    });
    Ok(readable.chain(unreadable).collect())
}

fn show(context: &Context, name: &str) -> Result<ExitCode> {
    context.session()?;
    check_owner(&context.node, &context.dir)?;
    let report = report(&Schedules::of(&context.node)?.take(name)?, takes(context)?, &clocks(context)?)?;
    context.print(&report, describe)?;
    Ok(ExitCode::SUCCESS)
}

fn now(context: &Context, name: &str, force: bool) -> Result<ExitCode> {
    let (backup, warnings) = runs::now_once(&context.session()?.lock("schedule run")?, name, context.deadline(), force)?;
    context.print(&serde_json::json!({"schedule": name, "backup": backup, "warnings": warnings}), |_| {
        let mut text = format!("the schedule {name} has the backup {backup}\n");
        warnings.iter().for_each(|warning| text += &format!("  warning: {}\n", line(warning)));
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What waits is tried again, and is no failure of the unit; whatever else went wrong is one.
fn due(context: &Context) -> Result<ExitCode> {
    let ran = runs::due(context.session()?, context.deadline())?;
    context.print(&ran, |ran| {
        let mut text = String::new();
        for one in ran {
            match (&one.backup, &one.why) {
                (Some(backup), _) => text += &format!("the schedule {} has the backup {}\n", line(&one.schedule), line(backup)),
                (None, why) => {
                    text += &format!("the schedule {} waits: {}\n", line(&one.schedule), line(why.as_deref().unwrap_or_default()));
                }
            }
            one.warnings.iter().for_each(|warning| text += &format!("  warning: {}\n", line(warning)));
        }
        if ran.is_empty() { "nothing is due\n".to_owned() } else { text }
    })?;
    let worst = ran.iter().filter_map(|one| one.error.as_ref()).map(kind).find(|kind| !kind.is_not_now());
    let waits = ran.iter().any(|one| one.backup.is_none()).then_some(FailureKind::Busy);
    Ok(worst.or(waits).map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.code())))
}

/// An instant in the schedule's zone, and in UTC where that is another.
fn instant(time: Timestamp, zone: &str) -> String {
    let utc = time.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
    match crate::schedule::zone::zone(zone) {
        Ok(there) if there != TimeZone::UTC => {
            format!("{} {} ({utc})", time.to_zoned(there).strftime("%Y-%m-%d %H:%M:%S%:z"), line(zone))
        }
        _ => utc,
    }
}

fn describe_set(report: &Report) -> String {
    let mut text = format!("the schedule {} is set: {}\n", line(&report.name), line(&report.cron));
    if report.paused {
        text += &format!("  it is paused: `recovery schedule set {} --paused=false` has it go on\n", report.name);
    }
    text + &next_instants(report) + &pace(report)
}

fn next_instants(report: &Report) -> String {
    let instants = report.instants.iter().map(|time| instant(*time, &report.time_zone));
    instants.enumerate().map(|(index, time)| format!("  {:<10}{time}\n", if index == 0 { "next" } else { "" })).collect()
}

fn describe_list(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "there is no schedule; `recovery schedule set NAME --cron EXPR` makes one\n".to_owned();
    }
    let mut text = format!("{:<24} {:<22} {:<16} {:>4} {:<21} LAST\n", "NAME", "CRON", "ZONE", "KEEP", "NEXT");
    for one in listed {
        match one {
            Listed::Unreadable { name, error } => text += &format!("{:<24} cannot be read\n    {}\n", line(name), line(error)),
            Listed::Schedule(report) => {
                let next = match (report.paused, report.next) {
                    (true, _) => "paused".to_owned(),
                    (false, None) => "never".to_owned(),
                    (false, Some(next)) => next.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
                };
                text += &format!(
                    "{:<24} {:<22} {:<16} {:>4} {next:<21} {}\n",
                    line(&report.name),
                    line(&report.cron),
                    line(&report.time_zone),
                    report.keep,
                    line(&last(report))
                );
                text += &(waits(report) + &pace(report));
            }
        }
    }
    text
}

fn last(report: &Report) -> String {
    match &report.state.last {
        None => "-".to_owned(),
        Some(run) => match (&run.backup, &run.ended) {
            (Some(backup), _) => format!("completed {backup}"),
            (None, Some(_)) => format!("failed ({})", run.failure.as_deref().unwrap_or("failed")),
            (None, None) => "at work, or cut short".to_owned(),
        },
    }
}

fn waits(report: &Report) -> String {
    let since =
        report.state.waiting.as_ref().map(|waiting| format!(" since {}", waiting.since.strftime("%Y-%m-%d %H:%M:%SZ"))).unwrap_or_default();
    report.waits.as_ref().map_or_else(String::new, |why| format!("    waits{since}: {}\n", line(why)))
}

fn pace(report: &Report) -> String {
    report.pace.as_ref().map_or_else(String::new, |pace| format!("    {}\n", line(pace)))
}

fn describe(report: &Report) -> String {
    let mut text = format!("schedule {}\n", line(&report.name));
    let mut row = |key: &str, value: &str| text += &format!("  {key:<16}{}\n", line(value));
    row("cron", &report.cron);
    row("time zone", &report.time_zone);
    row("before upgrade", if report.before_upgrade { "yes" } else { "no" });
    row("keep", &report.keep.to_string());
    row("made", &instant(report.created, &report.time_zone));
    if report.paused {
        row("paused", "yes");
    }
    for (index, time) in report.instants.iter().enumerate() {
        row(if index == 0 { "next instants" } else { "" }, &instant(*time, &report.time_zone));
    }
    if let Some(pace) = &report.pace {
        row("how often", pace);
    }
    if let (Some(why), Some(next)) = (&report.waits, report.next) {
        row("waits", why);
        row("tried again", &instant(next, &report.time_zone));
    }
    if let Some(run) = &report.state.last {
        row("last run", &format!("{}: {}", instant(run.begun, &report.time_zone), last(report)));
        if let Some(why) = &run.why {
            row("", why);
        }
    }
    if let Some(backup) = report.state.good.as_ref().and_then(|run| run.backup.as_ref()) {
        row("last backup", &format!("{backup} (`recovery show {backup}`)"));
    }
    text
}

//! `recovery list`, `delete`, `prune`: which backups there are, and deleting them.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use jiff::Timestamp;

use super::args::{DeleteArgs, ListArgs, ListOutput, PruneArgs};
use super::backup::retention;
use super::context::{self, Context};
use crate::backup::selector;
use crate::backup::store::{self, Listed, Removed, State};
use crate::gate::door;
use crate::report::{mib, words::line};

pub(super) fn run(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let listed = store::list(&context.session()?, &selector::parse(args.selector.as_deref().unwrap_or_default())?)?;
    let now = context.node.clock().now();
    match args.output {
        Some(ListOutput::Json) => context::print_json(&serde_json::to_value(&listed).context("writing the list as JSON")?)?,
        Some(ListOutput::Name) => context.print(&listed, |listed| listed.iter().map(|one| format!("{}\n", line(&one.id))).collect())?,
        Some(ListOutput::Wide) => context.print(&listed, |listed| describe(listed, true, now))?,
        None if listed.is_empty() && args.selector.is_some() => context.print(&listed, |_| "no backup has such labels\n".to_owned())?,
        None => context.print(&listed, |listed| describe(listed, false, now))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn delete(context: &Context, args: &DeleteArgs) -> Result<ExitCode> {
    let session = context.session()?.lock("delete")?;
    let deletion = store::deletion(&session, &args.backup, args.force)?;
    if let Some(id) = &deletion.id {
        context.confirm(&[format!("The backup {id} will be deleted.")])?;
    }
    let removed = store::delete(&session, deletion)?;
    door::forget(&session, &removed.removed);
    context.print(&removed, describe_removed)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode> {
    let session = context.session()?.lock("prune")?;
    let retention = retention(context, args.keep, Some(args.keep));
    let mut what = vec![format!("All but the newest {} good backups will be deleted.", args.keep)];
    if !retention.schedules.is_empty() {
        what.push("Those of schedules count by themselves: each schedule keeps its own number (`recovery schedule list`).".to_owned());
    }
    context.confirm(&what)?;
    let removed = store::prune(&session, store::finish_interrupted(&session)?, &retention, None)?;
    door::forget(&session, &removed.removed);
    context.print(&removed, describe_removed)?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each backup, newest first, with the columns of `velero backup get`; more of them when it is `wide`.
pub(super) fn describe(listed: &[Listed], wide: bool, now: Timestamp) -> String {
    if listed.is_empty() {
        return "there is no backup; `recovery backup` takes one\n".to_owned();
    }
    let mut rows =
        vec![["NAME", "STATUS", "ERRORS", "WARNINGS", "CREATED", "EXPIRES", "RELEASE", "SIZE", "ID", "LABELS"].map(str::to_owned)];
    for one in listed {
        // A name can have been given to several: it means the newest.
        let name = one.name.clone().filter(|_| listed.iter().find(|other| other.name == one.name).is_some_and(|first| first.id == one.id));
        let labels = one.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        rows.push([
            line(&name.unwrap_or_else(|| one.id.clone())).into_owned(),
            status(one.state).to_owned(),
            usize::from(matches!(one.state, State::Damaged | State::Unsupported)).to_string(),
            one.warnings.len().to_string(),
            one.taken.map_or_else(|| "-".to_owned(), |taken| taken.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
            one.certificates_expire.map_or_else(|| "-".to_owned(), |when| until(when, now)),
            line(one.release.as_deref().unwrap_or("-")).into_owned(),
            mib(one.stored),
            line(&one.id).into_owned(),
            if labels.is_empty() { "<none>".to_owned() } else { line(&labels).into_owned() },
        ]);
    }
    let shown: Vec<usize> = (0..rows[0].len()).filter(|column| wide || !(6..9).contains(column)).collect();
    let widths: Vec<usize> = shown.iter().map(|&column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let reasons = std::iter::once(None).chain(listed.iter().map(|one| one.reason.as_ref()));
    let mut text = String::new();
    for (row, reason) in rows.iter().zip(reasons) {
        let cells = shown.iter().zip(&widths).map(|(&column, &width)| format!("{:<width$}", row[column]));
        text += &format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end());
        text += &reason.map_or_else(String::new, |reason| format!("    {}\n", line(reason)));
    }
    text
}

/// Velero's word, where it has one.
pub(super) fn status(state: State) -> &'static str {
    match state {
        State::Complete => "Completed",
        State::Expired => "Expired",
        State::OtherNode => "OtherNode",
        State::Partial => "InProgress",
        State::Damaged => "Damaged",
        State::Unsupported => "NotSupported",
        State::Legacy => "Old",
    }
}

/// How long it is until `when`, as Velero shows it: the largest unit.
fn until(when: Timestamp, now: Timestamp) -> String {
    let seconds = when.duration_since(now).as_secs();
    let (unit, size) = [("d", 86_400), ("h", 3600), ("m", 60)].into_iter().find(|(_, size)| seconds.abs() >= *size).unwrap_or(("s", 1));
    let ago = if seconds < 0 { " ago" } else { "" };
    format!("{}{unit}{ago}", seconds.abs() / size)
}

fn describe_removed(removed: &Removed) -> String {
    let mut text = String::new();
    for id in &removed.removed {
        text += &format!("deleted {}\n", line(id));
    }
    for deployment in &removed.unpinned {
        text += &format!("unpinned the deployment {}\n", line(deployment));
    }
    for warning in &removed.warnings {
        text += &format!("warning: {}\n", line(warning));
    }
    if removed.removed.is_empty() {
        text += "nothing to delete\n";
    }
    text + &format!("kept: {}\n", if removed.kept.is_empty() { "none".to_owned() } else { line(&removed.kept.join(", ")).into_owned() })
}

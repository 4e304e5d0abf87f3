//! `recovery list`, `delete`, `prune`: which backups there are, and deleting them.

use std::process::ExitCode;

use anyhow::Result;

use super::args::{DeleteArgs, PruneArgs};
use super::backup::retention;
use super::context::Context;
use crate::backup::store::{self, Listed, Removed, State};
use crate::report::{mib, words::line};

pub(super) fn run(context: &Context) -> Result<ExitCode> {
    let listed = store::list(&context.session()?)?;
    context.print(&listed, |listed| describe(listed))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn delete(context: &Context, args: &DeleteArgs) -> Result<ExitCode> {
    let session = context.session()?.lock("delete")?;
    let deletion = store::deletion(&session, &args.backup, args.force)?;
    if let Some(id) = &deletion.id {
        context.confirm(&[format!("The backup {id} will be deleted.")])?;
    }
    let removed = store::delete(&session, deletion)?;
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
    let removed = store::prune(&session, &retention, None)?;
    context.print(&removed, describe_removed)?;
    Ok(ExitCode::SUCCESS)
}

/// One line for each backup, newest first.
pub(super) fn describe(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "there is no backup; `recovery backup` takes one\n".to_owned();
    }
    let mut text = format!("{:<34} {:<11} {:<20} {:>11}  {:<10} {}\n", "ID", "STATE", "TAKEN", "SIZE", "RELEASE", "NAME");
    for one in listed {
        let state = match one.state {
            State::Complete => "complete",
            State::Partial => "partial",
            State::Damaged => "damaged",
            State::Unsupported => "unsupported",
            State::Legacy => "old",
        };
        let taken = one.taken.map_or_else(|| "-".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M:%SZ").to_string());
        let name = [one.name.clone().unwrap_or_default(), one.labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")];
        text += &format!(
            "{:<34} {state:<11} {taken:<20} {:>11}  {:<10} {}\n",
            line(&one.id),
            mib(one.stored),
            line(one.release.as_deref().unwrap_or("-")),
            line(&name.iter().filter(|n| !n.is_empty()).cloned().collect::<Vec<_>>().join(" "))
        );
        if let Some(reason) = &one.reason {
            text += &format!("    {}\n", line(reason));
        }
    }
    text
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

//! `recovery backup`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use super::args::BackupArgs;
use super::context::Context;
use crate::agent;
use crate::backup::asked_by::AskedBy;
use crate::backup::last_run;
use crate::backup::names::parse_labels;
use crate::backup::store::Retention;
use crate::backup::sums;
use crate::backup::take::trees::refuse_dir_inside;
use crate::backup::take::{Outcome, TakeOptions, Taken, already_taken, take};
use crate::error::{FailureKind, kind};
use crate::formats::job_result;
use crate::report::termination::TerminationLog;
use crate::report::{mib, paths, words::line};
use crate::schedule::Schedules;

pub(super) fn run(context: &Context, args: &BackupArgs) -> Result<ExitCode> {
    let mut options = TakeOptions {
        name: args.name.clone(),
        labels: parse_labels(&args.labels)?,
        force: args.force,
        keep: retention(context, args.keep, None),
        wait: context.deadline(),
        asked_by: AskedBy::this_process(),
    };
    refuse_dir_inside(&context.node, &context.dir)?;
    // Before the lock, which a recovery holds while the Job of its own backup comes back to life. A backup may know it by its pod alone.
    let taken = |by: &AskedBy| already_taken(&context.session()?, by);
    let mut done = taken(&options.asked_by)?;
    if done.is_none() && matches!(options.asked_by, AskedBy::Pod(_)) {
        options.asked_by = options.asked_by.by_its_job(&context.node);
        done = taken(&options.asked_by)?;
    }
    let begin = || context.prepared_session()?.lock("backup");
    if let Some(mut done) = done {
        // The attempt that took it may have been killed before it had removed what is older.
        if !context.dir.in_recovery()
            && let Ok(finished) = begin().and_then(|session| take(&session, &options))
        {
            done = finished;
        }
        say_done(context, &done);
        context.print(&done, describe)?;
        return Ok(ExitCode::SUCCESS);
    }
    let session = begin().inspect_err(|error| could_not_begin(context, error))?;
    let taken = take(&session, &options).context("taking a backup")?;
    say_done(context, &taken);
    context.print(&taken, describe)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells whoever looks at the pod, such as a hub, which backup it took: in the pod's termination message.
fn say_done(context: &Context, taken: &Taken) {
    let Some(log) = TerminationLog::find() else { return };
    let manifest = &taken.manifest;
    let said = sums::digest(&context.dir.backups().join(&manifest.id)).and_then(|digest| {
        let result = job_result::V1 {
            version: job_result::FORMAT.version,
            agent: agent::VERSION.to_owned(),
            backup: manifest.id.clone(),
            // It is published after everything was read back.
            verified: true,
            digest,
            release: manifest.cluster.as_ref().map(|cluster| cluster.version.clone()),
            taken: manifest.taken,
            certificates_expire: manifest.certificates_expire,
        };
        serde_json::to_string(&result).context("putting it into JSON")
    });
    match said {
        Ok(text) => log.say(&text),
        Err(error) => tracing::warn!("the pod does not say which backup it took: {error:#}"),
    }
}

/// Notes a backup that could not even begin: the recovery directory is somebody else's, cannot be written to, is full. Another agent at work is no failure.
pub(super) fn could_not_begin(context: &Context, error: &anyhow::Error) {
    if kind(error) != FailureKind::Locked && rustix::process::geteuid().is_root() {
        last_run::note(&context.node, &context.dir, &AskedBy::this_process(), context.node.clock().now(), Err(error));
    }
}

/// How many backups stay, where so many belong to no schedule. Of a schedule that cannot be read, all.
pub(super) fn retention(context: &Context, others: u32, gone: Option<u32>) -> Retention {
    let count = |number: u32| number as usize;
    let schedules = Schedules::of(&context.node).map(|schedules| schedules.keeps());
    let gone = schedules.as_ref().ok().and(gone).map(count);
    let schedules = schedules.unwrap_or_else(|error| {
        context.progress.say(&format!("the backups of schedules stay: {error:#}"));
        BTreeMap::new()
    });
    Retention { others: Some(count(others)), schedules, gone }
}

fn describe(taken: &Taken) -> String {
    let manifest = &taken.manifest;
    if taken.outcome == Outcome::AlreadyDone {
        return format!("already done: {} asked for the backup {} before; nothing to do\n", manifest.asked_by, manifest.id);
    }
    let content: u64 = manifest.sizes.values().sum();
    let mut text = format!(
        "backup {} is complete: {} of content in {} ({} taken over from the one before), {:.1} s\n  in {}\n",
        manifest.id,
        mib(content),
        mib(taken.stored),
        mib(taken.reused),
        taken.seconds,
        paths::shown(&taken.path)
    );
    let (by_design, others): (Vec<_>, Vec<_>) = taken.skipped.iter().partition(|(_, why)| why.by_design());
    if !by_design.is_empty() {
        text += &format!("  left out by design: {} sockets and mount points (-v names them)\n", by_design.len());
    }
    for (path, why) in others {
        text += &format!("  skipped {}: {why}\n", line(path));
    }
    for warning in &taken.warnings {
        text += &format!("  warning: {}\n", line(warning));
    }
    for deployment in &taken.undeployed {
        text += &format!("  removed the standby deployment {}\n", line(deployment));
    }
    for id in &taken.pruned {
        text += &format!("  removed the older backup {}\n", line(id));
    }
    text
}

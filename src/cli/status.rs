//! `recovery status`, and the bare command: the recovery in progress, or what there is to recover from.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{Timestamp, Unit};
use kube::core::Selector;
use serde::Serialize;

use super::args::StatusArgs;
use super::context::{Context, nobody_reads, to_stdout};
use super::list;
use super::screen::{self, Row, Terminal};
use crate::agent::Agents;
use crate::backup::store::{self, Listed, State};
use crate::node::recovery_mount;
use crate::recovery::report::{RunStatus, StepState};
use crate::recovery::{Outcome, RunReport, StatusReport, status};
use crate::report::words::line;
use crate::tools::ostree::{NEXT_ROOT, UNDO_SOFT_REBOOT};

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// What it means that the old tool's notes are there: it removes them at its end.
const OLD_SCRIPT: &str = "  What it restored stays, and the rest is the newer release's. From `restore_files` on, kubelet is disabled until `restore_cluster` is noted; after that, only
  the roll-out of new revisions is missing. This agent cannot go on with it: it begins anew, or puts the notes away.";

/// `status --json`
#[derive(Debug, Serialize)]
pub(super) struct Status {
    #[serde(flatten)]
    recovery: StatusReport,
    /// What is wrong with what is mounted at the recovery directory.
    mount: Option<String>,
    agents: Agents,
    /// Of two agents, which leads; what cannot be told of them.
    #[serde(skip)]
    leads: Vec<String>,
    backups: Vec<Listed>,
}

pub(super) fn run(context: &Context, args: &StatusArgs) -> Result<ExitCode> {
    if args.watch {
        return watch(context);
    }
    context.print(&look(context)?, |report| screen::text(&rows(report, context.node.clock().now(), true)))?;
    Ok(ExitCode::SUCCESS)
}

/// Looks.
pub(super) fn look(context: &Context) -> Result<Status> {
    let session = context.session()?;
    let mount = recovery_mount::check(session.node, session.dir).unwrap_or_else(|error| Some(format!("{error:#}")));
    let agents = Agents::of(session.node, session.dir)?;
    let leads = agents.said(session.dir);
    Ok(Status { recovery: status(&session)?, mount, agents, leads, backups: store::list(&session, &Selector::default())? })
}

/// Shows it until interrupted: over the report before on a terminal that can, and elsewhere whenever something has changed.
fn watch(context: &Context) -> Result<ExitCode> {
    let mut terminal = if context.json { None } else { Terminal::of_stdout() };
    let (begun, mut last) = (context.node.clock().now(), String::new());
    loop {
        let report = look(context)?;
        let rows = |now, counts| context.rows(rows(&report, now, counts));
        // What only counts up is no change.
        let now = context.text(&report, |_| screen::text(&rows(begun, false)))?;
        let shown = match &mut terminal {
            Some(terminal) if terminal.obeys => terminal.rewrite(&rows(context.node.clock().now(), true)),
            _ if now == last && nobody_reads() => return Ok(ExitCode::SUCCESS),
            _ if now == last => Ok(()),
            Some(terminal) => terminal.append(&rows(begun, false)),
            None => to_stdout(&now),
        };
        last = now;
        match shown {
            // Nobody looks any more.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            shown => shown.context("standard output does not take the report")?,
        }
        // An interruption is how watching ends.
        if context.node.clock().sleep(WATCH).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// The report, line by line. A rank says how soon a line is left out on a screen that is too small: never the state, the step at work and
/// what to do next. `counts`: with how long the step is at work so far.
fn rows(report: &Status, now: Timestamp, counts: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    let recovery = &report.recovery;
    match (&recovery.run, &recovery.unreadable) {
        (Some(run), _) => rows.extend(rows_of_a_run(run, false, counts)),
        (None, Some(why)) => rows.push(Row::new(0, format!("a recovery is in progress, but its journal cannot be read: {}", line(why)))),
        (None, None) => match &recovery.old_script {
            Some(stages) => {
                let begun = "no recovery of this agent is in progress, but upgrade-recovery.sh has begun one and not ended it; it noted:";
                rows.push(Row::new(0, format!("{begun} {}", stages.join(", "))));
                rows.extend(OLD_SCRIPT.lines().map(|text| Row::new(10, text)));
            }
            None => rows.push(Row::new(0, "no recovery is in progress")),
        },
    }
    if let Some(wrong) = &report.mount {
        rows.push(Row::new(8, format!("wrong: {}", line(wrong))));
    }
    if let Some(holder) = &recovery.at_work {
        rows.push(Row::new(8, format!("at work: {}", line(holder))));
    }
    if recovery.hold {
        rows.push(Row::new(8, "kubelet is held: it does not start"));
    }
    if recovery.soft_reboot {
        let prepared = format!(
            "a soft reboot is prepared: a plain `systemctl reboot` goes into {NEXT_ROOT}, past the boot loader; `{UNDO_SOFT_REBOOT}` takes it back, and \
             so does a recovery"
        );
        rows.push(Row::new(8, prepared));
    }
    if let Some(last) = &recovery.last {
        let (id, backup, state) = (line(&last.id), line(&last.backup), line(&last.state));
        rows.push(Row::new(9, format!("last: recovery {id} from backup {backup}, {state} at {:.0}", last.since)));
    }
    rows.extend(report.leads.iter().map(|said| Row::new(10, line(said))));
    if recovery.run.is_none() {
        rows.extend(list::describe(&report.backups, false, now).lines().enumerate().map(|(at, text)| Row::of_a_table(20 + at, text)));
    }
    let usable = report.backups.iter().any(|backup| matches!(backup.state, State::Complete | State::Expired | State::Legacy));
    if let Some(next) = &recovery.next {
        rows.push(Row::new(0, format!("next: {}", line(&next.to_string()))));
    } else if usable && recovery.at_work.is_none() {
        rows.push(Row::new(0, "after a failed upgrade: `recovery recover` brings this node back to the newest backup"));
    }
    rows
}

/// A run: where it is; the steps of the phase it is in, or of `all` phases, with what became of each.
fn rows_of_a_run(run: &RunStatus, all: bool, counts: bool) -> Vec<Row> {
    let (id, backup, state) = (line(&run.id), line(&run.backup), line(&run.state));
    let mut rows = vec![
        Row::new(30, format!("recovery {id} from backup {backup}, begun {:.0}", run.begun)),
        Row::new(0, format!("{state}, since {:.0}", run.since)),
    ];
    for phase in &run.phases {
        let seconds: f64 = phase.steps.iter().filter_map(|s| s.seconds).sum();
        let waited: f64 = phase.steps.iter().filter_map(|s| s.waited).sum();
        let done = phase.steps.iter().all(|s| s.state == StepState::Done);
        let time = if seconds > 0.0 { took(seconds, waited) } else { String::new() };
        let is_open = run.phase == Some(phase.phase);
        let text = format!("{} {:<30}{time}", if done { '+' } else { ' ' }, phase.phase);
        rows.push(Row::of_a_table(if is_open { 6 } else { 12 }, text));
        if !all && !is_open {
            continue;
        }
        // What is further from the step at work is of less worth.
        let at = phase.steps.iter().position(|step| Some(&step.name) == run.step.as_ref()).unwrap_or(phase.steps.len());
        for (place, step) in phase.steps.iter().enumerate() {
            let (sign, time) = match step.state {
                StepState::Waiting => (' ', String::new()),
                StepState::Begun if !counts => ('>', "  at work".to_owned()),
                StepState::Begun => ('>', format!("{:8.0} s so far", (Timestamp::now() - run.since).total(Unit::Second).unwrap_or(0.0))),
                StepState::Failed => ('!', "  failed".to_owned()),
                StepState::Done => ('+', step.seconds.map_or_else(String::new, |seconds| took(seconds, step.waited.unwrap_or(0.0)))),
            };
            let rank = if is_open && place == at { 0 } else { 11 + 2 * place.abs_diff(at) };
            rows.push(Row::of_a_table(rank, format!("  {sign} {:<28}{time}", line(&step.name))));
        }
    }
    if let Some(failure) = &run.failure {
        rows.push(Row::new(3, format!("failed: {}", line(failure))));
    }
    rows.extend(run.warnings.iter().enumerate().map(|(at, warning)| Row::new(14 + at, format!("warning: {}", line(warning)))));
    rows
}

fn took(seconds: f64, waited: f64) -> String {
    if waited >= 0.05 { format!("{seconds:8.1} s, {waited:.1} of it waiting") } else { format!("{seconds:8.1} s") }
}

/// How far a recovery came, in words.
pub(super) fn how_far(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Finished => "the recovery is finished: the node is as the backup recorded it",
        Outcome::Abandoned => "the recovery was abandoned before; what could be put back is put back",
        Outcome::RebootNeeded => "what comes before the reboot is done; the node has to reboot now",
        Outcome::Rebooting => "what comes before the reboot is done; the node is going down for it",
        Outcome::PhaseDone => "the phase is done",
        Outcome::LeftToAPerson => "this recovery goes one phase at a time: it is left to a person",
    }
}

/// How far a recovery came, and every step it did.
pub(super) fn describe_run_report(report: &RunReport) -> String {
    let how = how_far(report.outcome);
    let mut text = screen::text(&rows_of_a_run(&report.run, report.outcome == Outcome::Finished, true));
    let own = report.seconds - report.waited;
    writeln!(text, "{how} ({own:.1} s of its own work, {:.1} s of waiting)", report.waited).ok();
    if let Some(next) = &report.next {
        writeln!(text, "next: {}", line(&next.to_string())).ok();
    }
    text
}

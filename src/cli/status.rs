//! `recovery status`, and the bare command: the recovery in progress, or what there is to recover from.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::{Timestamp, Unit};
use kube::core::Selector;
use serde::Serialize;

use super::args::StatusArgs;
use super::context::{Context, to_stdout};
use super::list;
use crate::agent::Agents;
use crate::backup::store::{self, Listed, State};
use crate::node::recovery_mount;
use crate::recovery::report::{RunStatus, StepState};
use crate::recovery::{Outcome, RunReport, StatusReport, status};
use crate::report::words::line;
use crate::tools::ostree::{NEXT_ROOT, UNDO_SOFT_REBOOT};

/// How often `--watch` looks.
const WATCH: Duration = Duration::from_secs(1);
/// Clears the screen (ECMA-48).
const CLEAR: &str = "\x1b[2J";

/// What it means that the old tool's notes are there: it removes them at its end.
const OLD_SCRIPT: &str = "  What it restored stays, and the rest is the newer release's. From `restore_files` on, kubelet is disabled until `restore_cluster` is noted; after that, only
  the roll-out of new revisions is missing. This agent cannot go on with it: it begins anew, or puts the notes away.\n";

/// `status --json`
#[derive(Debug, Serialize)]
struct Status {
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
    let mut first = true;
    loop {
        let session = context.session()?;
        let mount = recovery_mount::check(session.node, session.dir).unwrap_or_else(|error| Some(format!("{error:#}")));
        let agents = Agents::of(session.node, session.dir)?;
        let leads = agents.said(session.dir);
        let backups = store::list(&session, &Selector::default())?;
        let report = Status { recovery: status(&session)?, mount, agents, leads, backups };
        let describe = |report: &Status| describe(report, context.node.clock().now());
        if !args.watch {
            context.print(&report, describe)?;
            return Ok(ExitCode::SUCCESS);
        }
        let text = context.text(&report, describe)?;
        let shown = match rows_to_rewrite().filter(|_| !context.json) {
            Some(rows) => {
                let clear = if std::mem::take(&mut first) { CLEAR } else { "" };
                to_stdout(&format!("{clear}{}", screen(&text, rows)))
            }
            None => to_stdout(&text),
        };
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

/// How many lines the terminal has, when standard output is one.
pub(super) fn rows_to_rewrite() -> Option<usize> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok())?;
    Some(size.map(|size| usize::from(size.ws_row)).filter(|rows| *rows > 1).unwrap_or(usize::MAX))
}

/// The text over what the screen showed, line by line: one that is never cleared as a whole does not flicker. What does not fit is cut off
/// at the top, because the step that is at work and what to do next are further down.
pub(super) fn screen(text: &str, rows: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(rows - 1)..];
    // Without line wrap (mode 7) a line of text is a line of the screen.
    format!("\x1b[?7l\x1b[H{}\x1b[K\x1b[J\x1b[?7h\n", shown.join("\x1b[K\n"))
}

fn describe(report: &Status, now: Timestamp) -> String {
    let mut text = String::new();
    let recovery = &report.recovery;
    match (&recovery.run, &recovery.unreadable) {
        (Some(run), _) => text += &describe_run(run, false),
        (None, Some(why)) => text += &format!("a recovery is in progress, but its journal cannot be read: {}\n", line(why)),
        (None, None) => match &recovery.old_script {
            Some(stages) => {
                text += &format!(
                    "no recovery of this agent is in progress, but upgrade-recovery.sh has begun one and not ended it; it noted: {}\n{OLD_SCRIPT}",
                    stages.join(", ")
                );
            }
            None => text += "no recovery is in progress\n",
        },
    }
    if let Some(wrong) = &report.mount {
        text += &format!("wrong: {}\n", line(wrong));
    }
    if let Some(holder) = &recovery.at_work {
        text += &format!("at work: {}\n", line(holder));
    }
    if recovery.hold {
        text += "kubelet is held: it does not start\n";
    }
    if recovery.soft_reboot {
        writeln!(
            text,
            "a soft reboot is prepared: a plain `systemctl reboot` goes into {NEXT_ROOT}, past the boot loader; `{UNDO_SOFT_REBOOT}` takes it back, and \
             so does a recovery"
        )
        .ok();
    }
    if let Some(last) = &recovery.last {
        text +=
            &format!("last: recovery {} from backup {}, {} at {:.0}\n", line(&last.id), line(&last.backup), line(&last.state), last.since);
    }
    report.leads.iter().for_each(|said| text += &format!("{}\n", line(said)));
    if recovery.run.is_none() {
        text += &list::describe(&report.backups, false, now);
    }
    let usable = report.backups.iter().any(|backup| matches!(backup.state, State::Complete | State::Expired | State::Legacy));
    if let Some(next) = &recovery.next {
        text += &format!("next: {}\n", line(&next.to_string()));
    } else if usable && recovery.at_work.is_none() {
        text += "after a failed upgrade: `recovery recover` brings this node back to the newest backup\n";
    }
    text
}

/// A run: where it is; the steps of the phase it is in, or of `all` phases, with what became of each.
fn describe_run(run: &RunStatus, all: bool) -> String {
    let (id, backup, state) = (line(&run.id), line(&run.backup), line(&run.state));
    let mut text = format!("recovery {id} from backup {backup}, begun {:.0}\n{state}, since {:.0}\n", run.begun, run.since);
    for phase in &run.phases {
        let seconds: f64 = phase.steps.iter().filter_map(|s| s.seconds).sum();
        let waited: f64 = phase.steps.iter().filter_map(|s| s.waited).sum();
        let done = phase.steps.iter().all(|s| s.state == StepState::Done);
        let time = if seconds > 0.0 { took(seconds, waited) } else { String::new() };
        writeln!(text, "{} {:<30}{time}", if done { '+' } else { ' ' }, phase.phase).ok();
        if !all && run.phase != Some(phase.phase) {
            continue;
        }
        for step in &phase.steps {
            let (sign, time) = match step.state {
                StepState::Waiting => (' ', String::new()),
                StepState::Begun => ('>', format!("{:8.0} s so far", (Timestamp::now() - run.since).total(Unit::Second).unwrap_or(0.0))),
                StepState::Failed => ('!', "  failed".to_owned()),
                StepState::Done => ('+', step.seconds.map_or_else(String::new, |seconds| took(seconds, step.waited.unwrap_or(0.0)))),
            };
            writeln!(text, "  {sign} {:<28}{time}", line(&step.name)).ok();
        }
    }
    if let Some(failure) = &run.failure {
        writeln!(text, "failed: {}", line(failure)).ok();
    }
    for warning in &run.warnings {
        writeln!(text, "warning: {}", line(warning)).ok();
    }
    text
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
    let mut text = describe_run(&report.run, report.outcome == Outcome::Finished);
    let own = report.seconds - report.waited;
    writeln!(text, "{how} ({own:.1} s of its own work, {:.1} s of waiting)", report.waited).ok();
    if let Some(next) = &report.next {
        writeln!(text, "next: {}", line(&next.to_string())).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_shows_what_fits_of_the_end() {
        let shown = |rows| screen("one\ntwo\nthree\n", rows).replace("\x1b[K", "");
        assert_eq!(shown(usize::MAX), "\x1b[?7l\x1b[Hone\ntwo\nthree\x1b[J\x1b[?7h\n");
        assert_eq!(shown(3), "\x1b[?7l\x1b[Htwo\nthree\x1b[J\x1b[?7h\n");
    }
}

//! How a recovery begins: it is looked into, agreed to, and carried out.
//!
//! [`propose`] and [`propose_restart`] take the lock, and keep it while a person reads the plan.

use anyhow::{Context, Result};
use serde_json::Value;
use uuid::Uuid;

use super::carry_on::{Go, about, carry_on, clear_away, reboot_if_due};
use super::history;
use super::preflight::{self, FirstPhase, IdentityCheck, Options, PlanReport};
use super::procedure::{Asked, Beginning, Event, Journal, Phase, Reading, State, this_boot};
use super::report::RunReport;
use super::undo::Undo;
use crate::backup::store::{self, Survey};
use crate::backup::{self, Backup};
use crate::engine::driver::Until;
use crate::engine::journal::New;
use crate::engine::machine::{Open, Stage};
use crate::error::{self, AndNext, FailureKind, busy, by_hand, kind, run, usage};
use crate::node::{hold, recovery_mount};
use crate::report::event::{self, tell};
use crate::session::{Locked, Session};
use crate::tools::runtime;

/// A recovery that has been looked into and waits for consent. It holds the lock.
#[derive(Debug)]
pub struct Proposal<'a> {
    session: Locked<'a>,
    options: Options,
    backup: Backup,
    origin: Origin,
    /// What it found and would do.
    pub report: PlanReport,
}

#[derive(Debug)]
enum Origin {
    New,
    Restart { old: Option<String> },
    Continue,
}

/// Looks into a recovery and says what it would do. Nothing is changed. A run that is open in its first phase is gone on with.
///
/// # Errors
/// [`FailureKind::Locked`] when another agent has the lock, [`FailureKind::Busy`] when a run is open beyond its first phase; those of
/// the [`preflight`] and of the resource modifier's rules.
pub fn propose<'a>(session: &Session<'a>, mut options: Options) -> Result<Proposal<'a>> {
    let Session { node, dir, progress, .. } = *session;
    let verb = if options.from == FirstPhase::Platform { "recover" } else { "restore-files" };
    // Before there are no backups, because they are not mounted.
    recovery_mount::check(node, dir)?;
    let locked = session.lock(verb)?;
    let boot = this_boot(node)?;
    if let Some(reading) = Reading::in_progress(dir)?
        && let State::Open(open) = &reading.state
    {
        let now = what_with(open, &reading, &boot);
        let survey = store::finish_interrupted(&locked)?;
        let wanted = options.backup.as_deref().map(|wanted| backup::choose(&locked, &survey, Some(wanted))).transpose()?;
        let same = wanted.is_none_or(|wanted| wanted.id == reading.subject);
        if now == OpenRun::InTheWay || !same {
            return Err(busy(format!("a recovery from backup {} is in progress ({})", reading.subject, reading.state))
                .and_next(run("recovery resume", "to go on, `recovery restart` to begin again, `recovery abandon` to end it")));
        }
        options.asked.force |= reading.beginning.asked.force;
        options.rules = options.rules.or_else(|| reading.beginning.rules.clone());
        let backup = backup::choose(&locked, &survey, Some(&reading.subject))?;
        let mut report = preflight::look(session, &backup, &options, IdentityCheck::Passed)?;
        preflight::run_rules(session, &backup, &options, &mut report)?;
        let run = Some(reading.run.clone());
        let origin = if now == OpenRun::GoesOn && can_go_on(&report, &reading.beginning, &options) {
            report.continues = run;
            Origin::Continue
        } else {
            report.replaces.clone_from(&run);
            Origin::Restart { old: run }
        };
        return Ok(Proposal { session: locked, options, backup, origin, report });
    }
    let (survey, backup) = if options.compare {
        let survey = store::survey(dir)?;
        let backup = store::choose_unchanged(session, &survey, options.backup.as_deref())?;
        (survey, backup)
    } else {
        let survey = store::finish_interrupted(&locked)?;
        let backup = backup::choose(&locked, &survey, options.backup.as_deref())?;
        (survey, backup)
    };
    let passed_over = if options.backup.is_none() { survey.passed_over() } else { Vec::new() };
    let mut report = preflight::look(session, &backup, &options, IdentityCheck::Needed).map_err(|error| {
        // With no report, nothing else says it.
        passed_over.iter().for_each(|sentence| progress.say(sentence));
        with_another(&survey, &backup, error)
    })?;
    preflight::run_rules(session, &backup, &options, &mut report)?;
    report.warnings.extend(passed_over);
    report.warnings.extend(dir.old_recovery().map(|old| format!("{old}; this one takes its place")));
    Ok(Proposal { session: locked, options, backup, origin: Origin::New, report })
}

/// The failure of a damaged backup, with another one that could be taken instead.
fn with_another(survey: &Survey, backup: &Backup, error: anyhow::Error) -> anyhow::Error {
    match survey.backups.iter().find(|other| other.id != backup.id) {
        Some(other) if kind(&error) == FailureKind::Damaged => error
            .context("the backup cannot be restored")
            .and_next(by_hand(format!("--backup {0} takes another (`recovery verify {0}`)", other.id))),
        _ => error,
    }
}

/// What a verb that begins a recovery does with one that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenRun {
    /// No file is restored yet: a new run takes its place, with the phases and choices of now.
    Replaced,
    /// It is restoring files: it goes on.
    GoesOn,
    /// Its files are restored: `resume`, `restart` or `abandon` are for that.
    InTheWay,
}

/// An open run keeps to its own plan and to what it was asked when it began. Where another deployment has to boot first by now, or something else
/// is asked, it is begun again. (Whether the agent may reboot the node can differ from process to process.)
fn can_go_on(now: &PlanReport, began: &Beginning, options: &Options) -> bool {
    let (was, asked) = (began.asked, options.asked);
    let boots_another = now.phases.first().is_some_and(|planned| planned.phase == Phase::Platform);
    let forced = asked.force && !was.force;
    let waits = (asked.wait.is_some() && asked.wait != was.wait) || (asked.hold.is_some() && asked.hold != was.hold);
    (asked.step, asked.etcd, &options.rules) == (was.step, was.etcd, &began.rules) && !(boots_another || forced || waits)
}

fn what_with(open: &Open<Phase>, reading: &Reading, boot: &str) -> OpenRun {
    match open.planned().map(|p| p.phase) {
        Some(Phase::Platform) => OpenRun::Replaced,
        Some(Phase::RestoreFiles) if open.stage == Stage::Before => OpenRun::Replaced,
        Some(Phase::RestoreFiles) => {
            let rebooted = open.stage == Stage::Reboot && reading.rebooted_since(Phase::RestoreFiles, boot);
            if rebooted { OpenRun::InTheWay } else { OpenRun::GoesOn }
        }
        _ => OpenRun::InTheWay,
    }
}

/// Looks into beginning the open run again from its first phase. It needs no readable journal.
///
/// # Errors
/// [`FailureKind::Usage`] when there is nothing to restart, or nothing says from which backup; as [`propose`].
pub fn propose_restart<'a>(session: &Session<'a>, mut options: Options) -> Result<Proposal<'a>> {
    let dir = session.dir;
    // What another tool has begun is not known here: to begin it again is to begin.
    if dir.old_stages().is_some() && Undo::load(dir)?.is_none() {
        return propose(session, options);
    }
    let locked = session.lock("restart")?;
    let (undo, reading) = (Undo::load(dir)?, history::readable(dir));
    if undo.is_none() && !dir.in_recovery() {
        return Err(usage("no recovery is in progress here").and_next(run("recovery restore-files", "begins one")));
    }
    let known = reading.as_ref().map(|r| (r.subject.clone(), r.beginning.asked)).or(undo.as_ref().map(|u| (u.backup.clone(), u.asked)));
    let known_backup = known.as_ref().map(|(backup, _)| backup.clone());
    if let Some((backup, asked)) = known {
        options.backup.get_or_insert(backup);
        let now = options.asked;
        options.asked = Asked {
            force: now.force || asked.force,
            step: now.step || asked.step,
            wait: now.wait.or(asked.wait),
            hold: now.hold.or(asked.hold),
            ..asked
        };
    }
    let wanted = options.backup.as_deref().ok_or_else(|| {
        usage("neither the journal nor undo.json says which backup was being restored")
            .and_next(run("recovery restart --backup ID", "(`recovery list` shows the backups)"))
    })?;
    let survey = store::finish_interrupted(&locked)?;
    let backup = backup::choose(&locked, &survey, Some(wanted))?;
    // The run that is restarted may have taken away what the identity is read from. It has checked the node for its own backup, and with that for
    // every backup of the same node.
    let checked = known_backup.and_then(|id| backup::choose(&locked, &survey, Some(&id)).ok());
    let check = if checked.is_some_and(|one| one.manifest.identity == backup.manifest.identity) {
        IdentityCheck::Passed
    } else {
        IdentityCheck::Needed
    };
    let warning = rules_of_before(&mut options, &backup, reading.as_ref());
    let mut report = preflight::look(session, &backup, &options, check)?;
    preflight::run_rules(session, &backup, &options, &mut report)?;
    report.warnings.extend(warning);
    let old = reading.map(|r| r.run.clone()).or(undo.and_then(|u| u.runs.last().cloned()));
    Ok(Proposal { session: locked, options, backup, origin: Origin::Restart { old }, report })
}

/// Takes over the rules of the run that is restarted, unless others are given; what people should know of those that are not taken over.
fn rules_of_before(options: &mut Options, backup: &Backup, reading: Option<&Reading>) -> Option<String> {
    if options.rules.is_some() {
        return None;
    }
    let Some(reading) = reading else {
        return Some(
            "the journal does not say whether the recovery had a resource modifier: if it had, say no here and give it again with \
             --resource-modifier"
                .to_owned(),
        );
    };
    let rules = reading.beginning.rules.clone()?;
    if reading.subject != backup.id {
        return Some(format!(
            "the resource modifier of the recovery from {} is not applied to {}: --resource-modifier gives one",
            reading.subject, backup.id
        ));
    }
    options.rules = Some(rules);
    None
}

impl Proposal<'_> {
    /// Carries the plan out: from here on, a recovery is in progress, until it is finished or abandoned.
    ///
    /// # Errors
    /// That of the step that failed; it is in the journal, and the message names the next command.
    pub fn begin(self) -> Result<RunReport> {
        let Session { node, dir, .. } = *self.session;
        let (boot, new, goes_on) = (this_boot(node)?, matches!(self.origin, Origin::New), matches!(self.origin, Origin::Continue));
        let (mut journal, undo) = match self.origin {
            Origin::Continue => {
                let journal = Journal::open(&dir.journal(), &boot)?.context("the journal is gone")?;
                let undo = Undo::of_run(dir, journal.reading())?;
                (journal, undo)
            }
            Origin::New => {
                if let Some(over) = Reading::in_progress(dir)? {
                    let undo = Undo::of_run(dir, &over)?;
                    clear_away(&self.session, &over, undo)?;
                }
                begin_journal(&self.session, &self.backup, &self.report, &self.options, &boot, None)?
            }
            Origin::Restart { old } => {
                history::keep_journal_so_far(&self.session, old.as_deref())?;
                begin_journal(&self.session, &self.backup, &self.report, &self.options, &boot, old)?
            }
        };
        let (reading, asked) = (journal.reading(), journal.reading().beginning.asked);
        let (entry, what) = if goes_on { (&event::RECOVERY_RESUMED, "goes on") } else { (&event::RECOVERY_BEGUN, "begins") };
        tell(entry, about(&reading.run, &reading.subject), &format!("recovery {} from backup {} {what}", reading.run, reading.subject));
        let go = Go {
            wait: asked.deadline(),
            hold: asked.hold(),
            until: if asked.step { Until::Phase } else { Until::End },
            reboot: self.options.asked.reboot || asked.reboot,
        };
        let result = carry_on(&self.session, &mut journal, undo, Some(self.backup), go);
        // Interrupted before the first step: nothing that the next boot would go on with may be left.
        let untouched = new && !journal.reading().acted() && !journal.reading().beginning.inherits;
        if untouched && result.as_ref().is_err_and(|error| kind(error) == FailureKind::Interrupted) {
            journal.append(&Event::Abandoned, Value::Null)?;
            let undo = Undo::of_run(dir, journal.reading())?;
            clear_away(&self.session, journal.reading(), undo)?;
            return Err(error::interrupted("interrupted before anything was changed: no recovery is in progress"));
        }
        drop(journal);
        reboot_if_due(&self.session.unlock(), result?)
    }
}

/// Writes down that a run has begun: first what it must undo, then the journal.
fn begin_journal(
    session: &Locked<'_>,
    backup: &Backup,
    report: &PlanReport,
    options: &Options,
    boot: &str,
    restarts: Option<String>,
) -> Result<(Journal, Undo)> {
    let Session { node, dir, .. } = **session;
    let id = Uuid::new_v4().to_string();
    // What earlier runs changed and did not put back is still to be put back.
    let left = Undo::load(dir)?;
    let left_over = || dir.journal().exists() || hold::is_placed(node) || left.as_ref().is_some_and(|undo| !undo.units.is_empty());
    let inherits = restarts.is_none() && left_over();
    let mut undo = left.unwrap_or_else(|| Undo::of(&backup.id, options.asked));
    undo.runs.extend(restarts.clone().filter(|old| !undo.runs.contains(old)));
    undo.runs.push(id.clone());
    (undo.backup, undo.asked, undo.undone_at) = (backup.id.clone(), options.asked, None);
    let known: Vec<&str> = backup.manifest.runtime_unit.as_deref().into_iter().chain(undo.runtime.as_deref()).collect();
    let running = runtime::running(node, backup.manifest.profile.profile(), &known)?;
    undo.runtime = running.or(undo.runtime).or_else(|| Some(report.runtime_unit.clone()));
    undo.save(session)?;
    let beginning = Beginning {
        profile: backup.manifest.profile,
        target: backup.manifest.deployment.clone(),
        asked: options.asked,
        restarts,
        inherits,
        warnings: report.warnings.clone(),
        rules: options.rules.clone(),
    };
    let new = New { run: &id, subject: &backup.id, boot };
    Ok((Journal::begin(&dir.journal(), new, &report.phases, &beginning)?, undo))
}

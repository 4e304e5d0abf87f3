//! Passing the gate: there is a good backup, or one is taken, or waited for.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::door;
use super::good::{Good, ReadBack, look};
use super::here::Here;
use crate::backup::asked_by::AskedBy;
use crate::backup::names::{LONGEST, RELEASE_LABEL, SCHEDULE_LABEL, label_value, shortened};
use crate::backup::store::Retention;
use crate::backup::take::{self, TakeOptions};
use crate::error::{AndNext, FailureKind, kind, run, unanswered};
use crate::kube;
use crate::report::event::{self, About};
use crate::session::Session;

/// Who asks for a backup that the gate takes.
const GATE: &str = "gate";
/// How many backups are taken in a row.
const TAKEN_AT_MOST: u32 = 2;
/// Between two looks while it waits.
const PAUSE: Duration = Duration::from_secs(5);

/// What is asked of the gate.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The schedule whose name the backup gets.
    pub schedule: Option<String>,
    /// Take a backup when there is no good one.
    pub take: bool,
    /// Only where the API has an object that an upgrade changes: before minutes of a backup.
    pub through_the_api: bool,
    /// Wait so long until there is one, or until one can be taken.
    pub wait: Option<Duration>,
    /// How old a good backup may be.
    pub max_age: Duration,
    /// How long a backup that is taken waits for etcd and the API server, each time.
    pub patience: Duration,
}

/// The gate is open.
#[derive(Debug, Clone, Serialize)]
pub struct Passed {
    /// Where the cluster is.
    pub release: String,
    /// The good backup.
    #[serde(flatten)]
    pub good: Good,
    /// It was taken now.
    pub taken_now: bool,
    /// How long it was waited for, seconds.
    pub waited: f64,
    /// What the backup that was taken now warned of.
    pub warnings: Vec<String>,
}

/// Finds a good backup, or takes or waits for one as it is asked.
///
/// # Errors
/// [`FailureKind::Failed`] when there is none; [`FailureKind::Unanswered`] when there was none until the end of the wait;
/// [`FailureKind::Busy`] when the cluster is between two releases; [`FailureKind::Unsupported`] as [`Asked::through_the_api`] says; as [`take`](mod@take) when one is taken.
pub fn pass(session: Session<'_>, asked: &Asked) -> Result<(Passed, Here, kube::Client)> {
    let found = find(session, asked);
    match &found {
        Ok((Passed { release, good, .. }, ..)) => {
            let about = About { backup: Some(&good.id), ..About::default() };
            let said = format!("an upgrade may begin from {release}: the backup {} is good until {:.0}", good.id, good.until);
            event::tell(&event::GATE_OPEN, about, &said);
        }
        Err(error) => event::tell_error(&event::GATE_CLOSED, About::default(), "the gate is closed", error),
    }
    found
}

fn find(session: Session<'_>, asked: &Asked) -> Result<(Passed, Here, kube::Client)> {
    let clock = session.node.clock();
    let (since, began) = (clock.now(), clock.since_boot());
    let deadline = asked.wait.map(|wait| clock.deadline(wait));
    let (mut said, mut read) = (String::new(), ReadBack::default());
    loop {
        let closed = match attempt(session, asked, &mut read) {
            Ok(Found::Open(open)) => {
                let (passed, here, client) = *open;
                let waited = clock.since_boot().saturating_sub(began).as_secs_f64();
                return Ok((Passed { waited, ..passed }, here, client));
            }
            // Another one would be no better.
            Ok(Found::Closed { release, why, taken_now: true }) => {
                let next = run("recovery gate status", "shows what is wrong with each backup");
                return Err(anyhow!("a backup was taken, and no upgrade may begin from {release}: {why}").and_next(next));
            }
            Ok(Found::Closed { release, why, taken_now: false }) => {
                let next = run("recovery gate --take", "takes a backup, and exits with 0 when it is good");
                anyhow!("no upgrade may begin from {release}: {why}").and_next(next)
            }
            Err(error) if matches!(kind(&error), FailureKind::Busy | FailureKind::Locked | FailureKind::Unanswered) => error,
            Err(error) => return Err(error),
        };
        let Some(deadline) = deadline else { return Err(closed) };
        let why = format!("{closed:#}");
        if deadline.passed() {
            return Err(unanswered(format!("waited since {since:.0} for a good backup: {why}")));
        }
        if why != said {
            session.progress.say(&format!("waiting since {since:.0} for a good backup: {why}"));
            said = why;
        }
        clock.sleep(PAUSE)?;
    }
}

/// What one attempt found.
enum Found {
    Open(Box<(Passed, Here, kube::Client)>),
    Closed { release: String, why: String, taken_now: bool },
}

fn attempt(session: Session<'_>, asked: &Asked, read: &mut ReadBack) -> Result<Found> {
    let (mut here, client) = Here::of(session.node).context("looking where the cluster is")?;
    if asked.through_the_api {
        here.upgraded_object()?;
    }
    let mut release = here.release()?.to_owned();
    let mut found = look(&session, &here, asked.max_age, read)?;
    let (mut taken_now, mut warnings) = (false, Vec::new());
    // One that counts with others may be gone before the upgrade is over. And one that goes on with what an interrupted backup had begun can be too old
    // when it is ready: the next begins anew.
    for _ in 0..TAKEN_AT_MOST {
        if !asked.take || found.good.as_ref().is_some_and(|good| good.stays) {
            break;
        }
        let why = if found.good.is_some() { "the good backup does not stay until the upgrade is over".to_owned() } else { found.why() };
        session.progress.say(&format!("{why}: taking one"));
        let locked = session.lock("gate")?;
        let taken = take::take(&locked, &options(asked, &release)).context("taking the backup before the upgrade")?;
        drop(locked);
        (taken_now, warnings) = (true, taken.warnings);
        // All of it was read back from the disk before it was published.
        read.is_good(&taken.manifest.id);
        // It is good for where the cluster is now, and the permission is from there.
        here = here.again(session.node, &client).context("looking where the cluster is after the backup")?;
        here.release()?.clone_into(&mut release);
        found = look(&session, &here, asked.max_age, read)?;
        if !found.is_only_too_old(&taken.manifest.id) {
            break;
        }
    }
    door::keep(&session, &client, &release, &found)?;
    let Some(good) = found.good else { return Ok(Found::Closed { why: found.why(), release, taken_now }) };
    Ok(Found::Open(Box::new((Passed { release, good, taken_now, waited: 0.0, warnings }, here, client))))
}

/// The backup before an upgrade from `release`, as kcm names and labels it.
fn options(asked: &Asked, release: &str) -> TakeOptions {
    let name = format!("{}-{release}", asked.schedule.as_deref().unwrap_or("before-upgrade"));
    let mut labels = BTreeMap::from([(RELEASE_LABEL.to_owned(), label_value(release))]);
    labels.extend(asked.schedule.as_ref().map(|schedule| (SCHEDULE_LABEL.to_owned(), label_value(schedule))));
    TakeOptions {
        name: Some(shortened(&name, LONGEST)),
        labels,
        force: false,
        keep: Retention::default(),
        wait: asked.patience,
        // A Job that asks again, brought back by a recovery, is not served with the backup that it came back from.
        asked_by: AskedBy::Other(GATE.to_owned()),
    }
}

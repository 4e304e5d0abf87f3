//! What is due: a pure function of the schedules, of the clocks, and of what is in the way.
//!
//! * A schedule runs at its next instant after it was made, and then at the next one after it last ran: however many were missed meanwhile, one run follows.
//! * Instants that come while such a run is at work are left out.
//! * A run that does not succeed is tried again after 5, 10, 20, 40 minutes, then each hour, and at its next instant in any case.
//! * The wall clock can be wrong. A last run that is yet to come by it is not believed: the next instant is then counted from now. And where the clock was
//!   set since the last run, by the clock of the boot, none follows within half the schedule's own distance (at most 12 hours), however often it is set.

use std::time::Duration;

use anyhow::Result;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::cron::Cron;
use super::store::{Moment, Run, Schedule, State, Waiting};

/// How long it takes from a try that failed to the next: each time longer, and then always as the last.
const AGAIN: [Duration; 5] = [mins(5), mins(10), mins(20), mins(40), mins(60)];
/// How long it takes to look again whether what is in the way has gone.
pub(super) const LOOK_AGAIN: Duration = mins(5);
/// How many instants tell how far apart they are.
const MEASURED: usize = 100;
/// The longest time within which a clock that is set does not make a schedule run again.
const LONGEST_GUARD: Duration = mins(12 * 60);

/// By how much two clocks may go apart within that time without that one was set: 500 ppm, which is as much as a clock is slewed by, is half of it.
const DRIFT: SignedDuration = SignedDuration::from_secs(45);

const fn mins(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// What the time is, by both clocks, and what is in the way of any backup.
#[derive(Debug, Clone)]
pub struct Now {
    /// The time.
    pub moment: Moment,
    /// Why no backup can be taken now: a recovery, or another backup.
    pub blocked: Option<String>,
}

/// What is to be done about a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is paused.
    Paused,
    /// Nothing: it has no instant.
    Never,
    /// It runs then.
    At(Timestamp),
    /// It is due since then.
    Due(Timestamp),
    /// It is due and waits.
    Waits {
        /// Since when it is due.
        since: Timestamp,
        /// When it is tried again.
        until: Timestamp,
        /// Why it waits.
        why: String,
    },
}

impl Verdict {
    /// When the agent has to look again.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        match self {
            Self::Paused | Self::Never => None,
            Self::At(at) | Self::Due(at) | Self::Waits { until: at, .. } => Some(*at),
        }
    }
}

/// Makes sure that a schedule is counted from a time that the clock has reached; true when its state has changed and is to be written.
pub fn settle(state: &mut State, now: &Now) -> bool {
    let instead = if state.base <= now.moment.wall {
        None
    } else {
        state.instead.filter(|instead| *instead <= now.moment.wall).or(Some(now.moment.wall))
    };
    let changed = instead != state.instead;
    state.instead = instead;
    changed
}

impl Schedule {
    /// The schedule as it is once it is [settled](settle), and whether that has changed it. Nothing is written.
    #[must_use]
    pub fn settled(&self, now: &Now) -> (Self, bool) {
        let mut settled = self.clone();
        let changed = settle(&mut settled.state, now);
        (settled, changed)
    }
}

/// What is to be done about a [settled](settle) schedule.
///
/// # Errors
/// When its expression or zone cannot be read.
pub fn judge(schedule: &Schedule, now: &Now) -> Result<Verdict> {
    Ok(verdict(schedule, &schedule.cron()?, &schedule.zone()?, now))
}

fn verdict(schedule: &Schedule, cron: &Cron, zone: &TimeZone, now: &Now) -> Verdict {
    if schedule.paused {
        return Verdict::Paused;
    }
    let state = &schedule.state;
    let Some(next) = cron.next(state.instead.unwrap_or(state.base), zone) else { return Verdict::Never };
    if next > now.moment.wall {
        return Verdict::At(next);
    }
    let since = state.waiting.as_ref().map_or(next, |waiting| waiting.since.min(next));
    let wait = |left: Duration, why: String| Verdict::Waits { since, until: now.moment.wall + left, why };
    if let Some(left) = guarded(state, cron, zone, now) {
        return wait(left, "the clock was set since it last ran: it waits for as long as it would have without that".to_owned());
    }
    if let Some((left, why)) = held_back(state, cron, zone, now) {
        return wait(left, why);
    }
    match &now.blocked {
        Some(why) => wait(LOOK_AGAIN, why.clone()),
        None => Verdict::Due(since),
    }
}

/// How long it must not run yet, because it ran so recently that only a clock that was set can make it due.
fn guarded(state: &State, cron: &Cron, zone: &TimeZone, now: &Now) -> Option<Duration> {
    let ran = state.ran.as_ref().filter(|ran| ran.boot == now.moment.boot)?;
    let passed = Duration::from_secs(now.moment.seconds.saturating_sub(ran.seconds));
    let by_the_wall = now.moment.wall.duration_since(ran.wall);
    let was_set = (by_the_wall - SignedDuration::try_from(passed).ok()?).abs() > DRIFT || state.instead.is_some();
    if !was_set || passed >= LONGEST_GUARD {
        return None;
    }
    let guard = (distance(cron, zone, now.moment.wall)? / 2).min(LONGEST_GUARD);
    guard.checked_sub(passed).filter(|left| !left.is_zero())
}

/// The shortest time between two of the next instants.
#[must_use]
pub fn distance(cron: &Cron, zone: &TimeZone, from: Timestamp) -> Option<Duration> {
    let instants: Vec<Timestamp> = cron.instants(from, zone).take(MEASURED).collect();
    instants.windows(2).filter_map(|pair| Duration::try_from(pair[1].duration_since(pair[0])).ok()).min()
}

/// How long it waits after a try that failed, and why that failed. An instant that has come since then is a new beginning.
fn held_back(state: &State, cron: &Cron, zone: &TimeZone, now: &Now) -> Option<(Duration, String)> {
    let waiting = state.waiting.as_ref().filter(|waiting| waiting.tried.boot == now.moment.boot)?;
    let following = cron.next(waiting.tried.wall.min(now.moment.wall), zone);
    if following.is_some_and(|following| following <= now.moment.wall) {
        return None;
    }
    let after = AGAIN[usize::try_from(waiting.attempts.saturating_sub(1)).unwrap_or(usize::MAX).min(AGAIN.len() - 1)];
    let passed = Duration::from_secs(now.moment.seconds.saturating_sub(waiting.tried.seconds));
    let left = after.checked_sub(passed).filter(|left| !left.is_zero())?;
    let until_the_next = following.and_then(|following| Duration::try_from(following.duration_since(now.moment.wall)).ok());
    Some((until_the_next.map_or(left, |next| left.min(next)), waiting.why.clone()))
}

/// A run begins: until it ends well, it counts as one that was cut short. `by_itself`: it is due, and nobody asked for it.
///
/// # Errors
/// As [`judge`].
pub fn begin(schedule: &mut Schedule, now: &Now, name: String, by_itself: bool) -> Result<()> {
    schedule.state.last = Some(Run { begun: now.moment.wall, ended: None, name, backup: None, failure: None, why: None });
    if !by_itself {
        return Ok(());
    }
    let (cron, zone) = (schedule.cron()?, schedule.zone()?);
    let state = &mut schedule.state;
    let due = cron.next(state.instead.unwrap_or(state.base), &zone).unwrap_or(now.moment.wall).min(now.moment.wall);
    let before = state.waiting.take();
    let is_new =
        |waiting: &Waiting| cron.next(waiting.tried.wall.min(now.moment.wall), &zone).is_some_and(|following| following <= now.moment.wall);
    let attempts = before.as_ref().filter(|waiting| !is_new(waiting)).map_or(0, |waiting| waiting.attempts);
    let since = before.map_or(due, |waiting| waiting.since.min(due));
    let why = "its last run was cut short".to_owned();
    state.waiting = Some(Waiting { since, attempts: attempts.saturating_add(1), tried: now.moment.clone(), why });
    Ok(())
}

/// The run that [began](begin) ended well, with this backup. Instants that came while one that was due was at work are left out: a schedule that is more often than a
/// backup takes would else be at work without end.
pub fn succeeded(schedule: &mut Schedule, backup: String, ended: Timestamp, by_itself: Option<Moment>) {
    let next = |begun: Timestamp| schedule.cron().ok()?.next(begun, &schedule.zone().ok()?);
    let came_meanwhile = |begun: Timestamp| by_itself.is_some() && next(begun).is_some_and(|next| next <= ended);
    let base = schedule.state.last.as_ref().map(|run| if came_meanwhile(run.begun) { ended } else { run.begun });
    let state = &mut schedule.state;
    let (Some(run), Some(base)) = (&mut state.last, base) else { return };
    run.ended = Some(ended);
    run.backup = Some(backup);
    state.base = base;
    state.instead = None;
    state.waiting = None;
    state.good = state.last.clone();
    if by_itself.is_some() {
        state.ran = by_itself;
    }
}

/// The run that [began](begin) was cut short once its backup was complete, which is found now, however much later that is. What came meanwhile is due: of those
/// instants only the ones within the time that the backup `took`, where that is known, came while it was at work.
pub fn adopted(schedule: &mut Schedule, backup: String, took: Option<Duration>) {
    let state = &schedule.state;
    let Some(begun) = state.last.as_ref().map(|run| run.begun) else { return };
    let tried = state.waiting.as_ref().map(|waiting| waiting.tried.clone()).filter(|tried| tried.wall == begun);
    let ended = begun.saturating_add(SignedDuration::try_from(took.unwrap_or_default()).unwrap_or_default()).unwrap_or(begun);
    succeeded(schedule, backup, ended, tried);
}

/// The run that [began](begin) failed.
pub fn failed(schedule: &mut Schedule, failure: String, why: String, ended: Timestamp) {
    let state = &mut schedule.state;
    if let Some(run) = &mut state.last {
        run.ended = Some(ended);
        run.failure = Some(failure);
        run.why = Some(why.clone());
    }
    if let Some(waiting) = state.waiting.as_mut().filter(|waiting| state.last.as_ref().is_some_and(|run| run.begun == waiting.tried.wall)) {
        waiting.why = why;
    }
}

/// When the timer has to elapse, by all the times at which something is to be done. One that has come, or will have come before the timer knows of it,
/// would never elapse: that is a minute from now.
#[must_use]
pub fn wake(times: impl Iterator<Item = Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let soon = now + SignedDuration::from_secs(10);
    times.min().map(|first| if first > soon { first } else { now + SignedDuration::from_mins(1) })
}

#[cfg(test)]
mod tests;

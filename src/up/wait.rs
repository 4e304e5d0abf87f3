//! Waiting until everything is up, and stays up.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::look::{Checked, Part};
use crate::node::clock::Clock;

/// For how long everything has to stay up, unless said otherwise: what starts and dies does so within a minute.
pub const HOLD: Duration = Duration::from_secs(60);
/// Between two looks: each asks for a good deal.
const PAUSE: Duration = Duration::from_secs(2);

/// What is waited for, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// For how long everything has to stay up. Whatever goes down meanwhile makes it begin anew.
    pub hold: Duration,
    /// How long it is waited for. What is up by then may stay up for as long as it has to.
    pub patience: Duration,
    /// How long those parts of which no backup [records](Part::is_recorded) how they were are waited for once all others are up, and stay up; after that
    /// they are left as they are. Unless it is given, nothing is left.
    pub others: Option<Duration>,
}

/// How it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Up {
    /// Everything that has to be up is, and has been for as long as it has to.
    pub up: bool,
    /// For how long it has been up, seconds.
    pub held: f64,
    /// How long it was waited for, seconds.
    pub waited: f64,
    /// Every part, as it was last.
    pub parts: Vec<Checked>,
    /// What went down again after everything was up.
    pub fell: Vec<Fell>,
}

/// An object that was up with everything else, and did not stay so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fell {
    /// Its part.
    pub part: Part,
    /// Its name.
    pub name: String,
    /// How often.
    pub times: u32,
    /// Why it was not up the last time.
    pub trouble: String,
}

impl std::fmt::Display for Fell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { part, name, times, trouble } = self;
        write!(f, "{part}: {name} was up and went down again")?;
        if *times > 1 {
            write!(f, ", {times} times")?;
        }
        write!(f, ": {trouble}")
    }
}

/// Looks until everything has been up for as long as it has to, or nothing has come of it. `show` gets each look, and for how long all has been up.
///
/// # Errors
/// Those of `look`; when interrupted.
pub fn wait(
    clock: &Clock,
    terms: Terms,
    look: &mut dyn FnMut() -> Result<Vec<Checked>>,
    show: &mut dyn FnMut(&[Checked], Duration),
) -> Result<Up> {
    let (began, deadline) = (clock.since_boot(), clock.deadline(terms.patience));
    let mut watch = Watch::default();
    loop {
        let parts = look()?;
        let now = clock.since_boot();
        let verdict = watch.see(&parts, now, terms);
        show(&parts, now.saturating_sub(watch.all.unwrap_or(now)));
        if verdict == Verdict::Held || (verdict == Verdict::Down && deadline.passed()) {
            let since = watch.all.or(watch.needed).unwrap_or(now);
            return Ok(Up {
                up: verdict == Verdict::Held,
                held: now.saturating_sub(since).as_secs_f64(),
                waited: now.saturating_sub(began).as_secs_f64(),
                parts,
                fell: watch.fell,
            });
        }
        clock.sleep(PAUSE)?;
    }
}

/// What a look says about the end of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// What has to be up is not.
    Down,
    /// It is, but not for long enough, or others may still follow.
    Holding,
    /// It is over.
    Held,
}

/// What the looks so far have come to.
#[derive(Debug, Default)]
struct Watch {
    /// Since when everything is up.
    all: Option<Duration>,
    /// Since when everything is up that is not left in the end.
    needed: Option<Duration>,
    fell: Vec<Fell>,
}

impl Watch {
    /// Takes in a look.
    fn see(&mut self, parts: &[Checked], now: Duration, terms: Terms) -> Verdict {
        let is_needed = |part: &&Checked| terms.others.is_none() || part.part.is_recorded();
        let all_up = parts.iter().all(Checked::is_up);
        let needed_up = parts.iter().filter(is_needed).all(Checked::is_up);
        if self.all.is_some() && !all_up {
            self.note(parts.iter());
        } else if self.needed.is_some() && !needed_up {
            self.note(parts.iter().filter(is_needed));
        }
        self.all = all_up.then(|| self.all.unwrap_or(now));
        self.needed = needed_up.then(|| self.needed.unwrap_or(now));
        let for_long = |since: Option<Duration>, time: Duration| since.is_some_and(|since| now.saturating_sub(since) >= time);
        let without_others = terms.others.is_some_and(|others| !all_up && for_long(self.needed, others.max(terms.hold)));
        if for_long(self.all, terms.hold) || without_others {
            Verdict::Held
        } else if needed_up {
            Verdict::Holding
        } else {
            Verdict::Down
        }
    }

    fn note<'a>(&mut self, parts: impl Iterator<Item = &'a Checked>) {
        for (part, one) in parts.flat_map(|part| part.down.iter().map(|one| (part.part, one))) {
            let trouble = one.trouble.clone().unwrap_or_default();
            match self.fell.iter_mut().find(|fell| fell.part == part && fell.name == one.name) {
                Some(fell) => (fell.times, fell.trouble) = (fell.times + 1, trouble),
                None => self.fell.push(Fell { part, name: one.name.clone(), times: 1, trouble }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::Health;

    const TERMS: Terms =
        Terms { hold: Duration::from_secs(60), patience: Duration::from_secs(600), others: Some(Duration::from_secs(120)) };

    /// A look at an operator, which a backup records, and a webhook, which none does.
    fn look(operator: bool, webhook: bool) -> Vec<Checked> {
        let part = |part, name: &str, up: bool| {
            let down = if up { Vec::new() } else { vec![Health { name: name.to_owned(), trouble: Some(format!("{name} is down")) }] };
            Checked { part, total: 1, down }
        };
        vec![part(Part::ClusterOperators, "dns", operator), part(Part::Webhooks, "vet", webhook)]
    }

    /// What the looks come to: at which second, the operator, the webhook.
    fn seen(terms: Terms, looks: &[(u64, bool, bool)]) -> (Verdict, Vec<Fell>) {
        let mut watch = Watch::default();
        let mut verdict = Verdict::Down;
        for (at, operator, webhook) in looks {
            assert_ne!(verdict, Verdict::Held, "it was over before {at} s");
            verdict = watch.see(&look(*operator, *webhook), Duration::from_secs(*at), terms);
        }
        (verdict, watch.fell)
    }

    fn fell(part: Part, name: &str, times: u32) -> Fell {
        Fell { part, name: name.to_owned(), times, trouble: format!("{name} is down") }
    }

    #[test]
    fn what_is_up_for_as_long_as_it_has_to_is_up() {
        let (up, down) = ((true, true), (false, true));
        let at = |looks: &[(u64, (bool, bool))]| seen(TERMS, &looks.iter().map(|(at, (o, w))| (*at, *o, *w)).collect::<Vec<_>>());
        assert_eq!(at(&[(0, down), (10, up), (69, up)]), (Verdict::Holding, Vec::new()));
        assert_eq!(at(&[(0, down), (10, up), (70, up)]), (Verdict::Held, Vec::new()), "what only starts has not gone down again");
        let dns = |times| vec![fell(Part::ClusterOperators, "dns", times)];
        assert_eq!(at(&[(0, up), (59, up), (60, down)]), (Verdict::Down, dns(1)));
        assert_eq!(at(&[(0, up), (59, down), (61, down), (62, up), (121, up)]), (Verdict::Holding, dns(1)), "the minute begins anew");
        assert_eq!(at(&[(0, up), (59, down), (61, up), (70, down), (72, up), (132, up)]), (Verdict::Held, dns(2)));
        assert_eq!(dns(2)[0].to_string(), "ClusterOperators: dns was up and went down again, 2 times: dns is down");
    }

    #[test]
    fn what_no_backup_records_is_left_when_all_else_has_stayed_up_without_it() {
        assert_eq!(seen(TERMS, &[(0, true, false), (119, true, false)]).0, Verdict::Holding);
        assert_eq!(seen(TERMS, &[(0, true, false), (120, true, false)]), (Verdict::Held, Vec::new()));
        let operator = vec![fell(Part::ClusterOperators, "dns", 1)];
        assert_eq!(
            seen(TERMS, &[(0, true, false), (100, false, false), (102, true, false), (221, true, false)]),
            (Verdict::Holding, operator)
        );
        // One that comes has to stay as long as all else; one that goes again, and again, does not hold it up for ever.
        let webhook = vec![fell(Part::Webhooks, "vet", 1)];
        assert_eq!(seen(TERMS, &[(0, true, false), (110, true, true), (125, true, true), (169, true, true)]).0, Verdict::Holding);
        assert_eq!(seen(TERMS, &[(0, true, false), (110, true, true), (170, true, true)]), (Verdict::Held, Vec::new()));
        assert_eq!(seen(TERMS, &[(0, true, false), (110, true, true), (125, true, false)]), (Verdict::Held, webhook.clone()));
        let long = Terms { hold: Duration::from_secs(300), ..TERMS };
        assert_eq!(seen(long, &[(0, true, false), (299, true, false)]).0, Verdict::Holding);
        assert_eq!(seen(long, &[(0, true, false), (300, true, false)]).0, Verdict::Held);
        // Where nothing is left, it is as all else.
        let all = Terms { others: None, ..TERMS };
        assert_eq!(seen(all, &[(0, true, true), (10, true, false), (600, true, false)]), (Verdict::Down, webhook));
    }
}

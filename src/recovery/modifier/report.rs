//! What the rules would do, for people to agree to.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::ahead::ASKING;
use super::{Found, Look, Object, Objects, Served, few_enough, rules};
use crate::backup::Backup;
use crate::error::{AndNext, FailureKind, by_hand, damaged, kind};
use crate::modifiers::{Outcome, Rules, Target};
use crate::report::Progress;

/// How many objects a refusal names.
const NAMED: usize = 5;
/// How many objects of a rule a report holds: a rule can be about all of the many thousands of a cluster.
const SHOWN: usize = 100;
/// How many bytes of changes of a rule a report holds, but for the first object: a value can be as large as etcd takes it.
const SHOWN_BYTES: usize = 256 << 10;

/// What the rules would do, rule by rule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModifierReport {
    /// Each rule, in the order of the file.
    pub rules: Vec<RuleReport>,
}

/// What one rule would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleReport {
    /// Its place in the file, from 1.
    pub rule: usize,
    /// The resources and groups that it is about, as the file has them.
    pub group_resource: String,
    /// How many objects it is about.
    pub objects: usize,
    /// How many of them it changes.
    pub changed: usize,
    /// How many of them it is applied to through the API server: what it changes is known only then, and others can be faster.
    pub through_api: usize,
    /// What it does to those, one line for each patch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<String>,
    /// Those of them that were written last, by their names: at most 100, and fewer where much changes.
    pub shown: Vec<ObjectReport>,
}

/// What one rule would do to one object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectReport {
    /// Which object it is.
    #[serde(flatten)]
    pub target: Target,
    /// The version of its API that it is stored in, which may be older than the one that people see: paths are judged against what is stored.
    pub api_version: String,
    /// The object's generation after all rules, where they raise it: something beside metadata and status changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// What the rule does.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The objects of a rule that are shown: the first that come, which are those that were last written.
#[derive(Default)]
struct Shown {
    objects: Vec<ObjectReport>,
    bytes: usize,
    full: bool,
}

impl Shown {
    fn add(&mut self, object: ObjectReport) {
        if self.full {
            return;
        }
        self.bytes += match &object.outcome {
            Outcome::Changed { changes } => serde_json::to_vec(changes).map_or(0, |text| text.len()),
            _ => 0,
        };
        self.full = self.bytes > SHOWN_BYTES && !self.objects.is_empty();
        if !self.full {
            self.objects.push(object);
            self.full = self.objects.len() == SHOWN;
        }
    }
}

/// One rule, while objects are looked at.
#[derive(Default)]
struct Counted {
    objects: usize,
    changed: usize,
    through_api: usize,
    shown: Shown,
    failures: Vec<String>,
    more: usize,
}

impl Counted {
    /// Counts an object. `stored` is what else is shown of it; nothing of one that was only judged.
    fn add(&mut self, target: &Target, outcome: Outcome, stored: Option<&Stored>) {
        self.objects += 1;
        let why = match &outcome {
            Outcome::Error { why } => Some(format!("{target}: {why}")),
            Outcome::TestFailed { why } => Some(format!(
                "{target}: {why} (Velero would leave the object as it is; `matches` in the conditions chooses objects by their values)"
            )),
            Outcome::Changed { .. } => {
                self.changed += 1;
                None
            }
            Outcome::ThroughApi { .. } => {
                self.through_api += 1;
                None
            }
            Outcome::Unchanged => None,
        };
        if self.failures.len() < NAMED {
            self.failures.extend(why);
        } else {
            self.more += usize::from(why.is_some());
        }
        if let Some(Stored { api_version, generation }) = stored {
            self.shown.add(ObjectReport { target: target.clone(), api_version: api_version.clone(), generation: *generation, outcome });
        }
    }

    /// Why the rule cannot be carried out.
    fn refused(&self, rule: &str) -> impl Iterator<Item = String> + use<> {
        let nothing = (self.objects == 0).then(|| format!("{rule} is about no object of the backup"));
        let more = if self.more > 0 { format!(", and on {} more", self.more) } else { String::new() };
        let fails = (!self.failures.is_empty()).then(|| format!("{rule} fails on {}{more}", self.failures.join("; ")));
        nothing.into_iter().chain(fails)
    }
}

/// What is found out about a backup's objects before anything is touched.
#[derive(Debug, Default)]
pub(in crate::recovery) struct Looked {
    /// What the rules would do, where there are some.
    pub modifier: Option<ModifierReport>,
    /// What to know of upgrades that the cluster would begin again. Of objects that do not tell, that.
    pub warnings: Vec<String>,
}

/// Runs the rules, and looks for upgrades that the cluster would begin again when they were applied.
///
/// # Errors
/// [`FailureKind::Damaged`] when a rule is about no object, cannot be applied to one, or has a test that does not hold; as [`Objects::run`]. Without
/// rules, an interruption alone.
pub(in crate::recovery) fn look(backup: &Backup, text: Option<&str>, progress: &Progress) -> Result<Looked> {
    let rules = text.map(rules).transpose()?;
    match look_at(backup, rules.as_ref(), progress) {
        Err(error) if rules.is_none() && kind(&error) != FailureKind::Interrupted => Ok(Looked {
            warnings: vec![format!("whether the backup's cluster is asked to go to another release cannot be told: {error:#}")],
            modifier: None,
        }),
        looked => looked,
    }
}

fn look_at(backup: &Backup, rules: Option<&Rules>, progress: &Progress) -> Result<Looked> {
    let objects = Objects::of(backup, progress)?;
    let task = progress.task("looking at the backup's objects", None);
    let keys = ASKING.map(|asking| asking.key(&objects));
    let (mut counted, mut warnings) = (Vec::new(), Vec::new());
    counted.resize_with(rules.map_or(0, Rules::len), Counted::default);
    let mut also = |key: &[u8], value: &[u8]| {
        let asking = ASKING.iter().zip(&keys).find(|(_, of)| *of == key);
        let said = asking.map_or(Ok(None), |(asking, _)| asking.look(rules, value));
        warnings.extend(said.unwrap_or_else(|error| {
            Some(format!("whether the backup's cluster is asked to go to another release cannot be told: {error:#}"))
        }));
    };
    let mut served = 0;
    // Of rules that have shown enough, nobody asks where they change an object.
    let full: Vec<AtomicBool> = counted.iter().map(|_| AtomicBool::new(false)).collect();
    let briefly = |rules: &[usize]| rules.iter().all(|rule| full[*rule].load(Relaxed));
    objects.walk(rules, &keys, &mut also, &Look { briefly: &briefly, kept: &judged }, &mut |Judged { target, outcomes, stored }| {
        task.alive();
        served += usize::from(outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::ThroughApi { .. })));
        for (rule, outcome) in outcomes {
            counted[rule].add(&target, outcome, stored.as_ref());
            full[rule].store(counted[rule].shown.full, Relaxed);
        }
        few_enough(served)
    })?;
    if served > 0 {
        warnings.push(format!(
            "{served} of the objects that the rules are about are of built-in kinds: they are patched through the API server, before the controllers run, and \
             pods that run already can be faster; one that cannot be patched then stays as the backup has it, with a warning"
        ));
    }
    let modifier = rules.map(|rules| reported(backup, rules, counted)).transpose()?;
    Ok(Looked { modifier, warnings })
}

/// What the rules that are about an object would do to it.
struct Judged {
    target: Target,
    outcomes: Vec<(usize, Outcome)>,
    stored: Option<Stored>,
}

/// What else is shown of an object.
struct Stored {
    api_version: String,
    generation: Option<i64>,
}

fn judged(found: Found) -> Judged {
    match found {
        Found::Judged(target, outcomes) => Judged { target, outcomes, stored: None },
        Found::Read(Object { target, applied, generation, .. }) => {
            let api_version = applied.object.pointer("/apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
            Judged { target, outcomes: applied.outcomes, stored: Some(Stored { api_version, generation }) }
        }
        Found::Served(Served { target, api_version, rules }) => {
            let outcomes = rules.into_iter().map(|rule| (rule, Outcome::ThroughApi { race_free: false })).collect();
            Judged { target, outcomes, stored: Some(Stored { api_version, generation: None }) }
        }
    }
}

fn reported(backup: &Backup, rules: &Rules, counted: Vec<Counted>) -> Result<ModifierReport> {
    let named = |place: usize| format!("rule {} ({})", place + 1, rules.group_resource(place));
    let refused: Vec<String> = counted.iter().enumerate().flat_map(|(place, rule)| rule.refused(&named(place))).collect();
    if !refused.is_empty() {
        let why = refused.join(". ");
        return Err(damaged(format!("the resource modifier cannot be applied to backup {}, so nothing was changed: {why}", backup.id))
            .and_next(by_hand("mend the file; `--dry-run` shows what it would do")));
    }
    let report = |(place, rule): (usize, Counted)| {
        let mut shown = rule.shown.objects;
        shown.sort_by(|one, other| one.target.cmp(&other.target));
        RuleReport {
            rule: place + 1,
            group_resource: rules.group_resource(place).to_owned(),
            objects: rule.objects,
            changed: rule.changed,
            through_api: rule.through_api,
            patches: if rule.through_api > 0 { rules.patches(place) } else { Vec::new() },
            shown,
        }
    };
    Ok(ModifierReport { rules: counted.into_iter().enumerate().map(report).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modifiers::Difference;

    fn object(number: usize, bytes: usize) -> ObjectReport {
        let target = Target { resource: "a.b.c".to_owned(), namespace: None, name: format!("n{number:04}") };
        let changes = vec![Difference { path: String::new(), before: None, after: Some("x".repeat(bytes).into()) }];
        ObjectReport { target, api_version: String::new(), generation: None, outcome: Outcome::Changed { changes } }
    }

    #[test]
    fn the_objects_that_come_first_are_shown() {
        for (bytes, number, shown) in [(10, 500, SHOWN), (SHOWN_BYTES / 3, 10, 2), (SHOWN_BYTES * 2, 5, 1), (SHOWN_BYTES / 3, 1, 1)] {
            let mut all = Shown::default();
            (0..number).for_each(|number| all.add(object(number, bytes)));
            let names: Vec<_> = all.objects.into_iter().map(|object| object.target.name).collect();
            assert_eq!(names, (0..shown).map(|number| format!("n{number:04}")).collect::<Vec<_>>(), "{bytes} bytes each");
            assert_eq!(all.full, number > shown || shown == SHOWN);
        }
    }
}

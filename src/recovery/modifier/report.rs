//! What the rules would do, for people to agree to.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::ahead::ASKING;
use super::{Found, Objects, few_enough, rules};
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
    /// The first of them in the order of their names: at most 100, and fewer where much changes.
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

/// The first of the objects that a rule is about, however they come.
#[derive(Default)]
struct First {
    shown: BTreeMap<Target, (ObjectReport, usize)>,
    bytes: usize,
    /// The first that was left out: no other from there on is kept.
    end: Option<Target>,
}

impl First {
    fn add(&mut self, object: ObjectReport) {
        if self.end.as_ref().is_some_and(|end| object.target >= *end) {
            return;
        }
        let bytes = match &object.outcome {
            Outcome::Changed { changes } => serde_json::to_vec(changes).map_or(0, |text| text.len()),
            _ => 0,
        };
        self.bytes += bytes;
        self.shown.insert(object.target.clone(), (object, bytes));
        while self.shown.len() > SHOWN || self.bytes > SHOWN_BYTES && self.shown.len() > 1 {
            let Some((target, (_, bytes))) = self.shown.pop_last() else { return };
            self.bytes -= bytes;
            self.end = Some(target);
        }
    }
}

/// One rule, while objects are looked at.
#[derive(Default)]
struct Counted {
    objects: usize,
    changed: usize,
    through_api: usize,
    first: First,
    failures: Vec<String>,
    more: usize,
}

impl Counted {
    fn add(&mut self, object: ObjectReport) {
        self.objects += 1;
        let why = match &object.outcome {
            Outcome::Error { why } => Some(format!("{}: {why}", object.target)),
            Outcome::TestFailed { why } => Some(format!(
                "{}: {why} (Velero would leave the object as it is; `matches` in the conditions chooses objects by their values)",
                object.target
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
        self.first.add(object);
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
    objects.walk(rules, &keys, &mut also, &reports, &mut |reports| {
        task.alive();
        served += usize::from(reports.iter().any(|(_, report)| matches!(report.outcome, Outcome::ThroughApi { .. })));
        reports.into_iter().for_each(|(rule, report)| counted[rule].add(report));
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

/// What each rule would do to an object.
fn reports(found: Found) -> Vec<(usize, ObjectReport)> {
    let (target, api_version, generation, outcomes) = match found {
        Found::Read(object) => {
            let api_version = object.applied.object.pointer("/apiVersion").and_then(Value::as_str).unwrap_or_default();
            (object.target, api_version.to_owned(), object.generation, object.applied.outcomes)
        }
        Found::Served(object) => {
            let outcome = |rule| (rule, Outcome::ThroughApi { race_free: false });
            (object.target, object.api_version, None, object.rules.into_iter().map(outcome).collect::<Vec<_>>())
        }
    };
    let report = |outcome| ObjectReport { target: target.clone(), api_version: api_version.clone(), generation, outcome };
    outcomes.into_iter().map(|(rule, outcome)| (rule, report(outcome))).collect()
}

fn reported(backup: &Backup, rules: &Rules, counted: Vec<Counted>) -> Result<ModifierReport> {
    let named = |place: usize| format!("rule {} ({})", place + 1, rules.group_resource(place));
    let refused: Vec<String> = counted.iter().enumerate().flat_map(|(place, rule)| rule.refused(&named(place))).collect();
    if !refused.is_empty() {
        let why = refused.join(". ");
        return Err(damaged(format!("the resource modifier cannot be applied to backup {}, so nothing was changed: {why}", backup.id))
            .and_next(by_hand("mend the file; `--dry-run` shows what it would do")));
    }
    let report = |(place, rule): (usize, Counted)| RuleReport {
        rule: place + 1,
        group_resource: rules.group_resource(place).to_owned(),
        objects: rule.objects,
        changed: rule.changed,
        through_api: rule.through_api,
        patches: if rule.through_api > 0 { rules.patches(place) } else { Vec::new() },
        shown: rule.first.shown.into_values().map(|(object, _)| object).collect(),
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
    fn the_first_objects_are_shown_in_whatever_order_they_come() {
        for (bytes, number, shown) in [(10, 500, SHOWN), (SHOWN_BYTES / 3, 10, 2), (SHOWN_BYTES * 2, 5, 1)] {
            let orders: [Vec<usize>; 3] =
                [(0..number).collect(), (0..number).rev().collect(), (0..number).map(|i| i * 3 % number).collect()];
            for order in orders {
                let mut first = First::default();
                order.iter().for_each(|number| first.add(object(*number, bytes)));
                let names: Vec<_> = first.shown.into_keys().map(|target| target.name).collect();
                assert_eq!(names, (0..shown).map(|number| format!("n{number:04}")).collect::<Vec<_>>(), "{bytes} bytes each");
            }
        }
    }
}

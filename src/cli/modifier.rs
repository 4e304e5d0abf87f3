//! The files of a resource modifier, and what its rules would do, in words.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use crate::error::unsupported;
use crate::modifiers::{self, Difference, LARGEST_FILE, Outcome, RestoreFile};
use crate::node::durable;
use crate::recovery::{ModifierReport, ObjectReport, RuleReport};
use crate::report::{paths, words};

/// The rules in a file, raw or in a `ConfigMap`.
pub(super) fn rules(path: &Path) -> Result<String> {
    modifiers::rules_file(&text(path)?).with_context(|| format!("reading the resource modifier {}", paths::shown(path)))
}

/// The Restore in a file, with the rules of its `ConfigMap`.
pub(super) fn restore(path: &Path) -> Result<RestoreFile> {
    modifiers::restore_file(&text(path)?).with_context(|| format!("reading the Restore in {}", paths::shown(path)))
}

fn text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = durable::open_regular(path).with_context(|| format!("opening {}", paths::shown(path)))?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).with_context(|| format!("reading {}", paths::shown(path)))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(unsupported(format!("{} is larger than {LARGEST_FILE} bytes, which is what a ConfigMap can hold", paths::shown(path))));
    }
    String::from_utf8(bytes).map_err(|_| crate::error::damaged(format!("{} is not text", paths::shown(path))))
}

/// What the rules would do, one line each.
pub(super) fn describe(report: &ModifierReport) -> Vec<String> {
    report.rules.iter().flat_map(describe_rule).collect()
}

fn describe_rule(rule: &RuleReport) -> Vec<String> {
    let RuleReport { rule, group_resource, objects, changed, through_api, patches, shown } = rule;
    let s = if *objects == 1 { "" } else { "s" };
    let mut lines = vec![format!("rule {rule} ({group_resource}) is about {objects} object{s}, and changes {changed}:")];
    if *through_api > 0 {
        lines.push(format!("  {through_api} through the API server, not race-free, and judged only then:"));
        lines.extend(patches.iter().map(|patch| words::line(&format!("    {patch}")).into_owned()));
    }
    lines.extend(shown.iter().flat_map(describe_object));
    if *objects > shown.len() {
        lines.push(format!("  and {} more", objects - shown.len()));
    }
    lines
}

fn describe_object(object: &ObjectReport) -> Vec<String> {
    let stored = format!("  {} (stored as {})", object.target, object.api_version);
    match &object.outcome {
        Outcome::Changed { changes } => {
            let generation = object.generation.map_or_else(String::new, |generation| format!("; its generation becomes {generation}"));
            std::iter::once(format!("{stored}{generation}")).chain(changes.iter().flat_map(describe_change)).collect()
        }
        Outcome::Unchanged => vec![format!("{stored}: already so")],
        Outcome::ThroughApi { .. } => vec![format!("{stored}: through the API server")],
        Outcome::TestFailed { why } | Outcome::Error { why } => vec![format!("{stored}: {why}")],
    }
}

fn describe_change(change: &Difference) -> Vec<String> {
    let line = |sign: char, value: &Option<serde_json::Value>| value.as_ref().map(|value| format!("    {sign} {} {value}", change.path));
    line('-', &change.before).into_iter().chain(line('+', &change.after)).map(|line| words::line(&line).into_owned()).collect()
}

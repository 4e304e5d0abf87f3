//! Which objects a rule is about.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use regex::Regex;
use serde_json::Value;

use super::Target;
use super::glob::Glob;
use super::patch::{self, Pointer};
use crate::error::unsupported;

/// The conditions of a rule: all of them must hold.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    /// Resource and group.
    pub(super) group_resource: Glob,
    /// Namespaces; none for all. An object that is in none passes.
    pub(super) namespaces: Vec<Glob>,
    /// A part of the name.
    pub(super) name: Option<Regex>,
    /// Labels.
    pub(super) labels: Vec<Requirement>,
    /// Values.
    pub(super) matches: Vec<(Pointer, Value)>,
}

/// One requirement of a label selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

impl Conditions {
    /// True when those that look inside hold for `object`.
    pub(super) fn hold_inside(&self, object: &Value) -> bool {
        let labels = || -> BTreeMap<&str, &str> {
            let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
            labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
        };
        (self.labels.is_empty() || {
            let labels = labels();
            self.labels.iter().all(|requirement| requirement.holds(&labels))
        }) && self.matches.iter().all(|(path, wanted)| patch::holds(object, path, wanted))
    }

    /// True when they may hold for an object whose content is not known.
    pub(super) fn may_hold(&self, target: &Target) -> bool {
        let namespaced = |namespace: &String| self.namespaces.is_empty() || self.namespaces.iter().any(|glob| glob.matches(namespace));
        self.group_resource.matches(&target.resource)
            && target.namespace.as_ref().is_none_or(namespaced)
            && self.name.as_ref().is_none_or(|name| name.is_match(&target.name))
    }

    /// True when they look at what an object holds.
    pub(super) fn look_inside(&self) -> bool {
        !self.labels.is_empty() || !self.matches.is_empty()
    }
}

impl Requirement {
    /// Reads one of `matchExpressions`.
    ///
    /// # Errors
    /// When the operator is none, or has values where it takes none, or none where it needs some.
    pub(super) fn of(key: String, operator: &str, values: Vec<String>) -> Result<Self> {
        if key.is_empty() {
            bail!("a requirement has no key");
        }
        match (operator, values.is_empty()) {
            ("In", false) => Ok(Self::In(key, values)),
            ("NotIn", false) => Ok(Self::NotIn(key, values)),
            ("Exists", true) => Ok(Self::Exists(key)),
            ("DoesNotExist", true) => Ok(Self::DoesNotExist(key)),
            ("In" | "NotIn", true) => bail!("{operator} of the label `{key}` needs values"),
            ("Exists" | "DoesNotExist", false) => bail!("{operator} of the label `{key}` takes no values"),
            _ => bail!("`{operator}` of the label `{key}` is none of In, NotIn, Exists, DoesNotExist"),
        }
    }

    fn holds(&self, labels: &BTreeMap<&str, &str>) -> bool {
        match self {
            Self::In(key, values) => labels.get(key.as_str()).is_some_and(|value| values.iter().any(|one| one == value)),
            Self::NotIn(key, values) => labels.get(key.as_str()).is_none_or(|value| values.iter().all(|one| one != value)),
            Self::Exists(key) => labels.contains_key(key.as_str()),
            Self::DoesNotExist(key) => !labels.contains_key(key.as_str()),
        }
    }
}

/// Reads the expression for names, which need not match the whole name. Go's and Rust's expressions are the same but for what a class can hold:
/// operators and nested classes are plain characters to Go.
///
/// # Errors
/// When it is none; [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when Go reads it in another way.
pub(super) fn name(text: &str) -> Result<Option<Regex>> {
    if text.is_empty() {
        return Ok(None);
    }
    if reads_otherwise(text) {
        return Err(unsupported(format!(
            "the expression `{text}` has `[`, `&&`, `--` or `~~` within a class, which Go takes as characters and this agent does not: escape them with a backslash"
        )));
    }
    Regex::new(text).map(Some).with_context(|| format!("`{text}` is no regular expression"))
}

fn reads_otherwise(text: &str) -> bool {
    let (mut class, mut rest) = (false, text);
    while let Some(c) = rest.chars().next() {
        let skipped = match c {
            '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            '[' if class && !rest.starts_with("[:") => return true,
            '[' => {
                // A bracket that comes first is one of the characters.
                let first = rest[1..].trim_start_matches('^');
                let opened = !class;
                class = true;
                if opened && first.starts_with(']') { rest.len() - first.len() + 1 } else { 1 }
            }
            ']' => {
                class = false;
                1
            }
            _ if class && ["&&", "--", "~~"].iter().any(|operator| rest.starts_with(operator)) => return true,
            c => c.len_utf8(),
        };
        rest = &rest[skipped..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_go_reads_in_another_way_are_not_taken() {
        for good in ["e", "^web-[0-9]+$", "[a&b]", "a&&b", r"[a\&\&b]", "[]a]", "[^]a]-", "(a|b)--"] {
            assert!(name(good).unwrap().is_some(), "{good}");
        }
        for bad in ["[a&&b]", "[[a]", "[a--b]", "[a~~b]"] {
            assert_eq!(crate::error::exit_code(&name(bad).unwrap_err()), 64, "{bad}");
        }
        for bad in ["(", "a{2", "*"] {
            assert!(name(bad).is_err() || bad == "a{2", "{bad}");
        }
    }

    #[test]
    fn requirements_hold_as_selectors_do() {
        let labels = BTreeMap::from([("app", "x")]);
        let of = |operator: &str, key: &str, values: &[&str]| {
            Requirement::of(key.to_owned(), operator, values.iter().map(|value| (*value).to_owned()).collect())
        };
        for (operator, key, values, held) in [
            ("In", "app", &["y", "x"][..], true),
            ("In", "app", &["y"], false),
            ("In", "none", &["x"], false),
            ("NotIn", "app", &["x"], false),
            ("NotIn", "none", &["x"], true),
            ("Exists", "app", &[], true),
            ("DoesNotExist", "app", &[], false),
        ] {
            assert_eq!(of(operator, key, values).unwrap().holds(&labels), held, "{operator} {key}");
        }
        for (operator, key, values) in [("in", "a", &["x"][..]), ("In", "a", &[]), ("Exists", "a", &["x"]), ("Exists", "", &[])] {
            assert!(of(operator, key, values).is_err(), "{operator} {key}");
        }
    }
}

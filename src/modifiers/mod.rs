//! Resource modifiers: the rules file of Velero (version v1), applied to objects as etcd keeps them. Pure: no file, node or cluster.
//!
//! Reading order: this page (what a rule does to an object, and what comes of it); `file` (the rules file, strictly); `shapes` (that file by itself,
//! in a `ConfigMap`, and beside a Restore); `conditions` and `glob` (which objects a rule is about); `value` (what the text of a value becomes);
//! `patch` (JSON patches and merge patches); `difference` (what has changed); `part` (as much of an object as rules look at); `stored` (how the API server keeps objects in etcd).
//!
//! The semantics are those of Velero 1.18.1, as captured in `tests/fixtures/velero`. Two things differ. What Velero finds out object by object, long
//! after much was restored, is refused here before anything is touched: a bad glob or expression, a value that is no JSON, a rule without patches.
//! And an object is not made anew, but patched where it is: what Velero takes away before it applies rules ([`STRIPPED`]) is still there and stays
//! as it is, and what says which object it is ([`IDENTITY`]) cannot be changed.

mod conditions;
mod difference;
mod file;
mod glob;
mod part;
mod patch;
mod shapes;
mod stored;
mod value;

use serde::Serialize;
use serde_json::Value;

pub use difference::{Difference, differences};
pub use file::Rules;
pub use shapes::{RestoreFile, restore_file, rules_file};
pub use stored::{Form, Key};

use file::Patches;
use patch::Fault;

/// The largest file with rules that is read, bytes: what a `ConfigMap` can hold.
pub const LARGEST_FILE: u64 = 1 << 20;

/// What Velero takes away from an object before the rules see it (`pkg/restore/restore.go` 1.18.1). Here it is there, and no rule touches it or looks
/// at it: in Velero it would never be found.
pub const STRIPPED: [&str; 9] = [
    "/status",
    "/metadata/uid",
    "/metadata/resourceVersion",
    "/metadata/generation",
    "/metadata/generateName",
    "/metadata/creationTimestamp",
    "/metadata/deletionTimestamp",
    "/metadata/ownerReferences",
    "/metadata/selfLink",
];

/// What an object is known by, in etcd and to everybody who refers to it. Rules can look at it and not change it.
pub const IDENTITY: [&str; 4] = ["/apiVersion", "/kind", "/metadata/name", "/metadata/namespace"];

/// Which object it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Target {
    /// Its plural resource and group, `managements.k0rdent.mirantis.com`; without a group in the core, `configmaps`.
    pub resource: String,
    /// Its namespace; `None` when it is in none.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.resource)?;
        self.namespace.iter().try_for_each(|namespace| write!(f, "{namespace}/"))?;
        f.write_str(&self.name)
    }
}

/// What one rule does to one object that it is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It changes the object.
    Changed {
        /// Where, and how; of one that was only judged, nothing.
        changes: Vec<Difference>,
    },
    /// The object is already as the rule wants it.
    Unchanged,
    /// It is done through the API server, when that runs and the controllers do not yet: what the object holds is known only then. Others who have access to
    /// the API server can be faster.
    ThroughApi {
        /// False, for people and programs that read the plan.
        race_free: bool,
    },
    /// A `test` did not hold, so that the whole rule has no effect on this object.
    TestFailed {
        /// Which.
        why: String,
    },
    /// It cannot be applied. The rule has no effect on this object.
    Error {
        /// Why.
        why: String,
    },
}

/// What all rules do to one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The object afterwards.
    pub object: Value,
    /// For each rule that is about the object, in order: its place in the file, from 0, and what it does.
    pub outcomes: Vec<(usize, Outcome)>,
}

impl Rules {
    /// Applies the rules to an object. Conditions are judged on the object as it is given; the patches add up, rule by rule.
    #[must_use]
    pub fn apply(&self, target: &Target, original: &Value) -> Applied {
        self.apply_to(target, original.clone())
    }

    /// As [`Rules::apply`], to an object that is not needed any more.
    #[must_use]
    pub fn apply_to(&self, target: &Target, mut object: Value) -> Applied {
        let differ = |before: &Value, after: &Value| Some(differences(before, after)).filter(|changes| !changes.is_empty());
        let outcomes = self.outcomes(self.all_about_unread(target).collect(), &mut object, &differ);
        Applied { object, outcomes }
    }

    /// What of those rules that [may be about it](Rules::all_about_unread) each does to an object, and not where: several times as fast as
    /// [`Rules::apply_to`]. `object` is one, or its [part](Rules::part).
    #[must_use]
    pub fn judge(&self, may_be_about: Vec<usize>, mut object: Value) -> Vec<(usize, Outcome)> {
        self.outcomes(may_be_about, &mut object, &|before, after| (before != after).then(Vec::new))
    }

    /// What of the rules that may be about an object each does to it, one after the other. Conditions are judged on the object as it is given.
    fn outcomes(&self, mut about: Vec<usize>, object: &mut Value, differ: &Differ<'_>) -> Vec<(usize, Outcome)> {
        about.retain(|place| self.rules[*place].conditions.hold_inside(object));
        about.into_iter().map(|place| (place, patched(object, &self.rules[place].patches, differ))).collect()
    }

    /// Of the JSON of an object its name and what the rules that may be about it look at: enough to [judge](Rules::judge) it by.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn part(&self, may_be_about: &[usize], json: &[u8]) -> serde_json::Result<Value> {
        if may_be_about.iter().any(|place| self.rules[*place].conditions.look_inside()) {
            return serde_json::from_slice(json);
        }
        part::part(json, &self.wanted)
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// True when there are none, which no rules file that is read leads to.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The groups and resources that a rule is about, as the file writes them.
    #[must_use]
    pub fn group_resource(&self, place: usize) -> &str {
        self.rules.get(place).map_or("", |rule| rule.conditions.group_resource.text())
    }

    /// True when a rule may be about objects of this resource and group.
    #[must_use]
    pub fn may_be_about(&self, resource: &str) -> bool {
        self.rules.iter().any(|rule| rule.conditions.group_resource.matches(resource))
    }

    /// The first rule that is, or may be, about an object whose content cannot be read: labels and values do not rule it out.
    #[must_use]
    pub fn about_unread(&self, target: &Target) -> Option<usize> {
        self.all_about_unread(target).next()
    }

    /// All of them, as [`Rules::about_unread`].
    pub fn all_about_unread(&self, target: &Target) -> impl Iterator<Item = usize> {
        self.rules.iter().enumerate().filter(|(_, rule)| rule.conditions.may_hold(target)).map(|(place, _)| place)
    }

    /// True when some rule chooses objects by their names or namespaces.
    #[must_use]
    pub fn choose_by_name(&self) -> bool {
        self.rules.iter().any(|rule| rule.conditions.name.is_some() || !rule.conditions.namespaces.is_empty())
    }

    /// True when a rule's conditions look at what an object holds: its labels, its values.
    #[must_use]
    pub fn looks_inside(&self, place: usize) -> bool {
        self.rules.get(place).is_some_and(|rule| rule.conditions.look_inside())
    }

    /// What a rule does, one line for each patch.
    #[must_use]
    pub fn patches(&self, place: usize) -> Vec<String> {
        match self.rules.get(place).map(|rule| &rule.patches) {
            Some(Patches::Json(operations)) => operations.iter().map(ToString::to_string).collect(),
            Some(Patches::Merge(patches)) => patches.iter().map(|patch| format!("merge {patch}")).collect(),
            None => Vec::new(),
        }
    }
}

/// Says where an object has become another; nothing when it is the same.
type Differ<'a> = dyn Fn(&Value, &Value) -> Option<Vec<Difference>> + 'a;

/// Patches an object, or leaves it as it is.
fn patched(object: &mut Value, patches: &Patches, differ: &Differ<'_>) -> Outcome {
    let Some(fields) = object.as_object_mut() else { return Outcome::Error { why: "it is no object".to_owned() } };
    // Only the fields that may become others are taken and copied: of most objects that is a small part.
    let touched = fields.iter_mut().filter(|(name, _)| patches.touch(name));
    let before = Value::Object(touched.map(|(name, value)| (name.clone(), value.take())).collect());
    let mut after = before.clone();
    let outcome = match patch_with(patches, &before, &mut after).and_then(|()| kept(&before, &after)) {
        Err(Fault::Test(why)) => Outcome::TestFailed { why },
        Err(Fault::Error(why)) => Outcome::Error { why },
        Ok(()) => differ(&before, &after).map_or(Outcome::Unchanged, |changes| Outcome::Changed { changes }),
    };
    let becomes = if matches!(outcome, Outcome::Changed { .. }) { after } else { before };
    if let Value::Object(becomes) = becomes {
        // What was taken and is not put back has been removed.
        fields.retain(|name, value| !value.is_null() || becomes.contains_key(name) || !patches.touch(name));
        fields.extend(becomes);
    }
    outcome
}

/// Patches an object that is still as it was `before`.
fn patch_with(patches: &Patches, before: &Value, object: &mut Value) -> Result<(), Fault> {
    match patches {
        Patches::Json(operations) => operations.iter().try_for_each(|operation| patch::apply(object, operation))?,
        Patches::Merge(patches) => patches.iter().for_each(|merged| patch::merge(object, merged)),
    }
    value::new_as_go_writes(object, Some(before));
    Ok(())
}

/// What a patch must have left as it was.
fn kept(before: &Value, after: &Value) -> Result<(), Fault> {
    // Most rules touch neither.
    if ["apiVersion", "kind", "metadata", "status"].iter().all(|field| before.get(field) == after.get(field)) {
        return Ok(());
    }
    let changed = |path: &&&str| before.pointer(path) != after.pointer(path);
    match STRIPPED.iter().chain(&IDENTITY).find(changed) {
        Some(path) => Err(Fault::Error(format!("it would change {path}: {}", why_kept(path)))),
        None => Ok(()),
    }
}

/// Why a rule may not touch the protected `path`.
fn why_kept(path: &str) -> &'static str {
    if path == "/status" {
        "a status is kept as the snapshot has it; Velero restores none, and the object's controller writes it anew from what the rule changes in spec"
    } else if IDENTITY.contains(&path) {
        "an object is patched in its place, where others know it by this"
    } else {
        "Velero takes this away before it applies rules, and here it is kept as the snapshot has it"
    }
}

/// What the outside of metadata and status says: when it changes, so does the generation.
#[must_use]
pub fn raises_generation(before: &Value, after: &Value) -> bool {
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else { return before != after };
    let counts = |name: &&String| *name != "metadata" && *name != "status";
    before.keys().filter(counts).any(|name| before.get(name) != after.get(name))
        || after.keys().filter(counts).any(|name| !before.contains_key(name))
}

/// True when one of the changes is outside metadata and status.
#[must_use]
pub fn raise_generation_by(changes: &[Difference]) -> bool {
    let inside = |path: &str, field: &str| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    changes.iter().any(|change| !inside(&change.path, "/metadata") && !inside(&change.path, "/status"))
}

#[cfg(test)]
mod tests;

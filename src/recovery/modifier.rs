//! The rules of a resource modifier, run over the snapshot of the backup that is restored: what they would change is known before anything is
//! touched, and is what is put into etcd later.
//!
//! Nothing is kept of a snapshot but what the rules are about: a snapshot can hold more objects than memory does.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::archive::Archive;
use crate::backup::{Backup, ETCD, STATIC_PODS};
use crate::error::{AndNext, FailureKind, by_hand, damaged, kind, unsupported};
use crate::etcd;
use crate::kube::update_ahead;
use crate::modifiers::{Applied, Form, Key, Outcome, Rules, Target, raises_generation};
use crate::node::profile::Profile;
use crate::node::static_pod::{Manifest, etcd_prefix};
use crate::report::Progress;

/// How many objects a refusal names.
const NAMED: usize = 5;
/// How many objects of a rule a report holds: a rule can be about all of the many thousands of a cluster.
const SHOWN: usize = 100;

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
    /// The first [`SHOWN`] of them in the order of their names.
    pub shown: Vec<ObjectReport>,
}

impl RuleReport {
    fn new(place: usize, group_resource: &str) -> Self {
        Self { rule: place + 1, group_resource: group_resource.to_owned(), objects: 0, changed: 0, shown: Vec::new() }
    }

    fn add(&mut self, object: ObjectReport) {
        self.objects += 1;
        self.changed += usize::from(matches!(object.outcome, Outcome::Changed { .. }));
        self.shown.push(object);
        if self.shown.len() > 2 * SHOWN {
            self.order();
        }
    }

    fn order(&mut self) {
        self.shown.sort_by(|one, other| one.target.cmp(&other.target));
        self.shown.truncate(SHOWN);
    }
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

/// An object that rules are about.
pub(super) struct Object<'a> {
    /// Its key in etcd.
    pub key: &'a [u8],
    /// Which it is.
    pub target: Target,
    /// Its value in the snapshot.
    pub value: &'a [u8],
    /// What the rules do to it, and the object that they make of it.
    pub applied: Applied,
    /// They make another of it.
    pub changed: bool,
    /// Its generation then, when that is raised.
    pub generation: Option<i64>,
}

impl Object<'_> {
    /// The value that it gets.
    pub(super) fn wanted(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self.applied.object).context("writing a patched object")?;
        // As the API server's encoder ends it.
        if self.value.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        Ok(bytes)
    }
}

/// Reads rules, as they stand in the journal or in a file.
pub(super) fn rules(text: &str) -> Result<Rules> {
    Rules::parse(text).context("reading the resource modifier's rules")
}

/// Calls `each` with every object of the backup that a rule is about.
///
/// # Errors
/// [`FailureKind::Unsupported`] for an object that a rule may be about and that is not JSON in etcd,
/// [`FailureKind::Damaged`] for one that is no object; those of reading the backup, and of `each`.
pub(super) fn run(backup: &Backup, rules: &Rules, progress: &Progress, each: &mut dyn FnMut(Object<'_>) -> Result<()>) -> Result<()> {
    let prefix = prefix(backup)?;
    let mut kinds: HashMap<String, bool> = HashMap::new();
    let mut wanted = |key: &[u8]| {
        Key::parse(&prefix, key).is_some_and(|key| {
            let known = kinds.get(key.kind()).copied();
            known.unwrap_or_else(|| *kinds.entry(key.kind().to_owned()).or_insert_with(|| key.may_be_meant(rules)))
        })
    };
    let mut look = |key: &[u8], value: &[u8]| match object(&prefix, key, value, rules)? {
        Some(object) => each(object),
        None => Ok(()),
    };
    let file = backup.file(ETCD);
    let task = progress.task("running the rules on the backup's etcd snapshot", file.metadata().ok().map(|meta| meta.len()));
    etcd::live(&file, &mut wanted, &mut look, &|bytes| task.add(bytes))
        .with_context(|| format!("running the rules on backup {}", backup.id))
}

/// The rule that takes away what a cluster is asked to go to.
pub const DROP_DESIRED_UPDATE: &str = "version: v1
resourceModifierRules:
- conditions:
    groupResource: clusterversions.config.openshift.io
    resourceNameRegex: ^version$
  patches:
  - operation: remove
    path: /spec/desiredUpdate
";

/// What to know of the upgrade that the restored cluster would begin again: whoever set `spec.desiredUpdate` may have done so before the backup was
/// taken. Of a snapshot that does not tell, that.
pub(super) fn upgrade_ahead(backup: &Backup, rules: Option<&str>, progress: &Progress) -> Result<Option<String>> {
    let rules = rules.map(self::rules).transpose()?;
    let key = format!("{}/{CLUSTER_VERSION}", prefix(backup)?);
    let mut ahead = None;
    let mut look = |key: &[u8], value: &[u8]| {
        let (Ok(object), target) = (serde_json::from_slice::<Value>(value), cluster_version()) else {
            bail!("{} is {} in etcd", String::from_utf8_lossy(key), Form::of(value).words());
        };
        let patched = rules.as_ref().map_or_else(|| object.clone(), |rules| rules.apply(&target, &object).object);
        ahead = update_ahead(&patched);
        Ok(())
    };
    let file = backup.file(ETCD);
    let task = progress.task("looking for an upgrade that is asked for", file.metadata().ok().map(|meta| meta.len()));
    let looked = etcd::live(&file, &mut |found| found == key.as_bytes(), &mut look, &|bytes| task.add(bytes));
    match looked {
        Err(error) if kind(&error) == FailureKind::Interrupted => Err(error),
        Err(error) => Ok(Some(format!("whether the backup's cluster is asked to go to another release cannot be told: {error:#}"))),
        Ok(()) => Ok(ahead.map(|release| {
            format!(
                "the backup's cluster is asked to go to {release} (spec.desiredUpdate of the ClusterVersion), and will begin to as soon as it is up: \
                 --drop-desired-update takes that away before it can (a policy of a hub may set it again: remove that first)"
            )
        })),
    }
}

/// Where the `ClusterVersion` is, below the prefix.
pub(super) const CLUSTER_VERSION: &str = "config.openshift.io/clusterversions/version";

fn cluster_version() -> Target {
    Target { resource: "clusterversions.config.openshift.io".to_owned(), namespace: None, name: "version".to_owned() }
}

/// The object of a key, when a rule is about it.
fn object<'a>(prefix: &str, key: &'a [u8], value: &'a [u8], rules: &Rules) -> Result<Option<Object<'a>>> {
    let Some(read) = Key::parse(prefix, key) else { return Ok(None) };
    let form = Form::of(value);
    let target = match read.target() {
        Some(target) if form == Form::Json => target,
        // A built-in kind, or nothing that is read here.
        _ => return read.meant_unread(rules, value).map_or(Ok(None), |(rule, target)| Err(not_read(rule, rules, &target, form))),
    };
    // Most objects of a kind are ruled out by their name already.
    if rules.about_unread(&target).is_none() {
        return Ok(None);
    }
    let original: Value = serde_json::from_slice(value).map_err(|error| damaged(format!("{target} is no JSON in etcd: {error}")))?;
    let says = |path: &str| original.pointer(path).and_then(Value::as_str);
    if says("/metadata/name") != Some(&target.name) || says("/metadata/namespace") != target.namespace.as_deref() {
        return Err(damaged(format!("{target} has another name in etcd than its key")));
    }
    let mut applied = rules.apply(&target, &original);
    if applied.outcomes.is_empty() {
        return Ok(None);
    }
    let is_change = |(_, outcome): &(usize, Outcome)| matches!(outcome, Outcome::Changed { .. });
    // A rule may take back what another has changed.
    let changed = applied.outcomes.iter().any(is_change) && applied.object != original;
    let raises = changed && raises_generation(&original, &applied.object);
    let generation = if raises { raise_generation(&mut applied.object) } else { None };
    Ok(Some(Object { key, target, value, applied, changed, generation }))
}

/// Raises an object's generation, as the API server would: whoever compares it with the status's `observedGeneration` must not take the old status for one
/// of the new object.
fn raise_generation(object: &mut Value) -> Option<i64> {
    let Some(Value::Number(number)) = object.pointer_mut("/metadata/generation") else { return None };
    let raised = number.as_i64()?.checked_add(1)?;
    *number = raised.into();
    Some(raised)
}

fn not_read(rule: usize, rules: &Rules, target: &Target, form: Form) -> anyhow::Error {
    let (rule, group_resource) = (rule + 1, rules.group_resource(rule));
    unsupported(format!(
        "rule {rule} ({group_resource}) is, or may be, about {target}, which is {} in etcd: only objects that are JSON there, as custom resources are, \
         can be patched before the API server runs",
        form.words()
    ))
    .and_next(by_hand(format!("name the custom resources in groupResource of rule {rule}, and patch {target} with kubectl after the recovery")))
}

/// Where the API server of the backup keeps its objects.
pub(super) fn prefix(backup: &Backup) -> Result<String> {
    let profile: &Profile = backup.manifest.profile.profile();
    let path = profile.manifest(profile.api_server());
    let in_archive =
        path.strip_prefix(profile.kubernetes).map_err(|_| anyhow!("{} is not below {}", path.display(), profile.kubernetes))?;
    let archive = Archive::open(&backup.file(STATIC_PODS)).with_context(|| format!("opening {STATIC_PODS} of backup {}", backup.id))?;
    let text = archive.read_file(in_archive)?.with_context(|| format!("backup {} has no {}", backup.id, path.display()))?;
    let manifest = Manifest::parse(&String::from_utf8_lossy(&text))
        .map_err(|why| damaged(format!("{} of backup {} is no manifest of a pod: {why:#}", path.display(), backup.id)))?;
    etcd_prefix(profile, &manifest)
}

/// What the rules would do, when all of them can be carried out.
///
/// # Errors
/// [`FailureKind::Damaged`] when a rule is about no object, cannot be applied to one, or has a test that does not hold;
/// as [`run`].
pub(super) fn report(backup: &Backup, text: &str, progress: &Progress) -> Result<ModifierReport> {
    let rules = rules(text)?;
    let mut reports: Vec<RuleReport> = (0..rules.len()).map(|place| RuleReport::new(place, rules.group_resource(place))).collect();
    let mut failures: Vec<Failures> = (0..rules.len()).map(|_| Failures::default()).collect();
    run(backup, &rules, progress, &mut |object| {
        let api_version = object.applied.object.pointer("/apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        let generation = object.generation;
        for (place, outcome) in object.applied.outcomes {
            failures[place].look(&object.target, &outcome);
            reports[place].add(ObjectReport { target: object.target.clone(), api_version: api_version.clone(), generation, outcome });
        }
        Ok(())
    })?;
    reports.iter_mut().for_each(RuleReport::order);
    match refused(&reports, &failures) {
        Some(why) => {
            Err(damaged(format!("the resource modifier cannot be applied to backup {}, so nothing was changed: {why}", backup.id))
                .and_next(by_hand("mend the file; `--dry-run` shows what it would do")))
        }
        None => Ok(ModifierReport { rules: reports }),
    }
}

/// The objects on which a rule fails.
#[derive(Default)]
struct Failures {
    named: Vec<String>,
    more: usize,
}

impl Failures {
    fn look(&mut self, target: &Target, outcome: &Outcome) {
        let why = match outcome {
            Outcome::Error { why } => format!("{target}: {why}"),
            Outcome::TestFailed { why } => {
                format!(
                    "{target}: {why} (Velero would leave the object as it is; `matches` in the conditions chooses objects by their values)"
                )
            }
            Outcome::Changed { .. } | Outcome::Unchanged => return,
        };
        if self.named.len() < NAMED {
            self.named.push(why);
        } else {
            self.more += 1;
        }
    }
}

/// Why the rules cannot be carried out.
fn refused(reports: &[RuleReport], failures: &[Failures]) -> Option<String> {
    let mut all = Vec::new();
    for (report, Failures { named, more }) in reports.iter().zip(failures) {
        let rule = format!("rule {} ({})", report.rule, report.group_resource);
        if report.objects == 0 {
            all.push(format!("{rule} is about no object of the backup"));
        }
        if !named.is_empty() {
            let more = if *more > 0 { format!(", and on {more} more") } else { String::new() };
            all.push(format!("{rule} fails on {}{more}", named.join("; ")));
        }
    }
    (!all.is_empty()).then(|| all.join(". "))
}

/// The SHA-256 of a value, hex.
pub(super) fn digest(value: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(value))
}

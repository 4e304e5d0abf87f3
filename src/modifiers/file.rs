//! The rules file: YAML or JSON, version v1, read strictly. Keys are taken in any case and scalars as texts, as Velero's decoder does
//! (`sigs.k8s.io/yaml` into Go's structs); what it finds out only when a rule meets an object is found out here.

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};

use super::conditions::{self, Conditions, Requirement};
use super::glob::Glob;
use super::part::Wanted;
use super::patch::{Operation, Pointer};
use super::{IDENTITY, STRIPPED, value, why_kept};
use crate::error::{AndNext, by_hand, damaged, is_measured, unsupported};

/// The rules of one file, in order.
#[derive(Debug, Clone)]
pub struct Rules {
    pub(super) rules: Vec<Rule>,
    /// What of an object their patches look at.
    pub(super) wanted: Wanted,
}

/// One rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) conditions: Conditions,
    pub(super) patches: Patches,
}

/// What a rule does. All of it, or nothing.
#[derive(Debug, Clone)]
pub(super) enum Patches {
    Json(Vec<Operation>),
    Merge(Vec<Value>),
}

impl Patches {
    /// True when they look at, or change, the field of this name of the object itself, or what is in it.
    pub(super) fn touch(&self, field: &str) -> bool {
        match self {
            Self::Json(operations) => operations.iter().any(|operation| operation.touches(field)),
            Self::Merge(patches) => patches.iter().any(|patch| patch.get(field).is_some()),
        }
    }
}

impl Rules {
    /// Reads a rules file.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not one, or a rule of it could not be applied to any object;
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for strategic patches.
    pub fn parse(text: &str) -> Result<Self> {
        let document = first_document(text).map_err(|error| damaged(format!("it is not YAML: {error:#}")))?;
        // A failure says what kind it is; anything else is a mistake in the file.
        Self::read(document).map_err(|error| if is_measured(&error) { error } else { damaged(format!("{error:#}")) })
    }

    fn read(document: Value) -> Result<Self> {
        let mut file = Fields::of(document, &["version", "resourceModifierRules"])?;
        let version = file.text("version")?;
        if !version.eq_ignore_ascii_case("v1") {
            bail!("its version is `{version}`, and v1 is the only one");
        }
        let rules = file.list("resourceModifierRules")?;
        if rules.is_empty() {
            bail!("it has no resourceModifierRules");
        }
        let rules = rules.into_iter().enumerate().map(|(at, rule)| Rule::read(rule).with_context(|| format!("rule {}", at + 1)));
        let rules = rules.collect::<Result<Vec<Rule>>>()?;
        let wanted = Wanted::of(rules.iter().map(|rule| &rule.patches));
        Ok(Self { rules, wanted })
    }
}

impl Rule {
    fn read(rule: Value) -> Result<Self> {
        let mut rule = Fields::of(rule, &["conditions", "patches", "mergePatches", "strategicPatches"])?;
        let conditions = read_conditions(rule.value("conditions")).context("conditions")?;
        let (patches, merge, strategic) = (rule.list("patches")?, rule.list("mergePatches")?, rule.list("strategicPatches")?);
        let patches = match (patches.is_empty(), merge.is_empty(), strategic.is_empty()) {
            (false, true, true) => Patches::Json(each("patches", patches, operation)?),
            (true, false, true) => Patches::Merge(each("mergePatches", merge, merge_patch)?),
            (true, true, false) => {
                return Err(unsupported(
                    "strategicPatches are only for built-in kinds, whose lists they merge by keys that this agent does not know",
                )
                .and_next(by_hand("write them as mergePatches, in which a list takes the place of the old one")));
            }
            (true, true, true) => bail!("it has no patches"),
            _ => bail!("it has more than one of patches, mergePatches and strategicPatches"),
        };
        Ok(Self { conditions, patches })
    }
}

fn each<T>(what: &str, items: Vec<Value>, read: impl Fn(Value) -> Result<T>) -> Result<Vec<T>> {
    items.into_iter().enumerate().map(|(at, item)| read(item).with_context(|| format!("{what}[{at}]"))).collect()
}

fn read_conditions(value: Value) -> Result<Conditions> {
    let mut fields = Fields::of(value, &["groupResource", "namespaces", "resourceNameRegex", "labelSelector", "matches"])?;
    let group_resource = fields.text("groupResource")?;
    if group_resource.is_empty() {
        bail!("groupResource is empty");
    }
    let glob = |text: &str| Glob::parse(text).with_context(|| format!("`{text}`"));
    let namespaces = fields.texts("namespaces")?.iter().map(|text| glob(text)).collect::<Result<_>>().context("namespaces")?;
    Ok(Conditions {
        group_resource: glob(&group_resource).context("groupResource")?,
        namespaces,
        name: conditions::name(&fields.text("resourceNameRegex")?).context("resourceNameRegex")?,
        labels: selector(fields.value("labelSelector")).context("labelSelector")?,
        matches: each("matches", fields.list("matches")?, condition)?,
    })
}

fn condition(value: Value) -> Result<(Pointer, Value)> {
    let mut fields = Fields::of(value, &["path", "value"])?;
    Ok((seen(pointer(&fields.text("path")?)?)?, value::parse(&fields.text("value")?)?))
}

fn selector(value: Value) -> Result<Vec<Requirement>> {
    let mut fields = Fields::of(value, &["matchLabels", "matchExpressions"])?;
    let labels = match fields.value("matchLabels") {
        Value::Null => Map::new(),
        Value::Object(labels) => labels,
        _ => bail!("matchLabels is not a map"),
    };
    let equal = |(key, value): (String, Value)| Requirement::of(key, "In", vec![text_of(&value)?]);
    let mut all: Vec<Requirement> = labels.into_iter().map(equal).collect::<Result<_>>().context("matchLabels")?;
    all.extend(each("matchExpressions", fields.list("matchExpressions")?, |value| {
        let mut fields = Fields::of(value, &["key", "operator", "values"])?;
        Requirement::of(fields.text("key")?, &fields.text("operator")?, fields.texts("values")?)
    })?);
    Ok(all)
}

fn operation(value: Value) -> Result<Operation> {
    let mut fields = Fields::of(value, &["operation", "path", "from", "value"])?;
    let (operation, path, from, text) = (fields.text("operation")?, fields.text("path")?, fields.text("from")?, fields.text("value")?);
    let path = pointer(&path).context("path")?;
    let with_value = || value::parse(&text).context("value");
    let from = || -> Result<Pointer> {
        if from.is_empty() {
            bail!("{operation} without `from` takes the whole object, and with it what Velero takes away before it applies rules");
        }
        seen(pointer(&from)?).context("from")
    };
    match operation.as_str() {
        "add" => Ok(Operation::Add(changed(path)?, with_value()?)),
        "remove" => Ok(Operation::Remove(changed(path)?)),
        "replace" => Ok(Operation::Replace(changed(path)?, with_value()?)),
        "move" => Ok(Operation::Move { from: changed(from()?)?, path: changed(path)? }),
        "copy" => Ok(Operation::Copy { from: from()?, path: changed(path)? }),
        "test" => Ok(Operation::Test(seen(path)?, with_value()?)),
        other if ["add", "remove", "replace", "move", "copy", "test"].contains(&other.to_ascii_lowercase().as_str()) => {
            bail!("the operation `{other}` is written in lower case")
        }
        other => bail!("`{other}` is none of the operations add, remove, replace, move, copy and test"),
    }
}

fn pointer(text: &str) -> Result<Pointer> {
    if text.is_empty() {
        bail!("the path is empty");
    }
    Pointer::parse(text).with_context(|| format!("the path `{text}` does not begin with `/`"))
}

/// A path that a rule changes.
fn changed(path: Pointer) -> Result<Pointer> {
    refuse(&path, STRIPPED.iter().chain(&IDENTITY))?;
    Ok(path)
}

/// A path that a rule looks at.
fn seen(path: Pointer) -> Result<Pointer> {
    refuse(&path, STRIPPED.iter())?;
    Ok(path)
}

fn refuse<'a>(path: &Pointer, mut kept: impl Iterator<Item = &'a &'static str>) -> Result<()> {
    match kept.find(|kept| Pointer::parse(kept).is_some_and(|kept| path.touches(&kept))) {
        Some(kept) if path.to_string() == **kept || path.to_string().starts_with(&format!("{kept}/")) => {
            bail!("no rule may touch {path}: {}", why_kept(kept))
        }
        Some(kept) => bail!("no rule may touch the whole of {path}, which {kept} is in: {}", why_kept(kept)),
        None => Ok(()),
    }
}

fn merge_patch(value: Value) -> Result<Value> {
    let mut fields = Fields::of(value, &["patchData"])?;
    let patch = first_document(&fields.text("patchData")?).context("patchData is not YAML")?;
    if !patch.is_object() {
        bail!("patchData is not a map");
    }
    let within = |path: &&&str| patch.pointer(path).is_some();
    // What says which object it is can be there, as long as it says the same.
    match STRIPPED.iter().find(within) {
        Some(kept) => bail!("no rule may touch {kept}: {}", why_kept(kept)),
        None => Ok(patch),
    }
}

/// The first document of a text, as YAML 1.1 has it (Go's yaml.v2: `yes` is a truth value, `010` is 8); a key that is there twice is an error. Null
/// when there is none.
pub(super) fn first_document(text: &str) -> Result<Value> {
    Ok(documents(text).next().transpose()?.unwrap_or(Value::Null))
}

/// Every document of a text, as [`first_document`].
pub(super) fn documents(text: &str) -> impl Iterator<Item = Result<Value>> + '_ {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let all: Vec<Result<Value>> =
        serde_saphyr::read_with_options(&mut bytes, options).map(|document| document.map_err(|error| anyhow!("{error}"))).collect();
    all.into_iter()
}

/// The fields of a map, whose keys are taken in any case.
pub(super) struct Fields {
    found: Vec<(&'static str, Value)>,
}

impl Fields {
    /// The fields of `value`, which is a map with no others than the `known` ones; null has none.
    pub(super) fn of(value: Value, known: &[&'static str]) -> Result<Self> {
        let map = match value {
            Value::Null => Map::new(),
            Value::Object(map) => map,
            other => bail!("a map with {} is expected, and there is {}", known.join(", "), kind_of(&other)),
        };
        let mut found: Vec<(&'static str, Value)> = Vec::new();
        for (key, value) in map {
            let name = known.iter().copied().find(|name| name.eq_ignore_ascii_case(&key));
            let name = name.with_context(|| format!("the field `{key}` is unknown (there are {})", known.join(", ")))?;
            if found.iter().any(|(other, _)| *other == name) {
                bail!("the field `{name}` is there twice");
            }
            found.push((name, value));
        }
        Ok(Self { found })
    }

    /// Takes a field; null when it is not there.
    pub(super) fn value(&mut self, name: &'static str) -> Value {
        let found = self.found.iter_mut().find(|(found, _)| *found == name);
        found.map_or(Value::Null, |(_, value)| value.take())
    }

    /// Takes a text; empty when it is not there. Numbers and truth values are texts too.
    pub(super) fn text(&mut self, name: &'static str) -> Result<String> {
        text_of(&self.value(name)).with_context(|| name.to_owned())
    }

    /// Takes a list; empty when it is not there.
    pub(super) fn list(&mut self, name: &'static str) -> Result<Vec<Value>> {
        match self.value(name) {
            Value::Null => Ok(Vec::new()),
            Value::Array(items) => Ok(items),
            other => bail!("{name} is no list, but {}", kind_of(&other)),
        }
    }

    /// Takes a list of texts; empty when it is not there.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>> {
        self.list(name)?.iter().map(text_of).collect::<Result<_>>().with_context(|| name.to_owned())
    }
}

/// A scalar as a text.
fn text_of(value: &Value) -> Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) => {
            // 1e3 is 1000 to the decoder too.
            let mut number = Value::Number(number.clone());
            value::as_go_writes(&mut number);
            Ok(number.to_string())
        }
        Value::String(text) => Ok(text.clone()),
        other => bail!("a text is expected, and there is {}", kind_of(other)),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn refused(rest: &str) -> anyhow::Error {
        Rules::parse(&format!("version: v1\nresourceModifierRules:\n- conditions:\n    groupResource: a.b.c\n{rest}")).unwrap_err()
    }

    #[test]
    fn what_a_rule_may_not_touch_is_said_with_the_reason() {
        for (path, says) in [
            ("/status", "a status is kept"),
            ("/status/release", "a status is kept"),
            ("/metadata", "the whole of /metadata"),
            ("/metadata/ownerReferences/0", "Velero takes this away"),
            ("/metadata/uid", "Velero takes this away"),
            ("/metadata/name", "patched in its place"),
            ("/kind", "patched in its place"),
        ] {
            let error = refused(&format!("  patches:\n  - {{operation: replace, path: {path}, value: x}}\n"));
            let text = format!("{error:#}");
            assert!(exit_code(&error) == 65 && text.contains(says) && text.starts_with("rule 1: patches[0]: "), "{text}");
        }
        for rest in [
            "    matches:\n    - {path: /status/x, value: y}\n  patches:\n  - {operation: remove, path: /spec}\n",
            "  patches:\n  - {operation: test, path: /metadata/uid, value: y}\n",
            "  patches:\n  - {operation: copy, path: /spec/x, from: /metadata}\n",
            "  patches:\n  - {operation: move, path: /spec/x, from: /metadata/name}\n",
            "  mergePatches:\n  - patchData: '{status: {a: b}}'\n",
            "  mergePatches:\n  - patchData: '{metadata: {ownerReferences: []}}'\n",
        ] {
            assert_eq!(exit_code(&refused(rest)), 65, "{rest}");
        }
        // Names can be looked at; annotations, labels and finalizers changed.
        let rules = "version: v1\nresourceModifierRules:\n- conditions:\n    groupResource: a.b.c\n    matches: [{path: /metadata/name, value: x}]\n  \
                     patches:\n  - {operation: add, path: /metadata/finalizers, value: '[]'}\n  - {operation: copy, from: /metadata/name, path: /spec/x}\n";
        assert_eq!(Rules::parse(rules).unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_rules_file_is_refused_with_its_place() {
        for (rest, says) in [
            ("  patches:\n  - {operation: replace, path: /spec/x, vaule: x}\n", "the field `vaule` is unknown"),
            ("  patches:\n  - {operation: replace, path: /spec/x, value: x, VALUE: y}\n", "`value` is there twice"),
            ("  patches:\n  - {operation: replace, path: /spec/x, value: {a: 1}}\n", "a text is expected, and there is a map"),
            ("  patches: {}\n", "patches is no list, but a map"),
            ("  patches: [x]\n", "a map with operation, path, from, value is expected"),
            ("  patches:\n  - {operation: remove, path: /spec/x}\n  mergePatches:\n  - patchData: 'a: 1'\n", "more than one of"),
            ("    labelSelector: {matchExpressions: [{key: a, operator: In}]}\n  patches: []\n", "In of the label `a` needs values"),
        ] {
            let error = refused(rest);
            assert!(exit_code(&error) == 65 && format!("{error:#}").contains(says), "{error:#}");
        }
        let strategic = refused("  strategicPatches:\n  - patchData: 'a: 1'\n");
        assert!(exit_code(&strategic) == 64 && format!("{strategic:#}").contains("mergePatches"), "{strategic:#}");
    }

    #[test]
    fn scalars_are_texts_as_go_writes_them() {
        for (yaml, text) in
            [("5", "5"), ("0.20", "0.2"), ("1e3", "1000"), ("true", "true"), ("yes", "true"), ("~", ""), ("010", "8"), ("'010'", "010")]
        {
            let mut fields = Fields::of(first_document(&format!("Value: {yaml}")).unwrap(), &["value"]).unwrap();
            assert_eq!(fields.text("value").unwrap(), text, "{yaml}");
        }
    }
}

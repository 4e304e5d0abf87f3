//! The files in which rules come: by themselves, in a `ConfigMap`, or in one beside the Restore that names it, as k0rdent's guide has them.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::Rules;
use super::file::{Fields, documents, first_document};
use crate::error::{AndNext, damaged, is_measured, run, unsupported};

/// A Restore, with the rules of its `ConfigMap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreFile {
    /// The backup that it restores, by its name.
    pub backup: String,
    /// The text of its rules, when it names some.
    pub rules: Option<String>,
}

/// The text of the rules in a file: raw, or in a `ConfigMap`. They are read, so that a mistake is told now.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is neither, and as [`Rules::parse`].
pub fn rules_file(text: &str) -> Result<String> {
    let first = first_document(text).map_err(|error| damaged(format!("it is not YAML: {error:#}")))?;
    if !is_object(&first) {
        return Rules::parse(text).map(|_| text.to_owned());
    }
    as_mistakes(|| {
        let (maps, restores) = objects(text)?;
        if !restores.is_empty() {
            return Err(damaged("it holds a Restore").and_next(run("recovery recover -f FILE", "takes such a file")));
        }
        match <[ConfigMap; 1]>::try_from(maps) {
            Ok([map]) => map.rules(),
            Err(maps) => bail!("it holds {} ConfigMaps, and there must be one", maps.len()),
        }
    })
}

/// A Restore and its `ConfigMap`, in one file.
///
/// # Errors
/// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is none, and as [`Rules::parse`];
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it asks for less than all of the backup.
pub fn restore_file(text: &str) -> Result<RestoreFile> {
    let first = first_document(text).map_err(|error| damaged(format!("it is not YAML: {error:#}")))?;
    if !is_object(&first) {
        let error = damaged("it holds no Restore of velero.io/v1");
        return Err(error.and_next(run("recovery recover --backup NAME --resource-modifier FILE", "takes rules by themselves")));
    }
    as_mistakes(|| {
        let (mut maps, restores) = objects(text)?;
        let Ok([restore]) = <[Restore; 1]>::try_from(restores) else {
            let error = damaged("it must hold one Restore of velero.io/v1");
            return Err(error.and_next(run("recovery recover --backup NAME --resource-modifier FILE", "takes a ConfigMap by itself")));
        };
        let Some(name) = restore.modifier else {
            if maps.is_empty() {
                return Ok(RestoreFile { backup: restore.backup, rules: None });
            }
            bail!("the Restore names no resourceModifier, and the file holds a ConfigMap: nothing would be patched");
        };
        let (Some(map), true) = (maps.pop(), maps.is_empty()) else {
            bail!("it must hold one ConfigMap, `{name}`, which the Restore names");
        };
        if map.name != name {
            bail!("the Restore names the ConfigMap `{name}`, and the file holds `{}`", map.name);
        }
        if map.namespace != restore.namespace {
            let shown = |namespace: &Option<String>| namespace.as_deref().map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
            bail!(
                "the ConfigMap must be in the Restore's namespace: that is {}, and the ConfigMap's is {}",
                shown(&restore.namespace),
                shown(&map.namespace)
            );
        }
        Ok(RestoreFile { backup: restore.backup, rules: Some(map.rules()?) })
    })
}

/// An error that is none of the kinds that count is a mistake in the file.
fn as_mistakes<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    read().map_err(|error| if is_measured(&error) { error } else { damaged(format!("{error:#}")) })
}

fn is_object(document: &Value) -> bool {
    document.as_object().is_some_and(|fields| fields.keys().any(|key| key.eq_ignore_ascii_case("kind")))
}

struct ConfigMap {
    name: String,
    namespace: Option<String>,
    data: Vec<(String, String)>,
}

struct Restore {
    namespace: Option<String>,
    backup: String,
    modifier: Option<String>,
}

/// The fields of an object's metadata, as a person or the API server writes them; only name and namespace say something here.
const METADATA: [&str; 13] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "finalizers",
    "generateName",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "ownerReferences",
    "managedFields",
    "selfLink",
];

fn objects(text: &str) -> Result<(Vec<ConfigMap>, Vec<Restore>)> {
    let (mut maps, mut restores) = (Vec::new(), Vec::new());
    for (at, document) in documents(text).enumerate() {
        let document = document.with_context(|| format!("document {} is not YAML", at + 1))?;
        let text_at = |path: &str| document.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        match (text_at("/apiVersion").as_str(), text_at("/kind").as_str()) {
            _ if document.is_null() => {}
            ("v1", "ConfigMap") => maps.push(config_map(document).context("ConfigMap")?),
            ("velero.io/v1", "Restore") => restores.push(restore(document).context("Restore")?),
            (version, kind) => {
                bail!("document {} is neither a ConfigMap of v1 nor a Restore of velero.io/v1, but `{kind}` of `{version}`", at + 1)
            }
        }
    }
    Ok((maps, restores))
}

fn metadata(value: Value) -> Result<(String, Option<String>)> {
    let mut fields = Fields::of(value, &METADATA).context("metadata")?;
    let (name, namespace) = (fields.text("name")?, fields.text("namespace")?);
    if name.is_empty() {
        bail!("metadata has no name");
    }
    Ok((name, Some(namespace).filter(|namespace| !namespace.is_empty())))
}

fn config_map(document: Value) -> Result<ConfigMap> {
    let mut fields = Fields::of(document, &["apiVersion", "kind", "metadata", "data", "immutable"])?;
    let (name, namespace) = metadata(fields.value("metadata"))?;
    let data = match fields.value("data") {
        Value::Null => Map::new(),
        Value::Object(data) => data,
        _ => bail!("data is not a map"),
    };
    let text = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        _ => bail!("the value of `{key}` in data is not a text: a rules file stands there after `|`"),
    };
    Ok(ConfigMap { name, namespace, data: data.into_iter().map(text).collect::<Result<_>>()? })
}

impl ConfigMap {
    fn rules(self) -> Result<String> {
        match <[(String, String); 1]>::try_from(self.data) {
            Ok([(key, text)]) => Rules::parse(&text).map(|_| text).with_context(|| format!("`{key}` of the ConfigMap {}", self.name)),
            Err(data) => bail!("the data of the ConfigMap {} has {} keys, and there must be exactly one", self.name, data.len()),
        }
    }
}

/// What a Restore can ask for besides, each with what it would mean here. Where it is empty it asks for nothing.
const NARROWER: [(&str, &str); 17] = [
    ("scheduleName", "the backup is chosen by backupName"),
    ("excludedNamespaces", "etcd comes back as a whole"),
    ("includedResources", "etcd comes back as a whole"),
    ("excludedResources", "etcd comes back as a whole"),
    ("includeClusterResources", "etcd comes back as a whole"),
    ("labelSelector", "etcd comes back as a whole"),
    ("orLabelSelectors", "etcd comes back as a whole"),
    ("namespaceMapping", "objects come back where they were"),
    ("restoreStatus", "every status comes back with its object"),
    ("restorePVs", "volumes are no part of the backup"),
    ("preserveNodePorts", "Services come back as they were"),
    ("hooks", "no hook is run"),
    ("itemOperationTimeout", "there are no operations of plugins"),
    ("resourcePolicy", "etcd comes back as a whole"),
    ("uploaderConfig", "volumes are no part of the backup"),
    ("includedNamespacePatterns", "etcd comes back as a whole"),
    ("volumesOnly", "volumes are no part of the backup"),
];

fn restore(document: Value) -> Result<Restore> {
    let mut fields = Fields::of(document, &["apiVersion", "kind", "metadata", "spec", "status"])?;
    let (_, namespace) = metadata(fields.value("metadata"))?;
    let known: Vec<&'static str> = ["backupName", "existingResourcePolicy", "includedNamespaces", "resourceModifier"]
        .into_iter()
        .chain(NARROWER.iter().map(|(field, _)| *field))
        .collect();
    let mut spec = Fields::of(fields.value("spec"), &known).context("spec")?;
    for (field, why) in NARROWER {
        let value = spec.value(field);
        if !asks_nothing(field, &value) {
            return Err(unsupported(format!("a recovery cannot do spec.{field} of the Restore: {why}; leave it away")));
        }
    }
    let policy = spec.text("existingResourcePolicy")?;
    if policy != "update" {
        return Err(unsupported(format!(
            "spec.existingResourcePolicy of the Restore is `{policy}`, and what a recovery does is `update`: every object becomes as the \
             backup has it"
        )));
    }
    let namespaces = spec.texts("includedNamespaces")?;
    if !namespaces.is_empty() && namespaces != ["*"] {
        return Err(unsupported(format!(
            "spec.includedNamespaces of the Restore is {namespaces:?}, and a recovery brings back every namespace: ['*']"
        )));
    }
    let backup = spec.text("backupName")?;
    if backup.is_empty() {
        bail!("spec.backupName is empty");
    }
    Ok(Restore { namespace, backup, modifier: modifier(spec.value("resourceModifier")).context("spec.resourceModifier")? })
}

fn modifier(value: Value) -> Result<Option<String>> {
    if value.is_null() {
        return Ok(None);
    }
    let mut fields = Fields::of(value, &["apiGroup", "kind", "name"])?;
    let (group, kind, name) = (fields.text("apiGroup")?, fields.text("kind")?, fields.text("name")?);
    // Velero passes over any other kind, and restores without a patch.
    if !kind.eq_ignore_ascii_case("ConfigMap") || !group.is_empty() {
        bail!("its kind is `{kind}`, and it must be ConfigMap");
    }
    if name.is_empty() {
        bail!("it has no name");
    }
    Ok(Some(name))
}

/// True for a field that is as if it were not there.
fn asks_nothing(field: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => match field {
            "includeClusterResources" | "preserveNodePorts" => *value,
            _ => !value,
        },
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty() || field == "includedResources" && items.len() == 1 && items[0] == "*",
        Value::Object(fields) => fields.values().all(|value| asks_nothing("", value)),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    const RULES: &str = "version: v1\nresourceModifierRules:\n- conditions:\n    groupResource: managements.k0rdent.mirantis.com\n  patches:\n  \
                         - operation: replace\n    path: \"/spec/release\"\n    value: \"kcm-0-2-0\"\n";

    fn map(name: &str, data: &str) -> String {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: kcm-system\ndata:\n{data}")
    }

    fn indented(key: &str) -> String {
        let lines: Vec<String> = RULES.lines().map(|line| format!("    {line}\n")).collect();
        format!("  {key}: |\n{}", lines.concat())
    }

    fn guide(spec: &str) -> String {
        let restore = "apiVersion: velero.io/v1\nkind: Restore\nmetadata:\n  name: r\n  namespace: kcm-system\nspec:\n";
        format!("{}---\n{restore}{spec}", map("patch-mgmt-spec-release", &indented("patch-mgmt-spec-release")))
    }

    const SPEC: &str = "  backupName: example-backup-kcm-0-2-0\n  existingResourcePolicy: update\n  includedNamespaces: ['*']\n";
    const MODIFIER: &str = "  resourceModifier:\n    kind: ConfigMap\n    name: patch-mgmt-spec-release\n";

    #[test]
    fn rules_come_raw_or_in_a_config_map_of_one_key() {
        assert_eq!(rules_file(RULES).unwrap(), RULES);
        assert_eq!(rules_file(&map("m", &indented("any"))).unwrap(), RULES);
        for (text, says) in [
            (map("m", &format!("{}{}", indented("a"), indented("b"))), "has 2 keys"),
            (map("m", "  {}\n"), "has 0 keys"),
            (map("m", "  a: 5\n"), "not a text"),
            (map("m", "  a: 'version: v2'\n"), "`a` of the ConfigMap m: its version is `v2`"),
            (map("m", &indented("a")).replace("\ndata:", "\nbinaryData:"), "`binaryData` is unknown"),
            (map("m", &indented("a")).replace("ConfigMap", "Secret"), "`Secret` of `v1`"),
            (guide(&format!("{SPEC}{MODIFIER}")), "recovery recover -f"),
            (format!("{}---\n{}", map("m", &indented("a")), map("n", &indented("a"))), "2 ConfigMaps"),
            ("{".to_owned(), "not YAML"),
            (String::new(), "its version is ``"),
        ] {
            let error = rules_file(&text).unwrap_err();
            assert!(exit_code(&error) == 65 && format!("{error:#}").contains(says), "{says}: {error:#}");
        }
    }

    #[test]
    fn the_guides_file_is_taken_and_anything_narrower_is_refused() {
        let whole = RestoreFile { backup: "example-backup-kcm-0-2-0".to_owned(), rules: Some(RULES.to_owned()) };
        assert_eq!(restore_file(&guide(&format!("{SPEC}{MODIFIER}"))).unwrap(), whole);
        let (first, second) = {
            let text = guide(&format!("{SPEC}{MODIFIER}"));
            let (first, second) = text.split_once("---\n").unwrap();
            (first.to_owned(), second.to_owned())
        };
        assert_eq!(restore_file(&format!("---\n{second}---\n{first}---\n")).unwrap(), whole);
        assert_eq!(restore_file(&second.replace(MODIFIER, "")).unwrap(), RestoreFile { rules: None, ..whole.clone() });
        let empty =
            format!("{SPEC}{MODIFIER}  excludedResources: []\n  includeClusterResources: true\n  hooks: {{}}\n  labelSelector: null\n");
        assert_eq!(restore_file(&guide(&empty)).unwrap(), whole);
        for (spec, code, says) in [
            (SPEC.replace("update", "none"), 64, "existingResourcePolicy"),
            (SPEC.replace("['*']", "[kcm-system]"), 64, "every namespace"),
            (format!("{SPEC}  excludedNamespaces: [x]\n"), 64, "spec.excludedNamespaces"),
            (format!("{SPEC}  includeClusterResources: false\n"), 64, "includeClusterResources"),
            (format!("{SPEC}  labelSelector: {{matchLabels: {{a: b}}}}\n"), 64, "labelSelector"),
            (format!("{SPEC}  namespaceMapping: {{a: b}}\n"), 64, "namespaceMapping"),
            (format!("{SPEC}  backupname: x\n"), 65, "`backupName` is there twice"),
            (format!("{SPEC}  existingPolicy: x\n"), 65, "`existingPolicy` is unknown"),
            (SPEC.replace("example-backup-kcm-0-2-0", "''"), 65, "backupName is empty"),
        ] {
            let error = restore_file(&guide(&format!("{spec}{MODIFIER}"))).unwrap_err();
            assert!(exit_code(&error) == code && format!("{error:#}").contains(says), "{says}: {error:#}");
        }
        for (modifier, says) in [
            (MODIFIER.replace("ConfigMap", "Secret"), "must be ConfigMap"),
            (MODIFIER.replace("patch-mgmt-spec-release", "other"), "names the ConfigMap `other`"),
            (String::new(), "nothing would be patched"),
        ] {
            let error = restore_file(&guide(&format!("{SPEC}{modifier}"))).unwrap_err();
            assert!(exit_code(&error) == 65 && format!("{error:#}").contains(says), "{says}: {error:#}");
        }
        let elsewhere = guide(&format!("{SPEC}{MODIFIER}")).replacen("namespace: kcm-system", "namespace: other", 1);
        assert!(format!("{:#}", restore_file(&elsewhere).unwrap_err()).contains("must be in the Restore's namespace"));
        for text in [RULES.to_owned(), first] {
            assert!(format!("{:#}", restore_file(&text).unwrap_err()).contains("--resource-modifier"), "{text}");
        }
    }
}

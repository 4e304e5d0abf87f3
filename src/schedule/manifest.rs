//! `ManagementBackup`, as k0rdent's guide has it: what `schedule apply` reads.
//!
//! | kcm | versions |
//! |---|---|
//! | 0.1 to 1.0 | `k0rdent.mirantis.com/v1alpha1`; 1.0 has `v1beta1` too |
//! | 1.1 and later | `v1beta1`, with the same fields |

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

use super::change::Change;
use super::store::check_name;
use crate::error::{AndNext, run, unsupported, usage};

const KIND: &str = "ManagementBackup";
const VERSIONS: [&str; 2] = ["k0rdent.mirantis.com/v1alpha1", "k0rdent.mirantis.com/v1beta1"];
/// The names of a storage location that mean this node's own: none, and the one that Velero's is called by default.
const LOCATIONS: [&str; 2] = ["", "default"];
/// The largest file that is read, bytes.
pub const MOST: u64 = 4 << 20;

/// An object. Whatever the API server writes into one is read and means nothing here, as an exported object has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ManagementBackup {
    #[serde(rename = "apiVersion")]
    _version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
    #[serde(rename = "status", default)]
    _status: Value,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(rename = "storageLocation", default)]
    storage_location: Option<String>,
    #[serde(default)]
    schedule: Option<String>,
    #[serde(rename = "performOnManagementUpgrade", default)]
    perform_on_management_upgrade: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(non_snake_case, dead_code, reason = "the names of the API: those that are known, and mean nothing here")]
struct Metadata {
    name: Option<String>,
    #[serde(default)]
    labels: Value,
    #[serde(default)]
    annotations: Value,
    #[serde(default)]
    creationTimestamp: Value,
    #[serde(default)]
    deletionGracePeriodSeconds: Value,
    #[serde(default)]
    deletionTimestamp: Value,
    #[serde(default)]
    finalizers: Value,
    #[serde(default)]
    generateName: Value,
    #[serde(default)]
    generation: Value,
    #[serde(default)]
    managedFields: Value,
    #[serde(default)]
    ownerReferences: Value,
    #[serde(default)]
    resourceVersion: Value,
    #[serde(default)]
    selfLink: Value,
    #[serde(default)]
    uid: Value,
}

/// The schedules that a file of such objects asks for: YAML or JSON, several documents and lists too.
///
/// # Errors
/// [`FailureKind::Usage`](crate::error::FailureKind::Usage) when it is not written as it should be, down to a field that is not known;
/// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) for what is, and is not taken on this node, with the reason.
pub fn read(text: &str) -> Result<Vec<Change>> {
    let mut found = Vec::new();
    for (index, document) in documents(text)?.into_iter().enumerate() {
        objects(document, &mut found).with_context(|| format!("in document {}", index + 1))?;
    }
    if found.is_empty() {
        return Err(usage(format!("there is no {KIND} in it")));
    }
    for (index, one) in found.iter().enumerate() {
        if found[..index].iter().any(|other| other.name == one.name) {
            return Err(usage(format!("there are two with the name {}", one.name)));
        }
    }
    Ok(found)
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let mut bytes = text.as_bytes();
    let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::Error };
    let all: Result<Vec<Value>, _> = serde_saphyr::read_with_options(&mut bytes, options).collect();
    let all = all.map_err(|error| usage(format!("it is not YAML, or says one thing twice: {error}")))?;
    // Nothing between two separators is nothing.
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

fn objects(document: Value, found: &mut Vec<Change>) -> Result<()> {
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let is_list = (kind == "List" && version == "v1") || (kind == format!("{KIND}List") && VERSIONS.contains(&version.as_str()));
    if is_list {
        let items = document.get("items").and_then(Value::as_array).ok_or_else(|| usage(format!("a {kind} without items")))?;
        return items.iter().try_for_each(|item| objects(item.clone(), found));
    }
    if version.is_empty() || kind.is_empty() {
        return Err(usage("it does not say apiVersion and kind: it is no object of Kubernetes"));
    }
    if kind != KIND || !VERSIONS.contains(&version.as_str()) {
        return Err(unsupported(format!("a {kind} of {version} is not taken here: only {KIND} of {} or {}", VERSIONS[0], VERSIONS[1])));
    }
    let read: ManagementBackup =
        serde_json::from_value(document).map_err(|error| usage(format!("a {KIND} that is not as it should be: {error}")))?;
    let name = read.metadata.name.clone().unwrap_or_default();
    found.push(change(read).with_context(|| format!("{KIND} {name}"))?);
    Ok(())
}

fn change(read: ManagementBackup) -> Result<Change> {
    let name = read.metadata.name.unwrap_or_default();
    check_name(&name)?;
    let spec = read.spec.unwrap_or(Spec { storage_location: None, schedule: None, perform_on_management_upgrade: None });
    let location = spec.storage_location.unwrap_or_default();
    if !LOCATIONS.contains(&location.as_str()) {
        return Err(unsupported(format!(
            "its storageLocation is `{location}`, a place outside of this node that the agent does not know: backups are kept in the \
             node's own recovery directory, which is meant by leaving it out"
        )));
    }
    let Some(cron) = spec.schedule.filter(|schedule| !schedule.is_empty()) else {
        return Err(unsupported(
            "it has no schedule: k0rdent would take a single backup of that name at once, and a schedule is what is set here",
        )
        .and_next(run(format!("recovery backup --name {name}"), "takes it")));
    };
    let before_upgrade = Some(spec.perform_on_management_upgrade.unwrap_or(false));
    Ok(Change { cron: Some(cron), before_upgrade, ..Change::of(&name) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{exit_code, next};

    const GUIDE: &str = include_str!("../../tests/fixtures/k0rdent/management-backup.yaml");

    fn refused(text: &str) -> (u8, String) {
        let error = read(text).unwrap_err();
        (exit_code(&error), format!("{error:#}"))
    }

    #[test]
    fn the_guides_file_is_taken_to_the_letter_in_either_version() -> Result<()> {
        for text in [GUIDE.to_owned(), GUIDE.replace("v1alpha1", "v1beta1"), format!("---\n{GUIDE}---\n")] {
            let found = read(&text)?;
            let asked = Change { cron: Some("0 */6 * * *".to_owned()), before_upgrade: Some(true), ..Change::of("example-backup") };
            assert_eq!(found, [asked]);
        }
        Ok(())
    }

    #[test]
    fn an_exported_object_a_list_and_several_documents_are_taken() -> Result<()> {
        let exported = GUIDE.replace(
            "  name: example-backup\n",
            "  name: example-backup\n  annotations: {a: b}\n  labels: {}\n  creationTimestamp: 2026-01-01T00:00:00Z\n  generation: 2\n  resourceVersion: \"7\"\n  \
             uid: 0a1b\n  managedFields: [{manager: kubectl}]\n  finalizers: [x]\n  ownerReferences: []\n",
        ) + "  storageLocation: default\nstatus: {nextAttempt: null, lastBackup: {phase: Completed}}\n";
        let second = GUIDE.replace("example-backup", "second");
        assert_eq!(read(&format!("{exported}---\n{second}"))?.len(), 2);
        let json = |text: &str| documents(text).map(|mut all| all.remove(0));
        let list = |kind: &str, version: &str| -> Result<String> {
            Ok(serde_json::json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "9"}, "items": [json(&exported)?, json(&second)?]}).to_string())
        };
        assert_eq!(read(&list("List", "v1")?)?.len(), 2);
        assert_eq!(read(&list("ManagementBackupList", VERSIONS[1])?)?.len(), 2);
        Ok(())
    }

    #[test]
    fn what_is_not_as_it_should_be_is_refused_with_the_reason() {
        for (from, to, says) in [
            ("schedule:", "shedule:", "`shedule`"),
            ("  performOn", "  paused: true\n  performOn", "`paused`"),
            ("metadata:", "metadata:\n  nmae: x", "`nmae`"),
            ("spec:", "sepc:", "`sepc`"),
            ("true", "maybe", "boolean"),
            ("\"0 */6 * * *\"", "6", "string"),
            ("  name: example-backup", "  name: Example_Backup", "cannot name a schedule"),
            ("  name: example-backup", "  generateName: example-", "cannot name a schedule"),
            ("kind: ManagementBackup\n", "", "no object of Kubernetes"),
            ("metadata:", "kind: ManagementBackup\nmetadata:", "twice"),
            ("spec:", "spec: [", "YAML"),
        ] {
            let (code, said) = refused(&GUIDE.replacen(from, to, 1));
            assert!(code == 2 && said.contains(says), "{from} → {to}: {code} {said}");
        }
        for nothing in ["", "---\n", "# nothing\n", "text", "[]"] {
            assert_eq!(refused(nothing).0, 2, "{nothing:?}");
        }
        let (code, said) = refused(&format!("{GUIDE}---\n{GUIDE}"));
        assert!(code == 2 && said.contains("two with the name"), "{said}");
    }

    #[test]
    fn what_is_sound_and_not_taken_is_not_supported() {
        for (from, to, says) in [
            ("  performOn", "  storageLocation: aws-s3\n  performOn", "outside of this node"),
            ("v1alpha1", "v1", "of k0rdent.mirantis.com/v1"),
            ("kind: ManagementBackup", "kind: Management", "a Management of"),
            ("  schedule: \"0 */6 * * *\"\n", "", "no schedule"),
            ("\"0 */6 * * *\"", "\"\"", "no schedule"),
            ("\"0 */6 * * *\"", "null", "no schedule"),
        ] {
            let (code, said) = refused(&GUIDE.replacen(from, to, 1));
            assert!(code == 64 && said.contains(says), "{from} → {to}: {code} {said}");
        }
        let single = read(&GUIDE.replace("  schedule: \"0 */6 * * *\"\n", "")).unwrap_err();
        assert_eq!(next(&single), Some(&run("recovery backup --name example-backup", "takes it")));
    }
}

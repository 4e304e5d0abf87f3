//! What `kubectl apply` is told of an object that makes no sense: by the rules in the definitions, in a sentence.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::fleet::Hub;

#[test]
fn an_object_that_makes_no_sense_is_refused_with_a_sentence() -> Result<()> {
    let hub = Hub::start()?;
    let apply = |kind: &str, name: &str, spec: &Value| -> Result<String> {
        let object = json!({
            "apiVersion": "hub.recovery/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "recovery-hub"}, "spec": spec,
        });
        let done = hub.cluster.kubectl(&["apply", "-f", "-"], &object.to_string())?;
        Ok(if done.code() == 0 { String::new() } else { done.stderr })
    };
    let long = "n".repeat(61);
    for (kind, name, spec, sentence) in [
        ("ClusterGroupBackup", "x", json!({}), "name clusters in spec.clusters, or choose them"),
        ("ClusterGroupBackup", long.as_str(), json!({"clusters": ["a"]}), "no longer than 60 characters"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "giveUpAfterSeconds": 480}), "must be more than spec.deadlineSeconds"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "maxAge": "1d"}), "hours, minutes and seconds, as 24h"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "nameTemplate": "{date}"}), "{group}, {cluster}, {attempt}"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "nameTemplate": "-{group}"}), "begins with none of"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "nameTemplate": "{group}.partial"}), "which the agent itself uses"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "labels": {"a b": "c"}}), "the keys of spec.labels must be"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "labels": {"a": "-c"}}), "spec.labels.a"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a", "a"]}), "Duplicate value"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["A_b"]}), "spec.clusters[0]"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "maxConcurrency": 0}), "greater than or equal to 1"),
        ("ClusterGroupBackup", "x", json!({"clusters": ["a"], "reach": "ssh"}), "supported values"),
        ("BackupSchedule", "x", json!({"schedule": "0 3 * *", "template": {"clusters": ["a"]}}), "cron expression of five fields"),
        ("BackupSchedule", &long[..46], json!({"schedule": "@daily", "template": {"clusters": ["a"]}}), "no longer than 45 characters"),
        ("BackupSchedule", "x", json!({"schedule": "@daily", "template": {}}), "name clusters in spec.clusters"),
    ] {
        let said = apply(kind, name, &spec)?;
        ensure!(said.contains(sentence), "{kind} {spec}: {said:?}");
    }
    ensure!(apply("ClusterGroupBackup", "x", &json!({"clusters": ["a"], "labels": {"example.com/change": "CHG-1"}}))?.is_empty());
    ensure!(apply("BackupSchedule", "x", &json!({"schedule": "TZ=Europe/Berlin 30 2 * * *", "template": {"clusters": ["a"]}}))?.is_empty());
    // A try is what it is.
    let mut spec = json!({
        "cluster": "a", "group": "x", "attempt": 1, "reach": "Kubeconfig", "image": "i", "deadlineSeconds": 480, "giveUpAfterSeconds": 1200,
        "maxAge": "24h", "backupName": "x", "keep": 3,
    });
    for (field, value, sentence) in [
        // A number that no hub can read would keep each from starting.
        ("attempt", json!(5_000_000_000_u64), "less than or equal to 1000000000"),
        ("cluster", json!("../secrets"), "spec.cluster"),
        ("maxAge", json!("soon"), "hours, minutes and seconds"),
        ("keep", json!(0), "greater than or equal to 1"),
    ] {
        let mut bad = spec.clone();
        bad[field] = value;
        let said = apply("ClusterBackup", "x", &bad)?;
        ensure!(said.contains(sentence), "{field}: {said:?}");
    }
    ensure!(apply("ClusterBackup", "x", &spec)?.is_empty());
    spec["keep"] = 4.into();
    let said = apply("ClusterBackup", "x", &spec)?;
    ensure!(said.contains("does not change: change its group"), "{said}");
    Ok(())
}

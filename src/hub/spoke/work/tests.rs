use super::*;

/// As the hub's API has it, of OCM 1.2: a pod that cannot be put there, after a namespace that is.
fn work(available: &str, applied: &str, observed: i64, values: &Value) -> Work {
    let condition = |name: &str, status: &str, message: &str| json!({"type": name, "status": status, "message": message, "observedGeneration": observed});
    let work = json!({
        "apiVersion": "work.open-cluster-management.io/v1", "kind": "ManifestWork",
        "metadata": {"name": "backup-1", "namespace": "one", "generation": 2},
        "spec": {},
        "status": {"resourceStatus": {"manifests": [
            {
                "resourceMeta": {"ordinal": 0, "group": "", "kind": "Namespace", "resource": "namespaces", "name": NAMESPACE},
                "conditions": [condition("Applied", "True", "Apply manifest complete"), condition("Available", "True", "Resource is available")],
                "statusFeedback": {},
            },
            {
                "resourceMeta": {"ordinal": 1, "kind": "Pod", "resource": "pods", "name": "backup-1", "namespace": NAMESPACE},
                "conditions": [condition("Applied", applied, "not allowed"), condition("Available", available, "no look")],
                "statusFeedback": {"values": values},
            },
        ]}},
    });
    Work::of(&serde_json::from_value(work).unwrap())
}

fn this_try() -> Try {
    let backup = json!({
        "apiVersion": "hub.recovery/v1alpha1", "kind": "ClusterBackup", "metadata": {"name": "group-one-1", "namespace": "fleet", "uid": "1"},
        "spec": {
            "cluster": "one", "group": "group", "attempt": 1, "reach": "ManifestWork", "image": "recovery:1", "deadlineSeconds": 480,
            "giveUpAfterSeconds": 1200, "maxAge": "24h", "backupName": "hub", "keep": 3,
        },
    });
    Try::of(&serde_json::from_value(backup).unwrap()).unwrap()
}

fn of(values: &[(&str, &str)]) -> Job {
    job(&values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

#[test]
fn values_count_while_their_object_is_there() {
    let values = json!([
        {"name": "uid", "fieldValue": {"type": "String", "string": "abc"}},
        {"name": "exitCode", "fieldValue": {"type": "Integer", "integer": 75}},
    ]);
    let there = BTreeMap::from([("uid".to_owned(), "abc".to_owned()), ("exitCode".to_owned(), "75".to_owned())]);
    for (available, applied, observed, expected) in [
        ("True", "True", 2, Found::There(there.clone())),
        // Noted by the agent of a work that has changed meanwhile: the pod is there all the same.
        ("True", "False", 1, Found::There(there)),
        ("False", "True", 2, Found::Missing),
        ("False", "False", 2, Found::NotApplied("not allowed".to_owned())),
        ("False", "False", 1, Found::Missing),
        ("Unknown", "True", 2, Found::Unknown("no look".to_owned())),
    ] {
        assert_eq!(work(available, applied, observed, &values).pod(&this_try()), expected, "{available} {applied} {observed}");
    }
    let nothing = Work::of(&serde_json::from_value(json!({"metadata": {"name": "backup-1"}})).unwrap());
    assert_eq!(nothing.pod(&this_try()), Found::Untold);
    assert!(!nothing.is_applied() && work("True", "True", 2, &values).is_applied() && !work("True", "True", 1, &values).is_applied());
}

#[test]
fn a_pod_ends_and_waits_as_kubelet_has_it() {
    assert_eq!(of(&[("uid", "a"), ("phase", "Running")]).end, JobEnd::Running);
    let failed = |reason: &str, message: &str| JobEnd::Failed { reason: reason.to_owned(), message: message.to_owned() };
    let exited = of(&[("phase", "Failed"), ("endedReason", "Error"), ("exitCode", "75"), ("said", "the disk is full")]);
    assert_eq!((exited.end, exited.said.as_str()), (failed("Error", "its container exited with 75"), "the disk is full"));
    let late =
        of(&[("phase", "Failed"), ("reason", "DeadlineExceeded"), ("message", "too long"), ("endedReason", "Error"), ("exitCode", "137")]);
    assert_eq!(late.end, failed("DeadlineExceeded", "too long"));
    assert_eq!(of(&[("phase", "Failed")]).end, failed("", ""));
    assert_eq!(of(&[("phase", "Succeeded"), ("said", "done")]).end, JobEnd::Complete);
    for (values, waits) in [
        (&[("waitingReason", "ContainerCreating")][..], ""),
        (&[("waitingReason", "ImagePullBackOff"), ("waitingMessage", "back-off")], "ImagePullBackOff: back-off"),
        (&[("scheduled", "False"), ("scheduledReason", "Unschedulable"), ("scheduledMessage", "0/1 nodes")], "Unschedulable: 0/1 nodes"),
        (&[("scheduled", "True"), ("scheduledReason", "")], ""),
    ] {
        assert_eq!(of(values).waits, waits);
    }
}

#[test]
fn what_a_cluster_will_refuse_again_is_told_from_what_it_may_take_later() {
    for (message, again) in [
        ("Failed to apply manifest: Pod \"backup-1\" is invalid: spec.containers[0].image: Required value", true),
        (
            "Failed to apply manifest: pods \"backup-1\" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0",
            true,
        ),
        ("Failed to apply manifest: pods \"backup-1\" is forbidden: violates PodSecurity \"restricted:latest\": privileged", true),
        ("Failed to apply manifest: admission webhook \"policy\" denied the request: no", true),
        ("Failed to apply manifest: pods is forbidden: User \"agent\" cannot create resource \"pods\" in API group \"\"", false),
        (
            "Failed to apply manifest: pods \"backup-1\" is forbidden: unable to create new content in namespace x because it is being terminated",
            false,
        ),
        ("Failed to apply manifest: Post \"https://127.0.0.1:6443/api/v1\": dial tcp 127.0.0.1:6443: connect: connection refused", false),
    ] {
        assert_eq!(matches!(refusal(message.to_owned()), Trouble::Refused(_)), again, "{message}");
    }
}

#[test]
fn the_pod_of_a_try_asks_for_its_backup_under_the_uid_of_the_try() {
    let this = this_try();
    let (pod, job) = (this.pod(), this.job());
    assert_eq!(pod["spec"]["containers"][0]["env"], json!([{"name": "RECOVERY_JOB_UID", "value": "1"}]));
    assert_eq!(pod["spec"]["activeDeadlineSeconds"], job["spec"]["activeDeadlineSeconds"]);
    assert_eq!(pod["spec"]["containers"][0]["args"], job["spec"]["template"]["spec"]["containers"][0]["args"]);
    assert_eq!(pod["metadata"]["annotations"]["hub.recovery/cluster-backup"], "fleet/group-one-1");
    assert_eq!(gate_place(), ("kube-system", "recovery-upgrade-gate"));
    // Every object of the work has its strategy: one without would be made again for ever.
    let (objects, seen) = (spec(&this), seen(&this, "abc"));
    let count = |value: &Value| value.as_array().map(Vec::len);
    assert_eq!(count(&seen["spec"]["manifestConfigs"]), count(&objects["workload"]["manifests"]));
}

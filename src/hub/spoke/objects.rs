//! What is put on a cluster: a namespace of its own (another than the hub has on the hub, which may be a spoke of itself), an account without a right but to be privileged on OpenShift, and the Job. They are those of
//! `packaging/kubernetes` under other names, so that neither gets in the other's way.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::backup::names::label_value;
use crate::hub::api::{ClusterBackup, ClusterBackupSpec};

/// The namespace on the spoke.
pub const NAMESPACE: &str = "recovery-spoke";
/// The account that the Job's pod runs as, its role, and the binding of both.
pub const ACCOUNT: &str = "recovery-backup";
/// The container.
pub const CONTAINER: &str = "recovery";
/// The label of a Job and its pods with the uid of their `ClusterBackup`.
pub const TRY_LABEL: &str = "hub.recovery/try";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// The annotation of the same with where that is on the hub: NAMESPACE/NAME.
pub(super) const BACKUP: &str = "hub.recovery/cluster-backup";
/// The label of the policy of a gate that the hub has installed: for which of its clusters.
pub(super) const INSTALLED: &str = "hub.recovery/installed";
/// What the gate tells people to run on the node.
pub(super) const COMMAND: &str = "/var/recovery/recovery gate --take";
/// How long the agent has to end in order, seconds.
const GRACE: u32 = 60;

/// What the objects of a try are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Try {
    /// The uid of the `ClusterBackup`: whose objects they are.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace on the hub.
    pub namespace: String,
    /// What is asked for.
    pub cluster: String,
    /// The name of the Job.
    pub job: String,
    image: String,
    deadline: u32,
    arguments: Vec<String>,
}

impl Try {
    /// The try that a `ClusterBackup` is; `None` of one that the API server has not taken yet.
    #[must_use]
    pub fn of(backup: &ClusterBackup) -> Option<Self> {
        let meta = &backup.metadata;
        let (uid, name, namespace) = (meta.uid.clone()?, meta.name.clone()?, meta.namespace.clone()?);
        let ClusterBackupSpec { cluster, image, deadline_seconds, backup_name, labels, keep, .. } = backup.spec.clone();
        let mut arguments = vec!["backup".to_owned(), "--name".to_owned(), backup_name, "--keep".to_owned(), keep.to_string()];
        arguments.extend(labels.iter().flat_map(|(key, value)| ["--label".to_owned(), format!("{key}={value}")]));
        // Two groups may have names that are the same up to where they are cut; a uid is one of its own.
        let job = format!("backup-{uid}");
        Some(Self { uid, name, namespace, cluster, job, image, deadline: deadline_seconds, arguments })
    }

    /// What tells this cluster from others, as the value of a label.
    #[must_use]
    pub(super) fn place(&self) -> String {
        label_value(&format!("{}.{}", self.namespace, self.cluster))
    }

    /// The labels by which everything of this try is found.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(TRY_LABEL.to_owned(), self.uid.clone())])
    }

    /// What has to be there before the Job, in order.
    #[must_use]
    pub fn prerequisites(&self) -> [Value; 4] {
        let named =
            |kind: &str, version: &str| json!({"apiVersion": version, "kind": kind, "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}});
        let with = |mut object: Value, fields: Value| {
            if let (Some(object), Value::Object(fields)) = (object.as_object_mut(), fields) {
                object.extend(fields);
            }
            object
        };
        [
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": NAMESPACE,
                    "labels": {
                        "pod-security.kubernetes.io/enforce": "privileged",
                        "pod-security.kubernetes.io/audit": "privileged",
                        "pod-security.kubernetes.io/warn": "privileged",
                        "security.openshift.io/scc.podSecurityLabelSync": "false",
                    },
                    "annotations": {"workload.openshift.io/allowed": "management"},
                },
            }),
            with(named("ServiceAccount", "v1"), json!({"automountServiceAccountToken": false})),
            with(
                named("Role", RBAC),
                json!({"rules": [{
                    "apiGroups": ["security.openshift.io"],
                    "resources": ["securitycontextconstraints"],
                    "resourceNames": ["privileged"],
                    "verbs": ["use"],
                }]}),
            ),
            with(
                named("RoleBinding", RBAC),
                json!({
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
                    "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
                }),
            ),
        ]
    }

    /// The Job's pod without a Job, for a way that finds objects by their names alone. Made once more, under another uid, it still asks for the same backup.
    #[must_use]
    pub fn pod(&self) -> Value {
        let mut pod = self.job();
        let mut template = pod["spec"]["template"].take();
        template["spec"]["activeDeadlineSeconds"] = self.deadline.into();
        template["spec"]["containers"][0]["env"] = json!([{"name": "RECOVERY_JOB_UID", "value": self.uid}]);
        // By this label the node knows the pods of whoever asked.
        template["metadata"]["labels"]["batch.kubernetes.io/controller-uid"] = self.uid.clone().into();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.job,
                "namespace": NAMESPACE,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
            },
            "spec": template["spec"],
        })
    }

    /// The Job.
    #[must_use]
    pub fn job(&self) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": self.job,
                "namespace": NAMESPACE,
                "labels": self.labels(),
                "annotations": {BACKUP: format!("{}/{}", self.namespace, self.name)},
            },
            "spec": {
                // A backup that failed is looked at, not repeated.
                "backoffLimit": 0,
                "activeDeadlineSeconds": self.deadline,
                "template": {
                    "metadata": {
                        "labels": self.labels(),
                        "annotations": {
                            "target.workload.openshift.io/management": "{\"effect\": \"PreferredDuringScheduling\"}",
                            BACKUP: format!("{}/{}", self.namespace, self.name),
                        },
                    },
                    "spec": {
                        "restartPolicy": "Never",
                        "serviceAccountName": ACCOUNT,
                        "automountServiceAccountToken": false,
                        "hostPID": true,
                        "hostNetwork": true,
                        "dnsPolicy": "Default",
                        "terminationGracePeriodSeconds": GRACE,
                        "priorityClassName": "system-node-critical",
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [{
                            "name": CONTAINER,
                            "image": self.image,
                            "imagePullPolicy": "IfNotPresent",
                            "args": self.arguments,
                            "env": [
                                field("RECOVERY_JOB_UID", "metadata.labels['batch.kubernetes.io/controller-uid']"),
                                field("JOB_UID", "metadata.labels['controller-uid']"),
                            ],
                            "securityContext": {"privileged": true, "runAsUser": 0, "readOnlyRootFilesystem": true},
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                        }],
                    },
                },
            },
        })
    }
}

//! The hub's resources, in the group `hub.recovery`: what people ask for, and what became of it. Their definitions
//! (`packaging/hub/crds.yaml`) are made from these types, words and rules included, by the test of this page.

#![expect(unreachable_pub, reason = "the derived schema takes the place of each `spec` for that of one nobody can reach")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::machine::State;
use crate::kube::Permission;

/// The group of the resources, and the prefix of the hub's labels.
pub const GROUP: &str = "hub.recovery";
/// A `ClusterBackup`'s label with the name of its group.
pub const GROUP_LABEL: &str = "hub.recovery/group";
/// A `ClusterBackup`'s label with the name of its cluster.
pub const CLUSTER_LABEL: &str = "hub.recovery/cluster";
/// A `ClusterGroupBackup`'s label with the name of the schedule that made it.
pub const SCHEDULE_LABEL: &str = "hub.recovery/schedule";
/// What a `ClusterBackup` waits for before it goes: that what it made on the spoke is removed.
pub const FINALIZER: &str = "hub.recovery/spoke";

/// Backups of a group of clusters: one of each, so many at a time, and again when the last one has grown too old.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "hub.recovery",
    version = "v1alpha1",
    kind = "ClusterGroupBackup",
    plural = "clustergroupbackups",
    namespaced,
    status = "ClusterGroupBackupStatus",
    shortname = "cgb",
    category = "recovery",
    derive = "PartialEq",
    doc = "Backups of a group of clusters: one of each, so many at a time, and again when the last one has grown too old.",
    printcolumn = r#"{"name":"Clusters","type":"integer","jsonPath":".status.counts.clusters"}"#,
    printcolumn = r#"{"name":"Good","type":"integer","jsonPath":".status.counts.succeeded"}"#,
    printcolumn = r#"{"name":"Running","type":"integer","jsonPath":".status.counts.running"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.counts.failed"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type==\"BackupSucceeded\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    validation = Rule::new("size(self.metadata.name) <= 60").message("metadata.name must be no longer than 60 characters: the names of its ClusterBackups are made from it")
)]
#[x_kube(
    validation = Rule::new("size(self.clusters) > 0 || size(self.clusterLabelSelectors) > 0").message("name clusters in spec.clusters, or choose them by their labels in spec.clusterLabelSelectors"),
    validation = Rule::new("self.giveUpAfterSeconds > self.deadlineSeconds").message("spec.giveUpAfterSeconds must be more than spec.deadlineSeconds: the Job's own end must have the time to arrive"),
    validation = Rule::new("!(self.installGate && self.reach == 'ManifestWork')").message("spec.installGate is not supported with spec.reach ManifestWork, whose agent has no rights to admission policies: run `recovery gate install` on the nodes")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterGroupBackupSpec {
    /// Clusters by name.
    #[serde(default)]
    #[schemars(length(max = 5000), inner(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub clusters: Vec<String>,
    /// Clusters by the labels of their Cluster (Cluster API, in the group's namespace) or `ManagedCluster` (Open Cluster Management); one that any of these
    /// selectors chooses is in.
    #[serde(default)]
    #[schemars(length(max = 100))]
    pub cluster_label_selectors: Vec<Selector>,
    /// Whether backups are begun. What runs already is not stopped.
    #[serde(default = "yes")]
    pub enable: bool,
    /// How many backups run at a time.
    #[serde(default = "max_concurrency")]
    #[schemars(range(min = 1, max = 5000))]
    pub max_concurrency: u32,
    /// How long a backup may take on its node, seconds: the Job's activeDeadlineSeconds.
    #[serde(default = "deadline")]
    #[schemars(range(min = 1, max = 86400))]
    pub deadline_seconds: u32,
    /// How long the hub waits for a backup from when it began with the cluster, seconds.
    #[serde(default = "give_up_after")]
    #[schemars(range(min = 2, max = 172_800))]
    pub give_up_after_seconds: u32,
    /// How old a good backup may be until another is taken, and until which an upgrade may begin: as 24h or 90m.
    #[serde(default = "max_age")]
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^([0-9]+[hms])+$') && duration(self) >= duration('1m')").message("spec.maxAge must be hours, minutes and seconds, as 24h or 1h30m, and no less than 1m")
    )]
    pub max_age: String,
    /// How often a backup that was not done in time is gone on with.
    #[serde(default = "retries")]
    #[schemars(range(max = 20))]
    pub retries: u32,
    /// What a backup is called on its node: {group}, {cluster} and {attempt} are filled in.
    #[serde(default = "name_template")]
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^([A-Za-z0-9]|[{](group|cluster|attempt)[}])([A-Za-z0-9._-]|[{](group|cluster|attempt)[}])*$')").message("spec.nameTemplate may have letters, digits, . _ - and {group}, {cluster}, {attempt}, and begins with none of . _ -"),
        validation = Rule::new("self != 'latest' && !self.endsWith('.partial') && !self.endsWith('.deleting')").message("spec.nameTemplate must not be latest, nor end in .partial or .deleting, which the agent itself uses")
    )]
    pub name_template: String,
    /// Labels of the backups on their nodes, and of the `ClusterBackups`.
    #[serde(default)]
    #[schemars(schema_with = "labels")]
    #[x_kube(validation = of_labels())]
    pub labels: BTreeMap<String, String>,
    /// How many verified backups stay on a node, and how many `ClusterBackups` of each cluster here.
    #[serde(default = "keep")]
    #[schemars(range(min = 1, max = 100))]
    pub keep: u32,
    /// The agent's image; the hub's own unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500))]
    pub image: Option<String>,
    /// How the clusters are reached.
    #[serde(default)]
    pub reach: Reach,
    /// Whether the admission policy that refuses upgrades without a good backup is put on the clusters. Where it is, the hub opens and closes it.
    #[serde(default)]
    pub install_gate: bool,
}

/// How clusters are reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Reach {
    /// By the Secret `CLUSTER-kubeconfig` in the group's namespace, key `value`: Cluster API's and k0rdent's.
    #[default]
    Kubeconfig,
    /// By a `ManifestWork` in the cluster's namespace: Open Cluster Management.
    ManifestWork,
}

/// Chooses by labels, as everywhere in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that it has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// What else holds of its labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50))]
    pub match_expressions: Vec<Expression>,
}

/// What holds of a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// What holds of its value.
    pub operator: Operator,
    /// The values, for In and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub values: Vec<String>,
}

/// What can hold of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// True when something with these labels is chosen.
    #[must_use]
    pub fn chooses(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds = |expression: &Expression| {
            let value = labels.get(&expression.key);
            match expression.operator {
                Operator::In => value.is_some_and(|value| expression.values.contains(value)),
                Operator::NotIn => value.is_none_or(|value| !expression.values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        };
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)) && self.match_expressions.iter().all(holds)
    }
}

/// What became of a group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterGroupBackupStatus {
    /// The generation of the group that this is about.
    pub observed_generation: Option<i64>,
    /// When the first backup was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How many clusters are in which state.
    pub counts: Counts,
    /// The first twenty of the clusters that failed, by name.
    pub failed: Vec<FailedCluster>,
    /// `BackupSucceeded`, `Progressing`.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How many clusters are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// All of them.
    pub clusters: u32,
    /// Those whose turn has not come.
    pub waiting: u32,
    /// Those whose backup is under way: the sum of the next three.
    pub running: u32,
    /// `PreparingToStart`.
    pub preparing: u32,
    /// Starting.
    pub starting: u32,
    /// Active.
    pub active: u32,
    /// Those with a backup that is good and not too old.
    pub succeeded: u32,
    /// Those that failed: the sum of the next two.
    pub failed: u32,
    /// `BackupTimeout`, as often as it is tried.
    pub timeout: u32,
    /// `UnrecoverableError`.
    pub error: u32,
}

/// A cluster that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedCluster {
    /// Its name.
    pub name: String,
    /// The state of its last backup.
    pub state: State,
    /// Why.
    pub reason: String,
}

/// A condition, as everywhere in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// When the status changed last.
    pub last_transition_time: Timestamp,
    /// The generation that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// One try to take a backup of one cluster. Groups make these; whoever deletes one that failed has it tried again.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "hub.recovery",
    version = "v1alpha1",
    kind = "ClusterBackup",
    plural = "clusterbackups",
    namespaced,
    status = "ClusterBackupStatus",
    shortname = "cb",
    category = "recovery",
    derive = "PartialEq",
    doc = "One try to take a backup of one cluster. Groups make these; whoever deletes one that failed has it tried again.",
    printcolumn = r#"{"name":"Cluster","type":"string","jsonPath":".spec.cluster"}"#,
    printcolumn = r#"{"name":"Try","type":"integer","jsonPath":".spec.attempt"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.reason"}"#,
    printcolumn = r#"{"name":"Release","type":"string","jsonPath":".status.release"}"#,
    printcolumn = r#"{"name":"Backup","type":"string","jsonPath":".status.backupId"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.message"}"#
)]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("a ClusterBackup is one try and does not change: change its group, or delete it, and the group makes the next one")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBackupSpec {
    /// The cluster's name.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster: String,
    /// The group that asked for it.
    #[schemars(length(min = 1, max = 60))]
    pub group: String,
    /// The how-many-eth try of this cluster for this group, from 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub attempt: u32,
    /// How the cluster is reached.
    pub reach: Reach,
    /// The agent's image.
    #[schemars(length(min = 1, max = 500))]
    pub image: String,
    /// The Job's activeDeadlineSeconds.
    #[schemars(range(min = 1, max = 86400))]
    pub deadline_seconds: u32,
    /// How long the hub waits, seconds.
    #[schemars(range(min = 2, max = 172_800))]
    pub give_up_after_seconds: u32,
    /// How old it may become.
    #[schemars(length(max = 20))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^([0-9]+[hms])+$') && duration(self) >= duration('1m')").message("spec.maxAge must be hours, minutes and seconds, as 24h or 1h30m, and no less than 1m")
    )]
    pub max_age: String,
    /// What it is called on its node.
    #[schemars(length(min = 1, max = 253), pattern(r"^[A-Za-z0-9][A-Za-z0-9._+:@-]*$"))]
    pub backup_name: String,
    /// Its labels on the node.
    #[serde(default)]
    #[schemars(schema_with = "labels")]
    #[x_kube(validation = of_labels())]
    pub labels: BTreeMap<String, String>,
    /// How many verified backups stay on the node.
    #[schemars(range(min = 1, max = 100))]
    pub keep: u32,
    /// Whether the admission policy is put on the cluster.
    #[serde(default)]
    pub install_gate: bool,
}

/// What became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterBackupStatus {
    /// The state.
    pub state: State,
    /// Since when it is in that state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When the hub began with this cluster: its clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// One word: what it waits for, or failed of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Sentences: the same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The last lines of the pod's log, of one that failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
    /// The Job on the spoke, by its uid, once it was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The backup's id on its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<String>,
    /// SHA-256 of the backup's SHA256SUMS, which has the sum of each of its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The release that the cluster was at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// The node has read the whole backup back, and found it good.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
    /// When the node began with the backup, by its clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<Timestamp>,
    /// When the first of the certificates in it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Until when an upgrade may begin with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_until: Option<Timestamp>,
    /// What the hub has written into the gate of the cluster last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateState>,
    /// Why the gate could not be written; it is tried again.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gate_trouble: String,
    /// What it made on the spoke, and does not need any more, is removed there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cleaned: bool,
}

impl ClusterBackup {
    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.status.as_ref().map(|status| status.state).unwrap_or_default()
    }

    /// The hub has begun with its cluster.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.started_at.is_some())
    }
}

/// The gate before an upgrade, on a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateState {
    /// The cluster has none.
    NotInstalled,
    /// Its API has no admission policies: Kubernetes has them from 1.30 on, OpenShift from 4.17.
    NotSupported,
    /// An upgrade may begin.
    Open,
    /// None may.
    Closed,
}

impl From<&Permission> for GateState {
    fn from(permission: &Permission) -> Self {
        match permission {
            Permission::Open { .. } => Self::Open,
            Permission::Closed { .. } => Self::Closed,
        }
    }
}

/// Backups of a group of clusters on time: makes a `ClusterGroupBackup` at each of its instants.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "hub.recovery",
    version = "v1alpha1",
    kind = "BackupSchedule",
    plural = "backupschedules",
    namespaced,
    status = "BackupScheduleStatus",
    shortname = "bs",
    category = "recovery",
    derive = "PartialEq",
    doc = "Backups of a group of clusters on time: makes a ClusterGroupBackup at each of its instants.",
    printcolumn = r#"{"name":"Schedule","type":"string","jsonPath":".spec.schedule"}"#,
    printcolumn = r#"{"name":"Paused","type":"boolean","jsonPath":".spec.paused"}"#,
    printcolumn = r#"{"name":"Last","type":"date","jsonPath":".status.lastRun"}"#,
    printcolumn = r#"{"name":"Next","type":"string","jsonPath":".status.nextAttempt"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type==\"LastRunSucceeded\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    validation = Rule::new("size(self.metadata.name) <= 45").message("metadata.name must be no longer than 45 characters: the time is added for the names of its groups")
)]
#[serde(rename_all = "camelCase")]
pub struct BackupScheduleSpec {
    /// When, as cron expression: five fields, @daily, @every 6h.
    #[schemars(length(min = 1, max = 1000))]
    #[x_kube(
        validation = Rule::new(r"self.matches('^((CRON_)?TZ=[^ ]+ +)?(@[a-z]+( [^ ]+)?|[^ ]+( +[^ ]+){4})$')").message("spec.schedule must be a cron expression of five fields, as \"30 2 * * *\", or @daily, @every 6h and the like")
    )]
    pub schedule: String,
    /// The time zone of the expression, as Europe/Berlin; UTC unless given.
    #[serde(default = "utc")]
    #[schemars(length(max = 100))]
    pub time_zone: String,
    /// Whether nothing is begun for now.
    #[serde(default)]
    pub paused: bool,
    /// What is made at each instant.
    pub template: ClusterGroupBackupSpec,
    /// How many of its groups that are over stay.
    #[serde(default = "keep")]
    #[schemars(range(min = 1, max = 100))]
    pub history: u32,
}

/// What became of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BackupScheduleStatus {
    /// The generation that this is about.
    pub observed_generation: Option<i64>,
    /// The last instant for which a group was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Timestamp>,
    /// The group that was made then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_group: Option<String>,
    /// The next instant; none while it is paused, or not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Timestamp>,
    /// `ScheduleValid`, `LastRunSucceeded`.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Labels as Kubernetes has them: the values here, the keys by [`of_labels`], which a schema cannot say.
fn labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 30,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"},
    })
}

fn of_labels() -> Rule {
    const KEYS: &str =
        "self.all(key, key.matches('^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))";
    Rule::new(KEYS).message("the keys of spec.labels must be [PREFIX/]NAME of letters, digits and . _ -, as those of all labels")
}

fn yes() -> bool {
    true
}
fn max_concurrency() -> u32 {
    10
}
fn deadline() -> u32 {
    480
}
fn give_up_after() -> u32 {
    1200
}
fn max_age() -> String {
    "24h".to_owned()
}
fn retries() -> u32 {
    1
}
fn name_template() -> String {
    "{group}".to_owned()
}
fn keep() -> u32 {
    3
}
fn utc() -> String {
    crate::schedule::zone::UTC.to_owned()
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn the_definitions_that_are_installed_are_those_of_these_types() {
        let mut made = "# Made from src/hub/api.rs, by its test.\n".to_owned();
        for crd in [ClusterGroupBackup::crd(), ClusterBackup::crd(), BackupSchedule::crd()] {
            made += "---\n";
            made += &serde_saphyr::to_string(&crd).unwrap();
        }
        if made != include_str!("../../packaging/hub/crds.yaml") {
            let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/target/crds.yaml");
            std::fs::write(beside, made).unwrap();
            panic!("packaging/hub/crds.yaml is not what these types make, which is in {beside}");
        }
    }
}

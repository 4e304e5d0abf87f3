//! `manifest.json`: the description of a backup.
//!
//! `version`, `agent` and `sequence` are in the same place in every version. An older agent, which can read only these, must know that a
//! newer one was there, and number its own backups after that one's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Format;
use super::deployment::DeploymentV1;

/// The format.
pub const FORMAT: Format = Format { name: "manifest.json", version: 3 };

/// Version 1. The optional fields without `null` were added later: a manifest without them is complete too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1.
    pub version: u32,
    /// Order of the backups of one recovery directory; 0 for imported ones.
    pub sequence: u64,
    /// The backup's id, which is also the name of its directory.
    pub id: String,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Who asked: `job/UID`, `pod/UID`, `user/NUMBER`, `upgrade-recovery.sh`.
    pub asked_by: String,
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// Version of the agent that took it.
    pub agent: String,
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// Which node.
    pub identity: IdentityV1,
    /// Which boot; empty for imported ones.
    pub boot_id: String,
    /// Which cluster and release, where that is known.
    pub cluster: Option<ClusterV1>,
    /// The deployment it belongs to, where there is one.
    pub deployment: Option<DeploymentV1>,
    /// The etcd snapshot.
    pub etcd: EtcdV1,
    /// The cluster operators' state at that time.
    pub operators: Vec<OperatorV1>,
    /// Images that were in use, or pinned.
    pub images: Vec<ImageV1>,
    /// When the first of the certificates in the backup expires.
    pub certificates_expire: Option<Timestamp>,
    /// Patterns of glob(7) below `/etc` that a restore of `/etc` does not touch.
    pub etc_excludes: Vec<PathBuf>,
    /// Absolute paths of the managed files outside `/etc`.
    pub managed_files: Vec<PathBuf>,
    /// The unit of the container runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_unit: Option<String>,
    /// Name and namespace of the operators' containers that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_containers: Option<Vec<(String, String)>>,
    /// Bytes of content of each file of the backup, before compression.
    pub sizes: BTreeMap<String, u64>,
}

/// Version 2: what was wrong when it was taken, and what was up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V2 {
    /// 2.
    pub version: u32,
    /// Order of the backups of one recovery directory; 0 for imported ones.
    pub sequence: u64,
    /// The backup's id, which is also the name of its directory.
    pub id: String,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Who asked: `job/UID`, `pod/UID`, `user/NUMBER`, `upgrade-recovery.sh`.
    pub asked_by: String,
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// Version of the agent that took it.
    pub agent: String,
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// Which node.
    pub identity: IdentityV1,
    /// Which boot; empty for imported ones.
    pub boot_id: String,
    /// Which cluster and release, where that is known.
    pub cluster: Option<ClusterV1>,
    /// The deployment it belongs to, where there is one.
    pub deployment: Option<DeploymentV1>,
    /// The etcd snapshot.
    pub etcd: EtcdV1,
    /// The cluster operators' state then.
    pub operators: Vec<OperatorV1>,
    /// Images that were in use, or pinned.
    pub images: Vec<ImageV1>,
    /// When the first of the certificates inside expires.
    pub certificates_expire: Option<Timestamp>,
    /// Patterns of glob(7) below `/etc` that a restore of `/etc` leaves alone.
    pub etc_excludes: Vec<PathBuf>,
    /// Absolute paths of the managed files outside `/etc`.
    pub managed_files: Vec<PathBuf>,
    /// The unit of the container runtime.
    pub runtime_unit: Option<String>,
    /// Name and namespace of the operators' containers that ran.
    pub operator_containers: Option<Vec<(String, String)>>,
    /// k0rdent's Management, where there was one.
    pub management: Option<ManagementV2>,
    /// What somebody was told when it was taken, one sentence each.
    pub warnings: Vec<String>,
    /// What was available; null when the API did not say.
    pub workloads: Option<Vec<WorkloadV2>>,
    /// Bytes of content of each file of the backup, before compression.
    pub sizes: BTreeMap<String, u64>,
}

/// Version 3: how long it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V3 {
    /// 3.
    pub version: u32,
    /// Order of the backups of one recovery directory; 0 for imported ones.
    pub sequence: u64,
    /// The backup's id, which is also the name of its directory.
    pub id: String,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Who asked: `job/UID`, `pod/UID`, `user/NUMBER`, `upgrade-recovery.sh`.
    pub asked_by: String,
    /// When it was begun, by the node's clock.
    pub taken: Timestamp,
    /// How long it took until this was written, seconds, by the clock that nobody sets; null when one process went on with what another had begun, and for
    /// imported ones.
    pub seconds: Option<u64>,
    /// Version of the agent that took it.
    pub agent: String,
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// Which node.
    pub identity: IdentityV1,
    /// Which boot; empty for imported ones.
    pub boot_id: String,
    /// Which cluster and release, where that is known.
    pub cluster: Option<ClusterV1>,
    /// The deployment it belongs to, where there is one.
    pub deployment: Option<DeploymentV1>,
    /// The etcd snapshot.
    pub etcd: EtcdV1,
    /// The cluster operators' state then.
    pub operators: Vec<OperatorV1>,
    /// Images that were in use, or pinned.
    pub images: Vec<ImageV1>,
    /// When the first of the certificates inside expires.
    pub certificates_expire: Option<Timestamp>,
    /// Patterns of glob(7) below `/etc` that a restore of `/etc` leaves alone.
    pub etc_excludes: Vec<PathBuf>,
    /// Absolute paths of the managed files outside `/etc`.
    pub managed_files: Vec<PathBuf>,
    /// The unit of the container runtime.
    pub runtime_unit: Option<String>,
    /// Name and namespace of the operators' containers that ran.
    pub operator_containers: Option<Vec<(String, String)>>,
    /// k0rdent's Management, where there was one.
    pub management: Option<ManagementV2>,
    /// What somebody was told when it was taken, one sentence each.
    pub warnings: Vec<String>,
    /// What was available; null when the API did not say.
    pub workloads: Option<Vec<WorkloadV2>>,
    /// Bytes of content of each file of the backup, before compression.
    pub sizes: BTreeMap<String, u64>,
}

/// The kind of control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProfileV1 {
    /// OpenShift.
    OpenShift,
    /// kubeadm.
    Kubeadm,
}

/// Which node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct IdentityV1 {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The node's name.
    pub node_name: String,
    /// SHA-256 (hex) of each root authority's certificate.
    pub root_ca: Vec<String>,
}

/// Which cluster and release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ClusterV1 {
    /// The cluster's id.
    pub id: String,
    /// The release.
    pub version: String,
    /// The release image, when there is one.
    pub image: Option<String>,
    /// True while it was being upgraded.
    pub progressing: bool,
}

/// What the etcd snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EtcdV1 {
    /// Server version.
    pub version: Option<String>,
    /// Revision.
    pub revision: i64,
    /// Live keys.
    pub keys: Option<i64>,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// State of one cluster operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OperatorV1 {
    /// Its name.
    pub name: String,
    /// Its version, when given.
    pub version: Option<String>,
    /// Available is True.
    pub available: bool,
    /// Progressing is True.
    pub progressing: bool,
    /// Degraded is True.
    pub degraded: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageV1 {
    /// The container runtime's id.
    pub id: String,
    /// A tag or digest, for people.
    pub name: String,
}

/// k0rdent's Management.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ManagementV2 {
    /// The release that it was at, where it said so.
    pub release: Option<String>,
    /// The release that it was asked to be at.
    pub asked: String,
    /// It was at the release that was asked for, and every component was ready.
    pub ready: bool,
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WorkloadV2 {
    /// Its kind.
    pub kind: WorkloadKindV2,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The kind of a workload, as Kubernetes has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum WorkloadKindV2 {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
}

impl From<V1> for V2 {
    fn from(v: V1) -> Self {
        Self {
            version: 2,
            sequence: v.sequence,
            id: v.id,
            name: v.name,
            labels: v.labels,
            asked_by: v.asked_by,
            taken: v.taken,
            agent: v.agent,
            profile: v.profile,
            identity: v.identity,
            boot_id: v.boot_id,
            cluster: v.cluster,
            deployment: v.deployment,
            etcd: v.etcd,
            operators: v.operators,
            images: v.images,
            certificates_expire: v.certificates_expire,
            etc_excludes: v.etc_excludes,
            managed_files: v.managed_files,
            runtime_unit: v.runtime_unit,
            operator_containers: v.operator_containers,
            management: None,
            warnings: Vec::new(),
            workloads: None,
            sizes: v.sizes,
        }
    }
}

impl From<V2> for V3 {
    fn from(v: V2) -> Self {
        Self {
            version: 3,
            sequence: v.sequence,
            id: v.id,
            name: v.name,
            labels: v.labels,
            asked_by: v.asked_by,
            taken: v.taken,
            seconds: None,
            agent: v.agent,
            profile: v.profile,
            identity: v.identity,
            boot_id: v.boot_id,
            cluster: v.cluster,
            deployment: v.deployment,
            etcd: v.etcd,
            operators: v.operators,
            images: v.images,
            certificates_expire: v.certificates_expire,
            etc_excludes: v.etc_excludes,
            managed_files: v.managed_files,
            runtime_unit: v.runtime_unit,
            operator_containers: v.operator_containers,
            management: v.management,
            warnings: v.warnings,
            workloads: v.workloads,
            sizes: v.sizes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::{samples, to_json};

    #[test]
    fn version_1_stays_as_it_is() {
        let sample = samples::check_layout::<V1>("manifest", 1);
        // As the first agents wrote it.
        let mut early: serde_json::Value = serde_json::from_slice(&sample).unwrap();
        for later in ["runtime_unit", "operator_containers"] {
            assert!(early.as_object_mut().unwrap().remove(later).is_some(), "{later}");
        }
        let read: V1 = serde_json::from_value(early.clone()).unwrap();
        let written: serde_json::Value = serde_json::from_slice(&to_json(&read).unwrap()).unwrap();
        assert_eq!(written, early);
        assert_eq!(V2::from(read).version, 2);
    }

    #[test]
    fn version_2_stays_as_it_is() {
        let read: V2 = serde_json::from_slice(&samples::check_layout::<V2>("manifest", 2)).unwrap();
        let newest = V3::from(read.clone());
        assert_eq!((newest.version, newest.seconds, newest.workloads), (3, None, read.workloads));
    }

    #[test]
    fn version_3_is_what_is_written() {
        let read: V3 = serde_json::from_slice(&samples::check_layout::<V3>("manifest", 3)).unwrap();
        assert!(read.version == FORMAT.version && read.seconds.is_some());
    }
}

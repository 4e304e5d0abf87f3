//! The manifest of a backup. Its format in `manifest.json` is in [`formats::manifest`](crate::formats::manifest).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::asked_by::AskedBy;
use super::layout::{MANIFEST, read_small};
use crate::archive::Selection;
use crate::error::damaged;
use crate::formats::deployment::DeploymentV1;
use crate::formats::manifest::{
    ClusterV1, EtcdV1, FORMAT, IdentityV1, ImageV1, ManagementV2, OperatorV1, ProfileV1, V1, V2, V3, WorkloadKindV2, WorkloadV2,
};
use crate::formats::to_json;
use crate::kube;
use crate::node::{durable, identity::Identity, profile::Kind};
use crate::tools::ostree::{self, Deployment};

/// The most bytes of a manifest that are read: a real node's has some 20 KiB.
const MOST_MANIFEST: u64 = 2 << 20;

/// The manifest. Reports show it as its file has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "V3")]
pub struct Manifest {
    /// Order of the backups of this recovery directory.
    pub sequence: u64,
    /// The backup's id.
    pub id: String,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: BTreeMap<String, String>,
    /// Who asked.
    pub asked_by: AskedBy,
    /// When the backup was begun, by the node's clock.
    pub taken: jiff::Timestamp,
    /// How long it took until the manifest was written, seconds, by the clock that nobody sets; `None` when one process went on with what another had
    /// begun, for imported ones and for older backups.
    pub seconds: Option<u64>,
    /// Version of the agent.
    pub agent: String,
    /// The kind of control plane.
    pub profile: Kind,
    /// Which node.
    pub identity: Identity,
    /// Which boot.
    pub boot_id: String,
    /// The cluster and its release; `None` when the API did not say (imported backups).
    pub cluster: Option<kube::Cluster>,
    /// The deployment that the backup belongs to; `None` where the node is not an ostree host, and for imported backups.
    pub deployment: Option<DeploymentId>,
    /// The etcd snapshot.
    pub etcd: Etcd,
    /// The operators' state at that time.
    pub operators: Vec<kube::OperatorState>,
    /// Images that were in use, or pinned: name or digest as in the containers, and the runtime's id.
    pub images: Vec<Image>,
    /// When the first of the certificates in the backup expires.
    pub certificates_expire: Option<jiff::Timestamp>,
    /// Paths below `/etc` (patterns of glob(7)) that a restore of `/etc` does not touch.
    pub etc_excludes: Vec<PathBuf>,
    /// Absolute paths of the managed files outside `/etc` at that time: files that a newer `currentconfig` added to these are removed.
    pub managed_files: Vec<PathBuf>,
    /// The unit of the container runtime; `None` when it was not found, and in older backups.
    pub runtime_unit: Option<String>,
    /// The containers of the profile's operators that ran, by name and namespace: a recovery waits for these. `None` when the runtime did
    /// not say, and in older backups.
    pub operator_containers: Option<Vec<(String, String)>>,
    /// k0rdent's Management; `None` where there was none, when the API did not say, and in older backups.
    pub management: Option<kube::Management>,
    /// What somebody was told when it was taken, one sentence each; none in older backups.
    pub warnings: Vec<String>,
    /// The Deployments, StatefulSets and DaemonSets that were available; `None` when the API did not say, and in older backups.
    pub workloads: Option<Vec<kube::Workload>>,
    /// Bytes of content per file of the backup, before compression.
    pub sizes: BTreeMap<String, u64>,
}

impl Manifest {
    /// Reads the manifest of the backup in the directory `backup`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is missing, or too large; as [`Manifest::parse`].
    pub fn read(backup: &Path) -> Result<Self> {
        Self::parse(&read_small(backup, MANIFEST, MOST_MANIFEST)?)
    }

    /// Parses the JSON of a manifest.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is of a newer version;
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is not a valid manifest, or asks for what no restore can do.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let manifest = Self::from(FORMAT.read(json, |version, json| match version {
            1 => serde_json::from_slice::<V1>(json).map(V2::from).map(V3::from),
            2 => serde_json::from_slice::<V2>(json).map(V3::from),
            _ => serde_json::from_slice::<V3>(json),
        })?);
        // Before anything is changed, not in the middle of a restore.
        let excludes = Selection::all().except(&manifest.etc_excludes);
        excludes.map_err(|error| damaged(format!("{MANIFEST} is not valid: etc_excludes: {error}")))?;
        Ok(manifest)
    }

    /// The sequence of the backup in the directory `backup`, whatever the version of its manifest.
    #[must_use]
    pub fn sequence_of(backup: &Path) -> Option<u64> {
        #[derive(Deserialize)]
        struct Place {
            sequence: u64,
        }
        let place: Place = serde_json::from_slice(&read_small(backup, MANIFEST, MOST_MANIFEST).ok()?).ok()?;
        Some(place.sequence)
    }

    /// Writes it into the directory `backup`, durably.
    ///
    /// # Errors
    /// When it cannot be written, or is larger than the limit for reading.
    pub fn write(&self, backup: &Path) -> Result<()> {
        let json = to_json(self).context("putting the manifest into JSON")?;
        if json.len() as u64 > MOST_MANIFEST {
            bail!(
                "the manifest takes {} bytes; no more than {MOST_MANIFEST} are read: it names too many paths that a restore does not touch",
                json.len()
            );
        }
        durable::write(&backup.join(MANIFEST), &json, 0o600)
    }
}

/// A deployment's identity: the same checksum can be deployed twice, with other kernel arguments and another `/etc`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeploymentId {
    /// Stateroot.
    pub stateroot: String,
    /// Commit checksum.
    pub checksum: String,
    /// Serial.
    pub serial: u32,
    /// Version, when it has one.
    pub version: Option<String>,
    /// Kernel arguments.
    pub kernel_arguments: Vec<String>,
}

impl DeploymentId {
    /// Stateroot, the beginning of the checksum, serial: for messages.
    #[must_use]
    pub fn short(&self) -> String {
        ostree::short(&self.stateroot, &self.checksum, self.serial)
    }

    /// The identity of `deployment`.
    #[must_use]
    pub fn of(deployment: &Deployment, kernel_arguments: Vec<String>) -> Self {
        Self {
            stateroot: deployment.stateroot.clone(),
            checksum: deployment.checksum.clone(),
            serial: deployment.serial,
            version: deployment.version.clone(),
            kernel_arguments,
        }
    }

    /// True when `deployment` is this one.
    #[must_use]
    pub fn is(&self, deployment: &Deployment) -> bool {
        self.key() == (&deployment.stateroot, &deployment.checksum, deployment.serial)
    }

    /// True when both are of the same deployment.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    /// What identifies a deployment, as in `ostree_deployment_equal`: version and arguments follow from it.
    fn key(&self) -> (&str, &str, u32) {
        (&self.stateroot, &self.checksum, self.serial)
    }
}

/// What the etcd snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// Server version.
    pub version: Option<String>,
    /// Revision.
    pub revision: i64,
    /// Live keys.
    pub keys: Option<i64>,
    /// Bytes of the stream.
    pub bytes: u64,
}

/// An image in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// The runtime's id.
    pub id: String,
    /// A tag or digest, for people.
    pub name: String,
}

impl From<V3> for Manifest {
    fn from(v: V3) -> Self {
        Self {
            sequence: v.sequence,
            id: v.id,
            name: v.name,
            labels: v.labels,
            asked_by: AskedBy::from(v.asked_by),
            taken: v.taken,
            seconds: v.seconds,
            agent: v.agent,
            profile: v.profile.into(),
            identity: v.identity.into(),
            boot_id: v.boot_id,
            cluster: v.cluster.map(Into::into),
            deployment: v.deployment.map(Into::into),
            etcd: v.etcd.into(),
            operators: v.operators.into_iter().map(Into::into).collect(),
            images: v.images.into_iter().map(Into::into).collect(),
            certificates_expire: v.certificates_expire,
            etc_excludes: v.etc_excludes,
            managed_files: v.managed_files,
            runtime_unit: v.runtime_unit,
            operator_containers: v.operator_containers,
            management: v.management.map(Into::into),
            warnings: v.warnings,
            workloads: v.workloads.map(|all| all.into_iter().map(Into::into).collect()),
            sizes: v.sizes,
        }
    }
}

impl From<Manifest> for V3 {
    fn from(v: Manifest) -> Self {
        Self {
            version: FORMAT.version,
            sequence: v.sequence,
            id: v.id,
            name: v.name,
            labels: v.labels,
            asked_by: v.asked_by.to_string(),
            taken: v.taken,
            seconds: v.seconds,
            agent: v.agent,
            profile: v.profile.into(),
            identity: v.identity.into(),
            boot_id: v.boot_id,
            cluster: v.cluster.map(Into::into),
            deployment: v.deployment.map(Into::into),
            etcd: v.etcd.into(),
            operators: v.operators.into_iter().map(Into::into).collect(),
            images: v.images.into_iter().map(Into::into).collect(),
            certificates_expire: v.certificates_expire,
            etc_excludes: v.etc_excludes,
            managed_files: v.managed_files,
            runtime_unit: v.runtime_unit,
            operator_containers: v.operator_containers,
            management: v.management.map(Into::into),
            warnings: v.warnings,
            workloads: v.workloads.map(|all| all.into_iter().map(Into::into).collect()),
            sizes: v.sizes,
        }
    }
}

impl From<ManagementV2> for kube::Management {
    fn from(ManagementV2 { release, asked, ready }: ManagementV2) -> Self {
        Self { release, asked, ready }
    }
}

impl From<kube::Management> for ManagementV2 {
    fn from(kube::Management { release, asked, ready }: kube::Management) -> Self {
        Self { release, asked, ready }
    }
}

impl From<WorkloadV2> for kube::Workload {
    fn from(WorkloadV2 { kind, namespace, name }: WorkloadV2) -> Self {
        let kind = match kind {
            WorkloadKindV2::Deployment => kube::WorkloadKind::Deployment,
            WorkloadKindV2::StatefulSet => kube::WorkloadKind::StatefulSet,
            WorkloadKindV2::DaemonSet => kube::WorkloadKind::DaemonSet,
        };
        Self { kind, namespace, name }
    }
}

impl From<kube::Workload> for WorkloadV2 {
    fn from(kube::Workload { kind, namespace, name }: kube::Workload) -> Self {
        let kind = match kind {
            kube::WorkloadKind::Deployment => WorkloadKindV2::Deployment,
            kube::WorkloadKind::StatefulSet => WorkloadKindV2::StatefulSet,
            kube::WorkloadKind::DaemonSet => WorkloadKindV2::DaemonSet,
        };
        Self { kind, namespace, name }
    }
}

impl From<ProfileV1> for Kind {
    fn from(profile: ProfileV1) -> Self {
        match profile {
            ProfileV1::OpenShift => Self::OpenShift,
            ProfileV1::Kubeadm => Self::Kubeadm,
        }
    }
}

impl From<Kind> for ProfileV1 {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::OpenShift => Self::OpenShift,
            Kind::Kubeadm => Self::Kubeadm,
        }
    }
}

impl From<DeploymentV1> for DeploymentId {
    fn from(DeploymentV1 { stateroot, checksum, serial, version, kernel_arguments }: DeploymentV1) -> Self {
        Self { stateroot, checksum, serial, version, kernel_arguments }
    }
}

impl From<DeploymentId> for DeploymentV1 {
    fn from(DeploymentId { stateroot, checksum, serial, version, kernel_arguments }: DeploymentId) -> Self {
        Self { stateroot, checksum, serial, version, kernel_arguments }
    }
}

impl From<IdentityV1> for Identity {
    fn from(IdentityV1 { machine_id, node_name, root_ca }: IdentityV1) -> Self {
        Self { machine_id, node_name, root_ca }
    }
}

impl From<Identity> for IdentityV1 {
    fn from(Identity { machine_id, node_name, root_ca }: Identity) -> Self {
        Self { machine_id, node_name, root_ca }
    }
}

impl From<ClusterV1> for kube::Cluster {
    fn from(ClusterV1 { id, version, image, progressing }: ClusterV1) -> Self {
        Self { id, version, image, progressing }
    }
}

impl From<kube::Cluster> for ClusterV1 {
    fn from(kube::Cluster { id, version, image, progressing }: kube::Cluster) -> Self {
        Self { id, version, image, progressing }
    }
}

impl From<EtcdV1> for Etcd {
    fn from(EtcdV1 { version, revision, keys, bytes }: EtcdV1) -> Self {
        Self { version, revision, keys, bytes }
    }
}

impl From<Etcd> for EtcdV1 {
    fn from(Etcd { version, revision, keys, bytes }: Etcd) -> Self {
        Self { version, revision, keys, bytes }
    }
}

impl From<OperatorV1> for kube::OperatorState {
    fn from(OperatorV1 { name, version, available, progressing, degraded }: OperatorV1) -> Self {
        Self { name, version, available, progressing, degraded }
    }
}

impl From<kube::OperatorState> for OperatorV1 {
    fn from(kube::OperatorState { name, version, available, progressing, degraded }: kube::OperatorState) -> Self {
        Self { name, version, available, progressing, degraded }
    }
}

impl From<ImageV1> for Image {
    fn from(ImageV1 { id, name }: ImageV1) -> Self {
        Self { id, name }
    }
}

impl From<Image> for ImageV1 {
    fn from(Image { id, name }: Image) -> Self {
        Self { id, name }
    }
}

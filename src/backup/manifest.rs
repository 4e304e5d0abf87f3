//! `manifest.json`: what a backup says of itself. Versioned; a field that this version does not know is refused, never guessed at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout::{MANIFEST, read_small};
use crate::archive::Selection;
use crate::error::damaged;
use crate::kube;
use crate::node::{durable, identity::Identity, profile::Kind};
use crate::tools::ostree::{self, Deployment};

/// The only version so far.
pub const VERSION: u32 = 1;
/// The most a manifest is read of: one of a real node has some 20 KiB.
const MOST: u64 = 2 << 20;

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Order of the backups of this recovery directory.
    pub sequence: u64,
    /// The backup's id.
    pub id: String,
    /// Given name.
    pub name: Option<String>,
    /// Given labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Who asked: `job/<uid>`, `pod/<uid>` or `user/<uid>`.
    pub asked_by: String,
    /// When it was begun, by the node's clock.
    pub taken: jiff::Timestamp,
    /// Version of the agent.
    pub agent: String,
    /// The kind of control plane.
    pub profile: Kind,
    /// Which node.
    pub identity: Identity,
    /// Which boot.
    pub boot_id: String,
    /// Which cluster and release; `None` when the API did not say (imported backups).
    pub cluster: Option<kube::Cluster>,
    /// The deployment it belongs to; `None` where the node is not an ostree host, and for imported backups.
    pub deployment: Option<DeploymentId>,
    /// The etcd snapshot.
    pub etcd: Etcd,
    /// The operators' state then.
    pub operators: Vec<kube::OperatorState>,
    /// Images that were in use, or pinned: name or digest as the containers name them, and the runtime's id.
    pub images: Vec<Image>,
    /// When the first of the certificates inside expires.
    pub certificates_expire: Option<jiff::Timestamp>,
    /// Paths below `/etc` (patterns of glob(7)) that a restore of `/etc` leaves alone.
    pub etc_excludes: Vec<PathBuf>,
    /// Paths of the managed files outside `/etc` at that time, absolute: what a newer `currentconfig` added beyond these is removed.
    pub managed_files: Vec<PathBuf>,
    /// The unit of the container runtime; `None` when it was not found, and in older backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_unit: Option<String>,
    /// The containers of the profile's operators that ran, name and namespace: those that a recovery waits for. `None` when the runtime did not say,
    /// and in older backups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_containers: Option<Vec<(String, String)>>,
    /// Bytes of content per file of the backup, before compression.
    pub sizes: std::collections::BTreeMap<String, u64>,
}

impl Manifest {
    /// Reads the manifest of the backup in the directory `backup`.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is missing, too large, of another version, or not exactly a manifest.
    pub fn read(backup: &Path) -> Result<Self> {
        Self::parse(&read_small(backup, MANIFEST, MOST)?)
    }

    /// Parses one.
    ///
    /// # Errors
    /// [`FailureKind::Damaged`](crate::error::FailureKind::Damaged) when it is of another version, or not exactly a manifest, or says what no restore can do.
    pub fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bad = |error: serde_json::Error| damaged(format!("its {MANIFEST} is not valid: {error}"));
        // The version first: what a newer one looks like is not for this one to judge.
        let Version { version } = serde_json::from_slice(json).map_err(bad)?;
        if version != VERSION {
            return Err(damaged(format!("its {MANIFEST} is of version {version}; this agent reads version {VERSION}")));
        }
        let manifest: Self = serde_json::from_slice(json).map_err(bad)?;
        // Before anything is changed, not in the middle of a restore.
        let excludes = Selection::all().except(&manifest.etc_excludes);
        excludes.map_err(|error| damaged(format!("its {MANIFEST} is not valid: etc_excludes: {error}")))?;
        Ok(manifest)
    }

    /// Writes it into the directory `backup`, durably.
    ///
    /// # Errors
    /// When it cannot be written, or is larger than is read.
    pub fn write(&self, backup: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self).context("putting the manifest into JSON")?;
        json.push(b'\n');
        if json.len() as u64 > MOST {
            bail!(
                "the manifest takes {} bytes; no more than {MOST} are read: it names too many paths that a restore leaves alone",
                json.len()
            );
        }
        durable::write(&backup.join(MANIFEST), &json, 0o600)
    }
}

/// A deployment's identity: the same checksum can stand twice, with other kernel arguments and another `/etc`.
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

    /// True when `deployment` is this one: as `ostree_deployment_equal` compares, by stateroot, checksum and serial.
    #[must_use]
    pub fn is(&self, deployment: &Deployment) -> bool {
        (&self.stateroot, &self.checksum, self.serial) == (&deployment.stateroot, &deployment.checksum, deployment.serial)
    }
}

/// What the etcd snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The runtime's id.
    pub id: String,
    /// A tag or digest, for people.
    pub name: String,
}

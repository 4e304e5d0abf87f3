//! A backup as the [engine](crate::engine) carries it out: its steps, and what must be the same if an interrupted one is to be continued.

use anyhow::Result;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::backup::manifest::DeploymentId;
use crate::engine::machine::{self, PlannedPhase, PlannedStep};
use crate::engine::{Procedure, journal};
use crate::error::{FailureKind, Next, run};
use crate::formats::partial as format;
use crate::node::Node;
use crate::node::profile::CURRENT_CONFIG;

/// The journal of a backup, as read.
pub type Reading = journal::Reading<Taking>;
/// The journal of a backup, open for writing.
pub type Journal = journal::Journal<Taking>;
/// What can happen to a backup.
pub type Event = machine::Event<Phase>;
/// Everything that makes a backup, in order.
pub type Plan = machine::Plan<Phase>;

/// Putting the agent and the old tool's front into the recovery directory.
pub const INSTALL: &str = "install";
/// Pinning the booted deployment.
pub const PIN: &str = "pin";
/// Putting the kubelet hold and the resume unit into `/etc`.
pub const HOLD_FILES: &str = "hold-files";
/// Saving etcd and archiving the static pods, of the same moment. The steps between the previous one and this one have the names of the
/// archives that they make.
pub const ETCD_AND_STATIC_PODS: &str = "etcd-and-static-pods";
/// Checking what was written.
pub const CHECK: &str = "check";
/// Writing manifest and sums. After it everything is on disk, and only the name is missing.
pub const MANIFEST: &str = "manifest";
/// The only step of an import of the old script's backup, which is never continued.
pub const IMPORT: &str = "import";

/// The only phase of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the first step to the last.
    Take,
}

impl machine::Phase for Phase {
    fn name(self) -> &'static str {
        "take"
    }

    fn of_name(name: &str) -> Option<Self> {
        (name == "take").then_some(Self::Take)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(machine::Phase::name(*self))
    }
}

/// The plan of a backup with these archives before that of the static pods. Only these archives are kept for the next process, which does
/// everything else again: etcd and the static pods change meanwhile, and somebody may have removed a pin or a file.
#[must_use]
pub fn plan(pins: bool, archives: &[&str]) -> Plan {
    let step = |volatile: bool| move |name: &&str| PlannedStep { name: (*name).to_owned(), volatile };
    let before = if pins { &[INSTALL, PIN, HOLD_FILES][..] } else { &[INSTALL, HOLD_FILES] };
    let after = [ETCD_AND_STATIC_PODS, CHECK, MANIFEST];
    let steps = before.iter().map(step(true)).chain(archives.iter().map(step(false))).chain(after.iter().map(step(true)));
    vec![PlannedPhase { phase: Phase::Take, reboot: false, steps: steps.collect() }]
}

/// The plan of an import.
#[must_use]
pub fn import() -> Plan {
    vec![PlannedPhase { phase: Phase::Take, reboot: false, steps: vec![PlannedStep { name: IMPORT.to_owned(), volatile: false }] }]
}

/// What a backup was begun with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// When it was begun, by the node's clock; for an import, when the old script took the backup.
    pub taken: Timestamp,
    /// When it was begun, in seconds since boot: in the same boot this does not depend on the wall clock.
    pub begun: u64,
    /// What must be the same.
    pub conditions: Conditions,
}

/// What must be the same for a backup to be continued, besides boot, agent and plan, which its journal always records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditions {
    /// Booted deployment.
    pub deployment: Option<DeploymentId>,
    /// SHA-256 (hex) of `currentconfig`, where there is one.
    pub current_config: Option<String>,
}

impl Conditions {
    /// The conditions on the node now.
    ///
    /// # Errors
    /// When `currentconfig` cannot be read.
    pub fn of(node: &Node, deployment: Option<DeploymentId>) -> Result<Self> {
        let config = if node.exists(CURRENT_CONFIG) { Some(HEXLOWER.encode(&Sha256::digest(node.read(CURRENT_CONFIG)?))) } else { None };
        Ok(Self { deployment, current_config: config })
    }
}

/// Taking a backup, as a procedure.
#[derive(Debug, Clone)]
pub struct Taking;

impl Procedure for Taking {
    const NAME: &'static str = "backup";
    const INTERRUPTED: &'static str = "the finished part of the backup is kept";
    type Phase = Phase;
    type Beginning = Beginning;

    fn read_beginning(json: Value) -> serde_json::Result<Beginning> {
        serde_json::from_value::<format::BeginningV2>(json).map(Beginning::from)
    }

    fn write_beginning(beginning: &Beginning) -> serde_json::Result<Value> {
        serde_json::to_value(format::BeginningV2::from(beginning.clone()))
    }

    fn past_the_journal() -> Next {
        run("recovery backup", "discards it and begins again")
    }

    fn way_on(_: &Reading, kind: FailureKind) -> Next {
        match kind {
            FailureKind::Interrupted => run("recovery backup", "again, which goes on with it"),
            FailureKind::Busy => run("recovery backup", "again then"),
            _ => run("recovery backup", "again, once the cause is put right"),
        }
    }

    fn step_named(_: Phase, step: &str) -> String {
        format!("step {step}")
    }
}

impl From<format::BeginningV2> for Beginning {
    fn from(read: format::BeginningV2) -> Self {
        let format::BeginningV2 { taken, begun, deployment, current_config } = read;
        Self { taken, begun, conditions: Conditions { deployment: deployment.map(Into::into), current_config } }
    }
}

impl From<Beginning> for format::BeginningV2 {
    fn from(Beginning { taken, begun, conditions: Conditions { deployment, current_config } }: Beginning) -> Self {
        Self { taken, begun, deployment: deployment.map(Into::into), current_config }
    }
}

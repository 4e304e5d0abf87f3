//! Making the partition, as the [engine](crate::engine) carries it out.

use std::path::PathBuf;

use serde_json::Value;

use crate::engine::machine::{self, PlannedPhase, PlannedStep};
use crate::engine::{Procedure, journal};
use crate::error::{FailureKind, Next, by_hand, run};
use crate::formats::partition::BeginningV1;
use crate::node::Node;

/// The journal, as read.
pub type Reading = journal::Reading<Making>;
/// The journal, open for writing.
pub type Journal = journal::Journal<Making>;
/// What can happen.
pub type Event = machine::Event<Phase>;

/// The folder of what is kept while the partition is made: not in the recovery directory, which is what is moved.
pub const FOLDER: &str = "/var/lib/recovery/partition";

/// Writing the partition table.
pub const TABLE: &str = "table";
/// Having the kernel know the partition.
pub const KERNEL: &str = "kernel";
/// Making the file system.
pub const FILE_SYSTEM: &str = "file-system";
/// Copying the recovery directory, reading the copy back, and writing the unit that mounts it.
pub const MOVE: &str = "move";
/// Mounting it.
pub const MOUNT: &str = "mount";
/// Removing what lies below the mount.
pub const OLD: &str = "old";

/// The steps in their order, each with whether a reboot undoes it.
const STEPS: [(&str, bool); 6] = [(TABLE, false), (KERNEL, true), (FILE_SYSTEM, false), (MOVE, false), (MOUNT, true), (OLD, false)];

/// The only phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// From the first step to the last.
    Create,
}

impl machine::Phase for Phase {
    fn name(self) -> &'static str {
        "create"
    }

    fn of_name(name: &str) -> Option<Self> {
        (name == "create").then_some(Self::Create)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(machine::Phase::name(*self))
    }
}

/// All of it.
#[must_use]
pub fn plan() -> machine::Plan<Phase> {
    let steps = STEPS.map(|(name, volatile)| PlannedStep { name: name.to_owned(), volatile });
    vec![PlannedPhase { phase: Phase::Create, reboot: false, steps: steps.into() }]
}

/// Where the journal is.
#[must_use]
pub fn journal_of(node: &Node) -> PathBuf {
    node.path(FOLDER).join("progress")
}

/// Making a recovery partition, as a procedure.
#[derive(Debug, Clone)]
pub struct Making;

impl Procedure for Making {
    const NAME: &'static str = "partition";
    const INTERRUPTED: &'static str = "what is done of it stays, and nothing is lost";
    type Phase = Phase;
    type Beginning = BeginningV1;

    fn read_beginning(json: Value) -> serde_json::Result<BeginningV1> {
        serde_json::from_value(json)
    }

    fn write_beginning(beginning: &BeginningV1) -> serde_json::Result<Value> {
        serde_json::to_value(beginning)
    }

    fn past_the_journal() -> Next {
        by_hand(format!("`recovery partition status` says what there is; remove {FOLDER}/progress to begin again, or to leave it at that"))
    }

    fn way_on(reading: &Reading, kind: FailureKind) -> Next {
        let why = if kind == FailureKind::Interrupted { "goes on with it" } else { "goes on with it, once the cause is put right" };
        run(format!("recovery partition create --device {}", reading.beginning.device), why)
    }

    fn step_named(_: Phase, step: &str) -> String {
        format!("step {step}")
    }
}

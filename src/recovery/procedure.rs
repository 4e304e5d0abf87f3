//! A recovery as the [engine](crate::engine) carries it out: its phases, and what a run is asked to do.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backup::manifest::DeploymentId;
use crate::engine::{Procedure, journal, machine};
use crate::error::{FailureKind, Next, run};
use crate::formats::journal as format;
use crate::node::dir::{RecoveryDir, old_stages};
use crate::node::{Node, profile};
use crate::tools::systemctl;
use crate::up::HOLD;

/// The deadline of each wait of a recovery unless it is given. As long as the old tool's: an installer takes 30 to 90 s, a lease 330 s, the
/// start-up monitor up to 300 s.
pub const WAIT: Duration = Duration::from_secs(1200);

/// The journal of a recovery, as read.
pub type Reading = journal::Reading<Recovery>;
impl Reading {
    /// The journal of the recovery in progress, if there is one; messages call it as the node does.
    ///
    /// # Errors
    /// As [`Reading::of`].
    pub fn in_progress(dir: &RecoveryDir) -> Result<Option<Self>> {
        Self::named(&dir.journal(), &dir.shown_journal())
    }
}

/// The journal of a recovery, open for writing.
pub type Journal = journal::Journal<Recovery>;
/// What can happen to a recovery.
pub type Event = machine::Event<Phase>;
/// Everything a recovery will do, in order.
pub type Plan = machine::Plan<Phase>;
/// Where a recovery stands.
pub type State = machine::State<Phase>;

/// The phases of a recovery, in order. Each has a file of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The deployment: the backup's boots next. Ends with a reboot into it.
    Platform,
    /// The files of the operating system: `/usr/local`, `/etc`, managed files elsewhere. Ends with a reboot.
    RestoreFiles,
    /// The control plane: kubelet's files, static pods, etcd; starts it again.
    Resume,
    /// Every static-pod operator rolls its pods out once more.
    Redeploy,
    /// The cluster is as the backup recorded it, and what the run needed is cleared away.
    Finish,
}

const PHASES: [Phase; 5] = [Phase::Platform, Phase::RestoreFiles, Phase::Resume, Phase::Redeploy, Phase::Finish];

impl machine::Phase for Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::RestoreFiles => "restore-files",
            Self::Resume => "resume",
            Self::Redeploy => "redeploy",
            Self::Finish => "finish",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        PHASES.into_iter().find(|phase| machine::Phase::name(*phase) == name)
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(machine::Phase::name(*self))
    }
}

/// What a recovery was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning {
    /// The kind of control plane.
    pub profile: profile::Kind,
    /// The deployment the backup belongs to, when it records one.
    pub target: Option<DeploymentId>,
    /// What was asked for.
    pub asked: Asked,
    /// The run this one replaces.
    pub restarts: Option<String>,
    /// A run of which nothing else is known had left a hold or something to undo: what it changed, nobody knows.
    pub inherits: bool,
    /// What was found and gone on with nevertheless.
    pub warnings: Vec<String>,
    /// The rules of its resource modifier.
    pub rules: Option<String>,
}

/// Choices of whoever began the run that hold until it ends, across reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Go on with the booted deployment where the platform table refuses, and where the identity is not the backup's.
    pub force: bool,
    /// Reboot without asking when the files are restored.
    pub reboot: bool,
    /// One phase at a time: the unit does not continue this run by itself.
    pub step: bool,
    /// How etcd is restored.
    pub etcd: EtcdRestore,
    /// The deadline of each wait, seconds, when it was given.
    pub wait: Option<u64>,
    /// For how long the cluster has to stay as the backup recorded it, seconds, when it was given.
    pub hold: Option<u64>,
}

impl Asked {
    /// The deadline of each wait.
    pub(super) fn deadline(&self) -> Duration {
        self.wait.map_or(WAIT, Duration::from_secs)
    }

    /// For how long the cluster has to stay as the backup recorded it.
    pub(super) fn hold(&self) -> Duration {
        self.hold.map_or(HOLD, Duration::from_secs)
    }
}

/// How etcd's data is restored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum EtcdRestore {
    /// By this agent.
    #[default]
    Native,
    /// By the cluster's own `/usr/local/bin/cluster-restore.sh`.
    ClusterRestore,
}

/// The recovery of a node, as a procedure.
#[derive(Debug, Clone)]
pub struct Recovery;

impl Procedure for Recovery {
    const NAME: &'static str = "recovery";
    const IN_JOURNALD: bool = true;
    const INTERRUPTED: &'static str = "the recovery is open";
    type Phase = Phase;
    type Beginning = Beginning;

    fn read_beginning(json: Value) -> serde_json::Result<Beginning> {
        serde_json::from_value::<format::RecoveryV4>(json).map(Beginning::from)
    }

    fn write_beginning(beginning: &Beginning) -> serde_json::Result<Value> {
        serde_json::to_value(format::RecoveryV4::from(beginning.clone()))
    }

    /// The notes of upgrade-recovery.sh have the same place.
    fn is_foreign(bytes: &[u8]) -> bool {
        old_stages(bytes).is_some()
    }

    fn past_the_journal() -> Next {
        Next::Restart { backup: None }
    }

    fn way_on(reading: &Reading, kind: FailureKind) -> Next {
        match kind {
            FailureKind::Damaged => {
                run("recovery verify", "says which backup is whole; `recovery restart --backup ID` with that one, or `recovery abandon`")
            }
            FailureKind::NoSpace => run("recovery resume", ", once there is room"),
            FailureKind::Busy | FailureKind::Locked => {
                let by_itself = if reading.beginning.asked.step { "" } else { " (the unit tries it again by itself)" };
                run("recovery resume", format!("when that has changed{by_itself}, or `recovery abandon`"))
            }
            FailureKind::Interrupted => {
                let by_itself =
                    if reading.beginning.asked.step { "" } else { " (the unit does by itself, at the next boot at the latest)" };
                run("recovery resume", format!("to go on{by_itself}, or `recovery abandon`"))
            }
            _ => Next::Resume,
        }
    }
}

/// This boot, as a journal names it: its id and, behind a `+`, how many soft reboots it has seen, when there were any. These keep the
/// kernel, and with it the id, and end all that runs: what a volatile step did is lost with them as with a real one.
///
/// # Errors
/// When the kernel does not say its boot id.
pub(super) fn this_boot(node: &Node) -> Result<String> {
    let id = node.clock().boot_id()?;
    Ok(match systemctl::soft_reboots(node) {
        0 => id,
        number => format!("{id}+{number}"),
    })
}

impl From<format::RecoveryV4> for Beginning {
    fn from(read: format::RecoveryV4) -> Self {
        let format::RecoveryV4 { profile, target, asked, restarts, inherits, warnings, rules } = read;
        Self { profile: profile.into(), target: target.map(DeploymentId::from), asked: asked.into(), restarts, inherits, warnings, rules }
    }
}

impl From<Beginning> for format::RecoveryV4 {
    fn from(beginning: Beginning) -> Self {
        let Beginning { profile, target, asked, restarts, inherits, warnings, rules } = beginning;
        Self { profile: profile.into(), target: target.map(Into::into), asked: asked.into(), restarts, inherits, warnings, rules }
    }
}

impl From<format::AskedV4> for Asked {
    fn from(read: format::AskedV4) -> Self {
        let format::AskedV4 { force, reboot, step, etcd, wait, hold } = read;
        let etcd = match etcd {
            format::EtcdRestoreV1::Native => EtcdRestore::Native,
            format::EtcdRestoreV1::ClusterRestore => EtcdRestore::ClusterRestore,
        };
        Self { force, reboot, step, etcd, wait, hold }
    }
}

impl From<Asked> for format::AskedV4 {
    fn from(asked: Asked) -> Self {
        let Asked { force, reboot, step, etcd, wait, hold } = asked;
        let etcd = match etcd {
            EtcdRestore::Native => format::EtcdRestoreV1::Native,
            EtcdRestore::ClusterRestore => format::EtcdRestoreV1::ClusterRestore,
        };
        Self { force, reboot, step, etcd, wait, hold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::machine::{Open, Stage};

    #[test]
    fn a_journal_of_version_1_is_read_and_gone_on_with() {
        let sample = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats/journal.1.jsonl");
        let whole = std::fs::read_to_string(sample).unwrap();
        let open: Vec<&str> = whole.split_inclusive('\n').filter(|line| !line.contains("abandoned")).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        std::fs::write(&path, open.concat()).unwrap();
        let mut journal = Journal::open(&path, "boot-3").unwrap().unwrap();
        let reading = journal.reading();
        assert_eq!((reading.agent.as_deref(), reading.subject.as_str(), reading.plan.len()), (None, "20261121T061500Z-4.16.8", 5));
        assert!(reading.beginning.asked.force && reading.beginning.asked.etcd == EtcdRestore::ClusterRestore);
        assert_eq!(reading.beginning.target.as_ref().map(|target| target.stateroot.as_str()), Some("rhcos"));
        let phase = Phase::RestoreFiles;
        assert!(matches!(&reading.state, State::Open(Open { phase: 1, done: 2, stage: Stage::Between, .. })), "{:?}", reading.state);
        journal.append(&Event::StepIntent(phase, "etc".to_owned()), Value::Null).unwrap();
        journal.append(&Event::Abandoned, Value::Null).unwrap();
        let read = Reading::of(&path).unwrap().unwrap();
        assert_eq!((read.state, read.records.len()), (State::Abandoned, open.len() + 2));
    }

    #[test]
    fn every_phase_is_found_by_its_name() {
        for phase in PHASES {
            assert_eq!(machine::Phase::of_name(machine::Phase::name(phase)), Some(phase));
        }
        assert_eq!(<Phase as machine::Phase>::of_name("redeploys"), None);
    }
}

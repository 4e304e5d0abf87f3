//! The journal of a run: JSON Lines, each ending with a checksum of its own bytes. `progress` in the recovery directory is the journal of a
//! recovery, `journal` in the directory of an unfinished backup that of the backup.
//!
//! | version | written by | what is new |
//! |---|---|---|
//! | 1 | 0.1.0, before its release | recoveries alone |
//! | 2 | 0.1.0, before its release | any procedure; `backup` is called `subject`; the first line names the procedure and the agent, and keeps the plan apart from what was asked |
//! | 3 | 0.1.0, before its release | a recovery can have the rules of a resource modifier |
//! | 4 | 0.1.0 | for how long the cluster has to stay as the backup recorded it |

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Format;
use super::deployment::DeploymentV1;
use super::manifest::ProfileV1;

/// This format.
pub const FORMAT: Format = Format { name: "the journal", version: 4 };
/// What comes between a line's content and its checksum.
const SUM: &str = ",\"sum\":\"";
/// The length of the checksum and what follows it: eight hex digits, quote, brace.
const SUM_END: usize = 8 + 2;

/// A line, from version 2 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LineV2 {
    /// 2, 3 or 4.
    pub version: u32,
    /// 1 for the first line, then one more for each line.
    pub sequence: u64,
    /// The node's wall clock.
    pub time: Timestamp,
    /// The run.
    pub run: String,
    /// What the run is about: the backup that is restored, or taken.
    pub subject: String,
    /// The boot in which it was written: its id and, after a `+`, the number of soft reboots so far, if there were any.
    pub boot: String,
    /// The phase that the line is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The step that the line is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What happened.
    pub event: EventV1,
    /// Details: [`BegunV2`] in the first line, [`FailedV1`] of a failure, notes and results of a step.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// What a line records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EventV1 {
    /// The run began: the first line.
    RunBegun,
    /// A phase began.
    PhaseBegun,
    /// A step is about to act.
    StepIntent,
    /// A step has noted what it must still know after a crash.
    StepNoted,
    /// A step is done; the detail has its results.
    StepDone,
    /// A step has failed.
    StepFailed,
    /// Of the phase, only the reboot is missing.
    RebootRequested,
    /// A phase has ended.
    PhaseDone,
    /// The run has reached its end.
    Finished,
    /// The run was abandoned.
    Abandoned,
}

/// The detail of the first line, from version 2 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BegunV2 {
    /// What kind of run it is: `recovery`, `backup`.
    pub procedure: String,
    /// Version of the agent that began the run; `None` in a journal that began as version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Everything the run will do, in order.
    pub plan: Vec<PhaseV1>,
    /// What it was asked to do: [`RecoveryV4`] of a recovery, [`BeginningV2`](super::partial::BeginningV2) of a backup.
    pub beginning: Value,
}

/// A phase of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PhaseV1 {
    /// Its name.
    pub phase: String,
    /// True when it ends with a reboot of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reboot: bool,
    /// Its steps, in order.
    pub steps: Vec<StepV1>,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StepV1 {
    /// Its name.
    pub name: String,
    /// True when a reboot undoes its effect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub volatile: bool,
}

/// The detail of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FailedV1 {
    /// Why, in words.
    pub cause: String,
    /// The name of its kind; `None` in journals of earlier agents. The kinds are in [`error`](crate::error); for an unknown one, the exit
    /// code says enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What to do about it, when the cause says so, in the form of `--json`. An unknown value is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Value>,
    /// The exit code of the command that failed.
    pub exit: u8,
}

/// What a recovery was asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoveryV4 {
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// The deployment that the backup belongs to, when it records one.
    pub target: Option<DeploymentV1>,
    /// What was asked for.
    pub asked: AskedV4,
    /// The run that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<String>,
    /// A run of which nothing else is known had left something to undo.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
    /// What was found and gone on with nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The rules of its resource modifier, as they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<String>,
}

/// What a recovery was asked to do, in version 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoveryV3 {
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// The deployment that the backup belongs to, when it records one.
    pub target: Option<DeploymentV1>,
    /// What was asked for.
    pub asked: AskedV1,
    /// The run that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<String>,
    /// A run of which nothing else is known had left something to undo.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
    /// What was found and gone on with nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The rules of its resource modifier, as they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<String>,
}

/// What a recovery was asked to do, in version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RecoveryV2 {
    /// The kind of control plane.
    pub profile: ProfileV1,
    /// The deployment that the backup belongs to, when it records one.
    pub target: Option<DeploymentV1>,
    /// The options.
    pub asked: AskedV1,
    /// The run that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<String>,
    /// True when a run of which nothing else is known had left something to undo.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherits: bool,
    /// What was found before its begin that did not stop it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The options of the command that began a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AskedV4 {
    /// Continue although the platform table, identity or clock forbid it.
    pub force: bool,
    /// Reboot without asking.
    pub reboot: bool,
    /// One phase at a time.
    pub step: bool,
    /// How etcd is restored.
    pub etcd: EtcdRestoreV1,
    /// The deadline of each wait, seconds, when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
    /// For how long the cluster has to stay as the backup recorded it, seconds, when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<u64>,
}

/// The options of the command that began a recovery, up to version 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AskedV1 {
    /// Continue although the platform table, identity or clock forbid it.
    pub force: bool,
    /// Reboot without asking.
    pub reboot: bool,
    /// One phase at a time.
    pub step: bool,
    /// How etcd is restored.
    pub etcd: EtcdRestoreV1,
    /// The deadline of each wait, seconds, when it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<u64>,
}

/// How etcd's data is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EtcdRestoreV1 {
    /// By the agent.
    Native,
    /// By the cluster's own script.
    ClusterRestore,
}

/// A line of version 1. The first line has a [`RecoveryV1`] as detail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct LineV1 {
    version: u32,
    sequence: u64,
    time: Timestamp,
    run: String,
    backup: String,
    boot: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    event: EventV1,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    detail: Value,
}

/// What a recovery was asked to do, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct RecoveryV1 {
    profile: ProfileV1,
    target: Option<DeploymentV1>,
    asked: AskedV1,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restarts: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    inherits: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    phases: Vec<PhaseV1>,
}

/// The only procedure of version 1.
const RECOVERY: &str = "recovery";

impl TryFrom<LineV1> for LineV2 {
    type Error = serde_json::Error;

    fn try_from(line: LineV1) -> Result<Self, Self::Error> {
        let detail = if line.event == EventV1::RunBegun {
            serde_json::to_value(BegunV2::try_from(serde_json::from_value::<RecoveryV1>(line.detail)?)?)?
        } else {
            line.detail
        };
        let LineV1 { sequence, time, run, backup: subject, boot, phase, step, event, .. } = line;
        Ok(Self { version: FORMAT.version, sequence, time, run, subject, boot, phase, step, event, detail })
    }
}

impl TryFrom<RecoveryV1> for BegunV2 {
    type Error = serde_json::Error;

    fn try_from(old: RecoveryV1) -> Result<Self, Self::Error> {
        let RecoveryV1 { profile, target, asked, restarts, inherits, warnings, phases: plan } = old;
        let beginning =
            serde_json::to_value(RecoveryV4 { profile, target, asked: asked.into(), restarts, inherits, warnings, rules: None })?;
        Ok(Self { procedure: RECOVERY.to_owned(), agent: None, plan, beginning })
    }
}

impl From<RecoveryV2> for RecoveryV4 {
    fn from(old: RecoveryV2) -> Self {
        let RecoveryV2 { profile, target, asked, restarts, inherits, warnings } = old;
        Self { profile, target, asked: asked.into(), restarts, inherits, warnings, rules: None }
    }
}

impl From<RecoveryV3> for RecoveryV4 {
    fn from(old: RecoveryV3) -> Self {
        let RecoveryV3 { profile, target, asked, restarts, inherits, warnings, rules } = old;
        Self { profile, target, asked: asked.into(), restarts, inherits, warnings, rules }
    }
}

impl From<AskedV1> for AskedV4 {
    fn from(old: AskedV1) -> Self {
        let AskedV1 { force, reboot, step, etcd, wait } = old;
        Self { force, reboot, step, etcd, wait, hold: None }
    }
}

impl LineV2 {
    /// A line of version 2 or 3, in which a recovery was asked to do `Old`, as it is in version 4.
    fn newest<Old: DeserializeOwned + Into<RecoveryV4>>(mut self) -> serde_json::Result<Self> {
        self.version = FORMAT.version;
        if self.event == EventV1::RunBegun {
            let mut begun: BegunV2 = serde_json::from_value(self.detail)?;
            if begun.procedure == RECOVERY {
                let old: Old = serde_json::from_value(begun.beginning)?;
                begun.beginning = serde_json::to_value(old.into())?;
            }
            self.detail = serde_json::to_value(begun)?;
        }
        Ok(self)
    }

    /// The line as in the file, with its newline.
    ///
    /// # Errors
    /// When it cannot be serialized.
    pub fn to_text(&self) -> Result<String> {
        sealed(self)
    }

    /// Reads a line of any version, without its newline. `agent` is the version of the agent that began the journal, when that is known.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`](crate::error::FailureKind::Unsupported) when it is of a newer version; any other error, without a
    /// [`Failure`](crate::error::Failure), when it is not a line of a journal.
    pub fn of(line: &[u8], agent: Option<&str>) -> Result<Self> {
        let line = std::str::from_utf8(line).context("it is not text")?;
        let version = version_of(line);
        // A line of a newer version may have another kind of checksum.
        if let Some(newer) = version.filter(|version| *version > FORMAT.version) {
            FORMAT.check_version(newer, agent)?;
        }
        let content = content(line)?;
        let read = match version {
            Some(1) => serde_json::from_str::<LineV1>(&content).and_then(Self::try_from),
            Some(2) => serde_json::from_str::<Self>(&content).and_then(Self::newest::<RecoveryV2>),
            Some(3) => serde_json::from_str::<Self>(&content).and_then(Self::newest::<RecoveryV3>),
            Some(4) => serde_json::from_str(&content),
            _ => bail!("it has no version"),
        };
        read.context("it is not a line of a journal")
    }
}

/// A line with its checksum.
fn sealed(line: &impl Serialize) -> Result<String> {
    let mut line = serde_json::to_string(line).context("serializing a line of the journal")?;
    let sum = crc32c::crc32c(line.as_bytes());
    line.pop();
    Ok(format!("{line}{SUM}{sum:08x}\"}}\n"))
}

/// The content of a line whose checksum matches.
fn content(line: &str) -> Result<String> {
    let (content, sum) = line
        .len()
        .checked_sub(SUM.len() + SUM_END)
        .filter(|at| line.is_char_boundary(*at))
        .map(|at| line.split_at(at))
        .ok_or_else(|| anyhow!("it is too short"))?;
    let sum = sum.strip_prefix(SUM).and_then(|s| s.strip_suffix("\"}")).ok_or_else(|| anyhow!("it has no checksum"))?;
    let content = format!("{content}}}");
    if sum != format!("{:08x}", crc32c::crc32c(content.as_bytes())) {
        bail!("its checksum does not match");
    }
    Ok(content)
}

fn version_of(line: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    serde_json::from_str::<Head>(line).ok().map(|head| head.version)
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    /// Every line of a sample, in the layout of its version, and written again.
    fn again<T: Serialize + DeserializeOwned>(file: &str) -> (Vec<T>, Vec<LineV2>) {
        let sample = samples::read(file);
        let text = std::str::from_utf8(&sample).unwrap();
        let lines: Vec<T> = text.lines().map(|line| serde_json::from_str(&content(line).unwrap()).unwrap()).collect();
        let written: String = lines.iter().map(|line| sealed(line).unwrap()).collect();
        samples::same(file, written.as_bytes());
        (lines, text.lines().map(|line| LineV2::of(line.as_bytes(), None).unwrap()).collect())
    }

    #[test]
    fn version_1_is_read_for_ever() {
        let (old, new) = again::<LineV1>("journal.1.jsonl");
        samples::schema::<LineV1>("journal", 1);
        samples::schema::<RecoveryV1>("journal-recovery", 1);
        assert_eq!(old.len(), new.len());
        let (first, begun): (RecoveryV1, BegunV2) =
            (serde_json::from_value(old[0].detail.clone()).unwrap(), serde_json::from_value(new[0].detail.clone()).unwrap());
        let asked: RecoveryV4 = serde_json::from_value(begun.beginning).unwrap();
        assert_eq!((begun.procedure.as_str(), begun.agent, &begun.plan), ("recovery", None, &first.phases));
        assert_eq!((asked.profile, asked.asked, asked.warnings), (first.profile, first.asked.into(), first.warnings));
        for (old, new) in old.iter().zip(&new) {
            assert_eq!((old.sequence, &old.run, &old.backup, &old.boot), (new.sequence, &new.run, &new.subject, &new.boot));
            assert_eq!((&old.phase, &old.step, old.event), (&new.phase, &new.step, new.event));
        }
    }

    /// A sample of version 2 or 3 is read as one of version 4, and what is new in the version after it is damage in it.
    fn is_read_for_ever(version: u32, new_in_the_next: &str) {
        let (old, new) = again::<LineV2>(&format!("journal.{version}.jsonl"));
        for (old, new) in old.iter().zip(&new) {
            let mut as_new = old.clone();
            as_new.version = FORMAT.version;
            assert_eq!(&as_new, new, "only what a recovery is asked to do has changed, and what it could not be asked is left out");
        }
        let next = samples::read(&format!("journal.{}.jsonl", version + 1));
        let mut more: Value = serde_json::from_str(&content(std::str::from_utf8(&next).unwrap().lines().next().unwrap()).unwrap()).unwrap();
        more["version"] = version.into();
        let error = LineV2::of(sealed(&more).unwrap().trim_end().as_bytes(), None).unwrap_err();
        assert!(format!("{error:#}").contains(new_in_the_next), "{error:#}");
    }

    #[test]
    fn versions_2_and_3_are_read_for_ever() {
        samples::schema::<RecoveryV2>("journal-recovery", 2);
        is_read_for_ever(2, "rules");
        samples::schema::<RecoveryV3>("journal-recovery", 3);
        is_read_for_ever(3, "hold");
    }

    #[test]
    fn version_4_is_what_is_written() {
        let (lines, read) = again::<LineV2>("journal.4.jsonl");
        assert_eq!(lines, read);
        samples::schema::<LineV2>("journal", 2);
        samples::schema::<BegunV2>("journal-begun", 2);
        samples::schema::<FailedV1>("journal-failed", 2);
        samples::schema::<RecoveryV4>("journal-recovery", 4);
        let begun: BegunV2 = serde_json::from_value(lines[0].detail.clone()).unwrap();
        assert_eq!(serde_json::to_value(&begun).unwrap(), lines[0].detail);
        let asked: RecoveryV4 = serde_json::from_value(begun.beginning.clone()).unwrap();
        assert!(asked.rules.is_some() && asked.asked.hold.is_some());
        assert_eq!(serde_json::to_value(&asked).unwrap(), begun.beginning);
        let failed = lines.iter().find(|line| line.event == EventV1::StepFailed).unwrap();
        let failure: FailedV1 = serde_json::from_value(failed.detail.clone()).unwrap();
        assert_eq!(serde_json::to_value(&failure).unwrap(), failed.detail);
    }
}

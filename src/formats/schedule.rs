//! `/var/lib/recovery/schedules/NAME.json`: a schedule, and what became of it so far.

use anyhow::Result;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Format;

/// This format.
pub const FORMAT: Format = Format { name: "the schedule", version: 2 };

/// Since which version it has a checksum.
const SEALED: u32 = 2;

/// Version 2, which has a [checksum](super::seal), and 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct V1 {
    /// 1 or 2.
    pub version: u32,
    /// Version of the agent that wrote it.
    pub agent: String,
    /// Its name. (That of the file is cut where it is long.)
    pub name: String,
    /// When: the cron expression as it was given.
    pub cron: String,
    /// The time zone that was given beside it.
    pub time_zone: Option<String>,
    /// A backup is to be taken before an upgrade, too.
    pub before_upgrade: bool,
    /// How many good backups of it are kept.
    pub keep: u32,
    /// It is not carried out for now.
    pub paused: bool,
    /// When it was made.
    pub created: Timestamp,
    /// From when on its next instant is counted: when it was made, changed or resumed, or when it last ran.
    pub base: Timestamp,
    /// The same, while the clock says that `base` is yet to come.
    pub instead: Option<Timestamp>,
    /// When it last ran by itself.
    pub ran: Option<MomentV1>,
    /// What is due and has not succeeded yet.
    pub waiting: Option<WaitingV1>,
    /// The last run, however it ended.
    pub last: Option<RunV1>,
    /// The last run that ended well.
    pub good: Option<RunV1>,
}

/// A moment, by the wall clock and by the one that no one sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MomentV1 {
    /// The wall clock.
    pub wall: Timestamp,
    /// The boot.
    pub boot: String,
    /// Seconds since it began.
    pub seconds: u64,
}

/// A run that is due and has not succeeded yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WaitingV1 {
    /// Since when it is due.
    pub since: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was last tried.
    pub tried: MomentV1,
    /// Why it did not succeed.
    pub why: String,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RunV1 {
    /// When it began.
    pub begun: Timestamp,
    /// When it ended; nothing while it is at work, or when it was cut short.
    pub ended: Option<Timestamp>,
    /// The name of the backup that it is to take.
    pub name: String,
    /// The id of the backup that it took.
    pub backup: Option<String>,
    /// The kind of its failure.
    pub failure: Option<String>,
    /// What it failed of, in words.
    pub why: Option<String>,
}

/// Reads one of any version.
///
/// # Errors
/// As [`Format::read_sealed`].
pub fn read(json: &[u8]) -> Result<V1> {
    FORMAT.read_sealed(SEALED, json, |_, json| serde_json::from_slice(json))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn version_1_is_read_for_ever() {
        assert_eq!(read(&samples::check_layout::<V1>("schedule", 1)).unwrap().version, 1);
    }

    #[test]
    fn version_2_is_what_is_written() {
        let (old, new) = (read(&samples::read("schedule.1.json")).unwrap(), read(&samples::check_sealed::<V1>("schedule", 2)).unwrap());
        assert_eq!(new, V1 { version: FORMAT.version, ..old });
    }
}

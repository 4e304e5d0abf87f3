//! The machine of one `ClusterBackup`: which state follows from what is seen of its cluster. Pure: no clock, no request. It has the form of that of
//! recoveries ([`engine::machine`](crate::engine::machine)): a total function from state and event to state or error; the names of the states are those that
//! the old tool's hub has.

use std::fmt::{self, Display, Formatter};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the backup of a cluster stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// What an earlier try has left on the cluster is being removed.
    #[default]
    PreparingToStart,
    /// All of that is gone; the Job is being put there.
    Starting,
    /// The Job was seen.
    Active,
    /// The node has said that its backup is verified. Final.
    Succeeded,
    /// It was not done in time; the next try goes on with it. Final.
    BackupTimeout,
    /// It failed. Final.
    UnrecoverableError,
}

/// What is seen of a cluster, one look at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Something of an earlier try, or of another one that is under way.
    Leftovers,
    /// Nothing of any try.
    Nothing,
    /// The Job of this try, which is not over.
    Running,
    /// The Job is complete, and the node has said that its backup is verified.
    Verified,
    /// The same, and that backup is not good for an upgrade any more; seen in time, another one would not be, either.
    Stale,
    /// The Job is complete, and the node has not said so.
    Unproven,
    /// The Job failed at its own deadline.
    DeadlineExceeded,
    /// The Job failed of anything else.
    Failed,
    /// The cluster does not answer, or there is no way to it for now.
    Unreachable,
    /// The cluster has refused what cannot be done without, and will refuse it again.
    Refused,
    /// The hub's clock for this cluster has run down, and the Job is not over.
    TooLate,
}

impl State {
    /// All states.
    pub const ALL: [Self; 6] =
        [Self::PreparingToStart, Self::Starting, Self::Active, Self::Succeeded, Self::BackupTimeout, Self::UnrecoverableError];

    /// True when nothing follows it.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::BackupTimeout | Self::UnrecoverableError)
    }

    /// Its name, as the status has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreparingToStart => "PreparingToStart",
            Self::Starting => "Starting",
            Self::Active => "Active",
            Self::Succeeded => "Succeeded",
            Self::BackupTimeout => "BackupTimeout",
            Self::UnrecoverableError => "UnrecoverableError",
        }
    }
}

impl Display for State {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Seen {
    /// All that can be seen.
    pub const ALL: [Self; 11] = [
        Self::Leftovers,
        Self::Nothing,
        Self::Running,
        Self::Verified,
        Self::Stale,
        Self::Unproven,
        Self::DeadlineExceeded,
        Self::Failed,
        Self::Unreachable,
        Self::Refused,
        Self::TooLate,
    ];

    /// True when the Job is over and no clock counts any more. It does of a backup that grew stale: where nobody came to look in time, the next one need not.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Verified | Self::Unproven | Self::DeadlineExceeded | Self::Failed | Self::Refused)
    }
}

/// Something was seen of a try that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} cannot follow {state}, which is final")]
pub struct Over {
    state: State,
    seen: Seen,
}

/// The state after `seen`. Total: every pair has an answer.
///
/// # Errors
/// [`Over`] when `state` is final.
pub fn transition(state: State, seen: Seen) -> Result<State, Over> {
    use State::{Active, BackupTimeout, PreparingToStart, Starting, Succeeded, UnrecoverableError};
    if state.is_final() {
        return Err(Over { state, seen });
    }
    Ok(match (state, seen) {
        (_, Seen::Verified) => Succeeded,
        (_, Seen::DeadlineExceeded | Seen::TooLate) => BackupTimeout,
        // Of a Job that is gone, nobody knows what it did before.
        (_, Seen::Stale | Seen::Unproven | Seen::Failed | Seen::Refused) | (Active, Seen::Nothing | Seen::Leftovers) => UnrecoverableError,
        (_, Seen::Running) => Active,
        (PreparingToStart, Seen::Nothing) => Starting,
        // Something came back, or somebody else began.
        (Starting, Seen::Leftovers) => PreparingToStart,
        (state, Seen::Leftovers | Seen::Nothing | Seen::Unreachable) => state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table as people read it: a row for each state, a column for each thing seen.
    const TABLE: &str = "
                       Leftovers          Nothing            Running Verified  Stale              Unproven           DeadlineExceeded Failed             Unreachable      Refused            TooLate
    PreparingToStart   PreparingToStart   Starting           Active  Succeeded UnrecoverableError UnrecoverableError BackupTimeout    UnrecoverableError PreparingToStart UnrecoverableError BackupTimeout
    Starting           PreparingToStart   Starting           Active  Succeeded UnrecoverableError UnrecoverableError BackupTimeout    UnrecoverableError Starting         UnrecoverableError BackupTimeout
    Active             UnrecoverableError UnrecoverableError Active  Succeeded UnrecoverableError UnrecoverableError BackupTimeout    UnrecoverableError Active           UnrecoverableError BackupTimeout
    Succeeded          -                  -                  -       -         -                  -                  -                -                  -                -                  -
    BackupTimeout      -                  -                  -       -         -                  -                  -                -                  -                -                  -
    UnrecoverableError -                  -                  -       -         -                  -                  -                -                  -                -                  -
    ";

    #[test]
    fn every_pair_of_state_and_sight_has_its_answer() {
        let mut rows = TABLE.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|row| !row.is_empty());
        let columns = rows.next().unwrap();
        assert_eq!(columns, Seen::ALL.map(|seen| format!("{seen:?}")));
        for (state, row) in State::ALL.into_iter().zip(rows.by_ref()) {
            assert_eq!(row[0], state.name());
            assert_eq!(row.len(), 1 + Seen::ALL.len(), "{state}");
            for (seen, expected) in Seen::ALL.into_iter().zip(&row[1..]) {
                let found = transition(state, seen).map_or("-", State::name);
                assert_eq!(found, *expected, "{state} and {seen:?}");
            }
        }
        assert_eq!(rows.next(), None);
    }

    #[test]
    fn a_state_is_written_as_the_old_hub_wrote_it() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}

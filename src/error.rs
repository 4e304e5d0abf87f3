//! How a failure ends: its kind, its message, and what to do about it, each as a value.
//!
//! Everything returns [`anyhow::Error`] with verb phrases as context ("reading the manifest of backup X"). Where the *kind* of failure
//! decides what the caller or the systemd unit does next, or where it is known what to do about it, a [`Failure`] is put at the root of the
//! chain; [`kind`] and [`next`] find it under any context. Exit codes are derived from kinds, here and nowhere else; code that decides asks
//! for the kind.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Error;
use serde::{Deserialize, Serialize};

/// The kind of a failure. Each has its documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// None of the others: an operation that failed.
    Failed,
    /// The command line is invalid, or a destructive verb was not confirmed.
    Usage,
    /// Sound, but not supported by this agent, or of a newer version; the message says what to do instead.
    Unsupported,
    /// A backup, journal, snapshot or archive is damaged or hostile, or rules cannot be carried out.
    Damaged,
    /// A component did not answer, or did not get ready, by its deadline.
    Unanswered,
    /// There is not enough space.
    NoSpace,
    /// A signal, or the end of another agent, stopped it where it can be continued.
    Interrupted,
    /// Another process has the lock.
    Locked,
    /// Something is changing: a recovery is in progress, or operators are progressing.
    Busy,
    /// Not root, or the recovery directory is writable by others.
    NotPermitted,
    /// Does not fit this node: other node or cluster, deployment table, missing tool.
    Misfit,
}

/// The exit codes with their meaning, for the help, the man pages and the README: there is no other list.
pub const EXIT_CODES: [(u8, &str); 10] = [
    (0, "done, or nothing to do (`archive diff`: equal)"),
    (1, "failed, look: the message names the step and the next command (`archive diff`: differs)"),
    (2, "usage, or not confirmed (`archive diff`: any other trouble)"),
    (64, "not supported: sound, but of a kind or version that the agent does not support; the message says what to do instead"),
    (65, "damaged or hostile: backup, journal, snapshot, archive; or a resource modifier that is no good"),
    (69, "a component did not answer by its deadline (`--wait`)"),
    (73, "no space"),
    (75, "not now, run it again: interrupted, locked, a recovery is in progress, operators are progressing"),
    (77, "not root, or the recovery directory is writable by others"),
    (78, "does not fit this node: other node or cluster, deployment table, missing tool or unit, a place that cannot be written to"),
];

impl FailureKind {
    /// All kinds; of several with the same exit code, the one that the code means by itself comes first.
    pub const ALL: [Self; 11] = [
        Self::Failed,
        Self::Usage,
        Self::Unsupported,
        Self::Damaged,
        Self::Unanswered,
        Self::NoSpace,
        Self::Interrupted,
        Self::Locked,
        Self::Busy,
        Self::NotPermitted,
        Self::Misfit,
    ];

    /// The documented exit code of this kind of failure.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unsupported => 64,
            Self::Damaged => 65,
            Self::Unanswered => 69,
            Self::NoSpace => 73,
            Self::Interrupted | Self::Locked | Self::Busy => 75,
            Self::NotPermitted => 77,
            Self::Misfit => 78,
        }
    }

    /// Its name, as JSON and files have it: `no-space`.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// True where something else is in the way, or does not answer, for now: the same may go well later without anybody's doing.
    #[must_use]
    pub fn is_not_now(self) -> bool {
        matches!(self, Self::Busy | Self::Unanswered | Self::Locked | Self::Interrupted)
    }

    /// The kind that an exit code in a journal of version 1 meant. (Such journals record no interruption.)
    #[must_use]
    pub fn of_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(Self::Failed)
    }
}

/// What to do about a failure. Shown after "next: ".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Next {
    /// The same command again, once something else has happened.
    #[error("{when}, then run this again")]
    Again {
        /// What comes before: "make room".
        when: String,
    },
    /// Continue the open recovery, once the cause is removed.
    #[error("put the cause right and `recovery resume`, or `recovery abandon`")]
    Resume,
    /// Begin the open recovery again from its start.
    #[error("{}", restart(backup.as_deref()))]
    Restart {
        /// From this backup, when the one that is being restored cannot be used.
        backup: Option<String>,
    },
    /// Reboot, then go on.
    #[error("`systemctl reboot`, then `recovery resume`")]
    Reboot,
    /// Make room on a file system.
    #[error("{how}")]
    MakeRoom {
        /// A directory on it, where it is known which one is full.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dir: Option<PathBuf>,
        /// What can go, in words.
        how: String,
    },
    /// A command, and what it is for.
    #[error("`{command}`{}{why}", if why.is_empty() || why.starts_with(',') { "" } else { " " })]
    Run {
        /// As it is typed.
        command: String,
        /// What it shows or does, in words that follow the command; empty where the command says it all.
        why: String,
    },
    /// Something that takes more than one command.
    #[error("{what}")]
    ByHand {
        /// What, in words.
        what: String,
    },
}

fn restart(backup: Option<&str>) -> String {
    match backup {
        Some(backup) => format!("`recovery restart --backup {backup}` begins again with that one, or `recovery abandon`"),
        None => "`recovery restart` to begin the recovery again, or `recovery abandon` to end it".to_owned(),
    }
}

/// A command and what it is for, as [`Next::Run`].
#[must_use]
pub fn run(command: impl Into<String>, why: impl Into<String>) -> Next {
    Next::Run { command: command.into(), why: why.into() }
}

/// What a person has to do, as [`Next::ByHand`].
#[must_use]
pub fn by_hand(what: impl Into<String>) -> Next {
    Next::ByHand { what: what.into() }
}

/// The same command again after something else, as [`Next::Again`].
#[must_use]
pub fn again(when: impl Into<String>) -> Next {
    Next::Again { when: when.into() }
}

/// Several of them as one: a single one stays as it is, more are joined as text with `between` between them. `None` when there is none.
#[must_use]
pub fn together(mut all: Vec<Next>, between: &str) -> Option<Next> {
    all.dedup();
    if all.len() > 1 {
        return Some(by_hand(all.iter().map(Next::to_string).collect::<Vec<_>>().join(between)));
    }
    all.pop()
}

/// A failure whose kind is part of the interface, with what to do about it where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its kind.
    pub kind: FailureKind,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do about it.
    pub next: Option<Next>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        // After a table it gets a line of its own.
        let between = if self.message.contains('\n') { "\n" } else { "; " };
        self.next.as_ref().map_or(Ok(()), |next| write!(f, "{between}next: {next}"))
    }
}

impl std::error::Error for Failure {}

/// Adds to a failure what to do about it.
pub trait AndNext {
    /// The same failure with `next`, which replaces an earlier one.
    #[must_use]
    fn and_next(self, next: Next) -> Self;
}

impl AndNext for Error {
    fn and_next(mut self, next: Next) -> Self {
        if let Some(failure) = self.downcast_mut::<Failure>() {
            failure.next = Some(next);
            return self;
        }
        Failure { kind: kind(&self), message: said(&self), next: Some(next) }.into()
    }
}

/// The kind of `error`: that of the [`Failure`] in its chain; else [`FailureKind::NoSpace`] when its cause is a full disk or quota; else
/// [`FailureKind::Failed`].
#[must_use]
pub fn kind(error: &Error) -> FailureKind {
    if let Some(failure) = failure(error) {
        return failure.kind;
    }
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
            || cause.downcast_ref::<rustix::io::Errno>().is_some_and(|e| matches!(*e, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT))
    };
    if error.chain().any(full) { FailureKind::NoSpace } else { FailureKind::Failed }
}

/// What to do about `error`, when its chain says so.
#[must_use]
pub fn next(error: &Error) -> Option<&Next> {
    failure(error)?.next.as_ref()
}

/// True when the agent itself found what is wrong and described it; false for an unexpected error from the system.
#[must_use]
pub fn is_measured(error: &Error) -> bool {
    failure(error).is_some()
}

fn failure(error: &Error) -> Option<&Failure> {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>())
}

/// The message of `error` with its causes, without what to do about it.
#[must_use]
pub fn said(error: &Error) -> String {
    let message = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref::<Failure>() {
        Some(failure) => failure.message.clone(),
        None => cause.to_string(),
    };
    error.chain().map(message).collect::<Vec<_>>().join(": ")
}

/// The exit code of `error`.
#[must_use]
pub fn exit_code(error: &Error) -> u8 {
    kind(error).code()
}

/// [`exit_code`], as `main` returns it.
#[must_use]
pub fn to_exit(error: &Error) -> ExitCode {
    ExitCode::from(exit_code(error))
}

macro_rules! failure {
    ($($name:ident => $kind:ident),* $(,)?) => {$(
        #[doc = concat!("An [`anyhow::Error`] whose root is a [`Failure`] of [`FailureKind::", stringify!($kind), "`].")]
        #[must_use]
        pub fn $name(message: impl std::fmt::Display) -> Error {
            Failure { kind: FailureKind::$kind, message: message.to_string(), next: None }.into()
        }
    )*};
}
failure! {
    usage => Usage, unsupported => Unsupported, damaged => Damaged, unanswered => Unanswered, no_space => NoSpace,
    interrupted => Interrupted, locked => Locked, busy => Busy, not_permitted => NotPermitted, misfit => Misfit,
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_kind_and_the_way_out_are_found_under_context() {
        let root = damaged("bad sum").and_next(Next::Restart { backup: Some("b1".to_owned()) });
        let error = Err::<(), _>(root).context("verifying").context("recovering").unwrap_err();
        assert_eq!((kind(&error), exit_code(&error)), (FailureKind::Damaged, 65));
        assert_eq!(said(&error), "recovering: verifying: bad sum");
        assert!(
            format!("{error:#}").starts_with("recovering: verifying: bad sum; next: `recovery restart --backup b1` begins again"),
            "{error:#}"
        );
        assert_eq!(next(&error), Some(&Next::Restart { backup: Some("b1".to_owned()) }));
        let other = error.and_next(Next::Resume);
        assert!(
            format!("{other:#}").ends_with("bad sum; next: put the cause right and `recovery resume`, or `recovery abandon`"),
            "{other:#}"
        );
    }

    #[test]
    fn of_several_things_to_do_the_only_one_stays_what_it_is() {
        assert_eq!(together(Vec::new(), ", or "), None);
        assert_eq!(together(vec![Next::Reboot, Next::Reboot], ", or "), Some(Next::Reboot));
        let two = together(vec![run("systemctl unmask crio.service", ""), again("make room")], ", or ");
        assert_eq!(two, Some(by_hand("`systemctl unmask crio.service`, or make room, then run this again")));
    }

    #[test]
    fn a_full_disk_is_no_space_and_anything_else_is_a_failure() {
        let full = Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("writing");
        assert_eq!(exit_code(&full), 73);
        let with_way = full.and_next(again("make room"));
        assert_eq!(
            (kind(&with_way), format!("{with_way:#}").ends_with("next: make room, then run this again")),
            (FailureKind::NoSpace, true)
        );
        assert_eq!(exit_code(&Error::from(rustix::io::Errno::NOSPC)), 73);
        assert_eq!(exit_code(&anyhow::anyhow!("odd")), 1);
    }

    #[test]
    fn every_code_of_a_kind_is_documented_and_leads_back_to_one_of_the_same_code() {
        for kind in FailureKind::ALL {
            assert!(EXIT_CODES.iter().any(|(code, _)| *code == kind.code()), "{kind:?}");
            assert_eq!(FailureKind::of_code(kind.code()).code(), kind.code());
        }
    }
}

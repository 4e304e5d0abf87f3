//! How a failure ends: the few typed errors, and the one place that maps them to exit codes.
//!
//! Everything returns [`anyhow::Error`] with verb phrases as context ("reading the manifest of backup X"). Where the *kind* of
//! failure decides what the caller or the systemd unit does next, a [`Failure`] is put at the root of the chain, and
//! [`exit_code`] finds it again through any context laid over it.

use std::process::ExitCode;

/// A failure whose kind is part of the interface: each kind has its documented exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 2: the command line makes no sense, or a destructive verb was not confirmed.
    #[error("{0}")]
    Usage(String),
    /// 64: sound, but nothing that this agent takes; the message says what to do instead.
    #[error("{0}")]
    Unsupported(String),
    /// 65: a backup, journal, snapshot or archive is damaged, hostile or of another version.
    #[error("{0}")]
    Damaged(String),
    /// 69: a component did not answer, or did not get ready, by its deadline.
    #[error("{0}")]
    Unanswered(String),
    /// 73: there is no space for what was asked.
    #[error("{0}")]
    NoSpace(String),
    /// 75: not now; run it again (interrupted, lock held, recovery in progress, operators progressing).
    #[error("{0}")]
    NotNow(String),
    /// 77: not root, or the recovery directory is writable by others.
    #[error("{0}")]
    NotPermitted(String),
    /// 78: does not fit this node (other node or cluster, deployment table, missing tool).
    #[error("{0}")]
    Misfit(String),
}

impl Failure {
    /// The documented exit code of this kind of failure.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unsupported(_) => 64,
            Self::Damaged(_) => 65,
            Self::Unanswered(_) => 69,
            Self::NoSpace(_) => 73,
            Self::NotNow(_) => 75,
            Self::NotPermitted(_) => 77,
            Self::Misfit(_) => 78,
        }
    }
}

/// The exit code of `error`: that of the first [`Failure`] in its chain; 73 for a full disk or quota met anywhere; else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(failure) = error.chain().find_map(|cause| cause.downcast_ref::<Failure>()) {
        return failure.code();
    }
    let full = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
            || cause.downcast_ref::<rustix::io::Errno>().is_some_and(|e| matches!(*e, rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT))
    };
    if error.chain().any(full) { 73 } else { 1 }
}

/// [`exit_code`], as `main` returns it.
#[must_use]
pub fn to_exit(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(exit_code(error))
}

macro_rules! failure {
    ($($name:ident => $kind:ident),* $(,)?) => {$(
        #[doc = concat!("An [`anyhow::Error`] whose root is [`Failure::", stringify!($kind), "`].")]
        #[must_use]
        pub fn $name(message: impl std::fmt::Display) -> anyhow::Error {
            Failure::$kind(message.to_string()).into()
        }
    )*};
}
failure! {
    usage => Usage, unsupported => Unsupported, damaged => Damaged, unanswered => Unanswered, no_space => NoSpace,
    not_now => NotNow, not_permitted => NotPermitted, misfit => Misfit,
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_kind_is_found_under_context() {
        let error = Err::<(), _>(damaged("bad sum")).context("verifying").context("recovering").unwrap_err();
        assert_eq!(exit_code(&error), 65);
        assert_eq!(format!("{error:#}"), "recovering: verifying: bad sum");
    }

    #[test]
    fn a_full_disk_is_73_and_anything_else_is_1() {
        let full = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("writing");
        assert_eq!(exit_code(&full), 73);
        assert_eq!(exit_code(&anyhow::Error::from(rustix::io::Errno::NOSPC)), 73);
        assert_eq!(exit_code(&anyhow::anyhow!("odd")), 1);
    }
}
